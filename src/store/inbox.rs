//! `inbox.<hook>.<hash>`: what other services told us, from the moment it was acknowledged until long after it was
//! dealt with, so that the same news is not taken twice. What they said is beside it, among the blobs.

use std::fmt;
use std::ops::Bound;
use std::sync::Arc;

use serde::Deserialize;
use serde::Serialize;
use sha2::Digest;
use sha2::Sha256;
use time::OffsetDateTime;

use super::Error;
use super::Store;
use super::hooks::HookId;
use super::table::Read;
use super::table::Step;
use super::table::Table;
use super::view::Record;
use crate::ids::TenantId;

/// Names a piece of news: the hook it came by, and a hash of the sender's name for it.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct LetterId {
    hook: HookId,
    hash: Arc<str>,
}

impl LetterId {
    /// `name` is what the sender calls it, the same at every attempt.
    pub fn of(hook: &HookId, name: &str) -> Self {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let digest = Sha256::digest(name.as_bytes());
        let digits = digest.iter().flat_map(|byte| [byte >> 4, byte & 15]);
        let hash: String = digits.map(|digit| char::from(DIGITS[usize::from(digit)])).collect();
        Self { hook: hook.clone(), hash: hash.into() }
    }

    /// The hook it came by.
    pub fn hook(&self) -> &HookId {
        &self.hook
    }

    /// Where what was said is kept among the blobs.
    pub fn blob(&self) -> String {
        format!("{}/{}", self.hook.as_str(), self.hash)
    }

    /// The id behind [`blob`](Self::blob).
    pub fn of_blob(key: &str) -> Option<Self> {
        let (hook, hash) = key.split_once('/')?;
        Some(Self { hook: HookId::parse(hook)?, hash: is_hash(hash).then(|| hash.into())? })
    }
}

impl fmt::Debug for LetterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}/{}", self.hook, self.hash.get(..8).unwrap_or_default())
    }
}

fn is_hash(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// What became of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LetterStatus {
    /// It waits to be dealt with.
    Waiting {
        /// How often that failed.
        attempts: u32,
        /// Not before then, in seconds since 1970.
        next_at: i64,
    },
    /// Dealt with.
    Done,
    /// It cannot be dealt with.
    Refused {
        /// Why, without anything that it says.
        reason: String,
    },
}

/// A piece of news.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Letter {
    /// Its name.
    pub id: LetterId,
    /// For whom.
    pub tenant: TenantId,
    /// What became of it.
    pub status: LetterStatus,
    /// When it came.
    #[serde(with = "time::serde::rfc3339")]
    pub received_at: OffsetDateTime,
}

impl Letter {
    /// Whether it is still to be dealt with.
    pub fn is_waiting(&self) -> bool {
        matches!(self.status, LetterStatus::Waiting { .. })
    }
}

fn key_of(id: &LetterId) -> String {
    format!("{}{}.{}", Letter::PREFIX, id.hook.as_str(), id.hash)
}

impl Record for Letter {
    const PREFIX: &'static str = "inbox.";
    type Id = LetterId;
    /// What waits comes first, then by age.
    type Index = (bool, i64, LetterId);

    fn id(&self) -> LetterId {
        self.id.clone()
    }

    fn key(&self) -> String {
        key_of(&self.id)
    }

    fn parse_id(rest: &str) -> Option<LetterId> {
        let (hook, hash) = rest.split_once('.')?;
        Some(LetterId { hook: HookId::parse(hook)?, hash: is_hash(hash).then(|| hash.into())? })
    }

    fn index(&self) -> Option<Self::Index> {
        Some((!self.is_waiting(), self.received_at.unix_timestamp(), self.id.clone()))
    }
}

/// The inbox: typed records plus an in-memory view fed by the watch. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Inbox {
    table: Table<Letter>,
}

impl Inbox {
    /// Loads the view and follows the store, on the caller's runtime, until the last handle is gone or the store is
    /// closed.
    pub async fn open(store: Arc<dyn Store>) -> Result<Self, Error> {
        Ok(Self { table: Table::open(store).await? })
    }

    /// From the view, no I/O.
    pub fn find(&self, id: &LetterId) -> Option<Arc<Letter>> {
        self.table.find(id)
    }

    /// How many there are, dealt with or not.
    pub fn len(&self) -> usize {
        self.table.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Those that wait, the oldest first, `most` at most.
    pub fn waiting(&self, most: usize) -> Vec<Arc<Letter>> {
        self.list(false, most, |_| true)
    }

    /// Those that were dealt with before, in seconds since 1970, `most` at most.
    pub fn settled_before(&self, before: i64, most: usize) -> Vec<Arc<Letter>> {
        self.list(true, most, |received_at| received_at < before)
    }

    fn list(&self, settled: bool, most: usize, wanted: impl Fn(i64) -> bool) -> Vec<Arc<Letter>> {
        let lowest = LetterId { hook: HookId::lowest(), hash: "".into() };
        let from = (settled, i64::MIN, lowest);
        let places = self.table.view().range(Bound::Included(&from), most, |(is, at, _)| *is == settled && wanted(*at));
        places.iter().filter_map(|(_, _, id)| self.find(id)).collect()
    }

    /// Writes a new one, durable when it returns; false when there is one of this name already.
    pub async fn create(&self, letter: Letter) -> Result<bool, Error> {
        let decide = |current: Option<&Read<Letter>>| match current {
            Some(_) => Err(Error::Exists),
            None => Ok(Step::Write(letter.clone())),
        };
        match self.table.change(&letter.key(), decide).await {
            Ok(_) => Ok(true),
            Err(Error::Exists) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Notes what became of it.
    pub async fn settle(&self, id: &LetterId, status: LetterStatus) -> Result<(), Error> {
        let decide = |current: Option<&Read<Letter>>| {
            let Some(read) = current.filter(|read| read.record.status != status) else { return Ok(Step::Keep) };
            Ok(Step::Write(Letter { status: status.clone(), ..Letter::clone(&read.record) }))
        };
        self.table.change(&key_of(id), decide).await.map(drop)
    }

    /// Forgets it.
    pub async fn remove(&self, id: &LetterId) -> Result<(), Error> {
        self.table.remove(&key_of(id), |_| true).await.map(drop)
    }
}
