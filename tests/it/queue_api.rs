//! The queue of meetings over HTTP: the words of the seed documents, what is refused, and who sees what.

use reqwest::Method;
use serde_json::Value;
use serde_json::json;
use time::Duration;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::support::TestApp;
use crate::support::User;

/// Sends and reads; status and body.
pub(crate) async fn call(user: &User, method: Method, path: &str, body: Option<Value>) -> (u16, Value) {
    let mut request = user.request(method, path);
    if let Some(body) = body {
        request = request.json(&body);
    }
    let answer = request.send().await.unwrap();
    let status = answer.status().as_u16();
    let text = answer.text().await.unwrap();
    (status, serde_json::from_str(&text).unwrap_or(Value::Null))
}

pub(crate) async fn get(user: &User, path: &str) -> Value {
    let (status, body) = call(user, Method::GET, path, None).await;
    assert_eq!(status, 200, "{path}: {body}");
    body
}

pub(crate) async fn post(user: &User, path: &str, body: Value) -> (u16, Value) {
    call(user, Method::POST, path, Some(body)).await
}

/// A user whose queue rests, so that nothing moves under the test's hands.
async fn resting(app: &TestApp, name: &str) -> User {
    let user = app.user(name).await;
    assert_eq!(post(&user, "/api/v1/queue/pause", json!({})).await.0, 204);
    user
}

fn topics(queue: &Value) -> Vec<&str> {
    queue["items"].as_array().unwrap().iter().map(|item| item["topic"].as_str().unwrap()).collect()
}

