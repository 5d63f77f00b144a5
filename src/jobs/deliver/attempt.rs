//! One attempt at a delivery: the steps in their order, each skipped when the checkpoint says that it is done.
//!
//! A step ends with a checkpoint that is durable, so a kill anywhere repeats at most one step; what a step does outside
//! is something that can be done twice with the effect of once.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;
use serde_json::json;
use time::OffsetDateTime;
use tokio::time::Instant;

use super::Parts;
use super::checkpoint::Checkpoint;
use super::checkpoint::Subject;
use super::ledger;
use super::names;
use super::send;
use crate::failpoint;
use crate::ids::TenantId;
use crate::integrations::fathom;
use crate::integrations::fathom::Patience;
use crate::integrations::fathom::Session;
use crate::jobs::destinations;
use crate::jobs::destinations::Destination;
use crate::jobs::destinations::error::Remedy;
use crate::jobs::destinations::registry::Target;
use crate::meetings;
use crate::queue::JobId;
use crate::queue::Lost;
use crate::queue::Outcome;
use crate::queue::Run;
use crate::records;
use crate::records::Instance;
use crate::records::Query;
use crate::records::quoted;
use crate::supervisor::Priority;
use crate::vault;
use crate::vault::Sealed;
use crate::vault::Secret;

/// How long a list of meetings may take to be brought up to date.
const SYNC_TIME: Duration = Duration::from_mins(2);
const SYNC_LOOK: Duration = Duration::from_millis(500);
/// How long to leave a recording alone that another job delivers to the same place.
const OTHER_JOB: Duration = Duration::from_secs(15);
/// How often something may have to begin again before the delivery is given up.
pub(super) const MAX_RESTARTS: u32 = 6;

/// What a step gives, or how the attempt ends.
pub(super) type Step<T> = Result<T, Outcome>;

/// What is asked for.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Order {
    pub(super) recording_id: Option<u64>,
    pub(super) topic: Option<String>,
    pub(super) destination: Option<String>,
    pub(super) force: bool,
}

impl Order {
    /// Reads a payload: `{recording_id?, topic?, destination?, force?}`; a number may be a text.
    pub(super) fn read(payload: &Value) -> Self {
        let text = |field: &str| {
            payload.get(field).and_then(Value::as_str).map(str::trim).filter(|text| !text.is_empty()).map(str::to_owned)
        };
        let number = payload.get("recording_id");
        Self {
            recording_id: number
                .and_then(|id| id.as_u64().or_else(|| id.as_str().and_then(|text| text.trim().parse().ok()))),
            topic: text("topic"),
            destination: text("destination"),
            force: payload.get("force").and_then(Value::as_bool).unwrap_or_default(),
        }
    }
}

/// One attempt.
pub(super) struct Attempt {
    pub(super) parts: Parts,
    pub(super) run: Run,
    pub(super) checkpoint: Checkpoint,
    pub(super) folder: PathBuf,
    session: Option<Session>,
}

impl fmt::Debug for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Attempt").field("job", &self.run.job.id).finish_non_exhaustive()
    }
}

pub(super) fn retry(reason: impl Into<String>) -> Outcome {
    Outcome::Retry { reason: reason.into(), after: None }
}

pub(super) fn dead(reason: impl Into<String>) -> Outcome {
    Outcome::Dead { reason: reason.into() }
}

impl Attempt {
    pub(super) fn new(parts: Parts, run: Run) -> Self {
        let checkpoint = Checkpoint::read(&run.job.checkpoint);
        let folder = parts.staging.folder(run.job.id.as_str());
        Self { parts, run, checkpoint, folder, session: None }
    }

    /// All steps.
    pub(super) async fn go(mut self) -> Outcome {
        match self.steps().await {
            Ok(result) => Outcome::Done(result),
            Err(outcome) => outcome,
        }
    }

    async fn steps(&mut self) -> Step<Value> {
        if let Some(existing) = self.resolve().await? {
            return Ok(existing);
        }
        let subject = self.subject()?;
        let target = self.target(&subject).await?;
        let needs_human = target.settings.kind() == destinations::Kind::Loom;
        if self.checkpoint.handed_off.is_none() && self.checkpoint.sent.is_empty() {
            self.fetch_video(&subject).await?;
            self.make_bundle(&subject).await?;
        }
        if needs_human {
            return self.hand_off(&subject).await;
        }
        let destination = self.open(&target).await?;
        self.send_all(&subject, &*destination).await?;
        self.record(&subject).await?;
        self.clean();
        Ok(self.result(&subject))
    }

