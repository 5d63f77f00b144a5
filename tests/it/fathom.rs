//! The client of Fathom's API against the stand-in, in every way that Fathom may answer.

use std::time::Duration;

use pocketfleet::integrations::fathom::Auth;
use pocketfleet::integrations::fathom::Config;
use pocketfleet::integrations::fathom::Domains;
use pocketfleet::integrations::fathom::DownloadStatus;
use pocketfleet::integrations::fathom::Error;
use pocketfleet::integrations::fathom::Fathom;
use pocketfleet::integrations::fathom::Fetched;
use pocketfleet::integrations::fathom::Media;
use pocketfleet::integrations::fathom::MeetingsQuery;
use pocketfleet::integrations::fathom::NewWebhook;
use pocketfleet::integrations::fathom::OAuthApp;
use pocketfleet::integrations::fathom::Patience;
use pocketfleet::integrations::fathom::Session;
use pocketfleet::integrations::fathom::UsersQuery;
use pocketfleet::outbound;
use pocketfleet::outbound::Guard;
use pocketfleet::outbound::Refused;
use pocketfleet::shutdown::Shutdown;
use pocketfleet::vault::Secret;
use reqwest::Method;
use serde_json::Value;
use serde_json::json;
use time::OffsetDateTime;

use crate::support::fathom::KEY;
use crate::support::fathom::Standin;

/// A client of a stand-in, with a short patience for slow answers.
pub(crate) fn client(standin: &Standin) -> Fathom {
    client_with(standin, |_| {})
}

pub(crate) fn client_with(standin: &Standin, change: impl FnOnce(&mut Config)) -> Fathom {
    let mut config = Config {
        base_url: standin.api(),
        media_hosts: vec!["127.0.0.1".to_owned()],
        timeout: Duration::from_secs(5),
        oauth: OAuthApp {
            client_id: "standin-app".to_owned(),
            client_secret: "standin-secret".to_owned(),
            authorize_url: format!("{}/oauth2/authorize", standin.api()),
            token_url: format!("{}/oauth2/token", standin.api()),
        },
        ..Config::default()
    };
    change(&mut config);
    let allow = vec![standin.base.clone()];
    let guard = Guard::new(&outbound::Config { allow, ..outbound::Config::default() }).unwrap();
    Fathom::new(config, guard, Shutdown::new()).unwrap()
}

pub(crate) fn with_key(fathom: &Fathom, key: &str) -> Session {
    fathom.as_user(Auth::ApiKey(Secret::new(key.to_owned()))).patience(Patience::JOB)
}

fn everything() -> MeetingsQuery {
    MeetingsQuery {
        include_transcript: true,
        include_summary: true,
        include_action_items: true,
        include_highlights: true,
        include_crm_matches: true,
        ..MeetingsQuery::default()
    }
}

/// The first recording of a key.
async fn newest(standin: &Standin, key: &str) -> u64 {
    standin.meetings(key).await[0]["recording_id"].as_u64().unwrap()
}

#[tokio::test]
async fn twenty_seven_meetings_come_in_three_pages_and_each_is_whole() {
    let standin = Standin::start().await;
    let fathom = client(&standin);
    let session = with_key(&fathom, KEY);
    let mut pages = session.pages(everything());
    let (mut sizes, mut found) = (Vec::new(), Vec::new());
    while let Some(page) = pages.next().await.unwrap() {
        sizes.push(page.items.len());
        assert_eq!(page.skipped, 0);
        found.extend(page.items);
    }
    assert_eq!(sizes, [10, 10, 7]);
    assert_eq!(standin.calls("GET /meetings").await, 3);
    let known = standin.meetings(KEY).await;
    for (meeting, known) in found.iter().zip(&known) {
        assert_eq!(meeting.recording_id, known["recording_id"].as_u64().unwrap());
        assert_eq!(serde_json::to_value(&meeting.transcript).unwrap(), known["transcript"]);
        assert_eq!(serde_json::to_value(&meeting.default_summary).unwrap(), known["default_summary"]);
        assert_eq!(meeting.action_items.as_ref().unwrap().len(), 3);
        assert!(meeting.created_at.is_some() && meeting.duration_seconds().unwrap() > 600);
    }
    assert!(found.is_sorted_by_key(|meeting| std::cmp::Reverse(meeting.created_at)), "newest first");
    let plain = session.meetings(&MeetingsQuery::default()).await.unwrap();
    assert!(plain.items.iter().all(|meeting| meeting.transcript.is_none() && meeting.default_summary.is_none()));
}

