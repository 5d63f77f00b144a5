//! The `[mail]` and `[accounts]` sections of the configuration: how mails are sent, and in which ways people sign in.
//! Defaults and meaning: `config/default.toml`.
//!
//! Invariant: secrets are [`Secret`]s, whose `Debug` shows nothing. They come from a file of ours, from the
//! environment, or from a file that a `*_file` key names; [`resolve`] reads those, once, when the configuration is
//! loaded.

use std::collections::BTreeMap;
use std::fmt;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;
use serde_json::Map;
use serde_json::Value;

/// A text that is never shown.
#[derive(Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// The text itself.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Whether nothing is set.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret([redacted])")
    }
}

/// How the connection to the mail server is encrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Tls {
    /// From the first byte (port 465).
    Implicit,
    /// By STARTTLS where the server offers it (port 587).
    Starttls,
}

/// How a password is shown to the mail server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum AuthMethod {
    /// The usual.
    #[serde(rename = "plain")]
    Plain,
    /// For servers that know nothing else.
    #[serde(rename = "login")]
    Login,
}

/// The `[mail]` section.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mail {
    /// The mail server; empty = no mails are sent.
    pub smtp_host: String,
    /// Its port.
    pub smtp_port: u16,
    /// The user at the mail server; empty = none.
    pub smtp_username: String,
    /// That user's password.
    pub smtp_password: Secret,
    /// A file that holds the password.
    pub smtp_password_file: PathBuf,
    /// How the connection is encrypted.
    pub smtp_tls: Tls,
    /// How the password is shown.
    pub smtp_auth: AuthMethod,
    /// How we introduce ourselves to the mail server; empty = `localhost`.
    pub local_name: String,
    /// Who mails come from, for people.
    pub sender_name: String,
    /// The address that mails come from.
    pub sender_address: String,
    /// What the mails call this service.
    pub app_name: String,
    /// Mails that one client address may ask for in an hour.
    pub requests_per_ip: NonZeroU32,
    /// Mails of one kind that one client network may ask for one recipient in an hour; all together may ask for five
    /// times as many.
    pub requests_per_recipient: NonZeroU32,
}

impl Mail {
    /// Whether mails can be sent.
    pub fn is_on(&self) -> bool {
        !self.smtp_host.is_empty()
    }
}

/// The `[accounts]` section.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Whether only accounts with a verified address can sign in.
    pub require_verified: bool,
    /// Where the mail that verifies an address leads; empty = our own page.
    pub verify_url: String,
    /// Where the mail that resets a password leads; empty = our own page.
    pub reset_password_url: String,
    /// Where the mail that changes an address leads; empty = our own page.
    pub change_email_url: String,
    /// One-time passwords by mail.
    pub otp: Otp,
    /// A second factor.
    pub mfa: Mfa,
    /// Other services that people may sign in with, by `PocketBase`'s name for them.
    pub oauth2: BTreeMap<String, Provider>,
}

/// The `[accounts.otp]` section.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Otp {
    /// Whether people may sign in with one.
    pub enabled: bool,
    /// Digits.
    pub length: u32,
    /// How long one is good.
    #[serde(with = "humantime_serde")]
    pub duration: Duration,
}

/// The `[accounts.mfa]` section.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mfa {
    /// Whether a sign-in takes two different ways.
    pub enabled: bool,
    /// How long the first is remembered.
    #[serde(with = "humantime_serde")]
    pub duration: Duration,
    /// Which accounts it is asked of, as a filter of `PocketBase`; empty = all.
    pub rule: String,
}

/// An `[accounts.oauth2.<name>]` section.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Provider {
    /// Our id at the service.
    pub client_id: String,
    /// Our secret there.
    pub client_secret: Secret,
    /// A file that holds the secret.
    pub client_secret_file: PathBuf,
    /// Where people are sent to sign in; empty = what `PocketBase` knows.
    pub auth_url: String,
    /// Where a code is exchanged.
    pub token_url: String,
    /// Where the account is described.
    pub user_info_url: String,
    /// What the button says.
    pub display_name: String,
    /// Whether codes are bound to who asked for them; the service's usual when missing.
    pub pkce: Option<bool>,
    /// Particulars of one service, as `PocketBase` knows them (`jwksURL` and `issuers` for `oidc`).
    pub extra: Map<String, Value>,
}

/// Why the sections do not make sense.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Unusable {
    /// A secret is given twice.
    #[error("{0} and {0}_file are both set; keep one")]
    Twice(String),
    /// A file of a secret cannot be read.
    #[error("{key}_file: read {}: {why}", path.display())]
    File {
        /// The key of the secret.
        key: String,
        /// The file.
        path: PathBuf,
        /// What the system said.
        why: String,
    },
    /// A value breaks a rule.
    #[error("{key} = {value}: {rule}")]
    Rule {
        /// The key, with its section.
        key: String,
        /// The value found; never a secret.
        value: String,
        /// What is allowed.
        rule: &'static str,
    },
}

