//! From "somebody needs it" to "it proved itself": one start of one instance, and what a failed one means.

use std::net::Ipv4Addr;
use std::net::SocketAddr;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;
use std::time::SystemTime;

use futures_util::future::Either;
use tokio_util::sync::CancellationToken;

use crate::failpoint;
use crate::ids::TenantId;
use crate::pocketbase::copy::Served;
use crate::pocketbase::database;
use crate::pocketbase::database::Signers;
use crate::store;
use crate::store::tenants::Tenant;
use crate::supervisor::Priority;
use crate::supervisor::announcement::Announcement;
use crate::supervisor::choice;
use crate::supervisor::confine;
use crate::supervisor::confine::Confinement;
use crate::supervisor::files;
use crate::supervisor::fleet::Fleet;
use crate::supervisor::health;
use crate::supervisor::instance::Occupied;
use crate::supervisor::jail;
use crate::supervisor::jail::cgroup::Groups;
use crate::supervisor::logs;
use crate::supervisor::owner;
use crate::supervisor::process;
use crate::supervisor::process::Exit;
use crate::supervisor::process::Process;
use crate::supervisor::process::Runs;
use crate::supervisor::provision;
use crate::supervisor::remove::empty_folder;
use crate::supervisor::roster;
use crate::supervisor::slot::Running;
use crate::supervisor::slot::Slot;
use crate::supervisor::slot::mint;
use crate::supervisor::snapshot;
use crate::supervisor::starts::Permit;
use crate::supervisor::state::Failure;
use crate::supervisor::template::Golden;
use crate::supervisor::upgrade;

/// How often a start is repeated at once with another address, or after a stray process was stopped.
const ATTEMPTS: u32 = 4;
/// Processes of one data directory that are stopped one after the other.
const STRAYS: usize = 64;
/// Wait before something outside the instance (disk, binary, template) is tried again.
const OUTSIDE_RETRY: Duration = Duration::from_secs(10);
/// How long a start holds its place at the gate. One takes some 30 ms of CPU; what takes longer waits for something.
const SLOW: Duration = Duration::from_secs(1);
/// Life of the token in a health check, which whoever listens at the address gets to see.
pub(crate) const PROOF_TTL: Duration = Duration::from_secs(10);
/// One health check during a start. The start as a whole has its own deadline.
const CHECK_PATIENCE: Duration = Duration::from_secs(5);

/// The ports that instances listen on, below the ephemeral range.
pub(crate) const PORTS: Range<u16> = 20_000..32_000;
/// How long a start that the jailer refused is not repeated: what is in its way is not the instance's to mend, and does
/// not pass by itself.
const JAIL_RETRY: Duration = Duration::from_mins(5);

/// Room on a disk below which a start that failed is put down to it: less than the journal of a small change.
const LEAST_ROOM: u64 = 256 << 10;

/// What Go says when the kernel gives it no more threads.
const NO_THREAD: &str = "failed to create new OS thread";

/// Lines of a log in which Go's reason for giving up is looked for.
const GO_LINES: usize = 1_000;

/// A start that succeeded.
#[derive(Debug)]
pub(crate) struct Launched {
    pub(crate) occupied: Occupied,
    pub(crate) took: Duration,
}

/// Why one attempt failed.
enum Setback {
    /// Try again at once: the address was taken, or a stray was stopped.
    Again,
    Final(Failure),
}

impl From<Failure> for Setback {
    fn from(failure: Failure) -> Self {
        Self::Final(failure)
    }
}

pub(crate) fn outside(reason: impl Into<String>) -> Failure {
    Failure::Outside(reason.into(), OUTSIDE_RETRY)
}

