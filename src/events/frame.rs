//! RFC 6455 frames, server side, pure: bytes in, messages out; text in, bytes out.
//!
//! Reading keeps no buffer of its own while a client is silent: only what is incomplete is kept. Extensions are not
//! negotiated, so reserved bits are errors (`permessage-deflate` would be an extension).

use bytes::Bytes;

use super::close::CloseCode;

const FIN: u8 = 0x80;
const MASKED: u8 = 0x80;
const CONTINUATION: u8 = 0;
const TEXT: u8 = 1;
const BINARY: u8 = 2;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;

/// A whole message of a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Incoming {
    /// JSON, one hopes.
    Text(String),
    /// To be answered with the same bytes.
    Ping(Vec<u8>),
    /// The answer to a ping.
    Pong,
    /// The client is done; its code, if it gave one.
    Close(Option<u16>),
}

/// Puts frames together from what comes. After an error nothing more may be fed.
#[derive(Debug)]
pub(super) struct Reader {
    /// Bytes of a frame that is not complete.
    partial: Vec<u8>,
    /// Payload of a fragmented text message so far.
    text: Option<Vec<u8>>,
    max_message: usize,
}

/// One frame's head.
struct Head {
    opcode: u8,
    is_last: bool,
    mask: [u8; 4],
    /// Where the payload begins and ends in the bytes looked at.
    start: usize,
    end: usize,
}

impl Reader {
    pub(super) fn new(max_message: usize) -> Self {
        Self { partial: Vec::new(), text: None, max_message }
    }

    /// Takes what was read and gives every whole message to `take`, in order, until that returns false.
    pub(super) fn feed(&mut self, bytes: &mut [u8], mut take: impl FnMut(Incoming) -> bool) -> Result<(), CloseCode> {
        if self.partial.is_empty() {
            let used = self.eat(bytes, &mut take)?;
            self.partial.extend_from_slice(&bytes[used..]);
            return Ok(());
        }
        let mut all = std::mem::take(&mut self.partial);
        all.extend_from_slice(bytes);
        let used = self.eat(&mut all, &mut take)?;
        if used < all.len() {
            all.drain(..used);
            self.partial = all;
        }
        Ok(())
    }

    /// Eats whole frames; gives how many bytes they had.
    fn eat(&mut self, bytes: &mut [u8], take: &mut impl FnMut(Incoming) -> bool) -> Result<usize, CloseCode> {
        let mut used = 0;
        while let Some(head) = self.head(&bytes[used..])? {
            let payload = &mut bytes[used + head.start..used + head.end];
            for (byte, mask) in payload.iter_mut().zip(head.mask.iter().cycle()) {
                *byte ^= mask;
            }
            let message = self.frame(&head, payload)?;
            used += head.end;
            if let Some(message) = message
                && !take(message)
            {
                return Ok(bytes.len());
            }
        }
        Ok(used)
    }

    /// The head of the first frame, if the frame is whole.
    fn head(&self, bytes: &[u8]) -> Result<Option<Head>, CloseCode> {
        let [first, second, ..] = *bytes else { return Ok(None) };
        let (opcode, is_last) = (first & 0x0f, first & FIN != 0);
        let is_control = opcode & 8 != 0;
        if first & 0x70 != 0 || second & MASKED == 0 || !matches!(opcode, CONTINUATION..=BINARY | CLOSE..=PONG) {
            return Err(CloseCode::Protocol);
        }
        let short = usize::from(second & 0x7f);
        if is_control && (!is_last || short > 125) {
            return Err(CloseCode::Protocol);
        }
        let (length, at) = match short {
            126 => match bytes.get(2..4) {
                Some(&[a, b]) => (u64::from(u16::from_be_bytes([a, b])), 4),
                _ => return Ok(None),
            },
            127 => match bytes.get(2..10).and_then(|field| <[u8; 8]>::try_from(field).ok()) {
                Some(field) => (u64::from_be_bytes(field), 10),
                None => return Ok(None),
            },
            short => (short as u64, 2),
        };
        match opcode {
            BINARY => return Err(CloseCode::Binary),
            TEXT if self.text.is_some() => return Err(CloseCode::Protocol),
            CONTINUATION if self.text.is_none() => return Err(CloseCode::Protocol),
            _ => {}
        }
        let before = if is_control { 0 } else { self.text.as_ref().map_or(0, Vec::len) };
        let length = usize::try_from(length).ok().filter(|length| before.saturating_add(*length) <= self.max_message);
        let Some(length) = length else { return Err(CloseCode::TooLarge) };
        let start = at + 4;
        let Some(mask) = bytes.get(at..start).and_then(|field| <[u8; 4]>::try_from(field).ok()) else {
            return Ok(None);
        };
        let end = start + length;
        Ok((bytes.len() >= end).then_some(Head { opcode, is_last, mask, start, end }))
    }

