//! Owners and their own backups, a bucket, and the schedule.

use reqwest::Method;
use serde_json::Value;
use serde_json::json;

use super::Bench;
use super::keys_of;
use super::note_with_file;
use crate::support::TestApp;
use crate::support::User;
use crate::support::command;
use crate::support::eventually;
use crate::support::sinks::BUCKET;
use crate::support::sinks::S3;
use crate::support::sinks::S3_ACCESS;
use crate::support::sinks::S3_SECRET;

async fn call(user: &User, method: Method, path: &str) -> (u16, Value) {
    let answer = user.request(method, path).send().await.unwrap();
    let status = answer.status().as_u16();
    (status, serde_json::from_str(&answer.text().await.unwrap()).unwrap_or_default())
}

/// Waits for a job that a call began.
async fn done(user: &User, answer: (u16, Value)) {
    assert_eq!(answer.0, 202, "{answer:?}");
    let path = format!("/api/v1/jobs/{}", answer.1["job"].as_str().unwrap());
    eventually("the job is done", async || {
        let (status, job) = call(user, Method::GET, &path).await;
        assert_eq!(status, 200, "{job}");
        assert!(!matches!(job["state"].as_str(), Some("dead" | "cancelled")), "{job}");
        (job["state"] == "done").then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn owners_take_download_and_go_back_and_nobody_else_does() {
    let bench = Bench::start("vault.reveal_max_age = \"1h\"\nbackup.requests_per_hour = 5\n").await;
    let (ada, bob) = (bench.app.user("ada").await, bench.app.user("bob").await);
    note_with_file(&ada, "old", b"of ada").await;
    bob.note("his").await;
    done(&ada, call(&ada, Method::POST, "/api/v1/backups").await).await;
    let (status, list) = call(&ada, Method::GET, "/api/v1/backups").await;
    assert_eq!((status, list["items"].as_array().unwrap().len()), (200, 1), "{list}");
    assert_eq!((&list["items"][0]["reason"], &list["items"][0]["missing"]), (&json!("owner"), &json!(0)));
    let id = list["items"][0]["id"].as_str().unwrap().to_owned();

    // Somebody else's is not there, whoever's name it is asked under.
    assert_eq!(call(&bob, Method::GET, "/api/v1/backups").await.1["items"], json!([]));
    for path in [format!("/api/v1/backups/{id}/download"), format!("/api/v1/backups/{id}/download?tenant={}", ada.id)] {
        assert_eq!(call(&bob, Method::GET, &path).await.0, 404, "{path}");
    }
    for path in [format!("/api/v1/backups/{id}/restore"), format!("/api/v1/backups/{id}/restore?tenant={}", ada.id)] {
        assert_eq!(call(&bob, Method::POST, &path).await.0, 404, "{path}");
    }
    for bad in ["x", "control", "20261121T133701042-0a1b2c3d"] {
        assert_eq!(call(&ada, Method::GET, &format!("/api/v1/backups/{bad}/download")).await.0, 404, "{bad}");
    }
    assert_eq!(call(&ada, Method::GET, "/api/v1/backups?tenant=global").await.0, 404);
    assert_eq!(call(&ada, Method::GET, "/api/v1/backups?tenants=x").await.0, 400);

    // The archive is a plain directory without anything of ours.
    let answer = ada.get(&format!("/api/v1/backups/{id}/download")).await;
    assert_eq!(
        (answer.status().as_u16(), &answer.headers()["content-type"]),
        (200, &"application/x-tar".parse().unwrap())
    );
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("a.tar"), answer.bytes().await.unwrap()).unwrap();
    let unpacked = command("tar").arg("-xf").arg("a.tar").current_dir(folder.path()).status().unwrap();
    assert!(unpacked.success());
    let data = folder.path().join("pb_data");
    let count = |sql: &str| -> i64 {
        let database = rusqlite::Connection::open(data.join("data.db")).unwrap();
        database.query_row(sql, [], |row| row.get(0)).unwrap()
    };
    assert_eq!(count("SELECT count(*) FROM _superusers"), 0);
    assert_eq!(count("SELECT count(*) FROM notes WHERE title = 'old'"), 1);
    let files = super::files_below(&data.join("storage"));
    assert!(files.iter().any(|path| std::fs::read(path).unwrap() == b"of ada"), "{files:?}");
    let live = bench.app.data().join("instances").join(&ada.id).join("pb_data/data.db");
    let key = |path: &std::path::Path| -> String {
        let database = rusqlite::Connection::open(path).unwrap();
        database.query_row("SELECT tokenKey FROM users", [], |row| row.get(0)).unwrap()
    };
    let ours = key(&live);
    assert_ne!(key(&data.join("data.db")), ours);
    let bytes = std::fs::read(data.join("data.db")).unwrap();
    for planted in [ours.as_bytes(), b"control@pocketfleet.invalid"] {
        assert!(!bytes.windows(planted.len()).any(|part| part == planted), "something of ours is left");
    }

    // Operators write the same to a file, whole or not at all, and over no other.
    let file = folder.path().join("b.tar");
    let named = file.to_str().unwrap();
    let wrote = bench.app.cli_json(&["backup", "export", &id, "--to", named]);
    assert_eq!(wrote["bytes"], std::fs::metadata(&file).unwrap().len(), "{wrote}");
    assert_eq!(std::os::unix::fs::MetadataExt::mode(&std::fs::metadata(&file).unwrap()) & 0o777, 0o600);
    let listed = command("tar").arg("-tf").arg(&file).output().unwrap();
    assert!(listed.status.success() && String::from_utf8_lossy(&listed.stdout).contains("pb_data/data.db"));
    assert!(!bench.app.cli(&["backup", "export", &id, "--to", named]).status.success(), "it is there already");
    assert_eq!(wrote["bytes"], std::fs::metadata(&file).unwrap().len());
    let absent = folder.path().join("c.tar");
    let of_bob = ["backup", "export", &id, "--tenant", &bob.id, "--to", absent.to_str().unwrap()];
    assert!(!bench.app.cli(&of_bob).status.success() && !absent.exists(), "he has no such backup");

    ada.note("new").await;
    done(&ada, call(&ada, Method::POST, &format!("/api/v1/backups/{id}/restore")).await).await;
    assert_eq!(ada.titles().await, ["old"]);
    assert_eq!(bob.titles().await, ["his"]);
    // One taken, one that is not there, one downloaded, one restored; the fifth is the last of this hour.
    assert_eq!(call(&ada, Method::POST, "/api/v1/backups").await.0, 202);
    let (status, refused) = call(&ada, Method::POST, "/api/v1/backups").await;
    assert_eq!((status, &refused["error"]["code"]), (429, &json!("RATE_LIMITED")), "{refused}");
    assert_eq!(call(&bob, Method::POST, "/api/v1/backups").await.0, 202);
    // Lists are counted as well, on their own.
    let (mut listed, mut status) = (0, 200);
    while status == 200 && listed < 200 {
        status = call(&bob, Method::GET, "/api/v1/backups").await.0;
        listed += 1;
    }
    assert_eq!(status, 429, "{listed}");
    assert_eq!(call(&ada, Method::GET, "/api/v1/backups").await.0, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_workspaces_backups_are_its_owners() {
    let bench = Bench::start("vault.reveal_max_age = \"1h\"\n").await;
    let (ada, bob) = (bench.app.user("ada").await, bench.app.user("bob").await);
    assert_eq!(ada.post("/api/v1/tenants", json!({"name": "Team", "slug": "team"})).await.status(), 201);
    let invited: Value =
        ada.post("/api/v1/tenants/team/invitations", json!({"role": "admin"})).await.json().await.unwrap();
    let accepted = bob.post("/api/v1/invitations/accept", json!({"token": invited["token"]})).await;
    assert_eq!(accepted.status(), 200);
    let there = User { base: format!("{}/t/team", ada.base), ..ada.clone() };
    let note = async |title: &str| {
        let body = json!({"title": title, "author": ada.id});
        let answer = there.post("/api/collections/notes/records", body).await;
        assert_eq!(answer.status(), 200, "{}", answer.text().await.unwrap());
    };
    note("old").await;
    // Its other members, admins too, have nothing to do with them.
    assert_eq!(call(&bob, Method::POST, "/api/v1/backups?tenant=team").await.0, 403);
    done(&ada, call(&ada, Method::POST, "/api/v1/backups?tenant=team").await).await;
    assert_eq!(call(&ada, Method::GET, "/api/v1/backups").await.1["items"], json!([]), "her own has none");
    let (_, list) = call(&ada, Method::GET, "/api/v1/backups?tenant=team").await;
    let id = list["items"][0]["id"].as_str().unwrap();
    for (method, part) in [(Method::GET, "download"), (Method::POST, "restore")] {
        assert_eq!(call(&bob, method, &format!("/api/v1/backups/{id}/{part}?tenant=team")).await.0, 403, "{part}");
    }
    note("new").await;
    done(&ada, call(&ada, Method::POST, &format!("/api/v1/backups/{id}/restore?tenant=team")).await).await;
    assert_eq!(there.titles().await, ["old"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_needs_a_sign_in_of_the_last_minutes_and_a_place() {
    let bench = Bench::start("vault.reveal_max_age = \"1s\"\n").await;
    let ada = bench.app.user("ada").await;
    ada.note("old").await;
    let id = bench.create(&ada.id);
    let refused = eventually("the sign-in is old", async || {
        let answer = call(&ada, Method::POST, &format!("/api/v1/backups/{id}/restore")).await;
        (answer.0 != 202).then_some(answer)
    })
    .await;
    assert_eq!((refused.0, &refused.1["error"]["code"]), (403, &json!("SIGN_IN_AGAIN")), "{refused:?}");

    let app = TestApp::start().await;
    let bob = app.user("bob").await;
    let (status, refused) = call(&bob, Method::POST, "/api/v1/backups").await;
    assert_eq!((status, &refused["error"]["code"]), (501, &json!("BACKUPS_OFF")), "{refused}");
    let output = app.cli(&["backup", "create", "--all"]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("backup.store"), "{output:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_does_as_well() {
    let s3 = S3::start().await;
    let mut app = TestApp::prepare(&format!(
        "backup.store = \"s3:{BUCKET}/fleet/one\"\nbackup.s3_endpoint = \"{}\"\nbackup.s3_access_key_id = \"{S3_ACCESS}\"\n\
         backup.s3_secret_key = \"{S3_SECRET}\"\nbackup.schedule = \"\"\nbackup.grace = \"0s\"\n",
        s3.base
    ));
    app.launch().await;
    let ada = app.user("ada").await;
    let file = note_with_file(&ada, "old", vec![5; 200_000]).await;
    let fleet = app.cli_json(&["backup", "create", "--all"]);
    assert_eq!(fleet["failed"], 0, "{fleet}");
    let objects = s3.objects("fleet/one").await;
    assert!(objects.keys().any(|key| key.starts_with("fleet/one/snapshots/control/")), "{:?}", objects.keys());
    assert!(objects.values().all(|bytes| !bytes.windows(64).any(|part| part == [5; 64])));
    let again = app.cli_json(&["backup", "create", &ada.id]);
    assert_eq!(again["new_bytes"], 0, "{again}");
    ada.note("new").await;
    app.cli_json(&["backup", "verify", "--all"]);
    app.cli_json(&["backup", "restore", again["id"].as_str().unwrap(), "--tenant", &ada.id, "--yes"]);
    assert_eq!(ada.titles().await, ["old"]);
    assert_eq!(ada.get(&file).await.bytes().await.unwrap().len(), 200_000);
    let pruned = app.cli_json(&["backup", "prune"]);
    assert_eq!((&pruned["snapshots"], &pruned["unreadable"]), (&json!(1), &json!(0)), "{pruned}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_schedule_follows_the_configuration() {
    let store = tempfile::tempdir().unwrap();
    let keys = keys_of(store.path()).replace("backup.schedule = \"\"", "backup.schedule = \"* * * * *\"");
    let app = TestApp::with(&keys).await;
    let ada = app.user("ada").await;
    ada.note("old").await;
    eventually("the minute comes", async || {
        let jobs = app.cli_json(&["jobs", "list", "--kind", "backup_fleet"]);
        jobs["items"].as_array().unwrap().iter().any(|job| job["state"] == "done").then_some(())
    })
    .await;
    let list = app.cli_json(&["backup", "list", "global"]);
    assert_eq!(list["items"][0]["reason"], "schedule", "{list}");
    assert_eq!(call(&ada, Method::GET, "/api/v1/jobs").await.1["items"], json!([]), "nobody's jobs but the operator's");
}

#[tokio::test(flavor = "multi_thread")]
async fn backups_of_an_erased_tenant_are_gone_with_it() {
    let bench = Bench::start("").await;
    let (ada, bob) = (bench.app.user("ada").await, bench.app.user("bob").await);
    for user in [&ada, &bob] {
        note_with_file(user, "kept", b"bytes").await;
        bench.create(&user.id);
    }
    bench.create("control");
    let before = bench.objects(&ada.id);
    assert!(before.len() >= 3, "a key, a snapshot, chunks");
    let snapshot = bench.list(&ada.id)[0]["id"].as_str().unwrap().to_owned();
    // Somebody keeps a copy of everything but what opens it.
    let kept: Vec<_> = before.iter().filter(|path| !path.components().any(|part| part.as_os_str() == "keys")).collect();
    assert!(kept.len() + 1 == before.len());
    let kept: Vec<_> = kept.into_iter().map(|path| (path, std::fs::read(path).unwrap())).collect();
    let erased = bench.app.cli(&["tenants", "delete", &ada.id, "--now"]);
    assert!(erased.status.success(), "{}", String::from_utf8_lossy(&erased.stderr));
    assert_eq!(bench.objects(&ada.id), [] as [std::path::PathBuf; 0]);
    let list = bench.list(&bob.id);
    bench.app.cli_json(&["backup", "verify", list[0]["id"].as_str().unwrap(), "--tenant", &bob.id]);

    // The copy stays sealed for whoever has the master key and the control database of before.
    for (path, content) in kept {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }
    let refusal = bench.refusal(&["backup", "verify", &snapshot, "--tenant", &ada.id]);
    assert!(refusal.contains("cannot be opened"), "{refusal}");
}
