//! Deleting accounts and workspaces, and bringing them back.

use axum::Json;
use axum::extract::Path;
use axum::extract::State;
use axum::http::StatusCode;
use serde::Deserialize;
use serde::Serialize;
use time::OffsetDateTime;
use utoipa::IntoParams;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::api::AppState;
use crate::api::error::ApiError;
use crate::api::extractors::Admin;
use crate::api::extractors::AuthUser;
use crate::api::extractors::MaybeDeleted;
use crate::api::json;
use crate::api::json::Params;
use crate::api::tenants::to_its_end;
use crate::audit::Actor;
use crate::auth::Principal;
use crate::auth::Role;
use crate::error::Code;
use crate::error::Problem;
use crate::ids::TenantId;
use crate::lifecycle::Deletion;
use crate::lifecycle::Lifecycle;
use crate::lifecycle::Signed;
use crate::lifecycle::Stage;
use crate::lifecycle::Verdict;
use crate::shutdown::Shutdown;
use crate::store::tenants::Kind;
use crate::store::tenants::Tenant;
use crate::tenancy::MemberRole;
use crate::tenancy::Tenancy;

/// The routes, relative to `/api/v1`.
pub fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(delete_tenant))
        .routes(routes!(undelete_tenant))
        .routes(routes!(list_deleted_tenants))
        .routes(routes!(list_erasures))
        .routes(routes!(verify_erasure))
}

/// The own account, relative to where accounts are mounted.
pub fn account_router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(delete_account))
}

/// The own account as `PocketBase`'s SDKs delete it, relative to `/api/collections/users`.
pub fn users_router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(delete_own_record))
}

/// A deletion as people see it.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(super) struct DeletionView {
    /// When it was deleted.
    #[serde(with = "time::serde::rfc3339")]
    #[schema(value_type = String, format = DateTime)]
    deleted_at: OffsetDateTime,
    /// Who did it: `user:{id}` or `operator`.
    #[schema(example = "user:b5c3xih3gtjb48z")]
    deleted_by: String,
    /// When everything of it is erased. Until then it can be brought back.
    #[serde(with = "time::serde::rfc3339")]
    #[schema(value_type = String, format = DateTime)]
    erase_at: OffsetDateTime,
    /// `leaving` (being put away), `gone` (put away), `returning` (being brought back) or `erasing`.
    #[schema(value_type = String, example = "gone")]
    stage: Stage,
}

impl DeletionView {
    pub(super) fn of(deletion: &Deletion) -> Self {
        let Deletion { at, by, erase_at, stage, was_paused: _, erasure: _ } = deletion.clone();
        Self { deleted_at: at, deleted_by: by, erase_at, stage }
    }
}

/// A deleted tenant.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct DeletedTenant {
    #[schema(value_type = String, example = "w-k3v9x0a1b2c3d4")]
    id: TenantId,
    /// `personal` or `workspace`.
    #[schema(value_type = String, example = "workspace")]
    kind: Kind,
    /// Whose it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    owner: Option<String>,
    #[serde(flatten)]
    deletion: DeletionView,
}

impl DeletedTenant {
    /// None for one that is not deleted.
    pub(super) fn of(tenant: &Tenant) -> Option<Self> {
        let deletion = DeletionView::of(tenant.deleted.as_deref()?);
        let owner = tenant.owner.as_ref().map(ToString::to_string);
        Some(Self { id: tenant.id.clone(), kind: tenant.kind, owner, deletion })
    }
}

/// What was deleted and is not erased yet.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct DeletedList {
    /// The first deleted first.
    items: Vec<DeletedTenant>,
}

impl DeletedList {
    pub(super) fn of(lifecycle: &Lifecycle) -> Self {
        Self { items: lifecycle.deleted().iter().filter_map(|tenant| DeletedTenant::of(tenant)).collect() }
    }
}

fn shown(tenant: &Tenant) -> Result<Json<DeletedTenant>, ApiError> {
    DeletedTenant::of(tenant).map(Json).ok_or_else(|| Problem::new(Code::Conflict).into())
}

