//! Tokens of users who signed in at Fathom: exchanged, refreshed once at a time, kept before they are used.
//!
//! A refresh token is good for one use. So one user has one set of live tokens in the process, whoever calls; a refresh runs
//! in a task of its own, which a caller that goes away does not interrupt; and tokens that could not be stored stay in
//! memory and are stored before the next call.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::sync::Weak;
use std::time::Duration;
use std::time::Instant;

use futures_util::future::BoxFuture;
use reqwest::Url;
use reqwest::header::HeaderValue;
use serde::Deserialize;
use time::OffsetDateTime;

use super::Error;
use super::Fathom;
use super::transport::Shared;
use crate::vault::Secret;

/// A token that is over this soon is refreshed first.
const LEEWAY: Duration = Duration::from_mins(1);
/// After a refresh that failed in passing, callers are told so for this long without another try.
const REST: Duration = Duration::from_secs(1);

/// What a user has after signing in at Fathom.
#[derive(Debug)]
pub struct Tokens {
    /// What calls carry.
    pub access: Secret,
    /// What the next tokens are had for, once.
    pub refresh: Secret,
    /// When the access token is over, where that was said.
    pub expires_at: Option<OffsetDateTime>,
}

/// Stores tokens; the error says why it could not, without them. Durable when it returns.
pub type Save = Arc<dyn for<'a> Fn(&'a Tokens) -> BoxFuture<'a, Result<(), String>> + Send + Sync>;

/// Reads the tokens that are stored now; none when they are gone.
pub type Load = Arc<dyn Fn() -> BoxFuture<'static, Option<Tokens>> + Send + Sync>;

/// A user's sign-in at Fathom.
pub struct OAuth {
    /// Who it is, by our own id: tokens are shared and refreshed per user.
    pub user: String,
    /// The tokens as stored.
    pub tokens: Tokens,
    /// Stores fresh ones.
    pub save: Save,
    /// Reads what is stored: others may have exchanged the tokens after these were read.
    pub load: Load,
}

impl fmt::Debug for OAuth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OAuth").field("user", &self.user).finish_non_exhaustive()
    }
}

/// Which tokens, counted from the first of a [`Live`].
pub(super) type Issue = u64;

/// The tokens of one user while anybody uses them.
pub(super) struct Live {
    save: Save,
    load: Load,
    state: Mutex<State>,
    /// Held by the one refresh.
    refreshing: Arc<tokio::sync::Mutex<()>>,
}

struct State {
    tokens: Arc<Tokens>,
    issue: Issue,
    is_saved: bool,
    /// The refresh token was refused.
    is_over: bool,
    failed_at: Option<Instant>,
}

/// The users whose tokens are in use.
#[derive(Default)]
pub(super) struct Accounts {
    live: Mutex<HashMap<String, Weak<Live>>>,
}

impl Accounts {
    /// The user's live tokens: those in use, unless the given ones last longer.
    pub(super) fn live(&self, oauth: OAuth) -> Arc<Live> {
        let mut all = self.live.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(live) = all.get(&oauth.user).and_then(Weak::upgrade) {
            live.offer(oauth.tokens);
            return live;
        }
        all.retain(|_, live| live.strong_count() > 0);
        let live = Arc::new(Live {
            save: oauth.save,
            load: oauth.load,
            state: Mutex::new(State {
                tokens: Arc::new(oauth.tokens),
                issue: 0,
                is_saved: true,
                is_over: false,
                failed_at: None,
            }),
            refreshing: Arc::default(),
        });
        all.insert(oauth.user, Arc::downgrade(&live));
        live
    }
}

impl Live {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tokens of a new sign-in last longer than those of the last one, or the last ones are over.
    fn offer(&self, tokens: Tokens) {
        let mut state = self.state();
        let is_other = tokens.refresh.expose() != state.tokens.refresh.expose();
        if is_other && (state.is_over || tokens.expires_at > state.tokens.expires_at) {
            state.tokens = Arc::new(tokens);
            state.issue += 1;
            state.is_saved = true;
            state.is_over = false;
            state.failed_at = None;
        }
    }

    /// The header of the current tokens, refreshed if they are over or of the refused issue.
    pub(super) async fn bearer(
        self: Arc<Self>,
        shared: &Arc<Shared>,
        refused: Option<Issue>,
    ) -> Result<(HeaderValue, Issue), Error> {
        if let Some(ready) = self.ready(refused, OffsetDateTime::now_utc())? {
            return Ok(ready);
        }
        let (live, with) = (Arc::clone(&self), Arc::clone(shared));
        let refresh = shared.shutdown.spawn(async move { live.refresh(&with, refused).await });
        refresh.await.map_err(|_| Error::Unreachable(None))??;
        self.ready(refused, OffsetDateTime::now_utc())?.ok_or(Error::Unauthorized)
    }

    /// The header, if the tokens are stored and good.
    fn ready(&self, refused: Option<Issue>, now: OffsetDateTime) -> Result<Option<(HeaderValue, Issue)>, Error> {
        let state = self.state();
        if state.is_over {
            return Err(Error::Unauthorized);
        }
        let is_old = state.tokens.expires_at.is_some_and(|at| at <= now + LEEWAY);
        if !state.is_saved || is_old || refused == Some(state.issue) {
            return Ok(None);
        }
        let bearer = format!("Bearer {}", state.tokens.access.expose());
        Ok(Some((HeaderValue::from_str(&bearer).map_err(|_| Error::Unauthorized)?, state.issue)))
    }

