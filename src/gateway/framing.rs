//! Refuses requests whose length can be read in two ways: two `Content-Length` (even equal ones), two
//! `Transfer-Encoding`, both, or a coding besides `chunked`. RFC 9112 6.3 calls them attempts at request smuggling.
//!
//! hyper silently merges these before a service sees the headers, so the bytes are watched on their way to hyper.
//! The watcher follows the messages of a connection (pipelined ones too) and, where a head is ambiguous, overwrites
//! the end of the offending line with a NUL. hyper then refuses exactly that head with 400 and closes the connection.
//!
//! Invariant: for every head that hyper accepts, the watcher computes the same body length as hyper. Where hyper
//! refuses, the connection ends and what the watcher thinks no longer matters.

/// Longest prefix of a split header line that is kept. A `Content-Length` line beyond it is refused.
const KEPT: usize = 128;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Before or within a head.
    Head,
    /// This many bytes of a sized body follow.
    Body(u64),
    /// Within the line that says a chunk's size.
    ChunkSize { size: u64, within: SizeLine },
    /// This many bytes of a chunk follow.
    ChunkData(u64),
    /// The line end after a chunk's data.
    ChunkEnd,
    /// Lines after the last chunk; `blank` while the current one is empty.
    Trailers { blank: bool },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SizeLine {
    Digits,
    Extension,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Length {
    #[default]
    None,
    Sized(u64),
    Chunked,
}

/// What follows the messages of one connection.
#[derive(Debug)]
pub(crate) struct Framing {
    state: State,
    /// Start of a header line that was split between reads.
    partial: Vec<u8>,
    seen_request_line: bool,
    length: Length,
}

impl Framing {
    pub(crate) fn new() -> Self {
        Self { state: State::Head, partial: Vec::new(), seen_request_line: false, length: Length::None }
    }

    /// Whether the bytes so far end within a message: more of it may be on its way.
    pub(crate) fn is_within_message(&self) -> bool {
        self.state != State::Head || self.seen_request_line || !self.partial.is_empty()
    }

    /// Looks at the next bytes of the connection, and spoils them where a head is ambiguous.
    pub(crate) fn watch(&mut self, bytes: &mut [u8]) {
        let mut at = 0;
        while let Some(rest) = bytes.get_mut(at..).filter(|rest| !rest.is_empty()) {
            at += match self.state {
                State::Head => self.head(rest),
                State::Body(left) => {
                    let (taken, left) = skip(rest, left);
                    self.state = if left == 0 { State::Head } else { State::Body(left) };
                    taken
                }
                State::ChunkData(left) => {
                    let (taken, left) = skip(rest, left);
                    self.state = if left == 0 { State::ChunkEnd } else { State::ChunkData(left) };
                    taken
                }
                State::ChunkSize { size, within } => {
                    self.state = chunk_size(rest[0], size, within);
                    1
                }
                State::ChunkEnd => {
                    if rest[0] == b'\n' {
                        self.state = State::ChunkSize { size: 0, within: SizeLine::Digits };
                    }
                    1
                }
                State::Trailers { blank } => {
                    self.state = match rest[0] {
                        b'\n' if blank => State::Head,
                        b'\n' => State::Trailers { blank: true },
                        b'\r' => State::Trailers { blank },
                        _ => State::Trailers { blank: false },
                    };
                    1
                }
            };
        }
    }

    /// Takes one line, or what there is of it. Returns the number of bytes taken.
    fn head(&mut self, bytes: &mut [u8]) -> usize {
        let Some(end) = bytes.iter().position(|&byte| byte == b'\n') else {
            let room = KEPT.saturating_sub(self.partial.len());
            self.partial.extend_from_slice(&bytes[..bytes.len().min(room)]);
            return bytes.len();
        };
        let verdict = if self.partial.is_empty() {
            judge(&bytes[..end], self.seen_request_line, self.length)
        } else {
            let room = KEPT.saturating_sub(self.partial.len());
            self.partial.extend_from_slice(&bytes[..end.min(room)]);
            let verdict = judge(&self.partial, self.seen_request_line, self.length);
            self.partial.clear();
            verdict
        };
        match verdict {
            Verdict::Skip => {}
            Verdict::RequestLine => self.seen_request_line = true,
            Verdict::Length(length) => self.length = length,
            Verdict::End => self.end_of_head(),
            Verdict::Ambiguous => bytes[end] = 0,
        }
        end + 1
    }

    fn end_of_head(&mut self) {
        self.state = match self.length {
            Length::None | Length::Sized(0) => State::Head,
            Length::Sized(length) => State::Body(length),
            Length::Chunked => State::ChunkSize { size: 0, within: SizeLine::Digits },
        };
        self.seen_request_line = false;
        self.length = Length::None;
    }
}

enum Verdict {
    Skip,
    RequestLine,
    Length(Length),
    End,
    Ambiguous,
}

fn judge(line: &[u8], seen_request_line: bool, known: Length) -> Verdict {
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    // Blank lines before a request line are skipped by every server.
    match (line.is_empty(), seen_request_line) {
        (true, false) => return Verdict::Skip,
        (true, true) => return Verdict::End,
        (false, false) => return Verdict::RequestLine,
        (false, true) => {}
    }
    let length = if let Some(value) = value_of(line, b"content-length") {
        digits(value).filter(|_| line.len() < KEPT).map(Length::Sized)
    } else if let Some(coding) = value_of(line, b"transfer-encoding") {
        // Whatever precedes `chunked` in a list, nobody here decodes; hyper would pass it over.
        coding.trim_ascii().eq_ignore_ascii_case(b"chunked").then_some(Length::Chunked)
    } else {
        return Verdict::Skip;
    };
    match (length, known) {
        (Some(length), Length::None) => Verdict::Length(length),
        _ => Verdict::Ambiguous,
    }
}

fn value_of<'a>(line: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    // The colon is at the right place in few lines, so the name is seldom compared.
    let (head, rest) = line.split_at_checked(name.len())?;
    let value = rest.strip_prefix(b":")?;
    head.eq_ignore_ascii_case(name).then_some(value)
}

