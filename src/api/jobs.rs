//! A user's jobs of every kind, waiting, running and finished. What is particular to meetings is in
//! [`queue`](crate::api::queue), what workers need in [`worker`](crate::api::worker).

use std::sync::Arc;

use axum::Json;
use axum::extract::Path;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::IntoResponse;
use axum::response::Response;
use serde::Deserialize;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use serde_json::json as value;
use time::OffsetDateTime;
use utoipa::IntoParams;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::api::AppState;
use crate::api::bearer::JobOwner;
use crate::api::error::ApiError;
use crate::api::json;
use crate::api::json::Params;
use crate::api::json::invalid_field;
use crate::auth::Verifier;
use crate::error::Code;
use crate::error::Problem;
use crate::ids::UserId;
use crate::jobs::backup;
use crate::jobs::intake;
use crate::jobs::intake::Intake;
use crate::jobs::intake::MOST_WISHES;
use crate::jobs::intake::Wish;
use crate::jobs::intake::Work;
use crate::jobs::item::ProgressView;
use crate::queue;
use crate::queue::Filter;
use crate::queue::Job;
use crate::queue::JobId;
use crate::queue::Queue;
use crate::queue::Spot;

/// Jobs in one answer, at most.
const LARGEST_PAGE: usize = 100;

/// The routes, relative to where they are mounted.
pub fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(list_jobs, add_jobs))
        .routes(routes!(show_job))
        .routes(routes!(cancel_job))
        .routes(routes!(retry_job))
        .routes(routes!(move_job))
}

/// A job, as its owner sees it.
#[derive(Serialize, ToSchema)]
#[schema(as = Job)]
pub(super) struct JobView {
    #[schema(example = "01k6yq3m9x4v7t2c8w5z0b1n2d")]
    id: String,
    #[schema(example = "deliver_meeting")]
    kind: String,
    /// `queued`, `scheduled` (for later), `running`, `parked` (waits for a person), `done`, `dead` (failed for good) or
    /// `cancelled`.
    #[schema(example = "queued")]
    state: &'static str,
    /// Its place in the whole order of dispatch, 1 = next; none unless it is queued.
    position: Option<u64>,
    /// Whose it is.
    user_id: String,
    /// A line for people.
    title: String,
    /// What whoever does it needs to know.
    #[schema(value_type = Object)]
    payload: Value,
    /// Among the user's own.
    priority: i8,
    /// How often it was begun.
    attempts: u32,
    max_attempts: u32,
    progress: ProgressView,
    /// Why the last attempt failed.
    error: Option<String>,
    /// What came of it.
    #[schema(value_type = Option<Object>)]
    result: Option<Value>,
    /// What a parked job waits for.
    waits_for: Option<String>,
    /// Somebody called it off; it ends as soon as whoever works on it notices.
    cancel_requested: bool,
    idempotency_key: Option<String>,
    #[serde(with = "time::serde::rfc3339")]
    #[schema(value_type = String, format = DateTime)]
    created_at: OffsetDateTime,
    /// Not before this time.
    #[serde(with = "time::serde::rfc3339::option")]
    #[schema(value_type = Option<String>, format = DateTime)]
    run_at: Option<OffsetDateTime>,
    #[serde(with = "time::serde::rfc3339::option")]
    #[schema(value_type = Option<String>, format = DateTime)]
    started_at: Option<OffsetDateTime>,
    #[serde(with = "time::serde::rfc3339::option")]
    #[schema(value_type = Option<String>, format = DateTime)]
    finished_at: Option<OffsetDateTime>,
}

impl JobView {
    pub(super) fn of(job: &Job, position: Option<u64>) -> Self {
        Self {
            id: job.id.as_str().to_owned(),
            kind: job.kind.to_string(),
            state: job.state.as_str(),
            position,
            user_id: job.user.as_str().to_owned(),
            title: job.title.clone(),
            payload: job.payload.clone(),
            priority: job.urgency,
            attempts: job.attempts,
            max_attempts: job.max_attempts,
            progress: ProgressView::of(&job.progress),
            error: job.error.clone(),
            result: job.result.clone(),
            waits_for: job.parked_for.clone(),
            cancel_requested: job.cancel_requested,
            idempotency_key: job.idempotency_key.clone(),
            created_at: job.created_at,
            run_at: job.run_at,
            started_at: job.started_at,
            finished_at: job.finished_at,
        }
    }

