//! Fathom tells us of new meetings: believed when signed, on disk before it is acknowledged, taken in once.

use std::net::TcpListener;

use pocketfleet::vault::Secret;
use pocketfleet::webhooks::standard::Key;
use reqwest::Method;
use reqwest::StatusCode;
use serde_json::Value;
use serde_json::json;
use time::OffsetDateTime;

use crate::meetings::list;
use crate::meetings::store_key;
use crate::meetings::synced;
use crate::support::TestApp;
use crate::support::User;
use crate::support::eventually;
use crate::support::fathom::Standin;

const KEY: &str = "key-of-ada";

/// An app that the stand-in can call back: its address is known before it starts.
fn reachable(standin: &Standin, keys: &str) -> TestApp {
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let own = format!("server.listen = \"{free}\"\nserver.public_url = \"http://{free}\"\n");
    TestApp::prepare(&(standin.keys() + &own + keys))
}

async fn webhook(user: &User, method: Method, body: Option<Value>) -> (StatusCode, Value) {
    let mut request = user.request(method, "/api/v1/meetings/webhook");
    if let Some(body) = body {
        request = request.json(&body);
    }
    let answer = request.send().await.unwrap();
    (answer.status(), serde_json::from_str(&answer.text().await.unwrap()).unwrap_or_default())
}

/// A registered webhook: its address, and its secret as only Fathom knows it.
async fn registered(standin: &Standin, user: &User) -> (String, Key) {
    registered_with(standin, user, json!({})).await
}

async fn registered_with(standin: &Standin, user: &User, wish: Value) -> (String, Key) {
    let (status, body) = webhook(user, Method::PUT, Some(wish)).await;
    assert_eq!((status, &body["state"]), (StatusCode::OK, &json!("active")), "{body}");
    let url = body["url"].as_str().unwrap().to_owned();
    let hooks = standin.control(Method::GET, "/webhooks", None).await;
    let hook = hooks["items"].as_array().unwrap().iter().find(|hook| hook["url"] == body["url"]).unwrap().clone();
    (url, Key::read(&Secret::new(hook["secret"].as_str().unwrap().to_owned())).unwrap())
}

fn signed(app: &TestApp, url: &str, key: &Key, id: &str, shift: i64, body: &str) -> reqwest::RequestBuilder {
    let at = OffsetDateTime::now_utc() + time::Duration::seconds(shift);
    let request = app.http.post(url).header("content-type", "application/json").header("webhook-id", id);
    let request = request.header("webhook-timestamp", at.unix_timestamp().to_string());
    let request = request.header("webhook-signature", key.sign(id, at, body.as_bytes()));
    request.body(body.to_owned())
}

async fn call(app: &TestApp, url: &str, key: &Key, id: &str, shift: i64, body: &str) -> u16 {
    signed(app, url, key, id, shift, body).send().await.unwrap().status().as_u16()
}

async fn deliveries(standin: &Standin) -> Vec<u64> {
    let all = standin.control(Method::GET, "/deliveries", None).await;
    all["items"].as_array().unwrap().iter().map(|one| one["status"].as_u64().unwrap_or(0)).collect()
}

