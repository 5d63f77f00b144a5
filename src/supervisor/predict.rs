//! Waking an instance that somebody is about to want: who signs in asks for their data next.
//!
//! A wake on suspicion must cost nobody else anything. It is begun only for an instance that sleeps (or is frozen) and is
//! in no trouble, only if no start is under way, and only with a place under the cap that is free and none of the last, which are for clients: the
//! place is taken before and handed to the start, so that nobody is put to sleep for it. It is a background start that a client's wish
//! moves up, and at most one for a tenant in [`EVERY`]. Whoever asks does not wait and is not told what came of it.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;
use std::time::Instant;

use crate::ids::TenantId;
use crate::supervisor::Priority;
use crate::supervisor::Supervisor;
use crate::supervisor::slot::Lease;
use crate::supervisor::slot::Phase;

/// How long after a wake on suspicion there is no other one for the tenant.
const EVERY: Duration = Duration::from_secs(10);
/// Tenants that are remembered for that. While there are as many, nobody else is woken on suspicion.
const MOST: usize = 4_096;

/// Who was woken on suspicion lately.
#[derive(Debug, Default)]
pub(crate) struct Predictions(Mutex<HashMap<TenantId, Instant>>);

impl Predictions {
    /// Whether this tenant's turn has come again, which it then has had.
    fn take(&self, tenant: &TenantId, now: Instant) -> bool {
        let mut lately = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_recent = |at: &Instant| now.saturating_duration_since(*at) < EVERY;
        if lately.get(tenant).is_some_and(is_recent) {
            return false;
        }
        if lately.len() >= MOST {
            lately.retain(|_, at| is_recent(at));
        }
        let has_room = lately.len() < MOST;
        if has_room {
            lately.insert(tenant.clone(), now);
        }
        has_room
    }
}

impl Supervisor {
    /// Says that somebody will probably want this instance in a moment. Never waits.
    pub fn expect(&self, tenant: &TenantId) {
        let fleet = &self.fleet;
        if !fleet.config.predict || tenant.is_global() || fleet.standing(tenant).map_or(true, |found| found.suspended) {
            return;
        }
        let state = fleet.registry.get(tenant).map_or("asleep", |slot| slot.view.load().state);
        let is_asleep = state == "asleep";
        if !is_ripe(state, fleet.starts.is_idle()) {
            return;
        }
        // A frozen one has its place.
        let admission = if is_asleep { fleet.try_admit(fleet.places_of_spares()) } else { None };
        if is_asleep && admission.is_none() || !fleet.predictions.take(tenant, Instant::now()) {
            return;
        }
        let Ok(slot) = fleet.slot(tenant) else { return };
        slot.reserve(admission);
        fleet.metrics.predicted.inc();
        let (stopping, patience) = (fleet.stopping.clone(), fleet.config.wake_timeout);
        let wait = async move {
            let mut phase = slot.phase.subscribe();
            slot.want(Priority::Background);
            let is_settled = phase.wait_for(|phase| !matches!(phase, Phase::Pending));
            tokio::select! {
                _ = tokio::time::timeout(patience, is_settled) => {}
                () = stopping.cancelled() => {}
            }
            // If the start has not taken it, somebody else's was quicker, or it failed before.
            drop(slot.take_reserved());
            slot.waiting.fetch_sub(1, std::sync::atomic::Ordering::SeqCst);
        };
        fleet.tasks.spawn_on(wait, &fleet.runtime);
    }

    /// Counts the first use of an instance that was woken on suspicion.
    pub(super) fn used(&self, lease: Lease) -> Lease {
        if lease.takes_prediction() {
            self.fleet.metrics.predictions_used.inc();
        }
        lease
    }
}

/// Whether an instance in this state is woken on suspicion. One in backoff, in quarantine or blocked waits for more than
/// that, and others are awake already or on their way somewhere.
fn is_ripe(state: &str, is_gate_idle: bool) -> bool {
    match state {
        "asleep" => is_gate_idle,
        "frozen" => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_sleeps_in_health_is_woken_on_suspicion_and_only_while_nothing_starts() {
        assert!(is_ripe("asleep", true) && !is_ripe("asleep", false) && is_ripe("frozen", false));
        for state in ["starting", "awake", "draining", "backoff", "quarantined", "blocked", "suspended"] {
            assert!(!is_ripe(state, true), "{state}");
        }
    }

    #[test]
    fn a_tenant_is_woken_on_suspicion_once_in_a_while_and_memory_is_bounded() {
        let (predictions, now) = (Predictions::default(), Instant::now());
        let tenant = |n: usize| TenantId::parse(&format!("t{n}")).unwrap();
        assert!(predictions.take(&tenant(0), now) && !predictions.take(&tenant(0), now + EVERY / 2));
        assert!(predictions.take(&tenant(0), now + EVERY));
        for n in 1..MOST {
            assert!(predictions.take(&tenant(n), now + EVERY));
        }
        assert!(!predictions.take(&tenant(MOST), now + EVERY), "there are enough");
        assert!(predictions.take(&tenant(MOST), now + EVERY * 2));
        assert_eq!(predictions.0.lock().unwrap().len(), 1, "those of before are forgotten");
    }
}
