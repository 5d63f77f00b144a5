//! A snapshot for its owner: a plain `PocketBase` directory as a tar archive, made while it is sent.
//!
//! The database is changed before it leaves ([`copy::hand_over`]): no superuser of ours, new secrets everywhere, so that
//! nothing in the archive is worth anything to whoever finds it, here or elsewhere. Memory holds a few chunks.

use std::io;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;

use super::Backups;
use super::Error;
use super::SnapshotId;
use super::manifest::Item;
use super::manifest::Manifest;
use super::repository::Repository;
use super::take::blocking;
use crate::ids::TenantId;
use crate::pocketbase::copy;
use crate::vault::BackupKey;

/// Chunks that wait for a reader.
const WAITING: usize = 2;
/// How long a reader may take for one.
const PATIENCE: Duration = Duration::from_mins(2);
/// The unit of an archive.
const BLOCK: usize = 512;
/// What is read of a file at once.
const PIECE: usize = 256 << 10;
/// Where everything is in the archive.
const ROOT: &str = "pb_data";

/// An archive that is being made: pieces, or an error that ends it.
pub type Pieces = mpsc::Receiver<io::Result<Bytes>>;

impl Backups {
    /// Begins to make an archive of a snapshot. What is wrong with the database is found before anything is sent.
    pub async fn export(&self, tenant: &TenantId, id: &SnapshotId) -> Result<(Manifest, Pieces), Error> {
        if *tenant == super::control() {
            return Err(Error::NotFound);
        }
        let repository = self.repository()?.clone();
        let (manifest, key) = repository.manifest(tenant, id).await?;
        let items = repository.index(&manifest, &key).await?;
        let scratch = self.inner.supervisor.scratch().map_err(Error::io("make a scratch folder"))?;
        let database = scratch.path().join("data.db");
        let item = items.iter().find(|item| item.path == "data.db");
        let item = item.ok_or_else(|| Error::Failed("it has no data.db".to_owned()))?;
        repository.write_item(&key, item, database.clone()).await?;
        let changed = database.clone();
        blocking(move || copy::hand_over(&changed)).await??;
        let (pieces, reader) = mpsc::channel(WAITING);
        let of = manifest.clone();
        self.inner.shutdown.spawn(async move {
            let archive = Archive { repository, key, pieces, modified: of.taken_at.unix_timestamp() };
            if let Err(error) = archive.make(&items, &database).await {
                tracing::info!(tenant.id = %of.tenant, backup.id = %of.id, %error, "a download was not finished");
                // The reader sees that it is not whole; it may have gone.
                drop(archive.pieces.send(Err(io::Error::other("the archive is not whole"))).await);
            }
            drop(scratch);
        });
        Ok((manifest, reader))
    }
}

struct Archive {
    repository: Repository,
    key: Arc<BackupKey>,
    pieces: mpsc::Sender<io::Result<Bytes>>,
    modified: i64,
}

impl Archive {
    async fn send(&self, bytes: Vec<u8>) -> Result<(), Error> {
        let sent = tokio::time::timeout(PATIENCE, self.pieces.send(Ok(Bytes::from(bytes)))).await;
        match sent {
            Ok(Ok(())) => Ok(()),
            _ => Err(Error::Failed("the reader went away".to_owned())),
        }
    }

    async fn make(&self, items: &[Item], database: &Path) -> Result<(), Error> {
        let path = database.to_owned();
        let file = blocking(move || {
            let file = std::fs::File::open(path)?;
            let bytes = file.metadata()?.len();
            Ok::<_, io::Error>((file, bytes))
        });
        let (mut file, bytes) = file.await?.map_err(Error::io("open the copy of a database"))?;
        self.send(header(&format!("{ROOT}/data.db"), bytes, self.modified)).await?;
        let mut left = bytes;
        while left > 0 {
            let piece = blocking(move || {
                let mut piece = Vec::new();
                let read = (&mut file).take((PIECE as u64).min(left)).read_to_end(&mut piece);
                read.map(|_| (file, piece))
            });
            let (after, piece) = piece.await?.map_err(Error::io("read the copy of a database"))?;
            file = after;
            if piece.is_empty() {
                return Err(Error::Failed("the copy of its database became shorter".to_owned()));
            }
            left -= piece.len() as u64;
            self.send(piece).await?;
        }
        self.send(padding(bytes)).await?;
        for item in items.iter().filter(|item| item.path.starts_with("storage/")) {
            self.send(header(&format!("{ROOT}/{}", item.path), item.content.bytes, self.modified)).await?;
            let mut reading = self.repository.reading(&self.key, &item.content);
            while let Some(chunk) = reading.next().await? {
                self.send(chunk.to_vec()).await?;
            }
            self.send(padding(item.content.bytes)).await?;
        }
        self.send(vec![0; BLOCK * 2]).await
    }
}

fn padding(bytes: u64) -> Vec<u8> {
    let over = usize::try_from(bytes % BLOCK as u64).unwrap_or_default();
    vec![0; (BLOCK - over) % BLOCK]
}

/// The header of a file; before it, where its name is too long for one, the name in an entry of its own.
fn header(name: &str, bytes: u64, modified: i64) -> Vec<u8> {
    if name.len() < 100 {
        return block(name.as_bytes(), bytes, modified, b'0').to_vec();
    }
    let mut long = block(b"././@LongLink", name.len() as u64 + 1, 0, b'L').to_vec();
    long.extend(name.as_bytes());
    long.push(0);
    long.extend(padding(name.len() as u64 + 1));
    let cut = name.as_bytes().get(..99).unwrap_or_default();
    long.extend(block(cut, bytes, modified, b'0'));
    long
}

fn block(name: &[u8], bytes: u64, modified: i64, kind: u8) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    let mut put = |at: usize, text: &[u8]| block[at..at + text.len()].copy_from_slice(text);
    put(0, name);
    put(100, b"0000600\0");
    put(108, b"0000000\0");
    put(116, b"0000000\0");
    if bytes < 1 << 33 {
        put(124, format!("{bytes:011o}\0").as_bytes());
    } else {
        // Sizes that eleven octal digits cannot hold are binary, with the first bit set.
        put(124, &[0x80, 0, 0, 0]);
        put(128, &bytes.to_be_bytes());
    }
    put(136, format!("{:011o}\0", modified.max(0)).as_bytes());
    put(148, b"        ");
    put(156, &[kind]);
    put(257, b"ustar\x0000");
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_blocks_with_a_sum_whatever_the_name_and_size() {
        for (name, bytes, blocks) in [("pb_data/data.db", 5, 1), (&*"x".repeat(150), 1 << 40, 3)] {
            let header = header(name, bytes, 1_700_000_000);
            assert_eq!(header.len(), blocks * BLOCK);
            for block in [&header[..BLOCK], &header[header.len() - BLOCK..]] {
                let mut blank = block.to_vec();
                blank[148..156].fill(b' ');
                let sum: u32 = blank.iter().map(|byte| u32::from(*byte)).sum();
                assert_eq!(&block[148..154], format!("{sum:06o}").as_bytes());
            }
        }
        assert_eq!((padding(0).len(), padding(1).len(), padding(512).len()), (0, 511, 0));
    }
}
