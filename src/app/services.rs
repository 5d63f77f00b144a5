//! The parts that serve users beyond their instances: what they keep, what works for them, and what tells them.
//!
//! Built in the order of the import table, on what the rest of the program is built on already.

use std::path::Path;
use std::sync::Arc;

use tokio::runtime::Handle;

use crate::api::Services;
use crate::api::webhooks::HookBodies;
use crate::audit::Audit;
use crate::auth::Verifier;
use crate::config::Config;
use crate::integrations::fathom;
use crate::integrations::fathom::Fathom;
use crate::meetings;
use crate::meetings::Meetings;
use crate::outbound::Guard;
use crate::records::Records;
use crate::records::Settle;
use crate::shutdown::Shutdown;
use crate::store::Store;
use crate::store::blobs::FolderBlobs;
use crate::store::hooks::Hooks;
use crate::store::inbox::Inbox;
use crate::supervisor::Supervisor;
use crate::telemetry::Metrics;
use crate::tenancy::Tenancy;
use crate::vault;
use crate::vault::Check;
use crate::vault::Checks;
use crate::vault::Secret;
use crate::vault::Vault;
use crate::vault::Verdict;

/// What services stand on.
#[derive(Clone)]
#[expect(missing_debug_implementations, reason = "it lives for one call and holds closures")]
pub struct Given<'a> {
    /// The whole configuration.
    pub config: &'a Config,
    /// The data directory.
    pub data: &'a Path,
    /// The control plane's records.
    pub store: Arc<dyn Store>,
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
    let Given { config, data, store, supervisor, verifier: _, tenancy: _, settle, metrics: _, shutdown } = given;
    let records = Records::new(supervisor, settle)?;
    let fathom = Fathom::new(config.fathom.clone(), Guard::new(&config.outbound)?, shutdown.clone())?;
    let audit = Audit::open(Arc::clone(&store)).await?;
    let unlocked = vault::unlock(&config.vault, data, Arc::clone(&store)).await?;
    let vault = Vault::new(vault::Parts {
        config: config.vault.clone(),
        unlocked,
        audit,
        checks: Checks::new().with(meetings::SERVICE, check_of(fathom.clone())),
        shutdown: shutdown.clone(),
    })
    .await?;
    let meetings = Meetings::start(meetings::Parts {
        config: config.meetings.clone(),
        records: records.clone(),
        vault,
        fathom,
        hooks: Hooks::open(Arc::clone(&store)).await?,
        inbox: Inbox::open(store).await?,
        blobs: Arc::new(FolderBlobs::open(&data.join("inbox"))?),
        auto_deliver: None,
        public_url: config.server.public_url.clone(),
        shutdown,
    })
    .await?;
    Ok(Services { records, meetings, hook_bodies: HookBodies::default() })
}

/// Asks Fathom about a key that its owner is about to store, on the runtime where connections to Fathom live.
fn check_of(fathom: Fathom) -> Check {
    let runtime = Handle::current();
    Arc::new(move |secret, _| {
        let (fathom, secret) = (fathom.clone(), Secret::new(secret.expose().to_owned()));
        let asked = runtime.spawn(async move { meetings::check_key(&fathom, secret).await });
        Box::pin(async move {
            match asked.await {
                Ok(Ok(())) => Verdict::Ok,
                Ok(Err(error @ (fathom::Error::Unauthorized | fathom::Error::Forbidden))) => {
                    Verdict::Rejected { message: error.to_string() }
                }
                Ok(Err(_)) | Err(_) => Verdict::Unavailable,
            }
        })
    })
}
