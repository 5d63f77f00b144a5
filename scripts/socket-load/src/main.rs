//! Load for sockets, and the plainest axum server to compare with. `scripts/bench` runs it; nothing else needs it.
//!
//! ```text
//! socket_load load HOST:PORT PATH PUBLISH_PATH BODY SOCKETS WINDOW RATE SECONDS [HEADER...]   fan-out; prints JSON
//! socket_load streams ...                                   the same for streams of server-sent events
//! socket_load idle HOST:PORT PATH SOCKETS [HEADER...]       opens sockets, prints "ready", holds them
//! socket_load requests HOST:PORT PATH CONNECTIONS RATE SECONDS [HEADER...]   GETs, at times of their own; prints JSON
//! socket_load axum HOST:PORT                                the server: GET /ws listens, POST /publish tells
//! ```
//!
//! The load is one thread over one poll: a reader that is slower than the server would measure itself. It counts
//! frames by their heads and looks at nothing else.
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a measuring tool that cannot go on stops")]

mod open;
mod peer;

use std::collections::VecDeque;
use std::io::Read;
use std::io::Write;
use std::net::SocketAddr;
use std::time::Duration;
use std::time::Instant;

use mio::Events;
use mio::Interest;
use mio::Poll;
use mio::Token;
use mio::net::TcpStream;

/// What comes is read in pieces of this size.
const BUFFER: usize = 256 << 10;
/// How long anything may take before the run is given up.
const PATIENCE: Duration = Duration::from_secs(30);
const WARM_UP: Duration = Duration::from_millis(500);

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match *words {
        ["axum", address] => peer::serve(address.parse().unwrap()),
        ["idle", address, path, sockets, ref headers @ ..] => {
            let address = address.parse().unwrap();
            let held: Vec<_> = (0..sockets.parse().unwrap()).map(|_| open(address, path, headers)).collect();
            println!("ready");
            while !held.is_empty() {
                std::thread::park();
            }
        }
        ["requests", address, path, connections, rate, seconds, ref headers @ ..] => {
            let head = headers.iter().map(|header| format!("{header}\r\n")).collect::<String>();
            let plan = open::Plan {
                address: address.parse().unwrap(),
                connections: connections.parse().unwrap(),
                rate: rate.parse().unwrap(),
                time: Duration::from_secs_f64(seconds.parse().unwrap()),
                request: format!("GET {path} HTTP/1.1\r\nHost: {address}\r\n{head}\r\n").into_bytes(),
            };
            println!("{}", plan.run());
        }
        [
            kind @ ("load" | "streams"),
            address,
            path,
            publish,
            body,
            sockets,
            window,
            rate,
            seconds,
            ref headers @ ..,
        ] => {
            let address = address.parse().unwrap();
            let open = |_| match kind {
                "streams" => Reader { is_stream: true, ..Reader::new(stream(address, path, headers)) },
                _ => Reader::new(open(address, path, headers)),
            };
            let load = Load {
                sockets: (0..sockets.parse().unwrap()).map(open).collect(),
                window: window.parse().unwrap(),
                pause: Some(rate.parse::<f64>().unwrap())
                    .filter(|rate| *rate > 0.0)
                    .map(|rate| Duration::from_secs_f64(1.0 / rate)),
                time: Duration::from_secs_f64(seconds.parse().unwrap()),
            };
            let head = headers.iter().map(|header| format!("{header}\r\n")).collect::<String>();
            let request = format!(
                "POST {publish} HTTP/1.1\r\nHost: {address}\r\n{head}Content-Type: application/json\r\n\
                 Content-Length: {}\r\n\r\n{body}",
                body.len()
            );
            println!("{}", load.run(address, request.as_bytes()));
        }
        _ => panic!("see the first lines of scripts/socket-load/src/main.rs"),
    }
}

/// Opens a socket.
fn open(address: SocketAddr, path: &str, headers: &[&str]) -> std::net::TcpStream {
    let upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                   Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    asked(address, path, headers, upgrade, "HTTP/1.1 101")
}

