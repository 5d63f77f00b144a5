//! Processes that are killed, stopped, or die again and again.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;

use futures_util::StreamExt;
use futures_util::stream;
use serde_json::Value;

use super::NOTES;
use super::all_titles;
use super::folder;
use super::pid;
use super::write;
use super::write_until;
use crate::support::PATIENCE;
use crate::support::TestApp;
use crate::support::User;
use crate::support::eventually;
use crate::support::pause;
use crate::support::processes_in;
use crate::support::runs;
use crate::support::signal;

#[tokio::test(flavor = "multi_thread")]
async fn fault_01_killed_instance_loses_nothing_acknowledged_and_disturbs_nobody() {
    let mut app = TestApp::start().await;
    app.expect_log("instance failed");
    app.expect_log("502");
    app.expect_log("503");
    let ada = app.user("ada").await;
    let bob = app.user("bob").await;
    ada.note("first").await;
    bob.note("bob's").await;
    let stop = Arc::new(AtomicBool::new(false));
    let writer = tokio::spawn(write_until(ada.clone(), Arc::clone(&stop)));
    let reader_stop = Arc::clone(&stop);
    let reader = tokio::spawn(async move {
        while !reader_stop.load(Ordering::SeqCst) {
            assert_eq!(bob.titles().await, ["bob's"]);
        }
    });
    for _ in 0..3 {
        let old = eventually("ada's instance is awake", async || {
            let shown = app.tenant(&ada.id);
            (shown["state"] == "awake").then(|| i32::try_from(shown["pid"].as_i64().unwrap()).unwrap())
        })
        .await;
        for _ in 0..10 {
            pause().await;
        }
        signal(old, "KILL");
        eventually("another process took over", async || pid(&app, &ada.id).filter(|new| *new != old)).await;
    }
    stop.store(true, Ordering::SeqCst);
    let acknowledged = writer.await.unwrap();
    reader.await.unwrap();
    assert!(acknowledged.len() > 10, "{}", acknowledged.len());
    let stored = all_titles(&ada).await;
    let lost: Vec<_> = acknowledged.iter().filter(|title| !stored.contains(*title)).collect();
    assert!(lost.is_empty(), "lost: {lost:?}");
}

/// Reads until told to stop; what answers must answer rightly. How many did.
async fn read_until(user: User, stop: Arc<AtomicBool>) -> usize {
    let mut answered = 0;
    while !stop.load(Ordering::SeqCst) {
        match user.request(reqwest::Method::GET, "/api/collections/notes/records").send().await {
            Ok(answer) if answer.status() == 200 => {
                // A body that breaks off with the server is an error, never another body.
                if let Ok(body) = answer.json::<Value>().await {
                    assert_eq!(body["items"][0]["title"], "before");
                    answered += 1;
                }
            }
            Ok(answer) => assert!(matches!(answer.status().as_u16(), 502..=504), "{}", answer.status()),
            Err(_) => pause().await,
        }
    }
    answered
}

