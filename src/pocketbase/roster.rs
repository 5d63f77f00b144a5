//! The rows that an instance's `users` collection must have, and bringing them in step.
//!
//! Whoever may act in an instance has a row with the id of their account, so that `@request.auth.id` means the same
//! everywhere. The rows that are made here carry a password that no password is: nobody signs in by it, an app's own
//! users are told from them by it, and unlike an empty one it does not keep `PocketBase` from saving the row.
//!
//! Invariant: no row is ever deleted, because an app's records refer to it and could go with it. One who is let in no
//! more loses the key of their tokens, their role and their mark of verification.

use std::collections::HashMap;
use std::collections::HashSet;
use std::path::Path;

use rusqlite::Connection;
use rusqlite::params;

use super::bounds;
use super::bounds::Most;
use super::database;
use super::database::Durability;
use super::database::Error;
use super::database::Signers;
use super::database::USERS;
use super::edit::Edit;
use super::edit::EditError;
use super::edit::Owner;
use super::edit::columns;
use super::edit::quoted;
use super::edit::secret;
use super::edit::timestamp;

/// A password hash that no password has.
const UNUSABLE: &str = "!";

/// The field that tells an app's own rules what somebody is in a workspace; templates may have it.
const ROLE: &str = "member_role";

/// Somebody who may act in an instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// The account.
    pub account: Owner,
    /// What they are there; empty where that means nothing.
    pub member_role: &'static str,
}

/// All who may act in an instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Roster {
    /// Their rows.
    pub rows: Vec<Row>,
    /// Whether people come and go: then rows of others are shut out, and roles are written. A personal instance has one
    /// row and is otherwise left alone.
    pub is_shared: bool,
}

/// A row as it stands.
struct Found {
    password: String,
    email: String,
    name: Option<String>,
    is_verified: bool,
    role: Option<String>,
}

impl Found {
    /// Whether the row was made here, and not by a sign-up in the app.
    fn is_ours(&self) -> bool {
        self.password.is_empty() || self.password == UNUSABLE
    }
}

/// What has to be done.
#[derive(Debug, Default, PartialEq, Eq)]
struct Plan {
    upserts: Vec<Row>,
    revoked: Vec<String>,
}

/// Brings the rows in step and reads the keys; the changed rows' ids come with them. When the rows are in step, which
/// is the rule, nothing is written.
///
/// Works on the file of a running instance too: it does not cache records. Its subscribers learn nothing of it.
pub fn enroll(path: &Path, wanted: &Roster) -> Result<(Signers, Vec<String>), Error> {
    let (mut signers, stale) =
        database::read(path, |connection| plan_for(connection, wanted).map(|plan| plan.is_some()))?;
    let mut changed = Vec::new();
    if stale {
        database::edit(path, Durability::Synced, |edit| {
            changed = edit.enroll(wanted)?;
            signers = database::signers_in(&edit.connection)?;
            Ok(())
        })?;
    }
    if wanted.is_shared {
        let ids: HashSet<_> = wanted.rows.iter().map(|row| &row.account.id).collect();
        signers.users.retain(|user, _| ids.contains(user));
    }
    Ok((signers, changed))
}

impl Edit {
    /// Brings the rows of `users` in step; returns the ids of those that changed.
    fn enroll(&self, wanted: &Roster) -> Result<Vec<String>, EditError> {
        let Some(plan) = plan_for(&self.connection, wanted)? else { return Ok(Vec::new()) };
        let (table, now) = (quoted(USERS), timestamp());
        let has_role = columns(&self.connection, USERS)?.iter().any(|column| column == ROLE);
        let role = if has_role { format!(", {ROLE} = ?3") } else { String::new() };
        let free = format!(
            "UPDATE {table} SET email = '' WHERE email = ?1 COLLATE NOCASE AND id <> ?2 AND password IN ('', ?3)"
        );
        for Row { account, member_role } in &plan.upserts {
            // An address that went from one account to another; the other row follows in its turn, or is shut out.
            self.connection.execute(&free, params![account.email, account.id.as_str(), UNUSABLE])?;
            self.set_owner(USERS, account)?;
            if !wanted.is_shared {
                continue;
            }
            let key = format!("UPDATE {table} SET tokenKey = ?1 WHERE id = ?2 AND password NOT IN ('', ?3)");
            self.connection.execute(&key, params![secret(), account.id.as_str(), UNUSABLE])?;
            let sql = format!("UPDATE {table} SET password = ?1{role} WHERE id = ?2");
            let id = account.id.as_str();
            if has_role {
                self.connection.execute(&sql, params![UNUSABLE, id, member_role])?;
            } else {
                self.connection.execute(&sql, params![UNUSABLE, id])?;
            }
        }
        let role = if has_role { format!(", {ROLE} = ''") } else { String::new() };
        let sql = format!(
            "UPDATE {table} SET tokenKey = ?1, password = ?2, verified = FALSE, updated = ?3{role} WHERE id = ?4"
        );
        for id in &plan.revoked {
            self.connection.execute(&sql, params![secret(), UNUSABLE, now, id])?;
        }
        let upserted = plan.upserts.iter().map(|row| row.account.id.as_str().to_owned());
        Ok(upserted.chain(plan.revoked.iter().cloned()).collect())
    }
}

