//! Why a call to a tenant's own instance failed.

use crate::error::Code;
use crate::error::Problem;
use crate::supervisor;

/// What went wrong.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The instance is not to be had.
    #[error("the instance is away")]
    Instance(#[from] supervisor::Error),
    /// It did not answer, or broke off.
    #[error("the instance did not answer")]
    Unreachable(#[from] reqwest::Error),
    /// It refused; the message is `PocketBase`'s own and may quote values.
    #[error("the instance refused with {status}")]
    Refused {
        /// Its status.
        status: u16,
        /// Its words. Not for logs.
        message: String,
    },
    /// It answered something that `PocketBase` does not say.
    #[error("the instance answered something unexpected")]
    Unexpected,
}

impl Error {
    /// Whether the same call may succeed later.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Instance(_) | Self::Unreachable(_) => true,
            Self::Refused { status, .. } => *status == 429 || *status >= 500,
            Self::Unexpected => false,
        }
    }
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        match error {
            Error::Instance(error) => error.into(),
            Error::Unreachable(_) | Error::Refused { .. } | Error::Unexpected => Problem::new(Code::BadGateway),
        }
    }
}
