//! The sockets of one worker thread: one task that gives them what was logged and looks after them, and a small task
//! for each that reads.
//!
//! Everything here runs on one thread, so nothing is locked and nothing changes between two awaits. Subscribing joins
//! the index first and reads the log after, without an await between: what is logged meanwhile comes both ways and is
//! recognised by its offset.

use std::cell::Cell;
use std::cell::RefCell;
use std::collections::HashMap;
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::Instant;
use std::time::SystemTime;

use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;
use tokio_util::task::TaskTracker;

use super::Hub;
use super::Position;
use super::Topic;
use super::close::CloseCode;
use super::event::Event;
use super::filter::Filter;
use super::frame;
use super::log::TopicLog;
use super::log::now_ms;
use super::message::ServerFrame;
use super::message::Subscribed;
use super::rights;
use super::sinks::Batch;
use super::sinks::Drain;
use super::sinks::News;
use super::socket::Form;
use super::socket::Phase;
use super::socket::Socket;
use super::talk;
use crate::error::Code;

/// Sockets that are written to before the others on this thread get a turn. Few: what publishers say meanwhile is read
/// in between, and joins the round for all that are still to be written to.
const TURN: usize = 32;
/// Sockets from which on a write for each costs more than a moment's wait for what is on its way to the disk already.
const MANY: usize = 64;
/// How long that wait may be: a disk that is slower is not waited for.
const SOON: Duration = Duration::from_millis(1);
/// Times that what came meanwhile joins what is being written; then everything else on this thread gets its turn.
const JOINED: usize = 32;
/// Parts of a round of looking after everybody.
const SLICES: u32 = 10;
/// How long a client may take nothing of what waits for it.
const STALLED: Duration = Duration::from_secs(30);
/// Sockets are let go in groups this far apart when everything stops.
const DRAIN_STEP: Duration = Duration::from_millis(50);
/// The smallest such group.
const DRAIN_GROUP: usize = 64;
/// How long the last of them may take to close.
const DRAIN_LAST: Duration = Duration::from_secs(2);

/// A client on its way to its worker's floor.
pub(super) struct Arrival {
    pub(super) made: super::socket::Made,
    /// What was read behind the request.
    pub(super) head: Vec<u8>,
    pub(super) since: Option<Position>,
    /// Topics that the address asks for.
    pub(super) topics: Vec<Topic>,
}

/// Why a client gets a topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum How {
    /// It asked.
    Asked,
    /// It goes on from where it was just told that it stands; there is nothing to report.
    Continued,
    /// Because of where it connected.
    Implicit,
}

/// One socket's subscription.
struct Member {
    socket: Rc<Socket>,
    /// The largest offset it got.
    position: Cell<u64>,
    /// Whether the client asked for it; else it gets only what its documents name.
    is_asked: bool,
    /// Which events the client wants; none: all.
    filter: Option<Rc<Filter>>,
}

impl Member {
    fn wants(&self, event: &Event) -> bool {
        self.filter.as_ref().is_none_or(|filter| filter.fits(event))
    }
}

struct Room {
    /// Keeps the topic in memory.
    _log: Arc<TopicLog>,
    members: Vec<Member>,
}

pub(super) struct Floor {
    pub(super) hub: Arc<Hub>,
    sockets: RefCell<Vec<Rc<Socket>>>,
    rooms: RefCell<HashMap<Topic, Room>>,
    /// Where the round of looking after everybody is.
    next: Cell<usize>,
    scratch: RefCell<Vec<u8>>,
}

/// Bytes that are read at once.
const SCRATCH: usize = 16 << 10;

