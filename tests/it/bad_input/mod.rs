//! The list of bad inputs for HTTP, paths and identity (items 1 to 64), against the whole product over plain sockets;
//! `account` names the tests of the others (65 to 90), `hosting` has those that are nowhere else.
//!
//! Each gets an answer below 500 that tells nothing of the inside, wakes no instance and changes nothing; where nobody
//! can tell where the next request would begin, the connection ends.

use futures_util::StreamExt;
use std::collections::BTreeSet;
use std::time::Duration;
use std::time::SystemTime;

use pocketfleet::pocketbase::database;
use pocketfleet::pocketbase::token::Signer;
use reqwest::Method;
use rows::Row;
use serde_json::Value;
use serde_json::json;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::http2::frames;
use crate::support::PATIENCE;
use crate::support::TestApp;
use crate::support::User;
use crate::support::raw::status;
use crate::tokens::key;

mod account;
mod hosting;
mod rows;

const NOTES: &str = "/api/collections/notes/records";
/// What no answer may tell.
const INSIDE: [&str; 10] =
    ["hyper", "panicked", "tokio", "axum", "serde", ".rs:", "/src/", "goroutine", "SQLITE", "private note"];

/// Sends bytes; the answer, and whether the server closed after it.
async fn ask(base: &str, bytes: &[u8], end_after: bool) -> (String, bool) {
    let mut stream = TcpStream::connect(base.trim_start_matches("http://")).await.unwrap();
    // The server may answer and close before all is written; what it said is what counts.
    let _ = tokio::time::timeout(PATIENCE, stream.write_all(bytes)).await;
    if end_after {
        let _ = stream.shutdown().await;
    }
    let (mut answer, mut buffer) = (Vec::new(), vec![0; 65_536]);
    loop {
        let quiet = if is_whole(&answer) { Duration::from_millis(100) } else { PATIENCE };
        match tokio::time::timeout(quiet, stream.read(&mut buffer)).await {
            Ok(Ok(count)) if count > 0 => answer.extend_from_slice(&buffer[..count]),
            Ok(_) => return (String::from_utf8_lossy(&answer).into_owned(), true),
            Err(_) => return (String::from_utf8_lossy(&answer).into_owned(), false),
        }
    }
}

fn is_whole(answer: &[u8]) -> bool {
    let text = String::from_utf8_lossy(answer);
    let Some((head, body)) = text.split_once("\r\n\r\n") else { return false };
    let head = head.to_ascii_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse::<usize>().ok());
    length.map_or_else(|| body.ends_with("0\r\n\r\n"), |length| body.len() >= length)
}

/// What is wrong with the answer to a row, if anything.
async fn fault(app: &TestApp, row: &Row, token: &str) -> Option<String> {
    let mut bytes = row.bytes.clone();
    while let Some(at) = bytes.windows(5).position(|window| window == b"TOKEN") {
        bytes.splice(at..at + 5, token.bytes());
    }
    let (answer, closed) = ask(&app.base, &bytes, false).await;
    let found = status(&answer);
    let text = answer.to_ascii_lowercase();
    let mut wrong = Vec::new();
    if !row.fine.contains(&found) {
        wrong.push(format!("status {found}, fine is {:?}", row.fine));
    }
    if row.closes && !closed {
        wrong.push("the connection stays open".to_owned());
    }
    if let Some(leak) = INSIDE.iter().find(|leak| text.contains(&leak.to_ascii_lowercase())) {
        wrong.push(format!("tells of {leak}"));
    }
    if !token.is_empty() && answer.contains(token) || text.contains(&app.data().display().to_string()) {
        wrong.push("tells a secret".to_owned());
    }
    (!wrong.is_empty()).then(|| format!("{} {}: {}", row.number, row.what, wrong.join("; ")))
}

