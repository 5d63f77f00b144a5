//! Keys for backups: one per tenant, random, and sealed by a master key to lie beside the backups.
//!
//! A backup has to be readable with nothing but its store and the master key. So the store holds each tenant's key for
//! backups under the master key, and what is public of the master keys (their ids, and the salt of a passphrase). The
//! key lies nowhere else, in no snapshot of the control database either, and is made of nothing that does: once it is
//! removed from the store, copies of a tenant's objects stay sealed for whoever has the master key. It opens the tenant's
//! backups and no stored secret.
//!
//! What is sealed here is bound to the tenant and to the name of the object; a name is a keyed hash of the content, so
//! that nobody without the key can tell whether two tenants have the same file.

use std::path::Path;

use serde::Deserialize;
use serde::Serialize;
use zeroize::Zeroizing;

use super::Config;
use super::Error;
use super::Locked;
use super::Vault;
use super::envelope;
use super::envelope::Aad;
use super::envelope::Key;
use super::envelope::Kind;
use super::envelope::Unreadable;
use super::kek;
use super::kek::Given;
use super::keyring;
use super::keyring::Keyring;
use crate::ids::TenantId;
use crate::store::secrets::KeyId;
use crate::store::vault_keys::MasterKey;

const NAMES: &str = "pocketfleet backup: name of an object 1";

/// A tenant's key for backups, open.
#[derive(Debug)]
pub struct BackupKey {
    tenant: TenantId,
    id: String,
    key: Key,
}

/// The same, sealed by a master key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WrappedBackupKey {
    /// Whose.
    pub tenant: TenantId,
    /// Names the key.
    pub id: String,
    /// Names the master key.
    pub kek: String,
    /// The envelope.
    pub wrapped: String,
}

/// What opens a tenant's key for backups.
pub trait Sealing: std::fmt::Debug + Send + Sync + 'static {
    /// [`Error::Unreadable`] when no master key that is here sealed it, or when it was changed.
    fn open_backup_key(&self, wrapped: &WrappedBackupKey) -> Result<BackupKey, Error>;
}

fn wrap_aad(tenant: &TenantId, id: &str, kek: &str) -> Aad {
    Aad::new(Kind::BackupKey).with(tenant.as_str()).with(id).with(kek)
}

impl BackupKey {
    /// Whose.
    pub fn tenant(&self) -> &TenantId {
        &self.tenant
    }

    /// Names the key.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The name of a content: 64 hexadecimal digits that say nothing to whoever has not the key.
    pub fn name(&self, content: &[u8]) -> String {
        kek::hex(&self.key.tag(NAMES, &Aad::new(Kind::Backup).with(content)))
    }

    fn aad(&self, object: &str) -> Aad {
        Aad::new(Kind::Backup).with(self.tenant.as_str()).with(&self.id).with(object)
    }

    /// Seals an object.
    pub fn seal(&self, object: &str, plain: &[u8]) -> Result<Vec<u8>, Error> {
        Ok(envelope::seal_bytes(&self.key, &self.aad(object), plain)?)
    }

    /// Opens an object; [`Error::Unreadable`] for one of another tenant, of another name, or with any change.
    pub fn open(&self, object: &str, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, Error> {
        Ok(envelope::open_bytes(&self.key, &self.aad(object), sealed)?)
    }
}

fn open(keyring: &Keyring, wrapped: &WrappedBackupKey) -> Result<BackupKey, Unreadable> {
    let master = keyring.find_any(&wrapped.kek).ok_or(Unreadable)?;
    let aad = wrap_aad(&wrapped.tenant, &wrapped.id, &wrapped.kek);
    let key = Key::of(&envelope::open(master, &aad, &wrapped.wrapped)?).ok_or(Unreadable)?;
    Ok(BackupKey { tenant: wrapped.tenant.clone(), id: wrapped.id.clone(), key })
}

impl Vault {
    /// A new key for a tenant's backups.
    pub fn new_backup_key(tenant: &TenantId) -> BackupKey {
        BackupKey { tenant: tenant.clone(), id: KeyId::random().as_str().to_owned(), key: Key::random() }
    }

    /// A key for backups, sealed by the master key of today.
    pub fn seal_backup_key(&self, key: &BackupKey) -> Result<WrappedBackupKey, Error> {
        let keyring = self.inner.keyring.load();
        let kek = keyring.primary().to_owned();
        let master = keyring.find(&kek).ok_or(Unreadable)?;
        let wrapped = envelope::seal(master, &wrap_aad(&key.tenant, &key.id, &kek), key.key.bytes())?;
        Ok(WrappedBackupKey { tenant: key.tenant.clone(), id: key.id.clone(), kek, wrapped })
    }

    /// Names the master key of today.
    pub fn master_key_id(&self) -> String {
        self.inner.keyring.load().primary().to_owned()
    }

    /// What is public of the master keys that are in use: what a restore needs to tell the right key from a wrong one.
    pub async fn public_masters(&self) -> Result<Vec<MasterKey>, Error> {
        let live = self.masters().await?.into_iter().filter(|key| key.retired_at.is_none());
        Ok(live.map(|key| MasterKey { bridges: std::collections::BTreeMap::new(), ..key }).collect())
    }

