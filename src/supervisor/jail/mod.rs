//! The jailer: the hidden subcommand that becomes a `PocketBase`.
//!
//! pocketfleet starts itself with [`SUBCOMMAND`] by `posix_spawn` (a `fork` of a big process costs tens of
//! milliseconds, and `PR_SET_PDEATHSIG` would tie children to a *thread*), or has a jailer that was started before and
//! waits ([`WAIT`]) fork for it. The jailer is small, single-threaded and already in the child: it makes a session of its own, sets limits, takes the lock of the data directory, shuts
//! itself in (`landlock`, `seccomp`, `uid`), and execs. The lock's descriptor is the only one above 2 that survives, so
//! the kernel holds the lock exactly as long as the process lives.
//!
//! Which of it is in force is decided once at the start (`detect`), from what is asked for (`config`). A step that
//! fails ends the start: there is no process with less than what its specification says.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use rustix::fs::FlockOperation;
use rustix::fs::Mode;
use rustix::fs::OFlags;
use serde::Deserialize;
use serde::Serialize;

pub mod cgroup;
pub mod config;
pub mod detect;
pub mod landlock;
mod limits;
pub mod network;
mod seccomp;
mod uid;

pub use detect::Isolation;
pub use limits::Limits;

/// First argument that turns the program into the jailer.
pub const SUBCOMMAND: &str = "__jail";

/// Second argument of the jailer that waits for orders on standard input, a socket, and forks for each (a fork server).
pub const WAIT: &str = "wait";

/// Longest order that it reads, in bytes. Real ones have about two thousand.
pub(super) const LONGEST_ORDER: usize = 64 * 1024;

/// Folder for temporary files, inside the working directory.
pub const TMP: &str = "tmp";

/// Exit codes of the jailer, one per step. `PocketBase` itself uses 0 to 2.
pub mod exit {
    /// The specification could not be read.
    pub const SPEC: u8 = 120;
    /// Another process holds the data directory.
    pub const LOCKED: u8 = 121;
    /// The session, the working directory or the control group failed.
    pub const SESSION: u8 = 122;
    /// A limit was refused.
    pub const LIMITS: u8 = 123;
    /// Closing inherited descriptors or `no_new_privs` failed.
    pub const SEAL: u8 = 124;
    /// The lock file could not be opened.
    pub const LOCK_FILE: u8 = 125;
    /// The binary could not be executed.
    pub const EXEC: u8 = 126;
    /// A part of the sandbox could not be put into force: the log says which.
    pub const SANDBOX: u8 = 127;
}

/// What the jailer is told, as one JSON argument. Arguments are world-readable: nothing secret goes in here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spec {
    /// The program.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<String>,
    /// Its environment, beside `TMPDIR`.
    #[serde(default)]
    pub environment: Vec<(String, String)>,
    /// Working directory.
    pub directory: PathBuf,
    /// File whose lock says that the data directory is in use.
    pub lock: PathBuf,
    /// Limits.
    pub limits: Limits,
    /// The control group to enter.
    pub cgroup: Option<PathBuf>,
    /// The sandbox; none at level 0.
    pub sandbox: Option<Sandbox>,
}

/// What a process may do, and nothing else.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sandbox {
    /// The one file that it may execute.
    pub program: PathBuf,
    /// Folders that it may read and change.
    pub write: Vec<PathBuf>,
    /// Files and folders that it may read.
    pub read: Vec<PathBuf>,
    /// The one TCP port that it may listen on.
    pub bind: Option<u16>,
    /// TCP ports that it may connect to. With none it may not send datagrams either.
    pub outbound: Vec<u16>,
    /// The user, and the group of the same number, that it runs as.
    pub user: Option<u32>,
}

/// What the jailer that waits is told.
#[derive(Debug, Serialize, Deserialize)]
pub struct Order {
    /// The file that takes the output.
    pub log: PathBuf,
    /// What to become.
    pub spec: Spec,
}

/// Becomes the program of the specification, or waits for orders when it is [`WAIT`]. Returns only when a step failed: its
/// exit code, after one line on standard error (which is the instance's log file); or when nobody has orders any more.
pub fn run(spec: &str) -> u8 {
    if spec == WAIT {
        return serve();
    }
    match serde_json::from_str::<Spec>(spec) {
        Ok(spec) => become_program(&spec),
        Err(_) => failed(exit::SPEC, "read the specification", &"not the expected JSON"),
    }
}

/// Answers each order with the pid of a process that obeys it, or a negative error number, until whoever started this
/// process is gone. This process stays small and single-threaded, and is nobody's jail itself.
fn serve() -> u8 {
    let (socket, mut order) = (std::io::stdin(), vec![0; LONGEST_ORDER]);
    // Made once, so that those who obey have them already.
    seccomp::prepare();
    loop {
        let length = match rustix::io::read(&socket, &mut order) {
            Ok(0) => return 0,
            Ok(length) => length,
            Err(rustix::io::Errno::INTR) => continue,
            Err(error) => return failed(exit::SPEC, "take an order", &error),
        };
        let answer = match fork_for_parent() {
            Ok(0) => return obey(&order[..length]),
            Ok(pid) => pid,
            Err(error) => error.raw_os_error().map_or(-libc::EIO, |number| -number),
        };
        if let Err(error) = rustix::io::write(&socket, &answer.to_ne_bytes()) {
            return failed(exit::SPEC, "answer an order", &error);
        }
    }
}

