//! The parts that serve users beyond their instances: what they keep, what works for them, and what tells them.
//!
//! Built in the order of the import table, on what the rest of the program is built on already.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use time::OffsetDateTime;

use crate::api::Services;
use crate::auth::Verifier;
use crate::auth::api_keys::ApiKeys;
use crate::config::Config;
use crate::events;
use crate::events::Events;
use crate::events::Owns;
use crate::ids::TenantId;
use crate::ids::UserId;
use crate::jobs::announce::Announcer;
use crate::jobs::intake::Intake;
use crate::jobs::intake::Rules;
use crate::queue;
use crate::queue::Queue;
use crate::records::Records;
use crate::records::Settle;
use crate::shutdown::Shutdown;
use crate::store;
use crate::store::Store;
use crate::supervisor::Supervisor;
use crate::telemetry::Metrics;
use crate::tenancy::MemberRole;
use crate::tenancy::Tenancy;

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
    /// Names this run of this node.
    pub incarnation: String,
    /// What `/metrics` shows.
    pub metrics: Arc<Metrics>,
    /// Whether we are about to stop; owns the services' tasks.
    pub shutdown: Shutdown,
}

/// Builds them.
pub async fn open(given: Given<'_>) -> anyhow::Result<Services> {
    let Given { config, data: _, store, supervisor, verifier, tenancy, settle, incarnation, metrics, shutdown } = given;
    let records = Records::new(supervisor, settle)?;
    let api_keys = ApiKeys::new(store::api_keys::ApiKeys::open(Arc::clone(&store)).await?, verifier.clone());
    let events = Events::open(events::Parts {
        config: config.events.clone(),
        store: Arc::clone(&store),
        verifier,
        owns: owns(tenancy.clone()),
        metrics: Arc::clone(&metrics),
        shutdown: shutdown.clone(),
    })
    .await
    .context("open the log of events")?;
    let queue = Queue::open(queue::Parts {
        config: config.queue.clone(),
        store,
        node: incarnation,
        // The lock of the data directory is ours.
        is_alone: true,
        handlers: Vec::new(),
        clock: Arc::new(OffsetDateTime::now_utc),
        metrics,
        shutdown: shutdown.clone(),
    })
    .await
    .context("open the queue")?;
    let intake = Intake::new(queue.clone(), tenancy, Rules::of(&config.queue));
    let announcer = Announcer::new(queue.clone(), events.clone(), intake.clone());
    shutdown.spawn(announcer.run(shutdown.clone()));
    Ok(Services { records, api_keys, events, queue, intake })
}

/// Who owns which tenant; nobody owns one that is suspended.
fn owns(tenancy: Tenancy) -> Owns {
    Arc::new(move |user: &UserId, tenant: &TenantId| {
        let found = tenancy.resolve(tenant.as_str()).filter(|found| !found.suspended && found.id == *tenant);
        found.is_some_and(|found| tenancy.role(&found, user) == Some(MemberRole::Owner))
    })
}
