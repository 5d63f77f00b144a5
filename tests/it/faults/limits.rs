//! Limits of the kernel that are reached: open files, processes, inotify instances.

use std::path::Path;
use std::process::Child;
use std::time::Duration;

use futures_util::StreamExt;
use serde_json::Value;

use super::folder;
use super::is_root;
use super::list;
use super::pid;
use super::run;
use super::skip;
use super::starts;
use super::write;
use crate::support::TestApp;
use crate::support::command;
use crate::support::eventually;
use crate::support::sse::Stream;

/// Programs that do nothing, as somebody else; ended when dropped.
struct Crowd(Vec<Child>);

impl Crowd {
    fn of(count: usize, user: u32, file: &Path) -> Self {
        let user = user.to_string();
        let start = |_| {
            let words = ["--reuid", &user, "--regid", &user, "--clear-groups", "tail", "-f"];
            command("setpriv").args(words).arg(file).stdin(std::process::Stdio::null()).spawn().unwrap()
        };
        Self((0..count).map(start).collect())
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        for child in &mut self.0 {
            drop(child.kill());
        }
        for child in &mut self.0 {
            drop(child.wait());
        }
    }
}

/// Users of nobody else: kernels count by user, and all tests of this machine would share them.
fn own_users(fault: u32) -> String {
    let base = 1_950_000_000 + std::process::id() % 1_000 * 1_000 + fault * 10;
    format!("isolation.uid_base = {base}\nisolation.uid_count = 10\n")
}

/// The user whom a tenant's files belong to.
fn owner(app: &TestApp, tenant: &str) -> u32 {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(folder(app, tenant).join("pb_data/data.db")).unwrap().uid()
}

#[tokio::test(flavor = "multi_thread")]
async fn fault_17_an_instance_out_of_files_is_slow_for_its_tenant_and_recovers() {
    let keys = "instances.nofile = 64\nrealtime.max_streams_per_user = 200\nserver.response_timeout = \"5s\"\n";
    let mut app = TestApp::with(keys).await;
    for expected in ["request failed", "stream", "health probe missed", "instance failed", "broke off"] {
        app.expect_log(expected);
    }
    let (ada, bob) = (app.user("ada").await, app.user("bob").await);
    ada.note("x").await;
    bob.note("y").await;
    let (quiet, busy) = (pid(&app, &bob.id), pid(&app, &ada.id).unwrap());
    let streams: Vec<Stream> = futures_util::stream::iter(0..120)
        .map(|_| async {
            let stream = Stream::open(&app).await;
            let body = serde_json::json!({ "clientId": stream.id, "subscriptions": ["notes/*"] });
            // Those for whom there is no file wait, or are refused.
            drop(tokio::time::timeout(Duration::from_secs(2), stream.call(Some(&ada.token), &body)).await);
            stream
        })
        .buffered(16)
        .collect()
        .await;
    let open = std::fs::read_dir(format!("/proc/{busy}/fd")).map_or(64, Iterator::count);
    assert!(open > 50, "it has {open} files open only");
    assert_eq!(bob.titles().await, ["y"]);
    assert_eq!(pid(&app, &bob.id), quiet);
    drop(streams);
    eventually("it is as before", async || (write(&ada, "z").await == 200).then_some(())).await;
    assert_eq!(ada.titles().await.first().map(String::as_str), Some("x"));
    assert_eq!(pid(&app, &bob.id), quiet);
}

/// What somebody new is told: the status, or none where the connection was closed without an answer.
async fn knock(app: &TestApp, path: &str) -> Option<(u16, Value)> {
    let client = crate::support::http().build().unwrap();
    let answer = client.get(format!("{}{path}", app.base)).timeout(Duration::from_secs(30)).send().await.ok()?;
    Some((answer.status().as_u16(), answer.json().await.ok()?))
}

