//! API keys: credentials for programs that call us. A key speaks for its owner, and only as far as its scopes reach.
//!
//! A key is `pfk_`, 43 letters and digits (256 random bits) and 6 more that follow from them, so that a mistyped key,
//! or a leaked one in somebody's code, is recognised without asking. It is shown once; what is kept is its SHA-256, and
//! the look-up by that hash takes a time that tells nothing of the keys there are.
//!
//! Invariants: a key is worth nothing once it was revoked, has expired, or its owner's account is gone or signs its
//! tokens with another key (a new password, a new address, a logout everywhere); it is never taken where a sign-in is
//! asked for; a user's key never has a right that its owner lacks, and never that of an admin.
//!
//! Deliberately absent: the audit log, which callers write between [`ApiKeys::prepare`] and [`ApiKeys::keep`].

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use rand::distr::SampleString;
use sha2::Digest;
use sha2::Sha256;
use time::Duration;
use time::OffsetDateTime;

use super::Principal;
use super::Verifier;
use crate::error::Code;
use crate::error::Problem;
use crate::ids::UserId;
use crate::store;
use crate::store::api_keys::ApiKey;
use crate::store::api_keys::ApiKeyId;
use crate::store::api_keys::ApiKeys as Records;
use crate::store::api_keys::KeyOwner;

/// What every key begins with.
pub const PREFIX: &str = "pfk_";
/// Random letters and digits: 43 of 62 are 256 bits.
const LETTERS: usize = 43;
/// Letters that follow from the others.
const CHECK: usize = 6;
/// Keys that count, of one owner.
const MOST: usize = 100;
/// Longest name, in characters.
const NAME_CHARS: usize = 100;
/// Most scopes of one key.
const MOST_SCOPES: usize = 32;
/// The time of the last use is written at most this often.
const USE_INTERVAL: Duration = Duration::minutes(10);
/// The longest life of a key that ends by itself.
const LONGEST: Duration = Duration::days(3660);

/// One thing that a key may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    /// `jobs`: see, add, cancel, retry and order the owner's jobs and their queue.
    Jobs,
    /// `jobs:read`: see them.
    JobsRead,
    /// `worker:<kind>`: do the jobs of that kind, for every tenant. Keys of the fleet only.
    Worker(Arc<str>),
}

impl Scope {
    /// The scope that a text names.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "jobs" => Some(Self::Jobs),
            "jobs:read" => Some(Self::JobsRead),
            _ => text.strip_prefix("worker:").filter(|kind| is_kind(kind)).map(|kind| Self::Worker(kind.into())),
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Jobs => f.write_str("jobs"),
            Self::JobsRead => f.write_str("jobs:read"),
            Self::Worker(kind) => write!(f, "worker:{kind}"),
        }
    }
}

/// Whether a text can name a kind of job.
fn is_kind(text: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    (1..=40).contains(&text.len()) && text.bytes().all(fits)
}

/// A key to be made.
#[derive(Debug, Clone)]
pub struct NewApiKey {
    /// What its owner calls it.
    pub name: String,
    /// What it may do, as texts.
    pub scopes: Vec<String>,
    /// When it ends by itself.
    pub expires_at: Option<OffsetDateTime>,
}

/// Who makes a key.
#[derive(Debug, Clone, Copy)]
pub enum Maker<'a> {
    /// An operator, for the fleet.
    Operator,
    /// Whoever signed in, for their account.
    User(&'a Principal),
}

/// A key that was just made.
#[derive(Clone)]
pub struct Made {
    /// The key itself, for its owner's eyes.
    pub key: String,
    /// What is kept of it.
    pub record: ApiKey,
}

impl fmt::Debug for Made {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Made").field("record", &self.record).finish_non_exhaustive()
    }
}

/// What a key that counts speaks for.
#[derive(Debug, Clone)]
pub struct Bearer {
    /// Whom.
    pub owner: KeyOwner,
    /// How far.
    pub scopes: Vec<Scope>,
    /// Which key it is, as its owner knows it.
    pub id: String,
}

