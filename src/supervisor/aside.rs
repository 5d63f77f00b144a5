//! Folders of deleted tenants: put aside, brought back, removed for good. And folders that nobody knows.
//!
//! Invariants: a folder is moved only when no process holds it (its lock says so) and never over another one; it is
//! removed only by [`Supervisor::destroy`], whose callers hold a tombstone or an operator's word; no symbolic link is
//! followed. Every step can be repeated after an interruption.

use std::fs;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::FlockOperation;
use serde::Serialize;
use time::OffsetDateTime;
use tokio::sync::oneshot;

use super::Error;
use super::Supervisor;
use super::files;
use super::launch;
use super::remove::remove_tree;
use super::slot::Command;
use super::usage;
use super::usage::Usage;
use crate::ids::TenantId;
use crate::store::spares::Spare;

/// Folders that one look reports, at most.
const MOST_ORPHANS: usize = 1_000;

/// Why a folder is not where it should be.
#[derive(Debug, thiserror::Error)]
pub enum Stuck {
    /// A process holds the folder and could not be stopped.
    #[error("a process still holds {0}")]
    Held(PathBuf),
    /// A folder of that name is there already.
    #[error("{0} is there already")]
    Taken(PathBuf),
    /// The instance did not stop.
    #[error("the instance was not stopped: {0}")]
    Running(Error),
    /// The file system failed.
    #[error("{what}")]
    Io {
        /// What was tried.
        what: String,
        /// How it failed.
        #[source]
        error: io::Error,
    },
    /// This process is going down.
    #[error("the task was ended")]
    Ended,
}

fn failed(what: &str, path: &Path) -> impl FnOnce(io::Error) -> Stuck + use<> {
    let what = format!("{what} {}", path.display());
    move |error| Stuck::Io { what, error }
}

/// What has a directory and no record, or a record and no directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Orphan {
    /// The tenant, or the name of a folder that was put aside.
    pub id: String,
    /// What is there.
    pub kind: OrphanKind,
}

/// What is there of an orphan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum OrphanKind {
    /// A folder among the instances that no record names.
    Instance,
    /// A folder that was put aside, without a tombstone.
    Aside,
    /// A record of a tenant that ran before and has no folder.
    Record,
}

impl Supervisor {
    /// Lets requests finish, at most as long as a drain takes, and stops the instance. The caller has made sure that
    /// nobody may start it any more; a start under way is waited for.
    pub async fn retire(&self, tenant: &TenantId) -> Result<(), Error> {
        let Some(slot) = self.fleet.registry.get(tenant).map(|slot| Arc::clone(&slot)) else { return Ok(()) };
        let (reply, answer) = oneshot::channel();
        let config = &self.fleet.config;
        let patience = config.start_timeout + config.upgrade_timeout + config.drain_timeout + config.stop_timeout * 2;
        let asked = tokio::time::timeout(patience, async {
            if slot.mail.send(Command::Retire(reply)).await.is_ok() {
                // An end of the task without an answer: it has stopped the process on its way down.
                drop(answer.await);
            }
        });
        asked.await.map_err(|_| Error::TenantBusy)
    }

    /// Moves the folder of a stopped instance aside, under `name`. One that was moved before, and one that never was,
    /// are all right.
    pub async fn put_aside(&self, tenant: &TenantId, name: &str) -> Result<(), Stuck> {
        let (from, to) = (self.fleet.folder(tenant), self.fleet.layout.deleted.join(name));
        if from.join("lock").exists() {
            let patience = self.fleet.config.stop_timeout;
            // An earlier life may have died before it could write down what it had started.
            launch::stop_stray_process(&from, patience).await.map_err(failed("look for a process of", &from))?;
        }
        blocking(move || {
            let there = |path: &Path| files::exists(path).map_err(failed("look at", path));
            if !there(&from)? {
                return Ok(());
            }
            let _held = hold(&from)?;
            relocate(&from, &to)
        })
        .await
    }

    /// Moves a folder that was put aside back among the instances.
    pub async fn bring_back(&self, tenant: &TenantId, name: &str) -> Result<(), Stuck> {
        let (to, from) = (self.fleet.folder(tenant), self.fleet.layout.deleted.join(name));
        blocking(
            move || {
                if files::exists(&from).map_err(failed("look at", &from))? { relocate(&from, &to) } else { Ok(()) }
            },
        )
        .await
    }

    /// What lies in a tenant's folder, its log included. Blocks.
    pub fn measure(&self, tenant: &TenantId) -> io::Result<Usage> {
        usage::measure(&self.fleet.folder(tenant))
    }

