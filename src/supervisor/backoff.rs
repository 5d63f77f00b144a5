//! How long to wait after a failure, and when to give up. Pure: time and chance come in as arguments.

use std::collections::VecDeque;
use std::time::Duration;
use std::time::Instant;

/// The numbers behind the decisions.
#[derive(Debug, Clone, Copy)]
pub struct Policy {
    /// Upper bound of the first wait.
    pub base: Duration,
    /// Upper bound of any wait.
    pub max: Duration,
    /// This long without a failure and the next one counts as the first.
    pub reset: Duration,
    /// More failures than this ...
    pub failures: usize,
    /// ... within this time mean quarantine.
    pub window: Duration,
}

/// What a failure leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Start again after this long.
    Wait(Duration),
    /// Give up until an operator looks.
    Quarantine,
}

/// The failures of one instance that still matter.
#[derive(Debug, Clone, Default)]
pub struct History {
    recent: VecDeque<Instant>,
    consecutive: u32,
}

impl History {
    /// Notes a failure and decides. `chance` is uniform in 0..1 (full jitter: the wait is anywhere from zero to
    /// the bound, so that a fleet that failed together does not return together).
    pub fn failed(&mut self, now: Instant, chance: f64, policy: &Policy) -> Verdict {
        if self.recent.back().is_some_and(|last| now.duration_since(*last) >= policy.reset) {
            self.consecutive = 0;
        }
        self.recent.push_back(now);
        while self.recent.front().is_some_and(|first| now.duration_since(*first) > policy.window) {
            self.recent.pop_front();
        }
        self.consecutive = self.consecutive.saturating_add(1);
        if self.recent.len() > policy.failures {
            return Verdict::Quarantine;
        }
        let bound = policy.base.saturating_mul(1 << (self.consecutive - 1).min(16)).min(policy.max);
        Verdict::Wait(bound.mul_f64(chance.clamp(0.0, 1.0)))
    }

    /// Forgets everything: an operator released the instance.
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    /// Whether a failure happened that the next one would still be counted with.
    pub fn matters(&self, now: Instant, policy: &Policy) -> bool {
        let memory = policy.window.max(policy.reset);
        self.recent.back().is_some_and(|last| now.duration_since(*last) < memory)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: Policy = Policy {
        base: Duration::from_millis(250),
        max: Duration::from_mins(1),
        reset: Duration::from_mins(1),
        failures: 5,
        window: Duration::from_mins(2),
    };

    #[test]
    fn waits_double_up_to_the_bound_and_carry_full_jitter() {
        let policy = Policy { failures: 100, ..POLICY };
        let start = Instant::now();
        let mut history = History::default();
        let mut waits = (0..10).map(|_| history.failed(start, 1.0, &policy));
        assert_eq!(waits.next(), Some(Verdict::Wait(Duration::from_millis(250))));
        assert_eq!(waits.next(), Some(Verdict::Wait(Duration::from_millis(500))));
        assert_eq!(waits.last(), Some(Verdict::Wait(Duration::from_mins(1))));
        assert_eq!(History::default().failed(start, 0.0, &policy), Verdict::Wait(Duration::ZERO));
    }

    #[test]
    fn sixth_failure_within_the_window_is_quarantine_and_a_slow_drip_is_not() {
        let start = Instant::now();
        let mut fast = History::default();
        let verdicts: Vec<_> = (0..6).map(|n| fast.failed(start + Duration::from_secs(n), 0.5, &POLICY)).collect();
        assert!(verdicts[..5].iter().all(|v| matches!(v, Verdict::Wait(_))));
        assert_eq!(verdicts[5], Verdict::Quarantine);
        let mut slow = History::default();
        for n in 0..50 {
            let verdict = slow.failed(start + Duration::from_secs(n * 61), 1.0, &POLICY);
            assert_eq!(verdict, Verdict::Wait(POLICY.base), "a minute of health forgets the count");
        }
    }
}
