//! What Fathom answers, with its own field names. Everything but ids may be absent; unknown fields and values pass.
//!
//! Types that hold no credential can be written out again in the same form.

use serde::Deserialize;
use serde::Serialize;
use serde_json::Value;
use time::OffsetDateTime;
use time::serde::rfc3339;

use super::lenient;
use super::lenient::Model;
use crate::vault::Secret;

/// An enumeration of which Fathom may invent further values.
macro_rules! open_enum {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $text:literal,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
        pub enum $name {
            $($(#[$variant_doc])* #[serde(rename = $text)] $variant,)*
            /// A value that the document does not name.
            #[serde(untagged)]
            Other(String),
        }

        impl Model for $name {}

        impl $name {
            /// The value as Fathom writes it.
            pub fn as_str(&self) -> &str {
                match self { $(Self::$variant => $text,)* Self::Other(text) => text }
            }
        }
    };
}

open_enum! {
    /// Whom a recording is shared with.
    SharedWith {
        /// Nobody.
        NoTeams = "no_teams",
        /// One team.
        SingleTeam = "single_team",
        /// Several teams.
        MultipleTeams = "multiple_teams",
        /// Everybody in the organisation.
        AllTeams = "all_teams",
    }
}

open_enum! {
    /// Where the invitees come from.
    Domains {
        /// All from the owner's organisation.
        OnlyInternal = "only_internal",
        /// At least one from elsewhere.
        OneOrMoreExternal = "one_or_more_external",
    }
}

open_enum! {
    /// How far a download is.
    DownloadStatus {
        /// Being prepared; ask again.
        Processing = "processing",
        /// The media is there.
        Completed = "completed",
        /// It cannot be made; see `failure_reason`.
        Failed = "failed",
        /// Its link is over; request a new one.
        Expired = "expired",
    }
}

open_enum! {
    /// Whose meetings a webhook is called for.
    Trigger {
        /// The owner's own.
        MyRecordings = "my_recordings",
        /// What others outside shared with the owner.
        SharedExternalRecordings = "shared_external_recordings",
        /// The owner's own that are shared with a team.
        MySharedWithTeamRecordings = "my_shared_with_team_recordings",
        /// What the team shares.
        SharedTeamRecordings = "shared_team_recordings",
    }
}

/// A recorded meeting.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Meeting {
    /// What every other call names it by. Not the number in its URL.
    #[serde(deserialize_with = "lenient::id")]
    pub recording_id: u64,
    /// Its title.
    #[serde(default, deserialize_with = "lenient::text")]
    pub title: Option<String>,
    /// The calendar's title.
    #[serde(default, deserialize_with = "lenient::text")]
    pub meeting_title: Option<String>,
    /// The name of its type, where the organisation has types.
    #[serde(default, deserialize_with = "lenient::text")]
    pub meeting_type: Option<String>,
    /// Its page for those who may see it.
    #[serde(default, deserialize_with = "lenient::text")]
    pub url: Option<String>,
    /// Where the meeting took place.
    #[serde(default, deserialize_with = "lenient::text")]
    pub meeting_url: Option<String>,
    /// Its page for everybody who has the link.
    #[serde(default, deserialize_with = "lenient::text")]
    pub share_url: Option<String>,
    /// When the recording was made known; what `created_after` compares.
    #[serde(default, deserialize_with = "lenient::instant", serialize_with = "rfc3339::option::serialize")]
    pub created_at: Option<OffsetDateTime>,
    /// By the calendar.
    #[serde(default, deserialize_with = "lenient::instant", serialize_with = "rfc3339::option::serialize")]
    pub scheduled_start_time: Option<OffsetDateTime>,
    /// By the calendar.
    #[serde(default, deserialize_with = "lenient::instant", serialize_with = "rfc3339::option::serialize")]
    pub scheduled_end_time: Option<OffsetDateTime>,
    /// When recording began.
    #[serde(default, deserialize_with = "lenient::instant", serialize_with = "rfc3339::option::serialize")]
    pub recording_start_time: Option<OffsetDateTime>,
    /// When recording ended.
    #[serde(default, deserialize_with = "lenient::instant", serialize_with = "rfc3339::option::serialize")]
    pub recording_end_time: Option<OffsetDateTime>,
    /// Where the invitees come from.
    #[serde(default, deserialize_with = "lenient::option")]
    pub calendar_invitees_domains_type: Option<Domains>,
    /// Whom it is shared with.
    #[serde(default, deserialize_with = "lenient::option")]
    pub shared_with: Option<SharedWith>,
    /// Language of the transcript, such as `en`.
    #[serde(default, deserialize_with = "lenient::text")]
    pub transcript_language: Option<String>,
    /// Who was invited.
    #[serde(default, deserialize_with = "lenient::list")]
    pub calendar_invitees: Vec<CalendarInvitee>,
    /// Whose recording it is.
    #[serde(default, deserialize_with = "lenient::option")]
    pub recorded_by: Option<Person>,
    /// Only when asked for.
    #[serde(default, deserialize_with = "lenient::optional_list")]
    pub transcript: Option<Vec<TranscriptLine>>,
    /// Only when asked for, and when there is one.
    #[serde(default, deserialize_with = "lenient::option")]
    pub default_summary: Option<Summary>,
    /// Only when asked for.
    #[serde(default, deserialize_with = "lenient::optional_list")]
    pub action_items: Option<Vec<ActionItem>>,
    /// Only when asked for.
    #[serde(default, deserialize_with = "lenient::optional_list")]
    pub highlights: Option<Vec<Highlight>>,
    /// Only when asked for.
    #[serde(default, deserialize_with = "lenient::option")]
    pub crm_matches: Option<CrmMatches>,
}

