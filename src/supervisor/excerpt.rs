//! What a process said, made fit for an error message: short, without colours and without secrets.
//!
//! `PocketBase` prints a link with a superuser's token when it finds no superuser, and a template may print anything.

use std::fs;
use std::path::Path;

/// Most bytes kept of the beginning and of the end each: a panic says what happened at the beginning of its stack
/// trace, everything else at the end.
const HALF: usize = 1024;

/// Longest run of letters and digits that is taken for a word. Token keys and secrets have 50.
const LONGEST_WORD: usize = 29;

/// The redacted beginning and end of the file at `path`; empty if there is none.
pub(super) fn excerpt(path: &Path) -> String {
    let bytes = fs::read(path).unwrap_or_default();
    shorten(redact(&plain(&String::from_utf8_lossy(&bytes))).trim())
}

fn shorten(text: &str) -> String {
    if text.len() <= 2 * HALF {
        return text.to_owned();
    }
    let boundary = |index: &usize| text.is_char_boundary(*index);
    let head = (0..=HALF).rev().find(boundary).unwrap_or(0);
    let tail = (text.len() - HALF..=text.len()).find(boundary).unwrap_or(text.len());
    format!("{}\n[...]\n{}", &text[..head], &text[tail..])
}

/// Without terminal colours and other control characters.
pub(super) fn plain(text: &str) -> String {
    let mut result = String::with_capacity(text.len());
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        match character {
            // `ESC [ parameters letter`
            '\u{1b}' => drop(characters.by_ref().find(char::is_ascii_alphabetic)),
            '\n' | '\t' => result.push(character),
            other if other.is_control() => {}
            other => result.push(other),
        }
    }
    result
}

/// Without JSON web tokens and without runs of letters and digits as long as a secret.
pub(super) fn redact(text: &str) -> String {
    let mut result = String::with_capacity(text.len());
    let mut rest = text;
    while !rest.is_empty() {
        let token_end = rest.find(|c: char| !(c.is_ascii_alphanumeric() || "-_.".contains(c))).unwrap_or(rest.len());
        let (run, after) = rest.split_at(token_end);
        if run.starts_with("eyJ") && run.len() > LONGEST_WORD {
            result.push_str("[redacted]");
        } else {
            for word in run.split_inclusive(['-', '_', '.']) {
                result.push_str(if word.len() > LONGEST_WORD { "[redacted]" } else { word });
            }
        }
        let next = after.chars().next().map_or(0, char::len_utf8);
        result.push_str(&after[..next]);
        rest = &after[next..];
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_and_secrets_are_redacted_and_words_are_not() {
        let secret = "V29V2wI3m0U4Gceq7bVTiSVsB7Un8k6AvxrIxEHFbmHZmOuuRi";
        let text =
            format!("see http://h/_/#/pbinstall/eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJj.HT8-d_U and \"{secret}\"");
        assert_eq!(redact(&text), "see http://h/_/#/pbinstall/[redacted] and \"[redacted]\"");
        let usual = "failed to apply migration 1800000002_a_rather_long_name_of_a_file.js: Error: größer als";
        assert_eq!(redact(usual), usual);
    }

    #[test]
    fn colours_go_and_long_output_keeps_both_ends() {
        assert_eq!(plain("\u{1b}[31mred\u{1b}[0m\r\nline"), "red\nline");
        let text = format!("start{}end", "ä ".repeat(4000));
        let short = shorten(&text);
        assert!(short.starts_with("start") && short.ends_with("end") && short.len() < 2 * HALF + 20);
    }
}
