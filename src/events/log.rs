//! The durable log: every event gets an offset, is on disk before anybody sees it, and stays for a while.
//!
//! One task writes (`writer`); this is what everybody shares: the topics in memory, read from disk when somebody needs
//! them, and what is kept of them for how long. Records are `event.<topic>.<first offset>`.
//!
//! Invariants: an event is logged, then in its topic's ring, then with the subscribers; so a subscriber that reads the
//! ring after it joined misses nothing, and recognises what it gets twice by the offset. What cannot be logged is not
//! shown, and ends the epoch: nobody resumes over a hole.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;

use dashmap::DashMap;
use tokio::sync::OnceCell;
use tokio::sync::mpsc;
use tokio::sync::oneshot;

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
use super::writer::Writer;
use super::writer::reserve;
use crate::store;
use crate::store::Revision;
use crate::store::Store;

/// Messages that may wait to be logged; publishers wait for a place.
const QUEUED: usize = 4_096;

/// A message on its way to the log.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) topic: Topic,
    pub(super) message: Message,
    pub(super) logged: Option<oneshot::Sender<Position>>,
}

/// A record of a topic.
#[derive(Debug)]
pub(super) struct Segment {
    pub(super) key: String,
    pub(super) revision: Revision,
    pub(super) last: u64,
}

#[derive(Debug)]
pub(super) struct Kept {
    pub(super) ring: Ring,
    pub(super) segments: VecDeque<Segment>,
}

impl Kept {
    /// Segments of which the ring has nothing any more; never the newest.
    pub(super) fn outdated(&mut self) -> Vec<Segment> {
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
    pub(super) fn kept(&self) -> Option<MutexGuard<'_, Kept>> {
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
    pub(super) fn tell(&self, event: &Arc<Event>) {
        let mut listeners = self.listeners.lock().unwrap_or_else(PoisonError::into_inner);
        listeners.retain(|listener| listener.try_send(Arc::clone(event)).is_ok());
    }

    /// Ends everybody's stream.
    fn end(&self) {
        self.listeners.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

/// Shared by everybody; the writing side is in [`Writer`].
pub(super) struct Log {
    pub(super) store: Arc<dyn Store>,
    pub(super) topics: DashMap<Topic, Arc<TopicLog>>,
    requests: mpsc::Sender<Request>,
    /// Whether a group is on its way to the disk.
    pub(super) committing: AtomicBool,
    pub(super) epoch: Mutex<Arc<str>>,
    /// The next offset.
    pub(super) next: AtomicU64,
    /// Events up to here may be gone of topics that have no record.
    pub(super) swept: AtomicU64,
    pub(super) sinks: Sinks,
    max_events: usize,
    max_bytes: usize,
    max_event: usize,
    pub(super) ttl: Duration,
}

impl fmt::Debug for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Log").field("topics", &self.topics.len()).finish_non_exhaustive()
    }
}

impl Log {
    /// Opens the log, or begins one.
    pub(super) async fn open(store: Arc<dyn Store>, config: &Config) -> Result<(Arc<Self>, Writer), store::Error> {
        let head = reserve(&*store, None).await?;
        let (requests, queued) = mpsc::channel(QUEUED);
        let log = Arc::new(Self {
            store,
            topics: DashMap::new(),
            requests,
            committing: AtomicBool::new(false),
            epoch: Mutex::new(head.epoch.as_str().into()),
            next: AtomicU64::new(head.first()),
            swept: AtomicU64::new(head.swept),
            sinks: Sinks::default(),
            max_events: config.history_events,
            max_bytes: config.history_bytes,
            max_event: config.max_event_bytes,
            ttl: config.history_ttl,
        });
        let writer = Writer::new(Arc::clone(&log), queued, head);
        Ok((log, writer))
    }

