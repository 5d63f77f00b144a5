//! A whole fleet from its backups onto an empty machine, without a server.
//!
//! Everything is assembled in `restoring/` in the data directory and moved into place at the end, the control database
//! last. `serve` refuses a directory with that folder. A second try throws it away and begins again, unless it was whole
//! already: then it goes on with moving.

use std::os::unix::fs::DirBuilderExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;

use futures_util::StreamExt;
use futures_util::stream;
use serde::Deserialize;
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
use crate::store::tenants::Stage;
use crate::store::tenants::Tenants;
use crate::supervisor::note_origin;
use crate::vault;
use crate::vault::KEY_FILE;
use crate::vault::Masters;

/// Where everything lies until it is whole.
pub const RESTORING: &str = "restoring";
/// What is left of that once everything is in place, for a moment.
const RESTORED: &str = "restored";
/// In it, when it is whole: what was restored. From then on it goes into place, whatever happens.
const COMPLETE: &str = "complete.json";
/// A deleted tenant, and the folder that its data is to be put aside as.
type Aside = (TenantId, String);

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
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
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

fn remove(folder: &Path) -> std::io::Result<()> {
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Refuses a directory that holds anything but the master key and what an interrupted restore left.
fn prepare(data: &Path) -> Result<PathBuf, Error> {
    make(data)?;
    let read = Error::io("read the data directory");
    for entry in std::fs::read_dir(data).map_err(read)? {
        let name = entry.map_err(Error::io("read the data directory"))?.file_name();
        if name != KEY_FILE && name != RESTORING && name != RESTORED {
            return Err(Error::TooMuch("the data directory is not empty; a fleet is restored into an empty one"));
        }
    }
    let root = data.join(RESTORING);
    remove(&root).map_err(Error::io("clear restoring/"))?;
    for name in ["instances", "deleted"] {
        make(&root.join(name))?;
    }
    Ok(root)
}

/// Restores everything. `report` is told how many of how many tenants are done.
pub async fn restore_fleet(order: &Order<'_>, mut report: impl FnMut(usize, usize)) -> Result<FleetRestored, Error> {
    let (data, root) = (order.data.to_owned(), order.data.join(RESTORING));
    if let Some(restored) = blocking(move || resume(&root, &data)).await?? {
        return Ok(restored);
    }
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
    let mut left = wanted;
    // What failed is tried once more at the end: a store that is far away fails now and then.
    for is_last in [false, true] {
        let mut work = stream::iter(std::mem::take(&mut left))
            .map(|(tenant, id)| {
                let (repository, folder) = (&repository, root.join("instances").join(tenant.as_str()));
                async move {
                    let outcome = instance(repository, &tenant, &id, &folder).await;
                    (tenant, id, outcome)
                }
            })
            .buffer_unordered(AT_ONCE);
        while let Some((tenant, id, outcome)) = work.next().await {
            match outcome {
                Ok(manifest) => {
                    bytes += manifest.bytes;
                    restored.push((tenant, manifest.epoch));
                }
                Err(error) if is_for_all(&error) => return Err(error),
                // One backup that cannot be read must not keep everybody else away.
                Err(error) if is_last => failed.push((tenant, error.to_string())),
                Err(_) => {
                    left.push((tenant, id));
                    continue;
                }
            }
            report(restored.len() + failed.len(), total);
        }
    }
    let (missing, aside) = settle(&root.join("control.db"), &restored).await?;
    let missing = missing.into_iter().filter(|tenant| failed.iter().all(|(failed, _)| failed != tenant)).collect();
    failpoint::hit("backup.fleet.assembled");
    let done = FleetRestored { control_at: manifest.taken_at, restored: restored.len(), bytes, missing, failed };
    let data = order.data.to_owned();
    let work = move || {
        for (tenant, name) in aside {
            std::fs::rename(root.join("instances").join(tenant.as_str()), root.join("deleted").join(name))?;
        }
        give(&root, &data)?;
        complete(&root, &done)?;
        publish(&root, &data).map(|()| done)
    };
    blocking(work).await?.map_err(Error::io("move the restored fleet into place"))
}

/// Whether everybody else would fail as well.
fn is_for_all(error: &Error) -> bool {
    use std::io::ErrorKind;
    let is_full =
        |kind| matches!(kind, ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::ReadOnlyFilesystem);
    match error {
        Error::Io { source, .. } => is_full(source.kind()),
        Error::Stopping => true,
        _ => false,
    }
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
            // Golden directories are not backed up, and nothing else says which PocketBase may have it.
            let noted = note_origin(folder, manifest.template_hash.as_deref(), &manifest.pocketbase);
            noted.map_err(Error::io("note its version and its PocketBase"))?;
            Ok(manifest)
        }
        Err(error) => {
            // Half a directory must not be taken for a whole one.
            remove(folder).map_err(Error::io("remove what could not be restored"))?;
            Err(error)
        }
    }
}

