//! From "somebody needs it" to "it proved itself": one start of one instance, and what a failed one means.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;
use std::time::SystemTime;

use tokio_util::sync::CancellationToken;

use crate::ids::TenantId;
use crate::pocketbase::database;
use crate::pocketbase::database::Signers;
use crate::store;
use crate::store::tenants::Tenant;
use crate::supervisor::announcement::Announcement;
use crate::supervisor::fleet::Fleet;
use crate::supervisor::health;
use crate::supervisor::instance::Occupied;
use crate::supervisor::jail;
use crate::supervisor::logs;
use crate::supervisor::process;
use crate::supervisor::process::Exit;
use crate::supervisor::process::Process;
use crate::supervisor::provision;
use crate::supervisor::slot::Running;
use crate::supervisor::slot::Slot;
use crate::supervisor::slot::mint;
use crate::supervisor::state::Failure;
use crate::supervisor::template::Golden;

/// How often a start is repeated at once with another address, or after a stray process was stopped.
const ATTEMPTS: u32 = 4;
/// Wait before something outside the instance (disk, binary, template) is tried again.
const OUTSIDE_RETRY: Duration = Duration::from_secs(10);
/// One health check during a start. The start as a whole has its own deadline.
const CHECK_PATIENCE: Duration = Duration::from_secs(5);

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

fn outside(reason: impl Into<String>) -> Failure {
    Failure::Outside(reason.into(), OUTSIDE_RETRY)
}

/// Starts an instance: admission, a place at the start gate, its directory, a new epoch, the process, the proof.
pub(crate) async fn launch(
    fleet: &Arc<Fleet>,
    slot: &Arc<Slot>,
    stop: &CancellationToken,
) -> Result<Launched, Failure> {
    let tenant = fleet.tenants.find(&slot.tenant).ok_or_else(|| outside("the tenant is not registered"))?;
    if tenant.suspended {
        return Err(Failure::Suspended);
    }
    let golden = fleet.templates.golden(&tenant.template).map_err(|error| outside(error.to_string()))?;
    let gone = || outside("the server is shutting down");
    let admission = tokio::select! {
        admission = fleet.admit(&slot.tenant) => {
            admission.map_err(|error| Failure::Outside(error.to_string(), Duration::from_secs(1)))?
        }
        () = stop.cancelled() => return Err(gone()),
    };
    let _permit = tokio::select! {
        permit = fleet.starts.enter(slot.priority()) => permit,
        () = stop.cancelled() => return Err(gone()),
    };
    let begun = Instant::now();
    ensure_directory(fleet, &tenant, &golden).await?;
    for _ in 0..ATTEMPTS {
        match attempt(fleet, &slot.tenant, &golden, stop).await {
            Ok((process, running)) => {
                let took = begun.elapsed();
                fleet.metrics.boot.observe(took.as_secs_f64());
                let occupied = Occupied { process, running: Arc::new(running), admission };
                return Ok(Launched { occupied, took });
            }
            Err(Setback::Again) => {}
            Err(Setback::Final(failure)) => return Err(failure),
        }
    }
    Err(outside("no free address, or a stray process that cannot be stopped"))
}

/// Makes the directory of a tenant that has never run.
async fn ensure_directory(fleet: &Arc<Fleet>, tenant: &Arc<Tenant>, golden: &Arc<Golden>) -> Result<(), Failure> {
    let folder = fleet.folder(&tenant.id);
    let data = folder.join("pb_data");
    if data.exists() {
        return Ok(());
    }
    if fleet.placements.find(&tenant.id).is_some_and(|placement| placement.epoch > 0) {
        // Never answer a lost disk with a fresh, empty database. The epoch grows only once the directory exists.
        return Err(Failure::Fatal("its data directory is missing although it has run before".to_owned()));
    }
    let (fleet, tenant, golden) = (Arc::clone(fleet), Arc::clone(tenant), Arc::clone(golden));
    let work = tokio::task::spawn_blocking(move || {
        let owner = tenant.owner.as_ref().and_then(|user| (fleet.owners.0)(user));
        if tenant.owner.is_some() && owner.is_none() {
            return Err(outside("the owner's account cannot be read"));
        }
        std::fs::create_dir_all(folder.join(jail::TMP)).map_err(|error| outside(format!("its folder: {error}")))?;
        provision::provision(&golden, &data, &fleet.layout.staging, owner.as_ref(), &fleet.public_url)
            .map_err(|error| outside(format!("provision its directory: {error}")))
    });
    work.await.unwrap_or_else(|_| Err(outside("the provisioning task failed")))
}

/// Reads the keys that prove the process, beside the runtime.
async fn read_signers(fleet: &Fleet, tenant: &TenantId) -> Result<Signers, Failure> {
    let (id, path) = (tenant.clone(), fleet.folder(tenant).join("pb_data").join("data.db"));
    match tokio::task::spawn_blocking(move || signers(&id, &path)).await {
        Ok(read) => read.map_err(|error| Failure::Fatal(format!("its database: {error}"))),
        Err(_) => Err(outside("the task that reads its keys failed")),
    }
}

/// Reads the keys of an instance. Nobody's token is ever minted for the global one but the control superuser's.
pub(crate) fn signers(tenant: &TenantId, path: &Path) -> Result<Signers, database::Error> {
    if tenant.is_global() {
        return Ok(Signers { superuser: database::superuser(path)?, users: HashMap::new() });
    }
    database::signers(path)
}

