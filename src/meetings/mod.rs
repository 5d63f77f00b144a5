//! Users' meetings: fetched from Fathom with their own keys, kept in their own instances, searched there.
//!
//! What is kept is the user's, in the collections of `pb_templates/personal`; Fathom is asked for what is new. A list is
//! answered from what is there; when that is older than `meetings.ttl`, a refresh begins behind the answer. News that
//! Fathom brings by itself (webhooks) goes through an inbox: acknowledged when it is on disk, taken in after.
//!
//! Invariants:
//! - One refresh per user at a time, however many ask; it goes on where it was interrupted, also by `kill -9`.
//! - The key comes from the vault and the caller's own token goes nowhere.
//! - What is gone at Fathom stays here: it is the user's.
//! - A stranger's webhook call wakes no instance and is told nothing.
//!
//! Deliberately absent: delivering meetings (`jobs`), the wire types of Fathom (`integrations`), HTTP (`api`).

mod config;
mod connect;
mod dates;
mod error;
mod hooks;
mod inbox;
mod list;
mod record;
mod search;
mod state;
mod sync;

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;

use time::OffsetDateTime;
use tokio::runtime::Handle;

use crate::ids::TenantId;
use crate::ids::UserId;
use crate::integrations::fathom;
use crate::integrations::fathom::Fathom;
use crate::limits::Keyed;
use crate::records::Records;
use crate::shutdown::Shutdown;
use crate::store::BoxFuture;
use crate::store::blobs::Blobs;
use crate::store::hooks::Hooks;
use crate::store::inbox::Inbox;
use crate::vault;
use crate::vault::Secret;
use crate::vault::Vault;

pub use config::Config;
pub use config::ConfigError;
pub use connect::OPEN_FOR;
pub use error::Error;
pub use hooks::HookSettings;
pub use hooks::HookState;
pub use inbox::Call;
pub use list::DeliveryView;
pub use list::Listing;
pub use list::MeetingView;
pub use list::SyncView;
pub use list::Whole;
pub use record::record_id;
pub use search::Cursor;
pub use search::DEFAULT_LIMIT;
pub use search::Filter;
pub use search::MAX_LIMIT;
pub use search::MAX_SEARCH_CHARS;
pub use state::Served;
pub use state::State;

/// What the vault calls Fathom.
pub const SERVICE: &str = "fathom";
/// Meetings whose missing contents were asked for lately and that are remembered.
const MAX_ASKED: usize = 10_000;

/// A meeting that was not known before and came by a webhook.
#[derive(Debug, Clone)]
pub struct NewMeeting {
    /// Whose.
    pub tenant: TenantId,
    /// Who asked for the webhook.
    pub user: UserId,
    /// Which.
    pub recording_id: u64,
    /// What it is called.
    pub title: String,
}

/// Begins the delivery of a new meeting. Called once or more for the same one; an error means "not yet".
pub type AutoDeliver = Arc<dyn Fn(NewMeeting) -> BoxFuture<'static, Result<(), NotYet>> + Send + Sync>;

/// The delivery could not begin; it is tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotYet;

/// What the meetings stand on.
#[expect(missing_debug_implementations, reason = "it lives for one call and holds closures")]
pub struct Parts {
    /// `[meetings]`
    pub config: Config,
    /// Users' own instances.
    pub records: Records,
    /// Users' keys.
    pub vault: Vault,
    /// The source.
    pub fathom: Fathom,
    /// Addresses that Fathom calls.
    pub hooks: Hooks,
    /// What came by them.
    pub inbox: Inbox,
    /// What it says.
    pub blobs: Arc<dyn Blobs>,
    /// What to do about meetings that are new, where something can be done.
    pub auto_deliver: Option<AutoDeliver>,
    /// The URL that Fathom can reach us at; empty = none.
    pub public_url: String,
    /// Owns the tasks.
    pub shutdown: Shutdown,
}

/// Users' meetings. Cheap to clone.
#[derive(Clone)]
pub struct Meetings {
    inner: Arc<Inner>,
}

struct Inner {
    parts: Parts,
    flights: sync::Flights,
    limits: inbox::Limits,
    /// Tenants whose hook is being changed.
    changing: Mutex<HashSet<TenantId>>,
    /// Sign-ins at Fathom that were begun.
    open: Mutex<connect::Open>,
    /// Meetings whose missing contents were asked for lately.
    asked: Mutex<Keyed<(TenantId, u64)>>,
    /// The runtime of background work: connections to Fathom live there.
    runtime: Handle,
}

impl fmt::Debug for Meetings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Meetings").finish_non_exhaustive()
    }
}

impl Meetings {
    /// Starts taking in what waits in the inbox. Background work runs on the caller's runtime.
    pub async fn start(parts: Parts) -> Result<Self, Error> {
        let period = parts.config.ttl.max(Duration::from_secs(1));
        let inner = Inner {
            flights: sync::Flights::new(parts.config.max_concurrent),
            limits: inbox::Limits::new(&parts.config),
            changing: Mutex::default(),
            open: Mutex::default(),
            asked: Mutex::new(Keyed::new(1, period, MAX_ASKED)),
            runtime: Handle::current(),
            parts,
        };
        let meetings = Self { inner: Arc::new(inner) };
        meetings.burn_unasked().await?;
        meetings.inner.parts.shutdown.spawn(meetings.clone().take_in());
        meetings.inner.parts.shutdown.spawn(meetings.clone().tidy());
        Ok(meetings)
    }

    /// Calls in the name of a user, and which version of which key is used for them.
    async fn session(&self, tenant: &TenantId, purpose: &'static str) -> Result<(fathom::Session, String), Error> {
        // Before it is opened: a key that is exchanged meanwhile is then another one, and is tried anew.
        let version = self.key_version(tenant, OffsetDateTime::now_utc()).unwrap_or_default();
        Ok((self.calls(tenant, purpose).await?, version))
    }

    /// Which version of which key would be used; none if there is none that can be. No I/O.
    fn key_version(&self, tenant: &TenantId, now: OffsetDateTime) -> Option<String> {
        let keys = self.inner.parts.vault.list(tenant, now).into_iter();
        let usable = keys.filter(|key| key.service == SERVICE && key.state != vault::State::Expired);
        let best = usable.max_by_key(|key| (key.label == vault::DEFAULT_LABEL, key.updated_at))?;
        // Tokens are exchanged again and again, and stay the same sign-in.
        Some(match vault::grant_of(&best.settings) {
            Some(grant) => format!("{}.{grant}", best.key_id),
            None => format!("{}.{}", best.key_id, best.updated_at.unix_timestamp_nanos()),
        })
    }
}

/// Asks Fathom whether a key is good, before it is stored.
pub async fn check_key(fathom: &Fathom, secret: Secret) -> Result<(), fathom::Error> {
    fathom.as_user(fathom::Auth::ApiKey(secret)).patience(fathom::Patience::JOB).check().await
}
