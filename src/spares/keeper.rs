//! The task that keeps the number: sorts out what an earlier run left, makes and starts spares in the background, and
//! finds out what became of those that nobody knows about.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::Instant;

use time::OffsetDateTime;

use super::Spares;
use super::State;
use crate::failpoint;
use crate::ids::TenantId;
use crate::ids::UserId;
use crate::shutdown::Shutdown;
use crate::store::spares::Spare;
use crate::supervisor;

/// How often the pool is looked over when nothing happens.
const TICK: Duration = Duration::from_secs(1);
/// How long after a call without an answer an account that is not there will not come any more. The call itself is given
/// up after 20 seconds, and `PocketBase` makes an account within a second.
const DOUBT: Duration = Duration::from_mins(1);
/// Waits after failures in a row: doubled from the first to the longest.
const FIRST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_mins(5);
/// Failed starts in a row after which a spare is given up.
const MAX_FAILURES: u32 = 3;
/// Characters of an id, as `PocketBase` makes them, and their number.
const ALPHABET: &[u8; 36] = b"abcdefghijklmnopqrstuvwxyz0123456789";
const ID_LENGTH: usize = 15;

/// Whether the disk has no room for more. Cheap.
pub type IsFull = Arc<dyn Fn() -> bool + Send + Sync>;

/// What a look led to.
enum Look {
    /// A spare was made or started; there may be another one to be.
    Filled,
    /// Nothing to do, or no room for it.
    Rested,
    /// It did not work.
    Failed,
}

impl Spares {
    /// Sorts out what an earlier run left, before anybody is served: what has an account becomes its tenant, what is
    /// whole and as it would be made today stays, up to the number, and the rest goes (when [`run`](Self::run) runs).
    pub async fn settle(&self) {
        let parts = &self.inner.parts;
        let records = parts.records.all();
        if records.is_empty() {
            return;
        }
        let users: Vec<UserId> = records.iter().filter_map(|spare| UserId::parse(spare.id.as_str()).ok()).collect();
        let with_account = self.with_account(users).await;
        let today = parts.supervisor.version_today(parts.tenancy.personal_template());
        let mut kept = Vec::new();
        for spare in records {
            let state = match &with_account {
                _ if !self.is_free(&spare.id) => State::Had,
                None => State::Doubted(Instant::now()),
                Some(users) if users.iter().any(|user| user.as_str() == spare.id.as_str()) => {
                    match self.hand_over(&spare.id).await {
                        Ok(()) => State::Had,
                        Err(_) => State::Doubted(Instant::now()),
                    }
                }
                Some(_) if self.is_as_made_today(&spare, today.as_deref()).await => {
                    kept.push(spare.id.clone());
                    State::Ready
                }
                Some(_) => State::Leaving,
            };
            self.set(&spare.id, state);
        }
        // Of those that are awake as many as possible.
        kept.sort_by_key(|id| !parts.supervisor.is_awake(id));
        let surplus = kept.split_off(parts.number.min(kept.len()));
        for id in &surplus {
            self.set(id, State::Leaving);
        }
        tracing::info!(kept = kept.len(), surplus = surplus.len(), "settled the spares of an earlier run");
    }

    /// Whether a new instance would be the same. Without a template that can be used nobody knows, and it stays.
    async fn is_as_made_today(&self, spare: &Spare, today: Option<&str>) -> bool {
        let parts = &self.inner.parts;
        match parts.supervisor.version_of_spare(&spare.id).await {
            Ok(Some(version)) => {
                spare.template == parts.tenancy.personal_template()
                    && spare.url == parts.url
                    && today.is_none_or(|today| today == version)
            }
            // It was not made to the end.
            Ok(None) => false,
            Err(error) => {
                tracing::warn!(tenant.id = %spare.id, %error, "a spare is replaced that cannot be read");
                false
            }
        }
    }

