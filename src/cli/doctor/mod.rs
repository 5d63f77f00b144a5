//! `pocketfleet doctor`: looks at the machine and says what would bite later, each finding with what to do.
//!
//! Every check is read-only except for binding the listen address for a moment. A check that cannot look says so as a
//! warning; it never fails the others.

pub mod binary;
pub mod isolation;
pub mod machine;
pub mod place;

use std::path::PathBuf;
use std::process::ExitCode;

use serde::Serialize;
use serde_json::json;

use crate::cli::client::Control;
use crate::cli::output;
use crate::cli::output::Output;
use crate::config::Config;
use crate::supervisor::jail;

/// What the checks need of the configuration; nothing else of it is used.
#[derive(Debug, Clone)]
pub struct Inputs {
    /// The data directory.
    pub data: PathBuf,
    /// Where the server is to listen.
    pub listen: String,
    /// The binary by name or path; empty for the usual places.
    pub binary: String,
    /// The version it must have.
    pub version: String,
    /// The SHA-256 it must have, in hex; empty for any.
    pub sha256: String,
    /// Binaries of other versions.
    pub binaries: Vec<String>,
    /// `PATH` of the environment.
    pub search_path: String,
    /// What isolation is asked for.
    pub isolation: jail::config::Config,
    /// Whether idle instances are to be frozen.
    pub freezes: bool,
}

impl Inputs {
    /// Takes them out of the configuration.
    pub fn of(config: &Config) -> Self {
        Self {
            data: config.storage.path.clone(),
            listen: config.server.listen.to_string(),
            binary: config.pocketbase.binary.clone(),
            version: config.pocketbase.version.clone(),
            sha256: config.pocketbase.sha256.clone(),
            binaries: config.pocketbase.binaries.clone(),
            search_path: config.search_path.clone(),
            isolation: config.isolation.clone(),
            freezes: !config.instances.freeze_after.is_zero(),
        }
    }
}

/// How serious a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Level {
    /// Fine.
    Ok,
    /// Works now, bites later.
    Warn,
    /// Does not work.
    Fail,
}

/// What a check found.
#[derive(Debug, Clone, Serialize)]
pub struct Finding {
    /// What was looked at.
    pub check: &'static str,
    /// How serious it is.
    pub level: Level,
    /// What was found.
    pub found: String,
    /// What to do; none when nothing has to be done.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
}

impl Finding {
    /// Nothing to do.
    pub fn ok(check: &'static str, found: impl Into<String>) -> Self {
        Self { check, level: Level::Ok, found: found.into(), advice: None }
    }

    /// Works now, bites later.
    pub fn warn(check: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { check, level: Level::Warn, found: found.into(), advice: Some(advice.into()) }
    }

    /// Does not work.
    pub fn fail(check: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { check, level: Level::Fail, found: found.into(), advice: Some(advice.into()) }
    }
}

/// Runs every check; the exit code is 1 when one fails.
pub async fn run(inputs: &Inputs, output: Output) -> anyhow::Result<ExitCode> {
    let findings = examine(inputs).await;
    let failed = findings.iter().any(|finding| finding.level == Level::Fail);
    output.done(&json!({ "ok": !failed, "findings": findings }), &report(&findings))?;
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Everything there is to find, in the order of the report.
async fn examine(inputs: &Inputs) -> Vec<Finding> {
    let running = Control::of(&inputs.data).call("GET", "/status", None).await.ok();
    let mut findings = vec![machine::inotify(), machine::open_files(), machine::tasks(), machine::clock()];
    findings.extend(inputs.freezes.then(machine::swap));
    findings.extend([place::disk(&inputs.data), place::filesystem(&inputs.data)]);
    findings.extend(binary::check(inputs).await);
    if running.is_some() {
        findings.push(place::orphans(&Control::of(&inputs.data)).await);
    }
    findings.push(isolation::check(inputs));
    findings.extend([place::port(&inputs.listen, running.as_ref()), place::socket(&inputs.data, running.as_ref())]);
    findings
}

/// The findings as a table, with the advice below each line that has one.
fn report(findings: &[Finding]) -> String {
    let row = |finding: &Finding| {
        let level = match finding.level {
            Level::Ok => "OK",
            Level::Warn => "WARN",
            Level::Fail => "FAIL",
        };
        [level.to_owned(), finding.check.to_owned(), finding.found.clone()]
    };
    let rows: Vec<_> = findings.iter().map(row).collect();
    let table = output::table(["", "CHECK", "FOUND"], &rows);
    let mut lines = table.lines();
    let mut text: Vec<String> = lines.next().map(str::to_owned).into_iter().collect();
    for (line, finding) in lines.zip(findings) {
        text.push(line.to_owned());
        text.extend(finding.advice.as_ref().map(|advice| format!("      -> {advice}")));
    }
    text.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Flags;

    #[test]
    fn advice_stands_below_its_finding() {
        let findings = [Finding::ok("clock", "2026"), Finding::fail("disk", "full", "make room")];
        assert_eq!(report(&findings), "      CHECK  FOUND\nOK    clock  2026\nFAIL  disk   full\n      -> make room");
    }

    #[tokio::test]
    async fn a_machine_without_pocketbase_fails() {
        let folder = tempfile::tempdir().unwrap();
        let inputs = Inputs {
            data: folder.path().to_owned(),
            listen: "127.0.0.1:0".to_owned(),
            binary: folder.path().join("none").display().to_string(),
            version: "0.40.6".to_owned(),
            sha256: String::new(),
            binaries: Vec::new(),
            search_path: String::new(),
            isolation: Config::load(&Flags::default()).unwrap().isolation,
            freezes: false,
        };
        let findings = examine(&inputs).await;
        let failed: Vec<_> = findings.iter().filter(|finding| finding.level == Level::Fail).collect();
        assert!(failed.iter().any(|finding| finding.check == "PocketBase" && finding.advice.is_some()), "{findings:?}");
    }
}
