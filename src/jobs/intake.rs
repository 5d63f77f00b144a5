//! What users may put into the queue, and how a wish becomes a job.
//!
//! Pure but for the call that adds. Invariants: whose a job is comes from whoever asks and never from the wish; a user
//! adds only jobs of kinds that are open to users; of many wishes either all are added or none.

use std::ops::RangeInclusive;
use std::sync::Arc;

use serde::Deserialize;
use serde_json::Value;
use serde_json::json;
use time::Duration;
use time::OffsetDateTime;

use crate::error::Code;
use crate::error::Problem;
use crate::ids::TenantId;
use crate::ids::UserId;
use crate::jobs::deliver;
use crate::queue;
use crate::queue::Added;
use crate::queue::NewJob;
use crate::queue::Queue;
use crate::tenancy::Tenancy;

/// The kind that brings a meeting to a destination.
pub const DELIVER_MEETING: &str = "deliver_meeting";

/// Most wishes in one call.
pub const MOST_WISHES: usize = 1_000;
/// Longest title, in characters.
const TITLE_CHARS: usize = 200;
/// Longest idempotency key, in bytes.
const KEY_BYTES: usize = 200;
/// Longest dedupe text of a user's own, in bytes.
const DEDUPE_BYTES: usize = 120;
/// Longest name of a destination, in bytes.
const DESTINATION_BYTES: usize = 64;
/// A job can be put off this far.
const FARTHEST: Duration = Duration::days(366);

/// A meeting to be brought to a destination.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MeetingWish {
    /// A line for people; also what the recording is looked for by, if there is no number.
    pub topic: String,
    /// The recording's number.
    pub recording_id: Option<u64>,
    /// The id or the kind of a destination; the default one otherwise.
    pub destination: Option<String>,
}

/// What is to be done.
#[derive(Debug, Clone)]
pub enum Work {
    /// A job of the kind [`DELIVER_MEETING`].
    Meeting(MeetingWish),
    /// A job of any kind that is open to users.
    Any {
        /// The kind.
        kind: String,
        /// A line for people.
        title: String,
        /// What whoever does it needs to know.
        payload: Value,
        /// While an unfinished job of the user has this text, it is the same job.
        dedupe: Option<String>,
    },
}

/// What somebody wants done, and when.
#[derive(Debug, Clone)]
pub struct Wish {
    /// What.
    pub work: Work,
    /// Higher goes first among the user's own.
    pub priority: Option<i64>,
    /// Not before this time. One that has passed means now.
    pub run_at: Option<OffsetDateTime>,
    /// The same key with the same wish is the same job.
    pub idempotency_key: Option<String>,
}

/// What users may ask for.
#[derive(Debug, Clone)]
pub struct Rules {
    /// Kinds open to users, beside [`DELIVER_MEETING`].
    pub kinds: Vec<String>,
    /// Priorities that users may choose.
    pub priorities: RangeInclusive<i8>,
}

impl Rules {
    /// The rules of a configuration.
    pub fn of(config: &queue::Config) -> Self {
        let most = config.user_priority.max(0);
        Self { kinds: config.user_kinds.clone(), priorities: -most..=most }
    }

    /// Whether users may add jobs of this kind.
    pub fn is_open(&self, kind: &str) -> bool {
        kind == DELIVER_MEETING || self.kinds.iter().any(|open| open == kind)
    }
}

/// Why wishes are not taken. None of them is.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// None at all, or more than one call takes.
    #[error("send 1 to {MOST_WISHES} items at once")]
    Count,
    /// A field of a wish is not valid.
    #[error("{field} of item {index}: {message}")]
    Field {
        /// Which of the wishes, from 0.
        index: usize,
        /// Which field.
        field: &'static str,
        /// What is wrong.
        message: String,
    },
    /// Nothing that a user may ask for.
    #[error("there is no kind of job with this name that you may add")]
    Kind {
        /// Which of the wishes, from 0.
        index: usize,
    },
    /// The operator suspended whoever asks.
    #[error("the tenant is suspended")]
    Suspended,
    /// The queue refused.
    #[error(transparent)]
    Queue(#[from] queue::Error),
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        let text = error.to_string();
        match error {
            Error::Count => Self::new(Code::InvalidBody).message(text).details(json!({ "most": MOST_WISHES })),
            Error::Field { index, field, message } => {
                let what = json!({ "code": "validation_invalid", "message": message });
                Self::new(Code::ValidationFailed).details(json!({ field: what, "index": index }))
            }
            Error::Kind { index } => Self::new(Code::UnknownKind).message(text).details(json!({ "index": index })),
            Error::Suspended => Self::new(Code::TenantSuspended),
            Error::Queue(queue::Error::UnknownKind) => Self::new(Code::UnknownKind),
            Error::Queue(error) => error.into(),
        }
    }
}

