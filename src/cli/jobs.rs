//! `pocketfleet jobs …`: what waits, runs and failed, and what to do about it.

use std::process::ExitCode;

use clap::Args;
use clap::Subcommand;
use serde_json::Value;

use crate::cli::client::Control;
use crate::cli::output;
use crate::cli::output::Output;
use crate::ids::TenantId;

/// What to do with jobs.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// List jobs, newest first.
    List(List),
    /// Show everything about one.
    Show(Target),
    /// Call one off.
    Cancel(Target),
    /// Bring back one that failed or was called off.
    Retry(Target),
    /// Begin no more jobs of a kind; those that run go on.
    Pause(Kind),
    /// Begin jobs of a kind again.
    Resume(Kind),
    /// List what is done again and again, the oldest first.
    Schedules(Schedules),
    /// Show the queue in numbers.
    Status,
}

/// Which jobs.
#[derive(Debug, Args)]
pub struct List {
    /// Only those in this state.
    #[arg(long, value_parser = word)]
    state: Option<String>,
    /// Only those of this kind.
    #[arg(long, value_parser = word)]
    kind: Option<String>,
    /// Only those of this tenant.
    #[arg(long, value_parser = tenant)]
    tenant: Option<TenantId>,
    /// Most lines to print, 100 at most.
    #[arg(long, default_value_t = 50, value_name = "N")]
    limit: usize,
    /// Go on where an earlier list ended.
    #[arg(long, value_parser = word)]
    cursor: Option<String>,
}

/// Which schedules.
#[derive(Debug, Args)]
pub struct Schedules {
    /// Only those of this tenant.
    #[arg(long, value_parser = tenant)]
    tenant: Option<TenantId>,
    /// Most lines to print, 100 at most.
    #[arg(long, default_value_t = 50, value_name = "N")]
    limit: usize,
    /// Go on after this one.
    #[arg(long, value_parser = word)]
    after: Option<String>,
}

/// One job.
#[derive(Debug, Args)]
pub struct Target {
    /// Its id.
    #[arg(value_parser = word)]
    id: String,
}

/// One kind of job.
#[derive(Debug, Args)]
pub struct Kind {
    /// Its name.
    #[arg(value_parser = word)]
    kind: String,
}

fn tenant(text: &str) -> Result<TenantId, crate::ids::InvalidId> {
    TenantId::parse(text)
}

/// What stands in an address of the control socket.
fn word(text: &str) -> Result<String, &'static str> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
    let fits = (1..=64).contains(&text.len()) && text.bytes().all(is_plain);
    if fits { Ok(text.to_owned()) } else { Err("letters, digits, _ and - only") }
}

/// Runs the command against the running server.
pub async fn run(command: Command, control: &Control, output: Output) -> anyhow::Result<ExitCode> {
    match command {
        Command::List(wanted) => {
            let found = control.call("GET", &wanted.path(), None).await?;
            output.done(&found, &listing(&found))
        }
        Command::Show(Target { id }) => {
            let found = control.call("GET", &format!("/jobs/{id}"), None).await?;
            let lines = found.as_object().into_iter().flatten();
            let lines: Vec<_> =
                lines.map(|(name, value)| format!("{:16}  {}", name.replace('_', " "), text(value))).collect();
            output.done(&found, &lines.join("\n"))
        }
        Command::Cancel(target) => act(control, output, &target, "cancel").await,
        Command::Retry(target) => act(control, output, &target, "retry").await,
        Command::Pause(Kind { kind }) => {
            let done = control.call("POST", &format!("/kinds/{kind}/pause"), None).await?;
            output.done(&done, &format!("jobs of the kind {kind} rest"))
        }
        Command::Resume(Kind { kind }) => {
            let done = control.call("POST", &format!("/kinds/{kind}/resume"), None).await?;
            output.done(&done, &format!("jobs of the kind {kind} go on"))
        }
        Command::Schedules(wanted) => {
            let found = control.call("GET", &wanted.path(), None).await?;
            output.done(&found, &schedules(&found))
        }
        Command::Status => {
            let found = control.call("GET", "/jobs/status", None).await?;
            output.done(&found, &status(&found))
        }
    }
}

impl List {
    fn path(&self) -> String {
        let of = self.tenant.as_ref().map(|tenant| format!("/tenants/{tenant}"));
        let mut path = format!("{}/jobs?limit={}", of.unwrap_or_default(), self.limit);
        for (name, value) in [("state", &self.state), ("kind", &self.kind), ("cursor", &self.cursor)] {
            if let Some(value) = value {
                path.extend(["&", name, "=", value]);
            }
        }
        path
    }
}

impl Schedules {
    fn path(&self) -> String {
        let tenant = self.tenant.as_ref().map(|tenant| format!("&tenant={tenant}")).unwrap_or_default();
        let after = self.after.as_ref().map(|after| format!("&after={after}")).unwrap_or_default();
        format!("/schedules?limit={}{tenant}{after}", self.limit)
    }
}

