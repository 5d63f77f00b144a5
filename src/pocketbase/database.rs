//! The database file of one `PocketBase`, read and edited without asking its process.
//!
//! Copies of a golden directory would accept each other's tokens, so every copy gets secrets of its own before its
//! first start; and tokens are minted from the values read here. Everything is synchronous and short: an edit is
//! one transaction on a connection that is closed afterwards, which leaves no `-wal` and no `-shm` behind when no
//! process serves the file.
//!
//! Invariants: no secret leaves this module other than inside a [`token::Key`](crate::pocketbase::token::Key), and
//! none is part of an error. Reading never creates a file beside a database that was stopped cleanly.
//!
//! A running process caches collections and settings (not records): edit those only while it is stopped.

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;

use percent_encoding::NON_ALPHANUMERIC;
use percent_encoding::percent_encode;
use rusqlite::Connection;
use rusqlite::ErrorCode;
use rusqlite::OpenFlags;
use rusqlite::OptionalExtension;
use serde_json::Value;

use crate::ids::UserId;
use crate::pocketbase::bounds;
use crate::pocketbase::bounds::Budget;
use crate::pocketbase::bounds::Most;
pub use crate::pocketbase::edit::CONTROL_EMAIL;
pub use crate::pocketbase::edit::Edit;
pub use crate::pocketbase::edit::EditError;
pub use crate::pocketbase::edit::Owner;
use crate::pocketbase::edit::quoted;
use crate::pocketbase::locate::locate;
use crate::pocketbase::token::Key;
use crate::pocketbase::token::Signer;

/// The collection whose rows are an instance's users.
pub const USERS: &str = "users";

/// How long an edit waits for a lock that another process holds.
const BUSY_TIMEOUT: Duration = Duration::from_secs(2);

/// Why an instance's database could not be read or edited.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No file at the path.
    #[error("{} does not exist", path.display())]
    NoFile {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// The file is something else.
    #[error("{} is not a SQLite database", path.display())]
    NotADatabase {
        /// The file.
        path: PathBuf,
    },
    /// It is a database, and damaged.
    #[error("the database {} is damaged: {detail}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What `SQLite` says, at most some lines.
        detail: String,
    },
    /// A database without something that every `PocketBase` has.
    #[error("the database {} has no {what}", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
        /// What was looked for.
        what: &'static str,
    },
    /// It has more than it may, or what it does takes longer: whoever wrote the schema decides how much work a look is.
    #[error("the database {} has or takes too much: {what}", path.display())]
    Beyond {
        /// The file.
        path: PathBuf,
        /// Of what.
        what: &'static str,
    },
    /// The file system refused.
    #[error("cannot reach {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// Anything else that `SQLite` refused; bound values are not part of its messages.
    #[error("cannot work on the database {}", path.display())]
    Sqlite {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: rusqlite::Error,
    },
}

impl Error {
    /// Whether the machine was in the way and not what the file holds: a full or failing disk, a lock, no memory, no
    /// descriptor.
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Io { .. } => true,
            Self::Sqlite { source, .. } => matches!(
                source.sqlite_error_code(),
                Some(
                    ErrorCode::DiskFull
                        | ErrorCode::SystemIoFailure
                        | ErrorCode::DatabaseBusy
                        | ErrorCode::DatabaseLocked
                        | ErrorCode::OutOfMemory
                        | ErrorCode::CannotOpen
                )
            ),
            Self::NoFile { .. }
            | Self::NotADatabase { .. }
            | Self::Damaged { .. }
            | Self::Missing { .. }
            | Self::Beyond { .. } => false,
        }
    }
}

/// Whose tokens can be minted for one instance.
#[derive(Debug, Clone)]
pub struct Signers {
    /// The control superuser.
    pub superuser: Signer,
    /// The same with the key of its file tokens.
    pub superuser_files: Option<Signer>,
    /// The rows of `users`.
    pub users: HashMap<UserId, Signer>,
    /// The same rows with the keys of their file tokens.
    pub files: HashMap<UserId, Signer>,
}

/// Whether an edit must survive a power cut when it returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// Yes.
    Synced,
    /// No: the caller syncs the file, or throws it away.
    Caller,
}