impl Floor {
    /// Serves until the hub stops and every socket is gone.
    pub(super) async fn run(hub: Arc<Hub>, mut arrivals: mpsc::Receiver<Arrival>, tasks: TaskTracker) {
        let mut news = hub.log.sinks.join();
        let slice = hub.config.check_interval / SLICES;
        let floor = Rc::new(Self {
            hub,
            sockets: RefCell::default(),
            rooms: RefCell::default(),
            next: Cell::new(0),
            scratch: RefCell::new(vec![0; SCRATCH]),
        });
        let mut ticks = tokio::time::interval(slice);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            // Nobody to look after: no timer either.
            let has_sockets = !floor.sockets.borrow().is_empty();
            tokio::select! {
                () = floor.hub.shutdown.begun() => break,
                got = news.next() => match got {
                    Some(News::Events(batches)) => floor.fan_out(batches, &mut news).await,
                    Some(News::Lost) => floor.close_all(CloseCode::InsufficientState),
                    None => break,
                },
                arrival = arrivals.recv() => match arrival {
                    Some(arrival) => floor.welcome(arrival, &tasks),
                    None => break,
                },
                _ = ticks.tick(), if has_sockets => floor.look(),
            }
        }
        arrivals.close();
        floor.drain().await;
    }

    fn welcome(self: &Rc<Self>, arrival: Arrival, tasks: &TaskTracker) {
        let Arrival { made, head, since, topics } = arrival;
        let socket = Socket::new(made, Instant::now());
        self.sockets.borrow_mut().push(Rc::clone(&socket));
        self.hub.metrics.ws_connections.inc();
        let floor = Rc::clone(self);
        tasks.spawn_local(async move {
            talk::begin(&floor, &socket, since, topics).await;
            floor.read(&socket, head).await;
            floor.leave(&socket);
        });
    }

    /// Reads until the socket is gone.
    async fn read(self: &Rc<Self>, socket: &Rc<Socket>, mut head: Vec<u8>) {
        let mut reader = frame::Reader::new(self.hub.config.max_message_bytes);
        let mut messages = Vec::new();
        loop {
            let fed = if head.is_empty() {
                Ok(())
            } else {
                reader.feed(&mut head, |message| {
                    messages.push(message);
                    true
                })
            };
            head = Vec::new();
            for message in messages.drain(..) {
                if socket.phase.get() != Phase::Gone {
                    talk::incoming(self, socket, message).await;
                }
            }
            if let Err(code) = fed {
                socket.close(code, Instant::now());
                // Nothing that follows can be understood.
                return self.linger(socket).await;
            }
            tokio::select! {
                biased;
                () = socket.wake.notified() => {}
                ready = socket.stream.writable(), if socket.blocked.get() => {
                    if ready.is_err() { return socket.gone(); }
                    let written = socket.flush();
                    self.hub.metrics.ws_bytes_out.inc_by(written as u64);
                    if written > 0 { socket.heard.set(Instant::now()); }
                }
                ready = socket.stream.readable() => {
                    if ready.is_err() { return socket.gone(); }
                    let mut scratch = self.scratch.borrow_mut();
                    match socket.stream.try_read(&mut scratch) {
                        Ok(0) => return socket.gone(),
                        Ok(count) => {
                            self.hub.metrics.ws_bytes_in.inc_by(count as u64);
                            head.extend_from_slice(&scratch[..count]);
                        }
                        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                        Err(_) => return socket.gone(),
                    }
                }
            }
            if socket.phase.get() == Phase::Gone {
                return;
            }
        }
    }

    /// Lets the close frame out and drops what still comes, until the client closes or its time is up.
    async fn linger(&self, socket: &Rc<Socket>) {
        while let Phase::Closing(until) = socket.phase.get() {
            tokio::select! {
                () = tokio::time::sleep_until(until.into()) => return socket.gone(),
                () = socket.wake.notified() => {}
                ready = socket.stream.writable(), if socket.blocked.get() => {
                    if ready.is_err() { return socket.gone(); }
                    socket.flush();
                }
                ready = socket.stream.readable() => {
                    if ready.is_err() { return socket.gone(); }
                    match socket.stream.try_read(&mut self.scratch.borrow_mut()) {
                        Ok(count) if count > 0 => {}
                        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                        _ => return socket.gone(),
                    }
                }
            }
        }
    }

    fn leave(&self, socket: &Rc<Socket>) {
        let topics = std::mem::take(&mut *socket.topics.borrow_mut());
        for topic in topics {
            self.unsubscribe(socket, &topic);
        }
        let mut sockets = self.sockets.borrow_mut();
        if let Some(index) = sockets.iter().position(|other| Rc::ptr_eq(other, socket)) {
            sockets.swap_remove(index);
        }
        let code = if socket.code.get() == 0 { 1006 } else { socket.code.get() };
        self.hub.metrics.ws_connections.dec();
        self.hub.metrics.socket_closed(code);
    }

    /// Adds a subscription and sends what was missed. The topic is loaded.
    pub(super) fn subscribe(
        &self,
        socket: &Rc<Socket>,
        log: &Arc<TopicLog>,
        since: Option<&Position>,
        how: How,
        filter: Option<&Rc<Filter>>,
    ) -> Subscribed {
        let now = Instant::now();
        if !socket.topics.borrow().contains(&log.topic) {
            socket.topics.borrow_mut().push(log.topic.clone());
            socket.seat.connection.topics.fetch_add(1, Ordering::Relaxed);
            self.hub.metrics.ws_subscriptions.inc();
        }
        let (replay, head) = self.hub.log.replay(log, since);
        let mut rooms = self.rooms.borrow_mut();
        let fresh = || Room { _log: Arc::clone(log), members: Vec::new() };
        let room = rooms.entry(log.topic.clone()).or_insert_with(fresh);
        room.members.retain(|member| !Rc::ptr_eq(&member.socket, socket));
        let (socket, position) = (Rc::clone(socket), Cell::new(head));
        let is_asked = how != How::Implicit;
        let member = Member { socket: Rc::clone(&socket), position, is_asked, filter: filter.cloned() };
        let missed: Vec<_> = replay.events.iter().filter(|event| member.wants(event)).collect();
        room.members.push(member);
        drop(rooms);
        let epoch = self.hub.log.epoch().to_string();
        if since.is_some() {
            for event in &missed {
                deliver(&socket, event, is_asked, now);
            }
            if how != How::Continued {
                self.hub.metrics.socket_recovered(replay.recovered);
            }
            if socket.form.get() == Form::Enveloped && how != How::Continued {
                let (topic, count) = (log.topic.to_string(), missed.len());
                socket.say(&ServerFrame::Recovered { topic, recovered: replay.recovered, count, offset: head }, now);
            }
        }
        Subscribed { topic: log.topic.to_string(), epoch, offset: head }
    }

    /// Gives a subscription another filter; whether there is one.
    pub(super) fn refilter(&self, socket: &Rc<Socket>, topic: &Topic, filter: Option<&Rc<Filter>>) -> bool {
        let mut rooms = self.rooms.borrow_mut();
        let members = rooms.get_mut(topic).map(|room| room.members.iter_mut());
        let member = members.and_then(|mut members| members.find(|member| Rc::ptr_eq(&member.socket, socket)));
        member.map(|member| member.filter = filter.cloned()).is_some()
    }

    /// Ends a subscription; whether there was one.
    pub(super) fn unsubscribe(&self, socket: &Rc<Socket>, topic: &Topic) -> bool {
        socket.topics.borrow_mut().retain(|other| other != topic);
        let mut rooms = self.rooms.borrow_mut();
        let Some(room) = rooms.get_mut(topic) else { return false };
        let Some(index) = room.members.iter().position(|member| Rc::ptr_eq(&member.socket, socket)) else {
            return false;
        };
        room.members.swap_remove(index);
        if room.members.is_empty() {
            rooms.remove(topic);
        }
        socket.seat.connection.topics.fetch_sub(1, Ordering::Relaxed);
        self.hub.metrics.ws_subscriptions.dec();
        true
    }

    /// Gives events to whoever listens: everything that came is queued first, and then written, one write a socket.
    /// When there are many to write to and the log is writing more, that is waited for, too: messages that publishers
    /// say at the same time go out with one write although they are rarely of one commit. What comes while many are
    /// written to is queued too, so that those who are still to be written to get it with the same write.
    async fn fan_out(&self, batches: Vec<Batch>, news: &mut Drain) {
        let mut dirty: VecDeque<Rc<Socket>> = VecDeque::new();
        let mut oldest = self.queue(&batches, &mut dirty);
        let (mut written, mut count, mut is_lost) = (0, 0_u64, false);
        let mut joined = 0;
        if dirty.len() >= MANY && self.hub.log.is_writing() {
            match tokio::time::timeout(SOON, news.next()).await {
                Ok(Some(News::Events(batches))) => {
                    oldest = [oldest, self.queue(&batches, &mut dirty)].into_iter().flatten().min();
                }
                Ok(Some(News::Lost)) => is_lost = true,
                Ok(None) | Err(_) => {}
            }
        }
        loop {
            for socket in dirty.drain(..dirty.len().min(TURN)) {
                count += 1;
                if socket.blocked.get() {
                    socket.dirty.set(false);
                } else {
                    written += socket.flush();
                }
            }
            if dirty.is_empty() {
                break;
            }
            tokio::task::yield_now().await;
            if joined < JOINED && !is_lost {
                match news.ready() {
                    Some(News::Events(batches)) => {
                        joined += 1;
                        oldest = [oldest, self.queue(&batches, &mut dirty)].into_iter().flatten().min();
                    }
                    Some(News::Lost) => is_lost = true,
                    None => {}
                }
            }
        }
        if is_lost {
            self.close_all(CloseCode::InsufficientState);
        }
        if let Some(at) = oldest {
            let metrics = &self.hub.metrics;
            metrics.ws_bytes_out.inc_by(written as u64);
            metrics.ws_writes.inc_by(count);
            #[expect(clippy::cast_precision_loss, reason = "milliseconds of one delivery")]
            metrics.ws_delivery_seconds.observe((now_ms() - at).max(0) as f64 / 1_000.0);
        }
    }

    /// Queues events for whoever listens and notes whom to write to. Returns when the oldest of them came.
    fn queue(&self, batches: &[Batch], dirty: &mut VecDeque<Rc<Socket>>) -> Option<i64> {
        let now = Instant::now();
        let mut oldest: Option<i64> = None;
        let rooms = self.rooms.borrow();
        for event in batches.iter().flat_map(|batch| batch.iter()) {
            let Some(room) = rooms.get(&event.topic) else { continue };
            oldest = Some(oldest.map_or(event.at_ms, |at| at.min(event.at_ms)));
            for member in &room.members {
                if member.position.get() >= event.offset {
                    continue;
                }
                member.position.set(event.offset);
                if !member.wants(event) {
                    continue;
                }
                deliver(&member.socket, event, member.is_asked, now);
                if !member.socket.dirty.replace(true) {
                    dirty.push_back(Rc::clone(&member.socket));
                }
            }
        }
        oldest
    }

    fn close_all(&self, code: CloseCode) {
        let now = Instant::now();
        for socket in self.sockets.borrow().iter() {
            socket.close(code, now);
        }
    }

    /// Looks after a part of the sockets: sessions, rights, pings, clients that are stuck, closes that take too long.
    fn look(&self) {
        let sockets = self.sockets.borrow();
        let part = sockets.len().div_ceil(SLICES as usize);
        let (now, time) = (Instant::now(), SystemTime::now());
        for step in 0..part {
            let index = self.next.get() % sockets.len();
            self.next.set(index + 1);
            if let Some(socket) = sockets.get(index) {
                self.look_at(socket, now, time);
            }
            debug_assert!(step < sockets.len());
        }
    }

    fn look_at(&self, socket: &Rc<Socket>, now: Instant, time: SystemTime) {
        let config = &self.hub.config;
        match socket.phase.get() {
            Phase::Closing(until) if now >= until => return socket.gone(),
            Phase::Closing(_) | Phase::Gone => return,
            Phase::Open => {}
        }
        if let Some(code) = socket.seat.connection.kicked() {
            return socket.close(CloseCode::of(code).unwrap_or(CloseCode::Forced), now);
        }
        let silent = now.saturating_duration_since(socket.heard.get());
        if !socket.greeted.get() && silent >= config.hello_timeout {
            return socket.close(CloseCode::Stale, now);
        }
        if let Some(identity) = socket.identity.borrow_mut().as_mut() {
            if identity.principal.expires <= time {
                return socket.close(CloseCode::Expired, now);
            }
            if !self.hub.verifier.holds(&mut identity.standing, time) {
                return socket.close(CloseCode::Revoked, now);
            }
        }
        for topic in socket.seat.connection.taken() {
            if self.unsubscribe(socket, &topic) {
                told_of_end(socket, &topic, Code::Forbidden, now);
            }
        }
        self.recheck(socket, now);
        match socket.pinged.get() {
            Some(since) if now.saturating_duration_since(since) >= config.pong => {
                socket.close(CloseCode::NoPong, now);
            }
            None if silent >= config.ping => {
                socket.pinged.set(Some(now));
                socket.push(&frame::ping(), now);
                socket.flush();
            }
            _ if socket.blocked.get() && silent >= STALLED => socket.close(CloseCode::Slow, now),
            _ => {}
        }
    }

    /// Ends subscriptions whose right is gone.
    fn recheck(&self, socket: &Rc<Socket>, now: Instant) {
        let may_lose = |topic: &&Topic| matches!(topic, Topic::Instance(_) | Topic::User(_));
        let lost: Vec<Topic> = {
            let identity = socket.identity.borrow();
            let Some(identity) = identity.as_ref() else { return };
            let topics = socket.topics.borrow();
            let watched = topics.iter().filter(may_lose);
            watched.filter(|topic| !rights::may_listen(&self.hub, identity, topic)).cloned().collect()
        };
        for topic in lost {
            self.unsubscribe(socket, &topic);
            told_of_end(socket, &topic, Code::NotFound, now);
        }
    }

    /// Lets everybody go, in groups, so that they do not all come back at once.
    async fn drain(&self) {
        let everybody: Vec<Rc<Socket>> = self.sockets.borrow().iter().cloned().collect();
        if everybody.is_empty() {
            return;
        }
        let window = self.hub.config.drain;
        let steps = usize::try_from(window.as_millis() / DRAIN_STEP.as_millis()).unwrap_or(1).max(1);
        for group in everybody.chunks(everybody.len().div_ceil(steps).max(DRAIN_GROUP)) {
            let now = Instant::now();
            for socket in group {
                let most = u64::try_from(window.as_millis()).unwrap_or(u64::MAX).max(1_000);
                socket.close_with(CloseCode::Restart, None, rand::random_range(100..=most), now);
            }
            tokio::time::sleep(DRAIN_STEP).await;
        }
        drop(everybody);
        let deadline = Instant::now() + DRAIN_LAST;
        while !self.sockets.borrow().is_empty() {
            if Instant::now() >= deadline {
                for socket in self.sockets.borrow().iter() {
                    socket.gone();
                }
            }
            tokio::time::sleep(DRAIN_STEP / 5).await;
        }
    }
}

/// Tells a client that speaks `cp.v1` that a subscription is over.
fn told_of_end(socket: &Socket, topic: &Topic, code: Code, now: Instant) {
    if socket.form.get() == Form::Enveloped {
        let (topic, code) = (topic.to_string(), code.as_str().to_owned());
        socket.say(&ServerFrame::Unsubscribed { topic, code }, now);
        socket.flush();
    }
}

/// Queues an event for a client, in the form that it speaks.
fn deliver(socket: &Socket, event: &Event, is_asked: bool, now: Instant) {
    match socket.form.get() {
        Form::Enveloped => socket.push(event.frame(), now),
        Form::Plain if is_asked || event.is_seed() => socket.push(event.flat_frame(), now),
        Form::Plain => {}
    }
}
