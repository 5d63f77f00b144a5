//! The seams' conformance suites.
//!
//! The suites take the trait objects, so that another backend runs the same ones: add an opener and a `conformance!`
//! line.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::future::Future;
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use pocketfleet::store::Change;
use pocketfleet::store::Entry;
use pocketfleet::store::Error;
use pocketfleet::store::Revision;
use pocketfleet::store::Store;
use pocketfleet::store::Watch;
use pocketfleet::store::blobs::Blobs;
use pocketfleet::store::blobs::FolderBlobs;
use pocketfleet::store::bus::Bus;
use pocketfleet::store::bus::InProcessBus;
use pocketfleet::store::bus::Notice;
use pocketfleet::store::sqlite::ControlDatabase;

pub(crate) const DEADLINE: Duration = Duration::from_mins(2);

pub(crate) fn database(folder: &Path) -> Arc<ControlDatabase> {
    Arc::new(ControlDatabase::open(&folder.join("control.db")).unwrap())
}

async fn in_time<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, work).await.unwrap()
}

pub(crate) fn text(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

/// What a watch must have seen of a store in which nobody writes any more.
async fn replay(mut watch: Watch, until: Revision) -> BTreeMap<String, (Bytes, Revision)> {
    let start = watch.take_snapshot();
    let mut state: BTreeMap<_, _> =
        start.into_iter().map(|entry| (entry.key.to_string(), (entry.value, entry.revision))).collect();
    let mut last = watch.revision();
    while last < until {
        let change = in_time(watch.next()).await.unwrap();
        assert!(change.revision() > last, "{:?} after {last:?}", change.revision());
        last = change.revision();
        match change {
            Change::Put(entry) => drop(state.insert(entry.key.to_string(), (entry.value, entry.revision))),
            Change::Delete { key, .. } => assert!(state.remove(&*key).is_some(), "deleted unseen"),
        }
    }
    state
}

/// Instantiates the suite for a backend. The opener gets a fresh folder.
macro_rules! conformance {
    ($backend:ident, $open:expr, [$($fact:ident),* $(,)?]) => {
        mod $backend {
            $(#[tokio::test]
            async fn $fact() {
                let folder = tempfile::tempdir().unwrap();
                super::in_time(super::$fact($open(folder.path()))).await;
            })*
        }
    };
}

conformance!(
    embedded_store,
    super::database,
    [
        of_many_concurrent_creates_one_wins,
        a_stale_revision_is_refused,
        an_update_after_a_delete_is_refused,
        revisions_grow_over_all_records,
        a_list_is_the_records_under_its_prefix_in_key_order,
        a_watch_sees_every_final_value_also_of_writes_during_its_snapshot,
        a_watch_sees_its_prefix_only,
        a_thousand_concurrent_creates_are_all_acknowledged_and_present,
        a_batch_answers_each_record_on_its_own_terms,
        keys_prefixes_and_values_out_of_bounds_are_refused,
    ]
);

async fn of_many_concurrent_creates_one_wins(store: Arc<dyn Store>) {
    let create = |n: usize| {
        let store = Arc::clone(&store);
        tokio::spawn(async move { store.create("a.b", text(&n.to_string())).await.map(|_| n) })
    };
    let answers = join_all((0..50).map(create)).await;
    let (won, lost): (Vec<_>, Vec<_>) = answers.into_iter().map(Result::unwrap).partition(Result::is_ok);
    assert!(lost.iter().all(|answer| matches!(answer, Err(Error::Exists))));
    let winner = won.into_iter().map(Result::unwrap).collect::<Vec<_>>();
    assert_eq!(winner.len(), 1);
    assert_eq!(store.get("a.b").await.unwrap().unwrap().value, text(&winner[0].to_string()));
}

async fn a_stale_revision_is_refused(store: Arc<dyn Store>) {
    let first = store.create("a", text("1")).await.unwrap();
    let second = store.update("a", text("2"), first).await.unwrap();
    assert!(second > first);
    assert!(matches!(store.update("a", text("3"), first).await, Err(Error::Stale)));
    assert!(matches!(store.delete("a", first).await, Err(Error::Stale)));
    let entry = store.get("a").await.unwrap().unwrap();
    assert_eq!((entry.value, entry.revision), (text("2"), second));
}

async fn an_update_after_a_delete_is_refused(store: Arc<dyn Store>) {
    let first = store.create("a", text("1")).await.unwrap();
    let deleted = store.delete("a", first).await.unwrap();
    for old in [first, deleted] {
        assert!(matches!(store.update("a", text("2"), old).await, Err(Error::Stale)));
        assert!(matches!(store.delete("a", old).await, Err(Error::Stale)));
    }
    assert!(store.get("a").await.unwrap().is_none());
    let again = store.create("a", text("3")).await.unwrap();
    assert!(again > deleted);
    assert!(matches!(store.update("a", text("4"), first).await, Err(Error::Stale)));
}

async fn revisions_grow_over_all_records(store: Arc<dyn Store>) {
    let mut last = Revision(0);
    for n in 0..10 {
        let key = format!("a.{n}");
        let created = store.create(&key, text("1")).await.unwrap();
        let updated = store.update(&key, text("2"), created).await.unwrap();
        let deleted = store.delete(&key, updated).await.unwrap();
        assert!(last < created && created < updated && updated < deleted);
        last = deleted;
    }
}

async fn a_list_is_the_records_under_its_prefix_in_key_order(store: Arc<dyn Store>) {
    for key in ["b.1", "a.2", "a.1.z", "a", "ab.1", "a-.1", "a.Z", "a._"] {
        store.create(key, text(key)).await.unwrap();
    }
    let keys = |entries: Vec<Entry>| entries.iter().map(|entry| entry.key.to_string()).collect::<Vec<_>>();
    assert_eq!(keys(store.list("a.").await.unwrap()), ["a.1.z", "a.2", "a.Z", "a._"]);
    assert_eq!(keys(store.list("a.1.").await.unwrap()), ["a.1.z"]);
    assert_eq!(keys(store.list("").await.unwrap()).len(), 8);
    assert!(store.list("c.").await.unwrap().is_empty());
}

async fn a_watch_sees_every_final_value_also_of_writes_during_its_snapshot(store: Arc<dyn Store>) {
    let write = |worker: usize| {
        let store = Arc::clone(&store);
        tokio::spawn(async move {
            let mut watches = Vec::new();
            for n in 0..150 {
                let key = format!("w.{worker}.{}", n % 7);
                match store.get(&key).await.unwrap() {
                    None => store.create(&key, text(&n.to_string())).await.unwrap(),
                    Some(entry) if n % 5 == 0 => store.delete(&key, entry.revision).await.unwrap(),
                    Some(entry) => store.update(&key, text(&n.to_string()), entry.revision).await.unwrap(),
                };
                // Amid the writes of the others, and a bounded number: every watch hears of every write.
                if n % 30 == worker {
                    watches.push(store.watch("w.").await.unwrap());
                }
            }
            watches
        })
    };
    let workers: Vec<_> = (0..6).map(write).collect();
    let mut watches = Vec::new();
    for worker in workers {
        watches.extend(worker.await.unwrap());
    }
    let last = store.create("w.end", text("end")).await.unwrap();
    let entries = store.list("w.").await.unwrap();
    let wanted: BTreeMap<_, _> = entries.into_iter().map(|e| (e.key.to_string(), (e.value, e.revision))).collect();
    assert!(watches.iter().any(|watch| watch.revision() > Revision(0)), "no watch began amid the writes");
    for watch in watches {
        assert_eq!(replay(watch, last).await, wanted);
    }
}

async fn a_watch_sees_its_prefix_only(store: Arc<dyn Store>) {
    store.create("a.1", text("1")).await.unwrap();
    store.create("b.1", text("1")).await.unwrap();
    let mut watch = store.watch("a.").await.unwrap();
    assert_eq!(watch.take_snapshot().len(), 1);
    store.create("b.2", text("1")).await.unwrap();
    store.create("ab.2", text("1")).await.unwrap();
    let revision = store.create("a.2", text("1")).await.unwrap();
    let change = in_time(watch.next()).await.unwrap();
    assert_eq!((&**change.key(), change.revision()), ("a.2", revision));
}

async fn a_thousand_concurrent_creates_are_all_acknowledged_and_present(store: Arc<dyn Store>) {
    let create = |n: usize| {
        let store = Arc::clone(&store);
        // Every tenth is refused, which must not disturb those that share its commit.
        tokio::spawn(async move { store.create(&format!("k.{}", n - n % 10 / 9), text("x")).await })
    };
    let answers = join_all((0..1_000).map(create)).await;
    let created: BTreeSet<_> = answers.iter().filter_map(|answer| answer.as_ref().unwrap().as_ref().ok()).collect();
    assert_eq!(created.len(), 900);
    let entries = store.list("k.").await.unwrap();
    assert_eq!(entries.iter().map(|entry| &entry.revision).collect::<BTreeSet<_>>(), created);
}

async fn a_batch_answers_each_record_on_its_own_terms(store: Arc<dyn Store>) {
    store.create("a.1", text("old")).await.unwrap();
    let mut watch = store.watch("a.").await.unwrap();
    let batch = ["a.0", "a.1", "a.2", "a.2"].map(|key| (key.to_owned(), text("new"))).to_vec();
    let answers = store.create_many(batch).await.unwrap();
    assert_eq!(answers.iter().map(Result::is_ok).collect::<Vec<_>>(), [true, false, true, false]);
    assert_eq!(store.get("a.1").await.unwrap().unwrap().value, text("old"));
    for key in ["a.0", "a.2"] {
        assert_eq!(&**in_time(watch.next()).await.unwrap().key(), key);
    }
    let many = (0..10_001).map(|n| (format!("b.{n}"), Bytes::new())).collect();
    assert!(matches!(store.create_many(many).await, Err(Error::Invalid(_))));
}

async fn keys_prefixes_and_values_out_of_bounds_are_refused(store: Arc<dyn Store>) {
    let largest = Bytes::from(vec![7; 1 << 20]);
    let revision = store.create("a", largest.clone()).await.unwrap();
    assert_eq!(store.get("a").await.unwrap().unwrap().value, largest);
    let larger = Bytes::from(vec![7; (1 << 20) + 1]);
    assert!(matches!(store.update("a", larger, revision).await, Err(Error::Invalid(_))));
    let long = "a".repeat(201);
    for key in ["", "a.", "a b", "a%", "a*", "a'", long.as_str()] {
        assert!(matches!(store.create(key, Bytes::new()).await, Err(Error::Invalid(_))), "{key:?}");
        assert!(matches!(store.get(key).await, Err(Error::Invalid(_))), "{key:?}");
    }
    assert!(matches!(store.list("a").await, Err(Error::Invalid(_))));
    assert!(matches!(store.watch("a*").await, Err(Error::Invalid(_))));
}

// What only the embedded store promises.

#[tokio::test]
async fn acknowledged_records_survive_a_crash() {
    let folder = tempfile::tempdir().unwrap();
    let store = database(folder.path());
    let keys: Vec<_> = (0..500).map(|n| format!("a.{n}")).collect();
    for answer in join_all(keys.iter().map(|key| store.create(key, text("x")))).await {
        answer.unwrap();
    }
    let other = rusqlite::Connection::open(folder.path().join("control.db")).unwrap();
    let rows: i64 = other.query_row("SELECT count(*) FROM records", [], |row| row.get(0)).unwrap();
    assert_eq!(rows, 500);
    // The files as they are now are what a killed process leaves.
    let crashed = tempfile::tempdir().unwrap();
    for name in ["control.db", "control.db-wal"] {
        std::fs::copy(folder.path().join(name), crashed.path().join(name)).unwrap();
    }
    let survivor = database(crashed.path());
    assert_eq!(survivor.list("a.").await.unwrap().len(), 500);
    assert_eq!(survivor.create("b", text("x")).await.unwrap(), Revision(501));
}

#[tokio::test]
async fn a_store_dropped_without_closing_keeps_records_and_revisions() {
    let folder = tempfile::tempdir().unwrap();
    let store = database(folder.path());
    let created = store.create("a", text("1")).await.unwrap();
    let deleted = store.delete("a", created).await.unwrap();
    store.create("b", text("1")).await.unwrap();
    drop(store);
    let store = database(folder.path());
    assert!(store.get("a").await.unwrap().is_none());
    assert_eq!(store.get("b").await.unwrap().unwrap().value, text("1"));
    assert!(store.create("a", text("2")).await.unwrap() > deleted);
}

#[tokio::test]
async fn closing_finishes_the_queue_and_ends_watches_and_views() {
    let folder = tempfile::tempdir().unwrap();
    let store = database(folder.path());
    let mut watch = store.watch("").await.unwrap();
    let keys: Vec<_> = (0..100).map(|n| format!("a.{n}")).collect();
    let mut writes = pin!(join_all(keys.iter().map(|key| store.create(key, text("x")))));
    assert!(futures_util::poll!(&mut writes).is_pending());
    store.close().await;
    assert!(writes.await.iter().all(Result::is_ok));
    for _ in 0..100 {
        assert!(in_time(watch.next()).await.is_ok());
    }
    assert!(matches!(in_time(watch.next()).await, Err(Error::Closed)));
    assert!(matches!(store.create("b", text("x")).await, Err(Error::Closed)));
    assert!(matches!(store.get("a.1").await, Err(Error::Closed)));
    assert!(matches!(store.list("").await, Err(Error::Closed)));
    assert!(matches!(store.watch("").await, Err(Error::Closed)));
    store.close().await;
    assert!(!folder.path().join("control.db-wal").exists(), "the log was not folded into the file");
    assert_eq!(database(folder.path()).list("a.").await.unwrap().len(), 100);
}

#[tokio::test]
async fn files_that_are_not_ours_are_refused_and_left_alone() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("control.db");
    database(folder.path()).close().await;
    assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    rusqlite::Connection::open(&path).unwrap().pragma_update(None, "user_version", 999).unwrap();
    let error = ControlDatabase::open(&path).unwrap_err();
    assert!(matches!(error, Error::NewerSchema { found: 999, .. }), "{error}");
    assert!(error.to_string().contains("control.db"), "{error}");

    let garbage = folder.path().join("garbage.db");
    let noise: Vec<u8> = (0..20_000_u32).map(|n| u8::try_from(n * 31 % 251).unwrap()).collect();
    std::fs::write(&garbage, &noise).unwrap();
    let error = ControlDatabase::open(&garbage).unwrap_err();
    assert!(matches!(&error, Error::Corrupt(text) if text.contains("garbage.db")), "{error}");
    assert_eq!(std::fs::read(&garbage).unwrap(), noise);

    let other = folder.path().join("other.db");
    rusqlite::Connection::open(&other).unwrap().execute_batch("CREATE TABLE notes (id)").unwrap();
    assert!(matches!(ControlDatabase::open(&other), Err(Error::Corrupt(_))));
}

