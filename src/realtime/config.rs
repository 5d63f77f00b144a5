//! The `[realtime]` section.

use std::time::Duration;

use serde::Deserialize;

/// The `[realtime]` section of the configuration; `config/default.toml` documents every key.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "each key is documented where users read it: config/default.toml")]
pub struct Config {
    #[serde(with = "humantime_serde")]
    pub heartbeat: Duration,
    pub max_streams: usize,
    pub max_streams_per_user: usize,
    pub max_streams_per_ip: usize,
    pub max_streams_per_tenant: usize,
    #[serde(with = "humantime_serde")]
    pub bind_timeout: Duration,
    #[serde(with = "humantime_serde")]
    pub sign_in_timeout: Duration,
    pub max_sign_ins_per_ip: usize,
    pub queue_events: usize,
    pub queue_bytes: usize,
    pub queue_bytes_in_all: usize,
    pub max_event_bytes: usize,
    #[serde(with = "humantime_serde")]
    pub upstream_idle: Duration,
    #[serde(with = "humantime_serde")]
    pub upstream_age: Duration,
}

/// A setting that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("realtime.{key} = {value}: {rule}")]
pub struct Invalid {
    /// The key within the section.
    pub key: &'static str,
    /// What it was set to.
    pub value: String,
    /// What is allowed.
    pub rule: &'static str,
}

impl Config {
    /// Checks what the types cannot say. The first setting that is not usable is the error.
    pub fn validate(&self) -> Result<(), Invalid> {
        for (key, value) in [
            ("max_streams", self.max_streams),
            ("max_streams_per_user", self.max_streams_per_user),
            ("max_streams_per_ip", self.max_streams_per_ip),
            ("max_streams_per_tenant", self.max_streams_per_tenant),
            ("max_sign_ins_per_ip", self.max_sign_ins_per_ip),
            ("queue_events", self.queue_events),
        ] {
            if !(1..=1_000_000).contains(&value) {
                return Err(Invalid { key, value: value.to_string(), rule: "a number from 1 to 1000000" });
            }
        }
        for (key, value) in [
            ("queue_bytes", self.queue_bytes),
            ("queue_bytes_in_all", self.queue_bytes_in_all),
            ("max_event_bytes", self.max_event_bytes),
        ] {
            if !(4096..=1 << 30).contains(&value) {
                return Err(Invalid { key, value: value.to_string(), rule: "a number from 4096 to 1073741824" });
            }
        }
        if self.max_event_bytes > self.queue_bytes {
            let rule = "not above queue_bytes: it could never be passed on";
            return Err(Invalid { key: "max_event_bytes", value: self.max_event_bytes.to_string(), rule });
        }
        let day = Duration::from_hours(24);
        for (key, value, least, most, rule) in [
            ("heartbeat", self.heartbeat, 10, Duration::from_hours(1), "between 10ms and 1h"),
            ("bind_timeout", self.bind_timeout, 10, day, "between 10ms and 24h"),
            ("sign_in_timeout", self.sign_in_timeout, 10, day, "between 10ms and 24h"),
            ("upstream_idle", self.upstream_idle, 100, Duration::from_secs(290), "between 100ms and 290s"),
            ("upstream_age", self.upstream_age, 100, Duration::from_mins(29), "between 100ms and 29m"),
        ] {
            if value < Duration::from_millis(least) || value > most {
                return Err(Invalid { key, value: format!("{value:?}"), rule });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// The shipped defaults.
    pub(in crate::realtime) fn defaults() -> Config {
        use figment::providers::Format;
        let toml = figment::providers::Toml::string(include_str!("../../config/default.toml"));
        figment::Figment::from(toml).focus("realtime").extract().unwrap()
    }

    #[test]
    fn shipped_defaults_are_usable_and_stay_below_the_limits_of_pocketbase() {
        let config = defaults();
        assert_eq!(config.validate(), Ok(()));
        assert!(config.upstream_idle < Duration::from_mins(5) && config.upstream_age < Duration::from_mins(30));
    }

    #[test]
    fn unusable_settings_are_named() {
        let config = Config { upstream_idle: Duration::from_mins(5), ..defaults() };
        assert_eq!(config.validate().unwrap_err().key, "upstream_idle");
        let config = Config { queue_bytes: 4096, ..defaults() };
        assert_eq!(config.validate().unwrap_err().key, "max_event_bytes");
        let config = Config { max_streams: 0, ..defaults() };
        assert_eq!(config.validate().unwrap_err().key, "max_streams");
    }
}
