//! Brings the global instance to what the operator's configuration says of mails and ways to sign in.
//!
//! What is stored is read from its database file and compared; only what differs is written, through the instance's
//! own API. So an unchanged configuration costs a read at start, and a changed one takes effect with a restart.
//!
//! Invariants:
//! - Nothing of what is compared or written is logged: it holds secrets.
//! - What keeps people out is written first and by itself; what `PocketBase` refuses leaves the rest standing.
//! - A rule or a mail text that a template made its own is left alone, except for links to the dashboard, which the
//!   gateway does not serve.
//!
//! Limits: `PocketBase` stores the secrets readable in the global instance's database, and so in its backups.

use std::time::Duration;

use hyper::Method;
use serde_json::Map;
use serde_json::Value;
use serde_json::json;

use super::Accounts;
use super::Answer;
use super::Error;
use super::config::AuthMethod;
use super::config::Mail;
use super::config::Provider;
use super::config::Settings;
use super::config::Tls;
use super::reserved;
use super::upstream::Call;
use super::upstream::USERS;
use crate::ids::TenantId;
use crate::shutdown::Shutdown;

/// The first wait after a failure, and the longest.
const FIRST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_mins(1);

/// The rule by which an account signs in only with a verified address.
const VERIFIED: &str = "verified = true";

/// The mails that carry a link: the template's name, the page of the dashboard it leads to at first, our page.
const LINKS: [(&str, &str, &str); 3] = [
    ("verificationTemplate", "confirm-verification", "verify"),
    ("resetPasswordTemplate", "confirm-password-reset", "reset-password"),
    ("confirmEmailChangeTemplate", "confirm-email-change", "change-email"),
];

/// What the operator wants of the accounts.
#[derive(Debug, Clone)]
pub struct Operator {
    /// `[mail]`
    pub mail: Mail,
    /// `[accounts]`
    pub accounts: Settings,
    /// The URL that users see, for links in mails.
    pub public_url: String,
}

const SETTINGS: &str = "/api/settings";

/// What is written in one call: `PocketBase` takes all of it or nothing.
struct Part {
    name: &'static str,
    path: &'static str,
    wanted: Value,
}

/// What came of an attempt.
#[derive(Default)]
struct Applied {
    is_written: bool,
    /// What `PocketBase` does not take, and its complaints. Trying again would change nothing.
    refused: Vec<(&'static str, String)>,
    /// The last answer that says nothing about the configuration.
    failure: Option<Error>,
}

impl Accounts {
    /// Applies the configuration once the global instance is awake, again and again until it took.
    pub async fn configure(self, shutdown: Shutdown) {
        let mut wait = FIRST_WAIT;
        let mut are_named = false;
        loop {
            let error = match self.apply().await {
                Ok(applied) => {
                    for (part, complaints) in applied.refused.iter().filter(|_| !are_named) {
                        tracing::error!(part, complaints, "PocketBase does not take the configuration of accounts");
                    }
                    are_named |= !applied.refused.is_empty();
                    match (applied.failure, applied.is_written) {
                        (Some(error), _) => error,
                        (None, _) if are_named => return,
                        (None, true) => return tracing::info!("accounts are configured anew"),
                        (None, false) => return tracing::debug!("accounts are configured as they should be"),
                    }
                }
                Err(error) => error,
            };
            if shutdown.has_begun() {
                return;
            }
            tracing::debug!(%error, "accounts cannot be configured yet");
            tokio::select! {
                () = shutdown.begun() => return,
                () = tokio::time::sleep(wait) => {}
            }
            wait = (wait * 2).min(LONGEST_WAIT);
        }
    }

