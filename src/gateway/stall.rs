//! Notices when bytes stop moving, at the cost of one timer that is armed only while somebody waits.

use std::future::Future;
use std::pin::Pin;
use std::task::Context;
use std::task::Poll;
use std::time::Duration;

use tokio::time::Instant;
use tokio::time::Sleep;

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
