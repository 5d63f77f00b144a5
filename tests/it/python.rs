//! The stock Python client, unmodified, against pocketfleet.

use crate::support::TestApp;
use crate::support::command;
use crate::support::root;

#[tokio::test(flavor = "multi_thread")]
async fn stock_python_client_finds_one_ordinary_pocketbase() {
    let folder = root().join("tests/python");
    assert!(
        folder.join(".packages/pocketbase").is_dir(),
        "the Python client is not installed: scripts/check says how (`python client`)"
    );
    let app = TestApp::with("instances.idle_timeout = \"1s\"\n").await;
    let base = app.base.clone();
    let run = tokio::task::spawn_blocking(move || {
        command("timeout")
            .args(["300", "python3", "client_test.py"])
            .current_dir(folder)
            .env("POCKETFLEET_URL", base)
            .output()
            .unwrap()
    });
    let output = run.await.unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    assert!(text.contains("Ran 4 tests") && !text.contains("skipped"), "{text}");
}
