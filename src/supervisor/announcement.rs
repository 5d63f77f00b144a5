//! Knowing that a fresh process said something, without asking it again and again.
//!
//! `PocketBase` prints a line right after it listens. Its output is a file, so inotify tells us the moment it grows; a
//! poll every 20 milliseconds stands behind that, for the day the line changes or the inotify instances (128 per user
//! by default) are used up. Polling alone costs the booting process CPU and finds it a millisecond late.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use rustix::fs::inotify;
use rustix::fs::inotify::CreateFlags;
use rustix::fs::inotify::WatchFlags;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::runtime::Handle;

use crate::supervisor::process;

/// How long to wait for a line before looking anyway.
const BACKSTOP: Duration = Duration::from_millis(20);

/// A watch on a log file. One inotify instance, for as long as a start lasts.
#[derive(Debug)]
pub(crate) struct Announcement(Option<AsyncFd<OwnedFd>>);

impl Announcement {
    /// Watches a file that exists. Without inotify, the backstop alone remains.
    pub(crate) fn of(file: &Path) -> Self {
        let watch = || -> std::io::Result<AsyncFd<OwnedFd>> {
            let watch = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
            inotify::add_watch(&watch, file, WatchFlags::MODIFY)?;
            process::watch(watch, Interest::READABLE)
        };
        Self(watch().ok())
    }

    /// Resolves when the file grew (true), or after a while (false).
    pub(crate) async fn heard(&self) -> bool {
        let Some(watch) = &self.0 else {
            tokio::time::sleep(Duration::from_millis(1)).await;
            return false;
        };
        let Ok(Ok(mut ready)) = tokio::time::timeout(BACKSTOP, watch.readable()).await else {
            return false;
        };
        // What it says does not matter, that it said something does. Emptying it arms the next wait.
        let mut events = [0; 512];
        while rustix::io::read(watch.get_ref(), &mut events).is_ok_and(|read| read > 0) {}
        ready.clear_ready();
        true
    }
}

impl Drop for Announcement {
    /// Closing an inotify instance waits 10 to 20 ms in the kernel (it synchronises with all readers of its marks), and
    /// a waiting client must not wait for that.
    fn drop(&mut self) {
        if let (Some(watch), Ok(runtime)) = (self.0.take(), Handle::try_current()) {
            runtime.spawn_blocking(move || drop(watch));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[tokio::test]
    async fn a_growing_file_is_heard_at_once_and_each_time_again() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let announcement = Announcement::of(file.path());
        for _ in 0..3 {
            writeln!(file, "Server started").unwrap();
            let watch = announcement.0.as_ref().unwrap();
            tokio::time::timeout(Duration::from_secs(5), watch.readable()).await.unwrap().unwrap().retain_ready();
            assert!(announcement.heard().await);
        }
        // Silent now: only the backstop ends the wait.
        assert!(!announcement.heard().await);
    }
}
