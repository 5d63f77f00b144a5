//! Server-sent events as `PocketBase` writes them: blocks of lines that end with `\n`, each block with an empty line.
//!
//! Only what the relay needs is taken apart: where a block ends, its `id` line, its name. All else passes verbatim.

use bytes::Bytes;
use bytes::BytesMut;
use serde::Serialize;

use super::OAUTH2;

/// An event larger than allowed.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TooLarge;

/// Cuts a byte stream into events.
#[derive(Debug)]
pub(super) struct Parser {
    buffer: BytesMut,
    /// Bytes in which no end was found.
    scanned: usize,
    max: usize,
}

/// One event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Event {
    /// All lines but the `id`, with the empty one at the end.
    pub(super) rest: Bytes,
    pub(super) id: Option<Bytes>,
}

impl Parser {
    pub(super) fn new(max: usize) -> Self {
        Self { buffer: BytesMut::new(), scanned: 0, max }
    }

    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole event.
    pub(super) fn next(&mut self) -> Result<Option<Event>, TooLarge> {
        let end = self.buffer[self.scanned..].windows(2).position(|pair| pair == b"\n\n");
        let Some(end) = end.map(|at| self.scanned + at + 2) else {
            // The last byte may be the first half of an end.
            self.scanned = self.buffer.len().saturating_sub(1);
            return if self.buffer.len() > self.max { Err(TooLarge) } else { Ok(None) };
        };
        if end > self.max {
            return Err(TooLarge);
        }
        let mut rest = self.buffer.split_to(end).freeze();
        self.scanned = 0;
        let mut id = None;
        if rest.starts_with(b"id:")
            && let Some(line) = rest.iter().position(|byte| *byte == b'\n')
        {
            id = Some(rest.slice(3..line));
            rest = rest.slice(line + 1..);
        }
        Ok(Some(Event { rest, id }))
    }
}

impl Event {
    /// What listeners listen for.
    pub(super) fn name(&self) -> &[u8] {
        let mut lines = self.rest.split(|byte| *byte == b'\n');
        lines.find_map(|line| line.strip_prefix(b"event:")).unwrap_or_default()
    }

    /// The event as our client gets it.
    pub(super) fn with_id(&self, id: &str) -> Bytes {
        let mut frame = BytesMut::with_capacity(id.len() + self.rest.len() + 4);
        frame.extend_from_slice(b"id:");
        frame.extend_from_slice(id.as_bytes());
        frame.extend_from_slice(b"\n");
        frame.extend_from_slice(&self.rest);
        frame.freeze()
    }
}

/// An event of our own.
pub(super) fn event(id: &str, name: &str, data: &str) -> Bytes {
    Bytes::from(format!("id:{id}\nevent:{name}\ndata:{data}\n\n"))
}

/// How an `OAuth2` sign-in ended, for the client that waits for it. The fields and their order are `PocketBase`'s.
pub(super) fn oauth2(id: &str, code: &str, error: &str) -> Bytes {
    #[derive(Serialize)]
    struct Answer<'a> {
        state: &'a str,
        code: &'a str,
        #[serde(skip_serializing_if = "str::is_empty")]
        error: &'a str,
    }
    let data = serde_json::to_string(&Answer { state: id, code, error }).unwrap_or_default();
    event(id, OAUTH2, &data)
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: &[u8] =
        b"id:abc\nevent:PB_CONNECT\ndata:{\"clientId\":\"abc\"}\n\nid:abc\nevent:notes/*\ndata:{\"x\":1}\n\n";

    #[test]
    fn events_are_found_however_the_bytes_are_cut() {
        for step in 1..STREAM.len() {
            let mut parser = Parser::new(1000);
            let mut found = Vec::new();
            for chunk in STREAM.chunks(step) {
                parser.push(chunk);
                while let Some(event) = parser.next().unwrap() {
                    found.push(event);
                }
            }
            assert_eq!(found.len(), 2, "{step}");
            assert_eq!(found[0].name(), b"PB_CONNECT");
            assert_eq!(found[0].id.as_deref(), Some(&b"abc"[..]));
            assert_eq!(found[1].with_id("mine"), "id:mine\nevent:notes/*\ndata:{\"x\":1}\n\n");
        }
    }

    #[test]
    fn an_event_beyond_the_limit_is_an_error_before_its_end_is_there() {
        let mut parser = Parser::new(10);
        parser.push(b"data:0123");
        assert_eq!(parser.next(), Ok(None));
        parser.push(b"45");
        assert_eq!(parser.next(), Err(TooLarge));
        let mut parser = Parser::new(10);
        parser.push(b"data:0123456789\n\n");
        assert_eq!(parser.next(), Err(TooLarge));
    }

    #[test]
    fn the_end_of_a_sign_in_is_told_as_pocketbase_tells_it() {
        assert_eq!(oauth2("s", "abc", ""), "id:s\nevent:@oauth2\ndata:{\"state\":\"s\",\"code\":\"abc\"}\n\n");
        let failed = "id:s\nevent:@oauth2\ndata:{\"state\":\"s\",\"code\":\"\",\"error\":\"denied\"}\n\n";
        assert_eq!(oauth2("s", "", "denied"), failed);
        assert!(!oauth2("s", "a\nb", "").windows(2).any(|pair| pair == b"\nb"), "nothing forges another line");
    }

    #[test]
    fn an_event_without_an_id_passes_whole() {
        let mut parser = Parser::new(100);
        parser.push(b"event:x\ndata:1\n\n");
        let event = parser.next().unwrap().unwrap();
        assert_eq!((event.id.clone(), event.with_id("a")), (None, Bytes::from("id:a\nevent:x\ndata:1\n\n")));
    }
}
