//! What a process may open, and where it may connect to: Landlock, which needs no privilege and is never lifted.
//!
//! Floor: files and TCP (ABI 4, Linux 6.7); without it there is no level 1. Signals and abstract sockets (ABI 6) and
//! named sockets (ABI 9) are closed where the kernel can. Landlock does not see UDP, and of TCP only sockets of the
//! protocol TCP itself: `seccomp` closes the rest.

use std::path::Path;
use std::path::PathBuf;

use landlock::ABI;
use landlock::Access;
use landlock::AccessFs;
use landlock::AccessNet;
use landlock::BitFlags;
use landlock::CompatLevel;
use landlock::Compatible;
use landlock::NetPort;
use landlock::PathBeneath;
use landlock::PathFd;
use landlock::Ruleset;
use landlock::RulesetAttr;
use landlock::RulesetCreated;
use landlock::RulesetCreatedAttr;
use landlock::RulesetStatus;
use landlock::Scope;

use crate::supervisor::jail::Sandbox;

/// The least that level 1 promises.
pub const FLOOR: i32 = 4;
/// From here on signals and abstract sockets stay inside.
pub const SCOPED: i32 = 6;

/// What every Go program looks at, and what calls to the outside need. What does not exist is left out. No folder here
/// has anything of a tenant's or of ours.
const SYSTEM: [&str; 20] = [
    "/etc/hosts",
    "/etc/resolv.conf",
    "/etc/nsswitch.conf",
    // Certificates, and not the private keys beside them.
    "/etc/ssl/certs",
    "/etc/ssl/cert.pem",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/tls/certs",
    "/etc/pki/tls/cert.pem",
    "/etc/pki/ca-trust/extracted",
    "/etc/localtime",
    "/etc/mime.types",
    "/usr/share/mime/globs2",
    "/usr/share/zoneinfo",
    "/usr/share/ca-certificates",
    "/usr/local/share/ca-certificates",
    "/dev/urandom",
    "/dev/null",
    // How long the queue of a listener may be, and how large pages are.
    "/proc/sys/net/core/somaxconn",
    "/sys/kernel/mm/transparent_hugepage/hpage_pmd_size",
    "/sys/devices/system/cpu/possible",
];

/// `LANDLOCK_CREATE_RULESET_VERSION`.
const VERSION: u32 = 1;

/// Why there is no ruleset.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A path of the instance cannot be opened.
    #[error("open {}: {source}", path.display())]
    Path {
        /// Which.
        path: PathBuf,
        /// Why.
        source: landlock::PathFdError,
    },
    /// The kernel refused.
    #[error("{0}")]
    Ruleset(#[from] landlock::RulesetError),
    /// The kernel took less than the floor.
    #[error("the kernel does not enforce the rules")]
    NotEnforced,
}

/// The version of Landlock that the kernel has; 0 without it.
pub fn version() -> i32 {
    #[expect(unsafe_code, reason = "asking for the version has no safe form, and the crate keeps its own to itself")]
    // SAFETY: with this flag the call takes no pointer and changes nothing.
    let answer =
        unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, std::ptr::null::<libc::c_void>(), 0_usize, VERSION) };
    i32::try_from(answer).unwrap_or(0).max(0)
}

/// Opens everything that the rules name. While the process may still open it: the uid may be dropped before the rules
/// are put into force.
pub(super) fn rules(sandbox: &Sandbox) -> Result<RulesetCreated, Error> {
    let mut rules = Ruleset::default()
        .set_compatibility(CompatLevel::HardRequirement)
        .handle_access(AccessFs::from_all(ABI::V4))?
        .handle_access(AccessNet::from_all(ABI::V4))?
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(ABI::V9))?
        .scope(Scope::from_all(ABI::V6))?
        .create()?;
    let open = |path: &Path| PathFd::new(path).map_err(|source| Error::Path { path: path.to_owned(), source });
    rules = rules.add_rule(PathBeneath::new(open(&sandbox.program)?, AccessFs::Execute | AccessFs::ReadFile))?;
    for path in &sandbox.write {
        rules = rules.add_rule(PathBeneath::new(open(path)?, written()))?;
    }
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    for path in &sandbox.read {
        let access = if path.is_dir() { read } else { AccessFs::ReadFile.into() };
        rules = rules.add_rule(PathBeneath::new(open(path)?, access))?;
    }
    for path in SYSTEM {
        let Ok(opened) = PathFd::new(path) else { continue };
        let mut access = if Path::new(path).is_dir() { read } else { AccessFs::ReadFile.into() };
        if path == "/dev/null" {
            access |= AccessFs::WriteFile;
        }
        rules = rules.add_rule(PathBeneath::new(opened, access))?;
    }
    if let Some(port) = sandbox.bind {
        rules = rules.add_rule(NetPort::new(port, AccessNet::BindTcp))?;
    }
    for port in &sandbox.outbound {
        rules = rules.add_rule(NetPort::new(*port, AccessNet::ConnectTcp))?;
    }
    Ok(rules)
}

/// What a process may do in its own folders: files and folders. Nothing there is ever executed, and links, pipes,
/// sockets and devices are what somebody who opens files there (we do) could be led astray by.
fn written() -> BitFlags<AccessFs> {
    AccessFs::ReadFile
        | AccessFs::ReadDir
        | AccessFs::WriteFile
        | AccessFs::Truncate
        | AccessFs::MakeReg
        | AccessFs::MakeDir
        | AccessFs::RemoveFile
        | AccessFs::RemoveDir
        | AccessFs::Refer
}

/// Puts the rules into force for this thread and whatever it becomes. Needs `no_new_privs`.
pub(super) fn enforce(rules: RulesetCreated) -> Result<(), Error> {
    let status = rules.restrict_self()?;
    if status.ruleset == RulesetStatus::NotEnforced { Err(Error::NotEnforced) } else { Ok(()) }
}
