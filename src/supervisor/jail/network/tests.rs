//! The rules in the kernel, where there is one that takes them; in a network namespace of the test's own.

use std::net::TcpListener;
use std::net::TcpStream;
use std::net::UdpSocket;
use std::os::fd::AsFd;

use nix::unistd::Uid;

use super::*;
use crate::supervisor::jail::Isolation;
use crate::supervisor::jail::config::Config;
use crate::supervisor::jail::config::Wanted;

const BASE: u32 = 1_700_000_000;
const COUNT: u32 = 1_000;
const ADA: u32 = BASE + 1;
const BOB: u32 = BASE + 2;

/// Runs a test in a thread with a network of its own, or says why not. Programs that it starts are in there too.
fn alone(test: impl FnOnce() + Send + 'static) {
    let thread = std::thread::spawn(move || {
        let entered = enter();
        if let Err(why) = entered {
            #[expect(clippy::print_stderr, reason = "a test that does not run says so")]
            {
                eprintln!("skipped: {why}");
            }
            return;
        }
        test();
    });
    thread.join().unwrap();
}

fn enter() -> Result<(), String> {
    #[expect(unsafe_code, reason = "no safe form of the call is at hand")]
    // SAFETY: the call takes a number and gives this thread a network and mounts of its own.
    let left = unsafe { libc::unshare(libc::CLONE_NEWNET | libc::CLONE_NEWNS) };
    if left != 0 {
        return Err(format!("a network namespace: {}", std::io::Error::last_os_error()));
    }
    // What is mounted from here on is nobody else's.
    mount(Path::new("none"), Path::new("/"), libc::MS_REC | libc::MS_PRIVATE);
    up();
    nft::run(Mode::Check, "add table inet probe\n").map_err(|error| error.to_string())
}

fn mount(from: &Path, to: &Path, flags: libc::c_ulong) {
    let path = |path: &Path| std::ffi::CString::new(path.as_os_str().as_encoded_bytes()).unwrap();
    let (from, to) = (path(from), path(to));
    #[expect(unsafe_code, reason = "no safe form of the call is at hand")]
    // SAFETY: the texts end with a zero and live until the call returns, which keeps nothing of them.
    let done = unsafe { libc::mount(from.as_ptr(), to.as_ptr(), std::ptr::null(), flags, std::ptr::null()) };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
}

/// Something else at the place of a file, for this thread and those that it starts, until dropped.
struct Instead(std::ffi::CString);

impl Instead {
    fn of(place: &Path, by: &Path) -> Self {
        let place = place.canonicalize().unwrap();
        mount(by, &place, libc::MS_BIND);
        Self(std::ffi::CString::new(place.into_os_string().into_encoded_bytes()).unwrap())
    }
}

impl Drop for Instead {
    fn drop(&mut self) {
        #[expect(unsafe_code, reason = "no safe form of the call is at hand")]
        // SAFETY: the text ends with a zero and lives until the call returns.
        let done = unsafe { libc::umount2(self.0.as_ptr(), libc::MNT_DETACH) };
        assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
    }
}

fn program() -> PathBuf {
    ["/usr/sbin/nft", "/usr/bin/nft"].iter().map(PathBuf::from).find(|path| path.is_file()).unwrap()
}

/// No program `nft`.
fn without_nft() -> Instead {
    Instead::of(&program(), Path::new("/dev/null"))
}

/// Brings the loopback device of the namespace up.
fn up() {
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    let mut name = [0_i8; libc::IFNAMSIZ];
    for (to, from) in name.iter_mut().zip(b"lo") {
        *to = i8::try_from(*from).unwrap();
    }
    let flags = i16::try_from(libc::IFF_UP | libc::IFF_RUNNING).unwrap();
    let request = libc::ifreq { ifr_name: name, ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_flags: flags } };
    #[expect(unsafe_code, reason = "no safe form of the call is at hand")]
    // SAFETY: the descriptor is open, and the request lives until the call returns.
    let done = unsafe {
        libc::ioctl(std::os::fd::AsRawFd::as_raw_fd(&socket.as_fd()), libc::SIOCSIFFLAGS, std::ptr::from_ref(&request))
    };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
}

/// Does something in a thread that belongs to a user: sockets are judged by who made them.
fn as_user<T: Send>(user: u32, work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            #[expect(unsafe_code, reason = "the safe form is for the whole process, and this is for one thread")]
            // SAFETY: the raw call takes three numbers and concerns this thread only.
            let done = unsafe { libc::syscall(libc::SYS_setresuid, user, user, user) };
            assert_eq!(done, 0);
            assert_eq!(Uid::effective().as_raw(), user);
            work()
        });
        thread.join().unwrap()
    })
}

