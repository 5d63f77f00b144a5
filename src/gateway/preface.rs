//! Tells HTTP/2 from HTTP/1 by the first bytes of a connection, within a time limit and without losing them.
//!
//! What is read here is handed to the protocol as the first thing it reads, so that an ordinary HTTP/1 request costs no
//! more system calls than without the look: its whole head usually comes with the one read.

use std::io;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::timeout;

/// What a client that knows that it may speak HTTP/2 begins with (RFC 9113 3.4). No HTTP/1 request begins so.
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Room for the head of an ordinary request.
const ROOM: usize = 4096;

/// What a connection speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protocol {
    Http1,
    Http2,
}

/// Reads until the protocol is known, at most for `limit`. Returns it with the bytes read so far; `None` when the
/// client left or took too long.
pub(crate) async fn tell(stream: &TcpStream, limit: Duration) -> io::Result<Option<(Protocol, Vec<u8>)>> {
    timeout(limit, read(stream)).await.unwrap_or(Ok(None))
}

async fn read(stream: &TcpStream) -> io::Result<Option<(Protocol, Vec<u8>)>> {
    let mut head = Vec::with_capacity(ROOM);
    loop {
        stream.readable().await?;
        match stream.try_read_buf(&mut head) {
            Ok(0) => return Ok(None),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Err(error) => return Err(error),
        }
        if let Some(protocol) = judge(&head) {
            return Ok(Some((protocol, head)));
        }
    }
}

/// `None` while the bytes could still become the preface.
fn judge(head: &[u8]) -> Option<Protocol> {
    let seen = head.len().min(PREFACE.len());
    match (head[..seen] == PREFACE[..seen], seen == PREFACE.len()) {
        (true, true) => Some(Protocol::Http2),
        (true, false) => None,
        (false, _) => Some(Protocol::Http1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_whole_preface_is_http2_and_one_byte_off_is_not() {
        for (head, protocol) in [
            (&b""[..], None),
            (b"P", None),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r", None),
            (PREFACE, Some(Protocol::Http2)),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04", Some(Protocol::Http2)),
            (b"G", Some(Protocol::Http1)),
            (b"PO", Some(Protocol::Http1)),
            (b"PRI * HTTP/1.1\r\n", Some(Protocol::Http1)),
            (b"\x16\x03\x01", Some(Protocol::Http1)),
        ] {
            assert_eq!(judge(head), protocol, "{head:?}");
        }
    }
}
