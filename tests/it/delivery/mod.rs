//! Deliveries from end to end: the stand-in for Fathom, a real `PocketBase`, and real servers that take the files.

mod crash;
mod faults;
mod kinds;
mod others;
mod routes;

use std::collections::BTreeMap;
use std::path::Path;
use std::path::PathBuf;

use reqwest::Method;
use serde_json::Value;
use serde_json::json;
use sha2::Digest;
use sha2::Sha256;

use crate::support::TestApp;
use crate::support::User;
use crate::support::eventually;
use crate::support::fathom::KEY;
use crate::support::fathom::Standin;

/// A user with a key of Fathom's, and everything they need.
pub(crate) struct Bench {
    pub standin: Standin,
    pub app: TestApp,
    pub user: User,
    /// The operator's folder for deliveries.
    pub folder: tempfile::TempDir,
}

pub(crate) fn sha256(bytes: &[u8]) -> String {
    crate::support::hex(&Sha256::digest(bytes))
}

impl Bench {
    /// `origins` may be called besides the stand-in's.
    pub(crate) async fn start(origins: &[&str], standin: &[&str], keys: &str) -> Self {
        let limits = ["--calls-per-minute", "--heavy-per-minute", "--downloads-per-minute"];
        let mut arguments: Vec<&str> = limits.iter().flat_map(|limit| [*limit, "100000"]).collect();
        arguments.extend(["--download-polls", "1"]);
        arguments.extend(standin);
        let standin = Standin::with(&arguments).await;
        let folder = tempfile::tempdir().unwrap();
        let allowed: Vec<&str> = origins.iter().copied().chain([standin.base.as_str()]).collect();
        let text = format!(
            "fathom.base_url = \"{}\"\nfathom.media_hosts = [\"127.0.0.1\"]\nfathom.calls_per_minute = 10000\n\
             fathom.heavy_calls_per_minute = 10000\nfathom.downloads_per_minute = 10000\noutbound.allow = {}\n\
             delivery.folder = \"{}\"\ndelivery.poll_interval = \"20ms\"\ndelivery.reserve_bytes = 0\n",
            standin.api(),
            json!(allowed),
            folder.path().display(),
        );
        let mut lines: Vec<&str> = text.lines().collect();
        let is_given = |line: &&str| {
            let key = line.split(" = ").next().unwrap();
            keys.lines().any(|given| given.starts_with(&format!("{key} =")))
        };
        lines.retain(|line| !is_given(line));
        let app = TestApp::with(&format!("{}\n{keys}", lines.join("\n"))).await;
        let user = app.user("ada").await;
        let bench = Self { standin, app, user, folder };
        bench.store_key("fathom", KEY, Value::Null).await;
        bench
    }

    pub(crate) async fn call(&self, method: Method, path: &str, body: Value) -> (u16, Value) {
        let mut request = self.user.request(method, path);
        if !body.is_null() {
            request = request.json(&body);
        }
        let answer = request.send().await.unwrap();
        let status = answer.status().as_u16();
        (status, serde_json::from_str(&answer.text().await.unwrap()).unwrap_or_default())
    }

    pub(crate) async fn get(&self, path: &str) -> Value {
        let (status, body) = self.call(Method::GET, path, Value::Null).await;
        assert_eq!(status, 200, "{path}: {body}");
        body
    }

    /// Stores a key and gives its id.
    pub(crate) async fn store_key(&self, service: &str, secret: &str, settings: Value) -> String {
        let settings = if settings.is_null() { json!({}) } else { settings };
        let body = json!({"service": service, "secret": secret, "settings": settings, "verify": false});
        let (status, item) = self.call(Method::PUT, "/api/v1/vault", body).await;
        assert!(matches!(status, 200 | 201), "{status} {item}");
        item["key_id"].as_str().unwrap().to_owned()
    }

    /// Makes a destination and gives its id.
    pub(crate) async fn destination(&self, kind: &str, settings: Value, vault_key: &str) -> String {
        let body = json!({"name": format!("My {kind}"), "kind": kind, "settings": settings, "vault_key": vault_key});
        let (status, item) = self.call(Method::POST, "/api/v1/destinations", body).await;
        assert_eq!(status, 201, "{item}");
        item["id"].as_str().unwrap().to_owned()
    }

