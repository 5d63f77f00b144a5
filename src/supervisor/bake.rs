//! Baking: a template becomes a golden directory.
//!
//! The steps: copy the template, run its migrations with `migrate up`, set what every instance of ours needs by
//! SQL, then serve it once and ask it as its superuser. The last step is the proof (broken hooks end the process,
//! and settings that lock us out show here and not at a user's first request), and it lets `PocketBase` write what it
//! writes at a first start. All of it happens in a staging folder; one rename publishes the result.

use std::ffi::OsStr;
use std::fs;
use std::fs::DirBuilder;
use std::fs::Permissions;
use std::io;
use std::io::Read;
use std::net::Ipv4Addr;
use std::net::SocketAddr;
use std::net::TcpListener;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Duration;
use std::time::SystemTime;

use hyper::header::HeaderValue;
use rand::RngExt;
use serde_json::Value;
use serde_json::json;
use tokio::time::Instant;

use crate::pocketbase::database;
use crate::pocketbase::database::Durability;
use crate::supervisor::excerpt::excerpt;
use crate::supervisor::files;
use crate::supervisor::health;
use crate::supervisor::jail;
use crate::supervisor::jail::Limits;
use crate::supervisor::manifest;
use crate::supervisor::oneshot;
use crate::supervisor::oneshot::Oneshot;
use crate::supervisor::owner;
use crate::supervisor::template::BAKED_BY;
use crate::supervisor::template::COMPLETE;
use crate::supervisor::template::Golden;
use crate::supervisor::template::LoadError;
use crate::supervisor::template::Locations;
use crate::supervisor::template::STAGING_PREFIXES;
use crate::supervisor::template::Template;

/// Part of every template's hash: raise it when baking changes in a way that the settings do not show.
pub(super) const BAKE_FORMAT: u32 = 1;

/// Longest time for the migrations, and for the trial start.
const LIMIT: Duration = Duration::from_secs(30);

/// What a template's code gets while it is baked.
pub(super) const LIMITS: Limits = Limits { nofile: 4_096, nproc: 0, data_bytes: 2 << 30, file_bytes: 8 << 30 };

/// How often the trial start is asked whether it is healthy.
const POLL: Duration = Duration::from_millis(5);

/// Bytes of `types.d.ts` that `PocketBase` compares to see whether its 800 KB have to be written again.
const TYPES_STAMP: u64 = 13;

