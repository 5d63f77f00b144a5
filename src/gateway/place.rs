//! Which tenant a request's address names: by host (`{tenant}.{domain}`), by path (`/t/{tenant}/…`), or none, which is
//! the address of pocketfleet itself.
//!
//! Pure, and decided on the very text that is then cut off: what an instance sees is exactly what follows the name.
//! A name is only a name here; whether such a tenant exists, and for whom, is for `access` to say.

use std::borrow::Cow;

use hyper::HeaderMap;
use hyper::Uri;
use hyper::header;

/// What path addresses begin with.
const PREFIX: &str = "/t/";
/// Longest name that is looked up; slugs and ids are no longer than this.
const MAX_NAME: usize = 32;

/// Where a request is addressed to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place<'a> {
    /// pocketfleet itself: accounts, our own API, and the caller's personal instance.
    Home,
    /// One tenant, which the address names.
    Tenant(Named<'a>),
    /// A tenant's path address without the slash that its relative links need.
    Bare,
    /// Below our domain or prefix, and nothing that could be a tenant.
    Nowhere,
}

/// A tenant's address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Named<'a> {
    /// The slug or id, in lower case.
    pub(crate) name: Cow<'a, str>,
    /// The path within the tenant, decoded, with its leading slash.
    pub(crate) path: &'a str,
    /// How many bytes of the raw path are cut off before it is passed on.
    pub(crate) cut: usize,
}

impl Named<'_> {
    /// The same without a tie to the request.
    pub(crate) fn detach(self) -> Detached {
        Detached { name: self.name.into_owned(), path: self.path.to_owned(), cut: self.cut }
    }
}

/// A tenant's address that outlives the head of its request.
#[derive(Debug)]
pub(crate) struct Detached {
    pub(crate) name: String,
    pub(crate) path: String,
    pub(crate) cut: usize,
}

/// The domain below which tenants have their hosts.
#[derive(Debug, Clone)]
pub(crate) struct Domain(Option<String>);

impl Domain {
    /// `domain` as configured; empty = tenants have no hosts of their own.
    pub(crate) fn new(domain: &str) -> Self {
        Self((!domain.is_empty()).then(|| format!(".{}", domain.to_ascii_lowercase())))
    }

    /// Where a request is addressed to. `path` is the decoded path of `uri`; host and path have passed the raw rules.
    pub(crate) fn place<'a>(&self, headers: &'a HeaderMap, uri: &'a Uri, path: &'a str) -> Place<'a> {
        if let Some(label) = self.label(headers, uri) {
            return match label {
                // The usual name of a front page, not of a tenant.
                label if label.eq_ignore_ascii_case("www") => by_path(uri, path),
                label if is_name(label) => {
                    let name = if label.bytes().any(|byte| byte.is_ascii_uppercase()) {
                        Cow::Owned(label.to_ascii_lowercase())
                    } else {
                        Cow::Borrowed(label)
                    };
                    Place::Tenant(Named { name, path, cut: 0 })
                }
                _ => Place::Nowhere,
            };
        }
        by_path(uri, path)
    }

    /// Whether tenants have hosts of their own.
    pub(crate) fn is_set(&self) -> bool {
        self.0.is_some()
    }

    /// What stands before our domain in the host, if it is below our domain.
    fn label<'a>(&self, headers: &'a HeaderMap, uri: &'a Uri) -> Option<&'a str> {
        let suffix = self.0.as_deref()?;
        let host = match headers.get(header::HOST) {
            Some(host) => host.to_str().ok()?,
            None => uri.authority()?.as_str(),
        };
        let name = host.split_once(':').map_or(host, |(name, _)| name);
        let name = name.strip_suffix('.').unwrap_or(name);
        let at = name.len().checked_sub(suffix.len()).filter(|&at| at > 0)?;
        let (label, end) = name.split_at_checked(at)?;
        end.eq_ignore_ascii_case(suffix).then_some(label)
    }
}

fn by_path<'a>(uri: &'a Uri, path: &'a str) -> Place<'a> {
    let Some(rest) = path.strip_prefix(PREFIX) else {
        return if path == "/t" { Place::Nowhere } else { Place::Home };
    };
    let Some((name, _)) = rest.split_once('/') else {
        return if is_plain(rest) && uri.path() == path { Place::Bare } else { Place::Nowhere };
    };
    let cut = PREFIX.len() + name.len();
    // The name must be spelled plainly: the same number of bytes is cut off the raw path.
    if !is_plain(name) || uri.path().get(..cut) != path.get(..cut) {
        return Place::Nowhere;
    }
    Place::Tenant(Named { name: Cow::Borrowed(name), path: path.get(cut..).unwrap_or("/"), cut })
}