    /// With the place that it has now.
    pub(super) fn now(job: &Job, queue: &Queue) -> Self {
        Self::of(job, queue.position(&job.id))
    }
}

/// A page of jobs, newest first.
#[derive(Serialize, ToSchema)]
struct JobPage {
    items: Vec<JobView>,
    /// Ask again with `cursor` = this for the next page; absent on the last one.
    #[serde(skip_serializing_if = "Option::is_none")]
    next_cursor: Option<String>,
}

/// One job to be added.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct AddJob {
    /// `deliver_meeting`, or a kind that the operator opened to users.
    #[schema(example = "deliver_meeting")]
    kind: String,
    /// A line for people, at most 200 characters.
    #[serde(default)]
    title: String,
    /// What whoever does it needs to know.
    #[serde(default)]
    #[schema(value_type = Object)]
    payload: Value,
    /// While an unfinished job of this kind with this text exists, it is the same job.
    dedupe: Option<String>,
    /// Higher goes first.
    priority: Option<i64>,
    /// Not before this time, within a year. One that has passed means now.
    #[serde(default, with = "time::serde::rfc3339::option")]
    #[schema(value_type = Option<String>, format = DateTime)]
    run_at: Option<OffsetDateTime>,
    /// Adding again with the same key gives the same job; another wish with it is refused.
    idempotency_key: Option<String>,
    /// Whose it is to be, for admins. Ignored for everybody else: whose it is follows from the credential.
    user_id: Option<String>,
}

impl AddJob {
    fn into_wish(self) -> (Wish, Option<String>) {
        let Self { kind, title, payload, dedupe, priority, run_at, idempotency_key, user_id } = self;
        (Wish { work: Work::Any { kind, title, payload, dedupe }, priority, run_at, idempotency_key }, user_id)
    }
}

/// What a body asked for: one thing, or a list of them.
pub(super) enum Asked<T> {
    One(T),
    Many(Vec<T>),
}

impl<T: DeserializeOwned> Asked<T> {
    /// Reads `{...}` as one and `{"items": [...]}` as many. A list that is too long is refused unread.
    pub(super) fn read(body: Value) -> Result<Self, Problem> {
        let Value::Object(mut fields) = body else {
            return Err(Problem::new(Code::InvalidBody).message("send an object: one item, or a list as `items`"));
        };
        if !fields.contains_key("items") {
            return json::convert(Value::Object(fields)).map(Self::One);
        }
        if fields.len() > 1 {
            return Err(Problem::new(Code::InvalidBody).message("beside `items` there can be no other field"));
        }
        match fields.remove("items") {
            Some(Value::Array(items)) if !(1..=MOST_WISHES).contains(&items.len()) => Err(intake::Error::Count.into()),
            Some(Value::Array(items)) => items
                .into_iter()
                .enumerate()
                .map(|(index, item)| json::convert(item).map_err(|problem| problem.details(value!({ "index": index }))))
                .collect::<Result<_, _>>()
                .map(Self::Many),
            _ => Err(Problem::new(Code::InvalidBody).message("`items` is a list")),
        }
    }
}

/// Adds what was asked for in the name of whoever asks, or of whom an admin names, and shapes the reply: 201 when
/// anything is new, 200 when all of it was there.
pub(super) async fn add<T, V: Serialize>(
    intake: &Intake,
    verifier: &Verifier,
    owner: &JobOwner,
    asked: Asked<T>,
    wish: impl Fn(T) -> (Wish, Option<String>),
    view: impl Fn(&Job) -> V,
) -> Result<Response, ApiError> {
    let (is_one, items) = match asked {
        Asked::One(item) => (true, vec![item]),
        Asked::Many(items) => (false, items),
    };
    let (wishes, names): (Vec<_>, Vec<_>) = items.into_iter().map(wish).unzip();
    let user = whom(verifier, owner, names)?;
    let added = intake.add(&user, wishes, OffsetDateTime::now_utc()).await?;
    let status = if added.iter().any(|added| added.is_new) { StatusCode::CREATED } else { StatusCode::OK };
    let mut views: Vec<_> = added.iter().map(|added| view(&added.job)).collect();
    if is_one && let Some(one) = views.pop() {
        return Ok((status, Json(one)).into_response());
    }
    Ok((status, Json(value!({ "items": views }))).into_response())
}

