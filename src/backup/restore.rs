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
use super::SnapshotId;
use super::take;
use crate::failpoint;
use crate::ids::TenantId;
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
    /// `kept` names what is put away; where that lies already, this was done before.
    pub async fn restore(
        &self,
        tenant: &TenantId,
        from: &TenantId,
        id: &SnapshotId,
        kept: &str,
    ) -> Result<Restored, Error> {
        if tenant.is_global() || *tenant == super::control() || *from == super::control() {
            return Err(Error::FleetOnly);
        }
        self.inner.tenants.find(tenant).ok_or(Error::UnknownTenant)?;
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
        let scratch = supervisor.scratch().map_err(Error::io("make a scratch folder"))?;
        let (data, trial) = (scratch.path().join("data"), scratch.path().join("trial"));
        for folder in [&data, &trial] {
            std::fs::create_dir(folder).map_err(Error::io("make a scratch folder"))?;
        }
        let repository = self.repository()?;
        // What was served once holds lines of that in its log; what goes in is a copy that was not.
        repository.try_out(from, id, &trial, Some(supervisor), scratch.path()).await?;
        let (manifest, key) = repository.manifest(from, id).await?;
        repository.write_out(&manifest, &key, &data).await?;
        failpoint::hit("backup.restore.tried");
        let origin = Origin { hash: manifest.template_hash.clone(), pocketbase: manifest.pocketbase.clone() };
        supervisor.replace(tenant, data, origin, kept).await?;
        failpoint::hit("backup.restore.done");
        tracing::info!(tenant.id = %tenant, backup.id = %id, kept, "restored a backup");
        take::blocking(move || drop(scratch)).await?;
        Ok(done)
    }
}
