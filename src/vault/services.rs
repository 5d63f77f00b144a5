//! The services that secrets are for: what a secret of each looks like, and what goes with it that is not secret.
//!
//! Pure. What a text must not be (empty, a line of several, a placeholder that was never filled in) is the same for all.

use serde_json::Map;
use serde_json::Value;

use super::error::Invalid;

/// Longest secret, in bytes.
const MAX_SECRET_BYTES: usize = 8_192;
/// Longest value of a setting, in bytes.
const MAX_SETTING_BYTES: usize = 1_024;
/// Longest label, in characters.
const MAX_LABEL_CHARS: usize = 64;
/// A hint shows the last characters of secrets at least this long.
const HINT_FROM: usize = 12;
/// How many it shows.
const HINT_CHARS: usize = 4;

/// A setting of a service.
struct Setting {
    name: &'static str,
    is_needed: bool,
}

const fn needed(name: &'static str) -> Setting {
    Setting { name, is_needed: true }
}

const fn optional(name: &'static str) -> Setting {
    Setting { name, is_needed: false }
}

/// A service known by name.
struct Service {
    name: &'static str,
    /// Shortest secret, in bytes.
    shortest: usize,
    /// Whether a secret may have spaces inside.
    takes_spaces: bool,
    settings: &'static [Setting],
}

const SERVICES: [Service; 5] = [
    // An API key of a Fathom user: `X-Api-Key`.
    Service { name: "fathom", shortest: 8, takes_spaces: false, settings: &[] },
    // The secret access key; its id is no secret.
    Service {
        name: "s3",
        shortest: 16,
        takes_spaces: false,
        settings: &[needed("access_key_id"), optional("region"), optional("endpoint"), optional("bucket")],
    },
    // What follows `Authorization: Bearer` at an HTTP or tus destination, or the value of another header.
    Service { name: "http", shortest: 1, takes_spaces: true, settings: &[optional("header"), optional("scheme")] },
    Service { name: "loom", shortest: 8, takes_spaces: false, settings: &[] },
    Service { name: "generic", shortest: 1, takes_spaces: true, settings: &[optional("url"), optional("note")] },
];

/// What a stored secret is for, what it is called and what goes with it: valid.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Described {
    pub(super) service: &'static str,
    pub(super) label: String,
    pub(super) settings: Value,
}

fn invalid<T>(field: &'static str, code: &'static str, message: &'static str) -> Result<T, Invalid> {
    Err(Invalid { field, code, message })
}

/// Checks a description.
pub(super) fn describe(service: &str, label: &str, settings: &Value) -> Result<Described, Invalid> {
    let service = find(service)?;
    Ok(Described {
        service: service.name,
        label: check_label(label)?.to_owned(),
        settings: check_settings(service, settings)?,
    })
}

fn find(name: &str) -> Result<&'static Service, Invalid> {
    match SERVICES.iter().find(|service| service.name == name) {
        Some(service) => Ok(service),
        None => invalid("service", "unknown_service", "must be one of fathom, s3, http, loom, generic"),
    }
}

/// Checks what a user calls a secret: letters, digits and a few signs, so that no name reads as another.
pub(super) fn check_label(label: &str) -> Result<&str, Invalid> {
    let is_letter = |c: char| c.is_alphanumeric() || " -_.@()+".contains(c);
    let fits = (1..=MAX_LABEL_CHARS).contains(&label.chars().count());
    if fits && label.trim() == label && label.chars().all(is_letter) {
        return Ok(label);
    }
    invalid("label", "invalid_label", "1 to 64 letters, digits, spaces or - _ . @ ( ) +, no space at either end")
}

fn check_settings(service: &Service, settings: &Value) -> Result<Value, Invalid> {
    let empty = Map::new();
    let given = match settings {
        Value::Null => &empty,
        Value::Object(given) => given,
        _ => return invalid("settings", "invalid_settings", "must be an object"),
    };
    for (name, value) in given {
        if !service.settings.iter().any(|setting| setting.name == name) {
            return invalid("settings", "unknown_setting", "has a key that this service does not know");
        }
        let text = value.as_str().unwrap_or_default();
        if text.is_empty() || text.len() > MAX_SETTING_BYTES || text.chars().any(is_forbidden) {
            return invalid("settings", "invalid_setting", "each value must be a text of 1 to 1024 bytes in one line");
        }
        if name == "header" && !text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte)) {
            return invalid("settings", "invalid_setting", "`header` must be the name of a header");
        }
        if name == "scheme" && !text.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
            return invalid("settings", "invalid_setting", "`scheme` must be one word, such as Bearer");
        }
        if matches!(name.as_str(), "endpoint" | "url") && !text.starts_with("https://") && !text.starts_with("http://")
        {
            return invalid("settings", "invalid_setting", "an address begins with https:// or http://");
        }
    }
    if service.settings.iter().any(|setting| setting.is_needed && !given.contains_key(setting.name)) {
        return invalid("settings", "missing_setting", "this service needs `access_key_id`");
    }
    // An empty object and none are the same.
    Ok(if given.is_empty() { Value::Null } else { settings.clone() })
}