#[tokio::test]
async fn filters_narrow_the_list() {
    let standin = Standin::start().await;
    let session = with_key(&client(&standin), KEY);
    let all = standin.meetings(KEY).await;
    let seventh =
        OffsetDateTime::parse(all[7]["created_at"].as_str().unwrap(), &time::format_description::well_known::Rfc3339)
            .unwrap();
    let newer = MeetingsQuery { created_after: Some(seventh), ..MeetingsQuery::default() };
    assert_eq!(session.meetings(&newer).await.unwrap().items.len(), 7);
    let external = MeetingsQuery {
        created_before: Some(seventh),
        calendar_invitees_domains_type: Some(Domains::OneOrMoreExternal),
        ..MeetingsQuery::default()
    };
    let expected = all[8..].iter().filter(|m| m["calendar_invitees_domains_type"] == "one_or_more_external").count();
    let mut pages = session.pages(external);
    let mut found = 0;
    while let Some(page) = pages.next().await.unwrap() {
        found += page.items.len();
    }
    assert_eq!(found, expected);
    let other = MeetingsQuery { recorded_by: vec!["nobody@acme.example".to_owned()], ..MeetingsQuery::default() };
    assert_eq!(session.meetings(&other).await.unwrap().items.len(), 0);
}

#[tokio::test]
async fn every_other_call_answers_what_the_document_says() {
    let standin = Standin::start().await;
    let session = with_key(&client(&standin), KEY);
    let id = newest(&standin, KEY).await;
    session.check().await.unwrap();
    let summary = session.summary(id).await.unwrap().unwrap();
    assert!(summary.markdown_formatted.unwrap().contains("### Next steps"));
    let transcript = session.transcript(id).await.unwrap();
    assert!(transcript.len() > 20 && transcript[0].speaker.as_ref().unwrap().display_name.is_some());
    assert_eq!(session.teams().await.unwrap().len(), 3);
    assert_eq!(session.team_members(None).await.unwrap().len(), 6);
    assert_eq!(session.team_members(Some("Sales")).await.unwrap().len(), 2);
    assert_eq!(session.meeting_types().await.unwrap()[0].status.as_deref(), Some("active"));
    let admins = UsersQuery { settings_access: Some("account_admin".to_owned()), ..UsersQuery::default() };
    assert_eq!(session.users(&admins).await.unwrap().len(), 1);
    session.summary_to(id, "http://127.0.0.1:9/").await.unwrap();
    session.transcript_to(id, "http://127.0.0.1:9/").await.unwrap();
    session.request_download_to(id, "http://127.0.0.1:9/").await.unwrap();

    let hook = session.create_webhook(&NewWebhook::new("https://example.com/hook")).await.unwrap();
    assert!(hook.secret.expose().starts_with("whsec_") && hook.include_transcript && !hook.include_crm_matches);
    session.delete_webhook(&hook.id).await.unwrap();
    assert!(matches!(session.delete_webhook(&hook.id).await, Err(Error::NotFound)));
    let nothing = NewWebhook {
        include_transcript: false,
        include_summary: false,
        include_action_items: false,
        ..NewWebhook::new("https://example.com/hook")
    };
    assert!(matches!(session.create_webhook(&nothing).await, Err(Error::Rejected { status: 400, .. })));
}

