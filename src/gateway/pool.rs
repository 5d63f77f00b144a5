//! Idle connections to instances, one pool per worker thread: no locks, and a request never leaves its core.
//!
//! A key names an address *and* the epoch of the process behind it, so a connection to a process that is gone can
//! never serve a request for its successor.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::Context;
use std::task::Waker;
use std::time::Duration;
use std::time::Instant;

use hyper::client::conn::http1::Connection;
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio_util::task::AbortOnDropHandle;

use super::upload::RequestBody;

/// An instance's process.
pub(crate) type Key = (SocketAddr, u64);

/// `PocketBase` closes idle connections after 300 s; staying well below avoids the race.
const IDLE_LIMIT: Duration = Duration::from_secs(90);
/// As many as an instance works on at once by default.
const MAX_IDLE_PER_KEY: usize = 32;

/// A connection, driven by whoever waits for something on it: a request and its answer then need no wake-ups between
/// tasks. Dropped, it is closed at once, whatever it was doing.
pub(crate) struct Upstream {
    pub(crate) sender: SendRequest<RequestBody>,
    pub(crate) driver: Driver,
}

/// What moves a connection's bytes.
pub(crate) enum Driver {
    /// Its user does, by polling it.
    Here(Box<Connection<TokioIo<TcpStream>, RequestBody>>),
    /// A task of its own does.
    Task { _task: AbortOnDropHandle<()> },
    /// Nothing any more: the connection has ended.
    Ended,
}

impl Upstream {
    pub(crate) fn new(
        sender: SendRequest<RequestBody>,
        connection: Connection<TokioIo<TcpStream>, RequestBody>,
    ) -> Self {
        Self { sender, driver: Driver::Here(Box::new(connection)) }
    }

    /// Whether a new request may be sent on it, as far as the socket's readiness tells.
    fn is_open(&mut self) -> bool {
        // Nobody is there to be woken: whoever takes the connection polls it anew.
        self.driver.poll_quietly();
        self.is_idle()
    }

    fn is_idle(&self) -> bool {
        matches!(self.driver, Driver::Here(_)) && self.sender.is_ready()
    }
}

impl Driver {
    /// Moves what can be moved just now, and has the caller woken when there may be more.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) {
        if let Self::Here(connection) = self
            && Pin::new(&mut **connection).poll(cx).is_ready()
        {
            // Whoever waits for an answer on this connection is told by hyper, once it is dropped.
            *self = Self::Ended;
        }
    }

    /// Moves what can be moved just now, and wakes nobody: not later, and not the caller for what this call itself
    /// brings about, which would cost each answer another turn of the caller's task.
    pub(crate) fn poll_quietly(&mut self) {
        self.poll(&mut Context::from_waker(Waker::noop()));
    }

    /// Lets a task drive the connection from now on. Such a connection is not used again.
    pub(crate) fn detach(&mut self) {
        if let Self::Here(connection) = std::mem::replace(self, Self::Ended) {
            let task = tokio::task::spawn_local(async move {
                let _ = connection.await;
            });
            *self = Self::Task { _task: AbortOnDropHandle::new(task) };
        }
    }
}

impl fmt::Debug for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Upstream").finish_non_exhaustive()
    }
}

struct Idle {
    upstream: Upstream,
    since: Instant,
}

/// The idle connections of one worker.
#[derive(Default)]
pub(crate) struct Pool {
    idle: RefCell<HashMap<Key, Vec<Idle>>>,
}

impl Pool {
    /// The most recently used open connection.
    pub(crate) fn take(&self, key: &Key) -> Option<Upstream> {
        let mut idle = self.idle.borrow_mut();
        let connections = idle.get_mut(key)?;
        while let Some(candidate) = connections.pop() {
            if candidate.since.elapsed() > IDLE_LIMIT {
                // The others are older still.
                connections.clear();
                return None;
            }
            let Idle { mut upstream, .. } = candidate;
            if upstream.is_open() {
                return Some(upstream);
            }
        }
        None
    }

    /// Keeps a connection that has nothing more to do, unless it is closed or there are enough.
    pub(crate) fn put(&self, key: Key, mut upstream: Upstream) {
        if !upstream.is_idle() && !upstream.is_open() {
            return;
        }
        let mut idle = self.idle.borrow_mut();
        let connections = idle.entry(key).or_default();
        if connections.len() < MAX_IDLE_PER_KEY {
            connections.push(Idle { upstream, since: Instant::now() });
        }
    }

    /// Forgets what is closed or too old, and instances without connections.
    pub(crate) fn sweep(&self) {
        self.idle.borrow_mut().retain(|_, connections| {
            connections.retain_mut(|idle| idle.upstream.is_open() && idle.since.elapsed() <= IDLE_LIMIT);
            !connections.is_empty()
        });
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").finish_non_exhaustive()
    }
}
