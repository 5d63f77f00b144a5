//! Running jobs in this process: results, failures, order, cancellation, parking, shutdown.

use std::collections::HashMap;
use std::sync::atomic::AtomicU32;

use super::*;

#[tokio::test]
async fn a_failed_attempt_is_repeated_a_panic_is_one_and_the_last_one_is_final() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path());
    let handler = does(async |run: Run| match (run.attempt, run.job.payload["dies"] == true) {
        (1, _) => Outcome::Retry { reason: "not yet".to_owned(), after: None },
        (2, _) => panic!("on purpose"),
        (_, true) => Outcome::Retry { reason: "never".to_owned(), after: None },
        _ => Outcome::Done(json!({ "attempts": run.attempt })),
    });
    let queue = Setup::on(&store).handler(handler).start().await;
    let good = add(&queue, new_job(1)).await;
    let bad = NewJob { payload: json!({ "dies": true }), max_attempts: Some(3), ..new_job(1) };
    let bad = add(&queue, bad).await;
    let done = reaches(&queue, &good.id, State::Done).await;
    assert_eq!((done.attempts, &done.result, &done.error), (3, &Some(json!({ "attempts": 3 })), &None));
    let dead = reaches(&queue, &bad.id, State::Dead).await;
    assert_eq!((dead.attempts, dead.error.as_deref()), (3, Some("never")));
    let again = queue.retry(&tenant(1), &bad.id).await.unwrap();
    assert_eq!((again.attempts, again.finished_at), (0, None));
    let dead_again = reaches(&queue, &bad.id, State::Dead).await;
    assert!(dead_again.finished_at > dead.finished_at);
    queue.stop().await;
}

#[tokio::test]
async fn jobs_begin_in_the_order_that_their_positions_say() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path());
    let log = Log::default();
    let noted = log.clone();
    let handler = does(move |run: Run| {
        noted.note(run.job.id);
        async { Outcome::Done(Value::Null) }
    });
    let mut setup = Setup::on(&store).handler(handler);
    (setup.config.concurrency, setup.config.per_tenant) = (1, 1);
    let queue = setup.start().await;
    queue.pause_kind(WORK).await.unwrap();
    let mut ids = Vec::new();
    for (owner, priority) in [(1, 0), (1, 0), (1, 5), (1, 0), (2, 0), (2, -3), (3, 5), (3, 0), (3, 0), (4, 0)] {
        ids.push(add(&queue, NewJob { priority, ..new_job(owner) }).await.id);
    }
    queue.move_to_front(&tenant(3), &ids[8]).await.unwrap();
    let mut positions: HashMap<u64, JobId> = HashMap::new();
    for id in &ids {
        assert!(positions.insert(queue.position(id).unwrap(), *id).is_none());
    }
    for owner in 1..=4 {
        let active = queue.active(&tenant(owner));
        assert!(active.is_sorted_by_key(|active| active.position));
        assert!(active.iter().all(|active| queue.position(&active.job.id) == active.position));
    }
    queue.resume_kind(WORK).await.unwrap();
    for id in &ids {
        reaches(&queue, id, State::Done).await;
    }
    let expected: Vec<JobId> = (1..=10).map(|position| positions[&position]).collect();
    assert_eq!(log.events(), expected);
    queue.stop().await;
}

#[tokio::test]
async fn urgency_goes_before_ones_own_jobs_and_before_nobody_elses() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path());
    let queue = Setup::on(&store).handler(does(|_| async { Outcome::Done(Value::Null) })).start().await;
    queue.pause_kind(WORK).await.unwrap();
    let mut ids = Vec::new();
    for (owner, urgency) in [(1, 0), (1, 0), (2, 0), (2, 10), (2, -10), (2, 10)] {
        ids.push(add(&queue, NewJob { urgency, ..new_job(owner) }).await.id);
    }
    let positions: Vec<_> = ids.iter().map(|id| queue.position(id).unwrap()).collect();
    assert_eq!(positions, [1, 3, 5, 2, 6, 4], "turn about, whatever the second asks for");
    queue.move_to_front(&tenant(2), &ids[4]).await.unwrap();
    assert_eq!(queue.position(&ids[4]), Some(2));
    queue.stop().await;
}

#[tokio::test]
async fn no_more_run_at_once_than_allowed_for_a_tenant_and_in_all() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path());
    let (running, most) = (Arc::new(AtomicU32::new(0)), Log::default());
    let counted = most.clone();
    let handler = does(move |run: Run| {
        let (running, most) = (Arc::clone(&running), counted.clone());
        async move {
            most.note((run.job.tenant.clone(), running.fetch_add(1, Ordering::SeqCst) + 1));
            tokio::task::yield_now().await;
            running.fetch_sub(1, Ordering::SeqCst);
            Outcome::Done(Value::Null)
        }
    });
    let mut setup = Setup::on(&store).handler(handler);
    (setup.config.concurrency, setup.config.per_tenant) = (3, 2);
    let queue = setup.start().await;
    let jobs = (0..60).map(|n| new_job(n % 2)).collect();
    let added = queue.add(jobs, now()).await.unwrap();
    for added in &added {
        reaches(&queue, &added.job.id, State::Done).await;
    }
    assert!(most.events().iter().all(|(_, count)| *count <= 3));
    queue.stop().await;
}

