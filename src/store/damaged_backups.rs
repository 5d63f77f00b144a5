//! `backupdamage.<tenant>`: in whose backups something was found damaged, until a snapshot has written all of it anew.

use std::sync::Arc;

use serde::Deserialize;
use serde::Serialize;
use time::OffsetDateTime;

use super::Error;
use super::Store;
use super::table::Step;
use super::table::Table;
use super::view::Record;
use crate::ids::TenantId;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct DamagedBackup {
    tenant: TenantId,
    #[serde(with = "time::serde::rfc3339")]
    found_at: OffsetDateTime,
}

fn key_of(tenant: &TenantId) -> String {
    format!("{}{tenant}", DamagedBackup::PREFIX)
}

impl Record for DamagedBackup {
    const PREFIX: &'static str = "backupdamage.";
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

/// The tenants. Cheap to clone.
#[derive(Debug, Clone)]
pub struct DamagedBackups {
    table: Table<DamagedBackup>,
}

impl DamagedBackups {
    /// Loads the view and follows the store, on the caller's runtime, until the last handle is gone or the store is
    /// closed.
    pub async fn open(store: Arc<dyn Store>) -> Result<Self, Error> {
        Ok(Self { table: Table::open(store).await? })
    }

    /// Whether damage was found and not made good. From the view, no I/O.
    pub fn contains(&self, tenant: &TenantId) -> bool {
        self.table.find(tenant).is_some()
    }

    /// Notes that damage was found.
    pub async fn note(&self, tenant: &TenantId) -> Result<(), Error> {
        let fresh = DamagedBackup { tenant: tenant.clone(), found_at: OffsetDateTime::now_utc() };
        let key = fresh.key();
        let noted = self
            .table
            .change(&key, |current| Ok(if current.is_some() { Step::Keep } else { Step::Write(fresh.clone()) }));
        noted.await.map(drop)
    }

    /// Forgets it. Content with finding nothing.
    pub async fn forget(&self, tenant: &TenantId) -> Result<(), Error> {
        self.table.remove(&key_of(tenant), |_| true).await.map(drop)
    }
}
