//! What goes through the `execve`: descriptors, named in one environment variable.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::net::TcpListener;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd;
use std::os::fd::FromRawFd;
use std::os::fd::OwnedFd;
use std::os::fd::RawFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;

use nix::sys::signal::SigSet;
use nix::sys::signal::Signal;
use rustix::io::FdFlags;
use serde::Deserialize;
use serde::Serialize;

use crate::reload::Generation;
use crate::reload::Origin;

/// The environment variable that names what is handed over.
pub const VARIABLE: &str = "POCKETFLEET_HANDOVER";
/// The first descriptor that an init system hands over.
const FIRST: RawFd = 3;
/// Connections that may wait in the kernel while nobody accepts: as many as it allows by default.
const BACKLOG: i32 = 4096;

/// The text of the variable.
#[derive(Debug, Serialize, Deserialize)]
struct Named {
    /// Whom it is for: an `execve` keeps the number, a child has another.
    pid: u32,
    listener: RawFd,
    lock: RawFd,
    /// The program that ran before, to go back to.
    previous: Option<RawFd>,
    program: OsString,
    flags: Vec<OsString>,
    data: OsString,
    generation: u64,
    refused: Option<String>,
}

/// What this process was given by the run before it, or by an init system.
#[derive(Debug, Default)]
pub struct Inherited {
    /// The bound and listening socket.
    pub listener: Option<TcpListener>,
    /// The locked file of the data directory.
    pub lock: Option<File>,
    /// The program that ran before.
    pub previous: Option<File>,
    /// How it was started, and where a reload looks for the next one.
    pub started: Option<Origin>,
    /// Which run this is.
    pub generation: Generation,
}

impl Inherited {
    /// Takes the descriptors. Once, before anything else is opened or started.
    pub fn take(origin: &Origin) -> io::Result<Self> {
        if let Some(text) = &origin.handover {
            let named: Named = serde_json::from_str(text)?;
            // In the environment of a child that somebody started from a reloaded server: not meant for it.
            if named.pid == std::process::id() {
                let generation = Generation { number: named.generation, refused: named.refused };
                return Ok(Self {
                    listener: Some(listener(owned(named.listener)?)?),
                    lock: Some(File::from(owned(named.lock)?)),
                    previous: named.previous.map(owned).transpose()?.map(File::from),
                    started: Some(Origin {
                        program: named.program.into(),
                        flags: named.flags,
                        data: named.data.into(),
                        ..Origin::default()
                    }),
                    generation,
                });
            }
        }
        let Some((pid, count)) = &origin.activation else { return Ok(Self::default()) };
        if pid.parse() != Ok(std::process::id()) {
            return Ok(Self::default());
        }
        if count != "1" {
            let text = format!("LISTEN_FDS={count}: pocketfleet takes one socket; give it one ListenStream");
            return Err(io::Error::other(text));
        }
        Ok(Self { listener: Some(listener(owned(FIRST)?)?), ..Self::default() })
    }
}

/// A descriptor that came through an `execve`, kept from our own children.
fn owned(number: RawFd) -> io::Result<OwnedFd> {
    if number < FIRST || !Path::new(&format!("/proc/self/fd/{number}")).exists() {
        return Err(io::Error::other(format!("descriptor {number} was promised and is not there")));
    }
    #[expect(unsafe_code, reason = "a number from the environment has no safe owner")]
    // SAFETY: the descriptor is open, as was just seen, and nothing else in this process owns it: it was opened before
    // the program began, nothing was opened by number since, and each number is taken once.
    let descriptor = unsafe { OwnedFd::from_raw_fd(number) };
    rustix::io::fcntl_setfd(&descriptor, FdFlags::CLOEXEC)?;
    Ok(descriptor)
}

fn listener(descriptor: OwnedFd) -> io::Result<TcpListener> {
    if !rustix::net::sockopt::socket_acceptconn(&descriptor)? {
        return Err(io::Error::other("the socket that was handed over does not listen"));
    }
    let listener = TcpListener::from(descriptor);
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Lets more connections wait for a reload than the standard library's 128.
fn deepen(listener: &TcpListener) -> io::Result<()> {
    Ok(rustix::net::listen(listener, BACKLOG)?)
}

/// Holds SIGINT, SIGTERM and SIGUSR2 back in this thread (and threads it starts), or lets them through. What arrives
/// meanwhile is not lost: it waits, also through an `execve`.
pub fn hold_signals(hold: bool) -> io::Result<()> {
    let set: SigSet = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGUSR2].into_iter().collect();
    let done = if hold { set.thread_block() } else { set.thread_unblock() };
    done.map_err(io::Error::from)
}

/// Sends this process, which holds the signal back, a SIGTERM: the next run hears it.
pub fn stop_later() -> io::Result<()> {
    // Not `raise`, which is for the thread.
    nix::sys::signal::kill(nix::unistd::Pid::this(), Signal::SIGTERM).map_err(io::Error::from)
}