    async fn apply(&self) -> Result<Applied, Error> {
        self.shared.supervisor.wake(&TenantId::global()).await?;
        let (settings, users) = self.shared.verifier.configuration()?;
        let operator = &self.shared.operator;
        let mut applied = Applied::default();
        let reserved = reserved_ids(&users, self.shared.spares.key());
        for Part { name, path, mut wanted } in operator.parts(&users).into_iter().chain(reserved) {
            let stored = if path == SETTINGS { &settings } else { &users };
            while !holds(stored, &wanted) {
                let answer = self.shared.upstream.call(Call::superuser_at(Method::PATCH, path).json(&wanted)).await?;
                self.shared.verifier.accounts_changed();
                match answer.status {
                    200 => applied.is_written = true,
                    400 => {
                        applied.refused.push((name, complaints(&answer)));
                        if drop_refused_providers(&mut wanted, &answer) {
                            continue;
                        }
                    }
                    _ => applied.failure = Some(Error::Refused(answer)),
                }
                break;
            }
        }
        if applied.failure.is_none() {
            self.open_spares()?;
        }
        if applied.failure.is_none() && operator.accounts.require_verified && has_own_rule(&users) {
            tracing::warn!(
                "accounts.require_verified has no effect: the template of the global instance has a rule of its own \
                 for who may sign in (authRule), which has to ask for `{VERIFIED}` itself"
            );
        }
        Ok(applied)
    }

    /// Lets spares be given away, if the rule for new accounts takes their ids now.
    fn open_spares(&self) -> Result<(), Error> {
        let Some(key) = self.shared.spares.key() else { return Ok(()) };
        let (_, users) = self.shared.verifier.configuration()?;
        let stored = create_rule(&users);
        if stored
            .and_then(|stored| reserved::rule(stored, Some(key)))
            .as_deref()
            .is_some_and(|rule| Some(rule) == stored)
        {
            self.shared.spares.open();
        } else {
            tracing::warn!(
                "instances.spares has no effect: the template of the global instance has a rule of its own for new \
                 accounts (createRule), in which `@request.body.id:isset = false` has to stand once"
            );
        }
        Ok(())
    }
}

fn create_rule(users: &Value) -> Option<&str> {
    users.get("createRule").and_then(Value::as_str)
}

/// The rule for new accounts with ids of ours, or as it was without them.
fn reserved_ids(users: &Value, key: Option<&str>) -> Option<Part> {
    let rule = reserved::rule(create_rule(users)?, key)?;
    Some(Part { name: "spares", path: USERS, wanted: json!({ "createRule": rule }) })
}

/// Whether the template says for itself who may sign in, and not that addresses are to be verified.
fn has_own_rule(users: &Value) -> bool {
    let rule = users.get("authRule").and_then(Value::as_str);
    !rule.is_some_and(|rule| rule.is_empty() || rule.contains(VERIFIED))
}

/// Takes the sign-in services out that `PocketBase` complains about, so that the others work. Whether there were any.
fn drop_refused_providers(wanted: &mut Value, answer: &Answer) -> bool {
    let body = answer.json().unwrap_or_default();
    let refused = body.pointer("/data/oauth2/providers").and_then(Value::as_object);
    let Some(providers) = wanted.pointer_mut("/oauth2/providers").and_then(Value::as_array_mut) else { return false };
    let before = providers.len();
    let mut at = 0;
    providers.retain(|_| {
        at += 1;
        !refused.is_some_and(|refused| refused.contains_key(&(at - 1).to_string()))
    });
    let (left, is_less) = (providers.len(), providers.len() < before);
    wanted["oauth2"]["enabled"] = Value::from(left > 0);
    is_less
}

impl Operator {
    /// What the settings must hold.
    fn settings(&self) -> Value {
        let mail = &self.mail;
        if !mail.is_on() {
            // Without a server of its own, `PocketBase` would use the machine's `sendmail`; nothing asks it to.
            return json!({ "smtp": { "enabled": false, "username": "", "password": "" } });
        }
        json!({
            "smtp": {
                "enabled": true,
                "host": mail.smtp_host,
                "port": mail.smtp_port,
                "username": mail.smtp_username,
                "password": mail.smtp_password.expose(),
                "authMethod": match mail.smtp_auth {
                    AuthMethod::Plain => "PLAIN",
                    AuthMethod::Login => "LOGIN",
                },
                "tls": mail.smtp_tls == Tls::Implicit,
                "localName": mail.local_name,
            },
            "meta": {
                "appName": mail.app_name,
                "appURL": self.public_url,
                "senderName": mail.sender_name,
                "senderAddress": mail.sender_address,
            },
        })
    }

