//! System calls that no `PocketBase` needs: three filters, because each refuses with an error of its own.
//!
//! A list of what is refused and not of what is allowed: Go's runtime and `SQLite` change what they call with every
//! release, and a call that is missing from a list would be a crash at a user's. What lies behind Landlock's back is
//! here: other protocols than TCP and UDP (Go listens with MPTCP, which Landlock does not see), datagrams, TCP Fast Open
//! (a connection without `connect`), and changing other people's modes and owners.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use seccompiler::BpfProgram;
use seccompiler::SeccompAction;
use seccompiler::SeccompCmpArgLen;
use seccompiler::SeccompCmpOp;
use seccompiler::SeccompCondition;
use seccompiler::SeccompFilter;
use seccompiler::SeccompRule;
use seccompiler::TargetArch;
use seccompiler::sock_filter;

/// What this is built for: the numbers of calls are this architecture's, and calls of any other end the process.
const ARCH: TargetArch = if cfg!(target_arch = "x86_64") {
    TargetArch::x86_64
} else if cfg!(target_arch = "aarch64") {
    TargetArch::aarch64
} else {
    TargetArch::riscv64
};

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// Refused with EPERM, whatever the arguments.
const REFUSED: &[i64] = &[
    // Into other processes.
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_process_madvise,
    libc::SYS_pidfd_getfd,
    libc::SYS_kcmp,
    libc::SYS_move_pages,
    libc::SYS_migrate_pages,
    // Around the view of files.
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_mount_setattr,
    libc::SYS_open_by_handle_at,
    libc::SYS_name_to_handle_at,
    libc::SYS_quotactl,
    libc::SYS_quotactl_fd,
    libc::SYS_fanotify_init,
    libc::SYS_unshare,
    libc::SYS_setns,
    // Files that Landlock does not see, and what may change files by name without opening them.
    libc::SYS_memfd_create,
    libc::SYS_memfd_secret,
    libc::SYS_execveat,
    libc::SYS_fchmodat,
    SYS_FCHMODAT2,
    libc::SYS_fchownat,
    libc::SYS_setxattr,
    libc::SYS_lsetxattr,
    libc::SYS_removexattr,
    libc::SYS_lremovexattr,
    SYS_SETXATTRAT,
    SYS_REMOVEXATTRAT,
    SYS_FILE_SETATTR,
    // Out of the session that the jailer made: what leaves it would outlive the instance, and hold its lock.
    libc::SYS_setsid,
    libc::SYS_setpgid,
    // Memory, semaphores and queues that have no place among the files: Landlock does not see them.
    libc::SYS_shmget,
    libc::SYS_shmat,
    libc::SYS_shmctl,
    libc::SYS_semget,
    libc::SYS_semop,
    libc::SYS_semtimedop,
    libc::SYS_semctl,
    libc::SYS_msgget,
    libc::SYS_msgsnd,
    libc::SYS_msgrcv,
    libc::SYS_msgctl,
    libc::SYS_mq_open,
    libc::SYS_mq_unlink,
    // Large parts of the kernel with a history.
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_keyctl,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_personality,
    // The machine.
    libc::SYS_kexec_load,
    libc::SYS_kexec_file_load,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_acct,
    libc::SYS_syslog,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_clock_adjtime,
    libc::SYS_adjtimex,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_vhangup,
];

/// The same, of calls that newer machines do not have any more.
#[cfg(target_arch = "x86_64")]
const REFUSED_HERE: &[i64] =
    &[libc::SYS_iopl, libc::SYS_ioperm, libc::SYS_modify_ldt, libc::SYS_chmod, libc::SYS_chown, libc::SYS_lchown];
#[cfg(not(target_arch = "x86_64"))]
const REFUSED_HERE: &[i64] = &[];

/// The same number everywhere (Linux 6.6), and not known to every version of the C library's headers.
const SYS_FCHMODAT2: i64 = 452;
/// The same (6.13, 6.13, 6.17).
const SYS_SETXATTRAT: i64 = 463;
const SYS_REMOVEXATTRAT: i64 = 466;
const SYS_FILE_SETATTR: i64 = 469;
/// `MSG_FASTOPEN`: connects while it sends.
const FAST_OPEN: u64 = 0x2000_0000;
/// Namespaces in the flags of `clone`: mount, cgroup, uts, ipc, user, pid, net, time.
const NAMESPACES: [u64; 8] =
    [0x0002_0000, 0x0200_0000, 0x0400_0000, 0x0800_0000, 0x1000_0000, 0x2000_0000, 0x4000_0000, 0x80];
/// `TIOCSTI` and `TIOCLINUX`: typing into somebody's terminal.
const TERMINAL: [u64; 2] = [0x5412, 0x541c];
/// Numbers from here on are the x32 kinds of the same calls, which a list of numbers would miss.
const X32: u32 = 0x4000_0000;

const UNIX: u64 = 1;
const INET: u64 = 2;
const INET6: u64 = 10;
const NETLINK: u64 = 16;
const STREAM: u64 = 1;
const DATAGRAM: u64 = 2;

/// Both kinds, once they were made: a fork has those of the jailer that it is of.
static MADE: [OnceLock<Vec<BpfProgram>>; 2] = [OnceLock::new(), OnceLock::new()];

/// Makes the filters of both kinds, for forks. What cannot be made is told to whoever needs it.
pub(super) fn prepare() {
    for datagrams in [false, true] {
        drop(filters(datagrams));
    }
}

