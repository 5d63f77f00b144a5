//! Taking a snapshot of an instance that runs or sleeps, without stopping or waking it.
//!
//! Files are stored first, then the databases are copied, then the files that came meanwhile are stored: `PocketBase`
//! writes a file before the record that names it and removes it after the record, so every file that the copy names was
//! there in one of the two passes, unless its record came and went between them; then all of it is done again. A copy of
//! a sleeping instance counts only if it did not begin to start meanwhile.

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::collections::HashSet;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use sha2::Digest;
use sha2::Sha256;
use time::OffsetDateTime;

use super::Backups;
use super::Error;
use super::chunk;
use super::chunk::Cut;
use super::manifest;
use super::manifest::Content;
use super::manifest::FORMAT;
use super::manifest::Item;
use super::manifest::Manifest;
use super::manifest::Reason;
use super::manifest::SnapshotId;
use super::repository::StoredKey;
use super::tree::Tree;
use crate::failpoint;
use crate::ids::TenantId;
use crate::pocketbase::copy;
use crate::pocketbase::copy::Served;
use crate::store::sqlite;
use crate::store::tenants::Stage;
use crate::supervisor;
use crate::supervisor::directory::Glance;
use crate::vault::BackupKey;
use crate::vault::Vault;

/// How often a copy is begun anew because the instance started or was upgraded under it.
const ATTEMPTS: u32 = 6;
/// How long a start under way is waited for.
const PATIENCE: Duration = Duration::from_mins(2);
/// Databases of an instance; the second is optional.
const DATABASES: [&str; 2] = ["data.db", "auxiliary.db"];
/// Largest file of the directory itself that is kept.
const SMALL: u64 = 4 << 20;

/// What is stored so far of one snapshot.
#[derive(Default)]
pub(super) struct Stored {
    items: BTreeMap<String, Item>,
    new_bytes: u64,
    missing: u64,
    skipped: u64,
    fingerprint: String,
}

/// What is there already.
#[derive(Default)]
pub(super) struct Known {
    items: HashMap<String, Item>,
    chunks: HashSet<String>,
}

/// Writes content into the store.
pub(super) struct Writer<'a> {
    backups: &'a Backups,
    pub(super) key: Arc<BackupKey>,
    known: Known,
    seed: u64,
    /// Whether every object is looked at, because some were damaged.
    is_full: bool,
}

/// Runs file work on a thread that may block.
pub(super) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Error> {
    tokio::task::spawn_blocking(work).await.map_err(|_| Error::Stopping)
}

impl Writer<'_> {
    fn cut(&self, path: &str) -> Cut {
        if DATABASES.contains(&path) || path == super::CONTROL_FILE { Cut::Pages(self.seed) } else { Cut::Fixed }
    }

    /// Stores what a reader gives.
    async fn content<R: Read + Send + 'static>(&self, reader: R, cut: Cut) -> Result<(Content, u64), Error> {
        let mut content = Content { bytes: 0, sha256: String::new(), chunks: Vec::new() };
        let (mut state, mut new_bytes) = ((reader, Sha256::new()), 0);
        loop {
            let work = move || {
                let (mut reader, mut hash) = state;
                let chunk = chunk::next(&mut reader, cut);
                if let Ok(chunk) = &chunk {
                    hash.update(chunk);
                }
                (chunk, (reader, hash))
            };
            let (chunk, after) = blocking(work).await?;
            state = after;
            let chunk = chunk.map_err(Error::io("read a file"))?;
            if chunk.is_empty() {
                break;
            }
            content.bytes += chunk.len() as u64;
            let repository = self.backups.repository()?;
            if self.is_full {
                repository.remove_damaged(&self.key, &chunk).await?;
            }
            let (name, new) = repository.put_chunk(&self.key, chunk, &self.known.chunks).await?;
            new_bytes += new;
            content.chunks.push(name);
        }
        content.sha256 = hex(&state.1.finalize());
        Ok((content, new_bytes))
    }
}

pub(super) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Forgets what cannot be beside a path: files that were where its folders are now, and those below it that were in a
/// folder of its name.
fn make_room(items: &mut BTreeMap<String, Item>, path: &str) {
    for (at, _) in path.match_indices('/') {
        items.remove(&path[..at]);
    }
    let folder = format!("{path}/");
    while let Some((below, _)) = items.range(folder.clone()..).next().filter(|(below, _)| below.starts_with(&folder)) {
        let below = below.clone();
        items.remove(&below);
    }
}

impl Stored {
    /// Stores the files of `storage` that are not stored yet.
    async fn files(&mut self, writer: &Writer<'_>, tree: &Arc<Tree>) -> Result<(), Error> {
        let looking = Arc::clone(tree);
        let listing = blocking(move || looking.storage()).await?.map_err(Error::io("list its files"))?;
        self.skipped = listing.skipped;
        for path in listing.files {
            make_room(&mut self.items, &path);
            if !self.items.contains_key(&path) {
                self.file(writer, tree, path).await?;
            }
        }
        Ok(())
    }

