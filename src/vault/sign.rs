//! Signatures of pocketfleet itself, by a key that is made from the master key and exists nowhere else.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::signature::ED25519;
use ring::signature::Ed25519KeyPair;
use ring::signature::KeyPair;
use ring::signature::UnparsedPublicKey;
use serde::Deserialize;
use serde::Serialize;

use super::Error;
use super::Vault;
use super::envelope::Aad;
use super::envelope::Kind;

/// The name of the one algorithm.
const ALGORITHM: &str = "Ed25519";

/// A signature, with the public half of the key that made it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Signature {
    /// Always `Ed25519`.
    pub algorithm: String,
    /// The public key, in Base64. It changes when the master key is replaced.
    pub public_key: String,
    /// The signature, in Base64.
    pub value: String,
}

impl Signature {
    /// Whether it is one of these bytes. Says nothing about whose the key is.
    pub fn fits(&self, bytes: &[u8]) -> bool {
        let (Ok(key), Ok(value)) = (STANDARD.decode(&self.public_key), STANDARD.decode(&self.value)) else {
            return false;
        };
        self.algorithm == ALGORITHM && UnparsedPublicKey::new(&ED25519, key).verify(bytes, &value).is_ok()
    }
}

impl Vault {
    /// Signs bytes with the key of a purpose, which is made from the present master key.
    pub fn sign(&self, purpose: &'static str, bytes: &[u8]) -> Result<Signature, Error> {
        let master = self.inner.keyring.load().primary_key().ok_or(Error::Unreadable)?;
        let seed = zeroize::Zeroizing::new(master.tag(purpose, &Aad::new(Kind::MasterKey)));
        let pair = Ed25519KeyPair::from_seed_unchecked(seed.as_slice()).map_err(|_| Error::Unreadable)?;
        Ok(Signature {
            algorithm: ALGORITHM.to_owned(),
            public_key: STANDARD.encode(pair.public_key().as_ref()),
            value: STANDARD.encode(pair.sign(bytes).as_ref()),
        })
    }
}
