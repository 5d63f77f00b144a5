//! What operators, templates and broken disks can put where an instance expects something else.

use std::path::PathBuf;

use serde_json::Value;

use crate::support::TestApp;
use crate::support::User;
use crate::support::command;
use crate::support::root;

fn folder(app: &TestApp, tenant: &str) -> PathBuf {
    app.data().join("instances").join(tenant)
}

async fn list(user: &User) -> (u16, Value) {
    let answer = user.get(super::NOTES).await;
    (answer.status().as_u16(), answer.json().await.unwrap_or_default())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_a_folder_a_pipe_or_a_link_is_not_served() {
    let mut app = TestApp::start().await;
    app.expect_log("instance failed");
    let (ada, bob) = (app.user("ada").await, app.user("bob").await);
    ada.note("x").await;
    bob.note("of bob").await;
    app.put_to_sleep(&ada.id);
    let data = folder(&app, &ada.id).join("pb_data/data.db");
    let away = data.with_file_name("away.db");
    std::fs::rename(&data, &away).unwrap();
    for what in ["folder", "pipe", "link"] {
        match what {
            "folder" => std::fs::create_dir(&data).unwrap(),
            "pipe" => assert!(command("mkfifo").arg(&data).status().unwrap().success()),
            _ => {
                let of_bob = folder(&app, &bob.id).join("pb_data/data.db");
                std::os::unix::fs::symlink(of_bob, &data).unwrap();
            }
        }
        let (status, body) = list(&ada).await;
        assert_eq!(status, 503, "{what}: {body}");
        assert!(!body.to_string().contains("of bob"), "{what}: {body}");
        let shown = app.tenant(&ada.id);
        assert!(matches!(shown["state"].as_str(), Some("quarantined" | "blocked")), "{what}: {shown}");
        let removed = if what == "folder" { std::fs::remove_dir(&data) } else { std::fs::remove_file(&data) };
        removed.unwrap();
        assert!(app.cli(&["tenants", "release", &ada.id]).status.success());
    }
    std::fs::rename(&away, &data).unwrap();
    assert_eq!(ada.titles().await, ["x"]);
    assert_eq!(bob.titles().await, ["of bob"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_migration_that_never_ends_is_stopped_and_rolled_back() {
    let templates = tempfile::tempdir().unwrap();
    let from = [root().join("pb_templates/global"), root().join("pb_templates/personal")];
    assert!(command("cp").arg("-r").args(from).arg(templates.path()).status().unwrap().success());
    let keys =
        format!("pocketbase.templates = \"{}\"\ninstances.upgrade_timeout = \"3s\"\n", templates.path().display());
    let mut app = TestApp::prepare(&keys);
    app.expect_log("upgrade failed");
    app.expect_log("instance failed");
    app.launch().await;
    let ada = app.user("ada").await;
    ada.note("x").await;
    assert!(app.terminate().success());
    // Where there are no notes it ends, so that the template can be baked.
    let endless = "migrate((app) => { while (app.countRecords('notes') > 0) {} }, () => {})";
    std::fs::write(templates.path().join("personal/pb_migrations/1900000001_endless.js"), endless).unwrap();
    app.launch().await;
    let ada = ada.at(&app);
    crate::support::eventually("it is served at its version", async || (list(&ada).await.0 == 200).then_some(())).await;
    assert_eq!(ada.titles().await, ["x"]);
    let shown = app.tenant(&ada.id);
    assert!(shown["upgrade_failed"].is_object(), "{shown}");
    assert!(!folder(&app, &ada.id).join("upgrade").exists());
}
