//! Golden directories of the shipped templates, baked once for all tests of a run: baking costs more than most tests.
//! They are named by what they hold, so a test with other templates finds nothing of its own here and bakes.

use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::OnceLock;
use std::time::Duration;
use std::time::Instant;

use super::PATIENCE;
use super::command;
use super::pocketbase;
use super::pocketfleet;
use super::signal;

static BAKED: OnceLock<PathBuf> = OnceLock::new();

/// Puts what was baked into a data directory that does not exist yet.
pub(crate) fn share(data: &Path) {
    if data.exists() {
        return;
    }
    let baked = BAKED.get_or_init(bake);
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(data).unwrap();
    let copied = command("cp").arg("-r").arg(baked).arg(data.join("golden")).status().unwrap();
    assert!(copied.success());
}

/// A first start of the program, for what it bakes.
fn bake() -> PathBuf {
    let root = Path::new(env!("CARGO_TARGET_TMPDIR")).join("golden");
    std::fs::create_dir_all(&root).unwrap();
    sweep(&root);
    let own = root.join(std::process::id().to_string());
    let (data, config) = (own.join("data"), own.join("test.toml"));
    std::fs::create_dir_all(&own).unwrap();
    std::fs::write(&config, "server.listen = \"127.0.0.1:0\"\n").unwrap();
    let mut child = pocketfleet()
        .arg("serve")
        .arg("--config")
        .arg(&config)
        .arg("--data")
        .arg(&data)
        .arg("--pocketbase")
        .arg(pocketbase())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(std::fs::File::create(own.join("log")).unwrap())
        .spawn()
        .unwrap();
    let deadline = Instant::now() + PATIENCE;
    while !data.join("run/address").exists() {
        let log = || std::fs::read_to_string(own.join("log")).unwrap_or_default();
        assert!(child.try_wait().unwrap().is_none() && Instant::now() < deadline, "cannot bake:\n{}", log());
        std::thread::park_timeout(Duration::from_millis(20));
    }
    signal(i32::try_from(child.id()).unwrap(), "TERM");
    assert!(child.wait().unwrap().success());
    data.join("golden")
}

/// Removes what earlier runs left.
fn sweep(root: &Path) {
    for entry in std::fs::read_dir(root).unwrap().flatten() {
        if !Path::new("/proc").join(entry.file_name()).exists() {
            // Another run may be sweeping as well.
            drop(std::fs::remove_dir_all(entry.path()));
        }
    }
}
