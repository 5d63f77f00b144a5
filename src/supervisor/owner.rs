//! Whose the files of an instance are.
//!
//! Where tenants have users of their own (level 2), what lies in `pb_data` and `tmp` belongs to the tenant's user, and
//! the folder around them to us: a tenant cannot exchange them. Whatever made, copied or put back a data directory as
//! us is put right before the next start, by one rule: the note beside it names the user and the directory's inode, and
//! one that does not match means that everything is looked at. Otherwise only the first level is, where `SQLite`
//! running as us may have left something.
//!
//! The tenant owns what is walked here, and may have put links into it at a time without a sandbox: every step is one
//! name below an open folder, links are not followed, and what has a second name elsewhere and is not the tenant's
//! already is refused and not given away.

use std::fs;
use std::fs::Permissions;
use std::io;
use std::os::fd::AsFd;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use rustix::fs::AtFlags;
use rustix::fs::CWD;
use rustix::fs::Dir;
use rustix::fs::FileType;
use rustix::fs::Gid;
use rustix::fs::Mode;
use rustix::fs::OFlags;
use rustix::fs::ResolveFlags;
use rustix::fs::Uid;
use rustix::io::Errno;

use crate::supervisor::files;
use crate::supervisor::jail;

/// Says for whom the data directory was put right, and which directory that was.
const NOTE: &str = "owner";
const DATA: &str = "pb_data";
/// Folders in folders. `PocketBase` makes three levels.
const DEEPEST: usize = 64;

/// How far a walk goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reach {
    Whole,
    FirstLevel,
}

/// Makes an instance's files the user's, or ours again when it has none. Nobody may have them open. Blocks.
pub(super) fn settle(instance: &Path, user: Option<u32>) -> io::Result<()> {
    let note = instance.join(NOTE);
    let noted = match fs::read_to_string(&note) {
        Ok(text) => Some(text),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    let data = instance.join(DATA);
    let Some(user) = user else {
        if noted.is_some() {
            give(&data, us(), Reach::Whole)?;
            fs::set_permissions(instance, Permissions::from_mode(0o700))?;
            fs::remove_file(&note)?;
        }
        return Ok(());
    };
    let owner = (Uid::from_raw(user), Gid::from_raw(user));
    // Through, for the tenant alone; to look into or to change, for us.
    let around = instance.symlink_metadata()?;
    if around.gid() != user {
        rustix::fs::chownat(CWD, instance, None, Some(owner.1), AtFlags::SYMLINK_NOFOLLOW)?;
    }
    if around.mode() & 0o777 != 0o710 {
        fs::set_permissions(instance, Permissions::from_mode(0o710))?;
    }
    let temporary = instance.join(jail::TMP);
    if files::exists(&temporary)? {
        give(&temporary, owner, Reach::Whole)?;
        fs::set_permissions(&temporary, Permissions::from_mode(0o700))?;
    }
    let found = data.symlink_metadata()?;
    let now = format!("{user} {} {}", found.dev(), found.ino());
    let reach = if noted.as_deref() == Some(&now) { Reach::FirstLevel } else { Reach::Whole };
    give(&data, owner, reach)?;
    if reach == Reach::Whole {
        fs::set_permissions(&data, Permissions::from_mode(0o700))?;
        fs::write(&note, now)?;
    }
    Ok(())
}

/// Makes a folder of ours, and what is in it, somebody's who is to work in it for a moment.
pub(super) fn lend(folder: &Path, user: u32) -> io::Result<()> {
    give(folder, (Uid::from_raw(user), Gid::from_raw(user)), Reach::Whole)
}

/// Makes it ours again.
pub(super) fn take_back(folder: &Path) -> io::Result<()> {
    give(folder, us(), Reach::Whole)
}

/// Lets everybody read a folder of ours and what is in it, and pass through the folder that it lies in.
pub(super) fn publish(folder: &Path) -> io::Result<()> {
    if let Some(parent) = folder.parent() {
        add(parent, 0o011)?;
    }
    if folder.metadata()?.permissions().mode() & 0o055 == 0o055 {
        return Ok(());
    }
    for path in files::list(folder)? {
        add(&folder.join(&path), 0o044)?;
        // The folders on the way to it.
        for parent in path.ancestors().skip(1).filter(|parent| !parent.as_os_str().is_empty()) {
            add(&folder.join(parent), 0o055)?;
        }
    }
    // Last: it says that the rest is done.
    add(folder, 0o055)
}

/// Lets everybody pass through a folder of ours, to what they know the name of.
pub(super) fn pass_through(folder: &Path) -> io::Result<()> {
    add(folder, 0o011)
}

/// Lets other users pass through the data directory to what is theirs, and to nothing else in it.
pub fn open_data(root: &Path) -> io::Result<()> {
    for entry in fs::read_dir(root)? {
        let entry = entry?;
        let mode = entry.metadata()?.permissions().mode();
        let wanted = match entry.file_name().to_str() {
            Some("instances" | "golden" | "staging") => mode & !0o007 | 0o001,
            Some("empty") => mode & !0o007 | 0o005,
            _ => mode & !0o007,
        };
        // Links are the operator's, who decides who may use them.
        if wanted != mode && !entry.file_type()?.is_symlink() {
            fs::set_permissions(entry.path(), Permissions::from_mode(wanted & 0o7777))?;
        }
    }
    add(root, 0o001)
}

fn add(path: &Path, bits: u32) -> io::Result<()> {
    let mode = path.metadata()?.permissions().mode();
    if mode & bits == bits { Ok(()) } else { fs::set_permissions(path, Permissions::from_mode(mode & 0o7777 | bits)) }
}

fn us() -> (Uid, Gid) {
    (rustix::process::geteuid(), rustix::process::getegid())
}

const BENEATH: ResolveFlags = ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_MAGICLINKS);

