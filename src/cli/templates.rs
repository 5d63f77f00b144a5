//! `pocketfleet template …`: checking a folder, who is at which version, and rolling a change out.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::bail;
use clap::Args;
use clap::Subcommand;
use serde_json::Value;
use serde_json::json;

use crate::cli::client::Control;
use crate::cli::output;
use crate::cli::output::Output;
use crate::cli::progress::Progress;
use crate::cli::progress::bar;
use crate::cli::progress::confirm;
use crate::config::Config;
use crate::ids::TenantId;
use crate::supervisor::binary;
use crate::supervisor::check;
use crate::supervisor::check::Level;
use crate::supervisor::check::Report;
use crate::supervisor::jail::Isolation;

/// How often a rollout is looked at.
const POLL: Duration = Duration::from_millis(300);

/// What to do with templates.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Check a template folder with the real `PocketBase`; needs no server. Exits 1 when it cannot be used.
    Check(Check),
    /// List templates and how many tenants are at which version.
    List,
    /// Upgrade the tenants of a template now: a few first, then the others in waves.
    Rollout(Rollout),
    /// Stop a rollout; upgrades under way are finished.
    Stop(Name),
    /// Let upgrades that failed be tried again.
    Retry(Retry),
}

/// A folder.
#[derive(Debug, Args)]
pub struct Check {
    /// The template's folder.
    dir: PathBuf,
}

/// A template.
#[derive(Debug, Args)]
pub struct Name {
    /// Its name: that of its folder.
    #[arg(value_parser = name)]
    name: TenantId,
}

/// How to roll out.
#[derive(Debug, Args)]
pub struct Rollout {
    #[command(flatten)]
    template: Name,
    /// Tenants to upgrade first; if one of them fails, the rollout ends.
    #[arg(long, default_value_t = 1, value_name = "N")]
    canary: usize,
    /// Tenants per wave after that.
    #[arg(long, default_value_t = 50, value_name = "N")]
    wave: usize,
    /// Failures that are put up with.
    #[arg(long, default_value_t = 0, value_name = "N")]
    max_failures: usize,
    /// Do not ask.
    #[arg(long)]
    yes: bool,
}

/// Whose upgrade to try again.
#[derive(Debug, Args)]
pub struct Retry {
    #[command(flatten)]
    template: Name,
    /// Only this tenant's.
    #[arg(long, value_name = "ID", value_parser = name)]
    tenant: Option<TenantId>,
}

/// Names of templates have the alphabet of tenants, so they need no escaping in a path.
fn name(text: &str) -> Result<TenantId, crate::ids::InvalidId> {
    TenantId::parse(text)
}

/// Runs the command.
pub async fn run(command: Command, config: &Config, output: Output, is_json: bool) -> anyhow::Result<ExitCode> {
    let control = Control::of(&config.storage.path);
    match command {
        Command::Check(wanted) => examine(&wanted, config, output).await,
        Command::List => {
            let list = control.call("GET", "/templates", None).await?;
            output.done(&list, &listing(&list))
        }
        Command::Rollout(wanted) => roll_out(&wanted, &control, output, is_json).await,
        Command::Stop(template) => {
            let progress = control.call("POST", &format!("/templates/{}/stop", template.name), None).await?;
            output.done(&progress, "stopping; upgrades under way are finished")
        }
        Command::Retry(wanted) => {
            let path = format!("/templates/{}/retry", wanted.template.name);
            let answer = control.call("POST", &path, Some(&json!({ "tenant": wanted.tenant }))).await?;
            let count = answer["retried"].as_u64().unwrap_or_default();
            output.done(&answer, &format!("{count} failed upgrades are tried again at the next wake, or by a rollout"))
        }
    }
}

