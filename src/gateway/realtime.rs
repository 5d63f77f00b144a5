//! `/api/realtime`: a stream is opened by anybody, and bound by the authenticated call that subscribes it.

use std::time::SystemTime;

use http_body_util::BodyExt;
use hyper::HeaderMap;
use hyper::Method;
use hyper::Request;
use hyper::Response;
use hyper::StatusCode;
use hyper::body::Incoming;
use hyper::header;
use hyper::header::HeaderName;
use hyper::header::HeaderValue;
use serde::Deserialize;

use super::access::Instances;
use super::access::token_of;
use super::access::unauthorized;
use super::body::Body;
use super::service::Peer;
use super::service::Service;
use super::service::check_length;
use super::upload::RequestBody;
use crate::error::Code;
use crate::error::Problem;
use crate::realtime::Audience;
use crate::realtime::OAUTH2;
use crate::realtime::Subscribe;

/// Tells proxies to pass events on as they come.
const X_ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

/// The body that subscribes a stream.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Call {
    client_id: String,
    subscriptions: Vec<String>,
}

impl Service {
    /// Opens a stream, or subscribes one.
    pub(crate) async fn realtime(&self, peer: &Peer, request: Request<Incoming>) -> Result<Response<Body>, Problem> {
        let instances = self.instances()?;
        let client = self.client(peer, request.headers());
        if request.method() == Method::GET {
            let stream = instances.hub.connect(client)?;
            let mut response = Response::new(Body::Events(stream));
            let headers = response.headers_mut();
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
            headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
            headers.insert(X_ACCEL_BUFFERING, HeaderValue::from_static("no"));
            return Ok(response);
        }
        let (limit, idle) = self.json_limits();
        check_length(request.headers(), limit)?;
        let (parts, incoming) = request.into_parts();
        let body = RequestBody::new(incoming, limit, idle).collect().await.map_err(|_| malformed())?;
        let call: Call = serde_json::from_slice(&body.to_bytes()).map_err(|_| malformed())?;
        let audience = audience(instances, &parts.headers, &call)?;
        let Call { client_id, subscriptions } = call;
        instances.hub.subscribe(Subscribe { client_id, subscriptions, ip: client, audience }).await?;
        let mut response = Response::new(Body::Empty);
        *response.status_mut() = StatusCode::NO_CONTENT;
        Ok(response)
    }
}

fn audience(instances: &Instances, headers: &HeaderMap, call: &Call) -> Result<Audience, Problem> {
    let token = headers.get(header::AUTHORIZATION).and_then(token_of);
    let principal = token.map(|token| (token, instances.verifier.verify(token, SystemTime::now())));
    match principal {
        Some((token, Ok(principal))) => {
            let tenant = instances.tenancy.personal(&principal.user).ok_or_else(|| Problem::new(Code::Forbidden))?;
            Ok(Audience::Member { tenant, token: token.to_owned(), principal })
        }
        _ if call.subscriptions == [OAUTH2] => Ok(Audience::SignIn),
        _ => Err(unauthorized()),
    }
}

/// As `PocketBase` says it.
fn malformed() -> Problem {
    Problem::new(Code::InvalidBody).message("something went wrong while processing your request")
}
