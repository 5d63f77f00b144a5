//! Reads: single records on the caller's thread, lists on a thread of their own.
//!
//! Reading one record is a few microseconds in the page cache, less than handing it to another thread would cost. A
//! list may hold a hundred thousand records and must not stand in the way of a thread that serves connections.

use std::path::Path;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::TryLockError;

use bytes::Bytes;
use rusqlite::Connection;
use rusqlite::OptionalExtension;
use tokio::sync::mpsc;
use tokio::sync::oneshot;

use super::schema;
use crate::store::Entry;
use crate::store::Error;
use crate::store::Name;
use crate::store::Revision;

/// Connections for single reads: as many threads can read at once without waiting for each other.
const POOL: usize = 4;

/// A few connections for single reads. A connection is held for the read only, never across an await.
#[derive(Debug)]
pub(super) struct Pool {
    /// None once closed.
    connections: Vec<Mutex<Option<Connection>>>,
    path: Arc<Path>,
}

impl Pool {
    pub(super) fn open(path: &Arc<Path>) -> Result<Self, Error> {
        let open = |_| schema::open_reader(path).map(|connection| Mutex::new(Some(connection)));
        Ok(Self { connections: (0..POOL).map(open).collect::<Result<_, _>>()?, path: Arc::clone(path) })
    }

    /// The record of a key.
    pub(super) fn get(&self, key: &str) -> Result<Option<Entry>, Error> {
        for connection in &self.connections {
            match connection.try_lock() {
                Ok(guard) => return self.read(guard.as_ref(), key),
                Err(TryLockError::Poisoned(poisoned)) => return self.read(poisoned.into_inner().as_ref(), key),
                Err(TryLockError::WouldBlock) => {}
            }
        }
        let Some(first) = self.connections.first() else { return Err(Error::Closed) };
        self.read(first.lock().unwrap_or_else(PoisonError::into_inner).as_ref(), key)
    }

    fn read(&self, connection: Option<&Connection>, key: &str) -> Result<Option<Entry>, Error> {
        let connection = connection.ok_or(Error::Closed)?;
        let read = || {
            let mut statement = connection.prepare_cached("SELECT revision, value FROM records WHERE key = ?1")?;
            statement.query_row([key], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, Vec<u8>>(1)?))).optional()
        };
        let found = read().map_err(|e| schema::describe(&self.path, e))?;
        Ok(found.map(|(revision, value)| Entry {
            key: key.into(),
            value: Bytes::from(value),
            revision: Revision(revision.cast_unsigned()),
        }))
    }

    /// Ends all reads; a read under way is waited for.
    pub(super) fn close(&self) {
        for connection in &self.connections {
            connection.lock().unwrap_or_else(PoisonError::into_inner).take();
        }
    }
}

/// The records under a prefix and the revision of the moment they were read at.
pub(super) type Listing = Result<(Vec<Entry>, Revision), Error>;

/// Some names and their revisions.
pub(super) type Names = Result<Vec<Name>, Error>;

#[derive(Debug)]
pub(super) enum Query {
    List { prefix: String, reply: oneshot::Sender<Listing> },
    Names { prefix: String, after: String, most: usize, reply: oneshot::Sender<Names> },
    Close,
}

/// Serves lists until all handles are gone or one of them closes the store.
pub(super) fn serve_lists(mut connection: Connection, path: &Path, mut queries: mpsc::Receiver<Query>) {
    while let Some(query) = queries.blocking_recv() {
        match query {
            Query::List { prefix, reply } => {
                // A caller that gave up does not read its answer.
                drop(reply.send(list(&mut connection, &prefix).map_err(|e| schema::describe(path, e))));
            }
            Query::Names { prefix, after, most, reply } => {
                let found = names(&connection, &prefix, &after, most).map_err(|e| schema::describe(path, e));
                drop(reply.send(found));
            }
            Query::Close => queries.close(),
        }
    }
}

fn names(connection: &Connection, prefix: &str, after: &str, most: usize) -> rusqlite::Result<Vec<Name>> {
    let sql = "SELECT key, revision FROM records WHERE key > ?1 AND key < ?2 ORDER BY key LIMIT ?3";
    let mut statement = connection.prepare_cached(sql)?;
    // No key is a prefix, which ends with a dot.
    let from = after.max(prefix);
    let mut rows = statement.query((from, format!("{prefix}\u{7f}"), i64::try_from(most).unwrap_or(i64::MAX)))?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        found.push((row.get_ref(0)?.as_str()?.into(), Revision(row.get::<_, i64>(1)?.cast_unsigned())));
    }
    Ok(found)
}

fn list(connection: &mut Connection, prefix: &str) -> rusqlite::Result<(Vec<Entry>, Revision)> {
    // One transaction, so that the records and the revision are of the same moment.
    let transaction = connection.transaction()?;
    let revision: i64 = transaction.query_row("SELECT revision FROM clock", [], |row| row.get(0))?;
    let mut entries = Vec::new();
    {
        let sql = "SELECT key, revision, value FROM records WHERE key >= ?1 AND key < ?2 ORDER BY key";
        let mut statement = transaction.prepare_cached(sql)?;
        // Keys are ASCII letters, digits and punctuation below DEL, so this is past every key with the prefix.
        let mut rows = statement.query([prefix, &format!("{prefix}\u{7f}")])?;
        while let Some(row) = rows.next()? {
            entries.push(Entry {
                key: row.get_ref(0)?.as_str()?.into(),
                revision: Revision(row.get::<_, i64>(1)?.cast_unsigned()),
                value: Bytes::copy_from_slice(row.get_ref(2)?.as_blob()?),
            });
        }
    }
    transaction.commit()?;
    Ok((entries, Revision(revision.cast_unsigned())))
}
