//! Schedules: jobs that are added again and again, at times a cron pattern names.
//!
//! One record each, `schedule.<tenant>.<id>`. Every node looks every second; an occurrence is added under an
//! idempotency key made of the schedule and the time, so it is added once, whoever else does it and whenever
//! somebody crashes in between.

use std::collections::HashMap;
use std::collections::VecDeque;
use std::collections::hash_map::Entry as Slot;
use std::sync::Arc;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::time::Duration;

use bytes::Bytes;
use serde::Deserialize;
use serde::Serialize;
use serde_json::Value;
use time::OffsetDateTime;
use tokio::time::Instant;

use super::Error;
use super::JobId;
use super::NewJob;
use super::Queue;
use super::add::check_size;
use super::cron::Pattern;
use super::cron::is_ahead;
use crate::failpoint;
use crate::ids::TenantId;
use crate::ids::UserId;
use crate::store::Change;
use crate::store::Entry;
use crate::store::Revision;

/// What the keys of schedules begin with.
pub(super) const PREFIX: &str = "schedule.";
/// How often the clock is looked at.
const LOOK: Duration = Duration::from_secs(1);
/// How long a schedule whose job could not be added is left alone.
const PAUSE: Duration = Duration::from_secs(30);
/// Most schedules in all.
const MOST: usize = 100_000;

/// What happens to occurrences that passed while nobody looked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Missed {
    /// Nothing: the next one comes in its time.
    Skip,
    /// The last of them is made up for.
    Once,
    /// The last so many of them are made up for (100 at most).
    All {
        /// How many.
        most: u32,
    },
}

/// What somebody wants done again and again.
#[derive(Debug, Clone)]
pub struct NewSchedule {
    /// Whose it is.
    pub tenant: TenantId,
    /// Who asks.
    pub user: UserId,
    /// Five fields in UTC: minute, hour, day of month, month, day of week.
    pub cron: String,
    /// The kind of job.
    pub kind: String,
    /// A line for people.
    pub title: String,
    /// What the handler needs to know.
    pub payload: Value,
    /// The jobs' priority.
    pub priority: i8,
    /// Higher goes first among the user's own.
    pub urgency: i8,
    /// What happens to occurrences that passed while nobody looked.
    pub missed: Missed,
}

/// A schedule.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Schedule {
    /// Its name.
    pub id: JobId,
    /// Whose it is.
    pub tenant: TenantId,
    /// Who asked for it.
    pub user: UserId,
    /// See [`NewSchedule::cron`].
    pub cron: String,
    /// The kind of job.
    pub kind: String,
    /// A line for people.
    #[serde(default)]
    pub title: String,
    /// What the handler needs to know.
    #[serde(default)]
    pub payload: Value,
    /// The jobs' priority.
    #[serde(default)]
    pub priority: i8,
    /// Higher goes first among the user's own.
    #[serde(default)]
    pub urgency: i8,
    /// What happens to occurrences that passed while nobody looked.
    pub missed: Missed,
    /// When it was made.
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
    /// The last occurrence that was seen to.
    #[serde(with = "time::serde::rfc3339")]
    pub last: OffsetDateTime,
}

impl Schedule {
    /// When it is due next; none when it never is.
    pub fn next(&self) -> Option<OffsetDateTime> {
        Pattern::parse(&self.cron)?.next(self.last)
    }
}

#[derive(Debug, Clone)]
struct Row {
    schedule: Arc<Schedule>,
    revision: Revision,
    pattern: Option<Pattern>,
    /// When it is due next; none when it never is.
    next: Option<OffsetDateTime>,
    /// Left alone until then.
    rests: Option<Instant>,
}

impl Row {
    /// Whether it has to be looked at.
    fn is_due(&self, now: OffsetDateTime) -> bool {
        self.next.is_some_and(|next| next <= now) || is_ahead(self.schedule.last, now)
    }
}

/// Removed schedules that are remembered; what is under way when one is removed is over long before so many others are.
const GONE: usize = 1_024;

