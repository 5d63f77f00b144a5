//! Workspaces end to end: through the API, down to the rows in the instance's own database.

use reqwest::Method;
use reqwest::Response;
use serde_json::Value;
use serde_json::json;

use crate::support::TestApp;
use crate::support::User;
use crate::support::eventually;

async fn answer(response: Response) -> (u16, Value) {
    let status = response.status().as_u16();
    (status, response.json().await.unwrap_or(Value::Null))
}

async fn call(user: &User, method: Method, path: &str, body: Value) -> (u16, Value) {
    answer(user.request(method, path).json(&body).send().await.unwrap()).await
}

/// Makes a workspace and gives its id.
async fn workspace(owner: &User, body: Value) -> String {
    let (status, made) = answer(owner.post("/api/v1/tenants", body).await).await;
    assert_eq!(status, 201, "{made}");
    made["id"].as_str().unwrap().to_owned()
}

/// Lets somebody in and gives the answer to their acceptance.
async fn join(owner: &User, tenant: &str, who: &User, role: &str) -> Value {
    let (status, made) =
        call(owner, Method::POST, &format!("/api/v1/tenants/{tenant}/invitations"), json!({ "role": role })).await;
    assert_eq!(status, 201, "{made}");
    let (status, joined) = call(who, Method::POST, "/api/v1/invitations/accept", json!({"token": made["token"]})).await;
    assert_eq!(status, 200, "{joined}");
    joined
}

/// `id:role:verified:name` of all rows in the instance's `users`.
fn rows(app: &TestApp, tenant: &str) -> Vec<String> {
    let path = app.data().join("instances").join(tenant).join("pb_data/data.db");
    let flags = rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY;
    let connection = rusqlite::Connection::open_with_flags(path, flags).unwrap();
    let sql = "SELECT id || ':' || member_role || ':' || verified || ':' || name FROM users ORDER BY name";
    let mut statement = connection.prepare(sql).unwrap();
    statement.query_map([], |row| row.get(0)).unwrap().collect::<Result<_, _>>().unwrap()
}

fn wake(app: &TestApp, tenant: &str) {
    let woken = app.cli(&["tenants", "wake", tenant]);
    assert!(woken.status.success(), "{}", String::from_utf8_lossy(&woken.stderr));
}

