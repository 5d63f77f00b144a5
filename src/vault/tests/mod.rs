//! The vault against a real store.

mod masters;

use std::num::NonZeroU32;
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;

use serde_json::json;
use tempfile::TempDir;
use tokio::sync::mpsc;

use super::*;
use crate::audit::Logged;
use crate::store::sqlite::ControlDatabase;

const SECRET: &str = "sk-planted-0123456789";

struct World {
    vault: Vault,
    audit: Audit,
    database: Arc<ControlDatabase>,
    shutdown: Shutdown,
    /// Every attempt to warn, and whether it was taken.
    warnings: mpsc::Receiver<(Warning, bool)>,
    /// How many attempts are not taken.
    deaf: Arc<AtomicUsize>,
}

fn config() -> Config {
    Config {
        key_file: PathBuf::new(),
        key: Hidden::default(),
        passphrase: Hidden::default(),
        reveal_max_age: Duration::from_mins(5),
        reveals_per_minute: NonZeroU32::new(10).unwrap(),
        changes_per_minute: NonZeroU32::new(1_000).unwrap(),
        max_secrets: NonZeroUsize::new(100).unwrap(),
        warn_before: Duration::from_hours(24 * 7),
        keep_deleted: Duration::from_hours(24 * 30),
    }
}

fn passphrase(text: &str) -> Config {
    let passphrase = serde_json::from_value(json!(text)).unwrap();
    Config { passphrase, ..config() }
}

async fn open_with(dir: &Path, config: Config, checks: Checks) -> Result<World, Locked> {
    let database = Arc::new(ControlDatabase::open(&dir.join("control.db")).unwrap());
    let store: Arc<dyn Store> = Arc::clone(&database) as Arc<dyn Store>;
    let unlocked = match unlock(&config, dir, Arc::clone(&store)).await {
        Ok(unlocked) => unlocked,
        Err(locked) => {
            database.close().await;
            return Err(locked);
        }
    };
    let audit = Audit::open(store).await.unwrap();
    let shutdown = Shutdown::new();
    let (told, warnings) = mpsc::channel(64);
    let deaf = Arc::new(AtomicUsize::new(0));
    let refusals = Arc::clone(&deaf);
    let warn: Warn = Arc::new(move |warning| {
        let taken = refusals.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_err();
        // A world that is gone hears nothing.
        let _ = told.try_send((warning, taken));
        Box::pin(async move { taken })
    });
    let parts =
        Parts { config, unlocked, audit: audit.clone(), checks, warn, keeps_former: true, shutdown: shutdown.clone() };
    Ok(World { vault: Vault::new(parts).await.unwrap(), audit, database, shutdown, warnings, deaf })
}

async fn open(dir: &Path, config: Config) -> Result<World, Locked> {
    open_with(dir, config, Checks::new()).await
}

async fn world() -> (World, TempDir) {
    let dir = tempfile::tempdir().unwrap();
    (open(dir.path(), config()).await.unwrap(), dir)
}

impl World {
    async fn close(self) {
        self.shutdown.begin();
        self.shutdown.finished().await;
        self.audit.close().await;
        self.database.close().await;
    }

    async fn put(&self, who: &str, service: &str, label: &str, secret: &str) -> KeyId {
        let stored = self.vault.put(&caller(who), new(service, label, secret), now()).await.unwrap();
        stored.item.key_id
    }

    async fn actions(&self) -> Vec<String> {
        let entries: Vec<Logged> = self.audit.after(0, 10_000).await.unwrap();
        assert!(!serde_json::to_string(&entries).unwrap().contains("planted"));
        entries.into_iter().map(|entry| entry.action).collect()
    }

    /// What was written down of secrets and keys that did not open.
    async fn unreadable(&self) -> Vec<Logged> {
        let mut entries = self.audit.after(0, 10_000).await.unwrap();
        assert!(!serde_json::to_string(&entries).unwrap().contains("planted"));
        entries.retain(|entry| entry.action == action::SECRET_UNREADABLE);
        entries
    }

    /// So that what is written down once a minute is written down again.
    fn forget_limits(&self) {
        *lock(&self.vault.inner.uses) = Keyed::new(1, USE_EVERY, LIMITED);
    }