    async fn file(&mut self, writer: &Writer<'_>, tree: &Arc<Tree>, path: String) -> Result<(), Error> {
        let (opening, at) = (Arc::clone(tree), path.clone());
        let opened = blocking(move || opening.file(&at)).await?.map_err(Error::io("open one of its files"))?;
        let Some((file, stamp)) = opened else { return Ok(()) };
        if let Some(known) = writer.known.items.get(&path).filter(|known| known.stamp == Some(stamp)) {
            self.items.insert(path, known.clone());
            return Ok(());
        }
        // Not beyond what it was: somebody may append to it for ever.
        let (content, new) = writer.content(file.take(stamp.bytes()), writer.cut(&path)).await?;
        self.new_bytes += new;
        self.items.insert(path.clone(), Item { path, content, stamp: Some(stamp) });
        Ok(())
    }

    /// Stores a copy of a database that is ours alone.
    async fn database(&mut self, writer: &Writer<'_>, name: &str, copy: &Path) -> Result<(), Error> {
        let path = copy.to_owned();
        let file = blocking(move || File::open(path)).await?.map_err(Error::io("open the copy of a database"))?;
        let (content, new) = writer.content(file, writer.cut(name)).await?;
        self.new_bytes += new;
        self.items.insert(name.to_owned(), Item { path: name.to_owned(), content, stamp: None });
        Ok(())
    }

    /// Everything of a data directory, in the order that leaves nothing out.
    async fn directory(writer: &Writer<'_>, data: &Path, glance: &Glance) -> Result<Self, Error> {
        let mut stored = Self::default();
        let path = data.to_owned();
        let tree = blocking(move || Tree::open(&path)).await?.map_err(Error::io("open its data directory"))?;
        let tree = Arc::new(tree);
        let looking = Arc::clone(&tree);
        stored.fingerprint =
            blocking(move || looking.fingerprint()).await?.map_err(Error::io("look at its database"))?;
        stored.files(writer, &tree).await?;
        failpoint::hit("backup.files");
        let supervisor = &writer.backups.inner.supervisor;
        let scratch = supervisor.scratch().map_err(Error::io("make a scratch folder"))?;
        let served = if glance.is_served { Served::Yes } else { Served::No };
        for name in DATABASES {
            let (from, to, looking) = (data.join(name), scratch.path().join(name), Arc::clone(&tree));
            let copying = supervisor.clone();
            let limit = writer.backups.inner.config.timeout;
            let copied = blocking(move || -> Result<bool, Error> {
                if !looking.has_plain(name).map_err(Error::io("look at its database"))? {
                    return Ok(false);
                }
                copying.copy_database(&from, &to, served, limit)?;
                Ok(true)
            });
            if !copied.await?? && name == DATABASES[0] {
                return Err(Error::Database("data.db is no plain file".to_owned()));
            }
        }
        stored.files(writer, &tree).await?;
        let (named, items) = (scratch.path().join(DATABASES[0]), std::mem::take(&mut stored.items));
        let work = move || {
            let mut missing = 0;
            let looked = copy::named_files(&named, |name| {
                missing += u64::from(!items.contains_key(name));
                true
            });
            (looked.map(|()| missing), items)
        };
        let (missing, items) = blocking(work).await?;
        (stored.missing, stored.items) = (missing?, items);
        for name in DATABASES {
            let copy = scratch.path().join(name);
            if copy.exists() {
                stored.database(writer, name, &copy).await?;
            }
        }
        // The stamp that keeps PocketBase from writing its types anew; the whole of it, if that was written.
        let looking = Arc::clone(&tree);
        let types = blocking(move || looking.file("types.d.ts")).await?.map_err(Error::io("open one of its files"))?;
        if types.is_some_and(|(_, stamp)| stamp.bytes() <= SMALL) {
            stored.file(writer, &tree, "types.d.ts".to_owned()).await?;
        }
        Ok(stored)
    }
}