async fn examine(wanted: &Check, config: &Config, output: Output) -> anyhow::Result<ExitCode> {
    let scratch = tempfile::tempdir()?;
    let pocketbase = &config.pocketbase;
    let found = binary::verify_all(pocketbase.named(), &pocketbase.binaries, &config.search_path, scratch.path());
    let binaries = found.await?;
    let isolation = Isolation::detect(&config.isolation, scratch.path(), &binaries.paths());
    let report = check::check(&wanted.dir, &binaries, &isolation).await?;
    output.done(&serde_json::to_value(&report)?, &describe(&report))?;
    Ok(if report.ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn describe(report: &Report) -> String {
    let mut lines = vec![format!("template {}", report.name)];
    if let Some(traits) = &report.manifest {
        let kinds: Vec<String> = traits.kinds.iter().map(|kind| format!("{kind:?}").to_lowercase()).collect();
        lines.push(format!("  for          {}", kinds.join(", ")));
        lines.push(format!("  identity     {}", format!("{:?}", traits.identity).to_lowercase()));
        lines.push(format!("  version      {}", &traits.hash[..12]));
    }
    lines.push(format!("  migrations   {}", report.migrations));
    lines.push(format!(
        "  hooks        {}",
        if report.hooks.is_empty() { "-".to_owned() } else { report.hooks.join(", ") }
    ));
    lines.push(format!("  public files {}", report.public_files));
    if report.bytes > 0 {
        lines.push(format!("  new instance {} (baked in {} ms)", output::bytes(report.bytes), report.milliseconds));
    }
    if !report.collections.is_empty() {
        let rows: Vec<[String; 7]> = report
            .collections
            .iter()
            .map(|collection| {
                let [list, view, create, update, delete] = collection.rules().map(|(_, rule)| match rule {
                    None => "-".to_owned(),
                    Some("") => "anybody".to_owned(),
                    Some(rule) => rule.chars().take(40).collect(),
                });
                [collection.name.clone(), collection.kind.clone(), list, view, create, update, delete]
            })
            .collect();
        lines.push(output::table(["COLLECTION", "TYPE", "LIST", "VIEW", "CREATE", "UPDATE", "DELETE"], &rows));
    }
    for finding in &report.findings {
        let level = if finding.level == Level::Error { "error" } else { "warning" };
        lines.push(format!("{level}: {}", finding.message));
    }
    lines.push(if report.ok { "it can be used".to_owned() } else { "it cannot be used".to_owned() });
    lines.join("\n")
}

fn listing(list: &Value) -> String {
    let mut rows = Vec::new();
    let mut notes = Vec::new();
    for template in list["items"].as_array().into_iter().flatten() {
        let name = template["name"].as_str().unwrap_or("?");
        let today = template["hash"].as_str().unwrap_or("-");
        let versions = template["versions"].as_object();
        let at = versions.and_then(|versions| versions.get(today)).and_then(Value::as_u64).unwrap_or_default();
        let older: u64 =
            versions.into_iter().flatten().filter(|(hash, _)| *hash != today).filter_map(|(_, n)| n.as_u64()).sum();
        let failed = template["failed"].as_array().map_or(0, Vec::len);
        rows.push([
            name.to_owned(),
            if template["error"].is_null() { "ok".to_owned() } else { "broken".to_owned() },
            short(today).to_owned(),
            template["tenants"].to_string(),
            at.to_string(),
            older.to_string(),
            failed.to_string(),
            template["unknown"].to_string(),
            template["rollout"]["stage"].as_str().unwrap_or("-").to_owned(),
        ]);
        notes.extend(template["error"].as_str().map(|error| format!("{name} is broken: {error}")));
        for version in template["failed"].as_array().into_iter().flatten() {
            let (tenant, failed) = (version["tenant"].as_str().unwrap_or("?"), &version["failed"]);
            let (hash, reason) = (failed["hash"].as_str().unwrap_or("?"), failed["reason"].as_str().unwrap_or("?"));
            notes.push(format!("{tenant} could not be upgraded to {}: {}", short(hash), reason.replace('\n', " | ")));
        }
    }
    let titles = ["TEMPLATE", "STATE", "VERSION", "TENANTS", "AT IT", "OLDER", "FAILED", "UNKNOWN", "ROLLOUT"];
    let table = output::table(titles, &rows);
    if notes.is_empty() { table } else { format!("{table}\n{}", notes.join("\n")) }
}

fn short(hash: &str) -> &str {
    hash.get(..12).unwrap_or(hash)
}

async fn roll_out(wanted: &Rollout, control: &Control, output: Output, is_json: bool) -> anyhow::Result<ExitCode> {
    let name = &wanted.template.name;
    if !wanted.yes {
        confirm_rollout(&format!("tenant of {name}"))?;
    }
    let path = format!("/templates/{name}/rollout");
    let care = json!({ "canary": wanted.canary, "wave": wanted.wave, "max_failures": wanted.max_failures });
    carry_out(&path, &care, control, output, is_json).await
}

/// Starts a rollout, or joins the one that runs, and shows how it goes to its end.
pub(super) async fn carry_out(
    path: &str,
    wanted: &Value,
    control: &Control,
    output: Output,
    is_json: bool,
) -> anyhow::Result<ExitCode> {
    let (status, answer) = control.ask("POST", path, Some(wanted)).await?;
    // One that runs already, perhaps started by a terminal that was closed, is watched instead.
    let runs_already = status == 409 && control.ask("GET", path, None).await?.1["stage"].is_string();
    if !(200..300).contains(&status) && !runs_already {
        bail!("{}", answer["error"]["message"].as_str().unwrap_or("the server refused"));
    }
    let mut shown = Progress::new(is_json);
    let progress = loop {
        let progress = control.call("GET", path, None).await?;
        shown.show(line(&progress));
        if !matches!(progress["stage"].as_str(), Some("canary" | "waves")) {
            break progress;
        }
        tokio::time::sleep(POLL).await;
    };
    shown.end();
    let is_done = progress["stage"] == "done" && progress["failed"] == 0;
    output.done(&progress, &summary(&progress))?;
    Ok(if is_done { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn line(progress: &Value) -> String {
    let count = |name: &str| progress[name].as_u64().unwrap_or_default();
    let (failed, skipped) = (count("failed"), count("skipped"));
    let bar = bar(count("upgraded") + failed + skipped, count("total"));
    format!("{:7} {bar}, {failed} failed, {skipped} skipped", progress["stage"].as_str().unwrap_or("?"))
}

/// Asks before a rollout to every one of these.
pub(super) fn confirm_rollout(whom: &str) -> anyhow::Result<()> {
    confirm(
        &format!("Upgrade every {whom} now? Awake instances are restarted."),
        &format!("a rollout restarts the instances of every {whom}"),
    )
}

fn summary(progress: &Value) -> String {
    let mut lines = vec![format!(
        "rollout of {} to {}: {}; {} upgraded, {} failed, {} skipped of {}",
        progress["template"].as_str().unwrap_or("?"),
        short(progress["hash"].as_str().unwrap_or("?")),
        progress["stage"].as_str().unwrap_or("?"),
        progress["upgraded"],
        progress["failed"],
        progress["skipped"],
        progress["total"],
    )];
    for one in progress["exceptions"].as_array().into_iter().flatten() {
        let reason = one["reason"].as_str().unwrap_or("?").replace('\n', " | ");
        lines.push(format!("  {}: {reason}", one["tenant"].as_str().unwrap_or("?")));
    }
    lines.join("\n")
}
