//! A folder of this server: the operator names the root, each user has a folder of their own in it.
//!
//! Invariants: every step down opens one plain name without following a link, so nothing leads out of the root; a file
//! appears under its name only when it is whole, compared with its hash and on the disk.

use std::fmt;
use std::io;
use std::os::fd::AsFd;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use rustix::fs::AtFlags;
use rustix::fs::CWD;
use rustix::fs::FileType;
use rustix::fs::Mode;
use rustix::fs::OFlags;
use rustix::fs::fstat;
use rustix::fs::fsync;
use rustix::fs::ftruncate;
use rustix::fs::mkdirat;
use rustix::fs::openat;
use rustix::fs::renameat;
use rustix::fs::statat;
use rustix::fs::unlinkat;
use rustix::io::Errno;
use serde_json::Value;
use sha2::Digest;
use sha2::Sha256;

use super::Capabilities;
use super::Delivered;
use super::Destination;
use super::Outgoing;
use super::Report;
use super::Resume;
use super::Upload;
use super::error::Error;
use crate::jobs::deliver::names;
use crate::jobs::deliver::staging::hex;

/// What is copied between two reports.
const PART: usize = 8 * 1024 * 1024;
const CHUNK: usize = 256 * 1024;

/// The folder of one user, or one below it.
pub struct Folder {
    root: PathBuf,
    below: Vec<String>,
}

impl fmt::Debug for Folder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Folder").field("below", &self.below).finish_non_exhaustive()
    }
}

impl Folder {
    /// The folder `subfolder` (empty = none) of `user` below the operator's `root`.
    pub fn new(root: PathBuf, user: &str, subfolder: &str) -> Result<Self, Error> {
        let mut below = vec![user.to_owned()];
        if !subfolder.is_empty() {
            below.push(subfolder.to_owned());
        }
        if !below.iter().all(|name| names::is_plain(name)) {
            return Err(Error::Settings("subfolder has to be one plain name, without / and not hidden"));
        }
        Ok(Self { root, below })
    }

    /// Opens the folder for a bundle, making what is missing.
    fn open(&self, bundle: Option<&str>) -> Result<OwnedFd, Error> {
        self.walk(bundle, true)
    }