/// Runs `change` in one transaction and closes the database again. An error rolls everything back.
pub fn edit(
    path: &Path,
    durability: Durability,
    change: impl FnOnce(&Edit) -> Result<(), EditError>,
) -> Result<(), Error> {
    edit_within(path, durability, Budget::EDIT, change)
}

pub(super) fn edit_within(
    path: &Path,
    durability: Durability,
    budget: Budget,
    change: impl FnOnce(&Edit) -> Result<(), EditError>,
) -> Result<(), Error> {
    let is_served = has_wal(path);
    let connection = open_within(path, Access::Write, budget)?;
    let run = || -> Result<Connection, EditError> {
        if durability == Durability::Caller {
            connection.pragma_update(None, "synchronous", "OFF")?;
        }
        bounds::plain(&connection, USERS)?;
        bounds::plain(&connection, "_superusers")?;
        let edit = Edit::begin(connection)?;
        change(&edit)?;
        let connection = edit.commit()?;
        if !is_served {
            // Closing would do this too, but would not say that it failed. The log of a running process is left to it:
            // to empty it, writers would have to wait for every reader.
            connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
        }
        Ok(connection)
    };
    let connection = run().map_err(|error| at(path, error))?;
    connection.close().map_err(|(_, source)| classify(path, source))
}

/// Gives every auth collection new token secrets and every auth record a new token key. All tokens die.
pub fn rotate_secrets(path: &Path) -> Result<(), Error> {
    edit(path, Durability::Synced, Edit::rotate_secrets)
}

/// Inserts or updates the owner's row in the auth collection `users`.
pub fn set_owner(path: &Path, users: &str, owner: &Owner) -> Result<(), Error> {
    edit(path, Durability::Synced, |edit| edit.set_owner(users, owner))
}

/// Leaves exactly one superuser, which has no password.
pub fn install_superuser(path: &Path) -> Result<(), Error> {
    edit(path, Durability::Synced, Edit::install_superuser)
}

/// Sets values of the stored settings, each named by a JSON pointer such as `/logs/minLevel`.
pub fn apply_settings(path: &Path, settings: &[(&str, Value)]) -> Result<(), Error> {
    edit(path, Durability::Synced, |edit| edit.apply_settings(settings))
}

/// Reads what minting tokens for the control superuser and for every row of `users` needs.
pub fn signers(path: &Path) -> Result<Signers, Error> {
    read(path, |_| Ok(())).map(|(signers, ())| signers)
}

/// The same, and something else through the same connection.
pub(super) fn read<T>(
    path: &Path,
    also: impl FnOnce(&Connection) -> Result<T, EditError>,
) -> Result<(Signers, T), Error> {
    look(path, |connection| Ok((signers_in(connection)?, also(connection)?)))
}

pub(super) fn signers_in(connection: &Connection) -> Result<Signers, EditError> {
    let (users, files) = read_users(connection)?;
    let (superuser, superuser_files) = read_superuser(connection)?;
    Ok(Signers { superuser, superuser_files, users, files })
}

/// Reads something.
pub(super) fn look<T>(path: &Path, with: impl FnOnce(&Connection) -> Result<T, EditError>) -> Result<T, Error> {
    look_within(path, Budget::LOOK, with)
}

pub(super) fn look_within<T>(
    path: &Path,
    budget: Budget,
    with: impl FnOnce(&Connection) -> Result<T, EditError>,
) -> Result<T, Error> {
    let connection = open_within(path, Access::Read, budget)?;
    with(&connection).map_err(|error| at(path, error))
}

/// Reads something of a database that nobody serves; none when it has a log.
pub(super) fn look_asleep<T>(
    path: &Path,
    with: impl FnOnce(&Connection) -> Result<T, EditError>,
) -> Result<Option<T>, Error> {
    if has_wal(path) {
        return Ok(None);
    }
    // Decided here and not again there: whoever begins to serve it meanwhile shares no memory with us.
    let connection = open_within(path, Access::Asleep, Budget::LOOK)?;
    with(&connection).map(Some).map_err(|error| at(path, error))
}

/// Reads what minting tokens for the control superuser needs. Its cost does not depend on the number of users.
pub fn superuser(path: &Path) -> Result<Signer, Error> {
    let connection = open(path, Access::Read)?;
    read_superuser(&connection).map(|(superuser, _)| superuser).map_err(|error| at(path, error))
}

