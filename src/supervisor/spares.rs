//! Instances that nobody has yet: made and started like any other, and not anybody's.
//!
//! A spare has a record (`store::spares`) and no tenant. Everything here that looks for a tenant in order to run it
//! finds the spare instead ([`Fleet::find`]); whoever looks for one in order to serve somebody finds nothing, because a
//! lease asks for the tenant's own record. Once there is such a record the spare is an instance like any other.
//!
//! Deliberately absent: how many there are to be, and who gets one (see `spares`).

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Instant;

use super::Error;
use super::Priority;
use super::Supervisor;
use super::aside::Stuck;
use super::fleet::Fleet;
use super::snapshot;
use super::upgrade;
use crate::failpoint;
use crate::ids::TenantId;
use crate::store::spares::Spare;
use crate::store::tenants::Tenant;

/// Of so many places under the cap, one is left to clients, and one in any case.
const PLACES_PER_FREE_ONE: usize = 10;

impl Fleet {
    /// The tenant, or what a spare is as long as nobody has it.
    pub(crate) fn find(&self, id: &TenantId) -> Option<Arc<Tenant>> {
        self.tenants.find(id).or_else(|| self.spares.find(id).map(|spare| Arc::new(spare.as_tenant())))
    }

    /// Whether nobody has it yet.
    pub(crate) fn is_spare(&self, id: &TenantId) -> bool {
        self.spares.find(id).is_some() && self.tenants.find(id).is_none()
    }

    /// The processes there may be for another spare to be started.
    pub(crate) fn places_of_spares(&self) -> usize {
        let max = self.config.max_awake;
        max.saturating_sub((max / PLACES_PER_FREE_ONE).max(1))
    }

    /// How many spares are in each state.
    pub(crate) fn spares_by_state(&self) -> BTreeMap<String, usize> {
        let mut states = BTreeMap::new();
        for spare in self.spares.all() {
            if self.is_spare(&spare.id) {
                let state = self.registry.get(&spare.id).map_or("asleep", |slot| slot.view.load().state);
                *states.entry(state.to_owned()).or_default() += 1;
            }
        }
        states
    }
}

impl Supervisor {
    /// Makes sure that a spare runs. [`Error::Capacity`] when the places that are left are for clients.
    pub async fn warm(&self, spare: &TenantId) -> Result<(), Error> {
        if !self.fleet.is_spare(spare) {
            return Err(Error::UnknownTenant);
        }
        self.wait(spare, Priority::Background, Instant::now()).await.1.map(drop)
    }

    /// Whether a spare that sleeps could be started now.
    pub fn has_room_for_spare(&self) -> bool {
        self.fleet.awake() < self.fleet.places_of_spares()
    }

    /// Puts a spare to sleep, so that its next start looks who it belongs to.
    pub async fn rest(&self, spare: &TenantId) -> Result<(), Error> {
        let Some(slot) = self.fleet.registry.get(spare).map(|slot| Arc::clone(&slot)) else { return Ok(()) };
        self.fleet.sleep(&slot).await
    }

    /// Counts as a use of an instance that is awake: it is not put to sleep in the next moment.
    pub fn touch(&self, tenant: &TenantId) {
        if let Some(slot) = self.fleet.registry.get(tenant) {
            slot.touch();
        }
    }

    /// Lets the owner into what was a spare a moment ago: the tenant's record is there. One that sleeps is brought in
    /// step when it starts.
    pub async fn welcome(&self, id: &TenantId) -> Result<(), Error> {
        self.enroll(id).await?;
        if let (Some(tenant), Ok(Some(hash))) = (self.fleet.tenants.find(id), self.version_on_disk(id)) {
            upgrade::note(&self.fleet, &tenant, hash);
        }
        Ok(())
    }

    /// The version that a template has today; none when it cannot be used.
    pub fn version_today(&self, template: &str) -> Option<String> {
        self.fleet.templates.golden(template).ok().map(|golden| golden.hash.clone())
    }

    /// The version of a spare whose folder is whole.
    pub async fn version_of_spare(&self, spare: &TenantId) -> io::Result<Option<String>> {
        let folder = self.fleet.folder(spare);
        let look = move || {
            let is_whole = folder.join("pb_data").try_exists()?;
            if is_whole { snapshot::version(&folder) } else { Ok(None) }
        };
        tokio::task::spawn_blocking(look).await.map_err(io::Error::other)?
    }

    /// Removes a spare for good: its process, its folder, what is noted of its runs. Can be repeated. The record stays,
    /// and is the caller's to remove last.
    pub async fn discard(&self, spare: &TenantId) -> Result<(), Stuck> {
        self.retire(spare).await.map_err(Stuck::Running)?;
        failpoint::hit("spare.stopped");
        let name = Spare::folder(spare);
        // One that was made anew under the id of one that was put away: both go.
        self.destroy(&name).await?;
        self.put_aside(spare, &name).await?;
        failpoint::hit("spare.moved");
        self.destroy(&name).await?;
        self.forget(spare).await.map_err(Stuck::Running)?;
        failpoint::hit("spare.removed");
        Ok(())
    }
}
