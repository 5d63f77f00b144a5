//! A job in the words of meetings: what the queue's routes answer and what listeners are told.

use serde::Serialize;
use serde_json::Value;
use time::OffsetDateTime;
use utoipa::ToSchema;

use crate::queue::Job;
use crate::queue::Progress;

/// The recording that a payload speaks of, as a number or as its digits.
pub(super) fn recording_of(payload: &Value) -> Option<u64> {
    let found = &payload["recording_id"];
    found.as_u64().or_else(|| found.as_str()?.parse().ok())
}

/// How far a job is. Units are those of the step: bytes, lines, parts.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = JobProgress)]
pub struct ProgressView {
    /// What it is at, in a word or two; empty before the first report.
    #[schema(example = "uploading")]
    step: String,
    done: u64,
    total: Option<u64>,
    /// 0 to 100, when the total is known.
    percent: Option<f64>,
    /// Units a second.
    rate: Option<f64>,
    /// Seconds until the step ends at this rate.
    eta_seconds: Option<u64>,
}

impl ProgressView {
    /// What people see of it.
    pub fn of(progress: &Progress) -> Self {
        Self {
            step: progress.step.clone(),
            done: progress.done,
            total: progress.total,
            percent: progress.percent(),
            rate: progress.rate,
            eta_seconds: progress.eta_seconds,
        }
    }
}

/// A meeting on its way to a destination.
#[derive(Debug, Serialize, ToSchema)]
pub struct QueueItem {
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
    user_id: String,
    #[schema(example = "Team Meeting")]
    topic: String,
    recording_id: Option<u64>,
    /// The id or the kind of the destination; none: the default one.
    destination: Option<String>,
    /// Among the user's own.
    priority: i8,
    attempts: u32,
    max_attempts: u32,
    progress: ProgressView,
    /// Why the last attempt failed.
    error: Option<String>,
    /// What came of it.
    #[schema(value_type = Option<Object>)]
    result: Option<Value>,
    /// What a parked item waits for.
    waits_for: Option<String>,
    #[serde(with = "time::serde::rfc3339")]
    #[schema(value_type = String, format = DateTime)]
    created_at: OffsetDateTime,
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

impl QueueItem {
    /// What people see of it; the position is asked for apart, because it changes without the job.
    pub fn of(job: &Job, position: Option<u64>) -> Self {
        Self {
            id: job.id.as_str().to_owned(),
            kind: job.kind.to_string(),
            state: job.state.as_str(),
            position,
            user_id: job.user.as_str().to_owned(),
            topic: job.title.clone(),
            recording_id: recording_of(&job.payload),
            destination: job.payload["destination"].as_str().map(str::to_owned),
            priority: job.urgency,
            attempts: job.attempts,
            max_attempts: job.max_attempts,
            progress: ProgressView::of(&job.progress),
            error: job.error.clone(),
            result: job.result.clone(),
            waits_for: job.parked_for.clone(),
            created_at: job.created_at,
            run_at: job.run_at,
            started_at: job.started_at,
            finished_at: job.finished_at,
        }
    }
}
