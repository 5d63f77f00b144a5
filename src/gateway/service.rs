//! One request from head to head: checked on its raw form, routed, admitted, passed on, and its answer dressed.

use std::net::IpAddr;
use std::rc::Rc;
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
use tokio_util::task::TaskTracker;
use tower::ServiceExt;

use super::access::Access;
use super::access::Admission;
use super::access::Credential;
use super::access::Recognised;
use super::access::not_found;
use super::body::Body;
use super::client_addr::TrustedProxies;
use super::client_addr::forwarded_for;
use super::compress::Compression;
use super::config::Config;
use super::cors::Cors;
use super::forward::Forwarder;
use super::h2;
use super::headers;
use super::io::Upgraded;
use super::meters::Answerer;
use super::meters::Meters;
use super::pace::Pace;
use super::path;
use super::place::Domain;
use super::place::Place;
use super::query::with_token;
use super::quotas;
use super::reply::reply;
use super::request_id::Tag;
use super::request_id::X_REQUEST_ID;
use super::route::GlobalCall;
use super::route::Route;
use super::route::is_read;
use super::route::route;
use super::security::Transport;
use super::stall::Alarm;
use super::upgrade::WorkerTasks;
use super::upload::RequestBody;
use crate::error::Code;
use crate::error::Problem;
use crate::error::Shape;
use crate::ids::TenantId;
use crate::telemetry::Metrics;

/// The client's address, for handlers behind the gateway (a request extension).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClientIp(pub IpAddr);

/// Whether a trusted proxy said that the client came over https, for handlers behind the gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IsHttps(pub bool);

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
    pub(super) config: Arc<Config>,
    pub(super) access: Access,
    forwarder: Forwarder,
    router: axum::Router,
    cors: Cors,
    domain: Domain,
    compression: Compression,
    transport: Transport,
    pub(super) trusted: TrustedProxies,
    meters: Meters,
    slow_request: Duration,
    pace: Pace,
    tasks: TaskTracker,
}

/// The other end of one connection.
#[derive(Debug, Clone)]
pub(crate) struct Peer {
    pub(super) address: IpAddr,
    /// Whether it is believed when it speaks of somebody else.
    is_trusted: bool,
    forwarded_for: Option<HeaderValue>,
    upgraded: Upgraded,
    alarm: Alarm,
    pub(super) recognised: Rc<Recognised>,
}

impl Peer {
    /// The same client for one request of several at once, which waits by a timer of its own.
    pub(crate) fn stream(&self) -> Self {
        Self { alarm: Alarm::default(), ..self.clone() }
    }
}

/// What is learnt about a request while it is answered, for its log line and its counters.
pub(super) struct Seen {
    pub(super) by: Answerer,
    pub(super) shape: Shape,
    pub(super) tenant: Option<TenantId>,
}

/// A request on its way to an instance.
pub(super) struct Passage {
    pub(super) admission: Admission,
    /// How much of the path names the tenant and is not for the instance.
    pub(super) cut: usize,
    /// Whether subscribers must be in place first.
    pub(super) may_write: bool,
}

impl Passage {
    /// The path as it came.
    fn whole(admission: Admission, may_write: bool) -> Self {
        Self { admission, cut: 0, may_write }
    }
}

impl Service {
    /// A service of one worker, whose tasks are `tasks`.
    pub(crate) fn new(blueprint: Blueprint, pace: Pace, tasks: TaskTracker) -> Self {
        let Blueprint { config, access, metrics, slow_request, router } = blueprint;
        Self {
            forwarder: Forwarder::new(config.response_timeout, config.body_idle_timeout),
            cors: Cors::new(&config.cors_origins),
            domain: Domain::new(&config.domain),
            compression: Compression::new(&config),
            transport: Transport::new(&config.hsts),
            trusted: TrustedProxies::new(&config.trusted_proxies),
            meters: Meters::new(&metrics),
            config,
            access,
            router,
            slow_request,
            pace,
            tasks,
        }
    }

    pub(crate) fn config(&self) -> &Config {
        &self.config
    }

    pub(super) fn pace(&self) -> &Pace {
        &self.pace
    }

    pub(crate) fn forwarder(&self) -> &Forwarder {
        &self.forwarder
    }

    pub(crate) fn peer(&self, address: IpAddr, upgraded: Upgraded, alarm: Alarm) -> Peer {
        let is_trusted = self.trusted.contains(address);
        let recognised = Rc::default();
        Peer { address, is_trusted, forwarded_for: forwarded_for(address), upgraded, alarm, recognised }
    }

