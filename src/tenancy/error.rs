//! Why a change of a workspace is refused, and what its caller sees.

use std::time::Duration;

use serde_json::Map;
use serde_json::Value;
use serde_json::json;

use crate::error::Code;
use crate::error::Problem;
use crate::store;

/// A field that breaks a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Invalid {
    /// The field's name in requests.
    pub field: &'static str,
    /// The rule, as `PocketBase` would name it.
    pub code: &'static str,
    /// The rule in words.
    pub message: &'static str,
}

/// Why a change is refused.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No such workspace, member or invitation, or none that the caller may know of.
    #[error("there is no such {0}")]
    NotFound(&'static str),
    /// The caller owns it, and it was deleted.
    #[error("it was deleted")]
    Deleted,
    /// The caller is in, and may not do that.
    #[error("{0}")]
    Forbidden(&'static str),
    /// Fields that break rules.
    #[error("some fields are not valid")]
    Invalid(Vec<Invalid>),
    /// The state does not allow it; the text says what to do.
    #[error("{0}")]
    Conflict(&'static str),
    /// As many as there may be.
    #[error("{what}: at most {most}")]
    Full {
        /// Of what.
        what: &'static str,
        /// How many.
        most: usize,
    },
    /// Too many changes by one account.
    #[error("too many changes; the next one is taken in {0:?}")]
    RateLimited(Duration),
    /// The control database failed.
    #[error("the control database failed")]
    Store(#[from] store::Error),
}

impl From<Invalid> for Error {
    fn from(invalid: Invalid) -> Self {
        Self::Invalid(vec![invalid])
    }
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        match error {
            Error::NotFound(what) => Self::new(Code::NotFound).message(format!("there is no such {what}")),
            Error::Deleted => Self::new(Code::TenantDeleted),
            Error::Forbidden(why) => Self::new(Code::Forbidden).message(why),
            Error::Invalid(fields) => {
                let detail = |one: &Invalid| json!({ "code": one.code, "message": one.message });
                let fields: Map<String, Value> = fields.iter().map(|one| (one.field.to_owned(), detail(one))).collect();
                Self::new(Code::ValidationFailed).details(Value::Object(fields))
            }
            Error::Conflict(why) => Self::new(Code::Conflict).message(why),
            Error::Full { what, most } => {
                Self::new(Code::Conflict).message(format!("{what}: at most {most}")).details(json!({ "limit": most }))
            }
            Error::RateLimited(wait) => Self::new(Code::RateLimited).retry_after(wait),
            Error::Store(error) => error.into(),
        }
    }
}
