//! What goes by mail: one-time passwords, verification of an address, a new password, a new address. A request has a
//! mail sent; a confirmation brings back the token from it.
//!
//! Invariants:
//! - A request answers the same whether the address has an account or not, and counts the same.
//! - A confirmation that changes the account's key ends every session, durably, before it is answered.

use std::fmt;
use std::time::Duration;
use std::time::Instant;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hyper::Method;
use serde_json::Value;
use serde_json::json;

use super::Accounts;
use super::Answer;
use super::Client;
use super::Error;
use super::forms;
use super::upstream::Call;
use crate::auth::Principal;
use crate::auth::gate::AccountKey;
use crate::ids::UserId;
use crate::pocketbase::token::MAX_BYTES;

/// How long the answer to a request for a mail takes: longer than any of the work behind it, which is more for an
/// address that has an account.
const STEADY: Duration = Duration::from_millis(400);

/// The mail that only an account's own user asks for.
const EMAIL_CHANGE: &str = "/request-email-change";

/// A mail that strangers may ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mailing {
    /// A one-time password.
    Otp,
    /// A link that verifies the address.
    Verification,
    /// A link that sets a new password.
    PasswordReset,
}

impl Mailing {
    fn path(self) -> &'static str {
        match self {
            Self::Otp => "/request-otp",
            Self::Verification => "/request-verification",
            Self::PasswordReset => "/request-password-reset",
        }
    }
}

/// What comes back from a mail.
#[derive(Clone, Copy)]
pub enum Confirmation<'a> {
    /// The address is the account's.
    Verification {
        /// From the mail.
        token: &'a str,
    },
    /// A new password.
    PasswordReset {
        /// From the mail.
        token: &'a str,
        /// The new password.
        password: &'a str,
        /// The same again.
        confirm: &'a str,
    },
    /// A new address.
    EmailChange {
        /// From the mail.
        token: &'a str,
        /// The account's password.
        password: &'a str,
    },
}

impl fmt::Debug for Confirmation<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Confirmation").field("path", &self.path()).finish_non_exhaustive()
    }
}

impl Confirmation<'_> {
    fn path(&self) -> &'static str {
        match self {
            Self::Verification { .. } => "/confirm-verification",
            Self::PasswordReset { .. } => "/confirm-password-reset",
            Self::EmailChange { .. } => "/confirm-email-change",
        }
    }

    fn token(&self) -> &str {
        match self {
            Self::Verification { token } | Self::PasswordReset { token, .. } | Self::EmailChange { token, .. } => token,
        }
    }

    fn body(&self) -> Value {
        match self {
            Self::Verification { token } => json!({ "token": token }),
            Self::PasswordReset { token, password, confirm } => {
                json!({ "token": token, "password": password, "passwordConfirm": confirm })
            }
            Self::EmailChange { token, password } => json!({ "token": token, "password": password }),
        }
    }
}

impl Accounts {
    /// Has a mail sent. The answer is `PocketBase`'s own, and the same for every address.
    pub async fn request_mail(
        &self,
        mailing: Mailing,
        email: &str,
        query: Option<&str>,
        client: &Client,
    ) -> Result<Answer, Error> {
        if !self.shared.operator.mail.is_on() {
            return Err(Error::NoMail);
        }
        forms::check_address("email", email)?;
        self.shared.bounds.mail(mailing.path(), client.ip, email, Instant::now())?;
        // A one-time password is hashed like any other.
        let permit = self.shared.gate.permit().await?;
        let call = Call::user(Method::POST, mailing.path(), client).query(query).json(&json!({ "email": email }));
        let begun = tokio::time::Instant::now();
        let answer = self
            .to_its_end(|accounts| async move {
                let answer = accounts.shared.upstream.call(call).await;
                drop(permit);
                answer
            })
            .await;
        tokio::time::sleep_until(begun + STEADY).await;
        answer
    }

    /// Has a mail sent to the address that the caller wants to have. The answer is `PocketBase`'s own.
    pub async fn request_email_change(
        &self,
        principal: &Principal,
        token: &str,
        new_email: &str,
        query: Option<&str>,
        client: &Client,
    ) -> Result<Answer, Error> {
        if !self.shared.operator.mail.is_on() {
            return Err(Error::NoMail);
        }
        forms::check_address("newEmail", new_email)?;
        self.shared.bounds.mail_of(principal.user.as_str(), Instant::now())?;
        self.shared.bounds.mail(EMAIL_CHANGE, client.ip, new_email, Instant::now())?;
        let place = self.shared.bounds.abroad()?;
        let call = Call::user(Method::POST, EMAIL_CHANGE, client)
            .query(query)
            .token(token)
            .json(&json!({ "newEmail": new_email }));
        self.to_its_end(|accounts| async move {
            // This one is sent before it is answered.
            let answer = accounts.shared.upstream.call(call).await;
            drop(place);
            answer
        })
        .await
    }

