//! The page at `/app` as browsers and attackers reach it over HTTP: cookies, origins, headers, and who sees what.

use reqwest::Method;
use reqwest::RequestBuilder;
use reqwest::Response;

use crate::support::TestApp;
use crate::support::User;
use crate::support::eventually;

const FORM: &str = "application/x-www-form-urlencoded";

/// A browser that follows no redirect by itself, with one cookie.
struct Browser {
    http: reqwest::Client,
    base: String,
    cookie: Option<String>,
}

impl Browser {
    fn new(app: &TestApp) -> Self {
        let http = crate::support::http().redirect(reqwest::redirect::Policy::none()).build().unwrap();
        Self { http, base: app.base.clone(), cookie: None }
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let request = self.http.request(method, format!("{}{path}", self.base));
        match &self.cookie {
            Some(cookie) => request.header("cookie", format!("session_token={cookie}")),
            None => request,
        }
    }

    async fn get(&self, path: &str) -> Response {
        self.request(Method::GET, path).send().await.unwrap()
    }

    /// As a form of our own page sends it.
    async fn post(&self, path: &str, body: &str) -> Response {
        self.foreign(path, body, &self.base).send().await.unwrap()
    }

    fn foreign(&self, path: &str, body: &str, origin: &str) -> RequestBuilder {
        self.request(Method::POST, path).header("content-type", FORM).header("origin", origin).body(body.to_owned())
    }

    /// Signs in and keeps the cookie.
    async fn sign_in(&mut self, user: &User) -> String {
        let body = format!("email={}&password={}", user.email.replace('@', "%40"), user.password);
        let answer = self.post("/app/sign-in", &body).await;
        assert_eq!((answer.status().as_u16(), location(&answer)), (303, "/app"));
        let line = answer.headers()["set-cookie"].to_str().unwrap().to_owned();
        let token = line.strip_prefix("session_token=").unwrap().split(';').next().unwrap().to_owned();
        self.cookie = Some(token);
        line
    }
}

fn location(answer: &Response) -> &str {
    answer.headers().get("location").map_or("", |value| value.to_str().unwrap())
}

fn header<'a>(answer: &'a Response, name: &str) -> &'a str {
    answer.headers().get(name).map_or("", |value| value.to_str().unwrap())
}

#[tokio::test]
async fn the_cookie_is_closed_to_scripts_and_the_token_is_nowhere_else() {
    let app = TestApp::start().await;
    let user = app.user("ada").await;
    let mut browser = Browser::new(&app);
    let cookie = browser.sign_in(&user).await;
    for flag in ["; HttpOnly", "; SameSite=Lax", "; Path=/", "; Max-Age="] {
        assert!(cookie.contains(flag), "{cookie}");
    }
    assert!(!cookie.contains("Secure") && !cookie.contains("Domain"), "{cookie}");
    let token = browser.cookie.clone().unwrap();
    for path in ["/app", "/app/queue", "/app/settings", "/app/queue/panel"] {
        let answer = browser.get(path).await;
        assert_eq!(answer.status(), 200, "{path}");
        assert_eq!(header(&answer, "cache-control"), "no-store", "{path}");
        let policy = header(&answer, "content-security-policy").to_owned();
        assert!(policy.starts_with("default-src 'none'; script-src 'self';"), "{policy}");
        assert_eq!(header(&answer, "referrer-policy"), "same-origin");
        assert_eq!(header(&answer, "x-frame-options"), "DENY");
        let html = answer.text().await.unwrap();
        assert!(!html.contains(&token) && html.starts_with("<!doctype html>") | html.starts_with("<section"), "{html}");
    }
    // A page that was loaded over https gets a cookie for https alone.
    let https = app.base.replace("http://", "https://");
    let body = format!("email={}&password={}", user.email.replace('@', "%40"), user.password);
    let answer = browser.foreign("/app/sign-in", &body, &https).send().await.unwrap();
    assert!(header(&answer, "set-cookie").ends_with("; Secure"), "{:?}", answer.headers());
}

