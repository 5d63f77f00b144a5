//! What can go wrong with accounts, and what callers see of it.

use std::time::Duration;

use serde_json::Map;
use serde_json::Value;

use super::Answer;
use crate::auth;
use crate::auth::gate;
use crate::error::Code;
use crate::error::Problem;
use crate::store;
use crate::supervisor;

/// When to come back if nothing better is known.
const SOON: Duration = Duration::from_secs(1);

/// Why an account operation failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// `PocketBase` refused; on its own paths the answer goes out as it is.
    #[error("the accounts service refused with status {}", .0.status)]
    Refused(Answer),
    /// Fields that fail validation: name to `{"code","message"}`.
    #[error("some fields are not valid")]
    Invalid(Map<String, Value>),
    /// Mails cannot be sent.
    #[error("no mail server is configured")]
    NoMail,
    /// An account with this e-mail address exists.
    #[error("the e-mail address is taken")]
    EmailTaken,
    /// Refused before any password was checked.
    #[error(transparent)]
    Gate(#[from] gate::Error),
    /// The token does not hold.
    #[error(transparent)]
    Token(#[from] auth::Error),
    /// The global instance cannot be leased.
    #[error("the accounts service is away")]
    Away(#[from] supervisor::Error),
    /// The global instance did not answer, or broke off.
    #[error("the accounts service did not answer")]
    Http(#[source] reqwest::Error),
    /// An answer that is too large, or not what `PocketBase` answers.
    #[error("the accounts service gave an unexpected answer")]
    Unexpected,
    /// The known sessions were ended, but the account's key could not be changed.
    #[error("known sessions were ended, unknown ones could not be")]
    OnlyKnownEnded,
    /// No such session of this user.
    #[error("no such session")]
    NoSession,
    /// The session registry or the tenant records failed.
    #[error("the control database failed")]
    Store(#[from] store::Error),
    /// The runtime dropped the work, which happens at shutdown only.
    #[error("the work was interrupted")]
    Interrupted,
}

impl From<reqwest::Error> for Error {
    fn from(error: reqwest::Error) -> Self {
        // The query of a user's request may hold anything, so addresses stay out of errors.
        Self::Http(error.without_url())
    }
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        let away = || Self::new(Code::AccountsUnavailable).retry_after(SOON);
        match error {
            Error::Refused(answer) => refused(&answer),
            Error::Invalid(fields) => Self::new(Code::ValidationFailed).details(Value::Object(fields)),
            Error::NoMail => Self::new(Code::MailNotConfigured),
            Error::EmailTaken => Self::new(Code::EmailTaken),
            Error::Gate(gate::Error::RateLimited(wait)) => Self::new(Code::RateLimited).retry_after(wait),
            Error::Gate(gate::Error::Overloaded(wait)) => Self::new(Code::Overloaded).retry_after(wait),
            Error::Token(error) => error.into(),
            Error::Away(supervisor::Error::ShuttingDown) | Error::Interrupted => Self::new(Code::ShuttingDown),
            Error::Away(supervisor::Error::Backoff { retry_after, reason: _ }) => away().retry_after(retry_after),
            Error::Away(_) | Error::Http(_) => away(),
            Error::Unexpected => Self::new(Code::AccountsUnavailable)
                .message("the accounts service gave an answer that cannot be understood"),
            Error::OnlyKnownEnded => away().message(
                "all sessions known here were ended, but the accounts service is away: repeat this to end others too",
            ),
            Error::NoSession => Self::new(Code::NotFound).message("there is no such session"),
            Error::Store(error) => error.into(),
        }
    }
}

/// A refusal of `PocketBase` in our own words.
fn refused(answer: &Answer) -> Problem {
    match answer.status {
        400 => Problem::new(Code::InvalidCredentials),
        401 if answer.asks_for_second_factor() => {
            Problem::new(Code::MfaRequired).details(answer.json().unwrap_or_default())
        }
        401 => Problem::new(Code::Unauthorized),
        403 => Problem::new(Code::Forbidden),
        404 => Problem::new(Code::NotFound),
        413 => Problem::new(Code::BodyTooLarge),
        429 => Problem::new(Code::RateLimited).retry_after(SOON),
        _ => Problem::new(Code::AccountsUnavailable).retry_after(SOON),
    }
}
