//! The durable log: every event gets an offset, is on disk before anybody sees it, and stays for a while.
//!
//! One task writes. It takes what is queued, gives offsets (one growing order for all topics, so that one number
//! resumes any set of them), and commits one record per topic, all in one group. Records are `event.<topic>.<first
//! offset>`; `events.head` holds the epoch and how far offsets are reserved. After a crash offsets go on behind the
//! reservation: numbers are skipped, never used twice.
//!
//! Invariants: an event is logged, then in its topic's ring, then with the subscribers; so a subscriber that reads the
//! ring after it joined misses nothing, and recognises what it gets twice by the offset. What cannot be logged is not
//! shown, and ends the epoch: nobody resumes over a hole.

use std::collections::HashMap;
use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use dashmap::DashMap;
use futures_util::future::join;
use futures_util::future::join_all;
use serde::Deserialize;
use serde::Serialize;
use tokio::sync::OnceCell;
use tokio::sync::mpsc;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::Error;
use super::Message;
use super::Position;
use super::Topic;
use super::config::Config;
use super::event::Event;
use super::event::Stored;
use super::ring::Replay;
use super::ring::Ring;
use super::sinks::Sinks;
use crate::store;
use crate::store::Revision;
use crate::store::Store;

/// Messages that may wait to be logged; publishers wait for a place.
const QUEUED: usize = 4_096;
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

/// The record of the whole log.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Head {
    epoch: String,
    /// Offsets up to here may have been given out.
    reserved: u64,
    /// Events up to here may be gone of topics that have no record.
    swept: u64,
}

/// A message on its way to the log.
#[derive(Debug)]
pub(super) struct Request {
    topic: Topic,
    message: Message,
    logged: Option<oneshot::Sender<Position>>,
}

/// A record of a topic.
#[derive(Debug)]
struct Segment {
    key: String,
    revision: Revision,
    last: u64,
}

#[derive(Debug)]
struct Kept {
    ring: Ring,
    segments: VecDeque<Segment>,
}

impl Kept {
    /// Segments of which the ring has nothing any more; never the newest.
    fn outdated(&mut self) -> Vec<Segment> {
        let floor = self.ring.floor();
        let mut old = Vec::new();
        while self.segments.len() > 1 && self.segments.front().is_some_and(|segment| segment.last <= floor) {
            old.extend(self.segments.pop_front());
        }
        old
    }
}

/// One topic; whoever holds it keeps it in memory.
#[derive(Debug)]
pub(super) struct TopicLog {
    pub(super) topic: Topic,
    kept: OnceCell<Mutex<Kept>>,
    listeners: Mutex<Vec<mpsc::Sender<Arc<Event>>>>,
}

impl TopicLog {
    fn kept(&self) -> Option<MutexGuard<'_, Kept>> {
        self.kept.get().map(|kept| kept.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The offset of the newest event.
    pub(super) fn head(&self) -> u64 {
        self.kept().map_or(0, |kept| kept.ring.head())
    }

    /// The newest events.
    pub(super) fn newest(&self, limit: usize) -> Vec<Arc<Event>> {
        self.kept().map(|kept| kept.ring.newest(limit)).unwrap_or_default()
    }

    /// Sends what comes from now on to a listener, too.
    pub(super) fn listen(&self, listener: mpsc::Sender<Arc<Event>>) {
        let mut listeners = self.listeners.lock().unwrap_or_else(PoisonError::into_inner);
        listeners.retain(|other| !other.is_closed());
        listeners.push(listener);
    }

    /// A listener that is full is dropped: it learns so from the end of its channel, and resumes.
    fn tell(&self, event: &Arc<Event>) {
        let mut listeners = self.listeners.lock().unwrap_or_else(PoisonError::into_inner);
        listeners.retain(|listener| listener.try_send(Arc::clone(event)).is_ok());
    }
}

/// Shared by everybody; the writing side is in [`Writer`].
pub(super) struct Log {
    store: Arc<dyn Store>,
    topics: DashMap<Topic, Arc<TopicLog>>,
    requests: mpsc::Sender<Request>,
    epoch: Mutex<Arc<str>>,
    /// The next offset.
    next: AtomicU64,
    swept: AtomicU64,
    pub(super) sinks: Sinks,
    max_events: usize,
    max_bytes: usize,
    max_event: usize,
    ttl: Duration,
}

impl fmt::Debug for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Log").field("topics", &self.topics.len()).finish_non_exhaustive()
    }
}