#[test]
fn one_store_serves_several_runtimes() {
    let folder = tempfile::tempdir().unwrap();
    let store = database(folder.path());
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let store = &store;
            scope.spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
                runtime.block_on(async {
                    let key = format!("a.{thread}");
                    let mut revision = store.create(&key, text("0")).await.unwrap();
                    for _ in 0..20 {
                        revision = store.update(&key, text("1"), revision).await.unwrap();
                        assert_eq!(store.get(&key).await.unwrap().unwrap().revision, revision);
                    }
                });
            });
        }
    });
}

// The bus and the blobs.

async fn next(subscription: &mut pocketfleet::store::bus::Subscription) -> String {
    match in_time(subscription.next()).await.unwrap() {
        Notice::Message(message) => format!("{} {}", message.subject, String::from_utf8_lossy(&message.payload)),
        Notice::Lagged(lost) => format!("lagged {lost}"),
    }
}

#[tokio::test]
async fn the_bus_passes_messages_by_prefix_and_tells_the_slow() {
    let bus: Arc<dyn Bus> = Arc::new(InProcessBus::with_capacity(3));
    bus.publish("a.1", text("nobody listens")).await.unwrap();
    let mut narrow = bus.subscribe("a.b.").await.unwrap();
    let mut wide = bus.subscribe("").await.unwrap();
    for (subject, payload) in [("a.b.1", "1"), ("a.bc.1", "2"), ("a.b.c.2", "3"), ("x", "4"), ("y", "5")] {
        bus.publish(subject, text(payload)).await.unwrap();
    }
    assert_eq!([next(&mut narrow).await, next(&mut narrow).await], ["a.b.1 1", "a.b.c.2 3"]);
    assert_eq!(next(&mut wide).await, "lagged 2");
    assert_eq!([next(&mut wide).await, next(&mut wide).await], ["a.b.1 1", "a.bc.1 2"]);
    bus.publish("z", text("6")).await.unwrap();
    assert_eq!([next(&mut wide).await, next(&mut wide).await], ["a.b.c.2 3", "z 6"]);
    for subject in ["", "a.", "a b"] {
        assert!(matches!(bus.publish(subject, Bytes::new()).await, Err(Error::Invalid(_))));
    }
    assert!(matches!(bus.subscribe("a").await, Err(Error::Invalid(_))));
    drop(bus);
    assert!(in_time(wide.next()).await.is_none());
}

