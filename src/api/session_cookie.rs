//! The cookie in which our own page keeps the caller's token; sockets and event streams of that page read it too.
//!
//! Over https it is `__Host-session_token`, which browsers take from nobody but this very host; the plain name is for
//! development without TLS, where no such name exists. A host beside or below ours can plant a cookie of the plain name,
//! so over https that one is nobody's.

use axum::http::HeaderMap;
use axum::http::HeaderValue;
use axum::http::header;
use axum::http::request::Parts;

use crate::gateway;

/// Its name without TLS: what the seed's samples use.
pub(crate) const PLAIN: &str = "session_token";
/// Its name over https.
pub(crate) const HOST: &str = "__Host-session_token";

/// The token of the cookie, if there is exactly one that counts.
pub(crate) fn token(parts: &Parts) -> Option<&str> {
    find(&parts.headers, is_https(parts))
}

/// Whether the request came over https, as far as a trusted proxy says so.
pub(crate) fn is_https(parts: &Parts) -> bool {
    parts.extensions.get::<gateway::IsHttps>().is_some_and(|found| found.0)
}

fn find(headers: &HeaderMap, is_https: bool) -> Option<&str> {
    let name = if is_https || values(headers, HOST).next().is_some() { HOST } else { PLAIN };
    let mut found = values(headers, name);
    match (found.next(), found.next()) {
        (Some(token), None) if !token.is_empty() => Some(token),
        _ => None,
    }
}

/// The values of the cookies of a name.
fn values<'a>(headers: &'a HeaderMap, name: &str) -> impl Iterator<Item = &'a str> {
    let lines = headers.get_all(header::COOKIE).iter().filter_map(|line| line.to_str().ok());
    lines
        .flat_map(|line| line.split(';'))
        .filter_map(|pair| pair.trim().split_once('='))
        .filter(move |(found, _)| *found == name)
        .map(|(_, value)| value.trim_matches('"'))
}

/// The cookie for a token that lives so many seconds.
pub(crate) fn set(token: &str, seconds: i64, is_https: bool) -> Option<HeaderValue> {
    let (name, secure) = if is_https { (HOST, "; Secure") } else { (PLAIN, "") };
    HeaderValue::try_from(format!("{name}={token}; Path=/; Max-Age={seconds}; HttpOnly; SameSite=Lax{secure}")).ok()
}

/// What takes it away, under either name.
pub(crate) fn clear() -> [HeaderValue; 2] {
    [
        HeaderValue::from_static("session_token=; Path=/; Max-Age=0; HttpOnly; SameSite=Lax"),
        HeaderValue::from_static("__Host-session_token=; Path=/; Max-Age=0; HttpOnly; SameSite=Lax; Secure"),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(cookies: &[&'static str], is_https: bool) -> Option<String> {
        let mut map = HeaderMap::new();
        for cookie in cookies {
            map.append(header::COOKIE, HeaderValue::from_static(cookie));
        }
        find(&map, is_https).map(str::to_owned)
    }

    #[test]
    fn it_is_found_among_others_and_counts_only_once() {
        assert_eq!(read(&["a=b; session_token=t.o.k; c=d"], false).as_deref(), Some("t.o.k"));
        assert_eq!(read(&["a=b", "session_token=t"], false).as_deref(), Some("t"));
        for none in ["", "a=b", "session_token=", "xsession_token=t", "session_token=a; session_token=b"] {
            assert_eq!(read(&[none], false), None, "{none}");
        }
        assert_eq!(read(&["session_token=a", "session_token=a"], false), None);
    }

    #[test]
    fn a_planted_cookie_is_nobodys_over_https_and_keeps_nobody_out() {
        assert_eq!(read(&["session_token=planted"], true), None);
        for is_https in [true, false] {
            let both = ["session_token=planted; __Host-session_token=own; session_token=again"];
            assert_eq!(read(&both, is_https).as_deref(), Some("own"));
        }
        assert_eq!(read(&["__Host-session_token=a; __Host-session_token=b; session_token=c"], false), None);
    }

    #[test]
    fn over_https_it_is_for_this_host_alone() {
        assert_eq!(set("t", 60, false).unwrap(), "session_token=t; Path=/; Max-Age=60; HttpOnly; SameSite=Lax");
        let expected = "__Host-session_token=t; Path=/; Max-Age=60; HttpOnly; SameSite=Lax; Secure";
        assert_eq!(set("t", 60, true).unwrap(), expected);
        assert!(clear().iter().all(|cookie| cookie.to_str().unwrap().contains("Max-Age=0")));
    }
}