/// What the one writing task owns.
#[derive(Debug)]
pub(super) struct Writer {
    log: Arc<Log>,
    requests: mpsc::Receiver<Request>,
    head: Head,
    revision: Revision,
    outdated: Vec<Segment>,
}

impl Log {
    /// Opens the log, or begins one.
    pub(super) async fn open(store: Arc<dyn Store>, config: &Config) -> Result<(Arc<Self>, Writer), store::Error> {
        let (head, revision) = reserve(&*store, None).await?;
        let (requests, queued) = mpsc::channel(QUEUED);
        let log = Arc::new(Self {
            store,
            topics: DashMap::new(),
            requests,
            epoch: Mutex::new(head.epoch.as_str().into()),
            next: AtomicU64::new(head.reserved - RESERVE + 1),
            swept: AtomicU64::new(head.swept),
            sinks: Sinks::default(),
            max_events: config.history_events,
            max_bytes: config.history_bytes,
            max_event: config.max_event_bytes,
            ttl: config.history_ttl,
        });
        let writer = Writer { log: Arc::clone(&log), requests: queued, head, revision, outdated: Vec::new() };
        Ok((log, writer))
    }

    /// Names the order that offsets belong to.
    pub(super) fn epoch(&self) -> Arc<str> {
        Arc::clone(&self.epoch.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The largest offset that was given out.
    pub(super) fn newest(&self) -> u64 {
        self.next.load(Ordering::Acquire) - 1
    }

    /// Topics in memory.
    pub(super) fn topics(&self) -> usize {
        self.topics.len()
    }

    /// Queues a message; waits for a place.
    pub(super) async fn queue(
        &self,
        topic: Topic,
        message: Message,
        logged: Option<oneshot::Sender<Position>>,
    ) -> Result<(), Error> {
        let is_kind = |kind: &str| {
            (1..=64).contains(&kind.len())
                && kind.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
        };
        if !is_kind(&message.kind) {
            return Err(Error::Kind);
        }
        if size_of(&message.data) > self.max_event {
            return Err(Error::TooLarge(self.max_event));
        }
        self.requests.send(Request { topic, message, logged }).await.map_err(|_| Error::Closed)
    }

    /// The topic, read from disk if it is not in memory.
    pub(super) async fn topic(&self, topic: &Topic) -> Result<Arc<TopicLog>, Error> {
        let found = self.topics.get(topic).map(|found| Arc::clone(&found));
        let found = found.unwrap_or_else(|| {
            let fresh = || {
                let (topic, kept, listeners) = (topic.clone(), OnceCell::new(), Mutex::default());
                Arc::new(TopicLog { topic, kept, listeners })
            };
            Arc::clone(&self.topics.entry(topic.clone()).or_insert_with(fresh))
        });
        found.kept.get_or_try_init(|| self.load(topic)).await?;
        Ok(found)
    }

    async fn load(&self, topic: &Topic) -> Result<Mutex<Kept>, Error> {
        let entries = self.store.list(&topic.prefix()).await?;
        let mut segments = VecDeque::with_capacity(entries.len());
        let mut events: Vec<Event> = Vec::new();
        for entry in entries {
            // The parser's own words could quote the value, so they are not passed on.
            let Ok(stored) = serde_json::from_slice::<Vec<Stored>>(&entry.value) else {
                tracing::error!(store.key = %entry.key, "a record of events cannot be read; it is left as it is");
                events.clear();
                continue;
            };
            events.extend(stored.into_iter().filter_map(|stored| stored.into_event(topic)));
            let last = events.last().map_or(0, |event| event.offset);
            segments.push_back(Segment { key: entry.key.to_string(), revision: entry.revision, last });
        }
        let mut ring = Ring::new(self.swept.load(Ordering::Acquire), self.max_events, self.max_bytes);
        for event in events {
            ring.push(Arc::new(event));
        }
        Ok(Mutex::new(Kept { ring, segments }))
    }

    /// What a client needs that has everything up to `since`; without `since` it starts now.
    pub(super) fn replay(&self, topic: &TopicLog, since: Option<&Position>) -> (Replay, u64) {
        let Some(kept) = topic.kept() else { return (Replay { recovered: false, events: Vec::new() }, 0) };
        let replay = match since {
            None => Replay { recovered: false, events: Vec::new() },
            Some(since) if *since.epoch != *self.epoch() || since.offset > self.newest() => {
                Replay { recovered: false, events: Vec::new() }
            }
            Some(since) => kept.ring.after(since.offset),
        };
        (replay, kept.ring.head())
    }

    /// Forgets what is older than the retention, on disk and in memory, and topics that nobody holds. The newest event
    /// of a topic stays in any case: it says what came before.
    pub(super) async fn sweep(&self, now_ms: i64) {
        let moment = now_ms.saturating_sub(i64::try_from(self.ttl.as_millis()).unwrap_or(i64::MAX));
        let mut outdated = Vec::new();
        self.topics.retain(|_, topic| {
            let Some(mut kept) = topic.kept() else { return true };
            kept.ring.expire(moment);
            outdated.extend(kept.outdated());
            let is_quiet = kept.ring.newest_at().is_none_or(|at| at < moment);
            drop(kept);
            // Who is about to subscribe holds it already, and who looks it up later reads it from disk.
            !(is_quiet && Arc::strong_count(topic) == 1)
        });
        self.forget(outdated).await;
    }

    async fn forget(&self, segments: Vec<Segment>) {
        let deletes = segments.iter().map(|segment| self.store.delete(&segment.key, segment.revision));
        for outcome in join_all(deletes).await {
            // One that stays is found again when its topic is loaded.
            if let Err(error) = outcome
                && !error.is_refusal()
            {
                tracing::debug!(%error, "forget old events");
            }
        }
    }

    /// Looks through what an earlier run left: topics that nobody touched since would stay for ever.
    pub(super) async fn sweep_disk(&self, now_ms: i64) -> Result<(), store::Error> {
        let moment = now_ms.saturating_sub(i64::try_from(self.ttl.as_millis()).unwrap_or(i64::MAX));
        let mut outdated: Vec<Segment> = Vec::new();
        let mut newest: Option<(Topic, Segment, i64)> = None;
        for entry in self.store.list("event.").await? {
            let Some(topic) = Topic::of_key(&entry.key) else { continue };
            let stored = serde_json::from_slice::<Vec<Stored>>(&entry.value).unwrap_or_default();
            let Some(last) = stored.into_iter().next_back().and_then(|stored| stored.into_event(&topic)) else {
                continue;
            };
            let segment = Segment { key: entry.key.to_string(), revision: entry.revision, last: last.offset };
            // Keys are in order, so the last of a topic is its newest.
            if let Some((before, old, at)) = newest.replace((topic.clone(), segment, last.at_ms))
                && before == topic
                && at < moment
                && !self.topics.contains_key(&topic)
            {
                outdated.push(old);
            }
        }
        self.forget(outdated).await;
        Ok(())
    }
}

fn size_of(value: &serde_json::Value) -> usize {
    /// Counts and keeps nothing.
    struct Count(usize);
    impl std::io::Write for Count {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0 += bytes.len();
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let mut count = Count(0);
    serde_json::to_writer(&mut count, value).map_or(usize::MAX, |()| count.0)
}

/// Reserves the next offsets, with a new epoch when asked or when there is none.
async fn reserve(store: &dyn Store, epoch: Option<String>) -> Result<(Head, Revision), store::Error> {
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
            Ok(revision) => return Ok((head, revision)),
            Err(error) if error.is_refusal() => tokio::task::yield_now().await,
            Err(error) => return Err(error),
        }
    }
}

impl Writer {
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
                        let outdated = std::mem::take(&mut self.outdated);
                        return self.log.forget(outdated).await;
                    }
                    self.commit(coalesce(std::mem::take(&mut queued))).await;
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
        if self.log.next.load(Ordering::Acquire) + count <= self.head.reserved {
            return Ok(());
        }
        (self.head, self.revision) = reserve(&*self.log.store, None).await?;
        Ok(())
    }

    /// Ends the epoch: what was not logged is lost, and nobody may believe otherwise.
    async fn fail(&mut self, why: &'static str) {
        tracing::error!("{why}: events are lost, and clients are told to start anew");
        let epoch = format!("{:016x}", rand::random::<u64>());
        if let Ok((head, revision)) = reserve(&*self.log.store, Some(epoch.clone())).await {
            (self.head, self.revision) = (head, revision);
        }
        *self.log.epoch.lock().unwrap_or_else(PoisonError::into_inner) = epoch.into();
        self.log.sinks.reset();
    }
}

