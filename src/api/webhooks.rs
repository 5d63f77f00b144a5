//! Where other services tell us of users' news. Such calls carry a signature and no token.
//!
//! A stranger learns nothing: a wrong address and a wrong signature are answered alike, the body of a call to a wrong
//! address is not read, and no call wakes an instance.

use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use axum::body::Body;
use axum::extract::Path;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::http::StatusCode;
use time::OffsetDateTime;
use tokio::sync::Semaphore;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::api::AppState;
use crate::api::error::ApiError;
use crate::api::extractors::ClientInfo;
use crate::api::json;
use crate::error::Code;
use crate::error::Problem;
use crate::meetings::Call;
use crate::meetings::Meetings;

/// How long the body of a call may take to arrive.
const BODY_TIME: Duration = Duration::from_secs(30);
/// Bodies that are held at once.
const BODIES: usize = 16;

/// Room for bodies of webhook calls in memory.
#[derive(Debug, Clone)]
pub struct HookBodies(Arc<Semaphore>);

impl Default for HookBodies {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(BODIES)))
    }
}

/// The route.
pub fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(fathom_called))
}

/// Takes a call of a webhook at Fathom (Standard Webhooks; the body is a meeting). Acknowledged when it is on disk; a call
/// that was heard before is acknowledged again and changes nothing.
#[utoipa::path(post, path = "/webhooks/fathom/{opaque}", tag = "webhooks",
    params(("opaque" = String, Path, description = "The part of the address that nobody guesses."),
        ("webhook-id" = String, Header, description = "The same at each attempt."),
        ("webhook-timestamp" = String, Header, description = "Seconds since 1970; at most 5 minutes from now."),
        ("webhook-signature" = String, Header, description = "`v1,<base64>`, several separated by spaces.")),
    request_body(content = Object, content_type = "application/json", description = "The meeting."),
    responses((status = 200, description = "It is on disk.")))]
async fn fathom_called(
    State(meetings): State<Meetings>,
    State(HookBodies(room)): State<HookBodies>,
    ClientInfo(client): ClientInfo,
    Path(opaque): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<StatusCode, ApiError> {
    let now = Instant::now();
    let limited = |wait| Problem::new(Code::RateLimited).retry_after(wait);
    meetings.may_call(client.ip, now).map_err(limited)?;
    let hook = meetings.hook_at(&opaque, now).map_err(limited)?.ok_or_else(|| Problem::new(Code::NotFound))?;
    let Ok(_room) = room.try_acquire() else {
        return Err(Problem::new(Code::Overloaded).retry_after(Duration::from_secs(2)).into());
    };
    let body = json::read(body, meetings.max_call_bytes(), BODY_TIME).await?;
    meetings.receive(&hook, Call { headers: &headers, body: &body }, OffsetDateTime::now_utc()).await?;
    Ok(StatusCode::OK)
}
