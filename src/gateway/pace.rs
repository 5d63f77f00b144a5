//! How eagerly a worker's thread takes the processor when it is woken.
//!
//! An ordinary thread that is woken takes the processor at once from whoever has it. A worker under load is woken by
//! every message, so it interrupts an instance that is about to write the next one, finds one message, and sleeps
//! again. As a batch thread (`SCHED_BATCH`, sched(7)) it gets its turn a little later and finds several: a warm record
//! or list then costs it about half the CPU time, and `PocketBase` is interrupted less. With one request at a time
//! there is nothing to gather, and with few an instance that computes for long would keep others' messages waiting;
//! then it is an ordinary thread.
//!
//! How many requests are served at a time is what they took, summed, over the time in which they ended (Little's law).
//! One that takes long is counted as [`LONG`] once, so that polls, waits for a start and reports that compute weigh
//! next to nothing, however many stand.
//!
//! *Absent*: what the thread does. Nothing is changed where somebody started pocketfleet under another policy.

use std::io;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::Instant;

/// Wake-ups between two looks at the clock.
const STRIDE: usize = 64;
/// Less than this for so many wake-ups (640 a second) is much to do, if `CROWD` requests are served at a time, on
/// average.
const MUCH: Duration = Duration::from_millis(100);
const CROWD: u32 = 2;
/// More than this (160 a second) is little, and so is less than one request at a time. Far from the others, because
/// each wake-up of a batch thread brings more.
const LITTLE: Duration = Duration::from_millis(400);
/// The most that one request counts for.
const LONG: Duration = Duration::from_millis(50);

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
    since: Instant,
}

impl Tally {
    fn new(now: Instant) -> Self {
        Self { policy: Policy::Ordinary, wakes: 0, since: now }
    }

    /// Counts a wake-up; at the last of a stride looks at the time, and at what the requests took that were answered
    /// since the last look. Tells a policy that fits better from now on.
    fn woken(&mut self, look: impl FnOnce() -> (Instant, Duration)) -> Option<Policy> {
        self.wakes += 1;
        if self.wakes < STRIDE {
            return None;
        }
        let (now, served) = look();
        let took = now.saturating_duration_since(self.since);
        (self.wakes, self.since) = (0, now);
        self.change(match self.policy {
            Policy::Ordinary if took < MUCH && served >= took * CROWD => Policy::Batch,
            Policy::Batch if took > LITTLE || served < took => Policy::Ordinary,
            same => same,
        })
    }

    /// The same now and then, for a thread that is not woken any more.
    fn rested(&mut self, now: Instant) -> Option<Policy> {
        if now.saturating_duration_since(self.since) > LITTLE { self.change(Policy::Ordinary) } else { None }
    }

    fn change(&mut self, to: Policy) -> Option<Policy> {
        (std::mem::replace(&mut self.policy, to) != to).then_some(to)
    }
}

/// Of one thread: what the requests took that it answered, and its wake-ups.
#[derive(Debug, Clone)]
pub(super) struct Pace {
    /// Microseconds, since the last look.
    served: Arc<AtomicU64>,
    /// `None` where the policy is not ours to change.
    tally: Arc<Mutex<Option<Tally>>>,
}

impl Pace {
    /// Of the calling thread, whose policy is looked at here: another than the ordinary one is somebody's wish, and is
    /// left alone.
    pub(super) fn of_this_thread() -> Self {
        let tally = is_ordinary().then(|| Tally::new(Instant::now()));
        Self { served: Arc::default(), tally: Arc::new(Mutex::new(tally)) }
    }

    /// A request was answered, after this long.
    pub(super) fn answered(&self, took: Duration) {
        let micros = u64::try_from(took.min(LONG).as_micros()).unwrap_or_default();
        self.served.fetch_add(micros, Ordering::Relaxed);
    }

    /// To be called on the same thread each time that it was woken.
    pub(super) fn woken(&self) {
        let served = || Duration::from_micros(self.served.swap(0, Ordering::Relaxed));
        self.follow(|tally| tally.woken(|| (Instant::now(), served())));
    }

    /// To be called on the same thread now and then.
    pub(super) fn rested(&self) {
        self.follow(|tally| tally.rested(Instant::now()));
    }

