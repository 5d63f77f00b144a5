//! Looks at databases that another process serves, as questions to a process of ours that does nothing else.
//!
//! Who reads a database beside its writer shares memory with it: the index of the log is mapped from a file that the
//! tenant may cut short at any time, which ends whoever touches it (SIGBUS). And nothing interrupts a function of
//! `SQLite` that takes for ever. Both may only meet a process that can be spared: `supervisor` starts it and gives it its
//! time. Keys go through its pipes in clear, and nowhere else.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;
use std::time::SystemTime;

use serde::Deserialize;
use serde::Serialize;

use crate::ids::UserId;
use crate::pocketbase::copy;
use crate::pocketbase::copy::Served;
use crate::pocketbase::database;
use crate::pocketbase::database::Error;
use crate::pocketbase::database::Owner;
use crate::pocketbase::database::Signers;
use crate::pocketbase::roster;
use crate::pocketbase::roster::Roster;
use crate::pocketbase::roster::Row;
use crate::pocketbase::token::Key;
use crate::pocketbase::token::Signer;
use crate::pocketbase::visitors;

/// A question about one database.
#[derive(Serialize, Deserialize)]
pub struct Ask {
    path: PathBuf,
    what: What,
}

/// What is asked or done.
#[derive(Serialize, Deserialize)]
enum What {
    Superuser,
    Signers,
    Enroll { rows: Vec<PlainRow>, is_shared: bool },
    Accepts { token: String, now: SystemTime },
    Copy { to: PathBuf, served: Served, limit: Duration },
}

/// The answer to it.
#[derive(Serialize, Deserialize)]
pub enum Told {
    /// Keys, and the ids of rows that changed.
    Keys(Keys, Vec<String>),
    /// Whether a token is accepted.
    Accepts(bool),
    /// The copy is there.
    Copied,
    /// It failed.
    Failed(Plain),
}

impl fmt::Debug for Ask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ask").field("path", &self.path).finish_non_exhaustive()
    }
}

impl fmt::Debug for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Told").finish_non_exhaustive()
    }
}

#[derive(Serialize, Deserialize)]
struct PlainRow {
    id: UserId,
    email: String,
    name: String,
    role: String,
}

/// [`Signers`] in clear.
#[derive(Serialize, Deserialize)]
pub struct Keys {
    superuser: PlainSigner,
    superuser_files: Option<PlainSigner>,
    users: Vec<(UserId, PlainSigner)>,
    files: Vec<(UserId, PlainSigner)>,
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keys").finish_non_exhaustive()
    }
}

#[derive(Serialize, Deserialize)]
struct PlainSigner(String, String, String);

/// An [`Error`] without its path.
#[derive(Debug, Serialize, Deserialize)]
pub enum Plain {
    #[expect(missing_docs, reason = "the names are those of the error")]
    NoFile,
    #[expect(missing_docs, reason = "the names are those of the error")]
    NotADatabase,
    #[expect(missing_docs, reason = "the names are those of the error")]
    Damaged(String),
    #[expect(missing_docs, reason = "the names are those of the error")]
    Missing(String),
    #[expect(missing_docs, reason = "the names are those of the error")]
    Beyond(String),
    #[expect(missing_docs, reason = "the names are those of the error")]
    Io(String),
    #[expect(missing_docs, reason = "the names are those of the error")]
    Sqlite(i32, String),
}

impl Ask {
    /// As [`database::superuser`].
    pub fn superuser(path: &Path) -> Self {
        Self { path: path.to_owned(), what: What::Superuser }
    }

    /// As [`database::signers`].
    pub fn signers(path: &Path) -> Self {
        Self { path: path.to_owned(), what: What::Signers }
    }

    /// As [`roster::enroll`].
    pub fn enroll(path: &Path, wanted: &Roster) -> Self {
        let plain = |row: &Row| PlainRow {
            id: row.account.id.clone(),
            email: row.account.email.clone(),
            name: row.account.name.clone(),
            role: row.member_role.to_owned(),
        };
        let what = What::Enroll { rows: wanted.rows.iter().map(plain).collect(), is_shared: wanted.is_shared };
        Self { path: path.to_owned(), what }
    }

