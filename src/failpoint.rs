//! Named steps at which a test build kills itself, as `kill -9` would: how crash tests reach every point of a job.
//!
//! Exists in builds with the feature `testing` only; elsewhere [`hit`] is empty. `main` arms it from the environment
//! (`PF_FAILPOINT=step` or `step:nth`).

/// Arms one step: the process ends the `nth` time (from 1) that it is reached.
#[cfg(feature = "testing")]
pub fn arm(step: &str, nth: u32) {
    armed::arm(step, nth);
}

/// Ends the process, without any goodbye, if this step is armed.
#[inline]
pub fn hit(step: &str) {
    #[cfg(feature = "testing")]
    armed::hit(step);
    #[cfg(not(feature = "testing"))]
    let _ = step;
}

#[cfg(feature = "testing")]
mod armed {
    use std::sync::OnceLock;
    use std::sync::atomic::AtomicU32;
    use std::sync::atomic::Ordering;

    static ARMED: OnceLock<(String, AtomicU32)> = OnceLock::new();

    pub(super) fn arm(step: &str, nth: u32) {
        // A second one is not a use of ours.
        drop(ARMED.set((step.to_owned(), AtomicU32::new(nth.max(1)))));
    }

    pub(super) fn hit(step: &str) {
        let Some((armed, left)) = ARMED.get() else { return };
        if armed == step && left.fetch_sub(1, Ordering::SeqCst) == 1 {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::this(), nix::sys::signal::Signal::SIGKILL);
        }
    }
}