    /// Names the order that offsets belong to.
    pub(super) fn epoch(&self) -> Arc<str> {
        Arc::clone(&self.epoch.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Begins another order: what anybody knows of the old one is no place to go on from. The epoch changes before the
    /// listeners are dropped, so whoever joined topics and then finds the epoch as it was before is told of its end.
    pub(super) fn end_epoch(&self, next: Arc<str>) {
        *self.epoch.lock().unwrap_or_else(PoisonError::into_inner) = next;
        for topic in &self.topics {
            topic.end();
        }
        self.sinks.reset();
    }

    /// The largest offset that was given out.
    pub(super) fn newest(&self) -> u64 {
        self.next.load(Ordering::Acquire) - 1
    }

    /// Topics in memory.
    pub(super) fn topics(&self) -> usize {
        self.topics.len()
    }

    /// Whether anybody listens to a topic, on whatever thread: whoever does holds it. Somebody who only looks at it for a
    /// moment may be taken for a listener.
    pub(super) fn is_heard(&self, topic: &Topic) -> bool {
        self.topics.get(topic).is_some_and(|found| Arc::strong_count(&found) > 1)
    }

    /// Whether messages wait for the disk. A hint: it may be over, or begin, at any moment.
    pub(super) fn is_writing(&self) -> bool {
        self.committing.load(Ordering::Acquire) || self.requests.capacity() < self.requests.max_capacity()
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

/// Unix milliseconds.
pub(super) fn now_ms() -> i64 {
    let now = time::OffsetDateTime::now_utc().unix_timestamp_nanos() / 1_000_000;
    i64::try_from(now).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use serde_json::json;
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::events::config::defaults;
    use crate::events::sinks::News;
    use crate::events::writer::coalesce;
    use crate::ids::UserId;
    use crate::store::BoxFuture;
    use crate::store::Entry;
    use crate::store::Watch;
    use crate::store::sqlite::ControlDatabase;

    struct Bench {
        log: Arc<Log>,
        closing: CancellationToken,
        writer: tokio::task::JoinHandle<()>,
    }

    async fn open<S: Store>(store: &Arc<S>) -> Bench {
        let config = Config { history_events: 8, ..defaults() };
        let (log, writer) = Log::open(Arc::clone(store) as Arc<dyn Store>, &config).await.unwrap();
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
        assert_eq!((database.list("event.").await.unwrap().len(), log.topics()), (0, 0));
        let again = open(&database).await;
        assert!(!again.after(&first).await.0, "it is known that some are gone");
        again.end().await;
    }

    #[tokio::test]
    async fn who_is_told_of_events_knows_whether_more_are_on_their_way() {
        let folder = tempfile::tempdir().unwrap();
        let database = Arc::new(ControlDatabase::open(&folder.path().join("c.db")).unwrap());
        let bench = open(&database).await;
        let mut told = bench.log.sinks.join();
        assert!(!bench.log.is_writing());
        let say = || bench.log.queue(Topic::System, Message::new("Test", json!({})), None);
        say().await.unwrap();
        assert!(bench.log.is_writing(), "it waits for the writer");
        while bench.log.requests.capacity() < bench.log.requests.max_capacity() {
            tokio::task::yield_now().await;
        }
        say().await.unwrap();
        let mut count = 0;
        while count < 2 {
            let Some(News::Events(batches)) = told.next().await else { panic!("the log ended") };
            count += batches.iter().map(|batch| batch.len()).sum::<usize>();
            assert_eq!(bench.log.is_writing(), count < 2, "{count} came");
        }
        bench.end().await;
    }

    /// A store that answers nothing while it is told so, and notes what is listed.
    #[derive(Debug)]
    struct Moody {
        database: Arc<ControlDatabase>,
        is_away: AtomicBool,
        listed: Mutex<Vec<String>>,
    }

    impl Moody {
        fn over(database: &Arc<ControlDatabase>) -> Arc<Self> {
            let (is_away, listed) = (AtomicBool::new(false), Mutex::default());
            Arc::new(Self { database: Arc::clone(database), is_away, listed })
        }

        fn unless_away<'a, T: Send + 'a>(
            &'a self,
            answer: BoxFuture<'a, Result<T, store::Error>>,
        ) -> BoxFuture<'a, Result<T, store::Error>> {
            if self.is_away.load(Ordering::SeqCst) { Box::pin(async { Err(store::Error::Closed) }) } else { answer }
        }
    }

    impl Store for Moody {
        fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Entry>, store::Error>> {
            self.unless_away(self.database.get(key))
        }
        fn list<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Vec<Entry>, store::Error>> {
            self.listed.lock().unwrap().push(prefix.to_owned());
            self.unless_away(self.database.list(prefix))
        }
        fn names<'a>(
            &'a self,
            prefix: &'a str,
            after: &'a str,
            most: usize,
        ) -> BoxFuture<'a, Result<Vec<store::Name>, store::Error>> {
            // Small pages, so that topics lie across them.
            self.unless_away(self.database.names(prefix, after, most.min(2)))
        }
        fn create<'a>(&'a self, key: &'a str, value: Bytes) -> BoxFuture<'a, Result<Revision, store::Error>> {
            self.unless_away(self.database.create(key, value))
        }
        fn update<'a>(
            &'a self,
            key: &'a str,
            value: Bytes,
            expected: Revision,
        ) -> BoxFuture<'a, Result<Revision, store::Error>> {
            self.unless_away(self.database.update(key, value, expected))
        }
        fn delete<'a>(&'a self, key: &'a str, expected: Revision) -> BoxFuture<'a, Result<Revision, store::Error>> {
            self.unless_away(self.database.delete(key, expected))
        }
        fn watch<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Watch, store::Error>> {
            self.unless_away(self.database.watch(prefix))
        }
    }

