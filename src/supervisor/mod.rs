//! Supervision of one `PocketBase` process per tenant.
//!
//! # Theory of operation
//! [`Supervisor`] is a cheap handle. The first caller that needs a sleeping tenant makes its slot and one task that
//! owns it (`instance`); everybody else joins the wait. The task feeds a pure state machine (`state`), starts
//! processes through the jailer (`jail`, `process`), opens the route after an authenticated health check
//! (`health`), and forgets a sleeping instance that nothing has to be remembered of, so that a hundred thousand
//! sleeping tenants cost nothing here. A [`Lease`] is what keeps an instance awake.
//!
//! # Invariants
//! One process per data directory, ever: the jailer holds an flock that the process inherits, and every start takes
//! a new epoch in the control database first. A route opens only to a process that proved itself. Requests never
//! bypass backoff or quarantine. No request is cut by an idle stop. An instance's directory is moved aside and removed
//! only under a tombstone (`aside`), never because a record is missing.
//!
//! Deliberately absent: users, HTTP routing, and any idea of why somebody wants an instance.

use std::collections::BTreeMap;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::Instant;
use std::time::SystemTime;

use crate::ids::TenantId;
use crate::pocketbase::apart::Ask;
use crate::pocketbase::copy::Served;
use crate::pocketbase::database;
use crate::pocketbase::visitors;
use crate::store::placements::Placements;
use crate::store::spares::Spares;
use crate::store::tenants::Tenant;
use crate::store::tenants::Tenants;
use crate::store::uids::Uids;
use crate::store::versions::Versions;
use crate::supervisor::fleet::Fleet;
use crate::supervisor::slot::Attempt;
use crate::supervisor::slot::Command;
use crate::supervisor::slot::Phase;
use crate::supervisor::slot::Slot;
use crate::telemetry::Arrival;
use crate::telemetry::Metrics;

mod adoption;
mod announcement;
pub mod apart;
pub mod aside;
pub mod backoff;
mod bake;
pub mod binary;
mod busy;
pub mod check;
mod choice;
pub mod config;
mod confine;
pub mod directory;
mod error;
mod excerpt;
mod files;
mod fleet;
pub mod freeze;
pub mod health;
mod instance;
pub mod jail;
mod launch;
pub mod logs;
mod lookers;
mod manifest;
pub mod oneshot;
pub mod owner;
mod pageout;
mod predict;
mod probe;
pub mod process;
mod prove;
pub mod provision;
mod remove;
mod replace;
pub mod rollout;
mod roster;
mod slot;
mod snapshot;
mod spares;
mod standby;
pub mod starts;
pub mod state;
pub mod status;
pub mod template;
#[cfg(test)]
mod testing;
mod upgrade;
pub mod usage;
mod waiting;

pub use config::Config;
pub use error::Error;
pub use prove::Unproved;
pub use slot::Lease;
pub use slot::Listening;
pub use snapshot::note_origin;
pub use status::FleetStatus;
pub use status::InstanceStatus;

/// A backoff of at most this long is waited for like a start; a longer one is answered with its `Retry-After`.
const PATIENCE: Duration = Duration::from_secs(1);

/// Who waits for a wake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Priority {
    /// A client waits. Goes first.
    Client,
    /// Nobody waits: a pinned instance, an operator, a job.
    Background,
}

/// The route to an instance has opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Awakening {
    /// Whose instance.
    pub tenant: TenantId,
    /// Which run of it.
    pub epoch: u64,
}

/// What the supervisor is built from.
#[derive(Debug)]
pub struct Parts {
    /// The `[instances]` section.
    pub config: Config,
    /// The folders.
    pub layout: config::Layout,
    /// The verified binaries of `PocketBase`.
    pub binaries: config::Binaries,
    /// The baked templates.
    pub templates: template::Templates,
    /// The tenants.
    pub tenants: Tenants,
    /// Who runs what.
    pub placements: Placements,
    /// Who may act in which instance.
    pub rosters: config::Rosters,
    /// Which version of its template each instance has.
    pub versions: Versions,
    /// When instances follow a changed template.
    pub upgrade: config::UpgradePolicy,
    /// The URL users see, for links in mails.
    pub public_url: String,
    /// How far processes are kept from each other.
    pub isolation: jail::Isolation,
    /// How often the rules of level 3 are looked at.
    pub network_check: Duration,
    /// The instances that nobody has yet.
    pub spares: Spares,
    /// The users of tenants.
    pub uids: Uids,
    /// Ports that the global instance connects to: the mail server's, the sign-in services'.
    pub global_outbound: Vec<u16>,
    /// Metrics.
    pub metrics: Arc<Metrics>,
}

