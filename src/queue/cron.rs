//! Cron patterns of five fields in UTC, and which of their times are due. Pure.

use std::cmp::Ordering;

use croner::CivilDateTime;
use croner::Cron;
use croner::CronDateTime;
use croner::Resolution;
use croner::errors::CronError;
use croner::parser::CronParser;
use croner::parser::Seconds;
use time::Date;
use time::Month;
use time::OffsetDateTime;
use time::PrimitiveDateTime;
use time::Time;

use super::schedule::Missed;

/// An occurrence is on time this long; later it was missed.
const ON_TIME: time::Duration = time::Duration::MINUTE;
/// A schedule that ran further ahead of the clock than this ran under a clock that was wrong.
const AHEAD: time::Duration = time::Duration::HOUR;
/// Most missed occurrences that are made up for.
const MAX_MADE_UP: usize = 100;

/// A parsed pattern.
#[derive(Debug, Clone)]
pub(super) struct Pattern(Cron);

#[derive(Clone)]
struct Utc(OffsetDateTime);

impl CronDateTime for Utc {
    fn to_civil(&self) -> CivilDateTime {
        let at = self.0;
        let (month, day) = (u32::from(u8::from(at.month())), u32::from(at.day()));
        let [hour, minute, second] = [at.hour(), at.minute(), at.second()].map(u32::from);
        // Every date that `time` holds is one.
        CivilDateTime::from_ymd_hms_opt(at.year(), month, day, hour, minute, second).unwrap_or_else(|| {
            CivilDateTime::new(
                croner::CivilDate::from_parts_unchecked(at.year(), month, day),
                croner::CivilTime::MIDNIGHT,
            )
        })
    }

    fn civil_weekday(&self) -> croner::Weekday {
        croner::Weekday::from_days_from_sunday(u32::from(self.0.weekday().number_days_from_sunday()))
    }

    fn resolve_civil(&self, civil: CivilDateTime) -> Result<Resolution<Self>, CronError> {
        let part = |number: u32| u8::try_from(number).unwrap_or(u8::MAX);
        let resolve = || {
            let month = Month::try_from(part(civil.month())).ok()?;
            let date = Date::from_calendar_date(civil.year(), month, part(civil.day())).ok()?;
            let time = Time::from_hms(part(civil.hour()), part(civil.minute()), part(civil.second())).ok()?;
            Some(Self(PrimitiveDateTime::new(date, time).assume_utc()))
        };
        // UTC has no gaps; a date beyond the calendar of `time` is never reached.
        Ok(resolve().map_or(Resolution::Gap, Resolution::Single))
    }

    fn checked_add_seconds(&self, seconds: i64) -> Option<Self> {
        self.0.checked_add(time::Duration::seconds(seconds)).map(Self)
    }

    fn cmp_instant(&self, other: &Self) -> Ordering {
        self.0.cmp(&other.0)
    }
}

impl Pattern {
    /// Five fields: minute, hour, day of month, month, day of week.
    pub(super) fn parse(text: &str) -> Option<Self> {
        if text.len() > 100 {
            return None;
        }
        CronParser::builder().seconds(Seconds::Disallowed).build().parse(text).ok().map(Self)
    }

    /// The first time after this one; none when the pattern never matches.
    pub(super) fn next(&self, after: OffsetDateTime) -> Option<OffsetDateTime> {
        self.0.find_next_occurrence(&Utc(whole(after)), false).ok().map(|at| at.0)
    }

    fn last(&self, until: OffsetDateTime, is_inclusive: bool) -> Option<OffsetDateTime> {
        self.0.find_previous_occurrence(&Utc(whole(until)), is_inclusive).ok().map(|at| at.0)
    }

