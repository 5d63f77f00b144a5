//! Tells listeners what happens in the queue, in the words of the seed documents: `QueueUpdate` and `ProgressUpdate`.
//!
//! A change of a job is told to the job's user and to nobody else; what is told of the whole queue is a number. Changes
//! are gathered for a moment, so that a thousand jobs added at once are not a thousand lists of a thousand jobs.
//! Positions also change without a change of one's own jobs: those are looked at in turn, some users a second. Nobody is
//! told of them who does not listen; whoever comes back, resuming or not, is told within a second how they stand, if that
//! is not what was told last.
//!
//! Nobody misses a change because of a restart. An orderly one ends the queue first and the announcer after it has told
//! everything; after any other, whoever had a job that ended shortly before is told how they stand, and whoever has
//! unfinished ones is as soon as they listen.
//!
//! Known limits: whoever falls behind the queue's changes is told the state as it is and not each step that led there;
//! a list in a message has the first items only, and says how many there are.

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::collections::HashSet;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use serde_json::Value;
use serde_json::json;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::broadcast::error::TryRecvError;

use crate::events::Events;
use crate::events::Message;
use crate::events::Topic;
use crate::ids::TenantId;
use crate::ids::UserId;
use crate::jobs::intake::Intake;
use crate::jobs::item;
use crate::jobs::item::QueueItem;
use crate::queue::Active;
use crate::queue::Change;
use crate::queue::Filter;
use crate::queue::Job;
use crate::queue::JobId;
use crate::queue::Queue;
use crate::queue::State;

/// Items in the list of one message, at most, and their bytes, which are also fewer than an event may have.
const SHOWN: usize = 100;
const SHOWN_BYTES: usize = 128 << 10;
/// Bytes of a message around its list.
const AROUND: usize = 512;
/// Changes are gathered for this long.
const GATHERED: Duration = Duration::from_millis(100);
/// Changes of one user that are told one by one in one such moment; beyond, the last one of a sort stands for all.
const TOLD_EACH: usize = 20;
/// Jobs of one user that are looked at as often as that; whoever has more is told less often, in proportion.
const AT_ONCE: usize = 500;
/// Positions are looked at this often,
const LOOK: Duration = Duration::from_secs(1);
/// of so many users at a time.
const LOOKED_AT: usize = 200;

/// What happened to one job, as messages call it.
#[derive(Debug, Clone)]
struct News {
    update_type: &'static str,
    /// None: it is about the user's part of the queue as a whole.
    job: Option<JobId>,
}

/// What is to be told to one user.
#[derive(Debug, Default)]
struct Pending {
    news: Vec<News>,
    /// The last report of each job that runs.
    progress: BTreeMap<JobId, Arc<Job>>,
}

impl Pending {
    /// Takes the news, of a flood the last of each sort, to be told later.
    fn later(&mut self) -> Vec<News> {
        let news = self.told();
        self.news.clear();
        news
    }

    /// The user is told how things stand, by whatever is told.
    fn stands(&mut self) {
        if self.news.is_empty() {
            self.news.push(News { update_type: "position_updated", job: None });
        }
    }

    /// Pure: what is told, of what was gathered.
    fn told(&self) -> Vec<News> {
        if self.news.len() <= TOLD_EACH {
            return self.news.clone();
        }
        let last =
            |at: &usize| !self.news[at + 1..].iter().any(|later| later.update_type == self.news[*at].update_type);
        (0..self.news.len()).filter(last).map(|at| self.news[at].clone()).collect()
    }
}

/// Before the last change that came, an earlier one may have been missed that ended a job so long ago.
const OVERLAP: Duration = Duration::from_mins(1);

/// A user with unfinished jobs, and the positions that were told last; none if that is not known.
type Watched = HashMap<UserId, Option<Vec<(JobId, u64)>>>;

/// Turns changes of the queue into messages.
#[derive(Debug)]
pub struct Announcer {
    queue: Queue,
    events: Events,
    intake: Intake,
    pending: BTreeMap<UserId, Pending>,
    watched: Watched,
    /// Whom to look at next.
    turns: VecDeque<UserId>,
    /// Who was not told of positions because they did not listen; some of the watched.
    untold: HashSet<UserId>,
    /// Who has so many jobs that looking at them all is worth a pause, and until when.
    resting: HashMap<UserId, Instant>,
    /// Every change until then was noted.
    noted: OffsetDateTime,
    /// Bytes of the list of a message, at most.
    shown_bytes: usize,
}

/// Pure: what a change is called; none for what is told otherwise.
fn update_type(change: &Change) -> Option<&'static str> {
    Some(match change {
        Change::Added { .. } => "meeting_added",
        Change::Removed { .. } => "meeting_removed",
        Change::Started { .. } => "task_started",
        Change::Retrying { .. } | Change::Requeued { .. } => "task_retried",
        Change::Finished { job } => match job.state {
            State::Done => "task_completed",
            State::Cancelled => "meeting_removed",
            _ => "task_failed",
        },
        Change::Moved { .. } | Change::Parked { .. } => "position_updated",
        _ => return None,
    })
}

