//! What operators see and do: health, metrics, the command line, logs.

use serde_json::Value;

use crate::support::TestApp;
use crate::support::eventually;
use crate::support::pocketfleet;

#[tokio::test(flavor = "multi_thread")]
async fn health_readiness_and_metrics_tell_the_state() {
    let app = TestApp::start().await;
    let ada = app.user("ada").await;
    ada.note("x").await;
    ada.titles().await;
    let health: Value = app.get("/health").await.json().await.unwrap();
    assert_eq!(health["status"], "ok");
    assert_eq!(app.get("/ready").await.status(), 200);
    let fleet: Value = app.get("/health/pb").await.json().await.unwrap();
    assert_eq!(fleet["global"]["state"], "awake");
    assert_eq!(fleet["states"]["awake"], 1, "{fleet}");
    assert!(!fleet.to_string().contains(&ada.id), "strangers learn no names");
    let sockets: Value = app.get("/health/ws").await.json().await.unwrap();
    assert_eq!(sockets["connections"], 0);
    let metrics = app.get("/metrics").await;
    assert!(metrics.headers()["content-type"].to_str().unwrap().starts_with("application/openmetrics-text"));
    let metrics = metrics.text().await.unwrap();
    assert!(metrics.ends_with("# EOF\n"));
    for outcome in ["warm", "woken", "queued", "timed_out", "refused"] {
        let line = format!("pocketfleet_arrival_seconds_count{{outcome=\"{outcome}\"}}");
        assert!(metrics.contains(&line), "{outcome}: {metrics}");
    }
    assert!(metrics.contains("pocketfleet_arrival_seconds_count{outcome=\"woken\"} 1"), "{metrics}");
    assert!(metrics.contains("pocketfleet_instances{state=\"awake\"} 1"), "{metrics}");
    assert!(metrics.contains("pocketfleet_tenants 1"), "{metrics}");
}

#[tokio::test(flavor = "multi_thread")]
async fn readiness_says_no_while_the_global_instance_is_away() {
    // It stays away: a restart after a backoff may come at once, because the wait is random from nothing.
    let mut app = TestApp::with("instances.quarantine_failures = 0\n").await;
    app.expect_log("instance failed");
    // The sign-in below may be on its way when the instance is first known to be gone.
    app.expect_log("a call to the accounts service failed");
    let pid = i32::try_from(app.tenant("global")["pid"].as_i64().unwrap()).unwrap();
    crate::support::signal(pid, "KILL");
    let answer = eventually("not ready", async || {
        let answer = app.get("/ready").await;
        (answer.status() == 503).then_some(answer)
    })
    .await;
    let body: Value = answer.json().await.unwrap();
    assert!(body["reasons"][0].as_str().unwrap().contains("global"), "{body}");
    assert_eq!(app.get("/health").await.status(), 200);
    let login = serde_json::json!({"email": "a@example.com", "password": "correct horse"});
    let answer = app.http.post(format!("{}/auth/login", app.base)).json(&login).send().await.unwrap();
    assert_eq!(answer.status(), 503);
    assert!(answer.headers().contains_key("retry-after"));
    assert_eq!(answer.json::<Value>().await.unwrap()["error"]["code"], "ACCOUNTS_UNAVAILABLE");
}

#[tokio::test(flavor = "multi_thread")]
async fn command_line_lists_shows_and_acts() {
    let app = TestApp::start().await;
    let ada = app.user("ada").await;
    ada.note("x").await;
    let table = app.cli(&["tenants", "list"]);
    let table = String::from_utf8_lossy(&table.stdout).into_owned();
    assert!(table.contains(&ada.id) && table.contains("awake"), "{table}");
    let sleeping = app.cli_json(&["tenants", "list", "--state", "asleep"]);
    assert_eq!(sleeping["items"].as_array().unwrap().len(), 0, "{sleeping}");
    app.put_to_sleep(&ada.id);
    assert!(app.cli(&["tenants", "wake", &ada.id]).status.success());
    assert_eq!(app.tenant(&ada.id)["state"], "awake");
    assert!(app.cli(&["healthcheck"]).status.success());
    let unknown = app.cli(&["tenants", "show", "nobody"]);
    assert!(!unknown.status.success());
    assert!(String::from_utf8_lossy(&unknown.stderr).contains("no such tenant"));
    assert!(!app.cli(&["tenants", "sleep", "global"]).status.success(), "the global instance never sleeps");
}

#[test]
fn command_line_says_when_no_server_runs() {
    let dir = tempfile::tempdir().unwrap();
    for args in [&["tenants", "list"][..], &["healthcheck"], &["admin", "create", "--email", "a@example.com"]] {
        let output = pocketfleet().args(args).arg("--data").arg(dir.path()).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{args:?}");
        assert!(text.contains("no pocketfleet is running"), "{args:?}: {text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn doctor_checks_the_machine_and_says_what_to_do() {
    let app = TestApp::start().await;
    let report = app.cli(&["doctor", "--json"]);
    let report: Value = serde_json::from_slice(&report.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&report.stderr)));
    let text = report.to_string();
    for check in ["inotify", "file", "disk", "clock", "0.40.6"] {
        assert!(text.to_lowercase().contains(check), "{check}: {text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn instance_logs_are_shown_redacted_and_rotated() {
    let keys = "instances.log_bytes = 2000\ninstances.probe_interval = \"200ms\"\n";
    let app = TestApp::with(keys).await;
    let ada = app.user("ada").await;
    ada.note("x").await;
    let folder = app.data().join("instances").join(&ada.id).join("log");
    let token = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJpZCI6ImEifQ.c2lnbmF0dXJl";
    let mut log = std::fs::File::options().append(true).open(folder.join("pocketbase.log")).unwrap();
    std::io::Write::write_all(&mut log, format!("\u{1b}[1mopen {token} please\n").as_bytes()).unwrap();
    let shown = app.cli(&["tenants", "logs", &ada.id]);
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    assert!(shown.contains("open [redacted] please"), "{shown}");
    assert!(!shown.contains('\u{1b}'));
    std::io::Write::write_all(&mut log, "filler\n".repeat(500).as_bytes()).unwrap();
    eventually("rotation", async || folder.join("pocketbase.log.1").exists().then_some(())).await;
    ada.titles().await;
    assert!(std::fs::metadata(folder.join("pocketbase.log")).unwrap().len() < 2_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn welcome_and_api_description_are_served() {
    let app = TestApp::start().await;
    assert_eq!(app.get("/").await.status(), 200);
    let document: Value = app.get("/openapi.json").await.json().await.unwrap();
    assert!(document["openapi"].as_str().unwrap().starts_with("3.1"));
    let health: Value = app.get("/api/health").await.json().await.unwrap();
    assert_eq!(health["code"], 200, "PocketBase's own shape");
    let personal = app.get("/api/meetings").await;
    assert_eq!(personal.status(), 401);
    assert_eq!(personal.json::<Value>().await.unwrap()["error"]["code"], "UNAUTHORIZED");
    let nothing = app.get("/nothing/here").await;
    assert_eq!(nothing.status(), 404);
    assert_eq!(nothing.json::<Value>().await.unwrap()["error"]["code"], "NOT_FOUND");
}
