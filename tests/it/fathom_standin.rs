//! The stand-in itself: it keeps to the published shapes where a client's tests would not notice.

use std::collections::BTreeSet;
use std::time::Duration;

use pocketfleet::config::Config;
use pocketfleet::config::Flags;
use pocketfleet::vault::Secret;
use pocketfleet::webhooks::standard;
use reqwest::Method;
use reqwest::StatusCode;
use serde_json::Value;
use serde_json::json;
use time::OffsetDateTime;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;

use crate::support::PATIENCE;
use crate::support::eventually;
use crate::support::fathom::KEY;
use crate::support::fathom::Standin;
use crate::support::http;

async fn get(standin: &Standin, path: &str) -> (StatusCode, reqwest::header::HeaderMap, Value) {
    let url = format!("{}{path}", standin.api());
    let answer = http().build().unwrap().get(url).header("X-Api-Key", KEY).send().await.unwrap();
    (answer.status(), answer.headers().clone(), answer.json().await.unwrap_or_default())
}

async fn post(standin: &Standin, path: &str, body: &Value) -> (StatusCode, Value) {
    let url = format!("{}{path}", standin.api());
    let answer = http().build().unwrap().post(url).header("X-Api-Key", KEY).json(body).send().await.unwrap();
    (answer.status(), answer.json().await.unwrap_or_default())
}

#[tokio::test]
async fn a_list_has_the_published_fields_ten_items_and_the_budget_in_its_headers() {
    let standin = Standin::start().await;
    let (status, headers, page) = get(&standin, "/meetings?limit=50").await;
    assert_eq!((status, page["items"].as_array().unwrap().len(), &page["limit"]), (StatusCode::OK, 10, &json!(10)));
    assert_eq!(page["next_cursor"], "eyJwYWdlX251bSI6Mn0=", "the document's own example");
    let found: BTreeSet<&str> = page["items"][0].as_object().unwrap().keys().map(String::as_str).collect();
    let published = BTreeSet::from([
        "title",
        "meeting_title",
        "meeting_type",
        "recording_id",
        "url",
        "meeting_url",
        "share_url",
        "created_at",
        "scheduled_start_time",
        "scheduled_end_time",
        "recording_start_time",
        "recording_end_time",
        "calendar_invitees_domains_type",
        "shared_with",
        "transcript_language",
        "calendar_invitees",
        "recorded_by",
        "transcript",
        "default_summary",
        "action_items",
        "crm_matches",
    ]);
    assert_eq!(found, published);
    assert!(page["items"][0]["transcript"].is_null());
    assert_eq!(
        (headers["ratelimit-limit"].as_bytes(), headers["ratelimit-remaining"].as_bytes()),
        (&b"60"[..], &b"59"[..])
    );
    assert!(headers["ratelimit-reset"].to_str().unwrap().parse::<u64>().unwrap() <= 61);
    let (status, ..) = get(&standin, "/meetings?created_after=yesterday").await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    let (status, ..) = get(&standin, "/meetings/1").await;
    assert_eq!(status, StatusCode::NOT_FOUND, "there is no such call");
}

#[tokio::test]
async fn beyond_the_budget_is_a_429_that_says_when() {
    let standin = Standin::with(&["--heavy-per-minute", "2", "--meetings", "1"]).await;
    for _ in 0..2 {
        let (status, headers, _) = get(&standin, "/meetings?include_summary=true").await;
        assert_eq!((status, headers["ratelimit-limit"].as_bytes()), (StatusCode::OK, &b"2"[..]));
    }
    let (status, headers, _) = get(&standin, "/meetings?include_transcript=true").await;
    assert_eq!((status, headers["ratelimit-remaining"].as_bytes()), (StatusCode::TOO_MANY_REQUESTS, &b"0"[..]));
    assert_eq!(headers["retry-after"], headers["ratelimit-reset"]);
    assert_eq!(get(&standin, "/meetings").await.0, StatusCode::OK);
}

#[tokio::test]
async fn webhooks_with_unknown_properties_or_nothing_included_are_refused() {
    let standin = Standin::start().await;
    let good = json!({ "destination_url": "https://example.com/h", "triggered_for": ["my_recordings"],
        "include_transcript": true });
    let with = |field: &str, value: Value| {
        let mut body = good.clone();
        body[field] = value;
        body
    };
    for (why, body) in [
        ("unknown property", with("name", json!("x"))),
        ("nothing included", with("include_transcript", json!(false))),
        ("unknown trigger", with("triggered_for", json!(["all"]))),
        ("no trigger", with("triggered_for", json!([]))),
        ("no URL", with("destination_url", json!(null))),
        ("plain http", with("destination_url", json!("http://example.com/h"))),
        ("not a flag", with("include_summary", json!("yes"))),
        ("no object", json!([])),
    ] {
        assert_eq!(post(&standin, "/webhooks", &body).await.0, StatusCode::BAD_REQUEST, "{why}");
    }
    let (status, hook) = post(&standin, "/webhooks", &good).await;
    assert_eq!((status, hook["include_summary"].as_bool()), (StatusCode::CREATED, Some(false)));
    assert!(standard::Key::read(&Secret::new(hook["secret"].as_str().unwrap().to_owned())).is_ok());
    let (status, ..) = get(&standin, "/webhooks").await;
    assert_eq!(status, StatusCode::NOT_FOUND, "webhooks cannot be listed");
    let id = standin.meetings(KEY).await[0]["recording_id"].clone();
    let odd = json!({ "destination": "https://example.com" });
    let (status, _) = post(&standin, &format!("/recordings/{id}/download"), &odd).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
}

