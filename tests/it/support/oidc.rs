//! A service that people sign in with (`OpenID` Connect): authorize, token and userinfo endpoints on loopback. It checks
//! the client's secret, the redirect URL and the code verifier, and gives each code once.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::Mutex;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use reqwest::Url;
use serde_json::Value;
use serde_json::json;
use sha2::Digest;
use sha2::Sha256;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tokio::net::TcpStream;

pub(crate) const CLIENT_ID: &str = "fleet-of-tests";
pub(crate) const CLIENT_SECRET: &str = "planted-client-secret";

/// What a code stands for until it is exchanged.
struct Grant {
    person: Value,
    challenge: String,
    redirect: String,
}

#[derive(Default)]
struct Held {
    person: Value,
    codes: HashMap<String, Grant>,
    tokens: HashMap<String, Value>,
    made: usize,
}

/// The service; it ends with the test's runtime.
#[derive(Clone)]
pub(crate) struct Oidc {
    pub base: String,
    held: Arc<Mutex<Held>>,
}

impl Oidc {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        let oidc = Self { base, held: Arc::default() };
        let server = oidc.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let server = server.clone();
                tokio::spawn(async move { server.talk(stream).await });
            }
        });
        oidc
    }

    /// The configuration that lets people sign in with it.
    pub(crate) fn keys(&self) -> String {
        let base = &self.base;
        format!(
            "accounts.oauth2.oidc.client_id = \"{CLIENT_ID}\"\naccounts.oauth2.oidc.client_secret = \"{CLIENT_SECRET}\"\n\
             accounts.oauth2.oidc.auth_url = \"{base}/authorize\"\naccounts.oauth2.oidc.token_url = \"{base}/token\"\n\
             accounts.oauth2.oidc.user_info_url = \"{base}/userinfo\"\naccounts.oauth2.oidc.display_name = \"Tests\"\n\
             accounts.oauth2.oidc.pkce = true\n"
        )
    }

    /// Who sits in front of the browser from now on.
    pub(crate) fn person(&self, sub: &str, email: &str) {
        self.held.lock().unwrap().person =
            json!({"sub": sub, "email": email, "email_verified": true, "name": format!("The {sub}")});
    }

    async fn talk(&self, mut stream: TcpStream) -> Option<()> {
        let mut bytes = Vec::new();
        let (head, length) = loop {
            if stream.read_buf(&mut bytes).await.ok()? == 0 {
                return None;
            }
            if let Some(at) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
                let head = String::from_utf8_lossy(&bytes[..at]).into_owned();
                break (head, at + 4);
            }
        };
        let header = |wanted: &str| {
            head.lines().find_map(|line| {
                let (name, value) = line.split_once(':')?;
                name.eq_ignore_ascii_case(wanted).then(|| value.trim().to_owned())
            })
        };
        let expected = header("content-length").and_then(|text| text.parse::<usize>().ok()).unwrap_or_default();
        while bytes.len() < length + expected {
            if stream.read_buf(&mut bytes).await.ok()? == 0 {
                return None;
            }
        }
        let body = String::from_utf8_lossy(&bytes[length..]).into_owned();
        let target = head.split(' ').nth(1)?;
        let url = Url::parse(&format!("http://localhost{target}")).ok()?;
        let authorization = header("authorization").unwrap_or_default();
        let reply = match url.path() {
            "/authorize" => self.authorize(&url),
            "/token" => self.token(&authorization, &body),
            "/userinfo" => self.userinfo(&authorization),
            _ => answer("404 Not Found", "", &Value::Null),
        };
        stream.write_all(reply.as_bytes()).await.ok()?;
        stream.shutdown().await.ok()
    }

    /// The person agrees at once.
    fn authorize(&self, url: &Url) -> String {
        let query: HashMap<_, _> = url.query_pairs().into_owned().collect();
        let get = |name: &str| query.get(name).cloned().unwrap_or_default();
        if get("client_id") != CLIENT_ID || get("code_challenge_method") != "S256" {
            return answer("400 Bad Request", "", &json!({"error": "invalid_request"}));
        }
        let mut held = self.held.lock().unwrap();
        held.made += 1;
        let code = format!("code-{}", held.made);
        let grant =
            Grant { person: held.person.clone(), challenge: get("code_challenge"), redirect: get("redirect_uri") };
        held.codes.insert(code.clone(), grant);
        let mut location = Url::parse(&get("redirect_uri")).unwrap();
        location.query_pairs_mut().append_pair("code", &code).append_pair("state", &get("state"));
        answer("302 Found", &format!("Location: {location}\r\n"), &Value::Null)
    }

    fn token(&self, authorization: &str, body: &str) -> String {
        let refused = |why: &str| answer("400 Bad Request", "", &json!({ "error": why }));
        let form = Url::parse(&format!("http://localhost/?{body}")).unwrap();
        let form: HashMap<_, _> = form.query_pairs().into_owned().collect();
        let get = |name: &str| form.get(name).cloned().unwrap_or_default();
        let basic = format!("Basic {}", STANDARD.encode(format!("{CLIENT_ID}:{CLIENT_SECRET}")));
        if authorization != basic
            && (get("client_id"), get("client_secret")) != (CLIENT_ID.into(), CLIENT_SECRET.into())
        {
            return refused("invalid_client");
        }
        let mut held = self.held.lock().unwrap();
        let Some(grant) = held.codes.remove(&get("code")) else { return refused("invalid_grant") };
        let challenge = URL_SAFE_NO_PAD.encode(Sha256::digest(get("code_verifier")));
        if grant.challenge != challenge || grant.redirect != get("redirect_uri") {
            return refused("invalid_grant");
        }
        let token = format!("access-{}", held.tokens.len());
        held.tokens.insert(token.clone(), grant.person);
        answer("200 OK", "", &json!({"access_token": token, "token_type": "Bearer", "expires_in": 60}))
    }

    fn userinfo(&self, authorization: &str) -> String {
        let token = authorization.strip_prefix("Bearer ").unwrap_or_default();
        match self.held.lock().unwrap().tokens.get(token) {
            Some(person) => answer("200 OK", "", person),
            None => answer("401 Unauthorized", "", &Value::Null),
        }
    }
}

fn answer(status: &str, headers: &str, body: &Value) -> String {
    let body = body.to_string();
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n{headers}\r\n{body}",
        body.len()
    )
}
