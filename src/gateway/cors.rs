//! Cross-origin rules for everything behind the gateway, in one place: preflights are answered here and never wake
//! an instance.

use hyper::HeaderMap;
use hyper::Method;
use hyper::Response;
use hyper::StatusCode;
use hyper::header;
use hyper::header::HeaderValue;

use super::body::Body;

/// Which origins may call from a browser.
#[derive(Debug, Clone)]
pub(crate) enum Cors {
    Any,
    Listed(Vec<HeaderValue>),
}

impl Cors {
    /// `*` anywhere means any origin. Origins that are no header value cannot match and are left out.
    pub(crate) fn new(origins: &[String]) -> Self {
        if origins.iter().any(|origin| origin == "*") {
            return Self::Any;
        }
        Self::Listed(origins.iter().filter_map(|origin| HeaderValue::from_str(origin).ok()).collect())
    }

    /// The answer to a preflight request; `None` when it is not one.
    pub(crate) fn preflight(method: &Method, headers: &HeaderMap) -> Option<Response<Body>> {
        if method != Method::OPTIONS || !headers.contains_key(header::ORIGIN) {
            return None;
        }
        headers.get(header::ACCESS_CONTROL_REQUEST_METHOD)?;
        let mut response = Response::new(Body::Empty);
        *response.status_mut() = StatusCode::NO_CONTENT;
        let out = response.headers_mut();
        out.insert(
            header::ACCESS_CONTROL_ALLOW_METHODS,
            HeaderValue::from_static("GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"),
        );
        if let Some(asked) = headers.get(header::ACCESS_CONTROL_REQUEST_HEADERS) {
            out.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, asked.clone());
        }
        out.insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("86400"));
        Some(response)
    }

    /// Says on an answer who may read it.
    pub(crate) fn apply(&self, origin: Option<&HeaderValue>, answer: &mut HeaderMap) {
        if origin.is_some() {
            answer.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, EXPOSED);
        }
        match self {
            Self::Any => {
                answer.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
            }
            Self::Listed(allowed) => {
                answer.append(header::VARY, HeaderValue::from_static("Origin"));
                match origin.filter(|origin| allowed.contains(origin)) {
                    Some(origin) => answer.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone()),
                    None => answer.remove(header::ACCESS_CONTROL_ALLOW_ORIGIN),
                };
            }
        }
    }
}

/// What scripts of other origins may read of an answer, beyond the usual.
const EXPOSED: HeaderValue = HeaderValue::from_static("retry-after, x-request-id, x-pocketfleet-error");

#[cfg(test)]
mod tests {
    use super::*;

    const APP: HeaderValue = HeaderValue::from_static("https://app.example.com");
    const EVIL: HeaderValue = HeaderValue::from_static("https://evil.example");

    fn allowed(cors: &Cors, origin: Option<&HeaderValue>) -> Option<HeaderValue> {
        let mut headers = HeaderMap::new();
        cors.apply(origin, &mut headers);
        headers.remove(header::ACCESS_CONTROL_ALLOW_ORIGIN)
    }

    #[test]
    fn listed_origins_are_echoed_and_others_get_nothing() {
        let cors = Cors::new(&["https://app.example.com".to_owned()]);
        assert_eq!(allowed(&cors, Some(&APP)), Some(APP));
        assert_eq!(allowed(&cors, Some(&EVIL)), None);
        assert_eq!(allowed(&cors, None), None);
        assert_eq!(allowed(&Cors::new(&["*".to_owned()]), Some(&EVIL)).unwrap(), "*");
        assert_eq!(allowed(&Cors::new(&[]), Some(&APP)), None);
    }

    #[test]
    fn only_preflights_are_answered() {
        let mut headers = HeaderMap::new();
        assert!(Cors::preflight(&Method::OPTIONS, &headers).is_none());
        headers.insert(header::ORIGIN, APP);
        assert!(Cors::preflight(&Method::OPTIONS, &headers).is_none());
        headers.insert(header::ACCESS_CONTROL_REQUEST_METHOD, HeaderValue::from_static("PATCH"));
        headers.insert(header::ACCESS_CONTROL_REQUEST_HEADERS, HeaderValue::from_static("authorization"));
        assert!(Cors::preflight(&Method::GET, &headers).is_none());
        let answer = Cors::preflight(&Method::OPTIONS, &headers).unwrap();
        assert_eq!(answer.status(), 204);
        assert_eq!(answer.headers()["access-control-allow-headers"], "authorization");
    }
}
