//! HTTP/2 with prior knowledge: ordinary clients get what HTTP/1 gives them, hostile ones get a bound.

use std::time::Duration;

use bytes::Bytes;
use frames::*;
use h2::client::SendRequest;
use hyper::Request;
use hyper::Response;
use hyper::StatusCode;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use crate::support::PATIENCE;
use crate::support::TestApp;
use crate::support::User;
use crate::support::eventually;

pub(crate) mod frames;

const NOTES: &str = "/api/collections/notes/records";

async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("not in time: {what}"))
}

/// A well-behaved client.
async fn client(base: &str) -> (SendRequest<Bytes>, JoinHandle<Result<(), h2::Error>>) {
    let stream = TcpStream::connect(base.trim_start_matches("http://")).await.unwrap();
    let (sender, connection) = h2::client::handshake(stream).await.unwrap();
    (sender, tokio::spawn(connection))
}

async fn send(sender: &SendRequest<Bytes>, request: Request<()>, body: Option<Bytes>) -> (Response<()>, Bytes) {
    let mut sender = within("room for a stream", sender.clone().ready()).await.unwrap();
    let (answer, mut upload) = sender.send_request(request, body.is_none()).unwrap();
    if let Some(body) = body {
        upload.send_data(body, true).unwrap();
    }
    let (parts, mut incoming) = within("an answer", answer).await.unwrap().into_parts();
    let mut all = Vec::new();
    while let Some(part) = within("a body", incoming.data()).await {
        let part = part.unwrap();
        incoming.flow_control().release_capacity(part.len()).unwrap();
        all.extend(part);
    }
    (Response::from_parts(parts, ()), all.into())
}

fn request(app: &TestApp, method: &str, path: &str, user: Option<&User>) -> Request<()> {
    let mut builder = Request::builder().method(method).uri(format!("{}{path}", app.base));
    if let Some(user) = user {
        builder = builder.header("authorization", &user.token).header("content-type", "application/json");
    }
    builder.body(()).unwrap()
}

/// Memory of a process that nobody shares, in MiB.
fn private_mib(pid: u32) -> usize {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let kib: usize = text
        .lines()
        .filter(|line| line.starts_with("Private_"))
        .map(|line| line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap())
        .sum();
    kib / 1024
}

