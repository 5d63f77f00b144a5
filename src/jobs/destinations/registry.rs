//! Users' destinations: records of their own instance, and the two that are always there.
//!
//! Built in are `loom`, and `folder` if the operator named one; their ids are their kinds. Without a choice of the user
//! deliveries go to their default destination, or else to `loom`.

use std::path::PathBuf;
use std::sync::Arc;

use reqwest::header::AUTHORIZATION;
use reqwest::header::HeaderName;
use reqwest::header::HeaderValue;
use serde_json::Value;
use serde_json::json;
use time::OffsetDateTime;

use super::Destination;
use super::Kind;
use super::Settings;
use super::error::Error;
use super::folder::Folder;
use super::http_put::HttpPut;
use super::loom;
use super::loom::Loom;
use super::s3::S3;
use super::settings;
use super::tus::Tus;
use crate::ids::TenantId;
use crate::outbound::Guard;
use crate::records::Instance;
use crate::records::Put;
use crate::records::Query;
use crate::vault;
use crate::vault::KeyId;
use crate::vault::Opened;
use crate::vault::Vault;

const COLLECTION: &str = "destinations";
/// Destinations that one user may have.
pub const MAX_DESTINATIONS: usize = 50;
/// What the vault's log says a key was used for.
const PURPOSE: &str = "deliver_meeting";

/// A destination as its owner described it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Its id.
    pub id: String,
    /// What people call it.
    pub name: String,
    /// Where it is.
    pub settings: Settings,
    /// Its key in the vault; empty = none, or the service's own for S3.
    pub vault_key: String,
    /// Whether deliveries go there if nothing else is said.
    pub is_default: bool,
    /// Whether it is always there.
    pub is_builtin: bool,
}

/// A header that shows who sends; its value prints as nothing.
#[derive(Debug)]
pub struct Credential {
    pub(super) name: HeaderName,
    pub(super) value: HeaderValue,
}

/// The way to destinations. Cheap to clone.
#[derive(Clone)]
pub struct Destinations {
    inner: Arc<Inner>,
}

struct Inner {
    guard: Guard,
    vault: Vault,
    loom: Loom,
    folder: Option<PathBuf>,
}

impl std::fmt::Debug for Destinations {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Destinations").finish_non_exhaustive()
    }
}

impl Destinations {
    /// `folder` is below which users' folders lie, if the operator named one.
    pub fn new(guard: Guard, vault: Vault, config: &loom::Config, folder: Option<PathBuf>) -> Result<Self, Error> {
        let loom = Loom::new(guard.clone(), config)?;
        Ok(Self { inner: Arc::new(Inner { guard, vault, loom, folder }) })
    }

    /// What is asked of Loom.
    pub fn loom(&self) -> &Loom {
        &self.inner.loom
    }

    /// Those that are always there.
    pub fn builtin(&self) -> Vec<Target> {
        let target = |settings: Settings, name: &str| Target {
            id: settings.kind().as_str().to_owned(),
            name: name.to_owned(),
            settings,
            vault_key: String::new(),
            is_default: false,
            is_builtin: true,
        };
        let folder =
            self.inner.folder.as_ref().map(|_| target(Settings::Folder(settings::Folder::default()), "Folder"));
        folder.into_iter().chain([target(Settings::Loom, "Loom")]).collect()
    }

    /// All destinations of a user, the built-in ones last.
    pub async fn list(&self, instance: &Instance) -> Result<Vec<Target>, Error> {
        let query = Query { sort: "name", limit: MAX_DESTINATIONS, ..Query::default() };
        let found = instance.list(COLLECTION, &query).await?;
        let mut targets: Vec<Target> = found.iter().filter_map(read).collect();
        targets.extend(self.builtin());
        if !targets.iter().any(|target| target.is_default)
            && let Some(loom) = targets.iter_mut().rfind(|target| target.is_builtin)
        {
            loom.is_default = true;
        }
        Ok(targets)
    }

