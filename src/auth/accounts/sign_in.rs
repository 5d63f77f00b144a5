//! Sign-in and refresh: a token comes back, and its session is registered before the caller sees it.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;
use std::time::SystemTime;
use std::time::UNIX_EPOCH;

use hyper::Method;
use serde_json::Value;
use serde_json::json;

use super::Accounts;
use super::Answer;
use super::Client;
use super::Error;
use super::SignedIn;
use super::forms;
use super::upstream::Call;
use crate::auth;
use crate::auth::Principal;
use crate::auth::gate::AccountKey;
use crate::auth::keeper::adopted;
use crate::auth::keeper::calendar;
use crate::ids::UserId;
use crate::pocketbase::token::Unverified;
use crate::store;
use crate::store::sessions::Session;
use crate::store::sessions::SessionId;
use crate::store::sessions::Status;

/// How often a token of an ended session is exchanged for a later one. Once is enough unless the clock steps back.
const MAX_RENEWALS: usize = 3;

/// Sessions of one account that work at once.
const MAX_SESSIONS: usize = 100;

/// What a sign-in with a password consists of.
#[derive(Clone, Copy, Default)]
pub struct Credentials<'a> {
    /// The e-mail address, usually.
    pub identity: &'a str,
    /// The password.
    pub password: &'a str,
    /// Which field `identity` is looked for in; any when missing.
    pub identity_field: Option<&'a str>,
    /// What the first of two ways to sign in gave.
    pub mfa_id: Option<&'a str>,
}

impl Credentials<'_> {
    fn body(&self) -> Value {
        let mut body = json!({ "identity": self.identity, "password": self.password });
        for (name, value) in [("identityField", self.identity_field), ("mfaId", self.mfa_id)] {
            if let Some(value) = value {
                body[name] = Value::from(value);
            }
        }
        body
    }
}

impl fmt::Debug for Credentials<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").finish_non_exhaustive()
    }
}

impl Accounts {
    /// Signs in with an e-mail address and a password. A refusal of `PocketBase` is [`Error::Refused`].
    pub async fn sign_in(
        &self,
        identity: &str,
        password: &str,
        query: Option<&str>,
        client: &Client,
    ) -> Result<SignedIn, Error> {
        self.sign_in_with(&Credentials { identity, password, ..Credentials::default() }, query, client).await
    }

    /// The same with everything that `PocketBase` takes for it. Where two ways to sign in are asked for, the first is
    /// refused with the `mfaId` that goes with the second.
    pub async fn sign_in_with(
        &self,
        credentials: &Credentials<'_>,
        query: Option<&str>,
        client: &Client,
    ) -> Result<SignedIn, Error> {
        let Credentials { identity, password, .. } = credentials;
        forms::check_credentials(identity, password)?;
        let gate = &self.shared.gate;
        let account = AccountKey::of(identity, client.ip);
        gate.attempt(client.ip, Instant::now())?;
        gate.account(&account, Instant::now())?;
        let permit = gate.permit().await?;
        // Attempts that waited together must not all pass on the state before the first of them.
        gate.account(&account, Instant::now())?;
        let call = Call::user(Method::POST, "/auth-with-password", client)
            .query_with_fields(query, "token")
            .json(&credentials.body());
        let (client, query) = (client.clone(), query.map(str::to_owned));
        self.to_its_end(|accounts| async move {
            let answer = accounts.shared.upstream.call(call).await?;
            drop(permit);
            match answer.status {
                200 => accounts.shared.gate.succeeded(&account),
                401 if answer.asks_for_second_factor() => accounts.shared.gate.succeeded(&account),
                400 => accounts.shared.gate.failed(&account, Instant::now()),
                _ => {}
            }
            accounts.settle(answer, query.as_deref(), &client, None).await
        })
        .await
    }

    /// Exchanges a valid token for a fresh one. The old one works on for `auth.refresh_grace`, for requests that are
    /// on their way; within the second of its issue, `PocketBase` gives the same token again.
    pub async fn refresh(&self, token: &str, query: Option<&str>, client: &Client) -> Result<SignedIn, Error> {
        let principal = self.shared.verifier.verify(token, SystemTime::now())?;
        self.expect(&principal.user);
        let call = Call::user(Method::POST, "/auth-refresh", client).query_with_fields(query, "token").token(token);
        let (client, query) = (client.clone(), query.map(str::to_owned));
        self.to_its_end(|accounts| async move {
            let answer = accounts.shared.upstream.call(call).await?;
            let before = accounts.shared.sessions.find(&principal.session);
            let family = before.map_or_else(|| principal.session.clone(), |session| session.family().clone());
            let signed_in = accounts.settle(answer, query.as_deref(), &client, Some(&family)).await?;
            let fresh = SessionId::of(&signed_in.token);
            if fresh == principal.session {
                return Ok(signed_in);
            }
            match accounts.supersede(&principal).await {
                Ok(()) => Ok(signed_in),
                // It was ended while it was refreshed; what came out of it must not live on.
                Err(store::Error::Stale) => {
                    accounts.shared.sessions.set_status(&fresh, Status::Revoked).await?;
                    Err(auth::Error::Revoked.into())
                }
                Err(error) => Err(error.into()),
            }
        })
        .await
    }

