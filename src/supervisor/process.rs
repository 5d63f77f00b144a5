//! One running process: started through the jailer or adopted from an earlier pocketfleet, watched by pidfd.
//!
//! A pid alone proves nothing (it is reused, and a zombie still answers `kill(pid, 0)`); identity is boot id, start
//! tick and the pidfd's inode together, and signals go through the pidfd.

use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::path::PathBuf;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use rustix::process::Pid;
use rustix::process::PidfdFlags;
use rustix::process::Resource;
use rustix::process::Rlimit;
use rustix::process::Signal;
use rustix::process::WaitId;
use rustix::process::WaitIdOptions;
use rustix::process::WaitOptions;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::store::placements::ProcessIdentity;
use crate::supervisor::jail;

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// With this status.
    Code(i32),
    /// By this signal.
    Signal(i32),
    /// It was not our child, so the kernel told us only that it is gone.
    Unknown,
}

impl std::fmt::Display for Exit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit status {code}"),
            Self::Signal(signal) => write!(f, "killed by signal {signal}"),
            Self::Unknown => f.write_str("ended (status unknown: the process was adopted)"),
        }
    }
}

/// Why a recorded process is not taken over.
#[derive(Debug, thiserror::Error)]
pub enum NotOurs {
    /// The machine restarted since.
    #[error("the record is from another boot")]
    OtherBoot,
    /// No such process, or a zombie.
    #[error("the process is gone")]
    Gone,
    /// The pid belongs to somebody else now.
    #[error("the pid was reused")]
    Reused,
    /// `/proc` could not be read.
    #[error("inspect the process")]
    Io(#[from] io::Error),
}

/// What of a process we decide, for its identity.
#[derive(Debug, Clone, Copy)]
pub struct Runs<'a> {
    /// Where it listens.
    pub address: SocketAddr,
    /// SHA-256 of the binary.
    pub sha256: &'a str,
    /// What it was put under.
    pub profile: &'a str,
}

/// A live process that is certainly the one meant.
#[derive(Debug)]
pub struct Process {
    pid: Pid,
    pidfd: AsyncFd<OwnedFd>,
    /// Set when we started it by ourselves and have to reap it.
    child: Option<Child>,
    identity: ProcessIdentity,
    /// The file that it writes to, where that is watched.
    log: Option<Arc<File>>,
}