    fn record(&self, who: &str, id: &KeyId) -> SealedSecret {
        SealedSecret::clone(&self.vault.inner.secrets.find(&tenant(who), id).unwrap())
    }

    /// Behind the vault's back.
    async fn overwrite(&self, record: &SealedSecret) {
        let written = self.vault.inner.secrets.change(&record.tenant, &record.key_id, |_| Ok(Some(record.clone())));
        written.await.unwrap();
    }

    async fn reads(&self, who: &str, id: &KeyId) -> Result<String, Error> {
        let opened = self.vault.open_id(&tenant(who), id, "test", now()).await?;
        Ok(opened.secret.expose().to_owned())
    }

    async fn settled(&self) {
        while self.vault.progress().phase == rotate::Phase::Rewrapping {
            tokio::task::yield_now().await;
        }
    }
}

fn now() -> OffsetDateTime {
    OffsetDateTime::now_utc()
}

fn tenant(who: &str) -> TenantId {
    TenantId::parse(who).unwrap()
}

fn caller(who: &str) -> Caller {
    Caller { tenant: tenant(who), user: UserId::parse(who).unwrap(), ip: None }
}

fn new(service: &str, label: &str, secret: &str) -> NewSecret {
    NewSecret {
        service: service.to_owned(),
        label: Some(label.to_owned()),
        secret: Secret::new(secret.to_owned()),
        expires_at: None,
        settings: Value::Null,
        verify: true,
    }
}

#[tokio::test]
async fn what_was_changed_exchanged_or_cut_does_not_open() {
    let (world, _dir) = world().await;
    let id = world.put("ada", "fathom", "default", SECRET).await;
    let other = world.put("ada", "http", "other", "sk-planted-of-another").await;
    let stranger = world.put("bob", "fathom", "default", "sk-planted-of-bob").await;
    let good = world.record("ada", &id);
    let sealed = good.sealed.clone().unwrap();
    let later = Some(now() + Duration::from_hours(1));
    let with = |change: &dyn Fn(&mut SealedSecret)| {
        let mut changed = good.clone();
        change(&mut changed);
        changed
    };
    let bad = [
        with(&|s| s.service = "http".to_owned()),
        with(&|s| s.label = "other".to_owned()),
        with(&|s| s.expires_at = later),
        with(&|s| s.created_at += Duration::from_nanos(1)),
        with(&|s| s.version += 1),
        with(&|s| s.version = 0),
        with(&|s| s.settings = json!({"url": "http://evil.example"})),
        with(&|s| s.hint = Some("evil".to_owned())),
        with(&|s| s.dek = KeyId::random().to_string()),
        with(&|s| s.sealed = None),
        with(&|s| s.sealed = Some(String::new())),
        with(&|s| s.sealed = Some(sealed[..sealed.len() - 4].to_owned())),
        with(&|s| s.sealed = world.record("ada", &other).sealed),
        with(&|s| s.sealed = world.record("bob", &stranger).sealed),
        with(&|s| s.sealed = Some(sealed.replacen(&sealed[30..31], if &sealed[30..31] == "A" { "B" } else { "A" }, 1))),
    ];
    for (at, changed) in bad.iter().enumerate() {
        world.overwrite(changed).await;
        world.forget_limits();
        assert!(matches!(world.reads("ada", &id).await, Err(Error::Unreadable)), "change {at}");
        let revealed = world.vault.try_unseal(&world.record("ada", &id));
        assert!(matches!(revealed, Err(Error::Unreadable)), "change {at}");
        assert_eq!(world.unreadable().await.len(), at + 1, "change {at}");
    }
    let entries = world.unreadable().await;
    let about = |entry: &Logged| entry.tenant == Some(tenant("ada")) && entry.subject.as_deref() == Some(id.as_str());
    assert!(entries.iter().all(about), "{entries:?}");
    world.overwrite(&good).await;
    assert_eq!(world.reads("ada", &id).await.unwrap(), SECRET);
    // Another tenant's data key, or other heads.
    let key = world.vault.inner.keys.find(&tenant("bob")).unwrap();
    let own = world.vault.inner.keys.find(&tenant("ada")).unwrap();
    let heads = TenantKey { heads: std::collections::BTreeMap::from([(id.clone(), 1)]), ..TenantKey::clone(&own) };
    let mut written = world.unreadable().await.len();
    for changed in [TenantKey { tenant: tenant("ada"), ..TenantKey::clone(&key) }, heads] {
        world.forget_limits();
        world.vault.inner.keys.change(&tenant("ada"), |_| Ok(Some(changed.clone()))).await.unwrap();
        assert!(matches!(world.reads("ada", &id).await, Err(Error::Unreadable)));
        // Each of them is written down: a look, what cannot be stored under it, here and elsewhere.
        let refused = world.vault.put(&caller("ada"), new("loom", "a", SECRET), now()).await;
        assert!(matches!(refused, Err(Error::Unreadable)));
        let sealed = world.vault.seal(&tenant("ada"), "webhook", &Secret::new(SECRET.to_owned())).await;
        assert!(matches!(sealed, Err(Error::Unreadable)));
        let entries = world.unreadable().await;
        assert_eq!(entries.len(), written + 3, "{entries:?}");
        assert!(entries.iter().all(|entry| entry.tenant == Some(tenant("ada"))), "{entries:?}");
        written = entries.len();
    }
    world.close().await;
}

