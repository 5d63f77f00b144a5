//! What a hook can take without end, at each level, while everybody else goes on.

use reqwest::Method;
use serde_json::Value;
use serde_json::json;

use super::HOOK_PATH;
use super::levels;
use super::reached;
use super::start;
use super::table;
use crate::support::PATIENCE;
use crate::support::TestApp;
use crate::support::User;
use crate::support::command;
use crate::support::eventually;
use crate::support::pocketbase;

const KEYS: &str = "instances.data_bytes = 268435456\ninstances.nofile = 256\ninstances.log_bytes = 200000\n\
                    instances.probe_interval = \"300ms\"\ninstances.cpu_alarm = \"1s\"\n\
                    instances.stop_timeout = \"5s\"\ninstances.drain_timeout = \"5s\"\n";
/// More than a flood of the log may leave on the disk: four files, three of which may have twice the limit.
const LOGS: u64 = 2_000_000;

const FILES: &str = "open more files than `instances.nofile`";
const LOG: &str = "fill the disk with its log";
const MEMORY: &str = "take more memory than `instances.data_bytes`";
const PROCESSES: &str = "start more processes than `instances.nproc`";
const LOOP: &str = "loop for ever, unseen and unstoppable";

/// Each is bounded by itself too, for the sake of the machine that runs this.
const OPEN_FILES: &str =
    "const open = []; for (let n = 0; n < 1000; n++) open.push($os.openRoot('tmp')); return open.length";
const TAKE_MEMORY: &str =
    "const kept = []; for (let n = 0; n < 600; n++) kept.push('x'.repeat(1 << 20) + n); return kept.length";
const START: &str = "for (let n = 0; n < 80; n++) $os.cmd(at, '--version').start(); return 'started'";
const FLOOD: &str = "for (let n = 0; n < 40000; n++) console.log('x'.repeat(100)); return 'said'";
const SPIN: &str = "for (;;) {}";

struct Scene {
    app: TestApp,
    mallory: User,
    ada: User,
    pid: Value,
}

impl Scene {
    /// What a hook says at its end; it may take its instance along, and then says what the instance said last.
    async fn take(&self, code: &str) -> Result<String, String> {
        let before = self.said().len();
        let body = json!({ "code": code, "at": pocketbase().canonicalize().unwrap() });
        let asked = self.mallory.request(Method::POST, HOOK_PATH).json(&body).timeout(PATIENCE).send().await;
        let answer = async { asked.ok()?.json::<Value>().await.ok() }.await.unwrap_or_default();
        let value = answer["value"].as_str().map(str::to_owned);
        match (answer["worked"].as_bool(), value) {
            (Some(true), Some(value)) => Ok(value),
            (Some(false), Some(value)) => Err(value),
            // The gateway answered for an instance that is gone.
            _ => Err(self.said().split_off(before)),
        }
    }

    /// Whether it took all it wanted; where it did not, the limit and nothing else has to be what stopped it.
    async fn comes_through(&self, code: &str, all: &str, limit: &str) -> bool {
        match self.take(code).await {
            Ok(value) => {
                assert_eq!(value, all, "the hook did less than it should: {code}");
                true
            }
            Err(why) => {
                assert!(why.contains(limit), "not stopped by \"{limit}\", but: {why}\n{code}");
                false
            }
        }
    }

    /// What the greedy instance wrote.
    fn said(&self) -> String {
        let log = self.app.data().join("instances").join(&self.mallory.id).join("log/pocketbase.log");
        String::from_utf8_lossy(&std::fs::read(log).unwrap_or_default()).into_owned()
    }

    fn logs(&self) -> usize {
        std::fs::read_dir(self.app.data().join("instances").join(&self.mallory.id).join("log")).unwrap().count()
    }

    /// The neighbour did not notice, and the greedy one can be had again.
    async fn goes_on(&self, what: &str) {
        assert_eq!(self.ada.titles().await, ["here"], "{what}");
        assert_eq!(self.app.tenant(&self.ada.id)["pid"], self.pid, "{what}");
        self.app.cli(&["tenants", "sleep", &self.mallory.id]);
        eventually("the greedy one is back", async || {
            self.app.cli(&["tenants", "release", &self.mallory.id]);
            let answer = self.mallory.get("/api/collections/notes/records").await;
            (answer.status() == 200).then_some(())
        })
        .await;
    }

    fn log_bytes(&self) -> u64 {
        let folder = self.app.data().join("instances").join(&self.mallory.id).join("log");
        let files = std::fs::read_dir(folder).unwrap().flatten();
        files.filter_map(|file| file.metadata().ok()).map(|file| file.len()).sum()
    }

    /// An endless loop: told, the neighbour served meanwhile, and ended when an operator says so.
    async fn is_seen_and_stopped(&self) -> bool {
        let pid = self.app.tenant(&self.mallory.id)["pid"].to_string();
        // The tests beside this one come first.
        drop(command("renice").args(["-n", "5", "-p", &pid]).output());
        let body = json!({ "code": SPIN, "at": null });
        let patience = std::time::Duration::from_millis(300);
        drop(self.mallory.request(Method::POST, HOOK_PATH).json(&body).timeout(patience).send().await);
        eventually("the loop is told", async || {
            assert_eq!(self.ada.titles().await, ["here"]);
            let report: Value = self.app.get("/health/pb").await.json().await.unwrap();
            (report["burning"] == 1).then_some(())
        })
        .await;
        assert!(self.app.log().contains("an instance uses a whole core"));
        assert!(self.app.tenant(&self.mallory.id)["cpu_percent"].as_u64().is_some_and(|percent| percent > 50));
        self.app.cli(&["tenants", "sleep", &self.mallory.id]).status.success()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn greed_stays_with_the_greedy() {
    let mut found = table::Found::new(table::GREED);
    for level in levels() {
        // A limit of processes counts for a user: below level 2 that is whoever runs this, with everything else.
        let is_alone = level >= 2;
        let keys = if is_alone { format!("{KEYS}instances.nproc = 64\n") } else { KEYS.to_owned() };
        let mut app = start(level, &keys).await;
        assert_eq!(reached(&app).await, level);
        for expected in ["ended", "failed", "instance", "missed"] {
            app.expect_log(expected);
        }
        let (mallory, ada) = (app.user("mallory").await, app.user("ada").await);
        ada.note("here").await;
        mallory.note("here too").await;
        let pid = app.tenant(&ada.id)["pid"].clone();
        let scene = Scene { app, mallory, ada, pid };

        found.note(FILES, level, scene.comes_through(OPEN_FILES, "1000", "too many open files").await);
        scene.goes_on(FILES).await;
        assert_eq!(scene.take(FLOOD).await, Ok("said".to_owned()), "level {level}");
        // It wrote four million bytes, or the folder would have one file.
        eventually("the log is cut", async || (scene.log_bytes() < LOGS && scene.logs() > 1).then_some(())).await;
        found.note(LOG, level, false);
        scene.goes_on(LOG).await;
        found.note(MEMORY, level, scene.comes_through(TAKE_MEMORY, "600", "out of memory").await);
        scene.goes_on(MEMORY).await;
        found.row(PROCESSES);
        if is_alone {
            found.note(
                PROCESSES,
                level,
                scene.comes_through(START, "started", "resource temporarily unavailable").await,
            );
            scene.goes_on(PROCESSES).await;
        }
        found.note(LOOP, level, !scene.is_seen_and_stopped().await);
        scene.goes_on(LOOP).await;
    }
    found.compare_with_documentation();
}
