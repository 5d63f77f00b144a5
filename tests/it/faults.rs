//! Faults injected for real: processes killed and stopped, files damaged.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;

use futures_util::StreamExt;
use futures_util::stream;
use serde_json::Value;

use crate::support::PATIENCE;
use crate::support::TestApp;
use crate::support::User;
use crate::support::eventually;
use crate::support::pause;
use crate::support::runs;
use crate::support::signal;

fn pid(app: &TestApp, tenant: &str) -> Option<i32> {
    app.tenant(tenant)["pid"].as_i64().map(|pid| i32::try_from(pid).unwrap())
}

/// Changes a tenant's placement in the control database of a pocketfleet that does not run.
fn edit_placement(app: &TestApp, tenant: &str, change: impl FnOnce(&mut Value)) {
    let database = rusqlite::Connection::open(app.data().join("control.db")).unwrap();
    let key = format!("place.{tenant}");
    let value: Vec<u8> =
        database.query_row("SELECT value FROM records WHERE key = ?1", [&key], |row| row.get(0)).unwrap();
    let mut record: Value = serde_json::from_slice(&value).unwrap();
    change(&mut record);
    let value = serde_json::to_vec(&record).unwrap();
    assert_eq!(database.execute("UPDATE records SET value = ?2 WHERE key = ?1", (&key, value)).unwrap(), 1);
}

/// Creates notes until told to stop; the titles that were acknowledged.
async fn write_until(user: User, stop: Arc<AtomicBool>) -> BTreeSet<String> {
    let mut acknowledged = BTreeSet::new();
    for n in 0.. {
        if stop.load(Ordering::SeqCst) {
            break;
        }
        let title = format!("note-{n:05}");
        let body = serde_json::json!({ "title": title });
        let sent = user.request(reqwest::Method::POST, "/api/collections/notes/records").json(&body).send().await;
        match sent {
            Ok(answer) if answer.status() == 200 => {
                acknowledged.insert(title);
            }
            Ok(answer) => assert!(matches!(answer.status().as_u16(), 502..=504), "{}", answer.status()),
            Err(_) => pause().await,
        }
    }
    acknowledged
}

