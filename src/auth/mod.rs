//! Who a request speaks for.
//!
//! A user's bearer token is the token of the global instance's `users` collection. It is verified here, without a
//! round trip: [`directory`] reads the two halves of its key from the global database, and the session registry says
//! whether the session was ended. So signed-in users keep working while the global instance is down.
//!
//! What sign-in, refresh and logout mean is in [`accounts`]; how much of it may happen at once is in [`gate`].
//!
//! Invariants:
//! - A token counts only if kind, collection, account, signature, expiry and session all hold; callers learn of a
//!   failure nothing but that there is one.
//! - A valid token of an unknown session is adopted without delaying its request.
//!
//! Deliberately absent: which tenant a user acts in (see `tenancy`), and tokens of tenants (see `supervisor`).

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use std::time::SystemTime;
use std::time::UNIX_EPOCH;

use serde_json::Value;
use time::OffsetDateTime;

use crate::error::Code;
use crate::error::Problem;
use crate::ids::UserId;
use crate::pocketbase::database::Owner;
use crate::pocketbase::token;
use crate::pocketbase::token::Signer;
use crate::pocketbase::token::Unverified;
use crate::store::sessions::SessionId;
use crate::store::sessions::Sessions;
use crate::store::sessions::Status;

pub mod accounts;
pub mod api_keys;
mod config;
mod directory;
pub mod gate;
mod keeper;
mod standing;
#[cfg(test)]
mod tests;

pub use config::Config;
pub use keeper::Keeper;
pub use standing::Standing;

use directory::Account;
use directory::Directory;
use keeper::Adoptions;

/// How long a file token lives (`PocketBase`'s default).
const FILE_TOKEN_TTL: Duration = Duration::from_mins(3);

/// What an account may do, from least to most.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Looks around.
    Guest,
    /// The usual.
    User,
    /// Looks after other users.
    Moderator,
    /// Operates the fleet.
    Admin,
}

impl Role {
    /// The role as the accounts database spells it; anything unknown is an ordinary user.
    fn of(text: &str) -> Self {
        match text {
            "guest" => Self::Guest,
            "moderator" => Self::Moderator,
            "admin" => Self::Admin,
            _ => Self::User,
        }
    }

    /// The role as the accounts database spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Guest => "guest",
            Self::User => "user",
            Self::Moderator => "moderator",
            Self::Admin => "admin",
        }
    }
}

/// Who a valid token speaks for.
#[derive(Clone)]
pub struct Principal {
    /// The account.
    pub user: UserId,
    /// Its role at this moment.
    pub role: Role,
    /// Its e-mail address. Not for logs.
    pub email: Arc<str>,
    /// Whether it is known that the address is theirs.
    pub is_verified: bool,
    /// The session that the token stands for.
    pub session: SessionId,
    /// Names the key of the account that the token was signed with.
    pub key: Arc<str>,
    /// When the token dies by itself.
    pub expires: SystemTime,
}

impl fmt::Debug for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Principal").field("user", &self.user).field("role", &self.role).finish_non_exhaustive()
    }
}

/// A token that was accepted, and the account as it was then.
pub struct Accepted {
    token: Box<str>,
    account: Arc<Account>,
    principal: Principal,
}

impl Accepted {
    fn is_for(&self, token: &str) -> bool {
        // Looks at every byte: how long it takes tells nothing of where two tokens differ.
        let difference = self.token.bytes().zip(token.bytes()).fold(0, |all, (ours, theirs)| all | (ours ^ theirs));
        self.token.len() == token.len() && difference == 0
    }
}

impl fmt::Debug for Accepted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Accepted").field("principal", &self.principal).finish_non_exhaustive()
    }
}

