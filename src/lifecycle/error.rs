//! Why a tenant is not deleted, brought back or erased, and what the caller sees of it.

use serde_json::json;

use crate::audit;
use crate::auth::accounts;
use crate::error::Code;
use crate::error::Problem;
use crate::ids::TenantId;
use crate::queue;
use crate::store;
use crate::supervisor;
use crate::supervisor::aside::Stuck;
use crate::vault;

/// Errors of deletion and erasure.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No such tenant.
    #[error("there is no such tenant")]
    NotFound,
    /// The global instance holds all accounts.
    #[error("the global instance cannot be deleted")]
    Global,
    /// The account owns workspaces that others may need.
    #[error("hand over or delete the workspaces of this account first")]
    OwnsWorkspaces(Vec<TenantId>),
    /// It was not deleted.
    #[error("it is not deleted")]
    NotDeleted,
    /// What was begun cannot be taken back.
    #[error("it is being erased, which nothing takes back")]
    Erasing,
    /// No orphan of this name.
    #[error("there is no orphan of this name; see `pocketfleet tenants orphans`")]
    NoOrphan,
    /// What is there cannot be adopted without being told more.
    #[error("{0}")]
    Unclear(&'static str),
    /// Part of it failed and is tried again.
    #[error("{0} cannot be erased now")]
    Part(&'static str),
    /// A folder is not where it should be.
    #[error(transparent)]
    Stuck(#[from] Stuck),
    /// The control database failed.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// It could not be written down.
    #[error(transparent)]
    Audit(#[from] audit::Error),
    /// The vault failed.
    #[error(transparent)]
    Vault(#[from] vault::Error),
    /// The queue failed.
    #[error(transparent)]
    Queue(#[from] queue::Error),
    /// The instance cannot be stopped.
    #[error(transparent)]
    Supervisor(#[from] supervisor::Error),
    /// The accounts are away.
    #[error(transparent)]
    Accounts(#[from] accounts::Error),
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        let text = error.to_string();
        match error {
            Error::NotFound | Error::NoOrphan => Self::new(Code::NotFound).message(text),
            Error::Global => Self::new(Code::Forbidden).message(text),
            Error::OwnsWorkspaces(ids) => Self::new(Code::Conflict).message(text).details(json!({ "workspaces": ids })),
            Error::NotDeleted | Error::Erasing | Error::Unclear(_) | Error::Stuck(Stuck::Taken(_) | Stuck::Held(_)) => {
                Self::new(Code::Conflict).message(text)
            }
            Error::Part(_) => Self::new(Code::Internal).message(text),
            Error::Stuck(Stuck::Running(error)) | Error::Supervisor(error) => error.into(),
            Error::Stuck(Stuck::Io { .. } | Stuck::Ended) => Self::new(Code::Internal),
            Error::Store(error) => error.into(),
            Error::Audit(error) => error.into(),
            Error::Vault(error) => error.into(),
            Error::Queue(error) => error.into(),
            Error::Accounts(error) => error.into(),
        }
    }
}
