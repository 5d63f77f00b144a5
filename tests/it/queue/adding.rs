//! Adding jobs: durable, bounded, once.

use bytes::Bytes;
use futures_util::future::join_all;
use pocketfleet::queue::Error;
use pocketfleet::queue::Filter;
use pocketfleet::store;
use pocketfleet::store::Entry;
use pocketfleet::store::Revision;
use pocketfleet::store::Watch;
use tokio::sync::Semaphore;

use super::*;

#[tokio::test]
async fn an_acknowledged_job_is_on_disk_and_found_by_the_next_run() {
    let folder = tempfile::tempdir().unwrap();
    let id = {
        let database = Arc::new(ControlDatabase::open(&folder.path().join("control.db")).unwrap());
        let store: Arc<dyn Store> = Arc::clone(&database) as _;
        let queue = Setup::on(&store).open().await;
        let job = add(&queue, NewJob { title: "one\nline".to_owned(), ..new_job(1) }).await;
        assert_eq!((job.state, job.title.as_str(), queue.waiting()), (State::Queued, "oneline", 1));
        database.close().await;
        job.id
    };
    let queue = Setup::on(&store(folder.path())).open().await;
    let found = queue.find(&tenant(1), &id).unwrap();
    assert_eq!((found.state, &found.payload), (State::Queued, &json!({ "owner": 1 })));
    assert!(queue.find(&tenant(2), &id).is_none(), "another tenant sees it");
    queue.start().await.unwrap();
    reaches(&queue, &id, State::Done).await;
    queue.stop().await;
}

#[tokio::test]
async fn the_same_key_is_the_same_job_and_a_different_one_a_conflict() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path());
    let nodes = [Setup::on(&store).open().await, Setup::on(&store).open().await];
    let keyed = |payload: Value| NewJob { idempotency_key: Some("k".to_owned()), payload, ..new_job(1) };
    // At once, on two nodes.
    let adds = (0..20).map(|n| nodes[n % 2].add(vec![keyed(json!(1))], now()));
    let added: Vec<_> = join_all(adds).await.into_iter().map(|added| added.unwrap().pop().unwrap()).collect();
    assert_eq!(added.iter().filter(|added| added.is_new).count(), 1);
    assert!(added.iter().all(|other| other.job.id == added[0].job.id));
    for node in &nodes {
        assert!(matches!(node.add(vec![keyed(json!(2))], now()).await, Err(Error::KeyReused)));
    }
    let other = NewJob { tenant: tenant(2), ..keyed(json!(2)) };
    assert!(nodes[0].add(vec![other], now()).await.unwrap()[0].is_new, "keys of tenants are apart");
    // A key is remembered after its job has ended.
    nodes[0].start().await.unwrap();
    reaches(&nodes[0], &added[0].job.id, State::Done).await;
    assert!(!nodes[0].add(vec![keyed(json!(1))], now()).await.unwrap()[0].is_new);
    nodes[0].stop().await;
}

#[tokio::test]
async fn at_most_one_unfinished_job_has_a_dedupe_text() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path());
    let nodes = [Setup::on(&store).open().await, Setup::on(&store).open().await];
    let single = |n: usize| NewJob { dedupe: Some("sync".to_owned()), payload: json!(n), ..new_job(1) };
    let mut ids = Vec::new();
    for _ in 0..3 {
        let adds = (0..20).map(|n| nodes[n % 2].add(vec![single(n)], now()));
        let added: Vec<_> = join_all(adds).await.into_iter().map(|added| added.unwrap().pop().unwrap()).collect();
        assert_eq!(added.iter().filter(|added| added.is_new).count(), 1);
        let id = added[0].job.id;
        assert!(added.iter().all(|other| other.job.id == id) && !ids.contains(&id));
        ids.push(id);
        nodes[0].cancel(&tenant(1), &id, now()).await.unwrap();
        reaches(&nodes[1], &id, State::Cancelled).await;
    }
    // Only the newest may come back.
    assert!(matches!(nodes[0].retry(&tenant(1), &ids[0]).await, Err(Error::Duplicate)));
    assert_eq!(nodes[0].retry(&tenant(1), &ids[2]).await.unwrap().state, State::Queued);
}

