//! Whether a token that was shown once still stands, for what lives longer than a request: an event stream.
//!
//! A token is bound to its account's key and to its family of sessions. The SDKs do not show a refreshed token to a
//! stream that is open, so a stream lives on as long as any session of the family does, and ends with the last.

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use time::OffsetDateTime;

use super::Error;
use super::Principal;
use super::Role;
use super::Verifier;
use super::directory::Account;
use super::keeper::calendar;
use crate::ids::UserId;
use crate::store::sessions::Session;
use crate::store::sessions::SessionId;
use crate::store::sessions::Status;

/// What a token stood for when it was accepted.
#[derive(Clone)]
pub struct Standing {
    account: Arc<Account>,
    family: SessionId,
    /// The session of the family that was found to work last; looked at first.
    session: SessionId,
    expires: SystemTime,
}

impl Standing {
    /// Whose token it was.
    pub fn user(&self) -> &UserId {
        &self.account.user
    }

    /// What the account may do, as of the last time that [`Verifier::holds`] was asked.
    pub fn role(&self) -> Role {
        self.account.role
    }
}

impl fmt::Debug for Standing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Standing").field("user", &self.account.user).finish_non_exhaustive()
    }
}

impl Verifier {
    /// What to ask [`holds`](Self::holds) about later. `principal` is what this verifier just made of the token.
    pub fn standing(&self, principal: &Principal) -> Result<Standing, Error> {
        let account = self.directory.account(principal.user.as_str())?;
        // The key may have changed since the token was accepted.
        if account.key_id != principal.key {
            return Err(Error::Revoked);
        }
        let session = principal.session.clone();
        let family = self.sessions.find(&session).map_or_else(|| session.clone(), |session| session.family().clone());
        Ok(Standing { account, family, session, expires: principal.expires })
    }

    /// Whether the account is still there with the same key, and any session of the family still works. While the
    /// accounts cannot be read, what stood goes on standing.
    pub fn holds(&self, standing: &mut Standing, now: SystemTime) -> bool {
        match self.directory.account(standing.account.user.as_str()) {
            Ok(account) if Arc::ptr_eq(&account, &standing.account) => {}
            Ok(account) if account.key == standing.account.key && account.collection == standing.account.collection => {
                standing.account = account;
            }
            Err(Error::AccountsUnreadable) => {}
            Ok(_) | Err(_) => return false,
        }
        let moment = calendar(now);
        match self.sessions.find(&standing.session) {
            Some(session) if works(&session, moment) => return true,
            // Not registered yet: nobody can have ended it.
            None if standing.session == standing.family && standing.expires > now => return true,
            _ => {}
        }
        let sessions = self.sessions.of_user(&standing.account.user);
        let relative = sessions.iter().find(|session| *session.family() == standing.family && works(session, moment));
        if let Some(relative) = relative {
            standing.session = relative.id.clone();
        }
        relative.is_some()
    }
}

fn works(session: &Session, now: OffsetDateTime) -> bool {
    session.expires_at > now
        && match session.status {
            Status::Live => true,
            Status::Superseded { until } => until > now,
            Status::Revoked => false,
        }
}
