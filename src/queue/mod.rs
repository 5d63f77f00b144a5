//! The durable job queue: what is to be done for tenants, in a fair order, at least once, and not forgotten.
//!
//! A job is one record of the store, `job.<kind>.<tenant>.<id>`; everything that happens to it is a compare-and-swap
//! on that record. Whoever works on it holds a lease (the record's revision changes while it lives) and a fencing
//! number (what comes under an older one is refused). The order of dispatch and the positions that people are shown
//! are in memory, fed by the store's watch, so every node that looks at the same records sees the same line.
//!
//! Invariants:
//! - A job that was acknowledged is on disk. It is begun at least once, and by one worker at a time as far as its
//!   record is concerned: only the holder of the newest fencing number can write.
//! - Leases are measured on the observer's monotonic clock; only `run_at` and schedules look at the wall clock.
//! - Everything is bounded: waiting jobs (in all, for a tenant), finished ones that are kept, sizes, batches, listeners.
//! - The engine knows nothing of what jobs are about: no users, no HTTP, no meetings.
//!
//! Deliberately absent: exactly-once (effects have to be idempotent), order between jobs of one tenant while its
//! limit is above 1, and dependencies between jobs (a handler adds the next one).

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::OnceLock;
use std::sync::PoisonError;
use std::sync::RwLock;

use time::OffsetDateTime;
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::sync::broadcast;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tokio_util::task::TaskTracker;

use crate::ids::TenantId;
use crate::shutdown::Shutdown;
use crate::store::Store;
use crate::telemetry::Metrics;

mod add;
mod board;
mod change;
mod config;
mod cron;
mod decide;
mod error;
mod external;
mod follow;
mod handler;
mod id;
mod job;
mod keeper;
mod line;
mod operate;
mod progress;
mod read;
mod records;
mod runner;
mod schedule;

pub use add::MAX_BATCH;
pub use change::Change;
pub use config::Config;
pub use config::Invalid;
pub use error::Error;
pub use external::Beat;
pub use external::Claimed;
pub use external::Claiming;
pub use handler::Handler;
pub use handler::Lost;
pub use handler::Outcome;
pub use handler::Policy;
pub use handler::Run;
pub use id::InvalidJobId;
pub use id::JobId;
pub use job::Added;
pub use job::Claim;
pub use job::Job;
pub use job::NewJob;
pub use job::Progress;
pub use job::State;
pub use operate::Spot;
pub use read::Active;
pub use read::Filter;
pub use read::KindStatus;
pub use read::Page;
pub use read::Status;
pub use schedule::Missed;
pub use schedule::NewSchedule;
pub use schedule::Schedule;

use self::board::Board;
use self::id::Names;
use self::schedule::Timetable;

/// Changes that may wait for one listener.
const QUEUED_CHANGES: usize = 4_096;

/// Tells the wall-clock time.
pub type Clock = Arc<dyn Fn() -> OffsetDateTime + Send + Sync>;

/// Whether a tenant was deleted.
pub type Closed = Arc<dyn Fn(&TenantId) -> bool + Send + Sync>;

/// What a queue is made of.
#[expect(missing_debug_implementations, reason = "it lives for one call and holds a closure")]
pub struct Parts {
    /// The limits.
    pub config: Config,
    /// Where the records are.
    pub store: Arc<dyn Store>,
    /// Names this run of this node; another run of the same one has another name.
    pub node: String,
    /// No other node works on this store: what earlier runs had begun is taken back at once, without waiting for
    /// their leases. True when the lock of the data directory is ours.
    pub is_alone: bool,
    /// Who does the work here; more can be registered until the queue is started.
    pub handlers: Vec<Arc<dyn Handler>>,
    /// The wall clock.
    pub clock: Clock,
    /// What `/metrics` shows.
    pub metrics: Arc<Metrics>,
    /// Whether we are about to stop; awaits the tasks.
    pub shutdown: Shutdown,
}

/// The queue. Cheap to clone; clones share everything.
#[derive(Clone)]
pub struct Queue {
    inner: Arc<Inner>,
}

struct Inner {
    config: Config,
    store: Arc<dyn Store>,
    node: Arc<str>,
    is_alone: bool,
    clock: Clock,
    metrics: Arc<Metrics>,
    shutdown: Shutdown,
    /// Jobs run here, whatever runtime they were added from.
    runtime: Handle,
    handlers: RwLock<BTreeMap<Arc<str>, Registered>>,
    external: Vec<Arc<str>>,
    /// Never held across an await.
    board: Mutex<Board>,
    names: Mutex<Names>,
    /// Held while it is decided whose a `dedupe` text is, and until that is written; a tenant has one of them.
    texts: Vec<tokio::sync::Mutex<()>>,
    timetable: Mutex<Timetable>,
    /// Somebody may find something to do.
    wake: Arc<Notify>,
    positions: watch::Sender<u64>,
    /// No job is begun any more.
    stopping: CancellationToken,
    /// Running jobs are dropped.
    dropping: CancellationToken,
    /// Nothing happens any more.
    stopped: CancellationToken,
    tasks: TaskTracker,
    follower: Mutex<Option<AbortOnDropHandle<()>>>,
    /// Tenants for whom nothing is begun, because they were deleted.
    closed: OnceLock<Closed>,
}

