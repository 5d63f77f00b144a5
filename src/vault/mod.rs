//! Users' third-party credentials, encrypted.
//!
//! A master key that is not in the database seals one random data key per tenant; a tenant's data key seals each of
//! its secrets, bound to everything that must not be exchanged: tenant, service, label, settings, id, version, times.
//! [`Secret`] is the only form in clear. Workers [open](Vault::open) secrets by service; their owners see metadata and
//! the last characters, and the secret itself only by [`Vault::reveal`].
//!
//! Invariants:
//! - Nothing is written before the right master key is there ([`unlock`]).
//! - What is done to a secret is in the audit log before it is done; what cannot be written there is not done.
//! - An expired or deleted secret is neither used nor shown. Deleting destroys the ciphertext.
//! - Every failure to open is the same error, is audited, and shows nothing.
//! - Every stored secret opens at every moment of a rotation, and after a kill at any moment of it.
//!
//! Known limits: whoever can write the control database can put back all of a tenant's records together, and delete.
//! Old backups hold data keys that old master keys open. A page of memory may hold a secret for a moment after use.
//! Deliberately absent: what secrets are used for, HTTP.

mod backup;
mod config;
mod envelope;
mod error;
mod grant;
mod item;
mod kek;
mod keyring;
mod owner;
mod rotate;
mod secret;
mod services;
mod sign;
mod sweep;
mod tenant_key;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::collections::hash_map::DefaultHasher;
use std::fmt;
use std::hash::Hash;
use std::hash::Hasher;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;
use std::time::Instant;

use arc_swap::ArcSwap;
use futures_util::future::BoxFuture;
use serde_json::Value;
use serde_json::json;
use time::OffsetDateTime;
use tokio::sync::Notify;
use tokio::sync::RwLock;

pub use crate::store::secrets::KeyId;
pub use backup::BackupKey;
pub use backup::Masters;
pub use backup::Sealing;
pub use backup::WrappedBackupKey;
pub use config::Config;
pub use config::Hidden;
pub use error::Error;
pub use error::Invalid;
pub use grant::grant_of;
pub use item::Caller;
pub use item::Change;
pub use item::End;
pub use item::Item;
pub use item::NewSecret;
pub use item::Opened;
pub use item::Sealed;
pub use item::State;
pub use item::Stored;
pub use item::Warning;
pub use kek::KEY_FILE;
pub use kek::Unusable;
pub use keyring::Locked;
pub use rotate::NewMaster;
pub use rotate::Progress;
pub use rotate::Refused;
pub use rotate::Status;
pub use secret::Secret;
pub use sign::Signature;

use crate::audit::Actor;
use crate::audit::Audit;
use crate::audit::Entry;
use crate::audit::action;
use crate::ids::TenantId;
use crate::ids::UserId;
use crate::limits::Keyed;
use crate::shutdown::Shutdown;
use crate::store;
use crate::store::Store;
use crate::store::secrets::SealedSecret;
use crate::store::secrets::Secrets;
use crate::store::vault_keys::TenantKey;
use crate::store::vault_keys::VaultKeys;
use envelope::Aad;
use envelope::Kind;
use keyring::Keyring;
use tenant_key::DataKey;

/// Tenants whose secrets change at once; each has one of these locks.
const LOCKS: usize = 64;
/// Keys that one limit remembers.
const LIMITED: usize = 10_000;
/// One use of a secret for one purpose in this time is written down.
const USE_EVERY: Duration = Duration::from_mins(1);
/// The label of a secret whose owner gave none.
pub const DEFAULT_LABEL: &str = "default";

/// What a service says of a secret that its owner is about to store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It works.
    Ok,
    /// It does not; the text tells its owner why, and no part of it.
    Rejected {
        /// Why, lower case, without a full stop.
        message: String,
    },
    /// Nobody could be asked.
    Unavailable,
}

/// Asks a service about a secret and its settings.
pub type Check = Arc<dyn for<'a> Fn(&'a Secret, &'a Value) -> BoxFuture<'a, Verdict> + Send + Sync>;

