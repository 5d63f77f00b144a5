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
    /// Delete it: nobody reaches it any more, everything of it is kept for `tenancy.keep_deleted`.
    Delete(Delete),
    /// Bring a deleted one back.
    Undelete(Target),
    /// List those that were deleted and are not erased yet.
    Deleted,
    /// Show what a tenant has and may have, or change its own limits.
    Quota(Quota),
    /// List what tenants have and may have.
    Usage(Usage),
    /// List folders without a record, and records without a folder; take one in again, or remove it.
    Orphans(Orphans),
}

/// Limits of one tenant; 0 is no limit. What is not given stays as it is.
#[derive(Debug, Args)]
pub struct Quota {
    #[command(flatten)]
    target: Target,
    /// Bytes on the disk from which on it is told.
    #[arg(long, value_name = "BYTES")]
    disk_soft: Option<u64>,
    /// Bytes on the disk from which on its writes are refused.
    #[arg(long, value_name = "BYTES")]
    disk_hard: Option<u64>,
    /// Largest body of one request.
    #[arg(long, value_name = "BYTES")]
    file_size: Option<u64>,
    /// Memory of its process, from its next start on.
    #[arg(long, value_name = "BYTES")]
    memory: Option<u64>,
    /// Requests at work at once.
    #[arg(long, value_name = "N")]
    in_flight: Option<u64>,
    /// Requests in a minute.
    #[arg(long, value_name = "N")]
    requests_per_minute: Option<u64>,
    /// Requests with files in an hour.
    #[arg(long, value_name = "N")]
    uploads_per_hour: Option<u64>,
    /// Take its own limits away first, so that its template's and the server's hold.
    #[arg(long)]
    clear: bool,
}

/// What to list.
#[derive(Debug, Args)]
pub struct Usage {
    /// Most tenants to print, 1 to 500.
    #[arg(long, default_value_t = 100, value_name = "N")]
    limit: usize,
    /// Begin after this tenant.
    #[arg(long, value_name = "ID", value_parser = id)]
    after: Option<TenantId>,
}

/// What to delete.
#[derive(Debug, Args)]
pub struct Delete {
    #[command(flatten)]
    target: Target,
    /// Erase it at once, also one that was deleted before. Nothing takes this back. Prints the signed record of it.
    #[arg(long)]
    now: bool,
}

