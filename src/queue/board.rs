//! Every job, in memory: who is in line, what runs, what waits for its time. Fed by the watch and by own writes.
//!
//! The rules that keep it right are those of the store's live views: a newer revision wins; a deletion is remembered
//! until the watch has passed it; once the watch has passed a revision, an own write up to it that finds nothing knows
//! that the job was deleted since. An own write is applied when its call returns, so the watch's news of it is
//! recognised by its revision and costs one look-up, not a parse.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::collections::HashMap;
use std::collections::HashSet;
use std::sync::Arc;

use time::OffsetDateTime;
use tokio::sync::Notify;
use tokio::sync::broadcast;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Change;
use super::Job;
use super::JobId;
use super::State;
use super::job::Rank;
use super::line::Line;
use super::progress::Meter;
use crate::ids::TenantId;
use crate::store::Revision;

/// Who brings a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    /// A caller that wrote or read the record itself.
    Own,
    /// The watch, in revision order.
    Watch,
    /// The snapshot of a watch that starts.
    Snapshot,
}

/// How a job is filed; remembered, so that it can be taken out as it was put in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Line,
    /// In line by its state, but its tenant is paused.
    Held,
    /// Being claimed by a caller in this process.
    Reserved,
    Due,
    Running,
    Parked,
    Finished,
}

#[derive(Debug)]
struct Slot {
    revision: Revision,
    /// None: deleted, and the watch has not passed that yet.
    filed: Option<(Arc<Job>, Place)>,
}

/// What this node knows of a running job beyond its record.
#[derive(Debug)]
pub(super) struct Watched {
    /// When its record was last seen to change, on this node's clock.
    pub(super) seen: Instant,
    /// When it was first seen to be called off.
    pub(super) cancel_seen: Option<Instant>,
    /// What is reported of it here.
    pub(super) meter: Arc<Meter>,
}

/// An attempt in this process, to be told when it has to stop.
#[derive(Debug)]
pub(super) struct Attempt {
    pub(super) fence: u64,
    /// It should stop.
    pub(super) stop: CancellationToken,
    /// The job is no longer its own.
    pub(super) lost: CancellationToken,
}

/// What a tenant has in the queue.
#[derive(Debug, Default)]
pub(super) struct Book {
    /// In the order they were added.
    pub(super) jobs: BTreeSet<(u64, JobId)>,
    pub(super) unfinished: usize,
    pub(super) finished: BTreeSet<(OffsetDateTime, JobId)>,
    keys: HashMap<String, JobId>,
    /// The newest job of each text, finished or not.
    dedupes: HashMap<String, (u32, JobId)>,
}

impl Book {
    /// Forgets which keys mean a job, unless they mean another one.
    fn forget_keys<'a>(&mut self, keys: impl Iterator<Item = &'a String>, id: &JobId) {
        for key in keys {
            if self.keys.get(key) == Some(id) {
                self.keys.remove(key);
            }
        }
    }
}

/// One kind.
#[derive(Debug, Default)]
pub(super) struct Lane {
    pub(super) line: Line,
    /// When it was last served, so that kinds take turns.
    pub(super) turn: u64,
    pub(super) is_paused: bool,
    /// Jobs by state, in the order of [`State::ALL`].
    pub(super) counts: [usize; 7],
}

/// A job that was taken out of the line to be claimed.
#[derive(Debug)]
pub(super) struct Taken {
    pub(super) job: Arc<Job>,
    pub(super) revision: Revision,
}

#[derive(Debug)]
pub(super) struct Board {
    slots: HashMap<JobId, Slot>,
    followed: Revision,
    pub(super) lanes: BTreeMap<Arc<str>, Lane>,
    pub(super) books: HashMap<TenantId, Book>,
    pub(super) all: BTreeSet<(u64, JobId)>,
    pub(super) due: BTreeSet<(OffsetDateTime, JobId)>,
    /// Those of them that were not looked at by [`foresee`](Self::foresee).
    pub(super) unforeseen: BTreeSet<(OffsetDateTime, JobId)>,
    pub(super) running: HashMap<JobId, Watched>,
    pub(super) finished: BTreeSet<(OffsetDateTime, JobId)>,
    pub(super) attempts: HashMap<JobId, Attempt>,
    pub(super) paused: HashSet<TenantId>,
    /// Places promised to calls that are adding.
    pub(super) promised: HashMap<TenantId, usize>,
    pub(super) promised_in_all: usize,
    pub(super) unfinished: usize,
    turns: u64,
    /// Positions may have changed since somebody looked.
    pub(super) is_moved: bool,
    pub(super) news: broadcast::Sender<Change>,
    pub(super) wake: Arc<Notify>,
}