/// The services that can be asked, by name. A service that is not here is not asked.
#[derive(Clone, Default)]
pub struct Checks(HashMap<&'static str, Check>);

impl Checks {
    /// Nobody is asked.
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks this for secrets of the service.
    #[must_use]
    pub fn with(mut self, service: &'static str, check: Check) -> Self {
        self.0.insert(service, check);
        self
    }

    fn find(&self, service: &str) -> Option<&Check> {
        self.0.get(service)
    }
}

impl fmt::Debug for Checks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// A vault whose master key is there.
#[derive(Debug)]
pub struct Unlocked {
    inner: keyring::Unlocked,
    keys: VaultKeys,
    store: Arc<dyn Store>,
}

impl Unlocked {
    /// The file of the master key that was made just now.
    pub fn made(&self) -> Option<&Path> {
        self.inner.made.as_deref()
    }
}

/// Opens the vault of a store with the key that the configuration gives, or makes a key for a new one. Refuses before
/// anything is written, so this comes before everything else that writes.
pub async fn unlock(config: &Config, data: &Path, store: Arc<dyn Store>) -> Result<Unlocked, Locked> {
    let keys = VaultKeys::open(Arc::clone(&store)).await?;
    let inner = keyring::unlock(config, data, &keys, OffsetDateTime::now_utc()).await?;
    Ok(Unlocked { inner, keys, store })
}

/// Tells a secret's owner that its time ends soon or has ended. True: they were told, or never will be; otherwise it is
/// tried again. It answers in bounded time.
pub type Warn = Arc<dyn Fn(Warning) -> BoxFuture<'static, bool> + Send + Sync>;

/// What a vault is made of.
#[expect(missing_debug_implementations, reason = "it lives for one call and holds closures")]
pub struct Parts {
    /// `[vault]`
    pub config: Config,
    /// The keys.
    pub unlocked: Unlocked,
    /// Where everything is written down first.
    pub audit: Audit,
    /// Whom to ask about secrets.
    pub checks: Checks,
    /// How owners are warned.
    pub warn: Warn,
    /// Whether there is a store of backups, whose keys a master key that is replaced may have sealed.
    pub keeps_former: bool,
    /// Owns the tasks.
    pub shutdown: Shutdown,
}

/// The vault. Cheap to clone.
#[derive(Clone)]
pub struct Vault {
    inner: Arc<Inner>,
}

struct Inner {
    config: Config,
    keys: VaultKeys,
    secrets: Secrets,
    keyring: ArcSwap<Keyring>,
    /// Held to read while a data key is sealed, to write while the master key changes.
    sealing: RwLock<()>,
    locks: Vec<tokio::sync::Mutex<()>>,
    audit: Audit,
    checks: Checks,
    reveals: Mutex<Keyed<UserId>>,
    changes: Mutex<Keyed<UserId>>,
    uses: Mutex<Keyed<(KeyId, &'static str)>>,
    warn: Warn,
    keeps_former: bool,
    /// Says that something may expire sooner than was known.
    look: Notify,
    rotation: rotate::Rotation,
    made: Option<PathBuf>,
    shutdown: Shutdown,
}

impl fmt::Debug for Vault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vault").field("secrets", &self.inner.secrets.len()).finish_non_exhaustive()
    }
}

