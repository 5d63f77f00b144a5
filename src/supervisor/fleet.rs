//! What all instances of one supervisor share: configuration, the registry of slots, admission under the running
//! cap, and the way down.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::Instant;

use dashmap::DashMap;
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::sync::broadcast;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::ids::TenantId;
use crate::store::placements::Placements;
use crate::store::spares::Spares;
use crate::store::tenants::Tenant;
use crate::store::tenants::Tenants;
use crate::store::uids::Uids;
use crate::store::versions::Versions;
use crate::supervisor::Awakening;
use crate::supervisor::Error;
use crate::supervisor::Parts;
use crate::supervisor::backoff::Policy;
use crate::supervisor::config::Binaries;
use crate::supervisor::config::Config;
use crate::supervisor::config::Layout;
use crate::supervisor::config::Memory;
use crate::supervisor::config::Rosters;
use crate::supervisor::directory::Changes;
use crate::supervisor::freeze::Freezer;
use crate::supervisor::instance::Instance;
use crate::supervisor::jail::Isolation;
use crate::supervisor::lookers::Lookers;
use crate::supervisor::predict::Predictions;
use crate::supervisor::rollout::Rollouts;
use crate::supervisor::slot::Command;
use crate::supervisor::slot::Slot;
use crate::supervisor::standby::Standby;
use crate::supervisor::starts::StartGate;
use crate::supervisor::status::InstanceStatus;
use crate::supervisor::template::Templates;
use crate::supervisor::upgrade::Upgrades;
use crate::supervisor::waiting::WaitingRoom;
use crate::telemetry::Metrics;

/// Tenants that a slow listener may be behind before it has to take all for changed.
const REWRITTEN: usize = 1024;

/// How often a full house is looked over for somebody idle, while somebody waits for room.
const IDLE_LOOK: Duration = Duration::from_millis(25);

/// Openings that a follower may be behind before it is told that it missed some.
const AWAKENINGS: usize = 1024;

/// The shared side of the supervisor.
#[derive(Debug)]
pub(crate) struct Fleet {
    pub(crate) config: Config,
    pub(crate) layout: Layout,
    pub(crate) binaries: Binaries,
    pub(crate) templates: Templates,
    pub(crate) tenants: Tenants,
    pub(crate) spares: Spares,
    pub(crate) placements: Placements,
    pub(crate) rosters: Rosters,
    pub(crate) versions: Versions,
    pub(crate) upgrades: Upgrades,
    /// Tenants whose rows of users were changed in their file before a start.
    pub(crate) rewritten: broadcast::Sender<TenantId>,
    pub(crate) rollouts: Rollouts,
    pub(crate) public_url: String,
    pub(crate) isolation: Isolation,
    pub(crate) uids: Uids,
    pub(crate) global_outbound: Vec<u16>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) registry: DashMap<TenantId, Arc<Slot>>,
    pub(crate) waiting: Arc<WaitingRoom>,
    pub(crate) starts: StartGate,
    pub(crate) standby: Standby,
    pub(crate) freezer: Freezer,
    pub(crate) predictions: Predictions,
    pub(crate) lookers: Lookers,
    pub(crate) restarts: AtomicU64,
    pub(crate) runtime: Handle,
    /// Every task of the supervisor.
    pub(crate) tasks: TaskTracker,
    /// No new starts; tenants go down.
    pub(crate) stopping: CancellationToken,
    /// Whoever runs goes on without us, for a successor to adopt.
    pub(crate) is_leaving: AtomicBool,
    /// The global instance may go down too.
    pub(crate) stopping_global: CancellationToken,
    pub(crate) awakenings: broadcast::Sender<Awakening>,
    pub(crate) changes: Changes,
    /// Bytes of data that a tenant's process may have, where somebody says so.
    pub(crate) memory: OnceLock<Memory>,
    awake: AtomicUsize,
    room: Notify,
}

