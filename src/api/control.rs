//! What operators can ask and do through the control socket. Whoever reaches the socket is trusted (see
//! [`control_socket`](crate::api::control_socket)); nothing here is served on the network.

use std::io;
use std::path::Path;
use std::sync::Arc;

use axum::Json;
use axum::Router;
use axum::extract;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use axum::routing::post;
use serde::Deserialize;
use serde::Serialize;
use serde_json::Value;
use serde_json::json;
use time::OffsetDateTime;

use crate::api::AppState;
use crate::api::control_api_keys;
use crate::api::control_backups;
use crate::api::control_jobs;
use crate::api::control_life;
use crate::api::control_pocketbase;
use crate::api::control_socket::ControlSocket;
use crate::api::control_templates;
use crate::api::control_templates::VersionView;
use crate::api::control_vault;
use crate::api::control_workspaces;
use crate::api::error::ApiError;
use crate::api::health;
use crate::api::health::Readiness;
use crate::api::json;
use crate::api::json::Params;
use crate::api::json::invalid_field;
use crate::api::metrics::STATES;
use crate::api::router::framed;
use crate::audit::Actor;
use crate::audit::Audit;
use crate::audit::Entry;
use crate::audit::action;
use crate::auth::accounts::Accounts;
use crate::error::Code;
use crate::error::Problem;
use crate::ids::TenantId;
use crate::ids::UserId;
use crate::reload::Reloads;
use crate::shutdown::Shutdown;
use crate::store::tenants::Kind;
use crate::store::tenants::Tenant;
use crate::store::tenants::Tenants;
use crate::supervisor::InstanceStatus;
use crate::supervisor::Supervisor;

/// Tenants in one answer, at most.
const LARGEST_PAGE: usize = 1000;
/// Log lines in one answer, at most.
const MOST_LINES: usize = 10_000;

/// The operators' router.
pub fn router(state: AppState) -> Router {
    let router = Router::new()
        .route("/status", get(status))
        .route("/ready", get(health::ready))
        .route("/reload", post(reload))
        .route("/tenants", get(list))
        .route("/tenants/{id}", get(show))
        .route("/tenants/{id}/logs", get(logs))
        .route("/tenants/{id}/{action}", post(act))
        .route("/workspaces", get(control_workspaces::list))
        .route("/workspaces/{name}", get(control_workspaces::show))
        .route("/workspaces/{name}/members", get(control_workspaces::members))
        .route("/workspaces/{name}/owner", post(control_workspaces::appoint))
        .route("/admins", post(create_admin))
        .route("/vault", get(control_vault::status))
        .route("/vault/rotate", post(control_vault::rotate))
        .route("/audit", get(control_vault::entries))
        .route("/audit/verify", get(control_vault::verify))
        .merge(control_templates::routes())
        .merge(control_pocketbase::routes())
        .merge(control_api_keys::routes())
        .merge(control_backups::routes())
        .merge(control_jobs::routes())
        .merge(control_life::routes());
    framed(router.with_state(state))
}

/// Binds the socket and serves the router on it until the shutdown begins. Fails at once when the socket cannot be
/// bound, with `AddrInUse` when another pocketfleet answers on it.
pub async fn serve_control(path: &Path, router: Router, shutdown: Shutdown) -> io::Result<()> {
    ControlSocket::bind(path).await?.serve(router, shutdown).await
}

/// A tenant and its running side.
#[derive(Serialize)]
struct TenantView {
    kind: Kind,
    owner: Option<UserId>,
    #[serde(with = "time::serde::rfc3339")]
    created_at: OffsetDateTime,
    #[serde(flatten)]
    version: VersionView,
    #[serde(flatten)]
    instance: InstanceStatus,
}

impl TenantView {
    fn of(tenant: &Tenant, supervisor: &Supervisor) -> Result<Self, ApiError> {
        let instance = supervisor.status(&tenant.id)?;
        let version = VersionView::of(tenant, supervisor);
        Ok(Self { kind: tenant.kind, owner: tenant.owner.clone(), created_at: tenant.created_at, version, instance })
    }
}

/// A page of tenants.
#[derive(Serialize)]
struct TenantPage {
    items: Vec<TenantView>,
    /// Ask again with `after` = this for the next page; absent on the last one.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<TenantId>,
}

/// What to list.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ListParams {
    after: Option<TenantId>,
    limit: Option<usize>,
    state: Option<String>,
}

async fn list(
    State(tenants): State<Tenants>,
    State(supervisor): State<Supervisor>,
    Params(params): Params<ListParams>,
) -> Result<Json<TenantPage>, ApiError> {
    if params.state.as_deref().is_some_and(|state| !STATES.contains(&state)) {
        return Err(Problem::new(Code::InvalidRequest)
            .message(format!("a state is one of {}", STATES.join(", ")))
            .into());
    }
    let limit = params.limit.unwrap_or(100).clamp(1, LARGEST_PAGE);
    let wanted = |view: &TenantView| params.state.as_deref().is_none_or(|state| view.instance.state == state);
    let (mut items, mut after) = (Vec::new(), params.after);
    loop {
        let page = tenants.page(after.as_ref(), LARGEST_PAGE);
        for tenant in &page {
            after = Some(tenant.id.clone());
            // A tenant that went away between the two views is not worth an error.
            items.extend(TenantView::of(tenant, &supervisor).ok().filter(wanted));
            if items.len() == limit {
                return Ok(Json(TenantPage { items, next: after }));
            }
        }
        if page.len() < LARGEST_PAGE {
            return Ok(Json(TenantPage { items, next: None }));
        }
        // Half a million sleeping tenants must not hold the control runtime in one go.
        tokio::task::yield_now().await;
    }
}

