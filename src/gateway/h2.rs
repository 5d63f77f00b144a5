//! HTTP/2 with a client that begins with its preface: the same requests, brought into the form that the rest of the
//! gateway checks and forwards, and the limits that HTTP/1 has by its nature.
//!
//! On one connection many requests run at once, each a task of its own, so what HTTP/1 bounds per connection is bounded
//! here twice: by the number of streams, and per stream. A client that opens no window for its answer makes no socket
//! stall; `Flow` notices that the answer is not taken and ends that stream. hyper's task of a request ends when the last
//! part of the answer is queued, so the parts are small and the last one is a byte: it is queued only once the client has
//! made room for everything before it, and nothing but the socket is left to wait for.
//!
//! h2 itself refuses, with a reset of the stream or the connection: connection-specific headers, `TE` other than
//! `trailers`, upper-case names, pseudo-headers that are missing, doubled or misplaced, `:protocol`, a body that differs
//! from its `Content-Length`, floods of CONTINUATION, empty DATA and resets. [`check`] refuses what is left.

use std::cell::Cell;
use std::cell::RefCell;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::Context;
use std::task::Poll;
use std::task::ready;
use std::time::Duration;

use bytes::Bytes;
use http_body::Body as HttpBody;
use http_body::Frame;
use http_body::SizeHint;
use hyper::HeaderMap;
use hyper::Request;
use hyper::Response;
use hyper::Version;
use hyper::header;
use hyper::header::HeaderValue;
use hyper::rt::Executor;
use hyper::rt::Read;
use hyper::rt::ReadBufCursor;
use hyper::rt::Write;
use hyper::server::conn::http2;
use hyper_util::rt::TokioTimer;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use super::body::Body;
use super::body::BodyError;
use super::config::Config;
use super::config::Pace;
use super::stall::Stall;
use crate::error::Code;
use crate::error::Problem;

/// Requests at once on one connection.
const MAX_STREAMS: u32 = 100;
/// Largest header list, counted as the standard counts it.
const MAX_HEADER_LIST: u32 = 64 * 1024;
/// Bytes that a client may send before we took them: of one request, and of all on a connection.
const STREAM_WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;
/// Bytes of one answer that wait for the client.
const SEND_BUFFER: usize = 64 * 1024;
/// Bytes of an answer that are handed on at once.
const PART: usize = 16 * 1024;
/// Streams that the client reset before we took them up; more end the connection.
const MAX_RESET_STREAMS: usize = 20;
/// Resets of ours for errors of the client's; more end the connection.
const MAX_ERROR_RESETS: usize = 100;
/// How often a silent client is asked whether it is there, and how long it may take to say so.
const PING_INTERVAL: Duration = Duration::from_secs(20);
const PING_TIMEOUT: Duration = Duration::from_secs(20);
/// Requests that a client gave up before it had their answer. Beyond this many, and if most ended so, it only makes work.
const MAX_CANCELLED: u32 = 200;

/// The settings of every HTTP/2 connection, with tasks for its requests.
pub(crate) fn server(tasks: TaskTracker, streams: &Rc<Streams>) -> http2::Builder<Tasks> {
    let mut http = http2::Builder::new(Tasks { tasks, streams: Rc::clone(streams) });
    http.timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(MAX_HEADER_LIST)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buf_size(SEND_BUFFER)
        .max_pending_accept_reset_streams(MAX_RESET_STREAMS)
        .max_local_error_reset_streams(MAX_ERROR_RESETS)
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT);
    http
}

/// Brings a request into the form that HTTP/1 gives it: a `Host`, and one `Cookie` line.
pub(crate) fn normalise<B>(request: &mut Request<B>) {
    let authority = request.uri().authority().and_then(|authority| HeaderValue::try_from(authority.as_str()).ok());
    let headers = request.headers_mut();
    if let Some(authority) = authority
        && !headers.contains_key(header::HOST)
    {
        headers.insert(header::HOST, authority);
    }
    join_cookies(headers);
}

