//! Limits of the kernel and of this process, and the clock.

use std::fs;
use std::path::Path;
use std::path::PathBuf;
use std::time::SystemTime;

use rustix::process::Resource;
use rustix::process::getrlimit;
use time::OffsetDateTime;
use time::macros::datetime;

use crate::cli::doctor::Finding;
use crate::supervisor::freeze;

/// Descriptors that a fleet of a thousand needs in the gateway alone: two per proxied request, and the files.
const ENOUGH_FILES: u64 = 65_536;
/// Tasks of a thousand awake instances: each has 7 or 8 threads.
const ENOUGH_TASKS: u64 = 10_000;
const INOTIFY: &str = "/proc/sys/fs/inotify/max_user_instances";

/// inotify instances of one user. Each awake `PocketBase` takes one; beyond the limit it runs without watching.
pub fn inotify() -> Finding {
    const CHECK: &str = "inotify";
    let advice = "sysctl -w fs.inotify.max_user_instances=8192, and the same line in /etc/sysctl.d/";
    match number(Path::new(INOTIFY)) {
        Some(limit) if limit >= 1024 => Finding::ok(CHECK, format!("max_user_instances = {limit}")),
        Some(limit) => Finding::warn(
            CHECK,
            format!("max_user_instances = {limit}: instances beyond it lose file watching"),
            advice,
        ),
        None => Finding::warn(CHECK, format!("cannot read {INOTIFY}"), "check that /proc is mounted"),
    }
}

/// Where memory of frozen instances can go.
pub fn swap() -> Finding {
    const CHECK: &str = "swap";
    if freeze::has_swap() {
        return Finding::ok(CHECK, "there is some, for the memory of frozen instances");
    }
    Finding::warn(
        CHECK,
        "none, and instances.freeze_after is set: frozen instances keep their memory",
        "add swap, best compressed in memory (zram): see \"Frozen instances\" in docs/operations.md",
    )
}

/// Open files of this process and of the instances it starts.
pub fn open_files() -> Finding {
    const CHECK: &str = "open files";
    let limit = getrlimit(Resource::Nofile);
    let show = |limit: Option<u64>| limit.map_or_else(|| "unlimited".to_owned(), |limit| limit.to_string());
    let (now, most) = (limit.current, limit.maximum);
    let found = format!("RLIMIT_NOFILE = {} (hard {})", show(now), show(most));
    let advice = format!("raise it for the service: LimitNOFILE={ENOUGH_FILES} in its systemd unit, or `ulimit -n`");
    match now {
        None => Finding::ok(CHECK, found),
        Some(now) if now >= ENOUGH_FILES => Finding::ok(CHECK, found),
        Some(now) if now >= 1024 => Finding::warn(CHECK, found, advice),
        Some(_) => Finding::fail(CHECK, found, advice),
    }
}

/// Processes and threads: of the kernel, of this user, of this control group. The smallest decides.
pub fn tasks() -> Finding {
    const CHECK: &str = "processes";
    let limits = [
        ("kernel.threads-max", number(Path::new("/proc/sys/kernel/threads-max"))),
        ("kernel.pid_max", number(Path::new("/proc/sys/kernel/pid_max"))),
        ("RLIMIT_NPROC", getrlimit(Resource::Nproc).current),
        ("cgroup pids.max", cgroup_limit()),
    ];
    let known = limits.into_iter().filter_map(|(name, limit)| limit.map(|limit| (name, limit)));
    let Some((name, limit)) = known.min_by_key(|(_, limit)| *limit) else {
        return Finding::warn(CHECK, "no limit could be read", "check that /proc is mounted");
    };
    let found = format!("{name} = {limit}, room for about {} awake instances", limit / 8);
    let advice = "raise it, or lower instances.max_awake; TasksMax= in the systemd unit sets the cgroup's";
    if limit < 256 {
        Finding::fail(CHECK, found, advice)
    } else if limit < ENOUGH_TASKS {
        Finding::warn(CHECK, found, advice)
    } else {
        Finding::ok(CHECK, found)
    }
}

/// `pids.max` of this process's control group, in either version of the hierarchy; none when it is not limited.
fn cgroup_limit() -> Option<u64> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    groups.lines().filter_map(group_path).find_map(|group| number(&group.join("pids.max")))
}

/// Where the control group of a line of `/proc/self/cgroup` has its pids files.
fn group_path(line: &str) -> Option<PathBuf> {
    let mut parts = line.splitn(3, ':').skip(1);
    let (controllers, path) = (parts.next()?, parts.next()?.trim_start_matches('/'));
    if controllers.is_empty() {
        Some(Path::new("/sys/fs/cgroup").join(path))
    } else if controllers.split(',').any(|name| name == "pids") {
        Some(Path::new("/sys/fs/cgroup/pids").join(path))
    } else {
        None
    }
}

/// The clock. Tokens are dated by it: one that is wrong signs everybody out or keeps them in for ever.
pub fn clock() -> Finding {
    let built = std::env::current_exe().ok().and_then(|program| fs::metadata(program).ok()?.modified().ok());
    judge_clock(OffsetDateTime::now_utc(), built)
}

fn judge_clock(now: OffsetDateTime, built: Option<SystemTime>) -> Finding {
    const CHECK: &str = "clock";
    let advice = "set it and keep it right with NTP (timedatectl set-ntp true)";
    let found = format!("{} {:02}:{:02} UTC", now.date(), now.hour(), now.minute());
    if now < datetime!(2025-01-01 00:00 UTC) {
        Finding::fail(CHECK, format!("{found}, which cannot be"), advice)
    } else if built.is_some_and(|built| OffsetDateTime::from(built) > now) {
        Finding::fail(CHECK, format!("{found}, before this program was built"), advice)
    } else {
        Finding::ok(CHECK, found)
    }
}

fn number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::cli::doctor::Level;

    #[test]
    fn a_clock_of_the_past_fails() {
        let now = datetime!(2026-03-01 12:00 UTC);
        assert_eq!(judge_clock(datetime!(1970-01-02 00:00 UTC), None).level, Level::Fail);
        assert_eq!(judge_clock(now, Some(SystemTime::from(now) + Duration::from_mins(1))).level, Level::Fail);
        assert_eq!(judge_clock(now, Some(SystemTime::from(now))).level, Level::Ok);
    }

    #[test]
    fn both_hierarchies_of_control_groups_are_understood() {
        assert_eq!(group_path("0::/a/b"), Some(PathBuf::from("/sys/fs/cgroup/a/b")));
        assert_eq!(group_path("7:pids:/c"), Some(PathBuf::from("/sys/fs/cgroup/pids/c")));
        assert_eq!(group_path("3:cpu,cpuacct:/c"), None);
        assert_eq!(group_path("nonsense"), None);
    }
}
