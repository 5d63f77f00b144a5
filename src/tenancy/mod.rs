//! Which tenant a user acts in, and as what.
//!
//! A user has one personal tenant, named after them, so that two requests that make it at once mean the same record. A
//! *workspace* is a tenant that its members share; it has an id of its own and a name for addresses (the slug). Which
//! members there are decides who reaches it and which rows its instance holds for them; what they may do to it is in
//! [`rules`].
//!
//! Invariants:
//! - A workspace always has an owner: the one in the tenant's own record, who can hand it over and not just go. What a
//!   member's record says comes second.
//! - A slug leads to one workspace. One that was left goes on leading there for a while, and is nobody else's.
//! - Records are written in an order in which every interruption leaves something that means what it says, or nothing;
//!   [`Tenancy::repair`] tidies up at the next start.
//!
//! Deliberately absent: whether a tenant's instance runs (see `supervisor`), who a user is (see `auth`), and how a tenant
//! is deleted (see `lifecycle`). A workspace can also be archived, which keeps everything.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Instant;

use time::OffsetDateTime;

use crate::ids::TenantId;
use crate::ids::UserId;
use crate::limits::Keyed;
use crate::store;
use crate::store::invitations::Invitations;
pub use crate::store::members::MemberRole;
use crate::store::members::Members;
use crate::store::slugs::Slugs;
use crate::store::tenants::Kind;
use crate::store::tenants::Tenant;
use crate::store::tenants::Tenants;

mod config;
mod error;
mod invitations;
mod members;
mod repair;
pub mod rules;
mod workspaces;

pub use config::Config;
pub use config::Creation;
pub use error::Error;
pub use error::Invalid;
pub use invitations::Address;
pub use invitations::Invited;
pub use invitations::NewInvitation;
pub use workspaces::Change;
pub use workspaces::NewWorkspace;

use rules::Standing;

/// Accounts whose changes are counted at once.
const MAX_KEYS: usize = 100_000;

/// What [`Tenancy`] works with.
#[derive(Debug)]
pub struct Parts {
    /// The tenants' records.
    pub tenants: Tenants,
    /// Who belongs where.
    pub members: Members,
    /// Open invitations.
    pub invitations: Invitations,
    /// Names in addresses.
    pub slugs: Slugs,
    /// The `[workspaces]` section.
    pub config: Config,
    /// Template of personal instances.
    pub personal_template: String,
    /// Whether addresses can be verified, and so have to be before anything is given to them.
    pub can_verify: bool,
}

/// Which tenant a user acts in. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Tenancy {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    tenants: Tenants,
    members: Members,
    invitations: Invitations,
    slugs: Slugs,
    config: Config,
    personal_template: String,
    can_verify: bool,
    /// Changes per account. Held for a look-up, never across an await.
    changes: Mutex<Keyed<UserId>>,
}

impl Tenancy {
    /// Over the records, under the limits of the configuration.
    pub fn new(parts: Parts) -> Self {
        let Parts { tenants, members, invitations, slugs, config, personal_template, can_verify } = parts;
        let minute = std::time::Duration::from_mins(1);
        let changes = Mutex::new(Keyed::new(config.changes_per_minute.get(), minute, MAX_KEYS));
        let shared = Shared { tenants, members, invitations, slugs, config, personal_template, can_verify, changes };
        Self { shared: Arc::new(shared) }
    }

    /// The template of personal tenants.
    pub fn personal_template(&self) -> &str {
        &self.shared.personal_template
    }

    /// The user's personal tenant if it is registered: from memory, for the hot path.
    pub fn personal(&self, user: &UserId) -> Option<TenantId> {
        self.record(user).map(|tenant| tenant.id.clone())
    }

    /// When the user's personal tenant was registered, if it is.
    pub fn personal_since(&self, user: &UserId) -> Option<OffsetDateTime> {
        self.record(user).map(|tenant| tenant.created_at)
    }

    /// The same, made when missing. One record comes of any number of concurrent calls.
    pub async fn ensure_personal(&self, user: &UserId) -> Result<TenantId, store::Error> {
        if let Some(known) = self.personal(user) {
            return Ok(known);
        }
        let id = TenantId::personal(user);
        let wanted = Tenant::new(id, Kind::Personal, self.shared.personal_template.as_str(), Some(user.clone()));
        let tenant = self.shared.tenants.create_or_find(wanted).await?;
        if belongs(&tenant, user) {
            Ok(tenant.id.clone())
        } else {
            Err(store::Error::Invalid("the user's id names a tenant that is not theirs"))
        }
    }