/// HTTP/2 clients may send each cookie as a line of its own (RFC 9113 8.2.3); HTTP/1 has one line.
fn join_cookies(headers: &mut HeaderMap) {
    if headers.get_all(header::COOKIE).iter().nth(1).is_none() {
        return;
    }
    let lines: Vec<&[u8]> = headers.get_all(header::COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if let Ok(joined) = HeaderValue::from_bytes(&lines.join(&b"; "[..])) {
        headers.insert(header::COOKIE, joined);
    }
}

/// Refuses what could be read in two ways and neither h2 nor the rules for every request refuse.
pub(crate) fn check<B>(request: &Request<B>, config: &Config) -> Result<(), Problem> {
    if request.version() != Version::HTTP_2 {
        return Ok(());
    }
    let malformed = |message| Err(Problem::new(Code::InvalidRequest).message(message));
    let (uri, headers) = (request.uri(), request.headers());
    if headers.len() > config.max_headers {
        return Err(Problem::new(Code::HeadersTooLarge));
    }
    if !matches!(uri.scheme_str(), None | Some("http" | "https")) {
        return malformed("the scheme is neither http nor https");
    }
    if headers.get_all(header::CONTENT_LENGTH).iter().nth(1).is_some() {
        return malformed("a request may have one Content-Length");
    }
    Ok(())
}

/// The requests of one connection, as its task sees them.
#[derive(Debug)]
pub(crate) struct Streams {
    writing: Pace,
    /// The flow of the request that was handed over last: hyper makes its task right after asking the service.
    next: RefCell<Option<Rc<Flow>>>,
    open: Cell<u32>,
    idle_since: Cell<Instant>,
    finished: Cell<u32>,
    cancelled: Cell<u32>,
    abused: Notify,
    /// Bytes wait for the client to read.
    blocked: Cell<bool>,
}

impl Streams {
    pub(crate) fn new(writing: Pace) -> Rc<Self> {
        Rc::new(Self {
            writing,
            next: RefCell::default(),
            open: Cell::new(0),
            idle_since: Cell::new(Instant::now()),
            finished: Cell::new(0),
            cancelled: Cell::new(0),
            abused: Notify::new(),
            blocked: Cell::new(false),
        })
    }

    /// The flow for the request that is being handed over.
    pub(crate) fn begin(&self) -> Rc<Flow> {
        let flow = Flow::new(self.writing);
        self.next.replace(Some(Rc::clone(&flow)));
        flow
    }

    /// Resolves when no request has run for `limit`.
    pub(crate) async fn idle(&self, limit: Duration) {
        loop {
            let deadline = if self.open.get() == 0 { self.idle_since.get() } else { Instant::now() } + limit;
            if deadline <= Instant::now() {
                return;
            }
            tokio::time::sleep_until(deadline).await;
        }
    }

    /// Resolves when no request has run for `limit` and all answers are out. A client that stops reading is cut by its
    /// socket.
    pub(crate) async fn drained(&self, limit: Duration) {
        loop {
            self.touch();
            self.idle(limit).await;
            if !self.blocked.get() {
                return;
            }
        }
    }

    /// Counts as in use just now.
    fn touch(&self) {
        self.idle_since.set(Instant::now());
    }

    /// Resolves when the client gave up so many requests that nothing else can be its purpose.
    pub(crate) async fn abused(&self) {
        self.abused.notified().await;
    }

    fn ended(&self, finished: bool) {
        self.open.set(self.open.get().saturating_sub(1));
        self.touch();
        if finished {
            self.finished.set(self.finished.get().saturating_add(1));
            return;
        }
        self.cancelled.set(self.cancelled.get().saturating_add(1));
        if self.cancelled.get() > MAX_CANCELLED && self.cancelled.get() > self.finished.get() {
            self.abused.notify_one();
        }
    }
}

/// Runs each request of a connection as a task of the worker.
#[derive(Debug, Clone)]
pub(crate) struct Tasks {
    tasks: TaskTracker,
    streams: Rc<Streams>,
}

impl<F: Future<Output = ()> + 'static> Executor<F> for Tasks {
    fn execute(&self, request: F) {
        let streams = Rc::clone(&self.streams);
        let flow = streams.next.take().unwrap_or_else(|| Flow::new(streams.writing));
        streams.open.set(streams.open.get() + 1);
        self.tasks.spawn_local(Stream { request: Some(Box::pin(request)), flow, streams });
    }
}

