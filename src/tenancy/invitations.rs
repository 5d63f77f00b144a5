//! Letting people in.
//!
//! An invitation is worth what its maker may still give: whoever lost the right to invite leaves no open doors behind.

use std::fmt;
use std::sync::Arc;

use rand::distr::SampleString;
use time::Duration;
use time::OffsetDateTime;

use super::Error;
use super::Invalid;
use super::Tenancy;
use super::rules;
use crate::ids::UserId;
use crate::store;
use crate::store::invitations::Invitation;
use crate::store::invitations::InvitationId;
use crate::store::invitations::InvitationStatus;
use crate::store::members::MemberRole;
use crate::store::tenants::Tenant;

/// Letters and digits of a token: more than 250 bits.
const TOKEN_LETTERS: usize = 43;

const GONE: Error = Error::NotFound("invitation");

/// Whether somebody can enter it now.
fn is_open(tenant: &Arc<Tenant>) -> bool {
    !tenant.archived && tenant.deleted.is_none()
}

/// Whom to let in.
#[derive(Debug, Clone)]
pub struct NewInvitation {
    /// As what.
    pub role: MemberRole,
    /// Only the account with this e-mail address may take it.
    pub email: Option<String>,
}

/// A fresh invitation with the token that opens it, which exists nowhere else.
#[derive(Clone)]
pub struct Invited {
    /// The token.
    pub token: String,
    /// The invitation.
    pub invitation: Invitation,
}

impl fmt::Debug for Invited {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Invited").field("invitation", &self.invitation).finish_non_exhaustive()
    }
}

/// The e-mail address of whoever comes with an invitation.
#[derive(Clone, Copy)]
pub struct Address<'a> {
    /// The address.
    pub email: &'a str,
    /// Whether it is known that it is theirs.
    pub is_verified: bool,
}

impl fmt::Debug for Address<'_> {
    // Addresses are personal and do not belong in a log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Address").field("is_verified", &self.is_verified).finish_non_exhaustive()
    }
}

impl Tenancy {
    /// Opens a door for one person.
    pub async fn invite(
        &self,
        actor: &UserId,
        name: &str,
        wanted: NewInvitation,
        now: OffsetDateTime,
    ) -> Result<Invited, Error> {
        let (tenant, role) = self.workspace(name, actor)?;
        if role < MemberRole::Admin {
            return Err(Error::Forbidden("only owners and admins invite"));
        }
        let email = wanted.email.as_deref().map(rules::check_email).transpose()?;
        if wanted.role == MemberRole::Owner {
            let message = "Must be admin, member or guest: owners are made of members.";
            return Err(Invalid { field: "role", code: "validation_invalid_role", message }.into());
        }
        if !rules::may_give(role, wanted.role) {
            return Err(Error::Forbidden("admins invite members and guests"));
        }
        self.meter(actor)?;
        let mut open = 0;
        for found in self.shared.invitations.of_tenant(&tenant.id) {
            match found.status {
                InvitationStatus::Pending | InvitationStatus::Taken { .. } if now < found.expires_at => open += 1,
                InvitationStatus::Pending | InvitationStatus::Taken { .. } | InvitationStatus::Accepted { .. } => {
                    self.shared.invitations.discard(&found).await?;
                }
            }
        }
        let most = self.shared.config.max_invitations;
        if open >= most {
            return Err(Error::Full { what: "open invitations of one workspace", most });
        }
        let token = rand::distr::Alphanumeric.sample_string(&mut rand::rng(), TOKEN_LETTERS);
        let ttl = Duration::try_from(self.shared.config.invitation_ttl).unwrap_or(Duration::WEEK);
        let invitation = Invitation {
            id: InvitationId::of(&token),
            tenant: tenant.id.clone(),
            role: wanted.role,
            email,
            created_by: actor.clone(),
            created_at: now,
            expires_at: now.saturating_add(ttl),
            status: InvitationStatus::Pending,
        };
        self.shared.invitations.create(invitation.clone()).await?;
        Ok(Invited { token, invitation })
    }

    /// The open invitations of a workspace, for those who may make them, newest first.
    pub fn invitations(&self, actor: &UserId, name: &str, now: OffsetDateTime) -> Result<Vec<Arc<Invitation>>, Error> {
        let (tenant, role) = self.workspace(name, actor)?;
        if role < MemberRole::Admin {
            return Err(Error::Forbidden("only owners and admins see invitations"));
        }
        let mut open = self.shared.invitations.of_tenant(&tenant.id);
        // One that was taken and not entered counts as open too, and can be taken back.
        let is_used = |found: &Invitation| matches!(found.status, InvitationStatus::Accepted { .. });
        open.retain(|found| !is_used(found) && now < found.expires_at);
        open.sort_by(|a, b| b.created_at.cmp(&a.created_at).then_with(|| a.id.cmp(&b.id)));
        Ok(open)
    }