/// Reads the files that secrets are in.
pub fn resolve(mail: &mut Mail, accounts: &mut Settings) -> Result<(), Unusable> {
    read_secret("mail.smtp_password", &mut mail.smtp_password, &mail.smtp_password_file)?;
    for (name, provider) in &mut accounts.oauth2 {
        let key = format!("accounts.oauth2.{name}.client_secret");
        read_secret(&key, &mut provider.client_secret, &provider.client_secret_file)?;
    }
    Ok(())
}

/// TCP ports that the accounts instance connects to: the mail server's, and those of the services that people sign in with.
pub fn outbound_ports(mail: &Mail, accounts: &Settings) -> Vec<u16> {
    const NAMES: u16 = 53;
    let mut ports = Vec::new();
    if mail.is_on() {
        ports.extend([mail.smtp_port, NAMES]);
    }
    for provider in accounts.oauth2.values() {
        let urls = [&provider.token_url, &provider.user_info_url];
        let of = |url: &String| reqwest::Url::parse(url).ok().and_then(|url| url.port_or_known_default());
        // The services that PocketBase knows itself are at 443.
        ports.extend(urls.into_iter().filter_map(of).chain([443, NAMES]));
    }
    ports
}

fn read_secret(key: &str, secret: &mut Secret, path: &PathBuf) -> Result<(), Unusable> {
    if path.as_os_str().is_empty() {
        return Ok(());
    }
    if !secret.is_empty() {
        return Err(Unusable::Twice(key.to_owned()));
    }
    let text = std::fs::read_to_string(path).map_err(|error| Unusable::File {
        key: key.to_owned(),
        path: path.clone(),
        why: error.to_string(),
    })?;
    *secret = Secret(text.trim_end_matches(['\r', '\n']).to_owned());
    Ok(())
}