/// Reads one request and answers with a status; the head and the body.
async fn receive(listener: &TcpListener, status: &str) -> (reqwest::header::HeaderMap, Vec<u8>) {
    let (mut stream, _) = tokio::time::timeout(PATIENCE, listener.accept()).await.unwrap().unwrap();
    let mut bytes = Vec::new();
    let (head, length) = loop {
        let mut buffer = [0; 4096];
        let n = stream.read(&mut buffer).await.unwrap();
        bytes.extend_from_slice(&buffer[..n]);
        if let Some(end) = bytes.windows(4).position(|w| w == b"\r\n\r\n") {
            let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
            let headers: reqwest::header::HeaderMap = head
                .lines()
                .skip(1)
                .filter_map(|line| line.split_once(": "))
                .map(|(name, value)| (name.parse::<reqwest::header::HeaderName>().unwrap(), value.parse().unwrap()))
                .collect();
            let length: usize = headers["content-length"].to_str().unwrap().parse().unwrap();
            if bytes.len() >= end + 4 + length {
                break (headers, end + 4);
            }
        }
    };
    stream
        .write_all(format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").as_bytes())
        .await
        .unwrap();
    (head, bytes[length..].to_vec())
}

#[tokio::test]
async fn a_new_meeting_is_delivered_signed_until_it_is_taken_under_one_id() {
    let standin = Standin::start().await;
    standin.settings(json!({ "webhook_retries_ms": [10, 10, 10] })).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/hook", listener.local_addr().unwrap());
    let hook = json!({ "destination_url": url, "triggered_for": ["my_recordings"], "include_summary": true });
    let (_, hook) = post(&standin, "/webhooks", &hook).await;
    let key = standard::Key::read(&Secret::new(hook["secret"].as_str().unwrap().to_owned())).unwrap();
    let added = standin.add_meeting(KEY, json!({ "title": "Fresh" }), true).await;
    let mut ids = BTreeSet::new();
    for status in ["500 Oops", "302 Found", "204 No Content"] {
        let (headers, body) = receive(&listener, status).await;
        let verified =
            standard::verify(std::slice::from_ref(&key), &headers, &body, OffsetDateTime::now_utc()).unwrap();
        ids.insert(verified.id);
        let meeting: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!((&meeting["title"], &meeting["recording_id"]), (&json!("Fresh"), &added["meeting"]["recording_id"]));
        assert!(
            meeting["default_summary"].is_object() && meeting["transcript"].is_null(),
            "no envelope, what was asked for"
        );
    }
    assert_eq!(ids.len(), 1);
    let done = eventually("three deliveries are on record", || async {
        let all = standin.control(Method::GET, "/deliveries", None).await;
        all["items"].as_array().filter(|all| all.len() == 3).cloned()
    })
    .await;
    assert_eq!(done[2]["status"], 204);
    let odd = json!({ "key": KEY, "recording_id": added["meeting"]["recording_id"], "odd": { "bad_signature": true } });
    standin.control(Method::POST, "/webhooks/fire", Some(odd)).await;
    let (headers, body) = receive(&listener, "200 OK").await;
    let refused = standard::verify(&[key], &headers, &body, OffsetDateTime::now_utc());
    assert_eq!(refused, Err(standard::Error::Signature));
}

#[tokio::test]
async fn a_recording_is_a_film_of_the_size_that_was_asked_for() {
    let standin = Standin::with(&["--media-bytes", "5000000", "--download-polls", "1"]).await;
    let id = standin.meetings(KEY).await[0]["recording_id"].clone();
    let (_, asked) = post(&standin, &format!("/recordings/{id}/download"), &json!({})).await;
    assert!(asked.get("video").is_none() && asked.get("failure_reason").is_none(), "left out when not applicable");
    let (_, _, ready) =
        get(&standin, &format!("/recordings/{id}/downloads/{}", asked["download_id"].as_str().unwrap())).await;
    let film = http().build().unwrap().get(ready["video"]["url"].as_str().unwrap()).send().await.unwrap();
    assert_eq!(
        (film.content_length(), film.headers()["content-type"].as_bytes()),
        (Some(5_000_000), &b"video/mp4"[..])
    );
    let bytes = film.bytes().await.unwrap();
    // Every byte belongs to a box, and the boxes are those of a film.
    let (mut at, mut kinds) = (0, Vec::new());
    while at < bytes.len() {
        let number = |from: usize, to: usize| bytes[from..to].iter().fold(0_usize, |sum, b| sum << 8 | usize::from(*b));
        let size = match number(at, at + 4) {
            1 => number(at + 8, at + 16),
            size => size,
        };
        kinds.push(String::from_utf8(bytes[at + 4..at + 8].to_vec()).unwrap());
        at += size;
    }
    assert_eq!((at, kinds), (bytes.len(), ["ftyp", "moov", "mdat", "free"].map(str::to_owned).to_vec()));
    let forged = ready["video"]["url"].as_str().unwrap().replace("signature=", "signature=0");
    assert_eq!(http().build().unwrap().get(forged).send().await.unwrap().status(), StatusCode::FORBIDDEN);
}

#[tokio::test]
async fn it_ends_with_its_parent() {
    let standin = Standin::start().await;
    let ended = tokio::task::spawn_blocking(move || standin.leave());
    assert!(tokio::time::timeout(Duration::from_secs(20), ended).await.unwrap().unwrap().success());
}

#[tokio::test]
async fn the_keys_of_the_harness_are_keys_of_the_configuration() {
    let standin = Standin::start().await;
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), standin.keys()).unwrap();
    let flags = Flags { config: Some(file.path().to_owned()), ..Flags::default() };
    let config = Config::load(&flags).unwrap();
    assert_eq!((config.fathom.base_url, config.outbound.allow), (standin.api(), vec![standin.base.clone()]));
}