    fn user(number: usize) -> Topic {
        Topic::User(UserId::parse(&format!("u{number}")).unwrap())
    }

    #[tokio::test]
    async fn what_cannot_be_logged_ends_the_epoch_for_everybody_and_on_disk() {
        let folder = tempfile::tempdir().unwrap();
        let database = Arc::new(ControlDatabase::open(&folder.path().join("c.db")).unwrap());
        let moody = Moody::over(&database);
        let bench = open(&moody).await;
        let before = bench.say("a", None).await;
        let topic = bench.log.topic(&Topic::System).await.unwrap();
        // Nobody has looked at these topics, so they have to be read, which cannot be done.
        let lose = async |number: usize| {
            let epoch = bench.log.epoch();
            let (sender, mut heard) = mpsc::channel(8);
            topic.listen(sender);
            moody.is_away.store(true, Ordering::SeqCst);
            let (sender, logged) = oneshot::channel();
            bench.log.queue(user(number), Message::new("Test", json!({})), Some(sender)).await.unwrap();
            assert!(logged.await.is_err());
            moody.is_away.store(false, Ordering::SeqCst);
            assert!(heard.recv().await.is_none(), "whoever listens is told");
            assert_ne!(bench.log.epoch(), epoch);
        };
        lose(1).await;
        assert!(!bench.after(&before).await.0);
        let after = bench.say("b", None).await;
        assert_eq!(*after.epoch, *bench.log.epoch());
        assert!(after.offset > before.offset + 1, "no offset is given out that a lost event may have had");
        assert_eq!(*open(&database).await.log.epoch(), *after.epoch);
        lose(2).await;
        let last = bench.log.epoch();
        bench.end().await;
        assert_eq!(open(&database).await.log.epoch(), last, "also if nothing was said since");
    }

    #[tokio::test]
    async fn topics_of_earlier_runs_go_when_they_are_old_one_record_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let database = Arc::new(ControlDatabase::open(&folder.path().join("c.db")).unwrap());
        let bench = open(&database).await;
        for number in 0..5 {
            bench.log.queue(user(number), Message::new("Test", json!({})), None).await.unwrap();
        }
        let mut said = vec![bench.say("old", None).await];
        let begun = now_ms();
        while now_ms() == begun {
            tokio::task::yield_now().await;
        }
        said.push(bench.say("b", None).await);
        let at = bench.log.topic(&Topic::System).await.unwrap().newest(1)[0].at_ms;
        said.push(bench.say("c", None).await);
        bench.end().await;
        let moody = Moody::over(&database);
        let again = open(&moody).await;
        let left = async || database.names("event.", "", 100).await.unwrap().len();
        let ttl = i64::try_from(again.log.ttl.as_millis()).unwrap();
        again.log.sweep_disk(begun).await.unwrap();
        assert_eq!(left().await, 8);
        again.log.sweep_disk(at + ttl).await.unwrap();
        assert_eq!(left().await, 2, "the quiet topics, and what is old of the other");
        assert_eq!(*moody.listed.lock().unwrap(), Vec::<String>::new(), "they are never all in memory");
        assert_eq!(again.after(&said[0]).await, (true, vec![said[1].offset, said[2].offset]));
        let quiet = again.log.topic(&user(1)).await.unwrap();
        let nothing_heard = Position { epoch: said[0].epoch.clone(), offset: 1 };
        assert!(!again.log.replay(&quiet, Some(&nothing_heard)).0.recovered, "there was something");
        assert!(again.log.replay(&quiet, Some(&said[0])).0.recovered, "and nothing since");
        again.log.sweep_disk(i64::MAX).await.unwrap();
        assert_eq!(left().await, 2, "what is in memory is swept from there");
        let third = open(&database).await;
        third.log.sweep_disk(i64::MAX).await.unwrap();
        assert_eq!(left().await, 0);
        assert_eq!(third.after(&said[2]).await, (true, vec![]));
        assert!(!third.after(&said[1]).await.0);
        third.end().await;
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
