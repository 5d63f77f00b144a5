//! What the job queue costs inside the program, beside a plain `SQLite` table with group commit that promises the same.
//!
//! `cargo run --release --example queue_bench [-- seconds]` prints one JSON object. Everything is on disk
//! (`synchronous=FULL`) before it counts. `scripts/bench queue` runs it and explains the figures.
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a benchmark that cannot go on stops, and prints")]
#![expect(clippy::cast_precision_loss, reason = "rates")]

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::Instant;

use pocketfleet::config::Config;
use pocketfleet::config::Flags;
use pocketfleet::ids::TenantId;
use pocketfleet::ids::UserId;
use pocketfleet::queue;
use pocketfleet::queue::Claiming;
use pocketfleet::queue::NewJob;
use pocketfleet::queue::Parts;
use pocketfleet::queue::Queue;
use pocketfleet::shutdown::Shutdown;
use pocketfleet::store::sqlite::ControlDatabase;
use pocketfleet::telemetry::Metrics;
use rusqlite::Connection;
use serde_json::Value;
use serde_json::json;
use time::OffsetDateTime;
use tokio::sync::mpsc;
use tokio::sync::oneshot;

const CONNECTIONS: [usize; 3] = [1, 16, 64];
const KIND: &str = "bench";

fn payload() -> Value {
    json!({ "text": "x".repeat(240) })
}

fn tenant(number: usize) -> TenantId {
    TenantId::parse(&format!("t{number}")).unwrap()
}

fn new_job(owner: usize) -> NewJob {
    NewJob::new(KIND, tenant(owner), UserId::parse("u1").unwrap(), payload())
}

async fn open(folder: &Path, name: &str) -> (Queue, Arc<ControlDatabase>) {
    let database = Arc::new(ControlDatabase::open(&folder.join(name)).unwrap());
    let config = queue::Config {
        external_kinds: vec![KIND.to_owned()],
        external_per_tenant: 1 << 20,
        max_waiting: 10_000_000,
        max_waiting_per_tenant: 10_000_000,
        max_finished: 1_000,
        ..Config::load(&Flags::default()).unwrap().queue
    };
    let parts = Parts {
        config,
        store: Arc::clone(&database) as _,
        node: "bench".to_owned(),
        is_alone: true,
        handlers: Vec::new(),
        clock: Arc::new(OffsetDateTime::now_utc),
        metrics: Metrics::new(),
        shutdown: Shutdown::new(),
    };
    let queue = Queue::open(parts).await.unwrap();
    queue.start().await.unwrap();
    (queue, database)
}

/// Runs `work` in so many tasks until the time is over; returns how often a second it was done.
async fn rate<F, W>(tasks: usize, time: Duration, work: impl Fn(usize) -> W) -> f64
where
    F: Future<Output = u64> + Send,
    W: Fn() -> F + Send + 'static,
{
    let (count, is_over) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let began = Instant::now();
    let mut running = Vec::new();
    for task in 0..tasks {
        let (work, count, is_over) = (work(task), Arc::clone(&count), Arc::clone(&is_over));
        running.push(tokio::spawn(async move {
            while !is_over.load(Ordering::Relaxed) {
                count.fetch_add(work().await, Ordering::Relaxed);
            }
        }));
    }
    tokio::time::sleep(time).await;
    is_over.store(true, Ordering::Relaxed);
    for task in running {
        task.await.unwrap();
    }
    count.load(Ordering::Relaxed) as f64 / began.elapsed().as_secs_f64()
}

/// What the plain side stores.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Plain {
    /// Rows that are appended, with two indexed columns, as a queue needs them: the least a durable queue can do.
    Appended,
    /// Records of the size of ours, under names like ours, so that jobs of a tenant lie together: what the store of
    /// pocketfleet has to write, without the queue.
    Records,
}

const APPENDED: &str = "CREATE TABLE jobs (id INTEGER PRIMARY KEY, state INTEGER NOT NULL, run_at INTEGER NOT NULL,
                                lease INTEGER, attempts INTEGER NOT NULL, payload TEXT NOT NULL) STRICT;
                        CREATE INDEX ready ON jobs (run_at) WHERE state = 0;";
const RECORDS: &str =
    "CREATE TABLE jobs (key TEXT NOT NULL PRIMARY KEY, revision INTEGER NOT NULL, value BLOB NOT NULL)
                       STRICT, WITHOUT ROWID;";

/// Bytes of a job's record beside its payload.
const BESIDE: usize = 270;

/// Writes through one thread that commits everything that is queued in one transaction.
async fn plain(folder: &Path, what: Plain, tasks: usize, time: Duration) -> f64 {
    let name = if what == Plain::Appended { "appended" } else { "records" };
    let mut connection = Connection::open(folder.join(format!("{name}-{tasks}.db"))).unwrap();
    connection.pragma_update(None, "journal_mode", "WAL").unwrap();
    let tables = if what == Plain::Appended { APPENDED } else { RECORDS };
    connection.execute_batch(&format!("PRAGMA synchronous = FULL; {tables}")).unwrap();
    let (sender, mut queued) = mpsc::channel::<(usize, String, oneshot::Sender<()>)>(4_096);
    let writer = std::thread::spawn(move || {
        let mut revision = 0_i64;
        while let Some(first) = queued.blocking_recv() {
            let mut group = vec![first];
            while let Ok(next) = queued.try_recv() {
                group.push(next);
            }
            let transaction = connection.transaction().unwrap();
            for (task, payload, _) in &group {
                revision += 1;
                if what == Plain::Appended {
                    let sql = "INSERT INTO jobs (state, run_at, attempts, payload) VALUES (0, 1, 0, ?1)";
                    transaction.prepare_cached(sql).unwrap().execute([payload]).unwrap();
                } else {
                    let sql = "INSERT INTO jobs (key, revision, value) VALUES (?1, ?2, ?3)";
                    let key = format!("job.{KIND}.t{task}.{revision:026}");
                    let values = rusqlite::params![key, revision, payload.as_bytes()];
                    transaction.prepare_cached(sql).unwrap().execute(values).unwrap();
                }
            }
            transaction.commit().unwrap();
            for (_, _, reply) in group {
                reply.send(()).unwrap();
            }
        }
    });
    let rate = rate(tasks, time, |task| {
        let sender = sender.clone();
        move || {
            let sender = sender.clone();
            async move {
                let (reply, written) = oneshot::channel();
                let mut payload = payload().to_string();
                if what == Plain::Records {
                    payload.push_str(&"y".repeat(BESIDE));
                }
                sender.send((task, payload, reply)).await.unwrap();
                written.await.unwrap();
                1
            }
        }
    })
    .await;
    drop(sender);
    writer.join().unwrap();
    rate
}