/// Why a token is not accepted.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// Malformed, expired or not signed by us.
    #[error("the token is not valid")]
    Token(#[from] token::Error),
    /// A file token, a superuser's token, ...
    #[error("the token is of another kind or collection")]
    Foreign,
    /// Deleted, or never there.
    #[error("the account does not exist")]
    UnknownUser,
    /// Logged out, or refreshed away longer ago than the grace.
    #[error("the session was ended")]
    Revoked,
    /// Neither on disk nor in memory: nobody can be recognised.
    #[error("the accounts database cannot be read")]
    AccountsUnreadable,
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        match error {
            Error::Token(_) | Error::Foreign | Error::UnknownUser | Error::Revoked => Self::new(Code::Unauthorized),
            Error::AccountsUnreadable => Self::new(Code::AccountsUnavailable).retry_after(Duration::from_secs(1)),
        }
    }
}

fn principal(account: &Account, session: SessionId, exp: u64) -> Result<Principal, Error> {
    let expires = UNIX_EPOCH.checked_add(Duration::from_secs(exp)).ok_or(token::Error::Malformed)?;
    let (user, email, key) = (account.user.clone(), Arc::clone(&account.email), Arc::clone(&account.key_id));
    Ok(Principal { user, role: account.role, email, is_verified: account.is_verified, session, key, expires })
}

/// Verifies user tokens locally: no round trip, also while the global instance is down. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Verifier {
    directory: Arc<Directory>,
    sessions: Sessions,
    adoptions: Adoptions,
}

impl Verifier {
    /// A verifier over the global instance's database file (which need not exist yet), and the task that registers
    /// the sessions it adopts, to be run by the caller.
    pub fn new(config: &Config, global_db: PathBuf, sessions: Sessions) -> (Self, Keeper) {
        let (adoptions, keeper) = keeper::pair(sessions.clone());
        let directory = Arc::new(Directory::new(global_db, config.directory_check));
        (Self { directory, sessions, adoptions }, keeper)
    }

    /// Who this token speaks for.
    pub fn verify(&self, token: &str, now: SystemTime) -> Result<Principal, Error> {
        let (principal, _) = self.recognise(token, now)?;
        self.admit(principal, now)
    }

    /// The same, for a caller that meets one token again and again and keeps `known` between the calls. What a token
    /// says and whether it is genuine cannot change while its account does not; all else is looked at each time.
    pub fn verify_again(&self, token: &str, now: SystemTime, known: &mut Option<Accepted>) -> Result<Principal, Error> {
        if let Some(accepted) = known.as_ref().filter(|accepted| accepted.is_for(token))
            && accepted.principal.expires > now
            && Arc::ptr_eq(&accepted.account, &self.directory.account(accepted.principal.user.as_str())?)
        {
            return self.admit(accepted.principal.clone(), now);
        }
        *known = None;
        let (principal, account) = self.recognise(token, now)?;
        let principal = self.admit(principal, now)?;
        *known = Some(Accepted { token: token.into(), account, principal: principal.clone() });
        Ok(principal)
    }

    /// Checks all but the session.
    fn recognise(&self, token: &str, now: SystemTime) -> Result<(Principal, Arc<Account>), Error> {
        let unverified = Unverified::parse(token)?;
        if unverified.claims().kind != "auth" {
            return Err(Error::Foreign);
        }
        let account = self.directory.account(&unverified.claims().id)?;
        let collection = &unverified.claims().collection_id;
        if *collection != *account.collection && collection != "users" {
            return Err(Error::Foreign);
        }
        let claims = unverified.verify(&account.key, now)?;
        let principal = principal(&account, SessionId::of(token), claims.exp)?;
        Ok((principal, account))
    }

    /// Checks the session.
    fn admit(&self, principal: Principal, now: SystemTime) -> Result<Principal, Error> {
        match self.sessions.find(&principal.session).as_deref().map(|session| &session.status) {
            Some(Status::Live) => Ok(principal),
            Some(Status::Superseded { until }) if *until > OffsetDateTime::from(now) => Ok(principal),
            Some(Status::Superseded { .. } | Status::Revoked) => Err(Error::Revoked),
            None => {
                self.adoptions.adopt(&principal, now);
                Ok(principal)
            }
        }
    }