    /// Takes the token out of an answer and registers its session.
    pub(super) async fn settle(
        &self,
        mut answer: Answer,
        query: Option<&str>,
        client: &Client,
        family: Option<&SessionId>,
    ) -> Result<SignedIn, Error> {
        let mut issued = Issued::from(answer.clone())?;
        for _ in 0..MAX_RENEWALS {
            if !self.was_ended(&issued.session) {
                break;
            }
            // Tokens of one second are equal: this one was signed out within the second of its issue.
            tokio::time::sleep(until_next_second(SystemTime::now())).await;
            let call = Call::user(Method::POST, "/auth-refresh", client)
                .query_with_fields(query, "token")
                .token(&issued.token);
            answer = self.shared.upstream.call(call).await?;
            issued = Issued::from(answer.clone())?;
        }
        self.open_session(&issued, client, family).await;
        Ok(SignedIn { token: issued.token, record: issued.record, answer })
    }

    fn was_ended(&self, id: &SessionId) -> bool {
        self.shared.sessions.find(id).is_some_and(|session| session.status != Status::Live)
    }

    /// Registers the session and the personal tenant. Both happen at the first request otherwise, so their failure
    /// does not undo a sign-in.
    async fn open_session(&self, issued: &Issued, client: &Client, family: Option<&SessionId>) {
        // While this is noted, it wakes.
        self.expect(&issued.user);
        let (status, key) = self.begin(issued);
        let session = Session {
            id: issued.session.clone(),
            user: issued.user.clone(),
            status,
            device: client.device.clone(),
            ip: Some(client.ip),
            created_at: calendar(SystemTime::now()),
            expires_at: calendar(issued.expires),
            adopted: false,
            family: family.filter(|family| **family != issued.session).cloned(),
            key,
        };
        if let Err(error) = self.shared.sessions.register(session).await {
            tracing::error!(%error, user.id = %issued.user, "a session cannot be registered");
        }
        if let Err(error) = self.end_outdated(&issued.user, false).await {
            tracing::error!(%error, user.id = %issued.user, "dead sessions cannot be ended");
        }
        self.bound_sessions(&issued.user).await;
        self.give_tenant(&issued.user).await;
        // One that is new has a tenant only now.
        self.expect(&issued.user);
    }

    /// Whoever signs in asks for what is theirs next.
    pub(super) fn expect(&self, user: &UserId) {
        if let Some(tenant) = self.shared.tenancy.personal(user) {
            self.shared.supervisor.expect(&tenant);
        }
    }

    /// The status that a fresh token's session begins with, and the key that it was signed with.
    fn begin(&self, issued: &Issued) -> (Status, Arc<str>) {
        let verifier = &self.shared.verifier;
        let signed_with = || verifier.signed_with(&issued.token, SystemTime::now());
        let key = signed_with().or_else(|_| {
            // The sign-in itself may have changed the key: then what is in memory is older than the token.
            verifier.accounts_changed();
            signed_with()
        });
        match key {
            Ok(key) => (Status::Live, key),
            Err(auth::Error::AccountsUnreadable) => (Status::Live, "".into()),
            // The key has changed again already, and the token is dead.
            Err(_) => (Status::Revoked, "".into()),
        }
    }

    /// Ends the sessions of tokens that died because the account's key changed: with a new password, a new address,
    /// or a sign-in that proved whose the address is. `has_changed`: it is known to have.
    pub(super) async fn end_outdated(&self, user: &UserId, has_changed: bool) -> Result<(), Error> {
        let current = match outdated(self.shared.verifier.key_of(user), has_changed) {
            Outdated::SignedOtherwise(current) => current,
            Outdated::Unknown => return Ok(()),
            Outdated::All => {
                self.shared.sessions.revoke_all(user).await?;
                return Ok(());
            }
        };
        for session in self.shared.sessions.of_user(user) {
            if session.status != Status::Revoked && session.has_other_key(&current) {
                match self.shared.sessions.set_status(&session.id, Status::Revoked).await {
                    Ok(()) | Err(store::Error::Stale) => {}
                    Err(error) => return Err(error.into()),
                }
            }
        }
        Ok(())
    }

    /// Ends the oldest sessions of an account that has too many: they cost memory, and nobody has that many devices.
    async fn bound_sessions(&self, user: &UserId) {
        let mut working = self.shared.sessions.of_user(user);
        working.retain(|session| session.status != Status::Revoked);
        let surplus = working.len().saturating_sub(MAX_SESSIONS);
        working.sort_by_key(|session| session.created_at);
        for session in &working[..surplus] {
            match self.shared.sessions.set_status(&session.id, Status::Revoked).await {
                Ok(()) | Err(store::Error::Stale) => {}
                Err(error) => tracing::error!(%error, user.id = %user, "an old session cannot be ended"),
            }
        }
    }

