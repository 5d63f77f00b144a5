//! Tells listeners what happens in the queue, in the words of the seed documents: `QueueUpdate` and `ProgressUpdate`.
//!
//! A change of a job is told to the job's user and to nobody else; what is told of the whole queue is a number. Changes
//! are gathered for a moment, so that a thousand jobs added at once are not a thousand lists of a thousand jobs.
//! Positions also change without a change of one's own jobs: those are looked at in turn, some users a second. Nobody is
//! told of them who does not listen; whoever comes back, resuming or not, is told within a second how they stand, if that
//! is not what was told last.
//!
//! Known limits: whoever falls behind the queue's changes is told the state as it is and not each step that led there;
//! a list in a message has the first items only, and says how many there are.

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::collections::HashSet;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use serde_json::json;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::sync::broadcast::error::RecvError;

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
use crate::shutdown::Shutdown;

/// Items in the list of one message, at most, and their bytes, which are also fewer than an event may have.
const SHOWN: usize = 100;
const SHOWN_BYTES: usize = 128 << 10;
/// Bytes of a message around its list.
const AROUND: usize = 512;
/// Changes are gathered for this long.
const GATHERED: Duration = Duration::from_millis(100);
/// Changes of one user that are told one by one in one such moment; beyond, the last one of a sort stands for all.
const TOLD_EACH: usize = 20;
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

/// A user with unfinished jobs, and the positions that were told last.
type Watched = HashMap<UserId, Vec<(JobId, u64)>>;

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
        Self { queue, events, intake, pending, watched, turns, untold: HashSet::new(), shown_bytes }
    }

    /// Runs until the shutdown begins.
    pub async fn run(mut self, shutdown: Shutdown) {
        let mut changes = self.queue.changes();
        let mut positions = self.queue.positions_changed();
        self.look_around();
        let mut gathered = tokio::time::interval(GATHERED);
        let mut look = tokio::time::interval(LOOK);
        gathered.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                change = changes.recv() => match change {
                    Ok(change) => self.note(&change),
                    Err(RecvError::Lagged(_)) => self.resync(),
                    Err(RecvError::Closed) => return,
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
                () = shutdown.begun() => return,
            }
        }
    }

    fn note(&mut self, change: &Change) {
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

    /// Learns who has unfinished jobs.
    fn look_around(&mut self) {
        let states = vec![State::Queued, State::Scheduled, State::Running, State::Parked];
        let mut filter = Filter { states, limit: 500, ..Filter::default() };
        loop {
            let page = self.queue.list_all(&filter);
            for job in &page.items {
                self.watched.entry(job.user.clone()).or_default();
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
            let news = &mut self.pending.entry(user.clone()).or_default().news;
            if news.is_empty() {
                news.push(News { update_type: "position_updated", job: None });
            }
        }
    }

    /// The user's jobs that are not finished and shown to people.
    fn active(&self, user: &UserId) -> Vec<Active> {
        let mut active = self.queue.active(&TenantId::personal(user));
        active.retain(|place| self.intake.rules().is_open(&place.job.kind));
        active
    }

    async fn tell(&mut self) {
        for (user, pending) in std::mem::take(&mut self.pending) {
            let active = self.active(&user);
            let now = timestamp(OffsetDateTime::now_utc());
            let told = pending.told();
            for news in &told {
                self.publish(&user, queue_update(&user, news, &active, &now, self.shown_bytes), None).await;
            }
            if active.is_empty() && told.last().is_some_and(|news| news.update_type == "meeting_removed") {
                let news = News { update_type: "queue_cleared", job: None };
                self.publish(&user, queue_update(&user, &news, &active, &now, self.shown_bytes), None).await;
            }
            for job in pending.progress.values() {
                let message = Message::new("ProgressUpdate", progress_update(job, &now));
                let key = format!("progress {}", job.id);
                self.publish(&user, message, Some(key)).await;
            }
            if !told.is_empty() {
                self.remember(&user, &active);
            }
        }
    }

    async fn tell_positions(&mut self) {
        for _ in 0..LOOKED_AT {
            let Some(user) = self.turns.pop_front() else { return };
            // Whoever has news gets a list in a moment.
            if self.pending.contains_key(&user) {
                continue;
            }
            // What was told last is remembered, so that it is known what is news when they come back.
            if !self.events.is_heard(&Topic::Queue(user.clone())) {
                self.untold.insert(user);
                continue;
            }
            self.untold.remove(&user);
            let active = self.active(&user);
            let is_news = self.watched.get(&user).is_some_and(|told| *told != positions(&active));
            self.remember(&user, &active);
            if let Some(first) = active.iter().find(|place| place.position.is_some()).filter(|_| is_news) {
                let now = timestamp(OffsetDateTime::now_utc());
                let news = News { update_type: "position_updated", job: Some(first.job.id) };
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
            self.watched.insert(user.clone(), positions(active));
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
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_changes_is_told_by_the_last_of_each_sort() {
        let news = |update_type, digit: usize| News { update_type, job: JobId::parse(&format!("{digit:026}")).ok() };
        let few = Pending { news: (0..TOLD_EACH).map(|n| news("meeting_added", n)).collect(), ..Pending::default() };
        assert_eq!(few.told().len(), TOLD_EACH);
        let mut many: Vec<_> = (0..500).map(|n| news("meeting_added", n)).collect();
        many.push(news("task_started", 0));
        let many = Pending { news: many, ..Pending::default() };
        let told: Vec<_> = many.told().iter().map(|news| (news.update_type, news.job)).collect();
        assert_eq!(told, [("meeting_added", news("", 499).job), ("task_started", news("", 0).job)]);
    }

    #[test]
    fn an_update_of_nothing_left_names_no_job_and_no_place() {
        let user = UserId::parse("ada").unwrap();
        let cleared = News { update_type: "queue_cleared", job: None };
        let message = queue_update(&user, &cleared, &[], "2026-01-01T00:00:00Z", SHOWN_BYTES);
        assert_eq!(message.kind, "QueueUpdate");
        let expected = json!({"update_type": "queue_cleared", "queue": [], "total": 0, "affected_user_id": "ada",
            "job_id": null, "global_position": null, "timestamp": "2026-01-01T00:00:00Z"});
        assert_eq!(message.data, expected);
    }
    #[test]
    fn a_list_in_a_message_is_cut_where_the_message_would_be_too_large() {
        let items = |count: usize, bytes: usize| (0..count).map(move |_| json!("x".repeat(bytes - 3)));
        assert_eq!(shown(items(500, 10), SHOWN_BYTES).len(), SHOWN);
        assert_eq!(shown(items(500, 10), 95).len(), 9);
        assert!(shown(items(3, 100), 0).is_empty());
        // What is around the list fits into what is kept free for it, in whole and at its longest.
        let user = UserId::parse("a23456789012345").unwrap();
        let news = News { update_type: "position_updated", job: JobId::parse(&"0".repeat(26)).ok() };
        let message = queue_update(&user, &news, &[], "2026-01-01T00:00:00.123456789Z", 0);
        assert!(message.data.to_string().len() + 2 * 20 < AROUND);
    }
}
