//! Running jobs in this process: claiming what is next, awaiting handlers, writing down how they ended.

use std::sync::Arc;
use std::sync::PoisonError;
use std::time::Duration;

use futures_util::future::join_all;
use serde_json::Value;
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::Error;
use super::Job;
use super::JobId;
use super::Lost;
use super::Outcome;
use super::Queue;
use super::Run;
use super::add::check_size;
use super::board::Attempt;
use super::board::Taken;
use super::decide;
use super::records::Step;
use crate::failpoint;
use crate::ids::TenantId;

/// Longest wait between two looks at the clock: how late a job may be whose time came by a change of the clock.
const LOOK: Duration = Duration::from_secs(1);
/// How long before its time a job is announced to its handler: a few times what waking an instance takes.
const LEAD: Duration = Duration::from_millis(500);
/// Wait after the store failed.
const STORE_PAUSE: Duration = Duration::from_secs(1);
/// How often the end of an attempt is written down before it is left to its lease.
const WRITES: u32 = 8;

/// A job that was taken out of line; goes back when dropped, unless its record changed.
pub(super) struct Reservation<'a> {
    queue: &'a Queue,
    id: JobId,
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        self.queue.board().put_back(&self.id);
    }
}

impl Queue {
    /// Begins to work: takes back what earlier runs of this node left, then dispatches until [`stop`](Self::stop).
    pub async fn start(&self) -> Result<(), Error> {
        if self.inner.is_alone {
            self.take_back().await?;
        }
        let owned = self.clone();
        self.own(async move { owned.dispatch().await });
        let owned = self.clone();
        self.own(async move { owned.tell().await });
        let owned = self.clone();
        self.own(async move { owned.keep().await });
        let owned = self.clone();
        self.own(async move { owned.sweep().await });
        let owned = self.clone();
        self.own(async move { owned.follow_schedules().await });
        Ok(())
    }

    /// Begins no more jobs, tells the running ones to stop, gives them `queue.drain_timeout`, drops those that do not
    /// end, and puts what is unfinished back in line without counting the attempt. Returns when all is written down.
    pub async fn stop(&self) {
        self.inner.stopping.cancel();
        for attempt in self.board().attempts.values() {
            attempt.stop.cancel();
        }
        self.inner.wake.notify_waiters();
        self.inner.tasks.close();
        if tokio::time::timeout(self.inner.config.drain_timeout, self.inner.tasks.wait()).await.is_err() {
            tracing::warn!("some jobs did not stop in time; they are dropped and will be begun again");
            self.inner.dropping.cancel();
            if tokio::time::timeout(self.inner.config.drain_timeout, self.inner.tasks.wait()).await.is_err() {
                tracing::error!(
                    "the ends of some jobs could not be written down; they are taken back at the next start"
                );
            }
        }
        self.inner.follower.lock().unwrap_or_else(PoisonError::into_inner).take();
        self.inner.stopped.cancel();
    }

    fn own(&self, task: impl Future<Output = ()> + Send + 'static) {
        let tracked = self.inner.tasks.track_future(task);
        self.inner.shutdown.spawn_on(tracked, &self.inner.runtime);
    }

    /// Claims and begins what there is room for, whenever something changes.
    async fn dispatch(&self) {
        let room = Arc::new(Semaphore::new(self.inner.config.concurrency));
        loop {
            let mut woken = std::pin::pin!(self.inner.wake.notified());
            // From here on nothing is missed: what changes after the look below wakes us.
            woken.as_mut().enable();
            if self.inner.stopping.is_cancelled() {
                return;
            }
            match self.begin_some(&room).await {
                Ok(0) => {
                    let pause = self.until_due();
                    tokio::select! {
                        () = woken => {}
                        () = tokio::time::sleep(pause) => {}
                        () = self.inner.stopping.cancelled() => return,
                    }
                }
                Ok(_) => {}
                Err(error) => {
                    tracing::error!(%error, "claim jobs; trying again");
                    tokio::select! {
                        () = tokio::time::sleep(STORE_PAUSE) => {}
                        () = self.inner.stopping.cancelled() => return,
                    }
                }
            }
        }
    }

    /// How long until a job's time comes, or is to be announced, as the wall clock goes now.
    fn until_due(&self) -> Duration {
        let board = self.board();
        let due = board.due.first().map(|(at, _)| *at);
        let announced = board.unforeseen.first().map(|(at, _)| *at - LEAD);
        drop(board);
        let next = due.into_iter().chain(announced).min();
        next.map_or(LOOK, |at| Duration::try_from(at - self.now()).unwrap_or_default().min(LOOK))
    }

