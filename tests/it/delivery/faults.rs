//! What Fathom and the media host may do wrong, a disk that is full, a user who changes their mind.

use reqwest::Method;
use serde_json::Value;
use serde_json::json;

use super::Bench;
use super::assert_delivered_once;
use super::sha256;
use crate::support::eventually;
use crate::support::fathom::KEY;

const SMALL: [&str; 2] = ["--media-bytes", "300000"];

/// Faults that pass: the delivery succeeds in spite of each.
#[tokio::test(flavor = "multi_thread")]
async fn what_passes_is_waited_out() {
    let bench = Bench::start(&[], &SMALL, "").await;
    let recordings = bench.recordings().await;
    let download = "/recordings/*/download";
    let poll = "/recordings/*/downloads/*";
    let media = "/media/*";
    let faults = [
        ("429 with Retry-After", json!({"path": download, "kind": "status", "status": 429, "retry_after": 1})),
        ("429 without headers", json!({"path": poll, "kind": "no_headers429"})),
        ("500 at the request", json!({"path": download, "kind": "status", "status": 500})),
        ("503 at the poll", json!({"path": poll, "kind": "status", "status": 503})),
        ("no JSON", json!({"path": poll, "kind": "malformed"})),
        ("no status", json!({"path": poll, "kind": "missing_field", "field": "status"})),
        ("expired download", json!({"path": poll, "kind": "expired_download"})),
        ("failed download", json!({"path": poll, "kind": "failed_download"})),
        ("cut connection", json!({"path": poll, "kind": "drop"})),
        ("expired link", json!({"path": media, "kind": "expired_link"})),
        ("short body", json!({"path": media, "kind": "short_body", "times": 2})),
        ("500 of the media", json!({"path": media, "kind": "status", "status": 500})),
        ("wrong size once", json!({"path": poll, "kind": "wrong_size"})),
    ];
    for ((name, fault), recording) in faults.into_iter().zip(&recordings) {
        bench.standin.fault(fault).await;
        let result = bench.deliver(*recording, "folder").await;
        bench.standin.control(Method::DELETE, "/faults", None).await;
        let files = bench.in_folder();
        let (_, video) = files.iter().find(|(path, _)| path.ends_with(&format!("_{recording}/video.mp4"))).unwrap();
        assert_eq!(sha256(video), sha256(&bench.video(*recording).await), "{name}: {result}");
        assert_delivered_once(&bench, *recording).await;
    }
    bench.nothing_staged().await;
    assert!(!bench.in_folder().keys().any(|path| path.contains(".part")));
}

