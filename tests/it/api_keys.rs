//! API keys: made once, shown once, good for their scopes and nothing else.

use reqwest::Method;
use reqwest::StatusCode;
use serde_json::Value;
use serde_json::json;
use time::Duration;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::support::TestApp;
use crate::support::User;
use crate::support::eventually;

/// Somebody who comes with a key in place of a token.
pub(crate) fn with_key(user: &User, key: &str) -> User {
    User { token: key.to_owned(), ..user.clone() }
}

/// Makes a key of a user's own.
pub(crate) async fn make(user: &User, scopes: &[&str]) -> (String, String) {
    let answer = user.post("/api/v1/settings/api-keys", json!({"name": "laptop", "scopes": scopes})).await;
    assert_eq!(answer.status(), StatusCode::CREATED, "{}", answer.text().await.unwrap());
    assert_eq!(answer.headers()["cache-control"], "no-store");
    let made: Value = answer.json().await.unwrap();
    (made["key"].as_str().unwrap().to_owned(), made["api_key"]["id"].as_str().unwrap().to_owned())
}

async fn status(user: &User, method: Method, path: &str) -> u16 {
    user.request(method, path).send().await.unwrap().status().as_u16()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_shown_once_and_stored_nowhere() {
    let app = TestApp::start().await;
    let ada = app.user("ada").await;
    let (key, id) = make(&ada, &["jobs"]).await;
    assert!(key.starts_with("pfk_") && key.len() == 53, "{key}");
    let list: Value = ada.get("/api/v1/settings/api-keys").await.json().await.unwrap();
    let item = &list["items"][0];
    assert_eq!((&item["id"], &item["state"], &item["name"]), (&json!(id), &json!("valid"), &json!("laptop")));
    assert_eq!(item["hint"], format!("pfk_…{}", &key[49..]));
    assert_eq!(item["last_used_at"], Value::Null);
    assert!(!list.to_string().contains(&key));
    let needle = key.as_bytes();
    for file in ["control.db", "control.db-wal"] {
        let bytes = std::fs::read(app.data().join(file)).unwrap_or_default();
        assert!(!bytes.windows(needle.len()).any(|window| window == needle), "{file}");
    }
    assert!(!app.log().contains(&key));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_no_sign_in() {
    let app = TestApp::start().await;
    let ada = app.user("ada").await;
    let (key, id) = make(&ada, &["jobs"]).await;
    let program = with_key(&ada, &key);
    for (method, path) in [
        (Method::GET, "/api/v1/auth/me"),
        (Method::GET, "/api/v1/auth/sessions"),
        (Method::GET, "/api/v1/tenants"),
        (Method::GET, "/api/v1/settings/api-keys"),
        (Method::DELETE, &format!("/api/v1/settings/api-keys/{id}")),
        (Method::GET, "/api/collections/notes/records"),
        (Method::GET, "/api/collections/users/records/x"),
    ] {
        let status = status(&program, method.clone(), path).await;
        assert!(status == 401 || (path.contains("users") && status == 404), "{method} {path}: {status}");
    }
    let body = json!({"name": "more", "scopes": ["jobs"]});
    assert_eq!(program.post("/api/v1/settings/api-keys", body).await.status(), 401);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_makes_no_key_is_refused_by_field() {
    let app = TestApp::start().await;
    let ada = app.user("ada").await;
    let at = |span: Duration| (OffsetDateTime::now_utc() + span).format(&Rfc3339).unwrap();
    for (body, code, field) in [
        (json!({"name": "", "scopes": ["jobs"]}), "VALIDATION_FAILED", "name"),
        (json!({"name": "x".repeat(101), "scopes": ["jobs"]}), "VALIDATION_FAILED", "name"),
        (json!({"name": "x\u{1b}", "scopes": ["jobs"]}), "VALIDATION_FAILED", "name"),
        (json!({"name": "x", "scopes": []}), "VALIDATION_FAILED", "scopes"),
        (json!({"name": "x", "scopes": ["everything"]}), "VALIDATION_FAILED", "scopes"),
        (json!({"name": "x", "scopes": ["worker:transcode"]}), "VALIDATION_FAILED", "scopes"),
        (
            json!({"name": "x", "scopes": ["jobs"], "expires_at": at(-Duration::HOUR)}),
            "VALIDATION_FAILED",
            "expires_at",
        ),
        (
            json!({"name": "x", "scopes": ["jobs"], "expires_at": at(Duration::DAY * 4000)}),
            "VALIDATION_FAILED",
            "expires_at",
        ),
        (json!({"name": "x", "scopes": ["jobs"], "expires_at": "soon"}), "INVALID_BODY", ""),
        (json!({"name": "x", "scopes": ["jobs"], "owner": "fleet"}), "INVALID_BODY", ""),
        (json!({"scopes": ["jobs"]}), "INVALID_BODY", ""),
    ] {
        let answer = ada.post("/api/v1/settings/api-keys", body.clone()).await;
        assert_eq!(answer.status(), 400, "{body}");
        let answer: Value = answer.json().await.unwrap();
        assert_eq!(answer["error"]["code"], code, "{body}: {answer}");
        assert!(field.is_empty() || answer["error"]["details"][field].is_object(), "{body}: {answer}");
    }
    let list: Value = ada.get("/api/v1/settings/api-keys").await.json().await.unwrap();
    assert_eq!(list["items"], json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_ends_when_it_is_revoked_or_expires_or_its_owner_goes() {
    let mut app = TestApp::start().await;
    let (ada, bob) = (app.user("ada").await, app.user("bob").await);
    let (key, id) = make(&ada, &["jobs"]).await;
    let program = with_key(&ada, &key);
    assert_eq!(status(&program, Method::GET, "/api/v1/queue").await, 200);
    eventually("the use is noted", async || {
        let list: Value = ada.get("/api/v1/settings/api-keys").await.json().await.unwrap();
        list["items"][0]["last_used_at"].is_string().then_some(())
    })
    .await;
    // Somebody else's key is not there.
    assert_eq!(status(&bob, Method::DELETE, &format!("/api/v1/settings/api-keys/{id}")).await, 404);
    assert_eq!(status(&program, Method::GET, "/api/v1/queue").await, 200);
    for _ in 0..2 {
        assert_eq!(status(&ada, Method::DELETE, &format!("/api/v1/settings/api-keys/{id}")).await, 204);
        assert_eq!(status(&program, Method::GET, "/api/v1/queue").await, 401);
    }

    let soon = (OffsetDateTime::now_utc() + Duration::seconds(2)).format(&Rfc3339).unwrap();
    let body = json!({"name": "brief", "scopes": ["jobs:read"], "expires_at": soon});
    let made: Value = ada.post("/api/v1/settings/api-keys", body).await.json().await.unwrap();
    let brief = with_key(&ada, made["key"].as_str().unwrap());
    eventually("the key expired", async || (status(&brief, Method::GET, "/api/v1/queue").await == 401).then_some(()))
        .await;

    let (key, _) = make(&bob, &["jobs"]).await;
    let program = with_key(&bob, &key);
    assert_eq!(status(&program, Method::GET, "/api/v1/queue").await, 200);
    let accounts = app.data().join("instances/global/pb_data/data.db");
    let accounts = rusqlite::Connection::open(accounts).unwrap();
    accounts.busy_timeout(std::time::Duration::from_secs(10)).unwrap();
    assert_eq!(accounts.execute("DELETE FROM users WHERE id = ?", [&bob.id]).unwrap(), 1);
    drop(accounts);
    eventually("the key of an account that is gone is void", async || {
        (status(&program, Method::GET, "/api/v1/queue").await == 401).then_some(())
    })
    .await;

    // What was decided outlives the process.
    let (kept, _) = make(&ada, &["jobs"]).await;
    app.kill();
    app.launch().await;
    let ada = ada.at(&app);
    assert_eq!(status(&with_key(&ada, &kept), Method::GET, "/api/v1/queue").await, 200);
    assert_eq!(status(&program.at(&app), Method::GET, "/api/v1/queue").await, 401);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scope_is_as_far_as_a_key_reaches() {
    let app = TestApp::start().await;
    let ada = app.user("ada").await;
    let reader = with_key(&ada, &make(&ada, &["jobs:read"]).await.0);
    assert_eq!(status(&reader, Method::GET, "/api/v1/queue").await, 200);
    for (method, path) in [
        (Method::POST, "/api/v1/queue/pause"),
        (Method::DELETE, "/api/v1/queue/x"),
        (Method::POST, "/api/v1/jobs/x/cancel"),
        (Method::POST, "/api/v1/worker/claim"),
    ] {
        let answer = reader.request(method, path).json(&json!({})).send().await.unwrap();
        assert_eq!(answer.status(), 403, "{path}");
        assert_eq!(answer.json::<Value>().await.unwrap()["error"]["code"], "FORBIDDEN");
    }
    // The gateway and the router take the same characters for a key; nothing else is one.
    for bad in ["pfk_", "pfk_x", &format!("pfk_{}", "a".repeat(49)), "PFK_x"] {
        assert_eq!(status(&with_key(&ada, bad), Method::GET, "/api/v1/queue").await, 401, "{bad}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn operators_make_list_and_revoke_keys_of_workers() {
    let app = TestApp::start().await;
    let ada = app.user("ada").await;
    let made =
        app.cli_json(&["api-keys", "create", "--name", "farm", "--scope", "worker:transcode", "--expires", "90d"]);
    let (key, id) = (made["key"].as_str().unwrap(), made["api_key"]["id"].as_str().unwrap());
    assert_eq!(made["api_key"]["scopes"], json!(["worker:transcode"]));
    // It speaks for no account.
    for path in ["/api/v1/queue", "/api/v1/jobs"] {
        assert_eq!(status(&with_key(&ada, key), Method::GET, path).await, 403, "{path}");
    }
    make(&ada, &["jobs"]).await;
    let list = app.cli_json(&["api-keys", "list"]);
    let owners: Vec<_> = list["items"].as_array().unwrap().iter().map(|item| item["owner"].clone()).collect();
    assert_eq!(owners, [json!(ada.id), Value::Null]);
    let table = String::from_utf8(app.cli(&["api-keys", "list"]).stdout).unwrap();
    assert!(table.contains("farm") && table.contains("fleet") && !table.contains(key), "{table}");
    assert!(app.cli(&["api-keys", "revoke", id]).status.success());
    assert_eq!(status(&with_key(&ada, key), Method::GET, "/api/v1/queue").await, 401);
    assert!(!app.cli(&["api-keys", "revoke", "0000000000000000"]).status.success());
    let refused = app.cli(&["api-keys", "create", "--name", "x", "--scope", "jobs"]);
    assert!(!refused.status.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn making_a_key_needs_a_fresh_sign_in_and_is_accounted_for() {
    let app = TestApp::with("vault.reveal_max_age = \"10s\"\n").await;
    let ada = app.user("ada").await;
    let ada = app.sign_in(&ada.email, &ada.password).await;
    let (_, id) = make(&ada, &["jobs"]).await;
    for _ in 0..2 {
        assert_eq!(status(&ada, Method::DELETE, &format!("/api/v1/settings/api-keys/{id}")).await, 204);
    }
    let made = app.cli_json(&["api-keys", "create", "--name", "farm", "--scope", "worker:transcode"]);
    let farm = made["api_key"]["id"].as_str().unwrap();
    assert!(app.cli(&["api-keys", "revoke", farm]).status.success());
    let root = app.admin("root").await;
    let page: Value = root.get("/api/v1/admin/audit?limit=100").await.json().await.unwrap();
    let mut entries = page["items"].as_array().unwrap().clone();
    entries.retain(|entry| entry["action"].as_str().unwrap().starts_with("api_key."));
    entries.reverse();
    let told: Vec<_> = entries.iter().map(|entry| [&entry["action"], &entry["actor"], &entry["subject"]]).collect();
    let (user, operator) = (json!(format!("user:{}", ada.id)), json!("operator"));
    let (created, revoked) = (json!("api_key.created"), json!("api_key.revoked"));
    let (own, farm) = (json!(id), json!(farm));
    let expected =
        [[&created, &user, &own], [&revoked, &user, &own], [&created, &operator, &farm], [&revoked, &operator, &farm]];
    assert_eq!(told, expected);
    eventually("the sign-in is too old", async || {
        let answer = ada.post("/api/v1/settings/api-keys", json!({"name": "x", "scopes": ["jobs"]})).await;
        let status = answer.status();
        (status == 403 && answer.json::<Value>().await.unwrap()["error"]["code"] == "SIGN_IN_AGAIN").then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_logout_everywhere_ends_the_users_keys_and_nobody_elses() {
    let app = TestApp::start().await;
    let (ada, bob) = (app.user("ada").await, app.user("bob").await);
    let program = with_key(&ada, &make(&ada, &["jobs"]).await.0);
    let other = with_key(&bob, &make(&bob, &["jobs"]).await.0);
    assert_eq!(status(&program, Method::GET, "/api/v1/queue").await, 200);
    assert_eq!(ada.post("/auth/logout-everywhere", json!({})).await.status(), 200);
    assert_eq!(status(&program, Method::GET, "/api/v1/queue").await, 401);
    assert_eq!(status(&other, Method::GET, "/api/v1/queue").await, 200);
    let list = app.cli_json(&["api-keys", "list"]);
    let states: Vec<_> = list["items"].as_array().unwrap().iter().map(|item| item["state"].clone()).collect();
    assert_eq!(states, ["valid", "revoked"]);
}
