//! Finishing at the start what an earlier run was interrupted in.
//!
//! Nothing is under way yet when this runs, so what looks unfinished is. Every step is one that the interrupted
//! operation would have made, or takes back something that means nothing alone; no tenant and no data is ever removed.
//! A record that cannot be read is there all the same: what belongs to it is left as it is, and so is the start.

use std::sync::Arc;

use time::OffsetDateTime;

use super::Tenancy;
use super::rules;
use super::rules::Standing;
use crate::ids::TenantId;
use crate::store;
use crate::store::invitations::Invitation;
use crate::store::invitations::InvitationStatus;
use crate::store::members::Member;
use crate::store::tenants::Kind;
use crate::store::tenants::Tenant;

/// Tenants that are looked at in one go.
const PAGE: usize = 1_000;

impl Tenancy {
    /// Brings records that belong together in step; returns how many were touched.
    pub async fn repair(&self, now: OffsetDateTime) -> Result<usize, store::Error> {
        let mut touched = 0;
        for slug in self.shared.slugs.all() {
            let tenant = self.shared.tenants.find(&slug.tenant);
            let is_claim = slug.left_at.is_none();
            let is_idle = is_claim && rules::standing(&slug, tenant.as_deref(), now) != Standing::Current;
            if is_idle && (tenant.is_some() || self.shared.tenants.is_absent(&slug.tenant).await?) {
                self.shared.slugs.abandon(&slug.slug, &slug.tenant).await?;
                touched += 1;
            }
        }
        for member in self.shared.members.all() {
            if self.is_absent(&member.tenant).await? {
                let Member { tenant, user, role, .. } = &*member;
                touched += usize::from(self.shared.members.remove(tenant, user, *role).await?);
            }
        }
        let mut after: Option<TenantId> = None;
        loop {
            let page = self.shared.tenants.page(after.as_ref(), PAGE);
            for tenant in page.iter().filter(|tenant| tenant.kind == Kind::Workspace) {
                touched += readable(self.repair_workspace(tenant, now).await)?;
            }
            match page.last() {
                Some(last) if page.len() == PAGE => after = Some(last.id.clone()),
                _ => break,
            }
        }
        for invitation in self.shared.invitations.all() {
            touched += usize::from(readable(self.repair_invitation(&invitation, now).await)?);
        }
        Ok(touched)
    }

    /// Whether there is really no such tenant. Costs no read when it is known.
    async fn is_absent(&self, tenant: &TenantId) -> Result<bool, store::Error> {
        Ok(self.shared.tenants.find(tenant).is_none() && self.shared.tenants.is_absent(tenant).await?)
    }

    /// Removes what belongs to a tenant that is being erased: memberships in it, ways in, its names; and of an account
    /// its memberships elsewhere and the invitations it made.
    pub async fn erase(&self, tenant: &Tenant) -> Result<(), store::Error> {
        let account = tenant.owner.as_ref().filter(|_| tenant.kind == Kind::Personal);
        let mut members = self.shared.members.of_tenant(&tenant.id, None, usize::MAX);
        members.extend(account.iter().flat_map(|user| self.shared.members.of_user(user, None, usize::MAX)));
        for member in members {
            self.shared.members.remove(&member.tenant, &member.user, member.role).await?;
        }
        for invitation in self.shared.invitations.all() {
            if invitation.tenant == tenant.id || account == Some(&invitation.created_by) {
                self.shared.invitations.discard(&invitation).await?;
            }
        }
        for slug in self.shared.slugs.of_tenant(&tenant.id) {
            self.shared.slugs.release(&slug.slug, &tenant.id).await?;
        }
        Ok(())
    }

    async fn repair_workspace(&self, tenant: &Arc<Tenant>, now: OffsetDateTime) -> Result<usize, store::Error> {
        let mut touched = 0;
        if let Some(slug) = &tenant.slug
            && self.shared.slugs.find(slug).is_none()
        {
            self.shared.slugs.claim(slug, &tenant.id, now, |_| false).await?;
            touched += 1;
        }
        if let Some(owner) = &tenant.owner {
            let before = self.shared.members.find(&tenant.id, owner);
            self.settle_owner(&tenant.id, owner, now).await?;
            touched += usize::from(before != self.shared.members.find(&tenant.id, owner));
        }
        Ok(touched)
    }

    async fn repair_invitation(&self, found: &Arc<Invitation>, now: OffsetDateTime) -> Result<bool, store::Error> {
        let tenant = self.shared.tenants.find(&found.tenant);
        if let (InvitationStatus::Taken { by }, Some(tenant)) = (&found.status, &tenant) {
            if !self.is_good(found, tenant, now) {
                return self.shared.invitations.discard(found).await;
            }
            let joined = self.add_member(tenant, by, found.role, Some(&found.created_by), now).await;
            if let Err(super::Error::Store(error)) = joined {
                return Err(error);
            }
            let accepted = InvitationStatus::Accepted { by: by.clone() };
            let settle = |status: &InvitationStatus| (*status == found.status).then(|| accepted.clone());
            self.shared.invitations.advance(found, settle).await?;
            return Ok(true);
        }
        if found.expires_at <= now || self.is_absent(&found.tenant).await? {
            return self.shared.invitations.discard(found).await;
        }
        Ok(false)
    }
}

/// What a step came to; one that met a record that cannot be read (logged when it was found) touched nothing.
fn readable<T: Default>(result: Result<T, store::Error>) -> Result<T, store::Error> {
    match result {
        Err(store::Error::Corrupt(_)) => Ok(T::default()),
        result => result,
    }
}
