//! Header rules, pure: what a request must have, what is stripped in each direction, what only we may set.
//!
//! Order matters: everything that a caller (or an instance) might have smuggled is stripped first, also what
//! `Connection` names, and the trusted headers are added after.

use hyper::HeaderMap;
use hyper::Uri;
use hyper::header;
use hyper::header::HeaderName;
use hyper::header::HeaderValue;

use crate::error::Code;
use crate::error::Problem;

/// The client's address, as instances see it.
pub(crate) const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
/// `http` or `https`, as the client spoke to the outermost proxy.
pub(crate) const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// Checks what hyper leaves open: exactly one sound `Host`, agreement with an absolute target, one credential at
/// most, no unknown expectation.
pub(crate) fn check(headers: &HeaderMap, uri: &Uri) -> Result<(), Problem> {
    let mut hosts = headers.get_all(header::HOST).iter();
    let (Some(host), None) = (hosts.next(), hosts.next()) else {
        return Err(malformed("a request needs exactly one Host header"));
    };
    if !is_host(host.as_bytes()) {
        return Err(malformed("the Host header is not a host name with an optional port"));
    }
    if uri.authority().is_some_and(|target| !target.as_str().as_bytes().eq_ignore_ascii_case(host.as_bytes())) {
        return Err(malformed("the request target and the Host header name different hosts"));
    }
    if headers.get_all(header::AUTHORIZATION).iter().nth(1).is_some() {
        return Err(malformed("a request may have one Authorization header"));
    }
    // Nobody behind us decodes bodies, and whoever did would have to fear what they grow to.
    if headers
        .get_all(header::CONTENT_ENCODING)
        .iter()
        .any(|coding| !coding.as_bytes().eq_ignore_ascii_case(b"identity"))
    {
        return Err(Problem::new(Code::UnsupportedMediaType));
    }
    match headers.get(header::EXPECT) {
        Some(expect) if !expect.as_bytes().eq_ignore_ascii_case(b"100-continue") => {
            Err(Problem::new(Code::ExpectationFailed))
        }
        _ => Ok(()),
    }
}

fn malformed(message: &'static str) -> Problem {
    Problem::new(Code::InvalidRequest).message(message)
}

/// `name`, `name:port`, `[v6]` or `[v6]:port`: no path, no user information, no empty name.
fn is_host(host: &[u8]) -> bool {
    if host.len() > 261 {
        return false;
    }
    let (name_is_valid, port) = if let Some(rest) = host.strip_prefix(b"[") {
        let Some(end) = rest.iter().position(|&byte| byte == b']') else { return false };
        let (address, port) = (&rest[..end], &rest[end + 1..]);
        let valid = std::str::from_utf8(address).is_ok_and(|text| text.parse::<std::net::Ipv6Addr>().is_ok());
        (valid, port)
    } else {
        let end = host.iter().position(|&byte| byte == b':').unwrap_or(host.len());
        let (name, port) = host.split_at(end);
        let valid = !name.is_empty() && name.iter().all(|byte| byte.is_ascii_alphanumeric() || b".-_".contains(byte));
        (valid, port)
    };
    let port_is_valid = match port.strip_prefix(b":") {
        Some(digits) => {
            (1..=5).contains(&digits.len())
                && digits.iter().all(u8::is_ascii_digit)
                && std::str::from_utf8(digits).is_ok_and(|text| text.parse::<u16>().is_ok_and(|port| port > 0))
        }
        None => port.is_empty(),
    };
    name_is_valid && port_is_valid
}

/// The cookies in which our own page keeps the caller's token.
const SESSION_COOKIES: [&str; 2] = ["session_token", "__Host-session_token"];
/// What a page of an instance may still do at an address that it shares with us.
const SANDBOX: &str = "sandbox allow-scripts allow-forms allow-popups allow-modals allow-downloads";

