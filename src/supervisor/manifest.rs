//! `template.toml`: what a template says of itself, parsed and checked once, before anything is baked.
//!
//! A manifest is optional and so is every field. An unknown field is an error, because a misspelt one would be
//! silently without effect. Nothing here changes what an instance contains (apart from `app_name`), so editing a
//! manifest does not make a new version of the template.

use std::net::Ipv4Addr;
use std::net::Ipv6Addr;
use std::net::SocketAddr;

use serde::Deserialize;
use serde::Serialize;

use crate::pocketbase::routes::TAKEN;
use crate::pocketbase::routes::can_be_public;
use crate::pocketbase::routes::is_hooks;
use crate::store::limit_rules;
use crate::store::tenants::Identity;
use crate::store::tenants::Kind;
use crate::store::tenants::Limits;
use crate::supervisor::jail::network::Reach;
use crate::supervisor::launch;

/// Most entries of a list of paths.
const MOST_PATHS: usize = 64;
/// Longest path, in bytes.
const LONGEST_PATH: usize = 200;
/// Longest text for people, in characters.
const LONGEST_TEXT: usize = 200;

/// What callers outside the supervisor may know of a template.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Traits {
    /// One line for people, may be empty.
    pub description: String,
    /// What tenants it may be used for. The template `global` is for the global instance alone.
    pub kinds: Vec<Kind>,
    /// Whose accounts callers of a new workspace have.
    pub identity: Identity,
    /// Paths of a new workspace that anybody may read; a `*` at the end stands for any rest.
    pub public_read: Vec<String>,
    /// Paths of the template's own hooks below `/api/`; a `*` at the end stands for any rest.
    pub routes: Vec<String>,
    /// TCP ports outside that its code may connect to, as `port` or `host:port`.
    pub outbound: Vec<String>,
    /// Whether it has a folder `pb_public`.
    pub has_public: bool,
    /// Whether it has a folder `pb_hooks`.
    pub has_hooks: bool,
    /// Limits of its tenants, before the configuration's.
    pub quota: Limits,
    /// The version of `PocketBase` that it says it stays at.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pocketbase: Option<String>,
    /// The version: SHA-256 in hex over everything that instances are made from.
    pub hash: String,
}

/// The file as written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Manifest {
    pub(super) description: String,
    pub(super) app_name: Option<String>,
    /// The version of `PocketBase` that it stays at, such as `0.39` or `0.39.11`.
    pub(super) pocketbase: Option<String>,
    kinds: Option<Vec<Usage>>,
    pub(super) identity: Identity,
    pub(super) public_read: Vec<String>,
    pub(super) routes: Vec<String>,
    pub(super) quota: Limits,
    pub(super) outbound: Vec<String>,
}

/// What a template may be declared for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Usage {
    Personal,
    Workspace,
}

impl Manifest {
    /// What tenants it may be used for: both kinds unless it says otherwise.
    pub(super) fn kinds(&self, is_global: bool) -> Vec<Kind> {
        if is_global {
            return vec![Kind::Global];
        }
        let Some(listed) = &self.kinds else { return vec![Kind::Personal, Kind::Workspace] };
        let kind = |usage: &Usage| match usage {
            Usage::Personal => Kind::Personal,
            Usage::Workspace => Kind::Workspace,
        };
        let mut kinds: Vec<Kind> = listed.iter().map(kind).collect();
        kinds.dedup();
        kinds
    }

