//! Names of jobs: 26 characters that sort by the time they were given, or that follow from a key.
//!
//! A name that follows from a key makes "at most one job with this key" a property of the store: two nodes that add
//! the same job at the same time create the same record, and one of them learns that it exists.

use std::fmt;

use serde::Deserialize;
use serde::Deserializer;
use serde::Serialize;
use serde::Serializer;
use sha2::Digest;
use sha2::Sha256;
use time::OffsetDateTime;

use crate::ids::TenantId;

const LENGTH: usize = 26;
/// Crockford's base 32 in lower case: no i, l, o and u.
const DIGITS: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";

/// The name of a job, unique in the store.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct JobId([u8; LENGTH]);

/// A text that is no name of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the id of a job has 26 characters of a-z and 0-9")]
pub struct InvalidJobId;

impl JobId {
    /// Parses the name, refusing everything outside its alphabet.
    pub fn parse(text: &str) -> Result<Self, InvalidJobId> {
        let bytes: [u8; LENGTH] = text.as_bytes().try_into().map_err(|_| InvalidJobId)?;
        let fits = bytes.iter().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
        if fits { Ok(Self(bytes)) } else { Err(InvalidJobId) }
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        // Only ASCII ever gets in.
        str::from_utf8(&self.0).unwrap_or_default()
    }

    /// No name sorts before it.
    pub(super) fn lowest() -> Self {
        Self([b'0'; LENGTH])
    }

    /// The name of the one job of a tenant that has this idempotency key.
    pub(super) fn of_key(tenant: &TenantId, key: &str) -> Self {
        Self::derived(b'k', &[tenant.as_str(), key])
    }

    /// The name of the n-th job of a tenant that has this `dedupe` text.
    pub(super) fn of_dedupe(tenant: &TenantId, dedupe: &str, generation: u32) -> Self {
        Self::derived(b'd', &[tenant.as_str(), dedupe, &generation.to_string()])
    }

    /// The first character is one that no name made from a time begins with before the year 10889.
    fn derived(first: u8, words: &[&str]) -> Self {
        let mut hash = Sha256::new();
        for word in words {
            hash.update((word.len() as u64).to_be_bytes());
            hash.update(word.as_bytes());
        }
        let digest = hash.finalize();
        let bits = digest.iter().take(16).fold(0_u128, |bits, byte| (bits << 8) | u128::from(*byte));
        let mut name = encode(bits);
        name[0] = first;
        Self(name)
    }
}

fn encode(mut bits: u128) -> [u8; LENGTH] {
    let mut name = [0; LENGTH];
    for digit in name.iter_mut().rev() {
        *digit = DIGITS[(bits & 31) as usize];
        bits >>= 5;
    }
    name
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Serialize for JobId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for JobId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        Self::parse(&text).map_err(serde::de::Error::custom)
    }
}

/// Gives names that grow: 48 bits of milliseconds, 80 bits of chance, plus one for each further name of the same
/// millisecond. A clock that goes back is waited out under the last millisecond.
#[derive(Debug, Default)]
pub(super) struct Names {
    last: u128,
}

impl Names {
    pub(super) fn next(&mut self, now: OffsetDateTime) -> JobId {
        let millis = u128::try_from(now.unix_timestamp_nanos() / 1_000_000).unwrap_or(0) & ((1 << 48) - 1);
        // The top bit of the chance is clear, so that adding one does not reach the time.
        let fresh = (millis << 80) | (rand::random::<u128>() & ((1 << 79) - 1));
        self.last = if fresh >> 80 > self.last >> 80 { fresh } else { self.last + 1 };
        JobId(encode(self.last))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_grow_even_when_the_clock_goes_back() {
        let mut names = Names::default();
        let now = OffsetDateTime::now_utc();
        let mut last = names.next(now);
        for offset in [0, 0, -3600, 0, 1, -1, 5] {
            let next = names.next(now + time::Duration::seconds(offset));
            assert!(next > last, "{next} after {last}");
            assert_eq!(JobId::parse(next.as_str()), Ok(next));
            last = next;
        }
    }

    #[test]
    fn names_from_keys_are_the_same_for_the_same_tenant_and_key_only() {
        let [a, b] = ["a", "b"].map(|id| TenantId::parse(id).unwrap());
        assert_eq!(JobId::of_key(&a, "x"), JobId::of_key(&a, "x"));
        assert_ne!(JobId::of_key(&a, "x"), JobId::of_key(&b, "x"));
        assert_ne!(JobId::of_key(&a, "x"), JobId::of_key(&a, "y"));
        assert_ne!(JobId::of_dedupe(&a, "x", 0), JobId::of_dedupe(&a, "x", 1));
        assert!(JobId::of_key(&a, "x") > Names::default().next(OffsetDateTime::now_utc()));
    }

    #[test]
    fn what_is_no_name_is_refused() {
        for bad in ["", "a", "0123456789012345678901234.", "0123456789012345678901234A", "012345678901234567890123456"]
        {
            assert!(JobId::parse(bad).is_err(), "{bad:?}");
        }
    }
}
