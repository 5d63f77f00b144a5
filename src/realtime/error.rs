//! Why a stream is not opened or a subscription not taken. `PocketBase`'s own words where it has some, because clients
//! of it know them.

use std::time::Duration;

use serde_json::Value;
use serde_json::json;

use crate::error::Code;
use crate::error::Problem;

/// Why a stream is not opened or a subscription not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A field that is missing or too long; `data` says it in `PocketBase`'s shape.
    #[error("a field is not valid")]
    Invalid {
        /// Field, code, message and parameters.
        data: Value,
    },
    /// No open stream has this id.
    #[error("missing or invalid client id")]
    UnknownClient,
    /// The stream was opened from another address.
    #[error("invalid realtime client")]
    OtherAddress,
    /// The stream is bound to somebody else.
    #[error("the current and the previous request authorization don't match")]
    OtherAuthorization,
    /// The token stopped being valid since it was looked at.
    #[error("the session was ended")]
    SessionEnded,
    /// The account has no place in this instance.
    #[error("this account has no place in this instance")]
    NotAdmitted,
    /// As many streams are open as may be.
    #[error("too many streams are open")]
    Full,
    /// The same for one user or one client address.
    #[error("too many streams of one user or address are open")]
    TooMany,
    /// The instance said no.
    #[error("the instance refused the subscription with {status}")]
    Refused {
        /// Its status.
        status: u16,
        /// Its words.
        message: String,
    },
    /// The instance could not be asked.
    #[error("the instance could not be asked")]
    Unreachable,
    /// Shutting down.
    #[error("shutting down")]
    ShuttingDown,
}

impl Error {
    pub(super) fn blank(field: &str) -> Self {
        Self::Invalid { data: json!({ field: { "code": "validation_required", "message": "Cannot be blank." } }) }
    }
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        let text = error.to_string();
        match error {
            Error::Invalid { data } => Self::new(Code::ValidationFailed)
                .message("something went wrong while processing your request")
                .details(data),
            Error::UnknownClient => Self::new(Code::NotFound).message(text),
            Error::OtherAddress => Self::new(Code::InvalidRequest).message(text),
            Error::OtherAuthorization | Error::NotAdmitted => Self::new(Code::Forbidden).message(text),
            Error::SessionEnded => {
                Self::new(Code::Unauthorized).message("the request requires valid record authorization token")
            }
            Error::Full => Self::new(Code::Overloaded)
                .message("too many event streams are open; try again soon")
                .retry_after(Duration::from_secs(5)),
            Error::TooMany => Self::new(Code::RateLimited)
                .message("too many event streams are open; close some first")
                .retry_after(Duration::from_secs(5)),
            Error::Refused { status, message } => {
                let code = match status {
                    400 => Code::InvalidRequest,
                    401 => Code::Unauthorized,
                    403 => Code::Forbidden,
                    404 => Code::NotFound,
                    429 => Code::RateLimited,
                    _ => return Self::new(Code::BadGateway),
                };
                Self::new(code).message(message)
            }
            Error::Unreachable => Self::new(Code::BadGateway),
            Error::ShuttingDown => Self::new(Code::ShuttingDown).retry_after(Duration::from_secs(2)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_read_the_words_of_pocketbase() {
        let said = |error: Error| {
            let body = Problem::from(error).pocketbase_body("id");
            (body["status"].as_u64().unwrap(), body["message"].as_str().unwrap().to_owned(), body["data"].clone())
        };
        assert_eq!(said(Error::UnknownClient), (404, "Missing or invalid client id.".to_owned(), json!({})));
        assert_eq!(
            said(Error::OtherAuthorization),
            (403, "The current and the previous request authorization don't match.".to_owned(), json!({}))
        );
        assert_eq!(said(Error::OtherAddress), (400, "Invalid realtime client.".to_owned(), json!({})));
        assert_eq!(
            said(Error::blank("clientId")),
            (
                400,
                "Something went wrong while processing your request.".to_owned(),
                json!({"clientId": {"code": "validation_required", "message": "Cannot be blank."}})
            )
        );
    }
}
