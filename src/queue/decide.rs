//! What becomes of a job: pure functions from a job and an event to the job that is written in its place.

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use time::OffsetDateTime;

use super::Claim;
use super::Error;
use super::Job;
use super::Outcome;
use super::Policy;
use super::Progress;
use super::State;

/// Longest text of a reason, in characters.
const REASON_CHARS: usize = 500;
/// A `Retry-After` is believed up to this.
const MAX_RETRY_AFTER: Duration = Duration::from_hours(24);
/// Who waits without being counted waits this long at least.
const LEAST_WAIT: Duration = Duration::from_secs(1);

/// How long to wait before the next attempt. `chance` is uniform in 0..1: the pause is anywhere from zero to the bound
/// (full jitter), so that jobs that failed together do not return together.
pub(super) fn pause(attempts: u32, after: Option<Duration>, chance: f64, policy: &Policy) -> Duration {
    let doublings = attempts.saturating_sub(1).min(30);
    let bound = policy.backoff_base.saturating_mul(1 << doublings).min(policy.backoff_max);
    let jittered = bound.mul_f64(chance.clamp(0.0, 1.0));
    // What somebody else asks for is a lower bound; the jitter comes on top so that not all return at once.
    after.map_or(jittered, |after| after.min(MAX_RETRY_AFTER).saturating_add(jittered.mul_f64(0.1)))
}

fn cut(reason: &str) -> String {
    reason.chars().filter(|c| !c.is_control()).take(REASON_CHARS).collect()
}

/// An attempt begins.
pub(super) fn claimed(job: &Job, claim: Claim, now: OffsetDateTime) -> Job {
    Job {
        state: State::Running,
        attempts: job.attempts.saturating_add(1),
        started_at: Some(now),
        run_at: None,
        parked_for: None,
        claim: Some(claim),
        progress: Progress::default(),
        ..job.clone()
    }
}

/// An attempt ended by itself.
pub(super) fn ended(job: &Job, outcome: Outcome, now: OffsetDateTime, chance: f64, policy: &Policy) -> Job {
    match outcome {
        Outcome::Done(result) => Job {
            state: State::Done,
            finished_at: Some(now),
            result: Some(result).filter(|result| !result.is_null()),
            error: None,
            done_under: job.fence(),
            claim: None,
            input: None,
            cancel_requested: false,
            ..job.clone()
        },
        Outcome::Dead { reason } => dead(job, &reason, now),
        Outcome::Cancelled => cancelled(job, now),
        Outcome::Park { .. } | Outcome::Wait { .. } if job.cancel_requested => cancelled(job, now),
        Outcome::Park { reason } => Job {
            state: State::Parked,
            parked_for: Some(cut(&reason)),
            attempts: job.attempts.saturating_sub(1),
            input: None,
            claim: None,
            ..job.clone()
        },
        Outcome::Retry { reason, after } => failed(job, &reason, after, now, chance, policy),
        Outcome::Wait { reason, after } => Job {
            state: State::Scheduled,
            attempts: job.attempts.saturating_sub(1),
            run_at: Some(now + after.clamp(LEAST_WAIT, MAX_RETRY_AFTER)),
            error: Some(cut(&reason)),
            claim: None,
            ..job.clone()
        },
    }
}

/// An attempt failed, or was given up because its lease ended: it waits, or is dead after the last one.
pub(super) fn failed(
    job: &Job,
    reason: &str,
    after: Option<Duration>,
    now: OffsetDateTime,
    chance: f64,
    policy: &Policy,
) -> Job {
    if job.cancel_requested {
        return cancelled(job, now);
    }
    if job.attempts >= job.max_attempts {
        return dead(job, reason, now);
    }
    let wait = pause(job.attempts, after, chance, policy);
    Job { state: State::Scheduled, run_at: Some(now + wait), error: Some(cut(reason)), claim: None, ..job.clone() }
}