    async fn with_account(&self, users: Vec<UserId>) -> Option<Vec<UserId>> {
        let accounts = Arc::clone(&self.inner.parts.accounts);
        tokio::task::spawn_blocking(move || accounts(&users)).await.ok().flatten()
    }

    /// Keeps the number, until the shutdown begins; not at all when there are to be none and none are left.
    pub async fn run(self, is_full: IsFull, shutdown: Shutdown) {
        let (mut failures, mut not_before) = (0_u32, Instant::now());
        loop {
            tokio::select! {
                () = self.tidy() => {}
                () = shutdown.begun() => return,
            }
            if self.inner.parts.number == 0 && self.known().is_empty() {
                return;
            }
            if Instant::now() >= not_before {
                let look = tokio::select! {
                    look = self.fill(&is_full) => look,
                    // What it was about to make is there, and the next run knows of it.
                    () = shutdown.begun() => return,
                };
                match look {
                    Look::Filled => {
                        failures = 0;
                        continue;
                    }
                    Look::Rested => {}
                    Look::Failed => {
                        let wait = FIRST_WAIT * 2_u32.saturating_pow(failures.min(16));
                        not_before = Instant::now() + wait.min(LONGEST_WAIT);
                        failures = failures.saturating_add(1);
                    }
                }
            }
            tokio::select! {
                () = tokio::time::sleep(TICK) => {}
                () = self.inner.work.notified() => {}
                () = shutdown.begun() => return,
            }
        }
    }

    /// Ends what has to be ended.
    async fn tidy(&self) {
        let known: Vec<(TenantId, State)> = self.known().iter().map(|(id, state)| (id.clone(), *state)).collect();
        for (id, state) in known {
            match state {
                State::Taken => {}
                State::Had => self.forget(&id).await,
                // Its account was made after all, and its owner was here already.
                _ if !self.is_free(&id) => self.give_to_its_account(&id).await,
                State::New(_) | State::Ready => {}
                State::Doubted(since) => self.look_into(&id, since).await,
                State::Leaving => match self.inner.parts.supervisor.discard(&id).await {
                    Ok(()) => self.forget(&id).await,
                    Err(error) => tracing::warn!(tenant.id = %id, %error, "a spare is removed later"),
                },
            }
        }
    }

    async fn give_to_its_account(&self, id: &TenantId) {
        match self.hand_over(id).await {
            Ok(()) => {
                self.set(id, State::Had);
                self.forget(id).await;
            }
            Err(error) => tracing::warn!(tenant.id = %id, %error, "a spare becomes its account's tenant later"),
        }
    }

    async fn forget(&self, id: &TenantId) {
        match self.inner.parts.records.remove(id).await {
            Ok(()) => drop(self.known().remove(id)),
            Err(error) => tracing::warn!(tenant.id = %id, %error, "the record of a spare is removed later"),
        }
    }

    /// Finds out whether an account has the id after all.
    async fn look_into(&self, id: &TenantId, since: Instant) {
        // Whoever comes to it in another way is let in by its start, which looks whose it is.
        if let Err(error) = self.inner.parts.supervisor.rest(id).await {
            return tracing::debug!(tenant.id = %id, %error, "a spare that may have an account sleeps later");
        }
        let Ok(user) = UserId::parse(id.as_str()) else { return };
        match self.with_account(vec![user]).await {
            Some(found) if !found.is_empty() => self.give_to_its_account(id).await,
            Some(_) if since.elapsed() >= DOUBT => {
                let count = self.usable();
                self.set(id, if count < self.inner.parts.number { State::Ready } else { State::Leaving });
            }
            Some(_) | None => {}
        }
    }

    /// Spares that somebody may have, or has in hand.
    fn usable(&self) -> usize {
        let known = self.known();
        known.values().filter(|state| matches!(state, State::New(_) | State::Ready | State::Taken)).count()
    }

    /// The same with those of which nobody knows whether they are to be had: while the accounts do not answer, each
    /// registration would cost another spare.
    fn kept(&self) -> usize {
        self.usable() + self.known().values().filter(|state| matches!(state, State::Doubted(_))).count()
    }

