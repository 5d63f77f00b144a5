//! What a user sees of their meetings: pages, and one as a whole.

use std::sync::PoisonError;
use std::time::Duration;
use std::time::Instant;

use serde::Deserialize;
use serde_json::Value;
use time::OffsetDateTime;
use tokio::time::timeout;

use super::Error;
use super::Meetings;
use super::dates;
use super::record::record_id;
use super::search::Cursor;
use super::search::Filter;
use super::search::MAX_LIMIT;
use super::search::STATE;
use super::state::Circumstances;
use super::state::Row;
use super::state::Served;
use super::state::State;
use super::state::Verdict;
use super::state::judge;
use crate::ids::TenantId;
use crate::records;
use crate::records::Instance;
use crate::records::Query;
use crate::records::quoted;
use crate::supervisor::Priority;

/// Artifacts and deliveries of one meeting that are shown.
const MOST_RELATED: usize = 200;

/// A meeting in a list.
#[derive(Debug, Clone, Deserialize)]
pub struct MeetingView {
    id: String,
    /// The recording's number.
    pub recording_id: String,
    /// Its title.
    pub title: String,
    created_at: String,
    started_at: String,
    /// Its length.
    pub duration_seconds: u64,
    /// Its page for its owner.
    pub url: String,
    /// Its page for everybody who has the link.
    pub share_url: String,
    /// Who recorded it.
    pub recorded_by: Value,
    /// Who was invited.
    pub invitees: Value,
    /// How its summary begins.
    pub summary_excerpt: String,
    /// Where the words that were searched for stand, between `**`.
    pub snippet: Option<String>,
    /// Whether there is a transcript.
    pub has_transcript: bool,
    /// What became of it last.
    pub delivery: Option<DeliveryView>,
}

impl MeetingView {
    /// When it appeared, by RFC 3339.
    pub fn created_at(&self) -> Option<String> {
        dates::shown(&self.created_at)
    }

    /// When it began, by RFC 3339.
    pub fn started_at(&self) -> Option<String> {
        dates::shown(&self.started_at)
    }
}

/// What became of a meeting.
#[derive(Debug, Clone, Deserialize)]
pub struct DeliveryView {
    /// How far.
    pub state: String,
    /// Where to.
    pub destination: String,
    /// Where it is now.
    pub url: String,
    /// By which job.
    pub job: String,
}

/// How the list itself stands.
#[derive(Debug, Clone)]
pub struct SyncView {
    /// In a word.
    pub state: State,
    /// When it was whole last, by RFC 3339.
    pub synced_at: Option<String>,
    /// Why it is not fresh.
    pub error: Option<String>,
    whole_at: Option<OffsetDateTime>,
}

impl SyncView {
    /// Whether the list was whole at some time after this one, so that what it lacks was not there.
    pub fn is_since(&self, asked: OffsetDateTime) -> bool {
        // It is kept by the millisecond.
        self.whole_at.is_some_and(|at| at > asked)
    }
}

/// A page of meetings.
#[derive(Debug, Clone)]
pub struct Listing {
    /// The newest first.
    pub items: Vec<MeetingView>,
    /// Where the next page begins, if there is one.
    pub next: Option<Cursor>,
    /// How the list stands.
    pub sync: SyncView,
    /// How the cache was used.
    pub served: Served,
}

/// A meeting with all that belongs to it, as stored.
#[derive(Debug, Clone)]
pub struct Whole {
    /// The record of `meetings`.
    pub meeting: Value,
    /// Records of `deliveries`.
    pub deliveries: Vec<Value>,
    /// Records of `artifacts`.
    pub artifacts: Vec<Value>,
}

/// What one look into the instance gives.
struct Found {
    row: Row,
    items: Vec<MeetingView>,
}

impl Meetings {
    /// A page of a user's meetings, from what is there; see the module for when Fathom is asked.
    pub async fn page(&self, tenant: &TenantId, filter: &Filter, now: OffsetDateTime) -> Result<Listing, Error> {
        let instance = self.inner.parts.records.open(tenant, Priority::Client).await?;
        let mut found = look(&instance, filter).await?;
        let verdict = self.judge(tenant, &found.row, now);
        let mut state = verdict.state;
        if self.refresh(tenant, verdict).await {
            found = look(&instance, filter).await?;
            state = self.judge(tenant, &found.row, OffsetDateTime::now_utc()).state;
        }
        let limit = filter.limit.clamp(1, MAX_LIMIT);
        let more = found.items.len() > limit;
        found.items.truncate(limit);
        let next = found.items.last().filter(|_| more).map(|last| Cursor::behind(&last.created_at, &last.id));
        Ok(Listing { items: found.items, next, sync: Self::standing(&found.row, state), served: verdict.served })
    }

    /// How a user's list stands, without a look at its meetings.
    pub async fn sync_state(&self, tenant: &TenantId, now: OffsetDateTime) -> Result<SyncView, Error> {
        let instance = self.inner.parts.records.open(tenant, Priority::Client).await?;
        let row = row_of(&instance).await?;
        let verdict = self.judge(tenant, &row, now);
        Ok(Self::standing(&row, verdict.state))
    }

    fn standing(row: &Row, state: State) -> SyncView {
        let error = match state {
            State::NoKey => Some("store a key of Fathom first: PUT /api/v1/vault with service \"fathom\"".to_owned()),
            _ => Some(row.error.clone()).filter(|error| !error.is_empty()),
        };
        SyncView { state, synced_at: dates::shown(&row.synced_at), error, whole_at: row.synced_at() }
    }