    /// A token for protected files in the name of this session, as `PocketBase` gives it (`POST /api/files/token`):
    /// short-lived, never longer than the session's token, sent as `?token=`, and worth nothing once the session has
    /// ended. `None` when the accounts
    /// collection has no secret for such tokens.
    pub fn file_token(&self, principal: &Principal, now: SystemTime) -> Result<Option<String>, Error> {
        let account = self.directory.account(principal.user.as_str())?;
        let Some(key) = account.file_key.clone() else { return Ok(None) };
        let (collection_id, record_id) = (account.collection.to_string(), account.user.to_string());
        let session = Some(principal.session.to_string());
        let ttl = principal.expires.duration_since(now).unwrap_or_default().min(FILE_TOKEN_TTL);
        Ok(Some(Signer { collection_id, record_id, key }.mint_file(now, ttl, session)))
    }

    /// Who a file token of ours speaks for.
    pub fn verify_file(&self, token: &str, now: SystemTime) -> Result<Principal, Error> {
        let unverified = Unverified::parse(token)?;
        if unverified.claims().kind != "file" {
            return Err(Error::Foreign);
        }
        let account = self.directory.account(&unverified.claims().id)?;
        if *unverified.claims().collection_id != *account.collection {
            return Err(Error::Foreign);
        }
        let claims = unverified.verify(account.file_key.as_ref().ok_or(Error::Foreign)?, now)?;
        let session = claims.session.as_deref().and_then(SessionId::parse).ok_or(Error::Foreign)?;
        let principal = principal(&account, session, claims.exp)?;
        // Nothing is adopted here: the session was known when the token was made.
        match self.sessions.find(&principal.session).as_deref().map(|session| &session.status) {
            Some(Status::Revoked) => Err(Error::Revoked),
            Some(Status::Superseded { until }) if *until <= OffsetDateTime::from(now) => Err(Error::Revoked),
            Some(Status::Live | Status::Superseded { .. }) | None => Ok(principal),
        }
    }

    /// Whether what a principal once proved still stands: the account exists, and the session was not ended.
    pub fn still_holds(&self, principal: &Principal) -> bool {
        let ended = self.sessions.find(&principal.session).is_some_and(|session| session.status == Status::Revoked);
        !ended && self.directory.account(principal.user.as_str()).is_ok_and(|account| account.key_id == principal.key)
    }

    /// Forgets cached accounts: something wrote to the global instance through us, and counts from this moment on.
    pub fn accounts_changed(&self) {
        self.directory.changed();
    }

    /// Whether there is such an account. When that cannot be told, there is none.
    pub fn exists(&self, user: &UserId) -> bool {
        self.directory.account(user.as_str()).is_ok()
    }

    /// What people call an account, may be empty; none for one that does not exist.
    pub fn name_of(&self, user: &UserId) -> Option<String> {
        self.profile(user).ok()?["name"].as_str().map(str::to_owned)
    }

    /// Names the key that the account's tokens are signed with now.
    fn key_of(&self, user: &UserId) -> Result<Arc<str>, Error> {
        Ok(Arc::clone(&self.directory.account(user.as_str())?.key_id))
    }

    /// Names the key that this token was signed with, if that is still the account's.
    fn signed_with(&self, token: &str, now: SystemTime) -> Result<Arc<str>, Error> {
        self.recognise(token, now).map(|(principal, _)| principal.key)
    }

    /// The stored settings of the global instance and the options of its `users` collection with the rule for
    /// new accounts.
    fn configuration(&self) -> Result<(Value, Value), Error> {
        self.directory.configuration()
    }

    /// The user's row as the user may see it.
    fn profile(&self, user: &UserId) -> Result<Value, Error> {
        self.directory.profile(user)
    }

    /// The accounts of these as instances' rows need them; those that do not exist are left out. Reads the file, on a
    /// connection that stays open. Blocks.
    pub fn owners<'a>(&self, users: impl IntoIterator<Item = &'a UserId>) -> Result<Vec<Owner>, Error> {
        self.directory.owners(users)
    }

    /// The account with this e-mail address.
    fn find_by_email(&self, email: &str) -> Result<Option<UserId>, Error> {
        self.directory.find_by_email(email)
    }

    /// Whether any account is an admin.
    fn any_admin(&self) -> Result<bool, Error> {
        self.directory.any_admin()
    }
}
