//! A client with the stock JavaScript SDK in a process of its own, driven step by step.

use std::io::BufRead;
use std::io::BufReader;
use std::io::Write;
use std::process::Child;
use std::process::ChildStdin;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::Mutex;

use serde_json::Value;
use serde_json::json;

use super::TestApp;
use super::User;
use super::command;
use super::eventually;
use super::root;

/// The client; it ends when dropped.
pub(crate) struct Node {
    child: Child,
    input: ChildStdin,
    said: Arc<Mutex<Vec<Value>>>,
}

impl Node {
    /// A client whose base URL this is.
    pub(crate) fn start(base: &str) -> Self {
        let folder = root().join("tests/sdk");
        assert!(
            folder.join("node_modules/eventsource").is_dir(),
            "the SDK is not installed: run `npm ci` in tests/sdk"
        );
        let mut child = command("node")
            .arg("driven.mjs")
            .current_dir(folder)
            .env("POCKETFLEET_URL", base)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (input, output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let said: Arc<Mutex<Vec<Value>>> = Arc::default();
        let heard = Arc::clone(&said);
        // It ends with the process.
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                heard.lock().unwrap().push(serde_json::from_str(&line).unwrap());
            }
        });
        Self { child, input, said }
    }

    /// Signs in and subscribes to the notes.
    pub(crate) async fn listening(user: &User) -> Self {
        let mut node = Self::start(&user.base);
        node.run(json!({"name": "signIn", "email": user.email, "password": user.password})).await;
        node.run(json!({"name": "subscribe", "collection": "notes"})).await;
        node
    }

    /// Gives a command and waits until it is done.
    pub(crate) async fn run(&mut self, call: Value) {
        let name = call["name"].clone();
        writeln!(self.input, "{call}").unwrap();
        eventually(&format!("the SDK does {name}"), async || {
            let said = self.said();
            assert!(said.iter().all(|line| line["failed"].is_null()), "{said:?}");
            said.iter().any(|line| line["done"] == name).then_some(())
        })
        .await;
    }

    fn said(&self) -> Vec<Value> {
        self.said.lock().unwrap().clone()
    }

    /// How often its stream was opened since it subscribed.
    pub(crate) fn connects(&self) -> usize {
        self.said().iter().filter(|line| line["connected"] == true).count()
    }

    /// Titles of all events so far.
    pub(crate) fn titles(&self) -> Vec<String> {
        self.said().iter().filter_map(|line| line["title"].as_str().map(str::to_owned)).collect()
    }

    /// Waits for the event with this title, and gives all titles up to then.
    pub(crate) async fn until(&self, title: &str) -> Vec<String> {
        eventually(&format!("the SDK hears of {title}"), async || {
            let titles = self.titles();
            titles.iter().any(|one| one == title).then_some(titles)
        })
        .await
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs a file of node tests against an app, to its end and no longer than five minutes.
pub(crate) async fn run_tests(app: &TestApp, file: &'static str, more: Vec<(&'static str, std::path::PathBuf)>) {
    let folder = root().join("tests/sdk");
    for package in ["pocketbase", "eventsource"] {
        assert!(
            folder.join("node_modules").join(package).is_dir(),
            "the SDK is not installed: run `npm ci` in tests/sdk (scripts/check does)"
        );
    }
    let base = app.base.clone();
    let run = tokio::task::spawn_blocking(move || {
        command("timeout")
            .args(["300", "node", "--test", "--test-reporter=spec", file])
            .current_dir(folder)
            .env("POCKETFLEET_URL", base)
            .envs(more)
            .output()
            .unwrap()
    });
    let output = run.await.unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("fail 0"), "{text}");
}
