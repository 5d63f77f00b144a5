//! What can go wrong with jobs, and what a caller of ours sees of it.

use std::time::Duration;

use serde_json::json;

use super::State;
use crate::error::Code;
use crate::error::Problem;
use crate::store;

/// Errors of the queue.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No handler and no external worker is known for the kind.
    #[error("there is no kind of job with this name")]
    UnknownKind,
    /// No such job, or none that the caller may know of.
    #[error("there is no such job")]
    NotFound,
    /// The job's state does not allow it.
    #[error("the job is {}", .0.as_str())]
    WrongState(State),
    /// The idempotency key was used for a different job.
    #[error("this idempotency key was used for a different job; choose another key")]
    KeyReused,
    /// An unfinished job of the same sort exists.
    #[error("an unfinished job of the same sort exists")]
    Duplicate,
    /// Jobs were moved to one spot so often that no place is left between two of them.
    #[error("no place is left at this spot; move to the front or the back instead")]
    NoRoom,
    /// Something is larger than allowed.
    #[error("the {what} of a job has at most {most} bytes")]
    TooLarge {
        /// Which part.
        what: &'static str,
        /// The limit.
        most: usize,
    },
    /// More jobs in one call than allowed.
    #[error("at most {most} jobs can be added at once")]
    TooManyAtOnce {
        /// The limit.
        most: usize,
    },
    /// The tenant has as many unfinished jobs as it may.
    #[error("{most} unfinished jobs are the most; wait until some are done, or cancel some")]
    TenantFull {
        /// The limit.
        most: usize,
    },
    /// The tenant has as many schedules as it may.
    #[error("{most} schedules are the most; remove one first")]
    TooManySchedules {
        /// The limit.
        most: usize,
    },
    /// The queue as a whole is full.
    #[error("the queue is full; try again later")]
    Full,
    /// A cron pattern that cannot be read, or never comes; the text says what one looks like.
    #[error("{0}")]
    Cron(&'static str),
    /// A field breaks a rule; the text says which.
    #[error("{0}")]
    Invalid(&'static str),
    /// The lease was lost: the job was taken back, cancelled or claimed anew.
    #[error("the job is no longer yours: its lease ended, or it was cancelled")]
    Lost,
    /// The tenant was deleted.
    #[error("nothing is added for a tenant that was deleted")]
    Closed,
    /// The queue is shutting down.
    #[error("the queue is shutting down")]
    Stopping,
    /// The store failed; whether the change happened is not known.
    #[error(transparent)]
    Store(#[from] store::Error),
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        let text = error.to_string();
        match error {
            Error::UnknownKind => Self::new(Code::UnknownKind).message(text),
            Error::Invalid(_) | Error::TooLarge { .. } | Error::TooManyAtOnce { .. } => {
                Self::new(Code::InvalidBody).message(text)
            }
            Error::Cron(text) => {
                let what = json!({ "code": "validation_invalid_cron", "message": text });
                Self::new(Code::ValidationFailed).details(json!({ "cron": what }))
            }
            Error::NotFound => Self::new(Code::NotFound),
            Error::WrongState(state) => {
                Self::new(Code::Conflict).message(text).details(json!({ "state": state.as_str() }))
            }
            Error::KeyReused => Self::new(Code::IdempotencyKeyReused),
            Error::Duplicate | Error::NoRoom | Error::TooManySchedules { .. } => {
                Self::new(Code::Conflict).message(text)
            }
            Error::TenantFull { .. } => Self::new(Code::TooManyJobs).message(text).retry_after(Duration::from_mins(1)),
            Error::Full => Self::new(Code::QueueFull).retry_after(Duration::from_mins(1)),
            Error::Lost => Self::new(Code::LeaseLost),
            Error::Closed => Self::new(Code::TenantDeleted),
            Error::Stopping => Self::new(Code::ShuttingDown),
            Error::Store(error) => Self::from(error),
        }
    }
}
