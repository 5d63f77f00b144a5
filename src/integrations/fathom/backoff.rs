//! How long to wait before the next try, and for how long in all. Pure: the dice are thrown by the caller.

use std::time::Duration;

/// How patient a session is when Fathom's limits are reached, or it fails in passing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// Longest that one call waits in all; beyond, the caller is told when to come back.
    pub total: Duration,
}

impl Patience {
    /// What Fathom's own clients do: up to five minutes.
    pub const INTERACTIVE: Self = Self { total: Duration::from_mins(5) };
    /// For jobs, which give their place to others instead of waiting.
    pub const JOB: Self = Self { total: Duration::from_secs(2) };
    /// Not at all.
    pub const NONE: Self = Self { total: Duration::ZERO };
}

const FIRST: Duration = Duration::from_millis(500);
const FACTOR: f64 = 1.5;
const LONGEST: Duration = Duration::from_mins(1);

/// Waits by the numbers of Fathom's clients: 500 ms, half as much more each time, at most a minute. `dice` from 0 to 1
/// moves it by up to a quarter either way, so that many callers do not come back together.
pub(super) fn pause(tries: u32, dice: f64) -> Duration {
    let grown = FIRST.as_secs_f64() * FACTOR.powi(i32::try_from(tries.min(30)).unwrap_or(30));
    let jittered = grown * (0.75 + 0.5 * dice.clamp(0.0, 1.0));
    Duration::from_secs_f64(jittered).min(LONGEST)
}

/// What to do about a wait that is due after `waited` of waiting: wait, or give up.
pub(super) fn may_wait(patience: Patience, waited: Duration, wait: Duration) -> bool {
    waited.saturating_add(wait) <= patience.total
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_by_half_to_a_minute() {
        assert_eq!(pause(0, 0.5), Duration::from_millis(500));
        assert_eq!(pause(1, 0.5), Duration::from_millis(750));
        assert_eq!(pause(2, 0.5), Duration::from_millis(1125));
        assert_eq!(pause(0, 0.0), Duration::from_millis(375));
        assert_eq!(pause(0, 1.0), Duration::from_millis(625));
        assert_eq!(pause(40, 0.5), Duration::from_mins(1));
        assert_eq!(pause(u32::MAX, 9.0), Duration::from_mins(1));
    }

    #[test]
    fn patience_ends() {
        assert!(may_wait(Patience::INTERACTIVE, Duration::from_mins(4), Duration::from_mins(1)));
        assert!(!may_wait(Patience::INTERACTIVE, Duration::from_secs(241), Duration::from_mins(1)));
        assert!(!may_wait(Patience::JOB, Duration::ZERO, Duration::from_secs(30)));
        assert!(!may_wait(Patience::NONE, Duration::ZERO, Duration::from_millis(1)));
    }
}
