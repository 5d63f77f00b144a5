//! A control group for each instance: memory, CPU and processes of everything that it starts, together.
//!
//! Only where the configuration sets such a limit, and only in a part of the cgroup v2 hierarchy that was given to us
//! (`Delegate=yes`). A group with limits may hold no processes beside other groups, so pocketfleet itself moves into the
//! leaf `supervisor` and instances are put into `tenants/<tenant>`. Version 1 of the hierarchy is not used.
//!
//! A leaf ends with its run: nothing that a hook started outlives it there, however far it went from its parents.

use std::fs;
use std::io;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;

use tokio::time::Instant;

use crate::failpoint;
use crate::supervisor::jail::config::Config;

/// Our own leaf.
const SUPERVISOR: &str = "supervisor";
/// Where the instances' leaves are.
const TENANTS: &str = "tenants";
/// The period that `cpu.max` is told in, in microseconds.
const PERIOD: u64 = 100_000;
/// How long what is killed may take to be gone.
const END: Duration = Duration::from_secs(5);
/// Between two looks whether it is.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// The groups of instances, and what is set for each; 0 is not set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Groups {
    tenants: PathBuf,
    memory_bytes: u64,
    cpu_percent: u32,
    pids: u32,
}

impl Groups {
    /// Prepares the hierarchy for the limits that are configured: none when there are none. The text says what is in
    /// the way.
    pub(super) fn set_up(config: &Config) -> Result<Option<Self>, String> {
        let wanted = wanted(config);
        // A test has groups without limits in a place of its own.
        let chosen = failpoint::chosen("isolation.group").map(PathBuf::from);
        if wanted.is_empty() && chosen.is_none() {
            return Ok(None);
        }
        let keys = "isolation.memory_bytes, cpu_percent and pids are not enforced";
        let own = chosen.or_else(own).ok_or_else(|| format!("{keys}: there is no cgroup v2 here"))?;
        let root = if own.ends_with(SUPERVISOR) { own.parent().unwrap_or(&own).to_owned() } else { own.clone() };
        prepare(&root, root == own, &wanted).map_err(|why| format!("{keys}: {why}"))?;
        Ok(Some(Self {
            tenants: root.join(TENANTS),
            memory_bytes: config.memory_bytes,
            cpu_percent: config.cpu_percent,
            pids: config.pids,
        }))
    }

    /// Bytes of memory that one instance may have; 0 where that is not limited.
    pub(crate) fn memory_bytes(&self) -> u64 {
        self.memory_bytes
    }

    /// Makes the leaf of a tenant anew, with its limits; whatever is still in it is killed. Blocks.
    pub(crate) fn leaf(&self, tenant: &str) -> io::Result<PathBuf> {
        let leaf = self.path(tenant);
        // A new leaf counts from zero. One that cannot go yet (its last processes are being killed) is used again.
        if leaf.is_dir() {
            fs::write(leaf.join("cgroup.kill"), "1")?;
            drop(fs::remove_dir(&leaf));
        }
        match fs::create_dir(&leaf) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        if self.memory_bytes > 0 {
            fs::write(leaf.join("memory.max"), self.memory_bytes.to_string())?;
            // Without swap, or the limit would only move memory to the disk. Not every kernel has it.
            drop(fs::write(leaf.join("memory.swap.max"), "0"));
        }
        if self.cpu_percent > 0 {
            fs::write(leaf.join("cpu.max"), format!("{} {PERIOD}", u64::from(self.cpu_percent) * PERIOD / 100))?;
        }
        if self.pids > 0 {
            fs::write(leaf.join("pids.max"), self.pids.to_string())?;
        }
        Ok(leaf)
    }

    /// Ends what is left of a tenant's run, whatever sessions and parents it made for itself, and removes the leaf. What it
    /// knew is gone with it.
    pub(crate) async fn end(&self, tenant: &str) {
        let leaf = self.path(tenant);
        let deadline = Instant::now() + END;
        loop {
            let ended = match fs::write(leaf.join("cgroup.kill"), "1").and_then(|()| fs::remove_dir(&leaf)) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                ended => ended,
            };
            match ended {
                Ok(()) => return,
                Err(error) if Instant::now() >= deadline => {
                    return tracing::warn!(tenant.id = tenant, %error, "end what is left in a control group");
                }
                // They are on their way out.
                Err(_) => tokio::time::sleep(LOOK_AGAIN).await,
            }
        }
    }

    /// Whether the kernel killed something of this run of the tenant's for want of memory.
    pub(crate) fn was_out_of_memory(&self, tenant: &str) -> bool {
        let events = fs::read_to_string(self.path(tenant).join("memory.events")).unwrap_or_default();
        oom_kills(&events) > 0
    }

    fn path(&self, tenant: &str) -> PathBuf {
        self.tenants.join(tenant)
    }
}

