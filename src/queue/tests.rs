//! The pure parts: the line against a simulation of it, and what becomes of a job.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use serde_json::Value;
use serde_json::json;
use time::OffsetDateTime;
use time::macros::datetime;

use super::*;
use crate::ids::TenantId;
use crate::ids::UserId;
use crate::store::Revision;

const NOW: OffsetDateTime = datetime!(2026-01-01 12:00 UTC);

fn tenant(number: u8) -> TenantId {
    TenantId::parse(&format!("t{number}")).unwrap()
}

fn id(number: usize) -> JobId {
    JobId::parse(&format!("{number:026}")).unwrap()
}

/// What happens to a line before it is looked at.
#[derive(Debug, Clone)]
enum Event {
    Insert { tenant: u8, priority: i8 },
    Begin,
    End { tenant: u8 },
    Remove { at: usize },
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let event = prop_oneof![
        6 => (0..6_u8, -1..=1_i8).prop_map(|(tenant, priority)| Event::Insert { tenant, priority }),
        3 => Just(Event::Begin),
        2 => (0..6_u8).prop_map(|tenant| Event::End { tenant }),
        1 => any::<usize>().prop_map(|at| Event::Remove { at }),
    ];
    proptest::collection::vec(event, 0..120)
}

type Waiting = HashMap<JobId, (TenantId, i8, (i64, u64))>;

/// Plays the events; returns the line and what waits in it.
fn play(events: &[Event]) -> (line::Line, Waiting) {
    let (mut line, mut waiting, mut running) = (line::Line::default(), Waiting::new(), HashMap::new());
    for (number, event) in events.iter().enumerate() {
        match event {
            Event::Insert { tenant: owner, priority } => {
                // Some are moved to places of their own.
                let rank = (if number % 7 == 0 { -1 } else { 1 } * i64::try_from(number).unwrap(), 0);
                line.insert(&tenant(*owner), *priority, rank, id(number));
                waiting.insert(id(number), (tenant(*owner), *priority, rank));
            }
            Event::Begin => {
                if let Some(owner) = begin(&mut line, &mut waiting).map(|(_, owner)| owner) {
                    *running.entry(owner).or_insert(0) += 1;
                }
            }
            Event::End { tenant: owner } => {
                if let Some(count) = running.get_mut(&tenant(*owner)).filter(|count| **count > 0) {
                    *count -= 1;
                    line.end(&tenant(*owner));
                }
            }
            Event::Remove { at } => {
                let mut ids: Vec<JobId> = waiting.keys().copied().collect();
                ids.sort_unstable();
                if !ids.is_empty() {
                    let chosen = ids[at % ids.len()];
                    let (owner, priority, rank) = waiting.remove(&chosen).unwrap();
                    line.remove(&owner, priority, rank, chosen);
                }
            }
        }
    }
    (line, waiting)
}

fn begin(line: &mut line::Line, waiting: &mut Waiting) -> Option<(JobId, TenantId)> {
    let next = line.next(usize::MAX, None)?;
    let (owner, priority, rank) = waiting.remove(&next).unwrap();
    line.remove(&owner, priority, rank, next);
    line.start(&owner);
    Some((next, owner))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn a_position_is_the_number_of_jobs_that_are_begun_before(events in events()) {
        let (mut line, mut waiting) = play(&events);
        prop_assert_eq!(line.waiting(), waiting.len());
        let one_by_one: HashMap<JobId, u64> = waiting
            .iter()
            .map(|(id, (owner, priority, rank))| (*id, line.ahead(owner, *priority, *rank, *id).unwrap()))
            .collect();
        let by_tenant: HashMap<JobId, u64> = (0..6).flat_map(|owner| line.of_tenant(&tenant(owner))).collect();
        prop_assert_eq!(&one_by_one, &by_tenant);
        let mut begun = 0;
        while let Some((next, _)) = begin(&mut line, &mut waiting) {
            prop_assert_eq!(one_by_one.get(&next), Some(&begun), "{:?} was begun as number {}", next, begun);
            begun += 1;
        }
        prop_assert_eq!((line.waiting(), waiting.len()), (0, 0));
    }

    #[test]
    fn nobody_waits_for_more_than_one_job_of_each_other_tenant(counts in proptest::collection::vec(1..30_usize, 2..8)) {
        let mut line = line::Line::default();
        let mut waiting = Waiting::new();
        let mut number = 0;
        for (owner, count) in counts.iter().enumerate() {
            for _ in 0..*count {
                number += 1;
                let (owner, rank) = (tenant(u8::try_from(owner).unwrap()), (i64::try_from(number).unwrap(), 0));
                line.insert(&owner, 0, rank, id(number));
                waiting.insert(id(number), (owner, 0, rank));
            }
        }
        let mut order = Vec::new();
        // One place: each job ends before the next begins.
        while let Some((_, owner)) = begin(&mut line, &mut waiting) {
            line.end(&owner);
            order.push(owner);
        }
        let rounds = counts.iter().min().unwrap();
        for round in order.chunks(counts.len()).take(*rounds) {
            let mut owners = round.to_vec();
            owners.sort();
            owners.dedup();
            prop_assert_eq!(owners.len(), counts.len(), "{:?}", round);
        }
    }
}

