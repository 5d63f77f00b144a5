//! `pocketfleet backup …`: making backups, trying them, and putting them back. All but `restore-fleet` ask the running
//! server, whose queue does the work: a terminal that is closed stops nothing.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use anyhow::bail;
use clap::Args;
use clap::Subcommand;
use serde_json::Value;
use serde_json::json;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::backup::SnapshotId;
use crate::backup::fleet;
use crate::cli::client::Control;
use crate::cli::output;
use crate::cli::output::Output;
use crate::cli::progress::Progress;
use crate::cli::progress::bar;
use crate::cli::progress::confirm;
use crate::config::Config;
use crate::ids::TenantId;

/// How often a job is looked at.
const POLL: Duration = Duration::from_millis(200);

/// What to do with backups.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Back up one tenant, or everybody and the control database.
    Create(Create),
    /// List who has backups, or the backups of one tenant.
    List(Whose),
    /// Read a backup back and try it: every checksum, the database, and a start of `PocketBase`. Exits 1 when it fails.
    Verify(Verify),
    /// Write a backup to a tar archive with a plain `PocketBase` directory, which `pocketbase serve` runs elsewhere.
    Export(Export),
    /// Replace a tenant's data by a backup, which is tried first. The instance is restarted; what was there is kept.
    Restore(Restore),
    /// Remove backups beyond what is kept, objects that no backup names, and data that restores replaced.
    Prune,
    /// Put a whole fleet back onto this machine, into an empty data directory. Needs the master key and no server.
    RestoreFleet(RestoreFleet),
}

/// Whom to back up.
#[derive(Debug, Args)]
pub struct Create {
    /// The tenant; `global` for the accounts, `control` for the control database.
    #[arg(required_unless_present = "all", conflicts_with = "all", value_parser = name)]
    tenant: Option<TenantId>,
    /// Everybody whose data changed since their last backup.
    #[arg(long)]
    all: bool,
    /// With --all: also those whose data did not change.
    #[arg(long, requires = "all")]
    unchanged: bool,
}

/// Whose backups.
#[derive(Debug, Args)]
pub struct Whose {
    /// The tenant.
    #[arg(value_parser = name)]
    tenant: Option<TenantId>,
}

/// What to try.
#[derive(Debug, Args)]
pub struct Verify {
    /// The backup's id.
    #[arg(required_unless_present = "all", conflicts_with = "all")]
    id: Option<String>,
    /// Whose it is; otherwise it is looked for.
    #[arg(long, value_parser = name)]
    tenant: Option<TenantId>,
    /// The newest of everybody.
    #[arg(long)]
    all: bool,
}

/// What to write where.
#[derive(Debug, Args)]
pub struct Export {
    /// The backup's id.
    #[arg(value_parser = snapshot)]
    id: SnapshotId,
    /// Whose it is; otherwise it is looked for.
    #[arg(long, value_parser = name)]
    tenant: Option<TenantId>,
    /// The archive to make; it must not be there yet. `<id>.tar` here otherwise.
    #[arg(long, value_name = "FILE")]
    to: Option<PathBuf>,
}

/// What to restore.
#[derive(Debug, Args)]
pub struct Restore {
    /// The backup's id; without it the newest one of --tenant that is not after --at.
    #[arg(required_unless_present = "tenant", conflicts_with = "at")]
    id: Option<String>,
    /// Whose backup.
    #[arg(long, value_parser = name)]
    tenant: Option<TenantId>,
    /// As it was at this time, such as 2026-11-21T13:30:00Z.
    #[arg(long, value_name = "TIME")]
    at: Option<String>,
    /// Whose data to replace, if not the same tenant's.
    #[arg(long, value_name = "TENANT", value_parser = name)]
    to: Option<TenantId>,
    /// Do not ask.
    #[arg(long)]
    yes: bool,
}

/// Where the fleet comes from. Where it goes is --data.
#[derive(Debug, Args)]
pub struct RestoreFleet {
    /// The store, as in `backup.store`: `dir:/path` or `s3:bucket/prefix`.
    #[arg(long, value_name = "STORE")]
    from: String,
    /// As it was at this time, such as 2026-11-21T13:30:00Z.
    #[arg(long, value_name = "TIME")]
    at: Option<String>,
}

fn name(text: &str) -> Result<TenantId, crate::ids::InvalidId> {
    TenantId::parse(text)
}

