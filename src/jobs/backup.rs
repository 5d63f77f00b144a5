//! Backups as jobs of the queue: of one tenant, of the fleet, reading them back, putting one in place, and pruning.
//!
//! A fleet job goes over all tenants, those first whose data changed, then the global instance, and the control database
//! last, so that every tenant it knows of is in the store. Doing any of these again does no harm: what did not change
//! is not copied, and a restore that was through is recognised by what it put away.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream;
use serde::Deserialize;
use serde::Serialize;
use serde_json::Value;
use serde_json::json;
use time::OffsetDateTime;

use crate::backup::Backups;
use crate::backup::Error;
use crate::backup::Manifest;
use crate::backup::Reason;
use crate::backup::SnapshotId;
use crate::backup::control;
use crate::ids::TenantId;
use crate::ids::UserId;
use crate::queue;
use crate::queue::Handler;
use crate::queue::Missed;
use crate::queue::NewJob;
use crate::queue::NewSchedule;
use crate::queue::Outcome;
use crate::queue::Policy;
use crate::queue::Queue;
use crate::queue::Run;
use crate::store::BoxFuture;
use crate::store::tenants::Tenants;
use crate::supervisor;
use crate::supervisor::directory::Unready;

/// Below everything that somebody waits for.
const PRIORITY: i8 = -50;
/// Failures that a result lists; all are counted.
const LISTED: usize = 50;
/// Tenants that are read from the view at once.
const PAGE: usize = 1_000;

/// What a job does. Its payload is this.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case")]
pub enum Task {
    /// A snapshot of one tenant.
    Tenant {
        /// Whose.
        tenant: TenantId,
        /// Who asked.
        reason: Reason,
    },
    /// Snapshots of everybody; of those who changed, or of all.
    Fleet {
        /// Also those who did not change.
        all: bool,
        /// Who asked.
        reason: Reason,
    },
    /// Reads snapshots back and tries them: one, or the newest of everybody.
    Verify {
        /// Whose, and which.
        one: Option<(TenantId, SnapshotId)>,
    },
    /// Puts a snapshot in the place of a tenant's data.
    Restore {
        /// Whose data is replaced.
        tenant: TenantId,
        /// Whose snapshot.
        from: TenantId,
        /// Which.
        id: SnapshotId,
    },
    /// Removes what is not kept.
    Prune,
}

/// The kind that replaces a tenant's data.
pub const RESTORE: &str = "backup_restore";
const KINDS: [&str; 5] = ["backup_tenant", "backup_fleet", "backup_verify", RESTORE, "backup_prune"];

impl Task {
    fn kind(&self) -> &'static str {
        match self {
            Self::Tenant { .. } => KINDS[0],
            Self::Fleet { .. } => KINDS[1],
            Self::Verify { .. } => KINDS[2],
            Self::Restore { .. } => KINDS[3],
            Self::Prune => KINDS[4],
        }
    }

    fn title(&self) -> String {
        match self {
            Self::Tenant { tenant, .. } => format!("Backup of {tenant}"),
            Self::Fleet { .. } => "Backup of the fleet".to_owned(),
            Self::Verify { one: Some((tenant, id)) } => format!("Trial of the backup {id} of {tenant}"),
            Self::Verify { one: None } => "Trial of the newest backups".to_owned(),
            Self::Restore { tenant, id, .. } => format!("Restore of the backup {id} to {tenant}"),
            Self::Prune => "Removal of old backups".to_owned(),
        }
    }

    /// Whether a job of this tenant may do it: the operator's may do everything, an owner's what is about their own.
    fn is_for(&self, whose: &TenantId) -> bool {
        match self {
            _ if *whose == control() => true,
            Self::Tenant { tenant, .. } => tenant == whose,
            Self::Restore { tenant, from, .. } => tenant == whose && from == whose,
            Self::Fleet { .. } | Self::Verify { .. } | Self::Prune => false,
        }
    }

    /// The job that does it, for whoever asks: an owner for their own tenant, or the operator.
    pub fn job(&self, owner: Option<(&TenantId, &UserId)>) -> NewJob {
        let (tenant, user) = owner.map_or_else(operator, |(tenant, user)| (tenant.clone(), user.clone()));
        let payload = serde_json::to_value(self).unwrap_or_default();
        NewJob {
            title: self.title(),
            priority: if owner.is_some() { 0 } else { PRIORITY },
            dedupe: Some(format!("{}.{payload}", self.kind()).chars().take(200).collect()),
            ..NewJob::new(self.kind(), tenant, user, payload)
        }
    }
}

/// Whose the jobs are that nobody's are.
fn operator() -> (TenantId, UserId) {
    (control(), UserId::parse("control").unwrap_or_else(|_| UserId::lowest()))
}

