//! Shutdown as a value: one token says "stop accepting", a second "stop now", a tracker knows who still runs.
//!
//! Nothing here is global. `app` makes one [`Shutdown`], hands clones to the components, and awaits the tracker.

use std::future::Future;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// A handle to the shutdown of this process; clones speak of the same one.
#[derive(Debug, Clone, Default)]
pub struct Shutdown {
    begun: CancellationToken,
    tasks: TaskTracker,
}

impl Shutdown {
    /// A shutdown that has not begun.
    pub fn new() -> Self {
        Self::default()
    }

    /// Tells every component to finish. Idempotent.
    pub fn begin(&self) {
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

    /// Resolves when the shutdown has begun and every task has ended.
    pub async fn finished(&self) {
        self.tasks.wait().await;
    }
}
