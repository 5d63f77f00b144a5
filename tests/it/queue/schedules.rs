//! Schedules: each occurrence once, whoever looks and whoever crashes.

use futures_util::future::join_all;
use pocketfleet::queue::Error;
use pocketfleet::queue::Filter;
use pocketfleet::queue::Missed;
use pocketfleet::queue::NewSchedule;

use super::*;

fn hourly(missed: Missed) -> NewSchedule {
    NewSchedule {
        tenant: tenant(1),
        user: UserId::parse("u1").unwrap(),
        cron: "0 * * * *".to_owned(),
        kind: WORK.to_owned(),
        title: "hourly".to_owned(),
        payload: json!({ "from": "schedule" }),
        priority: 0,
        urgency: 0,
        missed,
    }
}

fn all(queue: &Queue) -> usize {
    queue.list(&tenant(1), &Filter { limit: 500, ..Filter::default() }).items.len()
}

#[tokio::test]
async fn an_occurrence_is_added_once_by_two_nodes_and_after_a_crash_in_between() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path());
    let first = Setup { is_alone: false, ..Setup::on(&store) };
    let second = Setup { wall: first.wall.clone(), is_alone: false, ..Setup::on(&store) };
    let nodes = [first.start().await, second.start().await];
    let schedule = nodes[0].add_schedule(hourly(Missed::All { most: 10 }), now()).await.unwrap();
    let key = format!("schedule.t1.{}", schedule.id);
    let before = store.get(&key).await.unwrap().unwrap();
    first.wall.jump(3 * 3_600);
    eventually("three occurrences", async || (all(&nodes[0]) == 3).then_some(())).await;
    let after =
        eventually("noted", async || store.get(&key).await.unwrap().filter(|entry| entry.revision > before.revision))
            .await;
    // As if the node had died after adding the jobs and before noting it. The other one may be noting it too.
    eventually("put back", async || {
        let noted = store.get(&key).await.unwrap().unwrap();
        store.update(&key, before.value.clone(), noted.revision).await.ok()
    })
    .await;
    eventually("noted again", async || store.get(&key).await.unwrap().filter(|entry| entry.value == after.value)).await;
    assert_eq!(all(&nodes[0]), 3);
    nodes[1].remove_schedule(&tenant(1), &schedule.id).await.unwrap();
    eventually("gone", async || nodes[0].schedules(&tenant(1)).is_empty().then_some(())).await;
    for queue in nodes {
        queue.stop().await;
    }
}

#[tokio::test]
async fn what_was_missed_while_the_server_was_down_follows_the_policy() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path());
    let setup = Setup::on(&store);
    let queue = setup.open().await;
    let mut ids = Vec::new();
    for missed in [Missed::Skip, Missed::Once, Missed::All { most: 4 }] {
        ids.push(queue.add_schedule(hourly(missed), now()).await.unwrap().id);
    }
    drop(queue);
    // Not in the first minute of an hour, in which the last occurrence would be on time.
    let minutes = i64::from(now().minute());
    setup.wall.jump(10 * 3_600 + (30 - minutes) * 60);
    let queue = setup.start().await;
    eventually("made up for", async || (all(&queue) == 5).then_some(())).await;
    let schedules = queue.schedules(&tenant(1));
    assert_eq!(schedules.iter().map(|schedule| schedule.id).collect::<Vec<_>>(), ids);
    eventually("all have moved on", async || {
        let wall = setup.wall.now();
        queue.schedules(&tenant(1)).iter().all(|schedule| schedule.next().unwrap() > wall).then_some(())
    })
    .await;
    // A clock that is set back by less than an hour repeats nothing.
    setup.wall.jump(-45 * 60);
    let marker = add(&queue, new_job(1)).await;
    reaches(&queue, &marker.id, State::Done).await;
    assert_eq!(all(&queue), 6);
    queue.stop().await;
}

#[tokio::test]
async fn patterns_that_cannot_be_read_or_never_come_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path());
    let mut setup = Setup::on(&store);
    setup.config.max_schedules_per_tenant = 1;
    let queue = setup.open().await;
    for cron in ["", "every day", "* * * * * *", "0 0 31 2 *"] {
        let new = NewSchedule { cron: cron.to_owned(), ..hourly(Missed::Once) };
        assert!(matches!(queue.add_schedule(new, now()).await, Err(Error::Cron(_))), "{cron}");
    }
    let unknown = NewSchedule { kind: "unknown".to_owned(), ..hourly(Missed::Once) };
    assert!(matches!(queue.add_schedule(unknown, now()).await, Err(Error::UnknownKind)));
    let schedule = queue.add_schedule(hourly(Missed::Once), now()).await.unwrap();
    assert!(matches!(queue.add_schedule(hourly(Missed::Once), now()).await, Err(Error::TooManySchedules { most: 1 })));
    assert!(matches!(queue.remove_schedule(&tenant(2), &schedule.id).await, Err(Error::NotFound)));
    queue.remove_schedule(&tenant(1), &schedule.id).await.unwrap();
    // Of many at once there are not more than there may be.
    let many = join_all((0..8).map(|_| queue.add_schedule(hourly(Missed::Once), now()))).await;
    assert_eq!(many.iter().filter(|added| added.is_ok()).count(), 1);
    queue.add_schedule(NewSchedule { tenant: tenant(2), ..hourly(Missed::Once) }, now()).await.unwrap();
    let all = queue.all_schedules(None, 10);
    assert_eq!(all.iter().map(|schedule| schedule.tenant.clone()).collect::<Vec<_>>(), [tenant(1), tenant(2)]);
    assert_eq!(queue.all_schedules(Some(&all[0].id), 10), all[1..]);
}

#[tokio::test]
async fn the_job_of_a_schedule_is_announced_before_it_is_added() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path());
    let (soon, wall) = (Log::default(), Stopped::now());
    let queue = Setup::on(&store).handler(Arc::new(Foresees(soon.clone()))).open_by(wall.clock()).await;
    queue.start().await.unwrap();
    let schedule = queue.add_schedule(hourly(Missed::Once), wall.clock()()).await.unwrap();
    let next = schedule.next().unwrap();
    wall.set(next - Duration::from_millis(500));
    eventually("it is announced", async || soon.events().contains(&tenant(1)).then_some(())).await;
    assert_eq!(all(&queue), 0);
    wall.set(next);
    eventually("it is added", async || (all(&queue) == 1).then_some(())).await;
    queue.stop().await;
}
