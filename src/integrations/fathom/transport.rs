//! Sending a call and judging its answer: budget, deadline, bound, status.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;
use std::time::Instant;

use bytes::BytesMut;
use reqwest::Method;
use reqwest::Response;
use reqwest::StatusCode;
use reqwest::Url;
use reqwest::header;
use reqwest::header::HeaderMap;
use serde_json::Value;
use sha2::Digest;
use sha2::Sha256;
use time::OffsetDateTime;

use super::Config;
use super::ConfigError;
use super::Error;
use super::Excerpt;
use super::Patience;
use super::backoff::may_wait;
use super::backoff::pause;
use super::budget::Budgets;
use super::budget::Call;
use super::budget::KeyHash;
use super::budget::Limits;
use super::budget::Told;
use super::oauth::Accounts;
use super::session::Credential;
use crate::outbound;
use crate::outbound::Guard;
use crate::shutdown::Shutdown;

/// Most tries of a read that meets a server's error or no answer.
const MAX_TRIES: u32 = 3;

/// What all sessions share.
pub(super) struct Shared {
    pub(super) config: Config,
    pub(super) guard: Guard,
    pub(super) accounts: Accounts,
    pub(super) shutdown: Shutdown,
    base: Url,
    http: reqwest::Client,
    budgets: Mutex<Budgets>,
}

/// One call.
pub(super) struct Ask<'a> {
    pub(super) method: Method,
    /// Segments after the base URL, not encoded.
    pub(super) path: &'a [&'a str],
    pub(super) query: Vec<(&'static str, String)>,
    pub(super) body: Option<Value>,
    pub(super) call: Call,
}

impl<'a> Ask<'a> {
    pub(super) fn get(path: &'a [&'a str], query: Vec<(&'static str, String)>, call: Call) -> Self {
        Self { method: Method::GET, path, query, body: None, call }
    }

    /// Whether doing it twice is doing it once.
    fn is_repeatable(&self) -> bool {
        self.method != Method::POST
    }
}

/// An answer that is not a success, before anybody decided what to do about it.
struct Failure {
    error: Error,
    /// What a 429 said about when to come back.
    wait: Option<Duration>,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self { error, wait: None }
    }
}

impl Shared {
    pub(super) fn new(config: Config, guard: Guard, shutdown: Shutdown) -> Result<Self, ConfigError> {
        let base = Url::parse(config.base_url.trim_end_matches('/')).map_err(|_| ConfigError::Url("base_url"))?;
        let http = outbound::client()
            .timeout(config.timeout)
            .user_agent(concat!("pocketfleet/", env!("CARGO_PKG_VERSION")))
            .build()?;
        let limits = Limits {
            all: config.calls_per_minute,
            heavy: config.heavy_calls_per_minute,
            downloads: config.downloads_per_minute,
        };
        let budgets = Mutex::new(Budgets::new(limits));
        Ok(Self { config, guard, accounts: Accounts::default(), shutdown, base, http, budgets })
    }

    /// Makes a call and reads its answer; null when there is none.
    pub(super) async fn ask(
        self: &std::sync::Arc<Self>,
        ask: &Ask<'_>,
        credential: &Credential,
        key: &KeyHash,
        patience: Patience,
    ) -> Result<Value, Error> {
        let mut waited = Duration::ZERO;
        let mut tries = 0;
        let mut refused = None;
        loop {
            let spent = self.take(key, ask.call, patience, waited).await?;
            waited += spent;
            let (name, value, issue) = credential.header(self, refused).await?;
            let request = self.http.request(ask.method.clone(), self.url(ask)?).header(name, value);
            let request = match &ask.body {
                Some(body) => request.json(body),
                None => request,
            };
            let failure = match self.once(request, ask.call, key).await {
                Ok(value) => return Ok(value),
                Err(failure) => failure,
            };
            let wait = match &failure.error {
                // A token that was refreshed elsewhere, or is over before its time.
                Error::Unauthorized if issue.is_some() && refused.is_none() => {
                    refused = issue;
                    continue;
                }
                Error::RateLimited { .. } => {
                    let wait = failure.wait.unwrap_or_else(|| pause(tries, rand::random()));
                    self.budgets().refuse(key, ask.call, wait, Instant::now());
                    wait
                }
                Error::Server { .. } | Error::Unreachable(_) if ask.is_repeatable() && tries + 1 < MAX_TRIES => {
                    pause(tries, rand::random())
                }
                _ => return Err(failure.error),
            };
            tries += 1;
            if !may_wait(patience, waited, wait) {
                return Err(match failure.error {
                    Error::RateLimited { .. } => Error::RateLimited { retry_after: wait },
                    error => error,
                });
            }
            tokio::time::sleep(wait).await;
            waited += wait;
        }
    }

    /// Takes a call from the budget, waiting within the patience; how long it waited.
    async fn take(&self, key: &KeyHash, call: Call, patience: Patience, waited: Duration) -> Result<Duration, Error> {
        let mut spent = Duration::ZERO;
        loop {
            let taken = self.budgets().take(key, call, Instant::now());
            let Err(wait) = taken else { return Ok(spent) };
            if !may_wait(patience, waited + spent, wait) {
                return Err(Error::RateLimited { retry_after: wait });
            }
            tokio::time::sleep(wait).await;
            spent += wait;
        }
    }

