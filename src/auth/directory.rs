//! The accounts as the global instance's database file has them: read there, never asked of the process.
//!
//! A read-only connection (WAL, so it neither blocks the instance nor waits for it) reads an account when it is first
//! needed; `PRAGMA data_version` tells when anything may have changed, and then everything is forgotten. So accounts
//! are known while the global instance is down, and a changed password counts within one check interval.
//!
//! Invariants:
//! - An account found in memory costs no lock beyond its shard.
//! - The memory is filled and emptied under one mutex, so a row that was read before [`Directory::changed`] cannot be
//!   put back after it.
//! - No statement outlives a call: an open read transaction would hide changes for ever and block checkpoints.
//! - The database and the index of its log are the files that have these names now. Whoever closes the database while
//!   our lock on it is lost removes log and index; a connection to the old ones would never see a change again.

use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::Instant;

use dashmap::DashMap;
use rusqlite::Connection;
use rusqlite::OpenFlags;
use rusqlite::OptionalExtension;
use rusqlite::Row;
use rusqlite::config::DbConfig;
use rusqlite::types::ValueRef;
use serde_json::Map;
use serde_json::Value;

use super::Error;
use super::Role;
use crate::ids::UserId;
use crate::pocketbase::database::Owner;
use crate::pocketbase::token::Key;

/// Most accounts that are kept in memory. Beyond, all are forgotten and read again as needed.
const MAX_CACHED: usize = 100_000;

/// Accounts that are read in a row, while others wait.
const AT_ONCE: usize = 256;

/// How long a read waits for a lock. Readers meet one only during recovery after a crash.
const BUSY_TIMEOUT: Duration = Duration::from_millis(100);

/// At most one log line in this time says that the database cannot be read.
const COMPLAINT_INTERVAL: Duration = Duration::from_mins(1);

/// The columns of a user's row that the user may see.
const PUBLIC_COLUMNS: [&str; 9] =
    ["id", "email", "emailVisibility", "verified", "name", "avatar", "role", "created", "updated"];

/// What a request needs to know of an account.
pub(super) struct Account {
    pub(super) user: UserId,
    /// Id of the `users` collection.
    pub(super) collection: Arc<str>,
    /// Key of the account's auth tokens.
    pub(super) key: Key,
    /// Key of its file tokens, when the collection has a secret for those.
    pub(super) file_key: Option<Key>,
    /// Names the key.
    pub(super) key_id: Arc<str>,
    pub(super) role: Role,
    pub(super) email: Arc<str>,
    pub(super) is_verified: bool,
}

/// Why a read failed; callers see [`Error::AccountsUnreadable`], the log sees this.
#[derive(Debug, thiserror::Error)]
enum Unreadable {
    #[error("find the database file: {0}")]
    File(#[from] io::Error),
    #[error("read the database: {0}")]
    Database(#[from] rusqlite::Error),
    #[error("the users collection has no token secret")]
    NoSecret,
}

/// An open connection and what was read through it.
struct Open {
    connection: Connection,
    files: Files,
    version: i64,
    users: Option<Users>,
}

/// Device and inode of the database and of the index of its log: either may be replaced under its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Files {
    database: (u64, u64),
    index: Option<(u64, u64)>,
}

impl Files {
    fn of(path: &Path) -> io::Result<Self> {
        let mut index = path.as_os_str().to_owned();
        index.push("-shm");
        let identity = |path: &Path| fs::metadata(path).map(|metadata| (metadata.dev(), metadata.ino()));
        Ok(Self { database: identity(path)?, index: identity(Path::new(&index)).ok() })
    }
}

/// The `users` collection: its id and the secret of its auth tokens.
#[derive(Clone)]
struct Users {
    id: Arc<str>,
    secret: Arc<str>,
    file_secret: Option<Arc<str>>,
}

/// Reader of the accounts database.
pub(super) struct Directory {
    path: PathBuf,
    check_interval: Duration,
    cache: DashMap<Arc<str>, Arc<Account>>,
    open: Mutex<Option<Open>>,
    started: Instant,
    /// Microseconds after `started` at which the next check is due.
    next_check: AtomicU64,
    /// Microseconds after `started` from which on a failure is logged again.
    next_complaint: AtomicU64,
}

impl fmt::Debug for Directory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Directory").field("path", &self.path).field("cached", &self.cache.len()).finish_non_exhaustive()
    }
}

