//! Putting a backup in the place of live data, with clients that listen and kills at every step.

use serde_json::Value;
use serde_json::json;

use super::Bench;
use super::note_with_file;
use crate::support::User;
use crate::support::eventually;
use crate::support::node::Node;
use crate::support::sse::Stream;

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_goes_back_in_time_and_signed_in_clients_go_on() {
    let bench = Bench::start("").await;
    let app = &bench.app;
    let (ada, bob) = (app.user("ada").await, app.user("bob").await);
    let file = note_with_file(&ada, "old", b"old file").await;
    bob.note("his").await;
    let epoch = |id: &str| app.tenant(id)["epoch"].as_u64().unwrap();
    let first = bench.create(&ada.id);
    ada.note("later").await;
    let between = time::OffsetDateTime::now_utc();
    bench.create(&ada.id);
    let before = epoch(&ada.id);
    let stream = Stream::subscribed(app, &ada, &["notes"]).await;
    let node = Node::listening(&ada).await;
    let connected = node.connects();
    let restored = app.cli_json(&["backup", "restore", &first, "--yes"]);
    assert_eq!((&restored["tenant"], &restored["id"]), (&json!(ada.id), &json!(first)));
    // Whoever listened connects anew, and reads anew.
    stream.ended().await;
    assert_eq!(ada.titles().await, ["old"], "with the token of before");
    assert_eq!(&ada.get(&file).await.bytes().await.unwrap()[..], b"old file");
    assert!(epoch(&ada.id) > before);
    assert_eq!(bob.titles().await, ["his"]);
    let stream = Stream::subscribed(app, &ada, &["notes"]).await;
    // The stock SDK does so by itself.
    eventually("the SDK connects anew", async || (node.connects() > connected).then_some(())).await;
    ada.note("after").await;
    stream.until("after").await;
    node.until("after").await;

    // What was replaced is kept, and by a time one gets there too.
    let kept = app.data().join("replaced").join(restored["kept"].as_str().unwrap());
    assert!(kept.join("pb_data/data.db").is_file());
    let at = between.format(&time::format_description::well_known::Rfc3339).unwrap();
    let by_time = app.cli_json(&["backup", "restore", "--tenant", &ada.id, "--at", &at, "--yes"]);
    assert_eq!(by_time["id"], json!(first), "the newest that is not after it");
    assert_eq!(ada.titles().await, ["old"]);

    for (args, says) in [
        (vec!["backup", "restore", "20260101T000000000-00000000", "--yes"], "no such backup"),
        (vec!["backup", "restore", "../../etc/passwd", "--yes"], "a backup's id looks like"),
        (vec!["backup", "restore", &first, "--tenant", &bob.id, "--yes"], "no such backup"),
        (vec!["backup", "restore", &first, "--to", "nobody", "--yes"], "not registered"),
        (vec!["backup", "restore", &first, "--to", "global", "--yes"], "restore-fleet"),
        (vec!["backup", "restore", "--tenant", &ada.id, "--at", "2001-01-01T00:00:00Z", "--yes"], "no such backup"),
        (vec!["backup", "restore", "--tenant", &ada.id, "--at", "yesterday", "--yes"], "a time looks like"),
        (vec!["backup", "restore", &first], "add --yes"),
        (vec!["backup", "create", "nobody"], "no such tenant"),
        (vec!["backup", "create", "../x"], "an identifier"),
    ] {
        let said = bench.refusal(&args);
        assert!(said.contains(says), "{args:?}: {said}");
    }
    app.cli_json(&["backup", "prune"]);
    assert!(kept.exists(), "not old enough to go");
    assert_eq!((ada.titles().await, bob.titles().await), (vec!["old".to_owned()], vec!["his".to_owned()]));
}

/// Kills pocketfleet at a step of a restore, starts it again, and gives what ada has then.
async fn killed_at(step: &'static str) -> Vec<String> {
    let mut bench = Bench::start("").await;
    bench.app.expect_log("stop a stray process");
    bench.app.expect_log("not adopted");
    let ada = bench.app.user("ada").await;
    ada.note("old").await;
    let id = bench.create(&ada.id);
    ada.note("new").await;
    assert!(bench.app.terminate().success());
    bench.app.arm(step);
    bench.app.launch().await;
    let ada = ada.at(&bench.app);
    if step != "backup.restore.staged" {
        // Once with a process that runs, once with one that sleeps.
        assert_eq!(ada.titles().await, ["new", "old"]);
    }
    let output = bench.app.cli(&["backup", "restore", &id, "--yes"]);
    assert!(!output.status.success(), "{step}: {output:?}");
    bench.app.kill();
    bench.app.launch().await;
    let ada = ada.at(&bench.app);
    let titles = ada.titles().await;
    // The job is done again, or finds that it was done.
    let job = eventually("the job of the restore ends", async || {
        let list = bench.app.cli_json(&["jobs", "list", "--kind", "backup_restore"]);
        let job = list["items"][0].clone();
        matches!(job["state"].as_str(), Some("done" | "dead" | "cancelled")).then_some(job)
    })
    .await;
    assert_eq!(job["state"], "done", "{step}: {job}");
    assert!(
        matches!(titles.iter().map(String::as_str).collect::<Vec<_>>()[..], ["old"] | ["new", "old"]),
        "{titles:?}"
    );
    whole(&bench, &ada).await;
    ada.titles().await
}

/// One directory is live, nothing half is left, and it takes writes.
async fn whole(bench: &Bench, ada: &User) {
    ada.note("after").await;
    let folder = bench.app.data().join("instances").join(&ada.id);
    assert!(folder.join("pb_data/data.db").is_file());
    assert!(!folder.join("restore").exists());
    let kept: Vec<_> = std::fs::read_dir(bench.app.data().join("replaced")).unwrap().collect();
    assert_eq!(kept.len(), 1, "put away once");
    let listed: Value = ada.get("/api/collections/notes/records").await.json().await.unwrap();
    assert_eq!(listed["totalItems"], 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_before_the_switch_is_made_up_for() {
    for step in ["backup.restore.tried", "backup.restore.staged"] {
        assert_eq!(killed_at(step).await, ["after", "old"], "{step}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_amid_the_switch_is_finished() {
    for step in ["backup.restore.noted", "backup.restore.away", "backup.restore.in"] {
        assert_eq!(killed_at(step).await, ["after", "old"], "{step}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_after_the_switch_does_not_restore_again() {
    for step in ["backup.restore.versioned", "backup.restore.done"] {
        assert_eq!(killed_at(step).await, ["after", "old"], "{step}");
    }
}