    /// A form for the token endpoint, which has a budget of its own per app.
    pub(super) async fn form(&self, url: &str, fields: &[(&str, &str)]) -> Result<Value, Error> {
        let key = key_hash("app", &self.config.oauth.client_id);
        self.take(&key, Call::Plain, Patience::JOB, Duration::ZERO).await?;
        let url = Url::parse(url).map_err(|_| Error::Malformed("the token URL"))?;
        self.once(self.http.post(url).form(fields), Call::Plain, &key).await.map_err(|failure| match failure.error {
            Error::RateLimited { retry_after } => {
                Error::RateLimited { retry_after: failure.wait.unwrap_or(retry_after) }
            }
            // The one answer to a code or token that is over, or was used by another.
            Error::Rejected { status: 400, .. } | Error::Forbidden => Error::Unauthorized,
            error => error,
        })
    }

    async fn once(&self, request: reqwest::RequestBuilder, call: Call, key: &KeyHash) -> Result<Value, Failure> {
        let response = request.send().await.map_err(Error::from)?;
        let status = response.status();
        let told = Told::read(response.headers(), OffsetDateTime::now_utc());
        self.budgets().hear(key, call, &told, Instant::now());
        if status.is_success() {
            let body = read(response, self.config.max_answer_bytes).await?;
            if body.is_empty() {
                return Ok(Value::Null);
            }
            return serde_json::from_slice(&body).map_err(|_| Error::Malformed("no JSON").into());
        }
        // What it says does not matter for what is done, nor whether it can be read.
        let body = excerpt(response).await;
        Err(Failure { error: judge(status, call, body), wait: told.wait() })
    }

    fn url(&self, ask: &Ask<'_>) -> Result<Url, Error> {
        let mut url = self.base.clone();
        url.path_segments_mut().map_err(|()| Error::Malformed("the base URL"))?.pop_if_empty().extend(ask.path);
        if !ask.query.is_empty() {
            url.query_pairs_mut().extend_pairs(&ask.query);
        }
        Ok(url)
    }

    fn budgets(&self) -> std::sync::MutexGuard<'_, Budgets> {
        self.budgets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a status means. Nothing else of the answer decides.
fn judge(status: StatusCode, call: Call, body: Excerpt) -> Error {
    match status.as_u16() {
        401 => Error::Unauthorized,
        403 => Error::Forbidden,
        404 => Error::NotFound,
        422 if call == Call::Download => Error::NoMedia,
        429 => Error::RateLimited { retry_after: Duration::from_secs(1) },
        status @ 400..500 => Error::Rejected { status, body },
        status @ 500.. => Error::Server { status, body },
        _ => Error::Malformed("a redirect, or no status of an answer"),
    }
}

/// A whole body, up to a bound.
async fn read(mut response: Response, most: usize) -> Result<BytesMut, Error> {
    if response.content_length().is_some_and(|length| length > most as u64) {
        return Err(Error::Malformed("an answer that is too large"));
    }
    let mut body = BytesMut::new();
    while let Some(chunk) = response.chunk().await? {
        if body.len() + chunk.len() > most {
            return Err(Error::Malformed("an answer that is too large"));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

async fn excerpt(mut response: Response) -> Excerpt {
    let mut body = BytesMut::new();
    while body.len() < Excerpt::MAX_BYTES
        && let Ok(Some(chunk)) = response.chunk().await
    {
        body.extend_from_slice(&chunk);
    }
    Excerpt::new(&body)
}

/// What a budget is kept under: never the key itself.
pub(super) fn key_hash(kind: &str, key: &str) -> KeyHash {
    let mut hash = Sha256::new();
    hash.update(kind.as_bytes());
    hash.update([0]);
    hash.update(key.as_bytes());
    hash.finalize().into()
}

/// The value of a `Content-Range` header: first byte and whole length.
pub(super) fn content_range(headers: &HeaderMap) -> Option<(u64, Option<u64>)> {
    let text = headers.get(header::CONTENT_RANGE)?.to_str().ok()?.trim();
    let (range, whole) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (first, _) = range.split_once('-')?;
    Some((first.parse().ok()?, whole.parse().ok()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_alone_decides() {
        let judged = |status, call| judge(StatusCode::from_u16(status).unwrap(), call, Excerpt::default());
        for (status, call, expected) in [
            (400, Call::Plain, "Rejected { status: 400, body: [0 bytes] }"),
            (401, Call::Plain, "Unauthorized"),
            (403, Call::Plain, "Forbidden"),
            (404, Call::Plain, "NotFound"),
            (422, Call::Download, "NoMedia"),
            (422, Call::Plain, "Rejected { status: 422, body: [0 bytes] }"),
            (429, Call::Heavy, "RateLimited { retry_after: 1s }"),
            (500, Call::Plain, "Server { status: 500, body: [0 bytes] }"),
            (503, Call::Plain, "Server { status: 503, body: [0 bytes] }"),
            (302, Call::Plain, "Malformed(\"a redirect, or no status of an answer\")"),
        ] {
            assert_eq!(format!("{:?}", judged(status, call)), expected);
        }
        let said = Excerpt::new(&[b'x'; 10_000]);
        assert_eq!((said.text().len(), format!("{said:?}").as_str()), (4096, "[4096 bytes]"));
    }

    #[test]
    fn ranges_are_read() {
        let read = |text: &str| {
            let headers = [(header::CONTENT_RANGE, text.parse().unwrap())].into_iter().collect();
            content_range(&headers)
        };
        assert_eq!(read("bytes 5-9/10"), Some((5, Some(10))));
        assert_eq!(read("bytes 5-9/*"), Some((5, None)));
        for odd in ["bytes */10", "5-9/10", "bytes -5/10", "bytes", "items 1-2/3"] {
            assert_eq!(read(odd), None, "{odd}");
        }
    }

    #[test]
    fn budgets_do_not_keep_keys() {
        assert_ne!(key_hash("key", "a"), key_hash("key", "b"));
        assert_ne!(key_hash("key", "a"), key_hash("user", "a"));
    }
}