fn give(root: &Path, owner: (Uid, Gid), reach: Reach) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let folder = rustix::fs::open(root, flags, Mode::empty())?;
    own(&folder, owner, &|| root.display().to_string())?;
    walk(&folder, owner, reach, 0).map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", root.display())))
}

fn walk(folder: &OwnedFd, owner: (Uid, Gid), reach: Reach, depth: usize) -> io::Result<()> {
    if depth > DEEPEST {
        return Err(io::Error::other("folders lie too deep in each other"));
    }
    for entry in Dir::read_from(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        let peek = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let found = match rustix::fs::openat2(folder, name, peek, Mode::empty(), BENEATH) {
            Ok(found) => found,
            Err(Errno::NOENT) => continue,
            Err(error) => return Err(error.into()),
        };
        let kind = own(&found, owner, &|| name.to_string_lossy().into_owned())?;
        if kind == FileType::Directory && reach == Reach::Whole {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let below = rustix::fs::openat2(folder, name, flags, Mode::empty(), BENEATH)?;
            walk(&below, owner, reach, depth + 1)?;
        }
    }
    Ok(())
}

/// Gives away what a descriptor is of, so that nothing can be put in its place between looking and giving.
fn own(found: &OwnedFd, owner: (Uid, Gid), name: &dyn Fn() -> String) -> io::Result<FileType> {
    let stat = rustix::fs::fstat(found)?;
    let kind = FileType::from_raw_mode(stat.st_mode);
    let is_theirs = stat.st_uid == owner.0.as_raw();
    if is_theirs && stat.st_gid == owner.1.as_raw() {
        return Ok(kind);
    }
    match kind {
        FileType::RegularFile if stat.st_nlink > 1 && !is_theirs => {
            let text =
                format!("{} has a second name elsewhere and belongs to another user: replace it by a copy", name());
            Err(io::Error::new(io::ErrorKind::PermissionDenied, text))
        }
        FileType::RegularFile | FileType::Directory => {
            rustix::fs::chownat(found.as_fd(), c"", Some(owner.0), Some(owner.1), AtFlags::EMPTY_PATH)?;
            Ok(kind)
        }
        // Links, pipes, sockets and devices are nothing that PocketBase needs: they stay whose they are.
        other => Ok(other),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::path::PathBuf;

    use super::*;

    const USER: u32 = 1_900_123_456;

    /// Only root can give files away.
    fn is_root() -> bool {
        let is_root = rustix::process::geteuid().is_root();
        if !is_root {
            #[expect(clippy::print_stderr, reason = "a test that does not run says so")]
            {
                eprintln!("skipped: giving files to another user takes root");
            }
        }
        is_root
    }

    fn instance(root: &Path) -> PathBuf {
        let instance = root.join("a");
        fs::create_dir_all(instance.join("pb_data/storage/c")).unwrap();
        fs::create_dir(instance.join("tmp")).unwrap();
        fs::write(instance.join("pb_data/data.db"), "").unwrap();
        fs::write(instance.join("pb_data/storage/c/f"), "").unwrap();
        instance
    }

    fn owner(path: &Path) -> u32 {
        path.symlink_metadata().unwrap().uid()
    }

    #[test]
    fn everything_is_put_right_once_and_again_when_the_directory_was_exchanged() {
        if !is_root() {
            return;
        }
        let root = tempfile::tempdir().unwrap();
        let instance = instance(root.path());
        settle(&instance, Some(USER)).unwrap();
        for path in ["pb_data", "pb_data/data.db", "pb_data/storage/c/f", "tmp"] {
            assert_eq!(owner(&instance.join(path)), USER, "{path}");
        }
        assert_eq!(owner(&instance), 0);
        // As SQLite running as us leaves it.
        fs::write(instance.join("pb_data/data.db-wal"), "").unwrap();
        settle(&instance, Some(USER)).unwrap();
        assert_eq!(owner(&instance.join("pb_data/data.db-wal")), USER);
        // As a restore leaves it.
        fs::rename(instance.join("pb_data"), instance.join("old")).unwrap();
        fs::create_dir_all(instance.join("pb_data/storage/c")).unwrap();
        fs::write(instance.join("pb_data/storage/c/f"), "").unwrap();
        settle(&instance, Some(USER)).unwrap();
        assert_eq!(owner(&instance.join("pb_data/storage/c/f")), USER);
        // And back, when the level is lowered.
        settle(&instance, None).unwrap();
        assert_eq!(owner(&instance.join("pb_data/storage/c/f")), 0);
        assert!(!instance.join(NOTE).exists());
    }

    #[test]
    fn links_are_not_followed_and_second_names_are_not_given_away() {
        if !is_root() {
            return;
        }
        let root = tempfile::tempdir().unwrap();
        let instance = instance(root.path());
        let theirs = root.path().join("theirs");
        fs::create_dir(&theirs).unwrap();
        fs::write(theirs.join("secret"), "").unwrap();
        symlink(&theirs, instance.join("pb_data/folder")).unwrap();
        symlink(theirs.join("secret"), instance.join("pb_data/file")).unwrap();
        settle(&instance, Some(USER)).unwrap();
        assert_eq!((owner(&theirs), owner(&theirs.join("secret"))), (0, 0));

        fs::hard_link(theirs.join("secret"), instance.join("pb_data/second")).unwrap();
        let error = settle(&instance, Some(USER)).unwrap_err().to_string();
        assert!(error.contains("second has a second name"), "{error}");
        assert_eq!(owner(&theirs.join("secret")), 0);

        fs::remove_file(instance.join("pb_data/second")).unwrap();
        fs::remove_dir_all(instance.join("pb_data")).unwrap();
        symlink(&theirs, instance.join("pb_data")).unwrap();
        settle(&instance, Some(USER)).unwrap_err();
        assert_eq!(owner(&theirs), 0, "not even when the directory itself is a link");
    }

    #[test]
    fn what_is_published_can_be_read_and_the_rest_of_the_data_is_closed() {
        let root = tempfile::tempdir().unwrap();
        let mode = |path: &str| root.path().join(path).metadata().unwrap().permissions().mode() & 0o777;
        for folder in ["instances", "golden", "run", "empty", "golden/t/template/pb_hooks/x"] {
            fs::create_dir_all(root.path().join(folder)).unwrap();
        }
        fs::write(root.path().join("control.db"), "").unwrap();
        fs::write(root.path().join("golden/t/template/pb_hooks/x/a.js"), "").unwrap();
        fs::set_permissions(root.path().join("golden/t/template/pb_hooks"), Permissions::from_mode(0o700)).unwrap();
        open_data(root.path()).unwrap();
        assert_eq!((mode("instances") & 7, mode("run") & 7, mode("control.db") & 7), (1, 0, 0));
        assert_eq!((mode("empty") & 7, mode("") & 1), (5, 1));
        publish(&root.path().join("golden/t/template/pb_hooks")).unwrap();
        assert_eq!((mode("golden/t/template/pb_hooks") & 5, mode("golden/t/template/pb_hooks/x/a.js") & 4), (5, 4));
    }
}
