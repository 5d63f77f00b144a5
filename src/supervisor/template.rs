//! Templates: what an instance contains, and the golden directories that new instances are copied from.
//!
//! A template is a folder with `template.toml` (optional) and at least one of `pb_migrations/`, `pb_hooks/` and
//! `pb_public/`: what a `PocketBase` project has. It is baked once into a golden directory whose name carries a hash of the template, of the
//! `PocketBase` version and of what baking itself does, so a changed template never changes an existing golden
//! directory. Golden directories carry a copy of the hooks and public files: instances serve those, and an edit of
//! the template under a running fleet has no effect before the next start of pocketfleet.
//!
//! Invariants: a golden directory appears whole or not at all; a broken template does not keep the others from
//! being served; nothing is deleted but abandoned staging folders of ours.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::fs::File;
use std::io;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;

use figment::Figment;
use figment::providers::Format;
use figment::providers::Toml;
use sha2::Digest;
use sha2::Sha256;

use crate::ids::TenantId;
use crate::supervisor::bake;
use crate::supervisor::bake::BAKE_FORMAT;
use crate::supervisor::choice;
use crate::supervisor::config::Binary;
use crate::supervisor::files;
use crate::supervisor::files::Mode;
use crate::supervisor::jail::Isolation;
use crate::supervisor::manifest::Manifest;
pub use crate::supervisor::manifest::Traits;
use crate::supervisor::owner;

/// Prefixes of what baking and provisioning leave in the staging folder when they are killed.
pub(super) const STAGING_PREFIXES: [&str; 3] = ["bake-", "tenant-", "backup-"];

/// The file that a golden directory has when it is whole; it holds the full hash.
pub(super) const COMPLETE: &str = ".complete";

/// The file of a golden directory that names the version of `PocketBase` that baked it.
pub(super) const BAKED_BY: &str = ".pocketbase";

const MANIFEST: &str = "template.toml";
const MIGRATIONS: &str = "pb_migrations";
const HOOKS: &str = "pb_hooks";
const PUBLIC: &str = "pb_public";

/// Why there is no golden directory for a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// No template has this name.
    #[error("there is no template of this name")]
    Unknown,
    /// It could not be loaded or baked.
    #[error("the template is broken: {error}")]
    Broken {
        /// The reason, with the end of what `PocketBase` said, redacted.
        error: String,
    },
}

/// Why no templates at all could be read.
#[derive(Debug, thiserror::Error)]
#[error("cannot use the folder {}", path.display())]
pub struct OpenError {
    path: PathBuf,
    source: io::Error,
}

/// Why a folder is not a template.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// Names become part of folder names.
    #[error("the name of a template has 1 to 32 characters of a-z, 0-9 and inner hyphens")]
    Name,
    /// The parts that make a folder a template.
    #[error("the template has no folder pb_migrations, pb_hooks or pb_public")]
    Empty,
    /// An unreadable or malformed manifest.
    #[error("template.toml is not valid: {detail}")]
    Manifest {
        /// What is wrong with it, and where.
        detail: String,
    },
    /// Files that cannot be read, or symbolic links.
    #[error("cannot read the template")]
    Io(#[from] io::Error),
}

/// Where templates come from and where what is made of them goes. All folders of one data directory, which one
/// pocketfleet holds the lock of; golden and staging folders must be on the file system of the instances.
#[derive(Debug, Clone)]
pub struct Locations {
    /// The folder of templates, read only.
    pub templates: PathBuf,
    /// Golden directories, `<name>-<16 hex digits>`.
    pub golden: PathBuf,
    /// Work under way, of no value after a crash.
    pub staging: PathBuf,
    /// The `PocketBase` binary.
    pub binary: PathBuf,
    /// Its version, such as `0.40.6`.
    pub version: String,
    /// Binaries of older versions, newest first.
    pub older: Vec<Binary>,
    /// The sandbox that templates are baked in.
    pub isolation: Isolation,
}

/// A template as it was when it was read.
#[derive(Debug, Clone)]
pub struct Template {
    /// Its name, which is the name of its folder.
    pub name: String,
    /// What `PocketBase` calls itself in mails: `app_name`, or else the template's name.
    pub app_name: String,
    /// Where it is.
    pub dir: PathBuf,
    /// The folder of migrations, if there is one.
    pub migrations: Option<PathBuf>,
    /// The folder of hooks, if there is one.
    pub hooks: Option<PathBuf>,
    /// The folder of public files, if there is one.
    pub public: Option<PathBuf>,
    /// SHA-256 in hex over everything that baking depends on.
    pub hash: String,
    /// What it says of itself.
    pub traits: Traits,
}

