//! Reading a tenant's data directory, which the tenant may have filled with anything, while it may be written.
//!
//! Everything is opened from the directory's own descriptor, beneath it and without following a link (`openat2`). What
//! is no regular file with a single name is left out and counted: links, pipes, devices, and files that have a second
//! name somewhere, because that may be somebody else's file.

use std::fmt::Write;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::AtFlags;
use rustix::fs::Dir;
use rustix::fs::FileType;
use rustix::fs::Mode;
use rustix::fs::OFlags;
use rustix::fs::ResolveFlags;
use rustix::fs::Stat;
use rustix::io::Errno;

/// Deepest folder, and most files, that are looked at.
const DEEPEST: usize = 12;
pub(super) const MOST_FILES: usize = 500_000;
/// Longest relative path of a file.
const LONGEST: usize = 1_024;

/// A data directory.
#[derive(Debug)]
pub(super) struct Tree {
    root: OwnedFd,
}

/// What tells a file from its successor of the same name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(super) struct Stamp {
    bytes: u64,
    inode: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

/// The files of a folder.
#[derive(Debug, Default)]
pub(super) struct Listing {
    pub(super) files: Vec<String>,
    /// Entries that are not backed up.
    pub(super) skipped: u64,
}

/// Whether this is the path of a file that belongs into a backup: what a restore may write, and nothing else.
pub(super) fn is_path(path: &str) -> bool {
    let is_word = |word: &str| !word.is_empty() && word != "." && word != ".." && !word.chars().any(char::is_control);
    match path.split_once('/') {
        None => matches!(path, "data.db" | "auxiliary.db" | "types.d.ts" | "control.db"),
        Some(("storage", rest)) => path.len() <= LONGEST && rest.split('/').all(is_word),
        Some(_) => false,
    }
}

