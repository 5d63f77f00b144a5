//! The hub: all open streams, which tenant each is bound to, and the gate that holds writes until nobody is parked.
//!
//! Calls come from any runtime; whatever waits for an instance runs in tasks on the control runtime, so that a caller
//! who goes away leaves nothing half-done.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::SystemTime;

use bytes::Bytes;
use dashmap::DashMap;
use futures_util::StreamExt;
use futures_util::stream;
use hyper::header::HeaderValue;
use rand::RngExt;
use rand::distr::Alphanumeric;
use tokio::runtime::Handle;
use tokio::time::Instant;

use super::Config;
use super::Error;
use super::Stream;
use super::Subscribe;
use super::client::Client;
use super::client::Limits;
use super::client::Tally;
use super::link::ATTACH;
use super::link::Relay;
use super::places::Places;
use super::places::network;
use super::sse;
use super::subscription;
use super::subscription::Binding;
use super::subscription::Rights;
use super::upstream::Fault;
use super::upstream::Upstream;
use crate::auth::Verifier;
use crate::ids::TenantId;
use crate::ids::UserId;
use crate::shutdown::Shutdown;
use crate::supervisor::Lease;
use crate::supervisor::Supervisor;
use crate::telemetry::Metrics;
use crate::telemetry::ReasonLabels;

/// Length of a client id, as `PocketBase` makes them.
const ID_LENGTH: usize = 40;
/// Clients of one tenant that are attached at once.
const ATTACHING: usize = 16;
/// How long a round of attaching may take in all; who is not attached then is cut.
const ROUND: Duration = Duration::from_secs(10);
/// How long a subscription may take, a replacement of the instance's stream before it included.
const SUBSCRIBE: Duration = Duration::from_secs(12);
/// How long an instance whose stream broke may take to be known as ended, and how often that is looked at.
const POST_MORTEM: Duration = Duration::from_secs(1);
const LOOK: Duration = Duration::from_millis(25);
/// How long nobody must have used an instance that died, for its last events to be certainly out.
const QUIET: Duration = Duration::from_millis(250);

/// The function that knows who may act where.
pub type Admits = dyn Fn(&UserId, &TenantId) -> bool + Send + Sync;

/// The function that knows where visitors may listen: those with a token of the tenant's own (`true`), and strangers to
/// these topics.
pub type LetsIn = dyn Fn(&TenantId, bool, &[String]) -> bool + Send + Sync;

/// What the hub is built from.
pub struct Parts {
    /// The `[realtime]` section.
    pub config: Config,
    /// The fleet.
    pub supervisor: Supervisor,
    /// Who a token speaks for.
    pub verifier: Verifier,
    /// Whether this user may (still) act in this tenant.
    pub admits: Arc<Admits>,
    /// Whether a visitor may (still) listen in this tenant.
    pub lets_in: Arc<LetsIn>,
    /// Metrics.
    pub metrics: Arc<Metrics>,
    /// The shutdown, at which every stream ends.
    pub shutdown: Shutdown,
}

impl fmt::Debug for Parts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Parts").field("config", &self.config).finish_non_exhaustive()
    }
}

/// Why we end a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reason {
    /// It did not read.
    Slow,
    /// Its session ended, or its place in the tenant.
    Session,
    /// Nobody subscribed it, or the sign-in it waited for did not come.
    Unbound,
    /// It could not be attached before a write.
    Unattached,
    /// The instance's stream broke while the instance went on.
    Broken,
    /// The tenant's data changed behind its back.
    Reset,
    /// We go down.
    Shutdown,
}

impl Reason {
    fn label(self) -> &'static str {
        match self {
            Self::Slow => "slow_reader",
            Self::Session => "session_ended",
            Self::Unbound => "not_bound",
            Self::Unattached => "not_attached",
            Self::Broken => "upstream_broken",
            Self::Reset => "reset",
            Self::Shutdown => "shutdown",
        }
    }
}