/// Leaves, of messages that replace each other, only the latest.
fn coalesce(requests: Vec<Request>) -> Vec<Request> {
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

/// Unix milliseconds.
pub(super) fn now_ms() -> i64 {
    let now = time::OffsetDateTime::now_utc().unix_timestamp_nanos() / 1_000_000;
    i64::try_from(now).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::events::config::defaults;
    use crate::store::sqlite::ControlDatabase;

    struct Bench {
        log: Arc<Log>,
        closing: CancellationToken,
        writer: tokio::task::JoinHandle<()>,
    }

    async fn open(database: &Arc<ControlDatabase>) -> Bench {
        let config = Config { history_events: 8, ..defaults() };
        let (log, writer) = Log::open(Arc::clone(database) as Arc<dyn Store>, &config).await.unwrap();
        let closing = CancellationToken::new();
        let writer = tokio::spawn(writer.run(closing.clone()));
        Bench { log, closing, writer }
    }

    impl Bench {
        async fn say(&self, text: &str, coalesce: Option<&str>) -> Position {
            let (sender, logged) = oneshot::channel();
            let message = Message::new("Test", json!({ "text": text }));
            let message = Message { coalesce: coalesce.map(str::to_owned), ..message };
            self.log.queue(Topic::System, message, Some(sender)).await.unwrap();
            logged.await.unwrap()
        }

        async fn after(&self, since: &Position) -> (bool, Vec<u64>) {
            let topic = self.log.topic(&Topic::System).await.unwrap();
            let (replay, _) = self.log.replay(&topic, Some(since));
            (replay.recovered, replay.events.iter().map(|event| event.offset).collect())
        }

        async fn end(self) {
            self.closing.cancel();
            self.writer.await.unwrap();
        }
    }

    #[tokio::test]
    async fn offsets_and_events_survive_a_crash() {
        let folder = tempfile::tempdir().unwrap();
        let database = Arc::new(ControlDatabase::open(&folder.path().join("c.db")).unwrap());
        let bench = open(&database).await;
        let first = bench.say("a", None).await;
        let second = bench.say("b", None).await;
        // Nothing is closed in order here.
        let again = open(&database).await;
        assert_eq!(again.log.epoch(), bench.log.epoch());
        assert_eq!(again.after(&first).await, (true, vec![second.offset]));
        let third = again.say("c", None).await;
        assert!(third.offset > second.offset);
        assert_eq!(again.after(&first).await, (true, vec![second.offset, third.offset]));
        let future = Position { offset: u64::MAX, ..first.clone() };
        assert!(!again.after(&future).await.0, "what was never given out is not resumed");
        assert!(!again.after(&Position { epoch: "x".to_owned(), ..first }).await.0);
        again.end().await;
        bench.end().await;
    }

    #[tokio::test]
    async fn the_log_is_bounded_on_disk_too() {
        let folder = tempfile::tempdir().unwrap();
        let database = Arc::new(ControlDatabase::open(&folder.path().join("c.db")).unwrap());
        let bench = open(&database).await;
        let first = bench.say("0", None).await;
        for n in 1..=30 {
            bench.say(&n.to_string(), None).await;
        }
        assert!(!bench.after(&first).await.0);
        let records = database.list("event.").await.unwrap().len();
        assert!((8..=10).contains(&records), "{records}");
        let log = Arc::clone(&bench.log);
        bench.end().await;
        log.sweep(i64::MAX).await;
        assert_eq!((database.list("event.").await.unwrap().len(), log.topics()), (1, 0));
        let again = open(&database).await;
        assert!(!again.after(&first).await.0, "the last event still says that some are gone");
        again.log.sweep_disk(i64::MAX).await.unwrap();
        assert_eq!(database.list("event.").await.unwrap().len(), 1);
        again.end().await;
    }

    #[tokio::test]
    async fn only_the_latest_of_messages_that_replace_each_other_is_logged() {
        let request = |text: &str, key: Option<&str>| Request {
            topic: Topic::System,
            message: Message { coalesce: key.map(str::to_owned), ..Message::new("Test", json!(text)) },
            logged: None,
        };
        let kept = coalesce(vec![
            request("1", Some("a")),
            request("2", None),
            request("3", Some("b")),
            request("4", Some("a")),
        ]);
        let texts: Vec<_> = kept.iter().map(|request| request.message.data.as_str().unwrap()).collect();
        assert_eq!(texts, ["2", "3", "4"]);
    }
}
