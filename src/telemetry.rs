//! Logs and metrics. The registry is a value handed to the components, never a global, so that tests in one
//! process do not see each other.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::EncodeLabelValue;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;
use serde::Deserialize;
use tracing_subscriber::EnvFilter;

/// The `[log]` section.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Text for people or JSON for machines.
    pub format: Format,
    /// A `tracing` filter directive.
    pub filter: String,
    /// Requests that take at least this long get a log line.
    #[serde(with = "humantime_serde")]
    pub slow_request: Duration,
}

/// How a log line is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// One line a person reads.
    Text,
    /// One JSON object a line.
    Json,
}

/// Installs the process-wide subscriber: standard error, no colours when it is not a terminal.
pub fn install(config: &Config) -> anyhow::Result<()> {
    use std::io::IsTerminal;
    let mut filter = EnvFilter::try_new(&config.filter)?;
    if !config.filter.contains("h2") {
        // Clients provoke what the HTTP/2 library warns of, a line for each abuse. Only who asks for it sees it.
        filter = filter.add_directive("h2=off".parse()?);
    }
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_target(false)
        .with_ansi(std::io::stderr().is_terminal())
        // Otherwise a closed standard error makes the subscriber's own complaint panic in whatever task logs.
        .log_internal_errors(false)
        .with_writer(std::io::stderr);
    let result = match config.format {
        Format::Text => builder.try_init(),
        Format::Json => builder.json().flatten_event(true).try_init(),
    };
    result.map_err(|error| anyhow::anyhow!("install the log subscriber: {error}"))
}

/// How a request came to its instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
#[expect(non_camel_case_types, reason = "variants are the label values, as they appear in /metrics")]
pub enum Arrival {
    /// The instance was awake and had room.
    warm,
    /// This request's arrival started the instance.
    woken,
    /// The instance was frozen and went on.
    thawed,
    /// It waited for a start or a place that was already under way.
    queued,
    /// It waited too long.
    timed_out,
    /// It was refused: full waiting room, backoff, quarantine.
    refused,
}

/// Label of [`Metrics::arrivals`].
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ArrivalLabels {
    /// The outcome.
    pub outcome: Arrival,
}

/// Label of [`Metrics::requests`].
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RequestLabels {
    /// `tenant`, `global` or `own`.
    pub target: &'static str,
    /// `2xx`, `3xx`, `4xx` or `5xx`.
    pub class: &'static str,
}

/// Label of counters with a reason.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ReasonLabels {
    /// The reason, from a small fixed set.
    pub reason: &'static str,
}

/// Label of [`Metrics::instances`].
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct StateLabels {
    /// The state's name.
    pub state: &'static str,
}

/// Labels of [`QueueMetrics::depth`].
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct DepthLabels {
    /// The kind of job; there are as many as are registered or configured.
    pub kind: String,
    /// The state's name.
    pub state: &'static str,
}

/// Label of [`QueueMetrics::wait_seconds`].
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct KindLabels {
    /// The kind of job.
    pub kind: String,
}

/// Labels of [`QueueMetrics::job_seconds`] and [`QueueMetrics::taken_back`].
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct JobLabels {
    /// The kind of job.
    pub kind: String,
    /// How the attempt ended, from a small fixed set.
    pub outcome: &'static str,
}

fn long_seconds() -> Histogram {
    Histogram::new([0.005, 0.05, 0.25, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 14400.0])
}

/// The metrics of the job queue.
#[derive(Debug)]
pub struct QueueMetrics {
    /// Jobs by kind and state, set some times a second.
    pub depth: Family<DepthLabels, Gauge>,
    /// From when a job could begin to when it began.
    pub wait_seconds: Family<KindLabels, Histogram, fn() -> Histogram>,
    /// How long attempts ran, by how they ended.
    pub job_seconds: Family<JobLabels, Histogram, fn() -> Histogram>,
    /// Running jobs that were taken from their workers, by reason.
    pub taken_back: Family<JobLabels, Counter>,
}

impl Default for QueueMetrics {
    fn default() -> Self {
        Self {
            depth: Family::default(),
            wait_seconds: Family::new_with_constructor(long_seconds),
            job_seconds: Family::new_with_constructor(long_seconds),
            taken_back: Family::default(),
        }
    }
}

