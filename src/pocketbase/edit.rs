//! What can be changed in an instance's database, within the one transaction of
//! [`edit`](crate::pocketbase::database::edit).

use std::fmt;

use rand::distr::Alphanumeric;
use rand::distr::SampleString;
use rusqlite::Connection;
use rusqlite::OptionalExtension;
use rusqlite::ToSql;
use rusqlite::named_params;
use rusqlite::params;
use serde_json::Map;
use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::BorrowedFormatItem;
use time::macros::format_description;

use crate::ids::UserId;
use crate::pocketbase::bounds;
use crate::pocketbase::schema::Shared;

/// E-mail address of the row in `_superusers` that control tokens are minted for. It has no password.
pub const CONTROL_EMAIL: &str = "control@pocketfleet.invalid";

/// Length of secrets and token keys, as `PocketBase` itself makes them.
const SECRET_LENGTH: usize = 50;

/// `PocketBase`'s way to write a time: `2026-11-21 01:42:22.352Z`, always UTC.
const TIME: &[BorrowedFormatItem<'_>] =
    format_description!("[year]-[month]-[day] [hour]:[minute]:[second].[subsecond digits:3]Z");

/// Who an instance belongs to: the row in its `users` collection with the id of the global account.
#[derive(Clone, PartialEq, Eq)]
pub struct Owner {
    /// Id of the account.
    pub id: UserId,
    /// Its e-mail address at the time.
    pub email: String,
    /// Its name at the time, may be empty.
    pub name: String,
}

impl fmt::Debug for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Owner").field("id", &self.id).finish_non_exhaustive()
    }
}

/// Why a change within an edit failed; [`database::Error`](crate::pocketbase::database::Error) adds the file.
#[derive(Debug, thiserror::Error)]
pub enum EditError {
    /// Something that every `PocketBase` database has is not there.
    #[error("no {0}")]
    Missing(&'static str),
    /// More than may be.
    #[error("too much: {0}")]
    Beyond(&'static str),
    /// `SQLite` refused.
    #[error("sqlite refused")]
    Sqlite(#[from] rusqlite::Error),
}

/// An open transaction on an instance's database.
#[derive(Debug)]
pub struct Edit {
    pub(super) connection: Connection,
}

impl Edit {
    /// Opens the transaction. Dropping the value instead of committing it rolls everything back.
    pub(super) fn begin(connection: Connection) -> Result<Self, EditError> {
        connection.execute_batch("BEGIN IMMEDIATE")?;
        Ok(Self { connection })
    }

    /// Commits, and gives the connection back.
    pub(super) fn commit(self) -> Result<Connection, EditError> {
        self.connection.execute_batch("COMMIT")?;
        Ok(self.connection)
    }

    /// Gives every auth collection new token secrets and every auth record a new token key. All tokens die.
    pub fn rotate_secrets(&self) -> Result<(), EditError> {
        for (id, table) in self.auth_collections()? {
            self.rotate_collection(&id)?;
            let table = quoted(&table);
            let mut statement = self.connection.prepare(&format!("SELECT id FROM {table}"))?;
            let ids = bounds::few(statement.query_map([], |row| row.get::<_, String>(0))?)?;
            let mut update = self.connection.prepare(&format!("UPDATE {table} SET tokenKey = ?1 WHERE id = ?2"))?;
            for id in ids {
                update.execute(params![secret(), id])?;
            }
        }
        Ok(())
    }

    /// Replaces every secret and token key that the database has in common with another one, and removes superusers
    /// that are not among `superusers`. For a database that migrations were run on: what they write is the same in
    /// every instance, and must neither sign tokens nor sign anybody in.
    pub fn unshare(&self, shared: &Shared, superusers: &[String]) -> Result<(), EditError> {
        for (id, table) in self.auth_collections()? {
            let options: String = self.connection.query_row(
                "SELECT CAST(options AS TEXT) FROM _collections WHERE id = ?1",
                [&id],
                |row| row.get(0),
            )?;
            if shared.has_secret_of(&options) {
                self.rotate_collection(&id)?;
            }
            let sql = format!("UPDATE {} SET tokenKey = ?1 WHERE tokenKey = ?2", quoted(&table));
            let mut update = self.connection.prepare(&sql)?;
            for key in shared.token_keys() {
                update.execute(params![secret(), key])?;
            }
        }
        let known = serde_json::to_string(superusers).unwrap_or_default();
        self.connection
            .execute("DELETE FROM _superusers WHERE id NOT IN (SELECT value FROM json_each(?1))", [known])?;
        Ok(())
    }

    /// Inserts or updates the owner's row in the auth collection `users`. Its token key stays when it exists.
    pub fn set_owner(&self, users: &str, owner: &Owner) -> Result<(), EditError> {
        let table = quoted(users);
        let now = timestamp();
        let key = secret();
        // A template may have dropped columns, and may have added some: those have defaults.
        let existing = columns(&self.connection, users)?;
        if !existing.iter().any(|column| column == "id") {
            return Err(EditError::Missing("users collection"));
        }
        let values: [(&str, &dyn ToSql); 9] = [
            ("id", &owner.id.as_str()),
            ("tokenKey", &key),
            ("password", &""),
            ("emailVisibility", &false),
            ("created", &now),
            ("email", &owner.email),
            ("name", &owner.name),
            ("verified", &true),
            ("updated", &now),
        ];
        let used: Vec<_> = values.iter().filter(|(column, _)| existing.iter().any(|name| name == column)).collect();
        let names: Vec<_> = used.iter().map(|(column, _)| quoted(column)).collect();
        let marks: Vec<_> = (1..=used.len()).map(|n| format!("?{n}")).collect();
        // What made the row's tokens valid stays as it is when the row exists.
        let kept = ["id", "tokenKey", "password", "emailVisibility", "created"];
        let updates: Vec<_> = used
            .iter()
            .filter(|(column, _)| !kept.contains(column))
            .map(|(column, _)| format!("{0} = excluded.{0}", quoted(column)))
            .collect();
        let action =
            if updates.is_empty() { "NOTHING".to_owned() } else { format!("UPDATE SET {}", updates.join(", ")) };
        let sql = format!(
            "INSERT INTO {table} ({}) VALUES ({}) ON CONFLICT (id) DO {action}",
            names.join(", "),
            marks.join(", ")
        );
        let bound: Vec<&dyn ToSql> = used.iter().map(|(_, value)| *value).collect();
        self.connection.execute(&sql, bound.as_slice())?;
        Ok(())
    }

    /// Leaves exactly one superuser, which has no password.
    pub fn install_superuser(&self) -> Result<(), EditError> {
        let now = timestamp();
        self.connection.execute("DELETE FROM _superusers", [])?;
        self.connection.execute(
            "INSERT INTO _superusers (id, email, emailVisibility, password, tokenKey, verified, created, updated)
             VALUES (?1, ?2, FALSE, '', ?3, TRUE, ?4, ?4)",
            params![record_id(), CONTROL_EMAIL, secret(), now],
        )?;
        self.lock_superusers()
    }

    /// Nobody signs in as a superuser, so nothing may be mailed about one and no password is worth checking.
    pub fn lock_superusers(&self) -> Result<(), EditError> {
        self.connection.execute("UPDATE _superusers SET password = '' WHERE password <> ''", [])?;
        self.connection.execute(
            "UPDATE _collections SET options = json_set(CAST(options AS TEXT),
                 '$.authAlert.enabled', json('false'), '$.passwordAuth.enabled', json('false'))
             WHERE name = '_superusers'",
            [],
        )?;
        Ok(())
    }

    /// Leaves no superuser, and lets the next one have a password.
    pub fn remove_superusers(&self) -> Result<(), EditError> {
        self.connection.execute("DELETE FROM _superusers", [])?;
        self.connection.execute(
            "UPDATE _collections SET options = json_set(CAST(options AS TEXT),
                 '$.authAlert.enabled', json('true'), '$.passwordAuth.enabled', json('true'))
             WHERE name = '_superusers'",
            [],
        )?;
        Ok(())
    }

    /// Sets values of the stored settings, each named by a JSON pointer such as `/logs/minLevel`.
    pub fn apply_settings(&self, settings: &[(&str, Value)]) -> Result<(), EditError> {
        let sql = "SELECT CAST(value AS TEXT) FROM _params WHERE id = 'settings'";
        let text: Option<String> = self.connection.query_row(sql, [], |row| row.get(0)).optional()?;
        let text = text.ok_or(EditError::Missing("settings"))?;
        // Encrypted settings are base64 text, not JSON.
        let mut stored: Value = serde_json::from_str(&text).map_err(|_| EditError::Missing("readable settings"))?;
        for (pointer, value) in settings {
            set(&mut stored, pointer, value.clone()).ok_or(EditError::Missing("such setting"))?;
        }
        let sql = "UPDATE _params SET value = ?1, updated = ?2 WHERE id = 'settings'";
        self.connection.execute(sql, params![stored.to_string(), timestamp()])?;
        Ok(())
    }

    fn rotate_collection(&self, id: &str) -> rusqlite::Result<()> {
        self.connection.execute(
            "UPDATE _collections SET options = json_set(CAST(options AS TEXT),
                 '$.authToken.secret', :auth, '$.passwordResetToken.secret', :reset,
                 '$.emailChangeToken.secret', :email, '$.verificationToken.secret', :verification,
                 '$.fileToken.secret', :file) WHERE id = :id",
            named_params! {
                ":auth": secret(), ":reset": secret(), ":email": secret(), ":verification": secret(),
                ":file": secret(), ":id": id,
            },
        )?;
        Ok(())
    }

