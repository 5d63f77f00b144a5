//! Upgrading all instances of a template now: a few first, then the others in waves.
//!
//! A rollout is a task of this process and keeps no state of its own beyond its progress: who is at which version is in
//! the version records, so one that was interrupted is resumed by starting it again. One rollout per template at a
//! time. An instance that slept goes back to sleep; one that is in use is drained first, and skipped when it does not
//! fall idle.

use std::collections::BTreeMap;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::time::Instant;

use futures_util::StreamExt;
use futures_util::stream;
use serde::Deserialize;
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use crate::error::Code;
use crate::error::Problem;
use crate::ids::TenantId;
use crate::supervisor::Error;
use crate::supervisor::Priority;
use crate::supervisor::Supervisor;
use crate::supervisor::template;

/// Failures and skipped tenants that are listed; all are counted.
const LISTED: usize = 50;
/// Tenants read from the view at once.
const PAGE: usize = 1_000;

/// How careful a rollout is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Care {
    /// Tenants that are upgraded first; if one of them fails, nothing else happens.
    pub canary: usize,
    /// Tenants per wave after that.
    pub wave: usize,
    /// Failures after which it stops at the end of a wave.
    pub max_failures: usize,
}

/// Where a rollout is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// The first few.
    Canary,
    /// The others.
    Waves,
    /// Everything that could be upgraded is.
    Done,
    /// Somebody stopped it, or pocketfleet is going down.
    Stopped,
    /// Too many failures.
    Failed,
}

/// A tenant that was not upgraded.
#[derive(Debug, Clone, Serialize)]
pub struct Exception {
    /// Which.
    pub tenant: TenantId,
    /// Why.
    pub reason: String,
}

/// What a rollout has come to.
#[derive(Debug, Clone, Serialize)]
pub struct Progress {
    /// The template.
    pub template: String,
    /// The version that it brings.
    pub hash: String,
    /// Where it is.
    pub stage: Stage,
    /// How careful it is.
    pub care: Care,
    /// Tenants to upgrade when it began.
    pub total: usize,
    /// Tenants that have the version now.
    pub upgraded: usize,
    /// Tenants whose upgrade was rolled back.
    pub failed: usize,
    /// Tenants that were busy, or could not be started on any version.
    pub skipped: usize,
    /// The first of those that failed or were skipped.
    pub exceptions: Vec<Exception>,
}

impl Progress {
    /// Whether it still runs.
    pub fn is_running(&self) -> bool {
        matches!(self.stage, Stage::Canary | Stage::Waves)
    }
}

/// Why there is no rollout.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RolloutError {
    /// No such template, or it is broken.
    #[error(transparent)]
    Template(#[from] template::Error),
    /// One runs already.
    #[error("a rollout of this template is running; look at it with `pocketfleet template list`")]
    Running,
    /// None was started since pocketfleet was.
    #[error("no rollout of this template was started")]
    None,
    /// It follows at each start of pocketfleet.
    #[error("the global instance is upgraded when pocketfleet starts; restart it instead")]
    Global,
    /// Numbers that make no sense.
    #[error("a canary and a wave have 1 to 10000 tenants")]
    Care,
}

impl From<RolloutError> for Problem {
    fn from(error: RolloutError) -> Self {
        let code = match error {
            RolloutError::Template(template::Error::Unknown) | RolloutError::None => Code::NotFound,
            RolloutError::Template(template::Error::Broken { .. }) | RolloutError::Running | RolloutError::Global => {
                Code::Conflict
            }
            RolloutError::Care => Code::InvalidRequest,
        };
        Self::new(code).message(error.to_string())
    }
}

/// One rollout, shared by its task and those who look.
#[derive(Debug)]
struct Run {
    progress: Mutex<Progress>,
    stop: CancellationToken,
}

