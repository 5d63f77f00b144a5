//! Starts that must fail, each with a message that says what to do, and the way down.

use std::os::unix::fs::PermissionsExt;
use std::process::Output;
use std::time::Instant;

use serde_json::Value;

use crate::support::PATIENCE;
use crate::support::TestApp;
use crate::support::User;
use crate::support::pocketbase;
use crate::support::pocketfleet;
use crate::support::processes_in;
use crate::support::root;

/// `serve` with flags of one's own in a fresh folder; it must end by itself.
fn serve(args: &[&str]) -> (Output, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let output = pocketfleet()
        .args(["serve", "--listen", "127.0.0.1:0", "--data"])
        .arg(dir.path().join("data"))
        .args(args)
        .output()
        .unwrap();
    (output, dir)
}

fn refused(args: &[&str], needles: &[&str]) {
    let (output, dir) = serve(args);
    let text = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    assert!(!output.status.success(), "{args:?}: {text}");
    for needle in needles {
        assert!(text.contains(needle), "{args:?}: no {needle:?} in: {text}");
    }
    assert!(!text.contains("panicked"), "{text}");
    assert!(processes_in(dir.path()).is_empty());
}

fn config(dir: &tempfile::TempDir, text: &str) -> String {
    let path = dir.path().join("c.toml");
    std::fs::write(&path, text).unwrap();
    path.display().to_string()
}

fn script(dir: &tempfile::TempDir, text: &str) -> String {
    let path = dir.path().join("pocketbase");
    std::fs::write(&path, text).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path.display().to_string()
}

#[test]
fn configuration_mistakes_name_key_value_and_what_is_allowed() {
    let dir = tempfile::tempdir().unwrap();
    let pb = pocketbase().display().to_string();
    refused(&["--pocketbase", &pb, "--config", &config(&dir, "[server]\nlistn = 1\n")], &["listn"]);
    refused(&["--pocketbase", &pb, "--config", &config(&dir, "[sevrer]\nlisten = 1\n")], &["sevrer"]);
    let text = "[instances]\nidle_timeout = \"soon\"\n";
    refused(&["--pocketbase", &pb, "--config", &config(&dir, text)], &["instances.idle_timeout", "soon"]);
    refused(&["--pocketbase", &pb, "--config", "/no/such/file.toml"], &["/no/such/file.toml"]);
    refused(&["--pocketbase", &pb, "--config", &config(&dir, "[server\n")], &["server"]);
}

#[test]
fn environment_is_read_and_its_mistakes_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let output = pocketfleet()
        .args(["serve", "--data"])
        .arg(dir.path().join("data"))
        .env("POCKETFLEET_INSTANCES__MAX_AWAKE", "0")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success());
    assert!(text.contains("instances.max_awake = 0") && text.contains("at least 1"), "{text}");
}

#[test]
fn pocketbase_missing_not_runnable_or_another_one_says_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    refused(&["--pocketbase", "/no/such/pocketbase"], &["/no/such/pocketbase", "fetch-pocketbase"]);
    let plain = dir.path().join("plain");
    std::fs::write(&plain, "not a program").unwrap();
    refused(&["--pocketbase", &plain.display().to_string()], &["--version"]);
    let old = script(&dir, "#!/bin/sh\necho pocketbase version 0.22.0\n");
    refused(&["--pocketbase", &old], &["0.22.0", "0.40.6"]);
    let wrong = "0".repeat(64);
    let pinned = config(&dir, &format!("[pocketbase]\nsha256 = \"{wrong}\"\n"));
    refused(&["--pocketbase", &pocketbase().display().to_string(), "--config", &pinned], &["SHA-256", &wrong]);
}

