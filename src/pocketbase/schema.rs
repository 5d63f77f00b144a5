//! What a `PocketBase` database says of its collections, and which of its secrets another one has as well.
//!
//! Read only. A database that a template's migrations made holds what *every* instance of the template would hold if
//! those migrations name a secret; [`Shared`] is that, to be compared with an instance's own.

use std::collections::HashSet;
use std::fmt;
use std::path::Path;

use serde::Serialize;
use serde_json::Value;

use crate::pocketbase::bounds;
use crate::pocketbase::bounds::Budget;
use crate::pocketbase::bounds::Most;
use crate::pocketbase::database;
use crate::pocketbase::database::Access;
use crate::pocketbase::database::EditError;
use crate::pocketbase::database::at;
use crate::pocketbase::database::open;
use crate::pocketbase::database::open_within;
use crate::pocketbase::edit::quoted;

/// The kinds of tokens that a collection has a secret for.
const TOKENS: [&str; 5] = ["authToken", "passwordResetToken", "emailChangeToken", "verificationToken", "fileToken"];

/// A collection and who may do what. A rule is none for "superusers only" and empty for "anybody".
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
#[expect(missing_docs, reason = "the names are PocketBase's own")]
pub struct Collection {
    pub name: String,
    #[serde(rename = "type")]
    pub kind: String,
    pub list_rule: Option<String>,
    pub view_rule: Option<String>,
    pub create_rule: Option<String>,
    pub update_rule: Option<String>,
    pub delete_rule: Option<String>,
}

impl Collection {
    /// The rules with the words that operators know them by.
    pub fn rules(&self) -> [(&'static str, Option<&str>); 5] {
        [
            ("list", self.list_rule.as_deref()),
            ("view", self.view_rule.as_deref()),
            ("create", self.create_rule.as_deref()),
            ("update", self.update_rule.as_deref()),
            ("delete", self.delete_rule.as_deref()),
        ]
    }
}

/// The collections that are not `PocketBase`'s own, by name.
pub fn collections(path: &Path) -> Result<Vec<Collection>, database::Error> {
    let connection = open(path, Access::Read)?;
    let read = || -> Result<Vec<Collection>, EditError> {
        bounds::plain(&connection, "_collections")?;
        let sql = "SELECT name, type, listRule, viewRule, createRule, updateRule, deleteRule
                   FROM _collections WHERE NOT system ORDER BY name";
        let mut statement = connection.prepare(sql)?;
        let rows = statement.query_map([], |row| {
            Ok(Collection {
                name: row.get(0)?,
                kind: row.get(1)?,
                list_rule: row.get(2)?,
                view_rule: row.get(3)?,
                create_rule: row.get(4)?,
                update_rule: row.get(5)?,
                delete_rule: row.get(6)?,
            })
        })?;
        bounds::few(rows)
    };
    read().map_err(|error| at(path, error))
}

/// The ids of all superusers.
pub fn superusers(path: &Path) -> Result<Vec<String>, database::Error> {
    let connection = open(path, Access::Read)?;
    let read = || -> Result<Vec<String>, EditError> {
        bounds::plain(&connection, "_superusers")?;
        let mut statement = connection.prepare("SELECT id FROM _superusers")?;
        bounds::few(statement.query_map([], |row| row.get(0))?)
    };
    read().map_err(|error| at(path, error))
}

/// The secrets of one database, for finding them in another one.
#[derive(Default)]
pub struct Shared {
    secrets: HashSet<String>,
    keys: Vec<String>,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

impl Shared {
    /// Reads the secrets of all auth collections and the token keys of all their records.
    pub fn of(path: &Path) -> Result<Self, database::Error> {
        let connection = open_within(path, Access::Read, Budget::EDIT)?;
        let read = || -> Result<Self, EditError> {
            bounds::plain(&connection, "_collections")?;
            let mut shared = Self::default();
            let sql = "SELECT name, CAST(options AS TEXT) FROM _collections WHERE type = 'auth'";
            let mut statement = connection.prepare(sql)?;
            let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
            let collections: Vec<(String, String)> = bounds::few(rows)?;
            let mut most = Most::default();
            for (name, options) in collections {
                bounds::plain(&connection, &name)?;
                shared.secrets.extend(secrets(&options));
                let mut keys = connection.prepare(&format!("SELECT tokenKey FROM {}", quoted(&name)))?;
                for key in keys.query_map([], |row| row.get(0))? {
                    let key: String = key?;
                    most.take([&key])?;
                    shared.keys.push(key);
                }
            }
            Ok(shared)
        };
        read().map_err(|error| at(path, error))
    }

    /// Whether an auth collection's options hold one of these secrets.
    pub(super) fn has_secret_of(&self, options: &str) -> bool {
        secrets(options).iter().any(|secret| self.secrets.contains(secret))
    }

    pub(super) fn token_keys(&self) -> &[String] {
        &self.keys
    }
}

fn secrets(options: &str) -> Vec<String> {
    let Ok(options) = serde_json::from_str::<Value>(options) else { return Vec::new() };
    let secret = |kind: &&str| options[*kind]["secret"].as_str().filter(|secret| !secret.is_empty()).map(str::to_owned);
    TOKENS.iter().filter_map(secret).collect()
}