    /// Returns how many were taken, claimed or not.
    async fn begin_some(&self, room: &Arc<Semaphore>) -> Result<usize, Error> {
        let kinds = self.kinds_here();
        let mut taken = Vec::new();
        let soon = {
            let mut board = self.board();
            board.promote(self.now());
            while let Ok(permit) = Arc::clone(room).try_acquire_owned() {
                let Some(job) = board.take(&kinds, |kind| self.room(kind), None) else { break };
                taken.push((job, permit));
            }
            // What is claimed now is on its way to the disk first.
            let claimed = taken.iter().map(|(taken, _)| (Arc::clone(&taken.job.kind), taken.job.tenant.clone()));
            let mut soon: Vec<_> = claimed.collect();
            soon.extend(board.foresee(self.now() + LEAD, room.available_permits(), |kind| self.room(kind)));
            soon
        };
        self.announce(&soon);
        let count = taken.len();
        let claims = join_all(taken.into_iter().map(|(taken, permit)| async move {
            let term = self.policy(&taken.job.kind).lease.unwrap_or(self.inner.config.lease);
            (self.claim_taken(taken, None, term).await, permit)
        }));
        let mut failed = None;
        for (claimed, permit) in claims.await {
            match claimed {
                Ok(Some(job)) => self.begin(job, permit),
                Ok(None) => {}
                Err(error) => failed = Some(error),
            }
        }
        failed.map_or(Ok(count), Err)
    }

    /// Tells handlers whose jobs come next.
    pub(super) fn announce(&self, soon: &[(Arc<str>, TenantId)]) {
        for (kind, tenant) in soon {
            if let Some(handler) = self.handler(kind).filter(|_| !self.is_closed_to(tenant)) {
                handler.soon(tenant);
            }
        }
    }

    /// Claims a job that was taken out of line; none when somebody else was faster.
    pub(super) async fn claim_taken(
        &self,
        taken: Taken,
        worker: Option<&str>,
        term: Duration,
    ) -> Result<Option<Arc<Job>>, Error> {
        let Taken { job, revision } = taken;
        let _reservation = Reservation { queue: self, id: job.id };
        let now = self.now();
        let claim = decide::claim(&self.inner.node, worker, revision.0, term);
        failpoint::hit("queue.claiming");
        match self.replace(decide::claimed(&job, claim.clone(), now), revision).await {
            Ok(claimed) => {
                self.inner.metrics.queue.waited(&job.kind, now - job.run_at.unwrap_or(job.created_at));
                failpoint::hit("queue.claimed");
                Ok(Some(claimed))
            }
            Err(Error::Store(error)) if error.is_refusal() => {
                self.read(&job).await?;
                Ok(None)
            }
            Err(error) => {
                // Whether it was written is not known: look.
                let found = self.read(&job).await?;
                match found.filter(|(found, _)| found.claim.as_ref() == Some(&claim)) {
                    Some((claimed, _)) => Ok(Some(claimed)),
                    None => Err(error),
                }
            }
        }
    }

    fn begin(&self, job: Arc<Job>, permit: OwnedSemaphorePermit) {
        let Some(fence) = job.fence() else { return };
        let (stop, lost) = (CancellationToken::new(), CancellationToken::new());
        let meter = {
            let mut board = self.board();
            let Some(watched) = board.running.get(&job.id) else { return };
            let meter = Arc::clone(&watched.meter);
            let is_held = board.find(&job.id).is_some_and(|(now, _)| now.fence() == Some(fence));
            if !is_held {
                return;
            }
            if board.find(&job.id).is_some_and(|(now, _)| now.cancel_requested) || self.inner.stopping.is_cancelled() {
                stop.cancel();
            }
            board.attempts.insert(job.id, Attempt { fence, stop: stop.clone(), lost: lost.clone() });
            meter
        };
        let run = Run { attempt: job.attempts, fence, job, queue: self.clone(), cancelled: stop, meter };
        let queue = self.clone();
        self.own(async move {
            let (id, fence) = (run.job.id, run.fence);
            queue.attempt(run, lost).await;
            {
                let mut board = queue.board();
                if board.attempts.get(&id).is_some_and(|attempt| attempt.fence == fence) {
                    board.attempts.remove(&id);
                }
            }
            drop(permit);
            // There is room again.
            queue.inner.wake.notify_waiters();
        });
    }