/// Headers of one hop (RFC 9110 7.6.1), plus what old clients use in their place.
fn is_hop_by_hop(name: &str) -> bool {
    matches!(
        name,
        "connection"
            | "keep-alive"
            | "proxy-connection"
            | "proxy-authenticate"
            | "proxy-authorization"
            | "te"
            | "trailer"
            | "transfer-encoding"
            | "upgrade"
            | "http2-settings"
    )
}

/// Headers that only we may set, and names with an underscore, which some readers take for the same as a hyphen.
fn is_forged(name: &str) -> bool {
    name.starts_with("x-forwarded-") || matches!(name, "forwarded" | "x-real-ip" | "x-request-id") || name.contains('_')
}

/// Strips a request for our own routes, which may ask for an upgrade, of everything forged.
pub(crate) fn strip_forged(headers: &mut HeaderMap) {
    remove_where(headers, is_forged);
}

/// Strips a request for an instance: hop-by-hop, what `Connection` names, everything forged, the cookie in which our own
/// page keeps the caller's token, and the query of the page it comes from, which may hold a file token of ours.
pub(crate) fn strip_request(headers: &mut HeaderMap) {
    strip_referer(headers);
    if headers.contains_key(header::COOKIE) {
        strip_session_cookies(headers);
    }
    strip_named_by_connection(headers);
    remove_where(headers, |name| is_hop_by_hop(name) || is_forged(name) || name == "expect");
}

/// Takes our own session out of the cookies; those of the instance's own pages stay.
fn strip_session_cookies(headers: &mut HeaderMap) {
    let is_ours = |pair: &&[u8]| {
        let name = pair.split(|&byte| byte == b'=').next().unwrap_or_default().trim_ascii();
        SESSION_COOKIES.iter().any(|ours| name.eq_ignore_ascii_case(ours.as_bytes()))
    };
    let header::Entry::Occupied(mut cookies) = headers.entry(header::COOKIE) else { return };
    let mut left: Vec<&[u8]> = Vec::new();
    let values: Vec<HeaderValue> = cookies.iter().cloned().collect();
    for value in &values {
        left.extend(value.as_bytes().split(|&byte| byte == b';').filter(|pair| !is_ours(pair)));
    }
    match HeaderValue::from_bytes(left.join(&b';').trim_ascii()) {
        Ok(value) if !value.is_empty() => drop(cookies.insert_mult(value)),
        _ => drop(cookies.remove_entry_mult()),
    }
}

/// Keeps a page of an instance apart from our own, with which it shares its host: it gets an origin of its own, and with
/// it neither our cookies nor our pages.
pub(crate) fn sandbox(headers: &mut HeaderMap) {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if ["html", "xml"].iter().any(|word| kind.to_ascii_lowercase().contains(word)) {
        headers.append(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(SANDBOX));
    }
}

fn strip_referer(headers: &mut HeaderMap) {
    let Some(referer) = headers.get(header::REFERER) else { return };
    if let Some(end) = referer.as_bytes().iter().position(|&byte| byte == b'?')
        && let Ok(kept) = HeaderValue::from_bytes(&referer.as_bytes()[..end])
    {
        headers.insert(header::REFERER, kept);
    }
}

/// Strips an instance's answer: hop-by-hop, what `Connection` names, CORS (which we decide), cookie domains, what tells
/// of the software, and what binds browsers to more than this answer.
pub(crate) fn strip_response(headers: &mut HeaderMap) {
    if headers.contains_key(header::TRANSFER_ENCODING) {
        // With both lengths hyper went by the chunks; the other one must not be passed on.
        headers.remove(header::CONTENT_LENGTH);
    }
    strip_named_by_connection(headers);
    remove_where(headers, |name| {
        is_hop_by_hop(name)
            || name.starts_with("access-control-")
            || name.starts_with("x-pocketfleet-")
            || matches!(
                name,
                "x-request-id" | "server" | "x-powered-by" | "strict-transport-security" | "alt-svc" | "nel"
            )
    });
    if headers.contains_key(header::SET_COOKIE) {
        strip_cookie_domains(headers);
    }
}

