//! What is counted of one tenant. Requests touch atomics and, where a rate is limited, one small lock.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU8;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::Instant;

use arc_swap::ArcSwap;

use super::Level;
use super::Limits;

/// Bytes after which a tenant is measured out of turn.
const MUCH: u64 = 4 << 20;
/// What has never been measured.
const UNKNOWN: u64 = u64::MAX;

/// How many of something there were since a window began.
#[derive(Debug, Default)]
pub(super) struct Window(Mutex<Option<(Instant, u64)>>);

impl Window {
    /// Counts one in, unless there were as many as may be. No limit, or 0: anything goes, and nothing is counted.
    pub(super) fn take(&self, most: Option<u64>, period: Duration, now: Instant) -> bool {
        let Some(most) = most.filter(|most| *most > 0) else { return true };
        let mut window = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (since, count) = window.filter(|(since, _)| now.duration_since(*since) < period).unwrap_or((now, 0));
        let passes = count < most;
        *window = Some((since, count + u64::from(passes)));
        passes
    }

    /// Until the next window begins.
    pub(super) fn wait(&self, period: Duration, now: Instant) -> Duration {
        let window = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        window.map_or(Duration::ZERO, |(since, _)| period.saturating_sub(now.duration_since(since)))
    }
}

#[derive(Debug)]
pub(super) struct Account {
    limits: ArcSwap<Limits>,
    /// Bytes when it was measured last.
    measured: AtomicU64,
    /// Bytes that were sent since.
    since: AtomicU64,
    at: Mutex<Option<Instant>>,
    level: AtomicU8,
    /// Whether it waits to be measured.
    is_queued: AtomicBool,
    in_flight: Arc<AtomicU32>,
    pub(super) requests: Window,
    pub(super) uploads: Window,
}

