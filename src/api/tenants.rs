//! Workspaces: making them, and what they are. Members are in [`members`](crate::api::members), ways in are in
//! [`invitations`](crate::api::invitations).
//!
//! A stranger learns of a workspace nothing but "not found"; a member without the right is told so.

use std::future::Future;
use std::time::Duration;

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
use crate::api::extractors::AuthUser;
use crate::api::extractors::MaybeDeleted;
use crate::api::json;
use crate::api::json::Params;
use crate::api::json::invalid_field;
use crate::api::lifecycle::DeletionView;
use crate::auth::Role;
use crate::error::Code;
use crate::error::Problem;
use crate::ids::TenantId;
use crate::ids::UserId;
use crate::shutdown::Shutdown;
use crate::store::tenants::Identity;
use crate::store::tenants::Kind;
use crate::store::tenants::Tenant;
use crate::store::tenants::Tenants;
use crate::supervisor::Supervisor;
use crate::tenancy::Change;
use crate::tenancy::MemberRole;
use crate::tenancy::NewWorkspace;
use crate::tenancy::Tenancy;

/// Items of one page, at most and unless asked for.
pub(super) const LARGEST_PAGE: usize = 100;

/// How long an answer waits for a running instance to learn of a change. It learns of it later all the same.
const FOLLOW_PATIENCE: Duration = Duration::from_secs(5);

/// Workspaces of one account that are told of a change at once; beyond, they learn of it when they wake.
const MOST_TOLD: usize = 100;

/// The routes, relative to where they are mounted.
pub fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(list_tenants, create_tenant)).routes(routes!(show_tenant, change_tenant))
}

/// Runs a change to its end, also when the client goes away: an instance that was not told of a change goes on without.
pub(super) async fn to_its_end<T: Send + 'static>(
    shutdown: &Shutdown,
    work: impl Future<Output = Result<T, ApiError>> + Send + 'static,
) -> Result<T, ApiError> {
    let ended = shutdown.spawn(work).await;
    ended.unwrap_or_else(|_| Err(Problem::new(Code::ShuttingDown).into()))
}

/// Tells a running instance that its members changed.
pub(super) async fn follow(supervisor: &Supervisor, tenant: &TenantId) {
    let told = tokio::time::timeout(FOLLOW_PATIENCE, supervisor.enroll(tenant)).await;
    if let Ok(Err(error)) = told {
        tracing::info!(tenant.id = %tenant, %error, "an instance has not learnt of its members yet");
    }
}

/// Tells the running instances of somebody whose account changed, in the background; those that sleep learn of it when
/// they wake.
pub(super) fn follow_account(state: &AppState, user: &UserId) {
    let shared = state.tenancy.workspaces(user, None, MOST_TOLD).into_iter().map(|(tenant, _)| tenant.id.clone());
    let tenants: Vec<TenantId> =
        state.tenancy.personal(user).into_iter().chain(shared).filter(|id| state.supervisor.is_up(id)).collect();
    let (supervisor, shutdown) = (state.supervisor.clone(), state.shutdown.clone());
    state.shutdown.spawn(async move {
        for tenant in tenants {
            if shutdown.has_begun() {
                break;
            }
            follow(&supervisor, &tenant).await;
        }
    });
}

/// Where a page begins and how long it is.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Page {
    /// Begin after this one: the `next` of the page before.
    pub(super) after: Option<String>,
    /// Most items, 1 to 100.
    pub(super) limit: Option<usize>,
}

impl Page {
    /// The length asked for, within bounds.
    pub(super) fn size(&self) -> usize {
        self.limit.unwrap_or(LARGEST_PAGE).clamp(1, LARGEST_PAGE)
    }
}

/// A tenant as one of its people sees it.
#[derive(Serialize, ToSchema)]
#[schema(as = Tenant)]
pub(super) struct TenantView {
    /// Its id, which never changes.
    #[schema(value_type = String, example = "w-k3v9x0a1b2c3d4")]
    id: TenantId,
    /// `personal` or `workspace`.
    #[schema(value_type = String, example = "workspace")]
    kind: Kind,
    /// What addresses call it.
    #[serde(skip_serializing_if = "Option::is_none")]
    slug: Option<String>,
    /// What people call it.
    name: String,
    /// What its instance was made from.
    template: String,
    /// Whose accounts its callers have: `global` (ours) or `own` (those of the app).
    #[schema(value_type = String, example = "global")]
    identity: Identity,
    /// Paths that anybody may read.
    public_read: Vec<String>,
    /// What the caller is there: `owner`, `admin`, `member` or `guest`.
    #[schema(value_type = String, example = "owner")]
    role: &'static str,
    /// Whose it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    owner: Option<String>,
    /// Put away by its owner.
    archived: bool,
    /// Suspended by an operator.
    suspended: bool,
    /// Deleted, and not erased yet. Only its owner sees it then.
    #[serde(skip_serializing_if = "Option::is_none")]
    deleted: Option<DeletionView>,
    #[serde(with = "time::serde::rfc3339")]
    #[schema(value_type = String, format = DateTime)]
    created_at: OffsetDateTime,
}

