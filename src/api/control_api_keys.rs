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
use crate::api::error::ApiError;
use crate::api::json;
use crate::auth::api_keys::ApiKeys;
use crate::ids::UserId;
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
    let items: Vec<_> =
        all.iter().map(|key| OwnedKey { owner: owner(&key.owner), key: ApiKeyView::of(key, now) }).collect();
    Json(value!({ "items": items }))
}

async fn create(State(keys): State<ApiKeys>, json::Json(body): json::Json<CreateApiKey>) -> Result<Response, ApiError> {
    let now = OffsetDateTime::now_utc();
    let made = keys.create(KeyOwner::Fleet, body.into_wanted(), now).await?;
    tracing::info!(key.id = made.record.id.shown(), scopes = ?made.record.scopes, "an operator made an API key");
    Ok(NewApiKeyView::reply(made, now))
}

async fn revoke(State(keys): State<ApiKeys>, Path(id): Path<String>) -> Result<Json<Value>, ApiError> {
    keys.revoke_any(&id, OffsetDateTime::now_utc()).await?;
    tracing::info!(key.id = id, "an operator revoked an API key");
    Ok(Json(value!({ "id": id, "state": "revoked" })))
}
