//! Accounts as records: registered, read and changed by their users.

use std::time::Instant;

use bytes::Bytes;
use hyper::Method;
use serde_json::Value;
use serde_json::json;
use time::OffsetDateTime;

use super::Accounts;
use super::Answer;
use super::Client;
use super::Error;
use super::Registration;
use super::forms;
use super::reserved;
use super::reserved::Outcome;
use super::upstream::Call;
use crate::auth::Principal;
use crate::auth::gate::AccountKey;
use crate::auth::gate::Permit;
use crate::ids::UserId;
use crate::spares::Claim;

/// What our own form is sent as.
const JSON: &str = "application/json";

impl Accounts {
    /// Registers an account from our own form and returns its record. The account has its personal tenant.
    pub async fn register(&self, fields: Registration, client: &Client) -> Result<Value, Error> {
        forms::check_registration(&fields)?;
        let body = Bytes::from(forms::registration_body(&fields).to_string());
        let answer = self.create(SignUp { content_type: Some(JSON.to_owned()), body, query: None }, client).await?;
        match answer.status {
            200 => answer.json().ok_or(Error::Unexpected),
            _ => Err(forms::creation_error(answer)),
        }
    }

    /// Registers an account from a body as the SDK sends it; the answer is `PocketBase`'s own, whatever it says.
    pub async fn sign_up_raw(
        &self,
        content_type: Option<&str>,
        body: Bytes,
        query: Option<&str>,
        client: &Client,
    ) -> Result<Answer, Error> {
        let (content_type, query) = (content_type.map(str::to_owned), query.map(str::to_owned));
        self.create(SignUp { content_type, body, query }, client).await
    }

    /// The ways of signing in, as `PocketBase` lists them.
    pub async fn auth_methods(&self, query: Option<&str>) -> Result<Answer, Error> {
        let client = Client::new([0, 0, 0, 0].into(), None);
        self.shared.upstream.call(Call::user(Method::GET, "/auth-methods", &client).query(query)).await
    }

    /// The caller's own record, as `PocketBase` answers it.
    pub async fn read_own(
        &self,
        principal: &Principal,
        token: &str,
        query: Option<&str>,
        client: &Client,
    ) -> Result<Answer, Error> {
        let call = Call::user(Method::GET, &own(principal), client).query(query).token(token);
        self.shared.upstream.call(call).await
    }

    /// Changes the caller's own record with a body as the SDK sends it; the answer is `PocketBase`'s own. A change of
    /// the password checks the old one, so this passes the gate like a sign-in.
    pub async fn update_own(
        &self,
        principal: &Principal,
        token: &str,
        content: (Option<&str>, Bytes),
        query: Option<&str>,
        client: &Client,
    ) -> Result<Answer, Error> {
        let (content_type, body) = content;
        let call = Call::user(Method::PATCH, &own(principal), client).query(query).token(token);
        if !may_name_password(&body) {
            let answer = self.shared.upstream.call(call.raw(content_type, body)).await;
            self.shared.verifier.accounts_changed();
            return answer;
        }
        let account = AccountKey::of(&principal.email, client.ip);
        self.shared.gate.attempt(client.ip, Instant::now())?;
        self.shared.gate.account(&account, Instant::now())?;
        let permit = self.shared.gate.permit().await?;
        self.shared.gate.account(&account, Instant::now())?;
        let call = call.raw(content_type, body);
        let user = principal.user.clone();
        self.to_its_end(|accounts| async move {
            let answer = accounts.write(call, permit).await?;
            if answer.status == 400 && wrong_old_password(&answer) {
                accounts.shared.gate.failed(&account, Instant::now());
            }
            if answer.status == 200 {
                // With a new password its tokens have just died; the list of sessions must not claim otherwise.
                accounts.end_outdated(&user, false).await?;
            }
            Ok(answer)
        })
        .await
    }

    /// Creates an account under the limits of registration and gives it its tenant.
    async fn create(&self, sign_up: SignUp, client: &Client) -> Result<Answer, Error> {
        self.shared.gate.registration(client.ip, Instant::now())?;
        let permit = self.shared.gate.permit().await?;
        let client = client.clone();
        self.to_its_end(|accounts| async move {
            let begun = OffsetDateTime::now_utc();
            let (answer, claim) = match accounts.create_reserved(&sign_up, &client).await {
                Some(made) => made?,
                None => (accounts.write(sign_up.call(&client), permit).await?, None),
            };
            match (created(&answer), claim) {
                (Some(user), _) if accounts.inherits(&user, begun) => accounts.undo(&user).await,
                (Some(_), Some(claim)) => {
                    claim.made().await;
                    Ok(answer)
                }
                (Some(user), None) => {
                    accounts.give_tenant(&user).await;
                    // Who registers signs in next, and while that takes its time the instance is made.
                    if !accounts.shared.operator.accounts.require_verified {
                        accounts.expect(&user);
                    }
                    Ok(answer)
                }
                (None, _) => Ok(answer),
            }
        })
        .await
    }

