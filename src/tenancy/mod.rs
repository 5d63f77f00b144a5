//! Which tenant a user acts in.
//!
//! A user has one personal tenant, named after them, so that two requests that make it at once mean the same
//! record. The tenant always follows from the user, never from anything a request says.
//!
//! Deliberately absent: whether the tenant's instance runs (see `supervisor`) and who the user is (see `auth`).

use std::sync::Arc;

use time::OffsetDateTime;

use crate::ids::TenantId;
use crate::ids::UserId;
use crate::store::Error;
use crate::store::tenants::Kind;
use crate::store::tenants::Tenant;
use crate::store::tenants::Tenants;

/// STUB
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[expect(missing_docs, reason = "stub")]
pub enum MemberRole {
    Guest,
    Member,
    Admin,
    Owner,
}

/// Which tenant a user acts in. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Tenancy {
    tenants: Tenants,
    personal_template: Arc<str>,
}

impl Tenancy {
    /// Over the registered tenants; new personal ones are made from `personal_template`.
    pub fn new(tenants: Tenants, personal_template: String) -> Self {
        Self { tenants, personal_template: personal_template.into() }
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
    pub async fn ensure_personal(&self, user: &UserId) -> Result<TenantId, Error> {
        if let Some(known) = self.personal(user) {
            return Ok(known);
        }
        let id = TenantId::personal(user);
        let wanted = Tenant::new(id, Kind::Personal, &*self.personal_template, Some(user.clone()));
        let tenant = self.tenants.create_or_find(wanted).await?;
        if belongs(&tenant, user) {
            Ok(tenant.id.clone())
        } else {
            Err(Error::Invalid("the user's id names a tenant that is not theirs"))
        }
    }

    /// STUB
    pub fn resolve(&self, name: &str) -> Option<Arc<Tenant>> {
        let id = TenantId::parse(name).ok()?;
        self.tenants.find(&id).filter(|tenant| tenant.kind != Kind::Global)
    }

    /// STUB
    pub fn role(&self, tenant: &Tenant, user: &UserId) -> Option<MemberRole> {
        (tenant.kind == Kind::Personal && tenant.owner.as_ref() == Some(user)).then_some(MemberRole::Owner)
    }

    fn record(&self, user: &UserId) -> Option<Arc<Tenant>> {
        self.tenants.find(&TenantId::personal(user)).filter(|tenant| belongs(tenant, user))
    }
}

/// The name alone proves nothing: a user who were called `global` would otherwise act in the global instance.
fn belongs(tenant: &Tenant, user: &UserId) -> bool {
    tenant.kind == Kind::Personal && tenant.owner.as_ref() == Some(user)
}
