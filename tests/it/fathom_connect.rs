//! Signing in at Fathom in place of a pasted key: begun and ended by one session, used wherever a key is, renewed once.

use std::collections::HashMap;

use reqwest::Method;
use reqwest::Url;
use reqwest::redirect::Policy;
use serde_json::Value;
use serde_json::json;

use crate::meetings::list;
use crate::support::TestApp;
use crate::support::User;
use crate::support::eventually;
use crate::support::fathom::KEY;
use crate::support::fathom::Standin;
use crate::support::http;

const FATHOM: &str = "/api/v1/services/fathom";

fn keys(standin: &Standin) -> String {
    let api = standin.api();
    let app = "fathom.oauth.client_id = \"standin-app\"\nfathom.oauth.client_secret = \"standin-secret\"\n";
    format!(
        "{}{app}fathom.oauth.authorize_url = \"{api}/oauth2/authorize\"\n\
         fathom.oauth.token_url = \"{api}/oauth2/token\"\nfathom.calls_per_minute = 10000\n\
         fathom.heavy_calls_per_minute = 10000\nfathom.downloads_per_minute = 10000\n",
        standin.keys()
    )
}

async fn standin() -> Standin {
    let generous = ["--calls-per-minute", "100000", "--heavy-per-minute", "100000", "--downloads-per-minute", "100000"];
    Standin::with(&[&generous[..], &["--download-polls", "1"]].concat()).await
}

/// A browser that follows nothing by itself.
fn browser() -> reqwest::Client {
    http().redirect(Policy::none()).build().unwrap()
}

/// Where an answer leads.
fn leads_to(answer: &reqwest::Response) -> String {
    answer.headers().get("location").map_or("", |value| value.to_str().unwrap()).to_owned()
}

/// Begins a sign-in and agrees to it at the stand-in: where that sends the browser back to.
async fn agreed(user: &User) -> String {
    let answer = user.post(&format!("{FATHOM}/connect"), json!({})).await;
    assert_eq!(answer.status(), 200);
    let begun: Value = answer.json().await.unwrap();
    assert_eq!(begun["expires_in"], 600);
    let answer = browser().get(begun["url"].as_str().unwrap()).send().await.unwrap();
    assert_eq!(answer.status(), 302);
    let back = leads_to(&answer);
    assert!(back.starts_with(&format!("{}{FATHOM}/callback?", user.base)), "{back}");
    back
}

/// Comes back as whoever has this cookie; where that leads.
async fn come_back(back: &str, token: &str) -> String {
    let answer = browser().get(back).header("cookie", format!("session_token={token}")).send().await.unwrap();
    assert_eq!(answer.status(), 303);
    leads_to(&answer)
}

async fn connect(user: &User) {
    assert_eq!(come_back(&agreed(user).await, &user.token).await, "/app/settings?said=fathom-connected");
}

async fn standing(user: &User) -> Value {
    user.get(FATHOM).await.json().await.unwrap()
}

async fn fathom_keys(user: &User) -> Vec<Value> {
    let vault: Value = user.get("/api/v1/vault").await.json().await.unwrap();
    let items = vault["items"].as_array().unwrap().iter();
    items.filter(|item| item["service"] == "fathom").cloned().collect()
}

