//! Bringing an instance to the version that its template has today, as part of a start.
//!
//! The steps: copy its data (`snapshot`), run the migrations through the jailer under the directory's lock, replace
//! what the migrations made the same in every instance, serve it with the new hooks until the authenticated health
//! check passes, note the new version. Any failure puts the copy back and starts what was there before, so whoever
//! woke the instance is served either way. A failure of the instance's own is remembered and not tried again for the
//! same version; one from outside (a full disk) is tried again after a while, and so is one that may be either's (it was
//! not ready in time), a few times.
//!
//! Invariants: no request reaches an upgraded instance before its version is on disk, so rolling back loses nothing; an
//! interrupted upgrade is rolled back before anything else is done with the directory.

use std::net::Ipv4Addr;
use std::net::SocketAddr;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use dashmap::DashMap;
use dashmap::DashSet;
use serde_json::json;
use time::OffsetDateTime;
use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;

use crate::failpoint;
use crate::ids::TenantId;
use crate::pocketbase::database;
use crate::pocketbase::database::Durability;
use crate::pocketbase::schema;
use crate::pocketbase::schema::Shared;
use crate::store::tenants::Kind;
use crate::store::tenants::Tenant;
use crate::store::versions::FailedUpgrade;
use crate::supervisor::Priority;
use crate::supervisor::bake;
use crate::supervisor::choice;
use crate::supervisor::config::UpgradePolicy;
use crate::supervisor::config::is_older;
use crate::supervisor::config::is_pinned_to;
use crate::supervisor::confine::Confinement;
use crate::supervisor::fleet::Fleet;
use crate::supervisor::jail;
use crate::supervisor::launch;
use crate::supervisor::launch::outside;
use crate::supervisor::logs;
use crate::supervisor::owner;
use crate::supervisor::process::Exit;
use crate::supervisor::process::Process;
use crate::supervisor::process::Runs;
use crate::supervisor::replace;
use crate::supervisor::slot::Running;
use crate::supervisor::snapshot;
use crate::supervisor::snapshot::Step;
use crate::supervisor::starts::StartGate;
use crate::supervisor::state::Failure;
use crate::supervisor::template::Golden;
use crate::supervisor::template::chain;

/// How long after something outside was in the way the upgrade is tried again.
const OUTSIDE_RETRY: time::Duration = time::Duration::minutes(5);
/// Log lines in the reason of a failure, and their most characters in all.
const REASON_LINES: usize = 6;
const REASON_CHARACTERS: usize = 1_000;
/// Failures in a row that may be the machine's, before they count as the instance's own.
const MAX_UNCLEAR: u32 = 3;
/// News of upgrades that a slow listener may be behind.
const NEWS: usize = 1_024;

/// What the fleet keeps about upgrades.
#[derive(Debug)]
pub(crate) struct Upgrades {
    policy: UpgradePolicy,
    /// Tenants that a rollout upgrades now, whatever the policy.
    pub(crate) asked: DashSet<TenantId>,
    pub(crate) done: broadcast::Sender<TenantId>,
    /// Upgrades at once: a start gives its place back long before the steps of an upgrade are through.
    gate: StartGate,
    /// Failures in a row that may be the machine's, and the version that was tried.
    unclear: DashMap<TenantId, (String, u32)>,
}

impl Upgrades {
    pub(crate) fn new(policy: UpgradePolicy) -> Self {
        let cores = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
        // Fewer than starts are let through at once where there are two cores and more: a client's finds a place.
        let (gate, unclear) = (StartGate::new(cores.max(2)), DashMap::new());
        Self { policy, asked: DashSet::new(), done: broadcast::Sender::new(NEWS), gate, unclear }
    }

    /// Counts a failure that may be the machine's. Whether it is one too many.
    fn is_too_often(&self, tenant: &TenantId, hash: &str) -> bool {
        let mut entry = self.unclear.entry(tenant.clone()).or_default();
        if entry.0 != hash {
            *entry = (hash.to_owned(), 0);
        }
        entry.1 += 1;
        entry.1 >= MAX_UNCLEAR
    }
}