#[tokio::test(flavor = "multi_thread")]
async fn fault_02_killed_pocketfleet_leaves_twenty_instances_serving_and_the_next_one_adopts_them() {
    let mut app = TestApp::start().await;
    app.expect_log("the instance broke off");
    let users: Vec<User> = stream::iter(0..20)
        .map(|n| {
            let app = &app;
            async move { app.user(&format!("user{n}")).await }
        })
        .buffered(2)
        .collect()
        .await;
    for user in &users {
        user.note("before").await;
    }
    let pids = |app: &TestApp| -> BTreeMap<String, i64> {
        users.iter().map(|user| (user.id.clone(), app.tenant(&user.id)["pid"].as_i64().unwrap_or(-1))).collect()
    };
    let global = |app: &TestApp| app.cli_json(&["tenants", "show", "global"])["pid"].as_i64().unwrap();
    let (before, global_before) = (pids(&app), global(&app));

    // Clients write through the kill; what was acknowledged must be there afterwards.
    let stop = Arc::new(AtomicBool::new(false));
    let mut writers = Vec::new();
    for (n, user) in users.iter().enumerate().take(4) {
        writers.push((n, tokio::spawn(write_until(user.clone(), Arc::clone(&stop)))));
    }
    let readers: Vec<_> =
        users[4..8].iter().map(|user| tokio::spawn(read_until(user.clone(), Arc::clone(&stop)))).collect();
    for _ in 0..10 {
        pause().await;
    }
    app.kill();
    stop.store(true, Ordering::SeqCst);
    for reader in readers {
        assert!(reader.await.unwrap() > 0);
    }
    let mut acknowledged = Vec::new();
    for (n, writer) in writers {
        acknowledged.push((n, writer.await.unwrap()));
    }
    app.launch().await;
    assert_eq!(pids(&app), before, "the same processes");
    assert_eq!(global(&app), global_before);
    assert_eq!(app.cli_json(&["status"])["fleet"]["adopted"], 21);
    let moved: Vec<User> = users.iter().map(|user| user.at(&app)).collect();
    for (n, titles) in acknowledged {
        assert!(!titles.is_empty());
        let stored = all_titles(&moved[n]).await;
        assert!(titles.is_subset(&stored), "user {n} lost acknowledged writes");
    }
    for user in &moved[4..] {
        assert_eq!(user.titles().await, ["before"]);
    }
    // And adopted ones are stopped like any other.
    app.put_to_sleep(&users[0].id);
    assert_eq!(moved[0].get("/api/collections/notes/records").await.status(), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn kill_of_the_global_instance_keeps_signed_in_users_working_and_it_returns() {
    let mut app = TestApp::with("instances.quarantine_failures = 0\n").await;
    app.expect_log("instance failed");
    let ada = app.user("ada").await;
    ada.note("x").await;
    signal(pid(&app, "global").unwrap(), "KILL");
    eventually("its death is noticed", async || (app.tenant("global")["state"] != "awake").then_some(())).await;
    assert_eq!(ada.titles().await, ["x"], "tokens are verified without it");
    assert_eq!(ada.get("/auth/me").await.status(), 200);
    let before = app.tenant("global")["epoch"].as_u64().unwrap();
    assert!(app.cli(&["tenants", "release", "global"]).status.success());
    assert!(app.cli(&["tenants", "wake", "global"]).status.success());
    assert!(app.tenant("global")["epoch"].as_u64().unwrap() > before);
    app.sign_in(&ada.email, &ada.password).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn fault_07_stopped_instance_is_noticed_killed_and_replaced() {
    let keys = "instances.probe_interval = \"200ms\"\ninstances.probe_timeout = \"300ms\"\n";
    let mut app = TestApp::with(keys).await;
    app.expect_log("health probe missed");
    app.expect_log("instance failed");
    app.expect_log("the instance broke off");
    app.expect_log("request failed");
    let ada = app.user("ada").await;
    ada.note("x").await;
    let old = pid(&app, &ada.id).unwrap();
    signal(old, "STOP");
    // Whoever asks meanwhile gets an answer: it breaks off with the old process, or waits for the new one.
    let asks = async {
        loop {
            let status = ada.get(NOTES).await.status().as_u16();
            assert!(matches!(status, 200 | 502..=504), "{status}");
            if status == 200 {
                break;
            }
        }
    };
    let replaced = eventually("it is replaced", async || pid(&app, &ada.id).filter(|new| *new != old));
    tokio::join!(asks, replaced);
    assert_eq!(ada.titles().await, ["x"]);
    assert!(!runs(old));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_loop_ends_in_quarantine_with_the_last_log_lines() {
    let keys = "instances.backoff_base = \"10ms\"\ninstances.quarantine_failures = 3\n";
    let mut app = TestApp::with(keys).await;
    app.expect_log("instance failed");
    let ada = app.user("ada").await;
    ada.note("x").await;
    for _ in 0..4 {
        let awake = eventually("awake or given up", async || {
            let shown = app.tenant(&ada.id);
            match shown["state"].as_str().unwrap() {
                "awake" => Some(shown["pid"].as_i64()),
                "quarantined" => Some(None),
                _ => None,
            }
        })
        .await;
        let Some(pid) = awake else { break };
        signal(i32::try_from(pid).unwrap(), "KILL");
        eventually("its death is noticed", async || (app.tenant(&ada.id)["pid"].as_i64() != Some(pid)).then_some(()))
            .await;
    }
    eventually("quarantine", async || (app.tenant(&ada.id)["state"] == "quarantined").then_some(())).await;
    let shown = app.tenant(&ada.id);
    assert!(shown["reason"].as_str().unwrap().contains("signal 9"), "{shown}");
    assert!(shown["last_log"].is_array());
    assert_eq!(ada.get("/api/collections/notes/records").await.status(), 503);
}

/// A program that is not left to the other tests when this one fails.
struct Guard(std::process::Child);

impl Drop for Guard {
    fn drop(&mut self) {
        drop(self.0.kill());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn fault_28_closed_standard_error_does_not_stop_the_server() {
    let dir = tempfile::tempdir().unwrap();
    let child = crate::support::pocketfleet()
        .args(["serve", "--listen", "127.0.0.1:0", "--pocketbase"])
        .arg(crate::support::pocketbase())
        .arg("--data")
        .arg(dir.path().join("data"))
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut child = Guard(child);
    drop(child.0.stderr.take());
    let address =
        eventually("it listens", async || std::fs::read_to_string(dir.path().join("data/run/address")).ok()).await;
    let base = format!("http://{address}");
    eventually("it is ready", async || {
        (crate::support::http().build().unwrap().get(format!("{base}/ready")).send().await.ok()?.status() == 200)
            .then_some(())
    })
    .await;
    let body = serde_json::json!({"email": "a@example.com", "password": "correct horse"});
    let http = crate::support::http().build().unwrap();
    assert_eq!(http.post(format!("{base}/auth/register")).json(&body).send().await.unwrap().status(), 201);
    signal(i32::try_from(child.0.id()).unwrap(), "TERM");
    let ended = tokio::task::spawn_blocking(move || child.0.wait().unwrap()).await.unwrap();
    assert!(ended.success(), "{ended}");
    assert!(crate::support::processes_in(dir.path()).is_empty());
}

/// The pids of the servers of a data directory.
fn servers(app: &TestApp, tenant: &str) -> Vec<i32> {
    let serves = |line: &str| line.contains("--dir=") && !line.contains("__jail");
    let all = processes_in(&folder(app, tenant));
    all.into_iter().filter(|(pid, line)| serves(line) && runs(*pid)).map(|(pid, _)| pid).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn fault_03_killed_between_the_start_of_a_process_and_its_note_leaves_never_two() {
    let mut app = TestApp::start().await;
    app.expect_log("stop a stray process");
    let ada = app.user("ada").await;
    ada.note("x").await;
    assert!(app.terminate().success());
    // The first start is that of the global instance.
    app.arm("instance.spawned:2");
    app.launch().await;
    let cut = ada.at(&app).request(reqwest::Method::GET, NOTES).send().await;
    assert!(cut.is_err(), "the step was not reached: {cut:?}");
    assert!(!app.ended().success());
    let orphan = eventually("the jailer became the server", async || servers(&app, &ada.id).first().copied()).await;
    app.launch().await;
    let ada = ada.at(&app);
    assert_eq!(ada.titles().await, ["x"]);
    assert!(!runs(orphan), "the orphan still runs");
    assert_eq!(servers(&app, &ada.id), [pid(&app, &ada.id).unwrap()]);
    assert_eq!(write(&ada, "y").await, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn fault_04_killed_while_an_instance_is_made_leaves_nothing_half() {
    let mut app = TestApp::start().await;
    app.expect_log("stop a stray process");
    let mut users = Vec::new();
    for step in ["instance.folder", "instance.provisioned", "instance.spawned:2"] {
        assert!(app.terminate().success());
        app.arm(step);
        app.launch().await;
        let user = app.user(&format!("user{}", users.len())).await;
        let cut = user.request(reqwest::Method::POST, NOTES).json(&serde_json::json!({"title": "cut"})).send().await;
        assert!(cut.is_err(), "{step} was not reached: {cut:?}");
        assert!(!app.ended().success(), "{step}");
        app.launch().await;
        let at = user.at(&app);
        assert_eq!(write(&at, "first").await, 200, "{step}");
        assert_eq!(at.titles().await, ["first"], "{step}");
        assert_eq!(servers(&app, &user.id).len(), 1, "{step}");
        users.push(user);
    }
    assert_eq!(app.cli_json(&["tenants", "orphans"])["items"], serde_json::json!([]));
    let mut ids: Vec<String> = users.into_iter().map(|user| user.id).chain(["global".to_owned()]).collect();
    ids.sort();
    let read = std::fs::read_dir(app.data().join("instances")).unwrap();
    let mut folders: Vec<String> = read.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    folders.sort();
    assert_eq!(folders, ids);
}

#[tokio::test(flavor = "multi_thread")]
async fn fault_31_sleeps_starts_and_stops_at_once_take_turns() {
    let app = TestApp::start().await;
    let ada = app.user("ada").await;
    ada.note("x").await;
    for _ in 0..4 {
        let (app, ada) = (&app, &ada);
        let commands = ["sleep", "wake", "sleep", "sleep", "wake", "sleep"];
        std::thread::scope(|scope| {
            let calls: Vec<_> = commands
                .iter()
                .map(|command| scope.spawn(move || app.cli(&["tenants", command, &ada.id]).status.code()))
                .collect();
            for call in calls {
                // Refused at most: busy with one of the others.
                assert!(call.join().unwrap().is_some());
            }
        });
        assert_eq!(ada.titles().await, ["x"]);
        assert_eq!(servers(app, &ada.id), [pid(app, &ada.id).unwrap()]);
    }
    app.put_to_sleep(&ada.id);
    app.put_to_sleep(&ada.id);
    assert!(servers(&app, &ada.id).is_empty());
    assert_eq!(app.tenant(&ada.id)["restarts"], 0, "none of it was a failure");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endless_view_in_the_place_of_users_stops_its_own_instance_and_nobody_elses() {
    let mut app = TestApp::start().await;
    for expected in ["bring the rows of an instance's members in step", "instance failed", "503"] {
        app.expect_log(expected);
    }
    let (ada, bob) = (app.user("ada").await, app.user("bob").await);
    ada.note("x").await;
    bob.note("y").await;
    let before = app.tenant(&bob.id)["pid"].clone();
    app.kill();
    // As a hook does it, with the process that serves it still there.
    let path = app.data().join("instances").join(&ada.id).join("pb_data/data.db");
    let connection = rusqlite::Connection::open(&path).unwrap();
    connection.busy_timeout(PATIENCE).unwrap();
    let endless = "DROP TABLE users; CREATE VIEW users AS
        WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n)
        SELECT 'u' || i AS id, '' AS tokenKey, '' AS email, '' AS name, 1 AS verified, '' AS password FROM n";
    connection.execute_batch(endless).unwrap();
    drop(connection);
    app.launch().await;
    assert_eq!(app.tenant(&bob.id)["pid"], before, "everybody else was adopted");
    assert_eq!(bob.at(&app).titles().await, ["y"]);
    assert_eq!(ada.at(&app).get("/api/collections/notes/records").await.status(), 503);
    assert_eq!(bob.at(&app).titles().await, ["y"]);
}
