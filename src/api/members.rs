//! The members of a workspace: who there is, as what, and their going.

use axum::Json;
use axum::extract::Path;
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
use crate::api::json::Params;
use crate::api::json::invalid_field;
use crate::api::tenants::Page;
use crate::api::tenants::TenantView;
use crate::api::tenants::follow;
use crate::api::tenants::to_its_end;
use crate::auth::Verifier;
use crate::error::Code;
use crate::error::Problem;
use crate::ids::UserId;
use crate::shutdown::Shutdown;
use crate::store::members::Member;
use crate::supervisor::Supervisor;
use crate::tenancy::MemberRole;
use crate::tenancy::Tenancy;

/// The routes, relative to where they are mounted.
pub fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(list_members))
        .routes(routes!(change_member, remove_member))
        .routes(routes!(leave_tenant))
        .routes(routes!(transfer_tenant))
}

/// The role that a text names.
pub(super) fn role(text: &str) -> Result<MemberRole, Problem> {
    let found = MemberRole::ALL.into_iter().find(|role| role.as_str() == text);
    let message = "Must be owner, admin, member or guest.";
    found.ok_or_else(|| invalid_field("role", "validation_invalid_role", message))
}

/// The account that a text names; what cannot be one is nobody.
fn user_id(text: &str) -> Result<UserId, Problem> {
    UserId::parse(text).map_err(|_| Problem::new(Code::NotFound).message("there is no such member"))
}

/// A member.
#[derive(Serialize, ToSchema)]
#[schema(as = Member)]
struct MemberView {
    /// The account.
    #[schema(value_type = String, example = "b5c3xih3gtjb48z")]
    user: UserId,
    /// What people call them.
    name: String,
    /// `owner`, `admin`, `member` or `guest`.
    #[schema(value_type = String, example = "member")]
    role: &'static str,
    /// Who let them in; absent for whoever made the workspace.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    invited_by: Option<UserId>,
    #[serde(with = "time::serde::rfc3339")]
    #[schema(value_type = String, format = DateTime)]
    joined_at: OffsetDateTime,
}

impl MemberView {
    fn of(member: &Member, verifier: &Verifier) -> Self {
        Self {
            user: member.user.clone(),
            name: verifier.name_of(&member.user).unwrap_or_default(),
            role: member.role.as_str(),
            invited_by: member.invited_by.clone(),
            joined_at: member.joined_at,
        }
    }
}

/// A page of members.
#[derive(Serialize, ToSchema)]
struct MemberList {
    items: Vec<MemberView>,
    /// Ask again with `after` = this for the next page; absent on the last one.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    next: Option<UserId>,
}

/// What a member is to be.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct ChangeMember {
    /// `owner`, `admin`, `member` or `guest`.
    #[schema(example = "admin")]
    role: String,
}

/// Whose the workspace is to be.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Transfer {
    /// A member's id.
    user: String,
}

/// Lists the members in the order of their ids, for members.
#[utoipa::path(get, path = "/tenants/{tenant}/members", tag = "workspaces", security(("bearer" = [])),
    params(("tenant" = String, Path, description = "A slug or an id."), Page),
    responses((status = 200, description = "The members.", body = MemberList)))]
async fn list_members(
    State(tenancy): State<Tenancy>,
    State(verifier): State<Verifier>,
    user: AuthUser,
    Path(name): Path<String>,
    Params(page): Params<Page>,
) -> Result<Json<MemberList>, ApiError> {
    let after = page.after.as_deref().and_then(|after| UserId::parse(after).ok());
    let found = tenancy.members(&user.principal.user, &name, after.as_ref(), page.size())?;
    let next = found.last().filter(|_| found.len() == page.size()).map(|last| last.user.clone());
    let items = found.iter().map(|member| MemberView::of(member, &verifier)).collect();
    Ok(Json(MemberList { items, next }))
}

/// Changes a member's role. Owners change everybody's, admins those of members and guests.
#[utoipa::path(patch, path = "/tenants/{tenant}/members/{user}", tag = "workspaces", security(("bearer" = [])),
    params(("tenant" = String, Path, description = "A slug or an id."), ("user" = String, Path, description = "An account's id.")),
    request_body = ChangeMember, responses((status = 200, description = "The member as they are now.", body = MemberView)))]
