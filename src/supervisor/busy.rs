//! Noticing a process that burns a core: an endless loop in a hook answers health checks as if nothing were.
//!
//! Told, and not stopped: a long computation looks the same, and whoever wrote it may have meant it.

use std::time::Duration;
use std::time::Instant;

/// From which share of one core on a process counts as burning it, in per cent.
const HOT: u128 = 80;

/// What was seen of one process. Pure: time comes in.
#[derive(Debug, Default)]
pub(crate) struct Busy {
    last: Option<(Instant, Duration)>,
    since: Option<Instant>,
    is_told: bool,
    /// Of one core, at the last look, in per cent.
    pub(crate) percent: Option<u32>,
}

/// What a look found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Seen {
    /// Nothing to tell.
    Nothing,
    /// It has been burning a core for this long, which was not told yet.
    Burning(Duration),
    /// It was told, and is over.
    Calm,
}

impl Busy {
    /// A look: CPU time used or waited for since the process began, and how long it may burn a core (zero: as long as it likes).
    pub(crate) fn look(&mut self, used: Duration, now: Instant, patience: Duration) -> Seen {
        let Some((at, before)) = self.last.replace((now, used)) else { return Seen::Nothing };
        let (span, spent) = (now.saturating_duration_since(at), used.saturating_sub(before));
        if span.is_zero() {
            return Seen::Nothing;
        }
        let percent = spent.as_nanos() * 100 / span.as_nanos();
        self.percent = u32::try_from(percent).ok();
        if percent < HOT {
            self.since = None;
            return if std::mem::take(&mut self.is_told) { Seen::Calm } else { Seen::Nothing };
        }
        let lasts = now.saturating_duration_since(*self.since.get_or_insert(at));
        if patience.is_zero() || lasts < patience || self.is_told {
            return Seen::Nothing;
        }
        self.is_told = true;
        Seen::Burning(lasts)
    }

    /// Whether it was seen to leave most of a core alone, or not seen yet.
    pub(crate) fn is_calm(&self) -> bool {
        self.since.is_none()
    }

    /// Whether the alarm is on.
    pub(crate) fn is_burning(&self) -> bool {
        self.is_told
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_core_that_burns_long_enough_is_told_once_and_again_after_a_pause() {
        let (mut busy, begin, patience) = (Busy::default(), Instant::now(), Duration::from_mins(1));
        let mut look =
            |at: u64, used: u64| busy.look(Duration::from_secs(used), begin + Duration::from_secs(at), patience);
        assert_eq!(look(0, 5), Seen::Nothing);
        assert_eq!(look(30, 35), Seen::Nothing);
        assert_eq!(look(50, 54), Seen::Nothing, "not long enough yet");
        assert_eq!(look(60, 64), Seen::Burning(Duration::from_mins(1)));
        assert_eq!(look(90, 94), Seen::Nothing, "told once");
        assert_eq!(look(100, 95), Seen::Calm);
        assert_eq!(look(110, 96), Seen::Nothing);
        assert_eq!(look(170, 170), Seen::Burning(Duration::from_mins(1)));
        assert!(busy.is_burning() && busy.percent == Some(123));
    }

    #[test]
    fn a_burst_is_none_and_zero_turns_it_off() {
        let (mut busy, begin) = (Busy::default(), Instant::now());
        let second = Duration::from_secs(1);
        for at in 0..100 {
            assert_eq!(busy.look(second * at, begin + second * at, Duration::ZERO), Seen::Nothing);
        }
        let mut busy = Busy::default();
        for at in 0..100 {
            let used = second * (at / 2);
            assert_eq!(busy.look(used, begin + second * at, second * 3), Seen::Nothing, "every other second");
        }
    }
}
