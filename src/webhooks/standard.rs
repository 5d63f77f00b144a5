//! Standard Webhooks (standardwebhooks.com), which Svix and Fathom speak: HMAC-SHA256 over `{id}.{time}.{body}`.
//!
//! Headers `webhook-id`, `webhook-timestamp`, `webhook-signature`, or the same with `svix-`; secrets are base64 after
//! `whsec_`; signatures are `v1,<base64>`, several with spaces between. The receiver still has to remember ids: a call that
//! is repeated within five minutes carries a valid signature.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::Hmac;
use hmac::KeyInit;
use hmac::Mac;
use hyper::HeaderMap;
use sha2::Sha256;
use time::OffsetDateTime;

use crate::vault::Secret;

/// How far the sender's clock may be from ours, either way, in seconds.
pub const TOLERANCE_SECONDS: i64 = 300;
/// Most signatures of one call that are looked at: a sender that rotates has two.
const MAX_SIGNATURES: usize = 8;
/// Longest id that is taken.
const MAX_ID_BYTES: usize = 256;

/// Why a call is not believed. The sender is not told which.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// There is no usable secret; nothing can be verified.
    #[error("the secret is empty or not base64")]
    Secret,
    /// A header is missing, there more than once, or cannot be read.
    #[error("a signature header is missing, repeated or malformed")]
    Header,
    /// Too old, or from the future.
    #[error("the time of the call is more than five minutes from now")]
    Time,
    /// No signature is right.
    #[error("no signature of the call is right")]
    Signature,
}

/// A key that calls are signed with.
#[derive(Clone)]
pub struct Key(Hmac<Sha256>);

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Key([not shown])")
    }
}

impl Key {
    /// Reads a secret, with or without `whsec_`. An empty one, which would make everything verifiable, is refused.
    pub fn read(secret: &Secret) -> Result<Self, Error> {
        let text = secret.expose().trim();
        let text = text.strip_prefix("whsec_").unwrap_or(text);
        let bytes = STANDARD.decode(text).map_err(|_| Error::Secret)?;
        if bytes.is_empty() {
            return Err(Error::Secret);
        }
        Hmac::new_from_slice(&bytes).map(Self).map_err(|_| Error::Secret)
    }

    /// The value of the signature header for a call of ours.
    pub fn sign(&self, id: &str, at: OffsetDateTime, body: &[u8]) -> String {
        let signature = self.signed(id, at.unix_timestamp(), body).finalize().into_bytes();
        format!("v1,{}", STANDARD.encode(signature))
    }

    fn signed(&self, id: &str, seconds: i64, body: &[u8]) -> Hmac<Sha256> {
        let mut mac = self.0.clone();
        mac.update(id.as_bytes());
        mac.update(b".");
        mac.update(seconds.to_string().as_bytes());
        mac.update(b".");
        mac.update(body);
        mac
    }
}

/// A call that is believed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    /// Its id, the same in every retry: remember it, do not act on it twice.
    pub id: String,
    /// When it was sent.
    pub at: OffsetDateTime,
}

/// Checks a call against every secret that is valid now; one right signature is enough.
pub fn verify(keys: &[Key], headers: &HeaderMap, body: &[u8], now: OffsetDateTime) -> Result<Verified, Error> {
    if keys.is_empty() {
        return Err(Error::Secret);
    }
    let id = header(headers, "id")?;
    if id.is_empty() || id.len() > MAX_ID_BYTES {
        return Err(Error::Header);
    }
    let time = header(headers, "timestamp")?;
    // No sign, no spaces, no leading zero: the text is signed, so there is one way to write it.
    if time.is_empty() || time.len() > 12 || !time.bytes().all(|b| b.is_ascii_digit()) || time.starts_with('0') {
        return Err(Error::Header);
    }
    let seconds: i64 = time.parse().map_err(|_| Error::Header)?;
    let at = OffsetDateTime::from_unix_timestamp(seconds).map_err(|_| Error::Header)?;
    if (now.unix_timestamp() - seconds).abs() > TOLERANCE_SECONDS {
        return Err(Error::Time);
    }
    let given = header(headers, "signature")?;
    for signature in given.split(' ').filter_map(|one| one.strip_prefix("v1,")).take(MAX_SIGNATURES) {
        let Ok(signature) = STANDARD.decode(signature) else { continue };
        for key in keys {
            // Compares in constant time, and refuses another length.
            if key.signed(id, seconds, body).verify_slice(&signature).is_ok() {
                return Ok(Verified { id: id.to_owned(), at });
            }
        }
    }
    Err(Error::Signature)
}

