//! Templates and their versions on the control socket: what there is, who is at which version, and rollouts.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::Router;
use axum::extract;
use axum::extract::State;
use axum::routing::get;
use axum::routing::post;
use serde::Deserialize;
use serde::Serialize;
use serde_json::Value;
use serde_json::json;

use crate::api::AppState;
use crate::api::error::ApiError;
use crate::api::json as body;
use crate::error::Problem;
use crate::ids::TenantId;
use crate::store::tenants::Tenant;
use crate::store::tenants::Tenants;
use crate::store::versions::FailedUpgrade;
use crate::supervisor::Supervisor;
use crate::supervisor::rollout::Care;
use crate::supervisor::rollout::Progress;
use crate::supervisor::template;
use crate::supervisor::template::Traits;

/// Failed tenants that are listed per template.
const LISTED: usize = 20;
/// Tenants counted before others get their turn.
const PAGE: usize = 1_000;

/// The routes, for the operators' router.
pub(super) fn routes() -> Router<AppState> {
    Router::new()
        .route("/templates", get(list))
        .route("/templates/{name}/rollout", get(rollout).post(roll_out))
        .route("/templates/{name}/stop", post(stop))
        .route("/templates/{name}/retry", post(retry))
}

/// The version of one tenant, as part of what is shown of it.
#[derive(Serialize)]
pub(super) struct VersionView {
    /// The template's hash; none when it is not known without looking, or the tenant never ran.
    version: Option<String>,
    /// What it could not be upgraded to.
    #[serde(skip_serializing_if = "Option::is_none")]
    upgrade_failed: Option<FailedUpgrade>,
}

impl VersionView {
    pub(super) fn of(tenant: &Tenant, supervisor: &Supervisor) -> Self {
        let record = supervisor.versions().find(&tenant.id);
        Self {
            version: record.as_ref().map(|record| record.hash.clone()),
            upgrade_failed: record.and_then(|record| record.failed.clone()),
        }
    }

    /// Looks into the instance's folder where there is no record.
    pub(super) async fn look_up(&mut self, id: &str, supervisor: &Supervisor) {
        if self.version.is_none()
            && let Ok(id) = TenantId::parse(id)
        {
            let supervisor = supervisor.clone();
            let look = tokio::task::spawn_blocking(move || supervisor.version_on_disk(&id));
            self.version = look.await.ok().and_then(Result::ok).flatten();
        }
    }
}

/// A template and its tenants.
#[derive(Serialize)]
struct TemplateView {
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    #[serde(flatten)]
    traits: Option<Arc<Traits>>,
    /// Tenants that name the template.
    tenants: usize,
    /// How many of them are at which version.
    versions: BTreeMap<String, usize>,
    /// Tenants that never ran, or whose version is noted at their next wake.
    unknown: usize,
    /// Some of the tenants that could not be upgraded.
    failed: Vec<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rollout: Option<Progress>,
}

async fn list(State(tenants): State<Tenants>, State(supervisor): State<Supervisor>) -> Json<Value> {
    let mut counts = supervisor.versions().counts();
    let mut members: BTreeMap<String, usize> = BTreeMap::new();
    let mut after = None;
    loop {
        let page = tenants.page(after.as_ref(), PAGE);
        let Some(last) = page.last() else { break };
        after = Some(last.id.clone());
        for tenant in &page {
            match members.get_mut(&tenant.template) {
                Some(count) => *count += 1,
                None => drop(members.insert(tenant.template.clone(), 1)),
            }
        }
        tokio::task::yield_now().await;
    }
    let templates = supervisor.templates();
    // A template that is gone is listed as long as somebody was made from it.
    let mut names = templates.names();
    names.extend(members.keys().filter(|name| !names.contains(name)).cloned().collect::<Vec<_>>());
    let views: Vec<TemplateView> = names
        .into_iter()
        .map(|name| {
            let versions = counts.remove(&name).unwrap_or_default();
            let members = members.get(&name).copied().unwrap_or_default();
            let failed = supervisor.versions().failed(&name, LISTED);
            let failed = failed.iter().map(|version| json!({ "tenant": version.tenant, "failed": version.failed }));
            TemplateView {
                error: templates.golden(&name).err().map(|error| match error {
                    template::Error::Broken { error } => error,
                    unknown @ template::Error::Unknown => unknown.to_string(),
                }),
                traits: templates.traits(&name),
                tenants: members,
                unknown: members.saturating_sub(versions.values().sum()),
                versions,
                failed: failed.collect(),
                rollout: supervisor.rollout(&name).ok(),
                name,
            }
        })
        .collect();
    Json(json!({ "items": views }))
}

async fn rollout(
    State(supervisor): State<Supervisor>,
    extract::Path(name): extract::Path<String>,
) -> Result<Json<Progress>, ApiError> {
    Ok(Json(supervisor.rollout(&name).map_err(Problem::from)?))
}

async fn roll_out(
    State(supervisor): State<Supervisor>,
    extract::Path(name): extract::Path<String>,
    body::Json(care): body::Json<Care>,
) -> Result<Json<Progress>, ApiError> {
    tracing::info!(template.name = name, "an operator starts a rollout");
    Ok(Json(supervisor.roll_out(&name, care).map_err(Problem::from)?))
}

async fn stop(
    State(supervisor): State<Supervisor>,
    extract::Path(name): extract::Path<String>,
) -> Result<Json<Progress>, ApiError> {
    tracing::info!(template.name = name, "an operator stops a rollout");
    Ok(Json(supervisor.stop_rollout(&name).map_err(Problem::from)?))
}

/// Whose upgrade to try again; everybody's when none is named.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Retry {
    tenant: Option<TenantId>,
}

async fn retry(
    State(supervisor): State<Supervisor>,
    extract::Path(name): extract::Path<String>,
    body::Json(wanted): body::Json<Retry>,
) -> Result<Json<Value>, ApiError> {
    let count = supervisor.retry_upgrades(&name, wanted.tenant.as_ref()).await?;
    Ok(Json(json!({ "retried": count })))
}