/// Starts an instance: admission, a place at the start gate, its directory, a new epoch, the process, the proof.
pub(crate) async fn launch(
    fleet: &Arc<Fleet>,
    slot: &Arc<Slot>,
    stop: &CancellationToken,
) -> Result<Launched, Failure> {
    let tenant = fleet.find(&slot.tenant).ok_or_else(|| outside("the tenant is not registered"))?;
    if tenant.suspended || tenant.deleted.is_some() {
        return Err(Failure::Suspended);
    }
    let golden = golden_of(fleet, &tenant)?;
    let gone = || outside("the server is shutting down");
    let admission = if let Some(admission) = slot.take_reserved() {
        admission
    } else {
        tokio::select! {
            admission = fleet.admit(&slot.tenant) => admission.map_err(|_| Failure::NoRoom)?,
            () = stop.cancelled() => return Err(gone()),
        }
    };
    let permit = tokio::select! {
        permit = turn(fleet, slot) => permit,
        () = stop.cancelled() => return Err(gone()),
    };
    let begun = Instant::now();
    let work = Box::pin(upgrade::start(fleet, &tenant, &golden, stop));
    let (process, running) = match futures_util::future::select(work, Box::pin(tokio::time::sleep(SLOW))).await {
        Either::Left((outcome, _)) => outcome?,
        // A start that takes this long is not using the CPU that the gate shares out.
        Either::Right(((), work)) => {
            drop(permit);
            work.await?
        }
    };
    let took = begun.elapsed();
    fleet.metrics.boot.observe(took.as_secs_f64());
    Ok(Launched { occupied: Occupied { process, running: Arc::new(running), admission }, took })
}

/// What the instance was made from; for one that does not exist yet, the template as it is today.
pub(crate) fn golden_of(fleet: &Fleet, tenant: &Tenant) -> Result<Arc<Golden>, Failure> {
    let today = || fleet.templates.golden(&tenant.template).map_err(|error| outside(error.to_string()));
    let version = snapshot::version(&fleet.folder(&tenant.id));
    if let Some(hash) = version.map_err(|error| outside(format!("read its version: {error}")))? {
        let golden = fleet.templates.made_from(&tenant.template, &hash);
        if let Some(golden) = golden.map_err(|error| outside(format!("read its golden directory: {error}")))? {
            return Ok(golden);
        }
        let version = upgrade::short(&hash);
        tracing::warn!(tenant.id = %tenant.id, version, "the golden directory of an instance's version is gone; its hooks are today's");
        // Which PocketBase made it went with it; there may be a note of that beside the data.
        return Ok(Arc::new(Golden { pocketbase: String::new(), ..Golden::clone(&*today()?) }));
    }
    today()
}

/// Waits for a turn at the start gate. Somebody who comes to wait for a start that was queued in the background moves
/// it among the clients'.
async fn turn(fleet: &Fleet, slot: &Slot) -> Permit {
    let mut priority = if slot.tenant.is_global() { Priority::Client } else { slot.priority() };
    while priority == Priority::Background {
        tokio::select! {
            permit = fleet.starts.enter(priority) => return permit,
            () = slot.want.notified() => priority = slot.priority(),
        }
    }
    fleet.starts.enter(priority).await
}

/// Starts it on the version that `golden` is, after making its directory if it never had one.
pub(crate) async fn attempts(
    fleet: &Arc<Fleet>,
    tenant: &Arc<Tenant>,
    golden: &Arc<Golden>,
    stop: &CancellationToken,
) -> Result<(Process, Running), Failure> {
    ensure_directory(fleet, tenant, golden).await?;
    for _ in 0..ATTEMPTS {
        let confinement = fleet.confinement(&tenant.id, &tenant.template).await?;
        match attempt(fleet, tenant, golden, &confinement, stop).await {
            Ok(started) => return Ok(started),
            Err(Setback::Again) => fleet.give_up_address(&confinement),
            Err(Setback::Final(failure)) => return Err(failure),
        }
    }
    Err(outside("no free address, or a stray process that cannot be stopped"))
}

