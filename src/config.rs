//! The configuration: defaults that are compiled in, a file, the environment, flags, in this order; checked once.
//!
//! The only reader of the environment. Each domain owns the type of its section; this file joins them and holds the
//! rules that cross fields.

use std::ffi::OsStr;
use std::ffi::OsString;
use std::fmt;
use std::net::SocketAddr;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;

use figment::Figment;
use figment::providers::Env;
use figment::providers::Format;
use figment::providers::Serialized;
use figment::providers::Toml;
use serde::Deserialize;

use crate::auth;
use crate::auth::accounts;
use crate::backup;
use crate::events;
use crate::gateway;
use crate::integrations::fathom;
use crate::jobs::deliver;
use crate::jobs::destinations::loom;
use crate::lifecycle;
use crate::meetings;
use crate::outbound;
use crate::queue;
use crate::quota;
use crate::realtime;
use crate::reload;
use crate::supervisor;
use crate::telemetry;
use crate::tenancy;
use crate::vault;

/// The defaults, which are also the documentation of every key.
pub const DEFAULTS: &str = include_str!("../config/default.toml");

/// How the names of keys end that are secrets.
const SECRETS: [&str; 6] = ["admin_password", "smtp_password", "client_secret", "key", "passphrase", "s3_secret_key"];

/// What the command line may override.
#[derive(Debug, Clone, Default)]
pub struct Flags {
    /// `--config`
    pub config: Option<PathBuf>,
    /// `--data`
    pub data: Option<PathBuf>,
    /// `--listen`
    pub listen: Option<String>,
    /// `--pocketbase`
    pub pocketbase: Option<PathBuf>,
}

/// The `[storage]` section.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Storage {
    /// The data directory.
    pub path: PathBuf,
}

/// The `[pocketbase]` section.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PocketBase {
    /// Path of the binary; empty = look for it.
    pub binary: String,
    /// Version it must have.
    pub version: String,
    /// Binaries of other versions.
    pub binaries: Vec<String>,
    /// SHA-256 it must have; empty = any.
    pub sha256: String,
    /// Folder of templates; empty = `pb_templates`.
    pub templates: String,
    /// Template of personal instances.
    pub personal_template: String,
    /// When instances follow a changed template.
    pub upgrade: supervisor::config::UpgradePolicy,
}

/// The whole configuration, valid.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// `[server]`
    pub server: gateway::Config,
    /// `[storage]`
    pub storage: Storage,
    /// `[log]`
    pub log: telemetry::Config,
    /// `[pocketbase]`
    pub pocketbase: PocketBase,
    /// `[instances]`
    pub instances: supervisor::Config,
    /// `[isolation]`
    pub isolation: supervisor::jail::config::Config,
    /// `[auth]`
    pub auth: auth::Config,
    /// `[workspaces]`
    pub workspaces: tenancy::Config,
    /// `[quota]`
    pub quota: quota::Config,
    /// `[tenancy]`
    pub tenancy: lifecycle::Config,
    /// `[mail]`
    pub mail: accounts::config::Mail,
    /// `[accounts]`
    pub accounts: accounts::config::Settings,
    /// `[realtime]`
    pub realtime: realtime::Config,
    /// `[outbound]`
    pub outbound: outbound::Config,
    /// `[fathom]`
    pub fathom: fathom::Config,
    /// `[meetings]`
    pub meetings: meetings::Config,
    /// `[vault]`
    pub vault: vault::Config,
    /// `[delivery]`
    pub delivery: deliver::Config,
    /// `[loom]`
    pub loom: loom::Config,
    /// `[backup]`
    pub backup: backup::Config,
    /// `[queue]`
    pub queue: queue::Config,
    /// `[events]`
    pub events: events::Config,
    /// `PATH` of the environment, for finding the binary.
    #[serde(skip)]
    pub search_path: String,
    /// How this process was started.
    #[serde(skip)]
    pub origin: reload::Origin,
}