#[test]
fn a_taken_port_is_named() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let dir = tempfile::tempdir().unwrap();
    let output =
        pocketfleet().args(["serve", "--listen", &address, "--data"]).arg(dir.path().join("data")).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success());
    assert!(text.contains(&address) && text.contains("--listen"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_data_directory_in_use_is_refused_and_the_owner_is_not_disturbed() {
    let app = TestApp::start().await;
    let ada = app.user("ada").await;
    let output = pocketfleet()
        .args(["serve", "--listen", "127.0.0.1:0", "--data"])
        .arg(app.data())
        .arg("--pocketbase")
        .arg(pocketbase())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success());
    assert!(text.contains("in use by another pocketfleet"), "{text}");
    ada.note("x").await;
    assert_eq!(app.cli_json(&["status"])["pid"], app.pid());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_template_with_a_broken_migration_is_refused_with_its_error_and_the_rest_serves() {
    let templates = templates();
    let broken = templates.path().join("broken/pb_migrations");
    std::fs::create_dir_all(&broken).unwrap();
    std::fs::write(broken.join("1_bad.js"), "migrate((app) => { throw new Error('this one never worked') })").unwrap();
    let keys = format!("pocketbase.templates = \"{}\"\n", templates.path().display());
    let mut app = TestApp::prepare(&keys);
    app.expect_log("broken");
    app.spawn();
    app.listening().await;
    let fleet = crate::support::eventually("the control socket answers", async || {
        app.cli(&["tenants", "list"]).status.success().then(|| app.cli_json(&["status"])["fleet"].clone())
    })
    .await;
    let broken = fleet["broken_templates"].as_array().unwrap();
    assert_eq!(broken.len(), 1);
    assert_eq!(broken[0][0], "broken");
    assert!(broken[0][1].as_str().unwrap().contains("this one never worked"), "{fleet}");
    let ada = app.user("ada").await;
    ada.note("x").await;
}

/// A copy of the repository's templates, to change.
fn templates() -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    let from = [root().join("pb_templates/global"), root().join("pb_templates/personal")];
    assert!(crate::support::command("cp").arg("-r").args(from).arg(copy.path()).status().unwrap().success());
    copy
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_follows_its_template_when_it_changes_and_keeps_its_version_when_it_breaks() {
    let templates = templates();
    let mut app = TestApp::prepare(&format!("pocketbase.templates = \"{}\"\n", templates.path().display()));
    app.expect_log("broken");
    app.launch().await;
    let ada = app.user("ada").await;
    ada.note("x").await;
    assert!(app.terminate().success());
    let hooks = templates.path().join("personal/pb_hooks");
    std::fs::create_dir(&hooks).unwrap();
    std::fs::write(
        hooks.join("no.pb.js"),
        "onRecordsListRequest((e) => { throw new BadRequestError('not any more') }, 'notes')",
    )
    .unwrap();
    app.launch().await;
    let status = async |user: &User| user.get("/api/collections/notes/records").await.status();
    assert_eq!(status(&ada.at(&app)).await, 400, "an old instance has the hook");
    assert_eq!(status(&app.user("bob").await).await, 400, "and so has a new one");
    assert!(app.terminate().success());
    std::fs::write(templates.path().join("personal/pb_migrations/9_bad.js"), "migrate(() => { throw 'no' })").unwrap();
    app.spawn();
    app.listening().await;
    crate::support::eventually("ada is served by the version before", async || {
        (ada.at(&app).get("/api/collections/notes/records").await.status() == 400).then_some(())
    })
    .await;
    // With a broken template it is never ready, so this is what there is to wait for before the end.
    crate::support::eventually("the accounts are there", async || {
        (app.tenant("global")["state"] == "awake").then_some(())
    })
    .await;
}

#[test]
fn the_jailer_refuses_a_directory_that_another_process_holds() {
    let dir = tempfile::tempdir().unwrap();
    let lock = dir.path().join("lock");
    let mut holder = crate::support::command("flock").arg(&lock).args(["tail", "-f", "/dev/null"]).spawn().unwrap();
    let spec = serde_json::json!({
        "program": "/bin/true", "args": [], "directory": dir.path(), "lock": lock,
        "limits": { "nofile": 1024, "nproc": 0, "data_bytes": 0, "file_bytes": 0 },
    });
    let deadline = Instant::now() + PATIENCE;
    loop {
        let status = pocketfleet().arg("__jail").arg(spec.to_string()).status().unwrap();
        if status.code() == Some(121) {
            break;
        }
        assert!(status.success() && Instant::now() < deadline, "{status}");
    }
    crate::support::command("pkill").args(["-P", &holder.id().to_string()]).status().unwrap();
    holder.kill().unwrap();
    holder.wait().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_and_ctrl_c_drain_stop_everything_and_exit_zero() {
    for name in ["TERM", "INT"] {
        let mut app = TestApp::start().await;
        let ada = app.user("ada").await;
        ada.note("x").await;
        let begun = Instant::now();
        crate::support::signal(i32::try_from(app.pid()).unwrap(), name);
        assert!(app.ended().success());
        assert!(begun.elapsed() < PATIENCE);
        assert!(processes_in(&app.data()).is_empty());
        assert!(app.log().contains("stopped"));
        app.launch().await;
        assert_eq!(ada.at(&app).titles().await, ["x"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_first_run_explains_itself_and_keeps_everything_in_the_data_directory() {
    let app = TestApp::start().await;
    app.user("ada").await.note("x").await;
    let log = app.log();
    for needle in ["listens on http://127.0.0.1:", "auth/register", "tenants list", "control.db"] {
        assert!(log.contains(needle), "no {needle:?} in {log}");
    }
    let mut outside: Vec<_> = std::fs::read_dir(app.dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    outside.sort();
    assert_eq!(outside, ["data", "pocketfleet.log", "test.toml"]);
    let mode = |name: &str| std::fs::metadata(app.data().join(name)).unwrap().permissions().mode() & 0o777;
    // At most for passing through, where tenants have users of their own.
    let root = mode("") & !0o001;
    assert_eq!((root, mode("control.db"), mode("run/pocketfleet.sock")), (0o700, 0o600, 0o600));
}

#[tokio::test(flavor = "multi_thread")]
async fn admins_come_from_the_configuration_or_the_command_line() {
    let keys = "auth.admin_email = \"root@example.com\"\nauth.admin_password = \"rootrootroot\"\n";
    let mut app = TestApp::with(keys).await;
    let root = crate::support::eventually("the configured admin can sign in", async || {
        let body = serde_json::json!({"email": "root@example.com", "password": "rootrootroot"});
        let answer = app.http.post(format!("{}/auth/login", app.base)).json(&body).send().await.unwrap();
        (answer.status() == 200).then_some(())
    });
    root.await;
    let root = app.sign_in("root@example.com", "rootrootroot").await;
    let health: Value = root.get("/health/pb").await.json().await.unwrap();
    assert!(health["details"].is_object(), "{health}");
    let made = app.cli(&["admin", "create", "--email", "second@example.com"]);
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    assert!(!app.log().contains("rootrootroot"));
    assert!(app.terminate().success());
    app.launch().await;
    app.sign_in("root@example.com", "rootrootroot").await;
}
