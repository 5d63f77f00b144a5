//! Apps as templates: a changed template reaches existing instances, on a copy that is put back when it fails.

use std::path::Path;
use std::path::PathBuf;

use serde_json::Value;
use serde_json::json;

use crate::support::TestApp;
use crate::support::User;
use crate::support::command;
use crate::support::eventually;
use crate::support::pocketbase;
use crate::support::pocketfleet;
use crate::support::processes_in;
use crate::support::root;
use crate::support::sse::Stream;

const ADD_FIELD: &str = "migrate((app) => {
  const notes = app.findCollectionByNameOrId('notes')
  notes.fields.add(new TextField({ name: 'mood' }))
  app.save(notes)
}, () => {})";

/// A copy of the repository's templates, to change.
struct Templates(tempfile::TempDir);

impl Templates {
    fn new() -> Self {
        let copy = tempfile::tempdir().unwrap();
        let from = [root().join("pb_templates/global"), root().join("pb_templates/personal")];
        assert!(command("cp").arg("-r").args(from).arg(copy.path()).status().unwrap().success());
        Self(copy)
    }

    fn keys(&self) -> String {
        format!("pocketbase.templates = \"{}\"\n", self.0.path().display())
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.0.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    fn remove(&self, path: &str) {
        std::fs::remove_file(self.0.path().join(path)).unwrap();
    }
}

/// Stops, changes nothing, starts again: templates are read at start.
async fn restart(app: &mut TestApp) {
    assert!(app.terminate().success());
    app.launch().await;
}

async fn create(user: &User, body: Value) -> Value {
    let answer = user.post("/api/collections/notes/records", body).await;
    let status = answer.status();
    let body: Value = answer.json().await.unwrap();
    assert_eq!(status, 200, "{body}");
    body
}

fn folder(app: &TestApp, id: &str) -> PathBuf {
    app.data().join("instances").join(id)
}

fn made_from(app: &TestApp, id: &str) -> String {
    std::fs::read_to_string(folder(app, id).join("template")).unwrap()
}

fn template(app: &TestApp, name: &str) -> Value {
    let list = app.cli_json(&["template", "list"]);
    list["items"].as_array().unwrap().iter().find(|item| item["name"] == name).unwrap().clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_at_wake_keeps_data_and_adds_the_field() {
    let templates = Templates::new();
    let mut app = TestApp::with(&templates.keys()).await;
    let ada = app.user("ada").await;
    ada.note("before").await;
    // A file, which the copy of the data only links.
    let body = "--b\r\nContent-Disposition: form-data; name=\"title\"\r\n\r\nwith file\r\n--b\r\n\
        Content-Disposition: form-data; name=\"attachments\"; filename=\"a.txt\"\r\n\r\npicture\r\n--b--\r\n";
    let request = ada.request(reqwest::Method::POST, "/api/collections/notes/records");
    let answer = request.header("content-type", "multipart/form-data; boundary=b").body(body).send().await.unwrap();
    let record: Value = answer.json().await.unwrap();
    let old = made_from(&app, &ada.id);
    eventually("the version is noted", async || (app.tenant(&ada.id)["version"] == old).then_some(())).await;
    templates.write("personal/pb_migrations/1900000001_mood.js", ADD_FIELD);
    templates.write(
        "personal/pb_hooks/m.pb.js",
        "onRecordCreateRequest((e) => { e.record.set('body', 'hook'); e.next() }, 'notes')",
    );
    restart(&mut app).await;
    let ada = ada.at(&app);
    assert_eq!(template(&app, "personal")["versions"][&old], 1, "nobody woke it yet");
    assert_eq!(ada.titles().await, ["before", "with file"]);
    let made = create(&ada, json!({"title": "after", "mood": "good"})).await;
    assert_eq!((&made["mood"], &made["body"]), (&json!("good"), &json!("hook")));
    let file =
        format!("/api/files/notes/{}/{}", record["id"].as_str().unwrap(), record["attachments"][0].as_str().unwrap());
    assert_eq!(ada.get(&file).await.text().await.unwrap(), "picture");
    let now = template(&app, "personal");
    let hash = now["hash"].as_str().unwrap();
    assert_eq!((now["versions"][hash].as_u64(), now["versions"][&old].as_u64()), (Some(1), None), "{now}");
    assert_eq!(made_from(&app, &ada.id), hash);
    assert!(!folder(&app, &ada.id).join("upgrade").exists());
    let table = String::from_utf8(app.cli(&["tenants", "list"]).stdout).unwrap();
    assert!(table.contains("VERSION") && table.contains(&hash[..8]), "{table}");
    // The next wake has nothing to do.
    app.put_to_sleep(&ada.id);
    ada.titles().await;
    assert_eq!(app.log().matches("upgraded an instance").count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_at_wake_makes_listeners_connect_anew() {
    let templates = Templates::new();
    let mut app = TestApp::with(&templates.keys()).await;
    let (ada, bob) = (app.user("ada").await, app.user("bob").await);
    ada.note("before").await;
    assert!(app.terminate().success());
    templates.write("personal/pb_migrations/1900000001_mood.js", ADD_FIELD);
    app.launch().await;
    let (ada, bob) = (ada.at(&app), bob.at(&app));
    let stale = Stream::subscribed(&app, &ada, &["notes/*"]).await;
    let other = Stream::subscribed(&app, &bob, &["notes/*"]).await;
    assert_eq!(app.tenant(&ada.id)["state"], "asleep");
    assert_eq!(ada.titles().await, ["before"]);
    stale.ended().await;
    let fresh = Stream::subscribed(&app, &ada, &["notes/*"]).await;
    app.put_to_sleep(&ada.id);
    create(&ada, json!({"title": "after", "mood": "good"})).await;
    assert_eq!(fresh.until("after").await, ["after"]);
    assert_eq!(fresh.events()[0].data["record"]["mood"], "good");
    bob.note("unmoved").await;
    assert_eq!(other.until("unmoved").await, ["unmoved"], "an instance that was made anew has nothing to follow");
}

/// A change that bakes well and fails in an instance that has data.
async fn rolls_back(path: &str, text: &str, needle: &str) {
    let templates = Templates::new();
    let mut app = TestApp::prepare(&templates.keys());
    app.expect_log("an upgrade failed");
    app.launch().await;
    let ada = app.user("ada").await;
    ada.note("precious").await;
    let old = made_from(&app, &ada.id);
    templates.write(path, text);
    templates.write("personal/pb_migrations/1900000001_mood.js", ADD_FIELD);
    restart(&mut app).await;
    let ada = ada.at(&app);
    assert_eq!(ada.titles().await, ["precious"], "the request that woke it is served");
    let made = create(&ada, json!({"title": "still", "mood": "good"})).await;
    assert_eq!(made["mood"], Value::Null, "the field of the first migration is gone with the copy");
    assert_eq!(made_from(&app, &ada.id), old);
    assert!(!folder(&app, &ada.id).join("upgrade").exists());
    let tenant = app.tenant(&ada.id);
    let reason = tenant["upgrade_failed"]["reason"].as_str().unwrap();
    assert!(reason.contains(needle), "{reason}");
    let table = String::from_utf8(app.cli(&["tenants", "list"]).stdout).unwrap();
    assert!(table.contains(&format!("{}!", &old[..8])), "{table}");
    app.put_to_sleep(&ada.id);
    ada.titles().await;
    assert_eq!(app.log().matches("an upgrade failed").count(), 1, "not tried again");
    assert_eq!(template(&app, "personal")["failed"].as_array().unwrap().len(), 1);
    // Until somebody says so.
    assert_eq!(app.cli_json(&["template", "retry", "personal"])["retried"], 1);
    app.put_to_sleep(&ada.id);
    assert_eq!(ada.titles().await, ["precious", "still"]);
    assert_eq!(app.log().matches("an upgrade failed").count(), 2);
    // Or the template changes again.
    templates.remove(path);
    restart(&mut app).await;
    let ada = ada.at(&app);
    assert_eq!(create(&ada, json!({"title": "new", "mood": "good"})).await["mood"], "good");
    assert_eq!(app.tenant(&ada.id)["upgrade_failed"], Value::Null);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failing_migration_is_rolled_back_marked_and_not_tried_again() {
    let text = "migrate((app) => {
      if (app.countRecords('notes') > 0) { throw new Error('too many notes') }
    }, () => {})";
    rolls_back("personal/pb_migrations/1900000002_bad.js", text, "too many notes").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hook_that_throws_at_load_is_rolled_back_with_the_migrations() {
    // A hook sees data at load through the file: golden directories have no note.
    let text =
        "onBootstrap((e) => { e.next(); if (e.app.countRecords('notes') > 0) { throw new Error('not with notes') } })";
    rolls_back("personal/pb_hooks/bad.pb.js", text, "not with notes").await;
}

/// Kills pocketfleet while the command line of the instance has `moment`, and starts it again.
async fn survives_a_kill(path: &str, text: &str, moment: &str) {
    let templates = Templates::new();
    let mut app = TestApp::prepare(&templates.keys());
    app.expect_log("stray process");
    app.launch().await;
    let ada = app.user("ada").await;
    ada.note("precious").await;
    assert!(app.terminate().success());
    templates.write("personal/pb_migrations/1900000001_mood.js", ADD_FIELD);
    templates.write(path, text);
    app.launch().await;
    let waiting = ada.at(&app);
    let path = "/api/collections/notes/records";
    let request = tokio::spawn(async move { waiting.request(reqwest::Method::GET, path).send().await });
    let data = folder(&app, &ada.id);
    let running = || processes_in(&data).iter().any(|(_, line)| line.contains("--dir=") && line.contains(moment));
    eventually("the moment has come", async || (data.join("upgrade/state.json").is_file() && running()).then_some(()))
        .await;
    app.kill();
    assert!(request.await.unwrap().is_err());
    assert!(data.join("upgrade/state.json").is_file());
    app.launch().await;
    let ada = ada.at(&app);
    assert_eq!(ada.titles().await, ["precious"]);
    let made = create(&ada, json!({"title": "after", "mood": "good"})).await;
    assert_eq!(made["mood"], "good", "tried again, and through");
    assert_eq!(processes_in(&data).len(), 1);
    assert!(!data.join("upgrade").exists());
    assert!(app.log().contains("rolled back an interrupted upgrade"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_of_pocketfleet_amid_a_migration_loses_nothing_and_never_makes_two_processes() {
    // Slow only where there is data, so that baking is not.
    let slow = "migrate((app) => {
      if (app.countRecords('notes') === 0) { return }
      const end = Date.now() + 4000
      while (Date.now() < end) {}
    }, () => {})";
    survives_a_kill("personal/pb_migrations/1900000002_slow.js", slow, " migrate up").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_of_pocketfleet_before_the_new_version_proved_itself_rolls_back_and_adopts_nobody() {
    let slow = "onBootstrap((e) => {
      e.next()
      if (e.app.countRecords('notes') === 0) { return }
      const end = Date.now() + 2000
      while (Date.now() < end) {}
    })";
    survives_a_kill("personal/pb_hooks/slow.pb.js", slow, "serve ").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_room_for_a_copy_the_instance_stays_at_its_version_and_is_served() {
    let templates = Templates::new();
    let mut app = TestApp::prepare(&templates.keys());
    app.expect_log("an upgrade failed");
    app.launch().await;
    let ada = app.user("ada").await;
    ada.note("x").await;
    templates.write("personal/pb_migrations/1900000001_mood.js", ADD_FIELD);
    // Where the copy would go is something else.
    std::fs::write(folder(&app, &ada.id).join("upgrade"), "in the way").unwrap();
    restart(&mut app).await;
    let ada = ada.at(&app);
    assert_eq!(ada.titles().await, ["x"]);
    assert_eq!(app.tenant(&ada.id)["upgrade_failed"]["outside"], true);
    std::fs::remove_file(folder(&app, &ada.id).join("upgrade")).unwrap();
    let progress = app.cli_json(&["template", "rollout", "personal", "--yes"]);
    assert_eq!((&progress["stage"], &progress["upgraded"]), (&json!("done"), &json!(1)), "{progress}");
    assert_eq!(create(&ada, json!({"title": "y", "mood": "good"})).await["mood"], "good");
}

async fn crowd(app: &TestApp, count: usize) -> Vec<User> {
    let mut users = Vec::new();
    for n in 0..count {
        let user = app.user(&format!("user{n}")).await;
        user.note("mine").await;
        users.push(user);
    }
    users
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollout_upgrades_everybody_and_lets_them_sleep_again() {
    let templates = Templates::new();
    let mut app = TestApp::with(&format!("{}pocketbase.upgrade = \"manual\"\n", templates.keys())).await;
    let users = crowd(&app, 12).await;
    templates.write("personal/pb_migrations/1900000001_mood.js", ADD_FIELD);
    restart(&mut app).await;
    let first = users[0].at(&app);
    assert_eq!(create(&first, json!({"title": "n", "mood": "x"})).await["mood"], Value::Null, "manual: not at wake");
    assert!(!app.cli(&["template", "rollout", "personal"]).status.success(), "without a terminal it wants --yes");
    let progress = app.cli_json(&["template", "rollout", "personal", "--yes", "--canary", "2", "--wave", "5"]);
    assert_eq!((&progress["stage"], &progress["upgraded"]), (&json!("done"), &json!(12)), "{progress}");
    let now = template(&app, "personal");
    assert_eq!(now["versions"][now["hash"].as_str().unwrap()], 12, "{now}");
    assert_eq!((&now["tenants"], &now["unknown"], &now["kinds"]), (&json!(12), &json!(0), &json!(["personal"])));
    assert_eq!(app.tenant(&users[5].id)["state"], "asleep");
    assert_eq!(create(&first, json!({"title": "n", "mood": "x"})).await["mood"], "x");
    assert_eq!(users[7].at(&app).titles().await, ["mine"]);
    let again = app.cli_json(&["template", "rollout", "personal", "--yes"]);
    assert_eq!((&again["stage"], &again["total"]), (&json!("done"), &json!(0)), "nothing is left to do");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollout_ends_when_its_canary_fails() {
    let templates = Templates::new();
    let mut app = TestApp::prepare(&format!("{}pocketbase.upgrade = \"manual\"\n", templates.keys()));
    app.expect_log("an upgrade failed");
    app.launch().await;
    let users = crowd(&app, 4).await;
    let text = "migrate((app) => { if (app.countRecords('notes') > 0) { throw new Error('not here') } }, () => {})";
    templates.write("personal/pb_migrations/1900000002_bad.js", text);
    restart(&mut app).await;
    let output = app.cli(&["template", "rollout", "personal", "--yes", "--json"]);
    assert!(!output.status.success());
    let progress: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        (&progress["stage"], &progress["failed"], &progress["upgraded"]),
        (&json!("failed"), &json!(1), &json!(0))
    );
    assert!(progress["exceptions"][0]["reason"].as_str().unwrap().contains("not here"), "{progress}");
    assert_eq!(app.log().matches("an upgrade failed").count(), 1, "nobody else was touched");
    assert_eq!(users[3].at(&app).titles().await, ["mine"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_global_instance_is_upgraded_at_start_and_survives_a_bad_one() {
    let templates = Templates::new();
    let mut app = TestApp::prepare(&templates.keys());
    app.expect_log("an upgrade failed");
    app.launch().await;
    let ada = app.user("ada").await;
    let field = "migrate((app) => {
      const users = app.findCollectionByNameOrId('users')
      users.fields.add(new TextField({ name: 'motto' }))
      app.save(users)
    }, () => {})";
    templates.write("global/pb_migrations/1900000001_motto.js", field);
    restart(&mut app).await;
    let path = format!("/api/collections/users/records/{}", ada.id);
    let answer: Value = ada.at(&app).get(&path).await.json().await.unwrap();
    assert_eq!(answer["motto"], "", "{answer}");
    let bad =
        "migrate((app) => { if (app.countRecords('users') > 0) { throw new Error('no users please') } }, () => {})";
    templates.write("global/pb_migrations/1900000002_bad.js", bad);
    restart(&mut app).await;
    app.sign_in(&ada.email, &ada.password).await;
    assert!(app.tenant("global")["upgrade_failed"]["reason"].as_str().unwrap().contains("no users please"));
    assert!(!app.cli(&["template", "rollout", "global", "--yes"]).status.success());
}

/// `template check` of a folder with these files; exit code and report.
fn check(files: &[(&str, &str)]) -> (bool, Value) {
    let dir = tempfile::tempdir().unwrap();
    let template = dir.path().join("app");
    std::fs::create_dir(&template).unwrap();
    for (path, text) in files {
        let path = template.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    run_check(&template)
}

fn run_check(template: &Path) -> (bool, Value) {
    let output = pocketfleet()
        .args(["template", "check", "--json"])
        .arg(template)
        .env("POCKETFLEET_POCKETBASE__BINARY", pocketbase())
        .output()
        .unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    (output.status.success(), serde_json::from_str(&out).unwrap_or_else(|error| panic!("{error}: {out}{err}")))
}

#[test]
fn check_takes_the_templates_of_the_repository() {
    for name in ["global", "personal"] {
        let (ok, report) = run_check(&root().join("pb_templates").join(name));
        assert!(ok, "{report}");
        assert!(report["bytes"].as_u64().unwrap() > 0);
    }
    let (_, report) = run_check(&root().join("pb_templates/personal"));
    assert_eq!((&report["migrations"], &report["findings"]), (&json!(3), &json!([])), "{report}");
    let names: Vec<_> = report["collections"].as_array().unwrap().iter().map(|found| &found["name"]).collect();
    assert!(names.contains(&&json!("notes")) && names.contains(&&json!("meetings")), "{names:?}");
}

#[test]
fn check_names_each_kind_of_mistake_in_pocketbases_own_words() {
    let keep = ("pb_migrations/.keep", "");
    for (files, needle) in [
        (vec![("README.md", "")], "no folder pb_migrations, pb_hooks or pb_public"),
        (vec![keep, ("template.toml", "colour = 'blue'")], "unknown field"),
        (vec![keep, ("template.toml", "routes = ['/api/sql']")], "/api/sql"),
        (
            vec![("pb_migrations/1_a.js", "migrate(() => { throw new Error('no such luck') }, () => {})")],
            "no such luck",
        ),
        (vec![("pb_hooks/a.pb.js", "nonsense(")], "SyntaxError"),
        (
            vec![(
                "pb_migrations/1_a.js",
                "migrate((app) => { app.delete(app.findCollectionByNameOrId('users')) }, () => {})",
            )],
            "no collection `users`",
        ),
    ] {
        let (ok, report) = check(&files);
        assert!(!ok, "{needle}: {report}");
        let errors: Vec<&Value> =
            report["findings"].as_array().unwrap().iter().filter(|finding| finding["level"] == "error").collect();
        assert!(errors.iter().any(|error| error["message"].as_str().unwrap().contains(needle)), "{needle}: {report}");
    }
}

#[test]
fn check_warns_of_what_will_surprise() {
    let migration = "migrate((app) => {
      app.save(new Collection({ type: 'base', name: 'open', listRule: '' }))
      app.save(new Collection({ type: 'auth', name: 'staff' }))
    }, () => {})";
    let hook = "routerAdd('GET', '/api/hello', (e) => e.string(200, 'hi'))\ncronAdd('x', '* * * * *', () => {})";
    let (ok, report) =
        check(&[("pb_migrations/1_a.js", migration), ("pb_hooks/a.pb.js", hook), ("pb_public/index.html", "hi")]);
    assert!(ok, "{report}");
    let text = report["findings"].to_string();
    for needle in ["`open` is open", "`staff` is an auth", "update rows", "delete rows", "/api/hello", "cron job"] {
        assert!(text.contains(needle), "{needle}: {text}");
    }
    assert_eq!((&report["hooks"], &report["public_files"]), (&json!(["a.pb.js"]), &json!(1)));
}

/// The fenced blocks of a language in a page, as lines.
fn fenced(page: &str, language: &str) -> Vec<String> {
    let mut lines = Vec::new();
    let mut inside = false;
    for line in page.lines() {
        match line.strip_prefix("```") {
            Some(rest) => inside = !inside && rest == language,
            None if inside => lines.push(line.to_owned()),
            None => {}
        }
    }
    lines
}

/// What a person has who follows `docs/bring-your-app.md`: a folder, a shell, and the programs on the path.
struct Desk {
    work: tempfile::TempDir,
    app: TestApp,
    token: String,
}

impl Desk {
    fn run(&self, line: &str) -> String {
        let programs = self.work.path().join("bin");
        let path = format!("{}:/usr/local/bin:/usr/bin:/bin", programs.display());
        let output = command("sh")
            .args(["-ec", line])
            .current_dir(self.work.path())
            .env("PATH", path)
            .env("URL", &self.app.base)
            .env("TOKEN", &self.token)
            .env("POCKETFLEET_POCKETBASE__BINARY", pocketbase())
            .env("POCKETFLEET_STORAGE__PATH", self.app.data())
            .output()
            .unwrap();
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{line}: {out}{err}");
        out.into_owned()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_of_ones_own_works_by_following_the_page() {
    let page = std::fs::read_to_string(root().join("docs/bring-your-app.md")).unwrap();
    let work = tempfile::tempdir().unwrap();
    let at = |path: &str| work.path().join(path);
    std::fs::create_dir(at("bin")).unwrap();
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_pocketfleet"), at("bin/pocketfleet")).unwrap();
    std::os::unix::fs::symlink(pocketbase(), at("bin/pocketbase")).unwrap();
    std::os::unix::fs::symlink(root().join("examples"), at("examples")).unwrap();
    assert!(command("cp").arg("-r").arg(root().join("pb_templates")).arg(work.path()).status().unwrap().success());
    // The page's configuration file: a section, then its keys.
    let mut keys = format!("pocketbase.templates = \"{}\"\n", at("pb_templates").display());
    let mut section = String::new();
    for line in fenced(&page, "toml") {
        match line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            Some(name) => name.clone_into(&mut section),
            None => keys.extend([section.as_str(), ".", line.as_str(), "\n"]),
        }
    }
    let mut desk = Desk { app: TestApp::prepare(&keys), work, token: String::new() };
    let mut answer = Value::Null;
    for line in fenced(&page, "sh") {
        if line.starts_with("pocketfleet serve") {
            desk.app.launch().await;
            continue;
        }
        let out = desk.run(&line);
        if line.starts_with("curl") {
            answer = serde_json::from_str(&out).unwrap_or_else(|error| panic!("{line}: {error}: {out}"));
            assert!(answer["error"].is_null() && answer["status"].is_null(), "{line}: {answer}");
            if let Some(token) = answer["token"].as_str() {
                token.clone_into(&mut desk.token);
            }
        }
    }
    assert_eq!((&answer["message"], &answer["slug"]), (&json!("Hello World"), &json!("hello-world")), "the hook ran");
    let page = desk.app.get("/t/guestbook/").await;
    assert!(page.text().await.unwrap().contains("<h1>Guestbook</h1>"), "its page, to everybody");
    let traits = template(&desk.app, "guestbook");
    assert_eq!((&traits["routes"], &traits["has_public"]), (&json!(["/api/guestbook/*"]), &json!(true)), "{traits}");

    // Step 4, with a change of one's own.
    let migration = "migrate((app) => {
      const entries = app.findCollectionByNameOrId('entries')
      entries.fields.add(new TextField({ name: 'mood' }))
      app.save(entries)
    }, () => {})";
    std::fs::write(desk.work.path().join("pb_templates/guestbook/pb_migrations/1900000001_mood.js"), migration)
        .unwrap();
    restart(&mut desk.app).await;
    let list: Value =
        serde_json::from_str(&desk.run("curl $URL/api/collections/entries/records -H \"Authorization: $TOKEN\""))
            .unwrap();
    assert_eq!((&list["totalItems"], &list["items"][0]["mood"]), (&json!(1), &json!("")), "{list}");
}