/// Opens a stream of server-sent events.
fn stream(address: SocketAddr, path: &str, headers: &[&str]) -> std::net::TcpStream {
    asked(address, path, headers, "Accept: text/event-stream\r\n", "HTTP/1.1 200")
}

fn asked(address: SocketAddr, path: &str, headers: &[&str], more: &str, wanted: &str) -> std::net::TcpStream {
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let head = headers.iter().map(|header| format!("{header}\r\n")).collect::<String>();
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\n{head}{more}\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = Vec::new();
    let mut byte = [0];
    while !answer.ends_with(b"\r\n\r\n") {
        assert_eq!(stream.read(&mut byte).unwrap(), 1, "refused: {}", String::from_utf8_lossy(&answer));
        answer.push(byte[0]);
    }
    assert!(answer.starts_with(wanted.as_bytes()), "{}", String::from_utf8_lossy(&answer));
    stream
}

/// Counts the messages of one socket.
struct Reader {
    stream: TcpStream,
    /// Bytes of the current frame's head.
    head: Vec<u8>,
    /// Bytes of the current frame's payload that are still to come.
    left: usize,
    messages: usize,
    /// It is a stream of server-sent events: `left` counts the letters x at the end of what was read.
    is_stream: bool,
}

impl Reader {
    fn new(stream: std::net::TcpStream) -> Self {
        stream.set_nonblocking(true).unwrap();
        stream.set_nodelay(true).unwrap();
        Self { stream: TcpStream::from_std(stream), head: Vec::new(), left: 0, messages: 0, is_stream: false }
    }

    /// Counts the messages that end within these bytes: text frames; of a stream, quotation marks after many letters x.
    fn count(&mut self, mut bytes: &[u8]) -> usize {
        let mut found = 0;
        if self.is_stream {
            for byte in bytes {
                found += usize::from(*byte == b'"' && self.left > 100);
                self.left = if *byte == b'x' { self.left + 1 } else { 0 };
            }
            return found;
        }
        loop {
            let skip = self.left.min(bytes.len());
            self.left -= skip;
            bytes = &bytes[skip..];
            if self.left == 0 && !self.head.is_empty() {
                found += usize::from(self.head[0] & 0x0f == 1);
                self.head.clear();
            }
            if bytes.is_empty() {
                return found;
            }
            while !bytes.is_empty() {
                self.head.push(bytes[0]);
                bytes = &bytes[1..];
                if let Some(length) = payload(&self.head) {
                    self.left = length;
                    break;
                }
            }
            if payload(&self.head).is_none() {
                return found;
            }
        }
    }
}

/// The length of the payload, once the head is whole.
fn payload(head: &[u8]) -> Option<usize> {
    match head.get(1)? & 0x7f {
        126 => head.get(2..4).map(|field| usize::from(u16::from_be_bytes([field[0], field[1]]))),
        127 => head.get(2..10).map(|field| usize::try_from(u64::from_be_bytes(field.try_into().unwrap())).unwrap()),
        short => Some(usize::from(short)),
    }
}

struct Load {
    sockets: Vec<Reader>,
    /// Messages that may be on their way at once.
    window: usize,
    /// Between two messages; none = as soon as there is room.
    pause: Option<Duration>,
    time: Duration,
}

/// One message on its way.
struct Flying {
    sent: Instant,
    /// Sockets that do not have it yet.
    missing: usize,
}