/// One request's task: ends it when its answer is not taken.
struct Stream<F> {
    request: Option<Pin<Box<F>>>,
    flow: Rc<Flow>,
    streams: Rc<Streams>,
}

impl<F: Future<Output = ()>> Future for Stream<F> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let Some(request) = &mut self.request else { return Poll::Ready(()) };
        if request.as_mut().poll(cx).is_pending() {
            ready!(self.flow.poll_stalled(cx));
        }
        // What is dropped unfinished is reset by h2.
        self.request = None;
        Poll::Ready(())
    }
}

impl<F> Drop for Stream<F> {
    fn drop(&mut self) {
        self.streams.ended(self.flow.finished.get());
    }
}

/// How the client takes one answer.
#[derive(Debug)]
pub(crate) struct Flow {
    /// All of the answer was handed over.
    finished: Cell<bool>,
    /// Bytes handed over that it has not made room for; `None` while we have nothing for it.
    handed: Cell<Option<usize>>,
    stall: RefCell<Stall>,
}

impl Flow {
    fn new(writing: Pace) -> Rc<Self> {
        let stall = RefCell::new(writing.stall());
        Rc::new(Self { finished: Cell::new(false), handed: Cell::new(None), stall })
    }

    /// The head of the answer is there.
    pub(crate) fn answer(self: Rc<Self>, body: Body) -> Flowing {
        let ended = body.is_end_stream();
        self.finished.set(ended);
        self.handed.set((!ended).then_some(0));
        Flowing { body, rest: Bytes::new(), ended, flow: self }
    }

    /// There is room for more: what was handed over has been taken.
    fn taken(&self) {
        if let Some(bytes) = self.handed.take() {
            self.stall.borrow_mut().moved(bytes);
        }
    }

    fn poll_stalled(&self, cx: &mut Context<'_>) -> Poll<()> {
        if self.handed.get().is_none() {
            return Poll::Pending;
        }
        self.stall.borrow_mut().poll_stalled(cx)
    }
}

/// An answer's body, which tells its [`Flow`] when it is asked for more.
#[derive(Debug)]
pub(crate) struct Flowing {
    body: Body,
    /// Taken from it and not yet handed on.
    rest: Bytes,
    ended: bool,
    flow: Rc<Flow>,
}

impl Flowing {
    /// The next part: the last byte of what there is comes alone.
    fn part(&mut self) -> Frame<Bytes> {
        let length = self.rest.len();
        let part = self.rest.split_to(length.saturating_sub(1).clamp(length.min(1), PART));
        self.flow.handed.set(Some(part.len()));
        Frame::data(part)
    }
}

