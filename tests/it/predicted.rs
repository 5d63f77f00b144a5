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
