//! Disks and files without room.

use reqwest::Method;
use serde_json::Value;
use serde_json::json;

use super::Disk;
use super::NOTES;
use super::folder;
use super::integrity;
use super::is_root;
use super::list;
use super::pid;
use super::run;
use super::skip;
use super::starts;
use super::write;
use crate::support::TestApp;
use crate::support::User;
use crate::support::eventually;

const VAULT: &str = "/api/v1/vault";

/// Moves a sleeping tenant's folder to a small disk of its own.
fn alone_on_a_disk(app: &TestApp, tenant: &str, size: &str) -> Result<Disk, String> {
    let (home, aside) = (folder(app, tenant), app.dir.path().join("aside"));
    std::fs::rename(&home, &aside).unwrap();
    let disk = Disk::small(&home, size);
    if disk.is_err() {
        std::fs::remove_dir(&home).unwrap();
        std::fs::rename(&aside, &home).unwrap();
        return disk;
    }
    run("cp", &["-a", &format!("{}/.", aside.display()), &home.display().to_string()]).unwrap();
    disk
}

/// Writes until it is refused; how many were taken and with what it ended.
async fn write_until_refused(user: &User, most: usize) -> (usize, u16, Value) {
    for n in 0..most {
        let body = json!({ "title": format!("large-{n:04}"), "body": "x".repeat(90_000) });
        let answer = user.post(NOTES, body).await;
        let status = answer.status().as_u16();
        if status != 200 {
            return (n, status, answer.json().await.unwrap_or_default());
        }
    }
    panic!("{most} large notes were taken");
}

#[tokio::test(flavor = "multi_thread")]
async fn fault_13_a_full_disk_under_an_instance_refuses_writes_and_nothing_else() {
    let app = TestApp::start().await;
    let ada = app.user("ada").await;
    ada.note("x").await;
    app.put_to_sleep(&ada.id);
    let disk = match alone_on_a_disk(&app, &ada.id, "24m") {
        Ok(disk) => disk,
        Err(why) => return skip(13, &why),
    };
    assert_eq!(ada.titles().await, ["x"]);
    let before = pid(&app, &ada.id);
    let filler = disk.fill();
    let (taken, status, body) = write_until_refused(&ada, 500).await;
    assert!((400..=507).contains(&status) && !body.to_string().contains("/pb_data"), "{status} {body}");
    for _ in 0..5 {
        assert_eq!(list(&ada).await.0, 200, "reading goes on");
    }
    assert_eq!(pid(&app, &ada.id), before);
    assert_eq!(app.tenant(&ada.id)["restarts"], 0);
    std::fs::remove_file(filler).unwrap();
    eventually("it writes again", async || (write(&ada, "y").await == 200).then_some(())).await;
    assert_eq!(ada.titles().await.len(), taken + 2);
    assert_eq!(pid(&app, &ada.id), before);
    app.put_to_sleep(&ada.id);
    assert_eq!(integrity(&folder(&app, &ada.id).join("pb_data/data.db")), "ok");
}

#[tokio::test(flavor = "multi_thread")]
async fn fault_14_a_start_on_a_full_disk_is_blocked_and_no_crash() {
    let mut app = TestApp::start().await;
    app.expect_log("instance failed");
    app.expect_log("rotate an instance's log");
    let ada = app.user("ada").await;
    ada.note("x").await;
    app.put_to_sleep(&ada.id);
    let disk = match alone_on_a_disk(&app, &ada.id, "24m") {
        Ok(disk) => disk,
        Err(why) => return skip(14, &why),
    };
    // No room for a word of explanation either: the last page of the log is full as well.
    let log = folder(&app, &ada.id).join("log/pocketbase.log");
    let mut text = std::fs::read_to_string(&log).unwrap();
    text.push_str(&"\n".repeat(4096 - text.len() % 4096));
    std::fs::write(&log, text).unwrap();
    let filler = disk.fill();
    let before = starts(&app);
    for _ in 0..12 {
        let (status, body) = list(&ada).await;
        assert_eq!((status, &body["code"]), (503, &json!("TENANT_BLOCKED")), "{body}");
    }
    let shown = app.tenant(&ada.id);
    assert_eq!(shown["state"], "blocked", "{shown}");
    let reason = shown["reason"].as_str().unwrap();
    assert!(reason.contains("space") || reason.contains("full"), "{reason}");
    // Ten seconds between two tries.
    assert!(starts(&app) <= before + 6, "it is tried in a loop");
    std::fs::remove_file(filler).unwrap();
    eventually("it comes back by itself", async || (list(&ada).await.0 == 200).then_some(())).await;
    assert_eq!(ada.titles().await, ["x"]);
    app.put_to_sleep(&ada.id);
    assert_eq!(integrity(&folder(&app, &ada.id).join("pb_data/data.db")), "ok");
}

async fn put_secret(user: &User, label: &str) -> (u16, Value) {
    let body = json!({"service": "http", "label": label, "secret": format!("planted-{label}"), "verify": false});
    let answer = user.request(Method::PUT, VAULT).json(&body).send().await.unwrap();
    (answer.status().as_u16(), answer.json().await.unwrap_or_default())
}