    fn walk(&self, bundle: Option<&str>, is_made: bool) -> Result<OwnedFd, Error> {
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
        let mut at = openat(CWD, &self.root, flags, Mode::empty())?;
        for name in self.below.iter().map(String::as_str).chain(bundle) {
            if !names::is_plain(name) {
                return Err(Error::Settings("a name on the way is not plain"));
            }
            if is_made {
                match mkdirat(&at, name, Mode::from_raw_mode(0o750)) {
                    Ok(()) => fsync(&at)?,
                    Err(Errno::EXIST) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            at = openat(&at, name, flags | OFlags::NOFOLLOW, Mode::empty()).map_err(no_link)?;
        }
        Ok(at)
    }

    fn location(&self, file: &Outgoing) -> String {
        let mut parts: Vec<&str> = self.below.iter().map(String::as_str).collect();
        parts.extend([file.folder.as_str(), file.name.as_str()]);
        parts.join("/")
    }

    fn delivered(&self, file: &Outgoing) -> Delivered {
        Delivered { url: None, location: self.location(file) }
    }

    fn copy(&self, file: &Outgoing, offset: u64) -> Result<u64, Error> {
        use std::os::unix::fs::FileExt;
        let folder = self.open(Some(&file.folder))?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let part = openat(&folder, partial(file), flags, Mode::from_raw_mode(0o640)).map_err(no_link)?;
        let has = u64::try_from(fstat(&part)?.st_size).unwrap_or_default();
        if has < offset {
            return Err(Error::Gone);
        }
        // What lies beyond was written before it was noted.
        ftruncate(&part, offset)?;
        let (source, target) = (std::fs::File::open(&file.path)?, std::fs::File::from(part));
        let mut buffer = vec![0; CHUNK];
        let end = file.size.min(offset + PART as u64);
        let mut at = offset;
        while at < end {
            let want = usize::try_from(end - at).unwrap_or(CHUNK).min(CHUNK);
            let read = source.read_at(&mut buffer[..want], at)?;
            if read == 0 {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
            target.write_all_at(&buffer[..read], at)?;
            at += read as u64;
        }
        Ok(at)
    }

    /// Syncs the part, compares it, and gives it its name.
    fn place(&self, file: &Outgoing) -> Result<Delivered, Error> {
        let folder = self.open(Some(&file.folder))?;
        let part = partial(file);
        match holds(&folder, &part, file)? {
            Content::Right => {}
            Content::Absent if holds(&folder, &file.name, file)? == Content::Right => {
                return Ok(self.delivered(file));
            }
            Content::Absent => return Err(Error::Gone),
            Content::Other => {
                unlinkat(&folder, &part, AtFlags::empty())?;
                return Err(Error::Gone);
            }
        }
        let open = openat(&folder, &part, OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
        fsync(&open)?;
        renameat(&folder, &part, &folder, &file.name)?;
        fsync(&folder)?;
        Ok(self.delivered(file))
    }

    fn look(&self, file: &Outgoing, upload: &Upload) -> Result<Resume, Error> {
        let folder = self.open(Some(&file.folder))?;
        match statat(&folder, partial(file), AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => {
                let has = u64::try_from(stat.st_size).unwrap_or_default();
                let offset = has.min(upload.offset).min(file.size);
                Ok(Resume::At(Upload { offset, state: Value::Null }))
            }
            Err(Errno::NOENT) if holds(&folder, &file.name, file)? == Content::Right => {
                Ok(Resume::Complete(self.delivered(file)))
            }
            Err(Errno::NOENT) => Ok(Resume::StartOver),
            Err(error) => Err(error.into()),
        }
    }

    fn forget(&self, file: &Outgoing) -> Result<(), Error> {
        let folder = self.open(Some(&file.folder))?;
        let _ = unlinkat(&folder, partial(file), AtFlags::empty());
        // Only if nothing else is in it.
        let parent = self.open(None)?;
        let _ = unlinkat(&parent, &file.folder, AtFlags::REMOVEDIR);
        Ok(())
    }

    fn probe(&self) -> Result<(), Error> {
        let folder = self.open(None)?;
        let name = format!(".probe-{:016x}", rand::random::<u64>());
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = openat(&folder, &name, flags, Mode::from_raw_mode(0o600))?;
        let written = rustix::io::write(&file, b"pocketfleet").map_err(Error::from);
        unlinkat(&folder, &name, AtFlags::empty())?;
        written.map(drop)
    }

    /// Opens a delivered file for reading; none when it is not there (any more) or is not a plain file.
    pub fn read(&self, bundle: &str, name: &str) -> Result<Option<std::fs::File>, Error> {
        if !names::is_plain(name) {
            return Ok(None);
        }
        let folder = match self.walk(Some(bundle), false) {
            Err(Error::Io(error)) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            found => found?,
        };
        match openat(&folder, name, OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty()) {
            Ok(file) if is_file(&file)? => Ok(Some(file.into())),
            Ok(_) | Err(Errno::NOENT | Errno::LOOP) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

/// The name under which a file grows.
fn partial(file: &Outgoing) -> String {
    format!(".{}.part", file.name)
}

/// A link where a folder or file should be is no place for deliveries.
fn no_link(error: Errno) -> Error {
    match error {
        Errno::LOOP | Errno::NOTDIR | Errno::MLINK => {
            Error::Settings("something on the way is a link or no folder, which is refused")
        }
        other => other.into(),
    }
}

fn is_file(file: impl AsFd) -> Result<bool, Error> {
    Ok(FileType::from_raw_mode(fstat(file)?.st_mode) == FileType::RegularFile)
}

#[derive(Debug, PartialEq, Eq)]
enum Content {
    Right,
    Other,
    Absent,
}

/// Whether the file with this name has exactly the wanted bytes.
fn holds(folder: &OwnedFd, name: &str, file: &Outgoing) -> Result<Content, Error> {
    use std::io::Read;
    let open = match openat(folder, name, OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty()) {
        Ok(open) => open,
        Err(Errno::NOENT) => return Ok(Content::Absent),
        Err(error) => return Err(no_link(error)),
    };
    if !is_file(&open)? || u64::try_from(fstat(&open)?.st_size).unwrap_or_default() != file.size {
        return Ok(Content::Other);
    }
    let mut open = std::fs::File::from(open);
    let (mut hash, mut buffer) = (Sha256::new(), vec![0; CHUNK]);
    loop {
        let read = open.read(&mut buffer)?;
        if read == 0 {
            break;
        }
        hash.update(&buffer[..read]);
    }
    Ok(if hex(&hash.finalize()) == file.sha256 { Content::Right } else { Content::Other })
}

/// Runs file work where it may block.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Error> + Send + 'static) -> Result<T, Error> {
    tokio::task::spawn_blocking(work).await.map_err(|error| Error::Io(io::Error::other(error)))?
}

impl Destination for Arc<Folder> {
    fn capabilities(&self) -> Capabilities {
        Capabilities { resumable: true, max_bytes: None, returns_share_url: false, needs_human: false }
    }

    fn begin<'a>(&'a self, file: &'a Outgoing) -> BoxFuture<'a, Result<Upload, Error>> {
        let (this, file) = (Arc::clone(self), file.clone());
        Box::pin(blocking(move || {
            let folder = this.open(Some(&file.folder))?;
            match unlinkat(&folder, partial(&file), AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => Ok(Upload::default()),
                Err(error) => Err(error.into()),
            }
        }))
    }

    fn resume<'a>(&'a self, file: &'a Outgoing, upload: &'a Upload) -> BoxFuture<'a, Result<Resume, Error>> {
        let (this, file, upload) = (Arc::clone(self), file.clone(), upload.clone());
        Box::pin(blocking(move || this.look(&file, &upload)))
    }

    fn send<'a>(
        &'a self,
        file: &'a Outgoing,
        upload: Upload,
        report: Report<'a>,
    ) -> BoxFuture<'a, Result<Upload, Error>> {
        let (this, file) = (Arc::clone(self), file.clone());
        Box::pin(async move {
            let offset = blocking(move || this.copy(&file, upload.offset)).await?;
            report(offset);
            Ok(Upload { offset, state: Value::Null })
        })
    }

    fn finish<'a>(&'a self, file: &'a Outgoing, _upload: &'a Upload) -> BoxFuture<'a, Result<Delivered, Error>> {
        let (this, file) = (Arc::clone(self), file.clone());
        Box::pin(blocking(move || this.place(&file)))
    }