/// What has to be done in this database; none when everything is as it should be.
fn plan_for(connection: &Connection, wanted: &Roster) -> Result<Option<Plan>, EditError> {
    let existing = columns(connection, USERS)?;
    if existing.is_empty() {
        // A template without such a collection lets nobody act in its instances, which is its own affair.
        return Ok(None);
    }
    bounds::plain(connection, USERS)?;
    let has = |column: &str| existing.iter().any(|name| name == column);
    let text = |column: &str| if has(column) { format!("COALESCE({}, '')", quoted(column)) } else { "NULL".to_owned() };
    let sql = format!(
        "SELECT id, password, COALESCE(email, ''), {}, verified, {} FROM {}",
        text("name"),
        text(ROLE),
        quoted(USERS)
    );
    let mut statement = connection.prepare(&sql)?;
    let mut rows = statement.query([])?;
    let (mut found, mut most) = (HashMap::new(), Most::default());
    while let Some(row) = rows.next()? {
        let id: String = row.get(0)?;
        let one = Found {
            password: row.get(1)?,
            email: row.get(2)?,
            name: row.get(3)?,
            is_verified: row.get(4)?,
            role: row.get(5)?,
        };
        let more = [&one.name, &one.role].into_iter().flatten();
        most.take([&id, &one.password, &one.email].into_iter().chain(more))?;
        found.insert(id, one);
    }
    let plan = plan(&found, wanted);
    Ok((plan != Plan::default()).then_some(plan))
}

