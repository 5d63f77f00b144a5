//! Signing in without a password: with a one-time password from a mail, or through another service (`OAuth2`).
//!
//! Both may be the second of two ways. Both may change the account's key, because they prove whose an address is that
//! somebody else may have registered before; sessions of the old key end.

use std::time::Instant;

use hyper::Method;
use serde_json::Map;
use serde_json::Value;
use serde_json::json;
use time::OffsetDateTime;

use super::Accounts;
use super::Answer;
use super::Client;
use super::Error;
use super::SignedIn;
use super::forms;
use super::records::created;
use super::upstream::Call;
use crate::ids::UserId;

/// What a sign-in through a service may consist of, as `PocketBase` names it.
const OAUTH2_FIELDS: [&str; 5] = ["provider", "code", "codeVerifier", "redirectURL", "mfaId"];

impl Accounts {
    /// Signs in with a one-time password. A refusal of `PocketBase` is [`Error::Refused`].
    pub async fn sign_in_otp(
        &self,
        otp_id: &str,
        password: &str,
        mfa_id: Option<&str>,
        query: Option<&str>,
        client: &Client,
    ) -> Result<SignedIn, Error> {
        forms::check_present(&[("otpId", otp_id), ("password", password)])?;
        self.shared.gate.attempt(client.ip, Instant::now())?;
        self.shared.bounds.guess(otp_id, Instant::now())?;
        let permit = self.shared.gate.permit().await?;
        let mut body = json!({ "otpId": otp_id, "password": password });
        if let Some(mfa_id) = mfa_id {
            body["mfaId"] = Value::from(mfa_id);
        }
        let call = Call::user(Method::POST, "/auth-with-otp", client).query_with_fields(query, "token").json(&body);
        let (client, query) = (client.clone(), query.map(str::to_owned));
        self.to_its_end(|accounts| async move {
            let answer = accounts.shared.upstream.call(call).await;
            drop(permit);
            if !answer.as_ref().is_ok_and(Answer::is_refusal) {
                accounts.shared.verifier.accounts_changed();
            }
            accounts.settle(answer?, query.as_deref(), &client, None).await
        })
        .await
    }

    /// Signs in with a code of another service; an account that does not exist is made. With the `token` of a
    /// signed-in user, the service is added to that user's account. A refusal of `PocketBase` is [`Error::Refused`].
    pub async fn sign_in_oauth2(
        &self,
        fields: &Map<String, Value>,
        token: Option<&str>,
        query: Option<&str>,
        client: &Client,
    ) -> Result<SignedIn, Error> {
        let body = oauth2_body(fields)?;
        self.shared.gate.attempt(client.ip, Instant::now())?;
        // The service is somebody else's and may be slow: no place of password work is held meanwhile.
        let place = self.shared.bounds.abroad()?;
        let mut call = Call::user(Method::POST, "/auth-with-oauth2", client)
            .query_with_fields(query, "token,meta.isNew,record.id")
            .json(&body);
        if let Some(token) = token {
            call = call.token(token);
        }
        let (client, query) = (client.clone(), query.map(str::to_owned));
        self.to_its_end(|accounts| async move {
            let begun = OffsetDateTime::now_utc();
            let answer = accounts.shared.upstream.call(call).await;
            drop(place);
            if !answer.as_ref().is_ok_and(Answer::is_refusal) {
                accounts.shared.verifier.accounts_changed();
            }
            let answer = answer?;
            match newcomer(&answer) {
                Some(user) if accounts.inherits(&user, begun) => Err(Error::Refused(accounts.undo(&user).await?)),
                _ => accounts.settle(answer, query.as_deref(), &client, None).await,
            }
        })
        .await
    }
}

/// What goes to `PocketBase`: the fields it takes, and no others.
fn oauth2_body(fields: &Map<String, Value>) -> Result<Value, Error> {
    let text = |name: &str| fields.get(name).and_then(Value::as_str).filter(|text| !text.is_empty());
    let mut body = Map::new();
    for name in OAUTH2_FIELDS {
        // Older SDKs spell it so.
        let value = text(name).or_else(|| (name == "redirectURL").then(|| text("redirectUrl")).flatten());
        if let Some(value) = value {
            body.insert(name.to_owned(), Value::from(value));
        }
    }
    if let Some(create) = fields.get("createData").filter(|value| !value.is_null()) {
        let Value::Object(create) = create else {
            return Err(forms::invalid("createData", "validation_invalid_type", "Must be an object."));
        };
        if create.contains_key("id") {
            return Err(forms::invalid("id", "validation_not_allowed", "The id cannot be chosen."));
        }
        body.insert("createData".to_owned(), Value::from(create.clone()));
    }
    Ok(Value::Object(body))
}

/// The account that a sign-in made.
fn newcomer(answer: &Answer) -> Option<UserId> {
    let body = (answer.status == 200).then(|| answer.json())??;
    let is_new = body.get("meta")?.get("isNew")?.as_bool()?;
    let record = Answer { status: 200, body: body.get("record")?.to_string().into() };
    if is_new { created(&record) } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(value: &Value) -> Map<String, Value> {
        value.as_object().cloned().unwrap_or_default()
    }

    #[test]
    fn only_known_fields_are_passed_on_and_nobody_chooses_an_id() {
        let sent = json!({"provider": "oidc", "Provider": "x", "code": "c", "redirectUrl": "https://x", "mfaId": "",
            "createData": {"name": "Ada"}, "identity": "y"});
        let expected =
            json!({"provider": "oidc", "code": "c", "redirectURL": "https://x", "createData": {"name": "Ada"}});
        assert_eq!(oauth2_body(&fields(&sent)).unwrap(), expected);
        for bad in [json!({"createData": {"id": "aaaaaaaaaaaaaaa"}}), json!({"createData": [1]})] {
            assert!(matches!(oauth2_body(&fields(&bad)), Err(Error::Invalid(_))), "{bad}");
        }
    }

    #[test]
    fn a_newcomer_is_told_from_who_was_here() {
        let answer = |is_new: bool| {
            let body = json!({"token": "t", "record": {"id": "b5c3xih3gtjb48z"}, "meta": {"isNew": is_new}});
            Answer { status: 200, body: body.to_string().into() }
        };
        assert_eq!(newcomer(&answer(true)).unwrap().as_str(), "b5c3xih3gtjb48z");
        assert_eq!(newcomer(&answer(false)), None);
    }
}
