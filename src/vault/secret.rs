//! A secret in clear: the one type that holds it.
//!
//! It is wiped when dropped, prints as nothing, and can be neither copied nor written out by accident: there is no
//! `Clone`, no `Display`, no `Serialize`. Whoever needs the text asks for it by name, so that a review finds each place.

use std::fmt;

use serde::Deserialize;
use serde::Deserializer;
use zeroize::Zeroizing;

/// A text that must never reach a log, a database, an argument, the environment or an error.
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// Takes the text over. Copies that the caller still has are the caller's to wipe.
    pub fn new(text: String) -> Self {
        Self(Zeroizing::new(text))
    }

    /// The text itself.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Its length in bytes.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Straight from a request's body: no other copy stays behind.
impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(Self::new)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret([not shown])")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_prints_as_nothing() {
        let secret = Secret::new("hunter2-hunter2".to_owned());
        assert_eq!((secret.expose(), secret.len()), ("hunter2-hunter2", 15));
        assert_eq!(format!("{secret:?} {:#?}", Some(&secret)).matches("hunter2").count(), 0);
    }
}
