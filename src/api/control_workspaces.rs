//! What operators can ask about workspaces through the control socket, and giving one whose owner is gone to somebody
//! else. The routes are in [`control`](crate::api::control); acting on instances is what the routes of tenants are for.

use std::sync::Arc;

use axum::Json;
use axum::extract::Path;
use axum::extract::State;
use serde::Deserialize;
use serde_json::Value;
use serde_json::json as value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::api::AppState;
use crate::api::error::ApiError;
use crate::api::json;
use crate::api::json::Params;
use crate::api::tenants::follow;
use crate::error::Code;
use crate::error::Problem;
use crate::ids::TenantId;
use crate::ids::UserId;
use crate::store::tenants::Kind;
use crate::store::tenants::Tenant;
use crate::store::tenants::Tenants;
use crate::tenancy::Tenancy;

/// Items in one answer, at most.
const LARGEST_PAGE: usize = 1000;

/// Where a page begins and how long it is.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Page {
    after: Option<String>,
    limit: Option<usize>,
}

fn view(tenant: &Tenant, tenancy: &Tenancy) -> Value {
    value!({
        "tenant": tenant.id,
        "slug": tenant.slug,
        "name": tenant.name,
        "owner": tenant.owner,
        "template": tenant.template,
        "identity": tenant.identity,
        "public_read": tenant.public_read,
        "members": tenancy.roster(tenant).len(),
        "archived": tenant.archived,
        "suspended": tenant.suspended,
        "created_at": tenant.created_at.format(&Rfc3339).ok(),
    })
}

/// The workspace of a path, named by its slug or its id; archived ones are there for operators.
fn find(tenants: &Tenants, tenancy: &Tenancy, name: &str) -> Result<Arc<Tenant>, Problem> {
    let by_id = || TenantId::parse(name).ok().and_then(|id| tenants.find(&id));
    let found = by_id().or_else(|| tenancy.find(name)).filter(|tenant| tenant.kind == Kind::Workspace);
    found.ok_or_else(|| Problem::new(Code::NotFound).message("there is no such workspace"))
}

/// Workspaces in the order of their ids.
pub(super) async fn list(
    State(tenants): State<Tenants>,
    State(tenancy): State<Tenancy>,
    Params(page): Params<Page>,
) -> Json<Value> {
    let limit = page.limit.unwrap_or(100).clamp(1, LARGEST_PAGE);
    let mut after = page.after.as_deref().and_then(|after| TenantId::parse(after).ok());
    let mut items = Vec::new();
    loop {
        let page = tenants.page(after.as_ref(), LARGEST_PAGE);
        for tenant in &page {
            after = Some(tenant.id.clone());
            if tenant.kind == Kind::Workspace {
                items.push(view(tenant, &tenancy));
            }
            if items.len() == limit {
                return Json(value!({ "items": items, "next": after }));
            }
        }
        if page.len() < LARGEST_PAGE {
            return Json(value!({ "items": items, "next": null }));
        }
        // Half a million other tenants must not hold the control runtime in one go.
        tokio::task::yield_now().await;
    }
}

/// One workspace.
pub(super) async fn show(
    State(tenants): State<Tenants>,
    State(tenancy): State<Tenancy>,
    Path(name): Path<String>,
) -> Result<Json<Value>, ApiError> {
    Ok(Json(view(&*find(&tenants, &tenancy, &name)?, &tenancy)))
}

/// The members of one.
pub(super) async fn members(
    State(tenants): State<Tenants>,
    State(tenancy): State<Tenancy>,
    Path(name): Path<String>,
    Params(page): Params<Page>,
) -> Result<Json<Value>, ApiError> {
    let tenant = find(&tenants, &tenancy, &name)?;
    let limit = page.limit.unwrap_or(100).clamp(1, LARGEST_PAGE);
    let after = page.after.as_deref().and_then(|after| UserId::parse(after).ok());
    let found = tenancy.members_of(&tenant.id, after.as_ref(), limit);
    let next = found.last().filter(|_| found.len() == limit).map(|last| last.user.clone());
    Ok(Json(value!({ "items": found, "next": next })))
}

/// Who is to own it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Appointment {
    user: UserId,
}

/// Gives a workspace to an account that exists.
pub(super) async fn appoint(
    State(state): State<AppState>,
    Path(name): Path<String>,
    json::Json(Appointment { user }): json::Json<Appointment>,
) -> Result<Json<Value>, ApiError> {
    let tenant = find(&state.tenants, &state.tenancy, &name)?;
    if !state.verifier.exists(&user) {
        return Err(Problem::new(Code::NotFound).message("there is no such account").into());
    }
    let changed = state.tenancy.appoint(&tenant.id, &user, OffsetDateTime::now_utc()).await?;
    tracing::info!(tenant.id = %tenant.id, user.id = %user, "an operator gave a workspace to an account");
    follow(&state.supervisor, &tenant.id).await;
    Ok(Json(view(&changed, &state.tenancy)))
}
