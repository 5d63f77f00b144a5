//! Ids that are chosen here: how one gets into a registration, and why nobody else gets one in.
//!
//! Users may choose neither ids nor roles: the rule of the global instance for new accounts refuses a body that has
//! either. For ids of ours that rule has an exception, for calls that bring a header with a secret of this run. Such a
//! call is a guest's in everything else: the rule's other conditions, hooks and what is shown of the new record are as
//! ever, which they would not be with a superuser's call. The header is set on calls that are made here and on no other;
//! nothing of a client's request but its address, its device, its query and its body is passed on.
//!
//! So that a client's own id does not travel under our header, the id goes only into bodies that can be read in one
//! way: one JSON object, or a plain form, whose fields are plain names and neither `id` nor `role`. Every other body is
//! sent as it came, without the header, and refused or taken as ever.

use bytes::Bytes;
use hyper::header::HeaderName;
use serde_json::Map;
use serde_json::Value;

use super::Answer;
use super::Error;
use super::records::created;

/// Carries the secret.
pub(super) const HEADER: HeaderName = HeaderName::from_static("x-pocketfleet-reserved");
/// The same in a rule.
const IN_RULE: &str = "@request.headers.x_pocketfleet_reserved = ";
/// What the rule says to everybody.
const NO_ID: &str = "@request.body.id:isset = false";

/// Largest body that an id is put into. One with a picture is a form of another kind.
const LARGEST: usize = 64 * 1024;

/// The same body with an id; none for one that could hold an id or a role already, or is of another kind.
pub(super) fn with_id(content_type: Option<&str>, body: &Bytes, id: &str) -> Option<Bytes> {
    if body.len() > LARGEST {
        return None;
    }
    match content_type?.split(';').next()?.trim().to_ascii_lowercase().as_str() {
        "application/json" => {
            let mut fields: Map<String, Value> = serde_json::from_slice(body).ok()?;
            fields.keys().all(|name| is_plain(name)).then_some(())?;
            fields.insert("id".to_owned(), Value::from(id));
            Some(Bytes::from(Value::Object(fields).to_string()))
        }
        "application/x-www-form-urlencoded" => {
            let text = std::str::from_utf8(body).ok().filter(|text| !text.is_empty())?;
            let is_form = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~*+%=&".contains(&byte);
            let mut names = text.split('&').map(|pair| pair.split('=').next().unwrap_or_default());
            (text.bytes().all(is_form) && names.all(is_plain)).then(|| Bytes::from(format!("{text}&id={id}")))
        }
        _ => None,
    }
}

/// A field's name that means itself, and none of those that nobody may choose. Modifiers (`id:autogenerate`, `role+`)
/// and `@jsonPayload`, which holds fields of its own, are none.
fn is_plain(name: &str) -> bool {
    let is_word = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    is_word && !["id", "role"].iter().any(|taken| name.eq_ignore_ascii_case(taken))
}

/// The rule for new accounts that takes ids with this secret, or with none; nothing when the rule is one in which that
/// cannot be said.
pub(super) fn rule(stored: &str, key: Option<&str>) -> Option<String> {
    let clause = |key: &str| format!("({NO_ID} || {IN_RULE}\"{key}\")");
    let mut plain = stored.to_owned();
    if let Some((_, rest)) = stored.split_once(IN_RULE) {
        // Of an earlier run.
        let former = rest.strip_prefix('"')?.split('"').next()?;
        plain = stored.replace(&clause(former), NO_ID);
    }
    let is_clear = !plain.contains(IN_RULE) && plain.matches("@request.body.id").count() == 1 && plain.contains(NO_ID);
    match key {
        _ if !is_clear => None,
        None => Some(plain),
        Some(key) => Some(plain.replace(NO_ID, &clause(key))),
    }
}

/// What became of a registration with an id of ours.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The account has the id.
    Made,
    /// There is no account with the id, and the answer is the caller's.
    Refused,
    /// The same, but the id itself may be why. Without it the caller might not have been refused.
    WithoutIt,
    /// Somebody has the id already.
    Used,
    /// Nobody can tell.
    Unknown,
}

