//! Where a request goes, decided on its method and its percent-decoded path alone. An allow-list: what is not named
//! here does not reach any instance.

use hyper::Method;

use crate::pocketbase::routes::is_hooks;

/// Where a request goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Route<'a> {
    /// Answered by our own router, at the path it came with.
    Own,
    /// Answered by our own router, at `/api/collections/users/<rest>` however the collection was spelled.
    OwnAccount(&'a str),
    /// Forwarded to the global instance.
    Global(GlobalCall<'a>),
    /// Forwarded to the caller's own instance.
    Tenant,
    /// A file of the caller's own instance.
    File,
    /// The event stream, and subscriptions to it.
    Realtime,
    /// A path under `/api/` that neither `PocketBase` nor we know: a route of the caller's instance, if its template
    /// lists it.
    Custom,
    /// Part of `PocketBase`'s API that is not offered.
    Absent,
}

/// What may be asked of the global instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum GlobalCall<'a> {
    /// The caller's own account, read; the id must be the caller's.
    Account(&'a str),
    /// The list of accounts, which the collection's rules restrict to the caller's own.
    Accounts,
    /// An account's picture. Public.
    Picture,
}

/// Ids under which `PocketBase` knows its system collections; all fixed (`core/*_model.go`), and none starts with
/// the underscore that their names have.
const SYSTEM_COLLECTIONS: [&str; 5] =
    ["pbc_2279338944", "pbc_1638494021", "pbc_2281828961", "pbc_4275539003", "pbc_3142635823"];

/// Decides where a request goes. `path` is decoded and has passed the raw path rule.
pub(crate) fn route<'a>(method: &Method, path: &'a str) -> Route<'a> {
    if let Some(rest) = path.strip_prefix("/api/") {
        return api(method, rest);
    }
    match path {
        "/api" | "/_" => Route::Absent,
        _ if path.starts_with("/_/") => Route::Absent,
        _ => Route::Own,
    }
}

fn api<'a>(method: &Method, rest: &'a str) -> Route<'a> {
    let (first, tail) = rest.split_once('/').map_or((rest, None), |(first, tail)| (first, Some(tail)));
    match (first, tail) {
        ("collections", Some(tail)) => collection(method, tail),
        ("files", Some(tail)) => file(method, tail),
        ("batch", None) if method == Method::POST => Route::Tenant,
        ("realtime", None) if method == Method::GET || method == Method::POST => Route::Realtime,
        ("oauth2-redirect", None) | ("v1" | "health" | "keys", _) => Route::Own,
        _ if first.starts_with("queue") || first.starts_with("meetings") => Route::Own,
        _ if is_hooks(first) => Route::Custom,
        _ => Route::Absent,
    }
}

fn collection<'a>(method: &Method, tail: &'a str) -> Route<'a> {
    let Some((name, call)) = tail.split_once('/') else { return Route::Absent };
    if is_users(name) {
        return users(method, call);
    }
    if !is_open(name) {
        return Route::Absent;
    }
    let allowed = match Records::of(call) {
        Records::All => is_read(method) || method == Method::POST,
        Records::One(_) => is_read(method) || method == Method::PATCH || method == Method::DELETE,
        Records::Not => false,
    };
    if allowed { Route::Tenant } else { Route::Absent }
}

fn users<'a>(method: &Method, call: &'a str) -> Route<'a> {
    match (call, Records::of(call)) {
        (_, Records::All) if method == Method::POST => Route::OwnAccount(call),
        (_, Records::All) if is_read(method) => Route::Global(GlobalCall::Accounts),
        (_, Records::One(id)) if is_read(method) => Route::Global(GlobalCall::Account(id)),
        // A change of the password costs a bcrypt and tells whether a guess was right: our router bounds both.
        (_, Records::One(_)) if method == Method::PATCH || method == Method::DELETE => Route::OwnAccount(call),
        ("auth-methods", _) if is_read(method) => Route::OwnAccount(call),
        (
            "auth-with-password"
            | "auth-refresh"
            | "request-otp"
            | "auth-with-otp"
            | "auth-with-oauth2"
            | "request-password-reset"
            | "confirm-password-reset"
            | "request-verification"
            | "confirm-verification"
            | "request-email-change"
            | "confirm-email-change",
            _,
        ) if method == Method::POST => Route::OwnAccount(call),
        _ => Route::Absent,
    }
}