#[tokio::test(flavor = "multi_thread")]
async fn fault_18_pocketfleet_out_of_files_says_that_it_lives_and_goes_on_accepting() {
    // Those who are let in stay, and say nothing.
    let mut app = TestApp::with("server.header_timeout = \"120s\"\ninstances.probe_interval = \"300ms\"\n").await;
    for expected in ["accept connections", "open files", "os error 24", "unable to open"] {
        app.expect_log(expected);
    }
    let ada = app.user("ada").await;
    ada.note("x").await;
    let before = pid(&app, &ada.id);
    let ours = app.pid().to_string();
    let now = std::fs::read_dir(format!("/proc/{ours}/fd")).unwrap().count();
    let limits = std::fs::read_to_string(format!("/proc/{ours}/limits")).unwrap();
    let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    let hard = line.split_whitespace().nth(4).unwrap().to_owned();
    let limit = |soft: &str| run("prlimit", &["--pid", &ours, &format!("--nofile={soft}:{hard}")]);
    if let Err(why) = limit(&(now + 16).to_string()) {
        return skip(18, &why);
    }
    let address = app.base.trim_start_matches("http://").to_owned();
    let mut crowd = Vec::new();
    for _ in 0..64 {
        crowd.push(tokio::net::TcpStream::connect(&address).await.unwrap());
    }
    eventually("it pauses", async || app.log().contains("accept connections; pausing").then_some(())).await;
    // Behind all of them, again and again, and whatever else is asked.
    for _ in 0..5 {
        let (status, body) = eventually("it says that it lives", async || knock(&app, "/health").await).await;
        assert_eq!((status, body["status"].as_str()), (200, Some("ok")), "{body}");
    }
    let (status, body) = eventually("it says why not", async || knock(&app, "/api/v1/queue").await).await;
    assert_eq!((status, body["error"]["code"].as_str()), (503, Some("OVERLOADED")), "{body}");
    let shown = app.cli(&["status", "--json"]);
    assert!(shown.status.success(), "operators: {}", String::from_utf8_lossy(&shown.stderr));
    let open = std::fs::read_dir(format!("/proc/{ours}/fd")).unwrap().count();
    assert!(open >= now + 8, "it was out of them all the time: {open} of {}", now + 16);
    // Instances that cannot be asked how they are are not killed for it, however often: nothing can be opened any more.
    limit("8").unwrap();
    let unasked = || app.log().matches("a health probe could not be sent").count();
    eventually("probes could not be sent", async || (unasked() >= 8).then_some(())).await;
    limit(&(now + 16).to_string()).unwrap();
    drop(crowd);
    eventually("it goes on", async || (knock(&app, "/ready").await?.0 == 200).then_some(())).await;
    limit(&hard).unwrap();
    assert_eq!(ada.titles().await, ["x"]);
    assert_eq!((pid(&app, &ada.id), app.tenant(&ada.id)["restarts"].clone()), (before, Value::from(0)));
    // Said now and then, however often it was tried.
    assert!(app.log().matches("accept connections; pausing").count() <= 12);
}

#[tokio::test(flavor = "multi_thread")]
async fn fault_19_no_process_or_thread_left_is_classified_and_backed_off() {
    if !is_root() {
        return skip(19, "processes are counted by user, and users for tenants take root");
    }
    let keys = "instances.nproc = 40\ninstances.backoff_base = \"100ms\"\ninstances.backoff_max = \"1s\"\n";
    let mut app = TestApp::with(&format!("{keys}{}", own_users(19))).await;
    app.expect_log("instance failed");
    let (ada, bob) = (app.user("ada").await, app.user("bob").await);
    ada.note("x").await;
    bob.note("y").await;
    app.put_to_sleep(&ada.id);
    let user = owner(&app, &ada.id);
    for (count, state, said) in [(41, "blocked", "nproc"), (37, "quarantined", "nproc")] {
        let crowd = Crowd::of(count, user, Path::new("/dev/null"));
        eventually("all are hers", async || {
            let hers = |child: &Child| {
                use std::os::unix::fs::MetadataExt;
                std::fs::metadata(format!("/proc/{}", child.id())).is_ok_and(|entry| entry.uid() == user)
            };
            crowd.0.iter().all(hers).then_some(())
        })
        .await;
        let before = starts(&app);
        assert_eq!(list(&ada).await.0, 503, "{count}");
        let shown =
            eventually("it is given up", async || Some(app.tenant(&ada.id)).filter(|shown| shown["state"] == state))
                .await;
        assert!(shown["reason"].as_str().unwrap().contains(said), "{count}: {shown}");
        assert!(starts(&app) <= before + 6, "{count}: no busy loop");
        assert_eq!(bob.titles().await, ["y"]);
        drop(crowd);
        assert!(app.cli(&["tenants", "release", &ada.id]).status.success());
        assert_eq!(ada.titles().await, ["x"], "{count}");
        app.put_to_sleep(&ada.id);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn fault_34_without_inotify_instances_start() {
    if !is_root() {
        return skip(34, "inotify instances are counted by user, and users for tenants take root");
    }
    let most: usize =
        std::fs::read_to_string("/proc/sys/fs/inotify/max_user_instances").unwrap().trim().parse().unwrap();
    if most > 200 {
        return skip(34, &format!("this machine has {most} inotify instances for each user"));
    }
    let app = TestApp::with(&own_users(34)).await;
    let ada = app.user("ada").await;
    ada.note("x").await;
    app.put_to_sleep(&ada.id);
    let place = tempfile::tempdir().unwrap();
    std::fs::set_permissions(place.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let file = place.path().join("watched");
    std::fs::write(&file, "").unwrap();
    std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    let crowd = Crowd::of(most + 4, owner(&app, &ada.id), &file);
    eventually("all of her inotify instances are taken", async || {
        let has = |child: &Child| {
            let open = std::fs::read_dir(format!("/proc/{}/fd", child.id())).into_iter().flatten().flatten();
            let mut links = open.filter_map(|entry| std::fs::read_link(entry.path()).ok());
            links.any(|link| link.to_string_lossy().contains("inotify"))
        };
        (crowd.0.iter().filter(|child| has(child)).count() >= most).then_some(())
    })
    .await;
    assert_eq!(ada.titles().await, ["x"]);
    assert_eq!(write(&ada, "y").await, 200);
    assert_eq!(app.tenant(&ada.id)["restarts"], 0);
}
