//! Shutdown as a value: a token says that it has begun, a tracker knows which tasks still run.
//!
//! Nothing here is global. `app` makes one [`Shutdown`], hands clones to the components, and awaits the tracker.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;

use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// A handle to the shutdown of this process; clones speak of the same one.
#[derive(Debug, Clone, Default)]
pub struct Shutdown {
    begun: CancellationToken,
    leaving: CancellationToken,
    /// The same, for a look at every request.
    has_left: Arc<AtomicBool>,
    tasks: TaskTracker,
}

impl Shutdown {
    /// A shutdown that has not begun.
    pub fn new() -> Self {
        Self::default()
    }

    /// Nobody new is let in from here on, while those who are here may still ask: what comes before
    /// [`begin`](Self::begin) where somebody else takes over the listener.
    pub fn leave(&self) {
        self.has_left.store(true, Ordering::Relaxed);
        self.leaving.cancel();
    }

    /// Whether nobody new is let in.
    pub fn is_leaving(&self) -> bool {
        self.has_left.load(Ordering::Relaxed)
    }

    /// Resolves when nobody new is let in any more.
    pub async fn left(&self) {
        self.leaving.cancelled().await;
    }

    /// Tells every component to finish. Idempotent.
    pub fn begin(&self) {
        self.leave();
        self.begun.cancel();
        self.tasks.close();
    }

    /// Whether [`begin`](Self::begin) was called.
    pub fn has_begun(&self) -> bool {
        self.begun.is_cancelled()
    }

    /// Resolves when the shutdown begins.
    pub async fn begun(&self) {
        self.begun.cancelled().await;
    }

    /// The token itself, for owned futures.
    pub fn token(&self) -> CancellationToken {
        self.begun.clone()
    }

    /// Runs a task that [`finished`](Self::finished) waits for, on the current runtime.
    pub fn spawn<F>(&self, task: F) -> tokio::task::JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        self.tasks.spawn(task)
    }

    /// The same on another runtime, for work that must outlive the one it was asked for on.
    pub fn spawn_on<F>(&self, task: F, runtime: &Handle) -> tokio::task::JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        self.tasks.spawn_on(task, runtime)
    }

    /// Resolves when the shutdown has begun and every task has ended.
    pub async fn finished(&self) {
        self.tasks.wait().await;
    }
}
