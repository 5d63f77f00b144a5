//! Several versions of `PocketBase` side by side: each instance is served by the one it has, and goes to a newer one on a
//! copy that is put back when that does not work.

use std::os::unix::fs::MetadataExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::path::PathBuf;

use serde_json::Value;

use crate::support::TestApp;
use crate::support::User;
use crate::support::command;
use crate::support::eventually;
use crate::support::pocketbase;
use crate::support::root;
use crate::support::sse::Stream;

const OLD: &str = "0.39.11";
const NEW: &str = "0.40.6";

/// An older `PocketBase`, fetched when it is not there.
fn older() -> PathBuf {
    let path = root().join(".pocketbase").join(OLD).join("pocketbase");
    if !path.is_file() {
        assert!(command(root().join("scripts/fetch-pocketbase")).arg(OLD).status().unwrap().success());
    }
    path
}

/// Templates of the repository, of which `personal` can be kept at a version.
struct Templates(tempfile::TempDir);

impl Templates {
    fn new() -> Self {
        let copy = tempfile::tempdir().unwrap();
        let from = [root().join("pb_templates/global"), root().join("pb_templates/personal")];
        assert!(command("cp").arg("-r").args(from).arg(copy.path()).status().unwrap().success());
        Self(copy)
    }

    fn keep_personal_at(&self, version: Option<&str>) {
        let path = self.0.path().join("personal/template.toml");
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        let mut text: String = text
            .lines()
            .filter(|line| !line.starts_with("pocketbase"))
            .fold(String::new(), |text, line| text + line + "\n");
        if let Some(version) = version {
            text.insert_str(0, &format!("pocketbase = \"{version}\"\n"));
        }
        std::fs::write(path, text).unwrap();
    }

    fn keys(&self, others: &[&Path]) -> String {
        let others: Vec<String> = others.iter().map(|path| path.display().to_string()).collect();
        format!("pocketbase.templates = \"{}\"\npocketbase.binaries = {others:?}\n", self.0.path().display())
    }
}