#[tokio::test]
async fn a_blob_is_put_once_and_is_whole() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("blobs");
    let blobs: Arc<dyn Blobs> = Arc::new(FolderBlobs::open(&root).unwrap());
    let put = |n: u8| {
        let blobs = Arc::clone(&blobs);
        tokio::spawn(async move { blobs.put("t/ann/1/snap.db", vec![n; 100_000].into()).await.map(|()| n) })
    };
    let answers: Vec<_> = join_all((0..12).map(put)).await.into_iter().map(Result::unwrap).collect();
    assert_eq!(answers.iter().filter(|answer| matches!(answer, Err(Error::Exists))).count(), 11);
    let winner = answers.into_iter().find_map(Result::ok).unwrap();
    assert_eq!(blobs.get("t/ann/1/snap.db").await.unwrap().unwrap(), vec![winner; 100_000]);

    let (source, target) = (folder.path().join("source"), folder.path().join("target"));
    std::fs::write(&source, "large").unwrap();
    blobs.put_file("t/ann/2/snap.db", &source).await.unwrap();
    assert!(matches!(blobs.put_file("t/ann/2/snap.db", &source).await, Err(Error::Exists)));
    std::fs::write(&source, "changed later").unwrap();
    assert_eq!(blobs.get_file("t/ann/2/snap.db", &target).await.unwrap(), Some(5));
    assert_eq!(std::fs::read(&target).unwrap(), b"large");
    assert!(matches!(blobs.get_file("t/ann/2/snap.db", &target).await, Err(Error::Exists)));

    let keys = |infos: Vec<pocketfleet::store::blobs::BlobInfo>| infos.into_iter().map(|i| (i.key, i.bytes)).collect();
    let all: Vec<_> = keys(blobs.list("").await.unwrap());
    assert_eq!(all, [("t/ann/1/snap.db".to_owned(), 100_000), ("t/ann/2/snap.db".to_owned(), 5)]);
    let some: Vec<_> = keys(blobs.list("t/ann/2/").await.unwrap());
    assert_eq!(some, [("t/ann/2/snap.db".to_owned(), 5)]);
    assert!(blobs.list("t/bob/").await.unwrap().is_empty());
    assert!(matches!(blobs.put("t/ann/2/snap.db/x", Bytes::new()).await, Err(Error::Invalid(_))));
    assert!(blobs.delete("t/ann/1/snap.db").await.unwrap());
    assert!(!blobs.delete("t/ann/1/snap.db").await.unwrap());
    assert!(blobs.get("t/ann/1/snap.db").await.unwrap().is_none());
    assert_eq!(std::fs::read_dir(root.join(".incoming")).unwrap().count(), 0);
}