impl Meeting {
    /// The title to show.
    pub fn name(&self) -> &str {
        let given = [&self.title, &self.meeting_title].into_iter().flatten().find(|title| !title.trim().is_empty());
        given.map_or("Untitled meeting", |title| title)
    }

    /// When it began, as well as it is known.
    pub fn started_at(&self) -> Option<OffsetDateTime> {
        self.recording_start_time.or(self.scheduled_start_time).or(self.created_at)
    }

    /// Length of the recording in seconds, where both ends are known.
    pub fn duration_seconds(&self) -> Option<u64> {
        let length = self.recording_end_time? - self.recording_start_time?;
        u64::try_from(length.whole_seconds()).ok()
    }
}

/// Somebody who was invited.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CalendarInvitee {
    /// Name.
    #[serde(deserialize_with = "lenient::text")]
    pub name: Option<String>,
    /// E-mail address.
    #[serde(deserialize_with = "lenient::text")]
    pub email: Option<String>,
    /// What follows the `@`.
    #[serde(deserialize_with = "lenient::text")]
    pub email_domain: Option<String>,
    /// Whether they are of another organisation.
    #[serde(deserialize_with = "lenient::flag")]
    pub is_external: bool,
    /// The speaker of the transcript that this is believed to be.
    #[serde(deserialize_with = "lenient::text")]
    pub matched_speaker_display_name: Option<String>,
}

/// A person of the organisation.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Person {
    /// Name.
    #[serde(deserialize_with = "lenient::text")]
    pub name: Option<String>,
    /// E-mail address.
    #[serde(deserialize_with = "lenient::text")]
    pub email: Option<String>,
    /// What follows the `@`.
    #[serde(deserialize_with = "lenient::text")]
    pub email_domain: Option<String>,
    /// Team.
    #[serde(deserialize_with = "lenient::text")]
    pub team: Option<String>,
}

/// What somebody said.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TranscriptLine {
    /// Who.
    #[serde(deserialize_with = "lenient::option")]
    pub speaker: Option<Speaker>,
    /// The words.
    #[serde(deserialize_with = "lenient::text")]
    pub text: Option<String>,
    /// When, from the beginning: `HH:MM:SS`.
    #[serde(deserialize_with = "lenient::text")]
    pub timestamp: Option<String>,
}

/// Who said it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Speaker {
    /// Name as shown in the meeting.
    #[serde(deserialize_with = "lenient::text")]
    pub display_name: Option<String>,
    /// The invitee that this is believed to be.
    #[serde(deserialize_with = "lenient::text")]
    pub matched_calendar_invitee_email: Option<String>,
}