/// Puts this process into a leaf.
pub(super) fn enter(leaf: &Path) -> io::Result<()> {
    fs::write(leaf.join("cgroup.procs"), "0")
}

/// The controllers that the configured limits take.
fn wanted(config: &Config) -> Vec<&'static str> {
    let limits = [("memory", config.memory_bytes > 0), ("cpu", config.cpu_percent > 0), ("pids", config.pids > 0)];
    limits.into_iter().filter(|(_, is_set)| *is_set).map(|(name, _)| name).collect()
}

/// Our own group in the file system.
fn own() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    locate(&mounts, &groups)
}

fn locate(mounts: &str, groups: &str) -> Option<PathBuf> {
    let mount = mounts.lines().find_map(|line| {
        let (place, kind) = line.split_once(" - ")?;
        kind.starts_with("cgroup2 ").then(|| place.split(' ').nth(4)).flatten()
    })?;
    let path = groups.lines().find_map(|line| line.strip_prefix("0::/"))?;
    Some(Path::new(mount).join(path))
}

fn prepare(root: &Path, is_ours: bool, wanted: &[&str]) -> Result<(), String> {
    let has = fs::read_to_string(root.join("cgroup.controllers")).unwrap_or_default();
    let missing: Vec<&str> =
        wanted.iter().filter(|name| !has.split_whitespace().any(|one| one == **name)).copied().collect();
    if !missing.is_empty() {
        let names = missing.join(", ");
        return Err(format!(
            "the controllers {names} are not delegated to this process (Delegate=yes in its systemd unit)"
        ));
    }
    let at = |what: &str, error: &io::Error| format!("{what} in {}: {error}", root.display());
    let make = |folder: &Path| match fs::create_dir(folder) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(at("make groups", &error)),
        _ => Ok(()),
    };
    if is_ours {
        make(&root.join(SUPERVISOR))?;
        enter(&root.join(SUPERVISOR)).map_err(|error| at("move to a group of its own", &error))?;
    }
    make(&root.join(TENANTS))?;
    let on: Vec<String> = wanted.iter().map(|name| format!("+{name}")).collect();
    for folder in [root.to_owned(), root.join(TENANTS)] {
        let written = fs::write(folder.join("cgroup.subtree_control"), on.join(" "));
        written.map_err(|error| at("turn controllers on", &error))?;
    }
    Ok(())
}

fn oom_kills(events: &str) -> u64 {
    let line = events.lines().find_map(|line| line.strip_prefix("oom_kill "));
    line.and_then(|number| number.trim().parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_group_is_found_in_both_layouts() {
        let pure = "24 30 0:22 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate";
        let mixed = "35 25 0:30 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
                     36 25 0:31 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw";
        let unit = "4:memory:/a\n0::/system.slice/pocketfleet.service\n";
        let found = |mounts, groups| locate(mounts, groups);
        assert_eq!(found(pure, unit), Some(PathBuf::from("/sys/fs/cgroup/system.slice/pocketfleet.service")));
        assert_eq!(found(mixed, "0::/"), Some(PathBuf::from("/sys/fs/cgroup/unified")));
        assert_eq!(found("", unit), None);
        assert_eq!(found(pure, "4:memory:/a"), None);
    }

    #[test]
    fn what_is_not_delegated_is_named_and_what_is_gets_its_limits() {
        let root = tempfile::tempdir().unwrap();
        let at = |path: &str| root.path().join(path);
        fs::write(at("cgroup.controllers"), "cpu io memory\n").unwrap();
        let error = prepare(root.path(), true, &["memory", "pids"]).unwrap_err();
        assert!(error.contains("pids") && !error.contains("memory,") && error.contains("Delegate=yes"), "{error}");
        assert!(!at(SUPERVISOR).exists(), "nothing was changed");

        prepare(root.path(), true, &["memory", "cpu"]).unwrap();
        let read = |path: &str| fs::read_to_string(at(path)).unwrap();
        assert_eq!(read("supervisor/cgroup.procs"), "0");
        assert_eq!((read("cgroup.subtree_control"), read("tenants/cgroup.subtree_control")), {
            let on = "+memory +cpu".to_owned();
            (on.clone(), on)
        });
        let groups = Groups { tenants: at(TENANTS), memory_bytes: 1 << 28, cpu_percent: 150, pids: 0 };
        let leaf = groups.leaf("ada").unwrap();
        assert_eq!(fs::read_to_string(leaf.join("memory.max")).unwrap(), "268435456");
        assert_eq!(fs::read_to_string(leaf.join("cpu.max")).unwrap(), "150000 100000");
        assert!(!leaf.join("pids.max").exists());
        assert!(!groups.was_out_of_memory("ada"));
        fs::write(leaf.join("memory.events"), "low 0\noom 2\noom_kill 1\noom_group_kill 0\n").unwrap();
        assert!(groups.was_out_of_memory("ada") && !groups.was_out_of_memory("bob"));
    }
}