impl HttpBody for Flowing {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.flow.taken();
        if !self.rest.is_empty() {
            return Poll::Ready(Some(Ok(self.part())));
        }
        match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) => {
                    self.rest = data;
                    Poll::Ready(Some(Ok(self.part())))
                }
                Err(trailers) => Poll::Ready(Some(Ok(trailers))),
            },
            Some(Err(error)) => Poll::Ready(Some(Err(error))),
            None => {
                self.ended = true;
                self.flow.finished.set(true);
                Poll::Ready(None)
            }
        }
    }

    /// Not before the last part was taken.
    fn is_end_stream(&self) -> bool {
        self.ended
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The answer to HEAD: the length that GET would have, and no body. hyper sees to that for HTTP/1 only.
pub(crate) fn without_body(response: &mut Response<Body>) {
    let body = std::mem::replace(response.body_mut(), Body::Empty);
    let length = body.size_hint().exact().filter(|length| *length > 0);
    if let Some(length) = length.filter(|_| !response.headers().contains_key(header::CONTENT_LENGTH)) {
        response.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    }
}

/// A connection's socket, which tells its [`Streams`] whether bytes wait for the client to read.
#[derive(Debug)]
pub(crate) struct Watched<T> {
    io: T,
    streams: Rc<Streams>,
}

impl<T> Watched<T> {
    pub(crate) fn new(io: T, streams: &Rc<Streams>) -> Self {
        Self { io, streams: Rc::clone(streams) }
    }

    fn watch<R>(&self, outcome: Poll<R>) -> Poll<R> {
        self.streams.blocked.set(outcome.is_pending());
        outcome
    }
}

impl<T: Read + Unpin> Read for Watched<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl<T: Write + Unpin> Write for Watched<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.io).poll_write(cx, buf);
        self.watch(outcome)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.io).poll_write_vectored(cx, bufs);
        self.watch(outcome)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::config::tests::defaults;

    fn request(uri: &str, headers: &[(&'static str, &'static str)]) -> Request<()> {
        let mut request = Request::builder().version(Version::HTTP_2).uri(uri).body(()).unwrap();
        for (name, value) in headers {
            request.headers_mut().append(*name, HeaderValue::from_static(value));
        }
        request
    }

    #[test]
    fn requests_take_the_form_of_http1() {
        let mut plain = request("https://a.example/x", &[("cookie", "a=1"), ("cookie", "b=2"), ("x", "y")]);
        normalise(&mut plain);
        assert_eq!(plain.headers()["host"], "a.example");
        let cookies: Vec<&HeaderValue> = plain.headers().get_all("cookie").iter().collect();
        assert_eq!(cookies, ["a=1; b=2"]);
        let mut both = request("https://a.example/x", &[("host", "b.example")]);
        normalise(&mut both);
        assert_eq!(both.headers()["host"], "b.example", "left for the check of every request, which refuses it");
    }

    #[test]
    fn what_h2_lets_pass_is_refused_here() {
        let config = Config { max_headers: 8, ..defaults() };
        let code = |request: &Request<()>| check(request, &config).map_err(|problem| problem.code);
        assert_eq!(code(&request("https://a/x", &[])), Ok(()));
        assert_eq!(code(&request("ftp://a/x", &[])), Err(Code::InvalidRequest));
        let two = request("https://a/x", &[("content-length", "1"), ("content-length", "1")]);
        assert_eq!(code(&two), Err(Code::InvalidRequest));
        assert_eq!(code(&request("https://a/x", &[("a", "b"); 9])), Err(Code::HeadersTooLarge));
    }

    #[tokio::test]
    async fn an_answer_goes_out_in_parts_of_which_the_last_byte_is_one_and_the_end_another() {
        let mut flowing = Flow::new(defaults().writing()).answer(Body::Full(vec![7; 40_000].into()));
        let mut cx = Context::from_waker(std::task::Waker::noop());
        let mut sizes = Vec::new();
        while let Poll::Ready(Some(frame)) = Pin::new(&mut flowing).poll_frame(&mut cx) {
            sizes.push(frame.unwrap().into_data().unwrap().len());
            assert!(!flowing.is_end_stream() && !flowing.flow.finished.get());
        }
        assert_eq!(sizes, [PART, PART, 7_231, 1]);
        assert!(flowing.is_end_stream() && flowing.flow.finished.get());
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_is_not_drained_while_the_client_has_to_read() {
        let streams = Streams::new(defaults().writing());
        streams.blocked.set(true);
        let drained = |time| tokio::time::timeout(time, streams.drained(Duration::from_secs(1)));
        assert!(drained(Duration::from_mins(5)).await.is_err());
        streams.blocked.set(false);
        assert!(drained(Duration::from_secs(2)).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_is_idle_only_without_requests() {
        let limit = Duration::from_secs(30);
        let streams = Streams::new(defaults().writing());
        streams.open.set(1);
        let idle = |time| tokio::time::timeout(time, streams.idle(limit));
        assert!(idle(Duration::from_mins(5)).await.is_err());
        streams.ended(true);
        assert!(idle(Duration::from_secs(29)).await.is_err());
        assert!(idle(Duration::from_secs(2)).await.is_ok());
    }

    #[tokio::test]
    async fn a_client_that_gives_up_most_of_many_requests_is_noticed() {
        let streams = Streams::new(defaults().writing());
        for _ in 0..MAX_CANCELLED {
            streams.ended(false);
            streams.ended(true);
        }
        let noticed = |streams: Rc<Streams>| async move {
            tokio::time::timeout(Duration::from_millis(1), streams.abused()).await.is_ok()
        };
        assert!(!noticed(Rc::clone(&streams)).await, "half of them is what people do who type quickly");
        streams.ended(false);
        assert!(noticed(streams).await);
    }
}
