//! The stock JavaScript SDK, unmodified: every way to sign in, and what goes by mail.

use crate::support::TestApp;
use crate::support::node::run_tests;
use crate::support::oidc::Oidc;
use crate::support::smtp::Smtp;

#[tokio::test(flavor = "multi_thread")]
async fn stock_sdk_signs_in_every_way_and_follows_its_mails() {
    let mails = tempfile::tempdir().unwrap();
    let (smtp, oidc) = (Smtp::copying_to(Some(mails.path().to_owned())).await, Oidc::start().await);
    oidc.person("sdk", "sdk@example.com");
    let keys = format!(
        "{}{}accounts.otp.enabled = true\naccounts.mfa.enabled = true\naccounts.mfa.rule = \"name = 'mfa'\"\n",
        smtp.keys(),
        oidc.keys()
    );
    let app = TestApp::with(&keys).await;
    app.configured().await;
    run_tests(&app, "accounts.test.mjs", vec![("MAIL_FOLDER", mails.path().to_owned())]).await;
}
