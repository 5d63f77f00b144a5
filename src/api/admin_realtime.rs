//! What operators do with the sockets: publish, disconnect, look who is there and what was said.

use std::time::Duration;

use axum::Json;
use axum::extract::Request;
use axum::extract::State;
use serde::Deserialize;
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::api::AppState;
use crate::api::error::ApiError;
use crate::api::extractors::Admin;
use crate::api::json;
use crate::api::socket_auth::Query;
use crate::error::Code;
use crate::error::Problem;
use crate::events::Events;
use crate::events::Message;
use crate::events::Topic;
use crate::events::close::CloseCode;
use crate::ids::UserId;

/// How long an event may take to be on disk.
const TIMEOUT: Duration = Duration::from_secs(20);

/// The routes, relative to `/api/v1`.
pub fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(publish_event))
        .routes(routes!(disconnect_sockets))
        .routes(routes!(unsubscribe_sockets))
        .routes(routes!(list_connections))
        .routes(routes!(event_history))
}

fn topic(name: &str) -> Result<Topic, Problem> {
    let message = "a topic is `system`, `user:{id}`, `queue:{user}` or `instance:{id}`";
    Topic::parse_full(name).ok_or_else(|| Problem::new(Code::InvalidRequest).message(message))
}

/// An event to publish.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Publish {
    /// `system`, `user:{id}`, `queue:{user}` or `instance:{id}`.
    #[schema(example = "system")]
    topic: String,
    /// What happened.
    #[schema(example = "Notice")]
    event: String,
    /// The particulars.
    #[schema(value_type = Object)]
    data: Value,
}

/// Where an event is in the log.
#[derive(Serialize, ToSchema)]
struct Published {
    epoch: String,
    offset: u64,
}

/// Publishes an event. When the answer comes it is on disk, and on its way to whoever listens.
#[utoipa::path(post, path = "/admin/realtime/publish", tag = "events", security(("bearer" = [])),
    request_body = Publish, responses((status = 200, description = "Published.", body = Published)))]
async fn publish_event(
    State(events): State<Events>,
    Admin(admin): Admin,
    json::Json(body): json::Json<Publish>,
) -> Result<Json<Published>, ApiError> {
    let topic = topic(&body.topic)?;
    let message = Message::new(body.event, body.data).by(admin.user.to_string());
    let logged = tokio::time::timeout(TIMEOUT, events.publish_logged(topic, message)).await;
    let position = logged.map_err(|_| Problem::new(Code::GatewayTimeout))?.map_err(Problem::from)?;
    Ok(Json(Published { epoch: position.epoch, offset: position.offset }))
}

/// Whom to disconnect.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Disconnect {
    /// All sockets of this user.
    #[serde(default)]
    user_id: Option<String>,
    /// This socket.
    #[serde(default)]
    connection_id: Option<u64>,
    /// Whether the client should connect again (close code 3011) or not (3503).
    #[serde(default)]
    reconnect: bool,
}

/// What was done.
#[derive(Serialize, ToSchema)]
struct Disconnected {
    /// How many sockets.
    connections: usize,
}

/// The user that sockets are named by; one way to name them is needed.
fn whose(user: Option<&str>, connection: Option<u64>) -> Result<Option<UserId>, Problem> {
    let bad = |message: &'static str| Problem::new(Code::InvalidRequest).message(message);
    let user = user.map(UserId::parse).transpose().map_err(|_| bad("user_id is not an id"))?;
    if user.is_none() && connection.is_none() {
        return Err(bad("name a user_id or a connection_id"));
    }
    Ok(user)
}

/// Closes sockets within a second.
#[utoipa::path(post, path = "/admin/realtime/disconnect", tag = "events", security(("bearer" = [])),
    request_body = Disconnect, responses((status = 200, description = "They are being closed.", body = Disconnected)))]
async fn disconnect_sockets(
    State(events): State<Events>,
    _admin: Admin,
    json::Json(body): json::Json<Disconnect>,
) -> Result<Json<Disconnected>, ApiError> {
    let user = whose(body.user_id.as_deref(), body.connection_id)?;
    let code = if body.reconnect { CloseCode::Reconnect } else { CloseCode::Forced };
    Ok(Json(Disconnected { connections: events.disconnect(user.as_ref(), body.connection_id, code) }))
}