/// The process that ran it is gone for certain: it is in line again at once, unless that was its last attempt.
pub(super) fn taken_back(job: &Job, reason: &str, now: OffsetDateTime) -> Job {
    if job.cancel_requested {
        return cancelled(job, now);
    }
    if job.attempts >= job.max_attempts {
        return dead(job, reason, now);
    }
    Job { state: State::Queued, run_at: None, error: Some(cut(reason)), claim: None, ..job.clone() }
}

/// It was interrupted through no fault of its own: as if the attempt had not been.
pub(super) fn released(job: &Job, now: OffsetDateTime) -> Job {
    if job.cancel_requested {
        return cancelled(job, now);
    }
    Job { state: State::Queued, run_at: None, attempts: job.attempts.saturating_sub(1), claim: None, ..job.clone() }
}

fn dead(job: &Job, reason: &str, now: OffsetDateTime) -> Job {
    if job.cancel_requested {
        return cancelled(job, now);
    }
    Job { state: State::Dead, finished_at: Some(now), error: Some(cut(reason)), claim: None, ..job.clone() }
}

/// It is called off, whatever it was.
pub(super) fn cancelled(job: &Job, now: OffsetDateTime) -> Job {
    Job {
        state: State::Cancelled,
        finished_at: Some(now),
        claim: None,
        run_at: None,
        cancel_requested: true,
        ..job.clone()
    }
}

/// A person calls it off. None: that is the case already.
pub(super) fn cancel(job: &Job, now: OffsetDateTime) -> Result<Option<Job>, Error> {
    match job.state {
        State::Queued | State::Scheduled | State::Parked => Ok(Some(cancelled(job, now))),
        State::Running if job.cancel_requested => Ok(None),
        State::Running => Ok(Some(Job { cancel_requested: true, ..job.clone() })),
        State::Cancelled => Ok(None),
        State::Done | State::Dead => Err(Error::WrongState(job.state)),
    }
}

/// A person wants a failed or cancelled job done after all, or a waiting one now. None: it is in line already.
pub(super) fn retry(job: &Job) -> Result<Option<Job>, Error> {
    match job.state {
        State::Dead | State::Cancelled => Ok(Some(Job {
            state: State::Queued,
            attempts: 0,
            run_at: None,
            finished_at: None,
            parked_for: None,
            cancel_requested: false,
            ..job.clone()
        })),
        State::Scheduled => Ok(Some(Job { state: State::Queued, run_at: None, ..job.clone() })),
        State::Queued => Ok(None),
        State::Running | State::Parked | State::Done => Err(Error::WrongState(job.state)),
    }
}

/// A person answers a parked job.
pub(super) fn answer(job: &Job, input: &Value) -> Result<Job, Error> {
    if job.state != State::Parked {
        return Err(Error::WrongState(job.state));
    }
    Ok(Job { state: State::Queued, input: Some(input.clone()), parked_for: None, run_at: None, ..job.clone() })
}

/// The claim of a job if it is the one with this number.
pub(super) fn held(job: &Job, fence: u64) -> Option<&Claim> {
    job.claim.as_ref().filter(|claim| job.state == State::Running && claim.fence == fence)
}

/// As it stands in memory: whether a waiting job waits for its time is a matter of the clock.
pub(super) fn timed(mut job: Job, now: OffsetDateTime) -> Job {
    if job.state.is_waiting() {
        job.state = if job.run_at.is_some_and(|at| at > now) { State::Scheduled } else { State::Queued };
    }
    job
}

/// The claim of a node or worker on a job as of a revision, which is the number that fences it.
pub(super) fn claim(node: &Arc<str>, worker: Option<&str>, revision: u64, term: Duration) -> Claim {
    Claim {
        node: Arc::clone(node),
        worker: worker.map(Into::into),
        fence: revision,
        term_ms: u64::try_from(term.as_millis()).unwrap_or(u64::MAX),
    }
}
