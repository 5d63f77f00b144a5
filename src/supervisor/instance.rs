//! The task that owns one instance. Everything that changes it passes through here, one thing at a time.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::Instant;

use tokio::sync::mpsc;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::supervisor::Awakening;
use crate::supervisor::Error;
use crate::supervisor::busy::Busy;
use crate::supervisor::fleet::Admission;
use crate::supervisor::fleet::Fleet;
use crate::supervisor::freeze::Frost;
use crate::supervisor::launch;
use crate::supervisor::launch::Launched;
use crate::supervisor::logs;
use crate::supervisor::process::Process;
use crate::supervisor::roster;
use crate::supervisor::slot::Command;
use crate::supervisor::slot::Phase;
use crate::supervisor::slot::Running;
use crate::supervisor::slot::Slot;
use crate::supervisor::slot::View;
use crate::supervisor::slot::Work;
use crate::supervisor::state::Action;
use crate::supervisor::state::Event;
use crate::supervisor::state::Failure;
use crate::supervisor::state::Machine;
use crate::supervisor::state::Recovery;
use crate::supervisor::state::State;
use crate::telemetry::ReasonLabels;

/// How long a sleeping instance without a past worth remembering keeps its slot.
const FORGET_AFTER: Duration = Duration::from_secs(30);
/// Lines of the log that go into a failure report.
const REPORT_LINES: usize = 12;
/// How long an instance with open event streams stays after its last use: what it has to say of the last write comes
/// out after the answer to it.
const LAST_EVENTS: Duration = Duration::from_millis(150);

/// A process with what belongs to it.
#[derive(Debug)]
pub(crate) struct Occupied {
    pub(crate) process: Process,
    pub(crate) running: Arc<Running>,
    pub(crate) admission: Admission,
}

/// The owner of one instance.
#[derive(Debug)]
pub(crate) struct Instance {
    pub(super) fleet: Arc<Fleet>,
    pub(super) slot: Arc<Slot>,
    inbox: mpsc::Receiver<Command>,
    machine: Machine,
    pub(super) occupied: Option<Occupied>,
    pub(super) misses: u32,
    pub(super) busy: Busy,
    pub(super) probe_at: Instant,
    /// When its log was last looked at.
    pub(super) rotated_at: Instant,
    /// When its CPU time and its health were last looked at.
    pub(super) looked_at: Instant,
    /// What freezing it depends on.
    pub(super) frost: Frost,
    since: Instant,
    restarts: u64,
    last_log: Vec<String>,
    /// Who asked for the sleep under way.
    sleeper: Option<oneshot::Sender<Result<(), Error>>>,
    /// Nobody's wish keeps it: its tenant was deleted.
    is_retiring: bool,
    /// The drain under way ends with a stop, whoever wants the instance meanwhile.
    must_stop: bool,
    stop: CancellationToken,
}

impl Instance {
    /// An instance without a process.
    pub(crate) fn asleep(fleet: Arc<Fleet>, slot: Arc<Slot>, inbox: mpsc::Receiver<Command>) -> Self {
        Self::new(fleet, slot, inbox, State::Asleep, None)
    }

    /// An instance whose process an earlier pocketfleet started and this one has checked.
    pub(crate) fn adopted(
        fleet: Arc<Fleet>,
        slot: Arc<Slot>,
        inbox: mpsc::Receiver<Command>,
        occupied: Occupied,
    ) -> Self {
        slot.open(Arc::clone(&occupied.running));
        announce(&fleet, &slot, &occupied.running);
        let mut instance = Self::new(fleet, slot, inbox, State::Awake, Some(occupied));
        instance.publish();
        instance
    }

