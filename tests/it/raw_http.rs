//! What no well-behaved client sends, against the whole product.

use std::time::Duration;

use crate::support::TestApp;
use crate::support::raw;

#[tokio::test(flavor = "multi_thread")]
async fn malformed_requests_get_a_4xx_and_no_instance_sees_them() {
    let app = TestApp::start().await;
    let ada = app.user("ada").await;
    ada.note("secret").await;
    let token = &ada.token;
    let auth = format!("Authorization: {token}\r\n");
    let get = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: x\r\n{auth}\r\n");
    let records = "/api/collections/notes/records";
    let cases: Vec<(&str, String, &[u16])> = vec![
        ("control", get(records), &[200]),
        ("70 KB URL", get(&format!("{records}?x={}", "a".repeat(70_000))), &[414, 431]),
        ("9 KB URL", get(&format!("{records}?x={}", "a".repeat(9_000))), &[414]),
        ("no Host", format!("GET {records} HTTP/1.1\r\n{auth}\r\n"), &[400]),
        ("two Hosts", format!("GET {records} HTTP/1.1\r\nHost: a\r\nHost: b\r\n{auth}\r\n"), &[400]),
        ("Host with a path", format!("GET {records} HTTP/1.1\r\nHost: a/b\r\n{auth}\r\n"), &[400]),
        ("Host with user info", format!("GET {records} HTTP/1.1\r\nHost: a@b\r\n{auth}\r\n"), &[400]),
        (
            "double Content-Length",
            format!("POST {records} HTTP/1.1\r\nHost: x\r\n{auth}Content-Length: 2\r\nContent-Length: 2\r\n\r\n{{}}"),
            &[400],
        ),
        (
            "differing Content-Length",
            format!("POST {records} HTTP/1.1\r\nHost: x\r\n{auth}Content-Length: 2\r\nContent-Length: 3\r\n\r\n{{}}"),
            &[400],
        ),
        (
            "Content-Length +3",
            format!("POST {records} HTTP/1.1\r\nHost: x\r\n{auth}Content-Length: +3\r\n\r\n{{}}"),
            &[400],
        ),
        (
            "unknown coding",
            format!("POST {records} HTTP/1.1\r\nHost: x\r\n{auth}Transfer-Encoding: xchunked\r\n\r\n"),
            &[400],
        ),
        ("encoded dots", get("/api/collections/%2e%2e/%2e%2e/api/sql"), &[400]),
        ("mixed dots", get("/api/collections/.%2e/x"), &[400]),
        ("dots", get("/api/collections/../settings"), &[400]),
        ("encoded slash", get("/api/collections/notes%2frecords"), &[400]),
        ("backslash", get("/api\\collections"), &[400]),
        ("null", get("/api/collections/notes%00/records"), &[400]),
        ("bad escape", get("/api/collections/%zz/records"), &[400]),
        ("double slash", get("//api/collections/notes/records"), &[400]),
        ("sql", get("/api/sql"), &[404]),
        ("encoded sql", get("/api/%73ql"), &[404]),
        ("settings", get("/api/settings"), &[404]),
        ("encoded settings", get("/api/%73ettings"), &[404]),
        ("upper case", get("/API/SQL"), &[404]),
        ("backups", get("/api/backups"), &[404]),
        ("logs", get("/api/logs"), &[404]),
        ("crons", get("/api/crons"), &[404]),
        ("schema", get("/api/collections"), &[404]),
        ("one schema", get("/api/collections/notes"), &[404]),
        ("superusers", get("/api/collections/_superusers/records"), &[404]),
        ("encoded superusers", get("/api/collections/%5fsuperusers/records"), &[404]),
        ("superusers by id", get("/api/collections/pbc_3142635823/records"), &[404]),
        ("dashboard", get("/_/"), &[404]),
        ("connect", "CONNECT example.com:443 HTTP/1.1\r\nHost: example.com:443\r\n\r\n".to_owned(), &[400, 405]),
        ("trace", format!("TRACE {records} HTTP/1.1\r\nHost: x\r\n{auth}\r\n"), &[405]),
        ("lower case", format!("get {records} HTTP/1.1\r\nHost: x\r\n{auth}\r\n"), &[400, 405]),
        ("absolute form", format!("GET http://evil{records} HTTP/1.1\r\nHost: x\r\n{auth}\r\n"), &[400]),
        ("two tokens", format!("GET {records} HTTP/1.1\r\nHost: x\r\n{auth}Authorization: other\r\n\r\n"), &[400]),
        ("Expect junk", format!("GET {records} HTTP/1.1\r\nHost: x\r\n{auth}Expect: junk\r\n\r\n"), &[417]),
        ("150 headers", format!("GET {records} HTTP/1.1\r\nHost: x\r\n{auth}{}\r\n", "X-A: b\r\n".repeat(150)), &[431]),
        ("obs-fold", format!("GET {records} HTTP/1.1\r\nHost: x\r\nX-A: b\r\n c\r\n{auth}\r\n"), &[400]),
        ("HTTP/1.2", format!("GET {records} HTTP/1.2\r\nHost: x\r\n{auth}\r\n"), &[400, 505]),
        ("garbage", "\u{1}\u{2}\u{3}\r\n\r\n".to_owned(), &[400]),
    ];
    for (what, request, allowed) in cases {
        let answer = raw::exchange(&app.base, request.as_bytes()).await;
        assert!(allowed.contains(&raw::status(&answer)), "{what}: {}", answer.lines().next().unwrap_or("no answer"));
        assert!(what == "control" || !answer.contains("secret"), "{what}: {answer}");
    }
    ada.titles().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_spoofed_address_makes_nobody_a_superuser() {
    let app = TestApp::start().await;
    let ada = app.user("ada").await;
    ada.note("x").await;
    // PocketBase believes the last X-Forwarded-For. A superuser token that came with a spoofed loopback address
    // would pass its lock; with ours it cannot.
    let path = app.data().join(format!("instances/{}/pb_data/data.db", ada.id));
    let superuser = pocketfleet::pocketbase::database::superuser(&path)
        .unwrap()
        .mint(std::time::SystemTime::now(), Duration::from_mins(1));
    for spoof in
        ["X-Forwarded-For: 127.0.0.1", "X_Forwarded_For: 127.0.0.1", "Forwarded: for=127.0.0.1", "X-Real-IP: 127.0.0.1"]
    {
        let request = format!(
            "GET /api/collections/notes/records HTTP/1.1\r\nHost: x\r\nAuthorization: {superuser}\r\n{spoof}\r\n\
             Connection: X-Forwarded-For\r\n\r\n"
        );
        let answer = raw::exchange(&app.base, request.as_bytes()).await;
        assert_eq!(raw::status(&answer), 401, "{spoof}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_and_silent_connections_are_closed() {
    let app = TestApp::with("server.header_timeout = \"500ms\"\nserver.body_idle_timeout = \"500ms\"\n").await;
    let ada = app.user("ada").await;
    ada.note("x").await;
    let silent = raw::exchange_within(&app.base, b"", Duration::from_secs(30)).await;
    assert!(silent.is_empty() || silent.starts_with("HTTP/1.1 408"), "{silent}");
    let partial = raw::exchange_within(&app.base, b"GET / HTTP/1.1\r\nHost:", Duration::from_secs(30)).await;
    assert!(partial.is_empty() || partial.starts_with("HTTP/1.1 408"), "{partial}");
    let stalled = format!(
        "POST /api/collections/notes/records HTTP/1.1\r\nHost: x\r\nAuthorization: {}\r\n\
         Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{{",
        ada.token
    );
    raw::exchange_within(&app.base, stalled.as_bytes(), Duration::from_secs(30)).await;
    crate::support::eventually("nothing is in flight", async || (app.tenant(&ada.id)["in_flight"] == 0).then_some(()))
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_are_capped_for_one_address() {
    let app = TestApp::with("server.max_connections_per_ip = 4\n").await;
    let address = app.base.trim_start_matches("http://").to_owned();
    crate::support::eventually("old connections are gone", async || {
        let mut open = Vec::new();
        for _ in 0..4 {
            open.push(tokio::net::TcpStream::connect(&address).await.unwrap());
        }
        let fifth = raw::exchange(&app.base, b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n").await;
        drop(open);
        (raw::status(&fifth) != 200).then_some(())
    })
    .await;
    crate::support::eventually("room again", async || {
        let answer = raw::exchange(&app.base, b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n").await;
        (raw::status(&answer) == 200).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn request_ids_come_in_and_go_out_and_cors_is_ours() {
    let app = TestApp::start().await;
    let ada = app.user("ada").await;
    let path = "/api/collections/notes/records";
    let answer = ada.request(reqwest::Method::GET, path).header("x-request-id", "my-id-1").send().await.unwrap();
    assert_eq!(answer.headers()["x-request-id"], "my-id-1");
    let answer = ada.request(reqwest::Method::GET, path).header("x-request-id", "not valid!").send().await.unwrap();
    assert_ne!(answer.headers()["x-request-id"], "not valid!");
    let starts = app.cli_json(&["status"])["fleet"]["starts"].clone();
    let preflight = app
        .http
        .request(reqwest::Method::OPTIONS, format!("{}{path}", app.base))
        .header("origin", "https://app.example.com")
        .header("access-control-request-method", "POST")
        .header("access-control-request-headers", "authorization,content-type")
        .send()
        .await
        .unwrap();
    assert_eq!(preflight.status(), 204);
    assert_eq!(preflight.headers()["access-control-allow-origin"], "*");
    assert_eq!(app.cli_json(&["status"])["fleet"]["starts"], starts);
    let answer =
        ada.request(reqwest::Method::GET, path).header("origin", "https://app.example.com").send().await.unwrap();
    assert_eq!(answer.headers().get_all("access-control-allow-origin").iter().count(), 1);
}
