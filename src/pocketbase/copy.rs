//! Copies of an instance's databases for backups, and what is asked of them.
//!
//! A copy is made by `VACUUM INTO` over a connection that only reads: a whole database of one moment, without a log and
//! without what was deleted, while its process goes on writing. The path is opened without following a symbolic link in
//! any part of it, and the schema, which a tenant may have written, is not trusted with functions.

use std::collections::HashMap;
use std::fs::File;
use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

use percent_encoding::NON_ALPHANUMERIC;
use percent_encoding::percent_encode;
use rusqlite::Connection;
use rusqlite::MAIN_DB;
use rusqlite::OpenFlags;
use rusqlite::backup::Progress;
use rusqlite::config::DbConfig;
use serde::Deserialize;
use serde::Serialize;
use serde_json::Value;
use serde_json::json;

use crate::pocketbase::bounds;
use crate::pocketbase::bounds::Budget;
use crate::pocketbase::bounds::Most;
use crate::pocketbase::database;
use crate::pocketbase::database::Access;
use crate::pocketbase::database::Durability;
use crate::pocketbase::database::Error;
use crate::pocketbase::database::at;
use crate::pocketbase::database::classify;
use crate::pocketbase::database::has_wal;
use crate::pocketbase::database::look_within;
use crate::pocketbase::database::open;
use crate::pocketbase::database::open_within;
use crate::pocketbase::edit::EditError;
use crate::pocketbase::edit::quoted;

/// How long a reader waits for a lock.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);
/// Lines that a check of a damaged database tells.
const LINES: usize = 5;

/// Whether a process has the database open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Served {
    /// One does, or may.
    Yes,
    /// None does. A copy that was made while one began to is worth nothing: the caller looks.
    No,
}

/// Copies a database into a new file, within a time. `path` must have no symbolic link in it.
pub fn vacuum_into(path: &Path, to: &Path, served: Served, limit: Duration) -> Result<(), Error> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY
        | OpenFlags::SQLITE_OPEN_NO_MUTEX
        | OpenFlags::SQLITE_OPEN_NOFOLLOW
        | OpenFlags::SQLITE_OPEN_URI;
    let encoded = percent_encode(path.as_os_str().as_encoded_bytes(), NON_ALPHANUMERIC);
    // A reader that nobody else has the database open with would leave a log and its index behind.
    let query = if served == Served::Yes || has_wal(path) { "" } else { "?immutable=1" };
    let refused = |source| classify(path, source);
    let connection = Connection::open_with_flags(format!("file:{encoded}{query}"), flags).map_err(refused)?;
    let prepare = || {
        connection.busy_timeout(BUSY_TIMEOUT)?;
        bounds::distrust(&connection)?;
        connection.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(()))
    };
    prepare().map_err(refused)?;
    within(&connection, limit, || connection.execute("VACUUM INTO ?1", [to.to_string_lossy()])).map_err(refused)?;
    Ok(())
}

/// Copies a database into a new file, with what its log holds, and syncs the copy. Whoever opens and closes the file by
/// other means than `SQLite`'s drops every lock that this process has on it, those of other connections too. A database
/// without a log is open nowhere and is not worth the effort: `false`, and nothing was done.
pub fn copy_open(path: &Path, to: &Path) -> Result<bool, Error> {
    if !has_wal(path) {
        return Ok(false);
    }
    let connection = open_within(path, Access::Read, Budget::WHOLE)?;
    let copy = || -> rusqlite::Result<()> {
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
        connection.backup(MAIN_DB, to, None::<fn(Progress)>)
    };
    copy().map_err(|source| classify(path, source))?;
    let synced = File::open(to).and_then(|file| file.sync_all());
    synced.map_err(|source| Error::Io { path: to.to_owned(), source })?;
    Ok(true)
}

/// Looks for damage: the pages' structure and the indexes' order, not every index entry.
pub fn quick_check(path: &Path) -> Result<(), Error> {
    let connection = open_within(path, Access::Read, Budget::WHOLE)?;
    let lines = || -> rusqlite::Result<Vec<String>> {
        connection.prepare("PRAGMA quick_check(5)")?.query_map([], |row| row.get(0))?.collect()
    };
    let lines = lines().map_err(|source| classify(path, source))?;
    if lines == ["ok"] {
        return Ok(());
    }
    Err(Error::Damaged { path: path.to_owned(), detail: lines.join("; ") })
}

