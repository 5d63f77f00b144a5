//! The parts that serve users beyond their instances: what they keep, what works for them, and what tells them.
//!
//! Built in the order of the import table, on what the rest of the program is built on already.

use std::path::Path;
use std::sync::Arc;

use crate::api::Services;
use crate::audit::Audit;
use crate::auth::Verifier;
use crate::config::Config;
use crate::records::Records;
use crate::records::Settle;
use crate::shutdown::Shutdown;
use crate::store::Store;
use crate::supervisor::Supervisor;
use crate::telemetry::Metrics;
use crate::tenancy::Tenancy;
use crate::vault;
use crate::vault::Checks;
use crate::vault::Unlocked;
use crate::vault::Vault;

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
    let Given { config, data: _, store, unlocked, supervisor, verifier: _, tenancy: _, settle, metrics: _, shutdown } =
        given;
    let records = Records::new(supervisor, settle)?;
    let audit = Audit::open(store).await?;
    let parts = vault::Parts {
        config: config.vault.clone(),
        unlocked,
        audit: audit.clone(),
        checks: checks(),
        shutdown: shutdown.clone(),
    };
    let vault = Vault::new(parts).await?;
    Ok(Services { records, audit, vault })
}

/// Which services are asked about a secret before it is stored.
fn checks() -> Checks {
    Checks::new()
}
