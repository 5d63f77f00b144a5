//! How much of the machine one tenant may have: room on the disk, size of a body, requests at once and per minute,
//! uploads per hour, memory of its process.
//!
//! What applies to a tenant is joined from three places: its own limits, its template's, the configuration's. The disk is
//! measured by a task ([`sweep`]); between two measures what was sent is added to the last one, so that a burst of writes
//! is refused in time. Beyond the soft limit a tenant is told, beyond the hard one its writes are refused; reading and
//! deleting go on. Below the reserve of the disk nobody writes.
//!
//! Invariants: a request that no limit concerns costs two atomic loads; nothing here waits; the number of accounts is
//! that of the tenants.
//!
//! Deliberately absent: HTTP, how folders are walked, who may change a limit. The limits are kept in the tenant's record.

mod account;
mod config;
mod sweep;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::Instant;

use dashmap::DashMap;
use tokio::sync::mpsc;

pub use crate::store::limit_rules::check;
pub use crate::store::tenants::Limits;
pub use account::Place;
pub use account::Tally;
pub use config::Config;
pub use config::Invalid;
pub use sweep::Sweep;

use account::Account;

use crate::error::Code;
use crate::error::Problem;
use crate::ids::TenantId;
use crate::store::tenants::Tenant;
use crate::store::tenants::Tenants;
use crate::telemetry::Metrics;

/// Tenants that wait to be measured out of turn; beyond, they wait for their turn.
const URGENT: usize = 1_024;
const HOUR: Duration = Duration::from_hours(1);
const MINUTE: Duration = Duration::from_mins(1);
/// Walks through folders at once that somebody waits for.
const WALKS: usize = 4;
/// How old a measure may be that somebody asks for.
const FRESH: Duration = Duration::from_secs(3);

/// Room that folders take, as it is measured: bytes.
pub type Measure = Arc<dyn Fn(&TenantId) -> io::Result<u64> + Send + Sync>;
/// The limits that a template names.
pub type OfTemplate = Arc<dyn Fn(&str) -> Limits + Send + Sync>;
/// Tells people that a tenant crossed a limit of its disk.
pub type Tell = Arc<dyn Fn(&Tenant, &Crossing) + Send + Sync>;

/// A limit of the disk that was crossed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Crossing {
    /// Where the tenant is now.
    pub level: Level,
    /// Bytes it has.
    pub used: u64,
    /// The limits in force.
    pub limits: Limits,
}

/// How much room a tenant has left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Enough.
    Ok,
    /// Beyond the soft limit.
    Soft,
    /// At the hard limit: no more writes.
    Hard,
}

impl Level {
    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Soft => "soft",
            Self::Hard => "hard",
        }
    }
}

fn too_many_uploads(account: &Account, now: Instant) -> Problem {
    let message = "too many uploads in this hour; wait as long as Retry-After says";
    Problem::new(Code::RateLimited).message(message).retry_after(account.uploads.wait(HOUR, now))
}

fn too_many_requests(account: &Account, now: Instant) -> Problem {
    let message = "too many requests in this minute; wait as long as Retry-After says";
    Problem::new(Code::RateLimited).message(message).retry_after(account.requests.wait(MINUTE, now))
}

/// What [`Quotas`] works with.
#[expect(missing_debug_implementations, reason = "it lives for one call and holds closures")]
pub struct Parts {
    /// `[quota]`
    pub config: Config,
    /// The tenants, with limits of their own.
    pub tenants: Tenants,
    /// The data directory, whose disk has a reserve.
    pub data: PathBuf,
    /// How folders are measured.
    pub measure: Measure,
    /// The limits of templates.
    pub of_template: OfTemplate,
    /// Who is told.
    pub tell: Tell,
    /// What `/metrics` shows.
    pub metrics: Arc<Metrics>,
}

/// How a request weighs on its tenant.
#[derive(Debug, Clone, Copy)]
pub struct Weight {
    /// Whether it may make the tenant's data grow.
    pub grows: bool,
    /// Whether it brings files.
    pub is_upload: bool,
    /// Bytes of its body, if it says so.
    pub length: Option<u64>,
}