    fn new(
        fleet: Arc<Fleet>,
        slot: Arc<Slot>,
        inbox: mpsc::Receiver<Command>,
        state: State,
        occupied: Option<Occupied>,
    ) -> Self {
        let is_global = slot.tenant.is_global();
        let recovery = if is_global { Recovery::Periodic } else { Recovery::Manual };
        let stop = if is_global { fleet.stopping_global.clone() } else { fleet.stopping.clone() };
        let now = Instant::now();
        Self {
            machine: Machine::new(state, fleet.policy(), recovery),
            fleet,
            slot,
            inbox,
            occupied,
            misses: 0,
            busy: Busy::default(),
            probe_at: now,
            rotated_at: now,
            looked_at: now,
            frost: Frost::new(now),
            since: now,
            restarts: 0,
            last_log: Vec::new(),
            sleeper: None,
            is_retiring: false,
            must_stop: false,
            stop,
        }
    }

    /// Owns the instance until it is forgotten or pocketfleet goes down.
    pub(crate) async fn run(mut self) {
        loop {
            let timer = tokio::time::sleep_until(self.timer().into());
            let stop = self.stop.clone();
            tokio::select! {
                biased;
                () = exited(self.occupied.as_ref()) => {
                    let failure = self.buried().await;
                    self.feed(Event::Failed(failure)).await;
                }
                () = stop.cancelled() => return self.go_down().await,
                Some(command) = self.inbox.recv() => self.obey(command).await,
                () = self.slot.want.notified() => self.feed(Event::Wanted).await,
                () = timer => {
                    if self.on_timer().await.is_break() {
                        return;
                    }
                }
            }
        }
    }

    async fn obey(&mut self, command: Command) {
        match command {
            Command::Release(reply) => {
                self.feed(Event::Released).await;
                if self.is_kept_awake() {
                    self.feed(Event::Wanted).await;
                }
                // Whoever asked may have gone; the release stands.
                let _ = reply.send(());
            }
            Command::Retire(reply) => {
                self.is_retiring = true;
                self.feed(Event::SleepAsked).await;
                self.feed(Event::Released).await;
                self.is_retiring = false;
                // Whoever asked may have gone; it is stopped all the same.
                let _ = reply.send(());
            }
            Command::Enroll(reply) => {
                self.thaw_for_an_errand().await;
                if let Some(occupied) = &self.occupied {
                    roster::follow(&self.fleet, &self.slot.tenant, &occupied.running).await;
                }
                // Whoever asked may have gone; the rows are in step.
                let _ = reply.send(());
            }
            Command::Alone(work, reply) => {
                if reply.is_closed() {
                    return;
                }
                let outcome = self.alone(work, &reply).await;
                // Whoever asked may have gone; what was done is done.
                let _ = reply.send(outcome);
            }
            Command::Sleep(reply) => {
                // One who gave up waiting does not want it any more.
                if reply.is_closed() {
                    return;
                }
                if self.occupied.is_none() {
                    drop(reply.send(Ok(())));
                    return;
                }
                self.sleeper = Some(reply);
                self.feed(Event::SleepAsked).await;
                self.answer_sleeper(Ok(()));
            }
        }
    }

    /// Stops the process, does the work, and forgets earlier failures: the folder is another one now.
    /// One who gave up while it drained does not want it any more.
    async fn alone(&mut self, work: Work, reply: &oneshot::Sender<Result<(), Error>>) -> Result<(), Error> {
        if self.occupied.is_some() {
            self.must_stop = true;
            self.feed(Event::SleepAsked).await;
            self.must_stop = false;
        }
        if self.occupied.is_some() {
            return Err(Error::TenantBusy);
        }
        let outcome = if reply.is_closed() {
            // What it would have put in place goes with it.
            drop(work);
            Err(Error::TenantBusy)
        } else {
            self.fleet.changes.note_start(&self.slot.tenant);
            self.fleet.changes.note_rewrite(&self.slot.tenant);
            work.0.await
        };
        self.feed(Event::Released).await;
        if self.is_kept_awake() {
            self.feed(Event::Wanted).await;
        }
        outcome
    }

    fn answer_sleeper(&mut self, outcome: Result<(), Error>) {
        if let Some(reply) = self.sleeper.take() {
            drop(reply.send(outcome));
        }
    }