/// The streams of one tenant.
#[derive(Default)]
pub(super) struct Room {
    members: Mutex<Vec<Arc<Client>>>,
    /// The run of the instance for which everybody is attached; 0 when somebody may not be.
    settled: AtomicU64,
    /// One round of attaching at a time.
    gate: tokio::sync::Mutex<()>,
}

impl Room {
    pub(super) fn members(&self) -> MutexGuard<'_, Vec<Arc<Client>>> {
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn unsettle(&self) {
        let _members = self.members();
        self.settled.store(0, Ordering::SeqCst);
    }
}

/// What all handles share.
pub(super) struct Shared {
    pub(super) config: Config,
    pub(super) supervisor: Supervisor,
    pub(super) verifier: Verifier,
    pub(super) admits: Arc<Admits>,
    pub(super) lets_in: Arc<LetsIn>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) shutdown: Shutdown,
    pub(super) runtime: Handle,
    pub(super) clients: DashMap<Arc<str>, Arc<Client>>,
    pub(super) rooms: DashMap<TenantId, Arc<Room>>,
    places: Arc<Places<()>>,
    per_ip: Arc<Places<IpAddr>>,
    pub(super) per_user: Arc<Places<UserId>>,
    pub(super) sign_ins: Arc<Places<IpAddr>>,
    pub(super) per_tenant: Arc<Places<TenantId>>,
    queued: Arc<AtomicUsize>,
    serial: AtomicU64,
}

/// The handle. Cheap to clone; usable from any Tokio runtime.
#[derive(Clone)]
pub struct Hub {
    pub(super) shared: Arc<Shared>,
}

impl fmt::Debug for Hub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hub").field("streams", &self.shared.clients.len()).finish_non_exhaustive()
    }
}

impl Hub {
    /// A hub whose tasks run on the current runtime, until the shutdown begins.
    pub fn new(parts: Parts) -> Self {
        let Parts { config, supervisor, verifier, admits, lets_in, metrics, shutdown } = parts;
        let awakenings = supervisor.awakenings();
        let shared = Arc::new(Shared {
            places: Places::new(config.max_streams),
            per_ip: Places::new(config.max_streams_per_ip),
            per_user: Places::new(config.max_streams_per_user),
            sign_ins: Places::new(config.max_sign_ins_per_ip),
            per_tenant: Places::new(config.max_streams_per_tenant),
            queued: Arc::default(),
            config,
            supervisor,
            verifier,
            admits,
            lets_in,
            metrics,
            shutdown,
            runtime: Handle::current(),
            clients: DashMap::new(),
            rooms: DashMap::new(),
            serial: AtomicU64::new(1),
        });
        shared.shutdown.spawn(Arc::clone(&shared).keep(awakenings));
        Self { shared }
    }

    /// Opens a stream that belongs to nobody yet.
    pub fn connect(&self, ip: IpAddr) -> Result<Stream, Error> {
        let shared = &self.shared;
        let place = shared.places.take(()).ok_or(Error::Full)?;
        let of_ip = shared.per_ip.take(network(ip)).ok_or(Error::TooMany)?;
        let id: String = rand::rng().sample_iter(Alphanumeric).take(ID_LENGTH).map(char::from).collect();
        let id: Arc<str> = id.into();
        let tally = Tally::new(&shared.metrics, "unbound");
        let client = Arc::new(Client::new(Arc::clone(&id), ip, (place, of_ip), tally, Arc::clone(&shared.queued)));
        let hello = sse::event(&id, "PB_CONNECT", &format!("{{\"clientId\":\"{id}\"}}"));
        client.push(hello, &shared.limits());
        shared.clients.insert(id, Arc::clone(&client));
        let stream = Stream::new(Arc::clone(shared), Arc::clone(&client), shared.config.heartbeat);
        // Looked at after the stream can be found: either the end of all streams meets it, or this does.
        if shared.shutdown.has_begun() {
            return Err(Error::ShuttingDown);
        }
        Ok(stream)
    }