/// Does the jobs of one kind.
#[derive(Debug, Clone)]
struct Worker {
    kind: &'static str,
    backups: Backups,
    tenants: Tenants,
}

/// Registers who does the work, and sees to it that there is the schedule that the configuration says.
pub async fn begin(backups: &Backups, tenants: &Tenants, queue: &Queue) -> Result<(), queue::Error> {
    for kind in KINDS {
        queue.register(Arc::new(Worker { kind, backups: backups.clone(), tenants: tenants.clone() }));
    }
    let (tenant, user) = operator();
    let cron = if backups.is_on() { backups.config().schedule.as_str() } else { "" };
    let mut is_there = false;
    for schedule in queue.schedules(&tenant).iter().filter(|schedule| KINDS.contains(&schedule.kind.as_str())) {
        if schedule.cron == cron {
            is_there = true;
        } else {
            queue.remove_schedule(&tenant, &schedule.id).await?;
        }
    }
    if is_there || cron.is_empty() {
        return Ok(());
    }
    let task = Task::Fleet { all: false, reason: Reason::Schedule };
    let schedule = NewSchedule {
        tenant,
        user,
        cron: cron.to_owned(),
        kind: task.kind().to_owned(),
        title: task.title(),
        payload: serde_json::to_value(&task).unwrap_or_default(),
        priority: PRIORITY,
        urgency: 0,
        missed: Missed::Once,
    };
    queue.add_schedule(schedule, OffsetDateTime::now_utc()).await.map(drop)
}

impl Handler for Worker {
    fn kind(&self) -> &'static str {
        self.kind
    }

    fn policy(&self) -> Policy {
        Policy { max_attempts: 4, backoff_base: Duration::from_secs(10), concurrency: Some(2), ..Policy::default() }
    }

    fn run(&self, run: Run) -> BoxFuture<'static, Outcome> {
        let worker = self.clone();
        Box::pin(async move {
            let Ok(task) = serde_json::from_value::<Task>(run.job.payload.clone()) else {
                return Outcome::Dead { reason: "the payload is not one of a backup".to_owned() };
            };
            if !task.is_for(&run.job.tenant) {
                return Outcome::Dead { reason: "it is about another tenant's data".to_owned() };
            }
            let stop = run.cancelled().clone();
            tokio::select! {
                outcome = worker.work(task, &run) => judge(outcome),
                () = stop.cancelled() => Outcome::Cancelled,
            }
        })
    }
}

fn judge(outcome: Result<Value, Error>) -> Outcome {
    match outcome {
        Ok(value) => Outcome::Done(value),
        Err(error) if error.is_passing() => Outcome::Retry { reason: error.to_string(), after: None },
        Err(error) => Outcome::Dead { reason: error.to_string() },
    }
}

fn shown(value: &impl Serialize) -> Value {
    serde_json::to_value(value).unwrap_or_default()
}

impl Worker {
    async fn work(&self, task: Task, run: &Run) -> Result<Value, Error> {
        match task {
            Task::Tenant { tenant, reason } => {
                let manifest = self.backups.take(&tenant, reason).await?;
                Ok(json!({ "id": manifest.id, "tenant": tenant, "files": manifest.files, "bytes": manifest.bytes,
                    "new_bytes": manifest.new_bytes, "missing": manifest.missing, "skipped": manifest.skipped }))
            }
            Task::Fleet { all, reason } => self.fleet(all, reason, run).await,
            Task::Verify { one: Some((tenant, id)) } => Ok(shown(&self.backups.verify(&tenant, &id).await?)),
            Task::Verify { one: None } => self.verify_all(run).await,
            Task::Restore { tenant, from, id } => {
                let kept = if let Some(kept) = run.job.checkpoint["kept"].as_str() {
                    kept.to_owned()
                } else {
                    let kept = Backups::name_of_kept(&tenant);
                    // Before anything is done: whoever goes on after a kill has to know what was put away.
                    run.checkpoint(json!({ "kept": kept })).await.map_err(|_| Error::Stopping)?;
                    kept
                };
                let reason = if run.job.tenant == control() { Reason::Operator } else { Reason::Owner };
                Ok(shown(&self.backups.restore(&tenant, (&from, &id), &kept, reason).await?))
            }
            Task::Prune => Ok(shown(&self.backups.prune(None).await?)),
        }
    }

    /// Everybody with data, the global instance last.
    fn everybody(&self) -> Vec<TenantId> {
        let (mut found, mut after) = (Vec::new(), None);
        loop {
            let page = self.tenants.page(after.as_ref(), PAGE);
            let Some(last) = page.last() else { break };
            after = Some(last.id.clone());
            found.extend(page.iter().map(|tenant| tenant.id.clone()).filter(|id| !id.is_global()));
        }
        found.push(TenantId::global());
        found
    }