    /// Makes the personal tenant, or leaves it to the user's first request.
    pub(super) async fn give_tenant(&self, user: &UserId) {
        if let Err(error) = self.shared.tenancy.ensure_personal(user).await {
            tracing::error!(%error, user.id = %user, "a personal tenant cannot be registered");
        }
    }

    /// Ends a refreshed session after the grace; the earlier end holds, so that refreshing again and again with an old
    /// token does not prolong it. [`store::Error::Stale`] when it was ended meanwhile.
    async fn supersede(&self, principal: &Principal) -> Result<(), store::Error> {
        let now = SystemTime::now();
        self.shared.sessions.register(adopted(principal, now)).await?;
        let until = calendar(now + self.shared.refresh_grace);
        self.shared.sessions.set_status(&principal.session, Status::Superseded { until }).await
    }
}

/// A token as the global instance issued it, and what it says about itself.
struct Issued {
    token: String,
    record: Value,
    session: SessionId,
    user: UserId,
    expires: SystemTime,
}

impl Issued {
    /// Reads a successful answer. The claims need no proof: they come from the issuer itself.
    fn from(answer: Answer) -> Result<Self, Error> {
        if answer.status != 200 {
            return Err(Error::Refused(answer));
        }
        let mut body = answer.json().ok_or(Error::Unexpected)?;
        let token = body.get("token").and_then(Value::as_str).ok_or(Error::Unexpected)?.to_owned();
        let unverified = Unverified::parse(&token).map_err(|_| Error::Unexpected)?;
        let claims = unverified.claims();
        let user = UserId::parse(&claims.id).map_err(|_| Error::Unexpected)?;
        let expires = UNIX_EPOCH.checked_add(Duration::from_secs(claims.exp)).ok_or(Error::Unexpected)?;
        let record = body.get_mut("record").map(Value::take).unwrap_or_default();
        Ok(Self { session: SessionId::of(&token), token, record, user, expires })
    }
}

/// Which sessions of an account are dead.
#[derive(Debug, PartialEq)]
enum Outdated {
    /// Those of tokens that another key than this signed.
    SignedOtherwise(Arc<str>),
    /// Every one.
    All,
    /// It cannot be told now. A dead token is refused for its signature all the same, and the living must live on.
    Unknown,
}

fn outdated(current: Result<Arc<str>, auth::Error>, has_changed: bool) -> Outdated {
    match current {
        Ok(current) => Outdated::SignedOtherwise(current),
        Err(auth::Error::AccountsUnreadable) if !has_changed => Outdated::Unknown,
        Err(_) => Outdated::All,
    }
}

fn until_next_second(now: SystemTime) -> Duration {
    let into = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.subsec_nanos());
    // A little more, because the instance reads its clock for itself.
    Duration::from_secs(1).saturating_sub(Duration::from_nanos(u64::from(into))) + Duration::from_millis(5)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::pocketbase::token::Key;
    use crate::pocketbase::token::Signer;

    fn answer(status: u16, body: &Value) -> Answer {
        Answer { status, body: Bytes::from(body.to_string()) }
    }

    #[test]
    fn an_answer_is_taken_apart_and_a_refusal_kept_whole() {
        let signer = Signer { collection_id: "c".into(), record_id: "b5c3xih3gtjb48z".into(), key: Key::new("a", "b") };
        let token = signer.mint(UNIX_EPOCH, Duration::from_mins(1));
        let issued = Issued::from(answer(200, &json!({ "token": token, "record": { "id": "x" } }))).ok().unwrap();
        assert_eq!(issued.user.as_str(), "b5c3xih3gtjb48z");
        assert_eq!(issued.expires, UNIX_EPOCH + Duration::from_mins(1));
        assert_eq!(issued.record, json!({ "id": "x" }));

        let refusal = answer(400, &json!({ "status": 400 }));
        assert!(matches!(Issued::from(refusal.clone()), Err(Error::Refused(kept)) if kept == refusal));
        assert!(matches!(Issued::from(answer(200, &json!({ "token": "x.y" }))), Err(Error::Unexpected)));
    }

    #[test]
    fn a_database_that_cannot_be_read_for_a_moment_ends_no_session() {
        assert_eq!(outdated(Ok("k".into()), false), Outdated::SignedOtherwise("k".into()));
        assert_eq!(outdated(Err(auth::Error::AccountsUnreadable), false), Outdated::Unknown);
        assert_eq!(outdated(Err(auth::Error::AccountsUnreadable), true), Outdated::All);
        assert_eq!(outdated(Err(auth::Error::UnknownUser), false), Outdated::All);
    }

    #[test]
    fn the_next_second_is_never_more_than_a_second_away() {
        let at = |nanos| until_next_second(UNIX_EPOCH + Duration::from_nanos(nanos));
        assert_eq!(at(0), Duration::from_millis(1_005));
        assert_eq!(at(1_999_000_000), Duration::from_millis(6));
    }
}