#[tokio::test]
async fn an_older_version_or_a_deleted_secret_put_back_does_not_open() {
    let (world, _dir) = world().await;
    let id = world.put("ada", "fathom", "default", SECRET).await;
    let first = world.record("ada", &id);
    assert_eq!(world.put("ada", "fathom", "default", "sk-planted-second").await, id);
    let second = world.record("ada", &id);
    world.overwrite(&first).await;
    assert!(matches!(world.reads("ada", &id).await, Err(Error::Unreadable)));
    world.overwrite(&second).await;
    assert_eq!(world.reads("ada", &id).await.unwrap(), "sk-planted-second");
    world.vault.remove(&caller("ada"), &id, now()).await.unwrap();
    assert_eq!(world.record("ada", &id).sealed, None, "the ciphertext is gone");
    assert!(matches!(world.reads("ada", &id).await, Err(Error::Revoked)));
    world.overwrite(&second).await;
    world.forget_limits();
    assert!(matches!(world.reads("ada", &id).await, Err(Error::Unreadable)));
    assert_eq!(world.unreadable().await.len(), 2, "the older one, and the deleted one");
    world.close().await;
}

#[tokio::test]
async fn an_interrupted_change_leaves_a_secret_that_opens_and_can_be_changed() {
    let (world, _dir) = world().await;
    let id = world.put("ada", "fathom", "default", SECRET).await;
    // The record was written, the head was not.
    let mut ahead = world.record("ada", &id);
    ahead.version += 1;
    world.vault.seal_into(&mut ahead, &Secret::new("sk-planted-second".to_owned())).unwrap();
    world.overwrite(&ahead).await;
    assert_eq!(world.reads("ada", &id).await.unwrap(), "sk-planted-second");
    let change = Change { label: Some("other".to_owned()), end: End::Keep };
    world.vault.change(&caller("ada"), &id, change, now()).await.unwrap();
    assert_eq!(world.reads("ada", &id).await.unwrap(), "sk-planted-second");
    assert_eq!(world.put("ada", "fathom", "other", "sk-planted-third").await, id);
    assert_eq!(world.reads("ada", &id).await.unwrap(), "sk-planted-third");
    world.close().await;
}