    /// The rules beyond the types. The text names the field, the value and what is allowed.
    pub(super) fn check(&self, is_global: bool) -> Result<(), String> {
        // Its outbound ports go without saying: they follow from [mail] and [accounts].
        if is_global && (self.kinds.is_some() || !self.public_read.is_empty() || !self.routes.is_empty()) {
            let text = "the template `global` takes `description`, `app_name`, `outbound` and `pocketbase` only";
            return Err(text.to_owned());
        }
        if self.kinds.as_ref().is_some_and(Vec::is_empty) {
            return Err("kinds = []: name at least one of \"personal\" and \"workspace\"".to_owned());
        }
        for (field, text) in [("description", Some(&self.description)), ("app_name", self.app_name.as_ref())] {
            let Some(text) = text else { continue };
            if text.chars().count() > LONGEST_TEXT || text.chars().any(char::is_control) {
                return Err(format!("{field}: one line of at most {LONGEST_TEXT} characters"));
            }
        }
        limit_rules::check(&self.quota).map_err(|(field, rule)| format!("quota.{field}: {rule}"))?;
        if self.outbound.len() > MOST_PATHS {
            return Err(format!("outbound: at most {MOST_PATHS} entries"));
        }
        self.outbound
            .iter()
            .try_for_each(|entry| port(entry).map(drop).map_err(|why| format!("outbound: {entry:?} {why}")))?;
        if let Some(pin) = &self.pocketbase
            && !(2..=3).contains(&pin.split('.').filter(|part| part.parse::<u32>().is_ok()).count())
        {
            return Err(format!("pocketbase = {pin:?}: a version such as \"0.39\" or \"0.39.11\""));
        }
        for (field, paths) in [("public_read", &self.public_read), ("routes", &self.routes)] {
            if paths.len() > MOST_PATHS {
                return Err(format!("{field}: at most {MOST_PATHS} paths"));
            }
        }
        self.public_read
            .iter()
            .try_for_each(|path| readable(path).map_err(|why| format!("public_read: {path:?} {why}")))?;
        self.routes.iter().try_for_each(|path| route(path).map_err(|why| format!("routes: {path:?} {why}")))
    }
}

/// The ports that a template's code may connect to.
pub(super) fn ports(traits: Option<&Traits>) -> Vec<u16> {
    let entries = traits.map(|traits| traits.outbound.as_slice()).unwrap_or_default();
    let mut ports: Vec<u16> = entries.iter().filter_map(|entry| port(entry).ok()).collect();
    if !ports.is_empty() {
        // Names are asked for by UDP, and by TCP when the answer is long.
        ports.push(53);
    }
    ports
}

/// Where a template's code may connect to at level 3. A name is not looked up: its addresses may be others when the
/// code asks. So a name, like a port alone, means the public internet; an address means itself.
pub(super) fn reach(traits: Option<&Traits>) -> Reach {
    let mut reach = Reach::default();
    for entry in traits.map(|traits| traits.outbound.as_slice()).unwrap_or_default() {
        let Ok(port) = port(entry) else { continue };
        let host = entry.rsplit_once(':').map(|(host, _)| host);
        match host.map(str::parse::<Ipv4Addr>) {
            Some(Ok(address)) => reach.exact.push(SocketAddr::from((address, port))),
            _ if host == Some("localhost") => {
                reach.exact.push(SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
                reach.exact.push(SocketAddr::from((Ipv6Addr::LOCALHOST, port)));
            }
            _ => reach.public.push(port),
        }
    }
    reach
}

/// The port of an entry of `outbound`.
fn port(entry: &str) -> Result<u16, &'static str> {
    let (host, port) = entry.rsplit_once(':').map_or((None, entry), |(host, port)| (Some(host), port));
    let is_name = |host: &str| {
        !host.is_empty()
            && host.len() <= 253
            && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte))
    };
    if host.is_some_and(|host| !is_name(host)) {
        return Err(
            "has no host name before its colon: write a port, or a name and a port, such as \"api.example.com:443\"",
        );
    }
    let number =
        port.parse::<u16>().ok().filter(|number| *number > 0 && port.bytes().all(|byte| byte.is_ascii_digit()));
    let number = number.ok_or("has no port from 1 to 65535 at its end: write \"443\" or \"api.example.com:443\"")?;
    if launch::PORTS.contains(&number) {
        return Err("is a port that instances listen on (20000 to 31999), which no template may reach");
    }
    Ok(number)
}

