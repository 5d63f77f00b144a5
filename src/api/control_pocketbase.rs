//! Versions of `PocketBase` on the control socket: which there are, who has which, pins, and rollouts.

use std::collections::BTreeMap;

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
use crate::error::Code;
use crate::error::Problem;
use crate::ids::TenantId;
use crate::supervisor::Supervisor;
use crate::supervisor::rollout::Care;
use crate::supervisor::rollout::POCKETBASE;
use crate::supervisor::rollout::Progress;

/// The routes, for the operators' router.
pub(super) fn routes() -> Router<AppState> {
    Router::new()
        .route("/pocketbase", get(list))
        .route("/pocketbase/rollout", get(rollout).post(roll_out))
        .route("/pocketbase/stop", post(stop))
        .route("/pocketbase/pins/{tenant}", post(pin))
}

/// A version of `PocketBase`.
#[derive(Serialize)]
struct BinaryView {
    version: String,
    path: String,
    sha256: String,
    /// Templates that are made with it.
    templates: Vec<String>,
    /// Instances that have it.
    instances: usize,
}

async fn list(State(supervisor): State<Supervisor>) -> Json<Value> {
    let mut counts: BTreeMap<String, usize> = supervisor.pocketbase_counts();
    let templates = supervisor.templates();
    let made_with = |name: &String| templates.golden(name).ok().map(|golden| golden.pocketbase.clone());
    let binaries: Vec<BinaryView> = supervisor
        .binaries()
        .all()
        .iter()
        .map(|binary| BinaryView {
            version: binary.version.clone(),
            path: binary.path.display().to_string(),
            sha256: binary.sha256.clone(),
            templates: templates
                .names()
                .into_iter()
                .filter(|name| made_with(name).as_ref() == Some(&binary.version))
                .collect(),
            instances: counts.remove(&binary.version).unwrap_or_default(),
        })
        .collect();
    // What is left is at versions that have no binary any more: the next newer one serves it.
    let rollout = supervisor.rollout(POCKETBASE).ok();
    Json(json!({ "items": binaries, "others": counts, "rollout": rollout }))
}

/// What to roll out, and how carefully.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RollOut {
    version: String,
    care: Care,
}

async fn roll_out(
    State(supervisor): State<Supervisor>,
    body::Json(wanted): body::Json<RollOut>,
) -> Result<Json<Progress>, ApiError> {
    tracing::info!(pocketbase = wanted.version, "an operator starts a rollout of PocketBase");
    Ok(Json(supervisor.roll_out_pocketbase(&wanted.version, wanted.care).map_err(Problem::from)?))
}

async fn rollout(State(supervisor): State<Supervisor>) -> Result<Json<Progress>, ApiError> {
    Ok(Json(supervisor.rollout(POCKETBASE).map_err(Problem::from)?))
}

async fn stop(State(supervisor): State<Supervisor>) -> Result<Json<Progress>, ApiError> {
    tracing::info!("an operator stops the rollout of PocketBase");
    Ok(Json(supervisor.stop_rollout(POCKETBASE).map_err(Problem::from)?))
}

/// Where to keep a tenant; at the version that it has when none is named.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Pin {
    pinned: bool,
    version: Option<String>,
}

/// The version of a tenant's data, by what lies beside it; none when it has never run.
async fn has(supervisor: &Supervisor, tenant: &TenantId) -> Result<Option<String>, ApiError> {
    if supervisor.status(tenant)?.pocketbase.is_none() {
        return Ok(None);
    }
    let (supervisor, tenant) = (supervisor.clone(), tenant.clone());
    let look = tokio::task::spawn_blocking(move || supervisor.pocketbase_on_disk(&tenant)).await;
    let found = look.map_err(std::io::Error::other).and_then(|found| found);
    let failed = |error: std::io::Error| {
        tracing::error!(%error, "read the version of a tenant's data");
        Problem::new(Code::Internal).message("its version cannot be read; see the log")
    };
    Ok(Some(found.map_err(failed)?))
}

async fn pin(
    State(supervisor): State<Supervisor>,
    extract::Path(tenant): extract::Path<String>,
    body::Json(wanted): body::Json<Pin>,
) -> Result<Json<Value>, ApiError> {
    let unknown = || Problem::new(Code::NotFound).message("there is no such tenant");
    let tenant = TenantId::parse(&tenant).map_err(|_| unknown())?;
    let has = has(&supervisor, &tenant).await?;
    let pin = if wanted.pinned { wanted.version.or_else(|| has.clone()) } else { None };
    let is_version = |pin: &String| {
        let parts: Vec<_> = pin.split('.').map(str::parse::<u32>).collect();
        (2..=3).contains(&parts.len()) && parts.iter().all(Result::is_ok)
    };
    if pin.as_ref().is_some_and(|pin| !is_version(pin)) {
        return Err(Problem::new(Code::InvalidRequest).message("a version is like 0.39 or 0.39.11").into());
    }
    let never_ran = "it has not run yet, so there is no version to keep it at; wake it first";
    if (wanted.pinned && pin.is_none()) || !supervisor.pin_pocketbase(&tenant, pin.as_deref()).await? {
        return Err(Problem::new(Code::Conflict).message(never_ran).into());
    }
    tracing::info!(tenant.id = %tenant, pin, "an operator pins a tenant's PocketBase");
    Ok(Json(json!({ "tenant": tenant, "pocketbase": has, "pin": pin })))
}
