//! `kill -9` at every step of a delivery: after the next start there is exactly one, with the right bytes.
//!
//! Each test prints a table in Markdown, `step | outcome`, which the documentation shows.

use serde_json::json;

use super::Bench;
use super::assert_delivered_once;
use super::kinds::LARGE;
use super::sha256;
use crate::support::sinks::BUCKET;
use crate::support::sinks::S3;
use crate::support::sinks::S3_ACCESS;
use crate::support::sinks::S3_SECRET;
use crate::support::sinks::Sink;
use crate::support::sinks::Tus;

/// Steps before the destination matters. A number: the how manieth time.
const COMMON: [&str; 10] = [
    "delivery.claimed",
    "delivery.resolved",
    "delivery.asked",
    "delivery.requested",
    "delivery.linked",
    "delivery.fetching:5",
    "delivery.renamed",
    "delivery.fetched",
    "delivery.bundled",
    "delivery.noted",
];
/// Steps of sending: in the papers, and in the video, which is the seventh file and has three parts.
const SENDING: [&str; 10] = [
    "delivery.begun",
    "delivery.begun:7",
    "delivery.announced:7",
    "delivery.part_sent:7",
    "delivery.part:7",
    "delivery.part:8",
    "delivery.placed:7",
    "delivery.sent:7",
    "delivery.recorded",
    "delivery.cleaned",
];

/// Kills a delivery at a step and lets the next start finish it; gives the recording.
async fn killed_at(bench: &mut Bench, step: &str, recording: u64, destination: &str) -> String {
    assert!(bench.app.terminate().success());
    bench.app.environment = vec![("PF_FAILPOINT", step.to_owned())];
    bench.app.launch().await;
    bench.user = bench.user.at(&bench.app);
    let id = bench.order(recording, destination).await;
    let status = bench.app.ended();
    assert!(!status.success(), "{step}: {status}");
    bench.app.environment.clear();
    bench.app.launch().await;
    bench.user = bench.user.at(&bench.app);
    id
}

/// One line of the table.
fn row(kind: &str, step: &str, outcome: &str) {
    eprintln!("| {kind} | `{}` | {outcome} |", step.trim_start_matches("delivery."));
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_anywhere_a_delivery_to_the_folder_happens_once() {
    let mut bench = Bench::start(&[], &LARGE, "").await;
    let recordings = bench.recordings().await;
    for (step, recording) in COMMON.iter().chain(&SENDING).zip(recordings) {
        let id = killed_at(&mut bench, step, recording, "folder").await;
        let done = bench.until(&id, &["done"]).await;
        let files = bench.in_folder();
        let of_it: Vec<_> = files.iter().filter(|(path, _)| path.contains(&format!("_{recording}/"))).collect();
        let folders: std::collections::BTreeSet<_> =
            of_it.iter().map(|(path, _)| path.rsplit_once('/').unwrap().0).collect();
        assert_eq!((of_it.len(), folders.len()), (7, 1), "{step}: {:?}", files.keys());
        let video = of_it.iter().find(|(path, _)| path.ends_with("/video.mp4")).unwrap().1;
        assert_eq!(sha256(video), sha256(&bench.video(recording).await), "{step}");
        assert_delivered_once(&bench, recording).await;
        bench.nothing_staged().await;
        row("folder", step, &format!("once, bytes right, attempt {}", done["attempts"]));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_while_sending_a_put_is_repeated_to_the_same_place() {
    let sink = Sink::start().await;
    let mut bench = Bench::start(&[&sink.base], &LARGE, "").await;
    let destination = bench.destination("http_put", json!({"url": format!("{}/in", sink.base)}), "").await;
    let recordings = bench.recordings().await;
    for (step, recording) in SENDING.iter().filter(|step| !step.ends_with(":8")).zip(recordings) {
        let id = killed_at(&mut bench, step, recording, &destination).await;
        bench.until(&id, &["done"]).await;
        let files = sink.files();
        let of_it: Vec<_> = files.iter().filter(|(path, _)| path.contains(&format!("_{recording}/"))).collect();
        assert_eq!(of_it.len(), 7, "{step}: {:?}", files.keys());
        let video = of_it.iter().find(|(path, _)| path.ends_with("/video.mp4")).unwrap().1;
        assert_eq!(sha256(&video.bytes), sha256(&bench.video(recording).await), "{step}");
        assert_delivered_once(&bench, recording).await;
        row("http_put", step, &format!("once, bytes right, video sent {} time(s) to one place", video.times));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_while_sending_a_tus_upload_goes_on() {
    let tus = Tus::start().await;
    let mut bench = Bench::start(&[&tus.base], &LARGE, "").await;
    let destination = bench.destination("http_tus", json!({"url": format!("{}/files", tus.base)}), "").await;
    let recordings = bench.recordings().await;
    for (step, recording) in SENDING.iter().zip(recordings) {
        let id = killed_at(&mut bench, step, recording, &destination).await;
        bench.until(&id, &["done"]).await;
        let expected = sha256(&bench.video(recording).await);
        assert_eq!(tus.files().iter().filter(|bytes| sha256(bytes) == expected).count(), 1, "{step}");
        assert_delivered_once(&bench, recording).await;
        row("http_tus", step, "once, bytes right");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_while_sending_an_upload_to_a_bucket_goes_on() {
    let s3 = S3::start().await;
    let mut bench = Bench::start(&[&s3.base], &LARGE, "").await;
    bench.store_key("s3", S3_SECRET, json!({"access_key_id": S3_ACCESS})).await;
    let destination = bench.destination("s3", json!({"bucket": BUCKET, "endpoint": s3.base}), "").await;
    let recordings = bench.recordings().await;
    for (step, recording) in SENDING.iter().zip(recordings) {
        let id = killed_at(&mut bench, step, recording, &destination).await;
        bench.until(&id, &["done"]).await;
        let objects = s3.objects("").await;
        let of_it: Vec<_> = objects.iter().filter(|(key, _)| key.contains(&format!("_{recording}/"))).collect();
        assert_eq!(of_it.len(), 7, "{step}: {:?}", objects.keys());
        let video = of_it.iter().find(|(key, _)| key.ends_with("/video.mp4")).unwrap().1;
        assert_eq!(sha256(video), sha256(&bench.video(recording).await), "{step}");
        assert_delivered_once(&bench, recording).await;
        row("s3", step, "once, bytes right");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_around_the_hand_off_the_file_waits_and_the_link_counts_once() {
    let sink = Sink::start().await;
    let mut bench = Bench::start(&[&sink.base], &LARGE, &format!("loom.oembed_url = \"{}/oembed\"\n", sink.base)).await;
    let recordings = bench.recordings().await;
    let link = "https://www.loom.com/share/0123456789abcdef0123456789abcdef";
    sink.share(link);
    for (step, recording) in ["delivery.offered", "delivery.handed_off"].iter().zip(&recordings) {
        let id = killed_at(&mut bench, step, *recording, "loom").await;
        bench.until(&id, &["parked"]).await;
        assert_eq!(bench.staged().len(), 1, "{step}");
        let path = format!("/api/v1/queue/{id}/share_url");
        assert_eq!(bench.call(reqwest::Method::POST, &path, json!({"url": link})).await.0, 200);
        bench.until(&id, &["done"]).await;
        assert_delivered_once(&bench, *recording).await;
        bench.nothing_staged().await;
        row("loom", step, "handed off once, link taken");
    }
}
