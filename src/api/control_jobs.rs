//! Jobs on the control socket: what there is, in numbers and one by one, and what operators do about it.

use std::sync::Arc;

use axum::Json;
use axum::Router;
use axum::extract::Path;
use axum::extract::State;
use axum::routing::get;
use axum::routing::post;
use serde::Deserialize;
use serde_json::Value;
use serde_json::json;
use time::OffsetDateTime;

use crate::api::AppState;
use crate::api::error::ApiError;
use crate::api::jobs::JobView;
use crate::api::jobs::ListJobs;
use crate::api::json::Params;
use crate::api::schedules;
use crate::error::Code;
use crate::error::Problem;
use crate::ids::TenantId;
use crate::queue::Job;
use crate::queue::JobId;
use crate::queue::Queue;

/// Schedules in one answer, at most.
const MOST_SCHEDULES: usize = 100;

/// The routes, for the operators' router.
pub(super) fn routes() -> Router<AppState> {
    Router::new()
        .route("/jobs", get(list))
        .route("/jobs/status", get(status))
        .route("/jobs/{id}", get(show))
        .route("/jobs/{id}/{action}", post(act))
        .route("/schedules", get(schedules))
        .route("/tenants/{id}/jobs", get(list_of))
        .route("/kinds/{kind}/{action}", post(act_on_kind))
}

fn page(page: &crate::queue::Page, queue: &Queue) -> Json<Value> {
    let items: Vec<_> = page.items.iter().map(|job| JobView::now(job, queue)).collect();
    Json(json!({ "items": items, "next": page.next.map(|next| next.to_string()) }))
}

async fn list(State(queue): State<Queue>, Params(params): Params<ListJobs>) -> Result<Json<Value>, ApiError> {
    Ok(page(&queue.list_all(&params.filter()?), &queue))
}

async fn list_of(
    State(queue): State<Queue>,
    Path(id): Path<String>,
    Params(params): Params<ListJobs>,
) -> Result<Json<Value>, ApiError> {
    let tenant = TenantId::parse(&id).map_err(|_| Problem::new(Code::NotFound).message("there is no such tenant"))?;
    Ok(page(&queue.list(&tenant, &params.filter()?), &queue))
}

/// Which schedules.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    tenant: Option<String>,
    after: Option<String>,
    limit: Option<usize>,
}

async fn schedules(State(queue): State<Queue>, Params(wanted): Params<Wanted>) -> Result<Json<Value>, ApiError> {
    if let Some(tenant) = wanted.tenant {
        let unknown = |_| Problem::new(Code::NotFound).message("there is no such tenant");
        let found = queue.schedules(&TenantId::parse(&tenant).map_err(unknown)?);
        return Ok(Json(json!({ "items": schedules::views(&found), "next": null })));
    }
    let unknown = |_| Problem::new(Code::InvalidRequest).message("go on after the id of a schedule");
    let after = wanted.after.map(|id| JobId::parse(&id).map_err(unknown)).transpose()?;
    let limit = wanted.limit.unwrap_or(MOST_SCHEDULES).clamp(1, MOST_SCHEDULES);
    let mut found = queue.all_schedules(after.as_ref(), limit + 1);
    let next = (found.len() > limit).then(|| found.get(limit - 1).map(|last| last.id.as_str().to_owned())).flatten();
    found.truncate(limit);
    Ok(Json(json!({ "items": schedules::views(&found), "next": next })))
}

async fn status(State(queue): State<Queue>) -> Json<Value> {
    let status = queue.status();
    let kinds = status.kinds.iter().map(|kind| {
        json!({
            "kind": kind.kind,
            "is_external": kind.is_external,
            "is_paused": kind.is_paused,
            "states": kind.states,
        })
    });
    Json(json!({
        "kinds": kinds.collect::<Vec<_>>(),
        "waiting": queue.waiting(),
        "unfinished": status.unfinished,
        "tenants": status.tenants,
        "paused_tenants": status.paused_tenants,
        "running_here": status.running_here,
        "is_stopping": status.is_stopping,
    }))
}

fn find(queue: &Queue, id: &str) -> Result<Arc<Job>, Problem> {
    let found = JobId::parse(id).ok().and_then(|id| queue.job(&id));
    found.ok_or_else(|| Problem::new(Code::NotFound).message("there is no such job"))
}

async fn show(State(queue): State<Queue>, Path(id): Path<String>) -> Result<Json<JobView>, ApiError> {
    Ok(Json(JobView::now(&*find(&queue, &id)?, &queue)))
}

/// What can be done to a job.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Action {
    Cancel,
    Retry,
}

async fn act(
    State(queue): State<Queue>,
    Path((id, action)): Path<(String, Action)>,
) -> Result<Json<JobView>, ApiError> {
    let job = find(&queue, &id)?;
    tracing::info!(job.id = %job.id, action = ?action, "an operator acts on a job");
    let job = match action {
        Action::Cancel => queue.cancel(&job.tenant, &job.id, OffsetDateTime::now_utc()).await?,
        Action::Retry => queue.retry(&job.tenant, &job.id).await?,
    };
    Ok(Json(JobView::now(&job, &queue)))
}

/// What can be done to a kind.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum KindAction {
    Pause,
    Resume,
}

async fn act_on_kind(
    State(queue): State<Queue>,
    Path((kind, action)): Path<(String, KindAction)>,
) -> Result<Json<Value>, ApiError> {
    match action {
        KindAction::Pause => queue.pause_kind(&kind).await?,
        KindAction::Resume => queue.resume_kind(&kind).await?,
    }
    tracing::info!(job.kind = kind, action = ?action, "an operator acts on a kind of job");
    Ok(Json(json!({ "kind": kind, "is_paused": matches!(action, KindAction::Pause) })))
}