impl Board {
    pub(super) fn new(news: broadcast::Sender<Change>, wake: Arc<Notify>) -> Self {
        Self {
            slots: HashMap::new(),
            followed: Revision(0),
            lanes: BTreeMap::new(),
            books: HashMap::new(),
            all: BTreeSet::new(),
            due: BTreeSet::new(),
            unforeseen: BTreeSet::new(),
            running: HashMap::new(),
            finished: BTreeSet::new(),
            attempts: HashMap::new(),
            paused: HashSet::new(),
            promised: HashMap::new(),
            promised_in_all: 0,
            unfinished: 0,
            turns: 0,
            is_moved: false,
            news,
            wake,
        }
    }

    pub(super) fn find(&self, id: &JobId) -> Option<(&Arc<Job>, Revision)> {
        let slot = self.slots.get(id)?;
        slot.filed.as_ref().map(|(job, _)| (job, slot.revision))
    }

    /// Whether the watch's news of this revision of a job is known already; if so it is noted as passed.
    pub(super) fn passes(&mut self, id: &JobId, revision: Revision) -> bool {
        let Some(slot) = self.slots.get(id).filter(|slot| slot.revision >= revision) else { return false };
        let is_forgotten = slot.filed.is_none() && slot.revision == revision;
        self.followed = self.followed.max(revision);
        if is_forgotten {
            self.slots.remove(id);
        }
        true
    }

    /// Takes note of a job as of a revision; none = deleted, or not readable.
    pub(super) fn apply(&mut self, source: Source, id: JobId, revision: Revision, job: Option<Arc<Job>>) {
        match self.slots.get(&id) {
            Some(slot) if slot.revision >= revision => {
                if source == Source::Watch {
                    self.passes(&id, revision);
                }
                return;
            }
            None if source == Source::Own && revision <= self.followed => return,
            None if source != Source::Own && job.is_none() => {
                self.note_followed(source, revision);
                return;
            }
            _ => {}
        }
        self.file(id, revision, job);
        self.note_followed(source, revision);
        if source == Source::Watch && self.slots.get(&id).is_some_and(|slot| slot.filed.is_none()) {
            self.slots.remove(&id);
        }
    }

    fn note_followed(&mut self, source: Source, revision: Revision) {
        if source == Source::Watch {
            self.followed = self.followed.max(revision);
        }
    }

    /// Brings the board to a snapshot after changes were missed: what the snapshot lacks was deleted meanwhile.
    pub(super) fn resync(&mut self, moment: Revision, snapshot: Vec<(JobId, Revision, Arc<Job>)>) {
        let present: HashSet<JobId> = snapshot.iter().map(|(id, _, _)| *id).collect();
        for (id, revision, job) in snapshot {
            self.apply(Source::Snapshot, id, revision, Some(job));
        }
        self.followed = self.followed.max(moment);
        let gone = |(id, slot): (&JobId, &Slot)| {
            (slot.revision <= moment && (slot.filed.is_none() || !present.contains(id))).then_some(*id)
        };
        let gone: Vec<JobId> = self.slots.iter().filter_map(gone).collect();
        for id in gone {
            self.file(id, moment, None);
            self.slots.remove(&id);
        }
    }

