//! The stock JavaScript SDK, unmodified, against pocketfleet.

use crate::support::TestApp;
use crate::support::command;
use crate::support::root;

#[tokio::test(flavor = "multi_thread")]
async fn stock_sdk_finds_one_ordinary_pocketbase() {
    let folder = root().join("tests/sdk");
    assert!(
        folder.join("node_modules/pocketbase").is_dir(),
        "the SDK is not installed: run `npm ci` in tests/sdk (scripts/check does)"
    );
    let app = TestApp::start().await;
    let base = app.base.clone();
    let run = tokio::task::spawn_blocking(move || {
        command("node")
            .args(["--test", "--test-reporter=spec", "sdk.test.mjs"])
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
