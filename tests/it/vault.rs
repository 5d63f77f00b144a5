//! Users' secrets over HTTP: stored, listed, shown to their owner after a fresh sign-in, and to nobody else.

use reqwest::Method;
use serde_json::Value;
use serde_json::json;

use crate::support::TestApp;
use crate::support::User;
use crate::support::eventually;
use crate::support::socket::Socket;

const VAULT: &str = "/api/v1/vault";
const ABSENT: &str = "0b8f9c0e-6b7e-4d62-9a53-6a1f0f2f3c11";

async fn put(user: &User, body: Value) -> (u16, Value) {
    let answer = user.request(Method::PUT, VAULT).json(&body).send().await.unwrap();
    (answer.status().as_u16(), answer.json().await.unwrap())
}

async fn stored(user: &User, service: &str, secret: &str) -> String {
    let (status, item) = put(user, json!({"service": service, "secret": secret})).await;
    assert_eq!(status, 201, "{item}");
    item["key_id"].as_str().unwrap().to_owned()
}

async fn reveal(user: &User, id: &str) -> (u16, Value) {
    let answer = user.post(&format!("{VAULT}/{id}/reveal"), json!({"purpose": "test"})).await;
    assert_eq!(answer.headers()["cache-control"], "no-store");
    (answer.status().as_u16(), answer.json().await.unwrap())
}

