//! How much password work may happen: each check costs 0.1 to 0.2 s of CPU, which makes sign-in a weapon.
//!
//! Three limits, cheapest first: a token bucket per client address, a growing delay per account after wrong
//! passwords, and a small number of places with a bounded waiting room. An account that does not exist is treated
//! like one that does, so that nobody learns which is which.
//!
//! Invariants:
//! - A place is held until the work is done, not until the client goes away (see `accounts`).
//! - What is kept per address and account has a fixed size and number.

use std::fmt;
use std::net::IpAddr;
use std::net::Ipv6Addr;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::Instant;

use sha2::Digest;
use sha2::Sha256;
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::Semaphore;

use super::Config;
use crate::limits::Keyed;
use crate::limits::Penalty;
use crate::telemetry::Metrics;
use crate::telemetry::ReasonLabels;

/// How long an attempt waits for a place.
const MAX_WAIT: Duration = Duration::from_secs(5);

/// When a refused attempt should come back.
const RETRY_AFTER: Duration = Duration::from_secs(2);

/// Addresses and accounts that are remembered at once.
const MAX_KEYS: usize = 100_000;

const MINUTE: Duration = Duration::from_mins(1);

/// Why an attempt is refused before any password is checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Too many attempts from this address, or too many failures of this account.
    #[error("too many attempts; the next one is taken in {0:?}")]
    RateLimited(Duration),
    /// No place came free in time, or too many wait for one.
    #[error("too many attempts are under way")]
    Overloaded(Duration),
}

/// Failures from everywhere that delay an account, as a multiple of those from one address: whoever guesses from one
/// place delays themselves, not the owner, and whoever guesses from many is stopped all the same.
const SPREAD: u32 = 20;

/// An attempt on an account as the gate knows it: digests, so that memory holds no addresses and no entry is larger
/// than another.
#[derive(Clone, PartialEq, Eq)]
pub struct AccountKey {
    account: [u8; 32],
    from: [u8; 32],
}

impl AccountKey {
    /// The account that this e-mail address names, in any spelling `PocketBase` would accept for it, tried from this
    /// client address.
    pub fn of(email: &str, from: IpAddr) -> Self {
        let account: [u8; 32] = Sha256::digest(email.trim().to_lowercase().as_bytes()).into();
        let from = Sha256::new().chain_update(account).chain_update(bucket(from).to_string()).finalize().into();
        Self { account, from }
    }
}

impl fmt::Debug for AccountKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AccountKey([digest])")
    }
}

/// A place for one password check, free again when dropped.
#[derive(Debug)]
pub struct Permit {
    _place: OwnedSemaphorePermit,
}

/// Bounds password work. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Gate {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    places: Arc<Semaphore>,
    waiting: AtomicUsize,
    max_waiting: usize,
    max_wait: Duration,
    // Held for a look-up each, never across an await.
    attempts: Mutex<Keyed<IpAddr>>,
    registrations: Mutex<Keyed<IpAddr>>,
    failures: Mutex<Penalty<[u8; 32]>>,
    spread_failures: Mutex<Penalty<[u8; 32]>>,
    metrics: Arc<Metrics>,
}

impl Gate {
    /// A gate with the limits of the configuration.
    pub fn new(config: &Config, metrics: Arc<Metrics>) -> Self {
        Self::with_max_wait(config, metrics, MAX_WAIT)
    }

    fn with_max_wait(config: &Config, metrics: Arc<Metrics>, max_wait: Duration) -> Self {
        let per_minute = |count: u32| Mutex::new(Keyed::new(count, MINUTE, MAX_KEYS));
        let penalty = |free| Mutex::new(Penalty::new(free, config.delay_base, config.delay_max, MAX_KEYS));
        Self {
            shared: Arc::new(Shared {
                places: Arc::new(Semaphore::new(config.max_concurrent.get().min(Semaphore::MAX_PERMITS))),
                waiting: AtomicUsize::new(0),
                max_waiting: config.max_waiting,
                max_wait,
                attempts: per_minute(config.attempts_per_ip.get()),
                registrations: per_minute(config.registrations_per_ip.get()),
                failures: penalty(config.free_failures),
                spread_failures: penalty(config.free_failures.saturating_mul(SPREAD)),
                metrics,
            }),
        }
    }

    /// Counts an attempt from this address.
    pub fn attempt(&self, from: IpAddr, now: Instant) -> Result<(), Error> {
        locked(&self.shared.attempts).check(&bucket(from), now).map_err(|wait| self.limited("address", wait))
    }

    /// Counts a registration from this address.
    pub fn registration(&self, from: IpAddr, now: Instant) -> Result<(), Error> {
        locked(&self.shared.registrations).check(&bucket(from), now).map_err(|wait| self.limited("address", wait))
    }

    /// Whether this account may be tried now.
    pub fn account(&self, account: &AccountKey, now: Instant) -> Result<(), Error> {
        let here = locked(&self.shared.failures).check(&account.from, now);
        let everywhere = locked(&self.shared.spread_failures).check(&account.account, now);
        here.and(everywhere).map_err(|wait| self.limited("account", wait))
    }

