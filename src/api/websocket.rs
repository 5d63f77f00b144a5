//! The sockets: `/queue_updates`, `/ws` and `/api/v1/ws`, which are one hub, and tickets to connect with.
//!
//! Everything is decided before the 101: who it is, and whether there is room. `docs/sockets.md` is the protocol.

use axum::Json;
use axum::extract::Request;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::http::HeaderName;
use axum::http::HeaderValue;
use axum::http::Method;
use axum::http::StatusCode;
use axum::http::header;
use axum::http::request::Parts;
use axum::response::IntoResponse;
use axum::response::Response;
use hyper::upgrade::OnUpgrade;
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::api::AppState;
use crate::api::error::ApiError;
use crate::api::extractors::AuthUser;
use crate::api::extractors::ClientInfo;
use crate::api::socket_auth;
use crate::api::socket_auth::Query;
use crate::auth::Verifier;
use crate::error::Code;
use crate::error::Problem;
use crate::events::Endpoint;
use crate::events::Events;
use crate::events::Joining;
use crate::events::Topic;
use crate::events::Wishes;
use crate::events::handshake;
use crate::events::message::SUBPROTOCOL;
use crate::gateway::upgrade;
use crate::gateway::upgrade::WorkerTasks;

/// Most topics that an address may name.
const MAX_TOPICS: usize = 32;

/// The routes.
pub fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(queue_updates))
        .routes(routes!(ws))
        .routes(routes!(api_ws))
        .routes(routes!(make_ticket))
}

/// The caller's queue, as it changes: a WebSocket that sends `QueueUpdate` and `ProgressUpdate`.
#[utoipa::path(get, path = "/queue_updates", tag = "events", security(("bearer" = [])),
    responses((status = 101, description = "A WebSocket from now on; see docs/sockets.md and /asyncapi.json."),
        (status = 403, description = "A session cookie, and a page of another origin."),
        (status = 426, description = "Not a WebSocket handshake of version 13."),
        (status = 429, description = "As many sockets as this account or address may have.")))]
async fn queue_updates(
    State(events): State<Events>,
    State(verifier): State<Verifier>,
    request: Request,
) -> Result<Response, ApiError> {
    connect(Endpoint::QueueUpdates, events, &verifier, request)
}

/// What concerns the caller, and everybody: a WebSocket.
#[utoipa::path(get, path = "/ws", tag = "events", security(("bearer" = [])),
    responses((status = 101, description = "A WebSocket from now on; see docs/sockets.md and /asyncapi.json."),
        (status = 403, description = "A session cookie, and a page of another origin."),
        (status = 426, description = "Not a WebSocket handshake of version 13."),
        (status = 429, description = "As many sockets as this account or address may have.")))]
async fn ws(
    State(events): State<Events>,
    State(verifier): State<Verifier>,
    request: Request,
) -> Result<Response, ApiError> {
    connect(Endpoint::Main, events, &verifier, request)
}

/// The same as `/ws`.
#[utoipa::path(get, path = "/api/v1/ws", tag = "events", security(("bearer" = [])),
    responses((status = 101, description = "A WebSocket from now on; see docs/sockets.md and /asyncapi.json."),
        (status = 403, description = "A session cookie, and a page of another origin."),
        (status = 426, description = "Not a WebSocket handshake of version 13."),
        (status = 429, description = "As many sockets as this account or address may have.")))]
async fn api_ws(
    State(events): State<Events>,
    State(verifier): State<Verifier>,
    request: Request,
) -> Result<Response, ApiError> {
    connect(Endpoint::Main, events, &verifier, request)
}

/// A ticket.
#[derive(Serialize, ToSchema)]
struct Ticket {
    /// Goes into the address: `/ws?ticket=…`. Good once.
    ticket: String,
    /// Seconds that it is good for.
    #[schema(example = 30)]
    expires_in: u64,
}

/// A ticket to connect a socket or a stream with: good once, for half a minute, from the same network and origin.
#[utoipa::path(post, path = "/api/v1/ws/ticket", tag = "events", security(("bearer" = [])),
    responses((status = 201, description = "The ticket.", body = Ticket)))]
