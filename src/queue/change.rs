//! What happened to a job, as listeners learn it.

use std::sync::Arc;

use super::Job;
use super::State;

/// A change of one job. Listeners that fall behind are told so and look at the jobs again.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Change {
    /// It is new.
    Added {
        /// The job after the change.
        job: Arc<Job>,
    },
    /// It was called off before anybody began it.
    Removed {
        /// The job after the change.
        job: Arc<Job>,
    },
    /// An attempt began.
    Started {
        /// The job after the change.
        job: Arc<Job>,
    },
    /// It came further; told a few times a second at most.
    Progressed {
        /// The job after the change.
        job: Arc<Job>,
    },
    /// It waits for a person.
    Parked {
        /// The job after the change.
        job: Arc<Job>,
    },
    /// An attempt ended without an end of the job: it waits again.
    Retrying {
        /// The job after the change.
        job: Arc<Job>,
    },
    /// A person brought it back: a dead or cancelled job was retried, a parked one was answered.
    Requeued {
        /// The job after the change.
        job: Arc<Job>,
    },
    /// It got another place or priority, or its time has come.
    Moved {
        /// The job after the change.
        job: Arc<Job>,
    },
    /// It is done, dead, or was called off while it ran or was parked.
    Finished {
        /// The job after the change.
        job: Arc<Job>,
    },
}

impl Change {
    /// The job after the change.
    pub fn job(&self) -> &Arc<Job> {
        match self {
            Self::Added { job }
            | Self::Removed { job }
            | Self::Started { job }
            | Self::Progressed { job }
            | Self::Parked { job }
            | Self::Retrying { job }
            | Self::Requeued { job }
            | Self::Moved { job }
            | Self::Finished { job } => job,
        }
    }

    /// Pure: what the way from one version of a job to the next is called; none when nobody needs to know.
    pub(super) fn between(old: Option<&Job>, new: &Arc<Job>) -> Option<Self> {
        let job = Arc::clone(new);
        let Some(old) = old else { return Some(Self::Added { job }) };
        Some(match (old.state, new.state) {
            (from, State::Cancelled) if from.is_waiting() => Self::Removed { job },
            (from, to) if !from.is_finished() && to.is_finished() => Self::Finished { job },
            (State::Running, State::Running) if old.fence() == new.fence() => {
                if old.progress == new.progress && old.cancel_requested == new.cancel_requested {
                    return None;
                }
                Self::Progressed { job }
            }
            (_, State::Running) => Self::Started { job },
            (from, State::Parked) if from != State::Parked => Self::Parked { job },
            (State::Running, to) if to.is_waiting() => Self::Retrying { job },
            (from, to) if !from.is_waiting() && to.is_waiting() => Self::Requeued { job },
            (from, to) if from != to || old.rank() != new.rank() || old.priority != new.priority => Self::Moved { job },
            _ => return None,
        })
    }
}
