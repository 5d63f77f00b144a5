//! The caller's webhook at Fathom: whether new meetings come by themselves.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::Deserialize;
use serde::Serialize;
use time::OffsetDateTime;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::api::AppState;
use crate::api::error::ApiError;
use crate::api::extractors::AuthUser;
use crate::api::json;
use crate::api::meetings::own_tenant;
use crate::meetings::HookSettings;
use crate::meetings::HookState;
use crate::meetings::Meetings;
use crate::tenancy::Tenancy;

/// The routes, relative to where they are mounted.
pub fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(show_hook, set_hook, remove_hook))
}

/// The caller's webhook.
#[derive(Serialize, ToSchema)]
struct MeetingWebhook {
    /// `none`, `registering`, `active` or `removing`.
    #[schema(value_type = String, example = "active")]
    state: &'static str,
    /// Where Fathom calls.
    url: Option<String>,
    /// Whether a new meeting is delivered to the default destination at once.
    auto_deliver: bool,
    #[serde(with = "time::serde::rfc3339::option")]
    #[schema(value_type = Option<String>, format = DateTime)]
    created_at: Option<OffsetDateTime>,
    /// When Fathom called last.
    #[serde(with = "time::serde::rfc3339::option")]
    #[schema(value_type = Option<String>, format = DateTime)]
    last_received_at: Option<OffsetDateTime>,
}

impl MeetingWebhook {
    fn of(settings: HookSettings) -> Self {
        Self {
            state: match settings.state {
                HookState::None => "none",
                HookState::Registering => "registering",
                HookState::Active => "active",
                HookState::Removing => "removing",
            },
            url: settings.url,
            auto_deliver: settings.auto_deliver,
            created_at: settings.created_at,
            last_received_at: settings.heard_at,
        }
    }
}

/// What the webhook is to do.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct SetWebhook {
    /// Deliver a new meeting to the default destination at once.
    #[serde(default)]
    auto_deliver: bool,
}

/// Shows the caller's webhook.
#[utoipa::path(get, path = "/meetings/webhook", tag = "meetings", security(("bearer" = [])),
    responses((status = 200, description = "The webhook.", body = MeetingWebhook)))]
async fn show_hook(
    State(meetings): State<Meetings>,
    State(tenancy): State<Tenancy>,
    user: AuthUser,
) -> Result<Json<MeetingWebhook>, ApiError> {
    let tenant = own_tenant(&tenancy, &user).await?;
    Ok(Json(MeetingWebhook::of(meetings.hook(&tenant))))
}

/// Makes a webhook at Fathom for the caller's new meetings, with a fresh address and secret; one that was there before is
/// removed. The secret is kept sealed and shown to nobody.
#[utoipa::path(put, path = "/meetings/webhook", tag = "meetings", security(("bearer" = [])), request_body = SetWebhook,
    responses((status = 200, description = "The webhook.", body = MeetingWebhook)))]
async fn set_hook(
    State(meetings): State<Meetings>,
    State(tenancy): State<Tenancy>,
    user: AuthUser,
    json::Json(body): json::Json<SetWebhook>,
) -> Result<Json<MeetingWebhook>, ApiError> {
    let tenant = own_tenant(&tenancy, &user).await?;
    let owner = user.principal.user.clone();
    let settings = meetings.set_hook(tenant, owner, body.auto_deliver, OffsetDateTime::now_utc()).await?;
    Ok(Json(MeetingWebhook::of(settings)))
}

/// Removes the caller's webhook. Nothing is taken from it any more; if Fathom cannot be told now, it is told later.
#[utoipa::path(delete, path = "/meetings/webhook", tag = "meetings", security(("bearer" = [])),
    responses((status = 204, description = "There is none (any more).")))]
async fn remove_hook(
    State(meetings): State<Meetings>,
    State(tenancy): State<Tenancy>,
    user: AuthUser,
) -> Result<StatusCode, ApiError> {
    let tenant = own_tenant(&tenancy, &user).await?;
    meetings.remove_hook(tenant).await?;
    Ok(StatusCode::NO_CONTENT)
}