fn set_up() -> (tempfile::TempDir, Network) {
    let data = tempfile::tempdir().unwrap();
    let network = Network::set_up(data.path(), BASE, COUNT).unwrap();
    (data, network)
}

/// For a thread without a runtime.
fn wait<T>(work: impl Future<Output = T>) -> T {
    // The blocking pool's threads are started from this one, and so are in its namespaces.
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(work)
}

fn admit(network: &Network, user: u32, address: &str, reach: Reach) {
    wait(network.admit(user, address.parse().unwrap(), reach)).unwrap();
}

/// Whether a connection can be made, and be used, without waiting long for one that nobody answers.
fn connects(address: &str) -> bool {
    TcpStream::connect_timeout(&address.parse().unwrap(), Duration::from_millis(400)).is_ok()
}

#[test]
fn a_tenant_answers_at_its_own_address_only_and_begins_nothing() {
    alone(|| {
        let (_data, network) = set_up();
        admit(&network, ADA, "127.64.1.1:20001", Reach::default());
        admit(&network, BOB, "127.64.1.2:20002", Reach::default());
        let ours = TcpListener::bind("127.0.0.1:9000").unwrap();
        let _adas = as_user(ADA, || TcpListener::bind("127.64.1.1:20001").unwrap());
        // Ada squats on the address of Bob, who sleeps, and on others.
        let _squats = as_user(ADA, || {
            ["127.64.1.2:20002", "127.64.1.1:20002", "127.0.0.1:20001"]
                .map(|address| TcpListener::bind(address).unwrap())
        });
        assert!(connects("127.64.1.1:20001"));
        for squatted in ["127.64.1.2:20002", "127.64.1.1:20002", "127.0.0.1:20001"] {
            assert!(!connects(squatted), "{squatted}");
        }
        // From a tenant: another's address, its own, ours, and a datagram.
        for address in ["127.64.1.1:20001", "127.0.0.1:9000"] {
            for user in [ADA, BOB, BASE] {
                assert!(!as_user(user, || connects(address)), "{address}");
            }
            assert!(connects(address), "{address} is for us");
        }
        assert!(as_user(4_000, || connects("127.0.0.1:9000")), "other users are none of our business");
        let datagrams = UdpSocket::bind("127.0.0.1:53").unwrap();
        for user in [ADA, BASE] {
            as_user(user, || UdpSocket::bind("127.0.0.1:0").unwrap().send_to(b"x", "127.0.0.1:53").unwrap_err());
        }
        drop((ours, datagrams));
    });
}

#[test]
fn what_is_listed_is_reached_and_private_addresses_are_not() {
    alone(|| {
        let (_data, network) = set_up();
        let _everywhere = TcpListener::bind("0.0.0.0:443").unwrap();
        let _beside = TcpListener::bind("127.0.0.1:5432").unwrap();
        let reach = Reach { public: vec![443], exact: vec!["127.0.0.1:5432".parse().unwrap()], anywhere: Vec::new() };
        admit(&network, ADA, "127.64.1.1:20001", reach);
        admit(&network, BOB, "127.64.1.2:20002", Reach { anywhere: vec![443], ..Reach::default() });
        assert!(as_user(ADA, || connects("127.0.0.1:5432")), "an address that is listed");
        assert!(!as_user(ADA, || connects("127.0.0.1:443")), "a public port, on this machine");
        assert!(as_user(BOB, || connects("127.0.0.1:443")), "what the operator configured");
        assert!(!as_user(BOB, || connects("127.64.1.1:443")), "never where instances listen");
        assert!(!as_user(BOB, || connects("127.0.0.1:5432")), "a neighbour's");
        // What is narrowed is narrowed.
        admit(&network, ADA, "127.64.1.1:20001", Reach::default());
        assert!(!as_user(ADA, || connects("127.0.0.1:5432")));
    });
}