impl TenantView {
    pub(super) fn of(tenant: &Tenant, role: MemberRole) -> Self {
        Self {
            id: tenant.id.clone(),
            kind: tenant.kind,
            slug: tenant.slug.clone(),
            name: tenant.name.clone(),
            template: tenant.template.clone(),
            identity: tenant.identity,
            public_read: tenant.public_read.clone(),
            role: role.as_str(),
            owner: tenant.owner.as_ref().map(|owner| owner.as_str().to_owned()),
            archived: tenant.archived,
            suspended: tenant.suspended,
            deleted: tenant.deleted.as_deref().map(DeletionView::of),
            created_at: tenant.created_at,
        }
    }
}

/// A page of tenants.
#[derive(Serialize, ToSchema)]
struct TenantList {
    items: Vec<TenantView>,
    /// Ask again with `after` = this for the next page; absent on the last one.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    next: Option<TenantId>,
}

/// A workspace to be made.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct CreateTenant {
    /// What people call it, 1 to 100 characters.
    #[schema(example = "Team Turing")]
    name: String,
    /// What addresses call it: 3 to 32 characters of a-z, 0-9 and single inner hyphens.
    #[schema(example = "team-turing")]
    slug: String,
    /// What its instance is made from; the operator's default otherwise.
    template: Option<String>,
    /// `global` (the members' own accounts; the default) or `own` (an app with users of its own).
    #[schema(example = "global")]
    identity: Option<String>,
    /// Paths that anybody may read: records or files of one collection, or pages; `*` at the end stands for any rest.
    #[schema(example = json!(["/api/collections/posts/records*"]))]
    public_read: Option<Vec<String>>,
}

/// What is to change; the rest stays.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct ChangeTenant {
    /// What people call it. By admins too; all else by owners.
    name: Option<String>,
    /// What addresses call it. The earlier name goes on leading to it for 90 days, and nobody else gets it meanwhile.
    slug: Option<String>,
    /// Whose accounts its callers have: `global` or `own`.
    identity: Option<String>,
    /// Paths that anybody may read.
    public_read: Option<Vec<String>>,
    /// Put away: nobody reaches it, nothing of it is deleted. `false` takes it out again.
    archived: Option<bool>,
}

fn identity(text: &str) -> Result<Identity, Problem> {
    match text {
        "global" => Ok(Identity::Global),
        "own" => Ok(Identity::Own),
        _ => Err(invalid_field("identity", "validation_invalid_identity", "Must be global or own.")),
    }
}

/// Lists the tenants that the caller has or belongs to: their own first, then workspaces in the order of their ids.
#[utoipa::path(get, path = "/tenants", tag = "workspaces", security(("bearer" = [])), params(Page),
    responses((status = 200, description = "The tenants.", body = TenantList)))]
async fn list_tenants(
    State(tenancy): State<Tenancy>,
    State(tenants): State<Tenants>,
    MaybeDeleted(user): MaybeDeleted,
    Params(page): Params<Page>,
) -> Json<TenantList> {
    let id = &user.principal.user;
    let own = tenancy.personal(id);
    let after = page.after.as_deref().and_then(|after| TenantId::parse(after).ok());
    let mut items = Vec::new();
    if after.is_none()
        && let Some(own) = own.as_ref().and_then(|own| tenants.find(own))
    {
        items.push(TenantView::of(&own, MemberRole::Owner));
    }
    // The personal tenant stands before all others, whatever its id.
    let after = after.filter(|after| own.as_ref() != Some(after));
    let room = page.size() - items.len();
    let found = if room > 0 { tenancy.workspaces(id, after.as_ref(), room) } else { Vec::new() };
    items.extend(found.iter().map(|(tenant, role)| TenantView::of(tenant, *role)));
    let next = items.last().filter(|_| items.len() == page.size()).map(|last| last.id.clone());
    Json(TenantList { items, next })
}

/// Makes a workspace. The caller owns it.
#[utoipa::path(post, path = "/tenants", tag = "workspaces", security(("bearer" = [])), request_body = CreateTenant,
    responses((status = 201, description = "The workspace.", body = TenantView)))]
