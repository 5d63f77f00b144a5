//! Streams and polls without the network: what ends them.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::SystemTime;

use bytes::Bytes;
use pocketfleet::config::Config;
use pocketfleet::config::Flags;
use pocketfleet::events;
use pocketfleet::events::Endpoint;
use pocketfleet::events::Events;
use pocketfleet::events::Heard;
use pocketfleet::events::Listener;
use pocketfleet::events::Message;
use pocketfleet::events::Topic;
use pocketfleet::events::close::CloseCode;
use pocketfleet::ids::UserId;
use pocketfleet::pocketbase::token::Key;
use pocketfleet::pocketbase::token::Signer;
use pocketfleet::shutdown::Shutdown;
use pocketfleet::store::BoxFuture;
use pocketfleet::store::Entry;
use pocketfleet::store::Error;
use pocketfleet::store::Revision;
use pocketfleet::store::Store;
use pocketfleet::store::Watch;
use pocketfleet::store::sqlite::ControlDatabase;
use pocketfleet::telemetry::Metrics;
use serde_json::json;
use tempfile::TempDir;

use crate::openapi::state;
use crate::support::PATIENCE;

const EVE: &str = "b5c3xih3gtjb48z";

/// A store whose lists fail while it is told so.
#[derive(Debug)]
struct Moody {
    inner: ControlDatabase,
    is_away: AtomicBool,
}

impl Store for Moody {
    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Entry>, Error>> {
        self.inner.get(key)
    }
    fn list<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Vec<Entry>, Error>> {
        let is_away = self.is_away.load(Ordering::SeqCst);
        if is_away { Box::pin(async { Err(Error::Closed) }) } else { self.inner.list(prefix) }
    }
    fn create<'a>(&'a self, key: &'a str, value: Bytes) -> BoxFuture<'a, Result<Revision, Error>> {
        self.inner.create(key, value)
    }
    fn update<'a>(&'a self, key: &'a str, value: Bytes, expected: Revision) -> BoxFuture<'a, Result<Revision, Error>> {
        self.inner.update(key, value, expected)
    }
    fn delete<'a>(&'a self, key: &'a str, expected: Revision) -> BoxFuture<'a, Result<Revision, Error>> {
        self.inner.delete(key, expected)
    }
    fn watch<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Watch, Error>> {
        self.inner.watch(prefix)
    }
}

struct Bench {
    events: Events,
    store: Arc<Moody>,
    listener: Listener,
    /// The accounts, which somebody else has open for writing.
    _accounts: rusqlite::Connection,
    _folder: TempDir,
}

/// Eve listens to what concerns everybody.
async fn bench() -> Bench {
    let (state, folder) = state().await;
    let db = rusqlite::Connection::open(folder.path().join("data.db")).unwrap();
    db.execute_batch(
        "PRAGMA journal_mode = WAL;
         CREATE TABLE _collections (id TEXT PRIMARY KEY, name TEXT, type TEXT, options JSON);
         CREATE TABLE users (id TEXT PRIMARY KEY, email TEXT, tokenKey TEXT, role TEXT, verified BOOLEAN,
                             password TEXT, name TEXT);
         INSERT INTO _collections VALUES ('_pb_users_auth_', 'users', 'auth', '{\"authToken\":{\"secret\":\"S\"}}');
         INSERT INTO users VALUES ('b5c3xih3gtjb48z', 'eve@example.com', 'eve-key', 'admin', 1, '$2a$', 'Eve');",
    )
    .unwrap();
    let key = Key::new("eve-key", "S");
    let signer = Signer { collection_id: "_pb_users_auth_".into(), record_id: EVE.into(), key };
    let now = SystemTime::now();
    let principal = state.verifier.verify(&signer.mint(now, Duration::from_hours(1)), now).unwrap();
    let inner = ControlDatabase::open(&folder.path().join("events.db")).unwrap();
    let store = Arc::new(Moody { inner, is_away: AtomicBool::new(false) });
    let events = Events::open(events::Parts {
        config: Config::load(&Flags::default()).unwrap().events,
        store: Arc::clone(&store) as Arc<dyn Store>,
        verifier: state.verifier.clone(),
        owns: Arc::new(|_, _| false),
        metrics: Metrics::new(),
        shutdown: Shutdown::new(),
    })
    .await
    .unwrap();
    let entry = events.admit(Some(principal), IpAddr::from([127, 0, 0, 1]), Endpoint::Stream).unwrap();
    let listener = events.listen(entry, &[Topic::System], None).await.unwrap();
    Bench { events, store, listener, _accounts: db, _folder: folder }
}

impl Bench {
    async fn say(&self) {
        self.events.publish_logged(Topic::System, Message::new("Notice", json!({}))).await.unwrap();
    }

    async fn next(&mut self) -> Heard {
        tokio::time::timeout(PATIENCE, self.listener.next()).await.unwrap()
    }
}

#[tokio::test]
async fn an_operator_ends_streams_too_and_at_once_whatever_there_is_to_hear() {
    let mut bench = bench().await;
    bench.say().await;
    assert!(matches!(bench.next().await, Heard::Event(_)));
    for _ in 0..100 {
        bench.say().await;
    }
    let eve = UserId::parse(EVE).unwrap();
    assert_eq!(bench.events.disconnect(Some(&eve), None, CloseCode::Reconnect), 1);
    // There is always something to hear, and the look at the listener comes in between.
    let heard = tokio::time::timeout(PATIENCE, async {
        loop {
            match bench.listener.next().await {
                Heard::Event(_) => bench.say().await,
                other => return other,
            }
        }
    });
    assert!(matches!(heard.await.unwrap(), Heard::End(CloseCode::Reconnect)));
}

#[tokio::test]
async fn a_stream_ends_with_its_epoch_and_says_which_one_it_was() {
    let mut bench = bench().await;
    let before = bench.events.status().epoch;
    bench.say().await;
    bench.store.is_away.store(true, Ordering::SeqCst);
    let unread = Topic::User(UserId::parse("nobody").unwrap());
    bench.events.publish_logged(unread, Message::new("Notice", json!({}))).await.unwrap_err();
    bench.store.is_away.store(false, Ordering::SeqCst);
    assert_ne!(bench.events.status().epoch, before);
    bench.say().await;
    assert!(matches!(bench.next().await, Heard::Event(_)), "what was logged before");
    assert!(matches!(bench.next().await, Heard::End(CloseCode::InsufficientState)));
    assert_eq!(bench.listener.position().epoch, before, "so that nobody goes on from there");
}
