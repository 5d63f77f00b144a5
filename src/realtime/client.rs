//! One client's stream: what waits for it, whom it belongs to, and the body that its connection reads.
//!
//! A parked client is this record, a timer and its connection: no task, nothing open anywhere else. What waits for a
//! client is bounded in events and bytes; one that does not read is told by the end of its stream.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::fmt;
use std::future::Future;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::task::Context;
use std::task::Poll;
use std::task::Waker;
use std::time::Duration;

use bytes::Bytes;
use http_body::Body;
use http_body::Frame;
use prometheus_client::metrics::gauge::Gauge;
use tokio::time::Instant;
use tokio::time::Sleep;

use super::hub::Shared;
use super::link::Link;
use super::places::Place;
use super::subscription::Binding;
use crate::ids::TenantId;
use crate::ids::UserId;
use crate::telemetry::Metrics;
use crate::telemetry::StateLabels;

const HEARTBEAT: &[u8] = b":\n\n";
/// A queue that once grew beyond this gives its memory back when it is empty.
const KEPT_CAPACITY: usize = 8;

/// One open stream.
pub(super) struct Client {
    pub(super) id: Arc<str>,
    pub(super) ip: IpAddr,
    pub(super) since: Instant,
    /// Changes of what it is subscribed to, and attaching it, one at a time.
    pub(super) turn: tokio::sync::Mutex<()>,
    seat: Mutex<Seat>,
    outbox: Mutex<Outbox>,
    /// What waits for all clients together, in bytes.
    queued: Arc<AtomicUsize>,
    pub(super) _places: (Place<()>, Place<IpAddr>),
}

/// Whom a stream belongs to and how it stands.
pub(super) struct Seat {
    pub(super) binding: Binding,
    /// What the instance is asked for.
    pub(super) topics: Arc<[String]>,
    /// Whether it waits for an `OAuth2` sign-in.
    pub(super) oauth2: bool,
    pub(super) link: Option<Link>,
    pub(super) user_place: Option<Place<UserId>>,
    /// Its place among the streams of its tenant.
    pub(super) tenant_place: Option<Place<TenantId>>,
    pub(super) sign_in_place: Option<Place<IpAddr>>,
    pub(super) bound_at: Instant,
    pub(super) has_ended: bool,
    pub(super) tally: Option<Tally>,
}

impl Seat {
    /// Whether nothing that this run of the instance says can pass the client by.
    pub(super) fn is_settled_for(&self, epoch: u64) -> bool {
        self.has_ended || self.topics.is_empty() || self.link.as_ref().is_some_and(|link| link.epoch >= epoch)
    }
}

/// Counts a stream in one state while it lasts.
pub(super) struct Tally(Gauge);

impl Tally {
    pub(super) fn new(metrics: &Metrics, state: &'static str) -> Self {
        let gauge = metrics.streams.get_or_create(&StateLabels { state }).clone();
        gauge.inc();
        Self(gauge)
    }
}

impl Drop for Tally {
    fn drop(&mut self) {
        self.0.dec();
    }
}

#[derive(Default)]
struct Outbox {
    frames: VecDeque<Bytes>,
    bytes: usize,
    waker: Option<Waker>,
    has_ended: bool,
}

/// How much may wait: for one client in events and bytes, and for all in bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub(super) frames: usize,
    pub(super) bytes: usize,
    pub(super) in_all: usize,
}

impl Client {
    pub(super) fn new(
        id: Arc<str>,
        ip: IpAddr,
        places: (Place<()>, Place<IpAddr>),
        tally: Tally,
        queued: Arc<AtomicUsize>,
    ) -> Self {
        let now = Instant::now();
        let seat = Seat {
            binding: Binding::Unbound,
            topics: Arc::default(),
            oauth2: false,
            link: None,
            user_place: None,
            tenant_place: None,
            sign_in_place: None,
            bound_at: now,
            has_ended: false,
            tally: Some(tally),
        };
        Self {
            id,
            ip,
            since: now,
            turn: tokio::sync::Mutex::default(),
            seat: Mutex::new(seat),
            outbox: Mutex::default(),
            queued,
            _places: places,
        }
    }