    /// The password was wrong.
    pub fn failed(&self, account: &AccountKey, now: Instant) {
        locked(&self.shared.failures).failed(&account.from, now);
        locked(&self.shared.spread_failures).failed(&account.account, now);
    }

    /// The password was right.
    pub fn succeeded(&self, account: &AccountKey) {
        locked(&self.shared.failures).succeeded(&account.from);
    }

    /// A place for one password check, waited for at most 5 s.
    pub async fn permit(&self) -> Result<Permit, Error> {
        if let Ok(place) = Arc::clone(&self.shared.places).try_acquire_owned() {
            return Ok(Permit { _place: place });
        }
        let Some(_waiting) = Waiting::join(&self.shared) else { return Err(self.overloaded()) };
        let place = tokio::time::timeout(self.shared.max_wait, Arc::clone(&self.shared.places).acquire_owned()).await;
        match place {
            Ok(Ok(place)) => Ok(Permit { _place: place }),
            // The semaphore is never closed, so this is the time limit.
            Ok(Err(_)) | Err(_) => Err(self.overloaded()),
        }
    }

    fn limited(&self, reason: &'static str, wait: Duration) -> Error {
        self.count(reason);
        Error::RateLimited(wait)
    }

    fn overloaded(&self) -> Error {
        self.count("busy");
        Error::Overloaded(RETRY_AFTER)
    }

    fn count(&self, reason: &'static str) {
        self.shared.metrics.auth_refused.get_or_create(&ReasonLabels { reason }).inc();
    }
}

fn locked<T>(limits: &Mutex<T>) -> MutexGuard<'_, T> {
    limits.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One attempt in the waiting room; leaves it when dropped, also when the client goes away.
struct Waiting<'a>(&'a Shared);

impl<'a> Waiting<'a> {
    fn join(shared: &'a Shared) -> Option<Self> {
        let enter = |waiting: usize| (waiting < shared.max_waiting).then_some(waiting + 1);
        shared.waiting.fetch_update(Ordering::Relaxed, Ordering::Relaxed, enter).ok().map(|_| Self(shared))
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Who counts as one client: an IPv4 address, or a /64, which is what one IPv6 customer gets at least.
pub(super) fn bucket(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
        }
        v4 @ IpAddr::V4(_) => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::tests::config;

    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));

    fn gate(max_wait: Duration, change: impl FnOnce(&mut Config)) -> Gate {
        let mut config = config();
        change(&mut config);
        Gate::with_max_wait(&config, Metrics::new(), max_wait)
    }

    #[tokio::test]
    async fn beyond_places_and_waiting_room_attempts_are_refused_at_once() {
        let gate = gate(MAX_WAIT, |config| config.max_waiting = 1);
        let (first, second) = (gate.permit().await.unwrap(), gate.permit().await.unwrap());
        let waiting = tokio::spawn({
            let gate = gate.clone();
            async move { gate.permit().await.map(drop) }
        });
        while gate.shared.waiting.load(Ordering::Relaxed) == 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(gate.permit().await.map(drop), Err(Error::Overloaded(RETRY_AFTER)));
        drop(first);
        assert_eq!(waiting.await.unwrap(), Ok(()));
        assert_eq!(gate.shared.waiting.load(Ordering::Relaxed), 0);
        drop(second);
    }

    #[tokio::test]
    async fn an_attempt_that_waits_too_long_is_refused() {
        let gate = gate(Duration::from_millis(10), |_| {});
        let _held = (gate.permit().await.unwrap(), gate.permit().await.unwrap());
        assert_eq!(gate.permit().await.map(drop), Err(Error::Overloaded(RETRY_AFTER)));
    }

    #[test]
    fn failures_of_one_account_delay_it_in_any_spelling_and_no_other() {
        let gate = gate(MAX_WAIT, |config| config.free_failures = 1);
        let now = Instant::now();
        for _ in 0..2 {
            gate.failed(&AccountKey::of("Eve@Example.com", HERE), now);
        }
        assert!(matches!(gate.account(&AccountKey::of(" eve@example.com", HERE), now), Err(Error::RateLimited(_))));
        assert_eq!(gate.account(&AccountKey::of("bob@example.com", HERE), now), Ok(()));
        let elsewhere = IpAddr::V4(std::net::Ipv4Addr::new(198, 51, 100, 1));
        assert_eq!(
            gate.account(&AccountKey::of("eve@example.com", elsewhere), now),
            Ok(()),
            "the owner is not locked out"
        );
        gate.succeeded(&AccountKey::of("eve@example.com", HERE));
        assert_eq!(gate.account(&AccountKey::of("eve@example.com", HERE), now), Ok(()));
    }

    #[test]
    fn one_ipv6_network_is_one_client() {
        let address = |text: &str| bucket(text.parse().unwrap());
        assert_eq!(address("2001:db8:1:2::1"), address("2001:db8:1:2:ffff::9"));
        assert_ne!(address("2001:db8:1:2::1"), address("2001:db8:1:3::1"));
        assert_eq!(address("::ffff:192.0.2.7"), address("192.0.2.7"));
    }
}
