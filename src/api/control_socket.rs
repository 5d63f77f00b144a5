//! The Unix socket through which operators reach a running pocketfleet: where it is, how it is bound and reached,
//! and who may speak.
//!
//! Only this user and root get in: the directory is 0700, the socket 0600, and the kernel names the peer's user. A
//! socket left behind by a dead process is replaced; one that answers is never taken over.

use std::fs;
use std::fs::DirBuilder;
use std::fs::File;
use std::fs::Permissions;
use std::io;
use std::io::ErrorKind;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use axum::Router;
use axum::body::Body;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use hyper_util::rt::TokioTimer;
use rustix::net::SocketFlags;
use rustix::process::geteuid;
use tokio::net::UnixListener;
use tokio::net::UnixStream;
use tokio::sync::Semaphore;
use tower::ServiceExt;

use crate::gateway::Lent;
use crate::gateway::Reserve;
use crate::gateway::is_out_of_files;
use crate::shutdown::Shutdown;

/// Paths longer than this do not fit into a socket address (108 bytes with the end mark, minus some room).
const LONGEST_PATH: usize = 100;
/// Operators' connections served at once.
const MAX_CONNECTIONS: usize = 32;
/// How long a connection may take to send a request head.
const HEAD_TIME: Duration = Duration::from_secs(10);
/// How long the end waits for answers that are under way.
const DRAIN_TIME: Duration = Duration::from_secs(5);
/// The pause after a failed accept (out of memory, say), so that it does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Descriptors held back for operators when there are no others.
const SPARE: usize = 2;
/// How often it is said at most that accepting fails.
const SAY_EVERY: Duration = Duration::from_secs(10);

/// Where the socket of a data directory is.
pub fn path_in(data: &Path) -> PathBuf {
    data.join("run").join("pocketfleet.sock")
}

/// A path that fits into a socket address: the path itself, or a detour through an open handle of its directory.
struct Address {
    path: PathBuf,
    /// Keeps the detour valid.
    _directory: Option<File>,
}

impl Address {
    fn of(path: &Path) -> io::Result<Self> {
        if path.as_os_str().as_bytes().len() <= LONGEST_PATH {
            return Ok(Self { path: path.to_owned(), _directory: None });
        }
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(io::Error::new(ErrorKind::InvalidInput, "the path of the control socket has no file name"));
        };
        let directory = File::open(parent)?;
        let detour = PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd())).join(name);
        Ok(Self { path: detour, _directory: Some(directory) })
    }
}

/// Reaches the pocketfleet behind a socket.
pub async fn connect(path: &Path) -> io::Result<UnixStream> {
    let address = Address::of(path)?;
    UnixStream::connect(&address.path).await
}

/// A bound control socket. Dropping it removes the file, unless another process has replaced it.
#[derive(Debug)]
pub struct ControlSocket {
    listener: UnixListener,
    path: PathBuf,
    inode: u64,
}

impl ControlSocket {
    /// Binds the socket, making its directory. Fails with `AddrInUse` when another pocketfleet answers on it.
    pub async fn bind(path: &Path) -> io::Result<Self> {
        if let Some(parent) = path.parent() {
            DirBuilder::new().recursive(true).mode(0o700).create(parent)?;
            fs::set_permissions(parent, Permissions::from_mode(0o700))?;
        }
        clear(path).await?;
        let address = Address::of(path)?;
        let listener = UnixListener::bind(&address.path)?;
        fs::set_permissions(path, Permissions::from_mode(0o600))?;
        Ok(Self { listener, path: path.to_owned(), inode: fs::symlink_metadata(path)?.ino() })
    }