impl Directory {
    /// A directory over `path`, which need not exist yet.
    pub(super) fn new(path: PathBuf, check_interval: Duration) -> Self {
        Self {
            path,
            check_interval,
            cache: DashMap::new(),
            open: Mutex::new(None),
            started: Instant::now(),
            next_check: AtomicU64::new(0),
            next_complaint: AtomicU64::new(0),
        }
    }

    /// The account with this id, from memory when possible.
    pub(super) fn account(&self, id: &str) -> Result<Arc<Account>, Error> {
        if self.due(&self.next_check, self.check_interval) {
            self.check();
        }
        // The guard of the shard is dropped here: taking the mutex while holding it could deadlock with a clear.
        let known = self.cache.get(id).map(|entry| Arc::clone(&entry));
        if let Some(account) = known {
            return Ok(account);
        }
        let user = UserId::parse(id).map_err(|_| Error::UnknownUser)?;
        self.read(|open, cache| {
            let Some(account) = open.account(user)? else { return Ok(None) };
            let account = Arc::new(account);
            if cache.len() >= MAX_CACHED {
                cache.clear();
            }
            cache.insert(id.into(), Arc::clone(&account));
            Ok(Some(account))
        })?
        .ok_or(Error::UnknownUser)
    }

    /// The user's row as the user may see it, in `PocketBase`'s shape.
    pub(super) fn profile(&self, user: &UserId) -> Result<Value, Error> {
        self.read(|open, _| open.profile(user))?.ok_or(Error::UnknownUser)
    }

    /// The id of the account with this e-mail address.
    pub(super) fn find_by_email(&self, email: &str) -> Result<Option<UserId>, Error> {
        self.read(|open, _| {
            // Whether spellings are one account is the collection's choice; the exact one comes first.
            let sql = "SELECT id FROM users WHERE email = ?1 COLLATE NOCASE ORDER BY email = ?1 DESC LIMIT 1";
            let mut statement = open.connection.prepare_cached(sql)?;
            let id = statement.query_row([email], |row| row.get::<_, String>(0)).optional()?;
            Ok(id.and_then(|id| UserId::parse(&id).ok()))
        })
    }

    /// What instances' rows need to know of these accounts, as the database has it now; those that do not exist are left
    /// out. Others have their turn between every few.
    pub(super) fn owners(&self, users: &[UserId]) -> Result<Vec<Owner>, Error> {
        let mut found = Vec::new();
        for users in users.chunks(AT_ONCE) {
            found.extend(self.read(|open, _| {
                let mut statement = open.connection.prepare_cached("SELECT email, name FROM users WHERE id = ?1")?;
                let mut found = Vec::new();
                for user in users {
                    let owner = |row: &Row<'_>| Ok(Owner { id: user.clone(), email: row.get(0)?, name: row.get(1)? });
                    found.extend(statement.query_row([user.as_str()], owner).optional()?);
                }
                Ok(found)
            })?);
        }
        Ok(found)
    }

    /// Whether any account has the role `admin`.
    pub(super) fn any_admin(&self) -> Result<bool, Error> {
        self.read(|open, _| {
            let sql = "SELECT EXISTS (SELECT 1 FROM users WHERE role = 'admin')";
            Ok(open.connection.query_row(sql, [], |row| row.get(0))?)
        })
    }

    /// The stored settings of the global instance, and the options of its `users` collection with the rule for new
    /// accounts, as JSON.
    pub(super) fn configuration(&self) -> Result<(Value, Value), Error> {
        self.read(|open, _| {
            let one = |sql: &str| -> Result<Value, Unreadable> {
                let text: String = open.connection.query_row(sql, [], |row| row.get(0))?;
                Ok(serde_json::from_str(&text).unwrap_or_default())
            };
            let settings = one("SELECT CAST(value AS TEXT) FROM _params WHERE id = 'settings'")?;
            let users = one("SELECT json_set(CAST(options AS TEXT), '$.createRule', createRule) \
                 FROM _collections WHERE name = 'users' AND type = 'auth'")?;
            Ok((settings, users))
        })
    }

    /// Forgets everything: the next call for any account reads what is on disk now.
    pub(super) fn changed(&self) {
        let mut open = self.lock();
        self.cache.clear();
        if let Some(open) = open.as_mut() {
            open.users = None;
        }
    }