/// Takes users' wishes. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Intake {
    queue: Queue,
    tenancy: Tenancy,
    rules: Arc<Rules>,
}

impl Intake {
    /// In front of a queue.
    pub fn new(queue: Queue, tenancy: Tenancy, rules: Rules) -> Self {
        Self { queue, tenancy, rules: Arc::new(rules) }
    }

    /// What users may ask for.
    pub fn rules(&self) -> &Rules {
        &self.rules
    }

    /// Adds a user's wishes, all or none, in order. Durable when it returns.
    pub async fn add(&self, user: &UserId, wishes: Vec<Wish>, now: OffsetDateTime) -> Result<Vec<Added>, Error> {
        let tenant = TenantId::personal(user);
        if self.tenancy.resolve(tenant.as_str()).is_some_and(|found| found.suspended && found.id == tenant) {
            return Err(Error::Suspended);
        }
        let jobs = jobs_of(user, wishes, &self.rules, now)?;
        Ok(self.queue.add(jobs, now).await?)
    }
}

/// Pure: the jobs that wishes ask for.
fn jobs_of(user: &UserId, wishes: Vec<Wish>, rules: &Rules, now: OffsetDateTime) -> Result<Vec<NewJob>, Error> {
    if wishes.is_empty() || wishes.len() > MOST_WISHES {
        return Err(Error::Count);
    }
    let jobs = wishes.into_iter().enumerate().map(|(index, wish)| job_of(user, wish, rules, now, index));
    jobs.collect()
}

fn job_of(user: &UserId, wish: Wish, rules: &Rules, now: OffsetDateTime, index: usize) -> Result<NewJob, Error> {
    let wrong = |field: &'static str, message: &str| Error::Field { index, field, message: message.to_owned() };
    let urgency = match wish.priority {
        None => 0,
        Some(wanted) => {
            i8::try_from(wanted).ok().filter(|wanted| rules.priorities.contains(wanted)).ok_or_else(|| {
                Error::Field {
                    index,
                    field: "priority",
                    message: format!("between {} and {}", rules.priorities.start(), rules.priorities.end()),
                }
            })?
        }
    };
    if wish.run_at.is_some_and(|at| at - now > FARTHEST) {
        return Err(wrong("run_at", "within a year from now"));
    }
    if wish.idempotency_key.as_deref().is_some_and(|key| !is_key(key)) {
        return Err(wrong("idempotency_key", "1 to 200 visible characters of ASCII"));
    }
    let tenant = TenantId::personal(user);
    let work = match wish.work {
        // However a meeting is asked for, it is the same job.
        Work::Any { kind, title, payload, dedupe } if kind == DELIVER_MEETING => {
            if dedupe.is_some() {
                return Err(wrong("dedupe", "follows from the recording and the destination"));
            }
            let meeting: MeetingWish = serde_json::from_value(payload)
                .map_err(|_| wrong("payload", "an object with recording_id, topic and destination"))?;
            let topic = if meeting.topic.is_empty() { title } else { meeting.topic };
            Work::Meeting(MeetingWish { topic, ..meeting })
        }
        other => other,
    };
    let (kind, title, payload, dedupe) = match work {
        Work::Meeting(meeting) => {
            let destination = meeting.destination;
            if destination.as_deref().is_some_and(|name| !is_name(name)) {
                return Err(wrong("destination", "the id or the kind of a destination"));
            }
            if meeting.topic.trim().is_empty() && meeting.recording_id.is_none() {
                return Err(wrong("recording_id", "say which meeting: send a recording_id or a topic"));
            }
            let topic = Some(meeting.topic.as_str()).filter(|topic| !topic.is_empty());
            let order =
                deliver::order(tenant.clone(), user.clone(), meeting.recording_id, topic, destination.as_deref());
            (order.kind, order.title, order.payload, order.dedupe)
        }
        Work::Any { kind, title, payload, dedupe } => {
            if !rules.is_open(&kind) {
                return Err(Error::Kind { index });
            }
            if dedupe.as_deref().is_some_and(|text| !is_text(text)) {
                return Err(wrong("dedupe", "1 to 120 bytes, none of them a control character"));
            }
            // A user's own words never meet those of the kinds.
            let dedupe = dedupe.map(|text| format!("own {kind} {text}"));
            (kind, title, payload, dedupe)
        }
    };
    if title.chars().count() > TITLE_CHARS || title.chars().any(char::is_control) {
        return Err(wrong("title", "at most 200 characters, none of them a control character"));
    }
    Ok(NewJob {
        kind,
        tenant,
        user: user.clone(),
        title,
        payload,
        priority: 0,
        urgency,
        run_at: wish.run_at.filter(|at| *at > now),
        idempotency_key: wish.idempotency_key,
        dedupe,
        max_attempts: None,
    })
}