fn ids(queue: &Value) -> Vec<&str> {
    queue["items"].as_array().unwrap().iter().map(|item| item["id"].as_str().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_samples_of_the_seed_work_word_for_word() {
    let app = TestApp::start().await;
    let ada = resting(&app, "ada").await;
    let sent = ada
        .request(Method::POST, "/api/queue")
        .header("content-type", "application/json")
        .body(r#"{"user_id": "user123", "topic": "Team Meeting"}"#)
        .send()
        .await
        .unwrap();
    assert_eq!(sent.status(), 201, "{}", sent.text().await.unwrap());
    let item: Value = sent.json().await.unwrap();
    assert_eq!((&item["user_id"], &item["topic"]), (&json!(ada.id), &json!("Team Meeting")), "who it is for");
    assert_eq!((&item["kind"], &item["state"]), (&json!("deliver_meeting"), &json!("queued")));
    for field in ["recording_id", "destination", "error", "result", "run_at", "started_at", "finished_at"] {
        assert_eq!(item[field], Value::Null, "{field}");
    }
    assert_eq!(item["progress"]["done"], 0);
    let queue = get(&ada, "/api/queue").await;
    assert_eq!((topics(&queue), &queue["paused"]), (vec!["Team Meeting"], &json!(true)));
    let id = item["id"].as_str().unwrap();
    assert_eq!(get(&ada, &format!("/api/queue/{id}")).await["id"], id);
    for _ in 0..2 {
        assert_eq!(call(&ada, Method::DELETE, &format!("/api/queue/{id}"), None).await.0, 204);
    }
    assert_eq!(get(&ada, "/api/queue").await["items"], json!([]));
    assert_eq!(get(&ada, &format!("/api/queue/{id}")).await["state"], "cancelled");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_recording_for_one_destination_is_one_item_until_it_is_done() {
    let app = TestApp::start().await;
    let ada = resting(&app, "ada").await;
    let (status, first) = post(&ada, "/api/v1/queue", json!({"recording_id": 7, "topic": "Team"})).await;
    assert_eq!(status, 201, "{first}");
    let (status, again) = post(&ada, "/api/v1/queue", json!({"recording_id": 7, "topic": "Another name"})).await;
    assert_eq!((status, &again["id"], &again["topic"]), (200, &first["id"], &json!("Team")));
    let (status, elsewhere) = post(&ada, "/api/v1/queue", json!({"recording_id": 7, "destination": "folder"})).await;
    assert_eq!(status, 201, "{elsewhere}");
    let bob = resting(&app, "bob").await;
    let (status, his) = post(&bob, "/api/v1/queue", json!({"recording_id": 7})).await;
    assert_eq!(status, 201, "{his}");
    assert_ne!(his["id"], first["id"]);
    let path = format!("/api/v1/queue/{}", first["id"].as_str().unwrap());
    assert_eq!(call(&ada, Method::DELETE, &path, None).await.0, 204);
    let (status, fresh) = post(&ada, "/api/v1/queue", json!({"recording_id": 7})).await;
    assert_eq!(status, 201, "{fresh}");
    assert_ne!(fresh["id"], first["id"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idempotency_key_stands_for_one_wish() {
    let app = TestApp::start().await;
    let ada = resting(&app, "ada").await;
    let wish = json!({"topic": "Team", "idempotency_key": "k-1"});
    let (status, first) = post(&ada, "/api/v1/queue", wish.clone()).await;
    assert_eq!(status, 201);
    let (status, again) = post(&ada, "/api/v1/queue", wish.clone()).await;
    assert_eq!((status, &again["id"]), (200, &first["id"]));
    let (status, other) = post(&ada, "/api/v1/queue", json!({"topic": "Else", "idempotency_key": "k-1"})).await;
    assert_eq!(status, 409, "{other}");
    // The key is the caller's own name for it: somebody else's is another.
    let bob = resting(&app, "bob").await;
    let (status, his) = post(&bob, "/api/v1/queue", wish).await;
    assert_eq!(status, 201);
    assert_ne!(his["id"], first["id"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn items_are_in_the_order_of_dispatch_and_can_be_moved() {
    let app = TestApp::start().await;
    let ada = resting(&app, "ada").await;
    let items: Vec<_> = ["a", "b", "c", "d"].iter().map(|topic| json!({ "topic": topic })).collect();
    let (status, added) = post(&ada, "/api/v1/queue", json!({ "items": items })).await;
    assert_eq!(status, 201, "{added}");
    assert_eq!(topics(&added), ["a", "b", "c", "d"]);
    let ids = ids(&added);
    let at = |index: usize, verb: &str| format!("/api/v1/queue/{}/{verb}", ids[index]);
    assert_eq!(post(&ada, &at(3, "move"), json!({"to": "front"})).await.0, 200);
    assert_eq!(post(&ada, &at(0, "move"), json!({"to": "back"})).await.0, 200);
    assert_eq!(post(&ada, &at(2, "move"), json!({"before": ids[1]})).await.0, 200);
    assert_eq!(topics(&get(&ada, "/api/v1/queue").await), ["d", "c", "b", "a"]);
    let (status, _) = post(&ada, "/api/v1/queue", json!({"topic": "urgent", "priority": 1})).await;
    assert_eq!(status, 201);
    assert_eq!(topics(&get(&ada, "/api/v1/queue").await), ["urgent", "d", "c", "b", "a"]);
    for (body, code) in [
        (json!({"to": "top"}), "VALIDATION_FAILED"),
        (json!({"before": "absent"}), "VALIDATION_FAILED"),
        (json!({}), "INVALID_BODY"),
        (json!({"to": "front", "before": ids[1]}), "INVALID_BODY"),
        (json!({"to": "front", "after": ids[1]}), "INVALID_BODY"),
    ] {
        let (status, answer) = post(&ada, &at(0, "move"), body.clone()).await;
        assert_eq!((status, &answer["error"]["code"]), (400, &json!(code)), "{body}");
    }
    assert_eq!(call(&ada, Method::DELETE, &format!("/api/v1/queue/{}", ids[3]), None).await.0, 204);
    assert_eq!(post(&ada, &at(3, "move"), json!({"to": "front"})).await.0, 409, "it does not wait");
    let (status, back) = post(&ada, &at(3, "retry"), json!({})).await;
    assert_eq!((status, &back["state"]), (200, &json!("queued")));
    assert_eq!(
        post(&ada, &at(3, "share_url"), json!({"url": "https://www.loom.com/share/0123456789abcdef0123456789abcdef"}))
            .await
            .0,
        409,
        "it is not parked"
    );
    assert_eq!(post(&ada, &at(3, "share_url"), json!({"url": "https://a.example/x"})).await.0, 400);
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_input_is_refused_whole_and_changes_nothing() {
    let app = TestApp::start().await;
    let ada = resting(&app, "ada").await;
    let at = |span: Duration| (OffsetDateTime::now_utc() + span).format(&Rfc3339).unwrap();
    let many: Vec<_> = (0..10_000).map(|n| json!({"topic": n.to_string()})).collect();
    let deep = (0..200).fold(json!(1), |inner, _| json!([inner]));
    for (body, code, names) in [
        (json!({ "items": many }), "INVALID_BODY", "1000"),
        (json!({"items": []}), "INVALID_BODY", "1000"),
        (json!({"items": {"topic": "a"}}), "INVALID_BODY", "list"),
        (json!({"items": [{"topic": "a"}], "topic": "b"}), "INVALID_BODY", "items"),
        (json!({"items": [{"topic": "a"}, {"topic": 7}]}), "INVALID_BODY", "wrong type"),
        (json!({"items": [{"topic": "a"}, {}]}), "VALIDATION_FAILED", ""),
        (json!({"items": [{"topic": "a"}, {"topic": "b", "colour": "red"}]}), "INVALID_BODY", "colour"),
        (json!({}), "VALIDATION_FAILED", ""),
        (json!([]), "INVALID_BODY", "object"),
        (json!("topic"), "INVALID_BODY", "object"),
        (Value::Null, "INVALID_BODY", "object"),
        (json!({"topic": ""}), "VALIDATION_FAILED", ""),
        (json!({"topic": "a\u{0}b"}), "VALIDATION_FAILED", ""),
        (json!({"topic": "x".repeat(201)}), "VALIDATION_FAILED", ""),
        (json!({"topic": deep}), "INVALID_BODY", ""),
        (json!({"recording_id": -1}), "INVALID_BODY", ""),
        (json!({"recording_id": "7"}), "INVALID_BODY", ""),
        (json!({"recording_id": 1.5}), "INVALID_BODY", ""),
        (json!({"topic": "a", "destination": "../etc"}), "VALIDATION_FAILED", ""),
        (json!({"topic": "a", "destination": "a b"}), "VALIDATION_FAILED", ""),
        (json!({"topic": "a", "destination": "x".repeat(65)}), "VALIDATION_FAILED", ""),
        (json!({"topic": "a", "priority": 1000}), "VALIDATION_FAILED", ""),
        (json!({"topic": "a", "priority": -1000}), "VALIDATION_FAILED", ""),
        (json!({"topic": "a", "priority": 1.5}), "INVALID_BODY", ""),
        (json!({"topic": "a", "priority": 9_223_372_036_854_775_808_u64}), "INVALID_BODY", ""),
        (json!({"topic": "a", "run_at": at(Duration::days(400))}), "VALIDATION_FAILED", ""),
        (json!({"topic": "a", "run_at": "+99999-01-01T00:00:00Z"}), "INVALID_BODY", ""),
        (json!({"topic": "a", "run_at": "tomorrow"}), "INVALID_BODY", ""),
        (json!({"topic": "a", "idempotency_key": ""}), "VALIDATION_FAILED", ""),
        (json!({"topic": "a", "idempotency_key": "x".repeat(201)}), "VALIDATION_FAILED", ""),
        (json!({"topic": "a", "state": "done"}), "INVALID_BODY", "state"),
        (json!({"topic": "a", "tenant": "global"}), "INVALID_BODY", "tenant"),
    ] {
        let (status, answer) = post(&ada, "/api/v1/queue", body.clone()).await;
        let shown: String = body.to_string().chars().take(100).collect();
        assert_eq!((status, &answer["error"]["code"]), (400, &json!(code)), "{shown}: {answer}");
        let message = answer["error"]["message"].as_str().unwrap();
        assert!(message.contains(names), "{shown}: {message}");
    }
    for (kind, code) in [("format_disk", "UNKNOWN_KIND"), ("", "UNKNOWN_KIND"), ("../x", "UNKNOWN_KIND")] {
        let (status, answer) = post(&ada, "/api/v1/jobs", json!({ "kind": kind })).await;
        assert_eq!((status, &answer["error"]["code"]), (400, &json!(code)), "{kind}");
    }
    for (content_type, body) in
        [("application/json", "{"), ("application/json", ""), ("text/plain", "{\"topic\":\"a\"}")]
    {
        let request = ada.request(Method::POST, "/api/v1/queue").header("content-type", content_type).body(body);
        assert_eq!(request.send().await.unwrap().status(), 400, "{content_type} {body}");
    }
    for id in ["x", "01234567890123456789012345", "..%2f..", "%00"] {
        for (method, verb) in [(Method::GET, ""), (Method::DELETE, ""), (Method::POST, "/retry")] {
            let status = call(&ada, method.clone(), &format!("/api/v1/queue/{id}{verb}"), None).await.0;
            assert!(matches!(status, 400 | 404), "{method} {id}{verb}: {status}");
        }
    }
    for query in ["state=waiting", "limit=x", "cursor=../x", "colour=red"] {
        let status = call(&ada, Method::GET, &format!("/api/v1/jobs?{query}"), None).await.0;
        assert_eq!(status, 400, "{query}");
    }
    assert_eq!(get(&ada, "/api/v1/queue").await["items"], json!([]));
    assert_eq!(get(&ada, "/api/v1/jobs").await["items"], json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn times_that_have_passed_mean_now_and_others_are_waited_for() {
    let app = TestApp::start().await;
    let ada = resting(&app, "ada").await;
    let at = |span: Duration| (OffsetDateTime::now_utc() + span).format(&Rfc3339).unwrap();
    let (status, past) = post(&ada, "/api/v1/queue", json!({"topic": "past", "run_at": at(-Duration::DAY)})).await;
    assert_eq!((status, &past["state"], &past["run_at"]), (201, &json!("queued"), &Value::Null));
    let (status, later) = post(&ada, "/api/v1/queue", json!({"topic": "later", "run_at": at(Duration::DAY)})).await;
    assert_eq!((status, &later["state"], &later["position"]), (201, &json!("scheduled"), &Value::Null));
    let path = format!("/api/v1/queue/{}/retry", later["id"].as_str().unwrap());
    assert_eq!(post(&ada, &path, json!({})).await.1["state"], "queued", "it may go now");
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_touches_anothers_items_and_admins_name_whom_they_add_for() {
    let app = TestApp::start().await;
    let (ada, bob) = (resting(&app, "ada").await, resting(&app, "bob").await);
    let (_, item) = post(&ada, "/api/v1/queue", json!({"topic": "mine"})).await;
    let id = item["id"].as_str().unwrap();
    for base in ["/api/v1/queue", "/api/queue", "/api/v1/jobs"] {
        let mut calls = vec![
            (Method::GET, String::new(), None),
            (Method::POST, "/retry".to_owned(), Some(json!({}))),
            (Method::POST, "/move".to_owned(), Some(json!({"to": "front"}))),
        ];
        if base.ends_with("jobs") {
            calls.push((Method::POST, "/cancel".to_owned(), Some(json!({}))));
        } else {
            calls.push((Method::DELETE, String::new(), None));
            calls.push((
                Method::POST,
                "/share_url".to_owned(),
                Some(json!({"url": "https://www.loom.com/share/0123456789abcdef0123456789abcdef"})),
            ));
        }
        for (method, verb, body) in calls {
            let (status, foreign) = call(&bob, method.clone(), &format!("{base}/{id}{verb}"), body.clone()).await;
            assert_eq!(status, 404, "{method} {base}{verb}: {foreign}");
            let (_, absent) = call(&bob, method, &format!("{base}/01234567890123456789012345{verb}"), body).await;
            let told = |answer: &Value| (answer["error"]["code"].clone(), answer["error"]["message"].clone());
            assert_eq!(told(&foreign), told(&absent), "absent and foreign look the same");
        }
    }
    assert_eq!(get(&bob, "/api/v1/queue").await["items"], json!([]));
    assert_eq!(get(&bob, "/api/v1/jobs").await["items"], json!([]));
    assert_eq!(get(&bob, "/api/v1/queue").await["waiting"], get(&ada, "/api/v1/queue").await["waiting"]);

    let admin = app.admin("root").await;
    let (status, for_bob) = post(&admin, "/api/v1/queue", json!({"topic": "by admin", "user_id": bob.id})).await;
    assert_eq!((status, &for_bob["user_id"]), (201, &json!(bob.id)));
    assert_eq!(topics(&get(&bob, "/api/v1/queue").await), ["by admin"]);
    let (status, nobody) = post(&admin, "/api/v1/queue", json!({"topic": "x", "user_id": "user123"})).await;
    assert_eq!((status, &nobody["error"]["code"]), (400, &json!("VALIDATION_FAILED")));
    let path = format!("/api/v1/queue/{id}");
    assert_eq!(call(&admin, Method::GET, &path, None).await.0, 404, "an admin of the fleet reads nobody's data");
}

#[tokio::test(flavor = "multi_thread")]
async fn history_comes_in_pages_newest_first() {
    let app = TestApp::start().await;
    let ada = resting(&app, "ada").await;
    let items: Vec<_> = (0..25).map(|n| json!({ "topic": format!("{n:02}") })).collect();
    let (_, added) = post(&ada, "/api/v1/queue", json!({ "items": items })).await;
    for id in ids(&added).iter().take(5) {
        assert_eq!(post(&ada, &format!("/api/v1/jobs/{id}/cancel"), json!({})).await.0, 200);
    }
    let (mut seen, mut cursor, mut pages) = (Vec::new(), None, 0);
    loop {
        let from = cursor.as_ref().map(|cursor: &String| format!("&cursor={cursor}")).unwrap_or_default();
        let page = get(&ada, &format!("/api/v1/jobs?limit=10{from}")).await;
        pages += 1;
        seen.extend(page["items"].as_array().unwrap().iter().map(|job| job["title"].as_str().unwrap().to_owned()));
        match page["next_cursor"].as_str() {
            Some(next) => cursor = Some(next.to_owned()),
            None => break,
        }
    }
    let expected: Vec<_> = (0..25).rev().map(|n| format!("{n:02}")).collect();
    assert_eq!((seen, pages), (expected, 3));
    let cancelled = get(&ada, "/api/v1/jobs?state=cancelled").await;
    assert_eq!(cancelled["items"].as_array().unwrap().len(), 5);
    assert_eq!(get(&ada, "/api/v1/jobs?kind=other").await["items"], json!([]));
    assert_eq!(get(&ada, "/api/v1/queue").await["items"].as_array().unwrap().len(), 20);
}
