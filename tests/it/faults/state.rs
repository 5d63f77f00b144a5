//! Records and files that are not what was left: lost, damaged, of another boot, of somebody else.

use serde_json::Value;

use super::edit_placement;
use super::pid;
use crate::support::TestApp;
use crate::support::User;
use crate::support::eventually;
use crate::support::runs;

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
async fn fault_06_a_reused_pid_in_the_record_is_never_signalled() {
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
async fn fault_06_records_that_are_cut_or_garbage_are_nobodys_and_nothing_is_signalled() {
    let mut app = TestApp::start().await;
    app.expect_log("record");
    app.expect_log("stop a stray process");
    app.expect_log("instance failed");
    let users = [app.user("ada").await, app.user("bob").await, app.user("eve").await];
    for user in &users {
        user.note("x").await;
    }
    let mut bystander = crate::support::command("tail").args(["-f", "/dev/null"]).spawn().unwrap();
    app.kill();
    let control = rusqlite::Connection::open(app.data().join("control.db")).unwrap();
    let damage = |user: &User, value: &[u8]| {
        let key = format!("place.{}", user.id);
        assert_eq!(control.execute("UPDATE records SET value = ?2 WHERE key = ?1", (&key, value)).unwrap(), 1);
    };
    damage(&users[0], b"");
    damage(&users[1], format!("{{\"tenant\": \"{}\", \"pid\": {}", users[1].id, bystander.id()).as_bytes());
    drop(control);
    app.launch().await;
    assert_eq!(users[2].at(&app).titles().await, ["x"], "the others are adopted");
    assert_eq!(app.cli_json(&["status"])["fleet"]["adopted"], 2);
    for user in &users[..2] {
        // Whose epoch nobody knows is not started: it says so until an operator looks.
        let (status, body) = super::list(&user.at(&app)).await;
        assert_eq!((status, &body["code"]), (503, &"TENANT_BLOCKED".into()), "{body}");
        let serving = crate::support::processes_in(&super::folder(&app, &user.id));
        assert!(serving.is_empty(), "what ran without a record was stopped: {serving:?}");
    }
    assert!(bystander.try_wait().unwrap().is_none(), "the bystander was killed");
    bystander.kill().unwrap();
    bystander.wait().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn fault_26_a_secret_changed_on_disk_does_not_open_and_it_is_written_down() {
    let mut app = TestApp::start().await;
    for expected in ["changed outside pocketfleet", "request failed"] {
        app.expect_log(expected);
    }
    let (ada, bob) = (app.user("ada").await, app.user("bob").await);
    let mut ids = Vec::new();
    for user in [&ada, &bob] {
        let secret = serde_json::json!({"service": "fathom", "secret": "a-planted-key", "verify": false});
        let stored = user.request(reqwest::Method::PUT, "/api/v1/vault").json(&secret).send().await.unwrap();
        assert!(stored.status().is_success());
        ids.push(stored.json::<Value>().await.unwrap()["key_id"].as_str().unwrap().to_owned());
    }
    app.kill();
    // One bit of the text that was sealed.
    let control = rusqlite::Connection::open(app.data().join("control.db")).unwrap();
    let key = format!("secret.{}.{}", ada.id, ids[0]);
    let value: Vec<u8> =
        control.query_row("SELECT value FROM records WHERE key = ?1", [&key], |row| row.get(0)).unwrap();
    let mut record: Value = serde_json::from_slice(&value).unwrap();
    let sealed = record["sealed"].as_str().unwrap();
    let other = if &sealed[20..21] == "A" { "B" } else { "A" };
    record["sealed"] = format!("{}{other}{}", &sealed[..20], &sealed[21..]).into();
    let value = serde_json::to_vec(&record).unwrap();
    assert_eq!(control.execute("UPDATE records SET value = ?2 WHERE key = ?1", (&key, value)).unwrap(), 1);
    drop(control);
    app.launch().await;
    let reveal = async |user: &User, id: &str| {
        let user = app.sign_in(&user.email, &user.password).await;
        let answer = user.post(&format!("/api/v1/vault/{id}/reveal"), serde_json::json!({})).await;
        (answer.status().as_u16(), answer.text().await.unwrap())
    };
    let (status, body) = reveal(&ada, &ids[0]).await;
    assert_eq!(status, 500, "{body}");
    assert!(body.contains("SECRET_UNREADABLE") && !body.contains("planted"), "{body}");
    let (status, body) = reveal(&bob, &ids[1]).await;
    assert!(status == 200 && body.contains("a-planted-key"), "others are not concerned: {body}");
    let audit = String::from_utf8(app.cli(&["audit", "export"]).stdout).unwrap();
    assert!(!audit.contains("planted") && !app.log().contains("planted"));
    let entries: Vec<Value> = audit.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let of = |action: &str| entries.iter().filter(|entry| entry["action"] == action).collect::<Vec<_>>();
    let written = of("secret.unreadable");
    assert_eq!(written.len(), 1, "{audit}");
    assert_eq!((&written[0]["tenant"], &written[0]["subject"]), (&ada.id.clone().into(), &ids[0].clone().into()));
    assert_eq!(of("secret.reveal_refused").len(), 1, "{audit}");
    assert!(app.cli(&["audit", "verify"]).status.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn fault_10_binary_gone_not_runnable_or_garbage_blocks_until_it_is_back() {
    use std::os::unix::fs::PermissionsExt;
    let place = tempfile::tempdir().unwrap();
    std::fs::set_permissions(place.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let binary = place.path().join("pocketbase");
    let put_back = || {
        drop(std::fs::remove_file(&binary));
        std::fs::copy(crate::support::pocketbase(), &binary).unwrap();
        std::fs::set_permissions(&binary, PermissionsExt::from_mode(0o755)).unwrap();
    };
    put_back();
    let mut app = TestApp::prepare("");
    app.pocketbase = Some(binary.clone());
    app.expect_log("instance failed");
    app.launch().await;
    let (ada, bob) = (app.user("ada").await, app.user("bob").await);
    ada.note("x").await;
    bob.note("y").await;
    for what in ["gone", "not executable", "garbage"] {
        app.put_to_sleep(&ada.id);
        match what {
            "gone" => std::fs::rename(&binary, place.path().join("away")).unwrap(),
            "not executable" => std::fs::set_permissions(&binary, PermissionsExt::from_mode(0o644)).unwrap(),
            _ => {
                // Another file: the one that runs cannot be written.
                std::fs::remove_file(&binary).unwrap();
                std::fs::write(&binary, "not a program").unwrap();
                std::fs::set_permissions(&binary, PermissionsExt::from_mode(0o755)).unwrap();
            }
        }
        let (status, body) = super::list(&ada).await;
        assert_eq!((status, &body["code"]), (503, &"TENANT_BLOCKED".into()), "{what}: {body}");
        let shown = app.tenant(&ada.id);
        assert_eq!(shown["state"], "blocked", "{what}: {shown}");
        assert!(shown["reason"].as_str().unwrap().contains("binary"), "{what}: {shown}");
        let before = super::starts(&app);
        for _ in 0..10 {
            assert_eq!(super::list(&ada).await.0, 503);
        }
        // Ten seconds between two tries, so that a slow machine makes a few at most.
        assert!(super::starts(&app) <= before + 5, "{what}: it is tried in a loop");
        assert_eq!(bob.titles().await, ["y"], "{what}: who runs goes on");
        put_back();
        assert!(app.cli(&["tenants", "release", &ada.id]).status.success());
        assert_eq!(ada.titles().await, ["x"], "{what}");
    }
}

/// What identifies a process to us.
fn identity(pid: i32) -> Value {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let tick: u64 = stat.rsplit_once(") ").unwrap().1.split(' ').nth(19).unwrap().parse().unwrap();
    let id = rustix::process::Pid::from_raw(pid).unwrap();
    let pidfd = rustix::process::pidfd_open(id, rustix::process::PidfdFlags::empty()).unwrap();
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    serde_json::json!({
        "boot_id": boot.trim(), "pid": pid, "start_tick": tick,
        "pidfd_inode": rustix::fs::fstat(&pidfd).unwrap().st_ino,
        "address": "127.64.0.1:20000", "binary_sha256": "",
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn fault_36_a_zombie_is_dead_and_its_directory_free() {
    let mut app = TestApp::start().await;
    let ada = app.user("ada").await;
    ada.note("x").await;
    app.put_to_sleep(&ada.id);
    app.kill();
    // Ended, and nobody reaps it.
    let mut zombie = crate::support::command("true").spawn().unwrap();
    let id = i32::try_from(zombie.id()).unwrap();
    eventually("it is a zombie", async || (!runs(id)).then_some(())).await;
    let process = identity(id);
    edit_placement(&app, &ada.id, |record| {
        record["state"] = "owned".into();
        record["incarnation"] = "earlier".into();
        record["process"] = process;
    });
    app.launch().await;
    assert!(app.log().contains("the process is gone"), "{}", app.log());
    assert_eq!(ada.at(&app).titles().await, ["x"]);
    zombie.wait().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn fault_37_after_a_reboot_nothing_is_adopted_or_signalled_and_the_pinned_come_back() {
    let mut app = TestApp::with("instances.max_starting = 2\n").await;
    let mut users = Vec::new();
    for n in 0..6 {
        let user = app.user(&format!("user{n}")).await;
        user.note("x").await;
        users.push(user);
    }
    let pinned = &users[..4];
    for user in pinned {
        assert!(app.cli(&["tenants", "pin", &user.id]).status.success());
    }
    let running: Vec<i32> =
        users.iter().map(|user| user.id.as_str()).chain(["global"]).filter_map(|id| pid(&app, id)).collect();
    app.kill();
    for pid in running {
        crate::support::signal(pid, "KILL");
        eventually("it is gone", async || (!runs(pid)).then_some(())).await;
    }
    // The next boot gives the number to somebody else, who agrees with the record in everything but the boot.
    let mut bystander = crate::support::command("tail").args(["-f", "/dev/null"]).spawn().unwrap();
    let other = identity(i32::try_from(bystander.id()).unwrap());
    for user in &users {
        edit_placement(&app, &user.id, |record| {
            record["process"] = other.clone();
            record["process"]["boot_id"] = "00000000-0000-0000-0000-000000000000".into();
        });
    }
    app.launch().await;
    assert_eq!(app.cli_json(&["status"])["fleet"]["adopted"], 0);
    assert!(app.log().contains("the record is from another boot"), "{}", app.log());
    for user in pinned {
        eventually("who is pinned comes back by itself", async || pid(&app, &user.id)).await;
    }
    for user in &users[4..] {
        assert_eq!(app.tenant(&user.id)["state"], "asleep", "who is not, when somebody asks");
    }
    for user in &users {
        assert_eq!(user.at(&app).titles().await, ["x"]);
    }
    assert!(bystander.try_wait().unwrap().is_none(), "the bystander was killed");
    bystander.kill().unwrap();
    bystander.wait().unwrap();
}
