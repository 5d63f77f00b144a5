//! Backups of every instance and of the control database, and putting them back.
//!
//! A snapshot is a list of files, each a list of chunks; chunks are sealed by a key of the tenant's and named by a keyed
//! hash of what they hold, so that what did not change is stored once and equal files of two tenants cannot be linked
//! ([`repository`]). The store needs nothing else but the master key to be read; that is not in it.
//!
//! Invariants:
//! - A snapshot neither stops nor wakes anybody, and follows no link out of a tenant's folder.
//! - Objects are written once, a snapshot's manifest last: a kill leaves objects that no snapshot names, which a prune
//!   removes after a grace period.
//! - What is restored was read back whole, checked and served once before anything is replaced; what it replaces is
//!   kept.
//!
//! Known limits: names of tenants, the number and the sizes of objects, and times are visible to whoever can read the
//! store. One pocketfleet writes to a store. `PocketBase`'s own `backups/` folder and files that hooks put beside
//! `storage/` are not backed up.

mod bucket;
mod chunk;
pub mod config;
mod error;
mod export;
pub mod fleet;
mod manifest;
mod read;
pub mod repository;
mod restore;
mod retention;
mod take;
mod tree;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::sync::Weak;

pub use config::Config;
pub use error::Error;
pub use export::Pieces;
pub use manifest::InvalidSnapshotId;
pub use manifest::Manifest;
pub use manifest::Reason;
pub use manifest::SnapshotId;
pub use read::Verified;
pub use repository::Repository;
pub use repository::Use;
pub use restore::Restored;
pub use retention::Pruned;

use crate::ids::TenantId;
use crate::limits::Keyed;
use crate::shutdown::Shutdown;
use crate::store::damaged_backups::DamagedBackups;
use crate::store::tenants::Tenants;
use crate::supervisor::Supervisor;
use crate::vault::BackupKey;
use crate::vault::Vault;
use manifest::Item;
use repository::Keys;

/// The file of the control database in its snapshots.
const CONTROL_FILE: &str = "control.db";
/// Lists that owners may ask for while they may ask for one snapshot.
const LISTS: u32 = 20;
/// Owners whose requests are counted.
const LIMITED: usize = 10_000;

/// The name under which the control database lies in the store. Accounts' ids have 15 characters and those of
/// workspaces more than this, so nobody else has it.
pub fn control() -> TenantId {
    TenantId::parse("control").unwrap_or_else(|_| TenantId::lowest())
}

/// What backups are made of.
#[derive(Debug)]
pub struct Parts {
    /// `[backup]`
    pub config: Config,
    /// Where they go; none = they are off.
    pub repository: Option<Repository>,
    /// The keys.
    pub vault: Vault,
    /// The instances.
    pub supervisor: Supervisor,
    /// Who they are.
    pub tenants: Tenants,
    /// The file of the control database.
    pub control: PathBuf,
    /// Bytes of the disk that a restore leaves free.
    pub reserve: u64,
    /// Whose backups were found damaged.
    pub damaged: DamagedBackups,
    /// Whether we are about to stop.
    pub shutdown: Shutdown,
}

