//! Putting a restored data directory in the place of an instance's own, by renames that a kill may interrupt anywhere.
//!
//! Everything lies in `instances/<tenant>/restore/`: `pb_data/` (what comes in) and `state.json` (written last: from
//! then on it goes in, whatever happens). What goes out is kept under `replaced/` in the data directory until somebody
//! sweeps it. Either directory is whole at every moment, and exactly one of them is the instance's.
//!
//! Everything here blocks, and nobody serves the directory meanwhile.

use std::fs;
use std::io;
use std::path::Path;
use std::path::PathBuf;

use serde::Deserialize;
use serde::Serialize;

use crate::failpoint;
use crate::supervisor::files;
use crate::supervisor::snapshot;

const FOLDER: &str = "restore";
const STATE: &str = "state.json";
const DATA: &str = "pb_data";

/// What goes in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Replacement {
    /// The version of its template that the restored data has.
    pub(super) hash: Option<String>,
    /// The `PocketBase` that the restored data has.
    #[serde(default)]
    pub(super) pocketbase: Option<String>,
    /// Where what goes out is kept.
    pub(super) kept: PathBuf,
}

/// Whether a replacement was begun.
pub(super) fn is_pending(instance: &Path) -> bool {
    instance.join(FOLDER).is_dir()
}

/// Takes the directory `staged`, which is whole and synced and on the same file system, and puts it in place.
pub(super) fn begin(instance: &Path, staged: &Path, replacement: &Replacement) -> io::Result<()> {
    let root = instance.join(FOLDER);
    fs::create_dir_all(&root)?;
    files::rename_new(staged, &root.join(DATA))?;
    failpoint::hit("backup.restore.staged");
    snapshot::write_durably(&root, STATE, &serde_json::to_vec(replacement)?)?;
    files::sync_folder(instance)?;
    failpoint::hit("backup.restore.noted");
    finish(instance)
}

/// Does what is left to do. A replacement whose state was not written never was.
pub(super) fn finish(instance: &Path) -> io::Result<()> {
    let root = instance.join(FOLDER);
    let state = match fs::read(root.join(STATE)) {
        Ok(text) => serde_json::from_slice::<Replacement>(&text)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return snapshot::remove(&root),
        Err(error) => return Err(error),
    };
    let (fresh, data) = (root.join(DATA), instance.join(DATA));
    if files::exists(&fresh)? {
        if files::exists(&data)? {
            keep(&data, instance, &state.kept)?;
            failpoint::hit("backup.restore.away");
        }
        files::rename_new(&fresh, &data)?;
        files::sync_folder(&root)?;
        failpoint::hit("backup.restore.in");
    }
    if let Some(hash) = &state.hash {
        snapshot::set_version(instance, hash)?;
    }
    if let Some(version) = &state.pocketbase {
        snapshot::set_pocketbase(instance, version)?;
    }
    failpoint::hit("backup.restore.versioned");
    // The state last: without it this would be a replacement that never was, with nothing to put in.
    snapshot::remove(&root)?;
    files::sync_folder(instance)
}

/// Moves a directory to where it is kept, with the version that it has.
fn keep(data: &Path, instance: &Path, kept: &Path) -> io::Result<()> {
    fs::create_dir_all(kept)?;
    if let Some(version) = snapshot::version(instance)? {
        snapshot::set_version(kept, &version)?;
    }
    if let Some(version) = snapshot::pocketbase(instance)? {
        snapshot::set_pocketbase(kept, &version)?;
    }
    files::rename_new(data, &kept.join(DATA))?;
    kept.parent().map_or(Ok(()), files::sync_folder)?;
    files::sync_folder(instance)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_goes_in_from_every_point_and_what_was_there_is_kept() {
        for interruption in ["whole", "away", "in"] {
            let root = tempfile::tempdir().unwrap();
            let (instance, kept, staged) =
                (root.path().join("a"), root.path().join("replaced/a.1"), root.path().join("staged"));
            fs::create_dir_all(instance.join(DATA)).unwrap();
            fs::write(instance.join(DATA).join("data.db"), "old").unwrap();
            fs::create_dir(&staged).unwrap();
            fs::write(staged.join("data.db"), "new").unwrap();
            snapshot::set_version(&instance, "one").unwrap();
            snapshot::set_pocketbase(&instance, "0.40.6").unwrap();
            let replacement = Replacement {
                hash: Some("two".to_owned()),
                pocketbase: Some("0.39.11".to_owned()),
                kept: kept.clone(),
            };
            if interruption == "whole" {
                begin(&instance, &staged, &replacement).unwrap();
            } else {
                let folder = instance.join(FOLDER);
                fs::create_dir(&folder).unwrap();
                fs::rename(&staged, folder.join(DATA)).unwrap();
                snapshot::write_durably(&folder, STATE, &serde_json::to_vec(&replacement).unwrap()).unwrap();
                keep(&instance.join(DATA), &instance, &kept).unwrap();
                if interruption == "in" {
                    fs::rename(folder.join(DATA), instance.join(DATA)).unwrap();
                }
                assert!(is_pending(&instance));
                finish(&instance).unwrap();
            }
            let read = |path: PathBuf| fs::read_to_string(path).unwrap();
            assert_eq!(read(instance.join(DATA).join("data.db")), "new", "{interruption}");
            assert_eq!(read(kept.join(DATA).join("data.db")), "old", "{interruption}");
            assert_eq!(snapshot::version(&instance).unwrap().as_deref(), Some("two"));
            assert_eq!(snapshot::version(&kept).unwrap().as_deref(), Some("one"));
            assert_eq!(
                snapshot::pocketbase(&instance).unwrap().as_deref(),
                Some("0.39.11"),
                "older than what was there"
            );
            assert_eq!(snapshot::pocketbase(&kept).unwrap().as_deref(), Some("0.40.6"));
            assert!(!is_pending(&instance));
        }
    }

    #[test]
    fn without_its_state_it_never_was() {
        let root = tempfile::tempdir().unwrap();
        let instance = root.path().join("a");
        fs::create_dir_all(instance.join(DATA)).unwrap();
        fs::create_dir_all(instance.join(FOLDER).join(DATA)).unwrap();
        fs::write(instance.join(DATA).join("data.db"), "old").unwrap();
        finish(&instance).unwrap();
        assert_eq!(fs::read_to_string(instance.join(DATA).join("data.db")).unwrap(), "old");
        assert!(!is_pending(&instance));
    }
}
