//! The authenticated health check: the only proof of who answers at an address.
//!
//! `GET /api/health` tells a superuser the address that `PocketBase` took the caller for, and tells nobody else.
//! Only the instance whose secrets signed the token accepts it, so an answer with that field comes from that
//! instance: "something answers 200" would also be true of any other process on the port.

use std::net::IpAddr;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt;
use http_body_util::Empty;
use http_body_util::Limited;
use hyper::Request;
use hyper::StatusCode;
use hyper::client::conn::http1;
use hyper::header::AUTHORIZATION;
use hyper::header::CONNECTION;
use hyper::header::HOST;
use hyper::header::HeaderValue;
use hyper_util::rt::TokioIo;
use rustix::io::Errno;
use serde::Deserialize;
use tokio::net::TcpStream;

use crate::supervisor::announcement::Announcement;

/// Largest answer that is read, in bytes. Real ones have about 150.
const MAX_ANSWER: usize = 16 * 1024;

/// How long to wait before somebody is asked for whom there was no descriptor.
const UNASKED_PAUSE: Duration = Duration::from_millis(200);

/// An instance that nobody uses is asked at one look of so many at first, and ever more rarely: being asked takes it and us
/// some four milliseconds, which is what it uses by itself in a minute.
pub(crate) const IDLE: u32 = 6;
/// The most looks between two questions.
const RAREST: u32 = 90;

/// Why a health check failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nothing listens yet, or the connection broke.
    #[error("no answer")]
    Unreachable,
    /// There was no way to ask: we are out of descriptors or memory, which says nothing about who would answer.
    #[error("it could not be asked: {0}")]
    Unasked(std::io::Error),
    /// No whole answer in time.
    #[error("no answer in time")]
    Timeout,
    /// An answer, and not a healthy one.
    #[error("answered {0}")]
    Status(StatusCode),
    /// A healthy answer of something that does not accept our token.
    #[error("answered without accepting the token")]
    NotOurs,
}

#[derive(Deserialize)]
struct Answer {
    #[serde(default)]
    data: Data,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase")]
struct Data {
    #[serde(rename = "realIP")]
    real_ip: Option<IpAddr>,
}

/// Whether an instance that was healthy so far is looked at and asked, `interval` after the last time: one that is used each
/// time, any other when half the time that it was not used has passed, but not before [`IDLE`] times and not after
/// [`RAREST`].
pub(crate) fn is_due(unused: Duration, asked_ago: Duration, interval: Duration) -> bool {
    unused < interval || asked_ago >= (unused / 2).clamp(interval * IDLE, interval * RAREST)
}

/// Asks `address` once, with a superuser's `Bearer` token; answers the client address that the instance saw.
pub async fn check(address: SocketAddr, authorization: &HeaderValue, limit: Duration) -> Result<IpAddr, Error> {
    tokio::time::timeout(limit, ask(address, authorization)).await.unwrap_or(Err(Error::Timeout))
}

/// Waits for a fresh process: looks each time it says something, until it answers. The listener is open before
/// `PocketBase` prints its line. The caller bounds the whole and watches for the exit.
pub(crate) async fn await_ready(
    address: SocketAddr,
    authorization: &HeaderValue,
    limit: Duration,
    announcement: &Announcement,
) -> Result<(), Error> {
    loop {
        announcement.heard().await;
        match check(address, authorization, limit).await {
            Err(Error::Unreachable) => {}
            // It may have said all that it says.
            Err(Error::Unasked(_)) => loop {
                tokio::time::sleep(UNASKED_PAUSE).await;
                match check(address, authorization, limit).await {
                    Err(Error::Unasked(_)) => {}
                    Err(Error::Unreachable) => break,
                    outcome => return outcome.map(drop),
                }
            },
            outcome => return outcome.map(drop),
        }
    }
}

/// Whether nobody listens, or we could not even try.
fn unconnected(error: std::io::Error) -> Error {
    match error.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM) => Error::Unasked(error),
        _ => Error::Unreachable,
    }
}

async fn ask(address: SocketAddr, authorization: &HeaderValue) -> Result<IpAddr, Error> {
    let stream = TcpStream::connect(address).await.map_err(unconnected)?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|_| Error::Unreachable)?;
    let request = Request::get("/api/health")
        .header(HOST, address.to_string())
        .header(AUTHORIZATION, authorization)
        .header(CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(|_| Error::Unreachable)?;
    let exchange = async {
        let answer = sender.send_request(request).await.map_err(|_| Error::Unreachable)?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), MAX_ANSWER).collect().await.map_err(|_| Error::Unreachable)?;
        if status != StatusCode::OK {
            return Err(Error::Status(status));
        }
        let answer: Answer = serde_json::from_slice(&body.to_bytes()).map_err(|_| Error::NotOurs)?;
        answer.data.real_ip.ok_or(Error::NotOurs)
    };
    // The connection is driven here and not by a task of its own: dropping this future closes it.
    tokio::pin!(exchange, connection);
    tokio::select! {
        biased;
        result = &mut exchange => result,
        _ = &mut connection => exchange.await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_here_is_not_a_missing_answer() {
        let of = |errno: Errno| unconnected(std::io::Error::from_raw_os_error(errno.raw_os_error()));
        for ours in [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM] {
            assert!(matches!(of(ours), Error::Unasked(_)), "{ours}");
        }
        for theirs in [Errno::CONNREFUSED, Errno::CONNRESET, Errno::HOSTUNREACH] {
            assert!(matches!(of(theirs), Error::Unreachable), "{theirs}");
        }
    }

    #[test]
    fn who_is_not_used_is_asked_seldom_and_who_is_at_every_look() {
        let second = Duration::from_secs;
        let of = |unused, asked_ago| is_due(second(unused), second(asked_ago), second(10));
        assert!(of(0, 10) && of(9, 10), "in use, and silent");
        assert!(!of(10, 10) && !of(300, 50));
        assert!(of(10, 60) && of(120, 61));
        assert!(!of(300, 149) && of(300, 150), "the longer, the more rarely");
        assert!(!of(100_000, 899) && of(100_000, 900), "and never quite left alone");
    }
}
