//! `pocketfleet tenants …`: what runs, and acting on it.

use std::process::ExitCode;

use clap::Args;
use clap::Subcommand;
use clap::ValueEnum;
use serde_json::Value;
use serde_json::json;

use crate::cli::client::Control;
use crate::cli::output;
use crate::cli::output::Output;
use crate::ids::TenantId;

/// Tenants asked for at once.
const PAGE: usize = 500;

/// What to do with tenants.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// List tenants in the order of their ids.
    List(List),
    /// Show everything about one.
    Show(Target),
    /// Start it now.
    Wake(Target),
    /// Let its requests finish, then stop it.
    Sleep(Target),
    /// Keep it awake.
    Pin(Target),
    /// Let it sleep again when nobody uses it.
    Unpin(Target),
    /// End its quarantine or backoff.
    Release(Target),
    /// Print the end of its log.
    Logs(Logs),
}

/// What to list.
#[derive(Debug, Args)]
pub struct List {
    /// Only tenants in this state.
    #[arg(long, value_enum)]
    state: Option<State>,
    /// Most tenants to print.
    #[arg(long, default_value_t = 100, value_name = "N")]
    limit: usize,
    /// Begin after this tenant.
    #[arg(long, value_name = "ID", value_parser = id)]
    after: Option<TenantId>,
}

impl List {
    /// The path and query of one page.
    fn path(&self, limit: usize, after: Option<&TenantId>) -> String {
        let state = self.state.as_ref().and_then(State::to_possible_value);
        let state = state.map(|state| format!("&state={}", state.get_name()));
        let after = after.map(|after| format!("&after={after}"));
        format!("/tenants?limit={limit}{}{}", state.unwrap_or_default(), after.unwrap_or_default())
    }
}

/// The states of an instance.
#[derive(Debug, Clone, Copy, ValueEnum)]
#[expect(missing_docs, reason = "the names say it")]
pub enum State {
    Asleep,
    Starting,
    Awake,
    Draining,
    Backoff,
    Quarantined,
    Blocked,
    Suspended,
}

/// One tenant.
#[derive(Debug, Args)]
pub struct Target {
    /// The tenant's id; a user's own tenant has the user's id.
    #[arg(value_parser = id)]
    tenant: TenantId,
}

/// Which log, and how much of it.
#[derive(Debug, Args)]
pub struct Logs {
    #[command(flatten)]
    target: Target,
    /// Lines to print.
    #[arg(long, short = 'n', default_value_t = 50, value_name = "N")]
    lines: usize,
}

fn id(text: &str) -> Result<TenantId, crate::ids::InvalidId> {
    TenantId::parse(text)
}

