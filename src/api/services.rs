//! The domains behind the routes that serve users beyond their instances. `app::services` builds them.

use crate::auth::api_keys::ApiKeys;
use crate::events::Events;
use crate::jobs::intake::Intake;
use crate::queue::Queue;
use crate::records::Records;

/// One handle of each; cheap to clone.
#[derive(Debug, Clone)]
pub struct Services {
    /// What is kept in tenants' own instances.
    pub records: Records,
    /// Credentials of programs.
    pub api_keys: ApiKeys,
    /// What is to be done.
    pub queue: Queue,
    /// What users may put into it.
    pub intake: Intake,
    /// What happens, told as it happens.
    pub events: Events,
}
