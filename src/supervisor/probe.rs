//! Looking after a running instance: whether it still answers, how much CPU it takes, how long its log grows.

use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use crate::supervisor::busy::Seen;
use crate::supervisor::health;
use crate::supervisor::instance::Instance;
use crate::supervisor::launch;
use crate::supervisor::logs;
use crate::supervisor::slot::View;
use crate::supervisor::state::Event;
use crate::supervisor::state::Failure;

impl Instance {
    pub(super) fn probe_interval(&self) -> Duration {
        // Spread, so that a thousand instances adopted together are not probed together.
        self.fleet.config.probe_interval.mul_f64(0.9 + 0.2 * rand::random::<f64>())
    }

    /// Liveness of a running instance: a recent answer to a request is proof enough, else we ask.
    pub(super) async fn probe(&mut self) {
        self.probe_at = Instant::now() + self.probe_interval();
        let unused = if self.slot.in_flight() == 0 { self.slot.unused_for() } else { Duration::ZERO };
        let interval = self.fleet.config.probe_interval;
        let is_calm = self.misses == 0 && self.busy.is_calm();
        // What jobs of its own print fills the disk also while nobody uses it.
        if !is_calm || unused < interval || self.rotated_at.elapsed() >= interval * health::IDLE {
            self.rotated_at = Instant::now();
            self.rotate_log().await;
        }
        if is_calm && !health::is_due(unused, self.looked_at.elapsed(), interval) {
            return;
        }
        self.looked_at = Instant::now();
        self.look_at_cpu();
        let Some(occupied) = &self.occupied else { return };
        if self.slot.silent_for() < interval {
            self.misses = 0;
            return;
        }
        let token = occupied.running.proof();
        let check = health::check(occupied.running.address, &token, self.fleet.config.probe_timeout);
        let outcome = tokio::select! {
            outcome = check => outcome,
            // The main loop sees the exit next and deals with it.
            () = occupied.process.exited() => return,
        };
        match outcome {
            Ok(_) => {
                self.misses = 0;
                self.slot.heard();
            }
            Err(health::Error::Unasked(error)) => {
                // Whoever we cannot ask is not to be killed for it.
                tracing::warn!(tenant.id = %self.slot.tenant, %error, "a health probe could not be sent");
            }
            Err(error) => {
                self.misses += 1;
                let misses = self.misses;
                tracing::warn!(tenant.id = %self.slot.tenant, misses, %error, "health probe missed");
                if misses >= self.fleet.config.probe_misses {
                    self.give_up_on(&format!("no answer to {misses} health probes ({error})")).await;
                }
            }
        }
    }

    fn look_at_cpu(&mut self) {
        let Some(used) = self.occupied.as_ref().and_then(|occupied| occupied.process.cpu_demand()) else { return };
        match self.busy.look(used, Instant::now(), self.fleet.config.cpu_alarm) {
            Seen::Nothing => {}
            Seen::Burning(lasts) => {
                self.fleet.metrics.cpu_alarms.inc();
                let seconds = lasts.as_secs();
                tracing::warn!(tenant.id = %self.slot.tenant, seconds, "an instance uses a whole core; if its hooks loop, `tenants sleep` ends it");
            }
            Seen::Calm => {
                tracing::info!(tenant.id = %self.slot.tenant, "an instance does not use a whole core any more");
            }
        }
        let view = self.slot.view.load();
        let (cpu_percent, is_burning) = (self.busy.percent, self.busy.is_burning());
        self.slot.view.store(Arc::new(View { cpu_percent, is_burning, ..View::clone(&view) }));
    }

    async fn give_up_on(&mut self, reason: &str) {
        self.slot.close();
        let mut log_start = 0;
        if let Some(occupied) = self.occupied.take() {
            let epoch = occupied.running.epoch;
            log_start = occupied.running.log_start;
            occupied.process.dump_and_kill(Duration::from_secs(1)).await;
            launch::release(&self.fleet, &self.slot.tenant, epoch).await;
            drop(occupied.admission);
        }
        let failure = self.report(Failure::Crash(reason.to_owned()), log_start);
        self.feed(Event::Failed(failure)).await;
    }

    async fn rotate_log(&self) {
        let folder = self.fleet.folder(&self.slot.tenant);
        let (limit, keep) = (self.fleet.config.log_bytes, self.fleet.config.log_files);
        let written = self.occupied.as_ref().and_then(|occupied| occupied.process.log());
        let work = move || {
            let kept = written.map_or(Ok(()), |written| logs::recover(&folder, &written, limit));
            kept.and(logs::rotate(&folder, limit, keep))
        };
        if let Ok(Err(error)) = tokio::task::spawn_blocking(work).await {
            tracing::warn!(tenant.id = %self.slot.tenant, %error, "rotate an instance's log");
        }
    }
}
