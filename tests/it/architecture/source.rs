//! Reads Rust source as far as the rules need it: tokens, the paths they form, and which stretches are tests.
//!
//! Everything is borrowed from the source. What does not end (a comment, a text) is an error, never the end of the scan.

use std::ops::Range;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Token<'a> {
    pub(super) text: &'a str,
    pub(super) line: usize,
}

impl Token<'_> {
    pub(super) fn is_ident(&self) -> bool {
        self.text.starts_with(|c: char| c.is_alphanumeric() || c == '_')
    }
}

/// Identifiers, numbers, `::` and single marks; comments, texts, characters and lifetimes are left out.
pub(super) fn tokens(source: &str) -> Result<Vec<Token<'_>>, &'static str> {
    let mut found = Vec::new();
    let (mut at, mut line) = (0, 1);
    while let Some(c) = source[at..].chars().next() {
        let rest = &source[at..];
        let length = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            block_comment(rest).ok_or("a comment does not end")?
        } else if let Some(start) = text_start(rest) {
            text(rest, start).ok_or("a text does not end")?
        } else if c == '\'' {
            character_or_lifetime(rest)
        } else if c.is_alphanumeric() || c == '_' {
            let length = rest.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(rest.len());
            found.push(Token { text: &rest[..length], line });
            length
        } else if c.is_whitespace() {
            c.len_utf8()
        } else {
            let length = if rest.starts_with("::") { 2 } else { c.len_utf8() };
            found.push(Token { text: &rest[..length], line });
            length
        };
        line += rest[..length].matches('\n').count();
        at += length;
    }
    Ok(found)
}

fn block_comment(rest: &str) -> Option<usize> {
    let (mut at, mut depth) = (0, 0_usize);
    loop {
        let here = rest.get(at..)?;
        if here.starts_with("/*") {
            (at, depth) = (at + 2, depth + 1);
        } else if here.starts_with("*/") {
            (at, depth) = (at + 2, depth - 1);
            if depth == 0 {
                return Some(at);
            }
        } else {
            at += here.chars().next()?.len_utf8();
        }
    }
}

/// Of a text that begins here: the length up to and with the opening quote, and the number of `#` of a raw text.
fn text_start(rest: &str) -> Option<(usize, Option<usize>)> {
    let prefix = ["br", "cr", "r", "b", "c", ""].into_iter().find(|p| {
        rest.strip_prefix(p).is_some_and(|after| after.starts_with('"') || (p.ends_with('r') && after.starts_with('#')))
    })?;
    if !prefix.ends_with('r') {
        return Some((prefix.len() + 1, None));
    }
    let hashes = rest[prefix.len()..].bytes().take_while(|b| *b == b'#').count();
    let quote = prefix.len() + hashes;
    // `r#name` is an identifier, not a text.
    rest[quote..].starts_with('"').then_some((quote + 1, Some(hashes)))
}

fn text(rest: &str, (start, raw): (usize, Option<usize>)) -> Option<usize> {
    if let Some(hashes) = raw {
        let end = format!("\"{}", "#".repeat(hashes));
        return rest[start..].find(&end).map(|at| start + at + end.len());
    }
    let mut escaped = false;
    for (at, c) in rest[start..].char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return Some(start + at + 1),
            _ => {}
        }
    }
    None
}

fn character_or_lifetime(rest: &str) -> usize {
    let mut chars = rest[1..].chars();
    match (chars.next(), chars.next()) {
        (Some('\\'), Some(escaped)) => {
            let start = 2 + escaped.len_utf8();
            rest[start..].find('\'').map_or(rest.len(), |at| start + at + 1)
        }
        (Some(c), Some('\'')) => 2 + c.len_utf8(),
        _ => 1 + rest[1..].find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(rest.len() - 1),
    }
}

/// A path as the source names it, groups of a `use` taken apart.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Named<'a> {
    pub(super) segments: Vec<&'a str>,
    /// Index of its first token.
    pub(super) at: usize,
    pub(super) form: Form,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    Expression,
    Import,
    /// An alias or a glob: what it leads to bears another name from here on.
    OpenImport,
}

