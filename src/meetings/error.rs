//! Why something about meetings could not be done.

use std::time::Duration;

use crate::error::Code;
use crate::error::Problem;
use crate::integrations::fathom;
use crate::records;
use crate::store;
use crate::vault;

/// What went wrong.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A cursor that is not one of ours.
    #[error("the cursor is not one that a list gave")]
    Cursor,
    /// Nothing of this number, or nothing that the caller may know of.
    #[error("there is no such meeting")]
    NotFound,
    /// The instance has no place for meetings: its template is older, or not ours.
    #[error("this instance has no collections for meetings; its template has to be brought up to date")]
    NoCollections,
    /// No address that Fathom can call.
    #[error("this server has no public URL; ask its operator to set server.public_url")]
    NoPublicUrl,
    /// Nothing that could deliver.
    #[error("this server delivers nothing by itself; leave auto_deliver out")]
    NoDelivery,
    /// Another change of the same hook is on its way.
    #[error("the webhook is being changed; try again soon")]
    Busy,
    /// The signature, the time or the address of a call is wrong.
    #[error("the call is not from whom it says it is")]
    Forged,
    /// A signed call that says nothing we understand.
    #[error("the body is not a meeting")]
    NotAMeeting,
    /// Too many calls wait to be taken in.
    #[error("too many webhook calls wait to be taken in")]
    InboxFull,
    /// Nobody can sign in at Fathom through us.
    #[error("sign-in at Fathom is not configured; store a key, or ask the operator to set [fathom.oauth]")]
    NoApp,
    /// No key, or one that cannot be used.
    #[error(transparent)]
    Vault(#[from] vault::Error),
    /// Fathom's answer.
    #[error(transparent)]
    Fathom(#[from] fathom::Error),
    /// The user's own instance.
    #[error(transparent)]
    Records(#[from] records::Error),
    /// The control plane's records.
    #[error(transparent)]
    Store(#[from] store::Error),
}

impl Error {
    /// Whether the same may succeed later without anybody doing anything.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Busy | Self::InboxFull | Self::Store(_) => true,
            Self::Cursor
            | Self::NoCollections
            | Self::NotFound
            | Self::NoDelivery
            | Self::NoPublicUrl
            | Self::NoApp
            | Self::Forged
            | Self::NotAMeeting
            | Self::Vault(_) => false,
            Self::Fathom(error) => error.is_passing(),
            Self::Records(error) => error.is_passing(),
        }
    }

    /// When to try again, where Fathom said so.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Fathom(error) => error.retry_after(),
            _ => None,
        }
    }
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        let said = error.to_string();
        match error {
            Error::Cursor => Problem::new(Code::InvalidRequest).message(said),
            Error::NotFound | Error::Forged => Problem::new(Code::NotFound),
            Error::NoPublicUrl => Problem::new(Code::WebhooksNotConfigured),
            Error::NoCollections | Error::NoDelivery | Error::NoApp => Problem::new(Code::NotImplemented).message(said),
            Error::Busy => Problem::new(Code::Conflict).message(said),
            Error::NotAMeeting => Problem::new(Code::InvalidBody).message(said),
            Error::InboxFull => Problem::new(Code::Overloaded).retry_after(Duration::from_mins(1)),
            Error::Vault(vault::Error::NotFound | vault::Error::Expired | vault::Error::Revoked) => {
                Problem::new(Code::FathomKeyMissing)
            }
            Error::Vault(error) => error.into(),
            Error::Fathom(error) => problem_of(&error),
            Error::Records(error) => error.into(),
            Error::Store(error) => error.into(),
        }
    }
}

fn problem_of(error: &fathom::Error) -> Problem {
    match error {
        fathom::Error::Unauthorized => Problem::new(Code::FathomKeyRefused),
        fathom::Error::Forbidden | fathom::Error::Rejected { .. } | fathom::Error::NoMedia => {
            Problem::new(Code::FathomRefused)
        }
        fathom::Error::NotFound => Problem::new(Code::NotFound),
        fathom::Error::RateLimited { retry_after } => Problem::new(Code::FathomBusy).retry_after(*retry_after),
        fathom::Error::Server { .. }
        | fathom::Error::Malformed(_)
        | fathom::Error::Unreachable(_)
        | fathom::Error::Refused(_)
        | fathom::Error::LinkExpired
        | fathom::Error::NotSaved(_)
        | fathom::Error::NoApp => Problem::new(Code::FathomUnavailable),
    }
}