/// Id, auth token secret and file token secret of an auth collection.
fn collection(connection: &Connection, name: &str) -> Result<Option<(String, String, Option<String>)>, EditError> {
    bounds::plain(connection, "_collections")?;
    let sql = "SELECT id, json_extract(CAST(options AS TEXT), '$.authToken.secret'),
                      json_extract(CAST(options AS TEXT), '$.fileToken.secret')
               FROM _collections WHERE type = 'auth' AND name = ?1";
    Ok(connection.query_row(sql, [name], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?))).optional()?)
}

/// Signers by user: of auth tokens, and of file tokens.
type UserSigners = (HashMap<UserId, Signer>, HashMap<UserId, Signer>);

fn read_superuser(connection: &Connection) -> Result<(Signer, Option<Signer>), EditError> {
    bounds::plain(connection, "_superusers")?;
    let (collection_id, secret, file_secret) =
        collection(connection, "_superusers")?.ok_or(EditError::Missing("superusers"))?;
    let row = connection
        .query_row("SELECT id, tokenKey FROM _superusers WHERE email = ?1", [CONTROL_EMAIL], |row| {
            Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?))
        })
        .optional()?;
    let (record_id, token_key) = row.ok_or(EditError::Missing("control superuser"))?;
    let signer = Signer { collection_id, record_id, key: Key::new(&token_key, &secret) };
    let files = file_secret.filter(|secret| !secret.is_empty());
    let files = files.map(|secret| Signer { key: Key::new(&token_key, &secret), ..signer.clone() });
    Ok((signer, files))
}

fn read_users(connection: &Connection) -> Result<UserSigners, EditError> {
    let Some((collection_id, secret, file_secret)) = collection(connection, USERS)? else {
        return Ok(UserSigners::default());
    };
    bounds::plain(connection, USERS)?;
    let mut most = Most::default();
    let mut statement = connection.prepare(&format!("SELECT id, tokenKey FROM {}", quoted(USERS)))?;
    let mut rows = statement.query([])?;
    let (mut users, mut files) = UserSigners::default();
    while let Some(row) = rows.next()? {
        let (record_id, token_key): (String, String) = (row.get(0)?, row.get(1)?);
        most.take([&record_id, &token_key])?;
        // An id outside our alphabet cannot be one of a global account.
        let Ok(user) = UserId::parse(&record_id) else { continue };
        // Half a key would be no secret.
        if let Some(secret) = file_secret.as_ref().filter(|secret| !secret.is_empty()) {
            let key = Key::new(&token_key, secret);
            let signer = Signer { collection_id: collection_id.clone(), record_id: record_id.clone(), key };
            files.insert(user.clone(), signer);
        }
        let key = Key::new(&token_key, &secret);
        users.insert(user, Signer { collection_id: collection_id.clone(), record_id, key });
    }
    Ok((users, files))
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    Read,
    Asleep,
    Write,
}

/// For a short look. Whatever takes longer than one is interrupted.
pub(super) fn open(path: &Path, access: Access) -> Result<Connection, Error> {
    open_within(path, access, Budget::LOOK)
}

/// A connection whose every statement together may take so much. Who serves the file may have written its schema: it is
/// trusted with nothing, and what `PocketBase` keeps in tables is taken from tables only.
pub(super) fn open_within(path: &Path, access: Access, budget: Budget) -> Result<Connection, Error> {
    let located = locate(path)?;
    let path = located.as_path();
    let opened = match access {
        Access::Write => Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE | NO_MUTEX),
        Access::Read if has_wal(path) => Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY | NO_MUTEX),
        // Without a -wal nobody serves the file. An ordinary read-only connection would leave a -wal and a -shm
        // that belong to us, and an instance with another uid could not open its own database any more.
        Access::Read | Access::Asleep => {
            let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI | NO_MUTEX;
            let encoded = percent_encode(path.as_os_str().as_encoded_bytes(), NON_ALPHANUMERIC);
            Connection::open_with_flags(format!("file:{encoded}?immutable=1"), flags)
        }
    };
    let mut connection = opened.map_err(|source| classify(path, source))?;
    let mut prepare = || {
        bounds::set(&mut connection, budget)?;
        connection.busy_timeout(BUSY_TIMEOUT)?;
        // SQLite opens lazily: this first read is what tells a database from garbage.
        connection.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(()))
    };
    prepare().map_err(|source| classify(path, source))?;
    Ok(connection)
}

