//! What happens is told as it happens: who may connect, what plain clients and `cp.v1` clients hear, and what bounds them.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::Value;
use serde_json::json;
use tokio_tungstenite::tungstenite::Message;

use crate::support::TestApp;
use crate::support::eventually;
use crate::support::socket::Socket;
use crate::support::socket::publish;

mod filters;
mod limits;
mod listeners;
mod resume;
mod sessions;
mod streams;

#[tokio::test]
async fn there_are_five_ways_to_say_who_one_is_and_the_first_decides() {
    let app = TestApp::start().await;
    let user = app.user("ada").await;
    let token = &user.token;
    let bearer = format!("Bearer {token}");
    let in_query = format!("/ws?token={token}");
    let cookie = format!("x=1; session_token={token}");
    let protocol = format!("bearer.{}", URL_SAFE_NO_PAD.encode(token));
    for path in ["/ws", "/api/v1/ws", "/queue_updates"] {
        assert_eq!(Socket::open(&app, path, &[]).await.err(), Some(401), "{path}");
        assert!(Socket::open(&app, path, &[("authorization", &bearer)]).await.is_ok(), "{path}");
    }
    assert!(Socket::open(&app, &in_query, &[]).await.is_ok());
    // A page of our own origin: what the browser does with the sample of the seed document.
    let own = app.base.clone();
    assert!(Socket::open(&app, "/queue_updates", &[("cookie", &cookie), ("origin", &own)]).await.is_ok());
    for origin in ["https://evil.example", "null", "http://127.0.0.1:1"] {
        let headers = [("cookie", &*cookie), ("origin", origin)];
        assert_eq!(Socket::open(&app, "/queue_updates", &headers).await.err(), Some(403), "{origin}");
    }
    assert_eq!(Socket::open(&app, "/ws", &[("cookie", &cookie)]).await.err(), Some(403), "no origin at all");
    let by_protocol = Socket::open(&app, "/ws", &[("sec-websocket-protocol", &protocol)]).await.unwrap();
    assert_eq!(by_protocol.protocol.as_deref(), Some(&*protocol));
    // What is present and wrong is not rescued by what follows.
    let both = [("authorization", "Bearer nonsense"), ("sec-websocket-protocol", &*protocol)];
    assert_eq!(Socket::open(&app, &in_query, &both).await.err(), Some(401));
    assert_eq!(
        Socket::open(&app, "/ws?token=nonsense", &[("sec-websocket-protocol", &protocol)]).await.err(),
        Some(401)
    );
    assert_eq!(user.get("/ws").await.status(), 426, "a request that is no handshake");
    assert!(!app.log().contains(token.as_str()), "tokens are not logged");
}

#[tokio::test]
async fn a_ticket_is_good_once_and_where_it_was_asked_for() {
    let app = TestApp::with("events.ticket_ttl = \"2s\"\n").await;
    let user = app.user("ada").await;
    let ticket = async |origin: Option<&str>| {
        let request = user.request(reqwest::Method::POST, "/api/v1/ws/ticket");
        let request = match origin {
            Some(origin) => request.header("origin", origin),
            None => request,
        };
        let answer = request.send().await.unwrap();
        assert_eq!(answer.status(), 201);
        let answer: Value = answer.json().await.unwrap();
        format!("/ws?ticket={}", answer["ticket"].as_str().unwrap())
    };
    let path = ticket(None).await;
    assert!(Socket::open(&app, &path, &[]).await.is_ok());
    assert_eq!(Socket::open(&app, &path, &[]).await.err(), Some(401), "a second time");
    let path = ticket(Some("https://app.example.com")).await;
    assert_eq!(Socket::open(&app, &path, &[("origin", "https://evil.example")]).await.err(), Some(401));
    assert_eq!(
        Socket::open(&app, &path, &[("origin", "https://app.example.com")]).await.err(),
        Some(401),
        "it was used up"
    );
    let path = ticket(Some("https://app.example.com")).await;
    assert!(Socket::open(&app, &path, &[("origin", "https://app.example.com")]).await.is_ok());
    let old = ticket(None).await;
    for _ in 0..125 {
        crate::support::pause().await;
    }
    assert_eq!(Socket::open(&app, &old, &[]).await.err(), Some(401), "it expired");
    assert_eq!(app.post("/api/v1/ws/ticket", json!({})).await.status(), 401);
}

