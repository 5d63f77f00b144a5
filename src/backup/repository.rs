//! The store of backups: which object lies where, and that each is what it says.
//!
//! ```text
//! masters/<master key>                what is public of a master key (JSON)
//! keys/<tenant>/<key>.<master key>    a tenant's key for backups, sealed by a master key (JSON)
//! chunks/<tenant>/<ab>/<cdef…>        a piece of a file, sealed; named by a keyed hash of it
//! snapshots/<tenant>/<id>             a manifest, sealed, behind a line that names its key; written last
//! ```
//!
//! Objects are written once. Nothing is believed because of where it lies: an object opens only as what it was written
//! as, and a chunk's content has to have the chunk's name.

use std::collections::HashMap;
use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use zeroize::Zeroizing;

use super::Error;
use super::bucket;
use super::config::Config;
use super::config::Place;
use super::manifest::FORMAT;
use super::manifest::Manifest;
use super::manifest::SnapshotId;
use crate::failpoint;
use crate::ids::TenantId;
use crate::outbound;
use crate::store;
use crate::store::blobs::BlobInfo;
use crate::store::blobs::Blobs;
use crate::store::blobs::FolderBlobs;
use crate::store::vault_keys::MasterKey;
use crate::vault::BackupKey;
use crate::vault::Sealing;
use crate::vault::WrappedBackupKey;

/// Objects that are deleted before others get a turn.
const BATCH: usize = 256;

/// Keys of one tenant that were looked up already, by their names.
#[derive(Debug, Default)]
pub(super) struct Keys(HashMap<String, Arc<BackupKey>>);

/// One of a tenant's keys.
#[derive(Debug)]
pub(super) struct StoredKey {
    pub(super) key: BackupKey,
    /// The master keys under which it lies in the store.
    pub(super) sealed_by: Vec<String>,
}

/// Whether the store is written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// By this process, and no other.
    Write,
    /// Somebody else may.
    Read,
}

/// The store. Cheap to clone.
#[derive(Clone)]
pub struct Repository {
    blobs: Arc<dyn Blobs>,
    sealing: Arc<dyn Sealing>,
}

impl fmt::Debug for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Repository").field("blobs", &self.blobs).finish_non_exhaustive()
    }
}

/// What has no key: enough to find the master key that the rest needs.
pub async fn masters(blobs: &Arc<dyn Blobs>) -> Result<Vec<MasterKey>, Error> {
    let mut found: Vec<MasterKey> = Vec::new();
    for info in blobs.list("masters/").await? {
        let Some(text) = blobs.get(&info.key).await? else { continue };
        let record = serde_json::from_slice(&text).map_err(|_| Error::Damaged(info.key))?;
        found.push(record);
    }
    found.sort_by_key(|record| record.created_at);
    Ok(found)
}

/// The place of backups that a text names, with the credentials of the configuration; none when it is empty.
pub fn open_place(
    config: &Config,
    text: &str,
    outbound: &outbound::Config,
    usage: Use,
) -> Result<Option<Arc<dyn Blobs>>, Error> {
    let place = Config::place(text).map_err(|error| Error::Store(error.to_string()))?;
    Ok(match place {
        Place::Off => None,
        Place::Folder(path) if usage == Use::Read => Some(Arc::new(FolderBlobs::open_existing(&path)?)),
        Place::Folder(path) => Some(Arc::new(FolderBlobs::open(&path)?)),
        Place::Bucket { bucket, prefix } => Some(Arc::new(bucket::Bucket::open(config, outbound, &bucket, &prefix)?)),
    })
}

fn key_object(tenant: &TenantId, id: &str, kek: &str) -> String {
    format!("keys/{tenant}/{id}.{kek}")
}

fn snapshot_object(tenant: &TenantId, id: &SnapshotId) -> String {
    format!("snapshots/{tenant}/{id}")
}

fn chunk_object(tenant: &TenantId, name: &str) -> Result<String, Error> {
    let is_name = name.len() == 64 && name.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    let damaged = || Error::Damaged("it names a chunk that cannot be one".to_owned());
    let (folder, rest) = name.split_at_checked(2).filter(|_| is_name).ok_or_else(damaged)?;
    Ok(format!("chunks/{tenant}/{folder}/{rest}"))
}