async fn create_tenant(
    State(tenancy): State<Tenancy>,
    State(supervisor): State<Supervisor>,
    State(shutdown): State<Shutdown>,
    user: AuthUser,
    json::Json(body): json::Json<CreateTenant>,
) -> Result<(StatusCode, Json<TenantView>), ApiError> {
    let asked = body.identity.as_deref().map(identity).transpose()?;
    let template = body.template.unwrap_or_else(|| tenancy.template(asked.unwrap_or_default()).to_owned());
    let traits = supervisor.templates().traits(&template).filter(|_| supervisor.has_template(&template));
    let Some(traits) = traits.filter(|traits| traits.kinds.contains(&Kind::Workspace)) else {
        return Err(invalid_field("template", "validation_invalid_template", "There is no such template.").into());
    };
    // What the caller leaves open is the template's to say.
    let identity = asked.unwrap_or(traits.identity);
    let wanted = NewWorkspace {
        name: body.name,
        slug: body.slug,
        template,
        identity,
        public_read: body.public_read.unwrap_or_else(|| traits.public_read.clone()),
    };
    let made = to_its_end(&shutdown, async move {
        let is_admin = user.principal.role == Role::Admin;
        let now = OffsetDateTime::now_utc();
        Ok(tenancy.create_workspace(&user.principal.user, is_admin, wanted, now).await?)
    });
    let tenant = made.await?;
    tracing::info!(tenant.id = %tenant.id, template = %tenant.template, "a workspace was made");
    Ok((StatusCode::CREATED, Json(TenantView::of(&tenant, MemberRole::Owner))))
}

/// Shows a tenant, named by its slug or its id.
#[utoipa::path(get, path = "/tenants/{tenant}", tag = "workspaces", security(("bearer" = [])),
    params(("tenant" = String, Path, description = "A slug or an id.")),
    responses((status = 200, description = "The tenant.", body = TenantView)))]
async fn show_tenant(
    State(tenancy): State<Tenancy>,
    MaybeDeleted(user): MaybeDeleted,
    Path(name): Path<String>,
) -> Result<Json<TenantView>, ApiError> {
    let id = &user.principal.user;
    // Owners see what they deleted, until it is erased.
    let own = tenancy.find(&name).filter(|tenant| tenant.kind == Kind::Personal || tenant.deleted.is_some());
    if let Some(own) = own
        && let Some(MemberRole::Owner) = tenancy.role(&own, id)
    {
        return Ok(Json(TenantView::of(&own, MemberRole::Owner)));
    }
    if tenancy.is_leaving(id) {
        return Err(Problem::new(Code::TenantDeleted).into());
    }
    let (tenant, role) = tenancy.workspace(&name, id)?;
    Ok(Json(TenantView::of(&tenant, role)))
}

/// Changes a workspace: its name, by admins; its slug, whose accounts it takes, what is public, whether it is put away,
/// by owners.
#[utoipa::path(patch, path = "/tenants/{tenant}", tag = "workspaces", security(("bearer" = [])),
    params(("tenant" = String, Path, description = "A slug or an id.")), request_body = ChangeTenant,
    responses((status = 200, description = "The workspace as it is now.", body = TenantView)))]
async fn change_tenant(
    State(tenancy): State<Tenancy>,
    State(supervisor): State<Supervisor>,
    State(shutdown): State<Shutdown>,
    user: AuthUser,
    Path(name): Path<String>,
    json::Json(body): json::Json<ChangeTenant>,
) -> Result<Json<TenantView>, ApiError> {
    // Whether the workspace is there is nothing that a wrong body may tell.
    tenancy.workspace(&name, &user.principal.user)?;
    let identity = body.identity.as_deref().map(identity).transpose()?;
    let ChangeTenant { name: called, slug, public_read, archived, .. } = body;
    let change = Change { name: called, slug, identity, public_read, archived };
    let changed = to_its_end(&shutdown, async move {
        let actor = &user.principal.user;
        let tenant = tenancy.update(actor, &name, change, OffsetDateTime::now_utc()).await?;
        if tenant.archived {
            // Nobody reaches it any more; whether it sleeps now or when it is idle is all one.
            if let Err(error) = supervisor.sleep(&tenant.id).await {
                tracing::info!(tenant.id = %tenant.id, %error, "an archived workspace is still awake");
            }
        } else if identity.is_some() {
            follow(&supervisor, &tenant.id).await;
        }
        let role = tenancy.role(&tenant, actor).unwrap_or(MemberRole::Admin);
        Ok(Json(TenantView::of(&tenant, role)))
    });
    changed.await
}
