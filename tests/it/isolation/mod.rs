//! The escape suite: what code in a template's hooks can do to others, tried at every level of isolation that this
//! machine has, and compared with the table in `docs/isolation.md`.
//!
//! The table is written anew, with the columns that could be tried, when the environment has
//! `POCKETFLEET_WRITE_ISOLATION_TABLE=1`.

mod attempts;
mod greed;
mod machine;
mod network;
mod private;
mod status;
mod table;

use serde_json::Value;
use serde_json::json;

use crate::support::TestApp;
use crate::support::User;
use crate::support::eventually;
use crate::support::isolation::lacks_packet_filter;
use crate::support::root;

use attempts::Scene;

/// The route of it.
const HOOK_PATH: &str = "/api/escape";

/// A route that runs whatever it is sent: the worst hook there can be.
const HOOK: &str = r#"
routerAdd("POST", "/api/escape", (e) => {
    const body = e.requestInfo().body
    try {
        const run = new Function("at", body.code)
        return e.json(200, { worked: true, value: String(run(body.at)) })
    } catch (error) {
        return e.json(200, { worked: false, value: String(error) })
    }
})
"#;

/// pocketfleet with that hook in everybody's instance, at a level.
async fn start(level: u8, keys: &str) -> TestApp {
    start_with(level, keys, "").await
}

/// The same, with more in its template's manifest.
async fn start_with(level: u8, keys: &str, manifest: &str) -> TestApp {
    let mut app = TestApp::prepare(&format!("isolation.level = {level}\n{keys}"));
    let folder = app.dir.path().join("pb_templates");
    for part in ["global/pb_migrations", "personal/pb_migrations", "personal/pb_hooks"] {
        std::fs::create_dir_all(folder.join(part)).unwrap();
    }
    for part in ["global/pb_migrations", "personal/pb_migrations"] {
        for entry in std::fs::read_dir(root().join("pb_templates").join(part)).unwrap().flatten() {
            std::fs::copy(entry.path(), folder.join(part).join(entry.file_name())).unwrap();
        }
    }
    std::fs::write(folder.join("personal/pb_hooks/escape.pb.js"), HOOK).unwrap();
    std::fs::write(folder.join("personal/template.toml"), format!("routes = [\"/api/escape\"]\n{manifest}")).unwrap();
    app.add_keys(&format!("pocketbase.templates = \"{}\"\n", folder.display()));
    if level == 0 {
        app.expect_log("isolation level 0");
    }
    app.launch().await;
    app
}

/// Runs code in somebody's instance.
async fn run(who: &User, code: &str, at: &Value) -> (bool, String) {
    let answer = who.post("/api/escape", json!({ "code": code, "at": at })).await;
    let status = answer.status();
    let body: Value = answer.json().await.unwrap();
    assert_eq!(status, 200, "{code}: {body}");
    (body["worked"].as_bool().unwrap(), body["value"].as_str().unwrap().to_owned())
}

/// The levels that this machine and this user can show.
fn levels() -> Vec<u8> {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: levels 2 and 3 of 4, which take root");
        return vec![0, 1];
    }
    if let Some(why) = lacks_packet_filter() {
        eprintln!("skipped: level 3, 1 of 4: {why}");
        return vec![0, 1, 2];
    }
    vec![0, 1, 2, 3]
}

/// A port of this machine at which somebody answers everything with 204.
fn answering() -> u16 {
    // Ports that instances listen on cannot be listed, and some systems give those away.
    let listener = std::iter::repeat_with(|| std::net::TcpListener::bind("127.0.0.1:0").unwrap())
        .find(|listener| !(20_000..32_000).contains(&listener.local_addr().unwrap().port()))
        .unwrap();
    let port = listener.local_addr().unwrap().port();
    answer(listener);
    port
}

