//! Cross-origin rules for everything behind the gateway, in one place: preflights are answered here and never wake
//! an instance.
//!
//! Credentials in the sense of CORS (cookies) are never allowed: callers send their token in a header, and `*` is then
//! as safe as a list. Origins are compared whole, as browsers write them (lower case, no default port), so that no
//! prefix or suffix of a listed one passes. `null` is nobody's origin and never listed.

use hyper::HeaderMap;
use hyper::Method;
use hyper::Response;
use hyper::StatusCode;
use hyper::header;
use hyper::header::HeaderName;
use hyper::header::HeaderValue;

use super::body::Body;

/// What scripts of other origins may read of an answer, beyond the usual.
const EXPOSED: HeaderValue = HeaderValue::from_static(
    "retry-after, x-request-id, x-pocketfleet-error, etag, content-disposition, content-range",
);
const ASKS_FOR_PRIVATE_NETWORK: HeaderName = HeaderName::from_static("access-control-request-private-network");
const ALLOWS_PRIVATE_NETWORK: HeaderName = HeaderName::from_static("access-control-allow-private-network");

/// Which origins may call from a browser.
#[derive(Debug, Clone)]
pub(crate) enum Cors {
    Any,
    Listed(Vec<Pattern>),
}

/// One entry of the list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Pattern {
    /// This origin.
    Exact(String),
    /// `scheme://` and `.host[:port]`, with one or more labels between them.
    Below { scheme: String, parent: String },
}

impl Pattern {
    /// `scheme://host[:port]`, or `scheme://*.host[:port]` for everything below a host that has a dot itself.
    /// `None` when the text is neither.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let text = text.to_ascii_lowercase();
        let (scheme, host) = text.split_once("://")?;
        let (is_below, host) = host.strip_prefix("*.").map_or((false, host), |host| (true, host));
        let is_host = !host.is_empty()
            && !host.starts_with(['.', ':'])
            && host.bytes().all(|byte| byte.is_ascii_graphic() && !b"/?#@*,\\".contains(&byte));
        if !matches!(scheme, "http" | "https") || !is_host || is_below && !host.contains('.') {
            return None;
        }
        Some(if is_below {
            Self::Below { scheme: format!("{scheme}://"), parent: format!(".{host}") }
        } else {
            Self::Exact(text)
        })
    }

    fn allows(&self, origin: &[u8]) -> bool {
        match self {
            Self::Exact(exact) => exact.as_bytes() == origin,
            Self::Below { scheme, parent } => origin
                .strip_prefix(scheme.as_bytes())
                .and_then(|host| host.strip_suffix(parent.as_bytes()))
                .is_some_and(|labels| labels.split(|&byte| byte == b'.').all(is_label)),
        }
    }
}

fn is_label(label: &[u8]) -> bool {
    let is_plain = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_".contains(byte);
    !label.is_empty() && label.iter().all(is_plain)
}

impl Cors {
    /// `*` anywhere means any origin. What is no origin cannot match and is left out.
    pub(crate) fn new(origins: &[String]) -> Self {
        if origins.iter().any(|origin| origin == "*") {
            return Self::Any;
        }
        Self::Listed(origins.iter().filter_map(|origin| Pattern::parse(origin)).collect())
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
        // Not `*`, which browsers do not take for Authorization.
        if let Some(asked) = headers.get(header::ACCESS_CONTROL_REQUEST_HEADERS).filter(|asked| is_list(asked)) {
            out.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, asked.clone());
        }
        if headers.get(ASKS_FOR_PRIVATE_NETWORK).is_some_and(|asked| asked == "true") {
            // Taken back for who is not listed.
            out.insert(ALLOWS_PRIVATE_NETWORK, HeaderValue::from_static("true"));
        }
        out.insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("86400"));
        out.insert(
            header::VARY,
            HeaderValue::from_static("Access-Control-Request-Headers, Access-Control-Request-Private-Network"),
        );
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
                // Any page of the web is not who should reach into a private network.
                answer.remove(ALLOWS_PRIVATE_NETWORK);
            }
            Self::Listed(allowed) => {
                answer.append(header::VARY, HeaderValue::from_static("Origin"));
                let is_allowed = |origin: &&HeaderValue| allowed.iter().any(|one| one.allows(origin.as_bytes()));
                if let Some(origin) = origin.filter(is_allowed) {
                    answer.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
                } else {
                    answer.remove(header::ACCESS_CONTROL_ALLOW_ORIGIN);
                    answer.remove(ALLOWS_PRIVATE_NETWORK);
                }
            }
        }
    }
}

