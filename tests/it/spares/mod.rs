//! A warm pool: what is made before anybody has it, who gets it, and who does not.

use std::collections::BTreeMap;
use std::collections::BTreeSet;

use futures_util::StreamExt;
use futures_util::stream;
use reqwest::StatusCode;
use serde_json::Value;
use serde_json::json;

use crate::support::TestApp;
use crate::support::User;
use crate::support::eventually;
use crate::support::processes_in;

mod limits;
mod restarts;
mod unknown;

const USERS: &str = "/api/collections/users/records";

fn count(app: &TestApp, state: &str) -> u64 {
    app.cli_json(&["status"])["fleet"]["spares"][state].as_u64().unwrap_or_default()
}

/// Waits until so many spares are awake, no others are there, and accounts get them: a run has a secret of its own, so
/// each start writes one down.
async fn full(app: &TestApp, number: u64) {
    eventually("the pool is full", async || {
        let spares = app.cli_json(&["status"])["fleet"]["spares"].clone();
        let all: u64 = spares.as_object().unwrap().values().filter_map(Value::as_u64).sum();
        let log = app.log();
        let is_open = number == 0 || log.rsplit("listening").next().unwrap().contains("accounts are configured anew");
        (is_open && all == number && spares["awake"].as_u64().unwrap_or_default() == number).then_some(())
    })
    .await;
}

/// How many tenants are listed, but the global one.
fn tenants(app: &TestApp) -> usize {
    let listed = app.cli_json(&["tenants", "list"]);
    listed["items"].as_array().unwrap().iter().filter(|tenant| tenant["tenant"] != "global").count()
}

/// Every instance with a process, but the global one.
fn pids(app: &TestApp) -> BTreeMap<String, i32> {
    let own = |line: &str| {
        let (_, rest) = line.split_once("--dir=")?;
        let (_, rest) = rest.split_once("/instances/")?;
        Some(rest.split('/').next()?.to_owned())
    };
    let found = processes_in(&app.data()).into_iter().filter(|(_, line)| line.contains(" serve "));
    found.filter_map(|(pid, line)| Some((own(&line)?, pid))).filter(|(id, _)| id != "global").collect()
}

/// Folders of instances, but the global one's.
fn folders(app: &TestApp) -> BTreeSet<String> {
    let found = std::fs::read_dir(app.data().join("instances")).unwrap();
    found.map(|entry| entry.unwrap().file_name().into_string().unwrap()).filter(|name| name != "global").collect()
}

fn account(name: &str) -> Value {
    let password = format!("password-of-{name}");
    json!({"email": format!("{name}@example.com"), "password": password, "passwordConfirm": password, "name": name})
}

/// Registers as the SDKs do.
async fn sign_up(app: &TestApp, body: &Value) -> (StatusCode, Value) {
    let answer = app.post(USERS, body.clone()).await;
    (answer.status(), answer.json().await.unwrap())
}

