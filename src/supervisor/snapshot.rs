//! The safety net of an upgrade: a copy of an instance's data that can be put back by renames.
//!
//! Everything about one upgrade lies in `instances/<tenant>/upgrade/`: `pb_data/` (the copy), `state.json` (written
//! last, so that a copy that is not whole is never taken for one), `failed/` (what a rollback has moved aside). The
//! instance's version file decides what an interrupted upgrade was: it names the new version = committed.
//!
//! Invariants: nobody has the data directory open (the caller looked at its lock). Before `state.json` exists,
//! `pb_data` was not touched; afterwards either `pb_data` or the copy is whole, at every moment, also for a power cut.
//! Databases are copied (`copy_file_range`, which shares blocks where the file system can), through `SQLite` where this
//! process may have them open, so that its locks on them stay; files below `storage/` and `backups/` are linked, because
//! `PocketBase` writes each of them once, under a random name.
//!
//! Everything here blocks.

use std::fs;
use std::fs::File;
use std::io;
use std::io::Write;
use std::path::Path;

use serde::Deserialize;
use serde::Serialize;

use crate::pocketbase::copy;
use crate::supervisor::files;
use crate::supervisor::remove::remove_tree;

/// The file that names the `PocketBase` of the data, in the instance's folder.
pub(crate) const POCKETBASE: &str = "pocketbase";
/// Folder of an upgrade under way, in the instance's folder.
const FOLDER: &str = "upgrade";
/// Inside it: what the upgrade is.
const STATE: &str = "state.json";
/// The data directory, and its copy.
const DATA: &str = "pb_data";
/// What did not work, until it is removed.
const FAILED: &str = "failed";
/// File in an instance's folder with the hash of the template version it has.
const VERSION: &str = "template";
/// Room that must be left on the disk beside the copy.
const RESERVE: u64 = 32 << 20;

/// From where to where.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Step {
    pub(super) from: String,
    pub(super) to: String,
}

/// What was found of an earlier, interrupted upgrade.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// Nothing, or nothing that mattered.
    Nothing,
    /// It was through; the copy is gone now.
    Finished,
    /// It was not; the data is as before.
    RolledBack(Step),
}

/// Whether there is anything to look at. One look at a folder: this is on the way of every wake.
pub(super) fn is_pending(instance: &Path) -> bool {
    instance.join(FOLDER).is_dir()
}

/// Whether data was changed by an upgrade that is neither through nor rolled back.
pub(super) fn is_unfinished(instance: &Path) -> bool {
    let is_through = |step: &Step| version(instance).is_ok_and(|version| version.as_ref() == Some(&step.to));
    state(instance).is_ok_and(|step| step.is_some_and(|step| !is_through(&step)))
}

/// The version that the instance has, by its own file.
pub(super) fn version(instance: &Path) -> io::Result<Option<String>> {
    noted(instance, VERSION)
}

