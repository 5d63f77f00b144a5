//! Apps with users of their own: their tokens are theirs alone, and no credential of anybody else counts or arrives.

use std::time::Duration;
use std::time::SystemTime;

use pocketfleet::pocketbase::token::Signer;
use reqwest::Method;
use reqwest::StatusCode;
use reqwest::multipart;
use serde_json::Value;
use serde_json::json;

use crate::support::TestApp;
use crate::support::User;
use crate::support::command;
use crate::support::root;
use crate::support::sse::Stream;
use crate::tokens::key;

const POSTS: &str = "/api/collections/posts/records";
const USERS: &str = "/api/collections/users";

/// Files to publish and to keep.
const FILES: &str = "migrate((app) => {
  const posts = app.findCollectionByNameOrId('posts')
  posts.fields.add(new FileField({ name: 'picture', maxSelect: 1, maxSize: 1000000 }))
  posts.fields.add(new FileField({ name: 'secret', maxSelect: 1, maxSize: 1000000, protected: true }))
  app.save(posts)
}, (app) => {})";

/// What arrives at the instance is said in its answers.
const MIRROR: &str = "routerUse((e) => {
  const seen = `${e.request.header.get('Authorization')}|${e.request.url.rawQuery}`
  e.response.header().set('X-Seen', seen)
  return e.next()
})";

/// An app with a hosted app `daily` in it, and its owner.
async fn start(keys: &str) -> (TestApp, User, String) {
    let mut app = TestApp::prepare(keys);
    let folder = app.dir.path().join("pb_templates");
    assert!(command("cp").arg("-r").arg(root().join("pb_templates")).arg(&folder).status().unwrap().success());
    std::fs::write(folder.join("hosted/pb_migrations/1900000001_files.js"), FILES).unwrap();
    std::fs::create_dir(folder.join("hosted/pb_hooks")).unwrap();
    std::fs::write(folder.join("hosted/pb_hooks/mirror.pb.js"), MIRROR).unwrap();
    app.add_keys(&format!("pocketbase.templates = \"{}\"\n", folder.display()));
    app.launch().await;
    let owner = app.user("ada").await;
    let blog = make(&owner, "daily").await;
    (app, owner, blog)
}

/// Makes a hosted app and gives its id.
async fn make(owner: &User, slug: &str) -> String {
    let body = json!({"name": "Blog", "slug": slug, "identity": "own", "template": "hosted"});
    let answer = owner.post("/api/v1/tenants", body).await;
    let status = answer.status();
    let made: Value = answer.json().await.unwrap();
    assert_eq!((status, &made["identity"]), (StatusCode::CREATED, &json!("own")), "{made}");
    made["id"].as_str().unwrap().to_owned()
}

/// Signs up and in at an app.
async fn visitor(app: &TestApp, slug: &str, name: &str) -> User {
    let base = format!("{}/t/{slug}", app.base);
    let (email, password) = (format!("{name}@example.com"), format!("password-of-{name}"));
    let body = json!({"email": email, "password": password, "passwordConfirm": password, "name": name});
    let made = app.http.post(format!("{base}{USERS}/records")).json(&body).send().await.unwrap();
    assert_eq!(made.status(), 200, "{}", made.text().await.unwrap());
    let signed_in = sign_in(app, &base, &email, &password).await;
    let answer: Value = signed_in.json().await.unwrap();
    assert!(answer["token"].is_string(), "{answer}");
    User {
        id: answer["record"]["id"].as_str().unwrap().to_owned(),
        email,
        password,
        token: answer["token"].as_str().unwrap().to_owned(),
        base,
        http: app.http.clone(),
    }
}

async fn sign_in(app: &TestApp, base: &str, email: &str, password: &str) -> reqwest::Response {
    let url = format!("{base}{USERS}/auth-with-password");
    app.http.post(url).json(&json!({"identity": email, "password": password})).send().await.unwrap()
}

async fn post(who: &User, title: &str, published: bool) -> Value {
    let answer = who.post(POSTS, json!({"title": title, "published": published, "author": who.id})).await;
    let status = answer.status();
    let body: Value = answer.json().await.unwrap();
    assert_eq!(status, 200, "{body}");
    body
}