/// Why a template could not be baked.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// The file system refused.
    #[error("cannot {0}")]
    Io(&'static str, #[source] io::Error),
    /// The template changed between reading and copying it.
    #[error("the template changed while it was read; start again")]
    Changed,
    /// The copy is not a template.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The database that the migrations left cannot be worked on.
    #[error(transparent)]
    Database(#[from] database::Error),
    /// `PocketBase` could not be run to an end.
    #[error("cannot run PocketBase: {output}")]
    Process {
        /// What it said, redacted.
        output: String,
        /// The reason.
        source: oneshot::Error,
    },
    /// The migrations failed.
    #[error("the migrations failed with {status}: {output}")]
    Migration {
        /// How it ended.
        status: ExitStatus,
        /// What it said, redacted.
        output: String,
    },
    /// The trial start ended by itself, or badly.
    #[error("the trial start ended with {status}: {output}")]
    Trial {
        /// How it ended.
        status: ExitStatus,
        /// What it said, redacted.
        output: String,
    },
    /// The trial start never answered its superuser.
    #[error("the trial start did not become healthy: {output}")]
    Unhealthy {
        /// What it said, redacted.
        output: String,
        /// The last answer.
        source: health::Error,
    },
    /// A clean stop leaves no write-ahead log.
    #[error("PocketBase left {} behind", .0.display())]
    Unclean(PathBuf),
}

/// The settings of every instance, as JSON pointers into `PocketBase`'s own.
pub(super) fn settings(app_name: &str) -> Vec<(&'static str, Value)> {
    vec![
        ("/meta/appName", json!(app_name)),
        // Errors only: PocketBase's request log costs more than our proxy, and we log requests.
        ("/logs/minLevel", json!(8)),
        ("/logs/maxDays", json!(3)),
        ("/batch/enabled", json!(true)),
        ("/batch/maxRequests", json!(50)),
        // Seconds. Its own 3 are too short for a page of transcripts on a disk that is busy.
        ("/batch/timeout", json!(30)),
        // The lock: our own calls carry no X-Forwarded-For and come from 127.0.0.1; everything forwarded carries
        // exactly one, so that a superuser's token is refused even when it is valid.
        ("/trustedProxy/headers", json!(["X-Forwarded-For"])),
        ("/trustedProxy/useLeftmostIP", json!(false)),
        ("/superuserIPs", json!(["127.0.0.1"])),
        // Limits are the gateway's.
        ("/rateLimits/enabled", json!(false)),
    ]
}

/// What every version says when a migration fails.
pub(super) const FAILED_MIGRATION: &str = "failed to apply migration";

/// The golden directory of a template: an existing one, else a fresh one.
pub(super) async fn golden(template: &Template, locations: &Locations) -> Result<Golden, Error> {
    let find = || Golden::find(&locations.golden, template).map_err(|e| Error::Io("use the golden directory", e));
    if let Some(mut golden) = find()? {
        if golden.pocketbase.is_empty() {
            // Baked before this was noted. The hash says which version it was.
            golden.pocketbase.clone_from(&locations.version);
            let path = locations.golden.join(template.golden_name()).join(BAKED_BY);
            fs::write(path, &locations.version).map_err(|error| Error::Io("note who baked a template", error))?;
        }
        return Ok(golden);
    }
    bake(template, locations).await?;
    find()?.ok_or_else(|| Error::Io("find the golden directory", io::ErrorKind::NotFound.into()))
}

async fn bake(template: &Template, locations: &Locations) -> Result<(), Error> {
    let staging = tempfile::Builder::new()
        .prefix(STAGING_PREFIXES[0])
        .tempdir_in(&locations.staging)
        .map_err(|error| Error::Io("make a staging folder", error))?;
    let work = Work::prepare(staging.path(), template, locations)?;
    work.migrate().await?;
    let database = work.data.join("data.db");
    database::edit(&database, Durability::Synced, |edit| {
        edit.install_superuser()?;
        edit.apply_settings(&settings(&template.app_name))
    })?;
    work.trial(&database).await?;
    work.finish(template, &locations.golden)
}

/// A bake under way: the paths, and the template as copied.
struct Work<'a> {
    staging: PathBuf,
    root: PathBuf,
    data: PathBuf,
    empty: PathBuf,
    output: PathBuf,
    copy: Template,
    locations: &'a Locations,
}

impl<'a> Work<'a> {
    fn prepare(staging: &Path, template: &Template, locations: &'a Locations) -> Result<Self, Error> {
        let root = staging.join("golden");
        let empty = staging.join("empty");
        let make = |path: &Path| DirBuilder::new().mode(0o700).create(path);
        make(&root).and_then(|()| make(&empty)).map_err(|error| Error::Io("make a staging folder", error))?;
        let dir = Golden::template_dir(&root);
        template.copy_to(&dir).map_err(|error| Error::Io("copy the template", error))?;
        let copy = Template::load_from(&dir, &template.name, &locations.version)?;
        if copy.hash != template.hash {
            return Err(Error::Changed);
        }
        let data = Golden::data_dir(&root);
        let output = staging.join("output");
        let work = Self { staging: staging.to_owned(), root, data, empty, output, copy, locations };
        work.lend().map_err(|error| Error::Io("give the staging folder to the user that bakes", error))?;
        Ok(work)
    }