    /// Binds a stream and sets what it is told of. Wakes nothing: while the tenant sleeps the stream is parked.
    pub async fn subscribe(&self, call: Subscribe) -> Result<(), Error> {
        let shared = Arc::clone(&self.shared);
        let task = async move {
            let client = shared.clients.get(&*call.client_id).map(|client| Arc::clone(&client));
            let bound = tokio::time::timeout(SUBSCRIBE, Arc::clone(&shared).bind(call));
            bound.await.unwrap_or_else(|_| {
                // It may be noted and not done.
                if let Some(client) = client {
                    shared.end(&client, Reason::Unattached);
                }
                Err(Error::Unreachable)
            })
        };
        self.shared.shutdown.spawn_on(task, &self.shared.runtime).await.unwrap_or(Err(Error::Unreachable))
    }

    /// To be called with the lease of a request that may write, before it is passed on: when this returns, every stream
    /// of the tenant is attached to the instance, or was ended. Costs one look at a map when there is none.
    pub async fn settle(&self, lease: &Lease) {
        let Some(room) = self.shared.rooms.get(lease.tenant()).map(|room| Arc::clone(&room)) else { return };
        if room.settled.load(Ordering::SeqCst) == lease.epoch() {
            return;
        }
        let (shared, visit) = (Arc::clone(&self.shared), lease.visit());
        let round = async move { shared.round(&room, &visit).await };
        // It fails only by a panic, which is logged where it happens.
        let _ = self.shared.shutdown.spawn_on(round, &self.shared.runtime).await;
    }

    /// Tells the stream whose id is `state` how an `OAuth2` sign-in at `ip` ended, once. Says whether one waited for it.
    /// A stream of another network is told nothing: its holder could have had somebody else sign in for them.
    pub fn oauth2(&self, ip: IpAddr, state: &str, code: &str, error: &str) -> bool {
        let Some(client) = self.shared.clients.get(state).map(|client| Arc::clone(&client)) else { return false };
        if network(client.ip) != network(ip) || !std::mem::take(&mut client.seat().oauth2) {
            return false;
        }
        self.shared.deliver(&client, sse::oauth2(&client.id, code, error));
        true
    }

    /// How many streams are open.
    pub fn streams(&self) -> usize {
        self.shared.clients.len()
    }

    /// Ends all streams of all tenants, when it is not known whose data changed.
    pub fn reset_all(&self) {
        let tenants: Vec<TenantId> = self.shared.rooms.iter().map(|room| room.key().clone()).collect();
        for tenant in tenants {
            self.reset(&tenant);
        }
    }

    /// Ends the streams of a tenant that are told of its users, because those rows were changed while it slept.
    pub fn reset_users(&self, tenant: &TenantId) {
        let Some(room) = self.shared.rooms.get(tenant).map(|room| Arc::clone(&room)) else { return };
        let members = room.members().clone();
        for client in members {
            let topics = Arc::clone(&client.seat().topics);
            if topics.iter().any(|topic| subscription::is_of_users(topic)) {
                self.shared.end(&client, Reason::Reset);
            }
        }
    }

    /// Ends all streams of a tenant, because its data changed otherwise than by its instance: the clients connect anew
    /// and read anew.
    pub fn reset(&self, tenant: &TenantId) {
        let Some(room) = self.shared.rooms.get(tenant).map(|room| Arc::clone(&room)) else { return };
        let members = room.members().clone();
        for client in members {
            self.shared.end(&client, Reason::Reset);
        }
    }
}

impl Shared {
    fn limits(&self) -> Limits {
        let Config { queue_events, queue_bytes, queue_bytes_in_all, .. } = self.config;
        Limits { frames: queue_events, bytes: queue_bytes, in_all: queue_bytes_in_all }
    }

