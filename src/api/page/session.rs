//! Who looks at the page: the session cookie, and the rule that nothing is changed on the word of a foreign page.
//!
//! The cookie holds the user's token and is never shown to scripts; sockets read it too. A browser sends it along whoever made the page that asks, so every request that changes something must
//! come from a page of ours: the `Origin` that browsers add to each such request, and no page can forge, must be the
//! host that was asked. A request without one is refused as well.

use std::sync::LazyLock;
use std::time::Instant;
use std::time::SystemTime;

use axum::extract::FromRequestParts;
use axum::extract::Request;
use axum::http::HeaderMap;
use axum::http::HeaderName;
use axum::http::HeaderValue;
use axum::http::Method;
use axum::http::header;
use axum::http::request::Parts;
use axum::middleware::Next;
use axum::response::IntoResponse;
use axum::response::Redirect;
use axum::response::Response;
use time::OffsetDateTime;

use crate::api::page::PageState;
use crate::api::page::api::Caller;
use crate::api::page::layout;
use crate::api::session_cookie;
use crate::auth::Principal;
use crate::error::Code;
use crate::error::Problem;
use crate::pocketbase::token::Unverified;

/// Somebody who is signed in.
pub(super) struct Visitor {
    /// Whom the token speaks for.
    pub(super) principal: Principal,
    /// The API as this user.
    pub(super) api: Caller,
}

/// Somebody who need not be signed in.
pub(super) struct Stranger {
    /// The API without a token.
    pub(super) api: Caller,
    /// Whether a valid session came along all the same.
    pub(super) is_signed_in: bool,
}

impl FromRequestParts<PageState> for Visitor {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, state: &PageState) -> Result<Self, Response> {
        let found = session_cookie::token(parts)
            .and_then(|token| Some((token, state.verifier.verify(token, SystemTime::now()).ok()?)));
        let Some((token, principal)) = found else { return Err(Redirect::to("/app/sign-in").into_response()) };
        Ok(Self { principal, api: state.api.caller(parts, Some(token)) })
    }
}

impl FromRequestParts<PageState> for Stranger {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut Parts, state: &PageState) -> Result<Self, Self::Rejection> {
        let is_signed_in =
            session_cookie::token(parts).is_some_and(|token| state.verifier.verify(token, SystemTime::now()).is_ok());
        Ok(Self { api: state.api.caller(parts, None), is_signed_in })
    }
}

/// The cookie for a token, until the token ends.
pub(super) fn set_cookie(token: &str, is_https: bool, now: OffsetDateTime) -> Option<HeaderValue> {
    let expires = Unverified::parse(token).ok()?.claims().exp;
    let seconds = i64::try_from(expires).ok()?.saturating_sub(now.unix_timestamp()).max(0);
    session_cookie::set(token, seconds, is_https)
}

/// Whether the page that sent this was loaded over https, which only its browser knows for certain.
pub(super) fn is_https(headers: &HeaderMap) -> bool {
    headers.get(header::ORIGIN).is_some_and(|origin| origin.as_bytes().starts_with(b"https://"))
}

/// The middleware around the page: what changes something must come from a page of ours.
pub(super) async fn same_origin(request: Request, next: Next) -> Response {
    let changes = !matches!(*request.method(), Method::GET | Method::HEAD);
    if changes && !is_ours(request.headers()) {
        tracing::info!("a request to change something came from a foreign page and was refused");
        let problem = Problem::new(Code::Forbidden)
            .message("this request did not come from a page of this server; open the page anew and try again");
        return layout::failure(&problem);
    }
    let read_at = READ_AT.now();
    let mut response = next.run(request).await;
    response.headers_mut().insert(X_READ_AT, HeaderValue::from(read_at));
    response
}

/// When the reading for a page began, for scripts that get answers out of order.
const X_READ_AT: HeaderName = HeaderName::from_static("x-read-at");