/// What every path of a manifest looks like: it is compared with decoded paths, byte by byte.
fn plain(path: &str) -> Result<&str, &'static str> {
    let body = path.strip_suffix('*').unwrap_or(path);
    if path.len() > LONGEST_PATH {
        return Err("is too long");
    }
    if !path.starts_with('/') {
        return Err("does not begin with a slash");
    }
    if body.contains('*') {
        return Err("has a * that is not at its end");
    }
    if !body.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"/-_.~:@".contains(&byte)) {
        return Err("has a character that paths here do not have: write letters, digits and / - _ . ~ : @");
    }
    let mut parts = body.split('/').skip(1).peekable();
    while let Some(part) = parts.next() {
        let is_last = parts.peek().is_none();
        if part == "." || part == ".." || (part.is_empty() && !is_last) {
            return Err("has an empty part or one of dots");
        }
    }
    Ok(body)
}

fn readable(path: &str) -> Result<(), &'static str> {
    let body = plain(path)?;
    let Some(rest) = body.strip_prefix("/api/") else {
        return Err("is not below /api/: files of pb_public are public anyway");
    };
    let (first, tail) = rest.split_once('/').unwrap_or((rest, ""));
    match first {
        "collections" | "files" if tail.starts_with('_') => Err("names a system collection"),
        "collections" if tail.is_empty() => Err("opens every collection: name one"),
        "collections" | "files" if can_be_public(body) => Ok(()),
        "collections" | "files" => Err("is not records or files of one named collection"),
        _ if TAKEN.contains(&first) => Err("is not for reading records or files"),
        _ => route(path),
    }
}