    /// Queues an event for a client; one that reads too slowly is ended.
    pub(super) fn deliver(&self, client: &Arc<Client>, frame: Bytes) {
        if client.push(frame, &self.limits()) {
            self.metrics.events.inc();
        } else {
            self.end(client, Reason::Slow);
        }
    }

    /// Ends a stream from our side.
    pub(super) fn end(&self, client: &Arc<Client>, reason: Reason) {
        if self.remove(client) {
            self.metrics.streams_ended.get_or_create(&ReasonLabels { reason: reason.label() }).inc();
            tracing::debug!(reason = reason.label(), "ended an event stream");
        }
        client.close();
    }

    /// The client left, or its body is through.
    pub(super) fn depart(&self, client: &Arc<Client>) {
        self.remove(client);
        client.close();
    }

    /// Forgets a stream; true the first time.
    fn remove(&self, client: &Arc<Client>) -> bool {
        let mut seat = client.seat();
        if std::mem::replace(&mut seat.has_ended, true) {
            return false;
        }
        let tenant = seat.binding.tenant().cloned();
        let places = (seat.user_place.take(), seat.sign_in_place.take(), seat.tenant_place.take());
        let left = (seat.link.take(), seat.tally.take(), places);
        drop(seat);
        drop(left);
        self.clients.remove(&client.id);
        if let Some(tenant) = tenant {
            self.leave(&tenant, client);
        }
        true
    }

    /// Enters the room of a tenant. Until this client is attached the room is not settled.
    pub(super) fn join(&self, tenant: &TenantId, client: &Arc<Client>) {
        // The shard's lock is held on purpose: an empty room is removed under it.
        let room = self.rooms.entry(tenant.clone()).or_default();
        let mut members = room.members();
        if !members.iter().any(|member| Arc::ptr_eq(member, client)) {
            members.push(Arc::clone(client));
        }
        room.settled.store(0, Ordering::SeqCst);
    }

    pub(super) fn leave(&self, tenant: &TenantId, client: &Arc<Client>) {
        self.rooms.remove_if(tenant, |_, room| {
            let mut members = room.members();
            if let Some(at) = members.iter().position(|member| Arc::ptr_eq(member, client)) {
                members.swap_remove(at);
            }
            members.is_empty()
        });
    }

    /// Attaches whoever is not, and ends who cannot be.
    pub(super) async fn round(self: &Arc<Self>, room: &Arc<Room>, lease: &Lease) {
        let epoch = lease.epoch();
        let _gate = room.gate.lock().await;
        if room.settled.load(Ordering::SeqCst) >= epoch {
            return;
        }
        let members = room.members().clone();
        let parked = members.iter().filter(|client| !client.seat().is_settled_for(epoch));
        let all = stream::iter(parked).for_each_concurrent(ATTACHING, |client| async move {
            let _turn = client.turn.lock().await;
            if client.seat().is_settled_for(epoch) {
                return;
            }
            match self.attach(client, lease).await {
                Ok(()) => {}
                Err(Error::SessionEnded | Error::NotAdmitted) => self.end(client, Reason::Session),
                Err(_) => self.end(client, Reason::Unattached),
            }
        });
        let _ = tokio::time::timeout(ROUND, all).await;
        for client in &members {
            if !client.seat().is_settled_for(epoch) {
                self.end(client, Reason::Unattached);
            }
        }
        // Whoever joined meanwhile takes care of itself, but the next write has to look.
        let members = room.members();
        if members.iter().all(|client| client.seat().is_settled_for(epoch)) {
            room.settled.fetch_max(epoch, Ordering::SeqCst);
        }
    }

