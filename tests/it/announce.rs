//! What listeners are told of the queue: the messages of the seed documents, each user's own and nobody else's.

use std::sync::Arc;
use std::time::Duration;

use pocketfleet::api::Services;
use pocketfleet::events::Topic;
use pocketfleet::ids::TenantId;
use pocketfleet::ids::UserId;
use pocketfleet::jobs::intake::DELIVER_MEETING;
use pocketfleet::jobs::intake::MeetingWish;
use pocketfleet::jobs::intake::Wish;
use pocketfleet::jobs::intake::Work;
use pocketfleet::queue::Handler;
use pocketfleet::queue::Outcome;
use pocketfleet::queue::Run;
use pocketfleet::store::BoxFuture;
use serde_json::Value;
use serde_json::json;
use time::OffsetDateTime;
use tokio::sync::Semaphore;

use crate::openapi::state;
use crate::support::eventually;

/// Says that it is half done, and ends when it is let.
struct Half(Arc<Semaphore>);

impl Handler for Half {
    fn kind(&self) -> &'static str {
        DELIVER_MEETING
    }

    fn run(&self, run: Run) -> BoxFuture<'static, Outcome> {
        let gate = Arc::clone(&self.0);
        Box::pin(async move {
            run.progress("copy", 2, Some(4));
            gate.acquire().await.unwrap().forget();
            Outcome::Done(json!({"url": "x"}))
        })
    }
}

/// What the user's topic has, without times.
async fn told(services: &Services, user: &UserId) -> Vec<Value> {
    let (events, _) = services.events.history(&Topic::Queue(user.clone()), 1_000).await.unwrap();
    events.iter().map(|event| serde_json::from_str(&event.flat_json()).unwrap()).collect()
}

fn update<'a>(told: &'a [Value], update_type: &str) -> Option<&'a Value> {
    told.iter().find(|message| message["type"] == "QueueUpdate" && message["update_type"] == update_type)
}

async fn add(services: &Services, user: &UserId, topic: &str, recording: u64) {
    let meeting = MeetingWish { topic: topic.to_owned(), recording_id: Some(recording), destination: None };
    let wish = Wish { work: Work::Meeting(meeting), priority: None, run_at: None, idempotency_key: None };
    services.intake.add(user, vec![wish], OffsetDateTime::now_utc()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn each_user_is_told_of_their_own_items_in_the_words_of_the_seed() {
    let (state, _dir) = state().await;
    let services = &state.services;
    let gate = Arc::new(Semaphore::new(0));
    services.queue.register(Arc::new(Half(Arc::clone(&gate))));
    services.queue.start().await.unwrap();
    let (ada, bob) = (UserId::parse("ada").unwrap(), UserId::parse("bob").unwrap());
    services.queue.pause(&TenantId::personal(&bob)).await.unwrap();
    add(services, &bob, "Bob's secret", 8).await;
    add(services, &ada, "Team", 7).await;
    let progress = eventually("progress is told", async || {
        told(services, &ada).await.into_iter().find(|message| message["type"] == "ProgressUpdate")
    })
    .await;
    let copied = [&progress["step"], &progress["done"], &progress["total"], &progress["percent"]];
    assert_eq!(copied, [&json!("copy"), &json!(2), &json!(4), &json!(50.0)]);
    assert_eq!((&progress["recording_id"], &progress["topic"]), (&json!(7), &json!("Team")));
    assert!(progress["job_id"].is_string() && progress["timestamp"].is_string(), "{progress}");
    gate.add_permits(1);
    let messages = eventually("its end is told", async || {
        let told = told(services, &ada).await;
        update(&told, "task_completed").is_some().then_some(told)
    })
    .await;
    let added = update(&messages, "meeting_added").unwrap();
    assert_eq!(added["affected_user_id"], "ada");
    assert!(added["timestamp"].is_string(), "{added}");
    assert!(update(&messages, "task_started").is_some(), "{messages:?}");
    assert_eq!(update(&messages, "task_completed").unwrap()["queue"], json!([]));
    assert!(!json!(messages).to_string().contains("secret"), "{messages:?}");

    let his = eventually("bob is told of his own", async || {
        let told = told(services, &bob).await;
        update(&told, "meeting_added").is_some().then_some(told)
    })
    .await;
    assert_eq!(update(&his, "meeting_added").unwrap()["queue"][0]["topic"], "Bob's secret");
    assert!(!json!(his).to_string().contains("Team"), "{his:?}");
    services.queue.resume(&TenantId::personal(&bob)).await.unwrap();
    eventually("bob's runs", async || update(&told(services, &bob).await, "task_started").map(drop)).await;
    let running = services.queue.active(&TenantId::personal(&bob));
    services.queue.cancel(&TenantId::personal(&bob), &running[0].job.id, OffsetDateTime::now_utc()).await.unwrap();
    gate.add_permits(1);
    eventually("its end is told too", async || {
        let told = told(services, &bob).await;
        (update(&told, "task_completed").is_some() || update(&told, "meeting_removed").is_some()).then_some(())
    })
    .await;
    state.shutdown.begin();
    services.queue.stop().await;
    tokio::time::timeout(Duration::from_secs(30), state.shutdown.finished()).await.unwrap();
}

/// Ends well when it is told to stop.
struct Ends;

impl Handler for Ends {
    fn kind(&self) -> &'static str {
        DELIVER_MEETING
    }

    fn run(&self, run: Run) -> BoxFuture<'static, Outcome> {
        Box::pin(async move {
            run.cancelled().cancelled().await;
            Outcome::Done(json!({"url": "x"}))
        })
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_ends_while_everything_stops_is_told() {
    let (state, _dir) = state().await;
    let services = &state.services;
    services.queue.register(Arc::new(Ends));
    services.queue.start().await.unwrap();
    let ada = UserId::parse("ada").unwrap();
    add(services, &ada, "Team", 7).await;
    eventually("it runs", async || update(&told(services, &ada).await, "task_started").map(drop)).await;
    state.shutdown.begin();
    // Everybody who ends with the shutdown has ended; the queue is stopped when the connections have.
    for _ in 0..20 {
        crate::support::pause().await;
    }
    services.queue.stop().await;
    tokio::time::timeout(Duration::from_secs(30), state.shutdown.finished()).await.unwrap();
    eventually("it is told", async || update(&told(services, &ada).await, "task_completed").map(drop)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cleared_queue_is_told() {
    let (state, _dir) = state().await;
    let services = &state.services;
    services.queue.register(Arc::new(Half(Arc::new(Semaphore::new(0)))));
    // Nothing is begun: the queue is not started.
    let ada = UserId::parse("ada").unwrap();
    let tenant = TenantId::personal(&ada);
    add(services, &ada, "Team", 7).await;
    let id = services.queue.active(&tenant)[0].job.id;
    services.queue.cancel(&tenant, &id, OffsetDateTime::now_utc()).await.unwrap();
    let messages = eventually("it is told", async || {
        let told = told(services, &ada).await;
        update(&told, "queue_cleared").is_some().then_some(told)
    })
    .await;
    let types: Vec<_> = messages.iter().map(|message| message["update_type"].as_str().unwrap()).collect();
    assert_eq!(types, ["meeting_added", "meeting_removed", "queue_cleared"]);
    state.shutdown.begin();
    services.queue.stop().await;
    tokio::time::timeout(Duration::from_secs(30), state.shutdown.finished()).await.unwrap();
}
