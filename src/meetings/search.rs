//! Which meetings, and the SQL that finds them.
//!
//! Invariants:
//! - Whatever a user types is searched for as words: nothing of it is an operator of FTS5, and nothing of it is SQL.
//! - Order and paging are by when a meeting appeared, the newest first, also when searching: a rank would change with
//!   every meeting that arrives, and pages would repeat or skip.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use time::OffsetDateTime;

use super::dates;
use super::error::Error;
use crate::records::sql_text;

/// Most meetings of a page.
pub const MAX_LIMIT: usize = 100;
/// Meetings of a page unless asked otherwise.
pub const DEFAULT_LIMIT: usize = 25;
/// Longest text to search for, in characters.
pub const MAX_SEARCH_CHARS: usize = 400;
/// Most words of it.
const MAX_TERMS: usize = 24;
/// Characters of a summary that a list shows.
const EXCERPT_CHARS: usize = 300;

/// Which meetings.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// Words that stand in title, summary or transcript, each of them; `"…"` keeps words together; the last word may be
    /// the beginning of one.
    pub search: Option<String>,
    /// Only those that appeared after this.
    pub created_after: Option<OffsetDateTime>,
    /// Only those that appeared before this.
    pub created_before: Option<OffsetDateTime>,
    /// E-mail address of whoever recorded.
    pub recorded_by: Option<String>,
    /// With or without summary.
    pub has_summary: Option<bool>,
    /// Where to go on.
    pub cursor: Option<Cursor>,
    /// How many: 1 to [`MAX_LIMIT`].
    pub limit: usize,
}

/// A place in the list: behind this meeting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cursor {
    created_at: String,
    id: String,
}

impl Cursor {
    /// Behind a meeting as it is stored.
    pub(super) fn behind(created_at: &str, id: &str) -> Self {
        Self { created_at: created_at.to_owned(), id: id.to_owned() }
    }

    /// As clients carry it.
    pub fn encode(&self) -> String {
        URL_SAFE_NO_PAD.encode(format!("{}/{}", self.created_at, self.id))
    }

    /// What a client carried.
    pub fn decode(text: &str) -> Result<Self, Error> {
        let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| Error::Cursor)?;
        let text = String::from_utf8(bytes).map_err(|_| Error::Cursor)?;
        let (created_at, id) = text.split_once('/').ok_or(Error::Cursor)?;
        let is_id = id.len() == 15 && id.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        let is_date = created_at.is_empty() || dates::instant(created_at).is_some();
        if is_id && is_date { Ok(Self::behind(created_at, id)) } else { Err(Error::Cursor) }
    }
}

/// What FTS5 is asked for: every word, or phrase, in quotes, so that none is an operator. None: there is no word in it.
fn match_text(search: &str) -> Option<String> {
    let mut terms: Vec<String> = Vec::new();
    let mut may_continue = false;
    for (n, part) in search.split('"').enumerate() {
        let is_phrase = n % 2 == 1;
        let pieces: Vec<&str> = if is_phrase { vec![part] } else { part.split_whitespace().collect() };
        for piece in pieces {
            let words: Vec<&str> =
                piece.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()).collect();
            if !words.is_empty() && terms.len() < MAX_TERMS {
                terms.push(words.join(" "));
                may_continue = !is_phrase;
            }
        }
    }
    let last = terms.len().checked_sub(1)?;
    let quoted = terms.iter().enumerate().map(|(n, term)| {
        let star = if n == last && may_continue { "*" } else { "" };
        format!("\"{term}\"{star}")
    });
    Some(quoted.collect::<Vec<_>>().join(" "))
}

/// The row of `sync_state`, as the first row of any answer.
pub(super) const STATE: &str = "SELECT 'state' AS kind, (SELECT json_object('state', state, 'error', error, \
    'retry_at', retry_at, 'synced_at', synced_at, 'newest', newest, 'phase', phase, 'since', since, 'cursor', cursor, \
    'seen', seen, 'synced_key', synced_key, 'refused_key', refused_key) FROM sync_state WHERE id = 'syncstate000000') AS doc";

const DELIVERY: &str = "json((SELECT json_object('state', d.state, 'destination', d.destination, 'url', d.url, 'job', \
    d.job) FROM deliveries d WHERE d.recording_id = m.recording_id ORDER BY d.updated DESC LIMIT 1))";

