//! What machine code can do in the sandbox, where hooks have no word for it: `tests/escape_probe`, started by the jailer
//! with what the instance beside it was started with.

use std::collections::BTreeSet;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::SocketAddr as UnixAddr;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::path::PathBuf;

use pocketfleet::supervisor::jail::Limits;
use pocketfleet::supervisor::jail::SUBCOMMAND;
use pocketfleet::supervisor::jail::Sandbox;
use pocketfleet::supervisor::jail::Spec;
use pocketfleet::supervisor::jail::landlock;
use serde_json::Value;
use serde_json::json;

use crate::support::TestApp;
use crate::support::User;
use crate::support::command;
use crate::support::pocketfleet;

/// The name of an attempt in the program, and its row.
const ATTEMPTS: [(&str, &str); 33] = [
    ("ask", "ask for size, times and owner of another tenant's file (`stat`)"),
    ("times", "change the times of another tenant's file by its name (`utimensat`)"),
    ("watch", "be told what another tenant writes (`inotify_add_watch`)"),
    ("mode", "change the mode of another tenant's file by its name (`chmod`, `fchmodat2`)"),
    ("link", "make a second name of another tenant's database (`linkat`)"),
    ("symlink", "make a link to another tenant's database (`symlinkat`)"),
    ("pipe", "make a pipe or a device in its data (`mknodat`)"),
    ("socket_file", "make a socket in its data (`bind`)"),
    ("signal", "signal another tenant's process (`kill`, `tgkill`, `tkill`, `pidfd_send_signal`)"),
    ("trace", "trace another tenant's process (`ptrace`)"),
    ("memory", "read another tenant's memory, or take its files (`process_vm_readv`, `pidfd_getfd`)"),
    ("limits", "ask for the limits of another tenant's process (`prlimit64`)"),
    ("turn", "set priority or CPUs of another tenant's process (`setpriority`, `sched_setaffinity`)"),
    ("works_where", "see where another tenant's process works, and its files (`readlink /proc/N/cwd`, `fd`)"),
    ("processes", "find out that another tenant's process runs (`stat /proc/N`)"),
    ("user", "become another user or take another group (`setresuid`, `setgroups`)"),
    ("namespace", "make a namespace of users, networks or mounts (`unshare`)"),
    ("session", "leave the session that ends with the instance (`setsid`)"),
    ("keys", "reach the keys that the kernel keeps for its user (`keyctl`)"),
    ("ring", "make calls that no filter sees (`io_uring_setup`)"),
    ("kernel_log", "read the kernel's log (`syslog`)"),
    ("shared_memory", "reach memory that another process shares with everybody (`shmat`)"),
    ("queue", "make a queue of messages that anybody may open (`mq_open`)"),
    ("multipath_connect", "call another tenant's port by MPTCP"),
    ("multipath_listen", "listen by MPTCP"),
    ("fast_open", "call another tenant's port by TCP Fast Open (`sendto`)"),
    ("send_datagram", "send a datagram to this machine, with a port in `outbound`"),
    ("take_datagrams", "take datagrams at a port, with a port in `outbound`"),
    ("packets", "see every packet of the machine (`AF_PACKET`, raw sockets)"),
    ("connections", "ask for all connections of the machine (`NETLINK_SOCK_DIAG`)"),
    ("abstract", "connect to an abstract Unix socket"),
    (OPEN_SOCKET, "connect to a Unix socket of the machine that is open to everybody"),
    (PRIVATE_SOCKET, "connect to a Unix socket of pocketfleet's own user"),
];
const OPEN_SOCKET: &str = "open_socket";
const PRIVATE_SOCKET: &str = "private_socket";

/// `ENOSYS`, `EPROTONOSUPPORT`, `EOPNOTSUPP` and `EAFNOSUPPORT`: a kernel that was built or set up without it.
const ABSENT: [i32; 4] = [38, 93, 95, 97];

/// From this version on Landlock closes named sockets.
const NAMES_OF_SOCKETS: i32 = 9;

/// What there is to attack, and the program in a place where every user may run it.
pub(super) struct Scene {
    at: Value,
    spec: Spec,
    program: PathBuf,
    memory: String,
    lock: PathBuf,
    _kept: (UnixListener, UnixListener, UnixListener, std::net::UdpSocket, tempfile::TempDir),
}

impl Drop for Scene {
    fn drop(&mut self) {
        let dropped = command(&self.program).args(["drop_shared_memory", &self.memory]).output().unwrap().status;
        drop(std::fs::remove_file(&self.lock));
        assert!(dropped.success() || std::thread::panicking());
    }
}

impl Scene {
    /// Both are awake.
    pub(super) fn of(app: &TestApp, level: u8, mallory: &User, ada: &User, listed: u16) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let set = |path: &Path, mode| std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
        set(folder.path(), 0o755);
        let program = folder.path().join("probe");
        // By another process: while this one had it open for writing, a test beside this one could start a child that has
        // it too, and then it cannot be run.
        let copied = command("cp").arg(env!("CARGO_BIN_EXE_escape-probe")).arg(&program).status().unwrap();
        assert!(copied.success());
        set(&program, 0o755);
        let memory = command(&program).args(["make_shared_memory", "0"]).output().unwrap();
        assert!(memory.status.success(), "{memory:?}");
        let memory = String::from_utf8(memory.stdout).unwrap().trim().to_owned();