fn schedules(found: &Value) -> String {
    let rows = found["items"].as_array().into_iter().flatten().map(|schedule| {
        let missed = match &schedule["make_up"] {
            Value::Null => text(&schedule["missed"]),
            most => format!("all, at most {most}"),
        };
        let [id, kind, user, cron, next, title] =
            ["id", "kind", "user_id", "cron", "next_run_at", "title"].map(|name| text(&schedule[name]));
        [id, kind, user, cron, missed, next, title]
    });
    let rows: Vec<_> = rows.collect();
    if rows.is_empty() {
        return "no schedules".to_owned();
    }
    let more = found["next"].as_str().map(|next| format!("\nmore: --after {next}"));
    output::table(["SCHEDULE", "KIND", "USER", "CRON", "MISSED", "NEXT", "TITLE"], &rows) + &more.unwrap_or_default()
}

async fn act(control: &Control, output: Output, target: &Target, action: &str) -> anyhow::Result<ExitCode> {
    let job = control.call("POST", &format!("/jobs/{}/{action}", target.id), None).await?;
    output.done(&job, &format!("{} is {}", target.id, text(&job["state"])))
}

fn listing(found: &Value) -> String {
    let rows: Vec<_> = found["items"].as_array().into_iter().flatten().map(row).collect();
    if rows.is_empty() {
        return "no jobs".to_owned();
    }
    let more = found["next"].as_str().map(|next| format!("\nmore: --cursor {next}"));
    output::table(["JOB", "KIND", "STATE", "USER", "ATTEMPTS", "CREATED", "ERROR"], &rows) + &more.unwrap_or_default()
}

fn row(job: &Value) -> [String; 7] {
    let attempts = format!("{}/{}", job["attempts"], job["max_attempts"]);
    let [id, kind, state, user] = ["id", "kind", "state", "user_id"].map(|name| text(&job[name]));
    [id, kind, state, user, attempts, text(&job["created_at"]), text(&job["error"])]
}

fn status(found: &Value) -> String {
    let rows = found["kinds"].as_array().into_iter().flatten().map(|kind| {
        let [queued, scheduled, running, parked, dead] =
            ["queued", "scheduled", "running", "parked", "dead"].map(|state| text(&kind["states"][state]));
        let note = [("is_external", "external"), ("is_paused", "paused")];
        let note: Vec<_> = note.into_iter().filter(|(name, _)| kind[*name] == true).map(|(_, note)| note).collect();
        [text(&kind["kind"]), queued, scheduled, running, parked, dead, note.join(", ")]
    });
    let rows: Vec<_> = rows.collect();
    let table = output::table(["KIND", "QUEUED", "SCHEDULED", "RUNNING", "PARKED", "DEAD", "NOTE"], &rows);
    let [unfinished, tenants, paused] = ["unfinished", "tenants", "paused_tenants"].map(|name| text(&found[name]));
    format!("{table}\n{unfinished} unfinished jobs of {tenants} tenants, {paused} of them paused")
}

/// A value as a table shows it.
fn text(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_list_is_asked_for_with_all_that_was_given() {
        let list = |tenant: Option<&str>, state: Option<&str>| List {
            state: state.map(str::to_owned),
            kind: None,
            tenant: tenant.map(|tenant| TenantId::parse(tenant).unwrap()),
            limit: 5,
            cursor: Some("17".to_owned()),
        };
        assert_eq!(list(None, Some("dead")).path(), "/jobs?limit=5&state=dead&cursor=17");
        assert_eq!(list(Some("ada"), None).path(), "/tenants/ada/jobs?limit=5&cursor=17");
        assert!(word("a&b").is_err() && word("").is_err() && word("../x").is_err());
    }

    #[test]
    fn schedules_are_told_one_a_line() {
        let wanted = Schedules { tenant: TenantId::parse("ada").ok(), limit: 2, after: Some("01k6".to_owned()) };
        assert_eq!(wanted.path(), "/schedules?limit=2&tenant=ada&after=01k6");
        let found = json!({"items": [{"id": "01k7", "kind": "transcode", "user_id": "ada", "cron": "@daily",
            "missed": "all", "make_up": 3, "next_run_at": "2030-01-01T00:00:00Z", "title": "x"}], "next": "01k7"});
        let shown = schedules(&found);
        assert!(shown.contains("@daily  all, at most 3  2030-01-01T00:00:00Z  x"), "{shown}");
        assert!(shown.ends_with("more: --after 01k7"), "{shown}");
    }

    #[test]
    fn numbers_are_told_by_kind() {
        let found = json!({"kinds": [{"kind": "transcode", "is_external": true, "is_paused": true,
            "states": {"queued": 2, "scheduled": 0, "running": 1, "parked": 0, "done": 7, "dead": 3}}],
            "unfinished": 3, "tenants": 1, "paused_tenants": 0});
        let expected = "\
KIND       QUEUED  SCHEDULED  RUNNING  PARKED  DEAD  NOTE
transcode  2       0          1        0       3     external, paused
3 unfinished jobs of 1 tenants, 0 of them paused";
        assert_eq!(status(&found), expected);
    }
}
