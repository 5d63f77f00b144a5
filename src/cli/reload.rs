//! `pocketfleet reload`: asks for it, waits for the outcome, and says it.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::bail;
use serde_json::Value;
use serde_json::json;
use tokio::time::Instant;

use crate::cli::client::Control;
use crate::cli::output;
use crate::cli::output::Output;

/// How long the next run may take to answer: requests finish first.
const PATIENCE: Duration = Duration::from_mins(5);
/// The pause between two looks.
const LOOK: Duration = Duration::from_millis(50);

/// Reloads the running server.
pub async fn run(control: &Control, output: Output) -> anyhow::Result<ExitCode> {
    let begun = Instant::now();
    let before = control.call("POST", "/reload", None).await?;
    let next = before["generation"].as_u64().unwrap_or_default() + 1;
    let status = loop {
        // Between the two runs nobody answers.
        if let Ok(status) = control.call("GET", "/status", None).await
            && status["reload"]["number"].as_u64().is_some_and(|number| number >= next)
        {
            break status;
        }
        if !control.is_held() {
            bail!("pocketfleet has ended meanwhile; its log says why");
        }
        if begun.elapsed() > PATIENCE {
            bail!("the next run did not answer within {PATIENCE:?}; see the log and `pocketfleet status`");
        }
        tokio::time::sleep(LOOK).await;
    };
    if let Some(reason) = status["reload"]["refused"].as_str() {
        bail!("the new program did not start, and the old one serves again: {reason}");
    }
    let took = begun.elapsed();
    let awake = status["fleet"]["states"]["awake"].as_u64().unwrap_or_default();
    let version = status["version"].as_str().unwrap_or("?");
    let text = format!(
        "reloaded in {:.1} s: pocketfleet {version}, pid {}, {awake} instances awake, up {}",
        took.as_secs_f64(),
        status["pid"],
        output::age(status["uptime_seconds"].as_u64().unwrap_or_default())
    );
    let told: Value = json!({
        "generation": status["reload"]["number"],
        "version": version,
        "pid": status["pid"],
        "duration_ms": u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
    });
    output.done(&told, &text)
}
