//! The waiting room: how many requests may wait for instances, and who waits longest.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
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
}

/// One wait, ended by dropping it: also when the client goes away.
#[derive(Debug)]
pub(crate) struct Ticket {
    room: Arc<WaitingRoom>,
    slot: Arc<Slot>,
    number: u64,
}

impl WaitingRoom {
    pub(crate) fn new(per_instance: usize, in_all: usize) -> Arc<Self> {
        Arc::new(Self { register: Mutex::default(), per_instance, in_all })
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

impl Drop for Ticket {
    fn drop(&mut self) {
        self.room.register.lock().unwrap_or_else(PoisonError::into_inner).since.remove(&self.number);
        self.slot.waiting.fetch_sub(1, Ordering::SeqCst);
    }
}
