//! A job: what is to be done for whom, and how far it is.

use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use serde::Serialize;
use serde_json::Value;
use time::OffsetDateTime;

use super::JobId;
use crate::ids::TenantId;
use crate::ids::UserId;

/// Where a job stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Waits in line.
    Queued,
    /// Waits for its time: it was added for later, or a failed attempt is repeated after a pause.
    Scheduled,
    /// Somebody works on it under a lease.
    Running,
    /// Waits for a person's answer; holds no worker.
    Parked,
    /// Succeeded.
    Done,
    /// Failed for good; kept with its reason until it is retried or swept.
    Dead,
    /// Called off.
    Cancelled,
}

impl State {
    /// Every state, in the order of a job's life.
    pub const ALL: [Self; 7] =
        [Self::Queued, Self::Scheduled, Self::Running, Self::Parked, Self::Done, Self::Dead, Self::Cancelled];

    /// Whether nothing more happens by itself.
    pub fn is_finished(self) -> bool {
        matches!(self, Self::Done | Self::Dead | Self::Cancelled)
    }

    /// Whether it waits for a worker, now or later.
    pub fn is_waiting(self) -> bool {
        matches!(self, Self::Queued | Self::Scheduled)
    }

    /// The state as callers see it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Scheduled => "scheduled",
            Self::Running => "running",
            Self::Parked => "parked",
            Self::Done => "done",
            Self::Dead => "dead",
            Self::Cancelled => "cancelled",
        }
    }

    /// The state of a text as [`as_str`](Self::as_str) writes it.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == text)
    }
}

/// How far a running job is. Units are the handler's: bytes, lines, parts.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// What it is at, in a word or two; empty before the first report.
    pub step: String,
    /// How much of the step is done.
    pub done: u64,
    /// How much there is, when that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total: Option<u64>,
    /// Units a second, smoothed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<f64>,
    /// Seconds until the step ends at this rate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eta_seconds: Option<u64>,
}

impl Progress {
    /// 0 to 100, when the total is known.
    pub fn percent(&self) -> Option<f64> {
        #[expect(clippy::cast_precision_loss, reason = "a percentage that people read")]
        self.total.map(|total| if total == 0 { 100.0 } else { (self.done as f64 / total as f64 * 100.0).min(100.0) })
    }
}

/// A place in the line of a tenant: smaller is earlier. Jobs get their place from the store's order of writes, so it
/// does not depend on clocks; a job that is moved gets one between two others.
pub(super) type Rank = (i64, u64);

/// Who works on a job. Ends when it is not renewed for its term, on the clock of whoever looks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// The run of a node that made the claim.
    pub node: Arc<str>,
    /// The worker, for a job that is done outside this program.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker: Option<Arc<str>>,
    /// Grows with every claim of a job. What is reported under an older number is refused.
    pub fence: u64,
    /// How long without a sign of life until it is taken back, in milliseconds.
    pub term_ms: u64,
}

impl Claim {
    /// How long without a sign of life until the job is taken back.
    pub fn term(&self) -> Duration {
        Duration::from_millis(self.term_ms)
    }
}

