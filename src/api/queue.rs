//! The queue of meetings: what waits to be brought to a destination, in the order in which it will be done.
//!
//! These are the same jobs as those of [`jobs`], told in the words of meetings. Kinds that are not
//! open to users are not shown here.

use std::sync::Arc;

use axum::Json;
use axum::extract::Path;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use serde::Deserialize;
use serde::Serialize;
use serde_json::Value;
use serde_json::json as value;
use time::OffsetDateTime;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::api::AppState;
use crate::api::bearer::JobOwner;
use crate::api::error::ApiError;
use crate::api::jobs;
use crate::api::jobs::Asked;
use crate::api::jobs::MoveJob;
use crate::api::json;
use crate::api::json::invalid_field;
use crate::auth::Verifier;
use crate::error::Code;
use crate::error::Problem;
use crate::jobs::destinations::loom;
use crate::jobs::intake::Intake;
use crate::jobs::intake::MeetingWish;
use crate::jobs::intake::Wish;
use crate::jobs::intake::Work;
use crate::jobs::item::QueueItem;
use crate::queue::Job;
use crate::queue::Queue;

/// Longest address of a recording that was handed over.
const URL_BYTES: usize = 2_048;

/// The routes, relative to where they are mounted.
pub fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(show_queue, add_to_queue))
        .routes(routes!(pause_queue))
        .routes(routes!(resume_queue))
        .routes(routes!(show_item, remove_item))
        .routes(routes!(retry_item))
        .routes(routes!(move_item))
        .routes(routes!(share_url))
}

/// The caller's part of the queue.
#[derive(Serialize, ToSchema)]
struct QueueView {
    /// What is not finished, in the order of dispatch.
    items: Vec<QueueItem>,
    /// How many jobs wait in the whole queue, everybody's.
    waiting: u64,
    /// Whether the caller's part is at rest.
    paused: bool,
}

/// A meeting to be brought to a destination.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct AddToQueue {
    /// A line for people, at most 200 characters.
    #[serde(default)]
    #[schema(example = "Team Meeting")]
    topic: String,
    /// The recording's number. This or a topic is needed.
    #[schema(example = 123_456_789)]
    recording_id: Option<u64>,
    /// The id or the kind of a destination; the default one unless given.
    destination: Option<String>,
    /// Higher goes first.
    priority: Option<i64>,
    /// Not before this time, within a year. One that has passed means now.
    #[serde(default, with = "time::serde::rfc3339::option")]
    #[schema(value_type = Option<String>, format = DateTime)]
    run_at: Option<OffsetDateTime>,
    /// Adding again with the same key gives the same item; another wish with it is refused.
    idempotency_key: Option<String>,
    /// Whose it is to be, for admins. Ignored for everybody else: whose it is follows from the credential.
    #[schema(example = "user123")]
    user_id: Option<String>,
}

impl AddToQueue {
    fn into_wish(self) -> (Wish, Option<String>) {
        let Self { topic, recording_id, destination, priority, run_at, idempotency_key, user_id } = self;
        let work = Work::Meeting(MeetingWish { topic, recording_id, destination });
        (Wish { work, priority, run_at, idempotency_key }, user_id)
    }
}

/// With the place that it has now.
fn item(job: &Job, queue: &Queue) -> QueueItem {
    QueueItem::of(job, queue.position(&job.id))
}

/// The caller's item of a path.
fn find(queue: &Queue, intake: &Intake, owner: &JobOwner, id: &str) -> Result<Arc<Job>, Problem> {
    let found = jobs::find(queue, owner, id)?;
    if intake.rules().is_open(&found.kind) {
        Ok(found)
    } else {
        Err(Problem::new(Code::NotFound).message("there is no such job"))
    }
}

/// Shows what the caller has in the queue, in the order in which it will be done.
#[utoipa::path(get, path = "/queue", tag = "queue", security(("bearer" = [])),
    responses((status = 200, description = "The caller's part of the queue.", body = QueueView)))]
async fn show_queue(State(queue): State<Queue>, State(intake): State<Intake>, owner: JobOwner) -> Json<QueueView> {
    let tenant = owner.tenant();
    let active = queue.active(&tenant);
    let shown = active.iter().filter(|place| intake.rules().is_open(&place.job.kind));
    let items = shown.map(|place| QueueItem::of(&place.job, place.position)).collect();
    Json(QueueView { items, waiting: queue.waiting(), paused: queue.is_paused(&tenant) })
}

/// Adds one meeting, or up to 1,000 as `{"items": [...]}`: all or none. A recording that is on its way to the same
/// destination already is answered with that item. Answers 200 when nothing is new.
#[utoipa::path(post, path = "/queue", tag = "queue", security(("bearer" = [])), request_body = AddToQueue,
    responses((status = 201, description = "The item, or `{items}`.", body = QueueItem),
        (status = 200, description = "The item that was there already.", body = QueueItem)))]
async fn add_to_queue(
    State(queue): State<Queue>,
    State(intake): State<Intake>,
    State(verifier): State<Verifier>,
    owner: JobOwner,
    json::Bulk(body): json::Bulk<Value>,
) -> Result<Response, ApiError> {
    let asked = Asked::read(body)?;
    jobs::add(&intake, &verifier, &owner, asked, AddToQueue::into_wish, |job| item(job, &queue)).await
}

/// Lets the caller's part of the queue rest: nothing of it is begun. What runs goes on.
#[utoipa::path(post, path = "/queue/pause", tag = "queue", security(("bearer" = [])),
    responses((status = 204, description = "It rests.")))]
