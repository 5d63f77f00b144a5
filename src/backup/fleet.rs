//! A whole fleet from its backups onto an empty machine, without a server.
//!
//! Everything is assembled in `restoring/` in the data directory and moved into place at the end, the control database
//! last. `serve` refuses a directory with that folder, and a second try throws it away and begins again.

use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;

use futures_util::StreamExt;
use futures_util::stream;
use serde::Serialize;
use time::OffsetDateTime;

use super::Error;
use super::config::Config;
use super::manifest::Manifest;
use super::manifest::SnapshotId;
use super::repository;
use super::repository::Repository;
use super::repository::Use;
use super::take::blocking;
use crate::failpoint;
use crate::ids::TenantId;
use crate::outbound;
use crate::store::Store;
use crate::store::placements::Occupancy;
use crate::store::placements::Placements;
use crate::store::sqlite::ControlDatabase;
use crate::store::tenants::Tenants;
use crate::vault;
use crate::vault::KEY_FILE;
use crate::vault::Masters;

/// Where everything lies until it is whole.
pub const RESTORING: &str = "restoring";
/// Tenants that are read back at once.
const AT_ONCE: usize = 4;

/// What to restore, and onto what.
#[derive(Debug)]
pub struct Order<'a> {
    /// `[backup]`, for the credentials of a bucket.
    pub config: &'a Config,
    /// `[outbound]`
    pub outbound: &'a outbound::Config,
    /// `[vault]`: where the master key is.
    pub vault: &'a vault::Config,
    /// The store: `dir:…` or `s3:…`.
    pub from: &'a str,
    /// The data directory, which must be empty but for the master key's file.
    pub data: &'a Path,
    /// No snapshot that was taken after this.
    pub at: Option<OffsetDateTime>,
}

/// What was restored.
#[derive(Debug, Serialize)]
pub struct FleetRestored {
    /// When the control database was copied.
    #[serde(with = "time::serde::rfc3339")]
    pub control_at: OffsetDateTime,
    /// Tenants whose data is there, the global instance included.
    pub restored: usize,
    /// Their bytes.
    pub bytes: u64,
    /// Tenants that have run and have no backup: they will not start.
    pub missing: Vec<TenantId>,
    /// Tenants whose backups cannot be read, and why: they will not start.
    pub failed: Vec<(TenantId, String)>,
}

fn make(folder: &Path) -> Result<(), Error> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(Error::io("make a folder"))
}

/// Refuses a directory that holds anything but the master key and what an interrupted restore left.
fn prepare(data: &Path) -> Result<PathBuf, Error> {
    make(data)?;
    let read = Error::io("read the data directory");
    for entry in std::fs::read_dir(data).map_err(read)? {
        let name = entry.map_err(Error::io("read the data directory"))?.file_name();
        if name != KEY_FILE && name != RESTORING {
            return Err(Error::TooMuch("the data directory is not empty; a fleet is restored into an empty one"));
        }
    }
    let root = data.join(RESTORING);
    match std::fs::remove_dir_all(&root) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(Error::io("clear restoring/")(error)),
        _ => {}
    }
    make(&root.join("instances"))?;
    Ok(root)
}