#[tokio::test]
async fn a_recording_is_prepared_and_fetched_from_any_offset_without_the_key() {
    let standin = Standin::with(&["--media-bytes", "3000000"]).await;
    let fathom = client(&standin);
    let session = with_key(&fathom, KEY);
    let id = newest(&standin, KEY).await;
    let mut download = session.request_download(id).await.unwrap();
    assert_eq!(download.status, DownloadStatus::Processing);
    let mut polls = 0;
    while download.status == DownloadStatus::Processing {
        download = session.download(id, &download.download_id).await.unwrap();
        polls += 1;
    }
    assert_eq!((&download.status, polls), (&DownloadStatus::Completed, 2));
    let video = download.video.unwrap();
    let shown = format!("{:?}", fathom.fetch(&video, 0, None).await.unwrap());
    assert!(!shown.contains("media/"), "the link is a credential: {shown}");
    let (whole, etag) = fetch(&fathom, &video, 0, None).await;
    assert_eq!((whole.len() as u64, &whole[4..8]), (video.file_size_bytes.unwrap(), &b"ftyp"[..]));
    let (rest, _) = fetch(&fathom, &video, 1_234_567, etag.as_deref()).await;
    assert_eq!(rest, whole[1_234_567..]);
    let changed = fathom.fetch(&video, 1_234_567, Some("\"another\"")).await.unwrap();
    assert_eq!((changed.offset, changed.length), (0, Some(3_000_000)), "another version is had from its beginning");
    assert!(standin.calls("GET /media").await >= 3);
    assert_eq!(standin.calls("media with a key").await, 0);

    standin.control(Method::POST, "/keys", Some(json!({ "key": "other", "meetings": 3 }))).await;
    let stranger = with_key(&fathom, "other").download(id, &download.download_id).await;
    assert!(matches!(stranger, Err(Error::NotFound)), "a download is its key's own");
}

async fn fetch(fathom: &Fathom, media: &Media, offset: u64, etag: Option<&str>) -> (Vec<u8>, Option<String>) {
    let mut fetched = fathom.fetch(media, offset, etag).await.unwrap();
    assert_eq!(fetched.offset, offset);
    let mut bytes = Vec::new();
    while let Some(chunk) = fetched.chunk().await.unwrap() {
        bytes.extend_from_slice(&chunk);
    }
    (bytes, fetched.etag)
}

/// A completed download of a key's newest recording.
async fn completed(standin: &Standin, session: &Session) -> (u64, String, Media) {
    standin.settings(json!({ "download_polls": 1 })).await;
    let id = newest(standin, KEY).await;
    let asked = session.request_download(id).await.unwrap();
    let ready = session.download(id, &asked.download_id).await.unwrap();
    (id, ready.download_id, ready.video.unwrap())
}

#[tokio::test]
async fn media_that_goes_wrong_is_told_apart() {
    let standin = Standin::start().await;
    let fathom = client(&standin);
    let session = with_key(&fathom, KEY);
    let (id, download, video) = completed(&standin, &session).await;
    standin.fault(json!({ "path": "/media/*", "kind": "expired_link" })).await;
    assert!(matches!(fathom.fetch(&video, 0, None).await, Err(Error::LinkExpired)));
    standin.fault(json!({ "path": "/media/*", "kind": "status", "status": 503 })).await;
    assert!(matches!(fathom.fetch(&video, 0, None).await, Err(Error::Server { status: 503, .. })));
    standin.fault(json!({ "path": "/media/*", "kind": "status", "status": 429, "retry_after": 7 })).await;
    let limited = fathom.fetch(&video, 0, None).await.unwrap_err();
    assert_eq!(limited.retry_after(), Some(Duration::from_secs(7)));
    standin.fault(json!({ "path": "/media/*", "kind": "redirect_loopback" })).await;
    assert!(matches!(fathom.fetch(&video, 0, None).await, Err(Error::Refused(_))));
    let before = standin.calls("GET /media").await;
    let elsewhere: Media = serde_json::from_value(json!({ "url": "https://169.254.169.254/video.mp4" })).unwrap();
    assert!(matches!(fathom.fetch(&elsewhere, 0, None).await, Err(Error::Refused(Refused::Address))));
    let foreign: Media = serde_json::from_value(json!({ "url": "https://media.example.com/video.mp4" })).unwrap();
    assert!(matches!(fathom.fetch(&foreign, 0, None).await, Err(Error::Refused(_))), "a host that is not listed");
    assert_eq!(standin.calls("GET /media").await, before);
    standin.fault(json!({ "path": "/media/*", "kind": "short_body" })).await;
    let mut fetched = fathom.fetch(&video, 0, None).await.unwrap();
    let (bytes, end) = to_end(&mut fetched).await;
    assert!(end.is_err() && bytes < fetched.length.unwrap(), "a body that breaks off is no end");

    standin.fault(json!({ "path": "/recordings/*/downloads/*", "kind": "wrong_size" })).await;
    let wrong = session.download(id, &download).await.unwrap().video.unwrap();
    assert_eq!(wrong.file_size_bytes, Some(video.file_size_bytes.unwrap() + 1));
    standin.fault(json!({ "path": "/recordings/*/downloads/*", "kind": "expired_download" })).await;
    assert_eq!(session.download(id, &download).await.unwrap().status, DownloadStatus::Expired);
    assert!(matches!(fathom.fetch(&video, 0, None).await, Err(Error::LinkExpired)));
    standin.fault(json!({ "path": "/recordings/*/download", "kind": "failed_download" })).await;
    let failed = session.request_download(id).await.unwrap();
    assert_eq!((failed.status.as_str(), failed.failure_reason.as_deref()), ("failed", Some("generation_failed")));
}

