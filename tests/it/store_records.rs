//! The typed records, on a store that behaves and on one that does not.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use futures_util::future::join_all;
use pocketfleet::ids::TenantId;
use pocketfleet::ids::UserId;
use pocketfleet::store::BoxFuture;
use pocketfleet::store::Entry;
use pocketfleet::store::Error;
use pocketfleet::store::Revision;
use pocketfleet::store::Store;
use pocketfleet::store::Watch;
use pocketfleet::store::placements::Occupancy;
use pocketfleet::store::placements::Placements;
use pocketfleet::store::placements::ProcessIdentity;
use pocketfleet::store::sessions::Session;
use pocketfleet::store::sessions::SessionId;
use pocketfleet::store::sessions::Sessions;
use pocketfleet::store::sessions::Status;
use pocketfleet::store::tenants::Kind;
use pocketfleet::store::tenants::Tenant;
use pocketfleet::store::tenants::Tenants;
use tempfile::TempDir;
use time::OffsetDateTime;

use crate::store::DEADLINE;
use crate::store::database;
use crate::store::text;

/// Waits for news of the watch to arrive, by letting its task run.
async fn eventually(mut holds: impl FnMut() -> bool) {
    let waiting = async {
        while !holds() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(DEADLINE, waiting).await.unwrap();
}

/// A store that refuses its first compare-and-swaps though nobody else wrote.
#[derive(Debug)]
struct Moody {
    inner: Arc<dyn Store>,
    refusals: AtomicUsize,
}

impl Moody {
    fn refuses(&self) -> bool {
        self.refusals.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok()
    }
}

impl Store for Moody {
    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Entry>, Error>> {
        self.inner.get(key)
    }
    fn list<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Vec<Entry>, Error>> {
        self.inner.list(prefix)
    }
    fn create<'a>(&'a self, key: &'a str, value: Bytes) -> BoxFuture<'a, Result<Revision, Error>> {
        if self.refuses() { Box::pin(async { Err(Error::Exists) }) } else { self.inner.create(key, value) }
    }
    fn update<'a>(&'a self, key: &'a str, value: Bytes, expected: Revision) -> BoxFuture<'a, Result<Revision, Error>> {
        if self.refuses() { Box::pin(async { Err(Error::Stale) }) } else { self.inner.update(key, value, expected) }
    }
    fn delete<'a>(&'a self, key: &'a str, expected: Revision) -> BoxFuture<'a, Result<Revision, Error>> {
        if self.refuses() { Box::pin(async { Err(Error::Stale) }) } else { self.inner.delete(key, expected) }
    }
    fn watch<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Watch, Error>> {
        self.inner.watch(prefix)
    }
}

fn tenant_id(text: &str) -> TenantId {
    TenantId::parse(text).unwrap()
}

fn user_id(text: &str) -> UserId {
    UserId::parse(text).unwrap()
}

fn tenant(id: &str) -> Tenant {
    let personal = Tenant::new(tenant_id(id), Kind::Personal, "personal", Some(user_id(id)));
    Tenant { created_at: OffsetDateTime::UNIX_EPOCH, ..personal }
}

fn session(token: &str, user: &str, expires_in: i64) -> Session {
    Session {
        id: SessionId::of(token),
        user: user_id(user),
        status: Status::Live,
        device: "curl\u{7}\n/8".to_owned() + &"x".repeat(300),
        ip: Some([127, 0, 0, 1].into()),
        created_at: OffsetDateTime::UNIX_EPOCH,
        expires_at: OffsetDateTime::UNIX_EPOCH + time::Duration::seconds(expires_in),
        adopted: false,
        family: None,
        key: "".into(),
    }
}

fn process(pid: i32) -> ProcessIdentity {
    ProcessIdentity {
        boot_id: "boot".to_owned(),
        pid,
        start_tick: 1,
        pidfd_inode: 2,
        address: ([127, 0, 0, 1], 8090).into(),
        binary_sha256: "00".to_owned(),
        jail_profile: String::new(),
    }
}

fn fixture() -> (TempDir, Arc<dyn Store>) {
    let folder = tempfile::tempdir().unwrap();
    let store = database(folder.path());
    (folder, store)
}

#[tokio::test]
async fn tenants_are_created_once_and_found_at_once_by_everybody() {
    let (_folder, store) = fixture();
    let (tenants, other) =
        (Tenants::open(Arc::clone(&store)).await.unwrap(), Tenants::open(Arc::clone(&store)).await.unwrap());
    let create = |n: usize| {
        let tenants = if n.is_multiple_of(2) { tenants.clone() } else { other.clone() };
        tokio::spawn(async move {
            let template = format!("t{n}");
            let made = tenants.create_or_find(Tenant { template, ..tenant("ann") }).await.unwrap();
            assert_eq!(tenants.find(&made.id), Some(Arc::clone(&made)));
            made.template.clone()
        })
    };
    let names: BTreeSet<_> = join_all((0..20).map(create)).await.into_iter().map(Result::unwrap).collect();
    assert_eq!(names.len(), 1);
    assert_eq!(tenants.create_many(["bob", "ann", "abe"].map(tenant).to_vec()).await.unwrap(), 2);
    eventually(|| other.len() == 3).await;
    let page = |after: Option<&str>, limit| {
        let page = other.page(after.map(tenant_id).as_ref(), limit);
        page.iter().map(|tenant| tenant.id.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(page(None, 2), ["abe", "ann"]);
    assert_eq!(page(Some("ann"), 2), ["bob"]);
    drop(tenants);
    let again = Tenants::open(store).await.unwrap();
    assert_eq!(Some(&again.find(&tenant_id("ann")).unwrap().template), names.first());
}

#[tokio::test]
async fn changes_of_a_tenant_survive_competition_and_spurious_refusals() {
    let (_folder, store) = fixture();
    let moody = Arc::new(Moody { inner: store, refusals: AtomicUsize::new(1) });
    let tenants = Tenants::open(Arc::clone(&moody) as Arc<dyn Store>).await.unwrap();
    tenants.create_or_find(tenant("ann")).await.unwrap();
    moody.refusals.store(3, Ordering::SeqCst);
    let append = |_| {
        let tenants = tenants.clone();
        tokio::spawn(async move { tenants.change(&tenant_id("ann"), |tenant| tenant.template.push('x')).await })
    };
    for answer in join_all((0..30).map(append)).await {
        assert!(answer.unwrap().unwrap().is_some());
    }
    assert_eq!(tenants.find(&tenant_id("ann")).unwrap().template, "personal".to_owned() + &"x".repeat(30));
    assert!(tenants.change(&tenant_id("nobody"), |_| ()).await.unwrap().is_none());
    moody.refusals.store(usize::MAX, Ordering::SeqCst);
    let refused = tenants.change(&tenant_id("ann"), |tenant| tenant.pinned = true).await;
    assert!(matches!(refused, Err(Error::Stale)), "a store that always refuses is given up on");
}

#[tokio::test]
async fn a_view_that_fell_behind_is_loaded_anew() {
    let (_folder, store) = fixture();
    let tenants = Tenants::open(Arc::clone(&store)).await.unwrap();
    tenants.create_or_find(tenant("gone")).await.unwrap();
    // This thread stands still, and with it the follower, while another one writes more than a feed holds.
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(async {
                let entry = store.get("tenant.gone").await.unwrap().unwrap();
                let mut value: serde_json::Value = serde_json::from_slice(&entry.value).unwrap();
                let mut record = |id: String| {
                    value["id"] = id.clone().into();
                    (format!("tenant.{id}"), serde_json::to_vec(&value).unwrap().into())
                };
                for part in 0..3 {
                    let records = (0..6_000).map(|n| record(format!("{part}-{n}"))).collect();
                    assert!(store.create_many(records).await.unwrap().iter().all(Result::is_ok));
                }
                store.delete("tenant.gone", entry.revision).await.unwrap();
            });
        });
    });
    eventually(|| tenants.len() == 18_000).await;
    assert!(tenants.find(&tenant_id("gone")).is_none());
    tenants.create_or_find(tenant("late")).await.unwrap();
    assert_eq!((tenants.len(), tenants.page(None, usize::MAX).len()), (18_001, 18_001));
}

