//! Each kind of destination, from the recording to the bytes that arrived.

use reqwest::Method;
use serde_json::Value;
use serde_json::json;

use super::Bench;
use super::assert_delivered_once;
use super::sha256;
use crate::support::sinks::BUCKET;
use crate::support::sinks::S3;
use crate::support::sinks::S3_ACCESS;
use crate::support::sinks::S3_SECRET;
use crate::support::sinks::Sink;
use crate::support::sinks::Tus;

/// More than two parts of what destinations take at once.
pub(super) const LARGE: [&str; 2] = ["--media-bytes", "20000000"];

#[tokio::test(flavor = "multi_thread")]
async fn a_recording_lies_in_the_folder_with_everything_that_belongs_to_it() {
    let bench = Bench::start(&[], &LARGE, "").await;
    let recording = bench.recordings().await[0];
    let result = bench.deliver(recording, "folder").await;
    let expected = bench.video(recording).await;
    let files = bench.in_folder();
    let names: Vec<&str> = files.keys().map(|path| path.rsplit('/').next().unwrap()).collect();
    for name in ["transcript.json", "transcript.txt", "transcript.vtt", "summary.md", "metadata.json", "video.mp4"] {
        assert!(names.contains(&name), "{name} is not among {names:?}");
    }
    assert!(files.keys().all(|path| path.starts_with(&format!("{}/", bench.user.id))), "{names:?}");
    let (path, video) = files.iter().find(|(path, _)| path.ends_with("video.mp4")).unwrap();
    assert_eq!(sha256(video), sha256(&expected));
    assert!(path.ends_with(&format!("_{recording}/video.mp4")), "{path}");
    let vtt = files.iter().find(|(path, _)| path.ends_with("transcript.vtt")).unwrap().1;
    assert!(vtt.starts_with(b"WEBVTT\n\n1\n00:"), "{}", String::from_utf8_lossy(vtt));
    assert_eq!((&result["state"], &result["kind"]), (&json!("delivered"), &json!("folder")));
    assert_delivered_once(&bench, recording).await;
    bench.nothing_staged().await;

    // Asking again gives what there is.
    let again = bench.deliver(recording, "folder").await;
    assert_eq!((&again["is_repeated"], &again["state"]), (&json!(true), &json!("delivered")));
    let log = bench.app.log();
    assert!(!log.contains("/media") && !log.contains(crate::support::fathom::KEY), "a link or a key is in the log");
    // The links to the files work without a credential, and for ranges.
    let listed = bench.get(&format!("/api/v1/meetings/{recording}/artifacts")).await;
    let item =
        |kind: &str| listed["items"].as_array().unwrap().iter().find(|item| item["kind"] == kind).unwrap().clone();
    let fetch = async |url: &Value, range: Option<&str>| {
        let mut request = bench.app.http.get(format!("{}{}", bench.app.base, url.as_str().unwrap()));
        if let Some(range) = range {
            request = request.header("range", range);
        }
        request.send().await.unwrap()
    };
    let video = item("video");
    let whole = fetch(&video["url"], None).await;
    assert_eq!(
        (whole.status(), whole.headers()["x-content-type-options"].to_str().unwrap()),
        (reqwest::StatusCode::OK, "nosniff")
    );
    assert!(whole.headers()["content-disposition"].to_str().unwrap().starts_with("attachment; filename=\"video.mp4\""));
    assert_eq!(sha256(&whole.bytes().await.unwrap()), sha256(&expected));
    let part = fetch(&video["url"], Some("bytes=1000-1999")).await;
    assert_eq!(part.status(), 206);
    assert_eq!(part.bytes().await.unwrap(), expected[1000..2000]);
    assert_eq!(fetch(&video["url"], Some("bytes=99999999-")).await.status(), 416);
    let summary = fetch(&item("summary")["url"], None).await;
    assert_eq!(summary.status(), 200);
    let forged = video["url"].as_str().unwrap().replace("token=", "token=x");
    assert_eq!(fetch(&json!(forged), None).await.status(), 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_names_a_meeting_by_its_exact_title() {
    let bench = Bench::start(&[], &["--media-bytes", "50000"], "").await;
    let made = bench.standin.add_meeting(crate::support::fathom::KEY, json!({"title": "Only this one"}), false).await;
    let (_, item) =
        bench.call(Method::POST, "/api/v1/queue", json!({"topic": "Only this one", "destination": "folder"})).await;
    let done = bench.until(item["id"].as_str().unwrap(), &["done"]).await;
    assert_eq!(done["result"]["recording_id"], made["meeting"]["recording_id"].to_string());
    let (_, item) =
        bench.call(Method::POST, "/api/v1/queue", json!({"topic": "Never held", "destination": "folder"})).await;
    let dead = bench.until(item["id"].as_str().unwrap(), &["dead"]).await;
    assert_eq!(dead["error"], "no meeting has exactly this title");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_put_for_each_file_carries_the_key_and_is_repeated_after_a_refusal() {
    let sink = Sink::start().await;
    let bench = Bench::start(&[&sink.base], &LARGE, "").await;
    let key = bench.store_key("http", "token-of-tests", Value::Null).await;
    let id = bench.destination("http_put", json!({"url": format!("{}/in", sink.base)}), &key).await;
    assert_eq!(bench.call(Method::POST, &format!("/api/v1/destinations/{id}/check"), Value::Null).await.0, 200);
    assert!(sink.files().is_empty(), "the probe is deleted");
    sink.refuse(&[503]);
    let recording = bench.recordings().await[0];
    bench.deliver(recording, &id).await;
    let files = sink.files();
    let (_, video) = files.iter().find(|(path, _)| path.ends_with("/video.mp4")).unwrap();
    assert_eq!(sha256(&video.bytes), sha256(&bench.video(recording).await));
    assert!(files.values().all(|file| file.times == 1 && file.authorization == "Bearer token-of-tests"), "{files:?}");
    assert!(files.values().all(|file| !file.key.is_empty()));
    assert_delivered_once(&bench, recording).await;
    // A key that is refused is a matter for its owner.
    sink.refuse(&[401]);
    let job = bench.order(bench.recordings().await[1], &id).await;
    let dead = bench.until(&job, &["dead"]).await;
    assert!(dead["error"].as_str().unwrap().contains("refuses the key"), "{dead}");
    bench.nothing_staged().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tus_takes_a_recording_in_parts() {
    let tus = Tus::start().await;
    let bench = Bench::start(&[&tus.base], &LARGE, "").await;
    let id = bench.destination("http_tus", json!({"url": format!("{}/files", tus.base)}), "").await;
    assert_eq!(bench.call(Method::POST, &format!("/api/v1/destinations/{id}/check"), Value::Null).await.0, 200);
    let recording = bench.recordings().await[0];
    bench.deliver(recording, &id).await;
    let expected = sha256(&bench.video(recording).await);
    assert_eq!(tus.files().iter().filter(|bytes| sha256(bytes) == expected).count(), 1);
    assert_delivered_once(&bench, recording).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_takes_a_recording_in_parts_and_gives_a_link() {
    let s3 = S3::start().await;
    let bench = Bench::start(&[&s3.base], &LARGE, "").await;
    bench.store_key("s3", S3_SECRET, json!({"access_key_id": S3_ACCESS})).await;
    let settings = json!({"bucket": BUCKET, "endpoint": s3.base, "prefix": "from/fathom", "link_hours": 1});
    let id = bench.destination("s3", settings, "").await;
    assert_eq!(bench.call(Method::POST, &format!("/api/v1/destinations/{id}/check"), Value::Null).await.0, 200);
    let recording = bench.recordings().await[0];
    let result = bench.deliver(recording, &id).await;
    let expected = sha256(&bench.video(recording).await);
    let objects = s3.objects("from/fathom").await;
    let (_, video) = objects.iter().find(|(key, _)| key.ends_with("/video.mp4")).unwrap();
    assert_eq!(sha256(video), expected);
    // A link that lets in whoever has it is kept nowhere, but made for its owner when they ask.
    let url = bench.rows(recording).await[0]["url"].clone();
    assert_eq!(result["url"], url);
    assert!(url.as_str().unwrap().ends_with("/video.mp4"), "{url}");
    let listed = bench.get(&format!("/api/v1/meetings/{recording}/artifacts")).await;
    let video = listed["items"].as_array().unwrap().iter().find(|item| item["kind"] == "video").unwrap();
    let client = crate::support::http().redirect(reqwest::redirect::Policy::none()).build().unwrap();
    let linked = client.get(format!("{}{}", bench.app.base, video["url"].as_str().unwrap())).send().await.unwrap();
    assert_eq!(linked.status(), 307);
    let link = linked.headers()["location"].to_str().unwrap().to_owned();
    assert!(link.starts_with(url.as_str().unwrap()) && link.contains("X-Amz-Signature"), "{link}");
    let linked = bench.app.http.get(link).send().await.unwrap();
    assert_eq!(sha256(&linked.bytes().await.unwrap()), expected);
    assert_delivered_once(&bench, recording).await;
    // A key that the bucket does not know.
    bench.store_key("s3", "wrong-secret-of-tests", json!({"access_key_id": S3_ACCESS})).await;
    let (status, body) = bench.call(Method::POST, &format!("/api/v1/destinations/{id}/check"), Value::Null).await;
    assert_eq!((status, &body["error"]["code"]), (409, &json!("DESTINATION_KEY")), "{body}");
}

#[tokio::test(flavor = "multi_thread")]
async fn loom_is_a_hand_off_that_ends_with_a_link() {
    let sink = Sink::start().await;
    let oembed = format!("loom.oembed_url = \"{}/oembed\"\n", sink.base);
    let bench = Bench::start(&[&sink.base], &LARGE, &oembed).await;
    let recording = bench.recordings().await[0];
    // Nothing is configured, so this is where deliveries go.
    let (_, item) = bench.call(Method::POST, "/api/v1/queue", json!({"recording_id": recording})).await;
    let id = item["id"].as_str().unwrap().to_owned();
    let parked = bench.until(&id, &["parked"]).await;
    assert!(parked["waits_for"].as_str().unwrap().starts_with("awaiting_upload"), "{parked}");
    assert_eq!(bench.rows(recording).await[0]["state"], "awaiting_upload");
    let listed = bench.get(&format!("/api/v1/meetings/{recording}/artifacts")).await;
    let video = listed["items"].as_array().unwrap().iter().find(|item| item["kind"] == "video").unwrap();
    assert!(video["name"].as_str().unwrap().contains(".mp4") && video["name"] != "video.mp4", "{video}");
    let fetched = bench.app.http.get(format!("{}{}", bench.app.base, video["url"].as_str().unwrap()));
    assert_eq!(sha256(&fetched.send().await.unwrap().bytes().await.unwrap()), sha256(&bench.video(recording).await));

    let share =
        async |url: &str| bench.call(Method::POST, &format!("/api/v1/queue/{id}/share_url"), json!({"url": url})).await;
    let link = "https://www.loom.com/share/0123456789abcdef0123456789abcdef";
    assert_eq!(share(link).await.0, 200);
    // Loom does not know it yet.
    let parked = bench.until(&id, &["parked"]).await;
    assert!(parked["waits_for"].as_str().unwrap().contains("loom knows no video"), "{parked}");
    sink.share(link);
    assert_eq!(share(&format!("{link}?sid=1")).await.0, 200);
    let done = bench.until(&id, &["done"]).await;
    assert_eq!(done["result"]["url"], link);
    assert_eq!(bench.rows(recording).await[0]["url"], link);
    assert_delivered_once(&bench, recording).await;
    bench.nothing_staged().await;
}
