//! The `[fathom]` section.

use std::time::Duration;

use reqwest::Url;
use serde::Deserialize;

/// Where Fathom is, and how it is called.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Base URL of the API, without a slash at the end.
    pub base_url: String,
    /// Hosts that media may come from: a name, or `*.` and a name for all below it.
    pub media_hosts: Vec<String>,
    /// How long one call may take, from the name's lookup to the last byte. Downloads of media have no such limit.
    #[serde(with = "humantime_serde")]
    pub timeout: Duration,
    /// Largest answer of the API in bytes.
    pub max_answer_bytes: usize,
    /// Calls a minute and key: all, heavy ones (summaries and transcripts), and requests of downloads.
    pub calls_per_minute: usize,
    /// See `calls_per_minute`.
    pub heavy_calls_per_minute: usize,
    /// See `calls_per_minute`.
    pub downloads_per_minute: usize,
    /// The app registered with Fathom, for users who sign in there instead of pasting a key.
    pub oauth: OAuthApp,
}

/// The `[fathom.oauth]` section. All empty = users paste keys.
#[derive(Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OAuthApp {
    /// The app's id.
    pub client_id: String,
    /// The app's secret.
    pub client_secret: String,
    /// Where users are sent to agree.
    pub authorize_url: String,
    /// Where codes and refresh tokens are exchanged.
    pub token_url: String,
}

impl std::fmt::Debug for OAuthApp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OAuthApp").field("client_id", &self.client_id).finish_non_exhaustive()
    }
}

/// Why the section is not usable.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Not an address.
    #[error("fathom.{0}: an https URL without query; http only to this machine")]
    Url(&'static str),
    /// Out of range.
    #[error("fathom.{key}: {rule}")]
    Rule {
        /// The key.
        key: &'static str,
        /// What is allowed.
        rule: &'static str,
    },
    /// The client cannot be made.
    #[error("no HTTP client can be made")]
    Client(#[from] reqwest::Error),
}

impl Config {
    /// Checks the values.
    pub fn validate(&self) -> Result<(), ConfigError> {
        // Keys and tokens go there.
        let is_url = |text: &str| {
            Url::parse(text).is_ok_and(|url| {
                let is_here = matches!(url.host_str(), Some("127.0.0.1" | "[::1]" | "localhost"));
                (url.scheme() == "https" || url.scheme() == "http" && is_here)
                    && url.query().is_none()
                    && url.fragment().is_none()
            })
        };
        if !is_url(&self.base_url) {
            return Err(ConfigError::Url("base_url"));
        }
        let app = &self.oauth;
        for (key, url) in [("oauth.authorize_url", &app.authorize_url), ("oauth.token_url", &app.token_url)] {
            if !is_url(url) {
                return Err(ConfigError::Url(key));
            }
        }
        let rule = |key, rule| Err(ConfigError::Rule { key, rule });
        if app.client_id.is_empty() != app.client_secret.is_empty() {
            return rule("oauth.client_id", "set together with oauth.client_secret, or not at all");
        }
        if self.timeout < Duration::from_millis(1) || self.timeout > Duration::from_mins(10) {
            return rule("timeout", "between 1ms and 10m");
        }
        if !(1 << 16..=1 << 30).contains(&self.max_answer_bytes) {
            return rule("max_answer_bytes", "between 65536 and 1073741824");
        }
        let budgets = [
            ("calls_per_minute", self.calls_per_minute),
            ("heavy_calls_per_minute", self.heavy_calls_per_minute),
            ("downloads_per_minute", self.downloads_per_minute),
        ];
        match budgets.into_iter().find(|(_, value)| !(1..=10_000).contains(value)) {
            Some((key, _)) => rule(key, "between 1 and 10000"),
            None => Ok(()),
        }
    }

    /// Whether media may come from this host.
    pub fn is_media_host(&self, host: &str) -> bool {
        let host = host.trim_end_matches('.').to_ascii_lowercase();
        self.media_hosts.iter().any(|rule| match rule.strip_prefix("*.") {
            Some(parent) => host.strip_suffix(parent).is_some_and(|rest| rest.len() > 1 && rest.ends_with('.')),
            None => *rule == host,
        })
    }
}

impl Default for Config {
    /// What `config/default.toml` says.
    fn default() -> Self {
        let hosts = ["fathom.ai", "*.fathom.ai", "fathom.video", "*.fathom.video"];
        Self {
            base_url: "https://api.fathom.ai/external/v1".to_owned(),
            media_hosts: hosts.map(str::to_owned).to_vec(),
            timeout: Duration::from_secs(30),
            max_answer_bytes: 64 << 20,
            calls_per_minute: 60,
            heavy_calls_per_minute: 30,
            downloads_per_minute: 30,
            oauth: OAuthApp {
                client_id: String::new(),
                client_secret: String::new(),
                authorize_url: "https://fathom.video/external/v1/oauth2/authorize".to_owned(),
                token_url: "https://api.fathom.ai/external/v1/oauth2/token".to_owned(),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn media_comes_from_listed_hosts_only() {
        let config = Config::default();
        for host in ["media.fathom.ai", "MEDIA.fathom.ai.", "a.b.fathom.video", "fathom.ai"] {
            assert!(config.is_media_host(host), "{host}");
        }
        for host in ["fathom.ai.evil.example", "notfathom.ai", ".fathom.ai", "127.0.0.1", ""] {
            assert!(!config.is_media_host(host), "{host}");
        }
    }

    #[test]
    fn half_an_app_and_odd_addresses_are_refused() {
        assert!(Config::default().validate().is_ok());
        for base_url in
            ["", "api.fathom.ai", "ftp://x", "https://x/?y", "http://api.fathom.ai", "http://127.0.0.1.example"]
        {
            assert!(Config { base_url: base_url.to_owned(), ..Config::default() }.validate().is_err(), "{base_url}");
        }
        let here = Config { base_url: "http://127.0.0.1:9/external/v1".to_owned(), ..Config::default() };
        assert!(here.validate().is_ok());
        let mut config = Config::default();
        config.oauth.client_id = "us".to_owned();
        assert!(config.validate().is_err());
        config.oauth.client_secret = "planted".to_owned();
        assert!(config.validate().is_ok());
        assert!(!format!("{config:?}").contains("planted"));
        assert!(Config { calls_per_minute: 0, ..Config::default() }.validate().is_err());
    }
}
