//! The HTTP API that is ours: accounts and sessions, the accounts paths of `PocketBase`'s own API, health, metrics,
//! the `OpenAPI` document, and the operators' control socket.
//!
//! Handlers extract, make one call into a domain, and shape the reply. Every error leaves through [`frame`], which
//! knows the request's id and the shape its path speaks. Deliberately absent: requests to a user's own instance
//! (`gateway` forwards those before this router is asked) and every decision about processes or accounts.

pub mod account_pages;
pub mod adapters;
mod addresses;
pub mod admin_realtime;
pub mod api_keys;
pub mod artifacts;
pub mod asyncapi;
pub mod audit;
pub mod auth;
pub mod backups;
pub mod bearer;
pub mod control;
pub mod control_api_keys;
mod control_backups;
pub mod control_jobs;
mod control_life;
pub mod control_pocketbase;
pub mod control_socket;
pub mod control_templates;
pub mod control_vault;
pub mod control_workspaces;
pub mod dashboard;
pub mod destinations;
pub mod error;
pub mod events;
pub mod extractors;
pub mod fathom;
pub mod fields;
pub mod files;
pub mod frame;
pub mod health;
pub mod invitations;
pub mod jobs;
pub mod json;
pub mod lifecycle;
pub mod mail;
pub mod meeting_hooks;
pub mod meetings;
pub mod members;
pub mod metrics;
pub mod oauth2_redirect;
pub mod openapi;
mod page;
pub mod pocketbase;
pub mod queue;
pub mod quotas;
pub mod router;
pub mod schedules;
mod services;
pub(crate) mod session_cookie;
pub mod sessions;
pub(crate) mod socket_auth;
pub mod tenants;
pub mod vault;
pub mod webhooks;
pub mod websocket;
pub mod welcome;
pub mod worker;

use std::sync::Arc;
use std::time::Instant;

use time::OffsetDateTime;
use tokio::sync::Semaphore;

use crate::api::oauth2_redirect::Deliver;
use crate::auth::Verifier;
use crate::auth::accounts::Accounts;
use crate::gateway::Dashboards;
use crate::lifecycle::Lifecycle;
use crate::quota::Quotas;
use crate::reload::Reloads;
use crate::shutdown::Shutdown;
use crate::store::sessions::Sessions;
use crate::store::tenants::Tenants;
use crate::supervisor::Supervisor;
use crate::telemetry::Metrics;
use crate::tenancy::Tenancy;

pub use addresses::Addresses;
pub use services::Services;

/// Largest bodies that handlers take, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// A JSON body of our own routes (`server.max_json_bytes`).
    pub json: usize,
    /// A sign-up, which may carry an avatar (`server.max_account_bytes`).
    pub account: usize,
}

/// Account bodies that are read at once: each may be as large as an avatar, and strangers send them.
const ACCOUNT_BODIES: usize = 32;

/// Room for account bodies in memory.
#[derive(Debug, Clone)]
pub struct AccountBodies(pub Arc<Semaphore>);

impl Default for AccountBodies {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(ACCOUNT_BODIES)))
    }
}

/// What this process says of itself.
#[derive(Debug, Clone)]
pub struct About {
    /// When it started, for the uptime.
    pub started: Instant,
    /// The same as a date.
    pub started_at: OffsetDateTime,
    /// The address it listens on, as bound.
    pub listen: String,
}

impl About {
    /// A process that starts now and listens on `listen`.
    pub fn new(listen: impl Into<String>) -> Self {
        Self { started: Instant::now(), started_at: OffsetDateTime::now_utc(), listen: listen.into() }
    }

    /// Whole seconds since the start.
    pub fn uptime_seconds(&self) -> u64 {
        self.started.elapsed().as_secs()
    }
}

/// Everything that handlers may ask for; each asks for its part only (see [`adapters`]). Every layer of the router
/// clones it for every request, so that is one counter and not one for each part.
#[derive(Debug, Clone)]
pub struct AppState(Arc<Parts>);

impl From<Parts> for AppState {
    fn from(parts: Parts) -> Self {
        Self(Arc::new(parts))
    }
}

impl std::ops::Deref for AppState {
    type Target = Parts;

    fn deref(&self) -> &Parts {
        &self.0
    }
}

/// What [`AppState`] is made of.
#[derive(Debug)]
pub struct Parts {
    /// Sign-in, registration, logout.
    pub accounts: Accounts,
    /// Who a token speaks for.
    pub verifier: Verifier,
    /// Which tenants there are, and who belongs to them.
    pub tenancy: Tenancy,
    /// Dashboards that owners opened.
    pub dashboards: Dashboards,
    /// Where tenants are reached.
    pub addresses: Addresses,
    /// The instances.
    pub supervisor: Supervisor,
    /// What serves users beyond their instances.
    pub services: Services,
    /// How much each tenant may have.
    pub quotas: Quotas,
    /// The end of tenants.
    pub lifecycle: Lifecycle,
    /// The tenants' records.
    pub tenants: Tenants,
    /// The sessions' records.
    pub sessions: Sessions,
    /// What `/metrics` shows.
    pub metrics: Arc<Metrics>,
    /// Whether we are about to stop.
    pub shutdown: Shutdown,
    /// Largest bodies.
    pub limits: Limits,
    /// Room for account bodies.
    pub account_bodies: AccountBodies,
    /// This process.
    pub about: Arc<About>,
    /// Where a reload is asked for.
    pub reloads: Reloads,
    /// Where the outcome of a sign-in at another service goes.
    pub oauth2: Deliver,
}
