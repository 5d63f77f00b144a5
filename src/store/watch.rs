//! A watch: a snapshot, then every change after it, in order and without a gap.
//!
//! The feed is registered *before* the snapshot is read, so a write meanwhile is in the snapshot, in the feed, or in
//! both; what is in both is recognised by its revision and passed once. A feed is bounded in changes and bytes; a
//! reader that lets it fill up gets what fitted, which is still gapless, and then [`Error::Lagged`].

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;

use tokio::sync::mpsc;

use super::Change;
use super::Entry;
use super::Error;
use super::Revision;

/// Changes that may wait for one reader.
const QUEUED_CHANGES: usize = 16_384;
/// Bytes of values that may wait for one reader.
const QUEUED_BYTES: usize = 64 << 20;

/// What the two ends of a feed share.
#[derive(Debug, Default)]
struct Gauge {
    lagged: AtomicBool,
    bytes: AtomicUsize,
}

fn weight(change: &Change) -> usize {
    match change {
        Change::Put(entry) => entry.value.len(),
        Change::Delete { .. } => 0,
    }
}

/// The records under a prefix as of one moment, then every change after it. Ends when dropped.
#[derive(Debug)]
pub struct Watch {
    snapshot: Vec<Entry>,
    revision: Revision,
    feed: Feed,
}

impl Watch {
    /// Joins a feed and a snapshot that was read after the feed was registered.
    pub(super) fn new(snapshot: Vec<Entry>, revision: Revision, feed: Feed) -> Self {
        Self { snapshot, revision, feed }
    }

    /// The records at the start of the watch, in key order. Empty when taken before.
    pub fn take_snapshot(&mut self) -> Vec<Entry> {
        std::mem::take(&mut self.snapshot)
    }

    /// The moment of the snapshot: [`next`](Self::next) gives only changes after it.
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// The next change; waits for one. [`Error::Lagged`]: changes were missed, watch again. [`Error::Closed`]: the
    /// store was closed and all its changes were seen. Nothing is lost when the future is dropped.
    pub async fn next(&mut self) -> Result<Change, Error> {
        loop {
            let change = self.feed.next().await?;
            if change.revision() > self.revision {
                return Ok(change);
            }
        }
    }
}

/// The reading end of a feed.
#[derive(Debug)]
pub(super) struct Feed {
    changes: mpsc::Receiver<Change>,
    gauge: Arc<Gauge>,
}

impl Feed {
    async fn next(&mut self) -> Result<Change, Error> {
        if let Some(change) = self.changes.recv().await {
            self.gauge.bytes.fetch_sub(weight(&change), Ordering::Relaxed);
            return Ok(change);
        }
        Err(if self.gauge.lagged.load(Ordering::Acquire) { Error::Lagged } else { Error::Closed })
    }
}

#[derive(Debug)]
struct Sender {
    prefix: Box<str>,
    changes: mpsc::Sender<Change>,
    gauge: Arc<Gauge>,
}

impl Sender {
    /// Passes a change on; false when the reader is gone or too slow, and the feed is over.
    fn offer(&self, change: &Change) -> bool {
        if !change.key().starts_with(&*self.prefix) {
            return !self.changes.is_closed();
        }
        let weight = weight(change);
        let waiting = self.gauge.bytes.fetch_add(weight, Ordering::Relaxed);
        let fits = waiting == 0 || waiting + weight <= QUEUED_BYTES;
        if fits && self.changes.try_send(change.clone()).is_ok() {
            return true;
        }
        self.gauge.lagged.store(true, Ordering::Release);
        false
    }
}

/// All feeds of a store. The committing thread publishes to it, in revision order.
#[derive(Debug)]
pub(super) struct Watchers {
    /// None once the store is closed.
    senders: Mutex<Option<Vec<Sender>>>,
    capacity: usize,
}

impl Default for Watchers {
    fn default() -> Self {
        Self { senders: Mutex::new(Some(Vec::new())), capacity: QUEUED_CHANGES }
    }
}

impl Watchers {
    /// Registers a feed: it gets every change that is published from now on.
    pub(super) fn register(&self, prefix: &str) -> Result<Feed, Error> {
        let (sender, changes) = mpsc::channel(self.capacity);
        let gauge = Arc::<Gauge>::default();
        let mut senders = self.senders.lock().unwrap_or_else(PoisonError::into_inner);
        let open = senders.as_mut().ok_or(Error::Closed)?;
        open.push(Sender { prefix: prefix.into(), changes: sender, gauge: Arc::clone(&gauge) });
        Ok(Feed { changes, gauge })
    }

    /// Passes committed changes to all feeds, and ends the feeds of readers that are gone or too slow.
    pub(super) fn publish(&self, changes: &[Change]) {
        if let Some(open) = self.senders.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
            open.retain(|sender| changes.iter().all(|change| sender.offer(change)));
        }
    }

    /// Ends all feeds once they are read to the end; new ones are refused.
    pub(super) fn close(&self) {
        self.senders.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn put(key: &str, revision: u64) -> Change {
        Change::Put(Entry { key: key.into(), value: Bytes::new(), revision: Revision(revision) })
    }

    fn watchers(capacity: usize) -> Watchers {
        Watchers { capacity, ..Watchers::default() }
    }

    #[tokio::test]
    async fn a_slow_reader_gets_a_gapless_start_and_is_then_told() {
        let watchers = watchers(2);
        let mut watch = Watch::new(Vec::new(), Revision(0), watchers.register("a.").unwrap());
        watchers.publish(&[put("a.1", 1), put("b.1", 2), put("a.2", 3), put("a.3", 4), put("a.4", 5)]);
        assert_eq!(watch.next().await.unwrap().revision(), Revision(1));
        assert_eq!(watch.next().await.unwrap().revision(), Revision(3));
        assert!(matches!(watch.next().await, Err(Error::Lagged)));
    }

    #[tokio::test]
    async fn a_change_that_is_in_the_snapshot_is_not_repeated() {
        let watchers = watchers(8);
        let mut watch = Watch::new(Vec::new(), Revision(2), watchers.register("").unwrap());
        watchers.publish(&[put("a.1", 1), put("a.1", 2), put("a.1", 3)]);
        watchers.close();
        assert_eq!(watch.next().await.unwrap().revision(), Revision(3));
        assert!(matches!(watch.next().await, Err(Error::Closed)));
        assert!(matches!(watchers.register(""), Err(Error::Closed)));
    }

    #[tokio::test]
    async fn waiting_bytes_are_bounded_too() {
        let watchers = watchers(1_000);
        let mut watch = Watch::new(Vec::new(), Revision(0), watchers.register("").unwrap());
        let value = Bytes::from(vec![0; 1 << 20]);
        for revision in 1..=65 {
            let entry = Entry { key: "a".into(), value: value.clone(), revision: Revision(revision) };
            watchers.publish(&[Change::Put(entry)]);
        }
        for _ in 0..64 {
            assert!(watch.next().await.is_ok());
        }
        assert!(matches!(watch.next().await, Err(Error::Lagged)));
    }
}