/// The tenant of a name for somebody who may delete it, or bring it back: its owner, or an admin. Absent and forbidden
/// look the same to everybody else.
fn judge(tenancy: &Tenancy, name: &str, principal: &Principal) -> Result<TenantId, Problem> {
    let absent = || Problem::new(Code::NotFound).message("there is no such tenant");
    let tenant = tenancy.find(name).ok_or_else(absent)?;
    if principal.role == Role::Admin {
        return Ok(tenant.id.clone());
    }
    match tenancy.role(&tenant, &principal.user) {
        Some(MemberRole::Owner) => Ok(tenant.id.clone()),
        Some(_) if tenant.deleted.is_none() && !tenant.archived => {
            Err(Problem::new(Code::Forbidden).message("only owners delete a workspace"))
        }
        _ => Err(absent()),
    }
}

/// How a tenant is deleted.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct DeleteParams {
    /// Erase it at once, which nothing takes back. For admins.
    now: Option<bool>,
}

/// A signed record of an erasure, as it is kept and shown.
#[derive(Debug, Serialize, ToSchema)]
struct ErasureList {
    /// In the order of the tenants' ids.
    #[schema(value_type = Vec<Object>)]
    items: Vec<Signed>,
}

/// What a record is worth.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ErasureVerdict {
    /// `valid` (signed here, and as it was), `changed`, or `foreign_key` (signed by a key that never signed here).
    #[schema(value_type = String, example = "valid")]
    pub(super) verdict: Verdict,
}

/// What was erased here: one signed record for each tenant, with ids and counts and nothing else of whoever it was. For
/// admins.
#[utoipa::path(get, path = "/admin/erasures", tag = "workspaces", security(("bearer" = [])),
    responses((status = 200, description = "The records.", body = ErasureList)))]
async fn list_erasures(State(lifecycle): State<Lifecycle>, _admin: Admin) -> Result<Json<ErasureList>, ApiError> {
    Ok(Json(ErasureList { items: lifecycle.erasures().await.map_err(Problem::from)? }))
}

/// Checks the signature of a record. For admins.
#[utoipa::path(post, path = "/admin/erasures/verify", tag = "workspaces", security(("bearer" = [])),
    request_body(content = Object, description = "A record, as it was given out."),
    responses((status = 200, description = "What it is worth.", body = ErasureVerdict)))]
async fn verify_erasure(
    State(lifecycle): State<Lifecycle>,
    _admin: Admin,
    json::Json(shown): json::Json<Signed>,
) -> Result<Json<ErasureVerdict>, ApiError> {
    Ok(Json(ErasureVerdict { verdict: lifecycle.verify(&shown).await.map_err(Problem::from)? }))
}

async fn delete(
    lifecycle: Lifecycle,
    shutdown: &Shutdown,
    id: TenantId,
    principal: &Principal,
) -> Result<Json<DeletedTenant>, ApiError> {
    let actor = Actor::User(principal.user.clone());
    let deleted = to_its_end(shutdown, async move {
        Ok(lifecycle.delete(&id, actor, OffsetDateTime::now_utc()).await.map_err(Problem::from)?)
    });
    shown(&*deleted.await?)
}

/// Deletes a workspace, by its owner, or any tenant, by an admin. Nobody reaches it any more, its jobs are cancelled;
/// everything of it is kept until `erase_at`, and can be brought back until then.
#[utoipa::path(delete, path = "/tenants/{tenant}", tag = "workspaces", security(("bearer" = [])),
    params(("tenant" = String, Path, description = "A slug or an id."), DeleteParams),
    responses((status = 200, description = "Deleted; the same for one that was deleted before.", body = DeletedTenant)))]
async fn delete_tenant(
    State(tenancy): State<Tenancy>,
    State(lifecycle): State<Lifecycle>,
    State(shutdown): State<Shutdown>,
    user: AuthUser,
    Path(name): Path<String>,
    Params(params): Params<DeleteParams>,
) -> Result<Json<DeletedTenant>, ApiError> {
    let id = judge(&tenancy, &name, &user.principal)?;
    if params.now != Some(true) {
        return delete(lifecycle, &shutdown, id, &user.principal).await;
    }
    if user.principal.role != Role::Admin {
        return Err(Problem::new(Code::Forbidden).message("only admins erase at once").into());
    }
    let answer = delete(lifecycle.clone(), &shutdown, id.clone(), &user.principal).await?;
    let (actor, now) = (Actor::User(user.principal.user), OffsetDateTime::now_utc());
    let erased = async move { Ok(lifecycle.erase(&id, actor, now).await.map_err(Problem::from)?) };
    to_its_end(&shutdown, erased).await?;
    Ok(answer)
}

