//! Proving that a data directory is good: served in a scratch folder until it answers its own superuser.
//!
//! Nobody else learns the address, and nothing of the tenant runs: no hooks, no migrations, no public files.

use std::ffi::OsStr;
use std::io;
use std::net::Ipv4Addr;
use std::net::TcpListener;
use std::path::Path;
use std::time::Duration;
use std::time::SystemTime;

use hyper::header::HeaderValue;
use rand::RngExt;
use tokio::time::Instant;

use crate::pocketbase::database;
use crate::supervisor::excerpt::excerpt;
use crate::supervisor::health;
use crate::supervisor::oneshot;
use crate::supervisor::oneshot::Oneshot;

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
    /// It ended, or did not answer as it should.
    #[error("it did not answer its superuser: {0}")]
    NoAnswer(String),
}

/// Serves `data` (which it may change: logs) from a scratch folder until it answered, then stops it.
pub async fn prove(binary: &Path, data: &Path, scratch: &Path, limit: Duration) -> Result<(), Unproved> {
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
    let mut run = Oneshot::start(binary, &args, &empty, &output)?;
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
