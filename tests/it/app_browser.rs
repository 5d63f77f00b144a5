//! The page in a real browser: from the first visit to a delivered meeting, against the stand-in of Fathom's API.

use std::collections::BTreeMap;
use std::path::Path;
use std::path::PathBuf;

use serde_json::Value;
use sha2::Digest;
use sha2::Sha256;

use crate::support::PATIENCE;
use crate::support::TestApp;
use crate::support::command;
use crate::support::eventually;
use crate::support::fathom::KEY;
use crate::support::fathom::Standin;
use crate::support::http;
use crate::support::root;
use crate::support::variable;

/// The sum of each recording, by its number: asked of the stand-in itself, past everything of ours.
async fn recordings(standin: &Standin) -> BTreeMap<String, String> {
    let http = http().timeout(PATIENCE).build().unwrap();
    let mut found = BTreeMap::new();
    for meeting in standin.meetings(KEY).await.iter().take(1) {
        let id = meeting["recording_id"].as_u64().unwrap();
        let bytes = media(&http, standin, id).await;
        let sum = Sha256::digest(&bytes).iter().fold(String::new(), |sum, byte| format!("{sum}{byte:02x}"));
        found.insert(id.to_string(), sum);
    }
    found
}

async fn media(http: &reqwest::Client, standin: &Standin, id: u64) -> Vec<u8> {
    let recording = format!("{}/recordings/{id}", standin.api());
    let asked = http.post(format!("{recording}/download")).header("X-Api-Key", KEY).send().await.unwrap();
    let asked: Value = asked.json().await.unwrap();
    let download = asked["download_id"].as_str().unwrap_or_else(|| panic!("{asked}")).to_owned();
    let url = eventually("the recording is prepared", async || {
        let path = format!("{recording}/downloads/{download}");
        let answer: Value = http.get(path).header("X-Api-Key", KEY).send().await.unwrap().json().await.unwrap();
        answer["video"]["url"].as_str().map(str::to_owned)
    })
    .await;
    http.get(url).send().await.unwrap().bytes().await.unwrap().to_vec()
}

#[tokio::test]
async fn a_person_with_a_browser_brings_meetings_to_where_they_should_be() {
    // As scripts/check and the script itself look for it.
    let chromium = variable("CHROMIUM").unwrap_or_else(|| "/usr/bin/chromium".to_owned());
    assert!(
        Path::new(&chromium).exists(),
        "{chromium} is missing: install chromium (Debian: apt-get install chromium), or name it in CHROMIUM"
    );
    let folder = root().join("tests/browser");
    assert!(
        folder.join("node_modules/playwright-core").is_dir(),
        "the browser's client is not installed: run `npm ci` in tests/browser (scripts/check does)"
    );
    let generous = ["--calls-per-minute", "6000", "--heavy-per-minute", "6000", "--downloads-per-minute", "6000"];
    let slow = ["--media-bytes", "3000000", "--media-rate", "1500000", "--download-polls", "1"];
    let standin = Standin::with(&[&generous[..], &slow[..]].concat()).await;
    let videos = recordings(&standin).await;
    let app = TestApp::prepare(&standin.keys());
    let archive = app.dir.path().join("archive");
    std::fs::create_dir(&archive).unwrap();
    app.add_keys(&format!(
        "delivery.folder = {archive:?}\ndelivery.poll_interval = \"100ms\"\nloom.oembed_url = \"\"\n\
         fathom.calls_per_minute = 6000\nfathom.heavy_calls_per_minute = 6000\nfathom.downloads_per_minute = 6000\n"
    ));
    let mut app = app;
    app.launch().await;
    let port = app.base.rsplit_once(':').unwrap().1.to_owned();
    let control = standin.base.clone();
    let run = tokio::task::spawn_blocking(move || {
        command("timeout")
            .args(["420", "node", "--test", "--test-reporter=spec", "app.test.mjs"])
            .current_dir(folder)
            .env("CHROMIUM", chromium)
            .env("POCKETFLEET_PORT", port)
            .env("STANDIN", control)
            .env("FATHOM_KEY", KEY)
            .env("LOOM_LINK", "https://www.loom.com/share/0123456789abcdef0123456789abcdef")
            .env("VIDEOS", serde_json::to_string(&videos).unwrap())
            .output()
            .unwrap()
    });
    let output = run.await.unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("fail 0"), "{text}");
    // What was delivered lies where it should.
    let delivered = walk(&archive);
    let videos = delivered.iter().filter(|path| path.extension().is_some_and(|extension| extension == "mp4"));
    assert!(videos.count() >= 4, "{delivered:?}");
}

/// The files below a folder.
fn walk(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(walk(&path));
        } else {
            found.push(path);
        }
    }
    found
}
