//! Several nodes on one store, and a store that refuses for no reason.

use std::collections::HashMap;
use std::collections::HashSet;
use std::sync::atomic::AtomicU64;

use bytes::Bytes;
use pocketfleet::store::Entry;
use pocketfleet::store::Error;
use pocketfleet::store::Revision;
use pocketfleet::store::Watch;

use super::*;

/// Refuses every third write though nobody else wrote, as a distributed backend may.
#[derive(Debug)]
struct Refusing {
    store: Arc<dyn Store>,
    writes: AtomicU64,
}

impl Refusing {
    fn refuses(&self) -> bool {
        self.writes.fetch_add(1, Ordering::Relaxed) % 3 == 2
    }
}

impl Store for Refusing {
    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Entry>, Error>> {
        self.store.get(key)
    }

    fn list<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Vec<Entry>, Error>> {
        self.store.list(prefix)
    }

    fn create<'a>(&'a self, key: &'a str, value: Bytes) -> BoxFuture<'a, Result<Revision, Error>> {
        if self.refuses() { Box::pin(async { Err(Error::Exists) }) } else { self.store.create(key, value) }
    }

    fn update<'a>(&'a self, key: &'a str, value: Bytes, expected: Revision) -> BoxFuture<'a, Result<Revision, Error>> {
        if self.refuses() { Box::pin(async { Err(Error::Stale) }) } else { self.store.update(key, value, expected) }
    }

    fn delete<'a>(&'a self, key: &'a str, expected: Revision) -> BoxFuture<'a, Result<Revision, Error>> {
        if self.refuses() { Box::pin(async { Err(Error::Stale) }) } else { self.store.delete(key, expected) }
    }

    fn watch<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Watch, Error>> {
        self.store.watch(prefix)
    }
}

fn node(store: &Arc<dyn Store>) -> Setup {
    Setup { is_alone: false, ..Setup::on(store) }
}

