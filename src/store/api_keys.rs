//! `apikey.<hash>`: credentials for calling us that are not a sign-in.
//!
//! A key is shown once, to whoever made it; the record holds its hash, which names the key and opens nothing.
//! Invariants: a revoked key never comes back; a record is removed only after its key was revoked or expired, to make
//! room for new ones of the same owner.

use std::fmt;
use std::ops::Bound;
use std::sync::Arc;

use serde::Deserialize;
use serde::Serialize;
use sha2::Digest;
use sha2::Sha256;
use time::OffsetDateTime;

use super::Error;
use super::Store;
use super::table::Read;
use super::table::Step;
use super::table::Table;
use super::view::Record;
use crate::ids::UserId;

/// Digits of the hash that callers see as the key's id: 64 bits, enough to tell apart the keys of one owner.
const SHOWN: usize = 16;

/// SHA-256 of a key, in lowercase hex: names it, reveals nothing.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ApiKeyId(Arc<str>);

impl ApiKeyId {
    /// The id of a key.
    pub fn of(key: &str) -> Self {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let digest = Sha256::digest(key.as_bytes());
        let digits = digest.iter().flat_map(|byte| [byte >> 4, byte & 15]);
        let hex: String = digits.map(|digit| char::from(DIGITS[usize::from(digit)])).collect();
        Self(hex.into())
    }

    fn parse(text: &str) -> Option<Self> {
        let is_hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        (text.len() == 64 && text.bytes().all(is_hex)).then(|| Self(text.into()))
    }

    /// What callers know the key by: the first digits.
    pub fn shown(&self) -> &str {
        self.0.get(..SHOWN).unwrap_or(&self.0)
    }
}

/// Whom a key speaks for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KeyOwner {
    /// The operator: it does work for every tenant.
    Fleet,
    /// One account.
    User(UserId),
}

/// A key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApiKey {
    /// The key's hash.
    pub id: ApiKeyId,
    /// Whom it speaks for.
    pub owner: KeyOwner,
    /// Names the key of the owner's account when this one was made, see `auth::Principal`: with another password, or
    /// after a logout everywhere, the account has another one and this key is void. Empty for the fleet's.
    pub account_key: Arc<str>,
    /// What its owner calls it.
    pub name: String,
    /// What it may do, as texts; whoever reads them decides which they know.
    pub scopes: Vec<Arc<str>>,
    /// Its last letters, so that people can tell keys apart.
    pub hint: Arc<str>,
    /// When it was made.
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
    /// When it ends by itself, if it does.
    #[serde(default, with = "time::serde::rfc3339::option")]
    pub expires_at: Option<OffsetDateTime>,
    /// When it was used last, some minutes behind at most.
    #[serde(default, with = "time::serde::rfc3339::option")]
    pub last_used_at: Option<OffsetDateTime>,
    /// When it was taken back.
    #[serde(default, with = "time::serde::rfc3339::option")]
    pub revoked_at: Option<OffsetDateTime>,
}

impl ApiKey {
    /// Whether the key counts at a moment. Whether its owner still exists is another question.
    pub fn is_good(&self, now: OffsetDateTime) -> bool {
        self.revoked_at.is_none() && self.expires_at.is_none_or(|end| end > now)
    }
}

impl Record for ApiKey {
    const PREFIX: &'static str = "apikey.";
    type Id = ApiKeyId;
    type Index = (KeyOwner, ApiKeyId);

    fn id(&self) -> ApiKeyId {
        self.id.clone()
    }

    fn key(&self) -> String {
        format!("{}{}", Self::PREFIX, self.id.0)
    }

    fn parse_id(rest: &str) -> Option<ApiKeyId> {
        ApiKeyId::parse(rest)
    }

    fn index(&self) -> Option<Self::Index> {
        Some((self.owner.clone(), self.id.clone()))
    }
}

/// The keys: typed records plus an in-memory view fed by the watch. Cheap to clone.
#[derive(Clone)]
pub struct ApiKeys {
    table: Table<ApiKey>,
}

impl fmt::Debug for ApiKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ApiKeys").field("keys", &self.table.len()).finish()
    }
}

impl ApiKeys {
    /// Loads the view and follows the store, on the caller's runtime, until the last handle is gone or the store is
    /// closed.
    pub async fn open(store: Arc<dyn Store>) -> Result<Self, Error> {
        Ok(Self { table: Table::open(store).await? })
    }

    /// From the view, no I/O: called on every request that brings a key.
    pub fn find(&self, id: &ApiKeyId) -> Option<Arc<ApiKey>> {
        self.table.find(id)
    }