/// Brings a deleted account or workspace back as it was, by its owner or an admin. The owner of a deleted account signs
/// in again for this; API keys that ended have to be made anew.
#[utoipa::path(post, path = "/tenants/{tenant}/undelete", tag = "workspaces", security(("bearer" = [])),
    params(("tenant" = String, Path, description = "A slug or an id; of an account, the user's id.")),
    responses((status = 204, description = "It is there again."),
        (status = 409, description = "It is not deleted, or its erasure has begun.")))]
async fn undelete_tenant(
    State(tenancy): State<Tenancy>,
    State(lifecycle): State<Lifecycle>,
    State(shutdown): State<Shutdown>,
    MaybeDeleted(user): MaybeDeleted,
    Path(name): Path<String>,
) -> Result<StatusCode, ApiError> {
    let principal = &user.principal;
    let id = judge(&tenancy, &name, principal)?;
    // Whoever deleted their own account has that to bring back first.
    if id.as_str() != principal.user.as_str() && tenancy.is_leaving(&principal.user) {
        return Err(Problem::new(Code::TenantDeleted).into());
    }
    let actor = Actor::User(principal.user.clone());
    let back = async move { Ok(lifecycle.undelete(&id, actor).await.map_err(Problem::from)?) };
    to_its_end(&shutdown, back).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Tenants that were deleted and are not erased yet, for admins.
#[utoipa::path(get, path = "/admin/tenants/deleted", tag = "workspaces", security(("bearer" = [])),
    responses((status = 200, description = "The deleted tenants.", body = DeletedList)))]
async fn list_deleted_tenants(State(lifecycle): State<Lifecycle>, _admin: Admin) -> Json<DeletedList> {
    Json(DeletedList::of(&lifecycle))
}

/// Deletes the caller's account: every session and API key ends, and so does whatever runs for it. It is kept until
/// `erase_at`; until then its owner can sign in and bring it back with `POST /api/v1/tenants/{id}/undelete`. Workspaces
/// of one's own have to be handed over or deleted before.
#[utoipa::path(delete, path = "/me", tag = "auth", security(("bearer" = [])),
    responses((status = 200, description = "Deleted.", body = DeletedTenant),
        (status = 409, description = "The account owns workspaces; `details.workspaces` names them.")))]
async fn delete_account(
    State(tenancy): State<Tenancy>,
    State(lifecycle): State<Lifecycle>,
    State(shutdown): State<Shutdown>,
    user: AuthUser,
) -> Result<Json<DeletedTenant>, ApiError> {
    let id = tenancy.ensure_personal(&user.principal.user).await.map_err(Problem::from)?;
    delete(lifecycle, &shutdown, id, &user.principal).await
}

/// Deletes the caller's account, as `PocketBase`'s SDKs do it: `pb.collection("users").delete(id)`. The same as `DELETE
/// /api/v1/auth/me`.
#[utoipa::path(delete, path = "/records/{id}", tag = "pocketbase", security(("bearer" = [])),
    params(("id" = String, Path, description = "The caller's own id.")),
    responses((status = 204, description = "Deleted, and kept for a while.")))]
async fn delete_own_record(
    State(tenancy): State<Tenancy>,
    State(lifecycle): State<Lifecycle>,
    State(shutdown): State<Shutdown>,
    user: AuthUser,
    Path(id): Path<String>,
) -> Result<StatusCode, ApiError> {
    if id != user.principal.user.as_str() {
        return Err(Problem::new(Code::NotFound).message("the requested resource wasn't found").into());
    }
    let own = tenancy.ensure_personal(&user.principal.user).await.map_err(Problem::from)?;
    drop(delete(lifecycle, &shutdown, own, &user.principal).await?);
    Ok(StatusCode::NO_CONTENT)
}
