//! A bounded map that forgets what was not touched for longest, in constant time per operation.
//!
//! Two maps take turns: when the young one is full it becomes the old one, and the former old one is dropped as a
//! whole. Touching a key moves it to the young map, so what is in use survives.

use std::collections::HashMap;
use std::hash::Hash;

#[derive(Debug)]
pub(super) struct Generations<K, V> {
    young: HashMap<K, V>,
    old: HashMap<K, V>,
    per_generation: usize,
}

impl<K: Eq + Hash, V> Generations<K, V> {
    /// At most `max_keys` keys (at least 2) are held.
    pub(super) fn new(max_keys: usize) -> Self {
        Self { young: HashMap::new(), old: HashMap::new(), per_generation: (max_keys / 2).max(1) }
    }

    pub(super) fn touch(&mut self, key: &K) -> Option<&mut V>
    where
        K: Clone,
    {
        if !self.young.contains_key(key) {
            let value = self.old.remove(key)?;
            self.insert(key.clone(), value);
        }
        self.young.get_mut(key)
    }

    pub(super) fn insert(&mut self, key: K, value: V) {
        if self.young.len() >= self.per_generation && !self.young.contains_key(&key) {
            self.old = std::mem::take(&mut self.young);
        }
        self.old.remove(&key);
        self.young.insert(key, value);
    }

    pub(super) fn remove(&mut self, key: &K) {
        self.young.remove(key);
        self.old.remove(key);
    }

    pub(super) fn len(&self) -> usize {
        self.young.len() + self.old.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_in_use_survive_and_the_bound_holds() {
        let mut map = Generations::new(10);
        map.insert(0, 'a');
        for key in 1..1_000 {
            map.insert(key, 'b');
            assert_eq!(map.touch(&0), Some(&mut 'a'), "after {key}");
            assert!(map.len() <= 10);
        }
        assert_eq!(map.touch(&1), None);
        map.remove(&0);
        assert_eq!(map.touch(&0), None);
    }
}
