//! Instances that are made before anybody has them, for accounts that are registered next.
//!
//! A spare is an ordinary personal instance under an id that no account has yet: its folder is made, its process runs,
//! with the user, the limits and the secrets of a tenant's. Whoever registers an account takes an id ([`Spares::take`])
//! and makes the account with it; then the tenant's record is written and its owner let in ([`Claim::made`]), and the
//! first request finds an instance that is awake. Nothing is renamed or restarted on the way.
//!
//! Invariants:
//! - An id is handed to one caller at a time. It comes back when that one was certainly refused; when nobody can tell,
//!   it stays out until the accounts say whose it is. Should that ever be wrong, `PocketBase` takes no id twice.
//! - Nobody reaches a spare: it has no tenant's record until an account has its id, and no row of a user until then.
//! - A record (`store::spares`) stands for every spare from before its folder is made until after it is gone, so that
//!   the next start knows what it finds.
//! - A spare is a help and no condition: without one, an account is registered as ever.
//!
//! Deliberately absent: how an account is made (see `auth`), how an instance is (see `supervisor`).

mod keeper;

pub use keeper::IsFull;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::time::Instant;

use tokio::sync::Notify;

use crate::failpoint;
use crate::ids::TenantId;
use crate::ids::UserId;
use crate::store;
use crate::store::spares::Spares as Records;
use crate::supervisor::Supervisor;
use crate::tenancy::Tenancy;

/// Which of these users have an account; none when the accounts cannot be read. May read files.
pub type Accounts = Arc<dyn Fn(&[UserId]) -> Option<Vec<UserId>> + Send + Sync>;

/// What [`Spares`] works with.
#[expect(missing_debug_implementations, reason = "it lives for one call and holds a closure")]
pub struct Parts {
    /// How many there are to be.
    pub number: usize,
    /// The URL that is written into new instances.
    pub url: String,
    /// Their records.
    pub records: Records,
    /// Runs them.
    pub supervisor: Supervisor,
    /// Makes tenants of them.
    pub tenancy: Tenancy,
    /// Who has an account.
    pub accounts: Accounts,
}

/// Where a spare is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// It is to be started before anybody may have it; how often that failed.
    New(u32),
    /// Whole, awake or asleep. Anybody may have it.
    Ready,
    /// An account is being made with its id.
    Taken,
    /// An account may have been made with its id, since then.
    Doubted(Instant),
    /// A tenant has it; its record is to go.
    Had,
    /// It is to go.
    Leaving,
}

/// The pool. Cheap to clone.
#[derive(Clone)]
pub struct Spares {
    inner: Arc<Inner>,
}

struct Inner {
    parts: Parts,
    /// Proves to the global instance that an id was chosen here. Of this run.
    key: Arc<str>,
    /// Whether the global instance takes ids that come with the key.
    is_open: AtomicBool,
    /// Held for a look, never across an await.
    known: Mutex<BTreeMap<TenantId, State>>,
    /// Something is to be done for the keeper.
    work: Notify,
}

impl fmt::Debug for Spares {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Spares").field("number", &self.inner.parts.number).finish_non_exhaustive()
    }
}

impl Spares {
    /// A pool that knows nothing yet; see [`settle`](Self::settle) and [`run`](Self::run).
    pub fn new(parts: Parts) -> Self {
        let inner = Inner {
            parts,
            key: format!("{:032x}", rand::random::<u128>()).into(),
            is_open: AtomicBool::new(false),
            known: Mutex::default(),
            work: Notify::new(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// What a call to the global instance has to bring along for an id of ours to be taken; none when there are to be no
    /// spares. A secret.
    pub fn key(&self) -> Option<&str> {
        (self.inner.parts.number > 0).then_some(&*self.inner.key)
    }

    /// The global instance takes ids that come with the key, from now on.
    pub fn open(&self) {
        self.inner.is_open.store(true, Ordering::Relaxed);
        self.inner.work.notify_one();
    }

    /// An id for a new account, if there is one: of an instance that is awake, or else of one that sleeps.
    pub fn take(&self) -> Option<Claim> {
        if !self.inner.is_open.load(Ordering::Relaxed) {
            return None;
        }
        let supervisor = &self.inner.parts.supervisor;
        let mut known = self.known();
        // One in trouble is the keeper's affair: its owner would get what only an operator can release.
        let is_sound = |id: &TenantId| supervisor.is_awake(id) || supervisor.is_asleep(id);
        let is_ready = |id: &TenantId, state: State| state == State::Ready && self.is_free(id) && is_sound(id);
        let mut ready = known.iter().filter(|(id, state)| is_ready(id, **state));
        let first = ready.next().map(|(id, _)| id.clone())?;
        let rest = ready.map(|(id, _)| id.clone());
        let mut all = std::iter::once(first.clone()).chain(rest);
        let id = all.find(|id| supervisor.is_awake(id)).unwrap_or(first);
        known.insert(id.clone(), State::Taken);
        drop(known);
        // As it is about to be used, it is not to sleep for having been unused for long.
        supervisor.touch(&id);
        failpoint::hit("spare.taken");
        Some(Claim { id, spares: self.clone(), left_as: None })
    }

    /// Whether no tenant has it.
    fn is_free(&self, id: &TenantId) -> bool {
        self.inner.parts.tenancy.find(id.as_str()).is_none()
    }

    fn known(&self) -> MutexGuard<'_, BTreeMap<TenantId, State>> {
        self.inner.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, id: &TenantId, state: State) {
        self.known().insert(id.clone(), state);
    }

    /// Makes a tenant of a spare whose account there is, and lets its owner in.
    async fn hand_over(&self, id: &TenantId) -> Result<(), store::Error> {
        let parts = &self.inner.parts;
        let user = UserId::parse(id.as_str()).map_err(|_| store::Error::Invalid("a spare's id names no user"))?;
        parts.tenancy.ensure_personal(&user).await?;
        failpoint::hit("spare.tenant");
        if let Err(error) = parts.supervisor.welcome(id).await {
            // One that sleeps looks for its owner when it starts.
            tracing::warn!(tenant.id = %id, %error, "a new tenant's instance is started anew");
            if let Err(error) = parts.supervisor.rest(id).await {
                tracing::error!(tenant.id = %id, %error, "a new tenant's instance does not know its owner yet");
            }
        }
        failpoint::hit("spare.enrolled");
        Ok(())
    }
}

/// An id that one caller has. Dropped without a word, nobody knows what became of it.
#[derive(Debug)]
pub struct Claim {
    id: TenantId,
    spares: Spares,
    left_as: Option<State>,
}

impl Claim {
    /// The id.
    pub fn id(&self) -> &str {
        self.id.as_str()
    }

    /// No account was made with it, and none will be: the next one may have it.
    pub fn give_back(mut self) {
        self.left_as = Some(State::Ready);
    }

    /// An account was made with it: its tenant is registered, and its owner let into the instance.
    pub async fn made(mut self) {
        failpoint::hit("spare.account");
        let begun = Instant::now();
        match self.spares.hand_over(&self.id).await {
            Ok(()) => {
                self.left_as = Some(State::Had);
                tracing::debug!(tenant.id = %self.id, duration_us = begun.elapsed().as_micros(), "an account has a spare");
            }
            Err(error) => tracing::error!(%error, user.id = %self.id, "a personal tenant cannot be registered"),
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let state = self.left_as.unwrap_or_else(|| State::Doubted(Instant::now()));
        self.spares.set(&self.id, state);
        self.spares.inner.work.notify_one();
    }
}