fn file<'a>(method: &Method, tail: &'a str) -> Route<'a> {
    if tail == "token" {
        return if method == Method::POST { Route::Own } else { Route::Absent };
    }
    let mut parts = tail.split('/');
    let (Some(name), Some(id), Some(file), None) = (parts.next(), parts.next(), parts.next(), parts.next()) else {
        return Route::Absent;
    };
    if id.is_empty() || file.is_empty() || !is_read(method) {
        Route::Absent
    } else if is_users(name) {
        Route::Global(GlobalCall::Picture)
    } else if is_open(name) {
        Route::File
    } else {
        Route::Absent
    }
}

/// What the rest of a collection's path names.
pub(super) enum Records<'a> {
    /// `records`
    All,
    /// `records/{id}`
    One(&'a str),
    /// Something else.
    Not,
}

impl<'a> Records<'a> {
    pub(super) fn of(call: &'a str) -> Self {
        match call.split_once('/') {
            None if call == "records" => Self::All,
            Some(("records", id)) if !id.is_empty() && !id.contains('/') => Self::One(id),
            _ => Self::Not,
        }
    }
}

pub(super) fn is_read(method: &Method) -> bool {
    method == Method::GET || method == Method::HEAD
}

/// `PocketBase` finds collections without regard to case.
pub(super) fn is_users(name: &str) -> bool {
    name.eq_ignore_ascii_case("users") || name.eq_ignore_ascii_case("_pb_users_auth_")
}