    fn file(&mut self, id: JobId, revision: Revision, job: Option<Arc<Job>>) {
        let old = self.slots.remove(&id).and_then(|slot| slot.filed);
        let fences = [old.as_ref().and_then(|(job, _)| job.fence()), job.as_ref().and_then(|job| job.fence())];
        if fences[0] != fences[1] {
            self.running.remove(&id);
        }
        if let Some((old, place)) = &old {
            self.take_out(old, *place, job.is_none());
        }
        if let Some(attempt) = self.attempts.get(&id) {
            let is_held = job.as_ref().is_some_and(|job| job.fence() == Some(attempt.fence));
            if !is_held {
                attempt.lost.cancel();
            }
            if !is_held || job.as_ref().is_some_and(|job| job.cancel_requested) {
                attempt.stop.cancel();
            }
        }
        let filed = job.map(|job| {
            if let Some(change) = Change::between(old.as_ref().map(|(job, _)| &**job), &job) {
                // Refused when nobody listens.
                drop(self.news.send(change));
            }
            let place = self.place_of(&job);
            self.put_in(&job, place, old.as_ref().map(|(job, _)| &**job));
            (job, place)
        });
        self.slots.insert(id, Slot { revision, filed });
    }

    fn place_of(&self, job: &Job) -> Place {
        match job.state {
            State::Queued if self.paused.contains(&job.tenant) => Place::Held,
            State::Queued => Place::Line,
            State::Scheduled => Place::Due,
            State::Running => Place::Running,
            State::Parked => Place::Parked,
            State::Done | State::Dead | State::Cancelled => Place::Finished,
        }
    }

    /// Files a job; `old` is what was known of it.
    fn put_in(&mut self, job: &Arc<Job>, place: Place, old: Option<&Job>) {
        let lane = self.lanes.entry(Arc::clone(&job.kind)).or_default();
        lane.counts[job.state as usize] += 1;
        let book = self.books.entry(job.tenant.clone()).or_default();
        let has_other_keys = old.is_none_or(|old| old.also_keys != job.also_keys);
        if has_other_keys {
            book.forget_keys(old.into_iter().flat_map(Job::keys), &job.id);
            book.keys.extend(job.keys().map(|key| (key.clone(), job.id)));
        }
        if old.is_none() {
            book.jobs.insert((job.seq, job.id));
            self.all.insert((job.seq, job.id));
            if let Some(dedupe) = &job.dedupe {
                let newest = book.dedupes.entry(dedupe.clone()).or_insert((job.generation, job.id));
                *newest = (*newest).max((job.generation, job.id));
            }
        }
        if place == Place::Finished {
            let at = job.finished_at.unwrap_or(job.created_at);
            book.finished.insert((at, job.id));
            self.finished.insert((at, job.id));
        } else {
            book.unfinished += 1;
            self.unfinished += 1;
        }
        match place {
            Place::Line => {
                lane.line.insert(&job.tenant, job.priority, job.rank(), job.id);
                self.is_moved = true;
                self.wake.notify_waiters();
            }
            Place::Reserved => lane.line.start(&job.tenant),
            Place::Running => {
                lane.line.start(&job.tenant);
                let now = Instant::now();
                let before = self.running.remove(&job.id);
                let cancel_seen = before.as_ref().and_then(|watched| watched.cancel_seen);
                let cancel_seen = job.cancel_requested.then(|| cancel_seen.unwrap_or(now));
                // That somebody asked for it again is no sign of life.
                let seen = before.as_ref().filter(|_| has_other_keys).map_or(now, |watched| watched.seen);
                let meter = before.map_or_else(|| Arc::new(Meter::new(job.progress.clone())), |watched| watched.meter);
                self.running.insert(job.id, Watched { seen, cancel_seen, meter });
            }
            Place::Due => {
                let place = (job.run_at.unwrap_or(job.created_at), job.id);
                self.due.insert(place);
                self.unforeseen.insert(place);
                self.wake.notify_waiters();
            }
            Place::Held | Place::Parked | Place::Finished => {}
        }
    }

