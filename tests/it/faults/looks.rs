//! What a tenant can do to whoever reads its database while it is open.

use std::path::Path;
use std::time::Duration;
use std::time::Instant;

use super::folder;
use super::pid;
use crate::backup::Bench;
use crate::support::TestApp;
use crate::support::eventually;
use crate::support::signal;

/// A process of this parent that looks at a database and has this file mapped.
fn looking(parent: u32, mapped: &Path) -> Option<i32> {
    let mapped = mapped.display().to_string();
    std::fs::read_dir("/proc").unwrap().flatten().find_map(|entry| {
        let id = entry.file_name().to_str()?.parse::<i32>().ok()?;
        let line = std::fs::read(entry.path().join("cmdline")).ok()?;
        let is_it = line.windows(6).any(|window| window == b"__look")
            && std::fs::read_to_string(entry.path().join("status")).ok()?.contains(&format!("PPid:\t{parent}\n"))
            && std::fs::read_to_string(entry.path().join("maps")).ok()?.contains(&mapped);
        is_it.then_some(id)
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_cut_short_under_a_reader_ends_the_reader_and_nobody_else() {
    // The instance stands still meanwhile, or it would be the first to fall over what is missing.
    let mut bench = Bench::start("instances.probe_interval = \"10m\"\n").await;
    for expected in ["a backup failed", "instance failed"] {
        bench.app.expect_log(expected);
    }
    let app = &bench.app;
    let (ada, bob) = (app.user("ada").await, app.user("bob").await);
    ada.note("one").await;
    bob.note("his").await;
    app.put_to_sleep(&ada.id);
    let data = folder(app, &ada.id).join("pb_data/data.db");
    let database = rusqlite::Connection::open(&data).unwrap();
    database.execute_batch("CREATE TABLE filler (content BLOB)").unwrap();
    for _ in 0..64 {
        database.execute("INSERT INTO filler VALUES (randomblob(1000000))", []).unwrap();
    }
    drop(database);
    ada.note("two").await;
    let instance = pid(app, &ada.id).unwrap();
    signal(instance, "STOP");
    let index = data.with_extension("db-shm");
    assert!(std::fs::metadata(&index).unwrap().len() > 0);

    let (ours, mapped) = (app.pid(), index.clone());
    let cutting = std::thread::spawn(move || {
        let deadline = Instant::now() + Duration::from_mins(1);
        let reader = loop {
            if let Some(reader) = looking(ours, &mapped) {
                break reader;
            }
            assert!(Instant::now() < deadline, "nobody looks");
            std::thread::yield_now();
        };
        signal(reader, "STOP");
        let file = std::fs::File::options().write(true).open(&mapped).unwrap();
        file.set_len(0).unwrap();
        signal(reader, "CONT");
    });
    let output = tokio::task::block_in_place(|| app.cli(&["backup", "create", "--all", "--json"]));
    cutting.join().unwrap();
    // Its own backup is what fails, and it is said how; everybody else's is made.
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("SIGBUS"), "{said}");
    assert_eq!((bench.list(&ada.id).len(), bench.list(&bob.id).len()), (0, 1), "{said}");
    assert_eq!(app.pid(), ours);
    assert_eq!(app.get("/health").await.status(), 200);
    assert_eq!(bob.titles().await, ["his"]);

    // Whoever finds it cut before they look builds it anew, and has the right answer.
    std::fs::File::options().write(true).open(&index).unwrap().set_len(0).unwrap();
    let id = tokio::task::block_in_place(|| bench.create(&ada.id));
    signal(instance, "CONT");
    assert_eq!(app.cli_json(&["backup", "verify", &id, "--tenant", &ada.id])["booted"], true);
    let titles = eventually("she is served", async || {
        let (status, body) = super::list(&ada).await;
        assert!(matches!(status, 200 | 400 | 500..=504), "{status} {body}");
        (status == 200).then_some(body)
    })
    .await;
    assert_eq!(titles["totalItems"], 2, "{titles}");
    assert_eq!(app.pid(), ours);
}

/// Processes of this pocketfleet that look at databases.
fn lookers(app: &TestApp) -> usize {
    let parent = format!("\nPPid:\t{}\n", app.pid());
    let is_one = |folder: &std::path::Path| {
        let status = std::fs::read_to_string(folder.join("status")).unwrap_or_default();
        let line = std::fs::read(folder.join("cmdline")).unwrap_or_default();
        status.contains(&parent) && line.split(|byte| *byte == 0).any(|argument| argument == b"__look")
    };
    std::fs::read_dir("/proc").unwrap().flatten().filter(|entry| is_one(&entry.path())).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_earlier_run_is_taken_over_but_for_whom_nobody_can_look_at_and_who_looked_is_gone() {
    let mut app = TestApp::start().await;
    app.expect_log("not adopted");
    let mut users = Vec::new();
    for n in 0..8 {
        let user = app.user(&format!("u{n}")).await;
        user.note("x").await;
        users.push(user);
    }
    let pids =
        |app: &TestApp| -> Vec<Option<i64>> { users.iter().map(|user| app.tenant(&user.id)["pid"].as_i64()).collect() };
    let mut before = pids(&app);
    app.kill();
    // Where the keys were is something else.
    let data = app.data().join("instances").join(&users[3].id).join("pb_data");
    std::fs::rename(data.join("data.db"), data.join("kept")).unwrap();
    std::fs::write(data.join("data.db"), "no database").unwrap();
    app.launch().await;
    before[3] = None;
    assert_eq!(pids(&app), before);
    assert_eq!(app.cli_json(&["status"])["fleet"]["adopted"], 8);
    assert_eq!(lookers(&app), 0);
    std::fs::rename(data.join("kept"), data.join("data.db")).unwrap();
    for user in &users {
        assert_eq!(user.at(&app).titles().await, ["x"]);
    }
}
