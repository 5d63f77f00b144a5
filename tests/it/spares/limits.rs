//! Clients before spares, and a template in which there can be none.

use serde_json::Value;
use serde_json::json;

use super::count;
use super::folders;
use super::full;
use super::pids;
use crate::support::TestApp;
use crate::support::command;
use crate::support::eventually;
use crate::support::root;

#[tokio::test(flavor = "multi_thread")]
async fn clients_come_before_spares_and_an_evicted_one_is_still_good() {
    let app = TestApp::with("instances.spares = 2\ninstances.max_awake = 4\n").await;
    full(&app, 2).await;
    let ada = app.user("ada").await;
    ada.note("x").await;
    full(&app, 2).await;
    let mut places = Vec::new();
    for place in ["one", "two", "three"] {
        let made = ada.post("/api/v1/tenants", json!({"name": place, "slug": place})).await;
        assert_eq!(made.status(), 201);
        let made: Value = made.json().await.unwrap();
        places.push(made["id"].as_str().unwrap().to_owned());
        assert_eq!(ada.get(&format!("/t/{place}/api/collections/notes/records")).await.status(), 200);
    }
    assert_eq!(app.tenant(&ada.id)["state"], "awake", "before anybody else, those that nobody has");
    assert_eq!((count(&app, "awake"), count(&app, "asleep")), (0, 2));

    // One that sleeps is somebody's as well.
    let spares: Vec<_> =
        folders(&app).into_iter().filter(|id| !app.cli(&["tenants", "show", id]).status.success()).collect();
    assert_eq!(spares.len(), 2);
    let bob = app.user("bob").await;
    assert!(spares.contains(&bob.id));
    bob.note("mine").await;
    assert_eq!(app.tenant(&bob.id)["epoch"], 2);
    for place in &places {
        app.put_to_sleep(place);
    }
    app.put_to_sleep(&bob.id);
    eventually("a spare has room again", async || (count(&app, "awake") >= 1).then_some(())).await;
    assert!(pids(&app).len() <= 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_spare_outlives_the_idle_time_and_its_tenant_does_not() {
    let app = TestApp::with("instances.spares = 1\ninstances.idle_timeout = \"500ms\"\n").await;
    full(&app, 1).await;
    let ada = app.user("ada").await;
    ada.note("x").await;
    full(&app, 1).await;
    let spare = folders(&app).into_iter().find(|id| *id != ada.id).unwrap();
    let pid = pids(&app)[&spare];
    eventually("ada sleeps", async || (app.tenant(&ada.id)["state"] == "asleep").then_some(())).await;
    let bob = app.user("bob").await;
    eventually("bob sleeps", async || (app.tenant(&bob.id)["state"] == "asleep").then_some(())).await;
    assert_eq!((bob.id, app.log().contains("instance failed")), (spare, false));
    assert!(pid > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owner_who_could_not_be_let_in_at_once_is_let_in_by_the_first_request() {
    let mut app = TestApp::with("instances.spares = 1\n").await;
    app.expect_log("in step");
    full(&app, 1).await;
    let spare = folders(&app).pop_first().unwrap();
    let data = app.data().join("instances").join(&spare).join("pb_data/data.db");
    let database = rusqlite::Connection::open(data).unwrap();
    database.execute_batch("BEGIN IMMEDIATE").unwrap();
    let ada = app.user("ada").await;
    assert_eq!(ada.id, spare);
    assert!(app.log().contains("bring the rows of an instance's members in step"), "{}", app.log());
    database.execute_batch("ROLLBACK").unwrap();
    drop(database);
    ada.note("mine").await;
    assert_eq!(app.tenant(&ada.id)["epoch"], 1, "by the process that was there");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_template_with_a_rule_of_its_own_has_no_spares_and_accounts_are_made_as_ever() {
    let copy = tempfile::tempdir().unwrap();
    let from = [root().join("pb_templates/global"), root().join("pb_templates/personal")];
    assert!(command("cp").arg("-r").args(from).arg(copy.path()).status().unwrap().success());
    let own = "migrate((app) => {\n const users = app.findCollectionByNameOrId('users')\n \
               users.createRule = \"@request.body.role:isset = false && @request.body.id = ''\"\n app.save(users)\n}, () => {})";
    std::fs::write(copy.path().join("global/pb_migrations/1900000001_rule.js"), own).unwrap();
    let keys = format!("instances.spares = 1\npocketbase.templates = \"{}\"\n", copy.path().display());
    let mut app = TestApp::with(&keys).await;
    app.expect_log("instances.spares has no effect");
    eventually("it says so", async || app.log().contains("instances.spares has no effect").then_some(())).await;
    let ada = app.user("ada").await;
    ada.note("x").await;
    assert_eq!(folders(&app).len(), 1);
}
