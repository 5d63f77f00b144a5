//! `place.<tenant>`: who runs a tenant, and the epoch that tells one run from the next.
//!
//! Invariants: the epoch grows by one at each acquisition and never shrinks, also when the tenant is idle; records are
//! therefore never deleted. Ownership changes by compare-and-swap only. A refused swap is looked at again: where the
//! record is still ours to change the swap is tried once more, where another incarnation took it the caller lost.

use std::net::SocketAddr;
use std::ops::Bound;
use std::sync::Arc;

use serde::Deserialize;
use serde::Serialize;

use super::Error;
use super::Revision;
use super::Store;
use super::table::Read;
use super::table::Step;
use super::table::Table;
use super::view::Record;
use crate::ids::TenantId;

/// What proves that a running process is the one we started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessIdentity {
    /// The kernel's id of this boot.
    pub boot_id: String,
    /// The process id.
    pub pid: i32,
    /// Field 22 of `/proc/<pid>/stat`.
    pub start_tick: u64,
    /// Inode of a pidfd of the process (unique per process since Linux 6.9).
    pub pidfd_inode: u64,
    /// Where it listens.
    pub address: SocketAddr,
    /// SHA-256 of the `PocketBase` binary.
    pub binary_sha256: String,
    /// The sandbox that it was put into, in short. Empty in records of a time without one.
    #[serde(default)]
    pub jail_profile: String,
}

/// Whether somebody runs the tenant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum Occupancy {
    /// Nobody does.
    Idle,
    /// An incarnation of pocketfleet does, or is about to.
    Owned {
        /// Which one: random per start of pocketfleet.
        incarnation: String,
        /// The process, once it was started.
        process: Option<ProcessIdentity>,
    },
}

/// Who runs a tenant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placement {
    /// The tenant.
    pub tenant: TenantId,
    /// Counts the acquisitions: grows by one at each, never shrinks.
    pub epoch: u64,
    /// Who runs it in this epoch.
    #[serde(flatten)]
    pub occupancy: Occupancy,
}

impl Placement {
    /// The incarnation that owns the tenant.
    fn owner(&self) -> Option<&str> {
        match &self.occupancy {
            Occupancy::Owned { incarnation, .. } => Some(incarnation),
            Occupancy::Idle => None,
        }
    }
}

fn key_of(id: &TenantId) -> String {
    format!("{}{id}", Placement::PREFIX)
}

impl Record for Placement {
    const PREFIX: &'static str = "place.";
    type Id = TenantId;
    type Index = TenantId;

    fn id(&self) -> TenantId {
        self.tenant.clone()
    }

    fn key(&self) -> String {
        key_of(&self.tenant)
    }

    fn parse_id(rest: &str) -> Option<TenantId> {
        TenantId::parse(rest).ok()
    }

    /// Only the owned ones are listed.
    fn index(&self) -> Option<TenantId> {
        self.owner().map(|_| self.tenant.clone())
    }
}

/// The placements: typed records plus an in-memory view fed by the watch. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Placements {
    table: Table<Placement>,
    incarnation: Arc<str>,
}

impl Placements {
    /// Loads the view and follows the store, on the caller's runtime, until the last handle is gone or the store is
    /// closed. `incarnation` is random per start of pocketfleet.
    pub async fn open(store: Arc<dyn Store>, incarnation: String) -> Result<Self, Error> {
        Ok(Self { table: Table::open(store).await?, incarnation: incarnation.into() })
    }

    /// From the view, no I/O.
    pub fn find(&self, id: &TenantId) -> Option<Arc<Placement>> {
        self.table.find(id)
    }

    /// All that say `Owned` (for adoption at start), in id order.
    pub fn owned(&self) -> Vec<Arc<Placement>> {
        let ids = self.table.view().range(Bound::Unbounded, usize::MAX, |_| true);
        let placements = ids.iter().filter_map(|id| self.find(id));
        placements.filter(|placement| placement.owner().is_some()).collect()
    }

    /// Takes the tenant: epoch + 1, `Owned` by this incarnation, no process yet. Durable when it returns the epoch.
    ///
    /// What an earlier incarnation owned is taken over as well: the caller has made sure that its process is gone.
    /// [`Error::Stale`] when another incarnation took the tenant meanwhile.
    pub async fn acquire(&self, id: &TenantId) -> Result<u64, Error> {
        let mut first = None;
        let decide = |current: Option<&Read<Placement>>| {
            self.refuse_if_lost(&mut first, current)?;
            let epoch = current.map_or(0, |read| read.record.epoch).checked_add(1).ok_or(Error::Stale)?;
            Ok(Step::Write(self.owned_by_us(id, epoch, None)))
        };
        let placement = self.table.change(&key_of(id), decide).await?;
        placement.map(|placement| placement.epoch).ok_or(Error::Stale)
    }

