//! A meeting of Fathom's as the record that the user's own instance keeps.
//!
//! Invariants:
//! - The record's id follows from the recording's, so that to write one twice is to write it once.
//! - What the source did not send (a summary that was not asked for) is left as it is. What did not change is not
//!   written, so that nobody who listens hears of nothing.
//! - Whatever the source sends, the record is one that `PocketBase` takes: texts are cut, what is too large is left out.

use serde::Serialize;
use serde_json::Value;
use serde_json::json;
use sha2::Digest;
use sha2::Sha256;
use time::OffsetDateTime;

use super::dates;
use crate::integrations::fathom::Meeting;
use crate::integrations::fathom::Summary;
use crate::integrations::fathom::TranscriptLine;

/// The limits of the collection's fields (`pb_templates/personal`): characters of texts, bytes of JSON.
const TITLE_CHARS: usize = 2_000;
const URL_CHARS: usize = 2_000;
const LANGUAGE_CHARS: usize = 50;
const SUMMARY_CHARS: usize = 1_000_000;
const PERSON_BYTES: usize = 16 << 10;
const INVITEES_BYTES: usize = 1 << 20;
const ACTIONS_BYTES: usize = 2 << 20;
const TRANSCRIPT_BYTES: usize = 20 << 20;

/// The id of the record of a recording: `m` and its number to the base of 36, 15 characters.
pub fn record_id(recording_id: u64) -> String {
    const DIGITS: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";
    let mut id = [b'0'; 15];
    id[0] = b'm';
    let mut rest = recording_id;
    for place in id[1..].iter_mut().rev() {
        *place = DIGITS[usize::try_from(rest % 36).unwrap_or_default()];
        rest /= 36;
    }
    id.iter().map(|byte| char::from(*byte)).collect()
}

/// Whether a recording can be kept: the number is also a row of the search index, which counts with a sign.
pub(super) fn is_keepable(meeting: &Meeting) -> bool {
    i64::try_from(meeting.recording_id).is_ok()
}

/// Hashes of what the source said last of the parts of a meeting; empty for what it never said.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct Parts {
    meta: String,
    summary: String,
    actions: String,
    transcript: String,
}

impl Parts {
    fn parse(text: &str) -> Self {
        let mut parts = text.split('.').map(str::to_owned);
        let mut next = || parts.next().unwrap_or_default();
        Self { meta: next(), summary: next(), actions: next(), transcript: next() }
    }

    fn text(&self) -> String {
        [&*self.meta, &*self.summary, &*self.actions, &*self.transcript].join(".")
    }
}

fn hash(value: &impl Serialize) -> String {
    let bytes = serde_json::to_vec(value).unwrap_or_default();
    let digest = Sha256::digest(&bytes);
    let start: [u8; 8] = std::array::from_fn(|at| digest[at]);
    format!("{:016x}", u64::from_be_bytes(start))
}

fn cut(text: &str, chars: usize) -> &str {
    text.char_indices().nth(chars).map_or(text, |(at, _)| &text[..at])
}

/// An address, or nothing if it is longer than any that works.
fn address(url: Option<&String>) -> &str {
    url.map(String::as_str).filter(|url| url.chars().count() <= URL_CHARS).unwrap_or_default()
}

/// The value, or null if it is too large.
fn bounded(value: &impl Serialize, bytes: usize) -> Value {
    let value = serde_json::to_value(value).unwrap_or_default();
    if value.to_string().len() <= bytes { value } else { Value::Null }
}

/// The words of a transcript, a line for each turn, for searching and reading.
pub(super) fn transcript_text(lines: &[TranscriptLine]) -> String {
    let mut text = String::new();
    for line in lines {
        let Some(words) = line.text.as_deref().filter(|words| !words.trim().is_empty()) else { continue };
        if let Some(name) = line.speaker.as_ref().and_then(|speaker| speaker.display_name.as_deref()) {
            text.push_str(name);
            text.push_str(": ");
        }
        text.push_str(words.trim());
        text.push('\n');
    }
    text
}

fn meta(meeting: &Meeting) -> Value {
    let seconds = |value: Option<u64>| value.and_then(|value| i64::try_from(value).ok()).unwrap_or_default();
    json!({
        "recording_id": meeting.recording_id.to_string(),
        "title": cut(meeting.name(), TITLE_CHARS),
        "url": address(meeting.url.as_ref()),
        "share_url": address(meeting.share_url.as_ref()),
        "created_at": dates::stored(meeting.created_at),
        "started_at": dates::stored(meeting.started_at()),
        "ended_at": dates::stored(meeting.recording_end_time.or(meeting.scheduled_end_time)),
        "duration_seconds": seconds(meeting.duration_seconds()),
        "language": cut(meeting.transcript_language.as_deref().unwrap_or_default(), LANGUAGE_CHARS),
        "recorded_by": bounded(&meeting.recorded_by, PERSON_BYTES),
        "invitees": bounded(&meeting.calendar_invitees, INVITEES_BYTES),
        "source": "fathom",
    })
}

/// What to write so that the record says what the source says; none if it does already. `known` is the `digest` of the
/// record, if there is one.
pub(super) fn changes(meeting: &Meeting, known: Option<&str>, now: OffsetDateTime) -> Option<Value> {
    differing(meeting, known, Some(meta(meeting)), now)
}