/// What a small file says; none when there is none. One that cannot be read at the moment says something.
fn noted(instance: &Path, name: &str) -> io::Result<Option<String>> {
    match fs::read_to_string(instance.join(name)) {
        Ok(text) => Ok(Some(text.trim().to_owned())),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The `PocketBase` that the data was given to, where that is not the one that its version is made with: a newer one
/// served it when its own was not there, or it was restored.
pub(super) fn pocketbase(instance: &Path) -> io::Result<Option<String>> {
    noted(instance, POCKETBASE)
}

/// Notes the `PocketBase` of the data, durably.
pub(super) fn set_pocketbase(instance: &Path, version: &str) -> io::Result<()> {
    write_durably(instance, POCKETBASE, version.as_bytes())
}

/// Notes durably what the data of a fresh folder was made from and written by.
pub fn note_origin(instance: &Path, hash: Option<&str>, pocketbase: &str) -> io::Result<()> {
    if let Some(hash) = hash {
        set_version(instance, hash)?;
    }
    set_pocketbase(instance, pocketbase)
}

/// Deals with what an interrupted upgrade left.
pub(super) fn recover(instance: &Path) -> io::Result<Found> {
    if !is_pending(instance) {
        return Ok(Found::Nothing);
    }
    let Some(step) = state(instance)? else {
        discard(instance)?;
        return Ok(Found::Nothing);
    };
    if version(instance)?.as_ref() == Some(&step.to) {
        // Whoever wrote the version may have been stopped before it was certain to stay.
        files::sync_folder(instance)?;
        discard(instance)?;
        return Ok(Found::Finished);
    }
    roll_back(instance)?;
    Ok(Found::RolledBack(step))
}

/// Copies the data directory. Fails without having changed anything but its own folder.
pub(super) fn take(instance: &Path, step: &Step) -> io::Result<()> {
    let data = instance.join(DATA);
    let needed = size_of_files(&data)?;
    let disk = rustix::fs::statvfs(instance)?;
    if disk.f_bavail.saturating_mul(disk.f_frsize) < needed.saturating_add(RESERVE) {
        return Err(io::Error::new(io::ErrorKind::StorageFull, "not enough room on the disk for a copy of its data"));
    }
    let root = instance.join(FOLDER);
    fs::create_dir(&root)?;
    mirror(&data, &root.join(DATA), Depth::Top, DEEPEST)?;
    write_durably(&root, STATE, &serde_json::to_vec(step)?)?;
    files::sync_folder(instance)
}

/// Makes the new version the instance's own. From here on there is no way back.
pub(super) fn commit(instance: &Path, step: &Step) -> io::Result<()> {
    set_version(instance, &step.to)
}

/// Notes the version that the instance has, whole and durably.
pub(super) fn set_version(instance: &Path, hash: &str) -> io::Result<()> {
    write_durably(instance, VERSION, hash.as_bytes())
}

/// Puts the copy back. May be repeated after an interruption.
pub(super) fn roll_back(instance: &Path) -> io::Result<()> {
    let root = instance.join(FOLDER);
    let (copy, data, failed) = (root.join(DATA), instance.join(DATA), root.join(FAILED));
    if files::exists(&copy)? {
        if files::exists(&data)? {
            remove(&failed)?;
            fs::rename(&data, &failed)?;
        }
        fs::rename(&copy, &data)?;
        files::sync_folder(&root)?;
        files::sync_folder(instance)?;
    }
    discard(instance)
}

/// Removes the folder of an upgrade that is over.
pub(super) fn discard(instance: &Path) -> io::Result<()> {
    let root = instance.join(FOLDER);
    // Not before the copy: a copy without its state is refuse, a state without its copy means "put back already".
    remove(&root.join(FAILED))?;
    remove(&root)
}

fn state(instance: &Path) -> io::Result<Option<Step>> {
    match fs::read(instance.join(FOLDER).join(STATE)) {
        Ok(text) => Ok(Some(serde_json::from_slice(&text)?)),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
        Err(error) => Err(error),
    }
}

pub(super) fn remove(folder: &Path) -> io::Result<()> {
    remove_tree(folder)
}

/// Replaces a small file, whole or not at all.
pub(super) fn write_durably(folder: &Path, name: &str, text: &[u8]) -> io::Result<()> {
    let fresh = folder.join(format!("{name}.new"));
    let mut file = File::create(&fresh)?;
    file.write_all(text)?;
    file.sync_all()?;
    fs::rename(fresh, folder.join(name))?;
    files::sync_folder(folder)
}

/// Bytes of the files that are copied.
fn size_of_files(data: &Path) -> io::Result<u64> {
    let mut sum = 0_u64;
    for entry in fs::read_dir(data)? {
        let metadata = entry?.metadata()?;
        sum = sum.saturating_add(if metadata.is_file() { metadata.len() } else { 0 });
    }
    Ok(sum)
}

/// Folders in folders that are copied. `PocketBase` makes three levels.
const DEEPEST: usize = 64;

/// How the files of a folder are taken over.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Depth {
    /// The data directory itself.
    Top,
    /// Below it: copied.
    Copied,
    /// Below it, written once: linked.
    Linked,
}

fn mirror(from: &Path, to: &Path, depth: Depth, left: usize) -> io::Result<()> {
    // Whoever serves the directory makes its folders, and every one in another is a frame on our stack.
    let Some(left) = left.checked_sub(1) else { return Err(io::Error::other("folders lie too deep in each other")) };
    fs::create_dir(to)?;
    fs::set_permissions(to, from.metadata()?.permissions())?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (source, target, kind) = (entry.path(), to.join(entry.file_name()), entry.file_type()?);
        if kind.is_dir() {
            let next = match (depth, entry.file_name().to_str()) {
                // Messages between processes, and what a restore of PocketBase's own has left over.
                (Depth::Top, Some(".notify" | ".pb_temp_to_delete")) => continue,
                (Depth::Top, Some("storage" | "backups")) => Depth::Linked,
                (Depth::Top, _) => Depth::Copied,
                (below, _) => below,
            };
            mirror(&source, &target, next, left)?;
        } else if kind.is_symlink() {
            std::os::unix::fs::symlink(fs::read_link(&source)?, &target)?;
        } else if kind.is_file() {
            if depth == Depth::Top && (is_companion(&source) || copy_database(&source, &target)?) {
                continue;
            }
            // PocketBase writes a file's attributes anew in place. A link may be impossible (another device, too many
            // links); a copy is only slower.
            let is_linked = depth == Depth::Linked && source.extension().is_none_or(|extension| extension != "attrs");
            if !is_linked || fs::hard_link(&source, &target).is_err() {
                fs::copy(&source, &target)?;
                File::open(&target)?.sync_all()?;
            }
        }
    }
    files::sync_folder(to)
}