/// Whose jobs they are to be. What others than admins say of it counts for nothing.
fn whom(verifier: &Verifier, owner: &JobOwner, asked: Vec<Option<String>>) -> Result<UserId, Problem> {
    if !owner.is_admin {
        return Ok(owner.user.clone());
    }
    let mut named: Vec<_> = asked.into_iter().flatten().collect();
    named.dedup();
    match named.as_slice() {
        [] => Ok(owner.user.clone()),
        [one] => UserId::parse(one)
            .ok()
            .filter(|user| verifier.exists(user))
            .ok_or_else(|| invalid_field("user_id", "validation_unknown", "there is no such account")),
        _ => Err(invalid_field("user_id", "validation_one", "all items of a request are for one account")),
    }
}

/// The caller's job of a path.
pub(super) fn find(queue: &Queue, owner: &JobOwner, id: &str) -> Result<Arc<Job>, Problem> {
    let unknown = || Problem::new(Code::NotFound).message("there is no such job");
    let id = JobId::parse(id).map_err(|_| unknown())?;
    queue.find(&owner.tenant(), &id).ok_or_else(unknown)
}

/// The same to look at, also one that the caller began for a workspace.
fn find_begun(queue: &Queue, owner: &JobOwner, id: &str) -> Result<Arc<Job>, Problem> {
    let begun = JobId::parse(id).ok().and_then(|id| queue.job(&id)).filter(|job| job.user == owner.user);
    begun.map_or_else(|| find(queue, owner, id), Ok)
}

/// What to list.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct ListJobs {
    /// Only those in this state.
    state: Option<String>,
    /// Only those of this kind.
    kind: Option<String>,
    /// The `next_cursor` of the page before.
    cursor: Option<String>,
    /// Most jobs, 1 to 100.
    limit: Option<usize>,
}

impl ListJobs {
    pub(super) fn filter(self) -> Result<Filter, Problem> {
        let states = self.state.map(|text| queue::State::parse(&text).ok_or_else(unknown_state)).transpose()?;
        let cursor = self.cursor.map(|text| text.parse().map_err(|_| unknown_cursor())).transpose()?;
        let limit = self.limit.unwrap_or(LARGEST_PAGE).clamp(1, LARGEST_PAGE);
        Ok(Filter { states: states.into_iter().collect(), kind: self.kind, user: None, cursor, limit })
    }
}

/// Lists the caller's jobs, newest first: waiting, running, and finished ones as long as they are kept.
#[utoipa::path(get, path = "/jobs", tag = "jobs", security(("bearer" = [])), params(ListJobs),
    responses((status = 200, description = "A page of jobs.", body = JobPage)))]
async fn list_jobs(
    State(queue): State<Queue>,
    owner: JobOwner,
    Params(params): Params<ListJobs>,
) -> Result<Json<JobPage>, ApiError> {
    let page = queue.list(&owner.tenant(), &params.filter()?);
    let items = page.items.iter().map(|job| JobView::now(job, &queue)).collect();
    Ok(Json(JobPage { items, next_cursor: page.next.map(|next| next.to_string()) }))
}

fn unknown_state() -> Problem {
    let known: Vec<_> = queue::State::ALL.iter().map(|state| state.as_str()).collect();
    Problem::new(Code::InvalidRequest).message(format!("a state is one of {}", known.join(", ")))
}

fn unknown_cursor() -> Problem {
    Problem::new(Code::InvalidRequest).message("a cursor is the next_cursor of an earlier answer")
}

/// Adds one job, or up to 1,000 as `{"items": [...]}`: all or none. Answers 200 when all of them were there already.
#[utoipa::path(post, path = "/jobs", tag = "jobs", security(("bearer" = [])), request_body = AddJob,
    responses((status = 201, description = "The job, or `{items}`.", body = JobView),
        (status = 200, description = "The job that was there already.", body = JobView)))]
async fn add_jobs(
    State(queue): State<Queue>,
    State(intake): State<Intake>,
    State(verifier): State<Verifier>,
    owner: JobOwner,
    json::Bulk(body): json::Bulk<Value>,
) -> Result<Response, ApiError> {
    let asked = Asked::read(body)?;
    add(&intake, &verifier, &owner, asked, AddJob::into_wish, |job| JobView::now(job, &queue)).await
}