    /// Says how much memory processes of tenants may have from their next start on. Told once.
    pub fn limit_memory(&self, memory: super::config::Memory) {
        drop(self.fleet.memory.set(memory));
    }

    /// What lies in a folder that was put aside.
    pub async fn size_aside(&self, name: &str) -> Result<Usage, Stuck> {
        let folder = self.fleet.layout.deleted.join(name);
        // What cannot be counted is removed all the same.
        blocking(move || Ok(usage::measure(&folder).unwrap_or_default())).await
    }

    /// Removes a folder that was put aside, for good.
    pub async fn destroy(&self, name: &str) -> Result<(), Stuck> {
        let folder = self.fleet.layout.deleted.join(name);
        blocking(move || remove(&folder)).await
    }

    /// What lies in the data that restores of a tenant replaced.
    pub async fn size_replaced(&self, tenant: &TenantId) -> Result<Usage, Stuck> {
        let (root, tenant) = (self.replaced(), tenant.clone());
        blocking(move || {
            let mut sum = Usage::default();
            for name in replaced_of(&root, &tenant)? {
                let folder = root.join(name);
                let usage = usage::measure(&folder).map_err(failed("measure", &folder))?;
                sum.bytes = sum.bytes.saturating_add(usage.bytes);
                sum.files = sum.files.saturating_add(usage.files);
            }
            Ok(sum)
        })
        .await
    }

    /// Removes the data that restores of a tenant replaced, for good.
    pub async fn destroy_replaced(&self, tenant: &TenantId) -> Result<(), Stuck> {
        let (root, tenant) = (self.replaced(), tenant.clone());
        blocking(move || replaced_of(&root, &tenant)?.into_iter().try_for_each(|name| remove(&root.join(name)))).await
    }

    /// Of the data that restores of a tenant replaced, leaves the oldest, which is what it had before the first of them,
    /// and the newest.
    pub async fn thin_replaced(&self, tenant: &TenantId) -> Result<(), Stuck> {
        let (root, tenant) = (self.replaced(), tenant.clone());
        blocking(move || thin(&root, &tenant)).await
    }

    /// Removes data that restores replaced longer ago than `keep`. How many directories; what cannot be removed is
    /// logged and stays for the next time.
    pub async fn sweep_replaced(&self, keep: Duration, now: OffsetDateTime) -> Result<u64, Stuck> {
        let root = self.replaced();
        blocking(move || sweep(&root, keep, now)).await
    }

    /// Forgets which version an erased tenant had and what ran it.
    pub async fn forget(&self, tenant: &TenantId) -> Result<(), Error> {
        self.fleet.versions.remove(tenant).await?;
        self.fleet.placements.remove(tenant).await?;
        Ok(())
    }

    /// What has a folder and no record, or a record and no folder. Nothing is done about it.
    pub async fn orphans(&self) -> Result<Vec<Orphan>, Stuck> {
        let layout = self.fleet.layout.clone();
        let (names, aside) = blocking(move || {
            let list = |path: &Path| folders(path).map_err(failed("list", path));
            Ok((list(&layout.instances)?, list(&layout.deleted)?))
        })
        .await?;
        let mut found = Vec::new();
        for id in names {
            let known = match TenantId::parse(&id) {
                // A record that cannot be read is a record.
                Ok(tenant) => {
                    !self.fleet.tenants.is_absent(&tenant).await.unwrap_or(false)
                        || !self.fleet.spares.is_absent(&tenant).await.unwrap_or(false)
                }
                Err(_) => false,
            };
            if !known {
                found.push(Orphan { id, kind: OrphanKind::Instance });
            }
        }
        let deleted = self.fleet.tenants.deleted();
        let mut expected: Vec<String> = deleted
            .iter()
            .filter_map(|tenant| tenant.deleted.as_ref().map(|deletion| deletion.folder(&tenant.id)))
            .collect();
        expected.extend(self.fleet.spares.all().iter().map(|spare| Spare::folder(&spare.id)));
        let strays = aside.into_iter().filter(|name| !expected.contains(name));
        found.extend(strays.map(|id| Orphan { id, kind: OrphanKind::Aside }));
        found.extend(self.records_without_folder().await);
        found.truncate(MOST_ORPHANS);
        Ok(found)
    }