impl QueueMetrics {
    fn register(&self, r: &mut Registry) {
        r.register("queue_depth", "Jobs by kind and state", self.depth.clone());
        r.register("queue_wait_seconds", "From when a job could begin to when it began", self.wait_seconds.clone());
        r.register("job_seconds", "How long attempts at jobs ran, by how they ended", self.job_seconds.clone());
        r.register("queue_taken_back", "Running jobs taken from their workers", self.taken_back.clone());
    }

    /// Sets how many jobs of a kind are in a state.
    pub fn set_depth(&self, kind: &str, state: &'static str, count: usize) {
        let labels = DepthLabels { kind: kind.to_owned(), state };
        self.depth.get_or_create(&labels).set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// Notes that a job began after a wait.
    pub fn waited(&self, kind: &str, wait: time::Duration) {
        // A clock that was set back makes negative ones.
        let seconds = wait.as_seconds_f64().max(0.0);
        self.wait_seconds.get_or_create(&KindLabels { kind: kind.to_owned() }).observe(seconds);
    }

    /// Notes that an attempt ended.
    pub fn ended(&self, kind: &str, outcome: &'static str, ran: Duration) {
        let labels = JobLabels { kind: kind.to_owned(), outcome };
        self.job_seconds.get_or_create(&labels).observe(ran.as_secs_f64());
    }

    /// Notes that a running job was taken from its worker.
    pub fn taken_back(&self, kind: &str, reason: &'static str) {
        self.taken_back.get_or_create(&JobLabels { kind: kind.to_owned(), outcome: reason }).inc();
    }
}

fn seconds() -> Histogram {
    Histogram::new([0.0001, 0.0005, 0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0])
}

/// Every metric of the process.
pub struct Metrics {
    registry: Registry,
    /// Time until a request had its instance, by outcome: the cold start as callers feel it.
    pub arrivals: Family<ArrivalLabels, Histogram, fn() -> Histogram>,
    /// Spawn to authenticated health check.
    pub boot: Histogram,
    /// Answered requests.
    pub requests: Family<RequestLabels, Counter>,
    /// Time to the answer's head, as the gateway saw it.
    pub request_seconds: Histogram,
    /// Processes started.
    pub starts: Counter,
    /// Failures of instances, by reason: ends that nobody asked for, and starts that did not succeed.
    pub exits: Family<ReasonLabels, Counter>,
    /// Running processes taken over from an earlier pocketfleet.
    pub adopted: Counter,
    /// Idle instances stopped where they stood.
    pub freezes: Counter,
    /// Frozen instances that went on because somebody wanted them.
    pub thaws: Counter,
    /// Wakes on suspicion.
    pub predicted: Counter,
    /// How many of them were used before the instance slept again.
    pub predictions_used: Counter,
    /// Bytes of frozen instances that the kernel was told to page out.
    pub paged_out: Counter,
    /// How often an instance was told to use a whole core for long.
    pub cpu_alarms: Counter,
    /// How often the rules of level 3 were changed by somebody else and put back.
    pub network_repaired: Counter,
    /// 1 while they cannot be put back.
    pub network_lost: Gauge,
    /// Instances by state, set when scraped.
    pub instances: Family<StateLabels, Gauge>,
    /// Instances that nobody has yet, by state, set when scraped. None of them is in `instances` or `tenants`.
    pub spares: Family<StateLabels, Gauge>,
    /// Requests waiting for an instance.
    pub waiting: Gauge,
    /// Age of the oldest of them in seconds, set when scraped.
    pub oldest_waiter: Gauge<f64, AtomicU64>,
    /// Open client connections.
    pub connections: Gauge,
    /// Connections refused, by reason.
    pub connections_refused: Family<ReasonLabels, Counter>,
    /// Registered tenants, set when scraped.
    pub tenants: Gauge,
    /// Sign-ins and registrations refused, by reason.
    pub auth_refused: Family<ReasonLabels, Counter>,
    /// Open event streams, by state: `unbound`, `parked`, `attached` or `sign_in`.
    pub streams: Family<StateLabels, Gauge>,
    /// Event streams that we ended, by reason.
    pub streams_ended: Family<ReasonLabels, Counter>,
    /// Events passed on to clients.
    pub events: Counter,
    /// Finished deliveries, by kind of destination.
    pub deliveries: Family<ReasonLabels, Counter>,
    /// Bytes of recordings, `fetched` and `sent`.
    pub delivery_bytes: Family<ReasonLabels, Counter>,
    /// Bytes on the disk of all tenants that were measured.
    pub tenant_bytes: Gauge,
    /// Tenants beyond a limit of their disk, by limit: `soft` or `hard`.
    pub over_quota: Family<StateLabels, Gauge>,
    /// 1 while the disk is down to its reserve and no tenant writes.
    pub disk_reserved: Gauge,
    /// The job queue.
    pub queue: QueueMetrics,
    /// Open sockets of our own events.
    pub ws_connections: Gauge,
    /// Their subscriptions.
    pub ws_subscriptions: Gauge,
    /// Messages of their clients.
    pub ws_messages_in: Counter,
    /// Bytes of their clients.
    pub ws_bytes_in: Counter,
    /// Bytes to their clients.
    pub ws_bytes_out: Counter,
    /// Sockets that were written to, each time that events came.
    pub ws_writes: Counter,
    /// Sockets closed, by close code.
    ws_closes: Family<CodeLabels, Counter>,
    /// Sockets refused, by reason.
    ws_refused: Family<ReasonLabels, Counter>,
    /// Topics resumed, by outcome.
    ws_recoveries: Family<ReasonLabels, Counter>,
    /// From publishing an event to the last write of it on a worker.
    pub ws_delivery_seconds: Histogram,
}

/// Label of closed sockets.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CodeLabels {
    /// The close code.
    code: u32,
}

