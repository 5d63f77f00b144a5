//! The stock JavaScript SDK, unmodified: every way to sign in, and what goes by mail.

use crate::support::TestApp;
use crate::support::command;
use crate::support::oidc::Oidc;
use crate::support::root;
use crate::support::smtp::Smtp;

#[tokio::test(flavor = "multi_thread")]
async fn stock_sdk_signs_in_every_way_and_follows_its_mails() {
    let folder = root().join("tests/sdk");
    assert!(
        folder.join("node_modules/pocketbase").is_dir(),
        "the SDK is not installed: run `npm ci` in tests/sdk (scripts/check does)"
    );
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
    let (base, mails_at) = (app.base.clone(), mails.path().to_owned());
    let run = tokio::task::spawn_blocking(move || {
        command("timeout")
            .args(["300", "node", "--test", "--test-reporter=spec", "accounts.test.mjs"])
            .current_dir(folder)
            .env("POCKETFLEET_URL", base)
            .env("MAIL_FOLDER", mails_at)
            .output()
            .unwrap()
    });
    let output = run.await.unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("fail 0"), "{text}");
}