impl Announcer {
    /// Between a queue and the listeners.
    pub fn new(queue: Queue, events: Events, intake: Intake) -> Self {
        let (pending, watched, turns) = (BTreeMap::new(), HashMap::new(), VecDeque::new());
        let shown_bytes = SHOWN_BYTES.min(events.config().max_event_bytes.saturating_sub(AROUND));
        let untold = HashSet::new();
        // Nothing is known of what an earlier run told, and what it told before that is not remembered by the log.
        let noted = OffsetDateTime::now_utc() - events.config().history_ttl;
        Self { queue, events, intake, pending, watched, turns, untold, resting: HashMap::new(), noted, shown_bytes }
    }

    /// Runs until the queue is stopped, and tells the last changes.
    pub async fn run(mut self) {
        let stopped = self.queue.stopped();
        let mut changes = self.queue.changes();
        let mut positions = self.queue.positions_changed();
        self.look_around();
        self.turns.extend(self.watched.keys().cloned());
        let mut gathered = tokio::time::interval(GATHERED);
        let mut look = tokio::time::interval(LOOK);
        gathered.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                change = changes.recv() => match change {
                    Ok(change) => self.note(&change),
                    Err(RecvError::Lagged(_)) => self.resync(),
                    Err(RecvError::Closed) => break,
                },
                _ = gathered.tick(), if !self.pending.is_empty() => self.tell().await,
                _ = look.tick() => {
                    if self.turns.is_empty() && positions.has_changed().unwrap_or(false) {
                        positions.mark_unchanged();
                        self.turns = self.watched.keys().cloned().collect();
                    }
                    for user in self.came_back() {
                        self.turns.push_front(user);
                    }
                    self.tell_positions().await;
                }
                () = stopped.cancelled() => break,
            }
        }
        loop {
            match changes.try_recv() {
                Ok(change) => self.note(&change),
                Err(TryRecvError::Lagged(_)) => self.resync(),
                Err(TryRecvError::Empty | TryRecvError::Closed) => break,
            }
        }
        self.tell().await;
    }

    fn note(&mut self, change: &Change) {
        self.noted = OffsetDateTime::now_utc();
        let job = change.job();
        if !self.intake.rules().is_open(&job.kind) {
            return;
        }
        self.watched.entry(job.user.clone()).or_default();
        let pending = self.pending.entry(job.user.clone()).or_default();
        match update_type(change) {
            Some(update_type) => {
                // What was reported before the end is not told after it.
                if job.state != State::Running {
                    pending.progress.remove(&job.id);
                }
                pending.news.push(News { update_type, job: Some(job.id) });
            }
            None => drop(pending.progress.insert(job.id, Arc::clone(job))),
        }
    }

    /// Learns who has unfinished jobs, and whose ended without being told, which is done now.
    fn look_around(&mut self) {
        let since = self.noted - OVERLAP;
        let mut filter = Filter { limit: 500, ..Filter::default() };
        loop {
            let page = self.queue.list_all(&filter);
            for job in page.items.iter().filter(|job| self.intake.rules().is_open(&job.kind)) {
                if !job.state.is_finished() {
                    self.watched.entry(job.user.clone()).or_default();
                } else if job.finished_at.is_some_and(|at| at >= since) {
                    self.pending.entry(job.user.clone()).or_default().stands();
                }
            }
            match page.next {
                Some(next) => filter.cursor = Some(next),
                None => return,
            }
        }
    }

    /// Changes were missed: everybody who may be concerned is told how things stand.
    fn resync(&mut self) {
        tracing::warn!("the announcer of the queue fell behind; listeners are told how things stand");
        self.look_around();
        for user in self.watched.keys() {
            self.pending.entry(user.clone()).or_default().stands();
        }
        self.noted = OffsetDateTime::now_utc();
    }

    /// The user's jobs that are not finished and shown to people.
    fn active(&self, user: &UserId) -> Vec<Active> {
        let mut active = self.queue.active(&TenantId::personal(user));
        active.retain(|place| self.intake.rules().is_open(&place.job.kind));
        active
    }

    async fn tell(&mut self) {
        let moment = Instant::now();
        self.resting.retain(|_, until| *until > moment);
        for (user, mut pending) in std::mem::take(&mut self.pending) {
            let now = timestamp(OffsetDateTime::now_utc());
            if self.resting.contains_key(&user) && !self.queue.stopped().is_cancelled() {
                let news = pending.later();
                if !news.is_empty() {
                    self.pending.entry(user.clone()).or_default().news = news;
                }
            }
            let told = pending.told();
            if !told.is_empty() {
                self.tell_news(&user, &told, &now).await;
            }
            for job in pending.progress.values() {
                let message = Message::new("ProgressUpdate", progress_update(job, &now));
                let key = format!("progress {}", job.id);
                self.publish(&user, message, Some(key)).await;
            }
        }
    }

    async fn tell_news(&mut self, user: &UserId, told: &[News], now: &str) {
        let active = self.active(user);
        for news in told {
            self.publish(user, queue_update(user, news, &active, now, self.shown_bytes), None).await;
        }
        if active.is_empty() && told.last().is_some_and(|news| news.update_type == "meeting_removed") {
            let news = News { update_type: "queue_cleared", job: None };
            self.publish(user, queue_update(user, &news, &active, now, self.shown_bytes), None).await;
        }
        if active.len() > AT_ONCE {
            let steps = u32::try_from(active.len() / AT_ONCE).unwrap_or(u32::MAX);
            self.resting.insert(user.clone(), Instant::now() + GATHERED.saturating_mul(steps));
        }
        self.remember(user, &active);
    }

    async fn tell_positions(&mut self) {
        for _ in 0..LOOKED_AT {
            let Some(user) = self.turns.pop_front() else { return };
            // Whoever has news gets a list in a moment; reports have none.
            if self.pending.get(&user).is_some_and(|pending| !pending.news.is_empty()) {
                continue;
            }
            // What was told last is remembered, so that it is known what is news when they come back.
            if !self.events.is_heard(&Topic::Queue(user.clone())) {
                self.untold.insert(user);
                continue;
            }
            self.untold.remove(&user);
            let active = self.active(&user);
            let told = self.watched.get(&user).cloned();
            let is_news = told.as_ref().is_some_and(|told| told.as_ref() != Some(&positions(&active)));
            let is_unknown = told == Some(None);
            self.remember(&user, &active);
            let first = active.iter().find(|place| place.position.is_some());
            if is_news && (first.is_some() || is_unknown) {
                let now = timestamp(OffsetDateTime::now_utc());
                let news = News { update_type: "position_updated", job: first.map(|first| first.job.id) };
                let message = queue_update(&user, &news, &active, &now, self.shown_bytes);
                self.publish(&user, message, Some("positions".to_owned())).await;
            }
        }
    }

    /// Takes those who listen again out of the untold.
    fn came_back(&mut self) -> Vec<UserId> {
        let events = &self.events;
        let back = self.untold.extract_if(|user| events.is_heard(&Topic::Queue(user.clone())));
        back.collect()
    }

    fn remember(&mut self, user: &UserId, active: &[Active]) {
        if active.is_empty() {
            self.watched.remove(user);
            self.untold.remove(user);
        } else {
            self.watched.insert(user.clone(), Some(positions(active)));
        }
    }

    async fn publish(&self, user: &UserId, message: Message, key: Option<String>) {
        let message = match key {
            Some(key) => message.coalesced(key),
            None => message,
        };
        if let Err(error) = self.events.publish(Topic::Queue(user.clone()), message).await {
            tracing::debug!(%error, user.id = %user, "tell listeners of the queue");
        }
    }
}

