//! Summaries as they come from meeting services: Markdown of strangers, shown without trusting a byte of it.
//!
//! A small subset on purpose: headings, lists, paragraphs, emphasis, code, links to `http` and `https`. Everything is
//! escaped before anything is marked up, so that no input can become markup that is not listed here; what is not
//! understood is shown as it was written. Pictures are not: they would tell others who reads.

use std::fmt;

/// Markup that may stand in a page as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Markup(String);

impl fmt::Display for Markup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What is open while lines are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Open {
    Nothing,
    Paragraph,
    Bullets,
    Numbers,
}

impl Open {
    fn close(self) -> &'static str {
        match self {
            Self::Nothing => "",
            Self::Paragraph => "</p>\n",
            Self::Bullets => "</ul>\n",
            Self::Numbers => "</ol>\n",
        }
    }
}

/// By level.
const HEADINGS: [(&str, &str); 6] = [
    ("<h1>", "</h1>\n"),
    ("<h2>", "</h2>\n"),
    ("<h3>", "</h3>\n"),
    ("<h4>", "</h4>\n"),
    ("<h5>", "</h5>\n"),
    ("<h6>", "</h6>\n"),
];

/// Renders a text.
pub(super) fn render(text: &str) -> Markup {
    let mut out = String::with_capacity(text.len() * 5 / 4);
    let mut open = Open::Nothing;
    for line in first(text, LONGEST).lines().map(str::trim) {
        if line.is_empty() {
            turn(&mut out, &mut open, Open::Nothing, "");
        } else if let Some((level, rest)) = heading(line) {
            turn(&mut out, &mut open, Open::Nothing, "");
            // The page has its own first and second level.
            let (start, end) = HEADINGS.get(level + 1).copied().unwrap_or(("<h6>", "</h6>\n"));
            out.push_str(start);
            inline(&mut out, rest);
            out.push_str(end);
        } else if let Some(rest) = ["- ", "* ", "+ ", "• "].iter().find_map(|mark| line.strip_prefix(mark)) {
            turn(&mut out, &mut open, Open::Bullets, "<ul>\n");
            item(&mut out, rest);
        } else if let Some(rest) = numbered(line) {
            turn(&mut out, &mut open, Open::Numbers, "<ol>\n");
            item(&mut out, rest);
        } else {
            if open == Open::Paragraph {
                out.push_str("<br>\n");
            }
            turn(&mut out, &mut open, Open::Paragraph, "<p>");
            inline(&mut out, line);
        }
    }
    turn(&mut out, &mut open, Open::Nothing, "");
    Markup(out)
}

/// Closes what is open and begins what comes next, unless it is the same.
fn turn(out: &mut String, open: &mut Open, next: Open, start: &str) {
    if *open != next {
        out.push_str(open.close());
        out.push_str(start);
        *open = next;
    }
}

fn item(out: &mut String, text: &str) {
    out.push_str("<li>");
    inline(out, text);
    out.push_str("</li>\n");
}

fn heading(line: &str) -> Option<(usize, &str)> {
    let level = line.bytes().take_while(|&byte| byte == b'#').count();
    let rest = line.get(level..)?.strip_prefix(' ')?;
    (1..=6).contains(&level).then(|| (level, rest.trim()))
}

fn numbered(line: &str) -> Option<&str> {
    let digits = line.bytes().take_while(u8::is_ascii_digit).count();
    (1..=3).contains(&digits).then(|| line.get(digits..)?.strip_prefix(". ")).flatten()
}

/// One line: what is not a mark is escaped. No nesting within code, and links only to the web.
fn inline(out: &mut String, text: &str) {
    let mut rest = text;
    while let Some(at) = rest.find(['*', '_', '`', '[', '\\']) {
        let (before, marked) = rest.split_at(at);
        escape(out, before);
        let may_begin = before.chars().next_back().is_none_or(|c| !c.is_alphanumeric()) || !marked.starts_with('_');
        if let Some(after) = may_begin.then(|| mark(out, marked)).flatten() {
            rest = after;
        } else {
            let width = marked.chars().next().map_or(1, char::len_utf8);
            escape(out, &marked[..width]);
            rest = &marked[width..];
        }
    }
    escape(out, rest);
}

/// How far the end of a mark is looked for, in bytes: a line of nothing but beginnings must not cost its square.
const REACH: usize = 1_000;
/// The longest text that is rendered, in bytes; a summary has a few thousand.
const LONGEST: usize = 200_000;

/// The first bytes of a text, whole characters only.
fn first(text: &str, most: usize) -> &str {
    text.get(..text.floor_char_boundary(most)).unwrap_or(text)
}

/// What stands before and after an end that is not too far.
fn until<'a>(text: &'a str, end: &str) -> Option<(&'a str, &'a str)> {
    let at = first(text, REACH).find(end)?;
    Some((text.get(..at)?, text.get(at + end.len()..)?))
}

