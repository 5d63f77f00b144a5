//! An instance's output: appended to a file by the process itself, rotated by us, redacted before anybody reads it.
//!
//! A file and never a pipe: with a pipe the death of pocketfleet would kill every instance at its next line
//! (SIGPIPE). Rotation copies and truncates, which is safe because the process appends.

use std::fs::File;
use std::io;
use std::io::Read;
use std::io::Seek;
use std::io::SeekFrom;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::path::PathBuf;

use crate::supervisor::excerpt::plain;
use crate::supervisor::excerpt::redact;

/// Most bytes that are read from the end of a log file to show its last lines.
const TAIL_BYTES: u64 = 64 * 1024;
/// Most bytes that a rotation copies.
const LARGEST_COPY: u64 = 8 * 1024 * 1024;

/// The log file of an instance's folder.
pub fn path(instance: &Path) -> PathBuf {
    instance.join("log").join("pocketbase.log")
}

/// Opens the log for a process to append to, making its folder when needed.
pub fn open(instance: &Path) -> io::Result<File> {
    let path = path(instance);
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    File::options().create(true).append(true).open(path)
}

/// A handle of the log that is there, for [`recover`]; none when there is none.
pub fn handle(instance: &Path) -> Option<File> {
    File::options().read(true).write(true).open(path(instance)).ok()
}

/// Brings what was written into a log that somebody deleted into a new one: the process goes on writing where nobody looks,
/// and the disk would fill with it. One that was only moved is somebody else's affair.
pub fn recover(instance: &Path, written: &File, limit: u64) -> io::Result<()> {
    let metadata = written.metadata()?;
    if metadata.nlink() > 0 || metadata.len() == 0 {
        return Ok(());
    }
    let text = read_end(written, limit.saturating_mul(2).min(LARGEST_COPY), 0);
    let kept = text.and_then(|text| open(instance)?.write_all(text.as_bytes()));
    // Also when keeping it failed, as in a rotation.
    written.set_len(0)?;
    kept
}

/// Rotates the log when it has reached `limit` bytes, keeping `keep` old ones. What is kept is redacted.
pub fn rotate(instance: &Path, limit: u64, keep: u32) -> io::Result<()> {
    let current = path(instance);
    match std::fs::metadata(&current) {
        Ok(metadata) if metadata.len() >= limit => {}
        Ok(_) => return Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    }
    let old = |n: u32| current.with_extension(format!("log.{n}"));
    let file = File::options().read(true).write(true).open(&current)?;
    let kept = if keep > 0 { keep_end(&file, limit, keep, &old) } else { Ok(()) };
    // Also when keeping it failed: on a full disk a log that only grows is what must not happen.
    file.set_len(0)?;
    kept
}

/// Writes the end of the log beside the old ones, and only when that worked moves them on by one. A flood between two
/// looks is not copied whole: its end is what anybody wants.
fn keep_end(file: &File, limit: u64, keep: u32, old: &dyn Fn(u32) -> PathBuf) -> io::Result<()> {
    let text = read_end(file, limit.saturating_mul(2).min(LARGEST_COPY), 0)?;
    let fresh = old(0);
    std::fs::write(&fresh, redact(&text))?;
    for n in (1..keep).rev() {
        match std::fs::rename(old(n), old(n + 1)) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    std::fs::rename(fresh, old(1))
}

/// Bytes in the log now: what a process that starts next adds comes after them.
pub fn length(instance: &Path) -> u64 {
    std::fs::metadata(path(instance)).map_or(0, |metadata| metadata.len())
}

/// The last lines, redacted and free of control characters. Empty when there is no log.
pub fn tail(instance: &Path, lines: usize) -> Vec<String> {
    tail_since(instance, 0, lines)
}

/// The same of what was written after the first `offset` bytes. A log that is shorter was rotated meanwhile.
pub fn tail_since(instance: &Path, offset: u64, lines: usize) -> Vec<String> {
    let Ok(file) = File::open(path(instance)) else { return Vec::new() };
    let offset = if length(instance) < offset { 0 } else { offset };
    let Ok(text) = read_end(&file, TAIL_BYTES, offset) else { return Vec::new() };
    let text = redact(&plain(&text));
    let all: Vec<&str> = text.lines().map(str::trim_end).filter(|line| !line.is_empty()).collect();
    all[all.len().saturating_sub(lines)..].iter().map(|line| line.chars().take(2_000).collect()).collect()
}

/// At most the last `bytes` bytes, none of them before `from`.
fn read_end(mut file: &File, bytes: u64, from: u64) -> io::Result<String> {
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(bytes).max(from)))?;
    let mut buffer = Vec::new();
    file.take(bytes).read_to_end(&mut buffer)?;
    Ok(String::from_utf8_lossy(&buffer).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_into_a_deleted_log_comes_back_and_does_not_grow() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = open(dir.path()).unwrap();
        let kept = handle(dir.path()).unwrap();
        let recover = || recover(dir.path(), &kept, 100).unwrap();
        writeln!(log, "first").unwrap();
        recover();
        assert_eq!(tail(dir.path(), 10), ["first"], "nothing to do");
        std::fs::rename(path(dir.path()), dir.path().join("moved")).unwrap();
        writeln!(log, "elsewhere").unwrap();
        recover();
        assert_eq!(std::fs::read_to_string(dir.path().join("moved")).unwrap(), "first\nelsewhere\n");
        std::fs::remove_file(dir.path().join("moved")).unwrap();
        for word in ["second", "third"] {
            writeln!(log, "{word}").unwrap();
            recover();
            assert_eq!(kept.metadata().unwrap().len(), 0);
        }
        assert_eq!(tail(dir.path(), 10), ["first", "elsewhere", "second", "third"]);
        writeln!(log, "{}", "x".repeat(10_000)).unwrap();
        recover();
        assert!(length(dir.path()) < 300, "the end of a flood is enough");
    }

    #[test]
    fn rotation_keeps_what_was_promised_and_the_writer_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = open(dir.path()).unwrap();
        for round in 0..5 {
            writeln!(log, "round {round} {}", "x".repeat(100)).unwrap();
            rotate(dir.path(), 100, 2).unwrap();
        }
        writeln!(log, "after").unwrap();
        assert_eq!(tail(dir.path(), 10), ["after"]);
        let mut names: Vec<_> =
            std::fs::read_dir(dir.path().join("log")).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["pocketbase.log", "pocketbase.log.1", "pocketbase.log.2"]);
        assert!(std::fs::read_to_string(dir.path().join("log/pocketbase.log.1")).unwrap().starts_with("round 4"));
    }

    #[test]
    fn tail_strips_escapes_and_is_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = open(dir.path()).unwrap();
        for n in 0..10_000 {
            writeln!(log, "\u{1b}[31mline {n}\u{1b}[0m").unwrap();
        }
        assert_eq!(tail(dir.path(), 2), ["line 9998", "line 9999"]);
    }
}
