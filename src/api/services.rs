//! The domains behind the routes that serve users beyond their instances. `app::services` builds them.

use crate::queue::Queue;
use crate::records::Records;

/// One handle of each; cheap to clone.
#[derive(Debug, Clone)]
pub struct Services {
    /// What is kept in tenants' own instances.
    pub records: Records,
    /// What is to be done.
    pub queue: Queue,
}
