//! How much room a tree of files takes, by descriptors: no symbolic link is followed, and a name that is exchanged
//! meanwhile leads nowhere else.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;
use std::time::Instant;

use rustix::fs::AtFlags;
use rustix::fs::CWD;
use rustix::fs::Dir;
use rustix::fs::FileType;
use rustix::fs::Mode;
use rustix::fs::OFlags;
use rustix::io::Errno;
use serde::Deserialize;
use serde::Serialize;

/// Folders inside each other that are looked into; more is nothing that `PocketBase` makes.
const DEEPEST: usize = 64;
/// Names that are counted.
const MOST: u64 = 5_000_000;
/// Time for one tree.
const LONGEST: Duration = Duration::from_secs(30);
/// Names between two looks at the clock.
const STRIDE: u64 = 256;

/// What lies in a tree.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Room on the disk, in bytes, logs and databases' journals included.
    pub bytes: u64,
    /// Files and links.
    pub files: u64,
    /// Names that were looked at.
    #[serde(skip)]
    entries: u64,
}

/// What lies below a folder; nothing if there is none. What goes away meanwhile is not counted. One that is deeper, has
/// more or takes longer than anything that `PocketBase` makes is refused: as `QuotaExceeded`, and one that is closed to us as
/// `PermissionDenied`.
pub fn measure(root: &Path) -> io::Result<Usage> {
    let mut usage = Usage::default();
    match open(CWD, root) {
        Ok(folder) => visit(&folder, &mut usage, DEEPEST, Instant::now() + LONGEST)?,
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
        Err(error) => return Err(error.into()),
    }
    Ok(usage)
}

fn open(at: impl std::os::fd::AsFd, name: impl rustix::path::Arg) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(at, name, flags, Mode::empty())
}

fn visit(folder: &OwnedFd, usage: &mut Usage, left: usize, end: Instant) -> io::Result<()> {
    let beyond = |what| Err(io::Error::new(io::ErrorKind::QuotaExceeded, what));
    for entry in Dir::read_from(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let stat = match rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => continue,
            Err(error) => return Err(error.into()),
        };
        usage.bytes = usage.bytes.saturating_add(u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(512));
        usage.entries += 1;
        if usage.entries > MOST {
            return beyond("there are too many files");
        }
        if usage.entries.is_multiple_of(STRIDE) && Instant::now() >= end {
            return beyond("to count the files takes too long");
        }
        if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
            usage.files = usage.files.saturating_add(1);
            continue;
        }
        let Some(left) = left.checked_sub(1) else { return beyond("folders lie too deep in each other") };
        match open(folder, name) {
            Ok(inner) => visit(&inner, usage, left, end)?,
            // Gone, or exchanged for something else: it is not looked into.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_tree_is_measured_without_what_its_links_point_at() {
        let dir = tempfile::tempdir().unwrap();
        let (tree, outside) = (dir.path().join("tree"), dir.path().join("outside"));
        fs::create_dir_all(tree.join("a/b")).unwrap();
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("large"), vec![7_u8; 4 << 20]).unwrap();
        fs::write(tree.join("a/b/file"), vec![7_u8; 1 << 20]).unwrap();
        std::os::unix::fs::symlink(&outside, tree.join("folder")).unwrap();
        std::os::unix::fs::symlink(outside.join("large"), tree.join("a/file")).unwrap();
        let usage = measure(&tree).unwrap();
        assert_eq!(usage.files, 3);
        assert!((1 << 20..2 << 20).contains(&usage.bytes), "{usage:?}");
        assert_eq!(measure(&dir.path().join("absent")).unwrap(), Usage::default());
        assert_eq!(measure(&tree.join("folder")).unwrap(), Usage::default());
    }

    #[test]
    fn what_cannot_be_counted_is_said_and_not_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let deep = (0..=DEEPEST).fold(dir.path().join("deep"), |path, _| path.join("d"));
        fs::create_dir_all(&deep).unwrap();
        fs::write(deep.join("hidden"), vec![7_u8; 1 << 20]).unwrap();
        assert_eq!(measure(&dir.path().join("deep")).unwrap_err().kind(), io::ErrorKind::QuotaExceeded);
        let mut usage = Usage { entries: MOST, ..Usage::default() };
        let folder = open(CWD, dir.path()).unwrap();
        let error = visit(&folder, &mut usage, DEEPEST, Instant::now() + LONGEST).unwrap_err();
        assert!(error.to_string().contains("too many"), "{error}");
        let mut usage = Usage { entries: STRIDE - 1, ..Usage::default() };
        let error = visit(&folder, &mut usage, DEEPEST, Instant::now()).unwrap_err();
        assert!(error.to_string().contains("too long"), "{error}");
    }
}
