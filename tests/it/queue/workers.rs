//! Workers outside the program.

use pocketfleet::queue::Claimed;
use pocketfleet::queue::Claiming;
use pocketfleet::queue::Error;

use super::*;

pub(super) fn claiming() -> Claiming {
    Claiming {
        kinds: vec![OUTSIDE.to_owned()],
        worker: "w1".to_owned(),
        lease: Duration::from_secs(1),
        limit: 1,
        tenant: None,
        wait: Duration::ZERO,
    }
}

pub(super) async fn claim_one(queue: &Queue) -> Option<Claimed> {
    queue.claim(claiming()).await.unwrap().pop()
}

fn outside(owner: usize) -> NewJob {
    NewJob { kind: OUTSIDE.to_owned(), ..new_job(owner) }
}

#[tokio::test]
async fn a_worker_claims_in_the_order_of_the_line_reports_and_completes() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path());
    let queue = Setup::on(&store).start().await;
    let mut expected = Vec::new();
    for owner in [1, 1, 2] {
        expected.push(add(&queue, outside(owner)).await.id);
    }
    expected.swap(1, 2);
    let claimed = queue.claim(Claiming { limit: 10, ..claiming() }).await.unwrap();
    assert_eq!(claimed.iter().map(|claimed| claimed.job.id).collect::<Vec<_>>(), expected);
    let Claimed { job, fence, .. } = &claimed[0];
    assert!(!queue.progress(&job.id, *fence, "encode", 5, Some(10)).unwrap().cancel_requested);
    queue.heartbeat(&job.id, *fence, Some(Duration::from_mins(1))).await.unwrap();
    assert_eq!(queue.job(&job.id).unwrap().progress.percent(), Some(50.0));
    queue.note_checkpoint(&job.id, *fence, json!("half")).await.unwrap();
    let failed = queue.fail(&job.id, *fence, "broke".to_owned(), true, None).await.unwrap();
    assert_eq!((failed.error.as_deref(), &failed.checkpoint), (Some("broke"), &json!("half")));
    assert!(matches!(queue.complete(&job.id, *fence, Value::Null).await, Err(Error::Lost)));
    let dead = queue.fail(&claimed[1].job.id, claimed[1].fence, "bad".to_owned(), false, None).await.unwrap();
    assert_eq!(dead.state, State::Dead);
    let released = queue.release(&claimed[2].job.id, claimed[2].fence).await.unwrap();
    assert_eq!((released.state, released.attempts), (State::Queued, 0));
    queue.stop().await;
}

#[tokio::test]
async fn only_external_kinds_are_handed_out_and_only_of_the_tenant_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path());
    let queue = Setup::on(&store).start().await;
    for kinds in [vec![], vec![WORK.to_owned()], vec![OUTSIDE.to_owned(), "unknown".to_owned()]] {
        assert!(matches!(queue.claim(Claiming { kinds, ..claiming() }).await, Err(Error::UnknownKind)));
    }
    add(&queue, outside(1)).await;
    let of_two = Claiming { tenant: Some(tenant(2)), ..claiming() };
    assert!(queue.claim(of_two.clone()).await.unwrap().is_empty());
    let second = add(&queue, outside(2)).await;
    assert_eq!(queue.claim(of_two).await.unwrap()[0].job.id, second.id);
    queue.stop().await;
}

#[tokio::test]
async fn a_worker_that_waits_gets_a_job_when_it_is_added_and_one_of_many_gets_it() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path());
    let queue = Setup::on(&store).start().await;
    let wait = |seconds| {
        let queue = queue.clone();
        let claiming = Claiming { wait: Duration::from_secs(seconds), ..claiming() };
        tokio::spawn(async move { queue.claim(claiming).await.unwrap() })
    };
    let waiting: Vec<_> = (0..8).map(|_| wait(1)).collect();
    let first = wait(30);
    let job = add(&queue, outside(1)).await;
    let mut claimed = first.await.unwrap();
    for other in waiting {
        claimed.extend(other.await.unwrap());
    }
    // A job whose lease ended meanwhile may have been claimed again, but by nobody else at once.
    let fences: Vec<u64> = claimed.iter().map(|claimed| claimed.fence).collect();
    let mut distinct = fences.clone();
    distinct.sort_unstable();
    distinct.dedup();
    assert!(claimed.iter().all(|claimed| claimed.job.id == job.id) && distinct.len() == fences.len());
    queue.stop().await;
}

#[tokio::test]
async fn a_worker_learns_from_its_heartbeat_that_its_job_was_cancelled() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path());
    let mut setup = Setup::on(&store);
    setup.config.cancel_grace = Duration::from_millis(500);
    let queue = setup.start().await;
    add(&queue, outside(1)).await;
    let claimed = claim_one(&queue).await.unwrap();
    queue.cancel(&tenant(1), &claimed.job.id, now()).await.unwrap();
    assert!(queue.heartbeat(&claimed.job.id, claimed.fence, None).await.unwrap().cancel_requested);
    reaches(&queue, &claimed.job.id, State::Cancelled).await;
    assert!(matches!(queue.complete(&claimed.job.id, claimed.fence, Value::Null).await, Err(Error::Lost)));
    queue.stop().await;
}

#[tokio::test]
async fn a_workers_claim_outlives_a_restart_of_the_server() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path());
    let queue = Setup::on(&store).start().await;
    add(&queue, outside(1)).await;
    let claimed = claim_one(&queue).await.unwrap();
    queue.stop().await;
    let queue = Setup::on(&store).start().await;
    assert_eq!(queue.complete(&claimed.job.id, claimed.fence, json!(1)).await.unwrap().state, State::Done);
    queue.stop().await;
}