/// All schedules, fed by the watch and by own writes.
#[derive(Debug, Default)]
pub(super) struct Timetable {
    rows: HashMap<JobId, Row>,
    /// Those that were removed last: what was read or written before is learned after, and does not bring them back.
    gone: VecDeque<JobId>,
    /// How many of a tenant are being written.
    coming: HashMap<TenantId, usize>,
}

/// A place for one schedule more, until it is written.
struct Place<'a> {
    queue: &'a Queue,
    tenant: TenantId,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if let Slot::Occupied(mut coming) = self.queue.timetable().coming.entry(self.tenant.clone()) {
            *coming.get_mut() -= 1;
            if *coming.get() == 0 {
                coming.remove();
            }
        }
    }
}

fn key_of(schedule: &Schedule) -> String {
    format!("{PREFIX}{}.{}", schedule.tenant, schedule.id)
}

fn decode(entry: &Entry) -> Option<Schedule> {
    let found = serde_json::from_slice::<Schedule>(&entry.value).ok().filter(|found| key_of(found) == *entry.key);
    if found.is_none() {
        tracing::error!(store.key = %entry.key, "the record of a schedule cannot be read; it is treated as absent");
    }
    found
}

impl Timetable {
    pub(super) fn load(&mut self, entries: &[Entry]) {
        let present: Vec<(Schedule, Revision)> =
            entries.iter().filter_map(|entry| Some((decode(entry)?, entry.revision))).collect();
        self.rows.retain(|id, _| present.iter().any(|(schedule, _)| schedule.id == *id));
        for (schedule, revision) in present {
            self.put(schedule, revision);
        }
    }

    pub(super) fn note(&mut self, change: &Change) {
        match change {
            Change::Put(entry) => {
                if let Some(schedule) = decode(entry) {
                    self.put(schedule, entry.revision);
                }
            }
            Change::Delete { key, .. } => {
                let id = key.rsplit('.').next().and_then(|text| JobId::parse(text).ok());
                if let Some(id) = id {
                    self.bury(id);
                }
            }
        }
    }

    fn put(&mut self, schedule: Schedule, revision: Revision) {
        if self.gone.contains(&schedule.id) {
            return;
        }
        let old = self.rows.get(&schedule.id);
        if old.is_some_and(|old| old.revision >= revision) {
            return;
        }
        let pattern = match old {
            Some(old) if old.schedule.cron == schedule.cron => old.pattern.clone(),
            _ => Pattern::parse(&schedule.cron),
        };
        let next = pattern.as_ref().and_then(|pattern| pattern.next(schedule.last));
        self.rows.insert(schedule.id, Row { schedule: Arc::new(schedule), revision, pattern, next, rests: None });
    }

    fn bury(&mut self, id: JobId) {
        self.rows.remove(&id);
        if !self.gone.contains(&id) {
            self.gone.truncate(GONE - 1);
            self.gone.push_front(id);
        }
    }

    fn of_tenant(&self, tenant: &TenantId) -> Vec<Arc<Schedule>> {
        let rows = self.rows.values().filter(|row| row.schedule.tenant == *tenant);
        let mut found: Vec<_> = rows.map(|row| Arc::clone(&row.schedule)).collect();
        found.sort_by_key(|schedule| schedule.id);
        found
    }
}

impl Queue {
    pub(super) fn timetable(&self) -> MutexGuard<'_, Timetable> {
        self.inner.timetable.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a schedule; its first occurrence is the first one after now. Durable when it returns.
    pub async fn add_schedule(&self, new: NewSchedule, now: OffsetDateTime) -> Result<Arc<Schedule>, Error> {
        if !self.knows(&new.kind) {
            return Err(Error::UnknownKind);
        }
        let pattern = Pattern::parse(&new.cron).ok_or(Error::Cron(
            "five fields in UTC: minute, hour, day of month, month, day of week, such as `30 7 * * MON-FRI`",
        ))?;
        if pattern.next(now).is_none() {
            return Err(Error::Cron("there is no such day: this pattern never comes"));
        }
        check_size("payload", &new.payload, self.inner.config.max_payload_bytes)?;
        let _place = self.place(&new.tenant)?;
        let id = self.inner.names.lock().unwrap_or_else(PoisonError::into_inner).next(now);
        let schedule = Schedule {
            id,
            tenant: new.tenant,
            user: new.user,
            cron: new.cron,
            kind: new.kind,
            title: new.title.chars().filter(|c| !c.is_control()).take(200).collect(),
            payload: new.payload,
            priority: new.priority,
            urgency: new.urgency,
            missed: new.missed,
            created_at: now,
            last: now,
        };
        let revision = self.inner.store.create(&key_of(&schedule), encode(&schedule)?).await?;
        self.timetable().put(schedule.clone(), revision);
        Ok(Arc::new(schedule))
    }

