//! The gateway: to a client it is one `PocketBase`, behind it are many.
//!
//! A plain hyper service decides on the path, takes a lease and forwards, in front of the axum router that serves
//! everything that is ours. One acceptor hands connections to worker threads, each with its own event loop and its
//! own connections to instances.
//!
//! Invariants:
//! - Everything is refused that a client and an instance could read in two ways: ambiguous framing (`framing`),
//!   ambiguous paths (`path`), ambiguous hosts and credentials (`headers`).
//! - What reaches an instance is on an allow-list over the decoded path (`route`).
//! - No instance is woken before a credential was verified (`access`).
//! - An instance sees exactly one `X-Forwarded-For`, ours, and never a loopback address in it (`client_addr`): that
//!   is what makes superuser tokens useless through the gateway.
//! - No body is buffered, and every wait has a limit (`upload`, `body`, `forward`).
//! - Out of descriptors, it still says that it lives (`reserve`, `spare`).
//!
//! Deliberately absent: business rules, sign-in (the router's), and state that outlives a request other than idle
//! connections.

mod accept;
mod access;
mod body;
mod client_addr;
mod compress;
mod config;
mod cors;
mod dashboard;
mod forward;
mod framing;
mod guests;
mod h2;
mod headers;
mod io;
mod meters;
mod named;
mod pace;
mod path;
mod place;
mod pool;
mod preface;
mod query;
mod quotas;
mod realtime;
mod reply;
mod request_id;
mod reserve;
mod route;
mod security;
mod service;
mod spare;
mod stall;
mod tenant_access;
mod tenant_route;
#[cfg(test)]
mod tests;
pub mod upgrade;
mod upload;
mod visitors;
mod worker;

use std::fmt;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

pub use self::config::Config;
pub use self::config::Invalid;
pub use self::dashboard::Dashboards;
pub use self::dashboard::Mode as DashboardMode;
pub use self::dashboard::Opened;
pub use self::request_id::RequestId;
pub use self::reserve::Lent;
pub use self::reserve::Reserve;
pub use self::reserve::is_out_of_files;
pub use self::security::secure;
pub use self::service::ClientIp;
pub use self::service::IsHttps;

use self::accept::Caps;
use self::access::Access;
use self::access::Instances;
use self::client_addr::TrustedProxies;
use self::service::Blueprint;
use self::worker::Worker;
use crate::auth::Verifier;
use crate::quota::Quotas;
use crate::realtime::Hub;
use crate::shutdown::Shutdown;
use crate::supervisor::Supervisor;
use crate::telemetry::Metrics;
use crate::tenancy::Tenancy;

/// Why the gateway does not run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The listener cannot be used.
    #[error("the listener failed")]
    Listener(#[source] std::io::Error),
    /// A worker thread could not be started.
    #[error("a gateway worker could not be started")]
    Worker(#[source] std::io::Error),
}

/// What the gateway is built from.
#[derive(Debug)]
pub struct Parts {
    /// The `[server]` section.
    pub config: Config,
    /// The instances.
    pub supervisor: Supervisor,
    /// Who a token speaks for.
    pub verifier: Verifier,
    /// Which tenants there are, and who belongs to them.
    pub tenancy: Tenancy,
    /// The event streams.
    pub hub: Hub,
    /// Dashboards that owners opened.
    pub dashboards: Dashboards,
    /// How much each tenant may have.
    pub quotas: Quotas,
    /// Metrics.
    pub metrics: Arc<Metrics>,
    /// Requests that take this long or longer get a log line.
    pub slow_request: Duration,
}

/// Serves connections. Made once, consumed by [`run`](Self::run).
pub struct Gateway {
    blueprint: Blueprint,
}

impl Gateway {
    /// A gateway in front of a fleet.
    ///
    /// Handlers of `router` find [`ClientIp`] and [`RequestId`] in the request's extensions. They run on a worker's
    /// event loop, which ends with the gateway: tasks that must outlive it belong on another runtime.
    pub fn new(parts: Parts, router: axum::Router) -> Self {
        let Parts { config, supervisor, verifier, tenancy, hub, dashboards, quotas, metrics, slow_request } = parts;
        let access = Access::Instances(Instances::new(supervisor, verifier, tenancy, hub, dashboards, quotas, &config));
        Self::with_access(config, access, metrics, slow_request, router)
    }

    /// A gateway with nothing behind it but `router`: the same checks and limits, and 404 for every instance.
    pub fn without_instances(
        config: Config,
        metrics: Arc<Metrics>,
        slow_request: Duration,
        router: axum::Router,
    ) -> Self {
        Self::with_access(config, Access::Nothing, metrics, slow_request, router)
    }

    fn with_access(
        config: Config,
        access: Access,
        metrics: Arc<Metrics>,
        slow_request: Duration,
        router: axum::Router,
    ) -> Self {
        Self { blueprint: Blueprint { config: Arc::new(config), access, metrics, slow_request, router } }
    }

    /// Serves `listener` until the shutdown begins, then drains: no new connections, running requests finish, at
    /// most for the drain timeout. Returns when every worker has ended.
    pub async fn run(self, listener: TcpListener, shutdown: Shutdown) -> Result<(), Error> {
        let Self { blueprint } = self;
        let config = Arc::clone(&blueprint.config);
        let mut workers = Vec::new();
        let mut lanes = Vec::new();
        for index in 0..config.worker_count() {
            let (worker, lane) = Worker::start(index, blueprint.clone(), shutdown.clone()).map_err(Error::Worker)?;
            workers.push(worker);
            lanes.push(lane);
        }
        let caps = Caps::new(&config, Arc::clone(&blueprint.metrics));
        let trusted = TrustedProxies::new(&config.trusted_proxies);
        drop(blueprint);
        // Its end drops the lanes, which tells the workers that no connection follows.
        let outcome = accept::accept(listener, lanes, caps, trusted, &shutdown).await;
        for worker in workers {
            worker.join().await;
        }
        outcome.map_err(Error::Listener)
    }
}

impl fmt::Debug for Gateway {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gateway").field("listen", &self.blueprint.config.listen).finish_non_exhaustive()
    }
}
