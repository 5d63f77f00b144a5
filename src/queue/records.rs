//! Jobs as records: keys, reading, and the compare-and-swap loop that everything goes through.

use std::sync::Arc;

use bytes::Bytes;

use super::Error;
use super::Job;
use super::JobId;
use super::Queue;
use super::board::Source;
use super::decide;
use crate::store;
use crate::store::Entry;
use crate::store::Revision;

/// What the keys of jobs begin with.
pub(super) const PREFIX: &str = "job.";
/// Attempts of a compare-and-swap loop; the bound is for a store that refuses for ever.
const ATTEMPTS: usize = 512;

/// The key a job is stored under.
pub(super) fn key_of(job: &Job) -> String {
    format!("{PREFIX}{}.{}.{}", job.kind, job.tenant, job.id)
}

/// The name in a key; none when it is not the key of a job.
pub(super) fn id_in(key: &str) -> Option<JobId> {
    JobId::parse(key.strip_prefix(PREFIX)?.rsplit('.').next()?).ok()
}

pub(super) fn encode(job: &Job) -> Result<Bytes, Error> {
    serde_json::to_vec(job).map(Bytes::from).map_err(|_| Error::Invalid("the job cannot be written as JSON"))
}

/// None for a record that cannot be read; it is logged, left as it is and treated as absent.
pub(super) fn decode(entry: &Entry) -> Option<Job> {
    // The parser's own words could quote the value, so they are not passed on.
    let job = serde_json::from_slice::<Job>(&entry.value).ok().filter(|job| key_of(job) == *entry.key);
    let Some(mut job) = job else {
        tracing::error!(store.key = %entry.key, "the record of a job cannot be read; it is left and treated as absent");
        return None;
    };
    if job.seq == 0 {
        job.seq = entry.revision.0;
    }
    Some(job)
}

/// What a decision leads to.
pub(super) enum Step {
    /// Write this, if the job is still as it was judged.
    Write(Box<Job>),
    /// Leave it.
    Keep,
}

impl From<Option<Job>> for Step {
    fn from(job: Option<Job>) -> Self {
        job.map_or(Self::Keep, |job| Self::Write(Box::new(job)))
    }
}

impl Queue {
    /// Judge, compare-and-swap; again when refused, be it because somebody was faster or for no reason. Returns the job
    /// as it stands then. `judge` looks at each version anew and may refuse with an error.
    pub(super) async fn change(
        &self,
        id: &JobId,
        mut judge: impl FnMut(&Job) -> Result<Step, Error> + Send,
    ) -> Result<Arc<Job>, Error> {
        let found = self.board().find(id).map(|(job, revision)| (Arc::clone(job), revision));
        let (mut job, mut revision) = found.ok_or(Error::NotFound)?;
        for _ in 0..ATTEMPTS {
            let Step::Write(next) = judge(&job)? else { return Ok(job) };
            match self.replace(*next, revision).await {
                Ok(job) => return Ok(job),
                Err(Error::Store(error)) if error.is_refusal() => tokio::task::yield_now().await,
                Err(error) => return Err(error),
            }
            (job, revision) = self.read(&job).await?.ok_or(Error::NotFound)?;
        }
        Err(Error::Store(store::Error::Stale))
    }

    /// Writes a job over the version with this revision.
    pub(super) async fn replace(&self, job: Job, revision: Revision) -> Result<Arc<Job>, Error> {
        let revision = self.inner.store.update(&key_of(&job), encode(&job)?, revision).await?;
        Ok(self.wrote(job, revision))
    }

    /// Reads a job anew.
    pub(super) async fn read(&self, job: &Job) -> Result<Option<(Arc<Job>, Revision)>, Error> {
        let Some(entry) = self.inner.store.get(&key_of(job)).await? else { return Ok(None) };
        let Some(job) = decode(&entry) else { return Ok(None) };
        Ok(Some((self.wrote(job, entry.revision), entry.revision)))
    }

    /// Removes a finished job for good; false when it changed meanwhile.
    pub(super) async fn forget(&self, job: &Job, revision: Revision) -> Result<bool, Error> {
        match self.inner.store.delete(&key_of(job), revision).await {
            Ok(revision) => {
                self.board().apply(Source::Own, job.id, revision, None);
                Ok(true)
            }
            Err(error) if error.is_refusal() => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Puts a version that this node wrote or read into the board.
    pub(super) fn wrote(&self, mut job: Job, revision: Revision) -> Arc<Job> {
        if job.seq == 0 {
            job.seq = revision.0;
        }
        let id = job.id;
        let job = Arc::new(decide::timed(job, self.now()));
        self.board().apply(Source::Own, id, revision, Some(Arc::clone(&job)));
        job
    }
}
