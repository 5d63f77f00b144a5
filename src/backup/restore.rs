//! Putting a snapshot in the place of a tenant's live data.
//!
//! It is read back and tried beside the instance first. Then the instance is stopped, the directories change places by
//! renames that finish or never were, whatever kills us, and the next request starts it on what was restored. Secrets
//! that sign tokens are the snapshot's: whoever is signed in stays signed in, because accounts and sessions are not part
//! of it.

use serde::Serialize;
use time::OffsetDateTime;

use super::Backups;
use super::Error;
use super::Reason;
use super::SnapshotId;
use super::take;
use crate::failpoint;
use crate::ids::TenantId;
use crate::pocketbase::database;
use crate::supervisor;
use crate::supervisor::directory::Origin;

/// What was done.
#[derive(Debug, Clone, Serialize)]
pub struct Restored {
    /// Whose data it is now.
    pub tenant: TenantId,
    /// Whose it was.
    pub from: TenantId,
    /// Which snapshot.
    pub id: SnapshotId,
    /// When that was taken.
    #[serde(with = "time::serde::rfc3339")]
    pub taken_at: OffsetDateTime,
    /// The name under which the data that it replaced is kept.
    pub kept: String,
}

impl Backups {
    /// A name for what a restore puts away.
    pub fn name_of_kept(tenant: &TenantId) -> String {
        let now = OffsetDateTime::now_utc();
        format!("{tenant}.{}.{}", now.unix_timestamp(), SnapshotId::new(now))
    }

    /// The newest snapshot of a tenant that is not after a moment.
    pub async fn newest(&self, tenant: &TenantId, at: Option<OffsetDateTime>) -> Result<SnapshotId, Error> {
        let mut found = self.repository()?.snapshots(tenant).await?;
        found.retain(|id| at.is_none_or(|at| id.at() <= at));
        found.pop().ok_or(Error::NotFound)
    }

    /// Restores a snapshot of `from` as the data of `tenant`, who is usually the same.
    /// `kept` names what is put away; where that lies already, this was done before. An owner has two such directories
    /// at most: what there was before the first restore, and what the last one replaced.
    pub async fn restore(
        &self,
        tenant: &TenantId,
        (from, id): (&TenantId, &SnapshotId),
        kept: &str,
        reason: Reason,
    ) -> Result<Restored, Error> {
        self.check_restore(tenant, from)?;
        let _alone = self.alone(tenant).await;
        let supervisor = &self.inner.supervisor;
        let done = Restored {
            tenant: tenant.clone(),
            from: from.clone(),
            id: id.clone(),
            taken_at: id.at(),
            kept: kept.to_owned(),
        };
        if supervisor.replaced().join(kept).exists() && !supervisor.is_being_replaced(tenant) {
            return Ok(done);
        }
        let repository = self.repository()?;
        let (manifest, key) = repository.manifest(from, id).await?;
        if from != tenant && self.inner.tenants.find(tenant).is_some_and(|found| found.template != manifest.template) {
            return Err(Error::Unfit("the backup is of another template than the tenant whose data it would replace"));
        }
        let scratch = supervisor.scratch().map_err(Error::io("make a scratch folder"))?;
        let disk = rustix::fs::statvfs(scratch.path()).map_err(|error| Error::io("look at the disk")(error.into()))?;
        if !has_room(disk.f_bavail.saturating_mul(disk.f_frsize), manifest.bytes, self.inner.reserve) {
            return Err(Error::Unfit("there is not enough room on the disk to try the backup and put it in place"));
        }
        let (data, trial) = (scratch.path().join("data"), scratch.path().join("trial"));
        for folder in [&data, &trial] {
            std::fs::create_dir(folder).map_err(Error::io("make a scratch folder"))?;
        }
        // What was served once holds lines of that in its log; what goes in is a copy that was not.
        let tried = repository.try_out(from, id, &trial, Some(supervisor), scratch.path()).await;
        self.note_damage(from, &tried).await;
        tried?;
        repository.write_out(&manifest, &key, &data).await?;
        if from != tenant {
            // Two instances with the same secrets would take each other's tokens.
            let database = data.join("data.db");
            take::blocking(move || database::rotate_secrets(&database)).await??;
        }
        failpoint::hit("backup.restore.tried");
        let origin = Origin { hash: manifest.template_hash.clone(), pocketbase: manifest.pocketbase.clone() };
        supervisor.replace(tenant, (scratch, data), origin, kept).await?;
        failpoint::hit("backup.restore.done");
        tracing::info!(tenant.id = %tenant, backup.id = %id, kept, "restored a backup");
        if reason == Reason::Owner
            && let Err(error) = supervisor.thin_replaced(tenant).await
        {
            tracing::warn!(tenant.id = %tenant, %error, "data that earlier restores replaced is removed later");
        }
        Ok(done)
    }

    /// Whether a tenant's data may be replaced at all by a backup of `from`.
    pub fn check_restore(&self, tenant: &TenantId, from: &TenantId) -> Result<(), Error> {
        if [tenant, from].into_iter().any(|id| id.is_global() || *id == super::control()) {
            return Err(Error::FleetOnly);
        }
        let record = self.inner.tenants.find(tenant).ok_or(Error::UnknownTenant)?;
        // Its folder is put aside under a tombstone; one that was made beside it could never be brought back.
        if record.deleted.is_some() { Err(supervisor::Error::Deleted.into()) } else { Ok(()) }
    }
}

/// Whether a restore leaves the reserve of a disk alone: its files are there twice, once to be tried and once to go in.
fn has_room(free: u64, bytes: u64, reserve: u64) -> bool {
    free >= bytes.saturating_mul(2).saturating_add(reserve)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_restore_takes_its_size_twice_and_leaves_the_reserve() {
        assert!(has_room(25, 10, 5) && !has_room(24, 10, 5) && has_room(0, 0, 0));
        assert!(!has_room(u64::MAX - 1, u64::MAX, 0), "a size that somebody made up");
    }
}
