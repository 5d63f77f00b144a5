//! A connection for which there was no descriptor but a spare one: `/health` is answered, everything else is asked to come
//! again, and the next one has its turn.
//!
//! Whoever says nothing is not waited for: among connections that only lie there a probe must get through.

use std::convert::Infallible;
use std::net::IpAddr;
use std::rc::Rc;
use std::time::Duration;

use hyper::Method;
use hyper::Request;
use hyper::Response;
use hyper::body::Incoming;
use hyper::header::CONNECTION;
use hyper::header::HeaderValue;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::accept::Permit;
use super::body::Body;
use super::io::ClientIo;
use super::io::Upgraded;
use super::reply::reply;
use super::request_id::Tag;
use super::service::Peer;
use super::service::Service;
use super::stall::Alarm;
use crate::error::Code;
use crate::error::Problem;
use crate::error::Shape;

/// Until the first byte: a probe that waits in the backlog has sent its request long ago.
const FIRST_BYTE: Duration = Duration::from_millis(250);
/// Until the end.
const WHOLE: Duration = Duration::from_secs(5);
/// When the others are to come again.
const AGAIN: Duration = Duration::from_secs(2);

/// Serves one request, if there is one.
pub(super) async fn serve(
    service: &Rc<Service>,
    http: &http1::Builder,
    stream: TcpStream,
    peer: IpAddr,
    permit: Permit,
) {
    if !matches!(timeout(FIRST_BYTE, stream.readable()).await, Ok(Ok(()))) {
        return;
    }
    let (upgraded, alarm) = (Upgraded::default(), Alarm::default());
    let peer = Rc::new(service.peer(peer, upgraded.clone(), alarm.clone()));
    let io = ClientIo::new(stream, upgraded, Vec::new(), service.config().writing().stall(), permit);
    let answered = service_fn(move |request| {
        let (service, peer) = (Rc::clone(service), Rc::clone(&peer));
        async move {
            let mut response = answer(&service, &peer, request).await;
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            Ok::<_, Infallible>(response)
        }
    });
    let mut http = http.clone();
    // How it ends is the client's affair.
    let _ = timeout(WHOLE, http.timer(alarm).keep_alive(false).serve_connection(TokioIo::new(io), answered)).await;
}

async fn answer(service: &Service, peer: &Peer, request: Request<Incoming>) -> Response<Body> {
    let path = request.uri().path();
    if path == "/health" && matches!(*request.method(), Method::GET | Method::HEAD) {
        return service.serve(peer, request).await;
    }
    let problem = Problem::new(Code::Overloaded)
        .message("there are more connections than this server has room for; try again in a moment")
        .retry_after(AGAIN);
    reply(&problem, Shape::of(path), Tag::of(request.headers()).as_str())
}
