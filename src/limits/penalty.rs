//! Delays that grow with each failure of a key and vanish with a success.

use std::hash::Hash;
use std::time::Duration;
use std::time::Instant;

use super::generations::Generations;

#[derive(Debug, Clone, Copy)]
struct Record {
    failures: u32,
    blocked_until: Instant,
}

/// Counts failures per key. The first `free` cost nothing; each further one blocks the key for twice as long as the
/// one before, from `base` to `max`.
#[derive(Debug)]
pub struct Penalty<K> {
    records: Generations<K, Record>,
    free: u32,
    base: Duration,
    max: Duration,
}

impl<K: Clone + Eq + Hash> Penalty<K> {
    /// Remembers at most `max_keys` keys.
    pub fn new(free: u32, base: Duration, max: Duration, max_keys: usize) -> Self {
        Self { records: Generations::new(max_keys), free, base, max }
    }

    /// Whether `key` may try now. The error says how long it has to wait.
    pub fn check(&mut self, key: &K, now: Instant) -> Result<(), Duration> {
        match self.records.touch(key) {
            Some(record) if record.blocked_until > now => Err(record.blocked_until - now),
            _ => Ok(()),
        }
    }

    /// Notes a failure; returns how long the key is blocked from now on (zero while failures are free).
    ///
    /// A key that stayed away for `max` after its block ended starts anew.
    pub fn failed(&mut self, key: &K, now: Instant) -> Duration {
        let before = match self.records.touch(key) {
            Some(record) if now.saturating_duration_since(record.blocked_until) < self.max => record.failures,
            _ => 0,
        };
        let failures = before.saturating_add(1);
        let delay = self.delay(failures);
        self.records.insert(key.clone(), Record { failures, blocked_until: now + delay });
        delay
    }

    /// Forgets the failures of `key`.
    pub fn succeeded(&mut self, key: &K) {
        self.records.remove(key);
    }

    fn delay(&self, failures: u32) -> Duration {
        let Some(beyond) = failures.checked_sub(self.free.saturating_add(1)) else { return Duration::ZERO };
        let factor = 1_u32.checked_shl(beyond).unwrap_or(u32::MAX);
        self.base.checked_mul(factor).unwrap_or(self.max).min(self.max)
    }

    /// Keys held.
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Whether no key is held.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn penalty() -> Penalty<&'static str> {
        Penalty::new(2, SECOND, SECOND * 10, 100)
    }

    #[test]
    fn delay_doubles_after_the_free_failures_up_to_the_bound() {
        let mut penalty = penalty();
        let mut now = Instant::now();
        let mut delays = Vec::new();
        for _ in 0..8 {
            assert_eq!(penalty.check(&"a", now), Ok(()));
            let delay = penalty.failed(&"a", now);
            if !delay.is_zero() {
                assert_eq!(penalty.check(&"a", now), Err(delay));
            }
            delays.push(delay.as_secs());
            now += delay;
        }
        assert_eq!(delays, [0, 0, 1, 2, 4, 8, 10, 10]);
        assert_eq!(penalty.check(&"b", now), Ok(()));
    }

    #[test]
    fn success_and_long_absence_reset() {
        let mut penalty = penalty();
        let now = Instant::now();
        for _ in 0..4 {
            penalty.failed(&"a", now);
        }
        penalty.succeeded(&"a");
        assert_eq!(penalty.failed(&"a", now), Duration::ZERO);
        for _ in 0..4 {
            penalty.failed(&"a", now);
        }
        assert_eq!(penalty.failed(&"a", now + SECOND * 100), Duration::ZERO);
    }

    #[test]
    fn thousands_of_failures_do_not_overflow() {
        let mut penalty = penalty();
        let now = Instant::now();
        for _ in 0..100_000 {
            penalty.failed(&"a", now);
        }
        assert_eq!(penalty.check(&"a", now), Err(SECOND * 10));
    }
}