/// Answers everything with 204, from a thread that was started where this one is.
fn answer(listener: std::net::TcpListener) {
    std::thread::spawn(move || {
        use std::io::Read;
        use std::io::Write;
        for stream in listener.incoming().flatten() {
            let mut stream = stream;
            // Whoever only wants to see whether somebody is there says nothing.
            drop(stream.set_read_timeout(Some(std::time::Duration::from_secs(5))));
            // Who closes before it has read makes the other side forget what it got.
            let mut request = [0; 4096];
            drop(stream.read(&mut request));
            drop(stream.write_all(b"HTTP/1.0 204 No Content\r\n\r\n"));
        }
    });
}

/// What the program says it reached.
async fn reached(app: &TestApp) -> u8 {
    let report: Value = app.get("/health/pb").await.json().await.unwrap();
    u8::try_from(report["isolation_level"].as_u64().unwrap()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_code_can_do_to_others_is_what_the_documentation_says() {
    let (mut found, mut machine) = (table::Found::new(table::ESCAPES), table::Found::new(table::MACHINE));
    let (listed, mut absent) = (answering(), std::collections::BTreeSet::new());
    for level in levels() {
        let mut app = start_with(level, "", &format!("outbound = [\"{listed}\"]\n")).await;
        assert_eq!(reached(&app).await, level, "{}", app.log());
        let (mallory, ada) = (app.user("mallory").await, app.user("ada").await);
        ada.note("secret of ada").await;
        mallory.note("mine").await;
        let probes = machine::Scene::of(&app, level, &mallory, &ada, listed);
        machine::attempts(&probes, level, &mut absent, |name, is_open| match is_open {
            Some(is_open) => machine.note(name, level, is_open),
            None => drop(machine.row(name)),
        });
        let before = app.tenant(&ada.id)["pid"].clone();
        let scene = Scene::of(&app, &mallory, &ada, listed);
        for attempt in attempts::all() {
            let is_open = attempt.works(&scene, &mallory).await;
            found.note(attempt.name, level, is_open);
        }
        if level == 0 {
            // Where nothing is in the way the neighbour was killed.
            app.expect_log("instance failed");
            app.expect_log("request failed");
            eventually("ada is served again", async || {
                (ada.get("/api/collections/notes/records").await.status() == 200).then_some(())
            })
            .await;
        } else {
            assert_eq!(app.tenant(&ada.id)["pid"], before, "level {level}: nothing of it disturbed the neighbour");
        }
        assert_eq!(ada.titles().await, ["secret of ada"], "level {level}");
        // The one who tried goes on.
        mallory.note("after all of it").await;
        attempts::clean_up(&scene);
        // What is closed even without a sandbox is shown to work outside: a mistake in an attempt would close it as well.
        if level == 0 {
            let outside = attempts::Outside::start(&mallory).await;
            for name in found.never_open() {
                assert!(outside.shows(name, &scene).await, "no sandbox stops this one: {name}");
            }
        }
    }
    assert_eq!(machine.never_open(), Vec::<&str>::new(), "no sandbox stops these");
    found.compare_with_documentation();
    machine.compare_with_documentation();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_in_the_sandbox_still_backs_up_restores_and_restarts_itself() {
    let mut app = start(if levels().contains(&2) { 2 } else { 1 }, "").await;
    app.expect_log("request failed");
    let ada = app.user("ada").await;
    ada.note("kept").await;
    let (worked, said) = run(&ada, "$app.createBackup(new Context(), 'one.zip'); return 'made'", &Value::Null).await;
    assert!(worked, "{said}");
    ada.note("lost").await;
    // It replaces its data and becomes itself anew, so its answer may not come.
    let restore = json!({ "code": "$app.restoreBackup(new Context(), 'one.zip')", "at": null });
    drop(ada.request(reqwest::Method::POST, "/api/escape").json(&restore).send().await);
    eventually("the restored notes are served", async || {
        let answer = ada.get("/api/collections/notes/records").await;
        let body: Value = answer.json().await.ok()?;
        (body["totalItems"] == 1).then_some(())
    })
    .await;
    // And from a fresh start.
    app.put_to_sleep(&ada.id);
    assert_eq!(ada.titles().await, ["kept"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn ports_of_the_template_can_be_reached_and_others_not() {
    let (listed, other) = (answering(), answering());
    let app = start(1, "").await;
    let manifest = app.dir.path().join("pb_templates/personal/template.toml");
    let mut app = app;
    assert!(app.terminate().success());
    std::fs::write(manifest, format!("routes = [\"/api/escape\"]\noutbound = [\"localhost:{listed}\"]\n")).unwrap();
    app.launch().await;
    let ada = app.user("ada").await;
    let call = "return $http.send({ url: 'http://127.0.0.1:' + at, timeout: 10 }).statusCode";
    assert_eq!(run(&ada, call, &json!(listed)).await, (true, "204".to_owned()));
    let (worked, why) = run(&ada, call, &json!(other)).await;
    assert!(!worked && why.contains("permission denied"), "{why}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_adopted_process_in_another_sandbox_is_not_kept() {
    let mut app = start(1, "").await;
    let ada = app.user("ada").await;
    ada.note("before").await;
    let before = app.tenant(&ada.id)["pid"].clone();
    app.kill();
    app.launch().await;
    assert_eq!(app.tenant(&ada.id)["pid"], before, "the same sandbox: it goes on");
    app.kill();
    app.add_keys("instances.file_bytes = 1000000000\n");
    app.launch().await;
    let ada = ada.at(&app);
    assert_eq!(ada.titles().await, ["before"]);
    assert_ne!(app.tenant(&ada.id)["pid"], before);
    assert!(app.log().contains("it runs in another sandbox"), "{}", app.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn files_change_hands_with_the_level_and_a_start_below_what_is_required_is_refused() {
    use std::os::unix::fs::MetadataExt;
    if !levels().contains(&2) {
        eprintln!("skipped: giving files to other users takes root");
        return;
    }
    let mut app = start(2, "").await;
    let (ada, bob) = (app.user("ada").await, app.user("bob").await);
    ada.note("one").await;
    bob.note("two").await;
    let database = |who: &User| app_database(&app, who);
    let owner = |path: &std::path::Path| path.metadata().unwrap().uid();
    let (of_ada, of_bob) = (database(&ada), database(&bob));
    let (first, second) = (owner(&of_ada), owner(&of_bob));
    assert!(first > 1_900_000_000 && second > 1_900_000_000 && first != second, "{first} {second}");
    for path in [of_ada.parent().unwrap(), of_bob.parent().unwrap()] {
        assert_eq!(path.metadata().unwrap().mode() & 0o777, 0o700);
    }
    assert!(app.terminate().success());
    set_level(&app, 2, 1);
    app.launch().await;
    assert_eq!(ada.at(&app).titles().await, ["one"]);
    assert_eq!(owner(&of_ada), 0);
    assert!(app.terminate().success());
    set_level(&app, 1, 2);
    app.launch().await;
    assert_eq!(ada.at(&app).titles().await, ["one"]);
    assert_eq!(owner(&of_ada), first, "a number is a tenant's for good");
    assert!(app.terminate().success());

    // A folder above the data that other users cannot pass.
    std::fs::set_permissions(app.dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    app.add_keys("isolation.require = 2\n");
    app.spawn();
    assert!(!app.ended().success());
    let log = app.log();
    let advice = format!("chmod o+x {}", app.dir.path().display());
    assert!(log.contains("isolation.require = 2") && log.contains(&advice), "{log}");
    app.expect_log("isolation");
}

fn app_database(app: &TestApp, who: &User) -> std::path::PathBuf {
    app.data().join("instances").join(&who.id).join("pb_data/data.db")
}

fn set_level(app: &TestApp, from: u8, to: u8) {
    let path = app.dir.path().join("test.toml");
    let text = std::fs::read_to_string(&path).unwrap();
    let (from, to) = (format!("isolation.level = {from}\n"), format!("isolation.level = {to}\n"));
    assert!(text.contains(&from));
    std::fs::write(path, text.replace(&from, &to)).unwrap();
}