/// Runs something on a connection and interrupts it when it takes longer.
fn within<T>(connection: &Connection, limit: Duration, work: impl FnOnce() -> T) -> T {
    let handle = connection.get_interrupt_handle();
    let (done, waiting) = mpsc::channel::<()>();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            if waiting.recv_timeout(limit) == Err(mpsc::RecvTimeoutError::Timeout) {
                handle.interrupt();
            }
        });
        let outcome = work();
        drop(done);
        outcome
    })
}

/// Looks for damage in every page, index and reference. The text says what was found, at most some lines.
pub fn check(path: &Path) -> Result<(), Error> {
    let connection = open_within(path, Access::Read, Budget::WHOLE)?;
    let lines = || -> rusqlite::Result<Vec<String>> {
        let mut found: Vec<String> = connection
            .prepare("PRAGMA integrity_check(5)")?
            .query_map([], |row| row.get(0))?
            .collect::<rusqlite::Result<_>>()?;
        if found == ["ok"] {
            found.clear();
        }
        let mut statement = connection.prepare("PRAGMA foreign_key_check")?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()?.filter(|_| found.len() < LINES) {
            found.push(format!("a row of {} refers to none of {}", row.get::<_, String>(0)?, row.get::<_, String>(2)?));
        }
        Ok(found)
    };
    let lines = lines().map_err(|source| classify(path, source))?;
    if lines.is_empty() { Ok(()) } else { Err(Error::Damaged { path: path.to_owned(), detail: lines.join("; ") }) }
}

#[derive(Deserialize)]
struct Field {
    name: String,
    #[serde(rename = "type")]
    kind: String,
}

/// Calls `each` with the path of every file that a record names, relative to the data directory, until it says no.
pub fn named_files(path: &Path, mut each: impl FnMut(&str) -> bool) -> Result<(), Error> {
    look_within(path, Budget::WHOLE, |connection| {
        bounds::plain(connection, "_collections")?;
        let mut statement = connection
            .prepare("SELECT id, name, CAST(fields AS TEXT) FROM _collections WHERE type <> 'view' ORDER BY id")?;
        let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
        let collections: Vec<(String, String, String)> = bounds::few(rows)?;
        let mut most = Most::default();
        for (id, table, fields) in collections {
            let fields: Vec<Field> = serde_json::from_str(&fields).unwrap_or_default();
            // A table that is something else has no rows of PocketBase's.
            if bounds::plain(connection, &table).is_err() {
                continue;
            }
            for field in fields.iter().filter(|field| field.kind == "file") {
                let sql =
                    format!("SELECT id, {0} FROM {1} WHERE {0} NOT IN ('', '[]')", quoted(&field.name), quoted(&table));
                // A collection whose table has gone is PocketBase's affair.
                let Ok(mut statement) = connection.prepare(&sql) else { continue };
                let mut rows = statement.query([])?;
                while let Some(row) = rows.next()? {
                    let (record, value): (String, String) = (row.get(0)?, row.get(1)?);
                    most.take([&record])?;
                    for name in names(value) {
                        if !each(&format!("storage/{id}/{record}/{name}")) {
                            return Ok(());
                        }
                    }
                }
            }
        }
        Ok(())
    })
}

/// One name, or a JSON array of several.
fn names(value: String) -> Vec<String> {
    match serde_json::from_str(&value) {
        Ok(Value::Array(names)) => names.iter().filter_map(|name| name.as_str().map(str::to_owned)).collect(),
        _ => vec![value],
    }
}

/// Makes a copy its owner's: no superuser of ours and none at all, new secrets everywhere, no setting that assumes a
/// proxy in front, and nothing left of what was deleted. Their first start of it asks for a superuser.
pub fn hand_over(path: &Path) -> Result<(), Error> {
    database::edit_within(path, Durability::Caller, Budget::WHOLE, |edit| {
        edit.rotate_secrets()?;
        edit.remove_superusers()?;
        edit.apply_settings(&[
            ("/superuserIPs", json!([])),
            ("/trustedProxy/headers", json!([])),
            ("/trustedProxy/useLeftmostIP", json!(false)),
        ])
    })?;
    let connection = open_within(path, Access::Write, Budget::WHOLE)?;
    connection.execute_batch("VACUUM").map_err(|source| classify(path, source))?;
    connection.close().map_err(|(_, source)| classify(path, source))
}

