//! Signing in through another service, by the code flow that SDKs use.

use reqwest::StatusCode;
use reqwest::Url;
use reqwest::redirect::Policy;
use serde_json::Value;
use serde_json::json;

use crate::support::TestApp;
use crate::support::User;
use crate::support::oidc::CLIENT_SECRET;
use crate::support::oidc::Oidc;
use crate::support::smtp::Smtp;
use crate::support::sse::Stream;

const USERS: &str = "/api/collections/users";

async fn app(oidc: &Oidc, keys: &str) -> TestApp {
    let app = TestApp::with(&format!("{}{keys}", oidc.keys())).await;
    app.configured().await;
    app
}

/// What the browser brings back from the service: the body for `auth-with-oauth2`.
async fn code(app: &TestApp) -> Value {
    let methods: Value = app.get(&format!("{USERS}/auth-methods")).await.json().await.unwrap();
    let provider = &methods["oauth2"]["providers"][0];
    assert_eq!((&provider["name"], &provider["displayName"]), (&json!("oidc"), &json!("Tests")), "{methods}");
    let redirect = format!("{}/api/oauth2-redirect", app.base);
    let url = format!("{}{redirect}", provider["authURL"].as_str().unwrap());
    let browser = crate::support::http().redirect(Policy::none()).build().unwrap();
    let answer = browser.get(url).send().await.unwrap();
    assert_eq!(answer.status(), 302, "{}", answer.text().await.unwrap());
    let back = Url::parse(answer.headers()["location"].to_str().unwrap()).unwrap();
    assert!(back.as_str().starts_with(&redirect));
    let code = back.query_pairs().find(|(name, _)| name == "code").unwrap().1.into_owned();
    json!({"provider": "oidc", "code": code, "codeVerifier": provider["codeVerifier"], "redirectURL": redirect})
}

async fn exchange(app: &TestApp, body: &Value) -> (StatusCode, Value) {
    let answer = app.post(&format!("{USERS}/auth-with-oauth2"), body.clone()).await;
    (answer.status(), answer.json().await.unwrap())
}

