//! How many processes may start at once, and who goes first.
//!
//! A start is about 30 ms of CPU, with pauses for the disk and for answers. Started all together, fifty of them finish
//! together, late; a few at a time, the first is ready after one start's time and the mean is halved. One more than
//! there are cores fills the pauses: with as many as cores, a tenth of two cores idled. Wake-ups with a client waiting go
//! before the others. Nothing is held across an await but a [`Permit`].

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;

use tokio::sync::oneshot;

use crate::supervisor::Priority;

#[derive(Debug, Default)]
struct Queue {
    limit: usize,
    free: usize,
    clients: VecDeque<oneshot::Sender<Permit>>,
    background: VecDeque<oneshot::Sender<Permit>>,
}

/// The gate that starts pass through. Cheap to clone.
#[derive(Debug, Clone)]
pub struct StartGate(Arc<Mutex<Queue>>);

/// Room for one start, given back on drop.
#[derive(Debug)]
pub struct Permit(Option<StartGate>);

impl StartGate {
    /// A gate that lets `limit` starts through at once.
    pub fn new(limit: usize) -> Self {
        let limit = limit.max(1);
        Self(Arc::new(Mutex::new(Queue { limit, free: limit, ..Queue::default() })))
    }

    /// Whether no start is under way.
    pub fn is_idle(&self) -> bool {
        let queue = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        queue.free == queue.limit
    }

    /// Waits for a turn. Its length is bounded by the number of instances, each of which waits once at most.
    pub async fn enter(&self, priority: Priority) -> Permit {
        let turn = {
            let mut queue = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            if queue.free > 0 {
                queue.free -= 1;
                return Permit(Some(self.clone()));
            }
            let (sender, receiver) = oneshot::channel();
            match priority {
                Priority::Client => queue.clients.push_back(sender),
                Priority::Background => queue.background.push_back(sender),
            }
            receiver
        };
        // The gate outlives the wait (we hold it), so the sender is used, never dropped.
        turn.await.unwrap_or(Permit(None))
    }

    fn leave(&self) {
        let mut permit = Permit(Some(self.clone()));
        loop {
            let next = {
                let mut queue = self.0.lock().unwrap_or_else(PoisonError::into_inner);
                let next = queue.clients.pop_front().or_else(|| queue.background.pop_front());
                if next.is_none() {
                    queue.free += 1;
                    permit.0 = None;
                }
                next
            };
            let Some(next) = next else { return };
            match next.send(permit) {
                Ok(()) => return,
                // That one no longer waits; the permit comes back and goes to the next.
                Err(unused) => permit = unused,
            }
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if let Some(gate) = self.0.take() {
            gate.leave();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn clients_pass_before_background_work_and_abandoned_turns_are_skipped() {
        let gate = StartGate::new(1);
        assert!(gate.is_idle());
        let first = gate.enter(Priority::Client).await;
        assert!(!gate.is_idle());
        let order = Arc::new(Mutex::new(Vec::new()));
        let spawn = |name: &'static str, priority| {
            let (gate, order) = (gate.clone(), order.clone());
            tokio::spawn(async move {
                let _permit = gate.enter(priority).await;
                order.lock().unwrap().push(name);
            })
        };
        let background = spawn("background", Priority::Background);
        let abandoned = spawn("abandoned", Priority::Client);
        tokio::task::yield_now().await;
        let client = spawn("client", Priority::Client);
        tokio::task::yield_now().await;
        abandoned.abort();
        assert!(abandoned.await.is_err());
        drop(first);
        client.await.unwrap();
        background.await.unwrap();
        assert_eq!(*order.lock().unwrap(), ["client", "background"]);
        drop(gate.enter(Priority::Background).await);
        assert_eq!(gate.0.lock().unwrap().free, 1);
    }
}
