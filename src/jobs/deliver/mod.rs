//! The main kind of job: a Fathom recording, brought with everything that belongs to it to a destination.
//!
//! Resolve the meeting, have Fathom prepare the video, fetch it, write the papers beside it, send all of it, note it in
//! the user's instance. Each step ends with a durable checkpoint ([`checkpoint`]); a kill repeats at most one.
//!
//! Invariants:
//! - At most one delivery of a recording to a destination ([`ledger`]), under names that depend on the recording alone.
//! - A user's instance is awake only while something is read or written there, not during transfers.
//! - A job that ended leaves nothing staged; who sees to that when it did not end itself is [`janitor`].
//! - Links and upload addresses are sealed wherever they are kept, and in no log.
//!
//! Deliberately absent: when to deliver (`queue`, `meetings`), and how a kind of destination works (`destinations`).

mod attempt;
pub mod bundle;
pub mod checkpoint;
mod config;
mod fetch;
mod janitor;
pub mod ledger;
pub mod links;
pub mod names;
pub mod render;
mod send;
pub mod staging;

use std::collections::hash_map::DefaultHasher;
use std::fmt;
use std::hash::Hash;
use std::hash::Hasher;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use serde_json::Value;
use tokio::sync::Mutex;
use tokio::sync::MutexGuard;

use crate::ids::TenantId;
use crate::ids::UserId;
use crate::integrations::fathom::Fathom;
use crate::jobs::destinations::Kind;
use crate::jobs::destinations::registry::Destinations;
use crate::meetings::Meetings;
use crate::queue::Handler;
use crate::queue::NewJob;
use crate::queue::Outcome;
use crate::queue::Policy;
use crate::queue::Run;
use crate::records::Records;
use crate::telemetry::Metrics;
use crate::telemetry::ReasonLabels;
use crate::vault::Vault;

pub use config::Config;
pub use config::ConfigError;
pub use janitor::Janitor;
pub use send::AWAITING;
pub use staging::Staging;

/// The kind's name.
pub const KIND: &str = "deliver_meeting";
/// Locks that tenants share by their hash.
const TURNS: usize = 64;

/// What deliveries stand on. Cheap to clone.
#[derive(Clone)]
pub struct Parts {
    /// `[delivery]`
    pub config: Config,
    /// Where downloads rest.
    pub staging: Staging,
    /// Users' own instances.
    pub records: Records,
    /// Users' keys.
    pub vault: Vault,
    /// Where recordings come from.
    pub fathom: Fathom,
    /// What is known of them.
    pub meetings: Meetings,
    /// Where they go.
    pub destinations: Destinations,
    /// What `/metrics` shows.
    pub metrics: Meters,
    /// One claim of a tenant's recording at a time.
    pub turns: Turns,
}

impl fmt::Debug for Parts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Parts").finish_non_exhaustive()
    }
}

/// Locks, one for each tenant as far as they go. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Turns(Arc<[Mutex<()>; TURNS]>);

impl Default for Turns {
    fn default() -> Self {
        Self(Arc::new(std::array::from_fn(|_| Mutex::default())))
    }
}

/// Counts what deliveries do. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Meters(Arc<Metrics>);

impl Meters {
    /// Counts into these.
    pub fn new(metrics: Arc<Metrics>) -> Self {
        Self(metrics)
    }

    fn fetched(&self, bytes: u64) {
        self.0.delivery_bytes.get_or_create(&ReasonLabels { reason: "fetched" }).inc_by(bytes);
    }

    fn sent(&self, bytes: u64) {
        self.0.delivery_bytes.get_or_create(&ReasonLabels { reason: "sent" }).inc_by(bytes);
    }

    fn delivered(&self, kind: Kind) {
        self.0.deliveries.get_or_create(&ReasonLabels { reason: kind.as_str() }).inc();
    }
}

impl Parts {
    async fn turn(&self, tenant: &TenantId) -> MutexGuard<'_, ()> {
        let mut hasher = DefaultHasher::new();
        tenant.hash(&mut hasher);
        let at = usize::try_from(hasher.finish() % TURNS as u64).unwrap_or_default();
        self.turns.0[at].lock().await
    }
}

/// Does the deliveries.
#[derive(Debug)]
pub struct DeliverMeeting(Parts);

impl DeliverMeeting {
    /// With what it stands on.
    pub fn new(parts: Parts) -> Self {
        Self(parts)
    }
}

impl Handler for DeliverMeeting {
    fn kind(&self) -> &'static str {
        KIND
    }

    fn policy(&self) -> Policy {
        let config = &self.0.config;
        Policy {
            max_attempts: config.max_attempts,
            concurrency: Some(config.max_concurrent),
            per_tenant: Some(config.max_concurrent_per_tenant),
            ..Policy::default()
        }
    }

    /// Each attempt looks into the instance first, and writes into it last.
    fn soon(&self, tenant: &TenantId) {
        self.0.records.expect(tenant);
    }

    fn run(&self, run: Run) -> BoxFuture<'static, Outcome> {
        let parts = self.0.clone();
        Box::pin(async move {
            let cancelled = run.cancelled().clone();
            let attempt = attempt::Attempt::new(parts, run);
            tokio::select! {
                outcome = attempt.go() => outcome,
                // What it leaves is tidied when the job has ended, or used when it goes on.
                () = cancelled.cancelled() => Outcome::Cancelled,
            }
        })
    }
}

/// A delivery to be queued. With a recording, asking again while it is not finished gives the same job.
pub fn order(
    tenant: TenantId,
    user: UserId,
    recording_id: Option<u64>,
    topic: Option<&str>,
    destination: Option<&str>,
) -> NewJob {
    let mut payload = serde_json::Map::new();
    let mut say = |field: &str, text: Option<String>| {
        if let Some(text) = text.filter(|text| !text.is_empty()) {
            payload.insert(field.to_owned(), text.into());
        }
    };
    let recording = recording_id.map(|id| id.to_string());
    say("recording_id", recording.clone());
    say("topic", topic.map(str::to_owned));
    say("destination", destination.map(str::to_owned));
    let mut job = NewJob::new(KIND, tenant, user, Value::Object(payload));
    job.title = topic.map(str::to_owned).or(recording.clone()).unwrap_or_default();
    job.dedupe = recording.map(|id| format!("deliver:{id}:{}", destination.unwrap_or_default()));
    job
}

/// It is not time yet, which is nobody's fault.
fn later(reason: &str, after: Duration) -> Outcome {
    Outcome::Wait { reason: reason.to_owned(), after }
}
