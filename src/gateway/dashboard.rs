//! `PocketBase`'s dashboard for a tenant's owner: off unless the operator says otherwise, for a limited time, and only
//! at the tenant's own host.
//!
//! A superuser of an instance owns everything that its process can reach (`/api/sql` takes `ATTACH` and `VACUUM INTO`),
//! so this is safe only where processes are isolated from each other, or where the operator trusts every owner with all
//! tenants. The owner never holds a superuser token: what the dashboard stores in the browser is a *grant* of ours,
//! which the gateway exchanges request by request, and which ends with the session it was opened from.
//!
//! Invariants: a grant works for one tenant, at that tenant's host, while its user owns the tenant and the session
//! lives; no answer carries a token of a superuser's sign-in or for files; what would outlive the grant (settings,
//! superusers, SQL), make our own keys stale (the definition and rows of `users` that we keep) or pull the process from
//! under the supervisor (restore) is refused.
//!
//! Limit: a superuser can still write a view over any table, and hooks can be told anything; see above whom to trust.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;
use std::time::SystemTime;
use std::time::UNIX_EPOCH;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use dashmap::DashMap;
use hyper::Method;
use hyper::Response;
use hyper::header;
use hyper::header::HeaderValue;
use serde::Deserialize;
use serde_json::Value;
use serde_json::json;
use sha2::Digest;
use sha2::Sha256;

use super::body::Body;
use super::route::is_read;
use super::route::is_users;
use crate::auth::Principal;
use crate::ids::TenantId;

/// Grants at once, in all.
const MAX_GRANTS: usize = 10_000;
/// The superusers' collection, the same in every instance.
const SUPERUSERS: &str = "pbc_3142635823";
/// The page that puts a grant where the dashboard looks for it.
pub(crate) const OPENER: &str = "/_/open-dashboard";
const OPENER_SCRIPT: &str = "/_/open-dashboard.js";

/// Who may open the dashboard of an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Nobody.
    Off,
    /// Owners, if processes are isolated from each other (level 2 or more).
    Isolated,
    /// Owners, because all of them are trusted with everything that pocketfleet's user can reach.
    Trusted,
}

/// The grants. Cheap to clone.
#[derive(Clone)]
pub struct Dashboards {
    mode: Mode,
    ttl: Duration,
    /// One per tenant: opening it anew ends the one before.
    grants: Arc<DashMap<TenantId, Grant>>,
}

#[derive(Clone)]
struct Grant {
    fingerprint: [u8; 32],
    principal: Principal,
    expires: SystemTime,
}

/// What opens a dashboard once.
#[derive(Clone)]
pub struct Opened {
    /// What follows the tenant's host in the address.
    pub path: String,
    /// When it ends.
    pub expires: SystemTime,
}

impl fmt::Debug for Dashboards {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dashboards")
            .field("mode", &self.mode)
            .field("grants", &self.grants.len())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Opened {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Opened").field("expires", &self.expires).finish_non_exhaustive()
    }
}

impl Dashboards {
    /// Grants that live for `ttl`.
    pub fn new(mode: Mode, ttl: Duration) -> Self {
        Self { mode, ttl, grants: Arc::new(DashMap::new()) }
    }

    /// Whether owners may open dashboards at all.
    pub fn are_on(&self) -> bool {
        self.mode != Mode::Off
    }

    /// A grant for an owner, who the caller has checked. `None`: off, or too many are open.
    pub fn open(&self, tenant: &TenantId, principal: &Principal, now: SystemTime) -> Option<Opened> {
        if !self.are_on() {
            return None;
        }
        self.grants.retain(|_, grant| grant.expires > now);
        if self.grants.len() >= MAX_GRANTS {
            return None;
        }
        let expires = (now + self.ttl).min(principal.expires);
        let token = token(expires);
        let grant = Grant { fingerprint: fingerprint(&token), principal: principal.clone(), expires };
        self.grants.insert(tenant.clone(), grant);
        // In the fragment, which no server and no log ever sees.
        Some(Opened { path: format!("{OPENER}#{token}"), expires })
    }

    /// Whose grant this token is, if it is one for this tenant.
    pub(crate) fn find(&self, tenant: &TenantId, token: &str, now: SystemTime) -> Option<Principal> {
        let grant = self.grants.get(tenant)?;
        (grant.fingerprint == fingerprint(token) && grant.expires > now).then(|| grant.principal.clone())
    }

