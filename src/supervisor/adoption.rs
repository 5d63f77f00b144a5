//! Taking over what an earlier pocketfleet left running.
//!
//! A process is adopted when the record and the kernel agree on who it is (boot, pid, start tick, pidfd inode), it
//! runs the binary we would run, in the sandbox we would put it into, and it answers an authenticated health check. Everything else that holds a data
//! directory is stopped first, because two processes on one directory corrupt nothing visibly and lose everything
//! quietly.

use std::sync::Arc;
use std::time::Duration;
use std::time::SystemTime;

use futures_util::StreamExt;
use futures_util::stream;
use rustix::process::Signal;

use crate::ids::TenantId;
use crate::pocketbase::copy::Served;
use crate::pocketbase::database::Signers;
use crate::store::placements::Occupancy;
use crate::store::placements::Placement;
use crate::store::placements::ProcessIdentity;
use crate::supervisor::confine::Confinement;
use crate::supervisor::fleet::Fleet;
use crate::supervisor::health;
use crate::supervisor::instance::Instance;
use crate::supervisor::instance::Occupied;
use crate::supervisor::jail;
use crate::supervisor::launch;
use crate::supervisor::launch::PROOF_TTL;
use crate::supervisor::logs;
use crate::supervisor::process;
use crate::supervisor::process::Process;
use crate::supervisor::replace;
use crate::supervisor::roster;
use crate::supervisor::slot::Running;
use crate::supervisor::slot::Slot;
use crate::supervisor::slot::mint;
use crate::supervisor::snapshot;
use crate::supervisor::state::Failure;
use crate::supervisor::upgrade;

/// Checks under way at once.
const CONCURRENCY: usize = 16;
/// All that is asked about one process: longer than each of its parts.
const CHECK: Duration = Duration::from_mins(1);
/// How long a live process may take to prove itself.
const PATIENCE: Duration = Duration::from_secs(2);

/// Settles every placement that says a process runs.
pub(crate) async fn adopt_all(fleet: &Arc<Fleet>) {
    let owned = fleet.placements.owned();
    let count = owned.len();
    fleet.lookers.open();
    stream::iter(owned).for_each_concurrent(CONCURRENCY, |placement| settle(fleet, placement)).await;
    let done = Arc::clone(fleet);
    drop(tokio::task::spawn_blocking(move || done.lookers.close()).await);
    stop_unrecorded(fleet).await;
    if count > 0 {
        let adopted = fleet.metrics.adopted.get();
        tracing::info!(recorded = count, adopted, "settled the processes of an earlier run");
    }
}

/// Stops what serves one of our directories and was not adopted: its record was lost, damaged, or restored from an
/// older copy of the control database.
async fn stop_unrecorded(fleet: &Fleet) {
    let serving = match process::serving(&fleet.layout.instances) {
        Ok(serving) => serving,
        Err(error) => return tracing::error!(%error, "look for processes without a record"),
    };
    for (pid, name) in serving {
        let known = TenantId::parse(&name).ok().and_then(|id| fleet.registry.get(&id).map(|slot| slot.view.load().pid));
        if known == Some(Some(pid)) {
            continue;
        }
        let folder = fleet.layout.instances.join(&name);
        if let Err(error) = launch::stop_stray_process(&folder, fleet.config.stop_timeout).await {
            tracing::error!(instance.pid = pid, %error, "stop a process without a record");
        }
    }
}

async fn settle(fleet: &Arc<Fleet>, placement: Arc<Placement>) {
    let Occupancy::Owned { process, .. } = &placement.occupancy else { return };
    let refusal = match process {
        Some(identity) => match Process::adopt(identity) {
            Ok(process) => match take_over(fleet, &placement, identity, process).await {
                Ok(()) => return,
                Err(refusal) => refusal,
            },
            Err(error) => error.to_string(),
        },
        None => "it was never noted".to_owned(),
    };
    let folder = fleet.folder(&placement.tenant);
    // Whatever the record says, the lock knows whether somebody still uses the directory.
    match jail::is_locked(&folder.join("lock")) {
        Ok(false) => {}
        Ok(true) | Err(_) => {
            if let Err(error) = launch::stop_stray_process(&folder, fleet.config.stop_timeout).await {
                tracing::error!(tenant.id = %placement.tenant, %error, "look for a stray process");
            }
        }
    }
    tracing::info!(tenant.id = %placement.tenant, reason = %refusal, "not adopted");
    // The record is another incarnation's; it becomes ours before we may say that its process is gone.
    if let Err(error) = fleet.placements.adopt(&placement.tenant, placement.epoch).await {
        tracing::error!(tenant.id = %placement.tenant, %error, "take over the record of an earlier run");
        return;
    }
    launch::release(fleet, &placement.tenant, placement.epoch).await;
}

