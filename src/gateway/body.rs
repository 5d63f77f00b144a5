//! The response body in its five forms. Nothing is buffered: a relayed body passes frame by frame and holds the
//! instance's lease until its last one.

use std::fmt;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Context;
use std::task::Poll;
use std::task::Waker;
use std::time::Duration;

use bytes::Bytes;
use http_body::Body as HttpBody;
use http_body::Frame;
use http_body::SizeHint;
use hyper::body::Incoming;
use tokio::time::Instant;

use super::access::Hold;
use super::pool::Driver;
use super::pool::Key;
use super::pool::Pool;
use super::pool::Upstream;
use super::stall::Alarm;
use super::upload::Standing;
use super::upload::Upload;
use crate::realtime::Stream;

/// Why a response body ended early; hyper closes the client's connection on it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BodyError {
    #[error("the instance broke off its answer")]
    Upstream(#[source] hyper::Error),
    #[error("the instance's answer stood still")]
    Stalled,
    #[error("the router broke off its answer")]
    Own(#[source] axum::Error),
}

/// The body of an answer.
#[derive(Debug)]
pub(crate) enum Body {
    Empty,
    Full(Bytes),
    Relayed(Box<Relay>),
    Own(axum::body::Body),
    Events(Stream),
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match &mut *self {
            Self::Empty => Poll::Ready(None),
            Self::Full(bytes) => {
                let bytes = std::mem::take(bytes);
                Poll::Ready((!bytes.is_empty()).then(|| Ok(Frame::data(bytes))))
            }
            Self::Relayed(relay) => relay.poll_frame(cx),
            Self::Own(body) => Pin::new(body).poll_frame(cx).map_err(BodyError::Own),
            Self::Events(stream) => Pin::new(stream).poll_frame(cx).map_err(|never| match never {}),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Full(bytes) => bytes.is_empty(),
            Self::Relayed(relay) => relay.incoming.is_end_stream(),
            Self::Own(body) => body.is_end_stream(),
            Self::Events(stream) => stream.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Self::Relayed(relay) => relay.incoming.size_hint(),
            Self::Own(body) => body.size_hint(),
            Self::Events(stream) => stream.size_hint(),
        }
    }
}

/// What a relayed answer holds until it has passed: the connection it comes on, which then goes back to the pool,
/// and the lease that keeps the instance awake. Dropped early (the client left), it closes that connection.
pub(crate) struct Held {
    pub(crate) upstream: Upstream,
    pub(crate) pool: Rc<Pool>,
    pub(crate) key: Key,
    pub(crate) upload: Option<Arc<Upload>>,
    pub(crate) hold: Option<Hold>,
}

impl Held {
    /// The answer has passed. A connection that still carries the request's body cannot be used again.
    pub(crate) fn finish(self) {
        let Self { upstream, pool, key, upload, hold } = self;
        drop(hold);
        if upload.is_none_or(|upload| upload.standing() == Standing::Done) {
            pool.put(key, upstream);
        }
    }
}

/// An instance's answer as it passes through.
pub(crate) struct Relay {
    incoming: Incoming,
    idle: Duration,
    alarm: Alarm,
    /// When the instance has let us wait for too long, if it lets us wait.
    deadline: Option<Instant>,
    broken: Option<hyper::Error>,
    held: Option<Held>,
}

impl Relay {
    /// The body to answer with; what was held is given back at once when there is nothing to relay.
    pub(crate) fn start(incoming: Incoming, idle: Duration, held: Held, alarm: &Alarm) -> Body {
        if incoming.is_end_stream() {
            held.finish();
            return Body::Empty;
        }
        let (alarm, held) = (alarm.clone(), Some(held));
        Body::Relayed(Box::new(Self { incoming, idle, alarm, deadline: None, broken: None, held }))
    }

    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if let Some(error) = self.broken.take() {
            return Poll::Ready(Some(Err(BodyError::Upstream(error))));
        }
        match self.poll_incoming(cx) {
            Poll::Pending => {
                let deadline = *self.deadline.get_or_insert_with(|| Instant::now() + self.idle);
                if self.alarm.poll(deadline, cx).is_ready() {
                    self.held = None;
                    return Poll::Ready(Some(Err(BodyError::Stalled)));
                }
                Poll::Pending
            }
            Poll::Ready(Some(Ok(frame))) => {
                self.deadline = None;
                // The last frame of a sized body is not followed by another poll.
                if self.incoming.is_end_stream() {
                    self.finish();
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) => {
                self.held = None;
                // An error makes hyper drop what it has not written yet. One turn later the client has all that came.
                self.broken = Some(error);
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            Poll::Ready(None) => {
                self.finish();
                Poll::Ready(None)
            }
        }
    }

    /// Takes what has come, else has the connection bring more.
    fn poll_incoming(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let incoming = &mut self.incoming;
        let driver = self.held.as_mut().map(|held| &mut held.upstream.driver);
        let Some(driver) = driver.filter(|driver| matches!(driver, Driver::Here(_))) else {
            return Pin::new(incoming).poll_frame(cx);
        };
        // What the driver brings wakes nobody, because it is taken right here.
        let mut take = || Pin::new(&mut *incoming).poll_frame(&mut Context::from_waker(Waker::noop()));
        if let Poll::Ready(frame) = take() {
            return Poll::Ready(frame);
        }
        driver.poll_quietly();
        if let Poll::Ready(frame) = take() {
            return Poll::Ready(frame);
        }
        driver.poll(cx);
        take()
    }

    fn finish(&mut self) {
        if let Some(held) = self.held.take() {
            held.finish();
        }
    }
}

impl fmt::Debug for Relay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Relay").field("held", &self.held.is_some()).finish_non_exhaustive()
    }
}