impl Template {
    /// Reads the template `name` below `templates`.
    pub fn load(templates: &Path, name: &str, version: &str) -> Result<Self, LoadError> {
        if !is_valid(name) {
            return Err(LoadError::Name);
        }
        Self::load_from(&templates.join(name), name, version)
    }

    /// Reads the template in `dir`, whatever that folder is called.
    pub(super) fn load_from(dir: &Path, name: &str, version: &str) -> Result<Self, LoadError> {
        let part = |name: &str| Some(dir.join(name)).filter(|path| path.is_dir());
        if [MIGRATIONS, HOOKS, PUBLIC].iter().all(|name| part(name).is_none()) {
            return Err(LoadError::Empty);
        }
        let manifest = match fs::read_to_string(dir.join(MANIFEST)) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(error.into()),
        };
        let manifest: Manifest = Figment::from(Toml::string(&manifest))
            .extract()
            .map_err(|error| LoadError::Manifest { detail: error.to_string() })?;
        let is_global = name == TenantId::global().as_str();
        manifest.check(is_global).map_err(|detail| LoadError::Manifest { detail })?;
        let kinds = manifest.kinds(is_global);
        let app_name = manifest.app_name.unwrap_or_else(|| name.to_owned());
        let mut hash = Sha256::new();
        absorb(&mut hash, version.as_bytes());
        absorb(&mut hash, &BAKE_FORMAT.to_be_bytes());
        for (pointer, value) in bake::settings(&app_name) {
            absorb(&mut hash, pointer.as_bytes());
            absorb(&mut hash, value.to_string().as_bytes());
        }
        for name in [MIGRATIONS, HOOKS, PUBLIC] {
            if let Some(folder) = part(name) {
                absorb_tree(&mut hash, name, &folder)?;
            }
        }
        let hash = hash.finalize().iter().fold(String::new(), |mut hex, byte| {
            // Writing to a String cannot fail.
            let _infallible = write!(hex, "{byte:02x}");
            hex
        });
        let traits = Traits {
            description: manifest.description,
            kinds,
            identity: manifest.identity,
            public_read: manifest.public_read,
            routes: manifest.routes,
            outbound: manifest.outbound,
            quota: manifest.quota,
            has_public: part(PUBLIC).is_some(),
            has_hooks: part(HOOKS).is_some(),
            pocketbase: manifest.pocketbase,
            hash: hash.clone(),
        };
        Ok(Self {
            name: name.to_owned(),
            app_name,
            dir: dir.to_owned(),
            migrations: part(MIGRATIONS),
            hooks: part(HOOKS),
            public: part(PUBLIC),
            hash,
            traits,
        })
    }

    /// Copies the parts that baking and serving use into the new folder `to`.
    pub(super) fn copy_to(&self, to: &Path) -> io::Result<()> {
        fs::create_dir(to)?;
        let manifest = self.dir.join(MANIFEST);
        if manifest.is_file() {
            fs::copy(manifest, to.join(MANIFEST))?;
        }
        for (folder, name) in [(&self.migrations, MIGRATIONS), (&self.hooks, HOOKS), (&self.public, PUBLIC)] {
            if let Some(folder) = folder {
                files::copy_tree(folder, &to.join(name), Mode::ReadOnly)?;
            }
        }
        Ok(())
    }

    /// The name of its golden directory.
    pub(super) fn golden_name(&self) -> String {
        golden_name(&self.name, &self.hash)
    }
}

/// The alphabet of identifiers: a template's name becomes part of a folder's name.
fn is_valid(name: &str) -> bool {
    TenantId::parse(name).is_ok()
}

/// The folder of a golden directory: readable, and as unique as 16 hexadecimal digits are.
fn golden_name(name: &str, hash: &str) -> String {
    format!("{name}-{}", hash.get(..16).unwrap_or(hash))
}

/// Hashes with the length in front, so that no two different sequences of parts hash alike.
fn absorb(hash: &mut Sha256, bytes: &[u8]) {
    hash.update((bytes.len() as u64).to_be_bytes());
    hash.update(bytes);
}