fn positions(active: &[Active]) -> Vec<(JobId, u64)> {
    active.iter().filter_map(|place| Some((place.job.id, place.position?))).collect()
}

fn timestamp(now: OffsetDateTime) -> String {
    now.format(&Rfc3339).unwrap_or_default()
}

/// Pure: what is told of a queue. `global_position` is the place in the whole order of the job that it is about. The
/// list has at most so many bytes.
fn queue_update(user: &UserId, news: &News, active: &[Active], now: &str, most: usize) -> Message {
    let about = active.iter().find(|place| Some(place.job.id) == news.job);
    let items = active.iter().filter_map(|place| serde_json::to_value(QueueItem::of(&place.job, place.position)).ok());
    let items = shown(items, most);
    Message::new(
        "QueueUpdate",
        json!({
            "update_type": news.update_type,
            "queue": items,
            "total": active.len(),
            "affected_user_id": user,
            "job_id": news.job.as_ref().map(JobId::as_str),
            "global_position": about.and_then(|place| place.position),
            "timestamp": now,
        }),
    )
}

/// Pure: the first of a list, as many as a message may have.
fn shown(items: impl Iterator<Item = Value>, most: usize) -> Vec<Value> {
    let mut bytes = 0;
    let fits = |item: &Value| {
        bytes += item.to_string().len() + 1;
        bytes <= most
    };
    items.take(SHOWN).take_while(fits).collect()
}

/// Pure: what is told of a job that runs.
fn progress_update(job: &Job, now: &str) -> Value {
    json!({
        "job_id": job.id.as_str(),
        "recording_id": item::recording_of(&job.payload),
        "topic": job.title,
        "step": job.progress.step,
        "done": job.progress.done,
        "total": job.progress.total,
        "percent": job.progress.percent(),
        "rate": job.progress.rate,
        "eta_seconds": job.progress.eta_seconds,
        "timestamp": now,
    })
}

#[cfg(test)]
mod tests;