/// Leave for one request.
#[derive(Debug, Default)]
pub struct Leave {
    /// The place it takes, if places are counted.
    pub place: Option<Place>,
    /// Counts the bytes of its body, if they may stay.
    pub tally: Option<Tally>,
    /// Largest body, if one is set.
    pub largest: Option<u64>,
    /// What its caller is to be told, if the tenant is beyond its soft limit.
    pub notice: Option<String>,
}

/// What a tenant has and may have.
#[derive(Debug, Clone, Copy)]
pub struct Usage {
    /// Bytes on the disk, with what was sent since the measure; none before the first.
    pub used: Option<u64>,
    /// How long ago it was measured.
    pub measured: Option<Duration>,
    /// Where that is.
    pub level: Level,
    /// Requests at work.
    pub in_flight: u32,
    /// The limits in force.
    pub limits: Limits,
}

/// The quotas. Cheap to clone.
#[derive(Clone)]
pub struct Quotas {
    inner: Arc<Inner>,
}

struct Inner {
    parts: Parts,
    accounts: DashMap<TenantId, Arc<Account>>,
    /// Whether any tenant has a limit that concerns every request.
    counts_requests: AtomicBool,
    /// Whether some tenant is beyond its soft limit.
    somebody_is_over: AtomicBool,
    /// Whether the disk is down to its reserve.
    is_full: AtomicBool,
    /// Walks that somebody waits for.
    walks: AtomicUsize,
    urgent: mpsc::Sender<TenantId>,
}

impl std::fmt::Debug for Quotas {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Quotas").field("accounts", &self.inner.accounts.len()).finish_non_exhaustive()
    }
}

impl Quotas {
    /// Over the parts; whoever runs the [`Sweep`] keeps it true.
    pub fn new(parts: Parts) -> (Self, Sweep) {
        let (urgent, due) = mpsc::channel(URGENT);
        let inner = Inner {
            counts_requests: AtomicBool::new(parts.config.defaults().counts_requests()),
            parts,
            accounts: DashMap::new(),
            somebody_is_over: AtomicBool::new(false),
            is_full: AtomicBool::new(false),
            walks: AtomicUsize::new(0),
            urgent,
        };
        let quotas = Self { inner: Arc::new(inner) };
        (quotas.clone(), Sweep::new(quotas, due))
    }

    /// The limits in force for a tenant: its own, else its template's, else the configuration's.
    pub fn limits(&self, tenant: &Tenant) -> Limits {
        let template = (self.inner.parts.of_template)(&tenant.template);
        let own = tenant.limits.as_deref().copied().unwrap_or_default();
        own.or(&template).or(&self.inner.parts.config.defaults())
    }

    /// The account of a tenant, made at its first request.
    fn account(&self, id: &TenantId) -> Option<Arc<Account>> {
        if let Some(found) = self.inner.accounts.get(id) {
            return Some(Arc::clone(&found));
        }
        let limits = self.limits(&*self.inner.parts.tenants.find(id)?);
        self.note(&limits);
        let made = self.inner.accounts.entry(id.clone()).or_insert_with(|| Arc::new(Account::new(limits)));
        Some(Arc::clone(&made))
    }

    fn note(&self, limits: &Limits) {
        if limits.counts_requests() {
            self.inner.counts_requests.store(true, Ordering::Relaxed);
        }
    }

    /// Brings a tenant's limits in force, after they were changed.
    pub fn renew(&self, tenant: &Tenant) {
        let limits = self.limits(tenant);
        self.note(&limits);
        if let Some(account) = self.inner.accounts.get(&tenant.id) {
            account.set_limits(limits);
        }
        self.look_soon(&tenant.id);
    }

    /// Forgets a tenant that was erased.
    pub fn forget(&self, id: &TenantId) {
        self.inner.accounts.remove(id);
    }

