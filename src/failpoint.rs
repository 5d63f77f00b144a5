//! Named steps at which a test build kills itself, as `kill -9` would: how crash tests reach every point of a job.
//!
//! And named choices, one of which a test can make in place of chance ([`chosen`]).
//!
//! Exists in builds with the feature `testing` only; elsewhere [`hit`] and [`chosen`] are empty. `main` arms them from the
//! environment (`PF_FAILPOINT=step` or `step:nth`, `PF_STAND_IN=choice=value` or `choice:nth=value`).

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

/// Decides one choice: the `nth` time (from 1) that it is to be made, it is `value`.
#[cfg(feature = "testing")]
pub fn choose(choice: &str, nth: u32, value: &str) {
    armed::choose(choice, nth, value);
}

/// What a test decided in place of chance, if it did so for this time.
#[inline]
pub fn chosen(choice: &str) -> Option<&'static str> {
    #[cfg(feature = "testing")]
    return armed::chosen(choice);
    #[cfg(not(feature = "testing"))]
    {
        let _ = choice;
        None
    }
}

#[cfg(feature = "testing")]
mod armed {
    use std::sync::OnceLock;
    use std::sync::atomic::AtomicU32;
    use std::sync::atomic::Ordering;

    static ARMED: OnceLock<(String, AtomicU32)> = OnceLock::new();
    static CHOSEN: OnceLock<(String, AtomicU32, String)> = OnceLock::new();

    pub(super) fn choose(choice: &str, nth: u32, value: &str) {
        // A second one is not a use of ours.
        drop(CHOSEN.set((choice.to_owned(), AtomicU32::new(nth.max(1)), value.to_owned())));
    }

    pub(super) fn chosen(choice: &str) -> Option<&'static str> {
        let (name, left, value) = CHOSEN.get()?;
        (name == choice && left.fetch_sub(1, Ordering::SeqCst) == 1).then_some(value.as_str())
    }

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
