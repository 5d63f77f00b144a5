//! Backups of a tenant for its owner: what there is, taking one, downloading one, going back to one.
//!
//! Taking and restoring are jobs, which the owner follows like any other of theirs. Whoever is not the owner learns
//! nothing: not of the tenant, and not of its backups.

use axum::Json;
use axum::body::Body;
use axum::extract::Path;
use axum::extract::State;
use axum::http::HeaderValue;
use axum::http::StatusCode;
use axum::http::header;
use axum::response::IntoResponse;
use axum::response::Response;
use serde::Deserialize;
use serde::Serialize;
use serde_json::json as value;
use time::OffsetDateTime;
use utoipa::IntoParams;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::api::AppState;
use crate::api::error::ApiError;
use crate::api::extractors::AuthUser;
use crate::api::json::Params;
use crate::api::vault::signed_in_at;
use crate::audit::Actor;
use crate::audit::Audit;
use crate::audit::Entry;
use crate::audit::action;
use crate::backup;
use crate::backup::Backups;
use crate::backup::Manifest;
use crate::backup::Reason;
use crate::backup::SnapshotId;
use crate::error::Code;
use crate::error::Problem;
use crate::ids::TenantId;
use crate::ids::UserId;
use crate::jobs::backup::Task;
use crate::queue::Queue;
use crate::store::sessions::Sessions;
use crate::tenancy::MemberRole;
use crate::tenancy::Tenancy;
use crate::vault::Vault;

/// The routes, relative to where they are mounted.
pub fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(list_backups, create_backup))
        .routes(routes!(download_backup))
        .routes(routes!(restore_backup))
}

/// Whose backups.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct Whose {
    /// A workspace of the caller's, by its slug or id; the caller's own instance otherwise.
    tenant: Option<String>,
}

/// A backup.
#[derive(Serialize, ToSchema)]
#[schema(as = Backup)]
struct BackupView {
    #[schema(value_type = String, example = "20261121T133701042-0a1b2c3d")]
    id: SnapshotId,
    #[serde(with = "time::serde::rfc3339")]
    #[schema(value_type = String, format = DateTime)]
    taken_at: OffsetDateTime,
    /// `schedule`, `operator` or `owner`.
    #[schema(value_type = String, example = "schedule")]
    reason: Reason,
    files: u64,
    bytes: u64,
    /// Files that a record names and that were not there.
    missing: u64,
}

impl From<Manifest> for BackupView {
    fn from(found: Manifest) -> Self {
        let Manifest { id, taken_at, reason, files, bytes, missing, .. } = found;
        Self { id, taken_at, reason, files, bytes, missing }
    }
}

/// A tenant's backups, the newest first.
#[derive(Serialize, ToSchema)]
struct BackupList {
    items: Vec<BackupView>,
}

/// A job that was begun.
#[derive(Serialize, ToSchema)]
struct BackupJob {
    /// Its id: `GET /api/v1/jobs/{id}` says how far it is.
    job: String,
}

/// The tenant that the caller owns.
fn owned(tenancy: &Tenancy, user: &UserId, whose: &Whose) -> Result<TenantId, Problem> {
    let absent = || Problem::new(Code::NotFound).message("there is no such tenant");
    let found = match &whose.tenant {
        Some(name) => tenancy.resolve(name),
        None => tenancy.personal(user).and_then(|id| tenancy.resolve(id.as_str())),
    };
    let found = found.ok_or_else(absent)?;
    match tenancy.role(&found, user).ok_or_else(absent)? {
        MemberRole::Owner if found.suspended => Err(Problem::new(Code::TenantSuspended)),
        MemberRole::Owner => Ok(found.id.clone()),
        _ => Err(Problem::new(Code::Forbidden).message("only an owner has to do with backups")),
    }
}

fn id_of(text: &str) -> Result<SnapshotId, Problem> {
    SnapshotId::parse(text).map_err(|_| backup::Error::NotFound.into())
}

/// Lists the backups of the caller's instance, or of a workspace that they own.
#[utoipa::path(get, path = "/backups", tag = "backups", security(("bearer" = [])), params(Whose),
    responses((status = 200, description = "The backups.", body = BackupList)))]
async fn list_backups(
    State(tenancy): State<Tenancy>,
    State(backups): State<Backups>,
    user: AuthUser,
    Params(whose): Params<Whose>,
) -> Result<Json<BackupList>, ApiError> {
    let tenant = owned(&tenancy, &user.principal.user, &whose)?;
    backups.count_list(&tenant).map_err(Problem::from)?;
    let (items, _) = backups.list(&tenant).await.map_err(Problem::from)?;
    Ok(Json(BackupList { items: items.into_iter().map(BackupView::from).collect() }))
}

/// Takes a backup now. The instance neither stops nor wakes for it.
#[utoipa::path(post, path = "/backups", tag = "backups", security(("bearer" = [])), params(Whose),
    responses((status = 202, description = "It is under way.", body = BackupJob)))]
