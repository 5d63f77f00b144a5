//! What goes by mail: one-time passwords, verification, password reset, change of address, a second factor.

use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use pocketfleet::store::sessions::SessionId;
use pocketfleet::store::sessions::Sessions;
use pocketfleet::store::sessions::Status;
use pocketfleet::store::sqlite::ControlDatabase;
use reqwest::Method;
use reqwest::StatusCode;
use serde_json::Value;
use serde_json::json;

use crate::support::TestApp;
use crate::support::User;
use crate::support::smtp::Smtp;

const USERS: &str = "/api/collections/users";

async fn app(smtp: &Smtp, keys: &str) -> TestApp {
    let app = TestApp::with(&format!("{}{keys}", smtp.keys())).await;
    app.configured().await;
    app
}

async fn users(app: &TestApp, call: &str, body: Value) -> (StatusCode, Value) {
    let answer = app.post(&format!("{USERS}/{call}"), body).await;
    (answer.status(), answer.json().await.unwrap_or_default())
}

/// The user of a sign-in's answer.
fn signed_in(app: &TestApp, (status, body): (StatusCode, Value)) -> User {
    assert_eq!(status, 200, "{body}");
    User {
        id: body["record"]["id"].as_str().unwrap().to_owned(),
        email: body["record"]["email"].as_str().unwrap().to_owned(),
        password: String::new(),
        token: body["token"].as_str().unwrap().to_owned(),
        base: app.base.clone(),
        http: app.http.clone(),
    }
}