#[tokio::test]
async fn plain_clients_get_the_messages_of_the_seed_and_nothing_else() {
    let app = TestApp::start().await;
    let (user, admin) = (app.user("ada").await, app.admin("root").await);
    let mut socket = Socket::plain(&app, &user, "/queue_updates").await;
    socket.is_silent().await;
    let queue = format!("queue:{}", user.id);
    let update = json!({"update_type": "meeting_added", "queue": [], "affected_user_id": user.id,
        "global_position": 1, "timestamp": "2026-01-01T00:00:00Z"});
    publish(&admin, &queue, "SomethingElse", json!({"x": 1})).await;
    publish(&admin, "system", "Notice", json!({"x": 1})).await;
    publish(&admin, &queue, "QueueUpdate", update.clone()).await;
    let mut expected = update;
    expected["type"] = json!("QueueUpdate");
    assert_eq!(socket.hear().await, expected);
    // Somebody else's queue is nobody else's business.
    let other = app.user("bob").await;
    publish(&admin, &format!("queue:{}", other.id), "QueueUpdate", json!({"queue": []})).await;
    socket.is_silent().await;
    // Frames of rooms are known, rooms are not there yet.
    socket.say(json!({"type": "JoinRoom", "room_id": "x"})).await;
    assert_eq!(socket.hear().await["code"], "NOT_IMPLEMENTED");
    socket.say(json!({"type": "Nonsense"})).await;
    assert_eq!(socket.hear().await["code"], "INVALID_REQUEST");
    let health: Value = app.get("/health/ws").await.json().await.unwrap();
    assert_eq!((&health["connections"], &health["users"], &health["status"]), (&json!(1), &json!(1), &json!("ok")));
    socket.stream.close(None).await.unwrap();
    eventually("the place is given back", async || {
        let health: Value = app.get("/health/ws").await.json().await.unwrap();
        (health["connections"] == 0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn clients_that_say_hello_get_a_welcome_replies_and_events() {
    let app = TestApp::start().await;
    let (user, admin) = (app.user("ada").await, app.admin("root").await);
    let (mut socket, welcome) = Socket::hello(&app, &user, "/ws", Value::Null).await;
    assert_eq!((&welcome["user_id"], &welcome["version"]), (&json!(user.id), &json!(1)));
    assert_eq!(welcome["topics"].as_array().unwrap().len(), 2, "{welcome}");
    socket.say(json!({"type": "Subscribe", "id": 1, "topics": ["queue"]})).await;
    let reply = socket.hear().await;
    assert_eq!((&reply["type"], &reply["id"]), (&json!("Reply"), &json!(1)));
    let before = reply["topics"][0]["offset"].as_u64().unwrap();
    let first = publish(&admin, &format!("queue:{}", user.id), "QueueUpdate", json!({"queue": []})).await;
    let second = publish(&admin, "system", "Notice", json!({"text": "hello"})).await;
    let event = socket.hear().await;
    assert_eq!(
        (&event["type"], &event["topic"], &event["event"]),
        (&json!("Event"), &json!("queue"), &json!("QueueUpdate"))
    );
    assert_eq!(event["offset"], first);
    assert!(event["prev"].as_u64().unwrap() <= before);
    assert_eq!(event["actor"], admin.id);
    let event = socket.hear().await;
    assert_eq!((&event["topic"], &event["offset"]), (&json!("system"), &json!(second)));
    // Topics of others are as if they were not there; an operator may listen to instances.
    let tenant = format!("instance:{}", admin.id);
    let foreign = [format!("user:{}", admin.id), tenant, "instance:global".to_owned(), "room:1".to_owned()];
    for (id, topic) in foreign.iter().enumerate() {
        socket.say(json!({"type": "Subscribe", "id": id, "topics": ["queue", topic]})).await;
        let error = socket.hear().await;
        assert_eq!((&error["type"], &error["code"], &error["id"]), (&json!("Error"), &json!("NOT_FOUND"), &json!(id)));
    }
    socket.say(json!({"type": "Subscribe", "id": 9, "topics": [format!("instance:{}", user.id)]})).await;
    assert_eq!(socket.hear().await["type"], "Reply", "one's own tenant");
    socket.say(json!({"type": "Unsubscribe", "id": 10, "topics": ["queue"]})).await;
    assert_eq!(socket.hear().await["type"], "Reply");
    publish(&admin, &format!("queue:{}", user.id), "QueueUpdate", json!({"queue": []})).await;
    socket.is_silent().await;
    validate(&socket.record);
    socket.send(Message::text("{\"type\":\"Ping\",\"id\":\"p\"}")).await;
    assert_eq!(socket.hear().await, json!({"type": "Pong", "id": "p"}));
    drop(socket);
    let (mut operator, _) = Socket::hello(&app, &admin, "/ws?subscribe=instance:global", Value::Null).await;
    publish(&admin, "instance:global", "Started", json!({})).await;
    assert_eq!(operator.hear().await["event"], "Started");
}

/// Every recorded frame is one that the document describes, field by field.
fn validate(record: &[String]) {
    let document = pocketfleet::events::asyncapi::document();
    assert!(record.len() > 5);
    for text in record {
        let frame: Value = serde_json::from_str(text).unwrap();
        let name = format!("Server{}", frame["type"].as_str().unwrap());
        let schema = &document["components"]["schemas"][&name];
        assert!(schema.is_object(), "{name} is not documented: {text}");
        let described = schema["properties"].as_object().unwrap();
        for field in frame.as_object().unwrap().keys() {
            assert!(described.contains_key(field), "{name} has no {field}: {text}");
        }
        for field in schema["required"].as_array().into_iter().flatten() {
            assert!(frame.get(field.as_str().unwrap()).is_some(), "{name} lacks {field}: {text}");
        }
    }
}

#[tokio::test]
async fn a_client_may_bring_its_credential_in_the_first_message() {
    let app = TestApp::with("events.hello_timeout = \"1s\"\n").await;
    let user = app.user("ada").await;
    let offer = [("sec-websocket-protocol", "cp.v1.json")];
    let mut socket = Socket::open(&app, "/ws", &offer).await.unwrap();
    socket.say(json!({"type": "Subscribe", "topics": ["system"]})).await;
    assert_eq!(socket.hear().await["code"], "UNAUTHORIZED");
    socket.say(json!({"type": "Hello", "token": user.token})).await;
    assert_eq!(socket.hear().await["user_id"], user.id);
    let mut wrong = Socket::open(&app, "/ws", &offer).await.unwrap();
    wrong.say(json!({"type": "Hello", "token": "nonsense"})).await;
    assert_eq!(wrong.closed().await, 3500);
    let mut other = Socket::open(&app, "/ws", &offer).await.unwrap();
    other.say(json!({"type": "Hello", "token": user.token, "version": 2})).await;
    assert_eq!(other.closed().await, 3501);
    let mut silent = Socket::open(&app, "/ws", &offer).await.unwrap();
    assert_eq!(silent.closed().await, 3502);
}

#[tokio::test]
async fn operators_see_who_is_there_and_end_it() {
    let app = TestApp::start().await;
    let (user, admin) = (app.user("ada").await, app.admin("root").await);
    let mut socket = Socket::plain(&app, &user, "/queue_updates").await;
    socket.is_silent().await;
    let list: Value = admin.get("/api/v1/admin/realtime/connections").await.json().await.unwrap();
    assert_eq!((&list["total"], &list["items"][0]["user_id"]), (&json!(1), &json!(user.id)));
    assert_eq!(user.get("/api/v1/admin/realtime/connections").await.status(), 403);
    publish(&admin, "system", "Notice", json!({"n": 1})).await;
    let history: Value = admin.get("/api/v1/admin/realtime/history?topic=system").await.json().await.unwrap();
    assert_eq!(history["items"][0]["data"]["n"], 1);
    let body = json!({"user_id": user.id, "reconnect": true});
    let ended: Value = admin.post("/api/v1/admin/realtime/disconnect", body).await.json().await.unwrap();
    assert_eq!(ended["connections"], 1);
    assert_eq!(socket.closed().await, 3011);
    for body in
        [json!({"topic": "nonsense", "event": "X", "data": {}}), json!({"topic": "system", "event": "a b", "data": {}})]
    {
        assert_eq!(admin.post("/api/v1/admin/realtime/publish", body).await.status(), 400);
    }
    eventually("it is counted", async || {
        let metrics = app.get("/metrics").await.text().await.unwrap();
        metrics.contains("pocketfleet_ws_closes_total{code=\"3011\"} 1").then_some(())
    })
    .await;
}
