//! Proving that a data directory is good: served in a scratch folder until it answers its own superuser.
//!
//! Nobody else learns the address, and nothing of the tenant runs: no hooks, no migrations, no public files. What is
//! served may be anything that somebody put into a store of backups, so the process is shut in like an instance, as the
//! tenant's user.

use std::ffi::OsStr;
use std::fs;
use std::fs::Permissions;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;
use std::time::SystemTime;

use hyper::header::HeaderValue;
use tokio::time::Instant;

use crate::ids::TenantId;
use crate::pocketbase::database;
use crate::supervisor::Supervisor;
use crate::supervisor::choice;
use crate::supervisor::config::Binary;
use crate::supervisor::excerpt::excerpt;
use crate::supervisor::fleet::Fleet;
use crate::supervisor::health;
use crate::supervisor::jail;
use crate::supervisor::jail::network;
use crate::supervisor::launch;
use crate::supervisor::oneshot;
use crate::supervisor::oneshot::Oneshot;
use crate::supervisor::owner;

const POLL: Duration = Duration::from_millis(10);

/// Why a data directory is not good.
#[derive(Debug, thiserror::Error)]
pub enum Unproved {
    /// Its database does not say who its superuser is.
    #[error("read its database")]
    Database(#[from] database::Error),
    /// The machine was in the way.
    #[error("start it")]
    Io(#[from] io::Error),
    /// No binary may serve it.
    #[error("{0}")]
    NoBinary(String),
    /// It could not be run.
    #[error("run it")]
    Process(#[from] oneshot::Error),
    /// The rules of level 3 are not in force.
    #[error("let it answer")]
    Network(#[from] network::Error),
    /// It ended, or did not answer as it should.
    #[error("it did not answer its superuser: {0}")]
    NoAnswer(String),
}

impl Supervisor {
    /// Serves `data` (which it may change: logs) of a tenant from a scratch folder until it answered, then stops it:
    /// with the `PocketBase` that wrote it, or the next newer one.
    /// Both folders are below the data directory, and belong to this process again afterwards.
    pub async fn prove(
        &self,
        tenant: &TenantId,
        pocketbase: &str,
        data: &Path,
        scratch: &Path,
        limit: Duration,
    ) -> Result<(), Unproved> {
        let fleet = &self.fleet;
        let binary = fleet.binaries.for_data_of(pocketbase);
        let binary = binary.ok_or_else(|| Unproved::NoBinary(choice::missing(pocketbase)))?;
        // A tenant that was erased has no user any more: its backup is tried as the one who tries templates.
        let user = fleet.isolation.baker().map(|baker| fleet.uids.find(tenant).unwrap_or(baker));
        let trial = Trial { fleet, tenant, binary, user, data, scratch };
        let database = data.join("data.db");
        let look = tokio::task::spawn_blocking(move || database::superuser(&database));
        let token = look.await.map_err(io::Error::other)??.mint(SystemTime::now(), limit * 2);
        let mut authorization = HeaderValue::try_from(format!("Bearer {token}")).map_err(io::Error::other)?;
        authorization.set_sensitive(true);
        trial.lend().await?;
        let outcome = trial.run(&authorization, limit).await;
        if user.is_some() {
            walk(data, owner::take_back).await?;
        }
        outcome
    }
}

/// Does something to a whole tree, which may be large.
async fn walk(root: &Path, work: impl FnOnce(&Path) -> io::Result<()> + Send + 'static) -> io::Result<()> {
    let root = root.to_owned();
    tokio::task::spawn_blocking(move || work(&root)).await.map_err(io::Error::other)?
}

struct Trial<'a> {
    fleet: &'a Fleet,
    tenant: &'a TenantId,
    binary: &'a Binary,
    user: Option<u32>,
    data: &'a Path,
    scratch: &'a Path,
}

impl Trial<'_> {
    /// Makes the folders that the sandbox takes.
    async fn lend(&self) -> io::Result<()> {
        let (empty, temporary) = (self.empty(), self.scratch.join(jail::TMP));
        fs::create_dir(&empty)?;
        fs::create_dir(&temporary)?;
        let Some(user) = self.user else { return Ok(()) };
        fs::set_permissions(self.scratch, Permissions::from_mode(0o711))?;
        owner::publish(&empty)?;
        owner::lend(&temporary, user)?;
        walk(self.data, move |data| owner::lend(data, user)).await
    }

    fn empty(&self) -> std::path::PathBuf {
        self.scratch.join("empty")
    }

    async fn run(&self, authorization: &HeaderValue, limit: Duration) -> Result<(), Unproved> {
        let address = launch::random_address();
        let _leave = match (&self.fleet.isolation.network, self.user) {
            (Some(network), Some(user)) => network.admit_trial(user, address).await?,
            _ => None,
        };
        let output = self.scratch.join("output");
        let mut run = self.start(address, &output)?;
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = run.ended()? {
                return Err(Unproved::NoAnswer(format!("{status}; {}", excerpt(&output))));
            }
            match health::check(address, authorization, Duration::from_secs(2)).await {
                Ok(_) => break,
                Err(error) if Instant::now() >= deadline => {
                    return Err(Unproved::NoAnswer(format!("{error}; {}", excerpt(&output))));
                }
                Err(_) => tokio::time::sleep(POLL).await,
            }
        }
        let status = run.terminate(limit).await?;
        if status.success() { Ok(()) } else { Err(Unproved::NoAnswer(format!("{status}; {}", excerpt(&output)))) }
    }

    fn start(&self, address: SocketAddr, output: &Path) -> Result<Oneshot, Unproved> {
        let (fleet, empty, http) = (self.fleet, self.empty(), address.to_string());
        let args: [&OsStr; 13] = [
            "--dir".as_ref(),
            self.data.as_os_str(),
            "--hooksDir".as_ref(),
            empty.as_os_str(),
            "--migrationsDir".as_ref(),
            empty.as_os_str(),
            "--publicDir".as_ref(),
            empty.as_os_str(),
            "--automigrate=false".as_ref(),
            "--hooksWatch=false".as_ref(),
            "serve".as_ref(),
            "--http".as_ref(),
            http.as_ref(),
        ];
        let program = &self.binary.path;
        if fleet.isolation.level == 0 {
            return Ok(Oneshot::start(program, &args, &empty, output)?);
        }
        let config = &fleet.config;
        let limits = jail::Limits {
            nofile: config.nofile,
            nproc: config.nproc,
            data_bytes: fleet.data_bytes(self.tenant),
            file_bytes: config.file_bytes,
        };
        let spec = jail::Spec {
            program: program.clone(),
            args: args.iter().map(|argument| argument.to_string_lossy().into_owned()).collect(),
            environment: Vec::new(),
            directory: self.scratch.to_owned(),
            lock: self.scratch.join("lock"),
            limits: fleet.isolation.limits(limits),
            // It is bounded by its time, and the tenant's group may be in use by its instance.
            cgroup: None,
            sandbox: Some(jail::Sandbox {
                program: program.clone(),
                write: vec![self.data.to_owned(), self.scratch.join(jail::TMP)],
                read: vec![empty.clone()],
                bind: Some(address.port()),
                outbound: Vec::new(),
                user: self.user,
            }),
        };
        Ok(Oneshot::start_jailed(&fleet.isolation.jailer, &spec, output)?)
    }
}
