//! Jobs of any kind: who may add which, what operators see and do, and where everybody stands in line.

use serde_json::Value;
use serde_json::json;

use crate::api_keys::make;
use crate::api_keys::with_key;
use crate::queue_api::get;
use crate::queue_api::post;
use crate::support::TestApp;
use crate::support::eventually;
use crate::workers::KINDS;
use crate::workers::add;
use crate::workers::claim;
use crate::workers::say;
use crate::workers::worker;

#[tokio::test(flavor = "multi_thread")]
async fn only_kinds_that_are_open_to_users_can_be_added_by_them() {
    let keys = "queue.external_kinds = [\"transcode\", \"inner\"]\nqueue.user_kinds = [\"transcode\"]\n";
    let app = TestApp::with(keys).await;
    let ada = app.user("ada").await;
    assert_eq!(post(&ada, "/api/v1/jobs", json!({"kind": "transcode"})).await.0, 201);
    let (_, closed) = post(&ada, "/api/v1/jobs", json!({"kind": "inner"})).await;
    let (_, absent) = post(&ada, "/api/v1/jobs", json!({"kind": "nothing"})).await;
    assert_eq!(closed["error"]["code"], "UNKNOWN_KIND");
    assert_eq!(closed["error"]["message"], absent["error"]["message"], "closed and absent look the same");
    let items = json!([{"kind": "transcode"}, {"kind": "inner"}]);
    let (status, answer) = post(&ada, "/api/v1/jobs", json!({ "items": items })).await;
    assert_eq!((status, &answer["error"]["details"]["index"]), (400, &json!(1)));
    assert_eq!(get(&ada, "/api/v1/jobs").await["items"].as_array().unwrap().len(), 1, "nothing is half added");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_text_is_the_same_job_until_it_is_done() {
    let app = TestApp::with(KINDS).await;
    let ada = app.user("ada").await;
    let wish = json!({"kind": "transcode", "dedupe": "film 7", "payload": {"film": 7}});
    let (status, first) = post(&ada, "/api/v1/jobs", wish.clone()).await;
    assert_eq!(status, 201, "{first}");
    let (status, again) = post(&ada, "/api/v1/jobs", wish.clone()).await;
    assert_eq!((status, &again["id"]), (200, &first["id"]));
    let (_, other) = post(&ada, "/api/v1/jobs", json!({"kind": "translate", "dedupe": "film 7"})).await;
    assert_ne!(other["id"], first["id"]);
    let farm = worker(&app, &["transcode"]);
    let mine = claim(&farm, 1, 0).await.remove(0);
    assert_eq!(say(&farm, "complete", &mine, json!({})).await.0, 200);
    let (status, fresh) = post(&ada, "/api/v1/jobs", wish).await;
    assert_eq!(status, 201, "{fresh}");
    assert_ne!(fresh["id"], first["id"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn positions_are_the_order_of_dispatch_and_people_take_turns() {
    let app = TestApp::with(KINDS).await;
    let (ada, bob) = (app.user("ada").await, app.user("bob").await);
    add(&ada, "transcode", 3).await;
    add(&bob, "transcode", 2).await;
    let places = async |user| {
        let queue = get(user, "/api/v1/queue").await;
        assert_eq!(queue["waiting"], 5);
        let items = queue["items"].as_array().unwrap().clone();
        items.iter().map(|item| (item["position"].as_u64().unwrap(), item["id"].clone())).collect::<Vec<_>>()
    };
    let mut line: Vec<_> = places(&ada).await.into_iter().chain(places(&bob).await).collect();
    line.sort_by_key(|(position, _)| *position);
    assert_eq!(line.iter().map(|(position, _)| *position).collect::<Vec<_>>(), [1, 2, 3, 4, 5]);
    let farm = worker(&app, &["transcode"]);
    let mut order = Vec::new();
    while order.len() < 5 {
        let job = claim(&farm, 1, 5).await.remove(0);
        order.push((job["id"].clone(), job["tenant"].clone()));
    }
    let shown: Vec<_> = line.into_iter().map(|(_, id)| id).collect();
    assert_eq!(order.iter().map(|(id, _)| id.clone()).collect::<Vec<_>>(), shown, "what was shown is what was done");
    let whose: Vec<_> = order.iter().map(|(_, tenant)| tenant.as_str().unwrap()).collect();
    assert_eq!(whose, [&*ada.id, &*bob.id, &*ada.id, &*bob.id, &*ada.id]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_queue_rests_and_goes_on() {
    let mut app = TestApp::with(KINDS).await;
    let (ada, bob) = (app.user("ada").await, app.user("bob").await);
    let farm = worker(&app, &["transcode"]);
    let ids = add(&ada, "transcode", 1).await;
    for _ in 0..2 {
        assert_eq!(post(&ada, "/api/v1/queue/pause", json!({})).await.0, 204);
    }
    assert_eq!(claim(&farm, 1, 0).await, Vec::<Value>::new());
    let others = add(&bob, "transcode", 1).await;
    assert_eq!(claim(&farm, 5, 0).await[0]["id"], json!(others[0]), "others go on");
    app.kill();
    app.launch().await;
    let (ada, farm) = (ada.at(&app), farm.at(&app));
    assert_eq!(get(&ada, "/api/v1/queue").await["paused"], true);
    assert_eq!(claim(&farm, 1, 0).await, Vec::<Value>::new());
    for _ in 0..2 {
        assert_eq!(post(&ada, "/api/v1/queue/resume", json!({})).await.0, 204);
    }
    assert_eq!(claim(&farm, 1, 5).await[0]["id"], json!(ids[0]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_with_a_key_acts_as_its_owner() {
    let app = TestApp::with(KINDS).await;
    let ada = app.user("ada").await;
    let admin = app.admin("root").await;
    let program = with_key(&ada, &make(&ada, &["jobs"]).await.0);
    let (status, job) = post(&program, "/api/v1/jobs", json!({"kind": "transcode", "user_id": admin.id})).await;
    assert_eq!((status, &job["user_id"]), (201, &json!(ada.id)));
    let path = format!("/api/v1/jobs/{}", job["id"].as_str().unwrap());
    assert_eq!(get(&ada, &path).await["id"], job["id"]);
    assert_eq!(post(&program, &format!("{path}/cancel"), json!({})).await.1["state"], "cancelled");
    // An admin's key is no admin.
    let programs = with_key(&admin, &make(&admin, &["jobs"]).await.0);
    let (status, job) = post(&programs, "/api/v1/jobs", json!({"kind": "transcode", "user_id": ada.id})).await;
    assert_eq!((status, &job["user_id"]), (201, &json!(admin.id)));
}

#[tokio::test(flavor = "multi_thread")]
async fn operators_list_show_cancel_retry_and_pause() {
    let app = TestApp::with(KINDS).await;
    let (ada, bob) = (app.user("ada").await, app.user("bob").await);
    let ids = add(&ada, "transcode", 2).await;
    add(&bob, "translate", 1).await;
    let all = app.cli_json(&["jobs", "list"]);
    assert_eq!(all["items"].as_array().unwrap().len(), 3);
    let hers = app.cli_json(&["jobs", "list", "--tenant", &ada.id, "--state", "queued", "--limit", "1"]);
    assert_eq!(hers["items"].as_array().unwrap().len(), 1);
    assert!(hers["next"].is_string(), "{hers}");
    let table = String::from_utf8(app.cli(&["jobs", "list", "--kind", "transcode"]).stdout).unwrap();
    assert!(table.contains(&ids[0]) && table.contains(&ada.id) && !table.contains(&bob.id), "{table}");
    assert_eq!(app.cli_json(&["jobs", "show", &ids[0]])["user_id"], json!(ada.id));
    assert_eq!(app.cli_json(&["jobs", "cancel", &ids[0]])["state"], "cancelled");
    assert_eq!(app.cli_json(&["jobs", "retry", &ids[0]])["state"], "queued");
    assert!(app.cli(&["jobs", "pause", "transcode"]).status.success());
    let farm = worker(&app, &["transcode", "translate"]);
    let claimed = claim(&farm, 10, 0).await;
    assert_eq!(claimed.iter().map(|job| job["kind"].as_str().unwrap()).collect::<Vec<_>>(), ["translate"]);
    let status = app.cli_json(&["jobs", "status"]);
    let kind =
        |name: &str| status["kinds"].as_array().unwrap().iter().find(|kind| kind["kind"] == name).unwrap().clone();
    assert_eq!(kind("transcode")["is_paused"], true);
    assert_eq!(
        (&kind("transcode")["states"]["queued"], &kind("translate")["states"]["running"]),
        (&json!(2), &json!(1))
    );
    let text = String::from_utf8(app.cli(&["jobs", "status"]).stdout).unwrap();
    assert!(text.contains("external, paused"), "{text}");
    assert!(app.cli(&["jobs", "resume", "transcode"]).status.success());
    eventually("both are handed out", async || (claim(&farm, 10, 1).await.len() == 2).then_some(())).await;
    for args in [["jobs", "show", "nothing"], ["jobs", "cancel", "01234567890123456789012345"]] {
        let refused = app.cli(&args);
        assert!(!refused.status.success());
        assert!(String::from_utf8_lossy(&refused.stderr).contains("no such job"), "{args:?}");
    }
    assert!(!app.cli(&["jobs", "pause", "nothing"]).status.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_has_a_bound_and_its_queue_says_so() {
    let keys = format!("{KINDS}queue.max_waiting_per_tenant = 5\n");
    let app = TestApp::with(&keys).await;
    let (ada, bob) = (app.user("ada").await, app.user("bob").await);
    add(&ada, "transcode", 4).await;
    let items = json!([{"kind": "transcode"}, {"kind": "transcode"}]);
    let request = ada.request(reqwest::Method::POST, "/api/v1/jobs").json(&json!({ "items": items }));
    let answer = request.send().await.unwrap();
    assert_eq!(answer.status(), 429);
    assert!(answer.headers().contains_key("retry-after"));
    assert_eq!(get(&ada, "/api/v1/jobs").await["items"].as_array().unwrap().len(), 4, "nothing is half added");
    add(&ada, "transcode", 1).await;
    add(&bob, "transcode", 5).await;
}
