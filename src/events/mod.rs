//! What happens here, told to browsers and programs as it happens: topics with a durable log, and the sockets that
//! listen to them.
//!
//! [`Events::publish`] gives a message a place in its topic's log, and then to whoever listens: sockets (`cp.v1` or
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
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::Instant;

use serde::Deserialize;
use serde::Serialize;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::auth::Principal;
use crate::auth::Verifier;
use crate::error::Code;
use crate::error::Problem;
use crate::ids::TenantId;
use crate::ids::UserId;
use crate::shutdown::Shutdown;
use crate::store;
use crate::store::Store;
use crate::telemetry::Metrics;

pub mod asyncapi;
mod census;
pub mod close;
mod config;
mod event;
mod filter;
mod floor;
mod frame;
pub mod handshake;
mod hub;
mod log;
pub mod message;
mod rights;
mod ring;
mod seen;
mod sinks;
mod socket;
mod sweep;
mod talk;
mod tickets;
mod topic;
mod writer;

pub use config::Config;
pub use config::Invalid;
pub use event::Event;
pub use event::Message;
pub use filter::Filter;
pub use hub::Endpoint;
pub use hub::Entry;
pub use hub::Heard;
pub use hub::Joining;
pub use hub::Listener;
pub use hub::Wishes;
pub use topic::Topic;

use census::Census;
use close::CloseCode;
use hub::Hub;
use log::Log;
use seen::Seen;
use tickets::Tickets;

/// How often old events of topics in memory are swept, and how many times before the others are looked through.
const SWEEP: Duration = Duration::from_mins(1);
const SWEEPS: u32 = 60;
/// How long the last events may take to be logged when everything stops.
const LAST_WRITES: Duration = Duration::from_secs(5);

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
            Error::Store(error) => error.into(),
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

/// How the hub is.
#[derive(Debug, Clone)]
pub struct Status {
    /// Open sockets and streams.
    pub connections: usize,
    /// Users behind them.
    pub users: usize,
    /// Topics in memory.
    pub topics: usize,
    /// The epoch of offsets.
    pub epoch: String,
    /// The largest offset.
    pub offset: u64,
}

/// One connection, for operators.
#[derive(Debug, Clone)]
pub struct Connected {
    /// Its name.
    pub id: u64,
    /// Where it connected.
    pub path: &'static str,
    /// Whose it is; none before it said so.
    pub user: Option<UserId>,
    /// How many topics it listens to.
    pub topics: usize,
    /// How long it has been there.
    pub age: Duration,
}

/// The hub; cheap to clone.
#[derive(Clone)]
pub struct Events {
    inner: Arc<Inner>,
}

struct Inner {
    hub: Arc<Hub>,
    closing: CancellationToken,
    writer: Mutex<Option<JoinHandle<()>>>,
}

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Events").field("hub", &self.inner.hub).finish_non_exhaustive()
    }
}

