//! Jobs done by programs outside: they claim, say that they live, report, and end, each under a number (the fence) that
//! a job gets anew with every claim. A worker that was given up finds its number refused with `LEASE_LOST`.
//!
//! A worker sees jobs of the kinds in its key's scopes, of every tenant, and no others: a job of another kind is absent.

use std::sync::Arc;
use std::time::Duration;
use std::time::SystemTime;

use axum::Json;
use axum::extract::State;
use axum::http::HeaderMap;
use futures_util::future::join_all;
use serde::Deserialize;
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::api::AppState;
use crate::api::bearer::Worker;
use crate::api::error::ApiError;
use crate::api::extractors::token;
use crate::api::json;
use crate::api::json::invalid_field;
use crate::auth::api_keys::ApiKeys;
use crate::error::Code;
use crate::error::Problem;
use crate::queue;
use crate::queue::Beat;
use crate::queue::Claimed as Handed;
use crate::queue::Claiming;
use crate::queue::Job;
use crate::queue::JobId;
use crate::queue::Queue;

/// Most jobs of one claim.
const MOST: usize = 100;
/// Longest wait for a job. Shorter than what proxies wait for an answer.
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// Longest lease that a worker can ask for.
const LONGEST_LEASE: Duration = Duration::from_hours(1);
/// Longest reason of a failure, in characters.
const REASON_CHARS: usize = 500;
/// Longest pause that a worker can ask for.
const LONGEST_PAUSE: Duration = Duration::from_hours(24);

/// The routes, relative to where they are mounted.
pub fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(claim_jobs))
        .routes(routes!(heartbeat))
        .routes(routes!(report_progress))
        .routes(routes!(complete_job))
        .routes(routes!(fail_job))
        .routes(routes!(release_job))
}

/// How much work a worker takes, and how long it waits for some.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Claim {
    /// Only these kinds; all of the key's unless given.
    #[schema(example = json!(["transcode"]))]
    kinds: Option<Vec<String>>,
    /// Most jobs, 1 to 100.
    #[serde(default = "one")]
    max: usize,
    /// How long to wait when there is none, up to 30.
    #[serde(default)]
    wait_seconds: u64,
    /// How long the worker may be silent about these jobs, 1 to 3600; as the operator configured unless given.
    lease_seconds: Option<u64>,
}

fn one() -> usize {
    1
}

/// A job, as its worker sees it.
#[derive(Serialize, ToSchema)]
struct ClaimedJob {
    #[schema(example = "01k6yq3m9x4v7t2c8w5z0b1n2d")]
    id: String,
    #[schema(example = "transcode")]
    kind: String,
    /// Goes with everything that is said about this job; larger with each claim of it.
    fence: u64,
    /// Whose it is.
    tenant: String,
    /// A line for people.
    title: String,
    /// What is to be done.
    #[schema(value_type = Object)]
    payload: Value,
    /// A person's answer, if it waited for one.
    #[schema(value_type = Option<Object>)]
    input: Option<Value>,
    /// What an earlier attempt noted to go on from.
    #[schema(value_type = Option<Object>)]
    checkpoint: Value,
    /// Which attempt this is, from 1.
    attempt: u32,
    max_attempts: u32,
    /// It is taken back when nothing is heard of it for this long.
    lease_seconds: u64,
}

impl ClaimedJob {
    fn of(handed: &Handed) -> Self {
        let job = &handed.job;
        Self {
            id: job.id.as_str().to_owned(),
            kind: job.kind.to_string(),
            fence: handed.fence,
            tenant: job.tenant.as_str().to_owned(),
            title: job.title.clone(),
            payload: job.payload.clone(),
            input: job.input.clone(),
            checkpoint: job.checkpoint.clone(),
            attempt: job.attempts,
            max_attempts: job.max_attempts,
            lease_seconds: handed.lease.as_secs(),
        }
    }
}

/// What was claimed.
#[derive(Serialize, ToSchema)]
struct Claimed {
    /// Empty when there was nothing to do.
    items: Vec<ClaimedJob>,
}

/// A sign of life.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Heartbeat {
    /// The job's id.
    id: String,
    /// The fence of the claim.
    fence: u64,
    /// How long the worker may be silent from now on, 1 to 3600; as before unless given.
    lease_seconds: Option<u64>,
    /// What a later attempt needs to go on from here; it comes as `checkpoint`.
    #[serde(default)]
    #[schema(value_type = Option<Object>)]
    checkpoint: Value,
}

/// Which job, under which claim.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Release {
    /// The job's id.
    id: String,
    /// The fence of the claim.
    fence: u64,
}

