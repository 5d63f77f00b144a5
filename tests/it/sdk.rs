//! The stock JavaScript SDK, unmodified, against pocketfleet.

use crate::support::TestApp;
use crate::support::command;
use crate::support::root;

#[tokio::test(flavor = "multi_thread")]
async fn stock_sdk_finds_one_ordinary_pocketbase() {
    run(&TestApp::start().await, "sdk.test.mjs").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn stock_sdk_keeps_its_subscriptions_while_the_instance_sleeps() {
    run(&TestApp::with("instances.idle_timeout = \"1s\"\n").await, "realtime.test.mjs").await;
}

async fn run(app: &TestApp, file: &'static str) {
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
            .output()
            .unwrap()
    });
    let output = run.await.unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("fail 0"), "{text}");
}