/// The tenant of a path, which exists.
fn find(tenants: &Tenants, id: &str) -> Result<Arc<Tenant>, Problem> {
    let unknown = || Problem::new(Code::NotFound).message("there is no such tenant");
    tenants.find(&TenantId::parse(id).map_err(|_| unknown())?).ok_or_else(unknown)
}

async fn show(
    State(tenants): State<Tenants>,
    State(supervisor): State<Supervisor>,
    extract::Path(id): extract::Path<String>,
) -> Result<Json<TenantView>, ApiError> {
    let mut view = TenantView::of(&*find(&tenants, &id)?, &supervisor)?;
    view.version.look_up(&id, &supervisor).await;
    Ok(Json(view))
}

/// What can be done to a tenant.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Action {
    Wake,
    Sleep,
    Pin,
    Unpin,
    Release,
}

async fn act(
    State(tenants): State<Tenants>,
    State(supervisor): State<Supervisor>,
    extract::Path((id, action)): extract::Path<(String, Action)>,
) -> Result<Json<TenantView>, ApiError> {
    let tenant = find(&tenants, &id)?;
    tracing::info!(tenant.id = %tenant.id, action = ?action, "an operator acts on a tenant");
    match action {
        Action::Wake => supervisor.wake(&tenant.id).await?,
        Action::Sleep if tenant.id.is_global() => {
            return Err(Problem::new(Code::Conflict).message("the global instance never sleeps").into());
        }
        Action::Unpin if tenant.id.is_global() => {
            return Err(Problem::new(Code::Conflict).message("the global instance is always kept awake").into());
        }
        Action::Sleep => supervisor.sleep(&tenant.id).await?,
        Action::Pin => supervisor.pin(&tenant.id, true).await?,
        Action::Unpin => supervisor.pin(&tenant.id, false).await?,
        Action::Release => supervisor.release(&tenant.id).await?,
    }
    Ok(Json(TenantView::of(&*find(&tenants, &id)?, &supervisor)?))
}

/// How much of a log.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct LogParams {
    lines: Option<usize>,
}

async fn logs(
    State(tenants): State<Tenants>,
    State(supervisor): State<Supervisor>,
    extract::Path(id): extract::Path<String>,
    Params(params): Params<LogParams>,
) -> Result<Json<Value>, ApiError> {
    let tenant = find(&tenants, &id)?;
    let lines = supervisor.logs(&tenant.id, params.lines.unwrap_or(100).clamp(1, MOST_LINES)).await?;
    Ok(Json(json!({ "lines": lines })))
}

/// A new admin.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewAdmin {
    email: String,
    password: String,
}

async fn create_admin(
    State(accounts): State<Accounts>,
    State(audit): State<Audit>,
    json::Json(admin): json::Json<NewAdmin>,
) -> Result<(StatusCode, Json<Value>), ApiError> {
    if !admin.email.contains('@') {
        return Err(invalid_field("email", "validation_is_email", "Must be a valid e-mail address.").into());
    }
    accounts.create_admin(&admin.email, &admin.password).await?;
    audit.record(Entry::new(Actor::Operator, action::ADMIN_CREATED)).await?;
    tracing::info!("an operator created an admin");
    Ok((StatusCode::CREATED, Json(json!({ "email": admin.email, "role": "admin" }))))
}

/// Checks that what would take over starts, and has it take over. The answer comes before anything changes.
async fn reload(State(reloads): State<Reloads>) -> Result<(StatusCode, Json<Value>), ApiError> {
    tracing::info!("an operator asks for a reload");
    match reloads.ask().await {
        Ok(()) => Ok((StatusCode::ACCEPTED, Json(json!({ "generation": reloads.generation().number })))),
        Err(refused) => {
            tracing::warn!(reason = %refused, "not reloaded");
            Err(Problem::new(Code::Conflict).message(refused.to_string()).into())
        }
    }
}

async fn status(State(state): State<AppState>) -> Json<Value> {
    let readiness = Readiness::of(&state.supervisor, &state.shutdown);
    Json(json!({
        "version": env!("CARGO_PKG_VERSION"),
        "pid": std::process::id(),
        "listen": state.about.listen,
        "reload": state.reloads.generation(),
        "started_at": state.about.started_at.format(&time::format_description::well_known::Rfc3339).ok(),
        "uptime_seconds": state.about.uptime_seconds(),
        "readiness": readiness,
        "sessions": state.sessions.len(),
        "fleet": state.supervisor.fleet(),
    }))
}
