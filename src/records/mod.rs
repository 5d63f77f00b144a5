//! Our own calls to a tenant's instance: what jobs and our API keep in the user's own `PocketBase`.
//!
//! Invariants:
//! - A call holds a lease, so it wakes the instance and the instance does not sleep under it.
//! - Before the first write of an [`Instance`], subscribers that are parked are attached, so that they hear of it.
//! - No instance is asked for before [`begin`](Records::begin): what an earlier run left running is adopted first.
//! - Calls are a superuser's, from loopback and without `X-Forwarded-For`; no connection is reused, because the
//!   instance may be another process at the next call.
//!
//! Deliberately absent: what the records mean, and requests of users (`gateway` forwards those).

mod error;
mod form;
mod sql;

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use bytes::BytesMut;
use hyper::Method;
use hyper::header::AUTHORIZATION;
use hyper::header::CONTENT_TYPE;
use reqwest::Url;
use serde_json::Value;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::ids::TenantId;
use crate::outbound;
use crate::supervisor;
use crate::supervisor::Lease;
use crate::supervisor::Priority;
use crate::supervisor::Supervisor;

pub use error::Error;
pub use form::Upload;
pub use sql::sql_text;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Longest that one call may take.
const CALL_TIMEOUT: Duration = Duration::from_mins(1);
/// Largest answer that is taken.
const MAX_ANSWER_BYTES: usize = 32 * 1024 * 1024;
/// Most writes in one batch; `PocketBase`'s own setting in golden directories allows more.
const BATCH: usize = 50;
const BATCH_PATH: &str = "/api/batch";
/// Records that one page of [`Instance::list_all`] has.
const PAGE: usize = 500;

/// Attaches who listens to a tenant before something is written there.
pub type Settle = Arc<dyn for<'a> Fn(&'a Lease) -> Pin<Box<dyn Future<Output = ()> + Send + 'a>> + Send + Sync>;

/// The way to tenants' records. Cheap to clone.
#[derive(Clone)]
pub struct Records {
    supervisor: Supervisor,
    settle: Settle,
    http: reqwest::Client,
    begun: CancellationToken,
}

impl fmt::Debug for Records {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Records").finish_non_exhaustive()
    }
}

/// A tenant's awake instance, held for as long as this exists.
pub struct Instance {
    lease: Lease,
    settle: Settle,
    is_settled: AtomicBool,
    http: reqwest::Client,
}

impl fmt::Debug for Instance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Instance").field("tenant", self.lease.tenant()).finish_non_exhaustive()
    }
}

/// Which records of a collection, and what of them.
#[derive(Debug, Clone, Copy, Default)]
pub struct Query<'a> {
    /// A filter in `PocketBase`'s language. Values from outside go through [`quoted`].
    pub filter: &'a str,
    /// Fields to sort by, such as `-created`.
    pub sort: &'a str,
    /// Which fields to send; empty = all.
    pub fields: &'a str,
    /// Most records, 1 to 1,000; 0 = `PocketBase`'s 30.
    pub limit: usize,
}

/// A record that is to be there as it is, whether it was or not.
#[derive(Debug, Clone, Copy)]
pub struct Put<'a> {
    /// Of which collection.
    pub collection: &'a str,
    /// Its fields, `id` among them.
    pub value: &'a Value,
}

impl Records {
    /// `settle` is called before the first write of each [`Instance`].
    pub fn new(supervisor: Supervisor, settle: Settle) -> Result<Self, Error> {
        let client = outbound::client().connect_timeout(CONNECT_TIMEOUT).timeout(CALL_TIMEOUT);
        Ok(Self {
            supervisor,
            settle,
            http: client.pool_max_idle_per_host(0).build()?,
            begun: CancellationToken::new(),
        })
    }

    /// Lets calls through, of all clones. To be called once, when what ran before is adopted.
    pub fn begin(&self) {
        self.begun.cancel();
    }