#[tokio::test]
async fn a_foreign_page_changes_nothing() {
    let app = TestApp::start().await;
    let user = app.user("ada").await;
    let mut browser = Browser::new(&app);
    browser.sign_in(&user).await;
    let own = browser.base.clone();
    let beside = own.rsplit_once(':').map(|(host, _)| format!("{host}:1")).unwrap();
    let below = format!("{own}.evil.example");
    for origin in ["https://evil.example", "null", "", &beside, &below] {
        for path in ["/app/sign-out", "/app/queue", "/app/keys", "/app/sync", "/app/sign-in", "/app/register"] {
            let answer = browser.foreign(path, "service=fathom&secret=x", origin).send().await.unwrap();
            assert_eq!(answer.status(), 403, "{origin} {path}");
            assert_eq!(header(&answer, "set-cookie"), "", "{origin} {path}");
        }
    }
    // Without an origin, and as a browser says that the request crosses sites.
    let request = browser.request(Method::POST, "/app/sign-out").header("content-type", FORM).body("");
    assert_eq!(request.send().await.unwrap().status(), 403);
    let request = browser.foreign("/app/sign-out", "", &own).header("sec-fetch-site", "cross-site");
    assert_eq!(request.send().await.unwrap().status(), 403);
    assert_eq!(browser.get("/app").await.status(), 200, "the session is still there");
    // The cookie alone opens no API: only sockets and this page read it.
    assert_eq!(browser.get("/api/v1/auth/me").await.status(), 401);
    assert_eq!(browser.foreign("/api/v1/auth/logout", "", &own).send().await.unwrap().status(), 401);
}

#[tokio::test]
async fn signing_out_ends_the_session_and_not_only_the_cookie() {
    let app = TestApp::start().await;
    let user = app.user("ada").await;
    let mut browser = Browser::new(&app);
    browser.sign_in(&user).await;
    let answer = browser.post("/app/sign-out", "").await;
    assert_eq!((answer.status().as_u16(), location(&answer)), (303, "/app/sign-in?said=signed-out"));
    assert!(header(&answer, "set-cookie").contains("Max-Age=0"));
    let answer = browser.get("/app").await;
    assert_eq!((answer.status().as_u16(), location(&answer)), (303, "/app/sign-in"));
    assert!(browser.get("/app/sign-in?said=signed-out").await.text().await.unwrap().contains("You are signed out."));
    // Once more is no error.
    assert_eq!(browser.post("/app/sign-out", "").await.status(), 303);
}

#[tokio::test]
async fn strangers_see_the_sign_in_and_nothing_else() {
    let app = TestApp::start().await;
    let mut browser = Browser::new(&app);
    for cookie in [None, Some("nonsense"), Some("a.b.c")] {
        browser.cookie = cookie.map(str::to_owned);
        for path in
            ["/app", "/app/queue", "/app/settings", "/app/meetings/17", "/app/queue/panel", "/app/queue/x/video"]
        {
            let answer = browser.get(path).await;
            assert_eq!((answer.status().as_u16(), location(&answer)), (303, "/app/sign-in"), "{path}");
        }
        for path in ["/app/queue", "/app/keys", "/app/keys/x/delete", "/app/destinations", "/app/queue/x/cancel"] {
            let answer = browser.post(path, "service=fathom&secret=x").await;
            assert_eq!((answer.status().as_u16(), location(&answer)), (303, "/app/sign-in"), "{path}");
        }
        let answer = browser.get("/app/sign-in").await;
        assert_eq!((answer.status().as_u16(), header(&answer, "cache-control")), (200, "no-store"));
    }
    let absent = browser.get("/app/nowhere").await;
    assert_eq!((absent.status().as_u16(), header(&absent, "content-type")), (404, "text/html; charset=utf-8"));
    assert_eq!(browser.get("/app/assets/app.css").await.status(), 200);
    assert!(browser.get("/app/assets/..%2f..%2fCargo.toml").await.status().is_client_error());
}

#[tokio::test]
async fn wrong_words_are_answered_on_the_form_that_was_sent() {
    let app = TestApp::start().await;
    app.user("ada").await;
    let browser = Browser::new(&app);
    let answer = browser.post("/app/sign-in", "email=ada%40example.com%22%3E&password=wrong-password").await;
    assert_eq!(answer.status(), 400);
    let html = answer.text().await.unwrap();
    assert!(html.contains("The e-mail address or the password is wrong."), "{html}");
    assert!(html.contains("value=\"ada@example.com&#34;&#62;\""), "{html}");
    assert!(!html.contains("wrong-password"), "{html}");
    let answer = browser.post("/app/register", "email=bob%40example.com&password=short&name=Bob").await;
    let status = answer.status();
    let html = answer.text().await.unwrap();
    assert_eq!(status, 400);
    assert!(html.contains("notice bad") && html.contains("Password:"), "{html}");
    let answer = browser.post("/app/register", "email=bob%40example.com&password=correct+horse&name=Bob").await;
    assert_eq!((answer.status().as_u16(), location(&answer)), (303, "/app?said=welcome"));
    assert!(header(&answer, "set-cookie").starts_with("session_token="));
    let again = browser.post("/app/register", "email=bob%40example.com&password=correct+horse").await;
    assert_eq!(again.status(), 400);
    assert!(again.text().await.unwrap().contains("sign in instead"));
}

