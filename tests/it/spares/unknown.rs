//! Registrations of which nobody knows how they ended, and a disk without room.

use super::account;
use super::folders;
use super::full;
use super::sign_up;
use super::signed_in;
use super::tenants;
use crate::support::TestApp;
use crate::support::command;
use crate::support::eventually;
use crate::support::pause;
use crate::support::root;

/// The global instance dies before an account is made, or when it is made and nobody was told.
const DEATHS: &str = r#"
onRecordCreateRequest((e) => {
  if (e.record.getString("name") === "before") { $os.exit(1) }
  e.next()
}, "users")
onRecordAfterCreateSuccess((e) => {
  if (e.record.getString("name") === "after") { $os.exit(1) }
  e.next()
}, "users")
"#;

/// What is written into an instance is the same after a restart on another port.
const KEYS: &str = "server.public_url = \"https://fleet.example.com\"\ninstances.spares = 1\n";

fn the_spare(app: &TestApp, tenants: &[&str]) -> String {
    let mut left: Vec<String> = folders(app).into_iter().filter(|name| !tenants.contains(&name.as_str())).collect();
    assert_eq!(left.len(), 1, "{left:?}");
    left.remove(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registration_whose_answer_is_lost_leaves_its_id_to_its_account_or_to_nobody() {
    let copy = tempfile::tempdir().unwrap();
    let from = [root().join("pb_templates/global"), root().join("pb_templates/personal")];
    assert!(command("cp").arg("-r").args(from).arg(copy.path()).status().unwrap().success());
    std::fs::create_dir(copy.path().join("global/pb_hooks")).unwrap();
    std::fs::write(copy.path().join("global/pb_hooks/deaths.pb.js"), DEATHS).unwrap();
    let mut app = TestApp::with(&format!("{KEYS}pocketbase.templates = \"{}\"\n", copy.path().display())).await;
    for expected in ["instance failed", "50", "accounts"] {
        app.expect_log(expected);
    }
    full(&app, 1).await;

    // The account is there: it has its instance, once somebody looked.
    let lost = the_spare(&app, &[]);
    let (status, said) = sign_up(&app, &account("after")).await;
    assert!(status.is_server_error(), "{status} {said}");
    eventually("the spare is its account's", async || (tenants(&app) == 1).then_some(())).await;
    let after = signed_in(&app, "after").await;
    assert_eq!(after.id, lost);
    after.note("mine").await;

    // It is not there: nobody else gets the id while that is not certain, and it is not lost.
    full(&app, 1).await;
    let doubted = the_spare(&app, &[&after.id]);
    let (status, said) = sign_up(&app, &account("before")).await;
    assert!(status.is_server_error(), "{status} {said}");
    let ada = eventually("the global instance is back", async || {
        let (status, said) = sign_up(&app, &account("ada")).await;
        status.is_success().then(|| said["id"].as_str().unwrap().to_owned())
    })
    .await;
    assert_ne!(ada, doubted);
    assert!(app.terminate().success());
    app.launch().await;
    full(&app, 1).await;
    let ada = signed_in(&app, "ada").await;
    ada.note("hers").await;
    assert_eq!(the_spare(&app, &[&after.id, &ada.id]), doubted);
    let bob = app.user("bob").await;
    assert_eq!(bob.id, doubted);
    assert_eq!(bob.titles().await, [""; 0]);
    assert_eq!(after.at(&app).titles().await, ["mine"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_spare_is_made_while_the_disk_is_down_to_its_reserve() {
    let mut app = TestApp::with(KEYS).await;
    full(&app, 1).await;
    let before = folders(&app);
    assert!(app.terminate().success());
    app.change_key("instances.spares = 1", "instances.spares = 3");
    app.add_keys("quota.reserve = 1125899906842624\n");
    app.expect_log("the disk is down to its reserve");
    app.launch().await;
    eventually("it is noticed", async || app.log().contains("the disk is down to its reserve").then_some(())).await;
    eventually("accounts get spares", async || {
        app.log().rsplit("listening").next().unwrap().contains("accounts are configured anew").then_some(())
    })
    .await;
    // Longer than the keeper rests.
    for _ in 0..100 {
        assert_eq!(folders(&app), before);
        pause().await;
    }
}