/// A summary.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Summary {
    /// The template it was made by.
    #[serde(deserialize_with = "lenient::text")]
    pub template_name: Option<String>,
    /// The summary in Markdown.
    #[serde(deserialize_with = "lenient::text")]
    pub markdown_formatted: Option<String>,
}

/// Something that somebody is to do.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ActionItem {
    /// What.
    #[serde(deserialize_with = "lenient::text")]
    pub description: Option<String>,
    /// Whether a person wrote it.
    #[serde(deserialize_with = "lenient::flag")]
    pub user_generated: bool,
    /// Whether it is done.
    #[serde(deserialize_with = "lenient::flag")]
    pub completed: bool,
    /// When it came up, from the beginning: `HH:MM:SS`.
    #[serde(deserialize_with = "lenient::text")]
    pub recording_timestamp: Option<String>,
    /// The recording at that moment.
    #[serde(deserialize_with = "lenient::text")]
    pub recording_playback_url: Option<String>,
    /// Who.
    #[serde(deserialize_with = "lenient::option")]
    pub assignee: Option<Person>,
}

/// A moment that was marked.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Highlight {
    /// Its kind.
    #[serde(rename = "type", deserialize_with = "lenient::text")]
    pub kind: Option<String>,
    /// What it is about.
    #[serde(deserialize_with = "lenient::text")]
    pub summary: Option<String>,
    /// Its text, when it differs from the summary.
    #[serde(deserialize_with = "lenient::text")]
    pub text: Option<String>,
    /// Seconds from the beginning.
    #[serde(deserialize_with = "lenient::option")]
    pub start_time: Option<f64>,
    /// Seconds from the beginning.
    #[serde(deserialize_with = "lenient::option")]
    pub end_time: Option<f64>,
}

/// What a CRM knows of those present; kept as it comes.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct CrmMatches {
    /// People.
    #[serde(deserialize_with = "lenient::list")]
    pub contacts: Vec<Value>,
    /// Companies.
    #[serde(deserialize_with = "lenient::list")]
    pub companies: Vec<Value>,
    /// Deals.
    #[serde(deserialize_with = "lenient::list")]
    pub deals: Vec<Value>,
    /// Why nothing was found.
    #[serde(deserialize_with = "lenient::text")]
    pub error: Option<String>,
}

/// A download of a recording, which Fathom prepares.
#[derive(Debug, Deserialize)]
pub struct RecordingDownload {
    /// Its id, known to the key that asked for it only.
    #[serde(deserialize_with = "lenient::token")]
    pub download_id: String,
    /// Of which recording; absent in odd answers.
    #[serde(default, deserialize_with = "lenient::option")]
    pub recording_id: Option<u64>,
    /// How far it is.
    pub status: DownloadStatus,
    /// The video, once completed.
    #[serde(default, deserialize_with = "lenient::option")]
    pub video: Option<Media>,
    /// The sound, once completed.
    #[serde(default, deserialize_with = "lenient::option")]
    pub audio: Option<Media>,
    /// `generation_failed`, `generation_timeout`.
    #[serde(default, deserialize_with = "lenient::text")]
    pub failure_reason: Option<String>,
}

/// Media behind a signed link, which is a credential.
#[derive(Debug, Deserialize)]
pub struct Media {
    /// The link.
    #[serde(deserialize_with = "secret")]
    pub url: Secret,
    /// Such as `video/mp4`.
    #[serde(default, deserialize_with = "lenient::text")]
    pub content_type: Option<String>,
    /// Length in bytes.
    #[serde(default, deserialize_with = "lenient::option")]
    pub file_size_bytes: Option<u64>,
    /// When the link is over; about a day.
    #[serde(default, deserialize_with = "lenient::instant")]
    pub expires_at: Option<OffsetDateTime>,
}