    /// Whether a request of this weight would be refused as things stand. Nothing is counted: it is for those who would
    /// have to wake an instance to ask [`admit`](Self::admit).
    pub fn look(&self, id: &TenantId, weight: Weight, now: Instant) -> Result<(), Problem> {
        if !(weight.grows || self.inner.counts_requests.load(Ordering::Relaxed)) {
            return Ok(());
        }
        let Some(account) = self.account(id) else { return Ok(()) };
        let limits = account.limits();
        if weight.grows {
            self.room_for(&account, &limits, weight)?;
            if weight.is_upload && account.uploads.is_used_up(limits.uploads_per_hour, HOUR, now) {
                return Err(too_many_uploads(&account, now));
            }
        }
        if account.requests.is_used_up(limits.requests_per_minute, MINUTE, now) {
            return Err(too_many_requests(&account, now));
        }
        Ok(())
    }

    /// Whether a request of this weight may pass.
    pub fn admit(&self, id: &TenantId, weight: Weight, now: Instant) -> Result<Leave, Problem> {
        let counts = self.inner.counts_requests.load(Ordering::Relaxed);
        let is_over = self.inner.somebody_is_over.load(Ordering::Relaxed);
        if !(counts || is_over || weight.grows) {
            return Ok(Leave::default());
        }
        let Some(account) = self.account(id) else { return Ok(Leave::default()) };
        let limits = account.limits();
        let mut largest = None;
        if weight.grows {
            largest = self.room_for(&account, &limits, weight)?;
            if weight.is_upload && !account.uploads.take(limits.uploads_per_hour, HOUR, now) {
                return Err(too_many_uploads(&account, now));
            }
        }
        if counts && !account.requests.take(limits.requests_per_minute, MINUTE, now) {
            return Err(too_many_requests(&account, now));
        }
        let mut place = account.enter(limits.in_flight).map_err(|()| {
            let message = "as many requests of this tenant are at work as may be; try again soon";
            Problem::new(Code::TenantBusy).message(message).retry_after(Duration::from_secs(1))
        })?;
        if weight.grows {
            place.tally = Some(account.tally(weight.length.unwrap_or(0), limits.disk_hard));
            self.look_after(id, &account, &limits);
        }
        let tally = place.tally.clone();
        let notice = (account.level() > Level::Ok).then(|| account.notice());
        Ok(Leave { place: Some(place), tally, largest, notice })
    }

    /// The largest body that there is room for.
    fn room_for(&self, account: &Account, limits: &Limits, weight: Weight) -> Result<Option<u64>, Problem> {
        if self.inner.is_full.load(Ordering::Relaxed) {
            return Err(Problem::new(Code::ServerFull).retry_after(Duration::from_mins(1)));
        }
        let mut largest = limits.file_size.filter(|most| *most > 0);
        let length = weight.length.unwrap_or(0);
        if largest.is_some_and(|most| length > most) {
            return Err(Problem::new(Code::BodyTooLarge).details(serde_json::json!({ "limit": largest })));
        }
        if let Some(hard) = limits.disk_hard.filter(|hard| *hard > 0) {
            let left = hard.saturating_sub(account.used());
            if left == 0 || length > left {
                let details = serde_json::json!({ "used": account.used(), "limit": hard });
                return Err(Problem::new(Code::QuotaExceeded).details(details));
            }
            largest = Some(largest.map_or(left, |most| most.min(left)));
        }
        Ok(largest)
    }

    /// Has a tenant measured soon after it wrote much, or when it is near a limit.
    fn look_after(&self, id: &TenantId, account: &Account, limits: &Limits) {
        if account.is_worth_a_look(limits) {
            self.look_soon(id);
        }
    }

    /// Has a tenant measured out of turn. A deletion is worth it too: room may be there again.
    pub fn look_soon(&self, id: &TenantId) {
        if let Some(account) = self.inner.accounts.get(id)
            && account.queue_once()
            && self.inner.urgent.try_send(id.clone()).is_err()
        {
            // So many wait that its turn comes as soon.
            account.unqueue();
        }
    }

