//! The stand-in for Fathom's API, as a process of its own, and its control calls.

use std::io::BufRead;
use std::io::BufReader;
use std::process::Child;
use std::process::Stdio;

use serde_json::Value;
use serde_json::json;

use super::command;
use super::http;

/// A running stand-in; ends with this value.
pub(crate) struct Standin {
    child: Child,
    /// `http://127.0.0.1:<port>`
    pub base: String,
    http: reqwest::Client,
}

/// The key that a stand-in has when nothing else is said.
pub(crate) const KEY: &str = "fathom-demo-key";

impl Standin {
    /// With 27 meetings for [`KEY`].
    pub(crate) async fn start() -> Self {
        Self::with(&[]).await
    }

    /// With arguments of the test's own.
    pub(crate) async fn with(arguments: &[&str]) -> Self {
        let mut child = command(env!("CARGO_BIN_EXE_fathom-standin"))
            .args(["--listen", "127.0.0.1:0", "--with-parent"])
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = child.stdout.take().unwrap();
        let line = tokio::task::spawn_blocking(move || {
            let mut line = String::new();
            BufReader::new(output).read_line(&mut line).map(|_| line)
        });
        let line = tokio::time::timeout(super::PATIENCE, line).await.unwrap().unwrap().unwrap();
        let base = line.trim().strip_prefix("fathom-standin listens on ").unwrap().to_owned();
        Self { child, base, http: http().timeout(super::PATIENCE).build().unwrap() }
    }

    /// The base URL of the API.
    pub(crate) fn api(&self) -> String {
        format!("{}/external/v1", self.base)
    }

    /// Configuration that makes a pocketfleet call this stand-in.
    pub(crate) fn keys(&self) -> String {
        format!(
            "fathom.base_url = \"{}\"\nfathom.media_hosts = [\"127.0.0.1\"]\noutbound.allow = [\"{}\"]\n",
            self.api(),
            self.base
        )
    }

    /// A call of the control API; null when it answers nothing.
    pub(crate) async fn control(&self, method: reqwest::Method, path: &str, body: Option<Value>) -> Value {
        let mut request = self.http.request(method, format!("{}/_control{path}", self.base));
        if let Some(body) = body {
            request = request.json(&body);
        }
        let response = request.send().await.unwrap();
        let status = response.status();
        let text = response.text().await.unwrap();
        assert!(status.is_success(), "{path}: {status} {text}");
        serde_json::from_str(&text).unwrap_or_default()
    }

    /// Makes a call fail, such as `{"path": "/meetings", "nth": 2, "kind": "malformed"}`.
    pub(crate) async fn fault(&self, fault: Value) {
        self.control(reqwest::Method::POST, "/faults", Some(fault)).await;
    }

    /// Changes limits, times or sizes.
    pub(crate) async fn settings(&self, changes: Value) {
        self.control(reqwest::Method::PATCH, "/settings", Some(changes)).await;
    }

    /// How often a call was made, such as `GET /meetings` or `GET /media`.
    pub(crate) async fn calls(&self, name: &str) -> u64 {
        let counts = self.control(reqwest::Method::GET, "/calls", None).await;
        counts["by_path"][name].as_u64().unwrap_or(0)
    }

    /// The whole meetings of a key, newest first.
    pub(crate) async fn meetings(&self, key: &str) -> Vec<Value> {
        let answer = self.control(reqwest::Method::GET, &format!("/meetings?key={key}"), None).await;
        answer["items"].as_array().unwrap().clone()
    }

    /// A meeting that just ended, with some fields of the test's own; `fire` calls the key's webhooks.
    pub(crate) async fn add_meeting(&self, key: &str, fields: Value, fire: bool) -> Value {
        let body = json!({ "key": key, "meeting": fields, "fire": fire });
        self.control(reqwest::Method::POST, "/meetings", Some(body)).await
    }

    /// Ends it as its parent's end would, and waits until it is gone.
    pub(crate) fn leave(mut self) -> std::process::ExitStatus {
        drop(self.child.stdin.take());
        self.child.wait().unwrap()
    }
}

impl Drop for Standin {
    fn drop(&mut self) {
        // An error says that it is gone already.
        drop(self.child.kill());
        assert!(self.child.wait().is_ok() || std::thread::panicking(), "the stand-in is still there");
    }
}