    /// Everything, given what the `users` collection holds. What keeps people out comes first, and apart from what is
    /// more likely to be refused: who may sign in, then the second factor with the ways to sign in that it needs.
    fn parts(&self, stored: &Value) -> Vec<Part> {
        let Settings { otp, mfa, require_verified, .. } = &self.accounts;
        let users = |name, wanted| Part { name, path: USERS, wanted };
        let mut parts = Vec::new();
        // Any other rule is the template's own.
        if let Some("" | VERIFIED) = stored.get("authRule").and_then(Value::as_str) {
            let rule = if *require_verified { VERIFIED } else { "" };
            parts.push(users("require_verified", json!({ "authRule": rule })));
        }
        let mut factors = json!({ "otp": { "enabled": otp.enabled }, "mfa": { "enabled": mfa.enabled } });
        if otp.enabled {
            factors["otp"] = json!({ "enabled": true, "length": otp.length, "duration": otp.duration.as_secs() });
        }
        if mfa.enabled {
            let (duration, rule) = (mfa.duration.as_secs(), &mfa.rule);
            factors["mfa"] = json!({ "enabled": true, "duration": duration, "rule": rule });
        }
        if mfa.enabled && !otp.enabled {
            // `PocketBase` takes it only with a second way to sign in.
            factors["oauth2"] = self.oauth2();
            parts.push(users("mfa", factors));
        } else {
            parts.push(users("mfa", factors));
            parts.push(users("oauth2", json!({ "oauth2": self.oauth2() })));
        }
        let mut mails = json!({});
        for (template, dashboard, page) in LINKS {
            let body = stored.get(template).and_then(|template| template.get("body")).and_then(Value::as_str);
            if let Some(body) = body {
                let body = relink(body, dashboard, page, self.url_of(page));
                mails[template] = json!({ "body": body });
            }
        }
        parts.push(users("links in mails", mails));
        parts.push(Part { name: "mail", path: SETTINGS, wanted: self.settings() });
        parts
    }

    fn oauth2(&self) -> Value {
        let provider = |(name, provider): (&String, &Provider)| {
            json!({
                "name": name,
                "clientId": provider.client_id,
                "clientSecret": provider.client_secret.expose(),
                "authURL": provider.auth_url,
                "tokenURL": provider.token_url,
                "userInfoURL": provider.user_info_url,
                "displayName": provider.display_name,
                "pkce": provider.pkce,
                "extra": provider.extra,
            })
        };
        let providers: Vec<Value> = self.accounts.oauth2.iter().map(provider).collect();
        json!({ "enabled": !providers.is_empty(), "providers": providers })
    }

