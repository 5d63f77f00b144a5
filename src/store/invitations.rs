//! `invite.<tenant>.<hash>`: open doors into a workspace, each for one person.
//!
//! The token is shown once to whoever made the invitation; only its hash is kept. Invariants: a status only moves on,
//! by compare-and-swap, so that one person at most comes in through one invitation; who took it is noted before they
//! become a member, so that an interrupted acceptance can be finished for them and for nobody else.

use std::fmt;
use std::ops::Bound;
use std::sync::Arc;

use serde::Deserialize;
use serde::Serialize;
use sha2::Digest;
use sha2::Sha256;
use time::OffsetDateTime;

use super::Error;
use super::Store;
use super::members::MemberRole;
use super::table::Read;
use super::table::Step;
use super::table::Table;
use super::view::Record;
use crate::ids::TenantId;
use crate::ids::UserId;

/// SHA-256 of an invitation's token, in lowercase hex: names the invitation, opens nothing.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct InvitationId(Arc<str>);

impl InvitationId {
    /// The id of the invitation that a token opens.
    pub fn of(token: &str) -> Self {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let digest = Sha256::digest(token.as_bytes());
        let digits = digest.iter().flat_map(|byte| [byte >> 4, byte & 15]);
        let hex: String = digits.map(|digit| char::from(DIGITS[usize::from(digit)])).collect();
        Self(hex.into())
    }

    /// The id in a text, if it has the form of one.
    pub fn parse(text: &str) -> Option<Self> {
        let is_hex = text.len() == 64 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        is_hex.then(|| Self(text.into()))
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for InvitationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// How far an invitation has come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InvitationStatus {
    /// Nobody took it.
    Pending,
    /// Taken; its taker is about to become a member.
    Taken {
        /// Who.
        by: UserId,
    },
    /// Its taker became a member.
    Accepted {
        /// Who.
        by: UserId,
    },
}

/// An invitation.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Invitation {
    /// The token's hash.
    pub id: InvitationId,
    /// Into which workspace.
    pub tenant: TenantId,
    /// As what.
    pub role: MemberRole,
    /// The only e-mail address that may take it, if it is for one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub email: Option<String>,
    /// Who made it.
    pub created_by: UserId,
    /// When.
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
    /// Until when it can be taken.
    #[serde(with = "time::serde::rfc3339")]
    pub expires_at: OffsetDateTime,
    /// How far it has come.
    pub status: InvitationStatus,
}

impl fmt::Debug for Invitation {
    // Addresses are personal and do not belong in a log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Invitation").field("tenant", &self.tenant).field("status", &self.status).finish_non_exhaustive()
    }
}

impl Record for Invitation {
    const PREFIX: &'static str = "invite.";
    type Id = InvitationId;
    type Index = (TenantId, InvitationId);

    fn id(&self) -> InvitationId {
        self.id.clone()
    }

    fn key(&self) -> String {
        format!("{}{}.{}", Self::PREFIX, self.tenant, self.id)
    }

    fn parse_id(rest: &str) -> Option<InvitationId> {
        rest.split_once('.').and_then(|(_, hash)| InvitationId::parse(hash))
    }

    fn index(&self) -> Option<Self::Index> {
        Some((self.tenant.clone(), self.id.clone()))
    }
}

/// The invitations: typed records plus an in-memory view fed by the watch. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Invitations {
    table: Table<Invitation>,
}

impl Invitations {
    /// Loads the view and follows the store, on the caller's runtime, until the last handle is gone or the store is
    /// closed.
    pub async fn open(store: Arc<dyn Store>) -> Result<Self, Error> {
        Ok(Self { table: Table::open(store).await? })
    }

    /// From the view, no I/O.
    pub fn find(&self, id: &InvitationId) -> Option<Arc<Invitation>> {
        self.table.find(id)
    }

    /// All of a tenant, from the view, whatever their status.
    pub fn of_tenant(&self, tenant: &TenantId) -> Vec<Arc<Invitation>> {
        let from = (tenant.clone(), InvitationId("".into()));
        let places = self.table.view().range(Bound::Included(&from), usize::MAX, |(of, _)| of == tenant);
        places.iter().filter_map(|(_, id)| self.find(id)).collect()
    }

    /// Every invitation, from the view, in no order. For repairs at the start.
    pub fn all(&self) -> Vec<Arc<Invitation>> {
        let mut all = Vec::with_capacity(self.table.len());
        self.table.view().scan(|invitation, _| {
            all.push(Arc::clone(invitation));
            true
        });
        all
    }

    /// Writes a new one.
    pub async fn create(&self, invitation: Invitation) -> Result<(), Error> {
        let decide = |current: Option<&Read<Invitation>>| match current {
            Some(_) => Err(Error::Exists),
            None => Ok(Step::Write(invitation.clone())),
        };
        self.table.change(&invitation.key(), decide).await.map(drop)
    }

    /// Moves it on if `next` says to what; [`Error::Stale`] when `next` refuses its status, or when it is gone.
    pub async fn advance(
        &self,
        invitation: &Invitation,
        next: impl Fn(&InvitationStatus) -> Option<InvitationStatus> + Send + Sync,
    ) -> Result<(), Error> {
        let decide = |current: Option<&Read<Invitation>>| {
            let found = &current.ok_or(Error::Stale)?.record;
            let status = next(&found.status).ok_or(Error::Stale)?;
            let keep = status == found.status;
            Ok(if keep { Step::Keep } else { Step::Write(Invitation { status, ..Invitation::clone(found) }) })
        };
        self.table.change(&invitation.key(), decide).await.map(drop)
    }

    /// Removes the record, so that nobody can take the invitation any more; one whose taker is about to become a member
    /// is left alone. True when this call removed it.
    pub async fn remove(&self, invitation: &Invitation) -> Result<bool, Error> {
        let is_settled = |found: &Invitation| !matches!(found.status, InvitationStatus::Taken { .. });
        Ok(self.table.remove(&invitation.key(), is_settled).await?.is_some())
    }

    /// Removes the record whatever became of it. Whoever is just about to become a member through it finds it gone, and
    /// must take that back. True when this call removed it.
    pub async fn discard(&self, invitation: &Invitation) -> Result<bool, Error> {
        Ok(self.table.remove(&invitation.key(), |_| true).await?.is_some())
    }
}
