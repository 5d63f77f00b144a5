//! Who belongs to a workspace: changing roles, leaving, handing it over.
//!
//! The last owner cannot be lost: the tenant's record names one, and every way out of that place writes a successor
//! into it first. Where two of these meet, each looks again after its own last write, so that one of them notices.

use std::sync::Arc;

use time::OffsetDateTime;

use super::Error;
use super::Tenancy;
use super::rules;
use crate::ids::TenantId;
use crate::ids::UserId;
use crate::store;
use crate::store::members::Member;
use crate::store::members::MemberRole;
use crate::store::tenants::Kind;
use crate::store::tenants::Tenant;

/// What a caller does who lost against another change.
const CHANGED: Error = Error::Conflict("the membership changed meanwhile; look again");

impl Tenancy {
    /// Whom the instance of a tenant holds a row for, and as what: the owner of a personal tenant, the members of a
    /// workspace. From memory.
    pub fn roster(&self, tenant: &Tenant) -> Vec<(UserId, MemberRole)> {
        let owner = tenant.owner.iter().map(|owner| (owner.clone(), MemberRole::Owner));
        match tenant.kind {
            Kind::Global => Vec::new(),
            Kind::Personal => owner.collect(),
            Kind::Workspace => {
                let members = self.shared.members.of_tenant(&tenant.id, None, usize::MAX);
                let others = members.iter().filter(|member| tenant.owner.as_ref() != Some(&member.user));
                owner.chain(others.map(|member| (member.user.clone(), member.role))).collect()
            }
        }
    }

    /// A page of a user's workspaces that they can reach, with what they are there, in the order of their ids.
    pub fn workspaces(&self, user: &UserId, after: Option<&TenantId>, limit: usize) -> Vec<(Arc<Tenant>, MemberRole)> {
        let (mut found, mut after) = (Vec::new(), after.cloned());
        loop {
            let page = self.shared.members.of_user(user, after.as_ref(), limit);
            for member in &page {
                after = Some(member.tenant.clone());
                let Some(tenant) = self.shared.tenants.find(&member.tenant) else { continue };
                let Some(role) = self.role(&tenant, user) else { continue };
                if (!tenant.archived && tenant.deleted.is_none()) || role == MemberRole::Owner {
                    found.push((tenant, role));
                }
                if found.len() == limit {
                    return found;
                }
            }
            if page.len() < limit {
                return found;
            }
        }
    }

    /// A page of a workspace's members, for its members.
    pub fn members(
        &self,
        actor: &UserId,
        name: &str,
        after: Option<&UserId>,
        limit: usize,
    ) -> Result<Vec<Arc<Member>>, Error> {
        let (tenant, _) = self.workspace(name, actor)?;
        Ok(self.members_of(&tenant.id, after, limit))
    }

    /// The same without a question, for operators.
    pub fn members_of(&self, tenant: &TenantId, after: Option<&UserId>, limit: usize) -> Vec<Arc<Member>> {
        self.shared.members.of_tenant(tenant, after, limit)
    }

    /// Lets somebody in without an invitation; for operators and tests. False when they were in before.
    pub async fn add_member(
        &self,
        tenant: &Tenant,
        user: &UserId,
        role: MemberRole,
        invited_by: Option<&UserId>,
        now: OffsetDateTime,
    ) -> Result<bool, Error> {
        if tenant.kind != Kind::Workspace {
            return Err(Error::NotFound("workspace"));
        }
        if self.role(tenant, user).is_some() {
            return Ok(false);
        }
        let (id, invited_by) = (tenant.id.clone(), invited_by.cloned());
        let member = Member { tenant: id, user: user.clone(), role, invited_by, joined_at: now };
        if !self.shared.members.add(member).await? {
            return Ok(false);
        }
        // Counted with this one in: of several at once none slips by.
        let most = self.shared.config.max_members;
        if self.shared.members.of_tenant(&tenant.id, None, most + 1).len() > most {
            self.shared.members.remove(&tenant.id, user, role).await?;
            return Err(Error::Full { what: "members of one workspace", most });
        }
        Ok(true)
    }

    /// Changes what a member may do.
    pub async fn change_role(
        &self,
        actor: &UserId,
        name: &str,
        user: &UserId,
        role: MemberRole,
        now: OffsetDateTime,
    ) -> Result<Arc<Member>, Error> {
        let (tenant, own) = self.workspace(name, actor)?;
        if own < MemberRole::Admin {
            return Err(Error::Forbidden("only owners and admins change roles"));
        }
        let member = self.shared.members.find(&tenant.id, user).ok_or(Error::NotFound("member"))?;
        if !rules::may_manage(own, member.role) || !rules::may_give(own, role) {
            return Err(Error::Forbidden("admins change members and guests, and only to these roles"));
        }
        if tenant.owner.as_ref() == Some(user) && role != MemberRole::Owner {
            return Err(Error::Conflict("the workspace is theirs; it has to be handed over first"));
        }
        self.meter(actor)?;
        let changed = self.shared.members.change_role(&tenant.id, user, member.role, role).await;
        let changed = changed.map_err(lost)?;
        if role != MemberRole::Owner && self.settle_owner(&tenant.id, user, now).await? {
            return Err(CHANGED);
        }
        Ok(changed)
    }

