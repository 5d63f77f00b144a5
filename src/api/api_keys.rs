//! A user's own API keys: credentials for programs that act for them, as far as the keys' scopes reach. A key is shown
//! once, when it is made; making one takes a sign-in of the last minutes, ending one takes a sign-in, and a key is none.
//! Both are in the audit log before they are done.

use axum::Json;
use axum::extract::Path;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header;
use axum::response::IntoResponse;
use axum::response::Response;
use serde::Deserialize;
use serde::Serialize;
use time::OffsetDateTime;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::api::AppState;
use crate::api::error::ApiError;
use crate::api::extractors::AuthUser;
use crate::api::extractors::ClientInfo;
use crate::api::json;
use crate::api::vault::signed_in_at;
use crate::audit::Actor;
use crate::audit::Audit;
use crate::audit::Entry;
use crate::audit::action;
use crate::auth::api_keys::ApiKeys;
use crate::auth::api_keys::Made;
use crate::auth::api_keys::Maker;
use crate::auth::api_keys::NewApiKey;
use crate::ids::TenantId;
use crate::store::api_keys::ApiKey;
use crate::store::api_keys::KeyOwner;
use crate::store::sessions::Sessions;
use crate::vault::Vault;

/// The routes, relative to where they are mounted.
pub fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(list_api_keys, create_api_key)).routes(routes!(revoke_api_key))
}

/// A key to be made.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct CreateApiKey {
    /// What its owner calls it, 1 to 100 characters.
    #[schema(example = "laptop")]
    name: String,
    /// What it may do: `jobs` (everything with the owner's queue and jobs) or `jobs:read` (see them). Operators give
    /// `worker:<kind>` from the command line.
    #[schema(example = json!(["jobs"]))]
    scopes: Vec<String>,
    /// When it ends by itself, within ten years; never unless given.
    #[serde(default, with = "time::serde::rfc3339::option")]
    #[schema(value_type = Option<String>, format = DateTime)]
    expires_at: Option<OffsetDateTime>,
}

impl CreateApiKey {
    pub(super) fn into_wanted(self) -> NewApiKey {
        NewApiKey { name: self.name, scopes: self.scopes, expires_at: self.expires_at }
    }
}

/// A key, without the key itself.
#[derive(Serialize, ToSchema)]
#[schema(as = ApiKey)]
pub(super) struct ApiKeyView {
    /// Names the key; opens nothing.
    #[schema(example = "9f86d081884c7d65")]
    id: String,
    name: String,
    scopes: Vec<String>,
    /// How the key begins and ends.
    #[schema(example = "pfk_…x7Qa")]
    hint: String,
    /// `valid`, `expired` or `revoked` (also by what ends all sessions of its owner).
    #[schema(example = "valid")]
    state: &'static str,
    #[serde(with = "time::serde::rfc3339")]
    #[schema(value_type = String, format = DateTime)]
    created_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339::option")]
    #[schema(value_type = Option<String>, format = DateTime)]
    expires_at: Option<OffsetDateTime>,
    /// Some minutes behind at most.
    #[serde(with = "time::serde::rfc3339::option")]
    #[schema(value_type = Option<String>, format = DateTime)]
    last_used_at: Option<OffsetDateTime>,
}

impl ApiKeyView {
    pub(super) fn of(key: &ApiKey, is_void: bool, now: OffsetDateTime) -> Self {
        let state = match (key.revoked_at.is_some() || is_void, key.is_good(now)) {
            (true, _) => "revoked",
            (false, true) => "valid",
            (false, false) => "expired",
        };
        Self {
            id: key.id.shown().to_owned(),
            name: key.name.clone(),
            scopes: key.scopes.iter().map(|scope| (**scope).to_owned()).collect(),
            hint: format!("pfk_…{}", key.hint),
            state,
            created_at: key.created_at,
            expires_at: key.expires_at,
            last_used_at: key.last_used_at,
        }
    }
}