    fn take_out(&mut self, job: &Arc<Job>, place: Place, is_gone: bool) {
        let lane = self.lanes.entry(Arc::clone(&job.kind)).or_default();
        lane.counts[job.state as usize] = lane.counts[job.state as usize].saturating_sub(1);
        if let Some(book) = self.books.get_mut(&job.tenant) {
            if place == Place::Finished {
                let at = job.finished_at.unwrap_or(job.created_at);
                book.finished.remove(&(at, job.id));
                self.finished.remove(&(at, job.id));
            } else {
                book.unfinished -= 1;
                self.unfinished -= 1;
            }
            if is_gone {
                book.jobs.remove(&(job.seq, job.id));
                self.all.remove(&(job.seq, job.id));
                book.forget_keys(job.keys(), &job.id);
                let newest = job.dedupe.as_ref().and_then(|dedupe| Some((dedupe, book.dedupes.get(dedupe)?.1)));
                if let Some((dedupe, _)) = newest.filter(|(_, id)| *id == job.id) {
                    book.dedupes.remove(dedupe);
                }
                if book.jobs.is_empty() {
                    self.books.remove(&job.tenant);
                }
            }
        }
        match place {
            Place::Line => {
                lane.line.remove(&job.tenant, job.priority, job.rank(), job.id);
                self.is_moved = true;
            }
            Place::Reserved | Place::Running => {
                lane.line.end(&job.tenant);
                // Its tenant's next jobs go earlier now.
                self.is_moved = true;
                self.wake.notify_waiters();
            }
            Place::Due => {
                let place = (job.run_at.unwrap_or(job.created_at), job.id);
                self.due.remove(&place);
                self.unforeseen.remove(&place);
            }
            Place::Held | Place::Parked | Place::Finished => {}
        }
    }

    /// Files a job anew without a change of its record.
    fn refile(&mut self, id: &JobId, place: Option<Place>, job: Option<Arc<Job>>) {
        let Some((old, before)) = self.slots.get_mut(id).and_then(|slot| slot.filed.take()) else { return };
        self.take_out(&old, before, false);
        let job = job.unwrap_or_else(|| Arc::clone(&old));
        let place = place.unwrap_or_else(|| self.place_of(&job));
        self.put_in(&job, place, Some(&old));
        if let Some(slot) = self.slots.get_mut(id) {
            slot.filed = Some((job, place));
        }
    }

    /// Takes the next job of some kinds out of line, to be claimed; `room` tells how many of a kind may run in all and
    /// for one tenant. Kinds take turns.
    pub(super) fn take(
        &mut self,
        kinds: &[Arc<str>],
        room: impl Fn(&str) -> (usize, usize),
        only: Option<&TenantId>,
    ) -> Option<Taken> {
        let next = kinds.iter().filter_map(|kind| {
            let lane = self.lanes.get(kind).filter(|lane| !lane.is_paused)?;
            let (in_all, per_tenant) = room(kind);
            let id = if lane.line.running() < in_all { lane.line.next(per_tenant, only)? } else { return None };
            Some((lane.turn, kind, id))
        });
        let (_, kind, id) = next.min_by_key(|(turn, _, _)| *turn)?;
        self.turns += 1;
        if let Some(lane) = self.lanes.get_mut(kind) {
            lane.turn = self.turns;
        }
        self.refile(&id, Some(Place::Reserved), None);
        let (job, revision) = self.find(&id)?;
        Some(Taken { job: Arc::clone(job), revision })
    }

    /// A job that was taken goes back where it belongs, if its record has not changed since.
    pub(super) fn put_back(&mut self, id: &JobId) {
        let place = self.slots.get(id).and_then(|slot| slot.filed.as_ref()).map(|(_, place)| *place);
        if place == Some(Place::Reserved) {
            self.refile(id, None, None);
        }
    }

    /// Jobs whose time has come get in line. They stay there if the clock is set back.
    pub(super) fn promote(&mut self, now: OffsetDateTime) {
        while let Some((_, id)) = self.due.first().copied().filter(|(at, _)| *at <= now) {
            let Some((job, _)) = self.find(&id) else {
                self.due.pop_first();
                continue;
            };
            let job = Arc::new(Job { state: State::Queued, ..Job::clone(job) });
            drop(self.news.send(Change::Moved { job: Arc::clone(&job) }));
            self.refile(&id, None, Some(job));
        }
    }

    /// Whose jobs come due until `horizon` and will be begun then as things stand, at most `free`. Each job is looked at
    /// once.
    pub(super) fn foresee(
        &mut self,
        horizon: OffsetDateTime,
        free: usize,
        room: impl Fn(&str) -> (usize, usize),
    ) -> Vec<(Arc<str>, TenantId)> {
        let mut found = Vec::new();
        while let Some((_, id)) = self.unforeseen.first().copied().filter(|(at, _)| *at <= horizon) {
            self.unforeseen.pop_first();
            let Some((job, _)) = self.find(&id) else { continue };
            if found.len() < free && self.would_begin(&job.kind, &job.tenant, &room, &found) {
                found.push((Arc::clone(&job.kind), job.tenant.clone()));
            }
        }
        found
    }

