//! The order of dispatch within one kind, and the arithmetic that tells a job's place in it. Pure.
//!
//! Rule: the highest priority first; within a priority the tenant with the fewest running jobs, and of those the one
//! that was served least recently (or came first); within a tenant the job that was added first, unless it was moved.
//!
//! Because a tenant's share only grows by being served, the order of the whole line has a closed form, and nothing
//! has to be simulated. Let `r` be a tenant's running jobs and `s` its stamp of last service: its k-th waiting job
//! (from 0) goes at level `r + k`. Of the jobs of one level those go first whose tenant began at the highest level
//! (it was served longest ago, before the others were served on the way up), then by `s`. So the line is sorted by
//! `(r + k, -r, s)`, and how many jobs of another tenant come before a given one is a subtraction.
//!
//! Costs, with T tenants waiting in a priority and J jobs of one tenant: adding and removing O(log J); the next job and
//! a position O(T) over 16 bytes a tenant, whatever the number of jobs; all positions of a tenant O(T + J log T) or,
//! below a higher priority, O(T log T) more.
//!
//! Positions suppose that nothing else changes and that room is found for each job in turn: a tenant at its limit
//! of running jobs is passed over by jobs of lower priority that can run now.

use std::borrow::Cow;
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::collections::HashMap;
use std::ops::Bound;

use super::JobId;
use super::job::Rank;
use crate::ids::TenantId;

/// The waiting jobs of one kind.
#[derive(Debug, Default)]
pub(super) struct Line {
    classes: BTreeMap<Reverse<i8>, Class>,
    shares: HashMap<TenantId, Share>,
    /// Grows with each service and each arrival.
    clock: u64,
    waiting: usize,
    running: usize,
}

/// What a tenant has of the line, while it has anything.
#[derive(Debug, Clone, Copy, Default)]
struct Share {
    running: u32,
    waiting: u32,
    served: u64,
}

/// The waiting jobs of one priority.
#[derive(Debug, Default)]
struct Class {
    places: HashMap<TenantId, usize>,
    /// Two columns with the same index: this one is scanned, so it is small.
    standings: Vec<Standing>,
    queues: Vec<(TenantId, BTreeSet<(Rank, JobId)>)>,
}

/// Where a tenant stands in a class.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Standing {
    running: u32,
    waiting: u32,
    served: u64,
}

impl Standing {
    /// How many of this tenant's jobs go before a job at a level of a tenant that began as `other`.
    fn before(self, level: u64, other: (Reverse<u32>, u64)) -> u64 {
        let on_the_level = u64::from((Reverse(self.running), self.served) < other);
        (level + on_the_level).saturating_sub(self.running.into()).min(self.waiting.into())
    }
}

impl Class {
    fn insert(&mut self, tenant: &TenantId, share: Share, place: (Rank, JobId)) -> bool {
        let index = *self.places.entry(tenant.clone()).or_insert_with(|| {
            self.standings.push(Standing { running: share.running, waiting: 0, served: share.served });
            self.queues.push((tenant.clone(), BTreeSet::new()));
            self.queues.len() - 1
        });
        let is_new = self.queues[index].1.insert(place);
        self.standings[index].waiting += u32::from(is_new);
        is_new
    }

    fn remove(&mut self, tenant: &TenantId, place: (Rank, JobId)) -> bool {
        let Some(index) = self.places.get(tenant).copied() else { return false };
        if !self.queues[index].1.remove(&place) {
            return false;
        }
        self.standings[index].waiting -= 1;
        if self.queues[index].1.is_empty() {
            self.places.remove(tenant);
            self.standings.swap_remove(index);
            self.queues.swap_remove(index);
            if let Some((moved, _)) = self.queues.get(index) {
                self.places.insert(moved.clone(), index);
            }
        }
        true
    }

    fn note(&mut self, tenant: &TenantId, share: Share) {
        if let Some(index) = self.places.get(tenant) {
            let standing = &mut self.standings[*index];
            (standing.running, standing.served) = (share.running, share.served);
        }
    }
}

impl Line {
    /// Waiting jobs.
    pub(super) fn waiting(&self) -> usize {
        self.waiting
    }

    /// Running jobs, those that are being claimed included.
    pub(super) fn running(&self) -> usize {
        self.running
    }

    /// Running jobs of a tenant.
    pub(super) fn running_of(&self, tenant: &TenantId) -> usize {
        self.shares.get(tenant).map_or(0, |share| share.running as usize)
    }

    /// Waiting jobs of a tenant.
    pub(super) fn waiting_of(&self, tenant: &TenantId) -> usize {
        self.shares.get(tenant).map_or(0, |share| share.waiting as usize)
    }

