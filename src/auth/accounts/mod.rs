//! What it means to register, sign in, refresh and sign out.
//!
//! The global instance checks passwords and issues tokens; this module bounds how often it is asked, registers the
//! session behind each token, and gives each account its personal tenant.
//!
//! Invariants:
//! - What costs password work runs to its end in a task that holds its place of the [`Gate`], also when the client goes
//!   away: otherwise clients that hang up early could have any number of checks run at once.
//! - No e-mail address, password or token is logged.
//!
//! Limits: `PocketBase`'s tokens name a second, not a sign-in. Two sign-ins of one user within one second get the same
//! token and share a session.

use std::fmt;
use std::future::Future;
use std::net::IpAddr;
use std::sync::Arc;

use tokio::runtime::Handle;

use bytes::Bytes;
use serde_json::Value;

use crate::shutdown::Shutdown;
use crate::spares::Spares;
use crate::store::sessions::Sessions;
use crate::supervisor::Supervisor;
use crate::telemetry::Metrics;
use crate::tenancy::Tenancy;

use super::Config;
use super::Verifier;
use super::gate::Gate;

mod admin;
mod bounds;
pub mod config;
mod configure;
mod error;
mod factors;
mod forms;
mod mail;
mod records;
mod reserved;
mod sessions;
mod sign_in;
mod upstream;

pub use configure::Operator;
pub use error::Error;
pub use mail::Confirmation;
pub use mail::Mailing;
pub use sign_in::Credentials;

use bounds::Bounds;
use upstream::Upstream;

/// Longest user agent that is kept, in characters.
const MAX_DEVICE_CHARS: usize = 200;

/// The client behind a request, for limits and the list of sessions.
#[derive(Debug, Clone)]
pub struct Client {
    /// Its address, as the gateway determined it.
    pub ip: IpAddr,
    /// Its user agent, cut to 200 characters, without control characters.
    pub device: String,
}

impl Client {
    /// The client at this address with this `User-Agent`.
    pub fn new(ip: IpAddr, user_agent: Option<&str>) -> Self {
        let clean = user_agent.unwrap_or_default().chars().filter(|c| !c.is_control());
        Self { ip, device: clean.take(MAX_DEVICE_CHARS).collect() }
    }
}

/// An answer of `PocketBase`: JSON, or empty.
#[derive(Clone, PartialEq, Eq)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// The body as it came.
    pub body: Bytes,
}

impl Answer {
    fn json(&self) -> Option<Value> {
        serde_json::from_slice(&self.body).ok()
    }

    /// Whether it can be told that nothing was written. A 403 can come after a one-time password was taken, for an
    /// account that may not sign in.
    fn is_refusal(&self) -> bool {
        matches!(self.status, 400 | 404 | 429)
    }

    /// Whether the first of two ways to sign in was right.
    fn asks_for_second_factor(&self) -> bool {
        self.status == 401 && self.json().is_some_and(|body| body.get("mfaId").is_some_and(Value::is_string))
    }
}

impl fmt::Debug for Answer {
    // The body may hold a token.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Answer").field("status", &self.status).finish_non_exhaustive()
    }
}

/// The outcome of a sign-in or a refresh: the token has a session.
#[derive(Clone)]
pub struct SignedIn {
    /// The token.
    pub token: String,
    /// The user's record; null when the query asked for an answer without it.
    pub record: Value,
    /// `PocketBase`'s whole answer, for its own paths.
    pub answer: Answer,
}

impl fmt::Debug for SignedIn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SignedIn").finish_non_exhaustive()
    }
}

/// What a registration on our own route consists of. There is no role: it cannot be chosen.
#[derive(Clone)]
pub struct Registration {
    /// E-mail address.
    pub email: String,
    /// Password, 8 characters to 71 bytes.
    pub password: String,
    /// The password again; taken as equal when missing.
    pub password_confirm: Option<String>,
    /// Display name.
    pub name: Option<String>,
}

impl fmt::Debug for Registration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registration").finish_non_exhaustive()
    }
}

/// What [`Accounts`] works with.
#[derive(Debug)]
pub struct Parts {
    /// Leases of the global instance.
    pub supervisor: Supervisor,
    /// Knows accounts and is told when they change.
    pub verifier: Verifier,
    /// The session registry.
    pub sessions: Sessions,
    /// Makes personal tenants.
    pub tenancy: Tenancy,
    /// Has instances for new accounts.
    pub spares: Spares,
    /// Counts refusals.
    pub metrics: Arc<Metrics>,
    /// Waits for password work that is under way.
    pub shutdown: Shutdown,
    /// What the operator wants of the accounts.
    pub operator: Operator,
}

/// The accounts. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Accounts {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    upstream: Upstream,
    gate: Gate,
    bounds: Bounds,
    operator: Operator,
    supervisor: Supervisor,
    verifier: Verifier,
    sessions: Sessions,
    tenancy: Tenancy,
    spares: Spares,
    shutdown: Shutdown,
    /// Where password work runs to its end: the runtime that called us may be a gateway worker's, which ends first.
    runtime: Handle,
    refresh_grace: std::time::Duration,
}

impl Accounts {
    /// The accounts of the global instance, under the limits of the configuration.
    pub fn new(config: &Config, parts: Parts) -> Result<Self, Error> {
        let Parts { supervisor, verifier, sessions, tenancy, spares, metrics, shutdown, operator } = parts;
        Ok(Self {
            shared: Arc::new(Shared {
                upstream: Upstream::new(supervisor.clone())?,
                supervisor,
                bounds: Bounds::new(&operator.mail, Arc::clone(&metrics)),
                operator,
                gate: Gate::new(config, metrics),
                verifier,
                sessions,
                tenancy,
                spares,
                shutdown,
                runtime: Handle::current(),
                refresh_grace: config.refresh_grace,
            }),
        })
    }

    /// Runs work to its end even when the caller is dropped. The shutdown waits for it; the time limit of each call
    /// bounds it.
    async fn to_its_end<T, F>(&self, work: impl FnOnce(Self) -> F) -> Result<T, Error>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Error>> + Send + 'static,
    {
        self.shared.shutdown.spawn_on(work(self.clone()), &self.shared.runtime).await.map_err(|_| Error::Interrupted)?
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_cut_and_cleaned() {
        let client = |agent| Client::new(IpAddr::from([192, 0, 2, 7]), agent).device;
        assert_eq!(client(None), "");
        assert_eq!(client(Some("a\r\nb\u{7f}c")), "abc");
        assert_eq!(client(Some(&"ü".repeat(500))).chars().count(), 200);
    }
}
