//! Who may have an event stream, how many, and what each costs.

use futures_util::StreamExt;
use futures_util::stream;
use serde_json::Value;
use serde_json::json;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::support::TestApp;
use crate::support::eventually;
use crate::support::processes_in;
use crate::support::sse::Stream;

/// A stream on a bare socket, and its id.
async fn raw_stream(base: &str) -> (TcpStream, String) {
    let mut socket = TcpStream::connect(base.trim_start_matches("http://")).await.unwrap();
    socket.write_all(b"GET /api/realtime HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    let mut head = Vec::new();
    loop {
        let mut buffer = [0; 1024];
        let read = socket.read(&mut buffer).await.unwrap();
        assert!(read > 0, "{}", String::from_utf8_lossy(&head));
        head.extend_from_slice(&buffer[..read]);
        let text = String::from_utf8_lossy(&head);
        if let Some((_, rest)) = text.split_once("\nid:").or_else(|| text.split_once("id:"))
            && let Some((id, _)) = rest.split_once('\n')
            && text.contains("\n\n")
        {
            return (socket, id.to_owned());
        }
    }
}

async fn metric(app: &TestApp, name: &str) -> usize {
    let metrics = app.get("/metrics").await.text().await.unwrap();
    let value = metrics.lines().find_map(|line| line.strip_prefix(name));
    value.map_or(0, |value| value.trim().parse().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_are_those_of_pocketbase() {
    let app = TestApp::start().await;
    let (ada, bob) = (app.user("ada").await, app.user("bob").await);
    let stream = Stream::open(&app).await;
    let refused = async |token: Option<&str>, body: Value| {
        let answer = stream.call(token, &body).await;
        let status = answer.status().as_u16();
        let body: Value = answer.json().await.unwrap();
        (status, body["message"].as_str().unwrap().to_owned(), body["data"].clone())
    };
    let wrong = "Something went wrong while processing your request.";
    let (status, message, data) = refused(Some(&ada.token), json!({})).await;
    assert_eq!((status, message.as_str()), (400, wrong));
    assert_eq!(data, json!({"clientId": {"code": "validation_required", "message": "Cannot be blank."}}));
    let unknown = json!({"clientId": "x".repeat(40), "subscriptions": ["notes/*"]});
    assert_eq!(refused(Some(&ada.token), unknown).await.1, "Missing or invalid client id.");
    let many = json!({"clientId": stream.id, "subscriptions": vec!["a"; 1001]});
    assert_eq!(refused(Some(&ada.token), many).await.2["subscriptions"]["code"], "validation_length_too_long");
    let mistyped = json!({"clientId": stream.id, "subscriptions": 7});
    assert_eq!(refused(Some(&ada.token), mistyped).await.1, wrong);
    let good = json!({"clientId": stream.id, "subscriptions": ["notes/*"]});
    assert_eq!(refused(None, good.clone()).await.0, 401);
    assert_eq!(refused(Some("not a token"), good.clone()).await.0, 401);

    assert_eq!(stream.call(Some(&ada.token), &good).await.status(), 204);
    let (status, message, _) = refused(Some(&bob.token), good.clone()).await;
    assert_eq!(status, 403);
    assert_eq!(message, "The current and the previous request authorization don't match.");
    let sign_in = json!({"clientId": stream.id, "subscriptions": ["@oauth2"]});
    assert_eq!(refused(None, sign_in).await.0, 403);
    bob.note("Bob's").await;
    ada.note("Ada's").await;
    assert_eq!(stream.until("Ada's").await, ["Ada's"], "Bob's call changed nothing");
    drop(stream);
    eventually("the stream is forgotten", async || {
        (metric(&app, "pocketfleet_realtime_streams{state=\"attached\"} ").await == 0).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_that_nobody_subscribes_end_and_those_of_a_sign_in_too() {
    let app = TestApp::with("realtime.bind_timeout = \"500ms\"\nrealtime.sign_in_timeout = \"2s\"\n").await;
    let ada = app.user("ada").await;
    let unbound = Stream::open(&app).await;
    let (sign_in, bound) = (Stream::open(&app).await, Stream::open(&app).await);
    assert_eq!(sign_in.subscribe(None, &["@oauth2"]).await, 204);
    assert_eq!(sign_in.subscribe(None, &["@oauth2", "notes/*"]).await, 401);
    // Beside other topics it stays with us and changes nothing for them.
    assert_eq!(bound.subscribe(Some(&ada.token), &["@oauth2", "notes/*"]).await, 204);
    unbound.ended().await;
    sign_in.ended().await;
    ada.note("x").await;
    assert_eq!(bound.until("x").await, ["x"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_are_counted_per_user_per_address_and_in_all() {
    let app = TestApp::with("realtime.max_streams_per_user = 2\nrealtime.max_streams_per_ip = 4\n").await;
    let ada = app.user("ada").await;
    let first = Stream::subscribed(&app, &ada, &["notes/*"]).await;
    let _second = Stream::subscribed(&app, &ada, &["notes/*"]).await;
    let third = Stream::open(&app).await;
    assert_eq!(third.subscribe(Some(&ada.token), &["notes/*"]).await, 429);
    let _fourth = Stream::open(&app).await;
    let refused = app.get("/api/realtime").await;
    assert_eq!(refused.status(), 429);
    assert!(refused.headers().contains_key("retry-after"));
    drop(first);
    eventually("a place is free", async || {
        (third.subscribe(Some(&ada.token), &["notes/*"]).await == 204).then_some(())
    })
    .await;

    let app = TestApp::with("realtime.max_streams = 1\n").await;
    let _only = Stream::open(&app).await;
    assert_eq!(app.get("/api/realtime").await.status(), 503);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_does_not_read_is_cut_and_the_others_are_not_disturbed() {
    let app = TestApp::with("realtime.queue_events = 16\n").await;
    let ada = app.user("ada").await;
    let (socket, id) = raw_stream(&app.base).await;
    let body = json!({"clientId": id, "subscriptions": ["notes/*"]});
    assert_eq!(ada.post("/api/realtime", body).await.status(), 204);
    let reader = Stream::subscribed(&app, &ada, &["notes/*"]).await;
    let mut written = 0;
    while metric(&app, "pocketfleet_realtime_ended_total{reason=\"slow_reader\"} ").await == 0 {
        assert!(written < 2_000, "the slow reader is never cut");
        for _ in 0..10 {
            let note = json!({"title": format!("n{written}"), "body": "x".repeat(90_000)});
            assert_eq!(ada.post("/api/collections/notes/records", note).await.status(), 200);
            written += 1;
        }
    }
    ada.note("end").await;
    assert_eq!(reader.until("end").await.len(), written + 1);
    drop(socket);
}

fn resident_kib(pid: u32) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_parked_streams_need_no_instance_and_little_memory() {
    const STREAMS: usize = 1_000;
    let app = TestApp::with("realtime.max_streams_per_user = 500\nrealtime.max_streams_per_ip = 2000\n").await;
    let users = [app.user("ada").await, app.user("bob").await];
    let open = async |count: usize| -> Vec<(TcpStream, String)> {
        stream::iter(0..count).map(|_| raw_stream(&app.base)).buffer_unordered(50).collect().await
    };
    // What the first ones cost is not what one costs.
    drop(open(50).await);
    let before = resident_kib(app.pid());
    let streams = open(STREAMS).await;
    let calls = streams.iter().enumerate().map(|(at, (_, id))| {
        let user = &users[at % users.len()];
        user.post("/api/realtime", json!({"clientId": id, "subscriptions": ["notes/*"]}))
    });
    let answers: Vec<_> = stream::iter(calls).buffer_unordered(50).collect().await;
    assert!(answers.iter().all(|answer| answer.status() == 204));
    let parked = metric(&app, "pocketfleet_realtime_streams{state=\"parked\"} ").await;
    assert_eq!(parked, STREAMS);
    let instances = processes_in(&app.data()).into_iter().filter(|(_, line)| line.contains("--http=127.")).count();
    assert_eq!(instances, 1, "the global instance alone");
    let each = resident_kib(app.pid()).saturating_sub(before) / STREAMS;
    eprintln!("a parked stream with its connection: {each} KiB resident");
    assert!(each < 64, "{each} KiB for one parked stream");

    // One write of each wakes the two instances and reaches all of them.
    for user in &users {
        user.note("wake").await;
    }
    let told = stream::iter(streams).map(|(mut socket, _)| async move {
        let mut seen = Vec::new();
        while !String::from_utf8_lossy(&seen).contains("\"wake\"") {
            let mut buffer = [0; 2048];
            let read = socket.read(&mut buffer).await.unwrap();
            assert!(read > 0, "cut instead of told");
            seen.extend_from_slice(&buffer[..read]);
        }
    });
    let told: Vec<()> = told.buffer_unordered(STREAMS).collect().await;
    assert_eq!(told.len(), STREAMS);
}
