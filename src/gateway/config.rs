//! The `[server]` section.

use std::net::IpAddr;
use std::net::SocketAddr;
use std::time::Duration;

use serde::Deserialize;

use super::cors::Pattern;
use super::stall::Stall;

/// The `[server]` section of the configuration.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where to listen.
    pub listen: SocketAddr,
    /// Threads that serve connections; 0 = one per core.
    pub workers: usize,
    /// The URL that users see; empty = `http://<listen>`.
    pub public_url: String,
    /// Proxies whose `X-Forwarded-For` is believed.
    pub trusted_proxies: Vec<IpAddr>,
    /// Origins that browsers may call from; `*` = any.
    pub cors_origins: Vec<String>,
    /// Whether HTTP/2 is spoken with clients that begin with its preface.
    pub http2: bool,
    /// Whether text answers are compressed for clients that ask for it.
    pub compression: bool,
    /// How hard: 1 (quick) to 9 (small).
    pub compression_level: u32,
    /// `Strict-Transport-Security` for clients that came over https; empty = none.
    pub hsts: String,
    /// Open connections in all.
    pub max_connections: usize,
    /// Open connections from one client address (IPv6: from one /64).
    pub max_connections_per_ip: usize,
    /// Time for a whole request head, also the idle time between requests.
    #[serde(with = "humantime_serde")]
    pub header_timeout: Duration,
    /// Time that a body may stand still.
    #[serde(with = "humantime_serde")]
    pub body_idle_timeout: Duration,
    /// Slowest request body, in bytes a second averaged over `body_idle_timeout` of waiting for it.
    pub min_body_rate: u64,
    /// Slowest taking of an answer, likewise.
    pub min_write_rate: u64,
    /// Time for an instance to start its answer.
    #[serde(with = "humantime_serde")]
    pub response_timeout: Duration,
    /// Largest request target in bytes.
    pub max_uri_bytes: usize,
    /// Most request headers.
    pub max_headers: usize,
    /// Largest body of our own JSON routes.
    pub max_json_bytes: u64,
    /// Largest body of a sign-up or an account update.
    pub max_account_bytes: u64,
    /// Largest body forwarded to an instance.
    pub max_body_bytes: u64,
    /// At shutdown: how long running requests may take.
    #[serde(with = "humantime_serde")]
    pub drain_timeout: Duration,
    /// At shutdown: how long instances may take to stop.
    #[serde(with = "humantime_serde")]
    pub stop_timeout: Duration,
}

/// How slow one direction may be: fewer than `rate` bytes a second over `window` of waiting are a drip.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pace {
    pub(crate) window: Duration,
    pub(crate) rate: u64,
}

impl Pace {
    /// A watch that begins now.
    pub(crate) fn stall(self) -> Stall {
        Stall::with_rate(self.window, self.rate)
    }
}

/// A setting that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("server.{key} = {value:?} is not usable; allowed is {allowed}")]
pub struct Invalid {
    /// The key within the section.
    pub key: &'static str,
    /// What it was set to.
    pub value: String,
    /// What it may be.
    pub allowed: &'static str,
}

/// A client that must be faster than this would be cut on a good line.
const MAX_RATE: u64 = 1024 * 1024;

impl Config {
    /// Checks what the types cannot say. The first setting that is not usable is the error.
    pub fn validate(&self) -> Result<(), Invalid> {
        for (key, value, least, allowed) in [
            ("max_connections", self.max_connections, 1, "a number from 1 to 1000000"),
            ("max_connections_per_ip", self.max_connections_per_ip, 1, "a number from 1 to 1000000"),
            ("max_uri_bytes", self.max_uri_bytes, 64, "a number from 64 to 1000000"),
            ("max_headers", self.max_headers, 8, "a number from 8 to 1000000"),
        ] {
            if !(least..=1_000_000).contains(&value) {
                return Err(Invalid { key, value: value.to_string(), allowed });
            }
        }
        for (key, value) in [
            ("header_timeout", self.header_timeout),
            ("body_idle_timeout", self.body_idle_timeout),
            ("response_timeout", self.response_timeout),
        ] {
            if value.is_zero() {
                return Err(Invalid { key, value: "0s".to_owned(), allowed: "a duration above zero" });
            }
        }
        for (key, value) in [("min_body_rate", self.min_body_rate), ("min_write_rate", self.min_write_rate)] {
            if value > MAX_RATE {
                let allowed = "0 (any byte is progress) to 1048576 bytes a second";
                return Err(Invalid { key, value: value.to_string(), allowed });
            }
        }
        if !(1..=9).contains(&self.compression_level) {
            let value = self.compression_level.to_string();
            return Err(Invalid { key: "compression_level", value, allowed: "1 to 9" });
        }
        if !self.hsts.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' ') {
            let allowed = "empty or a value such as \"max-age=31536000\"";
            return Err(Invalid { key: "hsts", value: self.hsts.clone(), allowed });
        }
        if let Some(origin) = self.cors_origins.iter().find(|origin| *origin != "*" && Pattern::parse(origin).is_none())
        {
            let allowed = "\"*\" an origin such as \"https://app.example.com\", or \"https://*.example.com\"";
            return Err(Invalid { key: "cors_origins", value: origin.clone(), allowed });
        }
        Ok(())
    }

    /// How slow a client may send.
    pub(crate) fn reading(&self) -> Pace {
        Pace { window: self.body_idle_timeout, rate: self.min_body_rate }
    }

    /// How slow a client may take what is there for it.
    pub(crate) fn writing(&self) -> Pace {
        Pace { window: self.body_idle_timeout, rate: self.min_write_rate }
    }

    /// Number of worker threads.
    pub(crate) fn worker_count(&self) -> usize {
        match self.workers {
            0 => std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            count => count,
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// The shipped defaults.
    pub(crate) fn defaults() -> Config {
        use figment::providers::Format;
        let toml = figment::providers::Toml::string(include_str!("../../config/default.toml"));
        figment::Figment::from(toml).focus("server").extract().unwrap()
    }

    #[test]
    fn shipped_defaults_are_usable() {
        assert_eq!(defaults().validate(), Ok(()));
    }

    #[test]
    fn unusable_settings_are_named() {
        for origin in [
            "",
            "app.example.com",
            "https://",
            "https://a/b",
            "ftp://a",
            "https://a b",
            "https://*.a",
            "https://a.*.b",
            "*.example.com",
            "null",
        ] {
            let config = Config { cors_origins: vec![origin.to_owned()], ..defaults() };
            assert_eq!(config.validate().unwrap_err().key, "cors_origins", "{origin}");
        }
        let config = Config { max_connections: 0, ..defaults() };
        assert_eq!(config.validate().unwrap_err().key, "max_connections");
        let config = Config { min_write_rate: 2 << 20, ..defaults() };
        assert_eq!(config.validate().unwrap_err().key, "min_write_rate");
        let config = Config { compression_level: 0, ..defaults() };
        assert_eq!(config.validate().unwrap_err().key, "compression_level");
        let config = Config { hsts: "a\nb".to_owned(), ..defaults() };
        assert_eq!(config.validate().unwrap_err().key, "hsts");
        let config = Config { cors_origins: vec!["https://*.example.com".to_owned()], ..defaults() };
        assert_eq!(config.validate(), Ok(()));
        let config = Config { header_timeout: Duration::ZERO, ..defaults() };
        assert_eq!(config.validate().unwrap_err().key, "header_timeout");
    }
}
