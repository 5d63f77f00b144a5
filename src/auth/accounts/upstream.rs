//! Calls to the global instance.
//!
//! Invariants:
//! - A user's call carries one `X-Forwarded-For` that is never a loopback address: the instance grants superuser
//!   rights to loopback clients only, and a user's call must not look like one.
//! - A superuser's call carries none, for the same reason.
//! - No connection is reused: the instance may be another process at the next call, and a stale connection would turn
//!   a restart into a failed sign-in. A loopback connection costs nothing beside a password check.

use std::time::Duration;

use bytes::Bytes;
use bytes::BytesMut;
use hyper::Method;
use hyper::header::AUTHORIZATION;
use hyper::header::CONTENT_TYPE;
use hyper::header::HeaderMap;
use hyper::header::HeaderName;
use hyper::header::HeaderValue;
use hyper::header::USER_AGENT;
use reqwest::Url;
use serde_json::Value;

use super::Answer;
use super::Client;
use super::Error;
use super::reserved;
use crate::ids::TenantId;
use crate::outbound;
use crate::pocketbase::client::forwarded_for;
use crate::supervisor::Lease;
use crate::supervisor::Priority;
use crate::supervisor::Supervisor;

/// Longest a call may take, password check included.
const CALL_TIMEOUT: Duration = Duration::from_secs(20);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// Largest answer that is taken.
const MAX_ANSWER_BYTES: usize = 8 * 1024 * 1024;

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// Where the accounts are.
pub(super) const USERS: &str = "/api/collections/users";

/// One call.
pub(super) struct Call {
    method: Method,
    path: String,
    query: Option<String>,
    headers: HeaderMap,
    body: Bytes,
    rights: Rights,
}

/// Whose rights a call has.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Rights {
    User,
    Superuser,
}

impl Call {
    /// A call for a client. `path` is relative to the users collection.
    pub(super) fn user(method: Method, path: &str, client: &Client) -> Self {
        let mut headers = HeaderMap::new();
        if let Some(address) = forwarded_for(client.ip) {
            headers.insert(FORWARDED_FOR, address);
        }
        if let Ok(device) = HeaderValue::from_str(&client.device) {
            headers.insert(USER_AGENT, device);
        }
        Self::new(method, path, headers, Rights::User)
    }

    /// A call of the control plane itself.
    pub(super) fn superuser(method: Method, path: &str) -> Self {
        Self::new(method, path, HeaderMap::new(), Rights::Superuser)
    }

    /// A call of the control plane itself, at an absolute path.
    pub(super) fn superuser_at(method: Method, path: &str) -> Self {
        Self { path: path.to_owned(), ..Self::superuser(method, "") }
    }

    fn new(method: Method, path: &str, headers: HeaderMap, rights: Rights) -> Self {
        Self { method, path: format!("{USERS}{path}"), query: None, headers, body: Bytes::new(), rights }
    }

    pub(super) fn json(self, body: &Value) -> Self {
        self.raw(Some("application/json"), Bytes::from(body.to_string()))
    }

    pub(super) fn raw(mut self, content_type: Option<&str>, body: Bytes) -> Self {
        if let Some(Ok(content_type)) = content_type.map(HeaderValue::from_str) {
            self.headers.insert(CONTENT_TYPE, content_type);
        }
        Self { body, ..self }
    }

    pub(super) fn query(self, query: Option<&str>) -> Self {
        Self { query: query.map(str::to_owned), ..self }
    }

    /// Keeps the fields that we need in an answer that the caller wants trimmed.
    pub(super) fn query_with_fields(self, query: Option<&str>, needed: &str) -> Self {
        Self { query: query.map(|query| with_fields(query, needed)), ..self }
    }

    /// Proves that the id in the body was chosen here.
    pub(super) fn reserved(mut self, key: &str) -> Self {
        if let Ok(mut value) = HeaderValue::from_str(key) {
            value.set_sensitive(true);
            self.headers.insert(reserved::HEADER, value);
        }
        self
    }