/// The handle. Cheap to clone; usable from any Tokio runtime.
#[derive(Debug, Clone)]
pub struct Supervisor {
    fleet: Arc<Fleet>,
}

impl Supervisor {
    /// A supervisor whose tasks run on the current runtime.
    pub fn new(parts: Parts) -> Self {
        let every = parts.network_check;
        let fleet = Fleet::new(parts);
        if let Some(network) = fleet.isolation.network.clone() {
            // Until the last instance is gone.
            let watch = network.watch(every, Arc::clone(&fleet.metrics), fleet.stopping_global.clone());
            fleet.tasks.spawn_on(watch, &fleet.runtime);
        }
        Self { fleet }
    }

    /// Takes over what an earlier pocketfleet left running and stops what fails the checks. Resolves when every
    /// recorded process is settled; call it before anything else.
    pub async fn adopt(&self) {
        adoption::adopt_all(&self.fleet).await;
    }

    /// The hot path: a lease of an awake instance that has room. Never waits.
    pub fn try_lease(&self, tenant: &TenantId) -> Option<Lease> {
        let slot = self.fleet.registry.get(tenant)?;
        match slot.try_take() {
            Attempt::Taken(lease) => Some(self.used(lease)),
            Attempt::Full | Attempt::Closed => None,
        }
    }

    /// Enters an awake instance for a moment, for calls of ours that are no use of it: takes no place, never waits, and
    /// leaves the idle time as it is.
    pub fn visit(&self, tenant: &TenantId) -> Option<Lease> {
        self.fleet.registry.get(tenant)?.visit()
    }

    /// Each opening of a route from now on, adopted instances included.
    pub fn awakenings(&self) -> tokio::sync::broadcast::Receiver<Awakening> {
        self.fleet.awakenings.subscribe()
    }

    /// Waits for a wake and for a place, at most as long as `instances.wake_timeout`.
    pub async fn lease(&self, tenant: &TenantId, priority: Priority) -> Result<Lease, Error> {
        let begun = Instant::now();
        let record = self.fleet.tenants.find(tenant).ok_or(Error::UnknownTenant)?;
        if record.deleted.is_some() {
            return Err(Error::Deleted);
        }
        if record.suspended {
            return Err(Error::Suspended);
        }
        let (outcome, lease) = self.wait(tenant, priority, begun).await;
        // The task knows one reason for both, and the tenant may have been deleted while somebody waited.
        let is_deleted = || self.fleet.tenants.find(tenant).is_none_or(|found| found.deleted.is_some());
        let lease =
            lease.map_err(|error| if error == Error::Suspended && is_deleted() { Error::Deleted } else { error });
        let lease = lease.map(|lease| self.used(lease));
        let arrival = match (&lease, outcome) {
            (Ok(_), arrival) => arrival,
            (Err(Error::WakeTimeout), _) => Arrival::timed_out,
            (Err(_), _) => Arrival::refused,
        };
        if priority == Priority::Client {
            self.fleet.metrics.arrived(arrival, begun.elapsed());
            if matches!(lease, Err(Error::TenantBusy | Error::WaitingRoomFull)) {
                self.fleet.waiting.pause().await;
            }
        }
        lease
    }

    async fn wait(&self, tenant: &TenantId, priority: Priority, begun: Instant) -> (Arrival, Result<Lease, Error>) {
        let mut arrival = Arrival::queued;
        let slot = match self.fleet.slot(tenant) {
            Ok(slot) => slot,
            Err(error) => return (arrival, Err(error)),
        };
        let _ticket = match self.fleet.waiting.enter(&slot) {
            Ok(ticket) => ticket,
            Err(error) => return (arrival, Err(error)),
        };
        if let Attempt::Taken(lease) = slot.try_take() {
            return (Arrival::warm, Ok(lease));
        }
        match slot.view.load().state {
            "asleep" if slot.waiting.load(Ordering::SeqCst) == 1 => arrival = Arrival::woken,
            "frozen" => arrival = Arrival::thawed,
            _ => {}
        }
        let deadline = begun + self.fleet.config.wake_timeout;
        let outcome = tokio::time::timeout_at(deadline.into(), self.take(&slot, priority)).await;
        (arrival, outcome.unwrap_or(Err(Error::WakeTimeout)))
    }