impl Metrics {
    /// A fresh set with its own registry.
    pub fn new() -> Arc<Self> {
        let mut metrics = Self {
            registry: Registry::with_prefix("pocketfleet"),
            arrivals: Family::new_with_constructor(seconds),
            boot: seconds(),
            requests: Family::default(),
            request_seconds: seconds(),
            starts: Counter::default(),
            exits: Family::default(),
            adopted: Counter::default(),
            freezes: Counter::default(),
            thaws: Counter::default(),
            paged_out: Counter::default(),
            predicted: Counter::default(),
            predictions_used: Counter::default(),
            cpu_alarms: Counter::default(),
            network_repaired: Counter::default(),
            network_lost: Gauge::default(),
            instances: Family::default(),
            spares: Family::default(),
            waiting: Gauge::default(),
            oldest_waiter: Gauge::default(),
            connections: Gauge::default(),
            connections_refused: Family::default(),
            tenants: Gauge::default(),
            auth_refused: Family::default(),
            streams: Family::default(),
            streams_ended: Family::default(),
            events: Counter::default(),
            deliveries: Family::default(),
            delivery_bytes: Family::default(),
            tenant_bytes: Gauge::default(),
            over_quota: Family::default(),
            disk_reserved: Gauge::default(),
            queue: QueueMetrics::default(),
            ws_connections: Gauge::default(),
            ws_subscriptions: Gauge::default(),
            ws_messages_in: Counter::default(),
            ws_bytes_in: Counter::default(),
            ws_bytes_out: Counter::default(),
            ws_writes: Counter::default(),
            ws_closes: Family::default(),
            ws_refused: Family::default(),
            ws_recoveries: Family::default(),
            ws_delivery_seconds: seconds(),
        };
        metrics.register();
        let waited = [Arrival::thawed, Arrival::queued, Arrival::timed_out, Arrival::refused];
        for outcome in [Arrival::warm, Arrival::woken].into_iter().chain(waited) {
            drop(metrics.arrivals.get_or_create(&ArrivalLabels { outcome }));
        }
        Arc::new(metrics)
    }

