//! What the sandbox refuses, tried from inside; and the lock.

use super::*;

#[test]
fn lock_is_seen_while_another_descriptor_holds_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("lock");
    assert!(!is_locked(&path).unwrap(), "a missing file is not locked");
    let holder = File::create(&path).unwrap();
    assert!(!is_locked(&path).unwrap());
    rustix::fs::flock(holder.as_fd(), FlockOperation::NonBlockingLockExclusive).unwrap();
    assert!(is_locked(&path).unwrap());
    drop(holder);
    assert!(!is_locked(&path).unwrap());
}

/// Tries things in a thread that has shut itself in: Landlock and seccomp hold for one thread and what it starts.
fn inside<T: Send + 'static>(sandbox: Sandbox, try_it: impl FnOnce() -> T + Send + 'static) -> T {
    let thread = std::thread::spawn(move || {
        nix::sys::prctl::set_no_new_privs().unwrap();
        confine(&Sandbox { user: None, ..sandbox }).unwrap();
        try_it()
    });
    thread.join().unwrap()
}

fn sandbox(root: &std::path::Path) -> Sandbox {
    let own = root.join("own");
    std::fs::create_dir_all(&own).unwrap();
    Sandbox {
        program: "/bin/true".into(),
        write: vec![own],
        read: Vec::new(),
        bind: None,
        outbound: Vec::new(),
        user: None,
    }
}

/// Whether this machine can show anything; where it cannot, pocketfleet starts at level 0 and says so.
fn has_landlock() -> bool {
    let version = landlock::version();
    if version < landlock::SCOPED {
        #[expect(clippy::print_stderr, reason = "a test that does not run says so")]
        {
            eprintln!("skipped: Landlock has version {version} here");
        }
    }
    version >= landlock::SCOPED
}

#[test]
fn files_outside_are_closed_and_inside_there_are_only_files_and_folders() {
    if !has_landlock() {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let own = root.path().join("own");
    let foreign = root.path().join("foreign");
    std::fs::write(&foreign, "secret").unwrap();
    inside(sandbox(root.path()), move || {
        std::fs::create_dir(own.join("folder")).unwrap();
        std::fs::write(own.join("folder/file"), "mine").unwrap();
        std::fs::rename(own.join("folder/file"), own.join("file")).unwrap();
        assert_eq!(std::fs::read_to_string(own.join("file")).unwrap(), "mine");
        std::fs::read_to_string(&foreign).unwrap_err();
        std::fs::read_to_string("/etc/passwd").unwrap_err();
        std::fs::read_dir("/").unwrap_err();
        std::fs::write(&foreign, "").unwrap_err();
        std::os::unix::fs::symlink("/etc", own.join("link")).unwrap_err();
        std::fs::hard_link(&foreign, own.join("second")).unwrap_err();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o777);
        std::fs::set_permissions(&foreign, mode).unwrap_err();
    });
}

/// Which sockets can be made: family, type, protocol.
fn socket(family: i32, kind: i32, protocol: i32) -> Result<std::os::fd::OwnedFd, i32> {
    use std::os::fd::FromRawFd;
    #[expect(unsafe_code, reason = "protocols that no safe form of the call knows")]
    // SAFETY: three numbers; a new descriptor belongs to nobody else.
    unsafe {
        let made = libc::socket(family, kind | libc::SOCK_CLOEXEC, protocol);
        if made < 0 {
            return Err(std::io::Error::last_os_error().raw_os_error().unwrap_or(0));
        }
        Ok(std::os::fd::OwnedFd::from_raw_fd(made))
    }
}

