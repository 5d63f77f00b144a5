//! The tier between awake and asleep: an idle process that is stopped where it stands.
//!
//! Freezing closes the route, looks that nobody is inside, sends SIGSTOP, and waits until every thread stands still. If
//! the process then holds a write lock on one of its databases it goes on at once, because backups and looks of ours
//! would wait for that lock for as long as it is frozen. Where the machine has swap its memory is paged out in the
//! background, one process at a time in the whole fleet.
//!
//! A thaw is SIGCONT and an open route. What has to be proved is that the process is still the one that proved itself
//! when it started: the pidfd says so, since it never leads to another process and tells of an exit. Nobody has to be
//! asked over the network, because the listening socket is that process's own; as long as it lives nobody else can have
//! the address, and one that stands still has not changed. What was stopped in the middle of something goes on with it.
//!
//! Never frozen: the global instance, pinned ones, spares, one with requests, visits or event streams, and one whose hooks
//! mention cron. `PocketBase`'s own cron jobs do not run while it is frozen, as they do not while it sleeps.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::Instant;

use nix::poll::PollFd;
use nix::poll::PollFlags;
use nix::poll::PollTimeout;
use rustix::process::Signal;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::sync::DropGuard;

use crate::supervisor::config::Config;
use crate::supervisor::fleet::Fleet;
use crate::supervisor::instance::Instance;
use crate::supervisor::instance::announce;
use crate::supervisor::launch;
use crate::supervisor::pageout;
use crate::supervisor::pageout::Outcome;
use crate::supervisor::process::Process;
use crate::supervisor::state::Event;

/// How soon one that could not be frozen, or was thawed, is frozen again: between these, and as long as it has to be
/// unused.
const AGAIN: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));
/// How often a process is looked at until it stands still, and the pause in between.
const LOOKS: u32 = 20;
const PAUSE: Duration = Duration::from_millis(1);
/// Most files and bytes of hooks that are read through; with more of them an instance is not frozen.
const MOST_HOOKS: usize = 1_000;
const MOST_HOOK_BYTES: u64 = 16 << 20;
/// How deep folders of hooks are followed.
const DEEPEST: usize = 16;

/// What all instances share about freezing.
#[derive(Debug)]
pub(crate) struct Freezer {
    has_swap: bool,
    /// Paging out costs some 25 ms of CPU each, so one at a time.
    turn: Arc<Semaphore>,
    /// The kernel does not let us page out; told once.
    is_refused: Arc<AtomicBool>,
    /// The kernel does not let us see whether a process is at rest, so that none is frozen; told once.
    is_blind: AtomicBool,
}

/// What freezing one instance depends on, from the start of its process on.
#[derive(Debug)]
pub(super) struct Frost {
    /// Not before this.
    not_before: Instant,
    /// Whether its hooks mention cron; none as long as nobody has looked.
    has_cron: Option<bool>,
    /// While it is frozen. Dropped, it ends the paging out.
    frozen: Option<DropGuard>,
    /// The thaw under way is for ourselves, and no use of the instance.
    is_errand: bool,
}

impl Frost {
    pub(super) fn new(now: Instant) -> Self {
        Self { not_before: now, has_cron: None, frozen: None, is_errand: false }
    }
}

impl Freezer {
    /// `is_limited`: whether instances have a limit of memory in a control group, which has no swap beside it.
    pub(crate) fn new(config: &Config, is_limited: bool) -> Self {
        let has_swap = has_swap() && !is_limited;
        if !config.freeze_after.is_zero() && !has_swap {
            tracing::warn!(
                "instances.freeze_after is set and this machine has no swap for instances, or isolation.memory_bytes \
                 leaves them none: frozen ones use no CPU and keep their memory"
            );
        }
        Self {
            has_swap,
            turn: Arc::new(Semaphore::new(1)),
            is_refused: Arc::default(),
            is_blind: AtomicBool::new(false),
        }
    }
}