/// Why a key is not made, taken or found.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Malformed, unknown, revoked, expired, or its owner is gone: callers learn no more.
    #[error("the key is not valid")]
    Invalid,
    /// A name that is empty or too long.
    #[error("a key has a name of 1 to 100 characters")]
    Name,
    /// None, too many, or one that this owner cannot give.
    #[error("{0}")]
    Scopes(String),
    /// In the past or too far away.
    #[error("a key expires in the future, within ten years")]
    Expiry,
    /// As many as an owner may have.
    #[error("there are 100 keys already; revoke some first")]
    TooMany,
    /// No such key of this owner.
    #[error("there is no such key")]
    Unknown,
    /// The records cannot be read or written.
    #[error("the store failed")]
    Store(#[from] store::Error),
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        let field = |name: &str, code: &str, message: String| {
            Self::new(Code::ValidationFailed).details(serde_json::json!({ name: { "code": code, "message": message } }))
        };
        match error {
            Error::Invalid => Self::new(Code::Unauthorized).message("the API key is not valid"),
            Error::Name => field("name", "validation_length", error.to_string()),
            Error::Scopes(why) => field("scopes", "validation_scopes", why),
            Error::Expiry => field("expires_at", "validation_expiry", error.to_string()),
            Error::TooMany => Self::new(Code::Conflict).message("there are 100 keys already; revoke some first"),
            Error::Unknown => Self::new(Code::NotFound).message("there is no such key"),
            Error::Store(error) => error.into(),
        }
    }
}

/// Makes, recognises and ends API keys. Cheap to clone.
#[derive(Debug, Clone)]
pub struct ApiKeys {
    records: Records,
    verifier: Verifier,
}

impl ApiKeys {
    /// Over the records; the verifier says which accounts exist.
    pub fn new(records: Records, verifier: Verifier) -> Self {
        Self { records, verifier }
    }

    /// Makes a key that counts once it is [kept](Self::keep).
    pub async fn prepare(&self, maker: Maker<'_>, wanted: NewApiKey, now: OffsetDateTime) -> Result<Made, Error> {
        let (owner, account_key) = match maker {
            Maker::Operator => (KeyOwner::Fleet, "".into()),
            // Of the token and not of the account as it is now: what ended the one meanwhile ends the other.
            Maker::User(principal) => (KeyOwner::User(principal.user.clone()), Arc::clone(&principal.key)),
        };
        let name = wanted.name.trim().to_owned();
        if name.is_empty() || name.chars().count() > NAME_CHARS || name.chars().any(char::is_control) {
            return Err(Error::Name);
        }
        let scopes = allowed(&owner, &wanted.scopes)?;
        if wanted.expires_at.is_some_and(|end| end <= now || end - now > LONGEST) {
            return Err(Error::Expiry);
        }
        self.make_room(&owner, now).await?;
        let key = generate();
        let record = ApiKey {
            id: ApiKeyId::of(&key),
            owner,
            account_key,
            name,
            scopes: scopes.iter().map(|scope| scope.to_string().into()).collect(),
            hint: key[key.len() - 4..].into(),
            created_at: now,
            expires_at: wanted.expires_at,
            last_used_at: None,
            revoked_at: None,
        };
        Ok(Made { key, record })
    }

    /// Lets a key count. Durable when it returns.
    pub async fn keep(&self, made: &Made) -> Result<(), Error> {
        Ok(self.records.create(made.record.clone()).await?)
    }

    /// Whether the owner's account has had another key since this one was made, as far as that can be told.
    pub fn is_void(&self, key: &ApiKey) -> bool {
        let KeyOwner::User(user) = &key.owner else { return false };
        match self.verifier.key_of(user) {
            Ok(current) => current != key.account_key,
            Err(super::Error::AccountsUnreadable) => false,
            Err(_) => true,
        }
    }

