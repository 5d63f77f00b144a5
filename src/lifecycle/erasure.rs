//! Erasing for good what was deleted. Every step can be repeated; the tombstone goes last, so that whoever dies in
//! between is followed by somebody who goes on.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::json;
use time::OffsetDateTime;

use super::Erased;
use super::Error;
use super::Lifecycle;
use super::Signed;
use super::Stage;
use super::Verdict;
use crate::audit::Actor;
use crate::audit::Entry;
use crate::audit::action;
use crate::failpoint;
use crate::ids::TenantId;
use crate::ids::UserId;
use crate::queue::Filter;
use crate::store;
use crate::store::BoxFuture;
use crate::store::api_keys::KeyOwner;
use crate::store::tenants::Deletion;
use crate::store::tenants::Erasure;
use crate::store::tenants::Kind;
use crate::store::tenants::Tenant;
use crate::supervisor::aside::Stuck;

/// Jobs that one look at the queue brings.
const PAGE: usize = 500;
/// Attempts to remove one record that somebody else changes meanwhile.
const ATTEMPTS: usize = 64;

/// A part of the program that keeps something of tenants elsewhere than in their folder and in the records that are
/// erased here: backups, for one. Called again after an interruption, so it has to be content with finding nothing.
pub trait Erases: std::fmt::Debug + Send + Sync {
    /// What is counted, for the record of the erasure: one word of a-z and `_`.
    fn name(&self) -> &'static str;

    /// How much there is of a tenant.
    fn count(&self, tenant: &TenantId) -> u64;

    /// Makes everything of the tenant unreadable for good. False: it failed, was logged, and is to be tried again.
    fn erase<'a>(&'a self, tenant: &'a TenantId) -> BoxFuture<'a, bool>;
}

impl Lifecycle {
    /// Erases a deleted tenant now. Nothing takes it back.
    pub async fn erase(&self, id: &TenantId, actor: Actor, now: OffsetDateTime) -> Result<Signed, Error> {
        let _alone = self.alone(id).await;
        let parts = self.parts();
        let mut tenant = parts.tenants.find(id).ok_or(Error::NotFound)?;
        if tenant.deleted.as_ref().is_some_and(|deletion| deletion.stage == Stage::Leaving) {
            tenant = self.put_away(id).await?;
        }
        let deletion = tenant.deleted.as_ref().ok_or(Error::NotDeleted)?;
        match deletion.stage {
            Stage::Gone => self.gather(id, deletion).await?,
            Stage::Erasing => return self.wipe(id).await,
            Stage::Leaving | Stage::Returning => return Err(Error::NotDeleted),
        }
        let erasure = Erasure { by: actor.text(), begun_at: now, counts: self.tally(&tenant, deletion).await? };
        parts.audit.record(Entry::new(actor, action::ERASURE_BEGUN).tenant(id).subject(id.as_str())).await?;
        let begin = |tenant: &mut Tenant| {
            if let Some(deletion) = tenant.deleted.as_mut().filter(|deletion| deletion.stage == Stage::Gone) {
                deletion.stage = Stage::Erasing;
                deletion.erasure = Some(erasure.clone());
            }
        };
        parts.tenants.change(id, begin).await?.ok_or(Error::NotFound)?;
        failpoint::hit("erase.begun");
        self.wipe(id).await
    }

