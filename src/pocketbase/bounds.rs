//! What a look at somebody else's database may cost.
//!
//! The process that serves a data directory may write any schema: a view that never ends in the place of `users`, a
//! million rows, a value of a gigabyte, a trigger that waits for our edits. So every connection counts the steps of its
//! statements and looks at the clock, views are closed, functions of the schema are not trusted, a name that we know is
//! read only where it is a plain table without computed columns, and what is collected has an end.
//!
//! Limit: a single function of `SQLite` is not interrupted. Short looks and edits therefore have small values and no
//! patterns; work on whole databases does not, and is done to copies.

use std::time::Duration;
use std::time::Instant;

use rusqlite::Connection;
use rusqlite::OptionalExtension;
use rusqlite::config::DbConfig;
use rusqlite::limits::Limit;

use crate::pocketbase::edit::EditError;

/// Steps of `SQLite`'s machine between two looks at the clock.
const STRIDE: u16 = 1_000;
/// Largest value, row or statement in short looks: `PocketBase` itself writes nothing near it.
const LARGEST: i32 = 16 << 20;
/// Longest pattern of `LIKE` and `GLOB` in them: the time of a longer one grows with a power of the text's length.
const PATTERN: i32 = 3;
/// Rows that are kept at once.
const ROWS: usize = 500_000;
/// Bytes of them.
const BYTES: usize = 128 << 20;

/// What all statements of a connection may take together.
#[derive(Debug, Clone, Copy)]
pub(super) struct Budget {
    steps: u64,
    time: Duration,
    /// Whether values are small and patterns short.
    is_short: bool,
}

impl Budget {
    /// A few records, or all rows of a collection of users.
    pub(super) const LOOK: Self = Self { steps: 200_000_000, time: Duration::from_secs(15), is_short: true };
    /// Changes to them.
    pub(super) const EDIT: Self = Self { steps: 1_000_000_000, time: Duration::from_mins(1), is_short: true };
    /// Every page of a database: as much as it takes, within a time.
    pub(super) const WHOLE: Self = Self { steps: u64::MAX, time: Duration::from_mins(15), is_short: false };
}

/// Binds a connection, and distrusts what it will read.
pub(super) fn set(connection: &mut Connection, budget: Budget) -> rusqlite::Result<()> {
    distrust(connection)?;
    if budget.is_short {
        connection.set_limit(Limit::SQLITE_LIMIT_LENGTH, LARGEST)?;
        connection.set_limit(Limit::SQLITE_LIMIT_LIKE_PATTERN_LENGTH, PATTERN)?;
    }
    let (end, mut strides) = (Instant::now() + budget.time, budget.steps / u64::from(STRIDE));
    let handler = move || {
        strides = strides.saturating_sub(1);
        strides == 0 || Instant::now() >= end
    };
    connection.progress_handler(i32::from(STRIDE), Some(handler))
}

/// Trusts the schema with nothing.
pub(super) fn distrust(connection: &Connection) -> rusqlite::Result<()> {
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_VIEW, false)?;
    Ok(())
}

/// Refuses what bears the name of a table and is a view, a virtual table, or has columns that are computed. A table that
/// is absent is the caller's affair.
pub(super) fn plain(connection: &Connection, table: &str) -> Result<(), EditError> {
    let sql = "SELECT type = 'table' AND rootpage > 0 AND upper(substr(sql, 1, 13)) = 'CREATE TABLE '
               FROM sqlite_schema WHERE name = ?1 COLLATE NOCASE AND type IN ('table', 'view')";
    let is_plain: Option<bool> = connection.query_row(sql, [table], |row| row.get(0)).optional()?;
    let computed = "SELECT count(*) FROM pragma_table_xinfo(?1) WHERE hidden <> 0";
    let is_computed = || connection.query_row(computed, [table], |row| row.get::<_, i64>(0));
    match is_plain {
        None => Ok(()),
        Some(true) if is_computed()? == 0 => Ok(()),
        Some(_) => Err(EditError::Missing("plain table where PocketBase has one")),
    }
}

/// Collects rows of short texts, of which there are few in any database that `PocketBase` made.
pub(super) fn few<T>(rows: impl Iterator<Item = rusqlite::Result<T>>) -> Result<Vec<T>, EditError> {
    let mut found = Vec::new();
    for row in rows {
        if found.len() == ROWS {
            return Err(EditError::Beyond("rows"));
        }
        found.push(row?);
    }
    Ok(found)
}

/// Counts what is kept.
#[derive(Debug, Default)]
pub(super) struct Most {
    rows: usize,
    bytes: usize,
}

