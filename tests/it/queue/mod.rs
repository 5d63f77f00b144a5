//! The job queue on the real store: one node, several nodes, workers outside, crashes and power cuts.

use std::path::Path;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::AtomicI64;
use std::sync::atomic::Ordering;
use std::time::Duration;

use pocketfleet::config::Config;
use pocketfleet::config::Flags;
use pocketfleet::ids::TenantId;
use pocketfleet::ids::UserId;
use pocketfleet::queue;
use pocketfleet::queue::Handler;
use pocketfleet::queue::Job;
use pocketfleet::queue::JobId;
use pocketfleet::queue::NewJob;
use pocketfleet::queue::Outcome;
use pocketfleet::queue::Parts;
use pocketfleet::queue::Policy;
use pocketfleet::queue::Queue;
use pocketfleet::queue::Run;
use pocketfleet::queue::State;
use pocketfleet::shutdown::Shutdown;
use pocketfleet::store::BoxFuture;
use pocketfleet::store::Store;
use pocketfleet::store::sqlite::ControlDatabase;
use pocketfleet::telemetry::Metrics;
use serde_json::Value;
use serde_json::json;
use time::OffsetDateTime;

use crate::support::eventually;

mod adding;
mod crash;
mod nodes;
mod operating;
mod power;
mod running;
mod schedules;
mod workers;

/// A kind that handlers of tests do, and one for workers outside.
const WORK: &str = "work";
const OUTSIDE: &str = "outside";

/// A handler made of a closure.
struct Does<F> {
    policy: Policy,
    run: F,
}

impl<F, W> Handler for Does<F>
where
    F: Fn(Run) -> W + Send + Sync + 'static,
    W: Future<Output = Outcome> + Send + 'static,
{
    fn kind(&self) -> &'static str {
        WORK
    }

    fn policy(&self) -> Policy {
        self.policy.clone()
    }

    fn run(&self, run: Run) -> BoxFuture<'static, Outcome> {
        Box::pin((self.run)(run))
    }
}

/// Repeats at once, so that nothing waits for chance.
fn at_once() -> Policy {
    Policy { backoff_base: Duration::from_millis(1), backoff_max: Duration::from_millis(2), ..Policy::default() }
}

fn does<F, W>(run: F) -> Arc<dyn Handler>
where
    F: Fn(Run) -> W + Send + Sync + 'static,
    W: Future<Output = Outcome> + Send + 'static,
{
    Arc::new(Does { policy: at_once(), run })
}

/// Does nothing, successfully.
fn idle() -> Arc<dyn Handler> {
    does(async |_| Outcome::Done(Value::Null))
}

/// Waits until it is told to stop.
fn waits() -> Arc<dyn Handler> {
    does(async |run: Run| {
        run.cancelled().cancelled().await;
        Outcome::Cancelled
    })
}

/// A wall clock that tests set.
#[derive(Clone, Default)]
struct Wall(Arc<AtomicI64>);

impl Wall {
    fn now(&self) -> OffsetDateTime {
        OffsetDateTime::now_utc() + time::Duration::seconds(self.0.load(Ordering::SeqCst))
    }

    fn jump(&self, seconds: i64) {
        self.0.fetch_add(seconds, Ordering::SeqCst);
    }
}

fn config() -> queue::Config {
    queue::Config {
        external_kinds: vec![OUTSIDE.to_owned()],
        lease: Duration::from_secs(1),
        cancel_grace: Duration::from_millis(50),
        drain_timeout: Duration::from_millis(500),
        ..Config::load(&Flags::default()).unwrap().queue
    }
}

/// One node of a queue.
struct Setup {
    store: Arc<dyn Store>,
    node: String,
    is_alone: bool,
    config: queue::Config,
    wall: Wall,
    handlers: Vec<Arc<dyn Handler>>,
}

impl Setup {
    fn on(store: &Arc<dyn Store>) -> Self {
        Self {
            store: Arc::clone(store),
            node: format!("n{}", rand::random::<u64>()),
            is_alone: true,
            config: config(),
            wall: Wall::default(),
            handlers: vec![idle()],
        }
    }

    fn handler(self, handler: Arc<dyn Handler>) -> Self {
        Self { handlers: vec![handler], ..self }
    }

    /// Loaded, but nothing runs.
    async fn open(&self) -> Queue {
        let wall = self.wall.clone();
        self.open_by(Arc::new(move || wall.now())).await
    }

    /// By a clock of its own.
    async fn open_by(&self, clock: queue::Clock) -> Queue {
        let parts = Parts {
            config: self.config.clone(),
            store: Arc::clone(&self.store),
            node: self.node.clone(),
            is_alone: self.is_alone,
            handlers: self.handlers.clone(),
            clock,
            metrics: Metrics::new(),
            shutdown: Shutdown::new(),
        };
        Queue::open(parts).await.unwrap()
    }

    async fn start(&self) -> Queue {
        let queue = self.open().await;
        queue.start().await.unwrap();
        queue
    }
}

fn store(folder: &Path) -> Arc<dyn Store> {
    Arc::new(ControlDatabase::open(&folder.join("control.db")).unwrap())
}

fn tenant(number: usize) -> TenantId {
    TenantId::parse(&format!("t{number}")).unwrap()
}

fn new_job(owner: usize) -> NewJob {
    NewJob::new(WORK, tenant(owner), UserId::parse("u1").unwrap(), json!({ "owner": owner }))
}

fn now() -> OffsetDateTime {
    OffsetDateTime::now_utc()
}

async fn add(queue: &Queue, job: NewJob) -> Arc<Job> {
    let mut added = queue.add(vec![job], now()).await.unwrap();
    added.pop().unwrap().job
}

/// The job once it is in the state.
async fn reaches(queue: &Queue, id: &JobId, state: State) -> Arc<Job> {
    eventually(state.as_str(), async || queue.job(id).filter(|job| job.state == state)).await
}

/// A wall clock that stands.
#[derive(Clone)]
struct Stopped(Arc<Mutex<OffsetDateTime>>);

impl Stopped {
    fn now() -> Self {
        Self(Arc::new(Mutex::new(now())))
    }

    fn set(&self, to: OffsetDateTime) {
        *self.0.lock().unwrap() = to;
    }

    fn clock(&self) -> queue::Clock {
        let Self(at) = self.clone();
        Arc::new(move || *at.lock().unwrap())
    }
}

/// Notes whose jobs are said to come soon, and works until it is told to stop.
struct Foresees(Log<TenantId>);

impl Handler for Foresees {
    fn kind(&self) -> &'static str {
        WORK
    }

    fn policy(&self) -> Policy {
        Policy { per_tenant: Some(1), ..at_once() }
    }

    fn soon(&self, tenant: &TenantId) {
        self.0.note(tenant.clone());
    }

    fn run(&self, run: Run) -> BoxFuture<'static, Outcome> {
        Box::pin(async move {
            run.cancelled().cancelled().await;
            Outcome::Cancelled
        })
    }
}

/// What handlers did, in order.
#[derive(Clone)]
struct Log<T>(Arc<Mutex<Vec<T>>>);

impl<T> Default for Log<T> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<T: Clone> Log<T> {
    fn note(&self, event: T) {
        self.0.lock().unwrap().push(event);
    }

    fn events(&self) -> Vec<T> {
        self.0.lock().unwrap().clone()
    }
}
