//! The address at which Fathom tells us of a user's new meetings: made, exchanged and removed for them.
//!
//! Fathom shows a hook's id and secret once and lists nothing, so the order matters: our record first, then the call,
//! then id and secret into the record; whatever fails in between is taken back. Known limit: a process that is killed
//! between Fathom's answer and our record leaves a hook at Fathom that nobody can remove; its calls are refused.

use std::sync::Arc;
use std::sync::PoisonError;
use std::time::Duration;

use time::OffsetDateTime;

use super::Error;
use super::Meetings;
use crate::ids::TenantId;
use crate::ids::UserId;
use crate::integrations::fathom;
use crate::integrations::fathom::NewWebhook;
use crate::integrations::fathom::Patience;
use crate::store::hooks::Hook;
use crate::store::hooks::HookId;
use crate::store::hooks::HookStatus;

/// How long a registration may take before its record is swept.
const REGISTERING: Duration = Duration::from_hours(1);
/// How long Fathom is told again and again that a hook is to go.
const REMOVING: Duration = Duration::from_hours(24 * 30);
/// How often what is unfinished is looked after.
const TIDY: Duration = Duration::from_mins(10);
/// Settled letters that one sweep forgets.
const SWEEP: usize = 1_000;

/// Whether Fathom tells us of new meetings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HookState {
    /// No.
    None,
    /// It is about to be told.
    Registering,
    /// Yes.
    Active,
    /// No longer, and it is about to be told.
    Removing,
}

/// A user's webhook as they may see it.
#[derive(Debug, Clone)]
pub struct HookSettings {
    /// Whether there is one.
    pub state: HookState,
    /// Where Fathom calls.
    pub url: Option<String>,
    /// Whether new meetings are delivered at once.
    pub auto_deliver: bool,
    /// Since when.
    pub created_at: Option<OffsetDateTime>,
    /// When Fathom called last.
    pub heard_at: Option<OffsetDateTime>,
}

/// Keeps two changes of one tenant's hook apart.
struct Change<'a>(&'a Meetings, TenantId);

impl Drop for Change<'_> {
    fn drop(&mut self) {
        self.0.inner.changing.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.1);
    }
}

