//! Keeps the session registry: registers sessions that were first met on a request, and sweeps dead ones.
//!
//! A token that pocketfleet never saw issued (an accounts database that existed before, a sign-in through another way)
//! is as good as any other once its signature holds. Its session is registered in the background, so that it can be
//! listed and ended; the request does not wait for the disk.
//!
//! Invariants:
//! - The queue has a bound; what does not fit is offered again by the next request of the same session.
//! - A session is in the queue at most once, however many requests bring it.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;
use std::time::SystemTime;
use std::time::UNIX_EPOCH;

use dashmap::DashSet;
use time::OffsetDateTime;
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;

use super::Principal;
use crate::shutdown::Shutdown;
use crate::store::sessions::Session;
use crate::store::sessions::SessionId;
use crate::store::sessions::Sessions;
use crate::store::sessions::Status;

/// Sessions that wait to be registered.
const QUEUE: usize = 1024;

/// How often expired sessions are removed, and how many in one go.
const SWEEP_INTERVAL: Duration = Duration::from_mins(10);
const SWEEP_BATCH: usize = 1000;

/// The last second that the calendar type can express; tokens may claim any.
const LAST_SECOND: u64 = 253_402_300_799;

/// Where the verifier leaves the sessions it does not know.
#[derive(Clone)]
pub(super) struct Adoptions {
    queue: mpsc::Sender<Session>,
    queued: Arc<DashSet<SessionId>>,
}

impl fmt::Debug for Adoptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Adoptions").field("queued", &self.queued.len()).finish_non_exhaustive()
    }
}

impl Adoptions {
    /// Has the session of this principal registered soon, unless that is under way or the queue is full.
    pub(super) fn adopt(&self, principal: &Principal, now: SystemTime) {
        if !self.queued.insert(principal.session.clone()) {
            return;
        }
        if self.queue.try_send(adopted(principal, now)).is_err() {
            self.queued.remove(&principal.session);
        }
    }
}

/// The record of a session that was first met on a request; device and address stay unknown.
pub(super) fn adopted(principal: &Principal, now: SystemTime) -> Session {
    Session {
        id: principal.session.clone(),
        user: principal.user.clone(),
        status: Status::Live,
        device: String::new(),
        ip: None,
        created_at: calendar(now),
        expires_at: calendar(principal.expires),
        adopted: true,
        family: None,
        key: Arc::clone(&principal.key),
    }
}

/// The same moment as a calendar date, cut to what the calendar can express.
pub(super) fn calendar(time: SystemTime) -> OffsetDateTime {
    let seconds = time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()).min(LAST_SECOND);
    i64::try_from(seconds)
        .ok()
        .and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok())
        .unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

/// The task behind the verifier. Nothing is registered until it [runs](Self::run).
#[derive(Debug)]
pub struct Keeper {
    queue: mpsc::Receiver<Session>,
    queued: Arc<DashSet<SessionId>>,
    sessions: Sessions,
}

pub(super) fn pair(sessions: Sessions) -> (Adoptions, Keeper) {
    let (sender, receiver) = mpsc::channel(QUEUE);
    let queued = Arc::new(DashSet::new());
    (Adoptions { queue: sender, queued: Arc::clone(&queued) }, Keeper { queue: receiver, queued, sessions })
}

impl Keeper {
    /// Works until the shutdown begins. What is still queued then is adopted again after the restart.
    pub async fn run(mut self, shutdown: Shutdown) {
        let mut sweep = tokio::time::interval(SWEEP_INTERVAL);
        sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = shutdown.begun() => return,
                next = self.queue.recv() => match next {
                    Some(session) => self.register(session).await,
                    None => return,
                },
                _ = sweep.tick() => self.sweep().await,
            }
        }
    }

    async fn register(&self, session: Session) {
        let id = session.id.clone();
        if let Err(error) = self.sessions.register(session).await {
            tracing::warn!(%error, "an adopted session cannot be registered; its next request tries again");
        }
        self.queued.remove(&id);
    }

    /// One batch at a time, so that adoptions are not held up; the rest follows at the next tick.
    async fn sweep(&self) {
        match self.sessions.sweep(OffsetDateTime::now_utc(), SWEEP_BATCH).await {
            Ok(0) => {}
            Ok(swept) => tracing::debug!(sessions.swept = swept, "removed expired sessions"),
            Err(error) => tracing::warn!(%error, "expired sessions cannot be removed"),
        }
    }
}