impl Process {
    /// Starts the jailer, which becomes the program. Needs a Tokio runtime with I/O.
    pub fn spawn(jailer: &Path, spec: &jail::Spec, log: &File, runs: &Runs<'_>) -> io::Result<Self> {
        let spec = serde_json::to_string(spec)?;
        // No pre_exec, uid or gid here: they would turn posix_spawn into fork. `kill_on_drop` does not exist on the
        // standard library's Child, which is what lets tenants outlive a crash of ours.
        #[expect(clippy::disallowed_methods, reason = "the one place that starts instances")]
        let child = Command::new(jailer)
            .arg(jail::SUBCOMMAND)
            .arg(spec)
            .env_clear()
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log.try_clone()?)
            .spawn()?;
        Self::watched(child, runs)
    }

    /// The same of a child of ours that was forked by the waiting jailer.
    pub(crate) fn forked(pid: Pid, runs: &Runs<'_>) -> io::Result<Self> {
        let learnt = learn(pid, runs);
        if learnt.is_err() {
            rustix::process::kill_process(pid, Signal::KILL)?;
            rustix::process::waitpid(Some(pid), WaitOptions::empty())?;
        }
        let (pidfd, identity) = learnt?;
        Ok(Self { pid, pidfd, child: None, identity, log: None })
    }

    /// Learns who the child is. A child that cannot be watched is not left running.
    fn watched(mut child: Child, runs: &Runs<'_>) -> io::Result<Self> {
        let pid = Pid::from_child(&child);
        match learn(pid, runs) {
            Ok((pidfd, identity)) => Ok(Self { pid, pidfd, child: Some(child), identity, log: None }),
            Err(error) => {
                child.kill()?;
                child.wait()?;
                Err(error)
            }
        }
    }

    /// Takes over a recorded process if it is certainly still the same one.
    pub fn adopt(identity: &ProcessIdentity) -> Result<Self, NotOurs> {
        if boot_id()? != identity.boot_id {
            return Err(NotOurs::OtherBoot);
        }
        let pid = Pid::from_raw(identity.pid).ok_or(NotOurs::Gone)?;
        let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty()).map_err(|_| NotOurs::Gone)?;
        let (letter, tick) = start_tick(pid).map_err(|_| NotOurs::Gone)?;
        if letter == 'Z' || letter == 'X' {
            return Err(NotOurs::Gone);
        }
        let inode = rustix::fs::fstat(&pidfd).map_err(io::Error::from)?.st_ino;
        if tick != identity.start_tick || inode != identity.pidfd_inode {
            return Err(NotOurs::Reused);
        }
        let pidfd = watch(pidfd, Interest::READABLE)?;
        Ok(Self { pid, pidfd, child: None, identity: identity.clone(), log: None })
    }

    /// What proves it later.
    pub fn identity(&self) -> &ProcessIdentity {
        &self.identity
    }

    /// The descriptor that names it.
    pub(crate) fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.get_ref().as_fd()
    }

    /// Keeps a handle of the file that it writes to.
    #[must_use]
    pub fn with_log(self, log: Option<File>) -> Self {
        Self { log: log.map(Arc::new), ..self }
    }

    /// The file that it writes to, if a handle of it is kept.
    pub fn log(&self) -> Option<Arc<File>> {
        self.log.clone()
    }

    /// CPU time that its threads have used or waited for, all together; none when it is gone. Waiting counts, because on a
    /// busy machine what would burn a core does not get one.
    pub fn cpu_demand(&self) -> Option<Duration> {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.pid.as_raw_nonzero())).ok()?;
        // A thread that ended meanwhile had its last words.
        let texts = tasks.flatten().filter_map(|task| std::fs::read_to_string(task.path().join("schedstat")).ok());
        let demands: Vec<u64> = texts.filter_map(|text| parse_demand(&text)).collect();
        (!demands.is_empty()).then(|| Duration::from_nanos(demands.into_iter().fold(0, u64::saturating_add)))
    }

    /// Resolves when the process has exited. Cancel safe; leaves the zombie for [`bury`](Self::bury).
    pub async fn exited(&self) {
        // Readiness of a pidfd never goes away again, and an error here means that the runtime is going down.
        if self.pidfd.readable().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Sends a signal to exactly this process.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        match rustix::process::pidfd_send_signal(self.pidfd.get_ref(), signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// After [`exited`](Self::exited): kills what is left of its session's group and reaps it.
    pub fn bury(mut self) -> Exit {
        // Stragglers are programs that a hook started; usually there are none and the call answers ESRCH. A zombie of
        // ours still owns its pid, so the group's number cannot have been given away; that of an adopted process was
        // free for a moment only, and the kernel hands out numbers in a circle.
        if let Err(error) = rustix::process::kill_process_group(self.pid, Signal::KILL)
            && error != rustix::io::Errno::SRCH
            && error != rustix::io::Errno::PERM
        {
            tracing::warn!(pid = self.identity.pid, %error, "kill the rest of an instance's process group");
        }
        let Some(mut child) = self.child.take() else { return reaped(self.pidfd.get_ref().as_fd()) };
        match child.wait() {
            Ok(status) => {
                status.code().map(Exit::Code).or_else(|| status.signal().map(Exit::Signal)).unwrap_or(Exit::Unknown)
            }
            Err(_) => Exit::Unknown,
        }
    }

    /// SIGTERM (and SIGCONT, in case it is stopped), then SIGKILL after `patience`; resolves when it is gone.
    pub async fn stop(self, patience: Duration) -> Exit {
        let asked = self.signal(Signal::TERM).and_then(|()| self.signal(Signal::CONT));
        if asked.is_err() || tokio::time::timeout(patience, self.exited()).await.is_err() {
            return self.kill().await;
        }
        self.bury()
    }

    /// SIGQUIT first, so that Go writes every goroutine into the log, then SIGKILL.
    pub async fn dump_and_kill(self, patience: Duration) -> Exit {
        if self.signal(Signal::QUIT).is_ok() && tokio::time::timeout(patience, self.exited()).await.is_ok() {
            return self.bury();
        }
        self.kill().await
    }

    async fn kill(self) -> Exit {
        if let Err(error) = self.signal(Signal::KILL) {
            tracing::error!(pid = self.identity.pid, %error, "kill an instance");
        }
        // SIGKILL cannot be refused; only a process stuck in the kernel outlives this, and then waiting is wrong.
        if tokio::time::timeout(Duration::from_secs(10), self.exited()).await.is_err() {
            tracing::error!(pid = self.identity.pid, "an instance survives SIGKILL: stuck in the kernel");
            return Exit::Unknown;
        }
        self.bury()
    }
}

/// Who a child of ours is that was not reaped yet.
fn learn(pid: Pid, runs: &Runs<'_>) -> io::Result<(AsyncFd<OwnedFd>, ProcessIdentity)> {
    let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty())?;
    let identity = ProcessIdentity {
        boot_id: boot_id()?,
        pid: pid.as_raw_nonzero().get(),
        start_tick: start_tick(pid)?.1,
        pidfd_inode: rustix::fs::fstat(&pidfd)?.st_ino,
        address: runs.address,
        binary_sha256: runs.sha256.to_owned(),
        jail_profile: runs.profile.to_owned(),
    };
    Ok((watch(pidfd, Interest::READABLE)?, identity))
}

