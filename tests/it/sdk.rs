//! The stock JavaScript SDK, unmodified, against pocketfleet.

use crate::support::TestApp;
use crate::support::node::run_tests;

#[tokio::test(flavor = "multi_thread")]
async fn stock_sdk_finds_one_ordinary_pocketbase() {
    run_tests(&TestApp::start().await, "sdk.test.mjs", Vec::new()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn stock_sdk_keeps_its_subscriptions_while_the_instance_sleeps() {
    let app = TestApp::with("instances.idle_timeout = \"1s\"\n").await;
    run_tests(&app, "realtime.test.mjs", Vec::new()).await;
}