/// Why a configuration is not usable.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The named file does not exist.
    #[error("the configuration file {0} does not exist")]
    NoFile(PathBuf),
    /// A key or a value is wrong; the text names it and what is allowed.
    #[error("{0}")]
    Invalid(String),
    /// A number beyond what makes sense.
    #[error("{key} = {value}: at most {most}")]
    TooMuch {
        /// The key, with its section.
        key: &'static str,
        /// The value found.
        value: u64,
        /// The largest allowed.
        most: u64,
    },
    /// A rule about a value's range or about several values.
    #[error("{key} = {value}: {rule}")]
    Rule {
        /// The key, with its section.
        key: &'static str,
        /// The value found.
        value: String,
        /// What is allowed.
        rule: &'static str,
    },
}

impl Config {
    /// Layers and checks everything.
    pub fn load(flags: &Flags) -> Result<Self, Error> {
        let mut figment = Figment::from(Toml::string(DEFAULTS));
        if let Some(path) = &flags.config {
            if !path.is_file() {
                return Err(Error::NoFile(path.clone()));
            }
            figment = figment.merge(Toml::file_exact(path));
        }
        // Keys without a section are not ours to judge: the environment belongs to everybody.
        // Secrets are taken as they are, below: figment would read 123 as a number, and show it in its complaint.
        let environment = Env::prefixed("POCKETFLEET_")
            .filter(|key| key.as_str().contains("__") && !is_secret(key.as_str()))
            .split("__");
        figment = figment.merge(environment);
        let variables = std::env::vars_os();
        for (name, value) in variables {
            let (Some(name), Some(value)) = (name.to_str(), value.to_str()) else { continue };
            if let Some(key) = name.strip_prefix("POCKETFLEET_").filter(|key| is_secret(key)) {
                figment = figment.merge(Serialized::default(&key.to_ascii_lowercase().replace("__", "."), value));
            }
        }
        if let Some(data) = &flags.data {
            figment = figment.merge(Serialized::default("storage.path", data));
        }
        if let Some(listen) = &flags.listen {
            figment = figment.merge(Serialized::default("server.listen", listen));
        }
        if let Some(pocketbase) = &flags.pocketbase {
            figment = figment.merge(Serialized::default("pocketbase.binary", pocketbase));
        }
        let mut config: Self = figment.extract().map_err(|error| Error::Invalid(describe(error)))?;
        #[expect(clippy::disallowed_methods, reason = "the one place that reads the environment")]
        let search_path = std::env::var("PATH");
        config.search_path = search_path.unwrap_or_default();
        config.origin = origin(flags);
        accounts::config::resolve(&mut config.mail, &mut config.accounts)
            .map_err(|error| Error::Invalid(error.to_string()))?;
        config.check()?;
        config.storage.path = std::path::absolute(&config.storage.path)
            .map_err(|error| Error::Invalid(format!("storage.path: {error}")))?;
        config.origin.data.clone_from(&config.storage.path);
        Ok(config)
    }

    /// The folder of templates.
    pub fn templates(&self) -> PathBuf {
        if self.pocketbase.templates.is_empty() { "pb_templates".into() } else { (&self.pocketbase.templates).into() }
    }

    /// The URL that users see.
    pub fn public_url(&self, listen: SocketAddr) -> String {
        if self.server.public_url.is_empty() { format!("http://{listen}") } else { self.server.public_url.clone() }
    }

