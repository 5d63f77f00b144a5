//! `secret.<tenant>.<key id>`: users' secrets, sealed. Nothing here opens anything.
//!
//! A deleted secret leaves its record without the ciphertext for a while, so that an operator can tell what was there;
//! users do not see it.

use std::fmt;
use std::ops::Bound;
use std::sync::Arc;

use serde::Deserialize;
use serde::Deserializer;
use serde::Serialize;
use serde_json::Value;
use time::OffsetDateTime;

use super::Error;
use super::Store;
use super::table::Read;
use super::table::Step;
use super::table::Table;
use super::view::Record;
use crate::ids::TenantId;

/// Names one secret of a tenant: a random UUID.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct KeyId(Arc<str>);

impl KeyId {
    /// A new one (version 4).
    pub fn random() -> Self {
        let mut bytes: [u8; 16] = rand::random();
        bytes[6] = (bytes[6] & 0x0f) | 0x40;
        bytes[8] = (bytes[8] & 0x3f) | 0x80;
        let hex = format!("{:032x}", u128::from_be_bytes(bytes));
        let parts = [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]];
        Self(parts.join("-").into())
    }

    /// None: the text is not a UUID in lower case with hyphens.
    pub fn parse(text: &str) -> Option<Self> {
        let is_id = text.len() == 36
            && text.bytes().enumerate().all(|(at, byte)| match at {
                8 | 13 | 18 | 23 => byte == b'-',
                _ => byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte),
            });
        is_id.then(|| Self(text.into()))
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn lowest() -> Self {
        Self("".into())
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for KeyId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        Self::parse(&text).ok_or_else(|| serde::de::Error::custom("not a key id"))
    }
}

/// One secret, sealed.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct SealedSecret {
    /// Whose.
    pub tenant: TenantId,
    /// Which.
    pub key_id: KeyId,
    /// What it is for.
    pub service: String,
    /// What its owner calls it; one service may have several.
    pub label: String,
    /// One more at each change of anything that is sealed or bound.
    pub version: u32,
    /// Names the data key that sealed it.
    pub dek: String,
    /// The envelope; none for a deleted one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sealed: Option<String>,
    /// What goes with it and is not secret.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub settings: Value,
    /// The last characters, if it is long enough to show them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// When it was first stored.
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
    /// When it was changed last.
    #[serde(with = "time::serde::rfc3339")]
    pub updated_at: OffsetDateTime,
    /// When it stops being used.
    #[serde(default, with = "time::serde::rfc3339::option", skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<OffsetDateTime>,
    /// About when a worker used it last; not to the minute.
    #[serde(default, with = "time::serde::rfc3339::option", skip_serializing_if = "Option::is_none")]
    pub last_used_at: Option<OffsetDateTime>,
    /// For which end of its time its owner was warned.
    #[serde(default, with = "time::serde::rfc3339::option", skip_serializing_if = "Option::is_none")]
    pub warned_of: Option<OffsetDateTime>,
    /// When it was deleted.
    #[serde(default, with = "time::serde::rfc3339::option", skip_serializing_if = "Option::is_none")]
    pub deleted_at: Option<OffsetDateTime>,
}

impl fmt::Debug for SealedSecret {
    // Labels and settings are a user's own words.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("SealedSecret");
        shown.field("tenant", &self.tenant).field("key_id", &self.key_id).field("service", &self.service);
        shown.finish_non_exhaustive()
    }
}

fn key_of(tenant: &TenantId, id: &KeyId) -> String {
    format!("{}{tenant}.{id}", SealedSecret::PREFIX)
}

impl Record for SealedSecret {
    const PREFIX: &'static str = "secret.";
    type Id = (TenantId, KeyId);
    type Index = (TenantId, KeyId);

    fn id(&self) -> Self::Id {
        (self.tenant.clone(), self.key_id.clone())
    }

    fn key(&self) -> String {
        key_of(&self.tenant, &self.key_id)
    }

    fn parse_id(rest: &str) -> Option<Self::Id> {
        let (tenant, id) = rest.split_once('.')?;
        Some((TenantId::parse(tenant).ok()?, KeyId::parse(id)?))
    }

    fn index(&self) -> Option<Self::Index> {
        Some(self.id())
    }
}

/// The secrets: typed records plus an in-memory view fed by the watch. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Secrets {
    table: Table<SealedSecret>,
}

impl Secrets {
    /// Loads the view and follows the store, on the caller's runtime, until the last handle is gone or the store is
    /// closed.
    pub async fn open(store: Arc<dyn Store>) -> Result<Self, Error> {
        Ok(Self { table: Table::open(store).await? })
    }

    /// From the view, no I/O; deleted ones too.
    pub fn find(&self, tenant: &TenantId, id: &KeyId) -> Option<Arc<SealedSecret>> {
        self.table.find(&(tenant.clone(), id.clone()))
    }

    /// All of a tenant's, from the view, deleted ones too.
    pub fn of_tenant(&self, tenant: &TenantId) -> Vec<Arc<SealedSecret>> {
        let from = (tenant.clone(), KeyId::lowest());
        let places = self.table.view().range(Bound::Included(&from), usize::MAX, |(owner, _)| owner == tenant);
        places.iter().filter_map(|place| self.table.find(place)).collect()
    }

    /// Changes a record by compare-and-swap; `decide` judges each time anew and returns what to write.
    pub async fn change(
        &self,
        tenant: &TenantId,
        id: &KeyId,
        mut decide: impl FnMut(Option<&SealedSecret>) -> Result<Option<SealedSecret>, Error> + Send,
    ) -> Result<Option<Arc<SealedSecret>>, Error> {
        let decide = |read: Option<&Read<SealedSecret>>| {
            Ok(decide(read.map(|read| &*read.record))?.map_or(Step::Keep, Step::Write))
        };
        self.table.change(&key_of(tenant, id), decide).await
    }

    /// Removes a record for good, if it is still deleted.
    pub async fn purge(&self, tenant: &TenantId, id: &KeyId) -> Result<bool, Error> {
        Ok(self.table.remove(&key_of(tenant, id), |secret| secret.deleted_at.is_some()).await?.is_some())
    }

    /// At most `limit` records that `wanted` names, in no order. One pass over memory.
    pub fn select(&self, limit: usize, wanted: impl Fn(&SealedSecret) -> bool) -> Vec<Arc<SealedSecret>> {
        let mut found = Vec::new();
        self.table.view().scan(|secret, _| {
            if wanted(secret) {
                found.push(Arc::clone(secret));
            }
            found.len() < limit
        });
        found
    }

    /// How many records there are, those of deleted secrets included.
    pub fn len(&self) -> usize {
        self.table.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_id_is_a_uuid_and_nothing_else() {
        let id = KeyId::random();
        assert_eq!(KeyId::parse(id.as_str()), Some(id.clone()));
        assert_eq!(id.as_str().as_bytes()[14], b'4');
        assert_ne!(KeyId::random(), id);
        for bad in ["", "x", "../../etc/passwd", "00000000000000000000000000000000", &id.as_str()[1..]] {
            assert_eq!(KeyId::parse(bad), None, "{bad:?}");
        }
        assert_eq!(KeyId::parse("0B8F9C0E-6b7e-4d62-9a53-6a1f0f2f3c11"), None);
    }
}
