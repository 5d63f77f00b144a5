//! Cutting files into chunks, so that what did not change is stored once.
//!
//! A database is cut at pages that its content chooses: a row more moves the pages behind it, and the cuts move with
//! them. Other files are written once and cut at fixed places. Both read a file from its beginning to its end, in memory
//! one chunk at a time.

use std::io;
use std::io::Read;

/// `SQLite`'s page, as `PocketBase` uses it.
const PAGE: usize = 4_096;
/// Shortest and longest chunk of a database, and one page in how many ends one.
const SHORTEST: usize = 64 << 10;
const LONGEST: usize = 1 << 20;
const ONE_IN: u64 = 32;
/// A chunk of any other file.
const FIXED: usize = 4 << 20;

/// How a file is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cut {
    /// A database; the number is the tenant's own, so that lengths tell nobody what it holds.
    Pages(u64),
    /// Anything else.
    Fixed,
}

/// Reads the next chunk; empty at the end.
pub(super) fn next(reader: &mut impl Read, cut: Cut) -> io::Result<Vec<u8>> {
    match cut {
        Cut::Fixed => read(reader, FIXED),
        Cut::Pages(seed) => {
            let mut chunk = Vec::new();
            loop {
                let page = read(reader, PAGE)?;
                let is_last = page.len() < PAGE;
                let ends = mix(seed, &page).is_multiple_of(ONE_IN);
                chunk.extend(page);
                if is_last || chunk.len() >= LONGEST || (ends && chunk.len() >= SHORTEST) {
                    return Ok(chunk);
                }
            }
        }
    }
}

fn read(reader: &mut impl Read, most: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    reader.take(most as u64).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Not a cryptographic hash: it chooses places.
fn mix(seed: u64, bytes: &[u8]) -> u64 {
    let step = |state: u64, word: u64| (state ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
    let words = bytes.chunks_exact(8).map(|word| word.try_into().map_or(0, u64::from_le_bytes));
    let state = words.fold(seed, step);
    state ^ (state >> 31)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn cut(bytes: &[u8], how: Cut) -> Vec<Vec<u8>> {
        let mut reader = bytes;
        std::iter::from_fn(|| Some(next(&mut reader, how).unwrap()).filter(|chunk| !chunk.is_empty())).collect()
    }

    fn pages(count: u64) -> Vec<u8> {
        let page = |n: u64| {
            (0..PAGE as u64 / 8).flat_map(move |at| (n * 7_919 + at).wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes())
        };
        (0..count).flat_map(page).collect()
    }

    #[test]
    fn pages_that_moved_are_cut_as_before() {
        let before = pages(4_000);
        let mut after = before.clone();
        after.splice(PAGE * 100..PAGE * 100, pages(3));
        let (old, new) = (cut(&before, Cut::Pages(7)), cut(&after, Cut::Pages(7)));
        let fresh = new.iter().filter(|chunk| !old.contains(chunk)).count();
        assert!(old.len() > 20 && fresh <= 3, "{fresh} of {} are new", new.len());
        assert_ne!(
            old.iter().map(Vec::len).collect::<Vec<_>>(),
            cut(&before, Cut::Pages(8)).iter().map(Vec::len).collect::<Vec<_>>(),
            "another tenant's cuts"
        );
    }

    proptest! {
        #[test]
        fn nothing_is_lost(bytes in proptest::collection::vec(any::<u8>(), 0..200_000), seed: u64) {
            for how in [Cut::Fixed, Cut::Pages(seed)] {
                let chunks = cut(&bytes, how);
                prop_assert!(chunks.iter().all(|chunk| chunk.len() <= FIXED));
                prop_assert_eq!(&chunks.concat(), &bytes);
            }
        }
    }
}
