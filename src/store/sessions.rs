//! `session.<user>.<hash>`: which tokens are in use, so that they can be refused before they expire.
//!
//! Invariants: a session's status only ever moves on, from live over superseded to revoked; no token is stored, only
//! its hash. A record outlives its session until the token is dead by itself: without it the token would be taken for
//! one that was never seen, and adopted.

use std::fmt;
use std::net::IpAddr;
use std::ops::Bound;
use std::sync::Arc;

use futures_util::future::join_all;
use serde::Deserialize;
use serde::Serialize;
use sha2::Digest;
use sha2::Sha256;
use time::OffsetDateTime;

use super::Error;
use super::Store;
use super::table::Read;
use super::table::Step;
use super::table::Table;
use super::view::Record;
use crate::ids::UserId;

/// Longest device text, in characters.
const DEVICE_CHARS: usize = 200;
/// Records that are changed at once by the calls that change many.
const CONCURRENT_CHANGES: usize = 256;

/// SHA-256 of the token, in lowercase hex: names the session, reveals nothing.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SessionId(pub(crate) Arc<str>);

impl SessionId {
    /// The id of the session that a token belongs to.
    pub fn of(token: &str) -> Self {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let digest = Sha256::digest(token.as_bytes());
        let digits = digest.iter().flat_map(|byte| [byte >> 4, byte & 15]);
        let hex: String = digits.map(|digit| char::from(DIGITS[usize::from(digit)])).collect();
        Self(hex.into())
    }

    /// The id from its text: a SHA-256 in lowercase hex.
    pub fn parse(text: &str) -> Option<Self> {
        let is_hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        (text.len() == 64 && text.bytes().all(is_hex)).then(|| Self(text.into()))
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Whether the token is still taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// Yes.
    Live,
    /// Refreshed away: works until then, for requests already on their way.
    Superseded {
        /// The end of its grace.
        #[serde(with = "time::serde::rfc3339")]
        until: OffsetDateTime,
    },
    /// No, and never again.
    Revoked,
}

/// A token in use.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    /// The token's hash.
    pub id: SessionId,
    /// Whose token it is.
    pub user: UserId,
    /// Whether it is still taken.
    pub status: Status,
    /// User agent as sent, cut to 200 characters, control characters removed.
    pub device: String,
    /// The client's address at sign-in.
    pub ip: Option<IpAddr>,
    /// When the session began.
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
    /// When the token dies by itself; the record is swept after that.
    #[serde(with = "time::serde::rfc3339")]
    pub expires_at: OffsetDateTime,
    /// Seen first on a request, not at a sign-in through us.
    #[serde(default)]
    pub adopted: bool,
    /// The first session of a row of refreshes; none for that one itself. What ends one of them ends all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub family: Option<SessionId>,
    /// Names the account's key when the session began; empty when unknown. With another key the token is dead, whatever
    /// the status says.
    #[serde(default)]
    pub key: Arc<str>,
}

impl Session {
    /// Whether the session began with a key other than this one.
    pub fn has_other_key(&self, key: &str) -> bool {
        !self.key.is_empty() && *self.key != *key
    }

    /// The session that all refreshed from one sign-in share.
    pub fn family(&self) -> &SessionId {
        self.family.as_ref().unwrap_or(&self.id)
    }
}

impl fmt::Debug for Session {
    // Addresses and devices are personal and do not belong in a log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").field("user", &self.user).field("status", &self.status).finish_non_exhaustive()
    }
}

fn key_of(user: &UserId, id: &SessionId) -> String {
    format!("{}{user}.{id}", Session::PREFIX)
}

impl Record for Session {
    const PREFIX: &'static str = "session.";
    type Id = SessionId;
    type Index = (UserId, SessionId);

    fn id(&self) -> SessionId {
        self.id.clone()
    }

    fn key(&self) -> String {
        key_of(&self.user, &self.id)
    }

    fn parse_id(rest: &str) -> Option<SessionId> {
        rest.split_once('.').map(|(_, hash)| SessionId(hash.into()))
    }

    fn index(&self) -> Option<Self::Index> {
        Some((self.user.clone(), self.id.clone()))
    }
}

/// The sessions: typed records plus an in-memory view fed by the watch. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Sessions {
    table: Table<Session>,
}

impl Sessions {
    /// Loads the view and follows the store, on the caller's runtime, until the last handle is gone or the store is
    /// closed.
    pub async fn open(store: Arc<dyn Store>) -> Result<Self, Error> {
        Ok(Self { table: Table::open(store).await? })
    }

    /// From the view, no I/O: called on every request.
    pub fn find(&self, id: &SessionId) -> Option<Arc<Session>> {
        self.table.find(id)
    }

    /// All of a user's, from the view, whatever their status.
    pub fn of_user(&self, user: &UserId) -> Vec<Arc<Session>> {
        let from = (user.clone(), SessionId("".into()));
        let places = self.table.view().range(Bound::Included(&from), usize::MAX, |(owner, _)| owner == user);
        places.iter().filter_map(|(_, id)| self.find(id)).collect()
    }