/// Three nodes do 300 jobs of ten tenants; each runs once.
async fn no_job_runs_twice_on(store: Arc<dyn Store>) {
    let log = Log::default();
    let mut nodes = Vec::new();
    for number in 0..3 {
        let noted = log.clone();
        let handler = does(move |run: Run| {
            noted.note((run.job.id, run.job.tenant.clone(), number));
            async { Outcome::Done(Value::Null) }
        });
        let mut setup = node(&store).handler(handler);
        (setup.config.concurrency, setup.config.per_tenant) = (4, 100);
        nodes.push(setup.start().await);
    }
    let mut ids = HashSet::new();
    for batch in 0..30 {
        // Half of them are one tenant's.
        let jobs = (0..10).map(|n| new_job(if n < 5 { 0 } else { n })).collect();
        ids.extend(nodes[batch % 3].add(jobs, now()).await.unwrap().iter().map(|added| added.job.id));
    }
    for queue in &nodes {
        for id in &ids {
            reaches(queue, id, State::Done).await;
        }
    }
    let mut runs: HashMap<JobId, usize> = HashMap::new();
    for (id, _, _) in log.events() {
        *runs.entry(id).or_default() += 1;
    }
    assert_eq!((ids.len(), runs.len()), (300, 300));
    assert!(runs.values().all(|count| *count == 1), "a job ran twice");
    for queue in nodes {
        queue.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_job_runs_twice_on_three_nodes() {
    let folder = tempfile::tempdir().unwrap();
    no_job_runs_twice_on(store(folder.path())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_job_runs_twice_or_is_lost_when_the_store_refuses_for_no_reason() {
    let folder = tempfile::tempdir().unwrap();
    no_job_runs_twice_on(Arc::new(Refusing { store: store(folder.path()), writes: AtomicU64::new(0) })).await;
}

#[tokio::test]
async fn everything_people_do_works_on_a_store_that_refuses_for_no_reason() {
    let folder = tempfile::tempdir().unwrap();
    let store: Arc<dyn Store> = Arc::new(Refusing { store: store(folder.path()), writes: AtomicU64::new(0) });
    let queue = node(&store).open().await;
    for n in 0..10 {
        let keyed = NewJob { idempotency_key: Some(format!("k{n}")), ..new_job(1) };
        let single = NewJob { dedupe: Some(format!("d{n}")), ..new_job(1) };
        let (keyed, single) = (add(&queue, keyed).await, add(&queue, single).await);
        queue.move_before(&tenant(1), &single.id, &keyed.id).await.unwrap();
        queue.move_to_front(&tenant(1), &keyed.id).await.unwrap();
        assert_eq!(queue.cancel(&tenant(1), &keyed.id, now()).await.unwrap().state, State::Cancelled);
        assert_eq!(queue.retry(&tenant(1), &keyed.id).await.unwrap().state, State::Queued);
        queue.pause(&tenant(1)).await.unwrap();
        queue.resume(&tenant(1)).await.unwrap();
    }
    assert_eq!((queue.waiting(), queue.active(&tenant(1)).len()), (20, 20));
}

#[tokio::test]
async fn the_first_forty_jobs_are_of_all_tenants_though_one_has_half_of_them() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path());
    let log = Log::default();
    let mut nodes = Vec::new();
    for _ in 0..2 {
        let noted = log.clone();
        let handler = does(move |run: Run| {
            noted.note(run.job.tenant.clone());
            async { Outcome::Done(Value::Null) }
        });
        let mut setup = node(&store).handler(handler);
        setup.config.concurrency = 2;
        let queue = setup.open().await;
        queue.start().await.unwrap();
        nodes.push(queue);
    }
    nodes[0].pause_kind(WORK).await.unwrap();
    eventually("paused everywhere", async || nodes[1].status().kinds.iter().any(|kind| kind.is_paused).then_some(()))
        .await;
    let big = (0..100).map(|_| new_job(0));
    let jobs = big.chain((0..100).map(|n| new_job(1 + n % 19))).collect();
    let added = nodes[0].add(jobs, now()).await.unwrap();
    eventually("seen", async || (nodes[1].waiting() == 200).then_some(())).await;
    nodes[1].resume_kind(WORK).await.unwrap();
    for added in &added {
        reaches(&nodes[0], &added.job.id, State::Done).await;
    }
    let first: HashSet<TenantId> = log.events().into_iter().take(40).collect();
    assert!(first.len() >= 19, "{} of 20 tenants", first.len());
    for queue in nodes {
        queue.stop().await;
    }
}

#[tokio::test]
async fn a_silent_nodes_job_is_taken_back_and_its_late_word_refused() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path());
    let (silent, other) = (node(&store).open().await, node(&store).start().await);
    let job = add(&silent, NewJob { kind: OUTSIDE.to_owned(), ..new_job(1) }).await;
    let claimed = workers::claim_one(&silent).await.unwrap();
    assert_eq!(claimed.job.id, job.id);
    // The other node has never heard of the worker: the job goes back in line when its term is over.
    let taken = eventually("taken back", async || other.job(&job.id).filter(|job| job.error.is_some())).await;
    assert!(taken.state.is_waiting() && taken.claim.is_none(), "{taken:?}");
    let again = eventually("claimed again", async || workers::claim_one(&other).await).await;
    assert!(again.fence > claimed.fence && again.job.attempts == 2);
    for answer in [
        silent.complete(&job.id, claimed.fence, json!("late")).await.err(),
        silent.fail(&job.id, claimed.fence, "late".to_owned(), true, None).await.err(),
        silent.heartbeat(&job.id, claimed.fence, None).await.err(),
        silent.note_checkpoint(&job.id, claimed.fence, json!(1)).await.err(),
    ] {
        assert!(matches!(answer, Some(queue::Error::Lost)), "{answer:?}");
    }
    let done = other.complete(&job.id, again.fence, json!("in time")).await.unwrap();
    assert_eq!(done.result, Some(json!("in time")));
    other.stop().await;
}

#[tokio::test]
async fn a_job_that_runs_longer_than_its_lease_stays_its_nodes_and_is_cancelled_from_another() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path());
    let runner = node(&store).handler(waits()).start().await;
    let mut setup = node(&store);
    setup.handlers = Vec::new();
    let other = setup.start().await;
    let job = add(&runner, new_job(1)).await;
    let begun = reaches(&other, &job.id, State::Running).await;
    // Two terms pass with nothing but heartbeats.
    let until = tokio::time::Instant::now() + 2 * begun.claim.as_ref().unwrap().term();
    eventually("two terms", async || (tokio::time::Instant::now() > until).then_some(())).await;
    let still = other.job(&job.id).unwrap();
    assert_eq!((still.state, still.fence(), still.attempts), (State::Running, begun.fence(), 1));
    other.cancel(&tenant(1), &job.id, now()).await.unwrap();
    reaches(&runner, &job.id, State::Cancelled).await;
    runner.stop().await;
    other.stop().await;
}
