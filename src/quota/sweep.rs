//! The task that measures: everybody in turn, so many a second; those who wrote much out of turn; the disk every second.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio::time::MissedTickBehavior;

use super::Level;
use super::Quotas;
use crate::ids::TenantId;
use crate::shutdown::Shutdown;

/// How often the disk is looked at, and how long a burst of writes is left alone before it is measured.
const TICK: Duration = Duration::from_millis(500);
/// Tenants of one turn that are asked for at once.
const PAGE: usize = 256;

/// The measuring side of [`Quotas`].
#[derive(Debug)]
pub struct Sweep {
    quotas: Quotas,
    due: mpsc::Receiver<TenantId>,
    turn: Turn,
}

/// Where the turn of all tenants is.
#[derive(Debug)]
enum Turn {
    /// Between two turns.
    Rests,
    /// It begins.
    Begins,
    /// This one was measured last.
    After(TenantId),
}

impl Sweep {
    pub(super) fn new(quotas: Quotas, due: mpsc::Receiver<TenantId>) -> Self {
        Self { quotas, due, turn: Turn::Begins }
    }

    /// Measures until the shutdown begins.
    pub async fn run(mut self, shutdown: Shutdown) {
        let config = self.quotas.inner.parts.config.clone();
        let each = usize::try_from(config.sweep_per_second).unwrap_or(usize::MAX).div_ceil(2).max(1);
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut next_turn = Instant::now();
        let mut work: Option<JoinHandle<()>> = None;
        let is_over = Arc::new(AtomicBool::new(false));
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                () = shutdown.begun() => {
                    // The walk under way has an end of its own, and nobody waits for what it finds.
                    is_over.store(true, Ordering::Relaxed);
                    return;
                }
            }
            // Whatever the walks meet: the reserve of the disk is everybody's.
            let quotas = self.quotas.clone();
            drop(tokio::task::spawn_blocking(move || quotas.look_at_disk()).await);
            if work.as_ref().is_some_and(|work| !work.is_finished()) {
                continue;
            }
            if let Some(worked) = work.take()
                && worked.await.is_err()
            {
                tracing::error!("a measure of tenants' folders ended early");
            }
            if matches!(self.turn, Turn::Rests) && Instant::now() >= next_turn {
                self.turn = Turn::Begins;
            }
            let mut batch = Vec::new();
            while batch.len() < each
                && let Ok(id) = self.due.try_recv()
            {
                batch.push(id);
            }
            let was_turning = !matches!(self.turn, Turn::Rests);
            self.fill(&mut batch, each);
            let is_turn_over = was_turning && matches!(self.turn, Turn::Rests);
            let quotas = self.quotas.clone();
            if !batch.is_empty() {
                let is_over = Arc::clone(&is_over);
                // Off the event loop: walks of folders block.
                work = Some(tokio::task::spawn_blocking(move || {
                    let rest = batch.iter().take_while(|_| !is_over.load(Ordering::Relaxed));
                    rest.for_each(|id| quotas.measure(id));
                    quotas.sum_up();
                }));
            }
            if is_turn_over {
                next_turn = Instant::now() + config.sweep_interval;
            }
        }
    }

    /// Adds those whose turn it is.
    fn fill(&mut self, batch: &mut Vec<TenantId>, most: usize) {
        let room = most.saturating_sub(batch.len()).min(PAGE);
        if room == 0 {
            return;
        }
        let after = match std::mem::replace(&mut self.turn, Turn::Rests) {
            Turn::Rests => return,
            Turn::Begins => None,
            Turn::After(id) => Some(id),
        };
        let page = self.quotas.inner.parts.tenants.page(after.as_ref(), room);
        if let Some(last) = page.last().filter(|_| page.len() == room) {
            self.turn = Turn::After(last.id.clone());
        }
        let meant = page.iter().filter(|tenant| !tenant.id.is_global() && tenant.deleted.is_none());
        batch.extend(meant.map(|tenant| tenant.id.clone()));
    }
}

impl Quotas {
    fn look_at_disk(&self) {
        let reserve = self.inner.parts.config.reserve;
        let Ok(stat) = rustix::fs::statvfs(&self.inner.parts.data) else { return };
        let is_full = reserve > 0 && stat.f_bavail.saturating_mul(stat.f_frsize) < reserve;
        if self.inner.is_full.swap(is_full, Ordering::Relaxed) != is_full {
            if is_full {
                tracing::error!(reserve, "the disk is down to its reserve: no tenant writes until there is room again");
            } else {
                tracing::info!("there is room on the disk again: tenants write");
            }
        }
    }

    /// Totals, for `/metrics`: no tenant is named there.
    pub(super) fn sum_up(&self) {
        // Whoever is deleted or gone has nothing any more, and counts in no total.
        let tenants = &self.inner.parts.tenants;
        self.inner.accounts.retain(|id, _| tenants.find(id).is_some_and(|tenant| tenant.deleted.is_none()));
        let (mut bytes, mut soft, mut hard) = (0_u64, 0_i64, 0_i64);
        for account in &self.inner.accounts {
            bytes = bytes.saturating_add(account.used());
            match account.level() {
                Level::Ok => {}
                Level::Soft => soft += 1,
                Level::Hard => hard += 1,
            }
        }
        self.inner.somebody_is_over.store(soft + hard > 0, Ordering::Relaxed);
        let metrics = &self.inner.parts.metrics;
        metrics.tenant_bytes.set(i64::try_from(bytes).unwrap_or(i64::MAX));
        metrics.over_quota("soft", soft);
        metrics.over_quota("hard", hard);
        metrics.disk_reserved.set(i64::from(self.is_full()));
    }
}
