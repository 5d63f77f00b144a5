//! What has to be looked at from time to time: leases, cancellations, progress, old jobs.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::Instant;
use tokio::time::MissedTickBehavior;

use super::Error;
use super::Job;
use super::JobId;
use super::Queue;
use super::State;
use super::decide;
use super::records::Step;
use crate::store::Revision;

/// How often listeners are told of progress and of moved positions.
const TELL: Duration = Duration::from_millis(250);
/// How often leases are looked at.
const KEEP: Duration = Duration::from_millis(250);
/// How often old jobs are swept, and how many at a time.
const SWEEP: Duration = Duration::from_secs(30);
const SWEPT_AT_ONCE: usize = 1_000;
/// Records that are changed at once.
const AT_ONCE: usize = 256;

fn every(period: Duration) -> tokio::time::Interval {
    let mut interval = tokio::time::interval(period);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    interval
}

/// A running job that needs something.
struct Due {
    job: Arc<Job>,
    revision: Revision,
    need: Need,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Need {
    /// A sign of life of ours.
    Renewal,
    /// Its lease is over.
    TakeBack,
    /// It was called off and did not end in time.
    Drop,
}

impl Queue {
    /// Passes progress and moved positions on, coalesced.
    pub(super) async fn tell(&self) {
        let mut ticks = every(TELL);
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                () = self.inner.stopping.cancelled() => return,
            }
            let mut board = self.board();
            let running: Vec<JobId> = board.running.keys().copied().collect();
            for id in running {
                board.report(&id);
            }
            if std::mem::take(&mut board.is_moved) {
                self.inner.positions.send_modify(|version| *version += 1);
            }
        }
    }

    /// Keeps leases: renews ours, takes back those that ended, drops cancelled jobs that go on.
    pub(super) async fn keep(&self) {
        let mut ticks = every(KEEP);
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                // Ours are renewed until the last of them has ended or is dropped.
                () = self.inner.dropping.cancelled() => return,
            }
            if self.inner.stopping.is_cancelled() && self.board().attempts.is_empty() {
                return;
            }
            let due = self.due_leases(Instant::now());
            for some in due.chunks(AT_ONCE) {
                for answer in join_all(some.iter().map(|due| self.see_to(due))).await {
                    match answer {
                        Ok(()) | Err(Error::Lost | Error::NotFound) => {}
                        Err(error) => tracing::error!(%error, "keep the lease of a job; trying again"),
                    }
                }
            }
            self.show();
        }
    }

    fn due_leases(&self, now: Instant) -> Vec<Due> {
        let board = self.board();
        let grace = self.inner.config.cancel_grace;
        let need = |id: &JobId| {
            let watched = board.running.get(id)?;
            let (job, revision) = board.find(id)?;
            let claim = job.claim.as_ref()?;
            let silent = now.duration_since(watched.seen);
            let is_ours = board.attempts.get(id).is_some_and(|attempt| attempt.fence == claim.fence);
            let need = if watched.cancel_seen.is_some_and(|seen| now.duration_since(seen) >= grace) {
                Need::Drop
            } else if is_ours && silent >= claim.term() / 3 {
                Need::Renewal
            } else if !is_ours && silent >= claim.term() {
                Need::TakeBack
            } else {
                return None;
            };
            Some(Due { job: Arc::clone(job), revision, need })
        };
        board.running.keys().filter_map(need).collect()
    }

    async fn see_to(&self, due: &Due) -> Result<(), Error> {
        let (job, now) = (&due.job, self.now());
        let policy = self.policy(&job.kind);
        let fence = job.fence().ok_or(Error::Lost)?;
        let next = match due.need {
            Need::Renewal => return self.renew(&job.id, fence).await.map(drop),
            Need::Drop => decide::cancelled(job, now),
            Need::TakeBack => {
                decide::failed(job, "the worker did not answer any more", None, now, rand::random(), &policy)
            }
        };
        // Only over the version that was silent: a sign of life in between wins.
        match self.replace(next, due.revision).await {
            Ok(_) => {
                let reason = if due.need == Need::Drop { "cancelled" } else { "expired" };
                self.inner.metrics.queue.taken_back(&job.kind, reason);
                tracing::warn!(job.id = %job.id, job.kind = %job.kind, reason, "a running job was taken back");
                Ok(())
            }
            Err(Error::Store(error)) if error.is_refusal() => self.read(job).await.map(drop),
            Err(error) => Err(error),
        }
    }

    /// A sign of life of the attempt with this number; its progress rides along.
    pub(super) async fn renew(&self, id: &JobId, fence: u64) -> Result<Arc<Job>, Error> {
        self.change(id, |job| {
            decide::held(job, fence).ok_or(Error::Lost)?;
            Ok(Step::Write(Box::new(Job { progress: self.reported(job), ..job.clone() })))
        })
        .await
    }

    /// Takes back what earlier runs of this node had begun: they are gone for certain.
    pub(super) async fn take_back(&self) -> Result<(), Error> {
        let left: Vec<Arc<Job>> = {
            let board = self.board();
            let jobs = board.running.keys().filter_map(|id| board.find(id)).map(|(job, _)| job);
            let is_left = |job: &&Arc<Job>| {
                job.claim.as_ref().is_some_and(|claim| claim.node != self.inner.node && claim.worker.is_none())
            };
            jobs.filter(is_left).cloned().collect()
        };
        for some in left.chunks(AT_ONCE) {
            let take = |job: &Arc<Job>| {
                let (id, fence) = (job.id, job.fence());
                async move {
                    let judge = |job: &Job| {
                        let is_left = job.state == State::Running && job.fence() == fence;
                        let reason = "the server stopped while it ran";
                        Ok(is_left.then(|| decide::taken_back(job, reason, self.now())).into())
                    };
                    self.change(&id, judge).await
                }
            };
            for answer in join_all(some.iter().map(take)).await {
                answer?;
            }
        }
        if !left.is_empty() {
            tracing::info!(jobs = left.len(), "took back the jobs that were running when the server stopped");
        }
        Ok(())
    }

    /// Removes finished jobs that are too old or too many.
    pub(super) async fn sweep(&self) {
        let mut ticks = every(SWEEP);
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                () = self.inner.stopping.cancelled() => return,
            }
            loop {
                match self.sweep_some().await {
                    Ok(swept) if swept >= SWEPT_AT_ONCE && !self.inner.stopping.is_cancelled() => {}
                    Ok(_) => break,
                    Err(error) => {
                        tracing::error!(%error, "sweep finished jobs; trying again later");
                        break;
                    }
                }
            }
        }
    }

    /// Removes some; returns how many.
    pub(super) async fn sweep_some(&self) -> Result<usize, Error> {
        let old = self.swept(SWEPT_AT_ONCE);
        let mut removed = 0;
        for some in old.chunks(AT_ONCE) {
            for answer in join_all(some.iter().map(|(job, revision)| self.forget(job, *revision))).await {
                removed += usize::from(answer?);
            }
        }
        Ok(removed)
    }

    fn swept(&self, most: usize) -> Vec<(Arc<Job>, Revision)> {
        let config = &self.inner.config;
        let limit = self.now() - config.keep_finished;
        let board = self.board();
        let too_many = board.finished.len().saturating_sub(config.max_finished);
        let in_all = board.finished.iter().enumerate();
        let mut old: Vec<JobId> = in_all
            .take_while(|(index, (at, _))| *index < too_many || *at < limit)
            .map(|(_, (_, id))| *id)
            .take(most)
            .collect();
        for book in board.books.values() {
            let too_many = book.finished.len().saturating_sub(config.max_finished_per_tenant);
            old.extend(book.finished.iter().take(too_many.min(most.saturating_sub(old.len()))).map(|(_, id)| *id));
        }
        old.sort_unstable();
        old.dedup();
        old.iter().filter_map(|id| board.find(id)).map(|(job, revision)| (Arc::clone(job), revision)).collect()
    }

    /// Sets the gauges.
    fn show(&self) {
        for kind in self.status().kinds {
            for (state, count) in kind.states {
                self.inner.metrics.queue.set_depth(&kind.kind, state, count);
            }
        }
    }
}
