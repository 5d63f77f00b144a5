//! The example app in each of its roles: everybody's own, shared by members, and with visitors of its own.

use reqwest::Method;
use serde_json::Value;
use serde_json::json;

use crate::support::TestApp;
use crate::support::User;
use crate::support::command;
use crate::support::root;

const ENTRIES: &str = "/api/collections/entries/records";
const COUNT: &str = "/api/guestbook/count";
/// Of a hook, and not in `routes`.
const HIDDEN: &str = "/api/hidden";

/// The shipped templates with the guestbook, everybody's personal app, and with `visited`, the same for visitors.
async fn start() -> TestApp {
    let mut app = TestApp::prepare("pocketbase.personal_template = \"guestbook\"\n");
    let folder = app.dir.path().join("pb_templates");
    let copy = |from: &str, to: &str| {
        let from = root().join(from);
        assert!(command("cp").arg("-r").arg(from).arg(folder.join(to)).status().unwrap().success());
    };
    copy("pb_templates", "");
    for name in ["guestbook", "visited"] {
        copy("examples/guestbook", name);
        let route = format!("routerAdd('GET', '{HIDDEN}', (e) => e.json(200, {{ count: 'hidden' }}))");
        std::fs::write(folder.join(name).join("pb_hooks/hidden.pb.js"), route).unwrap();
    }
    std::fs::remove_file(folder.join("visited/pb_migrations/1800000001_users.js")).unwrap();
    app.add_keys(&format!("pocketbase.templates = \"{}\"\n", folder.display()));
    app.launch().await;
    app
}

async fn make(owner: &User, body: Value) {
    let made = owner.post("/api/v1/tenants", body).await;
    assert_eq!(made.status(), 201, "{}", made.text().await.unwrap());
}

/// Signs the book, and asks the route of its hook how many did.
async fn signs(who: &User) {
    let entry = who.post(ENTRIES, json!({"message": "Good to be here!"})).await;
    assert_eq!(entry.status(), 200);
    assert_eq!(entry.json::<Value>().await.unwrap()["slug"], "good-to-be-here", "the record hook ran");
    let count = who.get(COUNT).await;
    assert_eq!(count.status(), 200);
    assert_eq!(count.json::<Value>().await.unwrap()["count"], 1);
    for method in [Method::GET, Method::POST] {
        assert_eq!(who.request(method, HIDDEN).send().await.unwrap().status(), 404);
    }
}

async fn page(app: &TestApp, slug: &str) {
    let page = app.get(&format!("/t/{slug}/")).await;
    assert_eq!(page.status(), 200);
    assert!(page.headers()["content-type"].to_str().unwrap().starts_with("text/html"));
    assert!(page.text().await.unwrap().contains("<h1>Guestbook</h1>"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_guestbook_works_at_home_in_a_workspace_and_as_a_hosted_app() {
    let app = start().await;
    let (ada, eve) = (app.user("ada").await, app.user("eve").await);
    // Everybody's own.
    signs(&ada).await;
    for path in [COUNT, HIDDEN] {
        assert_eq!(app.get(path).await.status(), 404, "nobody is told of the routes of others: {path}");
    }

    // Shared by members.
    make(&ada, json!({"name": "Guestbook", "slug": "guestbook", "template": "guestbook"})).await;
    let at = |who: &User, slug: &str| User { base: format!("{}/t/{slug}", app.base), ..who.clone() };
    signs(&at(&ada, "guestbook")).await;
    page(&app, "guestbook").await;
    for path in [COUNT, HIDDEN] {
        assert_eq!(app.get(&format!("/t/guestbook{path}")).await.status(), 401, "{path}");
        assert_eq!(at(&eve, "guestbook").get(path).await.status(), 404, "{path}");
    }

    // With visitors of its own.
    let book = json!({"name": "Visited", "slug": "visited", "template": "visited", "identity": "own"});
    make(&ada, book).await;
    page(&app, "visited").await;
    let form = json!({"email": "zoe@example.com", "password": "password-of-zoe", "passwordConfirm": "password-of-zoe"});
    let users = "/t/visited/api/collections/users";
    assert_eq!(app.post(&format!("{users}/records"), form).await.status(), 200);
    let form = json!({"identity": "zoe@example.com", "password": "password-of-zoe"});
    let signed_in: Value = app.post(&format!("{users}/auth-with-password"), form).await.json().await.unwrap();
    let zoe = User { token: signed_in["token"].as_str().unwrap().to_owned(), ..at(&ada, "visited") };
    signs(&zoe).await;
    for token in [None, Some(&ada.token)] {
        let request = app.http.get(format!("{}/t/visited{COUNT}", app.base));
        let request = if let Some(token) = token { request.bearer_auth(token) } else { request };
        assert_eq!(request.send().await.unwrap().status(), 401);
    }
    assert_eq!(app.get(&format!("/t/visited{HIDDEN}")).await.status(), 404);
}
