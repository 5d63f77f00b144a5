//! `pocketfleet vault …`: what seals users' secrets, and replacing it.

use std::io;
use std::io::BufRead;
use std::io::Read;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use clap::Subcommand;
use serde_json::Value;
use serde_json::json;

use crate::cli::client::Control;
use crate::cli::output;
use crate::cli::output::Output;
use crate::cli::progress::Progress;
use crate::cli::progress::bar;

/// How often a rotation is looked at.
const POLL: Duration = Duration::from_millis(200);
/// Most bytes read for a passphrase.
const LONGEST: u64 = 4_096;

/// What to do with the vault.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show the master keys, what they seal, and a rotation under way.
    Status,
    /// Replace the master key and seal every data key anew, while everything goes on. Can be repeated after an
    /// interruption. Backups made before can only be read with the old key.
    RotateMaster(RotateMaster),
}

/// Where the new master key comes from; without a flag the server makes one and puts it into its key file.
#[derive(Debug, Args)]
pub struct RotateMaster {
    /// Take the key from this file, which the configuration has to name afterwards.
    #[arg(long, value_name = "FILE", conflicts_with = "passphrase_stdin")]
    key_file: Option<PathBuf>,
    /// Make the key from a passphrase, the first line of standard input; the configuration has to have it afterwards.
    #[arg(long)]
    passphrase_stdin: bool,
}

/// Runs the command against the running server.
pub async fn run(command: Command, control: &Control, output: Output, is_json: bool) -> anyhow::Result<ExitCode> {
    match command {
        Command::Status => {
            let status = control.call("GET", "/vault", None).await?;
            output.done(&status, &table(&status))
        }
        Command::RotateMaster(wanted) => rotate(wanted, control, output, is_json).await,
    }
}

async fn rotate(wanted: RotateMaster, control: &Control, output: Output, is_json: bool) -> anyhow::Result<ExitCode> {
    let from = match wanted.key_file {
        Some(path) => {
            json!({ "key_file": std::path::absolute(&path).with_context(|| path.display().to_string())? })
        }
        None if wanted.passphrase_stdin => json!({ "passphrase": read_line(&mut io::stdin().lock())? }),
        None => json!("generated"),
    };
    let before = control.call("GET", "/vault", None).await?;
    // One that is under way, perhaps begun before a restart, is watched instead.
    if before["rotation"]["phase"] != "rewrapping" {
        control.call("POST", "/vault/rotate", Some(&json!({ "from": from }))).await?;
    }
    let mut progress = Progress::new(is_json);
    let status = loop {
        let status = control.call("GET", "/vault", None).await?;
        let count = |name: &str| status["rotation"][name].as_u64().unwrap_or_default();
        progress.show(format!("{} data keys", bar(count("done"), count("total"))));
        if status["rotation"]["phase"] != "rewrapping" {
            break status;
        }
        tokio::time::sleep(POLL).await;
    };
    progress.end();
    let phase = status["rotation"]["phase"].as_str().unwrap_or("?");
    let text = match phase {
        "settled" => "the master key was replaced, the old one is out of use; copy the new one to where you keep it",
        "awaits_configuration" => {
            "every data key is sealed by the new master key; put that into the configuration now. The next start with it \
             forgets the old one; until then either opens the vault"
        }
        "interrupted" => "the rotation was interrupted, the next start goes on; see the log",
        _ => "some data keys cannot be opened, so the old master key is kept; see the log",
    };
    output.done(&status, text)?;
    Ok(if matches!(phase, "blocked" | "interrupted") { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn table(status: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    let rows: Vec<[String; 5]> = status["keys"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|key| {
            let since = text(&key["created_at"]);
            let since = since.get(..10).unwrap_or("-").to_owned();
            [text(&key["id"]), text(&key["state"]), text(&key["source"]), key["tenants"].to_string(), since]
        })
        .collect();
    format!(
        "{}\nsecrets: {}; this start's key: {} {}; rotation: {}",
        output::table(["MASTER KEY", "STATE", "SOURCE", "TENANTS", "SINCE"], &rows),
        status["secrets"],
        text(&status["source"]),
        status["file"].as_str().unwrap_or_default(),
        text(&status["rotation"]["phase"]),
    )
}

fn read_line(from: &mut impl BufRead) -> anyhow::Result<String> {
    let mut line = String::new();
    from.take(LONGEST).read_line(&mut line).context("read the passphrase from standard input")?;
    Ok(line.trim_end_matches(['\r', '\n']).to_owned())
}