impl Repository {
    /// A store whose objects these keys open.
    pub fn new(blobs: Arc<dyn Blobs>, sealing: Arc<dyn Sealing>) -> Self {
        Self { blobs, sealing }
    }

    /// Stores something under a name that only it can have.
    async fn put_once(&self, object: &str, content: Vec<u8>) -> Result<bool, Error> {
        match self.blobs.put(object, Bytes::from(content)).await {
            Ok(()) => Ok(true),
            Err(store::Error::Exists) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Writes down what opens the tenant's objects, before there is one.
    pub(super) async fn put_key(&self, wrapped: &WrappedBackupKey, masters: &[MasterKey]) -> Result<(), Error> {
        let damaged = |_| Error::Damaged("a key cannot be written".to_owned());
        for record in masters {
            self.put_once(&format!("masters/{}", record.id), serde_json::to_vec(record).map_err(damaged)?).await?;
        }
        let object = key_object(&wrapped.tenant, &wrapped.id, &wrapped.kek);
        self.put_once(&object, serde_json::to_vec(wrapped).map_err(damaged)?).await?;
        Ok(())
    }

    /// A tenant's keys that can be opened, the one that was stored last at the end.
    pub(super) async fn keys(&self, tenant: &TenantId) -> Result<Vec<StoredKey>, Error> {
        let mut infos = self.blobs.list(&format!("keys/{tenant}/")).await?;
        infos.sort_by(|a, b| a.modified.cmp(&b.modified).then_with(|| a.key.cmp(&b.key)));
        let mut found: Vec<StoredKey> = Vec::new();
        for info in infos {
            let Some(wrapped) = self.wrapped(tenant, &info.key).await? else { continue };
            let Ok(key) = self.sealing.open_backup_key(&wrapped) else { continue };
            let mut sealed_by = match found.iter().position(|stored| stored.key.id() == key.id()) {
                Some(known) => found.remove(known).sealed_by,
                None => Vec::new(),
            };
            sealed_by.push(wrapped.kek);
            found.push(StoredKey { key, sealed_by });
        }
        Ok(found)
    }

    /// What lies there, when it is a key of the tenant's that says so itself: what it says is bound to what is sealed.
    async fn wrapped(&self, tenant: &TenantId, object: &str) -> Result<Option<WrappedBackupKey>, Error> {
        let Some(text) = self.blobs.get(object).await? else { return Ok(None) };
        let parsed: Option<WrappedBackupKey> = serde_json::from_slice(&text).ok();
        Ok(parsed
            .filter(|wrapped| key_object(tenant, &wrapped.id, &wrapped.kek) == object && wrapped.tenant == *tenant))
    }

    /// Removes a tenant's key as a master key that was replaced sealed it: whoever has that one would go on opening new
    /// snapshots with it.
    pub(super) async fn drop_sealed(&self, key: &BackupKey, kek: &str) -> Result<(), Error> {
        self.blobs.delete(&key_object(key.tenant(), key.id(), kek)).await?;
        Ok(())
    }

    /// Removes what is public of master keys that were replaced, once no tenant's key is sealed by one of them. Whether
    /// that is so, and how many objects went.
    pub(super) async fn drop_masters(&self, retired: &[String]) -> Result<(bool, u64), Error> {
        let is_retired = |id: &str| retired.iter().any(|old| old == id);
        let sealed_by = |info: &BlobInfo| info.key.rsplit_once('.').is_some_and(|(_, kek)| is_retired(kek));
        if self.blobs.list("keys/").await?.iter().any(sealed_by) {
            return Ok((false, 0));
        }
        let mut count = 0;
        for info in self.blobs.list("masters/").await? {
            if info.key.strip_prefix("masters/").is_some_and(is_retired) {
                count += u64::from(self.blobs.delete(&info.key).await?);
            }
        }
        Ok((true, count))
    }

    /// A tenant's key of this name, sealed by whichever master key is here.
    pub(super) async fn key(&self, tenant: &TenantId, id: &str) -> Result<BackupKey, Error> {
        let prefix = format!("keys/{tenant}/{id}.");
        // A place may know folders only.
        for info in self.blobs.list(&format!("keys/{tenant}/")).await? {
            if !info.key.starts_with(&prefix) {
                continue;
            }
            let Some(wrapped) = self.wrapped(tenant, &info.key).await? else { continue };
            if let Ok(key) = self.sealing.open_backup_key(&wrapped) {
                return Ok(key);
            }
        }
        Err(Error::Sealed)
    }

    /// Stores a chunk unless it is there. Its name, and how many bytes are new.
    pub(super) async fn put_chunk(
        &self,
        key: &Arc<BackupKey>,
        plain: Vec<u8>,
        known: &HashSet<String>,
    ) -> Result<(String, u64), Error> {
        let (of, bytes) = (Arc::clone(key), plain.len() as u64);
        let work = move || (of.name(&plain), plain);
        let (name, plain) = tokio::task::spawn_blocking(work).await.map_err(|_| Error::Stopping)?;
        if known.contains(&name) {
            return Ok((name, 0));
        }
        let object = chunk_object(key.tenant(), &name)?;
        let (of, at) = (Arc::clone(key), object.clone());
        let sealed = tokio::task::spawn_blocking(move || of.seal(&at, &plain)).await.map_err(|_| Error::Stopping)??;
        let is_new = self.put_once(&object, sealed).await?;
        failpoint::hit("backup.chunk");
        Ok((name, if is_new { bytes } else { 0 }))
    }

    /// Removes the object of a content when it is not what it was, so that it can be stored again.
    pub(super) async fn remove_damaged(&self, key: &Arc<BackupKey>, plain: &[u8]) -> Result<(), Error> {
        let name = key.name(plain);
        let object = chunk_object(key.tenant(), &name)?;
        match self.chunk(key, &name).await {
            Err(Error::Damaged(_)) => self.blobs.delete(&object).await.map(drop).map_err(Error::from),
            found => found.map(drop),
        }
    }

    /// A chunk, checked.
    pub(super) async fn chunk(&self, key: &Arc<BackupKey>, name: &str) -> Result<Zeroizing<Vec<u8>>, Error> {
        let object = chunk_object(key.tenant(), name)?;
        let missing = || Error::Damaged(format!("the chunk {name} is missing"));
        let sealed = self.blobs.get(&object).await?.ok_or_else(missing)?;
        let (of, name) = (Arc::clone(key), name.to_owned());
        let work = move || {
            let plain = of.open(&object, &sealed).ok().filter(|plain| of.name(plain) == name);
            plain.ok_or_else(|| Error::Damaged(format!("the chunk {name} was changed")))
        };
        tokio::task::spawn_blocking(work).await.map_err(|_| Error::Stopping)?
    }

    /// Makes a snapshot one. Everything that it names is in the store.
    pub(super) async fn put_manifest(&self, key: &BackupKey, manifest: &Manifest) -> Result<(), Error> {
        let object = snapshot_object(&manifest.tenant, &manifest.id);
        let text =
            serde_json::to_vec(manifest).map_err(|_| Error::Damaged("a manifest cannot be written".to_owned()))?;
        let mut content = format!("{}\n", key.id()).into_bytes();
        content.extend(key.seal(&object, &text)?);
        failpoint::hit("backup.manifest");
        if self.put_once(&object, content).await? { Ok(()) } else { Err(Error::Store("the name is taken".to_owned())) }
    }

    /// A snapshot and the key of its objects.
    pub(super) async fn manifest(
        &self,
        tenant: &TenantId,
        id: &SnapshotId,
    ) -> Result<(Manifest, Arc<BackupKey>), Error> {
        self.manifest_by(tenant, id, &mut Keys::default()).await
    }

    /// The same for somebody who reads many of one tenant and keeps the keys meanwhile.
    pub(super) async fn manifest_by(
        &self,
        tenant: &TenantId,
        id: &SnapshotId,
        keys: &mut Keys,
    ) -> Result<(Manifest, Arc<BackupKey>), Error> {
        let object = snapshot_object(tenant, id);
        let content = self.blobs.get(&object).await?.ok_or(Error::NotFound)?;
        let damaged = || Error::Damaged(format!("the manifest {id} was changed"));
        let end = content.iter().position(|b| *b == b'\n').ok_or_else(damaged)?;
        let name = std::str::from_utf8(&content[..end]).map_err(|_| damaged())?;
        let key = match keys.0.get(name) {
            Some(key) => Arc::clone(key),
            None => Arc::new(self.key(tenant, name).await?),
        };
        keys.0.insert(name.to_owned(), Arc::clone(&key));
        let text = key.open(&object, &content[end + 1..]).map_err(|_| damaged())?;
        let manifest: Manifest = serde_json::from_slice(&text).map_err(|_| damaged())?;
        if manifest.format > FORMAT {
            return Err(Error::Failed("it was written by a newer pocketfleet".to_owned()));
        }
        if manifest.tenant != *tenant || manifest.id != *id {
            return Err(damaged());
        }
        Ok((manifest, key))
    }

    /// The names of a tenant's snapshots, oldest first.
    pub(super) async fn snapshots(&self, tenant: &TenantId) -> Result<Vec<SnapshotId>, Error> {
        let found = self.blobs.list(&format!("snapshots/{tenant}/")).await?;
        let id = |info: BlobInfo| info.key.rsplit('/').next().and_then(|name| SnapshotId::parse(name).ok());
        let mut ids: Vec<SnapshotId> = found.into_iter().filter_map(id).collect();
        ids.sort_unstable();
        Ok(ids)
    }

    /// Removes everything of a tenant. The keys go first: what an interruption leaves is sealed for good.
    pub(super) async fn erase(&self, tenant: &TenantId) -> Result<(), Error> {
        for part in ["keys", "snapshots", "chunks"] {
            for info in self.blobs.list(&format!("{part}/{tenant}/")).await? {
                self.blobs.delete(&info.key).await?;
            }
        }
        Ok(())
    }

    /// Every snapshot of everybody, by tenant.
    pub async fn everything(&self) -> Result<std::collections::BTreeMap<TenantId, Vec<SnapshotId>>, Error> {
        let mut found = std::collections::BTreeMap::<TenantId, Vec<SnapshotId>>::new();
        for info in self.blobs.list("snapshots/").await? {
            let mut words = info.key.split('/').skip(1);
            let (Some(tenant), Some(id)) = (words.next(), words.next()) else { continue };
            if let (Ok(tenant), Ok(id)) = (TenantId::parse(tenant), SnapshotId::parse(id)) {
                found.entry(tenant).or_default().push(id);
            }
        }
        for ids in found.values_mut() {
            ids.sort_unstable();
        }
        Ok(found)
    }

    pub(super) async fn delete_snapshot(&self, tenant: &TenantId, id: &SnapshotId) -> Result<(), Error> {
        self.blobs.delete(&snapshot_object(tenant, id)).await?;
        Ok(())
    }

    /// Deletes a tenant's chunks that nobody names and that are older than a moment. How many, and their bytes.
    pub(super) async fn sweep(
        &self,
        tenant: &TenantId,
        named: &HashSet<String>,
        before: std::time::SystemTime,
    ) -> Result<(u64, u64), Error> {
        let prefix = format!("chunks/{tenant}/");
        let (mut count, mut bytes) = (0, 0);
        for (at, info) in self.blobs.list(&prefix).await?.into_iter().enumerate() {
            let name: String = info.key.strip_prefix(&prefix).unwrap_or_default().split('/').collect();
            if named.contains(&name) || info.modified.is_none_or(|modified| modified > before) {
                continue;
            }
            if self.blobs.delete(&info.key).await? {
                (count, bytes) = (count + 1, bytes + info.bytes);
            }
            if at.is_multiple_of(BATCH) {
                tokio::task::yield_now().await;
            }
        }
        Ok((count, bytes))
    }
}
