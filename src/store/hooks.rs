//! `hook.<opaque>`: the addresses at which other services tell us of a user's news, and what they sign it with.
//!
//! The record is ours and not in the user's instance, so that a stranger who knocks wakes nobody. Invariants: an address
//! is random, belongs to one tenant for ever, and takes nothing before it is active; what is being removed is kept until
//! the service knows.

use std::fmt;
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

/// The part of a hook's address that nobody guesses: 32 hex digits.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct HookId(Arc<str>);

impl HookId {
    /// One that nobody has.
    pub fn random() -> Self {
        Self(format!("{:032x}", rand::random::<u128>()).into())
    }

    /// The first of all in order.
    pub(super) fn lowest() -> Self {
        Self("".into())
    }

    /// The id in a text, if it has the form of one.
    pub fn parse(text: &str) -> Option<Self> {
        let is_hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        (text.len() == 32 && text.bytes().all(is_hex)).then(|| Self(text.into()))
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for HookId {
    // Half of what it takes to be heard; logs get the beginning.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.get(..8).unwrap_or_default())
    }
}

/// How far a hook has come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HookStatus {
    /// The service is about to be told. If nothing more comes of it, the record is swept.
    Registering,
    /// The service knows it.
    Active {
        /// Its name for the hook.
        remote: String,
        /// What it signs with, sealed by the vault.
        secret: String,
    },
    /// Nothing is taken any more; the service has yet to be told.
    Removing {
        /// Its name for the hook.
        remote: String,
    },
}

/// A hook.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hook {
    /// Its address.
    pub id: HookId,
    /// Whose news it brings.
    pub tenant: TenantId,
    /// Who asked for it.
    pub user: UserId,
    /// How far it has come.
    pub status: HookStatus,
    /// Whether what is new is delivered at once.
    pub auto_deliver: bool,
    /// When it was made.
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
    /// When news came last.
    #[serde(default, with = "time::serde::rfc3339::option", skip_serializing_if = "Option::is_none")]
    pub heard_at: Option<OffsetDateTime>,
}

impl Record for Hook {
    const PREFIX: &'static str = "hook.";
    type Id = HookId;
    type Index = (TenantId, HookId);

    fn id(&self) -> HookId {
        self.id.clone()
    }

    fn key(&self) -> String {
        key_of(&self.id)
    }

    fn parse_id(rest: &str) -> Option<HookId> {
        HookId::parse(rest)
    }

    fn index(&self) -> Option<Self::Index> {
        Some((self.tenant.clone(), self.id.clone()))
    }
}

fn key_of(id: &HookId) -> String {
    format!("{}{}", Hook::PREFIX, id.as_str())
}

/// The hooks: typed records plus an in-memory view fed by the watch. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Hooks {
    table: Table<Hook>,
}

impl Hooks {
    /// Loads the view and follows the store, on the caller's runtime, until the last handle is gone or the store is
    /// closed.
    pub async fn open(store: Arc<dyn Store>) -> Result<Self, Error> {
        Ok(Self { table: Table::open(store).await? })
    }

    /// From the view, no I/O.
    pub fn find(&self, id: &HookId) -> Option<Arc<Hook>> {
        self.table.find(id)
    }

    /// All of a tenant, from the view.
    pub fn of_tenant(&self, tenant: &TenantId) -> Vec<Arc<Hook>> {
        let from = (tenant.clone(), HookId::lowest());
        let places = self.table.view().range(Bound::Included(&from), usize::MAX, |(of, _)| of == tenant);
        places.iter().filter_map(|(_, id)| self.find(id)).collect()
    }

    /// Those that are not simply active, from the view, in no order.
    pub fn unsettled(&self) -> Vec<Arc<Hook>> {
        let mut found = Vec::new();
        self.table.view().scan(|hook, _| {
            if !matches!(hook.status, HookStatus::Active { .. }) {
                found.push(Arc::clone(hook));
            }
            true
        });
        found
    }

    /// Writes a new one.
    pub async fn create(&self, hook: Hook) -> Result<(), Error> {
        let decide = |current: Option<&Read<Hook>>| match current {
            Some(_) => Err(Error::Exists),
            None => Ok(Step::Write(hook.clone())),
        };
        self.table.change(&hook.key(), decide).await.map(drop)
    }

    /// Changes it as it stands; none when it is gone.
    pub async fn change(
        &self,
        id: &HookId,
        edit: impl Fn(&mut Hook) + Send + Sync,
    ) -> Result<Option<Arc<Hook>>, Error> {
        let decide = |current: Option<&Read<Hook>>| {
            let Some(read) = current else { return Ok(Step::Keep) };
            let mut hook = Hook::clone(&read.record);
            edit(&mut hook);
            Ok(if hook == *read.record { Step::Keep } else { Step::Write(hook) })
        };
        self.table.change(&key_of(id), decide).await
    }

    /// Removes it whatever became of it.
    pub async fn remove(&self, id: &HookId) -> Result<(), Error> {
        self.table.remove(&key_of(id), |_| true).await.map(drop)
    }
}
