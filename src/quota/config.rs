//! The `[quota]` section of the configuration.

use std::time::Duration;

use serde::Deserialize;

use super::Limits;
use crate::store::limit_rules::check;

/// The `[quota]` section of the configuration; `config/default.toml` documents every key.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "each key is documented where users read it: config/default.toml")]
pub struct Config {
    pub disk_soft: u64,
    pub disk_hard: u64,
    pub file_size: u64,
    pub memory: u64,
    pub in_flight: u64,
    pub requests_per_minute: u64,
    pub uploads_per_hour: u64,
    pub reserve: u64,
    #[serde(with = "humantime_serde")]
    pub sweep_interval: Duration,
    pub sweep_per_second: u32,
}

/// A value that makes no sense.
#[derive(Debug, thiserror::Error)]
pub enum Invalid {
    /// A limit.
    #[error("quota.{0}: {1}")]
    Limit(&'static str, &'static str),
    /// How often everybody is measured.
    #[error("quota.sweep_interval = {0:?}: between 1s and 24h")]
    Interval(Duration),
    /// How many are measured in a second.
    #[error("quota.sweep_per_second = {0}: between 1 and 10000")]
    PerSecond(u32),
}

impl Config {
    /// The limits of tenants that nobody gave others.
    pub fn defaults(&self) -> Limits {
        Limits {
            disk_soft: Some(self.disk_soft),
            disk_hard: Some(self.disk_hard),
            file_size: Some(self.file_size),
            memory: Some(self.memory),
            in_flight: Some(self.in_flight),
            requests_per_minute: Some(self.requests_per_minute),
            uploads_per_hour: Some(self.uploads_per_hour),
        }
    }

    /// Checks what a type cannot.
    pub fn validate(&self) -> Result<(), Invalid> {
        check(&self.defaults()).map_err(|(field, rule)| Invalid::Limit(field, rule))?;
        if !(Duration::from_secs(1)..=Duration::from_hours(24)).contains(&self.sweep_interval) {
            return Err(Invalid::Interval(self.sweep_interval));
        }
        if !(1..=10_000).contains(&self.sweep_per_second) {
            return Err(Invalid::PerSecond(self.sweep_per_second));
        }
        Ok(())
    }
}
