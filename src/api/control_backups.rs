//! Backups on the control socket: what there is, and jobs that make, try, restore and prune them. Whoever asks follows
//! the job.

use axum::Json;
use axum::Router;
use axum::extract::Path;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
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
use crate::audit::Actor;
use crate::audit::Audit;
use crate::audit::Entry;
use crate::audit::action;
use crate::backup;
use crate::backup::Backups;
use crate::backup::Reason;
use crate::backup::SnapshotId;
use crate::error::Code;
use crate::error::Problem;
use crate::ids::TenantId;
use crate::jobs::backup::Task;
use crate::queue::Queue;
use crate::store::tenants::Tenants;

/// The routes, for the operators' router.
pub(super) fn routes() -> Router<AppState> {
    Router::new().route("/backups", get(list)).route("/backups", post(begin)).route("/backups/{id}/export", get(export))
}

/// Whose.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Whose {
    tenant: Option<String>,
}

fn tenant_of(text: &str) -> Result<TenantId, Problem> {
    TenantId::parse(text).map_err(|_| Problem::new(Code::NotFound).message("there is no such tenant"))
}

async fn list(State(backups): State<Backups>, Params(whose): Params<Whose>) -> Result<Json<Value>, ApiError> {
    if let Some(tenant) = whose.tenant {
        let (items, unreadable) = backups.list(&tenant_of(&tenant)?).await.map_err(Problem::from)?;
        return Ok(Json(value!({ "items": items, "unreadable": unreadable })));
    }
    let everything = backups.everything().await.map_err(Problem::from)?;
    let items: Vec<Value> = everything
        .into_iter()
        .map(|(tenant, ids)| value!({ "tenant": tenant, "count": ids.len(), "newest": ids.last(), "oldest": ids.first() }))
        .collect();
    Ok(Json(value!({ "tenants": items })))
}

/// What to do.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum Wanted {
    /// A snapshot of one tenant.
    Tenant(String),
    /// Of everybody; `true`: also of those who did not change.
    Fleet(bool),
    /// Try one snapshot, found by its id and perhaps its tenant.
    Verify { tenant: Option<String>, id: String },
    /// Try the newest of everybody.
    VerifyAll,
    /// Put one in place: by its id, or the newest not after a time.
    Restore { tenant: Option<String>, id: Option<String>, at: Option<String>, to: Option<String> },
    /// Remove what is not kept.
    Prune,
}

async fn begin(
    State(backups): State<Backups>,
    State(tenants): State<Tenants>,
    State(queue): State<Queue>,
    json::Json(wanted): json::Json<Wanted>,
) -> Result<(StatusCode, Json<Value>), ApiError> {
    if !backups.is_on() {
        return Err(Problem::from(backup::Error::Off).into());
    }
    let task = match wanted {
        Wanted::Tenant(tenant) => {
            let tenant = tenant_of(&tenant)?;
            if tenant != backup::control() && tenants.find(&tenant).is_none() {
                return Err(Problem::new(Code::NotFound).message("there is no such tenant").into());
            }
            Task::Tenant { tenant, reason: Reason::Operator }
        }
        Wanted::Fleet(all) => Task::Fleet { all, reason: Reason::Operator },
        Wanted::Verify { tenant, id } => Task::Verify { one: Some(locate(&backups, tenant.as_deref(), &id).await?) },
        Wanted::VerifyAll => Task::Verify { one: None },
        Wanted::Restore { tenant, id, at, to } => {
            let (from, id) = match (id, tenant) {
                (Some(id), tenant) => locate(&backups, tenant.as_deref(), &id).await?,
                (None, Some(tenant)) => {
                    let from = tenant_of(&tenant)?;
                    let at = at.as_deref().map(moment).transpose()?;
                    let id = backups.newest(&from, at).await.map_err(Problem::from)?;
                    (from, id)
                }
                (None, None) => {
                    return Err(Problem::new(Code::InvalidRequest).message("say which backup, or which tenant").into());
                }
            };
            let tenant = to.as_deref().map(tenant_of).transpose()?.unwrap_or_else(|| from.clone());
            backups.check_restore(&tenant, &from).map_err(Problem::from)?;
            Task::Restore { tenant, from, id }
        }
        Wanted::Prune => Task::Prune,
    };
    tracing::info!(task = ?task, "an operator asks for a backup, or about one");
    let added = queue.add(vec![task.job(None)], OffsetDateTime::now_utc()).await?;
    let job = added.first().map(|added| added.job.id.to_string());
    Ok((StatusCode::ACCEPTED, Json(value!({ "job": job }))))
}

/// A backup as an archive, for whoever runs this machine.
async fn export(
    State(backups): State<Backups>,
    State(audit): State<Audit>,
    Path(id): Path<String>,
    Params(whose): Params<Whose>,
) -> Result<Response, ApiError> {
    let (tenant, id) = locate(&backups, whose.tenant.as_deref(), &id).await?;
    let entry = Entry::new(Actor::Operator, action::BACKUP_DOWNLOADED).tenant(&tenant).subject(id.as_str());
    audit.record(entry).await?;
    Ok(super::backups::archive(&backups, &tenant, &id).await?)
}

fn moment(text: &str) -> Result<OffsetDateTime, Problem> {
    OffsetDateTime::parse(text, &time::format_description::well_known::Rfc3339)
        .map_err(|_| Problem::new(Code::InvalidRequest).message("a time looks like 2026-11-21T13:30:00Z"))
}

/// The snapshot of an id, looked for among everybody's when its tenant is not said.
async fn locate(backups: &Backups, tenant: Option<&str>, id: &str) -> Result<(TenantId, SnapshotId), Problem> {
    let id = SnapshotId::parse(id).map_err(|error| Problem::new(Code::InvalidRequest).message(error.to_string()))?;
    if let Some(tenant) = tenant {
        let tenant = tenant_of(tenant)?;
        backups.find(&tenant, &id).await?;
        return Ok((tenant, id));
    }
    let everything = backups.everything().await?;
    let found = everything.into_iter().find(|(_, ids)| ids.contains(&id));
    found.map(|(tenant, _)| (tenant, id)).ok_or_else(|| backup::Error::NotFound.into())
}
