//! An instance's output: appended to a file by the process itself, rotated by us, redacted before anybody reads it.
//!
//! A file and never a pipe: with a pipe the death of pocketfleet would kill every instance at its next line
//! (SIGPIPE). Rotation copies and truncates, which is safe because the process appends.

use std::fs::File;
use std::io;
use std::io::Read;
use std::io::Seek;
use std::io::SeekFrom;
use std::path::Path;
use std::path::PathBuf;

/// Most bytes that are read from the end of a log file to show its last lines.
const TAIL_BYTES: u64 = 64 * 1024;

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
    for n in (1..keep).rev() {
        match std::fs::rename(old(n), old(n + 1)) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    let file = File::options().read(true).write(true).open(&current)?;
    if keep > 0 {
        // A flood between two looks is not copied whole: its end is what anybody wants.
        let text = read_end(&file, limit.saturating_mul(2))?;
        std::fs::write(old(1), redact(&text))?;
    }
    file.set_len(0)
}

/// The last lines, redacted and free of control characters. Empty when there is no log.
pub fn tail(instance: &Path, lines: usize) -> Vec<String> {
    let Ok(file) = File::open(path(instance)) else { return Vec::new() };
    let Ok(text) = read_end(&file, TAIL_BYTES) else { return Vec::new() };
    let text = redact(&text);
    let all: Vec<&str> = text.lines().map(str::trim_end).filter(|line| !line.is_empty()).collect();
    all[all.len().saturating_sub(lines)..].iter().map(|line| printable(line)).collect()
}

fn read_end(mut file: &File, bytes: u64) -> io::Result<String> {
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(bytes)))?;
    let mut buffer = Vec::new();
    file.take(bytes).read_to_end(&mut buffer)?;
    Ok(String::from_utf8_lossy(&buffer).into_owned())
}

fn printable(line: &str) -> String {
    line.chars().filter(|c| !c.is_control()).take(2_000).collect()
}

/// Replaces everything that looks like a JSON Web Token. `PocketBase` prints a superuser link with one when it
/// finds no superuser, and hooks print what they like.
pub fn redact(text: &str) -> String {
    let is_token = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find("eyJ") {
        out.push_str(&rest[..start]);
        let candidate = &rest[start..];
        let end = candidate.find(|c| !is_token(c)).unwrap_or(candidate.len());
        if candidate[..end].contains('.') || end > 40 {
            out.push_str("[redacted]");
        } else {
            out.push_str(&candidate[..end]);
        }
        rest = &candidate[end..];
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn tokens_are_redacted_and_words_are_not() {
        let token = "eyJhbGciOiJIUzI1NiJ9.eyJpZCI6IjEifQ.c2lnbmF0dXJl";
        assert_eq!(redact(&format!("open /_/#/pbinstal/{token} now")), "open /_/#/pbinstal/[redacted] now");
        assert_eq!(redact("eyJ is how they begin"), "eyJ is how they begin");
        assert_eq!(redact(&format!("{token}\n{token}")), "[redacted]\n[redacted]");
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
        assert_eq!(tail(dir.path(), 2), ["[31mline 9998[0m", "[31mline 9999[0m"]);
    }
}