/// Rows per table that is not `PocketBase`'s own bookkeeping: for comparing a copy with its original.
pub fn counts(path: &Path) -> Result<HashMap<String, u64>, Error> {
    look_within(path, Budget::WHOLE, |connection| {
        bounds::plain(connection, "_collections")?;
        let mut statement = connection.prepare("SELECT name FROM _collections WHERE type <> 'view'")?;
        let tables: Vec<String> = bounds::few(statement.query_map([], |row| row.get(0))?)?;
        let mut found = HashMap::new();
        for table in tables {
            let sql = format!("SELECT count(*) FROM {}", quoted(&table));
            let count: i64 = connection.query_row(&sql, [], |row| row.get(0))?;
            found.insert(table, count.unsigned_abs());
        }
        Ok(found)
    })
}

/// Whether a file is a `PocketBase` database that opens.
pub fn is_database(path: &Path) -> Result<(), Error> {
    let connection = open(path, Access::Read)?;
    let read = connection.query_row("SELECT count(*) FROM _collections", [], |row| row.get::<_, i64>(0));
    read.map(drop).map_err(|error| at(path, EditError::from(error)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn database(path: &Path) -> Connection {
        let connection = Connection::open(path).unwrap();
        connection
            .execute_batch(
                r#"PRAGMA journal_mode = WAL;
                CREATE TABLE _collections (id TEXT, type TEXT, name TEXT, fields JSON);
                CREATE TABLE notes (id TEXT PRIMARY KEY, cover TEXT DEFAULT '' NOT NULL, files JSON DEFAULT '[]');
                INSERT INTO _collections VALUES ('c', 'base', 'notes',
                    '[{"name":"cover","type":"file"},{"name":"files","type":"file"},{"name":"id","type":"text"}]');
                INSERT INTO notes VALUES ('r', 'one.png', '["two.txt","three.txt"]'), ('s', '', '[]');"#,
            )
            .unwrap();
        connection
    }

    #[test]
    fn a_copy_holds_what_the_log_holds_and_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        let (path, copy) = (root.join("da?ta.db"), root.join("copy.db"));
        let open = database(&path);
        vacuum_into(&path, &copy, Served::Yes, Duration::from_secs(30)).unwrap();
        check(&copy).unwrap();
        assert_eq!(counts(&copy).unwrap()["notes"], 2);
        drop(open);
        let before: Vec<_> = std::fs::read_dir(&root).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        vacuum_into(&path, &root.join("second.db"), Served::No, Duration::from_secs(30)).unwrap();
        assert_eq!(std::fs::read(&copy).unwrap(), std::fs::read(root.join("second.db")).unwrap(), "the same content");
        assert_eq!(std::fs::read_dir(&root).unwrap().count(), before.len() + 1, "no log is left");
    }

    #[test]
    fn a_link_a_folder_and_garbage_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        drop(database(&root.join("data.db")));
        std::os::unix::fs::symlink(root.join("data.db"), root.join("link.db")).unwrap();
        std::fs::create_dir(root.join("folder.db")).unwrap();
        std::fs::write(root.join("garbage.db"), [7; 4096]).unwrap();
        for name in ["link.db", "folder.db", "garbage.db", "absent.db"] {
            let outcome = vacuum_into(&root.join(name), &root.join("to"), Served::No, Duration::from_secs(30));
            assert!(outcome.is_err(), "{name}");
            assert!(!root.join("to").exists(), "{name}");
        }
    }

    #[test]
    fn files_are_named_one_by_one_or_in_lists() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data.db");
        drop(database(&path));
        let mut found = Vec::new();
        named_files(&path, |name| {
            found.push(name.to_owned());
            true
        })
        .unwrap();
        assert_eq!(found, ["storage/c/r/one.png", "storage/c/r/two.txt", "storage/c/r/three.txt"]);
    }

    #[test]
    fn references_to_nothing_are_found() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data.db");
        let connection = Connection::open(&path).unwrap();
        let sql = "PRAGMA foreign_keys = OFF; CREATE TABLE a (id INTEGER PRIMARY KEY);
                   CREATE TABLE b (a REFERENCES a (id)); INSERT INTO b VALUES (7);";
        connection.execute_batch(sql).unwrap();
        drop(connection);
        assert!(check(&path).unwrap_err().to_string().contains("refers to none of a"));
    }
}
