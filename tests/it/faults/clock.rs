//! The wall clock jumps: pocketfleet is told another time than it is, by libfaketime, which leaves the monotonic clock
//! alone. Instances are static programs and keep the real time.

use std::path::PathBuf;
use std::time::Duration;

use reqwest::Method;
use serde_json::Value;
use serde_json::json;

use super::list;
use super::pid;
use super::skip;
use super::write;
use crate::support::TestApp;
use crate::support::User;
use crate::support::eventually;
use crate::support::runs;
use crate::support::signal;

/// The library, where Debian and its like put it.
fn library() -> Option<PathBuf> {
    let found = std::fs::read_dir("/usr/lib").ok()?.flatten();
    found.map(|entry| entry.path().join("faketime/libfaketimeMT.so.1")).find(|path| path.is_file())
}

async fn put_secret(user: &User, label: &str) -> u16 {
    let body = json!({"service": "http", "label": label, "secret": "a-secret-of-ada", "verify": false});
    user.request(Method::PUT, "/api/v1/vault").json(&body).send().await.unwrap().status().as_u16()
}

#[tokio::test(flavor = "multi_thread")]
async fn fault_23_a_clock_that_jumps_moves_no_timer_and_no_order() {
    let Some(library) = library() else {
        return skip(23, "libfaketime is not installed (Debian: apt-get install libfaketime)");
    };
    let keys = "instances.idle_timeout = \"1h\"\ninstances.backoff_base = \"100ms\"\n";
    let mut app = TestApp::prepare(keys);
    for expected in ["instance failed", "the instance broke off", "request failed"] {
        app.expect_log(expected);
    }
    let clock = app.dir.path().join("clock");
    // In one step: a file that is empty for a moment would be another time.
    let set = |shift: &str| {
        let next = clock.with_extension("next");
        std::fs::write(&next, format!("{shift}\n")).unwrap();
        std::fs::rename(next, &clock).unwrap();
    };
    set("+0");
    app.environment.extend([
        ("LD_PRELOAD", library.display().to_string()),
        ("FAKETIME_TIMESTAMP_FILE", clock.display().to_string()),
        ("FAKETIME_NO_CACHE", "1".to_owned()),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
        ("FAKETIME_DONT_RESET", "1".to_owned()),
    ]);
    app.launch().await;
    let (ada, bob) = (app.user("ada").await, app.user("bob").await);
    ada.note("x").await;
    bob.note("y").await;
    let before = (pid(&app, &ada.id).unwrap(), pid(&app, &bob.id));

    // A quarter ahead: the session is over, and that is all.
    set("+90d");
    eventually("the session is over", async || (list(&ada).await.0 == 401).then_some(())).await;
    for user in [&ada, &bob] {
        let shown = app.tenant(&user.id);
        assert_eq!((&shown["state"], &shown["restarts"]), (&json!("awake"), &json!(0)), "{shown}");
    }
    assert_eq!((pid(&app, &ada.id).unwrap(), pid(&app, &bob.id)), before, "nobody was put to sleep");
    // A restart after a crash waits for the time that it should, and not for a quarter.
    signal(before.0, "KILL");
    eventually("it is started again", async || pid(&app, &ada.id).filter(|new| *new != before.0 && runs(*new))).await;
    assert_eq!(app.get("/health").await.status(), 200);

    // And back: nothing waits until the quarter is over.
    set("+1d");
    eventually("the session goes on", async || (list(&ada).await.0 == 200).then_some(())).await;
    assert_eq!(put_secret(&ada, "tomorrow").await, 201);
    set("+0");
    eventually("it is today", async || {
        let made = put_secret(&ada, "today").await;
        assert!(made < 300, "{made}");
        let last = entries(&app).last()?.1.clone();
        (last < entries(&app).iter().map(|(_, time)| time.clone()).max()?).then_some(())
    })
    .await;
    assert_eq!(app.cli_json(&["audit", "verify"])["intact"], true);
    let numbers: Vec<u64> = entries(&app).into_iter().map(|(number, _)| number).collect();
    assert!(numbers.is_sorted(), "the order is that of the numbers, whatever the times: {numbers:?}");
    assert_eq!(list(&ada).await.0, 200);
    assert_eq!(write(&bob, "z").await, 200);
    assert_eq!(pid(&app, &bob.id), before.1);
    signal(pid(&app, &ada.id).unwrap(), "KILL");
    eventually("timers go on", async || {
        let call = ada.request(Method::GET, super::NOTES).timeout(Duration::from_secs(30)).send().await;
        call.is_ok_and(|answer| answer.status() == 200).then_some(())
    })
    .await;
}

/// Number and time of the entries of the audit log, oldest first.
fn entries(app: &TestApp) -> Vec<(u64, String)> {
    let exported = app.cli(&["audit", "export"]);
    let text = String::from_utf8(exported.stdout).unwrap();
    text.lines().map(|line| entry(&serde_json::from_str(line).unwrap())).collect()
}

fn entry(item: &Value) -> (u64, String) {
    (item["seq"].as_u64().unwrap_or_else(|| panic!("{item}")), item["at"].as_str().unwrap().to_owned())
}
