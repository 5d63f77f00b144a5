//! Opens the dashboard of a tenant for its owner, where the operator allows that at all.

use std::time::SystemTime;

use axum::Json;
use axum::extract::Path;
use axum::extract::State;
use axum::http::HeaderValue;
use axum::http::header;
use axum::response::IntoResponse;
use axum::response::Response;
use serde::Serialize;
use time::OffsetDateTime;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::api::Addresses;
use crate::api::AppState;
use crate::api::error::ApiError;
use crate::api::extractors::AuthUser;
use crate::error::Code;
use crate::error::Problem;
use crate::gateway::Dashboards;
use crate::tenancy::MemberRole;
use crate::tenancy::Tenancy;

/// The one route, at its absolute path.
pub fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(open_dashboard))
}

/// Where the dashboard is open, and until when.
#[derive(Serialize, ToSchema)]
struct OpenDashboard {
    /// To be opened in a browser. What follows the `#` is a credential: whoever has it is superuser until it ends.
    #[schema(example = "https://acme.apps.example.com/_/open-dashboard#eyJhbGciOi…")]
    url: String,
    #[serde(with = "time::serde::rfc3339")]
    #[schema(value_type = String, format = DateTime)]
    expires_at: OffsetDateTime,
}

/// Opens `PocketBase`'s dashboard of a tenant for its owner, for a limited time (`server.dashboard`).
#[utoipa::path(post, path = "/api/v1/tenants/{id}/dashboard", tag = "tenants", security(("bearer" = [])),
    params(("id" = String, Path, description = "The tenant's slug or id.")),
    responses((status = 200, description = "Where it is open.", body = OpenDashboard)))]
async fn open_dashboard(
    State(tenancy): State<Tenancy>,
    State(dashboards): State<Dashboards>,
    State(addresses): State<Addresses>,
    Path(id): Path<String>,
    user: AuthUser,
) -> Result<Response, ApiError> {
    let absent = || Problem::new(Code::NotFound);
    let tenant = tenancy.resolve(&id).ok_or_else(absent)?;
    let role = tenancy.role(&tenant, &user.principal.user).ok_or_else(absent)?;
    if role != MemberRole::Owner {
        return Err(Problem::new(Code::Forbidden).message("only an owner may open the dashboard").into());
    }
    let refused = |message: &'static str| Problem::new(Code::Forbidden).message(message);
    if !dashboards.are_on() {
        return Err(refused("the operator has not allowed dashboards (server.dashboard)").into());
    }
    let host = addresses.host(&tenant);
    let host = host.ok_or_else(|| refused("dashboards need hosts of their own for tenants (server.domain)"))?;
    let opened = dashboards.open(&tenant.id, &user.principal, SystemTime::now());
    let opened = opened.ok_or_else(|| Problem::new(Code::Overloaded).message("too many dashboards are open"))?;
    tracing::info!(tenant.id = %tenant.id, user.id = %user.principal.user, "a dashboard was opened");
    let answer = OpenDashboard { url: format!("{host}{}", opened.path), expires_at: opened.expires.into() };
    Ok(([(header::CACHE_CONTROL, HeaderValue::from_static("no-store"))], Json(answer)).into_response())
}
