//! Webhooks: made, deleted, and called with signed deliveries that are repeated until somebody says 2xx.

use std::sync::Arc;
use std::time::Duration;

use hyper::StatusCode;
use pocketfleet::vault::Secret;
use pocketfleet::webhooks::standard::Key;
use serde::Serialize;
use serde_json::Value;
use serde_json::json;
use time::OffsetDateTime;
use tokio::time::Instant;

use crate::api::Answer;
use crate::api::Call;
use crate::api::Refusal;
use crate::content::rfc3339;
use crate::world::World;

/// A webhook of a key.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Hook {
    pub(crate) key: String,
    pub(crate) id: String,
    pub(crate) url: String,
    pub(crate) secret: String,
    includes: [bool; 4],
}

/// One attempt to deliver.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Delivery {
    webhook_id: String,
    attempt: usize,
    /// What was answered; none when nobody did.
    status: Option<u16>,
}

const INCLUDES: [&str; 4] = ["include_transcript", "include_summary", "include_action_items", "include_crm_matches"];
const PARTS: [&str; 4] = ["transcript", "default_summary", "action_items", "crm_matches"];
const TRIGGERS: [&str; 4] =
    ["my_recordings", "shared_external_recordings", "my_shared_with_team_recordings", "shared_team_recordings"];

/// `POST /webhooks`.
pub(crate) fn create(world: &World, call: &Call) -> Answer {
    let refuse = |why| Err(Refusal(StatusCode::BAD_REQUEST, why));
    let body: Value = serde_json::from_slice(&call.body).map_err(|_| Refusal(StatusCode::BAD_REQUEST, "bad JSON"))?;
    let Some(object) = body.as_object() else { return refuse("an object is needed") };
    let is_known = |field: &str| ["destination_url", "triggered_for"].contains(&field) || INCLUDES.contains(&field);
    if object.keys().any(|field| !is_known(field)) {
        return refuse("unknown property");
    }
    let url = object.get("destination_url").and_then(Value::as_str).unwrap_or_default();
    if !url.starts_with("https://") && !url.starts_with("http://127.0.0.1") {
        return refuse("bad destination_url");
    }
    let triggers = object.get("triggered_for").and_then(Value::as_array);
    let is_trigger = |value: &Value| value.as_str().is_some_and(|text| TRIGGERS.contains(&text));
    if !triggers.is_some_and(|all| !all.is_empty() && all.iter().all(is_trigger)) {
        return refuse("bad triggered_for");
    }
    if INCLUDES.iter().any(|field| object.get(*field).is_some_and(|value| !value.is_boolean())) {
        return refuse("bad include");
    }
    let includes = INCLUDES.map(|field| object.get(field) == Some(&Value::Bool(true)));
    if !includes.contains(&true) {
        return refuse("nothing is included");
    }
    let mut state = world.state();
    let serial = state.serial();
    // 24 bytes in base64.
    let secret = format!("whsec_standin{serial:010}{:015}", serial.wrapping_mul(7_919));
    let hook = Hook { key: call.key.clone(), id: format!("hook{serial:012}"), url: url.to_owned(), secret, includes };
    let mut value = json!({ "id": hook.id, "url": url, "secret": hook.secret,
        "created_at": rfc3339(OffsetDateTime::now_utc()), "triggered_for": triggers });
    for (field, is_on) in INCLUDES.into_iter().zip(includes) {
        value[field] = is_on.into();
    }
    state.hooks.push(hook);
    Ok((StatusCode::CREATED, value))
}

/// `DELETE /webhooks/{id}`.
pub(crate) fn delete(world: &World, call: &Call, id: &str) -> Answer {
    let mut state = world.state();
    let before = state.hooks.len();
    state.hooks.retain(|hook| hook.key != call.key || hook.id != id);
    if state.hooks.len() == before {
        return Err(Refusal(StatusCode::NOT_FOUND, "no such webhook"));
    }
    Ok((StatusCode::NO_CONTENT, Value::Null))
}

/// The body of a delivery: the meeting itself, with what the hook asked for.
pub(crate) fn content(hook: &Hook, meeting: &Value) -> Value {
    let mut value = meeting.clone();
    for (part, is_on) in PARTS.into_iter().zip(hook.includes) {
        if !is_on {
            value[part] = Value::Null;
        }
    }
    if let Some(object) = value.as_object_mut() {
        object.remove("highlights");
    }
    value
}

/// How a delivery differs from a proper one.
#[derive(Debug, Clone, Default, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Odd {
    /// Instead of a fresh id.
    pub(crate) webhook_id: Option<String>,
    /// Seconds that its time is away from now.
    pub(crate) shift_seconds: i64,
    /// Signed with another secret.
    pub(crate) bad_signature: bool,
    /// Under the older names of the headers.
    pub(crate) svix: bool,
    /// Instead of the meeting.
    pub(crate) body: Option<Value>,
}

/// A signed POST, repeated until it is taken; returns its id at once.
pub(crate) fn send(world: &Arc<World>, key: &str, url: &str, body: &Value, odd: Option<Odd>) -> String {
    let odd = odd.unwrap_or_default();
    let (id, secret, pauses) = {
        let mut state = world.state();
        let serial = state.serial();
        let hook = state.hooks.iter().find(|hook| hook.key == key && hook.url == url);
        let secret = hook.map(|hook| hook.secret.clone());
        (
            odd.webhook_id.clone().unwrap_or_else(|| format!("msg_standin{serial:08}")),
            secret,
            state.settings.webhook_retries_ms.clone(),
        )
    };
    let secret = match secret {
        Some(secret) if !odd.bad_signature => secret,
        // Fathom signs what it posts to a destination with the account's secret.
        _ => "whsec_c3RhbmRpbi1zZWNyZXQtb2YtdGhlLWFjY291bnQh".to_owned(),
    };
    let bytes = odd.body.as_ref().unwrap_or(body).to_string();
    let (world, url, sent) = (Arc::clone(world), url.to_owned(), id.clone());
    tokio::spawn(async move {
        let Ok(signer) = Key::read(&Secret::new(secret)) else { return };
        for (attempt, pause) in std::iter::once(0).chain(pauses).enumerate() {
            tokio::time::sleep_until(Instant::now() + Duration::from_millis(pause)).await;
            let at = OffsetDateTime::now_utc() + time::Duration::seconds(odd.shift_seconds);
            let prefix = if odd.svix { "svix" } else { "webhook" };
            let answer = world
                .http
                .post(&url)
                .header("content-type", "application/json")
                .header(format!("{prefix}-id"), &sent)
                .header(format!("{prefix}-timestamp"), at.unix_timestamp().to_string())
                .header(format!("{prefix}-signature"), signer.sign(&sent, at, bytes.as_bytes()))
                .body(bytes.clone())
                .send()
                .await;
            let status = answer.ok().map(|answer| answer.status());
            let delivery =
                Delivery { webhook_id: sent.clone(), attempt: attempt + 1, status: status.map(|s| s.as_u16()) };
            world.state().deliveries.push(delivery);
            if status.is_some_and(|status| status.is_success()) {
                return;
            }
        }
    });
    id
}
