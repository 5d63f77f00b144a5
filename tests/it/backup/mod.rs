//! Backups from end to end: real instances that write, sleep and are put back, and a store that is looked into.

mod damage;
mod fleet;
mod owners;
mod restore;

use std::path::Path;
use std::path::PathBuf;

use reqwest::Method;
use reqwest::multipart;
use serde_json::Value;

use crate::support::TestApp;
use crate::support::User;
use crate::support::processes_in;

/// A pocketfleet with a folder for backups.
pub(crate) struct Bench {
    pub app: TestApp,
    pub store: tempfile::TempDir,
}

impl Bench {
    pub(crate) async fn start(keys: &str) -> Self {
        let store = tempfile::tempdir().unwrap();
        let app = TestApp::with(&format!("{}{keys}", keys_of(store.path()))).await;
        Self { app, store }
    }

    /// A backup of one tenant; its id.
    pub(crate) fn create(&self, tenant: &str) -> String {
        self.app.cli_json(&["backup", "create", tenant])["id"].as_str().unwrap().to_owned()
    }

    pub(crate) fn list(&self, tenant: &str) -> Vec<Value> {
        self.app.cli_json(&["backup", "list", tenant])["items"].as_array().unwrap().clone()
    }

    /// What the command line says when it refuses.
    pub(crate) fn refusal(&self, args: &[&str]) -> String {
        let output = self.app.cli(args);
        assert!(!output.status.success(), "{args:?}");
        String::from_utf8(output.stderr).unwrap()
    }

    /// Objects of the store whose path holds a text.
    pub(crate) fn objects(&self, part: &str) -> Vec<PathBuf> {
        let mut found = files_below(self.store.path());
        found.retain(|path| path.to_string_lossy().contains(part));
        found
    }
}

pub(crate) fn keys_of(store: &Path) -> String {
    format!("backup.store = \"dir:{}\"\nbackup.schedule = \"\"\nbackup.grace = \"0s\"\n", store.display())
}

pub(crate) fn files_below(root: &Path) -> Vec<PathBuf> {
    let (mut found, mut folders) = (Vec::new(), vec![root.to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_dir() { folders.push(entry.path()) } else { found.push(entry.path()) }
        }
    }
    found.sort();
    found
}

/// A note with a file; the path under which it is served.
pub(crate) async fn note_with_file(user: &User, title: &str, bytes: impl Into<Vec<u8>>) -> String {
    let part = multipart::Part::bytes(bytes.into()).file_name("file.bin");
    let form = multipart::Form::new().text("title", title.to_owned()).part("attachments", part);
    let answer = user.request(Method::POST, "/api/collections/notes/records").multipart(form).send().await.unwrap();
    let status = answer.status();
    let record: Value = answer.json().await.unwrap();
    assert_eq!(status, 200, "{record}");
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    format!("/api/files/notes/{}/{}", text(&record["id"]), text(&record["attachments"][0]))
}

