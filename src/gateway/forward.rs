//! One request to one instance: over a pooled connection when there is one, streamed both ways, every wait with a
//! limit.

use std::fmt;
use std::future::Future;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::task::Context;
use std::task::Poll;
use std::task::Waker;
use std::time::Duration;

use hyper::Method;
use hyper::Request;
use hyper::Response;
use hyper::StatusCode;
use hyper::body::Body as HttpBody;
use hyper::body::Incoming;
use hyper::client::conn::TrySendError;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::task::coop::unconstrained;
use tokio::time::Instant;
use tokio::time::timeout;

use super::access::Hold;
use super::body::Body;
use super::body::Held;
use super::body::Relay;
use super::pool::Pool;
use super::pool::Upstream;
use super::stall::Alarm;
use super::upload::RequestBody;
use super::upload::Standing;
use super::upload::Upload;
use crate::error::Code;
use crate::error::Problem;

/// An instance listens on loopback and accepts at once or not at all.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Largest head of an answer.
const MAX_HEAD: usize = 64 * 1024;

/// Where a request goes, and what keeps it there.
#[derive(Debug)]
pub(crate) struct Target {
    pub(crate) address: SocketAddr,
    pub(crate) epoch: u64,
    pub(crate) hold: Option<Hold>,
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

impl From<TrySendError<Request<RequestBody>>> for Failure {
    fn from(mut failed: TrySendError<Request<RequestBody>>) -> Self {
        let unsent = failed.take_message().map(Box::new);
        Self::Connection { unsent, error: failed.into_error() }
    }
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
        alarm: &Alarm,
    ) -> Result<Response<Body>, Problem> {
        let key = (target.address, target.epoch);
        let upload = request.body().upload();
        let mut request = request;
        if let Some(mut upstream) = self.pool.take(&key) {
            let spare = repeatable(&request);
            match self.exchange(&mut upstream, request, upload.as_deref(), alarm).await {
                Ok(answer) => {
                    return self.relay(
                        answer,
                        Held { upstream, pool: Rc::clone(&self.pool), key, upload, hold: target.hold },
                        alarm,
                    );
                }
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
        match self.exchange(&mut upstream, request, upload.as_deref(), alarm).await {
            Ok(answer) => self.relay(
                answer,
                Held { upstream, pool: Rc::clone(&self.pool), key, upload, hold: target.hold },
                alarm,
            ),
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
        Ok(Upstream::new(sender, connection))
    }

    /// Waits for the head of the answer. While the client still sends its body, only a body that stopped moving
    /// counts against the limit.
    async fn exchange(
        &self,
        upstream: &mut Upstream,
        request: Request<RequestBody>,
        upload: Option<&Upload>,
        alarm: &Alarm,
    ) -> Result<Response<Incoming>, Failure> {
        let Upstream { sender, driver } = upstream;
        let mut deadline = Instant::now() + self.response_timeout;
        // The cooperation budget is for what others make ready. This is made ready by the driver, polled just before.
        let mut sending = pin!(unconstrained(sender.try_send_request(request)));
        let mut outcome = || sending.as_mut().poll(&mut Context::from_waker(Waker::noop())).map_err(Failure::from);
        let mut is_sent = false;
        poll_fn(|cx| {
            if std::mem::replace(&mut is_sent, true) {
                driver.poll_quietly();
                if let Poll::Ready(outcome) = outcome() {
                    return Poll::Ready(outcome);
                }
            }
            driver.poll(cx);
            if let Poll::Ready(outcome) = outcome() {
                return Poll::Ready(outcome);
            }
            while alarm.poll(deadline, cx).is_ready() {
                if !upload.is_some_and(Upload::take_moved) {
                    return Poll::Ready(Err(Failure::Timeout));
                }
                deadline = Instant::now() + self.response_timeout;
            }
            Poll::Pending
        })
        .await
    }

    fn relay(&self, answer: Response<Incoming>, mut held: Held, alarm: &Alarm) -> Result<Response<Body>, Problem> {
        if let Some(lease) = &held.hold {
            lease.answered();
        }
        // Upgrades are never asked for, so a switch of protocols is a broken instance.
        if answer.status() == StatusCode::SWITCHING_PROTOCOLS {
            return Err(Problem::new(Code::BadGateway));
        }
        if held.upload.as_ref().is_some_and(|upload| upload.standing() == Standing::Running) {
            // The answer is polled only as fast as the client reads it, and the client may not read before it has
            // sent everything.
            held.upstream.driver.detach();
        }
        let (parts, incoming) = answer.into_parts();
        Ok(Response::from_parts(parts, Relay::start(incoming, self.body_idle, held, alarm)))
    }
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
