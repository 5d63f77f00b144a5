//! Code in a tenant's hooks that does not end, ends its process, takes all memory or floods its log.

use std::time::Duration;

use serde_json::Value;
use serde_json::json;

use super::Disk;
use super::Hooked;
use super::folder;
use super::list;
use super::pid;
use super::skip;
use super::starts;
use super::write;
use crate::support::User;
use crate::support::eventually;
use crate::support::runs;

const FAULTS: &str = r#"
routerAdd("POST", "/api/fault/spin", (e) => { for (;;) {} })
routerAdd("POST", "/api/fault/memory", (e) => {
    const kept = []
    for (;;) kept.push("x".repeat(1 << 20) + kept.length)
})
routerAdd("POST", "/api/fault/talk", (e) => {
    const line = "x".repeat(100000)
    for (let n = 0; n < 600; n++) console.log(line)
    return e.json(200, { said: 600 })
})
routerAdd("POST", "/api/fault/backup", (e) => { $app.createBackup(new Context(), "one.zip"); return e.json(200, {}) })
routerAdd("POST", "/api/fault/restore", (e) => { $app.restoreBackup(new Context(), "one.zip"); return e.json(200, {}) })
"#;

/// Leaves at each start while a file says so.
const LEAVES: &str = r#"
onBootstrap((e) => {
    e.next()
    let leaves = true
    try { $os.stat($app.dataDir() + "/leave") } catch (error) { leaves = false }
    if (leaves) { console.log("leaving at start"); $os.exit(0) }
})
"#;

/// Calls a route and does not wait for what it says.
async fn call_and_leave(user: &User, path: &str, patience: Duration) {
    let sent = user.request(reqwest::Method::POST, path).json(&json!({})).timeout(patience).send().await;
    assert!(sent.is_err() || sent.is_ok_and(|answer| matches!(answer.status().as_u16(), 500..=504)));
}

