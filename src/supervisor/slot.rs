//! What callers and the owning task of one instance share: the route, the places, the waiting room.
//!
//! The hot path touches atomics only. Closing a route is race-free because both sides write before they read: a
//! caller counts itself in and then looks whether the route is open; the task closes the route and then looks
//! whether anybody is counted in.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::Instant;
use std::time::SystemTime;

use arc_swap::ArcSwap;
use arc_swap::ArcSwapOption;
use hyper::header::HeaderValue;
use tokio::sync::Notify;
use tokio::sync::Semaphore;
use tokio::sync::mpsc;
use tokio::sync::oneshot;
use tokio::sync::watch;

use crate::ids::TenantId;
use crate::ids::UserId;
use crate::pocketbase::database::Signers;
use crate::pocketbase::token::Signer;
use crate::supervisor::Error;
use crate::supervisor::Priority;
use crate::supervisor::fleet::Admission;
use crate::supervisor::launch::PROOF_TTL;

/// How long a minted token lives, and how much of that must be left for it to be used again.
const TOKEN_TTL: Duration = Duration::from_mins(1);
const TOKEN_MARGIN: Duration = Duration::from_secs(20);

/// An operator's command to the owning task.
#[derive(Debug)]
pub(crate) enum Command {
    /// Drain and stop; the reply says whether it did.
    Sleep(oneshot::Sender<Result<(), Error>>),
    /// Drain and stop for good, whoever still wants it: nothing of it is running when the reply comes.
    Retire(oneshot::Sender<()>),
    /// Lift backoff, quarantine or block.
    Release(oneshot::Sender<()>),
    /// Bring the rows of those who may act in it in step.
    Enroll(oneshot::Sender<()>),
    /// Stop it, whoever uses it, and do something to its folder before anybody starts it again.
    Alone(Work, oneshot::Sender<Result<(), Error>>),
}

/// What is done to a folder that nobody serves.
pub(crate) struct Work(pub(crate) futures_util::future::BoxFuture<'static, Result<(), Error>>);

impl std::fmt::Debug for Work {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Work")
    }
}

/// What a waiter is told.
#[derive(Debug, Clone)]
pub(crate) enum Phase {
    /// Not open, but on its way or startable.
    Pending,
    /// The route is open.
    Open,
    /// Refused; after `until`, if set, asking again makes sense.
    Refusing { error: Error, until: Option<Instant> },
}

/// One running, proved process.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) address: SocketAddr,
    pub(crate) epoch: u64,
    /// Bytes that were in the log before it started.
    pub(crate) log_start: u64,
    signers: ArcSwap<Signers>,
    minted: ArcSwapOption<Minted>,
    /// Whether it was started for nobody, and nobody was let in since.
    is_untouched: AtomicBool,
}

#[derive(Debug)]
struct Minted {
    /// The keys it was made from.
    signers: Arc<Signers>,
    user: UserId,
    header: HeaderValue,
    usable_until: SystemTime,
}

impl Running {
    pub(crate) fn new(address: SocketAddr, epoch: u64, signers: Signers, log_start: u64) -> Self {
        let signers = ArcSwap::from_pointee(signers);
        let (minted, is_untouched) = (ArcSwapOption::empty(), AtomicBool::new(false));
        Self { address, epoch, log_start, signers, minted, is_untouched }
    }

    /// The same, started for nobody.
    pub(crate) fn of_spare(self, is_spare: bool) -> Self {
        Self { is_untouched: AtomicBool::new(is_spare), ..self }
    }

    /// A fresh token of the control superuser.
    pub(crate) fn superuser_token(&self) -> HeaderValue {
        mint(&self.signers.load().superuser, SystemTime::now(), TOKEN_TTL)
    }

    /// A token of the control superuser for one health check.
    pub(crate) fn proof(&self) -> HeaderValue {
        mint(&self.signers.load().superuser, SystemTime::now(), PROOF_TTL)
    }

