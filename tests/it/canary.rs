//! Planted secrets, sent through every route that takes one and through many that do not, are found nowhere afterwards:
//! in no log, no database, no file of any instance, no answer but that of a reveal.

use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use reqwest::Method;
use serde_json::Value;
use serde_json::json;

use crate::support::TestApp;
use crate::support::User;

const VAULT: &str = "/api/v1/vault";
/// With signs that other encodings change.
const PLANTED: [&str; 4] =
    ["cAn4ry+one/7f3aZq9XwE1", "cAn4ry+two/8e2bYr8VtD2", "cAn4ry+three/6d1cXs7UuC3", "cAn4ry+four/5c0dWt6TvB4"];

/// Every form in which a secret could lie about: as it is, percent-encoded, in JSON, hexadecimal, base64 at any offset.
fn forms(secret: &str) -> Vec<Vec<u8>> {
    let hex: String = crate::support::hex(secret.as_bytes());
    let percent: String = secret
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c.to_string() } else { format!("%{:02X}", u32::from(c)) })
        .collect();
    let mut forms = vec![secret.to_owned(), percent.clone(), percent.to_lowercase(), hex.to_uppercase(), hex];
    for offset in 0..3 {
        let shifted = "x".repeat(offset) + secret;
        for encoded in [STANDARD.encode(&shifted), URL_SAFE_NO_PAD.encode(&shifted)] {
            // The first and last letters depend on the neighbours.
            forms.push(encoded[4..encoded.len() - 5].to_owned());
        }
    }
    forms.into_iter().map(String::into_bytes).collect()
}

fn contains(bytes: &[u8], needle: &[u8]) -> bool {
    let Some(first) = needle.first() else { return false };
    let mut rest = bytes;
    while let Some(at) = rest.iter().position(|byte| byte == first) {
        if rest[at..].starts_with(needle) {
            return true;
        }
        rest = &rest[at + 1..];
    }
    false
}

/// Which planted secret some bytes tell, if any.
fn told(bytes: &[u8]) -> Option<&'static str> {
    PLANTED.into_iter().find(|secret| forms(secret).iter().any(|form| contains(bytes, form)))
}

/// Looks through a folder; how many files it read.
fn search(folder: &Path, found: &mut Vec<String>) -> usize {
    let mut files = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let kind = std::fs::symlink_metadata(&path).unwrap().file_type();
        if kind.is_dir() {
            files += search(&path, found);
        } else if kind.is_file() {
            files += 1;
            if let Some(secret) = told(&std::fs::read(&path).unwrap()) {
                found.push(format!("{secret} in {}", path.display()));
            }
        }
    }
    files
}

/// Sends and checks that the answer repeats nothing.
async fn send(user: &User, method: Method, path: &str, body: Option<(&str, String)>) -> u16 {
    let mut request = user.request(method.clone(), path);
    let mut is_large = false;
    if let Some((content_type, body)) = body {
        is_large = body.len() > 65_536;
        request = request.header("content-type", content_type).body(body);
    }
    let answer = match request.send().await {
        Ok(answer) => answer,
        // Refused by its length and closed while it was still being sent.
        Err(_) if is_large => return 413,
        Err(error) => panic!("{method} {path}: {error}"),
    };
    let status = answer.status().as_u16();
    let headers = format!("{:?}", answer.headers());
    let text = answer.text().await.unwrap();
    assert_eq!(told(text.as_bytes()), None, "{method} {path}: {text}");
    assert_eq!(told(headers.as_bytes()), None, "{method} {path}: {headers}");
    status
}

