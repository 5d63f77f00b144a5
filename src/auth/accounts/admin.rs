//! Admins: made by the operator, never by registration.

use hyper::Method;
use serde_json::Value;
use serde_json::json;

use super::Accounts;
use super::Error;
use super::Registration;
use super::forms;
use super::upstream::Call;
use crate::ids::UserId;

impl Accounts {
    /// Whether any account is an admin. Reads the accounts database, which exists once the global instance ran.
    pub fn any_admin(&self) -> Result<bool, Error> {
        Ok(self.shared.verifier.any_admin()?)
    }

    /// Creates an admin, or makes one of the account with this e-mail address. The password is set in both cases and
    /// older sessions end: a stranger may have registered the address before.
    pub async fn create_admin(&self, email: &str, password: &str) -> Result<(), Error> {
        let fields =
            Registration { email: email.to_owned(), password: password.to_owned(), password_confirm: None, name: None };
        forms::check_registration(&fields)?;
        let mut body = forms::registration_body(&fields);
        body["role"] = Value::from("admin");
        body["verified"] = Value::from(true);
        let answer = self.shared.upstream.call(Call::superuser(Method::POST, "/records").json(&body)).await?;
        self.shared.verifier.accounts_changed();
        if answer.status == 200 {
            let record = answer.json().ok_or(Error::Unexpected)?;
            let id = record.get("id").and_then(Value::as_str).ok_or(Error::Unexpected)?;
            self.give_tenant(&UserId::parse(id).map_err(|_| Error::Unexpected)?).await;
            return Ok(());
        }
        match forms::creation_error(answer) {
            Error::EmailTaken => self.promote(email, password).await,
            error => Err(error),
        }
    }

    async fn promote(&self, email: &str, password: &str) -> Result<(), Error> {
        let user = self.shared.verifier.find_by_email(email)?.ok_or(Error::EmailTaken)?;
        let body = json!({
            "role": "admin", "verified": true, "password": password, "passwordConfirm": password,
        });
        let call = Call::superuser(Method::PATCH, &format!("/records/{user}")).json(&body);
        let answer = self.shared.upstream.call(call).await?;
        self.shared.verifier.accounts_changed();
        if answer.status != 200 {
            return Err(forms::creation_error(answer));
        }
        self.shared.sessions.revoke_all(&user).await?;
        self.give_tenant(&user).await;
        Ok(())
    }
}
