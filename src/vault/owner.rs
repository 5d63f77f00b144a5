//! What the owner of secrets does with them: list, put, change, delete, have one shown.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use serde_json::json;
use time::OffsetDateTime;

use super::Caller;
use super::Change;
use super::DEFAULT_LABEL;
use super::End;
use super::Error;
use super::Invalid;
use super::Item;
use super::KeyId;
use super::NewSecret;
use super::Secret;
use super::Stored;
use super::Vault;
use super::Verdict;
use super::envelope;
use super::item;
use super::lock;
use super::services;
use super::services::Described;
use super::tenant_key;
use crate::audit::action;
use crate::ids::TenantId;
use crate::store::secrets::SealedSecret;

/// How long a service may take to say whether a secret is good.
const CHECK_TIME: Duration = Duration::from_secs(10);
/// Longest time that a secret can be stored for: ten years.
const LONGEST: Duration = Duration::from_hours(24 * 3_653);
/// Longest purpose of a reveal, in characters.
const MAX_PURPOSE_CHARS: usize = 200;

impl Vault {
    /// A tenant's secrets, by service and label. No I/O.
    pub fn list(&self, tenant: &TenantId, now: OffsetDateTime) -> Vec<Item> {
        let mut items: Vec<_> = self.live(tenant).iter().map(|secret| self.item(secret, now)).collect();
        items.sort_by(|a, b| (&a.service, &a.label).cmp(&(&b.service, &b.label)));
        items
    }

    /// One of them. No I/O.
    pub fn find(&self, tenant: &TenantId, id: &KeyId, now: OffsetDateTime) -> Option<Item> {
        self.find_live(tenant, id).map(|secret| self.item(&secret, now))
    }

    /// Stores a secret, in place of the one of the same service and label if there is one.
    pub async fn put(&self, caller: &Caller, new: NewSecret, now: OffsetDateTime) -> Result<Stored, Error> {
        let label = new.label.as_deref().unwrap_or(DEFAULT_LABEL);
        let described = services::describe(&new.service, label, &new.settings).map_err(Error::Invalid)?;
        services::check_secret(described.service, new.secret.expose()).map_err(Error::Invalid)?;
        check_end(new.expires_at, now)?;
        self.admit_change(caller)?;
        if new.verify {
            self.ask(&described, &new.secret).await?;
        }
        let hint = services::hint(new.secret.expose());
        self.store(caller, described, &new.secret, hint, new.expires_at, now).await
    }

    /// Stores what was checked.
    pub(super) async fn store(
        &self,
        caller: &Caller,
        described: Described,
        secret: &Secret,
        hint: Option<String>,
        expires_at: Option<OffsetDateTime>,
        now: OffsetDateTime,
    ) -> Result<Stored, Error> {
        let _alone = self.alone(&caller.tenant).await;
        let record = self.tenant_key(&caller.tenant, now).await?;
        // Before anything is written down: a tenant whose records were tampered with takes nothing new.
        self.open_key(&record).await?;
        let live = self.live(&caller.tenant);
        let same = |secret: &&Arc<SealedSecret>| secret.service == described.service && secret.label == described.label;
        let current = live.iter().find(same);
        if current.is_none() && live.len() >= self.inner.config.max_secrets.get() {
            return Err(Error::Full { limit: self.inner.config.max_secrets.get() });
        }
        let key_id = current.map_or_else(KeyId::random, |current| current.key_id.clone());
        let version = match current {
            Some(current) => self.next_version(current)?,
            None => 1,
        };
        let mut fresh = SealedSecret {
            tenant: caller.tenant.clone(),
            key_id: key_id.clone(),
            service: described.service.to_owned(),
            label: described.label,
            version,
            dek: record.dek.clone(),
            sealed: None,
            settings: described.settings,
            hint,
            created_at: current.map_or(now, |current| current.created_at),
            updated_at: now,
            expires_at,
            last_used_at: current.and_then(|current| current.last_used_at),
            warned_of: None,
            deleted_at: None,
        };
        self.seal_into(&mut fresh, secret)?;
        let action = if current.is_some() { action::SECRET_REPLACED } else { action::SECRET_STORED };
        let entry = caller.entry(action).subject(key_id.as_str());
        let detail = json!({ "service": fresh.service, "version": version });
        self.inner.audit.record(entry.detail(detail)).await?;
        self.write(&fresh, current.is_none()).await?;
        self.inner.look.notify_one();
        Ok(Stored { item: self.item(&fresh, now), is_new: current.is_none() })
    }