    /// Whether this is the first time that somebody is let into a process that was started for nobody. What the file
    /// says plays no part in it: whoever is in there may write it.
    pub(crate) fn takes_its_first(&self) -> bool {
        self.is_untouched.swap(false, Ordering::SeqCst)
    }

    /// Mints from other keys from now on: somebody came or went.
    pub(crate) fn renew(&self, signers: Signers) {
        self.signers.store(Arc::new(signers));
    }

    fn file_token(&self, user: &UserId) -> Option<String> {
        Some(self.signers.load().files.get(user)?.mint_file(SystemTime::now(), FILE_TOKEN_TTL, None))
    }

    /// The token of a user's row, minted again shortly before it expires.
    fn user_token(&self, user: &UserId) -> Option<HeaderValue> {
        let now = SystemTime::now();
        let signers = self.signers.load();
        if let Some(minted) = &*self.minted.load()
            && Arc::ptr_eq(&minted.signers, &signers)
            && minted.user == *user
            && now < minted.usable_until
        {
            return Some(minted.header.clone());
        }
        let header = mint(signers.users.get(user)?, now, TOKEN_TTL);
        let usable_until = now + TOKEN_TTL.saturating_sub(TOKEN_MARGIN);
        let (signers, user) = (Arc::clone(&signers), user.clone());
        self.minted.store(Some(Arc::new(Minted { signers, user, header: header.clone(), usable_until })));
        Some(header)
    }
}

/// How long a file token for one forwarded request lives: until the instance has looked at it.
const FILE_TOKEN_TTL: Duration = Duration::from_mins(1);

pub(crate) fn mint(signer: &Signer, now: SystemTime, ttl: Duration) -> HeaderValue {
    // A token is base64url and dots, which a header value always takes.
    let mut value = HeaderValue::try_from(signer.mint(now, ttl)).unwrap_or(HeaderValue::from_static("-"));
    value.set_sensitive(true);
    value
}

/// What operators see, as the task last published it.
#[derive(Debug, Clone)]
pub(crate) struct View {
    pub(crate) state: &'static str,
    pub(crate) reason: Option<String>,
    pub(crate) last_log: Vec<String>,
    pub(crate) pid: Option<i32>,
    pub(crate) until: Option<Instant>,
    pub(crate) restarts: u64,
    /// Of one core, in per cent, at the last probe.
    pub(crate) cpu_percent: Option<u32>,
    /// It has used a whole core for long.
    pub(crate) is_burning: bool,
}

/// The shared side of one instance that is awake, starting, or remembered for its failures.
#[derive(Debug)]
pub(crate) struct Slot {
    pub(crate) tenant: TenantId,
    running: ArcSwapOption<Running>,
    places: Semaphore,
    in_flight: AtomicU32,
    /// Event streams that are open on the process.
    listeners: AtomicU32,
    pub(crate) waiting: AtomicU32,
    /// Milliseconds since `origin`.
    last_used: AtomicU64,
    last_answer: AtomicU64,
    /// The last epoch whose process was stopped in order.
    stopped: AtomicU64,
    origin: Instant,
    client_waits: AtomicBool,
    /// The route is closed, and it is not known yet whether somebody is still at work.
    is_wavering: AtomicBool,
    /// It was woken on suspicion, and nobody has used it since.
    is_predicted: AtomicBool,
    /// A place for the next start that is taken already.
    reserved: Mutex<Option<Admission>>,
    pub(crate) want: Notify,
    pub(crate) idle: Notify,
    pub(crate) phase: watch::Sender<Phase>,
    pub(crate) view: ArcSwap<View>,
    pub(crate) mail: mpsc::Sender<Command>,
}

/// What an attempt to take a place came to.
pub(crate) enum Attempt {
    Taken(Lease),
    Full,
    Closed,
}

