//! How we are: the process (`/health`), whether to send requests here (`/ready`), the instances (`/health/pb`), the
//! sockets (`/health/ws`).
//!
//! Strangers see numbers. Names of tenants, reasons and log lines go to admins only.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::HeaderValue;
use axum::http::StatusCode;
use axum::http::header;
use axum::response::IntoResponse;
use axum::response::Response;
use serde::Serialize;
use time::OffsetDateTime;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::api::About;
use crate::api::AppState;
use crate::api::extractors::OptionalAuthUser;
use crate::events::Events;
use crate::ids::TenantId;
use crate::shutdown::Shutdown;
use crate::supervisor::FleetStatus;
use crate::supervisor::InstanceStatus;
use crate::supervisor::Supervisor;
use crate::supervisor::jail::detect::Report;

/// The routes.
pub fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(health))
        .routes(routes!(ready))
        .routes(routes!(instances_health))
        .routes(routes!(sockets_health))
}

/// The process.
#[derive(Serialize, ToSchema)]
struct Health {
    /// Always `ok`: whoever reads it was answered.
    #[schema(example = "ok")]
    status: &'static str,
    /// The program's version.
    #[schema(example = "0.1.0")]
    version: &'static str,
    #[serde(with = "time::serde::rfc3339")]
    #[schema(value_type = String, format = DateTime)]
    started_at: OffsetDateTime,
    uptime_seconds: u64,
}

/// Whether the process runs.
#[utoipa::path(get, path = "/health", tag = "operators",
    responses((status = 200, description = "It runs.", body = Health)))]
async fn health(State(about): State<Arc<About>>) -> Json<Health> {
    Json(Health {
        status: "ok",
        version: env!("CARGO_PKG_VERSION"),
        started_at: about.started_at,
        uptime_seconds: about.uptime_seconds(),
    })
}

/// Whether requests should come here.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Readiness {
    pub(crate) ready: bool,
    /// What is in the way, a sentence each; empty when ready.
    #[schema(example = json!(["the global instance is starting"]))]
    pub(crate) reasons: Vec<String>,
}

impl Readiness {
    /// Looks at what every request needs: the accounts, and that we are not about to stop.
    pub(crate) fn of(supervisor: &Supervisor, shutdown: &Shutdown) -> Self {
        let mut reasons = Vec::new();
        if shutdown.has_begun() {
            reasons.push("pocketfleet is shutting down".to_owned());
        }
        match supervisor.status(&TenantId::global()) {
            Ok(global) if global.state == "awake" => {}
            Ok(global) => reasons.push(format!("the global instance is {}", global.state)),
            Err(_) => reasons.push("the global instance has not been started".to_owned()),
        }
        // A broken template is no reason: everybody who is there is served. `/health/pb` tells of it.
        Self { ready: reasons.is_empty(), reasons }
    }
}

/// Whether requests should be sent here: the accounts answer, and no shutdown has begun.
#[utoipa::path(get, path = "/ready", tag = "operators",
    responses((status = 200, description = "Send requests.", body = Readiness),
        (status = 503, description = "Not now; `reasons` says why.", body = Readiness)))]
pub(crate) async fn ready(State(supervisor): State<Supervisor>, State(shutdown): State<Shutdown>) -> Response {
    let readiness = Readiness::of(&supervisor, &shutdown);
    if readiness.ready {
        Json(readiness).into_response()
    } else {
        let again = [(header::RETRY_AFTER, HeaderValue::from_static("1"))];
        (StatusCode::SERVICE_UNAVAILABLE, again, Json(readiness)).into_response()
    }
}

/// The global instance in numbers.
#[derive(Serialize, ToSchema)]
struct GlobalHealth {
    #[schema(example = "awake")]
    state: &'static str,
    in_flight: u32,
    waiting: u32,
    restarts: u64,
}

/// A template that could not be baked.
#[derive(Serialize, ToSchema)]
struct BrokenTemplate {
    name: String,
    error: String,
}

/// What only admins see.
#[derive(Serialize, ToSchema)]
struct TroubleReport {
    /// Instances in quarantine or blocked, with the reason and the last log lines.
    troubled: Vec<InstanceStatus>,
    broken_templates: Vec<BrokenTemplate>,
    /// What the level means here, and what is missing.
    isolation: Report,
    /// How many instances have which version of `PocketBase`.
    #[schema(example = json!({"0.40.6": 100}))]
    pocketbase: BTreeMap<String, usize>,
}

/// The instances in numbers.
#[derive(Serialize, ToSchema)]
struct InstancesHealth {
    /// `ok`; `degraded` when some instance or template needs an operator; `down` when the global instance is away.
    #[schema(example = "ok")]
    status: &'static str,
    /// The global instance; absent before its first start.
    #[serde(skip_serializing_if = "Option::is_none")]
    global: Option<GlobalHealth>,
    /// Registered tenants.
    registered: usize,
    /// Count per state.
    #[schema(example = json!({"asleep": 95, "awake": 5}))]
    states: BTreeMap<String, usize>,
    /// Requests waiting for an instance.
    waiting: usize,
    /// Age of the oldest of them, in milliseconds.
    oldest_waiter_ms: u64,
    starts: u64,
    restarts: u64,
    /// Running processes taken over from an earlier pocketfleet.
    adopted: u64,
    /// Instances in quarantine or blocked.
    troubled: usize,
    broken_templates: usize,
    /// Instances that have used a whole core for longer than `instances.cpu_alarm`.
    burning: usize,
    /// How far processes are kept from each other, 0 to 3 (`docs/isolation.md`).
    #[schema(example = 2)]
    isolation_level: u8,
    /// For admins.
    #[serde(skip_serializing_if = "Option::is_none")]
    details: Option<TroubleReport>,
}

