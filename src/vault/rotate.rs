//! Replacing the master key while everything goes on: the new key is added, every data key is sealed anew by it, and the
//! old one is taken out of use. It is forgotten at once without a store of backups, else when nothing there needs it.
//!
//! From the moment the new key is in the store until the old one is retired, each is also stored sealed by the other, so
//! a start with either goes on where the last one ended. A key file of ours is rewritten once nothing needs the old key
//! in it. A key that the operator brings (another file, a passphrase) cannot be put into their configuration for them:
//! the old one is retired by the first start that has the new one.

use std::collections::BTreeMap;
use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;

use futures_util::future::join_all;
use serde::Serialize;
use serde_json::json;
use time::OffsetDateTime;

use super::Error;
use super::Secret;
use super::Vault;
use super::envelope;
use super::envelope::Key;
use super::kek;
use super::keyring;
use super::keyring::Keyring;
use super::lock;
use super::tenant_key;
use crate::audit::Actor;
use crate::audit::Entry;
use crate::audit::action;
use crate::failpoint;
use crate::ids::TenantId;
use crate::store;
use crate::store::vault_keys::MasterKey;
use crate::store::vault_keys::MasterKeys;

/// Data keys that are looked for at once, and sealed at once so that they share commits.
const BATCH: usize = 256;
const AT_ONCE: usize = 32;

/// Where the new master key comes from.
#[derive(Debug)]
pub enum NewMaster {
    /// Made here, and put into the key file in place of the old one.
    Generated,
    /// In a file that the operator made; the configuration has to name it.
    File(PathBuf),
    /// Made from a passphrase; the configuration has to have it.
    Passphrase(Secret),
}

/// Why a rotation does not begin. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// One is under way, or the last one waits for the configuration.
    #[error("a rotation is under way; see `pocketfleet vault status`")]
    UnderWay,
    /// The present key is not in a file that we could rewrite.
    #[error(
        "the master key is not in a file that can be rewritten, so a new one cannot be put there: give it with \
         --key-file or --passphrase-stdin, then change the configuration"
    )]
    NotOurs,
    /// It was one of ours before.
    #[error("this key was a master key of this vault before; take a fresh one")]
    Known,
    /// The new key is not usable.
    #[error(transparent)]
    Unusable(#[from] kek::Unusable),
    /// The vault failed.
    #[error(transparent)]
    Vault(#[from] Error),
}

/// How far a rotation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Nothing to do: one master key seals everything.
    Settled,
    /// Data keys are being sealed anew.
    Rewrapping,
    /// Everything is sealed anew; the old key is forgotten when the configuration has the new one.
    AwaitsConfiguration,
    /// Some data keys cannot be opened; the old key is kept for them.
    Blocked,
    /// An error or a shutdown stopped it; the next start goes on.
    Interrupted,
}

/// A rotation in numbers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Progress {
    /// How far it is.
    pub phase: Phase,
    /// Data keys sealed by the primary master key.
    pub done: usize,
    /// All data keys.
    pub total: usize,
    /// Data keys that cannot be opened.
    pub unreadable: usize,
}

/// One master key, for operators.
#[derive(Debug, Clone, Serialize)]
pub struct MasterStatus {
    /// Its id, which tells nothing of it.
    pub id: String,
    /// Where it came from.
    pub source: String,
    /// `primary`, `replaced` (still needed) or `retired`.
    pub state: &'static str,
    /// Data keys that it seals.
    pub tenants: usize,
    /// When it was first used.
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
    /// When it was forgotten.
    #[serde(with = "time::serde::rfc3339::option")]
    pub retired_at: Option<OffsetDateTime>,
}

/// The vault, for operators.
#[derive(Debug, Clone, Serialize)]
pub struct Status {
    /// Where this start found its key.
    pub source: &'static str,
    /// The file of it, if it is in one.
    pub file: Option<PathBuf>,
    /// The master keys, oldest first.
    pub keys: Vec<MasterStatus>,
    /// Tenants with a data key.
    pub tenants: usize,
    /// Stored secrets, deleted ones that are still noted included.
    pub secrets: usize,
    /// The rotation.
    pub rotation: Progress,
}

