//! What people type, checked before it costs anything; and what `PocketBase` answers, taken apart.

use serde_json::Map;
use serde_json::Value;
use serde_json::json;

use super::Answer;
use super::Error;
use super::Registration;

/// `PocketBase` hashes with bcrypt, which reads no more than this many bytes.
const MAX_PASSWORD_BYTES: usize = 71;
const MIN_PASSWORD_CHARS: usize = 8;

/// Longest identity or password that is looked at when signing in (`PocketBase`'s own limit).
const MAX_CREDENTIAL_BYTES: usize = 255;

/// Longest address that mail can be sent to (RFC 5321).
const MAX_EMAIL_BYTES: usize = 254;
const MAX_NAME_CHARS: usize = 255;

/// Errors by field.
#[derive(Default)]
struct Complaints(Map<String, Value>);

impl Complaints {
    fn add(&mut self, field: &str, code: &str, message: &str) {
        self.0.entry(field).or_insert_with(|| json!({ "code": code, "message": message }));
    }

    fn done(self) -> Result<(), Error> {
        if self.0.is_empty() { Ok(()) } else { Err(Error::Invalid(self.0)) }
    }
}

/// Whether an identity and a password are worth a password check.
pub(super) fn check_credentials(identity: &str, password: &str) -> Result<(), Error> {
    check_present(&[("identity", identity), ("password", password)])
}

/// Whether a registration can succeed, as far as that can be told without asking.
pub(super) fn check_registration(fields: &Registration) -> Result<(), Error> {
    let mut complaints = Complaints::default();
    check_email(&fields.email, &mut complaints);
    check_password(&fields.password, &mut complaints);
    if fields.password_confirm.as_ref().is_some_and(|confirm| *confirm != fields.password) {
        complaints.add("passwordConfirm", "validation_values_mismatch", "Values don't match.");
    }
    if fields.name.as_ref().is_some_and(|name| name.chars().count() > MAX_NAME_CHARS) {
        complaints.add("name", "validation_max_text_constraint", "Must be no more than 255 character(s).");
    }
    complaints.done()
}

/// One field that is not valid.
pub(super) fn invalid(field: &str, code: &str, message: &str) -> Error {
    let mut complaints = Complaints::default();
    complaints.add(field, code, message);
    Error::Invalid(complaints.0)
}

/// Whether all of these fields have something in them, and not too much.
pub(super) fn check_present(fields: &[(&str, &str)]) -> Result<(), Error> {
    let mut complaints = Complaints::default();
    for (field, text) in fields {
        if text.is_empty() {
            complaints.add(field, "validation_required", "Cannot be blank.");
        } else if text.len() > MAX_CREDENTIAL_BYTES {
            complaints.add(field, "validation_length_out_of_range", "Must be at most 255 bytes long.");
        }
    }
    complaints.done()
}

/// Whether mail can be sent to this address, as far as its shape tells.
pub(super) fn check_address(field: &str, email: &str) -> Result<(), Error> {
    let mut complaints = Complaints::default();
    check_email_in(field, email, &mut complaints);
    complaints.done()
}

fn check_email(email: &str, complaints: &mut Complaints) {
    check_email_in("email", email, complaints);
}

fn check_email_in(field: &str, email: &str, complaints: &mut Complaints) {
    let shaped = email.len() <= MAX_EMAIL_BYTES
        && !email.chars().any(|c| c.is_whitespace() || c.is_control())
        && email.split_once('@').is_some_and(|(local, domain)| {
            !local.is_empty() && !domain.contains('@') && domain.split('.').all(|label| !label.is_empty())
        });
    if email.is_empty() {
        complaints.add(field, "validation_required", "Cannot be blank.");
    } else if !shaped {
        complaints.add(field, "validation_is_email", "Must be a valid email address.");
    }
}

