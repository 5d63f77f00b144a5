//! Which level of isolation this machine and this process give, and what is missing for more.
//!
//! Looked up once at the start and then a value like any other. Nothing here changes anything.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::path::PathBuf;

use serde::Serialize;
use sha2::Digest;
use sha2::Sha256;

use crate::supervisor::jail::Limits;
use crate::supervisor::jail::cgroup::Groups;
use crate::supervisor::jail::config::Config;
use crate::supervisor::jail::config::Wanted;
use crate::supervisor::jail::landlock;
use crate::supervisor::jail::network;
use crate::supervisor::jail::network::Network;
use crate::supervisor::jail::uid;
use crate::supervisor::process;

/// Part of every profile: raise it when the jailer does something else with the same values.
const FORMAT: u32 = 3;

/// Threads and processes of a tenant that has a user of its own, where the configuration does not say.
const NPROC: u64 = 256;

/// How far processes are kept from each other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Isolation {
    /// 0 = resource limits only; 1 = Landlock and seccomp; 2 = and a user for each tenant; 3 = and rules of the packet
    /// filter for each.
    pub level: u8,
    /// What is in the way of the level that was asked for, and what of the present one this kernel cannot enforce.
    pub missing: Vec<String>,
    /// The jailer.
    pub(crate) jailer: PathBuf,
    /// Control groups with limits, where such limits are configured and can be set.
    pub groups: Option<Groups>,
    /// The rules of level 3, once they were set up.
    pub(crate) network: Option<Network>,
    users: Users,
}

/// The range of user ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Users {
    pub(crate) base: u32,
    pub(crate) count: u32,
}

/// What is enforced, for operators.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[schema(as = IsolationReport)]
pub struct Report {
    /// The level.
    pub level: u8,
    /// What it means, in a few words.
    pub means: &'static str,
    /// What is missing or not enforced, a sentence each.
    pub missing: Vec<String>,
    /// The rules of level 3.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<network::Report>,
}

impl Isolation {
    /// No sandbox at all: for looking at templates in tests of this crate.
    pub fn none() -> Self {
        let users = Users { base: 0, count: 0 };
        Self { level: 0, missing: Vec::new(), jailer: process::own_program(), groups: None, network: None, users }
    }

    /// Prepares control groups, where the configuration sets limits that take them. Moves this process into one of its
    /// own.
    #[must_use]
    pub fn with_groups(mut self, config: &Config) -> Self {
        match Groups::set_up(config) {
            Ok(groups) => self.groups = groups,
            Err(why) => self.missing.push(why),
        }
        self
    }

    /// Puts the rules of level 3 into force, where that is the level. Where they are refused it is 2. Below, removes those
    /// of an earlier run: where that is refused it is 1, at which nobody runs as the users that they are about. A start
    /// that is below `required` leaves them, for the instances that it leaves. Blocks.
    #[must_use]
    pub fn with_network(mut self, data: &Path, required: u8) -> Self {
        if self.level >= 3 {
            match Network::set_up(data, self.users.base, self.users.count) {
                Ok(network) => self.network = Some(network),
                Err(error) => {
                    self.level = 2;
                    self.missing.push(format!("the rules of level 3 were refused: {error}"));
                }
            }
        }
        if self.network.is_none()
            && self.level >= required
            && let Err(why) = network::clear(data, network::Mode::Apply)
        {
            self.level = self.level.min(1);
            if !self.missing.contains(&why) {
                self.missing.push(why);
            }
        }
        self
    }

