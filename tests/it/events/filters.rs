//! What a client does not want, has read already, or is taken away from it.

use reqwest::Method;
use serde_json::Value;
use serde_json::json;

use crate::support::TestApp;
use crate::support::socket::Socket;
use crate::support::socket::publish;

async fn ask(socket: &mut Socket, frame: Value) -> Value {
    socket.say(frame).await;
    socket.hear().await
}

fn subscribe(topic: &str, more: &Value) -> Value {
    let mut frame = json!({"type": "Subscribe", "id": 1, "topics": [topic]});
    frame.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    frame
}

#[tokio::test(flavor = "multi_thread")]
async fn a_filter_holds_for_what_was_missed_and_what_comes_and_can_be_changed() {
    let app = TestApp::start().await;
    let (ada, admin) = (app.user("ada").await, app.admin("root").await);
    let (mut socket, welcome) = Socket::hello(&app, &ada, "/queue_updates", Value::Null).await;
    let before = publish(&admin, "system", "NoticeOne", json!({"n": 1})).await;
    publish(&admin, "system", "Alarm", json!({"n": 2})).await;
    let second = publish(&admin, "system", "NoticeTwo", json!({"n": 3})).await;
    let since = json!({"epoch": welcome["epoch"], "offset": before - 1});
    let wanted = json!({"filter": {"event_types": ["Notice"]}, "since": since});
    let first = ask(&mut socket, subscribe("system", &wanted)).await;
    assert_eq!(first["data"]["n"], 1, "{first}");
    assert_eq!(socket.hear().await["offset"], second);
    let recovered = socket.hear().await;
    assert_eq!(
        (&recovered["type"], &recovered["count"], &recovered["recovered"]),
        (&json!("Recovered"), &json!(2), &json!(true))
    );
    assert_eq!(socket.hear().await["type"], "Reply");
    publish(&admin, "system", "Alarm", json!({"n": 4})).await;
    publish(&admin, "system", "NoticeThree", json!({"n": 5})).await;
    assert_eq!(socket.hear().await["data"]["n"], 5);
    // The other way round, while it listens.
    let change =
        json!({"type": "SubscriptionChange", "id": 2, "topics": ["system"], "filter": {"event_types": ["Alarm"]}});
    assert_eq!(ask(&mut socket, change).await, json!({"type": "Reply", "id": 2}));
    publish(&admin, "system", "NoticeFour", json!({"n": 6})).await;
    publish(&admin, "system", "Alarm", json!({"n": 7})).await;
    assert_eq!(socket.hear().await["data"]["n"], 7);
    let none = json!({"type": "SubscriptionChange", "id": 3, "topics": ["system"]});
    assert_eq!(ask(&mut socket, none).await["type"], "Reply");
    // What is about nothing in particular is of no kind of thing.
    let jobs = json!({"filter": {"entity_types": ["job"]}});
    assert_eq!(ask(&mut socket, subscribe("user", &jobs)).await["type"], "Reply");
    publish(&admin, &format!("user:{}", ada.id), "Notice", json!({"n": 8})).await;
    publish(&admin, "system", "NoticeFive", json!({"n": 9})).await;
    assert_eq!(socket.hear().await["data"]["n"], 9);
    for (frame, code) in [
        (subscribe("system", &json!({"filter": {"event_types": [""]}})), "INVALID_REQUEST"),
        (subscribe("system", &json!({"filter": {"entity_ids": vec!["x"; 33]}})), "INVALID_REQUEST"),
        (subscribe("system", &json!({"filter": {"kinds": []}})), "INVALID_REQUEST"),
        (json!({"type": "SubscriptionChange", "id": 4, "topics": [format!("instance:{}", ada.id)]}), "NOT_FOUND"),
        (json!({"type": "SubscriptionChange", "id": 4, "topics": ["system", "rooms"]}), "NOT_FOUND"),
    ] {
        let answer = ask(&mut socket, frame.clone()).await;
        assert_eq!((&answer["type"], &answer["code"]), (&json!("Error"), &json!(code)), "{frame}: {answer}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_device_goes_on_where_the_user_was_last() {
    let mut app = TestApp::start().await;
    let (ada, bob) = (app.user("ada").await, app.user("bob").await);
    let admin = app.admin("root").await;
    let last_seen = || subscribe("system", &json!({"since": "last_seen"}));
    let (mut phone, _) = Socket::hello(&app, &ada, "/queue_updates", Value::Null).await;
    let recovered = ask(&mut phone, last_seen()).await;
    assert_eq!(
        (&recovered["type"], &recovered["recovered"]),
        (&json!("Recovered"), &json!(false)),
        "nothing was seen yet"
    );
    assert_eq!(phone.hear().await["type"], "Reply");
    let mut offsets = Vec::new();
    for n in 0..3 {
        offsets.push(publish(&admin, "system", "Notice", json!({"n": n})).await);
        assert_eq!(phone.hear().await["data"]["n"], n);
    }
    let seen = |topic: &str, offset: u64| json!({"type": "UpdateLastSeen", "id": 7, "topic": topic, "offset": offset});
    assert_eq!(ask(&mut phone, seen("system", offsets[1])).await, json!({"type": "Reply", "id": 7}));
    // It only moves on.
    assert_eq!(ask(&mut phone, seen("system", offsets[0])).await["type"], "Reply");
    for (topic, offset, code) in [
        ("system", u64::MAX, "INVALID_REQUEST"),
        (&*format!("user:{}", bob.id), 1, "NOT_FOUND"),
        ("room:1", 1, "NOT_FOUND"),
    ] {
        let answer = ask(&mut phone, seen(topic, offset)).await;
        assert_eq!(answer["code"], code, "{topic}: {answer}");
    }
    // Another device, after a restart; somebody else is somewhere else.
    assert!(app.terminate().success());
    app.launch().await;
    let (ada, bob) = (ada.at(&app), bob.at(&app));
    let (mut laptop, _) = Socket::hello(&app, &ada, "/queue_updates", Value::Null).await;
    let missed = ask(&mut laptop, last_seen()).await;
    assert_eq!((&missed["type"], &missed["offset"]), (&json!("Event"), &json!(offsets[2])), "{missed}");
    let recovered = laptop.hear().await;
    assert_eq!((&recovered["recovered"], &recovered["count"]), (&json!(true), &json!(1)));
    let (mut his, _) = Socket::hello(&app, &bob, "/queue_updates", Value::Null).await;
    assert_eq!(ask(&mut his, last_seen()).await["recovered"], false);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_ends_subscriptions_of_one_topic() {
    let app = TestApp::start().await;
    let (ada, bob) = (app.user("ada").await, app.user("bob").await);
    let admin = app.admin("root").await;
    let (mut hers, welcome) = Socket::hello(&app, &ada, "/ws", Value::Null).await;
    let (mut his, _) = Socket::hello(&app, &bob, "/ws", Value::Null).await;
    let mut plain = Socket::plain(&app, &ada, "/ws?subscribe=system").await;
    let unsubscribe = async |body: Value| {
        let answer = admin.post("/api/v1/admin/realtime/unsubscribe", body).await;
        (answer.status().as_u16(), answer.json::<Value>().await.unwrap())
    };
    let asked = unsubscribe(json!({"topic": "system", "user_id": ada.id})).await;
    assert_eq!(asked, (200, json!({"connections": 2})));
    let told = hers.hear().await;
    assert_eq!(told, json!({"type": "Unsubscribed", "topic": "system", "code": "FORBIDDEN"}));
    // Within a second for the plain one too, which is not told.
    crate::support::eventually("nobody of hers listens", async || {
        let all: Value = admin.get("/api/v1/admin/realtime/connections").await.json().await.unwrap();
        let hers = all["items"].as_array().unwrap().iter().filter(|one| one["user_id"] == ada.id.as_str());
        let topics: u64 = hers.map(|one| one["topics"].as_u64().unwrap()).sum();
        (topics == 2).then_some(())
    })
    .await;
    publish(&admin, "system", "Notice", json!({"n": 1})).await;
    assert_eq!(his.hear().await["data"]["n"], 1);
    hers.is_silent().await;
    plain.is_silent().await;
    // What concerns her still comes, and she may come back.
    publish(&admin, &format!("user:{}", ada.id), "Notice", json!({"n": 2})).await;
    assert_eq!(hers.hear().await["data"]["n"], 2);
    assert_eq!(ask(&mut hers, subscribe("system", &json!({}))).await["type"], "Reply");
    let connection: u64 = welcome["connection_id"].as_str().unwrap().parse().unwrap();
    let asked = unsubscribe(json!({"topic": "system", "connection_id": connection})).await;
    assert_eq!(asked, (200, json!({"connections": 1})));
    assert_eq!(hers.hear().await["type"], "Unsubscribed");
    for bad in [
        json!({"topic": "system"}),
        json!({"topic": "rooms", "user_id": ada.id}),
        json!({"topic": "system", "user_id": ".."}),
    ] {
        assert_eq!(unsubscribe(bad.clone()).await.0, 400, "{bad}");
    }
    let hers = ada.request(Method::POST, "/api/v1/admin/realtime/unsubscribe").json(&json!({"topic": "system"}));
    assert_eq!(hers.send().await.unwrap().status(), 403);
}
