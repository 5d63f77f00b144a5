//! The `PocketBase` binary: where it is, its version, its hash.

use std::fs::File;
use std::io;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::process::Stdio;
use std::time::Duration;
use std::time::Instant;

use sha2::Digest;
use sha2::Sha256;

use crate::cli::doctor::Finding;
use crate::cli::doctor::Inputs;

const CHECK: &str = "PocketBase";
/// How long `pocketbase --version` may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often we look whether it has ended.
const GLANCE: Duration = Duration::from_millis(10);

/// Looks at the version and the hash of the binary that the server would use.
pub fn check(inputs: &Inputs) -> Vec<Finding> {
    let Some(path) = locate(&inputs.binary, &inputs.version) else {
        let named = if inputs.binary.is_empty() { "no PocketBase found" } else { inputs.binary.as_str() };
        let advice = "run scripts/fetch-pocketbase, or name a binary with --pocketbase";
        return vec![Finding::fail(CHECK, format!("{named}: no executable file"), advice)];
    };
    vec![judge_version(&path, &inputs.version), judge_hash(&path, &inputs.sha256)]
}

fn judge_version(path: &Path, wanted: &str) -> Finding {
    let place = path.display();
    let advice = format!("run scripts/fetch-pocketbase for {wanted}, or set pocketbase.version if you mean another");
    match version_of(path) {
        Ok(found) if found == wanted => Finding::ok(CHECK, format!("{found} at {place}")),
        Ok(found) => Finding::fail(CHECK, format!("{found} at {place}, {wanted} is required"), advice),
        Err(error) => Finding::fail(CHECK, format!("{place} does not tell its version: {error}"), advice),
    }
}

fn judge_hash(path: &Path, wanted: &str) -> Finding {
    const CHECK: &str = "PocketBase hash";
    match sha256_of(path) {
        Ok(found) if wanted.is_empty() => Finding::ok(CHECK, format!("{found} (any is accepted)")),
        Ok(found) if found.eq_ignore_ascii_case(wanted) => Finding::ok(CHECK, format!("{found}, as required")),
        Ok(found) => Finding::fail(
            CHECK,
            format!("{found}, not {wanted}"),
            "the file is not the one you pinned: fetch it again, or correct pocketbase.sha256",
        ),
        Err(error) => Finding::fail(CHECK, format!("cannot read {}: {error}", path.display()), "check its permissions"),
    }
}

/// The binary named, or else the one that was fetched, or else the first on PATH.
fn locate(named: &str, version: &str) -> Option<PathBuf> {
    if named.contains('/') {
        return Some(PathBuf::from(named)).filter(|path| is_executable(path));
    }
    let name = if named.is_empty() { "pocketbase" } else { named };
    let fetched = named.is_empty().then(|| Path::new(".pocketbase").join(version).join("pocketbase"));
    let path = std::env::var_os("PATH").unwrap_or_default();
    fetched
        .into_iter()
        .chain(std::env::split_paths(&path).map(|folder| folder.join(name)))
        .find(|path| is_executable(path))
}

fn is_executable(path: &Path) -> bool {
    path.metadata().is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
}

/// What `pocketbase --version` says, without its own name before it.
fn version_of(path: &Path) -> io::Result<String> {
    #[expect(clippy::disallowed_methods, reason = "asks a program for its version and waits for its end")]
    let mut child = Command::new(path)
        .arg("--version")
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let deadline = Instant::now() + PATIENCE;
    while child.try_wait()?.is_none() {
        if Instant::now() > deadline {
            child.kill()?;
            child.wait()?;
            return Err(io::Error::new(io::ErrorKind::TimedOut, "it does not end"));
        }
        std::thread::sleep(GLANCE);
    }
    let mut text = String::new();
    if let Some(stdout) = child.stdout.take() {
        stdout.take(4096).read_to_string(&mut text)?;
    }
    let version = text.split_whitespace().last().unwrap_or_default().trim_start_matches('v');
    if version.is_empty() { Err(io::Error::other("it says nothing")) } else { Ok(version.to_owned()) }
}

fn sha256_of(path: &Path) -> io::Result<String> {
    use std::fmt::Write;
    let mut file = File::open(path)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            count => hash.update(&buffer[..count]),
        }
    }
    Ok(hash.finalize().iter().fold(String::new(), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    }))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::fs::Permissions;

    use super::*;
    use crate::cli::doctor::Level;

    fn program(folder: &Path, script: &str) -> PathBuf {
        let path = folder.join("pocketbase");
        fs::write(&path, script).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
        path
    }

    #[test]
    fn version_and_hash_are_compared() {
        let folder = tempfile::tempdir().unwrap();
        let path = program(folder.path(), "#!/bin/sh\necho pocketbase version 1.2.3\n");
        assert_eq!(judge_version(&path, "1.2.3").level, Level::Ok);
        assert_eq!(judge_version(&path, "1.2.4").level, Level::Fail);
        let hash = sha256_of(&path).unwrap();
        assert_eq!(judge_hash(&path, &hash.to_uppercase()).level, Level::Ok);
        assert_eq!(judge_hash(&path, "00").level, Level::Fail);
        assert_eq!(judge_hash(&path, "").level, Level::Ok);
    }

    #[test]
    fn a_file_that_cannot_run_is_not_found() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("pocketbase"), "").unwrap();
        assert_eq!(locate(&folder.path().join("pocketbase").display().to_string(), "1.2.3"), None);
    }
}