#[tokio::test(flavor = "multi_thread")]
async fn kill_of_an_instance_under_load_loses_nothing_acknowledged_and_disturbs_nobody() {
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

async fn all_titles(user: &User) -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    for page in 1.. {
        let path = format!("/api/collections/notes/records?perPage=500&page={page}&sort=title&fields=title");
        let body: Value = user.get(&path).await.json().await.unwrap();
        let items = body["items"].as_array().unwrap_or_else(|| panic!("{body}"));
        all.extend(items.iter().map(|item| item["title"].as_str().unwrap().to_owned()));
        if items.len() < 500 {
            break;
        }
    }
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn kill_of_pocketfleet_leaves_twenty_instances_serving_and_the_next_one_adopts_them() {
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
async fn an_orphan_without_a_record_is_found_by_its_lock_and_stopped() {
    let mut app = TestApp::start().await;
    app.expect_log("stop a stray process");
    let ada = app.user("ada").await;
    ada.note("x").await;
    let orphan = pid(&app, &ada.id).unwrap();
    app.kill();
    // As if we had died between the start and the note of it.
    edit_placement(&app, &ada.id, |record| record["process"] = Value::Null);
    app.launch().await;
    let ada = ada.at(&app);
    assert_eq!(ada.titles().await, ["x"]);
    assert_ne!(pid(&app, &ada.id).unwrap(), orphan);
    assert!(!runs(orphan), "the orphan still runs");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_orphan_whose_record_says_idle_is_found_by_what_it_serves() {
    let mut app = TestApp::start().await;
    app.expect_log("stop a stray process");
    let ada = app.user("ada").await;
    ada.note("x").await;
    let orphan = pid(&app, &ada.id).unwrap();
    app.kill();
    // As if the control database had been restored from an older copy.
    let database = rusqlite::Connection::open(app.data().join("control.db")).unwrap();
    let key = format!("place.{}", ada.id);
    assert_eq!(database.execute("DELETE FROM records WHERE key = ?1", [&key]).unwrap(), 1);
    drop(database);
    app.launch().await;
    assert!(!runs(orphan), "the orphan still runs");
    assert_eq!(ada.at(&app).titles().await, ["x"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_somebody_locks_for_a_while_is_no_reason_for_quarantine() {
    let mut app = TestApp::start().await;
    app.expect_log("instance failed");
    let ada = app.user("ada").await;
    ada.note("x").await;
    app.put_to_sleep(&ada.id);
    let path = app.data().join("instances").join(&ada.id).join("pb_data/data.db");
    let holder = rusqlite::Connection::open(&path).unwrap();
    holder.execute_batch("PRAGMA locking_mode = EXCLUSIVE; BEGIN EXCLUSIVE; CREATE TABLE held (x)").unwrap();
    let answer = ada.get("/api/collections/notes/records").await;
    assert_eq!(answer.status(), 503);
    assert_ne!(answer.json::<Value>().await.unwrap()["code"], "TENANT_QUARANTINED");
    holder.execute_batch("ROLLBACK").unwrap();
    drop(holder);
    eventually("it comes back by itself", async || {
        (ada.get("/api/collections/notes/records").await.status() == 200).then_some(())
    })
    .await;
}

/// A program that is not left to the other tests when this one fails.
struct Guard(std::process::Child);

impl Drop for Guard {
    fn drop(&mut self) {
        drop(self.0.kill());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_closed_standard_error_does_not_stop_the_server() {
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

#[tokio::test(flavor = "multi_thread")]
async fn a_reused_pid_in_the_record_is_never_signalled() {
    let mut app = TestApp::start().await;
    let ada = app.user("ada").await;
    ada.note("x").await;
    app.put_to_sleep(&ada.id);
    let mut bystander = crate::support::command("tail").args(["-f", "/dev/null"]).spawn().unwrap();
    app.kill();
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    edit_placement(&app, &ada.id, |record| {
        record["state"] = "owned".into();
        record["incarnation"] = "earlier".into();
        record["process"] = serde_json::json!({
            "boot_id": boot.trim(), "pid": bystander.id(), "start_tick": 1, "pidfd_inode": 1,
            "address": "127.64.0.1:20000", "binary_sha256": "",
        });
    });
    app.launch().await;
    assert_eq!(ada.at(&app).titles().await, ["x"]);
    assert!(bystander.try_wait().unwrap().is_none(), "the bystander was killed");
    bystander.kill().unwrap();
    bystander.wait().unwrap();
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
async fn a_stopped_instance_is_noticed_killed_and_replaced() {
    let keys = "instances.probe_interval = \"200ms\"\ninstances.probe_timeout = \"300ms\"\n";
    let mut app = TestApp::with(keys).await;
    app.expect_log("health probe missed");
    app.expect_log("instance failed");
    app.expect_log("the instance broke off");
    let ada = app.user("ada").await;
    ada.note("x").await;
    let old = pid(&app, &ada.id).unwrap();
    signal(old, "STOP");
    eventually("it is replaced", async || pid(&app, &ada.id).filter(|new| *new != old)).await;
    assert_eq!(ada.titles().await, ["x"]);
    assert!(!runs(old));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_database_is_quarantined_with_its_reason_until_released() {
    let mut app = TestApp::start().await;
    app.expect_log("instance failed");
    let ada = app.user("ada").await;
    ada.note("x").await;
    app.put_to_sleep(&ada.id);
    let data = app.data().join("instances").join(&ada.id).join("pb_data").join("data.db");
    let good = std::fs::read(&data).unwrap();
    std::fs::write(&data, "this is not a database, whatever its name says").unwrap();
    let answer = ada.get("/api/collections/notes/records").await;
    assert_eq!(answer.status(), 503);
    assert_eq!(answer.json::<Value>().await.unwrap()["code"], "TENANT_QUARANTINED");
    let shown = app.tenant(&ada.id);
    assert_eq!(shown["state"], "quarantined");
    assert!(shown["reason"].as_str().unwrap().contains("database"), "{shown}");
    let health: Value = app.get("/health/pb").await.json().await.unwrap();
    assert_eq!(health["states"]["quarantined"], 1, "{health}");
    std::fs::write(&data, good).unwrap();
    assert_eq!(ada.get("/api/collections/notes/records").await.status(), 503, "nobody bypasses it");
    assert!(app.cli(&["tenants", "release", &ada.id]).status.success());
    assert_eq!(ada.titles().await, ["x"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_data_directory_is_never_replaced_by_an_empty_one() {
    let mut app = TestApp::start().await;
    app.expect_log("instance failed");
    let ada = app.user("ada").await;
    ada.note("x").await;
    app.put_to_sleep(&ada.id);
    let folder = app.data().join("instances").join(&ada.id);
    std::fs::rename(folder.join("pb_data"), folder.join("moved")).unwrap();
    assert_eq!(ada.get("/api/collections/notes/records").await.status(), 503);
    assert!(!folder.join("pb_data").exists());
    std::fs::rename(folder.join("moved"), folder.join("pb_data")).unwrap();
    assert!(app.cli(&["tenants", "release", &ada.id]).status.success());
    assert_eq!(ada.titles().await, ["x"]);
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

#[tokio::test(flavor = "multi_thread")]
async fn unknown_directories_are_left_alone() {
    let mut app = TestApp::start().await;
    let stranger = app.data().join("instances").join("nobodyknowsthis").join("pb_data");
    std::fs::create_dir_all(&stranger).unwrap();
    std::fs::write(stranger.join("data.db"), "precious").unwrap();
    assert!(app.terminate().success());
    app.launch().await;
    assert!(app.terminate().success());
    assert_eq!(std::fs::read_to_string(stranger.join("data.db")).unwrap(), "precious");
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