pub(super) fn paths<'a>(tokens: &[Token<'a>]) -> Vec<Named<'a>> {
    let mut found = Vec::new();
    let mut at = 0;
    while let Some(token) = tokens.get(at) {
        let next = tokens.get(at + 1).map_or("", |t| t.text);
        if token.text == "use" && next != "<" {
            at = use_tree(tokens, at + 1, &[], &mut found);
        } else if token.is_ident() {
            let (segments, end) = plain_path(tokens, at);
            found.push(Named { segments, at, form: Form::Expression });
            at = end;
        } else {
            at += 1;
        }
    }
    found
}

fn plain_path<'a>(tokens: &[Token<'a>], start: usize) -> (Vec<&'a str>, usize) {
    let mut segments = vec![tokens[start].text];
    let mut at = start + 1;
    while tokens.get(at).is_some_and(|t| t.text == "::") && tokens.get(at + 1).is_some_and(Token::is_ident) {
        segments.push(tokens[at + 1].text);
        at += 2;
    }
    (segments, at)
}

/// Reads one tree of a `use` and returns the index behind it (at `,`, `}` or `;`).
fn use_tree<'a>(tokens: &[Token<'a>], start: usize, prefix: &[&'a str], found: &mut Vec<Named<'a>>) -> usize {
    let mut segments = prefix.to_vec();
    let mut form = Form::Import;
    let mut at = start;
    while let Some(token) = tokens.get(at) {
        match token.text {
            "::" => at += 1,
            "{" => {
                at += 1;
                while tokens.get(at).is_some_and(|t| t.text != "}") {
                    at = use_tree(tokens, at, &segments, found);
                    at += usize::from(tokens.get(at).is_some_and(|t| t.text == ","));
                }
                return at + 1;
            }
            "," | "}" | ";" => break,
            "as" => (at, form) = (at + 2, Form::OpenImport),
            "*" => (at, form) = (at + 1, Form::OpenImport),
            _ => {
                segments.push(token.text);
                at += 1;
            }
        }
    }
    found.push(Named { segments, at: start, form });
    at.max(start + 1)
}

/// Index behind the mark that closes the group opened at `open`.
pub(super) fn closing(tokens: &[Token<'_>], open: usize) -> Option<usize> {
    let mut depth = 0_usize;
    for (at, token) in tokens.iter().enumerate().skip(open) {
        match token.text {
            "(" | "[" | "{" => depth += 1,
            ")" | "]" | "}" => depth = depth.checked_sub(1)?,
            _ => {}
        }
        if depth == 0 {
            return Some(at + 1);
        }
    }
    None
}

fn starts_with(tokens: &[Token<'_>], at: usize, wanted: &[&str]) -> bool {
    wanted.iter().enumerate().all(|(n, text)| tokens.get(at + n).is_some_and(|t| t.text == *text))
}

/// Token ranges of the items marked exactly `#[cfg(test)]`.
pub(super) fn test_items(tokens: &[Token<'_>]) -> Vec<Range<usize>> {
    let mark = ["#", "[", "cfg", "(", "test", ")", "]"];
    let starts = (0..tokens.len()).filter(|at| starts_with(tokens, *at, &mark));
    starts
        .filter_map(|start| {
            let mut at = start;
            while let Some(token) = tokens.get(at) {
                match token.text {
                    ";" => return Some(start..at + 1),
                    "{" => return Some(start..closing(tokens, at)?),
                    "(" | "[" => at = closing(tokens, at)?,
                    _ => at += 1,
                }
            }
            None
        })
        .collect()
}

/// Token ranges of modules written inside the file.
pub(super) fn inline_modules(tokens: &[Token<'_>]) -> Vec<Range<usize>> {
    let starts = (0..tokens.len()).filter(|at| tokens[*at].text == "mod" && starts_with(tokens, at + 2, &["{"]));
    starts.filter_map(|at| Some(at..closing(tokens, at + 2)?)).collect()
}
