//! Signatures of providers that do not speak Standard Webhooks: Stripe, Meta (Facebook, Instagram, `WhatsApp`), `TikTok`.
//!
//! All are HMAC-SHA256 in hex over the raw body, some with a time in front. Meta signs no time: the receiver remembers the
//! hash of bodies instead. Their secrets are used as text, not decoded.

use hmac::Hmac;
use hmac::KeyInit;
use hmac::Mac;
use sha2::Sha256;
use time::OffsetDateTime;

use super::standard::Error;
use super::standard::TOLERANCE_SECONDS;
use crate::vault::Secret;

/// Most parts of a header that are looked at.
const MAX_PARTS: usize = 16;

/// Checks `Stripe-Signature: t=…,v1=…[,v1=…]`; other versions are ignored.
pub fn verify_stripe(secrets: &[Secret], header: &str, body: &[u8], now: OffsetDateTime) -> Result<(), Error> {
    timed(secrets, header, "v1", body, now)
}

/// Checks `TikTok-Signature: t=…,s=…`.
pub fn verify_tiktok(secrets: &[Secret], header: &str, body: &[u8], now: OffsetDateTime) -> Result<(), Error> {
    timed(secrets, header, "s", body, now)
}

/// Checks `X-Hub-Signature-256: sha256=…`.
pub fn verify_meta(secrets: &[Secret], header: &str, body: &[u8]) -> Result<(), Error> {
    let signature = header.trim().strip_prefix("sha256=").ok_or(Error::Header)?;
    one_is_right(secrets, &[signature], &[body])
}

fn timed(secrets: &[Secret], header: &str, name: &str, body: &[u8], now: OffsetDateTime) -> Result<(), Error> {
    let (mut time, mut signatures) = (None, Vec::new());
    for part in header.split(',').take(MAX_PARTS) {
        match part.trim().split_once('=') {
            Some(("t", _)) if time.is_some() => return Err(Error::Header),
            Some(("t", text)) => time = Some(text),
            Some((found, signature)) if found == name => signatures.push(signature),
            _ => {}
        }
    }
    let time = time.filter(|text| !text.is_empty() && text.len() <= 12 && text.bytes().all(|b| b.is_ascii_digit()));
    let time = time.ok_or(Error::Header)?;
    let seconds: i64 = time.parse().map_err(|_| Error::Header)?;
    if (now.unix_timestamp() - seconds).abs() > TOLERANCE_SECONDS {
        return Err(Error::Time);
    }
    one_is_right(secrets, &signatures, &[time.as_bytes(), b".", body])
}

fn one_is_right(secrets: &[Secret], signatures: &[&str], signed: &[&[u8]]) -> Result<(), Error> {
    if secrets.is_empty() || secrets.iter().any(Secret::is_empty) {
        return Err(Error::Secret);
    }
    for signature in signatures.iter().filter_map(|text| from_hex(text)) {
        for secret in secrets {
            let mut mac: Hmac<Sha256> = Hmac::new_from_slice(secret.expose().as_bytes()).map_err(|_| Error::Secret)?;
            for part in signed {
                mac.update(part);
            }
            // Compares in constant time.
            if mac.verify_slice(&signature).is_ok() {
                return Ok(());
            }
        }
    }
    Err(Error::Signature)
}

/// The 32 bytes of a signature.
fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digits: Vec<u8> =
        text.chars().map(|c| c.to_digit(16).and_then(|d| u8::try_from(d).ok())).collect::<Option<_>>()?;
    (digits.len() == 64).then(|| digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const STRIPE: &str = "c2f890decbc5ede7c5060bb9a6d31e0626a4342bacb9aeae2adb1bcea72f9812";
    const STRIPE_BODY: &[u8] = b"{\n  \"id\": \"evt_test_webhook\",\n  \"object\": \"event\"\n}";
    const TIKTOK_BODY: &[u8] = br#"{"client_key":"bwo2m45353a6k85","event":"video.publish.completed","create_time":1615338610,"user_openid":"act.example12345Example12345Example","content":"{\"share_id\":\"video.6974245311675353080.VDCxrcMJ\"}"}"#;

    fn secrets(texts: &[&str]) -> Vec<Secret> {
        texts.iter().map(|text| Secret::new((*text).to_owned())).collect()
    }

    fn at(seconds: i64) -> OffsetDateTime {
        OffsetDateTime::from_unix_timestamp(seconds).unwrap()
    }

    #[test]
    fn published_vectors_verify() {
        let both = secrets(&["another", "whsec_test_secret"]);
        let header = format!("t=1492774577,v0=00,v1={},v1={STRIPE}", "0".repeat(64));
        assert_eq!(verify_stripe(&both, &header, STRIPE_BODY, at(1_492_774_577)), Ok(()));
        for (secret, body, signature) in [
            (
                "It's a Secret to Everybody",
                &b"Hello, World!"[..],
                "757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17",
            ),
            (
                "app_secret_test",
                br#"{"object":"instagram","text":"\u00e4\u00f6\u00e5"}"#,
                "c0373560e9bcb83889ad6b49fd48ee0e53da0300d466f5ba28f3ead3bbacf92b",
            ),
        ] {
            let header = format!("sha256={signature}");
            assert_eq!(verify_meta(&secrets(&[secret]), &header, body), Ok(()));
            assert_eq!(verify_meta(&secrets(&["other"]), &header, body), Err(Error::Signature));
            assert_eq!(verify_meta(&secrets(&[secret]), signature, body), Err(Error::Header));
            assert_eq!(verify_meta(&secrets(&[secret]), "sha256=00", body), Err(Error::Signature));
        }
        let header = "t=1633174587,s=3744fc8df032c699ecfec1cea4bd47761660fdc1d3359fcdb2e3c09c2d82ec7c";
        assert_eq!(verify_tiktok(&secrets(&["tiktok_client_secret"]), header, TIKTOK_BODY, at(1_633_174_587)), Ok(()));
    }

    #[test]
    fn odd_headers_old_times_and_empty_secrets_are_refused() {
        let right = secrets(&["whsec_test_secret"]);
        let check = |header: &str, now| verify_stripe(&right, header, STRIPE_BODY, at(now));
        let header = format!("t=1492774577,v1={STRIPE}");
        assert_eq!(check(&header, 1_492_774_577 + 300), Ok(()));
        assert_eq!(check(&header, 1_492_774_577 + 301), Err(Error::Time));
        assert_eq!(check(&header, 1_492_774_577 - 301), Err(Error::Time));
        for odd in ["", "t=,v1=x", "v1=x", "t=-5,v1=x", "t=1492774577,t=1492774577,v1=x", "t=1e9"] {
            assert_eq!(check(odd, 1_492_774_577), Err(Error::Header), "{odd}");
        }
        for odd in ["t=1492774577", "t=1492774577,v1=", "t=1492774577,v1=zz", &format!("t=1492774577,v0={STRIPE}")] {
            assert_eq!(check(odd, 1_492_774_577), Err(Error::Signature), "{odd}");
        }
        assert_eq!(verify_stripe(&secrets(&[""]), &header, STRIPE_BODY, at(1_492_774_577)), Err(Error::Secret));
        assert_eq!(verify_meta(&[], "sha256=00", b""), Err(Error::Secret));
    }
}
