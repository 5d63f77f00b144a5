//! What is told of the queue, to whom and when, with the announcer run by hand.

use tokio::sync::broadcast;

use super::*;
use crate::auth;
use crate::auth::Verifier;
use crate::events;
use crate::jobs::intake::Rules;
use crate::queue;
use crate::queue::NewJob;
use crate::shutdown::Shutdown;
use crate::store::Store;
use crate::store::invitations::Invitations;
use crate::store::members::Members;
use crate::store::sessions::Sessions;
use crate::store::slugs::Slugs;
use crate::store::sqlite::ControlDatabase;
use crate::store::tenants::Tenants;
use crate::telemetry::Metrics;
use crate::tenancy;
use crate::tenancy::Tenancy;

/// The queue, the events and an announcer that is run by hand.
struct Bench {
    queue: Queue,
    events: Events,
    intake: Intake,
    _folder: tempfile::TempDir,
}

fn section<T: serde::de::DeserializeOwned>(name: &str) -> T {
    let text = include_str!("../../../config/default.toml");
    let figment = figment::Figment::from(<figment::providers::Toml as figment::providers::Format>::string(text));
    figment.extract_inner(name).unwrap()
}

fn user(name: &str) -> UserId {
    UserId::parse(name).unwrap()
}

const KIND: &str = "work";

impl Bench {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let database = ControlDatabase::open(&folder.path().join("control.db")).unwrap();
        let store: Arc<dyn Store> = Arc::new(database);
        let (metrics, shutdown) = (Metrics::new(), Shutdown::new());
        let sessions = Sessions::open(Arc::clone(&store)).await.unwrap();
        let auth: auth::Config = section("auth");
        let (verifier, _) = Verifier::new(&auth, folder.path().join("data.db"), sessions);
        let events = Events::open(events::Parts {
            config: section("events"),
            store: Arc::clone(&store),
            verifier,
            owns: Arc::new(|_, _| false),
            metrics: Arc::clone(&metrics),
            shutdown: shutdown.clone(),
        });
        let (external_kinds, user_kinds) = (vec![KIND.to_owned()], vec![KIND.to_owned()]);
        let queue = Queue::open(queue::Parts {
            config: queue::Config { external_kinds, user_kinds, ..section("queue") },
            store: Arc::clone(&store),
            node: "n1".to_owned(),
            is_alone: true,
            handlers: Vec::new(),
            clock: Arc::new(OffsetDateTime::now_utc),
            metrics,
            shutdown,
        });
        let (events, queue) = (events.await.unwrap(), queue.await.unwrap());
        let tenancy = Tenancy::new(tenancy::Parts {
            tenants: Tenants::open(Arc::clone(&store)).await.unwrap(),
            members: Members::open(Arc::clone(&store)).await.unwrap(),
            invitations: Invitations::open(Arc::clone(&store)).await.unwrap(),
            slugs: Slugs::open(store).await.unwrap(),
            config: section("workspaces"),
            personal_template: "personal".to_owned(),
            can_verify: false,
        });
        let intake = Intake::new(queue.clone(), tenancy, Rules::of(queue.config()));
        Self { queue, events, intake, _folder: folder }
    }

    fn announcer(&self) -> Announcer {
        Announcer::new(self.queue.clone(), self.events.clone(), self.intake.clone())
    }

    async fn add(&self, name: &str, count: usize) -> JobId {
        let (tenant, user) = (TenantId::personal(&user(name)), user(name));
        let new = NewJob::new(KIND, tenant, user, Value::Null);
        let mut added = self.queue.add(vec![new; count], OffsetDateTime::now_utc()).await.unwrap();
        added.pop().unwrap().job.id
    }

    async fn cancel(&self, name: &str, id: JobId) {
        self.queue.cancel(&TenantId::personal(&user(name)), &id, OffsetDateTime::now_utc()).await.unwrap();
    }

    /// A worker takes a user's job.
    async fn claim(&self, name: &str) -> Arc<Job> {
        let (kinds, tenant) = (vec![KIND.to_owned()], Some(TenantId::personal(&user(name))));
        let (worker, lease, wait) = ("w".to_owned(), Duration::from_mins(1), Duration::ZERO);
        let claiming = queue::Claiming { kinds, worker, lease, limit: 1, tenant, wait };
        self.queue.claim(claiming).await.unwrap().remove(0).job
    }

    /// What a user was told so far: what, of which job, how many there are, its place.
    async fn told(&self, name: &str) -> Vec<(String, Value, Value, Value)> {
        // Behind everything that is on its way to the log.
        self.events.publish_logged(Topic::System, Message::new("Mark", Value::Null)).await.unwrap();
        let (events, _) = self.events.history(&Topic::Queue(user(name)), 1_000).await.unwrap();
        let told = events.iter().map(|event| serde_json::from_str::<Value>(&event.flat_json()).unwrap());
        let shown = told.map(|mut told| {
            let what = told.get("update_type").map_or("progress", |what| what.as_str().unwrap()).to_owned();
            (what, told["job_id"].take(), told["total"].take(), told["global_position"].take())
        });
        shown.collect()
    }
}

