//! Waking, sleeping, and who shares what.

use std::collections::BTreeSet;
use std::time::Duration;
use std::time::Instant;

use futures_util::StreamExt;
use futures_util::stream;
use reqwest::Method;
use serde_json::Value;
use serde_json::json;

use crate::support::TestApp;
use crate::support::eventually;
use crate::support::processes_in;
use crate::support::runs;
use crate::support::signal;

#[tokio::test(flavor = "multi_thread")]
async fn first_request_starts_an_instance_of_ones_own_and_data_outlives_its_sleep() {
    let app = TestApp::start().await;
    let ada = app.user("ada").await;
    let bob = app.user("bob").await;
    assert_eq!(app.tenant(&ada.id)["state"], "asleep");
    let note = ada.note("mine").await;
    let shown = app.tenant(&ada.id);
    assert_eq!(shown["state"], "awake");
    assert_eq!(bob.titles().await, Vec::<String>::new());
    assert_eq!(bob.get(&format!("/api/collections/notes/records/{note}")).await.status(), 404);
    assert_ne!(app.tenant(&bob.id)["pid"], shown["pid"], "a process each");
    app.put_to_sleep(&ada.id);
    assert_eq!(ada.titles().await, ["mine"]);
    assert_eq!(app.tenant(&ada.id)["epoch"], 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_first_requests_of_a_sleeping_user_are_one_start() {
    let app = TestApp::start().await;
    let ada = app.user("ada").await;
    let before = app.cli_json(&["status"])["fleet"]["starts"].as_u64().unwrap();
    let statuses: Vec<u16> = stream::iter(0..1_000)
        .map(|_| async { ada.get("/api/collections/notes/records").await.status().as_u16() })
        .buffer_unordered(1_000)
        .collect()
        .await;
    assert_eq!(statuses.iter().filter(|status| **status == 200).count(), 1_000, "{statuses:?} {}", app.log());
    let after = app.cli_json(&["status"])["fleet"]["starts"].as_u64().unwrap();
    assert_eq!(after - before, 1);
}

/// How many starts were under way at once, by what the log says. One that takes longer than a second gives up its place.
fn starts_at_once(log: &str) -> usize {
    let word = |line: &str, key: &str| Some(line.split_once(key)?.1.split_whitespace().next()?.to_owned());
    let starts = log.lines().filter(|line| line.contains("instance is awake")).map(|line| {
        let end = line.split_whitespace().next().unwrap();
        let end = time::OffsetDateTime::parse(end, &time::format_description::well_known::Rfc3339).unwrap();
        let took = Duration::from_millis(word(line, "duration_ms=").unwrap().parse().unwrap());
        (end - took, end - took + took.min(Duration::from_secs(1)))
    });
    let starts: Vec<_> = starts.collect();
    let during = |at| starts.iter().filter(|(begin, end)| *begin <= at && at < *end).count();
    starts.iter().map(|(begin, _)| during(*begin)).max().unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_tenants_at_once_are_each_started_and_few_at_a_time() {
    let app = TestApp::with("auth.max_waiting = 1000\ninstances.max_starting = 2\n").await;
    // Accounts cost more than workspaces: fifty with three of these each.
    let places: Vec<Vec<_>> = stream::iter(0..50)
        .map(|n| {
            let app = &app;
            async move {
                let user = app.user(&format!("user{n}")).await;
                let mut places = vec![(user.clone(), String::new(), user.id.clone())];
                for slug in ["a", "b", "c"].map(|letter| format!("place-{n}-{letter}")) {
                    let made = user.post("/api/v1/tenants", json!({"name": slug, "slug": slug})).await;
                    assert_eq!(made.status(), 201);
                    let made: Value = made.json().await.unwrap();
                    places.push((user.clone(), format!("/t/{slug}"), made["id"].as_str().unwrap().to_owned()));
                }
                places
            }
        })
        .buffer_unordered(4)
        .collect()
        .await;
    let places: Vec<_> = places.into_iter().flatten().collect();
    assert_eq!(places.len(), 200);
    let outcomes: Vec<(u16, Value)> = stream::iter(&places)
        .map(|(user, place, id)| async move {
            let path = format!("{place}/api/collections/notes/records");
            let made = user.post(&path, json!({"title": id, "author": user.id})).await;
            assert_eq!(made.status(), 200, "{}", made.text().await.unwrap());
            let answer = user.get(&path).await;
            (answer.status().as_u16(), answer.json().await.unwrap())
        })
        .buffered(200)
        .collect()
        .await;
    for ((_, _, id), (status, body)) in places.iter().zip(&outcomes) {
        let titles: Vec<_> = body["items"].as_array().unwrap().iter().map(|item| item["title"].as_str()).collect();
        assert_eq!((*status, titles), (200, vec![Some(id.as_str())]), "{body}");
    }
    let list = app.cli_json(&["tenants", "list", "--limit", "500"]);
    let pids: BTreeSet<i64> =
        list["items"].as_array().unwrap().iter().filter_map(|tenant| tenant["pid"].as_i64()).collect();
    assert!(pids.len() >= 200, "{} processes", pids.len());
    // Two, and some room for lines that come late.
    let most = starts_at_once(&app.log());
    assert!((1..=20).contains(&most), "{most} starts at once");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_nobody_uses_sleeps_and_a_pinned_one_does_not() {
    let app = TestApp::with("instances.idle_timeout = \"500ms\"\n").await;
    let ada = app.user("ada").await;
    let bob = app.user("bob").await;
    ada.note("x").await;
    bob.note("x").await;
    assert!(app.cli(&["tenants", "pin", &bob.id]).status.success());
    eventually("ada sleeps", async || (app.tenant(&ada.id)["state"] == "asleep").then_some(())).await;
    assert_eq!(app.tenant(&bob.id)["state"], "awake");
    assert!(app.cli(&["tenants", "unpin", &bob.id]).status.success());
    eventually("bob sleeps", async || (app.tenant(&bob.id)["state"] == "asleep").then_some(())).await;
    assert_eq!(ada.titles().await, ["x"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn running_cap_puts_the_least_recently_used_to_sleep() {
    let app = TestApp::with("instances.max_awake = 2\n").await;
    let users = [app.user("ada").await, app.user("bob").await, app.user("cyd").await];
    users[0].note("x").await;
    users[1].note("x").await;
    users[0].note("y").await;
    users[2].note("x").await;
    let state = |n: usize| app.tenant(&users[n].id)["state"].as_str().unwrap().to_owned();
    assert_eq!([state(0), state(1), state(2)], ["awake", "asleep", "awake"]);
    assert_eq!(users[1].titles().await, ["x"], "and it comes back");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_house_of_pinned_instances_refuses_with_a_reason() {
    let app = TestApp::with("instances.max_awake = 1\ninstances.wake_timeout = \"1s\"\n").await;
    let ada = app.user("ada").await;
    let bob = app.user("bob").await;
    ada.note("x").await;
    assert!(app.cli(&["tenants", "pin", &ada.id]).status.success());
    let answer = bob.get("/api/collections/notes/records").await;
    assert_eq!(answer.status(), 503);
    assert!(answer.headers().contains_key("retry-after"));
    let body: Value = answer.json().await.unwrap();
    assert_eq!(body["status"], 503, "PocketBase's own shape: {body}");
    assert_eq!(body["code"], "CAPACITY_REACHED");
    assert_eq!(ada.titles().await, ["x"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newcomer_gets_the_room_as_soon_as_somebody_is_idle() {
    let app = TestApp::with("instances.max_awake = 1\ninstances.wake_timeout = \"30s\"\n").await;
    let ada = app.user("ada").await;
    let bob = app.user("bob").await;
    ada.note("x").await;
    // Ada's instance is busy with a slow upload when Bob comes, and idle afterwards; no process exits by itself.
    let (sent, waiting) = tokio::sync::oneshot::channel();
    let body = stream::once(async { Ok::<_, std::io::Error>("{\"title\":".to_owned()) })
        .chain(stream::once(async { Ok(waiting.await.map_or_else(|_| String::new(), |()| "\"slow\"}".to_owned())) }));
    let request = ada
        .request(Method::POST, "/api/collections/notes/records")
        .header("content-type", "application/json")
        .body(reqwest::Body::wrap_stream(body));
    let slow = tokio::spawn(request.send());
    eventually("it is in flight", async || (app.tenant(&ada.id)["in_flight"] == 1).then_some(())).await;
    let other = bob.clone();
    let newcomer = tokio::spawn(async move { other.get("/api/collections/notes/records").await.status() });
    eventually("bob waits", async || (app.tenant(&bob.id)["waiting"] == 1).then_some(())).await;
    sent.send(()).unwrap();
    assert_eq!(slow.await.unwrap().unwrap().status(), 200);
    assert_eq!(newcomer.await.unwrap(), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_wake_nothing() {
    let app = TestApp::start().await;
    let ada = app.user("ada").await;
    let starts = || app.cli_json(&["status"])["fleet"]["starts"].clone();
    let before = starts();
    for path in ["/api/collections/notes/records", "/api/files/notes/abc/x.txt", "/api/batch"] {
        let answer = app.get(path).await;
        assert!(matches!(answer.status().as_u16(), 401 | 404), "{path}: {}", answer.status());
        let forged =
            app.http.get(format!("{}{path}", app.base)).bearer_auth("eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.e30.x");
        assert!(matches!(forged.send().await.unwrap().status().as_u16(), 401 | 404), "{path}");
    }
    assert_eq!(starts(), before);
    assert_eq!(app.tenant(&ada.id)["state"], "asleep");
}

#[tokio::test(flavor = "multi_thread")]
async fn waiting_rooms_are_bounded_and_say_so() {
    // One place and one waiter: of many requests that an instance cannot take at once, most are refused.
    bounded("instances.max_in_flight = 1\ninstances.max_waiting_per_instance = 1\n", 429, "TENANT_BUSY").await;
    bounded("instances.max_in_flight = 1\ninstances.max_waiting = 1\n", 503, "OVERLOADED").await;
}

async fn bounded(keys: &str, status: u16, code: &str) {
    let app = TestApp::with(&format!("{keys}instances.refusal_pause = \"700ms\"\n")).await;
    let ada = app.user("ada").await;
    ada.note("x").await;
    let ask = async |_| {
        let begun = Instant::now();
        let answer = ada.get("/api/collections/notes/records").await;
        (answer, begun.elapsed())
    };
    let answers: Vec<_> = stream::iter(0..200).map(ask).buffer_unordered(200).collect().await;
    let refused: Vec<_> = answers.into_iter().filter(|(answer, _)| answer.status() != 200).collect();
    assert!(!refused.is_empty());
    let late = refused.iter().filter(|(_, took)| *took >= Duration::from_millis(700)).count();
    // As many are left without an answer as may wait in all.
    let expected = if keys.contains("max_waiting = 1\n") { 1 } else { refused.len() };
    assert!(late >= expected, "{late} of {} were told late", refused.len());
    for (answer, _) in refused {
        assert_eq!(answer.status(), status);
        assert!(answer.headers().contains_key("retry-after"));
        let body: Value = answer.json().await.unwrap();
        assert_eq!(body["code"], code);
    }
    assert_eq!(ada.titles().await, ["x"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sleeping_fleet_leaves_no_process_but_the_global_one() {
    let app = TestApp::start().await;
    let ada = app.user("ada").await;
    ada.note("x").await;
    let instances = || {
        let all = processes_in(&app.data());
        all.into_iter().filter(|(_, line)| line.contains("--http=127.")).count()
    };
    assert_eq!(instances(), 2);
    app.put_to_sleep(&ada.id);
    assert_eq!(instances(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_in_flight_survives_the_idle_timeout() {
    let app = TestApp::with("instances.idle_timeout = \"300ms\"\n").await;
    let ada = app.user("ada").await;
    // The body arrives over two seconds, far longer than the idle time.
    let chunks = stream::iter(0..8).then(|n| async move {
        let mut interval = tokio::time::interval(Duration::from_millis(250));
        interval.tick().await;
        interval.tick().await;
        let text = match n {
            0 => "{\"title\":\"slow".to_owned(),
            7 => "\"}".to_owned(),
            n => n.to_string(),
        };
        Ok::<_, std::io::Error>(text)
    });
    let request = ada
        .request(Method::POST, "/api/collections/notes/records")
        .header("content-type", "application/json")
        .body(reqwest::Body::wrap_stream(chunks));
    let answer = request.send().await.unwrap();
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.json::<Value>().await.unwrap()["title"], json!("slow123456"));
    eventually("it sleeps afterwards", async || (app.tenant(&ada.id)["state"] == "asleep").then_some(())).await;
}

/// The children of a process, zombies too.
fn children(parent: u32) -> Vec<i64> {
    let is_child = |pid: &i64| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let after_name = stat.rsplit_once(") ").map(|(_, rest)| rest.to_owned()).unwrap_or_default();
        after_name.split(' ').nth(1) == Some(&parent.to_string())
    };
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(is_child).collect()
}

/// Those of a pocketfleet that wait for orders.
fn jailers_ahead(parent: u32) -> Vec<i64> {
    let waits =
        |pid: &i64| std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.ends_with(b"\0__jail\0wait\0"));
    children(parent).into_iter().filter(waits).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_jailer_waits_forks_for_starts_and_waits_not_longer_than_pocketfleet() {
    let mut app = TestApp::start().await;
    let [ada, bob] = [app.user("ada").await, app.user("bob").await];
    let waits = || {
        eventually("a jailer waits", async || {
            let found = jailers_ahead(app.pid());
            let [one] = found.as_slice() else { return None };
            Some(*one)
        })
    };
    let jailer = waits().await;
    ada.note("x").await;
    let pid = app.tenant(&ada.id)["pid"].as_i64().unwrap();
    assert!(children(app.pid()).contains(&pid) && pid != jailer, "it is ours to watch and to reap");
    assert_eq!(jailers_ahead(app.pid()), [jailer], "the same one waits for the next order");
    let environment = std::fs::read_to_string(format!("/proc/{pid}/environ")).unwrap();
    assert!(environment.contains("GOGC=200\0GOMEMLIMIT=805306368\0"), "{environment:?}");
    assert!(app.log().contains("instance is awake"));

    app.put_to_sleep(&ada.id);
    assert!(!runs(i32::try_from(pid).unwrap()) && !children(app.pid()).contains(&pid), "no zombie is left");
    signal(i32::try_from(jailer).unwrap(), "KILL");
    bob.note("y").await;
    assert_eq!(bob.titles().await, ["y"], "one that died is not missed");

    // One that stands still is not waited for, and is gone.
    let still = waits().await;
    assert_ne!(still, jailer);
    signal(i32::try_from(still).unwrap(), "STOP");
    app.put_to_sleep(&bob.id);
    assert_eq!(bob.titles().await, ["y"]);
    let next = waits().await;
    assert_ne!(next, still);
    assert!(!children(app.pid()).contains(&still), "it was reaped");
    app.kill();
    let gone = async || (!runs(i32::try_from(next).unwrap())).then_some(());
    eventually("it goes with pocketfleet", gone).await;
    app.launch().await;
    assert_eq!(ada.at(&app).titles().await, ["x"]);
}