async fn pause_queue(State(queue): State<Queue>, owner: JobOwner) -> Result<StatusCode, ApiError> {
    queue.pause(&owner.tenant()).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Ends the rest.
#[utoipa::path(post, path = "/queue/resume", tag = "queue", security(("bearer" = [])),
    responses((status = 204, description = "It goes on.")))]
async fn resume_queue(State(queue): State<Queue>, owner: JobOwner) -> Result<StatusCode, ApiError> {
    queue.resume(&owner.tenant()).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Shows one of the caller's items, also when it is finished.
#[utoipa::path(get, path = "/queue/{id}", tag = "queue", security(("bearer" = [])),
    params(("id" = String, Path, description = "The item's id.")),
    responses((status = 200, description = "The item.", body = QueueItem)))]
async fn show_item(
    State(queue): State<Queue>,
    State(intake): State<Intake>,
    owner: JobOwner,
    Path(id): Path<String>,
) -> Result<Json<QueueItem>, ApiError> {
    Ok(Json(item(&*find(&queue, &intake, &owner, &id)?, &queue)))
}

/// Takes an item out of the queue: it is called off, also when it runs. The second time, and for one that is finished,
/// nothing changes and the answer is the same.
#[utoipa::path(delete, path = "/queue/{id}", tag = "queue", security(("bearer" = [])),
    params(("id" = String, Path, description = "The item's id.")),
    responses((status = 204, description = "It will not be done (any more).")))]
async fn remove_item(
    State(queue): State<Queue>,
    State(intake): State<Intake>,
    owner: JobOwner,
    Path(id): Path<String>,
) -> Result<StatusCode, ApiError> {
    let found = find(&queue, &intake, &owner, &id)?;
    match queue.cancel(&found.tenant, &found.id, OffsetDateTime::now_utc()).await {
        Ok(_) | Err(crate::queue::Error::WrongState(_)) => Ok(StatusCode::NO_CONTENT),
        Err(error) => Err(error.into()),
    }
}

/// Brings back an item that failed for good or was taken out, or lets one that waits for its time run now.
#[utoipa::path(post, path = "/queue/{id}/retry", tag = "queue", security(("bearer" = [])),
    params(("id" = String, Path, description = "The item's id.")),
    responses((status = 200, description = "The item.", body = QueueItem)))]
async fn retry_item(
    State(queue): State<Queue>,
    State(intake): State<Intake>,
    owner: JobOwner,
    Path(id): Path<String>,
) -> Result<Json<QueueItem>, ApiError> {
    let found = find(&queue, &intake, &owner, &id)?;
    let job = queue.retry(&found.tenant, &found.id).await?;
    Ok(Json(item(&job, &queue)))
}

/// Moves an item that waits, among the caller's own of its kind.
#[utoipa::path(post, path = "/queue/{id}/move", tag = "queue", security(("bearer" = [])), request_body = MoveJob,
    params(("id" = String, Path, description = "The item's id.")),
    responses((status = 200, description = "The item.", body = QueueItem)))]
async fn move_item(
    State(queue): State<Queue>,
    State(intake): State<Intake>,
    owner: JobOwner,
    Path(id): Path<String>,
    json::Json(body): json::Json<MoveJob>,
) -> Result<Json<QueueItem>, ApiError> {
    let job = jobs::relocate(&queue, &owner, &*find(&queue, &intake, &owner, &id)?, &body).await?;
    Ok(Json(item(&job, &queue)))
}

/// Where a person put a recording.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct ShareUrl {
    /// The link that Loom gave.
    #[schema(example = "https://www.loom.com/share/0123456789abcdef0123456789abcdef")]
    url: String,
}

/// Hands over the link of a recording that a person uploaded elsewhere; the item, which waited for it, goes on.
#[utoipa::path(post, path = "/queue/{id}/share_url", tag = "queue", security(("bearer" = [])), request_body = ShareUrl,
    params(("id" = String, Path, description = "The item's id.")),
    responses((status = 200, description = "The item.", body = QueueItem)))]
async fn share_url(
    State(queue): State<Queue>,
    State(intake): State<Intake>,
    owner: JobOwner,
    Path(id): Path<String>,
    json::Json(body): json::Json<ShareUrl>,
) -> Result<Json<QueueItem>, ApiError> {
    let found = find(&queue, &intake, &owner, &id)?;
    check_share_link(&body.url)?;
    let answer = value!({ "share_url": body.url });
    let job = queue.answer(&found.tenant, &found.id, answer).await?;
    Ok(Json(item(&job, &queue)))
}

/// Refuses what cannot be a share link at once: whoever pasted it is still there.
fn check_share_link(text: &str) -> Result<(), Problem> {
    if text.len() <= URL_BYTES && loom::check_share_link(text).is_ok() {
        return Ok(());
    }
    Err(invalid_field("url", "validation_url", "Must be a share link such as https://www.loom.com/share/0123…."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_is_a_share_link_of_loom() {
        let good = "https://www.loom.com/share/0123456789abcdef0123456789abcdef?sid=1";
        assert!(check_share_link(good).is_ok());
        let long = format!("{good}{}", "x".repeat(URL_BYTES));
        for bad in ["", "https://a.example/x", "https://www.loom.com/embed/0123456789abcdef0123456789abcdef", &long] {
            assert_eq!(check_share_link(bad).unwrap_err().code, Code::ValidationFailed, "{bad}");
        }
    }
}