/// Restores everything. `report` is told how many of how many tenants are done.
pub async fn restore_fleet(order: &Order<'_>, mut report: impl FnMut(usize, usize)) -> Result<FleetRestored, Error> {
    let blobs = repository::open_place(order.config, order.from, order.outbound, Use::Read)?.ok_or(Error::Off)?;
    let records = repository::masters(&blobs).await?;
    if records.is_empty() {
        return Err(Error::Store("there are no backups at this place".to_owned()));
    }
    let masters = Masters::unlock(order.vault, order.data, &records).await;
    let masters = masters.map_err(|error| Error::Store(error.to_string()))?;
    let repository = Repository::new(blobs, Arc::new(masters));
    let everything = repository.everything().await?;
    let newest = |ids: &[SnapshotId]| ids.iter().rev().find(|id| order.at.is_none_or(|at| id.at() <= at)).cloned();
    let control = super::control();
    let control_id = everything.get(&control).and_then(|ids| newest(ids)).ok_or(Error::NotFound)?;
    // Before anything is written: with the wrong key this ends here.
    repository.manifest(&control, &control_id).await?;
    let root = prepare(order.data)?;
    let (manifest, _) = repository.try_out(&control, &control_id, &root, None, &root).await?;
    failpoint::hit("backup.fleet.control");

    let wanted: Vec<(TenantId, SnapshotId)> = everything
        .iter()
        .filter(|(tenant, _)| **tenant != control)
        .filter_map(|(tenant, ids)| Some((tenant.clone(), newest(ids)?)))
        .collect();
    let total = wanted.len();
    let (mut restored, mut failed, mut bytes) = (Vec::new(), Vec::new(), 0);
    let mut work = stream::iter(wanted)
        .map(|(tenant, id)| {
            let (repository, folder) = (&repository, root.join("instances").join(tenant.as_str()));
            async move { (tenant.clone(), instance(repository, &tenant, &id, &folder).await) }
        })
        .buffer_unordered(AT_ONCE);
    while let Some((tenant, outcome)) = work.next().await {
        match outcome {
            Ok(manifest) => {
                bytes += manifest.bytes;
                restored.push((tenant, manifest.epoch));
            }
            // One damaged backup must not keep everybody else away.
            Err(error @ (Error::Damaged(_) | Error::Failed(_) | Error::Sealed)) => {
                failed.push((tenant, error.to_string()));
            }
            Err(error) => return Err(error),
        }
        report(restored.len() + failed.len(), total);
    }
    drop(work);
    let missing = settle(&root.join("control.db"), &restored).await?;
    let missing = missing.into_iter().filter(|tenant| failed.iter().all(|(failed, _)| failed != tenant)).collect();
    failpoint::hit("backup.fleet.assembled");
    let data = order.data.to_owned();
    blocking(move || publish(&root, &data)).await?.map_err(Error::io("move the restored fleet into place"))?;
    Ok(FleetRestored { control_at: manifest.taken_at, restored: restored.len(), bytes, missing, failed })
}

/// One instance, in its folder.
async fn instance(
    repository: &Repository,
    tenant: &TenantId,
    id: &SnapshotId,
    folder: &Path,
) -> Result<Manifest, Error> {
    let data = folder.join("pb_data");
    make(&data)?;
    let outcome = repository.try_out(tenant, id, &data, None, folder).await;
    match outcome {
        Ok((manifest, _)) => {
            if let Some(hash) = &manifest.template_hash {
                std::fs::write(folder.join("template"), hash).map_err(Error::io("note its version"))?;
            }
            // Golden directories are not backed up, and nothing else says which PocketBase may have it.
            let noted = std::fs::write(folder.join("pocketbase"), &manifest.pocketbase);
            noted.map_err(Error::io("note its PocketBase"))?;
            Ok(manifest)
        }
        Err(error) => {
            // Half a directory must not be taken for a whole one.
            std::fs::remove_dir_all(folder).map_err(Error::io("remove what could not be restored"))?;
            Err(error)
        }
    }
}

/// Nobody runs anything of this fleet, whatever the records say: the processes that they name belong to the fleet that
/// was backed up. Who should have data and has none.
async fn settle(control: &Path, restored: &[(TenantId, u64)]) -> Result<Vec<TenantId>, Error> {
    let database = Arc::new(ControlDatabase::open(control)?);
    let store: Arc<dyn Store> = Arc::clone(&database) as Arc<dyn Store>;
    let settled = async {
        let placements = Placements::open(Arc::clone(&store), "restore-fleet".to_owned()).await?;
        for (tenant, epoch) in restored {
            placements.put_back(tenant, *epoch).await?;
        }
        let tenants = Tenants::open(Arc::clone(&store)).await?;
        let (mut missing, mut after) = (Vec::new(), None);
        loop {
            let page = tenants.page(after.as_ref(), 1_000);
            let Some(last) = page.last() else { break };
            after = Some(last.id.clone());
            for tenant in page {
                let is_restored = restored.iter().any(|(id, _)| *id == tenant.id);
                let Some(placement) = placements.find(&tenant.id).filter(|found| !is_restored && found.epoch > 0)
                else {
                    continue;
                };
                if placement.occupancy != Occupancy::Idle {
                    placements.put_back(&tenant.id, placement.epoch).await?;
                }
                missing.push(tenant.id.clone());
            }
        }
        Ok::<_, Error>(missing)
    };
    let outcome = settled.await;
    database.close().await;
    outcome
}

fn publish(root: &Path, data: &Path) -> std::io::Result<()> {
    let sync = |folder: &Path| std::fs::File::open(folder)?.sync_all();
    for name in ["instances", "control.db"] {
        sync(root)?;
        std::fs::rename(root.join(name), data.join(name))?;
        sync(data)?;
        failpoint::hit("backup.fleet.moved");
    }
    std::fs::remove_dir_all(root)?;
    sync(data)
}
