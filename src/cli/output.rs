//! What the command line prints: text for people or JSON for programs, through one place that survives a closed
//! pipe and lets no control character of a tenant's log reach the terminal.

use std::io;
use std::io::ErrorKind;
use std::io::Write;
use std::process::ExitCode;

use serde_json::Value;
use serde_json::json;

/// Who reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// A person.
    Human,
    /// A program.
    Json,
}

/// Standard output and standard error in one form.
#[derive(Debug, Clone, Copy)]
pub struct Output {
    form: Form,
}

impl Output {
    /// Prints in this form.
    pub fn new(form: Form) -> Self {
        Self { form }
    }

    /// Prints the result in the form asked for; success unless the terminal fails.
    pub fn done(self, value: &Value, text: &str) -> anyhow::Result<ExitCode> {
        match self.form {
            Form::Human => line(&mut io::stdout().lock(), text)?,
            Form::Json => line(&mut io::stdout().lock(), &value.to_string())?,
        }
        Ok(ExitCode::SUCCESS)
    }

    /// Prints an error with its causes and says "failed".
    pub fn failure(self, error: &anyhow::Error) -> ExitCode {
        let text = match self.form {
            Form::Human => format!("error: {error:#}"),
            Form::Json => json!({ "error": { "message": format!("{error:#}") } }).to_string(),
        };
        // Nobody is left to tell when standard error is closed.
        drop(line(&mut io::stderr().lock(), &text));
        ExitCode::FAILURE
    }
}

/// Writes text and a line end. A reader that has gone (`| head`) has seen enough.
fn line(to: &mut impl Write, text: &str) -> io::Result<()> {
    match writeln!(to, "{}", printable(text)) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        result => result,
    }
}

/// The text without control characters other than line ends and tabs: a log line must not steer the terminal.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\n' && c != '\t' { '\u{fffd}' } else { c }).collect()
}

/// Aligned columns under their titles; the last column is not padded.
pub fn table<const N: usize>(titles: [&str; N], rows: &[[String; N]]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.chain([titles[column].chars().count()]).max().unwrap_or_default()
    };
    let widths: Vec<usize> = (0..N).map(width).collect();
    let write = |cells: [&str; N]| {
        let padded = cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        padded.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    let mut lines = vec![write(titles)];
    lines.extend(rows.iter().map(|row| write(row.each_ref().map(String::as_str))));
    lines.join("\n")
}

/// A span of seconds for people: `42s`, `7m`, `3h 5m`, `12d`.
pub fn age(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m", seconds / 60),
        3600..86_400 if seconds % 3600 < 60 => format!("{}h", seconds / 3600),
        3600..86_400 => format!("{}h {}m", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// Bytes for people: `512 B`, `1.5 GiB`.
pub fn bytes(count: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let step = (0..units.len() - 1).take_while(|step| count >> (10 * (step + 1)) > 0).count();
    if step == 0 {
        return format!("{count} B");
    }
    let tenths = (u128::from(count) * 10) >> (10 * step);
    format!("{}.{} {}", tenths / 10, tenths % 10, units[step])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_lines_not_padded() {
        let rows = [["a".to_owned(), String::new()], ["longer".to_owned(), "x".to_owned()]];
        assert_eq!(table(["id", "state"], &rows), "id      state\na\nlonger  x");
    }

    #[test]
    fn spans_and_sizes_read_well() {
        assert_eq!([0, 59, 60, 3600, 3660, 90_000].map(age), ["0s", "59s", "1m", "1h", "1h 1m", "1d"]);
        assert_eq!([0, 1023, 1024, 1_610_612_736].map(bytes), ["0 B", "1023 B", "1.0 KiB", "1.5 GiB"]);
    }

    #[test]
    fn control_characters_do_not_reach_the_terminal() {
        let mut written = Vec::new();
        line(&mut written, "a\u{1b}[2Jb\tc\nd").unwrap();
        assert_eq!(String::from_utf8(written).unwrap(), "a\u{fffd}[2Jb\tc\nd\n");
    }
}
