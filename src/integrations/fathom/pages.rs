//! Walking over pages by cursor, with an end whatever the cursors say.

use std::collections::HashSet;

use serde_json::Value;

use super::Error;
use super::lenient::Model;
use super::lenient::understood;
use super::model::Meeting;
use super::query::MeetingsQuery;
use super::session::Session;

/// Most pages of one walk: 10,000 meetings.
const MAX_PAGES: usize = 1000;

/// One page of a list.
#[derive(Debug, Clone, PartialEq)]
pub struct Page<T> {
    /// What could be read.
    pub items: Vec<T>,
    /// How many items could not, for want of an id.
    pub skipped: usize,
    /// Where the next page begins; none = this was the last.
    pub next_cursor: Option<String>,
}

impl<T: Model> Page<T> {
    /// None when it is no page at all.
    pub(super) fn read(mut answer: Value) -> Option<Self> {
        let Value::Array(values) = answer.get_mut("items")?.take() else { return None };
        let found = values.len();
        let items: Vec<T> = values.into_iter().filter_map(understood).collect();
        let next_cursor = match answer.get("next_cursor") {
            Some(Value::String(cursor)) if !cursor.is_empty() => Some(cursor.clone()),
            _ => None,
        };
        Some(Self { skipped: found - items.len(), items, next_cursor })
    }
}

/// A walk over the pages of meetings, newest first.
#[derive(Debug)]
pub struct Pages<'a> {
    session: &'a Session,
    query: MeetingsQuery,
    seen: HashSet<String>,
    is_over: bool,
}

impl<'a> Pages<'a> {
    pub(super) fn new(session: &'a Session, query: MeetingsQuery) -> Self {
        Self { session, query, seen: HashSet::new(), is_over: false }
    }

    /// The next page; none after the last. After an error the same page can be asked for again.
    pub async fn next(&mut self) -> Result<Option<Page<Meeting>>, Error> {
        if self.is_over {
            return Ok(None);
        }
        let page = self.session.meetings(&self.query).await?;
        match &page.next_cursor {
            None => self.is_over = true,
            Some(cursor) => {
                if self.seen.len() >= MAX_PAGES || !self.seen.insert(cursor.clone()) {
                    self.is_over = true;
                    return Err(Error::Malformed("pages without end"));
                }
                self.query.cursor = Some(cursor.clone());
            }
        }
        Ok(Some(page))
    }

    /// Where the next page begins, for who wants to go on another day.
    pub fn cursor(&self) -> Option<&str> {
        self.query.cursor.as_deref().filter(|_| !self.is_over)
    }
}