    fn follow(&self, judge: impl FnOnce(&mut Tally) -> Option<Policy>) {
        // One thread calls this, so nobody else ever has it.
        let Ok(mut tally) = self.tally.try_lock() else { return };
        let Some(fits) = tally.as_mut().and_then(judge) else { return };
        if let Err(error) = set(fits) {
            // A filter of system calls may forbid it.
            tracing::debug!(%error, "change the scheduling policy of a worker");
            *tally = None;
        }
    }
}

/// For a thread that a worker starts for work that blocks: it would inherit the policy of the moment. Nothing is done
/// where `was_ordinary` is not what the worker began with.
pub(super) fn begin_ordinary(was_ordinary: bool) {
    if was_ordinary
        && !is_ordinary()
        && let Err(error) = set(Policy::Ordinary)
    {
        tracing::debug!(%error, "give a thread the ordinary scheduling policy");
    }
}

/// Whether the calling thread is scheduled as usual.
pub(super) fn is_ordinary() -> bool {
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

    const MS: Duration = Duration::from_millis(1);

    /// What fits after one stride of wake-ups that took so many milliseconds, with requests that took so many, summed.
    fn after(tally: &mut Tally, took: u32, served: u32) -> Option<Policy> {
        let end = tally.since + MS * took;
        let early = (1..STRIDE).find_map(|_| tally.woken(|| panic!("the clock is read once a stride")));
        assert_eq!(early, None);
        tally.woken(|| (end, MS * served))
    }

    #[test]
    fn a_crowd_makes_a_batch_thread_and_little_to_do_an_ordinary_one() {
        let mut tally = Tally::new(Instant::now());
        assert_eq!(after(&mut tally, 101, 5000), None, "not often enough");
        assert_eq!(after(&mut tally, 10, 19), None, "fewer than two requests at a time");
        assert_eq!(after(&mut tally, 99, 198), Some(Policy::Batch));
        assert_eq!(after(&mut tally, 1, 50), None, "it is one already");
        assert_eq!(after(&mut tally, 399, 399), None, "its wake-ups are fewer for the same work");
        assert_eq!(after(&mut tally, 401, 5000), Some(Policy::Ordinary));
        assert_eq!(after(&mut tally, 99, 198), Some(Policy::Batch));
        assert_eq!(after(&mut tally, 10, 9), Some(Policy::Ordinary), "often, but not with a request at a time");
        assert_eq!(after(&mut tally, 401, 5000), None);
    }

    #[test]
    fn a_batch_thread_that_is_not_woken_any_more_is_an_ordinary_one_soon() {
        let mut tally = Tally::new(Instant::now());
        assert_eq!(after(&mut tally, 10, 100), Some(Policy::Batch));
        assert_eq!(tally.woken(|| panic!("not at the first of a stride")), None);
        assert_eq!(tally.rested(tally.since + LITTLE), None);
        assert_eq!(tally.rested(tally.since + LITTLE + MS), Some(Policy::Ordinary));
        assert_eq!(tally.rested(tally.since + LITTLE + MS), None, "said once");
    }

    #[test]
    fn who_takes_long_counts_little() {
        let pace = Pace::of_this_thread();
        (0..10).for_each(|_| pace.answered(Duration::from_secs(30)));
        pace.answered(MS);
        assert_eq!(Duration::from_micros(pace.served.load(Ordering::Relaxed)), LONG * 10 + MS);
    }

    #[test]
    fn the_policy_of_the_thread_is_changed_and_another_is_left_alone() {
        let thread = std::thread::spawn(|| {
            assert!(is_ordinary());
            let pace = Pace::of_this_thread();
            // On a busy machine a stride may take its time.
            let became = (0..100).any(|_| {
                (0..10).for_each(|_| pace.answered(LONG));
                (0..STRIDE).for_each(|_| pace.woken());
                !is_ordinary()
            });
            assert!(became, "so many wake-ups at once");
            let heir = std::thread::spawn(|| {
                assert!(!is_ordinary(), "threads inherit the policy");
                begin_ordinary(false);
                assert!(!is_ordinary(), "where it was somebody's wish it stays");
                begin_ordinary(true);
                is_ordinary()
            });
            assert!(heir.join().expect("the thread for work that blocks"));
            (0..STRIDE).for_each(|_| pace.woken());
            assert!(is_ordinary(), "nobody is served");
            set(Policy::Batch).expect("a thread may always become a batch thread");
            let pace = Pace::of_this_thread();
            (0..STRIDE * 3).for_each(|_| pace.woken());
            pace.rested();
            assert!(!is_ordinary(), "nobody asked for this policy here");
        });
        thread.join().expect("the thread");
    }
}
