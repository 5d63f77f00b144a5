//! One request from head to head: checked on its raw form, routed, admitted, passed on, and its answer dressed.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use hyper::HeaderMap;
use hyper::Method;
use hyper::Request;
use hyper::Response;
use hyper::StatusCode;
use hyper::Uri;
use hyper::Version;
use hyper::body::Incoming;
use hyper::header;
use hyper::header::HeaderValue;
use hyper::http::request;
use hyper::http::uri::PathAndQuery;
use tower::ServiceExt;

use super::access::Access;
use super::access::Admission;
use super::access::Instances;
use super::access::Recognised;
use super::access::not_found;
use super::body::Body;
use super::client_addr::TrustedProxies;
use super::client_addr::forwarded_for;
use super::config::Config;
use super::cors::Cors;
use super::forward::Forwarder;
use super::headers;
use super::io::Upgraded;
use super::meters::Answerer;
use super::meters::Meters;
use super::path;
use super::reply::reply;
use super::request_id::Tag;
use super::request_id::X_REQUEST_ID;
use super::route::GlobalCall;
use super::route::Route;
use super::route::route;
use super::stall::Alarm;
use super::upload::RequestBody;
use crate::error::Code;
use crate::error::Problem;
use crate::error::Shape;
use crate::ids::TenantId;
use crate::telemetry::Metrics;

/// The client's address, for handlers behind the gateway (a request extension).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClientIp(pub IpAddr);

/// What every worker needs to make its own [`Service`].
#[derive(Debug, Clone)]
pub(crate) struct Blueprint {
    pub(crate) config: Arc<Config>,
    pub(crate) access: Access,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) slow_request: Duration,
    pub(crate) router: axum::Router,
}

/// Answers requests on one worker thread.
#[derive(Debug)]
pub(crate) struct Service {
    config: Arc<Config>,
    access: Access,
    forwarder: Forwarder,
    router: axum::Router,
    cors: Cors,
    trusted: TrustedProxies,
    meters: Meters,
    slow_request: Duration,
}

/// The other end of one connection.
#[derive(Debug)]
pub(crate) struct Peer {
    address: IpAddr,
    /// Whether it is believed when it speaks of somebody else.
    is_trusted: bool,
    forwarded_for: Option<HeaderValue>,
    upgraded: Upgraded,
    alarm: Alarm,
    recognised: Recognised,
}

/// What is learnt about a request while it is answered, for its log line and its counters.
struct Seen {
    by: Answerer,
    shape: Shape,
    tenant: Option<TenantId>,
}

impl Service {
    pub(crate) fn new(blueprint: Blueprint) -> Self {
        let Blueprint { config, access, metrics, slow_request, router } = blueprint;
        Self {
            forwarder: Forwarder::new(config.response_timeout, config.body_idle_timeout),
            cors: Cors::new(&config.cors_origins),
            trusted: TrustedProxies::new(&config.trusted_proxies),
            meters: Meters::new(&metrics),
            config,
            access,
            router,
            slow_request,
        }
    }

    pub(crate) fn instances(&self) -> Result<&Instances, Problem> {
        if let Access::Instances(instances) = &self.access { Ok(instances) } else { Err(not_found()) }
    }

    /// Who is at the other end, or behind it.
    pub(crate) fn client(&self, peer: &Peer, headers: &HeaderMap) -> IpAddr {
        self.trusted.client(peer.address, headers)
    }

    /// How large a JSON body of ours may be, and how long it may stand still.
    pub(crate) fn json_limits(&self) -> (u64, Duration) {
        (self.config.max_json_bytes, self.config.body_idle_timeout)
    }

    pub(crate) fn forwarder(&self) -> &Forwarder {
        &self.forwarder
    }

    pub(crate) fn peer(&self, address: IpAddr, upgraded: Upgraded, alarm: Alarm) -> Peer {
        let is_trusted = self.trusted.contains(address);
        let recognised = Recognised::default();
        Peer { address, is_trusted, forwarded_for: forwarded_for(address), upgraded, alarm, recognised }
    }

