//! The control plane's own state, behind the three seams that must one day span machines.
//!
//! [`Store`] keeps small records with revisions (compare-and-swap, prefix watch), [`Bus`](bus::Bus) says "look
//! again" (at most once, never the only copy of anything), [`Blobs`](blobs::Blobs) keeps objects that are written
//! once. Each has an embedded form here: one `SQLite` file, in-process queues, a folder. Typed records with live
//! views stand on top: [`tenants`], [`members`], [`invitations`], [`slugs`], [`placements`], [`sessions`],
//! [`versions`], [`secrets`], [`vault_keys`], [`api_keys`], [`hooks`], [`inbox`],
//! [`uids`], [`spares`].
//!
//! Invariants:
//! - A write is on disk before its call returns, and its revision is larger than that of every write before it.
//! - A watch delivers every write under its prefix, in revision order, or ends with an error that says so.
//! - Decisions are made by compare-and-swap only; views and reads are hints that may be old.
//! - A view never goes backwards, and shows a caller's own write when the call that wrote it returns.
//!
//! Deliberately absent: transactions over several records (one record must hold what has to change together), time
//! limits (callers own their deadlines; a write whose caller gave up may still happen), and users' data.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;

pub mod api_keys;
pub mod blobs;
pub mod bus;
pub mod damaged_backups;
mod error;
pub mod hooks;
pub mod inbox;
pub mod invitations;
mod keys;
pub mod limit_rules;
pub mod members;
pub mod placements;
pub mod secrets;
pub mod sessions;
pub mod slugs;
pub mod spares;
pub mod sqlite;
mod table;
pub mod tenants;
pub mod uids;
pub mod vault_keys;
pub mod versions;
mod view;
mod watch;

pub use error::Error;
pub use keys::MAX_KEY_BYTES;
pub use keys::MAX_VALUE_BYTES;
pub use watch::Watch;

/// Most records that one [`Store::create_many`] takes.
pub const MAX_BATCH: usize = 10_000;

/// Boxed future of the seams (they are used as trait objects).
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Position in the store's single, growing order of writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision(pub u64);

/// One record.
#[derive(Clone)]
pub struct Entry {
    /// Its name, unique in the store.
    pub key: Arc<str>,
    /// What was written last.
    pub value: Bytes,
    /// When it was written last.
    pub revision: Revision,
}

/// The key of a record, and when it was written last.
pub type Name = (Arc<str>, Revision);

impl fmt::Debug for Entry {
    // Values hold tokens' hashes, addresses and sealed secrets; none of them belongs in a log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entry").field("key", &self.key).field("revision", &self.revision).finish_non_exhaustive()
    }
}

/// A change seen by a watch.
#[derive(Debug, Clone)]
pub enum Change {
    /// The record was created or updated.
    Put(Entry),
    /// The record is gone.
    Delete {
        /// Its name.
        key: Arc<str>,
        /// When it was deleted.
        revision: Revision,
    },
}

impl Change {
    /// The record it is about.
    pub fn key(&self) -> &Arc<str> {
        match self {
            Self::Put(entry) => &entry.key,
            Self::Delete { key, .. } => key,
        }
    }

    /// Its place in the order of writes.
    pub fn revision(&self) -> Revision {
        match self {
            Self::Put(entry) => entry.revision,
            Self::Delete { revision, .. } => *revision,
        }
    }
}

/// Records with revisions, compare-and-swap and prefix watch.
///
/// Keys are words of `A-Z a-z 0-9 _ -` joined by dots, at most [`MAX_KEY_BYTES`] long; values have at most
/// [`MAX_VALUE_BYTES`]. A prefix is empty (everything) or whole words up to and with a dot (`tenant.`). Anything else
/// is refused as [`Error::Invalid`].
///
/// A write that fails with [`Error::Engine`] may have happened, and one whose future was dropped may still happen:
/// read again before deciding. A refusal ([`Error::Exists`], [`Error::Stale`]) changed nothing, but a distributed
/// backend may refuse though nobody else wrote, so a refused caller reads again as well.
pub trait Store: fmt::Debug + Send + Sync + 'static {
    /// The record as last written, if there is one.
    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Entry>, Error>>;

    /// All records under a prefix, in key order, as of one moment.
    fn list<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Vec<Entry>, Error>>;

    /// The names and revisions of the first `most` records under a prefix that come behind `after` (a key, or nothing),
    /// in key order, as of one moment: to go through many records without having them all in memory.
    fn names<'a>(&'a self, prefix: &'a str, after: &'a str, most: usize) -> BoxFuture<'a, Result<Vec<Name>, Error>> {
        Box::pin(async move {
            let entries = self.list(prefix).await?;
            let names = entries.into_iter().map(|entry| (entry.key, entry.revision));
            Ok(names.skip_while(|(key, _)| **key <= *after).take(most).collect())
        })
    }

    /// Writes a record that must not exist; of N concurrent calls one wins, the others get [`Error::Exists`].
    fn create<'a>(&'a self, key: &'a str, value: Bytes) -> BoxFuture<'a, Result<Revision, Error>>;

    /// Replaces the record if it still has the expected revision, else [`Error::Stale`].
    fn update<'a>(&'a self, key: &'a str, value: Bytes, expected: Revision) -> BoxFuture<'a, Result<Revision, Error>>;

    /// Removes the record if it still has the expected revision, else [`Error::Stale`].
    fn delete<'a>(&'a self, key: &'a str, expected: Revision) -> BoxFuture<'a, Result<Revision, Error>>;

    /// The records under a prefix as of one moment, and every change after it.
    fn watch<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Watch, Error>>;

    /// Creates up to [`MAX_BATCH`] records, each on its own terms: the answers are those of [`create`](Self::create),
    /// in the order of the records. A backend that can commits them together, which is much faster.
    fn create_many(&self, records: Vec<(String, Bytes)>) -> BoxFuture<'_, Result<Vec<Result<Revision, Error>>, Error>> {
        Box::pin(async move {
            keys::check_batch(records.len())?;
            let mut answers = Vec::with_capacity(records.len());
            for (key, value) in records {
                answers.push(self.create(&key, value).await);
            }
            Ok(answers)
        })
    }
}