    async fn records_without_folder(&self) -> Vec<Orphan> {
        let (mut found, mut after) = (Vec::new(), None);
        loop {
            let page = self.fleet.tenants.page(after.as_ref(), 1_000);
            let Some(last) = page.last() else { return found };
            after = Some(last.id.clone());
            let ran = |id: &TenantId| self.fleet.placements.find(id).is_some_and(|placement| placement.epoch > 0);
            let ran = page.iter().filter(|tenant| tenant.deleted.is_none() && ran(&tenant.id));
            let folders: Vec<(TenantId, PathBuf)> =
                ran.map(|tenant| (tenant.id.clone(), self.fleet.folder(&tenant.id).join("pb_data"))).collect();
            let missing = tokio::task::spawn_blocking(move || {
                let missing = |path: &Path| files::exists(path).is_ok_and(|exists| !exists);
                folders.into_iter().filter(|(_, path)| missing(path)).map(|(id, _)| id).collect::<Vec<_>>()
            });
            let missing = missing.await.unwrap_or_default();
            found.extend(missing.into_iter().map(|id| Orphan { id: id.to_string(), kind: OrphanKind::Record }));
        }
    }

    /// Removes the folder of an orphan, by an operator's word.
    pub async fn remove_orphan(&self, orphan: &Orphan) -> Result<Usage, Stuck> {
        let folder = match orphan.kind {
            OrphanKind::Instance => self.fleet.layout.instances.join(&orphan.id),
            OrphanKind::Aside => self.fleet.layout.deleted.join(&orphan.id),
            OrphanKind::Record => return Ok(Usage::default()),
        };
        blocking(move || {
            let _held = hold(&folder)?;
            let usage = usage::measure(&folder).unwrap_or_default();
            remove(&folder)?;
            Ok(usage)
        })
        .await
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Stuck> + Send + 'static) -> Result<T, Stuck> {
    tokio::task::spawn_blocking(work).await.unwrap_or(Err(Stuck::Ended))
}

/// The names of the folders in a folder; links and hidden names are not ours.
fn folders(path: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if entry.file_type()?.is_dir() && !name.starts_with('.') {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

/// The lock that an instance's process would hold; none in a folder that never had one.
fn hold(folder: &Path) -> Result<Option<File>, Stuck> {
    let path = folder.join("lock");
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed("open", &path)(error)),
    };
    match rustix::fs::flock(file.as_fd(), FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(file)),
        Err(_) => Err(Stuck::Held(folder.to_owned())),
    }
}

/// Whose data a restore replaced, and when, by the name that it is kept under: the tenant, the second, and something
/// random that sorts. What has another name is not ours to remove.
fn replaced_by(name: &str) -> Option<(TenantId, OffsetDateTime)> {
    let mut words = name.splitn(3, '.');
    let tenant = TenantId::parse(words.next()?).ok()?;
    let at = OffsetDateTime::from_unix_timestamp(words.next()?.parse().ok()?).ok()?;
    let (time, random) = words.next()?.split_once('-')?;
    let is_ours = time.len() == 18 && random.len() == 8 && random.bytes().all(|b| b.is_ascii_hexdigit());
    is_ours.then_some((tenant, at))
}

/// The names under which the data of a tenant is kept, the oldest first.
fn replaced_of(root: &Path, tenant: &TenantId) -> Result<Vec<String>, Stuck> {
    let mut found: Vec<(OffsetDateTime, String)> = all_replaced(root)?
        .into_iter()
        .filter_map(|name| {
            let (whose, at) = replaced_by(&name)?;
            (whose == *tenant).then_some((at, name))
        })
        .collect();
    found.sort();
    Ok(found.into_iter().map(|(_, name)| name).collect())
}

fn all_replaced(root: &Path) -> Result<Vec<String>, Stuck> {
    match folders(root) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        found => found.map_err(failed("list", root)),
    }
}

fn thin(root: &Path, tenant: &TenantId) -> Result<(), Stuck> {
    let mut names = replaced_of(root, tenant)?;
    names.pop();
    names.into_iter().skip(1).try_for_each(|name| remove(&root.join(name)))
}

fn sweep(root: &Path, keep: Duration, now: OffsetDateTime) -> Result<u64, Stuck> {
    let mut count = 0;
    for name in all_replaced(root)? {
        if replaced_by(&name).is_some_and(|(_, at)| now - at > keep) {
            match remove(&root.join(&name)) {
                Ok(()) => count += 1,
                Err(error) => tracing::warn!(%error, "data that a restore replaced is removed later"),
            }
        }
    }
    Ok(count)
}