impl Vault {
    /// Loads the secrets, starts the task that warns, and goes on with a rotation that was interrupted.
    pub async fn new(parts: Parts) -> Result<Self, Error> {
        let Parts { config, unlocked, audit, checks, warn, keeps_former, shutdown } = parts;
        let Unlocked { inner: keyring::Unlocked { keyring, made, is_new }, keys, store } = unlocked;
        if is_new {
            let entry = Entry::new(Actor::System, action::MASTER_KEY_ADDED).subject(keyring.primary());
            audit.record(entry.detail(json!({ "source": keyring.source }))).await?;
        }
        let minute = Duration::from_mins(1);
        let inner = Inner {
            reveals: Mutex::new(Keyed::new(config.reveals_per_minute.get(), minute, LIMITED)),
            changes: Mutex::new(Keyed::new(config.changes_per_minute.get(), minute, LIMITED)),
            uses: Mutex::new(Keyed::new(1, USE_EVERY, LIMITED)),
            config,
            keys,
            secrets: Secrets::open(store).await?,
            keyring: ArcSwap::from_pointee(keyring),
            sealing: RwLock::new(()),
            locks: std::iter::repeat_with(Default::default).take(LOCKS).collect(),
            audit,
            checks,
            warn,
            keeps_former,
            look: Notify::new(),
            rotation: rotate::Rotation::default(),
            made,
            shutdown: shutdown.clone(),
        };
        let vault = Self { inner: Arc::new(inner) };
        shutdown.spawn(sweep::run(vault.clone(), shutdown.clone()));
        vault.resume_rotation();
        Ok(vault)
    }

    /// The file of the master key that this start made.
    pub fn made(&self) -> Option<&Path> {
        self.inner.made.as_deref()
    }

    /// A secret for a worker: of the label, or without one the `default` one, or else the newest that is good.
    /// [`Error::Expired`] and [`Error::Revoked`] when that is all there is.
    pub async fn open(
        &self,
        tenant: &TenantId,
        service: &str,
        label: Option<&str>,
        purpose: &'static str,
        now: OffsetDateTime,
    ) -> Result<Opened, Error> {
        let mut found = self.inner.secrets.of_tenant(tenant);
        found.retain(|secret| secret.service == service && label.is_none_or(|label| label == secret.label));
        let is_good = |secret: &&Arc<SealedSecret>| secret.deleted_at.is_none() && !item::has_expired(secret, now);
        let best = found.iter().filter(is_good).max_by_key(|secret| (secret.label == DEFAULT_LABEL, secret.updated_at));
        match best {
            Some(secret) => self.hand_out(secret, purpose, now).await,
            None if found.iter().any(|secret| secret.deleted_at.is_none()) => Err(Error::Expired),
            None if !found.is_empty() => Err(Error::Revoked),
            None => Err(Error::NotFound),
        }
    }

    /// The secret of an id for a worker.
    pub async fn open_id(
        &self,
        tenant: &TenantId,
        id: &KeyId,
        purpose: &'static str,
        now: OffsetDateTime,
    ) -> Result<Opened, Error> {
        let secret = self.inner.secrets.find(tenant, id).ok_or(Error::NotFound)?;
        if secret.deleted_at.is_some() {
            return Err(Error::Revoked);
        }
        if item::has_expired(&secret, now) {
            return Err(Error::Expired);
        }
        self.hand_out(&secret, purpose, now).await
    }

    async fn hand_out(
        &self,
        secret: &SealedSecret,
        purpose: &'static str,
        now: OffsetDateTime,
    ) -> Result<Opened, Error> {
        let opened = self.unseal_secret(secret).await?;
        let key = (secret.key_id.clone(), purpose);
        let is_news = lock(&self.inner.uses).would_pass(&key, Instant::now());
        if is_news {
            let entry = Entry::new(Actor::System, action::SECRET_USED).tenant(&secret.tenant);
            self.inner
                .audit
                .record(entry.subject(secret.key_id.as_str()).detail(json!({ "purpose": purpose })))
                .await?;
            // Not before: what could not be written down is tried again at the next use, which fails like this one.
            let _ = lock(&self.inner.uses).check(&key, Instant::now());
            self.note_use(secret, now).await;
        }
        Ok(Opened {
            key_id: secret.key_id.clone(),
            service: secret.service.clone(),
            label: secret.label.clone(),
            secret: opened,
            settings: secret.settings.clone(),
        })
    }

    /// Not sealed, not bound: it is only shown.
    async fn note_use(&self, secret: &SealedSecret, now: OffsetDateTime) {
        let noted = self.inner.secrets.change(&secret.tenant, &secret.key_id, |current| {
            Ok(current.map(|current| SealedSecret { last_used_at: Some(now), ..current.clone() }))
        });
        if let Err(error) = noted.await {
            tracing::warn!(tenant.id = %secret.tenant, %error, "note the use of a secret");
        }
    }