async fn make_ticket(
    State(events): State<Events>,
    user: AuthUser,
    ClientInfo(client): ClientInfo,
    headers: HeaderMap,
) -> Result<(StatusCode, Json<Ticket>), ApiError> {
    let issued = events.ticket(&user.principal, client.ip, socket_auth::origin(&headers));
    let (ticket, ttl) = issued.ok_or_else(|| Problem::new(Code::Overloaded).retry_after(events.config().ticket_ttl))?;
    Ok((StatusCode::CREATED, Json(Ticket { ticket, expires_in: ttl.as_secs() })))
}

/// Answers the handshake and hands the connection over.
fn connect(endpoint: Endpoint, events: Events, verifier: &Verifier, request: Request) -> Result<Response, ApiError> {
    let (mut parts, _) = request.into_parts();
    let query = Query::of(&parts.uri)?;
    let principal = socket_auth::principal(&parts, &query, &events, verifier)?;
    let is_enveloped = socket_auth::protocols(&parts.headers).any(|name| name == SUBPROTOCOL);
    if principal.is_none() && !is_enveloped {
        return Err(Problem::new(Code::Unauthorized).into());
    }
    let mut topics = Vec::new();
    if let (Some(names), Some(principal)) = (query.value("subscribe"), &principal) {
        for name in names.split(',').filter(|name| !name.is_empty()).take(MAX_TOPICS) {
            let topic = Topic::parse(name, &principal.user);
            topics.push(topic.ok_or_else(|| Problem::new(Code::NotFound).message("there is no such topic"))?);
        }
    }
    let wishes = Wishes { is_enveloped, topics, since: query.position("since")? };
    let Some(answer) = shake(&parts) else { return Ok(upgrade_required()) };
    let (on_upgrade, tasks) = (parts.extensions.remove::<OnUpgrade>(), parts.extensions.remove::<WorkerTasks>());
    let (Some(on_upgrade), Some(WorkerTasks(tasks))) = (on_upgrade, tasks) else { return Ok(upgrade_required()) };
    let entry = events.admit(principal, socket_auth::address(&parts), endpoint)?;
    let worker = tasks.clone();
    tasks.spawn_local(async move {
        // A client that left meanwhile gives its place back here.
        let Some(taken) = upgrade::take(on_upgrade).await else { return };
        let joining = Joining { stream: taken.stream, head: taken.head, place: taken.place };
        events.enter(entry, wishes, joining, &worker).await;
    });
    Ok(answer)
}

/// The answer to a handshake; none when it is not one.
fn shake(parts: &Parts) -> Option<Response> {
    let headers = &parts.headers;
    let has = |name: HeaderName, word: &str| {
        let lines = headers.get_all(name).iter().filter_map(|line| line.to_str().ok());
        lines.flat_map(|line| line.split(',')).any(|part| part.trim().eq_ignore_ascii_case(word))
    };
    let is_handshake = parts.method == Method::GET
        && has(header::UPGRADE, "websocket")
        && has(header::CONNECTION, "upgrade")
        && headers.get(header::SEC_WEBSOCKET_VERSION).is_some_and(|version| version == "13");
    let key = headers.get(header::SEC_WEBSOCKET_KEY).filter(|_| is_handshake)?;
    let accept = HeaderValue::from_str(&handshake::accept(key.as_bytes())?).ok()?;
    let mut response = StatusCode::SWITCHING_PROTOCOLS.into_response();
    let answer = response.headers_mut();
    answer.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    answer.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    answer.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    // A browser that offered some ends the connection when none of them is taken.
    let offered = |wanted: &str| socket_auth::protocols(headers).find(|name| name.starts_with(wanted));
    if let Some(protocol) = offered(SUBPROTOCOL).or_else(|| offered("bearer."))
        && let Ok(protocol) = HeaderValue::from_str(protocol)
    {
        answer.insert(header::SEC_WEBSOCKET_PROTOCOL, protocol);
    }
    Some(response)
}

fn upgrade_required() -> Response {
    let mut response = ApiError(Problem::new(Code::UpgradeRequired)).into_response();
    response.headers_mut().insert(header::SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
    response.headers_mut().insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    response
}