    fn judge(&self, tenant: &TenantId, row: &Row, now: OffsetDateTime) -> Verdict {
        let key = self.key_version(tenant, now);
        let around = Circumstances { key: key.as_deref(), is_running: self.inner.flights.is_running(tenant) };
        judge(row, around, now, &self.inner.parts.config)
    }

    /// Begins what the verdict says; true when it was waited for, so that a second look is worth it.
    async fn refresh(&self, tenant: &TenantId, verdict: Verdict) -> bool {
        if !verdict.refresh {
            return false;
        }
        let Some(mut flight) = self.begin(tenant) else { return false };
        if !verdict.wait {
            return false;
        }
        // Whatever there is by then is shown, and the answer says that it is on its way.
        let _ = timeout(self.inner.parts.config.first_wait, flight.shows_something()).await;
        true
    }

    /// One meeting as a whole. What is missing of it is asked for, as long as it does not take long.
    pub async fn one(&self, tenant: &TenantId, recording_id: u64, now: OffsetDateTime) -> Result<Whole, Error> {
        let instance = self.inner.parts.records.open(tenant, Priority::Client).await?;
        let id = record_id(recording_id);
        let mut found = instance.find("meetings", &id).await?;
        if found.is_none() {
            let row = row_of(&instance).await?;
            let verdict = self.judge(tenant, &row, now);
            if self.refresh(tenant, Verdict { wait: true, ..verdict }).await {
                found = instance.find("meetings", &id).await?;
            }
        }
        let mut meeting = found.ok_or(Error::NotFound)?;
        if lacks_contents(&meeting) && self.complete(tenant, recording_id).await {
            meeting = instance.find("meetings", &id).await?.ok_or(Error::NotFound)?;
        }
        let filter = format!("recording_id = {}", quoted(&recording_id.to_string()));
        let query = Query { filter: &filter, sort: "created", limit: MOST_RELATED, ..Query::default() };
        let deliveries = instance.list("deliveries", &query).await?;
        let artifacts = instance.list("artifacts", &query).await?;
        Ok(Whole { meeting, deliveries, artifacts })
    }

    /// A meeting as it is kept, after its summary and its transcript were asked for if they are missing. Why they could
    /// not be had comes beside it; without an error they are not there.
    pub async fn completed(&self, tenant: &TenantId, recording_id: u64) -> Result<(Value, Option<Error>), Error> {
        let kept = async || {
            let instance = self.inner.parts.records.open(tenant, Priority::Client).await?;
            instance.find("meetings", &record_id(recording_id)).await?.ok_or(Error::NotFound)
        };
        let meeting = kept().await?;
        if !lacks_contents(&meeting) {
            return Ok((meeting, None));
        }
        match self.fetch_contents(tenant, recording_id).await {
            Ok(()) => Ok((kept().await?, None)),
            Err(error) => Ok((meeting, Some(error))),
        }
    }

    /// Whether it is time to ask for what is missing of a meeting: there may be none.
    fn may_ask(&self, key: &(TenantId, u64)) -> bool {
        let mut asked = self.inner.asked.lock().unwrap_or_else(PoisonError::into_inner);
        asked.check(key, Instant::now()).is_ok()
    }

    /// Asks for the summary and the transcript of one meeting; true when that ended in time.
    async fn complete(&self, tenant: &TenantId, recording_id: u64) -> bool {
        let key = (tenant.clone(), recording_id);
        if !self.may_ask(&key) {
            return false;
        }
        let (meetings, tenant) = (self.clone(), key.0);
        let wait = self.inner.parts.config.first_wait.max(Duration::from_millis(1));
        let work = async move { meetings.fetch_contents(&tenant, recording_id).await };
        let task = self.inner.parts.shutdown.spawn_on(timeout(wait, work), &self.inner.runtime);
        match task.await {
            Ok(Ok(Ok(()))) => true,
            Ok(Ok(Err(error))) => {
                tracing::debug!(%error, "the contents of a meeting are not to be had");
                false
            }
            Ok(Err(_)) | Err(_) => false,
        }
    }
}

fn lacks_contents(meeting: &Value) -> bool {
    let text = |name: &str| meeting.get(name).and_then(Value::as_str).unwrap_or_default();
    text("summary").is_empty() || meeting.get("has_transcript") != Some(&Value::Bool(true))
}

/// The row of the state of syncing.
pub(super) async fn row_of(instance: &Instance) -> Result<Row, Error> {
    let rows = instance.rows(STATE).await.map_err(no_table)?;
    let document = rows.into_iter().next().and_then(|row| row.into_iter().nth(1)).flatten();
    Ok(Row::parse(document.as_deref()))
}

/// An instance of a template without meetings is not one that is broken.
fn no_table(error: records::Error) -> Error {
    match error {
        records::Error::Refused { status: 400, message } if message.contains("no such table") => Error::NoCollections,
        error => error.into(),
    }
}

async fn look(instance: &Instance, filter: &Filter) -> Result<Found, Error> {
    let mut found = Found { row: Row::default(), items: Vec::new() };
    for row in instance.rows(&filter.sql()).await.map_err(no_table)? {
        let mut values = row.into_iter();
        let (kind, document) = (values.next().flatten(), values.next().flatten());
        if kind.as_deref() == Some("state") {
            found.row = Row::parse(document.as_deref());
        } else if let Some(view) = document.and_then(|text| serde_json::from_str(&text).ok()) {
            found.items.push(view);
        }
    }
    Ok(found)
}
