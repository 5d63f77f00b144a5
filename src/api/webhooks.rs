//! Where other services tell us of users' news. Such calls carry a signature and no token.
//!
//! A stranger learns nothing: a wrong address and a wrong signature are answered alike, the body of a call to a wrong
//! address is not read, and no call wakes an instance.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;
use std::time::Instant;

use axum::body::Body;
use axum::extract::Path;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::http::StatusCode;
use time::OffsetDateTime;
use tokio::sync::OwnedSemaphorePermit;
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
use crate::store::hooks::HookId;

/// How long the body of a call may take to arrive.
const BODY_TIME: Duration = Duration::from_secs(10);
/// Bodies that are held at once,
const BODIES: usize = 16;
/// and of calls to one address: who knows one, signature or not, leaves room for the others.
const BODIES_PER_HOOK: usize = 2;

/// Room for bodies of webhook calls in memory.
#[derive(Debug, Clone)]
pub struct HookBodies {
    all: Arc<Semaphore>,
    /// Hooks with a body on its way; at most as many as there are bodies.
    held: Arc<Mutex<HashMap<HookId, usize>>>,
}

impl Default for HookBodies {
    fn default() -> Self {
        Self { all: Arc::new(Semaphore::new(BODIES)), held: Arc::default() }
    }
}

impl HookBodies {
    /// A place for one body of a call to this hook, until it is dropped; none while there is none.
    fn enter(&self, hook: &HookId) -> Option<Place> {
        let room = Arc::clone(&self.all).try_acquire_owned().ok()?;
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let count = held.get(hook).copied().unwrap_or_default();
        if count >= BODIES_PER_HOOK {
            return None;
        }
        held.insert(hook.clone(), count + 1);
        Some(Place { held: Arc::clone(&self.held), hook: hook.clone(), _room: room })
    }
}

/// Room for one body.
#[derive(Debug)]
struct Place {
    held: Arc<Mutex<HashMap<HookId, usize>>>,
    hook: HookId,
    _room: OwnedSemaphorePermit,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        match held.get_mut(&self.hook) {
            Some(count) if *count > 1 => *count -= 1,
            _ => drop(held.remove(&self.hook)),
        }
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
    State(bodies): State<HookBodies>,
    ClientInfo(client): ClientInfo,
    Path(opaque): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<StatusCode, ApiError> {
    let now = Instant::now();
    let limited = |wait| Problem::new(Code::RateLimited).retry_after(wait);
    meetings.may_call(client.ip, now).map_err(limited)?;
    let hook = meetings.hook_at(&opaque, now).map_err(limited)?.ok_or_else(|| Problem::new(Code::NotFound))?;
    let Some(_place) = bodies.enter(&hook) else {
        return Err(Problem::new(Code::Overloaded).retry_after(Duration::from_secs(2)).into());
    };
    let body = json::read(body, meetings.max_call_bytes(), BODY_TIME).await?;
    meetings.receive(&hook, Call { headers: &headers, body: &body }, OffsetDateTime::now_utc()).await?;
    Ok(StatusCode::OK)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_hook_has_two_bodies_on_their_way_and_leaves_room_for_others() {
        let bodies = HookBodies::default();
        let (one, other) = (HookId::random(), HookId::random());
        let first = bodies.enter(&one).unwrap();
        let second = bodies.enter(&one).unwrap();
        assert!(bodies.enter(&one).is_none());
        let _others = bodies.enter(&other).unwrap();
        drop(first);
        let third = bodies.enter(&one).unwrap();
        assert!(bodies.enter(&one).is_none());
        drop((second, third));
        assert_eq!(bodies.held.lock().unwrap().len(), 1, "who has none is forgotten");
        let many: Vec<_> =
            std::iter::repeat_with(|| bodies.enter(&HookId::random())).map_while(|place| place).collect();
        assert_eq!(many.len(), BODIES - 1);
    }
}