fn snapshot(text: &str) -> Result<SnapshotId, String> {
    SnapshotId::parse(text).map_err(|error| error.to_string())
}

/// Runs the command.
pub async fn run(command: Command, config: &Config, output: Output, is_json: bool) -> anyhow::Result<ExitCode> {
    let control = Control::of(&config.storage.path);
    let follow = |wanted: Value| {
        let control = control.clone();
        async move { follow(&control, &wanted, is_json).await }
    };
    match command {
        Command::Create(Create { tenant: Some(tenant), .. }) => {
            let result = follow(json!({ "tenant": tenant })).await?;
            output.done(&result, &format!("backed up {tenant}: {}", made(&result)))
        }
        Command::Create(wanted) => {
            let result = follow(json!({ "fleet": wanted.unchanged })).await?;
            output.done(&result, &summary(&result))?;
            Ok(if result["failed"] == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        Command::List(Whose { tenant: Some(tenant) }) => {
            let list = control.call("GET", &format!("/backups?tenant={tenant}"), None).await?;
            output.done(&list, &snapshots(&list))
        }
        Command::List(Whose { tenant: None }) => {
            let list = control.call("GET", "/backups", None).await?;
            output.done(&list, &tenants(&list))
        }
        Command::Verify(Verify { id: Some(id), tenant, .. }) => {
            let result = follow(json!({ "verify": { "tenant": tenant, "id": id } })).await?;
            output.done(&result, &format!("the backup {id} passes"))
        }
        Command::Verify(_) => {
            let result = follow(json!("verify_all")).await?;
            output.done(&result, &summary(&result))?;
            Ok(if result["failed"] == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        Command::Export(wanted) => export(wanted, &control, output).await,
        Command::Restore(wanted) => {
            if !wanted.yes {
                confirm(
                    "Replace the tenant's data by the backup? What was written since is put away.",
                    "a restore replaces the tenant's data by older data",
                )?;
            }
            let Restore { id, tenant, at, to, .. } = wanted;
            let result = follow(json!({ "restore": { "id": id, "tenant": tenant, "at": at, "to": to } })).await?;
            let text = |name: &str| result[name].as_str().unwrap_or("?").to_owned();
            output.done(
                &result,
                &format!(
                    "restored {} as it was at {}; what it had before is in replaced/{}",
                    text("tenant"),
                    text("taken_at"),
                    text("kept")
                ),
            )
        }
        Command::Prune => {
            let result = follow(json!("prune")).await?;
            let text = format!(
                "removed {} backups, {} objects ({}) and {} replaced directories",
                result["snapshots"],
                result["objects"],
                output::bytes(result["bytes"].as_u64().unwrap_or_default()),
                result["replaced"]
            );
            output.done(&result, &text)
        }
        Command::RestoreFleet(wanted) => restore_fleet(&wanted, config, output, is_json).await,
    }
}

async fn export(wanted: Export, control: &Control, output: Output) -> anyhow::Result<ExitCode> {
    let Export { id, tenant, to } = wanted;
    let to = to.unwrap_or_else(|| PathBuf::from(format!("{id}.tar")));
    let whose = tenant.map(|tenant| format!("?tenant={tenant}")).unwrap_or_default();
    // It has somebody's data: for nobody else's eyes, and never over another file.
    let mut options = tokio::fs::OpenOptions::new();
    let opened = options.write(true).create_new(true).mode(0o600).open(&to).await;
    let mut file = opened.with_context(|| format!("make {}", to.display()))?;
    match control.download(&format!("/backups/{id}/export{whose}"), &mut file).await {
        Ok(bytes) => output.done(
            &json!({ "id": id, "file": to, "bytes": bytes }),
            &format!("wrote {} ({})", to.display(), output::bytes(bytes)),
        ),
        Err(error) => {
            // A part of an archive would only mislead.
            drop(tokio::fs::remove_file(&to).await);
            Err(error)
        }
    }
}

async fn restore_fleet(
    wanted: &RestoreFleet,
    config: &Config,
    output: Output,
    is_json: bool,
) -> anyhow::Result<ExitCode> {
    let at = wanted.at.as_deref().map(|text| OffsetDateTime::parse(text, &Rfc3339));
    let order = fleet::Order {
        config: &config.backup,
        outbound: &config.outbound,
        vault: &config.vault,
        from: &wanted.from,
        data: &config.storage.path,
        at: at.transpose().context("--at: a time looks like 2026-11-21T13:30:00Z")?,
    };
    let mut progress = Progress::new(is_json);
    let report = |done: usize, total: usize| progress.show(format!("{} instances", bar(done as u64, total as u64)));
    let restored = Box::pin(fleet::restore_fleet(&order, report)).await?;
    progress.end();
    let mut lines = vec![format!(
        "restored {} instances ({}) and the control database of {} into {}; start it with `pocketfleet serve`",
        restored.restored,
        output::bytes(restored.bytes),
        restored.control_at.format(&Rfc3339)?,
        config.storage.path.display()
    )];
    lines.extend(restored.failed.iter().map(|(tenant, reason)| format!("  {tenant} could not be restored: {reason}")));
    lines.extend(restored.missing.iter().map(|tenant| format!("  {tenant} has no backup and will not start")));
    let is_whole = restored.failed.is_empty() && restored.missing.is_empty();
    output.done(&serde_json::to_value(&restored)?, &lines.join("\n"))?;
    Ok(if is_whole { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Has the server do something and watches the job; its result.
async fn follow(control: &Control, wanted: &Value, is_json: bool) -> anyhow::Result<Value> {
    let begun = control.call("POST", "/backups", Some(wanted)).await?;
    let path = format!("/jobs/{}", begun["job"].as_str().context("the server named no job")?);
    let mut progress = Progress::new(is_json);
    loop {
        let job = control.call("GET", &path, None).await?;
        let count = |name: &str| job["progress"][name].as_u64().unwrap_or_default();
        if count("total") > 0 {
            let step = job["progress"]["step"].as_str().unwrap_or_default();
            progress.show(format!("{} {step}", bar(count("done"), count("total"))));
        }
        match job["state"].as_str().unwrap_or_default() {
            "done" => {
                progress.end();
                return Ok(job["result"].clone());
            }
            "dead" => bail!("{}", job["error"].as_str().unwrap_or("it failed")),
            "cancelled" => bail!("somebody called it off"),
            _ => tokio::time::sleep(POLL).await,
        }
    }
}

fn size(value: &Value) -> String {
    output::bytes(value.as_u64().unwrap_or_default())
}

fn made(result: &Value) -> String {
    let id = result["id"].as_str().unwrap_or("?");
    let (files, bytes, new) = (&result["files"], size(&result["bytes"]), size(&result["new_bytes"]));
    let mut parts = vec![format!("{id}, {files} files, {bytes}, {new} new")];
    for (name, text) in
        [("missing", "files that records name are not there"), ("skipped", "links and other things were left out")]
    {
        parts.extend(result[name].as_u64().filter(|count| *count > 0).map(|count| format!("{count} {text}")));
    }
    parts.join("; ")
}

fn summary(result: &Value) -> String {
    let mut lines = Vec::new();
    if result["passed"].is_null() {
        lines.push(format!(
            "backed up {} instances ({} new) and the control database; {} unchanged, {} without data, {} failed",
            result["taken"],
            size(&result["new_bytes"]),
            result["unchanged"],
            result["without_data"],
            result["failed"]
        ));
    } else {
        lines.push(format!("{} backups pass, {} fail", result["passed"], result["failed"]));
    }
    for one in result["failures"].as_array().into_iter().flatten() {
        lines.push(format!("  {}: {}", one["tenant"].as_str().unwrap_or("?"), one["reason"].as_str().unwrap_or("?")));
    }
    lines.join("\n")
}

fn snapshots(list: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    let rows: Vec<[String; 6]> = list["items"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|one| {
            [
                text(&one["id"]),
                text(&one["taken_at"]).get(..19).unwrap_or("-").to_owned(),
                text(&one["reason"]),
                one["files"].to_string(),
                size(&one["bytes"]),
                size(&one["new_bytes"]),
            ]
        })
        .collect();
    let table = output::table(["BACKUP", "TAKEN AT", "FOR", "FILES", "SIZE", "NEW"], &rows);
    match list["unreadable"].as_u64().unwrap_or_default() {
        0 => table,
        count => format!("{table}\n{count} more cannot be read"),
    }
}

fn tenants(list: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    let rows: Vec<[String; 4]> = list["tenants"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|one| [text(&one["tenant"]), one["count"].to_string(), text(&one["newest"]), text(&one["oldest"])])
        .collect();
    output::table(["TENANT", "BACKUPS", "NEWEST", "OLDEST"], &rows)
}