    pub(super) fn tenant(&self) -> &TenantId {
        &self.run.job.tenant
    }

    pub(super) fn subject(&self) -> Step<Subject> {
        self.checkpoint.subject.clone().ok_or_else(|| retry("the checkpoint has no subject"))
    }

    /// Notes how far it is; durable when it returns.
    pub(super) async fn save(&self) -> Step<()> {
        match self.run.checkpoint(self.checkpoint.to_value()).await {
            Ok(()) => Ok(()),
            // Somebody else has the job now.
            Err(Lost::Claim) => Err(Outcome::Cancelled),
            Err(Lost::TooLarge) => Err(dead("the delivery has too many files to keep track of")),
            Err(Lost::Store(_)) => Err(retry("the progress could not be noted")),
        }
    }

    /// Something has to begin again that should not have to: only so often.
    pub(super) async fn restart(&mut self, reason: &str) -> Step<()> {
        self.checkpoint.restarts += 1;
        if self.checkpoint.restarts > MAX_RESTARTS {
            return Err(dead(format!("{reason}, again and again")));
        }
        tracing::info!(job.id = %self.run.job.id, reason, "a step of a delivery begins again");
        self.save().await
    }

    pub(super) async fn instance(&self) -> Step<Instance> {
        self.parts.records.open(self.tenant(), Priority::Background).await.map_err(|error| of_records(&error))
    }

    /// Fathom in the user's name.
    pub(super) async fn fathom(&mut self) -> Step<Session> {
        if let Some(session) = &self.session {
            return Ok(session.clone());
        }
        let session = self.parts.meetings.calls(self.tenant(), "deliver_meeting").await;
        let session = session.map_err(|error| of_vault("Fathom", &error))?.patience(Patience::JOB);
        self.session = Some(session.clone());
        Ok(session)
    }

    /// Seals what must not be kept in clear.
    pub(super) async fn seal(&self, what: &str, text: String) -> Step<String> {
        let sealed = self.parts.vault.seal(self.tenant(), &self.context(what), &Secret::new(text)).await;
        sealed.map(|Sealed(text)| text).map_err(|error| of_vault("the checkpoint", &error))
    }

    /// Opens what [`seal`](Self::seal) made; none when it cannot be opened (any more).
    pub(super) async fn unseal(&self, what: &str, sealed: &str) -> Option<Secret> {
        self.parts.vault.unseal(self.tenant(), &self.context(what), &Sealed(sealed.to_owned())).await.ok()
    }

    fn context(&self, what: &str) -> String {
        context(&self.run.job.id, what)
    }

    // Resolve: which recording, to which destination, and whether that is done already.

    /// Finds out what is to be delivered; a result when that happened before.
    async fn resolve(&mut self) -> Step<Option<Value>> {
        let has_waited = std::mem::take(&mut self.checkpoint.is_waiting);
        if let Some(subject) = self.checkpoint.subject.clone() {
            // Not after a kill, but when somebody brought a job back that had failed.
            if self.run.attempt == 1 && self.checkpoint.handed_off.is_none() {
                if !has_waited {
                    self.checkpoint.restarts = 0;
                }
                self.parts.staging.make(self.run.job.id.as_str()).map_err(of_io)?;
                return self.claim(&self.instance().await?, &subject, true).await;
            }
            return Ok(None);
        }
        self.run.progress("resolving", 0, None);
        // First of all: wherever this folder is, somebody looks after the job when it ends.
        self.parts.staging.make(self.run.job.id.as_str()).map_err(of_io)?;
        let order = Order::read(&self.run.job.payload);
        let instance = self.instance().await?;
        let target =
            self.parts.destinations.choose(&instance, order.destination.as_deref()).await.map_err(of_destination)?;
        let meeting = self.meeting(&instance, &order).await?;
        let text = |field: &str| meeting.get(field).and_then(Value::as_str).unwrap_or_default();
        let recording_id: u64 = text("recording_id").parse().map_err(|_| dead("the meeting has no recording"))?;
        let created = records_time(text("created_at"));
        let subject = Subject {
            recording_id,
            meeting: text("id").to_owned(),
            title: text("title").to_owned(),
            folder: names::bundle(created, text("title"), recording_id),
            destination: target.id.clone(),
            kind: target.settings.kind(),
        };
        if let Some(existing) = self.claim(&instance, &subject, order.force).await? {
            self.clean();
            return Ok(Some(existing));
        }
        self.checkpoint.subject = Some(subject);
        self.save().await?;
        failpoint::hit("delivery.resolved");
        Ok(None)
    }

