//! The `[auth]` section of the configuration.

use std::fmt;
use std::num::NonZeroU32;
use std::num::NonZeroUsize;
use std::time::Duration;

use serde::Deserialize;

/// Limits of sign-in and registration, and the first admin. Defaults and meaning: `config/default.toml`.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Password checks that run at once.
    pub max_concurrent: NonZeroUsize,
    /// Password checks that may wait for one of those places.
    pub max_waiting: usize,
    /// Sign-in attempts from one client address per minute.
    pub attempts_per_ip: NonZeroU32,
    /// Registrations from one client address per minute.
    pub registrations_per_ip: NonZeroU32,
    /// Wrong passwords for one account from one address before further attempts are delayed; 20 times as many from
    /// everywhere delay the account.
    pub free_failures: u32,
    /// The first such delay; each further failure doubles it.
    #[serde(with = "humantime_serde")]
    pub delay_base: Duration,
    /// The longest such delay.
    #[serde(with = "humantime_serde")]
    pub delay_max: Duration,
    /// How long a token that was refreshed away still works.
    #[serde(with = "humantime_serde")]
    pub refresh_grace: Duration,
    /// How often the accounts database is checked for changes.
    #[serde(with = "humantime_serde")]
    pub directory_check: Duration,
    /// E-mail address of the first admin; empty = none is made.
    pub admin_email: String,
    /// Password of the first admin.
    pub admin_password: String,
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("max_concurrent", &self.max_concurrent)
            .field("max_waiting", &self.max_waiting)
            .field("attempts_per_ip", &self.attempts_per_ip)
            .field("registrations_per_ip", &self.registrations_per_ip)
            .field("free_failures", &self.free_failures)
            .field("delay_base", &self.delay_base)
            .field("delay_max", &self.delay_max)
            .field("refresh_grace", &self.refresh_grace)
            .field("directory_check", &self.directory_check)
            .finish_non_exhaustive()
    }
}