fn absorb_tree(hash: &mut Sha256, name: &str, folder: &Path) -> io::Result<()> {
    absorb(hash, name.as_bytes());
    let paths = files::list(folder)?;
    hash.update((paths.len() as u64).to_be_bytes());
    for path in paths {
        absorb(hash, path.as_os_str().as_encoded_bytes());
        let mut content = Sha256::new();
        io::copy(&mut File::open(folder.join(path))?, &mut HashWriter(&mut content))?;
        hash.update(content.finalize());
    }
    Ok(())
}

struct HashWriter<'a>(&'a mut Sha256);

impl io::Write for HashWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A baked template. Its files are never written again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Golden {
    /// Name of the template.
    pub name: String,
    /// Hash of the template, SHA-256 in hex.
    pub hash: String,
    /// The data directory that instances are copied from: `data.db`, `auxiliary.db`, `types.d.ts`, maybe `storage/`.
    pub dir: PathBuf,
    /// What `PocketBase` calls itself in mails.
    pub app_name: String,
    /// Version of the `PocketBase` that baked it; empty where it was not noted.
    pub pocketbase: String,
    /// Migrations that lead here from every earlier version, read-only files.
    pub migrations_dir: Option<PathBuf>,
    /// Hooks to serve with, read-only files.
    pub hooks_dir: Option<PathBuf>,
    /// Public files to serve with, read-only.
    pub public_dir: Option<PathBuf>,
}

impl Golden {
    /// The directory of `template` below `golden_root`, if it was baked and is whole.
    pub(super) fn find(golden_root: &Path, template: &Template) -> io::Result<Option<Self>> {
        Self::open(golden_root, &template.name, &template.hash)
    }

    /// The same by name and hash, for a template that has changed or gone since.
    fn open(golden_root: &Path, name: &str, hash: &str) -> io::Result<Option<Self>> {
        let root = golden_root.join(golden_name(name, hash));
        if !files::exists(&root)? {
            return Ok(None);
        }
        if fs::read_to_string(root.join(COMPLETE))? != hash {
            let text = format!("{} belongs to something else; move it away", root.display());
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, text));
        }
        let copy = Self::template_dir(&root);
        let part = |name: &str| Some(copy.join(name)).filter(|path| path.is_dir());
        Ok(Some(Self {
            name: name.to_owned(),
            hash: hash.to_owned(),
            dir: Self::data_dir(&root),
            app_name: app_name(&copy).unwrap_or_else(|| name.to_owned()),
            pocketbase: fs::read_to_string(root.join(BAKED_BY)).unwrap_or_default(),
            migrations_dir: part(MIGRATIONS),
            hooks_dir: part(HOOKS),
            public_dir: part(PUBLIC),
        }))
    }

    /// Lets the users of tenants read a part of the template's copy, and pass through the folders around it.
    pub(super) fn publish(&self, part: &Path) -> io::Result<()> {
        if let Some(root) = self.dir.parent() {
            owner::pass_through(root)?;
        }
        owner::publish(part)
    }

    /// The data directory inside a golden directory.
    pub(super) fn data_dir(root: &Path) -> PathBuf {
        root.join("data")
    }

    /// The copy of the template inside a golden directory.
    pub(super) fn template_dir(root: &Path) -> PathBuf {
        root.join("template")
    }
}

/// The name in the manifest of a golden directory. The rest of it may be from another time, when there were other fields.
fn app_name(copy: &Path) -> Option<String> {
    Figment::from(Toml::file_exact(copy.join(MANIFEST))).extract_inner("app_name").ok()
}

/// A template that was looked at when pocketfleet started.
#[derive(Debug)]
struct Known {
    golden: Result<Arc<Golden>, String>,
    /// None when it could not even be read.
    traits: Option<Arc<Traits>>,
}

/// Every template of an installation, baked. A cheap clone speaks of the same ones.
#[derive(Debug, Clone)]
pub struct Templates {
    root: PathBuf,
    known: Arc<BTreeMap<String, Known>>,
    /// The version of `PocketBase` behind each golden directory, by its hash.
    baked_by: Arc<BTreeMap<String, String>>,
}