fn starts(app: &TestApp) -> Value {
    app.cli_json(&["status"])["fleet"]["starts"].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_input_gets_a_4xx_wakes_nobody_and_changes_nothing() {
    // Some rows stop half-way and wait for what becomes of them.
    let app = TestApp::with("server.header_timeout = \"5s\"\nserver.body_idle_timeout = \"5s\"\n").await;
    let ada = app.user("ada").await;
    ada.note("private note").await;
    app.put_to_sleep(&ada.id);
    let before = starts(&app);
    let rows = rows::all();
    let numbers: BTreeSet<u8> = rows.iter().map(|row| row.number).collect();
    // Most of the time goes into waiting for what does not come.
    let looks = rows.iter().map(|row| fault(&app, row, &ada.token));
    let faults: Vec<_> = futures_util::stream::iter(looks).buffer_unordered(8).collect().await;
    let faults: Vec<_> = faults.into_iter().flatten().collect();
    assert!(faults.is_empty(), "{} of {}:\n{}", faults.len(), rows.len(), faults.join("\n"));
    assert_eq!(starts(&app), before, "an instance was woken");
    assert_eq!(app.tenant(&ada.id)["state"], "asleep");
    assert_eq!(ada.titles().await, ["private note"]);
    eprintln!("{} requests for {} items of the list, without an instance", rows.len(), numbers.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_follows_a_request_is_the_next_request_or_nothing() {
    let app = TestApp::start().await;
    let inner = "GET /api/settings HTTP/1.1\r\nHost: x\r\n\r\n";
    // 32: a request within a body is a body, and one after it a request.
    let two = format!(
        "POST /auth/login HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{inner}\
         GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        inner.len()
    );
    let (answer, closed) = ask(&app.base, two.as_bytes(), false).await;
    let places: Vec<_> = answer.match_indices("HTTP/1.1 ").map(|(at, _)| status(&answer[at..])).collect();
    assert_eq!((places, closed), (vec![400, 200], true), "{answer}");
    // A refused body is not read as requests.
    let large = format!("POST {NOTES} HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n{}", inner.repeat(5));
    let (answer, closed) = ask(&app.base, large.as_bytes(), false).await;
    assert_eq!((answer.matches("HTTP/1.1 ").count(), status(&answer), closed), (1, 413, true), "{answer}");
    // 35: shorter than said.
    let short =
        "POST /auth/login HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 50\r\n\r\n{}";
    let (answer, closed) = ask(&app.base, short.as_bytes(), true).await;
    assert!(matches!(status(&answer), 0 | 400) && closed, "{answer}");
    // 33: a chunk that is larger than anything.
    let chunk = "POST /auth/login HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n\
                 Transfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n{}\r\n0\r\n\r\n";
    let (answer, closed) = ask(&app.base, chunk.as_bytes(), true).await;
    assert!(matches!(status(&answer), 0 | 400) && closed, "{answer}");
    // 26: the preface is HTTP/2, whose first frame is SETTINGS.
    let mut raw = frames::Raw::open(&app.base, &[]).await;
    assert_eq!(raw.next().await.unwrap().kind, frames::SETTINGS);
    // A line end without CR is accepted by everybody, and rewritten: the request has one reading.
    let (answer, _) = ask(&app.base, b"GET /health HTTP/1.1\nHost: x\nConnection: close\n\n", false).await;
    assert_eq!(status(&answer), 200);
}

/// Item, what it is, content type, body, and the statuses that are fine.
type Body<'a> = (u8, &'a str, &'a str, Vec<u8>, &'a [u16]);

#[tokio::test(flavor = "multi_thread")]
async fn bad_bodies_for_an_instance_are_its_4xx_or_harmless() {
    let app = TestApp::start().await;
    let ada = app.user("ada").await;
    let note = ada.note("private note").await;
    let deep = format!(r#"{{"title":"x","tags":{}{}}}"#, "[".repeat(100_000), "]".repeat(100_000));
    let parts = "--b\r\nContent-Disposition: form-data; name=\"title\"\r\n\r\nmany\r\n".repeat(10_000) + "--b--\r\n";
    let json = "application/json";
    let cases: Vec<Body<'_>> = vec![
        (37, "100,000 deep", json, deep.into(), &[400]),
        // The last one counts, as in every JSON reader of Go.
        (38, "a key twice", json, br#"{"title":"one","title":"two"}"#.to_vec(), &[200, 400]),
        (39, "1e999", json, br#"{"title":1e999}"#.to_vec(), &[400]),
        (39, "NaN", json, br#"{"title":NaN}"#.to_vec(), &[400]),
        // Replaced by U+FFFD.
        (39, "lone surrogate", json, br#"{"title":"\ud800"}"#.to_vec(), &[200, 400]),
        (39, "not UTF-8", json, b"{\"title\":\"\xff\"}".to_vec(), &[200, 400]),
        (40, "text/plain", "text/plain", br#"{"title":"plain"}"#.to_vec(), &[400]),
        (41, "no boundary", "multipart/form-data", b"--b\r\n\r\n--b--\r\n".to_vec(), &[400]),
        (41, "10,000 parts", "multipart/form-data; boundary=b", parts.into(), &[200, 400]),
    ];
    let count = cases.len();
    for (number, what, kind, body, fine) in cases {
        let answer = ada.request(Method::POST, NOTES).header("content-type", kind).body(body).send().await.unwrap();
        let status = answer.status().as_u16();
        let text = answer.text().await.unwrap();
        assert!(fine.contains(&status), "{number} {what}: {status} {text}");
        assert!(!text.contains("goroutine") && !text.contains("private note"), "{number} {what}: {text}");
    }
    // 57: a method is what the request line says.
    for path in [format!("{NOTES}/{note}"), format!("{NOTES}/{note}?_method=DELETE")] {
        let mut request = ada.request(Method::GET, &path);
        for name in ["x-http-method-override", "x-http-method", "x-method-override"] {
            request = request.header(name, "DELETE");
        }
        assert_eq!(request.send().await.unwrap().status(), 200);
    }
    // 34: a long chunk extension says nothing to an instance and breaks nothing.
    let chunk = format!(
        "POST {NOTES} HTTP/1.1\r\nHost: x\r\nAuthorization: {}\r\nContent-Type: application/json\r\n\
         Transfer-Encoding: chunked\r\n\r\n2;{}\r\n{{}}\r\n0\r\n\r\n",
        ada.token,
        "e".repeat(20_000)
    );
    for broken in [chunk, "fffffffffffffffff\r\n".to_owned(), "2\n{}\n0\n\n".to_owned()].map(|text| {
        if text.starts_with("POST") {
            return text;
        }
        let token = &ada.token;
        format!(
            "POST {NOTES} HTTP/1.1\r\nHost: x\r\nAuthorization: {token}\r\nTransfer-Encoding: chunked\r\n\r\n{text}"
        )
    }) {
        let (answer, _) = ask(&app.base, broken.as_bytes(), false).await;
        assert!(matches!(status(&answer), 400), "{answer}");
    }
    let short = format!(
        "POST {NOTES} HTTP/1.1\r\nHost: x\r\nAuthorization: {}\r\nContent-Type: application/json\r\nContent-Length: 50\r\n\r\n{{",
        ada.token
    );
    let (answer, _) = ask(&app.base, short.as_bytes(), true).await;
    assert!(matches!(status(&answer), 0 | 400), "{answer}");
    assert!(ada.titles().await.contains(&"private note".to_owned()));
    eprintln!("{} requests for an instance", count + 6);
}

/// Status of a list request with these headers.
async fn list(app: &TestApp, token: &str, headers: &[(&str, &str)]) -> u16 {
    let mut request = app.http.get(format!("{}{NOTES}", app.base)).header("authorization", token);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.send().await.unwrap().status().as_u16()
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_passes_for_somebody_else() {
    let app = TestApp::start().await;
    let (ada, bob) = (app.user("ada").await, app.user("bob").await);
    let note = ada.note("private note").await;
    bob.note("of bob").await;
    // 52: another tenant's id in path, query, headers and body at once.
    let path = format!("{NOTES}/{note}?tenant={0}&user={0}&expand={0}", ada.id);
    for method in [Method::GET, Method::PATCH, Method::DELETE] {
        let body = json!({"id": note, "tenant": ada.id, "user": ada.id, "title": "taken"});
        let request = bob.request(method.clone(), &path).header("x-tenant", &ada.id).header("x-tenant-id", &ada.id);
        let answer = request.json(&body).send().await.unwrap();
        assert_eq!(answer.status(), 404, "{method}");
        assert!(!answer.text().await.unwrap().contains("private note"));
    }
    // 54 to 56: nobody is local by saying so.
    let data = app.data().join(format!("instances/{}/pb_data/data.db", ada.id));
    let superuser = database::superuser(&data).unwrap().mint(SystemTime::now(), Duration::from_mins(1));
    let mut spoofs = 0;
    for (name, value) in [
        ("x-forwarded-for", "127.0.0.1"),
        ("x-forwarded-for", "::1, 127.0.0.1"),
        ("x-forwarded-host", "127.0.0.1"),
        ("x-forwarded-proto", "https"),
        ("x-forwarded-port", "443"),
        ("forwarded", "for=127.0.0.1;proto=https"),
        ("x-real-ip", "127.0.0.1"),
        ("true-client-ip", "127.0.0.1"),
        ("cf-connecting-ip", "127.0.0.1"),
        ("x-client-ip", "127.0.0.1"),
        ("x_forwarded_for", "127.0.0.1"),
        ("X_Real_IP", "127.0.0.1"),
    ] {
        assert_eq!(list(&app, &superuser, &[(name, value)]).await, 401, "{name}");
        assert_eq!(list(&app, &superuser, &[(name, value), ("connection", name)]).await, 401, "Connection: {name}");
        spoofs += 2;
    }
    assert_eq!(list(&app, &ada.token, &[("connection", "authorization")]).await, 200, "the credential is ours to add");
    // 58: tokens.
    let (collection_id, key) = key(&app.data().join("instances/global/pb_data/data.db"), &ada.id);
    let signer = Signer { collection_id, record_id: ada.id.clone(), key };
    let expired = signer.mint(SystemTime::now() - Duration::from_mins(10), Duration::from_mins(1));
    let tampered = format!("{}x", ada.token);
    let spliced = format!("{}.{}", ada.token.rsplit_once('.').unwrap().0, bob.token.rsplit_once('.').unwrap().1);
    for (what, token) in [
        ("expired", expired.as_str()),
        ("tampered", &tampered),
        ("another's signature", &spliced),
        ("alg none", "eyJhbGciOiJub25lIn0.eyJpZCI6ImEifQ."),
        ("kid", "eyJhbGciOiJIUzI1NiIsImtpZCI6Ii4uLyJ9.e30.AAAA"),
        ("dots", ".."),
        ("empty parts", "..."),
    ] {
        assert_eq!(list(&app, token, &[]).await, 401, "{what}");
    }
    assert_eq!(ada.titles().await, ["private note"]);
    eprintln!("{} requests of people who are not who they say", 3 + spoofs + 8);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_ends_with_logout_and_with_its_password() {
    let app = TestApp::start().await;
    let ada = app.user("ada").await;
    ada.note("private note").await;
    // Two sign-ins within a second are one session.
    let another = async || Some(app.sign_in(&ada.email, &ada.password).await).filter(|user| user.token != ada.token);
    let again = crate::support::eventually("a session of its own", another).await;
    assert_eq!(
        app.http.post(format!("{}/auth/logout", app.base)).bearer_auth(&again.token).send().await.unwrap().status(),
        204
    );
    assert_eq!(list(&app, &again.token, &[]).await, 401, "after logout");
    change_password(&ada, "another-password-1").await;
    let ended = || async { (list(&app, &ada.token, &[]).await == 401).then_some(()) };
    crate::support::eventually("the old token ends with the password", ended).await;
}

async fn change_password(user: &User, new: &str) {
    let body = json!({"oldPassword": user.password, "password": new, "passwordConfirm": new});
    let path = format!("/api/collections/users/records/{}", user.id);
    let answer = user.request(Method::PATCH, &path).json(&body).send().await.unwrap();
    assert_eq!(answer.status(), 200, "{}", answer.text().await.unwrap());
}
