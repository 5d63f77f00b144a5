//! How many streams there may be, in all and of one kind, counted by whoever holds a place.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::IpAddr;
use std::net::Ipv6Addr;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;

/// Places per key. Keys without a taken place cost nothing.
#[derive(Debug)]
pub(super) struct Places<K: Hash + Eq + Clone> {
    max: usize,
    taken: Mutex<HashMap<K, usize>>,
}

/// One place, given back when dropped.
#[derive(Debug)]
pub(super) struct Place<K: Hash + Eq + Clone> {
    places: Arc<Places<K>>,
    key: K,
}

impl<K: Hash + Eq + Clone> Places<K> {
    pub(super) fn new(max: usize) -> Arc<Self> {
        Arc::new(Self { max, taken: Mutex::default() })
    }

    /// Takes a place unless all of this key are taken.
    pub(super) fn take(self: &Arc<Self>, key: K) -> Option<Place<K>> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let count = taken.get(&key).copied().unwrap_or_default();
        if count >= self.max {
            return None;
        }
        taken.insert(key.clone(), count + 1);
        drop(taken);
        Some(Place { places: Arc::clone(self), key })
    }
}

impl<K: Hash + Eq + Clone> Drop for Place<K> {
    fn drop(&mut self) {
        let mut taken = self.places.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = taken.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.key);
            }
        }
    }
}

/// What clients are counted and recognised by: an IPv4 address, or the /64 that one IPv6 host can fill alone.
pub(super) fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX)).into(),
        v4 @ IpAddr::V4(_) => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_given_back_and_keys_do_not_share_them() {
        let places = Places::new(1);
        let first = places.take("a").unwrap();
        assert!(places.take("a").is_none());
        let _other = places.take("b").unwrap();
        drop(first);
        assert!(places.take("a").is_some());
        assert_eq!(places.taken.lock().unwrap().len(), 1, "only b is left");
    }
}
