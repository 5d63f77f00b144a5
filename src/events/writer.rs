//! The one task that writes the log.
//!
//! It takes what is queued, gives offsets (one growing order for all topics, so that one number resumes any set of
//! them), and commits one record for each topic, all in one group. `events.head` holds the epoch and how far offsets are
//! reserved: after a crash they go on behind the reservation; numbers are skipped, never used twice.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join;
use serde::Deserialize;
use serde::Serialize;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::Position;
use super::Topic;
use super::event::Event;
use super::log::Log;
use super::log::Request;
use super::log::Segment;
use super::log::TopicLog;
use super::log::now_ms;
use crate::store;
use crate::store::Revision;
use crate::store::Store;

/// Messages that are committed together at most.
const GROUP: usize = 1_024;
/// Bytes of one record at most, well below what the store takes.
const RECORD_BYTES: usize = 768 << 10;
/// Offsets that are reserved at once.
const RESERVE: u64 = 1_000_000;
const HEAD: &str = "events.head";
/// How long a commit is tried before the epoch ends.
const ATTEMPTS: u32 = 40;
const PAUSE: Duration = Duration::from_millis(250);
/// Times that somebody else's write to the head is made way for.
const RIVALS: u32 = 1_000;

/// The record of the whole log.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Head {
    pub(super) epoch: String,
    /// Offsets up to here may have been given out.
    reserved: u64,
    /// Events up to here may be gone of topics that have no record.
    pub(super) swept: u64,
}

/// What the one writing task owns.
#[derive(Debug)]
pub(super) struct Writer {
    log: Arc<Log>,
    requests: mpsc::Receiver<Request>,
    head: Head,
    /// The epoch that began when something was lost, as long as it is not on disk. Nothing is logged before it is.
    unsaved_epoch: Option<String>,
    outdated: Vec<Segment>,
}

/// Reserves the next offsets, with a new epoch when asked or when there is none.
pub(super) async fn reserve(store: &dyn Store, epoch: Option<String>) -> Result<Head, store::Error> {
    loop {
        let found = store.get(HEAD).await?;
        let known = found.as_ref().and_then(|entry| serde_json::from_slice::<Head>(&entry.value).ok());
        let fresh = || Head { epoch: format!("{:016x}", rand::random::<u64>()), reserved: 0, swept: 0 };
        let mut head = known.unwrap_or_else(fresh);
        head.reserved += RESERVE;
        if let Some(epoch) = &epoch {
            head.epoch.clone_from(epoch);
        }
        let value = Bytes::from(serde_json::to_vec(&head).unwrap_or_default());
        let written = match found {
            Some(entry) => store.update(HEAD, value, entry.revision).await,
            None => store.create(HEAD, value).await,
        };
        match written {
            Ok(_) => return Ok(head),
            Err(error) if error.is_refusal() => tokio::task::yield_now().await,
            Err(error) => return Err(error),
        }
    }
}

/// Notes that events up to an offset may be gone of topics that have no record.
pub(super) async fn note_swept(store: &dyn Store, offset: u64) -> Result<(), store::Error> {
    for _ in 0..RIVALS {
        let Some(entry) = store.get(HEAD).await? else { return Err(store::Error::Stale) };
        let Ok(mut head) = serde_json::from_slice::<Head>(&entry.value) else { return Err(store::Error::Stale) };
        if head.swept >= offset {
            return Ok(());
        }
        head.swept = offset;
        let value = Bytes::from(serde_json::to_vec(&head).unwrap_or_default());
        match store.update(HEAD, value, entry.revision).await {
            Ok(_) => return Ok(()),
            Err(error) if error.is_refusal() => tokio::task::yield_now().await,
            Err(error) => return Err(error),
        }
    }
    Err(store::Error::Stale)
}

impl Head {
    /// The first offset of what was reserved last.
    pub(super) fn first(&self) -> u64 {
        self.reserved - RESERVE + 1
    }
}

