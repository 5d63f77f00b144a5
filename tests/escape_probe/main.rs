//! Machine code that tries what a hook has no word for: system calls, as code that broke out of the interpreter, or a
//! binary that lies, would make them. One attempt at a time, started through the jailer by the escape suite
//! (`tests/it/isolation/machine.rs`).
//!
//! `escape-probe <attempt> <json>` says on one line whether it got through and what the kernel answered.
#![expect(clippy::print_stdout, reason = "the one line that says how it went")]

mod calls;

use std::path::Path;
use std::path::PathBuf;
use std::process::ExitCode;

use rustix::fs::AtFlags;
use rustix::fs::CWD;
use rustix::fs::FileType;
use rustix::fs::Mode;
use rustix::fs::Timespec;
use rustix::fs::Timestamps;
use rustix::fs::inotify;
use rustix::io::Errno;
use rustix::net::AddressFamily;
use rustix::net::Protocol;
use rustix::net::SocketAddrUnix;
use rustix::net::SocketType;
use rustix::process::Gid;
use rustix::process::Pid;
use rustix::process::Uid;
use serde::Deserialize;
use serde_json::json;

use calls::call;

/// Who and what there is to attack.
#[derive(Debug, Deserialize)]
struct Scene {
    /// Its own data.
    own: PathBuf,
    /// Another tenant's data, address and process.
    theirs: PathBuf,
    address: std::net::SocketAddrV4,
    pid: i32,
    /// A port of this machine at which somebody takes datagrams.
    datagrams: std::net::SocketAddr,
    /// Sockets in the file system: one open to everybody, one of pocketfleet's user.
    open_socket: PathBuf,
    private_socket: PathBuf,
    abstract_socket: String,
    /// A segment of System V that anybody may use.
    shared_memory: i32,
}

type Preparation = fn(i64) -> Result<i64, Errno>;
type Attempt = fn(&Scene) -> Result<(), Errno>;

const ATTEMPTS: [(&str, Attempt); 33] = [
    ("ask", ask),
    ("times", times),
    ("watch", watch),
    ("mode", mode),
    ("link", link),
    ("symlink", symlink),
    ("pipe", pipe),
    ("socket_file", socket_file),
    ("signal", signal),
    ("trace", calls::trace),
    ("memory", calls::memory),
    ("limits", calls::limits),
    ("turn", calls::turn),
    ("works_where", works_where),
    ("processes", processes),
    ("user", user),
    ("namespace", calls::namespace),
    ("session", calls::session),
    ("keys", calls::keys),
    ("ring", calls::ring),
    ("kernel_log", calls::kernel_log),
    ("shared_memory", calls::shared_memory),
    ("queue", calls::queue),
    ("multipath_connect", multipath_connect),
    ("multipath_listen", multipath_listen),
    ("fast_open", fast_open),
    ("send_datagram", send_datagram),
    ("take_datagrams", take_datagrams),
    ("packets", packets),
    ("connections", connections),
    ("abstract", abstract_socket),
    ("open_socket", open_socket),
    ("private_socket", private_socket),
];

/// What prepares or undoes, outside every sandbox, and says a number.
const PREPARATIONS: [(&str, Preparation); 2] =
    [("make_shared_memory", calls::make_shared_memory), ("drop_shared_memory", calls::drop_shared_memory)];

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().collect();
    let [_, name, text] = args.as_slice() else { return ExitCode::from(2) };
    if let Some((_, prepare)) = PREPARATIONS.iter().find(|(known, _)| known == name) {
        let Ok(done) = prepare(text.parse().unwrap_or(0)) else { return ExitCode::FAILURE };
        println!("{done}");
        return ExitCode::SUCCESS;
    }
    let found = ATTEMPTS.iter().find(|(known, _)| known == name);
    let (Some((_, attempt)), Ok(scene)) = (found, serde_json::from_str::<Scene>(text)) else {
        return ExitCode::from(2);
    };
    let outcome = attempt(&scene);
    let why = outcome.err().map(|error| format!("{error:?}"));
    println!("{}", json!({ "open": outcome.is_ok(), "why": why }));
    ExitCode::SUCCESS
}

fn database(scene: &Scene) -> PathBuf {
    scene.theirs.join("data.db")
}

