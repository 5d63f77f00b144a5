//! HTTP/2 frames by hand, for clients that no library would let one write.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::support::PATIENCE;

pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const CONTINUATION: u8 = 9;
pub(crate) const END_STREAM: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;
pub(crate) const PROTOCOL_ERROR: u32 = 1;
pub(crate) const ENHANCE_YOUR_CALM: u32 = 11;

/// One frame as received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Received {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

impl Received {
    /// The error code of a reset or a goodbye.
    pub(crate) fn reason(&self) -> u32 {
        let at = if self.kind == GOAWAY { 4 } else { 0 };
        u32::from_be_bytes(self.payload[at..at + 4].try_into().unwrap())
    }

    /// The status of a head, which a server writes with the static table or as a literal.
    pub(crate) fn status(&self) -> u16 {
        match self.payload.as_slice() {
            [0x88, ..] => 200,
            [0x89, ..] => 204,
            [0x8b, ..] => 304,
            [0x8c, ..] => 400,
            [0x8d, ..] => 404,
            [0x8e, ..] => 500,
            // A literal under the name `:status`, its three digits plain or in Huffman code.
            [0x48, 0x03, digits @ ..] => std::str::from_utf8(&digits[..3]).unwrap().parse().unwrap(),
            [0x48, 0x82 | 0x83, code @ ..] => huffman_digits([code[0], code[1], code[2]]),
            other => panic!("no status in {other:02x?}"),
        }
    }
}

/// Three digits: `0`, `1`, `2` have codes of five bits, the others of six.
fn huffman_digits([first, second, third]: [u8; 3]) -> u16 {
    let bits = u32::from_be_bytes([first, second, third, 0]);
    let (mut at, mut value) = (0, 0);
    for _ in 0..3 {
        let next = |count: u32| (bits << at) >> (32 - count);
        let (digit, length) = if next(5) <= 2 { (next(5), 5) } else { (next(6) - 0b01_1001 + 3, 6) };
        value = value * 10 + digit;
        at += length;
    }
    u16::try_from(value).unwrap()
}

pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut bytes = length[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// A header as a literal that enters no table.
pub(crate) fn field(name: &str, value: &str) -> Vec<u8> {
    let mut bytes = vec![0];
    for text in [name, value] {
        bytes.extend(length(text.len()));
        bytes.extend(text.as_bytes());
    }
    bytes
}

/// An integer with a prefix of seven bits.
fn length(mut value: usize) -> Vec<u8> {
    if value < 127 {
        return vec![u8::try_from(value).unwrap()];
    }
    value -= 127;
    let mut bytes = vec![127];
    while value >= 128 {
        bytes.push(u8::try_from(value % 128 + 128).unwrap());
        value /= 128;
    }
    bytes.push(u8::try_from(value).unwrap());
    bytes
}

pub(crate) fn fields(lines: &[(&str, &str)]) -> Vec<u8> {
    lines.iter().flat_map(|(name, value)| field(name, value)).collect()
}

/// A head in one frame.
pub(crate) fn head(stream: u32, flags: u8, lines: &[(&str, &str)]) -> Vec<u8> {
    frame(HEADERS, flags | END_HEADERS, stream, &fields(lines))
}

/// A GET without anything special.
pub(crate) fn get(stream: u32, path: &str, more: &[(&str, &str)]) -> Vec<u8> {
    let mut lines = vec![(":method", "GET"), (":scheme", "http"), (":path", path), (":authority", "x")];
    lines.extend(more);
    head(stream, END_STREAM, &lines)
}

/// A raw connection.
pub(crate) struct Raw {
    pub stream: TcpStream,
    buffer: VecDeque<u8>,
}

impl Raw {
    pub(crate) async fn connect(base: &str) -> Self {
        let stream = TcpStream::connect(base.trim_start_matches("http://")).await.unwrap();
        Self { stream, buffer: VecDeque::new() }
    }

    /// Preface, these settings, and an acknowledgement of theirs.
    pub(crate) async fn open(base: &str, settings: &[(u16, u32)]) -> Self {
        let mut raw = Self::connect(base).await;
        let mut payload = Vec::new();
        for (name, value) in settings {
            payload.extend(name.to_be_bytes());
            payload.extend(value.to_be_bytes());
        }
        let mut bytes = PREFACE.to_vec();
        bytes.extend(frame(SETTINGS, 0, 0, &payload));
        bytes.extend(frame(SETTINGS, 1, 0, &[]));
        raw.send(&bytes).await;
        raw
    }

    /// Whether it could be written: a server that had enough closes.
    pub(crate) async fn send(&mut self, bytes: &[u8]) -> bool {
        matches!(tokio::time::timeout(PATIENCE, self.stream.write_all(bytes)).await.expect("is taken"), Ok(()))
    }

    /// The next frame; `None` when the server closed.
    pub(crate) async fn next(&mut self) -> Option<Received> {
        let whole = |buffer: &VecDeque<u8>| {
            (buffer.len() >= 9)
                .then(|| 9 + usize::from(buffer[0]) * 65_536 + usize::from(buffer[1]) * 256 + usize::from(buffer[2]))
        };
        loop {
            if let Some(size) = whole(&self.buffer).filter(|size| self.buffer.len() >= *size) {
                let bytes: Vec<u8> = self.buffer.drain(..size).collect();
                let stream = u32::from_be_bytes(bytes[5..9].try_into().unwrap());
                return Some(Received { kind: bytes[3], flags: bytes[4], stream, payload: bytes[9..].to_vec() });
            }
            let mut part = vec![0; 65_536];
            match tokio::time::timeout(PATIENCE, self.stream.read(&mut part)).await.expect("something comes") {
                Ok(0) | Err(_) => return None,
                Ok(count) => self.buffer.extend(&part[..count]),
            }
        }
    }

    /// The first frame that fits; `None` when the server closed before.
    pub(crate) async fn until(&mut self, mut fits: impl FnMut(&Received) -> bool) -> Option<Received> {
        while let Some(frame) = self.next().await {
            if fits(&frame) {
                return Some(frame);
            }
        }
        None
    }

    /// How the server answers a stream: a head, a reset, or the end of the connection.
    pub(crate) async fn answer(&mut self, stream: u32) -> Option<Received> {
        let fits = |frame: &Received| {
            frame.kind == GOAWAY || frame.stream == stream && matches!(frame.kind, HEADERS | RST_STREAM)
        };
        self.until(fits).await
    }

    /// Sends the same bytes until the server has had enough, at most `times`. Returns how often, and reads nothing.
    pub(crate) async fn flood(&mut self, bytes: &[u8], times: usize) -> usize {
        for round in 0..times {
            match tokio::time::timeout(Duration::from_secs(20), self.stream.write_all(bytes)).await {
                Ok(Ok(())) => {}
                _ => return round,
            }
        }
        times
    }
}
