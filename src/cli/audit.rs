//! `pocketfleet audit …`: taking the audit log elsewhere, and checking that nothing is missing in it.

use std::io;
use std::io::ErrorKind;
use std::io::Write;
use std::process::ExitCode;

use clap::Subcommand;

use crate::cli::client::Control;
use crate::cli::output::Output;

/// Entries asked for at once.
const PAGE: usize = 1_000;

/// What to do with the audit log.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Check every entry: that none was changed, removed or put in between, and that the end is there. Exits 1 when
    /// something is wrong.
    Verify,
    /// Print every entry as a line of JSON, oldest first.
    Export {
        /// Only entries after this number.
        #[arg(long, default_value_t = 0)]
        after: u64,
    },
}

/// Runs the command against the running server.
pub async fn run(command: Command, control: &Control, output: Output) -> anyhow::Result<ExitCode> {
    match command {
        Command::Verify => {
            let verdict = control.call("GET", "/audit/verify", None).await?;
            let is_intact = verdict["intact"] == true;
            let text = if is_intact {
                format!("{} entries, intact; the last hash is {}", verdict["entries"], verdict["hash"])
            } else {
                let reason = verdict["reason"].as_str().unwrap_or("?");
                format!(
                    "broken at entry {}: {reason}; {} entries before it are intact",
                    verdict["broken_at"], verdict["entries"]
                )
            };
            output.done(&verdict, &text)?;
            Ok(if is_intact { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        Command::Export { after } => export(after, control).await,
    }
}

async fn export(mut after: u64, control: &Control) -> anyhow::Result<ExitCode> {
    loop {
        let page = control.call("GET", &format!("/audit?after={after}&limit={PAGE}"), None).await?;
        for entry in page["items"].as_array().into_iter().flatten() {
            match writeln!(io::stdout(), "{entry}") {
                // A reader that has gone (`| head`) has seen enough.
                Err(error) if error.kind() == ErrorKind::BrokenPipe => return Ok(ExitCode::SUCCESS),
                written => written?,
            }
        }
        match page["next"].as_u64() {
            Some(next) => after = next,
            None => return Ok(ExitCode::SUCCESS),
        }
    }
}