impl Meetings {
    fn change_of(&self, tenant: &TenantId) -> Result<Change<'_>, Error> {
        let is_first = self.inner.changing.lock().unwrap_or_else(PoisonError::into_inner).insert(tenant.clone());
        if is_first { Ok(Change(self, tenant.clone())) } else { Err(Error::Busy) }
    }

    fn hook_url(&self, id: &HookId) -> String {
        format!("{}/webhooks/fathom/{}", self.inner.parts.public_url.trim_end_matches('/'), id.as_str())
    }

    /// A user's webhook.
    pub fn hook(&self, tenant: &TenantId) -> HookSettings {
        let hooks = self.inner.parts.hooks.of_tenant(tenant);
        let rank = |hook: &Arc<Hook>| match hook.status {
            HookStatus::Active { .. } => 0,
            HookStatus::Registering => 1,
            HookStatus::Removing { .. } => 2,
        };
        let Some(hook) = hooks.iter().min_by_key(|hook| rank(hook)) else {
            return HookSettings {
                state: HookState::None,
                url: None,
                auto_deliver: false,
                created_at: None,
                heard_at: None,
            };
        };
        let state = match hook.status {
            HookStatus::Active { .. } => HookState::Active,
            HookStatus::Registering => HookState::Registering,
            HookStatus::Removing { .. } => HookState::Removing,
        };
        let url = (state == HookState::Active).then(|| self.hook_url(&hook.id));
        let (created_at, heard_at) = (Some(hook.created_at), hook.heard_at);
        HookSettings { state, url, auto_deliver: hook.auto_deliver, created_at, heard_at }
    }

    /// Makes a webhook at Fathom with a fresh address and secret; one that was there before goes. Goes on to its end, also
    /// when the caller does not wait for it.
    pub async fn set_hook(
        &self,
        tenant: TenantId,
        user: UserId,
        auto_deliver: bool,
        now: OffsetDateTime,
    ) -> Result<HookSettings, Error> {
        if self.inner.parts.public_url.is_empty() {
            return Err(Error::NoPublicUrl);
        }
        if auto_deliver && self.inner.parts.auto_deliver.is_none() {
            return Err(Error::NoDelivery);
        }
        let meetings = self.clone();
        self.to_its_end(async move { meetings.exchange_hook(&tenant, &user, auto_deliver, now).await }).await
    }

    async fn exchange_hook(
        &self,
        tenant: &TenantId,
        user: &UserId,
        auto_deliver: bool,
        now: OffsetDateTime,
    ) -> Result<HookSettings, Error> {
        let parts = &self.inner.parts;
        let _change = self.change_of(tenant)?;
        let (session, _) = self.session(tenant, "register a webhook").await?;
        let session = session.patience(Patience::JOB);
        let before = parts.hooks.of_tenant(tenant);
        let hook = Hook {
            id: HookId::random(),
            tenant: tenant.clone(),
            user: user.clone(),
            status: HookStatus::Registering,
            auto_deliver,
            created_at: now,
            heard_at: None,
        };
        parts.hooks.create(hook.clone()).await?;
        let made = match session.create_webhook(&NewWebhook::new(self.hook_url(&hook.id))).await {
            Ok(made) => made,
            Err(error) => {
                parts.hooks.remove(&hook.id).await?;
                return Err(error.into());
            }
        };
        let kept = match parts.vault.seal(tenant, &seal_context(&hook.id), &made.secret).await {
            Ok(sealed) => self.activate(&hook.id, &made.id, &sealed.0).await,
            Err(error) => Err(error.into()),
        };
        if let Err(error) = kept {
            // Without its secret the hook is of no use to anybody.
            if let Err(error) = session.delete_webhook(&made.id).await {
                tracing::warn!(tenant.id = %tenant, %error, "a webhook that could not be kept stays at Fathom");
            }
            parts.hooks.remove(&hook.id).await?;
            return Err(error);
        }
        for old in before {
            self.retire(&old, &session).await?;
        }
        Ok(self.hook(tenant))
    }

    async fn activate(&self, id: &HookId, remote: &str, secret: &str) -> Result<(), Error> {
        let edit = |hook: &mut Hook| {
            hook.status = HookStatus::Active { remote: remote.to_owned(), secret: secret.to_owned() };
        };
        self.inner.parts.hooks.change(id, edit).await?.ok_or(Error::NotFound).map(drop)
    }

    /// Removes a user's webhook. Nothing is taken from it any more when this returns; if Fathom cannot be told now, it is
    /// told later. Goes on to its end, also when the caller does not wait for it.
    pub async fn remove_hook(&self, tenant: TenantId) -> Result<(), Error> {
        let meetings = self.clone();
        self.to_its_end(async move { meetings.drop_hook(&tenant).await }).await
    }

    /// On the runtime where connections to Fathom live.
    pub(super) async fn to_its_end<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, Error>> + Send + 'static,
    ) -> Result<T, Error> {
        let task = self.inner.parts.shutdown.spawn_on(work, &self.inner.runtime);
        task.await.unwrap_or(Err(Error::Busy))
    }

    async fn drop_hook(&self, tenant: &TenantId) -> Result<(), Error> {
        let _change = self.change_of(tenant)?;
        let hooks = self.inner.parts.hooks.of_tenant(tenant);
        // From now on nothing is taken, with or without a key.
        for hook in &hooks {
            self.close(hook).await?;
        }
        match self.session(tenant, "remove a webhook").await {
            Ok((session, _)) => {
                let session = session.patience(Patience::JOB);
                for hook in &hooks {
                    self.retire(hook, &session).await?;
                }
            }
            Err(error) => tracing::info!(tenant.id = %tenant, %error, "Fathom is told later that a webhook is to go"),
        }
        Ok(())
    }

    async fn close(&self, hook: &Hook) -> Result<(), Error> {
        let edit = |hook: &mut Hook| {
            if let HookStatus::Active { remote, .. } = &hook.status {
                hook.status = HookStatus::Removing { remote: remote.clone() };
            }
        };
        self.inner.parts.hooks.change(&hook.id, edit).await?;
        Ok(())
    }

    /// Takes nothing from a hook any more, tells Fathom, and forgets it once Fathom knows.
    async fn retire(&self, hook: &Hook, session: &fathom::Session) -> Result<(), Error> {
        let remote = match &hook.status {
            HookStatus::Active { remote, .. } | HookStatus::Removing { remote } => remote.clone(),
            HookStatus::Registering => return Ok(self.inner.parts.hooks.remove(&hook.id).await?),
        };
        self.close(hook).await?;
        match session.delete_webhook(&remote).await {
            Ok(()) | Err(fathom::Error::NotFound) => self.inner.parts.hooks.remove(&hook.id).await?,
            Err(error) => {
                tracing::info!(tenant.id = %hook.tenant, %error, "Fathom is told later that a webhook is to go");
            }
        }
        Ok(())
    }

    /// Looks after what is unfinished, for as long as the program runs.
    pub(super) async fn tidy(self) {
        let shutdown = self.inner.parts.shutdown.clone();
        loop {
            tokio::select! {
                () = self.tidy_once(OffsetDateTime::now_utc()) => {}
                () = shutdown.begun() => return,
            }
            tokio::select! {
                () = tokio::time::sleep(TIDY) => {}
                () = shutdown.begun() => return,
            }
        }
    }

    async fn tidy_once(&self, now: OffsetDateTime) {
        let hooks = &self.inner.parts.hooks;
        for hook in hooks.unsettled() {
            let Ok(_change) = self.change_of(&hook.tenant) else { continue };
            let age = now - hook.created_at;
            let done = match &hook.status {
                HookStatus::Registering if age > REGISTERING => hooks.remove(&hook.id).await.map_err(Error::from),
                HookStatus::Removing { .. } if age > REMOVING => hooks.remove(&hook.id).await.map_err(Error::from),
                HookStatus::Removing { .. } => match self.session(&hook.tenant, "remove a webhook").await {
                    Ok((session, _)) => self.retire(&hook, &session.patience(Patience::JOB)).await,
                    Err(error) => Err(error),
                },
                HookStatus::Registering | HookStatus::Active { .. } => Ok(()),
            };
            if let Err(error) = done {
                tracing::debug!(tenant.id = %hook.tenant, %error, "a webhook is tidied up later");
            }
        }
        let keep = i64::try_from(self.inner.parts.config.inbox_keep.as_secs()).unwrap_or(i64::MAX);
        for letter in self.inner.parts.inbox.settled_before(now.unix_timestamp().saturating_sub(keep), SWEEP) {
            if let Err(error) = self.forget(&letter.id).await {
                tracing::info!(%error, "an old webhook call is forgotten later");
                break;
            }
        }
    }
}

/// What the vault binds a hook's secret to.
pub(super) fn seal_context(id: &HookId) -> String {
    format!("webhook.{}", id.as_str())
}
