//! API keys on the control socket: operators make those of workers, and see and revoke everybody's.

use axum::Json;
use axum::Router;
use axum::extract::Path;
use axum::extract::State;
use axum::response::Response;
use axum::routing::delete;
use axum::routing::get;
use serde::Serialize;
use serde_json::Value;
use serde_json::json as value;
use time::OffsetDateTime;

use crate::api::AppState;
use crate::api::api_keys::ApiKeyView;
use crate::api::api_keys::CreateApiKey;
use crate::api::api_keys::NewApiKeyView;
use crate::api::api_keys::created;
use crate::api::error::ApiError;
use crate::api::json;
use crate::audit::Actor;
use crate::audit::Audit;
use crate::audit::Entry;
use crate::audit::action;
use crate::auth::api_keys::ApiKeys;
use crate::auth::api_keys::Maker;
use crate::ids::UserId;
use crate::store::api_keys::ApiKey;
use crate::store::api_keys::KeyOwner;

/// The routes, for the operators' router.
pub(super) fn routes() -> Router<AppState> {
    Router::new().route("/api-keys", get(list).post(create)).route("/api-keys/{id}", delete(revoke))
}

/// A key and whose it is.
#[derive(Serialize)]
struct OwnedKey {
    /// None: the fleet's.
    owner: Option<UserId>,
    #[serde(flatten)]
    key: ApiKeyView,
}

async fn list(State(keys): State<ApiKeys>) -> Json<Value> {
    let now = OffsetDateTime::now_utc();
    let owner = |owner: &KeyOwner| match owner {
        KeyOwner::Fleet => None,
        KeyOwner::User(user) => Some(user.clone()),
    };
    let all = keys.all();
    let shown = |key: &ApiKey| OwnedKey { owner: owner(&key.owner), key: ApiKeyView::of(key, keys.is_void(key), now) };
    let items: Vec<_> = all.iter().map(|key| shown(key)).collect();
    Json(value!({ "items": items }))
}

fn by_operator(action: &'static str) -> Entry {
    Entry::new(Actor::Operator, action)
}

async fn create(
    State(keys): State<ApiKeys>,
    State(audit): State<Audit>,
    json::Json(body): json::Json<CreateApiKey>,
) -> Result<Response, ApiError> {
    let now = OffsetDateTime::now_utc();
    let made = keys.prepare(Maker::Operator, body.into_wanted(), now).await?;
    audit.record(created(&made, by_operator)).await?;
    keys.keep(&made).await?;
    tracing::info!(key.id = made.record.id.shown(), scopes = ?made.record.scopes, "an operator made an API key");
    Ok(NewApiKeyView::reply(made, now))
}

async fn revoke(
    State(keys): State<ApiKeys>,
    State(audit): State<Audit>,
    Path(id): Path<String>,
) -> Result<Json<Value>, ApiError> {
    let found = keys.named(None, &id)?;
    if found.revoked_at.is_none() {
        audit.record(by_operator(action::API_KEY_REVOKED).subject(found.id.shown())).await?;
        keys.revoke(&found, OffsetDateTime::now_utc()).await?;
    }
    tracing::info!(key.id = id, "an operator revoked an API key");
    Ok(Json(value!({ "id": id, "state": "revoked" })))
}
