//! Sign-in at the stand-in: codes, and tokens of which a refresh token is good for one use.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use axum::Json;
use axum::extract::Query;
use axum::extract::State;
use axum::response::IntoResponse;
use axum::response::Response;
use hyper::StatusCode;
use hyper::header;
use serde_json::Value;
use serde_json::json;

use crate::world::World;

/// Who was granted what. A grant names the key whose meetings it shows.
#[derive(Default)]
pub(crate) struct Grants {
    codes: HashMap<String, String>,
    refresh: HashMap<String, String>,
    access: HashMap<String, (String, Instant)>,
}

impl Grants {
    /// The key that an access token stands for.
    pub(crate) fn key(&self, token: &str, now: Instant) -> Option<&str> {
        self.access.get(token).filter(|(_, until)| *until > now).map(|(key, _)| key.as_str())
    }

    /// Voids every access token; refresh tokens stay.
    pub(crate) fn void_access(&mut self) {
        self.access.clear();
    }

    /// Voids every refresh token.
    pub(crate) fn void_refresh(&mut self) {
        self.refresh.clear();
    }
}

/// Tokens for a key.
pub(crate) fn issue(world: &World, key: &str) -> Value {
    let mut state = world.state();
    let serial = state.serial();
    let seconds = state.settings.token_seconds;
    let (access, refresh) = (format!("at_{serial}_{key}"), format!("rt_{serial}_{key}"));
    let until = Instant::now() + Duration::from_secs(seconds);
    state.grants.access.insert(access.clone(), (key.to_owned(), until));
    state.grants.refresh.insert(refresh.clone(), key.to_owned());
    json!({ "access_token": access, "refresh_token": refresh, "token_type": "Bearer", "expires_in": seconds,
        "scope": "public_api" })
}

/// `GET /external/v1/oauth2/authorize`: everybody agrees at once, in the name of the first key (or of `login_hint`).
pub(crate) async fn authorize(
    State(world): State<Arc<World>>,
    Query(asked): Query<HashMap<String, String>>,
) -> Response {
    let text = |name: &str| asked.get(name).map(String::as_str).unwrap_or_default();
    let mut state = world.state();
    let is_right = text("client_id") == state.settings.client_id
        && text("response_type") == "code"
        && text("scope") == "public_api";
    let key = asked.get("login_hint").or(state.accounts.keys().next()).cloned();
    let (true, Some(key), Ok(mut back)) = (is_right, key, reqwest::Url::parse(text("redirect_uri"))) else {
        return StatusCode::BAD_REQUEST.into_response();
    };
    let code = format!("code_{}", state.serial());
    state.grants.codes.insert(code.clone(), key);
    back.query_pairs_mut().append_pair("code", &code).append_pair("state", text("state"));
    (StatusCode::FOUND, [(header::LOCATION, back.to_string())]).into_response()
}

/// `POST /external/v1/oauth2/token`.
pub(crate) async fn token(State(world): State<Arc<World>>, body: String) -> Response {
    let form = pairs(&body);
    let text = |name: &str| form.get(name).map(String::as_str).unwrap_or_default();
    let key = {
        let mut state = world.state();
        *state.calls.entry("POST /oauth2/token".to_owned()).or_default() += 1;
        if text("client_id") != state.settings.client_id || text("client_secret") != state.settings.client_secret {
            return StatusCode::UNAUTHORIZED.into_response();
        }
        match text("grant_type") {
            "authorization_code" => state.grants.codes.remove(text("code")),
            "refresh_token" => state.grants.refresh.remove(text("refresh_token")),
            _ => None,
        }
    };
    match key {
        Some(key) => Json(issue(&world, &key)).into_response(),
        None => (StatusCode::BAD_REQUEST, Json(json!({ "error": "invalid_grant" }))).into_response(),
    }
}

/// A form, or a query.
fn pairs(text: &str) -> HashMap<String, String> {
    let url = reqwest::Url::parse(&format!("http://form/?{text}"));
    url.map(|url| url.query_pairs().into_owned().collect()).unwrap_or_default()
}