    /// Whether somebody has this tenant's dashboard open.
    pub(crate) fn is_open(&self, tenant: &TenantId, now: SystemTime) -> bool {
        self.are_on() && self.grants.get(tenant).is_some_and(|grant| grant.expires > now)
    }
}

/// Looks like a token of a superuser, so that the dashboard takes it; it is signed by nobody.
fn token(expires: SystemTime) -> String {
    let exp = expires.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let header = URL_SAFE_NO_PAD.encode(r#"{"alg":"none","typ":"JWT"}"#);
    let claims = json!({ "collectionId": SUPERUSERS, "exp": exp, "id": "pocketfleetgrnt", "refreshable": false, "type": "auth" });
    let secret: [u8; 32] = rand::random();
    format!("{header}.{}.{}", URL_SAFE_NO_PAD.encode(claims.to_string()), URL_SAFE_NO_PAD.encode(secret))
}

fn fingerprint(token: &str) -> [u8; 32] {
    Sha256::digest(token.as_bytes()).into()
}

/// What becomes of a call that a grant was shown with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Call {
    /// The instance answers it as its superuser.
    Pass,
    /// The grant itself is the answer, with its record.
    Refresh,
    /// The grant itself is the answer: it opens protected files as well.
    FileToken,
    /// Not with a grant.
    Refuse,
}

/// Decides on a path under `/api/`, decoded. `keeps_users`: whether the rows of `users` are ours to keep.
pub(crate) fn call(method: &Method, path: &str, keeps_users: bool) -> Call {
    let parts: Vec<&str> = path.split('/').skip(2).collect();
    // `PocketBase` folds the case of names as Unicode does, so a name that is not plain could be one of those below.
    let is_plain = |name: &str| name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    let is_superusers = |name: &str| name.eq_ignore_ascii_case("_superusers") || name.eq_ignore_ascii_case(SUPERUSERS);
    match parts.as_slice() {
        ["collections", name, ..] if !is_plain(name) => Call::Refuse,
        ["collections", name, "auth-refresh"] if is_superusers(name) && method == Method::POST => Call::Refresh,
        ["collections", name, ..] if is_superusers(name) && !is_read(method) => Call::Refuse,
        ["collections", name, ..] if keeps_users && is_users(name) && !is_read(method) => Call::Refuse,
        ["files", "token"] => Call::FileToken,
        // Tokens that would outlive the grant; SQL reaches everything, and a batch may hold any call.
        ["collections", _, "impersonate", ..] | ["sql" | "batch", ..] | ["collections", "import", ..] => Call::Refuse,
        // Restores replace the process, and their zip files carry settings and superusers.
        ["settings" | "backups", ..] if !is_read(method) => Call::Refuse,
        _ => Call::Pass,
    }
}

/// The answer to a dashboard that refreshes its token.
pub(crate) fn refreshed(token: &str, principal: &Principal) -> Response<Body> {
    private_json(&stored(token, &principal.email))
}

/// The answer to a dashboard that asks for a file token.
pub(crate) fn file_token(token: &str) -> Response<Body> {
    private_json(&json!({ "token": token }))
}

