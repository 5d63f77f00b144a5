//! The waiting room: how many requests may wait for instances, and who waits longest; and how those are refused that find
//! it full.
//!
//! A refusal costs nearly what passing the request on costs, and whoever asks again at once is refused again: clients of a
//! tenant that is asked for too much could take the machine from those who are served. So a refusal is not told before
//! a pause has passed. As many pause as may wait in all; beyond, one is refused at once.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::Instant;

use crate::supervisor::Error;
use crate::supervisor::slot::Slot;

#[derive(Debug, Default)]
struct Register {
    next: u64,
    since: BTreeMap<u64, Instant>,
}

/// All waits of the fleet.
#[derive(Debug)]
pub(crate) struct WaitingRoom {
    register: Mutex<Register>,
    per_instance: usize,
    in_all: usize,
    pause: Duration,
    pausing: AtomicUsize,
}

/// One refusal that is not told yet.
struct Pausing<'a>(&'a AtomicUsize);

/// One wait, ended by dropping it: also when the client goes away.
#[derive(Debug)]
pub(crate) struct Ticket {
    room: Arc<WaitingRoom>,
    slot: Arc<Slot>,
    number: u64,
}

impl WaitingRoom {
    pub(crate) fn new(per_instance: usize, in_all: usize, pause: Duration) -> Arc<Self> {
        Arc::new(Self { register: Mutex::default(), per_instance, in_all, pause, pausing: AtomicUsize::new(0) })
    }

    /// Waits before somebody is told of a refusal.
    pub(crate) async fn pause(&self) {
        let _pausing = Pausing(&self.pausing);
        if self.pausing.fetch_add(1, Ordering::Relaxed) < self.in_all && !self.pause.is_zero() {
            tokio::time::sleep(self.pause).await;
        }
    }

    /// Begins a wait whose caller has already raised `slot.waiting` (that count is what keeps the slot from being
    /// forgotten meanwhile); a refusal lowers it again.
    pub(crate) fn enter(self: &Arc<Self>, slot: &Arc<Slot>) -> Result<Ticket, Error> {
        let refused = |error| {
            slot.waiting.fetch_sub(1, Ordering::SeqCst);
            Err(error)
        };
        if slot.waiting.load(Ordering::SeqCst) as usize > self.per_instance {
            return refused(Error::TenantBusy);
        }
        let mut register = self.register.lock().unwrap_or_else(PoisonError::into_inner);
        if register.since.len() >= self.in_all {
            drop(register);
            return refused(Error::WaitingRoomFull);
        }
        let number = register.next;
        register.next += 1;
        register.since.insert(number, Instant::now());
        Ok(Ticket { room: Arc::clone(self), slot: Arc::clone(slot), number })
    }

    /// How many wait, and how long the first of them has.
    pub(crate) fn queue(&self) -> (usize, Duration) {
        let register = self.register.lock().unwrap_or_else(PoisonError::into_inner);
        let oldest = register.since.first_key_value().map_or(Duration::ZERO, |(_, since)| since.elapsed());
        (register.since.len(), oldest)
    }
}

impl Drop for Pausing<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.room.register.lock().unwrap_or_else(PoisonError::into_inner).since.remove(&self.number);
        self.slot.waiting.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_refusal_is_told_after_a_pause_and_at_once_when_too_many_pause() {
        let room = WaitingRoom::new(1, 2, Duration::from_secs(1));
        let begun = tokio::time::Instant::now();
        let (mut first, mut second) = (pin!(room.pause()), Box::pin(room.pause()));
        assert!(futures_util::poll!(&mut first).is_pending() && futures_util::poll!(&mut second).is_pending());
        room.pause().await;
        assert!(begun.elapsed().is_zero(), "there are two already");
        // Whoever goes away meanwhile gives the place back.
        drop(second);
        room.pause().await;
        assert_eq!(begun.elapsed().as_secs(), 1);
        first.await;
        assert_eq!(begun.elapsed().as_secs(), 1);
        let none = WaitingRoom::new(1, 2, Duration::ZERO);
        none.pause().await;
        assert_eq!((begun.elapsed().as_secs(), none.pausing.load(Ordering::Relaxed)), (1, 0));
    }
}