async fn attempt(
    fleet: &Arc<Fleet>,
    tenant: &TenantId,
    golden: &Golden,
    stop: &CancellationToken,
) -> Result<(Process, Running), Setback> {
    let folder = fleet.folder(tenant);
    let store = |error: store::Error| outside(format!("the control database: {error}"));
    // The keys are read before anything can write the database, while the new epoch goes to disk.
    let (epoch, signers) = tokio::join!(fleet.placements.acquire(tenant), read_signers(fleet, tenant));
    let epoch = epoch.map_err(store)?;
    let started = signers.and_then(|signers| {
        let started = spawn(fleet, &folder, golden);
        Ok((signers, started.map_err(|error| outside(format!("start the jailer: {error}")))?))
    });
    let (signers, (process, announcement)) = match started {
        Ok(started) => started,
        Err(failure) => {
            release(fleet, tenant, epoch).await;
            return Err(failure.into());
        }
    };
    fleet.metrics.starts.inc();
    let token = mint(&signers.superuser, SystemTime::now());
    let address = process.identity().address;
    let ready = async {
        // Noted while it boots. If we die before this is on disk, the lock on the directory still tells.
        let noted = fleet.placements.started(tenant, epoch, process.identity().clone());
        tokio::join!(noted, health::await_ready(address, &token, CHECK_PATIENCE, &announcement))
    };
    let failure = tokio::select! {
        biased;
        outcome = tokio::time::timeout(fleet.config.start_timeout, ready) => match outcome {
            Ok((Ok(()), Ok(()))) => return Ok((process, Running::new(address, epoch, signers))),
            Ok((Err(error), _)) => store(error).into(),
            // Somebody else answers where ours should. Whoever it is gets no traffic; another address will do.
            Ok((_, Err(health::Error::NotOurs))) => Setback::Again,
            Ok((_, Err(error))) => Failure::Crash(format!("its first health check failed: {error}")).into(),
            Err(_) => Failure::Crash("it did not become healthy in time".to_owned()).into(),
        },
        () = process.exited() => {
            let exit = process.bury();
            release(fleet, tenant, epoch).await;
            return Err(died(fleet, &folder, exit).await);
        }
        () = stop.cancelled() => outside("the server is shutting down").into(),
    };
    process.stop(fleet.config.stop_timeout).await;
    release(fleet, tenant, epoch).await;
    Err(failure)
}

fn spawn(fleet: &Fleet, folder: &Path, golden: &Golden) -> std::io::Result<(Process, Announcement)> {
    let log = logs::open(folder)?;
    logs::rotate(folder, fleet.config.log_bytes, fleet.config.log_files)?;
    let address = random_address();
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
    let spec = jail::Spec {
        program: fleet.binary.path.clone(),
        args,
        directory: folder.to_owned(),
        lock: folder.join("lock"),
        nofile: fleet.config.nofile,
        nproc: fleet.config.nproc,
        data_bytes: fleet.config.data_bytes,
    };
    let announcement = Announcement::of(&logs::path(folder));
    let process = Process::spawn(&process::own_program(), &spec, &log, address, &fleet.binary.sha256)?;
    Ok((process, announcement))
}

/// A loopback address nobody uses: 127.64.0.0/10 has four million, and the port lies below the ephemeral range.
/// Two fleets on one machine practically never meet, and if they do the start is repeated with another address.
fn random_address() -> SocketAddr {
    let [a, b, c, ..] = rand::random::<[u8; 8]>();
    let host = Ipv4Addr::new(127, 64 | (a & 0x3f), b, c.clamp(1, 254));
    SocketAddr::from((host, 20_000 + rand::random::<u16>() % 12_000))
}

/// What the exit of a starting process means.
async fn died(fleet: &Fleet, folder: &Path, exit: Exit) -> Setback {
    let lines = logs::tail(folder, 12);
    let last = lines.last().map(String::as_str).unwrap_or_default();
    if exit == Exit::Code(1) && last.contains("address already in use") {
        return Setback::Again;
    }
    if exit == Exit::Code(i32::from(jail::exit::LOCKED)) {
        return stop_stray(folder, fleet.config.stop_timeout).await;
    }
    Setback::Final(classify(exit, &lines))
}

/// Stops a process of an earlier life that still holds the data directory, if it is certainly one of ours.
pub(crate) async fn stop_stray_process(folder: &Path, patience: Duration) -> std::io::Result<bool> {
    let stray = process::find_stray(&folder.join("lock"), &folder.join("pb_data"))?;
    let Some(stray) = stray else { return Ok(false) };
    tracing::warn!(instance.pid = stray.identity().pid, "stop a stray process that holds a data directory");
    stray.stop(patience).await;
    Ok(true)
}

async fn stop_stray(folder: &Path, patience: Duration) -> Setback {
    match stop_stray_process(folder, patience).await {
        Ok(true) => Setback::Again,
        Ok(false) => outside("another process holds its data directory").into(),
        Err(error) => outside(format!("another process holds its data directory: {error}")).into(),
    }
}

/// What an exit that nobody asked for means (exit codes alone prove little; the log says more).
pub(crate) fn classify(exit: Exit, lines: &[String]) -> Failure {
    let said = lines.iter().rev().take(4).find(|line| !line.trim().is_empty()).cloned().unwrap_or_default();
    let has = |needle: &str| lines.iter().rev().take(4).any(|line| line.contains(needle));
    let reason = if said.is_empty() { exit.to_string() } else { format!("{exit}: {said}") };
    if let Exit::Code(code @ 120..=126) = exit {
        let what = if code == i32::from(jail::exit::EXEC) { "the PocketBase binary" } else { "the jailer" };
        return outside(format!("{what} failed: {said}"));
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
        assert!(
            matches!(classify(Exit::Code(0), &[]), Failure::Crash(_)),
            "leaving unasked is a crash, whatever the code"
        );
        assert!(matches!(classify(Exit::Signal(9), &[]), Failure::Crash(_)));
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