    async fn take(&self, slot: &Arc<Slot>, priority: Priority) -> Result<Lease, Error> {
        let mut phase = slot.phase.subscribe();
        loop {
            let now = phase.borrow_and_update().clone();
            match (slot.try_take(), now) {
                (Attempt::Taken(lease), _) => return Ok(lease),
                (Attempt::Full, _) => tokio::select! {
                    attempt = slot.take_when_free() => {
                        if let Attempt::Taken(lease) = attempt {
                            return Ok(lease);
                        }
                    }
                    _ = phase.changed() => {}
                },
                // A suspension that the record does not know any more (the caller looked) ends when the task is asked.
                (Attempt::Closed, Phase::Pending | Phase::Open | Phase::Refusing { error: Error::Suspended, .. }) => {
                    slot.want(priority);
                    drop(phase.changed().await);
                }
                (Attempt::Closed, Phase::Refusing { error, until }) => match until {
                    Some(until) if until <= Instant::now() => {
                        slot.want(priority);
                        // The task either starts or refuses anew; both change the phase.
                        drop(phase.changed().await);
                    }
                    // A short backoff is waited out, never shortened.
                    Some(until) if until.duration_since(Instant::now()) <= PATIENCE && error.is_backoff() => {
                        drop(phase.changed().await);
                    }
                    _ => return Err(refresh(error, until)),
                },
            }
        }
    }

    /// Makes sure that the instance runs.
    pub async fn wake(&self, tenant: &TenantId) -> Result<(), Error> {
        self.lease(tenant, Priority::Background).await.map(drop)
    }

    /// Drains and stops; resolves when the process is gone. Refused with [`Error::TenantBusy`] when requests do not
    /// finish in time.
    pub async fn sleep(&self, tenant: &TenantId) -> Result<(), Error> {
        self.fleet.tenants.find(tenant).ok_or(Error::UnknownTenant)?;
        let Some(slot) = self.fleet.registry.get(tenant).map(|slot| Arc::clone(&slot)) else { return Ok(()) };
        self.fleet.sleep(&slot).await
    }

    /// Keeps an instance awake for good, or lets it sleep again. Pinning wakes it.
    pub async fn pin(&self, tenant: &TenantId, pinned: bool) -> Result<(), Error> {
        let changed = self.fleet.tenants.change(tenant, |tenant| tenant.pinned = pinned).await?;
        changed.ok_or(Error::UnknownTenant)?;
        if pinned { self.wake(tenant).await } else { Ok(()) }
    }

    /// Ends quarantine, backoff or a block, so that the next request starts it.
    pub async fn release(&self, tenant: &TenantId) -> Result<(), Error> {
        self.fleet.tenants.find(tenant).ok_or(Error::UnknownTenant)?;
        let Some(slot) = self.fleet.registry.get(tenant).map(|slot| Arc::clone(&slot)) else { return Ok(()) };
        let (reply, answer) = tokio::sync::oneshot::channel();
        let patience = self.fleet.config.start_timeout + self.fleet.config.stop_timeout;
        let asked = tokio::time::timeout(patience, async {
            if slot.mail.send(Command::Release(reply)).await.is_ok() {
                drop(answer.await);
            }
        });
        asked.await.map_err(|_| Error::WakeTimeout)
    }

    /// Brings the rows of a running instance in step with who may act in it, so that the next request of somebody new
    /// finds them and nobody who left does. One that sleeps is brought in step when it starts, and one that starts is
    /// waited for. Calls for events to be sent to those who are subscribed to `users`.
    pub async fn enroll(&self, tenant: &TenantId) -> Result<(), Error> {
        self.fleet.tenants.find(tenant).ok_or(Error::UnknownTenant)?;
        let Some(slot) = self.fleet.registry.get(tenant).map(|slot| Arc::clone(&slot)) else { return Ok(()) };
        let (reply, answer) = tokio::sync::oneshot::channel();
        let asked = tokio::time::timeout(self.fleet.config.start_timeout + PATIENCE, async {
            if slot.mail.send(Command::Enroll(reply)).await.is_ok() {
                drop(answer.await);
            }
        });
        asked.await.map_err(|_| Error::WakeTimeout)
    }

    /// Whether a workspace can be made from this template.
    pub fn has_template(&self, name: &str) -> bool {
        name != "global" && self.fleet.templates.golden(name).is_ok()
    }

