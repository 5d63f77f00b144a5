//! The `[vault]` section of the configuration.

use std::fmt;
use std::num::NonZeroU32;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use serde::Deserializer;

use super::Secret;

/// A secret of the configuration: shared, never printed.
#[derive(Clone, Default)]
pub struct Hidden(Option<Arc<Secret>>);

impl Hidden {
    /// The secret, if one was given.
    pub fn expose(&self) -> Option<&str> {
        self.0.as_ref().map(|secret| secret.expose()).filter(|text| !text.is_empty())
    }
}

impl fmt::Debug for Hidden {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[not shown]")
    }
}

impl<'de> Deserialize<'de> for Hidden {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(|text| Self(Some(Arc::new(Secret::new(text)))))
    }
}

/// Where the master key is, and limits. Defaults and meaning: `config/default.toml`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// A file with the master key; empty = none.
    pub key_file: PathBuf,
    /// The master key itself, from the environment.
    pub key: Hidden,
    /// A passphrase to make the master key from.
    pub passphrase: Hidden,
    /// How old a sign-in may be to have a secret shown.
    #[serde(with = "humantime_serde")]
    pub reveal_max_age: Duration,
    /// Reveals of one user in a minute.
    pub reveals_per_minute: NonZeroU32,
    /// Changes by one user in a minute.
    pub changes_per_minute: NonZeroU32,
    /// Secrets that one tenant may have.
    pub max_secrets: NonZeroUsize,
    /// How long before its end a secret's owner is warned.
    #[serde(with = "humantime_serde")]
    pub warn_before: Duration,
    /// How long it can be seen that there was a secret that was deleted.
    #[serde(with = "humantime_serde")]
    pub keep_deleted: Duration,
}

/// Why the section is not usable.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    /// Two places for one key.
    #[error("set one of vault.key_file, vault.key and vault.passphrase, not several")]
    Several,
    /// A time beyond what makes sense.
    #[error("{0}: between 1s and 3650d")]
    Time(&'static str),
    /// More than a record can name.
    #[error("vault.max_secrets: at most 1000")]
    TooMany,
}

impl Config {
    /// Rules that cross fields.
    pub fn validate(&self) -> Result<(), Unusable> {
        let given =
            [!self.key_file.as_os_str().is_empty(), self.key.expose().is_some(), self.passphrase.expose().is_some()];
        if given.into_iter().filter(|is_given| *is_given).count() > 1 {
            return Err(Unusable::Several);
        }
        for (key, time) in [
            ("vault.reveal_max_age", self.reveal_max_age),
            ("vault.warn_before", self.warn_before),
            ("vault.keep_deleted", self.keep_deleted),
        ] {
            if !(Duration::from_secs(1)..=Duration::from_hours(24 * 3650)).contains(&time) {
                return Err(Unusable::Time(key));
            }
        }
        if self.max_secrets.get() > 1_000 {
            return Err(Unusable::TooMany);
        }
        Ok(())
    }
}