/// Nobody runs anything of this fleet, whatever the records say: the processes that they name belong to the fleet that
/// was backed up. Who should have data and has none; and who is deleted and has data, with the name under which that is
/// to lie aside.
async fn settle(control: &Path, restored: &[(TenantId, u64)]) -> Result<(Vec<TenantId>, Vec<Aside>), Error> {
    let database = Arc::new(ControlDatabase::open(control)?);
    let store: Arc<dyn Store> = Arc::clone(&database) as Arc<dyn Store>;
    let settled = async {
        let placements = Placements::open(Arc::clone(&store), "restore-fleet".to_owned()).await?;
        for (tenant, epoch) in restored {
            placements.put_back(tenant, *epoch).await?;
        }
        let tenants = Tenants::open(Arc::clone(&store)).await?;
        let (mut missing, mut aside, mut after) = (Vec::new(), Vec::new(), None);
        loop {
            let page = tenants.page(after.as_ref(), 1_000);
            let Some(last) = page.last() else { break };
            after = Some(last.id.clone());
            for tenant in page {
                let is_restored = restored.iter().any(|(id, _)| *id == tenant.id);
                if let Some(deletion) = &tenant.deleted
                    && is_restored
                    && matches!(deletion.stage, Stage::Gone | Stage::Erasing)
                {
                    aside.push((tenant.id.clone(), deletion.folder(&tenant.id)));
                }
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
        // Also of those that are no tenants: instances that nobody had yet.
        for placement in placements.owned() {
            placements.put_back(&placement.tenant, placement.epoch).await?;
        }
        Ok::<_, Error>((missing, aside))
    };
    let outcome = settled.await;
    database.close().await;
    outcome
}

/// Gives everything to whoever the data directory belongs to: an operator restores as root what a service runs.
fn give(root: &Path, data: &Path) -> std::io::Result<()> {
    let owner = std::fs::metadata(data)?;
    let is_ours = owner.uid() == std::fs::metadata(root)?.uid();
    if is_ours { Ok(()) } else { give_all(root, owner.uid(), owner.gid()) }
}

fn give_all(folder: &Path, user: u32, group: u32) -> std::io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            give_all(&entry.path(), user, group)?;
        } else {
            std::os::unix::fs::lchown(entry.path(), Some(user), Some(group))?;
        }
    }
    std::os::unix::fs::lchown(folder, Some(user), Some(group))
}

/// Makes it certain that what was assembled goes into place.
fn complete(root: &Path, done: &FleetRestored) -> std::io::Result<()> {
    let sync = |path: &Path| std::fs::File::open(path)?.sync_all();
    for name in ["instances", "deleted", "control.db"] {
        sync(&root.join(name))?;
    }
    let fresh = root.join("complete.new");
    std::fs::write(&fresh, serde_json::to_vec(done)?)?;
    sync(&fresh)?;
    std::fs::rename(&fresh, root.join(COMPLETE))?;
    sync(root)
}

/// Finishes what was interrupted while it was moved into place; none when there is nothing of the kind.
fn resume(root: &Path, data: &Path) -> Result<Option<FleetRestored>, Error> {
    let done = match std::fs::read(root.join(COMPLETE)) {
        Ok(text) => serde_json::from_slice(&text),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io("read what was restored before")(error)),
    };
    let done = done.map_err(|error| Error::io("read what was restored before")(error.into()))?;
    publish(root, data).map_err(Error::io("move the restored fleet into place"))?;
    Ok(Some(done))
}