#[test]
fn only_tcp_to_the_listed_ports_leaves() {
    if !has_landlock() {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let there = listener.local_addr().unwrap();
    let closed = sandbox(root.path());
    let open = Sandbox { outbound: vec![there.port()], ..closed.clone() };
    inside(closed, move || {
        std::net::TcpStream::connect(there).unwrap_err();
        std::net::TcpListener::bind("127.0.0.1:0").unwrap_err();
        let refused = Some(libc::EPROTONOSUPPORT);
        // MPTCP, which Landlock does not see; datagrams; raw and packet sockets; netlink beyond routes.
        for (family, kind, protocol) in [
            (libc::AF_INET, libc::SOCK_STREAM, 262),
            (libc::AF_INET6, libc::SOCK_STREAM, 262),
            (libc::AF_INET, libc::SOCK_DGRAM, 0),
            (libc::AF_INET6, libc::SOCK_DGRAM | libc::SOCK_NONBLOCK, 17),
            (libc::AF_INET, libc::SOCK_STREAM, libc::IPPROTO_SCTP),
            // SCTP by the type alone.
            (libc::AF_INET, libc::SOCK_SEQPACKET, 0),
            (libc::AF_INET6, libc::SOCK_SEQPACKET | libc::SOCK_NONBLOCK, 0),
            (libc::AF_INET, libc::SOCK_RDM, 0),
            (libc::AF_PACKET, libc::SOCK_RAW, 0),
            (libc::AF_VSOCK, libc::SOCK_STREAM, 0),
            (libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_NETFILTER),
        ] {
            assert_eq!(socket(family, kind, protocol).err(), refused, "{family} {kind} {protocol}");
        }
        for (family, kind) in [(libc::AF_INET, libc::SOCK_STREAM), (libc::AF_UNIX, libc::SOCK_STREAM)] {
            socket(family, kind, 0).unwrap();
        }
        // A connection that is made by sending: Landlock does not see it.
        let quick = socket(libc::AF_INET, libc::SOCK_STREAM, 0).unwrap();
        let there = rustix::net::SocketAddrAny::from(there);
        let flags = rustix::net::SendFlags::from_bits_retain(0x2000_0000);
        assert_eq!(rustix::net::sendto(&quick, b"x", flags, &there), Err(rustix::io::Errno::PERM));
    });
    inside(open, move || {
        std::net::TcpStream::connect(there).unwrap();
        std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        for (kind, protocol) in [(libc::SOCK_STREAM, 262), (libc::SOCK_SEQPACKET, 0), (libc::SOCK_RAW, 17)] {
            assert_eq!(socket(libc::AF_INET, kind, protocol).err(), Some(libc::EPROTONOSUPPORT), "{kind}");
        }
        let tipc = i64::from(libc::AF_TIPC);
        assert_eq!(call_with(libc::SYS_socketpair, tipc), Some(libc::EPROTONOSUPPORT));
    });
}

#[test]
fn calls_that_reach_around_the_rules_are_refused() {
    if !has_landlock() {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    #[expect(clippy::disallowed_methods, reason = "a process to be left alone")]
    let mut other = std::process::Command::new("/bin/sleep");
    let mut other = other.arg("1000").spawn().unwrap();
    let pid = rustix::process::Pid::from_child(&other);
    inside(sandbox(root.path()), move || {
        use rustix::io::Errno;
        assert_eq!(rustix::process::kill_process(pid, rustix::process::Signal::TERM), Err(Errno::PERM));
        assert_eq!(nix::sys::prctl::get_no_new_privs(), Ok(true));
        let number = i64::from(pid.as_raw_nonzero().get());
        for (name, call, first) in [
            ("ptrace", libc::SYS_ptrace, i64::from(libc::PTRACE_SEIZE)),
            ("process_vm_readv", libc::SYS_process_vm_readv, number),
            ("prlimit64", libc::SYS_prlimit64, number),
            ("io_uring_setup", libc::SYS_io_uring_setup, 1),
            ("bpf", libc::SYS_bpf, 0),
            ("setsid", libc::SYS_setsid, 0),
            ("setpgid", libc::SYS_setpgid, 0),
            ("shmget", libc::SYS_shmget, 0),
            ("shmat", libc::SYS_shmat, -1),
            ("semget", libc::SYS_semget, 0),
            ("msgget", libc::SYS_msgget, 0),
            ("mq_open", libc::SYS_mq_open, 0),
            ("setxattrat", 463, 0),
            ("removexattrat", 466, 0),
            ("file_setattr", 469, 0),
            ("sched_setaffinity", libc::SYS_sched_setaffinity, number),
            ("sched_setscheduler", libc::SYS_sched_setscheduler, number),
            ("sched_setparam", libc::SYS_sched_setparam, number),
            ("sched_setattr", libc::SYS_sched_setattr, number),
            ("setpriority of a group", libc::SYS_setpriority, 1),
            ("ioprio_set of a user", libc::SYS_ioprio_set, 3),
            ("unshare", libc::SYS_unshare, i64::from(libc::CLONE_NEWUSER)),
            ("keyctl", libc::SYS_keyctl, 0),
            ("userfaultfd", libc::SYS_userfaultfd, 0),
            ("memfd_create", libc::SYS_memfd_create, 0),
            ("open_by_handle_at", libc::SYS_open_by_handle_at, -100),
            ("clone into a new user namespace", libc::SYS_clone, i64::from(libc::CLONE_NEWUSER)),
        ] {
            assert_eq!(call_with(call, first), Some(libc::EPERM), "{name}");
        }
        assert_eq!(call_with(libc::SYS_clone3, 0), Some(libc::ENOSYS));
        if cfg!(target_arch = "x86_64") {
            assert_eq!(call_with(0x4000_0000 | libc::SYS_getpid, 0), Some(libc::ENOSYS), "the x32 kind");
        }
        // One's own turn on the CPU is one's own: Go and the C library ask for it.
        for call in [libc::SYS_setpriority, libc::SYS_sched_setparam] {
            assert_ne!(call_with(call, 0), Some(libc::EPERM));
        }
        let caps = rustix::thread::capabilities(None).unwrap();
        assert!(caps.effective.is_empty() && caps.permitted.is_empty(), "{caps:?}");
    });
    assert!(other.try_wait().unwrap().is_none(), "it was not signalled");
    other.kill().unwrap();
    other.wait().unwrap();
}

/// The error of a call whose other arguments are 0.
fn call_with(call: i64, first: i64) -> Option<i32> {
    #[expect(unsafe_code, reason = "calls that are to be refused have no safe form")]
    // SAFETY: refused before the arguments are looked at; were they not, no pointer among them is valid.
    let answer = unsafe { libc::syscall(call, first, 0, 0, 0, 0, 0) };
    (answer < 0).then(|| std::io::Error::last_os_error().raw_os_error().unwrap_or(0))
}