    /// Takes the recording for this job, unless it is delivered there, or another job is at it.
    async fn claim(&self, instance: &Instance, subject: &Subject, force: bool) -> Step<Option<Value>> {
        let _turn = self.parts.turn(self.tenant()).await;
        let row =
            ledger::find(instance, subject.recording_id, &subject.destination).await.map_err(|e| of_records(&e))?;
        let job = self.run.job.id.as_str();
        if row.as_ref().is_some_and(|row| row.job == job && row.state == "delivered") {
            return Ok(None);
        }
        if let Some(row) = row.filter(|row| row.job != job) {
            let other = JobId::parse(&row.job).ok().and_then(|id| self.run.sibling(&id));
            let is_unfinished = other.is_some_and(|other| !other.state.is_finished());
            match row.state.as_str() {
                "delivered" if !force => return Ok(Some(already(subject, &row))),
                "awaiting_upload" if is_unfinished && !force => return Ok(Some(already(subject, &row))),
                "delivering" | "awaiting_upload" if is_unfinished => {
                    return Err(super::later("another job delivers this recording there", OTHER_JOB));
                }
                _ => {}
            }
        }
        ledger::begin(instance, subject, job, self.run.attempt, now()).await.map_err(|error| of_records(&error))?;
        failpoint::hit("delivery.claimed");
        Ok(None)
    }

    /// The record of the meeting, after a look at Fathom if need be.
    async fn meeting(&self, instance: &Instance, order: &Order) -> Step<Value> {
        if let Some(found) = find_meeting(instance, order).await? {
            return Ok(found);
        }
        self.run.progress("looking for the meeting", 0, None);
        let (asked, deadline) = (now(), Instant::now() + SYNC_TIME);
        let mut looks = tokio::time::interval(SYNC_LOOK);
        let mut is_on_its_way = self.parts.meetings.sync(self.tenant());
        while is_on_its_way {
            looks.tick().await;
            // Whether it is over is asked before looking, so that what came last is seen.
            let sync = self.parts.meetings.sync_state(self.tenant(), now()).await.map_err(|e| of_meetings(&e))?;
            if let Some(found) = find_meeting(instance, order).await? {
                return Ok(found);
            }
            match sync.state {
                meetings::State::NoKey => return Err(dead("store a key of Fathom in the vault first")),
                meetings::State::Failed => return Err(retry("the list of meetings could not be brought up to date")),
                // Only a list that was whole after the question says that there is none.
                _ if sync.is_since(asked) => break,
                _ if Instant::now() >= deadline => return Err(retry("the list of meetings is not up to date yet")),
                // One that was under way may have read the list before: then another one follows.
                _ => is_on_its_way = self.parts.meetings.sync(self.tenant()),
            }
        }
        if !is_on_its_way {
            return Err(retry("the list of meetings cannot be brought up to date now"));
        }
        Err(dead(match (order.recording_id, &order.topic) {
            (Some(id), _) => format!("there is no meeting with the recording id {id}"),
            (None, Some(_)) => "no meeting has exactly this title".to_owned(),
            (None, None) => "name a recording_id or a topic".to_owned(),
        }))
    }

    async fn target(&self, subject: &Subject) -> Step<Target> {
        let instance = self.instance().await?;
        self.parts.destinations.choose(&instance, Some(&subject.destination)).await.map_err(of_destination)
    }

    async fn open(&self, target: &Target) -> Step<Box<dyn Destination>> {
        self.parts.destinations.open(self.tenant(), target).await.map_err(of_destination)
    }

    /// The staged files are of no use any more.
    pub(super) fn clean(&self) {
        if let Err(error) = self.parts.staging.remove(self.run.job.id.as_str()) {
            tracing::warn!(job.id = %self.run.job.id, %error, "remove staged files; the next start tries again");
        }
        failpoint::hit("delivery.cleaned");
    }
}

