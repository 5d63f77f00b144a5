//! What stays of an erased tenant: a signed record that says what was erased, when, and at whose word. It holds ids and
//! counts and nothing else of whoever it was.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;

use bytes::Bytes;
use serde::Deserialize;
use serde::Serialize;
use sha2::Digest;
use sha2::Sha256;
use time::OffsetDateTime;

use super::Error;
use crate::ids::TenantId;
use crate::store;
use crate::store::Store;
use crate::store::tenants::Kind;
use crate::vault::Signature;
use crate::vault::Vault;

/// What the keys of records begin with: `erasure.<tenant>.<second of the deletion>`.
const PREFIX: &str = "erasure.";
/// What the keys of the public keys begin with that ever signed here.
const KEYS: &str = "erasurekey.";
/// What the signing key is for.
const PURPOSE: &str = "pocketfleet erasure: signing key 1";

/// What was erased.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Erased {
    /// The form of this record.
    pub version: u8,
    /// The tenant, which is also the account if it was personal.
    pub tenant: TenantId,
    /// What it was.
    pub kind: Kind,
    /// When it was deleted.
    #[serde(with = "time::serde::rfc3339")]
    pub deleted_at: OffsetDateTime,
    /// Who deleted it.
    pub deleted_by: String,
    /// When the erasure began.
    #[serde(with = "time::serde::rfc3339")]
    pub begun_at: OffsetDateTime,
    /// Who had it erased: `system` when its time was over.
    pub erased_by: String,
    /// When nothing of it was left.
    #[serde(with = "time::serde::rfc3339")]
    pub erased_at: OffsetDateTime,
    /// How much of what there was.
    pub counts: BTreeMap<String, u64>,
    /// The entry of the audit log that says the same.
    pub audit_seq: u64,
}

/// The record with its signature.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Signed {
    /// What was erased.
    pub erasure: Erased,
    /// Over the record as JSON without spaces, its fields in the order above.
    pub signature: Signature,
}

/// What looking at a record came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It was signed here and is as it was.
    Valid,
    /// The signature does not fit: it was changed.
    Changed,
    /// It fits, by a key that never signed here.
    ForeignKey,
}

fn bytes_of(erased: &Erased) -> Result<Vec<u8>, store::Error> {
    serde_json::to_vec(erased).map_err(store::Error::engine)
}

fn name_of(public_key: &str) -> String {
    let hash = Sha256::digest(public_key.as_bytes());
    hash[..16].iter().fold(KEYS.to_owned(), |mut name, byte| {
        // Writing to a String cannot fail.
        let _infallible = write!(name, "{byte:02x}");
        name
    })
}

fn key_of(tenant: &TenantId, deleted_at: OffsetDateTime) -> String {
    format!("{PREFIX}{tenant}.{}", deleted_at.unix_timestamp())
}

/// The records of erasures, in the store.
#[derive(Debug, Clone)]
pub(super) struct Records(pub(super) Arc<dyn Store>);

impl Records {
    /// The record of one deletion.
    pub(super) async fn find(&self, tenant: &TenantId, deleted_at: OffsetDateTime) -> Result<Option<Signed>, Error> {
        let found = self.0.get(&key_of(tenant, deleted_at)).await?;
        Ok(found.and_then(|entry| serde_json::from_slice(&entry.value).ok()))
    }

    /// All of them, in the order of the tenants' ids.
    pub(super) async fn all(&self) -> Result<Vec<Signed>, Error> {
        let entries = self.0.list(PREFIX).await?;
        Ok(entries.iter().filter_map(|entry| serde_json::from_slice(&entry.value).ok()).collect())
    }

    /// Signs a record and keeps it, with the public key. One that is there stays.
    pub(super) async fn keep(&self, vault: &Vault, erasure: Erased) -> Result<Signed, Error> {
        let signature = vault.sign(PURPOSE, &bytes_of(&erasure)?)?;
        self.create(&name_of(&signature.public_key), Bytes::from(signature.public_key.clone())).await?;
        let key = key_of(&erasure.tenant, erasure.deleted_at);
        let signed = Signed { erasure, signature };
        let value = serde_json::to_vec(&signed).map_err(store::Error::engine)?;
        self.create(&key, Bytes::from(value)).await?;
        Ok(signed)
    }

    async fn create(&self, key: &str, value: Bytes) -> Result<(), store::Error> {
        match self.0.create(key, value).await {
            Ok(_) | Err(store::Error::Exists) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Looks at a record that somebody shows.
    pub(super) async fn verify(&self, shown: &Signed) -> Result<Verdict, Error> {
        if !shown.signature.fits(&bytes_of(&shown.erasure)?) {
            return Ok(Verdict::Changed);
        }
        let known = self.0.get(&name_of(&shown.signature.public_key)).await?;
        let is_ours = known.is_some_and(|entry| entry.value == shown.signature.public_key.as_bytes());
        Ok(if is_ours { Verdict::Valid } else { Verdict::ForeignKey })
    }
}
