//! Giving up what the control plane may do: its user, its groups, its capabilities.

use std::io;

use rustix::process::Gid;
use rustix::process::Uid;
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

/// Becomes this user, in its own group and no other.
pub(super) fn become_user(user: u32) -> io::Result<()> {
    let (uid, gid) = (Uid::from_raw(user), Gid::from_raw(user));
    // Of this thread, which is all there is of the jailer.
    rustix::thread::set_thread_groups(&[])?;
    rustix::thread::set_thread_res_gid(gid, gid, gid)?;
    rustix::thread::set_thread_res_uid(uid, uid, uid)?;
    let (uids, gids) = (nix::unistd::getresuid()?, nix::unistd::getresgid()?);
    let is_done = [uids.real, uids.effective, uids.saved].iter().all(|now| now.as_raw() == user)
        && [gids.real, gids.effective, gids.saved].iter().all(|now| now.as_raw() == user)
        && nix::unistd::getgroups()?.is_empty();
    if is_done { Ok(()) } else { Err(io::Error::other("the user could not be given up")) }
}

/// Makes sure that there is no way back. After the capabilities are gone: who was not root keeps them through the change
/// of its user, and would come back by them.
pub(super) fn no_way_back() -> io::Result<()> {
    let (root, own) = (Uid::ROOT, rustix::process::geteuid());
    let is_had = |real, effective, saved| rustix::thread::set_thread_res_uid(real, effective, saved).is_ok();
    if !own.is_root() && (is_had(own, root, own) || is_had(root, root, root)) {
        return Err(io::Error::other("root could be had again"));
    }
    Ok(())
}

/// Gives up the groups that root has beside its own: at level 1 the user stays, and files may be open to them. Who is not
/// root may not change them, and has those that the operator gave it.
pub(super) fn drop_groups() -> io::Result<()> {
    if !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    match rustix::thread::set_thread_groups(&[]) {
        // Root of a container that may not change groups has those that the container was given.
        Ok(()) | Err(rustix::io::Errno::PERM) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Gives up what any later program could get at most, where this process may: with `no_new_privs` none gets any, and this
/// is for the day when something of that fails. Before the user is given up, which takes the leave to do so.
pub(super) fn drop_bounds() -> rustix::io::Result<()> {
    if !rustix::thread::capabilities(None)?.effective.contains(CapabilitySet::SETPCAP) {
        return Ok(());
    }
    for number in 0..u64::BITS {
        match rustix::thread::remove_capability_from_bounding_set(CapabilitySet::from_bits_retain(1 << number)) {
            Ok(()) => {}
            // The kernel knows no more.
            Err(rustix::io::Errno::INVAL) => break,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Gives up every capability. With `no_new_privs` the next program gets none back, also where it runs as root.
pub(super) fn drop_capabilities() -> rustix::io::Result<()> {
    let none = CapabilitySet::empty();
    rustix::thread::clear_ambient_capability_set()?;
    rustix::thread::set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_instead_of_root_are_enough_and_nothing_is_left_of_them() {
        if !lacking().is_empty() {
            #[expect(clippy::print_stderr, reason = "a test that does not run says so")]
            {
                eprintln!("skipped: becoming another user takes root");
            }
            return;
        }
        // Users and capabilities are a thread's: the rest of the tests keeps its own.
        let thread = std::thread::spawn(|| {
            let (uid, gid) = (Uid::from_raw(1_900_000_001), Gid::from_raw(1_900_000_001));
            let needed = NEEDED.iter().fold(CapabilitySet::empty(), |all, (one, _)| all | *one);
            rustix::thread::set_keep_capabilities(true).unwrap();
            rustix::thread::set_thread_res_gid(gid, gid, gid).unwrap();
            rustix::thread::set_thread_res_uid(uid, uid, uid).unwrap();
            let sets = CapabilitySets { effective: needed, permitted: needed, inheritable: CapabilitySet::empty() };
            rustix::thread::set_capabilities(None, sets).unwrap();
            assert!(lacking().is_empty(), "as with ambient capabilities of a unit");

            become_user(1_900_000_002).unwrap();
            assert!(no_way_back().is_err(), "the capabilities are what leads back");
            become_user(1_900_000_002).unwrap();
            drop_capabilities().unwrap();
            no_way_back().unwrap();
            assert!(become_user(1_900_000_003).is_err());
            assert_eq!(nix::unistd::getresuid().unwrap().saved.as_raw(), 1_900_000_002);
            assert!(nix::unistd::getgroups().unwrap().is_empty());
        });
        thread.join().unwrap();
    }
}