async fn find_meeting(instance: &Instance, order: &Order) -> Step<Option<Value>> {
    if let Some(id) = order.recording_id {
        return instance.find("meetings", &meetings::record_id(id)).await.map_err(|error| of_records(&error));
    }
    let Some(topic) = &order.topic else { return Err(dead("name a recording_id or a topic")) };
    let filter = format!("title = {}", quoted(topic));
    let fields = "id,recording_id,title,created_at";
    let query = Query { filter: &filter, sort: "-created_at", fields, limit: 10 };
    let mut found = instance.list("meetings", &query).await.map_err(|error| of_records(&error))?;
    if found.len() > 1 {
        let ids: Vec<&str> = found.iter().filter_map(|one| one.get("recording_id").and_then(Value::as_str)).collect();
        return Err(dead(format!(
            "several meetings have this title; name one by its recording_id: {}",
            ids.join(", ")
        )));
    }
    Ok(found.pop())
}

fn already(subject: &Subject, row: &ledger::Row) -> Value {
    json!({
        "recording_id": subject.recording_id.to_string(),
        "title": subject.title,
        "destination": subject.destination,
        "kind": subject.kind,
        "state": row.state,
        "url": send::plain(&row.url),
        "job": row.job,
        "is_repeated": true,
    })
}

/// What the sealed parts of a job's checkpoint are bound to.
pub(super) fn context(job: &JobId, what: &str) -> String {
    format!("delivery:{job}:{what}")
}

/// An instant of a record.
fn records_time(text: &str) -> Option<OffsetDateTime> {
    let format =
        time::macros::format_description!("[year]-[month]-[day] [hour]:[minute]:[second].[subsecond digits:3]Z");
    time::PrimitiveDateTime::parse(text, &format).ok().map(time::PrimitiveDateTime::assume_utc)
}

/// The wall clock, at the edge.
pub(super) fn now() -> OffsetDateTime {
    OffsetDateTime::now_utc()
}

pub(super) fn of_records(error: &records::Error) -> Outcome {
    if error.is_passing() { retry(error.to_string()) } else { dead(error.to_string()) }
}

pub(super) fn of_vault(what: &str, error: &vault::Error) -> Outcome {
    match error {
        vault::Error::NotFound => dead(format!("store a key of {what} in the vault first")),
        vault::Error::Revoked | vault::Error::Expired => {
            dead(format!("the key of {what} is not valid any more; store a new one in the vault"))
        }
        other => retry(format!("the vault: {other}")),
    }
}

pub(super) fn of_io(error: std::io::Error) -> Outcome {
    match destinations::Error::from(error) {
        destinations::Error::Full => no_room(),
        other => retry(other.to_string()),
    }
}

/// No room here: somebody may make some.
pub(super) fn no_room() -> Outcome {
    Outcome::Retry {
        reason: "this server has no room for the recording; it is tried again later".to_owned(),
        after: Some(Duration::from_mins(5)),
    }
}

pub(super) fn of_fathom(error: &fathom::Error) -> Outcome {
    if error.is_passing() {
        Outcome::Retry { reason: error.to_string(), after: error.retry_after() }
    } else {
        dead(error.to_string())
    }
}

pub(super) fn of_meetings(error: &meetings::Error) -> Outcome {
    if error.is_passing() { retry(error.to_string()) } else { dead(error.to_string()) }
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
pub(super) fn of_destination(error: destinations::Error) -> Outcome {
    match error.remedy() {
        Remedy::Retry(after) => Outcome::Retry { reason: error.to_string(), after },
        Remedy::StartOver => retry(error.to_string()),
        Remedy::GiveUp => dead(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_are_read_leniently() {
        let order = Order::read(&json!({"recording_id": "123", "destination": " folder ", "topic": ""}));
        assert_eq!(
            order,
            Order { recording_id: Some(123), destination: Some("folder".to_owned()), ..Order::default() }
        );
        assert_eq!(Order::read(&json!({"recording_id": 7, "force": true})).recording_id, Some(7));
        assert_eq!(Order::read(&Value::Null), Order::default());
    }

    #[test]
    fn what_passes_is_tried_again_and_the_rest_is_not() {
        assert!(matches!(of_fathom(&fathom::Error::Unauthorized), Outcome::Dead { .. }));
        assert!(matches!(of_fathom(&fathom::Error::NoMedia), Outcome::Dead { .. }));
        let limited = fathom::Error::RateLimited { retry_after: Duration::from_secs(7) };
        assert!(matches!(of_fathom(&limited), Outcome::Retry { after: Some(after), .. } if after.as_secs() == 7));
        assert!(matches!(of_destination(destinations::Error::Full), Outcome::Retry { after: Some(_), .. }));
        assert!(matches!(of_destination(destinations::Error::Unauthorized(401)), Outcome::Dead { .. }));
    }
}
