//! Files as browsers fetch them: without an `Authorization` header, by file token, by a tenant's address, in parts.

#![expect(clippy::unwrap_used, reason = "a step that fails fails the test")]

use std::path::PathBuf;

use reqwest::Method;
use reqwest::multipart;
use serde_json::Value;

use crate::support::TestApp;
use crate::support::User;
use crate::support::root;

/// A one-pixel PNG, which thumbnails can be made of.
const PIXEL: &[u8] = &[
    0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a, 0x00, 0x00, 0x00, 0x0d, 0x49, 0x48, 0x44, 0x52, 0x00, 0x00, 0x00,
    0x01, 0x00, 0x00, 0x00, 0x01, 0x08, 0x02, 0x00, 0x00, 0x00, 0x90, 0x77, 0x53, 0xde, 0x00, 0x00, 0x00, 0x0c, 0x49,
    0x44, 0x41, 0x54, 0x08, 0xd7, 0x63, 0xf8, 0xcf, 0xc0, 0x00, 0x00, 0x03, 0x01, 0x01, 0x00, 0x18, 0xdd, 0x8d, 0xb0,
    0x00, 0x00, 0x00, 0x00, 0x49, 0x45, 0x4e, 0x44, 0xae, 0x42, 0x60, 0x82,
];

const PROTECTED: &str = "migrate((app) => {
  const notes = app.findCollectionByNameOrId('notes')
  notes.fields.add(new FileField({ name: 'secret', maxSelect: 1, maxSize: 1000000, protected: true }))
  app.save(notes)
}, (app) => {})";

/// The shipped templates, with a protected file in the notes.
fn templates(app: &TestApp) -> PathBuf {
    let to = app.dir.path().join("pb_templates");
    let copied = crate::support::command("cp").arg("-r").arg(root().join("pb_templates")).arg(&to).status().unwrap();
    assert!(copied.success());
    std::fs::write(to.join("personal/pb_migrations/1900000000_secret.js"), PROTECTED).unwrap();
    to
}

async fn start(keys: &str) -> TestApp {
    let mut app = TestApp::prepare(keys);
    let folder = templates(&app);
    app.add_keys(&format!("pocketbase.templates = \"{}\"\n", folder.display()));
    app.launch().await;
    app
}

struct Uploaded {
    record: String,
    public: String,
    secret: String,
}

async fn upload(user: &User) -> Uploaded {
    let part = |name: &str| multipart::Part::bytes(PIXEL).file_name(name.to_owned()).mime_str("image/png").unwrap();
    let form =
        multipart::Form::new().text("title", "x").part("attachments", part("a.png")).part("secret", part("s.png"));
    let answer = user.request(Method::POST, "/api/collections/notes/records").multipart(form).send().await.unwrap();
    let status = answer.status();
    let record: Value = answer.json().await.unwrap();
    assert_eq!(status, 200, "{record}");
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    Uploaded { record: text(&record["id"]), public: text(&record["attachments"][0]), secret: text(&record["secret"]) }
}