#[tokio::test]
async fn a_key_that_comes_twice_in_a_batch_is_one_job_or_a_refusal_of_all() {
    let folder = tempfile::tempdir().unwrap();
    let queue = Setup::on(&store(folder.path())).open().await;
    let keyed = |payload: u64| NewJob { idempotency_key: Some("k".to_owned()), payload: json!(payload), ..new_job(1) };
    let refused = queue.add(vec![new_job(1), keyed(1), keyed(2)], now()).await;
    assert!(matches!(refused, Err(Error::KeyReused)));
    assert_eq!(queue.waiting(), 0, "nothing was added");
    let other = NewJob { tenant: tenant(2), ..keyed(2) };
    let added = queue.add(vec![keyed(1), new_job(1), other, keyed(1)], now()).await.unwrap();
    assert_eq!(added.iter().map(|added| added.is_new).collect::<Vec<_>>(), [true, true, true, false]);
    assert_eq!((added[0].job.id, queue.waiting()), (added[3].job.id, 3));
}

#[tokio::test]
async fn a_key_that_was_answered_because_of_a_dedupe_text_is_remembered() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path());
    let queue = Setup::on(&store).open().await;
    let wish = |key: &str, payload: u64| NewJob {
        idempotency_key: Some(key.to_owned()),
        dedupe: Some("sync".to_owned()),
        payload: json!(payload),
        ..new_job(1)
    };
    let first = add(&queue, wish("a", 1)).await;
    assert_eq!(add(&queue, wish("b", 2)).await.id, first.id);
    queue.cancel(&tenant(1), &first.id, now()).await.unwrap();
    // Also by the next run, which knows only what is on disk.
    for queue in [queue, Setup::on(&store).open().await] {
        for (key, payload) in [("a", 1), ("b", 2)] {
            let again = queue.add(vec![wish(key, payload)], now()).await.unwrap().remove(0);
            assert_eq!((again.is_new, again.job.id), (false, first.id), "{key}");
            let other = queue.add(vec![wish(key, 3)], now()).await;
            assert!(matches!(other, Err(Error::KeyReused)), "{key}: {other:?}");
        }
    }
    let queue = Setup::on(&store).open().await;
    let second = queue.add(vec![wish("c", 1), wish("d", 1)], now()).await.unwrap();
    assert!(second[0].is_new && second[0].job.id == second[1].job.id && second[0].job.id != first.id);
    for number in 0..8 {
        assert_eq!(add(&queue, wish(&number.to_string(), 1)).await.id, second[0].job.id);
    }
    queue.cancel(&tenant(1), &second[0].job.id, now()).await.unwrap();
    assert_eq!(add(&queue, wish("c", 1)).await.id, second[0].job.id, "its own");
    assert_eq!(add(&queue, wish("7", 1)).await.id, second[0].job.id, "the latest");
    assert_ne!(add(&queue, wish("d", 1)).await.id, second[0].job.id, "eight are kept");
}

/// Lets no record be replaced before it is told to.
#[derive(Debug)]
struct Holding {
    store: Arc<dyn Store>,
    reached: Semaphore,
    let_go: Semaphore,
}

impl Store for Holding {
    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Entry>, store::Error>> {
        self.store.get(key)
    }

    fn list<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Vec<Entry>, store::Error>> {
        self.store.list(prefix)
    }

    fn create<'a>(&'a self, key: &'a str, value: Bytes) -> BoxFuture<'a, Result<Revision, store::Error>> {
        self.store.create(key, value)
    }

    fn update<'a>(
        &'a self,
        key: &'a str,
        value: Bytes,
        expected: Revision,
    ) -> BoxFuture<'a, Result<Revision, store::Error>> {
        Box::pin(async move {
            self.reached.add_permits(1);
            self.let_go.acquire().await.unwrap().forget();
            self.store.update(key, value, expected).await
        })
    }

    fn delete<'a>(&'a self, key: &'a str, expected: Revision) -> BoxFuture<'a, Result<Revision, store::Error>> {
        self.store.delete(key, expected)
    }

    fn watch<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Watch, store::Error>> {
        self.store.watch(prefix)
    }
}

#[tokio::test]
async fn who_brings_a_job_back_and_who_adds_its_like_do_not_both_succeed() {
    let folder = tempfile::tempdir().unwrap();
    let (reached, let_go) = (Semaphore::new(0), Semaphore::new(1));
    let holding = Arc::new(Holding { store: store(folder.path()), reached, let_go });
    let queue = Setup::on(&(Arc::clone(&holding) as Arc<dyn Store>)).open().await;
    let single = || NewJob { dedupe: Some("sync".to_owned()), ..new_job(1) };
    let first = add(&queue, single()).await;
    queue.cancel(&tenant(1), &first.id, now()).await.unwrap();
    holding.reached.acquire().await.unwrap().forget();
    let (other, id) = (queue.clone(), first.id);
    let retry = tokio::spawn(async move { other.retry(&tenant(1), &id).await });
    holding.reached.acquire().await.unwrap().forget();
    // It has judged, and not written yet.
    let mut adding = Box::pin(queue.add(vec![single()], now()));
    let early = tokio::time::timeout(Duration::from_millis(300), &mut adding).await.ok();
    holding.let_go.add_permits(8);
    retry.await.unwrap().unwrap();
    let added = match early {
        Some(added) => added,
        None => adding.await,
    };
    assert_eq!(added.unwrap()[0].job.id, first.id);
    assert_eq!(queue.active(&tenant(1)).len(), 1);
}