    /// Looks whether the database changed. A failure keeps what is known, so that signed-in users go on.
    fn check(&self) {
        let mut open = self.lock();
        if let Err(error) = self.refresh(&mut open) {
            self.complain(&error);
        }
    }

    /// Runs `with` on an up-to-date connection. A failed one is closed and opened anew by the next call.
    fn read<T>(
        &self,
        with: impl FnOnce(&mut Open, &DashMap<Arc<str>, Arc<Account>>) -> Result<T, Unreadable>,
    ) -> Result<T, Error> {
        let mut guard = self.lock();
        let result = self.refresh(&mut guard).and_then(|open| with(open, &self.cache));
        result.map_err(|error| {
            *guard = None;
            self.complain(&error);
            Error::AccountsUnreadable
        })
    }

    /// Opens the database if it is not open or was replaced, and empties the memory if anything was written.
    fn refresh<'a>(&self, slot: &'a mut Option<Open>) -> Result<&'a mut Open, Unreadable> {
        let files = match Files::of(&self.path) {
            Ok(files) => files,
            Err(error) => {
                *slot = None;
                return Err(error.into());
            }
        };
        let current = if let Some(mut open) = slot.take().filter(|open| open.files == files) {
            let version = data_version(&open.connection)?;
            if version != open.version {
                open.version = version;
                open.users = None;
                self.cache.clear();
            }
            open
        } else {
            let open = Open::new(&self.path, files)?;
            self.cache.clear();
            open
        };
        Ok(slot.insert(current))
    }

    fn lock(&self) -> MutexGuard<'_, Option<Open>> {
        // A panic under the mutex leaves nothing half-done: the connection is replaced or re-checked on each use.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn complain(&self, error: &Unreadable) {
        if self.due(&self.next_complaint, COMPLAINT_INTERVAL) {
            tracing::warn!(%error, "the accounts database cannot be read; only accounts in memory are known");
        }
    }

    /// Whether `clock` has come; of all callers that see it so, one gets `true` and moves it on.
    fn due(&self, clock: &AtomicU64, interval: Duration) -> bool {
        let micros = |duration: Duration| u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        let now = micros(self.started.elapsed());
        let due = clock.load(Ordering::Relaxed);
        let next = now.saturating_add(micros(interval));
        now >= due && clock.compare_exchange(due, next, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }
}

impl Open {
    fn new(path: &Path, before: Files) -> Result<Self, Unreadable> {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(path, flags)?;
        connection.busy_timeout(BUSY_TIMEOUT)?;
        // The write-ahead log belongs to the instance: closing our connection must neither fold nor remove it.
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
        let version = data_version(&connection)?;
        // Opening makes the index where there is none. One that was replaced meanwhile differs at the next look.
        let files = Files { index: before.index.or(Files::of(path)?.index), ..before };
        Ok(Self { connection, files, version, users: None })
    }

    fn users(&mut self) -> Result<Users, Unreadable> {
        if let Some(users) = &self.users {
            return Ok(users.clone());
        }
        let sql = "SELECT id, json_extract(options, '$.authToken.secret'), json_extract(options, '$.fileToken.secret') \
                   FROM _collections WHERE name = 'users' AND type = 'auth'";
        let (id, secret, file_secret) = self.connection.query_row(sql, [], |row| {
            Ok((row.get::<_, String>(0)?, row.get::<_, Option<String>>(1)?, row.get::<_, Option<String>>(2)?))
        })?;
        let present = |secret: &String| !secret.is_empty();
        // A key without the collection's half would be forgeable by whoever knows a tokenKey alone.
        let secret = secret.filter(present).ok_or(Unreadable::NoSecret)?;
        let file_secret = file_secret.filter(present).map(Into::into);
        let users = Users { id: id.into(), secret: secret.into(), file_secret };
        self.users = Some(users.clone());
        Ok(users)
    }