/// Whether the sections make sense, alone and together.
pub fn check(mail: &Mail, accounts: &Settings) -> Result<(), Unusable> {
    let rule = |key: &str, value: &dyn fmt::Display, rule: &'static str| {
        Err(Unusable::Rule { key: key.to_owned(), value: value.to_string(), rule })
    };
    if mail.is_on() && !mail.sender_address.contains('@') {
        return rule("mail.sender_address", &mail.sender_address, "an e-mail address, since mail.smtp_host is set");
    }
    if mail.smtp_port == 0 {
        return rule("mail.smtp_port", &mail.smtp_port, "1 to 65535");
    }
    let Settings { otp, mfa, .. } = accounts;
    for (key, value) in
        [("accounts.otp.enabled", otp.enabled), ("accounts.require_verified", accounts.require_verified)]
    {
        if value && !mail.is_on() {
            return rule(key, &value, "needs [mail], because people are sent a mail");
        }
    }
    if !(6..=20).contains(&otp.length) {
        return rule("accounts.otp.length", &otp.length, "6 to 20 digits: fewer can be guessed");
    }
    if !(30..=3_600).contains(&otp.duration.as_secs()) {
        return rule("accounts.otp.duration", &format!("{:?}", otp.duration), "between 30s and 1h");
    }
    if !(30..=86_400).contains(&mfa.duration.as_secs()) {
        return rule("accounts.mfa.duration", &format!("{:?}", mfa.duration), "between 30s and 24h");
    }
    if mfa.enabled && !otp.enabled && accounts.oauth2.is_empty() {
        return rule("accounts.mfa.enabled", &true, "needs a second way to sign in: accounts.otp or accounts.oauth2");
    }
    for (key, url) in [
        ("accounts.verify_url", &accounts.verify_url),
        ("accounts.reset_password_url", &accounts.reset_password_url),
        ("accounts.change_email_url", &accounts.change_email_url),
    ] {
        let plain = !url.chars().any(|c| c.is_whitespace() || c.is_control() || matches!(c, '"' | '<' | '>'));
        let leads = plain && url.contains("{TOKEN}") && url.starts_with("http");
        if !url.is_empty() && !leads {
            return rule(key, url, "empty, or a URL with {TOKEN} where the token goes");
        }
    }
    for (name, provider) in &accounts.oauth2 {
        let key = |field: &str| format!("accounts.oauth2.{name}.{field}");
        if provider.client_id.is_empty() {
            return rule(&key("client_id"), &"", "the id that the service gave you");
        }
        if provider.client_secret.is_empty() {
            return rule(
                &key("client_secret"),
                &"",
                "the secret that the service gave you, here or by client_secret_file",
            );
        }
    }
    Ok(())
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// The sections as a configuration without any of them has them.
    pub(in crate::auth) fn sections(change: impl FnOnce(&mut Mail, &mut Settings)) -> (Mail, Settings) {
        let mut mail = Mail {
            smtp_host: String::new(),
            smtp_port: 587,
            smtp_username: String::new(),
            smtp_password: Secret::default(),
            smtp_password_file: PathBuf::new(),
            smtp_tls: Tls::Starttls,
            smtp_auth: AuthMethod::Plain,
            local_name: String::new(),
            sender_name: "Fleet".to_owned(),
            sender_address: String::new(),
            app_name: "Fleet".to_owned(),
            requests_per_ip: NonZeroU32::new(30).unwrap(),
            requests_per_recipient: NonZeroU32::new(2).unwrap(),
        };
        let mut accounts = Settings {
            require_verified: false,
            verify_url: String::new(),
            reset_password_url: String::new(),
            change_email_url: String::new(),
            otp: Otp { enabled: false, length: 8, duration: Duration::from_mins(3) },
            mfa: Mfa { enabled: false, duration: Duration::from_mins(10), rule: String::new() },
            oauth2: BTreeMap::new(),
        };
        change(&mut mail, &mut accounts);
        (mail, accounts)
    }

    pub(in crate::auth) fn provider() -> Provider {
        let client_secret = Secret("planted".to_owned());
        Provider { client_id: "us".to_owned(), client_secret, ..Provider::default() }
    }

    fn key_of(change: impl FnOnce(&mut Mail, &mut Settings)) -> Option<String> {
        let (mail, accounts) = sections(change);
        match check(&mail, &accounts) {
            Err(Unusable::Rule { key, .. }) => Some(key),
            _ => None,
        }
    }

    #[test]
    fn sections_that_cannot_work_are_refused_by_key() {
        assert_eq!(key_of(|_, _| {}), None);
        let on = |mail: &mut Mail| {
            mail.smtp_host = "mail.example.com".into();
            mail.sender_address = "fleet@example.com".into();
        };
        assert_eq!(key_of(|mail, _| on(mail)), None);
        assert_eq!(key_of(|mail, _| mail.smtp_host = "x".into()).as_deref(), Some("mail.sender_address"));
        assert_eq!(key_of(|_, accounts| accounts.otp.enabled = true).as_deref(), Some("accounts.otp.enabled"));
        assert_eq!(key_of(|_, a| a.require_verified = true).as_deref(), Some("accounts.require_verified"));
        assert_eq!(key_of(|_, accounts| accounts.otp.length = 4).as_deref(), Some("accounts.otp.length"));
        assert_eq!(key_of(|_, accounts| accounts.mfa.enabled = true).as_deref(), Some("accounts.mfa.enabled"));
        let second = |a: &mut Settings| {
            a.mfa.enabled = true;
            a.oauth2.insert("github".into(), provider());
        };
        assert_eq!(key_of(|_, a| second(a)), None);
        for url in ["https://app.example.com/verify", "javascript:{TOKEN}", "https://x/\"{TOKEN}"] {
            assert_eq!(key_of(|_, a| a.verify_url = url.into()).as_deref(), Some("accounts.verify_url"), "{url}");
        }
        assert_eq!(key_of(|_, a| a.verify_url = "https://app.example.com/#/verify/{TOKEN}".into()), None);
        let key = key_of(|_, a| drop(a.oauth2.insert("github".into(), Provider::default())));
        assert_eq!(key.as_deref(), Some("accounts.oauth2.github.client_id"));
    }

    #[test]
    fn the_ports_of_mail_server_and_services_are_known() {
        let (mail, accounts) = sections(|mail, accounts| {
            mail.smtp_host = "mail.example.com".into();
            mail.smtp_port = 2525;
            let own = Provider { token_url: "http://id.example.com:8081/token".into(), ..provider() };
            accounts.oauth2.insert("oidc".into(), own);
        });
        let ports = outbound_ports(&mail, &accounts);
        assert!([2525, 53, 8081, 443].iter().all(|port| ports.contains(port)), "{ports:?}");
        let (mail, accounts) = sections(|_, _| {});
        assert!(outbound_ports(&mail, &accounts).is_empty());
    }

    #[test]
    fn secrets_come_from_files_and_are_never_shown() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "from a file\n").unwrap();
        let (mut mail, mut accounts) = sections(|mail, accounts| {
            mail.smtp_password_file = file.path().to_owned();
            accounts.oauth2.insert("github".into(), provider());
        });
        resolve(&mut mail, &mut accounts).unwrap();
        assert_eq!(mail.smtp_password.expose(), "from a file");
        let shown = format!("{mail:?} {accounts:?}");
        assert!(!shown.contains("from a file") && !shown.contains("planted"), "{shown}");
        assert_eq!(resolve(&mut mail, &mut accounts), Err(Unusable::Twice("mail.smtp_password".into())));
        mail.smtp_password = Secret::default();
        mail.smtp_password_file = "/nowhere".into();
        assert!(matches!(resolve(&mut mail, &mut accounts), Err(Unusable::File { .. })));
    }
}