    pub(super) fn seat(&self) -> MutexGuard<'_, Seat> {
        self.seat.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn outbox(&self) -> MutexGuard<'_, Outbox> {
        self.outbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues a frame. False when the client reads too slowly for it.
    pub(super) fn push(&self, frame: Bytes, limits: &Limits) -> bool {
        let mut outbox = self.outbox();
        if outbox.has_ended {
            return true;
        }
        let is_full = outbox.frames.len() >= limits.frames || outbox.bytes + frame.len() > limits.bytes;
        // Whoever reads is not made to pay for those who do not.
        let is_late = !outbox.frames.is_empty();
        if is_full || (is_late && self.queued.load(Ordering::Relaxed) + frame.len() > limits.in_all) {
            return false;
        }
        outbox.bytes += frame.len();
        self.queued.fetch_add(frame.len(), Ordering::Relaxed);
        outbox.frames.push_back(frame);
        let waker = outbox.waker.take();
        drop(outbox);
        if let Some(waker) = waker {
            waker.wake();
        }
        true
    }

    /// Ends the body. What still waits is not sent: its reader may have no right to it any more.
    pub(super) fn close(&self) {
        let mut outbox = self.outbox();
        outbox.has_ended = true;
        outbox.frames = VecDeque::new();
        self.queued.fetch_sub(std::mem::take(&mut outbox.bytes), Ordering::Relaxed);
        let waker = outbox.waker.take();
        drop(outbox);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    fn poll_frame(&self, cx: &Context<'_>) -> Poll<Option<Bytes>> {
        let mut outbox = self.outbox();
        if let Some(frame) = outbox.frames.pop_front() {
            outbox.bytes -= frame.len();
            self.queued.fetch_sub(frame.len(), Ordering::Relaxed);
            if outbox.frames.is_empty() && outbox.frames.capacity() > KEPT_CAPACITY {
                outbox.frames = VecDeque::new();
            }
            return Poll::Ready(Some(frame));
        }
        if outbox.has_ended {
            return Poll::Ready(None);
        }
        if outbox.waker.as_ref().is_none_or(|waker| !waker.will_wake(cx.waker())) {
            outbox.waker = Some(cx.waker().clone());
        }
        Poll::Pending
    }
}

/// The body of an open stream: events, and comments when there are none. Its drop is the client's departure.
pub struct Stream {
    hub: Arc<Shared>,
    client: Arc<Client>,
    heartbeat: Duration,
    /// Made where the stream is first polled: it belongs to that event loop.
    timer: Option<Pin<Box<Sleep>>>,
}

impl Stream {
    pub(super) fn new(hub: Arc<Shared>, client: Arc<Client>, heartbeat: Duration) -> Self {
        Self { hub, client, heartbeat, timer: None }
    }
}

impl Body for Stream {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if let Poll::Ready(frame) = self.client.poll_frame(cx) {
            return Poll::Ready(frame.map(|frame| Ok(Frame::data(frame))));
        }
        let heartbeat = self.heartbeat;
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(heartbeat)));
        if timer.as_mut().poll(cx).is_pending() {
            return Poll::Pending;
        }
        timer.as_mut().reset(Instant::now() + heartbeat);
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(HEARTBEAT)))))
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.hub.depart(&self.client);
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stream").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::realtime::places::Places;

    fn client() -> (Client, Arc<Metrics>) {
        let metrics = Metrics::new();
        let ip = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let places = (Places::new(1).take(()).unwrap(), Places::new(1).take(ip).unwrap());
        (Client::new("id".into(), ip, places, Tally::new(&metrics, "unbound"), Arc::default()), metrics)
    }

    #[test]
    fn what_waits_is_bounded_in_events_and_bytes_and_gone_at_the_end() {
        let (client, _metrics) = client();
        let frame = || Bytes::from_static(b"1234");
        let limits = |frames, bytes, in_all| Limits { frames, bytes, in_all };
        let two = &limits(2, 100, 100);
        assert!(client.push(frame(), two) && client.push(frame(), two));
        assert!(!client.push(frame(), two), "too many");
        assert!(!client.push(frame(), &limits(9, 11, 100)), "too large together");
        assert!(!client.push(frame(), &limits(9, 100, 11)), "too much waits for all");
        let cx = Context::from_waker(Waker::noop());
        assert_eq!(client.poll_frame(&cx), Poll::Ready(Some(frame())));
        assert!(client.push(frame(), two), "room again");
        client.close();
        assert_eq!(client.poll_frame(&cx), Poll::Ready(None), "nothing is sent after the end");
        assert!(client.push(frame(), two), "and nothing is slow any more");
        assert_eq!(client.queued.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_state_is_counted_while_it_lasts() {
        let (client, metrics) = client();
        let count = |state| metrics.streams.get_or_create(&StateLabels { state }).get();
        assert_eq!(count("unbound"), 1);
        client.seat().tally = Some(Tally::new(&metrics, "parked"));
        assert_eq!((count("unbound"), count("parked")), (0, 1));
        drop(client);
        assert_eq!(count("parked"), 0);
    }
}