async fn to_end(fetched: &mut Fetched) -> (u64, Result<(), Error>) {
    let mut bytes = 0;
    loop {
        match fetched.chunk().await {
            Ok(Some(chunk)) => bytes += chunk.len() as u64,
            Ok(None) => return (bytes, Ok(())),
            Err(error) => return (bytes, Err(error)),
        }
    }
}

#[tokio::test]
async fn refusals_are_told_apart_by_status() {
    let standin = Standin::start().await;
    let fathom = client(&standin);
    let session = with_key(&fathom, KEY);
    assert!(matches!(with_key(&fathom, "wrong").check().await, Err(Error::Unauthorized)));
    assert!(matches!(with_key(&fathom, "odd\nkey").check().await, Err(Error::Unauthorized)));
    assert!(matches!(session.summary(1).await, Err(Error::NotFound)));
    let limited = standin.add_meeting(KEY, json!({ "_limited": true }), false).await;
    let bare = standin.add_meeting(KEY, json!({ "_media": false }), false).await;
    let id = |added: &Value| added["meeting"]["recording_id"].as_u64().unwrap();
    assert!(matches!(session.request_download(id(&limited)).await, Err(Error::Forbidden)));
    assert!(matches!(session.request_download(id(&bare)).await, Err(Error::NoMedia)));
}

#[tokio::test]
async fn a_failing_server_is_tried_again_a_few_times_and_its_words_stay_out_of_logs() {
    let standin = Standin::start().await;
    let fathom = client(&standin);
    let session = with_key(&fathom, KEY).patience(Patience::INTERACTIVE);
    standin.fault(json!({ "path": "/meetings", "kind": "status", "status": 502, "times": 2 })).await;
    session.check().await.unwrap();
    assert_eq!(standin.calls("GET /meetings").await, 3);
    standin.fault(json!({ "path": "/meetings", "kind": "status", "status": 500, "times": 10 })).await;
    let error = session.check().await.unwrap_err();
    assert!(matches!(&error, Error::Server { status: 500, body } if body.text().contains("asked for")), "{error:?}");
    assert!(!format!("{error:?} {error}").contains("asked for"));
    assert!(error.is_passing());
    assert_eq!(standin.calls("GET /meetings").await, 6);
    standin.control(Method::DELETE, "/faults", None).await;
    // What is not repeatable is not repeated.
    standin.fault(json!({ "path": "/webhooks", "kind": "status", "status": 500 })).await;
    assert!(session.create_webhook(&NewWebhook::new("https://example.com/hook")).await.is_err());
    assert_eq!(standin.calls("POST /webhooks").await, 1);
}