/// Shows one of the caller's jobs.
#[utoipa::path(get, path = "/jobs/{id}", tag = "jobs", security(("bearer" = [])),
    params(("id" = String, Path, description = "The job's id.")),
    responses((status = 200, description = "The job.", body = JobView)))]
async fn show_job(
    State(queue): State<Queue>,
    owner: JobOwner,
    Path(id): Path<String>,
) -> Result<Json<JobView>, ApiError> {
    Ok(Json(JobView::now(&*find_begun(&queue, &owner, &id)?, &queue)))
}

/// Calls a job off. One that runs ends as soon as whoever works on it notices. The second time changes nothing.
#[utoipa::path(post, path = "/jobs/{id}/cancel", tag = "jobs", security(("bearer" = [])),
    params(("id" = String, Path, description = "The job's id.")),
    responses((status = 200, description = "The job.", body = JobView)))]
async fn cancel_job(
    State(queue): State<Queue>,
    owner: JobOwner,
    Path(id): Path<String>,
) -> Result<Json<JobView>, ApiError> {
    let found = find(&queue, &owner, &id)?;
    let job = queue.cancel(&found.tenant, &found.id, OffsetDateTime::now_utc()).await?;
    Ok(Json(JobView::now(&job, &queue)))
}

/// Brings back a job that failed for good or was called off, or lets one that waits for its time run now.
#[utoipa::path(post, path = "/jobs/{id}/retry", tag = "jobs", security(("bearer" = [])),
    params(("id" = String, Path, description = "The job's id.")),
    responses((status = 200, description = "The job.", body = JobView)))]
async fn retry_job(
    State(queue): State<Queue>,
    owner: JobOwner,
    Path(id): Path<String>,
) -> Result<Json<JobView>, ApiError> {
    let found = find(&queue, &owner, &id)?;
    // It replaces data by older data, which takes a sign-in of the last minutes each time.
    if &*found.kind == backup::RESTORE {
        return Err(Problem::new(Code::Conflict).message("ask for the restore itself again; it is not retried").into());
    }
    let job = queue.retry(&found.tenant, &found.id).await?;
    Ok(Json(JobView::now(&job, &queue)))
}

/// Where a job is to go. Exactly one of the two.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct MoveJob {
    /// In front of this other job of the caller's.
    before: Option<String>,
    /// `front` or `back` of the caller's own.
    #[schema(example = "front")]
    to: Option<String>,
}

/// Moves a job that waits, among the caller's own of its kind.
#[utoipa::path(post, path = "/jobs/{id}/move", tag = "jobs", security(("bearer" = [])), request_body = MoveJob,
    params(("id" = String, Path, description = "The job's id.")),
    responses((status = 200, description = "The job.", body = JobView)))]
async fn move_job(
    State(queue): State<Queue>,
    owner: JobOwner,
    Path(id): Path<String>,
    json::Json(body): json::Json<MoveJob>,
) -> Result<Json<JobView>, ApiError> {
    let job = relocate(&queue, &owner, &*find(&queue, &owner, &id)?, &body).await?;
    Ok(Json(JobView::now(&job, &queue)))
}

/// Moves a job as asked.
pub(super) async fn relocate(
    queue: &Queue,
    owner: &JobOwner,
    job: &Job,
    wanted: &MoveJob,
) -> Result<Arc<Job>, Problem> {
    let tenant = owner.tenant();
    match (wanted.before.as_deref(), wanted.to.as_deref()) {
        (Some(other), None) => {
            let other = find(queue, owner, other)
                .map_err(|_| invalid_field("before", "validation_unknown", "there is no such job of yours"))?;
            Ok(queue.move_to(&tenant, &job.id, Spot::Before(other.id)).await?)
        }
        (None, Some("front")) => Ok(queue.move_to(&tenant, &job.id, Spot::Front).await?),
        (None, Some("back")) => Ok(queue.move_to(&tenant, &job.id, Spot::Back).await?),
        (None, Some(_)) => Err(invalid_field("to", "validation_choice", "front or back")),
        _ => Err(Problem::new(Code::InvalidBody).message("say either `before` or `to`")),
    }
}