    /// Answers a request. Every failure is an answer.
    pub(crate) async fn serve(&self, peer: &Peer, request: Request<Incoming>) -> Response<Body> {
        let started = Instant::now();
        let tag = Tag::of(request.headers());
        let origin = request.headers().get(header::ORIGIN).cloned();
        let is_https = peer.is_trusted && forwarded_proto(request.headers()) == "https";
        let wish = self.compression.wish(request.method(), request.headers());
        let (method, uri) = (request.method().clone(), request.uri().clone());
        let mut seen = Seen { by: Answerer::Own, shape: Shape::of(uri.path()), tenant: None };
        let mut response = match self.answer(peer, &tag, &uri, request, &mut seen).await {
            Ok(response) => response,
            Err(problem) => reply(&problem, seen.shape, tag.as_str()),
        };
        self.cors.apply(origin.as_ref(), response.headers_mut());
        self.transport.apply(is_https, response.headers_mut());
        self.compression.apply(wish, &mut response);
        response.headers_mut().insert(X_REQUEST_ID, tag.header());
        let elapsed = started.elapsed();
        self.pace.answered(elapsed);
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
        match self.domain.place(request.headers(), uri, &path) {
            Place::Home => {}
            Place::Tenant(named) => {
                // The headers are moved with the request; the name is all that is still needed of them.
                let named = named.detach();
                return self.named(peer, tag, request, &named, seen).await;
            }
            Place::Bare if is_read(request.method()) => return Ok(with_slash(uri)),
            Place::Bare | Place::Nowhere => {
                seen.shape = Shape::PocketBase;
                return Err(not_found());
            }
        }
        let route = route(request.method(), &path);
        seen.shape = if route == Route::Own { Shape::Own } else { Shape::PocketBase };
        match route {
            Route::Own => self.own(peer, tag, request, None).await,
            Route::OwnAccount(rest) => {
                self.own(peer, tag, request, Some(&format!("/api/collections/users/{rest}"))).await
            }
            Route::Tenant => {
                self.check_tenant_call(&request, seen)?;
                let admission = self.access.tenant(call_of(&request, &path), &peer.recognised).await?;
                let may_write = !is_read(request.method());
                self.pass_on(peer, tag, request, Passage::whole(admission, may_write), seen).await
            }
            Route::File => {
                self.check_tenant_call(&request, seen)?;
                let admission = self.access.file(call_of(&request, &path), uri.query(), &peer.recognised).await?;
                self.pass_on(peer, tag, request, Passage::whole(admission, false), seen).await
            }
            Route::Custom => {
                self.check_tenant_call(&request, seen)?;
                let admission = self.access.custom(call_of(&request, &path), &peer.recognised).await?;
                // Whatever the method, a hook may write.
                self.pass_on(peer, tag, request, Passage::whole(admission, true), seen).await
            }
            Route::Realtime => self.realtime(peer, request, None).await,
            Route::Global(call) => self.global(peer, tag, request, call, seen).await,
            Route::Absent => Err(not_found()),
        }
    }

    /// What is looked at before anybody is asked who may.
    pub(super) fn check_tenant_call(&self, request: &Request<Incoming>, seen: &mut Seen) -> Result<(), Problem> {
        seen.by = Answerer::Tenant;
        check_length(request.headers(), self.config.max_body_bytes)
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
        h2::check(request, &self.config)?;
        headers::check(request.headers(), uri)?;
        Ok(path)
    }

    /// Our own router answers, at `path` if the request came by another.
    pub(super) async fn own(
        &self,
        peer: &Peer,
        tag: &Tag,
        request: Request<Incoming>,
        path: Option<&str>,
    ) -> Result<Response<Body>, Problem> {
        let limit = self.config.max_json_bytes.max(self.config.max_account_bytes);
        check_length(request.headers(), limit)?;
        let (mut parts, incoming) = request.into_parts();
        let client = self.trusted.client(peer.address, &parts.headers);
        parts.extensions.insert(IsHttps(peer.is_trusted && forwarded_proto(&parts.headers) == "https"));
        headers::strip_forged(&mut parts.headers);
        parts.headers.insert(X_REQUEST_ID, tag.header());
        parts.extensions.insert(ClientIp(client));
        parts.extensions.insert(tag.extension());
        if parts.headers.contains_key(header::UPGRADE) {
            parts.extensions.insert(WorkerTasks(self.tasks.clone()));
        }
        if let Some(path) = path {
            parts.uri = at_path(&parts.uri, path)?;
        }
        let body = RequestBody::new(incoming, limit, self.config.reading());
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
        self.pass_on(peer, tag, request, Passage::whole(admission, false), seen).await
    }