#[tokio::test]
async fn a_worker_gets_the_secret_that_was_meant_and_learns_why_not() {
    let (world, _dir) = world().await;
    let open = async |service: &str, label: Option<&str>, at| {
        let opened = world.vault.open(&tenant("ada"), service, label, "test", at).await?;
        Ok::<_, Error>(opened.secret.expose().to_owned())
    };
    assert!(matches!(open("fathom", None, now()).await, Err(Error::NotFound)));
    world.put("ada", "fathom", "work", "sk-planted-work").await;
    assert_eq!(open("fathom", None, now()).await.unwrap(), "sk-planted-work");
    let id = world.put("ada", "fathom", "default", SECRET).await;
    world.put("ada", "fathom", "newer", "sk-planted-newer").await;
    assert_eq!(open("fathom", None, now()).await.unwrap(), SECRET, "the default one");
    assert_eq!(open("fathom", Some("work"), now()).await.unwrap(), "sk-planted-work");
    assert!(matches!(open("s3", None, now()).await, Err(Error::NotFound)));
    let soon = now() + Duration::from_hours(1);
    let change = Change { label: None, end: End::At(soon) };
    let item = world.vault.change(&caller("ada"), &id, change, now()).await.unwrap();
    assert_eq!((item.state, item.expires_at), (State::Expiring, Some(soon)));
    let after = soon + Duration::from_secs(1);
    assert!(matches!(open("fathom", Some("default"), after).await, Err(Error::Expired)));
    assert_eq!(open("fathom", None, after).await.unwrap(), "sk-planted-newer", "one that is good");
    assert_eq!(world.vault.list(&tenant("ada"), after)[0].state, State::Expired);
    world.vault.remove(&caller("ada"), &id, now()).await.unwrap();
    assert!(matches!(open("fathom", Some("default"), now()).await, Err(Error::Revoked)));
    assert!(matches!(world.vault.remove(&caller("ada"), &id, now()).await, Err(Error::NotFound)));
    // Used often, written down once a minute for each purpose.
    for _ in 0..20 {
        open("fathom", Some("work"), now()).await.unwrap();
    }
    let uses = world.actions().await.iter().filter(|found| *found == action::SECRET_USED).count();
    assert_eq!(uses, 3);
    world.close().await;
}

#[tokio::test]
async fn a_reveal_needs_a_fresh_sign_in_and_is_written_down_first() {
    let (world, _dir) = world().await;
    let id = world.put("ada", "fathom", "default", SECRET).await;
    let reveal = async |who: &str, id: &KeyId, signed_in, at| {
        let shown = world.vault.reveal(&caller(who), id, Some("moving house"), signed_in, at).await?;
        Ok::<_, Error>(shown.expose().to_owned())
    };
    assert_eq!(reveal("ada", &id, Some(now()), now()).await.unwrap(), SECRET);
    assert!(matches!(reveal("ada", &id, None, now()).await, Err(Error::SignInFirst { .. })));
    let old = now() - Duration::from_mins(6);
    assert!(matches!(reveal("ada", &id, Some(old), now()).await, Err(Error::SignInFirst { .. })));
    for absent in [&KeyId::random(), &id] {
        assert!(matches!(reveal("bob", absent, Some(now()), now()).await, Err(Error::NotFound)));
    }
    let entries = world.audit.after(0, 100).await.unwrap();
    let shown: Vec<_> = entries.iter().filter(|entry| entry.action == action::SECRET_REVEALED).collect();
    assert_eq!((shown.len(), &shown[0].detail), (1, &json!({"purpose": "moving house"})));
    assert_eq!((shown[0].actor.as_str(), shown[0].subject.as_deref()), ("user:ada", Some(id.as_str())));
    let refused = entries.iter().filter(|entry| entry.action == action::SECRET_REVEAL_REFUSED).count();
    assert_eq!(refused, 4);
    let mut taken = 3;
    while !matches!(reveal("ada", &id, Some(now()), now()).await, Err(Error::TooMany { .. })) {
        taken += 1;
    }
    assert_eq!(taken, 10);
    // What cannot be written down is not shown.
    world.audit.close().await;
    let refused = world.vault.reveal(&caller("bob"), &id, None, Some(now()), now()).await;
    assert!(matches!(refused, Err(Error::Audit(_))));
    world.close().await;
}

#[tokio::test]
async fn a_service_is_asked_before_its_secret_is_stored() {
    let dir = tempfile::tempdir().unwrap();
    let check: Check = Arc::new(|secret, _| {
        let verdict = match secret.expose() {
            "sk-planted-good" => Verdict::Ok,
            "sk-planted-away" => Verdict::Unavailable,
            _ => Verdict::Rejected { message: "the service does not know this key".to_owned() },
        };
        Box::pin(async move { verdict })
    });
    let world = open_with(dir.path(), config(), Checks::new().with("fathom", check)).await.unwrap();
    let put = async |secret: &str, verify| {
        let new = NewSecret { verify, ..new("fathom", "default", secret) };
        world.vault.put(&caller("ada"), new, now()).await
    };
    assert!(matches!(put("sk-planted-bad", true).await, Err(Error::Rejected { .. })));
    assert!(matches!(put("sk-planted-away", true).await, Err(Error::Unchecked)));
    assert!(world.vault.list(&tenant("ada"), now()).is_empty());
    assert!(put("sk-planted-away", false).await.unwrap().is_new);
    assert!(!put("sk-planted-good", true).await.unwrap().is_new);
    world.close().await;
}

