//! What commands that take long say meanwhile on standard error, and what is asked before something is replaced.

use std::io;
use std::io::IsTerminal;
use std::io::Write;

use anyhow::bail;

/// Width of the bar.
const WIDTH: u64 = 30;

/// One line: on a terminal it is written over, elsewhere each change is a line of its own. Programs hear nothing.
#[derive(Debug)]
pub(super) struct Progress {
    is_silent: bool,
    last: String,
}

impl Progress {
    /// Silent for programs, which read the result.
    pub(super) fn new(is_json: bool) -> Self {
        Self { is_silent: is_json, last: String::new() }
    }

    /// Shows a line unless it is what stands there.
    pub(super) fn show(&mut self, line: String) {
        if self.is_silent || line == self.last {
            return;
        }
        let is_terminal = io::stderr().is_terminal();
        write(&if is_terminal { format!("\r\u{1b}[2K{line}") } else { format!("{}\n", line.trim_end()) });
        self.last = line;
    }

    /// Leaves the last line to stand.
    pub(super) fn end(&self) {
        if !self.last.is_empty() && io::stderr().is_terminal() {
            write("\n");
        }
    }
}

fn write(text: &str) {
    // A closed terminal is no reason to stop watching.
    drop(io::stderr().write_all(text.as_bytes()));
}

/// `[####....] 4/8`; nothing to do counts as done.
pub(super) fn bar(done: u64, total: u64) -> String {
    let filled = (WIDTH * done.min(total)).checked_div(total).unwrap_or(WIDTH);
    let part = |mark: &str, length: u64| mark.repeat(usize::try_from(length).unwrap_or_default());
    format!("[{}{}] {done}/{total}", part("#", filled), part(".", WIDTH - filled))
}

/// Asks a person; where there is none, `instead` says what --yes would allow. An error when the answer is not yes.
pub(super) fn confirm(question: &str, instead: &str) -> anyhow::Result<()> {
    if !io::stdin().is_terminal() {
        bail!("{instead}; add --yes to do that without being asked");
    }
    write!(io::stderr(), "{question} [y/N] ")?;
    let mut answer = String::new();
    io::stdin().read_line(&mut answer)?;
    if !matches!(answer.trim(), "y" | "Y" | "yes") {
        bail!("nothing was done");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_is_as_full_as_the_work_is_done() {
        assert_eq!(bar(0, 4), format!("[{}] 0/4", ".".repeat(30)));
        assert_eq!(bar(2, 4), format!("[{}{}] 2/4", "#".repeat(15), ".".repeat(15)));
        assert_eq!(bar(9, 4), format!("[{}] 9/4", "#".repeat(30)));
        assert_eq!(bar(0, 0), format!("[{}] 0/0", "#".repeat(30)));
    }
}