    /// A job waits.
    pub(super) fn insert(&mut self, tenant: &TenantId, priority: i8, rank: Rank, id: JobId) {
        let share = *self.shares.entry(tenant.clone()).or_insert_with(|| {
            self.clock += 1;
            Share { served: self.clock, ..Share::default() }
        });
        if self.classes.entry(Reverse(priority)).or_default().insert(tenant, share, (rank, id)) {
            self.waiting += 1;
            self.change(tenant, |share| share.waiting += 1);
        }
    }

    /// A job no longer waits.
    pub(super) fn remove(&mut self, tenant: &TenantId, priority: i8, rank: Rank, id: JobId) {
        let Some(class) = self.classes.get_mut(&Reverse(priority)) else { return };
        if class.remove(tenant, (rank, id)) {
            if class.queues.is_empty() {
                self.classes.remove(&Reverse(priority));
            }
            self.waiting -= 1;
            self.change(tenant, |share| share.waiting -= 1);
        }
    }

    /// A job of the tenant is being worked on.
    pub(super) fn start(&mut self, tenant: &TenantId) {
        self.clock += 1;
        let served = self.clock;
        self.running += 1;
        self.shares.entry(tenant.clone()).or_default();
        self.change(tenant, |share| (share.running, share.served) = (share.running + 1, served));
    }

    /// A job of the tenant is no longer worked on.
    pub(super) fn end(&mut self, tenant: &TenantId) {
        self.running = self.running.saturating_sub(1);
        self.change(tenant, |share| share.running = share.running.saturating_sub(1));
    }

    fn change(&mut self, tenant: &TenantId, change: impl FnOnce(&mut Share)) {
        let Some(share) = self.shares.get_mut(tenant) else { return };
        change(share);
        let share = *share;
        if share.running == 0 && share.waiting == 0 {
            // Who comes back gets a place behind those who waited, so nothing needs to be remembered.
            self.shares.remove(tenant);
            return;
        }
        for class in self.classes.values_mut() {
            class.note(tenant, share);
        }
    }

    /// The job to begin next, for tenants with fewer than `limit` running ones; of one tenant only, if so asked.
    pub(super) fn next(&self, limit: usize, only: Option<&TenantId>) -> Option<JobId> {
        let limit = u32::try_from(limit).unwrap_or(u32::MAX);
        self.classes.values().find_map(|class| {
            let is_open = |index: &usize| class.standings[*index].running < limit;
            let index = if let Some(tenant) = only {
                class.places.get(tenant).copied().filter(is_open)
            } else {
                let open = class.standings.iter().enumerate().filter(|(index, _)| is_open(index));
                open.min_by_key(|(_, standing)| (standing.running, standing.served)).map(|(index, _)| index)
            };
            class.queues[index?].1.first().map(|(_, id)| *id)
        })
    }

    /// How many jobs go before this one.
    pub(super) fn ahead(&self, tenant: &TenantId, priority: i8, rank: Rank, id: JobId) -> Option<u64> {
        let class = self.classes.get(&Reverse(priority))?;
        let (_, queue) = &class.queues[*class.places.get(tenant)?];
        let k = index_of(queue, &(rank, id))?;
        Some(self.begin(tenant, priority, class)?.ahead(k))
    }

    /// All waiting jobs of a tenant in their order, each with how many jobs go before it.
    pub(super) fn of_tenant(&self, tenant: &TenantId) -> Vec<(JobId, u64)> {
        let mut found = Vec::new();
        for (Reverse(priority), class) in &self.classes {
            let Some(index) = class.places.get(tenant) else { continue };
            let Some(first) = self.begin(tenant, *priority, class) else { continue };
            let first = first.sorted();
            found.extend(class.queues[*index].1.iter().enumerate().map(|(k, (_, id))| (*id, first.ahead(k))));
        }
        found
    }