fn private_json(value: &Value) -> Response<Body> {
    let mut response = Response::new(Body::Full(Bytes::from(value.to_string())));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

fn stored(token: &str, email: &str) -> Value {
    json!({ "token": token, "record": {
        "id": "pocketfleetgrnt", "collectionId": SUPERUSERS, "collectionName": "_superusers", "email": email,
        "emailVisibility": false, "verified": true, "created": "", "updated": "",
    }})
}

/// The page that puts the grant in place, and its script. `None`: another path.
pub(crate) fn opener(path: &str) -> Option<Response<Body>> {
    let (kind, text) = match path {
        OPENER => (
            "text/html; charset=utf-8",
            "<!doctype html><meta charset=utf-8><title>Dashboard</title><p>One moment …</p><script src=\"open-dashboard.js\"></script>",
        ),
        OPENER_SCRIPT => ("text/javascript; charset=utf-8", SCRIPT),
        _ => return None,
    };
    let mut response = Response::new(Body::Full(Bytes::from_static(text.as_bytes())));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers.insert(
        header::CONTENT_SECURITY_POLICY,
        HeaderValue::from_static("default-src 'none'; script-src 'self'; frame-ancestors 'none'"),
    );
    Some(response)
}

/// The key is the dashboard's own (`__pb_superusers__` and its path without the last slash).
const SCRIPT: &str = "const token = location.hash.slice(1)
history.replaceState(null, '', location.pathname)
if (token) {
  const record = { id: 'pocketfleetgrnt', collectionId: 'pbc_3142635823', collectionName: '_superusers', email: '' }
  localStorage.setItem('__pb_superusers__/_', JSON.stringify({ token, record }))
}
location.replace('/_/')
";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::Role;
    use crate::ids::UserId;
    use crate::store::sessions::SessionId;

    fn principal() -> Principal {
        Principal {
            user: UserId::parse("b5c3xih3gtjb48z").unwrap(),
            role: Role::User,
            email: "ada@example.com".into(),
            is_verified: true,
            session: SessionId::of("t"),
            key: "k".into(),
            expires: SystemTime::now() + Duration::from_hours(1),
        }
    }

    #[test]
    fn a_grant_is_for_one_tenant_and_a_limited_time() {
        let dashboards = Dashboards::new(Mode::Trusted, Duration::from_mins(1));
        let (acme, other) = (TenantId::parse("acme").unwrap(), TenantId::parse("other").unwrap());
        let now = SystemTime::now();
        let opened = dashboards.open(&acme, &principal(), now).unwrap();
        let token = opened.path.strip_prefix("/_/open-dashboard#").unwrap();
        assert!(dashboards.find(&acme, token, now).is_some());
        assert!(dashboards.find(&other, token, now).is_none());
        assert!(dashboards.find(&acme, &token[1..], now).is_none());
        assert!(dashboards.find(&acme, token, now + Duration::from_mins(1)).is_none());
        assert!(dashboards.is_open(&acme, now) && !dashboards.is_open(&other, now));
        assert!(!format!("{dashboards:?}{opened:?}").contains(token));
        assert!(Dashboards::new(Mode::Off, Duration::from_mins(1)).open(&acme, &principal(), now).is_none());
    }

    #[test]
    fn what_would_outlive_the_grant_is_refused() {
        for (method, path, expected) in [
            ("POST", "/api/collections/_superusers/auth-refresh", Call::Refresh),
            ("POST", "/api/collections/pbc_3142635823/auth-refresh", Call::Refresh),
            ("POST", "/api/collections/_superusers/auth-with-password", Call::Refuse),
            ("POST", "/api/collections/_SUPERUSERS/records", Call::Refuse),
            ("PATCH", "/api/collections/_superusers/records/x", Call::Refuse),
            ("PATCH", "/api/collections/_superusers", Call::Refuse),
            ("POST", "/api/collections/users/impersonate/x", Call::Refuse),
            ("PATCH", "/api/settings", Call::Refuse),
            ("POST", "/api/backups/x.zip/restore", Call::Refuse),
            ("POST", "/api/backups", Call::Refuse),
            ("POST", "/api/batch", Call::Refuse),
            ("POST", "/api/sql", Call::Refuse),
            ("POST", "/api/collections/_\u{17f}uperusers/records", Call::Refuse),
            ("GET", "/api/collections/_\u{17f}uperusers/records", Call::Refuse),
            ("PATCH", "/api/collections/users", Call::Refuse),
            ("DELETE", "/api/collections/_pb_users_auth_/records/x", Call::Refuse),
            ("POST", "/api/files/token", Call::FileToken),
            ("PUT", "/api/collections/import", Call::Refuse),
            ("GET", "/api/collections/_superusers/records", Call::Pass),
            ("GET", "/api/settings", Call::Pass),
            ("GET", "/api/collections", Call::Pass),
            ("PATCH", "/api/collections/notes", Call::Pass),
            ("POST", "/api/collections/notes/records", Call::Pass),
            ("GET", "/api/logs", Call::Pass),
        ] {
            let method = Method::from_bytes(method.as_bytes()).unwrap();
            assert_eq!(call(&method, path, true), expected, "{method} {path}");
        }
        assert_eq!(call(&Method::PATCH, "/api/collections/users/records/x", false), Call::Pass, "a hosted app's own");
    }
}
