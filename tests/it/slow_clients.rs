//! Clients that are slow on purpose: each is cut in time, holds little, and others notice nothing.

use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream;
use reqwest::Method;
use serde_json::Value;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpSocket;
use tokio::net::TcpStream;

use crate::support::PATIENCE;
use crate::support::TestApp;
use crate::support::User;
use crate::support::eventually;

const NOTES: &str = "/api/collections/notes/records";

async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("not in time: {what}"))
}

async fn connect(app: &TestApp) -> TcpStream {
    TcpStream::connect(app.base.trim_start_matches("http://")).await.unwrap()
}

/// Reads until the server closes.
async fn closed(stream: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    let _ = within("the server closes", stream.read_to_end(&mut answer)).await;
    String::from_utf8_lossy(&answer).into_owned()
}

/// Writes byte by byte, slowly, until the server had enough; what it said.
async fn drip(stream: TcpStream, bytes: &[u8], every: Duration) -> String {
    let (mut read, mut write) = stream.into_split();
    let dripping = async {
        let mut tick = tokio::time::interval(every);
        for byte in bytes.iter().cycle() {
            tick.tick().await;
            if write.write_all(&[*byte]).await.is_err() {
                break;
            }
        }
        std::future::pending::<()>().await;
    };
    let reading = async {
        let mut answer = Vec::new();
        let _ = read.read_to_end(&mut answer).await;
        String::from_utf8_lossy(&answer).into_owned()
    };
    within("the drip is cut", async {
        tokio::select! { () = dripping => unreachable!(), answer = reading => answer }
    })
    .await
}

/// A note with a file of this size; the path of the file.
async fn file(ada: &User, size: usize) -> String {
    let boundary = "xxxxboundaryxxxx";
    let mut body = format!(
        "--{boundary}\r\nContent-Disposition: form-data; name=\"title\"\r\n\r\nbig\r\n--{boundary}\r\n\
         Content-Disposition: form-data; name=\"attachments\"; filename=\"big.bin\"\r\n\
         Content-Type: application/octet-stream\r\n\r\n"
    )
    .into_bytes();
    body.extend(vec![7_u8; size]);
    body.extend(format!("\r\n--{boundary}--\r\n").as_bytes());
    let kind = format!("multipart/form-data; boundary={boundary}");
    let answer = ada.request(Method::POST, NOTES).header("content-type", kind).body(body).send().await.unwrap();
    let note: serde_json::Value = answer.json().await.unwrap();
    format!("/api/files/notes/{}/{}", note["id"].as_str().unwrap(), note["attachments"][0].as_str().unwrap())
}

fn resident_mib(pid: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.split_whitespace().next().unwrap().parse::<u64>().unwrap() / 1024
}