/// Runs the command against the running server.
pub async fn run(command: Command, control: &Control, output: Output) -> anyhow::Result<ExitCode> {
    match command {
        Command::List(wanted) => list(&wanted, control, output).await,
        Command::Show(target) => {
            let tenant = control.call("GET", &format!("/tenants/{}", target.tenant), None).await?;
            output.done(&tenant, &describe(&tenant))
        }
        Command::Wake(target) => act("wake", &target, control, output).await,
        Command::Sleep(target) => act("sleep", &target, control, output).await,
        Command::Pin(target) => act("pin", &target, control, output).await,
        Command::Unpin(target) => act("unpin", &target, control, output).await,
        Command::Release(target) => act("release", &target, control, output).await,
        Command::Logs(wanted) => {
            let path = format!("/tenants/{}/logs?lines={}", wanted.target.tenant, wanted.lines);
            let log = control.call("GET", &path, None).await?;
            let lines: Vec<&str> = log["lines"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
            let text = if lines.is_empty() { "the log is empty".to_owned() } else { lines.join("\n") };
            output.done(&log, &text)
        }
    }
}

async fn act(action: &str, target: &Target, control: &Control, output: Output) -> anyhow::Result<ExitCode> {
    let tenant = control.call("POST", &format!("/tenants/{}/{action}", target.tenant), None).await?;
    let pinned = if tenant["pinned"] == true { ", pinned" } else { "" };
    output.done(&tenant, &format!("{} is {}{pinned}", target.tenant, text(&tenant["state"])))
}

async fn list(wanted: &List, control: &Control, output: Output) -> anyhow::Result<ExitCode> {
    let (mut items, mut after) = (Vec::new(), wanted.after.clone());
    let limit = wanted.limit.max(1);
    loop {
        let page = (limit - items.len()).min(PAGE);
        let page = control.call("GET", &wanted.path(page, after.as_ref()), None).await?;
        items.extend(page["items"].as_array().into_iter().flatten().cloned());
        after = page["next"].as_str().and_then(|next| TenantId::parse(next).ok());
        if after.is_none() || items.len() >= limit {
            break;
        }
    }
    let text = listing(&items, after.as_ref());
    output.done(&json!({ "items": items, "next": after }), &text)
}

/// A table of tenants, and how to see more.
fn listing(items: &[Value], next: Option<&TenantId>) -> String {
    if items.is_empty() {
        return "no tenants".to_owned();
    }
    let rows: Vec<_> = items.iter().map(row).collect();
    let titles = ["TENANT", "STATE", "KIND", "VERSION", "POCKETBASE", "IDLE", "IN FLIGHT", "RESTARTS", "PID", "NOTE"];
    let more = next.map(|next| format!("\nmore: --after {next}"));
    output::table(titles, &rows) + more.as_deref().unwrap_or_default()
}

fn row(tenant: &Value) -> [String; 10] {
    let pinned = (tenant["pinned"] == true).then(|| "pinned".to_owned());
    let retry = tenant["retry_after_seconds"].as_u64().map(|wait| format!("again in {}", output::age(wait)));
    let reason = tenant["reason"].as_str().map(|reason| reason.replace('\n', " "));
    let note: Vec<_> = [pinned, retry, reason].into_iter().flatten().collect();
    [
        text(&tenant["tenant"]),
        text(&tenant["state"]),
        text(&tenant["kind"]),
        version(tenant),
        pocketbase(tenant),
        tenant["idle_seconds"].as_u64().map_or_else(|| "-".to_owned(), output::age),
        text(&tenant["in_flight"]),
        text(&tenant["restarts"]),
        text(&tenant["pid"]),
        note.join("; "),
    ]
}

/// The version of its template, with a mark when it could not be upgraded.
fn version(tenant: &Value) -> String {
    let hash = tenant["version"].as_str().map_or("-", |hash| hash.get(..8).unwrap_or(hash));
    format!("{hash}{}", if tenant["upgrade_failed"].is_object() { "!" } else { "" })
}

/// The version of `PocketBase`, with a mark when it is kept there.
fn pocketbase(tenant: &Value) -> String {
    let mark = if tenant["pocketbase_pin"].is_string() { "*" } else { "" };
    format!("{}{mark}", text(&tenant["pocketbase"]))
}

/// A value as a table shows it.
fn text(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// Everything about one tenant, a line each; its log lines at the end.
fn describe(tenant: &Value) -> String {
    let fields = tenant.as_object().into_iter().flatten().filter(|(name, _)| *name != "last_log");
    let mut lines: Vec<String> = fields
        .map(|(name, value)| {
            let value = match (name.as_str(), value.as_u64()) {
                ("idle_seconds" | "retry_after_seconds", Some(seconds)) => output::age(seconds),
                _ => text(value),
            };
            format!("{:12}  {value}", name.trim_end_matches("_seconds").replace('_', " "))
        })
        .collect();
    let log: Vec<&str> = tenant["last_log"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    if !log.is_empty() {
        lines.push("last log lines:".to_owned());
        lines.extend(log.iter().map(|line| format!("  {line}")));
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listing_is_aligned_and_says_how_to_go_on() {
        let awake = json!({"tenant": "b5c3xih3gtjb48z", "state": "awake", "kind": "personal", "idle_seconds": 75,
            "in_flight": 0, "restarts": 0, "pid": 4711, "pinned": true, "reason": null,
            "pocketbase": "0.39.11", "pocketbase_pin": "0.39", "version": "0123456789abcdef", "upgrade_failed": {"reason": "no"}});
        let broken = json!({"tenant": "zz", "state": "backoff", "kind": "personal", "idle_seconds": null,
            "in_flight": 0, "restarts": 3, "pid": null, "pinned": false, "reason": "exit 1", "retry_after_seconds": 4});
        let next = TenantId::parse("zz").unwrap();
        let text = listing(&[awake, broken], Some(&next));
        let expected = "\
TENANT           STATE    KIND      VERSION    POCKETBASE  IDLE  IN FLIGHT  RESTARTS  PID   NOTE
b5c3xih3gtjb48z  awake    personal  01234567!  0.39.11*    1m    0          0         4711  pinned
zz               backoff  personal  -          -           -     0          3         -     again in 4s; exit 1
more: --after zz";
        assert_eq!(text, expected);
        assert_eq!(listing(&[], None), "no tenants");
    }

    #[test]
    fn a_tenant_is_described_with_its_log() {
        let tenant = json!({"state": "quarantined", "idle_seconds": 90, "last_log": ["panic: no"]});
        let text = describe(&tenant);
        assert!(text.contains("idle          1m") && text.ends_with("last log lines:\n  panic: no"), "{text}");
    }
}
