//! What can go wrong in the seams, and what a caller of ours sees of it.

use std::path::PathBuf;

use crate::error::Code;
use crate::error::Problem;

/// Errors of the seams.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A create found the name taken.
    #[error("a record with this key exists")]
    Exists,
    /// A compare-and-swap was refused, or the caller no longer owns what it wants to change.
    #[error("the record changed meanwhile")]
    Stale,
    /// A key, prefix, value or file that the seams do not take; the text says which rule it breaks.
    #[error("the key or the value is not acceptable: {0}")]
    Invalid(&'static str),
    /// The store was closed; nothing was written.
    #[error("the store is closed")]
    Closed,
    /// A watch could not keep up. It missed changes and has to be started again.
    #[error("the watch fell behind and has to be started again")]
    Lagged,
    /// The file is not ours or is damaged; the text names it.
    #[error("the store's data is damaged: {0}")]
    Corrupt(String),
    /// The file was written by a newer pocketfleet.
    #[error("{} has schema version {found}, this pocketfleet knows versions up to {known}", path.display())]
    NewerSchema {
        /// The control database.
        path: PathBuf,
        /// The version in the file.
        found: i64,
        /// The newest version this build can read.
        known: i64,
    },
    /// There is no room on the disk; nothing was written.
    #[error("the disk of the control database is full")]
    Full,
    /// The engine underneath failed; for a write, whether it happened is not known.
    #[error("the store failed")]
    Engine(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl Error {
    /// Wraps an engine's error.
    pub fn engine(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Engine(error.into())
    }

    /// Whether a compare-and-swap was refused, so that reading again and retrying makes sense.
    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::Exists | Self::Stale)
    }
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        Self::new(match error {
            Error::Exists | Error::Stale => Code::Conflict,
            Error::Invalid(_) => Code::InvalidRequest,
            Error::Closed => Code::ShuttingDown,
            Error::Full => Code::ServerFull,
            Error::Lagged | Error::Corrupt(_) | Error::NewerSchema { .. } | Error::Engine(_) => Code::Internal,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn callers_see_a_code_and_nothing_of_the_inside() {
        let code = |error: Error| Problem::from(error).code;
        assert_eq!(code(Error::Stale), Code::Conflict);
        assert_eq!(code(Error::Exists), Code::Conflict);
        assert_eq!(code(Error::Closed), Code::ShuttingDown);
        assert_eq!(code(Error::Full), Code::ServerFull);
        assert_eq!(code(Error::Invalid("x")), Code::InvalidRequest);
        let problem = Problem::from(Error::Corrupt("/secret/path".to_owned()));
        assert_eq!(problem.code, Code::Internal);
        assert!(!problem.message.contains("path"));
    }
}
