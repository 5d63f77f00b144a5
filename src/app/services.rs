//! The parts that serve users beyond their instances: what they keep, what works for them, and what tells them.
//!
//! Built in the order of the import table, on what the rest of the program is built on already.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use serde_json::json;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::api::Services;
use crate::api::webhooks::HookBodies;
use crate::app::delivery;
use crate::app::delivery::Delivery;
use crate::app::meetings;
use crate::audit::Audit;
use crate::auth::Verifier;
use crate::auth::accounts::Accounts;
use crate::auth::api_keys::ApiKeys;
use crate::backup;
use crate::backup::Backups;
use crate::backup::Repository;
use crate::config::Config;
use crate::events;
use crate::events::Events;
use crate::events::Message;
use crate::events::Owns;
use crate::events::Topic;
use crate::ids::TenantId;
use crate::ids::UserId;
use crate::integrations::fathom::Fathom;
use crate::jobs;
use crate::jobs::announce::Announcer;
use crate::jobs::intake::Intake;
use crate::jobs::intake::Rules;
use crate::lifecycle;
use crate::lifecycle::Lifecycle;
use crate::outbound::Guard;
use crate::queue;
use crate::queue::Queue;
use crate::quota;
use crate::quota::Quotas;
use crate::quota::Sweep;
use crate::records::Records;
use crate::records::Settle;
use crate::shutdown::Shutdown;
use crate::store;
use crate::store::BoxFuture;
use crate::store::Store;
use crate::store::damaged_backups::DamagedBackups;
use crate::store::tenants::Tenants;
use crate::supervisor::Supervisor;
use crate::supervisor::config::Memory;
use crate::telemetry::Metrics;
use crate::tenancy::MemberRole;
use crate::tenancy::Tenancy;
use crate::vault;
use crate::vault::Checks;
use crate::vault::Unlocked;
use crate::vault::Vault;
use crate::vault::Warn;
use crate::vault::Warning;

/// How long the log of events may take with a warning; the vault tries again.
const WARNED_IN: Duration = Duration::from_secs(3);

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
    /// The tenants' records.
    pub tenants: Tenants,
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
#[expect(clippy::too_many_lines, reason = "one list: what is built on what, in order")]
pub async fn open(given: Given<'_>) -> anyhow::Result<Services> {
    let Given {
        config,
        data,
        store,
        unlocked,
        supervisor,
        verifier,
        tenancy,
        tenants,
        settle,
        incarnation,
        metrics,
        shutdown,
    } = given;
    let records = Records::new(supervisor.clone(), settle)?;
    let guard = Guard::new(&config.outbound)?;
    let fathom = Fathom::new(config.fathom.clone(), guard.clone(), shutdown.clone())?;
    let audit = Audit::open(Arc::clone(&store)).await?;
    let events = Events::open(events::Parts {
        config: config.events.clone(),
        store: Arc::clone(&store),
        verifier: verifier.clone(),
        owns: owns(tenancy.clone()),
        metrics: Arc::clone(&metrics),
        shutdown: shutdown.clone(),
    })
    .await
    .context("open the log of events")?;
    let parts = vault::Parts {
        config: config.vault.clone(),
        unlocked,
        audit: audit.clone(),
        checks: checks(&fathom),
        warn: warn(events.clone()),
        keeps_former: !config.backup.store.is_empty(),
        shutdown: shutdown.clone(),
    };
    let vault = Vault::new(parts).await?;
    let api_keys = ApiKeys::new(store::api_keys::ApiKeys::open(Arc::clone(&store)).await?, verifier);
    let queue = Queue::open(queue::Parts {
        config: config.queue.clone(),
        store: Arc::clone(&store),
        node: incarnation,
        // The lock of the data directory is ours.
        is_alone: true,
        handlers: Vec::new(),
        clock: Arc::new(OffsetDateTime::now_utc),
        metrics: Arc::clone(&metrics),
        shutdown: shutdown.clone(),
    })
    .await
    .context("open the queue")?;
    let damaged = DamagedBackups::open(Arc::clone(&store)).await?;
    let backups = backups(config, data, &vault, supervisor, &tenants, damaged, &shutdown).context("backup.store")?;
    jobs::backup::begin(&backups, &tenants, &queue).await.context("schedule the backups")?;
    let intake = Intake::new(queue.clone(), tenancy, Rules::of(&config.queue));
    // It ends after the queue, which goes on ending jobs while everything else stops already.
    shutdown.spawn(Announcer::new(queue.clone(), events.clone(), intake.clone()).run());
    let meetings =
        meetings::open(config, data, store, &records, &vault, fathom.clone(), (&queue, shutdown.clone())).await?;
    let Delivery { destinations, staging, links } = delivery::open(delivery::Given {
        config,
        data,
        records: &records,
        vault: &vault,
        fathom,
        meetings: &meetings,
        queue: &queue,
        guard,
        metrics,
        shutdown,
    })?;
    Ok(Services {
        records,
        events,
        audit,
        vault,
        meetings,
        hook_bodies: HookBodies::default(),
        api_keys,
        backups,
        queue,
        intake,
        destinations,
        staging,
        links,
    })
}

/// Where backups go, if anywhere.
fn backups(
    config: &Config,
    data: &Path,
    vault: &Vault,
    supervisor: Supervisor,
    tenants: &Tenants,
    damaged: DamagedBackups,
    shutdown: &Shutdown,
) -> Result<Backups, backup::Error> {
    let place =
        backup::repository::open_place(&config.backup, &config.backup.store, &config.outbound, backup::Use::Write)?;
    Ok(Backups::new(backup::Parts {
        config: config.backup.clone(),
        repository: place.map(|blobs| Repository::new(blobs, Arc::new(vault.clone()))),
        vault: vault.clone(),
        supervisor,
        tenants: tenants.clone(),
        control: data.join("control.db"),
        reserve: config.quota.reserve,
        damaged,
        shutdown: shutdown.clone(),
    }))
}

