//! What one delivery does to others: nothing that they could notice for long.

use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;

use reqwest::Method;
use serde_json::Value;
use serde_json::json;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;

use super::Bench;
use super::assert_delivered_once;
use super::sha256;
use crate::support::eventually;
use crate::support::fathom::KEY;

const TWO: &str = "delivery.max_concurrent_per_tenant = 2\n";

async fn downloads(bench: &Bench, job: &str) {
    eventually("bytes are coming", async || {
        let progress = bench.job(job).await["progress"].clone();
        (progress["step"] == "downloading" && progress["done"].as_u64() > Some(0)).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_for_another_job_has_not_failed() {
    let keys = format!("{TWO}delivery.max_attempts = 1\n");
    let bench = Bench::start(&[], &["--media-bytes", "3000000", "--media-rate", "1000000"], &keys).await;
    let made = bench.standin.add_meeting(KEY, json!({"title": "Only this one"}), false).await;
    let recording = made["meeting"]["recording_id"].as_u64().unwrap();
    let first = bench.order(recording, "folder").await;
    downloads(&bench, &first).await;
    let wish = json!({"topic": "Only this one", "destination": "folder"});
    let (_, second) = bench.call(Method::POST, "/api/v1/queue", wish).await;
    let second = second["id"].as_str().unwrap();
    assert_ne!(first, second);
    let waiting = bench.until(second, &["scheduled"]).await;
    assert!(waiting["error"].as_str().unwrap().contains("another job"), "{waiting}");
    assert_eq!(bench.until(second, &["done"]).await["result"]["is_repeated"], true);
    bench.until(&first, &["done"]).await;
    assert_delivered_once(&bench, recording).await;
}

/// A server of tus that takes announcements, and answers nothing else. Gives its address and what it was asked.
async fn tarpit() -> (String, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    let asked: Arc<Mutex<Vec<String>>> = Arc::default();
    let (seen, location) = (Arc::clone(&asked), format!("{base}/files/1"));
    tokio::spawn(async move {
        let mut held = Vec::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = Vec::new();
            while !request.windows(4).any(|end| end == b"\r\n\r\n") {
                if stream.read_buf(&mut request).await.unwrap_or_default() == 0 {
                    break;
                }
            }
            let method = String::from_utf8_lossy(&request).split(' ').next().unwrap_or_default().to_owned();
            if method == "POST" {
                let answer = "HTTP/1.1 201 Created\r\ncontent-length: 0\r\nconnection: close\r\nlocation: ";
                let _ = stream.write_all(format!("{answer}{location}\r\n\r\n").as_bytes()).await;
            } else {
                held.push(stream);
            }
            seen.lock().unwrap().push(method);
        }
    });
    (base, asked)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_destination_that_never_answers_keeps_nobody_from_being_tidied_up_after() {
    let (base, asked) = tarpit().await;
    let bench = Bench::start(&[&base], &["--media-bytes", "300000"], TWO).await;
    let recordings = bench.recordings().await;
    let destination = bench.destination("http_tus", json!({"url": format!("{base}/files")}), "").await;
    let has = |method: &'static str| asked.lock().unwrap().iter().any(|asked| asked == method).then_some(());
    let stuck = bench.order(recordings[0], &destination).await;
    eventually("it sends", async || has("PATCH")).await;
    bench.standin.settings(json!({"media_rate": 10_000})).await;
    let other = bench.order(recordings[1], "folder").await;
    downloads(&bench, &other).await;
    assert_eq!(bench.call(Method::DELETE, &format!("/api/v1/queue/{stuck}"), Value::Null).await.0, 204);
    eventually("it is asked to forget", async || has("DELETE")).await;
    assert_eq!(bench.call(Method::DELETE, &format!("/api/v1/queue/{other}"), Value::Null).await.0, 204);
    let is_tidy = eventually("the other one is tidied up after", async || {
        let is_noted = bench.rows(recordings[1]).await.iter().any(|row| row["state"] == "cancelled");
        let is_staged = bench.staged().iter().any(|path| path.ends_with(&other));
        (is_noted && !is_staged).then_some(())
    });
    // The first one would be waited for for a minute.
    tokio::time::timeout(Duration::from_secs(40), is_tidy).await.unwrap();
    bench.nothing_staged().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_video_that_changed_meanwhile_is_not_mixed_with_the_one_before() {
    let mut bench = Bench::start(&[], &["--media-bytes", "2000000"], "").await;
    let recording = bench.recordings().await[0];
    assert!(bench.app.terminate().success());
    bench.app.arm("delivery.fetching:5");
    bench.app.launch().await;
    bench.user = bench.user.at(&bench.app);
    let id = bench.order(recording, "folder").await;
    assert!(!bench.app.ended().success());
    bench.standin.settings(json!({"media_version": 1})).await;
    // Killed when it knows of the new version and has nothing of it.
    bench.app.arm("delivery.marked");
    bench.app.spawn();
    assert!(!bench.app.ended().success());
    bench.app.launch().await;
    bench.user = bench.user.at(&bench.app);
    bench.until(&id, &["done"]).await;
    let files = bench.in_folder();
    let (_, video) = files.iter().find(|(path, _)| path.ends_with("/video.mp4")).unwrap();
    assert_eq!(sha256(video), sha256(&bench.video(recording).await));
}