/// Every wrong place for a secret in what is ours. What is sent to a user's own `PocketBase` is theirs: it notes the
/// addresses of requests that fail in its own log, queries included.
async fn misplace(user: &User, secret: &str) {
    let json = |body: String| Some(("application/json", body));
    let escaped = secret.replace('+', "%2B").replace('/', "%2F");
    for path in [VAULT, "/api/keys", "/auth/login", "/api/v1/auth/register", "/api/v1/admin/audit", "/ready"] {
        for method in [Method::GET, Method::PUT, Method::POST, Method::PATCH] {
            send(user, method.clone(), &format!("{path}?secret={escaped}&token={escaped}"), None).await;
            send(user, method.clone(), &format!("{path}/{escaped}"), json("{}".to_owned())).await;
            send(user, method.clone(), path, json(format!("{{\"secret\": \"{secret}"))).await;
            send(user, method.clone(), path, json(format!("\"{secret}\""))).await;
            send(user, method.clone(), path, Some(("text/plain", secret.to_owned()))).await;
            send(user, method.clone(), path, json(secret.repeat(5_000))).await;
        }
    }
    for body in [
        json!({"service": secret, "secret": secret}),
        json!({"service": "http", "secret": {"value": secret}}),
        json!({"service": "http", "secret": [secret]}),
        json!({"service": "http", "secret": "x-y-z", "label": secret}),
        json!({"service": "http", "secret": "x-y-z", "settings": {secret: "x"}}),
        json!({"service": "http", "secret": "x-y-z", "expires_at": secret}),
        json!({"service": "http", "secret": secret, "value": secret}),
        json!({"service": "http", "secret": format!("{secret}\n")}),
        json!({"service": "fathom", "secret": format!("{secret} {secret}")}),
    ] {
        let status = send(user, Method::PUT, VAULT, json(body.to_string())).await;
        assert!((400..500).contains(&status), "{status}: {body}");
    }
    let stranger = User { token: secret.to_owned(), ..user.clone() };
    assert_eq!(send(&stranger, Method::GET, VAULT, None).await, 401);
    send(user, Method::POST, &format!("{VAULT}/{escaped}/reveal"), json(json!({"purpose": 7}).to_string())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_planted_secret_is_found_nowhere() {
    let mut app = TestApp::with(
        "log.filter = \"debug\"\nvault.changes_per_minute = 6000\nvault.reveals_per_minute = 6000\n\
         fathom.base_url = \"http://127.0.0.1:9\"\noutbound.allow = [\"http://127.0.0.1:9\"]\n",
    )
    .await;
    app.expect_log("");
    // A password is a secret too.
    let body = json!({"email": "ada@example.com", "password": PLANTED[0], "name": "Ada"});
    assert_eq!(app.post("/auth/register", body).await.status(), 201);
    let wrong = json!({"email": "ada@example.com", "password": PLANTED[1]});
    assert_eq!(app.post("/auth/login", wrong).await.status(), 400);
    let ada = app.sign_in("ada@example.com", PLANTED[0]).await;
    ada.note("so that there is an instance").await;
    let mut ids = Vec::new();
    for (service, settings) in [("http", json!({})), ("s3", json!({"access_key_id": "AKIA"})), ("generic", json!({}))] {
        let body = json!({"service": service, "secret": PLANTED[1], "settings": settings});
        let answer = ada.request(Method::PUT, VAULT).json(&body).send().await.unwrap();
        assert_eq!(answer.status(), 201);
        let text = answer.text().await.unwrap();
        assert_eq!(told(text.as_bytes()), None);
        ids.push(serde_json::from_str::<Value>(&text).unwrap()["key_id"].as_str().unwrap().to_owned());
    }
    // A service that cannot be asked, and one that is not.
    let unchecked = json!({"service": "fathom", "secret": PLANTED[2]}).to_string();
    assert_eq!(send(&ada, Method::PUT, VAULT, Some(("application/json", unchecked))).await, 503);
    let stored = json!({"service": "fathom", "secret": PLANTED[2], "verify": false}).to_string();
    assert_eq!(send(&ada, Method::PUT, "/api/keys", Some(("application/json", stored))).await, 201);
    let reveal = format!("{VAULT}/{}/reveal", ids[0]);
    let shown: Value = ada.post(&reveal, json!({"purpose": "a test"})).await.json().await.unwrap();
    assert_eq!(shown["secret"], PLANTED[1], "the one answer that has it");
    // What is refused half-way closes its connection, which is then no connection for the next.
    let unpooled = crate::support::http().pool_max_idle_per_host(0).build().unwrap();
    misplace(&User { http: unpooled, ..ada.clone() }, PLANTED[3]).await;
    send(&ada, Method::DELETE, &format!("{VAULT}/{}", ids[1]), None).await;
    assert!(app.cli(&["vault", "rotate-master"]).status.success());
    for args in [&["vault", "status"][..], &["audit", "export"], &["tenants", "list"], &["doctor"]] {
        let output = app.cli(args);
        assert_eq!(told(&output.stdout).or(told(&output.stderr)), None, "{args:?}");
    }
    // Once killed, once stopped: the write-ahead log is searched, and the file that it goes into.
    let mut found = Vec::new();
    app.kill();
    let files = search(app.dir.path(), &mut found);
    app.launch().await;
    let shown: Value = ada.at(&app).post(&reveal, json!({})).await.json().await.unwrap();
    assert_eq!(shown["secret"], PLANTED[1]);
    assert!(app.terminate().success());
    search(app.dir.path(), &mut found);
    assert!(files > 10 && found.is_empty(), "{files} files; {found:#?}");
    assert!(told(&std::fs::read(app.data().join("vault.key")).unwrap()).is_none());
}

#[test]
fn every_form_of_a_secret_would_be_found() {
    for text in [
        PLANTED[0].to_owned(),
        "cAn4ry%2Bone%2F7f3aZq9XwE1".to_owned(),
        STANDARD.encode(format!("{{\"secret\":\"{}\"}}", PLANTED[0])),
        STANDARD.encode(format!("ab{}cd", PLANTED[0])),
    ] {
        assert_eq!(told(text.as_bytes()), Some(PLANTED[0]), "{text}");
    }
    assert_eq!(told(b"nothing"), None);
}