/// Makes the directory of a tenant that has never run.
async fn ensure_directory(fleet: &Arc<Fleet>, tenant: &Arc<Tenant>, golden: &Arc<Golden>) -> Result<(), Failure> {
    let folder = fleet.folder(&tenant.id);
    let data = folder.join("pb_data");
    match data.try_exists() {
        Ok(true) => return Ok(()),
        Ok(false) => {}
        Err(error) => return Err(outside(format!("look at its data directory: {error}"))),
    }
    if fleet.placements.find(&tenant.id).is_some_and(|placement| placement.epoch > 0) {
        // Never answer a lost disk with a fresh, empty database. The epoch grows only once the directory exists.
        return Err(Failure::Fatal("its data directory is missing although it has run before".to_owned()));
    }
    let (fleet, tenant, golden) = (Arc::clone(fleet), Arc::clone(tenant), Arc::clone(golden));
    let work = tokio::task::spawn_blocking(move || {
        let owner = roster::owner(&fleet, &tenant).map_err(outside)?;
        // On disk before the epoch is: a power cut must not leave a tenant that ran and has no folder.
        std::fs::create_dir_all(&folder)
            .and_then(|()| snapshot::set_version(&folder, &golden.hash))
            .and_then(|()| files::sync_folder(&fleet.layout.instances))
            .map_err(|error| outside(format!("make its folder: {error}")))?;
        failpoint::hit("instance.folder");
        provision::provision(&golden, &data, &fleet.layout.staging, owner.as_ref(), &fleet.public_url)
            .map_err(|error| outside(format!("provision its directory: {error}")))?;
        failpoint::hit("instance.provisioned");
        Ok(())
    });
    work.await.unwrap_or_else(|_| Err(outside("the provisioning task failed")))
}

/// Everything about its folder that blocks: an empty place for temporary files, the log's rotation, and the keys that
/// will prove the process.
async fn prepare(
    fleet: &Arc<Fleet>,
    tenant: &TenantId,
    golden: &Arc<Golden>,
    user: Option<u32>,
) -> Result<Signers, Failure> {
    let (fleet, id, golden) = (Arc::clone(fleet), tenant.clone(), Arc::clone(golden));
    let work = tokio::task::spawn_blocking(move || {
        let folder = fleet.folder(&id);
        let temporary = folder.join(jail::TMP);
        empty_folder(&temporary, user).map_err(|error| outside(format!("empty its temporary folder: {error}")))?;
        if let Err(error) = logs::rotate(&folder, fleet.config.log_bytes, fleet.config.log_files) {
            tracing::warn!(tenant.id = %id, %error, "rotate an instance's log");
        }
        choice::note(&fleet.binaries, &folder, &golden).map_err(outside)?;
        let (signers, changed) = roster::keys(&fleet, &id, Served::No).map_err(|error| unreadable(&error))?;
        if !changed.is_empty() {
            // Behind the instance's back, which will tell nobody. An error: nobody listens.
            drop(fleet.rewritten.send(id));
        }
        if user.is_some() {
            let parts = [&golden.hooks_dir, &golden.public_dir].into_iter().flatten();
            let published = parts.into_iter().try_for_each(|part| golden.publish(part));
            published.map_err(|error| outside(format!("open its template to its user: {error}")))?;
        }
        // Last, because reading the keys may have left files of ours.
        owner::settle(&folder, user).map_err(|error| outside(format!("make its files its user's: {error}")))?;
        Ok(signers)
    });
    work.await.unwrap_or_else(|_| Err(outside("the task that prepares its folder failed")))
}

/// Damage needs a person; a lock, a full table of open files or a failing disk may pass.
pub(crate) fn unreadable(error: &database::Error) -> Failure {
    let cause = std::error::Error::source(error).map(|source| format!(": {source}")).unwrap_or_default();
    let reason = format!("{error}{cause}");
    match error {
        database::Error::NoFile { .. }
        | database::Error::NotADatabase { .. }
        | database::Error::Damaged { .. }
        | database::Error::Missing { .. } => Failure::Fatal(reason),
        // Growing pauses, and a person in the end: somebody made it so, and asking again costs as much again.
        database::Error::Beyond { .. } => Failure::Crash(reason),
        database::Error::Io { .. } | database::Error::Sqlite { .. } => outside(reason),
    }
}

