//! What a delivery notes to go on after a kill: which step is behind it, and what the next one needs.
//!
//! Invariant: whatever is a credential (the signed link to the video, the address of an upload) is in here sealed only.

use std::time::Duration;

use serde::Deserialize;
use serde::Serialize;
use serde_json::Value;
use time::OffsetDateTime;

use crate::jobs::destinations::Delivered;
use crate::jobs::destinations::Kind;

/// How far a delivery is.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Checkpoint {
    /// What is delivered, and where to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subject: Option<Subject>,
    /// What Fathom prepares or has prepared.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub download: Option<Download>,
    /// The version of the video of which a part is staged.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub etag: Option<String>,
    /// The staged video, whole.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub video: Option<Staged>,
    /// Since when it waits for what was said in the meeting.
    #[serde(skip_serializing_if = "Option::is_none", with = "time::serde::rfc3339::option")]
    pub papers_since: Option<OffsetDateTime>,
    /// All staged files, in the order in which they go.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<Staged>,
    /// The file that is under way.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sending: Option<Sending>,
    /// Where the first of the files are now.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub sent: Vec<Delivered>,
    /// Whether the files were handed to the person, since when.
    #[serde(skip_serializing_if = "Option::is_none", with = "time::serde::rfc3339::option")]
    pub handed_off: Option<OffsetDateTime>,
    /// How often something had to begin again that should not have to.
    pub restarts: u32,
    /// Whether the last attempt ended to wait, which does not count as one.
    pub is_waiting: bool,
}

/// What is delivered, and where to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subject {
    /// The recording.
    pub recording_id: u64,
    /// The record of its meeting.
    pub meeting: String,
    /// Its title.
    pub title: String,
    /// The folder of its files at the destination.
    pub folder: String,
    /// The destination.
    pub destination: String,
    /// Its kind.
    pub kind: Kind,
}

/// A download that Fathom was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Download {
    /// Fathom's id of it.
    pub id: String,
    /// When it was asked for.
    #[serde(with = "time::serde::rfc3339")]
    pub requested_at: OffsetDateTime,
    /// The link, once it is prepared.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link: Option<Link>,
}

/// How long a delivery waits for what was said in the meeting; then it goes out without.
const PAPERS: Duration = Duration::from_hours(1);
/// The least and the longest time between two questions for it.
const SOONEST: Duration = Duration::from_secs(1);
const NEXT_QUESTION: Duration = Duration::from_secs(30);

/// A signed link to a video.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// The sealed address.
    pub sealed: String,
    /// How long the video is, if that was said.
    pub size: Option<u64>,
    /// Its media type.
    pub content_type: String,
    /// When the link is over.
    #[serde(default, with = "time::serde::rfc3339::option")]
    pub expires_at: Option<OffsetDateTime>,
}

/// A staged file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Staged {
    /// What it is, in the words of the collection `artifacts`.
    pub kind: String,
    /// Its name in the staging folder.
    pub file: String,
    /// Its name at the destination.
    pub name: String,
    /// Its media type.
    pub content_type: String,
    /// Its length in bytes.
    pub size: u64,
    /// Its SHA-256.
    pub sha256: String,
}

/// A file under way to the destination.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sending {
    /// Which of the files.
    pub index: usize,
    /// The sealed [`Upload`](crate::jobs::destinations::Upload).
    pub sealed: String,
}

impl Checkpoint {
    /// As a job keeps it. A checkpoint of another version is no checkpoint: the delivery begins again, which its
    /// destinations bear.
    pub fn read(value: &Value) -> Self {
        serde_json::from_value(value.clone()).unwrap_or_default()
    }

    /// How long to wait before it is asked again what was said in the meeting, which cannot be had now; none when it
    /// was waited for long enough.
    pub fn wait_for_papers(&mut self, said: Option<Duration>, now: OffsetDateTime) -> Option<Duration> {
        let until = *self.papers_since.get_or_insert(now) + PAPERS;
        let left = Duration::try_from(until - now).ok().filter(|left| !left.is_zero())?;
        Some(said.unwrap_or(NEXT_QUESTION).min(left).max(SOONEST))
    }

    /// For keeping.
    pub fn to_value(&self) -> Value {
        serde_json::to_value(self).unwrap_or_default()
    }
}

impl Link {
    /// Whether the link can still be used for a while.
    pub fn is_good(&self, now: OffsetDateTime) -> bool {
        self.expires_at.is_none_or(|end| end - now > time::Duration::seconds(30))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use time::macros::datetime;

    use super::*;

    #[test]
    fn a_checkpoint_is_read_as_it_was_written() {
        let checkpoint = Checkpoint {
            subject: Some(Subject {
                recording_id: 7,
                meeting: "m00000000000007".to_owned(),
                title: "T".to_owned(),
                folder: "F".to_owned(),
                destination: "folder".to_owned(),
                kind: Kind::Folder,
            }),
            sent: vec![Delivered { url: None, location: "x".to_owned() }],
            handed_off: Some(datetime!(2026-01-01 0:00 UTC)),
            ..Checkpoint::default()
        };
        assert_eq!(Checkpoint::read(&checkpoint.to_value()), checkpoint);
        assert_eq!(Checkpoint::read(&Value::Null), Checkpoint::default());
        assert_eq!(Checkpoint::read(&json!({"subject": 7})), Checkpoint::default());
    }

    #[test]
    fn what_was_said_is_waited_for_and_not_for_ever() {
        let (mut checkpoint, now) = (Checkpoint::default(), datetime!(2026-01-01 12:00 UTC));
        assert_eq!(checkpoint.wait_for_papers(None, now), Some(NEXT_QUESTION));
        assert_eq!(checkpoint.wait_for_papers(Some(Duration::ZERO), now), Some(SOONEST));
        let mut checkpoint = Checkpoint::read(&checkpoint.to_value());
        let late = now + Duration::from_mins(59);
        assert_eq!(checkpoint.wait_for_papers(Some(Duration::from_mins(10)), late), Some(Duration::from_mins(1)));
        assert_eq!(checkpoint.wait_for_papers(None, now + PAPERS), None);
    }

    #[test]
    fn a_link_is_given_up_before_it_ends_whatever_the_clock_does() {
        let now = datetime!(2026-01-01 12:00 UTC);
        let link = |expires_at| Link { sealed: String::new(), size: None, content_type: String::new(), expires_at };
        assert!(link(None).is_good(now));
        assert!(link(Some(now + time::Duration::minutes(1))).is_good(now));
        assert!(!link(Some(now + time::Duration::seconds(29))).is_good(now));
        assert!(!link(Some(now - time::Duration::days(90))).is_good(now));
    }
}
