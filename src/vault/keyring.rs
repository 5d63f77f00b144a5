//! The master keys that are open, and how the vault is unlocked at the start: before anything else is written.
//!
//! The store knows each master key's id and check value, so a wrong key is told from the right one without trying it on
//! anything. While one key replaces another, each is also stored sealed by the other: whichever the configuration still
//! has, the vault opens.

use std::path::PathBuf;
use std::sync::Arc;

use time::OffsetDateTime;

use super::Config;
use super::envelope;
use super::envelope::Aad;
use super::envelope::Key;
use super::envelope::Kind;
use super::envelope::Unreadable;
use super::kek;
use super::kek::Given;
use crate::store;
use crate::store::vault_keys::MasterKey;
use crate::store::vault_keys::MasterKeys;
use crate::store::vault_keys::VaultKeys;

/// Why the vault does not open. Nothing was written.
#[derive(Debug, thiserror::Error)]
pub enum Locked {
    /// The configured key is not usable.
    #[error(transparent)]
    Unusable(#[from] kek::Unusable),
    /// A vault exists and no key is given.
    #[error(
        "the vault is sealed and its master key {wanted} is missing: {} does not exist or is empty; put it back from its backup, or \
         say with [vault] where the key is", path.display()
    )]
    Missing {
        /// Where a key would have been found.
        path: PathBuf,
        /// The key that is needed.
        wanted: String,
    },
    /// The given key is not the one.
    #[error(
        "the vault is sealed with the master key {wanted}, and the given one ({source_word}) is {found}; give the right one"
    )]
    Wrong {
        /// The key that is needed.
        wanted: String,
        /// The key that was given.
        found: String,
        /// Where that is from.
        source_word: &'static str,
    },
    /// The given key was replaced.
    #[error("the given master key {found} was replaced by {wanted} on {day}; give that one")]
    Retired {
        /// The key that is needed.
        wanted: String,
        /// The key that was given.
        found: String,
        /// When that was replaced.
        day: time::Date,
    },
    /// Some data key is sealed by a master key that nobody gave.
    #[error("the vault needs the master key {0} as well, and the record of it cannot be opened")]
    Incomplete(String),
    /// Sealed data without a record of what sealed it.
    #[error("the vault has sealed data and no record of its master keys; put control.db back from a backup")]
    NoRecord,
    /// The store failed.
    #[error("read the keys of the vault")]
    Store(#[from] store::Error),
    /// The fresh key could not be written.
    #[error("make the vault's key file {}: {error}", path.display())]
    Make {
        /// The file.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// Encryption failed, which it does not.
    #[error("seal a key")]
    Seal,
}

impl From<Unreadable> for Locked {
    fn from(_: Unreadable) -> Self {
        Self::Seal
    }
}

/// The open master keys. Replaced as a whole when one is added or dropped.
#[derive(Debug)]
pub(super) struct Keyring {
    /// The one that seals, last.
    keys: Vec<(String, Arc<Key>)>,
    /// Keys that were replaced and are still needed for keys of backups, which nobody sealed anew yet.
    former: Vec<(String, Arc<Key>)>,
    /// The one that the configuration gave.
    given: String,
    /// Where that was from.
    pub(super) source: &'static str,
    /// The file it was in.
    pub(super) file: Option<PathBuf>,
}

impl Keyring {
    /// One key.
    pub(super) fn single(id: String, key: Key, source: &'static str) -> Self {
        Self { keys: vec![(id.clone(), Arc::new(key))], former: Vec::new(), given: id, source, file: None }
    }

    /// A key that is in use or was replaced.
    pub(super) fn find_any(&self, id: &str) -> Option<&Key> {
        self.find(id).or_else(|| self.former.iter().find(|(name, _)| name == id).map(|(_, key)| &**key))
    }

    pub(super) fn find(&self, id: &str) -> Option<&Key> {
        self.keys.iter().find(|(name, _)| name == id).map(|(_, key)| &**key)
    }

    /// The id of the key that seals.
    pub(super) fn primary(&self) -> &str {
        self.keys.last().map_or("", |(id, _)| id)
    }

    /// The key that seals.
    pub(super) fn primary_key(&self) -> Option<Arc<Key>> {
        self.keys.last().map(|(_, key)| Arc::clone(key))
    }

    /// Whether a start with the same configuration opens the vault once only the primary key is left.
    pub(super) fn has_primary_given(&self) -> bool {
        self.given == self.primary()
    }

    /// Others that are open besides the primary one.
    pub(super) fn others(&self) -> impl Iterator<Item = &str> {
        self.keys.iter().rev().skip(1).map(|(id, _)| &**id)
    }

    /// With a new primary key.
    pub(super) fn with(&self, id: &str, key: Key) -> Self {
        let mut keys = self.keys.clone();
        keys.push((id.to_owned(), Arc::new(key)));
        Self {
            keys,
            former: self.former.clone(),
            given: self.given.clone(),
            source: self.source,
            file: self.file.clone(),
        }
    }

    /// With only the primary key, which the configuration has now. The others are forgotten or kept as former ones.
    pub(super) fn settled(&self, keeps_former: bool) -> Self {
        let mut former = self.former.clone();
        let mut keys = self.keys.clone();
        let primary = keys.pop().into_iter().collect();
        former.extend(keys);
        if !keeps_former {
            former.clear();
        }
        Self { keys: primary, former, given: self.primary().to_owned(), source: self.source, file: self.file.clone() }
    }

    /// Without these former ones.
    pub(super) fn without_former(&self, ids: &[String]) -> Self {
        let (keys, mut former) = (self.keys.clone(), self.former.clone());
        former.retain(|(id, _)| !ids.contains(id));
        Self { keys, former, given: self.given.clone(), source: self.source, file: self.file.clone() }
    }
}

/// What an unlocked vault begins with.
#[derive(Debug)]
pub(super) struct Unlocked {
    pub(super) keyring: Keyring,
    /// The file of the key that was made just now.
    pub(super) made: Option<PathBuf>,
    /// Whether the vault did not exist before.
    pub(super) is_new: bool,
}

/// What binds a master key that another one seals.
pub(super) fn bridge_aad(id: &str, under: &str) -> Aad {
    Aad::new(Kind::MasterKey).with(id).with(under)
}

/// The record of a key.
pub(super) fn record(key: &Key, source: &str, salt: Option<String>, now: OffsetDateTime) -> MasterKey {
    MasterKey {
        id: kek::id(key),
        check: kek::check(key),
        source: source.to_owned(),
        salt,
        created_at: now,
        retired_at: None,
        bridges: std::collections::BTreeMap::new(),
    }
}

/// Opens the vault with what the configuration gives. Refuses before anything is written.
pub(super) async fn unlock(
    config: &Config,
    data: &std::path::Path,
    keys: &VaultKeys,
    now: OffsetDateTime,
) -> Result<Unlocked, Locked> {
    let given = kek::find(config, data)?;
    match keys.master().await? {
        Some(master) => open_existing(given, &master, keys).await,
        None if !keys.is_empty() => Err(Locked::NoRecord),
        None => begin(given, keys, now).await,
    }
}

async fn begin(given: Given, keys: &VaultKeys, now: OffsetDateTime) -> Result<Unlocked, Locked> {
    let source = given.word();
    let (key, salt, file, made) = match given {
        Given::File(path, key) => (key, None, Some(path), None),
        Given::Environment(key) => (key, None, None, None),
        Given::Passphrase(passphrase) => {
            let salt = kek::salt();
            (derive(passphrase, salt.clone()).await?, Some(salt), None, None)
        }
        Given::Nothing(path) => {
            let key = Key::random();
            // Before the record: a record without its key could never be opened again.
            kek::place(&path, &key).map_err(|error| Locked::Make { path: path.clone(), error })?;
            (key, None, Some(path.clone()), Some(path))
        }
    };
    let record = record(&key, source, salt, now);
    let id = record.id.clone();
    let wrote = keys.change_master(|current| Ok(current.is_none().then(|| MasterKeys { keys: vec![record.clone()] })));
    wrote.await?;
    let keyring = Keyring { file, ..Keyring::single(id, key, source) };
    Ok(Unlocked { keyring, made, is_new: true })
}

/// On a thread of its own: nobody else waits for the quarter of a second.
pub(super) async fn derive(passphrase: super::Secret, salt: String) -> Result<Key, kek::Unusable> {
    tokio::task::spawn_blocking(move || kek::derive(&passphrase, &salt)).await.map_err(|_| kek::Unusable::Derivation)?
}

async fn open_existing(given: Given, master: &MasterKeys, keys: &VaultKeys) -> Result<Unlocked, Locked> {
    let source = given.word();
    let wanted = master.keys.last().map(|key| key.id.clone()).unwrap_or_default();
    let (file, candidates) = match given {
        Given::File(path, key) => (Some(path), vec![key]),
        Given::Environment(key) => (None, vec![key]),
        Given::Passphrase(passphrase) => {
            let passphrase = Arc::new(passphrase);
            let mut candidates = Vec::new();
            // Newest first, and no more than needed: each costs a quarter of a second.
            for record in master.keys.iter().rev().filter(|key| key.salt.is_some()) {
                let copy = super::Secret::new(passphrase.expose().to_owned());
                let key = derive(copy, record.salt.clone().unwrap_or_default()).await?;
                let fits = kek::check(&key) == record.check;
                candidates.push(key);
                if fits {
                    break;
                }
            }
            (None, candidates)
        }
        Given::Nothing(path) => return Err(Locked::Missing { path, wanted }),
    };
    let matching = |key: &Key| {
        let (id, check) = (kek::id(key), kek::check(key));
        master.keys.iter().find(|record| record.id == id && record.check == check)
    };
    // The last candidate of a passphrase is the one that fits, if one does.
    let Some(key) = candidates.into_iter().next_back() else {
        return Err(Locked::Wrong { wanted, found: "a passphrase".to_owned(), source_word: source });
    };
    let Some(record) = matching(&key) else {
        return Err(Locked::Wrong { wanted, found: kek::id(&key), source_word: source });
    };
    if let Some(retired) = record.retired_at {
        return Err(Locked::Retired { wanted, found: record.id.clone(), day: retired.date() });
    }
    let given = record.id.clone();
    let opened = cross(master, given.clone(), key);
    let in_use = keys.counts();
    // The primary one last; those that cannot be opened must not be needed.
    let (mut ordered, mut former) = (Vec::new(), Vec::new());
    for record in &master.keys {
        match opened.iter().find(|(id, _)| *id == record.id) {
            Some(found) if record.retired_at.is_some() => former.push(found.clone()),
            Some(found) => ordered.push(found.clone()),
            None if in_use.contains_key(&record.id) || record.id == wanted => {
                return Err(Locked::Incomplete(record.id.clone()));
            }
            None => {}
        }
    }
    if let Some(unknown) = in_use.keys().find(|id| !ordered.iter().any(|(known, _)| known == *id)) {
        return Err(Locked::Incomplete(unknown.clone()));
    }
    Ok(Unlocked { keyring: Keyring { keys: ordered, former, given, source, file }, made: None, is_new: false })
}

/// Every key that can be reached from one over the bridges. None leads from a retired key to one in use.
fn cross(master: &MasterKeys, id: String, key: Key) -> Vec<(String, Arc<Key>)> {
    let mut opened = vec![(id, Arc::new(key))];
    let mut at = 0;
    while let Some((under, by)) = opened.get(at).cloned() {
        for record in &master.keys {
            if opened.iter().any(|(known, _)| *known == record.id) {
                continue;
            }
            let Some(sealed) = record.bridges.get(&under) else { continue };
            let found = envelope::open(&by, &bridge_aad(&record.id, &under), sealed).ok();
            let found = found.and_then(|bytes| Key::of(&bytes)).filter(|key| kek::check(key) == record.check);
            if let Some(found) = found {
                opened.push((record.id.clone(), Arc::new(found)));
            }
        }
        at += 1;
    }
    opened
}
