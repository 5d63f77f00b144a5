//! Proving that a data directory is good: served in a scratch folder until it answers its own superuser.
//!
//! Nobody else learns the address, and nothing of the tenant runs: no hooks, no migrations, no public files. The process
//! is in the sandbox all the same: the data may be somebody's who wrote it to do harm.

use std::ffi::OsStr;
use std::io;
use std::net::Ipv4Addr;
use std::net::SocketAddr;
use std::net::TcpListener;
use std::path::Path;
use std::time::Duration;
use std::time::SystemTime;

use hyper::header::HeaderValue;
use rand::RngExt;
use tokio::time::Instant;

use crate::pocketbase::database;
use crate::supervisor::bake;
use crate::supervisor::excerpt::excerpt;
use crate::supervisor::health;
use crate::supervisor::jail;
use crate::supervisor::jail::Isolation;
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
    /// It could not be run.
    #[error("run it")]
    Process(#[from] oneshot::Error),
    /// No binary may serve it.
    #[error("{0}")]
    NoBinary(String),
    /// It ended, or did not answer as it should.
    #[error("it did not answer its superuser: {0}")]
    NoAnswer(String),
}

/// What serves it, and under what.
#[derive(Debug)]
pub(super) struct Under<'a> {
    pub(super) binary: &'a Path,
    pub(super) isolation: &'a Isolation,
    /// At level 2.
    pub(super) user: Option<u32>,
}

impl Under<'_> {
    fn start(
        &self,
        args: &[&OsStr],
        data: &Path,
        scratch: &Path,
        listens: SocketAddr,
    ) -> Result<Oneshot, oneshot::Error> {
        let (empty, output) = (scratch.join("empty"), scratch.join("output"));
        if self.isolation.level == 0 {
            return Oneshot::start(self.binary, args, &empty, &output);
        }
        let temporary = scratch.join(jail::TMP);
        let lend = || -> io::Result<()> {
            std::fs::create_dir(&temporary)?;
            let Some(user) = self.user else { return Ok(()) };
            owner::publish(&empty)?;
            owner::lend(&temporary, user)?;
            owner::lend(data, user)
        };
        lend().map_err(oneshot::Error::Start)?;
        let spec = self.spec(args, data, scratch, listens);
        Oneshot::start_jailed(&self.isolation.jailer, &spec, &output)
    }

    fn spec(&self, args: &[&OsStr], data: &Path, scratch: &Path, listens: SocketAddr) -> jail::Spec {
        jail::Spec {
            program: self.binary.to_owned(),
            args: args.iter().map(|argument| argument.to_string_lossy().into_owned()).collect(),
            directory: scratch.to_owned(),
            lock: scratch.join("lock"),
            limits: self.isolation.limits(bake::LIMITS),
            cgroup: None,
            sandbox: Some(jail::Sandbox {
                program: self.binary.to_owned(),
                write: vec![data.to_owned(), scratch.join(jail::TMP)],
                read: vec![scratch.join("empty")],
                bind: Some(listens.port()),
                outbound: Vec::new(),
                user: self.user,
            }),
        }
    }
}

/// Serves `data` (which it may change: logs) from a scratch folder until it answered, then stops it.
pub(super) async fn prove(under: &Under<'_>, data: &Path, scratch: &Path, limit: Duration) -> Result<(), Unproved> {
    let empty = scratch.join("empty");
    std::fs::create_dir(&empty)?;
    let token = database::superuser(&data.join("data.db"))?.mint(SystemTime::now(), limit * 2);
    let mut authorization = HeaderValue::try_from(format!("Bearer {token}")).map_err(io::Error::other)?;
    authorization.set_sensitive(true);
    let address = {
        let mut random = rand::rng();
        let ip = Ipv4Addr::new(127, random.random_range(1..=254), random.random(), random.random_range(1..=254));
        TcpListener::bind((ip, 0))?.local_addr()?
    };
    let (http, output) = (address.to_string(), scratch.join("output"));
    let args: [&OsStr; 13] = [
        "--dir".as_ref(),
        data.as_os_str(),
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
    let mut run = under.start(&args, data, scratch, address)?;
    let deadline = Instant::now() + limit;
    loop {
        if let Some(status) = run.ended()? {
            return Err(Unproved::NoAnswer(format!("{status}; {}", excerpt(&output))));
        }
        match health::check(address, &authorization, Duration::from_secs(2)).await {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trial_reaches_its_own_data_and_nothing_else() {
        let mut isolation = Isolation::none();
        isolation.level = 2;
        let under = Under { binary: Path::new("/opt/pocketbase"), isolation: &isolation, user: Some(1_900_000_007) };
        let (scratch, address) = (Path::new("/data/staging/backup-x"), SocketAddr::from((Ipv4Addr::LOCALHOST, 4_711)));
        let spec = under.spec(&["serve".as_ref()], &scratch.join("trial"), scratch, address);
        let sandbox = spec.sandbox.unwrap();
        assert_eq!(sandbox.user, Some(1_900_000_007));
        assert_eq!((spec.program, sandbox.program), ("/opt/pocketbase".into(), "/opt/pocketbase".into()));
        assert_eq!(sandbox.write, [scratch.join("trial"), scratch.join(jail::TMP)]);
        assert_eq!(sandbox.read, [scratch.join("empty")]);
        assert_eq!((sandbox.bind, sandbox.outbound), (Some(4_711), Vec::new()));
    }
}
