//! Finding the `PocketBase` binary and making sure that it is the one we mean.

use std::io::Read;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;

use sha2::Digest;
use sha2::Sha256;

use crate::supervisor::config::Binaries;
use crate::supervisor::config::Binary;
use crate::supervisor::oneshot;
use crate::supervisor::template::STAGING_PREFIXES;

/// Why there is no usable binary. Every message says what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nowhere to be found.
    #[error(
        "no PocketBase binary: not at {0}; run scripts/fetch-pocketbase, or name one with --pocketbase or pocketbase.binary"
    )]
    Missing(String),
    /// It is there and cannot be read.
    #[error("read the PocketBase binary {path}: {source}; check its permissions")]
    Unreadable {
        /// Where.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is there and does not run.
    #[error("run {path} --version: {reason}; is it executable and built for this machine?")]
    NotRunnable {
        /// Where.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// Another version.
    #[error(
        "{path} is PocketBase {found}, not {wanted}; fetch that one with scripts/fetch-pocketbase, or set pocketbase.version"
    )]
    WrongVersion {
        /// Where.
        path: PathBuf,
        /// What it says.
        found: String,
        /// What the configuration wants.
        wanted: String,
    },
    /// Another file than the pinned one.
    #[error(
        "{path} has SHA-256 {found}, not {wanted} (pocketbase.sha256): it is damaged or not the file that was pinned"
    )]
    WrongHash {
        /// Where.
        path: PathBuf,
        /// What it has.
        found: String,
        /// What the configuration wants.
        wanted: String,
    },
}

/// Finds the binary: the one that is named, else the fetched one, else the first of that name on `PATH`.
pub fn find(named: &str, version: &str, search_path: &str) -> Result<PathBuf, Error> {
    if !named.is_empty() {
        let path = PathBuf::from(named);
        return if path.is_file() { absolute(path) } else { Err(Error::Missing(named.to_owned())) };
    }
    let fetched = Path::new(".pocketbase").join(version).join("pocketbase");
    let folders =
        std::iter::once(fetched).chain(search_path.split(':').map(|folder| Path::new(folder).join("pocketbase")));
    match folders.into_iter().find(|path| path.is_file()) {
        Some(path) => absolute(path),
        None => Err(Error::Missing(format!(".pocketbase/{version}/pocketbase, nor on PATH"))),
    }
}

fn absolute(path: PathBuf) -> Result<PathBuf, Error> {
    std::path::absolute(&path).map_err(|source| Error::Unreadable { path, source })
}

/// Every binary of the configuration, each asked for its version once: the one of `binary` and `version`, and the others.
pub async fn verify_all(
    named: (&str, &str, &str),
    others: &[String],
    search_path: &str,
    scratch: &Path,
) -> Result<Binaries, Error> {
    let (binary, version, sha256) = named;
    let path = find(binary, version, search_path)?;
    let first = verify(&path, version, sha256, scratch).await?;
    let mut found = Vec::new();
    for other in others {
        found.push(verify(&find(other, "", search_path)?, "", "", scratch).await?);
    }
    Ok(Binaries::new(first, found))
}

/// Checks version (any where none is given) and, when pinned, hash; `scratch` is a folder for a moment's file. The hash becomes part of every process's identity.
pub async fn verify(path: &Path, version: &str, sha256: &str, scratch: &Path) -> Result<Binary, Error> {
    let unreadable = |source| Error::Unreadable { path: path.to_owned(), source };
    let found = hash(path).map_err(unreadable)?;
    if !sha256.is_empty() && !found.eq_ignore_ascii_case(sha256) {
        return Err(Error::WrongHash { path: path.to_owned(), found, wanted: sha256.to_owned() });
    }
    let said =
        ask_version(path, scratch).await.map_err(|reason| Error::NotRunnable { path: path.to_owned(), reason })?;
    let said = said.trim().rsplit(' ').next().unwrap_or_default().to_owned();
    let is_version = said.split('.').count() == 3 && said.split('.').all(|part| part.parse::<u32>().is_ok());
    if !is_version {
        let reason = format!("it says {said:?}, which is no version");
        return Err(Error::NotRunnable { path: path.to_owned(), reason });
    }
    if !version.is_empty() && said != version {
        return Err(Error::WrongVersion { path: path.to_owned(), found: said, wanted: version.to_owned() });
    }
    Ok(Binary { path: path.to_owned(), sha256: found, version: said })
}

async fn ask_version(path: &Path, scratch: &Path) -> Result<String, String> {
    let folder =
        tempfile::Builder::new().prefix(STAGING_PREFIXES[0]).tempdir_in(scratch).map_err(|error| error.to_string())?;
    let output = folder.path().join("version");
    let args = ["--version".as_ref()];
    let run = oneshot::run_to_completion(path, &args, folder.path(), &output, Duration::from_secs(20));
    let status = run.await.map_err(|error| match std::error::Error::source(&error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    })?;
    if !status.success() {
        return Err(status.to_string());
    }
    std::fs::read_to_string(&output).map_err(|error| error.to_string())
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn hash(path: &Path) -> std::io::Result<String> {
    let mut file = std::fs::File::open(path)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hex(&hasher.finalize())),
            n => hasher.update(&buffer[..n]),
        }
    }
}