    async fn refresh(&self, shared: &Shared, refused: Option<Issue>) -> Result<(), Error> {
        let _alone = self.refreshing.lock().await;
        // Somebody else may have done it meanwhile.
        if self.ready(refused, OffsetDateTime::now_utc())?.is_some() {
            return Ok(());
        }
        let (tokens, is_saved, failed_at) = {
            let state = self.state();
            (Arc::clone(&state.tokens), state.is_saved, state.failed_at)
        };
        if failed_at.is_some_and(|at| at.elapsed() < REST) {
            return Err(Error::Unreachable(None));
        }
        let tokens = if is_saved {
            match self.exchanged(shared, &tokens).await {
                Ok(Exchanged::Elsewhere(stored)) => {
                    let mut state = self.state();
                    state.tokens = Arc::new(stored);
                    state.issue += 1;
                    state.failed_at = None;
                    return Ok(());
                }
                Ok(Exchanged::Here(fresh)) => {
                    let fresh = Arc::new(fresh);
                    let mut state = self.state();
                    state.tokens = Arc::clone(&fresh);
                    state.issue += 1;
                    state.is_saved = false;
                    state.failed_at = None;
                    fresh
                }
                Err(error) => {
                    let mut state = self.state();
                    match &error {
                        Error::Unauthorized => state.is_over = true,
                        _ => state.failed_at = Some(Instant::now()),
                    }
                    return Err(error);
                }
            }
        } else {
            tokens
        };
        (self.save)(&tokens).await.map_err(Error::NotSaved)?;
        self.state().is_saved = true;
        Ok(())
    }
}

/// Where fresh tokens come from.
enum Exchanged {
    Here(Tokens),
    /// They are in the store already, and good for a while.
    Elsewhere(Tokens),
}

impl Live {
    /// Fresh tokens for these. Whoever read them before somebody else exchanged them finds them used up: then those that
    /// are stored by now count.
    async fn exchanged(&self, shared: &Shared, tokens: &Tokens) -> Result<Exchanged, Error> {
        match shared.refreshed(tokens).await {
            Err(Error::Unauthorized) => {}
            other => return other.map(Exchanged::Here),
        }
        let stored = (self.load)().await.filter(|stored| stored.refresh.expose() != tokens.refresh.expose());
        let stored = stored.ok_or(Error::Unauthorized)?;
        if stored.expires_at.is_none_or(|at| at > OffsetDateTime::now_utc() + LEEWAY) {
            return Ok(Exchanged::Elsewhere(stored));
        }
        shared.refreshed(&stored).await.map(Exchanged::Here)
    }
}

#[derive(Deserialize)]
struct Answer {
    access_token: String,
    refresh_token: String,
    #[serde(default)]
    expires_in: Option<u32>,
}

impl Shared {
    async fn refreshed(&self, tokens: &Tokens) -> Result<Tokens, Error> {
        self.tokens(&[("grant_type", "refresh_token"), ("refresh_token", tokens.refresh.expose())]).await
    }

    async fn tokens(&self, grant: &[(&str, &str)]) -> Result<Tokens, Error> {
        let app = &self.config.oauth;
        if app.client_id.is_empty() {
            return Err(Error::NoApp);
        }
        let mut fields = grant.to_vec();
        fields.extend([("client_id", app.client_id.as_str()), ("client_secret", app.client_secret.as_str())]);
        let answer = self.form(&app.token_url, &fields).await?;
        let answer: Answer = serde_json::from_value(answer).map_err(|_| Error::Malformed("no tokens"))?;
        Ok(Tokens {
            access: Secret::new(answer.access_token),
            refresh: Secret::new(answer.refresh_token),
            expires_at: answer.expires_in.map(|s| OffsetDateTime::now_utc() + Duration::from_secs(s.into())),
        })
    }
}

impl Fathom {
    /// Whether the operator has registered an app.
    pub fn has_app(&self) -> bool {
        !self.shared.config.oauth.client_id.is_empty()
    }

    /// Where to send a user who wants to sign in at Fathom. `state` comes back with the code and has to be compared.
    pub fn authorize_url(&self, redirect_uri: &str, state: &str) -> Result<Url, Error> {
        let app = &self.shared.config.oauth;
        if app.client_id.is_empty() {
            return Err(Error::NoApp);
        }
        let pairs = [
            ("client_id", app.client_id.as_str()),
            ("redirect_uri", redirect_uri),
            ("response_type", "code"),
            ("scope", "public_api"),
            ("state", state),
        ];
        Url::parse_with_params(&app.authorize_url, pairs).map_err(|_| Error::Malformed("the URL to sign in at"))
    }

    /// The tokens for the code that a user came back with.
    pub async fn exchange(&self, code: &str, redirect_uri: &str) -> Result<Tokens, Error> {
        let grant = [("grant_type", "authorization_code"), ("code", code), ("redirect_uri", redirect_uri)];
        self.shared.tokens(&grant).await
    }
}
