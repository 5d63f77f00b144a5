//! A client that comes back gets every event once and in order, whatever happened to the server meanwhile.

use serde_json::Value;
use serde_json::json;

use crate::support::TestApp;
use crate::support::socket::Socket;
use crate::support::socket::publish;

#[tokio::test]
async fn nothing_is_missed_and_nothing_comes_twice_over_kill_9() {
    let mut app = TestApp::start().await;
    let (user, admin) = (app.user("ada").await, app.admin("root").await);
    let (mut socket, welcome) = Socket::hello(&app, &user, "/ws", Value::Null).await;
    let mut seen = Vec::new();
    for n in 0..5 {
        publish(&admin, "system", "Notice", json!({ "n": n })).await;
        let event = socket.hear().await;
        seen.push((event["offset"].as_u64().unwrap(), event["data"]["n"].as_u64().unwrap()));
    }
    drop(socket);
    let last = seen.last().unwrap().0;
    for n in 5..10 {
        publish(&admin, "system", "Notice", json!({ "n": n })).await;
    }
    app.kill();
    app.launch().await;
    let (user, admin) = (user.at(&app), admin.at(&app));
    publish(&admin, "system", "Notice", json!({"n": 10})).await;
    let resume = json!({"epoch": welcome["epoch"], "topics": {"system": last}});
    let (mut socket, again) = Socket::hello(&app, &user, "/ws", resume).await;
    assert_eq!(again["epoch"], welcome["epoch"], "a crash does not end the epoch");
    loop {
        let frame = socket.hear().await;
        if frame["type"] == "Recovered" {
            assert_eq!((&frame["recovered"], &frame["count"]), (&json!(true), &json!(6)));
            break;
        }
        assert_eq!(frame["prev"], seen.last().unwrap().0, "no gap");
        seen.push((frame["offset"].as_u64().unwrap(), frame["data"]["n"].as_u64().unwrap()));
    }
    publish(&admin, "system", "Notice", json!({"n": 11})).await;
    let live = socket.hear().await;
    assert_eq!(live["prev"], seen.last().unwrap().0);
    seen.push((live["offset"].as_u64().unwrap(), live["data"]["n"].as_u64().unwrap()));
    assert_eq!(seen.iter().map(|(_, n)| *n).collect::<Vec<_>>(), (0..12).collect::<Vec<_>>());
    assert!(seen.is_sorted_by(|a, b| a.0 < b.0), "{seen:?}");
}

#[tokio::test]
async fn what_the_log_does_not_have_any_more_is_said() {
    let app = TestApp::with("events.history_events = 4\n").await;
    let (user, admin) = (app.user("ada").await, app.admin("root").await);
    let first = publish(&admin, "system", "Notice", json!({})).await;
    let (mut socket, welcome) = Socket::hello(&app, &user, "/ws", Value::Null).await;
    for _ in 0..6 {
        publish(&admin, "system", "Notice", json!({})).await;
    }
    for (epoch, offset) in
        [(welcome["epoch"].clone(), first), (json!("other"), first), (welcome["epoch"].clone(), u64::from(u32::MAX))]
    {
        let since = json!({"epoch": epoch, "offset": offset});
        socket.say(json!({"type": "Subscribe", "id": 1, "topics": ["system"], "since": since})).await;
        loop {
            let frame = socket.hear().await;
            if frame["type"] == "Recovered" {
                assert_eq!((&frame["recovered"], &frame["count"]), (&json!(false), &json!(0)), "{since}");
            }
            if frame["type"] == "Reply" {
                break;
            }
        }
    }
    // Within what is there, a subscription goes on where it should.
    let history: Value = admin.get("/api/v1/admin/realtime/history?topic=system&limit=2").await.json().await.unwrap();
    let since = json!({"epoch": welcome["epoch"], "offset": history["items"][0]["offset"]});
    socket.say(json!({"type": "Subscribe", "topics": ["system"], "since": since})).await;
    assert_eq!(socket.hear().await["offset"], history["items"][1]["offset"]);
    assert_eq!(socket.hear().await["recovered"], true);
}

#[tokio::test]
async fn a_stop_tells_everybody_and_what_was_said_last_is_kept() {
    let mut app = TestApp::start().await;
    let (user, admin) = (app.user("ada").await, app.admin("root").await);
    let (mut socket, welcome) = Socket::hello(&app, &user, "/ws", Value::Null).await;
    let mut plain = Socket::plain(&app, &user, "/queue_updates").await;
    plain.is_silent().await;
    let offset = publish(&admin, "system", "Notice", json!({})).await;
    assert_eq!(socket.hear().await["offset"], offset);
    crate::support::signal(i32::try_from(app.pid()).unwrap(), "TERM");
    let frame = socket.hear().await;
    assert_eq!(
        (&frame["type"], &frame["code"], &frame["reconnect"]),
        (&json!("Disconnect"), &json!(1012), &json!(true))
    );
    assert!(frame["reconnect_after_ms"].as_u64().unwrap() >= 100);
    assert_eq!(socket.closed().await, 1012);
    assert_eq!(plain.next().await, Err(1012), "no frame that a plain client does not know");
    drop((socket, plain));
    assert!(app.ended().success());
    app.launch().await;
    let resume = json!({"epoch": welcome["epoch"], "topics": {"system": offset}});
    let (mut socket, _) = Socket::hello(&app, &user.at(&app), "/ws", resume).await;
    let frame = socket.hear().await;
    assert_eq!((&frame["type"], &frame["recovered"], &frame["count"]), (&json!("Recovered"), &json!(true), &json!(0)));
}
