//! How many calls a key has left. Pure: time comes in, nothing waits here.
//!
//! Fathom publishes limits per key: 60 calls in 60 s, of them 30 heavy ones, and 30 requests of downloads. We count calls in
//! a sliding window, so that no 60 seconds have more, and believe Fathom's headers where they say less: another program
//! may use the same key, and the heavy limit may drop to 5.

use std::collections::HashMap;
use std::collections::VecDeque;
use std::time::Duration;
use std::time::Instant;

use reqwest::header;
use reqwest::header::HeaderMap;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc2822;

/// The window that Fathom counts in.
const WINDOW: Duration = Duration::from_mins(1);
/// Longest wait that a header may ask for.
const LONGEST: Duration = Duration::from_hours(1);
/// Most keys that are remembered. Beyond, the one that was not used for longest is forgotten.
const MAX_KEYS: usize = 4096;

/// A key or a user, hashed.
pub(super) type KeyHash = [u8; 32];

/// What a call counts against, besides the budget of all calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Call {
    Plain,
    Heavy,
    Download,
}

/// Calls per window.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub(super) all: usize,
    pub(super) heavy: usize,
    pub(super) downloads: usize,
}

/// What the headers of an answer say of the budget.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Told {
    limit: Option<usize>,
    remaining: Option<usize>,
    reset: Option<Duration>,
    /// `Retry-After`.
    pub(super) retry_after: Option<Duration>,
}

impl Told {
    /// Reads `RateLimit-*`, whose reset is seconds left, and `Retry-After`, seconds or a date.
    pub(super) fn read(headers: &HeaderMap, now: OffsetDateTime) -> Self {
        let text = |name: &str| headers.get(name)?.to_str().ok().map(str::trim);
        let seconds = |text: &str| text.parse::<u32>().ok().map(|s| Duration::from_secs(s.into()).min(LONGEST));
        let date = |text: &str| {
            let at = OffsetDateTime::parse(text, &Rfc2822).ok()?;
            Some(Duration::try_from(at - now).unwrap_or_default().min(LONGEST))
        };
        Self {
            limit: text("ratelimit-limit").and_then(|text| text.parse().ok()),
            remaining: text("ratelimit-remaining").and_then(|text| text.parse().ok()),
            reset: text("ratelimit-reset").and_then(seconds),
            retry_after: text(header::RETRY_AFTER.as_str()).and_then(|text| seconds(text).or_else(|| date(text))),
        }
    }

    /// How long to stay away after a refusal, if it says.
    pub(super) fn wait(&self) -> Option<Duration> {
        self.retry_after.or(self.reset)
    }
}

/// One limit of one key.
#[derive(Debug)]
struct Window {
    limit: usize,
    /// When each call of the last window was made, oldest first.
    calls: VecDeque<Instant>,
    /// What Fathom said: this many calls until then.
    told: Option<(usize, Instant)>,
}

impl Window {
    fn new(limit: usize) -> Self {
        Self { limit, calls: VecDeque::new(), told: None }
    }

    /// How long until a call may be made; zero = now.
    fn wait(&mut self, now: Instant) -> Duration {
        while self.calls.front().is_some_and(|call| now.saturating_duration_since(*call) >= WINDOW) {
            self.calls.pop_front();
        }
        self.told = self.told.filter(|(_, until)| *until > now);
        let counted = match self.calls.front() {
            Some(oldest) if self.calls.len() >= self.limit => (*oldest + WINDOW).saturating_duration_since(now),
            _ => Duration::ZERO,
        };
        let told = match self.told {
            Some((0, until)) => until.saturating_duration_since(now),
            _ => Duration::ZERO,
        };
        counted.max(told)
    }

    fn take(&mut self, now: Instant) {
        self.calls.push_back(now);
        if let Some((left, _)) = &mut self.told {
            *left = left.saturating_sub(1);
        }
    }

    /// Answers of calls under way at once come in any order: within one window only the smallest number counts.
    fn hear(&mut self, remaining: usize, until: Instant) {
        self.told = Some(match self.told {
            Some((left, known)) if until.saturating_duration_since(known) <= Duration::from_secs(2) => {
                (left.min(remaining), known.max(until))
            }
            _ => (remaining, until),
        });
    }

    fn is_idle(&self, now: Instant) -> bool {
        let is_counting = self.calls.back().is_some_and(|call| now.saturating_duration_since(*call) < WINDOW);
        !is_counting && self.told.is_none_or(|(_, until)| until <= now)
    }
}

/// The limits of one key.
#[derive(Debug)]
struct Budget {
    all: Window,
    heavy: Window,
    downloads: Window,
    used_at: Instant,
}

