//! The command line. `serve` runs the server; everything else talks to the running one through its control socket,
//! or looks at the machine (`doctor`).
//!
//! No secret is taken from the arguments, which every user of the machine can read. Exit codes: 0 done, 1 failed,
//! 2 wrong usage.

pub mod admin;
pub mod api_keys;
pub mod audit;
pub mod backup;
pub mod client;
pub mod doctor;
pub mod erasure;
pub mod jobs;
pub mod output;
pub mod pocketbase;
mod progress;
pub mod reload;
pub mod templates;
pub mod tenants;
pub mod vault;
pub mod workspaces;

use std::ffi::OsString;
use std::future::Future;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use clap::Parser;
use clap::Subcommand;
use serde_json::json;

use crate::cli::client::Control;
use crate::cli::output::Output;
use crate::config;
use crate::config::Config;
use crate::config::Flags;

/// One private `PocketBase` for every user, behind one URL.
#[derive(Debug, Parser)]
#[command(name = "pocketfleet", version, about, disable_help_subcommand = true)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// Flags that every command takes.
#[derive(Debug, Args)]
struct Global {
    /// Data directory; everything pocketfleet keeps is in it.
    #[arg(long, global = true, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Configuration file, layered over the built-in defaults.
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print JSON.
    #[arg(long, global = true)]
    json: bool,
}

/// Flags that override the configuration of a server.
#[derive(Debug, Args)]
struct Overrides {
    /// Address to listen on, such as 127.0.0.1:3000.
    #[arg(long, value_name = "ADDR")]
    listen: Option<String>,
    /// The `PocketBase` binary.
    #[arg(long, value_name = "PATH")]
    pocketbase: Option<PathBuf>,
}

/// What to check of a configuration.
#[derive(Debug, Args)]
struct CheckConfig {
    #[command(flatten)]
    overrides: Overrides,
    /// Also look for the `PocketBase` binaries and ask each for its version, as a start does.
    #[arg(long)]
    with_pocketbase: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the server until Ctrl-C or SIGTERM.
    Serve(Overrides),
    /// List and operate the instances of the running server.
    #[command(subcommand)]
    Tenants(tenants::Command),
    /// List workspaces and their members.
    #[command(subcommand)]
    Workspaces(workspaces::Command),
    /// Check templates, see who is at which version, roll a change out.
    #[command(subcommand)]
    Template(templates::Command),
    /// Versions of `PocketBase`: list them, keep tenants at one, roll one out.
    #[command(subcommand)]
    Pocketbase(pocketbase::Command),
    /// Show the running server and its fleet in numbers.
    Status,
    /// The vault of users' secrets: its master keys, and replacing them.
    #[command(subcommand)]
    Vault(vault::Command),
    /// Make, try and restore backups.
    #[command(subcommand)]
    Backup(backup::Command),
    /// The audit log: checking and exporting it.
    #[command(subcommand)]
    Audit(audit::Command),
    /// The signed records of what was erased.
    #[command(subcommand)]
    Erasure(erasure::Command),
    /// List and operate jobs.
    #[command(subcommand)]
    Jobs(jobs::Command),
    /// Make, list and revoke API keys.
    #[command(subcommand)]
    ApiKeys(api_keys::Command),
    /// Manage administrators.
    #[command(subcommand)]
    Admin(admin::Command),
    /// Check this machine and say what to do about each finding; exits 1 when something must be fixed.
    Doctor(Overrides),
    /// Have the running server become the program that stands in its place now, with its sockets and instances kept;
    /// exits 1 when it stays as it is.
    Reload,
    /// Ask the running server whether it is ready; exits 1 when it is not.
    Healthcheck,
    /// Print the `OpenAPI` document of the HTTP API.
    Openapi,
    /// Print the `AsyncAPI` document of the sockets.
    Asyncapi,
    /// Read the configuration and say whether it is valid.
    CheckConfig(CheckConfig),
}

/// Runs the command line and says how it went.
pub fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version come this way as well; a closed terminal is nobody to complain to.
            drop(error.print());
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    let output = Output::new(if cli.global.json { output::Form::Json } else { output::Form::Human });
    match dispatch(cli, output) {
        Ok(code) => code,
        Err(error) => output.failure(&error),
    }
}

