//! `spare.<id>`: instances that are made before anybody has them, each under an id that is kept for the next account.
//!
//! The record is written before the instance's folder is made, and goes when there is a tenant of the id, or nothing of
//! the spare any more. So a folder among the instances is always somebody's: a tenant's or a spare's.

use std::ops::Bound;
use std::sync::Arc;

use serde::Deserialize;
use serde::Serialize;
use time::OffsetDateTime;

use super::Error;
use super::Store;
use super::table::Step;
use super::table::Table;
use super::tenants::Kind;
use super::tenants::Tenant;
use super::view::Record;
use crate::ids::TenantId;

/// An instance that nobody has yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spare {
    /// The id that is kept for an account.
    pub id: TenantId,
    /// The template it is made from.
    pub template: String,
    /// The URL that was written into it.
    #[serde(default)]
    pub url: String,
    /// Since when.
    #[serde(with = "time::serde::rfc3339")]
    pub made_at: OffsetDateTime,
}

impl Spare {
    /// The tenant that it would be. It has no owner, and nothing out of the ordinary.
    pub fn as_tenant(&self) -> Tenant {
        Tenant::new(self.id.clone(), Kind::Personal, self.template.as_str(), None)
    }

    /// The name of the folder under which it is put away.
    pub fn folder(id: &TenantId) -> String {
        format!("{id}-spare")
    }
}

fn key_of(id: &TenantId) -> String {
    format!("{}{id}", Spare::PREFIX)
}

impl Record for Spare {
    const PREFIX: &'static str = "spare.";
    type Id = TenantId;
    type Index = TenantId;

    fn id(&self) -> TenantId {
        self.id.clone()
    }

    fn key(&self) -> String {
        key_of(&self.id)
    }

    fn parse_id(rest: &str) -> Option<TenantId> {
        TenantId::parse(rest).ok()
    }

    fn index(&self) -> Option<TenantId> {
        Some(self.id.clone())
    }
}

/// The spares: typed records plus an in-memory view fed by the watch. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Spares {
    table: Table<Spare>,
}

impl Spares {
    /// Loads the view and follows the store, on the caller's runtime, until the last handle is gone or the store is
    /// closed.
    pub async fn open(store: Arc<dyn Store>) -> Result<Self, Error> {
        Ok(Self { table: Table::open(store).await? })
    }

    /// From the view, no I/O.
    pub fn find(&self, id: &TenantId) -> Option<Arc<Spare>> {
        self.table.find(id)
    }

    /// All of them, from the view, in id order.
    pub fn all(&self) -> Vec<Arc<Spare>> {
        let ids = self.table.view().range(Bound::Unbounded, usize::MAX, |_| true);
        ids.iter().filter_map(|id| self.find(id)).collect()
    }

    /// Whether there is really no such spare: asked of the store, because the view hides a record that cannot be read.
    pub async fn is_absent(&self, id: &TenantId) -> Result<bool, Error> {
        match self.table.read(&key_of(id)).await {
            Ok(found) => Ok(found.is_none()),
            Err(Error::Corrupt(_)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Keeps an id. False when it is kept already.
    pub async fn create(&self, spare: Spare) -> Result<bool, Error> {
        let mut is_new = false;
        let decide = |current: Option<&super::table::Read<Spare>>| {
            is_new = current.is_none();
            Ok(if is_new { Step::Write(spare.clone()) } else { Step::Keep })
        };
        self.table.change(&spare.key(), decide).await?;
        Ok(is_new)
    }

    /// Forgets it. Content with finding nothing.
    pub async fn remove(&self, id: &TenantId) -> Result<(), Error> {
        self.table.remove(&key_of(id), |_| true).await.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::sqlite::ControlDatabase;

    #[tokio::test]
    async fn an_id_is_kept_once_and_outlives_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("control.db");
        let open = async || {
            let database = Arc::new(ControlDatabase::open(&path).unwrap());
            let spares = Spares::open(Arc::clone(&database) as Arc<dyn Store>).await.unwrap();
            (database, spares)
        };
        let id = TenantId::parse("b5c3xih3gtjb48z").unwrap();
        let spare = Spare {
            id: id.clone(),
            template: "personal".into(),
            url: String::new(),
            made_at: OffsetDateTime::UNIX_EPOCH,
        };
        let (database, spares) = open().await;
        assert!(spares.create(spare.clone()).await.unwrap());
        assert!(!spares.create(spare.clone()).await.unwrap());
        drop(spares);
        database.close().await;
        let (_database, spares) = open().await;
        assert_eq!(spares.find(&id).as_deref(), Some(&spare));
        assert_eq!((spares.all().len(), spares.is_absent(&id).await.unwrap()), (1, false));
        assert_eq!(spare.as_tenant().owner, None);
        spares.remove(&id).await.unwrap();
        spares.remove(&id).await.unwrap();
        assert!(spares.is_absent(&id).await.unwrap() && spares.all().is_empty());
    }
}