    /// Changes a secret's label or the end of its time.
    pub async fn change(
        &self,
        caller: &Caller,
        id: &KeyId,
        change: Change,
        now: OffsetDateTime,
    ) -> Result<Item, Error> {
        self.admit_change(caller)?;
        let _alone = self.alone(&caller.tenant).await;
        let current = self.find_live(&caller.tenant, id).ok_or(Error::NotFound)?;
        let mut fresh = SealedSecret::clone(&current);
        if let Some(label) = change.label {
            services::check_label(&label).map_err(Error::Invalid)?.clone_into(&mut fresh.label);
        }
        match change.end {
            End::Keep => {}
            End::Never => fresh.expires_at = None,
            End::At(end) => {
                check_end(Some(end), now)?;
                fresh.expires_at = Some(end);
            }
        }
        let mut others = self.live(&caller.tenant).into_iter().filter(|other| other.key_id != *id);
        if others.any(|other| other.service == fresh.service && other.label == fresh.label) {
            return Err(Error::LabelTaken);
        }
        let secret = self.unseal_secret(&current).await?;
        fresh.version = self.next_version(&current)?;
        fresh.updated_at = now;
        self.seal_into(&mut fresh, &secret)?;
        let entry = caller.entry(action::SECRET_CHANGED).subject(id.as_str());
        self.inner.audit.record(entry.detail(json!({ "version": fresh.version }))).await?;
        self.write(&fresh, false).await?;
        self.inner.look.notify_one();
        Ok(self.item(&fresh, now))
    }

    /// Deletes a secret: its ciphertext is gone when this returns.
    pub async fn remove(&self, caller: &Caller, id: &KeyId, now: OffsetDateTime) -> Result<(), Error> {
        self.admit_change(caller)?;
        let _alone = self.alone(&caller.tenant).await;
        let secret = self.find_live(&caller.tenant, id).ok_or(Error::NotFound)?;
        self.inner.audit.record(caller.entry(action::SECRET_DELETED).subject(id.as_str())).await?;
        self.erase(&secret, now).await?;
        self.change_heads(&caller.tenant, |heads| {
            heads.remove(id);
        })
        .await?;
        // No more of the deleted are kept than of the others.
        let mut deleted = self.inner.secrets.of_tenant(&caller.tenant);
        deleted.retain(|secret| secret.deleted_at.is_some());
        deleted.sort_by_key(|secret| std::cmp::Reverse(secret.deleted_at));
        for old in deleted.iter().skip(self.inner.config.max_secrets.get()) {
            self.inner.secrets.purge(&old.tenant, &old.key_id).await?;
        }
        Ok(())
    }

    /// Shows a secret to its owner. `signed_in_at` is when the session's sign-in was, if that is known. The audit log
    /// has it before this returns; what is refused is there too.
    pub async fn reveal(
        &self,
        caller: &Caller,
        id: &KeyId,
        purpose: Option<&str>,
        signed_in_at: Option<OffsetDateTime>,
        now: OffsetDateTime,
    ) -> Result<Secret, Error> {
        let taken = lock(&self.inner.reveals).check(&caller.user, Instant::now());
        taken.map_err(|wait| Error::TooMany { wait })?;
        let purpose = purpose.map(check_purpose).transpose()?;
        match self.try_reveal(caller, id, signed_in_at, now).await {
            Ok(secret) => {
                let entry = caller.entry(action::SECRET_REVEALED).subject(id.as_str());
                self.inner.audit.record(entry.detail(json!({ "purpose": purpose }))).await?;
                Ok(secret)
            }
            Err(error) => {
                let entry = caller.entry(action::SECRET_REVEAL_REFUSED).subject(id.as_str());
                self.inner.audit.record(entry.detail(json!({ "reason": error.to_string() }))).await?;
                Err(error)
            }
        }
    }

    /// Whether a sign-in is fresh enough for what a stolen token must not reach. None is not.
    pub fn check_sign_in(&self, signed_in_at: Option<OffsetDateTime>, now: OffsetDateTime) -> Result<(), Error> {
        let within = self.inner.config.reveal_max_age;
        if signed_in_at.is_none_or(|at| at + within <= now) {
            return Err(Error::SignInFirst { within });
        }
        Ok(())
    }

    async fn try_reveal(
        &self,
        caller: &Caller,
        id: &KeyId,
        signed_in_at: Option<OffsetDateTime>,
        now: OffsetDateTime,
    ) -> Result<Secret, Error> {
        let secret = self.find_live(&caller.tenant, id).ok_or(Error::NotFound)?;
        self.check_sign_in(signed_in_at, now)?;
        if item::has_expired(&secret, now) {
            return Err(Error::Expired);
        }
        self.unseal_secret(&secret).await
    }

