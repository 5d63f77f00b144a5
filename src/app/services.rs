//! The parts that serve users beyond their instances: what they keep, what works for them, and what tells them.
//!
//! Built in the order of the import table, on what the rest of the program is built on already.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context;

use crate::api::Services;
use crate::audit::Audit;
use crate::auth::Verifier;
use crate::auth::api_keys::ApiKeys;
use crate::config::Config;
use crate::events;
use crate::events::Events;
use crate::events::Owns;
use crate::ids::TenantId;
use crate::ids::UserId;
use crate::integrations::fathom;
use crate::integrations::fathom::Auth;
use crate::integrations::fathom::Fathom;
use crate::outbound::Guard;
use crate::records::Records;
use crate::records::Settle;
use crate::shutdown::Shutdown;
use crate::store;
use crate::store::Store;
use crate::supervisor::Supervisor;
use crate::telemetry::Metrics;
use crate::tenancy::MemberRole;
use crate::tenancy::Tenancy;
use crate::vault;
use crate::vault::Checks;
use crate::vault::Secret;
use crate::vault::Unlocked;
use crate::vault::Vault;
use crate::vault::Verdict;

/// What services stand on.
#[expect(missing_debug_implementations, reason = "it lives for one call and holds closures")]
pub struct Given<'a> {
    /// The whole configuration.
    pub config: &'a Config,
    /// The data directory.
    pub data: &'a Path,
    /// The control plane's records.
    pub store: Arc<dyn Store>,
    /// The keys of the vault.
    pub unlocked: Unlocked,
    /// The instances.
    pub supervisor: Supervisor,
    /// Who a token speaks for.
    pub verifier: Verifier,
    /// Who belongs where.
    pub tenancy: Tenancy,
    /// What has to happen before something is written to an instance.
    pub settle: Settle,
    /// What `/metrics` shows.
    pub metrics: Arc<Metrics>,
    /// Whether we are about to stop; owns the services' tasks.
    pub shutdown: Shutdown,
}

/// Builds them.
pub async fn open(given: Given<'_>) -> anyhow::Result<Services> {
    let Given { config, data: _, store, unlocked, supervisor, verifier, tenancy, settle, metrics, shutdown } = given;
    let records = Records::new(supervisor, settle)?;
    let fathom = Fathom::new(config.fathom.clone(), Guard::new(&config.outbound)?, shutdown.clone())?;
    let audit = Audit::open(Arc::clone(&store)).await.context("open the audit log")?;
    let parts = vault::Parts {
        config: config.vault.clone(),
        unlocked,
        audit: audit.clone(),
        checks: checks(fathom),
        shutdown: shutdown.clone(),
    };
    let vault = Vault::new(parts).await.context("open the vault")?;
    let api_keys = ApiKeys::new(store::api_keys::ApiKeys::open(Arc::clone(&store)).await?, verifier.clone());
    let events = Events::open(events::Parts {
        config: config.events.clone(),
        store,
        verifier,
        owns: owns(tenancy),
        metrics,
        shutdown,
    })
    .await
    .context("open the log of events")?;
    Ok(Services { records, audit, vault, api_keys, events })
}

/// Which services are asked about a secret before it is stored.
fn checks(fathom: Fathom) -> Checks {
    let ask = move |secret: &Secret| {
        let session = fathom.as_user(Auth::ApiKey(Secret::new(secret.expose().to_owned())));
        async move {
            match session.check().await {
                Ok(()) => Verdict::Ok,
                Err(error @ (fathom::Error::Unauthorized | fathom::Error::Forbidden)) => {
                    Verdict::Rejected { message: error.to_string() }
                }
                Err(error) => {
                    tracing::info!(%error, "a key for Fathom could not be checked");
                    Verdict::Unavailable
                }
            }
        }
    };
    Checks::new().with("fathom", Arc::new(move |secret, _| Box::pin(ask(secret))))
}

/// Who owns which tenant; nobody owns one that is suspended.
fn owns(tenancy: Tenancy) -> Owns {
    Arc::new(move |user: &UserId, tenant: &TenantId| {
        let found = tenancy.resolve(tenant.as_str()).filter(|found| !found.suspended && found.id == *tenant);
        found.is_some_and(|found| tenancy.role(&found, user) == Some(MemberRole::Owner))
    })
}
