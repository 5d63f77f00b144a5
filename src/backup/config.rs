//! The `[backup]` section.

use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

use crate::vault::Hidden;

/// Backups: where they go, how often, and how long they are kept.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// `dir:/path` or `s3:bucket/prefix`; empty = no backups.
    pub store: String,
    /// Base URL of the S3 service; empty = Amazon's of the region.
    pub s3_endpoint: String,
    /// Its region.
    pub s3_region: String,
    /// The id of the key.
    pub s3_access_key_id: String,
    /// The key itself, from the environment.
    pub s3_secret_key: Hidden,
    /// When the fleet is backed up: five fields of cron, in UTC; empty = only when asked.
    pub schedule: String,
    /// Tenants that are copied at once.
    pub concurrency: usize,
    /// Newest snapshots of so many hours, days and weeks are kept.
    pub keep_hourly: u32,
    /// See [`keep_hourly`](Self::keep_hourly).
    pub keep_daily: u32,
    /// See [`keep_hourly`](Self::keep_hourly).
    pub keep_weekly: u32,
    /// How long an object that no snapshot names is left alone.
    #[serde(with = "humantime_serde")]
    pub grace: Duration,
    /// How long data that a restore replaced is kept.
    #[serde(with = "humantime_serde")]
    pub keep_replaced: Duration,
    /// How long the copy of one database may take.
    #[serde(with = "humantime_serde")]
    pub timeout: Duration,
    /// Snapshots and restores that an owner may ask for in an hour.
    pub requests_per_hour: std::num::NonZeroU32,
}

/// Where backups go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// Nowhere.
    Off,
    /// Into a folder.
    Folder(PathBuf),
    /// Into a bucket, below a prefix that may be empty.
    Bucket {
        /// Its name.
        bucket: String,
        /// What keys begin with.
        prefix: String,
    },
}

/// Why the section is not usable.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    /// Neither form.
    #[error("backup.store: empty, \"dir:/absolute/path\" or \"s3:bucket/prefix\"")]
    Store,
    /// A bucket without a key.
    #[error(
        "backup.store is a bucket: set backup.s3_access_key_id, and POCKETFLEET_BACKUP__S3_SECRET_KEY in the environment"
    )]
    Key,
    /// Out of range.
    #[error("backup.{0}: {1}")]
    Range(&'static str, &'static str),
}

impl Config {
    /// Where backups go, as `backup.store` or another text of its form says.
    pub fn place(text: &str) -> Result<Place, Unusable> {
        if text.is_empty() {
            return Ok(Place::Off);
        }
        if let Some(path) = text.strip_prefix("dir:").map(PathBuf::from) {
            return if path.is_absolute() { Ok(Place::Folder(path)) } else { Err(Unusable::Store) };
        }
        let rest = text.strip_prefix("s3:").ok_or(Unusable::Store)?;
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let is_word = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
        let prefix = prefix.trim_matches('/');
        if bucket.is_empty() || !bucket.bytes().all(is_word) || !prefix.bytes().all(|b| is_word(b) || b == b'/') {
            return Err(Unusable::Store);
        }
        Ok(Place::Bucket { bucket: bucket.to_owned(), prefix: prefix.to_owned() })
    }

    /// Checks the values.
    pub fn validate(&self) -> Result<(), Unusable> {
        if matches!(Self::place(&self.store)?, Place::Bucket { .. })
            && (self.s3_access_key_id.is_empty() || self.s3_secret_key.expose().is_none())
        {
            return Err(Unusable::Key);
        }
        if !(1..=64).contains(&self.concurrency) {
            return Err(Unusable::Range("concurrency", "between 1 and 64"));
        }
        for (key, count) in
            [("keep_hourly", self.keep_hourly), ("keep_daily", self.keep_daily), ("keep_weekly", self.keep_weekly)]
        {
            if count > 1_000 {
                return Err(Unusable::Range(key, "at most 1000"));
            }
        }
        let year = Duration::from_hours(24 * 366);
        for (key, time, least) in [
            ("grace", self.grace, Duration::ZERO),
            ("keep_replaced", self.keep_replaced, Duration::ZERO),
            ("timeout", self.timeout, Duration::from_secs(1)),
        ] {
            if time < least || time > year {
                return Err(Unusable::Range(key, "out of range; see the comment in config/default.toml"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_a_folder_or_a_bucket() {
        assert_eq!(Config::place("").unwrap(), Place::Off);
        assert_eq!(Config::place("dir:/backups").unwrap(), Place::Folder("/backups".into()));
        let bucket = Place::Bucket { bucket: "b".to_owned(), prefix: "a/c".to_owned() };
        assert_eq!(Config::place("s3:b/a/c/").unwrap(), bucket);
        for bad in ["dir:", "dir:relative", "s3:", "s3:b/..%2f", "/backups", "file:/backups", "s3:b c"] {
            assert!(Config::place(bad).is_err(), "{bad}");
        }
    }
}