pub(crate) fn state(app: &TestApp, tenant: &str) -> String {
    app.tenant(tenant)["state"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_of_an_instance_that_writes_holds_all_that_was_acknowledged_before() {
    let bench = Bench::start("").await;
    let ada = bench.app.user("ada").await;
    ada.note("before").await;
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let writer = {
        let ada = ada.clone();
        tokio::spawn(async move {
            let (mut titles, mut stopped) = (Vec::new(), stopped);
            for n in 0.. {
                if stopped.try_recv().is_ok() {
                    break;
                }
                let title = format!("note-{n:04}");
                note_with_file(&ada, &title, b"of a note").await;
                titles.push(title);
            }
            titles
        })
    };
    let app = &bench.app;
    crate::support::eventually("some notes", async || (ada.titles().await.len() > 5).then_some(())).await;
    let before = ada.titles().await;
    let created = tokio::task::block_in_place(|| app.cli_json(&["backup", "create", &ada.id]));
    assert_eq!((&created["missing"], &created["skipped"]), (&0.into(), &0.into()), "{created}");
    stop.send(()).unwrap();
    let written = writer.await.unwrap();
    assert!(written.len() > 5);

    let id = created["id"].as_str().unwrap();
    let verified = app.cli_json(&["backup", "verify", id]);
    assert_eq!(verified["booted"], true, "{verified}");
    app.cli_json(&["backup", "restore", id, "--yes"]);
    let restored = ada.titles().await;
    assert!(before.iter().all(|title| restored.contains(title)), "{before:?} {restored:?}");
    // Every file that a record names is there.
    let list: Value = ada.get("/api/collections/notes/records?perPage=500").await.json().await.unwrap();
    for item in list["items"].as_array().unwrap() {
        for name in item["attachments"].as_array().unwrap() {
            let path = format!("/api/files/notes/{}/{}", item["id"].as_str().unwrap(), name.as_str().unwrap());
            let answer = ada.get(&path).await;
            assert_eq!(answer.status(), 200, "{path}");
            assert_eq!(&answer.bytes().await.unwrap()[..], b"of a note");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sleeping_instance_stays_asleep_and_what_did_not_change_is_stored_once() {
    let bench = Bench::start("").await;
    let ada = bench.app.user("ada").await;
    note_with_file(&ada, "with a file", vec![7; 100_000]).await;
    bench.app.put_to_sleep(&ada.id);
    let folder = bench.app.data().join("instances").join(&ada.id);
    let before = files_below(&folder);
    let first = bench.app.cli_json(&["backup", "create", &ada.id]);
    assert_eq!(state(&bench.app, &ada.id), "asleep");
    assert!(processes_in(&folder).is_empty());
    assert_eq!(files_below(&folder), before, "nothing is left beside its data");
    let objects = bench.objects("chunks").len();
    let second = bench.app.cli_json(&["backup", "create", &ada.id]);
    assert!(first["new_bytes"].as_u64().unwrap() > 100_000, "{first}");
    assert_eq!((&second["new_bytes"], bench.objects("chunks").len()), (&0.into(), objects), "{second}");
    assert_eq!(bench.list(&ada.id).len(), 2);

    // The fleet: everybody whose data changed, and nobody else.
    let bob = bench.app.user("bob").await;
    let fleet = bench.app.cli_json(&["backup", "create", "--all"]);
    assert_eq!((&fleet["taken"], &fleet["unchanged"], &fleet["failed"]), (&1.into(), &1.into(), &0.into()), "{fleet}");
    assert_eq!(fleet["without_data"], 1, "bob has never been there: {fleet}");
    assert_eq!(state(&bench.app, &ada.id), "asleep");
    bob.note("now").await;
    let again = bench.app.cli_json(&["backup", "create", "--all"]);
    assert!(again["taken"].as_u64().unwrap() >= 1 && again["without_data"] == 0, "{again}");
    let verified = bench.app.cli_json(&["backup", "verify", "--all"]);
    assert_eq!((&verified["passed"], &verified["failed"]), (&4.into(), &0.into()), "{verified}");
    assert_eq!(state(&bench.app, &ada.id), "asleep");
}

#[tokio::test(flavor = "multi_thread")]
async fn links_out_of_an_instance_are_not_followed() {
    let mut bench = Bench::start("").await;
    bench.app.expect_log("a backup failed");
    let (ada, bob) = (bench.app.user("ada").await, bench.app.user("bob").await);
    note_with_file(&ada, "hers", b"hers").await;
    bob.note("his").await;
    for user in [&ada, &bob] {
        bench.app.put_to_sleep(&user.id);
    }
    let instances = bench.app.data().join("instances");
    let secret = bench.store.path().parent().unwrap().join(format!("{}-secret", ada.id));
    std::fs::write(&secret, "PLANTED-OUTSIDE").unwrap();
    let storage = instances.join(&ada.id).join("pb_data/storage");
    std::os::unix::fs::symlink(&secret, storage.join("link")).unwrap();
    std::os::unix::fs::symlink(instances.join(&bob.id), storage.join("folder")).unwrap();
    std::fs::hard_link(instances.join(&bob.id).join("pb_data/data.db"), storage.join("second-name")).unwrap();
    assert!(crate::support::command("mkfifo").arg(storage.join("pipe")).status().unwrap().success());
    let created = bench.app.cli_json(&["backup", "create", &ada.id]);
    assert_eq!(created["skipped"], 4, "{created}");
    std::fs::remove_file(storage.join("second-name")).unwrap();

    // The database itself as a link to somebody else's.
    let data = instances.join(&ada.id).join("pb_data/data.db");
    let own = data.with_file_name("own.db");
    std::fs::rename(&data, &own).unwrap();
    std::os::unix::fs::symlink(instances.join(&bob.id).join("pb_data/data.db"), &data).unwrap();
    let fleet = bench.app.cli(&["backup", "create", "--all", "--json"]);
    assert!(!fleet.status.success());
    let fleet: Value = serde_json::from_slice(&fleet.stdout).unwrap();
    assert_eq!(fleet["failures"][0]["tenant"], *ada.id, "{fleet}");
    assert_eq!(fleet["failed"], 1, "the others are backed up all the same: {fleet}");
    std::fs::remove_file(&data).unwrap();
    std::fs::rename(&own, &data).unwrap();
    std::fs::remove_file(&secret).unwrap();
}
