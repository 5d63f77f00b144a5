//! Giving up what the control plane may do: its user, its groups, its capabilities.

use std::io;

use nix::unistd::Gid;
use nix::unistd::Uid;
use rustix::thread::CapabilitySet;
use rustix::thread::CapabilitySets;

/// Capabilities that running every tenant as a user of its own takes: to become it, to give it its files, to work on
/// those, to stop its processes.
const NEEDED: [(CapabilitySet, &str); 6] = [
    (CapabilitySet::SETUID, "CAP_SETUID"),
    (CapabilitySet::SETGID, "CAP_SETGID"),
    (CapabilitySet::CHOWN, "CAP_CHOWN"),
    (CapabilitySet::FOWNER, "CAP_FOWNER"),
    (CapabilitySet::DAC_OVERRIDE, "CAP_DAC_OVERRIDE"),
    (CapabilitySet::KILL, "CAP_KILL"),
];

/// Those of the needed capabilities that this process does not have.
pub(super) fn lacking() -> Vec<&'static str> {
    let effective = rustix::thread::capabilities(None).map_or(CapabilitySet::empty(), |sets| sets.effective);
    NEEDED.iter().filter(|(needed, _)| !effective.contains(*needed)).map(|(_, name)| *name).collect()
}

/// Whether a range of user ids exists in this user namespace.
pub(super) fn has_users(base: u32, count: u32) -> bool {
    let within = |map: &str| {
        map.lines().any(|line| {
            let mut numbers = line.split_whitespace().filter_map(|number| number.parse::<u64>().ok());
            let (Some(first), Some(_), Some(length)) = (numbers.next(), numbers.next(), numbers.next()) else {
                return false;
            };
            first <= u64::from(base) && u64::from(base) + u64::from(count) <= first + length
        })
    };
    ["/proc/self/uid_map", "/proc/self/gid_map"]
        .iter()
        .all(|path| std::fs::read_to_string(path).is_ok_and(|map| within(&map)))
}

/// Becomes this user, in its own group and no other, and makes sure that there is no way back.
pub(super) fn become_user(user: u32) -> io::Result<()> {
    let (uid, gid) = (Uid::from_raw(user), Gid::from_raw(user));
    nix::unistd::setgroups(&[])?;
    nix::unistd::setresgid(gid, gid, gid)?;
    nix::unistd::setresuid(uid, uid, uid)?;
    if Uid::effective() != uid || nix::unistd::setuid(Uid::from_raw(0)).is_ok() {
        return Err(io::Error::other("the user could not be given up"));
    }
    Ok(())
}

/// Gives up every capability. With `no_new_privs` the next program gets none back, also where it runs as root.
pub(super) fn drop_capabilities() -> rustix::io::Result<()> {
    let none = CapabilitySet::empty();
    rustix::thread::clear_ambient_capability_set()?;
    rustix::thread::set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none })
}