    /// One attempt, from the handler's call to its end on disk.
    async fn attempt(&self, run: Run, lost: CancellationToken) {
        let Some(handler) = self.handler(&run.job.kind) else { return };
        let (job, fence, began) = (Arc::clone(&run.job), run.fence, Instant::now());
        // A task of its own, so that a panic ends it and nothing else. Dropping the handle ends it too.
        let mut work = AbortOnDropHandle::new(tokio::spawn(async move { handler.run(run).await }));
        let outcome = tokio::select! {
            ended = &mut work => match ended {
                Ok(outcome) => Some(outcome),
                Err(error) if error.is_panic() => {
                    tracing::error!(job.id = %job.id, job.kind = %job.kind, "a job panicked");
                    Some(Outcome::Retry { reason: "the job crashed".to_owned(), after: None })
                }
                Err(_) => None,
            },
            () = lost.cancelled() => {
                self.inner.metrics.queue.ended(&job.kind, "lost", began.elapsed());
                return;
            }
            () = self.inner.dropping.cancelled() => None,
        };
        drop(work);
        failpoint::hit("queue.ended");
        let label = match &outcome {
            Some(Outcome::Done(_)) => "done",
            Some(Outcome::Park { .. }) => "parked",
            Some(Outcome::Retry { .. }) => "failed",
            Some(Outcome::Wait { .. }) => "waiting",
            Some(Outcome::Dead { .. }) => "dead",
            Some(Outcome::Cancelled) | None => "stopped",
        };
        self.inner.metrics.queue.ended(&job.kind, label, began.elapsed());
        self.write_down(&job, fence, outcome).await;
    }

    /// Writes down how an attempt ended. If the store fails for long, the lease will end the attempt.
    async fn write_down(&self, job: &Job, fence: u64, outcome: Option<Outcome>) {
        for write in 0..WRITES {
            let outcome = outcome.clone();
            match self.end(&job.id, fence, outcome).await {
                Ok(_) | Err(Error::Lost | Error::NotFound) => return,
                Err(error) => {
                    tracing::error!(job.id = %job.id, %error, "write down how a job ended; trying again");
                    tokio::select! {
                        () = tokio::time::sleep(Duration::from_millis(100 << write)) => {}
                        () = self.inner.dropping.cancelled() => return,
                    }
                }
            }
        }
    }

    /// The end of the attempt with this number; none = it was interrupted through no fault of its own.
    pub(super) async fn end(&self, id: &JobId, fence: u64, outcome: Option<Outcome>) -> Result<Arc<Job>, Error> {
        let found = self.job(id).ok_or(Error::NotFound)?;
        let policy = self.policy(&found.kind);
        let chance = rand::random::<f64>();
        let is_stopping =
            self.inner.stopping.is_cancelled() && found.claim.as_ref().is_some_and(|c| c.worker.is_none());
        let outcome = outcome.map(|outcome| self.bounded(outcome));
        self.change(id, |job| {
            decide::held(job, fence).ok_or(Error::Lost)?;
            let now = self.now();
            let job = Job { progress: self.reported(job), ..job.clone() };
            let next = match outcome.clone() {
                None => decide::released(&job, now),
                Some(Outcome::Cancelled | Outcome::Retry { .. } | Outcome::Wait { .. }) if is_stopping => {
                    decide::released(&job, now)
                }
                Some(Outcome::Cancelled) if !job.cancel_requested => {
                    decide::failed(&job, "the job stopped though nobody asked it to", None, now, chance, &policy)
                }
                Some(outcome) => decide::ended(&job, outcome, now, chance, &policy),
            };
            Ok(Step::Write(Box::new(next)))
        })
        .await
    }

    /// A result that does not fit into a record is a failure.
    fn bounded(&self, outcome: Outcome) -> Outcome {
        match outcome {
            Outcome::Done(result) if check_size("result", &result, self.inner.config.max_state_bytes).is_err() => {
                Outcome::Dead { reason: "the result of the job is too large to keep".to_owned() }
            }
            outcome => outcome,
        }
    }

    /// What a running job last reported here.
    pub(super) fn reported(&self, job: &Job) -> super::Progress {
        let board = self.board();
        board.running.get(&job.id).map_or_else(|| job.progress.clone(), |watched| watched.meter.current())
    }

    /// See [`Run::checkpoint`].
    pub(super) async fn checkpoint(&self, id: &JobId, fence: u64, checkpoint: Value) -> Result<(), Lost> {
        check_size("checkpoint", &checkpoint, self.inner.config.max_state_bytes).map_err(|_| Lost::TooLarge)?;
        let written = self.change(id, |job| {
            decide::held(job, fence).ok_or(Error::Lost)?;
            let progress = self.reported(job);
            Ok(Step::Write(Box::new(Job { checkpoint: checkpoint.clone(), progress, ..job.clone() })))
        });
        match written.await {
            Ok(_) => Ok(()),
            Err(Error::Store(error)) => Err(Lost::Store(error)),
            Err(_) => Err(Lost::Claim),
        }
    }
}
