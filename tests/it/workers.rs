//! Workers outside: they claim, report and end jobs of their kinds, under a lease and a number.

use std::collections::HashMap;

use reqwest::Method;
use serde_json::Value;
use serde_json::json;

use crate::api_keys::make;
use crate::api_keys::with_key;
use crate::queue_api::call;
use crate::queue_api::get;
use crate::queue_api::post;
use crate::support::TestApp;
use crate::support::User;
use crate::support::command;
use crate::support::eventually;
use crate::support::root;

/// Two kinds for workers, both open to users.
pub(crate) const KINDS: &str =
    "queue.external_kinds = [\"transcode\", \"translate\"]\nqueue.user_kinds = [\"transcode\", \"translate\"]\n";
const SHORT: &str = "queue.lease = \"1s\"\n";

/// A worker with a key for these kinds.
pub(crate) fn worker(app: &TestApp, kinds: &[&str]) -> User {
    let scopes: Vec<_> = kinds.iter().map(|kind| format!("worker:{kind}")).collect();
    let mut args = vec!["api-keys", "create", "--name", "farm"];
    for scope in &scopes {
        args.extend(["--scope", scope]);
    }
    let made = app.cli_json(&args);
    User {
        id: made["api_key"]["id"].as_str().unwrap().to_owned(),
        email: String::new(),
        password: String::new(),
        token: made["key"].as_str().unwrap().to_owned(),
        base: app.base.clone(),
        http: app.http.clone(),
    }
}

/// Adds jobs of a kind; their ids.
pub(crate) async fn add(user: &User, kind: &str, count: usize) -> Vec<String> {
    let items: Vec<_> =
        (0..count).map(|n| json!({"kind": kind, "title": n.to_string(), "payload": {"n": n}})).collect();
    let (status, added) = post(user, "/api/v1/jobs", json!({ "items": items })).await;
    assert_eq!(status, 201, "{added}");
    added["items"].as_array().unwrap().iter().map(|job| job["id"].as_str().unwrap().to_owned()).collect()
}

/// Claims; panics unless allowed.
pub(crate) async fn claim(worker: &User, max: usize, wait_seconds: u64) -> Vec<Value> {
    let body = json!({"max": max, "wait_seconds": wait_seconds});
    let (status, answer) = post(worker, "/api/v1/worker/claim", body).await;
    assert_eq!(status, 200, "{answer}");
    answer["items"].as_array().unwrap().clone()
}

/// What a worker says about a job that it claimed.
pub(crate) async fn say(worker: &User, verb: &str, job: &Value, more: Value) -> (u16, Value) {
    let mut body = json!({"id": job["id"], "fence": job["fence"]});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    post(worker, &format!("/api/v1/worker/{verb}"), body).await
}