#[test]
fn rules_that_somebody_changed_are_put_back() {
    alone(|| {
        let (_data, network) = set_up();
        admit(&network, ADA, "127.64.1.1:20001", Reach::default());
        let table = network.report().table;
        network.look();
        assert_eq!(network.report().repaired, 0, "nobody changed anything");
        let spoil = [
            "flush ruleset".to_owned(),
            format!("flush chain inet {table} tenant"),
            format!("flush set inet {table} listeners"),
            format!("insert rule inet {table} output accept"),
            format!("add element inet {table} anywhere {{ {ADA} . 9000 }}"),
        ];
        let _ours = TcpListener::bind("127.0.0.1:9000").unwrap();
        let _adas = as_user(ADA, || TcpListener::bind("127.64.1.1:20001").unwrap());
        for (count, change) in (1..).zip(&spoil) {
            nft::run(Mode::Apply, change).unwrap();
            network.look();
            assert_eq!(network.report().repaired, count, "{change}");
            assert_eq!(network.report().lost, None);
            assert!(connects("127.64.1.1:20001") && !as_user(ADA, || connects("127.0.0.1:9000")), "{change}");
        }
        // A change of ours finds it before the next look does.
        nft::run(Mode::Apply, "flush ruleset").unwrap();
        admit(&network, BOB, "127.64.1.2:20002", Reach::default());
        assert_eq!(network.report().repaired, 6);
        assert!(!as_user(BOB, || connects("127.0.0.1:9000")));
    });
}

#[test]
fn two_fleets_do_not_hurt_each_other_and_a_table_goes_with_its_own() {
    alone(|| {
        let (data, network) = set_up();
        let neighbour = tempfile::tempdir().unwrap();
        let table = network.report().table;
        assert_eq!(rival(neighbour.path(), BASE + 10, 5), Some(table.clone()), "users that two would have");
        assert_eq!(rival(data.path(), BASE, COUNT), None, "its own");
        let base = BASE + COUNT;
        assert_eq!(rival(neighbour.path(), base, COUNT), None);
        let second = Network::set_up(neighbour.path(), base, COUNT).unwrap();
        nft::run(Mode::Apply, "add table inet somebody\n").unwrap();
        admit(&network, ADA, "127.64.1.1:20001", Reach::default());
        admit(&second, base + 1, "127.64.1.2:20002", Reach::default());
        let _listeners = [
            as_user(ADA, || TcpListener::bind("127.64.1.1:20001").unwrap()),
            as_user(base + 1, || TcpListener::bind("127.64.1.2:20002").unwrap()),
        ];
        assert!(connects("127.64.1.1:20001") && connects("127.64.1.2:20002"));
        // The next run of the first one, with a smaller range: what it had is replaced, and its address remembered.
        let next = Network::set_up(data.path(), BASE, COUNT).unwrap();
        assert_eq!(next.address(ADA), Some("127.64.1.1:20001".parse().unwrap()));
        assert!(connects("127.64.1.1:20001"));
        let smaller = Network::set_up(data.path(), BASE, COUNT / 2).unwrap();
        let mut names = [smaller.report().table, second.report().table.clone(), "somebody".to_owned()];
        let mut found = nft::tables().unwrap();
        names.sort();
        found.sort();
        assert_eq!(found, names);
        smaller.take_down();
        assert!(connects("127.64.1.2:20002"));
        assert_eq!(nft::tables().unwrap().len(), 2);
    });
}

#[test]
fn fleets_that_call_their_data_by_the_same_path_are_not_the_same() {
    alone(|| {
        let (data, first) = set_up();
        let table = first.report().table;
        // The volume of another container, at the same path.
        let (path, aside) = (data.path().join("network.json"), data.path().join("aside"));
        std::fs::rename(&path, &aside).unwrap();
        assert_eq!(rival(data.path(), BASE, COUNT), Some(table.clone()), "the same users");
        let second = Network::set_up(data.path(), BASE + COUNT, COUNT).unwrap();
        assert!(nft::list(&table).unwrap().is_some(), "with other users it removes nothing of the first one's");
        assert_ne!(first, second);
        second.take_down();
        // And what is one after a restart still is.
        std::fs::rename(&aside, &path).unwrap();
        assert_eq!(rival(data.path(), BASE, COUNT), None);
        assert_eq!(Network::set_up(data.path(), BASE, COUNT).unwrap(), first);
    });
}