#[tokio::test]
async fn of_equal_puts_one_makes_and_the_others_replace_and_there_is_an_end() {
    let (world, _dir) = world().await;
    let ada = caller("ada");
    let puts = (0..8).map(|_| world.vault.put(&ada, new("http", "same", "planted-token"), now()));
    let puts: Vec<_> = futures_util::future::join_all(puts).await.into_iter().map(Result::unwrap).collect();
    assert_eq!(puts.iter().filter(|stored| stored.is_new).count(), 1);
    assert_eq!(world.vault.list(&tenant("ada"), now()).len(), 1);
    for at in 1..100 {
        world.put("ada", "http", &format!("label {at}"), "planted-token").await;
    }
    let full = world.vault.put(&ada, new("http", "one more", "planted-token"), now()).await;
    assert!(matches!(full, Err(Error::Full { limit: 100 })));
    assert!(!world.vault.put(&ada, new("http", "same", "planted-token"), now()).await.unwrap().is_new);
    let taken = Change { label: Some("label 2".to_owned()), end: End::Keep };
    assert!(matches!(world.vault.change(&ada, &puts[0].item.key_id, taken, now()).await, Err(Error::LabelTaken)));
    world.close().await;
}

#[tokio::test]
async fn what_is_sealed_elsewhere_opens_for_its_tenant_and_context_until_that_is_destroyed() {
    let (world, _dir) = world().await;
    let sealed = world.vault.seal(&tenant("ada"), "webhook 1", &Secret::new(SECRET.to_owned())).await.unwrap();
    world.vault.seal(&tenant("bob"), "webhook 1", &Secret::new(SECRET.to_owned())).await.unwrap();
    let opened = world.vault.unseal(&tenant("ada"), "webhook 1", &sealed).await.unwrap();
    assert_eq!(opened.expose(), SECRET);
    assert!(!serde_json::to_string(&sealed).unwrap().contains("planted"));
    assert_eq!(format!("{sealed:?}"), "Sealed(..)");
    for (who, context) in [("ada", "webhook 2"), ("bob", "webhook 1"), ("carl", "webhook 1")] {
        assert!(matches!(world.vault.unseal(&tenant(who), context, &sealed).await, Err(Error::Unreadable)));
    }
    let id = world.put("ada", "fathom", "default", SECRET).await;
    world.vault.destroy(&tenant("ada"), Actor::Operator).await.unwrap();
    assert!(matches!(world.vault.unseal(&tenant("ada"), "webhook 1", &sealed).await, Err(Error::Unreadable)));
    assert!(matches!(world.reads("ada", &id).await, Err(Error::NotFound)));
    // A fresh data key, and nothing of the old.
    world.put("ada", "fathom", "default", SECRET).await;
    assert!(matches!(world.vault.unseal(&tenant("ada"), "webhook 1", &sealed).await, Err(Error::Unreadable)));
    world.close().await;
}

#[tokio::test]
async fn its_owner_is_warned_once_of_each_end() {
    let (mut world, _dir) = world().await;
    world.deaf.store(1, Ordering::SeqCst);
    let end = now() + Duration::from_hours(1);
    let new_secret = NewSecret { expires_at: Some(end), ..new("fathom", "default", SECRET) };
    let id = world.vault.put(&caller("ada"), new_secret, now()).await.unwrap().item.key_id;
    let expected = Warning {
        tenant: tenant("ada"),
        key_id: id.clone(),
        service: "fathom".to_owned(),
        label: "default".to_owned(),
        expires_at: end,
    };
    assert_eq!(world.warnings.recv().await.unwrap(), (expected.clone(), false), "nobody could be told");
    assert_eq!(world.record("ada", &id).warned_of, None);
    world.vault.inner.look.notify_one();
    assert_eq!(world.warnings.recv().await.unwrap(), (expected, true));
    while world.record("ada", &id).warned_of.is_none() {
        tokio::task::yield_now().await;
    }
    let far = Change { label: None, end: End::At(now() + Duration::from_hours(24 * 30)) };
    world.vault.change(&caller("ada"), &id, far, now()).await.unwrap();
    let near = Change { label: None, end: End::At(end) };
    world.vault.change(&caller("ada"), &id, near, now()).await.unwrap();
    let warned = world.actions().await.iter().filter(|action| **action == action::SECRET_EXPIRING).count();
    assert_eq!(warned, 1);
    world.shutdown.begin();
    world.shutdown.finished().await;
    assert!(world.warnings.try_recv().is_err(), "the same end again");
    world.close().await;
}