    /// Feeds an event and carries out what follows, until the machine rests.
    pub(super) async fn feed(&mut self, event: Event) {
        let mut next = Some(event);
        while let Some(event) = next {
            let before = self.machine.state().clone();
            let action = self.machine.on(event, Instant::now(), rand::random());
            if *self.machine.state() == before {
                return;
            }
            let mut goes_on = true;
            match action {
                Action::Open => {
                    if let Some(occupied) = &self.occupied {
                        self.slot.open(Arc::clone(&occupied.running));
                        announce(&self.fleet, &self.slot, &occupied.running);
                    }
                    self.is_healthy_now();
                }
                Action::Thaw => goes_on = self.thaw(),
                Action::Freeze => self.slot.waver(),
                Action::Drain | Action::Bury => self.slot.close(),
                Action::Start | Action::Terminate | Action::Rest => {}
            }
            self.since = Instant::now();
            self.publish();
            next = match action {
                Action::Start => Some(self.start().await),
                Action::Drain => Some(self.drain().await),
                Action::Terminate => Some(self.terminate().await),
                Action::Freeze => self.freeze().await,
                Action::Thaw if !goes_on => Some(Event::Failed(self.buried().await)),
                Action::Rest | Action::Open | Action::Thaw | Action::Bury => None,
            };
        }
    }

    /// From here on its answers are counted anew.
    pub(super) fn is_healthy_now(&mut self) {
        self.misses = 0;
        self.probe_at = Instant::now() + self.probe_interval();
        self.looked_at = Instant::now();
    }

    async fn start(&mut self) -> Event {
        self.fleet.changes.note_start(&self.slot.tenant);
        let log_start = logs::length(&self.fleet.folder(&self.slot.tenant));
        let outcome = Box::pin(launch::launch(&self.fleet, &self.slot, &self.stop)).await;
        self.fleet.stand_by();
        match outcome {
            Ok(Launched { occupied, took }) => {
                tracing::info!(
                    tenant.id = %self.slot.tenant,
                    instance.pid = occupied.process.identity().pid,
                    instance.address = %occupied.running.address,
                    instance.epoch = occupied.running.epoch,
                    duration_ms = took.as_millis(),
                    "instance is awake"
                );
                self.occupied = Some(occupied);
                self.busy = Busy::default();
                self.frost = Frost::new(Instant::now());
                Event::Ready
            }
            Err(failure) => Event::Failed(self.report(failure, log_start)),
        }
    }

    /// Notes a failure for operators and says it once in the log.
    pub(super) fn report(&mut self, failure: Failure, log_start: u64) -> Failure {
        let (reason, label) = match &failure {
            Failure::Crash(reason) | Failure::Unclear(reason) => (reason, "crash"),
            Failure::Fatal(reason) => (reason, "fatal"),
            Failure::Outside(reason, _) => (reason, "outside"),
            Failure::NoRoom | Failure::Suspended => return failure,
        };
        if self.stop.is_cancelled() {
            return failure;
        }
        self.last_log = logs::tail_since(&self.fleet.folder(&self.slot.tenant), log_start, REPORT_LINES);
        self.fleet.metrics.exits.get_or_create(&ReasonLabels { reason: label }).inc();
        self.fleet.restarts.fetch_add(1, Ordering::Relaxed);
        self.restarts += 1;
        tracing::warn!(tenant.id = %self.slot.tenant, kind = label, reason = %reason, "instance failed");
        failure
    }

    /// After its exit was seen: reaps, releases, classifies.
    async fn buried(&mut self) -> Failure {
        self.melt();
        let Some(occupied) = self.occupied.take() else { return Failure::Crash("ended".to_owned()) };
        self.slot.close();
        self.slot.forget_prediction();
        let (epoch, log_start) = (occupied.running.epoch, occupied.running.log_start);
        let exit = occupied.process.bury();
        let failure = launch::judge(&self.fleet, &self.slot.tenant, exit, log_start);
        launch::release(&self.fleet, &self.slot.tenant, epoch).await;
        drop(occupied.admission);
        self.report(failure, log_start)
    }

