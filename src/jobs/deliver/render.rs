//! What a bundle says beside the video: the transcript as text and as subtitles.
//!
//! `WebVTT` as <https://www.w3.org/TR/webvtt1/> has it: a cue has a start and an end, and `&`, `<`, `>` are escaped.

/// How long the last line is shown, whose end nobody knows.
const LAST_SECONDS: u32 = 5;

/// One line of a transcript.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// Who speaks.
    pub speaker: String,
    /// What.
    pub text: String,
    /// Seconds from the start of the recording.
    pub at: u32,
}

/// Seconds of a `HH:MM:SS`, `MM:SS` or `SS`, with or without a fraction; none when it is something else.
pub fn seconds(timestamp: &str) -> Option<u32> {
    let whole = timestamp.trim().split('.').next()?;
    let mut total: u32 = 0;
    for (count, part) in whole.split(':').enumerate() {
        let digits = part.len() <= 5 && !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
        if count > 2 || !digits {
            return None;
        }
        total = total.checked_mul(60)?.checked_add(part.parse().ok()?)?;
    }
    Some(total)
}

/// The transcript to read: `[00:05:32] Alice Johnson: …`.
pub fn text(lines: &[Line]) -> String {
    let mut out = String::new();
    for line in lines {
        let said = one_line(&line.text);
        if line.speaker.is_empty() {
            out.push_str(&format!("[{}] {said}\n", clock(line.at)));
        } else {
            out.push_str(&format!("[{}] {}: {said}\n", clock(line.at), one_line(&line.speaker)));
        }
    }
    out
}

/// The transcript as subtitles. Lines that go back in time start where the one before did.
pub fn vtt(lines: &[Line]) -> String {
    let mut out = String::from("WEBVTT\n");
    let mut start = 0;
    for (index, line) in lines.iter().enumerate() {
        start = line.at.max(start);
        let next = lines.get(index + 1).map(|next| next.at);
        let end = next.filter(|next| *next > start).unwrap_or(start.saturating_add(if next.is_some() {
            1
        } else {
            LAST_SECONDS
        }));
        let voice = escaped(&line.speaker);
        let voice = if voice.is_empty() { String::new() } else { format!("<v {voice}>") };
        out.push_str(&format!(
            "\n{}\n{}.000 --> {}.000\n{voice}{}\n",
            index + 1,
            clock(start),
            clock(end),
            escaped(&line.text)
        ));
    }
    out
}

fn clock(seconds: u32) -> String {
    format!("{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn escaped(text: &str) -> String {
    one_line(text).replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(speaker: &str, text: &str, at: u32) -> Line {
        Line { speaker: speaker.to_owned(), text: text.to_owned(), at }
    }

    #[test]
    fn timestamps_are_read() {
        for (text, expected) in [
            ("00:05:32", Some(332)),
            ("05:32", Some(332)),
            ("7", Some(7)),
            ("01:00:00.250", Some(3600)),
            ("", None),
            ("1:2:3:4", None),
            ("-1", None),
            ("999999:00", None),
            ("aa:bb", None),
        ] {
            assert_eq!(seconds(text), expected, "{text:?}");
        }
    }

    #[test]
    fn text_has_one_line_for_each() {
        let lines = [line("Alice Johnson", "Let's\nrevisit.", 332), line("", "Yes", 3601)];
        assert_eq!(text(&lines), "[00:05:32] Alice Johnson: Let's revisit.\n[01:00:01] Yes\n");
    }

    #[test]
    fn subtitles_end_where_the_next_begin_and_are_escaped() {
        let lines = [line("A <b>", "x --> y & z", 1), line("B", "two", 4), line("B", "same", 4), line("", "last", 2)];
        assert_eq!(
            vtt(&lines),
            "WEBVTT\n\n1\n00:00:01.000 --> 00:00:04.000\n<v A &lt;b&gt;>x --&gt; y &amp; z\n\n\
             2\n00:00:04.000 --> 00:00:05.000\n<v B>two\n\n3\n00:00:04.000 --> 00:00:05.000\n<v B>same\n\n\
             4\n00:00:04.000 --> 00:00:09.000\nlast\n"
        );
        assert_eq!(vtt(&[]), "WEBVTT\n");
    }
}
