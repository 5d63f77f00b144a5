//! The model against the published samples, and against what deviates from them.

use serde_json::Value;
use serde_json::json;

use super::model::CalendarInvitee;
use super::model::Domains;
use super::model::DownloadStatus;
use super::model::Meeting;
use super::model::RecordingDownload;
use super::model::SharedWith;
use super::model::Webhook;
use super::pages::Page;

/// The document's own example of a meeting.
fn sample() -> Value {
    json!({
        "title": "Quarterly Business Review", "meeting_title": "QBR 2025 Q1", "meeting_type": null,
        "recording_id": 123_456_789,
        "url": "https://fathom.video/xyz123", "meeting_url": null, "share_url": "https://fathom.video/share/xyz123",
        "created_at": "2025-03-01T17:01:30Z",
        "scheduled_start_time": "2025-03-01T16:00:00Z", "scheduled_end_time": "2025-03-01T17:00:00Z",
        "recording_start_time": "2025-03-01T16:01:12Z", "recording_end_time": "2025-03-01T17:00:55Z",
        "calendar_invitees_domains_type": "one_or_more_external", "shared_with": "single_team",
        "transcript_language": "en",
        "calendar_invitees": [{ "name": "Alice Johnson", "email": "alice@example.com", "email_domain": "example.com",
            "is_external": false, "matched_speaker_display_name": "Alice J." }],
        "recorded_by": { "name": "Alice Johnson", "email": "alice@example.com", "email_domain": "example.com",
            "team": "Sales" },
        "transcript": [{ "speaker": { "display_name": "Alice Johnson",
            "matched_calendar_invitee_email": "alice@example.com" },
            "text": "Let's revisit the budget allocations.", "timestamp": "00:05:32" }],
        "default_summary": { "template_name": "general", "markdown_formatted": "## Summary\nWe reviewed Q1 OKRs.\n" },
        "action_items": [{ "description": "Email revised proposal to client", "user_generated": false,
            "completed": false, "recording_timestamp": "00:10:45",
            "recording_playback_url": "https://fathom.video/calls/xyz123?timestamp=645",
            "assignee": { "name": "Alice Johnson", "email": "alice@example.com", "team": "Sales" } }],
        "highlights": [{ "type": "Next steps", "summary": "Budget", "start_time": 12.5, "end_time": 40.0 }],
        "crm_matches": { "contacts": [{ "name": "A", "email": "a@example.com", "record_url": "https://crm/1" }],
            "companies": [], "deals": [{ "name": "D", "amount": 1000, "record_url": "https://crm/2" }], "error": null },
    })
}

fn meeting(value: Value) -> Meeting {
    serde_json::from_value(value).unwrap()
}

#[test]
fn the_published_meeting_is_understood_and_written_out_alike() {
    let read = meeting(sample());
    assert_eq!((read.recording_id, read.name()), (123_456_789, "Quarterly Business Review"));
    assert_eq!(read.duration_seconds(), Some(59 * 60 + 43));
    assert_eq!(read.started_at(), Some(time::macros::datetime!(2025-03-01 16:01:12 UTC)));
    assert_eq!(read.calendar_invitees_domains_type, Some(Domains::OneOrMoreExternal));
    assert_eq!(read.shared_with, Some(SharedWith::SingleTeam));
    assert_eq!(read.highlights.as_ref().unwrap()[0].start_time, Some(12.5));
    let written = serde_json::to_value(&read).unwrap();
    for (field, value) in sample().as_object().unwrap() {
        match field.as_str() {
            // Optional fields of their parts are written as null.
            "recorded_by" | "action_items" | "highlights" => assert!(written[field].to_string().len() > 20, "{field}"),
            _ => assert_eq!(&written[field], value, "{field}"),
        }
    }
    assert_eq!(meeting(written), read);
}

#[test]
fn only_the_id_is_required() {
    let bare = meeting(json!({ "recording_id": 7 }));
    assert_eq!((bare.recording_id, bare.name(), bare.duration_seconds()), (7, "Untitled meeting", None));
    assert_eq!((&bare.transcript, &bare.action_items, &bare.default_summary), (&None, &None, &None));
    assert_eq!(meeting(json!({ "recording_id": "7", "title": " ", "meeting_title": "B" })).name(), "B");
    for value in [json!({}), json!({ "recording_id": null }), json!({ "recording_id": -1 }), json!("x"), json!(null)] {
        assert!(serde_json::from_value::<Meeting>(value.clone()).is_err(), "{value}");
    }
}

