//! What tenants have and may have: shown to their people, changed by admins.

use axum::Json;
use axum::extract::Path;
use axum::extract::State;
use serde::Deserialize;
use serde::Serialize;
use utoipa::IntoParams;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::api::AppState;
use crate::api::error::ApiError;
use crate::api::extractors::Admin;
use crate::api::extractors::AuthUser;
use crate::api::json;
use crate::api::json::Params;
use crate::api::json::invalid_field;
use crate::audit::Actor;
use crate::audit::Audit;
use crate::audit::Entry;
use crate::audit::action;
use crate::error::Code;
use crate::error::Problem;
use crate::ids::TenantId;
use crate::quota;
use crate::quota::Limits;
use crate::quota::Quotas;
use crate::quota::Usage;
use crate::store::tenants::Kind;
use crate::store::tenants::Tenant;
use crate::store::tenants::Tenants;
use crate::tenancy::Tenancy;

/// Tenants in one answer, at most.
const LARGEST_PAGE: usize = 500;

/// The routes, relative to `/api/v1`.
pub fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(show_usage)).routes(routes!(list_usage)).routes(routes!(show_quota, set_quota))
}

/// Limits of a tenant. 0 is no limit; what is absent is as its template or the server says.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = Quota)]
pub(super) struct QuotaBody {
    /// Bytes on the disk from which on answers and an event say so.
    #[serde(skip_serializing_if = "Option::is_none")]
    disk_soft: Option<u64>,
    /// Bytes on the disk from which on writes are refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    disk_hard: Option<u64>,
    /// Largest body of one request, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    file_size: Option<u64>,
    /// Bytes of memory of its process; counts from its next start on.
    #[serde(skip_serializing_if = "Option::is_none")]
    memory: Option<u64>,
    /// Requests at work at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    in_flight: Option<u64>,
    /// Requests in a minute.
    #[serde(skip_serializing_if = "Option::is_none")]
    requests_per_minute: Option<u64>,
    /// Requests with files in an hour.
    #[serde(skip_serializing_if = "Option::is_none")]
    uploads_per_hour: Option<u64>,
}

impl From<Limits> for QuotaBody {
    fn from(limits: Limits) -> Self {
        let Limits { disk_soft, disk_hard, file_size, memory, in_flight, requests_per_minute, uploads_per_hour } =
            limits;
        Self { disk_soft, disk_hard, file_size, memory, in_flight, requests_per_minute, uploads_per_hour }
    }
}

impl From<QuotaBody> for Limits {
    fn from(body: QuotaBody) -> Self {
        let QuotaBody { disk_soft, disk_hard, file_size, memory, in_flight, requests_per_minute, uploads_per_hour } =
            body;
        Self { disk_soft, disk_hard, file_size, memory, in_flight, requests_per_minute, uploads_per_hour }
    }
}

/// What a tenant has and may have.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct UsageView {
    #[schema(value_type = String)]
    tenant: TenantId,
    /// Bytes on the disk, with what was sent since they were measured; absent before the first measure.
    #[serde(skip_serializing_if = "Option::is_none")]
    disk_used: Option<u64>,
    /// How long ago they were measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    measured_seconds_ago: Option<u64>,
    /// `ok`, `soft` or `hard`: the limit of the disk that is reached.
    #[schema(example = "ok")]
    disk_level: &'static str,
    /// Requests at work.
    in_flight: u32,
    /// The limits in force.
    quota: QuotaBody,
    /// Those of them that are the tenant's own.
    own: QuotaBody,
}

impl UsageView {
    pub(super) fn of(tenant: &Tenant, usage: Usage) -> Self {
        Self {
            tenant: tenant.id.clone(),
            disk_used: usage.used,
            measured_seconds_ago: usage.measured.map(|ago| ago.as_secs()),
            disk_level: usage.level.as_str(),
            in_flight: usage.in_flight,
            quota: usage.limits.into(),
            own: tenant.limits.as_deref().copied().unwrap_or_default().into(),
        }
    }
}

/// A page of tenants' usage.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct UsageList {
    items: Vec<UsageView>,
    /// Ask again with `after` = this for the next page; absent on the last one.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    next: Option<TenantId>,
}

impl UsageList {
    pub(super) fn of(tenants: &Tenants, quotas: &Quotas, after: Option<&TenantId>, limit: Option<usize>) -> Self {
        let limit = limit.unwrap_or(100).clamp(1, LARGEST_PAGE);
        let page = tenants.page(after, limit);
        let items = page.iter().map(|tenant| UsageView::of(tenant, quotas.usage(tenant))).collect();
        Self { items, next: page.last().filter(|_| page.len() == limit).map(|last| last.id.clone()) }
    }
}

/// Whose usage.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct Whose {
    /// A workspace, by slug or id; one's own instance without it.
    tenant: Option<String>,
}

/// Where a page begins and how long it is.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Page {
    /// Begin after this one.
    #[param(value_type = Option<String>)]
    pub(super) after: Option<TenantId>,
    /// Most items, 1 to 500.
    pub(super) limit: Option<usize>,
}

