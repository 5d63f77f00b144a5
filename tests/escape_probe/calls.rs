//! System calls that no crate at hand has a form for, or on purpose only a careful one.
#![expect(unsafe_code, reason = "the point of this program is what no safe code does")]

use std::path::Path;

use rustix::io::Errno;

use super::Scene;
use super::any;
use super::named;

/// Makes a call with numbers.
pub(super) fn call(number: i64, arguments: [i64; 6]) -> Result<i64, Errno> {
    let [first, second, third, rest @ ..] = arguments;
    // SAFETY: every pointer among the arguments is to a buffer that the caller holds, of the size that the call takes.
    let answer = unsafe { libc::syscall(number, first, second, third, rest[0], rest[1], rest[2]) };
    if answer >= 0 {
        return Ok(answer);
    }
    Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO))
}

/// A buffer as an argument.
pub(super) fn address(buffer: &[u8]) -> i64 {
    buffer.as_ptr().expose_provenance().cast_signed() as i64
}

fn filled(buffer: &mut [u8]) -> i64 {
    buffer.as_mut_ptr().expose_provenance().cast_signed() as i64
}

fn simple(number: i64, arguments: [i64; 3]) -> Result<(), Errno> {
    let [a, b, c] = arguments;
    call(number, [a, b, c, 0, 0, 0]).map(drop)
}

pub(super) fn fchmodat2(path: &Path) -> Result<(), Errno> {
    named(452, i64::from(libc::AT_FDCWD), path, 0o600)
}

/// The oldest form, where the machine has it.
pub(super) fn old_chmod(path: &Path) -> Result<(), Errno> {
    #[cfg(target_arch = "x86_64")]
    {
        let path = std::ffi::CString::new(path.as_os_str().as_encoded_bytes()).map_err(|_| Errno::INVAL)?;
        simple(libc::SYS_chmod, [address(path.as_bytes_with_nul()), 0o600, 0])
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        named(libc::SYS_fchmodat, i64::from(libc::AT_FDCWD), path, 0o600)
    }
}

/// The other ways to send one; none of them is sent.
pub(super) fn signals(pid: i32) -> Result<(), Errno> {
    let pid = i64::from(pid);
    let by_descriptor = || {
        let descriptor = call(libc::SYS_pidfd_open, [pid, 0, 0, 0, 0, 0])?;
        simple(libc::SYS_pidfd_send_signal, [descriptor, 0, 0])
    };
    any([simple(libc::SYS_tgkill, [pid, pid, 0]), simple(libc::SYS_tkill, [pid, 0, 0]), by_descriptor()])
}

pub(super) fn trace(scene: &Scene) -> Result<(), Errno> {
    // It is let go of when this process ends.
    simple(libc::SYS_ptrace, [i64::from(libc::PTRACE_SEIZE), i64::from(scene.pid), 0])
}

pub(super) fn memory(scene: &Scene) -> Result<(), Errno> {
    let mut taken = [0_u8; 8];
    // Where its memory is nobody told: whether it may be asked for is decided before that.
    let vector = |base: i64| [base, 8].map(i64::to_ne_bytes).concat();
    let (local, remote) = (vector(filled(&mut taken)), vector(0x40_0000));
    let asked = call(libc::SYS_process_vm_readv, [scene.pid.into(), address(&local), 1, address(&remote), 1, 0]);
    let descriptor = || call(libc::SYS_pidfd_open, [scene.pid.into(), 0, 0, 0, 0, 0]);
    let stolen = descriptor().and_then(|descriptor| simple(libc::SYS_pidfd_getfd, [descriptor, 0, 0]));
    let read = match asked {
        Ok(_) | Err(Errno::FAULT) => Ok(()),
        Err(error) => Err(error),
    };
    any([read, stolen])
}

pub(super) fn limits(scene: &Scene) -> Result<(), Errno> {
    let mut old = [0_u8; 16];
    let asked = [scene.pid.into(), i64::from(libc::RLIMIT_NOFILE), 0, filled(&mut old), 0, 0];
    call(libc::SYS_prlimit64, asked).map(drop)
}

/// As it is: whether it may be said is what is asked.
pub(super) fn turn(scene: &Scene) -> Result<(), Errno> {
    let pid = i64::from(scene.pid);
    let mut mask = [0_u8; 128];
    let pinned = call(libc::SYS_sched_getaffinity, [pid, 128, filled(&mut mask), 0, 0, 0])
        .and_then(|_| simple(libc::SYS_sched_setaffinity, [pid, 128, address(&mask)]));
    any([simple(libc::SYS_setpriority, [0, pid, 0]), pinned])
}

pub(super) fn namespace(_: &Scene) -> Result<(), Errno> {
    let kinds = [libc::CLONE_NEWUSER, libc::CLONE_NEWNET, libc::CLONE_NEWNS];
    any(kinds.map(|kind| simple(libc::SYS_unshare, [i64::from(kind), 0, 0])))
}

/// Whoever leads a session cannot begin another; its child can.
pub(super) fn session(_: &Scene) -> Result<(), Errno> {
    let child = call(libc::SYS_clone, [i64::from(libc::SIGCHLD), 0, 0, 0, 0, 0])?;
    if child == 0 {
        let is_done = simple(libc::SYS_setsid, [0; 3]).is_ok();
        simple(libc::SYS_exit_group, [i64::from(!is_done), 0, 0])?;
    }
    let mut status = [0_u8; 4];
    call(libc::SYS_wait4, [child, filled(&mut status), 0, 0, 0, 0])?;
    if i32::from_ne_bytes(status) == 0 { Ok(()) } else { Err(Errno::PERM) }
}

/// The keyring of the user, which is for all of its processes.
pub(super) fn keys(_: &Scene) -> Result<(), Errno> {
    let (get, of_user) = (0, -4);
    simple(libc::SYS_keyctl, [get, of_user, 1])
}

pub(super) fn ring(_: &Scene) -> Result<(), Errno> {
    let parameters = [0_u8; 120];
    simple(libc::SYS_io_uring_setup, [1, address(&parameters), 0])
}

pub(super) fn kernel_log(_: &Scene) -> Result<(), Errno> {
    let (read_all, mut text) = (3, [0_u8; 512]);
    simple(libc::SYS_syslog, [read_all, filled(&mut text), 512])
}

pub(super) fn shared_memory(scene: &Scene) -> Result<(), Errno> {
    simple(libc::SYS_shmat, [scene.shared_memory.into(), 0, 0])
}

/// One that anybody may open.
pub(super) fn queue(_: &Scene) -> Result<(), Errno> {
    let name = b"pocketfleet-escape-probe\0";
    let flags = i64::from(libc::O_CREAT | libc::O_RDWR);
    call(libc::SYS_mq_open, [address(name), flags, 0o666, 0, 0, 0])?;
    simple(libc::SYS_mq_unlink, [address(name), 0, 0])
}

pub(super) fn make_shared_memory(_: i64) -> Result<i64, Errno> {
    call(libc::SYS_shmget, [i64::from(libc::IPC_PRIVATE), 4096, 0o666, 0, 0, 0])
}

pub(super) fn drop_shared_memory(segment: i64) -> Result<i64, Errno> {
    call(libc::SYS_shmctl, [segment, i64::from(libc::IPC_RMID), 0, 0, 0, 0])
}