/// What can name a destination.
fn is_name(text: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
    (1..=DESTINATION_BYTES).contains(&text.len()) && text.bytes().all(fits)
}

fn is_text(text: &str) -> bool {
    (1..=DEDUPE_BYTES).contains(&text.len()) && !text.chars().any(char::is_control)
}

fn is_key(text: &str) -> bool {
    (1..=KEY_BYTES).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jobs::item;

    fn rules() -> Rules {
        Rules { kinds: vec!["transcode".to_owned()], priorities: -10..=10 }
    }

    fn wish(work: Work) -> Wish {
        Wish { work, priority: None, run_at: None, idempotency_key: None }
    }

    fn meeting(topic: &str, recording_id: Option<u64>) -> Wish {
        wish(Work::Meeting(MeetingWish { topic: topic.to_owned(), recording_id, destination: None }))
    }

    fn any(kind: &str) -> Wish {
        wish(Work::Any { kind: kind.to_owned(), title: String::new(), payload: Value::Null, dedupe: Some("x".into()) })
    }

    fn made(wishes: Vec<Wish>) -> Result<Vec<NewJob>, String> {
        let user = UserId::parse("ada").unwrap();
        jobs_of(&user, wishes, &rules(), OffsetDateTime::UNIX_EPOCH).map_err(|error| match error {
            Error::Field { field, .. } => field.to_owned(),
            other => Problem::from(other).code.as_str().to_owned(),
        })
    }

    #[test]
    fn the_same_recording_to_the_same_place_is_one_job_and_topics_alone_are_not() {
        let jobs = made(vec![meeting("Team", Some(7)), meeting("Other", Some(7)), meeting("Team", None)]).unwrap();
        assert_eq!(jobs[0].dedupe, jobs[1].dedupe);
        assert_eq!((item::recording_of(&jobs[0].payload), &jobs[2].dedupe), (Some(7), &None));
        assert_eq!((&*jobs[2].title, &jobs[2].payload), ("Team", &json!({"topic": "Team"})));
        assert_ne!(made(vec![any("transcode")]).unwrap()[0].dedupe, Some("x".to_owned()));
    }

    #[test]
    fn what_a_user_may_not_ask_for_is_refused() {
        assert_eq!(made(vec![]).unwrap_err(), "INVALID_BODY");
        assert_eq!(made(vec![meeting("x", None); MOST_WISHES + 1]).unwrap_err(), "INVALID_BODY");
        assert_eq!(made(vec![any("format_disk")]).unwrap_err(), "UNKNOWN_KIND");
        assert_eq!(made(vec![any(DELIVER_MEETING)]).unwrap_err(), "dedupe");
        let meeting_by_kind = |payload: Value| {
            let title = "Team".to_owned();
            made(vec![wish(Work::Any { kind: DELIVER_MEETING.to_owned(), title, payload, dedupe: None })])
        };
        assert_eq!(meeting_by_kind(Value::Null).unwrap_err(), "payload");
        assert_eq!(meeting_by_kind(json!({"path": "/etc"})).unwrap_err(), "payload");
        assert_eq!(meeting_by_kind(json!({"recording_id": 7})).unwrap()[0].payload["topic"], "Team");
        assert_eq!(made(vec![meeting(" ", None)]).unwrap_err(), "recording_id");
        assert_eq!(made(vec![meeting("a\nb", None)]).unwrap_err(), "title");
        assert_eq!(made(vec![Wish { priority: Some(11), ..meeting("x", None) }]).unwrap_err(), "priority");
        assert_eq!(made(vec![Wish { priority: Some(-1000), ..meeting("x", None) }]).unwrap_err(), "priority");
        let urgent = made(vec![Wish { priority: Some(10), ..meeting("x", None) }]).unwrap();
        assert_eq!((urgent[0].priority, urgent[0].urgency), (0, 10), "before one's own jobs only");
        let key = |text: &str| Wish { idempotency_key: Some(text.to_owned()), ..meeting("x", None) };
        assert_eq!(made(vec![key("")]).unwrap_err(), "idempotency_key");
        assert_eq!(made(vec![key("a b")]).unwrap_err(), "idempotency_key");
    }

    #[test]
    fn a_time_that_has_passed_means_now_and_one_too_far_is_refused() {
        let at = |span: Duration| Wish { run_at: Some(OffsetDateTime::UNIX_EPOCH + span), ..meeting("x", None) };
        assert_eq!(made(vec![at(-Duration::DAY)]).unwrap()[0].run_at, None);
        assert!(made(vec![at(Duration::DAY)]).unwrap()[0].run_at.is_some());
        assert_eq!(made(vec![at(Duration::days(400))]).unwrap_err(), "run_at");
    }
}