    /// Whether a job that got in line now would be begun, `before` it one each of these.
    pub(super) fn would_begin(
        &self,
        kind: &Arc<str>,
        tenant: &TenantId,
        room: impl Fn(&str) -> (usize, usize),
        before: &[(Arc<str>, TenantId)],
    ) -> bool {
        let others = before.iter().filter(|(other, _)| other == kind);
        if self.paused.contains(tenant) || others.clone().any(|(_, other)| other == tenant) {
            return false;
        }
        let (in_all, per_tenant) = room(kind);
        let Some(lane) = self.lanes.get(kind) else { return in_all > 0 && per_tenant > 0 };
        !lane.is_paused
            && lane.line.running() + others.count() < in_all
            && lane.line.running_of(tenant) < per_tenant
            && lane.line.waiting_of(tenant) == 0
    }

    /// Puts a running job's latest report into the board and tells listeners.
    pub(super) fn report(&mut self, id: &JobId) {
        let Some(progress) = self.running.get(id).and_then(|watched| watched.meter.news()) else { return };
        let Some((job, _)) = self.slots.get_mut(id).and_then(|slot| slot.filed.as_mut()) else { return };
        *job = Arc::new(Job { progress, ..Job::clone(job) });
        let job = Arc::clone(job);
        drop(self.news.send(Change::Progressed { job }));
    }

    /// Stops or continues dispatch for a tenant.
    pub(super) fn set_paused(&mut self, tenant: &TenantId, is_paused: bool) {
        let is_news = if is_paused { self.paused.insert(tenant.clone()) } else { self.paused.remove(tenant) };
        if !is_news {
            return;
        }
        let jobs: Vec<JobId> =
            self.books.get(tenant).map(|book| book.jobs.iter().map(|(_, id)| *id).collect()).unwrap_or_default();
        for id in jobs {
            let place = self.slots.get(&id).and_then(|slot| slot.filed.as_ref()).map(|(_, place)| *place);
            if matches!(place, Some(Place::Line | Place::Held)) {
                self.refile(&id, None, None);
            }
        }
        self.is_moved = true;
    }

    /// The job a tenant added with this idempotency key.
    pub(super) fn of_key(&self, tenant: &TenantId, key: &str) -> Option<&Arc<Job>> {
        let id = self.books.get(tenant)?.keys.get(key)?;
        self.find(id).map(|(job, _)| job)
    }

    /// The newest job of a tenant with this `dedupe` text, finished or not.
    pub(super) fn of_dedupe(&self, tenant: &TenantId, dedupe: &str) -> Option<&Arc<Job>> {
        let (_, id) = self.books.get(tenant)?.dedupes.get(dedupe)?;
        self.find(id).map(|(job, _)| job)
    }

    /// A tenant's jobs of a kind that are queued, in their order: priority, rank, name.
    pub(super) fn queued(&self, tenant: &TenantId, kind: &str) -> Vec<(Reverse<i8>, Rank, JobId)> {
        let jobs = self.books.get(tenant).into_iter().flat_map(|book| &book.jobs);
        let jobs = jobs.filter_map(|(_, id)| self.find(id)).map(|(job, _)| job);
        let queued = jobs.filter(|job| job.state == State::Queued && *job.kind == *kind);
        let mut places: Vec<_> = queued.map(|job| (Reverse(job.priority), job.rank(), job.id)).collect();
        places.sort_unstable();
        places
    }

    /// How many jobs go before this one; none when it is not in line.
    pub(super) fn ahead(&self, id: &JobId) -> Option<u64> {
        let (job, place) = self.slots.get(id)?.filed.as_ref()?;
        match place {
            Place::Line => self.lanes.get(&job.kind)?.line.ahead(&job.tenant, job.priority, job.rank(), job.id),
            // It is on its way out.
            Place::Reserved => Some(0),
            _ => None,
        }
    }
}
