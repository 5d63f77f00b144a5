//! What a key, a prefix and a value may be: the common ground of every backend, checked before any engine sees them.
//!
//! The rules are those of NATS subjects narrowed to ASCII, so that records can move there without renaming.

use super::Error;
use super::MAX_BATCH;

/// Longest key or prefix, in bytes.
pub const MAX_KEY_BYTES: usize = 200;

/// Largest value of a record or message, in bytes.
pub const MAX_VALUE_BYTES: usize = 1 << 20;

fn is_word(word: &str) -> bool {
    !word.is_empty() && word.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
}

/// Accepts words joined by dots.
pub(super) fn check_key(key: &str) -> Result<(), Error> {
    if key.is_empty() || key.len() > MAX_KEY_BYTES {
        return Err(Error::Invalid("a key has 1 to 200 bytes"));
    }
    if !key.split('.').all(is_word) {
        return Err(Error::Invalid("a key is words of A-Z, a-z, 0-9, _ and - joined by dots"));
    }
    Ok(())
}

/// Accepts the empty prefix and whole words that end with a dot.
pub(super) fn check_prefix(prefix: &str) -> Result<(), Error> {
    if prefix.is_empty() {
        return Ok(());
    }
    match prefix.strip_suffix('.') {
        Some(words) => check_key(words),
        None => Err(Error::Invalid("a prefix is empty or ends with a dot")),
    }
}

/// Accepts values up to the limit.
pub(super) fn check_value(value: &[u8]) -> Result<(), Error> {
    if value.len() > MAX_VALUE_BYTES {
        return Err(Error::Invalid("a value has at most 1 MiB"));
    }
    Ok(())
}

/// Accepts batches up to the limit.
pub(super) fn check_batch(records: usize) -> Result<(), Error> {
    if records > MAX_BATCH {
        return Err(Error::Invalid("a batch has at most 10000 records"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_words_joined_by_dots() {
        for good in ["a", "tenant.global", "session.u-1.ABC_9"] {
            assert!(check_key(good).is_ok(), "{good:?}");
        }
        let long = "a".repeat(201);
        for bad in ["", ".", "a.", ".a", "a..b", "a b", "a/b", "a*", "a>", "ä", "a\0", "a\n", long.as_str()] {
            assert!(check_key(bad).is_err(), "{bad:?}");
        }
        assert!(check_key(&"a".repeat(200)).is_ok());
    }

    #[test]
    fn prefixes_end_at_a_word() {
        for good in ["", "a.", "a.b."] {
            assert!(check_prefix(good).is_ok(), "{good:?}");
        }
        for bad in ["a", ".", "a..", "a%."] {
            assert!(check_prefix(bad).is_err(), "{bad:?}");
        }
    }
}