    fn url_of(&self, page: &str) -> &str {
        match page {
            "verify" => &self.accounts.verify_url,
            "reset-password" => &self.accounts.reset_password_url,
            _ => &self.accounts.change_email_url,
        }
    }
}

/// The text of a mail with its links set right: links to the dashboard lead to our page, links to our page or the
/// dashboard lead to `url` when there is one. With a `url`, every link that carries the token is one of those.
fn relink(body: &str, dashboard: &str, page: &str, url: &str) -> String {
    const HREF: &str = "href=\"";
    let ours = format!("{{APP_URL}}/account/{page}#token={{TOKEN}}");
    let theirs = format!("/_/#/auth/{dashboard}/{{TOKEN}}");
    let mut text = String::with_capacity(body.len());
    let mut rest = body;
    while let Some((before, after)) = rest.split_once(HREF) {
        let Some((link, tail)) = after.split_once('"') else { break };
        let carries = link.contains("{TOKEN}");
        let target = match () {
            () if carries && !url.is_empty() => url,
            () if carries && link.ends_with(&theirs) => &ours,
            () => link,
        };
        text.extend([before, HREF, target, "\""]);
        rest = tail;
    }
    text.push_str(rest);
    text
}

/// Whether `stored` holds everything in `wanted`. What is missing counts as empty, as it does in Go.
fn holds(stored: &Value, wanted: &Value) -> bool {
    match (stored, wanted) {
        (Value::Object(stored), Value::Object(wanted)) => {
            wanted.iter().all(|(name, wanted)| holds(stored.get(name).unwrap_or(&Value::Null), wanted))
        }
        (Value::Array(stored), Value::Array(wanted)) => {
            stored.len() == wanted.len() && stored.iter().zip(wanted).all(|(stored, wanted)| holds(stored, wanted))
        }
        (Value::Null, wanted) => match wanted {
            Value::Null | Value::Bool(false) => true,
            Value::String(text) => text.is_empty(),
            Value::Array(items) => items.is_empty(),
            Value::Object(fields) => fields.values().all(|field| holds(&Value::Null, field)),
            Value::Number(number) => number.as_u64() == Some(0),
            Value::Bool(true) => false,
        },
        (stored, wanted) => stored == wanted,
    }
}

/// Which fields `PocketBase` complains about and why, without any value.
fn complaints(answer: &Answer) -> String {
    fn collect(path: &str, fields: &Map<String, Value>, found: &mut Vec<String>) {
        for (name, value) in fields {
            let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
            match value {
                Value::Object(inner) => match inner.get("code").and_then(Value::as_str) {
                    Some(code) => found.push(format!("{path}: {code}")),
                    None => collect(&path, inner, found),
                },
                _ => found.push(path),
            }
        }
    }
    let mut found = Vec::new();
    if let Some(Value::Object(data)) = answer.json().and_then(|mut body| body.get_mut("data").map(Value::take)) {
        collect("", &data, &mut found);
    }
    found.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::accounts::config::tests::provider;
    use crate::auth::accounts::config::tests::sections;

    fn operator(change: impl FnOnce(&mut Mail, &mut Settings)) -> Operator {
        let (mail, accounts) = sections(change);
        Operator { mail, accounts, public_url: "https://fleet.example.com".to_owned() }
    }

    /// All that the `users` collection must hold.
    fn users(operator: &Operator, stored: &Value) -> Value {
        let parts = operator.parts(stored).into_iter().filter(|part| part.path == USERS);
        let fields = parts.flat_map(|part| part.wanted.as_object().cloned().unwrap_or_default());
        Value::Object(fields.collect())
    }

    #[test]
    fn what_is_missing_counts_as_empty_and_anything_else_must_be_equal() {
        let stored = json!({"a": {"b": 1, "c": "x"}, "list": [{"name": "n", "secret": "s"}]});
        for (wanted, expected) in [
            (json!({"a": {"b": 1}}), true),
            (json!({"a": {"b": 2}}), false),
            (json!({"a": {"d": "", "e": false, "f": null, "g": {}, "h": []}}), true),
            (json!({"a": {"d": "y"}}), false),
            (json!({"list": [{"name": "n"}]}), true),
            (json!({"list": [{"name": "n", "secret": "other"}]}), false),
            (json!({"list": []}), false),
        ] {
            assert_eq!(holds(&stored, &wanted), expected, "{wanted}");
        }
    }

    #[test]
    fn links_to_the_dashboard_become_links_to_our_pages_and_own_texts_stay() {
        let theirs = r#"<p>Hi</p><a class="btn" href="{APP_URL}/_/#/auth/confirm-verification/{TOKEN}">Verify</a>"#;
        let ours = r#"<p>Hi</p><a class="btn" href="{APP_URL}/account/verify#token={TOKEN}">Verify</a>"#;
        let link = |body: &str, url: &str| relink(body, "confirm-verification", "verify", url);
        assert_eq!(link(theirs, ""), ours);
        assert_eq!(link(ours, ""), ours);
        let own = r#"<a href="https://app.example.com/v/{TOKEN}">x</a> <a href="https://example.com">y</a>"#;
        assert_eq!(link(own, ""), own);
        let url = "https://new.example.com/{TOKEN}";
        assert_eq!(link(own, url), own.replace("https://app.example.com/v/{TOKEN}", url));
        assert_eq!(link(theirs, url), theirs.replace("{APP_URL}/_/#/auth/confirm-verification/{TOKEN}", url));
        for odd in ["", "href=\"", "href=\"no end"] {
            assert_eq!(link(odd, ""), odd);
        }
    }

    #[test]
    fn without_mail_or_ways_to_sign_in_a_fresh_instance_needs_nothing() {
        let operator = operator(|_, _| {});
        assert!(holds(&json!({"smtp": {"enabled": false, "host": "smtp.example.com"}}), &operator.settings()));
        let stored = json!({"authRule": "", "otp": {"enabled": false, "length": 8}, "mfa": {"enabled": false},
            "oauth2": {"enabled": false, "providers": []}});
        assert!(holds(&stored, &users(&operator, &stored)));
    }

    #[test]
    fn a_changed_secret_is_a_difference_and_a_rule_of_the_templates_own_is_not_touched() {
        let operator = operator(|_, accounts| drop(accounts.oauth2.insert("oidc".to_owned(), provider())));
        let mut stored = users(&operator, &json!({"authRule": "banned = false"}));
        assert!(stored.get("authRule").is_none());
        assert!(holds(&stored, &users(&operator, &stored)));
        stored["oauth2"]["providers"][0]["clientSecret"] = Value::from("older");
        assert!(!holds(&stored, &users(&operator, &stored)));
    }

    #[test]
    fn what_keeps_people_out_comes_first_and_by_itself() {
        let names = |otp| {
            let operator = operator(|_, accounts| {
                accounts.require_verified = true;
                (accounts.mfa.enabled, accounts.otp.enabled) = (true, otp);
                accounts.oauth2.insert("oidc".to_owned(), provider());
            });
            let parts = operator.parts(&json!({"authRule": ""}));
            parts.into_iter().map(|part| (part.name, part.wanted.get("oauth2").is_some())).collect::<Vec<_>>()
        };
        let rest = [("links in mails", false), ("mail", false)];
        assert_eq!(names(true)[..3], [("require_verified", false), ("mfa", false), ("oauth2", true)]);
        assert_eq!(names(true)[3..], rest);
        assert_eq!(names(false)[..2], [("require_verified", false), ("mfa", true)], "it needs a second way");
        assert_eq!(names(false)[2..], rest);
    }

    #[test]
    fn one_bad_service_does_not_void_the_others() {
        let answer = |data: &Value| Answer { status: 400, body: json!({ "data": data }).to_string().into() };
        let mut wanted = json!({"oauth2": {"enabled": true, "providers": [{"name": "a"}, {"name": "b"}]}});
        assert!(!drop_refused_providers(&mut wanted, &answer(&json!({"mfa": {"rule": {"code": "c"}}}))));
        let complaint = answer(&json!({"oauth2": {"providers": {"0": {"name": {"code": "c"}}}}}));
        assert!(drop_refused_providers(&mut wanted, &complaint));
        assert_eq!(wanted, json!({"oauth2": {"enabled": true, "providers": [{"name": "b"}]}}));
        assert!(drop_refused_providers(&mut wanted, &complaint));
        assert_eq!(wanted, json!({"oauth2": {"enabled": false, "providers": []}}));
        assert!(!drop_refused_providers(&mut wanted, &complaint));
        assert!(!drop_refused_providers(&mut json!({"otp": {}}), &complaint));
    }

    #[test]
    fn a_rule_of_the_templates_own_that_asks_for_no_verified_address_is_noticed() {
        for (rule, is_own) in [
            (json!(""), false),
            (json!(VERIFIED), false),
            (json!("verified = true && banned = false"), false),
            (json!("banned = false"), true),
            (json!(null), true),
        ] {
            assert_eq!(has_own_rule(&json!({ "authRule": rule })), is_own, "{rule}");
        }
    }

    #[test]
    fn complaints_name_fields_and_no_values() {
        let body = json!({"data": {"oauth2": {"providers": {"0": {"name": {"code": "c", "message": "planted"}}}}}});
        let answer = Answer { status: 400, body: body.to_string().into() };
        assert_eq!(complaints(&answer), "oauth2.providers.0.name: c");
    }
}