    /// One destination.
    pub async fn find(&self, instance: &Instance, id: &str) -> Result<Target, Error> {
        self.list(instance).await?.into_iter().find(|target| target.id == id).ok_or(Error::Unknown)
    }

    /// The destination that is meant: an id, a kind, or nothing for the default one.
    pub async fn choose(&self, instance: &Instance, wanted: Option<&str>) -> Result<Target, Error> {
        let targets = self.list(instance).await?;
        pick(targets, wanted).ok_or(match wanted {
            Some("folder") => Error::NotOffered,
            _ => Error::Unknown,
        })
    }

    /// Judges a description: its settings, its address, its key.
    pub fn check(
        &self,
        tenant: &TenantId,
        settings: &Settings,
        vault_key: &str,
        now: OffsetDateTime,
    ) -> Result<(), Error> {
        if settings.kind() == Kind::Folder && self.inner.folder.is_none() {
            return Err(Error::NotOffered);
        }
        if let Some(url) = settings.address() {
            self.inner.guard.check(&url)?;
        }
        if vault_key.is_empty() {
            return Ok(());
        }
        let id =
            KeyId::parse(vault_key).ok_or(Error::Settings("vault_key has to be the key_id of a key in the vault"))?;
        let item = self.inner.vault.find(tenant, &id, now);
        let item = item.ok_or(Error::Settings("vault_key names no key in the vault"))?;
        let is_fit = fits(settings.kind(), &item.service);
        if is_fit { Ok(()) } else { Err(Error::Settings("vault_key names a key of another service")) }
    }

    /// Keeps a destination, new or changed.
    pub async fn save(&self, instance: &Instance, target: &Target) -> Result<(), Error> {
        let existing = self.list(instance).await?;
        let is_new = !existing.iter().any(|one| one.id == target.id);
        if is_new && existing.iter().filter(|one| !one.is_builtin).count() >= MAX_DESTINATIONS {
            return Err(Error::Settings("there are as many destinations as there may be"));
        }
        if existing.iter().any(|one| one.id != target.id && one.name == target.name) {
            return Err(Error::Settings("another destination has this name"));
        }
        let mut rows = Vec::new();
        if target.is_default {
            let others = existing.iter().filter(|one| one.is_default && !one.is_builtin && one.id != target.id);
            rows.extend(others.map(|one| json!({ "id": one.id, "is_default": false })));
        }
        rows.push(json!({
            "id": target.id,
            "name": target.name,
            "kind": target.settings.kind(),
            "settings": target.settings.to_value(),
            "vault_key": target.vault_key,
            "is_default": target.is_default,
        }));
        let puts: Vec<Put<'_>> = rows.iter().map(|record| Put { collection: COLLECTION, value: record }).collect();
        Ok(instance.put(&puts).await?)
    }

    /// Removes a destination; what was delivered there stays.
    pub async fn remove(&self, instance: &Instance, id: &str) -> Result<(), Error> {
        if self.builtin().iter().any(|target| target.id == id) {
            return Err(Error::Settings("this destination is always there"));
        }
        if instance.delete(COLLECTION, id).await? { Ok(()) } else { Err(Error::Unknown) }
    }

    /// The destination itself, ready to take files.
    pub async fn open(&self, tenant: &TenantId, target: &Target) -> Result<Box<dyn Destination>, Error> {
        let guard = self.inner.guard.clone();
        Ok(match &target.settings {
            Settings::Folder(_) => Box::new(self.folder(tenant, target)?),
            Settings::S3(settings) => {
                let key = self.key(tenant, target).await?.ok_or(Error::Key(vault::Error::NotFound))?;
                Box::new(S3::new(guard, settings, &key)?)
            }
            Settings::HttpPut(http) => {
                Box::new(HttpPut::new(guard, &http.url, self.credential(tenant, target).await?)?)
            }
            Settings::HttpTus(http) => Box::new(Tus::new(guard, &http.url, self.credential(tenant, target).await?)?),
            Settings::Loom => return Err(Error::NeedsPerson),
        })
    }