#[test]
fn every_field_but_the_id_may_be_null_or_of_another_kind() {
    let whole = sample();
    for field in whole.as_object().unwrap().keys().filter(|field| *field != "recording_id") {
        for odd in [json!(null), json!(17), json!("odd"), json!([]), json!({}), json!([null, 5]), json!(true)] {
            let mut value = whole.clone();
            value[field] = odd.clone();
            assert_eq!(meeting(value).recording_id, 123_456_789, "{field} = {odd}");
        }
    }
}

#[test]
fn a_text_where_an_object_is_now_is_that_objects_main_field() {
    let read = meeting(json!({
        "recording_id": 7,
        "recorded_by": "Alice",
        "default_summary": "We met.",
        "transcript": "all in one",
        "action_items": ["call Bob", { "description": "write", "assignee": "Carol" }, 5],
        "calendar_invitees": ["bob@example.com", null],
        "shared_with": "somebody_new", "unknown_field": { "x": [1] },
    }));
    assert_eq!(read.recorded_by.unwrap().name.as_deref(), Some("Alice"));
    assert_eq!(read.default_summary.unwrap().markdown_formatted.as_deref(), Some("We met."));
    assert_eq!(read.transcript.unwrap()[0].text.as_deref(), Some("all in one"));
    let items = read.action_items.unwrap();
    assert_eq!((items.len(), items[0].description.as_deref()), (2, Some("call Bob")));
    assert_eq!(items[1].assignee.as_ref().unwrap().name.as_deref(), Some("Carol"));
    let bob = CalendarInvitee { email: Some("bob@example.com".to_owned()), ..CalendarInvitee::default() };
    assert_eq!(read.calendar_invitees, [bob]);
    assert_eq!(read.shared_with, Some(SharedWith::Other("somebody_new".to_owned())));
}

#[test]
fn a_page_keeps_what_has_an_id_and_counts_what_has_none() {
    let answer = json!({ "limit": 10, "next_cursor": "eyJw", "items": [{ "recording_id": 1 }, {}, null, sample()] });
    let page: Page<Meeting> = Page::read(answer).unwrap();
    assert_eq!((page.items.len(), page.skipped, page.next_cursor.as_deref()), (2, 2, Some("eyJw")));
    for end in
        [json!({ "items": [] }), json!({ "items": [], "next_cursor": null }), json!({ "items": [], "next_cursor": "" })]
    {
        assert_eq!(Page::<Meeting>::read(end).unwrap().next_cursor, None);
    }
    for odd in [json!(null), json!([]), json!({}), json!({ "items": null }), json!({ "items": {} }), json!("x")] {
        assert_eq!(Page::<Meeting>::read(odd), None);
    }
}

#[test]
fn downloads_and_webhooks_do_not_print_what_is_secret() {
    let download: RecordingDownload = serde_json::from_value(json!({
        "download_id": "dl_CJAj1YPuruCgWHaKgEBv6Mb1UsNj8x", "recording_id": 123_456_789, "status": "completed",
        "video": { "url": "https://media.fathom.ai/downloads/planted", "content_type": "video/mp4",
            "file_size_bytes": 154_763_264, "expires_at": "2026-07-13T18:30:00Z" },
    }))
    .unwrap();
    let video = download.video.as_ref().unwrap();
    assert_eq!((&download.status, video.file_size_bytes), (&DownloadStatus::Completed, Some(154_763_264)));
    assert_eq!(video.expires_at, Some(time::macros::datetime!(2026-07-13 18:30 UTC)));
    let failed: RecordingDownload =
        serde_json::from_value(json!({ "download_id": 5, "status": "paused", "video": null, "failure_reason": "x" }))
            .unwrap();
    assert_eq!((failed.download_id.as_str(), failed.status.as_str()), ("5", "paused"));
    let webhook: Webhook = serde_json::from_value(json!({
        "id": "ikEoQ4bVoq4JYUmc", "url": "https://example.com/webhook", "secret": "whsec_planted",
        "created_at": "2025-06-30T10:40:46Z", "include_transcript": true, "triggered_for": ["my_recordings"],
    }))
    .unwrap();
    assert_eq!((webhook.secret.expose(), webhook.triggered_for.len()), ("whsec_planted", 1));
    assert!(!format!("{download:?}{webhook:?}").contains("planted"));
    assert!(serde_json::from_value::<Webhook>(json!({ "id": "x", "secret": "" })).is_err());
}