fn check_password(password: &str, complaints: &mut Complaints) {
    if password.is_empty() {
        complaints.add("password", "validation_required", "Cannot be blank.");
    } else if password.chars().count() < MIN_PASSWORD_CHARS {
        complaints.add("password", "validation_min_text_constraint", "Must be at least 8 character(s).");
    } else if password.len() > MAX_PASSWORD_BYTES {
        complaints.add("password", "validation_max_text_constraint", "Must be no more than 71 bytes.");
    }
}

/// What `PocketBase` creates from a registration: these fields and no others, whatever was sent.
pub(super) fn registration_body(fields: &Registration) -> Value {
    let mut body = json!({
        "email": fields.email,
        "password": fields.password,
        "passwordConfirm": fields.password_confirm.as_ref().unwrap_or(&fields.password),
    });
    if let Some(name) = &fields.name {
        body["name"] = Value::from(name.as_str());
    }
    body
}

/// Why `PocketBase` did not create a record: its complaints by field, or its answer when it gave none.
pub(super) fn creation_error(answer: Answer) -> Error {
    let data = match answer.json() {
        Some(Value::Object(mut body)) if answer.status == 400 => body.remove("data"),
        _ => None,
    };
    match data {
        Some(data) if field_code(&data, "email") == Some("validation_not_unique") => Error::EmailTaken,
        Some(Value::Object(fields)) if !fields.is_empty() => Error::Invalid(fields),
        // A refusal without fields is a rule's: to the caller, not a wrong password but something forbidden.
        Some(_) => Error::Refused(Answer { status: 403, ..answer }),
        None => Error::Refused(answer),
    }
}

/// The code of `PocketBase`'s complaint about a field.
pub(super) fn field_code<'a>(data: &'a Value, field: &str) -> Option<&'a str> {
    data.get(field)?.get("code")?.as_str()
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn registration(email: &str, password: &str) -> Registration {
        Registration { email: email.into(), password: password.into(), password_confirm: None, name: None }
    }

    fn complaints(fields: &Registration) -> Vec<String> {
        match check_registration(fields) {
            Err(Error::Invalid(fields)) => fields.keys().cloned().collect(),
            _ => Vec::new(),
        }
    }

    #[test]
    fn only_plausible_addresses_and_passwords_bcrypt_can_read_pass() {
        assert!(complaints(&registration("eve@example.com", "12345678")).is_empty());
        for bad in ["", "eve", "@example.com", "eve@", "a@b@c", "e ve@example.com", "eve@example..com", "eve@x\n"] {
            assert_eq!(complaints(&registration(bad, "12345678")), ["email"], "{bad:?}");
        }
        assert!(complaints(&registration("eve@example.com", &"x".repeat(71))).is_empty());
        for bad in ["", "1234567", &"x".repeat(72), &"ä".repeat(36)] {
            assert_eq!(complaints(&registration("eve@example.com", bad)), ["password"], "{bad:?}");
        }
        let mismatch = Registration { password_confirm: Some("other".into()), ..registration("e@x.de", "12345678") };
        assert_eq!(complaints(&mismatch), ["passwordConfirm"]);
    }

    #[test]
    fn refusals_of_a_creation_are_told_apart() {
        let answer = |status, body: &'static str| Answer { status, body: Bytes::from_static(body.as_bytes()) };
        let taken = r#"{"data":{"email":{"code":"validation_not_unique","message":"x"}},"status":400}"#;
        assert!(matches!(creation_error(answer(400, taken)), Error::EmailTaken));
        let other = r#"{"data":{"name":{"code":"c","message":"x"}},"status":400}"#;
        assert!(matches!(creation_error(answer(400, other)), Error::Invalid(fields) if fields.contains_key("name")));
        let rule = answer(400, r#"{"data":{},"status":400}"#);
        assert!(matches!(creation_error(rule), Error::Refused(answer) if answer.status == 403));
        assert!(matches!(creation_error(answer(500, "oops")), Error::Refused(answer) if answer.status == 500));
    }
}