    /// A place for one schedule more of a tenant, so that many at once are not more than there may be.
    fn place(&self, tenant: &TenantId) -> Result<Place<'_>, Error> {
        let most = self.inner.config.max_schedules_per_tenant;
        let mut timetable = self.timetable();
        let coming = timetable.coming.get(tenant).copied().unwrap_or_default();
        if timetable.of_tenant(tenant).len() + coming >= most {
            return Err(Error::TooManySchedules { most });
        }
        if timetable.rows.len() + timetable.coming.values().sum::<usize>() >= MOST {
            return Err(Error::Full);
        }
        *timetable.coming.entry(tenant.clone()).or_default() += 1;
        drop(timetable);
        Ok(Place { queue: self, tenant: tenant.clone() })
    }

    /// Everybody's schedules, the oldest first, behind this one; so many at most.
    pub fn all_schedules(&self, after: Option<&JobId>, limit: usize) -> Vec<Arc<Schedule>> {
        let timetable = self.timetable();
        let mut found: Vec<_> = timetable.rows.values().map(|row| &row.schedule).collect();
        found.retain(|schedule| after.is_none_or(|after| schedule.id > *after));
        found.sort_by_key(|schedule| schedule.id);
        found.into_iter().take(limit).cloned().collect()
    }

    /// A tenant's schedules, the oldest first.
    pub fn schedules(&self, tenant: &TenantId) -> Vec<Arc<Schedule>> {
        self.timetable().of_tenant(tenant)
    }

    /// Ends a schedule; what it added stays. [`Error::NotFound`] when there is none.
    pub async fn remove_schedule(&self, tenant: &TenantId, id: &JobId) -> Result<(), Error> {
        loop {
            let found = self.timetable().rows.get(id).filter(|row| row.schedule.tenant == *tenant).cloned();
            let key = key_of(&found.ok_or(Error::NotFound)?.schedule);
            let Some(entry) = self.inner.store.get(&key).await? else { break };
            match self.inner.store.delete(&key, entry.revision).await {
                Ok(_) => break,
                Err(error) if error.is_refusal() => tokio::task::yield_now().await,
                Err(error) => return Err(error.into()),
            }
        }
        self.timetable().bury(*id);
        Ok(())
    }

    /// Looks at the clock every second.
    pub(super) async fn follow_schedules(&self) {
        let mut ticks = tokio::time::interval(LOOK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                () = self.inner.stopping.cancelled() => return,
            }
            let rows: Vec<Row> = {
                let (now, wall) = (Instant::now(), self.now());
                let timetable = self.timetable();
                let awake = timetable.rows.values().filter(|row| row.rests.is_none_or(|until| until <= now));
                awake.filter(|row| row.is_due(wall)).cloned().collect()
            };
            self.foresee_schedules();
            for row in rows {
                if let Err(error) = self.occur(&row).await {
                    let id = row.schedule.id;
                    match error {
                        // Its owner's affair, or everybody's: the queue says so elsewhere.
                        Error::TenantFull { .. } | Error::Full => {
                            tracing::info!(schedule.id = %id, %error, "no room for the job of a schedule; trying again in a while");
                        }
                        error => {
                            tracing::warn!(schedule.id = %id, %error, "add the job of a schedule; trying again in a while");
                        }
                    }
                    if let Some(row) = self.timetable().rows.get_mut(&id) {
                        row.rests = Some(Instant::now() + PAUSE);
                    }
                }
            }
        }
    }

    /// Announces the jobs that the next look will add.
    fn foresee_schedules(&self) {
        let now = self.now();
        let comes = |row: &&Row| row.rests.is_none() && row.next.is_some_and(|next| next > now && next <= now + LOOK);
        let next: Vec<Arc<Schedule>> = {
            let timetable = self.timetable();
            timetable.rows.values().filter(comes).map(|row| Arc::clone(&row.schedule)).collect()
        };
        if next.is_empty() {
            return;
        }
        let mut soon = Vec::new();
        {
            let board = self.board();
            let free = self.inner.config.concurrency.saturating_sub(board.attempts.len());
            for schedule in &next {
                let kind = Arc::from(schedule.kind.as_str());
                if soon.len() < free && board.would_begin(&kind, &schedule.tenant, |kind| self.room(kind), &soon) {
                    soon.push((kind, schedule.tenant.clone()));
                }
            }
        }
        self.announce(&soon);
    }

    /// Adds what is due of a schedule, then notes that it was.
    async fn occur(&self, row: &Row) -> Result<(), Error> {
        let (schedule, Some(pattern)) = (&row.schedule, &row.pattern) else { return Ok(()) };
        // What passes meanwhile was missed, if the tenant comes back.
        if self.is_closed_to(&schedule.tenant) {
            return Ok(());
        }
        let now = self.now();
        let (times, last) = pattern.due(schedule.last, now, schedule.missed);
        if last == schedule.last {
            return Ok(());
        }
        let job = |at: &OffsetDateTime| NewJob {
            kind: schedule.kind.clone(),
            tenant: schedule.tenant.clone(),
            user: schedule.user.clone(),
            title: schedule.title.clone(),
            payload: schedule.payload.clone(),
            priority: schedule.priority,
            urgency: schedule.urgency,
            run_at: None,
            idempotency_key: Some(format!("schedule.{}.{}", schedule.id, at.unix_timestamp())),
            dedupe: None,
            max_attempts: None,
        };
        self.add(times.iter().map(job).collect(), now).await?;
        failpoint::hit("queue.schedule.added");
        let next = Schedule { last, ..Schedule::clone(schedule) };
        match self.inner.store.update(&key_of(&next), encode(&next)?, row.revision).await {
            Ok(revision) => self.timetable().put(next, revision),
            // Another node noted it, or it was removed; the watch tells.
            Err(error) if error.is_refusal() => self.refresh(&next).await?,
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    /// Reads a schedule anew.
    async fn refresh(&self, schedule: &Schedule) -> Result<(), Error> {
        match self.inner.store.get(&key_of(schedule)).await? {
            Some(entry) => {
                if let Some(found) = decode(&entry) {
                    self.timetable().put(found, entry.revision);
                }
            }
            None => self.timetable().bury(schedule.id),
        }
        Ok(())
    }
}

fn encode(schedule: &Schedule) -> Result<Bytes, Error> {
    serde_json::to_vec(schedule).map(Bytes::from).map_err(|_| Error::Invalid("the schedule cannot be written as JSON"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_learned_late_brings_no_removed_schedule_back() {
        let mut timetable = Timetable::default();
        let id = JobId::parse(&"1".repeat(26)).unwrap();
        let schedule: Schedule = serde_json::from_value(serde_json::json!({
            "id": id, "tenant": "t1", "user": "u1", "cron": "0 * * * *", "kind": "work", "title": "", "payload": null,
            "priority": 0, "urgency": 0, "missed": "once", "last": "2026-01-01T00:00:00Z", "created_at": "2026-01-01T00:00:00Z",
        }))
        .unwrap();
        timetable.put(schedule.clone(), Revision(1));
        assert_eq!(timetable.rows.len(), 1);
        timetable.bury(id);
        timetable.put(schedule, Revision(2));
        assert!(timetable.rows.is_empty());
    }
}
