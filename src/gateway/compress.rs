//! gzip towards clients that ask for it: text answers, frame by frame, flushed whenever the instance pauses, so that a
//! streamed answer never waits for a compressor's buffer.
//!
//! A client that does not ask costs one look at its headers. Compressors are large (some 300 KiB), so each worker has a
//! bounded number and keeps a few for reuse; beyond the bound answers go out as they are.
//!
//! Never compressed: event streams, parts of a file, what is coded already, what says `no-transform`, and what says
//! `no-store`. The last keeps every answer that carries a token or a revealed secret out of the reach of BREACH, which
//! guesses secrets by the size of compressed answers. Such an attack also needs requests that carry the victim's
//! credential from a foreign page; ours travel in a header that no foreign page can set.

use std::cell::Cell;
use std::cell::RefCell;
use std::fmt;
use std::pin::Pin;
use std::rc::Rc;
use std::task::Context;
use std::task::Poll;

use bytes::Bytes;
use flate2::Compress;
use flate2::Compression as Level;
use flate2::Crc;
use flate2::FlushCompress;
use flate2::Status;
use http_body::Body as HttpBody;
use http_body::Frame;
use hyper::HeaderMap;
use hyper::Method;
use hyper::Response;
use hyper::StatusCode;
use hyper::header;
use hyper::header::HeaderValue;

use super::body::Body;
use super::body::BodyError;
use super::config::Config;

/// Shorter answers gain nothing.
const LEAST: u64 = 1024;
/// Answers that one worker compresses at once.
const MAX_ACTIVE: usize = 64;
/// Compressors kept for the next answers.
const MAX_SPARE: usize = 4;
/// Compressed bytes handed on at once.
const PART: usize = 16 * 1024;
/// Bytes compressed at once, and how often before others get their turn: a few milliseconds.
const SLICE: usize = 16 * 1024;
const TURN: usize = 16;
/// No name, no time, unknown system (RFC 1952 2.3).
const GZIP_HEAD: [u8; 10] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff];

/// One worker's compressors.
#[derive(Debug)]
pub(crate) struct Compression {
    level: Option<Level>,
    stock: Rc<Stock>,
}

#[derive(Default)]
struct Stock {
    active: Cell<usize>,
    spare: RefCell<Vec<Compress>>,
}

/// What a request says about compression.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wish {
    /// As it is.
    Plain,
    Gzip,
}

impl Compression {
    pub(crate) fn new(config: &Config) -> Self {
        let level = config.compression.then(|| Level::new(config.compression_level));
        Self { level, stock: Rc::default() }
    }

    /// What a request asks for.
    pub(crate) fn wish(&self, method: &Method, headers: &HeaderMap) -> Wish {
        if !headers.contains_key(header::ACCEPT_ENCODING) {
            return Wish::Plain;
        }
        let takes = self.level.is_some() && *method != Method::HEAD && !headers.contains_key(header::RANGE);
        if takes && accepts_gzip(headers.get_all(header::ACCEPT_ENCODING)) { Wish::Gzip } else { Wish::Plain }
    }

    /// Compresses an answer if that is asked for, allowed and worth it.
    pub(crate) fn apply(&self, wish: Wish, response: &mut Response<Body>) {
        let Some(level) = self.level else { return };
        if response.status() == StatusCode::NOT_MODIFIED {
            // It stands for an answer that would have said so (RFC 9110 15.4.5).
            if !response.headers().get_all(header::CACHE_CONTROL).iter().any(forbids) {
                response.headers_mut().append(header::VARY, HeaderValue::from_static("Accept-Encoding"));
            }
            return;
        }
        if !is_eligible(response.status(), response.headers()) {
            return;
        }
        response.headers_mut().append(header::VARY, HeaderValue::from_static("Accept-Encoding"));
        let is_short = response.body().size_hint().upper().is_some_and(|size| size < LEAST);
        if wish == Wish::Plain || is_short || self.stock.active.get() >= MAX_ACTIVE {
            return;
        }
        let headers = response.headers_mut();
        headers.remove(header::CONTENT_LENGTH);
        headers.remove(header::ACCEPT_RANGES);
        headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        weaken_tag(headers);
        let inner = std::mem::replace(response.body_mut(), Body::Empty);
        *response.body_mut() = Body::Gzip(Box::new(Gzip::new(inner, level, Rc::clone(&self.stock))));
    }
}