async fn attempt(
    fleet: &Arc<Fleet>,
    record: &Tenant,
    golden: &Arc<Golden>,
    confinement: &Confinement,
    stop: &CancellationToken,
) -> Result<(Process, Running), Setback> {
    let tenant = &record.id;
    let folder = fleet.folder(tenant);
    // Before anything in the folder is touched: what an earlier life left may still write to it.
    upgrade::unlocked(fleet, &folder).await.map_err(outside)?;
    let store = |error: store::Error| outside(format!("the control database: {error}"));
    let was_spare = fleet.is_spare(tenant);
    // The keys are read before anything can write the database, while the new epoch goes to disk.
    let (epoch, signers) =
        tokio::join!(fleet.placements.acquire(tenant), prepare(fleet, tenant, golden, confinement.user));
    let epoch = epoch.map_err(store)?;
    let log_start = logs::length(&folder);
    let started = match signers {
        Ok(signers) => spawn(fleet, tenant, &folder, golden, confinement)
            .await
            .map(|started| (signers, started))
            .map_err(|error| outside(format!("start the jailer: {error}"))),
        Err(failure) => Err(failure),
    };
    let (signers, (process, announcement)) = match started {
        Ok(started) => started,
        Err(failure) => {
            release(fleet, tenant, epoch).await;
            return Err(failure.into());
        }
    };
    fleet.metrics.starts.inc();
    failpoint::hit("instance.spawned");
    let token = mint(&signers.superuser, SystemTime::now(), PROOF_TTL);
    let address = process.identity().address;
    let ready = async {
        // Noted while it boots. If we die before this is on disk, the lock on the directory still tells.
        let noted = fleet.placements.started(tenant, epoch, process.identity().clone());
        let proved = async {
            // Before it is asked: what the rules do not know yet is asked again after a second only.
            fleet.connect(confinement, address).await?;
            Ok(health::await_ready(address, &token, CHECK_PATIENCE, &announcement).await)
        };
        tokio::join!(noted, proved)
    };
    let failure = tokio::select! {
        biased;
        outcome = tokio::time::timeout(fleet.config.start_timeout, ready) => match outcome {
            Ok((Ok(()), Ok(Ok(())))) => {
                let running = Running::new(address, epoch, signers, log_start).of_spare(was_spare);
                return Ok((process, running));
            }
            Ok((Err(error), _)) => store(error).into(),
            // Somebody else answers where ours should. Whoever it is gets no traffic; another address will do.
            Ok((_, Ok(Err(health::Error::NotOurs)))) => Setback::Again,
            Ok((_, Err(failure))) => Setback::Final(failure),
            Ok((_, Ok(Err(error)))) => Failure::Crash(format!("its first health check failed: {error}")).into(),
            Err(_) => Failure::Unclear("it did not become healthy in time".to_owned()).into(),
        },
        () = process.exited() => {
            let exit = process.bury();
            // The group, which knows something of it, goes with the release.
            let setback = died(fleet, tenant, exit, log_start).await;
            release(fleet, tenant, epoch).await;
            return Err(setback);
        }
        () = stop.cancelled() => outside("the server is shutting down").into(),
    };
    process.stop(fleet.config.stop_timeout).await;
    release(fleet, tenant, epoch).await;
    Err(failure)
}