/// Writes what a mark at the start of `text` encloses, and gives what follows. `None`: it encloses nothing.
fn mark<'a>(out: &mut String, text: &'a str) -> Option<&'a str> {
    const STRONG: (&str, &str) = ("<strong>", "</strong>");
    const EM: (&str, &str) = ("<em>", "</em>");
    for (sign, (start, end)) in [("**", STRONG), ("__", STRONG), ("*", EM), ("_", EM)] {
        let Some(inner) = text.strip_prefix(sign) else { continue };
        let (inside, after) = until(inner, sign)?;
        if inside.is_empty() || inside.starts_with(' ') || inside.ends_with(' ') {
            return None;
        }
        out.push_str(start);
        inline(out, inside);
        out.push_str(end);
        return Some(after);
    }
    if let Some(inner) = text.strip_prefix('`') {
        let (inside, after) = until(inner, "`")?;
        out.push_str("<code>");
        escape(out, inside);
        out.push_str("</code>");
        return Some(after);
    }
    if let Some(inner) = text.strip_prefix('\\') {
        let next = inner.chars().next().filter(char::is_ascii_punctuation)?;
        escape(out, &inner[..1]);
        return inner.get(next.len_utf8()..);
    }
    link(out, text)
}

fn link<'a>(out: &mut String, text: &'a str) -> Option<&'a str> {
    let (label, rest) = until(text.strip_prefix('[')?, "](")?;
    let (address, after) = until(rest, ")")?;
    if label.is_empty() || label.contains(['[', ']']) || !is_web(address) {
        return None;
    }
    out.push_str("<a rel=\"noopener noreferrer nofollow\" target=\"_blank\" href=\"");
    escape(out, address);
    out.push_str("\">");
    inline(out, label);
    out.push_str("</a>");
    Some(after)
}

/// Whether a link may lead there.
pub(super) fn is_web(address: &str) -> bool {
    let rest = address.strip_prefix("https://").or_else(|| address.strip_prefix("http://"));
    rest.is_some_and(|rest| !rest.is_empty())
        && !address.bytes().any(|byte| byte.is_ascii_control() || byte == b' ' || byte == b'\\')
}

fn escape(out: &mut String, text: &str) {
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            _ => out.push(c),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn html(text: &str) -> String {
        render(text).to_string().replace('\n', "")
    }

    #[test]
    fn a_summary_reads_as_it_was_meant() {
        let text = "## Next *steps*\n\n- **Ada** writes `main.rs`\n- [watch](https://fathom.video/x?t=1&u=2)\n\n1. one\n2. two\n\nplain\nlines\n\nmore snake_case_names 2 * 3";
        assert_eq!(
            html(text),
            "<h4>Next <em>steps</em></h4><ul><li><strong>Ada</strong> writes <code>main.rs</code></li>\
             <li><a rel=\"noopener noreferrer nofollow\" target=\"_blank\" href=\"https://fathom.video/x?t=1&amp;u=2\">watch</a></li></ul>\
             <ol><li>one</li><li>two</li></ol><p>plain<br>lines</p><p>more snake_case_names 2 * 3</p>"
        );
        assert_eq!(html("[**bold**](http://a.b)").matches("<strong>").count(), 1);
        assert_eq!(html(r"\*not\* é\"), "<p>*not* é\\</p>");
        assert_eq!(html(""), "");
    }

    #[test]
    fn nothing_of_a_stranger_becomes_markup() {
        for bad in [
            "<script>alert(1)</script>",
            "# <img src=x onerror=alert(1)>",
            "- \"><svg onload=alert(1)>",
            "[x](javascript:alert(1))",
            "[x](https://a\" onmouseover=\"alert(1))",
            "[<b>](https://a.b)",
            "`</code><script>`",
            "**<i>**",
            "[a](data:text/html,x)",
            "[a](https://)",
        ] {
            let html = html(bad);
            for raw in ["<script", "<img", "<svg", "<b>", "<i>", "href=\"javascript", "href=\"data", "\" onmouseover"] {
                assert!(!html.contains(raw), "{bad} gave {html}");
            }
        }
    }

    #[test]
    fn beginnings_without_an_end_are_not_looked_through_again_and_again() {
        let begun = std::time::Instant::now();
        for mark in ["[", "*", "_a ", "`", "[a](", "**b "] {
            let html = render(&mark.repeat(1_000_000)).to_string();
            assert!(html.len() > LONGEST / 2, "{mark}");
        }
        assert!(begun.elapsed().as_secs() < 30, "{:?}", begun.elapsed());
    }

    proptest! {
        #[test]
        fn every_tag_is_one_of_ours(text in "[-a-z<>\"'&*_`#\\[\\]()/:. \\\\\n]{0,80}") {
            let html = render(&text).to_string();
            for part in html.split('<').skip(1) {
                let tag = part.split(['>', ' ']).next().unwrap().trim_start_matches('/');
                let known = ["p", "br", "ul", "ol", "li", "strong", "em", "code", "a", "h3", "h4", "h5", "h6"];
                prop_assert!(known.contains(&tag), "{tag} in {html}");
            }
        }
    }
}