impl Filter {
    /// One statement whose rows are `(kind, document)`: the state of syncing, then one meeting more than asked for.
    pub(super) fn sql(&self) -> String {
        let limit = self.limit.clamp(1, MAX_LIMIT) + 1;
        let search = self.search.as_deref().filter(|text| !text.trim().is_empty());
        let wanted = search.map(match_text);
        let mut rules = Vec::new();
        let (mut from, mut snippet) = ("meetings m", "NULL".to_owned());
        match wanted {
            None => {}
            // Something was typed, and there is no word in it.
            Some(None) => rules.push("0".to_owned()),
            Some(Some(text)) => {
                let text = sql_text(&text);
                from = "meetings_fts JOIN meetings m ON m.recording_id = CAST(meetings_fts.rowid AS TEXT)";
                rules.push(format!("meetings_fts MATCH {text}"));
                // Made for the page's rows only: it reads the whole text of each.
                snippet = format!(
                    "(SELECT snippet(meetings_fts, -1, '**', '**', '…', 24) FROM meetings_fts \
                     WHERE meetings_fts MATCH {text} AND meetings_fts.rowid = CAST(m.recording_id AS INTEGER))"
                );
            }
        }
        for (sign, at) in [(">", self.created_after), ("<", self.created_before)] {
            rules.extend(at.map(|at| format!("m.created_at {sign} {}", sql_text(&dates::stored(Some(at))))));
        }
        rules.extend(self.recorded_by.as_ref().map(|email| {
            format!("lower(json_extract(m.recorded_by, '$.email')) = {}", sql_text(&email.trim().to_lowercase()))
        }));
        rules.extend(self.has_summary.map(|has| format!("(m.summary <> '') = {}", u8::from(has))));
        rules.extend(self.cursor.as_ref().map(|cursor| {
            format!("(m.created_at, m.id) < ({}, {})", sql_text(&cursor.created_at), sql_text(&cursor.id))
        }));
        let rules = if rules.is_empty() { "1".to_owned() } else { rules.join(" AND ") };
        format!(
            "WITH page AS (SELECT m.id FROM {from} WHERE {rules} ORDER BY m.created_at DESC, m.id DESC LIMIT {limit}) \
             {STATE} UNION ALL SELECT * FROM (SELECT 'meeting', json_object('id', m.id, 'recording_id', m.recording_id, \
             'title', m.title, 'created_at', m.created_at, 'started_at', m.started_at, 'duration_seconds', \
             m.duration_seconds, 'url', m.url, 'share_url', m.share_url, 'recorded_by', json(m.recorded_by), 'invitees', \
             json(m.invitees), 'summary_excerpt', substr(m.summary, 1, {EXCERPT_CHARS}), 'has_transcript', \
             json(iif(m.has_transcript, 'true', 'false')), 'snippet', {snippet}, 'delivery', {DELIVERY}) \
             FROM page JOIN meetings m ON m.id = page.id ORDER BY m.created_at DESC, m.id DESC)"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_is_typed_is_words() {
        for (typed, wanted) in [
            ("quick brown", Some("\"quick\" \"brown\"*")),
            ("NOT", Some("\"NOT\"*")),
            ("a AND (b OR c)", Some("\"a\" \"AND\" \"b\" \"OR\" \"c\"*")),
            ("\"quick brown\"", Some("\"quick brown\"")),
            ("\"quick brown\" fox", Some("\"quick brown\" \"fox\"*")),
            ("fox \"quick", Some("\"fox\" \"quick\"")),
            ("title:x NEAR(a b, 5)", Some("\"title x\" \"NEAR a\" \"b\" \"5\"*")),
            ("don't", Some("\"don t\"*")),
            ("*", None),
            ("\"\"\"", None),
            ("  ", None),
            ("a\0b", Some("\"a b\"*")),
            ("Zürich 会議", Some("\"Zürich\" \"会議\"*")),
        ] {
            assert_eq!(match_text(typed).as_deref(), wanted, "{typed:?}");
        }
        assert_eq!(match_text(&"x ".repeat(1_000)).unwrap().matches('x').count(), MAX_TERMS);
    }

    #[test]
    fn a_cursor_is_found_again_and_a_forged_one_refused() {
        for created_at in ["2025-03-01 17:01:30.000Z", ""] {
            let cursor = Cursor::behind(created_at, "m00000000000001");
            assert_eq!(Cursor::decode(&cursor.encode()).unwrap(), cursor);
        }
        for forged in
            ["", "x", "!!", &URL_SAFE_NO_PAD.encode("a/b"), &URL_SAFE_NO_PAD.encode("2025' OR 1/m00000000000001")]
        {
            assert!(matches!(Cursor::decode(forged), Err(Error::Cursor)), "{forged}");
        }
    }

    #[test]
    fn nothing_that_is_typed_stands_in_the_statement() {
        let nasty = "'; DROP TABLE meetings; -- {:x} [[y]] {{z}} \"";
        let filter = Filter {
            search: Some(nasty.to_owned()),
            recorded_by: Some(nasty.to_owned()),
            limit: 10,
            ..Filter::default()
        };
        let sql = filter.sql();
        assert!(!sql.contains("DROP") && !sql.contains("{:") && !sql.contains("[[") && !sql.contains(';'), "{sql}");
    }
}