#[tokio::test]
async fn a_running_job_that_is_cancelled_stops_and_one_that_does_not_is_dropped() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path());
    let late = Log::default();
    let noted = late.clone();
    let handler = does(move |run: Run| {
        let late = noted.clone();
        async move {
            if run.job.payload["stubborn"] == true {
                run.cancelled().cancelled().await;
                // Whoever holds on until its claim is gone writes nothing any more.
                late.note(eventually("lost", async || run.checkpoint(json!(1)).await.err()).await.to_string());
                std::future::pending::<()>().await;
            }
            run.cancelled().cancelled().await;
            Outcome::Cancelled
        }
    });
    let queue = Setup::on(&store).handler(handler).start().await;
    let polite = add(&queue, new_job(1)).await;
    let stubborn = add(&queue, NewJob { payload: json!({ "stubborn": true }), ..new_job(1) }).await;
    for id in [polite.id, stubborn.id] {
        reaches(&queue, &id, State::Running).await;
        assert!(queue.cancel(&tenant(1), &id, now()).await.unwrap().cancel_requested);
        queue.cancel(&tenant(1), &id, now()).await.unwrap();
        reaches(&queue, &id, State::Cancelled).await;
        assert_eq!(queue.cancel(&tenant(1), &id, now()).await.unwrap().state, State::Cancelled);
    }
    eventually("no attempt is left", async || (queue.status().running_here == 0).then_some(())).await;
    queue.stop().await;
}

#[tokio::test]
async fn a_parked_job_holds_no_worker_survives_a_restart_and_comes_back_with_its_answer() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path());
    let handler = does(async |run: Run| match &run.job.input {
        None => {
            run.checkpoint(json!({ "file": "ready" })).await.unwrap();
            Outcome::Park { reason: "needs a link".to_owned() }
        }
        Some(input) => Outcome::Done(json!({ "input": input, "checkpoint": run.job.checkpoint })),
    });
    let mut setup = Setup::on(&store).handler(handler);
    setup.config.concurrency = 1;
    let queue = setup.start().await;
    let (first, second) = (add(&queue, new_job(1)).await, add(&queue, new_job(1)).await);
    let parked = reaches(&queue, &first.id, State::Parked).await;
    assert_eq!((parked.parked_for.as_deref(), parked.attempts), (Some("needs a link"), 0));
    reaches(&queue, &second.id, State::Parked).await;
    assert_eq!(queue.cancel(&tenant(1), &second.id, now()).await.unwrap().state, State::Cancelled);
    queue.stop().await;

    let queue = setup.start().await;
    assert_eq!(queue.job(&first.id).unwrap().state, State::Parked);
    queue.answer(&tenant(1), &first.id, json!("https://example.com")).await.unwrap();
    let done = reaches(&queue, &first.id, State::Done).await;
    let expected = json!({ "input": "https://example.com", "checkpoint": { "file": "ready" } });
    assert_eq!(done.result, Some(expected));
    assert!(queue.answer(&tenant(1), &first.id, json!(1)).await.is_err());
    queue.stop().await;
}

#[tokio::test]
async fn progress_is_told_while_a_job_runs_and_kept_when_it_ends() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path());
    let handler = does(async |run: Run| {
        run.progress("copy", 50, Some(200));
        run.cancelled().cancelled().await;
        Outcome::Cancelled
    });
    let queue = Setup::on(&store).handler(handler).start().await;
    let mut changes = queue.changes();
    let job = add(&queue, new_job(1)).await;
    let told = loop {
        let change = changes.recv().await.unwrap();
        if let queue::Change::Progressed { job } = change {
            break job;
        }
    };
    assert_eq!((told.id, told.progress.step.as_str(), told.progress.percent()), (job.id, "copy", Some(25.0)));
    queue.cancel(&tenant(1), &job.id, now()).await.unwrap();
    let ended = reaches(&queue, &job.id, State::Cancelled).await;
    assert_eq!(ended.progress.done, 50);
    queue.stop().await;
}

