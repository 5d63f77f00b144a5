//! What operators can ask and do about deleted tenants through the control socket.

use axum::Json;
use axum::Router;
use axum::extract::Path;
use axum::extract::State;
use axum::routing::get;
use axum::routing::post;
use serde::Deserialize;
use serde_json::Value;
use serde_json::json as value;
use time::OffsetDateTime;

use crate::api::AppState;
use crate::api::error::ApiError;
use crate::api::json;
use crate::api::json::Params;
use crate::api::lifecycle::DeletedList;
use crate::api::lifecycle::DeletedTenant;
use crate::api::lifecycle::ErasureVerdict;
use crate::api::quotas;
use crate::api::tenants::to_its_end;
use crate::audit::Actor;
use crate::audit::Audit;
use crate::error::Code;
use crate::error::Problem;
use crate::ids::TenantId;
use crate::ids::UserId;
use crate::lifecycle::Adoption;
use crate::lifecycle::Lifecycle;
use crate::lifecycle::Signed;
use crate::quota::Quotas;
use crate::shutdown::Shutdown;
use crate::store::tenants::Tenants;

/// The routes.
pub(super) fn routes() -> Router<AppState> {
    Router::new()
        .route("/deleted", get(deleted))
        .route("/tenants/{id}/delete", post(delete))
        .route("/tenants/{id}/undelete", post(undelete))
        .route("/tenants/{id}/erase", post(erase))
        .route("/tenants/{id}/quota", get(quota).put(set_quota))
        .route("/usage", get(usage))
        .route("/erasures", get(erasures))
        .route("/erasures/verify", post(verify))
        .route("/orphans", get(orphans))
        .route("/orphans/{id}/adopt", post(adopt))
        .route("/orphans/{id}/remove", post(remove))
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

/// Deletes, if need be, and erases at once.
async fn erase(
    State(lifecycle): State<Lifecycle>,
    State(shutdown): State<Shutdown>,
    Path(id): Path<String>,
) -> Result<Json<Signed>, ApiError> {
    let id = parse(&id)?;
    let erased = async move {
        let now = OffsetDateTime::now_utc();
        lifecycle.delete(&id, Actor::Operator, now).await.map_err(Problem::from)?;
        Ok(lifecycle.erase(&id, Actor::Operator, now).await.map_err(Problem::from)?)
    };
    Ok(Json(to_its_end(&shutdown, erased).await?))
}

async fn erasures(State(lifecycle): State<Lifecycle>) -> Result<Json<Value>, ApiError> {
    Ok(Json(value!({ "items": lifecycle.erasures().await.map_err(Problem::from)? })))
}

async fn verify(
    State(lifecycle): State<Lifecycle>,
    json::Json(shown): json::Json<Signed>,
) -> Result<Json<ErasureVerdict>, ApiError> {
    Ok(Json(ErasureVerdict { verdict: lifecycle.verify(&shown).await.map_err(Problem::from)? }))
}

async fn orphans(State(lifecycle): State<Lifecycle>) -> Result<Json<Value>, ApiError> {
    Ok(Json(value!({ "items": lifecycle.orphans().await.map_err(Problem::from)? })))
}

/// What an operator says of an orphan.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Adopt {
    owner: Option<UserId>,
    template: Option<String>,
}

async fn adopt(
    State(lifecycle): State<Lifecycle>,
    State(shutdown): State<Shutdown>,
    Path(id): Path<String>,
    json::Json(Adopt { owner, template }): json::Json<Adopt>,
) -> Result<Json<Value>, ApiError> {
    let adopted = async move { Ok(lifecycle.adopt(&id, Adoption { owner, template }).await.map_err(Problem::from)?) };
    Ok(Json(value!(to_its_end(&shutdown, adopted).await?)))
}

async fn remove(
    State(lifecycle): State<Lifecycle>,
    State(shutdown): State<Shutdown>,
    Path(id): Path<String>,
) -> Result<Json<Value>, ApiError> {
    let removed = async move { Ok(lifecycle.remove_orphan(&id).await.map_err(Problem::from)?) };
    Ok(Json(value!(to_its_end(&shutdown, removed).await?)))
}

async fn usage(
    State(tenants): State<Tenants>,
    State(quotas): State<Quotas>,
    Params(page): Params<quotas::Page>,
) -> Json<quotas::UsageList> {
    Json(quotas::UsageList::of(&tenants, &quotas, page.after.as_ref(), page.limit))
}

async fn quota(
    State(tenants): State<Tenants>,
    State(quotas): State<Quotas>,
    Path(id): Path<String>,
) -> Result<Json<quotas::UsageView>, ApiError> {
    let unknown = || Problem::new(Code::NotFound).message("there is no such tenant");
    let tenant = tenants.find(&parse(&id)?).ok_or_else(unknown)?;
    Ok(Json(quotas::measured(&quotas, tenant).await?))
}

async fn set_quota(
    State(tenants): State<Tenants>,
    State(quotas): State<Quotas>,
    State(audit): State<Audit>,
    Path(id): Path<String>,
    json::Json(body): json::Json<quotas::QuotaBody>,
) -> Result<Json<quotas::UsageView>, ApiError> {
    Ok(Json(quotas::change(&tenants, &quotas, &audit, Actor::Operator, &parse(&id)?, body).await?))
}