/// Whether memory can be paged out to anywhere.
pub fn has_swap() -> bool {
    // The first line is a heading.
    fs::read_to_string("/proc/swaps").is_ok_and(|text| text.lines().nth(1).is_some())
}

impl Instance {
    /// When it is due to be frozen, as far as its idle time goes; none if it never is.
    pub(super) fn freeze_at(&self) -> Option<Instant> {
        let after = self.fleet.config.freeze_after;
        let is_never = self.slot.tenant.is_global() || self.fleet.is_spare(&self.slot.tenant);
        let is_blind = self.fleet.freezer.is_blind.load(Ordering::Relaxed);
        if after.is_zero() || is_never || is_blind || self.frost.has_cron == Some(true) {
            return None;
        }
        let due = Instant::now() + after.saturating_sub(self.slot.unused_for());
        Some(due.max(self.frost.not_before))
    }

    fn freeze_again(&mut self) {
        let (least, most) = AGAIN;
        self.frost.not_before = Instant::now() + self.fleet.config.freeze_after.clamp(least, most);
    }

    /// Freezes it unless something keeps it from that.
    pub(super) async fn freeze_if_idle(&mut self) {
        self.freeze_again();
        if !self.is_idle() || self.is_kept_awake() || self.has_cron().await {
            return;
        }
        self.feed(Event::FreezeAsked).await;
    }

    /// Whether nobody is inside, on the way in, or listening.
    fn is_idle(&self) -> bool {
        // In this order: whoever begins to listen is inside before, and as long as that takes.
        self.slot.in_flight() == 0 && !self.slot.has_listeners() && self.slot.waiting.load(Ordering::SeqCst) == 0
    }

    async fn has_cron(&mut self) -> bool {
        if let Some(known) = self.frost.has_cron {
            return known;
        }
        let (fleet, id) = (Arc::clone(&self.fleet), self.slot.tenant.clone());
        let look = tokio::task::spawn_blocking(move || {
            let tenant = fleet.tenants.find(&id)?;
            let golden = launch::golden_of(&fleet, &tenant).ok()?;
            golden.hooks_dir.as_deref().map_or(Some(false), |hooks| mentions_cron(hooks).ok())
        });
        // Hooks that cannot be read may have any.
        let found = look.await.ok().flatten().unwrap_or(true);
        self.frost.has_cron = Some(found);
        found
    }

    /// With the route closed: stops the process, if nobody is inside and it is at rest. Otherwise whoever wants it back
    /// is the instance itself.
    pub(super) async fn freeze(&mut self) -> Option<Event> {
        self.frost.is_errand = true;
        let occupied = self.occupied.as_ref()?;
        if !self.is_idle() {
            return Some(Event::Wanted);
        }
        self.slot.waver_no_more();
        match stops_at_rest(&occupied.process).await {
            Ok(true) => {}
            Ok(false) => return Some(Event::Wanted),
            Err(error) => {
                let is_told = error.kind() != io::ErrorKind::PermissionDenied
                    || self.fleet.freezer.is_blind.swap(true, Ordering::Relaxed);
                if !is_told {
                    tracing::warn!(
                        %error,
                        "no instance is frozen: to see whether a process is at rest takes CAP_SYS_PTRACE"
                    );
                }
                return Some(Event::Wanted);
            }
        }
        let over = CancellationToken::new();
        page_out(&self.fleet, &occupied.process, over.clone());
        self.frost.frozen = Some(over.drop_guard());
        self.frost.is_errand = false;
        self.fleet.metrics.freezes.inc();
        tracing::debug!(tenant.id = %self.slot.tenant, "instance is frozen");
        None
    }

    /// Its process goes or is gone: nothing is left to page out, and nothing to thaw.
    pub(super) fn melt(&mut self) {
        self.frost.frozen = None;
        self.frost.is_errand = false;
    }

