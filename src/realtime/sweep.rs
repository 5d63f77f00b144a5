//! The hub's one task: attaches parked clients when an instance wakes, ends streams whose time or session is over, and
//! all of them at shutdown.

use std::sync::Arc;
use std::time::Duration;
use std::time::SystemTime;

use tokio::sync::Semaphore;
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;
use tokio::time::Instant;
use tokio::time::MissedTickBehavior;

use super::client::Client;
use super::hub::Reason;
use super::hub::Shared;
use super::subscription;
use super::subscription::Binding;
use super::subscription::Rights;
use crate::ids::TenantId;
use crate::supervisor::Awakening;

/// How often sessions are looked at: streams end within a second of their session.
const SWEEP: Duration = Duration::from_millis(300);
/// Clients that are looked at before others get a turn.
const BATCH: usize = 256;
/// Tenants whose clients are attached at once after wakes that nobody's write waits for.
const ROUNDS: usize = 32;

impl Shared {
    /// Runs until the shutdown begins.
    pub(super) async fn keep(self: Arc<Self>, mut awakenings: broadcast::Receiver<Awakening>) {
        let rounds = Arc::new(Semaphore::new(ROUNDS));
        let mut sweep = tokio::time::interval(SWEEP);
        sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                () = self.shutdown.begun() => break,
                awakening = awakenings.recv() => match awakening {
                    Ok(awakening) => self.greet(&awakening.tenant, &rounds),
                    // So many at once that some were missed: look at everybody.
                    Err(RecvError::Lagged(_)) => {
                        let tenants: Vec<TenantId> = self.rooms.iter().map(|room| room.key().clone()).collect();
                        for tenant in tenants {
                            self.greet(&tenant, &rounds);
                        }
                    }
                    // The supervisor is gone; so are its instances.
                    Err(RecvError::Closed) => break,
                },
                _ = sweep.tick() => self.sweep().await,
            }
        }
        for client in self.everybody() {
            self.end(&client, Reason::Shutdown);
        }
    }

    /// Attaches the parked clients of a tenant in the background: what its own jobs and hooks write counts too.
    fn greet(self: &Arc<Self>, tenant: &TenantId, rounds: &Arc<Semaphore>) {
        let Some(room) = self.rooms.get(tenant).map(|room| Arc::clone(&room)) else { return };
        let (shared, rounds, tenant) = (Arc::clone(self), Arc::clone(rounds), tenant.clone());
        let task = async move {
            let Ok(_permit) = rounds.acquire().await else { return };
            if let Some(lease) = shared.supervisor.visit(&tenant) {
                shared.round(&room, &lease).await;
            }
        };
        self.shutdown.spawn_on(task, &self.runtime);
    }

    fn everybody(&self) -> Vec<Arc<Client>> {
        self.clients.iter().map(|client| Arc::clone(&client)).collect()
    }

    async fn sweep(&self) {
        if self.clients.is_empty() {
            return;
        }
        let (now, moment) = (SystemTime::now(), Instant::now());
        for (at, client) in self.everybody().into_iter().enumerate() {
            if let Some(reason) = self.verdict(&client, now, moment) {
                self.end(&client, reason);
            }
            if at % BATCH == BATCH - 1 {
                tokio::task::yield_now().await;
            }
        }
    }

    /// Why the stream is over, if it is.
    fn verdict(&self, client: &Client, now: SystemTime, moment: Instant) -> Option<Reason> {
        let mut seat = client.seat();
        let seat = &mut *seat;
        match &mut seat.binding {
            Binding::Unbound => (moment >= client.since + self.config.bind_timeout).then_some(Reason::Unbound),
            // Whoever only waits for a sign-in does not wait for ever.
            _ if seat.sign_in_place.is_some() => {
                (moment >= seat.bound_at + self.config.sign_in_timeout).then_some(Reason::Unbound)
            }
            Binding::SignIn => None,
            Binding::Bound { tenant, rights: Rights::Visitor(authorization) } => {
                let has_expired = authorization.as_ref().is_some_and(|header| subscription::has_expired(header, now));
                let stands = !has_expired && (self.lets_in)(tenant, authorization.is_some(), &seat.topics);
                (!stands).then_some(Reason::Session)
            }
            Binding::Bound { tenant, rights: Rights::Member(standing) } => {
                let stands = self.verifier.holds(standing, now) && (self.admits)(standing.user(), tenant);
                (!stands).then_some(Reason::Session)
            }
        }
    }
}
