//! Objects that are written once and never changed: snapshots and artifacts.
//!
//! The embedded form is a folder. An object is written to a temporary file, synced, and hard-linked to its name: the
//! link fails when the name is taken, so of two writers one wins, and a name never shows half an object, not even
//! after a power cut. Names are walked one word at a time from the folder's own descriptor, and no step follows a
//! symbolic link: no key and no link placed in the folder leads outside.

use std::ffi::OsStr;
use std::fmt;
use std::fs::File;
use std::io;
use std::io::Read;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use std::time::SystemTime;

use bytes::Bytes;
use rustix::fs::AtFlags;
use rustix::fs::Dir;
use rustix::fs::FileType;
use rustix::fs::Mode;
use rustix::fs::OFlags;
use rustix::io::Errno;

use super::BoxFuture;
use super::Error;

/// Longest key in bytes, and most words in it.
const MAX_KEY_BYTES: usize = 512;
const MAX_WORDS: usize = 16;
/// Longest word in bytes: what a file system takes, with room to spare.
const MAX_WORD_BYTES: usize = 200;
/// Largest object that is handed over in memory.
const MAX_IN_MEMORY: u64 = 64 << 20;
/// Where objects are written before they get their name. No key begins with a dot.
const INCOMING: &str = ".incoming";

const FOLDER: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
// NONBLOCK: to open a pipe that somebody placed there must not hang.
const OBJECT: OFlags = OFlags::RDONLY.union(OFlags::NOFOLLOW).union(OFlags::NONBLOCK).union(OFlags::CLOEXEC);

/// An object as a list shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlobInfo {
    /// Its name.
    pub key: String,
    /// Its size in bytes.
    pub bytes: u64,
    /// When it was written, as far as the place where it lies knows.
    pub modified: Option<SystemTime>,
}

/// Put-once objects by key. A key is words of `A-Z a-z 0-9 . _ -` joined by slashes, none of which begins with a dot;
/// anything else is refused as [`Error::Invalid`].
pub trait Blobs: fmt::Debug + Send + Sync + 'static {
    /// Stores an object; durable when it returns. [`Error::Exists`] when the name is taken, also by an equal one.
    fn put<'a>(&'a self, key: &'a str, object: Bytes) -> BoxFuture<'a, Result<(), Error>>;

    /// Stores a copy of a file, of any size. The file must be a regular one and not a symbolic link.
    fn put_file<'a>(&'a self, key: &'a str, file: &'a Path) -> BoxFuture<'a, Result<(), Error>>;

    /// The object, if there is one. [`Error::Invalid`] for one larger than 64 MiB; use [`get_file`](Self::get_file).
    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Bytes>, Error>>;

    /// Writes the object to a new file, which must not exist ([`Error::Exists`]), and syncs it. Returns its size,
    /// none when there is no such object. After an error a part of the file may be left.
    fn get_file<'a>(&'a self, key: &'a str, file: &'a Path) -> BoxFuture<'a, Result<Option<u64>, Error>>;

    /// All objects whose key is under a prefix (empty, or words that end with a slash), in key order.
    fn list<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Vec<BlobInfo>, Error>>;

    /// Removes the object; durable when it returns. False when there was none.
    fn delete<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<bool, Error>>;
}

fn check_key(key: &str) -> Result<(), Error> {
    if key.is_empty() || key.len() > MAX_KEY_BYTES {
        return Err(Error::Invalid("a blob's key has 1 to 512 bytes"));
    }
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    let is_word = |w: &str| !w.is_empty() && w.len() <= MAX_WORD_BYTES && !w.starts_with('.') && w.bytes().all(allowed);
    if key.split('/').count() > MAX_WORDS || !key.split('/').all(is_word) {
        return Err(Error::Invalid("a blob's key is words of A-Z, a-z, 0-9, ., _ and - joined by slashes"));
    }
    Ok(())
}

/// The embedded form: a folder, used by one process. Cheap to clone.
#[derive(Debug, Clone)]
pub struct FolderBlobs {
    folder: Arc<Folder>,
}

impl FolderBlobs {
    /// Opens the folder, makes it (mode 0700) if it is missing, and removes what an earlier process left unfinished.
    /// Blocks for some milliseconds. The folder's parent must exist.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let open = || -> io::Result<Folder> {
            create_folder(rustix::fs::CWD, path)?;
            let root = rustix::fs::open(path, FOLDER, Mode::empty())?;
            create_folder(&root, INCOMING)?;
            let incoming = rustix::fs::openat(&root, INCOMING, FOLDER, Mode::empty())?;
            for name in names(&incoming)? {
                if let Err(error) = rustix::fs::unlinkat(&incoming, &*name, AtFlags::empty()) {
                    tracing::warn!(blob.file = %name.display(), error = %error, "cannot remove an unfinished blob");
                }
            }
            Ok(Folder { root, incoming })
        };
        Ok(Self { folder: Arc::new(open().map_err(Error::engine)?) })
    }

    /// Opens a folder that exists, and changes nothing in it: somebody else may be writing to it.
    pub fn open_existing(path: &Path) -> Result<Self, Error> {
        let open = || -> io::Result<Folder> {
            let root = rustix::fs::open(path, FOLDER, Mode::empty())?;
            // Only writers need it, and this handle's owner does not write.
            let incoming = root.try_clone()?;
            Ok(Folder { root, incoming })
        };
        Ok(Self { folder: Arc::new(open().map_err(Error::engine)?) })
    }

    /// Runs file work on a thread that may block.
    async fn run<T: Send + 'static>(
        &self,
        key: &str,
        work: impl FnOnce(&Folder, &str) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let (folder, key) = (Arc::clone(&self.folder), key.to_owned());
        tokio::task::spawn_blocking(move || work(&folder, &key)).await.map_err(Error::engine)?
    }
}

