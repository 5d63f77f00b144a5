//! The `[delivery]` section.

use std::time::Duration;

use serde::Deserialize;

/// How recordings are delivered.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Folder below which users' folders lie; empty = destinations of this kind are not offered.
    pub folder: String,
    /// Deliveries at once, in all.
    pub max_concurrent: usize,
    /// Deliveries at once, of one tenant.
    pub max_concurrent_per_tenant: usize,
    /// How often a delivery is begun before it is given up.
    pub max_attempts: u32,
    /// Free space on the disk of the data directory that downloads leave alone, in bytes.
    pub reserve_bytes: u64,
    /// Largest recording that is taken, in bytes.
    pub max_bytes: u64,
    /// Recordings of one tenant that may lie here at once. Beyond that deliveries wait for those that lie here.
    pub max_staged_per_tenant: usize,
    /// How many bytes those may have, unless it is a single one.
    pub max_staged_bytes_per_tenant: u64,
    /// How often Fathom is asked whether a download is prepared.
    #[serde(with = "humantime_serde")]
    pub poll_interval: Duration,
    /// How long that may take until a delivery gives up.
    #[serde(with = "humantime_serde")]
    pub poll_deadline: Duration,
    /// How long links to artifacts are good.
    #[serde(with = "humantime_serde")]
    pub link_ttl: Duration,
    /// How long a file that is handed off waits to be fetched.
    #[serde(with = "humantime_serde")]
    pub handoff_ttl: Duration,
}

/// Why the section is not usable.
#[derive(Debug, thiserror::Error)]
#[error("delivery.{key}: {rule}")]
pub struct ConfigError {
    key: &'static str,
    rule: &'static str,
}

impl Config {
    /// Checks the values.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let counts = [
            ("max_concurrent", self.max_concurrent as u64),
            ("max_concurrent_per_tenant", self.max_concurrent_per_tenant as u64),
            ("max_attempts", u64::from(self.max_attempts)),
            ("max_staged_per_tenant", self.max_staged_per_tenant as u64),
        ];
        for (key, value) in counts {
            if !(1..=1_000).contains(&value) {
                return Err(ConfigError { key, rule: "between 1 and 1000" });
            }
        }
        for (key, value) in
            [("max_bytes", self.max_bytes), ("max_staged_bytes_per_tenant", self.max_staged_bytes_per_tenant)]
        {
            if value == 0 {
                return Err(ConfigError { key, rule: "at least 1" });
            }
        }
        let (moment, day) = (Duration::from_millis(10), Duration::from_hours(24));
        let times = [
            ("poll_interval", self.poll_interval, moment, Duration::from_mins(10)),
            ("poll_deadline", self.poll_deadline, moment, day),
            ("link_ttl", self.link_ttl, Duration::from_secs(1), day * 7),
            ("handoff_ttl", self.handoff_ttl, Duration::from_mins(1), day * 365),
        ];
        for (key, value, least, most) in times {
            if value < least || value > most {
                return Err(ConfigError { key, rule: "out of range; see the comment in config/default.toml" });
            }
        }
        Ok(())
    }
}
