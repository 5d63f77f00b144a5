//! Workers outside this program: the same records, leases and fencing numbers, without a handler.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use serde_json::Value;
use tokio::time::Instant;

use super::Error;
use super::Job;
use super::JobId;
use super::Outcome;
use super::Queue;
use super::State;
use super::board::Taken;
use super::decide;
use super::records::Step;
use crate::ids::TenantId;

/// Most jobs of one claim.
const MAX_JOBS: usize = 100;
/// Longest wait for a job.
const MAX_WAIT: Duration = Duration::from_mins(1);
/// Shortest and longest lease.
const MIN_LEASE: Duration = Duration::from_secs(1);
const MAX_LEASE: Duration = Duration::from_hours(1);
/// Longest name of a worker.
const NAME_CHARS: usize = 64;

/// What a worker asks for.
#[derive(Debug, Clone)]
pub struct Claiming {
    /// The kinds it can do.
    pub kinds: Vec<String>,
    /// Its name, for people.
    pub worker: String,
    /// How long it may be silent; from 1 second to 1 hour, anything else is brought into that.
    pub lease: Duration,
    /// At most so many jobs (1 to 100).
    pub limit: usize,
    /// Only jobs of this tenant.
    pub tenant: Option<TenantId>,
    /// How long to wait for a first job; a minute at most.
    pub wait: Duration,
}

/// A job in a worker's hands.
#[derive(Debug, Clone)]
pub struct Claimed {
    /// The job.
    pub job: Arc<Job>,
    /// The number that reports about it have to carry.
    pub fence: u64,
    /// How long the worker may be silent.
    pub lease: Duration,
}

/// The answer to a worker's sign of life.
#[derive(Debug, Clone)]
pub struct Beat {
    /// It was called off: stop, and report it as failed or done; what comes late is refused.
    pub cancel_requested: bool,
    /// How long the worker may be silent from now on.
    pub lease: Duration,
}

impl Queue {
    /// Hands out jobs of external kinds in the order of the line; none when there are none in time. Durable: a job in
    /// the answer is the worker's until its lease ends. Kinds that are not external are refused.
    pub async fn claim(&self, claiming: Claiming) -> Result<Vec<Claimed>, Error> {
        let kinds: Vec<Arc<str>> = self
            .inner
            .external
            .iter()
            .filter(|known| claiming.kinds.iter().any(|kind| **kind == ***known))
            .cloned()
            .collect();
        if claiming.kinds.is_empty() || claiming.kinds.iter().any(|kind| !self.is_external(kind)) {
            return Err(Error::UnknownKind);
        }
        let worker: String = claiming.worker.chars().filter(|c| !c.is_control()).take(NAME_CHARS).collect();
        let lease = claiming.lease.clamp(MIN_LEASE, MAX_LEASE);
        let until = Instant::now() + claiming.wait.min(MAX_WAIT);
        loop {
            let mut woken = std::pin::pin!(self.inner.wake.notified());
            woken.as_mut().enable();
            if self.inner.stopping.is_cancelled() {
                return Err(Error::Stopping);
            }
            let taken = self.take(&kinds, &claiming);
            let is_empty = taken.is_empty();
            let claims = join_all(taken.into_iter().map(|taken| self.claim_taken(taken, Some(&worker), lease))).await;
            let mut claimed = Vec::new();
            let mut failed = None;
            for answer in claims {
                match answer {
                    Ok(Some(job)) => claimed.extend(job.fence().map(|fence| Claimed { job, fence, lease })),
                    Ok(None) => {}
                    Err(error) => failed = Some(error),
                }
            }
            if !claimed.is_empty() {
                return Ok(claimed);
            }
            if let Some(error) = failed {
                return Err(error);
            }
            // Others were faster: there may be more.
            if !is_empty {
                continue;
            }
            tokio::select! {
                () = woken => {}
                () = tokio::time::sleep_until(until) => return Ok(Vec::new()),
                // Before the requests have drained, which this one is among.
                () = self.inner.shutdown.begun() => return Err(Error::Stopping),
                () = self.inner.stopping.cancelled() => return Err(Error::Stopping),
            }
        }
    }

    fn take(&self, kinds: &[Arc<str>], claiming: &Claiming) -> Vec<Taken> {
        let room = (usize::MAX, self.inner.config.external_per_tenant);
        let mut board = self.board();
        board.promote(self.now());
        let limit = claiming.limit.clamp(1, MAX_JOBS);
        std::iter::from_fn(|| board.take(kinds, |_| room, claiming.tenant.as_ref())).take(limit).collect()
    }

