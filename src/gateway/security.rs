//! Headers that tell browsers what not to do with an answer. Pages of instances keep the policies they came with: ours
//! are for our own answers, which show nothing and load nothing.

use hyper::HeaderMap;
use hyper::header;
use hyper::header::HeaderName;
use hyper::header::HeaderValue;

const CROSS_ORIGIN_OPENER_POLICY: HeaderName = HeaderName::from_static("cross-origin-opener-policy");
const CROSS_ORIGIN_RESOURCE_POLICY: HeaderName = HeaderName::from_static("cross-origin-resource-policy");

/// Adds what every answer of our own carries unless its handler said otherwise.
///
/// The resource policy does not stand in the way of scripts of other origins that may read the answer: it is for what is
/// loaded without asking (pictures, frames, scripts), and nothing of ours is.
pub fn secure(headers: &mut HeaderMap) {
    for (name, value) in [
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CONTENT_SECURITY_POLICY, "default-src 'none'; frame-ancestors 'none'"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (CROSS_ORIGIN_OPENER_POLICY, "same-origin"),
        (CROSS_ORIGIN_RESOURCE_POLICY, "same-origin"),
    ] {
        headers.entry(name).or_insert(HeaderValue::from_static(value));
    }
}

/// `Strict-Transport-Security`, for clients that came over https.
#[derive(Debug, Clone)]
pub(crate) struct Transport(Option<HeaderValue>);

impl Transport {
    /// An empty text means none.
    pub(crate) fn new(hsts: &str) -> Self {
        Self(HeaderValue::from_str(hsts).ok().filter(|value| !value.is_empty()))
    }

    /// Adds what every answer carries, whoever made it.
    pub(crate) fn apply(&self, is_https: bool, headers: &mut HeaderMap) {
        headers.entry(header::X_CONTENT_TYPE_OPTIONS).or_insert(HeaderValue::from_static("nosniff"));
        if is_https && let Some(value) = &self.0 {
            headers.insert(header::STRICT_TRANSPORT_SECURITY, value.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_handler_said_stays() {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static("default-src 'self'"));
        secure(&mut headers);
        assert_eq!(headers["content-security-policy"], "default-src 'self'");
        assert_eq!(headers["x-frame-options"], "DENY");
        assert_eq!(headers["cross-origin-resource-policy"], "same-origin");
    }

    #[test]
    fn strict_transport_is_for_https_alone() {
        let sent = |hsts: &str, is_https| {
            let mut headers = HeaderMap::new();
            Transport::new(hsts).apply(is_https, &mut headers);
            assert_eq!(headers["x-content-type-options"], "nosniff");
            headers.remove("strict-transport-security")
        };
        assert_eq!(sent("max-age=60", true).unwrap(), "max-age=60");
        assert_eq!(sent("max-age=60", false), None);
        assert_eq!(sent("", true), None);
    }
}
