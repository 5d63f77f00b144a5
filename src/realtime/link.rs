//! The task between one client and the instance: passes events on, and replaces the instance's stream before
//! `PocketBase` cuts it.
//!
//! The replacement is made before the break: a second stream is opened and subscribed beside the first, both are read
//! for a while, and what comes on both passes once (`overlap`).

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::header::HeaderValue;
use tokio::sync::mpsc;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::Error;
use super::client::Client;
use super::hub::Reason;
use super::hub::Shared;
use super::overlap::Overlap;
use super::overlap::Side;
use super::sse::Event;
use super::upstream::Fault;
use super::upstream::Upstream;
use crate::ids::TenantId;
use crate::supervisor::Listening;

/// How long one call to an instance may take while attaching.
pub(super) const ATTACH: Duration = Duration::from_secs(2);
/// How long both streams are read: longer than an instance takes to hand an event to all who listen.
const BOTH: Duration = Duration::from_millis(500);
/// How long after that an event that the old stream brought may still come on the new one.
const LATE: Duration = Duration::from_secs(2);
/// When a replacement could not be made, it is tried again after this.
const AGAIN: Duration = Duration::from_secs(1);
/// Events in flight between two streams that are remembered.
const MAX_OVERLAP: usize = 100_000;

/// The hub's end of a link; dropped, the link ends.
pub(super) struct Link {
    pub(super) epoch: u64,
    /// Tells this link from a later one of the same client.
    pub(super) serial: u64,
    pub(super) changes: mpsc::Sender<Change>,
}

/// Other subscriptions for an attached client.
pub(super) struct Change {
    pub(super) topics: Arc<[String]>,
    pub(super) authorization: Option<HeaderValue>,
    pub(super) reply: oneshot::Sender<Result<(), Error>>,
}

/// The task's side.
pub(super) struct Relay {
    pub(super) hub: Arc<Shared>,
    pub(super) client: Arc<Client>,
    pub(super) tenant: TenantId,
    pub(super) epoch: u64,
    pub(super) serial: u64,
    pub(super) current: Upstream,
    pub(super) changes: mpsc::Receiver<Change>,
    pub(super) listening: Listening,
    overlap: Option<(Overlap, Option<Instant>)>,
    spread: f64,
}

impl Relay {
    pub(super) fn new(
        hub: Arc<Shared>,
        client: Arc<Client>,
        (tenant, epoch, serial): (TenantId, u64, u64),
        current: Upstream,
        listening: Listening,
    ) -> (Self, Link) {
        let (sender, changes) = mpsc::channel(1);
        let link = Link { epoch, serial, changes: sender };
        let (overlap, spread) = (None, 0.9 + 0.1 * rand::random::<f64>());
        (Self { hub, client, tenant, epoch, serial, current, changes, listening, overlap, spread }, link)
    }

    /// Passes events on until the hub lets go or the instance's stream ends.
    pub(super) async fn run(mut self) {
        let fault = self.relay().await;
        if let Err(fault) = fault {
            let Self { hub, client, tenant, epoch, serial, current, changes, listening, overlap: _, spread: _ } = self;
            // The connection goes first: the look whether the process lives must not be answered by it.
            drop((current, changes, listening));
            hub.unlinked(&client, &tenant, (epoch, serial), &fault).await;
        }
    }

    async fn relay(&mut self) -> Result<(), Fault> {
        let mut replace_at = self.replace_at();
        loop {
            tokio::select! {
                biased;
                // First, so that what has come is passed on also when the hub has let go.
                event = self.current.next() => {
                    let event = event?;
                    self.pass(Side::New, &event);
                    replace_at = replace_at.max(self.replace_at());
                }
                change = self.changes.recv() => match change {
                    Some(change) => self.change(change).await,
                    None => return Ok(()),
                },
                () = tokio::time::sleep_until(replace_at) => {
                    replace_at = if self.replace().await? { self.replace_at() } else { Instant::now() + AGAIN };
                }
            }
        }
    }

    fn replace_at(&self) -> Instant {
        let config = &self.hub.config;
        // Spread, so that streams that were attached together are not replaced together.
        let soon = |limit: Duration| limit.mul_f64(self.spread);
        let idle = self.current.heard + soon(config.upstream_idle);
        let due = idle.min(self.current.opened + soon(config.upstream_age));
        // What the stream before this one brought may still come on it: another overlap would forget that.
        match &self.overlap {
            Some((_, Some(late))) => due.max(*late),
            _ => due,
        }
    }

    async fn change(&mut self, change: Change) {
        let Change { topics, authorization, reply } = change;
        let call = tokio::time::timeout(ATTACH, self.current.subscribe(authorization, &topics));
        let outcome = call.await.map_or(Err(Error::Unreachable), |outcome| outcome.map_err(Error::from));
        // Whoever asked may have given up; then the client is ended by the hub.
        let _ = reply.send(outcome);
    }

    /// Opens a second stream and drops the first. False when it cannot be done now; the first is kept then.
    async fn replace(&mut self) -> Result<bool, Fault> {
        let lease = self.hub.supervisor.visit(&self.tenant).filter(|lease| lease.epoch() == self.epoch);
        let Some(lease) = lease else { return Ok(false) };
        let Ok((topics, authorization)) = self.hub.credentials(&self.client, &lease) else {
            self.hub.end(&self.client, Reason::Session);
            return Ok(false);
        };
        let opening = Upstream::open(lease.address(), self.client.ip, self.hub.config.max_event_bytes);
        let Ok(Ok(mut fresh)) = self.meanwhile(tokio::time::timeout(ATTACH, opening)).await? else {
            return Ok(false);
        };
        self.overlap = Some((Overlap::default(), None));
        let subscribing = fresh.subscribe(authorization, &topics);
        let subscribed = self.meanwhile(tokio::time::timeout(ATTACH, subscribing)).await?;
        drop(lease);
        if !matches!(subscribed, Ok(Ok(()))) {
            self.overlap = None;
            return Ok(false);
        }
        let until = Instant::now() + BOTH;
        loop {
            tokio::select! {
                // What the old one has brought exists nowhere else.
                biased;
                event = self.current.next() => match event {
                    Ok(event) => self.pass(Side::Old, &event),
                    Err(_) => break,
                },
                event = fresh.next() => {
                    let event = event?;
                    self.pass(Side::New, &event);
                }
                () = tokio::time::sleep_until(until) => break,
            }
        }
        self.current = fresh;
        if let Some((_, late)) = &mut self.overlap {
            *late = Some(Instant::now() + LATE);
        }
        Ok(true)
    }

    /// Waits for `work` and passes on what the current stream brings meanwhile.
    async fn meanwhile<T>(&mut self, work: impl Future<Output = T>) -> Result<T, Fault> {
        let mut work = pin!(work);
        loop {
            tokio::select! {
                done = &mut work => return Ok(done),
                event = self.current.next() => {
                    let event = event?;
                    self.pass(Side::Old, &event);
                }
            }
        }
    }

    fn pass(&mut self, side: Side, event: &Event) {
        let is_first = match &mut self.overlap {
            Some((overlap, None)) => overlap.is_first(side, &event.rest),
            Some((overlap, Some(late))) if Instant::now() < *late => overlap.is_first_after(&event.rest),
            Some(_) => {
                self.overlap = None;
                true
            }
            None => true,
        };
        if self.overlap.as_ref().is_some_and(|(overlap, _)| overlap.len() > MAX_OVERLAP) {
            self.hub.end(&self.client, Reason::Slow);
        }
        if is_first {
            self.hub.deliver(&self.client, event.with_id(&self.client.id));
        }
    }
}
