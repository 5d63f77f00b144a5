//! `inbox.<hook>.<hash>`: what other services told us, from the moment it was acknowledged until long after it was
//! dealt with, so that the same news is not taken twice. What they said is beside it, among the blobs.

use std::collections::HashMap;
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
use crate::ids::UserId;

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
    /// Who asked for the hook it came by, where what is new is to be delivered at once. Kept here, as the hook may be
    /// gone when this is dealt with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deliver_for: Option<UserId>,
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
    /// What waits comes first, by when it is due; then the rest, by age.
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
        Some(match self.status {
            LetterStatus::Waiting { next_at, .. } => (false, next_at, self.id.clone()),
            _ => (true, self.received_at.unix_timestamp(), self.id.clone()),
        })
    }
}

/// Where those that are settled begin, or those that are not.
fn start(settled: bool) -> (bool, i64, LetterId) {
    (settled, i64::MIN, LetterId { hook: HookId::lowest(), hash: "".into() })
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

    /// All of a tenant's. One pass over memory.
    pub fn of_tenant(&self, tenant: &TenantId) -> Vec<Arc<Letter>> {
        let mut found = Vec::new();
        self.table.view().scan(|letter, _| {
            if letter.tenant == *tenant {
                found.push(Arc::clone(letter));
            }
            true
        });
        found
    }

    /// Those that are due at a moment, in seconds since 1970, the longest due first: `most` at most, and of one hook no
    /// more than its `share`.
    pub fn due(&self, now: i64, most: usize, share: usize) -> Vec<Arc<Letter>> {
        let mut taken: HashMap<HookId, usize> = HashMap::new();
        let is_due = |(settled, at, _): &(bool, i64, LetterId)| !*settled && *at <= now;
        let places = self.table.view().pick(Bound::Included(&start(false)), most, is_due, |(_, _, id)| {
            let count = taken.entry(id.hook.clone()).or_default();
            *count += 1;
            *count <= share
        });
        places.iter().filter_map(|(_, _, id)| self.find(id)).collect()
    }

    /// How many wait, and how many of those came by this hook.
    pub fn waiting(&self, hook: &HookId) -> (usize, usize) {
        let (mut all, mut of_hook) = (0, 0);
        self.table.view().walk(Bound::Included(&start(false)), |(settled, _, id)| {
            if !*settled {
                all += 1;
                of_hook += usize::from(id.hook == *hook);
            }
            !*settled
        });
        (all, of_hook)
    }

    /// Those that were dealt with before, in seconds since 1970, `most` at most.
    pub fn settled_before(&self, before: i64, most: usize) -> Vec<Arc<Letter>> {
        let is_before = |(settled, at, _): &(bool, i64, LetterId)| *settled && *at < before;
        let places = self.table.view().range(Bound::Included(&start(true)), most, is_before);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::sqlite::ControlDatabase;

    #[tokio::test]
    async fn what_is_due_is_found_behind_what_is_not_and_nobody_takes_all_places() {
        let dir = tempfile::tempdir().unwrap();
        let store: Arc<dyn Store> = Arc::new(ControlDatabase::open(&dir.path().join("control.db")).unwrap());
        let inbox = Inbox::open(store).await.unwrap();
        let (loud, quiet) = (HookId::random(), HookId::random());
        let letter = |hook: &HookId, name: &str, next_at| Letter {
            id: LetterId::of(hook, name),
            tenant: TenantId::parse("ada").unwrap(),
            status: LetterStatus::Waiting { attempts: 0, next_at },
            deliver_for: None,
            received_at: OffsetDateTime::UNIX_EPOCH,
        };
        for number in 0..10 {
            inbox.create(letter(&loud, &format!("later {number}"), 200)).await.unwrap();
            inbox.create(letter(&loud, &format!("now {number}"), 100)).await.unwrap();
        }
        inbox.create(letter(&quiet, "now", 101)).await.unwrap();
        assert_eq!((inbox.waiting(&loud), inbox.waiting(&quiet)), ((21, 20), (21, 1)));
        let due = inbox.due(150, 5, 3);
        assert_eq!(due.iter().filter(|letter| *letter.id.hook() == loud).count(), 3);
        assert_eq!(due.len(), 4, "the other one has its place");
        assert_eq!(inbox.due(150, 2, 3).len(), 2);
        assert!(inbox.due(99, 5, 3).is_empty());
        inbox.settle(&due[0].id, LetterStatus::Done).await.unwrap();
        assert_eq!(inbox.waiting(&loud), (20, 19));
        assert_eq!(inbox.settled_before(1, 10).len(), 1);
    }
}
