//! Large bodies pass through without being collected, and time limits hold.

use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream;
use reqwest::Method;
use serde_json::Value;

use crate::support::TestApp;

const MIB: usize = 1 << 20;

/// Private memory of a process in MiB.
fn private_mib(pid: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let kib: u64 = text
        .lines()
        .filter(|line| line.starts_with("Private_"))
        .filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok())
        .sum();
    kib / 1024
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gigabyte_up_and_down_does_not_grow_memory() {
    let app = TestApp::start().await;
    let ada = app.user("ada").await;
    ada.note("warm").await;
    let size = 1024 * MIB;
    let before = private_mib(app.pid());
    let boundary = "xxxxboundaryxxxx";
    let head = format!(
        "--{boundary}\r\nContent-Disposition: form-data; name=\"title\"\r\n\r\nbig\r\n--{boundary}\r\n\
         Content-Disposition: form-data; name=\"attachments\"; filename=\"big.bin\"\r\n\
         Content-Type: application/octet-stream\r\n\r\n"
    );
    let tail = format!("\r\n--{boundary}--\r\n");
    let block = bytes::Bytes::from(vec![7_u8; MIB]);
    let length = head.len() + size + tail.len();
    let parts = stream::once(async move { bytes::Bytes::from(head) })
        .chain(stream::iter(0..1024).map(move |_| block.clone()))
        .chain(stream::once(async move { bytes::Bytes::from(tail) }))
        .map(Ok::<_, std::io::Error>);
    let sent = ada
        .request(Method::POST, "/api/collections/notes/records")
        .timeout(Duration::from_mins(5))
        .header("content-type", format!("multipart/form-data; boundary={boundary}"))
        .header("content-length", length)
        .body(reqwest::Body::wrap_stream(parts))
        .send()
        .await
        .unwrap();
    let status = sent.status();
    let note: Value = sent.json().await.unwrap();
    assert_eq!(status, 200, "{note}");
    let during = private_mib(app.pid());
    let path =
        format!("/api/files/notes/{}/{}", note["id"].as_str().unwrap(), note["attachments"][0].as_str().unwrap());
    let download = ada.request(Method::GET, &path).timeout(Duration::from_mins(5)).send().await.unwrap();
    assert_eq!(download.status(), 200);
    let mut stream = download.bytes_stream();
    let mut total = 0;
    while let Some(chunk) = stream.next().await {
        let chunk = chunk.unwrap();
        assert!(chunk.iter().all(|byte| *byte == 7));
        total += chunk.len();
    }
    assert_eq!(total, size);
    let after = private_mib(app.pid());
    assert!(during < before + 64 && after < before + 64, "{before} -> {during} -> {after} MiB");
    let range = ada.request(Method::GET, &path).header("range", "bytes=10-19").send().await.unwrap();
    assert_eq!(range.status(), 206);
    assert_eq!(range.bytes().await.unwrap().len(), 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_beyond_the_limit_is_refused_before_it_is_sent() {
    let app = TestApp::with("server.max_body_bytes = 1000\n").await;
    let ada = app.user("ada").await;
    let body = serde_json::json!({"title": "x".repeat(2_000)});
    let answer = ada.post("/api/collections/notes/records", body).await;
    assert_eq!(answer.status(), 413);
    assert_eq!(answer.json::<Value>().await.unwrap()["status"], 413);
    ada.note("small").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_goes_away_mid_upload_leaves_the_instance_free_to_sleep() {
    let app = TestApp::start().await;
    let ada = app.user("ada").await;
    ada.note("x").await;
    let address = app.base.trim_start_matches("http://").to_owned();
    let head = format!(
        "POST /api/collections/notes/records HTTP/1.1\r\nHost: x\r\nAuthorization: {}\r\n\
         Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n{{\"title\":",
        ada.token
    );
    let mut socket = tokio::net::TcpStream::connect(address).await.unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut socket, head.as_bytes()).await.unwrap();
    crate::support::eventually("it is in flight", async || (app.tenant(&ada.id)["in_flight"] == 1).then_some(())).await;
    drop(socket);
    crate::support::eventually("it is let go", async || (app.tenant(&ada.id)["in_flight"] == 0).then_some(())).await;
    app.put_to_sleep(&ada.id);
}
