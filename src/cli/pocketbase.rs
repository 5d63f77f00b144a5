//! `pocketfleet pocketbase …`: which versions there are, who has which, keeping tenants at one, and rolling one out.

use std::process::ExitCode;

use clap::Args;
use clap::Subcommand;
use serde_json::Value;
use serde_json::json;

use crate::cli::client::Control;
use crate::cli::output;
use crate::cli::output::Output;
use crate::cli::templates;
use crate::ids::TenantId;

/// What to do with versions of `PocketBase`.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// List the versions that are there, and how many instances have which.
    List,
    /// Bring a version to all instances whose template is made with it: a few first, then the others in waves.
    Rollout(Rollout),
    /// Stop the rollout; upgrades under way are finished.
    Stop,
    /// Keep a tenant at a version, by default the one that it has.
    Pin(Pin),
    /// Let a tenant follow its template again.
    Unpin(Tenant),
}

/// How to roll out.
#[derive(Debug, Args)]
pub struct Rollout {
    /// The version, such as 0.40.6.
    version: String,
    /// Tenants to upgrade first; if one of them fails, the rollout ends.
    #[arg(long, default_value_t = 1, value_name = "N")]
    canary: usize,
    /// Tenants per wave after that.
    #[arg(long, alias = "waves", default_value_t = 50, value_name = "N")]
    wave: usize,
    /// Failures that are put up with.
    #[arg(long, default_value_t = 0, value_name = "N")]
    max_failures: usize,
    /// Do not ask.
    #[arg(long)]
    yes: bool,
}

/// A tenant.
#[derive(Debug, Args)]
pub struct Tenant {
    /// Its id.
    #[arg(value_parser = parse)]
    tenant: TenantId,
}

/// Where to keep a tenant.
#[derive(Debug, Args)]
pub struct Pin {
    #[command(flatten)]
    tenant: Tenant,
    /// The version: 0.39.11, or 0.39 for all that begin so.
    version: Option<String>,
}

fn parse(text: &str) -> Result<TenantId, crate::ids::InvalidId> {
    TenantId::parse(text)
}

/// Runs the command against the running server.
pub async fn run(command: Command, control: &Control, output: Output, is_json: bool) -> anyhow::Result<ExitCode> {
    match command {
        Command::List => {
            let list = control.call("GET", "/pocketbase", None).await?;
            output.done(&list, &listing(&list))
        }
        Command::Rollout(wanted) => {
            if !wanted.yes {
                templates::confirm_rollout("tenant")?;
            }
            let care = json!({ "canary": wanted.canary, "wave": wanted.wave, "max_failures": wanted.max_failures });
            let wanted = json!({ "version": wanted.version, "care": care });
            templates::carry_out("/pocketbase/rollout", &wanted, control, output, is_json).await
        }
        Command::Stop => {
            let progress = control.call("POST", "/pocketbase/stop", None).await?;
            output.done(&progress, "stopping; upgrades under way are finished")
        }
        Command::Pin(wanted) => {
            let body = json!({ "pinned": true, "version": wanted.version });
            pin(&wanted.tenant.tenant, &body, control, output).await
        }
        Command::Unpin(wanted) => pin(&wanted.tenant, &json!({ "pinned": false }), control, output).await,
    }
}

async fn pin(tenant: &TenantId, body: &Value, control: &Control, output: Output) -> anyhow::Result<ExitCode> {
    let answer = control.call("POST", &format!("/pocketbase/pins/{tenant}"), Some(body)).await?;
    let text = answer["pin"].as_str().map_or_else(
        || format!("{tenant} follows its template again, from its next wake on"),
        |pin| format!("{tenant} is kept at PocketBase {pin}"),
    );
    output.done(&answer, &text)
}

fn listing(list: &Value) -> String {
    let mut rows = Vec::new();
    for binary in list["items"].as_array().into_iter().flatten() {
        let text = |name: &str| binary[name].as_str().unwrap_or("?").to_owned();
        let names: Vec<_> = binary["templates"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        rows.push([text("version"), binary["instances"].to_string(), names.join(", "), text("path")]);
    }
    for (version, count) in list["others"].as_object().into_iter().flatten() {
        rows.push([
            version.clone(),
            count.to_string(),
            String::new(),
            "no binary; the next newer one serves them".to_owned(),
        ]);
    }
    output::table(["VERSION", "INSTANCES", "TEMPLATES", "BINARY"], &rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_listed_with_those_that_have_no_binary() {
        let list = json!({"items": [{"version": "0.40.6", "instances": 3, "templates": ["global", "personal"], "path": "/p"}],
            "others": {"0.38.0": 1}});
        let expected = "\
VERSION  INSTANCES  TEMPLATES         BINARY
0.40.6   3          global, personal  /p
0.38.0   1                            no binary; the next newer one serves them";
        assert_eq!(listing(&list), expected);
    }
}
