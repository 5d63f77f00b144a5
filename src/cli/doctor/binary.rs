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
    let path = binary::find(&inputs.binary, &inputs.version, &inputs.search_path)?;
    let unreadable = |source| Error::Unreadable { path: path.clone(), source };
    // The data directory need not exist yet, so the version is asked for in a folder that goes again.
    let scratch = tempfile::tempdir().map_err(unreadable)?;
    let found = binary::verify(&path, &inputs.version, &inputs.sha256, scratch.path()).await?;
    let pinned = if inputs.sha256.is_empty() { " (any is accepted)" } else { ", as pinned" };
    Ok(vec![
        Finding::ok(CHECK, format!("{} at {}", found.version, path.display())),
        Finding::ok("PocketBase hash", format!("{}{pinned}", found.sha256)),
    ])
}