    /// Whether somebody is at a limit, so that a deletion is worth a look.
    pub fn is_tight(&self) -> bool {
        self.inner.somebody_is_over.load(Ordering::Relaxed)
    }

    /// What a tenant has and may have.
    pub fn usage(&self, tenant: &Tenant) -> Usage {
        let limits = self.limits(tenant);
        match self.inner.accounts.get(&tenant.id) {
            Some(account) => Usage {
                used: account.is_measured().then(|| account.used()),
                measured: account.measured_ago(),
                level: account.level(),
                in_flight: account.in_flight(),
                limits,
            },
            None => Usage { used: None, measured: None, level: Level::Ok, in_flight: 0, limits },
        }
    }

    /// The same with a measure that is some seconds old at most, unless many are asked for at once: then the last one
    /// stands. Blocks; not for worker threads.
    pub fn usage_lately(&self, tenant: &Tenant) -> Usage {
        let Some(account) = self.account(&tenant.id) else { return self.usage(tenant) };
        // Whoever asks while somebody walks, or just did, learns what that one learned.
        let walk = account.walk.try_lock();
        let is_fresh = || account.measured_ago().is_some_and(|ago| ago < FRESH);
        if walk.is_ok() && !is_fresh() {
            let walks = self.inner.walks.fetch_add(1, Ordering::Relaxed);
            if walks < WALKS {
                self.measure(&tenant.id);
            }
            self.inner.walks.fetch_sub(1, Ordering::Relaxed);
        }
        self.usage(tenant)
    }

    /// The same with the disk measured now. Blocks; not for worker threads.
    pub fn usage_now(&self, tenant: &Tenant) -> Usage {
        drop(self.account(&tenant.id));
        self.measure(&tenant.id);
        self.usage(tenant)
    }

    /// Bytes that the process of a tenant may have, for whoever starts it; none: as the configuration says.
    pub fn memory(&self, tenant: &Tenant) -> Option<u64> {
        self.limits(tenant).memory.filter(|bytes| *bytes > 0)
    }

    /// Whether the disk is down to its reserve.
    pub fn is_full(&self) -> bool {
        self.inner.is_full.load(Ordering::Relaxed)
    }

    /// Measures one tenant and tells its owner when it crossed a limit. Blocks.
    fn measure(&self, id: &TenantId) {
        let Some(tenant) = self.inner.parts.tenants.find(id) else { return self.forget(id) };
        let mark = self.inner.accounts.get(id).map(|account| account.measuring());
        let limits = self.limits(&tenant);
        let (used, uncounted) = match (self.inner.parts.measure)(id) {
            Ok(used) => (used, None),
            // Made so by whoever runs there: what is not counted is as much as it may have.
            Err(error) if matches!(error.kind(), io::ErrorKind::QuotaExceeded | io::ErrorKind::PermissionDenied) => {
                (limits.disk_hard.or(limits.disk_soft).unwrap_or(0), Some(error))
            }
            Err(error) => {
                tracing::debug!(tenant.id = %id, %error, "a tenant's folder cannot be measured now");
                return;
            }
        };
        // One that never ran costs nothing here.
        if used == 0 && !self.inner.accounts.contains_key(id) {
            return;
        }
        let Some(account) = self.account(id) else { return };
        account.set_limits(limits);
        let mark = mark.unwrap_or_else(|| account.measuring());
        if let Some(level) = account.measured(used, mark, &limits) {
            if let Some(error) = uncounted {
                tracing::warn!(tenant.id = %id, %error, "a tenant's folders cannot be counted: it is at its limit");
            }
            if level > Level::Ok {
                tracing::info!(tenant.id = %id, level = level.as_str(), bytes = used, "a tenant crossed a limit of its disk");
            }
            (self.inner.parts.tell)(&tenant, &Crossing { level, used, limits });
        }
    }
}

#[cfg(test)]
mod tests;