/// Puts the prefix of a tenant's address back in front of where an instance points to on itself, and keeps its cookies
/// below that prefix: all tenants' paths share one host.
pub(crate) fn relocate(headers: &mut HeaderMap, prefix: &str) {
    if let header::Entry::Occupied(mut cookies) = headers.entry(header::SET_COOKIE) {
        for cookie in cookies.iter_mut() {
            if let Ok(value) = HeaderValue::from_bytes(&confined(cookie.as_bytes(), prefix)) {
                *cookie = value;
            }
        }
    }
    let Some(location) = headers.get(header::LOCATION).and_then(|value| value.to_str().ok()) else { return };
    let is_own = location.starts_with('/') && !location.starts_with("//");
    if let Some(Ok(value)) = is_own.then(|| HeaderValue::try_from(format!("{prefix}{location}"))) {
        headers.insert(header::LOCATION, value);
    }
}

/// Says that the same address answers everybody differently; and, if the answer is one caller's, that nobody else is to
/// be shown it: a file that a browser kept must not be shown to the next who signs in there.
pub(crate) fn keep_apart(headers: &mut HeaderMap, is_private: bool) {
    headers.append(header::VARY, HeaderValue::from_static("Authorization"));
    if !is_private {
        return;
    }
    let kept = headers
        .get(header::CACHE_CONTROL)
        .and_then(|value| value.to_str().ok())
        .filter(|value| !value.split(',').any(|word| matches!(word.trim(), "private" | "no-store")));
    if let Some(value) = kept.and_then(|value| HeaderValue::try_from(format!("private, {value}")).ok()) {
        headers.insert(header::CACHE_CONTROL, value);
    }
}

/// A cookie with the path of a tenant's address in place of its own.
fn confined(cookie: &[u8], prefix: &str) -> Vec<u8> {
    let is_path = |part: &&[u8]| part.trim_ascii().get(..4).is_some_and(|start| start.eq_ignore_ascii_case(b"path"));
    let mut parts: Vec<&[u8]> = cookie.split(|&byte| byte == b';').filter(|part| !is_path(part)).collect();
    let path = format!(" Path={prefix}/");
    parts.push(path.as_bytes());
    parts.join(&b';')
}

fn remove_where(headers: &mut HeaderMap, doomed: impl Fn(&str) -> bool) {
    // One pass to find them: most messages have one or two, and a Vec of none allocates nothing.
    let names: Vec<HeaderName> = headers.keys().filter(|name| doomed(name.as_str())).cloned().collect();
    for name in names {
        headers.remove(name);
    }
}

fn strip_named_by_connection(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .flat_map(|value| value.as_bytes().split(|&byte| byte == b','))
        .map(<[u8]>::trim_ascii)
        .filter(|token| !token.eq_ignore_ascii_case(b"close") && !token.eq_ignore_ascii_case(b"keep-alive"))
        .filter_map(|token| HeaderName::from_bytes(token).ok())
        // Without these two the message itself could no longer be understood.
        .filter(|name| name != header::HOST && name != header::CONTENT_LENGTH)
        .collect();
    for name in named {
        headers.remove(name);
    }
}