impl Tree {
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(Self { root: rustix::fs::open(path, flags, Mode::empty())? })
    }

    fn beneath(&self, path: &str, flags: OFlags) -> Result<OwnedFd, Errno> {
        let resolve =
            ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
        rustix::fs::openat2(&self.root, path, flags | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty(), resolve)
    }

    /// Whether a file of the directory itself is a regular one with a single name. Looks without opening: to close a
    /// database that this process has open elsewhere would drop its locks.
    pub(super) fn has_plain(&self, name: &str) -> io::Result<bool> {
        match rustix::fs::statat(&self.root, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(is_plain(&stat)),
            Err(Errno::NOENT) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Opens a file. None: it is gone, or nothing that is backed up.
    pub(super) fn file(&self, path: &str) -> io::Result<Option<(File, Stamp)>> {
        // NONBLOCK: a pipe in the place of a file must not hang.
        let file = match self.beneath(path, OFlags::RDONLY | OFlags::NONBLOCK) {
            Ok(file) => File::from(file),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV | Errno::NXIO) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let found = file.metadata()?;
        if !found.is_file() || found.nlink() != 1 {
            return Ok(None);
        }
        let stamp = Stamp {
            bytes: found.len(),
            inode: found.ino(),
            modified: (found.mtime(), found.mtime_nsec()),
            changed: (found.ctime(), found.ctime_nsec()),
        };
        Ok(Some((file, stamp)))
    }

    /// The files of `storage` and below.
    pub(super) fn storage(&self) -> io::Result<Listing> {
        let mut listing = Listing::default();
        let mut folders = vec![("storage".to_owned(), 1)];
        while let Some((folder, depth)) = folders.pop() {
            let opened = match self.beneath(&folder, OFlags::RDONLY | OFlags::DIRECTORY) {
                Ok(opened) => opened,
                Err(Errno::NOENT) => continue,
                Err(Errno::NOTDIR | Errno::LOOP | Errno::XDEV) => {
                    listing.skipped += 1;
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            for entry in Dir::read_from(&opened)? {
                let entry = entry?;
                let name = entry.file_name();
                if matches!(name.to_bytes(), b"." | b"..") {
                    continue;
                }
                let path = name.to_str().ok().map(|name| format!("{folder}/{name}")).filter(|path| is_path(path));
                let Some(path) = path else {
                    listing.skipped += 1;
                    continue;
                };
                match rustix::fs::statat(&opened, name, AtFlags::SYMLINK_NOFOLLOW) {
                    Ok(stat) if is_plain(&stat) => listing.files.push(path),
                    Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory && depth < DEEPEST => {
                        folders.push((path, depth + 1));
                    }
                    Ok(_) => listing.skipped += 1,
                    Err(Errno::NOENT) => {}
                    Err(error) => return Err(error.into()),
                }
                if listing.files.len() + folders.len() > MOST_FILES {
                    return Err(io::Error::other("it has more files than are backed up"));
                }
            }
        }
        listing.files.sort_unstable();
        Ok(listing)
    }

    /// What changes when a database was written since: without opening it.
    pub(super) fn fingerprint(&self) -> io::Result<String> {
        let mut text = String::new();
        for name in ["data.db", "data.db-wal"] {
            match rustix::fs::statat(&self.root, name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => {
                    let moment = (stat.st_mtime, stat.st_mtime_nsec);
                    // Writing to a string cannot fail.
                    let _ = write!(text, "{}.{}.{}.{}/", stat.st_size, stat.st_ino, moment.0, moment.1);
                }
                Err(Errno::NOENT) => text.push('/'),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(text)
    }
}

impl Stamp {
    pub(super) fn bytes(self) -> u64 {
        self.bytes
    }
}

fn is_plain(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile && stat.st_nlink == 1
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn only_plain_files_beneath_are_seen() {
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("secret"), "of somebody else").unwrap();
        let dir = tempfile::tempdir().unwrap();
        let storage = dir.path().join("storage");
        fs::create_dir_all(storage.join("c/r")).unwrap();
        fs::write(storage.join("c/r/plain.txt"), "mine").unwrap();
        symlink(outside.path().join("secret"), storage.join("c/r/link.txt")).unwrap();
        symlink(outside.path(), storage.join("folder")).unwrap();
        fs::hard_link(outside.path().join("secret"), storage.join("c/r/second-name.txt")).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, storage.join("c/r/pipe"), FileType::Fifo, Mode::RUSR, 0).unwrap();
        fs::write(storage.join("c/r/line\nend"), "odd").unwrap();
        let tree = Tree::open(dir.path()).unwrap();
        let listing = tree.storage().unwrap();
        assert_eq!(listing.files, ["storage/c/r/plain.txt"]);
        assert_eq!(listing.skipped, 5);
        for path in ["storage/c/r/link.txt", "storage/folder/secret", "storage/c/r/second-name.txt", "storage/c/r/pipe"]
        {
            assert!(tree.file(path).unwrap().is_none(), "{path}");
        }
        assert!(tree.file("../secret").is_err() || tree.file("../secret").unwrap().is_none());
        assert_eq!(tree.file("storage/c/r/plain.txt").unwrap().unwrap().1.bytes(), 4);
        symlink(outside.path().join("secret"), dir.path().join("data.db")).unwrap();
        assert!(!tree.has_plain("data.db").unwrap());
        symlink(dir.path(), outside.path().join("root")).unwrap();
        assert!(Tree::open(&outside.path().join("root")).is_err());
    }

    #[test]
    fn a_manifest_names_files_of_a_data_directory_and_no_others() {
        for good in ["data.db", "storage/a/b/c.png", "storage/a/b/.attrs"] {
            assert!(is_path(good), "{good}");
        }
        for bad in
            ["", "/etc/passwd", "storage/../x", "storage//x", "storage/", "hooks/a", "data.db-wal", "storage/a\0b"]
        {
            assert!(!is_path(bad), "{bad}");
        }
    }
}