/// Collection names and ids are `\w+`; the system's own are not for callers, whichever name they use.
pub(super) fn is_open(name: &str) -> bool {
    !name.is_empty()
        && !name.starts_with('_')
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
        && !SYSTEM_COLLECTIONS.iter().any(|id| name.eq_ignore_ascii_case(id))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check(route_of: impl Fn(&Method, &'static str) -> bool, calls: &[(&str, &'static str)]) {
        for (methods, path) in calls {
            for method in methods.split('|') {
                let parsed = Method::from_bytes(method.as_bytes()).unwrap();
                assert!(route_of(&parsed, path), "{method} {path} -> {:?}", route(&parsed, path));
            }
        }
    }

    const ANY: &str = "GET|HEAD|POST|PUT|PATCH|DELETE";

    #[test]
    fn own_routes() {
        check(
            |method, path| route(method, path) == Route::Own,
            &[
                (ANY, "/"),
                (ANY, "/auth/login"),
                (ANY, "/api/v1/auth/login"),
                (ANY, "/api/v1"),
                ("GET", "/health"),
                ("GET", "/health/pb"),
                ("GET", "/ready"),
                ("GET", "/metrics"),
                ("GET", "/openapi.json"),
                ("GET", "/docs/x"),
                ("GET", "/api/health"),
                ("GET|POST", "/api/oauth2-redirect"),
                ("POST", "/api/files/token"),
                ("GET", "/account/verify"),
                ("GET", "/queue_updates"),
                ("GET", "/ws"),
                (ANY, "/api/keys"),
                (ANY, "/api/keys/a/reveal"),
                (ANY, "/api/queue"),
                (ANY, "/api/queue/1"),
                (ANY, "/api/meetings/1"),
                (ANY, "/v1/x"),
                (ANY, "/webhooks/fathom"),
                (ANY, "/nothing/here"),
                (ANY, "/tea"),
            ],
        );
    }

    #[test]
    fn accounts() {
        check(
            |method, path| matches!(route(method, path), Route::OwnAccount(_)),
            &[
                ("POST", "/api/collections/users/auth-with-password"),
                ("POST", "/api/collections/_pb_users_auth_/auth-refresh"),
                ("POST", "/api/collections/users/records"),
                ("POST", "/api/collections/users/request-otp"),
                ("POST", "/api/collections/users/auth-with-otp"),
                ("POST", "/api/collections/users/auth-with-oauth2"),
                ("POST", "/api/collections/users/request-verification"),
                ("POST", "/api/collections/users/confirm-verification"),
                ("POST", "/api/collections/users/request-password-reset"),
                ("POST", "/api/collections/users/confirm-password-reset"),
                ("POST", "/api/collections/users/request-email-change"),
                ("POST", "/api/collections/users/confirm-email-change"),
                ("PATCH|DELETE", "/api/collections/users/records/b5c3xih3gtjb48z"),
                ("GET", "/api/collections/Users/auth-methods"),
                ("PATCH", "/api/collections/users/records/b5c3xih3gtjb48z"),
            ],
        );
        check(
            |method, path| matches!(route(method, path), Route::Global(_)),
            &[
                ("GET|HEAD", "/api/collections/users/records/b5c3xih3gtjb48z"),
                ("GET|HEAD", "/api/collections/users/records"),
                ("GET|HEAD", "/api/files/users/b5c3xih3gtjb48z/a.png"),
                ("GET|HEAD", "/api/files/_pb_users_auth_/b5c3xih3gtjb48z/a.png"),
            ],
        );
        assert_eq!(
            route(&Method::GET, "/api/collections/_pb_users_auth_/records/abc"),
            Route::Global(GlobalCall::Account("abc"))
        );
    }

    #[test]
    fn tenant_routes() {
        check(
            |method, path| route(method, path) == Route::Tenant,
            &[
                ("GET|HEAD|POST", "/api/collections/notes/records"),
                ("GET|HEAD|PATCH|DELETE", "/api/collections/notes/records/b5c3xih3gtjb48z"),
                ("POST", "/api/batch"),
                ("GET", "/api/collections/pbc_1234567890/records"),
            ],
        );
    }

    #[test]
    fn files_realtime_and_routes_of_hooks() {
        check(|method, path| route(method, path) == Route::File, &[("GET|HEAD", "/api/files/notes/x/a_x1.png")]);
        check(|method, path| route(method, path) == Route::Realtime, &[("GET|POST", "/api/realtime")]);
        check(|method, path| route(method, path) == Route::Custom, &[(ANY, "/api/hello"), (ANY, "/api/hello/you")]);
    }

    #[test]
    fn the_rest_of_pocketbase_is_absent() {
        check(
            |method, path| route(method, path) == Route::Absent,
            &[
                (ANY, "/api"),
                (ANY, "/api/"),
                (ANY, "/_/"),
                (ANY, "/_"),
                (ANY, "/api/sql"),
                (ANY, "/api/settings"),
                (ANY, "/api/settings/test/s3"),
                (ANY, "/api/backups"),
                (ANY, "/api/logs"),
                (ANY, "/api/crons/x"),
                (ANY, "/api/collections"),
                (ANY, "/api/collections/"),
                (ANY, "/api/collections/notes"),
                (ANY, "/api/collections/notes/"),
                (ANY, "/api/collections/notes/truncate"),
                (ANY, "/api/collections/import"),
                (ANY, "/api/collections/meta/scaffolds"),
                (ANY, "/api/collections/_superusers/records"),
                (ANY, "/api/collections/_superusers/auth-with-password"),
                (ANY, "/api/collections/pbc_3142635823/records"),
                (ANY, "/api/collections/PBC_3142635823/records/x"),
                (ANY, "/api/collections/_authOrigins/records"),
                (ANY, "/api/collections/notes/records/"),
                (ANY, "/api/collections/notes/records/a/b"),
                (ANY, "/api/collections/notes/recordsx"),
                (ANY, "/api/collections/no tes/records"),
                (ANY, "/api/collections/\u{212a}/records"),
                (ANY, "/api/collections//records"),
                ("PUT|PATCH|DELETE", "/api/collections/notes/records"),
                ("PUT|POST", "/api/collections/notes/records/x"),
                ("PUT|POST", "/api/collections/users/records/x"),
                ("PATCH|DELETE", "/api/collections/users/records"),
                (ANY, "/api/collections/users/impersonate/x"),
                (ANY, "/api/collections/users"),
                (ANY, "/api/collections/notes/auth-with-password"),
                ("GET", "/api/collections/users/auth-with-password"),
                ("GET", "/api/batch"),
                (ANY, "/api/batch/"),
                ("GET", "/api/files/token"),
                (ANY, "/api/files/_superusers/x/y"),
                (ANY, "/api/files/notes/x"),
                (ANY, "/api/files/notes/x/y/z"),
                ("POST|DELETE", "/api/files/notes/x/y"),
                (ANY, "/api/realtime/"),
                (ANY, "/api/Health"),
                ("PUT|PATCH|DELETE|HEAD", "/api/realtime"),
            ],
        );
    }

    proptest! {
        #[test]
        fn only_the_listed_shapes_reach_an_instance(path in "/(api|_|t|x)(/[a-zA-Z_]{0,12}){0,5}") {
            for method in [Method::GET, Method::POST, Method::PATCH, Method::DELETE] {
                if matches!(route(&method, &path), Route::Tenant | Route::File) {
                    let collections = path.starts_with("/api/collections/") && path.contains("/records");
                    prop_assert!(collections || path.starts_with("/api/files/") || path == "/api/batch", "{}", path);
                    prop_assert!(!path.starts_with("/api/collections/_") && !path.starts_with("/api/files/_"));
                }
            }
        }
    }
}