/// Faults that do not pass: the delivery ends with a reason, and leaves nothing.
#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_pass_is_said_and_leaves_nothing() {
    let bench = Bench::start(&[], &SMALL, "delivery.max_attempts = 2\n").await;
    let recordings = bench.recordings().await;
    let always = |mut fault: Value| {
        fault["times"] = json!(1000);
        fault
    };
    let faults = [
        (json!({"path": "/recordings/*/download", "kind": "status", "status": 401}), "does not accept the key"),
        (json!({"path": "/recordings/*/download", "kind": "status", "status": 403}), "does not let the owner"),
        (json!({"path": "/recordings/*/download", "kind": "status", "status": 404}), "nothing under this id"),
        (json!({"path": "/recordings/*/download", "kind": "status", "status": 422}), "no downloadable media"),
        (json!({"path": "/recordings/*/downloads/*", "kind": "wrong_size"}), "another size"),
        (json!({"path": "/media/*", "kind": "redirect_loopback"}), "not"),
        (json!({"path": "/recordings/*/downloads/*", "kind": "failed_download"}), "could not prepare"),
    ];
    for ((fault, reason), recording) in faults.into_iter().zip(&recordings) {
        bench.standin.fault(always(fault.clone())).await;
        let id = bench.order(*recording, "folder").await;
        let dead = bench.until(&id, &["dead"]).await;
        bench.standin.control(Method::DELETE, "/faults", None).await;
        assert!(dead["error"].as_str().unwrap().contains(reason), "{fault}: {dead}");
        let row = eventually("the failure is noted", async || {
            bench.rows(*recording).await.into_iter().find(|row| row["state"] == "failed")
        })
        .await;
        assert_eq!(row["error"], dead["error"]);
    }
    bench.nothing_staged().await;
    assert!(bench.in_folder().is_empty(), "{:?}", bench.in_folder().keys());
    // Brought back by a person, it succeeds.
    let failed = bench.get("/api/v1/jobs?state=dead").await["items"][0]["id"].as_str().unwrap().to_owned();
    assert_eq!(bench.call(Method::POST, &format!("/api/v1/queue/{failed}/retry"), json!({})).await.0, 200);
    bench.until(&failed, &["done"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recording_that_does_not_fit_is_not_begun() {
    let bench = Bench::start(&[], &SMALL, "delivery.reserve_bytes = 9000000000000000\n").await;
    let id = bench.order(bench.recordings().await[0], "folder").await;
    let waiting = bench.until(&id, &["scheduled"]).await;
    assert!(waiting["error"].as_str().unwrap().contains("no room"), "{waiting}");
    let recording = bench.recordings().await[0];
    assert_eq!(bench.rows(recording).await[0]["state"], "delivering");
    assert_eq!(bench.standin.calls("GET /media").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recording_larger_than_the_limit_is_refused() {
    let bench = Bench::start(&[], &SMALL, "delivery.max_bytes = 100000\n").await;
    let id = bench.order(bench.recordings().await[0], "folder").await;
    let dead = bench.until(&id, &["dead"]).await;
    assert!(dead["error"].as_str().unwrap().contains("delivery.max_bytes"), "{dead}");
}

#[tokio::test(flavor = "multi_thread")]
async fn calling_off_a_download_leaves_nothing() {
    let bench = Bench::start(&[], &["--media-bytes", "20000000", "--media-rate", "1000000"], "").await;
    let recording = bench.recordings().await[0];
    let id = bench.order(recording, "folder").await;
    eventually("bytes are coming", async || {
        let progress = bench.job(&id).await["progress"].clone();
        (progress["step"] == "downloading" && progress["done"].as_u64() > Some(0)).then_some(())
    })
    .await;
    assert!(!bench.staged().is_empty());
    assert_eq!(bench.call(Method::DELETE, &format!("/api/v1/queue/{id}"), Value::Null).await.0, 204);
    bench.until(&id, &["cancelled"]).await;
    eventually("it is noted", async || {
        bench.rows(recording).await.iter().any(|row| row["state"] == "cancelled").then_some(())
    })
    .await;
    bench.nothing_staged().await;
    assert!(bench.in_folder().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_instance_sleeps_while_a_recording_is_on_its_way() {
    let standin = ["--media-bytes", "6000000", "--media-rate", "1000000"];
    let bench = Bench::start(&[], &standin, "instances.idle_timeout = \"200ms\"\n").await;
    let recording = bench.recordings().await[0];
    let id = bench.order(recording, "folder").await;
    eventually("it sleeps during the download", async || {
        let is_running = bench.job(&id).await["progress"]["step"] == "downloading";
        (is_running && bench.app.tenant(&bench.user.id)["state"] == "asleep").then_some(())
    })
    .await;
    bench.until(&id, &["done"]).await;
    assert_delivered_once(&bench, recording).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recording_is_missing_only_when_a_whole_list_lacks_it() {
    // A list that is old as soon as it is there.
    let mut bench = Bench::start(&[], &["--media-bytes", "300000"], "meetings.ttl = \"1ms\"\n").await;
    let listed = async || {
        let body = bench.get("/api/v1/meetings?limit=100").await;
        (body["items"].as_array().unwrap().len() == 27).then_some(())
    };
    eventually("all are there", listed).await;
    let number = |added: Value| added["meeting"]["recording_id"].as_u64().unwrap();
    let first = number(bench.standin.add_meeting(KEY, json!({"title": "First"}), false).await);
    bench.standin.fault(json!({"path": "/meetings", "kind": "slow", "ms": 1500, "times": 3})).await;
    bench.deliver(first, "folder").await;

    // Stopped while it looks, it looks again.
    let second = number(bench.standin.add_meeting(KEY, json!({"title": "Second"}), false).await);
    bench.standin.fault(json!({"path": "/meetings", "kind": "slow", "ms": 20_000, "times": 3})).await;
    let id = bench.order(second, "folder").await;
    eventually("it looks", async || {
        (bench.job(&id).await["progress"]["step"] == "looking for the meeting").then_some(())
    })
    .await;
    assert!(bench.app.terminate().success());
    bench.standin.control(Method::DELETE, "/faults", None).await;
    bench.app.launch().await;
    bench.user = bench.user.at(&bench.app);
    bench.until(&id, &["done"]).await;
    assert_delivered_once(&bench, second).await;

    // And what is not there is not there.
    let id = bench.order(999_999, "folder").await;
    let dead = bench.until(&id, &["dead"]).await;
    assert!(dead["error"].as_str().unwrap().contains("no meeting with the recording id"), "{dead}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_said_is_waited_for() {
    let bench = Bench::start(&[], &SMALL, "meetings.first_wait = \"1ms\"\n").await;
    let recording = bench.recordings().await[0];
    // The list comes, what was said does not come with it.
    bench.standin.fault(json!({"path": "/meetings", "nth": 4, "times": 1000, "kind": "status", "status": 503})).await;
    let limited = json!({"path": "/recordings/*/transcript", "kind": "status", "status": 429, "retry_after": 3});
    bench.standin.fault(limited).await;
    let id = bench.order(recording, "folder").await;
    let waiting = bench.until(&id, &["scheduled"]).await;
    assert!(waiting["error"].as_str().unwrap().contains("transcript"), "{waiting}");
    assert!(bench.in_folder().is_empty());
    let done = bench.until(&id, &["done"]).await;
    assert_eq!(done["attempts"], 1, "waiting is no failure");
    let files = bench.in_folder();
    for name in ["transcript.txt", "summary.md", "video.mp4"] {
        assert!(files.keys().any(|path| path.ends_with(&format!("/{name}"))), "{name}: {:?}", files.keys());
    }
}
