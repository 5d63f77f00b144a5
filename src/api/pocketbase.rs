//! The accounts part of `PocketBase`'s own API, which its SDKs call: sign-in, refresh, sign-up, and its health check.
//!
//! What the global instance answers is relayed byte for byte, refusals included, so that an SDK sees the `PocketBase`
//! it expects. Only the errors that are ours (a limit, the accounts being away) are written by us, in its shape.

use axum::Json;
use axum::body::Body;
use axum::extract::Path;
use axum::extract::RawQuery;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::http::HeaderValue;
use axum::http::StatusCode;
use axum::http::header;
use axum::response::Response;
use serde_json::Value;
use serde_json::json;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::api::AppState;
use crate::api::error::ApiError;
use crate::api::extractors::AuthUser;
use crate::api::extractors::ClientInfo;
use crate::api::fields::Fields;
use crate::api::json::AccountBody;
use crate::api::tenants::follow_account;
use crate::auth::accounts;
use crate::auth::accounts::Accounts;
use crate::auth::accounts::Answer;
use crate::auth::accounts::Credentials;
use crate::error::Code;
use crate::error::Problem;

/// The calls on the `users` collection, relative to `/api/collections/users`.
pub fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(auth_with_password))
        .routes(routes!(auth_refresh))
        .routes(routes!(sign_up))
        .routes(routes!(update_own))
        .routes(routes!(auth_methods))
}

/// `PocketBase`'s health check, at its absolute path.
pub fn health_router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(pocketbase_health))
}

/// What the SDK sends to sign in, as JSON or as a form. Other fields are ignored, as `PocketBase` does.
#[derive(ToSchema)]
#[schema(example = json!({"identity": "ada@example.com", "password": "correct horse"}))]
#[expect(dead_code, reason = "describes a body for the document; the extractor reads the fields by name")]
struct PasswordSignIn {
    identity: String,
    password: String,
    /// The field to look `identity` up in.
    #[serde(rename = "identityField")]
    identity_field: Option<String>,
    /// What the first of two ways to sign in answered; may be a query parameter instead.
    #[serde(rename = "mfaId")]
    mfa_id: Option<String>,
}

/// Passes on what the global instance answered.
pub(crate) fn relay(answer: Answer) -> Response {
    let mut response = Response::new(Body::from(answer.body));
    *response.status_mut() = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::BAD_GATEWAY);
    if response.status() != StatusCode::NO_CONTENT {
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    }
    response
}

/// A refusal by the global instance is an answer like any other; the rest are errors of ours.
pub(crate) fn relay_refusal(error: accounts::Error) -> Result<Response, ApiError> {
    match error {
        accounts::Error::Refused(answer) => Ok(relay(answer)),
        other => Err(other.into()),
    }
}

/// Signs in, as `PocketBase`'s SDKs do.
#[utoipa::path(post, path = "/auth-with-password", tag = "pocketbase", request_body = PasswordSignIn,
    responses((status = 200, description = "`{token, record}` as `PocketBase` answers it.", body = Object),
        (status = 401, description = "`{mfaId}`: the first of two ways to sign in was right.", body = Object)))]
async fn auth_with_password(
    State(accounts): State<Accounts>,
    ClientInfo(client): ClientInfo,
    RawQuery(query): RawQuery,
    fields: Fields,
) -> Result<Response, ApiError> {
    let credentials = Credentials {
        identity: fields.text("identity")?,
        password: fields.text("password")?,
        identity_field: fields.optional("identityField")?,
        mfa_id: fields.optional("mfaId")?,
    };
    match accounts.sign_in_with(&credentials, query.as_deref(), &client).await {
        Ok(signed_in) => Ok(relay(signed_in.answer)),
        Err(error) => relay_refusal(error),
    }
}

/// Exchanges the token for a fresh one, as `PocketBase`'s SDKs do.
#[utoipa::path(post, path = "/auth-refresh", tag = "pocketbase", security(("bearer" = [])),
    responses((status = 200, description = "`{token, record}` as `PocketBase` answers it.", body = Object)))]