    fn begin<'a>(&self, tenant: &TenantId, priority: i8, class: &'a Class) -> Option<Beginning<'a>> {
        let own = *class.places.get(tenant)?;
        let higher = self.classes.range(..Reverse(priority));
        let above: u64 = higher.clone().map(|(_, class)| class.waiting()).sum();
        let mut standings = Cow::Borrowed(class.standings.as_slice());
        if above > 0 {
            let after = self.after(higher.map(|(_, class)| class));
            for (standing, (tenant, _)) in standings.to_mut().iter_mut().zip(&class.queues) {
                if let Some((running, served)) = after.get(tenant) {
                    (standing.running, standing.served) = (*running, *served);
                }
            }
        }
        let own = standings[own];
        Some(Beginning { above, own, standings, ends: None })
    }

    /// What the shares of the tenants of some classes are once all of these classes' jobs were begun.
    fn after<'a>(&'a self, classes: impl Iterator<Item = &'a Class>) -> HashMap<&'a TenantId, (u32, u64)> {
        let mut after: HashMap<&TenantId, (u32, u64)> = HashMap::new();
        let mut clock = self.clock;
        for class in classes {
            let mut last: Vec<_> = class
                .standings
                .iter()
                .zip(&class.queues)
                .map(|(standing, (tenant, _))| {
                    let (running, served) = after.get(tenant).copied().unwrap_or((standing.running, standing.served));
                    // The key of the tenant's last job in this class, by which the tenants are served last.
                    ((running + standing.waiting, Reverse(running), served), tenant)
                })
                .collect();
            last.sort_unstable_by_key(|(key, _)| *key);
            for ((running, _, _), tenant) in last {
                clock += 1;
                after.insert(tenant, (running, clock));
            }
        }
        after
    }
}

/// How many of the set come before this one of it. Counts from both ends at once: those that were added last and those
/// that come next are asked for most.
fn index_of(queue: &BTreeSet<(Rank, JobId)>, place: &(Rank, JobId)) -> Option<usize> {
    if !queue.contains(place) {
        return None;
    }
    let (mut before, mut behind) = (queue.range(..place), queue.range((Bound::Excluded(place), Bound::Unbounded)));
    (0..queue.len()).find_map(|steps| match (before.next(), behind.next()) {
        (None, _) => Some(steps),
        (_, None) => Some(queue.len() - 1 - steps),
        _ => None,
    })
}

impl Class {
    fn waiting(&self) -> u64 {
        self.standings.iter().map(|standing| u64::from(standing.waiting)).sum()
    }
}

/// How the tenants stand when a class has its turn.
struct Beginning<'a> {
    above: u64,
    own: Standing,
    standings: Cow<'a, [Standing]>,
    ends: Option<Levels>,
}

/// The tenants' first and last levels, sorted, with running sums: many positions at little cost.
struct Levels {
    begins: Vec<u64>,
    begin_sums: Vec<u64>,
    ends: Vec<u64>,
    end_sums: Vec<u64>,
    /// Of tenants that go before the own one on a level both are on.
    earlier_begins: Vec<u64>,
    earlier_ends: Vec<u64>,
}

impl Beginning<'_> {
    /// How many jobs go before the k-th one of the tenant.
    fn ahead(&self, k: usize) -> u64 {
        let level = u64::from(self.own.running) + k as u64;
        let order = (Reverse(self.own.running), self.own.served);
        if let Some(ends) = &self.ends {
            return self.above + ends.before(level);
        }
        self.above + self.standings.iter().map(|standing| standing.before(level, order)).sum::<u64>()
    }

    /// Prepares for many questions.
    fn sorted(mut self) -> Self {
        let order = (Reverse(self.own.running), self.own.served);
        let begin = |standing: &Standing| u64::from(standing.running);
        let end = |standing: &Standing| u64::from(standing.running) + u64::from(standing.waiting);
        let is_earlier = |standing: &&Standing| (Reverse(standing.running), standing.served) < order;
        let levels = |of: &dyn Fn(&Standing) -> u64, earlier: bool| {
            let chosen = self.standings.iter().filter(|standing| !earlier || is_earlier(standing));
            let mut levels: Vec<u64> = chosen.map(of).collect();
            levels.sort_unstable();
            levels
        };
        let sums = |levels: &[u64]| {
            let add = |sum: &mut u64, level: &u64| {
                *sum += level;
                Some(*sum)
            };
            levels.iter().scan(0, add).collect::<Vec<u64>>()
        };
        let (begins, ends) = (levels(&begin, false), levels(&end, false));
        let (earlier_begins, earlier_ends) = (levels(&begin, true), levels(&end, true));
        let (begin_sums, end_sums) = (sums(&begins), sums(&ends));
        self.ends = Some(Levels { begins, begin_sums, ends, end_sums, earlier_begins, earlier_ends });
        self
    }
}

impl Levels {
    /// Jobs on lower levels, and on this one before the own tenant's.
    fn before(&self, level: u64) -> u64 {
        // The sum of max(0, level - x) over sorted levels x.
        let climbed = |levels: &[u64], sums: &[u64]| {
            let below = levels.partition_point(|x| *x < level);
            level * below as u64 - below.checked_sub(1).map_or(0, |last| sums[last])
        };
        let lower = climbed(&self.begins, &self.begin_sums) - climbed(&self.ends, &self.end_sums);
        let reached = |levels: &[u64]| levels.partition_point(|x| *x <= level) as u64;
        lower + reached(&self.earlier_begins) - reached(&self.earlier_ends)
    }
}
