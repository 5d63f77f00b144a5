//! Processes that fork one that looks for each question, while many questions come: at the taking over of an earlier run.
//!
//! What starting a program takes is paid once for each of these, of which there are as many as questions at a time. What
//! may be asked, and what becomes of one that fails, is as in [`apart`].

use std::io;
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::Child;
use std::process::Stdio;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::time::Duration;

use rustix::net::AddressFamily;
use rustix::net::RecvFlags;
use rustix::net::SendAncillaryBuffer;
use rustix::net::SendAncillaryMessage;
use rustix::net::SendFlags;
use rustix::net::SocketFlags;
use rustix::net::SocketType;
use rustix::process::Pid;
use rustix::process::PidfdFlags;
use rustix::process::Signal;

use crate::pocketbase::apart::Ask;
use crate::pocketbase::apart::Told;
use crate::pocketbase::database::Error;
use crate::supervisor::apart;

/// Those that wait for a question; none before [`open`](Self::open) and after [`close`](Self::close), when each question
/// has a program started for it.
#[derive(Debug, Default)]
pub(crate) struct Lookers(Mutex<Option<Vec<Looker>>>);

impl Lookers {
    /// From here on processes are kept for further questions.
    pub(crate) fn open(&self) {
        self.list().get_or_insert_default();
    }

    /// Ends those that wait. Blocks for moments.
    pub(crate) fn close(&self) {
        let waiting = self.list().take();
        // After the lock.
        drop(waiting);
    }

    /// Has a question answered within a time. Blocks.
    pub(crate) fn ask(&self, program: &Path, ask: &Ask, limit: Duration) -> Result<Told, Error> {
        // Not in a match: the lock would be held until its arms are done.
        let taken = self.list().as_mut().map(Vec::pop);
        let Some(waiting) = taken else { return apart::ask(program, ask, limit) };
        let failed = |source: io::Error| Error::Io { path: ask.path().to_owned(), source };
        let text = serde_json::to_vec(ask).map_err(|error| failed(error.into()))?;
        let looker = waiting.map_or_else(|| Looker::start(program), Ok).map_err(failed)?;
        let (answer, is_late) = apart::in_time(&looker.pidfd, limit, || looker.ask(&text, limit));
        let answer = answer.and_then(|(answer, end)| {
            if !is_late && let Some(waiting) = &mut *self.list() {
                waiting.push(looker);
            }
            if end == apart::WELL {
                return Ok(answer);
            }
            let said = Signal::from_named_raw(end.into())
                .map_or("with an error".to_owned(), |signal| format!("by {signal:?}"));
            Err(io::Error::other(format!("the process that looked ended {said}")))
        });
        apart::told(ask, (answer, is_late))
    }

    /// Whole at any moment: nothing that can fail is done under the lock.
    fn list(&self) -> MutexGuard<'_, Option<Vec<Looker>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One that forks.
#[derive(Debug)]
struct Looker {
    child: Child,
    pidfd: OwnedFd,
    line: OwnedFd,
}

impl Looker {
    fn start(program: &Path) -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC;
        let (line, theirs) = rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        let mut command = apart::command(program, apart::EACH);
        let mut child = command.stdin(Stdio::from(theirs)).stdout(Stdio::null()).spawn()?;
        match rustix::process::pidfd_open(Pid::from_child(&child), PidfdFlags::empty()) {
            Ok(pidfd) => Ok(Self { child, pidfd, line }),
            Err(error) => {
                child.kill()?;
                child.wait()?;
                Err(error.into())
            }
        }
    }

    /// The answer, and how who gave it ended. After an error nothing more can be asked.
    fn ask(&self, text: &[u8], limit: Duration) -> io::Result<(Vec<u8>, u8)> {
        let (theirs, question) = io::pipe()?;
        let (answer, whereto) = io::pipe()?;
        let ends = [theirs.as_fd(), whereto.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !control.push(SendAncillaryMessage::ScmRights(&ends)) {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        let seconds = apart::seconds_of(limit).to_le_bytes();
        rustix::net::sendmsg(&self.line, &[IoSlice::new(&seconds)], &mut control, SendFlags::NOSIGNAL)?;
        drop((theirs, whereto));
        let told = apart::converse(question, answer, text)?;
        let mut end = [0];
        match rustix::net::recv(&self.line, &mut end, RecvFlags::empty())?.0 {
            1 => Ok((told, end[0])),
            _ => Err(io::Error::other("the process that forks for looks ended")),
        }
    }
}

impl Drop for Looker {
    fn drop(&mut self) {
        // It has nothing to lose, and whom it forked goes with it; after SIGKILL that takes as long as the kernel needs.
        if self.child.kill().and_then(|()| self.child.wait()).is_err() {
            tracing::debug!("a process that forks for looks could not be ended");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn one_look_waits_for_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let program = |name: &str, text: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o700)).unwrap();
            path
        };
        let (begun, go_on) = (dir.path().join("begun"), dir.path().join("go-on"));
        for pipe in [&begun, &go_on] {
            nix::unistd::mkfifo(pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        }
        let slow = program(
            "slow",
            &format!("echo > {}; cat {}; echo '{{\"Failed\":\"NoFile\"}}'", begun.display(), go_on.display()),
        );
        let quick = program("quick", "exit 1");
        let question = Ask::signers(&dir.path().join("data.db"));
        let (lookers, limit) = (Lookers::default(), Duration::from_mins(1));
        std::thread::scope(|scope| {
            let first = scope.spawn(|| lookers.ask(&slow, &question, limit));
            // Opens when the other end is: it has begun.
            std::fs::read(&begun).unwrap();
            assert!(lookers.ask(&quick, &question, limit).is_err());
            assert!(!first.is_finished());
            std::fs::write(&go_on, "").unwrap();
            assert!(first.join().unwrap().is_ok());
        });
    }
}
