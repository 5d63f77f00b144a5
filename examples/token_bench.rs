//! What the check of a user's token costs inside the program, without a request around it.
//!
//! `cargo run --release --example token_bench -- DATABASE TOKEN USER [checks]` prints one JSON object: nanoseconds of
//! CPU time of one check, the whole one (a connection's first request) and the one of a token that the connection has
//! shown before. `DATABASE` is the `data.db` of a global instance, `TOKEN` a token of its user `USER`. The session is
//! registered first, as that of a user who signed in. `scripts/bench --only token` runs it and explains the figures.
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a benchmark that cannot go on stops, and prints")]

use std::hint::black_box;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use std::time::SystemTime;

use nix::sys::resource::UsageWho;
use nix::sys::resource::getrusage;
use nix::sys::time::TimeVal;
use pocketfleet::auth::Verifier;
use pocketfleet::config::Config;
use pocketfleet::config::Flags;
use pocketfleet::ids::UserId;
use pocketfleet::store::sessions::Session;
use pocketfleet::store::sessions::SessionId;
use pocketfleet::store::sessions::Sessions;
use pocketfleet::store::sessions::Status;
use pocketfleet::store::sqlite::ControlDatabase;
use serde_json::json;
use time::OffsetDateTime;

/// How often everything is measured; the caller takes the median.
const ROUNDS: usize = 5;

/// CPU time that this thread has used.
fn cpu() -> Duration {
    let usage = getrusage(UsageWho::RUSAGE_THREAD).unwrap();
    let span = |time: TimeVal| {
        Duration::from_secs(time.tv_sec().unsigned_abs()) + Duration::from_micros(time.tv_usec().unsigned_abs())
    };
    span(usage.user_time()) + span(usage.system_time())
}

/// Nanoseconds of CPU time of one call.
fn cost(calls: u32, mut call: impl FnMut()) -> f64 {
    for _ in 0..calls / 10 {
        call();
    }
    let before = cpu();
    for _ in 0..calls {
        call();
    }
    (cpu().saturating_sub(before).as_secs_f64() * 1e10 / f64::from(calls)).round() / 10.0
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let mut arguments = std::env::args().skip(1);
    let database = PathBuf::from(arguments.next().unwrap());
    let token = arguments.next().unwrap();
    let user = UserId::parse(&arguments.next().unwrap()).unwrap();
    let checks: u32 = arguments.next().map_or(200_000, |text| text.parse().unwrap());

    let folder = tempfile::tempdir().unwrap();
    let store = Arc::new(ControlDatabase::open(&folder.path().join("control.db")).unwrap());
    let sessions = Sessions::open(Arc::clone(&store) as _).await.unwrap();
    let now = OffsetDateTime::now_utc();
    let session = Session {
        id: SessionId::of(&token),
        user,
        status: Status::Live,
        device: String::new(),
        ip: None,
        created_at: now,
        expires_at: now + Duration::from_hours(1),
        adopted: false,
        family: None,
        key: "".into(),
    };
    sessions.register(session).await.unwrap();
    // Without its keeper: nothing is adopted, because the session is known.
    let config = Config::load(&Flags::default()).unwrap().auth;
    let (verifier, _keeper) = Verifier::new(&config, database, sessions);
    verifier.verify(&token, SystemTime::now()).unwrap();

    let mut whole = Vec::new();
    let mut again = Vec::new();
    let mut known = None;
    for _ in 0..ROUNDS {
        whole.push(cost(checks, || {
            black_box(verifier.verify(black_box(&token), SystemTime::now()).unwrap());
        }));
        again.push(cost(checks, || {
            black_box(verifier.verify_again(black_box(&token), SystemTime::now(), &mut known).unwrap());
        }));
    }
    println!("{}", json!({ "checks": checks, "whole_ns": whole, "again_ns": again }));
    store.close().await;
}
