//! The domains behind the routes that serve users beyond their instances. `app::services` builds them.

use crate::api::webhooks::HookBodies;
use crate::audit::Audit;
use crate::auth::api_keys::ApiKeys;
use crate::backup::Backups;
use crate::events::Events;
use crate::jobs::deliver::Staging;
use crate::jobs::deliver::links::Links;
use crate::jobs::destinations::registry::Destinations;
use crate::jobs::intake::Intake;
use crate::meetings::Meetings;
use crate::queue::Queue;
use crate::records::Records;
use crate::vault::Vault;

/// One handle of each; cheap to clone.
#[derive(Debug, Clone)]
pub struct Services {
    /// What is kept in tenants' own instances.
    pub records: Records,
    /// Users' meetings.
    pub meetings: Meetings,
    /// Room for bodies of webhook calls.
    pub hook_bodies: HookBodies,
    /// What was done that must be accounted for.
    pub audit: Audit,
    /// Users' secrets for other services.
    pub vault: Vault,
    /// Credentials of programs.
    pub api_keys: ApiKeys,
    /// Copies of everything.
    pub backups: Backups,
    /// What is to be done.
    pub queue: Queue,
    /// What users may put into it.
    pub intake: Intake,
    /// Where deliveries go.
    pub destinations: Destinations,
    /// Where their files rest.
    pub staging: Staging,
    /// Links to their files.
    pub links: Links,
    /// What happens, told as it happens.
    pub events: Events,
}