async fn spawn(
    fleet: &Arc<Fleet>,
    tenant: &TenantId,
    folder: &Path,
    golden: &Golden,
    confinement: &Confinement,
) -> std::io::Result<(Process, Announcement)> {
    let binary = choice::binary(&fleet.binaries, folder, golden).map_err(std::io::Error::other)?;
    let log = logs::open(folder)?;
    let address = fleet.address(confinement);
    let path = |path: &Path| path.display().to_string();
    let empty = path(&fleet.layout.empty);
    let hooks = golden.hooks_dir.as_deref().map_or_else(|| empty.clone(), path);
    let public = golden.public_dir.as_deref().map_or_else(|| empty.clone(), path);
    let pool = u8::from(golden.hooks_dir.is_some());
    let args = vec![
        "serve".to_owned(),
        format!("--http={address}"),
        format!("--dir={}", path(&folder.join("pb_data"))),
        format!("--migrationsDir={empty}"),
        format!("--hooksDir={hooks}"),
        format!("--publicDir={public}"),
        // Otherwise a schema edit would write a migration file, and file watching needs one of 128 inotify slots.
        "--automigrate=false".to_owned(),
        "--hooksWatch=false".to_owned(),
        format!("--hooksPool={pool}"),
    ];
    let parts = [&golden.hooks_dir, &golden.public_dir].into_iter().flatten();
    let read = parts.chain([&fleet.layout.empty]).cloned().collect();
    let limits = jail::Limits { data_bytes: fleet.data_bytes(tenant), ..confinement.limits };
    let group_bytes = fleet.isolation.groups.as_ref().map_or(0, Groups::memory_bytes);
    let spec = jail::Spec {
        program: binary.path.clone(),
        args,
        environment: confine::environment(fleet.config.gc_percent, limits.data_bytes, group_bytes),
        directory: folder.to_owned(),
        lock: folder.join("lock"),
        limits,
        cgroup: fleet.isolation.groups.as_ref().map(|groups| groups.leaf(tenant.as_str())).transpose()?,
        sandbox: confinement.sandbox(&binary.path, folder, read, Some(address)),
    };
    let announcement = Announcement::of(&logs::path(folder));
    let runs = Runs { address, sha256: &binary.sha256, profile: &confinement.profile };
    let order = jail::Order { log: logs::path(folder), spec };
    let standby = Arc::clone(fleet);
    // Goes on if nobody waits for it any more: the next order's answer is then its own.
    let told = tokio::task::spawn_blocking(move || (standby.standby.tell(&order), order)).await;
    let process = match told.map_err(std::io::Error::other)? {
        (Ok(Some(pid)), _) => Process::forked(pid, &runs)?,
        (told, order) => {
            told?;
            Process::spawn(&fleet.isolation.jailer, &order.spec, &log, &runs)?
        }
    };
    Ok((process.with_log(logs::handle(folder)), announcement))
}

/// A loopback address nobody uses: 127.64.0.0/10 has four million, and the port lies below the ephemeral range.
/// Two fleets on one machine practically never meet, and if they do the start is repeated with another address.
pub(crate) fn random_address() -> SocketAddr {
    if let Some(address) = failpoint::chosen("instance.address").and_then(|text| text.parse().ok()) {
        return address;
    }
    let [a, b, c, ..] = rand::random::<[u8; 8]>();
    let host = Ipv4Addr::new(127, 64 | (a & 0x3f), b, c.clamp(1, 254));
    let ports = PORTS.end - PORTS.start;
    SocketAddr::from((host, PORTS.start + rand::random::<u16>() % ports))
}

/// What the exit of a starting process means.
async fn died(fleet: &Fleet, tenant: &TenantId, exit: Exit, log_start: u64) -> Setback {
    let folder = &fleet.folder(tenant);
    let lines = logs::tail_since(folder, log_start, 12);
    let last = lines.last().map(String::as_str).unwrap_or_default();
    if exit == Exit::Code(1) && last.contains("address already in use") {
        return Setback::Again;
    }
    if exit == Exit::Code(i32::from(jail::exit::LOCKED)) {
        return stop_stray(folder, fleet.config.stop_timeout).await;
    }
    Setback::Final(judge(fleet, tenant, exit, log_start))
}

