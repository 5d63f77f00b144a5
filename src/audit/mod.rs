//! What was done that must be accounted for later: who, what, to whose, from where, why. Never a secret.
//!
//! Each entry carries the hash of the one before it, and the newest is named by a record of its own, so that a changed,
//! a missing and an inserted entry are all found by [`Audit::verify`], and so is a tail that was cut off. One task
//! writes, in order, what is queued in one commit; [`Audit::record`] returns when the entry is on disk, so that a
//! caller can refuse to go on without it.
//!
//! Known limit: the chain has no key. Whoever can write to the control database can rewrite the whole of it, head
//! included; exporting it elsewhere from time to time is what shows that. Deliberately absent: deleting entries.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use time::OffsetDateTime;
use tokio::sync::Mutex;
use tokio::sync::mpsc;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::ids::TenantId;
use crate::ids::UserId;
use crate::store::Store;

pub mod action;
mod chain;
mod error;
#[cfg(test)]
mod tests;
mod writer;

pub use chain::Logged;
pub use chain::Verdict;
pub use error::Error;

use chain::Log;

/// Entries that may wait for the writer.
const QUEUE: usize = 1_024;
/// How long an entry may take until it is on disk.
const PATIENCE: Duration = Duration::from_secs(10);
/// Most bytes of an entry's particulars.
const MAX_DETAIL_BYTES: usize = 4_096;
/// Most characters of a subject.
const MAX_SUBJECT_CHARS: usize = 200;

/// Who did it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Actor {
    /// A signed-in user.
    User(UserId),
    /// Whoever speaks on the control socket.
    Operator,
    /// A caller with an API key of ours; its id, never the key.
    ApiKey(String),
    /// pocketfleet itself, on its own account.
    System,
}

impl Actor {
    /// In the words of the log: `user:<id>`, `operator`, `api_key:<id>`, `system`.
    pub fn text(&self) -> String {
        match self {
            Self::User(user) => format!("user:{user}"),
            Self::Operator => "operator".to_owned(),
            Self::ApiKey(id) => format!("api_key:{id}"),
            Self::System => "system".to_owned(),
        }
    }
}

/// What to write down.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Who.
    pub actor: Actor,
    /// What, one of [`action`].
    pub action: &'static str,
    /// In whose tenant.
    pub tenant: Option<TenantId>,
    /// What it was done to: an id.
    pub subject: Option<String>,
    /// From where.
    pub ip: Option<IpAddr>,
    /// Particulars, such as a purpose; `Null` for none. Never a secret.
    pub detail: Value,
}

impl Entry {
    /// An entry with nothing but who and what.
    pub fn new(actor: Actor, action: &'static str) -> Self {
        Self { actor, action, tenant: None, subject: None, ip: None, detail: Value::Null }
    }

    /// In whose tenant it was done.
    #[must_use]
    pub fn tenant(self, tenant: &TenantId) -> Self {
        Self { tenant: Some(tenant.clone()), ..self }
    }

    /// What it was done to.
    #[must_use]
    pub fn subject(self, subject: impl Into<String>) -> Self {
        Self { subject: Some(subject.into()), ..self }
    }

    /// From where it was done.
    #[must_use]
    pub fn ip(self, ip: Option<IpAddr>) -> Self {
        Self { ip, ..self }
    }

    /// Particulars.
    #[must_use]
    pub fn detail(self, detail: Value) -> Self {
        Self { detail, ..self }
    }
}

struct Queued {
    entry: Entry,
    done: oneshot::Sender<Result<u64, Error>>,
}

/// The audit log. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Audit {
    queue: mpsc::Sender<Queued>,
    log: Log,
    stop: CancellationToken,
    writer: Arc<Mutex<Option<JoinHandle<()>>>>,
}

impl Audit {
    /// Finds the end of the chain and starts the writer, on the caller's runtime.
    pub async fn open(store: Arc<dyn Store>) -> Result<Self, Error> {
        let log = Log::new(store);
        let end = log.end().await?;
        let (queue, queued) = mpsc::channel(QUEUE);
        let stop = CancellationToken::new();
        let task = tokio::spawn(writer::run(log.clone(), end, queued, stop.clone()));
        Ok(Self { queue, log, stop, writer: Arc::new(Mutex::new(Some(task))) })
    }

    /// Writes an entry down; it is on disk when this returns. The number of the entry.
    pub async fn record(&self, entry: Entry) -> Result<u64, Error> {
        if entry.detail != Value::Null && entry.detail.to_string().len() > MAX_DETAIL_BYTES {
            return Err(Error::TooLarge);
        }
        let subject = entry.subject.map(|subject| subject.chars().take(MAX_SUBJECT_CHARS).collect());
        let entry = Entry { subject, ..entry };
        let (done, answer) = oneshot::channel();
        let writing = async {
            self.queue.send(Queued { entry, done }).await.map_err(|_| Error::Closed)?;
            answer.await.map_err(|_| Error::Closed)?
        };
        tokio::time::timeout(PATIENCE, writing).await.map_err(|_| Error::Late)?
    }

    /// At most `limit` entries before a number (none = from the newest), newest first.
    pub async fn newest(&self, before: Option<u64>, limit: usize) -> Result<Vec<Logged>, Error> {
        self.log.newest(before, limit).await
    }

    /// At most `limit` entries after a number, oldest first.
    pub async fn after(&self, seq: u64, limit: usize) -> Result<Vec<Logged>, Error> {
        self.log.after(seq, limit).await
    }

    /// Looks at every entry: whether each follows from the one before, and whether the end is where it should be.
    pub async fn verify(&self) -> Result<Verdict, Error> {
        self.log.verify().await
    }

    /// Writes what is queued and ends the writer. Later entries are refused.
    pub async fn close(&self) {
        self.stop.cancel();
        let Some(task) = self.writer.lock().await.take() else { return };
        if task.await.is_err() {
            tracing::error!("the writer of the audit log ended early");
        }
    }
}

/// A moment as entries have it: whole microseconds, which survive being written as text.
fn stamp() -> OffsetDateTime {
    let now = OffsetDateTime::now_utc();
    now.replace_microsecond(now.microsecond()).unwrap_or(now)
}