    /// What the instance is asked for and in whose name, the session checked anew.
    pub(super) fn credentials(
        &self,
        client: &Client,
        lease: &Lease,
    ) -> Result<(Arc<[String]>, Option<HeaderValue>), Error> {
        let mut seat = client.seat();
        let topics = Arc::clone(&seat.topics);
        let Binding::Bound { tenant, rights } = &mut seat.binding else {
            return Err(Error::UnknownClient);
        };
        let authorization = match rights {
            // The instance would take it for a guest's, who hears less, and nobody would say so.
            Rights::Visitor(Some(header)) if subscription::has_expired(header, SystemTime::now()) => {
                return Err(Error::SessionEnded);
            }
            Rights::Visitor(authorization) => authorization.clone(),
            Rights::Member(standing) => {
                if !self.verifier.holds(standing, SystemTime::now()) {
                    return Err(Error::SessionEnded);
                }
                if !(self.admits)(standing.user(), tenant) {
                    return Err(Error::NotAdmitted);
                }
                Some(lease.user_authorization(standing.user()).ok_or(Error::NotAdmitted)?)
            }
        };
        Ok((topics, authorization))
    }

    /// Opens and subscribes a stream of the instance for a client, whose turn the caller holds.
    pub(super) async fn attach(self: &Arc<Self>, client: &Arc<Client>, lease: &Lease) -> Result<(), Error> {
        let (topics, authorization) = self.credentials(client, lease)?;
        let (address, max_event) = (lease.address(), self.config.max_event_bytes);
        let opening = async {
            let upstream = Upstream::open(address, client.ip, max_event).await?;
            upstream.subscribe(authorization, &topics).await?;
            Ok::<_, Fault>(upstream)
        };
        let upstream = match tokio::time::timeout(ATTACH, opening).await {
            Ok(Ok(upstream)) => upstream,
            Ok(Err(fault)) => {
                tracing::debug!(tenant.id = %lease.tenant(), %fault, "attach an event stream");
                return Err(fault.into());
            }
            Err(_) => return Err(Error::Unreachable),
        };
        let serial = self.serial.fetch_add(1, Ordering::Relaxed);
        let name = (lease.tenant().clone(), lease.epoch(), serial);
        let (relay, link) = Relay::new(Arc::clone(self), Arc::clone(client), name, upstream, lease.listening());
        let mut seat = client.seat();
        if seat.has_ended {
            return Err(Error::UnknownClient);
        }
        let before = (seat.link.replace(link), seat.tally.replace(Tally::new(&self.metrics, "attached")));
        drop(seat);
        drop(before);
        self.shutdown.spawn_on(relay.run(), &self.runtime);
        Ok(())
    }

    /// The instance's stream ended. The client is parked if nothing can have been said that it did not hear: the instance
    /// was stopped in order, or died when nobody had asked it for anything for a while. Otherwise it has to be told.
    pub(super) async fn unlinked(
        &self,
        client: &Arc<Client>,
        tenant: &TenantId,
        (epoch, serial): (u64, u64),
        fault: &Fault,
    ) {
        {
            let mut seat = client.seat();
            if seat.link.as_ref().is_none_or(|link| link.serial != serial) {
                return;
            }
            let before = (seat.link.take(), seat.tally.replace(Tally::new(&self.metrics, "parked")));
            drop(seat);
            drop(before);
        }
        if let Some(room) = self.rooms.get(tenant).map(|room| Arc::clone(&room)) {
            room.unsettle();
        }
        let was_quiet = self.supervisor.quiet_for(tenant).is_none_or(|quiet| quiet >= QUIET);
        if !matches!(fault, Fault::TooLarge) {
            let deadline = Instant::now() + POST_MORTEM;
            while Instant::now() < deadline {
                if self.supervisor.was_stopped(tenant, epoch) || self.shutdown.has_begun() {
                    return;
                }
                let goes_on = self.supervisor.visit(tenant).is_some_and(|lease| lease.epoch() == epoch);
                if !goes_on && was_quiet {
                    return;
                }
                tokio::time::sleep(LOOK).await;
            }
        }
        tracing::info!(tenant.id = %tenant, %fault, "an instance broke off an event stream; its client connects anew");
        self.end(client, Reason::Broken);
    }
}
