//! Level 3 and private networks: hosts with such addresses, which answer, on the far side of a link. All of it in networks
//! of the test's own, so nothing of the machine is changed and nothing is left.

use std::net::TcpListener;
use std::os::fd::AsFd;
use std::process::Child;
use std::process::Stdio;
use std::time::Instant;

use rustix::thread::LinkNameSpaceType;
use rustix::thread::move_into_link_name_space;
use serde_json::json;

use super::levels;
use super::reached;
use super::run;
use super::start_with;
use crate::support::PATIENCE;
use crate::support::command;

/// The port that the template lists for the internet.
const PORT: u16 = 8080;
const HERE: [&str; 2] = ["11.0.0.2/24", "2606:4700:ffff::2/64"];
/// Of nobody's private network.
const PUBLIC: [&str; 2] = ["11.0.0.1", "2606:4700:ffff::1"];
/// Listed by its address.
const LISTED: &str = "172.16.9.9";
const PRIVATE: [&str; 15] = [
    "10.211.0.1",
    "172.16.7.1",
    "172.31.255.254",
    "192.168.7.1",
    "100.64.7.1",
    // Metadata services and their like: most clouds, AWS's tasks, Alibaba, Azure, Oracle, AWS by IPv6.
    "169.254.169.254",
    "169.254.170.2",
    "100.100.100.200",
    "168.63.129.16",
    "192.0.0.192",
    "fd00:ec2::254",
    "fd12:3456::1",
    "198.18.0.1",
    // 169.254.169.254 by ways to IPv4.
    "64:ff9b::a9fe:a9fe",
    "2002:a9fe:a9fe::1",
];
/// On the link itself.
const LINK_LOCAL: &str = "fe80::7";

/// A network, kept by a process that sleeps in it.
struct Space {
    keeper: Child,
}

impl Drop for Space {
    fn drop(&mut self) {
        drop(self.keeper.kill());
        drop(self.keeper.wait());
    }
}

impl Space {
    fn new() -> Result<Self, String> {
        let link = |path: &str| std::fs::read_link(path).map_err(|error| error.to_string());
        let own = link("/proc/thread-self/ns/net")?;
        let keeper = command("unshare").args(["--net", "sleep", "900"]).stderr(Stdio::null()).spawn();
        let mut space = Self { keeper: keeper.map_err(|error| format!("unshare: {error}"))? };
        let deadline = Instant::now() + PATIENCE;
        while link(&space.path()).is_ok_and(|theirs| theirs == own) {
            if space.keeper.try_wait().unwrap().is_some() {
                return Err("no network namespace can be made here".to_owned());
            }
            assert!(Instant::now() < deadline, "unshare does nothing");
            std::thread::yield_now();
        }
        Ok(space)
    }

    fn path(&self) -> String {
        format!("/proc/{}/ns/net", self.keeper.id())
    }

    /// Brings this thread, and what it starts, into the network.
    fn enter(&self) {
        let file = std::fs::File::open(self.path()).unwrap();
        move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
    }

    /// `ip` in there.
    fn ip(&self, arguments: &str) -> Result<(), String> {
        let pid = self.keeper.id().to_string();
        let mut program = command("nsenter");
        program.args(["--target", &pid, "--net", "ip"]).args(arguments.split_whitespace());
        let output = program.output().map_err(|error| format!("nsenter: {error}"))?;
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        if output.status.success() { Ok(()) } else { Err(format!("ip {arguments}: {said}")) }
    }
}

/// Two networks and a link; the second has all of the addresses.
fn linked() -> Result<(Space, Space), String> {
    let (near, far) = (Space::new()?, Space::new()?);
    near.ip(&format!("link add near type veth peer name far netns {}", far.keeper.id()))?;
    for (space, name) in [(&near, "near"), (&far, "far")] {
        space.ip("link set lo up")?;
        space.ip(&format!("link set {name} up"))?;
    }
    for address in HERE {
        near.ip(&format!("address add {address} dev near {}", nodad(address)))?;
    }
    let [public, public6] = PUBLIC;
    for address in [format!("{public}/24"), format!("{public6}/64"), format!("{LINK_LOCAL}/64")] {
        far.ip(&format!("address add {address} dev far {}", nodad(&address)))?;
    }
    for address in PRIVATE.iter().chain([&LISTED]) {
        far.ip(&format!("address add {address} dev far {}", nodad(address)))?;
    }
    near.ip(&format!("route add default via {public}"))?;
    near.ip(&format!("-6 route add default via {public6}"))?;
    Ok((near, far))
}

/// An address is had at once, and not after nobody else said that it is theirs.
fn nodad(address: &str) -> &'static str {
    if address.contains(':') { "nodad" } else { "" }
}

#[test]
fn private_networks_and_metadata_services_are_reached_below_level_3_and_not_at_it() {
    if !levels().contains(&3) {
        return;
    }
    let (near, far) = match linked() {
        Ok(spaces) => spaces,
        Err(why) => return eprintln!("skipped: hosts with private addresses: {why}"),
    };
    // The listener's thread was started in its network and stays there, and this one goes on to the other.
    let thread = std::thread::spawn(move || {
        far.enter();
        super::answer(TcpListener::bind(("::", PORT)).unwrap());
        near.enter();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(looked_at());
        drop((near, far));
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

async fn looked_at() {
    let call = "return $http.send({ url: 'http://' + at, timeout: 20 }).statusCode";
    let url = |address: &str| {
        let host = if address.contains(':') { format!("[{address}]") } else { address.to_owned() };
        json!(format!("{host}:{PORT}"))
    };
    let manifest = format!("outbound = [\"{PORT}\", \"{LISTED}:{PORT}\"]\n");
    let link_local = format!("{LINK_LOCAL}%25near");
    let private = || PRIVATE.into_iter().chain([link_local.as_str()]);
    let answered = (true, "204".to_owned());
    for level in [2, 3] {
        let app = start_with(level, "", &manifest).await;
        assert_eq!(reached(&app).await, level, "{}", app.log());
        let mallory = app.user("mallory").await;
        for address in PUBLIC.into_iter().chain([LISTED]) {
            assert_eq!(run(&mallory, call, &url(address)).await, answered, "level {level}: {address}");
        }
        for address in private() {
            let (worked, why) = run(&mallory, call, &url(address)).await;
            if level == 2 {
                assert_eq!((worked, why), answered, "it is there for whoever may: {address}");
            } else {
                assert!(!worked && why.contains("connection refused"), "{address}: {why}");
            }
        }
    }
}
