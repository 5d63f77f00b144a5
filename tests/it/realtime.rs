//! Event streams outlive the sleep and the crash of an instance, and bring every event once.

use std::collections::BTreeSet;

use serde_json::Value;
use serde_json::json;

use crate::support::TestApp;
use crate::support::User;
use crate::support::eventually;
use crate::support::signal;
use crate::support::sse::Stream;

async fn attached(app: &TestApp, count: usize) {
    let line = format!("pocketfleet_realtime_streams{{state=\"attached\"}} {count}");
    eventually("streams are attached", async || {
        let metrics = app.get("/metrics").await.text().await.unwrap();
        metrics.lines().any(|one| one == line).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_that_wakes_the_tenant_is_told_once_to_all_who_slept() {
    let app = TestApp::start().await;
    let ada = app.user("ada").await;
    ada.note("before").await;
    let early = Stream::subscribed(&app, &ada, &["notes/*"]).await;
    app.put_to_sleep(&ada.id);
    let late = Stream::subscribed(&app, &ada, &["notes/*"]).await;
    let other = Stream::subscribed(&app, &ada, &["notebooks/*"]).await;
    assert_eq!(app.tenant(&ada.id)["state"], "asleep", "a subscription wakes nothing");

    // A second sign-in writes, as another device would.
    let elsewhere = app.sign_in(&ada.email, &ada.password).await;
    for title in ["one", "two", "three"] {
        elsewhere.note(title).await;
        // PocketBase sends each event on its own: two at once may come in either order.
        early.until(title).await;
        late.until(title).await;
    }
    for stream in [&early, &late] {
        assert_eq!(stream.until("three").await, ["one", "two", "three"]);
        assert!(stream.events().iter().all(|event| event.name == "notes/*" && event.id == stream.id));
        assert!(stream.events().iter().all(|event| event.data["action"] == "create"));
    }
    for round in 0..3 {
        app.put_to_sleep(&ada.id);
        elsewhere.note(&format!("round {round}")).await;
        early.until(&format!("round {round}")).await;
        late.until(&format!("round {round}")).await;
    }
    let told = late.until("round 2").await;
    assert_eq!(told, ["one", "two", "three", "round 0", "round 1", "round 2"]);
    assert_eq!(other.events().len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_event_before_a_sleep_is_not_lost() {
    // There is room for one: each request of Bob's puts Ada's instance to sleep at once, and the other way round.
    let app = TestApp::with("instances.max_awake = 1\n").await;
    let (ada, bob) = (app.user("ada").await, app.user("bob").await);
    let mut streams = Vec::new();
    for _ in 0..20 {
        streams.push(Stream::subscribed(&app, &ada, &["notes/*"]).await);
    }
    let mut expected = Vec::new();
    for round in 0..15 {
        let title = format!("last {round}");
        ada.note(&title).await;
        bob.note("x").await;
        expected.push(title);
    }
    for stream in &streams {
        assert_eq!(stream.until("last 14").await, expected);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_outlives_the_crash_of_its_instance() {
    let mut app = TestApp::start().await;
    app.expect_log("instance failed");
    // A write that meets the crash is answered 502, which is logged.
    app.expect_log("request failed");
    let ada = app.user("ada").await;
    ada.note("before").await;
    let stream = Stream::subscribed(&app, &ada, &["notes/*"]).await;
    for title in ["one", "two"] {
        let pid = app.tenant(&ada.id)["pid"].as_i64().unwrap();
        signal(i32::try_from(pid).unwrap(), "KILL");
        eventually("the crash is noticed", async || (app.tenant(&ada.id)["pid"] != pid).then_some(())).await;
        eventually("a write succeeds", async || {
            let answer = ada.post("/api/collections/notes/records", json!({ "title": title })).await;
            (answer.status() == 200).then_some(())
        })
        .await;
        stream.until(title).await;
    }
    ada.note("end").await;
    assert_eq!(stream.until("end").await, ["one", "two", "end"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_stream_keeps_nothing_awake_and_says_that_it_lives() {
    let keys =
        "instances.idle_timeout = \"700ms\"\nrealtime.heartbeat = \"100ms\"\nrealtime.upstream_idle = \"200ms\"\n";
    let app = TestApp::with(keys).await;
    let ada = app.user("ada").await;
    ada.note("x").await;
    let stream = Stream::subscribed(&app, &ada, &["notes/*"]).await;
    eventually("it sleeps", async || (app.tenant(&ada.id)["state"] == "asleep").then_some(())).await;
    let before = stream.comments();
    eventually("heartbeats go on", async || (stream.comments() >= before + 3).then_some(())).await;
    assert_eq!(app.tenant(&ada.id)["state"], "asleep");
    assert!(!stream.has_ended());
    ada.note("awake").await;
    assert_eq!(stream.until("awake").await, ["awake"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_streams_of_one_user_each_get_the_shape_they_asked_for() {
    let app = TestApp::start().await;
    let ada = app.user("ada").await;
    let options = |query: Value| {
        let text = json!({ "query": query }).to_string();
        format!("notes/*?options={}", percent_encoding::utf8_percent_encode(&text, percent_encoding::NON_ALPHANUMERIC))
    };
    let narrow = options(json!({ "fields": "id,title" }));
    let filtered = options(json!({ "filter": "title ~ 'keep'", "expand": "notebook" }));
    let plain = Stream::subscribed(&app, &ada, &["notes/*"]).await;
    let narrow_stream = Stream::subscribed(&app, &ada, &[&narrow]).await;
    let filtered_stream = Stream::subscribed(&app, &ada, &[&filtered]).await;
    let notebook: Value =
        ada.post("/api/collections/notebooks/records", json!({"name": "N"})).await.json().await.unwrap();
    for title in ["drop this", "keep this"] {
        let note = json!({ "title": title, "notebook": notebook["id"] });
        assert_eq!(ada.post("/api/collections/notes/records", note).await.status(), 200);
        plain.until(title).await;
        narrow_stream.until(title).await;
    }
    assert_eq!(plain.until("keep this").await, ["drop this", "keep this"]);
    assert_eq!(narrow_stream.until("keep this").await, ["drop this", "keep this"]);
    assert_eq!(filtered_stream.until("keep this").await, ["keep this"]);
    let only = |stream: &Stream| stream.events().pop().unwrap();
    let keys = |event: &Value| event["record"].as_object().unwrap().keys().cloned().collect::<BTreeSet<_>>();
    assert_eq!(only(&narrow_stream).name, narrow, "the topic is the text that was asked for");
    assert_eq!(keys(&only(&narrow_stream).data), BTreeSet::from(["id".to_owned(), "title".to_owned()]));
    assert_eq!(only(&filtered_stream).data["record"]["expand"]["notebook"]["name"], "N");
    assert!(keys(&only(&plain).data).contains("created"));
    assert!(!keys(&only(&plain).data).contains("expand"));

    // A new call of one replaces its own subscriptions and nobody else's.
    assert_eq!(plain.subscribe(Some(&ada.token), &["notebooks/*"]).await, 204);
    ada.note("keep that").await;
    assert_eq!(filtered_stream.until("keep that").await, ["keep this", "keep that"]);
    narrow_stream.until("keep that").await;
    assert_eq!(plain.titles(), ["drop this", "keep this"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn instances_streams_are_replaced_without_a_gap_or_a_duplicate() {
    let keys = "realtime.upstream_idle = \"300ms\"\nrealtime.upstream_age = \"300ms\"\n";
    let app = TestApp::with(keys).await;
    let ada = app.user("ada").await;
    ada.note("warm").await;
    let streams = [
        Stream::subscribed(&app, &ada, &["notes/*"]).await,
        Stream::subscribed(&app, &ada, &["notes/*", "notebooks/*"]).await,
    ];
    // Longer than several replacements.
    let begun = std::time::Instant::now();
    let mut written = Vec::new();
    while begun.elapsed() < std::time::Duration::from_secs(8) {
        let title = format!("n{}", written.len());
        ada.note(&title).await;
        written.push(title);
    }
    ada.note("end").await;
    written.push("end".to_owned());
    assert!(written.len() > 50, "{}", written.len());
    for stream in &streams {
        let mut told = stream.until("end").await;
        // The order between two streams of an instance is not promised, their number is.
        told.sort();
        let mut expected = written.clone();
        expected.sort();
        assert_eq!(told, expected);
    }
    attached(&app, 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_instance_writes_of_itself_after_a_wake_is_told_too() {
    let app = TestApp::start().await;
    let ada = app.user("ada").await;
    ada.note("x").await;
    app.put_to_sleep(&ada.id);
    let _stream = Stream::subscribed(&app, &ada, &["notes/*"]).await;
    // A read wakes it; nobody writes through us.
    assert_eq!(ada.titles().await, ["x"]);
    attached(&app, 1).await;
}

async fn ends_with(app: &TestApp, user: &User, what: impl AsyncFn(&User)) {
    let parked = Stream::subscribed(app, user, &["notes/*"]).await;
    what(user).await;
    parked.ended().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_ends_with_its_session_and_not_with_a_refresh() {
    let app = TestApp::with("auth.refresh_grace = \"1s\"\n").await;
    let ada = app.user("ada").await;
    // Tokens of one second are equal.
    let other = eventually("a second session", async || {
        let other = app.sign_in(&ada.email, &ada.password).await;
        (other.token != ada.token).then_some(other)
    })
    .await;
    let kept = Stream::subscribed(&app, &other, &["notes/*"]).await;
    ends_with(&app, &ada, async |ada| assert!(ada.post("/auth/logout", json!({})).await.status().is_success())).await;

    // Two refreshes, both graces over: the stream of the first token lives on.
    let mut latest = other.clone();
    for _ in 0..2 {
        let old = latest.clone();
        latest = eventually("another token", async || {
            let answer = latest.post("/api/collections/users/auth-refresh", json!({})).await;
            assert_eq!(answer.status(), 200);
            let token = answer.json::<Value>().await.unwrap()["token"].as_str().unwrap().to_owned();
            (token != latest.token).then(|| User { token, ..latest.clone() })
        })
        .await;
        eventually("the grace is over", async || (old.get("/auth/me").await.status() == 401).then_some(())).await;
    }
    latest.note("after the refresh").await;
    assert_eq!(kept.until("after the refresh").await, ["after the refresh"]);
    assert_eq!(kept.subscribe(Some(&latest.token), &["notes/*"]).await, 204, "the new token may subscribe again");
    assert!(latest.post("/auth/logout", json!({})).await.status().is_success());
    kept.ended().await;

    let ada = app.sign_in(&ada.email, &ada.password).await;
    ends_with(&app, &ada, async |ada| {
        assert!(ada.post("/auth/logout-everywhere", json!({})).await.status().is_success());
    })
    .await;
    let ada = app.sign_in(&ada.email, &ada.password).await;
    ends_with(&app, &ada, async |ada| {
        let body =
            json!({"oldPassword": ada.password, "password": "another password", "passwordConfirm": "another password"});
        let path = format!("/api/collections/users/records/{}", ada.id);
        assert_eq!(ada.request(reqwest::Method::PATCH, &path).json(&body).send().await.unwrap().status(), 200);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_ends_streams_and_adopted_instances_take_new_ones() {
    let mut app = TestApp::start().await;
    let ada = app.user("ada").await;
    ada.note("x").await;
    let stream = Stream::subscribed(&app, &ada, &["notes/*"]).await;
    let begun = std::time::Instant::now();
    assert!(app.terminate().success());
    stream.ended().await;
    assert!(begun.elapsed() < std::time::Duration::from_secs(12), "an open stream held the shutdown up");
    app.launch().await;
    let ada = ada.at(&app);
    let stream = Stream::subscribed(&app, &ada, &["notes/*"]).await;
    ada.note("after").await;
    assert_eq!(stream.until("after").await, ["after"]);
    app.kill();
    app.launch().await;
    let ada = ada.at(&app);
    let stream = Stream::subscribed(&app, &ada, &["notes/*"]).await;
    ada.note("adopted").await;
    assert_eq!(stream.until("adopted").await, ["adopted"]);
}
