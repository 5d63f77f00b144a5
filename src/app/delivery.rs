//! Deliveries: where they go, what they stand on, who does them and who tidies up.

use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;

use crate::config::Config;
use crate::integrations::fathom::Fathom;
use crate::jobs::deliver::DeliverMeeting;
use crate::jobs::deliver::Janitor;
use crate::jobs::deliver::KIND;
use crate::jobs::deliver::Meters;
use crate::jobs::deliver::Parts;
use crate::jobs::deliver::Staging;
use crate::jobs::deliver::Turns;
use crate::jobs::deliver::links::Links;
use crate::jobs::destinations::registry::Destinations;
use crate::meetings::Meetings;
use crate::outbound::Guard;
use crate::queue::Queue;
use crate::records::Records;
use crate::shutdown::Shutdown;
use crate::telemetry::Metrics;
use crate::vault::Vault;

/// What deliveries stand on.
pub(super) struct Given<'a> {
    pub(super) config: &'a Config,
    pub(super) data: &'a Path,
    pub(super) records: &'a Records,
    pub(super) vault: &'a Vault,
    pub(super) fathom: Fathom,
    pub(super) meetings: &'a Meetings,
    pub(super) queue: &'a Queue,
    pub(super) guard: Guard,
    pub(super) metrics: Arc<Metrics>,
    pub(super) shutdown: Shutdown,
}

/// What the routes need of them.
pub(super) struct Delivery {
    pub(super) destinations: Destinations,
    pub(super) staging: Staging,
    pub(super) links: Links,
}

/// Registers who delivers, and begins to tidy up.
pub(super) fn open(given: Given<'_>) -> anyhow::Result<Delivery> {
    let config = &given.config.delivery;
    let folder = Some(PathBuf::from(&config.folder)).filter(|folder| !folder.as_os_str().is_empty());
    if let Some(folder) = &folder {
        anyhow::ensure!(folder.is_dir(), "delivery.folder = {}: no such folder", folder.display());
    }
    let destinations =
        Destinations::new(given.guard, given.vault.clone(), &given.config.loom, folder).context("loom.oembed_url")?;
    let staging = Staging::new(given.data.join("delivery"), config.reserve_bytes);
    let links = Links::open(given.data, config.link_ttl).context("the key of links to artifacts")?;
    let parts = Parts {
        config: config.clone(),
        staging: staging.clone(),
        records: given.records.clone(),
        vault: given.vault.clone(),
        fathom: given.fathom,
        meetings: given.meetings.clone(),
        destinations: destinations.clone(),
        metrics: Meters::new(given.metrics),
        turns: Turns::default(),
    };
    // An operator may leave deliveries to workers of their own.
    if !given.queue.is_external(KIND) {
        given.queue.register(Arc::new(DeliverMeeting::new(parts.clone())));
    }
    given.shutdown.spawn(Janitor::new(parts, given.queue.clone()).run(given.shutdown.clone()));
    Ok(Delivery { destinations, staging, links })
}