fn note_all(announcer: &mut Announcer, changes: &mut broadcast::Receiver<Change>) {
    while let Ok(change) = changes.try_recv() {
        announcer.note(&change);
    }
}

/// Everybody with unfinished jobs is looked at.
async fn look(announcer: &mut Announcer) {
    announcer.turns = announcer.watched.keys().cloned().collect();
    for user in announcer.came_back() {
        announcer.turns.push_front(user);
    }
    announcer.tell_positions().await;
}

#[tokio::test]
async fn positions_are_told_to_listeners_and_to_others_when_they_are_back() {
    let bench = Bench::new().await;
    let (mut announcer, mut changes) = (bench.announcer(), bench.queue.changes());
    bench.add("bob", 1).await;
    let hers = bench.add("ada", 1).await;
    note_all(&mut announcer, &mut changes);
    announcer.tell().await;
    let added = ("meeting_added".to_owned(), json!(hers), json!(1), json!(2));
    assert_eq!(bench.told("ada").await, std::slice::from_ref(&added));
    bench.claim("bob").await;
    for _ in 0..3 {
        look(&mut announcer).await;
    }
    assert_eq!(bench.told("ada").await, std::slice::from_ref(&added), "nobody listens");
    let held = bench.events.hold(&Topic::Queue(user("ada"))).await;
    for _ in 0..3 {
        look(&mut announcer).await;
    }
    let moved = ("position_updated".to_owned(), json!(hers), json!(1), json!(1));
    assert_eq!(bench.told("ada").await, [added, moved], "once");
    drop(held);
}

#[tokio::test]
async fn who_has_a_job_that_reports_is_told_of_positions_all_the_same() {
    let bench = Bench::new().await;
    let (mut announcer, mut changes) = (bench.announcer(), bench.queue.changes());
    bench.add("ada", 3).await;
    let _held = bench.events.hold(&Topic::Queue(user("ada"))).await;
    let running = bench.claim("ada").await;
    note_all(&mut announcer, &mut changes);
    announcer.tell().await;
    let before = bench.told("ada").await.len();
    // Two jobs of somebody else, of whom it is the turn first.
    bench.add("bob", 2).await;
    note_all(&mut announcer, &mut changes);
    announcer.note(&Change::Progressed { job: running });
    look(&mut announcer).await;
    let told = bench.told("ada").await;
    assert_eq!(told[before..].iter().map(|told| &*told.0).collect::<Vec<_>>(), ["position_updated"]);
    announcer.tell().await;
    assert_eq!(bench.told("ada").await.last().unwrap().0, "progress");
}