static READ_AT: LazyLock<Clock> =
    LazyLock::new(|| Clock { started: Instant::now(), started_at: OffsetDateTime::now_utc() });

/// Microseconds since the epoch that never go back while the process runs, whatever becomes of the wall clock.
struct Clock {
    started: Instant,
    started_at: OffsetDateTime,
}

impl Clock {
    fn now(&self) -> u64 {
        let at = self.started_at + self.started.elapsed();
        u64::try_from(at.unix_timestamp_nanos() / 1_000).unwrap_or_default()
    }
}

/// Whether `Origin` is there once and names the host that was asked.
fn is_ours(headers: &HeaderMap) -> bool {
    let one = |name| {
        let mut values = headers.get_all(name).iter();
        match (values.next(), values.next()) {
            (Some(value), None) => value.to_str().ok(),
            _ => None,
        }
    };
    let Some((scheme, authority)) = one(header::ORIGIN).and_then(|origin| origin.split_once("://")) else {
        return false;
    };
    let default = match scheme {
        "http" => ":80",
        "https" => ":443",
        _ => return false,
    };
    let plain = |text: &str| text.strip_suffix(default).unwrap_or(text).to_ascii_lowercase();
    // What a browser says about itself, where it says it, must not contradict.
    let is_cross_site = headers.get("sec-fetch-site").is_some_and(|site| site != "same-origin");
    !is_cross_site && !authority.is_empty() && one(header::HOST).is_some_and(|host| plain(host) == plain(authority))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in pairs {
            map.append(*name, HeaderValue::from_static(value));
        }
        map
    }

    #[test]
    fn only_a_page_of_the_asked_host_may_change_something() {
        for (origin, host) in [
            ("http://localhost:3000", "localhost:3000"),
            ("https://app.example.com", "app.example.com"),
            ("https://app.example.com", "App.example.com:443"),
            ("http://[::1]:3000", "[::1]:3000"),
        ] {
            assert!(is_ours(&headers(&[("origin", origin), ("host", host)])), "{origin} {host}");
        }
        for (origin, host) in [
            ("null", "localhost"),
            ("http://evil.example", "localhost:3000"),
            ("http://localhost:3001", "localhost:3000"),
            ("http://localhost:3000.evil.example", "localhost:3000"),
            ("https://a.example.com", "example.com"),
            ("ftp://localhost", "localhost"),
            ("://", ""),
            ("http://", ""),
        ] {
            assert!(!is_ours(&headers(&[("origin", origin), ("host", host)])), "{origin} {host}");
        }
        assert!(!is_ours(&headers(&[("host", "localhost")])));
        let twice = [("origin", "http://localhost"), ("origin", "http://localhost"), ("host", "localhost")];
        assert!(!is_ours(&headers(&twice)));
        let said = [("origin", "http://localhost"), ("host", "localhost"), ("sec-fetch-site", "cross-site")];
        assert!(!is_ours(&headers(&said)));
    }

    #[test]
    fn the_cookie_is_closed_to_scripts_and_ends_with_its_token() {
        use base64::Engine;
        use base64::engine::general_purpose::URL_SAFE_NO_PAD;
        let part = |text: &str| URL_SAFE_NO_PAD.encode(text);
        let claims =
            r#"{"id":"b5c3xih3gtjb48z","type":"auth","collectionId":"_pb_users_auth_","exp":1000,"refreshable":true}"#;
        let token = format!("{}.{}.{}", part(r#"{"alg":"HS256","typ":"JWT"}"#), part(claims), part("signature"));
        let at = |seconds| OffsetDateTime::from_unix_timestamp(seconds).unwrap();
        let plain = set_cookie(&token, false, at(400)).unwrap();
        assert!(plain.to_str().unwrap().contains("; Max-Age=600; HttpOnly;"));
        assert!(set_cookie(&token, true, at(2000)).unwrap().to_str().unwrap().contains("; Max-Age=0;"));
        assert_eq!(set_cookie("nonsense", true, at(0)), None);
    }
}
