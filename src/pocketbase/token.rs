//! `PocketBase`'s tokens, verified and minted without asking it.
//!
//! A token is an HS256 JWT whose key is the record's `tokenKey` followed by the secret of its kind in the
//! collection's options (`PocketBase` 0.40, `core/record_tokens.go`; checked by the tests against the real binary).

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit, Mac};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Longest token that is looked at, in bytes. Real ones have about 230.
pub const MAX_BYTES: usize = 2048;

/// The header every `PocketBase` token starts with: `{"alg":"HS256","typ":"JWT"}`.
const HEADER: &str = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9";

/// Why a token is not accepted. Callers learn none of it: they get 401.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Not three base64url parts with the claims we need, or not HS256.
    #[error("the token is malformed")]
    Malformed,
    /// Signed with another key, or changed.
    #[error("the token's signature does not match")]
    Signature,
    /// Past its `exp`, or without one (`PocketBase` would accept that for ever).
    #[error("the token has expired")]
    Expired,
}

/// What a token claims. Claims of an unverified token are hints for finding the key, nothing more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Claims {
    /// Id (or name) of the auth collection.
    pub collection_id: String,
    /// Expiry in seconds since the epoch. Required here.
    pub exp: u64,
    /// Id of the record.
    pub id: String,
    /// Whether `auth-refresh` gives a new token.
    #[serde(default)]
    pub refreshable: bool,
    /// `auth`, `file`, `verification`, ...
    #[serde(rename = "type")]
    pub kind: String,
    /// Issued at, which `PocketBase` itself never sets; one in the future makes the token invalid.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub iat: Option<u64>,
    /// Ours, on file tokens that we mint: the session they were asked for with, so that they end with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<String>,
}

/// The secret half of a record's tokens: `tokenKey` + collection secret.
#[derive(Clone, PartialEq, Eq)]
pub struct Key(String);

impl Key {
    /// Joins the two halves as `PocketBase` does.
    pub fn new(token_key: &str, collection_secret: &str) -> Self {
        Self(format!("{token_key}{collection_secret}"))
    }

    /// The key in clear, for the pipe to a process of ours.
    pub(super) fn into_clear(self) -> String {
        self.0
    }

    /// Names the key and reveals nothing of it: two tokens with one id were signed with one key.
    pub fn id(&self) -> Arc<str> {
        let digest = Sha256::new().chain_update(b"key id\0").chain_update(self.0.as_bytes()).finalize();
        URL_SAFE_NO_PAD.encode(&digest[..16]).into()
    }

    fn mac(&self, signed: &[u8]) -> Option<Hmac<Sha256>> {
        let mut mac = <Hmac<Sha256> as KeyInit>::new_from_slice(self.0.as_bytes()).ok()?;
        mac.update(signed);
        Some(mac)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key([redacted])")
    }
}

/// A token that parsed; its claims are unproved until [`verify`](Self::verify).
#[derive(Debug)]
pub struct Unverified<'a> {
    signed: &'a str,
    signature: &'a str,
    claims: Claims,
}

impl<'a> Unverified<'a> {
    /// Takes a token apart. Only HS256 is accepted, whatever the token says.
    pub fn parse(token: &'a str) -> Result<Self, Error> {
        if token.len() > MAX_BYTES {
            return Err(Error::Malformed);
        }
        let (signed, signature) = token.rsplit_once('.').ok_or(Error::Malformed)?;
        let (header, payload) = signed.split_once('.').ok_or(Error::Malformed)?;
        if header != HEADER && !is_hs256(header) {
            return Err(Error::Malformed);
        }
        let payload = URL_SAFE_NO_PAD.decode(payload).map_err(|_| Error::Malformed)?;
        let claims = serde_json::from_slice(&payload).map_err(|_| Error::Malformed)?;
        Ok(Self { signed, signature, claims })
    }

    /// The claims, unproved.
    pub fn claims(&self) -> &Claims {
        &self.claims
    }

    /// Whether it says itself that it is not valid at this time.
    pub fn is_expired(&self, now: SystemTime) -> bool {
        let now = seconds(now);
        self.claims.exp <= now || self.claims.iat.is_some_and(|iat| iat > now)
    }