/// What an exit that nobody asked for means, by everything that can be asked about it.
pub(crate) fn judge(fleet: &Fleet, tenant: &TenantId, exit: Exit, log_start: u64) -> Failure {
    let is_over = |groups: &Groups| groups.was_out_of_memory(tenant.as_str());
    if fleet.isolation.groups.as_ref().is_some_and(is_over) {
        return Failure::Crash(format!("{exit}: out of memory (isolation.memory_bytes)"));
    }
    // Go prints why first and then every goroutine, so the reason is far from the end.
    let lines = logs::tail_since(&fleet.folder(tenant), log_start, GO_LINES);
    if exit == Exit::Code(2) && lines.iter().any(|line| is_out_of_memory(line)) {
        return Failure::Crash(format!("{exit}: out of memory (instances.data_bytes)"));
    }
    if exit == Exit::Code(2) && lines.iter().any(|line| line.contains(NO_THREAD)) {
        return Failure::Crash(format!("{exit}: out of processes and threads (instances.nproc)"));
    }
    let mut binaries = fleet.binaries.all().iter();
    if matches!(exit, Exit::Code(120..=127))
        && let Some((path, error)) =
            binaries.find_map(|binary| Some((&binary.path, std::fs::File::open(&binary.path).err()?)))
    {
        // The jailer stumbles over it at one step or another. It comes back by itself, as the jail does not.
        let path = path.display();
        return outside(format!("the PocketBase binary {path} cannot be opened ({error}): put it back"));
    }
    let failure = classify(exit, &lines);
    // Where nothing can be written, it could not say so either.
    if matches!(failure, Failure::Crash(_)) && is_full(&fleet.folder(tenant)) {
        return outside(format!("no space left on the disk of its folder: {exit}"));
    }
    failure
}

/// Whether a file system has no room for the smallest of files.
fn is_full(folder: &Path) -> bool {
    rustix::fs::statvfs(folder).is_ok_and(|disk| disk.f_bavail.saturating_mul(disk.f_frsize) < LEAST_ROOM)
}

/// What Go says when the kernel gives it no more memory.
fn is_out_of_memory(line: &str) -> bool {
    ["fatal error: runtime: out of memory", "fatal error: out of memory", "runtime: cannot allocate memory"]
        .iter()
        .any(|said| line.contains(said))
}

/// Stops a process of an earlier life that still holds the data directory, if it is certainly one of ours.
pub(crate) async fn stop_stray_process(folder: &Path, patience: Duration) -> std::io::Result<bool> {
    let mut last = None;
    // One that an instance started may have started others, which hold what it held.
    for _ in 0..STRAYS {
        let (lock, data) = (folder.join("lock"), folder.join("pb_data"));
        let search = tokio::task::spawn_blocking(move || process::find_stray(&lock, &data));
        let Some(stray) = search.await.map_err(std::io::Error::other)?? else { break };
        // One that survives even SIGKILL is stuck in the kernel.
        if last.replace(stray.identity().pid) == Some(stray.identity().pid) {
            break;
        }
        tracing::warn!(instance.pid = stray.identity().pid, "stop a stray process that holds a data directory");
        stray.stop(patience).await;
    }
    Ok(last.is_some())
}

async fn stop_stray(folder: &Path, patience: Duration) -> Setback {
    match stop_stray_process(folder, patience).await {
        Ok(true) => Setback::Again,
        // Somebody who only looked whether it is held, as pocketfleet does itself, held it for that moment.
        Ok(false) if jail::is_locked(&folder.join("lock")).is_ok_and(|locked| !locked) => Setback::Again,
        Ok(false) => outside("another process holds its data directory").into(),
        Err(error) => outside(format!("another process holds its data directory: {error}")).into(),
    }
}