#[test]
fn rules_that_cannot_be_looked_at_or_written_are_lost_until_they_are_seen_again() {
    alone(|| {
        let (data, network) = set_up();
        let address = "127.64.1.1:20001";
        admit(&network, ADA, address, Reach::default());
        let again = || wait(network.admit(ADA, address.parse().unwrap(), Reach::default()));
        let is_lost = || network.report().lost.is_some();
        // The program is gone, and so are the rules.
        nft::run(Mode::Apply, "flush ruleset").unwrap();
        let gone = without_nft();
        network.look();
        assert!(network.report().lost.unwrap().contains("install the package nftables"));
        assert!(matches!(again(), Err(Error::Missing)), "nobody is started");
        assert!(matches!(wait(network.cover(ADA)), Err(Error::Missing)));
        drop(gone);
        network.look();
        assert!(!is_lost() && nft::list(&network.report().table).unwrap().is_some());
        again().unwrap();
        // Gone for a while only: a look that finds everything is enough.
        let gone = without_nft();
        network.look();
        assert!(is_lost());
        drop(gone);
        network.look();
        assert!(!is_lost());
        // The name servers are others, and the kernel does not take them.
        let [real, refusing, servers] = ["nft", "refusing", "servers"].map(|name| data.path().join(name));
        std::fs::copy(program(), &real).unwrap();
        let script = format!("#!/bin/sh\n[ \"$1\" = -f ] && exit 1\nexec {} \"$@\"\n", real.display());
        std::fs::write(&refusing, script).unwrap();
        std::fs::set_permissions(&refusing, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        std::fs::write(&servers, "nameserver 10.9.8.7\n").unwrap();
        let _servers = Instead::of(Path::new(RESOLVERS), &servers);
        let refused = Instead::of(&program(), &refusing);
        network.look();
        assert!(is_lost());
        assert!(matches!(again(), Err(Error::Refused(_))), "nobody is started");
        drop(refused);
        again().unwrap();
        assert!(!is_lost());
        assert!(nft::list(&network.report().table).unwrap().unwrap().contains("10.9.8.7"));
    });
}

#[test]
fn a_user_from_before_the_range_was_moved_is_under_the_rules_as_well() {
    alone(|| {
        let (data, network) = set_up();
        admit(&network, ADA, "127.64.1.1:20001", Reach::default());
        let ours = TcpListener::bind("127.0.0.1:9000").unwrap();
        let _adas = as_user(ADA, || TcpListener::bind("127.64.1.1:20001").unwrap());
        let _squats = as_user(BOB, || TcpListener::bind("127.64.1.2:20002").unwrap());
        let moved = Network::set_up(data.path(), BASE + COUNT, COUNT).unwrap();
        assert!(connects("127.64.1.1:20001") && !as_user(ADA, || connects("127.0.0.1:9000")), "who runs is kept");
        assert!(as_user(BOB, || connects("127.0.0.1:9000")), "not known yet");
        wait(moved.cover(BOB)).unwrap();
        assert!(!as_user(BOB, || connects("127.0.0.1:9000")) && !connects("127.64.1.2:20002"));
        admit(&moved, BOB, "127.64.1.2:20002", Reach { anywhere: vec![9000], ..Reach::default() });
        assert!(as_user(BOB, || connects("127.0.0.1:9000")) && connects("127.64.1.2:20002"));
        moved.look();
        assert_eq!(moved.report().repaired, 0);
        drop(ours);
    });
}

#[test]
fn below_level_3_what_an_earlier_run_left_is_removed_or_the_level_is_1() {
    alone(|| {
        let (data, network) = set_up();
        admit(&network, ADA, "127.64.1.1:20001", Reach::default());
        let table = network.report().table;
        let at = |uid_base| Config {
            level: Wanted::Level(2),
            require: 0,
            uid_base,
            uid_count: COUNT,
            network_check: Duration::from_secs(10),
            memory_bytes: 0,
            cpu_percent: 0,
            pids: 0,
        };
        let reach = |required| Isolation::detect(&at(BASE), data.path(), &[]).with_network(data.path(), required);
        // Nobody can remove it.
        let gone = without_nft();
        let reached = reach(0);
        assert_eq!(reached.level, 1);
        let said = reached.missing.iter().filter(|why| why.contains(&table)).count();
        assert_eq!(said, 1, "{:?}", reached.missing);
        drop(gone);
        // Somebody else's stays, and so does ours for a start that is refused.
        nft::run(Mode::Apply, "add table inet somebody\nadd table inet pocketfleet_00000000_1_2\n").unwrap();
        assert_eq!(reach(3).level, 2);
        assert!(nft::list(&table).unwrap().is_some());
        // The earlier run may have had another range.
        let reached = Isolation::detect(&at(BASE + COUNT), data.path(), &[]).with_network(data.path(), 2);
        assert_eq!(reached.level, 2, "{:?}", reached.missing);
        assert_eq!(nft::tables().unwrap(), ["somebody", "pocketfleet_00000000_1_2"]);
        // From now on nobody needs the program.
        let _gone = without_nft();
        assert_eq!(reach(0).level, 2);
    });
}
