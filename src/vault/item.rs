//! What goes into the vault and what comes out of it.

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use serde::Deserialize;
use serde::Serialize;
use serde_json::Value;
use time::OffsetDateTime;

use super::Error;
use super::KeyId;
use super::Secret;
use super::envelope::Aad;
use super::envelope::Kind;
use crate::audit::Actor;
use crate::audit::Entry;
use crate::ids::TenantId;
use crate::ids::UserId;
use crate::store::secrets::SealedSecret;

/// Who asks, for the limits and the audit log.
#[derive(Debug, Clone)]
pub struct Caller {
    /// Whose secrets.
    pub tenant: TenantId,
    /// Who.
    pub user: UserId,
    /// From where.
    pub ip: Option<IpAddr>,
}

impl Caller {
    pub(super) fn entry(&self, action: &'static str) -> Entry {
        Entry::new(Actor::User(self.user.clone()), action).tenant(&self.tenant).ip(self.ip)
    }
}

/// A secret to store.
#[derive(Debug)]
pub struct NewSecret {
    /// What it is for.
    pub service: String,
    /// What it is called; none = `default`.
    pub label: Option<String>,
    /// The secret.
    pub secret: Secret,
    /// When it stops being used.
    pub expires_at: Option<OffsetDateTime>,
    /// What goes with it; `Null` for nothing.
    pub settings: Value,
    /// Whether the service is asked first, if it can be.
    pub verify: bool,
}

/// What to change of a stored secret; none leaves it.
#[derive(Debug, Clone, Default)]
pub struct Change {
    /// Another label.
    pub label: Option<String>,
    /// Another end of its time.
    pub end: End,
}

/// What becomes of the end of a secret's time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum End {
    /// It stays.
    #[default]
    Keep,
    /// There is none.
    Never,
    /// It is this.
    At(OffsetDateTime),
}

/// Whether a secret is of use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Yes.
    Valid,
    /// Yes, but not for long.
    Expiring,
    /// No.
    Expired,
}

impl State {
    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Valid => "valid",
            Self::Expiring => "expiring",
            Self::Expired => "expired",
        }
    }
}

/// What its owner sees of a secret.
#[derive(Debug, Clone, PartialEq)]
pub struct Item {
    /// Which.
    pub key_id: KeyId,
    /// What it is for.
    pub service: String,
    /// What it is called.
    pub label: String,
    /// The last characters, if it is long.
    pub hint: Option<String>,
    /// Whether it is of use.
    pub state: State,
    /// What goes with it.
    pub settings: Value,
    /// When it was first stored.
    pub created_at: OffsetDateTime,
    /// When it was changed last.
    pub updated_at: OffsetDateTime,
    /// When it stops being used.
    pub expires_at: Option<OffsetDateTime>,
    /// About when it was used last.
    pub last_used_at: Option<OffsetDateTime>,
}

impl Item {
    pub(super) fn of(secret: &SealedSecret, now: OffsetDateTime, warn_before: Duration) -> Self {
        let state = match secret.expires_at {
            Some(end) if end <= now => State::Expired,
            Some(end) if end <= now + warn_before => State::Expiring,
            _ => State::Valid,
        };
        Self {
            key_id: secret.key_id.clone(),
            service: secret.service.clone(),
            label: secret.label.clone(),
            hint: secret.hint.clone(),
            state,
            settings: secret.settings.clone(),
            created_at: secret.created_at,
            updated_at: secret.updated_at,
            expires_at: secret.expires_at,
            last_used_at: secret.last_used_at,
        }
    }
}

/// What became of a secret that was put.
#[derive(Debug, Clone, PartialEq)]
pub struct Stored {
    /// As its owner sees it.
    pub item: Item,
    /// Whether there was none of this service and label.
    pub is_new: bool,
}

/// A secret in a worker's hands.
#[derive(Debug)]
pub struct Opened {
    /// Which.
    pub key_id: KeyId,
    /// What it is for.
    pub service: String,
    /// What it is called.
    pub label: String,
    /// In clear.
    pub secret: Secret,
    /// What goes with it.
    pub settings: Value,
}

/// A secret in another record, sealed.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Sealed(pub String);

impl fmt::Debug for Sealed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sealed(..)")
    }
}

/// A secret's time ends soon, or has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning {
    /// Whose.
    pub tenant: TenantId,
    /// Which.
    pub key_id: KeyId,
    /// What it is for.
    pub service: String,
    /// What its owner calls it.
    pub label: String,
    /// When it ends.
    pub expires_at: OffsetDateTime,
}

pub(super) fn has_expired(secret: &SealedSecret, now: OffsetDateTime) -> bool {
    secret.expires_at.is_some_and(|end| end <= now)
}

/// What a secret is bound to: everything that would do harm in another place.
pub(super) fn aad(secret: &SealedSecret) -> Result<Aad, Error> {
    let settings = serde_json::to_vec(&secret.settings).map_err(|_| Error::Unreadable)?;
    Ok(Aad::new(Kind::Secret)
        .with(secret.tenant.as_str())
        .with(&secret.service)
        .with(secret.key_id.as_str())
        .with(secret.version.to_be_bytes())
        .with_time(Some(secret.created_at))
        .with_time(secret.expires_at)
        .with(&secret.dek)
        .with(&secret.label)
        .with(settings)
        .with(secret.hint.as_deref().unwrap_or_default()))
}