    pub(super) fn token(mut self, token: &str) -> Self {
        if let Ok(mut value) = HeaderValue::from_str(token) {
            value.set_sensitive(true);
            self.headers.insert(AUTHORIZATION, value);
        }
        self
    }
}

/// The way to the global instance.
#[derive(Debug)]
pub(super) struct Upstream {
    supervisor: Supervisor,
    http: reqwest::Client,
}

impl Upstream {
    pub(super) fn new(supervisor: Supervisor) -> Result<Self, Error> {
        let http = outbound::client()
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(CALL_TIMEOUT)
            .pool_max_idle_per_host(0)
            .build()?;
        Ok(Self { supervisor, http })
    }

    /// The answer, whatever its status.
    pub(super) async fn call(&self, call: Call) -> Result<Answer, Error> {
        let lease = self.supervisor.lease(&TenantId::global(), Priority::Client).await?;
        let answer = self.send(&lease, call).await;
        match &answer {
            Ok(_) => lease.answered(),
            Err(error) => tracing::warn!(%error, source = source(error), "a call to the accounts service failed"),
        }
        answer
    }

    async fn send(&self, lease: &Lease, mut call: Call) -> Result<Answer, Error> {
        let mut url = Url::parse(&lease.base_url()).map_err(|_| Error::Unexpected)?;
        url.set_path(&call.path);
        url.set_query(call.query.as_deref());
        if call.rights == Rights::Superuser {
            call.headers.insert(AUTHORIZATION, lease.superuser_authorization());
        }
        let request = self.http.request(call.method, url).headers(call.headers).body(call.body);
        let mut response = request.send().await?;
        let status = response.status().as_u16();
        let mut body = BytesMut::new();
        while let Some(chunk) = response.chunk().await? {
            if body.len() + chunk.len() > MAX_ANSWER_BYTES {
                return Err(Error::Unexpected);
            }
            body.extend_from_slice(&chunk);
        }
        Ok(Answer { status, body: body.freeze() })
    }
}

fn source(error: &Error) -> String {
    std::error::Error::source(error).map(ToString::to_string).unwrap_or_default()
}

/// Adds what we need to each `fields` parameter of a query; a query without one asks for everything.
fn with_fields(query: &str, needed: &str) -> String {
    let Ok(mut url) = Url::parse("http://localhost/") else { return query.to_owned() };
    url.set_query(Some(query));
    if !url.query_pairs().any(|(name, _)| name == "fields") {
        return query.to_owned();
    }
    let pairs: Vec<(String, String)> = url
        .query_pairs()
        .map(|(name, value)| match &*name {
            // An empty one asks for everything.
            "fields" if !value.is_empty() => (name.into_owned(), format!("{value},{needed}")),
            _ => (name.into_owned(), value.into_owned()),
        })
        .collect();
    url.query_pairs_mut().clear().extend_pairs(pairs);
    url.query().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_never_call_from_loopback_and_superusers_never_through_a_proxy() {
        let from = |ip: &str| {
            let client = Client::new(ip.parse().unwrap(), Some("curl"));
            let call = Call::user(Method::GET, "", &client);
            call.headers.get(FORWARDED_FOR).unwrap().to_str().unwrap().to_owned()
        };
        for local in ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1", "0.0.0.0"] {
            assert_eq!(from(local), "192.0.2.1", "{local}");
        }
        assert_eq!(from("203.0.113.9"), "203.0.113.9");
        assert_eq!(from("::ffff:203.0.113.9"), "203.0.113.9");
        assert!(Call::superuser(Method::GET, "").headers.is_empty());
    }

    #[test]
    fn trimmed_answers_keep_what_we_need() {
        assert_eq!(with_fields("expand=a", "token"), "expand=a");
        assert_eq!(with_fields("fields=record.id&expand=a", "token"), "fields=record.id%2Ctoken&expand=a");
    }
}
