//! Where a request to one tenant's address goes, decided on its method and its decoded path within that tenant. An
//! allow-list like [`route`](super::route): what is not named here reaches no instance.

use hyper::Method;

use super::route::Records;
use super::route::is_open;
use super::route::is_read;
use super::route::is_users;
use crate::pocketbase::routes::is_hooks;

/// What a request asks of a tenant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TenantRoute<'a> {
    /// Sign-in and account calls of an auth collection: what follows its name.
    SignIn(SignIn<'a>),
    /// Records of a collection, or a batch of changes.
    Records,
    /// One of the tenant's users, changed or removed.
    ChangeUser(&'a str),
    /// A file of a record.
    File(FilePath<'a>),
    /// A token for protected files.
    FileToken,
    /// The event stream, and subscriptions to it.
    Realtime,
    /// Where `OAuth2` providers send people back to.
    OAuth2Redirect,
    /// `PocketBase`'s health check.
    Health,
    /// A path under `/api/` that neither `PocketBase` nor we know: a hook's route.
    Custom,
    /// Outside the API: a public file.
    Page,
    /// `PocketBase`'s dashboard.
    Dashboard,
    /// Not offered.
    Absent,
}

/// A call of an auth collection that speaks of accounts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SignIn<'a> {
    /// Whether the collection is `users`.
    pub(crate) is_users: bool,
    /// `auth-with-password`, `records`, ...
    pub(crate) call: &'a str,
}

/// The place of a file: names as they are in the path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FilePath<'a> {
    pub(crate) record: &'a str,
    pub(crate) name: &'a str,
}

/// Account calls that anybody may make: they are how one gets a token.
const PUBLIC_CALLS: [&str; 10] = [
    "auth-with-password",
    "auth-with-otp",
    "auth-with-oauth2",
    "request-otp",
    "request-password-reset",
    "confirm-password-reset",
    "request-verification",
    "confirm-verification",
    "confirm-email-change",
    "records",
];

impl SignIn<'_> {
    /// Whether it is made without a token.
    pub(crate) fn is_public(self) -> bool {
        self.call == "auth-methods" || PUBLIC_CALLS.contains(&self.call)
    }
}

/// Decides what a request asks of a tenant. `path` is decoded, rooted at the tenant, and has passed the raw rule.
pub(crate) fn tenant_route<'a>(method: &Method, path: &'a str) -> TenantRoute<'a> {
    if let Some(rest) = path.strip_prefix("/api/") {
        return api(method, rest);
    }
    match path {
        "/api" => TenantRoute::Absent,
        _ if path == "/_" || path.starts_with("/_/") => TenantRoute::Dashboard,
        _ if is_read(method) => TenantRoute::Page,
        _ => TenantRoute::Absent,
    }
}

fn api<'a>(method: &Method, rest: &'a str) -> TenantRoute<'a> {
    let (first, tail) = rest.split_once('/').map_or((rest, None), |(first, tail)| (first, Some(tail)));
    match (first, tail) {
        ("collections", Some(tail)) => collection(method, tail),
        ("files", Some("token")) if method == Method::POST => TenantRoute::FileToken,
        ("files", Some(tail)) => file(method, tail),
        ("batch", None) if method == Method::POST => TenantRoute::Records,
        ("realtime", None) if method == Method::GET || method == Method::POST => TenantRoute::Realtime,
        ("oauth2-redirect", None) if method == Method::GET || method == Method::POST => TenantRoute::OAuth2Redirect,
        ("health", None) if is_read(method) => TenantRoute::Health,
        _ if is_hooks(first) => TenantRoute::Custom,
        _ => TenantRoute::Absent,
    }
}

fn collection<'a>(method: &Method, tail: &'a str) -> TenantRoute<'a> {
    let Some((name, call)) = tail.split_once('/') else { return TenantRoute::Absent };
    // The users of an instance have an id that starts with an underscore.
    let is_users = is_users(name);
    if !is_users && !is_open(name) {
        return TenantRoute::Absent;
    }
    match (Records::of(call), call) {
        (Records::All, _) if is_users && method == Method::POST => TenantRoute::SignIn(SignIn { is_users, call }),
        (Records::All, _) if is_read(method) || method == Method::POST => TenantRoute::Records,
        (Records::One(id), _) if is_users && (method == Method::PATCH || method == Method::DELETE) => {
            TenantRoute::ChangeUser(id)
        }
        (Records::One(_), _) if is_read(method) || method == Method::PATCH || method == Method::DELETE => {
            TenantRoute::Records
        }
        (Records::Not, "auth-methods") if is_read(method) => TenantRoute::SignIn(SignIn { is_users, call }),
        (Records::Not, "auth-refresh" | "request-email-change") if method == Method::POST => {
            TenantRoute::SignIn(SignIn { is_users, call })
        }
        (Records::Not, _) if method == Method::POST && PUBLIC_CALLS.contains(&call) => {
            TenantRoute::SignIn(SignIn { is_users, call })
        }
        _ => TenantRoute::Absent,
    }
}