    fn check(&self) -> Result<(), Error> {
        self.server.validate().map_err(|error| Error::Invalid(error.to_string()))?;
        accounts::config::check(&self.mail, &self.accounts).map_err(|error| Error::Invalid(error.to_string()))?;
        self.realtime.validate().map_err(|error| Error::Invalid(error.to_string()))?;
        self.check_services()?;
        let i = &self.instances;
        let s = &self.server;
        let a = &self.auth;
        positive("instances.max_awake", i.max_awake as u64)?;
        positive("instances.max_in_flight", i.max_in_flight as u64)?;
        positive("instances.max_waiting_per_instance", i.max_waiting_per_instance as u64)?;
        positive("instances.max_waiting", i.max_waiting as u64)?;
        positive("instances.probe_misses", u64::from(i.probe_misses))?;
        positive("instances.log_bytes", i.log_bytes)?;
        positive("server.max_connections", s.max_connections as u64)?;
        positive("server.max_connections_per_ip", s.max_connections_per_ip as u64)?;

        at_most("instances.max_in_flight", i.max_in_flight as u64, 1 << 20)?;
        at_most("instances.spares", i.spares as u64, 1_000)?;
        at_most("instances.max_awake", i.max_awake as u64, 1 << 20)?;
        at_most("instances.max_starting", i.max_starting as u64, 1 << 10)?;
        at_most("instances.log_files", u64::from(i.log_files), 100)?;
        check_process(i)?;
        at_least("server.max_uri_bytes", s.max_uri_bytes as u64, 256, "at least 256")?;
        at_least("server.max_headers", s.max_headers as u64, 16, "at least 16")?;
        for (key, value) in [
            ("instances.idle_timeout", i.idle_timeout),
            ("instances.wake_timeout", i.wake_timeout),
            ("instances.start_timeout", i.start_timeout),
            ("instances.upgrade_timeout", i.upgrade_timeout),
            ("instances.probe_interval", i.probe_interval),
            ("instances.probe_timeout", i.probe_timeout),
            ("instances.stop_timeout", i.stop_timeout),
            ("instances.drain_timeout", i.drain_timeout),
            ("instances.backoff_base", i.backoff_base),
            ("instances.backoff_max", i.backoff_max),
            ("instances.backoff_reset", i.backoff_reset),
            ("instances.quarantine_window", i.quarantine_window),
            ("server.drain_timeout", s.drain_timeout),
            ("server.stop_timeout", s.stop_timeout),
            ("server.header_timeout", s.header_timeout),
            ("server.body_idle_timeout", s.body_idle_timeout),
            ("server.response_timeout", s.response_timeout),
            ("server.dashboard_ttl", s.dashboard_ttl),
        ] {
            if value < Duration::from_millis(1) || value > Duration::from_hours(24) {
                return Err(rule(key, format!("{value:?}"), "between 1ms and 24h"));
            }
        }
        if s.dashboard != gateway::DashboardMode::Off && s.domain.is_empty() {
            return Err(rule("server.dashboard", "trusted", "\"off\" as long as server.domain is empty"));
        }
        self.check_workspaces()?;
        self.isolation.validate().map_err(Error::Invalid)?;
        if i.refusal_pause > Duration::from_secs(10) {
            return Err(rule("instances.refusal_pause", format!("{:?}", i.refusal_pause), "at most 10s"));
        }
        if i.freeze_after >= i.idle_timeout {
            return Err(rule(
                "instances.freeze_after",
                format!("{:?}", i.freeze_after),
                "\"0s\" (never), or below idle_timeout",
            ));
        }
        if i.backoff_base > i.backoff_max {
            return Err(rule("instances.backoff_base", format!("{:?}", i.backoff_base), "not above backoff_max"));
        }
        self.pocketbase.check()?;
        if a.admin_email.is_empty() != a.admin_password.is_empty() {
            return Err(rule(
                "auth.admin_email",
                &a.admin_email,
                "set together with auth.admin_password, or not at all",
            ));
        }
        if !a.admin_email.is_empty() && !(8..=71).contains(&a.admin_password.len()) {
            return Err(rule("auth.admin_password", "[not shown]", "8 to 71 bytes, which is what PocketBase takes"));
        }
        if !a.admin_email.is_empty() && !a.admin_email.contains('@') {
            return Err(rule("auth.admin_email", &a.admin_email, "an e-mail address"));
        }
        Ok(())
    }
}

/// What one process is put under.
fn check_process(i: &supervisor::Config) -> Result<(), Error> {
    at_least("instances.nofile", i.nofile, 64, "at least 64: PocketBase does not start with fewer open files")?;
    if i.data_bytes > 0 {
        let rule = "0 (not set) or at least 134217728 (128 MiB): PocketBase does not start with less";
        at_least("instances.data_bytes", i.data_bytes, 128 << 20, rule)?;
    }
    at_most("instances.gc_percent", u64::from(i.gc_percent), 1_000)?;
    if i.gc_percent > 0 {
        at_least("instances.gc_percent", u64::from(i.gc_percent), 25, "0 (as Go likes) or 25 to 1000")?;
    }
    Ok(())
}