    /// One unmasked frame.
    fn frame(&mut self, head: &Head, payload: &[u8]) -> Result<Option<Incoming>, CloseCode> {
        match head.opcode {
            PING => Ok(Some(Incoming::Ping(payload.to_vec()))),
            PONG => Ok(Some(Incoming::Pong)),
            CLOSE => close(payload).map(Some),
            _ => {
                let mut text = self.text.take().unwrap_or_default();
                text.extend_from_slice(payload);
                if !head.is_last {
                    self.text = Some(text);
                    return Ok(None);
                }
                String::from_utf8(text).map(|text| Some(Incoming::Text(text))).map_err(|_| CloseCode::NotText)
            }
        }
    }
}

fn close(payload: &[u8]) -> Result<Incoming, CloseCode> {
    match payload {
        [] => Ok(Incoming::Close(None)),
        [_] => Err(CloseCode::Protocol),
        [a, b, reason @ ..] => {
            let code = u16::from_be_bytes([*a, *b]);
            if !matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999) {
                return Err(CloseCode::Protocol);
            }
            std::str::from_utf8(reason).map_err(|_| CloseCode::NotText)?;
            Ok(Incoming::Close(Some(code)))
        }
    }
}

fn frame(opcode: u8, payload: &[u8]) -> Bytes {
    let length = payload.len();
    let mut bytes = Vec::with_capacity(length + 10);
    bytes.push(FIN | opcode);
    match (u8::try_from(length), u16::try_from(length)) {
        (Ok(short @ 0..=125), _) => bytes.push(short),
        (_, Ok(length)) => {
            bytes.push(126);
            bytes.extend_from_slice(&length.to_be_bytes());
        }
        _ => {
            bytes.push(127);
            bytes.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
    bytes.extend_from_slice(payload);
    bytes.into()
}

/// A whole text message.
pub(super) fn text(text: &str) -> Bytes {
    frame(TEXT, text.as_bytes())
}

/// A ping without payload.
pub(super) fn ping() -> Bytes {
    Bytes::from_static(&[FIN | PING, 0])
}

/// The answer to a ping.
pub(super) fn pong(payload: &[u8]) -> Bytes {
    frame(PONG, payload.get(..125).unwrap_or(payload))
}

/// The end, with code and reason.
pub(super) fn closing(number: u16, reason: &str) -> Bytes {
    let mut payload = number.to_be_bytes().to_vec();
    payload.extend(reason.bytes().take(123));
    frame(CLOSE, &payload)
}

/// The echo of a client's close.
pub(super) fn closing_echo(code: Option<u16>) -> Bytes {
    code.map_or_else(|| frame(CLOSE, &[]), |code| frame(CLOSE, &code.to_be_bytes()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio_tungstenite::tungstenite::Message;
    use tokio_tungstenite::tungstenite::protocol::Role;
    use tokio_tungstenite::tungstenite::protocol::WebSocket;

    use super::*;

    const MAX: usize = 64 << 10;

    /// A frame as a client makes it.
    fn masked(first: u8, payload: &[u8]) -> Vec<u8> {
        let mut bytes = frame(first & 0x0f, payload).to_vec();
        bytes[0] = first;
        let at = bytes.len() - payload.len();
        bytes[1] |= MASKED;
        let mask = [1, 2, 3, 4];
        for (byte, mask) in bytes[at..].iter_mut().zip(mask.iter().cycle()) {
            *byte ^= mask;
        }
        bytes.splice(at..at, mask);
        bytes
    }

    fn read(chunks: &mut [Vec<u8>]) -> Result<Vec<Incoming>, CloseCode> {
        let (mut reader, mut got) = (Reader::new(MAX), Vec::new());
        for chunk in chunks {
            reader.feed(chunk, |message| {
                got.push(message);
                true
            })?;
        }
        Ok(got)
    }

    /// What tungstenite makes of the same bytes: its messages, and whether it was content to the end.
    fn reference(bytes: &[u8]) -> (Vec<Incoming>, bool) {
        let config = tokio_tungstenite::tungstenite::protocol::WebSocketConfig::default()
            .max_message_size(Some(MAX))
            .max_frame_size(Some(MAX));
        let stream = Stream(std::io::Cursor::new(bytes.to_vec()));
        let mut socket = WebSocket::from_raw_socket(stream, Role::Server, Some(config));
        let mut got = Vec::new();
        loop {
            match socket.read() {
                Ok(Message::Text(text)) => got.push(Incoming::Text(text.to_string())),
                Ok(Message::Ping(payload)) => got.push(Incoming::Ping(payload.to_vec())),
                Ok(Message::Pong(_)) => got.push(Incoming::Pong),
                Ok(Message::Close(close)) => {
                    got.push(Incoming::Close(close.map(|close| close.code.into())));
                    return (got, true);
                }
                Err(tokio_tungstenite::tungstenite::Error::Io(error))
                    if error.kind() == std::io::ErrorKind::WouldBlock =>
                {
                    return (got, true);
                }
                Ok(_) | Err(_) => return (got, false),
            }
        }
    }

    /// Gives its bytes and then has nothing for now.
    struct Stream(std::io::Cursor<Vec<u8>>);

    impl std::io::Read for Stream {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            match self.0.read(buffer)? {
                0 => Err(std::io::ErrorKind::WouldBlock.into()),
                count => Ok(count),
            }
        }
    }

    impl std::io::Write for Stream {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_is_not_a_frame_of_a_client_is_refused() {
        for (bytes, code) in [
            (text("unmasked").to_vec(), CloseCode::Protocol),
            (masked(FIN | 0x40 | TEXT, b"x"), CloseCode::Protocol),
            (masked(FIN | 3, b"x"), CloseCode::Protocol),
            (masked(FIN | 0xb, b"x"), CloseCode::Protocol),
            (masked(PING, b"x"), CloseCode::Protocol),
            (masked(FIN | PING, &[0; 126]), CloseCode::Protocol),
            (masked(FIN | CONTINUATION, b"x"), CloseCode::Protocol),
            ([masked(TEXT, b"a"), masked(FIN | TEXT, b"b")].concat(), CloseCode::Protocol),
            (masked(FIN | BINARY, b"x"), CloseCode::Binary),
            (masked(FIN | TEXT, &vec![b'x'; MAX + 1]), CloseCode::TooLarge),
            ([masked(TEXT, &vec![b'x'; MAX]), masked(FIN, b"x")].concat(), CloseCode::TooLarge),
            (masked(FIN | TEXT, b"\xff"), CloseCode::NotText),
            (masked(FIN | CLOSE, b"\x03"), CloseCode::Protocol),
            (masked(FIN | CLOSE, b"\x03\xed"), CloseCode::Protocol),
            (vec![FIN | TEXT, MASKED | 127, 0xff, 0, 0, 0, 0, 0, 0, 0], CloseCode::TooLarge),
        ] {
            assert_eq!(read(&mut [bytes.clone()]), Err(code), "{:?}", &bytes[..bytes.len().min(12)]);
        }
    }

    #[test]
    fn the_largest_message_passes_and_leaves_nothing_behind() {
        let mut reader = Reader::new(MAX);
        let mut bytes = masked(FIN | TEXT, &vec![b'x'; MAX]);
        let (first, second) = bytes.split_at_mut(1_000);
        let mut got = 0;
        for part in [first, second] {
            reader
                .feed(part, |_| {
                    got += 1;
                    true
                })
                .unwrap();
        }
        assert_eq!((got, reader.partial.capacity()), (1, 0));
    }

    fn frames() -> impl Strategy<Value = Vec<u8>> {
        let payload = prop_oneof![
            "[a-zA-Zäß€\u{1f600} ]{0,60}".prop_map(String::into_bytes),
            prop::collection::vec(any::<u8>(), 0..200),
        ];
        let sensible =
            prop_oneof![Just(FIN | TEXT), Just(TEXT), Just(0), Just(FIN), Just(FIN | PING), Just(FIN | PONG)];
        let first = prop_oneof![8 => sensible, 1 => any::<u8>(), 1 => Just(FIN | CLOSE)];
        prop::collection::vec((first, payload).prop_map(|(first, payload)| masked(first, &payload)), 0..8)
            .prop_map(|frames| frames.concat())
    }

    proptest! {
        #[test]
        fn it_reads_what_tungstenite_reads(bytes in frames(), cuts in prop::collection::vec(1_usize..40, 1..20)) {
            let mut chunks = Vec::new();
            let mut rest = &bytes[..];
            for cut in cuts.iter().cycle().take(bytes.len() + 1) {
                if rest.is_empty() { break; }
                let (chunk, after) = rest.split_at((*cut).min(rest.len()));
                chunks.push(chunk.to_vec());
                rest = after;
            }
            let (mut reader, mut got, mut ours_fine) = (Reader::new(MAX), Vec::new(), true);
            let mut is_closed = false;
            for chunk in &mut chunks {
                let fed = reader.feed(chunk, |message| {
                    is_closed |= matches!(message, Incoming::Close(_));
                    got.push(message);
                    !is_closed
                });
                ours_fine = fed.is_ok();
                if is_closed || !ours_fine { break; }
            }
            let (theirs, theirs_fine) = reference(&bytes);
            // They see that a text is not UTF-8 before its last fragment, and take a close code that may not be sent.
            let common = got.len().min(theirs.len());
            prop_assert_eq!(&got[..common], &theirs[..common]);
            if ours_fine && theirs_fine { prop_assert_eq!(got, theirs); }
        }

        #[test]
        fn noise_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = read(&mut [bytes]);
        }

        #[test]
        fn what_we_write_tungstenite_reads(written in "\\PC{0,70000}") {
            let stream = Stream(std::io::Cursor::new(text(&written).to_vec()));
            let mut socket = WebSocket::from_raw_socket(stream, Role::Client, None);
            let message = socket.read().unwrap();
            prop_assert_eq!(message.to_text().unwrap(), &written);
        }
    }
}