    /// Creates an account for which there is an instance already, with its id; the claim is still to be settled when
    /// the account has it. None when it is to be made without: there is no spare, the body is not one for it, or the id
    /// may be what is refused.
    async fn create_reserved(
        &self,
        sign_up: &SignUp,
        client: &Client,
    ) -> Option<Result<(Answer, Option<Claim>), Error>> {
        let spares = &self.shared.spares;
        let key = spares.key()?;
        // Looked at before an id is taken, which is not to be missing to others meanwhile.
        reserved::with_id(sign_up.content_type.as_deref(), &sign_up.body, "")?;
        let claim = spares.take()?;
        let Some(body) = reserved::with_id(sign_up.content_type.as_deref(), &sign_up.body, claim.id()) else {
            claim.give_back();
            return None;
        };
        let call = SignUp { body, ..sign_up.clone() }.call(client).reserved(key);
        let answer = self.shared.upstream.call(call).await;
        self.shared.verifier.accounts_changed();
        match reserved::judge(&answer, claim.id()) {
            Outcome::Made => Some(answer.map(|answer| (answer, Some(claim)))),
            Outcome::Refused => {
                claim.give_back();
                Some(answer.map(|answer| (answer, None)))
            }
            // Whether the id is free is found out by whoever keeps the spares: a hook that refuses after the account was
            // made says the same.
            Outcome::WithoutIt | Outcome::Used => None,
            Outcome::Unknown => Some(answer.map(|answer| (answer, None))),
        }
    }

    async fn write(&self, call: Call, permit: Permit) -> Result<Answer, Error> {
        let answer = self.shared.upstream.call(call).await;
        drop(permit);
        self.shared.verifier.accounts_changed();
        answer
    }

    /// Whether a new account has the id of a deleted one, whose tenant is still there. `PocketBase` lets clients
    /// choose ids, so without this check a stranger could register into somebody's data.
    pub(super) fn inherits(&self, user: &UserId, begun: OffsetDateTime) -> bool {
        self.shared.tenancy.personal_since(user).is_some_and(|since| since < begun)
    }

    pub(super) async fn undo(&self, user: &UserId) -> Result<Answer, Error> {
        tracing::warn!(user.id = %user, "a registration chose the id of a deleted account and is undone");
        let answer = self.shared.upstream.call(Call::superuser(Method::DELETE, &format!("/records/{user}"))).await?;
        self.shared.verifier.accounts_changed();
        if answer.status != 204 {
            tracing::error!(user.id = %user, http.status = answer.status, "the registration cannot be undone");
        }
        let complaint = json!({ "id": { "code": "validation_not_unique", "message": "Value must be unique." } });
        let body = json!({ "data": complaint, "message": "Failed to create record.", "status": 400 });
        Ok(Answer { status: 400, body: Bytes::from(body.to_string()) })
    }
}

/// What somebody sent to register.
#[derive(Clone)]
struct SignUp {
    content_type: Option<String>,
    body: Bytes,
    query: Option<String>,
}

impl SignUp {
    fn call(&self, client: &Client) -> Call {
        Call::user(Method::POST, "/records", client)
            .query_with_fields(self.query.as_deref(), "id")
            .raw(self.content_type.as_deref(), self.body.clone())
    }
}

fn own(principal: &Principal) -> String {
    format!("/records/{}", principal.user)
}

pub(super) fn created(answer: &Answer) -> Option<UserId> {
    let record = (answer.status == 200).then(|| answer.json())??;
    UserId::parse(record.get("id")?.as_str()?).ok()
}

/// Whether a body could change the password: the word stands in it, or an escape that could hide it. A body that only
/// mentions it is treated as one that does; it passes the gate all the same.
fn may_name_password(body: &[u8]) -> bool {
    let has = |needle: &[u8]| body.windows(needle.len()).any(|window| window.eq_ignore_ascii_case(needle));
    has(b"password") || has(b"\\u") || has(b"%")
}

fn wrong_old_password(answer: &Answer) -> bool {
    answer.json().is_some_and(|body| body.get("data").is_some_and(|data| data.get("oldPassword").is_some()))
}