impl Events {
    /// Opens the log and starts its writer, on the caller's runtime. [`close`](Self::close) ends it.
    pub async fn open(parts: Parts) -> Result<Self, store::Error> {
        let Parts { config, store, verifier, owns, metrics, shutdown } = parts;
        let seen = Seen::new(Arc::clone(&store));
        let (log, writer) = Log::open(store, &config).await?;
        let closing = CancellationToken::new();
        let writer = tokio::spawn(writer.run(closing.clone()));
        shutdown.spawn(sweep(Arc::clone(&log), shutdown.clone()));
        let (census, tickets) = (Census::new(&config), Tickets::new(config.ticket_ttl));
        let floors = Mutex::default();
        let hub = Arc::new(Hub { config, log, seen, verifier, owns, metrics, shutdown, census, tickets, floors });
        let inner = Inner { hub, closing, writer: Mutex::new(Some(writer)) };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Publishes a message: returns when it has its place in the queue of the log (waiting for one while that is full).
    /// Messages of one caller keep their order. Everybody sees it once it is on disk.
    pub async fn publish(&self, topic: Topic, message: Message) -> Result<(), Error> {
        self.inner.hub.log.queue(topic, message, None).await
    }

    /// The same, but waits until it is on disk, and says where.
    pub async fn publish_logged(&self, topic: Topic, message: Message) -> Result<Position, Error> {
        let (sender, logged) = oneshot::channel();
        self.inner.hub.log.queue(topic, message, Some(sender)).await?;
        logged.await.map_err(|_| Error::Closed)
    }

    /// Whether anybody listens to a topic now. For what is not worth a place in the log when nobody does; whoever resumes
    /// later must then be told how things stand.
    pub fn is_heard(&self, topic: &Topic) -> bool {
        self.inner.hub.log.is_heard(topic)
    }

    /// Listens to a topic as long as the result lives, for tests of what is told to listeners only.
    #[cfg(test)]
    pub(crate) async fn hold(&self, topic: &Topic) -> Box<dyn std::any::Any + Send> {
        Box::new(self.inner.hub.log.topic(topic).await)
    }

    /// The newest events of a topic, oldest first, and the position they end at.
    pub async fn history(&self, topic: &Topic, limit: usize) -> Result<(Vec<Arc<Event>>, Position), Error> {
        let topic = self.inner.hub.log.topic(topic).await?;
        let events = topic.newest(limit);
        Ok((events, Position { epoch: self.inner.hub.log.epoch().to_string(), offset: topic.head() }))
    }

    /// The `[events]` section.
    pub fn config(&self) -> &Config {
        &self.inner.hub.config
    }

    /// A ticket to connect with, once and soon, from the same network and origin. None while too many are out.
    pub fn ticket(&self, principal: &Principal, ip: IpAddr, origin: Option<&str>) -> Option<(String, Duration)> {
        let tickets = &self.inner.hub.tickets;
        Some((tickets.issue(principal, ip, origin, Instant::now())?, tickets.ttl()))
    }

    /// Whose ticket it is, if it is good; it is not any more after that.
    pub fn redeem(&self, ticket: &str, ip: IpAddr, origin: Option<&str>) -> Option<Principal> {
        let principal = self.inner.hub.tickets.redeem(ticket, ip, origin, Instant::now())?;
        self.inner.hub.verifier.still_holds(&principal).then_some(principal)
    }

    /// Lets a client in, or says why not. `principal` is none for one that will say `Hello` with a credential.
    pub fn admit(&self, principal: Option<Principal>, ip: IpAddr, endpoint: Endpoint) -> Result<Entry, Problem> {
        self.inner.hub.admit(principal, ip, endpoint)
    }

    /// Serves a WebSocket from now on, on the event loop of the calling thread; `tasks` waits for it.
    pub async fn enter(&self, entry: Entry, wishes: Wishes, joining: Joining, tasks: &TaskTracker) {
        self.inner.hub.enter(entry, wishes, joining, tasks).await;
    }

    /// A stream of events for a client that was let in.
    pub async fn listen(&self, entry: Entry, topics: &[Topic], since: Option<&Position>) -> Result<Listener, Problem> {
        self.inner.hub.listen(entry, topics, since).await
    }

    /// How it is.
    pub fn status(&self) -> Status {
        let (connections, users) = self.inner.hub.census.size();
        let log = &self.inner.hub.log;
        Status { connections, users, topics: log.topics(), epoch: log.epoch().to_string(), offset: log.newest() }
    }

    /// Who is connected, the oldest first.
    pub fn connections(&self) -> Vec<Connected> {
        let all = self.inner.hub.census.everybody();
        let shown = all.iter().map(|connection| Connected {
            id: connection.id,
            path: connection.path,
            user: connection.user(),
            topics: connection.topics.load(Ordering::Relaxed),
            age: connection.connected.elapsed(),
        });
        shown.collect()
    }

    /// Closes sockets: those of a user, or one; how many were asked to.
    pub fn disconnect(&self, user: Option<&UserId>, id: Option<u64>, code: CloseCode) -> usize {
        let all = self.inner.hub.census.everybody();
        let meant = all.iter().filter(|connection| {
            id.is_some_and(|id| connection.id == id)
                || user.is_some_and(|user| connection.user().as_ref() == Some(user))
        });
        meant.map(|connection| connection.kick(code.number())).count()
    }

    /// Ends subscriptions of sockets to a topic, within a second: those of a user, or of one; how many sockets were asked to.
    pub fn unsubscribe(&self, user: Option<&UserId>, id: Option<u64>, topic: &Topic) -> usize {
        let all = self.inner.hub.census.everybody();
        let meant = all.iter().filter(|connection| {
            id.is_some_and(|id| connection.id == id)
                || user.is_some_and(|user| connection.user().as_ref() == Some(user))
        });
        meant.filter(|connection| connection.take_away(topic)).count()
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
    for count in 0.. {
        tokio::select! {
            _ = ticks.tick() => {}
            () = shutdown.begun() => return,
        }
        log.sweep(log::now_ms()).await;
        if count % SWEEPS != 0 {
            continue;
        }
        tokio::select! {
            swept = log.sweep_disk(log::now_ms()) => if let Err(error) = swept {
                tracing::warn!(%error, "look through the events of earlier runs");
            },
            () = shutdown.begun() => return,
        }
    }
}