#[tokio::test]
async fn at_shutdown_unfinished_jobs_go_back_in_line_without_counting_the_attempt() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path());
    let handler = does(async |run: Run| {
        if run.job.payload["deaf"] == true {
            std::future::pending::<()>().await;
        }
        run.cancelled().cancelled().await;
        Outcome::Retry { reason: "interrupted".to_owned(), after: None }
    });
    let queue = Setup::on(&store).handler(handler).start().await;
    let polite = add(&queue, new_job(1)).await;
    let deaf = add(&queue, NewJob { payload: json!({ "deaf": true }), ..new_job(2) }).await;
    for id in [polite.id, deaf.id] {
        reaches(&queue, &id, State::Running).await;
    }
    queue.stop().await;
    for id in [polite.id, deaf.id] {
        let job = queue.job(&id).unwrap();
        assert_eq!((job.state, job.attempts), (State::Queued, 0), "{job:?}");
    }
    assert!(matches!(queue.add(vec![new_job(1)], now()).await, Err(queue::Error::Stopping)));
    let queue = Setup::on(&store).start().await;
    assert_eq!(reaches(&queue, &deaf.id, State::Done).await.attempts, 1);
    queue.stop().await;
}

#[tokio::test]
async fn what_ran_when_the_process_died_is_taken_back_at_once_by_the_next_run() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path());
    let mut setup = Setup::on(&store).handler(does(async |run: Run| {
        // The one thought dead is alive here, and may be the one that gets the job again.
        if run.attempt == 1 {
            run.cancelled().cancelled().await;
        }
        Outcome::Done(serde_json::Value::Null)
    }));
    // So long that only the lock of the data directory can be the reason.
    setup.config.lease = Duration::from_hours(1);
    let died = setup.start().await;
    let job = add(&died, new_job(1)).await;
    let running = reaches(&died, &job.id, State::Running).await;

    let mut next = Setup::on(&store);
    next.config.lease = Duration::from_hours(1);
    let queue = next.start().await;
    let done = reaches(&queue, &job.id, State::Done).await;
    assert_eq!(done.attempts, 2, "the attempt that was cut counts");
    // The one that was thought dead cannot say anything about the job any more.
    assert!(matches!(died.release(&job.id, running.fence().unwrap()).await, Err(queue::Error::Lost)));
    assert_eq!(queue.job(&job.id).unwrap().state, State::Done);
    queue.stop().await;
    died.stop().await;
}

#[tokio::test]
async fn a_job_waits_for_the_wall_clock_whichever_way_it_jumps() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path());
    let setup = Setup::on(&store);
    let queue = setup.start().await;
    let at = |seconds| Some(now() + time::Duration::seconds(seconds));
    let soon = add(&queue, NewJob { run_at: at(3_600), ..new_job(1) }).await;
    let later = add(&queue, NewJob { run_at: at(9_000), ..new_job(1) }).await;
    assert_eq!((soon.state, queue.position(&soon.id), queue.waiting()), (State::Scheduled, None, 0));
    setup.wall.jump(-7_200);
    let first = add(&queue, new_job(1)).await;
    // Leases and limits do not look at that clock.
    reaches(&queue, &first.id, State::Done).await;
    assert_eq!(queue.job(&soon.id).unwrap().state, State::Scheduled);
    setup.wall.jump(7_200 + 3_700);
    reaches(&queue, &soon.id, State::Done).await;
    assert_eq!(queue.job(&later.id).unwrap().state, State::Scheduled);
    assert_eq!(queue.retry(&tenant(1), &later.id).await.unwrap().state, State::Queued);
    reaches(&queue, &later.id, State::Done).await;
    queue.stop().await;
}

#[tokio::test]
async fn a_job_is_announced_before_its_time_if_it_will_be_begun_then() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path());
    let (soon, wall) = (Log::default(), Stopped::now());
    let queue = Setup::on(&store).handler(Arc::new(Foresees(soon.clone()))).open_by(wall.clock()).await;
    queue.start().await.unwrap();
    let busy = add(&queue, new_job(1)).await;
    reaches(&queue, &busy.id, State::Running).await;
    assert_eq!(soon.events(), [tenant(1)], "what is claimed is announced on the way");
    queue.pause(&tenant(2)).await.unwrap();
    let (first, second) = (now() + Duration::from_hours(1), now() + Duration::from_hours(2));
    for owner in [1, 2, 3] {
        add(&queue, NewJob { run_at: Some(first), ..new_job(owner) }).await;
    }
    let last = add(&queue, NewJob { run_at: Some(second), ..new_job(4) }).await;
    let before = Duration::from_millis(300);
    wall.set(first - before);
    eventually("one is announced", async || (soon.events().len() > 1).then_some(())).await;
    // They are looked at in order: not who has as many running as may run, not who is paused.
    assert_eq!(soon.events(), [tenant(1), tenant(3)]);
    assert_eq!(queue.status().running_here, 1);
    wall.set(second - before);
    eventually("so is the last", async || (soon.events().last() == Some(&tenant(4))).then_some(())).await;
    assert_eq!(queue.job(&last.id).unwrap().state, State::Scheduled);
    queue.stop().await;
}
