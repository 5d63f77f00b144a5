//! Replacing the running program by another one that keeps its sockets, its lock and its instances.
//!
//! # Theory of operation
//! A reload is an `execve` in place: the process keeps its number (so an init system or a container sees nothing), its
//! listening socket (so connections made meanwhile wait in the kernel and none is refused), the lock of the data
//! directory (so nobody gets in between) and its children. First the program that would take over is asked whether it
//! starts (`--version`, then `check-config --with-pocketbase` with the same flags); if it does not, nothing has changed.
//! Then requests finish, the control database closes, and [`Handover::pass_on`] executes the program. The control
//! database has one writer at every moment for this reason: there is one process.
//!
//! If the new program fails before it listens, it executes the old one, which it was handed as an open file, and that
//! one says why.
//!
//! Deliberately absent: what has to be finished before (`app` knows), and adoption of the instances (`supervisor`).

mod fitness;
mod handover;

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;

use serde::Serialize;
use tokio::sync::Notify;

pub use handover::Handover;
pub use handover::Inherited;
pub use handover::VARIABLE;
pub use handover::hold_signals;
pub use handover::stop_later;

/// How this process was started: what a reload starts again.
#[derive(Debug, Clone, Default)]
pub struct Origin {
    /// The program file, as it was named: another file may stand there by now.
    pub program: PathBuf,
    /// The flags of `serve`, without the command.
    pub flags: Vec<OsString>,
    /// The data directory, which another program must have too.
    pub data: PathBuf,
    /// What the environment says of descriptors: our own variable, and `LISTEN_PID` with `LISTEN_FDS`.
    pub handover: Option<String>,
    /// See [`handover`](Self::handover).
    pub activation: Option<(String, String)>,
}

/// Which run of the program this process is in.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Generation {
    /// Reloads that this process has gone through.
    pub number: u64,
    /// Why the last one was taken back, if it was.
    pub refused: Option<String>,
}

/// Why a reload does not happen.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// One is under way.
    #[error("a reload is under way already")]
    UnderWay,
    /// What would take over does not start.
    #[error("the new program would not start, so the old one goes on: {0}")]
    Unfit(String),
}

/// Where reloads are asked for. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Reloads(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    origin: Origin,
    scratch: PathBuf,
    generation: Generation,
    is_busy: AtomicBool,
    agreed: Notify,
}

impl Reloads {
    /// For a process of this origin. `scratch` is a folder for a moment's files.
    pub fn new(origin: Origin, generation: Generation, scratch: PathBuf) -> Self {
        let (is_busy, agreed) = (AtomicBool::new(false), Notify::new());
        Self(Arc::new(Shared { origin, scratch, generation, is_busy, agreed }))
    }

    /// Which run this is.
    pub fn generation(&self) -> &Generation {
        &self.0.generation
    }

    /// Asks for a reload: returns when it is certain to begin, or why it does not.
    pub async fn ask(&self) -> Result<(), Refused> {
        if self.0.is_busy.swap(true, Ordering::SeqCst) {
            return Err(Refused::UnderWay);
        }
        // One who goes away while the question is open leaves it to the next.
        let mut asking = Asking { is_busy: &self.0.is_busy, has_agreed: false };
        fitness::check(&self.0.origin, &self.0.scratch).await.map_err(Refused::Unfit)?;
        asking.has_agreed = true;
        self.0.agreed.notify_one();
        Ok(())
    }

    /// Resolves once a reload is certain to begin.
    pub async fn agreed(&self) {
        self.0.agreed.notified().await;
    }
}

struct Asking<'a> {
    is_busy: &'a AtomicBool,
    /// The reload goes on, and no other begins.
    has_agreed: bool,
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        if !self.has_agreed {
            self.is_busy.store(false, Ordering::SeqCst);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn reloads(script: &str) -> (Reloads, tempfile::TempDir) {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("program");
        std::fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        let origin =
            Origin { program, flags: vec!["--data".into(), "/d".into()], data: "/d".into(), ..Origin::default() };
        (Reloads::new(origin, Generation::default(), dir.path().to_owned()), dir)
    }

    #[tokio::test]
    async fn a_program_that_fits_is_agreed_on_once() {
        let (reloads, dir) = reloads("echo \"$*\" >> \"${0%/*}/said\"; echo pocketfleet 9.9.9");
        reloads.ask().await.unwrap();
        reloads.agreed().await;
        assert_eq!(reloads.ask().await, Err(Refused::UnderWay));
        let said = std::fs::read_to_string(dir.path().join("said")).unwrap();
        assert_eq!(said, "--version\ncheck-config --json --with-pocketbase --data /d\n");
    }

    #[tokio::test]
    async fn a_program_that_does_not_start_changes_nothing_and_may_be_tried_again() {
        for (script, reason) in [
            ("exit 3", "exit status: 3"),
            (r#"[ $1 = --version ] && echo pocketfleet 1 || echo '{"data": "/e"}'"#, "would change from"),
            ("echo something else", "is not pocketfleet"),
            ("[ $1 = --version ] && echo pocketfleet 1 || { echo error: no key; exit 1; }", "error: no key"),
        ] {
            let (reloads, _dir) = reloads(script);
            for _ in 0..2 {
                let Err(Refused::Unfit(why)) = reloads.ask().await else { panic!("{script}") };
                assert!(why.contains(reason), "{script}: {why}");
            }
        }
        let (reloads, dir) = reloads("");
        std::fs::remove_file(dir.path().join("program")).unwrap();
        assert!(matches!(reloads.ask().await, Err(Refused::Unfit(why)) if why.contains("program")));
    }
}