    /// Forgets keys that count no more, oldest first, until there is a place. Two calls at once may both find the last
    /// place: the bound keeps records from growing without end, it is not a right.
    async fn make_room(&self, owner: &KeyOwner, now: OffsetDateTime) -> Result<(), Error> {
        let keys = self.records.of_owner(owner);
        let excess = (keys.len() + 1).saturating_sub(MOST);
        let is_dead = |key: &&Arc<ApiKey>| !key.is_good(now) || self.is_void(key);
        let dead: Vec<_> = keys.iter().filter(is_dead).take(excess).collect();
        if dead.len() < excess {
            return Err(Error::TooMany);
        }
        for key in dead {
            self.records.revoke(key, now).await?;
            self.records.forget(key, now).await?;
        }
        Ok(())
    }

    /// An owner's keys, newest first, also those that count no more.
    pub fn list(&self, owner: &KeyOwner) -> Vec<Arc<ApiKey>> {
        let mut keys = self.records.of_owner(owner);
        keys.reverse();
        keys
    }

    /// Everybody's keys, newest first. For operators.
    pub fn all(&self) -> Vec<Arc<ApiKey>> {
        let mut keys = self.records.all();
        keys.reverse();
        keys
    }

    /// A key of this owner, or for operators (none) anybody's, by its shown id.
    pub fn named(&self, owner: Option<&KeyOwner>, id: &str) -> Result<Arc<ApiKey>, Error> {
        let among = owner.map_or_else(|| self.records.all(), |owner| self.records.of_owner(owner));
        among.into_iter().find(|key| key.id.shown() == id).ok_or(Error::Unknown)
    }

    /// Removes all keys of an owner that was erased.
    pub async fn erase(&self, owner: &KeyOwner, now: OffsetDateTime) -> Result<(), store::Error> {
        for key in self.records.of_owner(owner) {
            match self.records.revoke(&key, now).await {
                Ok(()) | Err(store::Error::Stale) => {}
                Err(error) => return Err(error),
            }
            self.records.forget(&key, now).await?;
        }
        Ok(())
    }

    /// Takes a key back. Durable when it returns; the second time it changes nothing.
    pub async fn revoke(&self, key: &ApiKey, now: OffsetDateTime) -> Result<(), Error> {
        match self.records.revoke(key, now).await {
            // Somebody revoked it and made room since.
            Err(store::Error::Stale) => Err(Error::Unknown),
            done => Ok(done?),
        }
    }

    /// Whom a key speaks for, now.
    pub async fn recognise(&self, key: &str, now: SystemTime) -> Result<Bearer, Error> {
        let now = OffsetDateTime::from(now);
        if !is_well_formed(key) {
            return Err(Error::Invalid);
        }
        let found = self.records.find(&ApiKeyId::of(key)).filter(|key| key.is_good(now)).ok_or(Error::Invalid)?;
        if let KeyOwner::User(user) = &found.owner
            && !self.verifier.key_of(user).is_ok_and(|current| current == found.account_key)
        {
            return Err(Error::Invalid);
        }
        if found.last_used_at.is_none_or(|last| now - last >= USE_INTERVAL)
            && let Err(error) = self.records.used(&found, now).await
        {
            // The caller is who they are, whether or not it can be noted.
            tracing::warn!(%error, "note the use of an API key");
        }
        let scopes = found.scopes.iter().filter_map(|scope| Scope::parse(scope)).collect();
        Ok(Bearer { owner: found.owner.clone(), scopes, id: found.id.shown().to_owned() })
    }
}

impl Bearer {
    /// The account it speaks for; none for a key of the fleet.
    pub fn user(&self) -> Option<&UserId> {
        match &self.owner {
            KeyOwner::User(user) => Some(user),
            KeyOwner::Fleet => None,
        }
    }

    /// The kinds of job that it may do.
    pub fn kinds(&self) -> Vec<Arc<str>> {
        let kind = |scope: &Scope| match scope {
            Scope::Worker(kind) => Some(Arc::clone(kind)),
            Scope::Jobs | Scope::JobsRead => None,
        };
        self.scopes.iter().filter_map(kind).collect()
    }
}