impl Slot {
    pub(crate) fn new(tenant: TenantId, places: usize) -> (Arc<Self>, mpsc::Receiver<Command>) {
        let (mail, inbox) = mpsc::channel(16);
        let view = View {
            state: "asleep",
            reason: None,
            last_log: Vec::new(),
            pid: None,
            until: None,
            restarts: 0,
            cpu_percent: None,
            is_burning: false,
        };
        let slot = Self {
            tenant,
            running: ArcSwapOption::empty(),
            places: Semaphore::new(places),
            in_flight: AtomicU32::new(0),
            listeners: AtomicU32::new(0),
            waiting: AtomicU32::new(0),
            last_used: AtomicU64::new(0),
            last_answer: AtomicU64::new(0),
            stopped: AtomicU64::new(0),
            origin: Instant::now(),
            client_waits: AtomicBool::new(false),
            is_wavering: AtomicBool::new(false),
            is_predicted: AtomicBool::new(false),
            reserved: Mutex::default(),
            want: Notify::new(),
            idle: Notify::new(),
            phase: watch::Sender::new(Phase::Pending),
            view: ArcSwap::from_pointee(view),
            mail,
        };
        (Arc::new(slot), inbox)
    }

    /// Takes a place if the route is open and one is free.
    pub(crate) fn try_take(self: &Arc<Self>) -> Attempt {
        let Ok(place) = self.places.try_acquire() else {
            return if self.running.load().is_some() { Attempt::Full } else { Attempt::Closed };
        };
        place.forget();
        self.enter()
    }

    /// Waits for a place, first come first served. The place is kept: giving it back to try again would pass it round
    /// among the waiters without end.
    pub(crate) async fn take_when_free(self: &Arc<Self>) -> Attempt {
        // The semaphore is never closed.
        let Ok(place) = self.places.acquire().await else { return Attempt::Closed };
        place.forget();
        self.enter()
    }

    /// With a place in hand: counts in, then looks whether the route is open.
    fn enter(self: &Arc<Self>) -> Attempt {
        self.in_flight.fetch_add(1, Ordering::SeqCst);
        std::sync::atomic::fence(Ordering::SeqCst);
        let running = self.running.load_full();
        // From here on the drop of the lease undoes the counting, also when the route turns out to be closed.
        let slot = Arc::clone(self);
        if let Some(running) = running {
            Attempt::Taken(Lease { slot, running, is_visit: false })
        } else {
            slot.leave();
            Attempt::Closed
        }
    }

    /// Enters without a place and without counting as use, if the route is open.
    pub(crate) fn visit(self: &Arc<Self>) -> Option<Lease> {
        self.in_flight.fetch_add(1, Ordering::SeqCst);
        std::sync::atomic::fence(Ordering::SeqCst);
        let Some(running) = self.running.load_full() else {
            self.end_visit();
            return None;
        };
        Some(Lease { slot: Arc::clone(self), running, is_visit: true })
    }