/// `SQLite` itself refuses a link in the file's place, at the moment when it opens it.
const NO_MUTEX: OpenFlags = OpenFlags::SQLITE_OPEN_NO_MUTEX.union(OpenFlags::SQLITE_OPEN_NOFOLLOW);

pub(super) fn has_wal(path: &Path) -> bool {
    let mut wal = path.as_os_str().to_owned();
    wal.push("-wal");
    Path::new(&wal).exists()
}

pub(super) fn at(path: &Path, error: EditError) -> Error {
    match error {
        EditError::Missing(what) => Error::Missing { path: path.to_owned(), what },
        EditError::Beyond(what) => Error::Beyond { path: path.to_owned(), what },
        EditError::Sqlite(source) => classify(path, source),
    }
}

pub(super) fn classify(path: &Path, source: rusqlite::Error) -> Error {
    let path = path.to_owned();
    match source.sqlite_error_code() {
        Some(ErrorCode::NotADatabase) => Error::NotADatabase { path },
        Some(ErrorCode::OperationInterrupted) => Error::Beyond { path, what: "time" },
        Some(ErrorCode::TooBig) => Error::Beyond { path, what: "a value's bytes" },
        Some(ErrorCode::DatabaseCorrupt) => Error::Damaged { path, detail: source.to_string() },
        _ => Error::Sqlite { path, source },
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use rusqlite::ffi;
    use serde_json::json;

    use super::*;
    use crate::pocketbase::copy::quick_check;
    use crate::pocketbase::schema;

    /// The tables that matter, as `PocketBase` 0.40 makes them; WAL, stopped cleanly. The tests of
    /// `supervisor::provision` do the same with files of the real one.
    fn fixture(dir: &Path) -> PathBuf {
        let path = dir.join("da?t%a#.db");
        let connection = Connection::open(&path).unwrap();
        let record = "id TEXT PRIMARY KEY NOT NULL, email TEXT DEFAULT '' NOT NULL,
            emailVisibility BOOLEAN DEFAULT FALSE NOT NULL, password TEXT DEFAULT '' NOT NULL,
            tokenKey TEXT DEFAULT '' NOT NULL, verified BOOLEAN DEFAULT FALSE NOT NULL,
            created TEXT DEFAULT '' NOT NULL, updated TEXT DEFAULT '' NOT NULL";
        connection
            .execute_batch(&format!(
                r#"PRAGMA journal_mode=WAL;
                CREATE TABLE _params (id TEXT PRIMARY KEY, value JSON, updated TEXT);
                CREATE TABLE _collections (id TEXT PRIMARY KEY, type TEXT, name TEXT, options JSON);
                CREATE TABLE _superusers ({record});
                CREATE TABLE users ({record}, plan TEXT DEFAULT 'free' NOT NULL);
                CREATE TABLE "odd ""name" ({record});
                CREATE UNIQUE INDEX token_key ON users (tokenKey);
                INSERT INTO _params VALUES ('settings', CAST('{{"logs":{{"minLevel":0}}}}' AS BLOB), '');
                INSERT INTO _collections VALUES
                    ('s', 'auth', '_superusers', '{{"authToken":{{"secret":"shared","duration":9}}}}'),
                    ('u', 'auth', 'users', '{{"authToken":{{"secret":"shared","duration":9}}}}'),
                    ('o', 'auth', 'odd "name', '{{"authToken":{{"secret":"shared","duration":9}}}}'),
                    ('b', 'base', 'notes', '{{}}');
                INSERT INTO users (id, tokenKey) VALUES ('seeded', 'shared');
                INSERT INTO "odd ""name" (id, tokenKey) VALUES ('seeded', 'shared');
                INSERT INTO _superusers (id, tokenKey, email, password) VALUES ('root', 'shared', 'root@example.com', 'x');
                "#
            ))
            .unwrap();
        connection.close().unwrap();
        path
    }

    fn column(path: &Path, sql: &str) -> Vec<String> {
        let connection = Connection::open(path).unwrap();
        let mut statement = connection.prepare(sql).unwrap();
        statement.query_map([], |row| row.get(0)).unwrap().collect::<Result<_, _>>().unwrap()
    }

    fn owner(email: &str) -> Owner {
        Owner { id: UserId::parse("aaaaaaaaaaaaaaa").unwrap(), email: email.into(), name: String::new() }
    }

    #[test]
    fn a_full_disk_passes_and_a_broken_rule_of_the_schema_does_not() {
        let error = |code| {
            let source = rusqlite::Error::SqliteFailure(rusqlite::ffi::Error::new(code), None);
            Error::Sqlite { path: PathBuf::new(), source }
        };
        for code in [ffi::SQLITE_FULL, ffi::SQLITE_IOERR_FSYNC, ffi::SQLITE_BUSY, ffi::SQLITE_LOCKED] {
            assert!(error(code).may_pass(), "{code}");
        }
        for code in [ffi::SQLITE_CONSTRAINT, ffi::SQLITE_ERROR] {
            assert!(!error(code).may_pass(), "{code}");
        }
    }

    #[test]
    fn rotation_leaves_no_shared_secret_and_no_other_change() {
        let dir = tempfile::tempdir().unwrap();
        let path = fixture(dir.path());
        install_superuser(&path).unwrap();
        rotate_secrets(&path).unwrap();
        let options = column(&path, "SELECT options FROM _collections WHERE type = 'auth'");
        let mut seen = std::collections::HashSet::new();
        for text in &options {
            let options: Value = serde_json::from_str(text).unwrap();
            assert_eq!(options["authToken"]["duration"], 9);
            for kind in ["auth", "passwordReset", "emailChange", "verification", "file"] {
                let secret = options[format!("{kind}Token")]["secret"].as_str().unwrap();
                assert!(secret.len() == 50 && secret.bytes().all(|b| b.is_ascii_alphanumeric()));
                assert!(seen.insert(secret.to_owned()), "{kind} twice");
            }
        }
        for table in ["_superusers", "users", "\"odd \"\"name\""] {
            for key in column(&path, &format!("SELECT tokenKey FROM {table}")) {
                assert!(key.len() == 50 && seen.insert(key), "{table}");
            }
        }
        assert_eq!(column(&path, "SELECT options FROM _collections WHERE id = 'b'"), ["{}"]);
        let files: Vec<_> = fs::read_dir(dir.path()).unwrap().collect();
        assert_eq!(files.len(), 1, "{files:?}");
    }

    #[test]
    fn what_migrations_made_the_same_everywhere_is_replaced_and_the_rest_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let golden = fixture(dir.path());
        install_superuser(&golden).unwrap();
        let own = dir.path().join("own.db");
        fs::copy(&golden, &own).unwrap();
        rotate_secrets(&own).unwrap();
        let known = schema::superusers(&own).unwrap();
        let before = signers(&own).unwrap();
        // A migration that names a secret, a key and a superuser.
        let connection = Connection::open(&own).unwrap();
        connection.execute("UPDATE users SET tokenKey = (SELECT 'x') WHERE id = 'seeded'", []).unwrap();
        connection.execute("INSERT INTO _superusers (id, email) VALUES ('backdoor', 'b@example.com')", []).unwrap();
        connection.close().unwrap();
        let connection = Connection::open(&golden).unwrap();
        connection.execute("UPDATE users SET tokenKey = 'x' WHERE id = 'seeded'", []).unwrap();
        connection.close().unwrap();
        let connection = Connection::open(&own).unwrap();
        connection.execute("UPDATE _superusers SET password = 'x' WHERE email = ?1", [CONTROL_EMAIL]).unwrap();
        connection.close().unwrap();
        let shared = schema::Shared::of(&golden).unwrap();
        let settle = |edit: &Edit| edit.unshare(&shared, &known).and_then(|()| edit.lock_superusers());
        edit(&own, Durability::Synced, settle).unwrap();
        assert_eq!(schema::superusers(&own).unwrap(), known);
        assert_eq!(column(&own, "SELECT password FROM _superusers"), [""]);
        assert_eq!(signers(&own).unwrap().superuser.key, before.superuser.key, "its own secrets stay");
        let key = column(&own, "SELECT tokenKey FROM users WHERE id = 'seeded'");
        assert_eq!(key[0].len(), 50);

        // And a collection with the golden directory's secret gets one of its own.
        fs::copy(&golden, &own).unwrap();
        edit(&own, Durability::Synced, |edit| edit.unshare(&shared, &known)).unwrap();
        let secret = "SELECT json_extract(options, '$.authToken.secret') FROM _collections WHERE name = 'users'";
        assert_ne!(column(&own, secret), column(&golden, secret));
    }

    #[test]
    fn the_only_superuser_has_no_password() {
        let dir = tempfile::tempdir().unwrap();
        let path = fixture(dir.path());
        install_superuser(&path).unwrap();
        assert_eq!(column(&path, "SELECT email || ':' || password FROM _superusers"), [format!("{CONTROL_EMAIL}:")]);
    }

    #[test]
    fn owner_is_inserted_once_and_keeps_the_key() {
        let dir = tempfile::tempdir().unwrap();
        let path = fixture(dir.path());
        install_superuser(&path).unwrap();
        set_owner(&path, USERS, &owner("a@example.com")).unwrap();
        let sql = "SELECT tokenKey FROM users WHERE id = 'aaaaaaaaaaaaaaa'";
        let key = column(&path, sql);
        set_owner(&path, USERS, &owner("b@example.com")).unwrap();
        assert_eq!(column(&path, sql), key);
        let row =
            column(&path, "SELECT email||password||verified||plan||updated FROM users WHERE id = 'aaaaaaaaaaaaaaa'");
        let time = row[0].strip_prefix("b@example.com1free").unwrap();
        assert!(time.len() == 24 && time.ends_with('Z') && time.as_bytes()[10] == b' ', "{time}");
        let signers = signers(&path).unwrap();
        assert_eq!(signers.users[&owner("").id].key, Key::new(&key[0], "shared"));
        assert_eq!(signers.users.len(), 2);
        assert!(matches!(set_owner(&path, "nobody", &owner("")), Err(Error::Missing { .. })));
    }

    #[test]
    fn settings_are_merged_and_unknown_parents_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = fixture(dir.path());
        apply_settings(&path, &[("/logs/minLevel", json!(8)), ("/superuserIPs", json!(["127.0.0.1"]))]).unwrap();
        let refused = apply_settings(&path, &[("/logs/maxDays", json!(1)), ("/nothing/here", json!(1))]);
        assert!(matches!(refused, Err(Error::Missing { .. })));
        let stored = column(&path, "SELECT value FROM _params");
        assert_eq!(stored, [r#"{"logs":{"minLevel":8},"superuserIPs":["127.0.0.1"]}"#]);
    }

    #[test]
    fn reading_leaves_no_files_and_sees_what_a_running_process_wrote() {
        let dir = tempfile::tempdir().unwrap();
        let path = fixture(dir.path());
        install_superuser(&path).unwrap();
        signers(&path).unwrap();
        quick_check(&path).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);

        let running = Connection::open(&path).unwrap();
        running.execute("UPDATE users SET tokenKey = 'new' WHERE id = 'seeded'", []).unwrap();
        let users = signers(&path).unwrap().users;
        assert_eq!(users[&UserId::parse("seeded").unwrap()].key, Key::new("new", "shared"));
    }

    #[test]
    fn garbage_damage_and_absence_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let path = fixture(dir.path());
        let garbage = dir.path().join("garbage.db");
        fs::write(&garbage, "garbage ".repeat(1000)).unwrap();
        assert!(matches!(quick_check(&garbage), Err(Error::NotADatabase { .. })));
        assert!(matches!(signers(&garbage), Err(Error::NotADatabase { .. })));
        assert!(matches!(rotate_secrets(&garbage), Err(Error::NotADatabase { .. })));
        let cut = dir.path().join("cut.db");
        let bytes = fs::read(&path).unwrap();
        fs::write(&cut, &bytes[..bytes.len() / 2]).unwrap();
        assert!(matches!(quick_check(&cut), Err(Error::Damaged { .. })));
        assert!(matches!(signers(&dir.path().join("none.db")), Err(Error::NoFile { .. })));
        assert!(!dir.path().join("none.db").exists());
        let empty = dir.path().join("empty.db");
        fs::write(&empty, "").unwrap();
        assert!(superuser(&empty).is_err());
    }
}
