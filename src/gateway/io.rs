//! The client's socket as hyper sees it: framing watched on the way in, a client that stops reading (or drips) cut on the way
//! out, and the connection's place among all connections given back when it closes (also after an upgrade, which
//! takes the socket out of hyper's hands).
//!
//! A request that is refused while the client still sends it is closed with a linger: closing a socket with unread
//! bytes resets it, and the client would lose the very answer that says what was wrong.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::task::Context;
use std::task::Poll;
use std::task::ready;
use std::time::Duration;

use tokio::io::AsyncRead;
use tokio::io::AsyncWrite;
use tokio::io::ReadBuf;
use tokio::net::TcpStream;
use tokio::time::Sleep;

use super::accept::Permit;
use super::framing::Framing;
use super::stall::Stall;

/// How long, and for how many bytes, a refused sender is listened to after its answer.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES: usize = 4 * 1024 * 1024;

/// Set where the connection does not speak HTTP/1 (any more).
#[derive(Debug, Clone, Default)]
pub(crate) struct Upgraded(Arc<AtomicBool>);

impl Upgraded {
    /// From now on the bytes are not HTTP/1.
    pub(crate) fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

#[derive(Debug)]
pub(crate) struct ClientIo {
    stream: TcpStream,
    /// What was read to tell the protocol, not yet handed on.
    head: Vec<u8>,
    framing: Framing,
    upgraded: Upgraded,
    writing: Stall,
    linger: Option<Linger>,
    permit: Permit,
}

#[derive(Debug)]
struct Linger {
    until: Pin<Box<Sleep>>,
    left: usize,
}

impl ClientIo {
    pub(crate) fn new(stream: TcpStream, upgraded: Upgraded, head: Vec<u8>, writing: Stall, permit: Permit) -> Self {
        Self { stream, head, framing: Framing::new(), upgraded, writing, linger: None, permit }
    }

    /// The socket itself, what was read of it before and not handed on, and its place among all connections.
    pub(super) fn into_parts(self) -> (TcpStream, Vec<u8>, Permit) {
        (self.stream, self.head, self.permit)
    }

    /// Hands on what was read before; its memory is given back with the last of it.
    fn take_head(&mut self, buf: &mut ReadBuf<'_>) {
        let count = self.head.len().min(buf.remaining());
        buf.put_slice(&self.head[..count]);
        self.head.drain(..count);
        if self.head.is_empty() {
            self.head = Vec::new();
        }
    }

    /// Reads and drops what still comes, until the client closes or enough is enough.
    fn poll_linger(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Self { stream, linger, .. } = self;
        let linger =
            linger.get_or_insert_with(|| Linger { until: Box::pin(tokio::time::sleep(LINGER)), left: LINGER_BYTES });
        let mut scratch = [0_u8; 8192];
        while linger.left > 0 {
            let mut buffer = ReadBuf::new(&mut scratch);
            match Pin::new(&mut *stream).poll_read(cx, &mut buffer) {
                Poll::Ready(Ok(())) if !buffer.filled().is_empty() => {
                    linger.left = linger.left.saturating_sub(buffer.filled().len());
                }
                Poll::Ready(_) => return Poll::Ready(()),
                Poll::Pending => return linger.until.as_mut().poll(cx),
            }
        }
        Poll::Ready(())
    }

    fn watch_write(&mut self, cx: &mut Context<'_>, outcome: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(written) = &outcome {
            self.writing.moved(written.as_ref().map_or(0, |written| *written));
            return outcome;
        }
        match self.writing.poll_stalled(cx) {
            Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl AsyncRead for ClientIo {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let outcome = if self.head.is_empty() {
            Pin::new(&mut self.stream).poll_read(cx, buf)
        } else {
            self.take_head(buf);
            Poll::Ready(Ok(()))
        };
        if outcome.is_ready() && !self.upgraded.is_set() {
            self.framing.watch(&mut buf.filled_mut()[before..]);
        }
        outcome
    }
}

impl AsyncWrite for ClientIo {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.watch_write(cx, outcome)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.watch_write(cx, outcome)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.linger.is_none() {
            ready!(Pin::new(&mut self.stream).poll_shutdown(cx))?;
            if self.upgraded.is_set() || !self.framing.is_within_message() {
                return Poll::Ready(Ok(()));
            }
        }
        self.poll_linger(cx).map(Ok)
    }
}
