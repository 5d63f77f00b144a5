//! Disaster: everything is lost but the backup and the master key.

use std::collections::BTreeMap;

use futures_util::StreamExt;
use futures_util::stream;
use reqwest::Method;
use serde_json::Value;
use serde_json::json;

use super::Bench;
use super::keys_of;
use super::note_with_file;
use crate::support::TestApp;
use crate::support::User;
use crate::support::eventually;
use crate::support::pocketfleet;

const TENANTS: usize = 50;

/// Everything that somebody has: records as they are answered, and the bytes of their files.
async fn belongings(user: &User) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    let list: Value = user.get("/api/collections/notes/records?perPage=500&sort=id").await.json().await.unwrap();
    for item in list["items"].as_array().unwrap_or_else(|| panic!("{list}")) {
        let id = item["id"].as_str().unwrap();
        found.insert(id.to_owned(), item.to_string().into_bytes());
        for name in item["attachments"].as_array().unwrap() {
            let path = format!("/api/files/notes/{id}/{}", name.as_str().unwrap());
            let answer = user.get(&path).await;
            assert_eq!(answer.status(), 200, "{path}");
            found.insert(path, answer.bytes().await.unwrap().to_vec());
        }
    }
    found
}

/// The same of everybody, a few at once.
async fn all_belongings(users: &[User]) -> BTreeMap<String, BTreeMap<String, Vec<u8>>> {
    stream::iter(users).map(|user| async move { (user.id.clone(), belongings(user).await) }).buffered(3).collect().await
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_tenants_come_back_from_a_backup_and_the_master_key() {
    let mut bench = Bench::start("instances.max_awake = 12\n").await;
    let users: Vec<User> = stream::iter(0..TENANTS)
        .map(|n| {
            let app = &bench.app;
            async move {
                let user = app.user(&format!("user{n}")).await;
                for at in 0..2 {
                    user.note(&format!("note {at} of {n}")).await;
                }
                note_with_file(&user, "with a file", b"the same of everybody").await;
                user
            }
        })
        .buffered(3)
        .collect()
        .await;
    let secret = json!({"service": "fathom", "secret": "sk-planted-in-the-vault", "verify": false});
    assert_eq!(users[0].request(Method::PUT, "/api/v1/vault").json(&secret).send().await.unwrap().status(), 201);
    let before = all_belongings(&users).await;
    let fleet = bench.app.cli_json(&["backup", "create", "--all"]);
    assert_eq!((&fleet["failed"], &fleet["taken"]), (&0.into(), &(TENANTS + 1).into()), "{fleet}");

    // All is lost but the store and the key.
    let key = std::fs::read(bench.app.data().join("vault.key")).unwrap();
    assert!(bench.app.terminate().success());
    std::fs::remove_dir_all(bench.app.data()).unwrap();

    let from = format!("dir:{}", bench.store.path().display());
    let restore = |data: &std::path::Path| {
        pocketfleet().args(["backup", "restore-fleet", "--json", "--from", &from, "--data"]).arg(data).output().unwrap()
    };
    let data = bench.app.data();
    let refused = |output: std::process::Output, says: &str| {
        assert!(!output.status.success());
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.contains(says), "{said}");
    };
    refused(restore(&data), "master key");
    std::fs::create_dir_all(&data).unwrap();
    let write_key = |bytes: &[u8]| {
        use std::os::unix::fs::PermissionsExt;
        std::fs::write(data.join("vault.key"), bytes).unwrap();
        std::fs::set_permissions(data.join("vault.key"), std::fs::Permissions::from_mode(0o600)).unwrap();
    };
    write_key(b"6LsCczqKoMfAIW22iKqaLB0cPJzd3PQjG7sS7ZjXURI=\n");
    refused(restore(&data), "the vault is sealed");
    let there: Vec<_> = std::fs::read_dir(&data).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(there, ["vault.key"], "nothing is written with a wrong key");
    write_key(&key);
    std::fs::write(data.join("other"), "x").unwrap();
    refused(restore(&data), "not empty");
    std::fs::remove_file(data.join("other")).unwrap();

    // A kill on the way is begun anew, and nothing is served from half a fleet.
    let killed = pocketfleet()
        .env("PF_FAILPOINT", "backup.fleet.assembled")
        .args(["backup", "restore-fleet", "--from", &from, "--data"])
        .arg(&data)
        .output()
        .unwrap();
    assert!(!killed.status.success());
    let served = pocketfleet().arg("serve").arg("--data").arg(&data).output().unwrap();
    assert!(String::from_utf8_lossy(&served.stderr).contains("interrupted"), "{served:?}");
    let output = restore(&data);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    let restored: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(restored["restored"], TENANTS + 1, "{restored}");
    assert_eq!((&restored["missing"], &restored["failed"]), (&json!([]), &json!([])));
    let noted = bench.app.data().join("instances").join(&users[0].id).join("pocketbase");
    assert_eq!(std::fs::read_to_string(noted).unwrap(), "0.40.6", "golden directories are not backed up");

    bench.app.launch().await;
    let users: Vec<User> = users.iter().map(|user| user.at(&bench.app)).collect();
    let after = all_belongings(&users).await;
    assert_eq!(before.len(), TENANTS);
    for (id, had) in &before {
        assert_eq!(had.len(), 4, "{id}");
        assert_eq!(&after[id], had, "{id}");
    }
    // Accounts, sessions and the vault came back as well, and everything can be written.
    bench.app.sign_in(&users[7].email, &users[7].password).await;
    let vault: Value = users[0].get("/api/v1/vault").await.json().await.unwrap();
    assert_eq!(vault["items"][0]["service"], "fathom", "{vault}");
    users[3].note("after").await;
    let again = bench.app.cli_json(&["backup", "create", &users[3].id]);
    assert!(again["new_bytes"].as_u64().unwrap() > 0, "{again}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restored_fleet_leaves_the_processes_of_the_one_that_still_runs_alone() {
    let bench = Bench::start("").await;
    let ada = bench.app.user("ada").await;
    ada.note("of the original").await;
    bench.app.cli_json(&["backup", "create", "--all"]);
    let pid = bench.app.tenant(&ada.id)["pid"].clone();
    assert!(pid.is_i64());

    let mut copy = TestApp::prepare(&keys_of(tempfile::tempdir().unwrap().path()).replace("backup.store", "#"));
    std::fs::create_dir(copy.data()).unwrap();
    assert!(
        crate::support::command("cp")
            .arg("-p")
            .arg(bench.app.data().join("vault.key"))
            .arg(copy.data())
            .status()
            .unwrap()
            .success()
    );
    let from = format!("dir:{}", bench.store.path().display());
    let output =
        pocketfleet().args(["backup", "restore-fleet", "--from", &from, "--data"]).arg(copy.data()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    copy.launch().await;
    let there = ada.at(&copy);
    there.note("of the copy").await;
    assert_eq!(there.titles().await, ["of the copy", "of the original"]);
    assert_eq!(ada.titles().await, ["of the original"]);
    assert_eq!(bench.app.tenant(&ada.id)["pid"], pid, "the original's process goes on");
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_rotation_the_new_key_opens_everything_and_deleted_tenants_stay_deleted() {
    let bench = Bench::start("").await;
    let (ada, bob) = (bench.app.user("ada").await, bench.app.user("bob").await);
    ada.note("hers").await;
    bob.note("his").await;
    let fleet = bench.app.cli_json(&["backup", "create", "--all"]);
    assert_eq!(fleet["failed"], 0, "{fleet}");
    assert!(bench.app.cli(&["tenants", "delete", &bob.id]).status.success());
    assert!(bench.app.cli(&["vault", "rotate-master"]).status.success());
    let status = eventually("the key is replaced", async || {
        let status = bench.app.cli_json(&["vault", "status"]);
        (status["rotation"]["phase"] == "settled").then_some(status)
    })
    .await;
    let master = status["keys"].as_array().unwrap().last().unwrap()["id"].as_str().unwrap().to_owned();
    let fleet = bench.app.cli_json(&["backup", "create", "--all"]);
    assert_eq!((&fleet["unchanged"], &fleet["failed"]), (&json!(1), &json!(0)), "{fleet}");
    // Of everybody, also of those of whom no snapshot was taken, and under no other key any more.
    for tenant in [ada.id.as_str(), &bob.id, "global", "control"] {
        let keys = bench.objects(&format!("keys/{tenant}/"));
        let name = |path: &std::path::PathBuf| path.file_name().unwrap().to_string_lossy().into_owned();
        assert!(keys.len() == 1 && name(&keys[0]).ends_with(&format!(".{master}")), "{tenant}: {keys:?}");
    }
    // What is public of the old one goes with the next prune: nothing is sealed by it any more.
    bench.app.cli_json(&["backup", "prune"]);
    let masters = bench.objects("masters/");
    assert!(masters.len() == 1 && masters[0].ends_with(&master), "{masters:?}");

    let mut copy = TestApp::prepare(&keys_of(tempfile::tempdir().unwrap().path()).replace("backup.store", "#"));
    std::fs::create_dir(copy.data()).unwrap();
    let key = bench.app.data().join("vault.key");
    assert!(crate::support::command("cp").arg("-p").arg(key).arg(copy.data()).status().unwrap().success());
    let from = format!("dir:{}", bench.store.path().display());
    let restore = |data: &std::path::Path, step: &str| {
        let mut command = pocketfleet();
        command.args(["backup", "restore-fleet", "--json", "--from", &from, "--data"]).arg(data);
        command.env("PF_FAILPOINT", step).output().unwrap()
    };
    // Killed when the instances are in place and the control database is not: it goes on, and needs nothing for that.
    assert!(!restore(&copy.data(), "backup.fleet.moved").status.success());
    assert!(copy.data().join("instances").exists() && !copy.data().join("control.db").exists());
    let served = pocketfleet().arg("serve").arg("--data").arg(copy.data()).output().unwrap();
    assert!(String::from_utf8_lossy(&served.stderr).contains("interrupted"), "{served:?}");
    let output = restore(&copy.data(), "");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let restored: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&restored["restored"], &restored["failed"]), (&json!(3), &json!([])), "{restored}");

    let of_bob = copy.data().join("instances").join(&bob.id);
    let aside = || std::fs::read_dir(copy.dir.path().join("data/deleted")).unwrap().count();
    assert!(!of_bob.exists() && aside() == 1, "where his tombstone looks for it");
    copy.launch().await;
    assert_eq!(ada.at(&copy).titles().await, ["hers"]);
    assert!(copy.cli(&["tenants", "undelete", &bob.id]).status.success());
    assert_eq!(copy.sign_in(&bob.email, &bob.password).await.titles().await, ["his"]);
    assert!(copy.cli(&["tenants", "delete", &bob.id, "--now"]).status.success());
    assert!(!of_bob.exists() && std::fs::read_dir(copy.data().join("deleted")).unwrap().count() == 0);
}