/// Why an upgrade did not happen.
#[derive(Debug)]
enum Trouble {
    /// The template's or the instance's own doing.
    Own(String),
    /// Something else; another time it may work.
    Outside(String),
    /// Either's.
    Unclear(String),
    /// The server is going down.
    Stopping,
    /// The data could not be put back. Nothing may be started on it.
    Stuck(String),
}

impl From<Failure> for Trouble {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Crash(reason) | Failure::Fatal(reason) => Self::Own(reason),
            Failure::Unclear(reason) => Self::Unclear(reason),
            Failure::Outside(reason, _) => Self::Outside(reason),
            Failure::NoRoom | Failure::Suspended => Self::Outside("it was refused".to_owned()),
        }
    }
}

/// Starts an instance: on its template's present version where that is due and works, else on the one it has.
pub(crate) async fn start(
    fleet: &Arc<Fleet>,
    tenant: &Arc<Tenant>,
    golden: &Arc<Golden>,
    stop: &CancellationToken,
) -> Result<(Process, Running), Failure> {
    let folder = fleet.folder(&tenant.id);
    if replace::is_pending(&folder) {
        fleet.changes.note_rewrite(&tenant.id);
        unlocked(fleet, &folder).await.map_err(outside)?;
        blocking(&folder, replace::finish).await.map_err(|why| outside(format!("finish its restore: {why}")))?;
    }
    if snapshot::is_pending(&folder) {
        fleet.changes.note_rewrite(&tenant.id);
        recover(fleet, tenant, &folder).await.map_err(outside)?;
    }
    let has = snapshot::version(&folder).map_err(|error| outside(format!("read its version: {error}")))?;
    if let Some(upgrade) = due(fleet, tenant, (has.as_deref(), golden), stop).map_err(outside)? {
        match Box::pin(upgrade.run()).await {
            Ok(started) => return Ok(started),
            Err(Trouble::Stopping) => return Err(outside("the server is shutting down")),
            Err(Trouble::Stuck(reason)) => return Err(outside(reason)),
            // Rolled back and noted.
            Err(Trouble::Own(_) | Trouble::Outside(_) | Trouble::Unclear(_)) => {}
        }
    }
    let started = Box::pin(launch::attempts(fleet, tenant, golden, stop)).await?;
    note(fleet, tenant, has.unwrap_or_else(|| golden.hash.clone()));
    Ok(started)
}

/// The upgrade that is to be made now, if any.
fn due<'a>(
    fleet: &'a Arc<Fleet>,
    tenant: &'a Arc<Tenant>,
    (has, now): (Option<&str>, &Golden),
    stop: &'a CancellationToken,
) -> Result<Option<Upgrade<'a>>, String> {
    let Some(from) = has else { return Ok(None) };
    let golden = fleet.templates.golden(&tenant.template).ok();
    let Some(to) = golden.filter(|golden| golden.hash != from) else { return Ok(None) };
    let folder = fleet.folder(&tenant.id);
    // Data of which nothing is known may have been served by the newest.
    let data = fleet.binaries.known_or_newest(choice::of_data(&folder, now)?);
    if is_older(&to.pocketbase, &data) {
        // What a newer PocketBase has migrated is not for an older one.
        tracing::debug!(tenant.id = %tenant.id, from = data, to = to.pocketbase, "not downgraded");
        return Ok(None);
    }
    let record = fleet.versions.find(&tenant.id);
    let pin = record.as_ref().and_then(|record| record.pin.as_deref());
    if pin.is_some_and(|pin| !is_pinned_to(&to.pocketbase, pin)) {
        return Ok(None);
    }
    let asked = fleet.upgrades.asked.contains(&tenant.id);
    if !asked && fleet.upgrades.policy == UpgradePolicy::Manual && !tenant.id.is_global() {
        return Ok(None);
    }
    let failed = record.and_then(|version| version.failed.clone());
    if let Some(failed) = failed.filter(|failed| failed.hash == to.hash) {
        let waits = failed.outside && (asked || failed.at + OUTSIDE_RETRY <= OffsetDateTime::now_utc());
        if !waits {
            return Ok(None);
        }
    }
    // Never made: it will be made from what the template is today.
    let is_made = folder.join("pb_data").is_dir();
    Ok(is_made.then(|| Upgrade {
        step: Step { from: from.to_owned(), to: to.hash.clone() },
        log_start: logs::length(&folder),
        folder,
        fleet,
        tenant,
        to,
        stop,
    }))
}

