//! Tokens for protected files: an `<img>` sends no `Authorization`, so the token goes into the address instead.
//!
//! The token names the account, so the gateway knows whose file is meant; towards the instance it is exchanged for one
//! of the instance's own. It is minted here from the accounts database, so no instance has to run for it.

use std::time::SystemTime;

use axum::Json;
use axum::extract::State;
use axum::http::HeaderValue;
use axum::http::header;
use axum::response::IntoResponse;
use axum::response::Response;
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::api::AppState;
use crate::api::error::ApiError;
use crate::api::extractors::AuthUser;
use crate::auth::Verifier;
use crate::error::Code;
use crate::error::Problem;

/// The one route, at its absolute path.
pub fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(file_token))
}

/// A file token.
#[derive(Serialize, ToSchema)]
#[schema(example = json!({"token": "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJ0eXBlIjoiZmlsZSJ9.c2lnbmF0dXJl"}))]
struct FileToken {
    token: String,
}

/// Gives a token for protected files, good for three minutes and no longer than the session.
#[utoipa::path(post, path = "/api/files/token", tag = "pocketbase", security(("bearer" = [])),
    responses((status = 200, description = "The token, to be sent as `?token=` with a file's address.", body = FileToken)))]
async fn file_token(State(verifier): State<Verifier>, user: AuthUser) -> Result<Response, ApiError> {
    let token = verifier.file_token(&user.principal, SystemTime::now()).map_err(Problem::from)?;
    let token = token.ok_or_else(|| Problem::new(Code::AccountsUnavailable))?;
    let no_store = [(header::CACHE_CONTROL, HeaderValue::from_static("no-store"))];
    Ok((no_store, Json(FileToken { token })).into_response())
}
