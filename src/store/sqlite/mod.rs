//! The embedded [`Store`]: one `SQLite` file, the control database.
//!
//! Write-ahead log with `synchronous=FULL`; one thread writes and commits in groups (`writer`); single reads run on
//! the caller's thread over a few read-only connections, lists on a second thread (`reader`). Callers may be on any
//! tokio runtime, or several: only channels connect them to the threads, and no timer is needed.
//!
//! Invariants: the file has one writing process (the data directory's lock sees to it); every queue is bounded, and a
//! full one makes its callers wait. A write is waited for without a deadline of its own: the bound is the disk's, plus
//! ten seconds for a lock that another process may hold.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::thread;
use std::thread::JoinHandle;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::sync::oneshot;

mod reader;
mod schema;
mod writer;

use self::reader::Pool;
use self::reader::Query;
use self::writer::Answers;
use self::writer::Command;
use self::writer::Edit;
use self::writer::Request;
use self::writer::Write;
use self::writer::Writer;
use super::BoxFuture;
use super::Entry;
use super::Error;
use super::Name;
use super::Revision;
use super::Store;
use super::keys;
use super::watch::Watch;
use super::watch::Watchers;

/// Requests that may wait for the writer; more callers wait for a place.
const QUEUED_REQUESTS: usize = 4_096;
/// Lists that may wait for the reader.
const QUEUED_LISTS: usize = 64;

/// The control database. Dropping it without [`close`](Self::close) loses nothing that was acknowledged.
pub struct ControlDatabase {
    path: Arc<Path>,
    commands: mpsc::Sender<Command>,
    queries: mpsc::Sender<Query>,
    pool: Pool,
    watchers: Arc<Watchers>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl fmt::Debug for ControlDatabase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ControlDatabase").field("path", &self.path).finish_non_exhaustive()
    }
}

impl ControlDatabase {
    /// Opens the file, makes it (mode 0600) or brings it to the newest schema, and starts the two threads. Blocks for
    /// some milliseconds. The folder must exist.
    ///
    /// [`Error::Corrupt`]: no database, or one of something else. [`Error::NewerSchema`]: written by a newer version.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let path = Arc::<Path>::from(path);
        let writing = schema::open_writer(&path)?;
        let pool = Pool::open(&path)?;
        let listing = schema::open_reader(&path)?;
        let watchers = Arc::<Watchers>::default();
        let (commands, queued) = mpsc::channel(QUEUED_REQUESTS);
        let writer = Writer::new(writing, Arc::clone(&path), queued, Arc::clone(&watchers));
        let (queries, lists) = mpsc::channel(QUEUED_LISTS);
        let list_path = Arc::clone(&path);
        let threads = vec![
            spawn("store-writer", move || writer.run())?,
            spawn("store-reader", move || reader::serve_lists(listing, &list_path, lists))?,
        ];
        Ok(Self { path, commands, queries, pool, watchers, threads: Mutex::new(threads) })
    }

    /// Finishes what is queued, ends the watches, folds the log into the file and ends the threads. Calls that come
    /// later get [`Error::Closed`]. Closing twice does nothing.
    pub async fn close(&self) {
        let (reply, closed) = oneshot::channel();
        let writing = match self.commands.send(Command::Close(reply)).await {
            Ok(()) => closed.await.ok(),
            Err(_) => None,
        };
        self.pool.close();
        // Refused only when the thread is gone already.
        drop(self.queries.send(Query::Close).await);
        let threads = std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        for thread in threads {
            // Both threads have been told and have nothing left to wait for.
            if thread.join().is_err() {
                tracing::error!(store.path = %self.path.display(), "a thread of the control database panicked");
            }
        }
        // Last of all connections, so that closing it checkpoints the log.
        drop(writing);
    }

    async fn write(&self, writes: Vec<Write>) -> Answers {
        for write in &writes {
            keys::check_key(&write.key)?;
            if let Edit::Create(value) | Edit::Update(value, _) = &write.edit {
                keys::check_value(value)?;
            }
        }
        let (reply, answers) = oneshot::channel();
        let request = Command::Write(Request { writes, reply });
        self.commands.send(request).await.map_err(|_| Error::Closed)?;
        answers.await.unwrap_or(Err(Error::Closed))
    }

    async fn write_one(&self, key: &str, edit: Edit) -> Result<Revision, Error> {
        let mut answers = self.write(vec![Write { key: key.into(), edit }]).await?;
        answers.pop().unwrap_or(Err(Error::Closed))
    }

    async fn read_list(&self, prefix: &str) -> Result<(Vec<Entry>, Revision), Error> {
        let (reply, listing) = oneshot::channel();
        let query = Query::List { prefix: prefix.to_owned(), reply };
        self.queries.send(query).await.map_err(|_| Error::Closed)?;
        listing.await.unwrap_or(Err(Error::Closed))
    }
}

