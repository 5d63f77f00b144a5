//! The hidden subcommand that looks at one database for us, and whoever asks it.
//!
//! It is this program, started anew for one question: with an end, little memory, no more of the file system than the
//! folders of the question, and nothing in it that is anybody else's. Whatever becomes of it is an error and no more.

use std::io;
use std::io::Read;
use std::io::Write;
use std::path::Path;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::time::Duration;

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

/// Answers the question on standard input, on standard output.
pub fn run(seconds: &str) -> u8 {
    match serve(seconds.parse().unwrap_or(1)) {
        Ok(()) => 0,
        Err(_) => FAILED,
    }
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
    jail::shut_in(ask.folders()).map_err(io::Error::other)?;
    let told = serde_json::to_vec(&ask.answer())?;
    io::stdout().lock().write_all(&told)
}

/// Has a question answered within a time. Blocks.
pub(super) fn ask(program: &Path, ask: &Ask, limit: Duration) -> Result<Told, Error> {
    let failed = |source: io::Error| Error::Io { path: ask.path().to_owned(), source };
    let text = serde_json::to_vec(ask).map_err(|error| failed(error.into()))?;
    let temporary = ask.folders().pop().unwrap_or_default();
    #[expect(clippy::disallowed_methods, reason = "one of the places that start processes")]
    let mut command = Command::new(program);
    let spawned = command
        .arg(SUBCOMMAND)
        .arg(limit.as_secs().max(1).to_string())
        .env_clear()
        // Where SQLite sorts what does not fit into memory.
        .env("TMPDIR", temporary)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn();
    let child = spawned.map_err(failed)?;
    let (answer, is_late) = within(child, &text, limit).map_err(failed)?;
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
    let (is_late, end) = (AtomicBool::new(false), &pidfd);
    let late = &is_late;
    let (done, waiting) = mpsc::channel::<()>();
    let answer = std::thread::scope(|scope| {
        scope.spawn(move || {
            if waiting.recv_timeout(limit) == Err(mpsc::RecvTimeoutError::Timeout) {
                late.store(true, Ordering::Relaxed);
                // It has ended by itself: no harm.
                let _ = rustix::process::pidfd_send_signal(end, Signal::KILL);
            }
        });
        let answer = talk(&mut child, text);
        // One that answers and does not end is killed in its time as well.
        let status = child.wait();
        drop(done);
        let (answer, status) = (answer?, status?);
        if status.success() {
            Ok(answer)
        } else {
            Err(io::Error::other(format!("the process that looked ended: {status}")))
        }
    });
    Ok((answer, is_late.load(Ordering::Relaxed)))
}

fn talk(child: &mut Child, text: &[u8]) -> io::Result<Vec<u8>> {
    if let Some(mut stdin) = child.stdin.take() {
        match stdin.write_all(text) {
            // It ended before it read: its status says more.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
            written => written?,
        }
    }
    let mut answer = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        stdout.take(LARGEST).read_to_end(&mut answer)?;
    }
    Ok(answer)
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
