//! Whether a token is one of an instance's own users.
//!
//! An app with accounts of its own signs its visitors in itself, and its tokens pass through untouched. Before such a
//! token may wake the app it is checked here, from the database file, asleep or awake. The control superuser's tokens
//! and those of any other superuser are nobody's here. Limits: a collection's `authRule` is not looked at, as by
//! `PocketBase` itself after the sign-in.

use std::path::Path;
use std::time::SystemTime;

use rusqlite::Connection;
use rusqlite::OptionalExtension;

use super::bounds;
use super::database;
use super::database::Error;
use super::edit::EditError;
use super::edit::quoted;
use super::token::Claims;
use super::token::Key;
use super::token::Unverified;

/// Whether the instance whose database is at `path` would take this token, of the type `auth` or `file`, from anybody.
/// Reads the file; what cannot be a token costs nothing.
pub fn accepts(path: &Path, token: &str, now: SystemTime) -> Result<bool, Error> {
    let Ok(unverified) = Unverified::parse(token) else { return Ok(false) };
    let Some(secret) = secret_of(&unverified.claims().kind) else { return Ok(false) };
    let claims = unverified.claims().clone();
    let keys = database::look(path, |connection| keys(connection, &claims, secret))?;
    Ok(fits(&keys, token, now))
}

/// The same for a database that nobody serves, of which nothing but the file itself is looked at; none when there is a
/// log, and so perhaps somebody who serves it.
pub fn accepts_asleep(path: &Path, token: &str, now: SystemTime) -> Result<Option<bool>, Error> {
    let Ok(unverified) = Unverified::parse(token) else { return Ok(Some(false)) };
    let Some(secret) = secret_of(&unverified.claims().kind) else { return Ok(Some(false)) };
    let claims = unverified.claims().clone();
    let keys = database::look_asleep(path, |connection| keys(connection, &claims, secret))?;
    Ok(keys.map(|keys| fits(&keys, token, now)))
}

/// Whether a token was signed with one of these keys.
fn fits(keys: &[Key], token: &str, now: SystemTime) -> bool {
    // Parsed anew for each: a name of one collection may be the id of another.
    let fits = |key: &Key| Unverified::parse(token).is_ok_and(|token| token.verify(key, now).is_ok());
    keys.iter().any(fits)
}

/// Whether a text can be a valid token at all, as far as that can be told without its key: one that is worth a look.
pub fn may_be_token(token: &str, now: SystemTime) -> bool {
    Unverified::parse(token).is_ok_and(|token| secret_of(&token.claims().kind).is_some() && !token.is_expired(now))
}

/// Where a collection keeps the secret of this type of token.
fn secret_of(kind: &str) -> Option<&'static str> {
    match kind {
        "auth" => Some("$.authToken.secret"),
        "file" => Some("$.fileToken.secret"),
        _ => None,
    }
}

fn keys(connection: &Connection, claims: &Claims, secret: &str) -> Result<Vec<Key>, EditError> {
    bounds::plain(connection, "_collections")?;
    let mut statement = connection.prepare(
        "SELECT name, json_extract(CAST(options AS TEXT), ?2) FROM _collections
         WHERE type = 'auth' AND name <> '_superusers' AND (id = ?1 OR name = ?1)",
    )?;
    let found = statement.query_map([claims.collection_id.as_str(), secret], |row| {
        Ok((row.get::<_, String>(0)?, row.get::<_, Option<String>>(1)?))
    })?;
    let mut keys = Vec::new();
    for (name, secret) in bounds::few(found)? {
        bounds::plain(connection, &name)?;
        let sql = format!("SELECT tokenKey FROM {} WHERE id = ?1", quoted(&name));
        let key: Option<String> = connection.query_row(&sql, [&claims.id], |row| row.get(0)).optional()?;
        // Half a key could be forged by whoever knows the other half.
        if let (Some(secret), Some(key)) = (secret, key)
            && !secret.is_empty()
            && !key.is_empty()
        {
            keys.push(Key::new(&key, &secret));
        }
    }
    Ok(keys)
}