/// Who does a kind, and how; asked once.
#[derive(Clone)]
struct Registered {
    handler: Arc<dyn Handler>,
    policy: Policy,
}

impl fmt::Debug for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queue").field("node", &self.inner.node).finish_non_exhaustive()
    }
}

impl Queue {
    /// Loads every job and follows the store, on the caller's runtime. Nothing runs before [`start`](Self::start).
    pub async fn open(parts: Parts) -> Result<Self, Error> {
        let (news, _) = broadcast::channel(QUEUED_CHANGES);
        let wake = Arc::<Notify>::default();
        let queue = Self {
            inner: Arc::new(Inner {
                external: parts.config.external_kinds.iter().map(|kind| kind.as_str().into()).collect(),
                config: parts.config,
                store: parts.store,
                node: parts.node.into(),
                is_alone: parts.is_alone,
                clock: parts.clock,
                metrics: parts.metrics,
                shutdown: parts.shutdown,
                runtime: Handle::current(),
                handlers: RwLock::default(),
                board: Mutex::new(Board::new(news, Arc::clone(&wake))),
                names: Mutex::default(),
                texts: std::iter::repeat_with(tokio::sync::Mutex::default).take(add::TEXT_LOCKS).collect(),
                timetable: Mutex::default(),
                wake,
                positions: watch::Sender::new(0),
                stopping: CancellationToken::new(),
                dropping: CancellationToken::new(),
                stopped: CancellationToken::new(),
                tasks: TaskTracker::new(),
                follower: Mutex::default(),
                closed: OnceLock::new(),
            }),
        };
        for handler in parts.handlers {
            queue.register(handler);
        }
        let follower = queue.follow().await?;
        *queue.inner.follower.lock().unwrap_or_else(PoisonError::into_inner) = Some(follower);
        Ok(queue)
    }

    /// Registers who does the jobs of a kind, before [`start`](Self::start). A second one of a kind replaces the first.
    pub fn register(&self, handler: Arc<dyn Handler>) {
        let kind = handler.kind();
        if !config::is_kind(kind) || self.inner.external.iter().any(|external| &**external == kind) {
            tracing::error!(job.kind = kind, "not the name of a kind, or one that is in queue.external_kinds");
            return;
        }
        let registered = Registered { policy: handler.policy(), handler };
        self.inner.handlers.write().unwrap_or_else(PoisonError::into_inner).insert(kind.into(), registered);
    }

    /// Says which tenants nothing is added for any more. Told once, before [`start`](Self::start).
    pub fn close_to(&self, closed: Closed) {
        drop(self.inner.closed.set(closed));
    }

    fn is_closed_to(&self, tenant: &TenantId) -> bool {
        self.inner.closed.get().is_some_and(|closed| closed(tenant))
    }

    /// Every change of a job from now on. Bounded: who falls behind gets `Lagged` and looks at the jobs again.
    pub fn changes(&self) -> broadcast::Receiver<Change> {
        self.board().news.subscribe()
    }

    /// Cancelled when [`stop`](Self::stop) is over: what changed until then is among the changes already.
    pub fn stopped(&self) -> CancellationToken {
        self.inner.stopped.clone()
    }

    /// Changes some times a second while positions may have changed.
    pub fn positions_changed(&self) -> watch::Receiver<u64> {
        self.inner.positions.subscribe()
    }

    /// The limits.
    pub fn config(&self) -> &Config {
        &self.inner.config
    }

    fn board(&self) -> MutexGuard<'_, Board> {
        self.inner.board.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> OffsetDateTime {
        (self.inner.clock)()
    }

    fn handler(&self, kind: &str) -> Option<Arc<dyn Handler>> {
        let handlers = self.inner.handlers.read().unwrap_or_else(PoisonError::into_inner);
        handlers.get(kind).map(|registered| Arc::clone(&registered.handler))
    }

    fn policy(&self, kind: &str) -> Policy {
        let handlers = self.inner.handlers.read().unwrap_or_else(PoisonError::into_inner);
        handlers.get(kind).map(|registered| registered.policy.clone()).unwrap_or_default()
    }

    /// The kinds that are done in this process.
    fn kinds_here(&self) -> Vec<Arc<str>> {
        self.inner.handlers.read().unwrap_or_else(PoisonError::into_inner).keys().cloned().collect()
    }

    /// How many jobs of a kind may run at once: in all, and for one tenant.
    fn room(&self, kind: &str) -> (usize, usize) {
        let policy = self.policy(kind);
        (policy.concurrency.unwrap_or(usize::MAX), policy.per_tenant.unwrap_or(self.inner.config.per_tenant))
    }

    /// Whether jobs of the kind can be added.
    pub fn knows(&self, kind: &str) -> bool {
        self.is_external(kind) || self.handler(kind).is_some()
    }

    /// Whether the kind is done by workers outside this program.
    pub fn is_external(&self, kind: &str) -> bool {
        self.inner.external.iter().any(|external| &**external == kind)
    }
}

#[cfg(test)]
mod tests;