/// What an exit that nobody asked for means (exit codes alone prove little; the log says more).
pub(crate) fn classify(exit: Exit, lines: &[String]) -> Failure {
    let said = lines.iter().rev().take(4).find(|line| !line.trim().is_empty()).cloned().unwrap_or_default();
    let has = |needle: &str| lines.iter().rev().take(4).any(|line| line.contains(needle));
    let reason = if said.is_empty() { exit.to_string() } else { format!("{exit}: {said}") };
    if let Exit::Code(code @ 120..=127) = exit {
        if said.contains("execute the PocketBase binary") && said.contains("temporarily unavailable") {
            return outside(format!("its user has no process left (instances.nproc): {said}"));
        }
        if code == i32::from(jail::exit::EXEC) {
            return outside(format!("the PocketBase binary failed: {said}"));
        }
        return Failure::Outside(format!("the jailer failed: {said}"), JAIL_RETRY);
    }
    // A signal says nothing about the data, whatever was printed before it.
    if !matches!(exit, Exit::Code(_)) {
        return Failure::Unclear(reason);
    }
    if has("file is not a database") || has("disk image is malformed") {
        return Failure::Fatal(reason);
    }
    if has("no space left on device") || has("database or disk is full") || has("disk I/O error") {
        return outside(format!("the disk is full or failing: {reason}"));
    }
    Failure::Crash(reason)
}

/// Notes that the process of an epoch is gone.
pub(crate) async fn release(fleet: &Fleet, tenant: &TenantId, epoch: u64) {
    if let Some(groups) = &fleet.isolation.groups {
        groups.end(tenant.as_str()).await;
    }
    if let Err(error) = fleet.placements.release(tenant, epoch).await {
        // The next start takes a new epoch in any case, and adoption checks the process itself.
        tracing::error!(tenant.id = %tenant, %error, "note that an instance stopped");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exits_are_told_apart_by_code_and_log() {
        let lines = |line: &str| vec![line.to_owned()];
        assert!(matches!(classify(Exit::Code(1), &lines("Error: file is not a database (26)")), Failure::Fatal(_)));
        assert!(matches!(classify(Exit::Code(1), &lines("disk I/O error (4874)")), Failure::Outside(..)));
        assert!(matches!(classify(Exit::Code(126), &lines("jailer: execute")), Failure::Outside(..)));
        let no_process = "jailer: execute the PocketBase binary: Resource temporarily unavailable (os error 11)";
        let no_process = classify(Exit::Code(i32::from(jail::exit::EXEC)), &lines(no_process));
        assert!(matches!(no_process, Failure::Outside(why, _) if why.contains("instances.nproc")));
        let jail = classify(Exit::Code(i32::from(jail::exit::SANDBOX)), &lines("jailer: put seccomp into force"));
        assert_eq!(
            jail,
            Failure::Outside("the jailer failed: jailer: put seccomp into force".to_owned(), JAIL_RETRY),
            "never retried in a loop"
        );
        assert!(
            matches!(classify(Exit::Code(0), &[]), Failure::Crash(_)),
            "leaving unasked is a crash, whatever the code"
        );
        assert!(is_out_of_memory("fatal error: runtime: out of memory") && !is_out_of_memory("said: out of memory"));
        assert!(matches!(classify(Exit::Signal(9), &lines("file is not a database")), Failure::Unclear(_)));
    }

    #[tokio::test]
    async fn a_lock_that_is_free_again_is_tried_again_and_one_that_is_held_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let file = std::fs::File::create(dir.path().join("lock")).unwrap();
        assert!(matches!(stop_stray(dir.path(), Duration::ZERO).await, Setback::Again));
        rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive).unwrap();
        assert!(matches!(stop_stray(dir.path(), Duration::ZERO).await, Setback::Final(Failure::Outside(..))));
    }

    #[test]
    fn addresses_stay_in_the_block_and_below_the_ephemeral_ports() {
        for _ in 0..10_000 {
            let SocketAddr::V4(address) = random_address() else { unreachable!() };
            let [first, second, _, last] = address.ip().octets();
            assert!(first == 127 && (64..128).contains(&second) && (1..=254).contains(&last), "{address}");
            assert!((20_000..32_000).contains(&address.port()), "{address}");
        }
    }
}