#[expect(clippy::too_many_lines, reason = "one arm for each command")]
fn dispatch(cli: Cli, output: Output) -> anyhow::Result<ExitCode> {
    let Global { data, config, .. } = cli.global;
    let flags = |overrides: Option<Overrides>| {
        let (listen, pocketbase) = overrides.map_or((None, None), |found| (found.listen, found.pocketbase));
        Flags { config: config.clone(), data: data.clone(), listen, pocketbase }
    };
    match cli.command {
        Command::Serve(overrides) => {
            let flags = flags(Some(overrides));
            let config =
                Config::load(&flags).map_err(|error| crate::app::cannot_start(&config::origin(&flags), error))?;
            crate::app::serve(config)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Tenants(command) => {
            let control = Control::of(&Config::load(&flags(None))?.storage.path);
            on_runtime(tenants::run(command, &control, output))
        }
        Command::Workspaces(command) => {
            let control = Control::of(&Config::load(&flags(None))?.storage.path);
            on_runtime(workspaces::run(command, &control, output))
        }
        Command::Template(command) => {
            let config = Config::load(&flags(None))?;
            on_runtime(templates::run(command, &config, output, cli.global.json))
        }
        Command::Erasure(command) => {
            let control = Control::of(&Config::load(&flags(None))?.storage.path);
            on_runtime(erasure::run(command, &control, output))
        }
        Command::Pocketbase(command) => {
            let control = Control::of(&Config::load(&flags(None))?.storage.path);
            on_runtime(pocketbase::run(command, &control, output, cli.global.json))
        }
        Command::Jobs(command) => {
            let control = Control::of(&Config::load(&flags(None))?.storage.path);
            on_runtime(jobs::run(command, &control, output))
        }
        Command::ApiKeys(command) => {
            let control = Control::of(&Config::load(&flags(None))?.storage.path);
            on_runtime(api_keys::run(command, &control, output))
        }
        Command::Admin(command) => {
            let control = Control::of(&Config::load(&flags(None))?.storage.path);
            on_runtime(admin::run(command, &control, output))
        }
        Command::Vault(command) => {
            let control = Control::of(&Config::load(&flags(None))?.storage.path);
            on_runtime(vault::run(command, &control, output, cli.global.json))
        }
        Command::Backup(command) => {
            let config = Config::load(&flags(None))?;
            on_runtime(backup::run(command, &config, output, cli.global.json))
        }
        Command::Audit(command) => {
            let control = Control::of(&Config::load(&flags(None))?.storage.path);
            on_runtime(audit::run(command, &control, output))
        }
        Command::Status => {
            let control = Control::of(&Config::load(&flags(None))?.storage.path);
            on_runtime(status(&control, output))
        }
        Command::Reload => {
            let control = Control::of(&Config::load(&flags(None))?.storage.path);
            on_runtime(reload::run(&control, output))
        }
        Command::Openapi => {
            let document = crate::api::router::document();
            output.done(&serde_json::to_value(&document)?, &document.to_pretty_json()?)
        }
        Command::Asyncapi => {
            let document = crate::events::asyncapi::document();
            output.done(&document, &serde_json::to_string_pretty(&document)?)
        }
        Command::Healthcheck => {
            let control = Control::of(&Config::load(&flags(None))?.storage.path);
            on_runtime(healthcheck(&control, output))
        }
        Command::Doctor(overrides) => {
            let inputs = doctor::Inputs::of(&Config::load(&flags(Some(overrides)))?);
            on_runtime(doctor::run(&inputs, output))
        }
        Command::CheckConfig(wanted) => {
            let config = Config::load(&flags(Some(wanted.overrides)))?;
            if wanted.with_pocketbase {
                on_runtime(async {
                    doctor::binary::usable(&doctor::Inputs::of(&config)).await?;
                    Ok(ExitCode::SUCCESS)
                })?;
            }
            let data = config.storage.path.display().to_string();
            output.done(&json!({ "valid": true, "data": data }), &format!("the configuration is valid; data in {data}"))
        }
    }
}

/// Runs a command that waits for the control socket.
fn on_runtime(command: impl Future<Output = anyhow::Result<ExitCode>>) -> anyhow::Result<ExitCode> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(command)
}

async fn status(control: &Control, output: Output) -> anyhow::Result<ExitCode> {
    let status = control.call("GET", "/status", None).await?;
    let number = |pointer: &str| status.pointer(pointer).and_then(serde_json::Value::as_u64).unwrap_or_default();
    let mut rows = vec![
        ["version".to_owned(), status["version"].as_str().unwrap_or("?").to_owned()],
        ["listens on".to_owned(), status["listen"].as_str().unwrap_or("?").to_owned()],
        ["pid".to_owned(), number("/pid").to_string()],
        ["up".to_owned(), output::age(number("/uptime_seconds"))],
        ["sessions".to_owned(), number("/sessions").to_string()],
        ["tenants".to_owned(), number("/fleet/registered").to_string()],
    ];
    for (state, count) in status["fleet"]["states"].as_object().into_iter().flatten() {
        rows.push([format!("  {state}"), count.to_string()]);
    }
    // Nobody has those yet.
    for (state, count) in status["fleet"]["spares"].as_object().into_iter().flatten() {
        rows.push([format!("spares, {state}"), count.to_string()]);
    }
    for (name, pointer) in [("waiting", "/fleet/waiting"), ("starts", "/fleet/starts"), ("failures", "/fleet/restarts")]
    {
        rows.push([name.to_owned(), number(pointer).to_string()]);
    }
    output.done(&status, &output::table(["WHAT", "VALUE"], &rows))
}

async fn healthcheck(control: &Control, output: Output) -> anyhow::Result<ExitCode> {
    let (status, readiness) = control.ask("GET", "/ready", None).await?;
    if status == 200 {
        return output.done(&readiness, "ready");
    }
    let reasons: Vec<_> =
        readiness["reasons"].as_array().into_iter().flatten().filter_map(|text| text.as_str()).collect();
    output.done(&readiness, &format!("not ready: {}", reasons.join("; ")))?;
    Ok(ExitCode::FAILURE)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_arguments_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn global_flags_are_taken_after_the_command_too() {
        let cli = Cli::try_parse_from(["pocketfleet", "tenants", "list", "--json", "--data", "/d"]).unwrap();
        assert!(cli.global.json);
        assert_eq!(cli.global.data, Some(PathBuf::from("/d")));
    }

    #[test]
    fn a_password_is_not_an_argument() {
        let args = ["pocketfleet", "admin", "create", "--email", "a@b.c", "--password", "x"];
        assert!(Cli::try_parse_from(args).is_err());
    }
}
