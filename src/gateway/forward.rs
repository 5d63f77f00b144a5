//! One request to one instance: over a pooled connection when there is one, streamed both ways, every wait with a
//! limit.

use std::fmt;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use hyper::Method;
use hyper::Request;
use hyper::Response;
use hyper::StatusCode;
use hyper::body::Body as HttpBody;
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::body::Body;
use super::body::Held;
use super::body::Relay;
use super::pool::Key;
use super::pool::Pool;
use super::pool::Upstream;
use super::upload::RequestBody;
use super::upload::Standing;
use super::upload::Upload;
use crate::error::Code;
use crate::error::Problem;
use crate::supervisor::Lease;

/// An instance listens on loopback and accepts at once or not at all.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Largest head of an answer.
const MAX_HEAD: usize = 64 * 1024;

/// Where a request goes, and what keeps it there.
#[derive(Debug)]
pub(crate) struct Target {
    pub(crate) address: SocketAddr,
    pub(crate) epoch: u64,
    pub(crate) lease: Option<Lease>,
}

/// Sends requests to instances from one worker thread.
pub(crate) struct Forwarder {
    pool: Rc<Pool>,
    client: http1::Builder,
    response_timeout: Duration,
    body_idle: Duration,
}

/// Why an exchange gave no answer.
enum Failure {
    /// The connection was of no use; hyper gives the request back if nothing of it was sent.
    Connection { unsent: Option<Box<Request<RequestBody>>>, error: hyper::Error },
    /// No answer in time.
    Timeout,
}

impl Forwarder {
    pub(crate) fn new(response_timeout: Duration, body_idle: Duration) -> Self {
        let mut client = http1::Builder::new();
        client.max_buf_size(MAX_HEAD);
        Self { pool: Rc::new(Pool::default()), client, response_timeout, body_idle }
    }

    /// The idle connections, for sweeping.
    pub(crate) fn pool(&self) -> &Rc<Pool> {
        &self.pool
    }

    /// Relays a request, whose headers are already those that the instance may see.
    pub(crate) async fn forward(
        &self,
        request: Request<RequestBody>,
        target: Target,
    ) -> Result<Response<Body>, Problem> {
        let key = (target.address, target.epoch);
        let upload = request.body().upload();
        let mut request = request;
        if let Some(mut upstream) = self.pool.take(&key) {
            let spare = repeatable(&request);
            match self.exchange(&mut upstream, request, upload.as_deref()).await {
                Ok(answer) => return self.relay(answer, upstream, key, upload, target.lease),
                // The instance closed the idle connection just before. Nothing happened yet, or nothing that a
                // safe request cannot do twice.
                Err(Failure::Connection { unsent: Some(unsent), .. }) => request = *unsent,
                Err(failure) => match (failure, spare) {
                    (Failure::Connection { .. }, Some(spare)) => request = spare,
                    (failure, _) => return Err(problem(&failure, upload.as_deref())),
                },
            }
        }
        let mut upstream = self.connect(target.address).await?;
        match self.exchange(&mut upstream, request, upload.as_deref()).await {
            Ok(answer) => self.relay(answer, upstream, key, upload, target.lease),
            Err(failure) => Err(problem(&failure, upload.as_deref())),
        }
    }

    async fn connect(&self, address: SocketAddr) -> Result<Upstream, Problem> {
        let failed = |reason: &dyn fmt::Display| {
            tracing::debug!(instance.address = %address, error = %reason, "connect to an instance");
            Problem::new(Code::BadGateway)
        };
        let stream = match timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return Err(failed(&error)),
            Err(elapsed) => return Err(failed(&elapsed)),
        };
        stream.set_nodelay(true).map_err(|error| failed(&error))?;
        let (sender, connection) = self.client.handshake(TokioIo::new(stream)).await.map_err(|error| failed(&error))?;
        Ok(Upstream::drive(sender, connection))
    }

    /// Waits for the head of the answer. While the client still sends its body, only a body that stopped moving
    /// counts against the limit.
    async fn exchange(
        &self,
        upstream: &mut Upstream,
        request: Request<RequestBody>,
        upload: Option<&Upload>,
    ) -> Result<Response<Incoming>, Failure> {
        let mut sending = pin!(send(upstream, request));
        loop {
            match timeout(self.response_timeout, sending.as_mut()).await {
                Ok(outcome) => return outcome,
                Err(_) if upload.is_some_and(Upload::take_moved) => {}
                Err(_) => return Err(Failure::Timeout),
            }
        }
    }

    fn relay(
        &self,
        answer: Response<Incoming>,
        upstream: Upstream,
        key: Key,
        upload: Option<Arc<Upload>>,
        lease: Option<Lease>,
    ) -> Result<Response<Body>, Problem> {
        if let Some(lease) = &lease {
            lease.answered();
        }
        // Upgrades are never asked for, so a switch of protocols is a broken instance.
        if answer.status() == StatusCode::SWITCHING_PROTOCOLS {
            return Err(Problem::new(Code::BadGateway));
        }
        let held = Held { upstream, pool: Rc::clone(&self.pool), key, upload, lease };
        let (parts, incoming) = answer.into_parts();
        Ok(Response::from_parts(parts, Relay::start(incoming, self.body_idle, held)))
    }
}

async fn send(upstream: &mut Upstream, request: Request<RequestBody>) -> Result<Response<Incoming>, Failure> {
    if !upstream.sender.is_ready()
        && let Err(error) = upstream.sender.ready().await
    {
        return Err(Failure::Connection { unsent: Some(Box::new(request)), error });
    }
    upstream.sender.try_send_request(request).await.map_err(|mut failed| {
        let unsent = failed.take_message().map(Box::new);
        Failure::Connection { unsent, error: failed.into_error() }
    })
}

/// A second copy of a request that is safe to send twice and has no body.
fn repeatable(request: &Request<RequestBody>) -> Option<Request<RequestBody>> {
    let safe = matches!(*request.method(), Method::GET | Method::HEAD) && request.body().is_end_stream();
    safe.then(|| {
        let mut copy = Request::new(RequestBody::empty());
        *copy.method_mut() = request.method().clone();
        *copy.uri_mut() = request.uri().clone();
        *copy.headers_mut() = request.headers().clone();
        copy
    })
}

/// What the client is told: its own body's fault first, since that breaks the exchange as well.
fn problem(failure: &Failure, upload: Option<&Upload>) -> Problem {
    match upload.map_or(Standing::Done, Upload::standing) {
        Standing::TooLarge => return Problem::new(Code::BodyTooLarge),
        Standing::Stalled => return Problem::new(Code::InvalidBody).message("the body stood still for too long"),
        Standing::Broken => return Problem::new(Code::InvalidBody).message("the body broke off"),
        Standing::Running | Standing::Done => {}
    }
    match failure {
        Failure::Timeout => Problem::new(Code::GatewayTimeout),
        Failure::Connection { error, .. } => {
            tracing::debug!(%error, "exchange with an instance");
            Problem::new(Code::BadGateway)
        }
    }
}

impl fmt::Debug for Forwarder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Forwarder").finish_non_exhaustive()
    }
}
