//! The `[tenancy]` section of the configuration.

use std::time::Duration;

use serde::Deserialize;

/// The `[tenancy]` section of the configuration; `config/default.toml` documents every key.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "each key is documented where users read it: config/default.toml")]
pub struct Config {
    #[serde(with = "humantime_serde")]
    pub keep_deleted: Duration,
    #[serde(with = "humantime_serde")]
    pub sweep_interval: Duration,
}

/// A value that makes no sense.
#[derive(Debug, thiserror::Error)]
pub enum Invalid {
    /// The period of deleted tenants.
    #[error("tenancy.keep_deleted = {0:?}: at most 3650d")]
    KeepDeleted(Duration),
    /// The look at what is due.
    #[error("tenancy.sweep_interval = {0:?}: between 1s and 24h")]
    SweepInterval(Duration),
}

impl Config {
    /// Checks what a type cannot.
    pub fn validate(&self) -> Result<(), Invalid> {
        if self.keep_deleted > Duration::from_hours(24 * 3650) {
            return Err(Invalid::KeepDeleted(self.keep_deleted));
        }
        if !(Duration::from_secs(1)..=Duration::from_hours(24)).contains(&self.sweep_interval) {
            return Err(Invalid::SweepInterval(self.sweep_interval));
        }
        Ok(())
    }
}