#[tokio::test]
async fn a_record_that_cannot_be_read_locks_itself_only() {
    let (_folder, store) = fixture();
    store.create("tenant.bad", text("{\"id\":")).await.unwrap();
    let lie = serde_json::to_vec(&tenant("ann")).unwrap();
    store.create("tenant.liar", lie.into()).await.unwrap();
    let tenants = Tenants::open(store).await.unwrap();
    assert!(tenants.is_empty());
    for id in ["bad", "liar"] {
        assert!(matches!(tenants.create_or_find(tenant(id)).await, Err(Error::Corrupt(text)) if text.contains(id)));
    }
    assert!(tenants.create_or_find(tenant("ann")).await.is_ok());
}

#[tokio::test]
async fn epochs_only_grow_under_concurrent_acquisition() {
    let (_folder, store) = fixture();
    let moody = Arc::new(Moody { inner: store, refusals: AtomicUsize::new(5) });
    let placements = Placements::open(Arc::clone(&moody) as Arc<dyn Store>, "one".to_owned()).await.unwrap();
    let id = tenant_id("ann");
    let acquire = |_| {
        let (placements, id) = (placements.clone(), id.clone());
        tokio::spawn(async move { placements.acquire(&id).await.unwrap() })
    };
    let epochs: BTreeSet<_> = join_all((0..25).map(acquire)).await.into_iter().map(Result::unwrap).collect();
    assert_eq!(epochs, (1..=25).collect());
    assert_eq!(placements.find(&id).unwrap().epoch, 25);
    placements.release(&id, 25).await.unwrap();
    assert_eq!(placements.find(&id).unwrap().occupancy, Occupancy::Idle);
    assert_eq!(placements.acquire(&id).await.unwrap(), 26);
}

