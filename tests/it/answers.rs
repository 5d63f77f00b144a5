//! What every answer carries and how it is coded: compression, security headers, cross-origin rules.

use std::io::Read;

use reqwest::Method;
use reqwest::Response;
use reqwest::header::HeaderMap;

use crate::support::TestApp;
use crate::support::User;

const NOTES: &str = "/api/collections/notes/records?perPage=100&sort=title";

async fn filled(app: &TestApp) -> User {
    let ada = app.user("ada").await;
    for number in 0..20 {
        let body = serde_json::json!({"title": format!("note {number:02}"), "body": "some words ".repeat(20)});
        assert_eq!(ada.post("/api/collections/notes/records", body).await.status(), 200);
    }
    ada
}

async fn asking(ada: &User, method: Method, path: &str, coding: &str) -> Response {
    ada.request(method, path).header("accept-encoding", coding).send().await.unwrap()
}

fn unpacked(bytes: &[u8]) -> Vec<u8> {
    let mut text = Vec::new();
    flate2::read::GzDecoder::new(bytes).read_to_end(&mut text).unwrap();
    text
}

fn is_coded(answer: &Response) -> bool {
    answer.headers().contains_key("content-encoding")
}

fn varies(answer: &Response, by: &str) -> bool {
    let mut lines = answer.headers().get_all("vary").iter().map(|line| line.to_str().unwrap());
    lines.any(|line| line.to_ascii_lowercase().contains(by))
}

#[tokio::test(flavor = "multi_thread")]
async fn who_asks_for_gzip_gets_the_same_answer_smaller() {
    let app = TestApp::start().await;
    let ada = filled(&app).await;
    let plain = ada.get(NOTES).await;
    assert!(!is_coded(&plain) && varies(&plain, "accept-encoding") && varies(&plain, "authorization"));
    let plain = plain.bytes().await.unwrap();
    for coding in ["gzip", "br;q=1.0, gzip;q=0.8, *;q=0.1", "*"] {
        let packed = asking(&ada, Method::GET, NOTES, coding).await;
        assert_eq!(packed.headers()["content-encoding"], "gzip", "{coding}");
        assert!(!packed.headers().contains_key("content-length") && varies(&packed, "accept-encoding"));
        assert_eq!(packed.headers()["content-type"], "application/json");
        let packed = packed.bytes().await.unwrap();
        assert!(packed.len() * 3 < plain.len(), "{} of {}", packed.len(), plain.len());
        assert_eq!(unpacked(&packed), plain);
    }
    for coding in ["identity", "gzip;q=0", "br", "*;q=0", ""] {
        let answer = asking(&ada, Method::GET, NOTES, coding).await;
        assert!(!is_coded(&answer), "{coding}");
        assert_eq!(answer.bytes().await.unwrap(), plain);
    }
    assert!(!is_coded(&asking(&ada, Method::HEAD, NOTES, "gzip").await), "HEAD has no body");
    let one = asking(&ada, Method::GET, "/api/collections/notes/records?perPage=1&fields=id", "gzip").await;
    assert!(!is_coded(&one), "too short to gain");
    let document = asking(&ada, Method::GET, "/openapi.json", "gzip").await;
    assert!(is_coded(&document));
    let document: serde_json::Value = serde_json::from_slice(&unpacked(&document.bytes().await.unwrap())).unwrap();
    assert!(document["paths"].is_object());
    assert!(!is_coded(&asking(&ada, Method::GET, "/metrics", "gzip").await), "says no-store");
}