#[tokio::test]
async fn what_is_there_needs_no_room_and_what_comes_back_does() {
    let folder = tempfile::tempdir().unwrap();
    let mut setup = Setup::on(&store(folder.path()));
    (setup.config.max_waiting, setup.config.max_waiting_per_tenant) = (3, 2);
    let queue = setup.open().await;
    let keyed = |key: &str| NewJob { idempotency_key: Some(key.to_owned()), ..new_job(1) };
    let first = add(&queue, keyed("a")).await;
    let called_off = add(&queue, keyed("b")).await;
    queue.cancel(&tenant(1), &called_off.id, now()).await.unwrap();
    add(&queue, keyed("c")).await;
    let again = queue.add(vec![keyed("a"), keyed("c"), keyed("a")], now()).await.unwrap();
    assert!(again.iter().all(|added| !added.is_new) && again[0].job.id == first.id);
    let back = async || queue.retry(&tenant(1), &called_off.id).await;
    assert!(matches!(back().await, Err(Error::TenantFull { most: 2 })));
    queue.cancel(&tenant(1), &first.id, now()).await.unwrap();
    let others = queue.add(vec![new_job(2), new_job(2)], now()).await.unwrap();
    assert!(matches!(back().await, Err(Error::Full)));
    queue.cancel(&tenant(2), &others[0].job.id, now()).await.unwrap();
    assert_eq!(back().await.unwrap().state, State::Queued);
    assert!(matches!(queue.add(vec![new_job(3)], now()).await, Err(Error::Full)), "it is counted once, and at once");
}

#[tokio::test]
async fn a_batch_is_added_whole_or_not_at_all_and_bounds_are_told() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path());
    let mut setup = Setup::on(&store);
    (setup.config.max_waiting, setup.config.max_waiting_per_tenant) = (30, 10);
    let queue = setup.open().await;
    let batch = |count: usize, owner: usize| (0..count).map(|_| new_job(owner)).collect::<Vec<_>>();
    let mut bad = batch(3, 1);
    bad.push(NewJob { kind: "unknown".to_owned(), ..new_job(1) });
    assert!(matches!(queue.add(bad, now()).await, Err(Error::UnknownKind)));
    let large = NewJob { payload: json!("x".repeat(70_000)), ..new_job(1) };
    assert!(matches!(queue.add(vec![large], now()).await, Err(Error::TooLarge { .. })));
    assert!(matches!(queue.add(batch(1_001, 1), now()).await, Err(Error::TooManyAtOnce { most: 1_000 })));
    assert_eq!(queue.waiting(), 0);
    assert_eq!(queue.add(batch(10, 1), now()).await.unwrap().len(), 10);
    assert!(matches!(queue.add(batch(1, 1), now()).await, Err(Error::TenantFull { most: 10 })));
    // At once, and still not one too many.
    let adds = join_all((0..40).map(|n| queue.add(batch(1, 2 + n % 4), now()))).await;
    assert_eq!(adds.iter().filter(|added| added.is_ok()).count(), 20);
    assert!(adds.iter().any(|added| matches!(added, Err(Error::Full))));
    assert_eq!(queue.waiting(), 30);
}

#[tokio::test]
async fn lists_are_newest_first_and_page_without_gaps() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path());
    let queue = Setup::on(&store).open().await;
    let mut ids = Vec::new();
    for _ in 0..25 {
        ids.push(add(&queue, new_job(1)).await.id);
        add(&queue, new_job(2)).await;
    }
    let (mut seen, mut cursor) = (Vec::new(), None);
    loop {
        let page = queue.list(&tenant(1), &Filter { limit: 10, cursor, ..Filter::default() });
        seen.extend(page.items.iter().map(|job| job.id));
        cursor = page.next;
        if cursor.is_none() {
            break;
        }
    }
    ids.reverse();
    assert_eq!(seen, ids);
    queue.cancel(&tenant(1), &ids[3], now()).await.unwrap();
    let cancelled = Filter { states: vec![State::Cancelled], ..Filter::default() };
    assert_eq!(queue.list_all(&cancelled).items.iter().map(|job| job.id).collect::<Vec<_>>(), [ids[3]]);
}