#[tokio::test]
async fn a_placement_is_changed_only_by_the_epoch_that_owns_it() {
    let (_folder, store) = fixture();
    let id = tenant_id("ann");
    let one = Placements::open(Arc::clone(&store), "one".to_owned()).await.unwrap();
    assert!(matches!(one.release(&id, 0).await, Err(Error::Stale)));
    assert!(matches!(one.adopt(&id, 0).await, Err(Error::Stale)));
    let epoch = one.acquire(&id).await.unwrap();
    assert!(matches!(one.started(&id, epoch + 1, process(1)).await, Err(Error::Stale)));
    one.started(&id, epoch, process(1)).await.unwrap();

    let two = Placements::open(Arc::clone(&store), "two".to_owned()).await.unwrap();
    assert_eq!(two.owned().len(), 1);
    assert!(matches!(two.started(&id, epoch, process(2)).await, Err(Error::Stale)));
    assert!(matches!(two.release(&id, epoch).await, Err(Error::Stale)));
    assert!(matches!(two.adopt(&id, epoch + 1).await, Err(Error::Stale)));
    two.adopt(&id, epoch).await.unwrap();
    two.adopt(&id, epoch).await.unwrap();
    let wanted = Occupancy::Owned { incarnation: "two".to_owned(), process: Some(process(1)) };
    assert_eq!(two.find(&id).unwrap().occupancy, wanted);
    assert!(matches!(one.release(&id, epoch).await, Err(Error::Stale)));
    two.release(&id, epoch).await.unwrap();
    assert!(two.owned().is_empty());
    assert!(matches!(two.adopt(&id, epoch).await, Err(Error::Stale)));

    let taken = one.acquire(&id).await.unwrap();
    assert_eq!((taken, two.acquire(&id).await.unwrap()), (epoch + 1, epoch + 2));
    assert!(matches!(one.started(&id, taken, process(3)).await, Err(Error::Stale)));
    eventually(|| one.find(&id).unwrap().epoch == epoch + 2).await;
}

/// Lets another incarnation acquire between the read and the swap of the first update.
#[derive(Debug)]
struct Intruder {
    inner: Moody,
    rival: Placements,
}

impl Store for Intruder {
    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Entry>, Error>> {
        self.inner.inner.get(key)
    }
    fn list<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Vec<Entry>, Error>> {
        self.inner.inner.list(prefix)
    }
    fn create<'a>(&'a self, key: &'a str, value: Bytes) -> BoxFuture<'a, Result<Revision, Error>> {
        self.inner.inner.create(key, value)
    }
    fn update<'a>(&'a self, key: &'a str, value: Bytes, expected: Revision) -> BoxFuture<'a, Result<Revision, Error>> {
        Box::pin(async move {
            if self.inner.refuses() {
                self.rival.acquire(&tenant_id("ann")).await?;
            }
            self.inner.inner.update(key, value, expected).await
        })
    }
    fn delete<'a>(&'a self, key: &'a str, expected: Revision) -> BoxFuture<'a, Result<Revision, Error>> {
        self.inner.inner.delete(key, expected)
    }
    fn watch<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Watch, Error>> {
        self.inner.inner.watch(prefix)
    }
}

#[tokio::test]
async fn an_acquisition_that_another_incarnation_overtook_is_lost() {
    let (_folder, store) = fixture();
    let id = tenant_id("ann");
    let rival = Placements::open(Arc::clone(&store), "rival".to_owned()).await.unwrap();
    let epoch = rival.acquire(&id).await.unwrap();
    let inner = Moody { inner: store, refusals: AtomicUsize::new(1) };
    let intruder = Arc::new(Intruder { inner, rival: rival.clone() });
    let ours = Placements::open(intruder, "ours".to_owned()).await.unwrap();
    assert!(matches!(ours.acquire(&id).await, Err(Error::Stale)));
    assert_eq!(rival.find(&id).unwrap().epoch, epoch + 1);
    assert_eq!(ours.acquire(&id).await.unwrap(), epoch + 2);
}

