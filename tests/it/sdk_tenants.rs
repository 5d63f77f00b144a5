//! The stock JavaScript SDK, unmodified: at the addresses of tenants, in a sign-in window, and through sleep, crash and
//! restart.

use std::net::TcpListener;

use reqwest::StatusCode;
use serde_json::json;

use crate::support::TestApp;
use crate::support::User;
use crate::support::command;
use crate::support::eventually;
use crate::support::node::Node;
use crate::support::node::run_tests;
use crate::support::oidc::CLIENT_ID;
use crate::support::oidc::CLIENT_SECRET;
use crate::support::oidc::Oidc;
use crate::support::root;
use crate::support::signal;

const SECRET: &str = "migrate((app) => {
  const notes = app.findCollectionByNameOrId('notes')
  notes.fields.add(new FileField({ name: 'secret', maxSelect: 1, maxSize: 1000000, protected: true }))
  app.save(notes)
}, (app) => {})";

/// With the shipped templates, and in one of them one more migration and line of the manifest.
async fn start(keys: &str, template: &str, migration: &str, line: &str) -> TestApp {
    let mut app = TestApp::prepare(keys);
    let folder = app.dir.path().join("pb_templates");
    assert!(command("cp").arg("-r").arg(root().join("pb_templates")).arg(&folder).status().unwrap().success());
    std::fs::write(folder.join(template).join("pb_migrations/1900000001_more.js"), migration).unwrap();
    let manifest = folder.join(template).join("template.toml");
    let text = std::fs::read_to_string(&manifest).unwrap_or_default();
    std::fs::write(manifest, format!("{text}{line}\n")).unwrap();
    app.add_keys(&format!("pocketbase.templates = \"{}\"\n", folder.display()));
    app.launch().await;
    app
}

#[tokio::test(flavor = "multi_thread")]
async fn stock_sdk_works_at_tenants_addresses_by_path_and_by_host() {
    let app = start("server.domain = \"fleet.example\"\n", "workspace", SECRET, "").await;
    run_tests(&app, "workspaces.test.mjs", Vec::new()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn stock_sdk_signs_in_through_another_services_window() {
    let oidc = Oidc::start().await;
    oidc.person("ada", "ada@example.com");
    let base = &oidc.base;
    let migration = format!(
        "migrate((app) => {{
          const users = app.findCollectionByNameOrId('users')
          users.oauth2.enabled = true
          users.oauth2.providers = [{{ name: 'oidc', clientId: '{CLIENT_ID}', clientSecret: '{CLIENT_SECRET}', pkce: true,
            authURL: '{base}/authorize', tokenURL: '{base}/token', userInfoURL: '{base}/userinfo' }}]
          app.save(users)
        }}, (app) => {{}})"
    );
    // The app's own instance talks to the service.
    let line = format!("outbound = [\"{}\"]", base.trim_start_matches("http://"));
    let app = start(&oidc.keys(), "hosted", &migration, &line).await;
    app.configured().await;
    run_tests(&app, "oauth2.test.mjs", Vec::new()).await;
}

/// Waits until this many streams are bound to a tenant.
async fn bound(app: &TestApp, wanted: usize) {
    eventually("the streams are subscribed", async || {
        let metrics = app.get("/metrics").await.text().await.unwrap();
        let count = |state: &str| {
            let name = format!("pocketfleet_realtime_streams{{state=\"{state}\"}} ");
            metrics.lines().find_map(|line| line.strip_prefix(&*name)?.parse::<usize>().ok()).unwrap_or_default()
        };
        (count("attached") + count("parked") == wanted).then_some(())
    })
    .await;
}

/// Writes as another device of the same user, as soon as that is possible.
async fn write(writer: &User, title: &str) {
    eventually("a write succeeds", async || {
        let answer = writer.post("/api/collections/notes/records", json!({"title": title, "author": writer.id})).await;
        (answer.status() == StatusCode::OK).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn stock_sdk_hears_of_a_write_once_across_sleep_and_crash() {
    let mut app = TestApp::start().await;
    app.expect_log("instance failed");
    // A write that meets the crash is answered 502, which is logged.
    app.expect_log("request failed");
    let ada = app.user("ada").await;
    write(&ada, "before").await;
    let node = Node::listening(&ada).await;
    let writer = app.sign_in(&ada.email, &ada.password).await;
    app.put_to_sleep(&ada.id);
    write(&writer, "asleep").await;
    assert_eq!(node.until("asleep").await, ["asleep"]);

    let pid = app.tenant(&ada.id)["pid"].as_i64().unwrap();
    signal(i32::try_from(pid).unwrap(), "KILL");
    eventually("the crash is noticed", async || (app.tenant(&ada.id)["pid"] != pid).then_some(())).await;
    write(&writer, "crashed").await;
    assert_eq!(node.until("crashed").await, ["asleep", "crashed"]);
    write(&writer, "end").await;
    assert_eq!(node.until("end").await, ["asleep", "crashed", "end"]);
    assert_eq!(node.connects(), 1, "its stream was never cut");
}

#[tokio::test(flavor = "multi_thread")]
async fn stock_sdk_connects_again_by_itself_after_a_restart_and_hears_of_a_write_once() {
    // Every restart has the same address, as behind a name.
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut app = TestApp::with(&format!("server.listen = \"127.0.0.1:{port}\"\n")).await;
    let ada = app.user("ada").await;
    let team = json!({"name": "Team", "slug": "team"});
    assert_eq!(ada.post("/api/v1/tenants", team).await.status(), 201);
    let there = User { base: format!("{}/t/team", app.base), ..ada.clone() };
    write(&ada, "before").await;
    let (node, member) = (Node::listening(&ada).await, Node::listening(&there).await);
    bound(&app, 2).await;
    for (round, title) in ["stopped", "killed"].into_iter().enumerate() {
        if title == "stopped" {
            assert!(app.terminate().success());
        } else {
            app.kill();
        }
        app.launch().await;
        for client in [&node, &member] {
            eventually("the SDK connects again", async || (client.connects() >= round + 2).then_some(())).await;
        }
        bound(&app, 2).await;
        write(&ada, title).await;
        write(&there, title).await;
        node.until(title).await;
        member.until(title).await;
    }
    write(&ada, "end").await;
    write(&there, "end").await;
    assert_eq!(node.until("end").await, ["stopped", "killed", "end"]);
    assert_eq!(member.until("end").await, ["stopped", "killed", "end"]);
}