/// The handle. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Backups {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    config: Config,
    repository: Option<Repository>,
    vault: Vault,
    supervisor: Supervisor,
    tenants: Tenants,
    control: PathBuf,
    reserve: u64,
    /// One snapshot, restore or prune of a tenant at a time: the locks that somebody has or waits for.
    locks: Mutex<HashMap<TenantId, Weak<tokio::sync::Mutex<()>>>>,
    /// Whose keys lie in the store under one master key only, and which.
    written: Mutex<HashMap<TenantId, String>>,
    /// What databases were at their newest snapshot.
    fingerprints: Mutex<HashMap<TenantId, String>>,
    /// Tenants of whom something in the store was found damaged: the next snapshot writes all of theirs anew, also after a
    /// restart.
    damaged: DamagedBackups,
    asked: Mutex<Keyed<TenantId>>,
    listed: Mutex<Keyed<TenantId>>,
    shutdown: Shutdown,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Backups {
    /// Backups with these parts.
    pub fn new(parts: Parts) -> Self {
        let Parts { config, repository, vault, supervisor, tenants, control, reserve, damaged, shutdown } = parts;
        let hour = std::time::Duration::from_hours(1);
        let limited = |times: u32| {
            let most = config.requests_per_hour.saturating_mul(std::num::NonZeroU32::MIN.saturating_add(times - 1));
            Mutex::new(Keyed::new(most.get(), hour, LIMITED))
        };
        let (asked, listed) = (limited(1), limited(LISTS));
        let (locks, written, fingerprints) = (Mutex::default(), Mutex::default(), Mutex::default());
        let inner = Inner {
            config,
            repository,
            vault,
            supervisor,
            tenants,
            control,
            reserve,
            locks,
            written,
            fingerprints,
            damaged,
            asked,
            listed,
            shutdown,
        };
        Self { inner: Arc::new(inner) }
    }

    fn repository(&self) -> Result<&Repository, Error> {
        self.inner.repository.as_ref().ok_or(Error::Off)
    }

    /// Whether backups are made.
    pub fn is_on(&self) -> bool {
        self.inner.repository.is_some()
    }

    /// The `[backup]` section.
    pub fn config(&self) -> &Config {
        &self.inner.config
    }

    /// Counts what an owner asks for.
    pub fn count_request(&self, tenant: &TenantId) -> Result<(), Error> {
        lock(&self.inner.asked).check(tenant, std::time::Instant::now()).map_err(Error::TooOften)
    }

    /// Counts a list that an owner asks for: it reads every manifest.
    pub fn count_list(&self, tenant: &TenantId) -> Result<(), Error> {
        lock(&self.inner.listed).check(tenant, std::time::Instant::now()).map_err(Error::TooOften)
    }

    async fn alone(&self, tenant: &TenantId) -> tokio::sync::OwnedMutexGuard<()> {
        let of_tenant = {
            let mut locks = lock(&self.inner.locks);
            locks.retain(|_, of_tenant| of_tenant.strong_count() > 0);
            let held = locks.get(tenant).and_then(Weak::upgrade);
            held.unwrap_or_else(|| {
                let fresh = Arc::default();
                locks.insert(tenant.clone(), Arc::downgrade(&fresh));
                fresh
            })
        };
        of_tenant.lock_owned().await
    }

    fn lock_written(&self) -> MutexGuard<'_, HashMap<TenantId, String>> {
        lock(&self.inner.written)
    }

    fn note_fingerprint(&self, manifest: &Manifest) {
        lock(&self.inner.fingerprints).insert(manifest.tenant.clone(), manifest.fingerprint.clone());
    }

    fn fingerprint(&self, tenant: &TenantId) -> Option<String> {
        lock(&self.inner.fingerprints).get(tenant).cloned()
    }

    /// Remembers whose objects were found damaged.
    async fn note_damage<T>(&self, tenant: &TenantId, outcome: &Result<T, Error>) {
        if matches!(outcome, Err(Error::Damaged(_)))
            && let Err(error) = self.inner.damaged.note(tenant).await
        {
            tracing::error!(tenant.id = %tenant, %error, "note that a backup is damaged; verify it again before the next one");
        }
    }

    fn is_damaged(&self, tenant: &TenantId) -> bool {
        self.inner.damaged.contains(tenant)
    }

    async fn index(&self, manifest: &Manifest, key: &Arc<BackupKey>) -> Result<Vec<Item>, Error> {
        self.repository()?.index(manifest, key).await
    }

    /// A tenant's snapshots, the newest first; those that cannot be opened are left out and counted.
    pub async fn list(&self, tenant: &TenantId) -> Result<(Vec<Manifest>, usize), Error> {
        let repository = self.repository()?;
        let (mut found, mut unreadable, mut keys) = (Vec::new(), 0, Keys::default());
        for id in repository.snapshots(tenant).await?.iter().rev() {
            match repository.manifest_by(tenant, id, &mut keys).await {
                Ok((manifest, _)) => found.push(manifest),
                Err(Error::NotFound) => {}
                Err(Error::Damaged(_) | Error::Sealed) => unreadable += 1,
                Err(error) => return Err(error),
            }
        }
        Ok((found, unreadable))
    }

    /// One snapshot of a tenant.
    pub async fn find(&self, tenant: &TenantId, id: &SnapshotId) -> Result<Manifest, Error> {
        Ok(self.repository()?.manifest(tenant, id).await?.0)
    }

    /// Everybody who has a snapshot, with their names, oldest first.
    pub async fn everything(&self) -> Result<std::collections::BTreeMap<TenantId, Vec<SnapshotId>>, Error> {
        self.repository()?.everything().await
    }

    /// Removes every snapshot of a tenant that is erased, and what opens them. Content with finding nothing.
    pub async fn erase(&self, tenant: &TenantId) -> Result<(), Error> {
        self.inner.damaged.forget(tenant).await?;
        let Some(repository) = &self.inner.repository else { return Ok(()) };
        let _alone = self.alone(tenant).await;
        self.lock_written().remove(tenant);
        lock(&self.inner.fingerprints).remove(tenant);
        repository.erase(tenant).await
    }

    /// Reads a snapshot back and tries it, without touching the instance.
    pub async fn verify(&self, tenant: &TenantId, id: &SnapshotId) -> Result<Verified, Error> {
        let scratch = self.inner.supervisor.scratch().map_err(Error::io("make a scratch folder"))?;
        let data = scratch.path().join("data");
        std::fs::create_dir(&data).map_err(Error::io("make a scratch folder"))?;
        let prover = Some(&self.inner.supervisor);
        let tried = self.repository()?.try_out(tenant, id, &data, prover, scratch.path()).await;
        let outcome = tried.map(|(_, verified)| verified);
        self.note_damage(tenant, &outcome).await;
        take::blocking(move || drop(scratch)).await?;
        outcome
    }
}