    /// Makes what the sandbox takes: folders to write in, and the rest readable for another user.
    fn lend(&self) -> io::Result<()> {
        let temporary = self.staging.join(jail::TMP);
        fs::create_dir(&temporary)?;
        fs::create_dir(&self.data)?;
        let Some(user) = self.locations.isolation.baker() else { return Ok(()) };
        for folder in [&self.staging, &self.root] {
            fs::set_permissions(folder, Permissions::from_mode(0o711))?;
        }
        owner::publish(&self.empty)?;
        self.parts().iter().try_for_each(|part| owner::publish(part))?;
        owner::lend(&temporary, user)?;
        owner::lend(&self.data, user)
    }

    /// The folders of the copied template.
    fn parts(&self) -> Vec<PathBuf> {
        [&self.copy.migrations, &self.copy.hooks, &self.copy.public].into_iter().flatten().cloned().collect()
    }

    /// Starts the program on the template's code: in the sandbox, where there is one.
    fn start(&self, args: &[&OsStr], listens: Option<SocketAddr>) -> Result<Oneshot, Error> {
        let (binary, isolation) = (&self.locations.binary, &self.locations.isolation);
        if isolation.level == 0 {
            let started = Oneshot::start(binary, args, &self.empty, &self.output);
            return started.map_err(|source| self.process(source));
        }
        let spec = jail::Spec {
            program: binary.clone(),
            args: args.iter().map(|argument| argument.to_string_lossy().into_owned()).collect(),
            environment: Vec::new(),
            directory: self.staging.clone(),
            lock: self.staging.join("lock"),
            limits: isolation.limits(LIMITS),
            cgroup: None,
            sandbox: Some(jail::Sandbox {
                program: binary.clone(),
                write: vec![self.data.clone(), self.staging.join(jail::TMP)],
                read: self.parts().into_iter().chain([self.empty.clone()]).collect(),
                bind: listens.map(|address| address.port()),
                outbound: manifest::ports(Some(&self.copy.traits)),
                user: isolation.baker(),
            }),
        };
        let started = Oneshot::start_jailed(&isolation.jailer, &spec, &self.output);
        started.map_err(|source| self.process(source))
    }

    async fn migrate(&self) -> Result<(), Error> {
        let args = [
            "--dir".as_ref(),
            self.data.as_os_str(),
            "--hooksDir".as_ref(),
            self.empty.as_os_str(),
            "--migrationsDir".as_ref(),
            self.copy.migrations.as_deref().unwrap_or(&self.empty).as_os_str(),
            "--publicDir".as_ref(),
            self.empty.as_os_str(),
            "migrate".as_ref(),
            "up".as_ref(),
        ];
        let ended = self.start(&args, None)?.wait(LIMIT).await;
        let status = ended.map_err(|source| self.process(source))?;
        let output = excerpt(&self.output);
        // Before 0.40 it ends with 0 all the same.
        let has_failed = !status.success() || output.contains(FAILED_MIGRATION);
        if has_failed { Err(Error::Migration { status, output }) } else { Ok(()) }
    }

    /// Serves the directory until it answered its superuser, and stops it.
    async fn trial(&self, database: &Path) -> Result<(), Error> {
        let address = free_address().map_err(|error| Error::Io("find a free loopback address", error))?;
        let token = database::superuser(database)?.mint(SystemTime::now(), LIMIT * 2);
        let mut authorization = HeaderValue::try_from(format!("Bearer {token}"))
            .map_err(|error| Error::Io("mint a token", io::Error::other(error)))?;
        authorization.set_sensitive(true);
        let http = address.to_string();
        let hooks = self.copy.hooks.as_deref().unwrap_or(&self.empty);
        let args: [&OsStr; 14] = [
            "--dir".as_ref(),
            self.data.as_os_str(),
            "--hooksDir".as_ref(),
            hooks.as_os_str(),
            "--migrationsDir".as_ref(),
            self.empty.as_os_str(),
            "--publicDir".as_ref(),
            self.copy.public.as_deref().unwrap_or(&self.empty).as_os_str(),
            "--automigrate=false".as_ref(),
            // With a watcher, PocketBase serves on without the hooks that do not compile.
            "--hooksWatch=false".as_ref(),
            "--hooksPool=1".as_ref(),
            "serve".as_ref(),
            "--http".as_ref(),
            http.as_ref(),
        ];
        let mut run = self.start(&args, Some(address))?;
        self.healthy(&mut run, address, &authorization).await?;
        let status = run.terminate(LIMIT).await.map_err(|source| self.process(source))?;
        if status.success() { Ok(()) } else { Err(Error::Trial { status, output: excerpt(&self.output) }) }
    }