/// Measures a tenant now and says what it has.
pub(super) async fn measured(quotas: &Quotas, tenant: std::sync::Arc<Tenant>) -> Result<UsageView, Problem> {
    let quotas = quotas.clone();
    let looked = tokio::task::spawn_blocking(move || UsageView::of(&tenant, quotas.usage_now(&tenant))).await;
    looked.map_err(|_| Problem::new(Code::ShuttingDown))
}

/// What one's own instance, or a workspace that one belongs to, has and may have. Measured for the answer, or some seconds before.
#[utoipa::path(get, path = "/usage", tag = "workspaces", security(("bearer" = [])), params(Whose),
    responses((status = 200, description = "The usage and the limits in force.", body = UsageView)))]
async fn show_usage(
    State(tenancy): State<Tenancy>,
    State(tenants): State<Tenants>,
    State(quotas): State<Quotas>,
    user: AuthUser,
    Params(whose): Params<Whose>,
) -> Result<Json<UsageView>, ApiError> {
    let absent = || Problem::new(Code::NotFound).message("there is no such tenant");
    let me = &user.principal.user;
    let tenant = match whose.tenant {
        Some(name) if name != me.as_str() => tenancy.workspace(&name, me)?.0,
        _ => {
            let own = tenancy.ensure_personal(me).await.map_err(Problem::from)?;
            tenants.find(&own).ok_or_else(absent)?
        }
    };
    let looked = tokio::task::spawn_blocking(move || UsageView::of(&tenant, quotas.usage_lately(&tenant))).await;
    Ok(Json(looked.map_err(|_| Problem::new(Code::ShuttingDown))?))
}

/// What all tenants have and may have, as it was measured last, in the order of their ids. For admins.
#[utoipa::path(get, path = "/admin/usage", tag = "workspaces", security(("bearer" = [])), params(Page),
    responses((status = 200, description = "The usage of tenants.", body = UsageList)))]
async fn list_usage(
    State(tenants): State<Tenants>,
    State(quotas): State<Quotas>,
    _admin: Admin,
    Params(page): Params<Page>,
) -> Json<UsageList> {
    Json(UsageList::of(&tenants, &quotas, page.after.as_ref(), page.limit))
}

fn named(tenants: &Tenants, id: &str) -> Result<std::sync::Arc<Tenant>, Problem> {
    let absent = || Problem::new(Code::NotFound).message("there is no such tenant");
    let tenant = tenants.find(&TenantId::parse(id).map_err(|_| absent())?).ok_or_else(absent)?;
    if tenant.kind == Kind::Global {
        return Err(Problem::new(Code::Forbidden).message("the global instance has no quota"));
    }
    Ok(tenant)
}

/// A tenant's own limits, which stand before its template's and the server's. For admins.
#[utoipa::path(get, path = "/admin/tenants/{id}/quota", tag = "workspaces", security(("bearer" = [])),
    params(("id" = String, Path, description = "The tenant.")),
    responses((status = 200, description = "Its own limits; empty when it has none.", body = QuotaBody)))]
async fn show_quota(
    State(tenants): State<Tenants>,
    _admin: Admin,
    Path(id): Path<String>,
) -> Result<Json<QuotaBody>, ApiError> {
    Ok(Json(named(&tenants, &id)?.limits.as_deref().copied().unwrap_or_default().into()))
}

/// Replaces a tenant's own limits; `{}` takes them all away. They are in force when the answer comes; memory, at the next
/// start of its process. For admins.
#[utoipa::path(put, path = "/admin/tenants/{id}/quota", tag = "workspaces", security(("bearer" = [])),
    params(("id" = String, Path, description = "The tenant.")), request_body = QuotaBody,
    responses((status = 200, description = "What it has and may have now.", body = UsageView)))]
async fn set_quota(
    State(tenants): State<Tenants>,
    State(quotas): State<Quotas>,
    State(audit): State<Audit>,
    Admin(admin): Admin,
    Path(id): Path<String>,
    json::Json(body): json::Json<QuotaBody>,
) -> Result<Json<UsageView>, ApiError> {
    let tenant = named(&tenants, &id)?;
    Ok(Json(change(&tenants, &quotas, &audit, Actor::User(admin.user), &tenant.id, body).await?))
}

/// Changes a tenant's own limits, for whoever may.
pub(super) async fn change(
    tenants: &Tenants,
    quotas: &Quotas,
    audit: &Audit,
    actor: Actor,
    id: &TenantId,
    body: QuotaBody,
) -> Result<UsageView, Problem> {
    let tenant = named(tenants, id.as_str())?;
    let limits = Limits::from(body);
    // With what stands behind it: a soft limit of its own must not be above everybody's hard one.
    let joined = quotas.limits(&Tenant { limits: Some(Box::new(limits)), ..Tenant::clone(&tenant) });
    if let Err((field, rule)) = quota::check(&limits).and_then(|()| quota::check(&joined)) {
        return Err(invalid_field(field, "validation_invalid_quota", rule));
    }
    audit
        .record(Entry::new(actor, action::QUOTA_CHANGED).tenant(id).detail(serde_json::json!(body)))
        .await
        .map_err(Problem::from)?;
    let own = (limits != Limits::default()).then(|| Box::new(limits));
    let changed = tenants.change(id, |tenant| tenant.limits.clone_from(&own)).await?;
    let tenant = changed.ok_or_else(|| Problem::new(Code::NotFound))?;
    quotas.renew(&tenant);
    measured(quotas, tenant).await
}
