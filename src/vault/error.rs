//! What can go wrong in the vault, and what a caller sees of it.

use std::time::Duration;

use serde_json::json;

use super::envelope::Unreadable;
use crate::audit;
use crate::error::Code;
use crate::error::Problem;
use crate::store;

/// A field of a request that breaks a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Invalid {
    /// The field.
    pub field: &'static str,
    /// A stable word for programs.
    pub code: &'static str,
    /// The rule, for people.
    pub message: &'static str,
}

/// Errors of the vault.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no such secret in this tenant.
    #[error("there is no such secret")]
    NotFound,
    /// Its owner deleted it.
    #[error("the secret was deleted")]
    Revoked,
    /// Its time is over.
    #[error("the secret has expired")]
    Expired,
    /// It cannot be opened: changed, exchanged or put back behind our back. There is one such error on purpose.
    #[error("the secret cannot be opened")]
    Unreadable,
    /// A field breaks a rule.
    #[error("the field {} is not valid: {}", .0.field, .0.message)]
    Invalid(Invalid),
    /// Another secret of the service has this label.
    #[error("another secret of this service has this label")]
    LabelTaken,
    /// The tenant has as many secrets as it may.
    #[error("no room for another secret")]
    Full {
        /// How many it may have.
        limit: usize,
    },
    /// Showing a secret needs a sign-in that is not older than this.
    #[error("the sign-in is too old")]
    SignInFirst {
        /// How old it may be.
        within: Duration,
    },
    /// Too many at once.
    #[error("too many requests for secrets")]
    TooMany {
        /// When it makes sense to come back.
        wait: Duration,
    },
    /// The service itself said that the secret is not good.
    #[error("the service refused the secret")]
    Rejected {
        /// What is wrong, in words for its owner. No part of the secret.
        message: String,
    },
    /// The service could not be asked whether the secret is good.
    #[error("the service could not be asked about the secret")]
    Unchecked,
    /// The audit log could not be written, so nothing was shown.
    #[error("write the audit log")]
    Audit(#[from] audit::Error),
    /// The store failed.
    #[error("the vault's store failed")]
    Store(#[from] store::Error),
}

impl From<Unreadable> for Error {
    fn from(_: Unreadable) -> Self {
        Self::Unreadable
    }
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        let field = |field: &str, code: &str, message: &str| {
            Self::new(Code::ValidationFailed).details(json!({ field: { "code": code, "message": message } }))
        };
        match error {
            // Who asks on the network must not tell a deleted one from one that never was.
            Error::NotFound | Error::Revoked => Self::new(Code::NotFound).message("there is no such secret"),
            Error::Expired => Self::new(Code::SecretExpired),
            Error::Unreadable => Self::new(Code::SecretUnreadable),
            Error::Invalid(Invalid { field: name, code, message }) => field(name, code, message),
            Error::LabelTaken => Self::new(Code::Conflict).message("another secret of this service has this label"),
            Error::Full { limit } => Self::new(Code::Conflict)
                .message("there is no room for another secret; delete one first")
                .details(json!({ "limit": limit })),
            Error::SignInFirst { within } => {
                Self::new(Code::SignInAgain).details(json!({ "within_seconds": within.as_secs() }))
            }
            Error::TooMany { wait } => Self::new(Code::RateLimited).retry_after(wait),
            Error::Rejected { message } => field("secret", "rejected_by_service", &message),
            Error::Unchecked => Self::new(Code::ServiceUnreachable).retry_after(Duration::from_secs(10)),
            Error::Audit(error) => error.into(),
            Error::Store(error) => error.into(),
        }
    }
}
