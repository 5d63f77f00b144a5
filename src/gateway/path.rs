//! The raw path rule: what a path may look like before anybody decides on it.
//!
//! Go's mux decodes and cleans paths, so two spellings of one path can mean different things to us and to the
//! instance. Everything that could be read in two ways is refused; what remains is decoded once for routing, while
//! the raw bytes are what is forwarded.

use std::borrow::Cow;

/// Why a path is refused. The caller only learns that it is malformed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Malformed {
    /// Not starting with `/`: authority form, `*`, or empty.
    #[error("the path does not start with a slash")]
    NotRooted,
    /// A control byte, a backslash or a byte beyond ASCII, plain or encoded.
    #[error("the path has a character that is not allowed")]
    Character,
    /// `%` without two hexadecimal digits after it.
    #[error("the path has an incomplete percent escape")]
    Escape,
    /// An encoded slash, which splits segments for some readers and not for others.
    #[error("the path has an encoded slash")]
    EncodedSlash,
    /// `.` or `..` as a segment, plain or encoded.
    #[error("the path has a dot segment")]
    DotSegment,
    /// `//`.
    #[error("the path has an empty segment")]
    EmptySegment,
    /// Escapes that are not UTF-8.
    #[error("the path is not UTF-8")]
    NotUtf8,
}

/// Checks a raw path and decodes it once. Borrows when there is nothing to decode.
pub(crate) fn decode(raw: &str) -> Result<Cow<'_, str>, Malformed> {
    let bytes = raw.as_bytes();
    if bytes.first() != Some(&b'/') {
        return Err(Malformed::NotRooted);
    }
    let mut escaped = false;
    for &byte in bytes {
        match byte {
            b'%' => escaped = true,
            b'\\' | ..=0x20 | 0x7f.. => return Err(Malformed::Character),
            _ => {}
        }
    }
    let decoded = if escaped { Cow::Owned(unescape(bytes)?) } else { Cow::Borrowed(raw) };
    check_segments(&decoded)?;
    Ok(decoded)
}

fn unescape(bytes: &[u8]) -> Result<String, Malformed> {
    let mut out = Vec::with_capacity(bytes.len());
    let mut rest = bytes.iter();
    while let Some(&byte) = rest.next() {
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        let (Some(high), Some(low)) = (rest.next().copied().and_then(hex), rest.next().copied().and_then(hex)) else {
            return Err(Malformed::Escape);
        };
        match high << 4 | low {
            b'/' => return Err(Malformed::EncodedSlash),
            b'\\' | ..=0x1f | 0x7f => return Err(Malformed::Character),
            decoded => out.push(decoded),
        }
    }
    String::from_utf8(out).map_err(|_| Malformed::NotUtf8)
}

fn hex(byte: u8) -> Option<u8> {
    match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        b'A'..=b'F' => Some(byte - b'A' + 10),
        _ => None,
    }
}

/// No dot segments, and no empty segment but the last (a trailing slash is another path, not a malformed one).
fn check_segments(decoded: &str) -> Result<(), Malformed> {
    let mut segments = decoded.split('/').skip(1).peekable();
    while let Some(segment) = segments.next() {
        match segment {
            "." | ".." => return Err(Malformed::DotSegment),
            "" if segments.peek().is_some() => return Err(Malformed::EmptySegment),
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ordinary_paths_are_borrowed_and_escapes_decoded_once() {
        for path in ["/", "/api/collections/notes/records/abc", "/a.b/..c/d..", "/x/", "/a;b/c", "/...", "/~a@b"] {
            assert!(matches!(decode(path), Ok(Cow::Borrowed(same)) if same == path), "{path}");
        }
        assert_eq!(decode("/api/%73ql").unwrap(), "/api/sql");
        assert_eq!(decode("/%252e%252e/x").unwrap(), "/%2e%2e/x");
        assert_eq!(decode("/caf%C3%A9").unwrap(), "/café");
        assert_eq!(decode("/a%20b").unwrap(), "/a b");
    }

    #[test]
    fn everything_readable_in_two_ways_is_refused() {
        for (path, why) in [
            ("", Malformed::NotRooted),
            ("*", Malformed::NotRooted),
            ("a/b", Malformed::NotRooted),
            ("/..", Malformed::DotSegment),
            ("/a/../b", Malformed::DotSegment),
            ("/./a", Malformed::DotSegment),
            ("/%2e%2e/a", Malformed::DotSegment),
            ("/a/.%2E", Malformed::DotSegment),
            ("/a/%2e", Malformed::DotSegment),
            ("//", Malformed::EmptySegment),
            ("//api", Malformed::EmptySegment),
            ("/api//sql", Malformed::EmptySegment),
            ("/a%2fb", Malformed::EncodedSlash),
            ("/a%2Fb", Malformed::EncodedSlash),
            ("/..%2f", Malformed::EncodedSlash),
            ("/a\\b", Malformed::Character),
            ("/a%5cb", Malformed::Character),
            ("/a%5Cb", Malformed::Character),
            ("/%00", Malformed::Character),
            ("/a%0ab", Malformed::Character),
            ("/a%7f", Malformed::Character),
            ("/a b", Malformed::Character),
            ("/a\tb", Malformed::Character),
            ("/é", Malformed::Character),
            ("/%zz", Malformed::Escape),
            ("/%", Malformed::Escape),
            ("/%4", Malformed::Escape),
            ("/%+1", Malformed::Escape),
            ("/%c0%ae", Malformed::NotUtf8),
            ("/%ff", Malformed::NotUtf8),
        ] {
            assert_eq!(decode(path), Err(why), "{path:?}");
        }
    }

    proptest! {
        #[test]
        fn accepted_paths_have_no_second_reading(raw in "/[-a-z./%0-9A-F\\\\]{0,40}") {
            if let Ok(decoded) = decode(&raw) {
                prop_assert!(decoded.starts_with('/'));
                prop_assert_eq!(decoded.matches('/').count(), raw.matches('/').count());
                prop_assert!(!decoded.contains("//") && !decoded.contains('\\'));
                prop_assert!(decoded.split('/').all(|segment| segment != "." && segment != ".."));
                prop_assert!(!decoded.bytes().any(|byte| byte < 0x20 || byte == 0x7f));
            }
        }

        #[test]
        fn any_text_is_judged_without_panic(raw in "\\PC{0,60}") {
            let _ = decode(&raw);
        }

        #[test]
        fn encoding_a_segment_changes_nothing(segment in "[a-zA-Z0-9_]{1,20}") {
            use std::fmt::Write as _;
            let encoded = segment.bytes().fold(String::from("/"), |mut text, byte| {
                let _ = write!(text, "%{byte:02x}");
                text
            });
            prop_assert_eq!(decode(&encoded).unwrap(), format!("/{segment}"));
        }
    }
}
