//! What is in the store, and what happens when it is not what was put there.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::Bench;
use super::files_below;
use super::keys_of;
use super::note_with_file;
use crate::support::TestApp;
use crate::support::command;

const PLANTED: &[u8] = b"PLANTED-PLAINTEXT-0123456789-PLANTED-PLAINTEXT";

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_readable_in_the_store_and_every_change_is_noticed() {
    let bench = Bench::start("").await;
    let (ada, bob) = (bench.app.user("ada").await, bench.app.user("bob").await);
    for user in [&ada, &bob] {
        user.note("PLANTED-PLAINTEXT of a record").await;
        note_with_file(user, "file", PLANTED).await;
    }
    let fleet = bench.app.cli_json(&["backup", "create", "--all"]);
    assert_eq!(fleet["failed"], 0, "{fleet}");
    let master = std::fs::read(bench.app.data().join("vault.key")).unwrap();
    let raw = STANDARD.decode(String::from_utf8_lossy(&master).trim()).unwrap();
    assert_eq!(raw.len(), 32);
    let all = files_below(bench.store.path());
    assert!(all.len() > 15, "{all:?}");
    for path in &all {
        let bytes = std::fs::read(path).unwrap();
        for needle in [&b"PLANTED-PLAINTEXT"[..], &master[..40], &raw, b"SQLite format"] {
            assert!(!bytes.windows(needle.len()).any(|part| part == needle), "{}", path.display());
        }
    }
    // Equal files of two tenants have different names and different contents.
    let names = |tenant: &str| -> Vec<String> {
        bench
            .objects(&format!("chunks/{tenant}"))
            .iter()
            .map(|path| path.file_name().unwrap().to_string_lossy().into())
            .collect()
    };
    assert!(names(&ada.id).iter().all(|name| !names(&bob.id).contains(name)));

    let id = bench.list(&ada.id)[0]["id"].as_str().unwrap().to_owned();
    let verify = |says: &str| {
        let said = bench.refusal(&["backup", "verify", &id, "--tenant", &ada.id]);
        assert!(said.contains(says), "{said}");
    };
    let chunks = bench.objects(&format!("chunks/{}", ada.id));
    let manifest = bench.objects(&format!("snapshots/{}", ada.id)).remove(0);
    for (path, says) in chunks.iter().map(|path| (path, "chunk")).chain([(&manifest, "manifest")]) {
        let original = std::fs::read(path).unwrap();
        let mut flipped = original.clone();
        let at = original.len() / 2;
        flipped[at] ^= 0x10;
        let replace = |bytes: &[u8]| std::fs::write(path, bytes).unwrap();
        replace(&flipped);
        verify(says);
        replace(&original[..original.len() - 1]);
        verify(says);
        replace(b"");
        verify(says);
        replace(&original);
    }
    let gone = std::fs::read(&chunks[0]).unwrap();
    std::fs::remove_file(&chunks[0]).unwrap();
    verify("missing");
    // Another tenant's chunk, and another of the same tenant, under its name.
    let foreign = bench.objects(&format!("chunks/{}", bob.id));
    for other in [&foreign[0], &chunks[1]] {
        std::fs::copy(other, &chunks[0]).unwrap();
        verify("changed");
    }
    std::fs::write(&chunks[0], gone).unwrap();
    // Another tenant's manifest under this tenant's name.
    let original = std::fs::read(&manifest).unwrap();
    let foreign = bench.objects(&format!("snapshots/{}", bob.id)).remove(0);
    std::fs::copy(foreign, &manifest).unwrap();
    let said = bench.refusal(&["backup", "verify", &id, "--tenant", &ada.id]);
    assert!(said.contains("cannot be opened") || said.contains("changed"), "{said}");
    std::fs::write(&manifest, original).unwrap();
    bench.app.cli_json(&["backup", "verify", &id]);

    // A damaged one is not restored, and nothing is touched.
    // That of her file: the databases' are others as soon as something was logged.
    let damaged = chunks.iter().min_by_key(|path| std::fs::metadata(path).unwrap().len()).unwrap();
    std::fs::write(damaged, b"damage").unwrap();
    assert!(bench.refusal(&["backup", "restore", &id, "--tenant", &ada.id, "--yes"]).contains("damaged"));
    assert_eq!(ada.titles().await.len(), 2);
    assert!(!bench.app.data().join("replaced").exists());

    // Found to be damaged, it is written anew by the next backup, and what names it can be read again.
    let before = bench.create(&ada.id);
    assert_ne!(std::fs::read(damaged).unwrap(), b"damage");
    for id in [&before, &id] {
        bench.app.cli_json(&["backup", "verify", id, "--tenant", &ada.id]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_that_was_found_is_made_good_by_the_next_backup_also_after_a_kill() {
    let mut bench = Bench::start("").await;
    let ada = bench.app.user("ada").await;
    note_with_file(&ada, "file", PLANTED).await;
    let id = bench.create(&ada.id);
    let chunks = bench.objects(&format!("chunks/{}", ada.id));
    let damaged = chunks.iter().min_by_key(|path| std::fs::metadata(path).unwrap().len()).unwrap();
    std::fs::write(damaged, b"damage").unwrap();
    bench.refusal(&["backup", "verify", &id, "--tenant", &ada.id]);
    bench.app.kill();
    bench.app.launch().await;
    let again = bench.create(&ada.id);
    assert_ne!(std::fs::read(damaged).unwrap(), b"damage");
    for id in [&id, &again] {
        bench.app.cli_json(&["backup", "verify", id, "--tenant", &ada.id]);
    }
    // Only until then: the next one reuses what is there.
    bench.app.kill();
    bench.app.launch().await;
    std::fs::write(damaged, b"damage").unwrap();
    bench.create(&ada.id);
    assert_eq!(std::fs::read(damaged).unwrap(), b"damage");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_leaves_objects_that_a_prune_removes() {
    let mut bench = Bench::start("").await;
    let ada = bench.app.user("ada").await;
    note_with_file(&ada, "file", vec![3; 50_000]).await;
    for step in ["backup.chunk", "backup.files", "backup.index", "backup.manifest"] {
        assert!(bench.app.terminate().success());
        bench.app.arm(step);
        bench.app.launch().await;
        // So that each snapshot has something of its own.
        note_with_file(&ada.at(&bench.app), step, step.repeat(5_000)).await;
        let output = bench.app.cli(&["backup", "create", &ada.id]);
        assert!(!output.status.success(), "{step}");
        bench.app.kill();
        bench.app.launch().await;
        // The job goes on where it was.
        crate::support::eventually("the backup is made", async || {
            let jobs = bench.app.cli_json(&["jobs", "list", "--kind", "backup_tenant"]);
            jobs["items"].as_array().unwrap().iter().all(|job| job["state"] == "done").then_some(())
        })
        .await;
    }
    assert_eq!(bench.list(&ada.id).len(), 4);
    let id = bench.list(&ada.id)[0]["id"].as_str().unwrap().to_owned();
    let objects = bench.objects("chunks").len();
    std::fs::write(bench.store.path().join("chunks").join(&ada.id).join("00stray"), "x").unwrap();
    let pruned = bench.app.cli_json(&["backup", "prune"]);
    assert_eq!(pruned["unreadable"], 0, "{pruned}");
    assert_eq!(pruned["snapshots"], 3, "four within an hour are one: {pruned}");
    assert!(
        pruned["objects"].as_u64().unwrap() > 3,
        "the stray, and of each snapshot its list and its pages: {pruned}"
    );
    let left = bench.objects("chunks").len();
    assert_eq!(objects + 1 - left, usize::try_from(pruned["objects"].as_u64().unwrap()).unwrap());
    assert_eq!(bench.app.cli_json(&["backup", "prune"])["objects"], 0);
    bench.app.cli_json(&["backup", "verify", &id]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_store_fails_the_backup_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let mounted =
        command("mount").args(["-t", "tmpfs", "-o", "size=256k", "none"]).arg(folder.path()).status().unwrap();
    if !mounted.success() {
        return crate::faults::skip(15, "a full store of backups: this user cannot mount a tmpfs");
    }
    let store = folder.path().join("store");
    std::fs::create_dir(&store).unwrap();
    let mut app = TestApp::with(&keys_of(&store)).await;
    app.expect_log("a backup failed");
    let ada = app.user("ada").await;
    note_with_file(&ada, "large", vec![9; 600_000]).await;
    let output = app.cli(&["backup", "create", "--all", "--json"]);
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "{said}");
    assert!(said.contains("space"), "{said}");
    assert_eq!(ada.titles().await, ["large"]);
    drop(app);
    assert!(command("umount").arg(folder.path()).status().unwrap().success());
}