impl Blobs for FolderBlobs {
    fn put<'a>(&'a self, key: &'a str, object: Bytes) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(self.run(key, move |folder, key| folder.put(key, |file| file.write_all(&object))))
    }

    fn put_file<'a>(&'a self, key: &'a str, file: &'a Path) -> BoxFuture<'a, Result<(), Error>> {
        let source = file.to_owned();
        Box::pin(self.run(key, move |folder, key| {
            let source = rustix::fs::open(&source, OBJECT, Mode::empty()).map_err(Error::engine)?;
            let mut source = regular(source).map_err(Error::engine)?;
            folder.put(key, |file| io::copy(&mut source, file).map(drop))
        }))
    }

    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Bytes>, Error>> {
        Box::pin(self.run(key, |folder, key| {
            let Some(mut file) = folder.find(key)? else { return Ok(None) };
            if file.metadata().map_err(Error::engine)?.len() > MAX_IN_MEMORY {
                return Err(Error::Invalid("the blob is too large to be read into memory"));
            }
            let mut object = Vec::new();
            file.read_to_end(&mut object).map_err(Error::engine)?;
            Ok(Some(object.into()))
        }))
    }

    fn get_file<'a>(&'a self, key: &'a str, file: &'a Path) -> BoxFuture<'a, Result<Option<u64>, Error>> {
        let target = file.to_owned();
        Box::pin(self.run(key, move |folder, key| {
            let Some(mut object) = folder.find(key)? else { return Ok(None) };
            copy_to_new(&mut object, &target).map(Some)
        }))
    }

    fn list<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Vec<BlobInfo>, Error>> {
        Box::pin(self.run(prefix, Folder::list))
    }

    fn delete<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<bool, Error>> {
        Box::pin(self.run(key, Folder::delete))
    }
}

#[derive(Debug)]
struct Folder {
    root: OwnedFd,
    incoming: OwnedFd,
}