impl Templates {
    /// Reads and bakes every template. Those baked before cost no process. A template that fails is kept with its
    /// error; only unusable folders fail as a whole. Disk work blocks the thread: this belongs before serving.
    pub async fn open(locations: &Locations) -> Result<Self, OpenError> {
        let at = |path: &Path| {
            let path = path.to_owned();
            move |source| OpenError { path, source }
        };
        fs::create_dir_all(&locations.golden).map_err(at(&locations.golden))?;
        fs::create_dir_all(&locations.staging).map_err(at(&locations.staging))?;
        sweep(&locations.staging).map_err(at(&locations.staging))?;
        let names = folders(&locations.templates).map_err(at(&locations.templates))?;
        let mut known = BTreeMap::new();
        for name in names {
            let (golden, traits) = Box::pin(choice::prepare(&name, locations)).await;
            match &golden {
                Ok(golden) => {
                    tracing::debug!(template.name = name, template.hash = &golden.hash[..16], "template ready");
                }
                Err(error) => tracing::error!(template.name = name, error, "template {name} is broken and not served"),
            }
            known.insert(name, Known { golden, traits });
        }
        let baked_by = choice::baked_by(&folders(&locations.golden).map_err(at(&locations.golden))?, &locations.golden);
        Ok(Self { root: locations.golden.clone(), known: Arc::new(known), baked_by: Arc::new(baked_by) })
    }

    /// What a template says of itself; none for one that does not exist or cannot be read.
    pub fn traits(&self, name: &str) -> Option<Arc<Traits>> {
        self.known.get(name)?.traits.clone()
    }

    /// The version of `PocketBase` that an instance of this version has, where it was noted. No I/O.
    pub fn pocketbase_of(&self, hash: &str) -> Option<&str> {
        self.baked_by.get(hash).map(String::as_str)
    }

    /// The names of all templates, the broken ones too, in order.
    pub fn names(&self) -> Vec<String> {
        self.known.keys().cloned().collect()
    }

    /// The golden directory of a template.
    pub fn golden(&self, name: &str) -> Result<Arc<Golden>, Error> {
        match self.known.get(name).map(|known| &known.golden) {
            Some(Ok(golden)) => Ok(Arc::clone(golden)),
            Some(Err(error)) => Err(Error::Broken { error: error.clone() }),
            None => Err(Error::Unknown),
        }
    }

    /// What an instance was made from, by the hash that was noted then. Its schema is that one's, so its hooks must be
    /// too, whatever the template says today. Reads a file when the template has changed since.
    pub fn made_from(&self, name: &str, hash: &str) -> io::Result<Option<Arc<Golden>>> {
        match self.known.get(name).map(|known| &known.golden) {
            Some(Ok(golden)) if golden.hash == hash => Ok(Some(Arc::clone(golden))),
            _ if hash.bytes().all(|byte| byte.is_ascii_hexdigit()) => {
                Ok(Golden::open(&self.root, name, hash)?.map(Arc::new))
            }
            _ => Ok(None),
        }
    }

    /// Templates that are not served: name and error.
    pub fn broken(&self) -> Vec<(String, String)> {
        let broken = self.known.iter().filter_map(|(name, known)| Some((name, known.golden.as_ref().err()?)));
        broken.map(|(name, error)| (name.clone(), error.clone())).collect()
    }
}

