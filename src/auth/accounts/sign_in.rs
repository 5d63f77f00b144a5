//! Sign-in and refresh: a token comes back, and its session is registered before the caller sees it.

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
use crate::auth::Principal;
use crate::auth::gate::AccountKey;
use crate::auth::keeper::adopted;
use crate::auth::keeper::calendar;
use crate::ids::UserId;
use crate::pocketbase::token::Unverified;
use crate::store::sessions::Session;
use crate::store::sessions::SessionId;
use crate::store::sessions::Status;

/// How often a token of an ended session is exchanged for a later one. Once is enough unless the clock steps back.
const MAX_RENEWALS: usize = 3;

impl Accounts {
    /// Signs in with an e-mail address and a password. A refusal of `PocketBase` is [`Error::Refused`].
    pub async fn sign_in(
        &self,
        identity: &str,
        password: &str,
        query: Option<&str>,
        client: &Client,
    ) -> Result<SignedIn, Error> {
        forms::check_credentials(identity, password)?;
        let gate = &self.shared.gate;
        let account = AccountKey::of(identity);
        gate.attempt(client.ip, Instant::now())?;
        gate.account(&account, Instant::now())?;
        let permit = gate.permit().await?;
        // Attempts that waited together must not all pass on the state before the first of them.
        gate.account(&account, Instant::now())?;
        let call = Call::user(Method::POST, "/auth-with-password", client)
            .query_with_fields(query, "token")
            .json(&json!({ "identity": identity, "password": password }));
        let (client, query) = (client.clone(), query.map(str::to_owned));
        self.to_its_end(|accounts| async move {
            let answer = accounts.shared.upstream.call(call).await?;
            drop(permit);
            match answer.status {
                200 => accounts.shared.gate.succeeded(&account),
                400 => accounts.shared.gate.failed(&account, Instant::now()),
                _ => {}
            }
            accounts.settle(answer, query.as_deref(), &client).await
        })
        .await
    }

    /// Exchanges a valid token for a fresh one. The old one works on for `auth.refresh_grace`, for requests that are
    /// on their way; within the second of its issue, `PocketBase` gives the same token again.
    pub async fn refresh(&self, token: &str, query: Option<&str>, client: &Client) -> Result<SignedIn, Error> {
        let principal = self.shared.verifier.verify(token, SystemTime::now())?;
        let call = Call::user(Method::POST, "/auth-refresh", client).query_with_fields(query, "token").token(token);
        let (client, query) = (client.clone(), query.map(str::to_owned));
        self.to_its_end(|accounts| async move {
            let answer = accounts.shared.upstream.call(call).await?;
            let signed_in = accounts.settle(answer, query.as_deref(), &client).await?;
            if SessionId::of(&signed_in.token) != principal.session {
                accounts.supersede(&principal).await?;
            }
            Ok(signed_in)
        })
        .await
    }

    /// Takes the token out of an answer and registers its session.
    async fn settle(&self, mut answer: Answer, query: Option<&str>, client: &Client) -> Result<SignedIn, Error> {
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
        self.open_session(&issued, client).await;
        Ok(SignedIn { token: issued.token, record: issued.record, answer })
    }

    fn was_ended(&self, id: &SessionId) -> bool {
        self.shared.sessions.find(id).is_some_and(|session| session.status != Status::Live)
    }

    /// Registers the session and the personal tenant. Both happen at the first request otherwise, so their failure
    /// does not undo a sign-in.
    async fn open_session(&self, issued: &Issued, client: &Client) {
        let session = Session {
            id: issued.session.clone(),
            user: issued.user.clone(),
            status: Status::Live,
            device: client.device.clone(),
            ip: Some(client.ip),
            created_at: calendar(SystemTime::now()),
            expires_at: calendar(issued.expires),
            adopted: false,
        };
        if let Err(error) = self.shared.sessions.register(session).await {
            tracing::error!(%error, user.id = %issued.user, "a session cannot be registered");
        }
        self.give_tenant(&issued.user).await;
    }

    /// Makes the personal tenant, or leaves it to the user's first request.
    pub(super) async fn give_tenant(&self, user: &UserId) {
        if let Err(error) = self.shared.tenancy.ensure_personal(user).await {
            tracing::error!(%error, user.id = %user, "a personal tenant cannot be registered");
        }
    }

    /// Ends a refreshed session after the grace. One that ended or was superseded already keeps its end: refreshing
    /// again and again with an old token must not prolong it.
    async fn supersede(&self, principal: &Principal) -> Result<(), Error> {
        let now = SystemTime::now();
        self.shared.sessions.register(adopted(principal, now)).await?;
        let live = self.shared.sessions.find(&principal.session).is_none_or(|session| session.status == Status::Live);
        if live {
            let until = calendar(now + self.shared.refresh_grace);
            self.shared.sessions.set_status(&principal.session, Status::Superseded { until }).await?;
        }
        Ok(())
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
    fn the_next_second_is_never_more_than_a_second_away() {
        let at = |nanos| until_next_second(UNIX_EPOCH + Duration::from_nanos(nanos));
        assert_eq!(at(0), Duration::from_millis(1_005));
        assert_eq!(at(1_999_000_000), Duration::from_millis(6));
    }
}
