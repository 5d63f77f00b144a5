//! The life of an instance as a pure function: `on(event) -> action`. No I/O, no clock of its own.
//!
//! The owning task (`instance`) feeds events in and carries actions out, one at a time, so that starts, stops and
//! operator commands of one instance never overlap.

use std::time::Duration;
use std::time::Instant;

use crate::supervisor::backoff::History;
use crate::supervisor::backoff::Policy;
use crate::supervisor::backoff::Verdict;

/// Where an instance is. Data lives in the state that has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// No process.
    Asleep,
    /// A process is being made or has not proved itself yet.
    Starting,
    /// The route is open. The process may have exited a moment ago without our knowing.
    Awake,
    /// The route is closed and the process stopped by a signal, its memory where it was or paged out. It does nothing
    /// until it is wanted.
    Frozen,
    /// The route is closed; requests in flight finish.
    Draining,
    /// SIGTERM was sent.
    Stopping,
    /// It failed; the next start is at `until`.
    Backoff {
        /// When.
        until: Instant,
        /// What happened.
        reason: String,
    },
    /// It failed too often. Only `retry_at` (the global instance) or an operator leads out.
    Quarantined {
        /// What happened last.
        reason: String,
        /// A single attempt is made then, if set.
        retry_at: Option<Instant>,
    },
    /// Something outside it is in the way.
    Blocked {
        /// What.
        reason: String,
        /// A request from then on tries again.
        retry_at: Instant,
    },
    /// The running cap left no room; from `retry_at` on a request tries again.
    Crowded {
        /// When.
        retry_at: Instant,
    },
    /// Refused to everybody.
    Suspended,
}

impl State {
    /// The state's name, as operators see it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Asleep | Self::Crowded { .. } => "asleep",
            Self::Starting => "starting",
            Self::Awake => "awake",
            Self::Frozen => "frozen",
            Self::Draining | Self::Stopping => "draining",
            Self::Backoff { .. } => "backoff",
            Self::Quarantined { .. } => "quarantined",
            Self::Blocked { .. } => "blocked",
            Self::Suspended => "suspended",
        }
    }
}

/// Why a start failed or a running process ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// The instance's own doing: counts towards quarantine.
    Crash(String),
    /// The same, but the machine may be to blame: it was not ready in time, or a signal ended it.
    Unclear(String),
    /// Retrying cannot help (a damaged database): quarantine at once.
    Fatal(String),
    /// Not its doing (full disk, missing binary, broken template, no room): not counted, tried again after the wait.
    Outside(String, Duration),
    /// As many instances are awake as may be, and none could sleep.
    NoRoom,
    /// The tenant is suspended.
    Suspended,
}

/// What happens to an instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Somebody needs it.
    Wanted,
    /// The authenticated health check passed.
    Ready,
    /// The start failed, or the process ended without being asked.
    Failed(Failure),
    /// Idle for long enough to be frozen.
    FreezeAsked,
    /// Idle, evicted, or an operator said so.
    SleepAsked,
    /// No request is in flight any more, or the drain's time is up.
    Drained,
    /// The process is gone, as asked.
    Gone,
    /// The time in the state is up.
    Elapsed,
    /// An operator lifts backoff, quarantine or block.
    Released,
}

/// What the owning task has to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Nothing.
    Rest,
    /// Make a process and wait until it proved itself.
    Start,
    /// Open the route.
    Open,
    /// Close the route, stop the process by a signal if nobody uses it.
    Freeze,
    /// Let the process go on and open the route.
    Thaw,
    /// Close the route, let requests finish.
    Drain,
    /// SIGTERM, wait, SIGKILL.
    Terminate,
    /// Close the route and clean up after a process that is gone.
    Bury,
}

/// How long the global instance stays in quarantine before one more attempt.
pub const GLOBAL_RETRY: Duration = Duration::from_mins(5);

/// How long a refusal for want of room stands, so that a crowd of waiters is told at once and newcomers are not.
const CROWDED_RETRY: Duration = Duration::from_millis(100);

/// Whether quarantine ends by itself after a while.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recovery {
    /// Only an operator releases it.
    Manual,
    /// One attempt every [`GLOBAL_RETRY`]: the instance that everybody needs.
    Periodic,
}

/// The state of one instance with its failures.
#[derive(Debug)]
pub struct Machine {
    state: State,
    history: History,
    policy: Policy,
    recovery: Recovery,
}

