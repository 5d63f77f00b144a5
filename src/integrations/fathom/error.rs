//! Why a call to Fathom failed, by status only: Fathom publishes no error body.

use std::fmt;
use std::time::Duration;

use crate::outbound;

/// What went wrong.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The key or token is not (or no longer) valid: 401, or a refresh that was refused.
    #[error("Fathom does not accept the key; store a valid one, or connect Fathom again")]
    Unauthorized,
    /// The key's owner may not see this: 403.
    #[error("Fathom does not let the owner of the key do this")]
    Forbidden,
    /// There is no such recording, download or webhook: 404.
    #[error("Fathom has nothing under this id")]
    NotFound,
    /// The recording has no media to download: 422 to a download.
    #[error("Fathom has no downloadable media of this recording")]
    NoMedia,
    /// Any other 4xx: we asked for something wrong.
    #[error("Fathom refused the request with {status}")]
    Rejected {
        /// The status.
        status: u16,
        /// What it said.
        body: Excerpt,
    },
    /// The key's budget is used up, by its own headers or by our count.
    #[error("Fathom's limit for this key is reached; try again in {} s", retry_after.as_secs().max(1))]
    RateLimited {
        /// When it makes sense to try again.
        retry_after: Duration,
    },
    /// 5xx.
    #[error("Fathom failed with {status}")]
    Server {
        /// The status.
        status: u16,
        /// What it said.
        body: Excerpt,
    },
    /// An answer that is not what Fathom's document says, or too large.
    #[error("Fathom answered something unexpected: {0}")]
    Malformed(&'static str),
    /// No answer, or not in time.
    #[error("Fathom did not answer")]
    Unreachable(#[source] Option<reqwest::Error>),
    /// Media somewhere that is not called.
    #[error("the address of the media is not one that is called")]
    Refused(#[from] outbound::Refused),
    /// A signed link that is over: ask for a new download.
    #[error("the link to the media has expired")]
    LinkExpired,
    /// Fresh tokens could not be kept, so they are not used.
    #[error("the fresh tokens could not be stored: {0}")]
    NotSaved(String),
    /// The operator has not registered an app.
    #[error("sign-in with Fathom is not configured; ask the operator to set [fathom.oauth]")]
    NoApp,
}

impl Error {
    /// Whether the same call may succeed later without anybody doing anything.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::RateLimited { .. }
            | Self::Server { .. }
            | Self::Unreachable(_)
            | Self::LinkExpired
            | Self::Malformed(_)
            | Self::NotSaved(_) => true,
            Self::Unauthorized
            | Self::Forbidden
            | Self::NotFound
            | Self::NoMedia
            | Self::Rejected { .. }
            | Self::Refused(_)
            | Self::NoApp => false,
        }
    }

    /// When to try again, where Fathom or our count said so.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::RateLimited { retry_after } => Some(*retry_after),
            _ => None,
        }
    }
}

impl From<reqwest::Error> for Error {
    /// The URL is taken out: it may be a credential.
    fn from(error: reqwest::Error) -> Self {
        Self::Unreachable(Some(error.without_url()))
    }
}

impl From<outbound::Error> for Error {
    fn from(error: outbound::Error) -> Self {
        match error {
            outbound::Error::Refused(refused) => Self::Refused(refused),
            outbound::Error::Unreachable(error) => Self::Unreachable(Some(error)),
            outbound::Error::Redirects => Self::Malformed("redirects without end"),
        }
    }
}

/// The beginning of an error body, for a person who asks. Prints as its length: it may quote anything.
#[derive(Default, PartialEq, Eq)]
pub struct Excerpt(String);

impl Excerpt {
    /// Most bytes that are kept.
    pub const MAX_BYTES: usize = 4096;

    pub(super) fn new(bytes: &[u8]) -> Self {
        Self(String::from_utf8_lossy(bytes.get(..Self::MAX_BYTES).unwrap_or(bytes)).into_owned())
    }

    /// The text. Not for logs.
    pub fn text(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Excerpt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{} bytes]", self.0.len())
    }
}
