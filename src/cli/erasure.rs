//! `pocketfleet erasure …`: the signed records of what was erased.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use anyhow::bail;
use clap::Subcommand;
use serde_json::Value;

use crate::cli::client::Control;
use crate::cli::output;
use crate::cli::output::Output;

/// Most bytes of a record.
const LARGEST: u64 = 1 << 20;

/// What to do with records.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// List what was erased here.
    List,
    /// Check a record: whether it was signed here, and is as it was. Exits 1 when not.
    Verify {
        /// A file with one record, as `tenants delete --now --json` and the API give it out.
        file: PathBuf,
    },
}

/// Runs the command against the running server.
pub async fn run(command: Command, control: &Control, output: Output) -> anyhow::Result<ExitCode> {
    match command {
        Command::List => {
            let found = control.call("GET", "/erasures", None).await?;
            output.done(&found, &listing(&found))
        }
        Command::Verify { file } => {
            if std::fs::metadata(&file).with_context(|| format!("read {}", file.display()))?.len() > LARGEST {
                bail!("{} is no record of an erasure: it is too large", file.display());
            }
            let text = std::fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
            let record: Value =
                serde_json::from_str(&text).with_context(|| format!("{} is not JSON", file.display()))?;
            let verdict = control.call("POST", "/erasures/verify", Some(&record)).await?;
            let (is_valid, words) = match verdict["verdict"].as_str() {
                Some("valid") => (true, "valid: signed by this server, and as it was"),
                Some("foreign_key") => (false, "not ours: it was signed by a key that never signed here"),
                _ => (false, "changed: the signature does not fit"),
            };
            output.done(&verdict, words)?;
            Ok(if is_valid { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
    }
}

fn listing(found: &Value) -> String {
    let items: Vec<&Value> = found["items"].as_array().into_iter().flatten().collect();
    if items.is_empty() {
        return "nothing was erased".to_owned();
    }
    let keys = ["tenant", "kind", "deleted_at", "deleted_by", "erased_at", "erased_by"];
    let row = |item: &&Value| keys.map(|key| item["erasure"][key].as_str().unwrap_or("-").to_owned());
    let rows: Vec<_> = items.iter().map(row).collect();
    output::table(["TENANT", "KIND", "DELETED", "BY", "ERASED", "BY"], &rows)
}