/// How far a job is.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Report {
    /// The job's id.
    id: String,
    /// The fence of the claim.
    fence: u64,
    /// What it is at, in a word or two.
    #[serde(default)]
    #[schema(example = "transcoding")]
    step: String,
    /// How much of the step is done.
    done: u64,
    /// How much there is.
    total: Option<u64>,
}

/// What a worker is told when it says that it lives.
#[derive(Serialize, ToSchema)]
struct Renewed {
    /// Somebody called the job off: stop, and say `fail`.
    cancelled: bool,
    /// It is taken back when nothing is heard of it for this long.
    lease_seconds: u64,
}

impl Renewed {
    fn of(beat: &Beat) -> Json<Self> {
        Json(Self { cancelled: beat.cancel_requested, lease_seconds: beat.lease.as_secs() })
    }
}

/// What came of a job.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Completion {
    /// The job's id.
    id: String,
    /// The fence of the claim.
    fence: u64,
    /// What came of it.
    #[serde(default)]
    #[schema(value_type = Object)]
    result: Value,
}

/// Why a job failed.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Failure {
    /// The job's id.
    id: String,
    /// The fence of the claim.
    fence: u64,
    /// For people; its owner reads it.
    reason: String,
    /// Whether it may succeed later.
    #[serde(default = "yes")]
    retryable: bool,
    /// Not before this many seconds have passed, up to a day.
    retry_after_seconds: Option<u64>,
}

fn yes() -> bool {
    true
}

/// Where a job stands after a worker ended it.
#[derive(Serialize, ToSchema)]
struct Ended {
    /// `done`; after a failure `scheduled` or `queued` (it is tried again), `dead`, or `cancelled`.
    #[schema(example = "done")]
    state: &'static str,
}

/// Claims jobs: they are this worker's until it ends them or is silent for too long. Waits for one if asked to.
#[utoipa::path(post, path = "/worker/claim", tag = "workers", security(("bearer" = [])), request_body = Claim,
    responses((status = 200, description = "The jobs.", body = Claimed)))]
async fn claim_jobs(
    State(queue): State<Queue>,
    State(keys): State<ApiKeys>,
    worker: Worker,
    headers: HeaderMap,
    json::Json(body): json::Json<Claim>,
) -> Result<Json<Claimed>, ApiError> {
    if !(1..=MOST).contains(&body.max) {
        return Err(invalid_field("max", "validation_range", "1 to 100").into());
    }
    let wait = Duration::from_secs(body.wait_seconds);
    if wait > LONGEST_WAIT {
        return Err(invalid_field("wait_seconds", "validation_range", "at most 30").into());
    }
    let lease = lease(body.lease_seconds)?.unwrap_or(queue.config().lease);
    let kinds = wanted_kinds(&worker, body.kinds)?;
    let claiming = Claiming { kinds, worker: worker.id, lease, limit: body.max, tenant: None, wait };
    let handed = queue.claim(claiming).await.map_err(claim_problem)?;
    if !wait.is_zero()
        && let Err(refusal) = still_counts(&keys, &headers).await
    {
        join_all(handed.iter().map(|handed| give_back(&queue, handed))).await;
        return Err(refusal.into());
    }
    Ok(Json(Claimed { items: handed.iter().map(ClaimedJob::of).collect() }))
}

/// Whether the key that a worker came with counts after a wait.
async fn still_counts(keys: &ApiKeys, headers: &HeaderMap) -> Result<(), Problem> {
    let key = token(headers).ok_or_else(|| Problem::new(Code::Unauthorized))?;
    keys.recognise(key, SystemTime::now()).await?;
    Ok(())
}

/// Puts a job that nobody was told of back in line.
async fn give_back(queue: &Queue, handed: &Handed) {
    if let Err(error) = queue.release(&handed.job.id, handed.fence).await {
        tracing::warn!(%error, job.id = %handed.job.id, "give a job back; it is taken back when its lease ends");
    }
}

fn claim_problem(error: queue::Error) -> Problem {
    match error {
        queue::Error::UnknownKind => Problem::new(Code::UnknownKind).message(
            "one of these kinds is none that workers outside do; the operator lists those in queue.external_kinds",
        ),
        error => error.into(),
    }
}

/// A lease that a worker asks for.
fn lease(seconds: Option<u64>) -> Result<Option<Duration>, Problem> {
    let lease = seconds.map(Duration::from_secs);
    if lease.is_some_and(|lease| lease.is_zero() || lease > LONGEST_LEASE) {
        return Err(invalid_field("lease_seconds", "validation_range", "1 to 3600"));
    }
    Ok(lease)
}