    /// The names of master keys that others have replaced.
    pub async fn retired_masters(&self) -> Result<Vec<String>, Error> {
        let retired = self.masters().await?.into_iter().filter(|key| key.retired_at.is_some());
        Ok(retired.map(|key| key.id).collect())
    }

    async fn masters(&self) -> Result<Vec<MasterKey>, Error> {
        let found = self.inner.keys.master().await?;
        Ok(found.map(|found| found.keys.clone()).unwrap_or_default())
    }
}

impl Sealing for Vault {
    fn open_backup_key(&self, wrapped: &WrappedBackupKey) -> Result<BackupKey, Error> {
        Ok(open(&self.inner.keyring.load(), wrapped)?)
    }
}

/// The master key of a configuration, without a vault: for a restore onto an empty machine.
#[derive(Debug)]
pub struct Masters(Keyring);

impl Masters {
    /// Takes the key where `serve` would take it, and refuses one that none of the records is of.
    pub async fn unlock(config: &Config, data: &Path, records: &[MasterKey]) -> Result<Self, Locked> {
        let wanted = records.last().map(|record| record.id.clone()).unwrap_or_default();
        let given = kek::find(config, data)?;
        let source = given.word();
        let candidates = match given {
            Given::File(_, key) | Given::Environment(key) => vec![key],
            Given::Passphrase(passphrase) => {
                let mut found = Vec::new();
                for salt in records.iter().rev().filter_map(|record| record.salt.clone()) {
                    found.push(keyring::derive(super::Secret::new(passphrase.expose().to_owned()), salt).await?);
                }
                found
            }
            Given::Nothing(path) => return Err(Locked::Missing { path, wanted }),
        };
        let found = candidates.first().map_or_else(|| "a passphrase".to_owned(), kek::id);
        let fits =
            |key: &Key| records.iter().any(|record| record.id == kek::id(key) && record.check == kek::check(key));
        let Some(key) = candidates.into_iter().find(fits) else {
            return Err(Locked::Wrong { wanted, found, source_word: source });
        };
        Ok(Self(Keyring::single(kek::id(&key), key, source)))
    }
}

impl Sealing for Masters {
    fn open_backup_key(&self, wrapped: &WrappedBackupKey) -> Result<BackupKey, Error> {
        Ok(open(&self.0, wrapped)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (Keyring, WrappedBackupKey) {
        let (master, key) = (Key::random(), Key::random());
        let tenant = TenantId::parse("ada").unwrap();
        let keyring = Keyring::single("k".to_owned(), master, "file");
        let aad = wrap_aad(&tenant, "d", "k");
        let wrapped = envelope::seal(keyring.find("k").unwrap(), &aad, key.bytes()).unwrap();
        (keyring, WrappedBackupKey { tenant, id: "d".to_owned(), kek: "k".to_owned(), wrapped })
    }

    #[test]
    fn an_object_opens_as_what_it_is_and_as_nothing_else() {
        let (keyring, wrapped) = pair();
        let key = open(&keyring, &wrapped).unwrap();
        let sealed = key.seal("chunks/ada/1", b"plain text").unwrap();
        assert!(!sealed.windows(5).any(|part| part == b"plain"));
        assert_eq!(key.open("chunks/ada/1", &sealed).unwrap()[..], b"plain text"[..]);
        assert!(key.open("chunks/ada/2", &sealed).is_err(), "swapped");
        for at in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[at] ^= 1;
            assert!(key.open("chunks/ada/1", &changed).is_err(), "byte {at}");
            assert!(key.open("chunks/ada/1", &sealed[..at]).is_err(), "cut at {at}");
        }
        for other in [
            WrappedBackupKey { tenant: TenantId::parse("bob").unwrap(), ..wrapped.clone() },
            WrappedBackupKey { id: "e".to_owned(), ..wrapped.clone() },
            WrappedBackupKey { kek: "other".to_owned(), ..wrapped.clone() },
        ] {
            assert!(open(&keyring, &other).is_err(), "{other:?}");
        }
        assert!(open(&pair().0, &wrapped).is_err(), "another master key");
    }

    #[test]
    fn a_key_is_made_of_nothing_that_is_kept_elsewhere() {
        let tenant = TenantId::parse("ada").unwrap();
        let (one, two) = (Vault::new_backup_key(&tenant), Vault::new_backup_key(&tenant));
        assert_ne!(one.id(), two.id());
        assert_ne!(one.name(b"same"), two.name(b"same"));
    }

    #[test]
    fn equal_contents_of_two_tenants_have_names_that_nobody_can_link() {
        let [(one, a), (two, b)] = [pair(), pair()];
        let (one, two) = (open(&one, &a).unwrap(), open(&two, &b).unwrap());
        assert_eq!(one.name(b"same"), one.name(b"same"));
        assert_ne!(one.name(b"same"), one.name(b"Same"));
        assert_ne!(one.name(b"same"), two.name(b"same"));
        assert_eq!(one.name(b"").len(), 64);
    }
}