/// Room under the running cap, held as long as there is a process.
#[derive(Debug)]
pub(crate) struct Admission(Option<Arc<Fleet>>);

impl Drop for Admission {
    fn drop(&mut self) {
        if let Some(fleet) = &self.0 {
            fleet.awake.fetch_sub(1, Ordering::SeqCst);
            fleet.room.notify_one();
        }
    }
}

impl Fleet {
    /// A tenant that is registered and not deleted.
    pub(crate) fn standing(&self, tenant: &TenantId) -> Result<Arc<Tenant>, Error> {
        let found = self.tenants.find(tenant).ok_or(Error::UnknownTenant)?;
        if found.deleted.is_some() { Err(Error::Deleted) } else { Ok(found) }
    }

    pub(crate) fn new(parts: Parts) -> Arc<Self> {
        let cores = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
        let starts = if parts.config.max_starting == 0 { cores + 1 } else { parts.config.max_starting };
        let (most, in_all) = (parts.config.max_waiting_per_instance, parts.config.max_waiting);
        let waiting = WaitingRoom::new(most, in_all, parts.config.refusal_pause);
        Arc::new(Self {
            starts: StartGate::new(starts),
            standby: Standby::new(parts.isolation.jailer.clone()),
            freezer: Freezer::new(
                &parts.config,
                parts.isolation.groups.as_ref().is_some_and(|groups| groups.memory_bytes() > 0),
            ),
            predictions: Predictions::default(),
            lookers: Lookers::default(),
            waiting,
            config: parts.config,
            layout: parts.layout,
            binaries: parts.binaries,
            templates: parts.templates,
            tenants: parts.tenants,
            spares: parts.spares,
            placements: parts.placements,
            rosters: parts.rosters,
            versions: parts.versions,
            upgrades: Upgrades::new(parts.upgrade),
            rewritten: broadcast::Sender::new(REWRITTEN),
            rollouts: Rollouts::default(),
            public_url: parts.public_url,
            isolation: parts.isolation,
            uids: parts.uids,
            global_outbound: parts.global_outbound,
            metrics: parts.metrics,
            registry: DashMap::new(),
            restarts: AtomicU64::new(0),
            runtime: Handle::current(),
            tasks: TaskTracker::new(),
            stopping: CancellationToken::new(),
            is_leaving: AtomicBool::new(false),
            stopping_global: CancellationToken::new(),
            awakenings: broadcast::Sender::new(AWAKENINGS),
            changes: Changes::default(),
            memory: OnceLock::new(),
            awake: AtomicUsize::new(0),
            room: Notify::new(),
        })
    }

    pub(crate) fn policy(&self) -> Policy {
        Policy {
            base: self.config.backoff_base,
            max: self.config.backoff_max,
            reset: self.config.backoff_reset,
            failures: self.config.quarantine_failures,
            window: self.config.quarantine_window,
        }
    }

    /// Bytes of data that the process of a tenant may have.
    pub(crate) fn data_bytes(&self, tenant: &TenantId) -> u64 {
        let own = self.memory.get().and_then(|memory| (memory.0)(&*self.find(tenant)?));
        own.unwrap_or(self.config.data_bytes)
    }

    /// Folder of an instance.
    pub(crate) fn folder(&self, tenant: &TenantId) -> PathBuf {
        self.layout.instances.join(tenant.as_str())
    }

    /// The slot of a tenant, made with its task when there is none, with `waiting` already raised for the caller:
    /// that happens under the registry's lock, and so does forgetting, so a slot never goes while somebody waits.
    pub(crate) fn slot(self: &Arc<Self>, tenant: &TenantId) -> Result<Arc<Slot>, Error> {
        if self.stopping.is_cancelled() {
            return Err(Error::ShuttingDown);
        }
        let slot = self.registry.entry(tenant.clone()).or_insert_with(|| {
            let (slot, inbox) = Slot::new(tenant.clone(), self.config.max_in_flight);
            let instance = Instance::asleep(Arc::clone(self), Arc::clone(&slot), inbox);
            self.tasks.spawn_on(instance.run(), &self.runtime);
            slot
        });
        slot.waiting.fetch_add(1, Ordering::SeqCst);
        Ok(Arc::clone(&slot))
    }

