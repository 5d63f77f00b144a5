//! The `[instances]` section and what the supervisor needs besides it.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;

use crate::pocketbase::roster::Roster;
use crate::store::tenants::Tenant;

/// The `[instances]` section of the configuration; `config/default.toml` documents every key.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "each key is documented where users read it: config/default.toml")]
pub struct Config {
    #[serde(with = "humantime_serde")]
    pub idle_timeout: Duration,
    #[serde(with = "humantime_serde")]
    pub freeze_after: Duration,
    pub predict: bool,
    pub max_awake: usize,
    pub spares: usize,
    pub max_starting: usize,
    #[serde(with = "humantime_serde")]
    pub wake_timeout: Duration,
    pub max_waiting_per_instance: usize,
    pub max_waiting: usize,
    #[serde(with = "humantime_serde")]
    pub refusal_pause: Duration,
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
    pub gc_percent: u32,
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

/// The binaries of all versions that are listed, newest first. Never empty.
#[derive(Debug, Clone)]
pub struct Binaries(Arc<[Binary]>);

impl Binaries {
    /// Of one binary, and others besides. Of two of one version the first one named counts.
    pub fn new(first: Binary, others: Vec<Binary>) -> Self {
        let mut all = vec![first];
        for other in others {
            if all.iter().all(|known| known.version != other.version) {
                all.push(other);
            }
        }
        all.sort_by_key(|binary| std::cmp::Reverse(numbers(&binary.version)));
        Self(all.into())
    }

    /// All of them, newest first.
    pub fn all(&self) -> &[Binary] {
        &self.0
    }

    /// The newest.
    pub fn newest(&self) -> &Binary {
        &self.0[0]
    }

    /// Where they lie.
    pub fn paths(&self) -> Vec<PathBuf> {
        self.0.iter().map(|binary| binary.path.clone()).collect()
    }

    /// What serves data of this version: that version, or else the next newer one. Never an older one, which would not
    /// know what a newer one has done to the data. Data of a version that was not noted is served by the newest.
    pub fn for_data_of(&self, version: &str) -> Option<&Binary> {
        if version.is_empty() {
            return self.0.first();
        }
        self.0.iter().rev().find(|binary| !is_older(&binary.version, version))
    }

    /// A version of data; the newest one where it is not known.
    pub fn known_or_newest(&self, version: String) -> String {
        if version.is_empty() { self.newest().version.clone() } else { version }
    }

    /// Whether this is the file of one of them.
    pub fn has(&self, sha256: &str) -> bool {
        self.0.iter().any(|binary| binary.sha256 == sha256)
    }
}

/// The numbers of a version such as `0.40.6`, for comparing. What is no number counts as 0.
fn numbers(version: &str) -> Vec<u64> {
    version.split('.').map(|part| part.parse().unwrap_or(0)).collect()
}

/// Whether a version comes before another. One that is not known comes before none.
pub fn is_older(version: &str, than: &str) -> bool {
    !version.is_empty() && numbers(version) < numbers(than)
}

/// Whether a version is what a pin means: `0.39` means every `0.39.x`.
pub fn is_pinned_to(version: &str, pin: &str) -> bool {
    version.strip_prefix(pin).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
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
pub type MemoryOf = dyn Fn(&Tenant) -> Option<u64> + Send + Sync;

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

#[cfg(test)]
mod tests {
    use super::*;

    fn binary(version: &str) -> Binary {
        Binary { path: version.into(), sha256: format!("sha of {version}"), version: version.to_owned() }
    }

    #[test]
    fn data_is_served_by_its_version_or_the_next_newer_one_and_never_by_an_older_one() {
        let binaries = Binaries::new(binary("0.40.6"), ["0.9.1", "0.39.11", "0.40.6"].map(binary).to_vec());
        let versions: Vec<_> = binaries.all().iter().map(|binary| binary.version.as_str()).collect();
        assert_eq!(versions, ["0.40.6", "0.39.11", "0.9.1"], "by number, not by letter");
        let serves = |version| binaries.for_data_of(version).map(|binary| binary.version.as_str());
        assert_eq!(serves("0.39.11"), Some("0.39.11"));
        assert_eq!(serves("0.39.12"), Some("0.40.6"));
        assert_eq!(serves("0.41.0"), None);
        assert_eq!(serves(""), Some("0.40.6"), "not noted");
        assert!(binaries.has("sha of 0.9.1") && !binaries.has("sha of 0.9.2"));
    }

    #[test]
    fn a_pin_means_a_version_or_all_that_begin_with_its_numbers() {
        assert!(is_pinned_to("0.39.11", "0.39") && is_pinned_to("0.39.11", "0.39.11"));
        assert!(!is_pinned_to("0.39.11", "0.3") && !is_pinned_to("0.39.11", "0.39.1"));
        assert!(is_older("0.9.9", "0.10.0") && !is_older("0.10.0", "0.10.0") && !is_older("", "0.1.0"));
    }
}
