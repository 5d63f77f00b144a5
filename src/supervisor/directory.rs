//! Instances' folders for those who copy and replace them: backups and restores.
//!
//! A copy is made beside the running or sleeping instance, without stopping anything: whoever copies takes a
//! [`Glance`] first and asks afterwards whether it still [holds](Supervisor::holds). A replacement goes through the task
//! that owns the instance, so no start, upgrade or provisioning happens at the same time.

use std::hash::DefaultHasher;
use std::hash::Hash;
use std::hash::Hasher;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::Instant;

use tempfile::TempDir;
use tokio::sync::oneshot;

use crate::ids::TenantId;
use crate::supervisor::Error;
use crate::supervisor::Supervisor;
use crate::supervisor::choice;
use crate::supervisor::jail;
use crate::supervisor::launch;
use crate::supervisor::replace;
use crate::supervisor::replace::Replacement;
use crate::supervisor::slot::Command;
use crate::supervisor::slot::Slot;
use crate::supervisor::slot::Work;
use crate::supervisor::snapshot;
use crate::supervisor::template::STAGING_PREFIXES;
use crate::supervisor::upgrade;

/// Counters that the tenants share: two that share one only make each other's copies be repeated.
const COUNTERS: usize = 4_096;
/// How often a start under way is looked at.
const LOOK: Duration = Duration::from_millis(20);

/// How often instances were started, and how often their folders were rewritten by something else than themselves.
#[derive(Debug)]
pub(crate) struct Changes {
    starts: Box<[AtomicU64]>,
    rewrites: Box<[AtomicU64]>,
}

impl Default for Changes {
    fn default() -> Self {
        let counters = || std::iter::repeat_with(AtomicU64::default).take(COUNTERS).collect();
        Self { starts: counters(), rewrites: counters() }
    }
}

fn counter<'a>(counters: &'a [AtomicU64], tenant: &TenantId) -> &'a AtomicU64 {
    let mut hasher = DefaultHasher::new();
    tenant.hash(&mut hasher);
    &counters[usize::try_from(hasher.finish() % COUNTERS as u64).unwrap_or_default()]
}

impl Changes {
    /// A start begins. Before anything of its folder is touched.
    pub(crate) fn note_start(&self, tenant: &TenantId) {
        counter(&self.starts, tenant).fetch_add(1, Ordering::SeqCst);
    }

    /// An upgrade, the end of an interrupted one, or a replacement begins.
    pub(crate) fn note_rewrite(&self, tenant: &TenantId) {
        counter(&self.rewrites, tenant).fetch_add(1, Ordering::SeqCst);
    }
}

/// How a folder was when somebody began to copy it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Glance {
    starts: u64,
    rewrites: u64,
    /// Whether a process has it open.
    pub is_served: bool,
}

/// What a data directory that comes from elsewhere was made with.
#[derive(Debug, Clone)]
pub struct Origin {
    /// The version of its template.
    pub hash: Option<String>,
    /// The version of `PocketBase`.
    pub pocketbase: String,
}

/// Why there is nothing to copy.
#[derive(Debug, thiserror::Error)]
pub enum Unready {
    /// It was never started, so it has no data.
    #[error("it has never run")]
    NeverRan,
    /// It starts, upgrades or is replaced all the time.
    #[error("it is being started, upgraded or restored; try again later")]
    Busy,
    /// An upgrade or a restore was interrupted, and the next start deals with that.
    #[error("an interrupted upgrade or restore of it is finished when it wakes; wake it first")]
    Interrupted,
    /// The machine was in the way.
    #[error("look at its folder")]
    Io(#[from] io::Error),
}

impl Supervisor {
    /// The folder of an instance, whether or not it exists.
    pub fn folder(&self, tenant: &TenantId) -> PathBuf {
        self.fleet.folder(tenant)
    }

    /// A folder that goes with the value, or at the next start: on the file system of the instances.
    pub fn scratch(&self) -> io::Result<TempDir> {
        tempfile::Builder::new().prefix(STAGING_PREFIXES[2]).tempdir_in(&self.fleet.layout.staging)
    }

    /// Where data that was replaced is kept.
    pub fn replaced(&self) -> PathBuf {
        self.fleet.layout.instances.with_file_name("replaced")
    }

    /// The version of `PocketBase` that an instance's data has; the newest where nobody noted one. Reads two files.
    pub fn pocketbase_on_disk(&self, tenant: &TenantId) -> io::Result<String> {
        let folder = self.fleet.folder(tenant);
        let hash = snapshot::version(&folder)?.unwrap_or_default();
        let made = self.fleet.templates.pocketbase_of(&hash).unwrap_or_default();
        Ok(self.fleet.binaries.known_or_newest(choice::newer(made, snapshot::pocketbase(&folder)?)))
    }

    /// How many times the instance was started, by the record of it.
    pub fn epoch(&self, tenant: &TenantId) -> u64 {
        self.fleet.placements.find(tenant).map_or(0, |placement| placement.epoch)
    }

