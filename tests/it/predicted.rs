//! Instances that are woken because somebody will probably want them in a moment.

use reqwest::Method;
use serde_json::json;

use crate::delivery::Bench;
use crate::support::TestApp;
use crate::support::User;
use crate::support::eventually;

const ON: &str = "instances.predict = true\n";

async fn metric(app: &TestApp, name: &str) -> u64 {
    let metrics = app.get("/metrics").await.text().await.unwrap();
    let line = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {name} in {metrics}")).parse().unwrap()
}

async fn counts(app: &TestApp) -> (u64, u64) {
    let predicted = metric(app, "pocketfleet_predicted_total").await;
    (predicted, metric(app, "pocketfleet_predictions_used_total").await)
}

async fn is_awake(app: &TestApp, user: &User) {
    eventually("it is awake", async || (app.tenant(&user.id)["state"] == "awake").then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sign_in_wakes_the_instance_and_the_next_request_finds_it_awake() {
    let app = TestApp::with(ON).await;
    let ada = app.user("ada").await;
    is_awake(&app, &ada).await;
    assert_eq!(counts(&app).await, (1, 0), "nobody has asked for anything");
    let waited = "pocketfleet_arrival_seconds_count{outcome=\"woken\"}";
    let before = metric(&app, waited).await;
    ada.note("x").await;
    ada.note("y").await;
    assert_eq!(counts(&app).await, (1, 1));
    assert_eq!(app.tenant(&ada.id)["epoch"], 1);
    assert_eq!(metric(&app, waited).await, before, "both found it awake");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registration_has_the_instance_made_before_anybody_signs_in() {
    let app = TestApp::with(ON).await;
    let fields = json!({"email": "ada@example.com", "password": "a long password", "name": "Ada"});
    let answer = app.http.post(format!("{}/auth/register", app.base)).json(&fields).send().await.unwrap();
    assert_eq!(answer.status(), 201);
    // Whether anything is begun is decided before the registration is answered. (Not where addresses have to be verified
    // first: `mail::verification_leads_to_our_page_and_is_required_where_it_is`.)
    assert_eq!(counts(&app).await.0, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_woken_for_nothing_is_not_counted_as_used() {
    let app = TestApp::with(ON).await;
    let ada = app.user("ada").await;
    is_awake(&app, &ada).await;
    app.put_to_sleep(&ada.id);
    ada.note("x").await;
    assert_eq!(counts(&app).await, (1, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_house_is_left_as_it_is() {
    // One place is left to clients.
    let app = TestApp::with(&format!("{ON}instances.max_awake = 2\n")).await;
    let ada = app.user("ada").await;
    is_awake(&app, &ada).await;
    // Whether anything is begun is decided before the sign-in is answered.
    let bob = app.user("bob").await;
    assert_eq!(counts(&app).await.0, 1);
    assert_eq!(app.tenant(&bob.id)["state"], "asleep");
    assert_eq!(app.tenant(&ada.id)["state"], "awake", "nobody sleeps for a suspicion");
    // A request does what it always did.
    bob.note("x").await;
    let cyd = app.user("cyd").await;
    assert_eq!((counts(&app).await.0, &app.tenant(&cyd.id)["state"]), (1, &"asleep".into()));
    cyd.note("x").await;
    assert_eq!(app.tenant(&ada.id)["state"], "asleep");
    // The place is free again after each: what was reserved is not lost.
    ada.note("x").await;
    assert_eq!(bob.titles().await, ["x"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn they_can_be_turned_off() {
    let app = TestApp::with("instances.predict = false\n").await;
    let ada = app.user("ada").await;
    assert_eq!((app.tenant(&ada.id)["state"].as_str(), counts(&app).await), (Some("asleep"), (0, 0)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claimed_delivery_wakes_the_instance_while_the_fetch_from_outside_is_held() {
    let bench = Bench::start(&[], &[], ON).await;
    let (app, ada) = (&bench.app, &bench.user);
    let recording = bench.recordings().await[0];
    // The list is read once, so that the delivery has only the recording to ask for.
    eventually("the meetings are there", async || {
        let found = crate::meetings::list(ada, "?limit=100").await;
        (found["sync"]["state"] == "fresh").then_some(())
    })
    .await;
    app.put_to_sleep(&ada.id);
    bench.standin.fault(json!({"path": "/recordings/*/download", "method": "POST", "kind": "stall"})).await;
    let job = bench.order(recording, "folder").await;
    eventually("it has asked for the recording", async || {
        (bench.standin.calls("POST /recordings/*/download").await > 0).then_some(())
    })
    .await;
    let (_, shown) = bench.call(Method::GET, &format!("/api/v1/queue/{job}"), serde_json::Value::Null).await;
    assert_eq!(shown["state"], "running", "{shown}");
    is_awake(app, ada).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delivery_that_is_ordered_for_later_finds_the_instance_awake() {
    let bench = Bench::start(&[], &[], ON).await;
    let (app, ada) = (&bench.app, &bench.user);
    let recordings = bench.recordings().await;
    eventually("the meetings are there", async || {
        let found = crate::meetings::list(ada, "?limit=100").await;
        (found["sync"]["state"] == "fresh").then_some(())
    })
    .await;
    // The time between is short: what a busy machine keeps from being seen is tried again.
    let is_seen = async |recording: u64| {
        app.put_to_sleep(&ada.id);
        // No wake on suspicion was in the ten seconds before.
        let at = time::OffsetDateTime::now_utc() + std::time::Duration::from_secs(12);
        let at = at.format(&time::format_description::well_known::Rfc3339).unwrap();
        let body = json!({"recording_id": recording, "destination": "folder", "run_at": at});
        let (status, job) = bench.call(Method::POST, "/api/v1/queue", body).await;
        assert_eq!(status, 201, "{job}");
        let path = format!("/api/v1/queue/{}", job["id"].as_str().unwrap());
        eventually("it is awake, or runs", async || {
            let state = app.tenant(&ada.id)["state"].clone();
            // Asked after: it was awake before the job was begun.
            let job = bench.get(&path).await;
            let is_early = job["state"] == "scheduled";
            (!is_early || state == "awake").then_some(is_early)
        })
        .await
    };
    for recording in recordings.into_iter().take(4) {
        if is_seen(recording).await {
            return;
        }
    }
    panic!("it was never awake before its job began");
}