/// A fresh key.
#[derive(Serialize, ToSchema)]
#[schema(as = NewApiKey)]
pub(super) struct NewApiKeyView {
    /// The key itself: send it as `Authorization: Bearer <key>`. Shown here and never again.
    #[schema(example = "pfk_…")]
    key: String,
    api_key: ApiKeyView,
}

impl NewApiKeyView {
    /// The answer that shows it, which nobody on the way may keep.
    pub(super) fn reply(made: Made, now: OffsetDateTime) -> Response {
        let body = Self { api_key: ApiKeyView::of(&made.record, false, now), key: made.key };
        (StatusCode::CREATED, [(header::CACHE_CONTROL, "no-store")], Json(body)).into_response()
    }
}

/// A user's keys.
#[derive(Serialize, ToSchema)]
struct ApiKeyList {
    items: Vec<ApiKeyView>,
}

/// Entries about what a user does.
fn by(user: &AuthUser, client: &ClientInfo) -> impl Fn(&'static str) -> Entry {
    let user = &user.principal.user;
    move |action| {
        let entry = Entry::new(Actor::User(user.clone()), action).tenant(&TenantId::personal(user));
        entry.ip(Some(client.0.ip))
    }
}

/// What is written down of a fresh key.
pub(super) fn created(made: &Made, entry: impl Fn(&'static str) -> Entry) -> Entry {
    let detail = serde_json::json!({ "scopes": made.record.scopes });
    entry(action::API_KEY_CREATED).subject(made.record.id.shown()).detail(detail)
}

/// Lists the caller's API keys, newest first, also those that ended.
#[utoipa::path(get, path = "/settings/api-keys", tag = "api keys", security(("bearer" = [])),
    responses((status = 200, description = "The keys.", body = ApiKeyList)))]
async fn list_api_keys(State(keys): State<ApiKeys>, user: AuthUser) -> Json<ApiKeyList> {
    let now = OffsetDateTime::now_utc();
    let found = keys.list(&KeyOwner::User(user.principal.user));
    Json(ApiKeyList { items: found.iter().map(|key| ApiKeyView::of(key, keys.is_void(key), now)).collect() })
}

/// Makes an API key that acts for the caller within its scopes. Needs a sign-in of the last minutes, as showing a secret
/// does. An account has at most 100 that count. A new password and `logout-everywhere` end them all.
#[utoipa::path(post, path = "/settings/api-keys", tag = "api keys", security(("bearer" = [])),
    request_body = CreateApiKey, responses((status = 201, description = "The key, shown once.", body = NewApiKeyView)))]
async fn create_api_key(
    State(keys): State<ApiKeys>,
    State(audit): State<Audit>,
    State(vault): State<Vault>,
    State(sessions): State<Sessions>,
    user: AuthUser,
    client: ClientInfo,
    json::Json(body): json::Json<CreateApiKey>,
) -> Result<Response, ApiError> {
    let now = OffsetDateTime::now_utc();
    vault.check_sign_in(signed_in_at(&sessions, &user.principal), now)?;
    let made = keys.prepare(Maker::User(&user.principal), body.into_wanted(), now).await?;
    audit.record(created(&made, by(&user, &client))).await?;
    keys.keep(&made).await?;
    Ok(NewApiKeyView::reply(made, now))
}

/// Takes an API key back: it counts no more from now on. The second time changes nothing.
#[utoipa::path(delete, path = "/settings/api-keys/{id}", tag = "api keys", security(("bearer" = [])),
    params(("id" = String, Path, description = "The key's id.")),
    responses((status = 204, description = "The key counts no more.")))]
async fn revoke_api_key(
    State(keys): State<ApiKeys>,
    State(audit): State<Audit>,
    user: AuthUser,
    client: ClientInfo,
    Path(id): Path<String>,
) -> Result<StatusCode, ApiError> {
    let found = keys.named(Some(&KeyOwner::User(user.principal.user.clone())), &id)?;
    if found.revoked_at.is_none() {
        audit.record(by(&user, &client)(action::API_KEY_REVOKED).subject(found.id.shown())).await?;
        keys.revoke(&found, OffsetDateTime::now_utc()).await?;
    }
    Ok(StatusCode::NO_CONTENT)
}
