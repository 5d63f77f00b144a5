//! The same events without a socket: a stream of server-sent events, and long polls.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::Request;
use axum::extract::State;
use axum::http::HeaderValue;
use axum::http::header;
use axum::http::request::Parts;
use axum::response::IntoResponse;
use axum::response::Response;
use bytes::Bytes;
use futures_util::stream;
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::api::AppState;
use crate::api::error::ApiError;
use crate::api::socket_auth;
use crate::api::socket_auth::Query;
use crate::auth::Verifier;
use crate::error::Code;
use crate::error::Problem;
use crate::events::Endpoint;
use crate::events::Event;
use crate::events::Events;
use crate::events::Heard;
use crate::events::Listener;
use crate::events::Position;
use crate::events::Topic;

/// How long a poll waits unless it says otherwise, and at most.
const POLL: Duration = Duration::from_secs(25);
const MAX_POLL: u64 = 55;
/// Most events of one poll.
const MAX_EVENTS: usize = 256;
/// Most topics of one stream.
const MAX_TOPICS: usize = 32;

/// The routes.
pub fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(stream_events)).routes(routes!(poll_events))
}

/// Begins to listen to what the address names.
async fn open(
    events: &Events,
    verifier: &Verifier,
    parts: &Parts,
    query: &Query<'_>,
    since: Option<&Position>,
) -> Result<Listener, Problem> {
    let principal = socket_auth::principal(parts, query, events, verifier)?;
    let principal = principal.ok_or_else(|| Problem::new(Code::Unauthorized))?;
    let names = query.value("topics").unwrap_or("queue").split(',').filter(|name| !name.is_empty());
    let mut topics: Vec<Topic> = Vec::new();
    for name in names.take(MAX_TOPICS) {
        let topic = Topic::parse(name, &principal.user);
        let topic = topic.ok_or_else(|| Problem::new(Code::NotFound).message("there is no such topic"))?;
        if !topics.contains(&topic) {
            topics.push(topic);
        }
    }
    let entry = events.admit(Some(principal), socket_auth::address(parts), Endpoint::Stream)?;
    events.listen(entry, &topics, since).await
}

/// Events as they happen, as server-sent events: the first is `ready`, those that follow are as on a socket that said
/// `Hello`. A browser that comes back says by itself what it had last (`Last-Event-ID`).
#[utoipa::path(get, path = "/api/v1/events", tag = "events", security(("bearer" = [])),
    params(("topics" = Option<String>, Query, description = "Separated by commas: `queue`, `user`, `system`, `instance:{id}`."),
        ("since" = Option<String>, Query, description = "`epoch:offset`, for clients that cannot send `Last-Event-ID`.")),
    responses((status = 200, description = "The stream.", content_type = "text/event-stream"),
        (status = 404, description = "No such topic, or not for this account.")))]
async fn stream_events(
    State(events): State<Events>,
    State(verifier): State<Verifier>,
    request: Request,
) -> Result<Response, ApiError> {
    let (parts, _) = request.into_parts();
    let query = Query::of(&parts.uri)?;
    // What a browser remembers is newer than what its page said at first.
    let last = parts.headers.get("last-event-id").and_then(|id| id.to_str().ok()).filter(|id| !id.is_empty());
    let since = match last {
        Some(last) => Some(socket_auth::position(last)?),
        None => query.position("since")?,
    };
    let listener = open(&events, &verifier, &parts, &query, since.as_ref()).await?;
    let stream = stream::unfold(Some((listener, true)), next);
    let mut response = Body::from_stream(stream).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    Ok(response)
}

type Step = Option<(Listener, bool)>;

/// The next part of a stream.
async fn next(state: Step) -> Option<(Result<Bytes, Infallible>, Step)> {
    let (mut listener, is_first) = state?;
    let Position { epoch, offset } = listener.position();
    if is_first {
        let recovered = listener.recovered().map_or("null", |recovered| if recovered { "true" } else { "false" });
        let text = format!(
            "id: {epoch}:{offset}\nevent: ready\ndata: {{\"epoch\":\"{epoch}\",\"offset\":{offset},\"recovered\":{recovered}}}\n\n"
        );
        return Some((Ok(text.into()), Some((listener, false))));
    }
    match listener.next().await {
        Heard::Event(event) => {
            let text = format!("id: {epoch}:{}\ndata: {}\n\n", event.offset, event.json());
            Some((Ok(text.into()), Some((listener, false))))
        }
        Heard::Quiet => Some((Ok(Bytes::from_static(b": quiet\n\n")), Some((listener, false)))),
        Heard::End(code) => {
            let (number, reason) = (code.number(), code.reason());
            let text = format!("event: end\ndata: {{\"code\":{number},\"reason\":\"{reason}\"}}\n\n");
            Some((Ok(text.into()), None))
        }
    }
}

/// What a poll brings.
#[derive(Serialize, ToSchema)]
struct Polled {
    /// The events, oldest first, as on a socket that said `Hello`.
    #[schema(value_type = Vec<Object>)]
    events: Vec<Value>,
    /// Whether nothing is missing after `since`; null without it. When false, read the state anew.
    recovered: Option<bool>,
    /// `since` of the next poll.
    #[schema(example = "5f0c3a9d1e2b4f60:1000042")]
    next: String,
}

/// Events since a position, as soon as there is one: for clients that can hold neither socket nor stream. Without
/// `since` the answer comes at once, and says where to begin.
#[utoipa::path(get, path = "/api/v1/events/poll", tag = "events", security(("bearer" = [])),
    params(("topics" = Option<String>, Query, description = "Separated by commas."),
        ("since" = Option<String>, Query, description = "`next` of the last answer."),
        ("timeout" = Option<u64>, Query, description = "Seconds to wait, at most 55.")),
    responses((status = 200, description = "What there is.", body = Polled),
        (status = 404, description = "No such topic, or not for this account.")))]
async fn poll_events(
    State(events): State<Events>,
    State(verifier): State<Verifier>,
    request: Request,
) -> Result<Json<Polled>, ApiError> {
    let (parts, _) = request.into_parts();
    let query = Query::of(&parts.uri)?;
    let since = query.position("since")?;
    let wait = match query.value("timeout").map(str::parse::<u64>) {
        None => POLL,
        Some(Ok(seconds)) if seconds <= MAX_POLL => Duration::from_secs(seconds),
        Some(_) => {
            let message = "timeout is a number of seconds from 0 to 55";
            return Err(Problem::new(Code::InvalidRequest).message(message).into());
        }
    };
    let mut listener = open(&events, &verifier, &parts, &query, since.as_ref()).await?;
    let mut found: Vec<Arc<Event>> = listener.take_ready(MAX_EVENTS);
    if found.is_empty() && listener.recovered() == Some(true) {
        let heard = tokio::time::timeout(wait, async {
            loop {
                match listener.next().await {
                    Heard::Event(event) => return Some(event),
                    Heard::Quiet => {}
                    Heard::End(_) => return None,
                }
            }
        });
        found.extend(heard.await.ok().flatten());
        let more = listener.take_ready(MAX_EVENTS);
        found.extend(more);
    }
    let Position { epoch, offset } = listener.position();
    let events = found.iter().filter_map(|event| serde_json::from_str(&event.json()).ok()).collect();
    Ok(Json(Polled { events, recovered: listener.recovered(), next: format!("{epoch}:{offset}") }))
}