#[tokio::test(flavor = "multi_thread")]
async fn silent_dripping_and_idle_heads_are_closed() {
    let app = TestApp::with("server.header_timeout = \"500ms\"\n").await;
    let silent = async { closed(&mut connect(&app).await).await };
    let one_byte = async {
        let mut stream = connect(&app).await;
        stream.write_all(b"P").await.unwrap();
        closed(&mut stream).await
    };
    let head = async {
        drip(
            connect(&app).await,
            b"GET / HTTP/1.1\r\nHost: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
            Duration::from_millis(20),
        )
        .await
    };
    let many_headers = async {
        let stream = connect(&app).await;
        drip(
            stream,
            b"GET / HTTP/1.1\r\nHost: x\r\nX: 1\r\nX: 2\r\nX: 3\r\nX: 4\r\nX: 5\r\n",
            Duration::from_millis(20),
        )
        .await
    };
    let idle = async {
        let mut stream = connect(&app).await;
        stream.write_all(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        closed(&mut stream).await
    };
    let (silent, one_byte, head, many_headers, idle) = tokio::join!(silent, one_byte, head, many_headers, idle);
    for (what, said) in [("silent", silent), ("one byte", one_byte), ("head", head), ("headers", many_headers)] {
        assert!(!said.contains(" 200 ") && !said.contains(" 50"), "{what}: {said}");
    }
    assert!(idle.starts_with("HTTP/1.1 200 ") && idle.matches("HTTP/1.1").count() == 1, "{idle}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_below_the_least_rate_is_cut_and_one_above_it_is_not() {
    let app = TestApp::with("server.body_idle_timeout = \"1s\"\nserver.min_body_rate = 200\n").await;
    let ada = app.user("ada").await;
    ada.note("x").await;
    let mut stream = connect(&app).await;
    let head = format!(
        "POST {NOTES} HTTP/1.1\r\nHost: x\r\nAuthorization: {}\r\nContent-Type: application/json\r\n\
         Content-Length: 100000\r\n\r\n",
        ada.token
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    // A byte every 20 ms is never idle, and 50 bytes a second.
    let answer = drip(stream, b" ", Duration::from_millis(20)).await;
    assert!(answer.starts_with("HTTP/1.1 400 ") || answer.is_empty(), "{answer}");
    eventually("the instance is let go", async || (app.tenant(&ada.id)["in_flight"] == 0).then_some(())).await;

    let body = serde_json::json!({"title": "slow but steady", "body": "x".repeat(4_000)}).to_string();
    let pieces: Vec<bytes::Bytes> = body.as_bytes().chunks(100).map(bytes::Bytes::copy_from_slice).collect();
    let ticks = stream::unfold(tokio::time::interval(Duration::from_millis(50)), async |mut tick| {
        tick.tick().await;
        Some(((), tick))
    });
    let steady = ticks.zip(stream::iter(pieces)).map(|((), piece)| Ok::<_, std::io::Error>(piece));
    let answer = ada
        .request(Method::POST, NOTES)
        .header("content-type", "application/json")
        .body(reqwest::Body::wrap_stream(steady))
        .send()
        .await
        .unwrap();
    assert_eq!(answer.status(), 200, "2000 bytes a second for two windows");
    assert_eq!(ada.titles().await.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_that_take_nothing_or_a_drip_are_cut_and_hold_no_memory() {
    let app = TestApp::with("server.body_idle_timeout = \"1s\"\nserver.min_write_rate = 65536\n").await;
    let ada = app.user("ada").await;
    let path = file(&ada, 32 << 20).await;
    let before = resident_mib(app.pid());
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: {}\r\n\r\n", ada.token);
    let mut deaf = Vec::new();
    for _ in 0..40 {
        // A small buffer, so that little is taken without being read.
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        let mut stream = socket.connect(app.base.trim_start_matches("http://").parse().unwrap()).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        deaf.push(stream);
    }
    // Every other one reads a byte now and then.
    let dripping = async {
        let mut tick = tokio::time::interval(Duration::from_millis(100));
        loop {
            tick.tick().await;
            for stream in deaf.iter_mut().step_by(2) {
                let _ = stream.try_read(&mut [0; 1]);
            }
        }
    };
    let others = async {
        eventually("they are at it", async || (app.tenant(&ada.id)["in_flight"].as_u64() > Some(20)).then_some(()))
            .await;
        assert_eq!(ada.titles().await, ["big"], "others are served meanwhile");
        let during = resident_mib(app.pid());
        assert!(during < before + 64, "{before} -> {during} MiB");
        eventually("all are cut", async || (app.tenant(&ada.id)["in_flight"] == 0).then_some(())).await;
    };
    tokio::select! { () = dripping => unreachable!(), () = others => {} }
    let download = ada.get(&path).await.bytes().await.unwrap();
    assert_eq!(download.len(), 32 << 20, "who reads gets all");
}

const ORDINARY: &str = "0";
const BATCH: &str = "3";

/// How the kernel schedules a thread: the 41st field of its `stat` (proc(5)).
fn policy(stat: &str) -> Option<String> {
    stat.rsplit(") ").next()?.split(' ').nth(38).map(str::to_owned)
}

fn policy_of_the_worker(app: &TestApp) -> Option<String> {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", app.pid())).unwrap();
    let stats = tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("stat")).ok());
    policy(&stats.into_iter().find(|stat| stat.contains("(gateway-0)"))?)
}

#[tokio::test]
async fn a_worker_with_much_to_do_lets_others_finish_and_with_little_takes_its_turn_at_once() {
    let app = TestApp::with("server.workers = 1\n").await;
    let ada = app.user("ada").await;
    let ask = || async { ada.request(Method::GET, NOTES).send().await.unwrap().status() };
    assert!(ask().await.is_success());
    assert_eq!(policy_of_the_worker(&app).as_deref(), Some(ORDINARY));
    let deadline = std::time::Instant::now() + PATIENCE;
    let mut crowd = stream::repeat_with(ask).buffer_unordered(16).enumerate();
    while let Some((number, status)) = crowd.next().await {
        assert!(status.is_success(), "{status}");
        if number % 16 == 0 && policy_of_the_worker(&app).as_deref() == Some(BATCH) {
            break;
        }
        assert!(std::time::Instant::now() < deadline, "an ordinary thread under load");
    }
    drop(crowd);
    eventually("an ordinary thread again", async || {
        let status = ask().await;
        assert!(status.is_success(), "{status}");
        (policy_of_the_worker(&app).as_deref() == Some(ORDINARY)).then_some(())
    })
    .await;
    let instance = app.tenant(&ada.id)["pid"].as_i64().unwrap();
    let stat = std::fs::read_to_string(format!("/proc/{instance}/stat")).unwrap();
    assert_eq!(policy(&stat).as_deref(), Some(ORDINARY), "instances inherit nothing");
}

#[tokio::test]
async fn those_who_only_wait_are_no_crowd() {
    let app = TestApp::with("server.workers = 1\n").await;
    let ada = app.user("ada").await;
    let first: Value = ada.get("/api/v1/events/poll?topics=system").await.json().await.unwrap();
    let path = format!("/api/v1/events/poll?topics=system&timeout=55&since={}", first["next"].as_str().unwrap());
    let polls = futures_util::future::join_all((0..16).map(|_| ada.get(&path)));
    let alone = async {
        for _ in 0..600 {
            assert!(ada.request(Method::GET, NOTES).send().await.unwrap().status().is_success());
            assert_eq!(policy_of_the_worker(&app).as_deref(), Some(ORDINARY), "one request at a time");
        }
    };
    tokio::select! {
        _ = polls => panic!("nothing was said"),
        () = alone => {}
    }
}
