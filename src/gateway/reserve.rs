//! Descriptors held back for the time when the process has no others: with one of them a connection is still accepted,
//! so that `/health` and operators are answered.
//!
//! Between the closing of a spare one and the accept somebody else can take its place. Then one is missing until
//! something is closed and it can be taken back; the caller tries again.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;

/// Whether an error says that this process, or the machine, has no descriptor left.
pub fn is_out_of_files(error: &io::Error) -> bool {
    let number = error.raw_os_error().map(rustix::io::Errno::from_raw_os_error);
    matches!(number, Some(rustix::io::Errno::MFILE | rustix::io::Errno::NFILE))
}

/// Spare descriptors. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Reserve {
    state: Arc<Mutex<State>>,
    most: usize,
}

#[derive(Debug, Default)]
struct State {
    spare: Vec<File>,
    lent: usize,
}

/// One descriptor that was given up for something else; taken back when dropped, after that was closed.
#[derive(Debug)]
pub struct Lent(Reserve);

impl Reserve {
    /// Holds back `most` descriptors, or as many as there are.
    pub fn new(most: usize) -> Self {
        let reserve = Self { state: Arc::default(), most };
        reserve.refill();
        reserve
    }

    /// Closes a spare descriptor, so that there is room for one more; none when all are in use.
    pub fn lend(&self) -> Option<Lent> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        drop(state.spare.pop()?);
        state.lent += 1;
        Some(Lent(self.clone()))
    }

    /// Takes back what is missing, as far as there are descriptors.
    pub fn refill(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        while state.spare.len() + state.lent < self.most {
            let Ok(file) = File::open("/dev/null") else { return };
            state.spare.push(file);
        }
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner).lent -= 1;
        self.0.refill();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_lent_is_bounded_and_comes_back() {
        let reserve = Reserve::new(2);
        let (first, second) = (reserve.lend().unwrap(), reserve.lend().unwrap());
        assert!(reserve.lend().is_none());
        reserve.refill();
        assert!(reserve.lend().is_none(), "what is lent is not held twice");
        drop(first);
        let third = reserve.lend().unwrap();
        drop((second, third));
        assert_eq!(reserve.state.lock().unwrap().spare.len(), 2);
    }

    #[test]
    fn other_errors_are_not_for_the_reserve() {
        let of = |number: rustix::io::Errno| io::Error::from_raw_os_error(number.raw_os_error());
        assert!(is_out_of_files(&of(rustix::io::Errno::MFILE)) && is_out_of_files(&of(rustix::io::Errno::NFILE)));
        assert!(!is_out_of_files(&of(rustix::io::Errno::NOBUFS)) && !is_out_of_files(&io::Error::other("x")));
    }
}