    /// Lets requests finish. Someone who wants the instance meanwhile keeps it, and so does a request that does not
    /// finish in time: an idle stop never cuts anybody.
    async fn drain(&mut self) -> Event {
        let deadline = tokio::time::Instant::now() + self.fleet.config.drain_timeout;
        loop {
            let mut look_again = deadline;
            if self.slot.in_flight() == 0 {
                let unused = self.slot.unused_for();
                if !self.slot.has_listeners() || unused >= LAST_EVENTS {
                    return Event::Drained;
                }
                look_again = tokio::time::Instant::now() + LAST_EVENTS.saturating_sub(unused);
            }
            tokio::select! {
                biased;
                () = exited(self.occupied.as_ref()) => return Event::Failed(self.buried().await),
                () = self.slot.idle.notified() => {}
                () = self.stop.cancelled() => return Event::Drained,
                () = self.slot.want.notified(), if !self.is_retiring && !self.must_stop => {
                    self.answer_sleeper(Err(Error::TenantBusy));
                    return Event::Wanted;
                }
                () = tokio::time::sleep_until(look_again) => {
                    if self.slot.in_flight() == 0 {
                        continue;
                    }
                    if self.is_retiring || self.must_stop {
                        return Event::Drained;
                    }
                    self.answer_sleeper(Err(Error::TenantBusy));
                    return Event::Wanted;
                }
            }
        }
    }

    async fn terminate(&mut self) -> Event {
        self.melt();
        if let Some(occupied) = self.occupied.take() {
            let epoch = occupied.running.epoch;
            self.slot.note_stop(epoch);
            self.slot.forget_prediction();
            let exit = occupied.process.stop(self.fleet.config.stop_timeout).await;
            launch::release(&self.fleet, &self.slot.tenant, epoch).await;
            drop(occupied.admission);
            tracing::info!(tenant.id = %self.slot.tenant, %exit, "instance sleeps");
        }
        Event::Gone
    }

    /// The way down: what is in flight gets the drain time, then the process stops. The route stays closed.
    async fn go_down(mut self) {
        self.slot.close();
        if self.fleet.is_leaving.load(Ordering::SeqCst) {
            return self.let_go();
        }
        let deadline = tokio::time::Instant::now() + self.fleet.config.drain_timeout;
        while self.occupied.is_some() && self.slot.in_flight() > 0 {
            if tokio::time::timeout_at(deadline, self.slot.idle.notified()).await.is_err() {
                break;
            }
        }
        self.terminate().await;
        self.answer_sleeper(Ok(()));
        self.slot.phase.send_replace(Phase::Refusing { error: Error::ShuttingDown, until: None });
    }

    /// The process goes on, and its record says so: a successor adopts it.
    fn let_go(mut self) {
        drop(self.occupied.take());
        self.answer_sleeper(Err(Error::ShuttingDown));
        self.slot.phase.send_replace(Phase::Refusing { error: Error::ShuttingDown, until: None });
    }

    /// When something is due without anybody asking.
    fn timer(&self) -> Instant {
        match self.machine.state() {
            State::Awake => {
                let due = self.probe_at.min(self.sleep_at());
                self.freeze_at().map_or(due, |at| at.min(due))
            }
            State::Frozen => self.sleep_at(),
            State::Backoff { until, .. } => *until,
            State::Quarantined { retry_at: Some(at), .. }
            | State::Blocked { retry_at: at, .. }
            | State::Crowded { retry_at: at } => *at,
            _ => (self.since + FORGET_AFTER).max(Instant::now()),
        }
    }

    fn sleep_at(&self) -> Instant {
        let idle = self.fleet.config.idle_timeout;
        Instant::now() + idle.saturating_sub(self.slot.unused_for())
    }

