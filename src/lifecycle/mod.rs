//! The end of tenants: deleted, brought back, erased.
//!
//! A deleted tenant keeps its record, which carries a tombstone ([`Deletion`]): from the moment that this is written
//! nobody reaches the tenant, nothing starts for it and nothing is added to the queue for it. What follows (jobs
//! cancelled, the instance drained and stopped, its folder moved aside, sessions ended) can be repeated, and is finished
//! by the next start when this process dies in between. After the period, or at once by an admin's word, it is erased.
//!
//! Invariants:
//! - One thing at a time is done to a tenant here; whoever asks twice gets the answer of once.
//! - Nothing is lost by a deletion: folder, secrets and records stay as they are until the erasure.
//! - An erasure that began is finished, whoever dies; nothing takes it back.
//! - Nothing is deleted because a record is missing; orphans are listed and left to an operator.
//!
//! Deliberately absent: who may ask (see `api`), and what is inside a tenant.

mod config;
mod deletion;
mod erasure;
mod error;
mod orphans;
mod record;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::Weak;
use std::time::Duration;

use time::OffsetDateTime;

pub use crate::store::tenants::Deletion;
pub use crate::store::tenants::Stage;
pub use config::Config;
pub use config::Invalid;
pub use erasure::Erasers;
pub use erasure::Erases;
pub use error::Error;
pub use orphans::Adoption;
pub use record::Erased;
pub use record::Signed;
pub use record::Verdict;

use crate::audit::Actor;
use crate::audit::Audit;
use crate::auth::accounts::Accounts;
use crate::auth::api_keys::ApiKeys;
use crate::ids::TenantId;
use crate::jobs::deliver::Staging;
use crate::meetings::Meetings;
use crate::queue::Queue;
use crate::shutdown::Shutdown;
use crate::store::Store;
use crate::store::tenants::Tenant;
use crate::store::tenants::Tenants;
use crate::supervisor::Supervisor;
use crate::tenancy::Tenancy;
use crate::vault::Vault;
use record::Records;

/// What [`Lifecycle`] works with.
#[derive(Debug)]
pub struct Parts {
    /// `[tenancy]`
    pub config: Config,
    /// The control plane's records.
    pub store: Arc<dyn Store>,
    /// The tenants' records.
    pub tenants: Tenants,
    /// Who belongs where.
    pub tenancy: Tenancy,
    /// Their instances.
    pub supervisor: Supervisor,
    /// The accounts of their owners.
    pub accounts: Accounts,
    /// Keys of those.
    pub api_keys: ApiKeys,
    /// What is to be done for them.
    pub queue: Queue,
    /// What is heard of their meetings.
    pub meetings: Meetings,
    /// Their secrets.
    pub vault: Vault,
    /// What lies on our disk for their jobs.
    pub staging: Staging,
    /// Other parts that keep something of them.
    pub erasers: Erasers,
    /// How long data that restores replaced is kept, whether or not backups are made.
    pub keep_replaced: Duration,
    /// Where it is written down.
    pub audit: Audit,
    /// Owns the tasks.
    pub shutdown: Shutdown,
}

/// Deletes, brings back and erases. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Lifecycle {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    parts: Parts,
    /// Tenants that something is being done to. An entry goes with its last holder.
    busy: Mutex<HashMap<TenantId, Weak<tokio::sync::Mutex<()>>>>,
}

impl Lifecycle {
    /// Over the parts. From now on nothing is added to the queue for deleted tenants.
    pub fn new(parts: Parts) -> Self {
        let tenants = parts.tenants.clone();
        let is_deleted = move |id: &TenantId| tenants.find(id).is_some_and(|tenant| tenant.deleted.is_some());
        parts.queue.close_to(Arc::new(is_deleted));
        Self { inner: Arc::new(Inner { parts, busy: Mutex::default() }) }
    }

    /// The deleted tenants, the first deleted first.
    pub fn deleted(&self) -> Vec<Arc<Tenant>> {
        self.inner.parts.tenants.deleted()
    }

    /// The tenant as it stands, deleted or not.
    pub fn find(&self, id: &TenantId) -> Option<Arc<Tenant>> {
        self.inner.parts.tenants.find(id)
    }

    /// Finishes what is unfinished and erases what is due, now and again, until the shutdown begins.
    pub async fn run(self, shutdown: Shutdown) {
        match self.orphans().await {
            Ok(found) if found.is_empty() => {}
            Ok(found) => tracing::info!(
                orphans = found.len(),
                "folders without a record, or records without a folder; see `pocketfleet tenants orphans`"
            ),
            Err(error) => tracing::warn!(%error, "look for folders without a record"),
        }
        loop {
            self.look(OffsetDateTime::now_utc(), &shutdown).await;
            tokio::select! {
                () = tokio::time::sleep(self.inner.parts.config.sweep_interval) => {}
                () = shutdown.begun() => return,
            }
        }
    }

    /// One look. What fails is tried again at the next one.
    async fn look(&self, now: OffsetDateTime, shutdown: &Shutdown) {
        for tenant in self.deleted() {
            if shutdown.has_begun() {
                return;
            }
            let Some(deletion) = &tenant.deleted else { continue };
            let done = match deletion.stage {
                Stage::Leaving => self.resume(&tenant.id).await,
                Stage::Returning => self.undelete_again(&tenant.id).await,
                Stage::Gone if deletion.erase_at <= now => self.erase(&tenant.id, Actor::System, now).await.map(drop),
                Stage::Gone => Ok(()),
                Stage::Erasing => self.erase_again(&tenant.id).await,
            };
            if let Err(error) = done {
                tracing::warn!(tenant.id = %tenant.id, stage = ?deletion.stage, %error, "a deleted tenant is seen to later");
            }
        }
        match self.parts().supervisor.sweep_replaced(self.parts().keep_replaced, now).await {
            Ok(0) => {}
            Ok(count) => tracing::info!(count, "removed data that restores had replaced"),
            Err(error) => tracing::warn!(%error, "data that restores replaced is removed later"),
        }
    }

    /// Waits until nothing else is done to the tenant.
    async fn alone(&self, tenant: &TenantId) -> tokio::sync::OwnedMutexGuard<()> {
        let lock = {
            let mut busy = self.inner.busy.lock().unwrap_or_else(PoisonError::into_inner);
            busy.retain(|_, lock| lock.strong_count() > 0);
            let found = busy.get(tenant).and_then(Weak::upgrade);
            found.unwrap_or_else(|| {
                let lock = Arc::new(tokio::sync::Mutex::new(()));
                busy.insert(tenant.clone(), Arc::downgrade(&lock));
                lock
            })
        };
        lock.lock_owned().await
    }

    fn records(&self) -> Records {
        Records(Arc::clone(&self.parts().store))
    }

    fn parts(&self) -> &Parts {
        &self.inner.parts
    }
}
