//! Deleting and bringing back. Every step can be repeated; the tombstone's stage says which ones are left.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use time::OffsetDateTime;

use super::Deletion;
use super::Error;
use super::Lifecycle;
use super::Stage;
use crate::audit::Actor;
use crate::audit::Entry;
use crate::audit::action;
use crate::failpoint;
use crate::ids::TenantId;
use crate::ids::UserId;
use crate::queue;
use crate::queue::Filter;
use crate::queue::State;
use crate::store::api_keys::KeyOwner;
use crate::store::tenants::Kind;
use crate::store::tenants::Tenant;

/// Jobs that one look at the queue brings.
const PAGE: usize = 100;
/// How long Fathom may take to hear that a webhook is to go; it is told later otherwise.
const HOOK_PATIENCE: Duration = Duration::from_secs(5);

impl Lifecycle {
    /// Deletes a tenant: from the tombstone on nobody reaches it. One that was deleted is left as it is. When the
    /// answer's stage is not [`Stage::Gone`], putting it away goes on.
    pub async fn delete(&self, id: &TenantId, actor: Actor, now: OffsetDateTime) -> Result<Arc<Tenant>, Error> {
        let _alone = self.alone(id).await;
        let parts = self.parts();
        let tenant = parts.tenants.find(id).ok_or(Error::NotFound)?;
        if tenant.kind == Kind::Global {
            return Err(Error::Global);
        }
        match tenant.deleted.as_ref().map(|deletion| deletion.stage) {
            None => {}
            Some(Stage::Gone | Stage::Erasing) => return Ok(tenant),
            Some(Stage::Leaving) => return self.put_away(id).await,
            // It had been asked back, and now it is to go after all.
            Some(Stage::Returning) => drop(self.give_back(id).await?),
        }
        if let (Kind::Personal, Some(owner)) = (tenant.kind, &tenant.owner) {
            let owned = self.owned(owner);
            if !owned.is_empty() {
                return Err(Error::OwnsWorkspaces(owned));
            }
        }
        let keep = time::Duration::try_from(parts.config.keep_deleted).unwrap_or(time::Duration::MAX);
        let deletion = Deletion {
            at: now,
            by: actor.text(),
            erase_at: now.checked_add(keep).unwrap_or(now + time::Duration::days(3650)),
            stage: Stage::Leaving,
            was_paused: parts.queue.is_paused(id),
            erasure: None,
        };
        let entry = Entry::new(actor, action::TENANT_DELETED).tenant(id).subject(id.as_str());
        parts.audit.record(entry.detail(json!({ "erase_at": deletion.erase_at.unix_timestamp() }))).await?;
        let bury = |tenant: &mut Tenant| {
            tenant.deleted.get_or_insert_with(|| Box::new(deletion.clone()));
        };
        parts.tenants.change(id, bury).await?.ok_or(Error::NotFound)?;
        tracing::info!(tenant.id = %id, "a tenant was deleted");
        failpoint::hit("delete.tombstone");
        match self.put_away(id).await {
            Ok(tenant) => Ok(tenant),
            // Deleted it is; what is left of it is put away by the next look.
            Err(error) => {
                tracing::warn!(tenant.id = %id, %error, "a deleted tenant is put away later");
                parts.tenants.find(id).ok_or(Error::NotFound)
            }
        }
    }

    /// The workspaces that are a user's own and still there.
    fn owned(&self, user: &UserId) -> Vec<TenantId> {
        let found = self.parts().tenancy.workspaces(user, None, usize::MAX);
        let own =
            found.into_iter().filter(|(tenant, _)| tenant.owner.as_ref() == Some(user) && tenant.deleted.is_none());
        own.map(|(tenant, _)| tenant.id.clone()).collect()
    }

    /// Goes on with a deletion that was interrupted.
    pub(super) async fn resume(&self, id: &TenantId) -> Result<(), Error> {
        let _alone = self.alone(id).await;
        self.put_away(id).await.map(drop)
    }

    pub(super) async fn put_away(&self, id: &TenantId) -> Result<Arc<Tenant>, Error> {
        let parts = self.parts();
        let tenant = parts.tenants.find(id).ok_or(Error::NotFound)?;
        let deletion = match &tenant.deleted {
            Some(deletion) if deletion.stage == Stage::Leaving => deletion.clone(),
            _ => return Ok(tenant),
        };
        parts.queue.pause(id).await?;
        self.end_jobs(id).await?;
        failpoint::hit("delete.jobs");
        parts.supervisor.retire(id).await?;
        failpoint::hit("delete.stopped");
        parts.supervisor.put_aside(id, &deletion.folder(id)).await?;
        failpoint::hit("delete.moved");
        if let (Kind::Personal, Some(owner)) = (tenant.kind, &tenant.owner) {
            self.end_credentials(owner).await?;
            failpoint::hit("delete.sessions");
        }
        let hook = tokio::time::timeout(HOOK_PATIENCE, parts.meetings.remove_hook(id.clone())).await;
        if let Ok(Err(error)) = hook {
            tracing::info!(tenant.id = %id, %error, "the webhook of a deleted tenant is removed later");
        }
        self.advance(id, Stage::Leaving, Stage::Gone).await
    }

