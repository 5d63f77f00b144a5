//! Adding jobs: checked, bounded, durable when the call returns, and added once however often it is called.

use std::collections::BTreeSet;
use std::collections::HashMap;
use std::hash::DefaultHasher;
use std::hash::Hash;
use std::hash::Hasher;
use std::sync::Arc;
use std::sync::PoisonError;

use serde_json::Value;
use sha2::Digest;
use sha2::Sha256;
use time::OffsetDateTime;
use tokio::sync::MutexGuard;

use super::Added;
use super::Error;
use super::Job;
use super::JobId;
use super::NewJob;
use super::Progress;
use super::Queue;
use super::State;
use super::config::is_kind;
use super::decide;
use super::job::AlsoKey;
use super::records;
use super::records::Step;
use crate::ids::TenantId;
use crate::store;

/// Most jobs of one [`Queue::add`].
pub const MAX_BATCH: usize = 1_000;
/// Longest title, idempotency key and `dedupe` text.
const TITLE_CHARS: usize = 200;
const KEY_BYTES: usize = 200;
/// Attempts of a job at its `max_attempts` at most.
const MAX_ATTEMPTS: u32 = 100;
/// Keys that a job remembers of wishes which its `dedupe` text answered; the oldest goes first.
const MAX_ALSO_KEYS: usize = 8;
/// Locks that tenants share for decisions over their `dedupe` texts.
pub(super) const TEXT_LOCKS: usize = 64;
/// Times the race for one `dedupe` text is tried.
const GENERATIONS: usize = 64;

/// Room in the queue that was promised to a call; given back when dropped.
pub(super) struct Promise<'a> {
    queue: &'a Queue,
    tenants: HashMap<TenantId, usize>,
    in_all: usize,
}

impl Drop for Promise<'_> {
    fn drop(&mut self) {
        let mut board = self.queue.board();
        board.promised_in_all -= self.in_all;
        for (tenant, count) in &self.tenants {
            if let Some(promised) = board.promised.get_mut(tenant) {
                *promised -= count;
                if *promised == 0 {
                    board.promised.remove(tenant);
                }
            }
        }
    }
}

