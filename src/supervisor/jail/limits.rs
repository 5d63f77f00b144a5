//! Resource limits of one process.

use rustix::process::Resource;
use rustix::process::Rlimit;
use serde::Deserialize;
use serde::Serialize;

/// Limits of one process; 0 leaves one alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// `RLIMIT_NOFILE`.
    pub nofile: u64,
    /// `RLIMIT_NPROC`: processes and threads of the user, so it means one tenant only where each has a user.
    pub nproc: u64,
    /// `RLIMIT_DATA` in bytes.
    pub data_bytes: u64,
    /// `RLIMIT_FSIZE` in bytes: the largest file.
    pub file_bytes: u64,
}

/// Sets them. There are never core files: they would hold keys and other people's records.
pub(super) fn apply(limits: &Limits) -> rustix::io::Result<()> {
    let set = |resource, value: u64| {
        let hard = rustix::process::getrlimit(resource).maximum;
        let value = Some(hard.map_or(value, |hard| value.min(hard)));
        rustix::process::setrlimit(resource, Rlimit { current: value, maximum: value })
    };
    set(Resource::Core, 0)?;
    for (resource, value) in [
        (Resource::Nofile, limits.nofile),
        (Resource::Nproc, limits.nproc),
        (Resource::Data, limits.data_bytes),
        (Resource::Fsize, limits.file_bytes),
    ] {
        if value > 0 {
            set(resource, value)?;
        }
    }
    Ok(())
}