fn row(user: &User, role: &str, verified: u8) -> String {
    let name = user.email.split('@').next().unwrap();
    format!("{}:{role}:{verified}:{name}", user.id)
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_follow_the_members_asleep_and_awake() {
    let app = TestApp::start().await;
    let (ada, bob, cyd) = (app.user("ada").await, app.user("bob").await, app.user("cyd").await);
    let team = workspace(&ada, json!({"name": "Team", "slug": "team-turing"})).await;
    join(&ada, &team, &bob, "guest").await;
    assert!(!app.data().join("instances").join(&team).exists(), "nobody needed its instance yet");

    wake(&app, &team);
    assert_eq!(rows(&app, &team), [row(&ada, "owner", 1), row(&bob, "guest", 1)]);

    // Awake: at once, without another start.
    let epoch = app.tenant(&team)["epoch"].clone();
    join(&ada, "team-turing", &cyd, "member").await;
    assert_eq!(rows(&app, &team), [row(&ada, "owner", 1), row(&bob, "guest", 1), row(&cyd, "member", 1)]);
    let path = format!("/api/v1/tenants/{team}/members/{}", bob.id);
    let (status, changed) = call(&ada, Method::PATCH, &path, json!({"role": "admin"})).await;
    assert_eq!((status, &changed["role"], &changed["name"]), (200, &json!("admin"), &json!("bob")), "{changed}");
    assert_eq!(rows(&app, &team)[1], row(&bob, "admin", 1));
    let (status, _) =
        call(&bob, Method::DELETE, &format!("/api/v1/tenants/{team}/members/{}", cyd.id), json!({})).await;
    assert_eq!(status, 204);
    assert_eq!(rows(&app, &team)[2], row(&cyd, "", 0), "the row of one who left stays, shut out");
    assert_eq!(app.tenant(&team)["epoch"], epoch);

    // Asleep: at the next start, with what the accounts are called by then.
    app.put_to_sleep(&team);
    let (status, _) = call(&bob, Method::POST, &format!("/api/v1/tenants/{team}/leave"), json!({})).await;
    assert_eq!(status, 204);
    let renamed = ada.request(Method::PATCH, &format!("/api/collections/users/records/{}", ada.id));
    assert_eq!(renamed.json(&json!({"name": "augusta"})).send().await.unwrap().status(), 200);
    wake(&app, &team);
    let ada_row = format!("{}:owner:1:augusta", ada.id);
    assert_eq!(rows(&app, &team), [ada_row, row(&bob, "", 0), row(&cyd, "", 0)]);

    join(&ada, &team, &cyd, "guest").await;
    assert_eq!(rows(&app, &team)[2], row(&cyd, "guest", 1), "and comes back with it");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_personal_instance_follows_its_owners_name() {
    let app = TestApp::start().await;
    let ada = app.user("ada").await;
    ada.note("kept").await;
    app.put_to_sleep(&ada.id);
    let renamed = ada.request(Method::PATCH, &format!("/api/collections/users/records/{}", ada.id));
    assert_eq!(renamed.json(&json!({"name": "augusta"})).send().await.unwrap().status(), 200);
    assert_eq!(ada.titles().await, ["kept"]);
    let path = app.data().join("instances").join(&ada.id).join("pb_data/data.db");
    let connection = rusqlite::Connection::open_with_flags(path, rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
    let name: String = connection.query_row("SELECT name FROM users", [], |row| row.get(0)).unwrap();
    assert_eq!(name, "augusta");
}

#[tokio::test(flavor = "multi_thread")]
async fn membership_outlives_a_crash_and_running_instances_learn_of_it() {
    let mut app = TestApp::start().await;
    let (ada, bob) = (app.user("ada").await, app.user("bob").await);
    let team = workspace(&ada, json!({"name": "Team", "slug": "team"})).await;
    wake(&app, &team);
    join(&ada, &team, &bob, "member").await;
    app.kill();
    app.launch().await;
    let (ada, bob) = (ada.at(&app), bob.at(&app));
    eventually("adopted", async || (app.tenant(&team)["state"] == "awake").then_some(())).await;
    let (status, mine) = answer(bob.get("/api/v1/tenants").await).await;
    assert_eq!((status, &mine["items"][1]["role"]), (200, &json!("member")), "{mine}");
    let (status, _) = call(&ada, Method::DELETE, &format!("/api/v1/tenants/team/members/{}", bob.id), json!({})).await;
    assert_eq!(status, 204);
    assert_eq!(rows(&app, &team), [row(&ada, "owner", 1), row(&bob, "", 0)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_learn_nothing_and_members_what_they_may() {
    let app = TestApp::start().await;
    let (ada, bob, eve) = (app.user("ada").await, app.user("bob").await, app.user("eve").await);
    let team = workspace(&ada, json!({"name": "Team", "slug": "team"})).await;
    join(&ada, &team, &bob, "member").await;
    let at = |rest: &str| format!("/api/v1/tenants/team{rest}");
    let calls = [
        (Method::GET, at(""), json!({})),
        (Method::PATCH, at(""), json!({"slug": "other"})),
        (Method::PATCH, at(""), json!({"identity": "nonsense"})),
        (Method::GET, at("/members"), json!({})),
        (Method::PATCH, at(&format!("/members/{}", ada.id)), json!({"role": "nonsense"})),
        (Method::DELETE, at(&format!("/members/{}", ada.id)), json!({})),
        (Method::POST, at("/leave"), json!({})),
        (Method::POST, at("/transfer"), json!({"user": bob.id})),
        (Method::GET, at("/invitations"), json!({})),
        (Method::POST, at("/invitations"), json!({"role": "guest"})),
        (Method::DELETE, at("/invitations/x"), json!({})),
    ];
    for (method, path, body) in &calls {
        let (status, absent) = call(&eve, method.clone(), path, body.clone()).await;
        let elsewhere = path.replace("/team", "/nowhere");
        let (_, nowhere) = call(&eve, method.clone(), &elsewhere, body.clone()).await;
        assert_eq!((status, &absent["error"]["message"]), (404, &nowhere["error"]["message"]), "{method} {path}");
    }
    let mut seen = Vec::new();
    let mut path = "/api/v1/tenants?limit=1".to_owned();
    loop {
        let (_, page) = call(&bob, Method::GET, &path, json!({})).await;
        seen.extend(page["items"].as_array().unwrap().iter().map(|tenant| tenant["id"].as_str().unwrap().to_owned()));
        let Some(next) = page["next"].as_str() else { break };
        path = format!("/api/v1/tenants?limit=1&after={next}");
    }
    assert_eq!(seen, [bob.id.as_str(), &team]);
    let (status, _) = call(&eve, Method::GET, &format!("/api/v1/tenants/{}", ada.id), json!({})).await;
    assert_eq!(status, 404, "somebody else's own");
    for (method, path, body) in [
        (Method::PATCH, at(""), json!({"name": "Mine"})),
        (Method::DELETE, at(&format!("/members/{}", ada.id)), json!({})),
        (Method::POST, at("/transfer"), json!({"user": bob.id})),
        (Method::GET, at("/invitations"), json!({})),
        (Method::POST, at("/invitations"), json!({"role": "guest"})),
    ] {
        assert_eq!(call(&bob, method.clone(), &path, body).await.0, 403, "{method} {path}");
    }
    let (status, members) = call(&bob, Method::GET, &at("/members?limit=1"), json!({})).await;
    assert_eq!((status, members["items"].as_array().unwrap().len()), (200, 1), "{members}");
    let rest = at(&format!("/members?after={}", members["next"].as_str().unwrap()));
    let (_, rest) = call(&bob, Method::GET, &rest, json!({})).await;
    assert_eq!((rest["items"].as_array().unwrap().len(), &rest["next"]), (1, &Value::Null), "{rest}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_a_workspace_is_named_by_field() {
    let app = TestApp::with("workspaces.max_per_user = 2\n").await;
    let (ada, bob) = (app.user("ada").await, app.user("bob").await);
    workspace(&ada, json!({"name": "Team", "slug": "team"})).await;
    for (body, field, code) in [
        (json!({"name": "Team", "slug": "team"}), "slug", "validation_not_unique"),
        (json!({"name": "Team", "slug": "www"}), "slug", "validation_reserved_slug"),
        (json!({"name": "Team", "slug": "a--b"}), "slug", "validation_invalid_slug"),
        (json!({"name": " ", "slug": "team-2"}), "name", "validation_invalid_name"),
        (json!({"name": "T", "slug": "team-2", "template": "global"}), "template", "validation_invalid_template"),
        (json!({"name": "T", "slug": "team-2", "template": "../x"}), "template", "validation_invalid_template"),
        (json!({"name": "T", "slug": "team-2", "identity": "x"}), "identity", "validation_invalid_identity"),
        (json!({"name": "T", "slug": "team-2", "public_read": ["/api/*"]}), "public_read", "validation_invalid_path"),
    ] {
        let (status, refused) = call(&ada, Method::POST, "/api/v1/tenants", body.clone()).await;
        assert_eq!((status, &refused["error"]["details"][field]["code"]), (400, &json!(code)), "{body}: {refused}");
    }
    let unknown = json!({"name": "T", "slug": "team-2", "owner": bob.id});
    assert_eq!(call(&ada, Method::POST, "/api/v1/tenants", unknown).await.0, 400, "nothing is assigned in passing");
    workspace(&ada, json!({"name": "Team", "slug": "team-2"})).await;
    let (status, full) = call(&ada, Method::POST, "/api/v1/tenants", json!({"name": "T", "slug": "team-3"})).await;
    assert_eq!((status, &full["error"]["details"]["limit"]), (409, &json!(2)), "{full}");
}

#[tokio::test(flavor = "multi_thread")]
async fn invitations_are_previewed_taken_declined_and_taken_back() {
    let app = TestApp::start().await;
    let (ada, bob, eve) = (app.user("ada").await, app.user("bob").await, app.user("eve").await);
    let team = workspace(&ada, json!({"name": "Team", "slug": "team"})).await;
    let path = format!("/api/v1/tenants/{team}/invitations");
    let invite = async |body: Value| call(&ada, Method::POST, &path, body).await.1;
    let made = invite(json!({"role": "member", "email": bob.email})).await;
    let token = json!({"token": made["token"]});
    let (_, listed) = call(&ada, Method::GET, &path, json!({})).await;
    assert_eq!(listed["items"], json!([made["invitation"]]));
    assert!(!listed.to_string().contains(made["token"].as_str().unwrap()), "shown once");
    let control = std::fs::read(app.data().join("control.db")).unwrap();
    let wal = std::fs::read(app.data().join("control.db-wal")).unwrap_or_default();
    let needle = made["token"].as_str().unwrap().as_bytes();
    assert!(![control, wal].concat().windows(needle.len()).any(|bytes| bytes == needle), "and kept nowhere");
    let to = |what: &str| format!("/api/v1/invitations/{what}");
    let (status, preview) = call(&bob, Method::POST, &to("preview"), token.clone()).await;
    assert_eq!((status, &preview["name"], &preview["role"]), (200, &json!("Team"), &json!("member")), "{preview}");
    for what in ["preview", "accept", "decline"] {
        assert_eq!(call(&eve, Method::POST, &to(what), token.clone()).await.0, 403, "{what}: it is for bob");
    }
    assert_eq!(call(&bob, Method::POST, &to("decline"), token.clone()).await.0, 204);
    assert_eq!(call(&bob, Method::POST, &to("accept"), token).await.0, 404);
    let made = invite(json!({"role": "guest"})).await;
    let id = made["invitation"]["id"].as_str().unwrap();
    assert_eq!(call(&ada, Method::DELETE, &format!("{path}/{id}"), json!({})).await.0, 204);
    assert_eq!(call(&ada, Method::DELETE, &format!("{path}/{id}"), json!({})).await.0, 404);
    assert_eq!(call(&bob, Method::POST, &to("accept"), json!({"token": made["token"]})).await.0, 404);
    let strangers = app.http.post(format!("{}{}", app.base, to("accept"))).json(&json!({"token": "x"})).send();
    assert_eq!(strangers.await.unwrap().status(), 401);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hosted_app_holds_no_row_of_its_owner() {
    let app = TestApp::start().await;
    let ada = app.user("ada").await;
    let public = json!(["/*", "/api/collections/posts/records*"]);
    let body = json!({"name": "Blog", "slug": "ada-blog", "identity": "own", "public_read": public});
    let blog = workspace(&ada, body).await;
    wake(&app, &blog);
    let path = app.data().join("instances").join(&blog).join("pb_data/data.db");
    let connection = rusqlite::Connection::open_with_flags(path, rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
    let count: i64 = connection.query_row("SELECT count(*) FROM users", [], |row| row.get(0)).unwrap();
    assert_eq!(count, 0);
    let (_, shown) = call(&ada, Method::GET, "/api/v1/tenants/ada-blog", json!({})).await;
    assert_eq!(
        (&shown["identity"], &shown["template"], &shown["public_read"]),
        (&json!("own"), &json!("hosted"), &public)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn archived_workspaces_sleep_and_operators_see_them() {
    let app = TestApp::start().await;
    let (ada, bob) = (app.user("ada").await, app.user("bob").await);
    let team = workspace(&ada, json!({"name": "Team", "slug": "team"})).await;
    join(&ada, &team, &bob, "member").await;
    wake(&app, &team);
    let (status, shown) = call(&ada, Method::PATCH, "/api/v1/tenants/team", json!({"archived": true})).await;
    assert_eq!((status, &shown["archived"]), (200, &json!(true)), "{shown}");
    assert_eq!(app.tenant(&team)["state"], "asleep");
    assert_eq!(call(&bob, Method::GET, "/api/v1/tenants/team", json!({})).await.0, 404);
    assert_eq!(call(&ada, Method::GET, "/api/v1/tenants/team", json!({})).await.0, 200);

    let listed = app.cli_json(&["workspaces", "list"]);
    assert_eq!((&listed["items"][0]["slug"], &listed["items"][0]["members"]), (&json!("team"), &json!(2)), "{listed}");
    assert_eq!(app.cli_json(&["workspaces", "show", "team"])["archived"], json!(true));
    let members = app.cli_json(&["workspaces", "members", &team]);
    assert_eq!(members["items"].as_array().unwrap().len(), 2, "{members}");
    let text = app.cli(&["workspaces", "list"]);
    assert!(String::from_utf8_lossy(&text.stdout).contains("archived"));
    assert!(!app.cli(&["workspaces", "show", &ada.id]).status.success(), "a personal tenant is none");
    assert!(!app.cli(&["workspaces", "transfer", "team", "nobody"]).status.success());
    assert_eq!(app.cli_json(&["workspaces", "transfer", "team", &bob.id])["owner"], json!(bob.id));
    assert_eq!(call(&bob, Method::PATCH, "/api/v1/tenants/team", json!({"archived": false})).await.0, 200);
}