impl Stock {
    fn take(&self, level: Level) -> Compress {
        self.active.set(self.active.get() + 1);
        self.spare.borrow_mut().pop().unwrap_or_else(|| Compress::new(level, false))
    }

    fn put(&self, mut compress: Compress) {
        self.active.set(self.active.get().saturating_sub(1));
        let mut spare = self.spare.borrow_mut();
        if spare.len() < MAX_SPARE {
            compress.reset();
            spare.push(compress);
        }
    }
}

impl fmt::Debug for Stock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stock").field("active", &self.active.get()).finish_non_exhaustive()
    }
}

/// Whether `gzip`, or `*` where it is not named, is acceptable (RFC 9110 12.5.3). Several lines are one list.
fn accepts_gzip<'a>(lines: impl IntoIterator<Item = &'a HeaderValue>) -> bool {
    let (mut named, mut any) = (None, None);
    for line in lines {
        let Ok(line) = line.to_str() else { return false };
        for entry in line.split(',') {
            let mut parts = entry.split(';').map(str::trim);
            let coding = parts.next().unwrap_or_default();
            let weight = parts.find_map(|part| part.strip_prefix("q=").or_else(|| part.strip_prefix("Q=")));
            let wanted = weight.is_none_or(|weight| weight.parse::<f32>().is_ok_and(|q| q > 0.0 && q <= 1.0));
            if coding.eq_ignore_ascii_case("gzip") || coding.eq_ignore_ascii_case("x-gzip") {
                named = Some(wanted);
            } else if coding == "*" {
                any = Some(wanted);
            }
        }
    }
    named.or(any).unwrap_or(false)
}

fn is_eligible(status: StatusCode, headers: &HeaderMap) -> bool {
    let is_whole = status.is_success()
        && !matches!(status, StatusCode::NO_CONTENT | StatusCode::RESET_CONTENT | StatusCode::PARTIAL_CONTENT);
    is_whole
        && headers.get(header::CONTENT_TYPE).is_some_and(|kind| is_text(kind.as_bytes()))
        && !headers.contains_key(header::CONTENT_ENCODING)
        && !headers.contains_key(header::CONTENT_RANGE)
        && !headers.get_all(header::CACHE_CONTROL).iter().any(forbids)
}

fn is_text(kind: &[u8]) -> bool {
    let kind = kind.split(|&byte| byte == b';').next().unwrap_or_default().trim_ascii().to_ascii_lowercase();
    match kind.as_slice() {
        b"text/event-stream" => false,
        b"application/json" | b"application/javascript" | b"application/xml" | b"image/svg+xml" => true,
        other => other.starts_with(b"text/") || other.starts_with(b"application/") && other.ends_with(b"+json"),
    }
}

fn forbids(value: &HeaderValue) -> bool {
    let Ok(value) = value.to_str() else { return true };
    value
        .split(',')
        .map(str::trim)
        .any(|word| word.eq_ignore_ascii_case("no-transform") || word.eq_ignore_ascii_case("no-store"))
}

/// The bytes are no longer those that a strong tag names.
fn weaken_tag(headers: &mut HeaderMap) {
    let Some(tag) = headers.get(header::ETAG).filter(|tag| !tag.as_bytes().starts_with(b"W/")) else { return };
    match HeaderValue::from_bytes(&[b"W/", tag.as_bytes()].concat()) {
        Ok(weak) => headers.insert(header::ETAG, weak),
        Err(_) => headers.remove(header::ETAG),
    };
}

/// An answer on its way through a compressor.
pub(crate) struct Gzip {
    inner: Body,
    /// `None` once the end is written.
    compress: Option<Compress>,
    stock: Rc<Stock>,
    crc: Crc,
    /// Taken from the answer, not yet compressed.
    input: Bytes,
    out: Vec<u8>,
    /// The compressor holds bytes that the client has not got.
    unflushed: bool,
    /// What could not be passed on before the bytes in front of it.
    error: Option<BodyError>,
}