impl Writer {
    pub(super) fn new(log: Arc<Log>, requests: mpsc::Receiver<Request>, head: Head) -> Self {
        Self { log, requests, head, unsaved_epoch: None, outdated: Vec::new() }
    }

    /// Runs until told to close, and then until everything queued is logged.
    pub(super) async fn run(mut self, closing: CancellationToken) {
        let mut queued = Vec::new();
        let mut is_closing = false;
        loop {
            tokio::select! {
                biased;
                () = closing.cancelled(), if !is_closing => {
                    is_closing = true;
                    self.requests.close();
                }
                count = self.requests.recv_many(&mut queued, GROUP) => {
                    if count == 0 {
                        // The next run must not go on with an epoch that has a hole.
                        if self.save_epoch().await.is_err() {
                            tracing::error!("the end of an epoch of events cannot be written down");
                        }
                        let outdated = std::mem::take(&mut self.outdated);
                        return self.log.forget(outdated).await;
                    }
                    self.log.committing.store(true, Ordering::Release);
                    self.commit(coalesce(std::mem::take(&mut queued))).await;
                    self.log.committing.store(false, Ordering::Release);
                }
            }
        }
    }

    async fn commit(&mut self, requests: Vec<Request>) {
        let mut topics: HashMap<Topic, (Arc<TopicLog>, u64)> = HashMap::new();
        for request in &requests {
            if topics.contains_key(&request.topic) {
                continue;
            }
            let Ok(topic) = self.log.topic(&request.topic).await else {
                return self.fail("the log of a topic cannot be read").await;
            };
            let head = topic.head();
            topics.insert(request.topic.clone(), (topic, head));
        }
        if self.reserve(requests.len() as u64).await.is_err() {
            return self.fail("offsets cannot be reserved").await;
        }
        let at_ms = now_ms();
        let mut offset = self.log.next.load(Ordering::Acquire);
        let mut events = Vec::with_capacity(requests.len());
        let mut waiting = Vec::new();
        for Request { topic, message, logged } in requests {
            let Some((_, head)) = topics.get_mut(&topic) else { continue };
            events.push(Arc::new(Event::new(&topic, offset, *head, at_ms, message)));
            waiting.extend(logged.map(|logged| (logged, offset)));
            *head = offset;
            offset += 1;
        }
        let Some(segments) = self.store(&events).await else {
            return self.fail("events cannot be written").await;
        };
        for (event, segment) in events.iter().zip(segments) {
            let Some((topic, _)) = topics.get(&event.topic) else { continue };
            let Some(mut kept) = topic.kept() else { continue };
            kept.ring.push(Arc::clone(event));
            kept.segments.extend(segment);
            let old = kept.outdated();
            drop(kept);
            self.outdated.extend(old);
        }
        // In this order: whoever reads `newest` finds everything up to there in the rings, and whoever listened before
        // reading it is told of everything after it.
        self.log.next.store(offset, Ordering::Release);
        for event in &events {
            if let Some((topic, _)) = topics.get(&event.topic) {
                topic.tell(event);
            }
        }
        // Before anybody is told, so that who is told knows whether more is on its way.
        self.log.committing.store(false, Ordering::Release);
        self.log.sinks.pass(&events.into());
        let epoch = self.log.epoch();
        for (logged, offset) in waiting {
            // Who does not wait any more is served all the same.
            let _ = logged.send(Position { epoch: epoch.to_string(), offset });
        }
    }

