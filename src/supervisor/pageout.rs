//! Telling the kernel that a stopped process will not need its memory soon.
//!
//! Only what is the process's own is named: pages that it shares with other instances (the program's text, above all) are
//! theirs too, and reading them back costs more than they take.

use std::io;
use std::io::BufRead;
use std::io::BufReader;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::fd::BorrowedFd;

/// Most bytes of `/proc/<pid>/maps` that are read: thousands of mappings.
const MOST_TEXT: u64 = 1 << 20;
/// Most of one process's address space that is offered. Far more than `instances.data_bytes`, because Go reserves ahead.
const MOST_BYTES: u64 = 8 << 30;
/// What one call offers: some milliseconds of work, after which a process that is wanted again is noticed.
const STEP: u64 = 1 << 20;

/// How far it came.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// As far as it goes: bytes that were offered, present or not.
    Done(u64),
    /// We may not, or the kernel does not know how: it is the same for all processes.
    Refused(io::Error),
    /// The process was wanted or is gone.
    Ended(u64),
}

/// Offers all private memory of a process to swap, in steps, until `is_over`. Blocks.
pub(crate) fn page_out(pid: i32, pidfd: BorrowedFd<'_>, is_over: &dyn Fn() -> bool) -> Outcome {
    // If the pid were another's by now, the descriptor would still be of the one that is gone, and the calls do nothing.
    let ranges = match std::fs::File::open(format!("/proc/{pid}/maps")) {
        Ok(file) => ranges(BufReader::new(file.take(MOST_TEXT))),
        Err(error) if error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH) => {
            return Outcome::Ended(0);
        }
        Err(error) => return Outcome::Refused(error),
    };
    let mut offered = 0;
    for (start, end) in ranges {
        let mut at = start;
        while at < end {
            if is_over() {
                return Outcome::Ended(offered);
            }
            let length = STEP.min(end - at);
            match advise(pidfd, at, length) {
                Ok(()) => offered += length,
                Err(error) => match error.raw_os_error() {
                    Some(libc::EPERM | libc::ENOSYS) => return Outcome::Refused(error),
                    Some(libc::ESRCH) => return Outcome::Ended(offered),
                    // Locked, special, or gone from there: the others may do.
                    _ => break,
                },
            }
            at += length;
        }
    }
    Outcome::Done(offered)
}

/// The writable private mappings: stacks, heaps, what Go allocates, and the program's variables.
fn ranges(maps: impl BufRead) -> Vec<(u64, u64)> {
    let mut left = MOST_BYTES;
    let mut found = Vec::new();
    for line in maps.lines().map_while(Result::ok) {
        let Some((start, end)) = range(&line) else { continue };
        let length = (end - start).min(left);
        if length == 0 {
            break;
        }
        left -= length;
        found.push((start, start + length));
    }
    found
}

fn range(line: &str) -> Option<(u64, u64)> {
    let mut fields = line.split(' ');
    let (start, end) = fields.next()?.split_once('-')?;
    if fields.next()? != "rw-p" {
        return None;
    }
    let (start, end) = (u64::from_str_radix(start, 16).ok()?, u64::from_str_radix(end, 16).ok()?);
    (start < end).then_some((start, end))
}

fn advise(pidfd: BorrowedFd<'_>, start: u64, length: u64) -> io::Result<()> {
    let out_of_range = |_| io::Error::from(io::ErrorKind::InvalidInput);
    let address = usize::try_from(start).map_err(out_of_range)?;
    let part = libc::iovec {
        iov_base: std::ptr::without_provenance_mut(address),
        iov_len: usize::try_from(length).map_err(out_of_range)?,
    };
    #[expect(unsafe_code, reason = "no crate at hand has a safe form of process_madvise")]
    // SAFETY: the call reads one iovec, which lives until it returns. The range is the other process's; MADV_PAGEOUT
    // changes no content, neither there nor here.
    let advised = unsafe {
        libc::syscall(libc::SYS_process_madvise, pidfd.as_raw_fd(), &raw const part, 1_usize, libc::MADV_PAGEOUT, 0_u32)
    };
    if advised < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_writable_private_memory_is_offered_and_not_more_than_the_bound() {
        let maps = "00400000-01d5e000 r-xp 00000000 fe:00 42 /opt/pocketbase\n\
                    01d5e000-01e00000 rw-p 0195e000 fe:00 42 /opt/pocketbase\n\
                    c000000000-c000400000 rw-p 00000000 00:00 0 \n\
                    c000400000-c004000000 ---p 00000000 00:00 0 \n\
                    7f0000000000-7f0000008000 rw-s 00000000 fe:00 43 /data/data.db-shm\n\
                    nonsense\n\
                    7f0000100000-7f0000000000 rw-p 00000000 00:00 0\n\
                    7ffc00000000-7ffc00021000 rw-p 00000000 00:00 0 [stack]\n";
        let (start, end) = (0x7ffc_0000_0000, 0x7ffc_0002_1000);
        let found = ranges(maps.as_bytes());
        assert_eq!(found, [(0x1d5_e000, 0x1e0_0000), (0xc0_0000_0000, 0xc0_0040_0000), (start, end)]);
        let large = "100000000-10000000000 rw-p 00000000 00:00 0\n7ffc00000000-7ffc00021000 rw-p 00000000 00:00 0\n";
        assert_eq!(ranges(large.as_bytes()), [(0x1_0000_0000, 0x1_0000_0000 + MOST_BYTES)]);
    }
}