    async fn healthy(&self, run: &mut Oneshot, address: SocketAddr, token: &HeaderValue) -> Result<(), Error> {
        let deadline = Instant::now() + LIMIT;
        loop {
            if let Some(status) = run.ended().map_err(|source| self.process(source))? {
                return Err(Error::Trial { status, output: excerpt(&self.output) });
            }
            let source = match health::check(address, token, Duration::from_secs(2)).await {
                // Any other address would mean that the lock of the settings does not see our calls as ours.
                Ok(seen) if seen == Ipv4Addr::LOCALHOST => return Ok(()),
                Ok(_) => health::Error::NotOurs,
                Err(error) => error,
            };
            if Instant::now() >= deadline {
                return Err(Error::Unhealthy { output: excerpt(&self.output), source });
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Keeps what instances need, marks it as whole and publishes it.
    fn finish(&self, template: &Template, golden_root: &Path) -> Result<(), Error> {
        for name in ["data.db", "auxiliary.db"] {
            settle(&self.data.join(name))?;
        }
        let publish = || {
            if self.locations.isolation.has_users() {
                owner::take_back(&self.data)?;
            }
            tidy(&self.data)?;
            fs::write(self.root.join(BAKED_BY), &self.locations.version)?;
            fs::write(self.root.join(COMPLETE), &template.hash)?;
            files::sync_tree(&self.root)?;
            files::rename_new(&self.root, &golden_root.join(template.golden_name()))
        };
        publish().map_err(|error| Error::Io("publish the golden directory", error))
    }

    fn process(&self, source: oneshot::Error) -> Error {
        Error::Process { output: excerpt(&self.output), source }
    }
}

/// Sees to it that a database consists of one file: copying one that does not would lose what its log holds.
fn settle(database: &Path) -> Result<(), Error> {
    let companions = ["-wal", "-shm"].map(|suffix| {
        let mut path = database.as_os_str().to_owned();
        path.push(suffix);
        PathBuf::from(path)
    });
    let left = || companions.iter().find(|path| path.exists());
    if left().is_some() {
        // Opening and closing it checkpoints the log and removes both files.
        database::edit(database, Durability::Synced, |_| Ok(()))?;
    }
    left().map_or(Ok(()), |path| Err(Error::Unclean(path.clone())))
}

/// Removes what a data directory does not need before its first start, and cuts `types.d.ts` to its stamp.
fn tidy(data: &Path) -> io::Result<()> {
    for entry in fs::read_dir(data)? {
        let path = entry?.path();
        match path.file_name().and_then(OsStr::to_str) {
            Some("data.db" | "auxiliary.db" | "storage") => {}
            Some("types.d.ts") => {
                let mut stamp = Vec::new();
                fs::File::open(&path)?.take(TYPES_STAMP).read_to_end(&mut stamp)?;
                fs::write(&path, stamp)?;
            }
            // All of this was made by the two runs above, in our own staging folder.
            _ if path.is_dir() => fs::remove_dir_all(path)?,
            _ => fs::remove_file(path)?,
        }
    }
    Ok(())
}

/// A loopback address that nothing listens on. Another process may take it before we do: then the trial fails to
/// bind, or does not prove who it is, and never the wrong one is believed.
fn free_address() -> io::Result<SocketAddr> {
    let mut random = rand::rng();
    let ip = Ipv4Addr::new(127, random.random_range(1..=254), random.random(), random.random_range(1..=254));
    TcpListener::bind((ip, 0))?.local_addr()
}
