//! Notices when bytes stop moving, at the cost of one timer that is armed only while somebody waits.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::task::Context;
use std::task::Poll;
use std::time::Duration;

use hyper::rt::Timer;
use tokio::time::Instant;
use tokio::time::Sleep;

/// The one timer of a connection, for all the limits that its task waits under one after another. They are seldom
/// reached, so the timer is looked at when it fires, not armed and disarmed by each: most requests never touch it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Alarm(Arc<Mutex<Option<Pin<Box<Sleep>>>>>);

impl Alarm {
    /// Ready once `deadline` has passed. Polled from the connection's task only, which may be woken before.
    pub(crate) fn poll(&self, deadline: Instant, cx: &mut Context<'_>) -> Poll<()> {
        let mut timer = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let timer = match &mut *timer {
            // Armed by an earlier wait, for an earlier moment: it wakes the task, which then asks again.
            Some(timer) if timer.deadline() <= deadline && !timer.is_elapsed() => return Poll::Pending,
            Some(timer) => {
                if timer.deadline() != deadline {
                    timer.as_mut().reset(deadline);
                }
                timer
            }
            empty => empty.insert(Box::pin(tokio::time::sleep_until(deadline))),
        };
        timer.as_mut().poll(cx)
    }
}

impl Timer for Alarm {
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn hyper::rt::Sleep>> {
        Box::pin(Wait { alarm: self.clone(), deadline: Instant::now() + duration })
    }

    fn sleep_until(&self, deadline: std::time::Instant) -> Pin<Box<dyn hyper::rt::Sleep>> {
        Box::pin(Wait { alarm: self.clone(), deadline: deadline.into() })
    }
}

/// A wait of hyper's: for a request's head.
struct Wait {
    alarm: Alarm,
    deadline: Instant,
}

impl Future for Wait {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.alarm.poll(self.deadline, cx)
    }
}

impl hyper::rt::Sleep for Wait {}

/// Watches one direction of one stream.
#[derive(Debug)]
pub(crate) struct Stall {
    limit: Duration,
    /// Bytes that count as progress: fewer of them within `limit` are a drip, not a stream.
    floor: usize,
    moved: usize,
    armed: bool,
    waiting: bool,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Stall {
    /// Any byte within `limit` is progress.
    pub(crate) fn new(limit: Duration) -> Self {
        Self::with_floor(limit, 0)
    }

    /// At least `floor` bytes within `limit` are progress.
    pub(crate) fn with_floor(limit: Duration, floor: usize) -> Self {
        Self { limit, floor, moved: 0, armed: false, waiting: false, timer: None }
    }

    /// Bytes moved.
    pub(crate) fn moved(&mut self, bytes: usize) {
        self.waiting = false;
        self.moved = self.moved.saturating_add(bytes);
        if self.moved >= self.floor {
            self.armed = false;
        }
    }

    /// Nothing moved just now: ready when that has been so for too long.
    pub(crate) fn poll_stalled(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        // Time in which nobody asked for bytes (the other side was slow) is not this side's fault.
        let unasked = !self.waiting && self.timer.as_ref().is_some_and(|timer| timer.is_elapsed());
        if !self.armed || unasked {
            let deadline = Instant::now() + self.limit;
            match &mut self.timer {
                Some(timer) => timer.as_mut().reset(deadline),
                empty => *empty = Some(Box::pin(tokio::time::sleep_until(deadline))),
            }
            self.armed = true;
            self.moved = 0;
        }
        self.waiting = true;
        match &mut self.timer {
            Some(timer) => timer.as_mut().poll(cx),
            None => Poll::Pending,
        }
    }
}
