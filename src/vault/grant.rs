//! What a service issued to us in a user's name: a secret that is exchanged for a fresh one while it is in use.
//!
//! It lies where the user's own key of the service would lie, so one takes the place of the other. Its settings say that it
//! is one, and which: nobody else's settings can, because users' own are refused there. A fresh one is stored under the
//! same grant or not at all, so that what a user stored meanwhile is never overwritten.

use serde_json::Value;
use serde_json::json;
use time::OffsetDateTime;

use super::Caller;
use super::DEFAULT_LABEL;
use super::Error;
use super::Item;
use super::KeyId;
use super::Secret;
use super::Stored;
use super::Vault;
use super::services;
use crate::audit::Actor;
use crate::audit::Entry;
use crate::audit::action;
use crate::ids::TenantId;
use crate::store::secrets::SealedSecret;

/// What the settings of a grant say.
const OAUTH: &str = "oauth";

/// The name of the grant that settings speak of; none: it is a key of the user's own.
pub fn grant_of(settings: &Value) -> Option<&str> {
    if settings.get("type")?.as_str()? != OAUTH {
        return None;
    }
    settings.get("grant")?.as_str()
}

impl Vault {
    /// Stores what a service issued, in place of the default secret of the service if there is one.
    pub async fn put_grant(
        &self,
        caller: &Caller,
        service: &'static str,
        secret: &Secret,
        now: OffsetDateTime,
    ) -> Result<Stored, Error> {
        let mut described = services::describe(service, DEFAULT_LABEL, &Value::Null).map_err(Error::Invalid)?;
        services::check_secret(service, secret.expose()).map_err(Error::Invalid)?;
        described.settings = json!({ "type": OAUTH, "grant": format!("{:032x}", rand::random::<u128>()) });
        self.admit_change(caller)?;
        self.store(caller, described, secret, None, None, now).await
    }

    /// Stores the fresh secret of a grant. [`Error::Revoked`] when the grant is not there any more.
    pub async fn renew(&self, tenant: &TenantId, id: &KeyId, grant: &str, secret: &Secret) -> Result<(), Error> {
        let _alone = self.alone(tenant).await;
        let current = self.find_live(tenant, id).filter(|current| grant_of(&current.settings) == Some(grant));
        let current = current.ok_or(Error::Revoked)?;
        services::check_secret(&current.service, secret.expose()).map_err(Error::Invalid)?;
        let mut fresh = SealedSecret::clone(&current);
        fresh.version = self.next_version(&current)?;
        self.seal_into(&mut fresh, secret)?;
        let entry = Entry::new(Actor::System, action::SECRET_RENEWED).tenant(tenant).subject(id.as_str());
        self.inner.audit.record(entry.detail(json!({ "version": fresh.version }))).await?;
        self.write(&fresh, false).await
    }

    /// A tenant's grants of a service. No I/O.
    pub fn grants(&self, tenant: &TenantId, service: &str, now: OffsetDateTime) -> Vec<Item> {
        let mut items = self.list(tenant, now);
        items.retain(|item| item.service == service && grant_of(&item.settings).is_some());
        items
    }
}
