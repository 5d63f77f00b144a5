//! Short runs of the `PocketBase` binary: while a template is baked, and for its version.
//!
//! Instances are started elsewhere, through the jailer, and survive us. A [`Oneshot`] is the opposite: it belongs to
//! the task that started it and is killed and reaped when dropped. Its environment is empty and its output goes to a
//! file, so that neither our secrets reach it nor a full pipe stops it.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Child;
use std::process::Command;
use std::process::ExitStatus;
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::Signal;
use nix::sys::signal::kill;
use nix::unistd::Pid;
use tokio::time::Instant;

use crate::supervisor::jail;

/// How often an exit is looked for.
const POLL: Duration = Duration::from_millis(5);

/// Why a run did not come to an end of its own.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The binary or the output file could not be opened, or the process not be started.
    #[error("cannot start the process")]
    Start(#[source] io::Error),
    /// The process could not be signalled or waited for.
    #[error("cannot watch the process")]
    Watch(#[source] io::Error),
    /// It was still running at the deadline, and was killed.
    #[error("the process did not end within {0:?}")]
    Deadline(Duration),
}

/// A process that lives no longer than this value.
#[derive(Debug)]
pub struct Oneshot {
    child: Child,
}

impl Oneshot {
    /// Starts `binary` in a process group of its own, so that Ctrl-C on the terminal is ours to handle.
    pub fn start(binary: &Path, args: &[&OsStr], cwd: &Path, output: &Path) -> Result<Self, Error> {
        let stdout = File::options().create(true).append(true).open(output).map_err(Error::Start)?;
        let stderr = stdout.try_clone().map_err(Error::Start)?;
        #[expect(clippy::disallowed_methods, reason = "one of the two places that start processes")]
        let mut command = Command::new(binary);
        command.args(args).current_dir(cwd).env_clear().process_group(0);
        command.stdin(Stdio::null()).stdout(stdout).stderr(stderr);
        Ok(Self { child: command.spawn().map_err(Error::Start)? })
    }

    /// Starts a program through the jailer, which gives it a session of its own.
    pub fn start_jailed(jailer: &Path, spec: &jail::Spec, output: &Path) -> Result<Self, Error> {
        let stdout = File::options().create(true).append(true).open(output).map_err(Error::Start)?;
        let stderr = stdout.try_clone().map_err(Error::Start)?;
        let spec = serde_json::to_string(spec).map_err(|error| Error::Start(error.into()))?;
        #[expect(clippy::disallowed_methods, reason = "one of the places that start processes")]
        let mut command = Command::new(jailer);
        command.arg(jail::SUBCOMMAND).arg(spec).env_clear();
        command.stdin(Stdio::null()).stdout(stdout).stderr(stderr);
        Ok(Self { child: command.spawn().map_err(Error::Start)? })
    }

    /// Its exit status, if it has ended.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>, Error> {
        self.child.try_wait().map_err(Error::Watch)
    }

    /// Waits for its end, and kills it when `limit` is over.
    pub async fn wait(&mut self, limit: Duration) -> Result<ExitStatus, Error> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.ended()? {
                return Ok(status);
            }
            if Instant::now() >= deadline {
                self.child.kill().and_then(|()| self.child.wait()).map_err(Error::Watch)?;
                return Err(Error::Deadline(limit));
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Asks it to end, and waits for that.
    pub async fn terminate(&mut self, limit: Duration) -> Result<ExitStatus, Error> {
        if let Some(status) = self.ended()? {
            return Ok(status);
        }
        // Not reaped yet, so the number still means this process.
        let pid = i32::try_from(self.child.id()).map_err(|error| Error::Watch(io::Error::other(error)))?;
        kill(Pid::from_raw(pid), Signal::SIGTERM).map_err(|errno| Error::Watch(errno.into()))?;
        self.wait(limit).await
    }
}

impl Drop for Oneshot {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) && self.child.kill().is_ok() {
            // After SIGKILL this takes as long as the kernel needs to tear the process down.
            drop(self.child.wait());
        }
    }
}

/// Runs `binary` to its end, with `limit` as the longest time.
pub async fn run_to_completion(
    binary: &Path,
    args: &[&OsStr],
    cwd: &Path,
    output: &Path,
    limit: Duration,
) -> Result<ExitStatus, Error> {
    Oneshot::start(binary, args, cwd, output)?.wait(limit).await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, dir: &Path) -> Result<Oneshot, Error> {
        Oneshot::start(Path::new("/bin/sh"), &["-c".as_ref(), script.as_ref()], dir, &dir.join("out"))
    }

    #[tokio::test]
    async fn output_and_status_are_kept_and_the_environment_is_empty() {
        let dir = tempfile::tempdir().unwrap();
        let mut run = shell("echo out; echo err >&2; echo \"[$HOME$USER]\"; exit 7", dir.path()).unwrap();
        assert_eq!(run.wait(Duration::from_secs(10)).await.unwrap().code(), Some(7));
        assert_eq!(std::fs::read_to_string(dir.path().join("out")).unwrap(), "out\nerr\n[]\n");
    }

    #[tokio::test]
    async fn a_run_past_its_deadline_is_killed_and_reaped() {
        let dir = tempfile::tempdir().unwrap();
        let mut run = shell("exec sleep 1000", dir.path()).unwrap();
        let pid = Pid::from_raw(i32::try_from(run.child.id()).unwrap());
        assert!(matches!(run.wait(Duration::from_millis(20)).await, Err(Error::Deadline(_))));
        assert!(kill(pid, None).is_err());
    }

    #[tokio::test]
    async fn a_dropped_run_leaves_no_process() {
        let dir = tempfile::tempdir().unwrap();
        let run = shell("exec sleep 1000", dir.path()).unwrap();
        let pid = Pid::from_raw(i32::try_from(run.child.id()).unwrap());
        drop(run);
        assert!(kill(pid, None).is_err());
    }

    #[tokio::test]
    async fn a_missing_binary_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let result = Oneshot::start(Path::new("/nonexistent"), &[], dir.path(), &dir.path().join("out"));
        assert!(matches!(result, Err(Error::Start(_))));
    }
}
