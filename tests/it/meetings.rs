//! Meetings from the stand-in of Fathom in the user's own instance: synced once, kept fresh, never mixed up.

use reqwest::Method;
use serde_json::Value;
use serde_json::json;

use crate::support::TestApp;
use crate::support::User;
use crate::support::command;
use crate::support::eventually;
use crate::support::fathom::KEY;
use crate::support::fathom::Standin;
use crate::support::root;
use crate::support::sse::Stream;

/// An app that calls a stand-in, with further configuration.
pub(crate) async fn fleet(standin: &Standin, keys: &str) -> TestApp {
    TestApp::with(&(standin.keys() + keys)).await
}

/// Stores a key of Fathom's.
pub(crate) async fn store_key(user: &User, key: &str) {
    let body = json!({"service": "fathom", "secret": key});
    let answer = user.request(Method::PUT, "/api/v1/vault").json(&body).send().await.unwrap();
    assert!(answer.status().is_success(), "{}", answer.text().await.unwrap());
}

/// A list, with its `Cache-Status`.
pub(crate) async fn list_as(user: &User, query: &str) -> (String, Value) {
    let answer = user.get(&format!("/api/v1/meetings{query}")).await;
    let (status, cache) = (answer.status(), answer.headers().get("cache-status").cloned());
    let body: Value = answer.json().await.unwrap();
    assert_eq!(status, 200, "{query}: {body}");
    (cache.unwrap().to_str().unwrap().to_owned(), body)
}

pub(crate) async fn list(user: &User, query: &str) -> Value {
    list_as(user, query).await.1
}

fn ids(list: &Value) -> Vec<u64> {
    list["items"].as_array().unwrap().iter().map(|item| item["recording_id"].as_u64().unwrap()).collect()
}

async fn sync(user: &User) {
    let answer = user.post("/api/v1/meetings/sync", Value::Null).await;
    assert_eq!(answer.status(), 202, "{}", answer.text().await.unwrap());
}

/// Waits until the list is whole, with its contents, and has so many meetings.
pub(crate) async fn synced(user: &User, meetings: usize) -> Value {
    eventually("the meetings are synced", async || {
        let body = list(user, "?limit=100").await;
        let items = body["items"].as_array().unwrap();
        let whole = items.iter().all(|item| item["has_transcript"] == true);
        (body["sync"]["state"] == "fresh" && items.len() == meetings && whole).then_some(body)
    })
    .await
}

