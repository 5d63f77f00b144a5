//! `vaultkey.<tenant>` and `vaultmaster.keys`: the wrapped keys of the vault. Nothing here opens anything.
//!
//! A tenant's record holds its data key, sealed by a master key, and which version of each of its secrets is the
//! newest, under a tag of that data key: so that an older version put back is noticed. What the master keys are is in
//! one record, because they change together.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Deserialize;
use serde::Serialize;
use time::OffsetDateTime;

use super::Error;
use super::Store;
use super::secrets::KeyId;
use super::table::Read;
use super::table::Step;
use super::table::Table;
use super::view::Record;
use crate::ids::TenantId;

/// The data key of one tenant, sealed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TenantKey {
    /// Whose.
    pub tenant: TenantId,
    /// Names the data key.
    pub dek: String,
    /// Names the master key that sealed it.
    pub kek: String,
    /// The envelope.
    pub wrapped: String,
    /// When it was made.
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
    /// The newest version of each secret that is not deleted.
    pub heads: BTreeMap<KeyId, u32>,
    /// Over the heads, under the data key.
    pub heads_tag: String,
}

fn key_of(tenant: &TenantId) -> String {
    format!("{}{tenant}", TenantKey::PREFIX)
}

impl Record for TenantKey {
    const PREFIX: &'static str = "vaultkey.";
    type Id = TenantId;
    type Index = TenantId;

    fn id(&self) -> TenantId {
        self.tenant.clone()
    }

    fn key(&self) -> String {
        key_of(&self.tenant)
    }

    fn parse_id(rest: &str) -> Option<TenantId> {
        TenantId::parse(rest).ok()
    }

    fn index(&self) -> Option<TenantId> {
        Some(self.tenant.clone())
    }
}

/// One master key, as far as the store knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MasterKey {
    /// Made from the key itself.
    pub id: String,
    /// Made from the key too: what tells a wrong key before it is used.
    pub check: String,
    /// `generated`, `file`, `environment` or `passphrase`.
    pub source: String,
    /// What the passphrase was mixed with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub salt: Option<String>,
    /// When it was first used.
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
    /// When it sealed nothing any more and was forgotten.
    #[serde(default, with = "time::serde::rfc3339::option", skip_serializing_if = "Option::is_none")]
    pub retired_at: Option<OffsetDateTime>,
    /// This key sealed by others, by their ids: there only while one replaces the other, so that either opens the vault.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub bridges: BTreeMap<String, String>,
}

/// All master keys that ever were, the one in use last.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MasterKeys {
    /// Oldest first.
    pub keys: Vec<MasterKey>,
}

impl Record for MasterKeys {
    const PREFIX: &'static str = "vaultmaster.";
    type Id = ();
    type Index = ();

    fn id(&self) {}

    fn key(&self) -> String {
        MASTER.to_owned()
    }

    fn parse_id(rest: &str) -> Option<()> {
        (rest == "keys").then_some(())
    }

    fn index(&self) -> Option<()> {
        Some(())
    }
}

const MASTER: &str = "vaultmaster.keys";

/// Both kinds of record. Cheap to clone.
#[derive(Debug, Clone)]
pub struct VaultKeys {
    tenants: Table<TenantKey>,
    master: Table<MasterKeys>,
}

impl VaultKeys {
    /// Loads the views and follows the store, on the caller's runtime, until the last handle is gone or the store is
    /// closed.
    pub async fn open(store: Arc<dyn Store>) -> Result<Self, Error> {
        Ok(Self { tenants: Table::open(Arc::clone(&store)).await?, master: Table::open(store).await? })
    }

    /// The record of the master keys as it is stored now; [`Error::Corrupt`] for one that cannot be read.
    pub async fn master(&self) -> Result<Option<Arc<MasterKeys>>, Error> {
        Ok(self.master.read(MASTER).await?.map(|read| read.record))
    }

    /// Changes the master keys by compare-and-swap; `decide` judges each time anew and returns what to write.
    pub async fn change_master(
        &self,
        mut decide: impl FnMut(Option<&MasterKeys>) -> Result<Option<MasterKeys>, Error> + Send,
    ) -> Result<Option<Arc<MasterKeys>>, Error> {
        let decide = |read: Option<&Read<MasterKeys>>| {
            Ok(decide(read.map(|read| &*read.record))?.map_or(Step::Keep, Step::Write))
        };
        self.master.change(MASTER, decide).await
    }

    /// From the view, no I/O.
    pub fn find(&self, tenant: &TenantId) -> Option<Arc<TenantKey>> {
        self.tenants.find(tenant)
    }

    /// As it is stored now.
    pub async fn read(&self, tenant: &TenantId) -> Result<Option<Arc<TenantKey>>, Error> {
        Ok(self.tenants.read(&key_of(tenant)).await?.map(|read| read.record))
    }

    /// Changes a tenant's record by compare-and-swap; `decide` judges each time anew and returns what to write.
    pub async fn change(
        &self,
        tenant: &TenantId,
        mut decide: impl FnMut(Option<&TenantKey>) -> Result<Option<TenantKey>, Error> + Send,
    ) -> Result<Option<Arc<TenantKey>>, Error> {
        let decide = |read: Option<&Read<TenantKey>>| {
            Ok(decide(read.map(|read| &*read.record))?.map_or(Step::Keep, Step::Write))
        };
        self.tenants.change(&key_of(tenant), decide).await
    }

    /// Destroys a tenant's data key, and with it everything that it sealed. Whether there was one.
    pub async fn destroy(&self, tenant: &TenantId) -> Result<bool, Error> {
        Ok(self.tenants.remove(&key_of(tenant), |_| true).await?.is_some())
    }

    /// At most `limit` tenants whose data key another master key than this sealed.
    pub fn not_under(&self, kek: &str, limit: usize, skip: impl Fn(&TenantId) -> bool) -> Vec<TenantId> {
        let mut found = Vec::new();
        self.tenants.view().scan(|record, _| {
            if record.kek != kek && !skip(&record.tenant) {
                found.push(record.tenant.clone());
            }
            found.len() < limit
        });
        found
    }

    /// How many data keys each master key sealed. One pass over memory.
    pub fn counts(&self) -> BTreeMap<String, usize> {
        let mut counts = BTreeMap::new();
        self.tenants.view().scan(|record, _| {
            match counts.get_mut(&record.kek) {
                Some(count) => *count += 1,
                None => drop(counts.insert(record.kek.clone(), 1_usize)),
            }
            true
        });
        counts
    }

    /// How many tenants have a data key.
    pub fn len(&self) -> usize {
        self.tenants.len()
    }

    /// Whether none has.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
