//! Why a destination did not take something, and what can be done about it.

use std::io;
use std::time::Duration;

use reqwest::StatusCode;
use rustix::io::Errno;

use crate::error::Code;
use crate::error::Problem;
use crate::outbound;
use crate::records;
use crate::vault;

/// Why a destination did not take a file.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A setting that is missing or not usable; the text says which and what is wanted.
    #[error("the destination's settings: {0}")]
    Settings(&'static str),
    /// This server does not offer the kind.
    #[error("this server has no folder for deliveries; ask its operator to set delivery.folder")]
    NotOffered,
    /// There is no such destination.
    #[error("there is no such destination")]
    Unknown,
    /// The address may not be called.
    #[error("the destination's address is refused: {0}")]
    Refused(#[from] outbound::Refused),
    /// The vault holds no usable key for it.
    #[error("the destination has no usable key: {0}")]
    Key(#[from] vault::Error),
    /// The key in the vault is not what this kind takes.
    #[error("the destination's key is not usable: {0}")]
    MalformedKey(&'static str),
    /// The destination does not accept the key.
    #[error("the destination refuses the key (status {0}); store a working one in the vault")]
    Unauthorized(u16),
    /// The file is larger than the destination takes.
    #[error("the file is larger than the destination takes")]
    TooLarge,
    /// The destination will not take it, whatever is tried.
    #[error("the destination answered {0}")]
    Rejected(u16),
    /// The destination cannot take it now.
    #[error("the destination answered {status}; it is tried again")]
    Unavailable {
        /// What it answered.
        status: u16,
        /// When it wants to be asked again.
        retry_after: Option<Duration>,
    },
    /// No connection, or one that broke.
    #[error("the destination cannot be reached; it is tried again")]
    Unreachable,
    /// No room there.
    #[error("the destination has no room; it is tried again later")]
    Full,
    /// What was sent before is not there any more.
    #[error("the destination forgot the upload; it begins again")]
    Gone,
    /// The destination breaks its protocol.
    #[error("the destination's answer is not what its protocol says: {0}")]
    Unexpected(&'static str),
    /// The person's part, which cannot be done for them.
    #[error("loom takes files from a person only: upload the video there and submit its share link")]
    NeedsPerson,
    /// A share link that is not one.
    #[error("not a share link of Loom: https://www.loom.com/share/ and 32 hexadecimal digits")]
    NotAShareLink,
    /// A share link behind which Loom knows no video.
    #[error("loom knows no video at this link; share it with everybody who has the link")]
    NoSuchVideo,
    /// The user's own instance, where destinations are kept, is away.
    #[error("the instance with the destinations cannot be used: {0}")]
    Records(#[from] records::Error),
    /// Reading or writing here.
    #[error("read or write a file: {0}")]
    Io(io::Error),
}

/// What to do after an [`Error`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Remedy {
    /// Try again, after this time if given.
    Retry(Option<Duration>),
    /// Begin the file again, at once.
    StartOver,
    /// Nothing helps but a change by a person.
    GiveUp,
}

/// How long to leave a full destination alone.
const WHEN_FULL: Duration = Duration::from_mins(5);

impl Error {
    /// What to do about it.
    pub fn remedy(&self) -> Remedy {
        match self {
            Self::Gone => Remedy::StartOver,
            Self::Full => Remedy::Retry(Some(WHEN_FULL)),
            Self::Unavailable { retry_after, .. } => Remedy::Retry(*retry_after),
            Self::Unreachable | Self::Records(_) | Self::Io(_) => Remedy::Retry(None),
            Self::Settings(_)
            | Self::NotOffered
            | Self::Unknown
            | Self::Refused(_)
            | Self::Key(_)
            | Self::MalformedKey(_)
            | Self::Unauthorized(_)
            | Self::TooLarge
            | Self::Rejected(_)
            | Self::Unexpected(_)
            | Self::NeedsPerson
            | Self::NotAShareLink
            | Self::NoSuchVideo => Remedy::GiveUp,
        }
    }

    /// The error that a status stands for; none for success. A redirect is one, since none is followed.
    pub fn of_status(status: StatusCode, retry_after: Option<Duration>) -> Option<Self> {
        match status.as_u16() {
            200..=299 => None,
            401 | 403 => Some(Self::Unauthorized(status.as_u16())),
            413 => Some(Self::TooLarge),
            507 => Some(Self::Full),
            408 | 423 | 425 | 429 | 500..=599 => Some(Self::Unavailable { status: status.as_u16(), retry_after }),
            other => Some(Self::Rejected(other)),
        }
    }
}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        match error.raw_os_error().map(Errno::from_raw_os_error) {
            Some(Errno::NOSPC | Errno::DQUOT) => Self::Full,
            Some(Errno::FBIG) => Self::TooLarge,
            _ => Self::Io(error),
        }
    }
}

impl From<rustix::io::Errno> for Error {
    fn from(error: Errno) -> Self {
        io::Error::from(error).into()
    }
}

impl From<reqwest::Error> for Error {
    fn from(error: reqwest::Error) -> Self {
        match outbound::Error::from(error) {
            outbound::Error::Refused(refused) => Self::Refused(refused),
            // The text may hold the address, which may be a credential.
            outbound::Error::Unreachable(_) | outbound::Error::Redirects => Self::Unreachable,
        }
    }
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        let message = error.to_string();
        match error {
            Error::Settings(_) | Error::NotAShareLink | Error::NoSuchVideo | Error::NeedsPerson => {
                Self::new(Code::InvalidDestination).message(message)
            }
            Error::Refused(_) | Error::NotOffered => Self::new(Code::InvalidDestination).message(message),
            Error::Unknown => Self::new(Code::NotFound).message(message),
            Error::Records(error) => error.into(),
            Error::Key(vault::Error::NotFound | vault::Error::Revoked | vault::Error::Expired)
            | Error::MalformedKey(_)
            | Error::Unauthorized(_) => Self::new(Code::DestinationKey).message(message),
            Error::Key(error) => error.into(),
            Error::TooLarge
            | Error::Rejected(_)
            | Error::Unavailable { .. }
            | Error::Unreachable
            | Error::Full
            | Error::Gone
            | Error::Unexpected(_) => Self::new(Code::DestinationFailed).message(message),
            Error::Io(error) => {
                tracing::error!(%error, "use a destination");
                Self::new(Code::Internal)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_says_whether_trying_again_helps() {
        let remedy =
            |status: u16| Error::of_status(StatusCode::from_u16(status).unwrap(), None).map(|error| error.remedy());
        assert_eq!(remedy(201), None);
        for status in [429, 500, 502, 503, 504, 408] {
            assert_eq!(remedy(status), Some(Remedy::Retry(None)), "{status}");
        }
        for status in [301, 302, 307, 400, 401, 403, 404, 413, 422] {
            assert_eq!(remedy(status), Some(Remedy::GiveUp), "{status}");
        }
        assert_eq!(remedy(507), Some(Remedy::Retry(Some(WHEN_FULL))));
    }

    #[test]
    fn a_full_disk_is_told_apart() {
        let error: Error = io::Error::from_raw_os_error(Errno::NOSPC.raw_os_error()).into();
        assert!(matches!(error, Error::Full));
    }
}
