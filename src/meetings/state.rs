//! How the list of a user's meetings stands, and what follows from that. Pure.
//!
//! The row `sync_state` is in the user's own instance. A run goes through two phases, each page by page, and writes after
//! each page where it goes on: first the list, which is light and makes meetings visible; then the contents (summaries and
//! transcripts), which are heavy and read ten meetings a call.

use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;
use serde_json::json;
use time::OffsetDateTime;

use super::config::Config;
use super::dates;

/// The one row's id.
pub(super) const ROW: &str = "syncstate000000";

/// What a run does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// Which meetings there are.
    List,
    /// What was said in them.
    Contents,
}

impl Phase {
    fn as_str(self) -> &'static str {
        match self {
            Self::List => "list",
            Self::Contents => "contents",
        }
    }
}

/// The row, as it is stored. Everything is empty before the first run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(super) struct Row {
    pub(super) state: String,
    pub(super) error: String,
    pub(super) retry_at: String,
    pub(super) synced_at: String,
    pub(super) newest: String,
    pub(super) phase: String,
    pub(super) since: String,
    pub(super) cursor: String,
    pub(super) seen: String,
    /// The key that the list is of, and behind an `@` when it was read from its beginning, in seconds since 1970.
    pub(super) synced_key: String,
    pub(super) refused_key: String,
}

impl Row {
    /// From its JSON; one that cannot be read counts as none.
    pub(super) fn parse(document: Option<&str>) -> Self {
        document.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default()
    }

    /// The record to write.
    pub(super) fn record(&self) -> Value {
        json!({
            "id": ROW, "state": self.state, "error": self.error, "retry_at": self.retry_at,
            "synced_at": self.synced_at, "newest": self.newest, "phase": self.phase, "since": self.since,
            "cursor": self.cursor, "seen": self.seen, "synced_key": self.synced_key, "refused_key": self.refused_key,
        })
    }

    /// When the list was whole last.
    pub(super) fn synced_at(&self) -> Option<OffsetDateTime> {
        dates::instant(&self.synced_at)
    }

    /// The key that the list is of.
    pub(super) fn key(&self) -> &str {
        self.synced_key.split_once('@').map_or(&*self.synced_key, |(key, _)| key)
    }

    /// When the list was read from its beginning last.
    pub(super) fn read_whole_at(&self) -> Option<OffsetDateTime> {
        let (_, at) = self.synced_key.split_once('@')?;
        at.parse().ok().and_then(|at| OffsetDateTime::from_unix_timestamp(at).ok())
    }

    /// From where a refresh looks: a little before the newest known meeting.
    pub(super) fn usual_since(&self, overlap: Duration) -> Option<OffsetDateTime> {
        dates::instant(&self.newest).map(|newest| newest - overlap)
    }

    /// What a run with a key does next, and the row as it begins: what was interrupted goes on where it was, unless it
    /// was with another key, which may see other meetings. The list is read from its beginning when that is wanted, and
    /// when it was not for long.
    pub(super) fn begin(&self, config: &Config, key: &str, is_all_wanted: bool, now: OffsetDateTime) -> (Phase, Self) {
        let mut row = self.clone();
        if row.key() != key {
            key.clone_into(&mut row.synced_key);
            row.newest = String::new();
            row.phase = String::new();
        }
        "syncing".clone_into(&mut row.state);
        row.retry_at = String::new();
        row.refused_key = String::new();
        let phase = match row.phase.as_str() {
            "list" if !is_all_wanted || row.since.is_empty() => Phase::List,
            "contents" => Phase::Contents,
            _ => {
                let is_long_ago = row.read_whole_at().is_none_or(|at| at > now || now - at > config.full_every);
                let since = row.usual_since(config.overlap).filter(|_| !is_all_wanted && !is_long_ago);
                row.enter(Phase::List, since);
                Phase::List
            }
        };
        (phase, row)
    }

    /// A phase begins at its first page.
    pub(super) fn enter(&mut self, phase: Phase, since: Option<OffsetDateTime>) {
        phase.as_str().clone_into(&mut self.phase);
        self.since = dates::stored(since);
        self.cursor = String::new();
        if phase == Phase::List {
            self.seen = self.newest.clone();
        }
    }

    /// A page of the list was read.
    pub(super) fn read(&mut self, next: Option<&str>, newest: Option<OffsetDateTime>) {
        next.unwrap_or_default().clone_into(&mut self.cursor);
        let newest = dates::stored(newest);
        if newest > self.seen {
            self.seen = newest;
        }
    }

    /// The list is whole.
    pub(super) fn listed(&mut self, now: OffsetDateTime) {
        self.synced_at = dates::stored(Some(now));
        // What lies ahead of our clock would have us look for nothing that is older.
        self.newest = self.seen.clone().min(self.synced_at.clone());
        self.error = String::new();
    }

    /// The list is whole, and was read from its beginning.
    pub(super) fn read_whole(&mut self, now: OffsetDateTime) {
        self.synced_key = format!("{}@{}", self.key(), now.unix_timestamp());
    }

