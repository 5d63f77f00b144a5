//! Typed records of one kind: JSON in the store, a live view beside it, compare-and-swap loops between them.
//!
//! A task follows the watch for as long as a handle exists and the store is open; it holds neither alive. A record
//! that cannot be read is logged, left as it is in the store and absent from the view; to change it is refused as
//! [`Error::Corrupt`], so that damage locks one record and not the whole fleet.

use std::fmt;
use std::sync::Arc;
use std::sync::Weak;
use std::time::Duration;

use bytes::Bytes;
use tokio_util::task::AbortOnDropHandle;

use super::Change;
use super::Entry;
use super::Error;
use super::Revision;
use super::Store;
use super::Watch;
use super::view::Record;
use super::view::Source;
use super::view::View;

/// Attempts of a compare-and-swap loop: enough for as many tasks that change one record at once; the bound is for a
/// backend that refuses for ever.
const ATTEMPTS: usize = 512;
/// Wait before a watch that could not be started is tried again.
const RESYNC_PAUSE: Duration = Duration::from_secs(1);

/// A record as it was read.
pub(super) struct Read<R> {
    pub(super) record: Arc<R>,
    pub(super) revision: Revision,
}

/// What a caller of [`Table::change`] decides on the record as it stands.
pub(super) enum Step<R> {
    /// Write this, if the record is still as it was read.
    Write(R),
    /// Leave it.
    Keep,
}

/// Cheap to clone; clones share view and task.
pub(super) struct Table<R: Record> {
    inner: Arc<Inner<R>>,
}

struct Inner<R: Record> {
    store: Arc<dyn Store>,
    view: Arc<View<R>>,
    _follower: AbortOnDropHandle<()>,
}

impl<R: Record> Clone for Table<R> {
    fn clone(&self) -> Self {
        Self { inner: Arc::clone(&self.inner) }
    }
}

impl<R: Record> fmt::Debug for Table<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Table").field("prefix", &R::PREFIX).field("records", &self.len()).finish_non_exhaustive()
    }
}

impl<R: Record> Table<R> {
    /// Loads the view and starts following, on the runtime of the caller.
    pub(super) async fn open(store: Arc<dyn Store>) -> Result<Self, Error> {
        let mut watch = store.watch(R::PREFIX).await?;
        let view = Arc::new(View::new());
        view.resync(watch.revision(), decode_all(&watch.take_snapshot()));
        let follower = tokio::spawn(follow(Arc::clone(&view), Arc::downgrade(&store), watch));
        Ok(Self { inner: Arc::new(Inner { store, view, _follower: AbortOnDropHandle::new(follower) }) })
    }

    pub(super) fn view(&self) -> &View<R> {
        &self.inner.view
    }

    pub(super) fn find(&self, id: &R::Id) -> Option<Arc<R>> {
        self.inner.view.find(id)
    }

    pub(super) fn len(&self) -> usize {
        self.inner.view.len()
    }

    /// The record as the store has it now.
    pub(super) async fn read(&self, key: &str) -> Result<Option<Read<R>>, Error> {
        match self.inner.store.get(key).await? {
            Some(entry) => self.note(&entry).map(Some),
            None => Ok(None),
        }
    }

    /// The records under a prefix as the store has them now; those that cannot be read are left out.
    pub(super) async fn list(&self, prefix: &str) -> Result<Vec<Arc<R>>, Error> {
        let entries = self.inner.store.list(prefix).await?;
        Ok(entries.iter().filter_map(|entry| self.note(entry).ok()).map(|read| read.record).collect())
    }

    /// Writes the records that do not exist, in few commits; returns how many.
    pub(super) async fn create_many(&self, records: Vec<R>) -> Result<usize, Error> {
        let mut created = 0;
        let mut records = records.into_iter();
        loop {
            // Far below what a watch may fall behind, so that the followers keep up.
            let batch: Vec<R> = records.by_ref().take(1_000).collect();
            if batch.is_empty() {
                return Ok(created);
            }
            let pairs = batch.iter().map(|record| Ok((record.key(), encode(record)?)));
            let answers = self.inner.store.create_many(pairs.collect::<Result<_, Error>>()?).await?;
            for (record, answer) in batch.into_iter().zip(answers) {
                match answer {
                    Ok(revision) => {
                        self.wrote(record, revision);
                        created += 1;
                    }
                    Err(Error::Exists) => {
                        self.read(&record.key()).await?;
                    }
                    Err(error) => return Err(error),
                }
            }
        }
    }

    /// Read, decide, compare-and-swap; again when refused, be it because somebody was faster or for no reason.
    /// Returns the record as it stands then. `decide` must judge each time anew and may refuse with an error.
    pub(super) async fn change(
        &self,
        key: &str,
        mut decide: impl FnMut(Option<&Read<R>>) -> Result<Step<R>, Error> + Send,
    ) -> Result<Option<Arc<R>>, Error> {
        for _ in 0..ATTEMPTS {
            let read = self.read(key).await?;
            let Step::Write(record) = decide(read.as_ref())? else {
                return Ok(read.map(|read| read.record));
            };
            let value = encode(&record)?;
            let answer = match &read {
                Some(read) => self.inner.store.update(key, value, read.revision).await,
                None => self.inner.store.create(key, value).await,
            };
            match answer {
                Ok(revision) => return Ok(Some(self.wrote(record, revision))),
                Err(error) if error.is_refusal() => tokio::task::yield_now().await,
                Err(error) => return Err(error),
            }
        }
        Err(Error::Stale)
    }

