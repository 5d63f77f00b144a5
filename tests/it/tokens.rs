//! Tokens that must not work, and what a caller who holds one learns.

use std::time::Duration;
use std::time::SystemTime;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use pocketfleet::pocketbase::database;
use pocketfleet::pocketbase::token::Key;
use pocketfleet::pocketbase::token::Signer;
use serde_json::Value;
use serde_json::json;

use crate::support::TestApp;
use crate::support::User;

async fn status(app: &TestApp, token: &str) -> u16 {
    let request = app.http.get(format!("{}/api/collections/notes/records", app.base)).header("authorization", token);
    request.send().await.unwrap().status().as_u16()
}

/// The key of a user's row in some database.
pub(crate) fn key(database: &std::path::Path, user: &str) -> (String, Key) {
    let connection =
        rusqlite::Connection::open_with_flags(database, rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
    let token_key: String =
        connection.query_row("SELECT tokenKey FROM users WHERE id = ?1", [user], |row| row.get(0)).unwrap();
    let (id, secret): (String, String) = connection
        .query_row(
            "SELECT id, json_extract(CAST(options AS TEXT), '$.authToken.secret') FROM _collections WHERE name = 'users'",
            [],
            |row| Ok((row.get(0)?, row.get(1)?)),
        )
        .unwrap();
    (id, Key::new(&token_key, &secret))
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_of_every_wrong_kind_are_refused_alike() {
    let app = TestApp::start().await;
    let ada = app.user("ada").await;
    let bob = app.user("bob").await;
    ada.note("x").await;
    let global = app.data().join("instances/global/pb_data/data.db");
    let (collection_id, key_of_ada) = key(&global, &ada.id);
    let signer = Signer { collection_id: collection_id.clone(), record_id: ada.id.clone(), key: key_of_ada.clone() };
    let now = SystemTime::now();
    let minute = Duration::from_mins(1);
    assert_eq!(status(&app, &signer.mint(now, minute)).await, 200, "the forger has the real key");

    let expired = signer.mint(now - minute * 10, minute);
    let other_collection = Signer { collection_id: "pbc_3142635823".into(), ..signer.clone() }.mint(now, minute);
    let other_user = Signer { record_id: bob.id.clone(), ..signer.clone() }.mint(now, minute);
    let unknown_user = Signer { record_id: "zzzzzzzzzzzzzzz".into(), ..signer.clone() }.mint(now, minute);
    let (_, tenant_key) = key(&app.data().join(format!("instances/{}/pb_data/data.db", ada.id)), &ada.id);
    let tenant = Signer { key: tenant_key, ..signer.clone() }.mint(now, minute);
    let part = |n: usize| ada.token.split('.').nth(n).unwrap();
    let none = format!("{}.{}.", URL_SAFE_NO_PAD.encode(r#"{"alg":"none","typ":"JWT"}"#), part(1));
    let unsigned = format!("{}.{}.", part(0), part(1));
    let swapped = format!("{}.{}.{}", part(0), part(1), bob.token.split('.').nth(2).unwrap());
    let long = "a".repeat(3_000);
    for (what, token) in [
        ("expired", expired.as_str()),
        ("other collection", &other_collection),
        ("other user", &other_user),
        ("unknown user", &unknown_user),
        ("of the tenant itself", &tenant),
        ("alg none", &none),
        ("no signature", &unsigned),
        ("another's signature", &swapped),
        ("long", &long),
        ("word", "hello"),
        ("basic", "Basic YWRhOnB3"),
        ("empty bearer", "Bearer "),
    ] {
        assert_eq!(status(&app, token).await, 401, "{what}");
    }
    let future = {
        let claims = json!({"collectionId": collection_id, "id": ada.id, "type": "auth", "refreshable": false,
            "exp": 4_000_000_000_u64, "iat": 3_900_000_000_u64});
        sign(&key_text(&global, &ada.id), &claims)
    };
    assert_eq!(status(&app, &future).await, 401, "issued in the future");
    let no_end = sign(
        &key_text(&global, &ada.id),
        &json!({"collectionId": collection_id, "id": ada.id, "type": "auth", "refreshable": false}),
    );
    assert_eq!(status(&app, &no_end).await, 401, "without an end");
    let file = sign(
        &key_text(&global, &ada.id),
        &json!({"collectionId": collection_id, "id": ada.id, "type": "file", "exp": 4_000_000_000_u64}),
    );
    assert_eq!(status(&app, &file).await, 401, "of another kind");
}

fn key_text(database: &std::path::Path, user: &str) -> String {
    let connection =
        rusqlite::Connection::open_with_flags(database, rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
    let sql = "SELECT u.tokenKey || json_extract(CAST(c.options AS TEXT), '$.authToken.secret')
               FROM users u, _collections c WHERE u.id = ?1 AND c.name = 'users'";
    connection.query_row(sql, [user], |row| row.get(0)).unwrap()
}

fn sign(key: &str, claims: &Value) -> String {
    use hmac::KeyInit;
    use hmac::Mac;
    let head = URL_SAFE_NO_PAD.encode(r#"{"alg":"HS256","typ":"JWT"}"#);
    let signed = format!("{head}.{}", URL_SAFE_NO_PAD.encode(serde_json::to_vec(claims).unwrap()));
    let mut mac = <hmac::Hmac<sha2::Sha256> as KeyInit>::new_from_slice(key.as_bytes()).unwrap();
    mac.update(signed.as_bytes());
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(mac.finalize().into_bytes()))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_of_unknown_origin_is_adopted_as_a_session_and_can_be_ended() {
    let app = TestApp::start().await;
    let ada = app.user("ada").await;
    let (collection_id, key) = key(&app.data().join("instances/global/pb_data/data.db"), &ada.id);
    let signer = Signer { collection_id, record_id: ada.id.clone(), key };
    let inherited = User { token: signer.mint(SystemTime::now(), Duration::from_mins(50)), ..ada.clone() };
    assert_eq!(inherited.get("/auth/me").await.status(), 200);
    crate::support::eventually("it is listed", async || {
        let sessions: Value = ada.get("/api/v1/auth/sessions").await.json().await.unwrap();
        let items = sessions["items"].as_array().or_else(|| sessions.as_array()).unwrap();
        (items.len() == 2).then_some(())
    })
    .await;
    assert_eq!(inherited.post("/auth/logout", json!({})).await.status(), 204);
    assert_eq!(inherited.get("/auth/me").await.status(), 401);
    assert_eq!(ada.get("/auth/me").await.status(), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_outlive_a_restart_and_so_does_their_end() {
    let mut app = TestApp::start().await;
    let ada = app.user("ada").await;
    let bob = app.user("bob").await;
    assert_eq!(bob.post("/auth/logout", json!({})).await.status(), 204);
    assert!(app.terminate().success());
    app.launch().await;
    assert_eq!(ada.at(&app).get("/auth/me").await.status(), 200);
    assert_eq!(bob.at(&app).get("/auth/me").await.status(), 401);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_superuser_token_of_ones_own_instance_is_worth_nothing_from_outside() {
    let app = TestApp::start().await;
    let ada = app.user("ada").await;
    ada.note("x").await;
    let folder = app.data().join(format!("instances/{}/pb_data/data.db", ada.id));
    let superuser = database::superuser(&folder).unwrap().mint(SystemTime::now(), Duration::from_mins(1));
    assert_eq!(status(&app, &superuser).await, 401, "the gateway does not know it");
    let address = app.tenant(&ada.id)["address"].as_str().unwrap().to_owned();
    let direct = |forwarded: Option<&str>| {
        let request = app.http.get(format!("http://{address}/api/settings")).header("authorization", &superuser);
        match forwarded {
            Some(address) => request.header("x-forwarded-for", address),
            None => request,
        }
        .send()
    };
    assert_eq!(direct(None).await.unwrap().status(), 200, "ours, without the header");
    assert_eq!(direct(Some("192.0.2.1")).await.unwrap().status(), 403, "anything that came through the gateway");
}