/// The scopes that an owner asks for, if they may have them.
fn allowed(owner: &KeyOwner, wanted: &[String]) -> Result<Vec<Scope>, Error> {
    let mut scopes = Vec::new();
    for text in wanted {
        let unknown = || Error::Scopes("a scope is jobs, jobs:read or worker:<kind>".to_owned());
        let scope = Scope::parse(text).ok_or_else(unknown)?;
        match (owner, &scope) {
            (KeyOwner::User(_), Scope::Worker(_)) => {
                return Err(Error::Scopes("only an operator makes keys for workers".to_owned()));
            }
            (KeyOwner::Fleet, Scope::Jobs | Scope::JobsRead) => {
                return Err(Error::Scopes("jobs belong to an account: its owner makes such a key".to_owned()));
            }
            _ => {}
        }
        if !scopes.contains(&scope) {
            scopes.push(scope);
        }
    }
    if scopes.is_empty() || scopes.len() > MOST_SCOPES {
        return Err(Error::Scopes("a key has 1 to 32 scopes".to_owned()));
    }
    Ok(scopes)
}

fn generate() -> String {
    let letters = rand::distr::Alphanumeric.sample_string(&mut rand::rng(), LETTERS);
    let check = check_of(&letters);
    format!("{PREFIX}{letters}{check}")
}

/// Whether a text is shaped like a key of ours, mistyping excluded.
pub fn is_well_formed(key: &str) -> bool {
    let Some(rest) = key.strip_prefix(PREFIX) else { return false };
    if rest.len() != LETTERS + CHECK || !rest.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        return false;
    }
    let (letters, check) = rest.split_at(LETTERS);
    check_of(letters) == check
}

fn check_of(letters: &str) -> String {
    const ALPHABET: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    let digest = Sha256::digest(letters.as_bytes());
    let number = digest.iter().take(4).fold(0_usize, |number, byte| (number << 8) | usize::from(*byte));
    (0..CHECK)
        .scan(number, |left, _| {
            let letter = ALPHABET[*left % ALPHABET.len()];
            *left /= ALPHABET.len();
            Some(char::from(letter))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mistyped_key_is_not_well_formed() {
        let key = generate();
        assert!(is_well_formed(&key), "{key}");
        assert_eq!(key.len(), 53);
        let other = if key.ends_with('a') { 'b' } else { 'a' };
        let mut typo = key.clone();
        typo.pop();
        typo.push(other);
        for bad in [typo.as_str(), &key[..52], "pfk_", "", "eyJ.a.b", &format!("{key}a"), &key.replace("pfk_", "pfk-")]
        {
            assert!(!is_well_formed(bad), "{bad}");
        }
        assert_ne!(generate(), key);
    }

    #[test]
    fn scopes_are_what_their_text_says_and_kinds_are_plain_words() {
        for text in ["jobs", "jobs:read", "worker:transcode"] {
            assert_eq!(Scope::parse(text).unwrap().to_string(), text);
        }
        for bad in ["", "job", "worker:", "worker:*", "worker:a b", "worker:A", "jobs:write", " jobs"] {
            assert_eq!(Scope::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn users_give_rights_of_their_own_and_operators_those_of_workers() {
        let user = KeyOwner::User(UserId::parse("ada").unwrap());
        let texts = |texts: &[&str]| texts.iter().map(|&text| text.to_owned()).collect::<Vec<_>>();
        assert_eq!(allowed(&user, &texts(&["jobs", "jobs"])).unwrap(), [Scope::Jobs]);
        assert!(allowed(&user, &texts(&["worker:transcode"])).is_err());
        assert!(allowed(&KeyOwner::Fleet, &texts(&["jobs"])).is_err());
        assert_eq!(allowed(&KeyOwner::Fleet, &texts(&["worker:x"])).unwrap(), [Scope::Worker("x".into())]);
        assert!(allowed(&KeyOwner::Fleet, &[]).is_err());
    }
}