    /// Opens a record; a failure is written down.
    async fn unseal_secret(&self, secret: &SealedSecret) -> Result<Secret, Error> {
        let opened = self.try_unseal(secret);
        if matches!(opened, Err(Error::Unreadable)) {
            self.note_unreadable(&secret.tenant, &secret.key_id).await;
        }
        opened
    }

    fn try_unseal(&self, secret: &SealedSecret) -> Result<Secret, Error> {
        let record = self.inner.keys.find(&secret.tenant).ok_or(Error::Unreadable)?;
        let data = tenant_key::open(&self.inner.keyring.load(), &record)?;
        if !tenant_key::is_newest(&record, &secret.key_id, secret.version) || data.id != secret.dek {
            return Err(Error::Unreadable);
        }
        let sealed = secret.sealed.as_deref().ok_or(Error::Unreadable)?;
        text(&envelope::open(&data.key, &item::aad(secret)?, sealed)?)
    }

    async fn note_unreadable(&self, tenant: &TenantId, id: &KeyId) {
        let key = (id.clone(), action::SECRET_UNREADABLE);
        if lock(&self.inner.uses).check(&key, Instant::now()).is_err() {
            return;
        }
        tracing::error!(tenant.id = %tenant, key.id = %id, "a secret cannot be opened: its records were changed outside pocketfleet");
        let entry = Entry::new(Actor::System, action::SECRET_UNREADABLE).tenant(tenant).subject(id.as_str());
        if let Err(error) = self.inner.audit.record(entry).await {
            tracing::error!(%error, "write down that a secret cannot be opened");
        }
    }

    /// Opens a tenant's data key; a failure is written down.
    async fn open_key(&self, record: &TenantKey) -> Result<DataKey, Error> {
        let opened = tenant_key::open(&self.inner.keyring.load(), record);
        if opened.is_err() {
            self.note_unreadable_key(&record.tenant).await;
        }
        Ok(opened?)
    }

    async fn note_unreadable_key(&self, tenant: &TenantId) {
        tracing::error!(tenant.id = %tenant, "a tenant's data key cannot be opened: its record was changed outside pocketfleet");
        let entry = Entry::new(Actor::System, action::SECRET_UNREADABLE).tenant(tenant);
        if let Err(error) = self.inner.audit.record(entry.detail(json!({ "what": "data key" }))).await {
            tracing::error!(%error, "write down that a data key cannot be opened");
        }
    }

    /// Seals a secret that lives in another record; `context` says which one and must be the same to open it.
    pub async fn seal(&self, tenant: &TenantId, context: &str, secret: &Secret) -> Result<Sealed, Error> {
        let record = self.tenant_key(tenant, OffsetDateTime::now_utc()).await?;
        let data = self.open_key(&record).await?;
        let aad = elsewhere(tenant, context, &data.id);
        let sealed = envelope::seal(&data.key, &aad, secret.expose().as_bytes())?;
        Ok(Sealed(format!("{}.{sealed}", data.id)))
    }

    /// Opens what [`seal`](Self::seal) made for the same tenant and context.
    pub async fn unseal(&self, tenant: &TenantId, context: &str, sealed: &Sealed) -> Result<Secret, Error> {
        let opened = || {
            let (dek, envelope) = sealed.0.split_once('.').ok_or(Error::Unreadable)?;
            let record = self.inner.keys.find(tenant).ok_or(Error::Unreadable)?;
            let data = tenant_key::open(&self.inner.keyring.load(), &record)?;
            let aad = elsewhere(tenant, context, dek);
            text(&envelope::open(&data.key, &aad, envelope)?)
        };
        let outcome = opened();
        if outcome.is_err() {
            tracing::error!(tenant.id = %tenant, "a sealed text cannot be opened: its record was changed outside pocketfleet");
            let entry = Entry::new(Actor::System, action::SECRET_UNREADABLE).tenant(tenant);
            self.inner.audit.record(entry.detail(json!({ "context": context }))).await?;
        }
        outcome
    }

