//! Making a workspace, and changing what it is.
//!
//! Three records make one: the slug's claim, the owner's membership, the tenant. The tenant's is written last and makes
//! it exist; the two before it mean nothing without.

use std::sync::Arc;

use rand::distr::SampleString;
use time::OffsetDateTime;

use super::Creation;
use super::Error;
use super::Invalid;
use super::Tenancy;
use super::rules;
use super::rules::Standing;
use crate::ids::TenantId;
use crate::ids::UserId;
use crate::store;
use crate::store::members::Member;
use crate::store::members::MemberRole;
use crate::store::slugs::Slug;
use crate::store::tenants::Identity;
use crate::store::tenants::Kind;
use crate::store::tenants::Tenant;

/// A workspace that somebody wants.
#[derive(Debug, Clone)]
pub struct NewWorkspace {
    /// What people call it.
    pub name: String,
    /// What addresses call it.
    pub slug: String,
    /// What its instance is made from; see [`Tenancy::template`] for the default.
    pub template: String,
    /// Whose accounts its callers have.
    pub identity: Identity,
    /// Paths that anybody may read.
    pub public_read: Vec<String>,
}

/// What is to change; the rest stays.
#[derive(Debug, Clone, Default)]
pub struct Change {
    /// What people call it.
    pub name: Option<String>,
    /// What addresses call it.
    pub slug: Option<String>,
    /// Whose accounts its callers have.
    pub identity: Option<Identity>,
    /// Paths that anybody may read.
    pub public_read: Option<Vec<String>>,
    /// Put away, or taken out again.
    pub archived: Option<bool>,
}

impl Change {
    /// Whether it has something that only owners decide.
    fn is_for_owners(&self) -> bool {
        self.slug.is_some() || self.identity.is_some() || self.public_read.is_some() || self.archived.is_some()
    }

    fn check(&mut self) -> Result<(), Error> {
        let name = self.name.as_deref().map(rules::check_name).transpose();
        let slug = self.slug.as_deref().map_or(Ok(()), rules::check_slug);
        let public = self.public_read.as_deref().map_or(Ok(()), rules::check_public_read);
        let wrong: Vec<Invalid> =
            [name.as_ref().err().copied(), slug.err(), public.err()].into_iter().flatten().collect();
        if !wrong.is_empty() {
            return Err(Error::Invalid(wrong));
        }
        self.name = name.ok().flatten();
        Ok(())
    }
}

const TAKEN: Invalid = Invalid { field: "slug", code: "validation_not_unique", message: "This name is taken." };

impl Tenancy {
    /// The template of a workspace when its maker names none.
    pub fn template(&self, identity: Identity) -> &str {
        match identity {
            Identity::Global => &self.shared.config.template,
            Identity::Own => &self.shared.config.hosted_template,
        }
    }

    /// Makes a workspace with the creator as its owner. Whether the template exists is the caller's to check.
    pub async fn create_workspace(
        &self,
        creator: &UserId,
        is_admin: bool,
        wanted: NewWorkspace,
        now: OffsetDateTime,
    ) -> Result<Arc<Tenant>, Error> {
        if self.shared.config.creation == Creation::Admins && !is_admin {
            return Err(Error::Forbidden("only administrators make workspaces here"));
        }
        let NewWorkspace { name, slug, template, identity, public_read } = wanted;
        let mut checked = Change {
            name: Some(name),
            slug: Some(slug.clone()),
            public_read: Some(public_read.clone()),
            ..Change::default()
        };
        checked.check()?;
        if template == "global" {
            let message = "No workspace is made from this template.";
            return Err(Invalid { field: "template", code: "validation_invalid_template", message }.into());
        }
        self.meter(creator)?;
        let id = workspace_id()?;
        let tenant = Tenant {
            slug: Some(slug.clone()),
            name: checked.name.unwrap_or_default(),
            identity,
            public_read,
            created_at: now,
            ..Tenant::new(id.clone(), Kind::Workspace, template, Some(creator.clone()))
        };
        if !self.claim(&slug, &id, now).await? {
            return Err(TAKEN.into());
        }
        match self.found(creator, tenant, now).await {
            Ok(tenant) => Ok(tenant),
            Err(error) => {
                // A failed write may have happened, so the claim is given up only when the tenant is not there.
                if self.shared.tenants.is_absent(&id).await.unwrap_or(false) {
                    let _ = self.shared.members.remove(&id, creator, MemberRole::Owner).await;
                    let _ = self.shared.slugs.abandon(&slug, &id).await;
                }
                Err(error)
            }
        }
    }

