//! The power fails: the backing file of a loop-mounted file system, copied while nobody writes, is what the disk would
//! hold. Nobody syncs for the copy: what is only in the page cache is lost.
//!
//! Writers hold still for the copy, which takes some milliseconds and could otherwise mix two moments: the cuts fall
//! between two acknowledged writes. `queue::power` does the same to the control database alone, with many writers.

use std::path::PathBuf;

use reqwest::Method;
use serde_json::Value;
use serde_json::json;

use super::Disk;
use super::folder;
use super::integrity;
use super::run;
use super::write;
use crate::support::TestApp;
use crate::support::User;

const VAULT: &str = "/api/v1/vault";

/// A pocketfleet on a disk of its own, whose power can fail.
struct Machine {
    app: TestApp,
    disk: Option<Disk>,
    image: PathBuf,
    place: tempfile::TempDir,
}

impl Machine {
    fn prepare(keys: &str) -> Result<Self, String> {
        let place = tempfile::tempdir().unwrap();
        std::fs::set_permissions(place.path(), std::os::unix::fs::PermissionsExt::from_mode(0o711)).unwrap();
        let image = place.path().join("disk.img");
        let disk = Disk::of_image(&image, 384 << 20, &place.path().join("disk"))?;
        let mut app = TestApp::prepare(&format!("quota.reserve = 0\n{keys}"));
        app.elsewhere = Some(disk.folder.join("data"));
        // The program syncs what it bakes; the harness copied it.
        crate::support::golden::share(&app.data());
        run("sync", &["-f", &app.data().display().to_string()])?;
        for expected in ["stop a stray process", "the instance broke off"] {
            app.expect_log(expected);
        }
        Ok(Self { app, disk: Some(disk), image, place })
    }

    /// The disk as it is now.
    fn cut(&self, number: usize) -> PathBuf {
        let copy = self.place.path().join(format!("cut-{number}.img"));
        let (from, to) = (self.image.display().to_string(), copy.display().to_string());
        run("cp", &["--sparse=always", &from, &to]).unwrap();
        copy
    }

    /// Boots from a copy: same place, another disk.
    async fn boot(&mut self, image: PathBuf) {
        assert!(self.disk.is_none(), "the disk before was taken out");
        self.disk = Some(Disk::mounted(&image, &self.place.path().join("disk")).unwrap());
        self.image = image;
        let instances = self.app.data().join("instances");
        for entry in std::fs::read_dir(&instances).unwrap().flatten() {
            let database = entry.path().join("pb_data/data.db");
            if database.exists() {
                assert_eq!(integrity(&database), "ok", "{}", database.display());
            }
        }
        assert_eq!(integrity(&self.app.data().join("control.db")), "ok");
        self.app.launch().await;
    }

    fn shut_down(&mut self) {
        assert!(self.app.terminate().success());
        self.disk = None;
    }
}

async fn store(user: &User, label: &str) -> String {
    let body = json!({"service": "http", "label": label, "secret": format!("planted-{label}"), "verify": false});
    let answer = user.request(Method::PUT, VAULT).json(&body).send().await.unwrap();
    let item: Value = answer.json().await.unwrap();
    item["key_id"].as_str().unwrap_or_else(|| panic!("{item}")).to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn fault_21_after_a_power_cut_every_acknowledged_secret_opens() {
    let keys = "vault.changes_per_minute = 60000\nvault.reveals_per_minute = 60000\nvault.reveal_max_age = \"10h\"\n";
    let mut machine = match Machine::prepare(keys) {
        Ok(machine) => machine,
        Err(why) => return super::skip(21, &why),
    };
    machine.app.launch().await;
    let ada = machine.app.user("ada").await;
    // The first minute of a fleet: whatever it lost, it starts, with the master key that sealed what there is.
    let first = machine.cut(9);
    // Accounts are PocketBase's, which does not sync each write: they are on the disk once it was stopped.
    assert!(machine.app.terminate().success());
    run("sync", &["-f", &machine.app.data().display().to_string()]).unwrap();
    machine.app.launch().await;
    let user = ada.at(&machine.app);
    let (mut acknowledged, mut cuts) = (Vec::new(), Vec::new());
    for number in 0..3 {
        for n in 0..7 + 4 * number {
            let label = format!("of-{number}-{n}");
            acknowledged.push((store(&user, &label).await, format!("planted-{label}")));
        }
        cuts.push((machine.cut(number), acknowledged.clone()));
    }
    machine.shut_down();
    machine.boot(first).await;
    assert_eq!(machine.app.cli_json(&["audit", "verify"])["intact"], true);
    let another = machine.app.user("another").await;
    store(&another, "first").await;
    machine.shut_down();
    for (image, acknowledged) in cuts {
        machine.boot(image).await;
        let user = ada.at(&machine.app);
        for (id, secret) in acknowledged {
            let answer = user.post(&format!("{VAULT}/{id}/reveal"), json!({"purpose": "test"})).await;
            let status = answer.status();
            let body: Value = answer.json().await.unwrap();
            assert_eq!((status.as_u16(), &body["secret"]), (200, &json!(secret)), "{body}");
        }
        assert_eq!(machine.app.cli_json(&["audit", "verify"])["intact"], true);
        machine.shut_down();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn fault_22_after_a_power_cut_an_instance_has_the_notes_up_to_some_moment_and_is_whole() {
    let mut machine = match Machine::prepare("") {
        Ok(machine) => machine,
        Err(why) => return super::skip(22, &why),
    };
    machine.app.launch().await;
    let ada = machine.app.user("ada").await;
    ada.note("before").await;
    // What was there when it was stopped is on the disk for good.
    assert!(machine.app.terminate().success());
    run("sync", &["-f", &machine.app.data().display().to_string()]).unwrap();
    machine.app.launch().await;
    let user = ada.at(&machine.app);
    let (mut written, mut cuts) = (vec!["before".to_owned()], Vec::new());
    for number in 0..3 {
        for _ in 0..60 {
            let title = format!("note-{:05}", written.len());
            assert_eq!(write(&user, &title).await, 200);
            written.push(title);
        }
        cuts.push((machine.cut(number), written.clone()));
    }
    machine.shut_down();
    for (image, written) in cuts {
        machine.boot(image).await;
        let user = ada.at(&machine.app);
        let stored = user.titles().await;
        // PocketBase syncs at checkpoints and not at each write: the last ones may be lost, and none before them.
        assert_eq!(stored[..], written[..stored.len()], "a hole");
        assert!(!stored.is_empty());
        eprintln!("{} of {} acknowledged notes outlived the cut", stored.len(), written.len());
        assert_eq!(write(&user, "zzz after").await, 200);
        assert!(folder(&machine.app, &ada.id).join("pb_data").is_dir());
        machine.shut_down();
    }
}
