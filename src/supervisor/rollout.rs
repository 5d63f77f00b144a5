//! Upgrading all instances of a template, or all that can have a version of `PocketBase`, now: a few first, then the
//! others in waves.
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
use crate::store::tenants::Tenant;
use crate::supervisor::Error;
use crate::supervisor::Priority;
use crate::supervisor::Supervisor;
use crate::supervisor::choice;
use crate::supervisor::config::Binaries;
use crate::supervisor::config::is_older;
use crate::supervisor::config::is_pinned_to;
use crate::supervisor::snapshot;
use crate::supervisor::template;
use crate::supervisor::template::Golden;

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
    /// The template; `pocketbase` for a rollout of a version of `PocketBase` to all.
    pub template: String,
    /// The version that it brings: a template's hash, or a version of `PocketBase`.
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
    /// Nothing is made with this version.
    #[error(
        "no template is made with PocketBase {0}: list its binary in pocketbase.binaries and restart or reload pocketfleet; `pocketfleet pocketbase list` shows what there is"
    )]
    Version(String),
    /// Numbers that make no sense.
    #[error("a canary and a wave have 1 to 10000 tenants")]
    Care,
}

impl From<RolloutError> for Problem {
    fn from(error: RolloutError) -> Self {
        let code = match error {
            RolloutError::Template(template::Error::Unknown) | RolloutError::None | RolloutError::Version(_) => {
                Code::NotFound
            }
            RolloutError::Template(template::Error::Broken { .. }) | RolloutError::Running | RolloutError::Global => {
                Code::Conflict
            }
            RolloutError::Care => Code::InvalidRequest,
        };
        Self::new(code).message(error.to_string())
    }
}

/// Under which the rollout of a version of `PocketBase` is kept: no template has such a name.
pub const POCKETBASE: &str = "pocketbase:";

/// Whom a rollout is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scope {
    /// The tenants of a template.
    Template,
    /// Everybody whose template is made with a version of `PocketBase`.
    PocketBase,
}

