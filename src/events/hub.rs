//! What the parts of the hub share, and how clients come in: sockets to the floor of their worker thread, streams
//! and long polls as listeners.

use std::any::Any;
use std::collections::HashMap;
use std::collections::VecDeque;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::thread::ThreadId;
use std::time::Duration;
use std::time::Instant;
use std::time::SystemTime;

use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::Interval;
use tokio::time::MissedTickBehavior;
use tokio_util::task::TaskTracker;

use super::Config;
use super::Event;
use super::Owns;
use super::Position;
use super::Topic;
use super::census::Census;
use super::census::Full;
use super::census::Seat;
use super::close::CloseCode;
use super::floor::Arrival;
use super::floor::Floor;
use super::log::Log;
use super::log::TopicLog;
use super::rights;
use super::seen::Seen;
use super::socket::Form;
use super::socket::Identity;
use super::socket::Made;
use super::tickets::Tickets;
use crate::auth::Principal;
use crate::auth::Verifier;
use crate::error::Code;
use crate::error::Problem;
use crate::shutdown::Shutdown;
use crate::telemetry::Metrics;

/// Sockets that may wait for their floor.
const ARRIVALS: usize = 256;
/// Events that may wait for one listener; beyond, it ends and resumes.
const LISTENER: usize = 1_024;

pub(super) struct Hub {
    pub(super) config: Config,
    pub(super) log: Arc<Log>,
    pub(super) seen: Seen,
    pub(super) verifier: Verifier,
    pub(super) owns: Owns,
    pub(super) metrics: Arc<Metrics>,
    pub(super) shutdown: Shutdown,
    pub(super) census: Arc<Census>,
    pub(super) tickets: Tickets,
    pub(super) floors: Mutex<HashMap<ThreadId, mpsc::Sender<Arrival>>>,
}

impl fmt::Debug for Hub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hub").field("log", &self.log).finish_non_exhaustive()
    }
}

/// Where clients connect. The addresses differ only in what one listens to without asking.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Endpoint {
    /// `/queue_updates`: the caller's queue.
    QueueUpdates,
    /// `/ws` and `/api/v1/ws`: what concerns the caller, and everybody.
    Main,
    /// `/api/v1/events` and its poll: what the address names.
    Stream,
}

impl Endpoint {
    fn path(self) -> &'static str {
        match self {
            Self::QueueUpdates => "/queue_updates",
            Self::Main => "/ws",
            Self::Stream => "/api/v1/events",
        }
    }

    fn implicit(self) -> &'static [&'static str] {
        match self {
            Self::QueueUpdates => &["queue"],
            Self::Main => &["user", "system"],
            Self::Stream => &[],
        }
    }
}

/// A client that was let in.
#[derive(Debug)]
pub struct Entry {
    seat: Seat,
    identity: Option<Identity>,
    endpoint: Endpoint,
}

/// What a client's address and handshake ask for.
#[derive(Debug, Default)]
pub struct Wishes {
    /// Whether it offered `cp.v1.json`.
    pub is_enveloped: bool,
    /// `subscribe=` in the address.
    pub topics: Vec<Topic>,
    /// `since=` in the address.
    pub since: Option<Position>,
}

/// A connection that speaks WebSocket from now on.
#[expect(missing_debug_implementations, reason = "the place is anything")]
pub struct Joining {
    /// The socket, registered with the event loop of the calling thread.
    pub stream: TcpStream,
    /// What was read behind the request.
    pub head: Vec<u8>,
    /// Dropped when the connection is over.
    pub place: Box<dyn Any + Send>,
}

fn refusal(full: Full) -> Problem {
    match full {
        Full::Node => Problem::new(Code::Overloaded).retry_after(Duration::from_secs(5)),
        Full::User => Problem::new(Code::RateLimited)
            .message("this account has as many sockets as it may; close one")
            .retry_after(Duration::from_secs(10)),
        Full::Address => Problem::new(Code::RateLimited)
            .message("too many sockets from this address; close one")
            .retry_after(Duration::from_secs(10)),
        Full::Rate(wait) => Problem::new(Code::RateLimited).retry_after(wait),
    }
}