    /// A sign of life; `lease` changes the term. [`Error::Lost`] when the job is no longer the worker's.
    pub async fn heartbeat(&self, id: &JobId, fence: u64, lease: Option<Duration>) -> Result<Beat, Error> {
        let job = self
            .change(id, |job| {
                let mut claim = decide::held(job, fence).ok_or(Error::Lost)?.clone();
                if let Some(lease) = lease {
                    claim =
                        decide::claim(&claim.node, claim.worker.as_deref(), fence, lease.clamp(MIN_LEASE, MAX_LEASE));
                }
                Ok(Step::Write(Box::new(Job { progress: self.reported(job), claim: Some(claim), ..job.clone() })))
            })
            .await?;
        let lease = job.claim.as_ref().map_or(MIN_LEASE, super::Claim::term);
        Ok(Beat { cancel_requested: job.cancel_requested, lease })
    }

    /// Says how far a job is. Kept in memory; the next sign of life takes it to the disk.
    pub fn progress(&self, id: &JobId, fence: u64, step: &str, done: u64, total: Option<u64>) -> Result<Beat, Error> {
        let board = self.board();
        let (job, _) = board.find(id).ok_or(Error::NotFound)?;
        let claim = decide::held(job, fence).ok_or(Error::Lost)?;
        let beat = Beat { cancel_requested: job.cancel_requested, lease: claim.term() };
        if let Some(watched) = board.running.get(id) {
            watched.meter.note(step, done, total);
        }
        Ok(beat)
    }

    /// The job succeeded. [`Error::Lost`] when it is no longer the worker's: whatever it did does not count. Saying it
    /// again under the same number changes nothing: a worker whose answer got lost may ask again.
    pub async fn complete(&self, id: &JobId, fence: u64, result: Value) -> Result<Arc<Job>, Error> {
        super::add::check_size("result", &result, self.inner.config.max_state_bytes)?;
        match self.end_outside(id, fence, Some(Outcome::Done(result))).await {
            Err(Error::Lost) => {
                let is_the_same = |job: &Arc<Job>| job.state == State::Done && job.done_under == Some(fence);
                self.job(id).filter(is_the_same).ok_or(Error::Lost)
            }
            ended => ended,
        }
    }

    /// The attempt failed; with `can_retry` the job is repeated as its kind's policy has it, not before `after`.
    pub async fn fail(
        &self,
        id: &JobId,
        fence: u64,
        reason: String,
        can_retry: bool,
        after: Option<Duration>,
    ) -> Result<Arc<Job>, Error> {
        let outcome = if can_retry { Outcome::Retry { reason, after } } else { Outcome::Dead { reason } };
        self.end_outside(id, fence, Some(outcome)).await
    }

    /// The worker gives a job back undone, without counting the attempt.
    pub async fn release(&self, id: &JobId, fence: u64) -> Result<Arc<Job>, Error> {
        self.end_outside(id, fence, None).await
    }

    /// Notes on from which a later attempt goes on; durable when it returns.
    pub async fn note_checkpoint(&self, id: &JobId, fence: u64, checkpoint: Value) -> Result<(), Error> {
        super::add::check_size("checkpoint", &checkpoint, self.inner.config.max_state_bytes)?;
        self.change(id, |job| {
            decide::held(job, fence).ok_or(Error::Lost)?;
            Ok(Step::Write(Box::new(Job { checkpoint: checkpoint.clone(), ..job.clone() })))
        })
        .await
        .map(drop)
    }

    async fn end_outside(&self, id: &JobId, fence: u64, outcome: Option<Outcome>) -> Result<Arc<Job>, Error> {
        let found = self.job(id).ok_or(Error::NotFound)?;
        let label = match &outcome {
            Some(Outcome::Done(_)) => "done",
            Some(Outcome::Dead { .. }) => "dead",
            Some(_) => "failed",
            None => "stopped",
        };
        let ended = self.end(id, fence, outcome).await?;
        let ran = found.started_at.map(|started| self.now() - started).and_then(|ran| ran.try_into().ok());
        self.inner.metrics.queue.ended(&found.kind, label, ran.unwrap_or_default());
        Ok(ended)
    }
}
