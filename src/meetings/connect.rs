//! Users who sign in at Fathom instead of pasting a key: begun here, agreed to there, ended here with tokens in the vault.
//!
//! The state that goes to Fathom and comes back is good once, for a short time, and for the sign-in with us that began it:
//! whoever is sent somebody else's way back connects nothing, neither to their own account nor to the other one. Which are
//! open is in memory; a restart in between means to begin again.
//!
//! Known limit: the process that is killed between Fathom's fresh tokens and their place in the vault loses them, because
//! the old ones are used up; the user connects again.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::PoisonError;
use std::time::Duration;
use std::time::Instant;

use serde::Deserialize;
use serde::Serialize;
use time::OffsetDateTime;

use super::Error;
use super::Meetings;
use super::SERVICE;
use crate::ids::TenantId;
use crate::ids::UserId;
use crate::integrations::fathom::Auth;
use crate::integrations::fathom::Load;
use crate::integrations::fathom::OAuth;
use crate::integrations::fathom::Save;
use crate::integrations::fathom::Session;
use crate::integrations::fathom::Tokens;
use crate::vault;
use crate::vault::Caller;
use crate::vault::Item;
use crate::vault::Opened;
use crate::vault::Secret;
use crate::vault::Vault;
use crate::vault::grant_of;

/// How long somebody may take at Fathom.
pub const OPEN_FOR: Duration = Duration::from_mins(10);
/// Sign-ins that are open at once: in all, and of one user, whose oldest gives way.
const MOST_OPEN: usize = 10_000;
const MOST_OPEN_OF_ONE: usize = 5;
/// What tokens are read again for.
const PURPOSE: &str = "refresh the sign-in at Fathom";

/// A sign-in at Fathom that was begun.
#[derive(Debug)]
struct Begun {
    user: UserId,
    session: String,
    at: Instant,
}

/// Those that are open, by their state.
#[derive(Debug, Default)]
pub(super) struct Open(HashMap<String, Begun>);

impl Open {
    fn begin(&mut self, user: &UserId, session: &str, now: Instant) -> Option<String> {
        self.0.retain(|_, begun| now.saturating_duration_since(begun.at) < OPEN_FOR);
        let own = || self.0.iter().filter(|(_, begun)| begun.user == *user);
        if own().count() >= MOST_OPEN_OF_ONE {
            let oldest = own().min_by_key(|(_, begun)| begun.at).map(|(state, _)| state.clone());
            drop(oldest.and_then(|state| self.0.remove(&state)));
        }
        if self.0.len() >= MOST_OPEN {
            return None;
        }
        let state = format!("{:032x}", rand::random::<u128>());
        self.0.insert(state.clone(), Begun { user: user.clone(), session: session.to_owned(), at: now });
        Some(state)
    }

    /// Whether the state was given to this session; it is not good any more after that, if it was.
    fn end(&mut self, state: &str, user: &UserId, session: &str, now: Instant) -> bool {
        let is_theirs = self.0.get(state).is_some_and(|begun| begun.user == *user && begun.session == session);
        // A stranger's word does not end somebody else's.
        let begun = if is_theirs { self.0.remove(state) } else { None };
        begun.is_some_and(|begun| now.saturating_duration_since(begun.at) < OPEN_FOR)
    }
}

/// Tokens as the vault keeps them.
#[derive(Serialize, Deserialize)]
struct Kept {
    access: String,
    refresh: String,
    /// Unix seconds.
    #[serde(default)]
    expires_at: Option<i64>,
}

fn kept(tokens: &Tokens) -> Result<Secret, Error> {
    let kept = Kept {
        access: tokens.access.expose().to_owned(),
        refresh: tokens.refresh.expose().to_owned(),
        expires_at: tokens.expires_at.map(OffsetDateTime::unix_timestamp),
    };
    serde_json::to_string(&kept).map(Secret::new).map_err(|_| Error::Vault(vault::Error::Unreadable))
}

fn tokens_of(secret: &Secret) -> Option<Tokens> {
    let kept: Kept = serde_json::from_str(secret.expose()).ok()?;
    Some(Tokens {
        access: Secret::new(kept.access),
        refresh: Secret::new(kept.refresh),
        expires_at: kept.expires_at.and_then(|at| OffsetDateTime::from_unix_timestamp(at).ok()),
    })
}

/// How calls are made with what the vault has: with a key, or with tokens that are renewed in the vault.
pub(super) fn auth_of(vault: &Vault, tenant: &TenantId, opened: Opened) -> Result<Auth, vault::Error> {
    let Some(grant) = grant_of(&opened.settings).map(str::to_owned) else { return Ok(Auth::ApiKey(opened.secret)) };
    let tokens = tokens_of(&opened.secret).ok_or(vault::Error::Unreadable)?;
    let user = format!("{tenant} {grant}");
    let (keeper, whose, id) = (vault.clone(), tenant.clone(), opened.key_id.clone());
    let saved = grant.clone();
    let save: Save = Arc::new(move |tokens: &Tokens| {
        let (vault, tenant, id, grant, text) = (keeper.clone(), whose.clone(), id.clone(), saved.clone(), kept(tokens));
        let saving = async move {
            let text = text.map_err(|error| error.to_string())?;
            vault.renew(&tenant, &id, &grant, &text).await.map_err(|error| error.to_string())
        };
        Box::pin(saving)
    });
    let (keeper, whose, id) = (vault.clone(), tenant.clone(), opened.key_id);
    let load: Load = Arc::new(move || {
        let (vault, tenant, id, grant) = (keeper.clone(), whose.clone(), id.clone(), grant.clone());
        let reading = async move {
            let opened = vault.open_id(&tenant, &id, PURPOSE, OffsetDateTime::now_utc()).await.ok()?;
            if grant_of(&opened.settings) == Some(&*grant) { tokens_of(&opened.secret) } else { None }
        };
        Box::pin(reading)
    });
    Ok(Auth::OAuth(OAuth { user, tokens, save, load }))
}