impl Hub {
    /// Lets a client in, if there is room; `principal` is none for one that will say `Hello` with a credential.
    pub(super) fn admit(&self, principal: Option<Principal>, ip: IpAddr, endpoint: Endpoint) -> Result<Entry, Problem> {
        if self.shutdown.has_begun() {
            return Err(Problem::new(Code::ShuttingDown).retry_after(Duration::from_secs(1)));
        }
        let identity = principal.map(|principal| {
            let standing = self.verifier.standing(&principal)?;
            Ok::<_, crate::auth::Error>(Identity { principal, standing })
        });
        let identity = identity.transpose()?;
        let user = identity.as_ref().map(|identity| &identity.principal.user);
        let seat = self.census.admit(user, ip, endpoint.path(), Instant::now()).map_err(|full| {
            self.metrics.socket_refused(full.label());
            refusal(full)
        })?;
        Ok(Entry { seat, identity, endpoint })
    }

    /// Hands a socket to the floor of the calling thread, which `tasks` waits for.
    pub(super) async fn enter(self: &Arc<Self>, entry: Entry, wishes: Wishes, joining: Joining, tasks: &TaskTracker) {
        let Entry { seat, identity, endpoint } = entry;
        let Joining { stream, head, place } = joining;
        let form = if wishes.is_enveloped { Form::Enveloped } else { Form::Plain };
        let budget = self.config.max_unsent_bytes;
        let made = Made { stream, place, seat, implicit: endpoint.implicit(), form, identity, budget };
        let arrival = Arrival { made, head, since: wishes.since, topics: wishes.topics };
        // A floor that has ended takes nobody: we are stopping, and the socket is closed.
        let _ = self.floor(tasks).send(arrival).await;
    }

    /// The floor of this thread; it begins with its first socket.
    fn floor(self: &Arc<Self>, tasks: &TaskTracker) -> mpsc::Sender<Arrival> {
        let mut floors = self.floors.lock().unwrap_or_else(PoisonError::into_inner);
        let start = || {
            let (sender, arrivals) = mpsc::channel(ARRIVALS);
            tasks.spawn_local(Floor::run(Arc::clone(self), arrivals, tasks.clone()));
            sender
        };
        floors.entry(std::thread::current().id()).or_insert_with(start).clone()
    }

    /// Begins to listen. Absent and forbidden topics are the same.
    pub(super) async fn listen(
        self: &Arc<Self>,
        entry: Entry,
        topics: &[Topic],
        since: Option<&Position>,
    ) -> Result<Listener, Problem> {
        let Entry { seat, identity, .. } = entry;
        let identity = identity.ok_or_else(|| Problem::new(Code::Unauthorized))?;
        if topics.is_empty() || !topics.iter().all(|topic| rights::may_listen(self, &identity, topic)) {
            return Err(Problem::new(Code::NotFound).message("there is no such topic"));
        }
        let mut logs = Vec::new();
        for topic in topics {
            logs.push(self.log.topic(topic).await?);
        }
        let (events, epoch) = join(&self.log, &logs);
        // Everything up to here is read from the rings, everything after it is told: in one order over all topics, so
        // that the offset of the last event is enough to go on from.
        let newest = self.log.newest();
        let (mut missed, mut recovered) = (Vec::new(), true);
        for log in &logs {
            let (replay, _) = self.log.replay(log, since);
            recovered &= replay.recovered;
            missed.extend(replay.events.into_iter().filter(|event| event.offset <= newest));
        }
        missed.sort_by_key(|event| event.offset);
        let mut check = tokio::time::interval(self.config.check_interval);
        check.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Ok(Listener {
            hub: Arc::clone(self),
            seat,
            identity,
            missed: missed.into(),
            events,
            topics: logs,
            epoch,
            position: newest,
            given: since.map_or(newest, |since| since.offset),
            recovered: since.map(|_| recovered),
            check,
            quiet_since: Instant::now(),
        })
    }
}

/// Listens to topics. Whatever comes of them is of the epoch that is returned, or the channel ends.
fn join(log: &Log, topics: &[Arc<TopicLog>]) -> (mpsc::Receiver<Arc<Event>>, Arc<str>) {
    loop {
        let epoch = log.epoch();
        let (sender, events) = mpsc::channel(LISTENER);
        for topic in topics {
            topic.listen(sender.clone());
        }
        // The end of an epoch drops listeners topic by topic; who joined some before and some after would miss events.
        if log.epoch() == epoch {
            return (events, epoch);
        }
    }
}

