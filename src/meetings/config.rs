//! The `[meetings]` section.

use std::time::Duration;

use serde::Deserialize;

/// How meetings are kept at hand.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// How long a list counts as fresh.
    #[serde(with = "humantime_serde")]
    pub ttl: Duration,
    /// How long after that it is still shown at once, while it is refreshed; beyond, the request waits a little.
    #[serde(with = "humantime_serde")]
    pub stale_for: Duration,
    /// Longest that a request waits for the first meetings of an empty list, or for one that is too old.
    #[serde(with = "humantime_serde")]
    pub first_wait: Duration,
    /// How far before the newest known meeting a refresh looks, for what is finished later than it appears.
    #[serde(with = "humantime_serde")]
    pub overlap: Duration,
    /// How often a refresh reads the whole list, for what was shared long after it appeared.
    #[serde(with = "humantime_serde")]
    pub full_every: Duration,
    /// Lists that are refreshed at once.
    pub max_concurrent: usize,
    /// Webhook calls that may wait to be taken in, and how long their names are remembered.
    pub max_inbox: usize,
    /// See `max_inbox`.
    #[serde(with = "humantime_serde")]
    pub inbox_keep: Duration,
    /// Webhook calls a minute that one hook, and one client address, may make.
    pub hook_calls_per_minute: u32,
    /// See `hook_calls_per_minute`.
    pub hook_calls_per_ip: u32,
    /// Largest body of a webhook call in bytes.
    pub max_hook_bytes: u64,
}

/// Why the section is not usable.
#[derive(Debug, thiserror::Error)]
#[error("meetings.{key}: {rule}")]
pub struct ConfigError {
    key: &'static str,
    rule: &'static str,
}

impl Config {
    /// Checks the values.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let week = Duration::from_hours(24 * 7);
        let times = [
            ("ttl", self.ttl, Duration::from_millis(1), week),
            ("stale_for", self.stale_for, Duration::ZERO, week * 52),
            ("first_wait", self.first_wait, Duration::ZERO, Duration::from_secs(30)),
            ("overlap", self.overlap, Duration::ZERO, week * 52),
            ("full_every", self.full_every, Duration::from_hours(1), week * 520),
            ("inbox_keep", self.inbox_keep, Duration::from_mins(15), week * 52),
        ];
        for (key, value, least, most) in times {
            if value < least || value > most {
                return Err(ConfigError { key, rule: "out of range; see the comment in config/default.toml" });
            }
        }
        let counts = [
            ("max_concurrent", self.max_concurrent as u64, 1_000),
            ("max_inbox", self.max_inbox as u64, 1_000_000),
            ("hook_calls_per_minute", u64::from(self.hook_calls_per_minute), 1_000_000),
            ("hook_calls_per_ip", u64::from(self.hook_calls_per_ip), 1_000_000),
            ("max_hook_bytes", self.max_hook_bytes, 64 << 20),
        ];
        match counts.into_iter().find(|(_, value, most)| *value < 1 || value > most) {
            Some((key, ..)) => Err(ConfigError { key, rule: "out of range; see the comment in config/default.toml" }),
            None => Ok(()),
        }
    }
}
