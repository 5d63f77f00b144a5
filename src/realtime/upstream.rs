//! One event stream of an instance, and the call that subscribes it.
//!
//! An instance wants both calls from the same client address, and forgets a stream with its connection. Whoever polls a
//! stream drives its connection too: there is no task of its own.

use std::future::Future;
use std::future::poll_fn;
use std::net::IpAddr;
use std::net::SocketAddr;
use std::pin::Pin;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;

use bytes::Bytes;
use http_body_util::BodyExt;
use http_body_util::Collected;
use http_body_util::Full;
use http_body_util::Limited;
use hyper::Method;
use hyper::Request;
use hyper::Response;
use hyper::StatusCode;
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::client::conn::http1::Connection;
use hyper::client::conn::http1::SendRequest;
use hyper::header;
use hyper::header::HeaderName;
use hyper::header::HeaderValue;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use serde_json::json;
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::Error;
use super::sse::Event;
use super::sse::Parser;
use crate::pocketbase::client::forwarded_for;

const PATH: &str = "/api/realtime";
const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
/// Largest answer to a refused subscription that is looked at.
const MAX_REFUSAL: usize = 64 * 1024;

type Driver = Option<Box<Connection<TokioIo<TcpStream>, Full<Bytes>>>>;

/// Why a stream brings nothing more, or could not be opened.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    #[error("connect")]
    Connect(#[from] std::io::Error),
    #[error("exchange")]
    Http(#[from] hyper::Error),
    #[error("the instance refused with {status}")]
    Refused { status: u16, message: String },
    #[error("the instance answered something else than an event stream")]
    Unexpected,
    #[error("an event is larger than allowed")]
    TooLarge,
    #[error("the stream has ended")]
    Ended,
}

impl From<Fault> for Error {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Refused { status, message } => Self::Refused { status, message },
            Fault::Connect(_) | Fault::Http(_) | Fault::Unexpected | Fault::TooLarge | Fault::Ended => {
                Self::Unreachable
            }
        }
    }
}

/// An open stream.
pub(super) struct Upstream {
    address: SocketAddr,
    client: IpAddr,
    /// The id that the instance gave.
    id: String,
    parser: Parser,
    body: Incoming,
    driver: Driver,
    _sender: SendRequest<Full<Bytes>>,
    pub(super) opened: Instant,
    /// When it brought something last.
    pub(super) heard: Instant,
}

impl Upstream {
    /// Opens a stream that is subscribed to nothing yet.
    pub(super) async fn open(address: SocketAddr, client: IpAddr, max_event: usize) -> Result<Self, Fault> {
        let (mut sender, mut driver) = connect(address).await?;
        let mut request = request(Method::GET, address, client, Bytes::new());
        request.headers_mut().insert(header::ACCEPT, HeaderValue::from_static("text/event-stream"));
        let response = drive(&mut driver, sender.send_request(request)).await?;
        if response.status() != StatusCode::OK {
            return Err(refusal(response, &mut driver).await);
        }
        let (id, now) = (String::new(), Instant::now());
        let (parser, body) = (Parser::new(max_event), response.into_body());
        let mut stream = Self { address, client, id, parser, body, driver, _sender: sender, opened: now, heard: now };
        let hello = stream.next().await?;
        let id = hello.id.as_ref().and_then(|id| std::str::from_utf8(id).ok()).unwrap_or_default();
        if hello.name() != b"PB_CONNECT" || id.is_empty() {
            return Err(Fault::Unexpected);
        }
        id.clone_into(&mut stream.id);
        Ok(stream)
    }

    /// Sets what the stream is subscribed to, in place of what it was.
    pub(super) fn subscribe(
        &self,
        authorization: Option<HeaderValue>,
        topics: &Arc<[String]>,
    ) -> impl Future<Output = Result<(), Fault>> + use<> {
        let body = json!({ "clientId": self.id, "subscriptions": **topics }).to_string();
        let (address, client) = (self.address, self.client);
        async move {
            let (mut sender, mut driver) = connect(address).await?;
            let mut request = request(Method::POST, address, client, Bytes::from(body));
            request.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
            if let Some(authorization) = authorization {
                request.headers_mut().insert(header::AUTHORIZATION, authorization);
            }
            let response = drive(&mut driver, sender.send_request(request)).await?;
            if response.status().is_success() { Ok(()) } else { Err(refusal(response, &mut driver).await) }
        }
    }

    /// The next event. Nothing is lost when the future is dropped.
    pub(super) async fn next(&mut self) -> Result<Event, Fault> {
        loop {
            match self.parser.next() {
                Ok(Some(event)) => {
                    self.heard = Instant::now();
                    return Ok(event);
                }
                Ok(None) => {}
                Err(_) => return Err(Fault::TooLarge),
            }
            let frame = drive(&mut self.driver, self.body.frame()).await.ok_or(Fault::Ended)??;
            if let Some(data) = frame.data_ref() {
                self.parser.push(data);
            }
        }
    }
}

fn request(method: Method, address: SocketAddr, client: IpAddr, body: Bytes) -> Request<Full<Bytes>> {
    let mut request = Request::new(Full::new(body));
    *request.method_mut() = method;
    *request.uri_mut() = hyper::Uri::from_static(PATH);
    let headers = request.headers_mut();
    if let Ok(host) = HeaderValue::try_from(address.to_string()) {
        headers.insert(header::HOST, host);
    }
    if let Some(client) = forwarded_for(client) {
        headers.insert(X_FORWARDED_FOR, client);
    }
    request
}

async fn connect(address: SocketAddr) -> Result<(SendRequest<Full<Bytes>>, Driver), Fault> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    Ok((sender, Some(Box::new(connection))))
}

/// Waits for `work` while its connection is moved on.
async fn drive<T>(driver: &mut Driver, work: impl Future<Output = T>) -> T {
    let mut work = pin!(work);
    poll_fn(|cx| {
        if let Some(connection) = driver
            && Pin::new(&mut **connection).poll(cx).is_ready()
        {
            // Whoever waits on it is told by hyper, once it is dropped.
            *driver = None;
        }
        match work.as_mut().poll(cx) {
            Poll::Ready(done) => Poll::Ready(done),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}

/// What an instance says when it refuses, in our form: lower case, without a full stop.
async fn refusal(response: Response<Incoming>, driver: &mut Driver) -> Fault {
    let status = response.status().as_u16();
    let body = drive(driver, Limited::new(response.into_body(), MAX_REFUSAL).collect()).await;
    let body = body.map(Collected::to_bytes).unwrap_or_default();
    let value: Value = serde_json::from_slice(&body).unwrap_or_default();
    let text = value.get("message").and_then(Value::as_str).unwrap_or_default().trim_end_matches('.');
    let mut letters = text.chars();
    let message = letters
        .next()
        .map_or_else(|| "the instance refused".to_owned(), |first| first.to_lowercase().chain(letters).collect());
    Fault::Refused { status, message }
}