    async fn fleet(&self, all: bool, reason: Reason, run: &Run) -> Result<Value, Error> {
        let everybody = self.everybody();
        let total = everybody.len() as u64 + 1;
        let mut tally = Tally::default();
        let tasks: Vec<_> =
            everybody.into_iter().map(|tenant| one(self.backups.clone(), tenant, all, reason)).collect();
        let mut work = stream::iter(tasks).buffer_unordered(self.backups.config().concurrency);
        while let Some((tenant, outcome)) = work.next().await {
            match outcome {
                Ok(Some(manifest)) => {
                    tally.taken += 1;
                    tally.new_bytes += manifest.new_bytes;
                }
                Ok(None) => tally.unchanged += 1,
                Err(Error::Unready(Unready::NeverRan) | Error::Supervisor(supervisor::Error::Deleted)) => {
                    tally.without_data += 1;
                }
                Err(error @ (Error::Off | Error::Stopping)) => return Err(error),
                Err(error) => tally.failed(&tenant, &error),
            }
            run.progress("instances", tally.done(), Some(total));
        }
        drop(work);
        let manifest = self.backups.take(&control(), reason).await?;
        tally.new_bytes += manifest.new_bytes;
        run.progress("control database", total, Some(total));
        let pruned = self.backups.prune(None).await?;
        let mut result = shown(&tally);
        result["control"] = shown(&manifest.id);
        result["pruned"] = shown(&pruned);
        Ok(result)
    }

    async fn verify_all(&self, run: &Run) -> Result<Value, Error> {
        let newest: Vec<_> = self
            .backups
            .everything()
            .await?
            .into_iter()
            .filter_map(|(t, ids)| Some((t, ids.last()?.clone())))
            .collect();
        let total = newest.len() as u64;
        let mut tally = Tally::default();
        for (tenant, id) in newest {
            match self.backups.verify(&tenant, &id).await {
                Ok(_) => tally.taken += 1,
                Err(error @ (Error::Off | Error::Stopping)) => return Err(error),
                Err(error) => tally.failed(&tenant, &error),
            }
            run.progress("backups", tally.done(), Some(total));
        }
        Ok(json!({ "passed": tally.taken, "failed": tally.failed, "failures": tally.failures }))
    }
}

/// A snapshot of a tenant, unless nothing changed.
async fn one(
    backups: Backups,
    tenant: TenantId,
    all: bool,
    reason: Reason,
) -> (TenantId, Result<Option<Manifest>, Error>) {
    let attempt = async {
        // Also of those who did not change, and of the deleted: the old master key may be gone tomorrow.
        backups.renew_key(&tenant).await?;
        if !all && !backups.has_changed(&tenant).await? {
            return Ok(None);
        }
        backups.take(&tenant, reason).await.map(Some)
    };
    let outcome = attempt.await;
    (tenant, outcome)
}

/// What became of everybody.
#[derive(Debug, Default, Serialize)]
struct Tally {
    taken: u64,
    unchanged: u64,
    without_data: u64,
    failed: u64,
    new_bytes: u64,
    failures: Vec<Value>,
}

impl Tally {
    fn done(&self) -> u64 {
        self.taken + self.unchanged + self.without_data + self.failed
    }

    fn failed(&mut self, tenant: &TenantId, error: &Error) {
        tracing::warn!(tenant.id = %tenant, %error, "a backup failed");
        self.failed += 1;
        if self.failures.len() < LISTED {
            self.failures.push(json!({ "tenant": tenant, "reason": error.to_string() }));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_owners_job_is_about_their_own_data_and_nothing_else() {
        let [ada, bob] = ["ada", "bob"].map(|id| TenantId::parse(id).unwrap());
        let id = SnapshotId::parse("20261121T133701042-0a1b2c3d").unwrap();
        let restore = |tenant: &TenantId, from: &TenantId| Task::Restore {
            tenant: tenant.clone(),
            from: from.clone(),
            id: id.clone(),
        };
        let take = |tenant: &TenantId| Task::Tenant { tenant: tenant.clone(), reason: Reason::Owner };
        assert!(take(&ada).is_for(&ada) && restore(&ada, &ada).is_for(&ada));
        for task in [
            take(&bob),
            restore(&bob, &bob),
            restore(&ada, &bob),
            restore(&bob, &ada),
            take(&control()),
            Task::Fleet { all: true, reason: Reason::Owner },
            Task::Verify { one: None },
            Task::Prune,
        ] {
            assert!(!task.is_for(&ada), "{task:?}");
            assert!(task.is_for(&control()), "{task:?}");
        }
    }
}