/// Deals with what a killed pocketfleet left. Whoever still writes is stopped first.
async fn recover(fleet: &Fleet, tenant: &Tenant, folder: &Path) -> Result<(), String> {
    unlocked(fleet, folder).await?;
    let found = blocking(folder, snapshot::recover).await.map_err(|why| format!("recover its data: {why}"))?;
    if let snapshot::Found::RolledBack(step) = found {
        tracing::info!(tenant.id = %tenant.id, version = short(&step.to), "rolled back an interrupted upgrade");
    }
    Ok(())
}

/// Ends what is left to do of an upgrade that was through when pocketfleet was killed, for an instance that was adopted:
/// its record follows its own file, and the copy of its data goes.
pub(crate) async fn settle_adopted(fleet: &Arc<Fleet>, tenant: &Arc<Tenant>) {
    let folder = fleet.folder(&tenant.id);
    if let Ok(Some(hash)) = snapshot::version(&folder) {
        note(fleet, tenant, hash);
    }
    // One that is not through is not adopted, so nothing is put back here.
    if snapshot::is_pending(&folder)
        && let Err(error) = blocking(&folder, snapshot::recover).await
    {
        tracing::warn!(tenant.id = %tenant.id, error, "remove the copy of an instance's data after its upgrade");
    }
}

/// Makes sure that no process holds the data directory.
pub(crate) async fn unlocked(fleet: &Fleet, folder: &Path) -> Result<(), String> {
    let lock = folder.join("lock");
    let failed = |error: std::io::Error| format!("look at its lock: {error}");
    if jail::is_locked(&lock).map_err(failed)? {
        launch::stop_stray_process(folder, fleet.config.stop_timeout).await.map_err(failed)?;
        if jail::is_locked(&lock).map_err(failed)? {
            return Err("another process holds its data directory".to_owned());
        }
    }
    Ok(())
}

/// File work off the runtime's threads.
pub(crate) async fn blocking<T: Send + 'static>(
    folder: &Path,
    work: impl FnOnce(&Path) -> std::io::Result<T> + Send + 'static,
) -> Result<T, String> {
    let folder = folder.to_owned();
    let done = tokio::task::spawn_blocking(move || work(&folder)).await;
    done.map_err(|_| "the task failed".to_owned())?.map_err(|error| error.to_string())
}

/// Brings the record of an instance's version up to date, behind the back of whoever waits for the instance.
pub(crate) fn note(fleet: &Arc<Fleet>, tenant: &Arc<Tenant>, hash: String) {
    // It is replaced and not upgraded, so nobody counts it.
    if fleet.is_spare(&tenant.id) {
        return;
    }
    let today = fleet.templates.golden(&tenant.template).map(|golden| golden.hash.clone()).unwrap_or_default();
    let record = fleet.versions.find(&tenant.id);
    let keep = record.as_ref().and_then(|record| record.failed.as_ref()).is_some_and(|failed| failed.hash == today);
    let is_right = record.as_ref().is_some_and(|record| {
        record.hash == hash && record.template == tenant.template && (record.failed.is_none() || keep)
    });
    if is_right {
        return;
    }
    let (versions, tenant) = (fleet.versions.clone(), Arc::clone(tenant));
    let work = async move {
        if let Err(error) = versions.note(&tenant.id, &tenant.template, &hash, keep).await {
            tracing::warn!(tenant.id = %tenant.id, %error, "note an instance's version");
        }
    };
    fleet.tasks.spawn_on(work, &fleet.runtime);
}

/// One upgrade of one instance.
struct Upgrade<'a> {
    fleet: &'a Arc<Fleet>,
    tenant: &'a Arc<Tenant>,
    folder: PathBuf,
    to: Arc<Golden>,
    step: Step,
    log_start: u64,
    stop: &'a CancellationToken,
}