    /// Takes what came back from a mail. The answer is `PocketBase`'s own.
    pub async fn confirm(
        &self,
        confirmation: Confirmation<'_>,
        query: Option<&str>,
        client: &Client,
    ) -> Result<Answer, Error> {
        let gate = &self.shared.gate;
        gate.attempt(client.ip, Instant::now())?;
        let claims = Claims::of(confirmation.token());
        // Only a change of address asks for the password, which could be guessed here.
        let guessed = match (&confirmation, &claims.email) {
            (Confirmation::EmailChange { .. }, Some(email)) => Some(AccountKey::of(email, client.ip)),
            _ => None,
        };
        if let Some(account) = &guessed {
            gate.account(account, Instant::now())?;
        }
        let permit = gate.permit().await?;
        if let Some(account) = &guessed {
            gate.account(account, Instant::now())?;
        }
        let has_new_key = !matches!(confirmation, Confirmation::Verification { .. });
        let call = Call::user(Method::POST, confirmation.path(), client).query(query).json(&confirmation.body());
        self.to_its_end(|accounts| async move {
            let answer = accounts.shared.upstream.call(call).await;
            drop(permit);
            if !answer.as_ref().is_ok_and(Answer::is_refusal) {
                accounts.shared.verifier.accounts_changed();
            }
            let answer = answer?;
            if let Some(account) = guessed.filter(|_| was_a_guess(&answer)) {
                accounts.shared.gate.failed(&account, Instant::now());
            }
            // Only after success is the token known to be genuine, and so whose it is.
            if let (204, Some(user)) = (answer.status, &claims.user) {
                accounts.end_outdated(user, has_new_key).await?;
            }
            Ok(answer)
        })
        .await
    }
}

/// Whether a password was checked and wrong. With a token that does not hold, which anybody can make up, `PocketBase`
/// complains about both and has checked nothing.
fn was_a_guess(answer: &Answer) -> bool {
    answer.status == 400 && complains(answer, "password") && !complains(answer, "token")
}

fn complains(answer: &Answer, field: &str) -> bool {
    answer.json().is_some_and(|body| body.get("data").is_some_and(|data| data.get(field).is_some()))
}

/// What a token from a mail says about itself; unproved.
#[derive(Default)]
struct Claims {
    user: Option<UserId>,
    email: Option<String>,
}

impl Claims {
    fn of(token: &str) -> Self {
        let payload = || -> Option<Value> {
            let payload = token.get(..).filter(|token| token.len() <= MAX_BYTES)?.split('.').nth(1)?;
            serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload).ok()?).ok()
        };
        let Some(claims) = payload() else { return Self::default() };
        let text = |name: &str| claims.get(name).and_then(Value::as_str);
        Self { user: text("id").and_then(|id| UserId::parse(id).ok()), email: text("email").map(str::to_owned) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn claims_are_read_from_any_text_without_harm() {
        let payload = URL_SAFE_NO_PAD.encode(r#"{"id":"b5c3xih3gtjb48z","email":"a@b.c"}"#);
        let claims = Claims::of(&format!("x.{payload}.y"));
        assert_eq!(claims.user.unwrap().as_str(), "b5c3xih3gtjb48z");
        assert_eq!(claims.email.as_deref(), Some("a@b.c"));
        for bad in ["", "x", "x.y.z", "..", &"x.".repeat(5000)] {
            assert!(Claims::of(bad).user.is_none());
        }
    }

    #[test]
    fn a_password_beside_a_made_up_token_is_no_guess() {
        let answer = |fields: Value| Answer { status: 400, body: json!({ "data": fields }).to_string().into() };
        assert!(was_a_guess(&answer(json!({"password": {"code": "c"}}))));
        assert!(!was_a_guess(&answer(json!({"password": {"code": "c"}, "token": {"code": "c"}}))));
        assert!(!was_a_guess(&answer(json!({"token": {"code": "c"}}))));
    }

    #[test]
    fn passwords_and_tokens_are_not_shown() {
        let confirmation = Confirmation::PasswordReset { token: "t0ken", password: "hunter2", confirm: "hunter2" };
        let shown = format!("{confirmation:?}");
        assert!(!shown.contains("t0ken") && !shown.contains("hunter2"), "{shown}");
    }
}