#[tokio::test]
async fn no_blob_key_and_no_link_leaves_the_folder() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("blobs");
    let blobs = FolderBlobs::open(&root).unwrap();
    let long = "a".repeat(201);
    for key in ["", "/", "../x", "a/../x", "a/..", ".", "/etc/passwd", "a//b", "a/", "a\\b", "a\0", ".x", &long] {
        assert!(matches!(blobs.put(key, Bytes::new()).await, Err(Error::Invalid(_))), "{key:?}");
        assert!(matches!(blobs.get(key).await, Err(Error::Invalid(_))), "{key:?}");
        assert!(matches!(blobs.delete(key).await, Err(Error::Invalid(_))), "{key:?}");
    }
    assert!(matches!(blobs.list("../").await, Err(Error::Invalid(_))));
    assert!(matches!(blobs.list("a").await, Err(Error::Invalid(_))));

    let outside = folder.path().join("outside");
    std::fs::create_dir(&outside).unwrap();
    std::fs::write(outside.join("secret"), "secret").unwrap();
    std::os::unix::fs::symlink(&outside, root.join("link")).unwrap();
    std::os::unix::fs::symlink(outside.join("secret"), root.join("file")).unwrap();
    for key in ["link/secret", "file"] {
        assert!(blobs.get(key).await.unwrap().is_none(), "{key}");
    }
    assert!(!blobs.delete("link/secret").await.unwrap());
    assert!(matches!(blobs.put("link/new", text("x")).await, Err(Error::Invalid(_))));
    assert!(matches!(blobs.put("file", text("x")).await, Err(Error::Exists)));
    assert!(blobs.put_file("copy", &root.join("file")).await.is_err());
    assert!(blobs.list("").await.unwrap().is_empty());
    assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 1);

    std::fs::write(root.join(".incoming/half"), "left by a crash").unwrap();
    drop(FolderBlobs::open(&root).unwrap());
    assert_eq!(std::fs::read_dir(root.join(".incoming")).unwrap().count(), 0);
}
