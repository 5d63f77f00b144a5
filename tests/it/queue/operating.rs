//! What people do to the queue: pausing, moving, sweeping, looking.

use futures_util::future::join_all;
use pocketfleet::queue::Error;
use pocketfleet::queue::Spot;

use super::*;

#[tokio::test]
async fn a_pause_of_a_tenant_holds_its_jobs_and_survives_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path());
    let queue = Setup::on(&store).start().await;
    queue.pause(&tenant(1)).await.unwrap();
    queue.pause(&tenant(1)).await.unwrap();
    let (held, free) = (add(&queue, new_job(1)).await, add(&queue, new_job(2)).await);
    reaches(&queue, &free.id, State::Done).await;
    assert_eq!((queue.job(&held.id).unwrap().state, queue.position(&held.id)), (State::Queued, None));
    queue.stop().await;

    let queue = Setup::on(&store).start().await;
    assert!(queue.is_paused(&tenant(1)));
    let free = add(&queue, new_job(2)).await;
    reaches(&queue, &free.id, State::Done).await;
    assert_eq!(queue.job(&held.id).unwrap().state, State::Queued);
    queue.resume(&tenant(1)).await.unwrap();
    reaches(&queue, &held.id, State::Done).await;
    assert!(matches!(queue.pause_kind("unknown").await, Err(Error::UnknownKind)));
    queue.stop().await;
}

#[tokio::test]
async fn a_moved_job_has_its_place_also_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path());
    let queue = Setup::on(&store).open().await;
    let mut ids = Vec::new();
    for _ in 0..4 {
        ids.push(add(&queue, new_job(1)).await.id);
    }
    let order = |queue: &Queue| queue.active(&tenant(1)).iter().map(|active| active.job.id).collect::<Vec<_>>();
    assert_eq!(order(&queue), ids);
    queue.move_before(&tenant(1), &ids[3], &ids[1]).await.unwrap();
    queue.move_to_front(&tenant(1), &ids[2]).await.unwrap();
    queue.move_to(&tenant(1), &ids[0], Spot::Back).await.unwrap();
    let expected = [ids[2], ids[3], ids[1], ids[0]];
    assert_eq!(order(&queue), expected);
    assert_eq!(order(&Setup::on(&store).open().await), expected);
    assert!(matches!(queue.move_before(&tenant(2), &ids[0], &ids[1]).await, Err(Error::NotFound)));
    queue.cancel(&tenant(1), &ids[1], now()).await.unwrap();
    assert!(matches!(queue.move_before(&tenant(1), &ids[0], &ids[1]).await, Err(Error::WrongState(State::Cancelled))));
}

#[tokio::test]
async fn finished_jobs_are_swept_when_they_are_old_or_too_many() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path());
    let mut setup = Setup::on(&store);
    (setup.config.max_finished, setup.config.max_finished_per_tenant) = (8, 3);
    let queue = setup.open().await;
    let mut kept = Vec::new();
    for n in 0..20 {
        let job = add(&queue, new_job(n % 4)).await;
        queue.cancel(&job.tenant, &job.id, now()).await.unwrap();
        kept.push(job.id);
    }
    let waiting = add(&queue, new_job(1)).await;
    queue.start().await.unwrap();
    reaches(&queue, &waiting.id, State::Done).await;
    eventually("swept", async || {
        let left = queue.list_all(&queue::Filter { limit: 100, ..Default::default() }).items;
        (left.len() <= 8).then_some(())
    })
    .await;
    assert!(store.list("job.").await.unwrap().len() <= 8, "the records are gone too");
    queue.stop().await;

    setup.wall.jump(8 * 24 * 3_600);
    let queue = setup.start().await;
    eventually("all are swept", async || store.list("job.").await.unwrap().is_empty().then_some(())).await;
    assert!(queue.list_all(&queue::Filter::default()).items.is_empty());
    queue.stop().await;
}

#[tokio::test]
async fn many_waiting_jobs_are_looked_at_without_reading_them_all() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path());
    let queue = Setup::on(&store).open().await;
    for batch in 0..10 {
        let jobs = (0..1_000).map(|n| new_job((batch * 1_000 + n) % 100)).collect();
        queue.add(jobs, now()).await.unwrap();
    }
    let last = queue.active(&tenant(99)).pop().unwrap();
    assert_eq!((queue.waiting(), last.position), (10_000, Some(10_000)));
    assert_eq!(queue.position(&last.job.id), Some(10_000));
    let cancels = queue.active(&tenant(0)).into_iter().map(|active| async move { active.job.id });
    for id in join_all(cancels).await {
        queue.cancel(&tenant(0), &id, now()).await.unwrap();
    }
    assert_eq!(queue.position(&last.job.id), Some(9_900));
}
