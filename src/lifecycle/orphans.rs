//! What has lost its other half: listed, and left alone until an operator says what is to become of it.

use serde_json::json;
use time::OffsetDateTime;

use super::Error;
use super::Lifecycle;
use crate::audit::Actor;
use crate::audit::Entry;
use crate::audit::action;
use crate::ids::TenantId;
use crate::ids::UserId;
use crate::store::tenants::Kind;
use crate::store::tenants::Tenant;
use crate::supervisor::aside::Orphan;
use crate::supervisor::aside::OrphanKind;

/// What an operator says of an orphan.
#[derive(Debug, Clone, Default)]
pub struct Adoption {
    /// Whose it is to be; a personal instance is that of the account of its name.
    pub owner: Option<UserId>,
    /// What it was made from.
    pub template: Option<String>,
}

impl Lifecycle {
    /// What has a folder and no record, or a record and no folder.
    pub async fn orphans(&self) -> Result<Vec<Orphan>, Error> {
        Ok(self.parts().supervisor.orphans().await?)
    }

    async fn orphan(&self, id: &str) -> Result<Orphan, Error> {
        self.orphans().await?.into_iter().find(|orphan| orphan.id == id).ok_or(Error::NoOrphan)
    }

    /// Takes an orphan in again: a folder gets a record, a record without a folder gets a fresh, empty instance at its
    /// next wake.
    pub async fn adopt(&self, id: &str, adoption: Adoption) -> Result<Orphan, Error> {
        let orphan = self.orphan(id).await?;
        let parts = self.parts();
        let tenant = match orphan.kind {
            OrphanKind::Instance | OrphanKind::Record => TenantId::parse(id),
            OrphanKind::Aside => TenantId::parse(id.rsplit_once('-').map_or(id, |(tenant, _)| tenant)),
        };
        let tenant = tenant.map_err(|_| Error::Unclear("its name is none that a tenant can have; move it by hand"))?;
        let _alone = self.alone(&tenant).await;
        let record = match orphan.kind {
            OrphanKind::Record => None,
            OrphanKind::Instance | OrphanKind::Aside => Some(self.record_for(&tenant, adoption)?),
        };
        let entry = Entry::new(Actor::Operator, action::ORPHAN_ADOPTED).tenant(&tenant).subject(id);
        parts.audit.record(entry.detail(json!({ "kind": orphan.kind }))).await?;
        match orphan.kind {
            OrphanKind::Record => parts.supervisor.forget(&tenant).await?,
            OrphanKind::Aside => parts.supervisor.bring_back(&tenant, id).await?,
            OrphanKind::Instance => {}
        }
        if let Some(record) = record {
            parts.tenants.create_or_find(record).await?;
        }
        Ok(orphan)
    }

    /// The record that a folder gets; the one that there is, if there is one.
    fn record_for(&self, id: &TenantId, adoption: Adoption) -> Result<Tenant, Error> {
        let parts = self.parts();
        if let Some(found) = parts.tenants.find(id) {
            return Ok(Tenant::clone(&found));
        }
        let account = UserId::parse(id.as_str()).ok().filter(|user| parts.accounts.exists(user));
        let (kind, owner) = match (account, adoption.owner) {
            (Some(account), None) => (Kind::Personal, account),
            (Some(account), Some(owner)) if account == owner => (Kind::Personal, account),
            (None, Some(owner)) if parts.accounts.exists(&owner) => (Kind::Workspace, owner),
            (None, None) => return Err(Error::Unclear("no account has this name; say whose it is with --owner")),
            _ => return Err(Error::Unclear("there is no such account, or the folder is that of another account")),
        };
        let usual = match kind {
            Kind::Personal => parts.tenancy.personal_template(),
            Kind::Workspace | Kind::Global => parts.tenancy.template(crate::store::tenants::Identity::Global),
        };
        let template = adoption.template.unwrap_or_else(|| usual.to_owned());
        if !parts.supervisor.has_template(&template) {
            return Err(Error::Unclear("there is no such template; name the one it was made from with --template"));
        }
        let name = if kind == Kind::Workspace { id.to_string() } else { String::new() };
        Ok(Tenant { name, ..Tenant::new(id.clone(), kind, template, Some(owner)) })
    }

    /// Removes an orphan: a folder for good, a record like any tenant that is deleted.
    pub async fn remove_orphan(&self, id: &str) -> Result<Orphan, Error> {
        let orphan = self.orphan(id).await?;
        if orphan.kind == OrphanKind::Record {
            let tenant = TenantId::parse(id).map_err(|_| Error::NoOrphan)?;
            self.delete(&tenant, Actor::Operator, OffsetDateTime::now_utc()).await?;
            return Ok(orphan);
        }
        let parts = self.parts();
        let entry = Entry::new(Actor::Operator, action::ORPHAN_REMOVED).subject(id);
        parts.audit.record(entry.detail(json!({ "kind": orphan.kind }))).await?;
        let usage = parts.supervisor.remove_orphan(&orphan).await?;
        tracing::info!(
            orphan = id,
            bytes = usage.bytes,
            files = usage.files,
            "an operator removed a folder without a record"
        );
        Ok(orphan)
    }
}
