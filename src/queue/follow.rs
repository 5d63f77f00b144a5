//! Following the store: jobs, pauses and schedules of all nodes come in here.

use std::sync::Arc;
use std::sync::Weak;
use std::time::Duration;

use tokio_util::task::AbortOnDropHandle;

use super::Error;
use super::Inner;
use super::Job;
use super::JobId;
use super::Queue;
use super::board::Source;
use super::decide;
use super::operate;
use super::records;
use super::schedule;
use crate::store;
use crate::store::Change;
use crate::store::Entry;
use crate::store::Revision;
use crate::store::Watch;

/// Wait before a watch that could not be started is tried again.
const RESYNC_PAUSE: Duration = Duration::from_secs(1);

impl Queue {
    /// Loads everything and starts following.
    pub(super) async fn follow(&self) -> Result<AbortOnDropHandle<()>, Error> {
        let mut watches = Vec::new();
        for prefix in [records::PREFIX, operate::PREFIX, schedule::PREFIX] {
            let mut watch = self.inner.store.watch(prefix).await?;
            self.load(prefix, watch.revision(), &watch.take_snapshot());
            watches.push((prefix, watch));
        }
        // The tasks must not keep the queue alive.
        let inner = Arc::downgrade(&self.inner);
        let task = async move {
            let each = watches.into_iter().map(|(prefix, watch)| follow(inner.clone(), prefix, watch));
            futures_util::future::join_all(each).await;
        };
        Ok(AbortOnDropHandle::new(tokio::spawn(task)))
    }

    fn load(&self, prefix: &'static str, moment: Revision, entries: &[Entry]) {
        if prefix == records::PREFIX {
            let now = self.now();
            let read = |entry: &Entry| {
                let job = decide::timed(records::decode(entry)?, now);
                Some((job.id, entry.revision, Arc::new(job)))
            };
            let mut jobs: Vec<(JobId, Revision, Arc<Job>)> = entries.iter().filter_map(read).collect();
            // Tenants get their turns in the order in which they came.
            jobs.sort_unstable_by_key(|(_, _, job)| job.sequence());
            self.board().resync(moment, jobs);
        } else if prefix == operate::PREFIX {
            self.load_pauses(entries);
        } else {
            self.timetable().load(entries);
        }
    }

    fn note(&self, prefix: &'static str, change: &Change) {
        if prefix == operate::PREFIX {
            return self.note_pause(change);
        }
        if prefix == schedule::PREFIX {
            return self.timetable().note(change);
        }
        let Some(id) = records::id_in(change.key()) else { return };
        let mut board = self.board();
        // What this node wrote itself is known already and need not be read.
        if board.passes(&id, change.revision()) {
            return;
        }
        let job = match change {
            Change::Put(entry) => records::decode(entry).map(|job| Arc::new(decide::timed(job, self.now()))),
            Change::Delete { .. } => None,
        };
        board.apply(Source::Watch, id, change.revision(), job);
    }
}

async fn follow(inner: Weak<Inner>, prefix: &'static str, mut watch: Watch) {
    loop {
        let news = watch.next().await;
        let Some(queue) = inner.upgrade().map(|inner| Queue { inner }) else { return };
        match news {
            Ok(change) => queue.note(prefix, &change),
            Err(store::Error::Lagged) => match rewatch(&queue, prefix).await {
                Some(fresh) => {
                    watch = fresh;
                    queue.load(prefix, watch.revision(), &watch.take_snapshot());
                }
                None => return,
            },
            Err(_) => return,
        }
    }
}

/// A new watch after one that lagged; none when the store is closed.
async fn rewatch(queue: &Queue, prefix: &'static str) -> Option<Watch> {
    loop {
        match queue.inner.store.watch(prefix).await {
            Ok(watch) => {
                tracing::warn!(store.prefix = prefix, "the queue fell behind the store and loads its records anew");
                return Some(watch);
            }
            Err(store::Error::Closed) => return None,
            Err(error) => {
                tracing::error!(store.prefix = prefix, %error, "cannot follow the store; trying again");
                tokio::time::sleep(RESYNC_PAUSE).await;
            }
        }
    }
}