/// Judges an answer by what it can mean at worst.
pub(super) fn judge(answer: &Result<Answer, Error>, id: &str) -> Outcome {
    let Ok(answer) = answer else { return Outcome::Unknown };
    match answer.status {
        200 => match created(answer) {
            Some(user) if user.as_str() == id => Outcome::Made,
            // The account of another id was made.
            Some(_) => Outcome::Refused,
            None => Outcome::Unknown,
        },
        400 => match answer.json().as_ref().and_then(|body| body.get("data")?.as_object()) {
            Some(fields) if fields.contains_key("id") => Outcome::Used,
            Some(fields) if fields.is_empty() => Outcome::WithoutIt,
            _ => Outcome::Refused,
        },
        401..=499 => Outcome::Refused,
        _ => Outcome::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "b5c3xih3gtjb48z";
    const SHIPPED: &str = "@request.body.role:isset = false && @request.body.id:isset = false";
    const JSON: Option<&str> = Some("application/json; charset=utf-8");
    const FORM: Option<&str> = Some("application/x-www-form-urlencoded");

    fn filled(content_type: Option<&str>, body: &str) -> Option<String> {
        let filled = with_id(content_type, &Bytes::copy_from_slice(body.as_bytes()), ID)?;
        Some(String::from_utf8(filled.to_vec()).unwrap())
    }

    #[test]
    fn an_id_goes_into_plain_bodies_and_beside_no_id_or_role_of_the_clients() {
        let json: Value = serde_json::from_str(&filled(JSON, r#"{"email":"a@b.de","name":"A"}"#).unwrap()).unwrap();
        assert_eq!(json, serde_json::json!({"email": "a@b.de", "name": "A", "id": ID}));
        let form = filled(FORM, "email=a%40b.de&password=1+2").unwrap();
        assert_eq!(form, format!("email=a%40b.de&password=1+2&id={ID}"));
        for name in
            ["id", "Id", "ID", "role", "Role", "id+", "+id", "id:autogenerate", "role+", "role-", "@jsonPayload", ""]
        {
            assert_eq!(filled(JSON, &serde_json::json!({ "email": "a@b.de", name: "x" }).to_string()), None, "{name}");
            assert_eq!(filled(FORM, &format!("email=a&{name}=x")), None, "{name}");
        }
        let escaped = r#"{"email":"a","\u0069d":"aaaaaaaaaaaaaaa"}"#;
        assert_eq!(filled(JSON, escaped), None, "an escape does not hide it");
        for odd in ["", "[]", "null", "{", r#"{"email":"a"}x"#, r#"{"email":1e999}"#] {
            assert_eq!(filled(JSON, odd), None, "{odd}");
        }
        for odd in ["", "email=a&i%64=x", "email=a;id=x", "email=a&+id=x", "email=a&&b=c", "email=\u{e4}", "email=a\n"]
        {
            assert_eq!(filled(FORM, odd), None, "{odd}");
        }
        for other in [None, Some("multipart/form-data; boundary=x"), Some("text/plain"), Some("")] {
            assert_eq!(filled(other, r#"{"email":"a"}"#), None, "{other:?}");
        }
        assert_eq!(filled(JSON, &format!(r#"{{"name":"{}"}}"#, "x".repeat(LARGEST))), None);
    }

    #[test]
    fn the_rule_takes_the_present_secret_only_and_is_put_back_as_it_was() {
        let first = rule(SHIPPED, Some("k1")).unwrap();
        assert_eq!(
            first,
            "@request.body.role:isset = false && (@request.body.id:isset = false || \
             @request.headers.x_pocketfleet_reserved = \"k1\")"
        );
        let second = rule(&first, Some("k2")).unwrap();
        assert!(second.contains("k2") && !second.contains("k1"));
        assert_eq!(rule(&second, Some("k2")).unwrap(), second);
        assert_eq!(rule(&second, None).unwrap(), SHIPPED);
        assert_eq!(rule(SHIPPED, None).unwrap(), SHIPPED);
        for own in [
            "",
            "@request.body.role:isset = false",
            "@request.body.id = \"\"",
            "@request.body.id:isset = false || @request.body.id:isset = false",
            "@request.headers.x_pocketfleet_reserved = \"k1\" && @request.body.id:isset = false",
            "@request.headers.x_pocketfleet_reserved = @request.body.id && @request.body.id:isset = false",
        ] {
            assert_eq!(rule(own, Some("k")), None, "{own}");
        }
        let own = format!("{SHIPPED} && @request.body.email ~ \"@example.com\"");
        assert!(rule(&own, Some("k")).is_some_and(|rule| rule.ends_with("~ \"@example.com\"")));
    }

    #[test]
    fn an_id_is_free_again_only_when_nobody_can_have_it() {
        let answer = |status, body: &str| Ok(Answer { status, body: Bytes::copy_from_slice(body.as_bytes()) });
        for (status, body, outcome) in [
            (200, r#"{"id":"b5c3xih3gtjb48z"}"#, Outcome::Made),
            (200, r#"{"id":"aaaaaaaaaaaaaaa"}"#, Outcome::Refused),
            (200, "", Outcome::Unknown),
            (400, r#"{"data":{"email":{"code":"validation_not_unique"}}}"#, Outcome::Refused),
            (400, r#"{"data":{"id":{"code":"validation_not_unique"}}}"#, Outcome::Used),
            (400, r#"{"data":{}}"#, Outcome::WithoutIt),
            (403, "", Outcome::Refused),
            (429, "", Outcome::Refused),
            (500, "", Outcome::Unknown),
            (204, "", Outcome::Unknown),
        ] {
            assert_eq!(judge(&answer(status, body), ID), outcome, "{status} {body}");
        }
        assert_eq!(judge(&Err(Error::Unexpected), ID), Outcome::Unknown);
    }
}