/// The same in lower case, as paths have to spell it.
fn is_plain(name: &str) -> bool {
    is_name(name) && !name.bytes().any(|byte| byte.is_ascii_uppercase())
}

/// What slugs and ids may look like, without a look at whether there is one.
fn is_name(name: &str) -> bool {
    (1..=MAX_NAME).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        && !name.starts_with('-')
        && !name.ends_with('-')
}

#[cfg(test)]
mod tests {
    use hyper::header::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    /// Name, path and cut of a tenant's address; empty for nowhere, `None` at home.
    fn place(domain: &str, host: &str, path: &str) -> Option<String> {
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, HeaderValue::from_str(host).unwrap());
        let uri: Uri = path.parse().unwrap();
        let decoded = crate::gateway::path::decode(uri.path()).unwrap();
        match Domain::new(domain).place(&headers, &uri, &decoded) {
            Place::Home => None,
            Place::Nowhere => Some(String::new()),
            Place::Bare => Some("bare".to_owned()),
            Place::Tenant(named) => Some(format!("{} {} {}", named.name, named.path, named.cut)),
        }
    }

    #[test]
    fn a_tenants_address_wants_its_slash() {
        assert_eq!(place("", "h", "/t/acme?a=b"), Some("bare".to_owned()));
    }

    #[test]
    fn paths_name_a_tenant_only_when_spelled_plainly() {
        assert_eq!(place("", "h", "/t/acme/api/x"), Some("acme /api/x 7".to_owned()));
        assert_eq!(place("", "h", "/t/acme/"), Some("acme / 7".to_owned()));
        assert_eq!(place("", "h", "/t/a-b/%61"), Some("a-b /a 6".to_owned()));
        let nowhere = Some(String::new());
        for path in ["/t", "/t/", "/t/%61cme", "/t/%61cme/", "/t/ACME/x", "/t/-a/", "/t/a-/", "/t/a_b/", "/t/a.b/"] {
            assert_eq!(place("", "h", path), nowhere, "{path}");
        }
        assert_eq!(place("", "h", &format!("/t/{}/", "a".repeat(33))), nowhere);
        assert_eq!(place("", "h", "/%74/acme/"), nowhere, "the prefix too");
        for path in ["/", "/tea", "/api/t/acme/"] {
            assert_eq!(place("", "h", path), None, "{path}");
        }
    }

    #[test]
    fn hosts_name_a_tenant_only_directly_below_the_domain() {
        let nowhere = Some(String::new());
        for host in ["acme.example.com", "ACME.Example.com:8080", "acme.example.com."] {
            assert_eq!(place("example.com", host, "/api/x"), Some("acme /api/x 0".to_owned()), "{host}");
        }
        assert_eq!(place("example.com", "acme.example.com", "/t/other/x"), Some("acme /t/other/x 0".to_owned()));
        for host in ["a.b.example.com", "-.example.com", "a_b.example.com"] {
            assert_eq!(place("example.com", host, "/"), nowhere, "{host}");
        }
        for host in
            ["example.com", "notexample.com", "www.example.com", "127.0.0.1", "[::1]:80", "acme.example.com.evil"]
        {
            assert_eq!(place("example.com", host, "/"), None, "{host}");
        }
        assert_eq!(place("", "acme.example.com", "/"), None);
    }

    proptest! {
        #[test]
        fn what_is_passed_on_is_what_was_decided_on(raw in "/(t|%74)/[a-zA-Z0-9%._-]{0,12}(/[a-z%0-9]{0,8}){0,3}") {
            let Ok(uri) = raw.parse::<Uri>() else { return Ok(()) };
            let Ok(decoded) = crate::gateway::path::decode(uri.path()) else { return Ok(()) };
            if let Place::Tenant(named) = Domain::new("").place(&HeaderMap::new(), &uri, &decoded) {
                let rest = uri.path().get(named.cut..).unwrap();
                prop_assert_eq!(crate::gateway::path::decode(rest).unwrap(), named.path);
            }
        }
    }
}