/// What a vault knows of its rotation.
#[derive(Debug, Default)]
pub(super) struct Rotation {
    /// Held while one begins or works.
    works: Arc<tokio::sync::Mutex<()>>,
    /// Whether one works. Set before the new key is the primary one, so that no look finds it done while the key is
    /// nowhere but in memory.
    is_working: AtomicBool,
    /// Tenants whose data keys cannot be opened.
    unreadable: Mutex<HashSet<TenantId>>,
}

impl Vault {
    /// The vault in numbers.
    pub async fn status(&self) -> Result<Status, Error> {
        let master = self.inner.keys.master().await?.unwrap_or_default();
        let (keyring, counts) = (self.inner.keyring.load_full(), self.inner.keys.counts());
        let view = |key: &MasterKey| MasterStatus {
            id: key.id.clone(),
            source: key.source.clone(),
            state: match key.retired_at {
                Some(_) => "retired",
                None if key.id == keyring.primary() => "primary",
                None => "replaced",
            },
            tenants: counts.get(&key.id).copied().unwrap_or_default(),
            created_at: key.created_at,
            retired_at: key.retired_at,
        };
        Ok(Status {
            source: keyring.source,
            file: keyring.file.clone(),
            keys: master.keys.iter().map(view).collect(),
            tenants: self.inner.keys.len(),
            secrets: self.inner.secrets.len(),
            rotation: self.progress(),
        })
    }

    /// How far the rotation is.
    pub fn progress(&self) -> Progress {
        let (keyring, counts) = (self.inner.keyring.load_full(), self.inner.keys.counts());
        let total = counts.values().sum();
        let done = counts.get(keyring.primary()).copied().unwrap_or_default();
        let unreadable = lock(&self.inner.rotation.unreadable).len();
        let phase = match () {
            () if keyring.others().next().is_none() => Phase::Settled,
            () if self.inner.rotation.is_working.load(Ordering::Acquire) => Phase::Rewrapping,
            () if unreadable > 0 && done + unreadable >= total => Phase::Blocked,
            () if done < total || keyring.has_primary_given() => Phase::Interrupted,
            () => Phase::AwaitsConfiguration,
        };
        Progress { phase, done, total, unreadable }
    }

    /// Begins to replace the master key; the rest happens in the background and survives restarts. The id of the new
    /// key, which is the primary one when this returns.
    pub async fn rotate(&self, new: NewMaster, now: OffsetDateTime) -> Result<String, Refused> {
        let Ok(works) = Arc::clone(&self.inner.rotation.works).try_lock_owned() else { return Err(Refused::UnderWay) };
        let before = self.inner.keyring.load_full();
        if before.others().next().is_some() {
            return Err(Refused::UnderWay);
        }
        let (key, source, salt) = match new {
            NewMaster::Generated => {
                let file = before.file.as_ref().ok_or(Refused::NotOurs)?;
                kek::is_replaceable(file).map_err(|_| Refused::NotOurs)?;
                (Key::random(), "generated", None)
            }
            NewMaster::File(path) => (kek::read(&path)?, "file", None),
            NewMaster::Passphrase(passphrase) => {
                let salt = kek::salt();
                let key = keyring::derive(kek::check_passphrase(passphrase)?, salt.clone()).await?;
                (key, "passphrase", Some(salt))
            }
        };
        let mut record = keyring::record(&key, source, salt, now);
        let id = record.id.clone();
        let known = self.inner.keys.master().await.map_err(Error::from)?.unwrap_or_default();
        if known.keys.iter().any(|known| known.id == id) {
            return Err(Refused::Known);
        }
        let entry = Entry::new(Actor::Operator, action::MASTER_KEY_ADDED).subject(&*id);
        self.inner.audit.record(entry.detail(json!({ "source": source }))).await.map_err(Error::from)?;
        let old = before.primary().to_owned();
        let old_key = before.find(&old).ok_or(Error::Unreadable)?;
        let under_old = envelope::seal(old_key, &keyring::bridge_aad(&id, &old), key.bytes()).map_err(Error::from)?;
        let under_new = envelope::seal(&key, &keyring::bridge_aad(&old, &id), old_key.bytes()).map_err(Error::from)?;
        record.bridges.insert(old.clone(), under_old);
        {
            // Nobody seals a data key by the old one once the new one is the primary.
            let _sealing = self.inner.sealing.write().await;
            self.add_master(&record, &old, &under_new).await.map_err(Error::from)?;
            self.inner.rotation.is_working.store(true, Ordering::Release);
            self.inner.keyring.store(Arc::new(before.with(&id, key)));
        }
        failpoint::hit("vault.rotate.begun");
        tracing::info!(key.id = id, source, "the vault has a new master key; data keys are sealed anew");
        let vault = self.clone();
        self.inner.shutdown.spawn_on(async move { vault.work(works).await }, &tokio::runtime::Handle::current());
        Ok(id)
    }

