//! What operators can ask and do about the vault and the audit log through the control socket. The routes are in
//! [`control`](crate::api::control).

use std::path::PathBuf;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::Deserialize;
use serde_json::Value;
use serde_json::json as value;
use time::OffsetDateTime;

use crate::api::error::ApiError;
use crate::api::json;
use crate::api::json::Params;
use crate::api::tenants::to_its_end;
use crate::audit::Audit;
use crate::audit::Verdict;
use crate::error::Code;
use crate::error::Problem;
use crate::shutdown::Shutdown;
use crate::vault::NewMaster;
use crate::vault::Refused;
use crate::vault::Secret;
use crate::vault::Status;
use crate::vault::Vault;

/// Entries in one answer, at most.
const LARGEST_PAGE: usize = 5_000;

/// The vault in numbers.
pub(super) async fn status(State(vault): State<Vault>) -> Result<Json<Status>, ApiError> {
    Ok(Json(vault.status().await?))
}

/// Where the new master key comes from.
#[derive(Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(super) enum From {
    /// Made by the server.
    Generated,
    /// In this file, as the server sees it.
    KeyFile(PathBuf),
    /// Made from this.
    Passphrase(Secret),
}

/// A rotation to begin.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Rotate {
    from: From,
}

impl std::convert::From<Refused> for Problem {
    fn from(refused: Refused) -> Self {
        let text = refused.to_string();
        match refused {
            Refused::UnderWay | Refused::NotOurs | Refused::Known => Self::new(Code::Conflict).message(text),
            Refused::Unusable(_) => Self::new(Code::InvalidRequest).message(text),
            Refused::Vault(error) => error.into(),
        }
    }
}

/// Begins to replace the master key.
pub(super) async fn rotate(
    State(vault): State<Vault>,
    State(shutdown): State<Shutdown>,
    json::Json(Rotate { from }): json::Json<Rotate>,
) -> Result<(StatusCode, Json<Value>), ApiError> {
    let new = match from {
        From::Generated => NewMaster::Generated,
        From::KeyFile(path) => NewMaster::File(path),
        From::Passphrase(passphrase) => NewMaster::Passphrase(passphrase),
    };
    let rotating = vault.clone();
    let id = to_its_end(&shutdown, async move { Ok(rotating.rotate(new, OffsetDateTime::now_utc()).await?) }).await?;
    Ok((StatusCode::ACCEPTED, Json(value!({ "key": id, "rotation": vault.progress() }))))
}

/// Where a page begins and how long it is.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Page {
    after: Option<u64>,
    limit: Option<usize>,
}

/// Entries of the audit log, oldest first.
pub(super) async fn entries(State(audit): State<Audit>, Params(page): Params<Page>) -> Result<Json<Value>, ApiError> {
    let limit = page.limit.unwrap_or(1_000).clamp(1, LARGEST_PAGE);
    let items = audit.after(page.after.unwrap_or_default(), limit).await?;
    let next = items.last().filter(|_| items.len() == limit).map(|last| last.seq);
    Ok(Json(value!({ "items": items, "next": next })))
}

/// Looks at the whole audit log.
pub(super) async fn verify(State(audit): State<Audit>) -> Result<Json<Verdict>, ApiError> {
    Ok(Json(audit.verify().await?))
}