impl Load {
    fn run(mut self, address: SocketAddr, request: &[u8]) -> String {
        let mut poll = Poll::new().unwrap();
        let count = self.sockets.len();
        for (index, reader) in self.sockets.iter_mut().enumerate() {
            poll.registry().register(&mut reader.stream, Token(index), Interest::READABLE).unwrap();
        }
        let mut publishers: Vec<TcpStream> = (0..self.window)
            .map(|index| {
                let stream = std::net::TcpStream::connect(address).unwrap();
                stream.set_nodelay(true).unwrap();
                stream.set_nonblocking(true).unwrap();
                let mut stream = TcpStream::from_std(stream);
                poll.registry().register(&mut stream, Token(count + index), Interest::READABLE).unwrap();
                stream
            })
            .collect();
        let (mut events, mut buffer) = (Events::with_capacity(1_024), vec![0; BUFFER]);
        let mut flying: VecDeque<Flying> = VecDeque::new();
        let (mut first, mut published, mut delivered, mut done) = (0, 0, 0_u64, 0_u64);
        let (mut each, mut whole): (Vec<u32>, Vec<u32>) = (Vec::new(), Vec::new());
        let began = Instant::now();
        let mut measured = None;
        let mut next = began;
        while began.elapsed() < WARM_UP + self.time {
            if measured.is_none() && began.elapsed() >= WARM_UP {
                measured = Some(Instant::now());
                (delivered, done) = (0, 0);
                each.clear();
                whole.clear();
            }
            while flying.len() < self.window && Instant::now() >= next {
                flying.push_back(Flying { sent: Instant::now(), missing: count });
                let publisher = &mut publishers[published % self.window];
                assert_eq!(publisher.write(request).unwrap(), request.len());
                published += 1;
                next = self.pause.map_or(next, |pause| next + pause);
            }
            let wait = self.pause.map_or(Duration::from_secs(1), |_| next.saturating_duration_since(Instant::now()));
            poll.poll(&mut events, Some(wait)).unwrap();
            if let Some(oldest) = flying.front() {
                assert!(oldest.sent.elapsed() < PATIENCE, "a message did not come: {} missing", oldest.missing);
            }
            for event in &events {
                let index = event.token().0;
                if let Some(publisher) = index.checked_sub(count) {
                    drain(&mut publishers[publisher], &mut buffer);
                    continue;
                }
                let reader = &mut self.sockets[index];
                loop {
                    let read = match reader.stream.read(&mut buffer) {
                        Ok(0) => panic!("a socket was closed"),
                        Ok(read) => read,
                        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => break,
                        Err(error) => panic!("{error}"),
                    };
                    let now = Instant::now();
                    for _ in 0..reader.count(&buffer[..read]) {
                        let message = &mut flying[reader.messages - first];
                        message.missing -= 1;
                        reader.messages += 1;
                        delivered += 1;
                        each.push(micros(now - message.sent));
                        if message.missing == 0 {
                            whole.push(micros(now - message.sent));
                            done += 1;
                        }
                    }
                    if read < buffer.len() {
                        break;
                    }
                }
            }
            while flying.front().is_some_and(|message| message.missing == 0) {
                flying.pop_front();
                first += 1;
            }
        }
        let seconds = measured.unwrap().elapsed().as_secs_f64();
        #[expect(clippy::cast_precision_loss, reason = "counts of a run of seconds")]
        let (delivered, done) = (delivered as f64 / seconds, done as f64 / seconds);
        format!(
            "{{\"deliveries_per_s\":{delivered:.0},\"messages_per_s\":{done:.1},\"each_p50_us\":{},\"each_p99_us\":{},\
             \"whole_p50_us\":{},\"whole_p99_us\":{}}}",
            percentile(&mut each, 50),
            percentile(&mut each, 99),
            percentile(&mut whole, 50),
            percentile(&mut whole, 99)
        )
    }
}

fn drain(stream: &mut TcpStream, buffer: &mut [u8]) {
    loop {
        match stream.read(buffer) {
            Ok(0) => panic!("the publisher was closed"),
            Ok(read) => assert!(
                !buffer[..read].starts_with(b"HTTP/1.1 4") && !buffer[..read].starts_with(b"HTTP/1.1 5"),
                "{}",
                String::from_utf8_lossy(&buffer[..read])
            ),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return,
            Err(error) => panic!("{error}"),
        }
    }
}

fn micros(duration: Duration) -> u32 {
    u32::try_from(duration.as_micros()).unwrap_or(u32::MAX)
}

fn percentile(values: &mut [u32], share: usize) -> u32 {
    values.sort_unstable();
    values.get((values.len() * share / 100).min(values.len().saturating_sub(1))).copied().unwrap_or_default()
}
