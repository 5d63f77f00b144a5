//! Runs `nft`, which speaks to the kernel for us: one run is one transaction.
//!
//! Its input and output are files in memory, so that a long listing cannot fill a pipe that nobody reads.

use std::fs::File;
use std::io;
use std::io::Read;
use std::io::Seek;
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::process::Stdio;
use std::time::Duration;
use std::time::Instant;

use rustix::fs::MemfdFlags;

/// Where it may be. Not looked for in `PATH`: it runs with our privileges.
const PLACES: [&str; 6] = [
    "/usr/sbin/nft",
    "/sbin/nft",
    "/usr/bin/nft",
    "/usr/local/sbin/nft",
    "/usr/local/bin/nft",
    "/run/current-system/sw/bin/nft",
];
/// A hundred thousand elements take some ten seconds.
const LIMIT: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(2);
/// Of what it complains of.
const LONGEST: usize = 300;

/// Why a run did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no such program.
    #[error("there is no `nft` in /usr/sbin: install the package nftables")]
    Missing,
    /// It could not be run.
    #[error("run nft: {0}")]
    Io(#[from] io::Error),
    /// It was killed.
    #[error("nft did not end within {LIMIT:?}")]
    Deadline,
    /// The kernel, or the program, did not take it.
    #[error("nft: {0}")]
    Refused(String),
    /// The data directory does not take the note about the rules.
    #[error("write network.json into the data directory: {0}")]
    Note(#[source] io::Error),
}

/// What is done with the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::supervisor::jail) enum Mode {
    /// The kernel looks whether it would take it.
    Check,
    /// It is put into force, all or nothing.
    Apply,
}

/// Hands a text to the kernel. Blocks.
pub(super) fn run(mode: Mode, text: &str) -> Result<(), Error> {
    let args: &[&str] = match mode {
        Mode::Check => &["-c", "-f", "-"],
        Mode::Apply => &["-f", "-"],
    };
    start(args, text).map(drop)
}

/// The names of all tables of the family that ours is in. Blocks.
pub(super) fn tables() -> Result<Vec<String>, Error> {
    let list = start(&["list", "tables", "inet"], "")?;
    Ok(list.lines().filter_map(|line| line.strip_prefix("table inet ")).map(|name| name.trim().to_owned()).collect())
}

/// A table as text, with numbers for names; none when there is no such table. Blocks.
pub(super) fn list(table: &str) -> Result<Option<String>, Error> {
    match start(&["-n", "list", "table", "inet", table], "") {
        Ok(text) => Ok(Some(text)),
        Err(Error::Refused(why)) if why.contains("No such file or directory") => Ok(None),
        Err(error) => Err(error),
    }
}

fn start(args: &[&str], input: &str) -> Result<String, Error> {
    let program = PLACES.iter().map(Path::new).find(|path| path.is_file()).ok_or(Error::Missing)?;
    let (mut script, mut said, mut complaint) = (memory()?, memory()?, memory()?);
    script.write_all(input.as_bytes())?;
    script.rewind()?;
    #[expect(clippy::disallowed_methods, reason = "one of the places that start processes")]
    let mut command = Command::new(program);
    command.args(args).env_clear().current_dir("/");
    command.stdin(Stdio::from(script)).stdout(Stdio::from(said.try_clone()?)).stderr(complaint.try_clone()?);
    let mut child = command.spawn()?;
    let deadline = Instant::now() + LIMIT;
    let status = loop {
        match child.try_wait()? {
            Some(status) => break status,
            None if Instant::now() >= deadline => {
                child.kill()?;
                child.wait()?;
                return Err(Error::Deadline);
            }
            None => std::thread::sleep(POLL),
        }
    };
    let read = |file: &mut File| {
        let mut text = String::new();
        file.rewind()?;
        file.read_to_string(&mut text)?;
        io::Result::Ok(text)
    };
    if status.success() {
        return Ok(read(&mut said)?);
    }
    let text = read(&mut complaint)?;
    // The rest repeats what it was given.
    let first = text.lines().next().unwrap_or("it ended without a word");
    let first = first.rsplit_once("Error: ").map_or(first, |(_, why)| why);
    Err(Error::Refused(first.chars().take(LONGEST).collect()))
}

fn memory() -> io::Result<File> {
    Ok(rustix::fs::memfd_create("nft", MemfdFlags::CLOEXEC)?.into())
}
