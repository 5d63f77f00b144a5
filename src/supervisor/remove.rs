//! Removing a tree that somebody else made: as deep, as wide and as closed as they liked.
//!
//! By descriptors, without following a link and without recursion: every folder that is found below the first level is
//! moved up to it, and what is on the first level is emptied and removed. So two folders are open at any time, whatever
//! the depth, and an interrupted removal is simply begun again.

use std::ffi::CStr;
use std::fs;
use std::fs::Permissions;
use std::io;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use rustix::fs::AtFlags;
use rustix::fs::CWD;
use rustix::fs::Dir;
use rustix::fs::Mode;
use rustix::fs::OFlags;
use rustix::fs::RenameFlags;
use rustix::io::Errno;

/// Tries for a name that is not taken; random ones are not guessed.
const TRIES: usize = 16;

/// Removes a folder with everything in it; one that is not there is all right, and of a link the link goes. Nobody may be
/// working in it. Blocks.
pub(super) fn remove_tree(path: &Path) -> io::Result<()> {
    let root = match open(CWD, path) {
        Ok(root) => root,
        Err(Errno::NOENT) => return Ok(()),
        Err(Errno::NOTDIR | Errno::LOOP) => return Ok(rustix::fs::unlink(path)?),
        Err(error) => return Err(error.into()),
    };
    // What is moved up meanwhile may or may not be seen by the same pass.
    loop {
        let (found, removed) = pass(&root)?;
        if found == 0 {
            break;
        }
        if removed == 0 {
            return Err(io::Error::other("what is in it cannot be removed"));
        }
    }
    match rustix::fs::rmdir(path) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Makes an empty folder of whatever is there. One that is empty, open and `user`'s (or ours) already stays, because
/// removing it and making it anew costs the kernel more than a look. Nobody may be working in it. Blocks.
pub(super) fn empty_folder(path: &Path, user: Option<u32>) -> io::Result<()> {
    if let Ok(folder) = open(CWD, path) {
        let found = rustix::fs::fstat(&folder)?;
        let is_theirs = found.st_uid == user.unwrap_or_else(|| rustix::process::geteuid().as_raw());
        if is_theirs && found.st_mode & 0o700 == 0o700 && pass(&folder)?.0 == 0 {
            return Ok(());
        }
    }
    remove_tree(path)?;
    fs::create_dir(path)
}

/// Looks at every name of the first level once: how many there were, and how many of them went.
fn pass(root: &OwnedFd) -> io::Result<(u64, u64)> {
    let (mut found, mut removed) = (0, 0);
    for entry in Dir::read_from(root)? {
        let entry = entry?;
        let name = entry.file_name();
        if is_itself(name) || is_gone(root, name)? {
            continue;
        }
        found += 1;
        if unlink(root, name)? {
            removed += 1;
            continue;
        }
        let folder = match open(root, name) {
            Ok(folder) => folder,
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => continue,
            Err(error) => return Err(error.into()),
        };
        empty(&folder, root)?;
        match rustix::fs::unlinkat(root, name, AtFlags::REMOVEDIR) {
            // Not empty: a listing may leave out what was there, and the next pass looks again.
            Ok(()) => removed += 1,
            Err(Errno::NOENT | Errno::NOTEMPTY) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok((found, removed))
}

/// Removes the files of a folder and moves its folders up.
fn empty(folder: &OwnedFd, root: &OwnedFd) -> io::Result<()> {
    for entry in Dir::read_from(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        if !is_itself(name) && !unlink(folder, name)? {
            move_up(folder, name, root)?;
        }
    }
    Ok(())
}

fn move_up(folder: &OwnedFd, name: &CStr, root: &OwnedFd) -> io::Result<()> {
    for _ in 0..TRIES {
        let fresh = format!(".{:032x}", rand::random::<u128>());
        match rustix::fs::renameat_with(folder, name, root, &fresh, RenameFlags::NOREPLACE) {
            Ok(()) | Err(Errno::NOENT) => return Ok(()),
            Err(Errno::EXIST) => {}
            // To move a folder that is closed takes opening it.
            Err(Errno::ACCESS | Errno::PERM) => {
                open(folder, name)?;
            }
            Err(error) => return Err(error.into()),
        }
    }
    Err(io::Error::other("a folder cannot be moved"))
}

/// Removes what is no folder. Whether it is gone.
fn unlink(folder: &OwnedFd, name: &CStr) -> io::Result<bool> {
    match rustix::fs::unlinkat(folder, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(true),
        Err(Errno::ISDIR) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn is_gone(folder: &OwnedFd, name: &CStr) -> io::Result<bool> {
    match rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(_) => Ok(false),
        Err(Errno::NOENT) => Ok(true),
        Err(error) => Err(error.into()),
    }
}

fn is_itself(name: &CStr) -> bool {
    matches!(name.to_bytes(), b"." | b"..")
}

/// Opens a folder, and lets us into it first if whoever made it closed it.
fn open(at: impl AsFd, name: impl rustix::path::Arg + Copy) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let peek = rustix::fs::openat(&at, name, flags | OFlags::PATH, Mode::empty())?;
    let stat = rustix::fs::fstat(&peek)?;
    if stat.st_mode & 0o700 != 0o700 {
        let path = format!("/proc/self/fd/{}", peek.as_raw_fd());
        fs::set_permissions(path, Permissions::from_mode(0o700))
            .map_err(|error| error.raw_os_error().map_or(Errno::ACCESS, Errno::from_raw_os_error))?;
    }
    rustix::fs::openat(&at, name, flags | OFlags::RDONLY, Mode::empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_of_any_depth_goes_with_a_small_stack() {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("tree");
        fs::create_dir(&tree).unwrap();
        // Deeper than any path can name, as a hook makes it step by step.
        let mut at = rustix::fs::open(&tree, OFlags::DIRECTORY | OFlags::RDONLY, Mode::empty()).unwrap();
        for _ in 0..20_000 {
            rustix::fs::mkdirat(&at, "d", Mode::from_raw_mode(0o700)).unwrap();
            at = rustix::fs::openat(&at, "d", OFlags::DIRECTORY | OFlags::RDONLY, Mode::empty()).unwrap();
        }
        drop(rustix::fs::openat(&at, "file", OFlags::CREATE | OFlags::WRONLY, Mode::RUSR).unwrap());
        drop(at);
        let of = tree.clone();
        std::thread::Builder::new()
            .stack_size(128 << 10)
            .spawn(move || remove_tree(&of))
            .unwrap()
            .join()
            .unwrap()
            .unwrap();
        assert!(!tree.exists());
        remove_tree(&tree).unwrap();
    }

    #[test]
    fn an_empty_folder_stays_if_it_is_whose_it_should_be_and_open_and_anything_else_becomes_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tmp");
        empty_folder(&path, None).unwrap();
        fs::create_dir(path.join("below")).unwrap();
        fs::write(path.join("below").join("file"), "x").unwrap();
        empty_folder(&path, None).unwrap();
        assert_eq!(fs::read_dir(&path).unwrap().count(), 0);
        for mode in [0o000, 0o500] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            empty_folder(&path, None).unwrap();
            assert_eq!(path.metadata().unwrap().permissions().mode() & 0o700, 0o700);
        }
        // One that is somebody else's is made anew: nobody owns our files through it.
        fs::write(dir.path().join("mark"), "").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).unwrap();
        empty_folder(&path, None).unwrap();
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o777, "the same one");
        empty_folder(&path, Some(rustix::process::geteuid().as_raw() + 1)).unwrap();
        assert_ne!(path.metadata().unwrap().permissions().mode() & 0o777, 0o777, "a new one");
        fs::remove_dir(&path).unwrap();
        std::os::unix::fs::symlink(dir.path(), &path).unwrap();
        empty_folder(&path, None).unwrap();
        assert!(path.symlink_metadata().unwrap().is_dir() && dir.path().join("mark").exists(), "links lead nowhere");
    }

    #[test]
    fn what_is_closed_and_what_is_wide_goes_and_links_lead_nowhere() {
        let dir = tempfile::tempdir().unwrap();
        let (tree, outside) = (dir.path().join("tree"), dir.path().join("outside"));
        fs::create_dir_all(tree.join("a/closed/below")).unwrap();
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("kept"), "kept").unwrap();
        for number in 0..3_000 {
            fs::write(tree.join(format!("a/{number}")), "").unwrap();
            fs::create_dir(tree.join(format!("a/closed/{number}"))).unwrap();
        }
        std::os::unix::fs::symlink(&outside, tree.join("a/link")).unwrap();
        std::os::unix::fs::symlink(&outside, dir.path().join("to-outside")).unwrap();
        for closed in ["a/closed/below", "a/closed"] {
            fs::set_permissions(tree.join(closed), Permissions::from_mode(0o000)).unwrap();
        }
        remove_tree(&tree).unwrap();
        remove_tree(&dir.path().join("to-outside")).unwrap();
        assert!(!tree.exists() && dir.path().join("to-outside").symlink_metadata().is_err());
        assert_eq!(fs::read_to_string(outside.join("kept")).unwrap(), "kept");
    }
}
