//! Whether the program that would take over starts: asked before anything changes.

use std::ffi::OsStr;
use std::ffi::OsString;
use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;
use std::time::Duration;

use tokio::time::Instant;

use crate::reload::Origin;
use crate::reload::VARIABLE;

/// How long each answer may take; the second one runs `PocketBase` for its version.
const PATIENCE: Duration = Duration::from_secs(40);
/// How often an end is looked for.
const POLL: Duration = Duration::from_millis(10);
/// Most characters of what it said that are passed on.
const SAID: usize = 600;

/// Asks the program for its version and whether its configuration works. An error says why it will not do.
pub(super) async fn check(origin: &Origin, scratch: &Path) -> Result<(), String> {
    let program = &origin.program;
    if !program.is_file() {
        return Err(format!("there is no program {}", program.display()));
    }
    let version = run(program, &["--version".as_ref()], scratch).await?;
    if !version.starts_with("pocketfleet ") {
        return Err(format!("{} is not pocketfleet: it says {:?}", program.display(), excerpt(&version)));
    }
    let mut arguments: Vec<&OsStr> = ["check-config", "--json", "--with-pocketbase"].map(OsStr::new).to_vec();
    arguments.extend(origin.flags.iter().map(OsString::as_os_str));
    let said = run(program, &arguments, scratch).await?;
    let said: serde_json::Value = serde_json::from_str(said.trim()).unwrap_or_default();
    match said["data"].as_str().map(Path::new) {
        Some(data) if data != origin.data => Err(format!(
            "the data directory would change from {} to {}; stop pocketfleet and start it for that",
            origin.data.display(),
            data.display()
        )),
        _ => Ok(()),
    }
}

/// Killed and reaped with this value.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        if matches!(self.0.try_wait(), Ok(None)) && self.0.kill().is_ok() {
            drop(self.0.wait());
        }
    }
}

/// What it said, if it ended well in time.
async fn run(program: &Path, arguments: &[&OsStr], scratch: &Path) -> Result<String, String> {
    let name = program.display();
    let folder = tempfile::Builder::new().prefix("reload-").tempdir_in(scratch).map_err(|error| error.to_string())?;
    let path = folder.path().join("output");
    let output = File::create(&path).map_err(|error| error.to_string())?;
    let errors = output.try_clone().map_err(|error| error.to_string())?;
    // With our environment, which is part of the configuration, and in our working directory, which paths in it mean.
    #[expect(clippy::disallowed_methods, reason = "the program itself, asked whether it starts")]
    let child = Command::new(program)
        .args(arguments)
        .env_remove(VARIABLE)
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(output)
        .stderr(errors)
        .spawn();
    let mut running = Running(child.map_err(|error| format!("{name} does not run: {error}"))?);
    let deadline = Instant::now() + PATIENCE;
    let status = loop {
        match running.0.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) if Instant::now() < deadline => tokio::time::sleep(POLL).await,
            Ok(None) => return Err(format!("{name} did not answer within {PATIENCE:?}")),
            Err(error) => return Err(format!("{name}: {error}")),
        }
    };
    let said = String::from_utf8_lossy(&std::fs::read(&path).unwrap_or_default()).into_owned();
    if status.success() { Ok(said) } else { Err(format!("{name} ended with {status}: {}", excerpt(&said))) }
}

fn excerpt(said: &str) -> String {
    let said = said.trim();
    let skipped = said.chars().count().saturating_sub(SAID);
    said.chars().skip(skipped).collect()
}
