//! The gateway's metrics, looked up once per worker so that a request only adds to them.

use std::time::Duration;

use hyper::StatusCode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::histogram::Histogram;

use crate::telemetry::Arrival;
use crate::telemetry::ArrivalLabels;
use crate::telemetry::Metrics;
use crate::telemetry::RequestLabels;

/// Who answered a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answerer {
    Own,
    Global,
    Tenant,
}

#[derive(Debug)]
pub(crate) struct Meters {
    /// By answerer, then by class of status.
    requests: [[Counter; 4]; 3],
    seconds: Histogram,
    warm: Histogram,
}

impl Meters {
    pub(crate) fn new(metrics: &Metrics) -> Self {
        let requests = ["own", "global", "tenant"].map(|target| {
            ["2xx", "3xx", "4xx", "5xx"]
                .map(|class| metrics.requests.get_or_create(&RequestLabels { target, class }).clone())
        });
        let warm = metrics.arrivals.get_or_create(&ArrivalLabels { outcome: Arrival::warm }).clone();
        Self { requests, seconds: metrics.request_seconds.clone(), warm }
    }

    pub(crate) fn answered(&self, by: Answerer, status: StatusCode, after: Duration) {
        let class = match status.as_u16() {
            ..300 => 0,
            300..400 => 1,
            400..500 => 2,
            500.. => 3,
        };
        self.requests[by as usize][class].inc();
        self.seconds.observe(after.as_secs_f64());
    }

    /// A request found its instance awake and with room.
    pub(crate) fn warm(&self, after: Duration) {
        self.warm.observe(after.as_secs_f64());
    }
}
