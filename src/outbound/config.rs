//! The `[outbound]` section.

use std::time::Duration;

use serde::Deserialize;

use super::guard::origin;

/// What may be reached outside when a user or a foreign API names the address.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Origins (`scheme://host:port`) that are exempt from every rule, for development and for services of the
    /// operator's own network.
    pub allow: Vec<String>,
    /// Ports that may be named.
    pub ports: Vec<u16>,
    /// How long looking a name up and connecting may take.
    #[serde(with = "humantime_serde")]
    pub connect_timeout: Duration,
    /// How long an answer may stand still, from its head to its last byte.
    #[serde(with = "humantime_serde")]
    pub idle_timeout: Duration,
}

/// Why the section is not usable.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Not an origin.
    #[error("outbound.allow: {0} is not an origin such as http://127.0.0.1:9000")]
    Origin(String),
    /// Out of range.
    #[error("outbound.{0}: between 1ms and 1h")]
    Duration(&'static str),
}

impl Config {
    /// Checks the values.
    pub fn validate(&self) -> Result<(), ConfigError> {
        if let Some(text) = self.allow.iter().find(|text| origin(text).is_none()) {
            return Err(ConfigError::Origin(text.clone()));
        }
        for (key, value) in [("connect_timeout", self.connect_timeout), ("idle_timeout", self.idle_timeout)] {
            if value < Duration::from_millis(1) || value > Duration::from_hours(1) {
                return Err(ConfigError::Duration(key));
            }
        }
        Ok(())
    }
}

impl Default for Config {
    /// What `config/default.toml` says.
    fn default() -> Self {
        Self {
            allow: Vec::new(),
            ports: vec![443, 8443],
            connect_timeout: Duration::from_secs(5),
            idle_timeout: Duration::from_secs(30),
        }
    }
}