    /// With the name claimed: the owner's membership, then the tenant itself.
    async fn found(&self, creator: &UserId, tenant: Tenant, now: OffsetDateTime) -> Result<Arc<Tenant>, Error> {
        let id = tenant.id.clone();
        let owner =
            Member { tenant: id, user: creator.clone(), role: MemberRole::Owner, invited_by: None, joined_at: now };
        self.shared.members.add(owner).await?;
        // Counted with this one in: of several at once none slips by.
        let most = self.shared.config.max_per_user;
        if self.owned_by(creator) > most {
            return Err(Error::Full { what: "workspaces of one account", most });
        }
        Ok(self.shared.tenants.create_or_find(tenant).await?)
    }

    /// How many workspaces are a user's own, archived ones and ones in the making included.
    pub(super) fn owned_by(&self, user: &UserId) -> usize {
        let is_own = |member: &Member| {
            let tenant = self.shared.tenants.find(&member.tenant);
            member.role == MemberRole::Owner && tenant.is_none_or(|tenant| tenant.owner.as_ref() == Some(user))
        };
        self.shared.members.of_user(user, None, usize::MAX).iter().filter(|member| is_own(member)).count()
    }

    /// Changes what a workspace is: its name, by admins; everything else, by owners.
    pub async fn update(
        &self,
        actor: &UserId,
        name: &str,
        mut change: Change,
        now: OffsetDateTime,
    ) -> Result<Arc<Tenant>, Error> {
        let (tenant, role) = self.workspace(name, actor)?;
        if role < MemberRole::Admin || (change.is_for_owners() && role < MemberRole::Owner) {
            return Err(Error::Forbidden("only owners may change this; admins may change the name"));
        }
        change.check()?;
        self.meter(actor)?;
        if let Some(slug) = &change.slug {
            self.rename(&tenant, slug, now).await?;
        }
        let changed = self
            .shared
            .tenants
            .change(&tenant.id, |tenant| {
                if let Some(name) = &change.name {
                    tenant.name.clone_from(name);
                }
                if let Some(public_read) = &change.public_read {
                    tenant.public_read.clone_from(public_read);
                }
                tenant.identity = change.identity.unwrap_or(tenant.identity);
                tenant.archived = change.archived.unwrap_or(tenant.archived);
            })
            .await?;
        changed.ok_or(Error::NotFound("workspace"))
    }

    /// Gives a workspace another slug. The earlier one goes on leading to it and is held for it.
    async fn rename(&self, tenant: &Tenant, slug: &str, now: OffsetDateTime) -> Result<(), Error> {
        let old = tenant.slug.as_deref();
        if old == Some(slug) {
            return Ok(());
        }
        let names = self.shared.slugs.of_tenant(&tenant.id);
        let held = names.iter().filter(|name| rules::standing(name, Some(tenant), now) == Standing::Held);
        if held.count() >= rules::MAX_HELD && !names.iter().any(|name| &*name.slug == slug) {
            return Err(Error::Conflict("it was renamed too often lately; take one of its earlier names, or wait"));
        }
        if !self.claim(slug, &tenant.id, now).await? {
            return Err(TAKEN.into());
        }
        if let Some(old) = old {
            self.shared.slugs.leave(old, &tenant.id, now).await?;
        }
        let take = |tenant: &mut Tenant| {
            if tenant.slug.as_deref() == old {
                tenant.slug = Some(slug.to_owned());
            }
        };
        let changed = self.shared.tenants.change(&tenant.id, take).await?;
        if changed.is_some_and(|tenant| tenant.slug.as_deref() == Some(slug)) {
            return Ok(());
        }
        self.shared.slugs.abandon(slug, &tenant.id).await?;
        Err(Error::Conflict("somebody else renamed it meanwhile; look again"))
    }

    async fn claim(&self, slug: &str, tenant: &TenantId, now: OffsetDateTime) -> Result<bool, store::Error> {
        // The view hides a tenant whose record cannot be read: its names are given away only when it is really gone.
        let holder = self.shared.slugs.find(slug).map(|found| found.tenant.clone());
        let gone = match holder.filter(|holder| self.shared.tenants.find(holder).is_none()) {
            Some(holder) => self.shared.tenants.is_absent(&holder).await?.then_some(holder),
            None => None,
        };
        let is_free = |found: &Slug| {
            let tenant = self.shared.tenants.find(&found.tenant);
            let is_known = tenant.is_some() || gone.as_ref() == Some(&found.tenant);
            is_known && rules::standing(found, tenant.as_deref(), now) == Standing::Free
        };
        self.shared.slugs.claim(slug, tenant, now, is_free).await
    }
}

/// An id that no account has: those have no hyphen.
fn workspace_id() -> Result<TenantId, Error> {
    let mut letters = rand::distr::Alphanumeric.sample_string(&mut rand::rng(), rules::ID_LETTERS);
    letters.make_ascii_lowercase();
    let id = TenantId::parse(&format!("w-{letters}"));
    id.map_err(|_| Error::Store(store::Error::Invalid("a workspace's id cannot be made")))
}
