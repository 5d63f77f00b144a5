//! The last events of one topic, in memory: pure.
//!
//! Invariants: offsets grow; the first event's `prev` is the floor, the largest offset that is not here any more; the
//! bounds in events and bytes hold after every call, except that the newest event always stays.

use std::collections::VecDeque;
use std::sync::Arc;

use super::event::Event;

/// What a resuming client gets.
#[derive(Debug)]
pub(super) struct Replay {
    /// Whether nothing is missing between what the client has and the first event here.
    pub(super) recovered: bool,
    /// The events after the client's offset, oldest first; none when not recovered.
    pub(super) events: Vec<Arc<Event>>,
}

#[derive(Debug)]
pub(super) struct Ring {
    events: VecDeque<Arc<Event>>,
    bytes: usize,
    /// The floor while there are no events.
    empty_floor: u64,
    max_events: usize,
    max_bytes: usize,
}

impl Ring {
    /// A ring of a topic of which everything up to `floor` may be gone.
    pub(super) fn new(floor: u64, max_events: usize, max_bytes: usize) -> Self {
        Self { events: VecDeque::new(), bytes: 0, empty_floor: floor, max_events, max_bytes }
    }

    /// The offset of the newest event, or the floor.
    pub(super) fn head(&self) -> u64 {
        self.events.back().map_or(self.empty_floor, |event| event.offset)
    }

    /// Everything up to here may be gone.
    pub(super) fn floor(&self) -> u64 {
        self.events.front().map_or(self.empty_floor, |event| event.prev)
    }

    /// Appends an event.
    pub(super) fn push(&mut self, event: Arc<Event>) {
        self.bytes += event.weight();
        self.events.push_back(event);
        while self.events.len() > 1 && (self.events.len() > self.max_events || self.bytes > self.max_bytes) {
            if let Some(old) = self.events.pop_front() {
                self.bytes -= old.weight();
            }
        }
    }

    /// Forgets all but the newest event and those after `moment` (Unix milliseconds).
    pub(super) fn expire(&mut self, moment: i64) {
        while self.events.len() > 1 && self.events.front().is_some_and(|event| event.at_ms < moment) {
            if let Some(old) = self.events.pop_front() {
                self.bytes -= old.weight();
            }
        }
    }

    /// What a client that has everything up to `since` needs.
    pub(super) fn after(&self, since: u64) -> Replay {
        if since < self.floor() {
            return Replay { recovered: false, events: Vec::new() };
        }
        let start = self.events.partition_point(|event| event.offset <= since);
        Replay { recovered: true, events: self.events.iter().skip(start).cloned().collect() }
    }

    /// The newest events, oldest first.
    pub(super) fn newest(&self, limit: usize) -> Vec<Arc<Event>> {
        let skip = self.events.len().saturating_sub(limit);
        self.events.iter().skip(skip).cloned().collect()
    }

    /// When the newest event was published, in Unix milliseconds.
    pub(super) fn newest_at(&self) -> Option<i64> {
        self.events.back().map(|event| event.at_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::Message;
    use crate::events::Topic;

    fn event(offset: u64, prev: u64) -> Arc<Event> {
        let message = Message::new("Test", serde_json::json!({ "n": offset }));
        Arc::new(Event::new(&Topic::System, offset, prev, i64::try_from(offset).unwrap(), message))
    }

    fn filled(count: u64) -> Ring {
        let mut ring = Ring::new(7, 4, 1 << 20);
        for n in 1..=count {
            ring.push(event(n * 10, ring.head()));
        }
        ring
    }

    fn offsets(replay: &Replay) -> Vec<u64> {
        replay.events.iter().map(|event| event.offset).collect()
    }

    #[test]
    fn what_is_there_is_given_once_and_in_order() {
        let ring = filled(3);
        assert_eq!(offsets(&ring.after(7)), [10, 20, 30]);
        assert_eq!(offsets(&ring.after(10)), [20, 30]);
        assert_eq!(offsets(&ring.after(15)), [20, 30], "an offset of another topic counts as well");
        assert!(ring.after(99).recovered);
        assert!(!ring.after(6).recovered, "below the floor something may be missing");
    }

    #[test]
    fn what_was_dropped_is_not_pretended() {
        let ring = filled(6);
        assert_eq!((ring.floor(), ring.head()), (20, 60));
        assert_eq!(offsets(&ring.after(20)), [30, 40, 50, 60]);
        let lost = ring.after(10);
        assert!(!lost.recovered && lost.events.is_empty());
    }

    #[test]
    fn bytes_are_bounded_and_the_newest_stays() {
        let mut ring = Ring::new(0, 100, 1);
        for n in 1..=3 {
            ring.push(event(n, n - 1));
        }
        assert_eq!((ring.floor(), offsets(&ring.after(2))), (2, vec![3]));
        ring.expire(i64::MAX);
        assert_eq!(ring.newest(9).len(), 1);
    }
}
