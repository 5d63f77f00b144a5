//! The `PocketBase` binary: found and checked as the server itself does it.

use crate::cli::doctor::Finding;
use crate::cli::doctor::Inputs;
use crate::supervisor::binary;
use crate::supervisor::binary::Error;

const CHECK: &str = "PocketBase";

/// Looks at the version and the hash of the binary that the server would use.
pub async fn check(inputs: &Inputs) -> Vec<Finding> {
    match examine(inputs).await {
        Ok(findings) => findings,
        Err(error) => {
            let advice = "run scripts/fetch-pocketbase, or name a binary of the right version with --pocketbase";
            vec![Finding::fail(CHECK, error.to_string(), advice)]
        }
    }
}

/// Whether a server could be started with it.
pub async fn usable(inputs: &Inputs) -> Result<(), Error> {
    examine(inputs).await.map(drop)
}

async fn examine(inputs: &Inputs) -> Result<Vec<Finding>, Error> {
    let unreadable = |source| Error::Unreadable { path: inputs.binary.clone().into(), source };
    // The data directory need not exist yet, so the version is asked for in a folder that goes again.
    let scratch = tempfile::tempdir().map_err(unreadable)?;
    let named = (inputs.binary.as_str(), inputs.version.as_str(), inputs.sha256.as_str());
    let found = binary::verify_all(named, &inputs.binaries, &inputs.search_path, scratch.path()).await?;
    let mut findings = Vec::new();
    for binary in found.all() {
        findings.push(Finding::ok(CHECK, format!("{} at {}", binary.version, binary.path.display())));
        let is_pinned = !inputs.sha256.is_empty() && binary.version == inputs.version;
        let pinned = if is_pinned { ", as pinned" } else { " (any is accepted)" };
        findings.push(Finding::ok("PocketBase hash", format!("{}{pinned}", binary.sha256)));
    }
    Ok(findings)
}