/// A fork whose child is a child of our parent, which watches and reaps it: 0 in the child, its pid here.
fn fork_for_parent() -> std::io::Result<i32> {
    const NONE: libc::c_long = 0;
    let flags = libc::c_long::from(libc::CLONE_PARENT | libc::SIGCHLD);
    #[expect(unsafe_code, reason = "no crate at hand has a safe form of a fork for one's parent")]
    // SAFETY: this process has one thread, so the copy finds every lock and the heap as they are here. Without CLONE_VM
    // memory and stack are its own, and no argument is an address. `fork` differs by CLONE_PARENT and by the handlers of
    // pthread_atfork, of which there are none.
    let pid = unsafe { libc::syscall(libc::SYS_clone, flags, NONE, NONE, NONE, NONE) };
    match i32::try_from(pid) {
        Ok(pid) if pid >= 0 => Ok(pid),
        _ => Err(std::io::Error::last_os_error()),
    }
}

/// From the order on, output goes to the instance's log, and there is no input.
fn obey(order: &[u8]) -> u8 {
    let begin = || -> std::io::Result<Spec> {
        let order: Order = serde_json::from_slice(order)?;
        let log = File::options().append(true).open(&order.log)?;
        nix::unistd::dup2_stderr(&log)?;
        nix::unistd::dup2_stdout(&log)?;
        nix::unistd::dup2_stdin(File::open("/dev/null")?)?;
        Ok(order.spec)
    };
    match begin() {
        Ok(spec) => become_program(&spec),
        Err(error) => failed(exit::SPEC, "take its order", &error),
    }
}

fn become_program(spec: &Spec) -> u8 {
    if let Err(error) = rustix::process::setsid().and_then(|_| rustix::process::chdir(&spec.directory)) {
        return failed(exit::SESSION, "enter the session and the directory", &error);
    }
    if let Some(leaf) = &spec.cgroup
        && let Err(error) = cgroup::enter(leaf)
    {
        return failed(exit::SESSION, "enter its control group", &error);
    }
    if let Err(error) = limits::apply(&spec.limits) {
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
    if let Some(sandbox) = &spec.sandbox
        && let Err((step, error)) = confine(sandbox)
    {
        return failed(exit::SANDBOX, step, &error);
    }
    #[expect(clippy::disallowed_methods, reason = "this is the one exec of the jailer; nothing is spawned")]
    let error = Command::new(&spec.program)
        .args(&spec.args)
        .env_clear()
        .envs(spec.environment.iter().map(|(name, value)| (name, value)))
        // PocketBase spools large uploads there; they count as the tenant's and go with it.
        .env("TMPDIR", spec.directory.join(TMP))
        .exec();
    failed(exit::EXEC, "execute the PocketBase binary", &error)
}

/// Puts the sandbox into force, for good. What needs to be opened is opened while this process still may.
fn confine(sandbox: &Sandbox) -> Result<(), (&'static str, String)> {
    let rules = landlock::rules(sandbox).map_err(|error| ("make the rules of Landlock", error.to_string()))?;
    let filters = seccomp::filters(!sandbox.outbound.is_empty());
    let filters = filters.map_err(|error| ("make the filters of seccomp", error.to_string()))?;
    uid::drop_bounds().map_err(|error| ("give up the bounds of capabilities", error.to_string()))?;
    match sandbox.user {
        Some(user) => uid::become_user(user).map_err(|error| ("become the tenant's user", error.to_string()))?,
        None => uid::drop_groups().map_err(|error| ("give up groups", error.to_string()))?,
    }
    uid::drop_capabilities().map_err(|error| ("give up capabilities", error.to_string()))?;
    if sandbox.user.is_some() {
        uid::no_way_back().map_err(|error| ("give up root", error.to_string()))?;
    }
    landlock::enforce(rules).map_err(|error| ("put Landlock into force", error.to_string()))?;
    seccomp::enforce(filters).map_err(|error| ("put seccomp into force", error.to_string()))
}

/// Keeps this process to these folders, and to files and folders in them, where the kernel can. It stays whose it was: it
/// may have to work on files of a tenant's user.
pub(crate) fn shut_in(write: Vec<PathBuf>) -> Result<(), String> {
    if landlock::version() < landlock::FLOOR {
        return Ok(());
    }
    let program = crate::supervisor::process::own_program();
    // What is not there is found out by whoever looks for it.
    let write = write.into_iter().filter(|folder| folder.is_dir()).collect();
    let sandbox = Sandbox { program, write, read: Vec::new(), bind: None, outbound: Vec::new(), user: None };
    nix::sys::prctl::set_no_new_privs().map_err(|error| error.to_string())?;
    let rules = landlock::rules(&sandbox).map_err(|error| error.to_string())?;
    landlock::enforce(rules).map_err(|error| error.to_string())
}

/// No new privileges, and nothing inherited but the standard streams: a concurrent start in the parent may have
/// had descriptors open that were not meant for us.
fn seal() -> std::io::Result<()> {
    nix::sys::prctl::set_no_new_privs()?;
    #[expect(unsafe_code, reason = "no crate at hand has a safe form of close_range")]
    // SAFETY: the call takes three numbers and sets a flag on descriptors of this single-threaded process.
    let done = unsafe { libc::syscall(libc::SYS_close_range, 3_u32, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    if done == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
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
mod tests;
