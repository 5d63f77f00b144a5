//! Who gets what was logged: one queue for each worker thread that has sockets.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;

use tokio::sync::mpsc;

use super::event::Event;

/// Groups of events that may wait for one worker. One that is this far behind has lost its place: its sockets are told
/// to resume.
const QUEUED: usize = 1_024;

/// Events that were logged together.
pub(super) type Batch = Arc<[Arc<Event>]>;

/// The sending ends.
#[derive(Debug, Default)]
pub(super) struct Sinks(Mutex<Vec<Sink>>);

#[derive(Debug)]
struct Sink {
    batches: mpsc::Sender<Batch>,
    lost: Arc<AtomicBool>,
}

/// The receiving end of one worker.
#[derive(Debug)]
pub(super) struct Drain {
    batches: mpsc::Receiver<Batch>,
    lost: Arc<AtomicBool>,
}

/// What a worker gets.
#[derive(Debug)]
pub(super) enum News {
    /// Events.
    Events(Vec<Batch>),
    /// Something was missed.
    Lost,
}

impl Sinks {
    /// Adds a worker.
    pub(super) fn join(&self) -> Drain {
        let (sender, batches) = mpsc::channel(QUEUED);
        let lost = Arc::<AtomicBool>::default();
        let mut sinks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        sinks.retain(|sink| !sink.batches.is_closed());
        sinks.push(Sink { batches: sender, lost: Arc::clone(&lost) });
        Drain { batches, lost }
    }

    /// Passes events to every worker.
    pub(super) fn pass(&self, batch: &Batch) {
        for sink in self.0.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            if sink.batches.try_send(Arc::clone(batch)).is_err() {
                sink.lost.store(true, Ordering::Release);
            }
        }
    }

    /// Tells every worker that something is missing.
    pub(super) fn reset(&self) {
        for sink in self.0.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            sink.lost.store(true, Ordering::Release);
            // An empty batch wakes it; one that is too busy for that looks anyway.
            let _ = sink.batches.try_send(Arc::new([]));
        }
    }
}

impl Drain {
    /// Everything that came since; waits for something. None when the log is gone.
    pub(super) async fn next(&mut self) -> Option<News> {
        let mut batches = Vec::new();
        if self.batches.recv_many(&mut batches, QUEUED).await == 0 {
            return None;
        }
        Some(if self.lost.swap(false, Ordering::AcqRel) { News::Lost } else { News::Events(batches) })
    }

    /// What came since, if anything; does not wait.
    pub(super) fn ready(&mut self) -> Option<News> {
        let batches: Vec<Batch> = std::iter::from_fn(|| self.batches.try_recv().ok()).take(QUEUED).collect();
        if self.lost.swap(false, Ordering::AcqRel) {
            return Some(News::Lost);
        }
        (!batches.is_empty()).then_some(News::Events(batches))
    }
}