impl Run {
    fn lock(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The last rollout of each template.
#[derive(Debug, Default)]
pub(crate) struct Rollouts(Mutex<BTreeMap<String, Arc<Run>>>);

impl Rollouts {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Run>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What became of one tenant.
enum Outcome {
    Upgraded,
    Failed(String),
    Skipped(String),
    Stopped,
}

impl Supervisor {
    /// Starts a rollout. Its task belongs to the supervisor.
    pub fn roll_out(&self, name: &str, care: Care) -> Result<Progress, RolloutError> {
        if TenantId::global().as_str() == name {
            return Err(RolloutError::Global);
        }
        if !(1..=10_000).contains(&care.canary) || !(1..=10_000).contains(&care.wave) {
            return Err(RolloutError::Care);
        }
        let hash = self.fleet.templates.golden(name)?.hash.clone();
        let mut rollouts = self.fleet.rollouts.lock();
        if rollouts.get(name).is_some_and(|run| run.lock().is_running()) {
            return Err(RolloutError::Running);
        }
        let progress = Progress {
            template: name.to_owned(),
            hash,
            stage: Stage::Canary,
            care,
            total: 0,
            upgraded: 0,
            failed: 0,
            skipped: 0,
            exceptions: Vec::new(),
        };
        let run = Arc::new(Run { progress: Mutex::new(progress.clone()), stop: self.fleet.stopping.child_token() });
        rollouts.insert(name.to_owned(), Arc::clone(&run));
        drop(rollouts);
        let supervisor = self.clone();
        self.fleet.tasks.spawn_on(async move { supervisor.carry_out(&run).await }, &self.fleet.runtime);
        Ok(progress)
    }

    /// The last rollout of a template since pocketfleet started.
    pub fn rollout(&self, name: &str) -> Result<Progress, RolloutError> {
        let rollouts = self.fleet.rollouts.lock();
        rollouts.get(name).map(|run| run.lock().clone()).ok_or(RolloutError::None)
    }

    /// Stops a rollout: upgrades under way are finished, no others begun.
    pub fn stop_rollout(&self, name: &str) -> Result<Progress, RolloutError> {
        let rollouts = self.fleet.rollouts.lock();
        let run = rollouts.get(name).ok_or(RolloutError::None)?;
        run.stop.cancel();
        Ok(run.lock().clone())
    }

    /// Lets an upgrade that failed be tried again: for one tenant, or for all of a template. Returns how many.
    pub async fn retry_upgrades(&self, template: &str, tenant: Option<&TenantId>) -> Result<usize, Error> {
        let mut forgiven = 0;
        let failed = self.fleet.versions.failed(template, usize::MAX);
        for version in failed.iter().filter(|version| tenant.is_none_or(|wanted| version.tenant == *wanted)) {
            forgiven += usize::from(self.fleet.versions.forgive(&version.tenant).await?);
        }
        Ok(forgiven)
    }

    async fn carry_out(&self, run: &Run) {
        let (template, hash, care) = {
            let progress = run.lock();
            (progress.template.clone(), progress.hash.clone(), progress.care)
        };
        let mut queue = self.candidates(&template, &hash).await;
        run.lock().total = queue.len();
        tracing::info!(template.name = template, tenants = queue.len(), "a rollout begins");
        let stage = loop {
            if run.stop.is_cancelled() {
                break Stage::Stopped;
            }
            let (stage, upgraded, failed) = {
                let progress = run.lock();
                (progress.stage, progress.upgraded, progress.failed)
            };
            // Those that could not be tried prove nothing: the canary goes on until enough were.
            let size = if stage == Stage::Canary { care.canary - upgraded.min(care.canary - 1) } else { care.wave };
            if queue.is_empty() {
                break Stage::Done;
            }
            let wave: Vec<TenantId> = queue.drain(..size.min(queue.len())).collect();
            self.wave(run, wave, &hash).await;
            let mut progress = run.lock();
            let allowed = if stage == Stage::Canary { 0 } else { care.max_failures };
            if progress.failed > failed && progress.failed > allowed {
                break Stage::Failed;
            }
            if stage == Stage::Canary && progress.upgraded >= care.canary {
                progress.stage = Stage::Waves;
            }
        };
        let mut progress = run.lock();
        progress.stage = stage;
        tracing::info!(
            template.name = template,
            ?stage,
            upgraded = progress.upgraded,
            failed = progress.failed,
            skipped = progress.skipped,
            "a rollout ended"
        );
    }

    /// Tenants that have run and have another version, those left out that failed at this one.
    async fn candidates(&self, template: &str, hash: &str) -> VecDeque<TenantId> {
        let mut found = VecDeque::new();
        let mut after = None;
        loop {
            let page = self.fleet.tenants.page(after.as_ref(), PAGE);
            let Some(last) = page.last() else { return found };
            after = Some(last.id.clone());
            let supervisor = self.clone();
            let (template, hash) = (template.to_owned(), hash.to_owned());
            let work = move || {
                let wanted = |id: &TenantId| match supervisor.fleet.versions.find(id) {
                    Some(version) => version.hash != hash && !version.has_failed(&hash),
                    None => supervisor.version_on_disk(id).is_some_and(|has| has != hash),
                };
                let of_it = page.iter().filter(|tenant| tenant.template == template && !tenant.suspended);
                of_it.map(|tenant| tenant.id.clone()).filter(wanted).collect::<Vec<_>>()
            };
            // Folders are looked into where there is no record yet.
            found.extend(tokio::task::spawn_blocking(work).await.unwrap_or_default());
        }
    }

    async fn wave(&self, run: &Run, wave: Vec<TenantId>, hash: &str) {
        let width = std::thread::available_parallelism().map_or(2, std::num::NonZero::get).max(2);
        stream::iter(wave)
            .for_each_concurrent(width, |tenant| async move {
                let outcome = if run.stop.is_cancelled() {
                    Outcome::Stopped
                } else {
                    self.fleet.upgrades.asked.insert(tenant.clone());
                    let outcome = Box::pin(self.upgrade_now(&tenant, hash)).await;
                    self.fleet.upgrades.asked.remove(&tenant);
                    outcome
                };
                let mut progress = run.lock();
                let reason = match outcome {
                    Outcome::Upgraded => {
                        progress.upgraded += 1;
                        return;
                    }
                    Outcome::Stopped => return,
                    Outcome::Failed(reason) => {
                        progress.failed += 1;
                        reason
                    }
                    Outcome::Skipped(reason) => {
                        progress.skipped += 1;
                        reason
                    }
                };
                if progress.exceptions.len() < LISTED {
                    progress.exceptions.push(Exception { tenant, reason });
                }
            })
            .await;
    }

    /// Puts an instance to sleep if it is awake, wakes it, and looks at what version it came up with.
    async fn upgrade_now(&self, tenant: &TenantId, hash: &str) -> Outcome {
        let was_awake = self.status(tenant).is_ok_and(|status| status.pid.is_some());
        if was_awake && let Err(error) = self.sleep(tenant).await {
            return Outcome::Skipped(error.to_string());
        }
        let config = &self.fleet.config;
        let deadline = Instant::now() + config.upgrade_timeout + config.start_timeout * 2 + config.stop_timeout;
        loop {
            match self.lease(tenant, Priority::Background).await {
                Ok(lease) => {
                    drop(lease);
                    break;
                }
                // The wait of a request is shorter than an upgrade may be.
                Err(Error::WakeTimeout) if Instant::now() < deadline => {}
                Err(Error::ShuttingDown) => return Outcome::Stopped,
                Err(error) => return Outcome::Skipped(error.to_string()),
            }
        }
        // Whoever uses it meanwhile keeps it awake, and it sleeps by itself later.
        if !was_awake && self.fleet.tenants.find(tenant).is_none_or(|tenant| !tenant.pinned) {
            drop(self.sleep(tenant).await);
        }
        let version = self.fleet.versions.find(tenant);
        match version.as_ref().and_then(|version| version.failed.as_ref()) {
            _ if version.as_ref().is_some_and(|version| version.hash == hash) => Outcome::Upgraded,
            Some(failed) if failed.hash == hash && !failed.outside => Outcome::Failed(failed.reason.clone()),
            Some(failed) if failed.hash == hash => Outcome::Skipped(failed.reason.clone()),
            _ => Outcome::Skipped("it was started by somebody else before the upgrade; try again".to_owned()),
        }
    }
}