fn relocate(from: &Path, to: &Path) -> Result<(), Stuck> {
    match files::rename_new(from, to) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Err(Stuck::Taken(to.to_owned())),
        Err(error) => return Err(failed("move away", from)(error)),
    }
    // That it is gone from where it was has to survive a power cut as well.
    from.parent().map_or(Ok(()), files::sync_folder).map_err(failed("sync the folder of", from))
}

/// Removes a tree without following a link, for good.
fn remove(folder: &Path) -> Result<(), Stuck> {
    remove_tree(folder).map_err(failed("remove", folder))?;
    folder.parent().map_or(Ok(()), files::sync_folder).map_err(failed("sync the folder of", folder))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_tree_is_removed_and_what_its_links_point_at_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let (tree, outside) = (dir.path().join("tree"), dir.path().join("outside"));
        fs::create_dir_all(tree.join("a/locked")).unwrap();
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("kept"), "kept").unwrap();
        fs::write(tree.join("a/locked/file"), "x").unwrap();
        std::os::unix::fs::symlink(&outside, tree.join("a/link")).unwrap();
        std::os::unix::fs::symlink(outside.join("kept"), tree.join("file-link")).unwrap();
        fs::set_permissions(tree.join("a/locked"), fs::Permissions::from_mode(0o000)).unwrap();
        remove(&tree).unwrap();
        assert!(!tree.exists());
        assert_eq!(fs::read_to_string(outside.join("kept")).unwrap(), "kept");
        remove(&tree).unwrap();
    }

    #[test]
    fn a_held_folder_is_not_taken_and_none_is_moved_over_another() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        fs::create_dir(&from).unwrap();
        fs::write(from.join("lock"), "").unwrap();
        let held = hold(&from).unwrap().unwrap();
        assert!(matches!(hold(&from), Err(Stuck::Held(_))));
        drop(held);
        assert!(hold(&from).unwrap().is_some());
        fs::create_dir(&to).unwrap();
        assert!(matches!(relocate(&from, &to), Err(Stuck::Taken(_))));
        fs::remove_dir(&to).unwrap();
        relocate(&from, &to).unwrap();
        assert!(to.join("lock").exists() && !from.exists());
    }

    /// A folder as a restore leaves it, so long ago.
    fn replaced(root: &Path, tenant: &str, now: OffsetDateTime, days: u64, number: u32) -> PathBuf {
        let at = (now - Duration::from_hours(24 * days)).unix_timestamp();
        let folder = root.join(format!("{tenant}.{at}.20261121T133701042-{number:08x}"));
        fs::create_dir_all(folder.join("pb_data")).unwrap();
        folder
    }

    #[test]
    fn what_restores_replaced_is_found_by_its_tenant_and_by_nobody_else_s_name() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("replaced");
        let [ada, bob] = ["ada", "bob"].map(|id| TenantId::parse(id).unwrap());
        assert_eq!(replaced_of(&root, &ada).unwrap(), [] as [String; 0]);
        let now = OffsetDateTime::now_utc();
        let kept: Vec<_> = [5, 3, 1, 0].into_iter().map(|days| replaced(&root, "ada", now, days, 1)).collect();
        let others = [
            replaced(&root, "ada-2", now, 9, 1),
            replaced(&root, "bob", now, 2, 1),
            root.join("ada.tar"),
            root.join("ada.1.copy"),
            root.join("ada"),
        ];
        for folder in &others {
            fs::create_dir_all(folder).unwrap();
        }
        assert_eq!(replaced_of(&root, &ada).unwrap().len(), 4);
        // What was there before the first of them, and what the last one replaced.
        thin(&root, &ada).unwrap();
        assert_eq!(kept.iter().map(|folder| folder.exists()).collect::<Vec<_>>(), [true, false, false, true]);
        thin(&root, &bob).unwrap();
        assert_eq!(sweep(&root, Duration::from_hours(24 * 4), now).unwrap(), 2, "one of ada's, one of her namesake's");
        assert!(!kept[0].exists() && !others[0].exists() && kept[3].exists());
        assert!(others[1..].iter().all(|folder| folder.exists()), "{others:?}");
    }

    #[test]
    fn what_an_instance_closed_is_swept_as_well() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("replaced");
        let now = OffsetDateTime::now_utc();
        let closed = replaced(&root, "ada", now, 9, 1);
        fs::set_permissions(closed.join("pb_data"), fs::Permissions::from_mode(0o000)).unwrap();
        let other = replaced(&root, "bob", now, 9, 1);
        assert_eq!(sweep(&root, Duration::from_hours(24), now).unwrap(), 2);
        assert!(!closed.exists() && !other.exists());
    }
}