    fn end_visit(&self) {
        if self.in_flight.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.idle.notify_one();
        }
    }

    /// Asks the task for a start. The priority sticks until the start is through.
    pub(crate) fn want(&self, priority: Priority) {
        if priority == Priority::Client {
            self.client_waits.store(true, Ordering::Relaxed);
        }
        self.want.notify_one();
    }

    /// The priority that the next start has.
    pub(crate) fn priority(&self) -> Priority {
        if self.client_waits.swap(false, Ordering::Relaxed) { Priority::Client } else { Priority::Background }
    }

    /// Notes a wake on suspicion, with the place that is kept for its start.
    pub(crate) fn reserve(&self, admission: Option<Admission>) {
        self.is_predicted.store(true, Ordering::Relaxed);
        let before = std::mem::replace(&mut *self.reserved.lock().unwrap_or_else(PoisonError::into_inner), admission);
        drop(before);
    }

    pub(crate) fn take_reserved(&self) -> Option<Admission> {
        self.reserved.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// The process that was woken on suspicion is gone.
    pub(crate) fn forget_prediction(&self) {
        self.is_predicted.store(false, Ordering::Relaxed);
    }

    fn leave(&self) {
        self.touch();
        if self.in_flight.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.idle.notify_one();
        }
        self.places.add_permits(1);
    }

    pub(crate) fn open(&self, running: Arc<Running>) {
        self.touch();
        self.last_answer.store(self.elapsed(), Ordering::Relaxed);
        self.running.store(Some(running));
    }

    pub(crate) fn close(&self) {
        self.running.store(None);
        // Pairs with the fence in `enter`.
        std::sync::atomic::fence(Ordering::SeqCst);
    }

    /// Opens the route of a process that was there all along. Not a use of it.
    pub(crate) fn reopen(&self, running: Arc<Running>) {
        self.last_answer.store(self.elapsed(), Ordering::Relaxed);
        self.running.store(Some(running));
    }

    /// Closes the route for a look whether anybody is inside; [`waver_no_more`](Self::waver_no_more) ends that.
    pub(crate) fn waver(&self) {
        self.is_wavering.store(true, Ordering::SeqCst);
        self.close();
    }

    pub(crate) fn waver_no_more(&self) {
        self.is_wavering.store(false, Ordering::SeqCst);
    }

    /// Whether the route is closed while somebody may still be at work.
    pub(crate) fn is_closing(&self) -> bool {
        self.is_wavering.load(Ordering::SeqCst) || self.view.load().state == "draining"
    }

    /// Whether there is a process that requests are let to, or will be without a start.
    pub(crate) fn is_up(&self) -> bool {
        self.running.load().is_some() || matches!(self.view.load().state, "awake" | "frozen")
    }

    pub(crate) fn is_frozen(&self) -> bool {
        self.view.load().state == "frozen"
    }

    pub(crate) fn running(&self) -> Option<Arc<Running>> {
        self.running.load_full()
    }

    pub(crate) fn in_flight(&self) -> u32 {
        self.in_flight.load(Ordering::SeqCst)
    }

    pub(crate) fn has_listeners(&self) -> bool {
        self.listeners.load(Ordering::SeqCst) > 0
    }

    pub(crate) fn touch(&self) {
        self.last_used.store(self.elapsed(), Ordering::Relaxed);
    }

    /// How long nobody used it.
    pub(crate) fn unused_for(&self) -> Duration {
        Duration::from_millis(self.elapsed().saturating_sub(self.last_used.load(Ordering::Relaxed)))
    }

    /// Notes that the process of an epoch is about to be stopped in order: nothing is in flight, and nothing was lately.
    pub(crate) fn note_stop(&self, epoch: u64) {
        self.stopped.fetch_max(epoch, Ordering::SeqCst);
    }

    /// Whether the process of an epoch was stopped in order.
    pub(crate) fn was_stopped(&self, epoch: u64) -> bool {
        self.stopped.load(Ordering::SeqCst) >= epoch
    }

    /// How long no request proved it healthy.
    pub(crate) fn silent_for(&self) -> Duration {
        Duration::from_millis(self.elapsed().saturating_sub(self.last_answer.load(Ordering::Relaxed)))
    }

    pub(crate) fn heard(&self) {
        self.last_answer.store(self.elapsed(), Ordering::Relaxed);
    }

    fn elapsed(&self) -> u64 {
        u64::try_from(self.origin.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

/// Keeps an instance awake and counts as one request in flight, until dropped.
#[derive(Debug)]
pub struct Lease {
    slot: Arc<Slot>,
    running: Arc<Running>,
    /// It took no place, and its end is not the end of a use.
    is_visit: bool,
}

/// Says that an event stream is open on the process: before a stop, its last events get a moment to come out.
#[derive(Debug)]
pub struct Listening {
    slot: Arc<Slot>,
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.slot.listeners.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Lease {
    /// The tenant whose instance it is.
    pub fn tenant(&self) -> &TenantId {
        &self.slot.tenant
    }

    /// A second hold on the same process, which takes no place and does not count as use: for a call that belongs to
    /// the first. Valid also when the route was closed meanwhile, because the first hold keeps the process.
    #[must_use]
    pub fn visit(&self) -> Self {
        self.slot.in_flight.fetch_add(1, Ordering::SeqCst);
        Self { slot: Arc::clone(&self.slot), running: Arc::clone(&self.running), is_visit: true }
    }

    /// Whether this is the first use since a wake on suspicion. Told once.
    pub(super) fn takes_prediction(&self) -> bool {
        // A plain look first: all but one request find nothing.
        self.slot.is_predicted.load(Ordering::Relaxed) && self.slot.is_predicted.swap(false, Ordering::Relaxed)
    }

    /// Notes an open event stream.
    pub fn listening(&self) -> Listening {
        self.slot.listeners.fetch_add(1, Ordering::SeqCst);
        Listening { slot: Arc::clone(&self.slot) }
    }

    /// Where the instance listens.
    pub fn address(&self) -> SocketAddr {
        self.running.address
    }

    /// With the address names one process: a pool keyed by both never reuses a connection to a dead one.
    pub fn epoch(&self) -> u64 {
        self.running.epoch
    }

    /// A token of this user's own row in the instance, good for some 20 seconds at least. `None` when the instance
    /// has no such row.
    pub fn user_authorization(&self, user: &UserId) -> Option<HeaderValue> {
        self.running.user_token(user)
    }

    /// A file token of this user's own row in the instance, for one request. `None` when the instance has no such row.
    pub fn user_file_token(&self, user: &UserId) -> Option<String> {
        self.running.file_token(user)
    }

    /// A file token of the control superuser, for one request and under the same condition as its authorization. `None`
    /// when the instance has no secret for such tokens.
    pub fn superuser_file_token(&self) -> Option<String> {
        let signers = self.running.signers.load();
        Some(signers.superuser_files.as_ref()?.mint_file(SystemTime::now(), FILE_TOKEN_TTL, None))
    }

    /// A token of the control superuser. The instance accepts it only from a loopback address, so it is for calls
    /// of ours without `X-Forwarded-For`, never for forwarded requests.
    pub fn superuser_authorization(&self) -> HeaderValue {
        self.running.superuser_token()
    }

    /// Base URL for direct calls.
    pub fn base_url(&self) -> String {
        format!("http://{}", self.running.address)
    }

    /// The instance answered something: as good as a health probe.
    pub fn answered(&self) {
        self.slot.heard();
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if self.is_visit { self.slot.end_visit() } else { self.slot.leave() }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::pocketbase::token::Key;

    fn signers(key: &str, users: &[&str]) -> Signers {
        let signer = |id: &str| Signer { collection_id: "c".into(), record_id: id.into(), key: Key::new(key, "s") };
        let users: HashMap<_, _> = users.iter().map(|id| (UserId::parse(id).unwrap(), signer(id))).collect();
        Signers { superuser: signer("root"), superuser_files: None, users, files: HashMap::new() }
    }

    #[test]
    fn tokens_follow_the_keys_at_once() {
        let running = Running::new(([127, 0, 0, 1], 1).into(), 1, signers("old", &["ada", "bob"]), 0);
        let token = |id: &str| running.user_token(&UserId::parse(id).unwrap());
        let (ada, again) = (token("ada").unwrap(), token("ada").unwrap());
        assert_eq!(ada, again, "minted once for a while");
        assert!(token("cyd").is_none());
        running.renew(signers("new", &["ada", "cyd"]));
        assert_ne!(token("ada").unwrap(), ada, "not from the key of before");
        assert!(token("cyd").is_some() && token("bob").is_none());
    }
}