    /// The last lines of an instance's log, redacted.
    pub async fn logs(&self, tenant: &TenantId, lines: usize) -> Result<Vec<String>, Error> {
        self.fleet.tenants.find(tenant).ok_or(Error::UnknownTenant)?;
        let folder = self.fleet.folder(tenant);
        let read = tokio::task::spawn_blocking(move || logs::tail(&folder, lines));
        Ok(read.await.unwrap_or_default())
    }

    /// One instance, as it is now.
    pub fn status(&self, tenant: &TenantId) -> Result<status::InstanceStatus, Error> {
        self.fleet.status(tenant)
    }

    /// The fleet in numbers.
    pub fn fleet(&self) -> status::FleetStatus {
        let mut states: BTreeMap<String, usize> = BTreeMap::new();
        let mut troubled = Vec::new();
        let (mut remembered, mut burning) = (0, 0);
        for slot in &self.fleet.registry {
            if slot.tenant.is_global() || self.fleet.is_spare(&slot.tenant) {
                continue;
            }
            remembered += 1;
            let view = slot.view.load();
            let state = view.state;
            burning += usize::from(view.is_burning);
            *states.entry(state.to_owned()).or_default() += 1;
            if matches!(state, "backoff" | "quarantined" | "blocked") {
                troubled.push(slot.tenant.clone());
            }
        }
        let registered = self.fleet.tenants.len().saturating_sub(1);
        *states.entry("asleep".to_owned()).or_default() += registered.saturating_sub(remembered);
        let (waiting, oldest) = self.fleet.waiting.queue();
        status::FleetStatus {
            registered,
            states,
            spares: self.fleet.spares_by_state(),
            waiting,
            oldest_waiter_ms: u64::try_from(oldest.as_millis()).unwrap_or(u64::MAX),
            starts: self.fleet.metrics.starts.get(),
            restarts: self.fleet.restarts.load(Ordering::Relaxed),
            adopted: self.fleet.metrics.adopted.get(),
            burning,
            troubled: troubled.iter().filter_map(|tenant| self.fleet.status(tenant).ok()).collect(),
            broken_templates: self.fleet.templates.broken(),
            isolation: self.fleet.isolation.report(),
        }
    }

    /// The templates, as they were when pocketfleet started.
    pub fn templates(&self) -> &template::Templates {
        &self.fleet.templates
    }

    /// Whether this run of the instance was stopped in order, with nothing in flight: it said all that it had to say.
    pub fn was_stopped(&self, tenant: &TenantId, epoch: u64) -> bool {
        self.fleet.registry.get(tenant).is_none_or(|slot| slot.was_stopped(epoch))
    }

    /// How long nobody has used the instance; nothing while a request is in flight, none for one that is forgotten.
    pub fn quiet_for(&self, tenant: &TenantId) -> Option<Duration> {
        let slot = self.fleet.registry.get(tenant)?;
        Some(if slot.in_flight() == 0 { slot.unused_for() } else { Duration::ZERO })
    }

    /// Whether nobody is let to the instance any more while somebody may still be at work in it.
    pub fn is_draining(&self, tenant: &TenantId) -> bool {
        self.fleet.registry.get(tenant).is_some_and(|slot| slot.is_closing())
    }

    /// Whether the instance is awake, at this moment.
    pub fn is_awake(&self, tenant: &TenantId) -> bool {
        self.fleet.registry.get(tenant).is_some_and(|slot| slot.running().is_some())
    }

    /// Whether it has no process and nothing is in the way of a start.
    pub fn is_asleep(&self, tenant: &TenantId) -> bool {
        self.fleet.registry.get(tenant).is_none_or(|slot| slot.view.load().state == "asleep")
    }

    /// Whether the instance has a process that requests reach without a start: it is awake, or frozen.
    pub fn is_up(&self, tenant: &TenantId) -> bool {
        self.fleet.registry.get(tenant).is_some_and(|slot| slot.is_up())
    }

    /// Whether the instance holds a file of this record, also while it sleeps. Both are single names; the collection is
    /// looked for.
    pub fn has_file(&self, tenant: &TenantId, record: &str, name: &str) -> bool {
        let is_single = |name: &str| !name.is_empty() && !name.starts_with('.') && !name.contains(['/', '\0']);
        let storage = self.fleet.folder(tenant).join("pb_data").join("storage");
        let Ok(collections) = std::fs::read_dir(storage) else { return false };
        is_single(record)
            && is_single(name)
            && collections.flatten().any(|collection| {
                let path = collection.path().join(record).join(name);
                path.symlink_metadata().is_ok_and(|metadata| metadata.is_file())
            })
    }

