//! The `[instances]` section and what the supervisor needs besides it.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;

use crate::ids::TenantId;
use crate::pocketbase::roster::Roster;
use crate::store::tenants::Tenant;

/// The `[instances]` section of the configuration; `config/default.toml` documents every key.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "each key is documented where users read it: config/default.toml")]
pub struct Config {
    #[serde(with = "humantime_serde")]
    pub idle_timeout: Duration,
    pub max_awake: usize,
    pub max_starting: usize,
    #[serde(with = "humantime_serde")]
    pub wake_timeout: Duration,
    pub max_waiting_per_instance: usize,
    pub max_waiting: usize,
    pub max_in_flight: usize,
    #[serde(with = "humantime_serde")]
    pub start_timeout: Duration,
    #[serde(with = "humantime_serde")]
    pub upgrade_timeout: Duration,
    #[serde(with = "humantime_serde")]
    pub probe_interval: Duration,
    #[serde(with = "humantime_serde")]
    pub probe_timeout: Duration,
    pub probe_misses: u32,
    #[serde(with = "humantime_serde")]
    pub cpu_alarm: Duration,
    #[serde(with = "humantime_serde")]
    pub backoff_base: Duration,
    #[serde(with = "humantime_serde")]
    pub backoff_max: Duration,
    #[serde(with = "humantime_serde")]
    pub backoff_reset: Duration,
    pub quarantine_failures: usize,
    #[serde(with = "humantime_serde")]
    pub quarantine_window: Duration,
    #[serde(with = "humantime_serde")]
    pub drain_timeout: Duration,
    #[serde(with = "humantime_serde")]
    pub stop_timeout: Duration,
    pub nofile: u64,
    pub nproc: u64,
    pub data_bytes: u64,
    pub file_bytes: u64,
    pub log_bytes: u64,
    pub log_files: u32,
}

/// When instances follow a changed template.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UpgradePolicy {
    /// Each at its next wake.
    Wake,
    /// Only when a rollout asks. The global instance follows at the start of pocketfleet all the same.
    Manual,
}

/// The verified `PocketBase` binary.
#[derive(Debug, Clone)]
pub struct Binary {
    /// Where it is.
    pub path: PathBuf,
    /// Its SHA-256, in hex; part of every process's identity.
    pub sha256: String,
    /// What `--version` said.
    pub version: String,
}

/// The folders of the supervisor, all under the data directory.
#[derive(Debug, Clone)]
pub struct Layout {
    /// One folder per instance: `pb_data`, `log`, `lock`.
    pub instances: PathBuf,
    /// Folders of deleted tenants, until they are erased.
    pub deleted: PathBuf,
    /// Half-made directories; swept at start.
    pub staging: PathBuf,
    /// An empty folder for what an instance must not have.
    pub empty: PathBuf,
}

/// Says how many bytes of data the process of a tenant may have; none: as configured.
#[derive(Clone)]
pub struct Memory(pub Arc<MemoryOf>);

/// How many bytes of data a tenant's process may have.
pub type MemoryOf = dyn Fn(&TenantId) -> Option<u64> + Send + Sync;

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Memory").finish_non_exhaustive()
    }
}

/// Who may act in a tenant's instance.
#[derive(Debug, Clone)]
pub enum Access {
    /// Whoever has a row of this roster.
    Roster(Roster),
    /// The instance's `users` are its own affair: nobody acts in it in our name.
    Own,
    /// The accounts cannot be read, or the owner's is gone: the rows are left as they are.
    Unknown,
}

/// Looks up who may act in a tenant's instance. The supervisor itself knows no users.
#[derive(Clone)]
pub struct Rosters(pub Arc<FindRoster>);

/// The function behind [`Rosters`]. It may read files.
pub type FindRoster = dyn Fn(&Tenant) -> Access + Send + Sync;

impl fmt::Debug for Rosters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Rosters")
    }
}