fn file<'a>(method: &Method, tail: &'a str) -> TenantRoute<'a> {
    let mut parts = tail.split('/');
    let (Some(collection), Some(record), Some(name), None) = (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return TenantRoute::Absent;
    };
    let is_file = !record.is_empty() && !name.is_empty() && (is_open(collection) || is_users(collection));
    if is_file && is_read(method) { TenantRoute::File(FilePath { record, name }) } else { TenantRoute::Absent }
}

/// Whether a path is among those that anybody may read; a `*` at the end of a pattern stands for any rest.
pub(crate) fn is_listed(patterns: &[String], path: &str) -> bool {
    patterns.iter().any(|pattern| match pattern.strip_suffix('*') {
        Some(start) => path.starts_with(start),
        None => path == pattern,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(methods: &str, paths: &[&'static str], is: impl Fn(&TenantRoute<'_>) -> bool) {
        for path in paths {
            for method in methods.split('|') {
                let method = Method::from_bytes(method.as_bytes()).unwrap();
                let route = tenant_route(&method, path);
                assert!(is(&route), "{method} {path} -> {route:?}");
            }
        }
    }

    const ANY: &str = "GET|HEAD|POST|PUT|PATCH|DELETE";

    #[test]
    fn what_a_tenant_is_asked_for() {
        let sign_in = |route: &TenantRoute<'_>| matches!(route, TenantRoute::SignIn(_));
        all("POST", &["/api/collections/users/auth-with-password", "/api/collections/clients/auth-with-otp"], sign_in);
        all("POST", &["/api/collections/users/records", "/api/collections/_pb_users_auth_/auth-refresh"], sign_in);
        all("GET", &["/api/collections/users/auth-methods"], sign_in);
        let records = |route: &TenantRoute<'_>| *route == TenantRoute::Records;
        all("GET|HEAD|POST", &["/api/collections/notes/records"], records);
        all("GET|HEAD|PATCH|DELETE", &["/api/collections/notes/records/x"], records);
        all("GET|HEAD", &["/api/collections/users/records", "/api/collections/users/records/x"], records);
        all("POST", &["/api/batch"], records);
        all("PATCH|DELETE", &["/api/collections/users/records/x"], |route| *route == TenantRoute::ChangeUser("x"));
        all("GET|HEAD", &["/api/files/notes/r/f.png", "/api/files/users/r/f.png"], |route| {
            *route == TenantRoute::File(FilePath { record: "r", name: "f.png" })
        });
        all("POST", &["/api/files/token"], |route| *route == TenantRoute::FileToken);
        all("GET|POST", &["/api/realtime"], |route| *route == TenantRoute::Realtime);
        all("GET|POST", &["/api/oauth2-redirect"], |route| *route == TenantRoute::OAuth2Redirect);
        all("GET|HEAD", &["/api/health"], |route| *route == TenantRoute::Health);
        all(ANY, &["/api/hello", "/api/hello/you"], |route| *route == TenantRoute::Custom);
        all("GET|HEAD", &["/", "/index.html", "/a/b/c.js", "/t/x"], |route| *route == TenantRoute::Page);
        all(ANY, &["/_", "/_/", "/_/x"], |route| *route == TenantRoute::Dashboard);
    }

    #[test]
    fn the_rest_is_absent() {
        let paths = [
            "/api",
            "/api/",
            "/api/sql",
            "/api/SQL",
            "/api/settings",
            "/api/settings/test/s3",
            "/api/backups/x",
            "/api/logs",
            "/api/crons/x",
            "/api/v1/auth/me",
            "/api/keys",
            "/api/collections",
            "/api/collections/notes",
            "/api/collections/meta/scaffolds",
            "/api/collections/notes/truncate",
            "/api/collections/_superusers/records",
            "/api/collections/_superusers/auth-with-password",
            "/api/collections/pbc_3142635823/auth-with-password",
            "/api/collections/users/impersonate/x",
            "/api/collections/clients/impersonate/x",
            "/api/collections/_authOrigins/records",
            "/api/files/_superusers/r/f",
            "/api/files/notes/r",
            "/api/files/notes/r/f/g",
            "/api/realtime/x",
            "/api/batch/",
        ];
        all(ANY, &paths, |route| *route == TenantRoute::Absent);
        all("POST|PUT|PATCH|DELETE", &["/", "/index.html"], |route| *route == TenantRoute::Absent);
        all("GET", &["/api/collections/users/auth-refresh", "/api/files/token"], |route| *route == TenantRoute::Absent);
    }

    #[test]
    fn patterns_match_whole_paths_or_beginnings() {
        let patterns = ["/api/collections/posts/records".to_owned(), "/api/files/*".to_owned()];
        assert!(is_listed(&patterns, "/api/collections/posts/records"));
        assert!(!is_listed(&patterns, "/api/collections/posts/records/x"));
        assert!(is_listed(&patterns, "/api/files/a/b/c"));
        assert!(!is_listed(&[], "/"));
    }
}