/// A cookie for a parent domain would reach other tenants, so every cookie is for the exact host.
fn strip_cookie_domains(headers: &mut HeaderMap) {
    let header::Entry::Occupied(mut cookies) = headers.entry(header::SET_COOKIE) else { return };
    for cookie in cookies.iter_mut() {
        let is_domain =
            |part: &&[u8]| part.trim_ascii().get(..6).is_some_and(|start| start.eq_ignore_ascii_case(b"domain"));
        let parts: Vec<&[u8]> = cookie.as_bytes().split(|&byte| byte == b';').collect();
        if parts.iter().skip(1).any(is_domain) {
            let mut kept: Vec<&[u8]> = parts.first().copied().into_iter().collect();
            kept.extend(parts.iter().skip(1).filter(|part| !is_domain(part)));
            if let Ok(value) = HeaderValue::from_bytes(&kept.join(&b';')) {
                *cookie = value;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_session_is_no_cookie_for_an_instance() {
        let stripped = |cookies: &[&'static str]| {
            let mut map = HeaderMap::new();
            for cookie in cookies {
                map.append(header::COOKIE, HeaderValue::from_static(cookie));
            }
            strip_request(&mut map);
            map.get_all(header::COOKIE).iter().map(|value| value.to_str().unwrap().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(stripped(&["a=1; session_token=x; b=2"]), ["a=1; b=2"]);
        assert_eq!(stripped(&["__Host-session_token=x", "a=session_token"]), ["a=session_token"]);
        assert_eq!(stripped(&["session_token=x;SESSION_TOKEN = y"]), [""; 0]);
        assert_eq!(stripped(&["my_session_token=x"]), ["my_session_token=x"]);
    }

    #[test]
    fn only_documents_are_put_into_a_sandbox() {
        let policies = |kind: &'static str| {
            let mut map = HeaderMap::new();
            map.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
            map.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static("default-src 'self'"));
            sandbox(&mut map);
            map.get_all(header::CONTENT_SECURITY_POLICY).iter().count()
        };
        assert_eq!(["text/html; charset=utf-8", "image/svg+xml", "application/json"].map(policies), [2, 2, 1]);
    }

    #[test]
    fn what_an_instance_says_of_itself_stays_below_its_address() {
        let mut headers = HeaderMap::new();
        headers.insert(header::LOCATION, HeaderValue::from_static("/a/b?c"));
        headers.append(header::SET_COOKIE, HeaderValue::from_static("s=1; Path=/; HttpOnly"));
        headers.append(header::SET_COOKIE, HeaderValue::from_static("t=2"));
        relocate(&mut headers, "/t/acme");
        assert_eq!(headers[header::LOCATION], "/t/acme/a/b?c");
        let cookies: Vec<_> = headers.get_all(header::SET_COOKIE).iter().collect();
        assert_eq!(cookies, ["s=1; HttpOnly; Path=/t/acme/", "t=2; Path=/t/acme/"]);
        for elsewhere in ["https://example.com/x", "//example.com/x", "x"] {
            headers.insert(header::LOCATION, HeaderValue::from_static(elsewhere));
            relocate(&mut headers, "/t/acme");
            assert_eq!(headers[header::LOCATION], elsewhere);
        }
    }

    #[test]
    fn where_a_request_comes_from_is_told_without_its_query() {
        let mut headers = HeaderMap::new();
        headers.insert(header::REFERER, HeaderValue::from_static("https://example.com/page?token=secret"));
        strip_request(&mut headers);
        assert_eq!(headers[header::REFERER], "https://example.com/page");
    }

    fn headers(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in lines {
            map.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        map
    }

    fn names(map: &HeaderMap) -> Vec<&str> {
        let mut names: Vec<&str> = map.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        names
    }

    #[test]
    fn hosts() {
        for good in ["a", "a.example.com", "A-b_c.d.", "a:80", "127.0.0.1:3000", "[::1]", "[::1]:80", "xn--e1a"] {
            assert!(is_host(good.as_bytes()), "{good}");
        }
        let long = "a".repeat(300);
        for bad in
            ["", "a/b", "a@b", ":80", "a:", "a:b", "a:0", "a:65536", "a b", "[::1", "[x]", "a,b", "é", "a%20", &long]
        {
            assert!(!is_host(bad.as_bytes()), "{bad}");
        }
    }

    #[test]
    fn requests_without_one_clear_host_are_refused() {
        let origin: Uri = "/x".parse().unwrap();
        let absolute: Uri = "http://Evil.example/x".parse().unwrap();
        let code = |headers: &HeaderMap, uri| check(headers, uri).map_err(|problem| problem.code);
        assert_eq!(code(&headers(&[("host", "a")]), &origin), Ok(()));
        assert_eq!(code(&headers(&[]), &origin), Err(Code::InvalidRequest));
        assert_eq!(code(&headers(&[("host", "a"), ("host", "a")]), &origin), Err(Code::InvalidRequest));
        assert_eq!(code(&headers(&[("host", "a")]), &absolute), Err(Code::InvalidRequest));
        assert_eq!(code(&headers(&[("host", "evil.example")]), &absolute), Ok(()));
        let user: Uri = "http://me@a/x".parse().unwrap();
        assert_eq!(code(&headers(&[("host", "a")]), &user), Err(Code::InvalidRequest));
    }

    #[test]
    fn two_credentials_and_odd_expectations_are_refused() {
        let uri: Uri = "/".parse().unwrap();
        let two = headers(&[("host", "a"), ("authorization", "x"), ("authorization", "x")]);
        assert_eq!(check(&two, &uri).unwrap_err().code, Code::InvalidRequest);
        let odd = headers(&[("host", "a"), ("expect", "junk")]);
        assert_eq!(check(&odd, &uri).unwrap_err().code, Code::ExpectationFailed);
        assert!(check(&headers(&[("host", "a"), ("expect", "100-Continue")]), &uri).is_ok());
    }

    #[test]
    fn requests_are_stripped_of_hops_and_forgeries() {
        let mut map = headers(&[
            ("host", "a"),
            ("accept", "*/*"),
            ("content-length", "3"),
            ("connection", "keep-alive, X-Secret , Host, content-length"),
            ("x-secret", "1"),
            ("keep-alive", "timeout=5"),
            ("te", "trailers"),
            ("trailer", "x"),
            ("upgrade", "h2c"),
            ("http2-settings", "AAA"),
            ("proxy-authorization", "x"),
            ("expect", "100-continue"),
            ("x-forwarded-for", "127.0.0.1"),
            ("x-forwarded-host", "evil"),
            ("x_forwarded_for", "127.0.0.1"),
            ("forwarded", "for=127.0.0.1"),
            ("x-real-ip", "127.0.0.1"),
            ("x-request-id", "a b"),
        ]);
        strip_request(&mut map);
        assert_eq!(names(&map), ["accept", "content-length", "host"]);
    }

    #[test]
    fn upgrades_survive_for_our_own_routes() {
        let mut map = headers(&[("connection", "upgrade"), ("upgrade", "websocket"), ("x-real-ip", "1"), ("a_b", "1")]);
        strip_forged(&mut map);
        assert_eq!(names(&map), ["connection", "upgrade"]);
    }

    #[test]
    fn answers_are_stripped_of_hops_and_cors() {
        let mut map = headers(&[
            ("content-type", "text/plain"),
            ("content-length", "3"),
            ("transfer-encoding", "chunked"),
            ("connection", "close, x-internal"),
            ("x-internal", "1"),
            ("access-control-allow-origin", "*"),
            ("access-control-allow-credentials", "true"),
            ("x-request-id", "theirs"),
            ("x-pocketfleet-error", "FORGED"),
            ("server", "x/1"),
            ("x-powered-by", "x"),
            ("strict-transport-security", "max-age=1"),
        ]);
        strip_response(&mut map);
        assert_eq!(names(&map), ["content-type"]);
    }

    #[test]
    fn cookies_are_for_the_exact_host() {
        let mut map = headers(&[
            ("set-cookie", "a=domain; Path=/; DOMAIN=example.com; Secure"),
            ("set-cookie", "b=1; Path=/"),
            ("set-cookie", "domain=x"),
        ]);
        strip_response(&mut map);
        let cookies: Vec<&str> = map.get_all("set-cookie").iter().map(|cookie| cookie.to_str().unwrap()).collect();
        assert_eq!(cookies, ["a=domain; Path=/; Secure", "b=1; Path=/", "domain=x"]);
    }
}