    /// Drops a sleeping slot unless somebody waits on it.
    pub(crate) fn forget(&self, tenant: &TenantId) -> bool {
        self.registry.remove_if(tenant, |_, slot| slot.waiting.load(Ordering::SeqCst) == 0).is_some()
    }

    /// Makes room for one more process, putting the least recently used one to sleep when the cap is reached.
    pub(crate) async fn admit(self: &Arc<Self>, tenant: &TenantId) -> Result<Admission, Error> {
        if tenant.is_global() {
            return Ok(Admission(None));
        }
        if self.is_spare(tenant) {
            // Nobody goes for it, and the last places are for clients.
            return self.try_admit(self.places_of_spares()).ok_or(Error::Capacity);
        }
        // A little less than the clients wait, so that they learn the reason.
        let deadline = Instant::now() + self.config.wake_timeout.mul_f64(0.9);
        loop {
            if let Some(admission) = self.try_admit(self.config.max_awake) {
                return Ok(admission);
            }
            let freed = self.room.notified();
            let Some(victim) = self.least_recently_used() else {
                // Everything awake is in use or pinned. One that falls idle tells nobody (that would cost every
                // request), so it is looked for again soon.
                let soon = (Instant::now() + IDLE_LOOK).min(deadline);
                let looked = tokio::time::timeout_at(soon.into(), freed).await;
                if looked.is_err() && Instant::now() >= deadline {
                    return Err(Error::Capacity);
                }
                continue;
            };
            tracing::debug!(tenant.id = %victim.tenant, "evict the least recently used instance");
            let evicted = tokio::time::timeout_at(deadline.into(), self.sleep(&victim)).await;
            if evicted.is_err() && Instant::now() >= deadline {
                return Err(Error::Capacity);
            }
        }
    }

    /// Counts a process in without a question: an adopted one already runs.
    pub(crate) fn admit_adopted(self: &Arc<Self>, tenant: &TenantId) -> Admission {
        if tenant.is_global() {
            return Admission(None);
        }
        self.awake.fetch_add(1, Ordering::SeqCst);
        Admission(Some(Arc::clone(self)))
    }

    /// Room for one more process, if there are fewer than so many.
    pub(crate) fn try_admit(self: &Arc<Self>, max: usize) -> Option<Admission> {
        let more = |awake| (awake < max).then_some(awake + 1);
        self.awake.fetch_update(Ordering::SeqCst, Ordering::SeqCst, more).ok()?;
        Some(Admission(Some(Arc::clone(self))))
    }

    /// How many processes run that count under the cap.
    pub(crate) fn awake(&self) -> usize {
        self.awake.load(Ordering::SeqCst)
    }

    fn least_recently_used(&self) -> Option<Arc<Slot>> {
        self.registry
            .iter()
            .filter(|slot| !slot.tenant.is_global() && (slot.running().is_some() || slot.is_frozen()))
            // One that was opened a moment ago still has its waiters, who must not find it gone again.
            .filter(|slot| slot.in_flight() == 0 && slot.waiting.load(Ordering::SeqCst) == 0)
            .filter(|slot| self.tenants.find(&slot.tenant).is_none_or(|tenant| !tenant.pinned))
            // Nobody misses a spare, and whoever has a frozen one waits for its return already.
            .max_by_key(|slot| (self.is_spare(&slot.tenant), slot.is_frozen(), slot.unused_for()))
            .map(|slot| Arc::clone(&slot))
    }