/// Copies a control database, which may be in use, into a new file: whole, and of one moment. Blocks.
pub fn copy(path: &Path, to: &Path) -> Result<(), Error> {
    let connection = schema::open_reader(path)?;
    let copied = connection.execute("VACUUM INTO ?1", [to.to_string_lossy()]);
    copied.map(drop).map_err(|error| schema::describe(path, error))
}

/// Looks for damage in a control database that nobody uses. Blocks.
pub fn check(path: &Path) -> Result<(), Error> {
    let connection = schema::open_reader(path)?;
    let found: Result<String, _> = connection.query_row("PRAGMA integrity_check(1)", [], |row| row.get(0));
    match found.map_err(|error| schema::describe(path, error))?.as_str() {
        "ok" => Ok(()),
        found => Err(Error::Corrupt(format!("{} ({found})", path.display()))),
    }
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, Error> {
    thread::Builder::new().name(name.to_owned()).spawn(work).map_err(Error::engine)
}

impl Store for ControlDatabase {
    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Entry>, Error>> {
        Box::pin(async move {
            keys::check_key(key)?;
            self.pool.get(key)
        })
    }

    fn list<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Vec<Entry>, Error>> {
        Box::pin(async move {
            keys::check_prefix(prefix)?;
            Ok(self.read_list(prefix).await?.0)
        })
    }

    fn names<'a>(&'a self, prefix: &'a str, after: &'a str, most: usize) -> BoxFuture<'a, Result<Vec<Name>, Error>> {
        Box::pin(async move {
            keys::check_prefix(prefix)?;
            let (reply, names) = oneshot::channel();
            let query = Query::Names { prefix: prefix.to_owned(), after: after.to_owned(), most, reply };
            self.queries.send(query).await.map_err(|_| Error::Closed)?;
            names.await.unwrap_or(Err(Error::Closed))
        })
    }

    fn create<'a>(&'a self, key: &'a str, value: Bytes) -> BoxFuture<'a, Result<Revision, Error>> {
        Box::pin(self.write_one(key, Edit::Create(value)))
    }

    fn update<'a>(&'a self, key: &'a str, value: Bytes, expected: Revision) -> BoxFuture<'a, Result<Revision, Error>> {
        Box::pin(self.write_one(key, Edit::Update(value, expected)))
    }

    fn delete<'a>(&'a self, key: &'a str, expected: Revision) -> BoxFuture<'a, Result<Revision, Error>> {
        Box::pin(self.write_one(key, Edit::Delete(expected)))
    }

    fn watch<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Watch, Error>> {
        Box::pin(async move {
            keys::check_prefix(prefix)?;
            let feed = self.watchers.register(prefix)?;
            let (snapshot, revision) = self.read_list(prefix).await?;
            Ok(Watch::new(snapshot, revision, feed))
        })
    }

    fn create_many(&self, records: Vec<(String, Bytes)>) -> BoxFuture<'_, Result<Vec<Result<Revision, Error>>, Error>> {
        Box::pin(async move {
            keys::check_batch(records.len())?;
            let create = |(key, value): (String, Bytes)| Write { key: key.into(), edit: Edit::Create(value) };
            self.write(records.into_iter().map(create).collect()).await
        })
    }
}