    /// Whether a replacement of its data was begun and not finished: its next start does that.
    pub fn is_being_replaced(&self, tenant: &TenantId) -> bool {
        replace::is_pending(&self.fleet.folder(tenant))
    }

    fn counted(&self, tenant: &TenantId) -> (u64, u64) {
        let changes = &self.fleet.changes;
        let read = |counters| counter(counters, tenant).load(Ordering::SeqCst);
        (read(&changes.starts), read(&changes.rewrites))
    }

    /// Looks at a folder that somebody is about to copy. A start under way is waited for, for a while.
    pub async fn glance(&self, tenant: &TenantId, patience: Duration) -> Result<Glance, Unready> {
        let (folder, deadline) = (self.fleet.folder(tenant), Instant::now() + patience);
        loop {
            let (starts, rewrites) = self.counted(tenant);
            let state = self.fleet.registry.get(tenant).map(|slot| slot.view.load().state);
            let is_settled = !matches!(state, Some("starting" | "draining"));
            if is_settled {
                // The lock tells of every process, whoever started it.
                let is_served =
                    matches!(state, Some("awake" | "frozen")) || jail::is_locked(&folder.join("lock")).unwrap_or(false);
                if !is_served && (snapshot::is_pending(&folder) || replace::is_pending(&folder)) {
                    return Err(Unready::Interrupted);
                }
                return if folder.join("pb_data").is_dir() {
                    Ok(Glance { starts, rewrites, is_served })
                } else {
                    Err(Unready::NeverRan)
                };
            }
            if Instant::now() >= deadline {
                return Err(Unready::Busy);
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Whether what was copied since a glance is good: a served folder was only written by its process, and one that
    /// nobody served was not written at all.
    pub fn holds(&self, tenant: &TenantId, glance: &Glance) -> bool {
        let (starts, rewrites) = self.counted(tenant);
        rewrites == glance.rewrites && (glance.is_served || starts == glance.starts)
    }

    /// Stops an instance, puts another data directory in the place of its own, and lets it start again. Requests that
    /// come meanwhile wait as for a start; clients of its event streams are made to connect anew. What was there is
    /// kept under [`replaced`](Self::replaced), by this name.
    ///
    /// `staged` is a folder of `scratch`, which goes with the work and not with the caller: one who gives up while the
    /// directories change places must not take away what is being put in.
    pub async fn replace(
        &self,
        tenant: &TenantId,
        (scratch, staged): (TempDir, PathBuf),
        origin: Origin,
        kept: &str,
    ) -> Result<(), Error> {
        self.fleet.standing(tenant)?;
        // Given back however this ends, or the slot would never be forgotten.
        let waiting = Waiting(self.fleet.slot(tenant)?);
        let slot = &waiting.0;
        let (fleet, id) = (Arc::clone(&self.fleet), tenant.clone());
        let Origin { hash, pocketbase } = origin;
        let replacement = Replacement { hash, pocketbase: Some(pocketbase), kept: self.replaced().join(kept) };
        let work = Work(Box::pin(async move {
            // A deletion that came since then waits for this task, or has been through: nothing is made behind its back.
            fleet.standing(&id)?;
            let folder = fleet.folder(&id);
            let failed = |reason: String| Error::Blocked { reason };
            upgrade::unlocked(&fleet, &folder).await.map_err(failed)?;
            // A new epoch: nothing that knew the old data is taken for its successor's.
            let epoch = fleet.placements.acquire(&id).await.map_err(|error| Error::Store(error.to_string()))?;
            let replaced = upgrade::blocking(&folder, move |folder| {
                std::fs::create_dir_all(folder)?;
                if replace::is_pending(folder) {
                    replace::finish(folder)?;
                }
                // Done before, by somebody who was interrupted after it.
                if replacement.kept.exists() {
                    return Ok(());
                }
                // Also without data: what an interrupted roll-back was about to put back is kept like any other.
                snapshot::recover(folder)?;
                let begun = replace::begin(folder, &staged, &replacement);
                drop(scratch);
                begun
            });
            let outcome = replaced.await.map_err(failed);
            launch::release(&fleet, &id, epoch).await;
            // Nobody listens: nobody has to know.
            drop(fleet.upgrades.done.send(id));
            outcome
        }));
        let (reply, answer) = oneshot::channel();
        let config = &self.fleet.config;
        let patience = config.start_timeout + config.drain_timeout + config.stop_timeout * 4;
        let asked = tokio::time::timeout(patience, async {
            slot.mail.send(Command::Alone(work, reply)).await.map_err(|_| Error::ShuttingDown)?;
            answer.await.unwrap_or(Err(Error::ShuttingDown))
        });
        asked.await.unwrap_or(Err(Error::TenantBusy))
    }
}

/// Somebody who waits on a slot.
struct Waiting(Arc<Slot>);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::SeqCst);
    }
}
