//! Accounts: register, sign in, refresh, log out; canonical paths and aliases.

use futures_util::StreamExt;
use futures_util::stream;
use reqwest::Method;
use serde_json::Value;
use serde_json::json;

use crate::support::TestApp;

#[tokio::test(flavor = "multi_thread")]
async fn register_sign_in_and_me_on_canonical_and_alias_paths() {
    let app = TestApp::start().await;
    for (n, prefix) in ["/auth", "/api/v1/auth"].into_iter().enumerate() {
        let email = format!("user{n}@example.com");
        let body = json!({"email": email, "password": "correct horse", "name": "N"});
        let made = app.http.post(format!("{}{prefix}/register", app.base)).json(&body).send().await.unwrap();
        assert_eq!(made.status(), 201);
        let made: Value = made.json().await.unwrap();
        assert_eq!(made["record"]["name"], "N");
        assert!(made.get("token").is_none());
        let body = json!({"email": email, "password": "correct horse"});
        let login = app.http.post(format!("{}{prefix}/login", app.base)).json(&body).send().await.unwrap();
        assert_eq!(login.status(), 200);
        assert_eq!(login.headers()["cache-control"], "no-store");
        let login: Value = login.json().await.unwrap();
        assert_eq!(login["record"]["id"], made["record"]["id"]);
        let me = app.http.get(format!("{}{prefix}/me", app.base)).bearer_auth(login["token"].as_str().unwrap());
        let me: Value = me.send().await.unwrap().json().await.unwrap();
        assert_eq!(me["id"], made["record"]["id"]);
        assert_eq!(me["email"], email);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn mistakes_get_a_clear_error_and_nothing_is_made() {
    let app = TestApp::start().await;
    app.user("ada").await;
    let register = |body: Value| app.http.post(format!("{}/auth/register", app.base)).json(&body).send();
    let cases = [
        (json!({"email": "ada@example.com", "password": "correct horse"}), "EMAIL_TAKEN"),
        (json!({"email": "ADA@example.com", "password": "correct horse"}), "EMAIL_TAKEN"),
        (json!({"email": "no-address", "password": "correct horse"}), "VALIDATION_FAILED"),
        (json!({"email": "bob@example.com", "password": "short"}), "VALIDATION_FAILED"),
        (json!({"email": "bob@example.com", "password": "x".repeat(72)}), "VALIDATION_FAILED"),
        (json!({"email": "bob@example.com", "password": "correct horse", "role": "admin"}), "INVALID_BODY"),
        (json!({"email": "bob@example.com"}), "INVALID_BODY"),
    ];
    for (body, code) in cases {
        let answer = register(body.clone()).await.unwrap();
        assert_eq!(answer.status(), 400, "{body}");
        let request = answer.headers()["x-request-id"].to_str().unwrap().to_owned();
        let error: Value = answer.json().await.unwrap();
        assert_eq!(error["error"]["code"], code, "{body}: {error}");
        assert_eq!(error["error"]["request_id"], request.as_str());
        assert!(!error["error"]["message"].as_str().unwrap().is_empty());
    }
    let login = json!({"email": "bob@example.com", "password": "correct horse"});
    let answer = app.http.post(format!("{}/auth/login", app.base)).json(&login).send().await.unwrap();
    assert_eq!(answer.status(), 400, "bob was never made");
    assert_eq!(answer.json::<Value>().await.unwrap()["error"]["code"], "INVALID_CREDENTIALS");
    let text = app.http.post(format!("{}/auth/login", app.base)).body("{").send().await.unwrap();
    assert!(text.status().is_client_error());
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_becomes_admin_by_asking() {
    let app = TestApp::start().await;
    let ada = app.user("ada").await;
    let path = format!("/api/collections/users/records/{}", ada.id);
    let patched = ada.request(Method::PATCH, &path).json(&json!({"role": "admin"})).send().await.unwrap();
    assert!(patched.status().is_client_error());
    let body = json!({"email": "eve@example.com", "password": "correct horse", "passwordConfirm": "correct horse", "role": "admin"});
    let made = app.http.post(format!("{}/api/collections/users/records", app.base)).json(&body).send().await.unwrap();
    assert!(made.status().is_client_error());
    let health: Value = ada.get("/health/pb").await.json().await.unwrap();
    assert!(health.get("details").is_none(), "only admins see details");
    let chosen = json!({"id": "aaaaaaaaaaaaaaa", "email": "eve@example.com", "password": "correct horse", "passwordConfirm": "correct horse"});
    let made = app.http.post(format!("{}/api/collections/users/records", app.base)).json(&chosen).send().await.unwrap();
    assert!(made.status().is_client_error(), "an id of one's own could be a deleted account's");
}

#[tokio::test(flavor = "multi_thread")]
async fn logout_ends_one_session_and_logout_everywhere_all_of_them() {
    let app = TestApp::start().await;
    let ada = app.user("ada").await;
    // Tokens of one second are equal; the second session needs another second.
    let other = crate::support::eventually("a second token", async || {
        let again = app.sign_in(&ada.email, &ada.password).await;
        (again.token != ada.token).then_some(again)
    })
    .await;
    let sessions: Value = ada.get("/api/v1/auth/sessions").await.json().await.unwrap();
    assert_eq!(
        sessions["items"].as_array().map_or_else(|| sessions.as_array().unwrap().len(), Vec::len),
        2,
        "{sessions}"
    );
    ada.note("x").await;
    assert_eq!(ada.post("/auth/logout", json!({})).await.status(), 204);
    for path in ["/auth/me", "/api/collections/notes/records"] {
        assert_eq!(ada.get(path).await.status(), 401, "{path}");
    }
    let refresh = ada.post("/api/collections/users/auth-refresh", json!({})).await;
    assert_eq!(refresh.status(), 401, "a logged-out token is not good for a new one");
    assert_eq!(other.titles().await, ["x"], "the other session lives");
    assert_eq!(other.post("/auth/logout-everywhere", json!({})).await.status(), 200);
    assert_eq!(other.get("/auth/me").await.status(), 401);
    let again = app.sign_in(&ada.email, &ada.password).await;
    assert_eq!(again.titles().await, ["x"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn refresh_rotates_and_the_old_token_ends_after_its_grace() {
    let app = TestApp::with("auth.refresh_grace = \"1s\"\n").await;
    let ada = app.user("ada").await;
    let fresh = crate::support::eventually("a new token", async || {
        let answer: Value = ada.post("/auth/refresh", json!({})).await.json().await.unwrap();
        let token = answer["token"].as_str().unwrap_or_else(|| panic!("{answer}")).to_owned();
        (token != ada.token).then_some(token)
    })
    .await;
    assert_eq!(ada.get("/auth/me").await.status(), 200, "requests on their way still pass");
    crate::support::eventually("the old one ends", async || (ada.get("/auth/me").await.status() == 401).then_some(()))
        .await;
    let me = app.http.get(format!("{}/auth/me", app.base)).bearer_auth(&fresh).send().await.unwrap();
    assert_eq!(me.status(), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_password_ends_every_session() {
    let app = TestApp::start().await;
    let ada = app.user("ada").await;
    ada.note("x").await;
    let path = format!("/api/collections/users/records/{}", ada.id);
    let body = json!({"oldPassword": ada.password, "password": "another horse", "passwordConfirm": "another horse"});
    let changed = ada.request(Method::PATCH, &path).json(&body).send().await.unwrap();
    assert_eq!(changed.status(), 200, "{}", changed.text().await.unwrap());
    assert_eq!(ada.get("/api/collections/notes/records").await.status(), 401);
    let again = app.sign_in(&ada.email, "another horse").await;
    assert_eq!(again.titles().await, ["x"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn guessing_slows_down_and_floods_are_refused() {
    let keys = "auth.free_failures = 2\nauth.delay_base = \"30s\"\nauth.attempts_per_ip = 8\n";
    let app = TestApp::with(keys).await;
    app.user("ada").await;
    let attempt = |email: &str, password: &str| {
        let body = json!({"email": email, "password": password});
        app.http.post(format!("{}/auth/login", app.base)).json(&body).send()
    };
    let mut statuses = Vec::new();
    for _ in 0..4 {
        statuses.push(attempt("ada@example.com", "wrong password").await.unwrap().status().as_u16());
    }
    assert_eq!(statuses[..2], [400, 400]);
    assert_eq!(statuses[3], 429, "{statuses:?}");
    let right = attempt("ada@example.com", "password-of-ada").await.unwrap();
    assert_eq!(right.status(), 429, "also the right password waits");
    assert!(right.headers()["retry-after"].to_str().unwrap().parse::<u64>().unwrap() >= 1);
    // Other accounts are not affected by that, until the address itself has asked too often.
    let mut last = 0;
    for n in 0..8 {
        last = attempt(&format!("nobody{n}@example.com"), "whatever it is").await.unwrap().status().as_u16();
    }
    assert_eq!(last, 429);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_flood_is_bounded_and_other_routes_stay_quick() {
    let app = TestApp::with("auth.max_waiting = 4\nauth.max_concurrent = 1\n").await;
    let ada = app.user("ada").await;
    ada.note("x").await;
    let flood = stream::iter(0..60).map(|n| {
        let body = json!({"email": format!("n{n}@example.com"), "password": "whatever it is"});
        app.http.post(format!("{}/auth/login", app.base)).json(&body).send()
    });
    let flood = flood.buffer_unordered(60).map(|answer| answer.unwrap().status().as_u16()).collect::<Vec<_>>();
    let (statuses, titles) = tokio::join!(flood, ada.titles());
    assert_eq!(titles, ["x"]);
    assert!(statuses.iter().all(|status| matches!(status, 400 | 429 | 503)), "{statuses:?}");
    assert!(statuses.iter().filter(|status| **status != 400).count() >= 30, "{statuses:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_logout_ends_everything_that_was_refreshed_from_the_same_sign_in() {
    let app = TestApp::start().await;
    let ada = app.user("ada").await;
    let refresh = async |user: &crate::support::User| {
        let token = crate::support::eventually("a new token", async || {
            let answer: Value = user.post("/auth/refresh", json!({})).await.json().await.unwrap();
            let token = answer["token"].as_str().unwrap_or_else(|| panic!("{answer}")).to_owned();
            (token != user.token).then_some(token)
        });
        crate::support::User { token: token.await, ..user.clone() }
    };
    let second = refresh(&ada).await;
    let third = refresh(&second).await;
    // The first token is in its grace and still good; ending it ends the others.
    assert_eq!(ada.post("/auth/logout", json!({})).await.status(), 204);
    for user in [&ada, &second, &third] {
        assert_eq!(user.get("/auth/me").await.status(), 401);
    }
    app.sign_in(&ada.email, &ada.password).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_logout_that_races_a_refresh_wins() {
    let app = TestApp::start().await;
    for round in 0..6 {
        let ada = app.user(&format!("ada{round}")).await;
        // Into the next second, so that a refresh gives another token; and without another sign-in, whose token could be
        // the same as the refreshed one and rightly lives on.
        let second = || std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs();
        let signed_in = second();
        crate::support::eventually("another second", async || (second() > signed_in).then_some(())).await;
        let (refreshed, ended) =
            tokio::join!(ada.post("/auth/refresh", json!({})), ada.post("/auth/logout", json!({})),);
        assert_eq!(ended.status(), 204);
        assert!(matches!(refreshed.status().as_u16(), 200 | 401), "{}", refreshed.status());
        if refreshed.status() == 200 {
            let token = refreshed.json::<Value>().await.unwrap()["token"].as_str().unwrap().to_owned();
            let heir = crate::support::User { token, ..ada.clone() };
            assert_eq!(heir.get("/auth/me").await.status(), 401, "round {round}: the session lives on");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_who_read_a_picture_slowly_do_not_keep_others_from_signing_in() {
    let app = TestApp::with("instances.max_in_flight = 20\ninstances.wake_timeout = \"5s\"\n").await;
    let ada = app.user("ada").await;
    let picture = vec![0x89_u8; 4 << 20];
    let mut body = b"--b\r\nContent-Disposition: form-data; name=\"avatar\"; filename=\"a.png\"\r\n\
        Content-Type: image/png\r\n\r\n\x89PNG\r\n\x1a\n"
        .to_vec();
    body.extend_from_slice(&picture);
    body.extend_from_slice(b"\r\n--b--\r\n");
    let path = format!("/api/collections/users/records/{}", ada.id);
    let changed = ada
        .request(Method::PATCH, &path)
        .header("content-type", "multipart/form-data; boundary=b")
        .body(body)
        .send()
        .await
        .unwrap();
    let status = changed.status();
    let record: Value = changed.json().await.unwrap();
    assert_eq!(status, 200, "{record}");
    let request =
        format!("GET /api/files/users/{}/{} HTTP/1.1\r\nHost: x\r\n\r\n", ada.id, record["avatar"].as_str().unwrap());
    let address = app.base.trim_start_matches("http://").parse().unwrap();
    let mut idle = Vec::new();
    for _ in 0..40 {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        let mut stream = socket.connect(address).await.unwrap();
        tokio::io::AsyncWriteExt::write_all(&mut stream, request.as_bytes()).await.unwrap();
        idle.push(stream);
    }
    crate::support::eventually("they are being served", async || {
        (app.tenant("global")["in_flight"].as_u64().unwrap() >= 10).then_some(())
    })
    .await;
    app.sign_in(&ada.email, &ada.password).await;
    drop(idle);
}