    /// Starts one that sleeps, or makes one.
    async fn fill(&self, is_full: &IsFull) -> Look {
        let parts = &self.inner.parts;
        let is_open = self.inner.is_open.load(Ordering::Relaxed);
        if !is_open || is_full() || !parts.supervisor.has_room_for_spare() {
            return Look::Rested;
        }
        let sleeping = {
            let known = self.known();
            // One that is new may have come up after its start was given up on.
            let waits = |(id, state): &(&TenantId, &State)| match state {
                State::New(_) => true,
                State::Ready => !parts.supervisor.is_awake(id),
                _ => false,
            };
            known.iter().find(waits).map(|(id, _)| id.clone())
        };
        let id = match sleeping {
            Some(id) => id,
            None if self.kept() >= parts.number => return Look::Rested,
            None => match self.reserve().await {
                Ok(id) => id,
                Err(look) => return look,
            },
        };
        let warmed = parts.supervisor.warm(&id).await;
        let mut known = self.known();
        // It may have been taken meanwhile, and be anything by now.
        let Some(state) = known.get_mut(&id) else { return Look::Rested };
        match (warmed, *state) {
            (Ok(()), State::New(_)) => *state = State::Ready,
            (Ok(()), _) => {}
            // The places that are left are for clients, or nobody starts anything any more.
            (
                Err(
                    supervisor::Error::Capacity
                    | supervisor::Error::WaitingRoomFull
                    | supervisor::Error::ShuttingDown
                    | supervisor::Error::UnknownTenant,
                ),
                _,
            ) => return Look::Rested,
            (Err(error), before) => {
                let failures = match before {
                    State::New(failures) => Some(failures + 1),
                    State::Ready => Some(1),
                    _ => None,
                };
                if let Some(failures) = failures {
                    *state = if failures >= MAX_FAILURES { State::Leaving } else { State::New(failures) };
                }
                drop(known);
                tracing::warn!(tenant.id = %id, %error, "a spare cannot be started; it is tried again");
                return Look::Failed;
            }
        }
        Look::Filled
    }

    /// Keeps an id that nobody has.
    async fn reserve(&self) -> Result<TenantId, Look> {
        let parts = &self.inner.parts;
        // Without a template that can be used there is nothing to make.
        let template = parts.tenancy.personal_template();
        if parts.supervisor.version_today(template).is_none() {
            return Err(Look::Rested);
        }
        let id = random_id();
        // What is there under the name of nobody is not to become somebody's.
        if !self.is_free(&id) || !matches!(parts.supervisor.version_of_spare(&id).await, Ok(None)) {
            return Err(Look::Failed);
        }
        let made_at = OffsetDateTime::now_utc();
        let spare = Spare { id: id.clone(), template: template.to_owned(), url: parts.url.clone(), made_at };
        match parts.records.create(spare).await {
            Ok(true) => {}
            Ok(false) => return Err(Look::Failed),
            Err(error) => {
                tracing::warn!(%error, "no spare is made: the control database refuses");
                return Err(Look::Failed);
            }
        }
        failpoint::hit("spare.recorded");
        self.set(&id, State::New(0));
        Ok(id)
    }
}

/// An id as `PocketBase` would make it.
fn random_id() -> TenantId {
    loop {
        let id: String =
            (0..ID_LENGTH).map(|_| char::from(ALPHABET[usize::from(rand::random::<u16>()) % ALPHABET.len()])).collect();
        if let Ok(id) = TenantId::parse(&id) {
            return id;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn ids_are_like_those_of_pocketbase_and_no_two_are_equal() {
        let ids: HashSet<String> = (0..1_000).map(|_| random_id().as_str().to_owned()).collect();
        assert_eq!(ids.len(), 1_000);
        assert!(
            ids.iter().all(|id| id.len() == 15 && id.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit()))
        );
    }
}
