//! Why a call to a tenant's own instance failed.

use serde_json::Value;

use super::BATCH_PATH;
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
    /// It did not get through with what was to be written together, and wrote nothing.
    #[error("the instance did not get through in time")]
    Interrupted,
    /// It answered something that `PocketBase` does not say.
    #[error("the instance answered something unexpected")]
    Unexpected,
}

impl Error {
    /// Whether the same call may succeed later.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Instance(_) | Self::Unreachable(_) | Self::Interrupted => true,
            Self::Refused { status, .. } => *status == 429 || *status >= 500,
            Self::Unexpected => false,
        }
    }
}

/// What an answer that is no success means.
pub(super) fn refused(path: &str, status: u16, body: &[u8]) -> Error {
    let value: Value = serde_json::from_slice(body).unwrap_or_default();
    // A batch that fails for what is in it says which request; one that was stopped says nothing.
    if path == BATCH_PATH && status == 400 && value.pointer("/data/requests").is_none() {
        return Error::Interrupted;
    }
    let message = value.get("message").and_then(Value::as_str).unwrap_or_default().to_owned();
    Error::Refused { status, message }
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        match error {
            Error::Instance(error) => error.into(),
            Error::Unreachable(_) | Error::Interrupted | Error::Refused { .. } | Error::Unexpected => {
                Problem::new(Code::BadGateway)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_that_was_stopped_may_be_tried_again() {
        let stopped = br#"{"data":{},"message":"Batch transaction failed.","status":400}"#;
        assert!(refused(BATCH_PATH, 400, stopped).is_passing());
        let wrong =
            br#"{"data":{"requests":{"0":{"code":"batch_request_failed"}}},"message":"Batch transaction failed."}"#;
        assert!(!refused(BATCH_PATH, 400, wrong).is_passing());
        let elsewhere = refused("/api/collections/x/records", 400, stopped);
        assert!(matches!(&elsewhere, Error::Refused { status: 400, message } if message.starts_with("Batch")));
        assert!(!elsewhere.is_passing() && refused(BATCH_PATH, 503, b"").is_passing());
    }
}