#[tokio::test(flavor = "multi_thread")]
async fn one_connection_carries_many_requests_to_a_tenant() {
    let app = TestApp::start().await;
    let ada = app.user("ada").await;
    let (sender, _connection) = client(&app.base).await;
    let created: Vec<_> = (0..40)
        .map(|number| {
            let (sender, request) = (sender.clone(), request(&app, "POST", NOTES, Some(&ada)));
            let body = serde_json::json!({"title": format!("note {number:02}")}).to_string();
            tokio::spawn(async move { send(&sender, request, Some(body.into())).await })
        })
        .collect();
    for answer in created {
        let (answer, body) = answer.await.unwrap();
        assert_eq!(answer.status(), 200, "{body:?}");
        assert_eq!(answer.version(), hyper::Version::HTTP_2);
        assert!(answer.headers().get("connection").is_none() && answer.headers().contains_key("x-request-id"));
    }
    let (answer, body) = send(&sender, request(&app, "GET", &format!("{NOTES}?perPage=100"), Some(&ada)), None).await;
    assert_eq!(answer.status(), 200);
    assert_eq!(serde_json::from_slice::<Value>(&body).unwrap()["items"].as_array().unwrap().len(), 40);
    assert_eq!(ada.titles().await.len(), 40, "HTTP/1 sees the same");
    assert_eq!(send(&sender, request(&app, "GET", NOTES, None), None).await.0.status(), 401);
    assert_eq!(send(&sender, request(&app, "HEAD", "/health", None), None).await.0.status(), 200);
    let (answer, body) = send(&sender, request(&app, "GET", "/api/sql", Some(&ada)), None).await;
    assert_eq!(answer.status(), StatusCode::NOT_FOUND);
    assert_eq!(serde_json::from_slice::<Value>(&body).unwrap()["status"], 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_and_a_download_larger_than_every_window_pass() {
    let app = TestApp::start().await;
    let ada = app.user("ada").await;
    ada.note("warm").await;
    let size = 8 << 20;
    let boundary = "xxxxboundaryxxxx";
    let mut body = format!(
        "--{boundary}\r\nContent-Disposition: form-data; name=\"title\"\r\n\r\nbig\r\n--{boundary}\r\n\
         Content-Disposition: form-data; name=\"attachments\"; filename=\"big.bin\"\r\n\
         Content-Type: application/octet-stream\r\n\r\n"
    )
    .into_bytes();
    body.extend(vec![7_u8; size]);
    body.extend(format!("\r\n--{boundary}--\r\n").as_bytes());
    let mut upload = request(&app, "POST", NOTES, Some(&ada));
    let form = format!("multipart/form-data; boundary={boundary}");
    upload.headers_mut().insert("content-type", form.parse().unwrap());
    let (sender, _connection) = client(&app.base).await;
    let (answer, note) = send(&sender, upload, Some(body.into())).await;
    assert_eq!(answer.status(), 200, "{note:?}");
    let note: Value = serde_json::from_slice(&note).unwrap();
    let path =
        format!("/api/files/notes/{}/{}", note["id"].as_str().unwrap(), note["attachments"][0].as_str().unwrap());
    let (answer, file) = send(&sender, request(&app, "GET", &path, Some(&ada)), None).await;
    assert_eq!((answer.status().as_u16(), file.len()), (200, size));
    assert!(file.iter().all(|byte| *byte == 7));
}

/// What it is, the status that is right, and its lines.
type Head<'a> = (&'a str, u16, Vec<(&'a str, &'a str)>);

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_could_be_read_in_two_ways_is_refused() {
    let app = TestApp::start().await;
    let base = [(":method", "GET"), (":scheme", "http"), (":path", "/health"), (":authority", "x")];
    let with = |more: &[(&'static str, &'static str)]| [&base[..], more].concat();
    let but = |name: &str, value: &'static str| base.map(|line| if line.0 == name { (line.0, value) } else { line });
    let without = |name: &str| base.into_iter().filter(|line| line.0 != name).collect::<Vec<_>>();
    // 0 is a reset for a protocol error, of the stream or the connection.
    let cases: Vec<Head<'_>> = vec![
        ("control", 200, base.to_vec()),
        ("Host alone", 200, [&without(":authority")[..], &[("host", "x")]].concat()),
        ("Host that agrees", 200, with(&[("host", "x")])),
        ("Host that differs", 400, with(&[("host", "y")])),
        ("two Hosts", 400, with(&[("host", "x"), ("host", "x")])),
        ("no host at all", 400, without(":authority")),
        ("user info", 400, but(":authority", "u@x").to_vec()),
        ("scheme ftp", 400, but(":scheme", "ftp").to_vec()),
        ("dot segment", 400, but(":path", "/../x").to_vec()),
        ("double slash", 400, but(":path", "//x").to_vec()),
        ("encoded slash", 400, but(":path", "/a%2fb").to_vec()),
        ("asterisk", 400, [&but(":path", "*")[1..], &[(":method", "OPTIONS")]].concat()),
        ("TRACE", 405, but(":method", "TRACE").to_vec()),
        ("lower-case method", 405, but(":method", "get").to_vec()),
        ("CONNECT", 405, vec![(":method", "CONNECT"), (":authority", "x:443")]),
        ("two tokens", 400, with(&[("authorization", "a"), ("authorization", "a")])),
        ("coded body", 415, with(&[("content-encoding", "gzip")])),
        ("two lengths", 400, with(&[("content-length", "0"), ("content-length", "0")])),
        ("extended CONNECT", 0, [&but(":method", "CONNECT")[..], &[(":protocol", "websocket")]].concat()),
        ("length without a body", 0, with(&[("content-length", "5")])),
        ("length that is none", 0, with(&[("content-length", "+1")])),
        ("Connection", 0, with(&[("connection", "close")])),
        ("Transfer-Encoding", 0, with(&[("transfer-encoding", "chunked")])),
        ("Upgrade", 0, with(&[("upgrade", "h2c")])),
        ("Keep-Alive", 0, with(&[("keep-alive", "timeout=5")])),
        ("Proxy-Connection", 0, with(&[("proxy-connection", "close")])),
        ("TE", 0, with(&[("te", "gzip")])),
        ("upper case", 0, with(&[("X-Upper", "1")])),
        ("space in a name", 0, with(&[("x upper", "1")])),
        ("line break in a value", 0, with(&[("x", "a\r\nb: c")])),
        ("NUL in a value", 0, with(&[("x", "a\0b")])),
        ("no path", 0, without(":path")),
        ("empty path", 0, but(":path", "").to_vec()),
        ("no method", 0, without(":method")),
        ("no scheme", 0, without(":scheme")),
        ("two paths", 0, with(&[(":path", "/ready")])),
        ("path after a header", 0, [&[("x", "y")], &base[..]].concat()),
        ("unknown pseudo-header", 0, with(&[(":status", "200")])),
        ("path that is no path", 0, but(":path", "health").to_vec()),
    ];
    let count = cases.len();
    for (what, expected, lines) in cases {
        let mut raw = Raw::open(&app.base, &[]).await;
        raw.send(&head(1, END_STREAM, &lines)).await;
        let answer = raw.answer(1).await.unwrap_or_else(|| panic!("{what}: closed without a word"));
        if expected == 0 {
            assert!(answer.kind != HEADERS || answer.status() == 400, "{what}: {answer:?}");
            assert!(answer.kind == HEADERS || answer.reason() == PROTOCOL_ERROR, "{what}: {answer:?}");
        } else {
            assert_eq!((answer.kind, answer.status()), (HEADERS, expected), "{what}");
        }
    }
    let mut short = Raw::open(&app.base, &[]).await;
    let post = [(":method", "POST"), (":scheme", "http"), (":path", "/auth/login"), (":authority", "x")];
    short.send(&head(1, 0, &[&post[..], &[("content-length", "9")]].concat())).await;
    short.send(&frame(DATA, END_STREAM, 1, b"short")).await;
    let answer = short.answer(1).await.unwrap();
    assert!(answer.kind == RST_STREAM || answer.status() == 400, "{answer:?}");
    eprintln!("{} HTTP/2 requests", count + 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn floods_are_bounded_and_disturb_nobody() {
    let app = TestApp::with("server.body_idle_timeout = \"2s\"\n").await;
    let ada = app.user("ada").await;
    ada.note("x").await;
    let before = private_mib(app.pid());

    let mut reset = Raw::open(&app.base, &[]).await;
    for number in 0..5_000 {
        let stream = number * 2 + 1;
        let mut bytes = get(stream, NOTES, &[("authorization", &ada.token)]);
        bytes.extend(frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes()));
        if !reset.send(&bytes).await {
            break;
        }
    }
    let end = reset.until(|frame| frame.kind == GOAWAY).await;
    assert!(end.is_none_or(|end| end.reason() == ENHANCE_YOUR_CALM), "rapid reset");

    let mut endless = Raw::open(&app.base, &[]).await;
    let start = fields(&[(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "x")]);
    endless.send(&frame(HEADERS, END_STREAM, 1, &start)).await;
    let more = frame(CONTINUATION, 0, 1, &field("x-more", &"y".repeat(16_000)));
    assert!(endless.flood(&more, 2_000).await < 2_000, "CONTINUATION without end");

    let mut empty = Raw::open(&app.base, &[]).await;
    let post = [(":method", "POST"), (":scheme", "http"), (":path", "/auth/login"), (":authority", "x")];
    empty.send(&head(1, 0, &post)).await;
    let many = frame(DATA, 0, 1, b"").repeat(1_000);
    assert!(empty.flood(&many, 10_000).await < 10_000, "empty DATA");

    for (what, one) in [("SETTINGS", frame(SETTINGS, 0, 0, &[])), ("PING", frame(PING, 0, 0, &[7; 8]))] {
        let mut deaf = Raw::open(&app.base, &[]).await;
        // Nothing is read, so the acknowledgements have nowhere to go.
        assert!(deaf.flood(&one.repeat(1_000), 100_000).await < 100_000, "{what} to a client that does not read");
    }

    let mut bomb = Raw::open(&app.base, &[]).await;
    let mut block = fields(&[(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "x")]);
    block.push(0x40);
    block.extend(&field("x-bomb", &"z".repeat(3_000))[1..]);
    block.extend(vec![0xbe; 12_000]);
    bomb.send(&frame(HEADERS, END_STREAM | END_HEADERS, 1, &block)).await;
    let answer = bomb.answer(1).await;
    assert!(answer.as_ref().is_none_or(|answer| answer.kind != HEADERS || answer.status() == 431), "{answer:?}");

    assert_eq!(ada.titles().await, ["x"], "others are served");
    let after = private_mib(app.pid());
    assert!(after < before + 64, "{before} -> {after} MiB");
    eventually("nothing is left in flight", async || (app.tenant(&ada.id)["in_flight"] == 0).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_given_up_after_they_began_end_the_connection_in_the_end() {
    let app = TestApp::start().await;
    let ada = app.user("ada").await;
    ada.note("x").await;
    let mut raw = Raw::open(&app.base, &[]).await;
    let mut open = true;
    for number in 0..3_000 {
        let stream = number * 2 + 1;
        // The head of one that is let run shows that those before were taken up.
        let login = [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", "/auth/login"),
            (":authority", "x"),
            ("content-type", "application/json"),
            ("content-length", "100"),
        ];
        open = raw.send(&head(stream, 0, &login)).await
            && (number % 10 != 0 || {
                raw.send(&frame(PING, 0, 0, &[1; 8])).await;
                raw.until(|frame| frame.kind == PING || frame.kind == GOAWAY).await.is_some_and(|f| f.kind == PING)
            })
            && raw.send(&frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes())).await;
        if !open {
            break;
        }
    }
    assert!(!open, "three thousand requests were begun and given up");
    ada.titles().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_is_not_taken_is_given_up_and_the_instance_let_go() {
    let app = TestApp::with("server.body_idle_timeout = \"700ms\"\n").await;
    let ada = app.user("ada").await;
    for number in 0..5 {
        ada.note(&format!("{number}{}", "long ".repeat(39))).await;
    }
    // An initial window of nothing, and no window ever.
    let mut raw = Raw::open(&app.base, &[(4, 0)]).await;
    raw.send(&get(1, NOTES, &[("authorization", &ada.token)])).await;
    assert_eq!(raw.answer(1).await.unwrap().status(), 200);
    let end = raw.until(|frame| frame.kind == RST_STREAM).await;
    assert_eq!(end.map(|frame| frame.stream), Some(1));
    eventually("the instance is let go", async || (app.tenant(&ada.id)["in_flight"] == 0).then_some(())).await;
    // The connection itself goes on.
    raw.send(&get(3, "/nowhere", &[])).await;
    assert_eq!(raw.answer(3).await.unwrap().status(), 404);

    // A window for the beginning, and none for the rest.
    let mut raw = Raw::open(&app.base, &[(4, 10)]).await;
    raw.send(&get(1, NOTES, &[("authorization", &ada.token)])).await;
    let end = raw.until(|frame| frame.kind == RST_STREAM || frame.kind == GOAWAY).await;
    assert_eq!(end.map(|frame| (frame.kind, frame.stream)), Some((RST_STREAM, 1)));
    eventually("the instance is let go", async || (app.tenant(&ada.id)["in_flight"] == 0).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_to_head_has_the_length_of_the_other_and_no_body() {
    let app = TestApp::start().await;
    let ada = app.user("ada").await;
    ada.note("x").await;
    let (sender, _connection) = client(&app.base).await;
    for (path, user, status) in [(NOTES, Some(&ada), 200), (NOTES, None, 401), ("/nowhere", None, 404)] {
        let (answer, body) = send(&sender, request(&app, "HEAD", path, user), None).await;
        assert_eq!((answer.status().as_u16(), body.len()), (status, 0), "{path}");
        let get = send(&sender, request(&app, "GET", path, user), None).await.1;
        if let Some(length) = answer.headers().get("content-length") {
            assert_eq!(length.to_str().unwrap(), get.len().to_string(), "{path}");
        } else {
            assert_eq!(status, 200, "only an instance may keep the length to itself");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dripped_preface_and_an_idle_connection_are_closed() {
    let app = TestApp::with("server.header_timeout = \"500ms\"\n").await;
    let mut drip = Raw::connect(&app.base).await;
    let mut tick = tokio::time::interval(Duration::from_millis(50));
    let mut sent = 0;
    let closed = within("the drip ends", async {
        for byte in &PREFACE[..PREFACE.len() - 1] {
            tick.tick().await;
            if !drip.send(&[*byte]).await {
                return true;
            }
            sent += 1;
        }
        drip.next().await.is_none()
    });
    assert!(closed.await);
    let mut idle = Raw::open(&app.base, &[]).await;
    let end = idle.until(|frame| frame.kind == GOAWAY).await.expect("a goodbye");
    assert_eq!(end.reason(), 0);
    assert!(idle.until(|_| false).await.is_none(), "closed after it");
}

#[tokio::test(flavor = "multi_thread")]
async fn shutdown_says_goodbye_and_lets_a_running_request_finish() {
    let mut app = TestApp::start().await;
    let mut raw = Raw::open(&app.base, &[]).await;
    let login = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", "/auth/login"),
        (":authority", "x"),
        ("content-type", "application/json"),
    ];
    raw.send(&head(1, 0, &login)).await;
    raw.send(&frame(PING, 0, 0, &[1; 8])).await;
    raw.until(|frame| frame.kind == PING).await.expect("the request has begun");
    crate::support::signal(i32::try_from(app.pid()).unwrap(), "TERM");
    raw.until(|frame| frame.kind == GOAWAY).await.expect("a goodbye");
    raw.send(&frame(DATA, END_STREAM, 1, b"{}")).await;
    let answer = raw.until(|frame| frame.kind == HEADERS).await.expect("an answer");
    assert_eq!(answer.status(), 400);
    assert!(app.ended().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn switched_off_it_is_a_malformed_request() {
    let app = TestApp::with("server.http2 = false\n").await;
    let mut raw = Raw::open(&app.base, &[]).await;
    assert_eq!(raw.next().await, None, "closed without a word");
    assert_eq!(app.get("/health").await.status(), 200);
}
