//! A socket lives no longer than what let it in.

use std::time::Instant;

use serde_json::Value;
use serde_json::json;

use crate::support::TestApp;
use crate::support::User;
use crate::support::eventually;
use crate::support::socket::SOON;
use crate::support::socket::Socket;

async fn both(app: &TestApp, user: &User) -> (Socket, Socket) {
    let mut plain = Socket::plain(app, user, "/queue_updates").await;
    plain.is_silent().await;
    let (enveloped, _) = Socket::hello(app, user, "/ws", Value::Null).await;
    (plain, enveloped)
}

async fn end_with(sockets: (Socket, Socket), code: u16, since: Instant) {
    let (mut plain, mut enveloped) = sockets;
    assert_eq!(plain.next().await, Err(code));
    assert_eq!(enveloped.hear().await["type"], "Disconnect");
    assert_eq!(enveloped.closed().await, code);
    assert!(since.elapsed() < SOON, "{:?}", since.elapsed());
}

#[tokio::test]
async fn it_ends_within_a_second_of_its_session() {
    let app = TestApp::start().await;
    let user = app.user("ada").await;
    let sockets = both(&app, &user).await;
    assert_eq!(user.post("/auth/logout", json!({})).await.status(), 204);
    end_with(sockets, 3500, Instant::now()).await;
    let bearer = format!("Bearer {}", user.token);
    assert_eq!(Socket::open(&app, "/ws", &[("authorization", &bearer)]).await.err(), Some(401));
}

#[tokio::test]
async fn it_ends_when_the_password_changes() {
    let app = TestApp::with("auth.directory_check = \"100ms\"\n").await;
    let user = app.user("ada").await;
    let sockets = both(&app, &user).await;
    let path = format!("/api/collections/users/records/{}", user.id);
    let body = json!({"oldPassword": user.password, "password": "another-one-1", "passwordConfirm": "another-one-1"});
    let answer = user.request(reqwest::Method::PATCH, &path).json(&body).send().await.unwrap();
    assert_eq!(answer.status(), 200, "{}", answer.text().await.unwrap());
    end_with(sockets, 3500, Instant::now()).await;
}

#[tokio::test]
async fn a_refreshed_session_goes_on_and_a_new_token_may_be_shown() {
    let app = TestApp::with("events.ping = \"10m\"\n").await;
    let user = app.user("ada").await;
    let (_, mut socket) = both(&app, &user).await;
    // Two sign-ins within one second get one token.
    let again = eventually("another token", async || {
        let again = app.sign_in(&user.email, &user.password).await;
        (again.token != user.token).then_some(again)
    })
    .await;
    socket.say(json!({"type": "Auth", "id": 1, "token": again.token})).await;
    assert_eq!(socket.hear().await, json!({"type": "Reply", "id": 1}));
    let other = app.user("bob").await;
    socket.say(json!({"type": "Auth", "id": 2, "token": other.token})).await;
    assert_eq!(socket.hear().await["code"], "UNAUTHORIZED");
    assert_eq!(user.post("/auth/logout", json!({})).await.status(), 204);
    // It stands on the other session now.
    for _ in 0..60 {
        crate::support::pause().await;
    }
    socket.is_silent().await;
}

#[tokio::test]
async fn a_topic_ends_when_the_right_to_it_does() {
    let app = TestApp::start().await;
    let user = app.user("ada").await;
    let (_, mut socket) = both(&app, &user).await;
    let made = user.post("/api/v1/tenants", json!({"name": "Team", "slug": "team"})).await;
    let made: Value = made.json().await.unwrap();
    let tenant = made["id"].as_str().unwrap();
    let topic = format!("instance:{tenant}");
    socket.say(json!({"type": "Subscribe", "id": 1, "topics": [topic]})).await;
    assert_eq!(socket.hear().await["type"], "Reply");
    let archive = user.request(reqwest::Method::PATCH, &format!("/api/v1/tenants/{tenant}"));
    let answer = archive.json(&json!({"archived": true})).send().await.unwrap();
    assert_eq!(answer.status(), 200, "{}", answer.text().await.unwrap());
    assert_eq!(socket.hear().await, json!({"type": "Unsubscribed", "topic": topic, "code": "NOT_FOUND"}));
    socket.is_silent().await;
}
