//! Accounts and workspaces are deleted, brought back and erased, whoever dies in between.

use reqwest::Method;
use serde_json::Value;
use serde_json::json;

use crate::support::TestApp;
use crate::support::User;
use crate::support::eventually;
use crate::support::processes_in;

async fn delete(user: &User, path: &str) -> (u16, Value) {
    let answer = user.request(Method::DELETE, path).send().await.unwrap();
    (answer.status().as_u16(), answer.json().await.unwrap_or_default())
}

async fn workspace(owner: &User, slug: &str) -> String {
    let body = json!({"name": slug, "slug": slug});
    let answer = owner.post("/api/v1/tenants", body).await;
    let status = answer.status();
    let made: Value = answer.json().await.unwrap();
    assert_eq!(status, 201, "{made}");
    made["id"].as_str().unwrap().to_owned()
}

async fn note_at(user: &User, place: &str, title: &str) -> u16 {
    let path = format!("/t/{place}/api/collections/notes/records");
    user.post(&path, json!({ "title": title, "author": user.id })).await.status().as_u16()
}

fn aside(app: &TestApp) -> Vec<String> {
    let found = std::fs::read_dir(app.data().join("deleted")).unwrap();
    found.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_account_is_kept_and_comes_back_as_it_was() {
    let app = TestApp::start().await;
    let (ada, root) = (app.user("ada").await, app.admin("root").await);
    ada.note("kept").await;
    let key = ada.post("/api/v1/settings/api-keys", json!({"name": "k", "scopes": ["jobs"]})).await;
    let key: Value = key.json().await.unwrap();
    let key = key["key"].as_str().unwrap_or_else(|| panic!("{key}")).to_owned();

    // As the SDK does it; a second time with the same token is nobody.
    let path = format!("/api/collections/users/records/{}", ada.id);
    assert_eq!(delete(&root, &path).await.0, 404, "nobody deletes somebody else this way");
    assert_eq!(delete(&ada, &path).await.0, 204);
    assert_eq!(delete(&ada, &path).await.0, 401, "every session is over");
    let with_key = app.http.get(format!("{}/api/v1/jobs", app.base)).bearer_auth(&key).send().await.unwrap();
    assert_eq!(with_key.status(), 401);
    assert!(!app.data().join("instances").join(&ada.id).exists());
    assert_eq!(aside(&app).len(), 1);

    let listed: Value = root.get("/api/v1/admin/tenants/deleted").await.json().await.unwrap();
    let entry = &listed["items"][0];
    assert_eq!((&entry["id"], &entry["stage"]), (&json!(ada.id), &json!("gone")));
    assert_eq!(entry["deleted_by"], format!("user:{}", ada.id));
    assert_eq!(app.cli_json(&["tenants", "deleted"])["items"][0]["id"], json!(ada.id));

    // Signing in works, so that the owner can come back; nothing else does.
    let ada = app.sign_in(&ada.email, &ada.password).await;
    for path in ["/api/collections/notes/records", "/api/v1/jobs", "/api/v1/settings/api-keys"] {
        let answer = ada.get(path).await;
        let status = answer.status();
        let body: Value = answer.json().await.unwrap();
        let code = body["code"].as_str().or(body["error"]["code"].as_str()).unwrap_or_default().to_owned();
        let known = status == 410 && code == "TENANT_DELETED";
        assert!(known, "{path}: {status} {body}");
    }
    let shown: Value = ada.get(&format!("/api/v1/tenants/{}", ada.id)).await.json().await.unwrap();
    assert_eq!(shown["deleted"]["stage"], "gone", "{shown}");
    let undelete = format!("/api/v1/tenants/{}/undelete", ada.id);
    assert_eq!(ada.post(&undelete, json!({})).await.status(), 204);
    assert_eq!(ada.post(&undelete, json!({})).await.status(), 409, "it is there");
    assert_eq!(ada.titles().await, ["kept"]);
    assert!(aside(&app).is_empty());
    assert_eq!(app.cli_json(&["tenants", "deleted"])["items"], json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_workspace_is_gone_for_everybody_until_its_owner_wants_it_back() {
    let app = TestApp::start().await;
    let (ada, bob, eve) = (app.user("ada").await, app.user("bob").await, app.user("eve").await);
    let id = workspace(&ada, "acme").await;
    let members = app.cli_json(&["workspaces", "show", "acme"]);
    assert_eq!(members["tenant"], json!(id), "{members}");
    assert_eq!(note_at(&ada, "acme", "ours").await, 200);

    let (status, body) = delete(&ada, "/api/v1/auth/me").await;
    assert_eq!((status, &body["error"]["details"]["workspaces"]), (409, &json!([id])), "{body}");
    for stranger in [&bob, &eve] {
        assert_eq!(delete(stranger, "/api/v1/tenants/acme").await.0, 404);
        assert_eq!(stranger.post("/api/v1/tenants/acme/undelete", json!({})).await.status(), 404);
    }
    let (status, body) = delete(&ada, "/api/v1/tenants/acme").await;
    assert_eq!((status, &body["stage"]), (200, &json!("gone")), "{body}");
    assert_eq!(delete(&ada, "/api/v1/tenants/acme").await.1, body, "deleting twice is deleting once");
    assert_eq!(note_at(&ada, "acme", "late").await, 404);
    assert_eq!(ada.get("/api/v1/tenants/acme/members").await.status(), 410);
    let taken = bob.post("/api/v1/tenants", json!({"name": "x", "slug": "acme"})).await;
    assert_eq!(taken.status(), 400, "its name is kept for it");
    assert_eq!(bob.post("/api/v1/tenants/acme/undelete", json!({})).await.status(), 404);
    assert_eq!(ada.post("/api/v1/tenants/acme/undelete", json!({})).await.status(), 204);
    assert_eq!(note_at(&ada, "acme", "again").await, 200);
    let path = "/t/acme/api/collections/notes/records?sort=title";
    let notes: Value = ada.get(path).await.json().await.unwrap();
    let titles: Vec<_> = notes["items"].as_array().unwrap().iter().map(|note| note["title"].clone()).collect();
    assert_eq!(titles, ["again", "ours"]);
    // An admin may delete any tenant, and the operator bring it back.
    let root = app.admin("root").await;
    assert_eq!(delete(&root, &format!("/api/v1/tenants/{}", eve.id)).await.0, 200);
    assert!(app.cli(&["tenants", "undelete", &eve.id]).status.success());
    assert_eq!(delete(&root, "/api/v1/tenants/global").await.0, 404);
    assert!(!app.cli(&["tenants", "delete", "global"]).status.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn deleting_while_it_starts_and_starting_while_it_is_deleted_end_stopped() {
    let app = TestApp::start().await;
    let (ada, root) = (app.user("ada").await, app.admin("root").await);
    ada.note("one").await;
    let path = format!("/api/v1/tenants/{}", ada.id);
    let back = format!("{path}/undelete");
    for _ in 0..3 {
        app.put_to_sleep(&ada.id);
        let calls = (0..6).map(|_| ada.get("/api/collections/notes/records"));
        let wishes = (0..3).map(|_| delete(&root, &path));
        let (answers, deleted) =
            tokio::join!(futures_util::future::join_all(calls), futures_util::future::join_all(wishes));
        for answer in answers {
            // A request that was in time is served; a later one is refused, by the tombstone or by the ended session.
            let status = answer.status().as_u16();
            assert!(matches!(status, 200 | 401 | 410 | 502 | 503), "{status}: {}", answer.text().await.unwrap());
        }
        assert!(deleted.iter().all(|(status, body)| *status == 200 && *body == deleted[0].1), "{deleted:?}");
        eventually("it is put away", async || (aside(&app).len() == 1).then_some(())).await;
        assert!(!app.data().join("instances").join(&ada.id).exists());
        let named = |line: &str| line.contains(&format!("instances/{}", ada.id));
        assert!(!processes_in(app.dir.path()).iter().any(|(_, line)| named(line)));
        let backs = (0..2).map(|_| root.post(&back, json!({})));
        let backs: Vec<u16> =
            futures_util::future::join_all(backs).await.iter().map(|answer| answer.status().as_u16()).collect();
        assert!(backs.contains(&204) && backs.iter().all(|status| matches!(status, 204 | 409)), "{backs:?}");
    }
    let ada = app.sign_in(&ada.email, &ada.password).await;
    assert_eq!(ada.titles().await, ["one"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_at_any_step_is_finished_by_the_next_start() {
    let mut app = TestApp::start().await;
    app.expect_log("stop a stray process");
    let ada = app.user("ada").await;
    let root = app.admin("root").await;
    ada.note("one").await;
    let steps = ["delete.tombstone", "delete.jobs", "delete.stopped", "delete.moved", "delete.sessions"];
    for step in steps {
        app.terminate();
        app.arm(step);
        app.launch().await;
        let user = app.sign_in(&ada.email, &ada.password).await;
        assert_eq!(user.titles().await, ["one"], "before {step}");
        let cut = root.at(&app).request(Method::DELETE, &format!("/api/v1/tenants/{}", ada.id)).send().await;
        assert!(cut.is_err(), "{step} was not reached: {cut:?}");
        app.ended();
        app.launch().await;
        eventually(step, async || (app.cli_json(&["tenants", "deleted"])["items"][0]["stage"] == "gone").then_some(()))
            .await;
        assert_eq!(user.at(&app).get("/api/v1/auth/me").await.status(), 401, "{step}");
        assert_eq!(aside(&app).len(), 1, "{step}");
        let undo = ["undelete.begun", "undelete.moved"];
        if let Some(undo) = undo.get(steps.iter().position(|one| *one == step).unwrap()) {
            app.terminate();
            app.arm(undo);
            app.launch().await;
            let cut = root.at(&app).request(Method::POST, &format!("/api/v1/tenants/{}/undelete", ada.id)).send().await;
            assert!(cut.is_err(), "{undo} was not reached: {cut:?}");
            app.ended();
            app.launch().await;
            eventually(undo, async || (app.cli_json(&["tenants", "deleted"])["items"] == json!([])).then_some(()))
                .await;
        } else {
            assert!(app.cli(&["tenants", "undelete", &ada.id]).status.success());
        }
        assert!(aside(&app).is_empty(), "{step}");
    }
    let ada = app.sign_in(&ada.email, &ada.password).await;
    assert_eq!(ada.titles().await, ["one"]);
}

fn erased(app: &TestApp) -> Vec<Value> {
    app.cli_json(&["erasure", "list"])["items"].as_array().unwrap().clone()
}

/// That nothing of a user is left in the data directory, but for what has to stay: the audit log, the record, and the
/// number that no other tenant's processes may run under.
pub(crate) fn assert_nothing_left(app: &TestApp, user: &User, words: &[&str]) {
    assert!(aside(app).is_empty() && !app.data().join("instances").join(&user.id).exists());
    let control = rusqlite::Connection::open(app.data().join("control.db")).unwrap();
    let mut query = control.prepare("SELECT key, value FROM records WHERE instr(value, ?1) OR instr(key, ?1)").unwrap();
    for word in words.iter().copied().chain([user.id.as_str(), user.email.as_str()]) {
        let found = query.query_map([word], |row| row.get::<_, String>(0)).unwrap();
        let stays = |key: &String| ["audit", "erasure.", "uid."].iter().any(|prefix| key.starts_with(prefix));
        let left: Vec<String> = found.map(Result::unwrap).filter(|key| !stays(key)).collect();
        assert!(left.is_empty(), "{word}: {left:?}");
    }
    let accounts = app.data().join("instances/global/pb_data/data.db");
    let accounts = rusqlite::Connection::open(accounts).unwrap();
    let count = "SELECT count(*) FROM users WHERE id = ?1 OR email = ?2";
    let count: i64 = accounts.query_row(count, [&user.id, &user.email], |row| row.get(0)).unwrap();
    assert_eq!(count, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_deleted_is_erased_after_the_period_and_a_signed_record_stays() {
    let app = TestApp::with("tenancy.keep_deleted = \"2s\"\ntenancy.sweep_interval = \"1s\"\n").await;
    let (ada, bob) = (app.user("ada").await, app.user("bob").await);
    workspace(&bob, "acme").await;
    ada.note("personal words").await;
    let secret = json!({"service": "fathom", "secret": "a-key-of-ada", "verify": false});
    let stored = ada.request(Method::PUT, "/api/v1/vault").json(&secret).send().await.unwrap();
    assert!(stored.status().is_success(), "{}", stored.text().await.unwrap());
    // How far she has read, and what a restore of the past put away.
    let control = rusqlite::Connection::open(app.data().join("control.db")).unwrap();
    let places = ("INSERT INTO records VALUES (?1, 1, ?2)", (format!("seen.{}", ada.id), b"{}"));
    assert_eq!(control.execute(places.0, places.1).unwrap(), 1);
    drop(control);
    let now = time::OffsetDateTime::now_utc().unix_timestamp();
    let replaced = |id: &str| app.data().join(format!("replaced/{id}.{now}.20261121T133701042-0a1b2c3d"));
    for id in [&ada.id, &bob.id] {
        std::fs::create_dir_all(replaced(id).join("pb_data")).unwrap();
        std::fs::write(replaced(id).join("pb_data/data.db"), "personal words").unwrap();
    }
    assert_eq!(delete(&ada, "/api/v1/auth/me").await.0, 200);
    let records = eventually("it is erased", async || Some(erased(&app)).filter(|found| !found.is_empty())).await;
    assert_nothing_left(&app, &ada, &[]);
    assert!(!replaced(&ada.id).exists() && replaced(&bob.id).exists());
    assert_eq!(app.post("/auth/login", json!({"email": ada.email, "password": ada.password})).await.status(), 400);

    let record = &records[0];
    let erasure = &record["erasure"];
    assert_eq!((&erasure["tenant"], &erasure["erased_by"]), (&json!(ada.id), &json!("system")), "{record}");
    for (name, least) in [("files", 2), ("bytes", 4096), ("secrets", 1), ("sessions", 1), ("accounts", 1)] {
        assert!(erasure["counts"][name].as_u64().unwrap() >= least, "{name}: {erasure}");
    }
    let text = record.to_string();
    assert!(!text.contains("example.com") && !text.contains("personal words") && !text.contains("a-key-of-ada"));

    // The record is worth something exactly as long as nobody touches it.
    let file = app.dir.path().join("record.json");
    std::fs::write(&file, &text).unwrap();
    let verify = |text: &str| {
        std::fs::write(&file, text).unwrap();
        let output = app.cli(&["erasure", "verify", file.to_str().unwrap()]);
        (output.status.success(), String::from_utf8(output.stdout).unwrap())
    };
    assert!(verify(&text).0);
    let mut changed = record.clone();
    changed["erasure"]["counts"]["files"] = json!(1);
    let (is_valid, words) = verify(&changed.to_string());
    assert!(!is_valid && words.contains("changed"), "{words}");
    for bad in ["{}", "[]", "no json", "{\"erasure\": {}}"] {
        assert!(!verify(bad).0, "{bad}");
    }
    let audit = app.cli(&["audit", "verify"]);
    assert!(audit.status.success());

    // The address is free, and whoever takes it begins with nothing.
    let again = app.user("ada").await;
    assert_ne!(again.id, ada.id);
    assert!(again.titles().await.is_empty());
    assert_eq!(note_at(&bob, "acme", "others are untouched").await, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_at_any_step_of_an_erasure_is_finished_by_the_next_start() {
    let mut app = TestApp::start().await;
    let root = app.admin("root").await;
    for step in ["erase.begun", "erase.vault", "erase.records", "erase.folder", "erase.account", "erase.signed"] {
        let name = step.replace('.', "-");
        let user = app.user(&name).await;
        user.note("words").await;
        app.terminate();
        app.arm(step);
        app.launch().await;
        let cut = root.at(&app).request(Method::DELETE, &format!("/api/v1/tenants/{}?now=true", user.id)).send().await;
        assert!(cut.is_err(), "{step} was not reached: {cut:?}");
        app.ended();
        app.launch().await;
        eventually(step, async || (app.cli_json(&["tenants", "deleted"])["items"] == json!([])).then_some(())).await;
        assert_nothing_left(&app, &user, &[]);
        let records: Vec<Value> =
            erased(&app).into_iter().filter(|record| record["erasure"]["tenant"] == json!(user.id)).collect();
        assert_eq!(records.len(), 1, "{step}: one record, whoever died");
        assert_eq!(records[0]["erasure"]["erased_by"], format!("user:{}", root.id), "{step}");
        assert!(records[0]["erasure"]["counts"]["files"].as_u64().unwrap() > 0, "{step}");
    }
    let user = app.user("own").await;
    let path = format!("/api/v1/tenants/{}?now=true", user.id);
    assert_eq!(delete(&user, &path).await.0, 403, "only admins erase at once");
    assert_eq!(delete(&root.at(&app), &path).await.0, 200);
    assert_eq!(delete(&root.at(&app), &path).await.0, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn orphans_are_listed_and_wait_for_an_operator() {
    let mut app = TestApp::start().await;
    let ada = app.user("ada").await;
    ada.note("found again").await;
    assert_eq!(app.cli_json(&["tenants", "orphans"])["items"], json!([]));
    app.terminate();
    // A record is lost, a stranger's folder appears, a folder is lost.
    let bob = {
        app.launch().await;
        let bob = app.user("bob").await;
        bob.note("gone").await;
        app.terminate();
        bob
    };
    let control = rusqlite::Connection::open(app.data().join("control.db")).unwrap();
    let lost = control.execute("DELETE FROM records WHERE key = ?1", [format!("tenant.{}", ada.id)]).unwrap();
    assert_eq!(lost, 1);
    drop(control);
    let stray = app.data().join("instances/w-stray");
    std::fs::create_dir_all(stray.join("pb_data")).unwrap();
    std::os::unix::fs::symlink("/etc", stray.join("pb_data/link")).unwrap();
    std::fs::remove_dir_all(app.data().join("instances").join(&bob.id)).unwrap();

    app.launch().await;
    let mut listed: Vec<(String, String)> = app.cli_json(&["tenants", "orphans"])["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|item| (item["id"].as_str().unwrap().to_owned(), item["kind"].as_str().unwrap().to_owned()))
        .collect();
    listed.sort();
    let mut wanted = [
        (ada.id.clone(), "instance".to_owned()),
        ("w-stray".to_owned(), "instance".to_owned()),
        (bob.id.clone(), "record".to_owned()),
    ];
    wanted.sort();
    assert_eq!(listed, wanted);
    assert!(app.log().contains("orphans=3"));
    let doctor = String::from_utf8(app.cli(&["doctor"]).stdout).unwrap();
    assert!(doctor.contains("3 folders without a record"), "{doctor}");
    assert!(stray.exists(), "nothing is removed by itself");

    assert!(!app.cli(&["tenants", "orphans", "--adopt", "w-stray"]).status.success(), "whose is it?");
    assert!(!app.cli(&["tenants", "orphans", "--remove", "nobody"]).status.success());
    assert!(app.cli(&["tenants", "orphans", "--remove", "w-stray"]).status.success());
    assert!(!stray.exists() && std::path::Path::new("/etc/passwd").exists());
    assert!(app.cli(&["tenants", "orphans", "--adopt", &ada.id]).status.success());
    assert!(app.cli(&["tenants", "orphans", "--adopt", &bob.id]).status.success());
    assert_eq!(ada.at(&app).titles().await, ["found again"]);
    assert!(bob.at(&app).titles().await.is_empty(), "it starts anew, because an operator said so");
    assert_eq!(app.cli_json(&["tenants", "orphans"])["items"], json!([]));
}