    async fn on_timer(&mut self) -> std::ops::ControlFlow<()> {
        let now = Instant::now();
        match self.machine.state() {
            State::Awake | State::Frozen => {
                if self.slot.unused_for() >= self.fleet.config.idle_timeout {
                    if self.may_sleep() {
                        self.feed(Event::SleepAsked).await;
                    } else {
                        self.slot.touch();
                    }
                } else if *self.machine.state() == State::Frozen {
                    // Its time is not up yet.
                } else if self.freeze_at().is_some_and(|at| at <= Instant::now()) {
                    self.freeze_if_idle().await;
                } else if self.probe_at <= now {
                    self.probe().await;
                }
            }
            State::Blocked { .. } if self.is_kept_awake() => self.feed(Event::Wanted).await,
            State::Backoff { .. }
            | State::Quarantined { retry_at: Some(_), .. }
            | State::Blocked { .. }
            | State::Crowded { .. } => self.feed(Event::Elapsed).await,
            State::Asleep if self.machine.is_forgettable(now) && self.fleet.forget(&self.slot.tenant) => {
                return std::ops::ControlFlow::Break(());
            }
            _ => self.since = now,
        }
        std::ops::ControlFlow::Continue(())
    }

    fn may_sleep(&self) -> bool {
        !self.is_kept_awake() && !self.fleet.is_spare(&self.slot.tenant) && self.slot.in_flight() == 0
    }

    pub(super) fn is_kept_awake(&self) -> bool {
        self.slot.tenant.is_global() || self.fleet.tenants.find(&self.slot.tenant).is_some_and(|tenant| tenant.pinned)
    }

    /// Tells waiters and operators where the instance is.
    fn publish(&mut self) {
        let (phase, reason, until) = match self.machine.state() {
            State::Asleep | State::Starting | State::Frozen | State::Draining | State::Stopping => {
                (Phase::Pending, None, None)
            }
            State::Awake => (Phase::Open, None, None),
            State::Backoff { until, reason } => {
                let error = Error::Backoff { retry_after: Duration::ZERO, reason: reason.clone() };
                // Waiters are refused while it lasts; the start that follows is ours to make, not theirs.
                (Phase::Refusing { error, until: Some(*until) }, Some(reason.clone()), Some(*until))
            }
            State::Quarantined { reason, retry_at } => {
                let error = Error::Quarantined { reason: reason.clone() };
                (Phase::Refusing { error, until: None }, Some(reason.clone()), *retry_at)
            }
            State::Blocked { reason, retry_at } => {
                let error = Error::Blocked { reason: reason.clone() };
                (Phase::Refusing { error, until: Some(*retry_at) }, Some(reason.clone()), Some(*retry_at))
            }
            State::Crowded { retry_at } => {
                (Phase::Refusing { error: Error::Capacity, until: Some(*retry_at) }, None, None)
            }
            State::Suspended => (Phase::Refusing { error: Error::Suspended, until: None }, None, None),
        };
        let phase =
            if self.stop.is_cancelled() { Phase::Refusing { error: Error::ShuttingDown, until: None } } else { phase };
        self.slot.view.store(Arc::new(View {
            state: self.machine.state().name(),
            last_log: if reason.is_some() { self.last_log.clone() } else { Vec::new() },
            reason,
            pid: self.occupied.as_ref().map(|occupied| occupied.process.identity().pid),
            until,
            restarts: self.restarts,
            cpu_percent: self.occupied.as_ref().and(self.busy.percent),
            is_burning: self.occupied.is_some() && self.busy.is_burning(),
        }));
        self.slot.phase.send_replace(phase);
    }
}

impl Drop for Instance {
    /// On every way out, a panic included: nobody must find a route or a mailbox that no task stands behind. A
    /// process that were left running holds its lock, and the next start finds and stops it.
    fn drop(&mut self) {
        self.slot.close();
        self.fleet.registry.remove_if(&self.slot.tenant, |_, slot| Arc::ptr_eq(slot, &self.slot));
    }
}

/// Tells whoever follows that the route is open. Nobody may.
pub(super) fn announce(fleet: &Fleet, slot: &Slot, running: &Running) {
    let _ = fleet.awakenings.send(Awakening { tenant: slot.tenant.clone(), epoch: running.epoch });
}

/// Resolves when the process has exited; never, when there is none.
async fn exited(occupied: Option<&Occupied>) {
    match occupied {
        Some(occupied) => occupied.process.exited().await,
        None => std::future::pending().await,
    }
}
