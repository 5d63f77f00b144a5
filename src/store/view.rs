//! The live view of one kind of record: in memory, read on every request, never going backwards.
//!
//! Two sources feed a view: the watch, in revision order, and callers that apply their own writes so that they see
//! them at once. Own writes may arrive before the watch's news of them or long after it, in any order; the rule that
//! keeps the view right is "a newer revision wins". A deletion has to be remembered until the watch has passed it,
//! or older news would bring the record back; and once the watch has passed a revision, an own write up to it that
//! finds no record knows that the record was deleted since.

use std::collections::BTreeSet;
use std::collections::HashSet;
use std::hash::Hash;
use std::ops::Bound;
use std::sync::Arc;
use std::sync::PoisonError;
use std::sync::RwLock;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;

use dashmap::DashMap;
use dashmap::Entry;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::Revision;

/// One kind of record: how its key, its identity and its place in the view's order are made.
pub(super) trait Record: Clone + PartialEq + Serialize + DeserializeOwned + Send + Sync + 'static {
    /// What the keys of the kind begin with, the dot included.
    const PREFIX: &'static str;
    /// What the view finds records by.
    type Id: Clone + Eq + Hash + Send + Sync + 'static;
    /// What the view orders records by.
    type Index: Clone + Ord + Send + Sync + 'static;

    /// The record's identity.
    fn id(&self) -> Self::Id;
    /// The key it is stored under.
    fn key(&self) -> String;
    /// The identity in a key, from what follows the prefix. None: not a key of this kind.
    fn parse_id(rest: &str) -> Option<Self::Id>;
    /// Its place in the order; none leaves it out.
    fn index(&self) -> Option<Self::Index>;
    /// A second place, for records that are looked up from two sides; the order keeps the two apart.
    fn second_index(&self) -> Option<Self::Index> {
        None
    }
    /// Lets equal texts of a freshly read record share their memory.
    #[must_use]
    fn compact(self) -> Self {
        self
    }
}

/// Who brings a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    /// A caller that wrote or read the record itself.
    Own,
    /// The watch, in revision order.
    Watch,
    /// The snapshot of a watch that starts.
    Snapshot,
}

/// `record` is none for a deletion (or a record that cannot be read) that must not be forgotten yet.
struct Slot<R> {
    revision: Revision,
    record: Option<Arc<R>>,
}

pub(super) struct View<R: Record> {
    slots: DashMap<R::Id, Slot<R>>,
    index: RwLock<BTreeSet<R::Index>>,
    /// Records in `slots`, remembered deletions not counted.
    records: AtomicUsize,
    /// The watch's changes up to this revision are applied.
    followed: AtomicU64,
}

impl<R: Record> View<R> {
    pub(super) fn new() -> Self {
        Self {
            slots: DashMap::new(),
            index: RwLock::new(BTreeSet::new()),
            records: AtomicUsize::new(0),
            followed: AtomicU64::new(0),
        }
    }

    pub(super) fn find(&self, id: &R::Id) -> Option<Arc<R>> {
        self.slots.get(id).and_then(|slot| slot.record.clone())
    }

    pub(super) fn len(&self) -> usize {
        self.records.load(Ordering::Relaxed)
    }

    /// Calls `visit` with each record and its revision, in no order, until it returns false. `visit` must not use
    /// the view: part of it is locked meanwhile.
    pub(super) fn scan(&self, mut visit: impl FnMut(&Arc<R>, Revision) -> bool) {
        for slot in &self.slots {
            if slot.record.as_ref().is_some_and(|record| !visit(record, slot.revision)) {
                return;
            }
        }
    }

    /// At most `limit` places from a bound on, in order, while `belongs` says so.
    pub(super) fn range(
        &self,
        from: Bound<&R::Index>,
        limit: usize,
        belongs: impl Fn(&R::Index) -> bool,
    ) -> Vec<R::Index> {
        let index = self.index.read().unwrap_or_else(PoisonError::into_inner);
        index.range((from, Bound::Unbounded)).take_while(|place| belongs(place)).take(limit).cloned().collect()
    }

    /// The same, of those places that are wanted.
    pub(super) fn pick(
        &self,
        from: Bound<&R::Index>,
        limit: usize,
        belongs: impl Fn(&R::Index) -> bool,
        wanted: impl FnMut(&&R::Index) -> bool,
    ) -> Vec<R::Index> {
        let index = self.index.read().unwrap_or_else(PoisonError::into_inner);
        let places = index.range((from, Bound::Unbounded)).take_while(|place| belongs(place));
        places.filter(wanted).take(limit).cloned().collect()
    }

    /// Calls `visit` with each place from a bound on, in order, until it returns false.
    pub(super) fn walk(&self, from: Bound<&R::Index>, mut visit: impl FnMut(&R::Index) -> bool) {
        let index = self.index.read().unwrap_or_else(PoisonError::into_inner);
        for place in index.range((from, Bound::Unbounded)) {
            if !visit(place) {
                return;
            }
        }
    }

    /// Takes note of a record as of a revision; none = deleted, or not readable.
    pub(super) fn apply(&self, source: Source, id: R::Id, revision: Revision, record: Option<Arc<R>>) {
        match self.slots.entry(id) {
            Entry::Occupied(mut slot) => {
                if slot.get().revision < revision {
                    let old = slot.insert(Slot { revision, record });
                    self.reindex(old.record.as_deref(), slot.get().record.as_deref());
                }
                // The watch gives nothing older from here on, so a deletion that it confirms can be forgotten. Own
                // writes that come later are held off by `followed`, which must be set before the slot is free.
                self.note_followed(source, revision);
                if source == Source::Watch && slot.get().record.is_none() && slot.get().revision == revision {
                    slot.remove();
                }
            }
            Entry::Vacant(slot) => {
                let is_news = match source {
                    Source::Own => revision.0 > self.followed.load(Ordering::Acquire),
                    Source::Watch | Source::Snapshot => record.is_some(),
                };
                if is_news {
                    self.reindex(None, record.as_deref());
                    slot.insert(Slot { revision, record });
                }
                // Both under the slot's lock: an own write never finds the revision followed but not applied.
                self.note_followed(source, revision);
            }
        }
    }

