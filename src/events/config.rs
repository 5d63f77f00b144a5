//! The `[events]` section.

use std::time::Duration;

use serde::Deserialize;

/// The `[events]` section of the configuration; `config/default.toml` documents every key.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "each key is documented where users read it: config/default.toml")]
pub struct Config {
    pub max_sockets: usize,
    pub max_sockets_per_user: usize,
    pub max_sockets_per_ip: usize,
    pub connects_per_ip: u32,
    pub origins: Vec<String>,
    pub token_in_query: bool,
    #[serde(with = "humantime_serde")]
    pub ping: Duration,
    #[serde(with = "humantime_serde")]
    pub pong: Duration,
    #[serde(with = "humantime_serde")]
    pub hello_timeout: Duration,
    #[serde(with = "humantime_serde")]
    pub ticket_ttl: Duration,
    #[serde(with = "humantime_serde")]
    pub check_interval: Duration,
    pub max_message_bytes: usize,
    pub max_unsent_bytes: usize,
    pub frames_per_second: u32,
    pub max_topics: usize,
    pub max_event_bytes: usize,
    pub history_events: usize,
    pub history_bytes: usize,
    #[serde(with = "humantime_serde")]
    pub history_ttl: Duration,
    #[serde(with = "humantime_serde")]
    pub drain: Duration,
}

/// A setting that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("events.{key} = {value} is not usable; allowed is {allowed}")]
pub struct Invalid {
    /// The key within the section.
    pub key: &'static str,
    /// What it was set to.
    pub value: String,
    /// What it may be.
    pub allowed: &'static str,
}

impl Config {
    /// Checks what the types cannot say. The first setting that is not usable is the error.
    pub fn validate(&self) -> Result<(), Invalid> {
        let ranges = [
            ("max_sockets", self.max_sockets, 1, 1_000_000, "1 to 1000000"),
            ("max_sockets_per_user", self.max_sockets_per_user, 1, 1_000_000, "1 to 1000000"),
            ("max_sockets_per_ip", self.max_sockets_per_ip, 1, 1_000_000, "1 to 1000000"),
            ("connects_per_ip", self.connects_per_ip as usize, 1, 10_000_000, "1 to 10000000"),
            ("max_message_bytes", self.max_message_bytes, 1_024, 1 << 20, "1024 to 1048576"),
            ("max_unsent_bytes", self.max_unsent_bytes, 64 << 10, 64 << 20, "65536 to 67108864"),
            ("frames_per_second", self.frames_per_second as usize, 1, 100_000, "1 to 100000"),
            ("max_topics", self.max_topics, 4, 1_024, "4 to 1024"),
            ("max_event_bytes", self.max_event_bytes, 1_024, 512 << 10, "1024 to 524288"),
            ("history_events", self.history_events, 1, 10_000, "1 to 10000"),
            ("history_bytes", self.history_bytes, 1_024, 16 << 20, "1024 to 16777216"),
        ];
        for (key, value, least, most, allowed) in ranges {
            if !(least..=most).contains(&value) {
                return Err(Invalid { key, value: value.to_string(), allowed });
            }
        }
        for (key, value) in [
            ("ping", self.ping),
            ("pong", self.pong),
            ("hello_timeout", self.hello_timeout),
            ("ticket_ttl", self.ticket_ttl),
            ("history_ttl", self.history_ttl),
        ] {
            if value < Duration::from_millis(100) || value > Duration::from_hours(24) {
                return Err(Invalid { key, value: format!("{value:?}"), allowed: "between 100ms and 24h" });
            }
        }
        if !(Duration::from_millis(50)..=Duration::from_secs(1)).contains(&self.check_interval) {
            let (key, value) = ("check_interval", format!("{:?}", self.check_interval));
            return Err(Invalid { key, value, allowed: "between 50ms and 1s" });
        }
        if self.drain > Duration::from_mins(5) {
            return Err(Invalid { key: "drain", value: format!("{:?}", self.drain), allowed: "at most 5m" });
        }
        Ok(())
    }
}

/// The defaults, for tests beside the code.
#[cfg(test)]
pub(super) fn defaults() -> Config {
    let text = include_str!("../../config/default.toml");
    let figment = figment::Figment::from(<figment::providers::Toml as figment::providers::Format>::string(text));
    figment.extract_inner("events").unwrap()
}