impl Full {
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::Node => "node",
            Self::User => "user",
            Self::Address => "address",
            Self::Rate(_) => "rate",
        }
    }
}

/// A stream of events for one client.
#[derive(Debug)]
pub struct Listener {
    hub: Arc<Hub>,
    seat: Seat,
    identity: Identity,
    missed: VecDeque<Arc<Event>>,
    events: mpsc::Receiver<Arc<Event>>,
    /// Keeps them in memory.
    topics: Vec<Arc<TopicLog>>,
    /// The order that its offsets belong to; it ends with it.
    epoch: Arc<str>,
    /// Everything up to here was among what was missed, or was given.
    position: u64,
    /// The offset of the last missed event that was given, or where the client stood before.
    given: u64,
    recovered: Option<bool>,
    check: Interval,
    quiet_since: Instant,
}

/// What a listener hears.
#[derive(Debug)]
pub enum Heard {
    /// An event.
    Event(Arc<Event>),
    /// Nothing for a while.
    Quiet,
    /// The end, and why.
    End(CloseCode),
}

impl Listener {
    /// Whether nothing is missing after `since`; none if there was none.
    pub fn recovered(&self) -> Option<bool> {
        self.recovered
    }

    /// Where it stands before the first event that is yet to come.
    pub fn position(&self) -> Position {
        let offset = if self.missed.is_empty() { self.position } else { self.given };
        Position { epoch: self.epoch.to_string(), offset }
    }

    /// What is there already.
    pub fn take_ready(&mut self, most: usize) -> Vec<Arc<Event>> {
        let mut ready = Vec::new();
        while ready.len() < most {
            if let Some(event) = self.pop_missed() {
                ready.push(event);
                continue;
            }
            match self.events.try_recv() {
                Ok(event) => ready.extend(self.fresh(event)),
                Err(_) => break,
            }
        }
        ready
    }

    /// What comes next; waits for it. Nothing is lost when the future is dropped.
    pub async fn next(&mut self) -> Heard {
        loop {
            if let Some(event) = self.pop_missed() {
                return Heard::Event(event);
            }
            tokio::select! {
                biased;
                () = self.hub.shutdown.begun() => return Heard::End(CloseCode::Restart),
                // Before the events: there may always be one.
                _ = self.check.tick() => {
                    if let Some(end) = self.verdict(SystemTime::now()) {
                        return Heard::End(end);
                    }
                    if self.quiet_since.elapsed() >= self.hub.config.ping {
                        self.quiet_since = Instant::now();
                        return Heard::Quiet;
                    }
                }
                event = self.events.recv() => match event {
                    Some(event) => {
                        if let Some(event) = self.fresh(event) {
                            self.quiet_since = Instant::now();
                            return Heard::Event(event);
                        }
                    }
                    None if self.hub.log.epoch() != self.epoch => return Heard::End(CloseCode::InsufficientState),
                    None => return Heard::End(CloseCode::Slow),
                },
            }
        }
    }

    fn pop_missed(&mut self) -> Option<Arc<Event>> {
        let event = self.missed.pop_front()?;
        self.given = event.offset;
        Some(event)
    }

    /// The event, unless it was among what was missed.
    fn fresh(&mut self, event: Arc<Event>) -> Option<Arc<Event>> {
        if event.offset <= self.position {
            return None;
        }
        self.position = event.offset;
        Some(event)
    }

    fn verdict(&mut self, time: SystemTime) -> Option<CloseCode> {
        if let Some(code) = self.seat.connection.kicked() {
            return Some(CloseCode::of(code).unwrap_or(CloseCode::Forced));
        }
        if self.identity.principal.expires <= time {
            return Some(CloseCode::Expired);
        }
        let holds = self.hub.verifier.holds(&mut self.identity.standing, time);
        let may = |topic: &Topic| rights::may_listen(&self.hub, &self.identity, topic);
        (!holds || !self.topics.iter().map(|log| &log.topic).all(may)).then_some(CloseCode::Revoked)
    }
}
