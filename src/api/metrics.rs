//! `/metrics`: the `OpenMetrics` text. Gauges that mirror the fleet are set when scraped, so that nothing has to
//! keep them in step in between.

use std::sync::Arc;

use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;
use axum::response::Response;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::api::AppState;
use crate::api::error::ApiError;
use crate::error::Code;
use crate::error::Problem;
use crate::supervisor::FleetStatus;
use crate::supervisor::Supervisor;
use crate::telemetry::Metrics;
use crate::telemetry::StateLabels;

const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Every state, so that one nobody is in shows as 0 instead of its last value.
pub(crate) const STATES: [&str; 9] =
    ["asleep", "starting", "awake", "frozen", "draining", "backoff", "quarantined", "blocked", "suspended"];

/// The route.
pub fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(metrics))
}

/// Metrics in `OpenMetrics` text.
#[utoipa::path(get, path = "/metrics", tag = "operators",
    responses((status = 200, description = "The metrics.", body = String, content_type = CONTENT_TYPE)))]
async fn metrics(
    State(metrics): State<Arc<Metrics>>,
    State(supervisor): State<Supervisor>,
) -> Result<Response, ApiError> {
    mirror(&metrics, &supervisor.fleet());
    let text = metrics.render().map_err(|_| Problem::new(Code::Internal))?;
    Ok(([(header::CONTENT_TYPE, CONTENT_TYPE)], text).into_response())
}

fn mirror(metrics: &Metrics, fleet: &FleetStatus) {
    for state in STATES {
        let count = fleet.states.get(state).copied().unwrap_or_default();
        metrics.instances.get_or_create(&StateLabels { state }).set(gauge(count));
        let spares = fleet.spares.get(state).copied().unwrap_or_default();
        metrics.spares.get_or_create(&StateLabels { state }).set(gauge(spares));
    }
    metrics.tenants.set(gauge(fleet.registered));
    #[expect(clippy::cast_precision_loss, reason = "an age in milliseconds, shown in seconds")]
    metrics.oldest_waiter.set(fleet.oldest_waiter_ms as f64 / 1000.0);
}

fn gauge(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::supervisor::jail::Isolation;

    #[test]
    fn a_state_that_nobody_is_in_any_more_shows_zero() {
        let metrics = Metrics::new();
        let mut fleet = FleetStatus {
            registered: 3,
            states: BTreeMap::from([("awake".to_owned(), 2)]),
            spares: BTreeMap::from([("awake".to_owned(), 4)]),
            waiting: 0,
            oldest_waiter_ms: 1500,
            starts: 0,
            restarts: 0,
            adopted: 0,
            burning: 0,
            troubled: vec![],
            broken_templates: vec![],
            isolation: Isolation::none().report(),
        };
        mirror(&metrics, &fleet);
        let text = metrics.render().unwrap();
        assert!(text.contains("pocketfleet_instances{state=\"awake\"} 2"), "{text}");
        assert!(text.contains("pocketfleet_spares{state=\"awake\"} 4"), "{text}");
        assert!(text.contains("pocketfleet_oldest_waiter_seconds 1.5"), "{text}");
        fleet.states.clear();
        mirror(&metrics, &fleet);
        assert!(metrics.render().unwrap().contains("pocketfleet_instances{state=\"awake\"} 0"));
    }
}