#[tokio::test(flavor = "multi_thread")]
async fn fault_08_code_that_never_ends_keeps_nobody_else_from_anything_and_is_stopped() {
    let mut of = Hooked::prepare("instances.stop_timeout = \"2s\"\n", FAULTS);
    of.app.expect_log("request failed");
    of.app.launch().await;
    let app = &of.app;
    let (ada, bob) = (app.user("ada").await, app.user("bob").await);
    ada.note("x").await;
    bob.note("y").await;
    let (spinning, quiet) = (pid(app, &ada.id).unwrap(), pid(app, &bob.id).unwrap());
    call_and_leave(&ada, "/api/fault/spin", Duration::from_secs(3)).await;
    // The loop goes on, and both go on being served.
    assert_eq!(bob.titles().await, ["y"]);
    assert_eq!(ada.titles().await, ["x"]);
    assert_eq!(pid(app, &bob.id), Some(quiet));
    eventually("it is stopped all the same", async || {
        app.cli(&["tenants", "sleep", &ada.id]);
        (!runs(spinning)).then_some(())
    })
    .await;
    assert_eq!(ada.titles().await, ["x"]);
    // And it does not hold up the way down: the end of the test stops another one.
    call_and_leave(&ada, "/api/fault/spin", Duration::from_secs(1)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn fault_09_leaving_at_each_start_ends_in_quarantine_without_a_busy_loop() {
    let keys = "instances.backoff_base = \"50ms\"\ninstances.backoff_max = \"200ms\"\n";
    let mut of = Hooked::prepare(keys, LEAVES);
    of.app.expect_log("instance failed");
    of.app.launch().await;
    let app = &of.app;
    let ada = app.user("ada").await;
    ada.note("x").await;
    app.put_to_sleep(&ada.id);
    let leave = folder(app, &ada.id).join("pb_data/leave");
    std::fs::write(&leave, "").unwrap();
    let before = starts(app);
    let answer = ada.get(super::NOTES).await;
    assert_eq!(answer.status(), 503);
    let after: u64 = answer.headers()["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((1..=300).contains(&after), "{after}");
    eventually("it is given up", async || (app.tenant(&ada.id)["state"] == "quarantined").then_some(())).await;
    // The default lets five pass; the sixth failure is one too many.
    assert_eq!(starts(app) - before, 6);
    let shown = app.tenant(&ada.id);
    assert!(shown["last_log"].to_string().contains("leaving at start"), "{shown}");
    for _ in 0..20 {
        let (status, body) = list(&ada).await;
        assert_eq!((status, &body["code"]), (503, &json!("TENANT_QUARANTINED")), "{body}");
    }
    assert_eq!(starts(app) - before, 6, "nobody starts it by asking");
    std::fs::remove_file(&leave).unwrap();
    assert!(app.cli(&["tenants", "release", &ada.id]).status.success());
    assert_eq!(ada.titles().await, ["x"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn fault_20_who_takes_all_memory_dies_alone_and_it_is_said_why() {
    let mut of = Hooked::prepare("instances.data_bytes = 268435456\n", FAULTS);
    for expected in ["instance failed", "the instance broke off", "request failed"] {
        of.app.expect_log(expected);
    }
    of.app.launch().await;
    let app = &of.app;
    let (ada, bob) = (app.user("ada").await, app.user("bob").await);
    ada.note("x").await;
    bob.note("y").await;
    let (greedy, quiet) = (pid(app, &ada.id).unwrap(), pid(app, &bob.id));
    let body = json!({});
    drop(ada.request(reqwest::Method::POST, "/api/fault/memory").json(&body).send().await);
    eventually("it died", async || (!runs(greedy)).then_some(())).await;
    eventually("it is said why", async || {
        let log = app.log();
        log.lines().any(|line| line.contains("instance failed") && line.contains("out of memory")).then_some(())
    })
    .await;
    assert_eq!(bob.titles().await, ["y"]);
    assert_eq!(pid(app, &bob.id), quiet);
    eventually("it is back", async || (list(&ada).await.0 == 200).then_some(())).await;
    assert_eq!(ada.titles().await, ["x"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn fault_27_a_log_that_is_flooded_deleted_or_without_room_takes_nobody_along() {
    let keys = "instances.log_bytes = 1000000\ninstances.log_files = 2\ninstances.probe_interval = \"200ms\"\n";
    let mut of = Hooked::prepare(keys, FAULTS);
    of.app.expect_log("rotate an instance's log");
    of.app.launch().await;
    let app = &of.app;
    let ada = app.user("ada").await;
    ada.note("x").await;
    let before = pid(app, &ada.id);
    let logs = folder(app, &ada.id).join("log");
    let size = || -> u64 {
        let files = std::fs::read_dir(&logs).unwrap().flatten();
        files.filter_map(|entry| entry.metadata().ok()).map(|metadata| metadata.len()).sum()
    };
    // Sixty megabytes; what is kept of each look is its last two.
    let said: Value = ada.post("/api/fault/talk", json!({})).await.json().await.unwrap();
    assert_eq!(said["said"], 600);
    eventually("the log is cut", async || (size() < 6_000_000).then_some(())).await;
    // Deleted under it: it goes on, and what it says comes back with its next start at the latest.
    std::fs::remove_file(logs.join("pocketbase.log")).unwrap();
    assert_eq!(write(&ada, "y").await, 200);
    assert_eq!(pid(app, &ada.id), before);
    app.put_to_sleep(&ada.id);
    assert_eq!(ada.titles().await, ["x", "y"]);
    eventually("it is heard again", async || {
        std::fs::read_to_string(logs.join("pocketbase.log")).ok().filter(|text| !text.is_empty())
    })
    .await;
    app.put_to_sleep(&ada.id);
    let disk = match Disk::small(&logs, "64k") {
        Ok(disk) => disk,
        Err(why) => return skip(27, &format!("a log without room: {why}")),
    };
    disk.fill();
    assert_eq!(ada.titles().await, ["x", "y"], "it starts although nothing can be written down");
    let silent = pid(app, &ada.id);
    assert_eq!(ada.post("/api/fault/talk", json!({})).await.status(), 200);
    assert_eq!(write(&ada, "z").await, 200);
    assert_eq!(pid(app, &ada.id), silent);
}

#[tokio::test(flavor = "multi_thread")]
async fn fault_33_a_restore_of_its_own_is_the_same_process_and_no_crash() {
    let mut of = Hooked::prepare("", FAULTS);
    of.app.expect_log("request failed");
    of.app.launch().await;
    let app = &of.app;
    let ada = app.user("ada").await;
    ada.note("kept").await;
    assert_eq!(ada.post("/api/fault/backup", json!({})).await.status(), 200);
    ada.note("lost").await;
    let before = pid(app, &ada.id);
    // It becomes itself anew, so its answer may not come.
    drop(ada.request(reqwest::Method::POST, "/api/fault/restore").json(&json!({})).send().await);
    eventually("it serves what was restored", async || {
        let (status, body) = list(&ada).await;
        assert!(matches!(status, 200 | 502..=504), "{status} {body}");
        (status == 200 && body["totalItems"] == 1).then_some(())
    })
    .await;
    assert_eq!(ada.titles().await, ["kept"]);
    assert_eq!(pid(app, &ada.id), before);
    assert_eq!(app.tenant(&ada.id)["restarts"], 0);
}