/// Reloads, while this client sees its idle connections end.
async fn reload(app: &TestApp) {
    let data = app.data();
    let asking = tokio::task::spawn_blocking(move || {
        command(env!("CARGO_BIN_EXE_pocketfleet")).args(["reload", "--data"]).arg(data).output().unwrap()
    });
    let output = asking.await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Lists these binaries besides the newest.
fn list(app: &TestApp, others: &[&Path]) {
    let path = app.dir.path().join("test.toml");
    let keys = std::fs::read_to_string(&path).unwrap();
    let others: Vec<String> = others.iter().map(|path| path.display().to_string()).collect();
    let replaced = keys.lines().map(|line| match line.split_once(" = ") {
        Some(("pocketbase.binaries", _)) => format!("pocketbase.binaries = {others:?}\n"),
        _ => format!("{line}\n"),
    });
    std::fs::write(&path, replaced.collect::<String>()).unwrap();
}

fn version(app: &TestApp, id: &str) -> String {
    app.tenant(id)["pocketbase"].as_str().unwrap_or("none").to_owned()
}

/// The program that serves a tenant.
fn program(app: &TestApp, id: &str) -> PathBuf {
    std::fs::read_link(format!("/proc/{}/exe", app.tenant(id)["pid"])).unwrap()
}

#[tokio::test]
async fn an_instance_goes_to_a_newer_pocketbase_with_its_data_and_stays_where_it_is_pinned() {
    let templates = Templates::new();
    templates.keep_personal_at(Some("0.39"));
    let app = TestApp::with(&templates.keys(&[&older()])).await;
    let (ada, bea) = (app.user("ada").await, app.user("bea").await);
    for user in [&ada, &bea] {
        user.note("one").await;
        user.note("two").await;
        assert_eq!(version(&app, &user.id), OLD);
        assert!(program(&app, &user.id).ends_with(format!("{OLD}/pocketbase")));
    }
    assert_eq!(version(&app, "global"), NEW);
    let pinned = app.cli_json(&["pocketbase", "pin", &bea.id]);
    assert_eq!((pinned["pin"].as_str(), pinned["pocketbase"].as_str()), (Some(OLD), Some(OLD)));
    for wrong in ["0.39.x", "v0.39", "0", "0.39.11.1", "0.39.beta"] {
        let refused = app.cli(&["pocketbase", "pin", &bea.id, wrong]);
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(!refused.status.success() && said.contains("a version is like"), "{wrong}: {said}");
    }

    templates.keep_personal_at(None);
    let before = app.tenant(&ada.id)["pid"].clone();
    reload(&app).await;
    assert_eq!((app.tenant(&ada.id)["pid"].clone(), version(&app, &ada.id).as_str()), (before, OLD), "not while awake");
    app.put_to_sleep(&ada.id);
    app.put_to_sleep(&bea.id);
    let stream = Stream::subscribed(&app, &ada, &["notes/*"]).await;
    assert_eq!(ada.titles().await, ["one", "two"]);
    assert_eq!(version(&app, &ada.id), NEW);
    assert!(program(&app, &ada.id).ends_with(format!("{NEW}/pocketbase")));
    stream.ended().await;
    ada.note("three").await;
    // Where tenants have users of their own, the newer one is the same user, and so are its files.
    let owner = |path: String| std::fs::metadata(path).unwrap().uid();
    let process = format!("/proc/{}", app.tenant(&ada.id)["pid"]);
    let data = app.data().join("instances").join(&ada.id).join("pb_data");
    assert_eq!(owner(process), owner(data.join("data.db").display().to_string()));
    let report: Value = app.get("/health/pb").await.json().await.unwrap();
    assert_eq!(owner(data.display().to_string()) != owner("/proc/self".to_owned()), report["isolation_level"] == 2);
    assert_eq!(bea.titles().await, ["one", "two"]);
    assert_eq!(version(&app, &bea.id), OLD, "pinned");
    let list = app.cli_json(&["pocketbase", "list"]);
    assert_eq!(list["items"][1]["version"], OLD);
    assert_eq!((list["items"][0]["instances"].as_u64(), list["items"][1]["instances"].as_u64()), (Some(2), Some(1)));
    let admin = app.admin("root").await;
    let health: Value = admin.get("/health/pb").await.json().await.unwrap();
    assert_eq!(health["details"]["pocketbase"][OLD], 1, "{health}");
    assert!(
        app.http.get(format!("{}/health/pb", app.base)).send().await.unwrap().text().await.unwrap().find(OLD).is_none()
    );

    // What a newer version has had its hands on never goes back; who is new gets what the template says.
    app.cli_json(&["pocketbase", "unpin", &bea.id]);
    templates.keep_personal_at(Some(OLD));
    reload(&app).await;
    app.put_to_sleep(&ada.id);
    assert_eq!(ada.titles().await, ["one", "three", "two"]);
    assert_eq!(version(&app, &ada.id), NEW);
    let cid = app.user("cid").await;
    cid.note("new").await;
    assert_eq!(version(&app, &cid.id), OLD);
}

/// A `PocketBase` that says it is 0.41.0, and does what `cases` say before it is the real one.
fn impostor(app: &TestApp, cases: &str) -> PathBuf {
    let path = app.dir.path().join("impostor");
    let real = pocketbase().canonicalize().unwrap();
    let text = format!(
        "#!/bin/sh\ncase \"$*\" in\n--version) echo pocketbase version 0.41.0; exit;;\n{cases}\nesac\nexec {} \"$@\"\n",
        real.display()
    );
    let fresh = path.with_extension("new");
    std::fs::write(&fresh, text).unwrap();
    std::fs::set_permissions(&fresh, std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::rename(fresh, &path).unwrap();
    path
}

/// Answers 200 to everybody, whatever the token.
const STRANGER: &str = "
import http.server, sys
address = [a for a in sys.argv if a.startswith('--http=')][0].split('=')[1]
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = b'{\"code\":200,\"data\":{},\"message\":\"API is healthy.\"}'
        self.send_response(200)
        self.send_header('Content-Length', str(len(body)))
        self.end_headers()
        self.wfile.write(body)
host, port = address.rsplit(':', 1)
http.server.HTTPServer((host, int(port)), Handler).serve_forever()
";

#[tokio::test]
async fn a_version_that_exits_hangs_or_answers_strangers_is_rolled_back_with_the_reason_and_the_data_as_it_was() {
    let templates = Templates::new();
    // The sandbox runs no scripts.
    let keys = format!("{}instances.start_timeout = \"12s\"\nisolation.level = 0\n", templates.keys(&[]));
    let mut app = TestApp::prepare(&keys);
    app.expect_log("isolation level 0");
    app.launch().await;
    app.expect_log("an upgrade failed; the instance stays at its version");
    let mut users = Vec::new();
    for name in ["exits", "hangs", "strange"] {
        let user = app.user(name).await;
        user.note(name).await;
        app.put_to_sleep(&user.id);
        users.push((name, user));
    }
    let stranger = app.dir.path().join("stranger.py");
    std::fs::write(&stranger, STRANGER).unwrap();
    let serve = |user: &User| format!("serve*instances/{}/pb_data*", user.id);
    let cases = format!(
        "{}) echo no such luck; exit 3;;\n{}) exec sleep 1000;;\n{}) exec python3 {} \"$@\";;",
        serve(&users[0].1),
        serve(&users[1].1),
        serve(&users[2].1),
        stranger.display()
    );
    let path = impostor(&app, &cases);
    list(&app, &[&path]);
    reload(&app).await;
    for (name, user) in &users {
        assert_eq!(user.titles().await, [*name]);
        let shown = app.tenant(&user.id);
        assert_eq!(shown["pocketbase"], NEW, "{shown}");
        let reason = shown["upgrade_failed"]["reason"].as_str().unwrap();
        let needle = match *name {
            "exits" => "no such luck",
            "hangs" => "did not become healthy in time",
            _ => "no free address",
        };
        assert!(reason.contains(needle), "{name}: {reason}");
        user.note("after").await;
    }
    assert_eq!(app.cli_json(&["template", "list"])["items"].as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn a_rollout_of_a_version_ends_with_its_canary_and_reaches_everybody_once_it_works() {
    let templates = Templates::new();
    // The sandbox runs no scripts.
    let mut app = TestApp::prepare("isolation.level = 0\n");
    app.expect_log("isolation level 0");
    let bad = impostor(&app, "serve*instances/global/*) ;;\nserve*/instances/*) echo no such luck; exit 3;;");
    app.add_keys(&templates.keys(&[]));
    app.add_keys("pocketbase.upgrade = \"manual\"\n");
    app.launch().await;
    app.expect_log("an upgrade failed; the instance stays at its version");
    let mut users = Vec::new();
    for name in ["ada", "bea", "cid"] {
        let user = app.user(name).await;
        user.note(name).await;
        users.push((name, user));
    }
    list(&app, &[&bad]);
    reload(&app).await;
    let roll_out = |version: &str| app.cli(&["pocketbase", "rollout", version, "--canary", "1", "--yes", "--json"]);
    let unknown = roll_out("0.42.0");
    assert!(!unknown.status.success() && String::from_utf8_lossy(&unknown.stderr).contains("0.42.0"));
    let output = roll_out("0.41.0");
    assert!(!output.status.success());
    let told: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        (told["stage"].as_str(), told["failed"].as_u64(), told["upgraded"].as_u64()),
        (Some("failed"), Some(1), Some(0))
    );
    for (name, user) in &users {
        assert_eq!(user.titles().await, [*name]);
        assert_eq!(version(&app, &user.id), NEW);
    }
    impostor(&app, "");
    app.cli_json(&["template", "retry", "personal"]);
    let output = roll_out("0.41.0");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    for (name, user) in &users {
        assert_eq!(user.titles().await, [*name]);
        assert_eq!(version(&app, &user.id), "0.41.0");
    }
    assert_eq!(version(&app, "global"), "0.41.0", "after all others");
    assert_eq!(app.sign_in(&users[0].1.email, &users[0].1.password).await.id, users[0].1.id);
}

#[tokio::test]
async fn a_kill_at_any_step_of_an_upgrade_loses_nothing() {
    let templates = Templates::new();
    templates.keep_personal_at(Some(OLD));
    let mut app = TestApp::with(&templates.keys(&[&older()])).await;
    let steps = ["upgrade.copied", "upgrade.migrated", "upgrade.healthy", "upgrade.committed"];
    let mut users = Vec::new();
    for step in steps {
        let user = app.user(&step.replace("upgrade.", "")).await;
        user.note(step).await;
        app.put_to_sleep(&user.id);
        users.push(user);
    }
    templates.keep_personal_at(None);
    assert!(app.terminate().success());
    for (step, user) in steps.into_iter().zip(&users) {
        app.arm(step);
        app.launch().await;
        drop(user.at(&app).request(reqwest::Method::GET, "/api/collections/notes/records").send().await);
        assert!(!app.ended().success(), "{step}");
        app.launch().await;
        let user = user.at(&app);
        assert_eq!(user.titles().await, [step]);
        // Noted behind the back of whoever waits for the instance.
        eventually(step, async || (version(&app, &user.id) == NEW).then_some(())).await;
        user.note("after").await;
        assert!(!app.data().join("instances").join(&user.id).join("upgrade").exists(), "{step}");
        assert!(app.terminate().success());
    }
}

#[tokio::test]
async fn a_backup_is_tried_by_the_version_that_wrote_it_and_brings_that_version_back() {
    let (templates, store) = (Templates::new(), tempfile::tempdir().unwrap());
    templates.keep_personal_at(Some("0.39"));
    // The sandbox runs no scripts, and this one tells what it was run for.
    let keys = format!("isolation.level = 0\n{}", crate::backup::keys_of(store.path()));
    let mut app = TestApp::prepare(&keys);
    app.expect_log("isolation level 0");
    let (old, calls) = (app.dir.path().join("old"), app.dir.path().join("calls"));
    let text = format!("#!/bin/sh\necho \"$*\" >> {}\nexec {} \"$@\"\n", calls.display(), older().display());
    std::fs::write(&old, text).unwrap();
    std::fs::set_permissions(&old, std::fs::Permissions::from_mode(0o755)).unwrap();
    app.add_keys(&templates.keys(&[&old]));
    app.launch().await;
    let ada = app.user("ada").await;
    ada.note("old").await;
    let backup = || {
        let made = app.cli_json(&["backup", "create", &ada.id])["id"].as_str().unwrap().to_owned();
        let all = app.cli_json(&["backup", "list", &ada.id])["items"].as_array().unwrap().clone();
        let manifest = all.into_iter().find(|item| item["id"] == made.as_str()).unwrap();
        (made, manifest["pocketbase"].as_str().unwrap().to_owned())
    };
    let (id, of) = backup();
    let id = id.as_str();
    assert_eq!(of, OLD);
    templates.keep_personal_at(None);
    reload(&app).await;
    app.put_to_sleep(&ada.id);
    ada.note("new").await;
    assert_eq!(version(&app, &ada.id), NEW);
    assert_eq!(backup().1, NEW);

    let tried = || {
        let calls = std::fs::read_to_string(&calls).unwrap();
        calls.lines().filter(|line| line.contains("serve") && line.contains("/staging/backup-")).count()
    };
    assert_eq!(tried(), 0);
    assert_eq!(app.cli_json(&["backup", "verify", id])["booted"], true);
    assert_eq!(tried(), 1, "by the older one");
    let restored = app.cli_json(&["backup", "restore", id, "--yes"]);
    assert_eq!(tried(), 2);
    // It comes back as it was, and goes to the newer version as any other.
    let note = |folder: PathBuf| std::fs::read_to_string(folder.join("pocketbase")).unwrap_or_default();
    let folder = app.data().join("instances").join(&ada.id);
    assert_eq!(note(folder), OLD);
    assert!(app.data().join("replaced").join(restored["kept"].as_str().unwrap()).join("pb_data/data.db").is_file());
    assert_eq!(ada.titles().await, ["old"]);
    eventually("noted", async || (version(&app, &ada.id) == NEW).then_some(())).await;
}

#[tokio::test]
async fn an_instance_that_a_newer_version_has_served_is_not_given_back_to_its_own() {
    let templates = Templates::new();
    templates.keep_personal_at(Some(OLD));
    let mut app = TestApp::with(&format!("{}pocketbase.upgrade = \"manual\"\n", templates.keys(&[&older()]))).await;
    app.expect_log("not adopted");
    let ada = app.user("ada").await;
    ada.note("one").await;
    let pid = app.tenant(&ada.id)["pid"].clone();
    // One of another version than the newest is adopted like any other, after a crash too.
    app.kill();
    app.launch().await;
    let ada = ada.at(&app);
    assert_eq!((app.tenant(&ada.id)["pid"].clone(), ada.titles().await), (pid.clone(), vec!["one".to_owned()]));
    templates.keep_personal_at(None);
    list(&app, &[]);
    reload(&app).await;
    assert_eq!(ada.titles().await, ["one"]);
    assert_ne!(app.tenant(&ada.id)["pid"], pid, "its binary is not listed any more");
    assert!(program(&app, &ada.id).ends_with(format!("{NEW}/pocketbase")));
    list(&app, &[&older()]);
    reload(&app).await;
    app.put_to_sleep(&ada.id);
    assert_eq!(ada.titles().await, ["one"]);
    assert!(program(&app, &ada.id).ends_with(format!("{NEW}/pocketbase")), "never back");
}

#[tokio::test]
async fn a_deleted_instance_comes_back_with_the_version_that_it_was_pinned_to_and_is_erased_like_any_other() {
    let templates = Templates::new();
    templates.keep_personal_at(Some("0.39"));
    let keys = "tenancy.keep_deleted = \"1h\"\ntenancy.sweep_interval = \"1s\"\n";
    let mut app = TestApp::with(&format!("{}{keys}", templates.keys(&[&older()]))).await;
    let (ada, bea) = (app.user("ada").await, app.user("bea").await);
    for user in [&ada, &bea] {
        user.note("kept").await;
        app.cli_json(&["pocketbase", "pin", &user.id]);
    }
    // Whoever is new gets the newest from now on.
    templates.keep_personal_at(None);
    for user in [&ada, &bea] {
        let path = format!("/api/collections/users/records/{}", user.id);
        assert_eq!(user.request(reqwest::Method::DELETE, &path).send().await.unwrap().status(), 204);
        assert!(!app.data().join("instances").join(&user.id).exists());
    }
    // While nobody knows of it but the tombstone, pocketfleet begins anew, once in order and once not.
    assert!(app.terminate().success());
    app.launch().await;
    app.kill();
    app.launch().await;
    assert!(app.cli(&["tenants", "undelete", &ada.id]).status.success());
    let ada = app.sign_in(&ada.email, &ada.password).await;
    assert_eq!(ada.titles().await, ["kept"]);
    assert!(program(&app, &ada.id).ends_with(format!("{OLD}/pocketbase")));
    let shown = app.tenant(&ada.id);
    assert_eq!((shown["pocketbase"].as_str(), shown["pocketbase_pin"].as_str()), (Some(OLD), Some(OLD)), "{shown}");
    ada.note("written after").await;
    app.put_to_sleep(&ada.id);
    assert_eq!(ada.titles().await, ["kept", "written after"]);
    assert_eq!(version(&app, &ada.id), OLD, "pinned");
    // And once nothing holds it any more it goes on as any other.
    app.cli_json(&["pocketbase", "unpin", &ada.id]);
    app.put_to_sleep(&ada.id);
    assert_eq!(ada.titles().await, ["kept", "written after"]);
    eventually("noted", async || (version(&app, &ada.id) == NEW).then_some(())).await;

    // The other one is erased: no folder, no record and no pin stay.
    assert!(app.cli(&["tenants", "delete", &bea.id, "--now"]).status.success());
    eventually("it is erased", async || {
        let all = app.cli_json(&["erasure", "list"]);
        all["items"].as_array().unwrap().iter().any(|one| one["erasure"]["tenant"] == bea.id.as_str()).then_some(())
    })
    .await;
    crate::deletion::assert_nothing_left(&app, &bea, &[]);
}