#[test]
fn a_tenant_at_its_limit_is_passed_over_and_one_tenant_can_be_asked_for() {
    let mut line = line::Line::default();
    line.insert(&tenant(1), 5, (1, 0), id(1));
    line.insert(&tenant(2), 0, (2, 0), id(2));
    line.start(&tenant(1));
    assert_eq!(line.next(2, None), Some(id(1)));
    assert_eq!(line.next(1, None), Some(id(2)));
    assert_eq!(line.next(1, Some(&tenant(1))), None);
    assert_eq!(line.next(2, Some(&tenant(2))), Some(id(2)));
    line.end(&tenant(1));
    assert_eq!(line.next(1, None), Some(id(1)));
}

pub(super) fn job() -> Job {
    Job {
        id: id(1),
        kind: "work".into(),
        tenant: tenant(1),
        user: UserId::parse("u1").unwrap(),
        title: "a job".to_owned(),
        payload: json!({ "n": 1 }),
        state: State::Queued,
        priority: 0,
        attempts: 0,
        max_attempts: 3,
        run_at: None,
        created_at: NOW,
        started_at: None,
        finished_at: None,
        progress: Progress::default(),
        error: None,
        result: None,
        checkpoint: Value::Null,
        input: None,
        parked_for: None,
        cancel_requested: false,
        idempotency_key: None,
        dedupe: None,
        also_keys: Vec::new(),
        generation: 0,
        claim: None,
        done_under: None,
        seq: 7,
        rank: None,
        urgency: 0,
    }
}

fn running() -> Job {
    let node: Arc<str> = "n1".into();
    decide::claimed(&job(), decide::claim(&node, None, 7, Duration::from_secs(30)), NOW)
}

fn retry() -> Outcome {
    Outcome::Retry { reason: "no".to_owned(), after: None }
}

#[test]
fn an_attempt_that_fails_is_repeated_until_the_last_and_then_dead() {
    let policy = Policy::default();
    let mut job = running();
    for attempt in 1..3 {
        assert_eq!((job.state, job.attempts, job.fence()), (State::Running, attempt, Some(7)));
        let waits = decide::ended(&job, retry(), NOW, 1.0, &policy);
        assert_eq!((waits.state, waits.error.as_deref(), waits.fence()), (State::Scheduled, Some("no"), None));
        assert_eq!(waits.run_at, Some(NOW + policy.backoff_base * (1 << (attempt - 1))));
        job = decide::claimed(&waits, job.claim.clone().unwrap(), NOW);
    }
    let dead = decide::ended(&job, retry(), NOW, 1.0, &policy);
    assert_eq!((dead.state, dead.finished_at, dead.attempts), (State::Dead, Some(NOW), 3));
    let again = decide::retry(&dead).unwrap().unwrap();
    assert_eq!((again.state, again.attempts, again.finished_at), (State::Queued, 0, None));
}

#[test]
fn pauses_are_anywhere_up_to_a_bound_that_doubles_and_not_before_what_others_ask() {
    let policy =
        Policy { backoff_base: Duration::from_secs(2), backoff_max: Duration::from_secs(9), ..Policy::default() };
    let pause = |attempts, after, chance| decide::pause(attempts, after, chance, &policy);
    let seconds = |attempts, chance| pause(attempts, None, chance).as_secs();
    assert_eq!([1, 2, 3, 4, 99].map(|n| seconds(n, 1.0)), [2, 4, 8, 9, 9]);
    assert_eq!((seconds(3, 0.0), seconds(3, 0.5)), (0, 4));
    assert!(pause(1, Some(Duration::from_secs(100)), 0.5) >= Duration::from_secs(100));
    assert!(pause(1, Some(Duration::MAX), 0.5) <= Duration::from_hours(25));
}