    /// The run is over.
    pub(super) fn finish(&mut self) {
        "fresh".clone_into(&mut self.state);
        self.error = String::new();
        self.phase = String::new();
        self.since = String::new();
        self.cursor = String::new();
    }

    /// The run failed and goes on there later.
    pub(super) fn fail(&mut self, error: String, retry_at: Option<OffsetDateTime>, refused_key: &str) {
        "failed".clone_into(&mut self.state);
        self.error = error;
        self.retry_at = dates::stored(retry_at);
        refused_key.clone_into(&mut self.refused_key);
    }
}

/// What a list says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// As young as the configuration wants it.
    Fresh,
    /// Older; a refresh is on its way.
    Stale,
    /// On its way for the first time, or because somebody asked for it.
    Syncing,
    /// Never read, and nothing is on its way.
    Never,
    /// The last attempt failed.
    Failed,
    /// There is no key in the vault.
    NoKey,
}

impl State {
    /// As the API says it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Fresh => "fresh",
            Self::Stale => "stale",
            Self::Syncing => "syncing",
            Self::Never => "never",
            Self::Failed => "failed",
            Self::NoKey => "no_key",
        }
    }
}

/// How the cache was used for an answer, for `Cache-Status` (RFC 9211).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Served {
    /// From what we have; it stays fresh for so many seconds, or is stale for so many if negative.
    Hit(i64),
    /// The source was asked first, because what we have is too old.
    Stale,
    /// The source was asked first, because we have nothing.
    Miss,
}

impl Served {
    /// The value of the header.
    pub fn header(self) -> String {
        match self {
            Self::Hit(ttl) => format!("pocketfleet; hit; ttl={ttl}"),
            Self::Stale => "pocketfleet; fwd=stale; stored".to_owned(),
            Self::Miss => "pocketfleet; fwd=miss; stored".to_owned(),
        }
    }
}

/// What there is to know about a list besides its row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Circumstances<'a> {
    /// Which key there is, and which version of it; none if there is none.
    pub(super) key: Option<&'a str>,
    /// Whether a run is on its way.
    pub(super) is_running: bool,
}

/// What to do about a list that somebody wants to see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Verdict {
    pub(super) state: State,
    /// Whether a run should begin.
    pub(super) refresh: bool,
    /// Whether it is worth waiting for its first page.
    pub(super) wait: bool,
    pub(super) served: Served,
}

fn seconds(duration: time::Duration) -> i64 {
    duration.whole_seconds()
}