impl Gzip {
    fn new(inner: Body, level: Level, stock: Rc<Stock>) -> Self {
        let compress = Some(stock.take(level));
        Self {
            inner,
            compress,
            stock,
            crc: Crc::new(),
            input: Bytes::new(),
            out: GZIP_HEAD.to_vec(),
            unflushed: false,
            error: None,
        }
    }

    pub(crate) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let mut left = TURN;
        loop {
            if self.out.len() >= PART || (self.compress.is_none() && !self.out.is_empty()) {
                return Poll::Ready(Some(Ok(self.take_part())));
            }
            if let Some(error) = self.error.take() {
                return Poll::Ready(Some(Err(error)));
            }
            if self.compress.is_none() {
                return Poll::Ready(None);
            }
            if left == 0 {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            if !self.input.is_empty() {
                let data = self.input.split_to(self.input.len().min(SLICE));
                self.crc.update(&data);
                self.write(&data, FlushCompress::None);
                self.unflushed = true;
                left -= 1;
                continue;
            }
            match Pin::new(&mut self.inner).poll_frame(cx) {
                // Trailers belong to the hop before.
                Poll::Ready(Some(Ok(frame))) => self.input = frame.into_data().unwrap_or_default(),
                Poll::Ready(Some(Err(error))) => {
                    // Without its trailer the client sees that the answer is not whole.
                    self.write(&[], FlushCompress::Sync);
                    self.error = Some(error);
                    self.give_back();
                }
                Poll::Ready(None) => self.finish(),
                Poll::Pending if self.unflushed => {
                    self.write(&[], FlushCompress::Sync);
                    self.unflushed = false;
                    return Poll::Ready(Some(Ok(self.take_part())));
                }
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    pub(crate) fn is_end_stream(&self) -> bool {
        self.compress.is_none() && self.out.is_empty() && self.error.is_none()
    }

    fn take_part(&mut self) -> Frame<Bytes> {
        Frame::data(Bytes::from(std::mem::take(&mut self.out)))
    }

    fn finish(&mut self) {
        self.write(&[], FlushCompress::Finish);
        self.out.extend(self.crc.sum().to_le_bytes());
        self.out.extend(self.crc.amount().to_le_bytes());
        self.give_back();
    }

    /// Compresses all of `data`, and as the flush says what was kept back.
    fn write(&mut self, data: &[u8], flush: FlushCompress) {
        let Some(compress) = &mut self.compress else { return };
        let mut rest = data;
        loop {
            self.out.reserve(PART / 4);
            let before = compress.total_in();
            // Neither a wrong call order nor a stream that cannot be written exists for a compressor of ours.
            let Ok(status) = compress.compress_vec(rest, &mut self.out, flush) else { return };
            let taken = usize::try_from(compress.total_in() - before).unwrap_or(rest.len());
            rest = rest.get(taken..).unwrap_or_default();
            let has_room = self.out.len() < self.out.capacity();
            let is_done = match flush {
                FlushCompress::Finish => status == Status::StreamEnd,
                _ => rest.is_empty() && has_room,
            };
            if is_done {
                return;
            }
        }
    }

    fn give_back(&mut self) {
        if let Some(compress) = self.compress.take() {
            self.stock.put(compress);
        }
    }
}

impl Drop for Gzip {
    fn drop(&mut self) {
        self.give_back();
    }
}

impl fmt::Debug for Gzip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gzip").field("inner", &self.inner).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::task::Waker;

    use super::*;
    use crate::gateway::config::tests::defaults;

    fn asks(lines: &[&'static str]) -> bool {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(header::ACCEPT_ENCODING, HeaderValue::from_static(line));
        }
        Compression::new(&defaults()).wish(&Method::GET, &headers) == Wish::Gzip
    }

    #[test]
    fn only_who_accepts_gzip_gets_it() {
        for yes in ["gzip", "GZIP", "br, gzip", "gzip;q=0.5", "gzip; q=1.0", "*", "identity;q=0, *;q=0.1", "x-gzip"] {
            assert!(asks(&[yes]), "{yes}");
        }
        for no in [
            "",
            "identity",
            "br",
            "gzip;q=0",
            "gzip; q=0.000",
            "*;q=0",
            "gzip;q=0, *",
            "*, gzip;q=0",
            "gzip;q=x",
            "gzipped",
            "gzip;q=2",
        ] {
            assert!(!asks(&[no]), "{no}");
        }
        assert!(asks(&["br", "gzip"]), "lines are one list");
        assert!(!asks(&[]));
    }

    fn answer(headers: &[(&'static str, &'static str)], body: Vec<u8>) -> Response<Body> {
        let mut response = Response::new(Body::Full(body.into()));
        for (name, value) in headers {
            response.headers_mut().append(*name, HeaderValue::from_static(value));
        }
        response
    }

    const JSON: (&str, &str) = ("content-type", "application/json; charset=utf-8");

    fn applied(headers: &[(&'static str, &'static str)], status: u16, size: usize) -> Response<Body> {
        let mut response = answer(headers, vec![b'x'; size]);
        *response.status_mut() = StatusCode::from_u16(status).unwrap();
        Compression::new(&defaults()).apply(Wish::Gzip, &mut response);
        response
    }

    fn is_coded(response: &Response<Body>) -> bool {
        response.headers().contains_key("content-encoding")
    }

    #[test]
    fn text_worth_it_is_compressed_and_the_rest_is_not() {
        assert!(is_coded(&applied(&[JSON], 200, 1024)));
        for kind in ["text/html", "text/css", "image/svg+xml", "Application/JavaScript", "application/problem+json"] {
            assert!(is_coded(&applied(&[("content-type", kind)], 200, 5000)), "{kind}");
        }
        for (what, headers, status, size) in [
            ("short", vec![JSON], 200, 1023),
            ("part", vec![JSON], 206, 5000),
            ("error", vec![JSON], 400, 5000),
            ("events", vec![("content-type", "text/event-stream")], 200, 5000),
            ("picture", vec![("content-type", "image/png")], 200, 5000),
            ("no type", vec![], 200, 5000),
            ("coded", vec![JSON, ("content-encoding", "br")], 200, 5000),
            ("no-transform", vec![JSON, ("cache-control", "public, No-Transform")], 200, 5000),
            ("secret", vec![JSON, ("cache-control", "no-store")], 200, 5000),
        ] {
            let response = applied(&headers, status, size);
            assert!(response.headers().get("content-encoding").is_none_or(|coding| coding == "br"), "{what}");
        }
    }

    #[test]
    fn headers_tell_the_truth_about_the_new_bytes() {
        let mut response = answer(
            &[JSON, ("content-length", "5000"), ("etag", "\"a\""), ("accept-ranges", "bytes"), ("vary", "Origin")],
            vec![b'x'; 5000],
        );
        let compression = Compression::new(&defaults());
        compression.apply(Wish::Gzip, &mut response);
        let headers = response.headers();
        assert!(!headers.contains_key("content-length") && !headers.contains_key("accept-ranges"));
        assert_eq!(headers["etag"], "W/\"a\"");
        let vary: Vec<&HeaderValue> = headers.get_all("vary").iter().collect();
        assert_eq!(vary, ["Origin", "Accept-Encoding"]);
        let mut plain = answer(&[JSON, ("content-length", "5000"), ("etag", "\"a\"")], vec![b'x'; 5000]);
        compression.apply(Wish::Plain, &mut plain);
        assert_eq!(plain.headers()["vary"], "Accept-Encoding", "a cache must not give the one for the other");
        assert_eq!(
            (&plain.headers()["etag"], &plain.headers()["content-length"]),
            (&"\"a\"".parse().unwrap(), &"5000".parse().unwrap())
        );
    }

    #[test]
    fn what_has_not_changed_varies_as_the_answer_it_stands_for() {
        let compression = Compression::new(&defaults());
        let varies = |headers: &[(&'static str, &'static str)]| {
            let mut response = answer(headers, Vec::new());
            *response.status_mut() = StatusCode::NOT_MODIFIED;
            compression.apply(Wish::Gzip, &mut response);
            assert!(!is_coded(&response));
            response.headers().contains_key("vary")
        };
        assert!(varies(&[("etag", "\"a\"")]));
        assert!(!varies(&[("cache-control", "no-store")]));
    }

    /// All frames that are ready.
    fn drain(body: &mut Gzip) -> Vec<u8> {
        let mut all = Vec::new();
        let mut cx = Context::from_waker(Waker::noop());
        for _ in 0..100 {
            // Pending may be no more than a turn given to others.
            while let Poll::Ready(Some(frame)) = body.poll_frame(&mut cx) {
                all.extend(frame.unwrap().into_data().unwrap());
            }
        }
        all
    }

    fn unpacked(bytes: &[u8]) -> Vec<u8> {
        let mut text = Vec::new();
        flate2::read::GzDecoder::new(bytes).read_to_end(&mut text).unwrap();
        text
    }

    #[test]
    fn what_comes_out_is_what_went_in() {
        let stock: Rc<Stock> = Rc::default();
        for size in [0_usize, 1, 1000, 16_383, 16_384, 100_000, 3_000_000] {
            // Bytes that hardly compress, then bytes that do.
            let text: Vec<u8> =
                (0..size).map(|at| if at < size / 2 { u8::try_from(at * at % 251).unwrap() } else { b'a' }).collect();
            let inner = if size == 0 { Body::Empty } else { Body::Full(text.clone().into()) };
            let mut body = Gzip::new(inner, Level::new(4), Rc::clone(&stock));
            assert_eq!(unpacked(&drain(&mut body)), text, "{size}");
            assert!(body.is_end_stream());
        }
        assert_eq!(stock.active.get(), 0);
        assert_eq!(stock.spare.borrow().len(), 1, "one compressor served all");
    }

    #[tokio::test]
    async fn a_pause_is_a_flush() {
        let (send, receive) = tokio::sync::mpsc::channel::<Bytes>(4);
        let stream = futures_util::stream::unfold(receive, async |mut receive| {
            receive.recv().await.map(|part| (Ok::<_, std::io::Error>(part), receive))
        });
        let mut body = Gzip::new(Body::Own(axum::body::Body::from_stream(stream)), Level::new(4), Rc::default());
        send.send(Bytes::from_static(b"first")).await.unwrap();
        let mut decoder = flate2::write::GzDecoder::new(Vec::new());
        let feed = |decoder: &mut flate2::write::GzDecoder<Vec<u8>>, part: &[u8]| {
            use std::io::Write;
            decoder.write_all(part).unwrap();
            decoder.flush().unwrap();
            decoder.get_ref().clone()
        };
        let part = drain(&mut body);
        assert_eq!(feed(&mut decoder, &part), b"first");
        assert!(drain(&mut body).is_empty(), "nothing new, no empty frames");
        send.send(Bytes::from_static(b" second")).await.unwrap();
        let part = drain(&mut body);
        assert_eq!(feed(&mut decoder, &part), b"first second");
        drop(send);
        drain(&mut body);
        assert!(body.is_end_stream());
    }

    #[test]
    fn beyond_the_bound_answers_go_out_as_they_are() {
        let compression = Compression::new(&defaults());
        let mut open = Vec::new();
        for _ in 0..MAX_ACTIVE {
            let mut response = answer(&[JSON], vec![b'x'; 5000]);
            compression.apply(Wish::Gzip, &mut response);
            assert!(is_coded(&response));
            open.push(response);
        }
        let mut more = answer(&[JSON], vec![b'x'; 5000]);
        compression.apply(Wish::Gzip, &mut more);
        assert!(!is_coded(&more));
        drop(open);
        assert_eq!(compression.stock.active.get(), 0, "places are given back, also of answers that nobody took");
    }
}
