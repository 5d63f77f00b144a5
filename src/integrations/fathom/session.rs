//! One user's calls: everything the published API offers.

use std::fmt;
use std::sync::Arc;

use reqwest::Method;
use reqwest::header;
use reqwest::header::HeaderName;
use reqwest::header::HeaderValue;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use serde_json::json;

use super::Error;
use super::Patience;
use super::budget::Call;
use super::budget::KeyHash;
use super::lenient;
use super::lenient::Model;
use super::model::Meeting;
use super::model::MeetingType;
use super::model::RecordingDownload;
use super::model::Summary;
use super::model::Team;
use super::model::TeamMember;
use super::model::TranscriptLine;
use super::model::User;
use super::model::Webhook;
use super::oauth::Issue;
use super::oauth::Live;
use super::oauth::OAuth;
use super::pages::Page;
use super::pages::Pages;
use super::query::MeetingsQuery;
use super::query::NewWebhook;
use super::query::UsersQuery;
use super::transport::Ask;
use super::transport::Shared;
use super::transport::key_hash;
use crate::vault::Secret;

/// Most pages of the short lists: teams, members, types, users.
const MAX_LIST_PAGES: usize = 100;

/// How a user shows who they are.
#[derive(Debug)]
pub enum Auth {
    /// A key that the user made and stored with us.
    ApiKey(Secret),
    /// Tokens of the operator's app.
    OAuth(OAuth),
}

/// What a session sends with each call.
#[derive(Clone)]
pub(super) enum Credential {
    Key(Arc<Secret>),
    OAuth(Arc<Live>),
}

impl Credential {
    /// The header, and which issue of tokens it is of. An issue that was refused is refreshed first.
    pub(super) async fn header(
        &self,
        shared: &Arc<Shared>,
        refused: Option<Issue>,
    ) -> Result<(HeaderName, HeaderValue, Option<Issue>), Error> {
        let (name, mut value, issue) = match self {
            Self::Key(key) => {
                let value = HeaderValue::from_str(key.expose().trim()).map_err(|_| Error::Unauthorized)?;
                (HeaderName::from_static("x-api-key"), value, None)
            }
            Self::OAuth(live) => {
                let (value, issue) = Arc::clone(live).bearer(shared, refused).await?;
                (header::AUTHORIZATION, value, Some(issue))
            }
        };
        value.set_sensitive(true);
        Ok((name, value, issue))
    }
}

/// Calls in one user's name. Clones share the user's budget and tokens.
#[derive(Clone)]
pub struct Session {
    shared: Arc<Shared>,
    credential: Credential,
    key: KeyHash,
    patience: Patience,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").finish_non_exhaustive()
    }
}

impl Session {
    pub(super) fn new(shared: Arc<Shared>, auth: Auth) -> Self {
        let (credential, key) = match auth {
            Auth::ApiKey(secret) => {
                let key = key_hash("key", secret.expose().trim());
                (Credential::Key(Arc::new(secret)), key)
            }
            Auth::OAuth(oauth) => {
                let key = key_hash("user", &oauth.user);
                (Credential::OAuth(shared.accounts.live(oauth)), key)
            }
        };
        Self { shared, credential, key, patience: Patience::INTERACTIVE }
    }

    /// The same with another patience.
    #[must_use]
    pub fn patience(self, patience: Patience) -> Self {
        Self { patience, ..self }
    }

    /// Whether [`meetings`](Self::meetings) may carry transcripts and summaries; with OAuth they are asked for one by one.
    pub fn may_include_content(&self) -> bool {
        matches!(self.credential, Credential::Key(_))
    }

    /// One page of meetings, newest first. With OAuth, transcript and summary are not asked for, as Fathom refuses that.
    pub async fn meetings(&self, query: &MeetingsQuery) -> Result<Page<Meeting>, Error> {
        let allowed;
        let query = if self.may_include_content() {
            query
        } else {
            allowed = MeetingsQuery { include_transcript: false, include_summary: false, ..query.clone() };
            &allowed
        };
        let call = if query.is_heavy() { Call::Heavy } else { Call::Plain };
        self.list(&["meetings"], query.pairs(), call).await
    }