fn digits(value: &[u8]) -> Option<u64> {
    let value = value.trim_ascii();
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(value).ok()?.parse().ok()
}

fn skip(bytes: &[u8], left: u64) -> (usize, u64) {
    let here = bytes.len() as u64;
    if left <= here { (usize::try_from(left).unwrap_or(bytes.len()), 0) } else { (bytes.len(), left - here) }
}

fn chunk_size(byte: u8, size: u64, within: SizeLine) -> State {
    let digit = char::from(byte).to_digit(16);
    match (byte, digit, within) {
        (b'\n', ..) if size == 0 => State::Trailers { blank: true },
        (b'\n', ..) => State::ChunkData(size),
        (_, Some(digit), SizeLine::Digits) => {
            State::ChunkSize { size: size.saturating_mul(16).saturating_add(digit.into()), within }
        }
        _ => State::ChunkSize { size, within: SizeLine::Extension },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn watched(text: &str, split: usize) -> Vec<u8> {
        let mut framing = Framing::new();
        let mut bytes = text.as_bytes().to_vec();
        for part in bytes.chunks_mut(split.max(1)) {
            framing.watch(part);
        }
        bytes
    }

    fn is_spoiled(text: &str) -> bool {
        let whole = watched(text, text.len());
        for split in [1, 2, 3, 7, 50] {
            assert_eq!(watched(text, split), whole, "split by {split}: {text:?}");
        }
        whole != text.as_bytes()
    }

    #[test]
    fn ambiguous_heads_are_spoiled() {
        for head in [
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\nx",
            "POST / HTTP/1.1\r\nContent-Length: 1\r\nX: y\r\ncontent-length:2\r\n\r\nxx",
            "POST / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            "POST / HTTP/1.1\r\nTRANSFER-ENCODING: chunked\r\nContent-length: 1\r\n\r\n0\r\n\r\n",
            "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            "POST / HTTP/1.1\nContent-Length: 1\nContent-Length: 1\n\nx",
            "POST / HTTP/1.1\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
            "POST / HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
            "POST / HTTP/1.1\r\nContent-Length: +1\r\n\r\nx",
            "POST / HTTP/1.1\r\nContent-Length: \r\n\r\nx",
            "POST / HTTP/1.1\r\nContent-Length: 1, 1\r\n\r\nx",
        ] {
            assert!(is_spoiled(head), "{head:?}");
        }
        let long = format!("POST / HTTP/1.1\r\nContent-Length: {}1\r\n\r\nx", " ".repeat(500));
        assert!(is_spoiled(&long));
    }

    #[test]
    fn honest_messages_pass_untouched_and_bodies_are_not_read_as_heads() {
        let trap = "POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n";
        for text in [
            "GET / HTTP/1.1\r\nHost: a\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(),
            format!("POST / HTTP/1.1\r\nContent-Length: {}\r\n\r\n{trap}GET / HTTP/1.1\r\n\r\n", trap.len()),
            format!(
                "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n{:X};ext=1\r\n{trap}\r\n0\r\nT: 1\r\n\r\nGET / HTTP/1.1\r\nContent-Length: 0\r\n\r\n",
                trap.len()
            ),
            "\r\n\r\nGET /content-length: HTTP/1.1\r\nContent-Lengthy: 1\r\nContent-Length: 2\r\nTE: x\r\n\r\nab"
                .to_owned(),
        ] {
            assert!(!is_spoiled(&text), "{text:?}");
        }
    }

    #[test]
    fn the_second_of_two_pipelined_requests_is_spoiled_alone() {
        let good = "POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc";
        let chunked = "POST /b HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n";
        let bad = "POST /c HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n";
        let text = format!("{good}{chunked}{bad}");
        assert!(is_spoiled(&text));
        let bytes = watched(&text, text.len());
        assert!(bytes.starts_with(format!("{good}{chunked}").as_bytes()));
    }

    #[test]
    fn the_end_of_a_message_is_known() {
        let within = |text: &str| {
            let mut framing = Framing::new();
            framing.watch(&mut text.as_bytes().to_vec());
            framing.is_within_message()
        };
        for text in ["", "\r\n", "GET / HTTP/1.1\r\n\r\n", "POST / HTTP/1.1\r\nContent-Length: 1\r\n\r\nx"] {
            assert!(!within(text), "{text:?}");
        }
        for text in ["G", "GET / HTTP/1.1\r\n", "POST / HTTP/1.1\r\nContent-Length: 2\r\n\r\nx"] {
            assert!(within(text), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn reads_may_be_split_anywhere(
            parts in proptest::collection::vec(
                prop_oneof![
                    Just("GET / HTTP/1.1\r\n"), Just("Content-Length: 3\r\n"), Just("Transfer-Encoding: chunked\r\n"),
                    Just("\r\n"), Just("abc"), Just("3\r\nabc\r\n"), Just("0\r\n\r\n"), Just("X: y\r\n"), Just("\n"),
                ], 0..20),
            split in 1_usize..40,
        ) {
            let text: String = parts.concat();
            prop_assert_eq!(watched(&text, split), watched(&text, text.len()));
        }
    }
}