#[tokio::test]
async fn after_a_crash_everybody_learns_how_they_stand() {
    let bench = Bench::new().await;
    let his = bench.add("bob", 1).await;
    bench.cancel("bob", his).await;
    bench.add("ada", 1).await;
    bench.claim("ada").await;
    // What happened until here was told by nobody.
    let mut announcer = bench.announcer();
    announcer.look_around();
    announcer.tell().await;
    let stands = |total: usize| ("position_updated".to_owned(), Value::Null, json!(total), Value::Null);
    assert_eq!(bench.told("bob").await, [stands(0)]);
    look(&mut announcer).await;
    assert_eq!(bench.told("ada").await, [], "as soon as she listens");
    let _held = bench.events.hold(&Topic::Queue(user("ada"))).await;
    for _ in 0..2 {
        look(&mut announcer).await;
    }
    assert_eq!(bench.told("ada").await, [stands(1)]);
}

#[tokio::test]
async fn who_falls_behind_tells_how_things_stand_and_who_is_stopped_tells_the_rest() {
    let bench = Bench::new().await;
    // It subscribes with its first step, and makes no other before everything has happened.
    let mut running = Box::pin(bench.announcer().run());
    tokio::time::timeout(Duration::ZERO, &mut running).await.unwrap_err();
    let his = bench.add("bob", 1).await;
    bench.cancel("bob", his).await;
    for _ in 0..5 {
        bench.add("ada", 1_000).await;
    }
    let last = bench.add("ada", 1).await;
    bench.queue.stop().await;
    running.await;
    let stands = ("position_updated".to_owned(), Value::Null, json!(0), Value::Null);
    assert_eq!(bench.told("bob").await, [stands], "every change of his was missed");
    let told = bench.told("ada").await;
    assert_eq!(told.last().unwrap(), &("meeting_added".to_owned(), json!(last), json!(5_001), json!(5_001)));
    assert!(told.len() <= TOLD_EACH);
}

#[test]
fn a_flood_of_changes_is_told_by_the_last_of_each_sort() {
    let news = |update_type, digit: usize| News { update_type, job: JobId::parse(&format!("{digit:026}")).ok() };
    let few = Pending { news: (0..TOLD_EACH).map(|n| news("meeting_added", n)).collect(), ..Pending::default() };
    assert_eq!(few.told().len(), TOLD_EACH);
    let mut many: Vec<_> = (0..500).map(|n| news("meeting_added", n)).collect();
    many.push(news("task_started", 0));
    let many = Pending { news: many, ..Pending::default() };
    let told: Vec<_> = many.told().iter().map(|news| (news.update_type, news.job)).collect();
    assert_eq!(told, [("meeting_added", news("", 499).job), ("task_started", news("", 0).job)]);
}

#[test]
fn an_update_of_nothing_left_names_no_job_and_no_place() {
    let user = UserId::parse("ada").unwrap();
    let cleared = News { update_type: "queue_cleared", job: None };
    let message = queue_update(&user, &cleared, &[], "2026-01-01T00:00:00Z", SHOWN_BYTES);
    assert_eq!(message.kind, "QueueUpdate");
    let expected = json!({"update_type": "queue_cleared", "queue": [], "total": 0, "affected_user_id": "ada",
        "job_id": null, "global_position": null, "timestamp": "2026-01-01T00:00:00Z"});
    assert_eq!(message.data, expected);
}
#[test]
fn a_list_in_a_message_is_cut_where_the_message_would_be_too_large() {
    let items = |count: usize, bytes: usize| (0..count).map(move |_| json!("x".repeat(bytes - 3)));
    assert_eq!(shown(items(500, 10), SHOWN_BYTES).len(), SHOWN);
    assert_eq!(shown(items(500, 10), 95).len(), 9);
    assert!(shown(items(3, 100), 0).is_empty());
    // What is around the list fits into what is kept free for it, in whole and at its longest.
    let user = UserId::parse("a23456789012345").unwrap();
    let news = News { update_type: "position_updated", job: JobId::parse(&"0".repeat(26)).ok() };
    let message = queue_update(&user, &news, &[], "2026-01-01T00:00:00.123456789Z", 0);
    assert!(message.data.to_string().len() + 2 * 20 < AROUND);
}