/// The kinds asked for, of those that the key may do.
fn wanted_kinds(worker: &Worker, wanted: Option<Vec<String>>) -> Result<Vec<String>, Problem> {
    let Some(wanted) = wanted else { return Ok(worker.kinds.iter().map(ToString::to_string).collect()) };
    if wanted.is_empty() {
        return Err(invalid_field("kinds", "validation_required", "at least one kind"));
    }
    if !wanted.iter().all(|kind| worker.kinds.iter().any(|own| **own == **kind)) {
        return Err(Problem::new(Code::Forbidden).message("this API key lacks one of these kinds"));
    }
    Ok(wanted)
}

/// The job that a worker speaks of. One of a kind that is not its own is absent.
fn find(queue: &Queue, worker: &Worker, id: &str) -> Result<Arc<Job>, Problem> {
    let unknown = || Problem::new(Code::NotFound).message("there is no such job");
    let id = JobId::parse(id).map_err(|_| unknown())?;
    queue.job(&id).filter(|job| worker.kinds.contains(&job.kind)).ok_or_else(unknown)
}

/// Says that a worker lives: it keeps the job for another lease. Tells whether the job was called off.
#[utoipa::path(post, path = "/worker/heartbeat", tag = "workers", security(("bearer" = [])), request_body = Heartbeat,
    responses((status = 200, description = "It keeps the job.", body = Renewed)))]
async fn heartbeat(
    State(queue): State<Queue>,
    worker: Worker,
    json::Bulk(body): json::Bulk<Heartbeat>,
) -> Result<Json<Renewed>, ApiError> {
    let lease = lease(body.lease_seconds)?;
    let job = find(&queue, &worker, &body.id)?;
    if !body.checkpoint.is_null() {
        queue.note_checkpoint(&job.id, body.fence, body.checkpoint).await?;
    }
    Ok(Renewed::of(&queue.heartbeat(&job.id, body.fence, lease).await?))
}

/// Says how far a job is, for its owner to see. Cheap, so it may come often. It is no sign of life: send heartbeats too.
#[utoipa::path(post, path = "/worker/progress", tag = "workers", security(("bearer" = [])), request_body = Report,
    responses((status = 200, description = "It is told.", body = Renewed)))]
async fn report_progress(
    State(queue): State<Queue>,
    worker: Worker,
    json::Json(body): json::Json<Report>,
) -> Result<Json<Renewed>, ApiError> {
    let job = find(&queue, &worker, &body.id)?;
    let step: String = body.step.chars().filter(|c| !c.is_control()).collect();
    Ok(Renewed::of(&queue.progress(&job.id, body.fence, &step, body.done, body.total)?))
}

/// Ends a job that succeeded. The same words again are answered the same.
#[utoipa::path(post, path = "/worker/complete", tag = "workers", security(("bearer" = [])), request_body = Completion,
    responses((status = 200, description = "It is done.", body = Ended)))]
async fn complete_job(
    State(queue): State<Queue>,
    worker: Worker,
    json::Bulk(body): json::Bulk<Completion>,
) -> Result<Json<Ended>, ApiError> {
    let job = find(&queue, &worker, &body.id)?;
    let ended = queue.complete(&job.id, body.fence, body.result).await?;
    Ok(Json(Ended { state: ended.state.as_str() }))
}

/// Ends an attempt that failed. The job is tried again, unless it was the last attempt, the worker says that there is
/// no use, or somebody called it off.
#[utoipa::path(post, path = "/worker/fail", tag = "workers", security(("bearer" = [])), request_body = Failure,
    responses((status = 200, description = "What becomes of it.", body = Ended)))]
async fn fail_job(
    State(queue): State<Queue>,
    worker: Worker,
    json::Json(body): json::Json<Failure>,
) -> Result<Json<Ended>, ApiError> {
    if body.reason.is_empty() || body.reason.chars().count() > REASON_CHARS {
        return Err(invalid_field("reason", "validation_length", "1 to 500 characters").into());
    }
    let after = body.retry_after_seconds.map(Duration::from_secs);
    if after.is_some_and(|after| after > LONGEST_PAUSE) {
        return Err(invalid_field("retry_after_seconds", "validation_range", "at most 86400").into());
    }
    let job = find(&queue, &worker, &body.id)?;
    let ended = queue.fail(&job.id, body.fence, body.reason, body.retryable, after).await?;
    Ok(Json(Ended { state: ended.state.as_str() }))
}

/// Gives a job back undone, for somebody else to take at once. The attempt does not count.
#[utoipa::path(post, path = "/worker/release", tag = "workers", security(("bearer" = [])), request_body = Release,
    responses((status = 200, description = "It waits again.", body = Ended)))]
async fn release_job(
    State(queue): State<Queue>,
    worker: Worker,
    json::Json(body): json::Json<Release>,
) -> Result<Json<Ended>, ApiError> {
    let job = find(&queue, &worker, &body.id)?;
    let ended = queue.release(&job.id, body.fence).await?;
    Ok(Json(Ended { state: ended.state.as_str() }))
}