#[tokio::test(flavor = "multi_thread")]
async fn files_and_parts_of_them_keep_their_bytes() {
    let app = TestApp::start().await;
    let ada = app.user("ada").await;
    let text = "a line of text\n".repeat(1_000);
    let upload = |name: &str, kind: &str| {
        format!(
            "--b\r\nContent-Disposition: form-data; name=\"title\"\r\n\r\nx\r\n--b\r\nContent-Disposition: form-data; \
             name=\"attachments\"; filename=\"{name}\"\r\nContent-Type: {kind}\r\n\r\n{text}\r\n--b--\r\n"
        )
    };
    for (name, kind, packs) in [("a.txt", "text/plain", true), ("a.bin", "application/octet-stream", false)] {
        let request = ada.request(Method::POST, "/api/collections/notes/records");
        let request = request.header("content-type", "multipart/form-data; boundary=b").body(upload(name, kind));
        let note: serde_json::Value = request.send().await.unwrap().json().await.unwrap();
        let stored = note["attachments"][0].as_str().unwrap();
        let path = format!("/api/files/notes/{}/{stored}", note["id"].as_str().unwrap());
        let whole = asking(&ada, Method::GET, &path, "gzip").await;
        let kind = whole.headers()["content-type"].to_str().unwrap().to_owned();
        assert!(is_coded(&whole) == (packs || kind.starts_with("text/")), "{name}: {kind}");
        assert!(whole.headers().contains_key("content-security-policy"), "files keep PocketBase's policy");
        let coded = is_coded(&whole);
        let bytes = whole.bytes().await.unwrap();
        assert_eq!(if coded { unpacked(&bytes) } else { bytes.to_vec() }, text.as_bytes());
        let part = ada.request(Method::GET, &path).header("accept-encoding", "gzip").header("range", "bytes=2-8");
        let part = part.send().await.unwrap();
        assert_eq!((part.status().as_u16(), is_coded(&part)), (206, false));
        assert_eq!(part.bytes().await.unwrap(), "line of");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn compression_can_be_switched_off() {
    let app = TestApp::with("server.compression = false\n").await;
    let answer = app.http.get(format!("{}/openapi.json", app.base)).header("accept-encoding", "gzip").send().await;
    let answer = answer.unwrap();
    assert!(!is_coded(&answer) && !varies(&answer, "accept-encoding"));
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_say_what_browsers_must_not_do() {
    let app = TestApp::with("server.trusted_proxies = [\"127.0.0.1\"]\nserver.hsts = \"max-age=60\"\n").await;
    let ada = app.user("ada").await;
    ada.note("x").await;
    let text = |headers: &HeaderMap, name: &str| headers.get(name).map(|value| value.to_str().unwrap().to_owned());
    for (path, ours) in [
        ("/", true),
        ("/nowhere", true),
        ("/api/sql", true),
        ("/health", true),
        ("/api/collections/notes/records", false),
    ] {
        let answer = ada.get(path).await;
        let headers = answer.headers();
        assert_eq!(text(headers, "x-content-type-options").as_deref(), Some("nosniff"), "{path}");
        assert_eq!(text(headers, "strict-transport-security"), None, "{path} came over http");
        for name in ["server", "x-powered-by", "set-cookie"] {
            assert_eq!(text(headers, name), None, "{path}");
        }
        if ours {
            assert!(text(headers, "content-security-policy").unwrap().contains("frame-ancestors 'none'"), "{path}");
            assert_eq!(text(headers, "referrer-policy").as_deref(), Some("no-referrer"), "{path}");
            assert_eq!(text(headers, "cross-origin-opener-policy").as_deref(), Some("same-origin"), "{path}");
            assert_eq!(text(headers, "cross-origin-resource-policy").as_deref(), Some("same-origin"), "{path}");
        }
        let request = ada.request(Method::GET, path).header("x-forwarded-proto", "https");
        let secure = request.send().await.unwrap();
        assert_eq!(text(secure.headers(), "strict-transport-security").as_deref(), Some("max-age=60"), "{path}");
    }
    let page = app.http.get(&app.base).header("accept", "text/html").send().await.unwrap();
    let policy = text(page.headers(), "content-security-policy").unwrap();
    assert!(policy.contains("style-src 'sha256-") && policy.contains("frame-ancestors 'none'"), "{policy}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_cannot_claim_to_have_come_over_https() {
    let app = TestApp::start().await;
    let answer =
        app.http.get(format!("{}/health", app.base)).header("x-forwarded-proto", "https").send().await.unwrap();
    assert!(!answer.headers().contains_key("strict-transport-security"));
}

#[tokio::test(flavor = "multi_thread")]
async fn only_listed_origins_may_read_answers() {
    let origins = "server.cors_origins = [\"https://app.example.com\", \"https://*.tenants.example.com\"]\n";
    let app = TestApp::with(origins).await;
    let ada = app.user("ada").await;
    ada.note("x").await;
    let path = "/api/collections/notes/records";
    for (origin, may) in [
        ("https://app.example.com", true),
        ("https://ada.tenants.example.com", true),
        ("https://app.example.com.evil", false),
        ("https://evil-app.example.com", false),
        ("https://ada.tenants.example.com.evil", false),
        ("http://app.example.com", false),
        ("null", false),
    ] {
        let answer = ada.request(Method::GET, path).header("origin", origin).send().await.unwrap();
        let preflight = app
            .http
            .request(Method::OPTIONS, format!("{}{path}", app.base))
            .header("origin", origin)
            .header("access-control-request-method", "PATCH")
            .header("access-control-request-headers", "authorization,content-type")
            .send()
            .await
            .unwrap();
        assert_eq!((answer.status().as_u16(), preflight.status().as_u16()), (200, 204));
        for answer in [&answer, &preflight] {
            let allowed = answer.headers().get("access-control-allow-origin");
            assert_eq!(allowed.map(|value| value.to_str().unwrap()), may.then_some(origin));
            assert!(varies(answer, "origin"), "a cache must not give one origin the answer of another");
            assert!(!answer.headers().contains_key("access-control-allow-credentials"));
        }
        assert!(preflight.headers()["access-control-allow-methods"].to_str().unwrap().contains("PATCH"));
    }
}
