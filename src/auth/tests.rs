//! Tokens against a database file as the global instance writes it.

use std::cell::RefCell;
use std::num::NonZeroU32;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Instant;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::Hmac;
use hmac::KeyInit;
use hmac::Mac;
use rusqlite::Connection;
use serde_json::json;
use sha2::Sha256;
use tempfile::TempDir;

use super::*;
use crate::pocketbase::token::Key;
use crate::pocketbase::token::Signer;
use crate::shutdown::Shutdown;
use crate::store::sessions::Session;
use crate::store::sqlite::ControlDatabase;

const EVE: &str = "b5c3xih3gtjb48z";
const BOB: &str = "a1c3xih3gtjb48z";
const USERS: &str = "_pb_users_auth_";

pub(super) fn config() -> Config {
    Config {
        max_concurrent: NonZeroUsize::new(2).unwrap(),
        max_waiting: 32,
        attempts_per_ip: NonZeroU32::new(60).unwrap(),
        registrations_per_ip: NonZeroU32::new(30).unwrap(),
        free_failures: 5,
        delay_base: Duration::from_secs(1),
        delay_max: Duration::from_mins(15),
        refresh_grace: Duration::from_mins(1),
        directory_check: Duration::ZERO,
        admin_email: String::new(),
        admin_password: "hunter2hunter2".into(),
    }
}

async fn sessions(folder: &TempDir) -> Sessions {
    let store = ControlDatabase::open(&folder.path().join("control.db")).unwrap();
    Sessions::open(Arc::new(store)).await.unwrap()
}

/// A database with Eve, an admin; the writer stays open like the instance's.
fn database(path: &std::path::Path) -> Connection {
    let db = Connection::open(path).unwrap();
    db.execute_batch(
        "PRAGMA journal_mode = WAL;
         CREATE TABLE _collections (id TEXT PRIMARY KEY, name TEXT, type TEXT, options JSON);
         CREATE TABLE users (id TEXT PRIMARY KEY, email TEXT, tokenKey TEXT, role TEXT, verified BOOLEAN,
                             password TEXT, name TEXT);
         INSERT INTO _collections VALUES ('_pb_users_auth_', 'users', 'auth', '{\"authToken\":{\"secret\":\"S\"}}');
         INSERT INTO _collections VALUES ('pbc_3142635823', '_superusers', 'auth', '{\"authToken\":{\"secret\":\"T\"}}');
         INSERT INTO users VALUES ('b5c3xih3gtjb48z', 'eve@example.com', 'eve-key', 'admin', 1, '$2a$', 'Eve');",
    )
    .unwrap();
    db
}

struct World {
    folder: TempDir,
    db: Connection,
    verifier: Verifier,
    keeper: Option<Keeper>,
    sessions: Sessions,
    now: SystemTime,
    known: RefCell<Option<Accepted>>,
}

impl World {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("data.db");
        let (db, sessions) = (database(&path), sessions(&folder).await);
        let (verifier, keeper) = Verifier::new(&config(), path, sessions.clone());
        Self { folder, db, verifier, keeper: Some(keeper), sessions, now: SystemTime::now(), known: RefCell::default() }
    }

    /// With and without the memory of the last token, which must never make a difference.
    fn verify(&self, token: &str) -> Result<Principal, Error> {
        let fresh = self.verifier.verify(token, self.now);
        let again = self.verifier.verify_again(token, self.now, &mut self.known.borrow_mut());
        assert_eq!(format!("{again:?}"), format!("{fresh:?}"));
        fresh
    }

    fn mint(&self) -> String {
        signer(USERS, EVE, "eve-key").mint(self.now, Duration::from_mins(10))
    }
}

fn signer(collection: &str, record: &str, token_key: &str) -> Signer {
    Signer { collection_id: collection.into(), record_id: record.into(), key: Key::new(token_key, "S") }
}

/// A token with any header and claims, signed with Eve's key.
fn forge(header: &Value, claims: &Value) -> String {
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let signed = format!("{}.{}", part(header), part(claims));
    let mut mac = <Hmac<Sha256> as KeyInit>::new_from_slice(b"eve-keyS").unwrap();
    mac.update(signed.as_bytes());
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(mac.finalize().into_bytes()))
}