impl Machine {
    /// An instance in a given state (`Asleep`, or `Awake` when adopted).
    pub fn new(state: State, policy: Policy, recovery: Recovery) -> Self {
        Self { state, history: History::default(), policy, recovery }
    }

    /// Where it is.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Whether nothing would be lost by forgetting this instance.
    pub fn is_forgettable(&self, now: Instant) -> bool {
        self.state == State::Asleep && !self.history.matters(now, &self.policy)
    }

    /// The transition. An event that means nothing in a state changes nothing.
    pub fn on(&mut self, event: Event, now: Instant, chance: f64) -> Action {
        let (next, action) = match (&self.state, event) {
            (State::Asleep | State::Suspended, Event::Wanted) | (State::Backoff { .. }, Event::Elapsed) => {
                (State::Starting, Action::Start)
            }
            (State::Quarantined { retry_at: Some(at), .. }, Event::Elapsed) if *at <= now => {
                (State::Starting, Action::Start)
            }
            (State::Blocked { retry_at, .. } | State::Crowded { retry_at }, Event::Wanted) if *retry_at <= now => {
                (State::Starting, Action::Start)
            }
            // Nobody asked meanwhile: whether what was in the way is gone, the next start finds out.
            (State::Blocked { retry_at, .. } | State::Crowded { retry_at }, Event::Elapsed) if *retry_at <= now => {
                (State::Asleep, Action::Rest)
            }
            // A client that comes while requests still finish keeps the process.
            (State::Starting, Event::Ready) | (State::Draining, Event::Wanted) => (State::Awake, Action::Open),
            (State::Awake, Event::SleepAsked) => (State::Draining, Action::Drain),
            (State::Awake, Event::FreezeAsked) => (State::Frozen, Action::Freeze),
            (State::Frozen, Event::Wanted) => (State::Awake, Action::Thaw),
            // Nobody is at work in a frozen one, and a drain could end in an open route to a process that stands still.
            (State::Frozen, Event::SleepAsked) | (State::Draining, Event::Drained) => {
                (State::Stopping, Action::Terminate)
            }
            (State::Stopping, Event::Gone) => (State::Asleep, Action::Bury),
            (
                State::Starting | State::Awake | State::Frozen | State::Draining | State::Stopping,
                Event::Failed(failure),
            ) => (self.after(failure, now, chance), Action::Bury),
            (
                State::Backoff { .. } | State::Quarantined { .. } | State::Blocked { .. } | State::Suspended,
                Event::Released,
            ) => {
                self.history.clear();
                (State::Asleep, Action::Rest)
            }
            _ => return Action::Rest,
        };
        self.state = next;
        action
    }

