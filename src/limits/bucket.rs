//! Token buckets per key, as the generic cell rate algorithm: one instant of state per key.

use std::hash::Hash;
use std::time::Duration;
use std::time::Instant;

use super::generations::Generations;

/// A bucket per key: `burst` calls at once, refilled evenly over `period`.
#[derive(Debug)]
pub struct Keyed<K> {
    /// Per key: when the bucket is full again.
    full_at: Generations<K, Instant>,
    interval: Duration,
    tolerance: Duration,
}

impl<K: Clone + Eq + Hash> Keyed<K> {
    /// `burst` calls per `period` and key (at least one), for at most `max_keys` keys.
    pub fn new(burst: u32, period: Duration, max_keys: usize) -> Self {
        let burst = burst.max(1);
        let interval = period / burst;
        Self { full_at: Generations::new(max_keys), interval, tolerance: interval * (burst - 1) }
    }

    /// Takes one token of `key`. The error says how long until there is one.
    pub fn check(&mut self, key: &K, now: Instant) -> Result<(), Duration> {
        let Some(full_at) = self.full_at.touch(key) else {
            self.full_at.insert(key.clone(), now + self.interval);
            return Ok(());
        };
        let due = (*full_at).max(now);
        let ahead = due.saturating_duration_since(now);
        if ahead > self.tolerance {
            return Err(ahead.saturating_sub(self.tolerance));
        }
        *full_at = due + self.interval;
        Ok(())
    }

    /// Whether [`check`](Self::check) would take a token now. Takes none.
    pub fn would_pass(&mut self, key: &K, now: Instant) -> bool {
        let tolerance = self.tolerance;
        self.full_at.touch(key).is_none_or(|full_at| full_at.saturating_duration_since(now) <= tolerance)
    }

    /// Keys held.
    pub fn len(&self) -> usize {
        self.full_at.len()
    }

    /// Whether no key is held.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn burst_passes_then_refills_evenly() {
        let start = Instant::now();
        let mut buckets = Keyed::new(3, Duration::from_secs(3), 100);
        for _ in 0..3 {
            assert_eq!(buckets.check(&"a", start), Ok(()));
        }
        assert_eq!(buckets.check(&"a", start), Err(Duration::from_secs(1)));
        assert_eq!(buckets.check(&"b", start), Ok(()), "keys do not share");
        let later = start + Duration::from_secs(1);
        assert_eq!(buckets.check(&"a", later), Ok(()));
        assert_eq!(buckets.check(&"a", later), Err(Duration::from_secs(1)));
        let much_later = start + Duration::from_mins(1);
        for _ in 0..3 {
            assert_eq!(buckets.check(&"a", much_later), Ok(()));
        }
        assert!(buckets.check(&"a", much_later).is_err(), "unused time does not pile up beyond the burst");
    }

    #[test]
    fn a_look_takes_nothing_and_says_what_a_call_would_meet() {
        let start = Instant::now();
        let mut buckets = Keyed::new(1, Duration::from_secs(1), 100);
        for _ in 0..3 {
            assert!(buckets.would_pass(&"a", start));
        }
        assert_eq!(buckets.check(&"a", start), Ok(()));
        assert!(!buckets.would_pass(&"a", start));
        assert!(buckets.would_pass(&"a", start + Duration::from_secs(1)));
    }

    #[test]
    fn clock_that_went_back_does_not_panic() {
        let start = Instant::now() + Duration::from_secs(100);
        let mut buckets = Keyed::new(1, Duration::from_secs(1), 100);
        assert_eq!(buckets.check(&1, start), Ok(()));
        assert!(buckets.check(&1, start.checked_sub(Duration::from_secs(50)).unwrap()).is_err());
    }

    #[test]
    fn number_of_keys_is_bounded() {
        let mut buckets = Keyed::new(1, Duration::from_mins(1), 100);
        let now = Instant::now();
        for key in 0..10_000 {
            assert_eq!(buckets.check(&key, now), Ok(()));
        }
        assert!(buckets.len() <= 100 && !buckets.is_empty());
    }
}