impl Backups {
    /// A writer of a tenant's objects, which knows those of the newest snapshot. The caller is alone with the tenant.
    async fn writer(&self, tenant: &TenantId) -> Result<Writer<'_>, Error> {
        let repository = self.repository()?;
        let key = match self.key_in_store(tenant).await? {
            Some(key) => key,
            None => self.new_key(tenant).await?,
        };
        let is_full = self.is_damaged(tenant);
        let mut known = Known::default();
        if let Some(newest) = repository.snapshots(tenant).await?.last().filter(|_| !is_full) {
            // What cannot be read is not known, and is stored again.
            if let Ok((manifest, old)) = repository.manifest(tenant, newest).await
                && old.id() == key.id()
                && let Ok(items) = self.index(&manifest, &old).await
            {
                known.chunks.extend(items.iter().flat_map(|item| item.content.chunks.iter().cloned()));
                known.chunks.extend(manifest.index.chunks.iter().cloned());
                known.items.extend(items.into_iter().map(|item| (item.path.clone(), item)));
            }
        }
        let seed = u64::from_str_radix(key.name(b"cuts").get(..16).unwrap_or_default(), 16).unwrap_or_default();
        Ok(Writer { backups: self, key: Arc::new(key), known, seed, is_full })
    }

    /// A key for a tenant who has none that opens. It lies in the store before anything is sealed by it.
    async fn new_key(&self, tenant: &TenantId) -> Result<BackupKey, Error> {
        let vault = &self.inner.vault;
        let key = Vault::new_backup_key(tenant);
        self.repository()?.put_key(&vault.seal_backup_key(&key)?, &vault.public_masters().await?).await?;
        Ok(key)
    }

    /// A tenant's newest key. All that open lie in the store under the master key of today and under no retired one
    /// afterwards.
    async fn key_in_store(&self, tenant: &TenantId) -> Result<Option<BackupKey>, Error> {
        let (repository, vault) = (self.repository()?, &self.inner.vault);
        let mut found = repository.keys(tenant).await?;
        let today = vault.master_key_id();
        if !found.is_empty() && self.lock_written().get(tenant) != Some(&today) {
            let masters = vault.public_masters().await?;
            for StoredKey { key, sealed_by } in &found {
                let wrapped = vault.seal_backup_key(key)?;
                repository.put_key(&wrapped, &masters).await?;
                let is_old = |kek: &&String| **kek != wrapped.kek && masters.iter().all(|master| master.id != **kek);
                for kek in sealed_by.iter().filter(is_old) {
                    repository.drop_sealed(key, kek).await?;
                }
            }
            // While the master key is being replaced the one before it is not retired yet.
            if masters.iter().all(|master| master.id == today) {
                self.lock_written().insert(tenant.clone(), today);
            }
        }
        Ok(found.pop().map(|stored| stored.key))
    }

    /// Sees to it that the snapshots of a tenant who has some open with the master key of today, whether or not another
    /// one is taken.
    pub async fn renew_key(&self, tenant: &TenantId) -> Result<(), Error> {
        let master = self.inner.vault.master_key_id();
        if self.lock_written().get(tenant) == Some(&master) {
            return Ok(());
        }
        let _alone = self.alone(tenant).await;
        let record = self.inner.tenants.find(tenant).ok_or(Error::UnknownTenant)?;
        // One whose erasure has begun gets no key any more.
        let is_kept = record.deleted.as_ref().is_none_or(|deletion| deletion.stage != Stage::Erasing);
        if is_kept {
            self.key_in_store(tenant).await?;
        }
        Ok(())
    }

    /// Takes a snapshot of a tenant's instance.
    pub async fn take(&self, tenant: &TenantId, reason: Reason) -> Result<Manifest, Error> {
        let _alone = self.alone(tenant).await;
        if *tenant == super::control() {
            return self.take_control(reason).await;
        }
        let supervisor = &self.inner.supervisor;
        let record = self.inner.tenants.find(tenant).ok_or(Error::UnknownTenant)?;
        // Before there is a key: one whose erasure has begun must not get another.
        if record.deleted.is_some() {
            return Err(supervisor::Error::Deleted.into());
        }
        let writer = self.writer(tenant).await?;
        let data = self.data_of(tenant).await?;
        for attempt in 1..=ATTEMPTS {
            let glance = supervisor.glance(tenant, PATIENCE).await?;
            let epoch = supervisor.epoch(tenant);
            let (looking, id) = (supervisor.clone(), tenant.clone());
            let look = move || Ok((looking.version_on_disk(&id)?, looking.pocketbase_on_disk(&id)?));
            let (hash, pocketbase) = blocking(look).await?.map_err(Error::io("read its version"))?;
            let taken = Stored::directory(&writer, &data, &glance).await;
            if !supervisor.holds(tenant, &glance) {
                continue;
            }
            let stored = taken?;
            // A record that came and went between the passes; or a file that is really gone, which stays so.
            if stored.missing > 0 && glance.is_served && attempt < ATTEMPTS / 2 {
                continue;
            }
            let template = record.template.clone();
            let description = Description { template, hash, pocketbase, epoch, reason };
            return self.finish(writer, stored, description).await;
        }
        Err(Error::Restless)
    }

    /// The data directory by a path without a link down to the tenant's own folder.
    async fn data_of(&self, tenant: &TenantId) -> Result<PathBuf, Error> {
        let folder = self.inner.supervisor.folder(tenant);
        let work = move || {
            let root = folder.parent().map_or_else(|| Ok(PathBuf::new()), Path::canonicalize)?;
            Ok(root.join(folder.file_name().unwrap_or_default()).join("pb_data"))
        };
        blocking(work).await?.map_err(Error::io("look for its data directory"))
    }

    /// The control database, as a tenant of its own.
    async fn take_control(&self, reason: Reason) -> Result<Manifest, Error> {
        let writer = self.writer(&super::control()).await?;
        let scratch = self.inner.supervisor.scratch().map_err(Error::io("make a scratch folder"))?;
        let (from, to) = (self.inner.control.clone(), scratch.path().join(super::CONTROL_FILE));
        let copy = to.clone();
        blocking(move || sqlite::copy(&from, &copy)).await??;
        let mut stored = Stored::default();
        stored.database(&writer, super::CONTROL_FILE, &to).await?;
        // No PocketBase ever had it.
        let (template, pocketbase) = (String::new(), String::new());
        let description = Description { template, hash: None, pocketbase, epoch: 0, reason };
        self.finish(writer, stored, description).await
    }

    async fn finish(&self, mut writer: Writer<'_>, stored: Stored, of: Description) -> Result<Manifest, Error> {
        let items: Vec<Item> = stored.items.into_values().collect();
        let (files, bytes) = (items.len() as u64, items.iter().map(|item| item.content.bytes).sum());
        let lines =
            blocking(move || manifest::encode(&items)).await?.map_err(|error| Error::Store(error.to_string()))?;
        // The list is cut like a database, so that most of a long one is stored once as well.
        writer.known.items.clear();
        let (index, new) = writer.content(std::io::Cursor::new(lines), Cut::Pages(writer.seed)).await?;
        failpoint::hit("backup.index");
        let taken_at = OffsetDateTime::now_utc();
        let id = SnapshotId::new(taken_at);
        let manifest = Manifest {
            format: FORMAT,
            taken_at: id.at(),
            id,
            tenant: writer.key.tenant().clone(),
            reason: of.reason,
            epoch: of.epoch,
            template: of.template,
            template_hash: of.hash,
            pocketbase: of.pocketbase,
            pocketfleet: env!("CARGO_PKG_VERSION").to_owned(),
            files,
            bytes,
            new_bytes: stored.new_bytes + new,
            missing: stored.missing,
            skipped: stored.skipped,
            fingerprint: stored.fingerprint,
            index,
        };
        self.repository()?.put_manifest(&writer.key, &manifest).await?;
        failpoint::hit("backup.done");
        // A note that stays costs another snapshot that writes everything.
        if writer.is_full
            && let Err(error) = self.inner.damaged.forget(&manifest.tenant).await
        {
            tracing::warn!(tenant.id = %manifest.tenant, %error, "note that a damaged backup was made good");
        }
        self.note_fingerprint(&manifest);
        tracing::info!(
            tenant.id = %manifest.tenant, backup.id = %manifest.id, files, bytes, new_bytes = manifest.new_bytes,
            missing = manifest.missing, skipped = manifest.skipped, "took a backup"
        );
        Ok(manifest)
    }

    /// Whether a tenant's database was written since its newest snapshot, or there is none.
    pub async fn has_changed(&self, tenant: &TenantId) -> Result<bool, Error> {
        if self.is_damaged(tenant) {
            return Ok(true);
        }
        let data = self.inner.supervisor.folder(tenant).join("pb_data");
        let now = blocking(move || Tree::open(&data).and_then(|tree| tree.fingerprint())).await?;
        // What cannot be looked at is for the copy to complain about.
        let Ok(now) = now else { return Ok(true) };
        let remembered = self.fingerprint(tenant);
        let then = if let Some(then) = remembered {
            then
        } else {
            let repository = self.repository()?;
            let Some(newest) = repository.snapshots(tenant).await?.pop() else { return Ok(true) };
            let Ok((manifest, _)) = repository.manifest(tenant, &newest).await else { return Ok(true) };
            self.note_fingerprint(&manifest);
            manifest.fingerprint
        };
        Ok(then != now)
    }
}

struct Description {
    template: String,
    hash: Option<String>,
    pocketbase: String,
    epoch: u64,
    reason: Reason,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_file_and_a_folder_of_one_name_the_later_is_stored() {
        let item = |path: &str| {
            let content = Content { bytes: 0, sha256: String::new(), chunks: Vec::new() };
            (path.to_owned(), Item { path: path.to_owned(), content, stamp: None })
        };
        let mut items: BTreeMap<_, _> =
            ["storage/a", "storage/a-b", "storage/c/d", "storage/c/e/f", "storage/cd"].map(item).into();
        make_room(&mut items, "storage/a/b");
        make_room(&mut items, "storage/c");
        assert_eq!(items.keys().collect::<Vec<_>>(), ["storage/a-b", "storage/cd"]);
    }
}
