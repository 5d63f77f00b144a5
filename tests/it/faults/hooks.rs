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
    // Deleted under it, file or whole folder: it goes on, what it says is brought back, and the file that nobody sees any
    // more does not fill the disk either.
    let unseen = format!("/proc/{}/fd/1", before.unwrap());
    for round in ["file", "folder"] {
        if round == "file" {
            std::fs::remove_file(logs.join("pocketbase.log")).unwrap();
        } else {
            std::fs::remove_dir_all(&logs).unwrap();
        }
        assert!(std::fs::read_link(&unseen).unwrap().to_string_lossy().contains("deleted"), "{round}");
        assert_eq!(ada.post("/api/fault/talk", json!({})).await.status(), 200);
        eventually("what nobody sees is cut", async || (std::fs::metadata(&unseen).unwrap().len() == 0).then_some(()))
            .await;
        eventually("it is heard again, in bounds", async || {
            let kept = std::fs::read_dir(&logs).ok()?.flatten();
            let texts: Vec<String> = kept.filter_map(|file| std::fs::read_to_string(file.path()).ok()).collect();
            (texts.iter().any(|text| text.contains("xxxx")) && size() < 6_000_000).then_some(())
        })
        .await;
        assert_eq!(write(&ada, round).await, 200);
        assert_eq!(pid(app, &ada.id), before);
    }
    // The next run of pocketfleet, which adopts it, can do no more for that file; its next start can.
    app.put_to_sleep(&ada.id);
    assert_eq!(ada.titles().await, ["file", "folder", "x"]);
    assert!(!std::fs::read_link(format!("/proc/{}/fd/1", pid(app, &ada.id).unwrap())).unwrap().ends_with("deleted"));
    app.put_to_sleep(&ada.id);
    let disk = match Disk::small(&logs, "64k") {
        Ok(disk) => disk,
        Err(why) => return skip(27, &format!("a log without room: {why}")),
    };
    disk.fill();
    assert_eq!(ada.titles().await, ["file", "folder", "x"], "it starts although nothing can be written down");
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

/// Goes away from its parents, as daemons do, and stays.
const DAEMON: &str = r#"
routerAdd("POST", "/api/fault/daemon", (e) => {
    const cmd = $os.cmd("/bin/sh", "-c", "setsid /bin/sh -c 'sleep 7000 > /dev/null 2>&1 < /dev/null & echo $!'")
    return e.json(200, { pid: parseInt(toString(cmd.output())) })
})
"#;

/// A part of the real hierarchy of control groups, gone when dropped.
struct Group(std::path::PathBuf);

impl Group {
    fn make() -> Result<Self, String> {
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let unified = mounts.lines().find(|line| line.contains(" - cgroup2 ")).ok_or("there is no cgroup v2 here")?;
        let mount = std::path::Path::new(unified.split(' ').nth(4).unwrap());
        let root = mount.join(format!("pocketfleet-test-{}", std::process::id()));
        std::fs::create_dir(&root).map_err(|error| format!("make a control group: {error}"))?;
        let group = Self(root);
        if group.0.join("cgroup.kill").is_file() { Ok(group) } else { Err("this kernel has no cgroup.kill".to_owned()) }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        drop(std::fs::write(self.0.join("cgroup.kill"), "1"));
        let leaves = std::fs::read_dir(self.0.join("tenants")).into_iter().flatten().flatten();
        let folders = ["tenants", "supervisor", ""].map(|folder| self.0.join(folder));
        for folder in leaves.map(|leaf| leaf.path()).chain(folders) {
            drop(std::fs::remove_dir(folder));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_hook_left_behind_ends_with_its_instance_where_there_are_control_groups() {
    let group = match Group::make() {
        Ok(group) => group,
        Err(why) => return skip(8, &format!("the end of a control group: {why}")),
    };
    // In a sandbox it could not start anything.
    let mut of = Hooked::prepare("isolation.level = 0\n", DAEMON);
    for expected in ["isolation level 0", "instance failed"] {
        of.app.expect_log(expected);
    }
    of.app.environment.push(("PF_STAND_IN", format!("isolation.group={}", group.0.display())));
    of.app.launch().await;
    let ada = of.app.user("ada").await;
    for end in ["sleep", "death", "adopted"] {
        let app = &of.app;
        let ada = ada.at(app);
        let said: Value = ada.post("/api/fault/daemon", json!({})).await.json().await.unwrap();
        let daemon = i32::try_from(said["pid"].as_i64().unwrap()).unwrap();
        let leaf = group.0.join("tenants").join(&ada.id);
        let of_daemon = std::fs::read_to_string(format!("/proc/{daemon}/cgroup")).unwrap();
        assert!(of_daemon.contains(&format!("/tenants/{}", ada.id)), "{of_daemon}");
        let instance = pid(app, &ada.id).unwrap();
        let session = |pid: i32| rustix::process::getsid(rustix::process::Pid::from_raw(pid)).unwrap();
        assert_ne!(session(daemon), session(instance), "it went its own way");
        match end {
            "sleep" => app.put_to_sleep(&ada.id),
            "death" => crate::support::signal(instance, "KILL"),
            _ => {
                of.app.kill();
                assert!(runs(daemon) && leaf.is_dir(), "a crash of pocketfleet ends nobody");
                of.app.launch().await;
                assert_eq!(pid(&of.app, &ada.id), Some(instance), "adopted");
                assert!(runs(daemon));
                of.app.put_to_sleep(&ada.id);
            }
        }
        // After a death it may have begun anew already, with a group of its own.
        eventually(end, async || (!runs(daemon) && (end == "death" || !leaf.exists())).then_some(())).await;
    }
    assert!(of.app.terminate().success());
}