#[tokio::test(flavor = "multi_thread")]
async fn fault_15_a_full_disk_under_the_control_database_fails_closed_and_tenants_run_on() {
    let place = tempfile::tempdir().unwrap();
    std::fs::set_permissions(place.path(), std::os::unix::fs::PermissionsExt::from_mode(0o711)).unwrap();
    let disk = match Disk::small(&place.path().join("disk"), "160m") {
        Ok(disk) => disk,
        Err(why) => return skip(15, &why),
    };
    let keys = "quota.reserve = 0\nvault.changes_per_minute = 60000\nvault.reveals_per_minute = 60000\n\
                vault.max_secrets = 1000\nvault.reveal_max_age = \"1h\"\n";
    let mut app = TestApp::prepare(keys);
    app.elsewhere = Some(disk.folder.join("data"));
    for expected in ["audit log", "full", "space", "request failed", "disk"] {
        app.expect_log(expected);
    }
    app.launch().await;
    let (ada, bob) = (app.user("ada").await, app.user("bob").await);
    ada.note("x").await;
    bob.note("y").await;
    let (status, item) = put_secret(&ada, "first").await;
    assert_eq!(status, 201, "{item}");
    let reveal = format!("{VAULT}/{}/reveal", item["key_id"].as_str().unwrap());
    let running = (pid(&app, &ada.id), pid(&app, &bob.id));

    let filler = disk.fill();
    let (mut taken, mut refused) = (vec!["first".to_owned()], Vec::new());
    for n in 0..900 {
        let label = format!("secret-{n:04}");
        let (status, body) = put_secret(&ada, &label).await;
        if status < 300 {
            taken.push(label);
            continue;
        }
        assert!(matches!(status, 503 | 507), "{status} {body}");
        assert!(!body.to_string().contains("planted"), "{body}");
        refused.push(label);
        if refused.len() == 5 {
            break;
        }
    }
    assert_eq!(refused.len(), 5, "the disk was never full");
    // What cannot be written down is not shown.
    let mut shown = 200;
    for _ in 0..2000 {
        let answer = ada.post(&reveal, json!({"purpose": "test"})).await;
        shown = answer.status().as_u16();
        if shown != 200 {
            let text = answer.text().await.unwrap();
            assert!(!text.contains("planted"), "{text}");
            break;
        }
    }
    assert!(matches!(shown, 503 | 507), "a reveal without an entry: {shown}");
    assert_eq!(ada.titles().await, ["x"]);
    assert_eq!(bob.titles().await, ["y"]);
    assert_eq!(app.get("/health").await.status(), 200);
    assert_eq!((pid(&app, &ada.id), pid(&app, &bob.id)), running, "who runs goes on");

    std::fs::remove_file(filler).unwrap();
    eventually("secrets are taken again", async || (put_secret(&ada, "after").await.0 < 300).then_some(())).await;
    taken.push("after".to_owned());
    let answer = ada.post(&reveal, json!({"purpose": "test"})).await;
    assert_eq!(answer.json::<Value>().await.unwrap()["secret"], "planted-first");
    let listed: Value = ada.get(VAULT).await.json().await.unwrap();
    let items = listed["items"].as_array().unwrap().iter();
    let mut labels: Vec<String> = items.map(|item| item["label"].as_str().unwrap().to_owned()).collect();
    labels.sort();
    taken.sort();
    assert_eq!(labels, taken, "what was acknowledged, and no more");
    assert_eq!(app.cli_json(&["audit", "verify"])["intact"], true);
    assert!(app.terminate().success());
    assert_eq!(integrity(&app.data().join("control.db")), "ok");
    drop(app);
    drop(disk);
}

#[tokio::test(flavor = "multi_thread")]
async fn fault_16_a_file_at_its_largest_is_one_tenants_refusal() {
    let mut app = TestApp::with("instances.file_bytes = 5000000\n").await;
    app.expect_log("request failed");
    let (ada, bob) = (app.user("ada").await, app.user("bob").await);
    ada.note("x").await;
    bob.note("y").await;
    let before = (pid(&app, &ada.id), pid(&app, &bob.id));
    let (taken, status, body) = write_until_refused(&ada, 500).await;
    assert!((400..500).contains(&status), "{status} {body}");
    assert!(taken > 5, "{taken}");
    assert_eq!(list(&ada).await.0, 200);
    assert_eq!(write(&bob, "z").await, 200);
    assert_eq!((pid(&app, &ada.id), pid(&app, &bob.id)), before, "nobody died of it");
    app.put_to_sleep(&ada.id);
    assert_eq!(integrity(&folder(&app, &ada.id).join("pb_data/data.db")), "ok");
    assert_eq!(list(&ada).await.1["totalItems"], taken + 1);
    if !is_root() {
        skip(16, "at level 2, with users of their own: this user is not root");
    }
}
