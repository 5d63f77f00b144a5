//! Names of bundles and files: readable, the same at every attempt, and safe on any file system and in any URL path.
//!
//! Two recordings of one day may have one title, so the name of a bundle ends with the recording's id.

use time::OffsetDateTime;

/// Longest title in a name, in bytes of UTF-8: file systems allow 255 for one name.
const MAX_TITLE_BYTES: usize = 120;

/// The folder of a recording's files: `2025-03-01_Quarterly review_123456789`.
pub fn bundle(created_at: Option<OffsetDateTime>, title: &str, recording_id: u64) -> String {
    let title = title_part(title);
    match created_at {
        Some(at) => {
            let date = at.date();
            format!("{:04}-{:02}-{:02}_{title}_{recording_id}", date.year(), u8::from(date.month()), date.day())
        }
        None => format!("undated_{title}_{recording_id}"),
    }
}

/// A title as a part of a file name.
pub fn title_part(title: &str) -> String {
    let mut text = String::new();
    for character in title.chars() {
        let character = match character {
            '/' | '\\' | ':' | '*' | '?' | '"' | '<' | '>' | '|' | '#' | '%' => '-',
            c if c.is_control() || is_invisible(c) || c.is_whitespace() => ' ',
            c => c,
        };
        if !(character == ' ' && (text.is_empty() || text.ends_with(' '))) {
            text.push(character);
        }
    }
    let mut end = text.len().min(MAX_TITLE_BYTES);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
    let text = text.trim_matches(['.', ' ', '-']);
    if text.is_empty() { "Meeting".to_owned() } else { text.to_owned() }
}

/// Whether a text is one name of a folder below another: no way out of it, nothing hidden, nothing odd.
pub fn is_plain(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 200
        && !name.starts_with('.')
        && name.chars().all(|c| !c.is_control() && !is_invisible(c) && !matches!(c, '/' | '\\' | ':'))
        && name.trim() == name
}

/// Characters that change how a name reads without being seen: marks of direction and joints.
fn is_invisible(c: char) -> bool {
    matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    #[test]
    fn a_bundle_has_date_title_and_id() {
        let at = Some(datetime!(2025-03-01 17:01:30 UTC));
        assert_eq!(bundle(at, "Quarterly Business Review", 7), "2025-03-01_Quarterly Business Review_7");
        assert_eq!(bundle(None, "", 7), "undated_Meeting_7");
    }

    #[test]
    fn titles_that_could_leave_their_folder_do_not() {
        for (title, name) in [
            ("../../etc/passwd", "etc-passwd"),
            ("..", "Meeting"),
            ("a/b\\c", "a-b-c"),
            ("  1:1\twith\n\n Bob? ", "1-1 with Bob"),
            ("nul\0byte", "nul byte"),
            ("evil\u{202e}gpj.exe", "evil gpj.exe"),
            ("Ünïcode 会议", "Ünïcode 会议"),
            ("100% #1", "100- -1"),
        ] {
            assert_eq!(title_part(title), name, "{title:?}");
        }
    }

    #[test]
    fn long_titles_end_at_a_character() {
        let name = title_part(&"é".repeat(500));
        assert_eq!((name.len(), name.chars().all(|c| c == 'é')), (MAX_TITLE_BYTES, true));
    }

    #[test]
    fn only_plain_names_are_plain() {
        assert!(is_plain("Team 7"));
        for bad in ["", ".", "..", ".hidden", "a/b", "a\\b", "a:b", " a", "a\0", "a\u{202e}b"] {
            assert!(!is_plain(bad), "{bad:?}");
        }
    }
}
