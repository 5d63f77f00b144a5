//! What can go wrong with the audit log, and what a caller sees of it.

use crate::error::Code;
use crate::error::Problem;
use crate::store;

/// Errors of the audit log. Whoever gets one must not do what was to be written down.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The entry's particulars are too long.
    #[error("the entry of the audit log is too large")]
    TooLarge,
    /// It was not on disk in time; it may be later.
    #[error("the audit log did not answer in time")]
    Late,
    /// We are stopping.
    #[error("the audit log is closed")]
    Closed,
    /// The writer failed; the cause is in the log.
    #[error("the audit log could not be written")]
    Failed,
    /// An entry cannot be read.
    #[error("entry {0} of the audit log cannot be read")]
    Unreadable(u64),
    /// The store failed.
    #[error("the audit log's store failed")]
    Store(#[from] store::Error),
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        match error {
            Error::TooLarge | Error::Unreadable(_) | Error::Failed => Self::new(Code::Internal),
            Error::Late => Self::new(Code::Overloaded),
            Error::Closed => Self::new(Code::ShuttingDown),
            Error::Store(error) => error.into(),
        }
    }
}