impl Folder {
    fn put(&self, key: &str, write: impl FnOnce(&mut File) -> io::Result<()>) -> Result<(), Error> {
        check_key(key)?;
        let temporary = format!("{:032x}", rand::random::<u128>());
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&self.incoming, &*temporary, flags, Mode::RUSR | Mode::WUSR);
        let mut file = File::from(file.map_err(Error::engine)?);
        let stored = write(&mut file).and_then(|()| file.sync_all()).map_err(Error::engine);
        let linked = stored.and_then(|()| self.link(&temporary, key));
        if let Err(error) = rustix::fs::unlinkat(&self.incoming, &*temporary, AtFlags::empty()) {
            // Only space is lost, and the next start gives it back.
            tracing::warn!(blob.key = key, error = %error, "cannot remove a temporary file");
        }
        linked
    }

    fn link(&self, temporary: &str, key: &str) -> Result<(), Error> {
        let (parent, name) = self
            .parent(key, Missing::Create)
            .map_err(Error::engine)?
            .ok_or(Error::Invalid("the blob's key leads through another object"))?;
        match rustix::fs::linkat(&self.incoming, temporary, &parent, name, AtFlags::empty()) {
            Ok(()) => rustix::fs::fsync(&parent).map_err(Error::engine),
            Err(Errno::EXIST) => Err(Error::Exists),
            Err(error) => Err(Error::engine(error)),
        }
    }

    /// The object's file; none when there is none, or something else than a regular file.
    fn find(&self, key: &str) -> Result<Option<File>, Error> {
        check_key(key)?;
        let Some((parent, name)) = self.parent(key, Missing::Tell).map_err(Error::engine)? else { return Ok(None) };
        match rustix::fs::openat(&parent, name, OBJECT, Mode::empty()) {
            Ok(file) => Ok(regular(file).ok()),
            Err(error) if is_absence(error) => Ok(None),
            Err(error) => Err(Error::engine(error)),
        }
    }

    fn delete(&self, key: &str) -> Result<bool, Error> {
        check_key(key)?;
        let Some((parent, name)) = self.parent(key, Missing::Tell).map_err(Error::engine)? else { return Ok(false) };
        match rustix::fs::unlinkat(&parent, name, AtFlags::empty()) {
            Ok(()) => rustix::fs::fsync(&parent).map(|()| true).map_err(Error::engine),
            Err(Errno::ISDIR) => Ok(false),
            Err(error) if is_absence(error) => Ok(false),
            Err(error) => Err(Error::engine(error)),
        }
    }

    fn list(&self, prefix: &str) -> Result<Vec<BlobInfo>, Error> {
        let mut found = Vec::new();
        let start = match prefix.strip_suffix('/') {
            Some(words) => {
                check_key(words)?;
                self.descend(words.split('/'), Missing::Tell)
            }
            None if prefix.is_empty() => self.root.try_clone().map(Some),
            None => return Err(Error::Invalid("a prefix is empty or ends with a slash")),
        };
        if let Some(start) = start.map_err(Error::engine)? {
            collect(&start, prefix, MAX_WORDS, &mut found).map_err(Error::engine)?;
        }
        found.sort_unstable_by(|a, b| a.key.cmp(&b.key));
        Ok(found)
    }

    /// The folder that holds an object, and the object's name in it; none when there is no such folder, or when what
    /// has its name is no folder.
    fn parent<'k>(&self, key: &'k str, missing: Missing) -> io::Result<Option<(OwnedFd, &'k str)>> {
        let (folders, name) = key.rsplit_once('/').map_or((None, key), |(folders, name)| (Some(folders), name));
        let parent = self.descend(folders.into_iter().flat_map(|words| words.split('/')), missing)?;
        Ok(parent.map(|parent| (parent, name)))
    }

    fn descend<'k>(&self, words: impl Iterator<Item = &'k str>, missing: Missing) -> io::Result<Option<OwnedFd>> {
        let mut folder = self.root.try_clone()?;
        for word in words {
            if missing == Missing::Create && create_folder(&folder, word)? {
                rustix::fs::fsync(&folder)?;
            }
            folder = match rustix::fs::openat(&folder, word, FOLDER, Mode::empty()) {
                Ok(next) => next,
                Err(error) if is_absence(error) => return Ok(None),
                Err(error) => return Err(error.into()),
            };
        }
        Ok(Some(folder))
    }
}

/// What to do about folders on the way to an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Missing {
    Create,
    Tell,
}

/// Nothing there, or something (a file, a symbolic link) that no key of ours can lead through.
fn is_absence(error: Errno) -> bool {
    matches!(error, Errno::NOENT | Errno::NOTDIR | Errno::LOOP)
}

/// True when it was made now.
fn create_folder(parent: impl std::os::fd::AsFd, name: impl rustix::path::Arg) -> io::Result<bool> {
    match rustix::fs::mkdirat(parent, name, Mode::RWXU) {
        Ok(()) => Ok(true),
        Err(Errno::EXIST) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn regular(file: OwnedFd) -> io::Result<File> {
    let file = File::from(file);
    if file.metadata()?.is_file() { Ok(file) } else { Err(io::Error::other("not a regular file")) }
}

fn names(folder: &OwnedFd) -> io::Result<Vec<PathBuf>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(folder)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(PathBuf::from(OsStr::from_bytes(name)));
        }
    }
    Ok(names)
}

/// Objects in a folder and, up to a depth, in those below it. What is gone meanwhile or no object is left out.
fn collect(folder: &OwnedFd, prefix: &str, depth: usize, found: &mut Vec<BlobInfo>) -> io::Result<()> {
    for name in names(folder)? {
        let Some(word) = name.to_str().filter(|word| check_key(word).is_ok()) else { continue };
        let stat = match rustix::fs::statat(folder, word, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(error) if is_absence(error) => continue,
            Err(error) => return Err(error.into()),
        };
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => {
                found.push(BlobInfo {
                    key: format!("{prefix}{word}"),
                    bytes: stat.st_size.cast_unsigned(),
                    modified: u64::try_from(stat.st_mtime)
                        .ok()
                        .map(|s| SystemTime::UNIX_EPOCH + Duration::from_secs(s)),
                });
            }
            FileType::Directory if depth > 1 => match rustix::fs::openat(folder, word, FOLDER, Mode::empty()) {
                Ok(below) => collect(&below, &format!("{prefix}{word}/"), depth - 1, found)?,
                Err(error) if is_absence(error) => {}
                Err(error) => return Err(error.into()),
            },
            _ => {}
        }
    }
    Ok(())
}

fn copy_to_new(object: &mut File, target: &Path) -> Result<u64, Error> {
    use std::os::unix::fs::OpenOptionsExt;
    let mut options = std::fs::OpenOptions::new();
    let mut file = match options.write(true).create_new(true).mode(0o600).open(target) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Err(Error::Exists),
        Err(error) => return Err(Error::engine(error)),
    };
    let bytes = io::copy(object, &mut file).map_err(Error::engine)?;
    file.sync_all().map_err(Error::engine)?;
    Ok(bytes)
}