/// The visible folders in `root`, sorted.
fn folders(root: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(root)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if entry.path().is_dir() && !name.starts_with('.') {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

/// Deletes what an earlier, killed pocketfleet left in the staging folder: only folders with our own prefixes.
fn sweep(staging: &Path) -> io::Result<()> {
    for entry in fs::read_dir(staging)? {
        let entry = entry?;
        let name = entry.file_name();
        let ours = STAGING_PREFIXES.iter().any(|prefix| name.as_encoded_bytes().starts_with(prefix.as_bytes()));
        if ours && entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}

/// An error and its causes in one line.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::supervisor::testing::locations;

    fn write(path: &Path, text: &str) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    #[tokio::test]
    async fn templates_are_baked_once() {
        let root = tempfile::tempdir().unwrap();
        let mut locations = locations(&root);
        fs::create_dir_all(locations.staging.join("bake-abandoned/data")).unwrap();
        let templates = Templates::open(&locations).await.unwrap();
        assert_eq!(templates.broken(), []);
        for name in ["global", "personal"] {
            let golden = templates.golden(name).unwrap();
            let mut files: Vec<_> = files::list(&golden.dir).unwrap();
            files.retain(|file| !file.starts_with("storage"));
            assert_eq!(files, ["auxiliary.db", "data.db", "types.d.ts"].map(PathBuf::from));
            assert_eq!(fs::metadata(golden.dir.join("types.d.ts")).unwrap().len(), 13);
            assert!(golden.hooks_dir.is_none() && golden.public_dir.is_none());
        }
        assert_eq!(templates.golden("other"), Err(Error::Unknown));
        assert_eq!(fs::read_dir(&locations.staging).unwrap().count(), 0);

        // With nothing to run, only what was baked before can be there.
        locations.binary = "/nonexistent".into();
        let again = Templates::open(&locations).await.unwrap();
        assert_eq!(again.golden("personal"), templates.golden("personal"));
        locations.version = "0.40.7".into();
        let Err(Error::Broken { error }) = Templates::open(&locations).await.unwrap().golden("personal") else {
            panic!("another version of PocketBase needs another bake");
        };
        assert!(error.starts_with("cannot run PocketBase"), "{error}");
    }

    #[tokio::test]
    async fn broken_templates_say_why_and_the_others_are_served() {
        let root = tempfile::tempdir().unwrap();
        let mut locations = locations(&root);
        locations.templates = root.path().join("templates");
        let at = |path: &str| locations.templates.join(path);
        write(&at("README.md"), "not a template");
        write(&at("migration/pb_migrations/1_a.js"), "migrate(() => { throw new Error('no such luck') }, () => {})");
        write(&at("hook/pb_migrations/.keep"), "");
        write(&at("hook/pb_hooks/a.pb.js"), "throw new Error('bad hook')");
        write(&at("manifest/pb_migrations/.keep"), "");
        write(&at("manifest/template.toml"), "colour = 'blue'");
        write(&at("Upper/pb_migrations/.keep"), "");
        write(&at("empty/.keep"), "");
        write(&at("linked/pb_migrations/.keep"), "");
        std::os::unix::fs::symlink("/etc/passwd", at("linked/pb_migrations/1_a.js")).unwrap();
        write(&at("good/pb_migrations/.keep"), "");
        write(&at("good/pb_hooks/a.pb.js"), "routerAdd('GET', '/hello', (e) => e.string(200, 'hello'))");
        write(&at("good/pb_public/index.html"), "hello");
        let templates = Templates::open(&locations).await.unwrap();
        let expected = [
            ("Upper", "the name of a template"),
            ("empty", "no folder pb_migrations, pb_hooks or pb_public"),
            ("hook", "bad hook"),
            ("linked", "neither a file nor a folder"),
            ("manifest", "unknown field"),
            ("migration", "failed to apply migration 1_a.js: Error: no such luck"),
        ];
        let broken = templates.broken();
        assert_eq!(broken.len(), expected.len(), "{broken:#?}");
        for ((name, error), (expected_name, text)) in broken.iter().zip(expected) {
            assert!(name == expected_name && error.contains(text), "{name}: {error}");
            assert_eq!(templates.golden(name), Err(Error::Broken { error: error.clone() }));
        }
        let good = templates.golden("good").unwrap();
        let hook = good.hooks_dir.as_ref().unwrap().join("a.pb.js");
        assert!(hook.metadata().unwrap().permissions().readonly());
        assert!(good.public_dir.as_ref().unwrap().join("index.html").is_file());
        assert_eq!(fs::read_dir(&locations.staging).unwrap().count(), 0);
    }

    #[test]
    fn the_hash_depends_on_paths_contents_and_version_and_not_on_other_files() {
        let root = tempfile::tempdir().unwrap();
        let hash = |version: &str| Template::load(root.path(), "a", version).unwrap().hash;
        write(&root.path().join("a/pb_migrations/1_a.js"), "one");
        let first = hash("1");
        write(&root.path().join("a/README.md"), "words");
        assert_eq!(hash("1"), first);
        assert_ne!(hash("2"), first);
        write(&root.path().join("a/pb_migrations/1_a.js"), "two");
        let second = hash("1");
        assert_ne!(second, first);
        fs::rename(root.path().join("a/pb_migrations/1_a.js"), root.path().join("a/pb_migrations/1_b.js")).unwrap();
        assert_ne!(hash("1"), second);
    }

    #[tokio::test]
    async fn a_golden_directory_of_another_hash_is_refused_and_left_alone() {
        let root = tempfile::tempdir().unwrap();
        let mut locations = locations(&root);
        locations.binary = "/nonexistent".into();
        let template = Template::load(&locations.templates, "personal", &locations.version).unwrap();
        let foreign = locations.golden.join(template.golden_name());
        write(&foreign.join(COMPLETE), "something else");
        let Err(Error::Broken { error }) = Templates::open(&locations).await.unwrap().golden("personal") else {
            panic!("a foreign folder was used");
        };
        assert!(error.contains("move it away"), "{error}");
        assert!(foreign.join(COMPLETE).is_file());
    }
}