        let socket = |name: &str, mode| {
            let path = folder.path().join(name);
            let listener = UnixListener::bind(&path).unwrap();
            set(&path, mode);
            (path, listener)
        };
        let (open, open_listener) = socket("open", 0o777);
        let (private, private_listener) = socket("private", 0o600);
        let name = format!("pocketfleet-escape-{}-{level}", std::process::id());
        let hidden = UnixListener::bind_addr(&UnixAddr::from_abstract_name(&name).unwrap()).unwrap();
        let datagrams = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();

        let instances = app.data().join("instances");
        let (own, theirs) = (instances.join(&mallory.id), instances.join(&ada.id));
        let victim = theirs.join("pb_data/victim");
        std::fs::write(&victim, "").unwrap();
        std::os::unix::fs::chown(&victim, Some(uid(&theirs)), Some(uid(&theirs))).unwrap();
        let status = app.tenant(&ada.id);
        let at = json!({
            "own": own.join("pb_data"), "theirs": theirs.join("pb_data"), "address": status["address"],
            "pid": status["pid"], "datagrams": datagrams.local_addr().unwrap().to_string(),
            "open_socket": open, "private_socket": private, "abstract_socket": name,
            "shared_memory": memory.parse::<i32>().unwrap(),
        });
        let port = app.tenant(&mallory.id)["address"].as_str().and_then(|text| text.rsplit_once(':')?.1.parse().ok());
        let (loader, mut read) = loaded();
        read.push(program.clone());
        // As `confine` and `launch` of the supervisor put it together; the program is the loader of the machine, because
        // a sandboxed process executes one file and the probe is linked with others.
        let sandbox = Sandbox {
            program: loader.clone(),
            write: vec![own.join("pb_data"), own.join("tmp")],
            read,
            bind: port,
            outbound: vec![listed],
            user: (level >= 2).then(|| uid(&own)),
        };
        let lock = own.join("lock-of-the-probe");
        let spec = Spec {
            program: loader,
            args: Vec::new(),
            environment: Vec::new(),
            directory: own,
            lock: lock.clone(),
            limits: Limits { nofile: 4096, nproc: 256, data_bytes: 1 << 30, file_bytes: 0 },
            cgroup: None,
            sandbox: (level > 0).then_some(sandbox),
        };
        let kept = (open_listener, private_listener, hidden, datagrams, folder);
        Self { at, spec, program, memory, lock, _kept: kept }
    }

    /// Whether an attempt gets through, or what the kernel said to it.
    fn try_it(&self, name: &str) -> (bool, String) {
        let arguments = [&self.program.display().to_string(), name, &self.at.to_string()].map(str::to_owned);
        let spec = Spec { args: arguments.to_vec(), ..self.spec.clone() };
        let output = pocketfleet().arg(SUBCOMMAND).arg(serde_json::to_string(&spec).unwrap()).output().unwrap();
        assert!(output.status.success(), "{name}: {output:?}");
        let said: Value = serde_json::from_slice(&output.stdout).unwrap();
        (said["open"].as_bool().unwrap(), said["why"].as_str().unwrap_or("it worked").to_owned())
    }
}

/// Whose the data in a folder is.
fn uid(folder: &Path) -> u32 {
    folder.join("pb_data").metadata().unwrap().uid()
}

/// The loader of linked programs, and the libraries that programs of this build take.
fn loaded() -> (PathBuf, Vec<PathBuf>) {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let files = maps.lines().filter_map(|line| line.split_whitespace().nth(5)).filter(|path| path.contains(".so"));
    let files: BTreeSet<PathBuf> = files.map(PathBuf::from).collect();
    let is_loader = |path: &&PathBuf| {
        let name = path.file_name().unwrap().to_string_lossy();
        name.starts_with("ld-")
    };
    let loader = files.iter().find(is_loader).expect("the test is linked with libraries").clone();
    (loader, files.into_iter().collect())
}

/// Tries all of it; what the kernel said is in the output of a test that fails. What this kernel does not have, or does not
/// give to whoever runs the tests, is `absent` from level 0 on and has no say in the table.
pub(super) fn attempts(
    scene: &Scene,
    level: u8,
    absent: &mut BTreeSet<&'static str>,
    mut note: impl FnMut(&'static str, Option<bool>),
) {
    for (name, row) in ATTEMPTS {
        // The same socket is closed by the kernels to come.
        let is_newer = level > 0 && landlock::version() >= NAMES_OF_SOCKETS;
        if is_newer && [OPEN_SOCKET, PRIVATE_SOCKET].contains(&name) {
            note(row, None);
            continue;
        }
        let (is_open, why) = scene.try_it(name);
        eprintln!("level {level}: {name}: {why}");
        if level == 0 && !is_open && is_missing(name, &why) {
            eprintln!("NOT TESTED: {row}: {why} without any sandbox");
            absent.insert(name);
        }
        note(row, Some(is_open).filter(|_| !absent.contains(name)));
    }
}

/// Whether what stopped an attempt outside of every sandbox is the machine.
fn is_missing(name: &str, why: &str) -> bool {
    let is_unknown = ABSENT.iter().any(|number| why.contains(&format!("code: {number},")));
    let has_rings = std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled").is_ok_and(|text| text.trim() == "0");
    let is_refused = why.contains("code: 1,") || why.contains("code: 13,");
    is_unknown || is_refused && (!rustix::process::geteuid().is_root() || name == "ring" && !has_rings)
}