    /// As [`visitors::accepts`].
    pub fn accepts(path: &Path, token: &str, now: SystemTime) -> Self {
        Self { path: path.to_owned(), what: What::Accepts { token: token.to_owned(), now } }
    }

    /// As [`copy::vacuum_into`].
    pub fn copy(path: &Path, to: &Path, served: Served, limit: Duration) -> Self {
        Self { path: path.to_owned(), what: What::Copy { to: to.to_owned(), served, limit } }
    }

    /// The database.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The folders that answering it works in.
    pub fn folders(&self) -> Vec<PathBuf> {
        let to = if let What::Copy { to, .. } = &self.what { Some(to) } else { None };
        [Some(&self.path), to].into_iter().flatten().filter_map(|path| path.parent()).map(Path::to_owned).collect()
    }

    /// Answers it, in this process: one that can be spared.
    pub fn answer(self) -> Told {
        let Self { path, what } = self;
        let keys = |signers: Signers, changed| Told::Keys(Keys::from(signers), changed);
        let told = match what {
            What::Superuser => database::superuser(&path).map(|superuser| {
                let (users, files) = (HashMap::new(), HashMap::new());
                keys(Signers { superuser, superuser_files: None, users, files }, Vec::new())
            }),
            What::Signers => database::signers(&path).map(|signers| keys(signers, Vec::new())),
            What::Enroll { rows, is_shared } => {
                let row = |row: PlainRow| Row {
                    account: Owner { id: row.id, email: row.email, name: row.name },
                    // Of a few words, in a process that ends with the answer.
                    member_role: row.role.leak(),
                };
                let wanted = Roster { rows: rows.into_iter().map(row).collect(), is_shared };
                roster::enroll(&path, &wanted).map(|(signers, changed)| keys(signers, changed))
            }
            What::Accepts { token, now } => visitors::accepts(&path, &token, now).map(Told::Accepts),
            What::Copy { to, served, limit } => copy::vacuum_into(&path, &to, served, limit).map(|()| Told::Copied),
        };
        told.unwrap_or_else(|error| Told::Failed(Plain::from(error)))
    }
}

impl Told {
    /// The keys and the ids of changed rows.
    pub fn keys(self, path: &Path) -> Result<(Signers, Vec<String>), Error> {
        match self {
            Self::Keys(keys, changed) => Ok((keys.into(), changed)),
            other => Err(other.error(path)),
        }
    }

    /// Whether the token is accepted.
    pub fn accepted(self, path: &Path) -> Result<bool, Error> {
        match self {
            Self::Accepts(accepts) => Ok(accepts),
            other => Err(other.error(path)),
        }
    }

    /// Nothing, if the copy was made.
    pub fn copied(self, path: &Path) -> Result<(), Error> {
        match self {
            Self::Copied => Ok(()),
            other => Err(other.error(path)),
        }
    }

    fn error(self, path: &Path) -> Error {
        match self {
            Self::Failed(plain) => plain.at(path),
            _ => Error::Io { path: path.to_owned(), source: io::Error::other("the answer is to another question") },
        }
    }
}

impl From<Error> for Plain {
    fn from(error: Error) -> Self {
        match error {
            Error::NoFile { .. } => Self::NoFile,
            Error::NotADatabase { .. } => Self::NotADatabase,
            Error::Damaged { detail, .. } => Self::Damaged(detail),
            Error::Missing { what, .. } => Self::Missing(what.to_owned()),
            Error::Beyond { what, .. } => Self::Beyond(what.to_owned()),
            Error::Io { source, .. } => Self::Io(source.to_string()),
            Error::Sqlite { source, .. } => {
                let code = source.sqlite_error().map_or(rusqlite::ffi::SQLITE_ERROR, |error| error.extended_code);
                Self::Sqlite(code, source.to_string())
            }
        }
    }
}