async fn meetings(user: &User, count: usize) {
    eventually("the meetings are there", async || {
        let found = list(user, "?limit=100").await;
        (found["items"].as_array().unwrap().len() == count && found["sync"]["state"] == "fresh").then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connected_user_needs_no_key_and_tokens_are_renewed_once() {
    let standin = standin().await;
    let folder = tempfile::tempdir().unwrap();
    let delivery = format!("delivery.folder = {:?}\ndelivery.poll_interval = \"20ms\"\n", folder.path());
    let app = TestApp::with(&format!("{}{delivery}meetings.ttl = \"300ms\"\n", keys(&standin))).await;
    let ada = app.user("ada").await;
    assert_eq!(
        standing(&ada).await,
        json!({"available": true, "connected": false, "key_id": null, "connected_at": null})
    );
    connect(&ada).await;
    meetings(&ada, 27).await;
    let stored = fathom_keys(&ada).await;
    assert_eq!((stored.len(), &stored[0]["settings"]["type"], &stored[0]["hint"]), (1, &json!("oauth"), &Value::Null));
    let standing = standing(&ada).await;
    assert_eq!((&standing["connected"], &standing["key_id"]), (&json!(true), &stored[0]["key_id"]));

    // The access token ends: a delivery and many reads of meetings renew it once, and the vault has the new ones.
    let exchanged = standin.calls("POST /oauth2/token").await;
    standin.control(Method::POST, "/oauth/void", Some(json!({"access": true}))).await;
    standin.add_meeting(KEY, json!({"title": "Later"}), false).await;
    let recording = list(&ada, "?limit=1").await["items"][0]["recording_id"].clone();
    let order = json!({"recording_id": recording, "destination": "folder"});
    let job: Value = ada.post("/api/v1/queue", order).await.json().await.unwrap();
    futures_util::future::join_all((0..10).map(|_| list(&ada, "?limit=100"))).await;
    meetings(&ada, 28).await;
    let job = job["id"].as_str().unwrap();
    eventually("it is delivered", async || {
        let item: Value = ada.get(&format!("/api/v1/queue/{job}")).await.json().await.unwrap();
        assert_ne!(item["state"], "dead", "{item}");
        (item["state"] == "done").then_some(())
    })
    .await;
    assert_eq!(standin.calls("POST /oauth2/token").await, exchanged + 1);
    assert_eq!(fathom_keys(&ada).await[0]["key_id"], stored[0]["key_id"]);
    let log = app.cli(&["audit", "export"]);
    let log = String::from_utf8(log.stdout).unwrap();
    assert_eq!(log.matches("secret.renewed").count(), 1, "{log}");
    for (place, text) in [("audit", &log), ("log", &app.log())] {
        assert!(!text.contains("rt_") && !text.contains("at_1"), "tokens in the {place}");
    }

    // What was renewed is what the next start uses.
    let mut app = app;
    assert!(app.terminate().success());
    app.launch().await;
    let ada = ada.at(&app);
    standin.control(Method::POST, "/oauth/void", Some(json!({"access": true}))).await;
    standin.add_meeting(KEY, json!({"title": "Latest"}), false).await;
    meetings(&ada, 29).await;

    // Fathom takes it back: the list says so, keeps what is there, and does not ask again and again.
    standin.control(Method::POST, "/oauth/void", Some(json!({"access": true, "refresh": true}))).await;
    let sync = eventually("the list says so", async || {
        let sync = list(&ada, "?limit=100").await["sync"].clone();
        (sync["state"] == "failed").then_some(sync)
    })
    .await;
    assert!(sync["error"].as_str().unwrap().contains("connect Fathom again"), "{sync}");
    let exchanged = standin.calls("POST /oauth2/token").await;
    for _ in 0..5 {
        assert_eq!(list(&ada, "?limit=100").await["items"].as_array().unwrap().len(), 29);
    }
    assert_eq!(standin.calls("POST /oauth2/token").await, exchanged);
    // The page says where to begin again, and that is enough.
    let page = ada.request(Method::GET, "/app/settings").header("cookie", format!("session_token={}", ada.token));
    let page = page.send().await.unwrap().text().await.unwrap();
    assert!(page.contains("Connect Fathom again") && page.contains("/app/fathom/disconnect"), "{page}");
    connect(&ada).await;
    meetings(&ada, 29).await;

    assert_eq!(ada.request(Method::DELETE, FATHOM).send().await.unwrap().status(), 204);
    assert!(fathom_keys(&ada).await.is_empty());
    assert_eq!(ada.request(Method::DELETE, FATHOM).send().await.unwrap().status(), 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_connected_by_somebody_elses_way_back() {
    let standin = standin().await;
    let app = TestApp::with(&keys(&standin)).await;
    let (ada, eve) = (app.user("ada").await, app.user("eve").await);
    let stray = "/app/settings?said=fathom-stray";
    // Eve sends Ada her own way back, or gets hold of Ada's: it is good for neither, and stays good for whoever began.
    let of_eve = agreed(&eve).await;
    assert_eq!(come_back(&of_eve, &ada.token).await, stray);
    let of_ada = agreed(&ada).await;
    assert_eq!(come_back(&of_ada, &eve.token).await, stray);
    // Another sign-in of the same user is not the one that began it.
    let elsewhere = app.sign_in(&ada.email, &ada.password).await;
    if elsewhere.token != ada.token {
        assert_eq!(come_back(&of_ada, &elsewhere.token).await, stray);
    }
    // Without a session there is nobody to connect.
    for token in ["", "nonsense"] {
        assert_eq!(come_back(&of_ada, token).await, "/app/sign-in");
    }
    assert!(fathom_keys(&ada).await.is_empty() && fathom_keys(&eve).await.is_empty());
    assert_eq!(standin.calls("POST /oauth2/token").await, 0, "no code was exchanged");
    // A refreshed token is the same sign-in.
    let token = eventually("a token that is not one of the same second", async || {
        let refreshed = ada.post("/api/v1/auth/refresh", json!({})).await;
        assert_eq!(refreshed.status(), 200);
        let refreshed: Value = refreshed.json().await.unwrap();
        let token = refreshed["token"].as_str().unwrap().to_owned();
        (token != ada.token && token != elsewhere.token).then_some(token)
    })
    .await;
    let token = &*token;
    assert_eq!(come_back(&of_ada, token).await, "/app/settings?said=fathom-connected");
    assert_eq!(come_back(&of_ada, token).await, stray, "it is good once");
    assert_eq!((fathom_keys(&ada).await.len(), fathom_keys(&eve).await.len()), (1, 0));

    // Whoever does not agree, or comes with a code that is none, has nothing.
    let url = Url::parse(&agreed(&eve).await).unwrap();
    let state = url.query_pairs().into_owned().collect::<HashMap<_, _>>().remove("state").unwrap();
    let with = |query: &str| format!("{}{FATHOM}/callback?{query}", app.base);
    let declined = come_back(&with(&format!("state={state}&error=access_denied")), &eve.token).await;
    assert_eq!(declined, "/app/settings?said=fathom-declined");
    let state = Url::parse(&agreed(&eve).await).unwrap().query_pairs().into_owned().collect::<HashMap<_, _>>();
    let forged = come_back(&with(&format!("state={}&code=made-up", state["state"])), &eve.token).await;
    assert_eq!(forged, "/app/settings?said=fathom-failed");
    for query in ["", "state=&code=x", "state=x&code=x", "state=x&state=y", "code=x", "%ff"] {
        assert_eq!(come_back(&with(query), &eve.token).await, stray, "{query}");
    }
    assert!(fathom_keys(&eve).await.is_empty());
    // Users cannot pass a key of their own for a sign-in.
    let passed =
        json!({"service": "fathom", "secret": "{\"access\":\"a\"}", "settings": {"type": "oauth", "grant": "x"}});
    assert_eq!(eve.request(Method::PUT, "/api/v1/vault").json(&passed).send().await.unwrap().status(), 400);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pasted_key_takes_the_place_of_a_sign_in_and_without_an_app_there_is_none() {
    let standin = standin().await;
    let app = TestApp::with(&keys(&standin)).await;
    let ada = app.user("ada").await;
    connect(&ada).await;
    let before = fathom_keys(&ada).await;
    crate::meetings::store_key(&ada, KEY).await;
    let after = fathom_keys(&ada).await;
    assert_eq!((after.len(), &after[0]["key_id"], &after[0]["settings"]), (1, &before[0]["key_id"], &json!({})));
    assert_eq!(standing(&ada).await["connected"], false);
    meetings(&ada, 27).await;

    let app = TestApp::with(&standin.keys()).await;
    let bob = app.user("bob").await;
    assert_eq!(standing(&bob).await["available"], false);
    let answer = bob.post(&format!("{FATHOM}/connect"), json!({})).await;
    assert_eq!(answer.status(), 501);
    let answer: Value = answer.json().await.unwrap();
    assert!(answer["error"]["message"].as_str().unwrap().contains("[fathom.oauth]"), "{answer}");
    let page = bob.request(Method::GET, "/app/settings").header("cookie", format!("session_token={}", bob.token));
    assert!(!page.send().await.unwrap().text().await.unwrap().contains("Connect Fathom"));
}