/// What to do about orphans; without a flag they are listed.
#[derive(Debug, Args)]
pub struct Orphans {
    /// Take this one in: a folder gets a record, a record without a folder starts anew, empty.
    #[arg(long, value_name = "ID", conflicts_with = "remove")]
    adopt: Option<String>,
    /// Remove this one: a folder for good; a record like any tenant that is deleted.
    #[arg(long, value_name = "ID")]
    remove: Option<String>,
    /// Whose an adopted folder is to be, if no account has its name.
    #[arg(long, value_name = "USER", requires = "adopt")]
    owner: Option<String>,
    /// The template an adopted folder was made from, if it is not the usual one.
    #[arg(long, value_name = "NAME", requires = "adopt")]
    template: Option<String>,
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
        Command::Delete(Delete { target, now: true }) => {
            let record = control.call("POST", &format!("/tenants/{}/erase", target.tenant), None).await?;
            output.done(&record, &serde_json::to_string_pretty(&record)?)
        }
        Command::Quota(wanted) => quota(&wanted, control, output).await,
        Command::Usage(Usage { limit, after }) => {
            let after = after.map(|after| format!("&after={after}")).unwrap_or_default();
            let found = control.call("GET", &format!("/usage?limit={limit}{after}"), None).await?;
            let items: Vec<&Value> = found["items"].as_array().into_iter().flatten().collect();
            let rows: Vec<_> = items.iter().map(|item| usage_row(item)).collect();
            let more = found["next"].as_str().map(|next| format!("\nmore: --after {next}"));
            let table = output::table(["TENANT", "DISK", "LEVEL", "SOFT", "HARD", "IN FLIGHT"], &rows);
            output.done(&found, &(table + more.as_deref().unwrap_or_default()))
        }
        Command::Orphans(wanted) => orphans(wanted, control, output).await,
        Command::Delete(Delete { target, now: false }) => {
            let deleted = control.call("POST", &format!("/tenants/{}/delete", target.tenant), None).await?;
            let until = text(&deleted["erase_at"]);
            output.done(&deleted, &format!("{} is deleted; it can be brought back until {until}", target.tenant))
        }
        Command::Undelete(target) => {
            let back = control.call("POST", &format!("/tenants/{}/undelete", target.tenant), None).await?;
            output.done(&back, &format!("{} is there again", target.tenant))
        }
        Command::Deleted => {
            let deleted = control.call("GET", "/deleted", None).await?;
            output.done(&deleted, &deletions(&deleted))
        }
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

async fn quota(wanted: &Quota, control: &Control, output: Output) -> anyhow::Result<ExitCode> {
    let path = format!("/tenants/{}/quota", wanted.target.tenant);
    let given = [
        ("disk_soft", wanted.disk_soft),
        ("disk_hard", wanted.disk_hard),
        ("file_size", wanted.file_size),
        ("memory", wanted.memory),
        ("in_flight", wanted.in_flight),
        ("requests_per_minute", wanted.requests_per_minute),
        ("uploads_per_hour", wanted.uploads_per_hour),
    ];
    let mut shown = control.call("GET", &path, None).await?;
    if wanted.clear || given.iter().any(|(_, value)| value.is_some()) {
        let mut body = if wanted.clear { json!({}) } else { shown["own"].clone() };
        for (name, value) in given {
            if let Some(value) = value {
                body[name] = json!(value);
            }
        }
        shown = control.call("PUT", &path, Some(&body)).await?;
    }
    let rows = [usage_row(&shown)];
    output.done(&shown, &output::table(["TENANT", "DISK", "LEVEL", "SOFT", "HARD", "IN FLIGHT"], &rows))
}

fn usage_row(item: &Value) -> [String; 6] {
    let size = |value: &Value| value.as_u64().filter(|bytes| *bytes > 0).map_or_else(|| "-".to_owned(), output::bytes);
    [
        text(&item["tenant"]),
        size(&item["disk_used"]),
        text(&item["disk_level"]),
        size(&item["quota"]["disk_soft"]),
        size(&item["quota"]["disk_hard"]),
        text(&item["in_flight"]),
    ]
}

async fn orphans(wanted: Orphans, control: &Control, output: Output) -> anyhow::Result<ExitCode> {
    let Orphans { adopt, remove, owner, template } = wanted;
    if let Some(id) = adopt {
        let body = json!({ "owner": owner, "template": template });
        let done = control.call("POST", &format!("/orphans/{id}/adopt"), Some(&body)).await?;
        return output.done(&done, &format!("{id} is taken in"));
    }
    if let Some(id) = remove {
        let done = control.call("POST", &format!("/orphans/{id}/remove"), None).await?;
        return output.done(&done, &format!("{id} is removed"));
    }
    let found = control.call("GET", "/orphans", None).await?;
    let items: Vec<&Value> = found["items"].as_array().into_iter().flatten().collect();
    let what = |item: &Value| match item["kind"].as_str() {
        Some("instance") => "a folder in instances/ without a record",
        Some("aside") => "a folder in deleted/ without a tombstone",
        _ => "a record of a tenant that ran before, without its folder",
    };
    let rows: Vec<_> = items.iter().map(|item| [text(&item["id"]), what(item).to_owned()]).collect();
    let table = if rows.is_empty() { "no orphans".to_owned() } else { output::table(["ID", "WHAT"], &rows) };
    output.done(&found, &table)
}

/// A table of deleted tenants.
fn deletions(deleted: &Value) -> String {
    let items: Vec<&Value> = deleted["items"].as_array().into_iter().flatten().collect();
    if items.is_empty() {
        return "nothing is deleted".to_owned();
    }
    let row =
        |item: &&Value| ["id", "kind", "stage", "deleted_at", "deleted_by", "erase_at"].map(|key| text(&item[key]));
    let rows: Vec<_> = items.iter().map(row).collect();
    output::table(["TENANT", "KIND", "STAGE", "DELETED", "BY", "ERASED"], &rows)
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