async fn titled(user: &User, title: &str) {
    eventually(&format!("{title} is there"), async || {
        let body = list(user, "?limit=100").await;
        body["items"].as_array().unwrap().iter().any(|item| item["title"] == title).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_meeting_comes_by_itself_and_wakes_whoever_sleeps() {
    let standin = Standin::with(&["--key", "key-of-ada=2"]).await;
    let mut app = reachable(&standin, "");
    app.launch().await;
    let ada = app.user("ada").await;
    assert_eq!(webhook(&ada, Method::PUT, Some(json!({}))).await.0, 409, "there is no key yet");
    store_key(&ada, KEY).await;
    synced(&ada, 2).await;
    let (url, _) = registered(&standin, &ada).await;
    app.put_to_sleep(&ada.id);
    standin.add_meeting(KEY, json!({"title": "By webhook"}), true).await;
    titled(&ada, "By webhook").await;
    assert_eq!(deliveries(&standin).await, [200]);
    let (_, shown) = webhook(&ada, Method::GET, None).await;
    assert!(shown["last_received_at"].is_string() && shown["secret"].is_null(), "{shown}");
    let calls = standin.calls("GET /meetings").await;
    list(&ada, "").await;
    assert_eq!(standin.calls("GET /meetings").await, calls, "nothing was asked of Fathom");

    // Another one takes its place; the old address is dead.
    let (fresh, _) = registered(&standin, &ada).await;
    assert_ne!(fresh, url);
    let hooks = standin.control(Method::GET, "/webhooks", None).await;
    assert_eq!(hooks["items"].as_array().unwrap().len(), 1, "{hooks}");
    assert_eq!(app.http.post(&url).body("{}").send().await.unwrap().status(), 404);
    assert_eq!(webhook(&ada, Method::DELETE, None).await.0, 204);
    assert_eq!(standin.control(Method::GET, "/webhooks", None).await["items"], json!([]));
    assert_eq!(webhook(&ada, Method::GET, None).await.1["state"], "none");
    assert_eq!(app.http.post(&fresh).body("{}").send().await.unwrap().status(), 404);
    assert_eq!(webhook(&ada, Method::DELETE, None).await.0, 204, "again is the same");
    assert_eq!(webhook(&ada, Method::PUT, Some(json!({"nonsense": 1}))).await.0, 400);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_what_is_signed_and_new_is_taken() {
    let standin = Standin::with(&["--key", "key-of-ada=1"]).await;
    let mut app = reachable(&standin, "");
    app.launch().await;
    let ada = app.user("ada").await;
    store_key(&ada, KEY).await;
    synced(&ada, 1).await;
    let (url, key) = registered(&standin, &ada).await;
    let other = Key::read(&Secret::new("whsec_c3RhbmRpbi1zZWNyZXQtb2YtdGhlLWFjY291bnQh".to_owned())).unwrap();
    app.put_to_sleep(&ada.id);
    let body = json!({"recording_id": 77, "title": "Signed", "unknown": [1], "created_at": "2026-01-01T00:00:00Z"});
    let body = body.to_string();
    let base = url.rsplit_once('/').unwrap().0;
    let stranger = format!("{base}/{}", "0".repeat(32));
    for wrong in [stranger.as_str(), &format!("{base}/x"), &format!("{base}/{}", "A".repeat(32))] {
        assert_eq!(call(&app, wrong, &key, "m1", 0, &body).await, 404, "{wrong}");
    }
    assert_eq!(call(&app, &url, &other, "m1", 0, &body).await, 404, "another secret");
    for shift in [600, -600] {
        assert_eq!(call(&app, &url, &key, "m1", shift, &body).await, 404, "{shift} s");
    }
    let at = OffsetDateTime::now_utc();
    for (signature, sent) in [
        ("v1,AAAA".to_owned(), body.as_str()),
        (String::new(), body.as_str()),
        ("v2,".to_owned() + &key.sign("m1", at, body.as_bytes())[3..], body.as_str()),
        (key.sign("m1", at, body.as_bytes()), "{\"recording_id\":78}"),
        (key.sign("m2", at, body.as_bytes()), body.as_str()),
    ] {
        let request = app.http.post(&url).header("webhook-id", "m1").header("webhook-signature", signature.clone());
        let request = request.header("webhook-timestamp", at.unix_timestamp().to_string()).body(sent.to_owned());
        assert_eq!(request.send().await.unwrap().status(), 404, "{signature} {sent}");
    }
    assert_eq!(app.http.post(&url).body(body.clone()).send().await.unwrap().status(), 404, "no headers");
    assert_eq!(app.http.get(&url).send().await.unwrap().status(), 405);
    assert_eq!(app.tenant(&ada.id)["state"], "asleep", "nobody was woken");
    for malformed in ["not json", "[]", "{\"title\":\"no number\"}", "{\"recording_id\":18446744073709551615}"] {
        assert_eq!(call(&app, &url, &key, "odd", 0, malformed).await, 400, "{malformed}");
    }
    assert_eq!(call(&app, &url, &key, "m1", 0, &body).await, 200);
    titled(&ada, "Signed").await;
    let again = body.replace("Signed", "Twice");
    assert_eq!(call(&app, &url, &key, "m1", 0, &again).await, 200, "the same name again");
    assert_eq!(call(&app, &url, &key, "m2", 0, &body.replace("77", "79").replace("Signed", "Last")).await, 200);
    titled(&ada, "Last").await;
    let body = list(&ada, "?limit=100").await;
    assert_eq!(body["items"].as_array().unwrap().len(), 3, "{body}");
    assert!(!body.to_string().contains("Twice"));
    let large = format!("{{\"recording_id\":1,\"title\":\"{}\"}}", "x".repeat(9 << 20));
    assert_eq!(call(&app, &url, &key, "large", 0, &large).await, 413);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_behind_the_acknowledgement_loses_nothing() {
    let standin = Standin::with(&["--key", "key-of-ada=1"]).await;
    for step in ["meetings.hook_stored", "meetings.ingested"] {
        let mut app = reachable(&standin, "");
        app.arm(step);
        app.expect_log("stop a stray process");
        app.launch().await;
        let ada = app.user("ada").await;
        store_key(&ada, KEY).await;
        synced(&ada, 1).await;
        let (url, key) = registered(&standin, &ada).await;
        let body = json!({"recording_id": 77, "title": step}).to_string();
        let at = OffsetDateTime::now_utc();
        let request = app.http.post(&url).header("webhook-id", "m1").body(body.clone());
        let request = request.header("webhook-timestamp", at.unix_timestamp().to_string());
        // The answer may be cut off by the end of the program.
        drop(request.header("webhook-signature", key.sign("m1", at, body.as_bytes())).send().await);
        assert!(!app.ended().success(), "{step} kills it");
        app.launch().await;
        let ada = ada.at(&app);
        titled(&ada, step).await;
        assert_eq!(call(&app, &url, &key, "m1", 0, &body).await, 200, "and Fathom may say it again");
        let all = list(&ada, "?limit=100").await;
        assert_eq!(all["items"].as_array().unwrap().len(), 2, "{all}");
        assert_eq!(webhook(&ada, Method::DELETE, None).await.0, 204);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_meeting_is_delivered_by_itself_and_once() {
    let standin = Standin::with(&["--key", "key-of-ada=1"]).await;
    let mut app = reachable(&standin, "");
    app.launch().await;
    let ada = app.user("ada").await;
    store_key(&ada, KEY).await;
    synced(&ada, 1).await;
    assert_eq!(ada.post("/api/v1/queue/pause", json!({})).await.status(), 204);
    let items = async || {
        let body: Value = ada.get("/api/v1/queue").await.json().await.unwrap();
        body["items"].as_array().unwrap().clone()
    };
    let (url, key) = registered_with(&standin, &ada, json!({"auto_deliver": true})).await;
    assert_eq!(webhook(&ada, Method::GET, None).await.1["auto_deliver"], true);
    let body = |title: &str, id: u64| json!({"recording_id": id, "title": title}).to_string();
    assert_eq!(call(&app, &url, &key, "m1", 0, &body("Once", 77)).await, 200);
    let found = eventually("it is in the queue", async || Some(items().await).filter(|items| !items.is_empty())).await;
    assert_eq!((&found[0]["kind"], &found[0]["recording_id"]), (&json!("deliver_meeting"), &json!(77)), "{found:?}");
    // Told again, by another call and with another title, while it waits and when it was called off.
    assert_eq!(call(&app, &url, &key, "m2", 0, &body("Again", 77)).await, 200);
    titled(&ada, "Again").await;
    let path = format!("/api/v1/queue/{}", found[0]["id"].as_str().unwrap());
    assert_eq!(ada.request(Method::DELETE, &path).send().await.unwrap().status(), 204);
    assert_eq!(call(&app, &url, &key, "m3", 0, &body("Thrice", 77)).await, 200);
    assert_eq!(call(&app, &url, &key, "m4", 0, &body("Other", 78)).await, 200);
    let found =
        eventually("the other one is there", async || Some(items().await).filter(|items| !items.is_empty())).await;
    titled(&ada, "Thrice").await;
    assert_eq!(items().await.len(), 1, "{found:?}");
    assert_eq!(found[0]["recording_id"], 78);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_is_delivered_though_its_hook_is_gone() {
    let standin = Standin::with(&["--key", "key-of-ada=1"]).await;
    let mut app = reachable(&standin, "");
    app.launch().await;
    let ada = app.user("ada").await;
    store_key(&ada, KEY).await;
    assert_eq!(ada.post("/api/v1/queue/pause", json!({})).await.status(), 204);
    let (url, key) = registered_with(&standin, &ada, json!({"auto_deliver": true})).await;
    assert!(app.terminate().success());
    app.arm("meetings.hook_stored");
    app.launch().await;
    // The answer is cut off by the end of the program.
    drop(signed(&app, &url, &key, "m1", 0, "{\"recording_id\": 77, \"title\": \"Once\"}").send().await);
    assert!(!app.ended().success(), "the failpoint kills it");
    let database = rusqlite::Connection::open(app.data().join("control.db")).unwrap();
    assert_eq!(database.execute("DELETE FROM records WHERE key LIKE 'hook.%'", []).unwrap(), 1);
    drop(database);
    app.launch().await;
    eventually("it is in the queue", async || {
        let body: Value = ada.get("/api/v1/queue").await.json().await.unwrap();
        body["items"].as_array().unwrap().iter().any(|item| item["recording_id"] == 77).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_are_limited_for_each_address_of_a_hook_and_of_a_caller() {
    let standin = Standin::with(&["--key", "key-of-ada=1"]).await;
    let mut app = reachable(&standin, "meetings.hook_calls_per_minute = 3\nmeetings.hook_calls_per_ip = 8\n");
    app.launch().await;
    let ada = app.user("ada").await;
    store_key(&ada, KEY).await;
    let (url, key) = registered(&standin, &ada).await;
    let mut answers = Vec::new();
    for n in 0..5 {
        answers.push(call(&app, &url, &key, &format!("m{n}"), 0, "{\"recording_id\":5}").await);
    }
    assert_eq!(answers, [200, 200, 200, 429, 429]);
    let stranger = format!("{}/{}", url.rsplit_once('/').unwrap().0, "0".repeat(32));
    let mut answers = Vec::new();
    for _ in 0..4 {
        answers.push(call(&app, &stranger, &key, "m", 0, "{}").await);
    }
    assert_eq!(answers, [404, 404, 404, 429]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hook_that_fathom_refuses_or_cannot_forget_leaves_nothing_dangling() {
    let standin = Standin::with(&["--key", "key-of-ada=1"]).await;
    let mut app = reachable(&standin, "");
    app.launch().await;
    let ada = app.user("ada").await;
    store_key(&ada, KEY).await;
    standin.fault(json!({"path": "/webhooks", "method": "POST", "kind": "status", "status": 400})).await;
    assert_eq!(webhook(&ada, Method::PUT, Some(json!({}))).await.0, 409);
    assert_eq!(webhook(&ada, Method::GET, None).await.1["state"], "none");
    let (url, _) = registered(&standin, &ada).await;
    standin
        .fault(json!({"path": "/webhooks/*", "method": "DELETE", "times": 100, "kind": "status", "status": 500}))
        .await;
    assert_eq!(webhook(&ada, Method::DELETE, None).await.0, 204);
    assert_eq!(webhook(&ada, Method::GET, None).await.1["state"], "removing");
    assert_eq!(app.http.post(&url).body("{}").send().await.unwrap().status(), 404, "nothing is taken any more");
    standin.control(Method::DELETE, "/faults", None).await;
    assert!(app.terminate().success());
    app.launch().await;
    eventually("Fathom is told", async || {
        (standin.control(Method::GET, "/webhooks", None).await["items"] == json!([])).then_some(())
    })
    .await;
}