#[tokio::test]
async fn two_cookies_of_the_name_are_nobody() {
    let app = TestApp::start().await;
    let (ada, eve) = (app.user("ada").await, app.user("eve").await);
    let browser = Browser::new(&app);
    let both = format!("session_token={}; session_token={}", ada.token, eve.token);
    let answer = browser.request(Method::GET, "/app").header("cookie", both).send().await.unwrap();
    assert_eq!(location(&answer), "/app/sign-in");
    // A token is a token: one that an SDK got works here too.
    let one = format!("session_token={}", ada.token);
    let answer = browser.request(Method::GET, "/app").header("cookie", one).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    let html = answer.text().await.unwrap();
    assert!(html.contains("ada@example.com") && !html.contains(&eve.email), "{html}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_account_shows_what_it_takes_is_backed_up_deleted_and_brought_back() {
    let store = tempfile::tempdir().unwrap();
    let keys = format!("backup.store = \"dir:{}\"\nbackup.schedule = \"\"\n", store.path().display());
    let app = TestApp::with(&(keys + "vault.reveal_max_age = \"1h\"\n")).await;
    let (ada, eve) = (app.user("ada").await, app.user("eve").await);
    ada.note("mine").await;
    let mut browser = Browser::new(&app);
    browser.sign_in(&ada).await;
    let html = browser.get("/app/account").await.text().await.unwrap();
    assert!(html.contains("Your database") && html.contains(" used") && html.contains("Back up now"), "{html}");

    let begun = browser.post("/app/account/backups", "").await;
    assert_eq!((begun.status().as_u16(), location(&begun)), (303, "/app/account?said=backup-begun"));
    let link = eventually("the backup is listed", async || {
        let html = browser.get("/app/account").await.text().await.unwrap();
        let (_, rest) = html.split_once("href=\"/app/account/backups/")?;
        Some(format!("/app/account/backups/{}", rest.split_once('"')?.0))
    })
    .await;
    let file = browser.get(&link).await;
    assert_eq!((file.status().as_u16(), header(&file, "content-type")), (200, "application/x-tar"));
    assert!(file.bytes().await.unwrap().starts_with(b"pb_data/"), "a whole archive");
    ada.note("later").await;
    let restore = link.replace("/download", "/restore");
    let begun = browser.post(&restore, "").await;
    assert_eq!((begun.status().as_u16(), location(&begun)), (303, "/app/account?said=restore-begun"));
    eventually("the data is the backup's", async || (ada.titles().await == ["mine"]).then_some(())).await;
    let mut stranger = Browser::new(&app);
    stranger.sign_in(&eve).await;
    assert_eq!(stranger.get(&link).await.status(), 404);
    assert_eq!(stranger.post(&restore, "").await.status(), 404);

    // Nobody is deleted by a slip of the hand, or by another page.
    let slip = browser.post("/app/account/delete", "email=eve%40example.com").await;
    assert_eq!(slip.status(), 400);
    assert!(slip.text().await.unwrap().contains("Type the address of this account"));
    let foreign = browser.foreign("/app/account/delete", "email=ada%40example.com", "https://evil.example");
    assert_eq!(foreign.send().await.unwrap().status(), 403);
    assert_eq!(ada.titles().await, ["mine"]);
    let gone = browser.post("/app/account/delete", "email=ada%40example.com").await;
    assert_eq!((gone.status().as_u16(), location(&gone)), (303, "/app/sign-in?said=account-deleted"));

    // Until it is erased there is one page, which brings it back.
    browser.sign_in(&ada).await;
    let home = browser.get("/app").await;
    assert_eq!((home.status().as_u16(), location(&home)), (303, "/app/account"));
    let html = browser.get("/app/account").await.text().await.unwrap();
    assert!(html.contains("Bring it back") && !html.contains("Back up now"), "{html}");
    let back = browser.post("/app/account/undelete", "").await;
    assert_eq!((back.status().as_u16(), location(&back)), (303, "/app?said=account-back"));
    let html = browser.get("/app/account").await.text().await.unwrap();
    assert!(html.contains("Your database"), "{html}");
}