    /// The tenant that a name in an address means: a slug (also one that its workspace left a while ago), or an id (of
    /// a personal tenant: the user's). Never the global one, and none that was archived or deleted. From memory, for the
    /// hot path.
    pub fn resolve(&self, name: &str) -> Option<Arc<Tenant>> {
        self.resolve_any(name).filter(|tenant| !tenant.archived && tenant.deleted.is_none())
    }

    /// The same with the archived ones, for their owners.
    fn resolve_any(&self, name: &str) -> Option<Arc<Tenant>> {
        let tenant = match self.shared.slugs.find(name) {
            Some(slug) => {
                let tenant = self.shared.tenants.find(&slug.tenant);
                let standing = rules::standing(&slug, tenant.as_deref(), OffsetDateTime::now_utc());
                tenant.filter(|_| matches!(standing, Standing::Current | Standing::Held))?
            }
            None => self.shared.tenants.find(&TenantId::parse(name).ok()?)?,
        };
        (tenant.kind != Kind::Global).then_some(tenant)
    }

    /// Whether the user's account was deleted. It is kept for a while, and nothing is done for it meanwhile. From memory,
    /// for the hot path.
    pub fn is_leaving(&self, user: &UserId) -> bool {
        self.record(user).is_some_and(|tenant| tenant.deleted.is_some())
    }

    /// The tenant that a name means, also an archived or deleted one: for operators, and for owners who want it back.
    pub fn find(&self, name: &str) -> Option<Arc<Tenant>> {
        self.resolve_any(name)
    }

    /// What a user is in a tenant; none: a stranger. A personal tenant has its owner and nobody else. From memory, for
    /// the hot path. A guest may read only; that is for whoever lets requests through to see to.
    pub fn role(&self, tenant: &Tenant, user: &UserId) -> Option<MemberRole> {
        match tenant.kind {
            Kind::Global => None,
            Kind::Personal => belongs(tenant, user).then_some(MemberRole::Owner),
            Kind::Workspace if tenant.owner.as_ref() == Some(user) => Some(MemberRole::Owner),
            Kind::Workspace => self.shared.members.find(&tenant.id, user).map(|member| member.role),
        }
    }

    /// Whether anybody may read this (decoded) path of a tenant without a credential; see [`rules::is_public`].
    pub fn is_public(tenant: &Tenant, path: &str) -> bool {
        rules::is_public(tenant, path)
    }

    /// Whether anybody may hear of these realtime topics: what the list of records may not tell, an event must not tell.
    pub fn are_public(tenant: &Tenant, topics: &[String]) -> bool {
        topics.iter().all(|topic| {
            let name = topic.split('?').next().unwrap_or_default();
            let Some((collection, record)) = name.split_once('/') else { return false };
            let records = format!("/api/collections/{collection}/records");
            let path = if record == "*" { records } else { format!("{records}/{record}") };
            Self::is_public(tenant, &path)
        })
    }

    fn record(&self, user: &UserId) -> Option<Arc<Tenant>> {
        self.shared.tenants.find(&TenantId::personal(user)).filter(|tenant| belongs(tenant, user))
    }

    /// The workspace of this name and what the caller is in it. Absent and forbidden look the same.
    pub fn workspace(&self, name: &str, user: &UserId) -> Result<(Arc<Tenant>, MemberRole), Error> {
        let found = self.resolve_any(name).filter(|tenant| tenant.kind == Kind::Workspace);
        let tenant = found.ok_or(Error::NotFound("workspace"))?;
        let role = self.role(&tenant, user).ok_or(Error::NotFound("workspace"))?;
        if tenant.deleted.is_some() {
            return Err(if role == MemberRole::Owner { Error::Deleted } else { Error::NotFound("workspace") });
        }
        // Only its owners know of an archived one.
        if tenant.archived && role != MemberRole::Owner {
            return Err(Error::NotFound("workspace"));
        }
        Ok((tenant, role))
    }

    /// Counts a change against its author.
    fn meter(&self, user: &UserId) -> Result<(), Error> {
        let mut changes = self.shared.changes.lock().unwrap_or_else(PoisonError::into_inner);
        changes.check(user, Instant::now()).map_err(Error::RateLimited)
    }
}

/// The name alone proves nothing: a user who were called `global` would otherwise act in the global instance.
fn belongs(tenant: &Tenant, user: &UserId) -> bool {
    tenant.kind == Kind::Personal && tenant.owner.as_ref() == Some(user)
}