async fn auth_refresh(
    State(accounts): State<Accounts>,
    ClientInfo(client): ClientInfo,
    RawQuery(query): RawQuery,
    user: AuthUser,
) -> Result<Response, ApiError> {
    match accounts.refresh(&user.token, query.as_deref(), &client).await {
        Ok(signed_in) => Ok(relay(signed_in.answer)),
        Err(error) => relay_refusal(error),
    }
}

/// Makes an account, as `PocketBase`'s SDKs do; JSON, or a form with an avatar.
#[utoipa::path(post, path = "/records", tag = "pocketbase",
    request_body(content = Object, description = "The new record.",
        example = json!({"email": "ada@example.com", "password": "correct horse", "passwordConfirm": "correct horse"})),
    responses((status = 200, description = "The record as `PocketBase` answers it.", body = Object)))]
async fn sign_up(
    State(accounts): State<Accounts>,
    ClientInfo(client): ClientInfo,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    AccountBody(body): AccountBody,
) -> Result<Response, ApiError> {
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    accounts.sign_up_raw(content_type, body, query.as_deref(), &client).await.map(relay).or_else(relay_refusal)
}

/// Changes the caller's own account, as `PocketBase`'s SDKs do; JSON, or a form with an avatar.
#[utoipa::path(patch, path = "/records/{id}", tag = "pocketbase", security(("bearer" = [])),
    params(("id" = String, Path, description = "The caller's own id.")),
    request_body(content = Object, description = "What changes.", example = json!({"name": "Ada"})),
    responses((status = 200, description = "The record as `PocketBase` answers it.", body = Object)))]
async fn update_own(
    State(state): State<AppState>,
    ClientInfo(client): ClientInfo,
    Path(id): Path<String>,
    RawQuery(query): RawQuery,
    user: AuthUser,
    headers: HeaderMap,
    AccountBody(body): AccountBody,
) -> Result<Response, ApiError> {
    if id != user.principal.user.as_str() {
        return Err(Problem::new(Code::NotFound).into());
    }
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let content = (content_type, body);
    let answer = state.accounts.update_own(&user.principal, &user.token, content, query.as_deref(), &client).await;
    if answer.is_ok() {
        follow_account(&state, &user.principal.user);
    }
    answer.map(relay).or_else(relay_refusal)
}

/// Lists the ways to sign in, as `PocketBase`'s SDKs ask for them.
#[utoipa::path(get, path = "/auth-methods", tag = "pocketbase",
    responses((status = 200, description = "The methods as `PocketBase` answers them.", body = Object)))]
async fn auth_methods(State(accounts): State<Accounts>, RawQuery(query): RawQuery) -> Result<Response, ApiError> {
    accounts.auth_methods(query.as_deref()).await.map(relay).or_else(relay_refusal)
}

/// `PocketBase`'s health check, answered by pocketfleet for itself.
#[utoipa::path(get, path = "/api/health", tag = "pocketbase",
    responses((status = 200, description = "Always, while pocketfleet runs.", body = Object,
        example = json!({"code": 200, "message": "API is healthy.", "data": {}}))))]
async fn pocketbase_health() -> Json<Value> {
    Json(json!({ "code": 200, "message": "API is healthy.", "data": {} }))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http_body_util::BodyExt;

    use super::*;

    #[tokio::test]
    async fn a_refusal_is_relayed_byte_for_byte() {
        let body = Bytes::from_static(br#"{"data":{},"message":"Failed to authenticate.","status":400}"#);
        let refused = accounts::Error::Refused(Answer { status: 400, body: body.clone() });
        let response = relay_refusal(refused).unwrap();
        assert_eq!(
            (response.status().as_u16(), &response.headers()["content-type"]),
            (400, &HeaderValue::from_static("application/json"))
        );
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), body);
    }
}
