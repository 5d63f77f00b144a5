//! Jailers that wait for their order, so that a start does not have to wait for them.
//!
//! Starting this program again, until it is ready to do something, takes one to two milliseconds of a wake that a
//! client waits for. A few jailers are therefore started ahead, while nobody waits: each has nothing yet but an empty
//! environment and a pipe, reads its order from that, and does from there on exactly what any other does. One that is not
//! used goes when the pipe closes, whatever became of us. Whoever finds none starts a jailer of its own.

use std::io;
use std::io::Write;
use std::path::PathBuf;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::supervisor::fleet::Fleet;
use crate::supervisor::jail;

/// How long after a start the next jailer is made: the client's first request goes first.
const PAUSE: Duration = Duration::from_millis(20);

/// The jailers that wait.
#[derive(Debug)]
pub(crate) struct Standby {
    jailer: PathBuf,
    most: usize,
    waiting: Mutex<Vec<Child>>,
    is_closed: AtomicBool,
    is_filling: AtomicBool,
}

impl Standby {
    /// None wait yet; at most `most` ever do.
    pub(crate) fn new(jailer: PathBuf, most: usize) -> Self {
        let (is_closed, is_filling) = (AtomicBool::new(false), AtomicBool::new(false));
        Self { jailer, most, waiting: Mutex::default(), is_closed, is_filling }
    }

    /// One that is told what to become, if one waits.
    pub(crate) fn tell(&self, order: &jail::Order) -> io::Result<Option<Child>> {
        let order = serde_json::to_vec(order)?;
        loop {
            let Some(mut child) = self.list().pop() else { return Ok(None) };
            // The pipe takes an order at once, and closing it is the end of the order.
            let told = child.stdin.take().map(|mut pipe| pipe.write_all(&order));
            if matches!(told, Some(Ok(()))) {
                return Ok(Some(child));
            }
            // It died while it waited.
            end(child);
        }
    }

    /// Starts those that are missing. Blocks for a `posix_spawn` each.
    fn fill(&self) {
        while self.list().len() < self.most && !self.is_closed.load(Ordering::SeqCst) {
            #[expect(clippy::disallowed_methods, reason = "one of the places that start instances")]
            let mut command = Command::new(&self.jailer);
            command.arg(jail::SUBCOMMAND).arg(jail::WAIT).env_clear();
            command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
            match command.spawn() {
                Ok(child) => self.list().push(child),
                Err(error) => return tracing::debug!(%error, "no jailer is started ahead"),
            }
        }
        if self.is_closed.load(Ordering::SeqCst) {
            self.close();
        }
    }

    /// Whole at any moment: nothing that can fail is done under the lock.
    fn list(&self) -> MutexGuard<'_, Vec<Child>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends those that wait, for good. Blocks for moments.
    fn close(&self) {
        self.is_closed.store(true, Ordering::SeqCst);
        let waiting = std::mem::take(&mut *self.list());
        waiting.into_iter().for_each(end);
    }
}

fn end(mut child: Child) {
    drop(child.stdin.take());
    // It holds nothing and is nobody yet; after SIGKILL it takes as long as the kernel needs.
    if child.kill().and_then(|()| child.wait()).is_err() {
        tracing::debug!("a waiting jailer could not be ended");
    }
}

impl Fleet {
    /// Sees to it that jailers wait again, in a moment.
    pub(crate) fn stand_by(self: &Arc<Self>) {
        if self.standby.is_filling.swap(true, Ordering::SeqCst) || self.stopping.is_cancelled() {
            return;
        }
        let fleet = Arc::clone(self);
        self.tasks.spawn_on(
            async move {
                tokio::select! {
                    () = tokio::time::sleep(PAUSE) => {}
                    () = fleet.stopping.cancelled() => return,
                }
                let filling = Arc::clone(&fleet);
                fleet.standby.is_filling.store(false, Ordering::SeqCst);
                drop(tokio::task::spawn_blocking(move || filling.standby.fill()).await);
            },
            &self.runtime,
        );
    }

    /// Ends the jailers that wait.
    pub(crate) async fn stand_down(self: &Arc<Self>) {
        let fleet = Arc::clone(self);
        drop(tokio::task::spawn_blocking(move || fleet.standby.close()).await);
    }
}
