//! Identifiers that are parsed once, at the edge, and trusted afterwards.
//!
//! An identifier ends up in file names and addresses, so the parsers accept a small alphabet and nothing else.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize};

/// Why a text is not an identifier.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("an identifier has 1 to 32 characters of a-z, 0-9 and inner hyphens")]
pub struct InvalidId;

fn is_valid(text: &str) -> bool {
    let bytes = text.as_bytes();
    (1..=32).contains(&bytes.len())
        && bytes.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-')
        && bytes[0] != b'-'
        && bytes[bytes.len() - 1] != b'-'
}

/// Defines a cheap-to-clone identifier type over the shared alphabet.
macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
        #[serde(transparent)]
        pub struct $name(Arc<str>);

        impl $name {
            /// Parses the identifier, refusing everything outside its alphabet.
            pub fn parse(text: &str) -> Result<Self, InvalidId> {
                if is_valid(text) { Ok(Self(text.into())) } else { Err(InvalidId) }
            }

            /// The first of all in order: no identifier sorts before it.
            pub fn lowest() -> Self {
                Self("0".into())
            }

            /// The identifier as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
                Self::parse(&text).map_err(serde::de::Error::custom)
            }
        }
    };
}

id! {
    /// A user of the global instance: the id of the row in its `users` collection.
    UserId
}

id! {
    /// A tenant: the unit of isolation. A personal tenant has its owner's id, so that there is one at most.
    TenantId
}

impl TenantId {
    /// The global instance, which is supervised like a tenant. `PocketBase` ids have 15 characters, so no user
    /// can take this name.
    pub fn global() -> Self {
        Self("global".into())
    }

    /// Whether this names the global instance.
    pub fn is_global(&self) -> bool {
        &*self.0 == "global"
    }

    /// The personal tenant of a user.
    pub fn personal(user: &UserId) -> Self {
        Self(user.0.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_leave_their_folder_are_refused() {
        for bad in ["", ".", "..", "a/b", "a b", "-a", "a-", "A", "ä", "a\0", "abcdefghijklmnopqrstuvwxyz0123456"] {
            assert_eq!(TenantId::parse(bad), Err(InvalidId), "{bad:?}");
        }
        assert_eq!(TenantId::parse("b5c3xih3gtjb48z").unwrap().as_str(), "b5c3xih3gtjb48z");
    }
}
