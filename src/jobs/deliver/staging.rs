//! The staging area: one folder for each job, on our own disk, until its files are where they belong.
//!
//! Invariants: a folder's name is its job's id; a folder is removed only when its job ended, or is unknown for a day
//! (nothing is deleted because a row is missing); no download starts that would leave less than the reserve free.

use std::fs;
use std::fs::File;
use std::io;
use std::io::Read;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;
use std::time::SystemTime;

use sha2::Digest;
use sha2::Sha256;

/// How long the folder of a job that nobody knows is kept.
pub const UNKNOWN_KEPT: Duration = Duration::from_hours(24);

/// Where downloads rest. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Staging {
    root: PathBuf,
    reserve_bytes: u64,
}

/// What lies in some folders.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Used {
    /// In how many something lies.
    pub jobs: usize,
    /// How many bytes.
    pub bytes: u64,
}

impl Used {
    /// Whether there is room for another recording of this size; an only one may be larger than all together.
    pub fn leaves(self, size: u64, max_jobs: usize, max_bytes: u64) -> bool {
        self.jobs == 0 || (self.jobs < max_jobs && self.bytes.saturating_add(size.max(1)) <= max_bytes)
    }
}

/// The bytes of the files in a folder.
fn files(folder: &Path) -> io::Result<u64> {
    let mut bytes: u64 = 0;
    for entry in fs::read_dir(folder)? {
        bytes = bytes.saturating_add(entry?.metadata()?.len());
    }
    Ok(bytes)
}

/// What is known of the job whose folder lies there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// It may still need its files.
    Unfinished,
    /// It ended.
    Finished,
    /// There is no such job.
    Unknown,
}

impl Staging {
    /// Staging below this folder, which is made when needed.
    pub fn new(root: PathBuf, reserve_bytes: u64) -> Self {
        Self { root, reserve_bytes }
    }

    /// The folder of a job; it may not exist. `job` has to be an identifier of ours, which cannot leave the root.
    pub fn folder(&self, job: &str) -> PathBuf {
        self.root.join(job)
    }

    /// Makes the folder of a job.
    pub fn make(&self, job: &str) -> io::Result<PathBuf> {
        let folder = self.folder(job);
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
        Ok(folder)
    }

    /// Removes the folder of a job, if there is one.
    pub fn remove(&self, job: &str) -> io::Result<()> {
        match fs::remove_dir_all(self.folder(job)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }

    /// Whether this many bytes more leave the reserve untouched.
    pub fn has_room(&self, more: u64) -> io::Result<bool> {
        let at = if self.root.exists() { self.root.as_path() } else { self.root.parent().unwrap_or(&self.root) };
        let stat = rustix::fs::statvfs(at)?;
        let free = stat.f_bavail.saturating_mul(stat.f_frsize);
        Ok(free >= more.saturating_add(self.reserve_bytes))
    }

    /// What lies in the folders whose names are meant.
    pub fn used(&self, is_meant: impl Fn(&str) -> bool) -> io::Result<Used> {
        let mut used = Used::default();
        for (job, _) in self.jobs()?.into_iter().filter(|(job, _)| is_meant(job)) {
            let bytes = match files(&self.folder(&job)) {
                // It ended just now.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                bytes => bytes?,
            };
            // A job that has begun and fetched nothing takes no room yet.
            if bytes > 0 {
                used.jobs += 1;
                used.bytes = used.bytes.saturating_add(bytes);
            }
        }
        Ok(used)
    }

    /// The jobs whose folders lie there, with the time of the last change of each.
    pub fn jobs(&self) -> io::Result<Vec<(String, SystemTime)>> {
        let entries = match fs::read_dir(&self.root) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut found = Vec::new();
        for entry in entries {
            let entry = entry?;
            if entry.file_type()?.is_dir()
                && let Ok(name) = entry.file_name().into_string()
            {
                found.push((name, entry.metadata()?.modified()?));
            }
        }
        Ok(found)
    }
}

/// Whether a folder may go.
pub fn may_go(owner: Owner, changed: SystemTime, now: SystemTime) -> bool {
    match owner {
        Owner::Unfinished => false,
        Owner::Finished => true,
        // A clock that went back makes the folder young again, which keeps it.
        Owner::Unknown => now.duration_since(changed).is_ok_and(|age| age >= UNKNOWN_KEPT),
    }
}

/// Size and SHA-256 (hexadecimal) of a file.
pub fn digest(path: &Path) -> io::Result<(u64, String)> {
    let mut file = File::open(path)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 256 * 1024];
    let mut size = 0;
    loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            return Ok((size, hex(&hash.finalize())));
        }
        hash.update(&buffer[..read]);
        size += read as u64;
    }
}

/// Lower-case hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_go_when_their_job_ended_and_strangers_after_a_day() {
        let now = SystemTime::now();
        let old = now - UNKNOWN_KEPT;
        assert!(!may_go(Owner::Unfinished, old, now));
        assert!(may_go(Owner::Finished, now, now));
        assert!(!may_go(Owner::Unknown, now, now));
        assert!(may_go(Owner::Unknown, old, now));
        assert!(!may_go(Owner::Unknown, now + UNKNOWN_KEPT, now), "a clock that jumped deletes nothing");
    }

    #[test]
    fn removing_what_is_not_there_is_no_error() {
        let dir = tempfile::tempdir().unwrap();
        let staging = Staging::new(dir.path().join("delivery"), 0);
        staging.remove("job").unwrap();
        assert_eq!(staging.jobs().unwrap(), []);
        let folder = staging.make("job").unwrap();
        fs::write(folder.join("video.mp4"), "abc").unwrap();
        assert_eq!(staging.jobs().unwrap().len(), 1);
        let (size, sha256) = digest(&folder.join("video.mp4")).unwrap();
        assert_eq!((size, &sha256[..8]), (3, "ba7816bf"));
        staging.remove("job").unwrap();
        assert!(!folder.exists());
    }

    #[test]
    fn what_lies_here_is_counted_by_whose_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let staging = Staging::new(dir.path().join("delivery"), 0);
        for (job, content) in [("a1", "12345"), ("a2", "1"), ("a3", ""), ("b1", "123")] {
            fs::write(staging.make(job).unwrap().join("video.mp4"), content).unwrap();
        }
        let used = staging.used(|job| job.starts_with('a')).unwrap();
        assert_eq!(used, Used { jobs: 2, bytes: 6 });
        assert!(used.leaves(4, 3, 10) && !used.leaves(5, 3, 10) && !used.leaves(1, 2, 10));
        assert!(Used::default().leaves(11, 3, 10), "an only one may be larger");
        assert!(!Used { jobs: 1, bytes: 10 }.leaves(0, 3, 10), "of unknown size");
    }

    #[test]
    fn the_reserve_stays_free() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Staging::new(dir.path().to_owned(), 0).has_room(0).unwrap());
        assert!(!Staging::new(dir.path().to_owned(), u64::MAX).has_room(1).unwrap());
    }
}
