//! `pocketfleet workspaces …`: which workspaces there are, who is in them, and whose they are.

use std::process::ExitCode;

use clap::Args;
use clap::Subcommand;
use serde_json::Value;
use serde_json::json;

use crate::cli::client::Control;
use crate::cli::output;
use crate::cli::output::Output;
use crate::ids::TenantId;

/// What to show of workspaces.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// List workspaces in the order of their ids.
    List(Page),
    /// Show everything about one. Its instance: `tenants show ID`.
    Show(Target),
    /// List the members of one.
    Members(Members),
    /// Give one whose owner is gone to another account.
    Transfer(Transfer),
}

/// Where a list begins and how long it is.
#[derive(Debug, Args)]
pub struct Page {
    /// Most lines to print.
    #[arg(long, default_value_t = 100, value_name = "N")]
    limit: usize,
    /// Begin after this id.
    #[arg(long, value_name = "ID", value_parser = name)]
    after: Option<TenantId>,
}

impl Page {
    fn query(&self) -> String {
        let after = self.after.as_ref().map(|after| format!("&after={after}"));
        format!("?limit={}{}", self.limit, after.unwrap_or_default())
    }
}

/// One workspace.
#[derive(Debug, Args)]
pub struct Target {
    /// Its slug or its id.
    #[arg(value_parser = name)]
    workspace: TenantId,
}

/// Members of one workspace.
#[derive(Debug, Args)]
pub struct Members {
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    page: Page,
}

/// Whose a workspace is to be.
#[derive(Debug, Args)]
pub struct Transfer {
    #[command(flatten)]
    target: Target,
    /// The account's id.
    #[arg(value_parser = name)]
    user: TenantId,
}

/// Slugs and account ids have the alphabet of tenant ids.
fn name(text: &str) -> Result<TenantId, crate::ids::InvalidId> {
    TenantId::parse(text)
}

/// Runs the command against the running server.
pub async fn run(command: Command, control: &Control, output: Output) -> anyhow::Result<ExitCode> {
    match command {
        Command::List(page) => {
            let found = control.call("GET", &format!("/workspaces{}", page.query()), None).await?;
            let titles = ["WORKSPACE", "SLUG", "NAME", "OWNER", "MEMBERS", "IDENTITY", "NOTE"];
            output.done(&found, &listing(&found, titles, row, "no workspaces"))
        }
        Command::Show(target) => {
            let found = control.call("GET", &format!("/workspaces/{}", target.workspace), None).await?;
            let lines = found.as_object().into_iter().flatten();
            let lines: Vec<_> =
                lines.map(|(name, value)| format!("{:12}  {}", name.replace('_', " "), text(value))).collect();
            output.done(&found, &lines.join("\n"))
        }
        Command::Transfer(Transfer { target, user }) => {
            let path = format!("/workspaces/{}/owner", target.workspace);
            let found = control.call("POST", &path, Some(&json!({ "user": user }))).await?;
            output.done(&found, &format!("{} belongs to {user}", target.workspace))
        }
        Command::Members(wanted) => {
            let path = format!("/workspaces/{}/members{}", wanted.target.workspace, wanted.page.query());
            let found = control.call("GET", &path, None).await?;
            let titles = ["USER", "ROLE", "JOINED", "INVITED BY"];
            output.done(&found, &listing(&found, titles, member, "no members"))
        }
    }
}

/// A table, and how to see more.
fn listing<const N: usize>(found: &Value, titles: [&str; N], row: fn(&Value) -> [String; N], none: &str) -> String {
    let rows: Vec<_> = found["items"].as_array().into_iter().flatten().map(row).collect();
    if rows.is_empty() {
        return none.to_owned();
    }
    let more = found["next"].as_str().map(|next| format!("\nmore: --after {next}"));
    output::table(titles, &rows) + more.as_deref().unwrap_or_default()
}

fn row(workspace: &Value) -> [String; 7] {
    let note = ["archived", "suspended"].into_iter().filter(|note| workspace[note] == true);
    let note = note.collect::<Vec<_>>().join(", ");
    let columns = ["tenant", "slug", "name", "owner", "members", "identity"].map(|name| text(&workspace[name]));
    let [tenant, slug, name, owner, members, identity] = columns;
    [tenant, slug, name, owner, members, identity, note]
}

fn member(member: &Value) -> [String; 4] {
    ["user", "role", "joined_at", "invited_by"].map(|name| text(&member[name]))
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
    use super::*;

    #[test]
    fn a_listing_names_what_is_put_away_and_how_to_go_on() {
        let one = json!({"tenant": "w-a", "slug": "team", "name": "Team", "owner": "ada", "members": 2,
            "identity": "global", "archived": true, "suspended": false});
        let titles = ["WORKSPACE", "SLUG", "NAME", "OWNER", "MEMBERS", "IDENTITY", "NOTE"];
        let text = listing(&json!({"items": [one], "next": "w-a"}), titles, row, "no workspaces");
        let expected = "\
WORKSPACE  SLUG  NAME  OWNER  MEMBERS  IDENTITY  NOTE
w-a        team  Team  ada    2        global    archived
more: --after w-a";
        assert_eq!(text, expected);
        assert_eq!(listing(&json!({"items": [], "next": null}), titles, row, "no workspaces"), "no workspaces");
    }
}
