//! The jailer: the hidden subcommand that becomes a `PocketBase`.
//!
//! pocketfleet starts itself with [`SUBCOMMAND`] by `posix_spawn` (a `fork` of a big process costs tens of
//! milliseconds, and `PR_SET_PDEATHSIG` would tie children to a *thread*). The jailer is small, single-threaded and
//! already in the child: it makes a session of its own, sets limits, takes the lock of the data directory, and
//! execs. The lock's descriptor is the only one above 2 that survives, so the kernel holds the lock exactly as long
//! as the process lives. The sandbox proper (Landlock, seccomp, uid) belongs between the limits and the exec.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use rustix::fs::FlockOperation;
use rustix::fs::Mode;
use rustix::fs::OFlags;
use rustix::process::Resource;
use rustix::process::Rlimit;
use serde::Deserialize;
use serde::Serialize;

/// First argument that turns the program into the jailer.
pub const SUBCOMMAND: &str = "__jail";

/// Folder for temporary files, inside the working directory.
pub const TMP: &str = "tmp";

/// Exit codes of the jailer, one per step. `PocketBase` itself uses 0 to 2.
pub mod exit {
    /// The specification could not be read.
    pub const SPEC: u8 = 120;
    /// Another process holds the data directory.
    pub const LOCKED: u8 = 121;
    /// The session or the working directory failed.
    pub const SESSION: u8 = 122;
    /// A limit was refused.
    pub const LIMITS: u8 = 123;
    /// Closing inherited descriptors or `no_new_privs` failed.
    pub const SEAL: u8 = 124;
    /// The lock file could not be opened.
    pub const LOCK_FILE: u8 = 125;
    /// The binary could not be executed.
    pub const EXEC: u8 = 126;
}

/// What the jailer is told, as one JSON argument. Arguments are world-readable: nothing secret goes in here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spec {
    /// The program.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<String>,
    /// Working directory.
    pub directory: PathBuf,
    /// File whose lock says that the data directory is in use.
    pub lock: PathBuf,
    /// `RLIMIT_NOFILE`.
    pub nofile: u64,
    /// `RLIMIT_NPROC`; 0 leaves it alone.
    pub nproc: u64,
    /// `RLIMIT_DATA` in bytes; 0 leaves it alone.
    pub data_bytes: u64,
}

/// Becomes the program of the specification. Returns only when a step failed: its exit code, after one line on
/// standard error (which is the instance's log file).
pub fn run(spec: &str) -> u8 {
    let Ok(spec) = serde_json::from_str::<Spec>(spec) else {
        return failed(exit::SPEC, "read the specification", &"not the expected JSON");
    };
    if let Err(error) = rustix::process::setsid().and_then(|_| rustix::process::chdir(&spec.directory)) {
        return failed(exit::SESSION, "enter the session and the directory", &error);
    }
    if let Err(error) = limit(&spec) {
        return failed(exit::LIMITS, "set the limits", &error);
    }
    if let Err(error) = seal() {
        return failed(exit::SEAL, "close inherited descriptors", &error);
    }
    // Without CLOEXEC on purpose: this descriptor is what the program inherits.
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW;
    let lock = match rustix::fs::open(&spec.lock, flags, Mode::RUSR | Mode::WUSR) {
        Ok(lock) => lock,
        Err(error) => return failed(exit::LOCK_FILE, "open the lock file", &error),
    };
    if let Err(error) = rustix::fs::flock(lock.as_fd(), FlockOperation::NonBlockingLockExclusive) {
        return failed(exit::LOCKED, "lock the data directory", &error);
    }
    #[expect(clippy::disallowed_methods, reason = "this is the one exec of the jailer; nothing is spawned")]
    let error = Command::new(&spec.program)
        .args(&spec.args)
        .env_clear()
        // PocketBase spools large uploads there; they count as the tenant's and go with it.
        .env("TMPDIR", spec.directory.join(TMP))
        .exec();
    failed(exit::EXEC, "execute the PocketBase binary", &error)
}

fn limit(spec: &Spec) -> rustix::io::Result<()> {
    let set = |resource, value: u64| {
        let hard = rustix::process::getrlimit(resource).maximum;
        let value = Some(hard.map_or(value, |hard| value.min(hard)));
        rustix::process::setrlimit(resource, Rlimit { current: value, maximum: value })
    };
    set(Resource::Core, 0)?;
    set(Resource::Nofile, spec.nofile)?;
    if spec.nproc > 0 {
        set(Resource::Nproc, spec.nproc)?;
    }
    if spec.data_bytes > 0 {
        set(Resource::Data, spec.data_bytes)?;
    }
    Ok(())
}

/// No new privileges, and nothing inherited but the standard streams: a concurrent start in the parent may have
/// had descriptors open that were not meant for us.
fn seal() -> std::io::Result<()> {
    nix::sys::prctl::set_no_new_privs()?;
    let mut open = Vec::new();
    for entry in std::fs::read_dir("/proc/self/fd")? {
        if let Some(fd) = entry?.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) {
            open.push(fd);
        }
    }
    for fd in open.into_iter().filter(|fd| *fd > 2) {
        #[expect(unsafe_code, reason = "a number from /proc/self/fd has no safe owner")]
        // SAFETY: the number was listed by the kernel a moment ago in this single-threaded process and is only used
        // to set a flag; if it was the directory stream's own descriptor, now closed, the call answers EBADF.
        let fd = unsafe { std::os::fd::BorrowedFd::borrow_raw(fd) };
        match rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::CLOEXEC) {
            Ok(()) | Err(rustix::io::Errno::BADF) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn failed(code: u8, step: &str, error: &dyn std::fmt::Display) -> u8 {
    use std::io::Write;
    // The log file is all there is to tell; if even that fails, the exit code still says which step it was.
    let written = writeln!(std::io::stderr(), "pocketfleet jailer: {step}: {error}");
    if written.is_err() {
        return code;
    }
    code
}

/// Tries the lock without keeping it: whether some process still uses the data directory.
pub fn is_locked(lock: &std::path::Path) -> std::io::Result<bool> {
    let file = match File::options().read(true).write(true).open(lock) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    match rustix::fs::flock(file.as_fd(), FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(false),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(true),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lock_is_seen_while_another_descriptor_holds_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        assert!(!is_locked(&path).unwrap(), "a missing file is not locked");
        let holder = File::create(&path).unwrap();
        assert!(!is_locked(&path).unwrap());
        rustix::fs::flock(holder.as_fd(), FlockOperation::NonBlockingLockExclusive).unwrap();
        assert!(is_locked(&path).unwrap());
        drop(holder);
        assert!(!is_locked(&path).unwrap());
    }
}