    /// Destroys a tenant's data key: nothing of it opens any more. Old backups of the control database still have it.
    pub async fn destroy(&self, tenant: &TenantId, actor: Actor) -> Result<(), Error> {
        let _alone = self.alone(tenant).await;
        self.inner.audit.record(Entry::new(actor, action::VAULT_DESTROYED).tenant(tenant)).await?;
        self.inner.keys.destroy(tenant).await?;
        for secret in self.inner.secrets.of_tenant(tenant) {
            self.erase(&secret, OffsetDateTime::now_utc()).await?;
            self.inner.secrets.purge(tenant, &secret.key_id).await?;
        }
        Ok(())
    }

    /// How many secrets a tenant has, deleted ones that are not forgotten yet included.
    pub fn count(&self, tenant: &TenantId) -> usize {
        self.inner.secrets.of_tenant(tenant).len()
    }

    /// A tenant's data key, which is made if there is none.
    async fn tenant_key(&self, tenant: &TenantId, now: OffsetDateTime) -> Result<Arc<TenantKey>, Error> {
        if let Some(record) = self.inner.keys.find(tenant) {
            return Ok(record);
        }
        // Nobody changes the master key between the sealing and the writing.
        let _sealing = self.inner.sealing.read().await;
        let fresh = tenant_key::make(&self.inner.keyring.load(), tenant, now)?;
        let made = self.inner.keys.change(tenant, |current| Ok(current.is_none().then(|| fresh.clone()))).await?;
        made.ok_or(Error::Unreadable)
    }

    /// Changes which versions are the newest. The caller is alone with the tenant.
    async fn change_heads(
        &self,
        tenant: &TenantId,
        change: impl Fn(&mut std::collections::BTreeMap<KeyId, u32>) + Send + Sync,
    ) -> Result<(), Error> {
        let mut refused = None;
        let changed = self.inner.keys.change(tenant, |current| {
            let Some(current) = current else { return Ok(None) };
            // At each attempt: the master key may have been changed since the one before.
            match tenant_key::with_heads(&self.inner.keyring.load(), current, &change) {
                Ok(record) => Ok(Some(record)),
                Err(error) => {
                    refused = Some(error);
                    Ok(None)
                }
            }
        });
        changed.await?;
        let Some(refused) = refused else { return Ok(()) };
        self.note_unreadable_key(tenant).await;
        Err(refused)
    }

    /// One change of a tenant's secrets at a time. (One process has the store.)
    async fn alone(&self, tenant: &TenantId) -> tokio::sync::MutexGuard<'_, ()> {
        let mut hasher = DefaultHasher::new();
        tenant.hash(&mut hasher);
        let at = usize::try_from(hasher.finish() % LOCKS as u64).unwrap_or_default();
        self.inner.locks[at].lock().await
    }

    /// Takes the ciphertext out of a record and leaves the rest for a while.
    async fn erase(&self, secret: &SealedSecret, now: OffsetDateTime) -> Result<(), store::Error> {
        let erased = self.inner.secrets.change(&secret.tenant, &secret.key_id, |current| {
            let live = current.filter(|current| current.deleted_at.is_none());
            Ok(live.map(|current| SealedSecret {
                sealed: None,
                hint: None,
                deleted_at: Some(now),
                version: current.version.saturating_add(1),
                ..current.clone()
            }))
        });
        erased.await.map(drop)
    }
}

fn elsewhere(tenant: &TenantId, context: &str, dek: &str) -> Aad {
    Aad::new(Kind::Elsewhere).with(tenant.as_str()).with(context).with(dek)
}

fn text(bytes: &[u8]) -> Result<Secret, Error> {
    std::str::from_utf8(bytes).map(|text| Secret::new(text.to_owned())).map_err(|_| Error::Unreadable)
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
