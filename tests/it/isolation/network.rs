//! Level 3 as a whole: rules that come with a start, survive a kill, are put back, and go with the last instance.

use serde_json::Value;
use serde_json::json;

use super::answering;
use super::levels;
use super::reached;
use super::run;
use super::start;
use super::start_with;
use crate::support::TestApp;
use crate::support::User;
use crate::support::eventually;
use crate::support::isolation::nft;
use crate::support::pause;
use crate::support::processes_in;

/// What an admin reads of the rules.
async fn rules(admin: &User) -> Value {
    let report: Value = admin.get("/health/pb").await.json().await.unwrap();
    report["details"]["isolation"]["network"].clone()
}

fn is_there(table: &str) -> bool {
    nft(&["list", "table", "inet", table]).is_some()
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_of_the_network_survive_a_kill_are_put_back_and_go_in_the_end() {
    if !levels().contains(&3) {
        return;
    }
    let mut app =
        TestApp::with("isolation.level = \"auto\"\nisolation.require = 3\nisolation.network_check = \"200ms\"\n").await;
    assert_eq!(reached(&app).await, 3, "what is required is tried for: {}", app.log());
    let (ada, admin) = (app.user("ada").await, app.admin("root").await);
    ada.note("one").await;
    let table = rules(&admin).await["table"].as_str().unwrap().to_owned();
    assert!(is_there(&table));
    let before = app.tenant(&ada.id);
    app.put_to_sleep(&ada.id);
    assert_eq!(ada.titles().await, ["one"]);
    assert_eq!(app.tenant(&ada.id)["address"], before["address"], "a wake takes the address that the rules know");

    let before = app.tenant(&ada.id)["pid"].clone();
    app.kill();
    assert!(is_there(&table), "instances go on, and so do the rules about them");
    app.launch().await;
    let (ada, admin) = (ada.at(&app), admin.at(&app));
    assert_eq!(app.tenant(&ada.id)["pid"], before, "adopted: {}", app.log());
    assert_eq!(ada.titles().await, ["one"]);

    app.expect_log("changed by somebody else");
    nft(&["delete", "table", "inet", &table]).unwrap();
    eventually("the rules are back", async || is_there(&table).then_some(())).await;
    eventually("it is told", async || (rules(&admin).await["repaired"] == 1).then_some(())).await;
    eventually("it is counted", async || {
        let text = app.get("/metrics").await.text().await.ok()?;
        text.contains("pocketfleet_network_repaired_total 1").then_some(())
    })
    .await;
    app.put_to_sleep(&ada.id);
    assert_eq!(ada.titles().await, ["one"]);

    assert!(app.terminate().success());
    assert!(!is_there(&table), "nobody runs any more");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_fleet_with_the_same_users_stays_away_from_them() {
    if !levels().contains(&3) {
        return;
    }
    let base = 1_850_000_000 + rand::random::<u32>() % 40_000 * 1_000;
    let users = format!("isolation.uid_base = {base}\nisolation.uid_count = 1000\n");
    let first = TestApp::with(&format!("isolation.level = 3\n{users}")).await;
    assert_eq!(reached(&first).await, 3, "{}", first.log());
    let ada = first.user("ada").await;
    ada.note("one").await;
    let mut second = TestApp::prepare(&format!("isolation.level = 3\n{users}"));
    second.expect_log("another pocketfleet of this machine");
    second.launch().await;
    assert_eq!(reached(&second).await, 1, "{}", second.log());
    let bob = second.user("bob").await;
    bob.note("two").await;
    assert_eq!((ada.titles().await, bob.titles().await), (vec!["one".to_owned()], vec!["two".to_owned()]));
    assert!(second.terminate().success());
    second.add_keys("isolation.require = 3\n");
    second.spawn();
    assert!(!second.ended().success());
    assert!(second.log().contains("set isolation.uid_base to another range"), "{}", second.log());
    second.expect_log("isolation");
    assert_eq!(reached(&first).await, 3);
    ada.note("three").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_range_that_moved_onto_a_tenant_is_refused() {
    if !levels().contains(&2) {
        return;
    }
    let base = 1_850_000_000 + rand::random::<u32>() % 40_000 * 1_000;
    let range = |base: u32| format!("isolation.uid_base = {base}\n");
    let mut app = TestApp::prepare(&format!("isolation.level = 2\n{}isolation.uid_count = 1000\n", range(base)));
    app.launch().await;
    let ada = app.user("ada").await;
    ada.note("one").await;
    let database = app.data().join("instances").join(&ada.id).join("pb_data/data.db");
    let user = std::os::unix::fs::MetadataExt::uid(&database.metadata().unwrap());
    assert!((base + 1..base + 1_000).contains(&user), "{user}");
    assert!(app.terminate().success());
    let config = app.dir.path().join("test.toml");
    let change = |from: &str, to: &str| {
        let text = std::fs::read_to_string(&config).unwrap();
        assert!(text.contains(from), "{text}");
        std::fs::write(&config, text.replace(from, to)).unwrap();
    };

    change(&range(base), &range(user));
    app.expect_log("isolation.uid_base");
    app.spawn();
    assert!(!app.ended().success());
    let told = format!("isolation.uid_base = {user}: the user {user} is the tenant {}'s for good", ada.id);
    assert!(app.log().contains(&told), "{}", app.log());

    // A range without any tenant of ours: they keep what they have.
    change(&range(user), &range(base + 5_000));
    app.launch().await;
    let ada = ada.at(&app);
    assert_eq!(ada.titles().await, ["one"]);
    assert_eq!(std::os::unix::fs::MetadataExt::uid(&database.metadata().unwrap()), user);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_is_tried_in_the_sandbox_as_the_tenants_user() {
    let Some(level) = levels().pop().filter(|level| *level >= 2) else { return };
    let store = tempfile::tempdir().unwrap();
    let keys = format!("backup.store = \"dir:{}\"\nbackup.schedule = \"\"\n", store.path().display());
    let app = start(level, &keys).await;
    let ada = app.user("ada").await;
    ada.note("kept").await;
    let (worked, said) = run(&ada, "return 'awake'", &Value::Null).await;
    assert!(worked, "{said}");
    let id = app.cli_json(&["backup", "create", &ada.id])["id"].as_str().unwrap().to_owned();
    let user = |pid: &str| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let field =
            |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim).map(str::to_owned);
        let uid = field("Uid:")?.split_whitespace().next()?.to_owned();
        Some((uid, field("Seccomp:")?, field("CapEff:")?))
    };
    let pid = app.tenant(&ada.id)["pid"].to_string();
    let (uid, _, _) = user(&pid).unwrap();
    assert_ne!(uid, "0");
    let staging = app.data().join("staging");
    // The trial lasts for some milliseconds, so it is repeated until it was seen.
    let expected = (uid, "2".to_owned(), "0000000000000000".to_owned());
    eventually("a trial is seen in the sandbox", async || {
        let verified = async {
            let (app, id, tenant) = (&app, &id, &ada.id);
            tokio::task::block_in_place(|| app.cli_json(&["backup", "verify", id, "--tenant", tenant]))
        };
        let watched = tokio::spawn({
            let (staging, user) = (staging.clone(), user);
            async move {
                let mut seen = Vec::new();
                for _ in 0..100 {
                    let found = processes_in(&staging).into_iter().filter(|(_, line)| line.contains("serve"));
                    // Before it executes PocketBase, the jailer is still itself.
                    let found = found.filter(|(_, line)| !line.contains("__jail"));
                    seen.extend(found.filter_map(|(pid, _)| user(&pid.to_string())));
                    pause().await;
                }
                seen
            }
        });
        let verified = verified.await;
        assert_eq!(verified["booted"], true, "{verified}");
        let seen = watched.await.unwrap();
        assert!(seen.iter().all(|one| *one == expected), "{seen:?} is not {expected:?}");
        (!seen.is_empty()).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_of_a_run_at_level_3_are_removed_by_a_start_at_level_2() {
    if !levels().contains(&3) {
        return;
    }
    let mut app = TestApp::with("isolation.level = 3\n").await;
    let (ada, admin) = (app.user("ada").await, app.admin("root").await);
    ada.note("one").await;
    let table = rules(&admin).await["table"].as_str().unwrap().to_owned();
    app.kill();
    assert!(is_there(&table));
    app.change_key("isolation.level = 3", "isolation.level = 2");
    app.launch().await;
    assert_eq!(reached(&app).await, 2, "{}", app.log());
    assert!(!is_there(&table));
    let ada = ada.at(&app);
    assert_eq!(ada.titles().await, ["one"]);
    ada.note("two").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_keeps_to_the_rules_when_the_range_of_users_was_moved() {
    if !levels().contains(&3) {
        return;
    }
    let base = 1_950_000_000 + rand::random::<u32>() % 20_000 * 2_000;
    let listed = answering();
    let first = format!("isolation.uid_base = {base}\n");
    let keys = format!("{first}isolation.uid_count = 1000\n");
    let mut app = start_with(3, &keys, &format!("outbound = [\"{listed}\"]\n")).await;
    let ada = app.user("ada").await;
    let call = "return $http.send({ url: 'http://127.0.0.1:' + at, timeout: 10 }).statusCode";
    let (worked, said) = run(&ada, call, &json!(listed)).await;
    assert!(!worked, "this machine is not the internet: {said}");
    assert!(app.terminate().success());
    app.change_key(&first, &format!("isolation.uid_base = {}\n", base + 1000));
    app.launch().await;
    assert_eq!(reached(&app).await, 3, "{}", app.log());
    let ada = ada.at(&app);
    let (worked, said) = run(&ada, call, &json!(listed)).await;
    assert!(!worked, "the user of an earlier range: {said}");
    assert!(app.terminate().success());
}
