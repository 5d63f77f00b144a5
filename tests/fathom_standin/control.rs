//! The control API: what a test, or a demonstration, asks of the stand-in itself.
//!
//! | call | what |
//! |---|---|
//! | `GET /_control/calls`, `DELETE` | counts by method and path, and from zero |
//! | `POST /_control/faults`, `DELETE` | a call that fails (see `faults`), and none any more |
//! | `GET /_control/meetings?key=` | the whole meetings of a key, newest first |
//! | `POST /_control/meetings` `{key, meeting?, fire?}` | a meeting that just ended; `fire` calls the webhooks |
//! | `POST /_control/keys` `{key, meetings}`, `DELETE /_control/keys/{key}` | a further key; a revoked one |
//! | `GET /_control/settings`, `PATCH` | limits, times and sizes |
//! | `GET /_control/webhooks`, `GET /_control/deliveries` | what is registered, and what became of deliveries |
//! | `POST /_control/webhooks/fire` `{key, recording_id, odd?}` | deliveries of one meeting to the key's hooks |
//! | `POST /_control/oauth/tokens` `{key}`, `POST /_control/oauth/void` `{access, refresh}` | tokens; void ones |

use std::collections::HashMap;
use std::sync::Arc;

use axum::Json;
use axum::Router;
use axum::extract::Path;
use axum::extract::Query;
use axum::extract::State;
use axum::response::IntoResponse;
use axum::response::Response;
use axum::routing::delete;
use axum::routing::get;
use axum::routing::post;
use hyper::StatusCode;
use serde::Deserialize;
use serde_json::Value;
use serde_json::json;

use crate::faults::Fault;
use crate::hooks;
use crate::hooks::Odd;
use crate::oauth;
use crate::world::World;

type Shared = State<Arc<World>>;

pub(crate) fn router() -> Router<Arc<World>> {
    Router::new()
        .route("/calls", get(calls).delete(forget_calls))
        .route("/faults", post(add_fault).delete(forget_faults))
        .route("/meetings", get(meetings).post(add_meeting))
        .route("/keys", post(add_key))
        .route("/keys/{key}", delete(revoke_key))
        .route("/settings", get(settings).patch(change_settings))
        .route("/webhooks", get(webhooks))
        .route("/webhooks/fire", post(fire))
        .route("/deliveries", get(deliveries))
        .route("/oauth/tokens", post(tokens))
        .route("/oauth/void", post(void))
}

async fn calls(State(world): Shared) -> Json<Value> {
    let state = world.state();
    let total: u64 = state.calls.iter().filter(|(name, _)| !name.contains("media")).map(|(_, count)| count).sum();
    Json(json!({ "total": total, "by_path": state.calls }))
}

async fn forget_calls(State(world): Shared) -> StatusCode {
    world.state().calls.clear();
    StatusCode::NO_CONTENT
}

async fn add_fault(State(world): Shared, Json(fault): Json<Fault>) -> StatusCode {
    world.state().faults.push(fault);
    StatusCode::NO_CONTENT
}

async fn forget_faults(State(world): Shared) -> StatusCode {
    world.state().faults.clear();
    StatusCode::NO_CONTENT
}

async fn meetings(State(world): Shared, Query(query): Query<HashMap<String, String>>) -> Response {
    let state = world.state();
    let key = query.get("key").or(state.accounts.keys().next());
    match key.and_then(|key| state.accounts.get(key)) {
        Some(account) => {
            let values: Vec<&Value> = account.meetings.iter().map(|meeting| &meeting.made.value).collect();
            Json(json!({ "items": values })).into_response()
        }
        None => StatusCode::NOT_FOUND.into_response(),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewMeeting {
    key: String,
    /// Fields instead of made-up ones; `_limited: true` and `_media: false` make its download be refused.
    #[serde(default)]
    meeting: Value,
    #[serde(default)]
    fire: bool,
}

async fn add_meeting(State(world): Shared, Json(new): Json<NewMeeting>) -> Response {
    let added = world.state().add_meeting(&new.key, &new.meeting).map(|meeting| meeting.made.value.clone());
    let Some(value) = added else { return StatusCode::NOT_FOUND.into_response() };
    let sent = if new.fire { fire_all(&world, &new.key, &value, None) } else { Vec::new() };
    (StatusCode::CREATED, Json(json!({ "meeting": value, "webhook_ids": sent }))).into_response()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewKey {
    key: String,
    meetings: usize,
}

async fn add_key(State(world): Shared, Json(new): Json<NewKey>) -> StatusCode {
    world.add_key(&new.key, new.meetings);
    StatusCode::CREATED
}

async fn revoke_key(State(world): Shared, Path(key): Path<String>) -> StatusCode {
    match world.state().accounts.remove(&key) {
        Some(_) => StatusCode::NO_CONTENT,
        None => StatusCode::NOT_FOUND,
    }
}

async fn settings(State(world): Shared) -> Response {
    Json(&world.state().settings).into_response()
}

async fn change_settings(State(world): Shared, Json(changes): Json<Value>) -> Response {
    let mut state = world.state();
    let mut whole = serde_json::to_value(&state.settings).unwrap_or_default();
    for (field, value) in changes.as_object().into_iter().flatten() {
        whole[field] = value.clone();
    }
    match serde_json::from_value(whole) {
        Ok(settings) => {
            state.settings = settings;
            Json(&state.settings).into_response()
        }
        Err(error) => (StatusCode::BAD_REQUEST, error.to_string()).into_response(),
    }
}

async fn webhooks(State(world): Shared) -> Response {
    Json(json!({ "items": world.state().hooks })).into_response()
}

async fn deliveries(State(world): Shared) -> Response {
    Json(json!({ "items": world.state().deliveries })).into_response()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Fire {
    key: String,
    recording_id: u64,
    #[serde(default)]
    odd: Odd,
}

async fn fire(State(world): Shared, Json(fire): Json<Fire>) -> Response {
    let value = world.state().meeting(&fire.key, fire.recording_id).map(|meeting| meeting.made.value.clone());
    match value {
        Some(value) => {
            let sent = fire_all(&world, &fire.key, &value, Some(&fire.odd));
            Json(json!({ "webhook_ids": sent })).into_response()
        }
        None => StatusCode::NOT_FOUND.into_response(),
    }
}

fn fire_all(world: &Arc<World>, key: &str, meeting: &Value, odd: Option<&Odd>) -> Vec<String> {
    let wanted: Vec<hooks::Hook> = world.state().hooks.iter().filter(|hook| hook.key == key).cloned().collect();
    wanted.iter().map(|hook| hooks::send(world, key, &hook.url, &hooks::content(hook, meeting), odd.cloned())).collect()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Grantee {
    key: String,
}

async fn tokens(State(world): Shared, Json(grantee): Json<Grantee>) -> Json<Value> {
    Json(oauth::issue(&world, &grantee.key))
}

#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
#[derive(Default)]
struct Void {
    access: bool,
    refresh: bool,
}

async fn void(State(world): Shared, Json(void): Json<Void>) -> StatusCode {
    let mut state = world.state();
    if void.access {
        state.grants.void_access();
    }
    if void.refresh {
        state.grants.void_refresh();
    }
    StatusCode::NO_CONTENT
}