    /// Brings the view to a snapshot after changes were missed: what the snapshot lacks was deleted meanwhile.
    pub(super) fn resync(&self, moment: Revision, snapshot: Vec<(R::Id, Revision, Option<Arc<R>>)>) {
        let mut present = HashSet::with_capacity(snapshot.len());
        for (id, revision, record) in snapshot {
            present.insert(id.clone());
            self.apply(Source::Snapshot, id, revision, record);
        }
        // After the snapshot is in, so that no own write is taken for old before the snapshot shows it; and before
        // the removal, so that none brings back what is removed.
        self.followed.fetch_max(moment.0, Ordering::AcqRel);
        self.slots.retain(|id, slot| {
            let keep = slot.revision > moment || (present.contains(id) && slot.record.is_some());
            if !keep {
                self.reindex(slot.record.as_deref(), None);
            }
            keep
        });
    }

    fn note_followed(&self, source: Source, revision: Revision) {
        if source == Source::Watch {
            self.followed.fetch_max(revision.0, Ordering::AcqRel);
        }
    }

    /// Called with the record's slot locked. The index lock is always the inner one.
    fn reindex(&self, old: Option<&R>, new: Option<&R>) {
        match (old, new) {
            (None, Some(_)) => self.records.fetch_add(1, Ordering::Relaxed),
            (Some(_), None) => self.records.fetch_sub(1, Ordering::Relaxed),
            _ => 0,
        };
        let places = |record: Option<&R>| record.map_or([None, None], |record| [record.index(), record.second_index()]);
        let (old, new) = (places(old), places(new));
        if old == new {
            return;
        }
        let mut index = self.index.write().unwrap_or_else(PoisonError::into_inner);
        for place in old.into_iter().flatten() {
            index.remove(&place);
        }
        index.extend(new.into_iter().flatten());
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
    struct Note {
        id: u8,
        text: u64,
    }

    impl Record for Note {
        const PREFIX: &'static str = "note.";
        type Id = u8;
        type Index = u8;
        fn id(&self) -> u8 {
            self.id
        }
        fn key(&self) -> String {
            format!("note.{}", self.id)
        }
        fn parse_id(rest: &str) -> Option<u8> {
            rest.parse().ok()
        }
        fn index(&self) -> Option<u8> {
            Some(self.id)
        }
    }

    fn apply(view: &View<Note>, source: Source, revision: u64, text: Option<u64>) {
        view.apply(source, 1, Revision(revision), text.map(|text| Arc::new(Note { id: 1, text })));
    }

    fn text(view: &View<Note>) -> Option<u64> {
        view.find(&1).map(|note| note.text)
    }

    #[test]
    fn an_own_deletion_is_not_undone_by_older_news() {
        let view = View::new();
        apply(&view, Source::Own, 1, Some(10));
        apply(&view, Source::Own, 2, None);
        apply(&view, Source::Watch, 1, Some(10));
        assert_eq!((text(&view), view.len()), (None, 0));
        apply(&view, Source::Watch, 2, None);
        apply(&view, Source::Own, 1, Some(10));
        assert_eq!((text(&view), view.len(), view.slots.len()), (None, 0, 0));
    }

    #[test]
    fn a_resync_removes_what_was_deleted_in_the_gap_and_keeps_what_is_newer() {
        let view = View::new();
        for id in 1..=3 {
            let note = Note { id, text: 0 };
            view.apply(Source::Watch, id, Revision(u64::from(id)), Some(Arc::new(note)));
        }
        let newer = Note { id: 4, text: 9 };
        view.apply(Source::Own, 4, Revision(9), Some(Arc::new(newer)));
        view.resync(Revision(8), vec![(2, Revision(7), Some(Arc::new(Note { id: 2, text: 7 })))]);
        assert_eq!(view.range(Bound::Unbounded, 10, |_| true), [2, 4]);
        assert_eq!((view.find(&2).map(|n| n.text), view.len()), (Some(7), 2));
        apply(&view, Source::Own, 1, Some(0));
        assert_eq!(text(&view), None);
    }

    proptest! {
        /// Own writes arrive in any order and at any time; the watch arrives in order. The view shows the newest of
        /// what arrived, and in the end the newest of all, with nothing left over.
        #[test]
        fn the_newest_revision_wins_whatever_the_order(
            history in prop::collection::vec(prop::option::of(0u64..5), 1..12),
            order in prop::collection::vec((any::<bool>(), any::<prop::sample::Index>()), 0..40),
        ) {
            let view = View::new();
            let (mut followed, mut newest) = (0, 0);
            for (own, pick) in order {
                let at = if own { pick.index(history.len()) } else if followed < history.len() { followed } else { break };
                let source = if own { Source::Own } else { followed += 1; Source::Watch };
                apply(&view, source, at as u64 + 1, history[at]);
                newest = newest.max(at + 1);
                prop_assert_eq!(text(&view), history[newest - 1]);
            }
            for (at, text) in history.iter().enumerate().skip(followed) {
                apply(&view, Source::Watch, at as u64 + 1, *text);
            }
            prop_assert_eq!(text(&view), history[history.len() - 1]);
            prop_assert_eq!(view.slots.len(), usize::from(text(&view).is_some()));
            prop_assert_eq!(view.len(), view.slots.len());
        }
    }
}