    /// Closes the door again.
    pub async fn revoke_invitation(&self, actor: &UserId, name: &str, id: &str) -> Result<(), Error> {
        let (tenant, role) = self.workspace(name, actor)?;
        let found = InvitationId::parse(id).and_then(|id| self.shared.invitations.find(&id));
        if role < MemberRole::Admin {
            return Err(Error::Forbidden("only owners and admins take invitations back"));
        }
        let found = found.filter(|found| found.tenant == tenant.id).ok_or(GONE)?;
        if !rules::may_give(role, found.role) {
            return Err(Error::Forbidden("admins take back invitations of members and guests only"));
        }
        if self.shared.invitations.discard(&found).await? { Ok(()) } else { Err(GONE) }
    }

    /// What a token would let this account into, without taking it.
    pub fn preview(
        &self,
        token: &str,
        address: Address<'_>,
        now: OffsetDateTime,
    ) -> Result<(Arc<Invitation>, Arc<Tenant>), Error> {
        let found = self.shared.invitations.find(&InvitationId::of(token)).ok_or(GONE)?;
        let tenant = self.open_door(&found, None, address, now)?;
        Ok((found, tenant))
    }

    /// Whether an invitation still lets somebody in, whoever may have begun to take it.
    pub(super) fn is_good(&self, found: &Invitation, tenant: &Tenant, now: OffsetDateTime) -> bool {
        let maker = self.role(tenant, &found.created_by);
        now < found.expires_at && maker.is_some_and(|maker| rules::may_give(maker, found.role))
    }

    /// Where an invitation leads that can be taken, or that `taker` took before and has not entered.
    fn open_door(
        &self,
        found: &Invitation,
        taker: Option<&UserId>,
        address: Address<'_>,
        now: OffsetDateTime,
    ) -> Result<Arc<Tenant>, Error> {
        let tenant = self.shared.tenants.find(&found.tenant).filter(is_open).ok_or(GONE)?;
        let is_open = match &found.status {
            InvitationStatus::Pending => true,
            InvitationStatus::Taken { by } => taker == Some(by),
            InvitationStatus::Accepted { .. } => false,
        };
        if !is_open || !self.is_good(found, &tenant, now) {
            return Err(GONE);
        }
        if let Some(only) = &found.email {
            if *only != address.email.trim().to_lowercase() {
                return Err(Error::Forbidden("the invitation is for another e-mail address"));
            }
            // Anybody can register with an address that is somebody else's.
            if self.shared.can_verify && !address.is_verified {
                return Err(Error::Forbidden("verify your e-mail address first: the invitation is for whoever has it"));
            }
        }
        Ok(tenant)
    }

    /// Becomes a member. Asking again after it worked changes nothing.
    pub async fn accept(
        &self,
        token: &str,
        user: &UserId,
        address: Address<'_>,
        now: OffsetDateTime,
    ) -> Result<(Arc<Tenant>, MemberRole), Error> {
        self.meter(user)?;
        let found = self.shared.invitations.find(&InvitationId::of(token)).ok_or(GONE)?;
        let under_way = InvitationStatus::Taken { by: user.clone() };
        let accepted = InvitationStatus::Accepted { by: user.clone() };
        if found.status == under_way || found.status == accepted {
            let tenant = self.shared.tenants.find(&found.tenant).filter(is_open).ok_or(GONE)?;
            if let Some(role) = self.role(&tenant, user) {
                return Ok((tenant, role));
            }
        }
        let tenant = self.open_door(&found, Some(user), address, now)?;
        // Whoever is in already keeps their role, and the invitation is left for somebody else.
        if let Some(role) = self.role(&tenant, user) {
            return Ok((tenant, role));
        }
        let may_take = |status: &InvitationStatus| *status == InvitationStatus::Pending || *status == under_way;
        let take = |status: &InvitationStatus| may_take(status).then(|| under_way.clone());
        self.shared.invitations.advance(&found, take).await.map_err(gone)?;
        let joined = self.add_member(&tenant, user, found.role, Some(&found.created_by), now).await;
        let next = if joined.is_ok() { accepted } else { InvitationStatus::Pending };
        // The same account may have asked twice at once.
        let settle = |status: &InvitationStatus| (*status == under_way || *status == next).then(|| next.clone());
        let settled = self.shared.invitations.advance(&found, settle).await;
        if let (Err(store::Error::Stale), Ok(true)) = (&settled, &joined) {
            // It was taken back meanwhile.
            self.shared.members.remove(&tenant.id, user, found.role).await?;
        }
        settled.map_err(gone)?;
        joined?;
        Ok((tenant, found.role))
    }

    /// Refuses an invitation that was for this account's e-mail address, so that nobody can take it any more.
    pub async fn decline(&self, token: &str, address: Address<'_>, now: OffsetDateTime) -> Result<(), Error> {
        let (found, _) = self.preview(token, address, now)?;
        if found.email.is_none() {
            return Err(Error::Conflict("the invitation is for whoever has it; simply do not take it"));
        }
        if self.shared.invitations.remove(&found).await? { Ok(()) } else { Err(GONE) }
    }
}

fn gone(error: store::Error) -> Error {
    match error {
        store::Error::Stale => GONE,
        error => error.into(),
    }
}