async fn state(user: &User, wanted: &str) -> Value {
    eventually(&format!("the list is {wanted}"), async || {
        let body = list(user, "").await;
        (body["sync"]["state"] == wanted).then(|| body["sync"].clone())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_is_synced_page_by_page_and_then_only_what_is_new() {
    let standin = Standin::start().await;
    let app = fleet(&standin, "").await;
    let ada = app.user("ada").await;
    let none = list(&ada, "").await;
    assert_eq!((&none["sync"]["state"], &none["items"]), (&json!("no_key"), &json!([])));
    assert_eq!(ada.post("/api/v1/meetings/sync", Value::Null).await.status(), 409);
    store_key(&ada, KEY).await;
    let (cache, first) = list_as(&ada, "").await;
    assert_eq!(cache, "pocketfleet; fwd=miss; stored");
    assert!(!first["items"].as_array().unwrap().is_empty(), "the first page was waited for: {first}");
    let all = synced(&ada, 27).await;
    let made: Vec<u64> =
        standin.meetings(KEY).await.iter().map(|meeting| meeting["recording_id"].as_u64().unwrap()).collect();
    assert_eq!(ids(&all), made, "the newest first");
    // One to check the key, three pages of the list, three of contents.
    assert_eq!(standin.calls("GET /meetings").await, 7);
    let (cache, _) = list_as(&ada, "").await;
    assert!(cache.starts_with("pocketfleet; hit; ttl=2"), "{cache}");
    assert_eq!(ada.get("/api/meetings?limit=1").await.json::<Value>().await.unwrap()["items"][0], all["items"][0]);

    // The SDK of the user reads the same, hears of what is new, and cannot write.
    let mine: Value = ada.get("/api/collections/meetings/records?perPage=1").await.json().await.unwrap();
    assert_eq!(mine["totalItems"], 27, "{mine}");
    let states: Value = ada.get("/api/collections/sync_state/records").await.json().await.unwrap();
    assert!(states["items"][0]["synced_at"].is_string() && states["items"][0]["cursor"].is_null(), "{states}");
    let forged = ada.post("/api/collections/meetings/records", json!({"recording_id": "1", "source": "me"})).await;
    assert_eq!(forged.status(), 403);
    let stream = Stream::subscribed(&app, &ada, &["meetings/*"]).await;
    standin.add_meeting(KEY, json!({"title": "Brand new"}), false).await;
    sync(&ada).await;
    stream.until("Brand new").await;
    synced(&ada, 28).await;
    let calls = standin.calls("GET /meetings").await - 7;
    assert!(calls <= 4, "only what is new is asked for: {calls} calls");
    assert!(stream.titles().iter().all(|title| title == "Brand new"), "nobody hears of what did not change");

    // One as a whole.
    let id = made[3];
    let one: Value = ada.get(&format!("/api/v1/meetings/{id}")).await.json().await.unwrap();
    assert!(one["summary"].as_str().unwrap().len() > 20 && one["transcript"].as_array().unwrap().len() > 3, "{one}");
    assert_eq!((&one["recording_id"], &one["deliveries"], &one["artifacts"]), (&json!(id), &json!([]), &json!([])));
    for absent in ["999999", "0", "x", "-1", "99999999999999999999"] {
        assert_eq!(ada.get(&format!("/api/v1/meetings/{absent}")).await.status(), 404, "{absent}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_who_ask_at_once_are_one_refresh() {
    let standin = Standin::start().await;
    let app = fleet(&standin, "").await;
    let ada = app.user("ada").await;
    store_key(&ada, KEY).await;
    standin.fault(json!({"path": "/meetings", "kind": "slow", "ms": 500})).await;
    let asked: Vec<_> = (0..20)
        .map(|_| {
            let ada = ada.clone();
            tokio::spawn(async move { list(&ada, "").await })
        })
        .collect();
    for one in asked {
        // Whoever came a little later may find the second page too.
        assert!(one.await.unwrap()["items"].as_array().unwrap().len() >= 10);
    }
    synced(&ada, 27).await;
    assert_eq!(standin.calls("GET /meetings").await, 7);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_list_is_shown_at_once_and_refreshed_behind_it() {
    let standin = Standin::start().await;
    let app = fleet(&standin, "meetings.ttl = \"400ms\"\n").await;
    let ada = app.user("ada").await;
    store_key(&ada, KEY).await;
    eventually("all are there", async || (ids(&list(&ada, "?limit=100").await).len() == 27).then_some(())).await;
    standin.add_meeting(KEY, json!({"title": "Later"}), false).await;
    let stale = eventually("the list is old", async || {
        let (cache, body) = list_as(&ada, "?limit=100").await;
        cache.contains("hit; ttl=").then_some(body).filter(|body| body["sync"]["state"] == "stale")
    })
    .await;
    assert!(ids(&stale).len() >= 27);
    eventually("it is refreshed", async || (ids(&list(&ada, "?limit=100").await).len() == 28).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_key_is_not_tried_again_until_there_is_another() {
    let standin = Standin::with(&["--key", KEY, "--key", "another-key=3"]).await;
    let app = fleet(&standin, "meetings.ttl = \"300ms\"\n").await;
    let ada = app.user("ada").await;
    let wrong = json!({"service": "fathom", "secret": "not-a-key-of-anybody"});
    let refused = ada.request(Method::PUT, "/api/v1/vault").json(&wrong).send().await.unwrap();
    assert!(refused.status().is_client_error(), "a pasted key is checked");
    store_key(&ada, KEY).await;
    eventually("all are there", async || (ids(&list(&ada, "?limit=100").await).len() == 27).then_some(())).await;
    standin.control(Method::DELETE, &format!("/keys/{KEY}"), None).await;
    let sync = state(&ada, "failed").await;
    assert!(sync["error"].as_str().unwrap().contains("does not accept the key"), "{sync}");
    let calls = standin.calls("GET /meetings").await;
    for _ in 0..5 {
        let kept = list(&ada, "?limit=100").await;
        assert_eq!((ids(&kept).len(), &kept["sync"]["state"]), (27, &json!("failed")), "what is there stays");
    }
    assert_eq!(standin.calls("GET /meetings").await, calls);
    store_key(&ada, "another-key").await;
    eventually("the other key is used", async || (ids(&list(&ada, "?limit=100").await).len() == 30).then_some(()))
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_are_waited_for_and_failures_are_said_and_overcome() {
    let standin = Standin::start().await;
    let app = fleet(&standin, "meetings.ttl = \"500ms\"\nfathom.timeout = \"2s\"\n").await;
    let ada = app.user("ada").await;
    store_key(&ada, KEY).await;
    standin
        .fault(json!({"path": "/meetings", "nth": 2, "times": 2, "kind": "status", "status": 429, "retry_after": 1}))
        .await;
    eventually("the limit passes", async || (ids(&list(&ada, "?limit=100").await).len() == 27).then_some(())).await;
    for fault in [
        json!({"path": "/meetings", "times": 10_000, "kind": "status", "status": 503}),
        json!({"path": "/meetings", "times": 10_000, "kind": "malformed"}),
        json!({"path": "/meetings", "times": 10_000, "kind": "drop"}),
    ] {
        standin.fault(fault.clone()).await;
        let failed = state(&ada, "failed").await;
        assert!(failed["error"].as_str().unwrap().starts_with("Fathom"), "{fault}: {failed}");
        assert_eq!(ids(&list(&ada, "?limit=100").await).len(), 27);
        standin.control(Method::DELETE, "/faults", None).await;
        eventually("it recovers", async || {
            let state = list(&ada, "").await["sync"]["state"].clone();
            (state == "fresh" || state == "stale").then_some(())
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn odd_meetings_are_taken_as_far_as_they_go() {
    let standin = Standin::with(&["--key", "odd-meetings=12"]).await;
    let app = fleet(&standin, "").await;
    let ada = app.user("ada").await;
    store_key(&ada, "odd-meetings").await;
    standin.fault(json!({"path": "/meetings", "nth": 1, "kind": "missing_field", "field": "created_at"})).await;
    standin.fault(json!({"path": "/meetings", "nth": 2, "kind": "missing_field", "field": "recording_id"})).await;
    list(&ada, "").await;
    let body = eventually("the list is whole", async || {
        let body = list(&ada, "?limit=100").await;
        (body["sync"]["state"] == "fresh" && ids(&body).len() == 12).then_some(body)
    })
    .await;
    // The first pass had no dates and lost the second page's numbers; the pass over the contents brought both.
    assert!(body["items"].as_array().unwrap().iter().all(|item| item["created_at"].is_string()), "{body}");
}

#[tokio::test(flavor = "multi_thread")]
async fn users_never_see_each_other_and_strangers_nothing() {
    let standin = Standin::with(&["--key", "key-of-ada=11", "--key", "key-of-bob=4"]).await;
    let app = fleet(&standin, "").await;
    let (ada, bob) = (app.user("ada").await, app.user("bob").await);
    store_key(&ada, "key-of-ada").await;
    store_key(&bob, "key-of-bob").await;
    let (of_ada, of_bob) = (synced(&ada, 11).await, synced(&bob, 4).await);
    let (of_ada, of_bob) = (ids(&of_ada), ids(&of_bob));
    assert!(of_ada.iter().all(|id| !of_bob.contains(id)));
    assert_eq!(bob.get(&format!("/api/v1/meetings/{}", of_ada[0])).await.status(), 404);
    for path in ["/api/v1/meetings", "/api/meetings", "/api/v1/meetings/1", "/api/v1/meetings/webhook"] {
        assert_eq!(app.get(path).await.status(), 401, "{path}");
    }
    for bad in ["?limit=0", "?limit=101", "?cursor=x", "?created_after=soon", "?nonsense=1", "?has_summary=maybe"] {
        assert_eq!(ada.get(&format!("/api/v1/meetings{bad}")).await.status(), 400, "{bad}");
    }
    // A sleeping instance is woken by a look, and by a refresh.
    app.put_to_sleep(&ada.id);
    sync(&ada).await;
    synced(&ada, 11).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_refresh_goes_on_where_it_was() {
    let standin = Standin::start().await;
    let mut app = TestApp::prepare(&(standin.keys() + "meetings.first_wait = \"0s\"\n"));
    app.arm("meetings.page_stored:2");
    app.launch().await;
    app.expect_log("stop a stray process");
    let ada = app.user("ada").await;
    store_key(&ada, KEY).await;
    // The answer may be cut off by the end of the program.
    drop(ada.request(Method::GET, "/api/v1/meetings").send().await);
    assert!(!app.ended().success(), "the failpoint kills it");
    assert_eq!(standin.calls("GET /meetings").await, 3, "the key's check and two pages");
    app.launch().await;
    let ada = ada.at(&app);
    synced(&ada, 27).await;
    assert_eq!(standin.calls("GET /meetings").await, 7, "the third page, then three of contents");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_that_is_read_between_contents_does_not_end_them() {
    let standin = Standin::start().await;
    let mut app = TestApp::prepare(&(standin.keys() + "meetings.first_wait = \"0s\"\n"));
    // The first page of contents.
    app.arm("meetings.page_stored:4");
    app.launch().await;
    app.expect_log("stop a stray process");
    let ada = app.user("ada").await;
    store_key(&ada, KEY).await;
    drop(ada.request(Method::GET, "/api/v1/meetings").send().await);
    assert!(!app.ended().success(), "the failpoint kills it");
    let data = app.data().join("instances").join(&ada.id).join("pb_data").join("data.db");
    let database = rusqlite::Connection::open(data).unwrap();
    database.busy_timeout(std::time::Duration::from_secs(20)).unwrap();
    let changed = database.execute("UPDATE sync_state SET synced_at = '2020-01-01 00:00:00.000Z'", []).unwrap();
    assert_eq!(changed, 1);
    drop(database);
    // The list is that old that it is read before the contents go on, and killed again there.
    app.arm("meetings.page_stored:1");
    app.launch().await;
    let ada = ada.at(&app);
    drop(ada.request(Method::GET, "/api/v1/meetings").send().await);
    assert!(!app.ended().success(), "the failpoint kills it");
    app.launch().await;
    synced(&ada.at(&app), 27).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_for_a_limit_keeps_nobody_from_their_turn() {
    let standin = Standin::with(&["--key", "key-of-ada=11", "--key", "key-of-bob=4"]).await;
    let app = fleet(&standin, "meetings.max_concurrent = 1\nmeetings.first_wait = \"0s\"\n").await;
    let (ada, bob) = (app.user("ada").await, app.user("bob").await);
    store_key(&ada, "key-of-ada").await;
    store_key(&bob, "key-of-bob").await;
    let before = standin.calls("GET /meetings").await;
    standin.fault(json!({"path": "/meetings", "kind": "status", "status": 429, "retry_after": 600})).await;
    list(&ada, "").await;
    eventually("the limit is met", async || (standin.calls("GET /meetings").await > before).then_some(())).await;
    synced(&bob, 4).await;
    assert!(ids(&list(&ada, "").await).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_shared_late_is_found_by_who_asks_for_it() {
    let standin = Standin::start().await;
    let app = fleet(&standin, "meetings.overlap = \"0s\"\n").await;
    let ada = app.user("ada").await;
    store_key(&ada, KEY).await;
    synced(&ada, 27).await;
    let oldest = standin.meetings(KEY).await.last().unwrap()["created_at"].clone();
    standin.add_meeting(KEY, json!({"title": "Late", "created_at": oldest}), false).await;
    sync(&ada).await;
    synced(&ada, 28).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_of_before_gets_its_collections_when_it_wakes() {
    let templates = tempfile::tempdir().unwrap();
    let from = [root().join("pb_templates/global"), root().join("pb_templates/personal")];
    assert!(command("cp").arg("-r").args(from).arg(templates.path()).status().unwrap().success());
    let migration = templates.path().join("personal/pb_migrations/1800000003_meetings.js");
    let text = std::fs::read_to_string(&migration).unwrap();
    std::fs::remove_file(&migration).unwrap();
    let standin = Standin::start().await;
    let keys = format!("pocketbase.templates = \"{}\"\n", templates.path().display());
    let mut app = fleet(&standin, &keys).await;
    let ada = app.user("ada").await;
    ada.note("before").await;
    let none = ada.get("/api/v1/meetings").await;
    assert_eq!(none.status(), 501);
    let none: Value = none.json().await.unwrap();
    assert!(none["error"]["message"].as_str().unwrap().contains("brought up to date"), "{none}");
    assert!(app.terminate().success());
    std::fs::write(&migration, text).unwrap();
    app.launch().await;
    let ada = ada.at(&app);
    store_key(&ada, KEY).await;
    synced(&ada, 27).await;
    assert_eq!(ada.titles().await, ["before"]);
    assert_eq!(list(&ada, "?search=the").await["items"].as_array().unwrap().len(), 25);
}
