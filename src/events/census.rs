//! Who is connected: the counts behind the limits, and what operators see.

use std::collections::HashMap;
use std::net::IpAddr;
use std::net::Ipv6Addr;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU16;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::Instant;

use super::Topic;
use super::config::Config;
use crate::ids::UserId;
use crate::limits::Keyed;

/// Client addresses whose connecting is counted at once.
const MAX_ADDRESSES: usize = 100_000;
/// Topics of one connection that may wait to be taken away.
const MAX_TAKEN: usize = 64;

/// Why a socket is not let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Full {
    /// As many as this server takes.
    Node,
    /// As many as one user may have.
    User,
    /// As many as may come from one address.
    Address,
    /// Too many in a short time; when to come back.
    Rate(Duration),
}

/// One connection, as operators see it.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) id: u64,
    pub(super) path: &'static str,
    pub(super) connected: Instant,
    pub(super) user: Mutex<Option<UserId>>,
    pub(super) topics: AtomicUsize,
    /// The close code that an operator wants; 0 = none.
    kicked: AtomicU16,
    /// Topics that an operator takes away, and whether there are any.
    taken: Mutex<Vec<Topic>>,
    has_taken: AtomicBool,
}

impl Connection {
    pub(super) fn user(&self) -> Option<UserId> {
        self.user.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Asks its worker to close it.
    pub(super) fn kick(&self, code: u16) {
        self.kicked.store(code, Ordering::Relaxed);
    }

    /// Asks its worker to end a subscription; false when too many wait for it.
    pub(super) fn take_away(&self, topic: &Topic) -> bool {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if !taken.contains(topic) {
            if taken.len() >= MAX_TAKEN {
                return false;
            }
            taken.push(topic.clone());
        }
        self.has_taken.store(true, Ordering::Release);
        true
    }

    /// The topics that were taken away since it was asked last.
    pub(super) fn taken(&self) -> Vec<Topic> {
        if !self.has_taken.load(Ordering::Acquire) {
            return Vec::new();
        }
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        self.has_taken.store(false, Ordering::Release);
        std::mem::take(&mut *taken)
    }

    pub(super) fn kicked(&self) -> Option<u16> {
        Some(self.kicked.load(Ordering::Relaxed)).filter(|code| *code != 0)
    }
}

#[derive(Debug)]
pub(super) struct Census {
    counts: Mutex<Counts>,
    next: AtomicU64,
    max: usize,
    max_per_user: usize,
    max_per_ip: usize,
}

#[derive(Debug)]
struct Counts {
    connections: HashMap<u64, Arc<Connection>>,
    users: HashMap<UserId, usize>,
    addresses: HashMap<IpAddr, usize>,
    rate: Keyed<IpAddr>,
}

/// A place among all sockets, given back when dropped.
#[derive(Debug)]
pub(super) struct Seat {
    census: Arc<Census>,
    pub(super) connection: Arc<Connection>,
    address: IpAddr,
}

/// Connections of one IPv6 network are one client's.
pub(super) fn network(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into(),
        v4 @ IpAddr::V4(_) => v4,
    }
}

