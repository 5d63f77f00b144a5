//! Sessions as their user sees them: listed, ended one by one, ended all at once.

use std::sync::Arc;
use std::time::SystemTime;

use hyper::Method;
use serde_json::Value;
use serde_json::json;

use super::Accounts;
use super::Error;
use super::upstream::Call;
use crate::auth::Principal;
use crate::auth::keeper::adopted;
use crate::auth::keeper::calendar;
use crate::ids::UserId;
use crate::store::sessions::Session;
use crate::store::sessions::SessionId;
use crate::store::sessions::Status;

impl Accounts {
    /// Ends the session of this principal, with what it was refreshed from and to.
    pub async fn logout(&self, principal: &Principal) -> Result<(), Error> {
        // The session may not be registered yet; what never was cannot be marked as ended.
        self.shared.sessions.register(adopted(principal, SystemTime::now())).await?;
        self.end_family(principal, &principal.session).await
    }

    /// Ends all sessions: first the known ones, durably; then every token there is, by changing the account's key.
    /// Returns how many sessions were known. [`Error::OnlyKnownEnded`] when the second step failed.
    pub async fn logout_everywhere(&self, principal: &Principal) -> Result<usize, Error> {
        self.shared.sessions.register(adopted(principal, SystemTime::now())).await?;
        let ended = self.shared.sessions.revoke_all(&principal.user).await?;
        let call = Call::superuser(Method::PATCH, &format!("/records/{}", principal.user))
            .json(&json!({ "tokenKey:autogenerate": "" }));
        self.to_its_end(|accounts| async move {
            let answer = accounts.shared.upstream.call(call).await;
            accounts.shared.verifier.accounts_changed();
            match answer {
                Ok(answer) if answer.status == 200 => Ok(ended),
                Ok(answer) => {
                    tracing::error!(http.status = answer.status, "an account's key cannot be changed");
                    Err(Error::OnlyKnownEnded)
                }
                Err(_) => Err(Error::OnlyKnownEnded),
            }
        })
        .await
    }

    /// Ends all sessions of an account that was deleted, and with its key everything that was made by it: API keys, file
    /// tokens, tokens that nobody registered. Returns how many sessions were known.
    pub async fn end_all(&self, user: &UserId) -> Result<usize, Error> {
        let ended = self.shared.sessions.revoke_all(user).await?;
        let call =
            Call::superuser(Method::PATCH, &format!("/records/{user}")).json(&json!({ "tokenKey:autogenerate": "" }));
        self.to_its_end(|accounts| async move {
            let answer = accounts.shared.upstream.call(call).await;
            accounts.shared.verifier.accounts_changed();
            match answer?.status {
                // An account that is gone has no tokens.
                200 | 404 => Ok(ended),
                status => {
                    tracing::error!(http.status = status, "the key of a deleted account cannot be changed");
                    Err(Error::OnlyKnownEnded)
                }
            }
        })
        .await
    }

    /// Whether there is such an account. When that cannot be told, there is none.
    pub fn exists(&self, user: &UserId) -> bool {
        self.shared.verifier.exists(user)
    }

    /// Removes the account itself, for good. One that is gone is all right.
    pub async fn erase(&self, user: &UserId) -> Result<(), Error> {
        let call = Call::superuser(Method::DELETE, &format!("/records/{user}"));
        self.to_its_end(|accounts| async move {
            let answer = accounts.shared.upstream.call(call).await;
            accounts.shared.verifier.accounts_changed();
            match answer?.status {
                204 | 404 => Ok(()),
                status => {
                    tracing::error!(http.status = status, "a deleted account cannot be removed");
                    Err(Error::Unexpected)
                }
            }
        })
        .await
    }

    /// The user's record, read from the accounts database: also while the accounts service is away.
    pub fn me(&self, principal: &Principal) -> Result<Value, Error> {
        Ok(self.shared.verifier.profile(&principal.user)?)
    }

    /// The user's sessions that still work, the latest first.
    pub fn sessions(&self, principal: &Principal) -> Vec<Arc<Session>> {
        let now = calendar(SystemTime::now());
        let works = |session: &Session| match session.status {
            Status::Live => true,
            Status::Superseded { until } => until > now,
            Status::Revoked => false,
        };
        let key = self.shared.verifier.key_of(&principal.user).ok();
        let signed = |session: &Session| !key.as_ref().is_some_and(|key| session.has_other_key(key));
        let mut sessions = self.shared.sessions.of_user(&principal.user);
        sessions.retain(|session| session.expires_at > now && works(session) && signed(session));
        sessions.sort_by(|a, b| b.created_at.cmp(&a.created_at).then_with(|| a.id.cmp(&b.id)));
        sessions
    }

    /// Ends one of the user's sessions, named by its id.
    pub async fn end_session(&self, principal: &Principal, id: &str) -> Result<(), Error> {
        let sessions = self.shared.sessions.of_user(&principal.user);
        let session = sessions.iter().find(|session| session.id.as_str() == id).ok_or(Error::NoSession)?;
        self.end_family(principal, &session.id).await
    }

    /// The named session first: a refresh that is under way notices by that, and takes back what it gave.
    async fn end_family(&self, principal: &Principal, id: &SessionId) -> Result<(), Error> {
        self.shared.sessions.set_status(id, Status::Revoked).await?;
        let family = self.shared.sessions.find(id).map_or_else(|| id.clone(), |session| session.family().clone());
        self.shared.sessions.revoke_family(&principal.user, &family).await?;
        Ok(())
    }
}
