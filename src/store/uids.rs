//! `uid.<number>`: which tenant a user id of the operating system belongs to. Creating the record is what makes a
//! number one tenant's alone.
//!
//! Invariant: a record is never deleted and never changed, so a number is never given to a second tenant, whatever
//! becomes of the first one's files.

use std::ops::Bound;
use std::ops::Range;
use std::sync::Arc;

use serde::Deserialize;
use serde::Serialize;

use super::Error;
use super::Store;
use super::table::Read;
use super::table::Step;
use super::table::Table;
use super::view::Record;
use crate::ids::TenantId;

/// A number that was given away.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TenantUid {
    /// The user id, and the group id.
    pub uid: u32,
    /// Whose it is.
    pub tenant: TenantId,
}

fn key_of(uid: u32) -> String {
    format!("{}{uid}", TenantUid::PREFIX)
}

impl Record for TenantUid {
    const PREFIX: &'static str = "uid.";
    type Id = u32;
    type Index = (TenantId, u32);

    fn id(&self) -> u32 {
        self.uid
    }

    fn key(&self) -> String {
        key_of(self.uid)
    }

    fn parse_id(rest: &str) -> Option<u32> {
        rest.parse().ok()
    }

    fn index(&self) -> Option<Self::Index> {
        Some((self.tenant.clone(), self.uid))
    }
}

/// The numbers: typed records plus an in-memory view fed by the watch. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Uids {
    table: Table<TenantUid>,
}

impl Uids {
    /// Loads the view and follows the store, on the caller's runtime, until the last handle is gone or the store is
    /// closed.
    pub async fn open(store: Arc<dyn Store>) -> Result<Self, Error> {
        Ok(Self { table: Table::open(store).await? })
    }

    /// The number of a tenant, from the view. Should it have two (two wakes at once on two machines), the smaller.
    pub fn find(&self, tenant: &TenantId) -> Option<u32> {
        let from = (tenant.clone(), 0);
        let mut found = self.table.view().range(Bound::Included(&from), 1, |(of, _)| of == tenant);
        found.pop().map(|(_, uid)| uid)
    }

    /// All numbers that were given away, the smallest first, also those of tenants that are gone.
    pub fn given(&self) -> Vec<TenantUid> {
        let mut given = Vec::new();
        self.table.view().scan(|record, _| {
            given.push(TenantUid::clone(record));
            true
        });
        given.sort_unstable_by_key(|record| record.uid);
        given
    }

    /// The number of a tenant, a new one of this range when it has none. Durable when it returns; none when the range
    /// is used up.
    pub async fn of(&self, tenant: &TenantId, range: Range<u32>) -> Result<Option<u32>, Error> {
        if let Some(uid) = self.find(tenant) {
            return Ok(Some(uid));
        }
        // Numbers are given in order and never come back, so the next one is most likely free. Where the range was moved
        // meanwhile, all of them are looked at.
        let given = u32::try_from(self.table.len()).unwrap_or(u32::MAX);
        let likely = range.start.saturating_add(given).min(range.end);
        for uid in (likely..range.end).chain(range.start..likely) {
            if self.table.find(&uid).is_some() {
                continue;
            }
            let mut won = false;
            let decide = |current: Option<&Read<TenantUid>>| {
                won = current.is_none_or(|read| read.record.tenant == *tenant);
                let fresh = TenantUid { uid, tenant: tenant.clone() };
                Ok(if current.is_some() { Step::Keep } else { Step::Write(fresh) })
            };
            self.table.change(&key_of(uid), decide).await?;
            if won {
                return Ok(Some(uid));
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::store::sqlite::ControlDatabase;

    #[tokio::test]
    async fn every_tenant_has_a_number_of_its_own_for_good() {
        let dir = tempfile::tempdir().unwrap();
        let store: Arc<dyn Store> = Arc::new(ControlDatabase::open(&dir.path().join("control.db")).unwrap());
        let (one, two) = (Uids::open(Arc::clone(&store)).await.unwrap(), Uids::open(store).await.unwrap());
        let tenant = |n: u32| TenantId::parse(&format!("t{n}")).unwrap();
        let mut given = HashSet::new();
        for n in 0..5 {
            // Two that do not know of each other's news yet.
            let uids = if n % 2 == 0 { &one } else { &two };
            given.insert(uids.of(&tenant(n), 1_000..1_005).await.unwrap().unwrap());
        }
        assert_eq!(given, (1_000..1_005).collect());
        let listed: Vec<u32> = one.given().iter().map(|record| record.uid).collect();
        assert!(listed.is_sorted() && listed.len() == 5, "{listed:?}");
        assert_eq!(one.of(&tenant(9), 1_000..1_005).await.unwrap(), None, "used up");
        let first = one.of(&tenant(0), 1_000..1_005).await.unwrap();
        assert_eq!(one.of(&tenant(0), 7_000..7_005).await.unwrap(), first, "kept when the range moves");
    }
}
