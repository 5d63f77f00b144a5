//! Old events go: from memory and from the disk, where only the newest of a quiet topic would be left for ever.
//!
//! Invariant: before the last record of a topic goes, `events.head` says that events up to there may be gone of topics
//! that have no record, and so does the memory.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use futures_util::future::join_all;

use super::Topic;
use super::event::Stored;
use super::log::Log;
use super::log::Segment;
use super::writer::note_swept;
use crate::store;
use crate::store::Revision;

/// Names of records that are looked through at once, and records that are deleted at once.
const PAGE: usize = 1_000;

/// Records of one topic, in order, that are known by name only.
type Named = Vec<store::Name>;

impl Log {
    /// Forgets what is older than the retention, on disk and in memory, and topics that nobody holds. The newest event
    /// of a topic says what came before, so it stays as long as somebody holds the topic, and goes when `swept` says it.
    pub(super) async fn sweep(&self, now_ms: i64) {
        let moment = self.oldest(now_ms);
        let (mut outdated, mut quiet) = (Vec::new(), Vec::new());
        self.topics.retain(|_, topic| {
            let Some(mut kept) = topic.kept() else { return true };
            kept.ring.expire(moment);
            outdated.extend(kept.outdated());
            let is_quiet = kept.ring.newest_at().is_none_or(|at| at < moment);
            // Who is about to subscribe holds it already, and who looks it up later reads it from disk.
            let is_over = is_quiet && Arc::strong_count(topic) == 1;
            if is_over {
                quiet.extend(kept.segments.drain(..));
            }
            !is_over
        });
        self.forget(outdated).await;
        self.forget_all(quiet).await;
    }

    /// What was published before this moment is old.
    fn oldest(&self, now_ms: i64) -> i64 {
        now_ms.saturating_sub(i64::try_from(self.ttl.as_millis()).unwrap_or(i64::MAX))
    }

    /// Forgets everything of some topics. Known limit: whoever comes back to any topic without records, and last heard
    /// something before that, is told to start anew even if nothing of it was missed.
    async fn forget_all(&self, segments: Vec<Segment>) {
        let Some(last) = segments.iter().map(|segment| segment.last).max() else { return };
        // First on disk, then in memory, then the deed: a topic without records is at no time taken for one that never
        // had any.
        match note_swept(&*self.store, last).await {
            Ok(()) => {
                self.swept.fetch_max(last, Ordering::AcqRel);
                self.forget(segments).await;
            }
            // They are found again by the next look through the disk.
            Err(error) => tracing::warn!(%error, "forget the events of quiet topics"),
        }
    }

    pub(super) async fn forget(&self, segments: Vec<Segment>) {
        for some in segments.chunks(PAGE) {
            let deletes = some.iter().map(|segment| self.store.delete(&segment.key, segment.revision));
            for outcome in join_all(deletes).await {
                // One that stays is found again when its topic is loaded.
                if let Err(error) = outcome
                    && !error.is_refusal()
                {
                    tracing::debug!(%error, "forget old events");
                }
            }
        }
    }

    /// Looks through what is on disk: topics that nobody touched since an earlier run would stay for ever. One topic at a
    /// time, and of its records only as many are read as are old, and one more.
    pub(super) async fn sweep_disk(&self, now_ms: i64) -> Result<(), store::Error> {
        let moment = self.oldest(now_ms);
        let mut after = String::new();
        let mut open: Option<(Topic, Named)> = None;
        loop {
            let page = self.store.names("event.", &after, PAGE).await?;
            let Some((last, _)) = page.last() else { break };
            last.as_ref().clone_into(&mut after);
            for (key, revision) in page {
                let Some(topic) = Topic::of_key(&key) else { continue };
                match &mut open {
                    Some((before, records)) if *before == topic => records.push((key, revision)),
                    _ => {
                        if let Some((before, records)) = open.replace((topic, vec![(key, revision)])) {
                            self.sweep_topic(&before, records, moment).await?;
                        }
                    }
                }
            }
        }
        match open {
            Some((topic, records)) => self.sweep_topic(&topic, records, moment).await,
            None => Ok(()),
        }
    }

    async fn sweep_topic(&self, topic: &Topic, records: Named, moment: i64) -> Result<(), store::Error> {
        tokio::task::yield_now().await;
        // What is in memory is swept from there.
        if self.topics.contains_key(topic) {
            return Ok(());
        }
        let Some((newest, _)) = records.last() else { return Ok(()) };
        // What cannot be read is left as it is.
        let Some(last) = self.last_in(topic, newest).await? else { return Ok(()) };
        let segment = |(key, revision): (Arc<str>, Revision)| Segment { key: key.to_string(), revision, last: last.0 };
        if last.1 < moment {
            self.forget_all(records.into_iter().map(segment).collect()).await;
            return Ok(());
        }
        let mut outdated = Vec::new();
        let older = records.len().saturating_sub(1);
        for (key, revision) in records.into_iter().take(older) {
            if self.last_in(topic, &key).await?.is_some_and(|(_, at)| at >= moment) {
                break;
            }
            outdated.push(segment((key, revision)));
        }
        self.forget(outdated).await;
        Ok(())
    }

    /// The offset and the time of the last event in a record; none if it cannot be read.
    async fn last_in(&self, topic: &Topic, key: &str) -> Result<Option<(u64, i64)>, store::Error> {
        let entry = self.store.get(key).await?;
        let stored = entry.and_then(|entry| serde_json::from_slice::<Vec<Stored>>(&entry.value).ok());
        let event = stored.and_then(|mut stored| stored.pop()).and_then(|stored| stored.into_event(topic));
        Ok(event.map(|event| (event.offset, event.at_ms)))
    }
}