    fn account(&mut self, user: UserId) -> Result<Option<Account>, Unreadable> {
        let users = self.users()?;
        let sql = "SELECT tokenKey, role, email, verified FROM users WHERE id = ?1";
        let mut statement = self.connection.prepare_cached(sql)?;
        let row = statement.query_row([user.as_str()], |row| {
            let (role, email): (Option<String>, Option<String>) = (row.get(1)?, row.get(2)?);
            Ok((row.get::<_, String>(0)?, role, email, row.get::<_, Option<bool>>(3)?))
        });
        // An account without a key of its own has no valid tokens.
        let row = row.optional()?.filter(|(token_key, ..)| !token_key.is_empty());
        Ok(row.map(|(token_key, role, email, is_verified)| {
            let key = Key::new(&token_key, &users.secret);
            Account {
                user,
                collection: users.id,
                key_id: key.id(),
                key,
                file_key: users.file_secret.map(|secret| Key::new(&token_key, &secret)),
                role: Role::of(role.as_deref().unwrap_or_default()),
                email: email.unwrap_or_default().into(),
                is_verified: is_verified.unwrap_or_default(),
            }
        }))
    }

    fn profile(&mut self, user: &UserId) -> Result<Option<Value>, Unreadable> {
        let users = self.users()?;
        let mut statement = self.connection.prepare_cached("SELECT * FROM users WHERE id = ?1")?;
        let columns: Vec<String> = statement.column_names().map(str::to_owned).collect();
        let mut rows = statement.query([user.as_str()])?;
        let Some(row) = rows.next()? else { return Ok(None) };
        let mut record = Map::new();
        for (at, column) in columns.into_iter().enumerate() {
            if PUBLIC_COLUMNS.contains(&column.as_str()) {
                let value = json(&column, row.get_ref(at)?);
                record.insert(column, value);
            }
        }
        record.insert("collectionId".to_owned(), Value::from(&*users.id));
        record.insert("collectionName".to_owned(), Value::from("users"));
        Ok(Some(Value::Object(record)))
    }
}

fn data_version(connection: &Connection) -> Result<i64, rusqlite::Error> {
    connection.prepare_cached("PRAGMA data_version")?.query_row([], |row| row.get(0))
}

/// A column as `PocketBase` shows it: its booleans are stored as integers.
fn json(column: &str, value: ValueRef<'_>) -> Value {
    match value {
        ValueRef::Integer(number) if matches!(column, "verified" | "emailVisibility") => Value::from(number != 0),
        ValueRef::Integer(number) => Value::from(number),
        ValueRef::Real(number) => Value::from(number),
        ValueRef::Text(text) => Value::from(String::from_utf8_lossy(text)),
        ValueRef::Null | ValueRef::Blob(_) => Value::from(""),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owners_are_read_as_they_are_now_and_who_is_nobody_is_left_out() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("data.db");
        let directory = Directory::new(path.clone(), Duration::from_hours(1));
        let [ada, bob] = ["ada", "bob"].map(|name| UserId::parse(name).unwrap());
        assert!(directory.owners(std::slice::from_ref(&ada)).is_err(), "there is no database");
        let writer = Connection::open(&path).unwrap();
        writer.execute_batch("PRAGMA journal_mode = WAL; CREATE TABLE users (id TEXT, email TEXT, name TEXT)").unwrap();
        assert_eq!(directory.owners(std::slice::from_ref(&ada)).unwrap(), []);
        writer.execute("INSERT INTO users VALUES ('ada', 'ada@example.com', 'Ada')", []).unwrap();
        let owner = |email: &str| Owner { id: ada.clone(), email: email.to_owned(), name: "Ada".to_owned() };
        assert_eq!(directory.owners(&[bob, ada.clone()]).unwrap(), [owner("ada@example.com")]);
        writer.execute("UPDATE users SET email = 'ada@example.org'", []).unwrap();
        let many = vec![ada.clone(); AT_ONCE + 1];
        assert_eq!(directory.owners(&many).unwrap(), vec![owner("ada@example.org"); AT_ONCE + 1]);
    }

    #[test]
    fn an_index_of_the_log_that_is_gone_is_noticed_and_the_database_opened_anew() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("data.db");
        let writer = Connection::open(&path).unwrap();
        writer.execute_batch("PRAGMA journal_mode = WAL; CREATE TABLE users (id TEXT, role TEXT)").unwrap();
        let directory = Directory::new(path, Duration::ZERO);
        assert!(!directory.any_admin().unwrap());
        drop(writer);
        let index = folder.path().join("data.db-shm");
        fs::rename(&index, folder.path().join("old")).unwrap();
        assert!(!directory.any_admin().unwrap());
        assert!(index.exists(), "whoever opens the database makes it");
    }
}