async fn enqueue(folder: &Path, tasks: usize, time: Duration) -> f64 {
    let (queue, database) = open(folder, &format!("queue-{tasks}.db")).await;
    let rate = rate(tasks, time, |task| {
        let queue = queue.clone();
        move || {
            let queue = queue.clone();
            async move { queue.add(vec![new_job(task)], OffsetDateTime::now_utc()).await.unwrap().len() as u64 }
        }
    })
    .await;
    queue.stop().await;
    database.close().await;
    rate
}

async fn batches(folder: &Path, time: Duration) -> f64 {
    let (queue, database) = open(folder, "batches.db").await;
    let rate = rate(1, time, |_| {
        let queue = queue.clone();
        move || {
            let queue = queue.clone();
            async move {
                let jobs = (0..100).map(new_job).collect();
                queue.add(jobs, OffsetDateTime::now_utc()).await.unwrap().len() as u64
            }
        }
    })
    .await;
    queue.stop().await;
    database.close().await;
    rate
}

async fn fill(queue: &Queue, jobs: usize, tenants: usize) {
    for batch in 0..jobs / 1_000 {
        let jobs = (0..1_000).map(|n| new_job((batch * 1_000 + n) % tenants)).collect();
        queue.add(jobs, OffsetDateTime::now_utc()).await.unwrap();
    }
}

async fn take_and_finish(folder: &Path, tasks: usize, time: Duration) -> f64 {
    let (queue, database) = open(folder, &format!("take-{tasks}.db")).await;
    // More than can be taken meanwhile.
    let jobs = 30_000 * usize::try_from(time.as_secs()).unwrap().max(1);
    fill(&queue, jobs, 1_000).await;
    let rate = rate(tasks, time, |task| {
        let queue = queue.clone();
        move || {
            let queue = queue.clone();
            async move {
                let claiming = Claiming {
                    kinds: vec![KIND.to_owned()],
                    worker: format!("w{task}"),
                    lease: Duration::from_mins(1),
                    limit: 1,
                    tenant: None,
                    wait: Duration::ZERO,
                };
                let claimed = queue.claim(claiming).await.unwrap();
                for job in &claimed {
                    queue.complete(&job.job.id, job.fence, Value::Null).await.unwrap();
                }
                claimed.len() as u64
            }
        }
    })
    .await;
    queue.stop().await;
    database.close().await;
    rate
}

/// Microseconds of a position and of a tenant's whole line at 100,000 waiting jobs.
async fn positions(folder: &Path, tenants: usize) -> Value {
    let (queue, database) = open(folder, &format!("positions-{tenants}.db")).await;
    fill(&queue, 100_000, tenants).await;
    let asked: Vec<_> = (0..tenants)
        .step_by((tenants / 100).max(1))
        .map(|owner| (tenant(owner), queue.active(&tenant(owner))))
        .collect();
    let began = Instant::now();
    let mut asks = 0_u32;
    for (_, active) in &asked {
        let last = active.last().unwrap();
        assert_eq!(queue.position(&last.job.id), last.position);
        asks += 1;
    }
    let position = began.elapsed() / asks;
    let began = Instant::now();
    for (owner, active) in &asked {
        assert_eq!(queue.active(owner).len(), active.len());
    }
    let line = began.elapsed() / asks;
    let micros = |time: Duration| (time.as_secs_f64() * 1e7).round() / 10.0;
    queue.stop().await;
    database.close().await;
    json!({ "waiting": 100_000, "tenants": tenants, "position_us": micros(position), "active_us": micros(line) })
}

#[tokio::main(worker_threads = 2)]
async fn main() {
    let seconds = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(3);
    let time = Duration::from_secs(seconds);
    let folder = tempfile::tempdir_in("target").unwrap();
    let folder = folder.path();
    let mut lines = Vec::new();
    for tasks in CONNECTIONS {
        let appended = plain(folder, Plain::Appended, tasks, time).await;
        let records = plain(folder, Plain::Records, tasks, time).await;
        let queue = enqueue(folder, tasks, time).await;
        let take = take_and_finish(folder, tasks, time).await;
        lines.push(json!({
            "tasks": tasks,
            "plain_sqlite_per_s": appended.round(),
            "same_records_per_s": records.round(),
            "enqueue_per_s": queue.round(),
            "ratio": (queue / appended * 100.0).round() / 100.0,
            "ratio_to_same_records": (queue / records * 100.0).round() / 100.0,
            "claim_and_complete_per_s": take.round(),
        }));
    }
    let batched = batches(folder, time).await;
    let mut asked = Vec::new();
    for tenants in [10, 1_000, 100_000] {
        asked.push(positions(folder, tenants).await);
    }
    println!("{}", json!({ "one_at_a_time": lines, "enqueue_by_100_per_s": batched.round(), "positions": asked }));
}