fn route(path: &str) -> Result<(), &'static str> {
    let body = plain(path)?;
    let Some(rest) = body.strip_prefix("/api/") else { return Err("is not below /api/") };
    let (first, is_whole) = rest.split_once('/').map_or((rest, false), |(first, _)| (first, true));
    if first.is_empty() {
        return Err("opens everything below /api/: name a word of its own");
    }
    let is_taken = |word: &&str| word.eq_ignore_ascii_case(first);
    // `/api/coll*` would reach `/api/collections` as well.
    let reaches = |word: &&str| path.ends_with('*') && !is_whole && word.starts_with(&first.to_ascii_lowercase());
    if TAKEN.iter().any(|word| is_taken(word) || reaches(word)) {
        return Err("belongs to PocketBase or to pocketfleet: give hooks a word of their own, such as /api/hello");
    }
    if !is_hooks(first) {
        return Err("belongs to pocketfleet: give hooks a word of their own, such as /api/hello");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use figment::Figment;
    use figment::providers::Format;
    use figment::providers::Toml;

    use super::*;

    fn check(text: &str) -> Result<Manifest, String> {
        let manifest: Manifest = Figment::from(Toml::string(text)).extract().map_err(|error| error.to_string())?;
        manifest.check(false)?;
        Ok(manifest)
    }

    #[test]
    fn everything_has_a_default() {
        let manifest = check("").unwrap();
        assert_eq!(manifest.kinds(false), [Kind::Personal, Kind::Workspace]);
        assert_eq!(manifest.kinds(true), [Kind::Global]);
        assert_eq!(manifest.identity, Identity::Global);
        let manifest = check("kinds = ['workspace']\nidentity = 'own'").unwrap();
        assert_eq!((manifest.kinds(false), manifest.identity), (vec![Kind::Workspace], Identity::Own));
    }

    #[test]
    fn mistakes_name_the_field_and_the_value() {
        for (text, needles) in [
            ("colour = 'blue'", ["unknown field", "colour"]),
            ("kinds = ['global']", ["kinds", "global"]),
            ("kinds = []", ["kinds", "at least one"]),
            ("pocketbase = 'new'", ["pocketbase", "0.39"]),
            ("identity = 'mine'", ["identity", "mine"]),
            ("public_read = ['api/x']", ["public_read", "begin with a slash"]),
            ("public_read = ['/index.html']", ["public_read", "not below /api/"]),
            ("public_read = ['/api/collections/*']", ["public_read", "every collection"]),
            ("public_read = ['/api/files/_superusers/*']", ["public_read", "system collection"]),
            ("public_read = ['/api/settings']", ["public_read", "/api/settings"]),
            ("public_read = ['/api/*/x']", ["public_read", "not at its end"]),
            ("routes = ['/hello']", ["routes", "not below /api/"]),
            ("routes = ['/api/*']", ["routes", "everything"]),
            ("routes = ['/api/collections/x']", ["routes", "belongs to"]),
            ("routes = ['/api/Sql']", ["routes", "belongs to"]),
            ("routes = ['/api/coll*']", ["routes", "belongs to"]),
            ("routes = ['/api/queue_mine']", ["routes", "belongs to"]),
            ("routes = ['/api/a/../b']", ["routes", "dots"]),
            ("routes = ['/api/a//b']", ["routes", "empty part"]),
            ("routes = ['/api/%61']", ["routes", "character"]),
            ("outbound = ['0']", ["outbound", "1 to 65535"]),
            ("outbound = ['+443']", ["outbound", "1 to 65535"]),
            ("outbound = [':443']", ["outbound", "host name"]),
            ("outbound = ['a b:443']", ["outbound", "host name"]),
            ("outbound = ['20000']", ["outbound", "instances listen on"]),
            ("app_name = \"two\\nlines\"", ["app_name", "one line"]),
            ("quota.memory = 1000", ["quota.memory", "at least 134217728"]),
            ("quota.disk_hard = 1", ["quota.disk_hard", "at least 65536"]),
            ("quota.disk_hard = 1125899906842625", ["quota.disk_hard", "at most 1125899906842624"]),
            ("quota.in_flight = 1000000001", ["quota.in_flight", "at most 1000000000"]),
            ("quota.disk_hard = 1000000\nquota.disk_soft = 2000000", ["quota.disk_soft", "above disk_hard"]),
            ("quota.disk_hard = -1", ["quota.disk_hard", "-1"]),
            ("quota.disk = 5", ["unknown field", "disk"]),
        ] {
            let error = check(text).err().unwrap_or_else(|| panic!("{text} was taken"));
            assert!(needles.iter().all(|needle| error.contains(needle)), "{text}: {error}");
        }
    }

    #[test]
    fn a_name_means_the_public_internet_and_an_address_means_itself() {
        let manifest = check("outbound = ['443', 'api.example.com:8443', '10.0.0.5:5432', 'localhost:25']").unwrap();
        let traits = Traits {
            description: String::new(),
            kinds: Vec::new(),
            identity: Identity::Global,
            public_read: Vec::new(),
            routes: Vec::new(),
            outbound: manifest.outbound,
            has_public: false,
            has_hooks: false,
            quota: Limits::default(),
            pocketbase: None,
            hash: String::new(),
        };
        let found = reach(Some(&traits));
        assert_eq!((found.public, found.anywhere), (vec![443, 8443], Vec::new()));
        let exact = ["10.0.0.5:5432", "127.0.0.1:25", "[::1]:25"].map(|address| address.parse().unwrap());
        assert_eq!(found.exact, exact);
        assert_eq!(reach(None), Reach::default());
    }

    #[test]
    fn ordinary_paths_are_taken() {
        let text = "routes = ['/api/hello', '/api/shop/*', '/api/x/']\n\
                    public_read = ['/api/collections/posts/records', '/api/files/posts/*', '/api/hello']";
        assert_eq!(check(text).unwrap().routes.len(), 3);
        let manifest = check("outbound = ['443', 'smtp.example.com:587']").unwrap();
        assert_eq!(manifest.outbound.iter().map(|entry| port(entry).unwrap()).collect::<Vec<_>>(), [443, 587]);
    }
}
