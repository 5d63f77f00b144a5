//! A power cut: the backing file of a loop-mounted file system, copied while nothing is written to it, is what the disk
//! would hold if the power failed then. Nobody syncs for the copy: what is only in the page cache is lost.
//!
//! Writers hold still for the copy, which takes some milliseconds and could otherwise mix two moments. So the cuts fall
//! between commits, not into one.
//!
//! Needs root, `losetup` and `mkfs.ext4`; where these are not to be had the test says so and proves nothing.

use std::collections::BTreeSet;
use std::path::PathBuf;

use bytes::Bytes;

use super::*;
use crate::support::command;

const CUTS: usize = 6;

/// A loop-mounted file system; unmounted when dropped.
struct Disk {
    image: PathBuf,
    mount: PathBuf,
}

impl Drop for Disk {
    fn drop(&mut self) {
        drop(command("umount").arg(&self.mount).output());
    }
}

fn run(program: &str, arguments: &[&std::ffi::OsStr]) -> Result<(), String> {
    match command(program).args(arguments).output() {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(format!("{program}: {}", String::from_utf8_lossy(&output.stderr).trim())),
        Err(error) => Err(format!("{program}: {error}")),
    }
}

/// Mounts an image, replaying its journal as the next boot would.
fn mount(image: PathBuf, folder: &Path) -> Result<Disk, String> {
    std::fs::create_dir_all(folder).unwrap();
    run("mount", &["-o".as_ref(), "loop".as_ref(), image.as_os_str(), folder.as_os_str()])?;
    Ok(Disk { image, mount: folder.to_owned() })
}

fn make(folder: &Path) -> Result<Disk, String> {
    let image = folder.join("disk.img");
    std::fs::File::create(&image).unwrap().set_len(64 << 20).unwrap();
    run("mkfs.ext4", &["-q".as_ref(), "-F".as_ref(), image.as_os_str()])?;
    mount(image, &folder.join("mnt"))
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_power_cut_every_acknowledged_record_is_there_and_the_database_is_whole() {
    let folder = tempfile::tempdir().unwrap();
    let disk = match make(folder.path()) {
        Ok(disk) => disk,
        Err(why) => {
            return crate::faults::skip(21, &format!("power cuts need root and a loop device: {why}"));
        }
    };
    let database = Arc::new(ControlDatabase::open(&disk.mount.join("control.db")).unwrap());
    let store: Arc<dyn Store> = Arc::clone(&database) as _;
    let queue = Setup::on(&store).open().await;
    let (acknowledged, stop) = (Log::<String>::default(), tokio_util::sync::CancellationToken::new());
    let gate = Arc::new(tokio::sync::RwLock::new(()));
    let mut writers = Vec::new();
    for writer in 0..8 {
        let gate = Arc::clone(&gate);
        let (queue, store, acknowledged, stop) =
            (queue.clone(), Arc::clone(&store), acknowledged.clone(), stop.clone());
        writers.push(tokio::spawn(async move {
            for number in 0.. {
                if stop.is_cancelled() {
                    return;
                }
                let _writing = gate.read().await;
                let job = add(&queue, new_job(writer)).await;
                acknowledged.note(format!("job.{WORK}.{}.{}", job.tenant, job.id));
                // Any record is held to the same, be it a secret's.
                let key = format!("vault.t{writer}.k{number}");
                store.create(&key, Bytes::from(vec![7; 200])).await.unwrap();
                acknowledged.note(key);
            }
        }));
    }
    let mut cuts = Vec::new();
    for cut in 0..CUTS {
        let wanted = acknowledged.events().len() + 150 + 37 * cut;
        eventually("more records", async || (acknowledged.events().len() >= wanted).then_some(())).await;
        let _still = gate.write().await;
        let before = acknowledged.events();
        let image = folder.path().join(format!("cut-{cut}.img"));
        std::fs::copy(&disk.image, &image).unwrap();
        cuts.push((before, image));
    }
    stop.cancel();
    for writer in writers {
        writer.await.unwrap();
    }
    drop(queue);
    database.close().await;
    drop((store, database));
    drop(disk);

    for (number, (before, image)) in cuts.into_iter().enumerate() {
        let disk = mount(image, &folder.path().join(format!("cut-{number}"))).unwrap();
        let path = disk.mount.join("control.db");
        let whole: String = {
            let connection = rusqlite::Connection::open(&path).unwrap();
            connection.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap()
        };
        assert_eq!(whole, "ok");
        let database = Arc::new(ControlDatabase::open(&path).unwrap());
        let keys: BTreeSet<String> =
            database.list("").await.unwrap().into_iter().map(|entry| entry.key.to_string()).collect();
        let lost: Vec<_> = before.iter().filter(|key| !keys.contains(*key)).collect();
        assert!(lost.is_empty(), "cut {number}: {} of {} acknowledged records are lost", lost.len(), before.len());
        let store: Arc<dyn Store> = Arc::clone(&database) as _;
        let queue = Setup::on(&store).open().await;
        let jobs = before.iter().filter(|key| key.starts_with("job.")).count();
        assert!(queue.waiting() >= jobs as u64);
        drop(queue);
        database.close().await;
        drop((store, database));
    }
}
