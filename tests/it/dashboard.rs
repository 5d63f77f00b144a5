//! The dashboard of a tenant's owner: off by default, by grant, at the tenant's own host only.

#![expect(clippy::unwrap_used, reason = "a step that fails fails the test")]

use reqwest::Method;
use serde_json::Value;
use serde_json::json;

use crate::support::TestApp;

const KEYS: &str = "server.domain = \"fleet.example\"\nserver.dashboard = \"trusted\"\n";

async fn ask(app: &TestApp, method: Method, host: &str, path: &str, token: &str) -> reqwest::Response {
    let request = app.http.request(method, format!("{}{path}", app.base)).header("host", host);
    request.header("authorization", token).json(&json!({})).send().await.unwrap()
}

#[tokio::test]
async fn a_grant_is_superuser_of_one_tenant_and_ends_with_the_session() {
    let app = TestApp::with(KEYS).await;
    let (ada, bob) = (app.user("ada").await, app.user("bob").await);
    ada.note("first").await;
    bob.note("other").await;
    let open = format!("/api/v1/tenants/{}/dashboard", ada.id);
    assert_eq!(bob.post(&open, json!({})).await.status(), 404, "another's tenant looks absent");
    let opened: Value = ada.post(&open, json!({})).await.json().await.unwrap();
    let url = opened["url"].as_str().unwrap();
    let host = format!("{}.fleet.example", ada.id);
    let (address, grant) = url.split_once('#').unwrap();
    assert!(address.contains(&host) && address.ends_with("/_/open-dashboard"), "{url}");

    // The pages are PocketBase's own, and the opener is ours.
    for (path, has) in
        [("/_/", "<script"), ("/_/open-dashboard", "open-dashboard.js"), ("/_/open-dashboard.js", "localStorage")]
    {
        let page = app.http.get(format!("{}{path}", app.base)).header("host", &host).send().await.unwrap();
        assert_eq!(page.status(), 200, "{path}");
        assert!(page.text().await.unwrap().contains(has), "{path}");
    }
    // Superuser rights, in this tenant and at its host.
    let collections = ask(&app, Method::GET, &host, "/api/collections", grant).await;
    assert_eq!(collections.status(), 200);
    assert!(collections.text().await.unwrap().contains("\"notes\""));
    assert_eq!(ask(&app, Method::GET, &host, "/api/settings", grant).await.status(), 200);
    let refreshed = ask(&app, Method::POST, &host, "/api/collections/_superusers/auth-refresh", grant).await;
    assert_eq!(refreshed.json::<Value>().await.unwrap()["token"], grant, "no superuser's token ever leaves");
    for (method, path) in [(Method::PATCH, "/api/settings"), (Method::POST, "/api/collections/_superusers/records")] {
        assert_eq!(ask(&app, method, &host, path, grant).await.status(), 403, "{path}");
    }
    // Nowhere else.
    let bobs = format!("{}.fleet.example", bob.id);
    let below = format!("/t/{}/api/collections", ada.id);
    for (host, path) in [(bobs.as_str(), "/api/collections"), ("localhost", "/api/collections"), ("localhost", &*below)]
    {
        assert!(ask(&app, Method::GET, host, path, grant).await.status().is_client_error(), "{host} {path}");
    }
    assert_eq!(app.http.get(format!("{}/_/", app.base)).header("host", &bobs).send().await.unwrap().status(), 404);

    assert_eq!(ada.post("/auth/logout", json!({})).await.status(), 204);
    assert_eq!(ask(&app, Method::GET, &host, "/api/collections", grant).await.status(), 401);
    assert!(!app.log().contains(grant), "a grant is a credential");
}

#[tokio::test]
async fn dashboards_are_off_unless_the_operator_says_otherwise() {
    let app = TestApp::with("server.domain = \"fleet.example\"\n").await;
    let ada = app.user("ada").await;
    assert_eq!(ada.post(&format!("/api/v1/tenants/{}/dashboard", ada.id), json!({})).await.status(), 403);
    ada.note("wakes it").await;
    let host = format!("{}.fleet.example", ada.id);
    let page = app.http.get(format!("{}/_/", app.base)).header("host", &host).send().await.unwrap();
    assert_eq!(page.status(), 404);
}

#[test]
fn isolation_that_is_not_there_is_not_promised() {
    let app = TestApp::prepare("server.dashboard = \"isolated\"\n");
    let output = app.cli(&["check-config"]);
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("server.dashboard"), "{output:?}");
}
