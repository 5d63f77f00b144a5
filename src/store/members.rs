//! `member.<tenant>.<user>`: who belongs to a workspace, and as what.
//!
//! The view is read on every request to a workspace (what may this caller do here?), listed by tenant (its members) and
//! by user (their workspaces). Invariants: one record per tenant and user; a role is changed only by whoever knows the
//! present one. Who may change what is decided in `tenancy`.

use std::ops::Bound;
use std::sync::Arc;

use serde::Deserialize;
use serde::Serialize;
use time::OffsetDateTime;

use super::Error;
use super::Store;
use super::table::Read;
use super::table::Step;
use super::table::Table;
use super::view::Record;
use crate::ids::TenantId;
use crate::ids::UserId;

/// What a member may do, from least to most.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MemberRole {
    /// Reads.
    Guest,
    /// The usual: reads and writes.
    Member,
    /// Manages members and guests.
    Admin,
    /// Everything.
    Owner,
}

impl MemberRole {
    /// All, from least to most.
    pub const ALL: [Self; 4] = [Self::Guest, Self::Member, Self::Admin, Self::Owner];

    /// The role as records, answers and the apps' own rules spell it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Guest => "guest",
            Self::Member => "member",
            Self::Admin => "admin",
            Self::Owner => "owner",
        }
    }
}

/// One person in one workspace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// The workspace.
    pub tenant: TenantId,
    /// The person.
    pub user: UserId,
    /// As what.
    pub role: MemberRole,
    /// Who let them in; none for whoever made the workspace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub invited_by: Option<UserId>,
    /// Since when.
    #[serde(with = "time::serde::rfc3339")]
    pub joined_at: OffsetDateTime,
}

/// The two orders of the view.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Place {
    OfTenant(TenantId, UserId),
    OfUser(UserId, TenantId),
}

fn key_of(tenant: &TenantId, user: &UserId) -> String {
    format!("{}{tenant}.{user}", Member::PREFIX)
}

impl Record for Member {
    const PREFIX: &'static str = "member.";
    type Id = (TenantId, UserId);
    type Index = Place;

    fn id(&self) -> Self::Id {
        (self.tenant.clone(), self.user.clone())
    }

    fn key(&self) -> String {
        key_of(&self.tenant, &self.user)
    }

    fn parse_id(rest: &str) -> Option<Self::Id> {
        let (tenant, user) = rest.split_once('.')?;
        Some((TenantId::parse(tenant).ok()?, UserId::parse(user).ok()?))
    }

    fn index(&self) -> Option<Place> {
        Some(Place::OfTenant(self.tenant.clone(), self.user.clone()))
    }

    fn second_index(&self) -> Option<Place> {
        Some(Place::OfUser(self.user.clone(), self.tenant.clone()))
    }
}

/// The memberships: typed records plus an in-memory view fed by the watch. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Members {
    table: Table<Member>,
}

impl Members {
    /// Loads the view and follows the store, on the caller's runtime, until the last handle is gone or the store is
    /// closed.
    pub async fn open(store: Arc<dyn Store>) -> Result<Self, Error> {
        Ok(Self { table: Table::open(store).await? })
    }

    /// From the view, no I/O.
    pub fn find(&self, tenant: &TenantId, user: &UserId) -> Option<Arc<Member>> {
        self.table.find(&(tenant.clone(), user.clone()))
    }

    /// How many records there are.
    pub fn len(&self) -> usize {
        self.table.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A page of a tenant's members in the order of their ids: at most `limit` after `after`, from the view.
    pub fn of_tenant(&self, tenant: &TenantId, after: Option<&UserId>, limit: usize) -> Vec<Arc<Member>> {
        let from = after.map(|user| Place::OfTenant(tenant.clone(), user.clone()));
        let first = Place::OfTenant(tenant.clone(), UserId::lowest());
        let bound = from.as_ref().map_or(Bound::Included(&first), Bound::Excluded);
        let belongs = |place: &Place| matches!(place, Place::OfTenant(of, _) if of == tenant);
        self.listed(&self.table.view().range(bound, limit, belongs))
    }

    /// A page of a user's memberships in the order of the tenants' ids: at most `limit` after `after`, from the view.
    pub fn of_user(&self, user: &UserId, after: Option<&TenantId>, limit: usize) -> Vec<Arc<Member>> {
        let from = after.map(|tenant| Place::OfUser(user.clone(), tenant.clone()));
        let first = Place::OfUser(user.clone(), TenantId::lowest());
        let bound = from.as_ref().map_or(Bound::Included(&first), Bound::Excluded);
        let belongs = |place: &Place| matches!(place, Place::OfUser(of, _) if of == user);
        self.listed(&self.table.view().range(bound, limit, belongs))
    }

    fn listed(&self, places: &[Place]) -> Vec<Arc<Member>> {
        let find = |place: &Place| match place {
            Place::OfTenant(tenant, user) | Place::OfUser(user, tenant) => self.find(tenant, user),
        };
        places.iter().filter_map(find).collect()
    }

    /// Every membership, from the view, in no order. For repairs at the start.
    pub fn all(&self) -> Vec<Arc<Member>> {
        let mut all = Vec::with_capacity(self.len());
        self.table.view().scan(|member, _| {
            all.push(Arc::clone(member));
            true
        });
        all
    }

    /// Creates the record; false when the user was a member before, whose record is left as it is.
    pub async fn add(&self, member: Member) -> Result<bool, Error> {
        let mut added = false;
        let decide = |current: Option<&Read<Member>>| {
            added = current.is_none();
            Ok(if added { Step::Write(member.clone()) } else { Step::Keep })
        };
        self.table.change(&member.key(), decide).await?;
        Ok(added)
    }

    /// Changes a role that is `from` now; [`Error::Stale`] when it is another one, or the user is no member.
    pub async fn change_role(
        &self,
        tenant: &TenantId,
        user: &UserId,
        from: MemberRole,
        to: MemberRole,
    ) -> Result<Arc<Member>, Error> {
        let decide = |current: Option<&Read<Member>>| {
            let member = &current.filter(|read| read.record.role == from).ok_or(Error::Stale)?.record;
            Ok(if from == to { Step::Keep } else { Step::Write(Member { role: to, ..Member::clone(member) }) })
        };
        self.table.change(&key_of(tenant, user), decide).await?.ok_or(Error::Stale)
    }

    /// Makes the user an owner, whatever they were.
    pub async fn set_owner(&self, tenant: &TenantId, user: &UserId, now: OffsetDateTime) -> Result<(), Error> {
        let decide = |current: Option<&Read<Member>>| {
            let fresh = || Member {
                tenant: tenant.clone(),
                user: user.clone(),
                role: MemberRole::Owner,
                invited_by: None,
                joined_at: now,
            };
            let member = current.map_or_else(fresh, |read| Member::clone(&read.record));
            let is_owner = current.is_some_and(|read| read.record.role == MemberRole::Owner);
            Ok(if is_owner { Step::Keep } else { Step::Write(Member { role: MemberRole::Owner, ..member }) })
        };
        self.table.change(&key_of(tenant, user), decide).await.map(drop)
    }

    /// Removes a member whose role is `role` now; false when there is no such member (any more).
    pub async fn remove(&self, tenant: &TenantId, user: &UserId, role: MemberRole) -> Result<bool, Error> {
        let removed = self.table.remove(&key_of(tenant, user), |member| member.role == role).await?;
        Ok(removed.is_some())
    }
}
