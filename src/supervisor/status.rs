//! What operators see of instances and of the fleet.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::ids::TenantId;
use crate::supervisor::jail::detect::Report;

/// One instance.
#[derive(Debug, Clone, Serialize, utoipa::ToSchema)]
pub struct InstanceStatus {
    /// The tenant.
    #[schema(value_type = String)]
    pub tenant: TenantId,
    /// `asleep`, `starting`, `awake`, `frozen`, `draining`, `backoff`, `quarantined`, `blocked` or `suspended`.
    pub state: &'static str,
    /// Why, for backoff, quarantined and blocked.
    pub reason: Option<String>,
    /// Last lines of its log when it failed, redacted.
    pub last_log: Vec<String>,
    /// Its template.
    pub template: String,
    /// Whether it is kept awake.
    pub pinned: bool,
    /// The version of `PocketBase` that its data has; none when it never ran, or was not noted.
    pub pocketbase: Option<String>,
    /// The version that it is kept at.
    pub pocketbase_pin: Option<String>,
    /// The process, if there is one.
    pub pid: Option<i32>,
    /// Where it listens, if it is awake.
    pub address: Option<String>,
    /// How often it was started since it exists.
    pub epoch: u64,
    /// What it used, or waited for, of one core between its last two probes, in per cent.
    pub cpu_percent: Option<u32>,
    /// Requests at work.
    pub in_flight: u32,
    /// Requests waiting.
    pub waiting: u32,
    /// Restarts after failures since pocketfleet started.
    pub restarts: u64,
    /// How long nobody used it, if it is awake or frozen.
    pub idle_seconds: Option<u64>,
    /// When the next attempt is due, in backoff, quarantine or blocked.
    pub retry_after_seconds: Option<u64>,
}

/// The fleet in numbers.
#[derive(Debug, Clone, Serialize, utoipa::ToSchema)]
pub struct FleetStatus {
    /// Tenants in the control database, the global instance not counted.
    pub registered: usize,
    /// How many are in each state.
    pub states: BTreeMap<String, usize>,
    /// Instances that nobody has yet, by state; none of them is a tenant.
    pub spares: BTreeMap<String, usize>,
    /// Requests waiting for an instance.
    pub waiting: usize,
    /// How long the oldest of them waits, in milliseconds.
    pub oldest_waiter_ms: u64,
    /// Processes started since pocketfleet started.
    pub starts: u64,
    /// Failures: processes that ended without being asked, and starts that did not succeed.
    pub restarts: u64,
    /// Processes taken over from an earlier pocketfleet.
    pub adopted: u64,
    /// Instances that have used a whole core for longer than `instances.cpu_alarm`.
    pub burning: usize,
    /// Instances in backoff, quarantine or blocked.
    pub troubled: Vec<InstanceStatus>,
    /// Templates that could not be baked: name and error.
    pub broken_templates: Vec<(String, String)>,
    /// How far processes are kept from each other.
    pub isolation: Report,
}
