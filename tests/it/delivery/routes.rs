//! Destinations over HTTP: what is kept, what is refused, and who sees what.

use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering;

use reqwest::Method;
use serde_json::Value;
use serde_json::json;

use super::Bench;
use crate::support::eventually;

#[tokio::test(flavor = "multi_thread")]
async fn destinations_are_made_changed_and_removed_by_their_owner_alone() {
    let bench = Bench::start(&[], &[], "").await;
    let listed = bench.get("/api/v1/destinations").await;
    let ids: Vec<&str> = listed["items"].as_array().unwrap().iter().map(|item| item["id"].as_str().unwrap()).collect();
    assert_eq!(ids, ["folder", "loom"]);
    assert_eq!(listed["items"][1]["is_default"], true);

    let id = bench.destination("folder", json!({"subfolder": "Team"}), "").await;
    let path = format!("/api/v1/destinations/{id}");
    let (status, changed) = bench.call(Method::PATCH, &path, json!({"is_default": true, "name": "Archive"})).await;
    assert_eq!((status, &changed["is_default"], &changed["name"]), (200, &json!(true), &json!("Archive")), "{changed}");
    assert_eq!(bench.call(Method::POST, &format!("{path}/check"), Value::Null).await.0, 200);
    let second = bench.destination("http_put", json!({"url": "https://example.com/in"}), "").await;
    let second_path = format!("/api/v1/destinations/{second}");
    assert_eq!(bench.call(Method::PATCH, &second_path, json!({"is_default": true})).await.0, 200);
    assert_eq!(bench.get(&path).await["is_default"], false, "there is one default");

    for (kind, settings, key) in [
        ("folder", json!({"subfolder": "../../etc"}), ""),
        ("http_put", json!({"url": "http://127.0.0.1:1/in"}), ""),
        ("http_put", json!({"url": "https://169.254.169.254/"}), ""),
        ("http_tus", json!({"url": "https://[::ffff:127.0.0.1]/"}), ""),
        ("http_tus", json!({"url": "https://example.com:22/"}), ""),
        ("s3", json!({"bucket": "meetings", "endpoint": "https://10.0.0.1"}), ""),
        ("s3", json!({"bucket": "meetings"}), "00000000-0000-4000-8000-000000000000"),
        ("loom", json!({"api_key": "x"}), ""),
        ("ftp", json!({}), ""),
    ] {
        let body = json!({"name": "Bad", "kind": kind, "settings": settings, "vault_key": key});
        let (status, answer) = bench.call(Method::POST, "/api/v1/destinations", body).await;
        assert_eq!(status, 400, "{kind} {settings}: {answer}");
    }
    let bob = bench.app.user("bob").await;
    for method in [Method::GET, Method::DELETE] {
        assert_eq!(bob.request(method, &path).send().await.unwrap().status(), 404);
    }
    assert_eq!(bench.app.get("/api/v1/destinations").await.status(), 401);
    let written = bench.user.post("/api/collections/destinations/records", json!({"name": "x", "kind": "loom"})).await;
    assert_eq!(written.status(), 403, "only pocketfleet writes them");
    assert_eq!(bench.call(Method::DELETE, &path, Value::Null).await.0, 204);
    assert_eq!(bench.call(Method::DELETE, &path, Value::Null).await.0, 404);
    assert_eq!(bench.call(Method::DELETE, "/api/v1/destinations/loom", Value::Null).await.0, 400);
}

#[tokio::test(flavor = "multi_thread")]
async fn where_a_key_is_sent_is_said_after_a_fresh_sign_in_only() {
    let mut bench = Bench::start(&[], &[], "vault.reveal_max_age = \"10s\"\n").await;
    let key = bench.store_key("http", "token-of-tests", Value::Null).await;
    let made = |name: &str, key: &str| json!({"name": name, "kind": "http_put", "settings": {"url": "https://example.com/in"}, "vault_key": key});
    let (email, password) = (bench.user.email.clone(), bench.user.password.clone());
    bench.user = bench.app.sign_in(&email, &password).await;
    let (status, item) = bench.call(Method::POST, "/api/v1/destinations", made("Fresh", &key)).await;
    assert_eq!(status, 201, "{item}");
    let path = format!("/api/v1/destinations/{}", item["id"].as_str().unwrap());
    // Another address each time: one that is known already is shown nothing new.
    let count = AtomicU32::new(0);
    let elsewhere = || {
        let number = count.fetch_add(1, Ordering::Relaxed);
        json!({"settings": {"url": format!("https://example.org/in/{number}")}})
    };
    let is_old =
        async |answer: (u16, Value)| (answer.0 == 403 && answer.1["error"]["code"] == "SIGN_IN_AGAIN").then_some(());
    eventually("the sign-in is too old", async || is_old(bench.call(Method::PATCH, &path, elsewhere()).await).await)
        .await;
    assert!(is_old(bench.call(Method::POST, "/api/v1/destinations", made("Old", &key)).await).await.is_some());
    // What shows the key to nobody new needs none.
    assert_eq!(bench.call(Method::PATCH, &path, json!({"name": "Renamed", "is_default": true})).await.0, 200);
    assert_eq!(bench.call(Method::POST, "/api/v1/destinations", made("Without", "")).await.0, 201);
    let fresh = eventually("a fresh sign-in", async || {
        let again = bench.app.sign_in(&email, &password).await;
        let answer = again.request(Method::PATCH, &path).json(&elsewhere()).send().await.unwrap();
        (answer.status() == 200).then_some(answer)
    })
    .await;
    let changed: Value = fresh.json().await.unwrap();
    assert!(changed["settings"]["url"].as_str().unwrap().starts_with("https://example.org/in/"), "{changed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn artifacts_of_nothing_are_none_and_links_of_nobody_lead_nowhere() {
    let bench = Bench::start(&[], &[], "").await;
    assert_eq!(bench.get("/api/v1/meetings/7/artifacts").await["items"], json!([]));
    assert_eq!(bench.call(Method::GET, "/api/v1/meetings/x/artifacts", Value::Null).await.0, 404);
    for query in ["", "?token=", "?token=a.1.b", "?token=..", "?token=%00"] {
        let status = bench.app.get(&format!("/api/v1/artifacts/abc/download{query}")).await.status();
        assert_eq!(status, 404, "{query}");
    }
}