    /// Asks an instance to drain and stop.
    pub(crate) async fn sleep(&self, slot: &Slot) -> Result<(), Error> {
        let (reply, answer) = oneshot::channel();
        let patience = self.config.start_timeout + self.config.drain_timeout + self.config.stop_timeout * 2;
        let asked = tokio::time::timeout(patience, async {
            match slot.mail.send(Command::Sleep(reply)).await {
                Ok(()) => answer.await.unwrap_or(Ok(())),
                // The task has ended: it is asleep and forgotten.
                Err(_) => Ok(()),
            }
        });
        asked.await.unwrap_or(Err(Error::TenantBusy))
    }

    pub(crate) fn status(&self, tenant: &TenantId) -> Result<InstanceStatus, Error> {
        let record = self.tenants.find(tenant).ok_or(Error::UnknownTenant)?;
        let slot = self.registry.get(tenant).map(|slot| Arc::clone(&slot));
        let view = slot.as_ref().map(|slot| slot.view.load_full());
        let running = slot.as_ref().and_then(|slot| slot.running());
        let state = view.as_ref().map_or("asleep", |view| view.state);
        let wait = view.as_ref().and_then(|view| view.until).map(|at| at.saturating_duration_since(Instant::now()));
        Ok(InstanceStatus {
            tenant: tenant.clone(),
            state: if record.suspended { "suspended" } else { state },
            reason: view.as_ref().and_then(|view| view.reason.clone()),
            last_log: view.as_ref().map(|view| view.last_log.clone()).unwrap_or_default(),
            template: record.template.clone(),
            pinned: record.pinned,
            pocketbase: self
                .versions
                .find(tenant)
                .and_then(|version| self.templates.pocketbase_of(&version.hash).map(str::to_owned)),
            pocketbase_pin: self.versions.find(tenant).and_then(|version| version.pin.clone()),
            pid: view.as_ref().and_then(|view| view.pid),
            address: running.as_ref().map(|running| running.address.to_string()),
            epoch: self.placements.find(tenant).map_or(0, |placement| placement.epoch),
            cpu_percent: view.as_ref().and_then(|view| view.cpu_percent),
            in_flight: slot.as_ref().map_or(0, |slot| slot.in_flight()),
            waiting: slot.as_ref().map_or(0, |slot| slot.waiting.load(Ordering::SeqCst)),
            restarts: view.as_ref().map_or(0, |view| view.restarts),
            idle_seconds: slot
                .filter(|slot| running.is_some() || slot.is_frozen())
                .map(|slot| slot.unused_for().as_secs()),
            retry_after_seconds: wait.map(|wait| wait.as_secs()),
        })
    }

    /// Lets go of every instance without stopping it. What is only being started is stopped, and so is an upgrade.
    pub(crate) async fn leave(self: &Arc<Self>, patience: Duration) {
        self.is_leaving.store(true, Ordering::SeqCst);
        self.stopping.cancel();
        self.stopping_global.cancel();
        self.tasks.close();
        self.stand_down().await;
        if tokio::time::timeout(patience, self.tasks.wait()).await.is_err() {
            tracing::error!(tasks = self.tasks.len(), "supervisor tasks did not end in time");
        }
    }

    /// Tenants first, then the global instance, which their users' last requests may still need.
    pub(crate) async fn stop(self: &Arc<Self>, patience: Duration) {
        self.stopping.cancel();
        self.tasks.close();
        self.stand_down().await;
        let tenants_gone = async {
            while self.awake.load(Ordering::SeqCst) > 0 {
                self.room.notified().await;
            }
        };
        if tokio::time::timeout(patience, tenants_gone).await.is_err() {
            tracing::error!(awake = self.awake.load(Ordering::SeqCst), "instances did not stop in time");
        }
        self.stopping_global.cancel();
        if tokio::time::timeout(patience, self.tasks.wait()).await.is_err() {
            tracing::error!(tasks = self.tasks.len(), "supervisor tasks did not end in time");
        } else if let Some(network) = self.isolation.network.clone() {
            // Nobody runs any more whom the rules are about.
            drop(tokio::task::spawn_blocking(move || network.take_down()).await);
        }
    }
}