impl Plain {
    fn at(self, path: &Path) -> Error {
        let path = path.to_owned();
        // Those are words of ours, which live as long as we do.
        let word =
            |text: &str, known: &[&'static str], other| known.iter().copied().find(|one| *one == text).unwrap_or(other);
        match self {
            Self::NoFile => Error::NoFile { path },
            Self::NotADatabase => Error::NotADatabase { path },
            Self::Damaged(detail) => Error::Damaged { path, detail },
            Self::Missing(what) => {
                let known =
                    ["superusers", "control superuser", "users collection", "plain table where PocketBase has one"];
                Error::Missing { path, what: word(&what, &known, "part that every PocketBase has") }
            }
            Self::Beyond(what) => Error::Beyond {
                path,
                what: word(&what, &["rows", "bytes in rows", "time", "a value's bytes"], "something"),
            },
            Self::Io(text) => Error::Io { path, source: io::Error::other(text) },
            Self::Sqlite(code, text) => {
                let source = rusqlite::Error::SqliteFailure(rusqlite::ffi::Error::new(code), Some(text));
                Error::Sqlite { path, source }
            }
        }
    }
}

impl From<Signer> for PlainSigner {
    fn from(signer: Signer) -> Self {
        Self(signer.collection_id, signer.record_id, signer.key.into_clear())
    }
}

impl From<PlainSigner> for Signer {
    fn from(PlainSigner(collection_id, record_id, key): PlainSigner) -> Self {
        Self { collection_id, record_id, key: Key::new(&key, "") }
    }
}

impl From<Signers> for Keys {
    fn from(signers: Signers) -> Self {
        let plain =
            |all: HashMap<UserId, Signer>| all.into_iter().map(|(user, signer)| (user, signer.into())).collect();
        Self {
            superuser: signers.superuser.into(),
            superuser_files: signers.superuser_files.map(PlainSigner::from),
            users: plain(signers.users),
            files: plain(signers.files),
        }
    }
}

impl From<Keys> for Signers {
    fn from(keys: Keys) -> Self {
        let whole =
            |all: Vec<(UserId, PlainSigner)>| all.into_iter().map(|(user, plain)| (user, plain.into())).collect();
        Self {
            superuser: keys.superuser.into(),
            superuser_files: keys.superuser_files.map(Signer::from),
            users: whole(keys.users),
            files: whole(keys.files),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_errors_come_back_as_they_went() {
        let signer = |id: &str| Signer { collection_id: "c".into(), record_id: id.into(), key: Key::new(id, "s") };
        let user = UserId::parse("ada").unwrap();
        let signers = Signers {
            superuser: signer("root"),
            superuser_files: Some(signer("files")),
            users: HashMap::from([(user.clone(), signer("ada"))]),
            files: HashMap::new(),
        };
        let text = serde_json::to_string(&Told::Keys(signers.into(), vec!["ada".into()])).unwrap();
        let (back, changed) = serde_json::from_str::<Told>(&text).unwrap().keys(Path::new("x")).unwrap();
        assert_eq!((back.users[&user].key.clone(), changed), (Key::new("ada", "s"), vec!["ada".to_owned()]));
        assert_eq!(back.superuser_files.unwrap().key, Key::new("files", "s"));

        let told = Ask::signers(Path::new("/nowhere/data.db")).answer();
        assert!(matches!(told.keys(Path::new("x")), Err(Error::NoFile { .. })));
        for (error, passes) in [(rusqlite::ffi::SQLITE_FULL, true), (rusqlite::ffi::SQLITE_CONSTRAINT, false)] {
            let source = rusqlite::Error::SqliteFailure(rusqlite::ffi::Error::new(error), None);
            let error = Error::Sqlite { path: PathBuf::new(), source };
            assert_eq!(Plain::from(error).at(Path::new("x")).may_pass(), passes);
        }
    }
}
