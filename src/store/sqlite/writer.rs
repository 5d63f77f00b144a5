//! The one thread that writes: it takes everything that is queued, commits it in one transaction, and answers.
//!
//! Order of events for a group: commit (and sync), publish to the watches, answer the callers. A caller that sees its
//! answer may therefore rely on the disk, and a watch never shows what could still be rolled back. Each write of a
//! group stands alone: a refused one changes no row and the others are not disturbed. Only a failure of the engine
//! takes the whole group with it.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use rusqlite::Connection;
use rusqlite::Transaction;
use rusqlite::TransactionBehavior;
use rusqlite::params;
use tokio::sync::mpsc;
use tokio::sync::oneshot;

use super::schema;
use crate::store::Change;
use crate::store::Entry;
use crate::store::Error;
use crate::store::Revision;
use crate::store::watch::Watchers;

/// Most writes and bytes of one group: bounds the memory of a commit and the wait of its first caller.
const GROUP_WRITES: usize = 1_024;
const GROUP_BYTES: usize = 16 << 20;

/// One compare-and-swap.
#[derive(Debug)]
pub(super) struct Write {
    pub(super) key: Arc<str>,
    pub(super) edit: Edit,
}

#[derive(Debug)]
pub(super) enum Edit {
    Create(Bytes),
    Update(Bytes, Revision),
    Delete(Revision),
}

impl Write {
    fn bytes(&self) -> usize {
        match &self.edit {
            Edit::Create(value) | Edit::Update(value, _) => value.len(),
            Edit::Delete(_) => 0,
        }
    }
}

/// One answer for each write of a request, or the failure that took them all.
pub(super) type Answers = Result<Vec<Result<Revision, Error>>, Error>;

#[derive(Debug)]
pub(super) struct Request {
    pub(super) writes: Vec<Write>,
    pub(super) reply: oneshot::Sender<Answers>,
}

#[derive(Debug)]
pub(super) enum Command {
    Write(Request),
    /// Finish what is queued, refuse the rest, hand back the connection.
    Close(oneshot::Sender<Connection>),
}

#[derive(Debug)]
pub(super) struct Writer {
    connection: Connection,
    path: Arc<Path>,
    commands: mpsc::Receiver<Command>,
    watchers: Arc<Watchers>,
    closing: Option<oneshot::Sender<Connection>>,
}

impl Writer {
    pub(super) fn new(
        connection: Connection,
        path: Arc<Path>,
        commands: mpsc::Receiver<Command>,
        watchers: Arc<Watchers>,
    ) -> Self {
        Self { connection, path, commands, watchers, closing: None }
    }

    /// Serves until all handles are gone or one of them closes the store.
    pub(super) fn run(mut self) {
        // Whatever ends this thread, watches must not wait for changes that can no longer come.
        let _ends_watches = EndsWatches(Arc::clone(&self.watchers));
        while let Some(first) = self.commands.blocking_recv() {
            let group = self.gather(first);
            self.commit(group);
        }
        self.watchers.close();
        if let Some(reply) = self.closing.take() {
            // The closer may have given up; the connection then closes here.
            drop(reply.send(self.connection));
        }
    }

    /// The first command and what is queued behind it, up to the limits of a group.
    fn gather(&mut self, first: Command) -> Vec<Request> {
        let (mut group, mut writes, mut bytes) = (Vec::new(), 0, 0);
        let mut next = Some(first);
        while let Some(command) = next.take() {
            match command {
                Command::Write(request) => {
                    writes += request.writes.len();
                    bytes += request.writes.iter().map(Write::bytes).sum::<usize>();
                    group.push(request);
                }
                Command::Close(reply) => {
                    // What was accepted before is still received; senders from now on are refused.
                    self.commands.close();
                    self.closing = Some(reply);
                }
            }
            if writes < GROUP_WRITES && bytes < GROUP_BYTES {
                next = self.commands.try_recv().ok();
            }
        }
        group
    }

    fn commit(&mut self, group: Vec<Request>) {
        if group.is_empty() {
            return;
        }
        let mut changes = Vec::new();
        match self.transact(&group, &mut changes) {
            Ok(answers) => {
                self.watchers.publish(&changes);
                for (request, answers) in group.into_iter().zip(answers) {
                    // A caller that gave up does not read its answer.
                    drop(request.reply.send(Ok(answers)));
                }
            }
            Err(error) => {
                let error = Arc::new(error);
                for request in group {
                    let error = schema::damage(&self.path, &error).unwrap_or_else(|| Error::engine(Arc::clone(&error)));
                    drop(request.reply.send(Err(error)));
                }
            }
        }
    }

    /// Applies the group in one transaction. On an error nothing of it is applied.
    fn transact(
        &mut self,
        group: &[Request],
        changes: &mut Vec<Change>,
    ) -> rusqlite::Result<Vec<Vec<Result<Revision, Error>>>> {
        let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        // Read again each time: after a failed commit a counter in memory could be ahead of the file.
        let before: i64 = transaction.prepare_cached("SELECT revision FROM clock")?.query_row([], |row| row.get(0))?;
        let mut revision = before;
        let mut answers = Vec::with_capacity(group.len());
        for request in group {
            let mut each = Vec::with_capacity(request.writes.len());
            for write in &request.writes {
                each.push(apply(&transaction, write, &mut revision, changes)?);
            }
            answers.push(each);
        }
        if revision > before {
            transaction.prepare_cached("UPDATE clock SET revision = ?1")?.execute([revision])?;
        }
        transaction.commit()?;
        Ok(answers)
    }
}

/// Applies one write under the next revision, or refuses it and uses none.
fn apply(
    transaction: &Transaction<'_>,
    write: &Write,
    revision: &mut i64,
    changes: &mut Vec<Change>,
) -> rusqlite::Result<Result<Revision, Error>> {
    let next = *revision + 1;
    let at = Revision(next.cast_unsigned());
    let (key, name) = (Arc::clone(&write.key), &*write.key);
    let (rows, refusal, change) = match &write.edit {
        Edit::Create(value) => {
            let sql = "INSERT INTO records (key, revision, value) VALUES (?1, ?2, ?3) ON CONFLICT DO NOTHING";
            let rows = transaction.prepare_cached(sql)?.execute(params![name, next, &value[..]])?;
            (rows, Error::Exists, Change::Put(Entry { key, value: value.clone(), revision: at }))
        }
        Edit::Update(value, expected) => {
            let sql = "UPDATE records SET revision = ?2, value = ?3 WHERE key = ?1 AND revision = ?4";
            let expected = expected.0.cast_signed();
            let rows = transaction.prepare_cached(sql)?.execute(params![name, next, &value[..], expected])?;
            (rows, Error::Stale, Change::Put(Entry { key, value: value.clone(), revision: at }))
        }
        Edit::Delete(expected) => {
            let sql = "DELETE FROM records WHERE key = ?1 AND revision = ?2";
            let rows = transaction.prepare_cached(sql)?.execute(params![name, expected.0.cast_signed()])?;
            (rows, Error::Stale, Change::Delete { key, revision: at })
        }
    };
    if rows == 0 {
        return Ok(Err(refusal));
    }
    *revision = next;
    changes.push(change);
    Ok(Ok(at))
}

#[derive(Debug)]
struct EndsWatches(Arc<Watchers>);

impl Drop for EndsWatches {
    fn drop(&mut self) {
        self.0.close();
    }
}