/// The filters: what is refused with EPERM, with EPROTONOSUPPORT, with ENOSYS. `datagrams` says whether UDP is left open;
/// nothing can say where to.
pub(super) fn filters(datagrams: bool) -> Result<&'static [BpfProgram], seccompiler::Error> {
    let [closed, open] = &MADE;
    let made = if datagrams { open } else { closed };
    if let Some(programs) = made.get() {
        return Ok(programs);
    }
    let programs = build(datagrams)?;
    Ok(made.get_or_init(|| programs))
}

fn build(datagrams: bool) -> Result<Vec<BpfProgram>, seccompiler::Error> {
    let mut programs = Vec::new();
    for (rules, errno) in [
        (forbidden()?, libc::EPERM),
        // Go falls back from MPTCP to TCP on this one.
        (sockets(datagrams)?, libc::EPROTONOSUPPORT),
        // The C library and Go fall back to clone, whose flags can be looked at.
        (Rules::from([(libc::SYS_clone3, Vec::new())]), libc::ENOSYS),
    ] {
        let errno = u32::try_from(errno).unwrap_or(1);
        let filter = SeccompFilter::new(rules, SeccompAction::Allow, SeccompAction::Errno(errno), ARCH)?;
        programs.push(BpfProgram::try_from(filter)?);
    }
    programs.push(no_x32());
    Ok(programs)
}

/// Puts them into force for this thread and whatever it becomes.
pub(super) fn enforce(filters: &[BpfProgram]) -> Result<(), seccompiler::Error> {
    filters.iter().try_for_each(|filter| seccompiler::apply_filter(filter))
}

fn rule(conditions: &[(u8, SeccompCmpOp, u64)]) -> Result<SeccompRule, seccompiler::Error> {
    let conditions: Result<Vec<_>, _> = conditions
        .iter()
        .map(|(argument, op, value)| SeccompCondition::new(*argument, SeccompCmpArgLen::Dword, op.clone(), *value))
        .collect();
    Ok(SeccompRule::new(conditions?)?)
}

fn forbidden() -> Result<Rules, seccompiler::Error> {
    let mut rules: Rules = REFUSED.iter().chain(REFUSED_HERE).map(|call| (*call, Vec::new())).collect();
    let has = |argument, bits| rule(&[(argument, SeccompCmpOp::MaskedEq(bits), bits)]);
    rules.insert(libc::SYS_clone, NAMESPACES.iter().map(|flag| has(0, *flag)).collect::<Result<_, _>>()?);
    rules.insert(libc::SYS_sendto, vec![has(3, FAST_OPEN)?]);
    rules.insert(libc::SYS_sendmsg, vec![has(2, FAST_OPEN)?]);
    rules.insert(libc::SYS_sendmmsg, vec![has(3, FAST_OPEN)?]);
    let terminal = TERMINAL.iter().map(|request| rule(&[(1, SeccompCmpOp::Eq, *request)]));
    rules.insert(libc::SYS_ioctl, terminal.collect::<Result<_, _>>()?);
    // Limits and turns on the CPU of another process of the same user; one's own are one's own.
    for call in [
        libc::SYS_prlimit64,
        libc::SYS_sched_setaffinity,
        libc::SYS_sched_setscheduler,
        libc::SYS_sched_setparam,
        libc::SYS_sched_setattr,
    ] {
        rules.insert(call, vec![rule(&[(0, SeccompCmpOp::Ne, 0)])?]);
    }
    // Of a process, a group or a user: a process, and oneself.
    let (process, io_process) = (0, 1);
    for (call, which) in [(libc::SYS_setpriority, process), (libc::SYS_ioprio_set, io_process)] {
        rules.insert(call, vec![rule(&[(0, SeccompCmpOp::Ne, which)])?, rule(&[(1, SeccompCmpOp::Ne, 0)])?]);
    }
    Ok(rules)
}

fn sockets(datagrams: bool) -> Result<Rules, seccompiler::Error> {
    use SeccompCmpOp::Eq;
    use SeccompCmpOp::MaskedEq;
    use SeccompCmpOp::Ne;
    let mut refused = vec![rule(&[(0, Ne, UNIX), (0, Ne, INET), (0, Ne, INET6), (0, Ne, NETLINK)])?];
    // Routes and addresses are what Go asks for; the other protocols of netlink configure the machine.
    refused.push(rule(&[(0, Eq, NETLINK), (2, Ne, 0)])?);
    for family in [INET, INET6] {
        let (tcp, udp) = (6, 17);
        refused.push(rule(&[(0, Eq, family), (2, Ne, 0), (2, Ne, tcp), (2, Ne, udp)])?);
        // The type of a socket has flags above its lowest four bits. With the protocol 0 the type decides: streams are
        // TCP, datagrams UDP, and packets in sequence would be SCTP, which Landlock does not see.
        for kind in (0..16).filter(|kind| *kind != STREAM && !(datagrams && *kind == DATAGRAM)) {
            refused.push(rule(&[(0, Eq, family), (1, MaskedEq(0xf), kind)])?);
        }
    }
    let pairs = vec![rule(&[(0, Ne, UNIX)])?];
    Ok(Rules::from([(libc::SYS_socket, refused), (libc::SYS_socketpair, pairs)]))
}

/// Refuses the x32 kinds of calls with ENOSYS, as a kernel without them does.
fn no_x32() -> BpfProgram {
    let line = |code: u32, jt, jf, k| sock_filter { code: u16::try_from(code).unwrap_or(0), jt, jf, k };
    let allow = line(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW);
    if ARCH != TargetArch::x86_64 {
        return vec![allow];
    }
    let errno = u32::try_from(libc::ENOSYS).unwrap_or(1);
    vec![
        line(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        line(libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K, 0, 1, X32),
        line(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ERRNO | errno),
        allow,
    ]
}