    /// Puts aside what lies among the instances once more: a fleet that was restored has the data of its deleted
    /// tenants there. Where both are, both go.
    async fn gather(&self, id: &TenantId, deletion: &Deletion) -> Result<(), Error> {
        match self.parts().supervisor.put_aside(id, &deletion.folder(id)).await {
            Ok(()) | Err(Stuck::Taken(_)) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Goes on with an erasure that was interrupted.
    pub(super) async fn erase_again(&self, id: &TenantId) -> Result<(), Error> {
        let _alone = self.alone(id).await;
        self.wipe(id).await.map(drop)
    }

    /// What there is, counted before anything goes.
    async fn tally(&self, tenant: &Tenant, deletion: &Deletion) -> Result<BTreeMap<String, u64>, Error> {
        let (parts, id) = (self.parts(), &tenant.id);
        let usage = parts.supervisor.size_aside(&deletion.folder(id)).await?;
        let replaced = parts.supervisor.size_replaced(id).await?;
        let many = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
        let mut counts: BTreeMap<String, u64> = BTreeMap::new();
        let mut note = |name: &str, count: u64| {
            counts.insert(name.to_owned(), count);
        };
        note("bytes", usage.bytes.saturating_add(replaced.bytes));
        note("files", usage.files.saturating_add(replaced.files));
        note("jobs", many(self.jobs(id).len()));
        note("schedules", many(parts.queue.schedules(id).len()));
        note("secrets", many(parts.vault.count(id)));
        note("webhook_calls", many(parts.meetings.kept_calls(id)));
        note("members", many(parts.tenancy.members_of(id, None, usize::MAX).len()));
        if let Some(user) = account_of(tenant) {
            note("sessions", many(parts.store.list(&format!("session.{user}.")).await?.len()));
            note("api_keys", many(parts.api_keys.list(&KeyOwner::User(user.clone())).len()));
            note("events", many(self.events_of(tenant).await?.len()));
            note("accounts", 1);
        }
        for part in &parts.erasers {
            note(part.name(), part.count(id));
        }
        Ok(counts)
    }

    /// Every job of a tenant: its id and its key in the store.
    fn jobs(&self, id: &TenantId) -> Vec<(String, String)> {
        let (mut found, mut cursor) = (Vec::new(), None);
        loop {
            let page = self.parts().queue.list(id, &Filter { cursor, limit: PAGE, ..Filter::default() });
            found.extend(page.items.iter().map(|job| (job.id.to_string(), job.key())));
            cursor = page.next;
            if cursor.is_none() {
                return found;
            }
        }
    }

    async fn events_of(&self, tenant: &Tenant) -> Result<Vec<String>, Error> {
        let mut prefixes = vec![format!("event.instance-{}.", tenant.id)];
        if let Some(user) = account_of(tenant) {
            prefixes.extend([format!("event.user-{user}."), format!("event.queue-{user}.")]);
        }
        let mut keys = Vec::new();
        for prefix in prefixes {
            keys.extend(self.keys(&prefix).await?);
        }
        Ok(keys)
    }

    /// The steps. What cannot be read any more comes first: whatever a failure leaves behind after that is sealed.
    async fn wipe(&self, id: &TenantId) -> Result<Signed, Error> {
        let parts = self.parts();
        let tenant = parts.tenants.find(id).ok_or(Error::NotFound)?;
        let Some(deletion) = tenant.deleted.as_deref().filter(|deletion| deletion.stage == Stage::Erasing) else {
            return Err(Error::NotDeleted);
        };
        let erasure = deletion.erasure.clone().ok_or(Error::NotDeleted)?;
        parts.vault.destroy(id, Actor::System).await?;
        for part in &parts.erasers {
            if !part.erase(id).await {
                return Err(Error::Part(part.name()));
            }
        }
        failpoint::hit("erase.vault");
        self.wipe_records(&tenant).await?;
        failpoint::hit("erase.records");
        parts.supervisor.destroy(&deletion.folder(id)).await?;
        // The place is free now for whatever lies among the instances in spite of the tombstone.
        parts.supervisor.put_aside(id, &deletion.folder(id)).await?;
        parts.supervisor.destroy(&deletion.folder(id)).await?;
        parts.supervisor.destroy_replaced(id).await?;
        parts.supervisor.forget(id).await?;
        failpoint::hit("erase.folder");
        if let Some(user) = account_of(&tenant) {
            parts.accounts.erase(user).await?;
            // What a sign-in of the last moment left.
            self.wipe_prefix(&format!("session.{user}.")).await?;
        }
        failpoint::hit("erase.account");
        let signed = self.sign_off(&tenant, deletion, erasure).await?;
        failpoint::hit("erase.signed");
        parts.tenants.forget(id).await?;
        tracing::info!(tenant.id = %id, "a deleted tenant was erased");
        Ok(signed)
    }

    async fn wipe_records(&self, tenant: &Tenant) -> Result<(), Error> {
        let (parts, id) = (self.parts(), &tenant.id);
        for (job, key) in self.jobs(id) {
            let staging = parts.staging.clone();
            let name = job.clone();
            let removed = tokio::task::spawn_blocking(move || staging.remove(&name)).await;
            if !matches!(removed, Ok(Ok(()))) {
                tracing::warn!(tenant.id = %id, job.id = %job, "the staged files of an erased tenant cannot be removed");
                return Err(Error::Part("staged files"));
            }
            self.wipe_key(&key).await?;
        }
        self.wipe_prefix(&format!("schedule.{id}.")).await?;
        self.wipe_key(&format!("jobpause.tenant.{id}")).await?;
        for key in self.events_of(tenant).await? {
            self.wipe_key(&key).await?;
        }
        parts.meetings.erase(id).await.map_err(|error| {
            tracing::warn!(tenant.id = %id, %error, "the webhook calls of an erased tenant cannot be removed");
            Error::Part("webhook calls")
        })?;
        if let Some(user) = account_of(tenant) {
            self.wipe_prefix(&format!("session.{user}.")).await?;
            self.wipe_key(&format!("seen.{user}")).await?;
            parts.api_keys.erase(&KeyOwner::User(user.clone()), OffsetDateTime::now_utc()).await?;
        }
        parts.tenancy.erase(tenant).await?;
        Ok(())
    }

    /// Writes the record, once.
    async fn sign_off(&self, tenant: &Tenant, deletion: &Deletion, erasure: Erasure) -> Result<Signed, Error> {
        let (parts, id) = (self.parts(), &tenant.id);
        let records = self.records();
        if let Some(found) = records.find(id, deletion.at).await? {
            return Ok(found);
        }
        let entry = Entry::new(Actor::System, action::TENANT_ERASED).tenant(id).subject(deletion.folder(id));
        let audit_seq = parts.audit.record(entry.detail(json!({ "by": erasure.by }))).await?;
        let erased = Erased {
            version: 1,
            tenant: id.clone(),
            kind: tenant.kind,
            deleted_at: deletion.at,
            deleted_by: deletion.by.clone(),
            begun_at: erasure.begun_at,
            erased_by: erasure.by,
            erased_at: OffsetDateTime::now_utc(),
            counts: erasure.counts,
            audit_seq,
        };
        records.keep(&parts.vault, erased).await
    }

    /// The records of what was erased here.
    pub async fn erasures(&self) -> Result<Vec<Signed>, Error> {
        self.records().all().await
    }

    /// Whether a record is one of ours, and as it was.
    pub async fn verify(&self, shown: &Signed) -> Result<Verdict, Error> {
        self.records().verify(shown).await
    }

    async fn keys(&self, prefix: &str) -> Result<Vec<String>, Error> {
        let found = self.parts().store.list(prefix).await?;
        Ok(found.into_iter().map(|entry| entry.key.to_string()).collect())
    }

    async fn wipe_prefix(&self, prefix: &str) -> Result<(), Error> {
        for key in self.keys(prefix).await? {
            self.wipe_key(&key).await?;
        }
        Ok(())
    }

    async fn wipe_key(&self, key: &str) -> Result<(), store::Error> {
        let store = &self.parts().store;
        for _ in 0..ATTEMPTS {
            let Some(entry) = store.get(key).await? else { return Ok(()) };
            match store.delete(key, entry.revision).await {
                Ok(_) => return Ok(()),
                Err(error) if error.is_refusal() => tokio::task::yield_now().await,
                Err(error) => return Err(error),
            }
        }
        Err(store::Error::Stale)
    }
}

/// The account that goes with a tenant.
fn account_of(tenant: &Tenant) -> Option<&UserId> {
    tenant.owner.as_ref().filter(|_| tenant.kind == Kind::Personal)
}

/// Parts of the program that keep something of tenants.
pub type Erasers = Vec<Arc<dyn Erases>>;