    /// Answers a request. Every failure is an answer.
    pub(crate) async fn serve(&self, peer: &Peer, request: Request<Incoming>) -> Response<Body> {
        let started = Instant::now();
        let tag = Tag::of(request.headers());
        let origin = request.headers().get(header::ORIGIN).cloned();
        let (method, uri) = (request.method().clone(), request.uri().clone());
        let mut seen = Seen { by: Answerer::Own, shape: Shape::of(uri.path()), tenant: None };
        let mut response = match self.answer(peer, &tag, &uri, request, &mut seen).await {
            Ok(response) => response,
            Err(problem) => reply(&problem, seen.shape, tag.as_str()),
        };
        self.cors.apply(origin.as_ref(), response.headers_mut());
        response.headers_mut().insert(X_REQUEST_ID, tag.header());
        let elapsed = started.elapsed();
        self.meters.answered(seen.by, response.status(), elapsed);
        if response.status().is_server_error() || elapsed >= self.slow_request {
            log(&method, &uri, response.status(), elapsed, &seen, &tag);
        }
        response
    }

    async fn answer(
        &self,
        peer: &Peer,
        tag: &Tag,
        uri: &Uri,
        request: Request<Incoming>,
        seen: &mut Seen,
    ) -> Result<Response<Body>, Problem> {
        let path = self.check(&request, uri)?;
        if let Some(response) = Cors::preflight(request.method(), request.headers()) {
            return Ok(response);
        }
        let route = route(request.method(), &path);
        seen.shape = if route == Route::Own { Shape::Own } else { Shape::PocketBase };
        match route {
            Route::Own => self.own(peer, tag, request, None).await,
            Route::OwnAccount(rest) => self.own(peer, tag, request, Some(rest)).await,
            Route::Tenant => {
                seen.by = Answerer::Tenant;
                check_length(request.headers(), self.config.max_body_bytes)?;
                let admission = self.access.tenant(request.headers(), &peer.recognised).await?;
                if !matches!(*request.method(), Method::GET | Method::HEAD) {
                    self.access.settle(&admission).await;
                }
                let response = self.pass_on(peer, tag, request, admission, self.config.max_body_bytes, seen).await;
                response.map(headers::keep_private)
            }
            Route::Realtime => self.realtime(peer, request).await,
            Route::Global(call) => self.global(peer, tag, request, call, seen).await,
            Route::Later => Err(Problem::new(Code::NotImplemented)),
            Route::Absent => Err(not_found()),
        }
    }

