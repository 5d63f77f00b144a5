//! Idle instances that are stopped where they stand, and go on with the next request.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;

use reqwest::Method;
use serde_json::Value;
use serde_json::json;

use crate::backup::Bench;
use crate::support::TestApp;
use crate::support::User;
use crate::support::command;
use crate::support::eventually;
use crate::support::pause;
use crate::support::root;
use crate::support::runs;
use crate::support::signal;
use crate::support::sse::Stream;

/// Where there is no swap the start says so.
const NO_SWAP: &str = "this machine has no swap";
const SOON: &str = "instances.freeze_after = \"150ms\"\n";

async fn start(keys: &str) -> TestApp {
    let mut app = TestApp::with(&format!("{SOON}{keys}")).await;
    app.expect_log(NO_SWAP);
    app
}

fn state(app: &TestApp, tenant: &str) -> String {
    app.tenant(tenant)["state"].as_str().unwrap().to_owned()
}

fn pid(app: &TestApp, tenant: &str) -> i32 {
    i32::try_from(app.tenant(tenant)["pid"].as_i64().unwrap()).unwrap()
}

/// The states of a process's threads.
fn letters(pid: i32) -> String {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let stat =
        |thread: std::io::Result<std::fs::DirEntry>| std::fs::read_to_string(thread.unwrap().path().join("stat"));
    threads.map(|thread| stat(thread).unwrap().rsplit_once(") ").unwrap().1.chars().next().unwrap()).collect()
}

/// Waits until an instance is frozen; its process.
async fn frozen(app: &TestApp, tenant: &str) -> i32 {
    let pid = eventually("it is frozen", async || {
        let shown = app.tenant(tenant);
        (shown["state"] == "frozen").then(|| i32::try_from(shown["pid"].as_i64().unwrap()).unwrap())
    })
    .await;
    // The state is told before the signal has reached every thread.
    eventually("it stands still", async || letters(pid).chars().all(|letter| letter == 'T').then_some(())).await;
    pid
}

async fn metric(app: &TestApp, name: &str) -> u64 {
    let metrics = app.get("/metrics").await.text().await.unwrap();
    let line = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {name} in {metrics}")).parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_instance_is_stopped_where_it_stands_and_goes_on_with_the_next_request() {
    let app = start("").await;
    let ada = app.user("ada").await;
    ada.note("one").await;
    for round in 1..=2 {
        let process = frozen(&app, &ada.id).await;
        let shown = app.tenant(&ada.id);
        assert_eq!((shown["epoch"].as_u64(), shown["address"].is_null()), (Some(1), true), "{shown}");
        assert!(shown["idle_seconds"].is_u64(), "{shown}");
        assert_eq!(metric(&app, "pocketfleet_instances{state=\"frozen\"}").await, 1);
        assert_eq!(ada.titles().await, ["one"]);
        assert_eq!(pid(&app, &ada.id), process, "the same process");
        assert!(metric(&app, "pocketfleet_thaws_total").await >= round);
        let thawed = metric(&app, "pocketfleet_arrival_seconds_count{outcome=\"thawed\"}").await;
        assert_eq!(thawed, round, "each in front of one request");
    }
    assert_eq!(app.tenant("global")["state"], "awake");
    assert_eq!(metric(&app, "pocketfleet_starts_total").await, 2, "the global instance's and hers");
    frozen(&app, &ada.id).await;
    // The end of the test stops it as it is.
}