/// Judges a list by its row.
pub(super) fn judge(row: &Row, around: Circumstances<'_>, now: OffsetDateTime, config: &Config) -> Verdict {
    let synced_at = row.synced_at();
    let ttl = synced_at.map(|at| at + config.ttl - now);
    let served = Served::Hit(ttl.map_or(0, seconds));
    let show = |state| Verdict { state, refresh: false, wait: false, served };
    let Some(key) = around.key else { return show(State::NoKey) };
    if row.state == "failed" && !around.is_running {
        let is_refused = !row.refused_key.is_empty() && row.refused_key == key;
        let waits = dates::instant(&row.retry_at).is_some_and(|at| at > now);
        if is_refused || waits {
            return show(State::Failed);
        }
    }
    let Some(ttl) = ttl else {
        return Verdict { state: State::Syncing, refresh: true, wait: true, served: Served::Miss };
    };
    if row.key() != key {
        return Verdict { state: State::Stale, refresh: true, wait: false, served };
    }
    if ttl > time::Duration::ZERO {
        // The list is whole; what is interrupted or under way are contents.
        let unfinished = !row.phase.is_empty() && !around.is_running;
        let state = if around.is_running { State::Syncing } else { State::Fresh };
        return Verdict { state, refresh: unfinished, wait: false, served };
    }
    let is_too_old = -ttl > config.stale_for;
    let served = if is_too_old { Served::Stale } else { served };
    Verdict { state: State::Stale, refresh: true, wait: is_too_old, served }
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    const NOW: OffsetDateTime = datetime!(2026-01-01 12:00 UTC);

    fn config() -> Config {
        Config {
            ttl: Duration::from_mins(5),
            stale_for: Duration::from_hours(24),
            first_wait: Duration::from_secs(5),
            overlap: Duration::from_hours(24),
            full_every: Duration::from_hours(24 * 7),
            max_concurrent: 1,
            max_inbox: 1,
            inbox_keep: Duration::from_hours(1),
            hook_calls_per_minute: 1,
            hook_calls_per_ip: 1,
            max_hook_bytes: 1,
        }
    }

    fn synced(ago: Duration) -> Row {
        let mut row = Row { synced_key: "k".to_owned(), ..Row::default() };
        row.listed(NOW - ago);
        row.finish();
        row
    }

    fn judged(row: &Row) -> Verdict {
        judge(row, Circumstances { key: Some("k"), is_running: false }, NOW, &config())
    }

    fn begun(row: &Row, key: &str) -> (Phase, Row) {
        row.begin(&config(), key, false, NOW)
    }

    #[test]
    fn a_meeting_of_tomorrow_hides_no_other() {
        let (_, mut row) = begun(&Row::default(), "k");
        row.read(None, Some(NOW + Duration::from_hours(24 * 365)));
        row.listed(NOW);
        assert_eq!(row.newest, "2026-01-01 12:00:00.000Z");
    }

    #[test]
    fn the_whole_list_is_read_now_and_then_and_when_that_is_wanted() {
        let mut row = synced(Duration::from_mins(6));
        row.newest = "2025-12-31 00:00:00.000Z".to_owned();
        assert_eq!(begun(&row, "k").1.since, "", "it never was");
        row.read_whole(NOW - Duration::from_hours(24 * 6));
        assert_eq!((row.key(), judged(&row).served), ("k", Served::Hit(-60)));
        assert_eq!(begun(&row, "k").1.since, "2025-12-30 00:00:00.000Z");
        let (phase, wanted) = row.begin(&config(), "k", true, NOW);
        assert_eq!((phase, wanted.since.as_str()), (Phase::List, ""));
        let (_, interrupted) = begun(&row, "k");
        assert_eq!(interrupted.begin(&config(), "k", true, NOW).1.since, "");
        row.read_whole(NOW - Duration::from_hours(24 * 8));
        assert_eq!(begun(&row, "k").1.since, "", "not for long");
        assert_eq!(begun(&row, "other").1.read_whole_at(), None);
    }

    #[test]
    fn age_decides() {
        let fresh = judged(&synced(Duration::from_mins(1)));
        assert_eq!((fresh.state, fresh.refresh, fresh.served), (State::Fresh, false, Served::Hit(240)));
        let stale = judged(&synced(Duration::from_mins(6)));
        assert_eq!((stale.state, stale.refresh, stale.wait), (State::Stale, true, false));
        assert_eq!(stale.served.header(), "pocketfleet; hit; ttl=-60");
        let old = judged(&synced(Duration::from_hours(25)));
        assert_eq!(
            (old.state, old.wait, old.served.header().as_str()),
            (State::Stale, true, "pocketfleet; fwd=stale; stored")
        );
        let never = judged(&Row::default());
        assert_eq!((never.state, never.wait, never.served), (State::Syncing, true, Served::Miss));
    }

    #[test]
    fn a_failure_waits_for_its_time_or_for_another_key() {
        let mut row = synced(Duration::from_mins(6));
        row.fail("x".to_owned(), Some(NOW + Duration::from_secs(1)), "");
        assert_eq!((judged(&row).state, judged(&row).refresh), (State::Failed, false));
        row.fail("x".to_owned(), Some(NOW), "");
        assert_eq!(judged(&row).state, State::Stale);
        row.fail("x".to_owned(), None, "k");
        assert_eq!((judged(&row).state, judged(&row).refresh), (State::Failed, false));
        row.fail("x".to_owned(), None, "older");
        assert!(judged(&row).refresh);
        let other =
            judge(&synced(Duration::ZERO), Circumstances { key: Some("new"), is_running: false }, NOW, &config());
        assert_eq!((other.state, other.refresh), (State::Stale, true), "another key may see others");
        let none = judge(&row, Circumstances { key: None, is_running: false }, NOW, &config());
        assert_eq!((none.state, none.refresh), (State::NoKey, false));
    }

    #[test]
    fn an_interrupted_run_goes_on_where_it_was() {
        let mut row = synced(Duration::from_mins(6));
        row.newest = "2025-12-31 00:00:00.000Z".to_owned();
        row.read_whole(NOW);
        let (phase, mut row) = begun(&row, "k");
        assert_eq!((phase, row.since.as_str()), (Phase::List, "2025-12-30 00:00:00.000Z"));
        row.read(Some("c2"), Some(datetime!(2026-01-01 10:00 UTC)));
        let row = Row::parse(Some(&row.record().to_string()));
        let (phase, mut row) = begun(&row, "k");
        assert_eq!((phase, row.cursor.as_str(), row.since.as_str()), (Phase::List, "c2", "2025-12-30 00:00:00.000Z"));
        let (phase, anew) = begun(&row, "new");
        assert_eq!((phase, anew.cursor.as_str(), anew.since.as_str()), (Phase::List, "", ""));
        assert_eq!(row.newest, "2025-12-31 00:00:00.000Z", "only a whole list moves it");
        row.read(None, Some(datetime!(2026-01-01 09:00 UTC)));
        row.listed(NOW);
        assert_eq!(row.newest, "2026-01-01 10:00:00.000Z");
        row.enter(Phase::Contents, None);
        assert_eq!(begun(&row, "k").0, Phase::Contents);
        let whole = judged(&row);
        assert_eq!((whole.state, whole.refresh), (State::Fresh, true), "contents are missing");
        row.finish();
        assert_eq!((begun(&row, "k").0, row.state.as_str()), (Phase::List, "fresh"));
    }
}