    /// All pages of meetings, one after the other.
    pub fn pages(&self, query: MeetingsQuery) -> Pages<'_> {
        Pages::new(self, query)
    }

    /// Whether the key works, as cheaply as that can be found out: there is no call that says who one is.
    pub async fn check(&self) -> Result<(), Error> {
        self.meetings(&MeetingsQuery::default()).await.map(drop)
    }

    /// A recording's summary, if there is one.
    pub async fn summary(&self, recording_id: u64) -> Result<Option<Summary>, Error> {
        let path = ["recordings", &recording_id.to_string(), "summary"];
        let answer: SummaryAnswer = self.read(Ask::get(&path, Vec::new(), Call::Heavy), "a summary").await?;
        Ok(answer.summary)
    }

    /// Asks for the summary to be posted to a URL, signed like a webhook.
    pub async fn summary_to(&self, recording_id: u64, destination_url: &str) -> Result<(), Error> {
        self.posted(recording_id, "summary", destination_url).await
    }

    /// A recording's transcript.
    pub async fn transcript(&self, recording_id: u64) -> Result<Vec<TranscriptLine>, Error> {
        let path = ["recordings", &recording_id.to_string(), "transcript"];
        let answer: TranscriptAnswer = self.read(Ask::get(&path, Vec::new(), Call::Heavy), "a transcript").await?;
        Ok(answer.transcript)
    }

    /// Asks for the transcript to be posted to a URL, signed like a webhook.
    pub async fn transcript_to(&self, recording_id: u64, destination_url: &str) -> Result<(), Error> {
        self.posted(recording_id, "transcript", destination_url).await
    }

    /// Asks Fathom to prepare a recording's media; then poll [`download`](Self::download).
    pub async fn request_download(&self, recording_id: u64) -> Result<RecordingDownload, Error> {
        self.requested(recording_id, None).await
    }

    /// The same, and the outcome is posted to a URL as well, signed like a webhook.
    pub async fn request_download_to(
        &self,
        recording_id: u64,
        destination_url: &str,
    ) -> Result<RecordingDownload, Error> {
        self.requested(recording_id, Some(json!({ "destination_url": destination_url }))).await
    }

    /// How far a download is. Only the key that asked for it sees it.
    pub async fn download(&self, recording_id: u64, download_id: &str) -> Result<RecordingDownload, Error> {
        let path = ["recordings", &recording_id.to_string(), "downloads", download_id];
        self.read(Ask::get(&path, Vec::new(), Call::Plain), "a download").await
    }

    /// All teams.
    pub async fn teams(&self) -> Result<Vec<Team>, Error> {
        self.all(&["teams"], Vec::new()).await
    }

    /// The members of a team, or of all.
    pub async fn team_members(&self, team: Option<&str>) -> Result<Vec<TeamMember>, Error> {
        self.all(&["team_members"], team.map(|team| ("team", team.to_owned())).into_iter().collect()).await
    }

    /// The organisation's types of meetings.
    pub async fn meeting_types(&self) -> Result<Vec<MeetingType>, Error> {
        self.all(&["meeting_types"], Vec::new()).await
    }

    /// The organisation's users.
    pub async fn users(&self, query: &UsersQuery) -> Result<Vec<User>, Error> {
        self.all(&["users"], query.pairs()).await
    }

    /// Makes a webhook. Its id and secret are told this once only, and there is no list: keep both.
    pub async fn create_webhook(&self, webhook: &NewWebhook) -> Result<Webhook, Error> {
        let body = serde_json::to_value(webhook).map_err(|_| Error::Malformed("the webhook"))?;
        let ask =
            Ask { method: Method::POST, path: &["webhooks"], query: Vec::new(), body: Some(body), call: Call::Plain };
        self.read(ask, "a webhook").await
    }

    /// Deletes a webhook; [`Error::NotFound`] when there is none (any more).
    pub async fn delete_webhook(&self, id: &str) -> Result<(), Error> {
        let path = ["webhooks", id];
        let ask = Ask { method: Method::DELETE, path: &path, query: Vec::new(), body: None, call: Call::Plain };
        self.ask(ask).await.map(drop)
    }

    async fn posted(&self, recording_id: u64, what: &str, destination_url: &str) -> Result<(), Error> {
        let path = ["recordings", &recording_id.to_string(), what];
        let query = vec![("destination_url", destination_url.to_owned())];
        self.ask(Ask::get(&path, query, Call::Heavy)).await.map(drop)
    }

    async fn requested(&self, recording_id: u64, body: Option<Value>) -> Result<RecordingDownload, Error> {
        let path = ["recordings", &recording_id.to_string(), "download"];
        let ask = Ask { method: Method::POST, path: &path, query: Vec::new(), body, call: Call::Download };
        self.read(ask, "a download").await
    }

    /// All items of a short list, page by page.
    async fn all<T: Model>(&self, path: &[&str], query: Vec<(&'static str, String)>) -> Result<Vec<T>, Error> {
        let mut items = Vec::new();
        let mut cursor: Option<String> = None;
        for _ in 0..MAX_LIST_PAGES {
            let mut query = query.clone();
            query.extend(cursor.clone().map(|cursor| ("cursor", cursor)));
            let page: Page<T> = self.list(path, query, Call::Plain).await?;
            items.extend(page.items);
            if page.next_cursor.is_none() {
                return Ok(items);
            }
            if page.next_cursor == cursor {
                break;
            }
            cursor = page.next_cursor;
        }
        Err(Error::Malformed("pages without end"))
    }

    async fn list<T: Model>(
        &self,
        path: &[&str],
        query: Vec<(&'static str, String)>,
        call: Call,
    ) -> Result<Page<T>, Error> {
        Page::read(self.ask(Ask::get(path, query, call)).await?).ok_or(Error::Malformed("no page"))
    }

    async fn read<T: DeserializeOwned>(&self, ask: Ask<'_>, what: &'static str) -> Result<T, Error> {
        serde_json::from_value(self.ask(ask).await?).map_err(|_| Error::Malformed(what))
    }

    async fn ask(&self, ask: Ask<'_>) -> Result<Value, Error> {
        self.shared.ask(&ask, &self.credential, &self.key, self.patience).await
    }
}

#[derive(Deserialize)]
struct SummaryAnswer {
    #[serde(default, deserialize_with = "lenient::option")]
    summary: Option<Summary>,
}

#[derive(Deserialize)]
struct TranscriptAnswer {
    #[serde(default, deserialize_with = "lenient::list")]
    transcript: Vec<TranscriptLine>,
}