    async fn end_credentials(&self, user: &UserId) -> Result<(), Error> {
        let parts = self.parts();
        let now = OffsetDateTime::now_utc();
        for key in parts.api_keys.list(&KeyOwner::User(user.clone())) {
            if key.is_good(now) {
                // One that went meanwhile is as good as ended.
                drop(parts.api_keys.revoke(&key, now).await);
            }
        }
        parts.accounts.end_all(user).await?;
        Ok(())
    }

    /// Cancels what waits and what runs. Cancelled jobs can be tried again when the tenant comes back.
    pub(super) async fn end_jobs(&self, id: &TenantId) -> Result<usize, Error> {
        let queue = &self.parts().queue;
        let states: Vec<State> = State::ALL.into_iter().filter(|state| !state.is_finished()).collect();
        let (mut ended, mut cursor) = (0, None);
        loop {
            let page = queue.list(id, &Filter { states: states.clone(), cursor, limit: PAGE, ..Filter::default() });
            for job in &page.items {
                match queue.cancel(id, &job.id, OffsetDateTime::now_utc()).await {
                    Ok(_) => ended += 1,
                    Err(queue::Error::WrongState(_) | queue::Error::NotFound) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            cursor = page.next;
            if cursor.is_none() {
                return Ok(ended);
            }
        }
    }

    /// Moves a tombstone on, if it is still where it was.
    pub(super) async fn advance(&self, id: &TenantId, from: Stage, to: Stage) -> Result<Arc<Tenant>, Error> {
        let step = |tenant: &mut Tenant| {
            if let Some(deletion) = tenant.deleted.as_mut().filter(|deletion| deletion.stage == from) {
                deletion.stage = to;
            }
        };
        self.parts().tenants.change(id, step).await?.ok_or(Error::NotFound)
    }

    /// Brings a deleted tenant back as it was: its data, its members, its address, its secrets. Sessions and API keys do
    /// not come back; jobs that were cancelled can be tried again.
    pub async fn undelete(&self, id: &TenantId, actor: Actor) -> Result<Arc<Tenant>, Error> {
        let _alone = self.alone(id).await;
        let parts = self.parts();
        let tenant = parts.tenants.find(id).ok_or(Error::NotFound)?;
        let stage = tenant.deleted.as_ref().ok_or(Error::NotDeleted)?.stage;
        if stage == Stage::Erasing {
            return Err(Error::Erasing);
        }
        if stage == Stage::Leaving {
            self.put_away(id).await?;
        }
        parts.audit.record(Entry::new(actor, action::TENANT_UNDELETED).tenant(id).subject(id.as_str())).await?;
        self.advance(id, Stage::Gone, Stage::Returning).await?;
        failpoint::hit("undelete.begun");
        let tenant = self.give_back(id).await?;
        tracing::info!(tenant.id = %id, "a deleted tenant was brought back");
        Ok(tenant)
    }

    /// Goes on with bringing back what was interrupted in it.
    pub(super) async fn undelete_again(&self, id: &TenantId) -> Result<(), Error> {
        let _alone = self.alone(id).await;
        self.give_back(id).await.map(drop)
    }

    async fn give_back(&self, id: &TenantId) -> Result<Arc<Tenant>, Error> {
        let parts = self.parts();
        let tenant = parts.tenants.find(id).ok_or(Error::NotFound)?;
        let deletion = match &tenant.deleted {
            Some(deletion) if deletion.stage == Stage::Returning => deletion.clone(),
            _ => return Ok(tenant),
        };
        parts.supervisor.bring_back(id, &deletion.folder(id)).await?;
        failpoint::hit("undelete.moved");
        if !deletion.was_paused {
            parts.queue.resume(id).await?;
        }
        let clear = |tenant: &mut Tenant| {
            tenant.deleted.take_if(|deletion| deletion.stage == Stage::Returning);
        };
        let tenant = parts.tenants.change(id, clear).await?.ok_or(Error::NotFound)?;
        // Whoever was refused by the task meanwhile made it think that the tenant is suspended.
        parts.supervisor.release(id).await?;
        Ok(tenant)
    }
}