#[tokio::test]
async fn what_a_service_issued_is_renewed_in_its_place_and_never_over_what_came_after_it() {
    let (world, _dir) = world().await;
    let (ada, secret) = (caller("ada"), |text: &str| Secret::new(text.to_owned()));
    let issued = world.vault.put_grant(&ada, "fathom", &secret("sk-planted-issued-1"), now()).await.unwrap().item;
    let grant = grant_of(&issued.settings).unwrap().to_owned();
    assert_eq!(
        (issued.label.as_str(), &issued.hint, world.vault.grants(&ada.tenant, "fathom", now()).len()),
        (DEFAULT_LABEL, &None, 1)
    );
    let id = issued.key_id.clone();
    world.vault.renew(&ada.tenant, &id, &grant, &secret("sk-planted-issued-2")).await.unwrap();
    assert_eq!(world.reads("ada", &id).await.unwrap(), "sk-planted-issued-2");
    assert_eq!(world.vault.find(&ada.tenant, &id, now()).unwrap().updated_at, issued.updated_at);
    // A second sign-in, a pasted key, and nothing: what belongs to the first one is stored no more.
    let again = world.vault.put_grant(&ada, "fathom", &secret("sk-planted-issued-3"), now()).await.unwrap().item;
    assert_eq!(again.key_id, id);
    let renewed = async || world.vault.renew(&ada.tenant, &id, &grant, &secret("sk-planted-late")).await;
    assert!(matches!(renewed().await, Err(Error::Revoked)));
    assert_eq!(world.put("ada", "fathom", "default", SECRET).await, id);
    assert!(matches!(renewed().await, Err(Error::Revoked)));
    assert_eq!(world.reads("ada", &id).await.unwrap(), SECRET);
    world.vault.remove(&ada, &id, now()).await.unwrap();
    assert!(matches!(renewed().await, Err(Error::Revoked)));
    let settings = json!({ "type": "oauth", "grant": grant });
    let passed = NewSecret { settings, ..new("fathom", "default", SECRET) };
    assert!(matches!(world.vault.put(&ada, passed, now()).await, Err(Error::Invalid(_))), "nobody names a grant");
    let renewals = world.actions().await.iter().filter(|action| **action == action::SECRET_RENEWED).count();
    assert_eq!(renewals, 1);
    world.close().await;
}

#[tokio::test]
async fn no_use_is_handed_out_that_could_not_be_written_down() {
    let (world, _dir) = world().await;
    let id = world.put("ada", "fathom", "default", SECRET).await;
    world.audit.close().await;
    for _ in 0..2 {
        assert!(matches!(world.reads("ada", &id).await, Err(Error::Audit(_))));
    }
    world.close().await;
}

#[tokio::test]
async fn an_empty_key_file_of_a_vault_that_never_was_is_replaced_and_otherwise_missed() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join(KEY_FILE);
    std::fs::write(&file, "").unwrap();
    let world = open(dir.path(), config()).await.unwrap();
    assert_eq!(world.vault.made(), Some(&*file));
    let id = world.put("ada", "fathom", "default", SECRET).await;
    world.close().await;
    let key = std::fs::read(&file).unwrap();
    let world = open(dir.path(), config()).await.unwrap();
    assert_eq!(world.reads("ada", &id).await.unwrap(), SECRET);
    world.close().await;
    // With something to open, an empty file is a lost key.
    std::fs::write(&file, "").unwrap();
    assert!(matches!(open(dir.path(), config()).await, Err(Locked::Missing { .. })));
    assert_eq!(std::fs::read(&file).unwrap(), b"");
    std::fs::write(&file, key).unwrap();
    open(dir.path(), config()).await.unwrap().close().await;
}
