//! The `[queue]` section.

use std::time::Duration;

use serde::Deserialize;

/// How many jobs are run, kept and let wait.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Jobs that this process runs at once.
    pub concurrency: usize,
    /// Jobs of one kind that run at once for one tenant, unless the kind says otherwise.
    pub per_tenant: usize,
    /// Kinds that are done by workers outside this program.
    pub external_kinds: Vec<String>,
    /// Kinds that users may add by themselves, beside the delivery of meetings.
    pub user_kinds: Vec<String>,
    /// Jobs of one external kind that workers may have at once of one tenant.
    pub external_per_tenant: usize,
    /// How long a running job may be silent until it is taken back.
    #[serde(with = "humantime_serde")]
    pub lease: Duration,
    /// How long a cancelled job may go on until it is dropped.
    #[serde(with = "humantime_serde")]
    pub cancel_grace: Duration,
    /// How long running jobs get to end at shutdown.
    #[serde(with = "humantime_serde")]
    pub drain_timeout: Duration,
    /// Priorities that users may choose among their own, from minus this to this.
    pub user_priority: i8,
    /// Unfinished jobs in all, and of one tenant.
    pub max_waiting: usize,
    /// See above.
    pub max_waiting_per_tenant: usize,
    /// Largest payload as JSON.
    pub max_payload_bytes: usize,
    /// Largest result, checkpoint or answer as JSON.
    pub max_state_bytes: usize,
    /// How long finished jobs are kept.
    #[serde(with = "humantime_serde")]
    pub keep_finished: Duration,
    /// Finished jobs that are kept in all, and of one tenant.
    pub max_finished: usize,
    /// See above.
    pub max_finished_per_tenant: usize,
    /// Schedules of one tenant.
    pub max_schedules_per_tenant: usize,
}

/// A setting that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("queue.{key} = {value}: {rule}")]
pub struct Invalid {
    /// The key in the section.
    pub key: &'static str,
    /// What was found.
    pub value: String,
    /// What is allowed.
    pub rule: &'static str,
}

/// Whether a text can name a kind.
pub(super) fn is_kind(text: &str) -> bool {
    (1..=40).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
}

impl Config {
    /// Checks what the types cannot.
    pub fn validate(&self) -> Result<(), Invalid> {
        for (key, value, most) in [
            ("concurrency", self.concurrency, 10_000),
            ("per_tenant", self.per_tenant, 10_000),
            ("external_per_tenant", self.external_per_tenant, 1 << 20),
            ("max_waiting", self.max_waiting, 10_000_000),
            ("max_waiting_per_tenant", self.max_waiting_per_tenant, 10_000_000),
            ("max_finished", self.max_finished, 10_000_000),
            ("max_finished_per_tenant", self.max_finished_per_tenant, 10_000_000),
            ("max_schedules_per_tenant", self.max_schedules_per_tenant, 10_000),
        ] {
            if !(1..=most).contains(&value) {
                return Err(Invalid { key, value: value.to_string(), rule: "at least 1, and not beyond reason" });
            }
        }
        for (key, value) in [("max_payload_bytes", self.max_payload_bytes), ("max_state_bytes", self.max_state_bytes)] {
            // A record holds a payload, a checkpoint, an answer and a result, and has at most 1 MiB.
            if !(1024..=256 << 10).contains(&value) {
                return Err(Invalid { key, value: value.to_string(), rule: "a number from 1024 to 262144" });
            }
        }
        if !(0..=100).contains(&self.user_priority) {
            let value = self.user_priority.to_string();
            return Err(Invalid { key: "user_priority", value, rule: "a number from 0 to 100" });
        }
        for (key, value, least, most, rule) in [
            ("lease", self.lease, 1_000, Duration::from_hours(24), "between 1s and 24h"),
            ("cancel_grace", self.cancel_grace, 10, Duration::from_hours(1), "between 10ms and 1h"),
            ("drain_timeout", self.drain_timeout, 10, Duration::from_hours(1), "between 10ms and 1h"),
            ("keep_finished", self.keep_finished, 60_000, Duration::from_hours(24 * 366), "between 1m and 366d"),
        ] {
            if value < Duration::from_millis(least) || value > most {
                return Err(Invalid { key, value: format!("{value:?}"), rule });
            }
        }
        if let Some(kind) = self.external_kinds.iter().find(|kind| !is_kind(kind)) {
            let rule = "names of 1 to 40 characters of a-z, 0-9 and _";
            return Err(Invalid { key: "external_kinds", value: kind.clone(), rule });
        }
        Ok(())
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// The shipped defaults.
    pub(in crate::queue) fn defaults() -> Config {
        use figment::providers::Format;
        let toml = figment::providers::Toml::string(include_str!("../../config/default.toml"));
        figment::Figment::from(toml).focus("queue").extract().unwrap()
    }

    #[test]
    fn shipped_defaults_are_usable() {
        assert_eq!(defaults().validate(), Ok(()));
    }

    #[test]
    fn unusable_settings_are_named() {
        let config = Config { lease: Duration::ZERO, ..defaults() };
        assert_eq!(config.validate().unwrap_err().key, "lease");
        let config = Config { external_kinds: vec!["a.b".to_owned()], ..defaults() };
        assert_eq!(config.validate().unwrap_err().key, "external_kinds");
        let config = Config { concurrency: 0, ..defaults() };
        assert_eq!(config.validate().unwrap_err().key, "concurrency");
    }
}