    /// Writes one record for each topic. Gives, for each event, the segment that ends with it.
    async fn store(&mut self, events: &[Arc<Event>]) -> Option<Vec<Option<Segment>>> {
        /// A record that is being filled.
        struct Filling {
            key: String,
            text: String,
            last: usize,
        }
        let mut open: HashMap<&Topic, Filling> = HashMap::new();
        let mut full: Vec<Filling> = Vec::new();
        for (index, event) in events.iter().enumerate() {
            let stored = event.stored();
            if let Some(filling) = open.get_mut(&event.topic) {
                if filling.text.len() + stored.len() < RECORD_BYTES {
                    filling.text.push(',');
                    filling.text.push_str(&stored);
                    filling.last = index;
                    continue;
                }
                full.extend(open.remove(&event.topic));
            }
            // As many digits as the largest offset, so that the order of keys is that of offsets.
            let key = format!("{}{:016x}", event.topic.prefix(), event.offset);
            open.insert(&event.topic, Filling { key, text: format!("[{stored}"), last: index });
        }
        full.extend(open.into_values());
        let records: Vec<(String, Bytes)> =
            full.iter().map(|filling| (filling.key.clone(), Bytes::from(format!("{}]", filling.text)))).collect();
        let revisions = self.create(records).await?;
        let mut segments: Vec<Option<Segment>> = events.iter().map(|_| None).collect();
        for (filling, revision) in full.into_iter().zip(revisions) {
            let last = events.get(filling.last)?.offset;
            *segments.get_mut(filling.last)? = Some(Segment { key: filling.key, revision, last });
        }
        Some(segments)
    }

    /// Writes the records, again and again for a while; forgets outdated ones in the same commit.
    async fn create(&mut self, records: Vec<(String, Bytes)>) -> Option<Vec<Revision>> {
        for attempt in 0..ATTEMPTS {
            let outdated = std::mem::take(&mut self.outdated);
            let (answers, ()) = join(self.log.store.create_many(records.clone()), self.log.forget(outdated)).await;
            let mut revisions = Vec::with_capacity(records.len());
            if let Ok(answers) = answers {
                for ((key, _), answer) in records.iter().zip(answers) {
                    let revision = match answer {
                        Ok(revision) => Some(revision),
                        // An attempt that seemed to fail did not.
                        Err(store::Error::Exists) => {
                            self.log.store.get(key).await.ok().flatten().map(|entry| entry.revision)
                        }
                        Err(_) => None,
                    };
                    revisions.extend(revision);
                }
            }
            if revisions.len() == records.len() {
                return Some(revisions);
            }
            if attempt == 0 {
                tracing::error!("events cannot be written; nobody gets any until they can");
            }
            tokio::time::sleep(PAUSE).await;
        }
        None
    }

    async fn reserve(&mut self, count: u64) -> Result<(), store::Error> {
        self.save_epoch().await?;
        if self.log.next.load(Ordering::Acquire) + count <= self.head.reserved {
            return Ok(());
        }
        self.head = reserve(&*self.log.store, None).await?;
        Ok(())
    }

    /// Puts the epoch on disk, if it is not. Offsets go on behind all that were reserved: a record that was written
    /// although the store said no is never taken for a later one.
    async fn save_epoch(&mut self) -> Result<(), store::Error> {
        let Some(epoch) = self.unsaved_epoch.clone() else { return Ok(()) };
        self.head = reserve(&*self.log.store, Some(epoch)).await?;
        self.log.next.store(self.head.first(), Ordering::Release);
        self.unsaved_epoch = None;
        Ok(())
    }

    /// Ends the epoch: what was not logged is lost, and nobody may believe otherwise.
    async fn fail(&mut self, why: &'static str) {
        tracing::error!("{why}: events are lost, and clients are told to start anew");
        let epoch = format!("{:016x}", rand::random::<u64>());
        self.unsaved_epoch = Some(epoch.clone());
        if self.save_epoch().await.is_err() {
            tracing::error!("nor can the end of the epoch be written down yet; nothing is logged before");
        }
        self.log.end_epoch(epoch.into());
    }
}

/// Leaves, of messages that replace each other, only the latest.
pub(super) fn coalesce(requests: Vec<Request>) -> Vec<Request> {
    if requests.iter().all(|request| request.message.coalesce.is_none()) {
        return requests;
    }
    let mut seen = std::collections::HashSet::new();
    let mut kept: Vec<Request> = requests
        .into_iter()
        .rev()
        .filter(|request| match &request.message.coalesce {
            Some(key) if request.logged.is_none() => seen.insert((request.topic.clone(), key.clone())),
            _ => true,
        })
        .collect();
    kept.reverse();
    kept
}
