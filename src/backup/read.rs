//! Reading snapshots back: every byte is checked on the way, and a directory that comes out is tried.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use sha2::Digest;
use sha2::Sha256;
use zeroize::Zeroizing;

use super::Error;
use super::manifest;
use super::manifest::Content;
use super::manifest::Item;
use super::manifest::Manifest;
use super::manifest::SnapshotId;
use super::repository::Repository;
use super::take::blocking;
use super::take::hex;
use crate::ids::TenantId;
use crate::pocketbase::copy;
use crate::store::sqlite;
use crate::supervisor::Supervisor;
use crate::vault::BackupKey;

/// Longest list of files that is read, in bytes.
const LONGEST_INDEX: u64 = 512 << 20;
/// How long a restored copy may take to answer.
const PATIENCE: Duration = Duration::from_mins(1);

/// What a snapshot passed.
#[derive(Debug, Clone, Serialize)]
pub struct Verified {
    /// Which.
    pub id: SnapshotId,
    /// Whose.
    pub tenant: TenantId,
    /// Its files, each with the checksum that was written down.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Whether a `PocketBase` served it and its superuser was answered.
    pub booted: bool,
}

/// A file that is being read, chunk by chunk.
pub(super) struct Reading<'a> {
    repository: &'a Repository,
    key: &'a Arc<BackupKey>,
    content: &'a Content,
    at: usize,
    hash: Option<Sha256>,
    bytes: u64,
}

impl Reading<'_> {
    /// The next chunk. None at the end, or an error when the file is not what it was.
    pub(super) async fn next(&mut self) -> Result<Option<Zeroizing<Vec<u8>>>, Error> {
        let damaged = || Error::Damaged("a file is not what it was".to_owned());
        let mut hash = self.hash.take().ok_or_else(damaged)?;
        let Some(name) = self.content.chunks.get(self.at) else {
            let is_whole = self.bytes == self.content.bytes && hex(&hash.finalize()) == self.content.sha256;
            return if is_whole { Ok(None) } else { Err(damaged()) };
        };
        let chunk = self.repository.chunk(self.key, name).await?;
        self.at += 1;
        self.bytes += chunk.len() as u64;
        if self.bytes > self.content.bytes {
            return Err(damaged());
        }
        let work = move || {
            hash.update(&*chunk);
            (hash, chunk)
        };
        let (hash, chunk) = blocking(work).await?;
        self.hash = Some(hash);
        Ok(Some(chunk))
    }
}

impl Repository {
    /// The list of a snapshot's files.
    pub(super) async fn index(&self, manifest: &Manifest, key: &Arc<BackupKey>) -> Result<Vec<Item>, Error> {
        if manifest.index.bytes > LONGEST_INDEX {
            return Err(Error::Damaged("its list of files is too long".to_owned()));
        }
        let mut lines = Vec::new();
        for name in &manifest.index.chunks {
            lines.extend_from_slice(&self.chunk(key, name).await?);
            if lines.len() as u64 > manifest.index.bytes {
                break;
            }
        }
        let expected = manifest.index.clone();
        let work = move || {
            let is_whole = lines.len() as u64 == expected.bytes && hex(&Sha256::digest(&lines)) == expected.sha256;
            if is_whole { manifest::decode(&lines) } else { None }
        };
        blocking(work).await?.ok_or_else(|| Error::Damaged("its list of files was changed".to_owned()))
    }

    /// Begins to read a file.
    pub(super) fn reading<'a>(&'a self, key: &'a Arc<BackupKey>, content: &'a Content) -> Reading<'a> {
        Reading { repository: self, key, content, at: 0, hash: Some(Sha256::new()), bytes: 0 }
    }

    /// Writes a snapshot's files below the folder `to`, which is ours alone and exists. Synced when it returns.
    pub(super) async fn write_out(
        &self,
        manifest: &Manifest,
        key: &Arc<BackupKey>,
        to: &Path,
    ) -> Result<Vec<Item>, Error> {
        let items = self.index(manifest, key).await?;
        for item in &items {
            self.write_item(key, item, to.join(&item.path)).await?;
        }
        let root = to.to_owned();
        blocking(move || sync(&root)).await?.map_err(Error::io("sync the restored files"))?;
        Ok(items)
    }

    /// Writes one file, which must not exist, and the folders above it.
    pub(super) async fn write_item(&self, key: &Arc<BackupKey>, item: &Item, target: PathBuf) -> Result<(), Error> {
        let work = move || -> std::io::Result<File> {
            if let Some(parent) = target.parent() {
                std::fs::DirBuilder::new().recursive(true).mode(0o700).create(parent)?;
            }
            File::options().write(true).create_new(true).mode(0o600).open(&target)
        };
        let mut file = blocking(work).await?.map_err(Error::io("write a restored file"))?;
        let mut reading = self.reading(key, &item.content);
        while let Some(chunk) = reading.next().await? {
            let work = move || file.write_all(&chunk).map(|()| file);
            file = blocking(work).await?.map_err(Error::io("write a restored file"))?;
        }
        Ok(())
    }

    /// Reads a snapshot back into a scratch folder and tries it: every checksum, the databases' pages, indexes and
    /// references, and a `PocketBase` that answers its superuser. The folder holds the directory afterwards.
    pub(super) async fn try_out(
        &self,
        tenant: &TenantId,
        id: &SnapshotId,
        data: &Path,
        prover: Option<&Supervisor>,
        scratch: &Path,
    ) -> Result<(Manifest, Verified), Error> {
        let (manifest, key) = self.manifest(tenant, id).await?;
        let items = self.write_out(&manifest, &key, data).await?;
        let is_control = *tenant == super::control();
        let wanted = if is_control { "control.db" } else { "data.db" };
        if !items.iter().any(|item| item.path == wanted) {
            return Err(Error::Failed(format!("it has no {wanted}")));
        }
        for name in ["data.db", "auxiliary.db", "control.db"] {
            let path = data.join(name);
            if !path.exists() {
                continue;
            }
            let failed = |text: String| Error::Failed(text);
            if is_control {
                blocking(move || sqlite::check(&path)).await?.map_err(|error| failed(error.to_string()))?;
            } else {
                blocking(move || copy::check(&path)).await?.map_err(|error| failed(error.to_string()))?;
            }
        }
        let mut booted = false;
        if let Some(prover) = prover.filter(|_| !is_control) {
            let outcome = prover.prove(tenant, &manifest.pocketbase, data, scratch, PATIENCE).await;
            outcome.map_err(|error| Error::Failed(error.to_string()))?;
            booted = true;
        }
        let verified = Verified {
            id: manifest.id.clone(),
            tenant: manifest.tenant.clone(),
            files: manifest.files,
            bytes: manifest.bytes,
            booted,
        };
        Ok((manifest, verified))
    }
}

/// Syncs every file and folder below `root`, and `root`.
fn sync(root: &Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(root)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() { sync(&entry.path())? } else { File::open(entry.path())?.sync_all()? }
    }
    File::open(root)?.sync_all()
}