    /// Removes a member. Whoever removes themselves leaves.
    pub async fn remove_member(
        &self,
        actor: &UserId,
        name: &str,
        user: &UserId,
        exists: impl Fn(&UserId) -> bool + Send + Sync,
        now: OffsetDateTime,
    ) -> Result<Arc<Tenant>, Error> {
        if actor == user {
            return self.leave(actor, name, exists, now).await;
        }
        let (tenant, own) = self.workspace(name, actor)?;
        if own < MemberRole::Admin {
            return Err(Error::Forbidden("only owners and admins remove members"));
        }
        let member = self.shared.members.find(&tenant.id, user).ok_or(Error::NotFound("member"))?;
        if !rules::may_manage(own, member.role) {
            return Err(Error::Forbidden("admins remove members and guests only"));
        }
        if tenant.owner.as_ref() == Some(user) {
            return Err(Error::Conflict("the workspace is theirs; it has to be handed over first"));
        }
        self.meter(actor)?;
        if !self.shared.members.remove(&tenant.id, user, member.role).await? {
            return Err(CHANGED);
        }
        if self.settle_owner(&tenant.id, user, now).await? {
            return Err(CHANGED);
        }
        Ok(tenant)
    }

    /// Leaves a workspace. Its owner hands it to another owner on the way out, if there is one whose account `exists`.
    pub async fn leave(
        &self,
        actor: &UserId,
        name: &str,
        exists: impl Fn(&UserId) -> bool + Send + Sync,
        now: OffsetDateTime,
    ) -> Result<Arc<Tenant>, Error> {
        let (tenant, _) = self.workspace(name, actor)?;
        self.meter(actor)?;
        if tenant.owner.as_ref() == Some(actor) {
            let others = self.shared.members.of_tenant(&tenant.id, None, usize::MAX);
            let may_inherit = |member: &Member| member.role == MemberRole::Owner && member.user != *actor;
            let heir = others.iter().find(|member| may_inherit(member) && exists(&member.user));
            let heir = heir.ok_or(Error::Conflict("hand the workspace over first: it would have no owner"))?;
            self.hand_over(&tenant.id, actor, &heir.user).await?;
        }
        let Some(member) = self.shared.members.find(&tenant.id, actor) else { return Err(CHANGED) };
        if !self.shared.members.remove(&tenant.id, actor, member.role).await? {
            return Err(CHANGED);
        }
        if self.settle_owner(&tenant.id, actor, now).await? {
            return Err(Error::Conflict("the workspace was handed to you meanwhile; hand it over first"));
        }
        Ok(tenant)
    }

    /// Hands a workspace to another of its members, whose account `exists`. Whose it was stays an owner, and may go.
    pub async fn transfer(
        &self,
        actor: &UserId,
        name: &str,
        heir: &UserId,
        exists: impl Fn(&UserId) -> bool + Send + Sync,
    ) -> Result<Arc<Tenant>, Error> {
        let (tenant, _) = self.workspace(name, actor)?;
        if tenant.owner.as_ref() != Some(actor) {
            return Err(Error::Forbidden("only the one whose workspace it is hands it over"));
        }
        let member = self.shared.members.find(&tenant.id, heir).ok_or(Error::NotFound("member"))?;
        if heir == actor {
            return Ok(tenant);
        }
        if !exists(heir) {
            return Err(Error::NotFound("account"));
        }
        let most = self.shared.config.max_per_user;
        if self.owned_by(heir) >= most {
            return Err(Error::Full { what: "workspaces of one account", most });
        }
        self.meter(actor)?;
        self.shared.members.change_role(&tenant.id, heir, member.role, MemberRole::Owner).await.map_err(lost)?;
        self.hand_over(&tenant.id, actor, heir).await
    }

    /// Gives a workspace to an account, whoever has it; for operators, when its owner is gone for good.
    pub async fn appoint(&self, tenant: &TenantId, user: &UserId, now: OffsetDateTime) -> Result<Arc<Tenant>, Error> {
        let found = self.shared.tenants.find(tenant).filter(|tenant| tenant.kind == Kind::Workspace);
        found.ok_or(Error::NotFound("workspace"))?;
        self.shared.members.set_owner(tenant, user, now).await?;
        let give = |tenant: &mut Tenant| tenant.owner = Some(user.clone());
        self.shared.tenants.change(tenant, give).await?.ok_or(Error::NotFound("workspace"))
    }

    /// Writes another owner into the tenant's record, if it is still `from` and `to` is still a member afterwards.
    async fn hand_over(&self, tenant: &TenantId, from: &UserId, to: &UserId) -> Result<Arc<Tenant>, Error> {
        let give = |from: &UserId, to: &UserId| {
            let (from, to) = (from.clone(), to.clone());
            move |tenant: &mut Tenant| {
                if tenant.owner.as_ref() == Some(&from) {
                    tenant.owner = Some(to.clone());
                }
            }
        };
        let changed = self.shared.tenants.change(tenant, give(from, to)).await?.ok_or(Error::NotFound("workspace"))?;
        if changed.owner.as_ref() != Some(to) {
            return Err(CHANGED);
        }
        let stays = self.shared.members.find(tenant, to).is_some_and(|member| member.role == MemberRole::Owner);
        if !stays {
            self.shared.tenants.change(tenant, give(to, from)).await?;
            return Err(CHANGED);
        }
        Ok(changed)
    }

    /// After somebody's membership was changed or removed: if the workspace is theirs meanwhile, their membership says
    /// so again, and the answer is true. Nobody looks after anybody else's, or two would undo each other's work.
    pub(super) async fn settle_owner(
        &self,
        tenant: &TenantId,
        user: &UserId,
        now: OffsetDateTime,
    ) -> Result<bool, store::Error> {
        if self.shared.tenants.find(tenant).is_none_or(|tenant| tenant.owner.as_ref() != Some(user)) {
            return Ok(false);
        }
        if self.shared.members.find(tenant, user).is_none_or(|member| member.role != MemberRole::Owner) {
            self.shared.members.set_owner(tenant, user, now).await?;
        }
        Ok(true)
    }
}

fn lost(error: store::Error) -> Error {
    match error {
        store::Error::Stale => CHANGED,
        error => error.into(),
    }
}
