//! Who opens a socket or a stream. Browsers cannot set headers there, so there are five ways, and the first that is
//! present decides: header, `?token=`, cookie, subprotocol, ticket. A credential that is present and wrong is not
//! rescued by another.
//!
//! A cookie is sent by the browser whatever page asks, so it counts only for pages of our own origin, or of one that the
//! operator lists.

use std::borrow::Cow;
use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::time::SystemTime;

use axum::http::HeaderMap;
use axum::http::Uri;
use axum::http::header;
use axum::http::request::Parts;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use percent_encoding::percent_decode_str;

use crate::api::extractors::token;
use crate::api::session_cookie;
use crate::auth::Principal;
use crate::auth::Verifier;
use crate::error::Code;
use crate::error::Problem;
use crate::events::Events;
use crate::events::Position;
use crate::gateway;

/// The subprotocol that carries a token.
const BEARER: &str = "bearer.";

/// What the query says; each name once.
#[derive(Debug, Default)]
pub(crate) struct Query<'a>(Vec<(Cow<'a, str>, Cow<'a, str>)>);

impl<'a> Query<'a> {
    pub(crate) fn of(uri: &'a Uri) -> Result<Self, Problem> {
        let mut pairs: Vec<(Cow<'_, str>, Cow<'_, str>)> = Vec::new();
        for pair in uri.query().unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let decode = |text| percent_decode_str(text).decode_utf8();
            let malformed = |_| Problem::new(Code::InvalidRequest).message("the query is not utf-8");
            let (name, value) = (decode(name).map_err(malformed)?, decode(value).map_err(malformed)?);
            if pairs.iter().any(|(other, _)| *other == name) {
                return Err(Problem::new(Code::InvalidRequest).message("the query names a parameter twice"));
            }
            pairs.push((name, value));
        }
        Ok(Self(pairs))
    }

    pub(crate) fn value(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(other, _)| other == name).map(|(_, value)| &**value)
    }

    /// `epoch:offset`.
    pub(crate) fn position(&self, name: &str) -> Result<Option<Position>, Problem> {
        self.value(name).map(position).transpose()
    }
}

/// Reads `epoch:offset`.
pub(crate) fn position(text: &str) -> Result<Position, Problem> {
    let parsed = text.split_once(':').and_then(|(epoch, offset)| {
        let is_epoch = (1..=64).contains(&epoch.len()) && epoch.bytes().all(|byte| byte.is_ascii_alphanumeric());
        Some(Position { epoch: epoch.to_owned(), offset: offset.parse().ok()? }).filter(|_| is_epoch)
    });
    parsed.ok_or_else(|| Problem::new(Code::InvalidRequest).message("a position is `epoch:offset`"))
}

/// The client's address, for the limits.
pub(crate) fn address(parts: &Parts) -> IpAddr {
    // Without the gateway's word every caller shares one address, hence one set of limits: never a way around.
    parts.extensions.get::<gateway::ClientIp>().map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |found| found.0)
}

/// The page's origin, if a browser sent one.
pub(crate) fn origin(headers: &HeaderMap) -> Option<&str> {
    headers.get(header::ORIGIN).and_then(|origin| origin.to_str().ok())
}

/// Whom the request speaks for; none when it has no credential at all.
pub(crate) fn principal(
    parts: &Parts,
    query: &Query<'_>,
    events: &Events,
    verifier: &Verifier,
) -> Result<Option<Principal>, Problem> {
    let headers = &parts.headers;
    let verify = |token: &str| verifier.verify(token, SystemTime::now()).map(Some).map_err(Problem::from);
    let nobody = || Problem::new(Code::Unauthorized);
    if headers.contains_key(header::AUTHORIZATION) {
        return verify(token(headers).ok_or_else(nobody)?);
    }
    if let Some(token) = query.value("token") {
        if !events.config().token_in_query {
            return Err(nobody().message("tokens in the address are switched off; see docs/sockets.md"));
        }
        return verify(token);
    }
    if let Some(token) = session_cookie::token(parts) {
        if !is_ours(headers, &events.config().origins) {
            let message = "a session cookie counts only for pages of this origin";
            return Err(Problem::new(Code::Forbidden).message(message));
        }
        return verify(token);
    }
    if let Some(encoded) = protocols(headers).find_map(|name| name.strip_prefix(BEARER)) {
        let decoded = URL_SAFE_NO_PAD.decode(encoded.trim_end_matches('=')).ok();
        let token = decoded.and_then(|bytes| String::from_utf8(bytes).ok());
        return verify(&token.ok_or_else(nobody)?);
    }
    if let Some(ticket) = query.value("ticket") {
        return events.redeem(ticket, address(parts), origin(headers)).map(Some).ok_or_else(nobody);
    }
    Ok(None)
}