    /// A link to what was delivered to a destination, made now; none where it gives none.
    pub async fn link(&self, tenant: &TenantId, target: &Target, location: &str) -> Result<Option<String>, Error> {
        let Settings::S3(settings) = &target.settings else { return Ok(None) };
        if !target.settings.gives_links() {
            return Ok(None);
        }
        let key = self.key(tenant, target).await?.ok_or(Error::Key(vault::Error::NotFound))?;
        S3::new(self.inner.guard.clone(), settings, &key)?.link(location).await
    }

    /// A user's folder of a destination of that kind.
    pub fn folder(&self, tenant: &TenantId, target: &Target) -> Result<Arc<Folder>, Error> {
        let (Settings::Folder(settings), Some(root)) = (&target.settings, &self.inner.folder) else {
            return Err(Error::NotOffered);
        };
        Ok(Arc::new(Folder::new(root.clone(), tenant.as_str(), &settings.subfolder)?))
    }

    /// Tries whether a destination would take files.
    pub async fn probe(&self, tenant: &TenantId, target: &Target) -> Result<(), Error> {
        match target.settings.kind() {
            // Nothing can be tried without a person.
            Kind::Loom => Ok(()),
            _ => self.open(tenant, target).await?.check().await,
        }
    }

    /// The key of a destination. A key is never sent to an address that its owner did not name it for: without one of
    /// its own, only S3 takes the service's.
    async fn key(&self, tenant: &TenantId, target: &Target) -> Result<Option<Opened>, Error> {
        let now = OffsetDateTime::now_utc();
        if let Some(id) = KeyId::parse(&target.vault_key) {
            let opened = self.inner.vault.open_id(tenant, &id, PURPOSE, now).await?;
            // The record may say what this program would not have written.
            if !fits(target.settings.kind(), &opened.service) {
                return Err(Error::MalformedKey("it is of another service than the destination takes"));
            }
            return Ok(Some(opened));
        }
        match target.settings.kind() {
            Kind::S3 => Ok(Some(self.inner.vault.open(tenant, "s3", None, PURPOSE, now).await?)),
            _ => Ok(None),
        }
    }

    async fn credential(&self, tenant: &TenantId, target: &Target) -> Result<Option<Credential>, Error> {
        self.key(tenant, target).await?.map(|opened| Credential::of(&opened)).transpose()
    }
}

impl Credential {
    /// `Authorization: Bearer <secret>`, unless the key's settings name another `header` or `scheme`.
    fn of(opened: &Opened) -> Result<Self, Error> {
        let setting = |name: &str| opened.settings.get(name).and_then(Value::as_str);
        let header = setting("header").map(|name| HeaderName::from_bytes(name.as_bytes())).transpose();
        let name = header.map_err(|_| Error::MalformedKey("its header is no name of one"))?.unwrap_or(AUTHORIZATION);
        let scheme = setting("scheme").or(if name == AUTHORIZATION { Some("Bearer") } else { None });
        let text = match scheme {
            Some(scheme) => format!("{scheme} {}", opened.secret.expose()),
            None => opened.secret.expose().to_owned(),
        };
        let mut value =
            HeaderValue::from_str(&text).map_err(|_| Error::MalformedKey("it cannot be sent in a header"))?;
        value.set_sensitive(true);
        Ok(Self { name, value })
    }
}

/// Pure: whether a destination of a kind may use a key of a service.
fn fits(kind: Kind, service: &str) -> bool {
    kind.key_service() == Some(service)
}

impl Target {
    /// Whether its key is shown to an address that `before` (what it was, if it was) did not show it to. S3 is never
    /// shown a key, it gets signatures.
    pub fn shows_key_elsewhere(&self, before: Option<&Self>) -> bool {
        let (Settings::HttpPut(http) | Settings::HttpTus(http)) = &self.settings else { return false };
        if self.vault_key.is_empty() {
            return false;
        }
        before.is_none_or(|before| match &before.settings {
            Settings::HttpPut(was) | Settings::HttpTus(was) => {
                before.vault_key != self.vault_key || was.url != http.url
            }
            _ => true,
        })
    }
}