/// A request's place among those at work; given back when dropped.
#[derive(Debug)]
pub struct Place(Arc<AtomicU32>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Account {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            limits: ArcSwap::from_pointee(limits),
            measured: AtomicU64::new(UNKNOWN),
            since: AtomicU64::new(0),
            at: Mutex::default(),
            level: AtomicU8::new(0),
            is_queued: AtomicBool::new(false),
            in_flight: Arc::default(),
            requests: Window::default(),
            uploads: Window::default(),
        }
    }

    pub(super) fn limits(&self) -> Limits {
        **self.limits.load()
    }

    pub(super) fn set_limits(&self, limits: Limits) {
        if self.limits() != limits {
            self.limits.store(Arc::new(limits));
        }
    }

    /// Takes a place, unless as many are taken as may be.
    pub(super) fn enter(&self, most: Option<u64>) -> Result<Place, ()> {
        let place = Place(Arc::clone(&self.in_flight));
        let before = self.in_flight.fetch_add(1, Ordering::Relaxed);
        match most.filter(|most| *most > 0) {
            Some(most) if u64::from(before) >= most => Err(()),
            _ => Ok(place),
        }
    }

    pub(super) fn in_flight(&self) -> u32 {
        self.in_flight.load(Ordering::Relaxed)
    }

    pub(super) fn is_measured(&self) -> bool {
        self.measured.load(Ordering::Relaxed) != UNKNOWN
    }

    pub(super) fn measured_ago(&self) -> Option<Duration> {
        self.at.lock().unwrap_or_else(PoisonError::into_inner).map(|at| at.elapsed())
    }

    /// The last measure with what was sent since; 0 before the first.
    pub(super) fn used(&self) -> u64 {
        let measured = self.measured.load(Ordering::Relaxed);
        if measured == UNKNOWN { 0 } else { measured.saturating_add(self.since.load(Ordering::Relaxed)) }
    }

    pub(super) fn wrote(&self, bytes: u64) {
        self.since.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Whether it wrote much since it was measured, was never measured, or is near a limit.
    pub(super) fn is_worth_a_look(&self, limits: &Limits) -> bool {
        let near =
            |limit: Option<u64>| limit.filter(|limit| *limit > 0).is_some_and(|limit| self.used() > limit / 10 * 9);
        !self.is_measured()
            || self.since.load(Ordering::Relaxed) >= MUCH
            || near(limits.disk_hard)
            || near(limits.disk_soft)
    }

    /// True for the one who has it measured.
    pub(super) fn queue_once(&self) -> bool {
        !self.is_queued.swap(true, Ordering::AcqRel)
    }

    /// It is measured now: what is sent from here on counts anew.
    pub(super) fn measuring(&self) {
        self.is_queued.store(false, Ordering::Release);
    }

    /// Takes in a measure; the level, if that is another than before.
    pub(super) fn measured(&self, bytes: u64, limits: &Limits) -> Option<Level> {
        self.measured.store(bytes.min(UNKNOWN - 1), Ordering::Relaxed);
        self.since.store(0, Ordering::Relaxed);
        *self.at.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        let beyond = |limit: Option<u64>| limit.filter(|limit| *limit > 0).is_some_and(|limit| bytes >= limit);
        let level = match (beyond(limits.disk_hard), beyond(limits.disk_soft)) {
            (true, _) => Level::Hard,
            (false, true) => Level::Soft,
            (false, false) => Level::Ok,
        };
        (self.level.swap(level as u8, Ordering::Relaxed) != level as u8).then_some(level)
    }

    pub(super) fn level(&self) -> Level {
        match self.level.load(Ordering::Relaxed) {
            0 => Level::Ok,
            1 => Level::Soft,
            _ => Level::Hard,
        }
    }

    /// For the header of answers.
    pub(super) fn notice(&self) -> String {
        let limits = self.limits();
        let hard = limits.disk_hard.filter(|hard| *hard > 0).map(|hard| format!("; hard={hard}"));
        let soft = limits.disk_soft.filter(|soft| *soft > 0).map(|soft| format!("; soft={soft}"));
        format!(
            "{}; used={}{}{}",
            self.level().as_str(),
            self.used(),
            soft.unwrap_or_default(),
            hard.unwrap_or_default()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_lets_as_many_through_as_may_be_and_opens_again() {
        let (window, now, minute) = (Window::default(), Instant::now(), Duration::from_mins(1));
        assert!(window.take(Some(2), minute, now) && window.take(Some(2), minute, now));
        assert!(!window.take(Some(2), minute, now + Duration::from_secs(20)));
        assert_eq!(window.wait(minute, now + Duration::from_secs(20)), Duration::from_secs(40));
        assert!(window.take(Some(2), minute, now + minute));
        assert!(window.take(None, minute, now) && window.take(Some(0), minute, now));
    }

    #[test]
    fn places_come_back_also_from_those_who_were_refused() {
        let account = Account::new(Limits::default());
        let first = account.enter(Some(1)).unwrap();
        assert!(account.enter(Some(1)).is_err());
        assert_eq!(account.in_flight(), 1);
        drop(first);
        assert!(account.enter(Some(1)).is_ok());
        assert!(account.enter(None).is_ok() && account.enter(Some(0)).is_ok());
    }

    #[test]
    fn what_was_sent_counts_until_the_next_measure() {
        let limits = Limits { disk_soft: Some(100), disk_hard: Some(200), ..Limits::default() };
        let account = Account::new(limits);
        assert!(account.is_worth_a_look(&limits), "never measured");
        assert_eq!(account.measured(50, &limits), None);
        account.wrote(40);
        assert_eq!(account.used(), 90);
        assert_eq!(account.measured(120, &limits), Some(Level::Soft));
        assert_eq!(account.measured(121, &limits), None, "told once");
        assert_eq!(account.measured(200, &limits), Some(Level::Hard));
        assert_eq!(account.notice(), "hard; used=200; soft=100; hard=200");
        assert_eq!(account.measured(10, &limits), Some(Level::Ok));
    }
}
