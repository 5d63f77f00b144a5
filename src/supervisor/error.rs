//! Why a caller does not get an instance.

use std::time::Duration;

use crate::error::Code;
use crate::error::Problem;

/// A refusal, cheap to clone because every waiter gets one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// No tenant of this name is registered.
    #[error("no such tenant")]
    UnknownTenant,
    /// The deadline of the wait passed.
    #[error("the instance did not wake in time")]
    WakeTimeout,
    /// The instance's waiting room is full.
    #[error("too many requests wait for this instance")]
    TenantBusy,
    /// The fleet's waiting room is full.
    #[error("too many requests wait for instances")]
    WaitingRoomFull,
    /// It failed and is not started before this time.
    #[error("the instance failed and restarts in {retry_after:?}: {reason}")]
    Backoff {
        /// When a request makes sense again.
        retry_after: Duration,
        /// What happened last.
        reason: String,
    },
    /// It failed too often; an operator has to release it.
    #[error("the instance is in quarantine: {reason}")]
    Quarantined {
        /// What happened last.
        reason: String,
    },
    /// Something outside the instance keeps it from starting.
    #[error("the instance cannot start: {reason}")]
    Blocked {
        /// What is in the way.
        reason: String,
    },
    /// An operator suspended it.
    #[error("the instance is suspended")]
    Suspended,
    /// Its tenant was deleted.
    #[error("the tenant is deleted")]
    Deleted,
    /// The running cap is reached and nothing can sleep.
    #[error("no room for another awake instance")]
    Capacity,
    /// This process is going down.
    #[error("the supervisor is shutting down")]
    ShuttingDown,
    /// The control database refused; the text is for operators.
    #[error("the control database failed: {0}")]
    Store(String),
}

impl Error {
    /// Whether the instance starts again by itself.
    pub(crate) fn is_backoff(&self) -> bool {
        matches!(self, Self::Backoff { .. })
    }
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        match error {
            Error::UnknownTenant => Self::new(Code::NotFound),
            Error::WakeTimeout => Self::new(Code::WakeTimeout).retry_after(Duration::from_secs(2)),
            Error::TenantBusy => Self::new(Code::TenantBusy).retry_after(Duration::from_secs(1)),
            Error::WaitingRoomFull => Self::new(Code::Overloaded).retry_after(Duration::from_secs(2)),
            Error::Backoff { retry_after, reason: _ } => Self::new(Code::TenantBackoff).retry_after(retry_after),
            Error::Quarantined { reason: _ } => Self::new(Code::TenantQuarantined).retry_after(Duration::from_mins(5)),
            Error::Blocked { reason: _ } => Self::new(Code::TenantBlocked).retry_after(Duration::from_secs(30)),
            Error::Suspended => Self::new(Code::TenantSuspended),
            Error::Deleted => Self::new(Code::TenantDeleted),
            Error::Capacity => Self::new(Code::CapacityReached).retry_after(Duration::from_secs(5)),
            Error::ShuttingDown => Self::new(Code::ShuttingDown).retry_after(Duration::from_secs(5)),
            Error::Store(_) => Self::new(Code::Internal),
        }
    }
}

impl From<crate::store::Error> for Error {
    fn from(error: crate::store::Error) -> Self {
        Self::Store(error.to_string())
    }
}