    /// Says that something will be written to the tenant's instance in a moment, so that it may wake meanwhile.
    pub fn expect(&self, tenant: &TenantId) {
        if self.begun.is_cancelled() {
            self.supervisor.expect(tenant);
        }
    }

    /// Wakes the tenant's instance, waiting like any request.
    pub async fn open(&self, tenant: &TenantId, priority: Priority) -> Result<Instance, Error> {
        if tokio::time::timeout(CALL_TIMEOUT, self.begun.cancelled()).await.is_err() {
            return Err(Error::Instance(supervisor::Error::WakeTimeout));
        }
        let lease = self.supervisor.lease(tenant, priority).await?;
        let (settle, http) = (Arc::clone(&self.settle), self.http.clone());
        Ok(Instance { lease, settle, is_settled: AtomicBool::new(false), http })
    }
}

impl Instance {
    /// The records that match, without a count of all.
    pub async fn list(&self, collection: &str, query: &Query<'_>) -> Result<Vec<Value>, Error> {
        items(self.call(Method::GET, &records(collection), &pairs(query), None).await?)
    }

    /// All records that match, page by page, up to `most`. Records that are written meanwhile may be missing or twice.
    pub async fn list_all(&self, collection: &str, query: &Query<'_>, most: usize) -> Result<Vec<Value>, Error> {
        let mut all = Vec::new();
        for page in 1.. {
            let wanted = PAGE.min(most - all.len());
            let mut pairs = pairs(&Query { limit: wanted, ..*query });
            pairs.push(("page", page.to_string()));
            let items = items(self.call(Method::GET, &records(collection), &pairs, None).await?)?;
            let is_last = items.len() < wanted;
            all.extend(items);
            if is_last || all.len() >= most {
                break;
            }
        }
        Ok(all)
    }

    /// One record, if there is one.
    pub async fn find(&self, collection: &str, id: &str) -> Result<Option<Value>, Error> {
        absent_is_none(self.call(Method::GET, &record(collection, id), &[], None).await)
    }

    /// Creates a record and returns it as stored.
    pub async fn create(&self, collection: &str, value: &Value) -> Result<Value, Error> {
        self.call(Method::POST, &records(collection), &[], Some(value)).await
    }

    /// Changes the given fields of a record and returns it as stored; none when it does not exist.
    pub async fn update(&self, collection: &str, id: &str, value: &Value) -> Result<Option<Value>, Error> {
        absent_is_none(self.call(Method::PATCH, &record(collection, id), &[], Some(value)).await)
    }

    /// Deletes a record; false when it did not exist.
    pub async fn delete(&self, collection: &str, id: &str) -> Result<bool, Error> {
        Ok(absent_is_none(self.call(Method::DELETE, &record(collection, id), &[], None).await)?.is_some())
    }

    /// Creates the records, or changes those whose `id` exists, some dozens at once. Each group is written whole or not
    /// at all; the groups before one that fails stay.
    pub async fn upsert(&self, collection: &str, values: &[Value]) -> Result<(), Error> {
        for group in values.chunks(BATCH) {
            let group: Vec<_> = group.iter().map(|value| Put { collection, value }).collect();
            self.put(&group).await?;
        }
        Ok(())
    }

