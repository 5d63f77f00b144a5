//! The id that ties an answer to its log lines: the caller's own when it is harmless, else a random one.

use std::sync::Arc;

use hyper::HeaderMap;
use hyper::header::HeaderName;
use hyper::header::HeaderValue;

/// Carries the id in both directions.
pub(crate) const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The id of a request, for handlers behind the gateway (a request extension).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestId(pub Arc<str>);

/// The id as the gateway passes it on: visible ASCII, cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Tag(HeaderValue);

impl Tag {
    /// Adopts the caller's `X-Request-Id` if it is 1 to 64 of `[A-Za-z0-9_-]`, else makes one.
    pub(crate) fn of(headers: &HeaderMap) -> Self {
        match headers.get(X_REQUEST_ID) {
            Some(value) if is_valid(value.as_bytes()) => Self(value.clone()),
            _ => Self::random(),
        }
    }

    fn random() -> Self {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let mut text = [0_u8; 32];
        for (pair, byte) in text.chunks_exact_mut(2).zip(rand::random::<u128>().to_be_bytes()) {
            pair[0] = DIGITS[usize::from(byte >> 4)];
            pair[1] = DIGITS[usize::from(byte & 15)];
        }
        Self(HeaderValue::from_bytes(&text).unwrap_or_else(|_| HeaderValue::from_static("none")))
    }

    pub(crate) fn header(&self) -> HeaderValue {
        self.0.clone()
    }

    pub(crate) fn as_str(&self) -> &str {
        self.0.to_str().unwrap_or_default()
    }

    pub(crate) fn extension(&self) -> RequestId {
        RequestId(self.as_str().into())
    }
}

fn is_valid(id: &[u8]) -> bool {
    (1..=64).contains(&id.len()) && id.iter().all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(id: &str) -> Tag {
        let mut headers = HeaderMap::new();
        headers.insert(X_REQUEST_ID, HeaderValue::from_str(id).unwrap());
        Tag::of(&headers)
    }

    #[test]
    fn harmless_ids_are_kept_and_others_replaced() {
        assert_eq!(of("abc_DEF-1").as_str(), "abc_DEF-1");
        for bad in ["", "a b", "a;b", "a.b", &"a".repeat(65)] {
            let made = of(bad);
            assert_eq!(made.as_str().len(), 32, "{bad}");
            assert!(is_valid(made.as_str().as_bytes()));
        }
        assert_ne!(of("").as_str(), of("").as_str());
    }
}