    async fn add_master(&self, record: &MasterKey, old: &str, under_new: &str) -> Result<(), store::Error> {
        let add = |current: Option<&MasterKeys>| {
            let mut master = current.cloned().ok_or(store::Error::Stale)?;
            for key in master.keys.iter_mut().filter(|key| key.id == old) {
                key.bridges.insert(record.id.clone(), under_new.to_owned());
            }
            master.keys.push(record.clone());
            Ok(Some(master))
        };
        self.inner.keys.change_master(add).await.map(drop)
    }

    /// At a start: goes on with what was interrupted.
    pub(super) fn resume_rotation(&self) {
        let keyring = self.inner.keyring.load_full();
        if keyring.others().next().is_none() {
            return;
        }
        let Ok(works) = Arc::clone(&self.inner.rotation.works).try_lock_owned() else { return };
        tracing::info!(key.id = keyring.primary(), "a rotation of the vault's master key goes on");
        self.inner.rotation.is_working.store(true, Ordering::Release);
        let vault = self.clone();
        self.inner.shutdown.spawn(async move { vault.work(works).await });
    }

    async fn work(&self, _works: tokio::sync::OwnedMutexGuard<()>) {
        if let Err(error) = self.finish().await {
            tracing::error!(%error, "the rotation of the vault's master key stopped; it goes on at the next start");
        }
        self.inner.rotation.is_working.store(false, Ordering::Release);
    }

    async fn finish(&self) -> Result<(), Error> {
        self.rewrap().await?;
        failpoint::hit("vault.rotate.rewrapped_all");
        let progress = self.progress();
        if progress.done < progress.total {
            if progress.unreadable > 0 {
                tracing::error!(
                    unreadable = progress.unreadable,
                    "some data keys of the vault cannot be opened; the old master key is kept for them"
                );
            }
            return Ok(());
        }
        let keyring = self.inner.keyring.load_full();
        if !keyring.has_primary_given() && !self.put_into_file(&keyring).await? {
            tracing::warn!(
                key.id = keyring.primary(),
                "the vault is sealed by the new master key alone; put it into the configuration, the next start with it \
                 forgets the old one"
            );
            return Ok(());
        }
        failpoint::hit("vault.rotate.filed");
        self.retire(&keyring, OffsetDateTime::now_utc()).await
    }

    /// Seals every data key by the primary master key.
    async fn rewrap(&self) -> Result<(), Error> {
        let keyring = self.inner.keyring.load_full();
        loop {
            let skipped = lock(&self.inner.rotation.unreadable).clone();
            let found = self.inner.keys.not_under(keyring.primary(), BATCH, |tenant| skipped.contains(tenant));
            if found.is_empty() || self.inner.shutdown.has_begun() {
                return Ok(());
            }
            for some in found.chunks(AT_ONCE) {
                for outcome in join_all(some.iter().map(|tenant| self.rewrap_one(&keyring, tenant))).await {
                    outcome?;
                }
            }
        }
    }