/// Live sessions as their user sees them.
async fn sessions(user: &User) -> Vec<Value> {
    let body: Value = user.get("/api/v1/auth/sessions").await.json().await.unwrap();
    body.as_array().or_else(|| body["items"].as_array()).cloned().unwrap_or_else(|| panic!("{body}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_one_time_password_signs_in_and_ends_sessions_of_an_unverified_account() {
    let smtp = Smtp::start().await;
    let app = app(&smtp, "accounts.otp.enabled = true\n").await;
    let ada = app.user("ada").await;
    ada.note("x").await;
    let (status, asked) = users(&app, "request-otp", json!({"email": ada.email})).await;
    assert_eq!(status, 200);
    let begun = Instant::now();
    let (_, nobody) = users(&app, "request-otp", json!({"email": "nobody@example.com"})).await;
    assert!(begun.elapsed() >= Duration::from_millis(300), "the time it takes says nothing either");
    assert_eq!(asked["otpId"].as_str().unwrap().len(), nobody["otpId"].as_str().unwrap().len());
    let otp = smtp.mail_to(&ada.email, 1).await.otp();
    assert_eq!(otp.len(), 8);

    let (wrong, body) = users(&app, "auth-with-otp", json!({"otpId": asked["otpId"], "password": "00000000"})).await;
    assert_eq!((wrong, &body["data"]), (StatusCode::BAD_REQUEST, &json!({})));
    let body = json!({"otpId": asked["otpId"], "password": otp});
    let again = signed_in(&app, users(&app, "auth-with-otp", body.clone()).await);
    assert_eq!((again.id.as_str(), again.titles().await), (ada.id.as_str(), vec!["x".to_owned()]));
    assert_eq!(users(&app, "auth-with-otp", body).await.0, 400, "a one-time password is good once");
    // Whoever registered the address before may not have been its owner.
    assert_eq!(ada.get("/auth/me").await.status(), 401);
    assert_eq!(sessions(&again).await.len(), 1);
    let body = json!({"email": ada.email, "password": ada.password});
    assert_eq!(app.post("/auth/login", body).await.status(), 400, "the password of the unverified account is gone");
    assert!(smtp.mails_to("nobody@example.com").is_empty());
    assert_eq!(again.post(&format!("{USERS}/auth-refresh"), json!({})).await.status(), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_account_that_first_signs_in_by_mail_has_an_instance_of_its_own() {
    let smtp = Smtp::start().await;
    let app = app(&smtp, "accounts.otp.enabled = true\n").await;
    let body = json!({"email": "bob@example.com", "password": "correct horse", "passwordConfirm": "correct horse"});
    assert_eq!(users(&app, "records", body).await.0, 200);
    let (_, asked) = users(&app, "request-otp", json!({"email": "bob@example.com"})).await;
    let otp = smtp.mail_to("bob@example.com", 1).await.otp();
    let bob = signed_in(&app, users(&app, "auth-with-otp", json!({"otpId": asked["otpId"], "password": otp})).await);
    bob.note("mine").await;
    assert_eq!(bob.titles().await, ["mine"]);
    let listed = sessions(&bob).await;
    assert_eq!(listed.len(), 1, "{listed:?}");
    assert_eq!(bob.post("/auth/logout", json!({})).await.status(), 204);
    assert_eq!(bob.get("/auth/me").await.status(), 401);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_factor_is_asked_for_and_taken() {
    let smtp = Smtp::start().await;
    let app = app(&smtp, "accounts.otp.enabled = true\naccounts.mfa.enabled = true\n").await;
    let body = json!({"email": "ada@example.com", "password": "correct horse", "passwordConfirm": "correct horse"});
    assert_eq!(users(&app, "records", body).await.0, 200);
    let password = json!({"identity": "ada@example.com", "password": "correct horse"});
    let (status, first) = users(&app, "auth-with-password", password.clone()).await;
    assert_eq!(status, 401);
    assert_eq!(first.as_object().unwrap().keys().collect::<Vec<_>>(), ["mfaId"], "as PocketBase says it");
    let login = app.post("/auth/login", json!({"email": "ada@example.com", "password": "correct horse"})).await;
    let login: Value = login.json().await.unwrap();
    assert_eq!(login["error"]["code"], "MFA_REQUIRED");
    assert!(login["error"]["details"]["mfaId"].is_string());

    let (_, asked) = users(&app, "request-otp", json!({"email": "ada@example.com"})).await;
    let otp = smtp.mail_to("ada@example.com", 1).await.otp();
    let same_again = json!({"identity": "ada@example.com", "password": "correct horse", "mfaId": first["mfaId"]});
    assert_ne!(users(&app, "auth-with-password", same_again).await.0, 200, "the same way twice is one factor");
    let body = json!({"otpId": asked["otpId"], "password": otp, "mfaId": first["mfaId"]});
    let ada = signed_in(&app, users(&app, "auth-with-otp", body).await);
    ada.note("x").await;
    assert_eq!(sessions(&ada).await.len(), 1);

    // The other way round, with the id in the query as SDKs send it.
    let (_, asked) = users(&app, "request-otp", json!({"email": "ada@example.com"})).await;
    let otp = smtp.mail_to("ada@example.com", 2).await.otp();
    let (status, first) = users(&app, "auth-with-otp", json!({"otpId": asked["otpId"], "password": otp})).await;
    assert_eq!(status, 401, "{first}");
    let call = format!("auth-with-password?mfaId={}", first["mfaId"].as_str().unwrap());
    let again = signed_in(&app, users(&app, &call, password).await);
    assert_eq!(again.titles().await, ["x"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn verification_leads_to_our_page_and_is_required_where_it_is() {
    let smtp = Smtp::start().await;
    let app = app(&smtp, "accounts.require_verified = true\ninstances.predict = true\n").await;
    let body = json!({"email": "ada@example.com", "password": "correct horse", "passwordConfirm": "correct horse"});
    assert_eq!(users(&app, "records", body).await.0, 200);
    let password = json!({"identity": "ada@example.com", "password": "correct horse"});
    assert_eq!(users(&app, "auth-with-password", password.clone()).await.0, 403);
    let metrics = app.get("/metrics").await.text().await.unwrap();
    assert!(metrics.contains("\npocketfleet_predicted_total 0\n"), "nobody who cannot sign in is expected");
    for email in ["ada@example.com", "nobody@example.com"] {
        let (status, body) = users(&app, "request-verification", json!({"email": email})).await;
        assert_eq!((status, body), (StatusCode::NO_CONTENT, Value::Null), "{email}");
    }
    let mail = smtp.mail_to("ada@example.com", 1).await;
    assert!(mail.text.contains("Fleet of Tests") && !mail.text.contains("/_/"), "{}", mail.text);
    let link = mail.link();
    let page = link.strip_prefix(&app.base).unwrap_or_else(|| panic!("{link}")).split('#').next().unwrap();
    assert_eq!(page, "/account/verify");
    let answer = app.get(page).await;
    assert_eq!(answer.status(), 200);
    let policy = answer.headers()["content-security-policy"].to_str().unwrap().to_owned();
    assert!(policy.contains("default-src 'none'") && policy.contains("script-src 'self'"), "{policy}");
    let html = answer.text().await.unwrap();
    assert!(html.contains("data-call=\"confirm-verification\"") && html.contains("src=\"pages.js\""), "{html}");
    let script = app.get("/account/pages.js").await;
    assert!(script.headers()["content-type"].to_str().unwrap().starts_with("text/javascript"));
    assert!(script.text().await.unwrap().contains("../api/collections/users/${form.dataset.call}"));

    assert_eq!(users(&app, "confirm-verification", json!({"token": "x.y.z"})).await.0, 400);
    assert_eq!(users(&app, "confirm-verification", json!({"token": mail.token()})).await.0, 204);
    let ada = signed_in(&app, users(&app, "auth-with-password", password).await);
    ada.note("x").await;
    assert!(smtp.mails_to("nobody@example.com").is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reset_password_ends_every_session() {
    let smtp = Smtp::start().await;
    let mut app = app(&smtp, "").await;
    let ada = app.user("ada").await;
    ada.note("x").await;
    for email in [ada.email.as_str(), "nobody@example.com"] {
        let (status, body) = users(&app, "request-password-reset", json!({"email": email})).await;
        assert_eq!((status, body), (StatusCode::NO_CONTENT, Value::Null), "{email}");
    }
    let mail = smtp.mail_to(&ada.email, 1).await;
    assert!(mail.link().starts_with(&format!("{}/account/reset-password#token=", app.base)), "{}", mail.link());
    let reset = |password: &str| json!({"token": mail.token(), "password": password, "passwordConfirm": password});
    assert_eq!(users(&app, "confirm-password-reset", reset("short")).await.0, 400);
    assert_eq!(ada.get("/auth/me").await.status(), 200, "nothing has changed yet");
    assert_eq!(users(&app, "confirm-password-reset", reset("another horse")).await.0, 204);
    for path in ["/auth/me", "/api/collections/notes/records"] {
        assert_eq!(ada.get(path).await.status(), 401, "{path}");
    }
    let (status, body) = users(&app, "confirm-password-reset", reset("third horse")).await;
    assert_eq!((status, &body["data"]["token"]["code"]), (StatusCode::BAD_REQUEST, &json!("validation_invalid_token")));
    let again = app.sign_in(&ada.email, "another horse").await;
    assert_eq!(again.titles().await, ["x"]);
    assert_eq!(sessions(&again).await.len(), 1, "the list says no other");
    let logins = smtp.logins();
    assert!(logins.iter().all(|login| login.starts_with("AUTH PLAIN ")) && !logins.is_empty());

    // Not only dead with their key: the registry says so too, on disk.
    assert!(app.terminate().success());
    let store = Arc::new(ControlDatabase::open(&app.data().join("control.db")).unwrap());
    let registry = Sessions::open(store).await.unwrap();
    let status = |token: &str| registry.find(&SessionId::of(token)).unwrap().status.clone();
    assert_eq!((status(&ada.token), status(&again.token)), (Status::Revoked, Status::Live));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_address_ends_every_session_and_its_password_cannot_be_guessed_there() {
    let smtp = Smtp::start().await;
    let app = app(&smtp, "auth.free_failures = 2\nauth.delay_base = \"5m\"\nauth.delay_max = \"10m\"\n").await;
    let (ada, eve) = (app.user("ada").await, app.user("eve").await);
    ada.note("x").await;
    let call = format!("{USERS}/request-email-change");
    assert_eq!(app.post(&call, json!({"newEmail": "ada@new.example.com"})).await.status(), 401, "signed in only");
    assert_eq!(ada.post(&call, json!({"newEmail": "nonsense"})).await.status(), 400);
    for (user, new) in [(&ada, "ada@new.example.com"), (&eve, "eve@new.example.com")] {
        assert_eq!(user.post(&call, json!({ "newEmail": new })).await.status(), 204);
    }
    let mail = smtp.mail_to("ada@new.example.com", 1).await;
    assert!(mail.link().starts_with(&format!("{}/account/change-email#token=", app.base)), "{}", mail.link());
    let confirm = |mail: &crate::support::smtp::Mail, password: &str| {
        let body = json!({"token": mail.token(), "password": password});
        app.http.post(format!("{}{USERS}/confirm-email-change", app.base)).json(&body).send()
    };
    assert_eq!(confirm(&mail, "not hers").await.unwrap().status(), 400);
    assert_eq!(confirm(&mail, &ada.password).await.unwrap().status(), 204);
    assert_eq!(ada.get("/auth/me").await.status(), 401);
    let again = app.sign_in("ada@new.example.com", &ada.password).await;
    assert_eq!((again.id.as_str(), again.titles().await), (ada.id.as_str(), vec!["x".to_owned()]));
    assert_eq!(sessions(&again).await.len(), 1);

    let mail = smtp.mail_to("eve@new.example.com", 1).await;
    // The same claims, which anybody can write, under a signature that does not hold.
    let (claims, _) = mail.token().rsplit_once('.').map(|(a, b)| (a.to_owned(), b.to_owned())).unwrap();
    let forged = json!({"token": format!("{claims}.AAAA"), "password": "a wild guess"});
    for _ in 0..5 {
        let answer = app.post(&format!("{USERS}/confirm-email-change"), forged.clone()).await;
        assert_eq!(answer.status(), 400, "it counts against nobody");
    }
    let mut statuses = Vec::new();
    for _ in 0..5 {
        statuses.push(confirm(&mail, "a wild guess").await.unwrap().status().as_u16());
    }
    assert_eq!((statuses[0], statuses[4]), (400, 429), "{statuses:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_can_be_bombed_with_mail() {
    let smtp = Smtp::start().await;
    let keys = "accounts.otp.enabled = true\nmail.requests_per_recipient = 3\nmail.requests_per_ip = 8\n";
    let app = app(&smtp, keys).await;
    let ada = app.user("ada").await;
    let mut statuses = Vec::new();
    for call in ["request-otp", "request-otp", "request-otp", "request-otp", "request-password-reset"] {
        statuses.push(users(&app, call, json!({"email": ada.email})).await.0.as_u16());
    }
    assert_eq!(statuses, [200, 200, 200, 429, 204], "kinds do not share");
    let (_, refused) = users(&app, "request-otp", json!({"email": "ADA@example.com"})).await;
    assert_eq!(refused["code"], "RATE_LIMITED");
    // An address without an account is treated the same, and the client's own bound comes next.
    let mut statuses = Vec::new();
    for n in 0..5 {
        statuses.push(users(&app, "request-otp", json!({"email": format!("n{n}@example.com")})).await.0.as_u16());
    }
    assert_eq!(*statuses.last().unwrap(), 429, "{statuses:?}");
    smtp.mail_to(&ada.email, 4).await;
    assert_eq!(smtp.mails_to(&ada.email).len(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_one_time_password_cannot_be_guessed() {
    let smtp = Smtp::start().await;
    let app = app(&smtp, "accounts.otp.enabled = true\n").await;
    let ada = app.user("ada").await;
    let (_, asked) = users(&app, "request-otp", json!({"email": ada.email})).await;
    let otp = smtp.mail_to(&ada.email, 1).await.otp();
    let mut last = 0;
    for n in 0..12 {
        let body = json!({"otpId": asked["otpId"], "password": format!("{n:08}")});
        last = users(&app, "auth-with-otp", body).await.0.as_u16();
    }
    assert_eq!(last, 429);
    let right = users(&app, "auth-with-otp", json!({"otpId": asked["otpId"], "password": otp})).await;
    assert_eq!(right.0, 429, "also the right one, after so many wrong ones");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invitation_for_an_address_is_taken_by_whoever_has_it_and_not_by_who_claims_it() {
    let smtp = Smtp::start().await;
    let app = app(&smtp, "").await;
    let (ada, bob) = (app.user("ada").await, app.user("bob").await);
    assert_eq!(ada.post("/api/v1/tenants", json!({"name": "Team", "slug": "team"})).await.status(), 201);
    let wanted = json!({"role": "member", "email": bob.email});
    let made: Value = ada.post("/api/v1/tenants/team/invitations", wanted).await.json().await.unwrap();
    let accept = async || bob.post("/api/v1/invitations/accept", json!({"token": made["token"]})).await.status();
    assert_eq!(accept().await, 403, "anybody can register with any address");
    users(&app, "request-verification", json!({"email": bob.email})).await;
    let token = smtp.mail_to(&bob.email, 1).await.token();
    assert_eq!(users(&app, "confirm-verification", json!({ "token": token })).await.0, 204);
    assert_eq!(accept().await, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_mail_server_requests_say_so_for_every_address() {
    let app = TestApp::start().await;
    let ada = app.user("ada").await;
    for call in ["request-otp", "request-verification", "request-password-reset"] {
        for email in [ada.email.as_str(), "nobody@example.com"] {
            let (status, body) = users(&app, call, json!({"email": email})).await;
            assert_eq!((status.as_u16(), &body["code"]), (501, &json!("MAIL_NOT_CONFIGURED")), "{call} {email}");
        }
    }
    let change = ada.post(&format!("{USERS}/request-email-change"), json!({"newEmail": "a@new.example.com"})).await;
    assert_eq!(change.status(), 501);
    assert_eq!(users(&app, "auth-with-otp", json!({"otpId": "x", "password": "12345678"})).await.0, 403);
    assert_eq!(users(&app, "auth-with-otp", json!({})).await.0, 400);
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_impersonates_and_passwords_come_as_forms_too() {
    let app = TestApp::start().await;
    let (ada, bob) = (app.user("ada").await, app.user("bob").await);
    let made = app.cli(&["admin", "create", "--email", "root@example.com", "--password", "correct horse"]);
    let admin =
        if made.status.success() { app.sign_in("root@example.com", "correct horse").await } else { ada.clone() };
    for user in [&ada, &admin] {
        for id in [&ada.id, &bob.id] {
            for collection in ["users", "_pb_users_auth_", "_superusers"] {
                let path = format!("/api/collections/{collection}/impersonate/{id}");
                let answer = user.post(&path, json!({"duration": 3600})).await;
                assert_eq!(answer.status(), 404, "{path}");
                assert!(!answer.text().await.unwrap().contains("token"));
            }
        }
    }
    let form = app
        .http
        .post(format!("{}{USERS}/auth-with-password", app.base))
        .header("content-type", "application/x-www-form-urlencoded")
        .body(format!("identity=ada%40example.com&password={}", ada.password))
        .send()
        .await
        .unwrap();
    assert_eq!(form.status(), 200, "{}", form.text().await.unwrap());
    let multipart = "--b\r\nContent-Disposition: form-data; name=\"identity\"\r\n\r\nada@example.com\r\n--b\r\n\
        Content-Disposition: form-data; name=\"password\"\r\n\r\npassword-of-ada\r\n--b--\r\n";
    let form = app
        .http
        .post(format!("{}{USERS}/auth-with-password", app.base))
        .header("content-type", "multipart/form-data; boundary=b")
        .body(multipart)
        .send()
        .await
        .unwrap();
    assert_eq!(form.status(), 200, "{}", form.text().await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_picture_ends_no_session_and_an_admins_new_password_ends_all() {
    let app = TestApp::start().await;
    let ada = app.user("ada").await;
    let mut body = b"--b\r\nContent-Disposition: form-data; name=\"avatar\"; filename=\"a.png\"\r\n\
        Content-Type: image/png\r\n\r\n\x89PNG\r\n\x1a\n"
        .to_vec();
    // A percent sign could hide a field's name, so such a body is treated as one that may change the password.
    body.extend_from_slice(b"% password %\r\n--b--\r\n");
    let path = format!("{USERS}/records/{}", ada.id);
    let request = ada.request(Method::PATCH, &path).header("content-type", "multipart/form-data; boundary=b");
    assert_eq!(request.body(body).send().await.unwrap().status(), 200);
    assert_eq!(ada.get("/auth/me").await.status(), 200);
    assert_eq!(sessions(&ada).await.len(), 1);
    let made = app.cli_json(&["admin", "create", "--email", &ada.email]);
    assert_eq!(ada.get("/auth/me").await.status(), 401);
    let again = app.sign_in(&ada.email, made["password"].as_str().unwrap()).await;
    assert_eq!(sessions(&again).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_configuration_counts_after_a_restart_and_an_unchanged_one_writes_nothing() {
    let smtp = Smtp::start().await;
    let github =
        "accounts.oauth2.github.client_id = \"us\"\naccounts.oauth2.github.client_secret = \"planted-secret\"\n";
    let url = "accounts.otp.enabled = true\nserver.public_url = \"https://fleet.example.com/\"\n";
    let keys = format!("{}{github}{url}", smtp.keys());
    let mut app = TestApp::prepare(&keys);
    app.launch().await;
    app.configured().await;
    assert!(app.terminate().success());
    let before = app.log().matches("accounts are configured anew").count();
    app.launch().await;
    let ada = app.user("ada").await;
    let (_, asked) = users(&app, "request-otp", json!({"email": ada.email})).await;
    assert!(asked["otpId"].is_string());
    assert_eq!(users(&app, "request-verification", json!({"email": ada.email})).await.0, 204);
    let link = smtp.mail_to(&ada.email, 2).await.link();
    assert!(link.starts_with("https://fleet.example.com/account/verify#token="), "{link}");
    assert!(app.terminate().success());
    assert_eq!(app.log().matches("accounts are configured anew").count(), before, "nothing was written again");
    for secret in ["planted-smtp-password", "planted-secret"] {
        assert!(!app.log().contains(secret), "{}", app.log());
    }

    // Without the section, mails and one-time passwords are off again.
    let config = app.dir.path().join("test.toml");
    let text = std::fs::read_to_string(&config).unwrap();
    let kept: Vec<_> =
        text.lines().filter(|line| !line.starts_with("mail.") && !line.starts_with("accounts.")).collect();
    std::fs::write(&config, kept.join("\n")).unwrap();
    app.launch().await;
    crate::support::eventually("one-time passwords are off", async || {
        let methods: Value = app.get(&format!("{USERS}/auth-methods")).await.json().await.unwrap();
        (methods["otp"]["enabled"] == json!(false)).then_some(())
    })
    .await;
    assert_eq!(ada.at(&app).get("/auth/me").await.status(), 200, "a new configuration signs out nobody");
}

#[test]
fn secrets_are_taken_from_the_environment_as_they_are_and_never_shown() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("test.toml");
    let check = |text: &str| {
        std::fs::write(&file, text).unwrap();
        let mut command = crate::support::pocketfleet();
        command.arg("check-config").arg("--config").arg(&file);
        for (name, value) in [
            ("MAIL__SMTP_PASSWORD", "77770001"),
            ("ACCOUNTS__OAUTH2__GITHUB__CLIENT_ID", "us"),
            ("ACCOUNTS__OAUTH2__GITHUB__CLIENT_SECRET", "77770002"),
        ] {
            command.env(format!("POCKETFLEET_{name}"), value);
        }
        let output = command.output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8_lossy(&text).into_owned())
    };
    let mail = "[mail]\nsmtp_host = \"mail.example.com\"\nsender_address = \"fleet@example.com\"\n";
    let (valid, said) = check(mail);
    assert!(valid && !said.contains("7777"), "{said}");
    let (valid, said) = check(&format!("{mail}smtp_password_file = \"/nowhere\"\n"));
    assert!(
        !valid && said.contains("mail.smtp_password and mail.smtp_password_file") && !said.contains("7777"),
        "{said}"
    );
    let (valid, said) = check("[accounts.oauth2.google]\nclient_id = \"us\"\nclient_secret = 77770003\n");
    assert!(!valid && said.contains("accounts.oauth2.google.client_secret") && !said.contains("7777"), "{said}");
}
