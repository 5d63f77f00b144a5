//! How eagerly a worker's thread takes the processor when it is woken.
//!
//! An ordinary thread that is woken takes the processor at once from whoever has it. A worker under load is woken by
//! every message, so it interrupts an instance that is about to write the next one, finds one message, and sleeps
//! again. As a batch thread (`SCHED_BATCH`, sched(7)) it gets its turn a little later and finds several: a warm record
//! then costs it a third less CPU time and a list half, and `PocketBase` is interrupted less. With one request at a
//! time there is nothing to gather, and with few an instance that computes for long would keep others' messages
//! waiting; then it is an ordinary thread.
//!
//! *Absent*: what the thread does. Nothing is changed where somebody started pocketfleet under another policy.

use std::io;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::Instant;

/// Wake-ups between two looks at the clock.
const STRIDE: usize = 64;
/// Less than this for so many wake-ups (640 a second) is much to do, if as many requests as `CROWD` wait at each, on
/// average.
const MUCH: Duration = Duration::from_millis(100);
const CROWD: usize = 2;
/// More than this (160 a second) is little, and so is not one request that waits. Far from the others, because each
/// wake-up of a batch thread brings more.
const LITTLE: Duration = Duration::from_millis(400);

/// How the kernel picks a thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Policy {
    Ordinary,
    Batch,
}

/// The wake-ups of one thread.
#[derive(Debug)]
struct Tally {
    policy: Policy,
    wakes: usize,
    /// Requests that waited, summed over the wake-ups.
    waited: usize,
    since: Instant,
}

impl Tally {
    fn new(now: Instant) -> Self {
        Self { policy: Policy::Ordinary, wakes: 0, waited: 0, since: now }
    }

    /// Counts a wake-up at which so many requests wait; tells a policy that fits better from now on.
    fn woken(&mut self, waiting: usize, now: impl FnOnce() -> Instant) -> Option<Policy> {
        self.wakes += 1;
        self.waited = self.waited.saturating_add(waiting);
        if self.wakes < STRIDE {
            return None;
        }
        let now = now();
        let (took, waited) = (now.saturating_duration_since(self.since), self.waited);
        (self.wakes, self.waited, self.since) = (0, 0, now);
        let fits = match self.policy {
            Policy::Ordinary if took < MUCH && waited >= CROWD * STRIDE => Policy::Batch,
            Policy::Batch if took > LITTLE || waited < STRIDE => Policy::Ordinary,
            same => same,
        };
        (fits != self.policy).then(|| {
            self.policy = fits;
            fits
        })
    }
}

/// Of one thread: the requests that it answers, and its wake-ups.
#[derive(Debug, Clone)]
pub(super) struct Pace {
    running: Arc<AtomicUsize>,
    /// `None` where the policy is not ours to change.
    tally: Arc<Mutex<Option<Tally>>>,
}

/// A request that is being answered.
#[derive(Debug)]
pub(super) struct Turn<'a>(&'a AtomicUsize);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Pace {
    /// Of the calling thread, whose policy is looked at here: another than the ordinary one is somebody's wish, and is
    /// left alone.
    pub(super) fn of_this_thread() -> Self {
        let tally = is_ordinary().then(|| Tally::new(Instant::now()));
        Self { running: Arc::default(), tally: Arc::new(Mutex::new(tally)) }
    }

    /// A request begins.
    pub(super) fn begin(&self) -> Turn<'_> {
        self.running.fetch_add(1, Ordering::Relaxed);
        Turn(&self.running)
    }

    /// To be called on the same thread each time that it was woken.
    pub(super) fn woken(&self) {
        // One thread calls this, so nobody else ever has it.
        let Ok(mut tally) = self.tally.try_lock() else { return };
        let waiting = self.running.load(Ordering::Relaxed);
        let Some(fits) = tally.as_mut().and_then(|tally| tally.woken(waiting, Instant::now)) else { return };
        if let Err(error) = set(fits) {
            // A filter of system calls may forbid it.
            tracing::debug!(%error, "change the scheduling policy of a worker");
            *tally = None;
        }
    }
}

fn is_ordinary() -> bool {
    #[expect(unsafe_code, reason = "no crate at hand has a safe form of sched_getscheduler")]
    // SAFETY: the call takes a number, 0 for the calling thread, and touches no memory of this process.
    let policy = unsafe { libc::syscall(libc::SYS_sched_getscheduler, 0) };
    policy == libc::c_long::from(libc::SCHED_OTHER)
}

fn set(policy: Policy) -> io::Result<()> {
    let number = match policy {
        Policy::Ordinary => libc::SCHED_OTHER,
        Policy::Batch => libc::SCHED_BATCH,
    };
    // The whole of the kernel's `struct sched_param`. These policies know one static priority; what `nice` says stays.
    let priority: libc::c_int = 0;
    #[expect(unsafe_code, reason = "no crate at hand has a safe form of sched_setscheduler")]
    // SAFETY: the call reads one integer, which lives until it returns; 0 is the calling thread.
    let done = unsafe { libc::syscall(libc::SYS_sched_setscheduler, 0, number, &raw const priority) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What fits after one stride of wake-ups that took so many milliseconds, with so many requests waiting at each.
    fn after(tally: &mut Tally, took: u64, waiting: usize) -> Option<Policy> {
        let end = tally.since + Duration::from_millis(took);
        let early = (1..STRIDE).find_map(|_| tally.woken(waiting, || panic!("the clock is read once a stride")));
        assert_eq!(early, None);
        tally.woken(waiting, || end)
    }

    #[test]
    fn a_crowd_makes_a_batch_thread_and_little_to_do_an_ordinary_one() {
        let mut tally = Tally::new(Instant::now());
        assert_eq!(after(&mut tally, 101, 50), None, "not often enough");
        assert_eq!(after(&mut tally, 10, 1), None, "one request at a time");
        assert_eq!(after(&mut tally, 99, 2), Some(Policy::Batch));
        assert_eq!(after(&mut tally, 1, 50), None, "it is one already");
        assert_eq!(after(&mut tally, 399, 1), None, "its wake-ups are fewer for the same work");
        assert_eq!(after(&mut tally, 401, 50), Some(Policy::Ordinary));
        assert_eq!(after(&mut tally, 99, 2), Some(Policy::Batch));
        assert_eq!(after(&mut tally, 1, 0), Some(Policy::Ordinary), "often, but never with a request that waits");
        assert_eq!(after(&mut tally, 401, 50), None);
    }

    #[test]
    fn the_policy_of_the_thread_is_changed_and_another_is_left_alone() {
        let thread = std::thread::spawn(|| {
            assert!(is_ordinary());
            let pace = Pace::of_this_thread();
            let turns = [pace.begin(), pace.begin()];
            (0..STRIDE).for_each(|_| pace.woken());
            assert!(!is_ordinary(), "so many wake-ups at once");
            drop(turns);
            (0..STRIDE).for_each(|_| pace.woken());
            assert!(is_ordinary(), "nobody waits");
            set(Policy::Batch).expect("a thread may always become a batch thread");
            let pace = Pace::of_this_thread();
            (0..STRIDE * 3).for_each(|_| pace.woken());
            assert!(!is_ordinary(), "nobody asked for this policy here");
        });
        thread.join().expect("the thread");
    }
}