    async fn rewrap_one(&self, keyring: &Keyring, tenant: &TenantId) -> Result<(), store::Error> {
        let mut is_unreadable = false;
        let changed = self.inner.keys.change(tenant, |current| {
            let Some(current) = current.filter(|current| current.kek != keyring.primary()) else { return Ok(None) };
            let fresh = tenant_key::rewrap(keyring, current);
            is_unreadable = fresh.is_err();
            Ok(fresh.ok())
        });
        changed.await?;
        if is_unreadable {
            lock(&self.inner.rotation.unreadable).insert(tenant.clone());
            self.note_unreadable_key(tenant).await;
        }
        failpoint::hit("vault.rotate.rewrapped");
        Ok(())
    }

    /// Puts a key that was made here into the file that held the old one. Whether the configuration has it now.
    async fn put_into_file(&self, keyring: &Keyring) -> Result<bool, Error> {
        let master = self.inner.keys.master().await?.unwrap_or_default();
        let is_ours = master.keys.last().is_some_and(|key| key.id == keyring.primary() && key.source == "generated");
        let (Some(file), Some(key), true) = (keyring.file.clone(), keyring.primary_key(), is_ours) else {
            return Ok(false);
        };
        match tokio::task::spawn_blocking(move || kek::replace(&file, &key)).await {
            Ok(Ok(())) => Ok(true),
            Ok(Err(error)) => {
                tracing::error!(%error, "write the vault's key file; the old key is kept");
                Ok(false)
            }
            Err(_) => Ok(false),
        }
    }

    /// Takes every master key but the primary one out of use. Where keys of backups may still be sealed by them, each
    /// stays sealed by the one that replaced it, until [`Self::forget_former`].
    async fn retire(&self, keyring: &Keyring, now: OffsetDateTime) -> Result<(), Error> {
        let retired: Vec<String> = keyring.others().map(str::to_owned).collect();
        for id in &retired {
            self.inner.audit.record(Entry::new(Actor::System, action::MASTER_KEY_RETIRED).subject(&**id)).await?;
        }
        let keeps_former = self.inner.keeps_former;
        let retire = |current: Option<&MasterKeys>| {
            let mut master = current.cloned().ok_or(store::Error::Stale)?;
            let mut later: HashSet<String> = HashSet::new();
            for key in master.keys.iter_mut().rev() {
                // Never one in use by one that is not: the old key opens nothing new.
                key.bridges.retain(|under, _| keeps_former && later.contains(under));
                later.insert(key.id.clone());
                if key.id != keyring.primary() && key.retired_at.is_none() {
                    key.retired_at = Some(now);
                }
            }
            Ok(Some(master))
        };
        self.inner.keys.change_master(retire).await?;
        self.inner.keyring.store(Arc::new(keyring.settled(keeps_former)));
        tracing::info!(key.id = keyring.primary(), "the vault's master key was replaced; the old one is out of use");
        Ok(())
    }

    /// Forgets master keys that were replaced, because no key of a backup is sealed by them any more.
    pub async fn forget_former(&self, retired: &[String]) -> Result<(), Error> {
        let Ok(_works) = Arc::clone(&self.inner.rotation.works).try_lock_owned() else { return Ok(()) };
        let is_former = |key: &MasterKey| retired.contains(&key.id) && !key.bridges.is_empty();
        let master = self.inner.keys.master().await?.unwrap_or_default();
        if !master.keys.iter().any(is_former) {
            return Ok(());
        }
        let forget = |current: Option<&MasterKeys>| {
            let mut master = current.cloned().ok_or(store::Error::Stale)?;
            for key in master.keys.iter_mut().filter(|key| is_former(key)) {
                key.bridges = BTreeMap::new();
            }
            Ok(Some(master))
        };
        self.inner.keys.change_master(forget).await?;
        self.inner.keyring.store(Arc::new(self.inner.keyring.load().without_former(retired)));
        tracing::info!("the master keys that were replaced are forgotten: nothing is sealed by them any more");
        Ok(())
    }
}
