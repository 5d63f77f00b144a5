//! `slug.<slug>`: which workspace a name in addresses belongs to. Creating the record is what makes a name unique.
//!
//! A record says who claimed the name and, once its workspace left it, since when it is free to go. What it is worth
//! follows from it and the tenant's own record (see `tenancy`), because the two cannot be written together: a claim is
//! written before the tenant takes the name, and the leave before the tenant takes another.

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

/// A claimed name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slug {
    /// The name.
    pub slug: Arc<str>,
    /// Whose it is.
    pub tenant: TenantId,
    /// Since when.
    #[serde(with = "time::serde::rfc3339")]
    pub claimed_at: OffsetDateTime,
    /// When its tenant took another name. Means nothing while the tenant bears this one.
    #[serde(default, with = "time::serde::rfc3339::option", skip_serializing_if = "Option::is_none")]
    pub left_at: Option<OffsetDateTime>,
}

fn key_of(slug: &str) -> String {
    format!("{}{slug}", Slug::PREFIX)
}

impl Record for Slug {
    const PREFIX: &'static str = "slug.";
    type Id = Arc<str>;
    type Index = (TenantId, Arc<str>);

    fn id(&self) -> Arc<str> {
        Arc::clone(&self.slug)
    }

    fn key(&self) -> String {
        key_of(&self.slug)
    }

    fn parse_id(rest: &str) -> Option<Arc<str>> {
        Some(rest.into())
    }

    fn index(&self) -> Option<Self::Index> {
        Some((self.tenant.clone(), Arc::clone(&self.slug)))
    }
}

/// The names: typed records plus an in-memory view fed by the watch. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Slugs {
    table: Table<Slug>,
}

impl Slugs {
    /// Loads the view and follows the store, on the caller's runtime, until the last handle is gone or the store is
    /// closed.
    pub async fn open(store: Arc<dyn Store>) -> Result<Self, Error> {
        Ok(Self { table: Table::open(store).await? })
    }

    /// From the view, no I/O.
    pub fn find(&self, slug: &str) -> Option<Arc<Slug>> {
        self.table.find(&Arc::from(slug))
    }

    /// All names of a tenant, from the view.
    pub fn of_tenant(&self, tenant: &TenantId) -> Vec<Arc<Slug>> {
        let from = (tenant.clone(), Arc::from(""));
        let places = self.table.view().range(Bound::Included(&from), usize::MAX, |(of, _)| of == tenant);
        places.iter().filter_map(|(_, slug)| self.find(slug)).collect()
    }

    /// Every name, from the view, in no order. For repairs at the start.
    pub fn all(&self) -> Vec<Arc<Slug>> {
        let mut all = Vec::with_capacity(self.table.len());
        self.table.view().scan(|slug, _| {
            all.push(Arc::clone(slug));
            true
        });
        all
    }

    /// Claims a name for a tenant: one that nobody has, one that the tenant has already, or one that `is_free` gives
    /// up, be it the tenant's own from long ago, which is claimed anew. False when it is somebody else's. Of N concurrent claims one wins.
    pub async fn claim(
        &self,
        slug: &str,
        tenant: &TenantId,
        now: OffsetDateTime,
        is_free: impl Fn(&Slug) -> bool + Send + Sync,
    ) -> Result<bool, Error> {
        let mut won = false;
        let decide = |current: Option<&Read<Slug>>| {
            let held = current.filter(|read| !is_free(&read.record));
            won = held.is_none_or(|read| read.record.tenant == *tenant);
            let claim = Slug { slug: slug.into(), tenant: tenant.clone(), claimed_at: now, left_at: None };
            Ok(if held.is_some() { Step::Keep } else { Step::Write(claim) })
        };
        self.table.change(&key_of(slug), decide).await?;
        Ok(won)
    }

    /// Notes that a tenant is about to leave a name; nothing happens to somebody else's.
    pub async fn leave(&self, slug: &str, tenant: &TenantId, now: OffsetDateTime) -> Result<(), Error> {
        let decide = |current: Option<&Read<Slug>>| {
            let ours = current.filter(|read| read.record.tenant == *tenant);
            Ok(ours.map_or(Step::Keep, |read| Step::Write(Slug { left_at: Some(now), ..Slug::clone(&read.record) })))
        };
        self.table.change(&key_of(slug), decide).await.map(drop)
    }

    /// Gives up a name of a tenant that was erased, held or left.
    pub async fn release(&self, slug: &str, tenant: &TenantId) -> Result<(), Error> {
        self.table.remove(&key_of(slug), |found| found.tenant == *tenant).await.map(drop)
    }

    /// Gives up a claim that never became a tenant's name, if it is this tenant's.
    pub async fn abandon(&self, slug: &str, tenant: &TenantId) -> Result<(), Error> {
        let is_claim = |found: &Slug| found.tenant == *tenant && found.left_at.is_none();
        self.table.remove(&key_of(slug), is_claim).await.map(drop)
    }
}