/// Which services are asked about a secret before it is stored.
fn checks(fathom: &Fathom) -> Checks {
    Checks::new().with(crate::meetings::SERVICE, meetings::check_of(fathom.clone()))
}

/// Tells owners of secrets whose time ends, on the topic that is theirs.
fn warn(events: Events) -> Warn {
    Arc::new(move |warning: Warning| {
        let events = events.clone();
        Box::pin(async move {
            // Only personal tenants have secrets; their id is their user's.
            let Ok(user) = UserId::parse(warning.tenant.as_str()) else { return true };
            let Ok(end) = warning.expires_at.format(&Rfc3339) else { return true };
            let id = warning.key_id.as_str();
            let data = json!({ "key_id": id, "service": warning.service, "label": warning.label, "expires_at": end });
            let message = Message::new("SecretExpiring", data).about("secret", id);
            let logged = events.publish_logged(Topic::User(user), message);
            matches!(tokio::time::timeout(WARNED_IN, logged).await, Ok(Ok(_)))
        })
    })
}

/// Who owns which tenant; nobody owns one that is suspended.
fn owns(tenancy: Tenancy) -> Owns {
    Arc::new(move |user: &UserId, tenant: &TenantId| {
        let found = tenancy.resolve(tenant.as_str()).filter(|found| !found.suspended && found.id == *tenant);
        found.is_some_and(|found| tenancy.role(&found, user) == Some(MemberRole::Owner))
    })
}

/// What the end of tenants stands on, beside the services.
#[derive(Debug)]
pub struct Ended<'a> {
    /// The whole configuration.
    pub config: &'a Config,
    /// The control plane's records.
    pub store: Arc<dyn Store>,
    /// The tenants' records.
    pub tenants: Tenants,
    /// The accounts.
    pub accounts: Accounts,
    /// The instances.
    pub supervisor: Supervisor,
    /// Who belongs where.
    pub tenancy: Tenancy,
    /// Owns the tasks.
    pub shutdown: Shutdown,
}

/// The backups of tenants that are erased.
#[derive(Debug)]
struct Kept(Backups);

impl lifecycle::Erases for Kept {
    fn name(&self) -> &'static str {
        "backups"
    }

    /// Whether there can be any; the store may be far away.
    fn count(&self, _: &TenantId) -> u64 {
        self.0.is_on().into()
    }

    fn erase<'a>(&'a self, tenant: &'a TenantId) -> BoxFuture<'a, bool> {
        Box::pin(async move {
            let erased = self.0.erase(tenant).await;
            if let Err(error) = &erased {
                tracing::error!(%error, tenant.id = %tenant, "erase the backups of a tenant; it is tried again");
            }
            erased.is_ok()
        })
    }
}

/// Builds what deletes and erases tenants.
pub fn lifecycle(given: Ended<'_>, services: &Services) -> Lifecycle {
    let Ended { config, store, tenants, accounts, supervisor, tenancy, shutdown } = given;
    Lifecycle::new(lifecycle::Parts {
        config: config.tenancy.clone(),
        store,
        tenants,
        tenancy,
        supervisor,
        accounts,
        api_keys: services.api_keys.clone(),
        queue: services.queue.clone(),
        meetings: services.meetings.clone(),
        vault: services.vault.clone(),
        staging: services.staging.clone(),
        // Whoever keeps something of tenants elsewhere is named here.
        erasers: vec![Arc::new(Kept(services.backups.clone()))],
        keep_replaced: config.backup.keep_replaced,
        audit: services.audit.clone(),
        shutdown,
    })
}

/// Builds what counts and limits what tenants have, and the task that measures.
pub fn quotas(
    config: &Config,
    data: &Path,
    tenants: Tenants,
    supervisor: &Supervisor,
    events: &Events,
    metrics: Arc<Metrics>,
) -> (Quotas, Sweep) {
    let (measured, templates) = (supervisor.clone(), supervisor.clone());
    let (quotas, sweep) = Quotas::new(quota::Parts {
        config: config.quota.clone(),
        tenants,
        data: data.to_owned(),
        measure: Arc::new(move |id| measured.measure(id).map(|usage| usage.bytes)),
        of_template: Arc::new(move |name| {
            templates.templates().traits(name).map(|found| found.quota).unwrap_or_default()
        }),
        tell: tell(events.clone()),
        metrics,
    });
    let limits = quotas.clone();
    supervisor.limit_memory(Memory(Arc::new(move |tenant| limits.memory(tenant))));
    (quotas, sweep)
}

/// How the owner of a tenant hears that it crossed a limit of its disk.
fn tell(events: Events) -> quota::Tell {
    let runtime = tokio::runtime::Handle::current();
    Arc::new(move |tenant, crossing| {
        let Some(owner) = tenant.owner.clone() else { return };
        let data = serde_json::json!({
            "tenant_id": tenant.id,
            "level": crossing.level.as_str(),
            "used": crossing.used,
            "disk_soft": crossing.limits.disk_soft,
            "disk_hard": crossing.limits.disk_hard,
        });
        let (events, message) = (events.clone(), Message::new("DiskUsage".to_owned(), data));
        // Bounded by the time limit of publishing; the measuring thread is not a task and waits for it.
        if let Err(error) = runtime.block_on(events.publish(Topic::User(owner), message)) {
            tracing::debug!(tenant.id = %tenant.id, %error, "nobody is told of a limit that was crossed");
        }
    })
}