    /// The same for records of several collections, all of them or none: 50 at most.
    pub async fn put(&self, puts: &[Put<'_>]) -> Result<(), Error> {
        if puts.is_empty() {
            return Ok(());
        }
        let request = |put: &Put<'_>| json!({ "method": "PUT", "url": records(put.collection), "body": put.value });
        let requests: Vec<Value> = puts.iter().map(request).collect();
        self.call(Method::POST, BATCH_PATH, &[], Some(&json!({ "requests": requests }))).await?;
        Ok(())
    }

    /// Creates a record with a file in one of its fields, and returns it as stored.
    pub async fn create_with_file(
        &self,
        collection: &str,
        fields: &Value,
        upload: &Upload<'_>,
    ) -> Result<Value, Error> {
        let answer = self.send(Method::POST, &records(collection), &[], Some(form::encode(fields, upload))).await?;
        serde_json::from_slice(&answer).map_err(|_| Error::Unexpected)
    }

    /// What one `SELECT` gives: rows of texts, nulls as none. Texts from outside go into it through [`sql_text`] and in
    /// no other way. For reading only: whoever listens is not attached first.
    pub async fn rows(&self, select: &str) -> Result<Vec<Vec<Option<String>>>, Error> {
        let body = Bytes::from(json!({ "query": select }).to_string());
        let answer = self.ask(Method::POST, "/api/sql", &[], Some(("application/json".to_owned(), body))).await?;
        sql::rows(&answer)
    }

    /// Any call of `PocketBase`'s API that answers JSON or nothing (null then).
    pub async fn call(
        &self,
        method: Method,
        path: &str,
        query: &[(&str, String)],
        body: Option<&Value>,
    ) -> Result<Value, Error> {
        let body = body.map(|body| ("application/json".to_owned(), Bytes::from(body.to_string())));
        let answer = self.send(method, path, query, body).await?;
        if answer.is_empty() { Ok(Value::Null) } else { serde_json::from_slice(&answer).map_err(|_| Error::Unexpected) }
    }

    /// Any call with a body of any type.
    pub async fn send(
        &self,
        method: Method,
        path: &str,
        query: &[(&str, String)],
        body: Option<(String, Bytes)>,
    ) -> Result<Bytes, Error> {
        if method != Method::GET && !self.is_settled.swap(true, Ordering::AcqRel) {
            (self.settle)(&self.lease).await;
        }
        self.ask(method, path, query, body).await
    }

    async fn ask(
        &self,
        method: Method,
        path: &str,
        query: &[(&str, String)],
        body: Option<(String, Bytes)>,
    ) -> Result<Bytes, Error> {
        let mut url = Url::parse(&self.lease.base_url()).map_err(|_| Error::Unexpected)?;
        url.set_path(path);
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        let mut request = self.http.request(method, url).header(AUTHORIZATION, self.lease.superuser_authorization());
        if let Some((content_type, body)) = body {
            request = request.header(CONTENT_TYPE, content_type).body(body);
        }
        let mut response = request.send().await?;
        self.lease.answered();
        let status = response.status();
        let mut body = BytesMut::new();
        while let Some(chunk) = response.chunk().await? {
            if body.len() + chunk.len() > MAX_ANSWER_BYTES {
                return Err(Error::Unexpected);
            }
            body.extend_from_slice(&chunk);
        }
        if status.is_success() {
            return Ok(body.freeze());
        }
        Err(error::refused(path, status.as_u16(), &body))
    }

    /// The hold on the process, for what needs its address or a token.
    pub fn lease(&self) -> &Lease {
        &self.lease
    }
}

/// A text as a literal of `PocketBase`'s filter language.
pub fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\\', "\\\\").replace('\'', "\\'"))
}

fn pairs(query: &Query<'_>) -> Vec<(&'static str, String)> {
    let mut pairs = vec![("skipTotal", "1".to_owned())];
    let given = [("filter", query.filter), ("sort", query.sort), ("fields", query.fields)];
    pairs.extend(given.into_iter().filter(|(_, text)| !text.is_empty()).map(|(name, text)| (name, text.to_owned())));
    if query.limit > 0 {
        pairs.push(("perPage", query.limit.to_string()));
    }
    pairs
}

fn items(mut page: Value) -> Result<Vec<Value>, Error> {
    match page.get_mut("items").map(Value::take) {
        Some(Value::Array(items)) => Ok(items),
        _ => Err(Error::Unexpected),
    }
}

fn records(collection: &str) -> String {
    format!("/api/collections/{collection}/records")
}

fn record(collection: &str, id: &str) -> String {
    format!("/api/collections/{collection}/records/{id}")
}

fn absent_is_none(answer: Result<Value, Error>) -> Result<Option<Value>, Error> {
    match answer {
        Ok(value) => Ok(Some(value)),
        Err(Error::Refused { status: 404, .. }) => Ok(None),
        Err(error) => Err(error),
    }
}