/// Moves everything that is not there yet. A second time does what the first left.
fn publish(root: &Path, data: &Path) -> std::io::Result<()> {
    let sync = |folder: &Path| std::fs::File::open(folder)?.sync_all();
    for name in ["instances", "deleted", "control.db"] {
        if root.join(name).exists() {
            std::fs::rename(root.join(name), data.join(name))?;
            sync(root)?;
            sync(data)?;
        }
        failpoint::hit("backup.fleet.moved");
    }
    let rest = data.join(RESTORED);
    remove(&rest)?;
    std::fs::rename(root, &rest)?;
    sync(data)?;
    remove(&rest)?;
    sync(data)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A fleet that was assembled and is ready to go into place.
    fn assembled(data: &Path) -> (PathBuf, FleetRestored) {
        let root = prepare(data).unwrap();
        std::fs::create_dir_all(root.join("instances/ada/pb_data")).unwrap();
        std::fs::create_dir_all(root.join("deleted/bob-1")).unwrap();
        std::fs::write(root.join("control.db"), "control").unwrap();
        let control_at = time::macros::datetime!(2026-11-21 13:30 UTC);
        let failed = vec![(TenantId::parse("eve").unwrap(), "damaged".to_owned())];
        let done = FleetRestored { control_at, restored: 1, bytes: 7, missing: Vec::new(), failed };
        complete(&root, &done).unwrap();
        (root, done)
    }

    #[test]
    fn what_was_interrupted_while_it_moved_is_finished_from_every_point() {
        for moved in 0..=3 {
            let dir = tempfile::tempdir().unwrap();
            let data = dir.path().join("data");
            let (root, done) = assembled(&data);
            for name in ["instances", "deleted", "control.db"].into_iter().take(moved) {
                std::fs::rename(root.join(name), data.join(name)).unwrap();
            }
            assert_eq!(resume(&root, &data).unwrap(), Some(done), "{moved}");
            assert!(data.join("instances/ada/pb_data").is_dir() && data.join("deleted/bob-1").is_dir());
            assert_eq!(std::fs::read_to_string(data.join("control.db")).unwrap(), "control");
            assert!(!root.exists() && !data.join(RESTORED).exists());
            assert_eq!(resume(&root, &data).unwrap(), None, "nothing is left to do");
            assert!(prepare(&data).is_err(), "and it is not empty any more");
        }
    }

    #[tokio::test]
    async fn nothing_that_was_running_then_is_taken_for_ours_whoever_it_belongs_to() {
        let dir = tempfile::tempdir().unwrap();
        let control = dir.path().join("control.db");
        let open = || Arc::new(ControlDatabase::open(&control).unwrap());
        // An instance that nobody had yet: there is no tenant of that name.
        let spare = TenantId::parse("b5c3xih3gtjb48z").unwrap();
        let database = open();
        let placements = Placements::open(Arc::clone(&database) as Arc<dyn Store>, "then".to_owned()).await.unwrap();
        placements.acquire(&spare).await.unwrap();
        database.close().await;

        assert!(settle(&control, &[]).await.unwrap().0.is_empty());
        let database = open();
        let placements = Placements::open(Arc::clone(&database) as Arc<dyn Store>, "now".to_owned()).await.unwrap();
        let found = placements.find(&spare).unwrap();
        assert_eq!((found.epoch, &found.occupancy), (2, &Occupancy::Idle), "and no epoch is used twice");
        assert!(placements.owned().is_empty());
        database.close().await;
    }

    #[test]
    fn what_is_not_whole_is_begun_anew() {
        let dir = tempfile::tempdir().unwrap();
        let (root, _) = assembled(dir.path());
        std::fs::rename(root.join(COMPLETE), root.join("complete.new")).unwrap();
        assert_eq!(resume(&root, dir.path()).unwrap(), None);
        prepare(dir.path()).unwrap();
        assert!(!root.join("control.db").exists() && root.join("deleted").is_dir());
    }

    #[test]
    fn a_full_disk_is_everybody_s_and_a_failing_store_is_one_tenant_s() {
        use std::io::ErrorKind;
        let io = |kind: ErrorKind| Error::io("write")(kind.into());
        assert!(is_for_all(&io(ErrorKind::StorageFull)) && is_for_all(&Error::Stopping));
        for error in [io(ErrorKind::NotADirectory), Error::Store("away".to_owned()), Error::Sealed, Error::NotFound] {
            assert!(!is_for_all(&error), "{error}");
        }
    }

    #[test]
    fn everything_belongs_to_whoever_the_data_directory_belongs_to() {
        let dir = tempfile::tempdir().unwrap();
        let own = std::fs::metadata(dir.path()).unwrap();
        // Only root gives files away; whoever else runs this gives them to themselves.
        let (user, group) = if own.uid() == 0 { (4_711, 4_712) } else { (own.uid(), own.gid()) };
        let (root, _) = assembled(dir.path());
        std::os::unix::fs::symlink("/etc/passwd", root.join("instances/ada/link")).unwrap();
        std::os::unix::fs::chown(dir.path(), Some(user), Some(group)).unwrap();
        give(&root, dir.path()).unwrap();
        for name in ["", "instances", "instances/ada/pb_data", "deleted/bob-1", "control.db", "instances/ada/link"] {
            let found = std::fs::symlink_metadata(root.join(name)).unwrap();
            assert_eq!((found.uid(), found.gid()), (user, group), "{name}");
        }
        assert_ne!(std::fs::metadata("/etc/passwd").unwrap().uid(), 4_711);
    }
}