/// The first that works, or the last answer.
fn any(attempts: impl IntoIterator<Item = Result<(), Errno>>) -> Result<(), Errno> {
    let mut last = Errno::INVAL;
    for outcome in attempts {
        match outcome {
            Ok(()) => return Ok(()),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn ask(scene: &Scene) -> Result<(), Errno> {
    rustix::fs::stat(database(scene)).map(drop)
}

fn times(scene: &Scene) -> Result<(), Errno> {
    let time = Timespec { tv_sec: 1, tv_nsec: 0 };
    let times = Timestamps { last_access: time, last_modification: time };
    // A file that the suite made for this: the database's own times are left alone.
    rustix::fs::utimensat(CWD, scene.theirs.join("victim"), &times, AtFlags::empty())
}

fn watch(scene: &Scene) -> Result<(), Errno> {
    let queue = inotify::init(inotify::CreateFlags::CLOEXEC)?;
    inotify::add_watch(queue, &scene.theirs, inotify::WatchFlags::MODIFY | inotify::WatchFlags::CREATE).map(drop)
}

fn mode(scene: &Scene) -> Result<(), Errno> {
    let victim = scene.theirs.join("victim");
    let mode = Mode::RUSR | Mode::WUSR;
    any([rustix::fs::chmod(&victim, mode), calls::fchmodat2(&victim), calls::old_chmod(&victim)])
}

fn link(scene: &Scene) -> Result<(), Errno> {
    let second = scene.own.join("second");
    rustix::fs::linkat(CWD, database(scene), CWD, &second, AtFlags::empty())?;
    rustix::fs::unlink(second)
}

fn symlink(scene: &Scene) -> Result<(), Errno> {
    let link = scene.own.join("link");
    rustix::fs::symlinkat(database(scene), CWD, &link)?;
    rustix::fs::unlink(link)
}

fn pipe(scene: &Scene) -> Result<(), Errno> {
    let kinds = [(FileType::Fifo, 0), (FileType::CharacterDevice, rustix::fs::makedev(1, 3))];
    any(kinds.map(|(kind, device)| {
        let node = scene.own.join("node");
        rustix::fs::mknodat(CWD, &node, kind, Mode::RUSR, device)?;
        rustix::fs::unlink(node)
    }))
}

fn socket_file(scene: &Scene) -> Result<(), Errno> {
    let path = scene.own.join("sock");
    let socket = rustix::net::socket(AddressFamily::UNIX, SocketType::STREAM, None)?;
    // Names of sockets are short, and the folder's may be long.
    rustix::process::chdir(&scene.own)?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(Path::new("sock"))?)?;
    rustix::fs::unlink(path)
}

fn signal(scene: &Scene) -> Result<(), Errno> {
    let pid = pid(scene)?;
    any([rustix::process::test_kill_process(pid), calls::signals(scene.pid)])
}

fn works_where(scene: &Scene) -> Result<(), Errno> {
    let names = ["cwd", "exe", "root", "fd/2"];
    any(names.map(|name| rustix::fs::readlink(format!("/proc/{}/{name}", scene.pid), Vec::new()).map(drop)))
}

fn processes(scene: &Scene) -> Result<(), Errno> {
    rustix::fs::stat(format!("/proc/{}", scene.pid)).map(drop)
}

/// Another user, root where it is not, or the group of root.
fn user(_: &Scene) -> Result<(), Errno> {
    let own = rustix::process::geteuid();
    let other = if own.is_root() { Uid::from_raw(65_533) } else { Uid::ROOT };
    let groups = rustix::thread::set_thread_groups(&[Gid::from_raw(65_533)]);
    any([groups, rustix::thread::set_thread_res_uid(other, other, other)])
}

fn pid(scene: &Scene) -> Result<Pid, Errno> {
    Pid::from_raw(scene.pid).ok_or(Errno::SRCH)
}

fn multipath() -> Result<std::os::fd::OwnedFd, Errno> {
    let protocol = std::num::NonZeroU32::new(262).map(Protocol::from_raw);
    rustix::net::socket(AddressFamily::INET, SocketType::STREAM, protocol)
}

fn multipath_connect(scene: &Scene) -> Result<(), Errno> {
    rustix::net::connect(multipath()?, &scene.address)
}

fn multipath_listen(_: &Scene) -> Result<(), Errno> {
    let socket = multipath()?;
    rustix::net::bind(&socket, &std::net::SocketAddrV4::new(std::net::Ipv4Addr::LOCALHOST, 0))?;
    rustix::net::listen(socket, 1)
}

fn fast_open(scene: &Scene) -> Result<(), Errno> {
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None)?;
    let flags = rustix::net::SendFlags::from_bits_retain(0x2000_0000);
    rustix::net::sendto(socket, b"GET / HTTP/1.0\r\n\r\n", flags, &scene.address).map(drop)
}

fn send_datagram(scene: &Scene) -> Result<(), Errno> {
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::DGRAM, None)?;
    rustix::net::sendto(socket, b"x", rustix::net::SendFlags::empty(), &scene.datagrams).map(drop)
}

fn take_datagrams(_: &Scene) -> Result<(), Errno> {
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::DGRAM, None)?;
    rustix::net::bind(socket, &std::net::SocketAddrV4::new(std::net::Ipv4Addr::LOCALHOST, 0))
}

fn packets(_: &Scene) -> Result<(), Errno> {
    let raw =
        rustix::net::socket(AddressFamily::INET, SocketType::RAW, std::num::NonZeroU32::new(6).map(Protocol::from_raw));
    any([rustix::net::socket(AddressFamily::PACKET, SocketType::RAW, None).map(drop), raw.map(drop)])
}

fn connections(_: &Scene) -> Result<(), Errno> {
    // NETLINK_SOCK_DIAG
    let protocol = std::num::NonZeroU32::new(4).map(Protocol::from_raw);
    rustix::net::socket(AddressFamily::NETLINK, SocketType::RAW, protocol).map(drop)
}

fn to_unix(address: &SocketAddrUnix) -> Result<(), Errno> {
    rustix::net::connect(rustix::net::socket(AddressFamily::UNIX, SocketType::STREAM, None)?, address)
}

fn abstract_socket(scene: &Scene) -> Result<(), Errno> {
    to_unix(&SocketAddrUnix::new_abstract_name(scene.abstract_socket.as_bytes())?)
}

fn open_socket(scene: &Scene) -> Result<(), Errno> {
    to_unix(&SocketAddrUnix::new(&scene.open_socket)?)
}

fn private_socket(scene: &Scene) -> Result<(), Errno> {
    to_unix(&SocketAddrUnix::new(&scene.private_socket)?)
}

/// A call that has no safe form.
fn named(number: i64, first: i64, path: &Path, third: i64) -> Result<(), Errno> {
    let path = std::ffi::CString::new(path.as_os_str().as_encoded_bytes()).map_err(|_| Errno::INVAL)?;
    call(number, [first, calls::address(path.as_bytes_with_nul()), third, 0, 0, 0]).map(drop)
}
