//! The audit log for administrators: what was done, newest first.

use axum::Json;
use axum::extract::State;
use serde::Deserialize;
use serde::Serialize;
use utoipa::IntoParams;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::api::AppState;
use crate::api::error::ApiError;
use crate::api::extractors::Admin;
use crate::api::json::Params;
use crate::audit::Audit;
use crate::audit::Logged;

/// Entries in one answer, at most.
const LARGEST_PAGE: usize = 500;

/// The route, relative to where it is mounted.
pub fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(list_audit))
}

/// Where a page begins and how long it is.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct AuditPage {
    /// Entries before this number: the `next` of the page before.
    before: Option<u64>,
    /// Most entries, 1 to 500.
    limit: Option<usize>,
}

/// Some entries.
#[derive(Serialize, ToSchema)]
struct AuditList {
    /// Each with `seq`, `at`, `actor`, `action`, `tenant`, `subject`, `ip`, `detail`, `prev` and `hash`.
    #[schema(value_type = Vec<Object>)]
    items: Vec<Logged>,
    /// Ask again with `before` = this for the next page; `null` on the last one.
    next: Option<u64>,
}

/// Lists what was done to secrets, keys and administrators, newest first. For administrators.
#[utoipa::path(get, path = "/admin/audit", tag = "operators", security(("bearer" = [])), params(AuditPage),
    responses((status = 200, description = "The entries.", body = AuditList)))]
async fn list_audit(
    State(audit): State<Audit>,
    _: Admin,
    Params(page): Params<AuditPage>,
) -> Result<Json<AuditList>, ApiError> {
    let limit = page.limit.unwrap_or(100).clamp(1, LARGEST_PAGE);
    let items = audit.newest(page.before, limit).await?;
    let next = items.last().filter(|last| items.len() == limit && last.seq > 1).map(|last| last.seq);
    Ok(Json(AuditList { items, next }))
}
