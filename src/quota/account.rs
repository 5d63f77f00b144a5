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

    /// Whether [`take`](Self::take) would refuse; nothing is counted.
    pub(super) fn is_used_up(&self, most: Option<u64>, period: Duration, now: Instant) -> bool {
        let Some(most) = most.filter(|most| *most > 0) else { return false };
        let window = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        window.is_some_and(|(since, count)| now.duration_since(since) < period && count >= most)
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
    /// Bytes of requests that were over since then.
    over: AtomicU64,
    /// Bytes of requests at work: what they announced, or what came if that is more.
    coming: AtomicU64,
    /// Those of them that came.
    came: AtomicU64,
    /// Those that had come when the last measure began: they may lie on the disk already, and are in the measure then.
    overlap: AtomicU64,
    /// Held by the one walk through its folders that is asked for.
    pub(super) walk: Mutex<()>,
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
pub struct Place {
    in_flight: Arc<AtomicU32>,
    /// So that what it brings counts as being under way until the request is over.
    pub(super) tally: Option<Tally>,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Counts the bytes of one request's body as they come, whatever it announced.
#[derive(Debug, Clone)]
pub struct Tally(Arc<Tallied>);

#[derive(Debug)]
struct Tallied {
    account: Arc<Account>,
    announced: u64,
    came: AtomicU64,
    hard: Option<u64>,
}

impl Tally {
    /// Bytes came. Whether there is room for them: a body that says nothing of its length, or one of many at once, finds
    /// out on the way.
    pub fn came(&self, bytes: u64) -> bool {
        let Tallied { account, announced, came, hard } = &*self.0;
        let before = came.fetch_add(bytes, Ordering::Relaxed);
        let beyond = before.saturating_add(bytes).saturating_sub(before.max(*announced));
        account.coming.fetch_add(beyond, Ordering::Relaxed);
        account.came.fetch_add(bytes, Ordering::Relaxed);
        hard.is_none_or(|hard| account.used() <= hard)
    }
}

impl Drop for Tallied {
    fn drop(&mut self) {
        let came = *self.came.get_mut();
        // First this: a look in between counts too much, and never too little.
        self.account.over.fetch_add(came, Ordering::Relaxed);
        self.account.came.fetch_sub(came, Ordering::Relaxed);
        self.account.coming.fetch_sub(came.max(self.announced), Ordering::Relaxed);
    }
}

/// What had been counted when a measure began.
#[derive(Debug, Clone, Copy)]
pub(super) struct Mark {
    over: u64,
    came: u64,
}

impl Account {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            limits: ArcSwap::from_pointee(limits),
            measured: AtomicU64::new(UNKNOWN),
            over: AtomicU64::new(0),
            coming: AtomicU64::new(0),
            came: AtomicU64::new(0),
            overlap: AtomicU64::new(0),
            walk: Mutex::default(),
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
        let place = Place { in_flight: Arc::clone(&self.in_flight), tally: None };
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

    /// The last measure, if there was one, with what was sent since and what is under way.
    pub(super) fn used(&self) -> u64 {
        let measured = self.measured.load(Ordering::Relaxed);
        if measured == UNKNOWN { self.since() } else { measured.saturating_add(self.since()) }
    }

    /// What was sent since the last measure, and is under way.
    fn since(&self) -> u64 {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        load(&self.over).saturating_add(load(&self.coming)).saturating_sub(load(&self.overlap))
    }

    /// Begins to count a request that announced so many bytes.
    pub(super) fn tally(self: &Arc<Self>, announced: u64, hard: Option<u64>) -> Tally {
        self.coming.fetch_add(announced, Ordering::Relaxed);
        let account = Arc::clone(self);
        Tally(Arc::new(Tallied { account, announced, came: AtomicU64::new(0), hard: hard.filter(|hard| *hard > 0) }))
    }

    /// Whether it wrote much since it was measured, was never measured, or is near a limit.
    pub(super) fn is_worth_a_look(&self, limits: &Limits) -> bool {
        let near =
            |limit: Option<u64>| limit.filter(|limit| *limit > 0).is_some_and(|limit| self.used() > limit / 10 * 9);
        !self.is_measured() || self.since() >= MUCH || near(limits.disk_hard) || near(limits.disk_soft)
    }

    /// True for the one who has it measured.
    pub(super) fn queue_once(&self) -> bool {
        !self.is_queued.swap(true, Ordering::AcqRel)
    }

    /// It is not in the queue any more.
    pub(super) fn unqueue(&self) {
        self.is_queued.store(false, Ordering::Release);
    }

    /// It is measured now: what is over by now is on the disk, and counts no more once the measure is there.
    pub(super) fn measuring(&self) -> Mark {
        self.unqueue();
        // What came first: of a request that ends in between, too little is taken off rather than too much.
        let came = self.came.load(Ordering::Relaxed);
        Mark { over: self.over.load(Ordering::Relaxed), came }
    }

    /// Takes in a measure that began at the mark; the level, if that is another than before.
    pub(super) fn measured(&self, bytes: u64, mark: Mark, limits: &Limits) -> Option<Level> {
        self.measured.store(bytes.min(UNKNOWN - 1), Ordering::Relaxed);
        // Of two measures at once the second finds less than it saw.
        let less = |over: u64| Some(over.saturating_sub(mark.over));
        let _ = self.over.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
        self.overlap.store(mark.came, Ordering::Relaxed);
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
    fn a_look_at_a_window_takes_nothing_of_it() {
        let (window, now, minute) = (Window::default(), Instant::now(), Duration::from_mins(1));
        assert!((0..9).all(|_| !window.is_used_up(Some(1), minute, now)));
        assert!(window.take(Some(1), minute, now) && window.is_used_up(Some(1), minute, now));
        assert!(!window.is_used_up(None, minute, now) && !window.is_used_up(Some(1), minute, now + minute));
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
        let account = Arc::new(Account::new(limits));
        assert!(account.is_worth_a_look(&limits), "never measured");
        let measured = |bytes| account.measured(bytes, account.measuring(), &limits);
        assert_eq!(measured(50), None);
        drop(sent(&account, 40));
        assert_eq!(account.used(), 90);
        assert_eq!(measured(120), Some(Level::Soft));
        assert_eq!(measured(121), None, "told once");
        assert_eq!(measured(200), Some(Level::Hard));
        assert_eq!(account.notice(), "hard; used=200; soft=100; hard=200");
        assert_eq!(measured(10), Some(Level::Ok));
    }

    /// A request whose whole body came.
    fn sent(account: &Arc<Account>, bytes: u64) -> Tally {
        let tally = account.tally(bytes, None);
        tally.came(bytes);
        tally
    }

    #[test]
    fn what_is_under_way_is_not_forgotten_by_a_measure() {
        let limits = Limits { disk_hard: Some(1_000), ..Limits::default() };
        let account = Arc::new(Account::new(limits));
        drop(sent(&account, 70));
        assert_eq!(account.used(), 70, "before the first measure as well");
        account.measured(100, account.measuring(), &limits);
        assert_eq!(account.used(), 100);

        // Announced and not there yet; there, and perhaps on the disk; over while the measure went on.
        let slow = account.tally(300, limits.disk_hard);
        account.measured(100, account.measuring(), &limits);
        assert_eq!(account.used(), 400);
        assert!(slow.came(200));
        let mark = account.measuring();
        drop(sent(&account, 50));
        account.measured(300, mark, &limits);
        assert_eq!(account.used(), 300 + 50 + 300 - 200);
        drop(slow);
        account.measured(350, account.measuring(), &limits);
        assert_eq!(account.used(), 350);
    }

    #[test]
    fn bodies_that_announce_nothing_are_counted_and_end_at_the_limit() {
        let limits = Limits { disk_hard: Some(1_000), ..Limits::default() };
        let account = Arc::new(Account::new(limits));
        account.measured(900, account.measuring(), &limits);
        let (one, other) = (account.tally(0, limits.disk_hard), account.tally(0, limits.disk_hard));
        assert!(one.came(60));
        assert_eq!(account.used(), 960);
        assert!(!other.came(60), "both together are too much");
        drop((one, other));
        assert_eq!(account.used(), 1_020, "and it is known before it is measured");
    }
}