    /// Asks the service, if it can be asked.
    async fn ask(&self, described: &Described, secret: &Secret) -> Result<(), Error> {
        let Some(check) = self.inner.checks.find(described.service) else { return Ok(()) };
        match tokio::time::timeout(CHECK_TIME, check(secret, &described.settings)).await {
            Ok(Verdict::Ok) => Ok(()),
            Ok(Verdict::Rejected { message }) => Err(Error::Rejected { message }),
            Ok(Verdict::Unavailable) | Err(_) => Err(Error::Unchecked),
        }
    }

    fn item(&self, secret: &SealedSecret, now: OffsetDateTime) -> Item {
        Item::of(secret, now, self.inner.config.warn_before)
    }

    fn live(&self, tenant: &TenantId) -> Vec<Arc<SealedSecret>> {
        let mut found = self.inner.secrets.of_tenant(tenant);
        found.retain(|secret| secret.deleted_at.is_none());
        found
    }

    pub(super) fn find_live(&self, tenant: &TenantId, id: &KeyId) -> Option<Arc<SealedSecret>> {
        self.inner.secrets.find(tenant, id).filter(|secret| secret.deleted_at.is_none())
    }

    pub(super) fn admit_change(&self, caller: &Caller) -> Result<(), Error> {
        let taken = lock(&self.inner.changes).check(&caller.user, Instant::now());
        taken.map_err(|wait| Error::TooMany { wait })
    }

    /// One more than the record and the head say: an interrupted change leaves the one ahead of the other.
    pub(super) fn next_version(&self, current: &SealedSecret) -> Result<u32, Error> {
        let record = self.inner.keys.find(&current.tenant).ok_or(Error::Unreadable)?;
        let head = record.heads.get(&current.key_id).copied().unwrap_or_default();
        Ok(head.max(current.version).saturating_add(1))
    }

    pub(super) fn seal_into(&self, fresh: &mut SealedSecret, secret: &Secret) -> Result<(), Error> {
        let record = self.inner.keys.find(&fresh.tenant).ok_or(Error::Unreadable)?;
        let data = tenant_key::open(&self.inner.keyring.load(), &record)?;
        fresh.dek.clone_from(&data.id);
        fresh.sealed = Some(envelope::seal(&data.key, &item::aad(fresh)?, secret.expose().as_bytes())?);
        Ok(())
    }

    /// Writes a sealed record and its head. Of a new one the head comes first, so that a record that is put back after
    /// its deletion finds none; of others the record, so that an interruption leaves one that opens.
    pub(super) async fn write(&self, fresh: &SealedSecret, is_new: bool) -> Result<(), Error> {
        let (id, version) = (&fresh.key_id, fresh.version);
        let has_record: BTreeSet<KeyId> =
            self.inner.secrets.of_tenant(&fresh.tenant).iter().map(|secret| secret.key_id.clone()).collect();
        if is_new {
            let announce = |heads: &mut BTreeMap<KeyId, u32>| {
                // What an interrupted creation left.
                heads.retain(|known, _| has_record.contains(known));
                heads.insert(id.clone(), version);
            };
            self.change_heads(&fresh.tenant, announce).await?;
        } else {
            // A head that an interrupted change left behind has to catch up first.
            let before = version.saturating_sub(1);
            let record = self.inner.keys.find(&fresh.tenant);
            if record.is_none_or(|record| record.heads.get(id) != Some(&before)) {
                self.change_heads(&fresh.tenant, |heads| {
                    heads.insert(id.clone(), before);
                })
                .await?;
            }
        }
        self.inner.secrets.change(&fresh.tenant, id, |_| Ok(Some(fresh.clone()))).await?;
        if !is_new {
            self.change_heads(&fresh.tenant, |heads| {
                heads.insert(id.clone(), version);
            })
            .await?;
        }
        Ok(())
    }
}

fn check_end(end: Option<OffsetDateTime>, now: OffsetDateTime) -> Result<(), Error> {
    let refuse = |message| Err(Error::Invalid(Invalid { field: "expires_at", code: "invalid_time", message }));
    match end {
        Some(end) if end <= now => refuse("must be in the future"),
        Some(end) if end - now > LONGEST => refuse("must be within ten years"),
        _ => Ok(()),
    }
}

fn check_purpose(purpose: &str) -> Result<&str, Error> {
    if purpose.chars().count() <= MAX_PURPOSE_CHARS && !purpose.chars().any(char::is_control) {
        return Ok(purpose);
    }
    let message = "at most 200 characters in one line";
    Err(Error::Invalid(Invalid { field: "purpose", code: "invalid_purpose", message }))
}
