//! Tidies up after deliveries that did not end by themselves: called off, given up, or of another time.
//!
//! What has to be noted in the user's instance is noted first, the staged files go last: as long as they are there, the
//! next round tries again.

use std::sync::Arc;
use std::time::Duration;
use std::time::SystemTime;

use futures_util::StreamExt;
use futures_util::stream;
use tokio::sync::broadcast::error::RecvError;
use tokio::time::timeout;

use super::KIND;
use super::Parts;
use super::attempt;
use super::attempt::now;
use super::checkpoint::Checkpoint;
use super::ledger;
use super::send;
use super::staging;
use super::staging::Owner;
use crate::jobs::destinations;
use crate::jobs::destinations::Upload;
use crate::queue::Change;
use crate::queue::Job;
use crate::queue::JobId;
use crate::queue::Queue;
use crate::queue::State;
use crate::shutdown::Shutdown;
use crate::supervisor::Priority;
use crate::vault::Sealed;

/// How often everything is looked through.
const ROUND: Duration = Duration::from_mins(5);

/// How many are tidied up after at once, and how long a destination may take to forget what is half sent there.
const AT_ONCE: usize = 8;
const ABANDON: Duration = Duration::from_secs(10);

/// What there is to do.
enum Work {
    Job(Arc<Job>),
    Round,
}

/// Follows the queue and tidies.
#[derive(Debug, Clone)]
pub struct Janitor {
    parts: Parts,
    queue: Queue,
}

impl Janitor {
    /// Tidies after the deliveries of this queue.
    pub fn new(parts: Parts, queue: Queue) -> Self {
        Self { parts, queue }
    }

    /// Until the shutdown.
    pub async fn run(self, shutdown: Shutdown) {
        let (changes, rounds) = (self.queue.changes(), tokio::time::interval(ROUND));
        let work = stream::unfold((changes, rounds), async |(mut changes, mut rounds)| {
            loop {
                let work = tokio::select! {
                    change = changes.recv() => match change {
                        Ok(Change::Finished { job } | Change::Removed { job }) if &*job.kind == KIND => Work::Job(job),
                        Ok(_) => continue,
                        Err(RecvError::Lagged(_)) => Work::Round,
                        Err(RecvError::Closed) => return None,
                    },
                    _ = rounds.tick() => Work::Round,
                };
                return Some((work, (changes, rounds)));
            }
        });
        // One that takes long keeps the others waiting only when there are many like it.
        let follow = work.for_each_concurrent(AT_ONCE, async |work| match work {
            Work::Job(job) => self.tidy(&job).await,
            Work::Round => self.round().await,
        });
        // What is left undone at the shutdown is done at the next start.
        tokio::select! {
            () = follow => {}
            () = shutdown.begun() => {}
        }
    }

    /// Looks at every staging folder.
    async fn round(&self) {
        let staging = self.parts.staging.clone();
        let Ok(Ok(folders)) = tokio::task::spawn_blocking(move || staging.jobs()).await else { return };
        let looks = stream::iter(folders).for_each_concurrent(AT_ONCE, async |(name, changed)| {
            let job = JobId::parse(&name).ok().and_then(|id| self.queue.job(&id));
            match job {
                Some(job) if job.state.is_finished() => self.tidy(&job).await,
                Some(job) => self.expire(&job),
                None if staging::may_go(Owner::Unknown, changed, SystemTime::now()) => self.remove(&name),
                None => {}
            }
        });
        looks.await;
    }

    /// A job ended. Twice at once is as good as once.
    async fn tidy(&self, job: &Arc<Job>) {
        if job.state != State::Done {
            let checkpoint = Checkpoint::read(&job.checkpoint);
            // Whether it answers or not: what lies there is its own.
            let _ = timeout(ABANDON, self.abandon(job, &checkpoint)).await;
            if !self.note(job, &checkpoint).await {
                return;
            }
        }
        // Somebody may have brought it back meanwhile.
        if self.queue.job(&job.id).is_none_or(|job| job.state.is_finished()) {
            self.remove(job.id.as_str());
        }
    }

    /// Takes back what lies half sent at the destination. Best effort.
    async fn abandon(&self, job: &Job, checkpoint: &Checkpoint) {
        let (Some(subject), Some(sending)) = (&checkpoint.subject, &checkpoint.sending) else { return };
        let Some(staged) = checkpoint.files.get(sending.index) else { return };
        let context = attempt::context(&job.id, send::UPLOAD);
        let Ok(opened) = self.parts.vault.unseal(&job.tenant, &context, &Sealed(sending.sealed.clone())).await else {
            return;
        };
        let Ok(upload) = serde_json::from_str::<Upload>(opened.expose()) else { return };
        let open = async {
            let instance = self.parts.records.open(&job.tenant, Priority::Background).await?;
            let target = self.parts.destinations.choose(&instance, Some(&subject.destination)).await?;
            self.parts.destinations.open(&job.tenant, &target).await
        };
        if let Ok::<_, destinations::Error>(destination) = open.await {
            let file = send::outgoing(&self.parts.staging.folder(job.id.as_str()), subject, staged);
            destination.abandon(&file, &upload).await;
        }
    }

    /// Notes in the user's instance how it ended; false when that has to be tried again.
    async fn note(&self, job: &Job, checkpoint: &Checkpoint) -> bool {
        let Some(subject) = &checkpoint.subject else { return true };
        let (state, error) = match job.state {
            State::Cancelled => ("cancelled", ""),
            _ => ("failed", job.error.as_deref().unwrap_or_default()),
        };
        let noted = async {
            let instance = self.parts.records.open(&job.tenant, Priority::Background).await?;
            ledger::fail(&instance, subject, job.id.as_str(), state, error, now()).await
        };
        match noted.await {
            Ok(()) => true,
            Err(error) if error.is_passing() => false,
            Err(error) => {
                tracing::warn!(job.id = %job.id, %error, "note how a delivery ended");
                true
            }
        }
    }

    /// A video that was handed off and not fetched in time goes; the job still takes a link.
    fn expire(&self, job: &Job) {
        let Some(since) = Checkpoint::read(&job.checkpoint).handed_off else { return };
        if now() - since > self.parts.config.handoff_ttl {
            self.remove(job.id.as_str());
        }
    }

    fn remove(&self, job: &str) {
        if let Err(error) = self.parts.staging.remove(job) {
            tracing::warn!(job.id = job, %error, "remove staged files; the next round tries again");
        }
    }
}
