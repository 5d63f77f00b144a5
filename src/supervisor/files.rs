//! Copies and renames that survive a power cut, for directories that must appear whole or not at all.
//!
//! Invariants: nothing that exists is overwritten or deleted, and no symbolic link is followed out of a tree.

use std::fs;
use std::fs::File;
use std::io;
use std::path::Path;
use std::path::PathBuf;

use rustix::fs::CWD;
use rustix::fs::RenameFlags;
use rustix::fs::renameat_with;
use rustix::io::Errno;

/// The regular files below `root`, relative and sorted. Anything but files and folders is refused, hidden names too.
pub(super) fn list(root: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut folders = vec![PathBuf::new()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(root.join(&folder))? {
            let entry = entry?;
            let path = folder.join(entry.file_name());
            // The entry's own type: a symbolic link is neither a file nor a folder.
            let kind = entry.file_type()?;
            if kind.is_dir() {
                folders.push(path);
            } else if kind.is_file() {
                found.push(path);
            } else {
                let text = format!("{} is neither a file nor a folder", root.join(path).display());
                return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
            }
        }
    }
    found.sort();
    Ok(found)
}

/// Copies the regular files below `from` into the new folder `to`; `read_only` takes the write permission from them.
pub(super) fn copy_tree(from: &Path, to: &Path, mode: Mode) -> io::Result<()> {
    fs::create_dir(to)?;
    for path in list(from)? {
        let target = to.join(&path);
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::copy(from.join(&path), &target)?;
        if mode == Mode::ReadOnly {
            let mut permissions = target.metadata()?.permissions();
            permissions.set_readonly(true);
            fs::set_permissions(&target, permissions)?;
        }
    }
    Ok(())
}

/// Permissions of copied files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    /// As the originals.
    Same,
    /// Nobody may write them.
    ReadOnly,
}

/// Syncs every file and folder below `root`, and `root`.
pub(super) fn sync_tree(root: &Path) -> io::Result<()> {
    for entry in fs::read_dir(root)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            sync_tree(&entry.path())?;
        } else {
            File::open(entry.path())?.sync_all()?;
        }
    }
    sync_folder(root)
}

/// Makes creations and renames in a folder durable.
pub(super) fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// Renames to a name that must be free (a plain rename would replace an empty folder), durably.
pub(super) fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        Ok(()) => {}
        // Some file systems do not know the flag.
        Err(Errno::INVAL | Errno::NOSYS) if !exists(to)? => fs::rename(from, to)?,
        Err(Errno::INVAL | Errno::NOSYS) => return Err(io::ErrorKind::AlreadyExists.into()),
        Err(error) => return Err(error.into()),
    }
    to.parent().map_or(Ok(()), sync_folder)
}

/// Whether something has this name, be it a dangling link.
pub(super) fn exists(path: &Path) -> io::Result<bool> {
    match path.symlink_metadata() {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trees_are_copied_without_following_links() {
        let dir = tempfile::tempdir().unwrap();
        let from = dir.path().join("from");
        fs::create_dir_all(from.join("b/c")).unwrap();
        fs::write(from.join("b/c/one"), "1").unwrap();
        fs::write(from.join("a"), "2").unwrap();
        assert_eq!(list(&from).unwrap(), [PathBuf::from("a"), PathBuf::from("b/c/one")]);
        copy_tree(&from, &dir.path().join("to"), Mode::ReadOnly).unwrap();
        assert_eq!(fs::read_to_string(dir.path().join("to/b/c/one")).unwrap(), "1");
        assert!(dir.path().join("to/a").metadata().unwrap().permissions().readonly());

        std::os::unix::fs::symlink("/etc", from.join("link")).unwrap();
        assert_eq!(list(&from).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn rename_never_replaces_even_an_empty_folder() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        fs::create_dir(&from).unwrap();
        fs::create_dir(&to).unwrap();
        assert_eq!(rename_new(&from, &to).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        fs::remove_dir(&to).unwrap();
        rename_new(&from, &to).unwrap();
        assert!(to.is_dir());
    }
}