async fn eventually(what: &str, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_mins(1);
    while !holds() {
        assert!(Instant::now() < deadline, "{what}");
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_valid_token_names_its_account_also_by_the_collections_name() {
    let world = World::new().await;
    let principal = world.verify(&world.mint()).unwrap();
    assert_eq!((principal.user.as_str(), principal.role, &*principal.email), (EVE, Role::Admin, "eve@example.com"));
    assert!(principal.is_verified);
    let by_name = signer("users", EVE, "eve-key").mint(world.now, Duration::from_mins(10));
    assert_eq!(world.verify(&by_name).unwrap().user.as_str(), EVE);
}

#[tokio::test]
async fn a_token_that_was_accepted_once_still_expires_and_vouches_for_no_other() {
    let world = World::new().await;
    let token = world.mint();
    assert!(world.verify(&token).is_ok() && world.known.borrow().is_some());
    let later = world.now + Duration::from_mins(11);
    let expired = world.verifier.verify_again(&token, later, &mut world.known.borrow_mut());
    assert!(matches!(expired, Err(Error::Token(token::Error::Expired))));
    for other in [&token[1..], &token[..token.len() - 1], &format!("{token}A"), &token.replace('.', "-")] {
        assert!(world.verify(&token).is_ok() && world.verify(other).is_err(), "{other}");
    }
}

#[tokio::test]
async fn every_other_token_is_refused() {
    let world = World::new().await;
    let hs256 = json!({ "alg": "HS256", "typ": "JWT" });
    let claims = |change: Value| {
        let mut claims =
            json!({ "collectionId": USERS, "exp": 4_000_000_000_u64, "id": EVE, "refreshable": true, "type": "auth" });
        claims.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        claims
    };
    assert!(world.verify(&forge(&hs256, &claims(json!({})))).is_ok(), "the forger works");
    for (what, token) in [
        ("wrong key", signer(USERS, EVE, "bob-key").mint(world.now, Duration::from_mins(10))),
        ("expired", signer(USERS, EVE, "eve-key").mint(world.now, Duration::ZERO)),
        ("issued in the future", forge(&hs256, &claims(json!({ "iat": 3_900_000_000_u64 })))),
        ("no algorithm", forge(&json!({ "alg": "none" }), &claims(json!({})))),
        ("other algorithm", forge(&json!({ "alg": "HS512" }), &claims(json!({})))),
        ("other collection", forge(&hs256, &claims(json!({ "collectionId": "pbc_3142635823" })))),
        ("other kind", forge(&hs256, &claims(json!({ "type": "file" })))),
        ("unknown user", forge(&hs256, &claims(json!({ "id": BOB })))),
        ("impossible user", forge(&hs256, &claims(json!({ "id": "../../etc" })))),
        ("no expiry", forge(&hs256, &json!({ "collectionId": USERS, "id": EVE, "type": "auth" }))),
        ("not a token", "Bearer".to_owned()),
        ("empty", String::new()),
    ] {
        let error = world.verify(&token).map(drop).expect_err(what);
        assert_eq!(Problem::from(error), Problem::new(Code::Unauthorized), "{what}");
    }
}

#[tokio::test]
async fn an_endless_token_is_taken_without_trouble() {
    let world = World::new().await;
    let claims = json!({ "collectionId": USERS, "exp": i64::MAX, "id": EVE, "type": "auth" });
    assert!(world.verify(&forge(&json!({ "alg": "HS256" }), &claims)).is_ok());
}

#[tokio::test]
async fn a_changed_key_role_or_secret_and_a_deleted_account_count_at_once() {
    let world = World::new().await;
    let token = world.mint();
    assert_eq!(world.verify(&token).unwrap().role, Role::Admin);
    world.db.execute("UPDATE users SET role = 'something'", []).unwrap();
    assert_eq!(world.verify(&token).unwrap().role, Role::User);
    world.db.execute("UPDATE users SET tokenKey = 'new'", []).unwrap();
    assert!(matches!(world.verify(&token), Err(Error::Token(token::Error::Signature))));
    world.db.execute("UPDATE users SET tokenKey = 'eve-key'", []).unwrap();
    assert!(world.verify(&token).is_ok());
    world.db.execute("UPDATE _collections SET options = '{\"authToken\":{\"secret\":\"other\"}}'", []).unwrap();
    assert!(world.verify(&token).is_err());
    world.db.execute("DELETE FROM users", []).unwrap();
    assert!(matches!(world.verify(&token), Err(Error::UnknownUser)));
}

#[tokio::test]
async fn within_the_check_interval_our_own_writes_still_count_at_once() {
    let world = World::new().await;
    let slow = Config { directory_check: Duration::from_hours(1), ..config() };
    let (verifier, _keeper) = Verifier::new(&slow, world.folder.path().join("data.db"), world.sessions.clone());
    let token = world.mint();
    assert!(verifier.verify(&token, world.now).is_ok());
    world.db.execute("UPDATE users SET tokenKey = 'new'", []).unwrap();
    assert!(verifier.verify(&token, world.now).is_ok(), "nobody told us");
    verifier.accounts_changed();
    assert!(verifier.verify(&token, world.now).is_err());
}

#[tokio::test]
async fn accounts_are_known_without_the_instance_and_those_in_memory_without_the_file() {
    let world = World::new().await;
    let path = world.folder.path().join("data.db");
    let (token, db) = (world.mint(), world.db);
    drop(db);
    assert!(!path.with_extension("db-wal").exists(), "the instance has gone and folded its log");
    assert!(world.verifier.verify(&token, world.now).is_ok());

    std::fs::rename(&path, world.folder.path().join("away")).unwrap();
    assert!(world.verifier.verify(&token, world.now).is_ok());
    let bob = signer(USERS, BOB, "bob-key").mint(world.now, Duration::from_mins(10));
    assert!(matches!(world.verifier.verify(&bob, world.now), Err(Error::AccountsUnreadable)));

    // Another file under the same name: nothing of the first one counts any more.
    let db = database(&path);
    db.execute("UPDATE users SET tokenKey = 'restored'", []).unwrap();
    assert!(world.verifier.verify(&token, world.now).is_err());
}

#[tokio::test]
async fn an_instance_whose_database_does_not_exist_yet_or_is_garbage_is_unreadable() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("data.db");
    let (verifier, _keeper) = Verifier::new(&config(), path.clone(), sessions(&folder).await);
    let now = SystemTime::now();
    let token = signer(USERS, EVE, "eve-key").mint(now, Duration::from_mins(10));
    assert!(matches!(verifier.verify(&token, now), Err(Error::AccountsUnreadable)));
    std::fs::write(&path, [7; 8192]).unwrap();
    assert!(matches!(verifier.verify(&token, now), Err(Error::AccountsUnreadable)));
    std::fs::remove_file(&path).unwrap();
    let _db = database(&path);
    assert!(verifier.verify(&token, now).is_ok());
}

#[tokio::test]
async fn ended_sessions_are_refused_and_superseded_ones_after_their_grace() {
    let world = World::new().await;
    let token = world.mint();
    let principal = world.verify(&token).unwrap();
    let session = Session { ip: None, ..keeper::adopted(&principal, world.now) };
    world.sessions.register(session).await.unwrap();

    let until = keeper::calendar(world.now + Duration::from_mins(1));
    world.sessions.set_status(&principal.session, Status::Superseded { until }).await.unwrap();
    assert!(world.verify(&token).is_ok());
    let later = world.now + Duration::from_secs(61);
    assert!(matches!(world.verifier.verify(&token, later), Err(Error::Revoked)));

    world.sessions.set_status(&principal.session, Status::Revoked).await.unwrap();
    assert!(matches!(world.verify(&token), Err(Error::Revoked)));
}

#[tokio::test]
async fn an_unknown_session_is_adopted_once_however_often_it_is_seen() {
    let mut world = World::new().await;
    let token = world.mint();
    for _ in 0..1000 {
        world.verify(&token).unwrap();
    }
    let principal = world.verify(&token).unwrap();
    assert!(world.sessions.find(&principal.session).is_none(), "no request waited for it");

    let shutdown = Shutdown::new();
    shutdown.spawn(world.keeper.take().unwrap().run(shutdown.clone()));
    eventually("the session is registered", || world.sessions.find(&principal.session).is_some()).await;
    let session = world.sessions.find(&principal.session).unwrap();
    assert!(session.adopted && session.user.as_str() == EVE);
    assert_eq!(world.sessions.len(), 1);
    shutdown.begin();
    shutdown.finished().await;
}

#[tokio::test]
async fn what_does_not_fit_the_queue_is_offered_again() {
    let mut world = World::new().await;
    let mint = |n: u64| signer(USERS, EVE, "eve-key").mint(world.now, Duration::from_secs(600 + n));
    let tokens: Vec<String> = (0..1100).map(mint).collect();
    for token in &tokens {
        world.verifier.verify(token, world.now).unwrap();
    }
    let shutdown = Shutdown::new();
    let keeper = world.keeper.take().unwrap();
    shutdown.spawn(keeper.run(shutdown.clone()));
    eventually("the queue empties", || world.sessions.len() >= 1024).await;
    eventually("the rest follows", || {
        for token in &tokens {
            drop(world.verifier.verify(token, world.now));
        }
        world.sessions.len() == tokens.len()
    })
    .await;
    shutdown.begin();
    shutdown.finished().await;
}

#[tokio::test]
async fn a_file_token_ends_with_the_session_that_asked_for_it() {
    let world = World::new().await;
    let options = json!({"authToken": {"secret": "S"}, "fileToken": {"secret": "F"}}).to_string();
    world.db.execute("UPDATE _collections SET options = ?1 WHERE name = 'users'", [options]).unwrap();
    let principal = world.verify(&world.mint()).unwrap();
    let file = |principal: &Principal| world.verifier.file_token(principal, world.now).unwrap().unwrap();
    let ends = |token: &str| world.verifier.verify_file(token, world.now).unwrap().expires;
    assert!(ends(&file(&principal)) > world.now + Duration::from_mins(2));
    let short = Principal { expires: world.now + Duration::from_secs(20), ..principal.clone() };
    assert!(ends(&file(&short)) <= short.expires, "not longer than the session's token");

    let token = file(&principal);
    world.sessions.register(keeper::adopted(&principal, world.now)).await.unwrap();
    let until = OffsetDateTime::from(world.now + Duration::from_mins(1));
    world.sessions.set_status(&principal.session, Status::Superseded { until }).await.unwrap();
    let verify = |after| world.verifier.verify_file(&token, world.now + Duration::from_secs(after)).map(drop);
    assert!(verify(30).is_ok(), "within the grace");
    assert!(matches!(verify(60), Err(Error::Revoked)));
}

#[tokio::test]
async fn the_profile_shows_what_the_user_may_see_and_nothing_secret() {
    let world = World::new().await;
    let principal = world.verify(&world.mint()).unwrap();
    let profile = world.verifier.profile(&principal.user).unwrap();
    assert_eq!(
        profile,
        json!({ "id": EVE, "email": "eve@example.com", "role": "admin", "verified": true, "name": "Eve",
                "collectionId": USERS, "collectionName": "users" })
    );
    assert!(world.verifier.any_admin().unwrap());
    assert_eq!(world.verifier.find_by_email("EVE@example.com").unwrap(), Some(principal.user));
    assert_eq!(world.verifier.find_by_email("bob@example.com").unwrap(), None);
}

#[tokio::test]
async fn debug_output_holds_no_secret() {
    let world = World::new().await;
    let principal = world.verify(&world.mint()).unwrap();
    let text = format!("{:?} {:?} {principal:?}", config(), world.verifier);
    for secret in ["hunter2", "eve-key", "eve@example.com"] {
        assert!(!text.contains(secret), "{secret} in {text}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_threads_and_a_writer_never_see_a_stale_key_after_the_change_is_told() {
    let world = World::new().await;
    let (token, verifier, now) = (world.mint(), world.verifier.clone(), world.now);
    let readers: Vec<_> = (0..4)
        .map(|_| {
            let (token, verifier) = (token.clone(), verifier.clone());
            tokio::task::spawn_blocking(move || (0..2000).for_each(|_| drop(verifier.verify(&token, now))))
        })
        .collect();
    for round in 0..100 {
        let key = if round % 2 == 0 { "other" } else { "eve-key" };
        world.db.execute("UPDATE users SET tokenKey = ?1", [key]).unwrap();
        verifier.accounts_changed();
        assert_eq!(verifier.verify(&token, now).is_ok(), key == "eve-key", "round {round}");
    }
    for reader in readers {
        reader.await.unwrap();
    }
}

#[tokio::test]
async fn a_standing_lasts_as_long_as_a_session_of_its_family_and_the_accounts_key() {
    let world = World::new().await;
    let minutes = |minutes| world.now + Duration::from_mins(minutes);
    let [first, second] = [10, 60].map(|ttl| {
        let token = signer(USERS, EVE, "eve-key").mint(world.now, Duration::from_mins(ttl));
        world.verify(&token).unwrap()
    });
    let standing = world.verifier.standing(&first).unwrap();
    let holds = |now| world.verifier.holds(&mut standing.clone(), now);
    assert!(holds(world.now), "nobody can have ended what is not registered");
    assert!(!holds(minutes(10)), "but it expires");

    world.sessions.register(keeper::adopted(&first, world.now)).await.unwrap();
    let refreshed = Session { family: Some(first.session.clone()), ..keeper::adopted(&second, world.now) };
    world.sessions.register(refreshed).await.unwrap();
    let until = keeper::calendar(minutes(1));
    world.sessions.set_status(&first.session, Status::Superseded { until }).await.unwrap();
    assert!(holds(minutes(2)), "the first is over, the second is of its family");
    assert!(!holds(minutes(60)));

    world.db.execute("UPDATE users SET tokenKey = 'other' WHERE id = ?1", [EVE]).unwrap();
    world.verifier.accounts_changed();
    assert!(!holds(minutes(2)), "the account's key changed");
    world.db.execute("UPDATE users SET tokenKey = 'eve-key', name = 'E' WHERE id = ?1", [EVE]).unwrap();
    world.verifier.accounts_changed();
    assert!(holds(minutes(2)), "the account changed and its key did not");

    world.sessions.set_status(&second.session, Status::Revoked).await.unwrap();
    assert!(holds(world.now), "the grace of the first still runs");
    world.sessions.set_status(&first.session, Status::Revoked).await.unwrap();
    assert!(!holds(world.now));
}