/// The bytes of a value as JSON.
pub(super) fn check_size(what: &'static str, value: &Value, most: usize) -> Result<(), Error> {
    struct Counter(usize);
    impl std::io::Write for Counter {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0 += bytes.len();
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let mut counter = Counter(0);
    let fits = serde_json::to_writer(&mut counter, value).is_ok() && counter.0 <= most;
    if fits { Ok(()) } else { Err(Error::TooLarge { what, most }) }
}

impl Queue {
    /// Adds jobs. All are on disk when it returns; each is answered in its place. Nothing is added when one of them is
    /// refused. Of jobs with a key or a `dedupe` text that is there already the existing one is returned.
    pub async fn add(&self, jobs: Vec<NewJob>, now: OffsetDateTime) -> Result<Vec<Added>, Error> {
        if self.inner.stopping.is_cancelled() {
            return Err(Error::Stopping);
        }
        if jobs.len() > MAX_BATCH {
            return Err(Error::TooManyAtOnce { most: MAX_BATCH });
        }
        let _texts = self.hold_texts(jobs.iter().filter(|job| job.dedupe.is_some()).map(|job| &job.tenant)).await;
        let jobs = jobs.into_iter().map(|job| self.make(job, now)).collect::<Result<Vec<_>, _>>()?;
        let firsts = firsts(&jobs)?;
        let known = jobs.iter().map(|job| self.known(job)).collect::<Result<Vec<_>, _>>()?;
        let is_fresh = |index: &usize| firsts[*index] == *index && known[*index].is_none();
        // What is there already needs no room.
        let _promise = self.promise((0..jobs.len()).filter(is_fresh).map(|index| &jobs[index].tenant))?;
        let mut answers: Vec<Option<Added>> = jobs.iter().map(|_| None).collect();
        let mut fresh = Vec::new();
        for (index, (job, known)) in jobs.into_iter().zip(known).enumerate() {
            match known {
                Some(known) => answers[index] = Some(Added { job: self.remember(known, &job).await?, is_new: false }),
                None if firsts[index] == index => fresh.push((index, job)),
                None => {}
            }
        }
        for _ in 0..GENERATIONS {
            let pairs = fresh.iter().map(|(_, job)| Ok((records::key_of(job), records::encode(job)?)));
            let written = self.inner.store.create_many(pairs.collect::<Result<_, Error>>()?).await?;
            let mut again = Vec::new();
            let mut refused = None;
            for ((index, job), answer) in fresh.into_iter().zip(written) {
                match answer {
                    Ok(revision) => {
                        let job = self.wrote(job, revision);
                        answers[index] = Some(Added { job, is_new: true });
                    }
                    Err(store::Error::Exists) => match self.met(job).await? {
                        Met::Same(job) => answers[index] = Some(Added { job, is_new: false }),
                        Met::Again(job) => again.push((index, *job)),
                    },
                    Err(error) => refused = Some(error),
                }
            }
            if let Some(error) = refused {
                return Err(error.into());
            }
            if again.is_empty() {
                for (index, first) in firsts.into_iter().enumerate().filter(|(index, first)| index != first) {
                    answers[index] = answers[first].clone().map(|added| Added { is_new: false, ..added });
                }
                return answers.into_iter().map(|answer| answer.ok_or(Error::Duplicate)).collect();
            }
            fresh = again;
            tokio::task::yield_now().await;
        }
        Err(Error::Duplicate)
    }

    /// Waits until nobody else decides over `dedupe` texts of these tenants, and keeps it so: whoever brings an old job
    /// with a text back and whoever adds one with the same text must not both find that there is none. Known limit:
    /// within this process; two nodes could. Held for writes of the store only.
    pub(super) async fn hold_texts<'a>(&self, tenants: impl Iterator<Item = &'a TenantId>) -> Vec<MutexGuard<'_, ()>> {
        let wanted: BTreeSet<usize> = tenants.map(text_lock).collect();
        let mut held = Vec::with_capacity(wanted.len());
        // Always in the same order, so that no two wait for each other.
        for lock in wanted.iter().filter_map(|lock| self.inner.texts.get(*lock)) {
            held.push(lock.lock().await);
        }
        held
    }

    /// Keeps room for an unfinished job more of each of these tenants, or refuses. One is named as often as it needs.
    pub(super) fn promise<'a>(&self, wanted: impl Iterator<Item = &'a TenantId>) -> Result<Promise<'_>, Error> {
        let mut tenants: HashMap<TenantId, usize> = HashMap::new();
        for tenant in wanted {
            *tenants.entry(tenant.clone()).or_default() += 1;
        }
        let in_all = tenants.values().sum();
        let config = &self.inner.config;
        let mut board = self.board();
        if board.unfinished + board.promised_in_all + in_all > config.max_waiting {
            return Err(Error::Full);
        }
        let most = config.max_waiting_per_tenant;
        for (tenant, count) in &tenants {
            let unfinished = board.books.get(tenant).map_or(0, |book| book.unfinished);
            if unfinished + board.promised.get(tenant).copied().unwrap_or_default() + count > most {
                return Err(Error::TenantFull { most });
            }
        }
        board.promised_in_all += in_all;
        for (tenant, count) in &tenants {
            *board.promised.entry(tenant.clone()).or_default() += count;
        }
        drop(board);
        Ok(Promise { queue: self, tenants, in_all })
    }

    /// Checks a wish and makes a job of it.
    fn make(&self, new: NewJob, now: OffsetDateTime) -> Result<Job, Error> {
        if !is_kind(&new.kind) || !self.knows(&new.kind) {
            return Err(Error::UnknownKind);
        }
        check_size("payload", &new.payload, self.inner.config.max_payload_bytes)?;
        for key in [&new.idempotency_key, &new.dedupe].into_iter().flatten() {
            if key.is_empty() || key.len() > KEY_BYTES || key.chars().any(char::is_control) {
                return Err(Error::Invalid("a key has 1 to 200 bytes and no control characters"));
            }
        }
        let max_attempts = new.max_attempts.unwrap_or_else(|| self.policy(&new.kind).max_attempts);
        if !(1..=MAX_ATTEMPTS).contains(&max_attempts) {
            return Err(Error::Invalid("a job is attempted 1 to 100 times"));
        }
        let (id, generation) = self.name(&new, now);
        let title = new.title.chars().filter(|c| !c.is_control()).take(TITLE_CHARS).collect();
        let job = Job {
            id,
            kind: new.kind.into(),
            tenant: new.tenant,
            user: new.user,
            title,
            payload: new.payload,
            state: State::Queued,
            priority: new.priority,
            attempts: 0,
            max_attempts,
            run_at: new.run_at,
            created_at: now,
            started_at: None,
            finished_at: None,
            progress: Progress::default(),
            error: None,
            result: None,
            checkpoint: Value::Null,
            input: None,
            parked_for: None,
            cancel_requested: false,
            idempotency_key: new.idempotency_key,
            dedupe: new.dedupe,
            also_keys: Vec::new(),
            generation,
            claim: None,
            done_under: None,
            seq: 0,
            rank: None,
            urgency: new.urgency,
        };
        Ok(decide::timed(job, now))
    }

    /// A job with a key is named after it, so that the store itself refuses a second one. `dedupe` comes first: it is
    /// the stronger promise.
    fn name(&self, new: &NewJob, now: OffsetDateTime) -> (JobId, u32) {
        match (&new.dedupe, &new.idempotency_key) {
            (Some(dedupe), _) => {
                let newest = self.board().of_dedupe(&new.tenant, dedupe).map(|job| (job.generation, job.state));
                let generation = newest.map_or(0, |(newest, state)| newest + u32::from(state.is_finished()));
                (JobId::of_dedupe(&new.tenant, dedupe, generation), generation)
            }
            (None, Some(key)) => (JobId::of_key(&new.tenant, key), 0),
            (None, None) => (self.inner.names.lock().unwrap_or_else(PoisonError::into_inner).next(now), 0),
        }
    }

    /// The existing job that stands for this one, as far as this node knows.
    fn known(&self, job: &Job) -> Result<Option<Arc<Job>>, Error> {
        let board = self.board();
        if let Some(known) = job.idempotency_key.as_ref().and_then(|key| board.of_key(&job.tenant, key)) {
            return if is_same(known, job) { Ok(Some(Arc::clone(known))) } else { Err(Error::KeyReused) };
        }
        let newest = job.dedupe.as_ref().and_then(|dedupe| board.of_dedupe(&job.tenant, dedupe));
        Ok(newest.filter(|newest| !newest.state.is_finished()).cloned())
    }

    /// Lets a job that answers a wish because of its text answer to the wish's key from now on, too. Durable.
    async fn remember(&self, found: Arc<Job>, wish: &Job) -> Result<Arc<Job>, Error> {
        let Some(key) = &wish.idempotency_key else { return Ok(found) };
        let is_known = |job: &Job| job.keys().any(|known| known == key);
        if is_known(&found) {
            return Ok(found);
        }
        let also = AlsoKey { key: key.clone(), wish: hash_of(wish) };
        let note = |job: &Job| {
            if is_known(job) {
                return Ok(Step::Keep);
            }
            let skipped = (job.also_keys.len() + 1).saturating_sub(MAX_ALSO_KEYS);
            let also_keys = job.also_keys.iter().skip(skipped).chain([&also]).cloned().collect();
            Ok(Step::Write(Box::new(Job { also_keys, ..job.clone() })))
        };
        match self.change(&found.id, note).await {
            // It ended and was swept since.
            Err(Error::NotFound) => Ok(found),
            noted => noted,
        }
    }

    /// A job whose name is taken.
    async fn met(&self, job: Job) -> Result<Met, Error> {
        let Some((found, _)) = self.read(&job).await? else {
            // Swept since, or refused for no reason.
            return Ok(Met::Again(Box::new(job)));
        };
        if job.idempotency_key.as_ref().is_some_and(|key| found.keys().any(|known| known == key)) {
            return if is_same(&found, &job) { Ok(Met::Same(found)) } else { Err(Error::KeyReused) };
        }
        match &job.dedupe {
            Some(_) if !found.state.is_finished() => Ok(Met::Same(self.remember(found, &job).await?)),
            Some(dedupe) => {
                // That one is finished: the next in the row of this text.
                let generation = found.generation + 1;
                let id = JobId::of_dedupe(&job.tenant, dedupe, generation);
                Ok(Met::Again(Box::new(Job { id, generation, ..job })))
            }
            None => Ok(Met::Again(Box::new(job))),
        }
    }
}