    /// Notes the process of an epoch we own. [`Error::Stale`] when the epoch is no longer ours.
    pub async fn started(&self, id: &TenantId, epoch: u64, process: ProcessIdentity) -> Result<(), Error> {
        let decide = |current: Option<&Read<Placement>>| {
            self.require_ours(current, epoch)?;
            Ok(Step::Write(self.owned_by_us(id, epoch, Some(process.clone()))))
        };
        self.table.change(&key_of(id), decide).await.map(drop)
    }

    /// Takes over an owned placement of an earlier incarnation without a new epoch (the process goes on). Nothing
    /// changes when it is ours already. [`Error::Stale`] when the epoch is over, the tenant is idle, or another
    /// incarnation took it meanwhile.
    pub async fn adopt(&self, id: &TenantId, epoch: u64) -> Result<(), Error> {
        let mut first = None;
        let decide = |current: Option<&Read<Placement>>| {
            self.refuse_if_lost(&mut first, current)?;
            let placement = &current.ok_or(Error::Stale)?.record;
            match &placement.occupancy {
                Occupancy::Owned { incarnation, process } if placement.epoch == epoch => {
                    let ours = **incarnation == *self.incarnation;
                    Ok(if ours { Step::Keep } else { Step::Write(self.owned_by_us(id, epoch, process.clone())) })
                }
                _ => Err(Error::Stale),
            }
        };
        self.table.change(&key_of(id), decide).await.map(drop)
    }

    /// The process is gone. [`Error::Stale`] when the epoch is no longer ours.
    pub async fn release(&self, id: &TenantId, epoch: u64) -> Result<(), Error> {
        let decide = |current: Option<&Read<Placement>>| {
            self.require_ours(current, epoch)?;
            Ok(Step::Write(Placement { tenant: id.clone(), epoch, occupancy: Occupancy::Idle }))
        };
        self.table.change(&key_of(id), decide).await.map(drop)
    }

    /// Forgets the placement of a tenant that was erased; one that is owned stays.
    pub async fn remove(&self, id: &TenantId) -> Result<(), Error> {
        self.table.remove(&key_of(id), |placement| placement.owner().is_none()).await.map(drop)
    }

    /// Of a control database that was put back from a backup: nobody runs the tenant, and the epoch is beyond every one
    /// that is known of.
    pub async fn put_back(&self, id: &TenantId, epoch: u64) -> Result<(), Error> {
        let decide = |current: Option<&Read<Placement>>| {
            let epoch = current.map_or(0, |read| read.record.epoch).max(epoch).checked_add(1).ok_or(Error::Stale)?;
            Ok(Step::Write(Placement { tenant: id.clone(), epoch, occupancy: Occupancy::Idle }))
        };
        self.table.change(&key_of(id), decide).await.map(drop)
    }

    fn owned_by_us(&self, id: &TenantId, epoch: u64, process: Option<ProcessIdentity>) -> Placement {
        let occupancy = Occupancy::Owned { incarnation: (*self.incarnation).to_owned(), process };
        Placement { tenant: id.clone(), epoch, occupancy }
    }

    fn require_ours(&self, current: Option<&Read<Placement>>, epoch: u64) -> Result<(), Error> {
        let ours = |placement: &Placement| placement.epoch == epoch && placement.owner() == Some(&*self.incarnation);
        if current.is_some_and(|read| ours(&read.record)) { Ok(()) } else { Err(Error::Stale) }
    }

    /// `first` remembers the revision that the first attempt saw (0 = no record). A later attempt that sees another
    /// one, written by another incarnation, has lost against it; without this, two incarnations would take the
    /// tenant from each other in turn.
    fn refuse_if_lost(&self, first: &mut Option<Revision>, current: Option<&Read<Placement>>) -> Result<(), Error> {
        let revision = current.map_or(Revision(0), |read| read.revision);
        let changed = *first.get_or_insert(revision) != revision;
        let owner = current.and_then(|read| read.record.owner());
        if changed && owner.is_some_and(|owner| owner != &*self.incarnation) { Err(Error::Stale) } else { Ok(()) }
    }
}
