//! `version.<tenant>`: which version of its template an instance has, and which one it could not be brought to.
//!
//! The record follows the instance's own file (`instances/<tenant>/template`), which decides; it exists so that an
//! operator's question about a hundred thousand tenants opens no folder. A tenant without a record has either never
//! run or was made before these records existed: its next wake writes one.

use std::collections::BTreeMap;
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

/// An upgrade that was rolled back, or could not begin.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailedUpgrade {
    /// The version that was tried.
    pub hash: String,
    /// What happened, redacted.
    pub reason: String,
    /// When.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
    /// Whether something outside the instance was in the way (a full disk), so that it is tried again by itself.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub outside: bool,
}

/// The version of one instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Version {
    /// The tenant.
    pub tenant: TenantId,
    /// Name of its template.
    pub template: String,
    /// The version it has: the template's hash.
    pub hash: String,
    /// When it was made, or brought to this version.
    #[serde(with = "time::serde::rfc3339")]
    pub upgraded_at: OffsetDateTime,
    /// What it could not be brought to last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed: Option<FailedUpgrade>,
    /// The version of `PocketBase` that it is kept at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pin: Option<String>,
}

impl Version {
    /// Whether this version was tried, failed for reasons of its own, and must not be tried again.
    pub fn has_failed(&self, hash: &str) -> bool {
        self.failed.as_ref().is_some_and(|failed| failed.hash == hash && !failed.outside)
    }
}

fn key_of(id: &TenantId) -> String {
    format!("{}{id}", Version::PREFIX)
}

impl Record for Version {
    const PREFIX: &'static str = "version.";
    type Id = TenantId;
    /// Only the failed ones are listed.
    type Index = (String, TenantId);

    fn id(&self) -> TenantId {
        self.tenant.clone()
    }

    fn key(&self) -> String {
        key_of(&self.tenant)
    }

    fn parse_id(rest: &str) -> Option<TenantId> {
        TenantId::parse(rest).ok()
    }

    fn index(&self) -> Option<(String, TenantId)> {
        self.failed.as_ref().map(|_| (self.template.clone(), self.tenant.clone()))
    }

    fn compact(mut self) -> Self {
        self.template.shrink_to_fit();
        self.hash.shrink_to_fit();
        self
    }
}

/// The versions: typed records plus an in-memory view fed by the watch. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Versions {
    table: Table<Version>,
}

impl Versions {
    /// Loads the view and follows the store, on the caller's runtime, until the last handle is gone or the store is
    /// closed.
    pub async fn open(store: Arc<dyn Store>) -> Result<Self, Error> {
        Ok(Self { table: Table::open(store).await? })
    }

    /// From the view, no I/O.
    pub fn find(&self, id: &TenantId) -> Option<Arc<Version>> {
        self.table.find(id)
    }

    /// How many records say which template and version. One pass over memory.
    pub fn counts(&self) -> BTreeMap<String, BTreeMap<String, usize>> {
        let mut counts: BTreeMap<String, BTreeMap<String, usize>> = BTreeMap::new();
        self.table.view().scan(|version, _| {
            // Nearly always there already: no allocation then.
            if !counts.contains_key(&version.template) {
                counts.insert(version.template.clone(), BTreeMap::new());
            }
            if let Some(hashes) = counts.get_mut(&version.template) {
                match hashes.get_mut(&version.hash) {
                    Some(count) => *count += 1,
                    None => drop(hashes.insert(version.hash.clone(), 1)),
                }
            }
            true
        });
        counts
    }

    /// At most `limit` tenants of a template that could not be upgraded, in the order of their ids.
    pub fn failed(&self, template: &str, limit: usize) -> Vec<Arc<Version>> {
        let Ok(first) = TenantId::parse("-").or_else(|_| TenantId::parse("0")) else { return Vec::new() };
        let from = (template.to_owned(), first);
        let places = self.table.view().range(std::ops::Bound::Included(&from), limit, |(name, _)| name == template);
        places.iter().filter_map(|(_, id)| self.find(id)).collect()
    }

    /// Notes the version that an instance has. What it failed to become is forgotten unless `keep_failure`. Writes
    /// nothing when the record says so already.
    pub async fn note(&self, id: &TenantId, template: &str, hash: &str, keep_failure: bool) -> Result<(), Error> {
        let decide = |current: Option<&Read<Version>>| {
            let failed = current.filter(|_| keep_failure).and_then(|read| read.record.failed.clone());
            if current.is_some_and(|read| {
                read.record.template == template && read.record.hash == hash && read.record.failed == failed
            }) {
                return Ok(Step::Keep);
            }
            Ok(Step::Write(Version {
                tenant: id.clone(),
                template: template.to_owned(),
                hash: hash.to_owned(),
                upgraded_at: OffsetDateTime::now_utc(),
                failed,
                pin: current.and_then(|read| read.record.pin.clone()),
            }))
        };
        self.table.change(&key_of(id), decide).await.map(drop)
    }

    /// Notes that an instance stayed at `hash` because an upgrade failed.
    pub async fn fail(&self, id: &TenantId, template: &str, hash: &str, failed: FailedUpgrade) -> Result<(), Error> {
        let decide = |current: Option<&Read<Version>>| {
            let now = OffsetDateTime::now_utc();
            let same = current.filter(|read| read.record.hash == hash);
            Ok(Step::Write(Version {
                tenant: id.clone(),
                template: template.to_owned(),
                hash: hash.to_owned(),
                upgraded_at: same.map_or(now, |read| read.record.upgraded_at),
                failed: Some(failed.clone()),
                pin: current.and_then(|read| read.record.pin.clone()),
            }))
        };
        self.table.change(&key_of(id), decide).await.map(drop)
    }

    /// Forgets the version of a tenant that was erased.
    pub async fn remove(&self, id: &TenantId) -> Result<(), Error> {
        self.table.remove(&key_of(id), |_| true).await.map(drop)
    }

    /// Keeps an instance at a version of `PocketBase`, or at none. Whether there is a record to say so in.
    pub async fn pin(&self, id: &TenantId, pin: Option<&str>) -> Result<bool, Error> {
        let mut is_there = false;
        let decide = |current: Option<&Read<Version>>| {
            is_there = current.is_some();
            let Some(current) = current.filter(|read| read.record.pin.as_deref() != pin) else { return Ok(Step::Keep) };
            Ok(Step::Write(Version { pin: pin.map(str::to_owned), ..Version::clone(&current.record) }))
        };
        self.table.change(&key_of(id), decide).await?;
        Ok(is_there)
    }

    /// Forgets a failure, so that the next wake tries again. Whether there was one.
    pub async fn forgive(&self, id: &TenantId) -> Result<bool, Error> {
        let mut had = false;
        let decide = |current: Option<&Read<Version>>| {
            had = current.is_some_and(|read| read.record.failed.is_some());
            let Some(current) = current.filter(|_| had) else { return Ok(Step::Keep) };
            Ok(Step::Write(Version { failed: None, ..Version::clone(&current.record) }))
        };
        self.table.change(&key_of(id), decide).await?;
        Ok(had)
    }
}