/// What lies beside a database: the index of its log, made anew by whoever opens it, and the log, which the copy of the
/// database holds.
fn is_companion(path: &Path) -> bool {
    let is_beside = |suffix: &[u8]| {
        let name = path.as_os_str().as_encoded_bytes().strip_suffix(suffix);
        name.is_some_and(|name| name.ends_with(b".db"))
    };
    is_beside(b"-shm") || is_beside(b"-wal")
}

/// Copies a database that somebody may have open. Whether that was needed.
fn copy_database(source: &Path, target: &Path) -> io::Result<bool> {
    if source.extension().is_none_or(|extension| extension != "db") {
        return Ok(false);
    }
    copy::copy_open(source, target).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;
    use std::path::PathBuf;

    use super::*;

    fn instance(root: &Path) -> PathBuf {
        let instance = root.join("a");
        fs::create_dir_all(instance.join("pb_data/storage/c/r")).unwrap();
        fs::create_dir_all(instance.join("pb_data/.notify")).unwrap();
        fs::write(instance.join("pb_data/data.db"), "old").unwrap();
        fs::write(instance.join("pb_data/data.db-shm"), "index").unwrap();
        fs::write(instance.join("pb_data/storage/c/r/f.png"), "picture").unwrap();
        fs::write(instance.join("pb_data/storage/c/r/f.png.attrs"), "{}").unwrap();
        fs::write(instance.join(VERSION), "one\n").unwrap();
        instance
    }

    fn step() -> Step {
        Step { from: "one".into(), to: "two".into() }
    }

    fn data(instance: &Path) -> String {
        fs::read_to_string(instance.join("pb_data/data.db")).unwrap()
    }

    #[test]
    fn the_copy_is_whole_links_what_is_written_once_and_leaves_out_what_is_made_anew() {
        let root = tempfile::tempdir().unwrap();
        let instance = instance(root.path());
        take(&instance, &step()).unwrap();
        let inode = |path: &str| fs::metadata(instance.join(path)).unwrap().ino();
        assert_eq!(inode("upgrade/pb_data/storage/c/r/f.png"), inode("pb_data/storage/c/r/f.png"));
        for copied in ["data.db", "storage/c/r/f.png.attrs"] {
            assert_ne!(inode(&format!("upgrade/pb_data/{copied}")), inode(&format!("pb_data/{copied}")), "{copied}");
        }
        let mut names: Vec<_> =
            fs::read_dir(instance.join("upgrade/pb_data")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["data.db", "storage"]);
        assert!(is_pending(&instance) && is_unfinished(&instance));
    }

    #[test]
    fn a_database_that_is_open_here_is_copied_with_its_log_and_its_locks_stay() {
        let root = tempfile::tempdir().unwrap();
        let instance = instance(root.path());
        let path = instance.join("pb_data/data.db");
        fs::remove_file(&path).unwrap();
        fs::remove_file(instance.join("pb_data/data.db-shm")).unwrap();
        let connection = rusqlite::Connection::open(&path).unwrap();
        connection.execute_batch("PRAGMA journal_mode = WAL; CREATE TABLE t (a); INSERT INTO t VALUES (7)").unwrap();
        let inode = format!(":{} ", fs::metadata(&path).unwrap().ino());
        let is_locked = || fs::read_to_string("/proc/locks").unwrap().lines().any(|line| line.contains(&inode));
        assert!(is_locked());
        take(&instance, &step()).unwrap();
        assert!(is_locked());
        assert!(!instance.join("upgrade/pb_data/data.db-wal").exists());
        let copy = rusqlite::Connection::open(instance.join("upgrade/pb_data/data.db")).unwrap();
        assert_eq!(copy.query_row("SELECT a FROM t", [], |row| row.get::<_, i64>(0)).unwrap(), 7);
    }

    #[test]
    fn an_interrupted_upgrade_is_rolled_back_from_every_point() {
        for interruption in ["changed", "data is away", "data is back"] {
            let root = tempfile::tempdir().unwrap();
            let instance = instance(root.path());
            take(&instance, &step()).unwrap();
            fs::write(instance.join("pb_data/data.db"), "half").unwrap();
            fs::remove_file(instance.join("pb_data/storage/c/r/f.png")).unwrap();
            let upgrade = instance.join("upgrade");
            if interruption != "changed" {
                fs::rename(instance.join("pb_data"), upgrade.join("failed")).unwrap();
            }
            if interruption == "data is back" {
                fs::rename(upgrade.join("pb_data"), instance.join("pb_data")).unwrap();
            }
            assert_eq!(recover(&instance).unwrap(), Found::RolledBack(step()), "{interruption}");
            assert_eq!(data(&instance), "old", "{interruption}");
            assert!(instance.join("pb_data/storage/c/r/f.png").is_file(), "{interruption}");
            assert!(!upgrade.exists(), "{interruption}");
            assert_eq!(recover(&instance).unwrap(), Found::Nothing, "{interruption}");
        }
    }

    #[test]
    fn a_committed_upgrade_stays_and_a_copy_without_its_state_is_nothing() {
        let root = tempfile::tempdir().unwrap();
        let instance = instance(root.path());
        take(&instance, &step()).unwrap();
        fs::write(instance.join("pb_data/data.db"), "new").unwrap();
        commit(&instance, &step()).unwrap();
        assert!(!is_unfinished(&instance));
        assert_eq!(recover(&instance).unwrap(), Found::Finished);
        assert_eq!((data(&instance).as_str(), version(&instance).unwrap().as_deref()), ("new", Some("two")));

        take(&instance, &step()).unwrap();
        fs::remove_file(instance.join("upgrade/state.json")).unwrap();
        fs::write(instance.join("upgrade/pb_data/data.db"), "hal").unwrap();
        assert_eq!(recover(&instance).unwrap(), Found::Nothing);
        assert_eq!(data(&instance), "new");
        assert!(!is_pending(&instance));
    }
}
