//! The contract between the engine and those who do the work in this process.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio_util::sync::CancellationToken;

use super::Job;
use super::JobId;
use super::Queue;
use super::progress::Meter;
use crate::ids::TenantId;
use crate::store::BoxFuture;

/// Does the jobs of one kind.
///
/// A job is begun at least once, and possibly again after a crash or a lost lease: effects have to be idempotent,
/// keyed by the job's id or by what is in its payload. A handler that panics has failed.
pub trait Handler: Send + Sync + 'static {
    /// The kind: 1 to 40 characters of a-z, 0-9 and `_`.
    fn kind(&self) -> &'static str;

    /// How its jobs are repeated and how many run at once.
    fn policy(&self) -> Policy {
        Policy::default()
    }

    /// A job of this tenant will probably be begun in a moment: it is being claimed, or its time is about to come. For
    /// what may be prepared meanwhile. Must not wait; it may be said for nothing, or not be said at all.
    fn soon(&self, tenant: &TenantId) {
        let _ = tenant;
    }

    /// One attempt. Should end soon after `run.cancelled()`; is dropped if it does not.
    fn run(&self, run: Run) -> BoxFuture<'static, Outcome>;
}

/// How the jobs of a kind are repeated and how many run at once.
#[derive(Debug, Clone)]
pub struct Policy {
    /// How often a job is begun before it is dead.
    pub max_attempts: u32,
    /// Longest pause after the first failure; doubles with each further one. The pause itself is anywhere from zero
    /// to that (full jitter).
    pub backoff_base: Duration,
    /// Longest pause of all.
    pub backoff_max: Duration,
    /// Most jobs of the kind that run at once; none = as many as the queue runs.
    pub concurrency: Option<usize>,
    /// Most jobs of the kind that run at once for one tenant; none = `queue.per_tenant`.
    pub per_tenant: Option<usize>,
    /// How long a job may be silent until it is taken back; none = `queue.lease`.
    pub lease: Option<Duration>,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            max_attempts: 5,
            backoff_base: Duration::from_secs(5),
            backoff_max: Duration::from_mins(10),
            concurrency: None,
            per_tenant: None,
            lease: None,
        }
    }
}

/// How an attempt ended.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// It succeeded, with this result.
    Done(Value),
    /// It waits for a person; not counted as an attempt. [`Queue::answer`] brings it back.
    Park {
        /// What it waits for, for people and programs.
        reason: String,
    },
    /// It failed and may succeed later.
    Retry {
        /// Why, for people.
        reason: String,
        /// Not before this much time has passed (a `Retry-After` of somebody else).
        after: Option<Duration>,
    },
    /// It is not time yet, through nobody's fault: begun again after this, and not counted as an attempt.
    Wait {
        /// For what, for people.
        reason: String,
        /// Not before this much time has passed.
        after: Duration,
    },
    /// It failed and will not succeed.
    Dead {
        /// Why, for people.
        reason: String,
    },
    /// It stopped because it was told to.
    Cancelled,
}

/// Why a checkpoint was not written.
#[derive(Debug, thiserror::Error)]
pub enum Lost {
    /// The job is no longer this attempt's: stop without further effects.
    #[error("the job is no longer this attempt's")]
    Claim,
    /// It is larger than `queue.max_state_bytes`.
    #[error("the checkpoint is too large")]
    TooLarge,
    /// The store failed; whether it was written is not known.
    #[error("the store failed")]
    Store(#[source] crate::store::Error),
}

/// One attempt at a job, as its handler sees it.
#[derive(Clone)]
pub struct Run {
    /// The job as it was when the attempt began.
    pub job: Arc<Job>,
    /// Which attempt this is, from 1.
    pub attempt: u32,
    /// The number that this attempt's writes carry; larger than that of every attempt before.
    pub fence: u64,
    pub(super) queue: Queue,
    pub(super) cancelled: CancellationToken,
    pub(super) meter: Arc<Meter>,
}

impl fmt::Debug for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Run").field("job", &self.job.id).field("attempt", &self.attempt).finish_non_exhaustive()
    }
}

impl Run {
    /// Says how far it is. Costs next to nothing: listeners are told a few times a second, the disk now and then.
    pub fn progress(&self, step: &str, done: u64, total: Option<u64>) {
        self.meter.note(step, done, total);
    }

    /// Writes down what a later attempt needs to go on from here; it comes as `job.checkpoint`. Durable when it
    /// returns.
    pub async fn checkpoint(&self, checkpoint: Value) -> Result<(), Lost> {
        self.queue.checkpoint(&self.job.id, self.fence, checkpoint).await
    }

    /// Another job of the same tenant.
    pub fn sibling(&self, id: &JobId) -> Option<Arc<Job>> {
        self.queue.find(&self.job.tenant, id)
    }

    /// Resolves when the attempt should stop: the job was cancelled, its lease was lost, or the queue shuts down.
    pub fn cancelled(&self) -> &CancellationToken {
        &self.cancelled
    }
}