/// What has no place in one line of text, or turns the direction in which it is read.
fn is_forbidden(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

/// Checks a secret of a service.
pub(super) fn check_secret(service: &str, secret: &str) -> Result<(), Invalid> {
    let service = find(service)?;
    if secret.trim().is_empty() {
        return invalid("secret", "empty", "must not be empty");
    }
    if secret.len() > MAX_SECRET_BYTES {
        return invalid("secret", "too_long", "at most 8192 bytes");
    }
    if secret.chars().any(is_forbidden) {
        return invalid("secret", "invalid_secret", "must be one line without control characters");
    }
    if secret.trim() != secret {
        return invalid("secret", "invalid_secret", "has a space at its beginning or end; paste it without");
    }
    if !service.takes_spaces && !secret.bytes().all(|byte| byte.is_ascii_graphic()) {
        return invalid("secret", "invalid_secret", "must be letters, digits and signs without spaces");
    }
    if secret.len() < service.shortest {
        return invalid("secret", "too_short", "is too short to be whole; paste all of it");
    }
    if is_placeholder(secret) {
        return invalid("secret", "placeholder", "looks like a placeholder; paste the secret itself");
    }
    Ok(())
}

/// Whether a text is what stands in documentation or in a template where a secret should be.
fn is_placeholder(secret: &str) -> bool {
    let between = |open: &str, close: &str| secret.starts_with(open) && secret.ends_with(close);
    let mut letters = secret.chars();
    let first = letters.next();
    let is_one_letter = secret.chars().count() >= 4 && letters.all(|letter| Some(letter) == first);
    let word = secret.to_ascii_lowercase().replace(['-', ' ', '.'], "_");
    let words = ["changeme", "change_me", "your_api_key", "your_key", "your_secret", "api_key", "secret", "password"];
    secret.contains("{{")
        || between("${", "}")
        || between("<", ">")
        || is_one_letter
        || words.contains(&&*word)
        || word.starts_with("your_")
}

/// The last characters, if the secret is long enough that they tell nothing.
pub(super) fn hint(secret: &str) -> Option<String> {
    let count = secret.chars().count();
    (count >= HINT_FROM).then(|| secret.chars().skip(count - HINT_CHARS).collect())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_secret_is_one_line_that_could_be_one() {
        for good in ["fathom-key-0123456789", "AKIA/abc+def==", "x:y_z-1234"] {
            assert_eq!(check_secret("fathom", good), Ok(()), "{good}");
        }
        let long = "a1".repeat(5_000);
        for bad in [
            "",
            "  ",
            "short",
            "two words here",
            "line\nbreak-key",
            "nul\0nul-nul",
            "rtl\u{202e}mark-x",
            " padded-key-1 ",
            "{{ FATHOM_KEY }}",
            "${FATHOM_KEY}",
            "<your-key-here>",
            "changeme",
            "your-api-key",
            "xxxxxxxxxxxx",
            "schlüssel-key",
            long.as_str(),
        ] {
            assert!(check_secret("fathom", bad).is_err(), "{bad:?}");
        }
        assert_eq!(check_secret("http", "Basic dXNlcjpwYXNz"), Ok(()));
    }

    #[test]
    fn a_description_names_known_things_only() {
        let s3 = json!({"access_key_id": "AKIA123", "region": "eu-central-1"});
        assert_eq!(describe("s3", "main", &s3).unwrap().settings, s3);
        assert_eq!(describe("fathom", "default", &json!({})).unwrap().settings, Value::Null);
        let long = "s".repeat(300);
        for (service, label, settings) in [
            ("", "a", json!(null)),
            ("openai", "a", json!(null)),
            (long.as_str(), "a", json!(null)),
            ("../x", "a", json!(null)),
            ("fathom\u{202e}", "a", json!(null)),
            ("fathom", "", json!(null)),
            ("fathom", " a", json!(null)),
            ("fathom", "a\u{202e}b", json!(null)),
            ("fathom", "a\nb", json!(null)),
            ("fathom", long.as_str(), json!(null)),
            ("fathom", "a", json!([])),
            ("fathom", "a", json!({"region": "x"})),
            ("s3", "a", json!({})),
            ("s3", "a", json!({"access_key_id": 7})),
            ("s3", "a", json!({"access_key_id": "AKIA", "endpoint": "file:///etc"})),
            ("http", "a", json!({"header": "X-A: b"})),
        ] {
            assert!(describe(service, label, &settings).is_err(), "{service:?} {label:?} {settings}");
        }
    }

    #[test]
    fn a_hint_shows_little_of_a_long_secret_and_nothing_of_a_short_one() {
        assert_eq!(hint("abcdefghijkl").as_deref(), Some("ijkl"));
        assert_eq!(hint("abcdefghijk"), None);
    }
}