/// A webhook as it was made. Its id and secret are told this once only.
#[expect(clippy::struct_excessive_bools, reason = "they are the fields of Fathom's answer")]
#[derive(Debug, Deserialize)]
pub struct Webhook {
    /// What it is deleted by.
    #[serde(deserialize_with = "lenient::token")]
    pub id: String,
    /// Where it calls.
    #[serde(default, deserialize_with = "lenient::text")]
    pub url: Option<String>,
    /// What its calls are signed with, `whsec_…`.
    #[serde(deserialize_with = "secret")]
    pub secret: Secret,
    /// When it was made.
    #[serde(default, deserialize_with = "lenient::instant")]
    pub created_at: Option<OffsetDateTime>,
    /// Whose meetings it is called for.
    #[serde(default, deserialize_with = "lenient::list")]
    pub triggered_for: Vec<Trigger>,
    /// What its calls carry.
    #[serde(default, deserialize_with = "lenient::flag")]
    pub include_transcript: bool,
    /// What its calls carry.
    #[serde(default, deserialize_with = "lenient::flag")]
    pub include_summary: bool,
    /// What its calls carry.
    #[serde(default, deserialize_with = "lenient::flag")]
    pub include_action_items: bool,
    /// What its calls carry.
    #[serde(default, deserialize_with = "lenient::flag")]
    pub include_crm_matches: bool,
}

/// A team.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Team {
    /// Name, which is also what filters take.
    pub name: String,
    /// When it was made.
    #[serde(default, deserialize_with = "lenient::instant", serialize_with = "rfc3339::option::serialize")]
    pub created_at: Option<OffsetDateTime>,
}

/// Somebody in a team.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TeamMember {
    /// Name.
    #[serde(default, deserialize_with = "lenient::text")]
    pub name: Option<String>,
    /// E-mail address.
    #[serde(default, deserialize_with = "lenient::text")]
    pub email: Option<String>,
    /// Since when.
    #[serde(default, deserialize_with = "lenient::instant", serialize_with = "rfc3339::option::serialize")]
    pub created_at: Option<OffsetDateTime>,
}

/// A type of meetings that the organisation defined.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MeetingType {
    /// Name, which is also what the filter takes.
    pub name: String,
    /// `active` or `inactive`.
    #[serde(default, deserialize_with = "lenient::text")]
    pub status: Option<String>,
    /// When it was made.
    #[serde(default, deserialize_with = "lenient::instant", serialize_with = "rfc3339::option::serialize")]
    pub created_at: Option<OffsetDateTime>,
}

/// A user of the organisation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct User {
    /// Name.
    #[serde(default, deserialize_with = "lenient::text")]
    pub name: Option<String>,
    /// E-mail address.
    #[serde(default, deserialize_with = "lenient::text")]
    pub email: Option<String>,
    /// When they came.
    #[serde(default, deserialize_with = "lenient::instant", serialize_with = "rfc3339::option::serialize")]
    pub created_at: Option<OffsetDateTime>,
    /// `active`, `deactivated` or `invited`.
    #[serde(default, deserialize_with = "lenient::text")]
    pub status: Option<String>,
    /// What they may see and set, as it comes.
    #[serde(default)]
    pub permissions: Value,
}

impl Model for Meeting {}
impl Model for Media {}
impl Model for Highlight {}
impl Model for CrmMatches {}
impl Model for Team {
    const TEXT: Option<&'static str> = Some("name");
}
impl Model for TeamMember {}
impl Model for MeetingType {
    const TEXT: Option<&'static str> = Some("name");
}
impl Model for User {}
impl Model for u64 {}
impl Model for f64 {}
impl Model for Value {}
impl Model for CalendarInvitee {
    const TEXT: Option<&'static str> = Some("email");
}
impl Model for Person {
    const TEXT: Option<&'static str> = Some("name");
}
impl Model for Speaker {
    const TEXT: Option<&'static str> = Some("display_name");
}
impl Model for TranscriptLine {
    const TEXT: Option<&'static str> = Some("text");
}
impl Model for Summary {
    const TEXT: Option<&'static str> = Some("markdown_formatted");
}
impl Model for ActionItem {
    const TEXT: Option<&'static str> = Some("description");
}

fn secret<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Secret, D::Error> {
    let text = String::deserialize(from)?;
    if text.is_empty() { Err(serde::de::Error::custom("an empty secret")) } else { Ok(Secret::new(text)) }
}