/// Reaps a process that we did not start by ourselves and that is our child all the same: one that the waiting jailer
/// forked, or one of before a reload.
fn reaped(pidfd: BorrowedFd<'_>) -> Exit {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
    match rustix::process::waitid(WaitId::PidFd(pidfd), options) {
        Ok(Some(status)) => {
            let code = status.exit_status().map(Exit::Code);
            code.or_else(|| status.terminating_signal().map(Exit::Signal)).unwrap_or(Exit::Unknown)
        }
        // Not our child: whoever is its parent reaps it.
        Ok(None) | Err(_) => Exit::Unknown,
    }
}

/// Reaps children that ended while one program of this process gave way to the next. Before anything is started: whoever
/// starts something waits for it by itself.
pub fn reap_leftovers() {
    while let Ok(Some(status)) = rustix::process::waitid(WaitId::All, WaitIdOptions::EXITED | WaitIdOptions::NOHANG) {
        tracing::debug!(code = status.exit_status(), "reaped a child of the run before");
    }
}

/// Lets the runtime wait for a descriptor.
pub(crate) fn watch(descriptor: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    #[expect(unsafe_code, reason = "the safe constructors are deprecated: they trust any AsRawFd")]
    // SAFETY: an OwnedFd answers the same, open descriptor for as long as it lives, and the AsyncFd owns it.
    let watched = unsafe { AsyncFd::register_with_interest(descriptor, interest) };
    watched.map_err(io::Error::from)
}

/// Processes that serve a data directory below `instances`, with the name of their folder: whatever any record says.
pub fn serving(instances: &Path) -> io::Result<Vec<(i32, String)>> {
    let prefix = format!("--dir={}/", instances.display());
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        // A process that ended meanwhile is no loss.
        let Ok(command) = std::fs::read(format!("/proc/{pid}/cmdline")) else { continue };
        let folder = command.split(|byte| *byte == 0).find_map(|argument| {
            let rest = std::str::from_utf8(argument).ok()?.strip_prefix(&prefix)?;
            rest.strip_suffix("/pb_data")
        });
        if let Some(folder) = folder {
            found.push((pid, folder.to_owned()));
        }
    }
    Ok(found)
}

/// Raises this process's own limit of open files to what the system allows: thousands of connections and instances
/// need more than the usual soft limit of 1,024. Children get theirs from the jailer.
pub fn raise_file_limit() {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if limit.current != limit.maximum && rustix::process::setrlimit(Resource::Nofile, raised).is_err() {
        tracing::warn!("the limit of open files could not be raised");
    }
}

/// Keeps this process's memory, which holds keys, from core files, debuggers and other processes of the same user.
/// Children are not affected: both are reset when they become another program, and the jailer sets its own limit.
pub fn forbid_dumps() {
    let none = Rlimit { current: Some(0), maximum: Some(0) };
    let limited = rustix::process::setrlimit(Resource::Core, none);
    let sealed = rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable);
    if limited.and(sealed).is_err() {
        tracing::warn!("memory dumps of this process could not be forbidden");
    }
}

/// Identifies this boot of the machine.
pub fn boot_id() -> io::Result<String> {
    Ok(std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

/// State letter and start tick (fields 3 and 22 of `/proc/<pid>/stat`). The command name in field 2 may contain
/// anything, so parsing begins behind its last parenthesis.
fn start_tick(pid: Pid) -> io::Result<(char, u64)> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat", pid = pid.as_raw_nonzero()))?;
    parse_stat(&text).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "unexpected /proc/<pid>/stat"))
}

