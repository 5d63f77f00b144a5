//! Spares and ends of pocketfleet: in order, by force, at every step, and with other settings afterwards.

use serde_json::json;

use super::account;
use super::folders;
use super::full;
use super::pids;
use super::signed_in;
use super::tenants;
use crate::support::TestApp;
use crate::support::command;
use crate::support::eventually;
use crate::support::root;

/// What is written into an instance is the same after a restart on another port.
const KEYS: &str = "server.public_url = \"https://fleet.example.com\"\n";

async fn restart(app: &mut TestApp) {
    assert!(app.terminate().success());
    app.launch().await;
}

fn aside(app: &TestApp) -> usize {
    std::fs::read_dir(app.data().join("deleted")).unwrap().count()
}

/// Nothing is left but tenants and so many spares.
async fn tidy(app: &TestApp, spares: u64) {
    full(app, spares).await;
    let wanted = tenants(app) + usize::try_from(spares).unwrap();
    eventually("no folder is left over", async || (folders(app).len() == wanted && aside(app) == 0).then_some(()))
        .await;
    assert_eq!(app.cli_json(&["tenants", "orphans"])["items"], json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_keeps_spares_and_a_smaller_number_removes_the_surplus() {
    let mut app = TestApp::with(&format!("{KEYS}instances.spares = 3\n")).await;
    full(&app, 3).await;
    let before = folders(&app);
    restart(&mut app).await;
    full(&app, 3).await;
    assert_eq!(folders(&app), before);
    // By force: the processes go on, and are taken over.
    let running = pids(&app);
    app.kill();
    app.launch().await;
    full(&app, 3).await;
    assert_eq!(pids(&app), running);
    let ada = app.user("ada").await;
    ada.note("x").await;
    assert_eq!(app.tenant(&ada.id)["pid"], running[&ada.id]);

    assert!(app.terminate().success());
    app.change_key("instances.spares = 3", "instances.spares = 1");
    app.launch().await;
    tidy(&app, 1).await;
    assert_eq!(pids(&app).len(), 1, "ada sleeps");
    assert_eq!(ada.at(&app).titles().await, ["x"]);

    assert!(app.terminate().success());
    app.change_key("instances.spares = 1", "instances.spares = 0");
    app.launch().await;
    tidy(&app, 0).await;
    let bob = app.user("bob").await;
    bob.note("x").await;
    assert_eq!(folders(&app).len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_spare_of_another_template_is_replaced() {
    let copy = tempfile::tempdir().unwrap();
    let from = [root().join("pb_templates/global"), root().join("pb_templates/personal")];
    assert!(command("cp").arg("-r").args(from).arg(copy.path()).status().unwrap().success());
    let mut app =
        TestApp::with(&format!("{KEYS}instances.spares = 2\npocketbase.templates = \"{}\"\n", copy.path().display()))
            .await;
    full(&app, 2).await;
    let before = folders(&app);
    let add = "migrate((app) => {\n const notes = app.findCollectionByNameOrId('notes')\n \
               notes.fields.add(new TextField({ name: 'mood' }))\n app.save(notes)\n}, () => {})";
    std::fs::write(copy.path().join("personal/pb_migrations/1900000001_mood.js"), add).unwrap();
    restart(&mut app).await;
    eventually("others are there", async || folders(&app).is_disjoint(&before).then_some(())).await;
    tidy(&app, 2).await;
    let ada = app.user("ada").await;
    let made = ada.post("/api/collections/notes/records", json!({"title": "x", "mood": "fine"})).await;
    assert_eq!(made.json::<serde_json::Value>().await.unwrap()["mood"], "fine");
    assert_eq!(app.tenant(&ada.id)["epoch"], 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_at_any_step_of_the_making_leaves_nothing_half_made() {
    // The second time: the first is the global instance's.
    for step in ["spare.recorded", "instance.folder:2", "instance.provisioned:2", "instance.spawned:2"] {
        let mut app = TestApp::prepare(&format!("{KEYS}instances.spares = 1\n"));
        app.expect_log("stop a stray process");
        app.arm(step);
        app.spawn();
        assert!(!app.ended().success(), "{step}");
        app.launch().await;
        tidy(&app, 1).await;
        let ada = app.user("ada").await;
        ada.note("x").await;
        tidy(&app, 1).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_at_any_step_of_a_registration_leaves_a_whole_account_or_none() {
    for (step, is_made) in
        [("spare.taken", false), ("spare.account", true), ("spare.tenant", true), ("spare.enrolled", true)]
    {
        let mut app = TestApp::prepare(&format!("{KEYS}instances.spares = 1\n"));
        app.arm(step);
        app.launch().await;
        full(&app, 1).await;
        let before = pids(&app);
        let request = app.http.post(format!("{}/auth/register", app.base)).json(&account("ada"));
        assert!(request.send().await.is_err(), "{step}");
        assert!(!app.ended().success(), "{step}");
        app.launch().await;
        if !is_made {
            full(&app, 1).await;
            assert_eq!(pids(&app), before, "{step}: nobody has it");
        }
        let ada = if is_made { signed_in(&app, "ada").await } else { app.user("ada").await };
        ada.note(step).await;
        assert_eq!(ada.titles().await, [step]);
        assert_eq!(app.tenant(&ada.id)["pid"], before[&ada.id], "{step}: the process from before");
        tidy(&app, 1).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_at_any_step_of_a_removal_is_finished_by_the_next_start() {
    for step in ["spare.stopped", "spare.moved", "spare.removed"] {
        let mut app = TestApp::with(&format!("{KEYS}instances.spares = 1\n")).await;
        full(&app, 1).await;
        assert!(app.terminate().success());
        app.change_key("instances.spares = 1", "instances.spares = 0");
        // The global instance, if its start was cut.
        app.expect_log("stop a stray process");
        app.arm(step);
        app.spawn();
        assert!(!app.ended().success(), "{step}");
        app.launch().await;
        tidy(&app, 0).await;
    }
}