/// The one value of a header, by either name. Senders that use both names say the same with them.
fn header<'a>(headers: &'a HeaderMap, name: &str) -> Result<&'a str, Error> {
    let mut found = None;
    for prefix in ["webhook", "svix"] {
        let mut values = headers.get_all(format!("{prefix}-{name}")).iter();
        let Some(value) = values.next() else { continue };
        let value = value.to_str().map_err(|_| Error::Header)?;
        if values.next().is_some() || found.is_some_and(|other| other != value) {
            return Err(Error::Header);
        }
        found = Some(value);
    }
    found.ok_or(Error::Header)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Secret, id, time, body, signature.
    type Vector = (&'static str, &'static str, i64, &'static str, &'static str);

    /// The specification's, Svix's, and one with the secret that Fathom's documentation shows.
    const VECTORS: [Vector; 3] = [
        (
            "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
            "msg_p5jXN8AQM9LWM0D4loKWxJek",
            1_614_265_330,
            r#"{"test": 2432232314}"#,
            "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
        ),
        (
            "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD",
            "msg_27UH4WbU6Z5A5EzD8u03UvzRbpk",
            1_649_367_553,
            r#"{"email":"test@example.com","username":"test_user"}"#,
            "v1,tZ1I4/hDygAJgO5TYxiSd6Sd0kDW6hPenDe+bTa3Kkw=",
        ),
        (
            "whsec_5WbX5kEWLlfzsGNjH64I8lOOqUB6e8FH",
            "msg_fathom_test",
            1_750_000_000,
            r#"{"recording_id":123456789,"title":"Quarterly Business Review"}"#,
            "v1,0eJSTNnRAfyT9NDwwyuN78ybXHtVyQJ4ZDXsYmMRM7w=",
        ),
    ];

    fn key(text: &str) -> Key {
        Key::read(&Secret::new(text.to_owned())).unwrap()
    }

    fn at(seconds: i64) -> OffsetDateTime {
        OffsetDateTime::from_unix_timestamp(seconds).unwrap()
    }

    fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(hyper::header::HeaderName::from_bytes(name.as_bytes()).unwrap(), value.parse().unwrap());
        }
        headers
    }

    /// A check of the first vector with these headers.
    fn check(pairs: &[(&str, &str)]) -> Result<Verified, Error> {
        let (secret, _, time, body, _) = VECTORS[0];
        verify(&[key(secret)], &headers(pairs), body.as_bytes(), at(time))
    }

    #[test]
    fn published_vectors_verify_and_are_what_we_sign() {
        for (secret, id, time, body, signature) in VECTORS {
            let stamp = time.to_string();
            for prefix in ["webhook", "svix", "Webhook"] {
                let names = ["id", "timestamp", "signature"].map(|name| format!("{prefix}-{name}"));
                let sent = headers(&[(&names[0], id), (&names[1], &stamp), (&names[2], signature)]);
                let verified = verify(&[key(secret)], &sent, body.as_bytes(), at(time));
                assert_eq!(verified, Ok(Verified { id: id.to_owned(), at: at(time) }));
                let changed = verify(&[key(secret)], &sent, format!("{body} ").as_bytes(), at(time));
                assert_eq!(changed, Err(Error::Signature));
            }
            assert_eq!(key(secret).sign(id, at(time), body.as_bytes()), signature);
            assert_eq!(key(secret.trim_start_matches("whsec_")).sign(id, at(time), body.as_bytes()), signature);
        }
    }

    #[test]
    fn times_more_than_five_minutes_away_are_refused_either_way() {
        let (secret, id, time, body, signature) = VECTORS[0];
        let sent =
            headers(&[("webhook-id", id), ("webhook-timestamp", &time.to_string()), ("webhook-signature", signature)]);
        for (now, expected) in [(-300, true), (300, true), (-301, false), (301, false), (-600, false)] {
            let verified = verify(&[key(secret)], &sent, body.as_bytes(), at(time + now));
            assert_eq!(verified.is_ok(), expected, "{now}");
            if !expected {
                assert_eq!(verified, Err(Error::Time));
            }
        }
    }

    #[test]
    fn one_right_signature_and_one_right_secret_are_enough() {
        let (secret, id, time, body, signature) = VECTORS[0];
        let stamp = time.to_string();
        let other = VECTORS[1].4;
        for list in [
            format!("{other} {signature}"),
            format!("v1a,xxxx v2,{signature} {signature}"),
            format!("v1,notbase64! v1, {signature} {other}"),
        ] {
            let sent = headers(&[("webhook-id", id), ("webhook-timestamp", &stamp), ("webhook-signature", &list)]);
            assert!(verify(&[key(VECTORS[1].0), key(secret)], &sent, body.as_bytes(), at(time)).is_ok(), "{list}");
            assert_eq!(verify(&[key(VECTORS[1].0)], &sent, body.as_bytes(), at(time)), Err(Error::Signature));
        }
        let many = format!("{}{signature}", "v1,AAAA ".repeat(MAX_SIGNATURES));
        assert_eq!(
            check(&[("webhook-id", id), ("webhook-timestamp", &stamp), ("webhook-signature", &many)]),
            Err(Error::Signature),
            "the work is bounded"
        );
    }

    #[test]
    fn wrong_signatures_of_any_length_are_refused() {
        let (_, id, time, _, signature) = VECTORS[0];
        let stamp = time.to_string();
        for wrong in
            ["", "v1", "v1,", "v1,AA==", "v1,====", signature.trim_start_matches("v1,"), &signature[..20], "v0,x"]
        {
            let sent = [("webhook-id", id), ("webhook-timestamp", &stamp), ("webhook-signature", wrong)];
            assert_eq!(check(&sent), Err(Error::Signature), "{wrong}");
        }
        let longer = format!("v1,{}", STANDARD.encode([0; 64]));
        let sent = [("webhook-id", id), ("webhook-timestamp", &stamp), ("webhook-signature", &longer)];
        assert_eq!(check(&sent), Err(Error::Signature));
    }

    #[test]
    fn headers_that_are_missing_repeated_or_odd_are_refused() {
        let (_, id, time, _, signature) = VECTORS[0];
        let stamp = time.to_string();
        let whole = [("webhook-id", id), ("webhook-timestamp", stamp.as_str()), ("webhook-signature", signature)];
        assert!(check(&whole).is_ok());
        for at in 0..3 {
            let mut missing = whole.to_vec();
            missing.remove(at);
            assert_eq!(check(&missing), Err(Error::Header));
            let repeated = [&whole[..], &whole[at..=at]].concat();
            assert_eq!(check(&repeated), Err(Error::Header));
        }
        for odd in
            ["", "abc", "1614265330.0", "+1614265330", " ", "-1614265330", "01614265330", "0x60", "9999999999999"]
        {
            let sent = [whole[0], ("webhook-timestamp", odd), whole[2]];
            assert_eq!(check(&sent), Err(Error::Header), "{odd}");
        }
        assert_eq!(check(&[("webhook-id", ""), whole[1], whole[2]]), Err(Error::Header));
        let both = [&whole[..], &[("svix-id", id)]].concat();
        assert!(check(&both).is_ok(), "both names that say the same");
        let contrary = [&whole[..], &[("svix-id", "msg_other")]].concat();
        assert_eq!(check(&contrary), Err(Error::Header));
    }

    #[test]
    fn empty_secrets_are_no_secrets() {
        for text in ["", "whsec_", " ", "whsec_ ", "whsec_!!!", "====="] {
            assert_eq!(Key::read(&Secret::new(text.to_owned())).unwrap_err(), Error::Secret, "{text}");
        }
        assert_eq!(verify(&[], &HeaderMap::new(), b"", at(0)), Err(Error::Secret));
    }
}
