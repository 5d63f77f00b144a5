//! What one tenant may have of the machine, and what happens beyond.

use futures_util::StreamExt;
use reqwest::Method;
use serde_json::Value;
use serde_json::json;

use crate::support::TestApp;
use crate::support::User;
use crate::support::eventually;
use crate::support::http;

async fn put(user: &User, id: &str, body: &Value) -> (u16, Value) {
    let path = format!("/api/v1/admin/tenants/{id}/quota");
    let answer = user.request(Method::PUT, &path).json(body).send().await.unwrap();
    (answer.status().as_u16(), answer.json().await.unwrap())
}

async fn usage(user: &User, query: &str) -> (u16, Value) {
    let answer = user.get(&format!("/api/v1/usage{query}")).await;
    (answer.status().as_u16(), answer.json().await.unwrap())
}

async fn write(user: &User, title: &str) -> (u16, Value, Option<String>) {
    let answer = user.post("/api/collections/notes/records", json!({ "title": title })).await;
    let disk = answer.headers().get("x-pocketfleet-disk").map(|value| value.to_str().unwrap().to_owned());
    (answer.status().as_u16(), answer.json().await.unwrap_or_default(), disk)
}

#[tokio::test(flavor = "multi_thread")]
async fn beyond_the_hard_limit_writes_are_refused_and_reading_and_deleting_go_on() {
    let app = TestApp::with("quota.sweep_interval = \"1s\"\n").await;
    let (ada, bob, root) = (app.user("ada").await, app.user("bob").await, app.admin("root").await);
    let note = ada.note("one").await;
    let (status, before) = usage(&ada, "").await;
    let used = before["disk_used"].as_u64().unwrap();
    assert_eq!((status, &before["disk_level"], &before["tenant"]), (200, &json!("ok"), &json!(ada.id)), "{before}");
    assert!(used > 100_000, "{before}");

    // Told first.
    let (status, shown) = put(&root, &ada.id, &json!({"disk_soft": used / 2, "disk_hard": used * 100})).await;
    assert_eq!((status, &shown["disk_level"]), (200, &json!("soft")), "{shown}");
    let disk = eventually("a header says so", async || write(&ada, "two").await.2).await;
    assert!(disk.starts_with("soft; used=") && disk.contains("; hard="), "{disk}");
    let history = format!("/api/v1/admin/realtime/history?topic=user:{}", ada.id);
    let event = eventually("the owner is told", async || {
        let told: Value = root.get(&history).await.json().await.unwrap();
        told["items"].as_array()?.iter().find(|event| event.to_string().contains("DiskUsage")).cloned()
    })
    .await;
    assert!(event.to_string().contains("\"soft\""), "{event}");

    // Then refused, in the shape that SDKs read.
    let (status, shown) = put(&root, &ada.id, &json!({"disk_hard": 1 << 16})).await;
    assert_eq!((status, &shown["disk_level"], &shown["own"]), (200, &json!("hard"), &json!({"disk_hard": 1 << 16})));
    let (status, refused, _) = write(&ada, "three").await;
    assert_eq!(
        (status, &refused["code"], &refused["status"]),
        (507, &json!("QUOTA_EXCEEDED"), &json!(507)),
        "{refused}"
    );
    assert_eq!(refused["data"]["limit"], 1 << 16);
    let batch =
        json!({"requests": [{"method": "POST", "url": "/api/collections/notes/records", "body": {"title": "x"}}]});
    assert_eq!(ada.post("/api/batch", batch).await.status(), 507);
    assert_eq!(ada.get("/api/collections/notes/records").await.status(), 200);
    let delete = ada.request(Method::DELETE, &format!("/api/collections/notes/records/{note}")).send().await.unwrap();
    assert_eq!(delete.status(), 204);
    assert_eq!(write(&bob, "others go on").await.0, 200);
    let metrics = eventually("the totals are told", async || {
        let metrics = app.get("/metrics").await.text().await.unwrap();
        metrics.contains("pocketfleet_tenants_over_quota{state=\"hard\"} 1").then_some(metrics)
    })
    .await;
    assert!(!metrics.contains(&ada.id), "no tenant is named there");

    // And let in again.
    assert_eq!(put(&root, &ada.id, &json!({})).await.0, 200);
    assert_eq!(write(&ada, "four").await.0, 200);
    let listed: Value = root.get("/api/v1/admin/usage").await.json().await.unwrap();
    assert!(listed["items"].as_array().unwrap().iter().any(|item| item["tenant"] == json!(bob.id)), "{listed}");
    let shown = app.cli_json(&["tenants", "quota", &ada.id, "--disk-hard", "65536"]);
    assert_eq!(shown["disk_level"], "hard", "{shown}");
    assert_eq!(app.cli_json(&["tenants", "quota", &ada.id, "--clear"])["own"], json!({}));
    assert!(!app.cli_json(&["tenants", "usage"])["items"].as_array().unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_above_the_limit_does_not_reach_the_instance() {
    let app = TestApp::with("quota.file_size = 100000\n").await;
    let ada = app.user("ada").await;
    ada.note("one").await;
    let large = json!({ "title": "x".repeat(200_000) });
    let answer = ada.post("/api/collections/notes/records", large).await;
    assert_eq!(answer.status(), 413);
    // One that does not say how long it is is cut.
    let chunks = futures_util::stream::iter((0..40).map(|_| Ok::<_, std::io::Error>(vec![b' '; 10_000])));
    // On a connection of its own, which the server closes.
    let other = User { http: http().build().unwrap(), ..ada.clone() };
    let request = other.request(Method::POST, "/api/collections/notes/records");
    let request = request.header("content-type", "application/json").body(reqwest::Body::wrap_stream(chunks));
    if let Ok(answer) = request.send().await {
        assert_eq!(answer.status(), 413);
    }
    assert_eq!(ada.titles().await, ["one"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_and_uploads_are_counted_per_tenant() {
    let app = TestApp::start().await;
    let (ada, bob, root) = (app.user("ada").await, app.user("bob").await, app.admin("root").await);
    ada.note("one").await;
    assert_eq!(put(&root, &ada.id, &json!({"requests_per_minute": 3, "uploads_per_hour": 1})).await.0, 200);
    let form = || reqwest::multipart::Form::new().text("title", "with a form");
    let upload = |user: &User| user.request(Method::POST, "/api/collections/notes/records").multipart(form()).send();
    assert_eq!(upload(&ada).await.unwrap().status(), 200);
    let refused = upload(&ada).await.unwrap();
    assert_eq!((refused.status().as_u16(), refused.headers().contains_key("retry-after")), (429, true));
    let mut last = 0;
    for _ in 0..4 {
        let answer = ada.get("/api/collections/notes/records").await;
        last = answer.status().as_u16();
        if last == 429 {
            let wait: u64 = answer.headers()["retry-after"].to_str().unwrap().parse().unwrap();
            assert!((1..=60).contains(&wait));
        }
    }
    assert_eq!(last, 429);
    assert_eq!(bob.get("/api/collections/notes/records").await.status(), 200, "others are not counted with them");

    assert_eq!(put(&root, &ada.id, &json!({"in_flight": 1})).await.0, 200);
    // One request whose body does not end.
    let open = ada.request(Method::POST, "/api/collections/notes/records").header("content-type", "application/json");
    let body = futures_util::stream::once(async { Ok::<_, std::io::Error>("{\"title\": \"") });
    let body = reqwest::Body::wrap_stream(body.chain(futures_util::stream::pending()));
    let held = tokio::spawn(open.body(body).send());
    let at_work = async || usage(&ada, "").await.1["in_flight"].as_u64();
    eventually("it is at work", async || at_work().await.filter(|count| *count == 1)).await;
    assert_eq!(ada.get("/api/collections/notes/records").await.status(), 429, "its place is taken");
    assert_eq!(bob.get("/api/collections/notes/records").await.status(), 200, "others have places of their own");
    held.abort();
    drop(held.await);
    eventually("places come back", async || {
        (ada.get("/api/collections/notes/records").await.status() == 200).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_has_no_room_wakes_nothing() {
    let app = TestApp::start().await;
    let (ada, root) = (app.user("ada").await, app.admin("root").await);
    ada.note("one").await;
    assert_eq!(put(&root, &ada.id, &json!({"disk_hard": 1 << 16})).await.0, 200);
    app.cli(&["tenants", "sleep", &ada.id]);
    assert_eq!(app.tenant(&ada.id)["state"], "asleep");
    assert_eq!(write(&ada, "two").await.0, 507);
    assert_eq!(app.tenant(&ada.id)["state"], "asleep");
    assert_eq!(ada.titles().await, ["one"], "reading wakes it");
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_beyond_sense_and_people_without_the_right_are_refused() {
    let app = TestApp::start().await;
    let (ada, eve, root) = (app.user("ada").await, app.user("eve").await, app.admin("root").await);
    let path = format!("/api/v1/admin/tenants/{}/quota", ada.id);
    let huge = "{\"disk_hard\": 9223372036854775808}";
    for bad in [
        "{\"disk_hard\": -1}",
        "{\"disk_hard\": NaN}",
        "{\"disk_hard\": 1.5}",
        "{\"disk_hard\": 1e999}",
        huge,
        "{\"disk_hard\": 18446744073709551616}",
        "{\"disk_hard\": \"5\"}",
        "{\"disk\": 5}",
        "{\"memory\": 1}",
        "{\"disk_soft\": 3000000, \"disk_hard\": 2000000}",
        "[]",
        "",
    ] {
        let request = root.request(Method::PUT, &path).header("content-type", "application/json").body(bad);
        let answer = request.send().await.unwrap();
        assert_eq!(answer.status(), 400, "{bad}: {}", answer.text().await.unwrap());
    }
    for who in [&ada, &eve] {
        assert_eq!(put(who, &ada.id, &json!({"disk_hard": 0})).await.0, 403);
        assert_eq!(who.get("/api/v1/admin/usage").await.status(), 403);
    }
    assert_eq!(put(&root, "nobody", &json!({})).await.0, 404);
    assert_eq!(put(&root, "global", &json!({})).await.0, 403);
    assert_eq!(usage(&eve, &format!("?tenant={}", ada.id)).await.0, 404, "usage is one's own");
    let made = ada.post("/api/v1/tenants", json!({"name": "Acme", "slug": "acme"})).await;
    assert_eq!(made.status(), 201);
    assert_eq!(usage(&ada, "?tenant=acme").await.0, 200);
    assert_eq!(usage(&eve, "?tenant=acme").await.0, 404);
    assert_eq!(app.get("/api/v1/usage").await.status(), 401);
    for bad in ["-1", "NaN", "18446744073709551616", "9223372036854775808"] {
        let output = app.cli(&["tenants", "quota", &ada.id, &format!("--disk-hard={bad}")]);
        assert!(!output.status.success(), "{bad}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn below_the_reserve_of_the_disk_nobody_writes() {
    let mut app = TestApp::start().await;
    app.expect_log("the disk is down to its reserve");
    let ada = app.user("ada").await;
    let note = ada.note("one").await;
    app.terminate();
    // More than any disk has.
    app.add_keys("quota.reserve = 1125899906842624\n");
    app.launch().await;
    let ada = ada.at(&app);
    let refused =
        eventually("writes are refused", async || Some(write(&ada, "two").await).filter(|(status, ..)| *status == 507))
            .await;
    assert_eq!(refused.1["code"], "SERVER_FULL");
    assert_eq!(ada.get("/api/collections/notes/records").await.status(), 200);
    let delete = ada.request(Method::DELETE, &format!("/api/collections/notes/records/{note}")).send().await.unwrap();
    assert_eq!(delete.status(), 204);
    eventually("the metric says so", async || {
        let metrics = app.get("/metrics").await.text().await.unwrap();
        metrics.contains("pocketfleet_disk_reserved 1").then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_is_given_to_the_process_at_its_next_start() {
    let app = TestApp::start().await;
    let (ada, root) = (app.user("ada").await, app.admin("root").await);
    ada.note("one").await;
    assert_eq!(put(&root, &ada.id, &json!({"memory": 200 << 20})).await.0, 200);
    app.put_to_sleep(&ada.id);
    assert_eq!(ada.titles().await, ["one"]);
    let pid = app.tenant(&ada.id)["pid"].as_i64().unwrap();
    let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let line = limits.lines().find(|line| line.starts_with("Max data size")).unwrap();
    assert!(line.contains(&(200_u64 << 20).to_string()), "{line}");
}