impl Meetings {
    /// Whether users can sign in at Fathom.
    pub fn can_connect(&self) -> bool {
        self.inner.parts.fathom.has_app()
    }

    /// Begins a user's sign-in at Fathom: where to send them. They come back to `redirect_uri`.
    pub fn begin_connect(&self, user: &UserId, session: &str, redirect_uri: &str) -> Result<String, Error> {
        if !self.can_connect() {
            return Err(Error::NoApp);
        }
        let mut open = self.inner.open.lock().unwrap_or_else(PoisonError::into_inner);
        let state = open.begin(user, session, Instant::now()).ok_or(Error::Busy)?;
        drop(open);
        Ok(self.inner.parts.fathom.authorize_url(redirect_uri, &state)?.into())
    }

    /// Whether a state that came back was begun by this session; it is used up now.
    pub fn end_connect(&self, state: &str, user: &UserId, session: &str) -> bool {
        let mut open = self.inner.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.end(state, user, session, Instant::now())
    }

    /// Exchanges the code that a user came back with, keeps the tokens, and begins to read their meetings. Goes on to its
    /// end, also when the caller does not wait for it.
    pub async fn connect(&self, caller: Caller, code: String, redirect_uri: String) -> Result<(), Error> {
        let meetings = self.clone();
        self.to_its_end(async move {
            let parts = &meetings.inner.parts;
            let tokens = parts.fathom.exchange(&code, &redirect_uri).await?;
            parts.vault.put_grant(&caller, SERVICE, &kept(&tokens)?, OffsetDateTime::now_utc()).await?;
            tracing::info!(tenant.id = %caller.tenant, "a user connected Fathom");
            meetings.sync(&caller.tenant);
            Ok(())
        })
        .await
    }

    /// What a user has of Fathom by having signed in there; none if nothing. No I/O.
    pub fn connection(&self, tenant: &TenantId, now: OffsetDateTime) -> Option<Item> {
        self.inner.parts.vault.grants(tenant, SERVICE, now).into_iter().next()
    }

    /// Forgets a user's tokens. [`Error::NotFound`] when there are none.
    pub async fn disconnect(&self, caller: &Caller, now: OffsetDateTime) -> Result<(), Error> {
        let grants = self.inner.parts.vault.grants(&caller.tenant, SERVICE, now);
        if grants.is_empty() {
            return Err(Error::NotFound);
        }
        for grant in grants {
            self.inner.parts.vault.remove(caller, &grant.key_id, now).await?;
        }
        Ok(())
    }

    /// Calls to Fathom in the name of a user, with what the vault has of them.
    pub async fn calls(&self, tenant: &TenantId, purpose: &'static str) -> Result<Session, vault::Error> {
        let parts = &self.inner.parts;
        let opened = parts.vault.open(tenant, SERVICE, None, purpose, OffsetDateTime::now_utc()).await?;
        Ok(parts.fathom.as_user(auth_of(&parts.vault, tenant, opened)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(name: &str) -> UserId {
        UserId::parse(name).unwrap()
    }

    #[test]
    fn a_state_is_good_once_for_whoever_began_and_for_ten_minutes() {
        let (mut open, now) = (Open::default(), Instant::now());
        let state = open.begin(&user("ada"), "s1", now).unwrap();
        assert!(!open.end(&state, &user("bob"), "s1", now), "somebody else");
        assert!(!open.end(&state, &user("ada"), "s2", now), "another sign-in");
        assert!(!open.end("", &user("ada"), "s1", now));
        assert!(open.end(&state, &user("ada"), "s1", now));
        assert!(!open.end(&state, &user("ada"), "s1", now), "again");
        let state = open.begin(&user("ada"), "s1", now).unwrap();
        assert!(!open.end(&state, &user("ada"), "s1", now + OPEN_FOR), "too late");
    }

    #[test]
    fn the_open_ones_are_bounded_and_ones_own_oldest_gives_way() {
        let (mut open, now) = (Open::default(), Instant::now());
        let at = |n: u32| now + Duration::from_millis(n.into());
        let states: Vec<_> = (0..7).map(|n| open.begin(&user("ada"), "s", at(n)).unwrap()).collect();
        assert_eq!(open.0.len(), MOST_OPEN_OF_ONE);
        assert!(!open.end(&states[1], &user("ada"), "s", at(7)) && open.end(&states[2], &user("ada"), "s", at(7)));
        for n in open.0.len()..MOST_OPEN {
            open.begin(&user(&format!("u{n}")), "s", at(8)).unwrap();
        }
        assert_eq!(open.begin(&user("late"), "s", at(9)), None);
        assert!(open.begin(&user("late"), "s", at(8) + OPEN_FOR).is_some(), "those that are over make room");
        assert_eq!(open.0.len(), 1);
    }

    #[test]
    fn tokens_come_back_as_they_were_kept() {
        let at = OffsetDateTime::from_unix_timestamp(1_900_000_000).unwrap();
        let secret = |text: &str| Secret::new(text.to_owned());
        let tokens = Tokens { access: secret("a"), refresh: secret("r\"\\"), expires_at: Some(at) };
        let back = tokens_of(&kept(&tokens).unwrap()).unwrap();
        assert_eq!((back.access.expose(), back.refresh.expose(), back.expires_at), ("a", "r\"\\", Some(at)));
        assert!(tokens_of(&secret("a-pasted-key")).is_none());
    }
}
