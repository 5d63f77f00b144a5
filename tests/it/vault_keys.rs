//! What seals users' secrets: a start without it is refused, and replacing it survives a kill at any moment.

use std::os::unix::fs::PermissionsExt;

use pocketfleet::store::Store;
use pocketfleet::store::sqlite::ControlDatabase;
use reqwest::Method;
use serde_json::Value;
use serde_json::json;

use crate::support::TestApp;
use crate::support::User;
use crate::support::eventually;

const VAULT: &str = "/api/v1/vault";

async fn store(user: &User, secret: &str) -> String {
    let body = json!({"service": "http", "secret": secret});
    let answer = user.request(Method::PUT, VAULT).json(&body).send().await.unwrap();
    assert!(answer.status().is_success());
    answer.json::<Value>().await.unwrap()["key_id"].as_str().unwrap().to_owned()
}

async fn revealed(user: &User, id: &str) -> String {
    let answer = user.post(&format!("{VAULT}/{id}/reveal"), json!({})).await;
    let status = answer.status();
    let body: Value = answer.json().await.unwrap();
    assert_eq!(status, 200, "{body}");
    body["secret"].as_str().unwrap().to_owned()
}

async fn contents(app: &TestApp) -> Vec<(String, Vec<u8>)> {
    let database = ControlDatabase::open(&app.data().join("control.db")).unwrap();
    let entries = database.list("").await.unwrap();
    database.close().await;
    entries.into_iter().map(|entry| (entry.key.to_string(), entry.value.to_vec())).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_without_the_right_key_is_refused_and_writes_nothing() {
    let mut app = TestApp::start().await;
    let ada = app.user("ada").await;
    let id = store(&ada, "planted-of-ada").await;
    let file = app.data().join("vault.key");
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(app.log().contains("vault's master key") && app.log().contains("vault.key"), "said plainly");
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", app.pid())).unwrap();
    assert!(limits.lines().any(|line| line.starts_with("Max core file size") && line.contains(" 0 ")), "{limits}");
    assert!(app.terminate().success());
    let (good, before) = (std::fs::read(&file).unwrap(), contents(&app).await);
    let refused = async |app: &mut TestApp, words: &[&str]| {
        let seen = app.log().len();
        app.spawn();
        assert!(!app.ended().success());
        let log = app.log();
        for word in words {
            assert!(log[seen..].contains(word), "no {word:?} in {}", &log[seen..]);
        }
        assert!(!log.contains("planted") && !log[seen..].contains("panicked"));
        assert_eq!(contents(app).await, before, "something was written");
    };
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
    refused(&mut app, &["mode 0644", "chmod 600"]).await;
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    std::fs::write(&file, "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=").unwrap();
    refused(&mut app, &["not random"]).await;
    std::fs::write(&file, "").unwrap();
    refused(&mut app, &["is empty", "put it back from its backup"]).await;
    std::fs::write(&file, "vD3qJg1vJ3yq0l8i4kY6c2x9mQh0TnZbW5uRr7sEoPA=").unwrap();
    refused(&mut app, &["master key", "give the right one"]).await;
    std::fs::remove_file(&file).unwrap();
    refused(&mut app, &["master key", "put it back from its backup"]).await;
    assert!(!file.exists());
    std::fs::write(&file, good).unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    app.launch().await;
    assert_eq!(revealed(&ada.at(&app), &id).await, "planted-of-ada");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotation_that_was_killed_goes_on_and_every_secret_opens_at_every_moment() {
    let mut app = TestApp::with("vault.reveals_per_minute = 6000\nvault.reveal_max_age = \"1h\"\n").await;
    app.expect_log("rotation");
    let mut users = Vec::new();
    for at in 0..8 {
        let user = app.user(&format!("user{at}")).await;
        let id = store(&user, &format!("planted-of-{at}")).await;
        users.push((user, id));
    }
    let file = app.data().join("vault.key");
    let original = std::fs::read(&file).unwrap();
    app.kill();
    let all_open = async |app: &TestApp| {
        for (at, (user, id)) in users.iter().enumerate() {
            assert_eq!(revealed(&user.at(app), id).await, format!("planted-of-{at}"));
        }
    };
    // After acknowledged writes a kill loses nothing.
    app.launch().await;
    all_open(&app).await;
    assert!(app.terminate().success());
    for (step, keys) in [
        ("vault.rotate.begun", 2),
        ("vault.rotate.rewrapped:4", 3),
        ("vault.rotate.rewrapped_all", 4),
        ("vault.rotate.filed", 5),
    ] {
        app.arm(step);
        app.launch().await;
        all_open(&app).await;
        let rotation = app.cli(&["vault", "rotate-master"]);
        assert!(!rotation.status.success(), "{step}: {}", String::from_utf8_lossy(&rotation.stdout));
        assert!(!app.ended().success(), "killed at {step}");
        app.launch().await;
        all_open(&app).await;
        let status = eventually(step, async || {
            let status = app.cli_json(&["vault", "status"]);
            (status["rotation"]["phase"] == "settled").then_some(status)
        })
        .await;
        all_open(&app).await;
        let shown: Vec<_> = status["keys"].as_array().unwrap().iter().map(|key| key["state"].clone()).collect();
        assert_eq!(shown.len(), keys, "{step}: {status}");
        assert_eq!(
            (&shown[keys - 1], shown.iter().filter(|state| **state == "retired").count()),
            (&json!("primary"), keys - 1)
        );
        assert_eq!(status["keys"][keys - 1]["tenants"], 8, "{status}");
        assert!(app.terminate().success());
    }
    assert_ne!(std::fs::read(&file).unwrap(), original);
    app.launch().await;
    let done = app.cli(&["vault", "rotate-master"]);
    let text = String::from_utf8_lossy(&done.stdout).into_owned() + &String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success() && text.contains("8/8 data keys"), "{text}");
    all_open(&app).await;
    assert_eq!(app.cli_json(&["audit", "verify"])["intact"], true);
    assert!(!app.log().contains("planted"));
}
