//! The hidden subcommand that looks at one database for us, and whoever asks it.
//!
//! It is this program, started anew for one question: with an end, little memory, no more of the file system than the
//! folders of the question, and nothing in it that is anybody else's. Whatever becomes of it is an error and no more.
//!
//! Starting a program takes two milliseconds of CPU time. So where many questions come at once, one process
//! ([`EACH`]) waits for them and forks: each question still has a process of its own, which begins as empty as any other,
//! because the one that forks reads neither questions nor answers. It is handed the ends of two pipes and passes them on.
//! What they have in common is where in memory the program lies.

use std::io;
use std::io::IoSliceMut;
use std::io::Read;
use std::io::Write;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::time::Duration;

use nix::sys::wait::WaitStatus;
use nix::unistd::ForkResult;
use rustix::net::RecvAncillaryBuffer;
use rustix::net::RecvAncillaryMessage;
use rustix::net::RecvFlags;
use rustix::net::SendFlags;
use rustix::process::Pid;
use rustix::process::PidfdFlags;
use rustix::process::Resource;
use rustix::process::Rlimit;
use rustix::process::Signal;

use crate::pocketbase::apart::Ask;
use crate::pocketbase::apart::Told;
use crate::pocketbase::database::Error;
use crate::supervisor::jail;

/// First argument that turns the program into it.
pub const SUBCOMMAND: &str = "__look";

/// What a look may take, longer than it gives itself: beginning included, on a busy machine.
pub(super) const LOOK: Duration = Duration::from_secs(30);
/// The same of one that changes rows.
pub(super) const EDIT: Duration = Duration::from_secs(45);

/// Bytes of a question or an answer.
const LARGEST: u64 = 512 << 20;
/// Bytes of memory.
const DATA: u64 = 1 << 30;
/// Descriptors.
const FILES: u64 = 64;
/// Status of one that could not begin.
const FAILED: u8 = 1;
/// What the one that forks says of the end of another; anything else is the number of a signal.
pub(super) const WELL: u8 = 0;
const FAILED_SOMEHOW: u8 = u8::MAX;

/// The argument in place of seconds for the one that forks.
pub(super) const EACH: &str = "each";

/// Answers the question on standard input, on standard output; or each one that comes, when the argument is [`EACH`].
pub fn run(seconds: &str) -> u8 {
    let done = if seconds == EACH { serve_each() } else { serve(seconds.parse().unwrap_or(1)) };
    match done {
        Ok(()) => 0,
        Err(_) => FAILED,
    }
}

/// Forks for each question that comes over the socket on standard input, until nobody is left who could ask. Returns in
/// the forked ones as well, when they have answered.
fn serve_each() -> io::Result<()> {
    let own = rustix::process::getpid();
    loop {
        let Some((seconds, question, answer)) = next_question()? else { return Ok(()) };
        #[expect(unsafe_code, reason = "there is no safe form of fork")]
        // SAFETY: this process has one thread, so that nobody else holds a lock that the copy would miss.
        let forked = unsafe { nix::unistd::fork()? };
        let ForkResult::Parent { child } = forked else {
            // Whoever ends the one that forks ends this one.
            rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
            if rustix::process::getppid() != Some(own) {
                return Ok(());
            }
            // In the place of the socket, so that nothing of other questions can be reached.
            nix::unistd::dup2_stdin(&question)?;
            nix::unistd::dup2_stdout(&answer)?;
            drop((question, answer));
            return serve(seconds);
        };
        drop((question, answer));
        let end = match nix::sys::wait::waitpid(child, None)? {
            WaitStatus::Exited(_, 0) => WELL,
            WaitStatus::Signaled(_, signal, _) => u8::try_from(signal as i32).unwrap_or(FAILED_SOMEHOW),
            _ => FAILED_SOMEHOW,
        };
        rustix::net::send(io::stdin(), &[end], SendFlags::NOSIGNAL)?;
    }
}

/// Seconds, where the question comes from, where the answer goes; none when there are no more.
fn next_question() -> io::Result<Option<(u64, OwnedFd, OwnedFd)>> {
    let mut seconds = [0; 8];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [IoSliceMut::new(&mut seconds)];
    if rustix::net::recvmsg(io::stdin(), &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC)?.bytes == 0 {
        return Ok(None);
    }
    let mut ends = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(descriptors) = message {
            ends.extend(descriptors);
        }
    }
    let (Some(answer), Some(question)) = (ends.pop(), ends.pop()) else {
        return Err(io::ErrorKind::InvalidData.into());
    };
    Ok(Some((u64::from_le_bytes(seconds), question, answer)))
}

fn serve(seconds: u64) -> io::Result<()> {
    for (resource, most) in
        [(Resource::Core, 0), (Resource::Data, DATA), (Resource::Nofile, FILES), (Resource::Cpu, seconds)]
    {
        let hard = rustix::process::getrlimit(resource).maximum;
        let most = Some(hard.map_or(most, |hard| most.min(hard)));
        rustix::process::setrlimit(resource, Rlimit { current: most, maximum: most })?;
    }
    let mut text = Vec::new();
    io::stdin().lock().take(LARGEST).read_to_end(&mut text)?;
    let ask: Ask = serde_json::from_slice(&text)?;
    if let Some(temporary) = ask.folders().pop().filter(|folder| folder.is_dir()) {
        // Where SQLite sorts what does not fit into memory.
        rustix::process::chdir(temporary)?;
    }
    jail::shut_in(ask.folders()).map_err(io::Error::other)?;
    let told = serde_json::to_vec(&ask.answer())?;
    io::stdout().lock().write_all(&told)
}

