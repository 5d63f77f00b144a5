//! An event stream as a client sees it, without any reconnecting.

use std::sync::Arc;
use std::sync::Mutex;

use futures_util::StreamExt;
use reqwest::StatusCode;
use serde_json::Value;
use serde_json::json;

use super::TestApp;
use super::User;
use super::eventually;

/// One event.
#[derive(Debug, Clone)]
pub(crate) struct Event {
    pub id: String,
    pub name: String,
    pub data: Value,
}

#[derive(Debug, Default)]
struct Log {
    events: Vec<Event>,
    comments: usize,
    has_ended: bool,
    was_broken: bool,
}

/// An open stream and what came on it.
pub(crate) struct Stream {
    pub id: String,
    base: String,
    http: reqwest::Client,
    log: Arc<Mutex<Log>>,
    task: tokio::task::JoinHandle<()>,
}

impl Stream {
    /// Opens a stream and waits for its id.
    pub(crate) async fn open(app: &TestApp) -> Self {
        Self::at(&app.base).await
    }

    /// The same at a base address of one's own, such as a tenant's.
    pub(crate) async fn at(base: &str) -> Self {
        let http = crate::support::http().build().unwrap();
        let answer = http.get(format!("{base}/api/realtime")).send().await.unwrap();
        assert_eq!(answer.status(), 200, "{}", answer.text().await.unwrap());
        assert_eq!(answer.headers()["content-type"], "text/event-stream");
        assert_eq!(answer.headers()["cache-control"], "no-store");
        assert_eq!(answer.headers()["x-accel-buffering"], "no");
        let log = Arc::new(Mutex::new(Log::default()));
        let task = tokio::spawn(read(answer, Arc::clone(&log)));
        let mut stream = Self { id: String::new(), base: base.to_owned(), http, log, task };
        let hello = eventually("the stream begins", async || stream.all().into_iter().next()).await;
        assert_eq!(hello.name, "PB_CONNECT");
        assert_eq!(hello.data["clientId"], hello.id);
        stream.id = hello.id;
        stream
    }

    /// Opens a stream and subscribes it.
    pub(crate) async fn subscribed(app: &TestApp, user: &User, topics: &[&str]) -> Self {
        let stream = Self::open(app).await;
        assert_eq!(stream.subscribe(Some(&user.token), topics).await, 204);
        stream
    }

    /// The status of a subscription.
    pub(crate) async fn subscribe(&self, token: Option<&str>, topics: &[&str]) -> StatusCode {
        self.call(token, &json!({ "clientId": self.id, "subscriptions": topics })).await.status()
    }

    pub(crate) async fn call(&self, token: Option<&str>, body: &Value) -> reqwest::Response {
        let request = self.http.post(format!("{}/api/realtime", self.base)).json(body);
        let request = if let Some(token) = token { request.header("authorization", token) } else { request };
        request.send().await.unwrap()
    }

    fn all(&self) -> Vec<Event> {
        self.log.lock().unwrap().events.clone()
    }

    /// What came after the first event.
    pub(crate) fn events(&self) -> Vec<Event> {
        self.all().split_off(1)
    }

    /// The titles of the records of all events.
    pub(crate) fn titles(&self) -> Vec<String> {
        let title = |event: Event| event.data["record"]["title"].as_str().unwrap_or_default().to_owned();
        self.events().into_iter().map(title).collect()
    }

    /// Waits until an event with this title has come, and gives all titles up to then.
    pub(crate) async fn until(&self, title: &str) -> Vec<String> {
        eventually(&format!("the event {title} comes"), async || {
            assert!(!self.has_ended(), "the stream ended: {:?}", self.titles());
            let titles = self.titles();
            titles.iter().any(|one| one == title).then_some(titles)
        })
        .await
    }

    pub(crate) fn comments(&self) -> usize {
        self.log.lock().unwrap().comments
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.log.lock().unwrap().has_ended
    }

    /// Waits for the end, which has to be a clean one.
    pub(crate) async fn ended(&self) {
        eventually("the stream ends", async || self.has_ended().then_some(())).await;
        assert!(!self.log.lock().unwrap().was_broken, "broken off instead of ended");
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn read(answer: reqwest::Response, log: Arc<Mutex<Log>>) {
    let mut stream = answer.bytes_stream();
    let mut buffer = String::new();
    while let Some(chunk) = stream.next().await {
        let Ok(chunk) = chunk else {
            log.lock().unwrap().was_broken = true;
            break;
        };
        buffer.push_str(std::str::from_utf8(&chunk).unwrap());
        while let Some((block, rest)) = buffer.split_once("\n\n") {
            let mut log = log.lock().unwrap();
            if block.starts_with(':') {
                log.comments += 1;
            } else {
                let field = |name| block.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
                let data = serde_json::from_str(field("data:")).unwrap();
                log.events.push(Event { id: field("id:").to_owned(), name: field("event:").to_owned(), data });
            }
            drop(log);
            buffer = rest.to_owned();
        }
    }
    log.lock().unwrap().has_ended = true;
}