/// Pure: the destination that is meant.
fn pick(targets: Vec<Target>, wanted: Option<&str>) -> Option<Target> {
    let Some(wanted) = wanted.filter(|wanted| !wanted.is_empty()) else {
        return targets.into_iter().find(|target| target.is_default);
    };
    if let Some(found) = targets.iter().find(|target| target.id == wanted) {
        return Some(found.clone());
    }
    // A kind: the default one of it, or else the first by name.
    let mut of_kind = targets.into_iter().filter(|target| target.settings.kind().as_str() == wanted);
    let first = of_kind.next()?;
    if first.is_default { Some(first) } else { Some(of_kind.find(|target| target.is_default).unwrap_or(first)) }
}

/// A record as a destination; one that is not valid (any more) is none.
fn read(record: &Value) -> Option<Target> {
    let text = |field: &str| record.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
    let kind = Kind::parse(&text("kind"))?;
    Some(Target {
        id: text("id"),
        name: text("name"),
        settings: Settings::parse(kind, record.get("settings").unwrap_or(&Value::Null)).ok()?,
        vault_key: text("vault_key"),
        is_default: record.get("is_default").and_then(Value::as_bool).unwrap_or_default(),
        is_builtin: false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(id: &str, kind: Kind, is_default: bool) -> Target {
        let settings = match kind {
            Kind::HttpPut => json!({"url": "https://example.com"}),
            _ => Value::Null,
        };
        Target {
            id: id.to_owned(),
            name: id.to_owned(),
            settings: Settings::parse(kind, &settings).unwrap(),
            vault_key: String::new(),
            is_default,
            is_builtin: id == kind.as_str(),
        }
    }

    #[test]
    fn a_key_is_for_its_own_service_only() {
        assert!(fits(Kind::S3, "s3") && fits(Kind::HttpPut, "http") && fits(Kind::HttpTus, "http"));
        for (kind, service) in [(Kind::HttpPut, "fathom"), (Kind::HttpTus, "s3"), (Kind::S3, "http"), (Kind::Loom, "")]
        {
            assert!(!fits(kind, service), "{kind:?} {service}");
        }
    }

    #[test]
    fn a_key_that_would_be_shown_elsewhere_is_noticed() {
        let with = |key: &str, url: &str| Target {
            settings: Settings::parse(Kind::HttpPut, &json!({ "url": url })).unwrap(),
            vault_key: key.to_owned(),
            ..target("a", Kind::HttpPut, false)
        };
        let now = with("k", "https://example.com/in");
        assert!(now.shows_key_elsewhere(None));
        assert!(now.shows_key_elsewhere(Some(&with("", "https://example.com/in"))));
        assert!(now.shows_key_elsewhere(Some(&with("k", "https://example.org/in"))));
        assert!(!now.shows_key_elsewhere(Some(&now)));
        assert!(!now.shows_key_elsewhere(Some(&Target { name: "b".to_owned(), ..now.clone() })));
        assert!(!with("", "https://example.org").shows_key_elsewhere(Some(&now)));
        assert!(!target("l", Kind::Loom, false).shows_key_elsewhere(None));
    }

    #[test]
    fn a_destination_is_meant_by_its_id_its_kind_or_by_default() {
        let all = || {
            vec![
                target("a", Kind::HttpPut, false),
                target("b", Kind::HttpPut, true),
                target("folder", Kind::Folder, false),
                target("loom", Kind::Loom, false),
            ]
        };
        let id = |wanted| pick(all(), wanted).map(|target| target.id);
        assert_eq!(id(None).as_deref(), Some("b"));
        assert_eq!(id(Some("")).as_deref(), Some("b"));
        assert_eq!(id(Some("a")).as_deref(), Some("a"));
        assert_eq!(id(Some("http_put")).as_deref(), Some("b"));
        assert_eq!(id(Some("loom")).as_deref(), Some("loom"));
        assert_eq!(id(Some("s3")), None);
    }
}