    /// Looks at the kernel, at the privileges of this process, and at whether other users could reach what is named.
    pub fn detect(config: &Config, data: &Path, binaries: &[PathBuf]) -> Self {
        let wanted = config.wanted_level();
        let users = Users { base: config.uid_base, count: config.uid_count };
        let mut missing = Vec::new();
        let mut level = 0;
        if wanted >= 1 {
            match first(landlock::version(), has_seccomp()) {
                Ok(weak) => {
                    level = 1;
                    missing.extend(weak);
                }
                Err(why) => missing.push(why),
            }
        }
        if wanted >= 2 && level == 1 {
            let mut lacks = second(users, data, binaries);
            // Its rules hold for our tenants as well, whatever our level: they could not answer us.
            if lacks.is_empty()
                && let Some(table) = network::rival(data, users.base, users.count)
            {
                lacks.push(format!(
                    "another pocketfleet of this machine has users of the same range (its rules are the nftables table \
                     inet {table}): set isolation.uid_base to another range, or delete that table if its pocketfleet \
                     is gone"
                ));
            }
            if lacks.is_empty() {
                lacks.extend(network::clear(data, network::Mode::Check).err());
            }
            // Without a privilege nobody asked for a level that takes one.
            let is_expected = config.level == Wanted::Auto && !uid::lacking().is_empty();
            if lacks.is_empty() {
                level = 2;
            } else if is_expected {
                missing.push("level 2 takes root, or the capabilities that docs/isolation.md lists".to_owned());
            } else {
                missing.extend(lacks);
            }
        }
        if wanted >= 3 && level == 2 {
            match network::lacks(data, users.base, users.count) {
                None => level = 3,
                Some(why) => missing.push(why),
            }
        }
        Self { level, missing, jailer: process::own_program(), groups: None, network: None, users }
    }

    /// Whether tenants have users of their own.
    pub fn has_users(&self) -> bool {
        self.level >= 2
    }

    /// The users of tenants. The first of the range is the one that templates are baked as.
    pub(crate) fn users(&self) -> Option<Users> {
        self.has_users().then_some(self.users)
    }

    /// The user that templates are baked as.
    pub(crate) fn baker(&self) -> Option<u32> {
        self.users().map(|users| users.base)
    }

    /// For operators.
    pub fn report(&self) -> Report {
        let network = self.network.as_ref().map(Network::report);
        let lost = network.as_ref().and_then(|network| network.lost.as_ref());
        let mut missing = self.missing.clone();
        missing.extend(lost.map(|why| format!("the rules of level 3 are not in force, or not known to be: {why}")));
        let level = if lost.is_some() { 2 } else { self.level };
        let means = match level {
            0 => "resource limits only; template code can read and change everything that pocketfleet can",
            1 => "Landlock and seccomp; all processes share pocketfleet's user",
            2 => "Landlock, seccomp, and a user of its own for every tenant",
            _ => "Landlock, seccomp, a user of its own and rules of the packet filter for every tenant",
        };
        Report { level, means, missing, network }
    }

    /// The limits of one process: what is configured, and a bound of processes where a user means one tenant.
    pub(crate) fn limits(&self, configured: Limits) -> Limits {
        let nproc = if self.has_users() && configured.nproc == 0 { NPROC } else { configured.nproc };
        Limits { nproc, ..configured }
    }

    /// What a process was put under, in short: one that was adopted and is under another profile is not kept.
    pub(crate) fn profile(&self, limits: &Limits, outbound: &[u16], user: Option<u32>) -> String {
        let text = format!("{FORMAT}|{}|{limits:?}|{outbound:?}|{user:?}|{:?}", self.level, self.groups);
        let hash = Sha256::digest(text.as_bytes());
        let short = hash.iter().take(8).fold(0_u64, |short, byte| short << 8 | u64::from(*byte));
        format!("{}-{short:016x}", self.level)
    }
}

/// Level 1: what it lacks of its parts that it can do without, or why there is none.
fn first(landlock: i32, seccomp: bool) -> Result<Option<String>, String> {
    if landlock == 0 {
        return Err(
            "Landlock is not available: it takes Linux 6.7 with CONFIG_SECURITY_LANDLOCK, and `landlock` among \
                    the security modules (lsm=) that are on"
                .to_owned(),
        );
    }
    if landlock < landlock::FLOOR {
        return Err(format!("Landlock has version {landlock} here and cannot restrict TCP: it takes Linux 6.7"));
    }
    if !seccomp {
        return Err("seccomp filters are not available (CONFIG_SECCOMP_FILTER)".to_owned());
    }
    if landlock < landlock::SCOPED {
        let text = "signals and abstract sockets are not restricted by Landlock before Linux 6.12";
        return Ok(Some(text.to_owned()));
    }
    Ok(None)
}