impl Budget {
    fn own(&mut self, call: Call) -> Option<&mut Window> {
        match call {
            Call::Plain => None,
            Call::Heavy => Some(&mut self.heavy),
            Call::Download => Some(&mut self.downloads),
        }
    }
}

/// The limits of every key in use.
#[derive(Debug)]
pub(super) struct Budgets {
    limits: Limits,
    keys: HashMap<KeyHash, Budget>,
}

impl Budgets {
    pub(super) fn new(limits: Limits) -> Self {
        Self { limits, keys: HashMap::new() }
    }

    /// Takes a call of the key's budget, or says how long until there is one.
    pub(super) fn take(&mut self, key: &KeyHash, call: Call, now: Instant) -> Result<(), Duration> {
        let budget = self.budget(key, now);
        let wait = budget.own(call).map_or(Duration::ZERO, |own| own.wait(now)).max(budget.all.wait(now));
        if !wait.is_zero() {
            return Err(wait);
        }
        budget.all.take(now);
        if let Some(own) = budget.own(call) {
            own.take(now);
        }
        Ok(())
    }

    /// Takes in what an answer said. The headers speak of one limit without naming it: a number above the call's own
    /// limit is the one of all calls.
    pub(super) fn hear(&mut self, key: &KeyHash, call: Call, told: &Told, now: Instant) {
        let (Some(remaining), Some(reset)) = (told.remaining, told.reset) else { return };
        let budget = self.budget(key, now);
        let limit = told.limit.unwrap_or(0);
        match budget.own(call) {
            Some(own) if limit <= own.limit => own.hear(remaining, now + reset),
            _ => budget.all.hear(remaining, now + reset),
        }
    }

    /// After a 429: no such call for so long.
    pub(super) fn refuse(&mut self, key: &KeyHash, call: Call, wait: Duration, now: Instant) {
        let budget = self.budget(key, now);
        let until = now + wait.min(LONGEST);
        match budget.own(call) {
            Some(own) => own.told = Some((0, until)),
            None => budget.all.told = Some((0, until)),
        }
    }