    fn auth_collections(&self) -> Result<Vec<(String, String)>, EditError> {
        bounds::plain(&self.connection, "_collections")?;
        let mut statement = self.connection.prepare("SELECT id, name FROM _collections WHERE type = 'auth'")?;
        bounds::few(statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?)
    }
}

/// The columns of a table; none when there is no such table.
pub(super) fn columns(connection: &Connection, table: &str) -> rusqlite::Result<Vec<String>> {
    let mut statement = connection.prepare("SELECT name FROM pragma_table_info(?1)")?;
    statement.query_map([table], |row| row.get(0))?.collect()
}

/// Sets the value at a JSON pointer; its parent must be an object that exists.
fn set(root: &mut Value, pointer: &str, value: Value) -> Option<()> {
    let (parent, key) = pointer.rsplit_once('/')?;
    let parent: &mut Map<String, Value> = root.pointer_mut(parent)?.as_object_mut()?;
    parent.insert(key.to_owned(), value);
    Some(())
}

/// Random letters and digits from the thread's cryptographic generator.
pub(super) fn secret() -> String {
    Alphanumeric.sample_string(&mut rand::rng(), SECRET_LENGTH)
}

/// A record id in `PocketBase`'s alphabet.
fn record_id() -> String {
    let mut id = Alphanumeric.sample_string(&mut rand::rng(), 15);
    id.make_ascii_lowercase();
    id
}

pub(super) fn timestamp() -> String {
    // The format has only components that every time has, so it cannot fail; an empty time is what PocketBase
    // itself stores for "unknown".
    OffsetDateTime::now_utc().format(TIME).unwrap_or_default()
}

/// Quotes a table or column name for SQL.
pub(super) fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}