    /// Lets the process go on and opens the route; false when the process is gone.
    pub(super) fn thaw(&mut self) -> bool {
        let was_frozen = self.frost.frozen.take().is_some();
        let is_errand = std::mem::take(&mut self.frost.is_errand);
        let Some(occupied) = &self.occupied else { return false };
        let goes_on = occupied.process.signal(Signal::CONT).is_ok() && !has_exited(&occupied.process);
        if goes_on {
            let running = Arc::clone(&occupied.running);
            if is_errand {
                self.slot.reopen(running);
            } else {
                self.slot.open(running);
            }
            // Also after a freeze that came to nothing: somebody may have looked in while the route was closed.
            announce(&self.fleet, &self.slot, &occupied.running);
            if was_frozen {
                self.fleet.metrics.thaws.inc();
                tracing::debug!(tenant.id = %self.slot.tenant, is_errand, "instance is thawed");
            }
            self.is_healthy_now();
            self.freeze_again();
        }
        self.slot.waver_no_more();
        goes_on
    }

    /// Thaws it for something of ours that needs the process, without counting that as use.
    pub(super) async fn thaw_for_an_errand(&mut self) {
        if self.frost.frozen.is_some() {
            self.frost.is_errand = true;
            self.feed(Event::Wanted).await;
        }
    }
}