async fn file_token(user: &User) -> String {
    let answer = user.request(Method::POST, "/api/files/token").send().await.unwrap();
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.headers()["cache-control"], "no-store");
    answer.json::<Value>().await.unwrap()["token"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_file_token_names_its_user_and_dies_with_the_session() {
    let app = start("").await;
    let (ada, bob) = (app.user("ada").await, app.user("bob").await);
    let files = upload(&ada).await;
    let path = |name: &str| format!("/api/files/notes/{}/{name}", files.record);
    let token = file_token(&ada).await;
    let bobs = file_token(&bob).await;
    app.put_to_sleep(&ada.id);
    for name in [&files.public, &files.secret] {
        // Nobody is told whose file this could be, and nothing wakes for it.
        assert_eq!(app.get(&path(name)).await.status(), 404);
        assert_eq!(app.get(&format!("{}?token=nonsense", path(name))).await.status(), 404);
        assert_eq!(app.tenant(&ada.id)["state"], "asleep");
    }
    // The token alone wakes the instance, and opens the protected file as well.
    for name in [&files.secret, &files.public] {
        let answer = app.get(&format!("{}?token={token}", path(name))).await;
        assert_eq!(answer.status(), 200, "{name}");
        assert!(answer.headers()["cache-control"].to_str().unwrap().contains("private"));
        assert_eq!(answer.bytes().await.unwrap(), PIXEL);
    }
    // Another's token means another's instance, where there is no such file.
    assert_eq!(app.get(&format!("{}?token={bobs}", path(&files.secret))).await.status(), 404);
    // It is for files only, and an auth token is none.
    assert_eq!(
        app.http
            .get(format!("{}/api/collections/notes/records", app.base))
            .bearer_auth(&token)
            .send()
            .await
            .unwrap()
            .status(),
        401
    );
    assert_eq!(app.get(&format!("{}?token={}", path(&files.secret), ada.token)).await.status(), 404);
    // The header alone does for public files only, as in PocketBase itself.
    assert_eq!(ada.get(&path(&files.public)).await.status(), 200);
    assert_eq!(ada.get(&path(&files.secret)).await.status(), 404);
    assert_eq!(ada.get(&format!("{}?token={token}", path(&files.secret))).await.status(), 200);

    assert_eq!(ada.post("/auth/logout", Value::Null).await.status(), 204);
    assert_eq!(app.get(&format!("{}?token={token}", path(&files.secret))).await.status(), 404);
}

#[tokio::test]
async fn a_tenants_address_serves_its_public_files_to_everybody_and_wakes_for_existing_ones_only() {
    let app = start("server.domain = \"fleet.example\"\n").await;
    let ada = app.user("ada").await;
    let files = upload(&ada).await;
    let token = file_token(&ada).await;
    let at = |name: &str| format!("/t/{}/api/files/notes/{}/{name}", ada.id, files.record);
    app.put_to_sleep(&ada.id);
    for path in [at("guessed_name.png"), at("..hidden"), format!("/t/{}/api/files/notes/x/y", ada.id)] {
        assert_eq!(app.get(&path).await.status(), 404, "{path}");
    }
    assert_eq!(app.get(&at(&files.public).replace(&ada.id, "nobodyatallhere")).await.status(), 404);
    assert_eq!(app.tenant(&ada.id)["state"], "asleep");

    let answer = app.get(&at(&files.public)).await;
    assert_eq!(answer.status(), 200);
    assert!(!answer.headers()["cache-control"].to_str().unwrap().contains("private"), "the same for everybody");
    assert_eq!(answer.bytes().await.unwrap(), PIXEL);
    assert_eq!(app.get(&at(&files.secret)).await.status(), 404);
    assert_eq!(app.get(&format!("{}?token={token}", at(&files.secret))).await.status(), 200);
    // By host as well.
    let path = format!("/api/files/notes/{}/{}", files.record, files.public);
    let host = format!("{}.fleet.example", ada.id);
    let by_host = || app.http.get(format!("{}{path}", app.base)).header("host", &host);
    assert_eq!(by_host().send().await.unwrap().status(), 200);
    // Thumbs, parts and conditions pass through.
    assert_eq!(app.get(&format!("{}?thumb=10x10", at(&files.public))).await.status(), 200);
    let part = by_host().header("range", "bytes=1-3").send().await.unwrap();
    assert_eq!(part.status(), 206);
    assert_eq!(part.headers()["content-range"], format!("bytes 1-3/{}", PIXEL.len()));
    assert_eq!(part.bytes().await.unwrap(), &PIXEL[1..4]);
    let whole = by_host().send().await.unwrap();
    let modified = whole.headers().get("last-modified").or_else(|| whole.headers().get("etag")).unwrap().clone();
    let condition = if whole.headers().contains_key("last-modified") { "if-modified-since" } else { "if-none-match" };
    assert_eq!(by_host().header(condition, modified).send().await.unwrap().status(), 304);
}

#[tokio::test]
async fn strangers_wake_a_tenant_within_its_budget() {
    let app = start("server.public_wakes = 1\n").await;
    let ada = app.user("ada").await;
    let files = upload(&ada).await;
    let path = format!("/t/{}/api/files/notes/{}/{}", ada.id, files.record, files.public);
    app.put_to_sleep(&ada.id);
    assert_eq!(app.get(&path).await.status(), 200);
    app.put_to_sleep(&ada.id);
    let refused = app.get(&path).await;
    assert_eq!(refused.status(), 429);
    assert!(refused.headers().contains_key("retry-after"));
    assert_eq!(app.tenant(&ada.id)["state"], "asleep");
    // The owner is not counted, and once it is awake nobody is.
    assert_eq!(ada.get(&format!("/t/{}/api/collections/notes/records", ada.id)).await.status(), 200);
    assert_eq!(app.get(&path).await.status(), 200);
}