    /// Which version of its template each instance has.
    pub fn versions(&self) -> &Versions {
        &self.fleet.versions
    }

    /// Tenants whose instances were upgraded, each before its route opens: their realtime clients must connect anew.
    pub fn upgrades(&self) -> tokio::sync::broadcast::Receiver<TenantId> {
        self.fleet.upgrades.done.subscribe()
    }

    /// Tenants whose rows in `users` were changed while they slept, each before its route opens: whoever is subscribed to
    /// those rows must connect and read anew.
    pub fn rewritten_users(&self) -> tokio::sync::broadcast::Receiver<TenantId> {
        self.fleet.rewritten.subscribe()
    }

    /// The version that an instance has by its own file: for tenants that have no record of it yet. Reads a file.
    pub fn version_on_disk(&self, tenant: &TenantId) -> std::io::Result<Option<String>> {
        snapshot::version(&self.fleet.folder(tenant))
    }

    /// Path of the instance's database file, also while it sleeps.
    pub fn database(&self, tenant: &TenantId) -> PathBuf {
        self.fleet.folder(tenant).join("pb_data").join("data.db")
    }

    /// Whether an instance would take this token, of its own users', from anybody: see [`visitors::accepts`]. Blocks.
    pub fn accepts(&self, tenant: &TenantId, token: &str) -> Result<bool, database::Error> {
        let (path, now) = (self.database(tenant), SystemTime::now());
        if let Some(accepts) = visitors::accepts_asleep(&path, token, now)? {
            return Ok(accepts);
        }
        let ask = Ask::accepts(&path, token, now);
        apart::ask(&self.fleet.isolation.jailer, &ask, apart::LOOK)?.accepted(&path)
    }

    /// Copies a database of an instance, awake or asleep, within a time: see [`copy::vacuum_into`]. Blocks.
    ///
    /// [`copy::vacuum_into`]: crate::pocketbase::copy::vacuum_into
    pub fn copy_database(
        &self,
        from: &Path,
        to: &Path,
        served: Served,
        limit: Duration,
    ) -> Result<(), database::Error> {
        let ask = Ask::copy(from, to, served, limit);
        apart::ask(&self.fleet.isolation.jailer, &ask, limit + apart::LOOK)?.copied(from)
    }

    /// Wakes the global instance and every pinned one, in the background.
    pub fn wake_pinned(&self) {
        let mut after = None;
        loop {
            let page = self.fleet.tenants.page(after.as_ref(), 1_000);
            let Some(last) = page.last() else { return };
            after = Some(last.id.clone());
            let kept = |tenant: &&Arc<Tenant>| {
                (tenant.pinned || tenant.id.is_global()) && !tenant.suspended && tenant.deleted.is_none()
            };
            for tenant in page.iter().filter(kept) {
                let (supervisor, id) = (self.clone(), tenant.id.clone());
                self.fleet.tasks.spawn_on(
                    async move {
                        match supervisor.wake(&id).await {
                            // Whoever waits there already wakes it.
                            Ok(()) | Err(Error::TenantBusy) => {}
                            // Requests that wait already come first; the next one for it wakes it.
                            Err(Error::WaitingRoomFull) => {
                                tracing::info!(tenant.id = %id, "no room to wake a pinned instance yet");
                            }
                            Err(error) => tracing::warn!(tenant.id = %id, %error, "wake a pinned instance"),
                        }
                    },
                    &self.fleet.runtime,
                );
            }
        }
    }

    /// Lets go of all instances without stopping them: the next run of this process adopts them. Awaits every task, at
    /// most for `patience`.
    pub async fn leave(&self, patience: Duration) {
        self.fleet.leave(patience).await;
    }

    /// Stops all instances, the global one last, and awaits every task. Bounded by `patience` for each of the two.
    pub async fn stop(&self, patience: Duration) {
        self.fleet.stop(patience).await;
    }
}

/// A refusal with the time that is left now.
fn refresh(error: Error, until: Option<Instant>) -> Error {
    match (error, until) {
        (Error::Backoff { reason, retry_after: _ }, Some(until)) => {
            Error::Backoff { reason, retry_after: until.saturating_duration_since(Instant::now()) }
        }
        (error, _) => error,
    }
}
