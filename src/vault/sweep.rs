//! The task that looks for secrets whose time ends, tells once of each, and forgets what was deleted long ago.

use std::time::Duration;

use serde_json::json;
use time::OffsetDateTime;

use super::Error;
use super::Vault;
use super::Warning;
use crate::audit::Actor;
use crate::audit::Entry;
use crate::audit::action;
use crate::shutdown::Shutdown;
use crate::store::secrets::SealedSecret;

/// How often it looks without a reason: one pass over memory.
const EVERY: Duration = Duration::from_mins(1);
/// Most secrets in one pass; the rest follow in the next.
const BATCH: usize = 256;

/// Works until the shutdown begins.
pub(super) async fn run(vault: Vault, shutdown: Shutdown) {
    let mut tick = tokio::time::interval(EVERY);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = shutdown.begun() => return,
            _ = tick.tick() => {}
            () = vault.inner.look.notified() => {}
        }
        if let Err(error) = vault.look(OffsetDateTime::now_utc()).await {
            tracing::warn!(%error, "look for secrets whose time ends");
        }
    }
}

impl Vault {
    /// One pass. A warning is noted in the record after it was given: a crash between the two gives it twice, and none is
    /// lost.
    async fn look(&self, now: OffsetDateTime) -> Result<(), Error> {
        let soon = now + self.inner.config.warn_before;
        let ends = |secret: &SealedSecret| {
            let end = secret.expires_at.filter(|end| *end <= soon && secret.deleted_at.is_none());
            end.is_some_and(|end| secret.warned_of != Some(end))
        };
        for secret in self.inner.secrets.select(BATCH, ends) {
            let Some(expires_at) = secret.expires_at else { continue };
            let warning = Warning {
                tenant: secret.tenant.clone(),
                key_id: secret.key_id.clone(),
                service: secret.service.clone(),
                label: secret.label.clone(),
                expires_at,
            };
            if !(self.inner.warn)(warning).await {
                tracing::debug!(tenant.id = %secret.tenant, key.id = %secret.key_id, "the owner could not be warned; the next pass tries again");
                continue;
            }
            let entry = Entry::new(Actor::System, action::SECRET_EXPIRING).tenant(&secret.tenant);
            let end = expires_at.format(&time::format_description::well_known::Rfc3339).unwrap_or_default();
            self.inner.audit.record(entry.subject(secret.key_id.as_str()).detail(json!({ "expires_at": end }))).await?;
            tracing::info!(tenant.id = %secret.tenant, key.id = %secret.key_id, service = secret.service, "a secret expires soon");
            let noted = self.inner.secrets.change(&secret.tenant, &secret.key_id, |current| {
                Ok(current.map(|current| SealedSecret { warned_of: Some(expires_at), ..current.clone() }))
            });
            noted.await?;
        }
        let old = now - self.inner.config.keep_deleted;
        let is_old = |secret: &SealedSecret| secret.deleted_at.is_some_and(|at| at < old);
        for secret in self.inner.secrets.select(BATCH, is_old) {
            self.inner.secrets.purge(&secret.tenant, &secret.key_id).await?;
        }
        Ok(())
    }
}