/// Has a question answered within a time. Blocks.
pub(super) fn ask(program: &Path, ask: &Ask, limit: Duration) -> Result<Told, Error> {
    let failed = |source: io::Error| Error::Io { path: ask.path().to_owned(), source };
    let text = serde_json::to_vec(ask).map_err(|error| failed(error.into()))?;
    let spawned = command(program, &seconds_of(limit).to_string()).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
    let child = spawned.map_err(failed)?;
    told(ask, within(child, &text, limit).map_err(failed)?)
}

/// Seconds of CPU time for what may take so long.
pub(super) fn seconds_of(limit: Duration) -> u64 {
    limit.as_secs().max(1)
}

/// This program as the one that looks.
pub(super) fn command(program: &Path, argument: &str) -> Command {
    #[expect(clippy::disallowed_methods, reason = "one of the places that start processes")]
    let mut command = Command::new(program);
    // It goes to the folder where SQLite may sort what does not fit into memory.
    command.arg(SUBCOMMAND).arg(argument).env_clear().env("TMPDIR", ".").stderr(Stdio::null());
    command
}

/// What an answer, and whether its time was over, mean.
pub(super) fn told(ask: &Ask, (answer, is_late): (io::Result<Vec<u8>>, bool)) -> Result<Told, Error> {
    let failed = |source: io::Error| Error::Io { path: ask.path().to_owned(), source };
    match answer {
        Err(_) if is_late => Err(Error::Beyond { path: ask.path().to_owned(), what: "time" }),
        Err(error) => Err(failed(error)),
        Ok(answer) => serde_json::from_slice(&answer).map_err(|error| failed(error.into())),
    }
}

/// Talks to the process and reaps it; it is killed when the time is over, and then the flag says so.
fn within(mut child: Child, text: &[u8], limit: Duration) -> io::Result<(io::Result<Vec<u8>>, bool)> {
    let pidfd = match rustix::process::pidfd_open(Pid::from_child(&child), PidfdFlags::empty()) {
        Ok(pidfd) => pidfd,
        Err(error) => {
            child.kill()?;
            child.wait()?;
            return Err(error.into());
        }
    };
    Ok(in_time(&pidfd, limit, || {
        let answer = talk(&mut child, text);
        // One that answers and does not end is killed in its time as well.
        let (answer, status) = (answer, child.wait());
        let (answer, status) = (answer?, status?);
        if status.success() {
            Ok(answer)
        } else {
            Err(io::Error::other(format!("the process that looked ended: {status}")))
        }
    }))
}

/// Does something with a process, which is killed when the time is over; whether it was comes with the outcome.
pub(super) fn in_time<T>(pidfd: &OwnedFd, limit: Duration, work: impl FnOnce() -> T) -> (T, bool) {
    let is_late = AtomicBool::new(false);
    let late = &is_late;
    let (done, waiting) = mpsc::channel::<()>();
    let outcome = std::thread::scope(|scope| {
        scope.spawn(move || {
            if waiting.recv_timeout(limit) == Err(mpsc::RecvTimeoutError::Timeout) {
                late.store(true, Ordering::Relaxed);
                // It has ended by itself: no harm.
                let _ = rustix::process::pidfd_send_signal(pidfd, Signal::KILL);
            }
        });
        let outcome = work();
        drop(done);
        outcome
    });
    (outcome, is_late.load(Ordering::Relaxed))
}

fn talk(child: &mut Child, text: &[u8]) -> io::Result<Vec<u8>> {
    match (child.stdin.take(), child.stdout.take()) {
        (Some(question), Some(answer)) => converse(question, answer, text),
        _ => Err(io::ErrorKind::NotConnected.into()),
    }
}

/// Says the question and reads the answer to its end.
pub(super) fn converse(mut question: impl Write, answer: impl Read, text: &[u8]) -> io::Result<Vec<u8>> {
    match question.write_all(text) {
        // It ended before it read: its status says more.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
        written => written?,
    }
    drop(question);
    let mut told = Vec::new();
    answer.take(LARGEST).read_to_end(&mut told)?;
    Ok(told)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::path::PathBuf;

    use super::*;

    fn program(dir: &Path, text: &str) -> PathBuf {
        let path = dir.join(format!("program-{}", text.len()));
        std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o700)).unwrap();
        path
    }

    #[test]
    fn whatever_becomes_of_the_process_that_looks_is_an_error_and_ours_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let question = Ask::signers(&dir.path().join("data.db"));
        let asked = |text: &str, limit| ask(&program(dir.path(), text), &question, limit);
        let long = Duration::from_mins(1);
        // What a log's index that was cut short does to whoever has it mapped.
        let error = asked("kill -BUS $$", long).unwrap_err();
        assert!(matches!(&error, Error::Io { source, .. } if source.to_string().contains("SIGBUS")), "{error:?}");
        assert!(matches!(asked("cat > /dev/null; echo nonsense", long), Err(Error::Io { .. })));
        assert!(matches!(asked("exit 1", long), Err(Error::Io { .. })));
        let short = Duration::from_millis(200);
        assert!(matches!(asked("exec sleep 1000", short), Err(Error::Beyond { .. })));
        assert!(matches!(asked("exec > /dev/null; exec sleep 1001", short), Err(Error::Beyond { .. })));
        let told = asked("cat > /dev/null; echo '{\"Failed\":\"NoFile\"}'", long).unwrap();
        assert!(matches!(told.keys(question.path()), Err(Error::NoFile { .. })));
    }
}