fn user(app: &TestApp, body: &Value) -> User {
    User {
        id: body["record"]["id"].as_str().unwrap_or_else(|| panic!("{body}")).to_owned(),
        email: body["record"]["email"].as_str().unwrap_or_default().to_owned(),
        password: String::new(),
        token: body["token"].as_str().unwrap().to_owned(),
        base: app.base.clone(),
        http: app.http.clone(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_code_makes_an_account_with_a_session_and_an_instance_of_its_own() {
    let oidc = Oidc::start().await;
    let app = app(&oidc, "").await;
    oidc.person("ada", "ada@example.com");
    let (status, first) = exchange(&app, &code(&app).await).await;
    assert_eq!(status, 200, "{first}");
    assert_eq!((&first["meta"]["isNew"], &first["meta"]["id"]), (&json!(true), &json!("ada")));
    assert_eq!((&first["record"]["verified"], &first["record"]["name"]), (&json!(true), &json!("The ada")));
    let ada = user(&app, &first);
    ada.note("mine").await;
    assert_eq!(app.tenant(&ada.id)["state"], "awake");
    let sessions: Value = ada.get("/api/v1/auth/sessions").await.json().await.unwrap();
    let listed = sessions.as_array().or_else(|| sessions["items"].as_array()).unwrap().len();
    assert_eq!(listed, 1, "{sessions}");

    let (status, again) = exchange(&app, &code(&app).await).await;
    assert_eq!((status, &again["meta"]["isNew"]), (StatusCode::OK, &json!(false)), "{again}");
    assert_eq!(user(&app, &again).titles().await, ["mine"]);

    oidc.person("bob", "bob@example.com");
    let (_, other) = exchange(&app, &code(&app).await).await;
    let bob = user(&app, &other);
    assert_ne!(bob.id, ada.id);
    assert!(bob.titles().await.is_empty(), "nobody sees another's notes");
    assert_eq!(ada.post("/auth/logout-everywhere", json!({})).await.status(), 200);
    assert_eq!(ada.get("/auth/me").await.status(), 401);
    assert_eq!(bob.get("/auth/me").await.status(), 200);
    assert!(!app.log().contains(CLIENT_SECRET), "{}", app.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_codes_verifiers_and_services_are_refused_and_make_nothing() {
    let oidc = Oidc::start().await;
    let app = app(&oidc, "").await;
    oidc.person("eve", "eve@example.com");
    let good = code(&app).await;
    let with = |name: &str, value: Value| {
        let mut body = good.clone();
        body[name] = value;
        body
    };
    for body in [
        with("code", json!("code-999")),
        with("codeVerifier", json!("x".repeat(43))),
        with("provider", json!("github")),
        with("provider", json!("nosuch")),
        with("createData", json!({"id": "aaaaaaaaaaaaaaa"})),
        with("createData", json!("text")),
        json!({}),
    ] {
        let (status, answer) = exchange(&app, &body).await;
        assert_eq!(status, 400, "{body}: {answer}");
        assert!(!answer.to_string().contains(CLIENT_SECRET), "{answer}");
    }
    // The code went with the wrong verifier; a service gives each once.
    assert_eq!(exchange(&app, &good).await.0, 400);
    let mut body = code(&app).await;
    body["createData"] = json!({"role": "admin"});
    assert_eq!(exchange(&app, &body).await.0, 400, "nobody becomes admin by signing up elsewhere");
    let (status, first) = exchange(&app, &code(&app).await).await;
    assert_eq!((status, &first["meta"]["isNew"]), (StatusCode::OK, &json!(true)), "none of these made an account");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_is_linked_to_the_account_with_its_address_and_to_the_one_signed_in() {
    let oidc = Oidc::start().await;
    let app = app(&oidc, "").await;
    // Registered by anybody, never verified: the service proves whose the address is.
    let squatter = app.user("ada").await;
    squatter.note("seen by both").await;
    oidc.person("ada", &squatter.email);
    let (status, body) = exchange(&app, &code(&app).await).await;
    assert_eq!((status, &body["meta"]["isNew"]), (StatusCode::OK, &json!(false)), "{body}");
    let ada = user(&app, &body);
    assert_eq!(ada.id, squatter.id);
    assert_eq!(squatter.get("/auth/me").await.status(), 401, "the squatter is signed out");
    let sessions: Value = ada.get("/api/v1/auth/sessions").await.json().await.unwrap();
    assert_eq!(sessions.as_array().or_else(|| sessions["items"].as_array()).unwrap().len(), 1, "{sessions}");
    let body = json!({"email": squatter.email, "password": squatter.password});
    assert_eq!(app.post("/auth/login", body).await.status(), 400, "and the password is another");

    // Signed in, with an address that the service knows nothing of.
    let bob = app.user("bob").await;
    oidc.person("robert", "robert@elsewhere.example.com");
    let answer = bob.post(&format!("{USERS}/auth-with-oauth2"), code(&app).await).await;
    let body: Value = answer.json().await.unwrap();
    assert_eq!((&body["record"]["id"], &body["meta"]["isNew"]), (&json!(bob.id), &json!(false)), "{body}");
    let (_, body) = exchange(&app, &code(&app).await).await;
    assert_eq!(body["record"]["id"], bob.id.as_str());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_is_one_of_two_ways_to_sign_in() {
    let (oidc, smtp) = (Oidc::start().await, Smtp::start().await);
    let keys = format!("{}accounts.otp.enabled = true\naccounts.mfa.enabled = true\n", smtp.keys());
    let app = app(&oidc, &keys).await;
    oidc.person("ada", "ada@example.com");
    let (status, first) = exchange(&app, &code(&app).await).await;
    assert_eq!((status, first["mfaId"].is_string()), (StatusCode::UNAUTHORIZED, true), "{first}");
    let asked = app.post(&format!("{USERS}/request-otp"), json!({"email": "ada@example.com"})).await;
    let asked: Value = asked.json().await.unwrap();
    let otp = smtp.mail_to("ada@example.com", 1).await.otp();
    let body = json!({"otpId": asked["otpId"], "password": otp, "mfaId": first["mfaId"]});
    let answer = app.post(&format!("{USERS}/auth-with-otp"), body).await;
    let ada = user(&app, &answer.json().await.unwrap());
    ada.note("x").await;
    // And as the second.
    let asked = app.post(&format!("{USERS}/request-otp"), json!({"email": "ada@example.com"})).await;
    let asked: Value = asked.json().await.unwrap();
    let otp = smtp.mail_to("ada@example.com", 2).await.otp();
    let answer = app.post(&format!("{USERS}/auth-with-otp"), json!({"otpId": asked["otpId"], "password": otp})).await;
    let first: Value = answer.json().await.unwrap();
    let mut body = code(&app).await;
    body["mfaId"] = first["mfaId"].clone();
    let (status, body) = exchange(&app, &body).await;
    assert_eq!(status, 200, "{body}");
    assert_eq!(user(&app, &body).titles().await, ["x"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_window_of_a_sign_in_is_told_what_came_of_it_and_reflects_nothing() {
    let app = TestApp::start().await;
    let path = "/api/oauth2-redirect";
    let planted = "planted-value";
    for query in ["", "?state=nobody&code=planted-value", "?state=planted-value&error=%3Cscript%3Eplanted-value"] {
        let answer = app.get(&format!("{path}{query}")).await;
        assert_eq!(answer.status(), 200);
        assert!(answer.headers()["content-security-policy"].to_str().unwrap().contains("default-src 'none'"));
        assert_eq!(answer.headers()["referrer-policy"], "no-referrer");
        let html = answer.text().await.unwrap();
        assert!(html.contains("Not signed in") && !html.contains(planted), "{query}: {html}");
    }
    let form = app
        .http
        .post(format!("{}{path}", app.base))
        .header("content-type", "application/x-www-form-urlencoded")
        .body("state=planted-value&code=planted-value")
        .send()
        .await
        .unwrap();
    assert_eq!(form.status(), 200);
    assert!(!form.text().await.unwrap().contains(planted));
    assert!(app.get("/account/close.js").await.text().await.unwrap().contains("window.close()"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_outcome_of_a_sign_in_goes_to_no_stream_of_another_network() {
    let app = TestApp::with("server.trusted_proxies = [\"127.0.0.1\"]\n").await;
    let stream = Stream::open(&app).await;
    assert_eq!(stream.subscribe(None, &["@oauth2"]).await, 204);
    let window = async |address: &str| {
        let url = format!("{}/api/oauth2-redirect?state={}&code=c0de", app.base, stream.id);
        app.http.get(url).header("x-forwarded-for", address).send().await.unwrap().text().await.unwrap()
    };
    assert!(window("198.51.100.7").await.contains("Not signed in"), "a link that somebody was sent");
    assert!(!window("127.0.0.1").await.contains("Not signed in"), "it goes on waiting for its own");
    let told = crate::support::eventually("the outcome", async || {
        let told: Vec<_> = stream.events().into_iter().filter(|event| event.name == "@oauth2").collect();
        (!told.is_empty()).then_some(told)
    });
    let told = told.await;
    assert_eq!((told.len(), &told[0].data["code"]), (1, &json!("c0de")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_pocketbase_does_not_know_is_named_in_the_log_and_voids_nothing_else() {
    let (smtp, oidc) = (Smtp::start().await, Oidc::start().await);
    let keys = "accounts.oauth2.nosuch.client_id = \"us\"\naccounts.oauth2.nosuch.client_secret = \"planted-secret\"\n\
        accounts.otp.enabled = true\naccounts.mfa.enabled = true\n";
    let mut app = TestApp::with(&format!("{}{}{keys}", smtp.keys(), oidc.keys())).await;
    app.expect_log("PocketBase does not take the configuration of accounts");
    crate::support::eventually("a word in the log", async || {
        app.log().contains("oauth2.providers.0.name: validation_missing_provider").then_some(())
    })
    .await;
    let methods: Value = app.get(&format!("{USERS}/auth-methods")).await.json().await.unwrap();
    assert_eq!((&methods["mfa"]["enabled"], &methods["otp"]["enabled"]), (&json!(true), &json!(true)), "{methods}");
    let names: Vec<_> = methods["oauth2"]["providers"].as_array().unwrap().iter().map(|it| &it["name"]).collect();
    assert_eq!(names, ["oidc"]);
    assert!(!app.log().contains("planted-secret"), "{}", app.log());
}
