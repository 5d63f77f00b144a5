//! The control database's file: how it is created, recognised, tuned and brought to the newest schema.
//!
//! The schema's version is `user_version`. A file with a newer version, a database of something else, or a file that
//! is no database is refused and left untouched.

use std::fs::File;
use std::fs::OpenOptions;
use std::fs::Permissions;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use rusqlite::Connection;
use rusqlite::OpenFlags;
use rusqlite::TransactionBehavior;

use crate::store::Error;

/// How long a connection waits for a lock that another process (a backup, a curious operator) holds.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

/// Step N brings a file from version N to N + 1. Steps are never edited once released.
const MIGRATIONS: &[&str] = &["
    CREATE TABLE records (
        key TEXT NOT NULL PRIMARY KEY,
        revision INTEGER NOT NULL,
        value BLOB NOT NULL
    ) STRICT, WITHOUT ROWID;
    -- The revision of the last write. Not the largest one in `records`: a delete has a revision too.
    CREATE TABLE clock (only INTEGER NOT NULL PRIMARY KEY CHECK (only = 1), revision INTEGER NOT NULL) STRICT;
    INSERT INTO clock VALUES (1, 0);
"];

/// Names the file in an error about it, and tells damage from other failures.
pub(super) fn describe(path: &Path, error: rusqlite::Error) -> Error {
    match damage(path, &error) {
        Some(damage) => damage,
        None => Error::engine(error),
    }
}

/// The error to report when `error` means that the file is damaged, or that its disk is full.
pub(super) fn damage(path: &Path, error: &rusqlite::Error) -> Option<Error> {
    use rusqlite::ErrorCode::{DatabaseCorrupt, DiskFull, NotADatabase};
    if error.sqlite_error().is_some_and(|error| error.extended_code == rusqlite::ffi::SQLITE_IOERR_SHMSIZE) {
        // The index of the write-ahead log cannot grow.
        return Some(Error::Full);
    }
    match error.sqlite_error_code() {
        Some(NotADatabase) => Some(Error::Corrupt(format!("{} is not a database", path.display()))),
        Some(DiskFull) => Some(Error::Full),
        Some(DatabaseCorrupt) => Some(Error::Corrupt(format!("{} ({error})", path.display()))),
        _ => None,
    }
}

/// Opens the one connection that writes, after making or migrating the file.
pub(super) fn open_writer(path: &Path) -> Result<Connection, Error> {
    prepare_file(path).map_err(Error::engine)?;
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut connection = Connection::open_with_flags(path, flags).map_err(|e| describe(path, e))?;
    check_version(&connection, path)?;
    let mode = tune_writer(&connection).map_err(|e| describe(path, e))?;
    if mode != "wal" {
        return Err(Error::engine("the file system of the control database cannot hold a write-ahead log"));
    }
    migrate(&mut connection, path).map_err(|e| describe(path, e))?;
    Ok(connection)
}

/// Opens a connection that can only read. The file must be open for writing already.
pub(super) fn open_reader(path: &Path) -> Result<Connection, Error> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let open = || {
        let connection = Connection::open_with_flags(path, flags)?;
        connection.busy_timeout(BUSY_TIMEOUT)?;
        Ok(connection)
    };
    open().map_err(|e| describe(path, e))
}

/// Makes the file if it is missing, for our user only: the log and its index inherit the file's mode.
fn prepare_file(path: &Path) -> std::io::Result<()> {
    match OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
        // A power cut must not take the directory entry of a file whose records were acknowledged.
        Ok(_) => File::open(path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new(".")))?.sync_all(),
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            std::fs::set_permissions(path, Permissions::from_mode(0o600))
        }
        Err(error) => Err(error),
    }
}

/// Refuses files that are not ours before anything in them is changed.
fn check_version(connection: &Connection, path: &Path) -> Result<(), Error> {
    let read = || {
        connection.busy_timeout(BUSY_TIMEOUT)?;
        let found: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
        let tables: i64 = connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
        Ok((found, tables))
    };
    let (found, tables) = read().map_err(|e| describe(path, e))?;
    let known = newest();
    if found > known {
        return Err(Error::NewerSchema { path: path.to_owned(), found, known });
    }
    if found < 0 || (found == 0 && tables > 0) {
        return Err(Error::Corrupt(format!("{} is a database of something else", path.display())));
    }
    Ok(())
}

fn newest() -> i64 {
    i64::try_from(MIGRATIONS.len()).unwrap_or(i64::MAX)
}

/// Returns the journal mode that the file got.
fn tune_writer(connection: &Connection) -> rusqlite::Result<String> {
    let mode = connection.query_row("PRAGMA journal_mode = WAL", [], |row| row.get(0))?;
    connection.execute_batch(
        // FULL syncs the log at each commit: what was acknowledged survives a power cut. The size limit gives back
        // the space of a log that grew in a burst. What is deleted is overwritten: keys that an erasure destroys must not
        // stay in free pages, where every copy of the file would have them.
        // The log is folded into the file at 16 MiB instead of 4: records of many tenants lie far from each other, so each
        // fold writes a page for almost every change, and pages that change again meanwhile are written once.
        "PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON; PRAGMA journal_size_limit = 67108864; \
         PRAGMA secure_delete = ON; PRAGMA wal_autocheckpoint = 4000; PRAGMA cache_size = -16384;",
    )?;
    Ok(mode)
}

fn migrate(connection: &mut Connection, path: &Path) -> rusqlite::Result<()> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let found: i64 = transaction.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    for (version, sql) in (1_i64..).zip(MIGRATIONS).filter(|(version, _)| *version > found) {
        transaction.execute_batch(sql)?;
        transaction.pragma_update(None, "user_version", version)?;
        tracing::info!(store.path = %path.display(), store.schema = version, "brought the control database to a newer schema");
    }
    transaction.commit()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_told_from_other_failures() {
        let connection = Connection::open_in_memory().unwrap();
        connection.execute_batch("CREATE TABLE t (x BLOB); PRAGMA max_page_count = 3").unwrap();
        // SQLite says the same when it may not grow as when it cannot.
        let error = connection.execute("INSERT INTO t VALUES (zeroblob(100000))", []).unwrap_err();
        assert!(matches!(damage(Path::new("x"), &error), Some(Error::Full)), "{error}");
        let error = connection.execute("INSERT INTO nothing VALUES (1)", []).unwrap_err();
        assert!(damage(Path::new("x"), &error).is_none(), "{error}");
    }

    #[test]
    fn what_was_deleted_is_not_in_the_file_any_more() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("control.db");
        let planted = b"PLANTED-DATA-KEY".repeat(300);
        let connection = open_writer(&path).unwrap();
        for key in ["vaultkey.ada", "vaultkey.bob"] {
            connection.execute("INSERT INTO records VALUES (?1, 1, ?2)", (key, &planted)).unwrap();
            connection.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
        }
        let holds = || std::fs::read(&path).unwrap().windows(16).any(|part| part == b"PLANTED-DATA-KEY");
        assert!(holds());
        connection.execute("DELETE FROM records", []).unwrap();
        connection.close().unwrap();
        assert!(!holds());
    }
}
