//! A client's connection taken out of HTTP: the socket itself, for what is spoken on it from now on.

use std::any::Any;
use std::os::fd::AsFd;
use std::time::Duration;

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio_util::task::TaskTracker;

use super::io::ClientIo;

/// How long the answer to the request may take to be written.
const TIMEOUT: Duration = Duration::from_secs(10);
/// What the kernel keeps for a client that does not read. It would grow to megabytes by itself.
const SEND_BUFFER: usize = 128 << 10;

/// The tasks of the worker that serves a connection, for handlers that take the connection over (a request extension of
/// requests that ask for it). The worker waits for them when it drains. They run on its event loop.
#[derive(Debug, Clone)]
pub struct WorkerTasks(pub TaskTracker);

/// A connection that was taken over.
#[expect(missing_debug_implementations, reason = "the place is anything")]
pub struct Taken {
    /// The socket, registered with the worker's event loop.
    pub stream: TcpStream,
    /// What the client sent behind its request.
    pub head: Vec<u8>,
    /// The place among all connections, given back when dropped.
    pub place: Box<dyn Any + Send>,
}

/// Waits until the request was answered with 101, and takes the connection. None when that did not come about.
pub async fn take(upgrade: OnUpgrade) -> Option<Taken> {
    let upgraded = tokio::time::timeout(TIMEOUT, upgrade).await.ok()?.ok()?;
    let parts = upgraded.downcast::<TokioIo<ClientIo>>().ok()?;
    let (stream, mut head, permit) = parts.io.into_inner().into_parts();
    if rustix::net::sockopt::set_socket_send_buffer_size(stream.as_fd(), SEND_BUFFER).is_err() {
        tracing::debug!("the send buffer of a socket keeps its size");
    }
    // hyper read its own part of what came first.
    let mut all = parts.read_buf.to_vec();
    all.append(&mut head);
    Some(Taken { stream, head: all, place: Box::new(permit) })
}