/// The subprotocols that a client offers.
pub(crate) fn protocols(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    let lines = headers.get_all(header::SEC_WEBSOCKET_PROTOCOL).iter().filter_map(|line| line.to_str().ok());
    lines.flat_map(|line| line.split(',')).map(str::trim).filter(|name| !name.is_empty())
}

/// Whether the page that asks may use the cookie.
fn is_ours(headers: &HeaderMap, allowed: &[String]) -> bool {
    let Some(origin) = headers.get(header::ORIGIN) else {
        // A browser that fetches from its own origin may leave the header out, and then says so here; scripts cannot
        // set this one.
        return headers.get("sec-fetch-site").is_some_and(|site| site == "same-origin");
    };
    let Ok(origin) = origin.to_str() else { return false };
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let authority = origin.strip_prefix("https://").or_else(|| origin.strip_prefix("http://"));
    let is_same = authority.is_some_and(|authority| !host.is_empty() && authority.eq_ignore_ascii_case(host));
    is_same || allowed.iter().any(|allowed| allowed.eq_ignore_ascii_case(origin))
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderName;
    use axum::http::HeaderValue;

    use super::*;

    fn headers(pairs: &[(HeaderName, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.clone(), HeaderValue::from_static(value))).collect()
    }

    #[test]
    fn a_cookie_counts_for_our_own_pages_only() {
        let site = HeaderName::from_static("sec-fetch-site");
        let list = ["https://app.example.com".to_owned()];
        for (pairs, ours) in [
            (vec![(header::HOST, "a.b:3000"), (header::ORIGIN, "http://a.b:3000")], true),
            (vec![(header::HOST, "a.b"), (header::ORIGIN, "https://A.B")], true),
            (vec![(header::HOST, "a.b"), (header::ORIGIN, "https://app.example.com")], true),
            (vec![(header::HOST, "a.b"), (site.clone(), "same-origin")], true),
            (vec![(header::HOST, "a.b:3000"), (header::ORIGIN, "http://a.b:3001")], false),
            (vec![(header::HOST, "a.b"), (header::ORIGIN, "https://a.b.evil.example")], false),
            (vec![(header::HOST, "a.b"), (header::ORIGIN, "null"), (site.clone(), "same-origin")], false),
            (vec![(header::HOST, "a.b"), (site, "same-site")], false),
            (vec![(header::HOST, "a.b")], false),
        ] {
            assert_eq!(is_ours(&headers(&pairs), &list), ours, "{pairs:?}");
        }
    }

    #[test]
    fn protocols_and_positions_are_read() {
        let map = headers(&[(header::SEC_WEBSOCKET_PROTOCOL, "cp.v1.json, bearer.YWJj")]);
        assert_eq!(protocols(&map).collect::<Vec<_>>(), ["cp.v1.json", "bearer.YWJj"]);
        assert_eq!(position("ab12:7").unwrap(), Position { epoch: "ab12".to_owned(), offset: 7 });
        for bad in ["", "7", "a:", ":7", "a:-1", "a b:7"] {
            assert!(position(bad).is_err(), "{bad}");
        }
        assert!(Query::of(&"/ws?token=a&token=b".parse().unwrap()).is_err());
    }
}