pub(crate) async fn job(user: &User, id: &Value) -> Value {
    get(user, &format!("/api/v1/jobs/{}", id.as_str().unwrap())).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_is_claimed_reported_and_completed_and_completing_twice_is_once() {
    let app = TestApp::with(KINDS).await;
    let ada = app.user("ada").await;
    let farm = worker(&app, &["transcode"]);
    assert_eq!(claim(&farm, 1, 0).await, Vec::<Value>::new());
    let ids = add(&ada, "transcode", 1).await;
    let claimed = claim(&farm, 10, 0).await;
    assert_eq!(claimed.len(), 1);
    let mine = &claimed[0];
    assert_eq!((&mine["id"], &mine["payload"], &mine["attempt"]), (&json!(ids[0]), &json!({"n": 0}), &json!(1)));
    assert_eq!((&mine["tenant"], &mine["kind"]), (&json!(ada.id), &json!("transcode")));
    assert!(mine["lease_seconds"].as_f64().unwrap() > 0.0);
    assert_eq!(job(&ada, &mine["id"]).await["state"], "running");
    let (status, beat) = say(&farm, "heartbeat", mine, json!({})).await;
    assert_eq!((status, &beat["cancelled"]), (200, &json!(false)));
    let report = json!({"step": "transcoding", "done": 1, "total": 4});
    assert_eq!(say(&farm, "progress", mine, report).await.0, 200);
    eventually("its owner sees how far it is", async || {
        let seen = job(&ada, &mine["id"]).await["progress"].clone();
        (seen["step"] == "transcoding" && seen["percent"] == 25.0).then_some(())
    })
    .await;
    for _ in 0..2 {
        let (status, ended) = say(&farm, "complete", mine, json!({"result": {"url": "x"}})).await;
        assert_eq!((status, &ended["state"]), (200, &json!("done")));
    }
    let done = job(&ada, &mine["id"]).await;
    assert_eq!((&done["state"], &done["result"], &done["attempts"]), (&json!("done"), &json!({"url": "x"}), &json!(1)));
    // With another number, or another verb, it is over.
    let other = json!({"id": mine["id"], "fence": mine["fence"].as_u64().unwrap() + 1});
    for (verb, more) in [("complete", json!({})), ("fail", json!({"reason": "x"})), ("heartbeat", json!({}))] {
        let (status, answer) = say(&farm, verb, &other, more).await;
        assert_eq!((status, &answer["error"]["code"]), (409, &json!("LEASE_LOST")), "{verb}");
    }
    let (status, answer) = say(&farm, "fail", mine, json!({"reason": "x"})).await;
    assert_eq!((status, &answer["error"]["code"]), (409, &json!("LEASE_LOST")), "it is done");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_of_a_kind_that_is_done_here_says_so() {
    let app = TestApp::with(KINDS).await;
    // Keys outlive the operator's list of kinds.
    let stray = worker(&app, &["transcode", "deliver_meeting"]);
    for body in [json!({}), json!({"kinds": ["deliver_meeting"]})] {
        let (status, answer) = post(&stray, "/api/v1/worker/claim", body).await;
        assert_eq!((status, &answer["error"]["code"]), (400, &json!("UNKNOWN_KIND")), "{answer}");
        assert!(answer["error"]["message"].as_str().unwrap().contains("queue.external_kinds"), "{answer}");
    }
    let (status, answer) = post(&stray, "/api/v1/worker/claim", json!({"kinds": ["transcode"]})).await;
    assert_eq!(status, 200, "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_worker_loses_its_job_and_what_it_says_later_is_refused() {
    let mut app = TestApp::with(&format!("{KINDS}{SHORT}")).await;
    app.expect_log("a running job was taken back");
    let ada = app.user("ada").await;
    let (first, second) = (worker(&app, &["transcode"]), worker(&app, &["transcode"]));
    add(&ada, "transcode", 1).await;
    let lost = claim(&first, 1, 0).await.remove(0);
    let taken =
        eventually("the job is given to somebody else", async || claim(&second, 1, 5).await.into_iter().next()).await;
    assert_eq!(taken["id"], lost["id"]);
    assert!(taken["fence"].as_u64() > lost["fence"].as_u64());
    assert_eq!(taken["attempt"], 2);
    for (verb, more) in [
        ("heartbeat", json!({})),
        ("progress", json!({"done": 1})),
        ("complete", json!({"result": "late"})),
        ("fail", json!({"reason": "late"})),
    ] {
        let (status, answer) = say(&first, verb, &lost, more).await;
        assert_eq!((status, &answer["error"]["code"]), (409, &json!("LEASE_LOST")), "{verb}");
    }
    assert_eq!(say(&second, "complete", &taken, json!({"result": "in time"})).await.0, 200);
    assert_eq!(job(&ada, &lost["id"]).await["result"], "in time");
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_are_tried_again_or_not_as_the_worker_says() {
    let app = TestApp::with(KINDS).await;
    let ada = app.user("ada").await;
    let farm = worker(&app, &["transcode"]);
    add(&ada, "transcode", 2).await;
    let claimed = claim(&farm, 2, 0).await;
    let more = json!({"reason": "the disk is full", "retry_after_seconds": 3600});
    let (status, ended) = say(&farm, "fail", &claimed[0], more).await;
    assert_eq!((status, &ended["state"]), (200, &json!("scheduled")));
    let waiting = job(&ada, &claimed[0]["id"]).await;
    assert_eq!((&waiting["state"], &waiting["error"]), (&json!("scheduled"), &json!("the disk is full")));
    assert!(waiting["run_at"].is_string());
    let more = json!({"reason": "no such codec", "retryable": false});
    let (status, ended) = say(&farm, "fail", &claimed[1], more).await;
    assert_eq!((status, &ended["state"]), (200, &json!("dead")));
    let dead = job(&ada, &claimed[1]["id"]).await;
    assert_eq!((&dead["state"], &dead["error"]), (&json!("dead"), &json!("no such codec")));
    // Its owner wants it all the same.
    let path = format!("/api/v1/jobs/{}/retry", claimed[1]["id"].as_str().unwrap());
    assert_eq!(post(&ada, &path, json!({})).await.1["state"], "queued");
    assert_eq!(claim(&farm, 2, 5).await[0]["id"], claimed[1]["id"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_learns_that_its_job_was_called_off() {
    let app = TestApp::with(KINDS).await;
    let ada = app.user("ada").await;
    let farm = worker(&app, &["transcode"]);
    add(&ada, "transcode", 1).await;
    let mine = claim(&farm, 1, 0).await.remove(0);
    let id = mine["id"].as_str().unwrap();
    for _ in 0..2 {
        let (status, job) = post(&ada, &format!("/api/v1/jobs/{id}/cancel"), json!({})).await;
        assert_eq!((status, &job["cancel_requested"]), (200, &json!(true)), "{job}");
    }
    let (status, beat) = say(&farm, "heartbeat", &mine, json!({})).await;
    assert_eq!((status, &beat["cancelled"]), (200, &json!(true)));
    let (status, ended) = say(&farm, "fail", &mine, json!({"reason": "stopped"})).await;
    assert_eq!((status, &ended["state"]), (200, &json!("cancelled")));
    assert_eq!(job(&ada, &mine["id"]).await["state"], "cancelled");
    let (status, answer) = say(&farm, "complete", &mine, json!({})).await;
    assert_eq!((status, &answer["error"]["code"]), (409, &json!("LEASE_LOST")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_waiting_worker_gets_a_job_as_soon_as_there_is_one() {
    let app = TestApp::with(KINDS).await;
    let ada = app.user("ada").await;
    let farm = worker(&app, &["transcode"]);
    let waiting = tokio::spawn({
        let farm = farm.clone();
        async move {
            let begun = std::time::Instant::now();
            (claim(&farm, 1, 30).await, begun.elapsed())
        }
    });
    add(&ada, "translate", 1).await;
    let ids = add(&ada, "transcode", 1).await;
    let (claimed, waited) = waiting.await.unwrap();
    assert_eq!(claimed[0]["id"], json!(ids[0]), "and none of a kind that it cannot do");
    assert!(waited.as_secs() < 25, "{waited:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_sees_nothing_of_kinds_that_are_not_its_own() {
    let app = TestApp::with(KINDS).await;
    let ada = app.user("ada").await;
    let (coder, other) = (worker(&app, &["transcode"]), worker(&app, &["translate"]));
    add(&ada, "transcode", 1).await;
    let mine = claim(&coder, 1, 0).await.remove(0);
    assert_eq!(claim(&other, 1, 0).await, Vec::<Value>::new());
    let (status, answer) = post(&other, "/api/v1/worker/claim", json!({"kinds": ["transcode"]})).await;
    assert_eq!((status, &answer["error"]["code"]), (403, &json!("FORBIDDEN")));
    let absent = json!({"id": "01234567890123456789012345", "fence": mine["fence"]});
    for (verb, more) in [
        ("heartbeat", json!({})),
        ("progress", json!({"done": 1})),
        ("complete", json!({})),
        ("fail", json!({"reason": "x"})),
    ] {
        let (status, foreign) = say(&other, verb, &mine, more.clone()).await;
        let (absent_status, nothing) = say(&other, verb, &absent, more).await;
        assert_eq!((status, absent_status), (404, 404), "{verb}");
        assert_eq!(foreign["error"]["message"], nothing["error"]["message"], "{verb}");
    }
    // Whoever is no worker is told so, and nothing else.
    let program = with_key(&ada, &make(&ada, &["jobs"]).await.0);
    for verb in ["claim", "heartbeat", "progress", "complete", "fail"] {
        let path = format!("/api/v1/worker/{verb}");
        assert_eq!(post(&ada, &path, json!({})).await.0, 401, "a sign-in is no key: {verb}");
        assert_eq!(post(&program, &path, json!({})).await.0, 403, "{verb}");
        let anonymous = app.post(&format!("/api/v1/worker/{verb}"), json!({})).await;
        assert_eq!(anonymous.status(), 401, "{verb}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_was_revoked_while_its_worker_waited_gets_no_job() {
    let app = TestApp::with(KINDS).await;
    let ada = app.user("ada").await;
    let (revoked, other) = (worker(&app, &["transcode"]), worker(&app, &["transcode"]));
    let mut waiting = Box::pin(post(&revoked, "/api/v1/worker/claim", json!({"wait_seconds": 30})));
    // It waits: nothing comes for a moment.
    assert!(tokio::time::timeout(std::time::Duration::from_millis(500), &mut waiting).await.is_err());
    assert!(app.cli(&["api-keys", "revoke", &revoked.id]).status.success());
    let ids = add(&ada, "transcode", 1).await;
    let (status, answer) = waiting.await;
    assert_eq!((status, &answer["error"]["code"]), (401, &json!("UNAUTHORIZED")), "{answer}");
    let claimed = claim(&other, 1, 10).await;
    assert_eq!((&claimed[0]["id"], &claimed[0]["attempt"]), (&json!(ids[0]), &json!(1)), "as if it had not been");
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_words_of_workers_are_refused() {
    let app = TestApp::with(KINDS).await;
    let ada = app.user("ada").await;
    let farm = worker(&app, &["transcode"]);
    add(&ada, "transcode", 1).await;
    let mine = claim(&farm, 1, 0).await.remove(0);
    for (body, status) in [
        (json!({"max": 0}), 400),
        (json!({"max": 101}), 400),
        (json!({"max": -1}), 400),
        (json!({"wait_seconds": 31}), 400),
        (json!({"kinds": []}), 400),
        (json!({"kinds": ["transcode", "nothing"]}), 403),
        (json!({"kind": "transcode"}), 400),
        (json!([]), 400),
    ] {
        assert_eq!(post(&farm, "/api/v1/worker/claim", body.clone()).await.0, status, "{body}");
    }
    for (verb, more, status) in [
        ("heartbeat", json!({"more": 1}), 400),
        ("progress", json!({}), 400),
        ("progress", json!({"done": -1}), 400),
        ("progress", json!({"done": 1, "total": "many"}), 400),
        ("complete", json!({"result": "x".repeat(600_000)}), 400),
        ("complete", json!({"outcome": 1}), 400),
        ("fail", json!({}), 400),
        ("fail", json!({"reason": "x", "retry_after_seconds": 100_000}), 400),
        ("fail", json!({"reason": "x", "retryable": "no"}), 400),
    ] {
        let (found, answer) = say(&farm, verb, &mine, more.clone()).await;
        let shown: String = more.to_string().chars().take(80).collect();
        assert_eq!(found, status, "{verb} {shown}: {answer}");
    }
    let wrong = json!({"id": "../x", "fence": 1});
    assert_eq!(say(&farm, "complete", &wrong, json!({})).await.0, 404);
    let wrong = json!({"id": mine["id"], "fence": -1});
    assert_eq!(say(&farm, "complete", &wrong, json!({})).await.0, 400);
    assert_eq!(say(&farm, "complete", &mine, json!({})).await.0, 200, "nothing of it counted");
    assert_eq!(call(&farm, Method::GET, "/api/v1/worker/claim", None).await.0, 405);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_or_done_twice_when_pocketfleet_is_killed() {
    let mut app = TestApp::with(KINDS).await;
    let ada = app.user("ada").await;
    let farm = worker(&app, &["transcode"]);
    let ids = add(&ada, "transcode", 30).await;
    let held = claim(&farm, 5, 0).await;
    assert_eq!(held.len(), 5);
    assert_eq!(say(&farm, "complete", &held[0], json!({"result": 1})).await.0, 200);
    app.kill();
    app.launch().await;
    let (ada, farm) = (ada.at(&app), farm.at(&app));
    // What was acknowledged is there, what was held may be finished, by its old number or by a new claim of it.
    let mut done: HashMap<String, u32> = HashMap::new();
    let mut count = |job: &Value| *done.entry(job["id"].as_str().unwrap().to_owned()).or_default() += 1;
    count(&held[0]);
    for job in &held[1..] {
        if say(&farm, "complete", job, json!({"result": 1})).await.0 == 200 {
            count(job);
        }
    }
    while done_so_far(&ada).await < ids.len() {
        for job in claim(&farm, 100, 5).await {
            let (status, answer) = say(&farm, "complete", &job, json!({"result": 1})).await;
            assert_eq!(status, 200, "{answer}");
            count(&job);
        }
    }
    assert_eq!(done.len(), ids.len());
    assert!(ids.iter().all(|id| done.get(id) == Some(&1)), "{done:?}");
}

async fn done_so_far(user: &User) -> usize {
    get(user, "/api/v1/jobs?state=done&limit=100").await["items"].as_array().unwrap().len()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_in_python_does_jobs() {
    let app = TestApp::with(KINDS).await;
    let ada = app.user("ada").await;
    let farm = worker(&app, &["transcode"]);
    let items = json!([
        {"kind": "transcode", "title": "good", "payload": {"words": ["a", "bcd", ""]}},
        {"kind": "transcode", "title": "bad", "payload": {"words": ["a", 7]}},
    ]);
    let (status, added) = post(&ada, "/api/v1/jobs", json!({ "items": items })).await;
    assert_eq!(status, 201, "{added}");
    let (base, key) = (app.base.clone(), farm.token.clone());
    let run = tokio::task::spawn_blocking(move || {
        command("timeout")
            .args(["60", "python3", "worker.py"])
            .current_dir(root().join("tests/python"))
            .env("POCKETFLEET_URL", base)
            .env("POCKETFLEET_KEY", key)
            .env("JOBS", "2")
            .output()
            .unwrap()
    });
    let output = run.await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let good = job(&ada, &added["items"][0]["id"]).await;
    assert_eq!((&good["state"], &good["result"]), (&json!("done"), &json!({"lengths": [1, 3, 0]})));
    let bad = job(&ada, &added["items"][1]["id"]).await;
    assert_eq!((&bad["state"], &bad["error"]), (&json!("dead"), &json!("a word is not a text")));
    let lines = String::from_utf8(output.stdout).unwrap();
    assert_eq!(lines.lines().count(), 2, "{lines}");
}