    pub(super) async fn pass_on(
        &self,
        peer: &Peer,
        tag: &Tag,
        request: Request<Incoming>,
        passage: Passage,
        seen: &mut Seen,
    ) -> Result<Response<Body>, Problem> {
        let Passage { mut admission, cut, may_write } = passage;
        let leave = quotas::admit(&self.access, &admission.tenant, request.method(), request.uri(), request.headers())?;
        let (largest, notice, tally) = leave.map_or((None, None, None), |leave| {
            if let Some(hold) = &mut admission.target.hold {
                hold.keep(leave.place);
            }
            (leave.largest, leave.notice, leave.tally)
        });
        if may_write {
            self.access.settle(&admission).await;
        }
        let Admission { target, tenant, credential, file_token, is_private, warm_after } = admission;
        let limit = if tenant.is_global() { self.config.max_account_bytes } else { self.config.max_body_bytes };
        let limit = largest.map_or(limit, |largest| limit.min(largest));
        // An instance's own tokens in the query are its own affair; ours never reach it.
        let replaces_token = !matches!(credential, Credential::AsSent(_));
        let is_ours = matches!(credential, Credential::Superuser(_));
        let authorization = match credential {
            Credential::Nothing => None,
            Credential::Exchanged(value) | Credential::Superuser(value) => Some(value),
            Credential::AsSent(value) => value,
        };
        if let Some(after) = warm_after {
            self.meters.warm(after);
        }
        let is_tenant = !tenant.is_global();
        seen.tenant = Some(tenant);
        let (parts, incoming) = request.into_parts();
        let body = RequestBody::new(incoming, limit, self.config.reading()).counted(tally);
        let mut outgoing = Request::new(body);
        *outgoing.method_mut() = parts.method.clone();
        *outgoing.uri_mut() = if is_tenant && replaces_token && parts.uri.query().is_some_and(may_hold_token) {
            target_uri(&parts.uri, cut, with_token(parts.uri.query(), file_token.as_deref()).as_deref())?
        } else if cut > 0 {
            target_uri(&parts.uri, cut, parts.uri.query())?
        } else {
            origin_form(&parts.uri)
        };
        let prefix = parts.uri.path().get(..cut).unwrap_or_default().to_owned();
        *outgoing.version_mut() = Version::HTTP_11;
        *outgoing.headers_mut() = self.instance_headers(peer, tag, parts, authorization);
        if is_ours {
            outgoing.headers_mut().remove(headers::X_FORWARDED_FOR);
        }
        let mut response = self.forwarder.forward(outgoing, target, &peer.alarm).await?;
        let status = response.status();
        headers::strip_response(response.headers_mut());
        quotas::tell(notice, response.headers_mut());
        if matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED) {
            response.headers_mut().remove(header::CONTENT_LENGTH);
        }
        if !prefix.is_empty() {
            headers::relocate(response.headers_mut(), &prefix);
            if self.domain.is_set() {
                headers::sandbox(response.headers_mut());
            }
        }
        if is_tenant {
            headers::keep_apart(response.headers_mut(), is_private);
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

/// What a quota looks at of a request.
fn call_of<'a>(request: &'a Request<Incoming>, path: &'a str) -> quotas::Call<'a> {
    quotas::Call { method: request.method(), path, headers: request.headers() }
}

/// Refuses a body that says itself that it is too large, before a byte of it is read or an instance woken.
pub(super) fn check_length(headers: &HeaderMap, limit: u64) -> Result<(), Problem> {
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

/// Sends a browser to the address below which relative links work, whether or not there is such a tenant.
fn with_slash(uri: &Uri) -> Response<Body> {
    let mut response = Response::new(Body::Empty);
    let query = uri.query().map_or_else(String::new, |query| format!("?{query}"));
    if let Ok(location) = HeaderValue::try_from(format!("{}/{query}", uri.path())) {
        *response.status_mut() = StatusCode::PERMANENT_REDIRECT;
        response.headers_mut().insert(header::LOCATION, location);
    }
    response
}

/// Whether a query can hold a `token`, however it is spelled: most do not, and are passed on as they are.
fn may_hold_token(query: &str) -> bool {
    query.contains("token") || query.contains('%')
}

/// What follows the first `cut` bytes of the path, with another query.
fn target_uri(uri: &Uri, cut: usize, query: Option<&str>) -> Result<Uri, Problem> {
    let path = uri.path().get(cut..).unwrap_or("/");
    let target = query.map_or_else(|| path.to_owned(), |query| format!("{path}?{query}"));
    PathAndQuery::try_from(target).map(Uri::from).map_err(|_| Problem::new(Code::InvalidRequest))
}

/// The same query at another path of ours.
fn at_path(uri: &Uri, path: &str) -> Result<Uri, Problem> {
    if uri.path() == path {
        return Ok(uri.clone());
    }
    let target = uri.query().map_or_else(|| path.to_owned(), |query| format!("{path}?{query}"));
    PathAndQuery::try_from(target).map(Uri::from).map_err(|_| Problem::new(Code::InvalidRequest))
}

fn log(method: &Method, uri: &Uri, status: StatusCode, elapsed: Duration, seen: &Seen, tag: &Tag) {
    let duration_ms = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX);
    let tenant = seen.tenant.as_ref().map(tracing::field::display);
    let (path, status) = (uri.path(), status.as_u16());
    // 501, 503 and 507 are refusals that we meant; whoever made the state that leads to them has logged why.
    if matches!(status, 500 | 502 | 504..=506 | 508..) {
        tracing::warn!(%method, path, status, duration_ms, tenant.id = tenant, request.id = tag.as_str(), "request failed");
    } else {
        tracing::info!(%method, path, status, duration_ms, tenant.id = tenant, request.id = tag.as_str(), "request");
    }
}