#[test]
fn what_was_not_the_jobs_fault_is_not_counted() {
    assert_eq!(decide::released(&running(), NOW).attempts, 0);
    let parked = decide::ended(&running(), Outcome::Park { reason: "ask".to_owned() }, NOW, 0.5, &Policy::default());
    assert_eq!((parked.state, parked.attempts, parked.parked_for.as_deref()), (State::Parked, 0, Some("ask")));
    let answered = decide::answer(&parked, &json!("yes")).unwrap();
    assert_eq!((answered.state, answered.input, answered.parked_for), (State::Queued, Some(json!("yes")), None));
    let wait = Outcome::Wait { reason: "soon".to_owned(), after: Duration::from_secs(30) };
    let mut job = running();
    for _ in 0..50 {
        let waits = decide::ended(&job, wait.clone(), NOW, 0.5, &Policy::default());
        assert_eq!((waits.state, waits.attempts, waits.fence()), (State::Scheduled, 0, None));
        assert_eq!((waits.run_at, waits.error.as_deref()), (Some(NOW + Duration::from_secs(30)), Some("soon")));
        job = decide::claimed(&waits, job.claim.clone().unwrap(), NOW);
    }
    let asked = decide::cancel(&job, NOW).unwrap().unwrap();
    assert_eq!(decide::ended(&asked, wait, NOW, 0.5, &Policy::default()).state, State::Cancelled);
    // A crash may be: it counts, so that a job that kills the server is dead in the end.
    let back = decide::taken_back(&running(), "stopped", NOW);
    assert_eq!((back.state, back.attempts), (State::Queued, 1));
    assert_eq!(decide::taken_back(&Job { attempts: 3, ..running() }, "stopped", NOW).state, State::Dead);
}

#[test]
fn cancelling_twice_is_cancelling_once_and_wins_over_any_later_end() {
    let cancelled = decide::cancel(&job(), NOW).unwrap().unwrap();
    assert_eq!(cancelled.state, State::Cancelled);
    assert_eq!(decide::cancel(&cancelled, NOW).unwrap(), None);
    let asked = decide::cancel(&running(), NOW).unwrap().unwrap();
    assert_eq!((asked.state, asked.cancel_requested), (State::Running, true));
    assert_eq!(decide::cancel(&asked, NOW).unwrap(), None);
    for outcome in [retry(), Outcome::Cancelled, Outcome::Dead { reason: String::new() }] {
        assert_eq!(decide::ended(&asked, outcome, NOW, 0.5, &Policy::default()).state, State::Cancelled);
    }
    let done = decide::ended(&asked, Outcome::Done(json!(1)), NOW, 0.5, &Policy::default());
    assert_eq!((done.state, done.cancel_requested), (State::Done, false));
    assert!(matches!(decide::cancel(&done, NOW), Err(Error::WrongState(State::Done))));
}

#[test]
fn only_the_newest_number_holds_a_job() {
    let job = running();
    assert!(decide::held(&job, 7).is_some() && decide::held(&job, 6).is_none());
    assert!(decide::held(&decide::released(&job, NOW), 7).is_none());
}

#[test]
fn a_job_reads_as_it_was_written() {
    for job in [job(), running(), decide::released(&running(), NOW)] {
        let written = records::encode(&job).unwrap();
        assert_eq!(serde_json::from_slice::<Job>(&written).unwrap(), job);
    }
    assert_eq!(records::id_in(&records::key_of(&job())), Some(id(1)));
}

#[test]
fn whether_a_job_waits_for_its_time_is_a_matter_of_the_clock() {
    let later = Job { run_at: Some(NOW + Duration::from_secs(1)), ..job() };
    assert_eq!(decide::timed(later.clone(), NOW).state, State::Scheduled);
    assert_eq!(decide::timed(later, NOW + Duration::from_secs(1)).state, State::Queued);
    assert_eq!(decide::timed(running(), NOW).state, State::Running);
}

#[test]
fn a_parked_job_that_is_called_off_and_tried_again_waits_for_nobody() {
    let parked = decide::ended(&running(), Outcome::Park { reason: "ask".to_owned() }, NOW, 0.5, &Policy::default());
    let again = decide::retry(&decide::cancelled(&parked, NOW)).unwrap().unwrap();
    assert_eq!((again.state, again.parked_for), (State::Queued, None));
    // One that was written by an earlier version is set right when it is begun.
    let old = Job { parked_for: Some("ask".to_owned()), ..job() };
    assert_eq!(decide::claimed(&old, running().claim.unwrap(), NOW).parked_for, None);
}

fn board() -> Board {
    Board::new(broadcast::channel(16).0, Arc::default())
}

fn apply(board: &mut Board, revision: u64, job: Option<&Job>) {
    let id = job.map_or(id(1), |job| job.id);
    board.apply(board::Source::Own, id, Revision(revision), job.map(|job| Arc::new(job.clone())));
}

#[test]
fn the_end_of_a_running_job_moves_its_tenants_others() {
    let mut board = board();
    apply(&mut board, 1, Some(&running()));
    board.is_moved = false;
    apply(&mut board, 2, Some(&decide::ended(&running(), Outcome::Done(json!(1)), NOW, 0.5, &Policy::default())));
    assert!(board.is_moved);
}