    /// The times to run after `last` and up to now, the oldest first, and what `last` is then. A clock that jumps
    /// forward makes what it jumped over missed; after a jump back nothing runs twice: it is quiet until the clock has
    /// caught up, or, if it was ahead by more than an hour, it goes on from now.
    pub(super) fn due(
        &self,
        last: OffsetDateTime,
        now: OffsetDateTime,
        missed: Missed,
    ) -> (Vec<OffsetDateTime>, OffsetDateTime) {
        if is_ahead(last, now) {
            return (Vec::new(), now);
        }
        let most = match missed {
            Missed::Skip | Missed::Once => 1,
            Missed::All { most } => (most as usize).clamp(1, MAX_MADE_UP),
        };
        let mut times = Vec::new();
        let mut at = self.last(now, true);
        while let Some(time) = at.filter(|time| *time > last && times.len() < most) {
            times.push(time);
            at = self.last(time, false);
        }
        let Some(newest) = times.first().copied() else { return (times, last) };
        times.reverse();
        if missed == Missed::Skip {
            times.retain(|time| now - *time <= ON_TIME);
        }
        (times, newest)
    }
}

/// Whether a schedule's last time was told by a clock that was wrong.
pub(super) fn is_ahead(last: OffsetDateTime, now: OffsetDateTime) -> bool {
    last > now + AHEAD
}

/// Patterns know whole seconds only.
fn whole(at: OffsetDateTime) -> OffsetDateTime {
    at.replace_nanosecond(0).unwrap_or(at)
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    #[test]
    fn patterns_have_five_fields() {
        for good in ["* * * * *", "*/5 9-17 * * MON-FRI", "0 0 1 1 *", "@daily"] {
            assert!(Pattern::parse(good).is_some(), "{good}");
        }
        for bad in ["", "x", "* * * *", "* * * * * *", "61 * * * *", &"*".repeat(101)] {
            assert!(Pattern::parse(bad).is_none(), "{bad}");
        }
        let leap = Pattern::parse("30 4 29 2 *").unwrap();
        assert_eq!(leap.next(datetime!(2026-01-01 0:00 UTC)), Some(datetime!(2028-02-29 4:30 UTC)));
    }

    #[test]
    fn each_time_is_due_once() {
        let pattern = Pattern::parse("*/10 * * * *").unwrap();
        let (mut last, mut ran) = (datetime!(2026-01-01 0:00 UTC), Vec::new());
        let mut now = last;
        while now <= datetime!(2026-01-01 1:00:30 UTC) {
            let (times, newest) = pattern.due(last, now, Missed::Skip);
            ran.extend(times);
            last = newest;
            now += time::Duration::SECOND;
        }
        let expected = [10, 20, 30, 40, 50, 60].map(|m| datetime!(2026-01-01 0:00 UTC) + time::Duration::minutes(m));
        assert_eq!(ran, expected);
    }

    #[test]
    fn what_was_missed_follows_the_policy() {
        let pattern = Pattern::parse("0 * * * *").unwrap();
        let (last, now) = (datetime!(2026-01-01 0:00 UTC), datetime!(2026-01-01 5:30 UTC));
        let five = datetime!(2026-01-01 5:00 UTC);
        assert_eq!(pattern.due(last, now, Missed::Skip), (vec![], five));
        assert_eq!(pattern.due(last, now, Missed::Once), (vec![five], five));
        let (times, newest) = pattern.due(last, now, Missed::All { most: 3 });
        assert_eq!((times.len(), times.last(), newest), (3, Some(&five), five));
        assert_eq!(pattern.due(five, now, Missed::All { most: 3 }), (vec![], five));
    }

    #[test]
    fn a_clock_that_jumps_back_runs_nothing_twice() {
        let pattern = Pattern::parse("* * * * *").unwrap();
        let last = datetime!(2026-01-01 12:00 UTC);
        assert_eq!(pattern.due(last, datetime!(2026-01-01 11:30:30 UTC), Missed::Once), (vec![], last));
        let far = datetime!(2025-12-31 12:00 UTC);
        assert_eq!(pattern.due(last, far, Missed::Once), (vec![], far));
    }
}