impl InstancesHealth {
    fn of(global: Option<&InstanceStatus>, fleet: FleetStatus, pocketbase: Option<BTreeMap<String, usize>>) -> Self {
        let (troubled, broken_templates) = (fleet.troubled.len(), fleet.broken_templates.len());
        let status = match global {
            Some(global) if global.state == "awake" && troubled + broken_templates == 0 => "ok",
            Some(global) if global.state == "awake" => "degraded",
            _ => "down",
        };
        let broken = fleet.broken_templates.into_iter().map(|(name, error)| BrokenTemplate { name, error });
        Self {
            status,
            global: global.map(|global| GlobalHealth {
                state: global.state,
                in_flight: global.in_flight,
                waiting: global.waiting,
                restarts: global.restarts,
            }),
            registered: fleet.registered,
            states: fleet.states,
            waiting: fleet.waiting,
            oldest_waiter_ms: fleet.oldest_waiter_ms,
            starts: fleet.starts,
            restarts: fleet.restarts,
            adopted: fleet.adopted,
            troubled,
            broken_templates,
            burning: fleet.burning,
            isolation_level: fleet.isolation.level,
            details: pocketbase.map(|pocketbase| TroubleReport {
                troubled: fleet.troubled,
                broken_templates: broken.collect(),
                isolation: fleet.isolation,
                pocketbase,
            }),
        }
    }
}

/// The instances: counts for everybody; names, reasons and log lines for admins.
#[utoipa::path(get, path = "/health/pb", tag = "operators", security((), ("bearer" = [])),
    responses((status = 200, description = "The global instance is awake.", body = InstancesHealth),
        (status = 503, description = "The global instance is away.", body = InstancesHealth)))]
async fn instances_health(State(supervisor): State<Supervisor>, user: OptionalAuthUser) -> Response {
    let global = supervisor.status(&TenantId::global()).ok();
    let versions = user.is_admin().then(|| supervisor.pocketbase_counts());
    let report = InstancesHealth::of(global.as_ref(), supervisor.fleet(), versions);
    let status = if report.status == "down" { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK };
    (status, Json(report)).into_response()
}

/// The realtime connections in numbers.
#[derive(Serialize, ToSchema)]
struct SocketsHealth {
    /// `ok`, or `stopping` when no new sockets are taken.
    #[schema(example = "ok")]
    status: &'static str,
    /// Open sockets and streams of our own events.
    connections: usize,
    /// Users behind them.
    users: usize,
    /// Topics in memory.
    topics: usize,
}

/// The realtime connections.
#[utoipa::path(get, path = "/health/ws", tag = "operators",
    responses((status = 200, description = "The numbers.", body = SocketsHealth)))]
async fn sockets_health(State(events): State<Events>, State(shutdown): State<Shutdown>) -> Json<SocketsHealth> {
    let found = events.status();
    let status = if shutdown.has_begun() { "stopping" } else { "ok" };
    Json(SocketsHealth { status, connections: found.connections, users: found.users, topics: found.topics })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::supervisor::jail::Isolation;

    fn instance(tenant: &str, state: &'static str) -> InstanceStatus {
        InstanceStatus {
            tenant: TenantId::parse(tenant).unwrap(),
            state,
            reason: Some("secret reason".to_owned()),
            last_log: vec!["a log line".to_owned()],
            template: "personal".to_owned(),
            pocketbase: None,
            pocketbase_pin: None,
            pinned: false,
            pid: Some(7),
            address: None,
            epoch: 1,
            cpu_percent: None,
            in_flight: 0,
            waiting: 0,
            restarts: 0,
            idle_seconds: None,
            retry_after_seconds: None,
        }
    }

    fn fleet(troubled: Vec<InstanceStatus>) -> FleetStatus {
        FleetStatus {
            registered: 2,
            states: BTreeMap::new(),
            spares: BTreeMap::new(),
            waiting: 0,
            oldest_waiter_ms: 0,
            starts: 0,
            restarts: 0,
            adopted: 0,
            burning: 0,
            troubled,
            broken_templates: vec![],
            isolation: Isolation::none().report(),
        }
    }

    #[test]
    fn strangers_see_numbers_and_admins_see_names() {
        let global = instance("global", "awake");
        let trouble = || fleet(vec![instance("b5c3xih3gtjb48z", "quarantined")]);
        let stranger = serde_json::to_string(&InstancesHealth::of(Some(&global), trouble(), None)).unwrap();
        for hidden in ["b5c3xih3gtjb48z", "secret reason", "log line", "pid"] {
            assert!(!stranger.contains(hidden), "{hidden} in {stranger}");
        }
        let admin = serde_json::to_value(InstancesHealth::of(Some(&global), trouble(), Some(BTreeMap::new()))).unwrap();
        assert_eq!(admin["status"], "degraded");
        assert_eq!(admin["details"]["troubled"][0]["tenant"], "b5c3xih3gtjb48z");
    }

    #[test]
    fn without_the_global_instance_the_fleet_is_down() {
        assert_eq!(InstancesHealth::of(None, fleet(vec![]), None).status, "down");
        assert_eq!(InstancesHealth::of(Some(&instance("global", "backoff")), fleet(vec![]), None).status, "down");
        assert_eq!(InstancesHealth::of(Some(&instance("global", "awake")), fleet(vec![]), None).status, "ok");
    }
}