#[test]
fn a_key_means_the_job_that_had_it_last_until_that_one_goes() {
    let mut board = board();
    let keyed = |number: usize| Job { id: id(number), idempotency_key: Some("k".to_owned()), ..job() };
    // Another node was as fast: two jobs have the key.
    apply(&mut board, 1, Some(&keyed(1)));
    apply(&mut board, 2, Some(&keyed(2)));
    apply(&mut board, 3, None);
    assert_eq!(board.of_key(&tenant(1), "k").map(|job| job.id), Some(id(2)));
}

#[test]
fn keys_that_a_job_got_later_count_until_they_are_forgotten_and_are_no_sign_of_life() {
    let mut board = board();
    let also = |keys: &[&str]| {
        let also = |key: &&str| job::AlsoKey { key: (*key).to_owned(), wish: String::new() };
        Job { also_keys: keys.iter().map(also).collect(), ..running() }
    };
    apply(&mut board, 1, Some(&also(&[])));
    let seen = board.running[&id(1)].seen;
    apply(&mut board, 2, Some(&also(&["a", "b"])));
    assert!(board.of_key(&tenant(1), "a").is_some() && board.of_key(&tenant(1), "b").is_some());
    assert_eq!(board.running[&id(1)].seen, seen, "a caller keeps no silent worker's job");
    apply(&mut board, 3, Some(&also(&["b", "c"])));
    assert!(board.of_key(&tenant(1), "a").is_none() && board.of_key(&tenant(1), "c").is_some());
    apply(&mut board, 4, Some(&also(&["b", "c"])));
    assert!(board.running[&id(1)].seen > seen, "its worker says that it lives");
    apply(&mut board, 5, None);
    assert!(board.of_key(&tenant(1), "b").is_none());
}

proptest! {
    #[test]
    fn a_place_counted_from_both_ends_is_the_one_counted_from_the_front(count in 0..40_usize, asked in 0..50_usize) {
        let mut line = line::Line::default();
        for number in 0..count {
            line.insert(&tenant(1), 0, (i64::try_from(number).unwrap(), 0), id(number));
        }
        let found = line.ahead(&tenant(1), 0, (i64::try_from(asked).unwrap(), 0), id(asked));
        prop_assert_eq!(found, (asked < count).then_some(asked as u64));
    }
}

#[test]
fn only_jobs_that_will_be_begun_in_their_time_are_foreseen_and_each_once() {
    let (news, _) = broadcast::channel(16);
    let mut board = Board::new(news, Arc::default());
    let kinds = ["a", "b"].map(Arc::<str>::from);
    let mut revision = 0;
    let mut file = |board: &mut Board, number: u8, owner: u8, kind: usize, state: State| {
        revision += 1;
        let claim = decide::claim(&"n".into(), None, revision, Duration::from_secs(1));
        let job = Job {
            kind: Arc::clone(&kinds[kind]),
            tenant: tenant(owner),
            state,
            run_at: Some(NOW + Duration::from_secs(number.into())),
            claim: (state == State::Running).then_some(claim),
            id: id(number.into()),
            ..job()
        };
        board.apply(board::Source::Own, job.id, Revision(revision), Some(Arc::new(job)));
    };
    let names = |found: Vec<(Arc<str>, TenantId)>| -> Vec<String> {
        found.iter().map(|(kind, tenant)| format!("{kind} {tenant}")).collect()
    };
    let room = |kind: &str| if kind == "a" { (3, 1) } else { (9, 2) };
    // Runs, waits, comes twice, is paused, and two of which one finds no room in its kind.
    file(&mut board, 90, 1, 0, State::Running);
    file(&mut board, 91, 2, 0, State::Queued);
    board.set_paused(&tenant(3), true);
    for (number, owner) in [(1, 1), (2, 2), (3, 3), (4, 4), (5, 4), (6, 5), (7, 6)] {
        file(&mut board, number, owner, 0, State::Scheduled);
    }
    for (number, owner) in [(8, 1), (20, 7), (21, 8), (22, 9)] {
        file(&mut board, number, owner, 1, State::Scheduled);
    }
    let until = |seconds: u64| NOW + Duration::from_secs(seconds);
    assert_eq!(names(board.foresee(until(0), 9, room)), [""; 0]);
    assert_eq!(names(board.foresee(until(8), 9, room)), ["a t4", "a t5", "b t1"]);
    assert_eq!(names(board.foresee(until(8), 9, room)), [""; 0], "each once");
    assert_eq!(names(board.foresee(until(21), 1, room)), ["b t7"], "no more than there is room for");
    board.lanes.get_mut("b").unwrap().is_paused = true;
    assert_eq!(names(board.foresee(until(22), 9, room)), [""; 0], "a paused kind");
    assert_eq!((board.unforeseen.len(), board.due.len()), (0, 11));
}