async fn signed_in(app: &TestApp, name: &str) -> User {
    app.sign_in(&format!("{name}@example.com"), &format!("password-of-{name}")).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_account_has_the_instance_that_ran_before_it() {
    let app = TestApp::with("instances.spares = 2\n").await;
    full(&app, 2).await;
    assert_eq!(tenants(&app), 0);
    for (name, way) in [("ada", "register"), ("bob", "json"), ("cyd", "form"), ("dan", "fields")] {
        full(&app, 2).await;
        let before = pids(&app);
        let form = format!("email={name}%40example.com&password=password-of-{name}&passwordConfirm=password-of-{name}");
        let id = match way {
            "json" => sign_up(&app, &account(name)).await.1["id"].clone(),
            "form" | "fields" => {
                let query = if way == "fields" { "?fields=name" } else { "" };
                let answer = app.http.post(format!("{}{USERS}{query}", app.base));
                let typed = answer.header("content-type", "application/x-www-form-urlencoded").body(form);
                let answer = typed.send().await.unwrap();
                assert_eq!(answer.status(), 200);
                answer.json::<Value>().await.unwrap()["id"].clone()
            }
            _ => {
                let answer = app.post("/auth/register", account(name)).await;
                assert_eq!(answer.status(), 201);
                answer.json::<Value>().await.unwrap()["record"]["id"].clone()
            }
        };
        let user = signed_in(&app, name).await;
        assert_eq!(id, user.id, "{way}");
        let pid = before.get(&user.id).unwrap_or_else(|| panic!("{way}: {} is none of {before:?}", user.id));
        // With the rights of its owner, in the process from before.
        user.note("first").await;
        assert_eq!(user.titles().await, ["first"]);
        let shown = app.tenant(&user.id);
        assert_eq!((&shown["pid"], &shown["epoch"]), (&json!(pid), &json!(1)), "{way}: {shown}");
    }
    full(&app, 2).await;
    assert_eq!(tenants(&app), 4);
    assert_eq!(app.cli_json(&["tenants", "orphans"])["items"], json!([]));
    let metrics = app.get("/metrics").await.text().await.unwrap();
    assert!(metrics.contains("pocketfleet_spares{state=\"awake\"} 2"), "{metrics}");
    assert!(metrics.contains("pocketfleet_tenants 4"), "{metrics}");
    assert!(metrics.contains("pocketfleet_instances{state=\"awake\"} 4"), "{metrics}");

    // A body of many parts is registered as ever.
    let before = folders(&app);
    let form = ["email", "password", "passwordConfirm"];
    let named = account("eve");
    let form = form.into_iter().fold(reqwest::multipart::Form::new(), |form, field| {
        form.text(field, named[field].as_str().unwrap().to_owned())
    });
    let answer = app.http.post(format!("{}{USERS}", app.base)).multipart(form).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    let eve = signed_in(&app, "eve").await;
    assert!(!before.contains(&eve.id));
    eve.note("x").await;
    // After sleep it is the same data.
    app.put_to_sleep(&eve.id);
    let ada = signed_in(&app, "ada").await;
    app.put_to_sleep(&ada.id);
    assert_eq!(ada.titles().await, ["first"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_shown_of_a_new_account_is_the_same_with_and_without_spares() {
    let mut shown = Vec::new();
    for spares in ["0", "1"] {
        let app = TestApp::with(&format!("instances.spares = {spares}\n")).await;
        if spares == "1" {
            full(&app, 1).await;
        }
        let (status, record) = sign_up(&app, &account("ada")).await;
        let names: Vec<String> = record.as_object().unwrap().keys().cloned().collect();
        shown.push((status, names, record["emailVisibility"].clone(), record["verified"].clone()));
    }
    assert_eq!(shown[0], shown[1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_chooses_an_id_or_a_role_or_reaches_a_spare() {
    let app = TestApp::with("instances.spares = 1\n").await;
    full(&app, 1).await;
    let spare = folders(&app).pop_first().unwrap();
    let mut number = 0;
    for (name, value) in [
        ("id", spare.as_str()),
        ("id", "aaaaaaaaaaaaaaa"),
        ("Id", "aaaaaaaaaaaaaaa"),
        ("id+", "aaaaaaaaaaaaaaa"),
        ("role", "admin"),
        ("role+", "admin"),
        ("@jsonPayload", r#"{"id":"aaaaaaaaaaaaaaa","role":"admin"}"#),
    ] {
        for kind in ["json", "form", "multipart"] {
            number += 1;
            let mut body = account(&format!("mallory{number}"));
            body[name] = json!(value);
            let fields = body.as_object().unwrap().iter().map(|(name, value)| (name, value.as_str().unwrap()));
            let fields: Vec<(String, String)> = fields.map(|(name, value)| (name.clone(), value.to_owned())).collect();
            // As if the header were known.
            let request = app.http.post(format!("{}{USERS}", app.base)).header("x-pocketfleet-reserved", "0");
            let request = match kind {
                "json" => request.json(&body),
                "form" => request.form(&fields),
                _ => {
                    let parts = fields.into_iter().fold(reqwest::multipart::Form::new(), |all, (k, v)| all.text(k, v));
                    request.multipart(parts)
                }
            };
            let answer = request.send().await.unwrap();
            let (status, made): (_, Value) = (answer.status(), answer.json().await.unwrap());
            // What is no field to PocketBase (`Id`) is ignored by it, as ever.
            let is_harmless = status == 200 && made["id"] != value && made["role"] == "";
            assert!(status == 400 || is_harmless, "{name}, {kind}: {status} {made}");
        }
    }
    full(&app, 1).await;

    let ada = app.user("ada").await;
    full(&app, 1).await;
    let spare = folders(&app).into_iter().find(|id| *id != ada.id).unwrap();
    for path in [
        format!("/t/{spare}/api/collections/notes/records"),
        format!("/t/{spare}/"),
        format!("/api/v1/tenants/{spare}"),
    ] {
        assert_eq!(ada.get(&path).await.status(), 404, "{path}");
        assert!(matches!(app.get(&path).await.status().as_u16(), 401 | 404), "{path}");
    }
    for command in ["show", "sleep", "pin", "delete", "wake", "logs"] {
        let args = if command == "delete" {
            vec!["tenants", command, &spare, "--yes"]
        } else {
            vec!["tenants", command, &spare]
        };
        assert!(!app.cli(&args).status.success(), "{command}");
    }
    full(&app, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_registration_gives_the_id_back() {
    let app = TestApp::with("instances.spares = 1\n").await;
    full(&app, 1).await;
    let ada = app.user("ada").await;
    full(&app, 1).await;
    let spare = folders(&app).into_iter().find(|id| *id != ada.id).unwrap();
    let pid = pids(&app)[&spare];
    let (status, body) = sign_up(&app, &account("ada")).await;
    assert_eq!((status.as_u16(), &body["data"]["email"]["code"]), (400, &json!("validation_not_unique")), "{body}");
    assert_eq!(app.post("/auth/register", account("ada")).await.status(), 400);
    let mut short = account("bob");
    short["passwordConfirm"] = json!("another one");
    assert_eq!(sign_up(&app, &short).await.0, 400);
    let bob = app.user("bob").await;
    assert_eq!(bob.id, spare);
    bob.note("x").await;
    assert_eq!(app.tenant(&bob.id)["pid"], pid);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_who_register_at_once_get_an_instance_each() {
    let app = TestApp::with("instances.spares = 3\n").await;
    full(&app, 3).await;
    let before = folders(&app);
    let users: Vec<User> = stream::iter(0..8)
        .map(|n| {
            let app = &app;
            async move { app.user(&format!("user{n}")).await }
        })
        .buffer_unordered(8)
        .collect()
        .await;
    let ids: BTreeSet<_> = users.iter().map(|user| user.id.clone()).collect();
    assert_eq!(ids.len(), 8);
    assert!(before.is_subset(&ids), "{before:?} {ids:?}");
    for user in &users {
        user.note(&user.id).await;
        assert_eq!(user.titles().await, [user.id.as_str()]);
    }
    full(&app, 3).await;
    let running: BTreeSet<_> = pids(&app).into_values().collect();
    assert_eq!(running.len(), 11);
    assert_eq!(app.cli_json(&["tenants", "orphans"])["items"], json!([]));
}