/// Whether a process runs in the sandbox that it would be put into. Where that cannot be told it is not kept: its next
/// start finds out, or waits.
fn fits(confinement: Result<Confinement, Failure>, profile: &str) -> Result<Confinement, String> {
    match confinement {
        Ok(confinement) if confinement.profile == profile => Ok(confinement),
        Ok(_) => Err("it runs in another sandbox".to_owned()),
        Err(failure) => Err(format!("the sandbox it belongs into cannot be told: {failure:?}")),
    }
}

/// The health check, as patient as the probes of a running instance: one that is busy, or that restarts itself after a
/// restore of its own (a second of refused connections), is not stopped for it.
async fn prove(identity: &ProcessIdentity, signers: &Signers) -> Result<(), health::Error> {
    let mut tries = 0;
    loop {
        let token = mint(&signers.superuser, SystemTime::now(), PROOF_TTL);
        match health::check(identity.address, &token, PATIENCE).await {
            Ok(_) => return Ok(()),
            Err(health::Error::Unreachable | health::Error::Unasked(_)) if tries < 10 => {
                tries += 1;
                tokio::time::sleep(Duration::from_millis(300)).await;
            }
            Err(health::Error::Timeout) if tries < 2 => tries += 1,
            Err(error) => return Err(error),
        }
    }
}

/// Checks a process that is certainly the recorded one; stops it when it does not pass.
async fn take_over(
    fleet: &Arc<Fleet>,
    placement: &Placement,
    identity: &ProcessIdentity,
    process: Process,
) -> Result<(), String> {
    // The run before may have frozen it; it is as it was, and proves itself like any other.
    if let Err(error) = process.signal(Signal::CONT) {
        tracing::error!(tenant.id = %placement.tenant, %error, "let a process of an earlier run go on");
    }
    let checked = async {
        let tenant = fleet.find(&placement.tenant).ok_or("its tenant is not registered")?;
        if tenant.suspended {
            return Err("its tenant is suspended".to_owned());
        }
        if !fleet.binaries.has(&identity.binary_sha256) {
            return Err("it runs another PocketBase binary".to_owned());
        }
        let confinement = fleet.confinement(&placement.tenant, &tenant.template).await;
        let confinement = fits(confinement, &identity.jail_profile)?;
        let connected = fleet.connect(&confinement, identity.address).await;
        connected.map_err(|_| "the rules of level 3 are not in force")?;
        // Nobody has been served by it, so stopping it loses nothing; its next start rolls the data back.
        if snapshot::is_unfinished(&fleet.folder(&placement.tenant)) {
            return Err("its upgrade was not finished".to_owned());
        }
        if replace::is_pending(&fleet.folder(&placement.tenant)) {
            return Err("its restore was not finished".to_owned());
        }
        let (of, id) = (Arc::clone(fleet), placement.tenant.clone());
        let look = move || roster::keys(&of, &id, Served::Yes).map(|(signers, _)| signers);
        let read = tokio::task::spawn_blocking(look).await;
        let signers = read.map_err(|_| "the task failed")?.map_err(|error| error.to_string())?;
        prove(identity, &signers).await.map_err(|error| error.to_string())?;
        if let Err(error) = fleet.placements.adopt(&placement.tenant, placement.epoch).await {
            // A full disk under the control database is no reason to stop a healthy instance.
            tracing::error!(tenant.id = %placement.tenant, %error, "note that an instance was adopted");
        }
        Ok(signers)
    };
    // Nobody is served before all are settled: one that cannot be told in time is stopped.
    let checked = tokio::time::timeout(CHECK, checked).await;
    match checked.unwrap_or_else(|_| Err("it could not be checked in time".to_owned())) {
        Ok(signers) => {
            let log_start = logs::length(&fleet.folder(&placement.tenant));
            let running = Arc::new(Running::new(identity.address, placement.epoch, signers, log_start));
            // What it printed before is not about how it ends.
            let admission = fleet.admit_adopted(&placement.tenant);
            let (slot, inbox) = Slot::new(placement.tenant.clone(), fleet.config.max_in_flight);
            let process = process.with_log(logs::handle(&fleet.folder(&placement.tenant)));
            let occupied = Occupied { process, running, admission };
            let instance = Instance::adopted(Arc::clone(fleet), Arc::clone(&slot), inbox, occupied);
            fleet.registry.insert(placement.tenant.clone(), slot);
            fleet.tasks.spawn_on(instance.run(), &fleet.runtime);
            fleet.metrics.adopted.inc();
            if let Some(tenant) = fleet.tenants.find(&placement.tenant) {
                upgrade::settle_adopted(fleet, &tenant).await;
            }
            Ok(())
        }
        Err(refusal) => {
            process.stop(fleet.config.stop_timeout).await;
            Err(refusal)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_whose_sandbox_cannot_be_told_is_not_kept() {
        let unknown = Err(Failure::Outside("no user is left for it".to_owned(), PATIENCE));
        assert!(fits(unknown, "2-0123").unwrap_err().contains("no user is left"));
    }
}
