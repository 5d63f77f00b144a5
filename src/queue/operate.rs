//! What people do to jobs: call off, try again, answer, move, pause.

use std::sync::Arc;

use bytes::Bytes;
use serde_json::Value;
use time::OffsetDateTime;

use super::Error;
use super::Job;
use super::JobId;
use super::Queue;
use super::State;
use super::add::check_size;
use super::decide;
use super::job::Rank;
use super::records::Step;
use crate::ids::TenantId;
use crate::store::Change;
use crate::store::Entry;

/// What the keys of pauses begin with: `jobpause.tenant.<tenant>` and `jobpause.kind.<kind>`.
pub(super) const PREFIX: &str = "jobpause.";
/// Attempts to write or remove one of them.
const ATTEMPTS: usize = 64;

/// Where in its tenant's line (of its kind) a job is moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spot {
    /// Right before another waiting job, with that one's priority (not its urgency, which a move overrules).
    Before(JobId),
    /// Before all others, with the highest priority among them.
    Front,
    /// Behind all others, with the lowest priority among them.
    Back,
}

impl Queue {
    /// Calls a job off. One that waits is cancelled when it returns; one that runs is told to stop and dropped after
    /// `queue.cancel_grace`. Calling twice is the same as calling once. [`Error::WrongState`] when it is done or dead.
    pub async fn cancel(&self, tenant: &TenantId, id: &JobId, now: OffsetDateTime) -> Result<Arc<Job>, Error> {
        self.find(tenant, id).ok_or(Error::NotFound)?;
        self.change(id, |job| Ok(decide::cancel(job, now)?.into())).await
    }

    /// Puts a dead or cancelled job back in line with all its attempts, or lets a waiting one go now. It keeps its old
    /// place, which is before everything that was added later.
    pub async fn retry(&self, tenant: &TenantId, id: &JobId) -> Result<Arc<Job>, Error> {
        let job = self.find(tenant, id).ok_or(Error::NotFound)?;
        if let Some(dedupe) = job.dedupe.as_ref().filter(|_| job.state.is_finished()) {
            let newest = self.board().of_dedupe(tenant, dedupe).map(|job| job.id);
            if newest.is_some_and(|newest| newest != *id) {
                return Err(Error::Duplicate);
            }
        }
        self.change(id, |job| Ok(decide::retry(job)?.into())).await
    }

    /// Answers a parked job: it goes back in line with `input`. [`Error::WrongState`] when it is not parked.
    pub async fn answer(&self, tenant: &TenantId, id: &JobId, input: Value) -> Result<Arc<Job>, Error> {
        check_size("answer", &input, self.inner.config.max_state_bytes)?;
        self.find(tenant, id).ok_or(Error::NotFound)?;
        self.change(id, |job| Ok(Step::Write(Box::new(decide::answer(job, &input)?)))).await
    }

    /// Moves a queued job right before another one of its tenant and kind.
    pub async fn move_before(&self, tenant: &TenantId, id: &JobId, before: &JobId) -> Result<Arc<Job>, Error> {
        self.move_to(tenant, id, Spot::Before(*before)).await
    }

    /// Moves a queued job before all others of its tenant and kind.
    pub async fn move_to_front(&self, tenant: &TenantId, id: &JobId) -> Result<Arc<Job>, Error> {
        self.move_to(tenant, id, Spot::Front).await
    }

    /// Moves a queued job within its tenant's line of its kind. [`Error::WrongState`] when it, or the one it should go
    /// before, is not queued.
    pub async fn move_to(&self, tenant: &TenantId, id: &JobId, spot: Spot) -> Result<Arc<Job>, Error> {
        let job = self.find(tenant, id).ok_or(Error::NotFound)?;
        if let Spot::Before(other) = &spot {
            let other = self.find(tenant, other).ok_or(Error::NotFound)?;
            if other.state != State::Queued || other.kind != job.kind {
                return Err(Error::WrongState(other.state));
            }
            if other.id == job.id {
                return Ok(job);
            }
        }
        self.change(id, |job| {
            if job.state != State::Queued {
                return Err(Error::WrongState(job.state));
            }
            let places = self.board().queued(tenant, &job.kind);
            let others: Vec<_> = places.into_iter().filter(|(_, _, other)| other != id).collect();
            let Some((priority, rank)) = place(&others, spot)? else { return Ok(Step::Keep) };
            Ok(Step::Write(Box::new(Job { priority, rank: Some(rank), ..job.clone() })))
        })
        .await
    }

    /// Begins no more jobs of a tenant; those that run go on. Durable.
    pub async fn pause(&self, tenant: &TenantId) -> Result<(), Error> {
        self.set_pause(&format!("{PREFIX}tenant.{tenant}"), true).await?;
        self.board().set_paused(tenant, true);
        Ok(())
    }

    /// Ends a pause. Durable.
    pub async fn resume(&self, tenant: &TenantId) -> Result<(), Error> {
        self.set_pause(&format!("{PREFIX}tenant.{tenant}"), false).await?;
        self.board().set_paused(tenant, false);
        Ok(())
    }

    /// Begins no more jobs of a kind, for operators. Durable.
    pub async fn pause_kind(&self, kind: &str) -> Result<(), Error> {
        self.set_kind_pause(kind, true).await
    }

    /// Ends a pause of a kind. Durable.
    pub async fn resume_kind(&self, kind: &str) -> Result<(), Error> {
        self.set_kind_pause(kind, false).await
    }