    fn abandon<'a>(&'a self, file: &'a Outgoing, _upload: &'a Upload) -> BoxFuture<'a, ()> {
        let (this, file) = (Arc::clone(self), file.clone());
        Box::pin(async move { drop(blocking(move || this.forget(&file)).await) })
    }

    fn check(&self) -> BoxFuture<'_, Result<(), Error>> {
        let this = Arc::clone(self);
        Box::pin(blocking(move || this.probe()))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::jobs::deliver::staging::digest;

    fn staged(dir: &std::path::Path, content: &[u8]) -> Outgoing {
        let path = dir.join("staged");
        fs::write(&path, content).unwrap();
        let (size, sha256) = digest(&path).unwrap();
        let (folder, name) = ("2025-03-01_Title_7".to_owned(), "video.mp4".to_owned());
        Outgoing { path, folder, name, content_type: "video/mp4".to_owned(), size, sha256 }
    }

    fn destination(dir: &std::path::Path) -> Arc<Folder> {
        let root = dir.join("root");
        fs::create_dir_all(&root).unwrap();
        Arc::new(Folder::new(root, "ada", "Team").unwrap())
    }

    #[tokio::test]
    async fn a_file_goes_on_where_it_stopped_and_appears_whole() {
        let dir = tempfile::tempdir().unwrap();
        let content = vec![7; PART + 1000];
        let (file, to) = (staged(dir.path(), &content), destination(dir.path()));
        let target = dir.path().join("root/ada/Team/2025-03-01_Title_7/video.mp4");
        to.check().await.unwrap();
        let begun = to.begin(&file).await.unwrap();
        let first = to.send(&file, begun, &|_| {}).await.unwrap();
        assert_eq!((first.offset, target.exists()), (PART as u64, false));
        assert_eq!(to.resume(&file, &first).await.unwrap(), Resume::At(first.clone()));
        let all = to.send(&file, first, &|_| {}).await.unwrap();
        let delivered = to.finish(&file, &all).await.unwrap();
        assert_eq!(delivered.location, "ada/Team/2025-03-01_Title_7/video.mp4");
        assert_eq!(fs::read(&target).unwrap(), content);
        // A kill between the rename and the note of it.
        assert_eq!(to.resume(&file, &all).await.unwrap(), Resume::Complete(delivered.clone()));
        assert_eq!(to.finish(&file, &all).await.unwrap(), delivered);
        assert_eq!(fs::read_dir(target.parent().unwrap()).unwrap().count(), 1, "nothing is left beside it");
    }

    #[tokio::test]
    async fn a_part_with_other_bytes_is_thrown_away() {
        let dir = tempfile::tempdir().unwrap();
        let (file, to) = (staged(dir.path(), b"right"), destination(dir.path()));
        let begun = to.begin(&file).await.unwrap();
        let sent = to.send(&file, begun, &|_| {}).await.unwrap();
        let part = dir.path().join("root/ada/Team/2025-03-01_Title_7/.video.mp4.part");
        fs::write(&part, b"wrong").unwrap();
        assert!(matches!(to.finish(&file, &sent).await, Err(Error::Gone)));
        assert_eq!(to.resume(&file, &sent).await.unwrap(), Resume::StartOver);
    }

    #[tokio::test]
    async fn links_are_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (file, to) = (staged(dir.path(), b"bytes"), destination(dir.path()));
        let elsewhere = dir.path().join("elsewhere");
        fs::create_dir(&elsewhere).unwrap();
        symlink(&elsewhere, dir.path().join("root/ada")).unwrap();
        assert!(matches!(to.begin(&file).await, Err(Error::Settings(_))));
        assert!(matches!(to.check().await, Err(Error::Settings(_))));
        fs::remove_file(dir.path().join("root/ada")).unwrap();
        let begun = to.begin(&file).await.unwrap();
        let folder = dir.path().join("root/ada/Team/2025-03-01_Title_7");
        symlink(elsewhere.join("stolen"), folder.join(".video.mp4.part")).unwrap();
        assert!(matches!(to.send(&file, begun, &|_| {}).await, Err(Error::Settings(_))));
        assert_eq!(fs::read_dir(&elsewhere).unwrap().count(), 0);
        symlink("/etc/hostname", folder.join("secret")).unwrap();
        assert!(to.read("2025-03-01_Title_7", "secret").unwrap().is_none());
        assert!(to.read("2025-03-01_Title_7", "../x").unwrap().is_none());
    }

    #[test]
    fn looking_for_a_file_makes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let to = destination(dir.path());
        assert!(to.read("2025-03-01_Title_7", "video.mp4").unwrap().is_none());
        assert_eq!(fs::read_dir(dir.path().join("root")).unwrap().count(), 0);
    }

    #[test]
    fn the_root_cannot_be_left_by_names() {
        for name in ["..", "a/b", "/etc", ".x"] {
            assert!(Folder::new("/tmp".into(), "ada", name).is_err(), "{name:?}");
        }
    }
}