/// A list of header names, which may be sent back as it is.
fn is_list(value: &HeaderValue) -> bool {
    value.len() <= 4096
        && value.as_bytes().iter().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~, ".contains(byte))
}

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
    fn an_origin_matches_whole_or_not_at_all() {
        let list = [
            "https://app.example.com",
            "http://localhost:5173",
            "https://*.tenants.example.com",
            "https://*.dev.example:8443",
        ];
        let cors = Cors::new(&list.map(str::to_owned));
        let may = |origin: &str| allowed(&cors, Some(&HeaderValue::from_str(origin).unwrap())).is_some();
        for yes in [
            "https://app.example.com",
            "http://localhost:5173",
            "https://ada.tenants.example.com",
            "https://a.b.tenants.example.com",
            "https://x.dev.example:8443",
        ] {
            assert!(may(yes), "{yes}");
        }
        for no in [
            "null",
            "",
            "https://app.example.com.evil",
            "https://evilapp.example.com",
            "https://app.example.com:444",
            "http://app.example.com",
            "https://app.example.com/",
            "https://app.example.com@evil",
            "https://APP.example.com",
            "http://localhost:51730",
            "https://tenants.example.com",
            "https://.tenants.example.com",
            "https://eviltenants.example.com",
            "https://ada.tenants.example.com.evil",
            "https://ada.tenants.example.com:444",
            "http://ada.tenants.example.com",
            "https://evil/.tenants.example.com",
            "https://evil:1.tenants.example.com",
            "https://evil@.tenants.example.com",
            "https://a..tenants.example.com",
            "https://x.dev.example",
        ] {
            assert!(!may(no), "{no}");
        }
    }

    #[test]
    fn cookies_are_never_allowed_and_caches_are_told_what_matters() {
        for cors in [Cors::Any, Cors::new(&["https://app.example.com".to_owned()])] {
            let mut headers = HeaderMap::new();
            cors.apply(Some(&APP), &mut headers);
            assert!(!headers.contains_key(header::ACCESS_CONTROL_ALLOW_CREDENTIALS));
            let exposed = headers[header::ACCESS_CONTROL_EXPOSE_HEADERS].to_str().unwrap();
            assert!(exposed.contains("x-request-id") && exposed.contains("retry-after"), "{exposed}");
            assert_eq!(headers.contains_key(header::VARY), matches!(cors, Cors::Listed(_)));
        }
    }

    #[test]
    fn only_a_listed_origin_reaches_into_a_private_network() {
        let ask = |cors: &Cors, origin: HeaderValue| {
            let mut headers = HeaderMap::new();
            headers.insert(header::ORIGIN, origin.clone());
            headers.insert(header::ACCESS_CONTROL_REQUEST_METHOD, HeaderValue::from_static("GET"));
            headers.insert(ASKS_FOR_PRIVATE_NETWORK, HeaderValue::from_static("true"));
            let mut answer = Cors::preflight(&Method::OPTIONS, &headers).unwrap();
            cors.apply(Some(&origin), answer.headers_mut());
            answer.headers().contains_key(ALLOWS_PRIVATE_NETWORK)
        };
        let listed = Cors::new(&["https://app.example.com".to_owned()]);
        assert!(ask(&listed, APP));
        assert!(!ask(&listed, EVIL));
        assert!(!ask(&Cors::Any, APP));
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
        for method in ["PATCH", "DELETE", "PUT"] {
            assert!(answer.headers()["access-control-allow-methods"].to_str().unwrap().contains(method));
        }
        headers.insert(header::ACCESS_CONTROL_REQUEST_HEADERS, HeaderValue::from_bytes(b"a\xff;b").unwrap());
        let answer = Cors::preflight(&Method::OPTIONS, &headers).unwrap();
        assert!(!answer.headers().contains_key("access-control-allow-headers"), "nothing odd is sent back");
    }
}