    async fn set_kind_pause(&self, kind: &str, is_paused: bool) -> Result<(), Error> {
        if !self.knows(kind) {
            return Err(Error::UnknownKind);
        }
        self.set_pause(&format!("{PREFIX}kind.{kind}"), is_paused).await?;
        self.note_kind(kind, is_paused);
        Ok(())
    }

    async fn set_pause(&self, key: &str, is_paused: bool) -> Result<(), Error> {
        let store = &self.inner.store;
        for _ in 0..ATTEMPTS {
            let found = store.get(key).await?;
            let answer = match found {
                None if is_paused => store.create(key, Bytes::from_static(b"{}")).await,
                Some(entry) if !is_paused => store.delete(key, entry.revision).await,
                _ => return Ok(()),
            };
            match answer {
                Ok(_) => return Ok(()),
                Err(error) if error.is_refusal() => tokio::task::yield_now().await,
                Err(error) => return Err(error.into()),
            }
        }
        Err(Error::Store(crate::store::Error::Stale))
    }

    fn note_kind(&self, kind: &str, is_paused: bool) {
        let mut board = self.board();
        board.lanes.entry(kind.into()).or_default().is_paused = is_paused;
        board.wake.notify_waiters();
    }

    /// A pause of another node, or our own again.
    pub(super) fn note_pause(&self, change: &Change) {
        self.apply_pause(change.key(), matches!(change, Change::Put(_)));
    }

    /// All pauses as of one moment.
    pub(super) fn load_pauses(&self, entries: &[Entry]) {
        let tenants: Vec<TenantId> = self.board().paused.iter().cloned().collect();
        let kinds: Vec<Arc<str>> = self.board().lanes.keys().cloned().collect();
        for tenant in tenants {
            let key = format!("{PREFIX}tenant.{tenant}");
            self.apply_pause(&key, entries.iter().any(|entry| *entry.key == *key));
        }
        for kind in kinds {
            let key = format!("{PREFIX}kind.{kind}");
            self.apply_pause(&key, entries.iter().any(|entry| *entry.key == *key));
        }
        for entry in entries {
            self.apply_pause(&entry.key, true);
        }
    }

    fn apply_pause(&self, key: &str, is_paused: bool) {
        let rest = key.strip_prefix(PREFIX).unwrap_or_default();
        if let Some(tenant) = rest.strip_prefix("tenant.").and_then(|text| TenantId::parse(text).ok()) {
            self.board().set_paused(&tenant, is_paused);
        } else if let Some(kind) = rest.strip_prefix("kind.") {
            self.note_kind(kind, is_paused);
        }
    }
}

type Place = (std::cmp::Reverse<i8>, Rank, JobId);

/// Pure: the priority and rank of a spot among the others, which are in order; none when there are no others.
fn place(others: &[Place], spot: Spot) -> Result<Option<(i8, Rank)>, Error> {
    let (Some((first, first_rank, _)), Some((last, last_rank, _))) = (others.first(), others.last()) else {
        return Ok(None);
    };
    match spot {
        Spot::Front => Ok(Some((first.0, (first_rank.0 - 1, 0)))),
        Spot::Back => Ok(Some((last.0, (last_rank.0 + 1, 0)))),
        Spot::Before(before) => {
            let at = others.iter().position(|(_, _, id)| *id == before).ok_or(Error::NotFound)?;
            let (priority, rank, _) = others[at];
            let previous = at.checked_sub(1).map(|at| others[at]).filter(|(before, _, _)| *before == priority);
            let rank = match previous {
                None => (rank.0 - 1, 0),
                Some((_, previous, _)) => between(previous, rank).ok_or(Error::NoRoom)?,
            };
            Ok(Some((priority.0, rank)))
        }
    }
}

/// Halfway between two ranks; none when they are neighbours, which takes 64 moves to the same spot.
fn between(low: Rank, high: Rank) -> Option<Rank> {
    let whole = |rank: Rank| (i128::from(rank.0) << 64) | i128::from(rank.1);
    let (low, high) = (whole(low), whole(high));
    let middle = low + (high - low) / 2;
    if middle == low {
        return None;
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "taken apart as it was put together")]
    Some(((middle >> 64) as i64, middle as u64))
}

#[cfg(test)]
mod tests {
    use std::cmp::Reverse;

    use super::*;

    fn id(digit: char) -> JobId {
        JobId::parse(&digit.to_string().repeat(26)).unwrap()
    }

    #[test]
    fn a_place_is_found_between_any_two_jobs_many_times() {
        let (mut low, high) = ((5, 0), (6, 0));
        for _ in 0..63 {
            let middle = between(low, high).unwrap();
            assert!(low < middle && middle < high);
            low = middle;
        }
        assert_eq!(between((5, 7), (5, 8)), None);
        assert!(between((-3, 0), (2, 0)).is_some_and(|rank| rank > (-3, 0) && rank < (2, 0)));
    }

    #[test]
    fn spots_are_relative_to_the_others() {
        let others = [(Reverse(5), (10, 0), id('a')), (Reverse(0), (3, 0), id('b')), (Reverse(0), (4, 0), id('c'))];
        assert_eq!(place(&others, Spot::Front).unwrap(), Some((5, (9, 0))));
        assert_eq!(place(&others, Spot::Back).unwrap(), Some((0, (5, 0))));
        assert_eq!(place(&others, Spot::Before(id('b'))).unwrap(), Some((0, (2, 0))));
        assert_eq!(place(&others, Spot::Before(id('c'))).unwrap(), Some((0, (3, 1 << 63))));
        assert!(place(&others, Spot::Before(id('d'))).is_err());
        assert_eq!(place(&[], Spot::Front).unwrap(), None);
    }
}