/// The same for contents that were asked for by themselves; what the rest of the meeting says is left as it is.
pub(super) fn contents(
    recording_id: u64,
    summary: Option<Summary>,
    transcript: Vec<TranscriptLine>,
    known: &str,
    now: OffsetDateTime,
) -> Option<Value> {
    let mut meeting: Meeting = serde_json::from_value(json!({ "recording_id": recording_id })).ok()?;
    meeting.default_summary = summary;
    meeting.transcript = Some(transcript);
    differing(&meeting, Some(known), None, now)
}

fn differing(meeting: &Meeting, known: Option<&str>, meta: Option<Value>, now: OffsetDateTime) -> Option<Value> {
    let old = known.map(Parts::parse).unwrap_or_default();
    let mut new = old.clone();
    let mut record = serde_json::Map::new();
    if let Some(Value::Object(fields)) = meta {
        new.meta = hash(&fields);
        if new.meta != old.meta {
            record.extend(fields);
        }
    }
    let summary = meeting.default_summary.as_ref().and_then(|summary| summary.markdown_formatted.as_deref());
    if let Some(summary) = summary.filter(|summary| !summary.trim().is_empty()) {
        new.summary = hash(&summary);
        if new.summary != old.summary {
            record.insert("summary".to_owned(), cut(summary, SUMMARY_CHARS).into());
        }
    }
    if let Some(items) = &meeting.action_items {
        new.actions = hash(items);
        if new.actions != old.actions {
            record.insert("action_items".to_owned(), bounded(items, ACTIONS_BYTES));
        }
    }
    if let Some(lines) = meeting.transcript.as_ref().filter(|lines| !lines.is_empty()) {
        new.transcript = hash(lines);
        if new.transcript != old.transcript {
            let text = transcript_text(lines);
            record.insert("transcript".to_owned(), bounded(lines, TRANSCRIPT_BYTES));
            record.insert("transcript_text".to_owned(), cut(&text, TRANSCRIPT_BYTES / 4).into());
            record.insert("has_transcript".to_owned(), true.into());
        }
    }
    if record.is_empty() {
        return None;
    }
    record.insert("id".to_owned(), record_id(meeting.recording_id).into());
    record.insert("digest".to_owned(), new.text().into());
    record.insert("synced_at".to_owned(), dates::stored(Some(now)).into());
    Some(Value::Object(record))
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    const NOW: OffsetDateTime = datetime!(2026-01-01 12:00 UTC);

    fn meeting(more: &Value) -> Meeting {
        let mut value = json!({"recording_id": 123_456_789, "title": "QBR", "created_at": "2025-03-01T17:01:30Z"});
        value.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn ids_follow_from_recordings_and_fit() {
        assert_eq!(record_id(0), "m00000000000000");
        assert_eq!(record_id(35), "m0000000000000z");
        assert_eq!(record_id(123_456_789), "m0000000021i3v9");
        assert_eq!(record_id(u64::MAX).len(), 15);
        assert!(!is_keepable(&meeting(&json!({"recording_id": u64::MAX}))));
    }

    #[test]
    fn what_did_not_change_is_not_written_and_what_was_not_sent_is_left() {
        let light = meeting(&json!({}));
        let first = changes(&light, None, NOW).unwrap();
        assert_eq!((&first["title"], &first["created_at"]), (&json!("QBR"), &json!("2025-03-01 17:01:30.000Z")));
        assert!(first.get("summary").is_none() && first.get("transcript").is_none());
        let digest = first["digest"].as_str().unwrap();
        assert_eq!(changes(&light, Some(digest), NOW), None);
        let heavy = meeting(&json!({
            "default_summary": {"markdown_formatted": "## S"},
            "transcript": [{"speaker": {"display_name": "Ada"}, "text": " hello "}, {"text": "bye"}, {"text": " "}],
        }));
        let second = changes(&heavy, Some(digest), NOW).unwrap();
        assert_eq!((&second["summary"], &second["transcript_text"]), (&json!("## S"), &json!("Ada: hello\nbye\n")));
        assert!(second.get("title").is_none(), "{second}");
        let digest = second["digest"].as_str().unwrap();
        assert_eq!((changes(&heavy, Some(digest), NOW), changes(&light, Some(digest), NOW)), (None, None));
        let renamed = changes(&meeting(&json!({"title": "Other"})), Some(digest), NOW).unwrap();
        assert_eq!((renamed["title"].as_str(), renamed.get("summary")), (Some("Other"), None));
    }

    #[test]
    fn a_bare_id_is_a_meeting_and_a_giant_is_cut() {
        let bare: Meeting = serde_json::from_value(json!({"recording_id": 7})).unwrap();
        let record = changes(&bare, None, NOW).unwrap();
        assert_eq!((&record["id"], &record["created_at"]), (&json!("m00000000000007"), &json!("")));
        let giant = meeting(&json!({"title": "ä".repeat(5_000), "url": "x".repeat(3_000)}));
        let record = changes(&giant, None, NOW).unwrap();
        assert_eq!((record["title"].as_str().unwrap().chars().count(), &record["url"]), (2_000, &json!("")));
    }
}
