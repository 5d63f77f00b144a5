//! Idle connections to instances, one pool per worker thread: no locks, and a request never leaves its core.
//!
//! A key names an address *and* the epoch of the process behind it, so a connection to a process that is gone can
//! never serve a request for its successor.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;
use std::time::Instant;

use hyper::client::conn::http1::Connection;
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::task::AbortHandle;

use super::upload::RequestBody;

/// An instance's process.
pub(crate) type Key = (SocketAddr, u64);

/// `PocketBase` closes idle connections after 300 s; staying well below avoids the race.
const IDLE_LIMIT: Duration = Duration::from_secs(90);
/// As many as an instance works on at once by default.
const MAX_IDLE_PER_KEY: usize = 32;

/// A connection and the task that drives it. Dropped, it is closed at once, whatever it was doing.
pub(crate) struct Upstream {
    pub(crate) sender: SendRequest<RequestBody>,
    driver: AbortHandle,
}

impl Upstream {
    /// Drives a connection on the current worker.
    pub(crate) fn drive(
        sender: SendRequest<RequestBody>,
        connection: Connection<TokioIo<TcpStream>, RequestBody>,
    ) -> Self {
        let driver = tokio::task::spawn_local(async move {
            // Whoever waits for an answer on this connection is told by hyper.
            let _ = connection.await;
        });
        Self { sender, driver: driver.abort_handle() }
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.driver.abort();
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
            if !candidate.upstream.sender.is_closed() {
                return Some(candidate.upstream);
            }
        }
        None
    }

    /// Keeps a connection that has nothing more to do, unless it is closed or there are enough.
    pub(crate) fn put(&self, key: Key, upstream: Upstream) {
        if upstream.sender.is_closed() {
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
            connections.retain(|idle| !idle.upstream.sender.is_closed() && idle.since.elapsed() <= IDLE_LIMIT);
            !connections.is_empty()
        });
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").finish_non_exhaustive()
    }
}
