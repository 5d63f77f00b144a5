//! The people of the matrix, what they own, and the credentials they come with.

use std::collections::BTreeMap;
use std::time::Duration;
use std::time::SystemTime;

use pocketfleet::pocketbase::token::Signer;
use reqwest::Method;
use reqwest::multipart;
use serde_json::Value;
use serde_json::json;

use crate::api_keys;
use crate::matrix::Who;
use crate::support::TestApp;
use crate::support::User;
use crate::tokens::key;

/// What the owner keeps in the vault.
pub(crate) const SECRET: &str = "kept-by-the-owner";

pub(crate) struct World {
    base: String,
    http: reqwest::Client,
    tokens: BTreeMap<Who, String>,
    accounts: BTreeMap<Who, String>,
    pub(crate) owner: String,
    pub(crate) other: String,
    /// The workspace's id; its slug is `acme`.
    pub(crate) workspace: String,
    pub(crate) owners_note: (String, String),
    pub(crate) others_note: (String, String),
    pub(crate) shared_note: (String, String),
    /// A session of the owner and one of the other.
    pub(crate) sessions: (String, String),
    /// A job that waits, of the owner and of the other, and the owner's API key's id.
    pub(crate) jobs: (String, String),
    pub(crate) api_key: String,
    /// A secret of the owner's in the vault, and a destination of theirs.
    pub(crate) secret: String,
    pub(crate) destination: String,
    /// A schedule of the owner's.
    pub(crate) schedule: String,
}

impl World {
    pub(crate) async fn make(app: &mut TestApp) -> Self {
        let owner = app.user("owner").await;
        let other = app.user("other").await;
        let member = app.user("member").await;
        let guest = app.user("guest").await;
        let admin = app.admin("admin").await;
        let suspended = app.user("suspended").await;
        let owners_note = note(&owner, "", &owner.id).await;
        let others_note = note(&other, "", &other.id).await;

        let workspace = json!({"name": "Acme", "slug": "acme", "template": "workspace"});
        let answer = owner.post("/api/v1/tenants", workspace).await;
        assert_eq!(answer.status(), 201, "{}", answer.text().await.unwrap());
        let workspace: Value = answer.json().await.unwrap();
        for (user, role) in [(&member, "member"), (&guest, "guest")] {
            let answer = owner.post("/api/v1/tenants/acme/invitations", json!({ "role": role })).await;
            let invited: Value = answer.json().await.unwrap();
            let accepted = user.post("/api/v1/invitations/accept", json!({ "token": invited["token"] })).await;
            assert!(accepted.status().is_success(), "{}", accepted.text().await.unwrap());
        }
        let shared_note = note(&owner, "/t/acme", &owner.id).await;

        let revoked = app.sign_in(&owner.email, &owner.password).await;
        let tokens = tokens(app, &owner, &revoked).await;
        let sessions = (session(&owner).await, session(&other).await);
        let jobs = (job(&owner).await, job(&other).await);
        let (key, api_key) = api_keys::make(&owner, &["jobs"]).await;
        let secret = made(&owner, Method::PUT, "/api/v1/vault", json!({"service": "http", "secret": SECRET})).await;
        let destination = json!({"name": "Mine", "kind": "loom"});
        let destination = made(&owner, Method::POST, "/api/v1/destinations", destination).await;
        let schedule = json!({"cron": "0 0 1 1 *", "kind": "transcode"});
        let schedule = made(&owner, Method::POST, "/api/v1/schedules", schedule).await;
        let people = [
            (Who::Owner, &owner),
            (Who::Other, &other),
            (Who::Member, &member),
            (Who::Guest, &guest),
            (Who::Admin, &admin),
            (Who::Suspended, &suspended),
        ];
        suspend(app, &suspended.id).await;
        Self {
            base: app.base.clone(),
            http: app.http.clone(),
            accounts: people.iter().map(|(who, user)| (*who, user.id.clone())).collect(),
            tokens: people
                .into_iter()
                .map(|(who, user)| (who, user.token.clone()))
                .chain(tokens)
                .chain([(Who::ApiKey, key)])
                .collect(),
            workspace: workspace["id"].as_str().unwrap().to_owned(),
            owner: owner.id,
            other: other.id,
            owners_note,
            others_note,
            shared_note,
            sessions,
            jobs,
            api_key,
            secret: secret["key_id"].as_str().unwrap().to_owned(),
            schedule: schedule["id"].as_str().unwrap().to_owned(),
            destination: destination["id"].as_str().unwrap().to_owned(),
        }
    }

    /// The account that a caller is, or would be.
    pub(crate) fn account(&self, who: Who) -> &str {
        self.accounts.get(&who).unwrap_or(&self.owner)
    }

