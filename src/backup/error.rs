//! Why a backup or a restore did not happen.

use std::io;

use crate::error::Code;
use crate::error::Problem;
use crate::pocketbase::database;
use crate::store;
use crate::supervisor;
use crate::supervisor::directory::Unready;
use crate::vault;

/// Everything that can be in the way.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// `backup.store` is empty.
    #[error("backups are off; say with backup.store where they go")]
    Off,
    /// No such snapshot, or another tenant's.
    #[error("there is no such backup")]
    NotFound,
    /// An owner asked too often.
    #[error("too many backups and restores were asked for; try again later")]
    TooOften(std::time::Duration),
    /// The instance cannot be copied now.
    #[error(transparent)]
    Unready(#[from] Unready),
    /// It changed under the copy again and again.
    #[error("it was upgraded or started again and again while it was copied; try again later")]
    Restless,
    /// Not done to a running fleet.
    #[error("the global instance and the control database are restored with `pocketfleet backup restore-fleet` only")]
    FleetOnly,
    /// Of an instance that nobody could start.
    #[error("the tenant is not registered, so nobody could reach what was restored")]
    UnknownTenant,
    /// An object is missing, changed, cut, or another's.
    #[error("the backup is damaged: {0}")]
    Damaged(String),
    /// Its data is not what it was.
    #[error("the backup does not pass: {0}")]
    Failed(String),
    /// No master key that is here opens it.
    #[error("the backup cannot be opened with the master key that is given")]
    Sealed,
    /// A restore that must not be.
    #[error("{0}")]
    Unfit(&'static str),
    /// Somebody's files are beyond what can be backed up.
    #[error("{0}")]
    TooMuch(&'static str),
    /// The place of the backups refused.
    #[error("the store of the backups failed: {0}")]
    Store(String),
    /// The file system refused.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// The reason.
        source: io::Error,
    },
    /// An instance's database.
    #[error("{0}")]
    Database(String),
    /// The vault refused.
    #[error(transparent)]
    Vault(#[from] vault::Error),
    /// The instance could not be replaced.
    #[error(transparent)]
    Supervisor(#[from] supervisor::Error),
    /// The server is going down.
    #[error("the server is shutting down")]
    Stopping,
}

impl Error {
    /// For `map_err`, with what was tried.
    pub(super) fn io(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { what, source }
    }

    /// Whether it makes sense to try again without anybody's doing.
    pub fn is_passing(&self) -> bool {
        // Nobody brings a tenant back by waiting.
        let is_gone =
            |error: &supervisor::Error| matches!(error, supervisor::Error::Deleted | supervisor::Error::UnknownTenant);
        if let Self::Supervisor(error) = self {
            return !is_gone(error);
        }
        matches!(
            self,
            Self::Unready(Unready::Busy | Unready::Io(_))
                | Self::Restless
                | Self::Store(_)
                | Self::Io { .. }
                | Self::Database(_)
                | Self::Stopping
        )
    }
}

impl From<database::Error> for Error {
    fn from(error: database::Error) -> Self {
        let cause = std::error::Error::source(&error).map(|source| format!(": {source}")).unwrap_or_default();
        Self::Database(format!("{error}{cause}"))
    }
}

impl From<store::Error> for Error {
    fn from(error: store::Error) -> Self {
        let cause = std::error::Error::source(&error).map(|source| format!(": {source}")).unwrap_or_default();
        Self::Store(format!("{error}{cause}"))
    }
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        let text = error.to_string();
        match error {
            Error::Off => Self::new(Code::BackupsOff),
            Error::FleetOnly | Error::Unready(_) | Error::Unfit(_) => Self::new(Code::Conflict).message(text),
            Error::NotFound | Error::UnknownTenant => Self::new(Code::NotFound).message(text),
            Error::Supervisor(error) => error.into(),
            Error::Vault(error) => error.into(),
            Error::TooOften(wait) => Self::new(Code::RateLimited).message(text).retry_after(wait),
            Error::Stopping => Self::new(Code::ShuttingDown),
            _ => Self::new(Code::BackupFailed).message(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_of_a_deleted_tenant_is_not_tried_again() {
        assert!(Error::from(supervisor::Error::TenantBusy).is_passing());
        assert!(!Error::from(supervisor::Error::Deleted).is_passing());
        assert!(!Error::from(supervisor::Error::UnknownTenant).is_passing());
    }
}