/// Of one thread, in nanoseconds: on a CPU, and ready for one.
fn parse_demand(text: &str) -> Option<u64> {
    let mut fields = text.split_whitespace().map(str::parse::<u64>);
    fields.next()?.ok()?.checked_add(fields.next()?.ok()?)
}

fn parse_stat(text: &str) -> Option<(char, u64)> {
    let mut fields = text.rsplit_once(") ")?.1.split(' ');
    let letter = fields.next()?.chars().next()?;
    Some((letter, fields.nth(18)?.parse().ok()?))
}

/// The process that holds the lock of a data directory, found through the kernel's table. For a child whose
/// record was lost because we died between starting and noting it.
pub fn lock_holder(lock: &Path) -> io::Result<Option<i32>> {
    use std::os::unix::fs::MetadataExt;
    let inode = match std::fs::metadata(lock) {
        Ok(metadata) => metadata.ino(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let locks = std::fs::read_to_string("/proc/locks")?;
    Ok(locks.lines().find_map(|line| parse_lock(line, inode)))
}

fn parse_lock(line: &str, inode: u64) -> Option<i32> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let [_, "FLOCK", _, "WRITE", pid, file, ..] = fields[..] else { return None };
    (file.rsplit(':').next()?.parse::<u64>().ok()? == inode).then(|| pid.parse().ok())?
}

/// Opens the process that holds the lock of a data directory. The one that took it is ours if its command line names the
/// directory, so that a stranger who happens to lock the file is never signalled. Where that one is gone, a program that
/// it had started holds what it inherited: that is found by its descriptors.
pub fn find_stray(lock: &Path, data: &Path) -> io::Result<Option<Process>> {
    let Some(taker) = lock_holder(lock)? else { return Ok(None) };
    let data = data.as_os_str().as_encoded_bytes();
    let names_data = || -> io::Result<bool> {
        let command = match std::fs::read(format!("/proc/{taker}/cmdline")) {
            Err(error) if is_gone(&error) => return Ok(false),
            command => command?,
        };
        Ok(!data.is_empty() && command.windows(data.len()).any(|window| window == data))
    };
    if let Some(process) = opened(taker, names_data)? {
        return Ok(Some(process));
    }
    let Some((heir, inode)) = heir(lock, taker)? else { return Ok(None) };
    opened(heir, || holds(heir, inode))
}

/// Opens a process, and keeps it if it is the one that is meant: looked at when its number cannot go to another any more.
fn opened(pid: i32, is_meant: impl FnOnce() -> io::Result<bool>) -> io::Result<Option<Process>> {
    let Some(id) = Pid::from_raw(pid) else { return Ok(None) };
    let pidfd = match rustix::process::pidfd_open(id, PidfdFlags::empty()) {
        Ok(pidfd) => pidfd,
        Err(rustix::io::Errno::SRCH) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    if !is_meant()? {
        return Ok(None);
    }
    let identity = ProcessIdentity {
        boot_id: boot_id()?,
        pid,
        start_tick: start_tick(id)?.1,
        pidfd_inode: rustix::fs::fstat(pidfd.as_fd())?.st_ino,
        address: SocketAddr::from(([127, 0, 0, 1], 0)),
        binary_sha256: String::new(),
        jail_profile: String::new(),
    };
    let pidfd = watch(pidfd, Interest::READABLE)?;
    Ok(Some(Process { pid: id, pidfd, child: None, identity, log: None }))
}

/// A process that inherited a lock from the one that took it, and the file's device and inode.
fn heir(lock: &Path, taker: i32) -> io::Result<Option<(i32, (u64, u64))>> {
    use std::os::unix::fs::MetadataExt;
    let metadata = std::fs::metadata(lock)?;
    let inode = (metadata.dev(), metadata.ino());
    let own = rustix::process::getpid().as_raw_nonzero().get();
    for entry in std::fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        if pid != own && pid != taker && holds(pid, inode)? {
            return Ok(Some((pid, inode)));
        }
    }
    Ok(None)
}

/// Whether a process has this very file open, and locked through the same descriptor. To look at another user's takes
/// the right to trace it.
fn holds(pid: i32, inode: (u64, u64)) -> io::Result<bool> {
    use std::os::unix::fs::MetadataExt;
    let descriptors = match std::fs::read_dir(format!("/proc/{pid}/fd")) {
        Err(error) if is_gone(&error) || error.kind() == io::ErrorKind::PermissionDenied => return Ok(false),
        descriptors => descriptors?,
    };
    for entry in descriptors {
        // What is closed meanwhile is held no more.
        let Ok(entry) = entry else { return Ok(false) };
        let is_it = std::fs::metadata(entry.path()).is_ok_and(|found| (found.dev(), found.ino()) == inode);
        if is_it {
            let info = format!("/proc/{pid}/fdinfo/{}", entry.file_name().to_string_lossy());
            let info = std::fs::read_to_string(info).unwrap_or_default();
            let is_lock = |line: &str| line.starts_with("lock:") && line.contains("FLOCK") && line.contains("WRITE");
            if info.lines().any(is_lock) {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

/// How `/proc` says that a process has ended.
fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error())
}

/// Where the jailer is: this program itself, by a path that survives an upgrade of the file.
pub fn own_program() -> PathBuf {
    PathBuf::from("/proc/self/exe")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_is_read_behind_a_hostile_command_name() {
        let line = "42 (a) R 1 (b) S 1 42 42 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 987654 1000 20";
        assert_eq!(parse_stat(line), Some(('S', 987_654)));
        assert_eq!(parse_stat("garbage"), None);
    }

    #[test]
    fn own_process_is_its_own_identity_and_another_tick_is_not() {
        let pid = rustix::process::getpid();
        let (letter, tick) = start_tick(pid).unwrap();
        assert!(letter.is_ascii_alphabetic());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty()).unwrap();
            let identity = ProcessIdentity {
                boot_id: boot_id().unwrap(),
                pid: pid.as_raw_nonzero().get(),
                start_tick: tick,
                pidfd_inode: rustix::fs::fstat(&pidfd).unwrap().st_ino,
                address: SocketAddr::from(([127, 0, 0, 1], 1)),
                binary_sha256: String::new(),
                jail_profile: String::new(),
            };
            assert!(Process::adopt(&identity).is_ok());
            let reused = ProcessIdentity { start_tick: tick + 1, ..identity.clone() };
            assert!(matches!(Process::adopt(&reused), Err(NotOurs::Reused)));
            let rebooted = ProcessIdentity { boot_id: "other".into(), ..identity };
            assert!(matches!(Process::adopt(&rebooted), Err(NotOurs::OtherBoot)));
        });
    }

    #[tokio::test]
    async fn what_inherited_a_lock_from_somebody_who_is_gone_is_found_and_stopped() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let file = File::create(&path).unwrap();
        rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive).unwrap();
        // What a hook leaves behind in a session of its own.
        #[expect(clippy::disallowed_methods, reason = "a process to be found")]
        let mut left = Command::new("/bin/sleep").arg("1000").stdin(Stdio::from(file)).spawn().unwrap();
        #[expect(clippy::disallowed_methods, reason = "a process to be left alone")]
        let mut reader = Command::new("/bin/sleep").arg("1000").stdin(File::open(&path).unwrap()).spawn().unwrap();
        assert!(jail::is_locked(&path).unwrap());
        assert_eq!(lock_holder(&path).unwrap(), Some(i32::try_from(std::process::id()).unwrap()));
        let found = find_stray(&path, &dir.path().join("pb_data")).unwrap().unwrap();
        assert_eq!(u32::try_from(found.identity().pid).unwrap(), left.id());
        found.stop(Duration::from_secs(30)).await;
        assert!(!jail::is_locked(&path).unwrap());
        assert!(find_stray(&path, &dir.path().join("pb_data")).unwrap().is_none());
        // It was reaped by whoever stopped it.
        drop(left.try_wait());
        assert!(reader.try_wait().unwrap().is_none(), "a stranger who only reads the file is left alone");
        reader.kill().unwrap();
        reader.wait().unwrap();
    }

    #[test]
    fn lock_table_line_names_the_holder() {
        assert_eq!(parse_lock("1: FLOCK  ADVISORY  WRITE 708 fe:00:13241 0 EOF", 13_241), Some(708));
        assert_eq!(parse_lock("1: POSIX  ADVISORY  WRITE 708 fe:00:13241 0 EOF", 13_241), None);
        assert_eq!(parse_lock("1: FLOCK  ADVISORY  WRITE 708 fe:00:13241 0 EOF", 1), None);
    }
}