    fn register(&mut self) {
        let r = &mut self.registry;
        r.register("build", "Version of this program", Info::new([("version", env!("CARGO_PKG_VERSION"))]));
        r.register("arrival_seconds", "Time until a request had its instance, by outcome", self.arrivals.clone());
        r.register("boot_seconds", "Spawn to authenticated health check", self.boot.clone());
        r.register("requests", "Answered requests", self.requests.clone());
        r.register("request_seconds", "Time to the head of the answer", self.request_seconds.clone());
        r.register("starts", "Processes started", self.starts.clone());
        r.register("failures", "Failures of instances, running or starting", self.exits.clone());
        r.register("freezes", "Idle instances frozen", self.freezes.clone());
        r.register("thaws", "Frozen instances that went on", self.thaws.clone());
        r.register("paged_out_bytes", "Memory of frozen instances offered to swap", self.paged_out.clone());
        r.register("predicted", "Instances woken because somebody would probably want them", self.predicted.clone());
        r.register("predictions_used", "Of those, used before they slept again", self.predictions_used.clone());
        r.register("adopted", "Processes taken over from an earlier run", self.adopted.clone());
        r.register("cpu_alarms", "Instances seen to use a whole core for long", self.cpu_alarms.clone());
        r.register("network_repaired", "Rules of level 3 put back after a change", self.network_repaired.clone());
        r.register("network_lost", "1 while the rules of level 3 are not in force", self.network_lost.clone());
        r.register("instances", "Instances by state", self.instances.clone());
        r.register("spares", "Instances that nobody has yet, by state", self.spares.clone());
        r.register("waiting", "Requests waiting for an instance", self.waiting.clone());
        r.register("oldest_waiter_seconds", "Age of the oldest waiting request", self.oldest_waiter.clone());
        r.register("connections", "Open client connections", self.connections.clone());
        r.register("connections_refused", "Connections refused", self.connections_refused.clone());
        r.register("tenants", "Registered tenants", self.tenants.clone());
        r.register("auth_refused", "Sign-ins and registrations refused", self.auth_refused.clone());
        r.register("realtime_streams", "Open event streams by state", self.streams.clone());
        r.register("realtime_ended", "Event streams that the server ended", self.streams_ended.clone());
        r.register("realtime_events", "Events passed on to clients", self.events.clone());
        r.register("deliveries", "Finished deliveries by kind of destination", self.deliveries.clone());
        r.register("delivery_bytes", "Bytes of recordings that were fetched and sent", self.delivery_bytes.clone());
        r.register("tenant_disk_bytes", "Bytes on the disk of all measured tenants", self.tenant_bytes.clone());
        r.register("tenants_over_quota", "Tenants beyond a limit of their disk", self.over_quota.clone());
        r.register("disk_reserved", "1 while the disk is down to its reserve", self.disk_reserved.clone());
        self.queue.register(r);
        r.register("ws_connections", "Open WebSockets", self.ws_connections.clone());
        r.register("ws_subscriptions", "Subscriptions of WebSockets", self.ws_subscriptions.clone());
        r.register("ws_messages_in", "Messages of WebSocket clients", self.ws_messages_in.clone());
        r.register("ws_bytes_in", "Bytes of WebSocket clients", self.ws_bytes_in.clone());
        r.register("ws_bytes_out", "Bytes to WebSocket clients", self.ws_bytes_out.clone());
        r.register("ws_writes", "WebSockets written to with events", self.ws_writes.clone());
        r.register("ws_closes", "WebSockets closed, by code", self.ws_closes.clone());
        r.register("ws_refused", "WebSockets refused before the upgrade", self.ws_refused.clone());
        r.register("ws_recoveries", "Topics that clients resumed", self.ws_recoveries.clone());
        r.register("ws_delivery_seconds", "Publishing to the last write on a worker", self.ws_delivery_seconds.clone());
    }

    /// Sets how many tenants are beyond a limit of their disk.
    pub fn over_quota(&self, state: &'static str, count: i64) {
        self.over_quota.get_or_create(&StateLabels { state }).set(count);
    }

    /// Notes how a request came to its instance.
    pub fn arrived(&self, outcome: Arrival, after: Duration) {
        self.arrivals.get_or_create(&ArrivalLabels { outcome }).observe(after.as_secs_f64());
    }

    /// Notes the end of a socket. Clients choose codes too: those are counted together.
    pub fn socket_closed(&self, code: u16) {
        let code = if matches!(code, 1000..=1014 | 3000..=3599) { u32::from(code) } else { 4000 };
        self.ws_closes.get_or_create(&CodeLabels { code }).inc();
    }

    /// Notes a socket that was not let in.
    pub fn socket_refused(&self, reason: &'static str) {
        self.ws_refused.get_or_create(&ReasonLabels { reason }).inc();
    }

    /// Notes that a client resumed a topic.
    pub fn socket_recovered(&self, recovered: bool) {
        let reason = if recovered { "recovered" } else { "not_recovered" };
        self.ws_recoveries.get_or_create(&ReasonLabels { reason }).inc();
    }

    /// The `OpenMetrics` text of everything.
    pub fn render(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}