    /// Checks the signature in constant time, then the times.
    pub fn verify(self, key: &Key, now: SystemTime) -> Result<Claims, Error> {
        let signature = URL_SAFE_NO_PAD.decode(self.signature).map_err(|_| Error::Malformed)?;
        let mac = key.mac(self.signed.as_bytes()).ok_or(Error::Signature)?;
        mac.verify_slice(&signature).map_err(|_| Error::Signature)?;
        if self.is_expired(now) {
            return Err(Error::Expired);
        }
        Ok(self.claims)
    }
}

fn is_hs256(header: &str) -> bool {
    #[derive(Deserialize)]
    struct Header {
        alg: String,
    }
    URL_SAFE_NO_PAD
        .decode(header)
        .ok()
        .and_then(|bytes| serde_json::from_slice::<Header>(&bytes).ok())
        .is_some_and(|header| header.alg == "HS256")
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// A record that tokens can be minted for: ids and key. Debug shows no key.
#[derive(Debug, Clone)]
pub struct Signer {
    /// Id of the auth collection.
    pub collection_id: String,
    /// Id of the record.
    pub record_id: String,
    /// Its key for auth tokens.
    pub key: Key,
}

impl Signer {
    /// Mints an auth token that lives `ttl` from `now` and cannot be refreshed.
    pub fn mint(&self, now: SystemTime, ttl: Duration) -> String {
        self.sign("auth", now, ttl, None)
    }

    /// The same for a file token, which protected files ask for as `?token=`; the key must be that of file tokens.
    pub fn mint_file(&self, now: SystemTime, ttl: Duration, session: Option<String>) -> String {
        self.sign("file", now, ttl, session)
    }

    fn sign(&self, kind: &str, now: SystemTime, ttl: Duration, session: Option<String>) -> String {
        let claims = Claims {
            collection_id: self.collection_id.clone(),
            exp: seconds(now).saturating_add(ttl.as_secs()),
            id: self.record_id.clone(),
            refreshable: false,
            kind: kind.to_owned(),
            iat: None,
            session,
        };
        let payload = serde_json::to_vec(&claims).unwrap_or_default();
        let signed = format!("{HEADER}.{}", URL_SAFE_NO_PAD.encode(payload));
        let signature = self.key.mac(signed.as_bytes()).map(|mac| mac.finalize().into_bytes());
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature.unwrap_or_default()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signer() -> Signer {
        Signer { collection_id: "_pb_users_auth_".into(), record_id: "b5c3xih3gtjb48z".into(), key: Key::new("a", "b") }
    }

    #[test]
    fn minted_token_verifies_until_it_expires() {
        let now = UNIX_EPOCH + Duration::from_secs(1_000);
        let token = signer().mint(now, Duration::from_mins(1));
        let verify = |at| Unverified::parse(&token).unwrap().verify(&signer().key, at);
        assert_eq!(verify(now).unwrap().id, "b5c3xih3gtjb48z");
        assert_eq!(verify(now + Duration::from_mins(1)), Err(Error::Expired));
    }

    #[test]
    fn other_key_other_algorithm_and_any_changed_byte_are_refused() {
        let now = UNIX_EPOCH;
        let token = signer().mint(now, Duration::from_mins(1));
        assert_eq!(Unverified::parse(&token).unwrap().verify(&Key::new("ab", ""), now).map(drop), Ok(()), "same bytes");
        assert_eq!(Unverified::parse(&token).unwrap().verify(&Key::new("a", "c"), now), Err(Error::Signature));
        let none = format!("{}.{}.", URL_SAFE_NO_PAD.encode(r#"{"alg":"none"}"#), token.split('.').nth(1).unwrap());
        assert!(matches!(Unverified::parse(&none), Err(Error::Malformed)));
        for at in 0..token.len() {
            let mut changed = token.clone().into_bytes();
            changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
            let changed = String::from_utf8(changed).unwrap();
            // The last character of a 32-byte signature carries two unused bits, which the decoder refuses.
            let outcome = Unverified::parse(&changed).and_then(|t| t.verify(&signer().key, now));
            assert!(outcome.is_err(), "byte {at}");
        }
    }

    #[test]
    fn token_without_expiry_is_malformed() {
        let payload = URL_SAFE_NO_PAD.encode(r#"{"collectionId":"c","id":"i","type":"auth"}"#);
        assert!(matches!(Unverified::parse(&format!("{HEADER}.{payload}.AA")), Err(Error::Malformed)));
    }
}
