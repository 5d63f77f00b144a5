//! Schedules over HTTP: made, listed, ended; what is refused and why; and that they add jobs.

use reqwest::Method;
use serde_json::Value;
use serde_json::json;

use crate::api_keys::make;
use crate::api_keys::with_key;
use crate::queue_api::get;
use crate::queue_api::post;
use crate::support::TestApp;
use crate::support::User;
use crate::support::eventually;
use crate::workers::KINDS;

const SCHEDULES: &str = "/api/v1/schedules";

fn nightly() -> Value {
    json!({"cron": "30 2 * * *", "kind": "transcode", "title": "nightly", "payload": {"all": true}})
}

async fn delete(user: &User, id: &str) -> u16 {
    user.request(Method::DELETE, &format!("{SCHEDULES}/{id}")).send().await.unwrap().status().as_u16()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schedule_is_made_shown_and_ended_by_its_owner_alone() {
    let app = TestApp::with(KINDS).await;
    let (ada, bob) = (app.user("ada").await, app.user("bob").await);
    let (status, made) = post(&ada, SCHEDULES, nightly()).await;
    assert_eq!(status, 201, "{made}");
    assert_eq!((&made["kind"], &made["missed"], &made["priority"]), (&json!("transcode"), &json!("skip"), &json!(0)));
    let next = made["next_run_at"].as_str().unwrap();
    assert!(next.ends_with("T02:30:00Z"), "{next}");
    let id = made["id"].as_str().unwrap();
    let more = json!({"cron": "@weekly", "kind": "deliver_meeting", "payload": {"topic": "Retro"}, "priority": 3,
        "missed": "all", "make_up": 2});
    let (status, weekly) = post(&ada, SCHEDULES, more).await;
    assert_eq!(status, 201, "{weekly}");
    assert_eq!((&weekly["missed"], &weekly["make_up"], &weekly["title"]), (&json!("all"), &json!(2), &json!("Retro")));
    assert_eq!(get(&ada, SCHEDULES).await, json!({"items": [made, weekly]}));
    assert_eq!(get(&bob, SCHEDULES).await, json!({"items": []}));
    for other in [id, "00000000000000000000000000", "not-an-id"] {
        assert_eq!(delete(&bob, other).await, 404, "{other}");
    }
    // Operators see everybody's, from one page to the next.
    let all = app.cli_json(&["jobs", "schedules", "--limit", "1"]);
    assert_eq!((&all["items"], &all["next"]), (&json!([made]), &json!(id)));
    let rest = app.cli_json(&["jobs", "schedules", "--after", id]);
    assert_eq!((&rest["items"], &rest["next"]), (&json!([weekly]), &Value::Null));
    assert_eq!(app.cli_json(&["jobs", "schedules", "--tenant", &bob.id])["items"], json!([]));
    // A key that may add jobs may do this; one that only reads may look.
    let (key, _) = make(&ada, &["jobs:read"]).await;
    let reader = with_key(&ada, &key);
    assert_eq!(get(&reader, SCHEDULES).await["items"].as_array().unwrap().len(), 2);
    assert_eq!(post(&reader, SCHEDULES, nightly()).await.0, 403);
    assert_eq!(delete(&reader, id).await, 403);
    let (key, _) = make(&ada, &["jobs"]).await;
    assert_eq!(delete(&with_key(&ada, &key), id).await, 204);
    assert_eq!(delete(&ada, id).await, 404);
    assert_eq!(get(&ada, SCHEDULES).await, json!({"items": [weekly]}));
    assert_eq!(app.get(SCHEDULES).await.status(), 401);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_scheduled_is_refused_with_what_to_do_instead() {
    let app = TestApp::with(&format!("{KINDS}queue.max_schedules_per_tenant = 2\n")).await;
    let (ada, bob) = (app.user("ada").await, app.user("bob").await);
    let with = |changes: Value| {
        let mut body = nightly();
        body.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        body
    };
    for (changes, code, field) in [
        (json!({"cron": ""}), "VALIDATION_FAILED", "cron"),
        (json!({"cron": "every day"}), "VALIDATION_FAILED", "cron"),
        (json!({"cron": "* * * * * *"}), "VALIDATION_FAILED", "cron"),
        (json!({"cron": "61 * * * *"}), "VALIDATION_FAILED", "cron"),
        (json!({"cron": "0 0 30 2 *"}), "VALIDATION_FAILED", "cron"),
        (json!({"cron": "*".repeat(5_000)}), "VALIDATION_FAILED", "cron"),
        (json!({"missed": "never"}), "VALIDATION_FAILED", "missed"),
        (json!({"missed": "once", "make_up": 2}), "VALIDATION_FAILED", "make_up"),
        (json!({"missed": "all", "make_up": 0}), "VALIDATION_FAILED", "make_up"),
        (json!({"missed": "all", "make_up": 101}), "VALIDATION_FAILED", "make_up"),
        (json!({"priority": 99}), "VALIDATION_FAILED", "priority"),
        (json!({"title": "a\nb"}), "VALIDATION_FAILED", "title"),
        (json!({"kind": "deliver_meeting", "payload": {"path": "/etc"}}), "VALIDATION_FAILED", "payload"),
        (json!({"kind": "deliver_meeting", "title": "", "payload": {}}), "VALIDATION_FAILED", "recording_id"),
        (json!({"kind": "format_disk"}), "UNKNOWN_KIND", ""),
        (json!({"payload": "x".repeat(70_000)}), "INVALID_BODY", ""),
        (json!({"timezone": "Europe/Berlin"}), "INVALID_BODY", ""),
        (json!({"cron": 5}), "INVALID_BODY", ""),
    ] {
        let (status, answer) = post(&ada, SCHEDULES, with(changes.clone())).await;
        let error = &answer["error"];
        assert_eq!((status, &error["code"]), (400, &json!(code)), "{changes}: {answer}");
        if !field.is_empty() {
            assert!(error["details"][field]["message"].is_string(), "{changes}: {answer}");
        }
    }
    let (_, answer) = post(&ada, SCHEDULES, with(json!({"cron": "daily"}))).await;
    assert!(answer.to_string().contains("30 7 * * MON-FRI"), "an example: {answer}");
    assert_eq!(get(&ada, SCHEDULES).await["items"], json!([]));
    // Many at once are not more than there may be, and one's own bound is nobody else's.
    let many = futures_util::future::join_all((0..6).map(|_| post(&ada, SCHEDULES, nightly()))).await;
    let refused: Vec<_> = many.iter().filter(|(status, _)| *status != 201).collect();
    assert_eq!(refused.len(), 4, "{many:?}");
    for (status, answer) in refused {
        assert_eq!((*status, &answer["error"]["code"]), (409, &json!("CONFLICT")));
        assert!(answer["error"]["message"].as_str().unwrap().contains("remove one first"), "{answer}");
    }
    assert_eq!(post(&bob, SCHEDULES, nightly()).await.0, 201);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schedule_adds_its_job_and_outlives_a_restart() {
    let mut app = TestApp::with(KINDS).await;
    let ada = app.user("ada").await;
    let every_minute = json!({"cron": "* * * * *", "kind": "transcode", "title": "often", "payload": {"n": 1},
        "priority": 4, "missed": "once"});
    let (status, made) = post(&ada, SCHEDULES, every_minute).await;
    assert_eq!(status, 201, "{made}");
    // Instead of waiting for a minute: the record as it would be had the program not run for ten.
    assert!(app.terminate().success());
    let database = rusqlite::Connection::open(app.data().join("control.db")).unwrap();
    let long_ago = time::OffsetDateTime::now_utc() - time::Duration::minutes(10);
    let long_ago = long_ago.format(&time::format_description::well_known::Rfc3339).unwrap();
    let sql = "UPDATE records SET value = CAST(json_set(CAST(value AS TEXT), '$.last', ?1) AS BLOB) WHERE key = ?2";
    let key = format!("schedule.{}.{}", ada.id, made["id"].as_str().unwrap());
    assert_eq!(database.execute(sql, [&long_ago, &key]).unwrap(), 1);
    drop(database);
    app.launch().await;
    let ada = ada.at(&app);
    let job = eventually("the job of what was missed is there", async || {
        let jobs = get(&ada, "/api/v1/jobs").await;
        jobs["items"].as_array().unwrap().last().cloned()
    })
    .await;
    assert_eq!(
        (&job["kind"], &job["title"], &job["payload"]),
        (&json!("transcode"), &json!("often"), &json!({"n": 1}))
    );
    assert_eq!((&job["priority"], &job["user_id"]), (&json!(4), &json!(ada.id)));
    let listed = get(&ada, SCHEDULES).await;
    assert_eq!(listed["items"][0]["id"], made["id"]);
}
