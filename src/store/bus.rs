//! "Look again": messages that reach whoever listens now, at most once, and are never the only copy of anything.
//!
//! The embedded form passes messages within the process. A subscriber that falls behind loses messages and is told
//! so; the answer is always the same, to read the records that the messages were about.

use std::fmt;
use std::sync::Arc;
use std::sync::PoisonError;
use std::sync::RwLock;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use tokio::sync::mpsc;

use super::BoxFuture;
use super::Error;
use super::keys;

/// Messages that may wait for one subscriber.
const QUEUED_MESSAGES: usize = 1_024;

/// A message as a subscriber gets it.
#[derive(Clone)]
pub struct Message {
    /// What it is about; the alphabet is that of keys.
    pub subject: Arc<str>,
    /// What it says; may be empty.
    pub payload: Bytes,
}

impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Message").field("subject", &self.subject).finish_non_exhaustive()
    }
}

/// What a subscription brings.
#[derive(Debug, Clone)]
pub enum Notice {
    /// A message.
    Message(Message),
    /// So many messages were lost because the subscriber was slow. They are older than this notice, but may be newer
    /// than messages that follow it.
    Lagged(u64),
}

/// At-most-once publish and subscribe by subject prefix.
pub trait Bus: fmt::Debug + Send + Sync + 'static {
    /// Passes a message to those who are subscribed now. Success does not say that anybody got it.
    fn publish<'a>(&'a self, subject: &'a str, payload: Bytes) -> BoxFuture<'a, Result<(), Error>>;

    /// Subscribes to all subjects under a prefix (as in [`Store`](super::Store)); ends when dropped. Messages of one
    /// publisher arrive in the order they were published.
    fn subscribe<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Subscription, Error>>;
}

/// The receiving end.
#[derive(Debug)]
pub struct Subscription {
    messages: mpsc::Receiver<Message>,
    lost: Arc<AtomicU64>,
}

impl Subscription {
    /// The next notice; waits for one. None when the bus is gone. Nothing is lost when the future is dropped.
    pub async fn next(&mut self) -> Option<Notice> {
        match self.lost.swap(0, Ordering::AcqRel) {
            // Messages are lost only while the queue is full, so nobody waits below while there is a loss to report.
            0 => self.messages.recv().await.map(Notice::Message),
            lost => Some(Notice::Lagged(lost)),
        }
    }
}

#[derive(Debug)]
struct Subscriber {
    prefix: Box<str>,
    messages: mpsc::Sender<Message>,
    lost: Arc<AtomicU64>,
}

/// The embedded form: queues within the process.
#[derive(Debug)]
pub struct InProcessBus {
    subscribers: RwLock<Vec<Subscriber>>,
    capacity: usize,
}

impl Default for InProcessBus {
    fn default() -> Self {
        Self::new()
    }
}

impl InProcessBus {
    /// A bus without subscribers.
    pub fn new() -> Self {
        Self::with_capacity(QUEUED_MESSAGES)
    }

    /// A bus that lets `messages` (at least 1) wait for each subscriber.
    pub fn with_capacity(messages: usize) -> Self {
        Self { subscribers: RwLock::new(Vec::new()), capacity: messages.max(1) }
    }

    fn pass(&self, subject: &str, payload: Bytes) {
        let message = Message { subject: subject.into(), payload };
        let subscribers = self.subscribers.read().unwrap_or_else(PoisonError::into_inner);
        for subscriber in subscribers.iter().filter(|subscriber| subject.starts_with(&*subscriber.prefix)) {
            if let Err(mpsc::error::TrySendError::Full(_)) = subscriber.messages.try_send(message.clone()) {
                subscriber.lost.fetch_add(1, Ordering::AcqRel);
            }
        }
    }
}

impl Bus for InProcessBus {
    fn publish<'a>(&'a self, subject: &'a str, payload: Bytes) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async move {
            keys::check_key(subject)?;
            keys::check_value(&payload)?;
            self.pass(subject, payload);
            Ok(())
        })
    }

    fn subscribe<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Subscription, Error>> {
        Box::pin(async move {
            keys::check_prefix(prefix)?;
            let (sender, messages) = mpsc::channel(self.capacity);
            let lost = Arc::<AtomicU64>::default();
            let subscriber = Subscriber { prefix: prefix.into(), messages: sender, lost: Arc::clone(&lost) };
            let mut subscribers = self.subscribers.write().unwrap_or_else(PoisonError::into_inner);
            // Those who left make room here, so that the list is as long as there are subscribers.
            subscribers.retain(|other| !other.messages.is_closed());
            subscribers.push(subscriber);
            Ok(Subscription { messages, lost })
        })
    }
}
