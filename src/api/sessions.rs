//! A user's own sessions: which devices are signed in, and ending them. `PocketBase` alone has no such list.

use std::net::IpAddr;

use axum::Json;
use axum::extract::Path;
use axum::extract::State;
use axum::http::StatusCode;
use serde::Serialize;
use time::OffsetDateTime;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::api::AppState;
use crate::api::auth::Ended;
use crate::api::error::ApiError;
use crate::api::extractors::AuthUser;
use crate::auth::Principal;
use crate::auth::accounts::Accounts;
use crate::error::Code;
use crate::error::Problem;
use crate::store::sessions::Session;
use crate::store::sessions::Status;

/// The routes, relative to where they are mounted.
pub fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(list_sessions, end_sessions)).routes(routes!(show_session, end_session))
}

/// One session.
#[derive(Serialize, ToSchema)]
#[schema(as = Session)]
struct SessionView {
    /// Names the session; it is not a credential.
    id: String,
    /// Whether this request came with it.
    current: bool,
    /// `live`, `superseded` (refreshed; ends within the minute) or `revoked`.
    #[schema(example = "live")]
    status: &'static str,
    /// The user agent that signed in.
    device: String,
    /// The address that signed in.
    #[schema(value_type = Option<String>, example = "203.0.113.7")]
    ip: Option<IpAddr>,
    #[serde(with = "time::serde::rfc3339")]
    #[schema(value_type = String, format = DateTime)]
    created_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339")]
    #[schema(value_type = String, format = DateTime)]
    expires_at: OffsetDateTime,
}

impl SessionView {
    fn of(session: &Session, principal: &Principal) -> Self {
        Self {
            id: session.id.as_str().to_owned(),
            current: session.id == principal.session,
            status: match session.status {
                Status::Live => "live",
                Status::Superseded { .. } => "superseded",
                Status::Revoked => "revoked",
            },
            device: session.device.clone(),
            ip: session.ip,
            created_at: session.created_at,
            expires_at: session.expires_at,
        }
    }
}

/// A user's sessions.
#[derive(Serialize, ToSchema)]
struct SessionList {
    items: Vec<SessionView>,
}

/// `current` names the session of this request.
fn resolve<'a>(id: &'a str, principal: &'a Principal) -> &'a str {
    if id == "current" { principal.session.as_str() } else { id }
}

/// Lists the caller's sessions, newest first.
#[utoipa::path(get, path = "/sessions", tag = "sessions", security(("bearer" = [])),
    responses((status = 200, description = "The sessions.", body = SessionList)))]
async fn list_sessions(State(accounts): State<Accounts>, user: AuthUser) -> Json<SessionList> {
    let mut sessions = accounts.sessions(&user.principal);
    sessions.sort_by_key(|session| std::cmp::Reverse(session.created_at));
    let items = sessions.iter().map(|session| SessionView::of(session, &user.principal)).collect();
    Json(SessionList { items })
}

/// Ends every session of this account; the same as `logout-everywhere`.
#[utoipa::path(delete, path = "/sessions", tag = "sessions", security(("bearer" = [])),
    responses((status = 200, description = "All sessions are over.", body = Ended)))]
async fn end_sessions(State(accounts): State<Accounts>, user: AuthUser) -> Result<Json<Ended>, ApiError> {
    let ended = accounts.logout_everywhere(&user.principal).await?;
    Ok(Json(Ended { ended }))
}

/// Shows one of the caller's sessions; `current` is the one of this request.
#[utoipa::path(get, path = "/sessions/{id}", tag = "sessions", security(("bearer" = [])),
    params(("id" = String, Path, description = "A session's id, or `current`.")),
    responses((status = 200, description = "The session.", body = SessionView)))]
async fn show_session(
    State(accounts): State<Accounts>,
    user: AuthUser,
    Path(id): Path<String>,
) -> Result<Json<SessionView>, ApiError> {
    let id = resolve(&id, &user.principal);
    let sessions = accounts.sessions(&user.principal);
    let found =
        sessions.iter().find(|session| session.id.as_str() == id).ok_or_else(|| Problem::new(Code::NotFound))?;
    Ok(Json(SessionView::of(found, &user.principal)))
}

/// Ends one of the caller's sessions; `current` is the one of this request.
#[utoipa::path(delete, path = "/sessions/{id}", tag = "sessions", security(("bearer" = [])),
    params(("id" = String, Path, description = "A session's id, or `current`.")),
    responses((status = 204, description = "The session is over.")))]
async fn end_session(
    State(accounts): State<Accounts>,
    user: AuthUser,
    Path(id): Path<String>,
) -> Result<StatusCode, ApiError> {
    accounts.end_session(&user.principal, resolve(&id, &user.principal)).await?;
    Ok(StatusCode::NO_CONTENT)
}