/// Level 2: everything that is in the way.
fn second(users: Users, data: &Path, binaries: &[PathBuf]) -> Vec<String> {
    let mut missing = Vec::new();
    let lacking = uid::lacking();
    if !lacking.is_empty() {
        missing.push(format!("level 2 takes root, or these capabilities: {}", lacking.join(", ")));
    }
    if !uid::has_users(users.base, users.count) {
        let (first, last) = (users.base, u64::from(users.base) + u64::from(users.count) - 1);
        missing.push(format!(
            "the users {first} to {last} (isolation.uid_base, uid_count) do not exist in this container"
        ));
    }
    // The data directory itself is opened for them, its parents are not ours.
    let folders = data.parent().into_iter().chain(binaries.iter().filter_map(|binary| binary.parent()));
    if let Some(closed) = folders.flat_map(Path::ancestors).find(|folder| !is_open(folder, 0o001)) {
        let folder = closed.display();
        missing.push(format!(
            "the folder {folder} is closed to other users: chmod o+x {folder}, or move what is below it"
        ));
    }
    for binary in binaries.iter().filter(|binary| !is_open(binary, 0o005)) {
        missing.push(format!("other users may not run {0}: chmod o+rx {0}", binary.display()));
    }
    missing
}

/// Whether everybody has these permissions. What cannot be looked at will be complained of by whoever opens it.
fn is_open(path: &Path, bits: u32) -> bool {
    std::fs::metadata(path).map_or(true, |metadata| metadata.mode() & bits == bits)
}

fn has_seccomp() -> bool {
    std::fs::read_to_string("/proc/sys/kernel/seccomp/actions_avail").is_ok_and(|actions| actions.contains("errno"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn an_old_kernel_lowers_the_level_and_says_what_it_lacks() {
        assert_eq!(first(7, true), Ok(None));
        assert!(first(4, true).unwrap().unwrap().contains("signals"));
        assert!(first(0, true).unwrap_err().contains("6.7"));
        assert!(first(3, true).unwrap_err().contains("version 3"));
        assert!(first(7, false).unwrap_err().contains("seccomp"));
    }

    #[test]
    fn a_closed_folder_above_the_data_is_named() {
        let root = tempfile::tempdir().unwrap();
        let closed = root.path().join("closed");
        std::fs::create_dir(&closed).unwrap();
        std::fs::set_permissions(&closed, std::fs::Permissions::from_mode(0o700)).unwrap();
        let users = Users { base: 5_000, count: 10 };
        let missing = second(users, &closed.join("data"), &["/bin/sh".into()]);
        let needle = format!("chmod o+x {}", closed.display());
        let others = second(users, root.path(), &["/bin/sh".into(), closed.join("pocketbase")]);
        assert!(others.iter().any(|line| line.contains(&needle)), "any of the binaries: {others:?}");
        assert!(missing.iter().any(|line| line.contains(&needle)), "{missing:?}");
    }

    #[test]
    fn every_part_of_a_profile_counts() {
        let isolation = Isolation { level: 1, ..Isolation::none() };
        let limits = Limits { nofile: 1, nproc: 0, data_bytes: 2, file_bytes: 0 };
        let profile = isolation.profile(&limits, &[443], None);
        assert_eq!(profile, isolation.profile(&limits, &[443], None));
        for other in [
            isolation.profile(&Limits { nofile: 2, ..limits }, &[443], None),
            isolation.profile(&limits, &[], None),
            isolation.profile(&limits, &[443], Some(1)),
            Isolation { level: 2, ..isolation.clone() }.profile(&limits, &[443], None),
        ] {
            assert_ne!(profile, other);
        }
    }
}