/// Whether the process has exited, without waiting for the runtime to hear of it.
fn has_exited(process: &Process) -> bool {
    let mut look = [PollFd::new(process.pidfd(), PollFlags::POLLIN)];
    // Who cannot be asked is taken to live: the exit is seen by whoever waits for it.
    nix::poll::poll(&mut look, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
}

/// Stops a process. False when it does not stand still in time, or holds a write lock; the caller lets it go on then.
async fn stops_at_rest(process: &Process) -> io::Result<bool> {
    process.signal(Signal::STOP)?;
    let pid = process.identity().pid;
    for _ in 0..LOOKS {
        let look =
            tokio::task::spawn_blocking(move || Ok(if stands_still(pid)? { Some(is_at_rest(pid)?) } else { None }));
        match look.await.unwrap_or_else(|error| Err(io::Error::other(error))) {
            Ok(Some(is_at_rest)) => return Ok(is_at_rest),
            Ok(None) => tokio::time::sleep(PAUSE).await,
            Err(error) => {
                tracing::debug!(%error, "look at a stopped process");
                return Err(error);
            }
        }
    }
    Ok(false)
}

/// Whether every thread is stopped: the signal reaches them one after the other.
fn stands_still(pid: i32) -> io::Result<bool> {
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        let stat = fs::read_to_string(thread?.path().join("stat"))?;
        let is_stopped = stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T'));
        if !is_stopped {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Whether it holds no write lock on a file of a database. (The locks of open databases are read locks.)
fn is_at_rest(pid: i32) -> io::Result<bool> {
    for entry in fs::read_dir(format!("/proc/{pid}/fdinfo"))? {
        if fs::read_to_string(entry?.path())?.lines().any(is_write_lock) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The lock of the data directory is a `FLOCK` and stays.
fn is_write_lock(line: &str) -> bool {
    let Some(lock) = line.strip_prefix("lock:") else { return false };
    let mut words = lock.split_whitespace().skip(1);
    matches!(words.next(), Some("POSIX" | "OFDLCK")) && words.any(|word| word == "WRITE")
}

/// Whether a file below the folder has the word in it.
fn mentions_cron(folder: &Path) -> io::Result<bool> {
    let (mut folders, mut files, mut bytes) = (vec![(folder.to_owned(), 0)], 0, 0);
    while let Some((folder, depth)) = folders.pop() {
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            let metadata = entry.metadata()?;
            if metadata.is_dir() {
                folders.push((entry.path(), depth + 1));
                continue;
            }
            files += 1;
            bytes += metadata.len();
            if files > MOST_HOOKS || bytes > MOST_HOOK_BYTES || depth > DEEPEST {
                return Ok(true);
            }
            if metadata.is_file() && fs::read(entry.path())?.windows(4).any(|word| word == b"cron") {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

/// Pages a frozen process out in the background, until `over`.
fn page_out(fleet: &Arc<Fleet>, process: &Process, over: CancellationToken) {
    let freezer = &fleet.freezer;
    if !freezer.has_swap || freezer.is_refused.load(Ordering::Relaxed) {
        return;
    }
    let Ok(pidfd) = process.pidfd().try_clone_to_owned() else { return };
    let pid = process.identity().pid;
    let (turn, is_refused) = (Arc::clone(&freezer.turn), Arc::clone(&freezer.is_refused));
    let (stopping, paged_out) = (fleet.stopping.clone(), fleet.metrics.paged_out.clone());
    let work = async move {
        let turn = tokio::select! {
            turn = turn.acquire_owned() => turn,
            () = over.cancelled() => return,
            () = stopping.cancelled() => return,
        };
        let Ok(turn) = turn else { return };
        let work = tokio::task::spawn_blocking(move || {
            use std::os::fd::AsFd;
            let is_over = || over.is_cancelled() || stopping.is_cancelled();
            let outcome = pageout::page_out(pid, pidfd.as_fd(), &is_over);
            drop(turn);
            outcome
        });
        match work.await {
            Ok(Outcome::Done(bytes) | Outcome::Ended(bytes)) => drop(paged_out.inc_by(bytes)),
            Ok(Outcome::Refused(error)) => {
                if !is_refused.swap(true, Ordering::Relaxed) {
                    tracing::warn!(
                        %error,
                        "frozen instances cannot be paged out and keep their memory: that takes CAP_SYS_NICE and the right to look into them"
                    );
                }
            }
            // It was a panic, which is logged where it happens.
            Err(_) => {}
        }
    };
    fleet.tasks.spawn_on(work, &fleet.runtime);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_lock_of_a_database_is_told_from_others() {
        let is_write = |line| is_write_lock(line);
        assert!(is_write("lock:\t1: POSIX  ADVISORY  WRITE 708 fe:00:13241 120 120"));
        assert!(is_write("lock:\t2: OFDLCK ADVISORY  WRITE -1 fe:00:13241 120 120"));
        assert!(!is_write("lock:\t1: POSIX  ADVISORY  READ 708 fe:00:13241 1073741826 1073742335"));
        assert!(!is_write("lock:\t1: FLOCK  ADVISORY  WRITE 708 fe:00:13241 0 EOF"));
        assert!(!is_write("pos:\t0") && !is_write(""));
    }

    #[test]
    fn hooks_that_mention_cron_are_found_in_whatever_folder() {
        let dir = tempfile::tempdir().unwrap();
        let lib = dir.path().join("lib");
        fs::create_dir(&lib).unwrap();
        fs::write(dir.path().join("main.pb.js"), "routerAdd('GET', '/x', (e) => e.json(200, {}))").unwrap();
        fs::write(lib.join("a.js"), "").unwrap();
        assert!(!mentions_cron(dir.path()).unwrap());
        fs::write(lib.join("b.js"), "module.exports = () => $app.cron().add('x', '* * * * *', () => {})").unwrap();
        assert!(mentions_cron(dir.path()).unwrap());
        assert!(mentions_cron(&dir.path().join("none")).is_err(), "whoever asks takes it for yes");
    }

    #[test]
    fn a_stopped_process_stands_still_and_is_at_rest_without_a_write_lock() {
        use std::process::Stdio;
        #[expect(clippy::disallowed_methods, reason = "a process to be stopped")]
        let mut child = std::process::Command::new("/bin/sleep").arg("1000").stdin(Stdio::null()).spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        assert!(!stands_still(pid).unwrap());
        let id = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(id, Signal::STOP).unwrap();
        let deadline = Instant::now() + Duration::from_secs(30);
        while !stands_still(pid).unwrap() {
            assert!(Instant::now() < deadline);
            std::thread::yield_now();
        }
        assert!(is_at_rest(pid).unwrap());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(stands_still(pid).is_err(), "it is gone");
    }
}