impl Upgrade<'_> {
    /// All of it. After an error the data is as before, unless it says [`Trouble::Stuck`].
    async fn run(self) -> Result<(Process, Running), Trouble> {
        let priority = if self.fleet.upgrades.asked.contains(&self.tenant.id) && !self.tenant.id.is_global() {
            Priority::Background
        } else {
            Priority::Client
        };
        let _permit = tokio::select! {
            permit = self.fleet.upgrades.gate.enter(priority) => permit,
            () = self.stop.cancelled() => return Err(Trouble::Stopping),
        };
        self.fleet.changes.note_rewrite(&self.tenant.id);
        let begun = Instant::now();
        let trouble = match Box::pin(self.steps()).await {
            Ok(started) => {
                self.succeeded(begun.elapsed()).await;
                return Ok(started);
            }
            Err(trouble) => trouble,
        };
        let reason = self.reason(&trouble);
        if let Err(error) = unlocked(self.fleet, &self.folder).await {
            return Err(Trouble::Stuck(error));
        }
        match blocking(&self.folder, snapshot::recover).await {
            Ok(snapshot::Found::Nothing | snapshot::Found::RolledBack(_)) => {}
            // Noting the version failed after it was noted: the data is at the new one, and so must the process be.
            Ok(snapshot::Found::Finished) => return self.serve_finished(begun).await,
            Err(error) => {
                return Err(Trouble::Stuck(format!("put its data back after a failed upgrade: {error}")));
            }
        }
        let is_outside = match &trouble {
            Trouble::Stopping => return Err(trouble),
            Trouble::Unclear(_) => !self.fleet.upgrades.is_too_often(&self.tenant.id, &self.step.to),
            other => matches!(other, Trouble::Outside(_)),
        };
        self.failed(reason, is_outside).await;
        Err(trouble)
    }

    async fn serve_finished(&self, begun: Instant) -> Result<(Process, Running), Trouble> {
        match launch::attempts(self.fleet, self.tenant, &self.to, self.stop).await {
            Ok(started) => {
                self.succeeded(begun.elapsed()).await;
                Ok(started)
            }
            Err(_) if self.stop.is_cancelled() => Err(Trouble::Stopping),
            Err(failure) => Err(Trouble::Stuck(format!("it did not start after its upgrade: {failure:?}"))),
        }
    }

    async fn steps(&self) -> Result<(Process, Running), Trouble> {
        unlocked(self.fleet, &self.folder).await.map_err(Trouble::Outside)?;
        let data = self.folder.join("pb_data").join("data.db");
        let superusers = schema::superusers(&data).map_err(|error| launch::unreadable(&error))?;
        let had_owner = self.has_owner(data).await.map_err(|error| launch::unreadable(&error))?;
        // Before the copy gives its files second names, which are not given away.
        let user = self.fleet.confinement(&self.tenant.id, &self.tenant.template).await?.user;
        self.own(user).await?;
        let step = self.step.clone();
        blocking(&self.folder, move |folder| snapshot::take(folder, &step))
            .await
            .map_err(|why| Trouble::Outside(format!("copy its data before the upgrade: {why}")))?;
        failpoint::hit("upgrade.copied");
        self.migrate().await?;
        failpoint::hit("upgrade.migrated");
        self.settle(superusers, had_owner).await?;
        let started = launch::attempts(self.fleet, self.tenant, &self.to, self.stop).await;
        let (process, running) = started.map_err(|failure| match Trouble::from(failure) {
            Trouble::Outside(_) if self.stop.is_cancelled() => Trouble::Stopping,
            other => other,
        })?;
        failpoint::hit("upgrade.healthy");
        let step = self.step.clone();
        if let Err(error) = blocking(&self.folder, move |folder| snapshot::commit(folder, &step)).await {
            process.stop(self.fleet.config.stop_timeout).await;
            launch::release(self.fleet, &self.tenant.id, running.epoch).await;
            return Err(Trouble::Outside(format!("note its new version: {error}")));
        }
        Ok((process, running))
    }

    /// Runs the migrations. The epoch is taken first, so that a killed pocketfleet's successor looks for this process.
    async fn migrate(&self) -> Result<(), Trouble> {
        let store = |error: crate::store::Error| Trouble::Outside(format!("the control database: {error}"));
        let epoch = self.fleet.placements.acquire(&self.tenant.id).await.map_err(store)?;
        let outcome = self.migrate_in_jail().await;
        launch::release(self.fleet, &self.tenant.id, epoch).await;
        outcome
    }

    async fn migrate_in_jail(&self) -> Result<(), Trouble> {
        let config = &self.fleet.config;
        let log_start = logs::length(&self.folder);
        let confinement = self.fleet.confinement(&self.tenant.id, &self.tenant.template).await?;
        self.own(confinement.user).await?;
        let process =
            self.spawn(&confinement).map_err(|error| Trouble::Outside(format!("start the jailer: {error}")))?;
        tokio::select! {
            biased;
            () = process.exited() => {}
            () = self.stop.cancelled() => {
                process.stop(config.stop_timeout).await;
                return Err(Trouble::Stopping);
            }
            () = tokio::time::sleep(config.upgrade_timeout) => {
                process.stop(config.stop_timeout).await;
                let limit = config.upgrade_timeout;
                return Err(Trouble::Unclear(format!("the migrations did not end within {limit:?} (instances.upgrade_timeout)")));
            }
        }
        let exit = process.bury();
        let lines = logs::tail_since(&self.folder, log_start, REASON_LINES);
        // Before 0.40 it ends with 0 also where a migration has failed.
        if exit == Exit::Code(0) && !lines.iter().any(|line| line.contains(bake::FAILED_MIGRATION)) {
            return Ok(());
        }
        Err(launch::classify(exit, &lines).into())
    }

    /// Makes its files its user's, as the process that works on them next needs them.
    async fn own(&self, user: Option<u32>) -> Result<(), Trouble> {
        let migrations = self.to.migrations_dir.clone().filter(|_| user.is_some());
        let to = Arc::clone(&self.to);
        let work = move |folder: &Path| {
            std::fs::create_dir_all(folder.join(jail::TMP))?;
            migrations.map_or(Ok(()), |part| to.publish(&part))?;
            owner::settle(folder, user)
        };
        let done = blocking(&self.folder, work).await;
        done.map_err(|why| Trouble::Outside(format!("make its files its user's: {why}")))
    }

    fn spawn(&self, confinement: &Confinement) -> std::io::Result<Process> {
        let empty = self.fleet.layout.empty.display().to_string();
        let migrations = self.to.migrations_dir.as_ref().map_or_else(|| empty.clone(), |dir| dir.display().to_string());
        let read = self.to.migrations_dir.iter().chain([&self.fleet.layout.empty]).cloned().collect();
        let binary = choice::binary(&self.fleet.binaries, &self.folder, &self.to).map_err(std::io::Error::other)?;
        let spec = jail::Spec {
            program: binary.path.clone(),
            args: vec![
                format!("--dir={}", self.folder.join("pb_data").display()),
                format!("--migrationsDir={migrations}"),
                format!("--hooksDir={empty}"),
                format!("--publicDir={empty}"),
                "migrate".to_owned(),
                "up".to_owned(),
            ],
            environment: Vec::new(),
            directory: self.folder.clone(),
            lock: self.folder.join("lock"),
            limits: confinement.limits,
            // The limits of a running instance are too small for a large migration, which is bounded by its time.
            cgroup: None,
            sandbox: confinement.sandbox(&binary.path, &self.folder, read, None),
        };
        let log = logs::open(&self.folder)?;
        // It does not listen anywhere.
        let nowhere = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let runs = Runs { address: nowhere, sha256: &binary.sha256, profile: &confinement.profile };
        Process::spawn(&self.fleet.isolation.jailer, &spec, &log, &runs)
    }

    /// Whether the owner of a personal instance has a row in it. The rows of a workspace's members are brought in step at
    /// each start.
    async fn has_owner(&self, data: PathBuf) -> Result<bool, database::Error> {
        let Some(owner) = self.tenant.owner.clone().filter(|_| self.tenant.kind == Kind::Personal) else {
            return Ok(false);
        };
        let work = tokio::task::spawn_blocking(move || Ok(database::signers(&data)?.users.contains_key(&owner)));
        work.await.unwrap_or(Ok(false))
    }

    /// What provisioning does to a copy, done to what the migrations changed; the database is one synced file then.
    async fn settle(&self, superusers: Vec<String>, had_owner: bool) -> Result<(), Trouble> {
        let (data, to) = (self.folder.join("pb_data").join("data.db"), Arc::clone(&self.to));
        let mut settings = bake::settings(&to.app_name);
        if !self.fleet.public_url.is_empty() {
            settings.push(("/meta/appURL", json!(self.fleet.public_url)));
        }
        let path = data.clone();
        let work = move || {
            let shared = Shared::of(&to.dir.join("data.db"))?;
            database::edit(&path, Durability::Synced, |edit| {
                edit.unshare(&shared, &superusers)?;
                edit.lock_superusers()?;
                edit.apply_settings(&settings)
            })
        };
        let done =
            tokio::task::spawn_blocking(work).await.map_err(|_| Trouble::Outside("the task failed".to_owned()))?;
        // Of a database that was fine before the migrations.
        let trouble = |error: database::Error| {
            if error.may_pass() { Trouble::Outside(chain(&error)) } else { Trouble::Own(chain(&error)) }
        };
        done.map_err(trouble)?;
        if had_owner && !self.has_owner(data).await.map_err(trouble)? {
            return Err(Trouble::Own("the migrations removed the owner's row from `users`".to_owned()));
        }
        Ok(())
    }

    fn reason(&self, trouble: &Trouble) -> String {
        let (Trouble::Own(reason) | Trouble::Outside(reason) | Trouble::Unclear(reason) | Trouble::Stuck(reason)) =
            trouble
        else {
            return String::new();
        };
        let lines = logs::tail_since(&self.folder, self.log_start, REASON_LINES);
        let more: Vec<&str> = lines.iter().map(String::as_str).filter(|line| !reason.contains(line)).collect();
        let text = if more.is_empty() { reason.clone() } else { format!("{reason}\n{}", more.join("\n")) };
        text.chars().take(REASON_CHARACTERS).collect()
    }

    async fn succeeded(&self, took: Duration) {
        failpoint::hit("upgrade.committed");
        let id = &self.tenant.id;
        self.fleet.upgrades.unclear.remove(id);
        tracing::info!(
            tenant.id = %id, template.name = self.tenant.template, version = short(&self.step.to),
            from = short(&self.step.from), pocketbase = self.to.pocketbase, duration_ms = took.as_millis(), "upgraded an instance"
        );
        if let Err(error) = self.fleet.versions.note(id, &self.tenant.template, &self.step.to, false).await {
            // The instance's own file says it too, and the next start brings the record up to date.
            tracing::warn!(tenant.id = %id, %error, "note an instance's version");
        }
        if let Err(error) = blocking(&self.folder, snapshot::discard).await {
            tracing::warn!(tenant.id = %id, error, "remove the copy of an instance's data after its upgrade");
        }
        // Nobody listens: nobody has to know.
        drop(self.fleet.upgrades.done.send(id.clone()));
    }

    async fn failed(&self, reason: String, is_outside: bool) {
        let id = &self.tenant.id;
        if !is_outside {
            self.fleet.upgrades.unclear.remove(id);
        }
        tracing::warn!(
            tenant.id = %id, template.name = self.tenant.template, version = short(&self.step.to), %reason,
            "an upgrade failed; the instance stays at its version"
        );
        let failed =
            FailedUpgrade { hash: self.step.to.clone(), reason, at: OffsetDateTime::now_utc(), outside: is_outside };
        if let Err(error) = self.fleet.versions.fail(id, &self.tenant.template, &self.step.from, failed).await {
            tracing::warn!(tenant.id = %id, %error, "note a failed upgrade");
        }
    }
}

/// The part of a hash that people see.
pub(crate) fn short(hash: &str) -> &str {
    hash.get(..12).unwrap_or(hash)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_that_may_be_the_machines_count_as_the_instances_own_after_a_few_of_one_version() {
        let upgrades = Upgrades::new(UpgradePolicy::Wake);
        let tenant = TenantId::global();
        let tries = |hash: &str| [(); 3].map(|()| upgrades.is_too_often(&tenant, hash));
        assert_eq!(tries("one"), [false, false, true]);
        assert_eq!(tries("two"), [false, false, true], "another version begins anew");
    }
}