    /// The raw checks; the result is the decoded path.
    fn check<'u>(&self, request: &Request<Incoming>, uri: &'u Uri) -> Result<std::borrow::Cow<'u, str>, Problem> {
        let method = request.method();
        let known =
            [Method::GET, Method::POST, Method::PATCH, Method::DELETE, Method::HEAD, Method::PUT, Method::OPTIONS];
        if !known.contains(method) {
            return Err(Problem::new(Code::MethodNotAllowed));
        }
        let length = uri.path_and_query().map_or(0, |target| target.as_str().len());
        if length > self.config.max_uri_bytes {
            return Err(Problem::new(Code::UriTooLong));
        }
        let malformed = |message| Problem::new(Code::InvalidRequest).message(message);
        let path = path::decode(uri.path()).map_err(|why| malformed(why.to_string()))?;
        if !uri.query().unwrap_or_default().bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(malformed("the query has a character that is not allowed".to_owned()));
        }
        headers::check(request.headers(), uri)?;
        Ok(path)
    }

    /// Our own router answers; `account` is the rest of an account path under its canonical collection name.
    async fn own(
        &self,
        peer: &Peer,
        tag: &Tag,
        request: Request<Incoming>,
        account: Option<&str>,
    ) -> Result<Response<Body>, Problem> {
        let limit = self.config.max_json_bytes.max(self.config.max_account_bytes);
        check_length(request.headers(), limit)?;
        let (mut parts, incoming) = request.into_parts();
        let client = self.trusted.client(peer.address, &parts.headers);
        headers::strip_forged(&mut parts.headers);
        parts.headers.insert(X_REQUEST_ID, tag.header());
        parts.extensions.insert(ClientIp(client));
        parts.extensions.insert(tag.extension());
        if let Some(rest) = account {
            parts.uri = account_uri(&parts.uri, rest)?;
        }
        let body = RequestBody::new(incoming, limit, self.config.body_idle_timeout);
        let request = Request::from_parts(parts, axum::body::Body::new(body));
        let response = match self.router.clone().oneshot(request).await {
            Ok(response) => response,
            Err(never) => match never {},
        };
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            peer.upgraded.set();
        }
        Ok(response.map(Body::Own))
    }

    async fn global(
        &self,
        peer: &Peer,
        tag: &Tag,
        request: Request<Incoming>,
        call: GlobalCall<'_>,
        seen: &mut Seen,
    ) -> Result<Response<Body>, Problem> {
        seen.by = Answerer::Global;
        check_length(request.headers(), self.config.max_account_bytes)?;
        let admission = self.access.global(&call, request.headers(), &peer.recognised).await?;
        self.pass_on(peer, tag, request, admission, self.config.max_account_bytes, seen).await
    }

    async fn pass_on(
        &self,
        peer: &Peer,
        tag: &Tag,
        request: Request<Incoming>,
        admission: Admission,
        limit: u64,
        seen: &mut Seen,
    ) -> Result<Response<Body>, Problem> {
        let Admission { target, tenant, authorization, warm_after } = admission;
        if let Some(after) = warm_after {
            self.meters.warm(after);
        }
        seen.tenant = Some(tenant);
        let (parts, incoming) = request.into_parts();
        let mut outgoing = Request::new(RequestBody::new(incoming, limit, self.config.body_idle_timeout));
        *outgoing.method_mut() = parts.method.clone();
        *outgoing.uri_mut() = origin_form(&parts.uri);
        *outgoing.version_mut() = Version::HTTP_11;
        *outgoing.headers_mut() = self.instance_headers(peer, tag, parts, authorization);
        let mut response = self.forwarder.forward(outgoing, target, &peer.alarm).await?;
        let status = response.status();
        headers::strip_response(response.headers_mut());
        if matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED) {
            response.headers_mut().remove(header::CONTENT_LENGTH);
        }
        Ok(response)
    }

    /// The caller's headers without anything forged, then ours.
    fn instance_headers(
        &self,
        peer: &Peer,
        tag: &Tag,
        parts: request::Parts,
        authorization: Option<HeaderValue>,
    ) -> HeaderMap {
        let mut map = parts.headers;
        let (client, proto) = if peer.is_trusted {
            (forwarded_for(self.trusted.client(peer.address, &map)), forwarded_proto(&map))
        } else {
            (peer.forwarded_for.clone(), HeaderValue::from_static("http"))
        };
        headers::strip_request(&mut map);
        match authorization {
            Some(value) => map.insert(header::AUTHORIZATION, value),
            None => map.remove(header::AUTHORIZATION),
        };
        if let Some(client) = client {
            map.insert(headers::X_FORWARDED_FOR, client);
        }
        map.insert(headers::X_FORWARDED_PROTO, proto);
        map.insert(X_REQUEST_ID, tag.header());
        map
    }
}

/// Refuses a body that says itself that it is too large, before a byte of it is read or an instance woken.
pub(crate) fn check_length(headers: &HeaderMap, limit: u64) -> Result<(), Problem> {
    let length = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if length.is_some_and(|length| length > limit) { Err(Problem::new(Code::BodyTooLarge)) } else { Ok(()) }
}

fn forwarded_proto(map: &HeaderMap) -> HeaderValue {
    let is_https = map.get(headers::X_FORWARDED_PROTO).is_some_and(|value| value.as_bytes() == b"https");
    HeaderValue::from_static(if is_https { "https" } else { "http" })
}

/// Only path and query: an instance must not see an absolute target.
fn origin_form(uri: &Uri) -> Uri {
    if uri.authority().is_none() {
        return uri.clone();
    }
    uri.path_and_query().cloned().map_or_else(|| Uri::from_static("/"), Uri::from)
}

fn account_uri(uri: &Uri, rest: &str) -> Result<Uri, Problem> {
    let path = format!("/api/collections/users/{rest}");
    if uri.path() == path {
        return Ok(uri.clone());
    }
    let target = uri.query().map_or_else(|| path.clone(), |query| format!("{path}?{query}"));
    PathAndQuery::try_from(target).map(Uri::from).map_err(|_| Problem::new(Code::InvalidRequest))
}

fn log(method: &Method, uri: &Uri, status: StatusCode, elapsed: Duration, seen: &Seen, tag: &Tag) {
    let duration_ms = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX);
    let tenant = seen.tenant.as_ref().map(tracing::field::display);
    let (path, status) = (uri.path(), status.as_u16());
    // 501 and 503 are refusals that we meant; whoever made the state that leads to them has logged why.
    if matches!(status, 500 | 502 | 504..) {
        tracing::warn!(%method, path, status, duration_ms, tenant.id = tenant, request.id = tag.as_str(), "request failed");
    } else {
        tracing::info!(%method, path, status, duration_ms, tenant.id = tenant, request.id = tag.as_str(), "request");
    }
}