/// What the next run gets.
#[derive(Debug)]
pub struct Handover {
    listener: TcpListener,
    lock: File,
    previous: Option<File>,
    generation: Generation,
    origin: Origin,
}

impl Handover {
    /// Gathers what has to stay open. The socket is shared with whoever accepts now.
    pub fn of(listener: &TcpListener, lock: File, origin: Origin, inherited: Option<File>) -> io::Result<Self> {
        deepen(listener)?;
        Ok(Self {
            listener: listener.try_clone()?,
            lock,
            previous: inherited,
            generation: Generation::default(),
            origin,
        })
    }

    /// Which run this is; the next one gets the number after it.
    #[must_use]
    pub fn in_generation(mut self, generation: &Generation) -> Self {
        self.generation = generation.clone();
        self
    }

    /// Which run this is.
    pub fn generation(&self) -> &Generation {
        &self.generation
    }

    /// This run listens: there is no going back to the one before it.
    pub fn settled(&mut self) {
        self.previous = None;
    }

    /// Whether there is a run to go back to.
    pub fn can_go_back(&self) -> bool {
        self.previous.is_some()
    }

    /// Becomes the program that stands where this one was started from, or, when it cannot be executed, this one again.
    /// Returns only when neither works. Nothing may run any more: other threads end with the call.
    pub fn pass_on(self) -> io::Error {
        let own = match File::open("/proc/self/exe") {
            Ok(own) => own,
            Err(error) => return error,
        };
        let program = self.origin.program.clone();
        let mut named = self.named(Some(own.as_raw_fd()), None);
        named.generation += 1;
        let error = self.become_program(&program, &own, &named);
        named.previous = None;
        named.refused = Some(format!("{} could not be executed: {error}", program.display()));
        self.become_program(&itself(&own), &own, &named)
    }

    /// Becomes the program that ran before. Returns only when that does not work.
    pub fn go_back(mut self, reason: String) -> io::Error {
        let Some(previous) = self.previous.take() else { return io::Error::other("there is nothing to go back to") };
        let named = self.named(None, Some(reason));
        self.become_program(&itself(&previous), &previous, &named)
    }

    fn named(&self, previous: Option<RawFd>, refused: Option<String>) -> Named {
        Named {
            pid: std::process::id(),
            listener: self.listener.as_raw_fd(),
            lock: self.lock.as_raw_fd(),
            previous,
            program: self.origin.program.clone().into(),
            flags: self.origin.flags.clone(),
            data: self.origin.data.clone().into(),
            generation: self.generation.number,
            refused,
        }
    }

    fn become_program(&self, program: &Path, other: &File, named: &Named) -> io::Error {
        let text = match serde_json::to_string(named) {
            Ok(text) => text,
            Err(error) => return error.into(),
        };
        let kept = [self.listener.as_fd(), self.lock.as_fd(), other.as_fd()];
        if let Err(error) = kept.iter().try_for_each(|kept| rustix::io::fcntl_setfd(kept, FdFlags::empty())) {
            return error.into();
        }
        #[expect(clippy::disallowed_methods, reason = "the one exec of the server; nothing is spawned")]
        let mut command = Command::new(program);
        command.arg0(&self.origin.program).arg("serve").args(&self.origin.flags).env(VARIABLE, text);
        command.env_remove("LISTEN_PID").env_remove("LISTEN_FDS").env_remove("LISTEN_FDNAMES");
        command.exec()
    }
}

/// An open program file, by a name that works for an `execve`.
fn itself(file: &File) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_for_this_process_or_not_there_is_not_taken() {
        let named = |pid: u32, listener: RawFd| {
            serde_json::to_string(&Named {
                pid,
                listener,
                lock: 900_001,
                previous: None,
                program: "/p".into(),
                flags: vec!["--data".into()],
                data: "/d".into(),
                generation: 3,
                refused: None,
            })
            .unwrap()
        };
        let take = |handover: Option<String>, activation: Option<(String, String)>| {
            Inherited::take(&Origin { handover, activation, ..Origin::default() })
        };
        let own = std::process::id();
        let nothing = take(Some(named(own + 1, 3)), Some(((own + 1).to_string(), "1".into()))).unwrap();
        assert!(nothing.listener.is_none() && nothing.lock.is_none() && nothing.generation.number == 0);
        assert!(take(Some(named(own, 900_000)), None).unwrap_err().to_string().contains("900000"));
        assert!(take(Some(named(own, 1)), None).is_err(), "the standard streams are nobody's listener");
        assert!(take(None, Some((own.to_string(), "2".into()))).unwrap_err().to_string().contains("one socket"));
        assert!(take(Some("nonsense".into()), None).is_err());
    }

    #[test]
    fn a_socket_that_does_not_listen_is_refused() {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        assert!(listener(OwnedFd::from(socket)).unwrap_err().to_string().contains("does not listen"));
        let real = TcpListener::bind("127.0.0.1:0").unwrap();
        deepen(&real).unwrap();
        assert!(listener(OwnedFd::from(real)).is_ok());
    }
}