#[tokio::test]
async fn a_session_only_moves_on_and_is_never_registered_twice() {
    let (_folder, store) = fixture();
    let moody = Arc::new(Moody { inner: store, refusals: AtomicUsize::new(2) });
    let sessions = Sessions::open(moody).await.unwrap();
    let id = SessionId::of("token");
    assert!(matches!(sessions.set_status(&id, Status::Revoked).await, Err(Error::Stale)));
    sessions.register(session("token", "ann", 60)).await.unwrap();
    let stored = sessions.find(&id).unwrap();
    assert_eq!((stored.device.len(), stored.device.starts_with("curl/8x")), (200, true));
    let until = |seconds| Status::Superseded { until: OffsetDateTime::UNIX_EPOCH + time::Duration::seconds(seconds) };
    let status = || sessions.find(&id).unwrap().status.clone();
    for (wish, allowed, after) in [
        (until(10), true, until(10)),
        (until(20), true, until(10)),
        (until(5), true, until(5)),
        (Status::Live, false, until(5)),
        (Status::Revoked, true, Status::Revoked),
        (until(30), false, Status::Revoked),
        (Status::Live, false, Status::Revoked),
        (Status::Revoked, true, Status::Revoked),
    ] {
        assert_eq!(sessions.set_status(&id, wish.clone()).await.is_ok(), allowed, "{wish:?}");
        assert_eq!(status(), after);
    }
    sessions.register(session("token", "ann", 60)).await.unwrap();
    assert_eq!(status(), Status::Revoked);
}

#[tokio::test]
async fn all_sessions_of_a_user_are_revoked_durably_and_expired_ones_swept() {
    let (folder, store) = fixture();
    let sessions = Sessions::open(Arc::clone(&store)).await.unwrap();
    let stranger = Sessions::open(Arc::clone(&store)).await.unwrap();
    for n in 0..5 {
        // The view of `sessions` may not know these yet.
        stranger.register(session(&format!("ann{n}"), "ann", n * 10)).await.unwrap();
        sessions.register(session(&format!("anna{n}"), "anna", 100)).await.unwrap();
    }
    sessions.set_status(&SessionId::of("anna0"), Status::Revoked).await.unwrap();
    assert_eq!(sessions.revoke_all(&user_id("ann")).await.unwrap(), 5);
    assert_eq!(sessions.revoke_all(&user_id("ann")).await.unwrap(), 0);
    assert!(sessions.of_user(&user_id("ann")).iter().all(|session| session.status == Status::Revoked));
    assert_eq!((sessions.of_user(&user_id("ann")).len(), sessions.of_user(&user_id("anna")).len()), (5, 5));
    let on_disk = rusqlite::Connection::open(folder.path().join("control.db")).unwrap();
    let sql =
        "SELECT count(*) FROM records WHERE key LIKE 'session.ann.%' AND CAST(value AS TEXT) LIKE '%\"revoked\"%'";
    assert_eq!(on_disk.query_row(sql, [], |row| row.get::<_, i64>(0)).unwrap(), 5);

    let now = OffsetDateTime::UNIX_EPOCH + time::Duration::seconds(20);
    assert_eq!(sessions.sweep(now, 2).await.unwrap(), 2);
    assert_eq!(sessions.sweep(now, 100).await.unwrap(), 1);
    assert_eq!((sessions.len(), sessions.of_user(&user_id("ann")).len()), (7, 2));
    eventually(|| stranger.len() == 7).await;
}

#[tokio::test]
async fn names_are_listed_page_by_page_with_or_without_the_help_of_the_store() {
    let (_folder, store) = fixture();
    for key in ["a.1", "a.2", "a.3", "a-b.1", "ab.1", "b.1"] {
        store.create(key, Bytes::from_static(b"x")).await.unwrap();
    }
    let changed = store.get("a.2").await.unwrap().unwrap().revision;
    let revision = store.update("a.2", Bytes::from_static(b"y"), changed).await.unwrap();
    // The one has its own way, the other goes by the lists.
    let moody: Arc<dyn Store> = Arc::new(Moody { inner: Arc::clone(&store), refusals: AtomicUsize::new(0) });
    for store in [store, moody] {
        let names = async |prefix: &str, after: &str, most: usize| {
            let found = store.names(prefix, after, most).await.unwrap();
            found.iter().map(|(key, _)| key.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(names("a.", "", 2).await, ["a.1", "a.2"]);
        assert_eq!(names("a.", "a.2", 2).await, ["a.3"]);
        assert_eq!(names("a.", "a.3", 2).await, Vec::<String>::new());
        assert_eq!(names("a.", "", 0).await, Vec::<String>::new());
        assert_eq!(names("", "a.3", 9).await, ["ab.1", "b.1"]);
        assert_eq!(store.names("a.", "a.1", 1).await.unwrap()[0].1, revision);
        assert!(store.names("a", "", 1).await.is_err(), "no prefix");
    }
}