    fn budget(&mut self, key: &KeyHash, now: Instant) -> &mut Budget {
        if !self.keys.contains_key(key) && self.keys.len() >= MAX_KEYS {
            self.keys.retain(|_, b| ![&b.all, &b.heavy, &b.downloads].iter().all(|window| window.is_idle(now)));
            if self.keys.len() >= MAX_KEYS
                && let Some(oldest) = self.keys.iter().min_by_key(|(_, b)| b.used_at).map(|(key, _)| *key)
            {
                self.keys.remove(&oldest);
            }
        }
        let limits = self.limits;
        let budget = self.keys.entry(*key).or_insert_with(|| Budget {
            all: Window::new(limits.all),
            heavy: Window::new(limits.heavy),
            downloads: Window::new(limits.downloads),
            used_at: now,
        });
        budget.used_at = now;
        budget
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: KeyHash = [1; 32];

    fn budgets() -> Budgets {
        Budgets::new(Limits { all: 60, heavy: 30, downloads: 30 })
    }

    fn seconds(s: u64) -> Duration {
        Duration::from_secs(s)
    }

    fn told(limit: usize, remaining: usize, reset: u64) -> Told {
        Told { limit: Some(limit), remaining: Some(remaining), reset: Some(seconds(reset)), retry_after: None }
    }

    #[test]
    fn no_minute_has_more_calls_than_the_limit() {
        let (mut budgets, start) = (budgets(), Instant::now());
        let mut made: Vec<Instant> = Vec::new();
        let mut now = start;
        while made.len() < 500 {
            match budgets.take(&KEY, Call::Plain, now) {
                Ok(()) => made.push(now),
                Err(wait) => now += wait,
            }
            now += Duration::from_millis(7);
        }
        for (at, first) in made.iter().enumerate() {
            let within = made.iter().skip(at).take_while(|call| **call < *first + WINDOW).count();
            assert!(within <= 60, "{within} calls in a minute");
        }
        assert!(now - start < seconds(500), "and hardly fewer: {:?}", now - start);
    }

    #[test]
    fn heavy_calls_and_downloads_have_budgets_of_their_own_within_that_of_all() {
        let (mut budgets, now) = (budgets(), Instant::now());
        for _ in 0..30 {
            assert_eq!(budgets.take(&KEY, Call::Heavy, now), Ok(()));
        }
        assert_eq!(budgets.take(&KEY, Call::Heavy, now), Err(WINDOW));
        for _ in 0..30 {
            assert_eq!(budgets.take(&KEY, Call::Download, now), Ok(()));
        }
        assert_eq!(budgets.take(&KEY, Call::Plain, now), Err(WINDOW), "all 60 are used");
        assert_eq!(budgets.take(&[2; 32], Call::Heavy, now), Ok(()), "keys do not share");
    }

    #[test]
    fn a_refused_take_costs_nothing() {
        let (mut budgets, now) = (budgets(), Instant::now());
        for _ in 0..30 {
            budgets.take(&KEY, Call::Heavy, now).unwrap();
        }
        for _ in 0..100 {
            budgets.take(&KEY, Call::Heavy, now).unwrap_err();
        }
        for _ in 0..30 {
            assert_eq!(budgets.take(&KEY, Call::Plain, now), Ok(()));
        }
    }

    #[test]
    fn headers_that_say_less_are_believed() {
        let (mut budgets, now) = (budgets(), Instant::now());
        budgets.hear(&KEY, Call::Plain, &told(60, 2, 20), now);
        assert_eq!(budgets.take(&KEY, Call::Plain, now), Ok(()));
        budgets.hear(&KEY, Call::Plain, &told(60, 5, 20), now);
        assert_eq!(budgets.take(&KEY, Call::Plain, now), Ok(()), "an answer from before says no more");
        assert_eq!(budgets.take(&KEY, Call::Plain, now), Err(seconds(20)));
        assert_eq!(budgets.take(&KEY, Call::Plain, now + seconds(20)), Ok(()));
        // The heavy limit dropped to 5.
        budgets.hear(&KEY, Call::Heavy, &told(5, 0, 40), now + seconds(20));
        assert_eq!(budgets.take(&KEY, Call::Heavy, now + seconds(20)), Err(seconds(40)));
        assert_eq!(budgets.take(&KEY, Call::Plain, now + seconds(20)), Ok(()), "other calls are free");
        // A heavy answer that speaks of the limit of all.
        budgets.hear(&KEY, Call::Heavy, &told(60, 0, 5), now + seconds(25));
        assert_eq!(budgets.take(&KEY, Call::Plain, now + seconds(25)), Err(seconds(5)));
    }

    #[test]
    fn a_429_stops_calls_of_its_kind() {
        let (mut budgets, now) = (budgets(), Instant::now());
        budgets.refuse(&KEY, Call::Download, seconds(9), now);
        assert_eq!(budgets.take(&KEY, Call::Download, now), Err(seconds(9)));
        assert_eq!(budgets.take(&KEY, Call::Plain, now), Ok(()));
        budgets.refuse(&KEY, Call::Plain, Duration::MAX, now);
        assert_eq!(budgets.take(&KEY, Call::Heavy, now), Err(LONGEST), "no header stops a key for longer");
    }

    #[test]
    fn keys_are_bounded_and_the_one_in_use_stays() {
        let (mut budgets, now) = (budgets(), Instant::now());
        for n in 0..10_000_u64 {
            let mut key = [0; 32];
            key[..8].copy_from_slice(&n.to_le_bytes());
            budgets.take(&key, Call::Plain, now + Duration::from_micros(n)).unwrap();
            budgets.refuse(&KEY, Call::Plain, seconds(50), now + Duration::from_micros(n));
            assert!(budgets.keys.len() <= MAX_KEYS);
        }
        assert!(budgets.take(&KEY, Call::Plain, now + seconds(1)).is_err());
    }

    #[test]
    fn headers_are_read_in_both_forms() {
        let now = time::macros::datetime!(2025-03-01 17:00:00 UTC);
        let read = |pairs: &[(&'static str, &'static str)]| {
            let headers = pairs.iter().map(|(n, v)| (n.parse().unwrap(), v.parse().unwrap())).collect();
            Told::read(&headers, now)
        };
        let all = read(&[("RateLimit-Limit", "60"), ("RateLimit-Remaining", "0"), ("RateLimit-Reset", "17")]);
        assert_eq!((all, all.wait()), (told(60, 0, 17), Some(seconds(17))));
        assert_eq!(read(&[("Retry-After", "7"), ("RateLimit-Reset", "17")]).wait(), Some(seconds(7)));
        assert_eq!(read(&[("Retry-After", "Sat, 01 Mar 2025 17:00:30 GMT")]).wait(), Some(seconds(30)));
        assert_eq!(read(&[("Retry-After", "Sat, 01 Mar 2025 16:00:30 GMT")]).wait(), Some(Duration::ZERO));
        assert_eq!(read(&[("Retry-After", "99999999")]).wait(), Some(LONGEST));
        for odd in ["", "-1", "soon", "1e9", "99999999999999999999"] {
            assert_eq!(read(&[("Retry-After", odd), ("RateLimit-Remaining", odd)]), Told::default(), "{odd}");
        }
    }
}
