//! A client of Fathom's API, after its `OpenAPI` document ("Fathom External API" 1.0.0).
//!
//! Invariants:
//! - One budget per key in the whole process, whoever calls: [`Fathom`] holds it and every [`Session`] takes from it.
//! - Decisions come from status codes only; Fathom publishes no error body. What one says is kept for a person and out of
//!   logs ([`Excerpt`]).
//! - Only `recording_id` is required of a meeting. Unknown fields and values are taken as they come.
//! - Every call has a deadline, every answer a bound, every walk over pages an end.
//! - Redirects are not followed with a key, and media is fetched without one.
//!
//! Deliberately absent: what is done with meetings (`meetings`), and with recordings (`jobs`).

mod backoff;
mod budget;
mod config;
mod error;
mod lenient;
mod media;
mod model;
mod oauth;
mod pages;
mod query;
mod session;
mod transport;

#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::Arc;

use crate::outbound::Guard;
use crate::shutdown::Shutdown;

pub use backoff::Patience;
pub use config::Config;
pub use config::ConfigError;
pub use config::OAuthApp;
pub use error::Error;
pub use error::Excerpt;
pub use media::Fetched;
pub use model::ActionItem;
pub use model::CalendarInvitee;
pub use model::CrmMatches;
pub use model::Domains;
pub use model::DownloadStatus;
pub use model::Highlight;
pub use model::Media;
pub use model::Meeting;
pub use model::MeetingType;
pub use model::Person;
pub use model::RecordingDownload;
pub use model::SharedWith;
pub use model::Speaker;
pub use model::Summary;
pub use model::Team;
pub use model::TeamMember;
pub use model::TranscriptLine;
pub use model::Trigger;
pub use model::User;
pub use model::Webhook;
pub use oauth::Load;
pub use oauth::OAuth;
pub use oauth::Save;
pub use oauth::Tokens;
pub use pages::Page;
pub use pages::Pages;
pub use query::MeetingsQuery;
pub use query::NewWebhook;
pub use query::UsersQuery;
pub use session::Auth;
pub use session::Session;

/// The way to Fathom: budgets, refreshes and connections that all sessions share. Cheap to clone.
#[derive(Clone)]
pub struct Fathom {
    shared: Arc<transport::Shared>,
}

impl fmt::Debug for Fathom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fathom").finish_non_exhaustive()
    }
}

impl Fathom {
    /// A client of the API at `config.base_url`. Media is fetched through `guard`.
    /// `shutdown` waits for refreshes of tokens that are under way.
    pub fn new(config: Config, guard: Guard, shutdown: Shutdown) -> Result<Self, ConfigError> {
        config.validate()?;
        Ok(Self { shared: Arc::new(transport::Shared::new(config, guard, shutdown)?) })
    }

    /// Calls in the name of one user. Waits like a person would by default; jobs say
    /// [`Session::patience`]`(`[`Patience::JOB`]`)`.
    pub fn as_user(&self, auth: Auth) -> Session {
        Session::new(Arc::clone(&self.shared), auth)
    }
}
