//! Requests that come at times of their own, however slowly they are answered; or, without a rate, as fast as they are
//! answered. One thread over one poll, which costs the machine a third of what the same costs in Python.

use std::collections::BTreeMap;
use std::collections::VecDeque;
use std::io::ErrorKind;
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

/// How long answers are waited for when nothing more is due.
const AFTER: Duration = Duration::from_secs(15);

pub(crate) struct Plan {
    pub(crate) address: SocketAddr,
    pub(crate) connections: usize,
    /// Requests a second; 0: each connection asks again when it was answered.
    pub(crate) rate: f64,
    pub(crate) time: Duration,
    pub(crate) request: Vec<u8>,
}

struct Connection {
    stream: TcpStream,
    /// When its request was due and when it was sent, while it waits.
    asked: Option<(Duration, Duration)>,
    answer: Vec<u8>,
}

/// Of the answers of one status: when each was due, sent and done, in microseconds; and the error code of one of them.
#[derive(Default)]
struct Answers {
    times: Vec<[u128; 3]>,
    code: String,
}

fn connect(address: SocketAddr, poll: &Poll, number: usize) -> Connection {
    let stream = std::net::TcpStream::connect(address).unwrap();
    stream.set_nodelay(true).unwrap();
    stream.set_nonblocking(true).unwrap();
    let mut stream = TcpStream::from_std(stream);
    poll.registry().register(&mut stream, Token(number), Interest::READABLE).unwrap();
    Connection { stream, asked: None, answer: Vec::with_capacity(4096) }
}

/// The length of the whole answer, if its head is there. Every answer that is asked for here has a length.
fn length(answer: &[u8]) -> Option<usize> {
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n")? + 4;
    let head = std::str::from_utf8(&answer[..end]).unwrap().to_ascii_lowercase();
    let length = head.split_once("\r\ncontent-length:").expect("an answer with a length").1;
    Some(end + length.split_once('\r').unwrap().0.trim().parse::<usize>().unwrap())
}

fn code(answer: &[u8]) -> String {
    let text = String::from_utf8_lossy(answer);
    let after = text.split_once("\"code\":").map(|(_, after)| after.trim_start_matches([' ', '"']));
    after.unwrap_or_default().chars().take_while(|letter| letter.is_alphanumeric() || *letter == '_').collect()
}

impl Plan {
    /// Runs it and returns JSON: by status, the latencies of its answers.
    pub(crate) fn run(&self) -> String {
        let mut poll = Poll::new().unwrap();
        let mut events = Events::with_capacity(1024);
        let mut all: Vec<Connection> =
            (0..self.connections).map(|number| connect(self.address, &poll, number)).collect();
        let mut idle: VecDeque<usize> = (0..all.len()).collect();
        let mut answers: BTreeMap<u16, Answers> = BTreeMap::new();
        let mut buffer = vec![0; 64 << 10];
        let (began, mut number, mut waiting) = (Instant::now(), 0_u32, 0_usize);
        loop {
            let now = began.elapsed();
            let is_over = now >= self.time;
            if (is_over && waiting == 0) || now >= self.time + AFTER {
                break;
            }
            let mut pause = Duration::from_millis(50);
            while !is_over && !idle.is_empty() {
                let now = began.elapsed();
                let due = if self.rate > 0.0 { Duration::from_secs_f64(f64::from(number) / self.rate) } else { now };
                if due > now {
                    pause = due - now;
                    break;
                }
                let Some(free) = idle.pop_front() else { break };
                if all[free].stream.write(&self.request).is_ok_and(|sent| sent == self.request.len()) {
                    all[free].asked = Some((due, began.elapsed()));
                    (number, waiting) = (number + 1, waiting + 1);
                } else {
                    // Closed while it was idle; nobody can have acted on the request.
                    all[free] = connect(self.address, &poll, free);
                    idle.push_back(free);
                }
            }
            match poll.poll(&mut events, Some(pause)) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                outcome => outcome.unwrap(),
            }
            for event in &events {
                let Token(at) = event.token();
                let connection = &mut all[at];
                let is_open = loop {
                    match connection.stream.read(&mut buffer) {
                        Ok(0) => break false,
                        Ok(read) => connection.answer.extend_from_slice(&buffer[..read]),
                        Err(error) if error.kind() == ErrorKind::WouldBlock => break true,
                        Err(_) => break false,
                    }
                };
                let is_whole = length(&connection.answer).is_some_and(|length| connection.answer.len() >= length);
                if is_whole || !is_open {
                    if let Some((due, sent)) = connection.asked.take() {
                        let text = &connection.answer;
                        let status =
                            if is_whole { std::str::from_utf8(&text[9..12]).unwrap().parse().unwrap() } else { 0 };
                        let of = answers.entry(status).or_default();
                        if status != 200 && of.code.is_empty() {
                            of.code = code(text);
                        }
                        of.times.push([due, sent, began.elapsed()].map(|time| time.as_micros()));
                        waiting -= 1;
                        idle.push_back(at);
                    }
                    connection.answer.clear();
                }
                if !is_open {
                    all[at] = connect(self.address, &poll, at);
                }
            }
        }
        self.summary(answers, number, waiting)
    }

    fn summary(&self, answers: BTreeMap<u16, Answers>, sent: u32, unanswered: usize) -> String {
        let end = self.time.as_micros();
        let each = answers.into_iter().map(|(status, of)| {
            // What is answered after the end was not served at that rate.
            let in_time = of.times.iter().filter(|[.., done]| *done < end).count();
            let shares = |from: usize| {
                let mut took: Vec<u128> = of.times.iter().map(|times| times[2] - times[from]).collect();
                took.sort_unstable();
                let share = |hundredths: usize| took[(took.len() * hundredths / 100).min(took.len() - 1)];
                format!(r#"{{"p50":{},"p99":{}}}"#, share(50), share(99))
            };
            format!(
                r#"{{"status":{status},"code":"{}","n":{},"in_time":{in_time},"from_due_us":{},"from_sent_us":{}}}"#,
                of.code,
                of.times.len(),
                shares(0),
                shares(1)
            )
        });
        let each: Vec<String> = each.collect();
        format!(r#"{{"sent":{sent},"unanswered":{unanswered},"answers":[{}]}}"#, each.join(","))
    }
}
