//! Looking at jobs: all from memory, no I/O.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::collections::HashMap;
use std::ops::Bound;
use std::sync::Arc;

use super::Job;
use super::JobId;
use super::Queue;
use super::State;
use super::board::Board;
use crate::ids::TenantId;
use crate::ids::UserId;

/// Most jobs of one [`Page`].
const MAX_PAGE: usize = 500;

/// Which jobs a list holds. Empty takes all.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// In one of these states; none = any.
    pub states: Vec<State>,
    /// Of this kind.
    pub kind: Option<String>,
    /// Asked for by this user.
    pub user: Option<UserId>,
    /// [`Page::next`] of the page before.
    pub cursor: Option<u64>,
    /// At most so many (500 at most; 0 = 50).
    pub limit: usize,
}

impl Filter {
    fn takes(&self, job: &Job) -> bool {
        (self.states.is_empty() || self.states.contains(&job.state))
            && self.kind.as_ref().is_none_or(|kind| **kind == *job.kind)
            && self.user.as_ref().is_none_or(|user| *user == job.user)
    }
}

/// Some jobs, the newest first.
#[derive(Debug, Clone)]
pub struct Page {
    /// The jobs.
    pub items: Vec<Arc<Job>>,
    /// Where the next page begins; none when this is the last.
    pub next: Option<u64>,
}

/// An unfinished job and its place in line.
#[derive(Debug, Clone)]
pub struct Active {
    /// The job.
    pub job: Arc<Job>,
    /// 1 = the next of its kind to be begun; none when it is not in line (running, scheduled, parked, paused).
    pub position: Option<u64>,
}

/// The queue in numbers, for operators.
#[derive(Debug, Clone)]
pub struct Status {
    /// By kind, in order of names.
    pub kinds: Vec<KindStatus>,
    /// Unfinished jobs in all.
    pub unfinished: usize,
    /// Tenants that have jobs.
    pub tenants: usize,
    /// Paused tenants.
    pub paused_tenants: usize,
    /// Jobs that this process runs now.
    pub running_here: usize,
    /// Whether the queue begins jobs no more because it is being stopped.
    pub is_stopping: bool,
}

/// One kind in numbers.
#[derive(Debug, Clone)]
pub struct KindStatus {
    /// The kind.
    pub kind: Arc<str>,
    /// Whether workers outside this program do it.
    pub is_external: bool,
    /// Whether an operator has paused it.
    pub is_paused: bool,
    /// Jobs by state.
    pub states: BTreeMap<&'static str, usize>,
}

impl Queue {
    /// A tenant's job, whatever its state.
    pub fn find(&self, tenant: &TenantId, id: &JobId) -> Option<Arc<Job>> {
        self.job(id).filter(|job| job.tenant == *tenant)
    }

    /// A job of any tenant, for operators and workers.
    pub fn job(&self, id: &JobId) -> Option<Arc<Job>> {
        self.board().find(id).map(|(job, _)| Arc::clone(job))
    }

    /// A tenant's jobs, the newest first, finished ones as long as they are kept.
    pub fn list(&self, tenant: &TenantId, filter: &Filter) -> Page {
        let board = self.board();
        match board.books.get(tenant) {
            Some(book) => page(&board, &book.jobs, filter),
            None => Page { items: Vec::new(), next: None },
        }
    }

    /// The jobs of all tenants, the newest first, for operators.
    pub fn list_all(&self, filter: &Filter) -> Page {
        let board = self.board();
        page(&board, &board.all, filter)
    }

    /// A tenant's unfinished jobs: those that run, then those in line in the order of dispatch with their positions,
    /// then those that wait for their time, then parked ones. O(tenants in line + own jobs).
    pub fn active(&self, tenant: &TenantId) -> Vec<Active> {
        let board = self.board();
        let Some(book) = board.books.get(tenant) else { return Vec::new() };
        let positions: HashMap<JobId, u64> =
            board.lanes.values().flat_map(|lane| lane.line.of_tenant(tenant)).collect();
        let jobs = book.jobs.iter().filter_map(|(_, id)| board.find(id)).map(|(job, _)| job);
        let mut active: Vec<Active> = jobs
            .filter(|job| !job.state.is_finished())
            .map(|job| Active { job: Arc::clone(job), position: positions.get(&job.id).map(|ahead| ahead + 1) })
            .collect();
        drop(board);
        active.sort_by_key(|active| {
            let job = &active.job;
            let group = match job.state {
                State::Running => 0,
                State::Queued => 1,
                State::Scheduled => 2,
                _ => 3,
            };
            (group, active.position.unwrap_or(u64::MAX), Reverse(job.priority), job.run_at, job.rank())
        });
        active
    }

    /// A job's place in the line of its kind, 1 = next; none when it is not in line.
    pub fn position(&self, id: &JobId) -> Option<u64> {
        self.board().ahead(id).map(|ahead| ahead + 1)
    }

    /// Jobs in line, of all tenants and kinds.
    pub fn waiting(&self) -> u64 {
        self.board().lanes.values().map(|lane| lane.line.waiting() as u64).sum()
    }

    /// Whether a tenant's jobs are paused.
    pub fn is_paused(&self, tenant: &TenantId) -> bool {
        self.board().paused.contains(tenant)
    }

    /// The queue in numbers.
    pub fn status(&self) -> Status {
        let board = self.board();
        let states =
            |counts: &[usize; 7]| State::ALL.iter().map(|state| (state.as_str(), counts[*state as usize])).collect();
        let kinds = board.lanes.iter().map(|(kind, lane)| KindStatus {
            kind: Arc::clone(kind),
            is_external: self.is_external(kind),
            is_paused: lane.is_paused,
            states: states(&lane.counts),
        });
        Status {
            kinds: kinds.collect(),
            unfinished: board.unfinished,
            tenants: board.books.len(),
            paused_tenants: board.paused.len(),
            running_here: board.attempts.len(),
            is_stopping: self.inner.stopping.is_cancelled(),
        }
    }
}

fn page(board: &Board, jobs: &std::collections::BTreeSet<(u64, JobId)>, filter: &Filter) -> Page {
    let limit = if filter.limit == 0 { 50 } else { filter.limit.min(MAX_PAGE) };
    // Names do not matter here: no two jobs have the same number.
    let lowest = JobId::lowest();
    let end = filter.cursor.map_or(Bound::Unbounded, |cursor| Bound::Excluded((cursor, lowest)));
    let found = jobs.range((Bound::Unbounded, end)).rev().filter_map(|(_, id)| board.find(id));
    let mut found = found.map(|(job, _)| job).filter(|job| filter.takes(job));
    let items: Vec<Arc<Job>> = found.by_ref().take(limit).cloned().collect();
    let next = if found.next().is_some() { items.last().map(|job| job.sequence()) } else { None };
    Page { items, next }
}
