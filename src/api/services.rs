//! The domains behind the routes that serve users beyond their instances. `app::services` builds them.

use crate::audit::Audit;
use crate::auth::api_keys::ApiKeys;
use crate::events::Events;
use crate::records::Records;
use crate::vault::Vault;

/// One handle of each; cheap to clone.
#[derive(Debug, Clone)]
pub struct Services {
    /// What is kept in tenants' own instances.
    pub records: Records,
    /// What was done that must be accounted for.
    pub audit: Audit,
    /// Users' secrets for other services.
    pub vault: Vault,
    /// Credentials of programs.
    pub api_keys: ApiKeys,
    /// What happens, told as it happens.
    pub events: Events,
}