async fn change_member(
    State(state): State<AppState>,
    user: AuthUser,
    Path((name, member)): Path<(String, String)>,
    json::Json(body): json::Json<ChangeMember>,
) -> Result<Json<MemberView>, ApiError> {
    state.tenancy.workspace(&name, &user.principal.user)?;
    let (role, member) = (role(&body.role)?, user_id(&member)?);
    let shutdown = state.shutdown.clone();
    let changed = to_its_end(&shutdown, async move {
        let (actor, now) = (&user.principal.user, OffsetDateTime::now_utc());
        let changed = state.tenancy.change_role(actor, &name, &member, role, now).await?;
        follow(&state.supervisor, &changed.tenant).await;
        Ok(Json(MemberView::of(&changed, &state.verifier)))
    });
    changed.await
}

/// Removes a member; their own id leaves the workspace.
#[utoipa::path(delete, path = "/tenants/{tenant}/members/{user}", tag = "workspaces", security(("bearer" = [])),
    params(("tenant" = String, Path, description = "A slug or an id."), ("user" = String, Path, description = "An account's id.")),
    responses((status = 204, description = "They are no member any more.")))]
async fn remove_member(
    State(state): State<AppState>,
    user: AuthUser,
    Path((name, member)): Path<(String, String)>,
) -> Result<StatusCode, ApiError> {
    state.tenancy.workspace(&name, &user.principal.user)?;
    let member = user_id(&member)?;
    let shutdown = state.shutdown.clone();
    let removed = to_its_end(&shutdown, async move {
        let (actor, now) = (&user.principal.user, OffsetDateTime::now_utc());
        let tenant =
            state.tenancy.remove_member(actor, &name, &member, |user| state.verifier.exists(user), now).await?;
        follow(&state.supervisor, &tenant.id).await;
        Ok(StatusCode::NO_CONTENT)
    });
    removed.await
}

/// Leaves a workspace. Its owner can when another owner remains, who has it from then on.
#[utoipa::path(post, path = "/tenants/{tenant}/leave", tag = "workspaces", security(("bearer" = [])),
    params(("tenant" = String, Path, description = "A slug or an id.")),
    responses((status = 204, description = "The caller is no member any more.")))]
async fn leave_tenant(
    State(tenancy): State<Tenancy>,
    State(verifier): State<Verifier>,
    State(supervisor): State<Supervisor>,
    State(shutdown): State<Shutdown>,
    user: AuthUser,
    Path(name): Path<String>,
) -> Result<StatusCode, ApiError> {
    let left = to_its_end(&shutdown, async move {
        let (actor, now) = (&user.principal.user, OffsetDateTime::now_utc());
        let tenant = tenancy.leave(actor, &name, |user| verifier.exists(user), now).await?;
        follow(&supervisor, &tenant.id).await;
        Ok(StatusCode::NO_CONTENT)
    });
    left.await
}

/// Hands a workspace to another member. The caller stays an owner beside them.
#[utoipa::path(post, path = "/tenants/{tenant}/transfer", tag = "workspaces", security(("bearer" = [])),
    params(("tenant" = String, Path, description = "A slug or an id.")), request_body = Transfer,
    responses((status = 200, description = "The workspace as it is now.", body = TenantView)))]
async fn transfer_tenant(
    State(tenancy): State<Tenancy>,
    State(verifier): State<Verifier>,
    State(supervisor): State<Supervisor>,
    State(shutdown): State<Shutdown>,
    user: AuthUser,
    Path(name): Path<String>,
    json::Json(body): json::Json<Transfer>,
) -> Result<Json<TenantView>, ApiError> {
    tenancy.workspace(&name, &user.principal.user)?;
    let heir = user_id(&body.user)?;
    let transferred = to_its_end(&shutdown, async move {
        let tenant = tenancy.transfer(&user.principal.user, &name, &heir, |user| verifier.exists(user)).await?;
        follow(&supervisor, &tenant.id).await;
        Ok(Json(TenantView::of(&tenant, MemberRole::Owner)))
    });
    transferred.await
}