impl PocketBase {
    /// Where the binary is, what version and hash it must have.
    pub fn named(&self) -> (&str, &str, &str) {
        (&self.binary, &self.version, &self.sha256)
    }

    fn check(&self) -> Result<(), Error> {
        if !self.sha256.is_empty() && self.sha256.len() != 64 {
            return Err(rule("pocketbase.sha256", &self.sha256, "empty, or 64 hexadecimal digits"));
        }
        if self.binaries.iter().any(String::is_empty) {
            return Err(rule("pocketbase.binaries", "\"\"", "paths of PocketBase binaries"));
        }
        Ok(())
    }
}

impl Config {
    /// The sections of what serves users beyond their instances.
    fn check_services(&self) -> Result<(), Error> {
        self.outbound.validate().map_err(|error| Error::Invalid(error.to_string()))?;
        self.fathom.validate().map_err(|error| Error::Invalid(error.to_string()))?;
        self.meetings.validate().map_err(|error| Error::Invalid(error.to_string()))?;
        if self.meetings.max_hook_bytes > self.server.max_account_bytes.max(self.server.max_json_bytes) {
            let (key, value) = ("meetings.max_hook_bytes", self.meetings.max_hook_bytes);
            return Err(rule(key, value, "not above server.max_account_bytes, which no request of ours may exceed"));
        }
        self.quota.validate().map_err(|error| Error::Invalid(error.to_string()))?;
        self.tenancy.validate().map_err(|error| Error::Invalid(error.to_string()))?;
        self.vault.validate().map_err(|error| Error::Invalid(error.to_string()))?;
        self.backup.validate().map_err(|error| Error::Invalid(error.to_string()))?;
        self.delivery.validate().map_err(|error| Error::Invalid(error.to_string()))?;
        self.queue.validate().map_err(|error| Error::Invalid(error.to_string()))?;
        self.events.validate().map_err(|error| Error::Invalid(error.to_string()))?;
        Ok(())
    }

    fn check_workspaces(&self) -> Result<(), Error> {
        let w = &self.workspaces;
        positive("workspaces.max_members", w.max_members as u64)?;
        positive("workspaces.max_invitations", w.max_invitations as u64)?;
        // Every start compares the rows of all members.
        at_most("workspaces.max_members", w.max_members as u64, 10_000)?;
        at_most("workspaces.max_invitations", w.max_invitations as u64, 10_000)?;
        if !(Duration::from_mins(1)..=Duration::from_hours(24 * 365)).contains(&w.invitation_ttl) {
            let found = format!("{:?}", w.invitation_ttl);
            return Err(rule("workspaces.invitation_ttl", found, "between 1m and 365d"));
        }
        for (key, template) in
            [("workspaces.template", &w.template), ("workspaces.hosted_template", &w.hosted_template)]
        {
            if template.is_empty() || template == "global" {
                return Err(rule(key, template, "the name of a template other than global"));
            }
        }
        Ok(())
    }
}

/// How this process was started, for starting it again.
#[expect(clippy::disallowed_methods, reason = "the one place that reads the environment")]
pub fn origin(flags: &Flags) -> reload::Origin {
    let mut arguments: Vec<OsString> = Vec::new();
    let mut add = |flag: &str, value: Option<&OsStr>| {
        if let Some(value) = value {
            arguments.extend([OsString::from(flag), value.to_owned()]);
        }
    };
    add("--config", flags.config.as_deref().map(Path::as_os_str));
    add("--data", flags.data.as_deref().map(Path::as_os_str));
    add("--listen", flags.listen.as_deref().map(OsStr::new));
    add("--pocketbase", flags.pocketbase.as_deref().map(Path::as_os_str));
    // A name with a slash may be a link that points to another version later; one without was looked up in PATH.
    let named = std::env::args_os().next().map(PathBuf::from).filter(|name| name.components().count() > 1);
    let program = named.map_or_else(std::env::current_exe, std::path::absolute).unwrap_or_default();
    let activation = std::env::var("LISTEN_PID").ok().zip(std::env::var("LISTEN_FDS").ok());
    reload::Origin {
        program,
        flags: arguments,
        data: PathBuf::new(),
        handover: std::env::var(reload::VARIABLE).ok(),
        activation,
    }
}