/// Which of the locks over `dedupe` texts is a tenant's.
fn text_lock(tenant: &TenantId) -> usize {
    let mut hasher = DefaultHasher::new();
    tenant.hash(&mut hasher);
    usize::try_from(hasher.finish() % TEXT_LOCKS as u64).unwrap_or_default()
}

/// Pure: for each job of a batch the first one with its key, which is itself where there is none before.
fn firsts(jobs: &[Job]) -> Result<Vec<usize>, Error> {
    let mut seen: HashMap<(&TenantId, &str), usize> = HashMap::new();
    let mut found = Vec::with_capacity(jobs.len());
    for (index, job) in jobs.iter().enumerate() {
        let key = job.idempotency_key.as_deref();
        let before = key.map_or(index, |key| *seen.entry((&job.tenant, key)).or_insert(index));
        if before != index && !is_same(&jobs[before], job) {
            return Err(Error::KeyReused);
        }
        found.push(before);
    }
    Ok(found)
}

enum Met {
    Same(Arc<Job>),
    Again(Box<Job>),
}

/// Whether a wish with a key of this job is the one that had the key first.
fn is_same(found: &Job, wish: &Job) -> bool {
    match found.also_keys.iter().find(|also| Some(&also.key) == wish.idempotency_key.as_ref()) {
        Some(also) => also.wish == hash_of(wish),
        None => found.kind == wish.kind && found.payload == wish.payload,
    }
}

/// Names what a job is about, for whoever does not keep that.
fn hash_of(wish: &Job) -> String {
    let payload = wish.payload.to_string();
    let digest = Sha256::new().chain_update(wish.kind.as_bytes()).chain_update([0]).chain_update(payload).finalize();
    let bits = digest.iter().take(16).fold(0_u128, |bits, byte| (bits << 8) | u128::from(*byte));
    format!("{bits:032x}")
}