    /// Serves until the shutdown begins, then lets answers under way finish for a moment.
    pub async fn serve(self, router: Router, shutdown: Shutdown) -> io::Result<()> {
        let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let (reserve, mut said) = (Reserve::new(SPARE), None::<Instant>);
        loop {
            let place = tokio::select! {
                () = shutdown.begun() => break,
                Ok(place) = places.clone().acquire_owned() => place,
            };
            let accepted = tokio::select! {
                () = shutdown.begun() => break,
                accepted = self.listener.accept() => accepted.map(|(stream, _)| (stream, None)),
            };
            let accepted = match accepted {
                Err(error) if is_out_of_files(&error) => self.accept_with(&reserve).unwrap_or(Err(error)),
                accepted => accepted,
            };
            match accepted {
                Ok((stream, spare)) if is_welcome(&stream) => {
                    let (router, shutdown) = (router.clone(), shutdown.clone());
                    tokio::spawn(async move {
                        answer(stream, router, &shutdown).await;
                        drop((spare, place));
                    });
                }
                Ok(_) => tracing::warn!("refused another user at the control socket"),
                Err(error) => {
                    // Out of descriptors, it fails before it is known whether somebody is there.
                    if error.kind() != ErrorKind::WouldBlock && said.is_none_or(|said| said.elapsed() >= SAY_EVERY) {
                        said = Some(Instant::now());
                        tracing::warn!(error = %error, "the control socket cannot accept");
                    }
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
            reserve.refill();
        }
        // All places free = every connection has ended.
        let all = u32::try_from(MAX_CONNECTIONS).unwrap_or(u32::MAX);
        drop(tokio::time::timeout(DRAIN_TIME, places.acquire_many(all)).await);
        Ok(())
    }

    /// Accepts with a descriptor that was held back; none when there is none either.
    fn accept_with(&self, reserve: &Reserve) -> Option<io::Result<(UnixStream, Option<Lent>)>> {
        let lent = reserve.lend()?;
        let accepted = rustix::net::accept_with(&self.listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK);
        let stream = accepted.map_err(io::Error::from).and_then(|socket| UnixStream::from_std(socket.into()));
        Some(stream.map(|stream| (stream, Some(lent))))
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        if fs::symlink_metadata(&self.path).is_ok_and(|found| found.ino() == self.inode) {
            // Nothing to do about a failure: the next start replaces a dead socket.
            drop(fs::remove_file(&self.path));
        }
    }
}

/// Makes room for a new socket: removes one that nobody answers on, and nothing else.
async fn clear(path: &Path) -> io::Result<()> {
    let found = match fs::symlink_metadata(path) {
        Ok(found) => found,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    if !found.file_type().is_socket() {
        let message = format!("{} exists and is not a socket; move it away", path.display());
        return Err(io::Error::new(ErrorKind::AlreadyExists, message));
    }
    match connect(path).await {
        Ok(_) => {
            let message = format!("another pocketfleet answers on {}", path.display());
            Err(io::Error::new(ErrorKind::AddrInUse, message))
        }
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => fs::remove_file(path),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// Whether the kernel says that the peer is this user or root.
fn is_welcome(stream: &UnixStream) -> bool {
    stream.peer_cred().is_ok_and(|peer| peer.uid() == 0 || peer.uid() == geteuid().as_raw())
}

/// Serves one connection; ends after the answer under way when the shutdown begins.
async fn answer(stream: UnixStream, router: Router, shutdown: &Shutdown) {
    let service = service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
        router.clone().oneshot(request.map(Body::new))
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let result = tokio::select! {
        result = connection.as_mut() => result,
        () = shutdown.begun() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = result {
        tracing::debug!(error = %error, "a control connection ended early");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_dead_socket_is_replaced_and_a_live_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = path_in(folder.path());
        let first = ControlSocket::bind(&path).await.unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(path.parent().unwrap()).unwrap().mode() & 0o777, 0o700);
        assert_eq!(ControlSocket::bind(&path).await.unwrap_err().kind(), ErrorKind::AddrInUse);
        // A killed process leaves the file and closes the listener.
        let moved = path.with_extension("moved");
        fs::rename(&path, &moved).unwrap();
        drop(first);
        fs::rename(&moved, &path).unwrap();
        let second = ControlSocket::bind(&path).await.unwrap();
        assert!(path.exists());
        drop(second);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_file_that_is_no_socket_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("precious");
        fs::write(&path, "data").unwrap();
        assert_eq!(ControlSocket::bind(&path).await.unwrap_err().kind(), ErrorKind::AlreadyExists);
        assert_eq!(fs::read(&path).unwrap(), b"data");
    }

    #[tokio::test]
    async fn a_path_too_long_for_an_address_works_all_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let path = path_in(&folder.path().join("d".repeat(120)));
        let shutdown = Shutdown::new();
        let socket = ControlSocket::bind(&path).await.unwrap();
        let serving = tokio::spawn(socket.serve(Router::new(), shutdown.clone()));
        let stream = connect(&path).await.unwrap();
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        let driver = tokio::spawn(connection);
        let request = hyper::Request::get("/").header("host", "control").body(Body::empty()).unwrap();
        assert_eq!(sender.send_request(request).await.unwrap().status(), 404);
        shutdown.begin();
        serving.await.unwrap().unwrap();
        drop(driver.await);
        assert!(!path.exists());
    }
}