/// Whether a key, as the environment spells it, is a secret.
fn is_secret(key: &str) -> bool {
    let key = key.to_ascii_lowercase();
    SECRETS.iter().any(|secret| key.strip_suffix(secret).is_some_and(|section| section.ends_with("__")))
}

fn positive(key: &'static str, value: u64) -> Result<(), Error> {
    at_least(key, value, 1, "at least 1")
}

fn at_least(key: &'static str, value: u64, least: u64, text: &'static str) -> Result<(), Error> {
    if value >= least { Ok(()) } else { Err(rule(key, value, text)) }
}

fn at_most(key: &'static str, value: u64, most: u64) -> Result<(), Error> {
    if value <= most { Ok(()) } else { Err(Error::TooMuch { key, value, most }) }
}

fn rule(key: &'static str, value: impl fmt::Display, rule: &'static str) -> Error {
    Error::Rule { key, value: value.to_string(), rule }
}

/// All mistakes at once, each with its key, what was found, what is allowed, and where it came from.
fn describe(error: figment::Error) -> String {
    let lines: Vec<String> = error
        .into_iter()
        .map(|one| {
            let source = one.metadata.as_ref().map(|metadata| metadata.name.to_string()).unwrap_or_default();
            let key = one.path.join(".");
            if SECRETS.iter().any(|secret| key.ends_with(secret)) {
                return format!("{key}: it has to be a text in quotes");
            }
            format!("{key}: {}{}{source}", one.kind, if source.is_empty() { "" } else { " in " })
        })
        .collect();
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str) -> Result<Config, Error> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        Config::load(&Flags { config: Some(file.path().to_owned()), ..Flags::default() })
    }

    #[test]
    fn defaults_are_valid_and_flags_win_over_the_file() {
        let config = load("").unwrap();
        assert_eq!(config.server.listen, "127.0.0.1:3000".parse().unwrap());
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "[server]\nlisten = \"127.0.0.1:1\"").unwrap();
        let flags =
            Flags { config: Some(file.path().to_owned()), listen: Some("127.0.0.1:2".to_owned()), ..Flags::default() };
        assert_eq!(Config::load(&flags).unwrap().server.listen, "127.0.0.1:2".parse().unwrap());
    }

    #[test]
    fn mistakes_name_key_value_and_what_is_allowed() {
        let error = load("[server]\nlistn = \"x\"").unwrap_err().to_string();
        assert!(error.contains("listn") && error.contains("listen"), "{error}");
        let error = load("[instances]\nidle_timeout = \"soon\"").unwrap_err().to_string();
        assert!(error.contains("instances.idle_timeout") && error.contains("soon"), "{error}");
        let error = load("[instances]\nmax_awake = 0").unwrap_err().to_string();
        assert_eq!(error, "instances.max_awake = 0: at least 1");
        let error = load("[instances]\nidle_timeout = \"5s\"\nfreeze_after = \"5s\"").unwrap_err().to_string();
        assert_eq!(error, "instances.freeze_after = 5s: \"0s\" (never), or below idle_timeout");
        let error = load("[instances]\nmax_awake = -3").unwrap_err().to_string();
        assert!(error.contains("instances.max_awake") && error.contains("-3"), "{error}");
        let missing = Flags { config: Some("/nowhere/at/all.toml".into()), ..Flags::default() };
        assert!(Config::load(&missing).unwrap_err().to_string().contains("/nowhere/at/all.toml"));
    }

    #[test]
    fn every_key_of_the_defaults_says_since_when() {
        for line in DEFAULTS.lines().filter(|line| line.contains(" = ") && !line.starts_with('#')) {
            assert!(line.contains("# since "), "{line}");
        }
    }
}