async fn items(user: &User, path: &str) -> Vec<Value> {
    let answer: Value = user.get(path).await.json().await.unwrap();
    answer["items"].as_array().unwrap().clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_is_stored_listed_changed_shown_and_deleted() {
    let app = TestApp::start().await;
    let ada = app.user("ada").await;
    let s3 = json!({"service": "s3", "secret": "planted-s3-secret-key", "label": "backups",
        "settings": {"access_key_id": "AKIA42", "region": "eu-central-1"}});
    let (status, item) = put(&ada, s3).await;
    assert_eq!((status, &item["hint"], &item["state"]), (201, &json!("…-key"), &json!("valid")), "{item}");
    assert_eq!((&item["settings"]["access_key_id"], &item["expires_at"]), (&json!("AKIA42"), &Value::Null));
    let id = stored(&ada, "http", "planted-one").await;
    // Under the address of the seeds too.
    let again = ada.request(Method::PUT, "/api/keys").json(&json!({"service": "http", "secret": "planted-two"}));
    let again = again.send().await.unwrap();
    assert_eq!(again.status(), 200, "replaced");
    assert_eq!(again.json::<Value>().await.unwrap()["key_id"], id);
    for path in [VAULT, "/api/keys"] {
        let found = items(&ada, path).await;
        assert_eq!(found.iter().map(|item| &item["service"]).collect::<Vec<_>>(), ["http", "s3"], "{path}");
        assert!(!format!("{found:?}").contains("planted"));
    }
    assert_eq!(reveal(&ada, &id).await, (200, json!({"secret": "planted-two"})));
    let change = json!({"label": "main", "expires_at": "2090-01-01T02:00:00+02:00"});
    let far = ada.request(Method::PATCH, &format!("{VAULT}/{id}")).json(&change).send().await.unwrap();
    assert_eq!(far.status(), 400, "beyond ten years");
    let soon = time::OffsetDateTime::now_utc() + time::Duration::hours(2);
    let soon = soon.format(&time::format_description::well_known::Rfc3339).unwrap();
    let change = json!({"label": "main", "expires_at": soon});
    let changed = ada.request(Method::PATCH, &format!("{VAULT}/{id}")).json(&change).send().await.unwrap();
    let changed: Value = changed.json().await.unwrap();
    assert_eq!((&changed["label"], &changed["state"]), (&json!("main"), &json!("expiring")));
    eventually("the end is announced", async || app.log().contains("a secret expires soon").then_some(())).await;
    let gone = ada.request(Method::DELETE, &format!("/api/keys/{id}")).send().await.unwrap();
    assert_eq!(gone.status(), 204);
    assert_eq!(reveal(&ada, &id).await.0, 404);
    assert_eq!(items(&ada, VAULT).await.len(), 1);
    let verdict = app.cli_json(&["audit", "verify"]);
    assert_eq!(verdict["intact"], true);
    let exported = app.cli(&["audit", "export"]);
    let exported = String::from_utf8(exported.stdout).unwrap();
    let actions: Vec<String> = exported
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["action"].as_str().unwrap().to_owned())
        .collect();
    let expected = [
        "master_key.added",
        "secret.stored",
        "secret.stored",
        "secret.replaced",
        "secret.revealed",
        "secret.changed",
        "secret.expiring",
        "secret.deleted",
        "secret.reveal_refused",
    ];
    assert_eq!(actions, expected);
    assert!(!exported.contains("planted"));
    // Administrators read it, others do not.
    assert_eq!(ada.get("/api/v1/admin/audit").await.status(), 403);
    let root = app.admin("root").await;
    let page: Value = root.get("/api/v1/admin/audit?limit=2").await.json().await.unwrap();
    assert_eq!((&page["items"][0]["action"], &page["next"]), (&json!("admin.created"), &json!(9)), "{page}");
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_owns_a_secret_is_told_once_that_its_time_ends() {
    let app = TestApp::start().await;
    let (ada, bob) = (app.user("ada").await, app.user("bob").await);
    let (mut hers, welcome) = Socket::hello(&app, &ada, "/ws", Value::Null).await;
    let (mut his, _) = Socket::hello(&app, &bob, "/ws", Value::Null).await;
    let in_hours = |hours| {
        let end = time::OffsetDateTime::now_utc() + time::Duration::hours(hours);
        end.replace_nanosecond(0).unwrap().format(&time::format_description::well_known::Rfc3339).unwrap()
    };
    let soon = in_hours(2);
    let secret = json!({"service": "http", "secret": "planted-and-ending", "label": "old", "expires_at": soon});
    let (status, item) = put(&ada, secret).await;
    assert_eq!((status, &item["state"]), (201, &json!("expiring")), "{item}");
    let told = hers.hear().await;
    let data = json!({"key_id": item["key_id"], "service": "http", "label": "old", "expires_at": soon});
    assert_eq!((&told["type"], &told["event"], &told["data"]), (&json!("Event"), &json!("SecretExpiring"), &data));
    assert_eq!((&told["topic"], &told["entity"]), (&json!(format!("user:{}", ada.id)), &json!("secret")));
    assert!(!told.to_string().contains("planted"));
    // One that ends later is no news, and neither is the same end again.
    let (status, _) = put(
        &ada,
        json!({"service": "s3", "secret": "planted-for-long", "expires_at": in_hours(2000),
        "settings": {"access_key_id": "AKIA42"}}),
    )
    .await;
    assert_eq!(status, 201);
    let path = format!("{VAULT}/{}", item["key_id"].as_str().unwrap());
    for end in [in_hours(2000), soon.clone(), in_hours(3)] {
        let changed = ada.request(Method::PATCH, &path).json(&json!({"expires_at": end})).send().await.unwrap();
        assert_eq!(changed.status(), 200);
    }
    // Another end is.
    let again = hers.hear().await;
    assert_ne!(again["data"]["expires_at"], json!(soon));
    assert_eq!(again["prev"], told["offset"]);
    his.is_silent().await;
    // Whoever was away hears of both.
    let resume = json!({"epoch": welcome["epoch"], "topics": {(format!("user:{}", ada.id)): 0}});
    let (mut late, _) = Socket::hello(&app, &ada, "/ws", resume).await;
    let mut heard = Vec::new();
    while heard.len() < 2 {
        let frame = late.hear().await;
        if frame["type"] == "Event" {
            heard.push(frame["offset"].clone());
        }
    }
    assert_eq!(heard, [told["offset"].clone(), again["offset"].clone()]);
    let page = ada.request(Method::GET, "/app/settings").header("cookie", format!("session_token={}", ada.token));
    let page = page.send().await.unwrap().text().await.unwrap();
    assert!(page.contains("expires soon"), "{page}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_elses_secret_can_be_told_from_one_that_is_not_there() {
    let app = TestApp::start().await;
    let (ada, bob) = (app.user("ada").await, app.user("bob").await);
    let id = stored(&ada, "http", "planted-of-ada").await;
    let mut answers = Vec::new();
    for id in [&*id, ABSENT, "not-a-uuid"] {
        let (status, mut body) = reveal(&bob, id).await;
        body["error"]["request_id"] = Value::Null;
        answers.push((status, body));
        for method in [Method::PATCH, Method::DELETE] {
            let request = bob.request(method.clone(), &format!("{VAULT}/{id}")).json(&json!({"label": "mine"}));
            assert_eq!(request.send().await.unwrap().status(), 404, "{method} {id}");
        }
    }
    answers.dedup();
    assert_eq!(answers.len(), 1, "{answers:?}");
    assert_eq!(answers[0].0, 404);
    assert!(items(&bob, VAULT).await.is_empty());
    assert_eq!(reveal(&ada, &id).await.0, 200);
    assert_eq!(app.get(VAULT).await.status(), 401);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refreshed_token_is_not_a_fresh_sign_in() {
    let app = TestApp::with("vault.reveal_max_age = \"10s\"\nvault.reveals_per_minute = 6000\n").await;
    let ada = app.user("ada").await;
    let id = stored(&ada, "http", "planted-of-ada").await;
    let ada = app.sign_in(&ada.email, &ada.password).await;
    assert_eq!(reveal(&ada, &id).await.0, 200);
    let too_old = async |user: &User| {
        let (status, body) = reveal(user, &id).await;
        (status == 403 && body["error"]["code"] == "SIGN_IN_AGAIN").then_some(())
    };
    eventually("the sign-in is too old", || too_old(&ada)).await;
    let fresh: Value = ada.post("/auth/refresh", json!({})).await.json().await.unwrap();
    let refreshed = User { token: fresh["token"].as_str().unwrap().to_owned(), ..ada.clone() };
    assert_eq!(refreshed.get("/auth/me").await.status(), 200);
    assert!(too_old(&refreshed).await.is_some());
    // A sign-in in the very second of a refresh gets the refreshed token again, so it may take two.
    eventually("a fresh sign-in", async || {
        let again = app.sign_in(&ada.email, &ada.password).await;
        (reveal(&again, &id).await.0 == 200).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_input_is_refused_without_effect_or_echo() {
    let mut app = TestApp::with("vault.changes_per_minute = 6000\n").await;
    app.expect_log("the instance");
    let (ada, bob) = (app.user("ada").await, app.user("bob").await);
    let id = stored(&ada, "http", "planted-of-ada").await;
    let of_bob = stored(&bob, "http", "planted-of-bob").await;
    let before = items(&ada, VAULT).await;
    let secret = "planted-canary-0815";
    let long = "s".repeat(300);
    let with = |fields: Value| {
        let mut body = json!({"service": "http", "label": "new", "secret": secret});
        body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        body
    };
    let rows: Vec<(u8, Value, u16, &str)> = vec![
        (65, with(json!({"secret": ""})), 400, "VALIDATION_FAILED"),
        (65, with(json!({"secret": "   "})), 400, "VALIDATION_FAILED"),
        (66, with(json!({"secret": secret.repeat(60_000)})), 413, "BODY_TOO_LARGE"),
        (66, with(json!({"secret": secret.repeat(1_000)})), 400, "VALIDATION_FAILED"),
        (67, with(json!({"secret": format!("{secret}\nx")})), 400, "VALIDATION_FAILED"),
        (67, with(json!({"secret": format!("{secret}\0x")})), 400, "VALIDATION_FAILED"),
        (68, with(json!({"service": ""})), 400, "VALIDATION_FAILED"),
        (68, with(json!({"service": long})), 400, "VALIDATION_FAILED"),
        (68, with(json!({"service": "../x"})), 400, "VALIDATION_FAILED"),
        (68, with(json!({"service": "http\u{1}"})), 400, "VALIDATION_FAILED"),
        (68, with(json!({"service": "http\u{202e}"})), 400, "VALIDATION_FAILED"),
        (68, with(json!({"label": "a\u{202e}b"})), 400, "VALIDATION_FAILED"),
        (69, with(json!({"expires_at": "2020-01-01T00:00:00Z"})), 400, "VALIDATION_FAILED"),
        (69, with(json!({"expires_at": "292277026596-12-04T15:30:07Z"})), 400, "VALIDATION_FAILED"),
        (69, with(json!({"expires_at": -1})), 400, "INVALID_BODY"),
        (69, with(json!({"expires_at": "2020-01-01T02:00:00+02:00"})), 400, "VALIDATION_FAILED"),
        (69, with(json!({"expires_at": "tomorrow"})), 400, "VALIDATION_FAILED"),
        (75, with(json!({"created_at": "2020-01-01T00:00:00Z"})), 400, "INVALID_BODY"),
        (75, with(json!({"tenant_id": bob.id})), 400, "INVALID_BODY"),
        (75, with(json!({"version": 7})), 400, "INVALID_BODY"),
        (75, with(json!({"key_id": of_bob})), 400, "INVALID_BODY"),
        (77, with(json!({"secret": "{{ PLANTED_CANARY }}"})), 400, "VALIDATION_FAILED"),
        (77, with(json!({"secret": "${PLANTED_CANARY}"})), 400, "VALIDATION_FAILED"),
    ];
    for (number, body, status, code) in rows {
        let answer = ada.request(Method::PUT, VAULT).json(&body).send().await.unwrap();
        let found = answer.status().as_u16();
        let text = answer.text().await.unwrap();
        let short: String = body.to_string().chars().take(200).collect();
        assert_eq!(found, status, "{number} {short}: {text}");
        assert!(text.contains(code), "{number} {short}: {text}");
        assert!(!text.to_lowercase().contains("planted"), "{number} repeats the secret: {text}");
    }
    // 67: not UTF-8.
    let raw = b"{\"service\":\"http\",\"label\":\"new\",\"secret\":\"planted\xff\xfe\"}".to_vec();
    let request = ada.request(Method::PUT, VAULT).header("content-type", "application/json").body(raw);
    assert_eq!(request.send().await.unwrap().status(), 400);
    // 70: the same service and label replaces, of one tenant and not of another.
    assert_eq!(put(&ada, json!({"service": "http", "secret": "planted-of-ada"})).await.0, 200);
    // 71, 74: what is somebody else's, or no id.
    for other in [&*of_bob, "x", "00000000000000000000000000000000"] {
        assert_eq!(reveal(&ada, other).await.0, 404, "{other}");
    }
    // 72: an expired one is neither shown nor used.
    let soon = time::OffsetDateTime::now_utc() + time::Duration::seconds(1);
    let soon = soon.format(&time::format_description::well_known::Rfc3339).unwrap();
    let (_, brief) = put(&bob, json!({"service": "loom", "secret": "planted-brief", "expires_at": soon})).await;
    eventually("it has expired", async || {
        (items(&bob, VAULT).await.iter().any(|item| item["state"] == "expired")).then_some(())
    })
    .await;
    let (status, body) = reveal(&bob, brief["key_id"].as_str().unwrap()).await;
    assert_eq!((status, &body["error"]["code"]), (409, &json!("SECRET_EXPIRED")));
    // 73: only POST shows.
    for method in [Method::GET, Method::PUT, Method::DELETE] {
        let answer = ada.request(method, &format!("{VAULT}/{id}/reveal")).send().await.unwrap();
        assert_eq!(answer.status(), 405);
    }
    // 78: nobody finds out by asking for a value.
    for query in ["search=planted-of-ada", "secret=planted-of-ada", "filter=secret~'planted'"] {
        let answer = ada.get(&format!("{VAULT}?{query}")).await;
        assert_eq!(answer.status(), 400, "{query}");
        assert!(!answer.text().await.unwrap().contains("planted"));
    }
    // 76: a hundred at once.
    let many = futures_util::future::join_all((0..100).map(|_| reveal(&ada, &id))).await;
    let shown = many.iter().filter(|(status, _)| *status == 200).count();
    let limited =
        many.iter().filter(|(status, body)| *status == 429 && body["error"]["code"] == "RATE_LIMITED").count();
    assert!(shown <= 10 && shown + limited == 100, "{shown} shown, {limited} refused");
    let after = items(&ada, VAULT).await;
    assert_eq!((after.len(), &after[0]["key_id"]), (before.len(), &before[0]["key_id"]));
    assert!(!app.log().to_lowercase().contains("planted"));
}
