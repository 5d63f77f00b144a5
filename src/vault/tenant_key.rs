//! A tenant's data key: made when it is first needed, sealed by the master key, opened for each use.
//!
//! The record also names the newest version of each secret, under a tag. A secret's record is written first and the
//! head after it, so a record may be one ahead; one that is behind was put back from somewhere, and does not open.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use time::OffsetDateTime;

use super::Error;
use super::envelope;
use super::envelope::Aad;
use super::envelope::Key;
use super::envelope::Kind;
use super::envelope::Unreadable;
use super::keyring::Keyring;
use crate::ids::TenantId;
use crate::store::secrets::KeyId;
use crate::store::vault_keys::TenantKey;

/// What the tag over the heads is for.
const HEADS: &str = "pocketfleet vault: newest versions 1";

/// A data key that is open.
#[derive(Debug)]
pub(super) struct DataKey {
    pub(super) id: String,
    pub(super) key: Key,
}

fn wrap_aad(tenant: &TenantId, dek: &str, kek: &str) -> Aad {
    Aad::new(Kind::TenantKey).with(tenant.as_str()).with(dek).with(kek)
}

/// A new data key, and its record without heads.
pub(super) fn make(keyring: &Keyring, tenant: &TenantId, now: OffsetDateTime) -> Result<TenantKey, Unreadable> {
    let kek = keyring.primary().to_owned();
    let master = keyring.find(&kek).ok_or(Unreadable)?;
    let (dek, key) = (KeyId::random().as_str().to_owned(), Key::random());
    let wrapped = envelope::seal(master, &wrap_aad(tenant, &dek, &kek), key.bytes())?;
    let mut record = TenantKey {
        tenant: tenant.clone(),
        dek: dek.clone(),
        kek,
        wrapped,
        created_at: now,
        heads: BTreeMap::new(),
        heads_tag: String::new(),
    };
    record.heads_tag = tag(&DataKey { id: dek, key }, &record);
    Ok(record)
}

/// Opens a data key and checks that the heads are what was written with it.
pub(super) fn open(keyring: &Keyring, record: &TenantKey) -> Result<DataKey, Unreadable> {
    let data = unwrap(keyring, record)?;
    // Not a secret: who can read the record sees the tag. Equality needs no care with time.
    if tag(&data, record) == record.heads_tag { Ok(data) } else { Err(Unreadable) }
}

fn unwrap(keyring: &Keyring, record: &TenantKey) -> Result<DataKey, Unreadable> {
    let master = keyring.find(&record.kek).ok_or(Unreadable)?;
    let aad = wrap_aad(&record.tenant, &record.dek, &record.kek);
    let key = Key::of(&envelope::open(master, &aad, &record.wrapped)?).ok_or(Unreadable)?;
    Ok(DataKey { id: record.dek.clone(), key })
}

/// The record with the data key sealed by the primary master key.
pub(super) fn rewrap(keyring: &Keyring, record: &TenantKey) -> Result<TenantKey, Unreadable> {
    let data = unwrap(keyring, record)?;
    let kek = keyring.primary().to_owned();
    let master = keyring.find(&kek).ok_or(Unreadable)?;
    let wrapped = envelope::seal(master, &wrap_aad(&record.tenant, &record.dek, &kek), data.key.bytes())?;
    Ok(TenantKey { kek, wrapped, ..record.clone() })
}

/// The record with other heads; refused when the present ones are not what was written.
pub(super) fn with_heads(
    keyring: &Keyring,
    record: &TenantKey,
    change: impl FnOnce(&mut BTreeMap<KeyId, u32>),
) -> Result<TenantKey, Error> {
    let data = open(keyring, record)?;
    let mut record = record.clone();
    change(&mut record.heads);
    record.heads_tag = tag(&data, &record);
    Ok(record)
}

fn tag(data: &DataKey, record: &TenantKey) -> String {
    let aad = Aad::new(Kind::TenantKey).with(record.tenant.as_str()).with(&data.id);
    let aad = record.heads.iter().fold(aad, |aad, (id, version)| aad.with(id.as_str()).with(version.to_be_bytes()));
    STANDARD.encode(data.key.tag(HEADS, &aad))
}

/// Whether a secret of this version is the newest, or was written a moment ago.
pub(super) fn is_newest(record: &TenantKey, id: &KeyId, version: u32) -> bool {
    record.heads.get(id).is_some_and(|head| version == *head || version == head.saturating_add(1))
}
