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

/// Looks within a window.
const LOOKS: u32 = 8;

/// Watches one direction of one stream: fewer than `floor` bytes within `window` of waiting are a drip.
///
/// Only the time counts in which somebody waited for the peer, and whoever waits looks again and again: the timer sees to
/// it. A stream that has nothing to move, or whose other end is slow, is never cut.
#[derive(Debug)]
pub(crate) struct Stall {
    window: Duration,
    floor: usize,
    moved: usize,
    /// Time waited since the floor was last reached, up to the last look.
    waited: Duration,
    /// When somebody who waits last looked.
    since: Option<Instant>,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Stall {
    /// At least `rate` bytes a second, averaged over `window`; never less than one byte in it.
    pub(crate) fn with_rate(window: Duration, rate: u64) -> Self {
        let floor = u128::from(rate).saturating_mul(window.as_millis()) / 1000;
        let floor = usize::try_from(floor).unwrap_or(usize::MAX).max(1);
        Self { window, floor, moved: 0, waited: Duration::ZERO, since: None, timer: None }
    }

    /// Bytes moved.
    pub(crate) fn moved(&mut self, bytes: usize) {
        self.moved = self.moved.saturating_add(bytes);
        self.count();
        if self.moved >= self.floor {
            self.moved = 0;
            self.waited = Duration::ZERO;
        }
    }

    /// Nothing moves just now: ready when that has been so for too long.
    pub(crate) fn poll_stalled(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.count();
        let Some(left) = self.window.checked_sub(self.waited).filter(|left| !left.is_zero()) else {
            return Poll::Ready(());
        };
        let now = Instant::now();
        self.since = Some(now);
        let next = now + left.min(self.look());
        let timer = match &mut self.timer {
            Some(timer) => {
                // Armed by an earlier look and still good: most looks cost no timer.
                if timer.is_elapsed() || timer.deadline() > next || timer.deadline() <= now {
                    timer.as_mut().reset(next);
                }
                timer
            }
            empty => empty.insert(Box::pin(tokio::time::sleep_until(next))),
        };
        if timer.as_mut().poll(cx).is_ready() {
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    }

    /// The longest time between two looks of somebody who waits. What is longer was not all waiting.
    fn look(&self) -> Duration {
        self.window / LOOKS
    }

    fn count(&mut self) {
        if let Some(since) = self.since.take() {
            self.waited += since.elapsed().min(self.look());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    const WINDOW: Duration = Duration::from_secs(10);

    async fn is_stalled_within(stall: &mut Stall, time: Duration) -> bool {
        tokio::time::timeout(time, poll_fn(|cx| stall.poll_stalled(cx))).await.is_ok()
    }

    #[tokio::test(start_paused = true)]
    async fn a_drip_below_the_rate_is_a_stall_and_the_rate_itself_is_not() {
        let mut drip = Stall::with_rate(WINDOW, 100);
        for _ in 0..9 {
            assert!(!is_stalled_within(&mut drip, Duration::from_secs(1)).await);
            drip.moved(99);
        }
        assert!(is_stalled_within(&mut drip, Duration::from_secs(2)).await);
        let mut slow = Stall::with_rate(WINDOW, 100);
        for _ in 0..100 {
            assert!(!is_stalled_within(&mut slow, Duration::from_secs(1)).await);
            slow.moved(120);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn time_in_which_nobody_waited_does_not_count() {
        let mut stall = Stall::with_rate(WINDOW, 100);
        assert!(!is_stalled_within(&mut stall, Duration::from_secs(1)).await);
        stall.moved(1);
        tokio::time::advance(Duration::from_mins(10)).await;
        assert!(!is_stalled_within(&mut stall, Duration::from_secs(8)).await);
        assert!(is_stalled_within(&mut stall, Duration::from_secs(2)).await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_in_which_nobody_looked_is_none() {
        let mut stall = Stall::with_rate(WINDOW, 100);
        let mut cx = Context::from_waker(std::task::Waker::noop());
        for _ in 0..3 {
            assert!(stall.poll_stalled(&mut cx).is_pending());
            tokio::time::advance(Duration::from_mins(10)).await;
        }
        assert!(!is_stalled_within(&mut stall, Duration::from_secs(5)).await);
        stall.moved(1);
        tokio::time::advance(Duration::from_mins(10)).await;
        assert!(is_stalled_within(&mut stall, Duration::from_secs(6)).await, "what was waiting still counts");
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_rate_any_byte_is_progress() {
        let mut stall = Stall::with_rate(WINDOW, 0);
        for _ in 0..20 {
            assert!(!is_stalled_within(&mut stall, Duration::from_secs(9)).await);
            stall.moved(1);
        }
    }
}
