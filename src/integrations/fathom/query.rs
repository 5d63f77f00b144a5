//! What is asked: the parameters of lists, and a webhook to be made.

use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::model::Domains;
use super::model::Trigger;

/// Which meetings, and how much of each. Pages have 10; Fathom takes no other size.
#[expect(clippy::struct_excessive_bools, reason = "they are the parameters of Fathom's call")]
#[derive(Debug, Clone, Default)]
pub struct MeetingsQuery {
    /// Where to go on; empty = from the newest.
    pub cursor: Option<String>,
    /// Only meetings made known after this.
    pub created_after: Option<OffsetDateTime>,
    /// Only meetings made known before this.
    pub created_before: Option<OffsetDateTime>,
    /// Heavy. Not for OAuth.
    pub include_transcript: bool,
    /// Heavy. Not for OAuth.
    pub include_summary: bool,
    /// What is to be done.
    pub include_action_items: bool,
    /// What a CRM knows.
    pub include_crm_matches: bool,
    /// Marked moments.
    pub include_highlights: bool,
    /// E-mail addresses of owners.
    pub recorded_by: Vec<String>,
    /// Names of teams.
    pub teams: Vec<String>,
    /// Domains of invitees.
    pub calendar_invitees_domains: Vec<String>,
    /// Where invitees come from.
    pub calendar_invitees_domains_type: Option<Domains>,
    /// Name of a type.
    pub meeting_type: Option<String>,
}

impl MeetingsQuery {
    /// Whether the call counts against the smaller budget.
    pub(super) fn is_heavy(&self) -> bool {
        self.include_summary || self.include_transcript
    }

    pub(super) fn pairs(&self) -> Vec<(&'static str, String)> {
        let mut pairs = Vec::new();
        let texts = [("cursor", &self.cursor), ("meeting_type", &self.meeting_type)];
        pairs.extend(texts.into_iter().filter_map(|(name, text)| Some((name, text.clone()?))));
        for (name, instant) in [("created_after", self.created_after), ("created_before", self.created_before)] {
            pairs.extend(instant.and_then(|instant| instant.format(&Rfc3339).ok()).map(|text| (name, text)));
        }
        let flags = [
            ("include_transcript", self.include_transcript),
            ("include_summary", self.include_summary),
            ("include_action_items", self.include_action_items),
            ("include_crm_matches", self.include_crm_matches),
            ("include_highlights", self.include_highlights),
        ];
        pairs.extend(flags.into_iter().filter(|(_, is_on)| *is_on).map(|(name, _)| (name, "true".to_owned())));
        let lists = [
            ("recorded_by[]", &self.recorded_by),
            ("teams[]", &self.teams),
            ("calendar_invitees_domains[]", &self.calendar_invitees_domains),
        ];
        for (name, values) in lists {
            pairs.extend(values.iter().map(|value| (name, value.clone())));
        }
        let domains = self.calendar_invitees_domains_type.as_ref();
        pairs.extend(domains.map(|domains| ("calendar_invitees_domains_type", domains.as_str().to_owned())));
        pairs
    }
}

/// Which users of the organisation.
#[derive(Debug, Clone, Default)]
pub struct UsersQuery {
    /// Name of a team.
    pub team: Option<String>,
    /// `active`, `deactivated` or `invited`.
    pub status: Option<String>,
    /// `none`, `team_admin` or `account_admin`.
    pub settings_access: Option<String>,
}

impl UsersQuery {
    pub(super) fn pairs(&self) -> Vec<(&'static str, String)> {
        let texts = [("team", &self.team), ("status", &self.status), ("settings_access", &self.settings_access)];
        texts.into_iter().filter_map(|(name, text)| Some((name, text.clone()?))).collect()
    }
}

/// A webhook to be made. At least one `include_*` has to be true.
#[expect(clippy::struct_excessive_bools, reason = "they are the fields of Fathom's request")]
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NewWebhook {
    /// Where it is to call.
    pub destination_url: String,
    /// For whose meetings.
    pub triggered_for: Vec<Trigger>,
    /// What its calls carry.
    pub include_transcript: bool,
    /// What its calls carry.
    pub include_summary: bool,
    /// What its calls carry.
    pub include_action_items: bool,
    /// What its calls carry.
    pub include_crm_matches: bool,
}

impl NewWebhook {
    /// A hook for the owner's own meetings, with transcript, summary and action items.
    pub fn new(destination_url: impl Into<String>) -> Self {
        Self {
            destination_url: destination_url.into(),
            triggered_for: vec![Trigger::MyRecordings],
            include_transcript: true,
            include_summary: true,
            include_action_items: true,
            include_crm_matches: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_repeat_their_name_and_flags_appear_when_true() {
        let query = MeetingsQuery {
            cursor: Some("c".to_owned()),
            created_after: Some(time::macros::datetime!(2025-03-01 17:01:30 UTC)),
            include_summary: true,
            recorded_by: vec!["a@example.com".to_owned(), "b@example.com".to_owned()],
            calendar_invitees_domains_type: Some(Domains::OnlyInternal),
            ..MeetingsQuery::default()
        };
        let pairs: Vec<String> = query.pairs().into_iter().map(|(name, value)| format!("{name}={value}")).collect();
        assert_eq!(
            pairs,
            [
                "cursor=c",
                "created_after=2025-03-01T17:01:30Z",
                "include_summary=true",
                "recorded_by[]=a@example.com",
                "recorded_by[]=b@example.com",
                "calendar_invitees_domains_type=only_internal",
            ]
        );
        assert!(query.is_heavy() && MeetingsQuery::default().pairs().is_empty());
    }
}