/// Pure: what has to be done to the rows as they are.
fn plan(found: &HashMap<String, Found>, wanted: &Roster) -> Plan {
    let foreign = found.iter().filter(|(_, row)| !row.is_ours() && !row.email.is_empty());
    let foreign: HashMap<String, &String> = foreign.map(|(id, row)| (row.email.to_lowercase(), id)).collect();
    let mut plan = Plan::default();
    for row in &wanted.rows {
        let mut row = row.clone();
        // An address that one of the app's own users has stays theirs.
        if foreign.get(&row.account.email.to_lowercase()).is_some_and(|id| **id != *row.account.id.as_str()) {
            row.account.email.clear();
        }
        let in_step = found.get(row.account.id.as_str()).is_some_and(|found| {
            let same_role = found.role.as_ref().is_none_or(|role| role == row.member_role);
            found.email == row.account.email
                && found.name.as_ref().is_none_or(|name| *name == row.account.name)
                && found.is_verified
                && (!wanted.is_shared || (found.password == UNUSABLE && same_role))
        });
        if !in_step {
            plan.upserts.push(row);
        }
    }
    if wanted.is_shared {
        let wanted: HashSet<&str> = wanted.rows.iter().map(|row| row.account.id.as_str()).collect();
        let is_open = |row: &Found| row.is_verified || row.role.as_ref().is_some_and(|role| !role.is_empty());
        let others = found.iter().filter(|(id, row)| row.is_ours() && is_open(row) && !wanted.contains(id.as_str()));
        plan.revoked = others.map(|(id, _)| id.clone()).collect();
    }
    plan
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::UserId;

    fn row(id: &str, email: &str, member_role: &'static str) -> Row {
        let account = Owner { id: UserId::parse(id).unwrap(), email: email.into(), name: id.to_uppercase() };
        Row { account, member_role }
    }

    fn shared(rows: &[Row]) -> Roster {
        Roster { rows: rows.to_vec(), is_shared: true }
    }

    fn database(path: &Path) {
        let connection = Connection::open(path).unwrap();
        connection
            .execute_batch(
                r#"PRAGMA journal_mode=WAL;
                CREATE TABLE _collections (id TEXT PRIMARY KEY, type TEXT, name TEXT, options JSON);
                CREATE TABLE _superusers (id TEXT PRIMARY KEY, tokenKey TEXT, email TEXT);
                CREATE TABLE users (id TEXT PRIMARY KEY NOT NULL, email TEXT DEFAULT '' NOT NULL,
                    emailVisibility BOOLEAN DEFAULT FALSE NOT NULL, password TEXT DEFAULT '' NOT NULL,
                    tokenKey TEXT DEFAULT '' NOT NULL, verified BOOLEAN DEFAULT FALSE NOT NULL, name TEXT DEFAULT '' NOT NULL,
                    member_role TEXT DEFAULT '' NOT NULL, created TEXT DEFAULT '' NOT NULL, updated TEXT DEFAULT '' NOT NULL);
                CREATE UNIQUE INDEX email ON users (email) WHERE email != '';
                CREATE UNIQUE INDEX token_key ON users (tokenKey);
                INSERT INTO _collections VALUES ('s', 'auth', '_superusers', '{"authToken":{"secret":"x"}}'),
                    ('u', 'auth', 'users', '{"authToken":{"secret":"x"}}');
                INSERT INTO _superusers VALUES ('root', 'k', 'control@pocketfleet.invalid');"#,
            )
            .unwrap();
    }

    fn rows(path: &Path) -> Vec<String> {
        let connection = Connection::open(path).unwrap();
        let sql =
            "SELECT id||':'||email||':'||name||':'||member_role||':'||verified||':'||password FROM users ORDER BY id";
        let mut statement = connection.prepare(sql).unwrap();
        statement.query_map([], |row| row.get(0)).unwrap().collect::<Result<_, _>>().unwrap()
    }

    fn key(path: &Path, id: &str) -> String {
        let connection = Connection::open(path).unwrap();
        connection.query_row("SELECT tokenKey FROM users WHERE id = ?1", [id], |row| row.get(0)).unwrap()
    }

    #[test]
    fn rows_follow_the_members_and_nothing_is_written_twice() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data.db");
        database(&path);
        let first = shared(&[row("ada", "a@x.y", "owner"), row("bob", "b@x.y", "member")]);
        let (signers, changed) = enroll(&path, &first).unwrap();
        assert_eq!((signers.users.len(), changed), (2, vec!["ada".to_owned(), "bob".to_owned()]));
        assert_eq!(rows(&path), ["ada:a@x.y:ADA:owner:1:!", "bob:b@x.y:BOB:member:1:!"]);
        assert_eq!(enroll(&path, &first).unwrap().1, Vec::<String>::new());

        // Addresses change hands, a role changes: keys stay.
        let keys = (key(&path, "ada"), key(&path, "bob"));
        let swapped = shared(&[row("ada", "b@x.y", "owner"), row("bob", "a@x.y", "guest")]);
        enroll(&path, &swapped).unwrap();
        assert_eq!(rows(&path), ["ada:b@x.y:ADA:owner:1:!", "bob:a@x.y:BOB:guest:1:!"]);
        assert_eq!((key(&path, "ada"), key(&path, "bob")), keys);

        // One goes: the row stays, shut out, and gives up its address to whoever has it now.
        let (signers, changed) = enroll(&path, &shared(&[row("ada", "b@x.y", "owner")])).unwrap();
        assert_eq!((signers.users.len(), changed), (1, vec!["bob".to_owned()]));
        assert_eq!(rows(&path), ["ada:b@x.y:ADA:owner:1:!", "bob:a@x.y:BOB::0:!"]);
        assert_ne!(key(&path, "bob"), keys.1);
        enroll(&path, &shared(&[row("ada", "b@x.y", "owner"), row("cyd", "a@x.y", "member")])).unwrap();
        assert_eq!(rows(&path)[1..], ["bob::BOB::0:!", "cyd:a@x.y:CYD:member:1:!"]);
    }

    #[test]
    fn users_of_the_app_itself_are_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data.db");
        database(&path);
        let connection = Connection::open(&path).unwrap();
        connection
            .execute_batch(
                "INSERT INTO users (id, email, password, tokenKey, verified) VALUES
                 ('own', 'A@x.y', '$2a$10$hash', 'own-key', 1), ('ada', 'z@x.y', '$2a$10$hash', 'ada-key', 1);",
            )
            .unwrap();
        drop(connection);
        let wanted = shared(&[row("ada", "a@x.y", "owner")]);
        let (signers, _) = enroll(&path, &wanted).unwrap();
        assert_eq!(rows(&path), ["ada::ADA:owner:1:!", "own:A@x.y:::1:$2a$10$hash"]);
        assert_eq!(signers.users.len(), 1, "no token is made for them");
        assert_ne!(key(&path, "ada"), "ada-key", "whoever chose a member's id has no valid token any more");
        assert_eq!(key(&path, "own"), "own-key");
        assert_eq!(enroll(&path, &wanted).unwrap().1, Vec::<String>::new());
    }

    #[test]
    fn a_personal_instance_follows_its_owners_name_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data.db");
        database(&path);
        let personal = |email| Roster { rows: vec![row("ada", email, "")], is_shared: false };
        enroll(&path, &personal("a@x.y")).unwrap();
        let before = key(&path, "ada");
        let connection = Connection::open(&path).unwrap();
        connection.execute_batch("INSERT INTO users (id, tokenKey, verified) VALUES ('helper', 'k', 1)").unwrap();
        drop(connection);
        assert_eq!(enroll(&path, &personal("new@x.y")).unwrap().1, ["ada"]);
        assert_eq!(rows(&path), ["ada:new@x.y:ADA::1:", "helper::::1:"]);
        assert_eq!(key(&path, "ada"), before);
        assert_eq!(enroll(&path, &personal("new@x.y")).unwrap().0.users.len(), 2);
    }
}
