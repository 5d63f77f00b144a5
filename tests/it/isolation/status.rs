//! What the kernel says of a running instance: its user, its privileges, its limits, its descriptors.

use std::collections::BTreeMap;
use std::path::Path;

use super::levels;
use super::reached;
use super::start;
use crate::support::TestApp;
use crate::support::User;

const KEYS: &str = "instances.nofile = 1000\ninstances.data_bytes = 800000000\ninstances.file_bytes = 900000000\n";
/// With a user of its own only: below level 2 the limit counts everything that pocketfleet's user runs.
const NPROC: &str = "instances.nproc = 200\n";

/// What Go waits with; and `PocketBase` has its data watched for changes by its own commands.
const EVENTS: [&str; 3] = ["anon_inode:[eventpoll]", "anon_inode:[eventfd]", "anon_inode:inotify"];

/// The fields of `/proc/N/status`, each with its values.
fn status(pid: &str) -> BTreeMap<String, Vec<String>> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let fields = text.lines().filter_map(|line| line.split_once(':'));
    fields.map(|(name, values)| (name.to_owned(), values.split_whitespace().map(str::to_owned).collect())).collect()
}

/// The soft and the hard limit of that name.
fn limit(pid: &str, name: &str) -> [String; 2] {
    let text = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    let mut values = line.split_whitespace().map(str::to_owned);
    [values.next().unwrap(), values.next().unwrap()]
}

/// Descriptors, and what they lead to.
fn descriptors(pid: &str) -> BTreeMap<u32, String> {
    let entries = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
    let number = |entry: &std::fs::DirEntry| entry.file_name().to_str().unwrap().parse().unwrap();
    // One that was closed meanwhile leads nowhere.
    entries
        .filter_map(|entry| Some((number(&entry), std::fs::read_link(entry.path()).ok()?.display().to_string())))
        .collect()
}

/// The inodes of the TCP sockets of the machine that belong to an address.
fn sockets_at(address: &str) -> Vec<String> {
    let address: std::net::SocketAddrV4 = address.parse().unwrap();
    let wanted = format!("{:08X}:{:04X}", u32::from(*address.ip()).swap_bytes(), address.port());
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let rows = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    rows.filter(|row| row.get(1) == Some(&wanted.as_str())).map(|row| format!("socket:[{}]", row[9])).collect()
}

/// The first descriptor that nobody wrote down.
fn undocumented(level: u8, pid: &str, folder: &Path, address: &str) -> Option<String> {
    let own = |part: &str| folder.join(part).display().to_string();
    let (data, temporary, lock, log) = (own("pb_data/"), own("tmp/"), own("lock"), own("log/pocketbase.log"));
    let mut locks = 0;
    for (number, target) in descriptors(pid) {
        let is_known = match number {
            0 => target == "/dev/null",
            1 | 2 => target == log,
            _ if target == lock => {
                locks += 1;
                locks == 1
            }
            _ => {
                let is_own = target.starts_with(&data) || target.starts_with(&temporary);
                // Go looks at its control group, where Landlock lets it.
                is_own
                    || EVENTS.contains(&target.as_str())
                    || level == 0 && target.starts_with("/sys/fs/cgroup/")
                    || sockets_at(address).contains(&target)
            }
        };
        if !is_known {
            return Some(format!("{number} -> {target}"));
        }
    }
    (locks != 1).then(|| format!("{locks} locks"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_instance_has_the_user_the_privileges_and_the_limits_that_are_documented() {
    for level in levels() {
        let keys = if level >= 2 { format!("{KEYS}{NPROC}") } else { KEYS.to_owned() };
        let app = start(level, &keys).await;
        assert_eq!(reached(&app).await, level);
        let (ada, bob) = (app.user("ada").await, app.user("bob").await);
        ada.note("one").await;
        bob.note("two").await;
        let users = [looked_at(&app, level, &ada).await, looked_at(&app, level, &bob).await];
        assert_eq!(users[0] == users[1], level < 2, "{users:?}");
    }
}

/// Asserts all of it; the user.
async fn looked_at(app: &TestApp, level: u8, who: &User) -> String {
    let tenant = app.tenant(&who.id);
    let (pid, address) = (tenant["pid"].to_string(), tenant["address"].as_str().unwrap());
    let status = status(&pid);
    let field = |name: &str| status[name].join(" ");
    let own = rustix::process::geteuid().as_raw().to_string();
    let user = status["Uid"][0].clone();
    assert_eq!(user == own, level < 2, "level {level}: {user}");
    assert_eq!(field("Uid"), [user.as_str(); 4].join(" "), "level {level}: real, effective, saved, of files");
    assert_eq!(field("NoNewPrivs"), "1", "level {level}");
    if level >= 1 {
        for name in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
            assert_eq!(field(name), "0000000000000000", "level {level}: {name}");
        }
        // Who is not root may not take from what it could at most get, and gets none of it.
        if rustix::process::geteuid().is_root() {
            assert_eq!(field("CapBnd"), "0000000000000000", "level {level}");
            assert_eq!(field("Groups"), "", "level {level}");
        }
        // Filters; four of them.
        assert_eq!((field("Seccomp"), field("Seccomp_filters")), ("2".to_owned(), "4".to_owned()), "level {level}");
    } else {
        assert_eq!(field("Seccomp"), "0");
    }
    if level >= 2 {
        assert_eq!(field("Gid"), field("Uid"), "level {level}: a group of the same number");
        assert_eq!(limit(&pid, "Max processes"), ["200", "200"], "level {level}");
    }
    for (name, value) in [
        ("Max core file size", "0"),
        ("Max open files", "1000"),
        ("Max data size", "800000000"),
        ("Max file size", "900000000"),
    ] {
        assert_eq!(limit(&pid, name), [value, value], "level {level}: {name}");
    }
    let folder = app.data().join("instances").join(&who.id);
    // A connection that comes or goes while it is looked at is in one of the lists only.
    let mut last = None;
    for _ in 0..100 {
        last = undocumented(level, &pid, &folder, address);
        if last.is_none() {
            break;
        }
        crate::support::pause().await;
    }
    assert_eq!(last, None, "level {level}: {:?}", descriptors(&pid));
    user
}
