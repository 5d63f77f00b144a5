//! While two streams of the same subscriptions are open, every event comes twice: this tells the first from the second.
//! Pure.
//!
//! Events have no number, so they are told apart by what they say, and counted: two that say the same and come on each
//! stream are two, not one.

use std::collections::HashMap;
use std::hash::BuildHasher;
use std::hash::RandomState;

/// Which of the two streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Old,
    New,
}

/// What was seen on one stream and not yet on the other.
#[derive(Debug, Default)]
pub(super) struct Overlap {
    hashes: RandomState,
    old: HashMap<u64, u32>,
    new: HashMap<u64, u32>,
}

impl Overlap {
    /// Whether this event is to be passed on: it was not seen on the other stream.
    pub(super) fn is_first(&mut self, side: Side, event: &[u8]) -> bool {
        let key = self.hashes.hash_one(event);
        let (own, other) = match side {
            Side::Old => (&mut self.old, &mut self.new),
            Side::New => (&mut self.new, &mut self.old),
        };
        if let Some(count) = other.get_mut(&key) {
            *count -= 1;
            if *count == 0 {
                other.remove(&key);
            }
            return false;
        }
        *own.entry(key).or_default() += 1;
        true
    }

    /// The old stream is gone: what it brought may still come on the new one, and nothing else is expected twice.
    pub(super) fn is_first_after(&mut self, event: &[u8]) -> bool {
        let key = self.hashes.hash_one(event);
        self.new.clear();
        match self.old.get_mut(&key) {
            Some(1) => {
                self.old.remove(&key);
                false
            }
            Some(count) => {
                *count -= 1;
                false
            }
            None => true,
        }
    }

    /// Events that wait for their second.
    pub(super) fn len(&self) -> usize {
        self.old.len() + self.new.len()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_only_the_old_one_brought_is_expected_of_the_new_one() {
        let mut overlap = Overlap::default();
        assert!(overlap.is_first(Side::Old, b"a"));
        assert!(overlap.is_first(Side::New, b"b"));
        assert!(!overlap.is_first_after(b"a"));
        assert!(overlap.is_first_after(b"a"), "a second one says the same and is another");
        assert!(overlap.is_first_after(b"b"), "the old stream is gone: nothing of it can come");
        assert_eq!(overlap.len(), 0);
    }

    proptest! {
        /// Both streams bring the same events, each in an order of its own: every one is passed on exactly once.
        #[test]
        fn every_event_passes_once(
            events in prop::collection::vec(0_u8..6, 0..40),
            turns in prop::collection::vec(any::<bool>(), 80),
        ) {
            let mut overlap = Overlap::default();
            let (mut old, mut new) = (events.iter(), events.iter().rev());
            let mut passed = Vec::new();
            for turn in turns {
                let (side, next) = if turn { (Side::Old, old.next()) } else { (Side::New, new.next()) };
                if let Some(event) = next && overlap.is_first(side, &[*event]) {
                    passed.push(*event);
                }
            }
            for (side, rest) in [(Side::Old, old.copied().collect::<Vec<_>>()), (Side::New, new.copied().collect())] {
                for event in rest {
                    if overlap.is_first(side, &[event]) {
                        passed.push(event);
                    }
                }
            }
            let mut expected = events.clone();
            expected.sort_unstable();
            passed.sort_unstable();
            prop_assert_eq!(passed, expected);
            prop_assert_eq!(overlap.len(), 0);
        }
    }
}