    fn after(&mut self, failure: Failure, now: Instant, chance: f64) -> State {
        let retry_at = (self.recovery == Recovery::Periodic).then_some(now + GLOBAL_RETRY);
        match failure {
            Failure::Crash(reason) | Failure::Unclear(reason) => match self.history.failed(now, chance, &self.policy) {
                Verdict::Wait(wait) => State::Backoff { until: now + wait, reason },
                Verdict::Quarantine => State::Quarantined { reason, retry_at },
            },
            Failure::Fatal(reason) => State::Quarantined { reason, retry_at },
            Failure::Outside(reason, wait) => State::Blocked { reason, retry_at: now + wait },
            Failure::NoRoom => State::Crowded { retry_at: now + CROWDED_RETRY },
            Failure::Suspended => State::Suspended,
        }
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

    fn asleep() -> Machine {
        Machine::new(State::Asleep, POLICY, Recovery::Manual)
    }

    fn drive(machine: &mut Machine, events: &[Event]) -> Vec<Action> {
        let now = Instant::now();
        events.iter().map(|event| machine.on(event.clone(), now, 1.0)).collect()
    }

    #[test]
    fn one_wake_however_many_want_it() {
        let mut machine = asleep();
        let actions = drive(&mut machine, &[Event::Wanted, Event::Wanted, Event::Wanted, Event::Ready, Event::Wanted]);
        assert_eq!(actions, [Action::Start, Action::Rest, Action::Rest, Action::Open, Action::Rest]);
    }

    #[test]
    fn sleep_drains_before_it_terminates_and_a_client_cancels_the_drain() {
        let mut machine = asleep();
        drive(&mut machine, &[Event::Wanted, Event::Ready]);
        assert_eq!(drive(&mut machine, &[Event::SleepAsked, Event::Wanted]), [Action::Drain, Action::Open]);
        let actions = drive(&mut machine, &[Event::SleepAsked, Event::Drained, Event::Wanted, Event::Gone]);
        assert_eq!(actions, [Action::Drain, Action::Terminate, Action::Rest, Action::Bury]);
        assert_eq!(machine.state(), &State::Asleep);
    }

    #[test]
    fn a_frozen_one_thaws_once_however_many_want_it_and_sleeps_without_a_drain() {
        let mut machine = asleep();
        assert_eq!(drive(&mut machine, &[Event::FreezeAsked]), [Action::Rest], "only one that is awake");
        let actions = drive(&mut machine, &[Event::Wanted, Event::FreezeAsked, Event::Ready, Event::FreezeAsked]);
        assert_eq!(actions, [Action::Start, Action::Rest, Action::Open, Action::Freeze]);
        assert_eq!(machine.state().name(), "frozen");
        assert_eq!(drive(&mut machine, &[Event::FreezeAsked, Event::Elapsed, Event::Ready]), [Action::Rest; 3]);
        assert_eq!(drive(&mut machine, &[Event::Wanted, Event::Wanted]), [Action::Thaw, Action::Rest]);
        let actions = drive(&mut machine, &[Event::FreezeAsked, Event::SleepAsked, Event::Wanted, Event::Gone]);
        assert_eq!(actions, [Action::Freeze, Action::Terminate, Action::Rest, Action::Bury]);
        assert_eq!(machine.state(), &State::Asleep);
    }

    #[test]
    fn one_that_dies_while_frozen_or_is_found_dead_at_the_thaw_has_failed() {
        for before in [vec![Event::FreezeAsked], vec![Event::FreezeAsked, Event::Wanted]] {
            let mut machine = asleep();
            drive(&mut machine, &[Event::Wanted, Event::Ready]);
            drive(&mut machine, &before);
            assert_eq!(drive(&mut machine, &[Event::Failed(Failure::Crash("gone".into()))]), [Action::Bury]);
            assert_eq!(machine.state().name(), "backoff");
        }
    }

    #[test]
    fn requests_do_not_bypass_backoff_or_quarantine() {
        let mut machine = asleep();
        drive(&mut machine, &[Event::Wanted, Event::Failed(Failure::Crash("boom".into()))]);
        assert_eq!(machine.state().name(), "backoff");
        assert_eq!(drive(&mut machine, &[Event::Wanted]), [Action::Rest]);
        for _ in 0..5 {
            drive(&mut machine, &[Event::Elapsed, Event::Failed(Failure::Crash("boom".into()))]);
        }
        assert_eq!(machine.state().name(), "quarantined");
        assert_eq!(drive(&mut machine, &[Event::Wanted, Event::Elapsed]), [Action::Rest, Action::Rest]);
        assert_eq!(drive(&mut machine, &[Event::Released, Event::Wanted]), [Action::Rest, Action::Start]);
    }

    #[test]
    fn damaged_data_is_quarantined_at_once_and_outside_trouble_is_never_counted() {
        let mut machine = asleep();
        drive(&mut machine, &[Event::Wanted, Event::Failed(Failure::Fatal("not a database".into()))]);
        assert_eq!(machine.state().name(), "quarantined");
        let mut machine = asleep();
        for _ in 0..20 {
            let outside = Failure::Outside("disk full".into(), Duration::ZERO);
            drive(&mut machine, &[Event::Wanted, Event::Failed(outside)]);
            assert_eq!(machine.state().name(), "blocked");
        }
        drive(&mut machine, &[Event::Elapsed]);
        assert_eq!(machine.state(), &State::Asleep, "and it does not stay blocked when nobody asks");
    }

    #[test]
    fn want_of_room_is_no_failure() {
        let mut machine = asleep();
        let now = Instant::now();
        for n in 0..20 {
            let at = now + CROWDED_RETRY * n;
            assert_eq!(machine.on(Event::Wanted, at, 1.0), Action::Start);
            machine.on(Event::Failed(Failure::NoRoom), at, 1.0);
            assert_eq!(machine.state().name(), "asleep");
        }
    }

    #[test]
    fn only_the_global_instance_leaves_quarantine_by_itself() {
        let now = Instant::now();
        let mut machine = Machine::new(State::Asleep, POLICY, Recovery::Periodic);
        machine.on(Event::Wanted, now, 0.0);
        machine.on(Event::Failed(Failure::Fatal("damaged".into())), now, 0.0);
        assert_eq!(machine.on(Event::Elapsed, now, 0.0), Action::Rest);
        assert_eq!(machine.on(Event::Elapsed, now + GLOBAL_RETRY, 0.0), Action::Start);
    }
}