#[tokio::test(flavor = "multi_thread")]
async fn no_request_is_lost_around_the_moment_of_freezing() {
    let mut app = TestApp::with("instances.freeze_after = \"100ms\"\n").await;
    app.expect_log(NO_SWAP);
    let ada = app.user("ada").await;
    ada.note("first").await;
    let process = pid(&app, &ada.id);
    let mut made = 1;
    // Pauses of some 80 to 160 ms: shorter and longer than what it waits for, and about as long.
    for round in 0..400_usize {
        for _ in 0..4 + round % 5 {
            pause().await;
        }
        let (name, other) = (format!("a {round}"), format!("b {round}"));
        let list = async { ada.titles().await.len() };
        let (_, _, seen) = tokio::join!(ada.note(&name), ada.note(&other), list);
        assert!((made..=made + 2).contains(&seen), "{seen} notes, {made} were there before");
        made += 2;
        if round > 40 && metric(&app, "pocketfleet_thaws_total").await >= 10 {
            break;
        }
    }
    assert_eq!(ada.titles().await.len(), made);
    assert_eq!(pid(&app, &ada.id), process, "{}", app.log());
    assert!(metric(&app, "pocketfleet_thaws_total").await >= 10, "{}", app.log());

    // And with many who come at once to one that is frozen.
    frozen(&app, &ada.id).await;
    let before = metric(&app, "pocketfleet_thaws_total").await;
    let many = futures_util::future::join_all((0..50).map(|_| ada.titles())).await;
    assert!(many.iter().all(|titles| titles.len() == made));
    assert!(metric(&app, "pocketfleet_thaws_total").await > before);
    assert_eq!(app.tenant(&ada.id)["epoch"], 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_instance_sleeps_after_the_whole_idle_time_or_when_it_is_told_to() {
    let app = start("instances.idle_timeout = \"6s\"\n").await;
    let (ada, bob) = (app.user("ada").await, app.user("bob").await);
    ada.note("x").await;
    bob.note("y").await;
    let process = frozen(&app, &bob.id).await;
    app.put_to_sleep(&bob.id);
    assert!(!runs(process));
    let process = frozen(&app, &ada.id).await;
    eventually("she sleeps", async || (state(&app, &ada.id) == "asleep").then_some(())).await;
    assert!(!runs(process));
    assert_eq!((ada.titles().await, bob.titles().await), (vec!["x".to_owned()], vec!["y".to_owned()]));
    assert_eq!(app.tenant(&ada.id)["epoch"], 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_that_is_killed_while_it_is_frozen_is_noticed() {
    let mut app = start("").await;
    app.expect_log("instance failed");
    let ada = app.user("ada").await;
    ada.note("x").await;
    let process = frozen(&app, &ada.id).await;
    signal(process, "KILL");
    eventually("it is noticed", async || {
        let shown = app.tenant(&ada.id);
        (shown["restarts"] == 1 && shown["pid"] != process).then_some(())
    })
    .await;
    assert_eq!(ada.titles().await, ["x"]);
    assert_eq!(app.tenant(&ada.id)["epoch"], 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_process_outlives_pocketfleet_and_is_adopted_by_the_next_one_and_by_a_reload() {
    let mut app = start("").await;
    app.expect_log("this machine has no swap");
    let ada = app.user("ada").await;
    ada.note("x").await;
    let process = frozen(&app, &ada.id).await;
    app.kill();
    assert!(letters(process).chars().all(|letter| letter == 'T'), "nobody lets it go on");
    app.launch().await;
    assert_eq!(app.cli_json(&["status"])["fleet"]["adopted"], 2);
    let ada = ada.at(&app);
    assert_eq!(frozen(&app, &ada.id).await, process, "and frozen again");
    assert_eq!(ada.titles().await, ["x"]);
    frozen(&app, &ada.id).await;
    let reloaded = app.cli(&["reload"]);
    assert!(reloaded.status.success(), "{}", String::from_utf8_lossy(&reloaded.stderr));
    assert_eq!(ada.titles().await, ["x"]);
    assert_eq!((pid(&app, &ada.id), app.tenant(&ada.id)["epoch"].as_u64()), (process, Some(1)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_instance_is_backed_up_without_a_thaw_and_restored() {
    let mut bench = Bench::start(SOON).await;
    bench.app.expect_log(NO_SWAP);
    let app = &bench.app;
    let ada = app.user("ada").await;
    ada.note("kept").await;
    let process = frozen(app, &ada.id).await;
    let id = bench.create(&ada.id);
    assert_eq!((state(app, &ada.id), pid(app, &ada.id)), ("frozen".to_owned(), process));
    ada.note("later").await;
    frozen(app, &ada.id).await;
    app.cli_json(&["backup", "restore", &id, "--yes"]);
    assert!(!runs(process));
    assert_eq!(ada.titles().await, ["kept"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_with_an_event_stream_is_not_frozen_and_streams_of_a_frozen_one_hear_everything() {
    let app = start("").await;
    let (ada, bob) = (app.user("ada").await, app.user("bob").await);
    // Attached by the write.
    let stream = Stream::subscribed(&app, &ada, &["notes/*"]).await;
    ada.note("before").await;
    bob.note("before").await;
    frozen(&app, &bob.id).await;
    eventually("she is unused for long", async || (app.tenant(&ada.id)["idle_seconds"].as_u64()? >= 2).then_some(()))
        .await;
    assert_eq!(state(&app, &ada.id), "awake", "her stream is open");

    let late = Stream::subscribed(&app, &bob, &["notes/*"]).await;
    assert_eq!(state(&app, &bob.id), "frozen", "a subscription wakes nothing");
    for title in ["one", "two"] {
        bob.note(title).await;
        late.until(title).await;
    }
    ada.note("one").await;
    assert_eq!(stream.until("one").await, ["before", "one"]);
    assert_eq!(late.until("two").await, ["one", "two"]);
    assert_eq!(state(&app, &bob.id), "awake", "now his is open too");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_house_lets_frozen_instances_go_first() {
    let app = start("instances.max_awake = 2\n").await;
    let (ada, bob, cyd) = (app.user("ada").await, app.user("bob").await, app.user("cyd").await);
    let _stream = Stream::subscribed(&app, &ada, &["notes/*"]).await;
    ada.note("x").await;
    bob.note("x").await;
    frozen(&app, &bob.id).await;
    cyd.note("x").await;
    assert_eq!(state(&app, &bob.id), "asleep", "although Ada's is unused for longer");
    assert_eq!(state(&app, &ada.id), "awake");
}

#[tokio::test(flavor = "multi_thread")]
async fn pinned_instances_and_those_with_cron_jobs_are_not_frozen() {
    let mut app = TestApp::prepare(SOON);
    app.expect_log(NO_SWAP);
    let folder = app.dir.path().join("pb_templates");
    assert!(command("cp").arg("-r").arg(root().join("pb_templates")).arg(&folder).status().unwrap().success());
    assert!(command("cp").arg("-r").args([folder.join("workspace"), folder.join("timed")]).status().unwrap().success());
    let hooks = folder.join("timed/pb_hooks");
    std::fs::create_dir_all(&hooks).unwrap();
    std::fs::write(hooks.join("timed.pb.js"), "cronAdd('tick', '0 0 1 1 *', () => {})").unwrap();
    app.add_keys(&format!("pocketbase.templates = \"{}\"\n", folder.display()));
    app.launch().await;
    let (ada, bob) = (app.user("ada").await, app.user("bob").await);
    let made = ada.post("/api/v1/tenants", json!({"name": "timed", "slug": "timed", "template": "timed"})).await;
    assert_eq!(made.status(), 201, "{}", made.text().await.unwrap());
    let made: Value = made.json().await.unwrap();
    let timed = made["id"].as_str().unwrap();
    assert!(ada.get("/t/timed/api/collections/notes/records").await.status().is_success());
    ada.note("x").await;
    assert!(app.cli(&["tenants", "pin", &ada.id]).status.success());
    bob.note("x").await;
    frozen(&app, &bob.id).await;
    for tenant in [timed, &ada.id] {
        eventually("it is unused for long", async || (app.tenant(tenant)["idle_seconds"].as_u64()? >= 1).then_some(()))
            .await;
        assert_eq!(state(&app, tenant), "awake");
    }
    assert!(app.cli(&["tenants", "unpin", &ada.id]).status.success());
    frozen(&app, &ada.id).await;
    // To pin it thaws it.
    assert!(app.cli(&["tenants", "pin", &ada.id]).status.success());
    assert_eq!(state(&app, &ada.id), "awake");
}

/// The name that somebody has in an instance, as its database says.
fn name_in(app: &TestApp, tenant: &str, user: &User) -> String {
    let path = app.data().join("instances").join(tenant).join("pb_data/data.db");
    let flags = rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY;
    let connection = rusqlite::Connection::open_with_flags(path, flags).unwrap();
    connection.query_row("SELECT name FROM users WHERE id = ?", [&user.id], |row| row.get(0)).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_instance_learns_of_a_changed_name_and_its_idle_time_goes_on() {
    let app = start("").await;
    let ada = app.user("ada").await;
    ada.note("x").await;
    frozen(&app, &ada.id).await;
    eventually("she is away for a while", async || (app.tenant(&ada.id)["idle_seconds"].as_u64()? >= 2).then_some(()))
        .await;
    let path = format!("/api/collections/users/records/{}", ada.id);
    let renamed = ada.request(Method::PATCH, &path).json(&json!({"name": "augusta"})).send().await.unwrap();
    assert_eq!(renamed.status(), 200);
    eventually("her row says so", async || (name_in(&app, &ada.id, &ada) == "augusta").then_some(())).await;
    frozen(&app, &ada.id).await;
    assert!(app.tenant(&ada.id)["idle_seconds"].as_u64().unwrap() >= 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crowd_on_many_frozen_instances_is_served_by_the_same_processes() {
    let app = start("").await;
    let users = [app.user("ada").await, app.user("bob").await, app.user("cyd").await];
    for user in &users {
        user.note("0").await;
    }
    let mut processes = Vec::new();
    for user in &users {
        processes.push(frozen(&app, &user.id).await);
    }
    let stop = Arc::new(AtomicBool::new(false));
    let readers: Vec<_> = users
        .iter()
        .map(|user| {
            let (user, stop) = (user.clone(), Arc::clone(&stop));
            tokio::spawn(async move {
                while !stop.load(Ordering::SeqCst) {
                    assert_eq!(user.titles().await, ["0"]);
                    // Longer than it takes until it is frozen.
                    for _ in 0..15 {
                        pause().await;
                    }
                }
            })
        })
        .collect();
    eventually("some were thawed", async || (metric(&app, "pocketfleet_thaws_total").await >= 6).then_some(())).await;
    stop.store(true, Ordering::SeqCst);
    for reader in readers {
        reader.await.unwrap();
    }
    let after: Vec<_> = users.iter().map(|user| pid(&app, &user.id)).collect();
    assert_eq!(after, processes);
}
