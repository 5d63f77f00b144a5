//! The caller's sign-in at Fathom, in place of a pasted key.
//!
//! It is begun here and ended by the browser that comes back from there. That one has to show the session that began it, by
//! the page's cookie or as usual: whoever is sent here with somebody else's code or state connects nothing.

use std::time::SystemTime;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::response::IntoResponse;
use axum::response::Redirect;
use axum::response::Response;
use serde::Serialize;
use time::OffsetDateTime;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::api::AppState;
use crate::api::error::ApiError;
use crate::api::extractors::AuthUser;
use crate::api::extractors::ClientInfo;
use crate::api::extractors::token;
use crate::api::fields::Fields;
use crate::api::fields::encoded;
use crate::api::session_cookie;
use crate::auth::Principal;
use crate::error::Code;
use crate::error::Problem;
use crate::ids::TenantId;
use crate::meetings;
use crate::meetings::OPEN_FOR;
use crate::store::sessions::Sessions;
use crate::vault::Caller;

/// Where Fathom sends people back to.
const CALLBACK: &str = "/api/v1/services/fathom/callback";
/// Longest code or state, in bytes.
const LONGEST: usize = 4_096;

/// The routes, relative to where they are mounted.
pub fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(show_fathom, disconnect_fathom))
        .routes(routes!(connect_fathom))
        .routes(routes!(fathom_callback))
}

/// How the caller stands with Fathom.
#[derive(Serialize, ToSchema)]
struct FathomConnection {
    /// Whether one can sign in at Fathom through this server; if not, store a key.
    available: bool,
    /// Whether the caller did.
    connected: bool,
    /// What it is called in the vault.
    key_id: Option<String>,
    #[serde(with = "time::serde::rfc3339::option")]
    #[schema(value_type = Option<String>, format = DateTime)]
    connected_at: Option<OffsetDateTime>,
}

/// Where to go.
#[derive(Serialize, ToSchema)]
struct ConnectFathom {
    /// Open it in the browser that is signed in here.
    #[schema(example = "https://fathom.video/external/v1/oauth2/authorize?…")]
    url: String,
    /// For how long it can be used, once.
    expires_in: u64,
}

fn caller(principal: &Principal, client: &ClientInfo) -> Caller {
    Caller { tenant: TenantId::personal(&principal.user), user: principal.user.clone(), ip: Some(client.0.ip) }
}

/// Names the sign-in, whatever its token was refreshed to since.
fn session(sessions: &Sessions, principal: &Principal) -> String {
    let found = sessions.find(&principal.session);
    found.as_ref().map_or(&principal.session, |session| session.family()).as_str().to_owned()
}

/// Tells whether the caller signed in at Fathom, and whether that is possible.
#[utoipa::path(get, path = "/services/fathom", tag = "meetings", security(("bearer" = [])),
    responses((status = 200, description = "How it stands.", body = FathomConnection)))]
async fn show_fathom(State(state): State<AppState>, user: AuthUser) -> Json<FathomConnection> {
    let tenant = TenantId::personal(&user.principal.user);
    let found = state.services.meetings.connection(&tenant, OffsetDateTime::now_utc());
    Json(FathomConnection {
        available: state.services.meetings.can_connect(),
        connected: found.is_some(),
        connected_at: found.as_ref().map(|item| item.updated_at),
        key_id: found.map(|item| item.key_id.as_str().to_owned()),
    })
}

/// Begins a sign-in at Fathom: open the URL in the browser that is signed in here. It is good once, for ten minutes. What
/// Fathom grants takes the place of the caller's default key of Fathom.
#[utoipa::path(post, path = "/services/fathom/connect", tag = "meetings", security(("bearer" = [])),
    responses((status = 200, description = "Where to go.", body = ConnectFathom),
        (status = 501, description = "No app is registered with Fathom.", body = crate::api::error::ErrorBody)))]
async fn connect_fathom(State(state): State<AppState>, user: AuthUser) -> Result<Json<ConnectFathom>, ApiError> {
    let session = session(&state.sessions, &user.principal);
    let back = state.addresses.at(CALLBACK);
    let url = state.services.meetings.begin_connect(&user.principal.user, &session, &back)?;
    Ok(Json(ConnectFathom { url, expires_in: OPEN_FOR.as_secs() }))
}

/// Where Fathom sends the browser back to. Leads on to the page, which says what came of it.
#[utoipa::path(get, path = "/services/fathom/callback", tag = "meetings",
    params(("state" = Option<String>, Query, description = "As it was given to Fathom."),
        ("code" = Option<String>, Query, description = "What is exchanged for tokens."),
        ("error" = Option<String>, Query, description = "Why there is no code.")),
    responses((status = 303, description = "On to the page.")))]
async fn fathom_callback(State(state): State<AppState>, client: ClientInfo, parts: Parts) -> Response {
    let said = match came_back(&state, &client, &parts).await {
        Ok(()) => "fathom-connected",
        Err(Stop::SignIn) => return Redirect::to("/app/sign-in").into_response(),
        Err(Stop::Stray) => "fathom-stray",
        Err(Stop::Declined) => "fathom-declined",
        Err(Stop::Failed) => "fathom-failed",
    };
    Redirect::to(&format!("/app/settings?said={said}")).into_response()
}

/// Why nothing was connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stop {
    SignIn,
    /// Not begun by this session, over, or used.
    Stray,
    Declined,
    Failed,
}

async fn came_back(state: &AppState, client: &ClientInfo, parts: &Parts) -> Result<(), Stop> {
    let token = token(&parts.headers).or_else(|| session_cookie::token(parts)).ok_or(Stop::SignIn)?;
    let principal = state.verifier.verify(token, SystemTime::now()).map_err(|_| Stop::SignIn)?;
    let fields = encoded(parts.uri.query().unwrap_or_default()).map(Fields).map_err(|_| Stop::Stray)?;
    let text = |name: &str| fields.text(name).ok().filter(|text| text.len() <= LONGEST).unwrap_or_default();
    let services = &state.services;
    if !services.meetings.end_connect(text("state"), &principal.user, &session(&state.sessions, &principal)) {
        return Err(Stop::Stray);
    }
    if text("code").is_empty() {
        return Err(Stop::Declined);
    }
    let failed = |error: meetings::Error| {
        tracing::info!(user.id = %principal.user, %error, "a sign-in at Fathom came to nothing");
        Stop::Failed
    };
    if state.tenancy.personal(&principal.user).is_none()
        && let Err(error) = state.tenancy.ensure_personal(&principal.user).await
    {
        tracing::info!(user.id = %principal.user, %error, "no tenant to connect Fathom to");
        return Err(Stop::Failed);
    }
    let back = state.addresses.at(CALLBACK);
    services.meetings.connect(caller(&principal, client), text("code").to_owned(), back).await.map_err(failed)
}

/// Forgets the caller's sign-in at Fathom. Its tokens are destroyed; Fathom is not told.
#[utoipa::path(delete, path = "/services/fathom", tag = "meetings", security(("bearer" = [])),
    responses((status = 204, description = "It is gone.")))]
async fn disconnect_fathom(
    State(state): State<AppState>,
    user: AuthUser,
    client: ClientInfo,
) -> Result<StatusCode, ApiError> {
    let gone = state.services.meetings.disconnect(&caller(&user.principal, &client), OffsetDateTime::now_utc()).await;
    gone.map_err(|error| match error {
        meetings::Error::NotFound => Problem::new(Code::NotFound).message("Fathom is not connected"),
        error => error.into(),
    })?;
    Ok(StatusCode::NO_CONTENT)
}