    /// Removes the record if it still has the revision.
    pub(super) async fn delete(&self, record: &R, expected: Revision) -> Result<(), Error> {
        let revision = self.inner.store.delete(&record.key(), expected).await?;
        self.inner.view.apply(Source::Own, record.id(), revision, None);
        Ok(())
    }

    /// Reads the record and removes it if `agrees`, again when somebody was faster. Returns what was removed.
    pub(super) async fn remove(
        &self,
        key: &str,
        mut agrees: impl FnMut(&R) -> bool + Send,
    ) -> Result<Option<Arc<R>>, Error> {
        for _ in 0..ATTEMPTS {
            let Some(read) = self.read(key).await?.filter(|read| agrees(&read.record)) else { return Ok(None) };
            match self.delete(&read.record, read.revision).await {
                Ok(()) => return Ok(Some(read.record)),
                Err(error) if error.is_refusal() => tokio::task::yield_now().await,
                Err(error) => return Err(error),
            }
        }
        Err(Error::Stale)
    }

    fn wrote(&self, record: R, revision: Revision) -> Arc<R> {
        let record = Arc::new(record.compact());
        self.inner.view.apply(Source::Own, record.id(), revision, Some(Arc::clone(&record)));
        record
    }

    fn note(&self, entry: &Entry) -> Result<Read<R>, Error> {
        let record = Arc::new(decode::<R>(entry)?);
        self.inner.view.apply(Source::Own, record.id(), entry.revision, Some(Arc::clone(&record)));
        Ok(Read { record, revision: entry.revision })
    }
}

fn encode<R: Record>(record: &R) -> Result<Bytes, Error> {
    serde_json::to_vec(record).map(Bytes::from).map_err(Error::engine)
}

fn decode<R: Record>(entry: &Entry) -> Result<R, Error> {
    // The parser's own words could quote the value, so they are not passed on.
    let record = serde_json::from_slice::<R>(&entry.value).ok().filter(|record| *record.key() == *entry.key);
    record.map(R::compact).ok_or_else(|| Error::Corrupt(format!("the record {} cannot be read", entry.key)))
}

fn id_of<R: Record>(key: &str) -> Option<R::Id> {
    R::parse_id(key.strip_prefix(R::PREFIX)?)
}

/// What a view needs of an entry; none when the key is not one of the kind.
fn decode_for_view<R: Record>(entry: &Entry) -> Option<(R::Id, Revision, Option<Arc<R>>)> {
    match decode::<R>(entry) {
        Ok(record) => Some((record.id(), entry.revision, Some(Arc::new(record)))),
        Err(error) => {
            tracing::error!(store.key = %entry.key, "{error}; it is left as it is and treated as absent");
            id_of::<R>(&entry.key).map(|id| (id, entry.revision, None))
        }
    }
}

fn decode_all<R: Record>(entries: &[Entry]) -> Vec<(R::Id, Revision, Option<Arc<R>>)> {
    entries.iter().filter_map(decode_for_view::<R>).collect()
}

/// Feeds the view until the store is closed or gone.
async fn follow<R: Record>(view: Arc<View<R>>, store: Weak<dyn Store>, mut watch: Watch) {
    loop {
        match watch.next().await {
            Ok(change) => apply(&view, &change),
            Err(Error::Lagged) => match rewatch::<R>(&store).await {
                Some(fresh) => {
                    watch = fresh;
                    view.resync(watch.revision(), decode_all(&watch.take_snapshot()));
                }
                None => return,
            },
            Err(_) => return,
        }
    }
}

fn apply<R: Record>(view: &View<R>, change: &Change) {
    match change {
        Change::Put(entry) => {
            if let Some((id, revision, record)) = decode_for_view::<R>(entry) {
                view.apply(Source::Watch, id, revision, record);
            }
        }
        Change::Delete { key, revision } => {
            if let Some(id) = id_of::<R>(key) {
                view.apply(Source::Watch, id, *revision, None);
            }
        }
    }
}

/// A new watch after one that lagged; none when the store is closed or gone.
async fn rewatch<R: Record>(store: &Weak<dyn Store>) -> Option<Watch> {
    loop {
        match store.upgrade()?.watch(R::PREFIX).await {
            Ok(watch) => {
                tracing::warn!(store.prefix = R::PREFIX, "a live view fell behind and is loaded anew");
                return Some(watch);
            }
            Err(Error::Closed) => return None,
            Err(error) => {
                tracing::error!(store.prefix = R::PREFIX, error = %error, "cannot follow the store; trying again");
                tokio::time::sleep(RESYNC_PAUSE).await;
            }
        }
    }
}