/// One rollout, shared by its task and those who look.
#[derive(Debug)]
struct Run {
    scope: Scope,
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
        self.begin(name, name, hash, care)
    }

    /// Starts a rollout of a version of `PocketBase` to all instances whose template is made with it, the global instance
    /// last.
    pub fn roll_out_pocketbase(&self, version: &str, care: Care) -> Result<Progress, RolloutError> {
        if !(1..=10_000).contains(&care.canary) || !(1..=10_000).contains(&care.wave) {
            return Err(RolloutError::Care);
        }
        let templates = &self.fleet.templates;
        let is_made = |name: &String| templates.golden(name).is_ok_and(|golden| golden.pocketbase == version);
        if !templates.names().iter().any(is_made) {
            return Err(RolloutError::Version(version.to_owned()));
        }
        self.begin(POCKETBASE, "pocketbase", version.to_owned(), care)
    }

    fn begin(&self, key: &str, name: &str, hash: String, care: Care) -> Result<Progress, RolloutError> {
        let mut rollouts = self.fleet.rollouts.lock();
        if rollouts.get(key).is_some_and(|run| run.lock().is_running()) {
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
        let scope = if key == POCKETBASE { Scope::PocketBase } else { Scope::Template };
        let stop = self.fleet.stopping.child_token();
        let run = Arc::new(Run { scope, progress: Mutex::new(progress.clone()), stop });
        rollouts.insert(key.to_owned(), Arc::clone(&run));
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

    /// How many instances that have run are at which version of `PocketBase`; `unknown` where it was not noted. One pass
    /// over memory.
    pub fn pocketbase_counts(&self) -> BTreeMap<String, usize> {
        let mut counts = BTreeMap::new();
        for (hash, count) in self.fleet.versions.counts().into_values().flatten() {
            let version = self.fleet.templates.pocketbase_of(&hash).unwrap_or("unknown");
            *counts.entry(version.to_owned()).or_default() += count;
        }
        counts
    }

    /// The binaries of `PocketBase`, newest first.
    pub fn binaries(&self) -> &Binaries {
        &self.fleet.binaries
    }

    /// Keeps an instance at a version of `PocketBase` (or all that begin with these numbers), or lets it follow again. It
    /// gets no changes of its template meanwhile that are made with another version. False where it never ran.
    pub async fn pin_pocketbase(&self, tenant: &TenantId, pin: Option<&str>) -> Result<bool, Error> {
        self.fleet.tenants.find(tenant).ok_or(Error::UnknownTenant)?;
        Ok(self.fleet.versions.pin(tenant, pin).await?)
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
        let mut queue = self.candidates(run.scope, &template, &hash).await;
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
            let wave: Vec<_> = queue.drain(..size.min(queue.len())).collect();
            self.wave(run, wave).await;
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

    /// Tenants that have run and have another version, with the one they are to get. Left out are those that failed at
    /// it, that are kept at another version of `PocketBase`, or that have a newer one.
    async fn candidates(&self, scope: Scope, name: &str, version: &str) -> VecDeque<(TenantId, String)> {
        let templates = &self.fleet.templates;
        let mut targets = BTreeMap::new();
        for template in templates.names() {
            let Ok(golden) = templates.golden(&template) else { continue };
            let is_meant = match scope {
                Scope::Template => template == name,
                Scope::PocketBase => golden.pocketbase == version,
            };
            if is_meant {
                targets.insert(template, golden);
            }
        }
        let targets = Arc::new(targets);
        let mut found = VecDeque::new();
        let mut after = None;
        loop {
            let page = self.fleet.tenants.page(after.as_ref(), PAGE);
            let Some(last) = page.last() else {
                // What everybody needs comes when the others have shown that it works.
                let global = found.iter().position(|(tenant, _): &(TenantId, String)| tenant.is_global());
                let global = global.and_then(|at| found.remove(at));
                found.extend(global);
                return found;
            };
            after = Some(last.id.clone());
            let (supervisor, targets) = (self.clone(), Arc::clone(&targets));
            let work = move || {
                let wanted = |tenant: &Arc<Tenant>| {
                    let golden = targets.get(&tenant.template).filter(|_| !tenant.suspended)?;
                    supervisor.may_become(&tenant.id, golden).then(|| (tenant.id.clone(), golden.hash.clone()))
                };
                page.iter().filter_map(wanted).collect::<Vec<_>>()
            };
            // Folders are looked into where there is no record yet.
            found.extend(tokio::task::spawn_blocking(work).await.unwrap_or_default());
        }
    }

    fn may_become(&self, id: &TenantId, golden: &Golden) -> bool {
        let record = self.fleet.versions.find(id);
        let on_disk = || self.version_on_disk(id).ok().flatten();
        let Some(has) = record.as_ref().map_or_else(on_disk, |record| Some(record.hash.clone())) else { return false };
        // What cannot be read at the moment is not chosen; its own start says why.
        let Ok(noted) = snapshot::pocketbase(&self.fleet.folder(id)) else { return false };
        let pin = record.as_ref().and_then(|record| record.pin.as_deref());
        let made = self.fleet.templates.pocketbase_of(&has).unwrap_or_default();
        let data = self.fleet.binaries.known_or_newest(choice::newer(made, noted));
        has != golden.hash
            && !record.as_ref().is_some_and(|record| record.has_failed(&golden.hash))
            && pin.is_none_or(|pin| is_pinned_to(&golden.pocketbase, pin))
            && !is_older(&golden.pocketbase, &data)
    }

    async fn wave(&self, run: &Run, wave: Vec<(TenantId, String)>) {
        let width = std::thread::available_parallelism().map_or(2, std::num::NonZero::get).max(2);
        stream::iter(wave)
            .for_each_concurrent(width, |(tenant, hash)| async move {
                let outcome = if run.stop.is_cancelled() {
                    Outcome::Stopped
                } else {
                    self.fleet.upgrades.asked.insert(tenant.clone());
                    let outcome = Box::pin(self.upgrade_now(&tenant, &hash)).await;
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
