//! Accounts in our own shape: register, sign in, refresh, log out. Canonical under `/api/v1/auth`, with the same
//! handlers under `/auth`.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::Deserialize;
use serde::Serialize;
use serde_json::Value;
use time::OffsetDateTime;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::api::AppState;
use crate::api::error::ApiError;
use crate::api::extractors::AuthUser;
use crate::api::extractors::ClientInfo;
use crate::api::extractors::MaybeDeleted;
use crate::api::json;
use crate::api::json::invalid_field;
use crate::auth::accounts::Accounts;
use crate::auth::accounts::Registration;
use crate::auth::accounts::SignedIn;
use crate::error::Problem;
use crate::pocketbase::token::Unverified;

/// The longest address or password that is passed on, in bytes; `PocketBase` itself takes less.
const LONGEST: usize = 1024;

/// The routes, relative to where they are mounted.
pub fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(register))
        .routes(routes!(login))
        .routes(routes!(refresh))
        .routes(routes!(logout))
        .routes(routes!(logout_everywhere))
        .routes(routes!(me))
}

/// A new account. Unknown fields are refused: nobody chooses a role for themselves.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = Registration, example = json!({"email": "ada@example.com", "password": "correct horse", "name": "Ada"}))]
struct RegisterBody {
    email: String,
    password: String,
    /// Compared with `password` when given.
    #[serde(default, rename = "passwordConfirm", alias = "password_confirm")]
    password_confirm: Option<String>,
    #[serde(default)]
    name: Option<String>,
}

/// A new account's record, and what to do next.
#[derive(Serialize, ToSchema)]
struct Registered {
    /// The record in the global instance's `users` collection.
    #[schema(value_type = Object, example = json!({"id": "b5c3xih3gtjb48z", "email": "ada@example.com", "name": "Ada"}))]
    record: Value,
    /// The next step.
    message: &'static str,
}

/// An address and a password.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"email": "ada@example.com", "password": "correct horse"}))]
struct Credentials {
    /// The e-mail address; `identity` and `username` are other names of this field.
    #[serde(alias = "identity", alias = "username")]
    email: String,
    password: String,
}

/// A token and the account it speaks for.
#[derive(Serialize, ToSchema)]
#[schema(as = SignedIn)]
struct SignedInReply {
    /// Send it as `Authorization: Bearer <token>`, or give it to a `PocketBase` SDK.
    #[schema(example = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.e30.c2lnbmF0dXJl")]
    token: String,
    /// The record in the global instance's `users` collection.
    #[schema(value_type = Object)]
    record: Value,
    /// When the token ends unless it is refreshed before.
    #[serde(with = "time::serde::rfc3339::option", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime, example = "2026-05-04T12:00:00Z")]
    expires_at: Option<OffsetDateTime>,
}

impl From<SignedIn> for SignedInReply {
    fn from(signed_in: SignedIn) -> Self {
        let SignedIn { token, record, .. } = signed_in;
        let expires_at = Unverified::parse(&token)
            .ok()
            .and_then(|parsed| i64::try_from(parsed.claims().exp).ok())
            .and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok());
        Self { token, record, expires_at }
    }
}

/// How many sessions were ended.
#[derive(Serialize, ToSchema)]
pub(crate) struct Ended {
    /// Their number, this one included.
    #[schema(example = 3)]
    pub(crate) ended: usize,
}

/// Present and of a sane length; everything else is `PocketBase`'s to judge.
fn check(field: &'static str, value: &str) -> Result<(), Problem> {
    if value.trim().is_empty() {
        Err(invalid_field(field, "validation_required", "Cannot be blank."))
    } else if value.len() > LONGEST {
        Err(invalid_field(field, "validation_length_too_long", "Too long."))
    } else {
        Ok(())
    }
}

/// Makes an account.
///
/// Signing in is a call of its own: it is the call that makes a session.
#[utoipa::path(post, path = "/register", tag = "auth", request_body = RegisterBody,
    responses((status = 201, description = "The account was made; sign in next.", body = Registered)))]
async fn register(
    State(accounts): State<Accounts>,
    ClientInfo(client): ClientInfo,
    json::Json(body): json::Json<RegisterBody>,
) -> Result<(StatusCode, Json<Registered>), ApiError> {
    check("email", &body.email)?;
    check("password", &body.password)?;
    let RegisterBody { email, password, password_confirm, name } = body;
    let record = accounts.register(Registration { email, password, password_confirm, name }, &client).await?;
    let message = "the account is ready; sign in next: POST /api/v1/auth/login";
    Ok((StatusCode::CREATED, Json(Registered { record, message })))
}

/// Signs in.
#[utoipa::path(post, path = "/login", tag = "auth", request_body = Credentials,
    responses((status = 200, description = "Signed in.", body = SignedInReply)))]
async fn login(
    State(accounts): State<Accounts>,
    ClientInfo(client): ClientInfo,
    json::Json(body): json::Json<Credentials>,
) -> Result<Json<SignedInReply>, ApiError> {
    check("email", &body.email)?;
    check("password", &body.password)?;
    let signed_in = accounts.sign_in(&body.email, &body.password, None, &client).await?;
    Ok(Json(signed_in.into()))
}

/// Exchanges the token for a fresh one.
///
/// The old token works a little longer, for requests that are already on their way.
#[utoipa::path(post, path = "/refresh", tag = "auth", security(("bearer" = [])),
    responses((status = 200, description = "The new token.", body = SignedInReply)))]
async fn refresh(
    State(accounts): State<Accounts>,
    ClientInfo(client): ClientInfo,
    user: AuthUser,
) -> Result<Json<SignedInReply>, ApiError> {
    let signed_in = accounts.refresh(&user.token, None, &client).await?;
    Ok(Json(signed_in.into()))
}

/// Ends this session; its token stops working at once.
#[utoipa::path(post, path = "/logout", tag = "auth", security(("bearer" = [])),
    responses((status = 204, description = "The session is over.")))]
async fn logout(State(accounts): State<Accounts>, MaybeDeleted(user): MaybeDeleted) -> Result<StatusCode, ApiError> {
    accounts.logout(&user.principal).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Ends every session of this account.
#[utoipa::path(post, path = "/logout-everywhere", tag = "auth", security(("bearer" = [])),
    responses((status = 200, description = "All sessions are over.", body = Ended)))]
async fn logout_everywhere(State(accounts): State<Accounts>, user: AuthUser) -> Result<Json<Ended>, ApiError> {
    let ended = accounts.logout_everywhere(&user.principal).await?;
    Ok(Json(Ended { ended }))
}

/// The caller's own account.
#[utoipa::path(get, path = "/me", tag = "auth", security(("bearer" = [])),
    responses((status = 200, description = "The record in the `users` collection.", body = Object,
        example = json!({"id": "b5c3xih3gtjb48z", "email": "ada@example.com", "name": "Ada", "role": "user"}))))]
async fn me(State(accounts): State<Accounts>, MaybeDeleted(user): MaybeDeleted) -> Result<Json<Value>, ApiError> {
    Ok(Json(accounts.me(&user.principal)?))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::error::Code;

    #[test]
    fn blank_and_endless_fields_are_refused_by_name() {
        let problem = check("email", "  ").unwrap_err();
        assert_eq!(
            (problem.code, &problem.details["email"]["code"]),
            (Code::ValidationFailed, &json!("validation_required"))
        );
        assert!(check("password", &"x".repeat(LONGEST + 1)).is_err());
        assert!(check("password", "correct horse").is_ok());
    }
}