async fn create_backup(
    State(tenancy): State<Tenancy>,
    State(backups): State<Backups>,
    State(queue): State<Queue>,
    State(audit): State<Audit>,
    user: AuthUser,
    Params(whose): Params<Whose>,
) -> Result<(StatusCode, Json<BackupJob>), ApiError> {
    let tenant = owned(&tenancy, &user.principal.user, &whose)?;
    counted(&backups, &tenant)?;
    let entry = Entry::new(Actor::User(user.principal.user.clone()), action::BACKUP_REQUESTED).tenant(&tenant);
    audit.record(entry).await?;
    let task = Task::Tenant { tenant: tenant.clone(), reason: Reason::Owner };
    begin(&queue, &task, &tenant, &user.principal.user).await
}

fn counted(backups: &Backups, tenant: &TenantId) -> Result<(), Problem> {
    if !backups.is_on() {
        return Err(backup::Error::Off.into());
    }
    backups.count_request(tenant).map_err(Problem::from)
}

async fn begin(
    queue: &Queue,
    task: &Task,
    tenant: &TenantId,
    user: &UserId,
) -> Result<(StatusCode, Json<BackupJob>), ApiError> {
    let added = queue.add(vec![task.job(Some((tenant, user)))], OffsetDateTime::now_utc()).await?;
    let job = added.first().map(|added| added.job.id.to_string()).unwrap_or_default();
    Ok((StatusCode::ACCEPTED, Json(BackupJob { job })))
}

/// Downloads a backup as a tar archive with a plain `PocketBase` directory: unpack it, and `pocketbase serve` runs it.
/// It has no superuser (the first start asks for one), and every secret that signs tokens is a new one.
#[utoipa::path(get, path = "/backups/{id}/download", tag = "backups", security(("bearer" = [])),
    params(("id" = String, Path, description = "The backup's id."), Whose),
    responses((status = 200, description = "The archive.", content_type = "application/x-tar", body = Vec<u8>)))]
async fn download_backup(
    State(tenancy): State<Tenancy>,
    State(backups): State<Backups>,
    State(audit): State<Audit>,
    user: AuthUser,
    Path(id): Path<String>,
    Params(whose): Params<Whose>,
) -> Result<Response, ApiError> {
    let tenant = owned(&tenancy, &user.principal.user, &whose)?;
    let id = id_of(&id)?;
    // Counted first: to look for it is work as well.
    counted(&backups, &tenant)?;
    backups.find(&tenant, &id).await.map_err(Problem::from)?;
    let entry = Entry::new(Actor::User(user.principal.user.clone()), action::BACKUP_DOWNLOADED).tenant(&tenant);
    audit.record(entry.subject(id.as_str())).await?;
    Ok(archive(&backups, &tenant, &id).await?)
}

/// A backup as a tar archive that is made while it is read.
pub(super) async fn archive(backups: &Backups, tenant: &TenantId, id: &SnapshotId) -> Result<Response, Problem> {
    let (manifest, pieces) = backups.export(tenant, id).await?;
    let stream = futures_util::stream::unfold(pieces, |mut pieces| async move { Some((pieces.recv().await?, pieces)) });
    let name = format!("attachment; filename=\"{}-{}.tar\"", manifest.tenant, manifest.id);
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("application/x-tar")),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
        (header::CONTENT_DISPOSITION, HeaderValue::try_from(name).map_err(|_| Problem::new(Code::Internal))?),
    ];
    Ok((headers, Body::from_stream(stream)).into_response())
}

/// Replaces the data by a backup, which is tried first. What was written since is put away; the operator can bring it
/// back for some days. Needs a sign-in of the last minutes. Whoever is signed in stays so; open streams connect anew.
#[utoipa::path(post, path = "/backups/{id}/restore", tag = "backups", security(("bearer" = [])),
    params(("id" = String, Path, description = "The backup's id."), Whose),
    responses((status = 202, description = "It is under way.", body = BackupJob)))]
#[expect(clippy::too_many_arguments, reason = "each is a part that the route needs")]
async fn restore_backup(
    State(tenancy): State<Tenancy>,
    State(backups): State<Backups>,
    State(queue): State<Queue>,
    State(audit): State<Audit>,
    State(vault): State<Vault>,
    State(sessions): State<Sessions>,
    user: AuthUser,
    Path(id): Path<String>,
    Params(whose): Params<Whose>,
) -> Result<(StatusCode, Json<BackupJob>), ApiError> {
    let caller = &user.principal.user;
    let tenant = owned(&tenancy, caller, &whose)?;
    let id = id_of(&id)?;
    vault.check_sign_in(signed_in_at(&sessions, &user.principal), OffsetDateTime::now_utc()).map_err(Problem::from)?;
    counted(&backups, &tenant)?;
    backups.find(&tenant, &id).await.map_err(Problem::from)?;
    let entry = Entry::new(Actor::User(caller.clone()), action::BACKUP_RESTORE_REQUESTED).tenant(&tenant);
    audit.record(entry.subject(id.as_str()).detail(value!({ "taken_at": id.at().unix_timestamp() }))).await?;
    let task = Task::Restore { tenant: tenant.clone(), from: tenant.clone(), id };
    begin(&queue, &task, &tenant, caller).await
}
