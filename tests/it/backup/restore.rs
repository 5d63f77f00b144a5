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

    // As somebody else's data it has secrets of its own, or either would take tokens of the other.
    let secret = |id: &str| -> String {
        let path = app.data().join("instances").join(id).join("pb_data/data.db");
        let query = "SELECT json_extract(options, '$.authToken.secret') FROM _collections WHERE name = 'users'";
        rusqlite::Connection::open(path).unwrap().query_row(query, [], |row| row.get(0)).unwrap()
    };
    let newest = bench.create(&ada.id);
    app.cli_json(&["backup", "restore", &newest, "--to", &bob.id, "--yes"]);
    bob.note("goes on").await;
    assert_ne!(secret(&ada.id), secret(&bob.id));
    assert_eq!(ada.titles().await, ["old"]);
    bench.create("global");
    let said = bench.refusal(&["backup", "restore", "--tenant", "global", "--to", &bob.id, "--yes"]);
    assert!(said.contains("restore-fleet"), "the accounts are nobody's data: {said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_restored_beside_a_tombstone_and_an_erasure_takes_what_restores_put_away() {
    let bench = Bench::start("").await;
    let app = &bench.app;
    let ada = app.user("ada").await;
    ada.note("old").await;
    let id = bench.create(&ada.id);
    ada.note("new").await;
    let kept = app.cli_json(&["backup", "restore", &id, "--yes"])["kept"].as_str().unwrap().to_owned();
    assert!(app.data().join("replaced").join(&kept).exists());
    assert!(app.cli(&["tenants", "delete", &ada.id]).status.success());
    let said = bench.refusal(&["backup", "restore", &id, "--tenant", &ada.id, "--yes"]);
    assert!(said.contains("deleted"), "{said}");
    assert!(bench.refusal(&["backup", "create", &ada.id]).contains("deleted"));
    let fleet = app.cli_json(&["backup", "create", "--all"]);
    assert_eq!((&fleet["failed"], &fleet["without_data"]), (&json!(0), &json!(1)), "{fleet}");
    let instance = app.data().join("instances").join(&ada.id);
    assert!(!instance.exists());
    assert!(app.cli(&["tenants", "undelete", &ada.id]).status.success());
    let ada = app.sign_in(&ada.email, &ada.password).await;
    assert_eq!(ada.titles().await, ["old"]);

    // What an earlier version restored beside the tombstone goes with the rest.
    assert!(app.cli(&["tenants", "delete", &ada.id]).status.success());
    std::fs::create_dir_all(instance.join("pb_data")).unwrap();
    std::fs::write(instance.join("pb_data/data.db"), "restored beside it").unwrap();
    let erased = app.cli(&["tenants", "delete", &ada.id, "--now"]);
    assert!(erased.status.success(), "{}", String::from_utf8_lossy(&erased.stderr));
    assert!(!instance.exists() && !app.data().join("replaced").join(&kept).exists());
    assert_eq!(std::fs::read_dir(app.data().join("deleted")).unwrap().count(), 0);
    assert_eq!(bench.objects(&ada.id), [] as [std::path::PathBuf; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_that_is_called_off_while_the_instance_drains_changes_nothing() {
    let bench = Bench::start("instances.drain_timeout = \"60s\"\n").await;
    let app = &bench.app;
    let ada = app.user("ada").await;
    ada.note("old").await;
    let id = bench.create(&ada.id);
    ada.note("new").await;
    // A request that does not end keeps it from stopping.
    let (body, chunks) = tokio::sync::mpsc::channel::<Vec<u8>>(1);
    let chunks = futures_util::stream::unfold(chunks, |mut chunks| async move {
        Some((Ok::<_, std::io::Error>(chunks.recv().await?), chunks))
    });
    let slow = {
        let request = ada.request(reqwest::Method::POST, "/api/collections/notes/records");
        let request = request.header("content-type", "application/json").body(reqwest::Body::wrap_stream(chunks));
        tokio::spawn(async move { request.send().await.unwrap().status().as_u16() })
    };
    body.send(b"{\"title\": \"last\", \"author\": ".to_vec()).await.unwrap();
    eventually("it is under way", async || (app.tenant(&ada.id)["in_flight"] == 1).then_some(())).await;
    let asked = ada.post(&format!("/api/v1/backups/{id}/restore"), json!({})).await;
    assert_eq!(asked.status(), 202);
    let job = asked.json::<Value>().await.unwrap()["job"].as_str().unwrap().to_owned();
    eventually("it drains", async || (super::state(app, &ada.id) == "draining").then_some(())).await;
    assert!(app.cli(&["jobs", "cancel", &job]).status.success());
    eventually("the job is called off", async || {
        (app.cli_json(&["jobs", "show", &job])["state"] == "cancelled").then_some(())
    })
    .await;
    body.send(format!("\"{}\"}}", ada.id).into_bytes()).await.unwrap();
    drop(body);
    assert_eq!(slow.await.unwrap(), 200, "it is let finish");
    eventually("it stopped", async || (super::state(app, &ada.id) == "asleep").then_some(())).await;
    let folder = app.data().join("instances").join(&ada.id);
    assert!(!folder.join("restore").exists() && !app.data().join("replaced").exists());
    assert_eq!(ada.titles().await, ["last", "new", "old"]);
    // And another one goes through.
    app.cli_json(&["backup", "restore", &id, "--yes"]);
    assert_eq!(ada.titles().await, ["old"]);
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

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_amid_an_interrupted_roll_back_is_not_rolled_back() {
    let bench = Bench::start("").await;
    let app = &bench.app;
    let ada = app.user("ada").await;
    ada.note("backed up").await;
    let id = bench.create(&ada.id);
    ada.note("later").await;
    app.put_to_sleep(&ada.id);
    // Killed between the two renames: the failed data is aside, and the copy not in its place yet.
    let folder = app.data().join("instances").join(&ada.id);
    let version = std::fs::read_to_string(folder.join("template")).unwrap();
    std::fs::create_dir_all(folder.join("upgrade/failed")).unwrap();
    let step = json!({ "from": version, "to": "0".repeat(64) });
    std::fs::write(folder.join("upgrade/state.json"), step.to_string()).unwrap();
    std::fs::rename(folder.join("pb_data"), folder.join("upgrade/pb_data")).unwrap();

    let restored = app.cli_json(&["backup", "restore", &id, "--yes"]);
    assert_eq!(ada.titles().await, ["backed up"], "after a start");
    let kept = app.data().join("replaced").join(restored["kept"].as_str().unwrap());
    assert!(kept.join("pb_data/data.db").is_file(), "what the roll-back put back is kept");
    assert!(!folder.join("upgrade").exists());
}
