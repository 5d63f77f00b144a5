//! How long snapshots are kept, and removing what nobody names any more.

use std::collections::BTreeSet;
use std::collections::HashSet;
use std::time::SystemTime;

use serde::Serialize;
use time::OffsetDateTime;

use super::Backups;
use super::Error;
use super::SnapshotId;
use super::config::Config;
use crate::failpoint;
use crate::ids::TenantId;

/// What a prune removed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Pruned {
    /// Tenants that were looked at.
    pub tenants: u64,
    /// Snapshots beyond what is kept.
    pub snapshots: u64,
    /// Objects that no snapshot names.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Directories that restores had replaced.
    pub replaced: u64,
    /// Tenants of whom something could not be read, so that nothing of theirs was removed.
    pub unreadable: u64,
}

/// Which snapshots are kept: those within the grace, the newest of all, and the newest of each of the last hours, days
/// and weeks that have one.
pub(super) fn kept<'a>(config: &Config, ids: &'a [SnapshotId], now: OffsetDateTime) -> BTreeSet<&'a SnapshotId> {
    let mut sorted: Vec<&SnapshotId> = ids.iter().collect();
    sorted.sort_unstable_by(|a, b| b.cmp(a));
    let mut kept: BTreeSet<&SnapshotId> = sorted.first().copied().into_iter().collect();
    // What somebody asked for a moment ago is there tomorrow, however many others there are.
    kept.extend(sorted.iter().filter(|id| id.at() + config.grace > now));
    for (seconds, count) in [(3_600, config.keep_hourly), (86_400, config.keep_daily), (7 * 86_400, config.keep_weekly)]
    {
        let mut periods = BTreeSet::new();
        for id in &sorted {
            // Weeks begin on the day of the week that the epoch began on; any will do.
            let period = id.at().unix_timestamp().div_euclid(seconds);
            if !periods.contains(&period) && periods.len() < count as usize {
                periods.insert(period);
                kept.insert(id);
            }
        }
    }
    kept
}

impl Backups {
    /// Removes what is beyond what is kept: of one tenant, or of everybody who has a snapshot.
    pub async fn prune(&self, only: Option<&TenantId>) -> Result<Pruned, Error> {
        let mut pruned = Pruned::default();
        for tenant in self.everything().await?.into_keys().filter(|tenant| only.is_none_or(|only| only == tenant)) {
            if self.inner.shutdown.has_begun() {
                return Err(Error::Stopping);
            }
            self.prune_tenant(&tenant, &mut pruned).await?;
        }
        if only.is_none() {
            let sweep =
                self.inner.supervisor.sweep_replaced(self.inner.config.keep_replaced, OffsetDateTime::now_utc());
            pruned.replaced =
                sweep.await.map_err(|error| Error::io("remove replaced data")(std::io::Error::other(error)))?;
            pruned.objects += self.forget_masters().await?;
        }
        Ok(pruned)
    }

    /// Forgets the master keys that were replaced when nothing in the store needs them. How many objects went.
    async fn forget_masters(&self) -> Result<u64, Error> {
        let vault = &self.inner.vault;
        let retired = vault.retired_masters().await?;
        if retired.is_empty() {
            return Ok(0);
        }
        let (is_unused, objects) = self.repository()?.drop_masters(&retired).await?;
        if is_unused {
            vault.forget_former(&retired).await?;
        }
        Ok(objects)
    }

    async fn prune_tenant(&self, tenant: &TenantId, pruned: &mut Pruned) -> Result<(), Error> {
        let _alone = self.alone(tenant).await;
        let repository = self.repository()?;
        let ids = repository.snapshots(tenant).await?;
        pruned.tenants += 1;
        let keep = kept(&self.inner.config, &ids, OffsetDateTime::now_utc());
        // Read before anything is removed: what cannot be read names chunks that nobody else may name.
        let mut named = HashSet::new();
        for id in &keep {
            let read = async {
                let (manifest, key) = repository.manifest(tenant, id).await?;
                let items = repository.index(&manifest, &key).await?;
                Ok::<_, Error>((manifest, items))
            };
            match read.await {
                Ok((manifest, items)) => {
                    named.extend(manifest.index.chunks);
                    named.extend(items.into_iter().flat_map(|item| item.content.chunks));
                }
                Err(Error::Damaged(_) | Error::Sealed | Error::Failed(_)) => {
                    tracing::warn!(tenant.id = %tenant, backup.id = %id, "a backup cannot be read, so nothing of its tenant is pruned");
                    pruned.unreadable += 1;
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
        }
        for id in ids.iter().filter(|id| !keep.contains(id)) {
            repository.delete_snapshot(tenant, id).await?;
            failpoint::hit("backup.prune.snapshot");
            pruned.snapshots += 1;
        }
        let before = SystemTime::now().checked_sub(self.inner.config.grace).unwrap_or(SystemTime::UNIX_EPOCH);
        let (objects, bytes) = repository.sweep(tenant, &named, before).await?;
        pruned.objects += objects;
        pruned.bytes += bytes;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;
    use time::macros::datetime;

    use super::*;

    fn ago(now: OffsetDateTime, seconds: u64) -> SnapshotId {
        SnapshotId::new(now - Duration::from_secs(seconds))
    }

    fn config(hourly: u32, daily: u32, weekly: u32) -> Config {
        Config {
            store: String::new(),
            s3_endpoint: String::new(),
            s3_region: String::new(),
            s3_access_key_id: String::new(),
            s3_secret_key: crate::vault::Hidden::default(),
            schedule: String::new(),
            concurrency: 1,
            keep_hourly: hourly,
            keep_daily: daily,
            keep_weekly: weekly,
            grace: Duration::ZERO,
            keep_replaced: Duration::ZERO,
            timeout: Duration::from_secs(1),
            requests_per_hour: std::num::NonZeroU32::MIN,
        }
    }

    #[test]
    fn a_month_of_hours_becomes_hours_days_and_weeks() {
        let now = datetime!(2026-11-21 13:30 UTC);
        let ids: Vec<_> = (0..24 * 40).map(|hour| ago(now, hour * 3_600)).collect();
        let kept = kept(&config(24, 7, 4), &ids, now);
        // Two of the days are hours that are kept anyway, and two of the weeks an hour and a day.
        assert_eq!(kept.len(), 24 + 5 + 2, "{kept:?}");
        assert!(kept.contains(&ids[0]) && kept.contains(&ids[23]) && !kept.contains(&ids[24]));
    }

    proptest! {
        #[test]
        fn the_newest_is_kept_and_never_more_than_was_said(
            ages in proptest::collection::vec(0_u64..200 * 86_400, 1..200),
            (hourly, daily, weekly) in (0_u32..30, 0_u32..10, 0_u32..10),
        ) {
            let now = datetime!(2026-11-21 13:30 UTC);
            let ids: Vec<_> = ages.iter().map(|age| ago(now, *age)).collect();
            let config = config(hourly, daily, weekly);
            let first = kept(&config, &ids, now);
            prop_assert!(first.contains(ids.iter().max().unwrap()));
            prop_assert!(first.len() <= (hourly + daily + weekly) as usize + 1);
            // What is kept is kept again: a second prune removes nothing.
            let left: Vec<_> = first.iter().map(|id| (*id).clone()).collect();
            prop_assert_eq!(kept(&config, &left, now).len(), left.len());
        }
    }
}