impl Most {
    /// One more row, with these texts.
    pub(super) fn take<'a>(&mut self, texts: impl IntoIterator<Item = &'a String>) -> Result<(), EditError> {
        self.rows += 1;
        self.bytes = texts.into_iter().fold(self.bytes, |sum, text| sum.saturating_add(text.len()));
        match (self.rows > ROWS, self.bytes > BYTES) {
            (true, _) => Err(EditError::Beyond("rows")),
            (_, true) => Err(EditError::Beyond("bytes in rows")),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COLUMNS: &str = "id, tokenKey, email, name, verified, password";

    fn hostile(dir: &std::path::Path, what: &str) -> std::path::PathBuf {
        let path = dir.join(format!("{}.db", what.len()));
        let connection = Connection::open(&path).unwrap();
        let sql = format!(
            r#"CREATE TABLE _collections (id TEXT PRIMARY KEY, type TEXT, name TEXT, options JSON);
            CREATE TABLE _superusers (id TEXT PRIMARY KEY, tokenKey TEXT, email TEXT);
            INSERT INTO _collections VALUES ('s', 'auth', '_superusers', '{{"authToken":{{"secret":"x"}}}}'),
                ('u', 'auth', 'users', '{{"authToken":{{"secret":"x"}}}}');
            INSERT INTO _superusers VALUES ('root', 'k', 'control@pocketfleet.invalid');
            {what}"#
        );
        connection.execute_batch(&sql).unwrap();
        path
    }

    #[test]
    fn views_computed_columns_and_virtual_tables_are_no_users() {
        let dir = tempfile::tempdir().unwrap();
        let endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n)";
        for what in [
            format!(
                "CREATE VIEW users AS {endless} SELECT 'u' || i AS id, 'k' AS tokenKey, '' AS email, '' AS name, 1 AS verified, '' AS password FROM n;"
            ),
            "CREATE TABLE users (id, tokenKey AS (hex(zeroblob(1000000))), email, name, verified, password);"
                .to_owned(),
            format!("CREATE VIRTUAL TABLE users USING fts5({COLUMNS});"),
            format!(
                "DROP TABLE _collections; CREATE VIEW _collections AS {endless} SELECT i AS id, 'auth' AS type, 'x' AS name, '{{}}' AS options FROM n;"
            ),
            format!(
                "CREATE TABLE users ({COLUMNS}); DROP TABLE _superusers; CREATE VIEW _superusers AS {endless} SELECT i AS id, 'k' AS tokenKey, 'x' AS email FROM n;"
            ),
        ] {
            let path = hostile(dir.path(), &what);
            let refused = crate::pocketbase::database::signers(&path);
            assert!(matches!(refused, Err(crate::pocketbase::database::Error::Missing { .. })), "{what}: {refused:?}");
        }
    }

    #[test]
    fn what_does_not_end_is_interrupted_and_what_is_too_large_is_not_held() {
        let mut connection = Connection::open_in_memory().unwrap();
        set(&mut connection, Budget { steps: 100_000, time: Duration::from_mins(1), is_short: true }).unwrap();
        let endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n";
        let error = connection.query_row(endless, [], |_| Ok(())).unwrap_err();
        assert_eq!(error.sqlite_error_code(), Some(rusqlite::ErrorCode::OperationInterrupted));
        let mut connection = Connection::open_in_memory().unwrap();
        set(&mut connection, Budget { steps: u64::MAX, time: Duration::from_millis(1), is_short: true }).unwrap();
        assert!(connection.query_row(endless, [], |_| Ok(())).is_err(), "time as well");
        let mut connection = Connection::open_in_memory().unwrap();
        set(&mut connection, Budget::LOOK).unwrap();
        assert!(connection.query_row("SELECT length(zeroblob(100000000))", [], |_| Ok(())).is_err());
        assert!(connection.query_row("SELECT 'aaaaaaaa' LIKE '%a%a%a%b'", [], |_| Ok(())).is_err());

        let large = "x".repeat(1 << 20);
        let mut most = Most::default();
        assert!((0..200).try_for_each(|_| most.take([&large])).is_err());
        assert!(few((0..).map(Ok::<i32, rusqlite::Error>)).is_err());
    }

    #[test]
    fn a_trigger_that_waits_for_an_edit_ends_with_it() {
        use crate::pocketbase::database;
        let dir = tempfile::tempdir().unwrap();
        let what = format!(
            "CREATE TABLE users ({COLUMNS}); INSERT INTO users VALUES ('a', 'k', '', '', 0, '');
             CREATE TRIGGER wait AFTER UPDATE ON users BEGIN
                 INSERT INTO users (id) WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n)
                 SELECT max(i) FROM n;
             END;"
        );
        let path = hostile(dir.path(), &what);
        let budget = Budget { steps: 1_000_000, ..Budget::EDIT };
        let ended = database::edit_within(&path, database::Durability::Caller, budget, |edit| {
            Ok(edit.connection.execute("UPDATE users SET name = 'x'", []).map(drop)?)
        });
        assert!(matches!(ended, Err(database::Error::Beyond { .. })), "{ended:?}");
    }
}
