//! What operators can ask and do about deleted tenants through the control socket.

use axum::Json;
use axum::Router;
use axum::extract::Path;
use axum::extract::State;
use axum::routing::get;
use axum::routing::post;
use serde_json::Value;
use serde_json::json as value;
use time::OffsetDateTime;

use crate::api::AppState;
use crate::api::error::ApiError;
use crate::api::lifecycle::DeletedList;
use crate::api::lifecycle::DeletedTenant;
use crate::api::tenants::to_its_end;
use crate::audit::Actor;
use crate::error::Code;
use crate::error::Problem;
use crate::ids::TenantId;
use crate::lifecycle::Lifecycle;
use crate::shutdown::Shutdown;

/// The routes.
pub(super) fn routes() -> Router<AppState> {
    Router::new()
        .route("/deleted", get(deleted))
        .route("/tenants/{id}/delete", post(delete))
        .route("/tenants/{id}/undelete", post(undelete))
}

fn parse(id: &str) -> Result<TenantId, Problem> {
    TenantId::parse(id).map_err(|_| Problem::new(Code::NotFound).message("there is no such tenant"))
}

async fn deleted(State(lifecycle): State<Lifecycle>) -> Json<DeletedList> {
    Json(DeletedList::of(&lifecycle))
}

async fn delete(
    State(lifecycle): State<Lifecycle>,
    State(shutdown): State<Shutdown>,
    Path(id): Path<String>,
) -> Result<Json<Value>, ApiError> {
    let id = parse(&id)?;
    let deleted = to_its_end(&shutdown, async move {
        Ok(lifecycle.delete(&id, Actor::Operator, OffsetDateTime::now_utc()).await.map_err(Problem::from)?)
    });
    Ok(Json(value!(DeletedTenant::of(&*deleted.await?))))
}

async fn undelete(
    State(lifecycle): State<Lifecycle>,
    State(shutdown): State<Shutdown>,
    Path(id): Path<String>,
) -> Result<Json<Value>, ApiError> {
    let id = parse(&id)?;
    let back = async move { Ok(lifecycle.undelete(&id, Actor::Operator).await.map_err(Problem::from)?) };
    let tenant = to_its_end(&shutdown, back).await?;
    Ok(Json(value!({ "id": tenant.id })))
}