/// One job, as stored. Payload, checkpoint, input and result belong to the kind; the engine does not look into them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Job {
    /// Its name.
    pub id: JobId,
    /// What is to be done; names the handler.
    pub kind: Arc<str>,
    /// Whose it is.
    pub tenant: TenantId,
    /// Who asked for it.
    pub user: UserId,
    /// A line for people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub title: String,
    /// What the handler needs to know.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub payload: Value,
    /// Where it stands.
    pub state: State,
    /// Higher goes first.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub priority: i8,
    /// How often it was begun, not counting attempts that were not its fault.
    #[serde(default)]
    pub attempts: u32,
    /// How often it may be begun.
    pub max_attempts: u32,
    /// Not before this time (wall clock).
    #[serde(default, skip_serializing_if = "Option::is_none", with = "time::serde::rfc3339::option")]
    pub run_at: Option<OffsetDateTime>,
    /// When it was added.
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
    /// When the last attempt began.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "time::serde::rfc3339::option")]
    pub started_at: Option<OffsetDateTime>,
    /// When it was done, dead or cancelled.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "time::serde::rfc3339::option")]
    pub finished_at: Option<OffsetDateTime>,
    /// How far it is. Newer in memory than on disk while it runs.
    #[serde(default)]
    pub progress: Progress,
    /// Why the last attempt failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// What came of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<Value>,
    /// What the handler noted to go on from after an interruption.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub checkpoint: Value,
    /// A person's answer to a parked job; taken away when the attempt that uses it succeeds or parks again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input: Option<Value>,
    /// What a parked job waits for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parked_for: Option<String>,
    /// Somebody called it off while it ran.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub cancel_requested: bool,
    /// The caller's own name for the request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idempotency_key: Option<String>,
    /// At most one unfinished job of the tenant has this text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dedupe: Option<String>,
    /// Keys of wishes that were answered with this job because of its `dedupe`, the latest last.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) also_keys: Vec<AlsoKey>,
    /// How many jobs with this `dedupe` text came before.
    #[serde(default, skip_serializing_if = "is_none_before")]
    pub(super) generation: u32,
    /// Who works on it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub claim: Option<Claim>,
    /// The fencing number under which it was done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) done_under: Option<u64>,
    /// The revision of the record's creation; 0 in the record as it was created.
    #[serde(default)]
    pub(super) seq: u64,
    /// Its place, if somebody moved it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) rank: Option<Rank>,
    /// How urgent it is to its owner, who has no say over the jobs of others.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub urgency: i8,
}

/// A key under which a job was asked for that has another one, or none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct AlsoKey {
    pub(super) key: String,
    /// The hash of what was asked for under it, which need not be what the job is about.
    pub(super) wish: String,
}

/// Ranks between two urgencies: more than there are jobs.
const URGENCY_STEP: i64 = 1 << 48;

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn is_zero(priority: &i8) -> bool {
    *priority == 0
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn is_none_before(generation: &u32) -> bool {
    *generation == 0
}

impl Job {
    /// Its place among the waiting jobs of its tenant and priority.
    pub(super) fn rank(&self) -> Rank {
        self.rank.unwrap_or((self.seq.cast_signed() - i64::from(self.urgency) * URGENCY_STEP, 0))
    }

    /// The number that a report about the current attempt has to carry.
    pub fn fence(&self) -> Option<u64> {
        self.claim.as_ref().map(|claim| claim.fence)
    }

    /// Every idempotency key that it answers to.
    pub(super) fn keys(&self) -> impl Iterator<Item = &String> {
        self.idempotency_key.iter().chain(self.also_keys.iter().map(|also| &also.key))
    }

    /// The key under which it is stored.
    pub fn key(&self) -> String {
        super::records::key_of(self)
    }

    /// A number that grows with each job that is added; lists are in its order.
    pub fn sequence(&self) -> u64 {
        self.seq
    }
}

/// What somebody wants done.
#[derive(Debug, Clone)]
pub struct NewJob {
    /// A registered kind.
    pub kind: String,
    /// Whose it is.
    pub tenant: TenantId,
    /// Who asks.
    pub user: UserId,
    /// A line for people; cut after 200 characters.
    pub title: String,
    /// What the handler needs to know.
    pub payload: Value,
    /// Higher goes before everybody's lower ones: nothing that users choose.
    pub priority: i8,
    /// Higher goes before its owner's lower ones, and before nobody else's.
    pub urgency: i8,
    /// Not before this time.
    pub run_at: Option<OffsetDateTime>,
    /// Adding again with the same key and the same kind and payload gives the same job, as long as it is remembered.
    pub idempotency_key: Option<String>,
    /// While a job of the tenant with this text is not finished, adding gives that job.
    pub dedupe: Option<String>,
    /// How often it may be begun; none = as the kind has it.
    pub max_attempts: Option<u32>,
}

impl NewJob {
    /// A job of a kind with nothing special about it.
    pub fn new(kind: impl Into<String>, tenant: TenantId, user: UserId, payload: Value) -> Self {
        Self {
            kind: kind.into(),
            tenant,
            user,
            title: String::new(),
            payload,
            priority: 0,
            urgency: 0,
            run_at: None,
            idempotency_key: None,
            dedupe: None,
            max_attempts: None,
        }
    }
}

/// What adding a job led to.
#[derive(Debug, Clone)]
pub struct Added {
    /// The job, durable.
    pub job: Arc<Job>,
    /// False when it was there already.
    pub is_new: bool,
}