impl Census {
    pub(super) fn new(config: &Config) -> Arc<Self> {
        let rate = Keyed::new(config.connects_per_ip, Duration::from_mins(1), MAX_ADDRESSES);
        let counts = Counts { connections: HashMap::new(), users: HashMap::new(), addresses: HashMap::new(), rate };
        Arc::new(Self {
            counts: Mutex::new(counts),
            next: AtomicU64::new(1),
            max: config.max_sockets,
            max_per_user: config.max_sockets_per_user,
            max_per_ip: config.max_sockets_per_ip,
        })
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets a client in.
    pub(super) fn admit(
        self: &Arc<Self>,
        user: Option<&UserId>,
        ip: IpAddr,
        path: &'static str,
        now: Instant,
    ) -> Result<Seat, Full> {
        let address = network(ip);
        let mut counts = self.counts();
        counts.rate.check(&address, now).map_err(Full::Rate)?;
        if counts.connections.len() >= self.max {
            return Err(Full::Node);
        }
        if counts.addresses.get(&address).is_some_and(|count| *count >= self.max_per_ip) {
            return Err(Full::Address);
        }
        if let Some(user) = user {
            take_user(&mut counts, user, self.max_per_user)?;
        }
        *counts.addresses.entry(address).or_default() += 1;
        let connection = Arc::new(Connection {
            id: self.next.fetch_add(1, Ordering::Relaxed),
            path,
            connected: now,
            user: Mutex::new(user.cloned()),
            topics: AtomicUsize::new(0),
            kicked: AtomicU16::new(0),
            taken: Mutex::default(),
            has_taken: AtomicBool::new(false),
        });
        counts.connections.insert(connection.id, Arc::clone(&connection));
        drop(counts);
        Ok(Seat { census: Arc::clone(self), connection, address })
    }

    /// Open sockets and the users behind them.
    pub(super) fn size(&self) -> (usize, usize) {
        let counts = self.counts();
        (counts.connections.len(), counts.users.len())
    }

    /// Everybody, the oldest first.
    pub(super) fn everybody(&self) -> Vec<Arc<Connection>> {
        let mut all: Vec<_> = self.counts().connections.values().cloned().collect();
        all.sort_by_key(|connection| connection.id);
        all
    }
}

fn take_user(counts: &mut Counts, user: &UserId, most: usize) -> Result<(), Full> {
    let count = counts.users.get(user).copied().unwrap_or_default();
    if count >= most {
        return Err(Full::User);
    }
    counts.users.insert(user.clone(), count + 1);
    Ok(())
}

impl Seat {
    /// Counts the connection as this user's, from now on.
    pub(super) fn belongs_to(&self, user: &UserId) -> Result<(), Full> {
        take_user(&mut self.census.counts(), user, self.census.max_per_user)?;
        *self.connection.user.lock().unwrap_or_else(PoisonError::into_inner) = Some(user.clone());
        Ok(())
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let user = self.connection.user();
        let mut counts = self.census.counts();
        counts.connections.remove(&self.connection.id);
        release(&mut counts.addresses, &self.address);
        if let Some(user) = user {
            release(&mut counts.users, &user);
        }
    }
}

fn release<K: std::hash::Hash + Eq>(counts: &mut HashMap<K, usize>, key: &K) {
    if let Some(count) = counts.get_mut(key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::config::defaults;

    #[test]
    fn places_are_limited_and_given_back() {
        let config = Config { max_sockets: 3, max_sockets_per_user: 1, max_sockets_per_ip: 2, ..defaults() };
        let census = Census::new(&config);
        let now = Instant::now();
        let (a, b) = (UserId::parse("aaaaaaaaaaaaaaa").unwrap(), UserId::parse("bbbbbbbbbbbbbbb").unwrap());
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let first = census.admit(Some(&a), ip("2001:db8::1"), "/ws", now).unwrap();
        assert_eq!(census.admit(Some(&a), ip("192.0.2.1"), "/ws", now).unwrap_err(), Full::User);
        let second = census.admit(None, ip("2001:db8::2"), "/ws", now).unwrap();
        assert_eq!(census.admit(None, ip("2001:db8::3"), "/ws", now).unwrap_err(), Full::Address);
        assert_eq!(second.belongs_to(&a), Err(Full::User));
        assert_eq!(second.belongs_to(&b), Ok(()));
        let third = census.admit(None, ip("192.0.2.1"), "/ws", now).unwrap();
        assert_eq!(census.admit(None, ip("192.0.2.2"), "/ws", now).unwrap_err(), Full::Node);
        assert_eq!(census.size(), (3, 2));
        drop((first, second, third));
        assert_eq!(census.size(), (0, 0));
        assert!(census.counts().addresses.is_empty());
    }

    #[test]
    fn connecting_again_and_again_is_slowed_down() {
        let census = Census::new(&Config { connects_per_ip: 2, ..defaults() });
        let (now, ip) = (Instant::now(), "192.0.2.1".parse().unwrap());
        for _ in 0..2 {
            drop(census.admit(None, ip, "/ws", now).unwrap());
        }
        assert!(matches!(census.admit(None, ip, "/ws", now), Err(Full::Rate(_))));
    }
}