/// Asks the app with this token; the status, how many records, and what arrived of the credential.
async fn list(app: &TestApp, token: Option<&str>, path: &str) -> (u16, u64, String) {
    let mut request = app.http.get(format!("{}/t/daily{path}", app.base));
    if let Some(token) = token {
        request = request.header("authorization", token);
    }
    let answer = request.send().await.unwrap();
    let status = answer.status().as_u16();
    let seen = answer.headers().get("x-seen").map(|seen| seen.to_str().unwrap().to_owned()).unwrap_or_default();
    let body: Value = answer.json().await.unwrap_or_default();
    (status, body["totalItems"].as_u64().unwrap_or_default(), seen)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_has_users_of_its_own_by_path_and_by_host() {
    let (app, ada, blog) = start("server.domain = \"fleet.example\"\n").await;
    // The address of an account of ours is free here, and the other way round.
    let eve = visitor(&app, "daily", "ada").await;
    assert_ne!(eve.id, ada.id);
    assert_eq!(
        sign_in(&app, &eve.base, &ada.email, &ada.password).await.status(),
        200,
        "the same words, another person"
    );
    let wrong = sign_in(&app, &eve.base, &eve.email, "not the password").await;
    assert_eq!(wrong.status(), 400);
    let zoe = visitor(&app, "daily", "zoe").await;
    assert_eq!(sign_in(&app, &app.base, &zoe.email, &zoe.password).await.status(), 400, "no account of ours was made");
    assert_eq!(zoe.at(&app).get("/auth/me").await.status(), 401, "a token of the app is nothing to us");

    post(&eve, "draft", false).await;
    post(&eve, "public", true).await;
    assert_eq!(list(&app, Some(&eve.token), POSTS).await.1, 2);
    assert_eq!(list(&app, Some(&zoe.token), POSTS).await.1, 1, "another's drafts");
    assert_eq!(list(&app, None, POSTS).await.1, 1);
    let refreshed = eve.post(&format!("{USERS}/auth-refresh"), json!({})).await;
    assert_eq!(refreshed.status(), 200);
    let token = refreshed.json::<Value>().await.unwrap()["token"].as_str().unwrap().to_owned();
    let eve = User { token, ..eve };
    let me: Value = eve.get(&format!("{USERS}/records/{}", eve.id)).await.json().await.unwrap();
    assert_eq!(me["email"], eve.email.as_str(), "{me}");
    let path = format!("{USERS}/records/{}", eve.id);
    let renamed = eve.request(Method::PATCH, &path).json(&json!({"name": "Eve"})).send().await.unwrap();
    assert_eq!(renamed.json::<Value>().await.unwrap()["name"], "Eve");
    assert_eq!(zoe.request(Method::DELETE, &path).send().await.unwrap().status(), 404);

    // By host and by id it is the same app.
    for host in ["daily.fleet.example", &format!("{blog}.fleet.example")] {
        let by_host =
            |method: Method, path: &str| app.http.request(method, format!("{}{path}", app.base)).header("host", host);
        let body = json!({"identity": eve.email, "password": eve.password});
        let signed_in = by_host(Method::POST, &format!("{USERS}/auth-with-password")).json(&body).send().await.unwrap();
        let token = signed_in.json::<Value>().await.unwrap()["token"].as_str().unwrap().to_owned();
        let listed: Value = by_host(Method::GET, POSTS).bearer_auth(&token).send().await.unwrap().json().await.unwrap();
        assert_eq!(listed["totalItems"], 2, "{listed}");
        let page = by_host(Method::GET, "/").send().await.unwrap();
        assert_eq!(page.status(), 200);
        assert!(page.text().await.unwrap().contains("<h1>Posts</h1>"));
    }
    let page = app.get("/t/daily/").await;
    assert!(page.headers()["content-type"].to_str().unwrap().starts_with("text/html"));
    assert!(page.text().await.unwrap().contains("<h1>Posts</h1>"));
    // As in PocketBase itself, what is not there is the page of an app that routes in the browser.
    assert!(app.get("/t/daily/not/there").await.text().await.unwrap().contains("<h1>Posts</h1>"));
}

/// Credentials that must be worth nothing at the blog, whoever shows them.
async fn worthless(
    app: &TestApp,
    owner: &User,
    blog: &str,
    eve: &User,
    stranger: &User,
) -> Vec<(&'static str, String)> {
    let database = app.data().join("instances").join(blog).join("pb_data/data.db");
    let (collection_id, key) = key(&database, &eve.id);
    let real = Signer { collection_id, record_id: eve.id.clone(), key };
    let (now, hour) = (SystemTime::now(), Duration::from_hours(1));
    let (_, foreign) = self::key(&app.data().join("instances/global/pb_data/data.db"), &owner.id);
    let file: Value = owner.post("/api/files/token", json!({})).await.json().await.unwrap();
    vec![
        ("ours, of its owner", owner.token.clone()),
        ("ours, for files", file["token"].as_str().unwrap().to_owned()),
        ("another app's", stranger.token.clone()),
        ("expired", real.mint(now - hour * 2, hour)),
        ("signed with another key", Signer { key: foreign, ..real.clone() }.mint(now, hour)),
        ("of a user who is not there", Signer { record_id: "zzzzzzzzzzzzzzz".to_owned(), ..real }.mint(now, hour)),
        ("a superuser's", superuser(app, blog)),
        ("a word", "garbage".to_owned()),
        ("almost a token", "eyJhbGciOiJIUzI1NiJ9.e30.x".to_owned()),
    ]
}

/// A token of the instance's own superuser, valid there.
fn superuser(app: &TestApp, tenant: &str) -> String {
    let path = app.data().join("instances").join(tenant).join("pb_data/data.db");
    let flags = rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY;
    let connection = rusqlite::Connection::open_with_flags(path, flags).unwrap();
    let (record_id, token_key): (String, String) =
        connection.query_row("SELECT id, tokenKey FROM _superusers", [], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
    let sql = "SELECT id, json_extract(CAST(options AS TEXT), '$.authToken.secret') FROM _collections \
               WHERE name = '_superusers'";
    let (collection_id, secret): (String, String) =
        connection.query_row(sql, [], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
    let key = pocketfleet::pocketbase::token::Key::new(&token_key, &secret);
    Signer { collection_id, record_id, key }.mint(SystemTime::now(), Duration::from_hours(1))
}

#[tokio::test(flavor = "multi_thread")]
async fn no_other_credential_counts_arrives_or_wakes_an_app() {
    let (app, ada, blog) = start("").await;
    make(&ada, "kiosk").await;
    let eve = visitor(&app, "daily", "eve").await;
    let shopper = visitor(&app, "kiosk", "eve").await;
    post(&eve, "draft", false).await;
    post(&eve, "public", true).await;
    let worthless = worthless(&app, &ada, &blog, &eve, &shopper).await;
    // Nothing of it is public: one's own account, a write, a refresh, a batch.
    let private = format!("{USERS}/records/{}", eve.id);
    let calls = [
        (Method::GET, private.as_str()),
        (Method::GET, &format!("{USERS}/records")),
        (Method::POST, POSTS),
        (Method::PATCH, &private),
        (Method::DELETE, &private),
        (Method::POST, &format!("{USERS}/auth-refresh")),
        (Method::POST, "/api/batch"),
        (Method::POST, "/api/files/token"),
    ];
    for asleep in [false, true] {
        if asleep {
            app.put_to_sleep(&blog);
        }
        for (method, path) in &calls {
            for (what, token) in worthless.iter().chain([&("nothing", String::new())]) {
                let mut request = app.http.request(method.clone(), format!("{}/t/daily{path}", app.base));
                if !token.is_empty() {
                    request = request.header("authorization", token);
                }
                let body = json!({"title": "forged", "author": eve.id, "requests": []});
                let answer = request.json(&body).send().await.unwrap();
                assert_eq!(answer.status(), 401, "{method} {path} with {what}, asleep: {asleep}");
            }
        }
        let state = if asleep { "asleep" } else { "awake" };
        assert_eq!(app.tenant(&blog)["state"], state);
    }
    // Public things are had all the same, and what was shown stays here.
    for (what, token) in &worthless {
        assert_eq!(list(&app, Some(token), POSTS).await, (200, 1, "|".to_owned()), "{what}");
        let request = app.http.post(format!("{}{USERS}/auth-with-password", eve.base)).header("authorization", token);
        let body = json!({"identity": eve.email, "password": eve.password});
        let answer = request.json(&body).send().await.unwrap();
        assert_eq!((answer.status().as_u16(), answer.headers()["x-seen"].to_str().unwrap()), (200, "|"), "{what}");
    }
    // The app's own token wakes it and arrives as it was sent.
    app.put_to_sleep(&blog);
    let (status, count, seen) = list(&app, Some(&eve.token), POSTS).await;
    assert_eq!((status, count, seen), (200, 2, format!("{}|", eve.token)));
    assert_eq!(shopper.get(POSTS).await.json::<Value>().await.unwrap()["totalItems"], 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_wake_an_app_for_what_is_public_within_its_budget() {
    let (app, _, blog) = start("server.public_wakes = 3\n").await;
    let eve = visitor(&app, "daily", "eve").await;
    post(&eve, "public", true).await;
    // One of three went for the sign-up.
    for path in [POSTS, "/"] {
        app.put_to_sleep(&blog);
        assert_eq!(app.get(&format!("/t/daily{path}")).await.status(), 200, "{path}");
        assert_eq!(app.tenant(&blog)["state"], "awake");
    }
    app.put_to_sleep(&blog);
    for path in [POSTS, "/", "/api/collections/users/auth-methods"] {
        let refused = app.get(&format!("/t/daily{path}")).await;
        assert_eq!(refused.status(), 429, "{path}");
        assert!(refused.headers().contains_key("retry-after"));
    }
    let refused = sign_in(&app, &eve.base, &eve.email, &eve.password).await;
    assert_eq!(refused.status(), 429);
    for path in [&format!("{USERS}/records"), "/api/collections/posts/recordsx", "/api/nothing"] {
        let status = app.get(&format!("/t/daily{path}")).await.status().as_u16();
        assert!([401, 404].contains(&status), "{path}: {status}");
    }
    assert_eq!(app.tenant(&blog)["state"], "asleep");
    // Whoever has signed in is no stranger; and nobody is while it is awake.
    assert_eq!(eve.get(POSTS).await.status(), 200);
    assert_eq!(app.get(&format!("/t/daily{POSTS}")).await.status(), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn sign_ins_are_limited_by_address() {
    let (app, _, blog) = start("server.hosted_sign_ins_per_ip = 4\n").await;
    let eve = visitor(&app, "daily", "eve").await;
    for attempt in 0..2 {
        assert_eq!(sign_in(&app, &eve.base, &eve.email, "wrong").await.status(), 400, "{attempt}");
    }
    let refused = sign_in(&app, &eve.base, &eve.email, &eve.password).await;
    assert_eq!(refused.status(), 429);
    assert!(refused.headers().contains_key("retry-after"));
    let again = json!({"email": "x@example.com", "password": "12345678", "passwordConfirm": "12345678"});
    for path in [format!("{USERS}/records"), format!("{USERS}/request-password-reset"), "/api/batch".to_owned()] {
        let answer = app.post(&format!("/t/daily{path}"), again.clone()).await;
        assert_eq!(answer.status(), 429, "{path}");
    }
    // Who is in goes on, and another app has a count of its own.
    assert_eq!(eve.post(&format!("{USERS}/auth-refresh"), json!({})).await.status(), 200);
    assert_eq!(app.get("/t/daily/api/collections/users/auth-methods").await.status(), 200);
    assert_eq!(app.tenant(&blog)["state"], "awake");
}

#[tokio::test(flavor = "multi_thread")]
async fn files_are_public_or_for_the_apps_own_file_tokens() {
    let (app, ada, blog) = start("").await;
    let eve = visitor(&app, "daily", "eve").await;
    let part = |text: &str| multipart::Part::bytes(text.as_bytes().to_vec()).file_name("a.txt");
    let form = multipart::Form::new().text("title", "files").text("author", eve.id.clone());
    let form = form.part("picture", part("for all")).part("secret", part("for eve"));
    let record: Value = eve.request(Method::POST, POSTS).multipart(form).send().await.unwrap().json().await.unwrap();
    let at = |field: &str| {
        let (id, name) = (record["id"].as_str().unwrap(), record[field].as_str().unwrap());
        format!("/t/daily/api/files/posts/{id}/{name}")
    };
    let ours: Value = ada.post("/api/files/token", json!({})).await.json().await.unwrap();
    let ours = ours["token"].as_str().unwrap().to_owned();
    let own: Value = eve.post("/api/files/token", json!({})).await.json().await.unwrap();
    let own = own["token"].as_str().unwrap().to_owned();
    for _ in 0..2 {
        app.put_to_sleep(&blog);
        let public = app.get(&at("picture")).await;
        assert_eq!(public.text().await.unwrap(), "for all");
        for query in [String::new(), format!("?token={ours}"), format!("?token={}", ada.token), "?token=x".to_owned()] {
            assert_eq!(app.get(&format!("{}{query}", at("secret"))).await.status(), 404, "{query}");
        }
        app.put_to_sleep(&blog);
        let secret = app.get(&format!("{}?token={own}", at("secret"))).await;
        assert_eq!(secret.status(), 200, "it wakes the app");
        assert!(secret.headers()["cache-control"].to_str().unwrap().contains("private"));
        assert_eq!(secret.text().await.unwrap(), "for eve");
    }
    // Beside a token of the app's own nothing else arrives: neither ours in the header nor ours in the query.
    let seen = async |token: &str, query: &str| {
        let url = format!("{}{}?token={query}&thumb=", app.base, at("picture"));
        let answer = app.http.get(url).header("authorization", token).send().await.unwrap();
        assert_eq!(answer.status(), 200);
        answer.headers()["x-seen"].to_str().unwrap().to_owned()
    };
    assert_eq!(seen(&ada.token, &own).await, format!("|thumb=&token={own}"));
    let header_only = seen(&eve.token, &ours).await;
    assert!(header_only.starts_with(&format!("{}|", eve.token)) && !header_only.contains(&ours), "{header_only}");
    let neither = seen(&ada.token, &ours).await;
    assert!(!neither.contains(&ada.token) && !neither.contains(&ours), "{neither}");
}

#[tokio::test(flavor = "multi_thread")]
async fn visitors_and_strangers_hear_of_what_they_may_across_sleep() {
    let (app, ada, blog) = start("").await;
    make(&ada, "kiosk").await;
    let (eve, zoe) = (visitor(&app, "daily", "eve").await, visitor(&app, "daily", "zoe").await);
    let shopper = visitor(&app, "kiosk", "eve").await;
    let base = format!("{}/t/daily", app.base);
    let (own, other, nobody) = (Stream::at(&base).await, Stream::at(&base).await, Stream::at(&base).await);
    assert_eq!(own.subscribe(Some(&eve.token), &["posts/*"]).await, 204);
    assert_eq!(other.subscribe(Some(&zoe.token), &["posts/*"]).await, 204);
    assert_eq!(nobody.subscribe(None, &["posts/*"]).await, 204);
    for title in ["awake", "asleep", "again"] {
        if title != "awake" {
            app.put_to_sleep(&blog);
        }
        post(&eve, &format!("draft {title}"), false).await;
        post(&eve, title, true).await;
    }
    assert_eq!(own.until("again").await, ["draft awake", "awake", "draft asleep", "asleep", "draft again", "again"]);
    for stream in [&other, &nobody] {
        assert_eq!(stream.until("again").await, ["awake", "asleep", "again"]);
    }
    for asleep in [false, true] {
        if asleep {
            app.put_to_sleep(&blog);
        }
        let stream = Stream::at(&base).await;
        for token in
            [None, Some(ada.token.as_str()), Some(&shopper.token), Some("garbage"), Some(&superuser(&app, &blog))]
        {
            assert_eq!(stream.subscribe(token, &["users/*"]).await, 401, "asleep: {asleep}");
            assert_eq!(stream.subscribe(token, &["posts/*", "users/*"]).await, 401);
        }
        // Ours is as good as none.
        assert_eq!(stream.subscribe(Some(&ada.token), &["posts/*"]).await, 204);
        assert_eq!(app.tenant(&blog)["state"], if asleep { "asleep" } else { "awake" });
    }
    // One app's stream does not become another's.
    let shop = format!("{}/t/kiosk", app.base);
    let body = json!({"clientId": own.id, "subscriptions": ["posts/*"]});
    let answer = app.http.post(format!("{shop}/api/realtime")).header("authorization", &shopper.token).json(&body);
    assert_eq!(answer.send().await.unwrap().status(), 403);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_offers_no_more_of_pocketbase_than_any_tenant() {
    let (app, ada, _) = start("server.domain = \"fleet.example\"\n").await;
    let eve = visitor(&app, "daily", "eve").await;
    for (method, path) in [
        (Method::POST, "/api/collections/_superusers/auth-with-password"),
        (Method::POST, "/api/collections/pbc_3142635823/auth-with-password"),
        (Method::POST, "/api/collections/_superusers/records"),
        (Method::GET, "/api/collections/_superusers/records"),
        (Method::POST, &format!("/api/collections/users/impersonate/{}", eve.id)),
        (Method::GET, "/api/settings"),
        (Method::GET, "/api/collections"),
        (Method::GET, "/api/backups"),
        (Method::GET, "/api/logs"),
        (Method::POST, "/api/sql"),
        (Method::GET, "/api/crons"),
        (Method::GET, "/_/"),
        (Method::GET, "/api/v1/auth/me"),
        (Method::GET, "/api/mirror"),
    ] {
        for token in [None, Some(&eve.token), Some(&ada.token)] {
            let by_path = app.http.request(method.clone(), format!("{}{path}", eve.base));
            let by_host = app.http.request(method.clone(), format!("{}{path}", app.base));
            for request in [by_path, by_host.header("host", "daily.fleet.example")] {
                let request = if let Some(token) = token { request.header("authorization", token) } else { request };
                let answer = request.json(&json!({"identity": "a@b.c", "password": "x"})).send().await.unwrap();
                assert_eq!(answer.status(), 404, "{method} {path}");
            }
        }
    }
    // A batch is no way around.
    let item = json!({"method": "POST", "url": "/api/collections/_superusers/records", "body": {"email": "x@y.z"}});
    assert_ne!(eve.post("/api/batch", json!({"requests": [item]})).await.status(), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_elsewhere_may_call_an_app_and_preflights_wake_nothing() {
    let (app, _, daily) = start("server.domain = \"fleet.example\"\n").await;
    let eve = visitor(&app, "daily", "eve").await;
    post(&eve, "public", true).await;
    app.put_to_sleep(&daily);
    for (host, prefix) in [("localhost", "/t/daily"), ("daily.fleet.example", "")] {
        for path in [POSTS, "/api/realtime", "/api/collections/users/auth-with-password", "/api/batch"] {
            let url = format!("{}{prefix}{path}", app.base);
            let asked =
                app.http.request(Method::OPTIONS, url).header("host", host).header("origin", "https://a.example");
            let asked = asked
                .header("access-control-request-method", "POST")
                .header("access-control-request-headers", "authorization,content-type");
            let answer = asked.send().await.unwrap();
            assert!(answer.status().is_success(), "{path}: {}", answer.status());
            assert!(answer.headers().contains_key("access-control-allow-origin"), "{path}");
            let allowed = answer.headers()["access-control-allow-headers"].to_str().unwrap().to_ascii_lowercase();
            assert!(allowed.contains('*') || allowed.contains("authorization"), "{allowed}");
        }
    }
    assert_eq!(app.tenant(&daily)["state"], "asleep");
    for (host, prefix) in [("localhost", "/t/daily"), ("daily.fleet.example", "")] {
        let url = format!("{}{prefix}{POSTS}", app.base);
        let asked = app.http.get(url).header("host", host).header("origin", "https://a.example");
        let answer = asked.send().await.unwrap();
        assert_eq!(answer.status(), 200);
        assert_eq!(answer.headers().get_all("access-control-allow-origin").iter().count(), 1);
        let page = app.http.head(format!("{}{prefix}/", app.base)).header("host", host).send().await.unwrap();
        assert_eq!(page.status(), 200);
    }
}