/// Which subscriptions to end.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Unsubscribe {
    /// `system`, `user:{id}`, `queue:{user}` or `instance:{id}`.
    #[schema(example = "system")]
    topic: String,
    /// Of all sockets of this user.
    #[serde(default)]
    user_id: Option<String>,
    /// Of this socket.
    #[serde(default)]
    connection_id: Option<u64>,
}

/// Ends subscriptions to a topic within a second. A client that speaks `cp.v1` is told so with `Unsubscribed`; its right is
/// what it was, so it may subscribe again. Streams and polls are not sockets.
#[utoipa::path(post, path = "/admin/realtime/unsubscribe", tag = "events", security(("bearer" = [])),
    request_body = Unsubscribe,
    responses((status = 200, description = "How many sockets are looked at.", body = Disconnected)))]
async fn unsubscribe_sockets(
    State(events): State<Events>,
    _admin: Admin,
    json::Json(body): json::Json<Unsubscribe>,
) -> Result<Json<Disconnected>, ApiError> {
    let topic = topic(&body.topic)?;
    let user = whose(body.user_id.as_deref(), body.connection_id)?;
    Ok(Json(Disconnected { connections: events.unsubscribe(user.as_ref(), body.connection_id, &topic) }))
}

/// A socket or stream.
#[derive(Serialize, ToSchema)]
struct ConnectionView {
    connection_id: u64,
    path: &'static str,
    /// Absent before it said who it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    user_id: Option<String>,
    topics: usize,
    age_seconds: u64,
}

/// The sockets and streams.
#[derive(Serialize, ToSchema)]
struct ConnectionList {
    /// The oldest first; at most 1000.
    items: Vec<ConnectionView>,
    /// How many there are.
    total: usize,
}

/// Who is connected.
#[utoipa::path(get, path = "/admin/realtime/connections", tag = "events", security(("bearer" = [])),
    responses((status = 200, description = "The sockets and streams.", body = ConnectionList)))]
async fn list_connections(State(events): State<Events>, _admin: Admin) -> Json<ConnectionList> {
    let all = events.connections();
    let total = all.len();
    let view = all.into_iter().take(1_000).map(|one| ConnectionView {
        connection_id: one.id,
        path: one.path,
        user_id: one.user.map(|user| user.to_string()),
        topics: one.topics,
        age_seconds: one.age.as_secs(),
    });
    Json(ConnectionList { items: view.collect(), total })
}

/// What was said.
#[derive(Serialize, ToSchema)]
struct History {
    /// The events, oldest first.
    #[schema(value_type = Vec<Object>)]
    items: Vec<Value>,
    epoch: String,
    /// The offset of the newest.
    offset: u64,
}

/// The newest events of a topic.
#[utoipa::path(get, path = "/admin/realtime/history", tag = "events", security(("bearer" = [])),
    params(("topic" = String, Query, description = "`system`, `user:{id}`, `queue:{user}` or `instance:{id}`."),
        ("limit" = Option<usize>, Query, description = "1 to 256; 50 unless given.")),
    responses((status = 200, description = "The events.", body = History)))]
async fn event_history(
    State(events): State<Events>,
    _admin: Admin,
    request: Request,
) -> Result<Json<History>, ApiError> {
    let query = Query::of(request.uri())?;
    let topic = topic(query.value("topic").unwrap_or_default())?;
    let limit = query.value("limit").map_or(Ok(50), str::parse::<usize>).ok().filter(|limit| (1..=256).contains(limit));
    let limit = limit.ok_or_else(|| Problem::new(Code::InvalidRequest).message("limit is a number from 1 to 256"))?;
    let (events, position) = events.history(&topic, limit).await.map_err(Problem::from)?;
    let items = events.iter().filter_map(|event| serde_json::from_str(&event.json()).ok()).collect();
    Ok(Json(History { items, epoch: position.epoch, offset: position.offset }))
}
