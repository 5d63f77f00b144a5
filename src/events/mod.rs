//! What happens here, told to browsers and programs as it happens: topics with a durable log, and the sockets that
//! listen to them.
//!
//! [`Events::publish`] gives a message a place in its topic's log, and then to whoever listens: WebSockets (`cp.v1` or
//! the plain messages of the seed documents), server-sent events, long polls. `docs/sockets.md` is the protocol.
//!
//! Invariants:
//! - Every event has an epoch and an offset, is on disk before anybody sees it, and survives a crash (`log`).
//! - A client that resumes gets every event once and in order, or is told `recovered:false`.
//! - An event is serialised once, whoever gets it; nothing is skipped silently: who reads too slowly is closed with a
//!   code that says "resume" (`socket`).
//! - Everything a client can make grow has a bound: sockets, topics, frames, unsent bytes, tickets.
//!
//! Deliberately absent: the event streams of `PocketBase` itself (`realtime` relays those), rooms, presence and typing
//! (there is nothing yet that they would be about), and `permessage-deflate`.

use std::fmt;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;

use serde::Deserialize;
use serde::Serialize;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::auth::Verifier;
use crate::error::Code;
use crate::error::Problem;
use crate::ids::TenantId;
use crate::ids::UserId;
use crate::shutdown::Shutdown;
use crate::store;
use crate::store::Store;
use crate::telemetry::Metrics;

pub mod close;
mod config;
mod event;
mod frame;
mod log;
mod ring;
mod sinks;
mod topic;

pub use config::Config;
pub use config::Invalid;
pub use event::Event;
pub use event::Message;
pub use topic::Topic;

use log::Log;

/// How often old events are swept.
const SWEEP: Duration = Duration::from_secs(60);
/// How long the last events may take to be logged when everything stops.
const LAST_WRITES: Duration = Duration::from_secs(5);
/// Events that may wait for one listener (see [`Events::listen`]).
const LISTENER: usize = 256;

/// Why something about events did not work.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A kind is 1 to 64 letters, digits, dots, hyphens and underscores.
    #[error("the kind of an event is 1 to 64 letters, digits, dots, hyphens and underscores")]
    Kind,
    /// The particulars are too large.
    #[error("an event has at most {0} bytes; send a reference and let clients fetch the rest")]
    TooLarge(usize),
    /// The log is closed: we are stopping.
    #[error("the log of events is closed")]
    Closed,
    /// The log cannot be read or written.
    #[error("the log of events is not available")]
    Store(#[from] store::Error),
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        match error {
            Error::Kind | Error::TooLarge(_) => Self::new(Code::InvalidBody).message(error.to_string()),
            Error::Closed => Self::new(Code::ShuttingDown).retry_after(Duration::from_secs(1)),
            Error::Store(_) => Self::new(Code::Internal),
        }
    }
}

/// A place in the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Position {
    /// The order that the offset belongs to. Another epoch: start anew.
    pub epoch: String,
    /// Everything up to here is known.
    pub offset: u64,
}

/// Whether a user owns a tenant.
pub type Owns = Arc<dyn Fn(&UserId, &TenantId) -> bool + Send + Sync>;

/// What the hub is built from.
#[expect(missing_debug_implementations, reason = "it lives for one call and holds closures")]
pub struct Parts {
    /// The `[events]` section.
    pub config: Config,
    /// Where the log is kept.
    pub store: Arc<dyn Store>,
    /// Who a token speaks for.
    pub verifier: Verifier,
    /// Who owns which tenant.
    pub owns: Owns,
    /// What `/metrics` shows.
    pub metrics: Arc<Metrics>,
    /// Whether we are about to stop.
    pub shutdown: Shutdown,
}

/// The hub; cheap to clone.
#[derive(Clone)]
pub struct Events {
    inner: Arc<Inner>,
}

struct Inner {
    log: Arc<Log>,
    closing: CancellationToken,
    writer: Mutex<Option<JoinHandle<()>>>,
}

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Events").field("log", &self.inner.log).finish_non_exhaustive()
    }
}

impl Events {
    /// Opens the log and starts its writer, on the caller's runtime. [`close`](Self::close) ends it.
    pub async fn open(parts: Parts) -> Result<Self, store::Error> {
        let Parts { config, store, verifier: _, owns: _, metrics: _, shutdown } = parts;
        let (log, writer) = Log::open(store, &config).await?;
        let closing = CancellationToken::new();
        let writer = tokio::spawn(writer.run(closing.clone()));
        shutdown.spawn(sweep(Arc::clone(&log), shutdown.clone()));
        let inner = Inner { log, closing, writer: Mutex::new(Some(writer)) };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Publishes a message: returns when it has its place in the queue of the log (waiting for one while that is full).
    /// Messages of one caller keep their order. Everybody sees it once it is on disk.
    pub async fn publish(&self, topic: Topic, message: Message) -> Result<(), Error> {
        self.inner.log.queue(topic, message, None).await
    }

    /// The same, but waits until it is on disk, and says where.
    pub async fn publish_logged(&self, topic: Topic, message: Message) -> Result<Position, Error> {
        let (sender, logged) = oneshot::channel();
        self.inner.log.queue(topic, message, Some(sender)).await?;
        logged.await.map_err(|_| Error::Closed)
    }

    /// The newest events of a topic, oldest first, and the position they end at.
    pub async fn history(&self, topic: &Topic, limit: usize) -> Result<(Vec<Arc<Event>>, Position), Error> {
        let topic = self.inner.log.topic(topic).await?;
        let events = topic.newest(limit);
        Ok((events, Position { epoch: self.inner.log.epoch().to_string(), offset: topic.head() }))
    }

    /// Logs what is queued and ends. Whoever publishes afterwards gets [`Error::Closed`].
    pub async fn close(&self) {
        self.inner.closing.cancel();
        let writer = self.inner.writer.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(writer) = writer else { return };
        if tokio::time::timeout(LAST_WRITES, writer).await.is_err() {
            tracing::warn!("the last events could not be logged in time");
        }
    }
}

async fn sweep(log: Arc<Log>, shutdown: Shutdown) {
    let mut ticks = tokio::time::interval(SWEEP);
    if let Err(error) = log.sweep_disk(log::now_ms()).await {
        tracing::warn!(%error, "look through the events of earlier runs");
    }
    loop {
        tokio::select! {
            _ = ticks.tick() => log.sweep(log::now_ms()).await,
            () = shutdown.begun() => return,
        }
    }
}
