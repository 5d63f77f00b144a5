//! The data directory, the listen address and the control socket.

use std::io::ErrorKind;
use std::net::TcpListener;
use std::net::ToSocketAddrs;
use std::path::Path;

use rustix::fs::statfs;
use rustix::fs::statvfs;
use serde_json::Value;

use crate::api::control_socket;
use crate::cli::client::Control;
use crate::cli::doctor::Finding;
use crate::cli::output::bytes;

/// Below this much free space the databases are in danger.
const LITTLE: u64 = 512 << 20;
/// Below this much it is time to act.
const SCARCE: u64 = 5 << 30;

/// File systems over a network, by the number that statfs gives: `SQLite`'s locks and memory maps fail on them.
const NETWORK: [(u64, &str); 5] =
    [(0x6969, "NFS"), (0xFF53_4D42, "CIFS"), (0xFE53_4D42, "SMB2"), (0x0102_1997, "9p"), (0x00C3_6400, "Ceph")];

/// The directory itself or, before the first start, the nearest that exists.
fn existing(data: &Path) -> &Path {
    let found = data.ancestors().find(|path| path.exists());
    found.unwrap_or(Path::new("."))
}

/// Room on the disk of the data directory.
pub fn disk(data: &Path) -> Finding {
    const CHECK: &str = "disk";
    let advice = "make room, or move the data directory to a larger disk";
    let stat = match statvfs(existing(data)) {
        Ok(stat) => stat,
        Err(error) => {
            return Finding::fail(CHECK, format!("cannot look at {}: {error}", data.display()), "check the path");
        }
    };
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    let found = format!("{} free for {}", bytes(free), data.display());
    if stat.f_files > 0 && stat.f_favail < 1000 {
        return Finding::fail(CHECK, format!("{found}, but {} inodes", stat.f_favail), advice);
    }
    match free {
        ..LITTLE => Finding::fail(CHECK, found, advice),
        LITTLE..SCARCE => Finding::warn(CHECK, found, advice),
        _ => Finding::ok(CHECK, found),
    }
}

/// Folders without a record, and records without a folder, as the running server sees them.
pub async fn orphans(control: &Control) -> Finding {
    const CHECK: &str = "orphans";
    let count = match control.call("GET", "/orphans", None).await {
        Ok(found) => found["items"].as_array().map_or(0, Vec::len),
        Err(error) => return Finding::warn(CHECK, format!("cannot be listed: {error}"), "see the log of the server"),
    };
    match count {
        0 => Finding::ok(CHECK, "every folder has its record, every record its folder"),
        _ => Finding::warn(
            CHECK,
            format!("{count} folders without a record, or records without a folder"),
            "look at them with `pocketfleet tenants orphans`; nothing removes them by itself",
        ),
    }
}

/// What kind of file system holds the data directory, and whether it can be written to.
pub fn filesystem(data: &Path) -> Finding {
    const CHECK: &str = "data directory";
    let place = existing(data);
    if rustix::fs::access(place, rustix::fs::Access::WRITE_OK).is_err() {
        let found = format!("{} cannot be written to", place.display());
        return Finding::fail(CHECK, found, "give it to this user, or name another with --data");
    }
    // Linux numbers file systems in 32 bits, whatever the width of the field.
    let number = statfs(place).ok().and_then(|stat| u64::try_from(i128::from(stat.f_type) & 0xFFFF_FFFF).ok());
    match NETWORK.iter().find(|(magic, _)| Some(*magic) == number) {
        Some((_, name)) => Finding::fail(
            CHECK,
            format!("{} is on {name}", place.display()),
            "use a local disk: SQLite's write-ahead log does not work over a network",
        ),
        None if place == data => Finding::ok(CHECK, format!("{} is local and writable", data.display())),
        None => Finding::ok(CHECK, format!("{} does not exist yet; the first start makes it", data.display())),
    }
}

/// Whether the listen address is free, or ours.
pub fn port(listen: &str, running: Option<&Value>) -> Finding {
    const CHECK: &str = "listen address";
    let addresses: Vec<_> = match listen.to_socket_addrs() {
        Ok(addresses) => addresses.collect(),
        Err(error) => {
            return Finding::fail(
                CHECK,
                format!("{listen}: {error}"),
                "write it as address:port, such as 127.0.0.1:3000",
            );
        }
    };
    // The standard library sets SO_REUSEADDR, so connections of an earlier server that linger do not disturb.
    match TcpListener::bind(&*addresses) {
        Ok(_) => Finding::ok(CHECK, format!("{listen} is free")),
        Err(error) if error.kind() == ErrorKind::AddrInUse => match running.filter(|status| status["listen"] == listen)
        {
            Some(status) => {
                Finding::ok(CHECK, format!("{listen} is served by this pocketfleet (pid {})", status["pid"]))
            }
            None => Finding::fail(
                CHECK,
                format!("{listen} is taken by another program"),
                format!("find it with `ss -ltnp 'sport = :{}'`, or choose another with --listen", port_of(listen)),
            ),
        },
        Err(error) if error.kind() == ErrorKind::PermissionDenied => Finding::fail(
            CHECK,
            format!("{listen}: permission denied"),
            "choose a port above 1023, or allow it: AmbientCapabilities=CAP_NET_BIND_SERVICE in the systemd unit",
        ),
        Err(error) => {
            Finding::fail(CHECK, format!("{listen}: {error}"), "choose an address of this machine with --listen")
        }
    }
}

fn port_of(listen: &str) -> &str {
    listen.rsplit_once(':').map_or(listen, |(_, port)| port)
}

/// Whether the control socket works, if a server runs.
pub fn socket(data: &Path, running: Option<&Value>) -> Finding {
    const CHECK: &str = "control socket";
    let path = control_socket::path_in(data);
    match running {
        Some(status) => Finding::ok(
            CHECK,
            format!("pocketfleet {} answers (pid {})", status["version"].as_str().unwrap_or("?"), status["pid"]),
        ),
        None if !path.exists() => Finding::ok(CHECK, "no server runs on this data directory"),
        None => Finding::warn(
            CHECK,
            format!("{} does not answer", path.display()),
            "a killed server leaves it behind and the next start replaces it; if one runs, it belongs to another user",
        ),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::cli::doctor::Level;

    #[test]
    fn a_taken_port_is_fine_only_when_it_is_ours() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let listen = taken.local_addr().unwrap().to_string();
        assert_eq!(port(&listen, None).level, Level::Fail);
        assert_eq!(port(&listen, Some(&json!({"listen": "127.0.0.1:1", "pid": 1}))).level, Level::Fail);
        assert_eq!(port(&listen, Some(&json!({"listen": listen, "pid": 1}))).level, Level::Ok);
        assert_eq!(port("127.0.0.1:0", None).level, Level::Ok);
        assert_eq!(port("nonsense", None).level, Level::Fail);
    }

    #[test]
    fn a_directory_that_does_not_exist_yet_is_judged_by_its_parent() {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("a/b");
        assert_eq!(filesystem(&data).level, Level::Ok);
        assert!(disk(&data).found.contains("free for"));
    }
}