    /// All of an owner, from the view, oldest first, also those that count no more.
    pub fn of_owner(&self, owner: &KeyOwner) -> Vec<Arc<ApiKey>> {
        let from = (owner.clone(), ApiKeyId("".into()));
        let places = self.table.view().range(Bound::Included(&from), usize::MAX, |(of, _)| of == owner);
        let mut keys: Vec<_> = places.iter().filter_map(|(_, id)| self.find(id)).collect();
        keys.sort_by_key(|key| key.created_at);
        keys
    }

    /// Every key, from the view, oldest first. For operators.
    pub fn all(&self) -> Vec<Arc<ApiKey>> {
        let mut keys = Vec::with_capacity(self.table.len());
        self.table.view().scan(|key, _| {
            keys.push(Arc::clone(key));
            true
        });
        keys.sort_by_key(|key| key.created_at);
        keys
    }

    /// Writes a new one.
    pub async fn create(&self, key: ApiKey) -> Result<(), Error> {
        let decide = |current: Option<&Read<ApiKey>>| match current {
            Some(_) => Err(Error::Exists),
            None => Ok(Step::Write(key.clone())),
        };
        self.table.change(&key.key(), decide).await.map(drop)
    }

    /// Takes a key back. Durable, and seen by [`find`](Self::find), when it returns. One that was taken back before
    /// keeps its time; one that is gone is an [`Error::Stale`].
    pub async fn revoke(&self, key: &ApiKey, now: OffsetDateTime) -> Result<(), Error> {
        let decide = |current: Option<&Read<ApiKey>>| {
            let found = &current.ok_or(Error::Stale)?.record;
            Ok(match found.revoked_at {
                Some(_) => Step::Keep,
                None => Step::Write(ApiKey { revoked_at: Some(now), ..ApiKey::clone(found) }),
            })
        };
        self.table.change(&key.key(), decide).await.map(drop)
    }

    /// Notes that a key was used, unless somebody noted a later use already.
    pub async fn used(&self, key: &ApiKey, now: OffsetDateTime) -> Result<(), Error> {
        let decide = |current: Option<&Read<ApiKey>>| {
            Ok(match current.map(|read| &read.record) {
                Some(found) if found.last_used_at == key.last_used_at => {
                    Step::Write(ApiKey { last_used_at: Some(now), ..ApiKey::clone(found) })
                }
                _ => Step::Keep,
            })
        };
        self.table.change(&key.key(), decide).await.map(drop)
    }

    /// Removes the record of a key that counts no more; one that still does is left alone.
    pub async fn forget(&self, key: &ApiKey, now: OffsetDateTime) -> Result<(), Error> {
        self.table.remove(&key.key(), |found| !found.is_good(now)).await.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use time::Duration;

    use super::*;
    use crate::store::sqlite::ControlDatabase;

    fn key(text: &str, owner: KeyOwner, now: OffsetDateTime) -> ApiKey {
        ApiKey {
            id: ApiKeyId::of(text),
            owner,
            account_key: "".into(),
            name: text.to_owned(),
            scopes: vec!["jobs".into()],
            hint: "abcd".into(),
            created_at: now,
            expires_at: Some(now + Duration::DAY),
            last_used_at: None,
            revoked_at: None,
        }
    }

    #[tokio::test]
    async fn a_revoked_key_never_comes_back_and_only_dead_keys_are_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let store: Arc<dyn Store> = Arc::new(ControlDatabase::open(&dir.path().join("control.db")).unwrap());
        let keys = ApiKeys::open(store).await.unwrap();
        let now = OffsetDateTime::now_utc();
        let ada = KeyOwner::User(UserId::parse("ada").unwrap());
        let (one, fleet) = (key("one", ada.clone(), now), key("two", KeyOwner::Fleet, now));
        keys.create(one.clone()).await.unwrap();
        keys.create(fleet.clone()).await.unwrap();
        assert!(matches!(keys.create(one.clone()).await, Err(Error::Exists)));
        assert_eq!(keys.of_owner(&ada).iter().map(|key| key.name.as_str()).collect::<Vec<_>>(), ["one"]);
        keys.forget(&one, now).await.unwrap();
        assert!(keys.find(&one.id).unwrap().is_good(now));
        keys.revoke(&one, now).await.unwrap();
        keys.used(&one, now).await.unwrap();
        keys.revoke(&one, now + Duration::HOUR).await.unwrap();
        let found = keys.find(&one.id).unwrap();
        assert!(!found.is_good(now));
        assert_eq!((found.revoked_at, found.last_used_at), (Some(now), Some(now)));
        assert!(!fleet.is_good(now + Duration::DAY));
        keys.forget(&one, now).await.unwrap();
        assert!(keys.find(&one.id).is_none());
        assert!(matches!(keys.revoke(&one, now).await, Err(Error::Stale)));
    }
}
