//! The fault list: everything that breaks is broken here on purpose, for real, and what must hold then is looked at.
//!
//! `account` is the list with what was injected, what comes of it, and the tests that show it; `docs/faults.md` is its
//! print. A function `fault_NN_…` belongs to the fault of that number. What needs root, a loop device or another tool
//! says on standard error that it was skipped, why, and how many were so far.

pub(crate) mod account;
mod clock;
mod disk;
mod hooks;
mod limits;
mod looks;
mod net;
mod power;
mod processes;
mod state;
mod table;

use std::collections::BTreeSet;
use std::io::Write;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;

use serde_json::Value;
use serde_json::json;

use crate::support::TestApp;
use crate::support::User;
use crate::support::command;
use crate::support::pause;
use crate::support::root;

const NOTES: &str = "/api/collections/notes/records";

/// Says that a fault could not be injected here. Past the capture of output: whoever runs the tests is to see it.
pub(crate) fn skip(fault: u8, why: &str) {
    static SKIPPED: AtomicUsize = AtomicUsize::new(0);
    let so_far = SKIPPED.fetch_add(1, Ordering::SeqCst) + 1;
    let line = format!("NOT TESTED: fault {fault} of the list: {why} ({so_far} not tested so far)\n");
    drop(std::io::stderr().write_all(line.as_bytes()));
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn run(program: &str, arguments: &[&str]) -> Result<(), String> {
    match command(program).args(arguments).output() {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(format!("{program}: {}", String::from_utf8_lossy(&output.stderr).trim())),
        Err(error) => Err(format!("{program}: {error}")),
    }
}

/// A file system of its own. Let go of when dropped, whoever still uses it.
struct Disk {
    folder: PathBuf,
}

impl Disk {
    /// One in memory, mounted over a folder.
    fn small(folder: &Path, size: &str) -> Result<Self, String> {
        std::fs::create_dir_all(folder).map_err(|error| error.to_string())?;
        let options = format!("size={size},mode=711");
        run("mount", &["-t", "tmpfs", "-o", &options, "none", &folder.display().to_string()])?;
        Ok(Self { folder: folder.to_owned() })
    }

    /// An ext4 in a new file.
    fn of_image(image: &Path, bytes: u64, folder: &Path) -> Result<Self, String> {
        let file = std::fs::File::create(image).map_err(|error| error.to_string())?;
        file.set_len(bytes).map_err(|error| error.to_string())?;
        run("mkfs.ext4", &["-q", "-F", &image.display().to_string()])?;
        Self::mounted(image, folder)
    }

    /// An image that there is, with its journal replayed as the next boot would.
    fn mounted(image: &Path, folder: &Path) -> Result<Self, String> {
        std::fs::create_dir_all(folder).map_err(|error| error.to_string())?;
        run("mount", &["-o", "loop", &image.display().to_string(), &folder.display().to_string()])?;
        Ok(Self { folder: folder.to_owned() })
    }

    /// Takes all that is left of it; the file to remove.
    fn fill(&self) -> PathBuf {
        let path = self.folder.join("filler");
        let mut file = std::fs::File::options().create(true).append(true).open(&path).unwrap();
        for size in [1 << 20, 1 << 12, 1 << 8, 1] {
            let block = vec![b'x'; size];
            while file.write_all(&block).is_ok() {}
        }
        path
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        drop(command("umount").arg("-l").arg(&self.folder).output());
    }
}

/// A pocketfleet whose personal template has a hook besides.
struct Hooked {
    app: TestApp,
    // Goes after the app that reads it.
    _templates: tempfile::TempDir,
}

impl Hooked {
    /// Not started yet.
    fn prepare(keys: &str, hook: &str) -> Self {
        let templates = tempfile::tempdir().unwrap();
        std::fs::set_permissions(templates.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let from = [root().join("pb_templates/global"), root().join("pb_templates/personal")];
        assert!(command("cp").arg("-r").args(from).arg(templates.path()).status().unwrap().success());
        let personal = templates.path().join("personal");
        std::fs::create_dir_all(personal.join("pb_hooks")).unwrap();
        std::fs::write(personal.join("pb_hooks/fault.pb.js"), hook).unwrap();
        std::fs::write(personal.join("template.toml"), "routes = [\"/api/fault/*\"]\n").unwrap();
        let keys = format!("pocketbase.templates = \"{}\"\n{keys}", templates.path().display());
        Self { app: TestApp::prepare(&keys), _templates: templates }
    }
}

/// Where an instance's data are.
fn folder(app: &TestApp, tenant: &str) -> PathBuf {
    app.data().join("instances").join(tenant)
}

/// Where a process listens, as it was told.
fn address_of(pid: i32) -> std::net::SocketAddr {
    let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap();
    let line = String::from_utf8_lossy(&line).into_owned();
    line.split('\0').find_map(|word| word.strip_prefix("--http=")).unwrap().parse().unwrap()
}

/// Status and body of a list of one's notes.
async fn list(user: &User) -> (u16, Value) {
    let answer = user.get(NOTES).await;
    (answer.status().as_u16(), answer.json().await.unwrap_or_default())
}

/// The status of a new note.
async fn write(user: &User, title: &str) -> u16 {
    user.post(NOTES, json!({ "title": title })).await.status().as_u16()
}

/// What a database that nobody uses says of itself.
fn integrity(database: &Path) -> String {
    let connection = rusqlite::Connection::open(database).unwrap();
    connection.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap()
}

fn starts(app: &TestApp) -> u64 {
    app.cli_json(&["status"])["fleet"]["starts"].as_u64().unwrap()
}

fn pid(app: &TestApp, tenant: &str) -> Option<i32> {
    app.tenant(tenant)["pid"].as_i64().map(|pid| i32::try_from(pid).unwrap())
}

/// Changes a tenant's placement in the control database of a pocketfleet that does not run.
fn edit_placement(app: &TestApp, tenant: &str, change: impl FnOnce(&mut Value)) {
    let database = rusqlite::Connection::open(app.data().join("control.db")).unwrap();
    let key = format!("place.{tenant}");
    let value: Vec<u8> =
        database.query_row("SELECT value FROM records WHERE key = ?1", [&key], |row| row.get(0)).unwrap();
    let mut record: Value = serde_json::from_slice(&value).unwrap();
    change(&mut record);
    let value = serde_json::to_vec(&record).unwrap();
    assert_eq!(database.execute("UPDATE records SET value = ?2 WHERE key = ?1", (&key, value)).unwrap(), 1);
}

/// Creates notes until told to stop; the titles that were acknowledged.
async fn write_until(user: User, stop: Arc<AtomicBool>) -> BTreeSet<String> {
    let mut acknowledged = BTreeSet::new();
    for n in 0.. {
        if stop.load(Ordering::SeqCst) {
            break;
        }
        let title = format!("note-{n:05}");
        let body = serde_json::json!({ "title": title });
        let sent = user.request(reqwest::Method::POST, "/api/collections/notes/records").json(&body).send().await;
        match sent {
            Ok(answer) if answer.status() == 200 => {
                acknowledged.insert(title);
            }
            Ok(answer) => assert!(matches!(answer.status().as_u16(), 502..=504), "{}", answer.status()),
            Err(_) => pause().await,
        }
    }
    acknowledged
}

async fn all_titles(user: &User) -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    for page in 1.. {
        let path = format!("/api/collections/notes/records?perPage=500&page={page}&sort=title&fields=title");
        let body: Value = user.get(&path).await.json().await.unwrap();
        let items = body["items"].as_array().unwrap_or_else(|| panic!("{body}"));
        all.extend(items.iter().map(|item| item["title"].as_str().unwrap().to_owned()));
        if items.len() < 500 {
            break;
        }
    }
    all
}