    /// Sends a request as somebody; status and body.
    pub(crate) async fn send(&self, who: Who, method: Method, path: &str, body: Option<Value>) -> (u16, String) {
        let mut request = self.http.request(method, format!("{}{path}", self.base));
        if let Some(token) = self.tokens.get(&who) {
            request = request.bearer_auth(token);
        }
        if let Some(body) = body {
            request = request.json(&body);
        }
        let answer = request.send().await.unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    }

    /// A record that somebody may delete.
    pub(crate) async fn spare(&self, who: Who, prefix: &str) -> String {
        let body = json!({"title": "spare", "author": self.account(who)});
        let (status, text) =
            self.send(who, Method::POST, &format!("{prefix}/api/collections/notes/records"), Some(body)).await;
        assert_eq!(status, 200, "{text}");
        serde_json::from_str::<Value>(&text).unwrap()["id"].as_str().unwrap().to_owned()
    }
}

/// A note with a file: its id, and the file's name.
async fn note(user: &User, prefix: &str, author: &str) -> (String, String) {
    let file = multipart::Part::bytes(b"content".to_vec()).file_name("a.txt");
    let form = multipart::Form::new().text("title", "note").text("author", author.to_owned()).part("attachments", file);
    let path = format!("{prefix}/api/collections/notes/records");
    let answer = user.request(Method::POST, &path).multipart(form).send().await.unwrap();
    let status = answer.status();
    let record: Value = answer.json().await.unwrap();
    assert_eq!(status, 200, "{record}");
    (record["id"].as_str().unwrap().to_owned(), record["attachments"][0].as_str().unwrap().to_owned())
}

/// Credentials that must be worth nothing, all of the owner.
async fn tokens(app: &TestApp, owner: &User, revoked: &User) -> Vec<(Who, String)> {
    let instances = app.data().join("instances");
    let signer = |tenant: &str| {
        let (collection_id, key) = key(&instances.join(tenant).join("pb_data/data.db"), &owner.id);
        Signer { collection_id, record_id: owner.id.clone(), key }
    };
    let (now, hour) = (SystemTime::now(), Duration::from_hours(1));
    let file: Value = owner.post("/api/files/token", json!({})).await.json().await.unwrap();
    // Tokens of one second are equal: the session to end must not be the owner's own.
    if revoked.token != owner.token {
        assert_eq!(revoked.post("/auth/logout", json!({})).await.status(), 204);
    }
    vec![
        (Who::Expired, signer("global").mint(now - hour * 2, hour)),
        (Who::Revoked, revoked.token.clone()),
        (Who::OfInstance, signer(&owner.id).mint(now, hour)),
        (Who::FileToken, file["token"].as_str().unwrap().to_owned()),
        (Who::Garbage, "eyJhbGciOiJIUzI1NiJ9.e30.x".to_owned()),
    ]
}

/// The id of a job that waits for as long as its user's queue rests.
async fn job(user: &User) -> String {
    assert_eq!(user.post("/api/v1/queue/pause", json!({})).await.status(), 204);
    let answer = user.post("/api/v1/jobs", json!({"kind": "transcode"})).await;
    assert_eq!(answer.status(), 201, "{}", answer.text().await.unwrap());
    answer.json::<Value>().await.unwrap()["id"].as_str().unwrap().to_owned()
}

/// Refuses a tenant to everybody, in its record: there is no command for it.
async fn suspend(app: &mut TestApp, tenant: &str) {
    assert!(app.terminate().success());
    let database = rusqlite::Connection::open(app.data().join("control.db")).unwrap();
    let sql = "UPDATE records SET value = CAST(json_set(CAST(value AS TEXT), '$.suspended', json('true')) AS BLOB) WHERE key = ?1";
    assert_eq!(database.execute(sql, [format!("tenant.{tenant}")]).unwrap(), 1);
    drop(database);
    app.launch().await;
}

/// What was made by a request.
async fn made(user: &User, method: Method, path: &str, body: Value) -> Value {
    let answer = user.request(method, path).json(&body).send().await.unwrap();
    assert_eq!(answer.status(), 201, "{path}: {}", answer.text().await.unwrap());
    answer.json().await.unwrap()
}

/// The id of a user's first session.
async fn session(user: &User) -> String {
    let sessions: Value = user.get("/api/v1/auth/sessions").await.json().await.unwrap();
    let items = sessions["items"].as_array().or_else(|| sessions.as_array()).unwrap();
    let current = items.iter().find(|session| session["current"] == true).unwrap();
    current["id"].as_str().unwrap().to_owned()
}
