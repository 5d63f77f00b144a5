//! The jailer that waits for orders, so that a start does not have to wait for one.
//!
//! Starting this program again, until it is ready to do something, takes one to two milliseconds of a wake that a
//! client waits for, and as much CPU: it is loaded and linked anew. One jailer is therefore started ahead, while nobody
//! waits, and forks for each order (a fork server): what it forks is our child, has nothing but an empty environment, and
//! does from there on exactly what any other jailer does. It goes when its socket closes, whatever became of us. Whoever
//! finds none, or one that does not answer, starts a jailer of its own.
//!
//! An order whose answer does not come in time may have been obeyed all the same: the answer is looked for once more when
//! the jailer is certainly gone. If it died between the two, the lock on the data directory tells, as it does for any
//! process that is not known.

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rustix::net::AddressFamily;
use rustix::net::RecvFlags;
use rustix::net::SendFlags;
use rustix::net::SocketFlags;
use rustix::net::SocketType;
use rustix::net::sockopt::Timeout;
use rustix::process::Pid;

use crate::supervisor::fleet::Fleet;
use crate::supervisor::jail;

/// How long after a start the jailer is made, if there is none: the client's first request goes first.
const PAUSE: Duration = Duration::from_millis(20);
/// How long a fork may take. On a machine with nothing to spare it is some ten milliseconds.
const PATIENCE: Duration = Duration::from_secs(2);

/// The jailer that waits, if one does.
#[derive(Debug)]
pub(crate) struct Standby {
    jailer: PathBuf,
    server: Mutex<Option<Server>>,
    is_closed: AtomicBool,
    is_filling: AtomicBool,
}

/// A jailer and the line to it.
#[derive(Debug)]
struct Server {
    process: Child,
    line: OwnedFd,
}

impl Standby {
    /// None waits yet.
    pub(crate) fn new(jailer: PathBuf) -> Self {
        let (is_closed, is_filling) = (AtomicBool::new(false), AtomicBool::new(false));
        Self { jailer, server: Mutex::default(), is_closed, is_filling }
    }

    /// A process of ours that obeys the order, if a jailer waits and forks it. Blocks for a fork.
    pub(crate) fn tell(&self, order: &jail::Order) -> io::Result<Option<Pid>> {
        let order = serde_json::to_vec(order)?;
        let mut server = self.lock();
        let Some(found) = server.as_ref().filter(|_| order.len() <= jail::LONGEST_ORDER) else { return Ok(None) };
        match exchange(&found.line, &order) {
            Ok(Ok(pid)) => Ok(Some(pid)),
            // Out of memory or of processes: a jailer of its own will say so.
            Ok(Err(error)) => {
                tracing::debug!(%error, "the waiting jailer could not fork");
                Ok(None)
            }
            Err(error) => {
                tracing::debug!(%error, "the waiting jailer does not answer");
                Ok(server.take().and_then(last_word))
            }
        }
    }

    /// Starts one if none waits. Blocks for a `posix_spawn`.
    fn fill(&self) {
        let mut server = self.lock();
        if server.is_none() && !self.is_closed.load(Ordering::SeqCst) {
            match self.start() {
                Ok(started) => *server = Some(started),
                Err(error) => tracing::debug!(%error, "no jailer is started ahead"),
            }
        }
    }

    fn start(&self) -> io::Result<Server> {
        // Packets keep orders apart, and a closed end is heard by the other.
        let (line, theirs) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        rustix::net::sockopt::set_socket_timeout(&line, Timeout::Recv, Some(PATIENCE))?;
        #[expect(clippy::disallowed_methods, reason = "one of the places that start instances")]
        let mut command = Command::new(&self.jailer);
        command.arg(jail::SUBCOMMAND).arg(jail::WAIT).env_clear();
        command.stdin(Stdio::from(theirs)).stdout(Stdio::null()).stderr(Stdio::null());
        Ok(Server { process: command.spawn()?, line })
    }

    /// Whole at any moment: nothing under the lock leaves anything half-done.
    fn lock(&self) -> MutexGuard<'_, Option<Server>> {
        self.server.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the one that waits, for good. Blocks for moments.
    fn close(&self) {
        self.is_closed.store(true, Ordering::SeqCst);
        let waiting = self.lock().take();
        if let Some(pid) = waiting.and_then(last_word) {
            tracing::warn!(instance.pid = pid.as_raw_nonzero(), "a start that nobody waits for was left behind");
        }
    }
}

/// Sends an order and waits for the pid, or for why there is none. An outer error is one of the line.
fn exchange(line: &OwnedFd, order: &[u8]) -> io::Result<io::Result<Pid>> {
    rustix::net::send(line, order, SendFlags::NOSIGNAL | SendFlags::DONTWAIT)?;
    let mut answer = [0; size_of::<i32>()];
    // Not for longer than the line's patience.
    let read = rustix::io::retry_on_intr(|| rustix::io::read(line, &mut answer))?;
    if read != answer.len() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let answer = i32::from_ne_bytes(answer);
    Ok(Pid::from_raw(answer).filter(|_| answer > 0).ok_or_else(|| io::Error::from_raw_os_error(answer.wrapping_neg())))
}

/// Ends a jailer, and only then looks whether it had obeyed all the same: a process of ours that nobody knows would never
/// be reaped.
fn last_word(mut server: Server) -> Option<Pid> {
    // It holds nothing and is nobody; after SIGKILL it takes as long as the kernel needs.
    if server.process.kill().and_then(|()| server.process.wait()).is_err() {
        tracing::debug!("the waiting jailer could not be ended");
    }
    let mut answer = [0; size_of::<i32>()];
    let (read, _) = rustix::net::recv(&server.line, &mut answer, RecvFlags::DONTWAIT).ok()?;
    let answer = i32::from_ne_bytes(answer);
    Pid::from_raw(answer).filter(|_| read == size_of::<i32>() && answer > 0)
}

impl Fleet {
    /// Sees to it that a jailer waits, in a moment.
    pub(crate) fn stand_by(self: &Arc<Self>) {
        // Held while a start is under way: then there is one.
        let is_there = self.standby.server.try_lock().map_or(true, |server| server.is_some());
        if is_there || self.stopping.is_cancelled() || self.standby.is_filling.swap(true, Ordering::SeqCst) {
            return;
        }
        let fleet = Arc::clone(self);
        self.tasks.spawn_on(
            async move {
                tokio::select! {
                    () = tokio::time::sleep(PAUSE) => {}
                    () = fleet.stopping.cancelled() => return,
                }
                let filling = Arc::clone(&fleet);
                fleet.standby.is_filling.store(false, Ordering::SeqCst);
                drop(tokio::task::spawn_blocking(move || filling.standby.fill()).await);
            },
            &self.runtime,
        );
    }

    /// Ends the jailer that waits, and those that look where a taking over was cut short.
    pub(crate) async fn stand_down(self: &Arc<Self>) {
        let fleet = Arc::clone(self);
        let work = move || {
            fleet.standby.close();
            fleet.lookers.close();
        };
        drop(tokio::task::spawn_blocking(work).await);
    }
}
