//! Adding jobs: durable, bounded, once.

use futures_util::future::join_all;
use pocketfleet::queue::Error;
use pocketfleet::queue::Filter;

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