    /// The recordings of the stand-in, newest first.
    pub(crate) async fn recordings(&self) -> Vec<u64> {
        let meetings = self.standin.meetings(KEY).await;
        meetings.iter().map(|meeting| meeting["recording_id"].as_u64().unwrap()).collect()
    }

    /// The video of a recording, straight from the stand-in.
    pub(crate) async fn video(&self, recording_id: u64) -> Vec<u8> {
        let ask = |method: Method, path: String| {
            self.app.http.request(method, format!("{}{path}", self.standin.api())).header("x-api-key", KEY)
        };
        let path = format!("/recordings/{recording_id}/download");
        let asked: Value = ask(Method::POST, path).send().await.unwrap().json().await.unwrap();
        let id = asked["download_id"].as_str().unwrap().to_owned();
        let url = eventually("the download is completed", async || {
            let path = format!("/recordings/{recording_id}/downloads/{id}");
            let found: Value = ask(Method::GET, path).send().await.unwrap().json().await.unwrap();
            found["video"]["url"].as_str().map(str::to_owned)
        })
        .await;
        self.app.http.get(url).send().await.unwrap().bytes().await.unwrap().to_vec()
    }

    /// Queues a delivery and gives the job's id.
    pub(crate) async fn order(&self, recording_id: u64, destination: &str) -> String {
        let body = json!({"recording_id": recording_id, "destination": destination});
        let (status, item) = self.call(Method::POST, "/api/v1/queue", body).await;
        assert!(matches!(status, 200 | 201), "{status} {item}");
        item["id"].as_str().unwrap().to_owned()
    }

    pub(crate) async fn job(&self, id: &str) -> Value {
        self.get(&format!("/api/v1/queue/{id}")).await
    }

    /// Waits until a job is in one of these states.
    pub(crate) async fn until(&self, id: &str, states: &[&str]) -> Value {
        eventually(&format!("the job is {states:?}"), async || {
            let job = self.job(id).await;
            let state = job["state"].as_str().unwrap();
            let is_over = ["done", "dead", "cancelled"].contains(&state) && !states.contains(&state);
            assert!(!is_over, "{job}");
            states.contains(&state).then_some(job)
        })
        .await
    }

    /// Delivers, and gives the result.
    pub(crate) async fn deliver(&self, recording_id: u64, destination: &str) -> Value {
        let id = self.order(recording_id, destination).await;
        self.until(&id, &["done"]).await["result"].clone()
    }

    /// The rows of a recording's deliveries, as their owner sees them.
    pub(crate) async fn rows(&self, recording_id: u64) -> Vec<Value> {
        let filter = format!("recording_id='{recording_id}'");
        let found = self.get(&format!("/api/collections/deliveries/records?filter={filter}")).await;
        found["items"].as_array().unwrap().clone()
    }

    /// Files below the operator's folder: path and bytes.
    pub(crate) fn in_folder(&self) -> BTreeMap<String, Vec<u8>> {
        let mut found = BTreeMap::new();
        let mut folders = vec![self.folder.path().to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path: PathBuf = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else {
                    let name = path.strip_prefix(self.folder.path()).unwrap().to_string_lossy().into_owned();
                    found.insert(name, std::fs::read(path).unwrap());
                }
            }
        }
        found
    }

    /// What lies staged.
    pub(crate) fn staged(&self) -> Vec<PathBuf> {
        let root: PathBuf = self.app.data().join("delivery");
        files_in(&root)
    }

    /// Waits until nothing lies staged.
    pub(crate) async fn nothing_staged(&self) {
        eventually("nothing is staged", async || self.staged().is_empty().then_some(())).await;
    }
}

fn files_in(folder: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(folder).map(|entries| entries.map(|entry| entry.unwrap().path()).collect()).unwrap_or_default()
}

/// The one delivery of a recording is noted as delivered.
pub(crate) async fn assert_delivered_once(bench: &Bench, recording_id: u64) {
    let rows = bench.rows(recording_id).await;
    assert_eq!(rows.len(), 1, "{rows:?}");
    assert_eq!((rows[0]["state"].as_str(), rows[0]["error"].as_str()), (Some("delivered"), Some("")), "{rows:?}");
}