    /// How many records there are.
    pub fn len(&self) -> usize {
        self.table.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Creates the record; an existing one is left as it is (a revoked session cannot come back). The device text is
    /// cut and cleaned. [`Error::Invalid`] for an id that is no SHA-256.
    pub async fn register(&self, mut session: Session) -> Result<(), Error> {
        if session.id.0.len() != 64 {
            return Err(Error::Invalid("a session's id is a SHA-256 in hex"));
        }
        session.device = session.device.chars().filter(|c| !c.is_control()).take(DEVICE_CHARS).collect();
        let decide = |current: Option<&_>| {
            Ok(match current {
                Some(_) => Step::Keep,
                None => Step::Write(session.clone()),
            })
        };
        self.table.change(&session.key(), decide).await.map(drop)
    }

    /// Moves a session on. Durable, and seen by [`find`](Self::find), when it returns.
    ///
    /// The earlier of two ends of grace holds. [`Error::Stale`] when there is no such session (any more) or when it
    /// has moved further already: whoever refreshes a token learns here that it was revoked meanwhile.
    pub async fn set_status(&self, id: &SessionId, status: Status) -> Result<(), Error> {
        let user = self.find(id).ok_or(Error::Stale)?.user.clone();
        self.table.change(&key_of(&user, id), |current| move_on(current, &status)).await.map(drop)
    }

    /// Revokes all live and superseded ones of the user; returns how many. Durable when it returns. A session that is
    /// registered meanwhile may be missed: first stop whatever hands out tokens.
    pub async fn revoke_all(&self, user: &UserId) -> Result<usize, Error> {
        // The store's list and not the view's: a session that the view has not seen yet must not escape.
        let sessions = self.table.list(&format!("{}{user}.", Session::PREFIX)).await?;
        let open: Vec<_> = sessions.into_iter().filter(|session| session.status != Status::Revoked).collect();
        let mut revoked = 0;
        for some in open.chunks(CONCURRENT_CHANGES) {
            // At once, so that they share commits.
            for answer in join_all(some.iter().map(|session| self.revoke(session))).await {
                revoked += usize::from(answer?);
            }
        }
        Ok(revoked)
    }

    /// Revokes all sessions of the user that were refreshed from one sign-in; returns how many. Durable when it returns.
    pub async fn revoke_family(&self, user: &UserId, family: &SessionId) -> Result<usize, Error> {
        let mut revoked = 0;
        for session in self.of_user(user).iter().filter(|session| session.family() == family) {
            revoked += usize::from(self.revoke(session).await?);
        }
        Ok(revoked)
    }

    /// Removes records whose token expired, at most `limit`; returns how many.
    pub async fn sweep(&self, now: OffsetDateTime, limit: usize) -> Result<usize, Error> {
        let mut expired = Vec::new();
        self.table.view().scan(|session, revision| {
            if session.expires_at <= now && expired.len() < limit {
                expired.push((Arc::clone(session), revision));
            }
            expired.len() < limit
        });
        let mut removed = 0;
        for some in expired.chunks(CONCURRENT_CHANGES) {
            for answer in join_all(some.iter().map(|(session, revision)| self.table.delete(session, *revision))).await {
                match answer {
                    Ok(()) => removed += 1,
                    // It changed meanwhile; the next sweep looks at it again.
                    Err(Error::Stale) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(removed)
    }

    /// True when this call revoked it.
    async fn revoke(&self, session: &Session) -> Result<bool, Error> {
        let mut wrote = false;
        let decide = |current: Option<&Read<Session>>| {
            // Swept meanwhile: the token is dead.
            let step = if current.is_some() { move_on(current, &Status::Revoked)? } else { Step::Keep };
            wrote = matches!(step, Step::Write(_));
            Ok(step)
        };
        self.table.change(&session.key(), decide).await?;
        Ok(wrote)
    }
}

/// Pure: what a wish for a status makes of the session as it stands.
fn move_on(current: Option<&Read<Session>>, wish: &Status) -> Result<Step<Session>, Error> {
    let session = &current.ok_or(Error::Stale)?.record;
    let status = match (&session.status, wish) {
        (Status::Revoked, Status::Live | Status::Superseded { .. }) | (Status::Superseded { .. }, Status::Live) => {
            return Err(Error::Stale);
        }
        (Status::Superseded { until: first }, Status::Superseded { until: second }) => {
            Status::Superseded { until: *first.min(second) }
        }
        (_, wish) => wish.clone(),
    };
    Ok(if status == session.status { Step::Keep } else { Step::Write(Session { status, ..Session::clone(session) }) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_id_is_the_lowercase_hex_sha256_of_the_token() {
        let id = SessionId::of("abc");
        assert_eq!(id.as_str(), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }
}
