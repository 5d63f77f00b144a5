//! What the page reads of the API's answers. Only what is shown is named; more may come and is passed over.

use serde::Deserialize;
use serde::Deserializer;
use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use time::macros::format_description;

use crate::api::page::markdown;

/// A list, one page of it.
#[derive(Debug, Deserialize)]
pub(super) struct Items<T> {
    pub(super) items: Vec<T>,
    #[serde(default)]
    pub(super) next_cursor: Option<String>,
}

impl<T> Default for Items<T> {
    fn default() -> Self {
        Self { items: Vec::new(), next_cursor: None }
    }
}

/// A moment, if there is one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct When(pub(super) Option<OffsetDateTime>);

impl<'de> Deserialize<'de> for When {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Option::<String>::deserialize(deserializer)?;
        // A service of others wrote some of these: one that cannot be read is none.
        let text = text.map(|text| text.replacen(' ', "T", 1));
        Ok(Self(text.and_then(|text| OffsetDateTime::parse(&text, &Rfc3339).ok())))
    }
}

impl When {
    pub(super) fn is_known(self) -> bool {
        self.0.is_some()
    }

    /// For machines.
    pub(super) fn iso(self) -> String {
        self.0.and_then(|at| at.format(&Rfc3339).ok()).unwrap_or_default()
    }

    /// For people; scripts put it into their zone.
    pub(super) fn text(self) -> String {
        let form = format_description!("[day padding:none] [month repr:short] [year], [hour]:[minute] UTC");
        self.0.and_then(|at| at.format(form).ok()).unwrap_or_default()
    }
}

/// An id, whether it is written as a number or as a text.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Id(pub(super) String);

impl<'de> Deserialize<'de> for Id {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(match Value::deserialize(deserializer)? {
            Value::String(text) => Self(text),
            Value::Number(number) => Self(number.to_string()),
            _ => Self::default(),
        })
    }
}

/// A key in the vault, without its secret.
#[derive(Debug, Deserialize)]
pub(super) struct Key {
    #[serde(rename = "key_id")]
    pub(super) id: String,
    pub(super) service: String,
    pub(super) label: String,
    #[serde(default)]
    pub(super) hint: Option<String>,
    pub(super) state: String,
    #[serde(default)]
    pub(super) settings: serde_json::Value,
    #[serde(default)]
    pub(super) created_at: When,
    #[serde(default)]
    pub(super) expires_at: When,
    #[serde(default)]
    pub(super) last_used_at: When,
}

/// Whether one can sign in at Fathom, and did.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Connection {
    pub(super) available: bool,
    pub(super) connected: bool,
}

impl Key {
    /// Whether it came from a sign-in at the service.
    pub(super) fn is_connection(&self) -> bool {
        self.settings.get("type").and_then(serde_json::Value::as_str) == Some("oauth")
    }

    /// Its state in words.
    pub(super) fn standing(&self) -> &str {
        match &*self.state {
            "expiring" => "expires soon",
            state => state,
        }
    }
}

/// The list of meetings, and how fresh it is.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Meetings {
    pub(super) items: Vec<Meeting>,
    #[serde(default)]
    pub(super) next_cursor: Option<String>,
    #[serde(default)]
    pub(super) sync: Sync,
}

/// How fresh the list of meetings is.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Sync {
    #[serde(default)]
    pub(super) state: String,
    #[serde(default)]
    pub(super) synced_at: When,
    #[serde(default)]
    pub(super) error: Option<String>,
}

impl Sync {
    /// Why the last look failed.
    pub(super) fn reason(&self) -> Option<&str> {
        self.error.as_deref().filter(|error| !error.is_empty() && self.state != "no_key")
    }

    /// One sentence.
    pub(super) fn text(&self) -> &str {
        match self.state.as_str() {
            "fresh" => "Up to date",
            "stale" => "Not looked for a while",
            "syncing" => "Looking for meetings …",
            "never" => "Not looked yet",
            "no_key" => "No Fathom key",
            "failed" => "The last look failed",
            other => other,
        }
    }
}

/// A meeting in a list.
#[derive(Debug, Deserialize)]
pub(super) struct Meeting {
    pub(super) recording_id: Id,
    #[serde(default)]
    pub(super) title: String,
    #[serde(default)]
    pub(super) created_at: When,
    #[serde(default)]
    pub(super) started_at: When,
    #[serde(default)]
    pub(super) duration_seconds: Option<f64>,
    #[serde(default)]
    pub(super) recorded_by: Value,
    #[serde(default)]
    pub(super) invitees: Value,
    #[serde(default)]
    pub(super) summary_excerpt: Option<String>,
    #[serde(default)]
    pub(super) snippet: Option<String>,
    #[serde(default)]
    pub(super) delivery: Option<Delivery>,
}

impl Meeting {
    /// When it was.
    pub(super) fn when(&self) -> When {
        if self.started_at.is_known() { self.started_at } else { self.created_at }
    }

    pub(super) fn length(&self) -> String {
        length(self.duration_seconds)
    }

    pub(super) fn name(&self) -> &str {
        or_untitled(&self.title)
    }

    /// Who recorded it.
    pub(super) fn recorder(&self) -> &str {
        person(&self.recorded_by)
    }

    /// How many were invited.
    pub(super) fn guests(&self) -> usize {
        self.invitees.as_array().map_or(0, Vec::len)
    }

    /// What matched, or what the summary begins with.
    pub(super) fn excerpt(&self) -> String {
        plain(self.snippet.as_deref().or(self.summary_excerpt.as_deref()).unwrap_or_default())
    }
}

/// Where a recording went or goes.
#[derive(Debug, Deserialize)]
pub(super) struct Delivery {
    pub(super) state: String,
    #[serde(default)]
    pub(super) destination: Option<String>,
    #[serde(default)]
    pub(super) url: Option<String>,
    #[serde(default)]
    pub(super) error: Option<String>,
}

impl Delivery {
    pub(super) fn label(&self) -> &str {
        match self.state.as_str() {
            "delivering" => "in the queue",
            "awaiting_upload" => "waits for you",
            other => other,
        }
    }

    /// Why it is not there.
    pub(super) fn reason(&self) -> Option<&str> {
        self.error.as_deref().filter(|error| !error.is_empty())
    }

    /// The address it can be seen at, if it is one of the web.
    pub(super) fn link(&self) -> Option<&str> {
        self.url.as_deref().filter(|url| markdown::is_web(url))
    }
}

/// A meeting with everything.
#[derive(Debug, Deserialize)]
pub(super) struct Whole {
    #[serde(flatten)]
    pub(super) meeting: Meeting,
    #[serde(default)]
    pub(super) url: Option<String>,
    #[serde(default)]
    pub(super) summary: Value,
    #[serde(default)]
    pub(super) transcript: Value,
    #[serde(default)]
    pub(super) action_items: Value,
    #[serde(default)]
    pub(super) deliveries: Option<Vec<Delivery>>,
    #[serde(default)]
    pub(super) artifacts: Option<Vec<Artifact>>,
}

/// One line of a transcript.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Line<'a> {
    pub(super) speaker: &'a str,
    pub(super) at: &'a str,
    pub(super) text: &'a str,
}

/// Something to do.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Todo<'a> {
    pub(super) text: &'a str,
    pub(super) is_done: bool,
    pub(super) who: &'a str,
}

impl Whole {
    /// The summary as markup.
    pub(super) fn summary_markup(&self) -> markdown::Markup {
        let text = ["/markdown_formatted", "/markdown", ""].iter().find_map(|at| self.summary.pointer(at)?.as_str());
        markdown::render(text.unwrap_or_default())
    }

    pub(super) fn has_summary(&self) -> bool {
        !self.summary_markup().to_string().is_empty()
    }

    pub(super) fn lines(&self) -> Vec<Line<'_>> {
        let lines = self.transcript.as_array().map(Vec::as_slice).unwrap_or_default();
        let lines = lines.iter().map(|line| Line {
            speaker: text_at(line, &["/speaker/display_name", "/speaker/name", "/speaker"]),
            at: text_at(line, &["/timestamp"]),
            text: text_at(line, &["/text"]),
        });
        lines.collect()
    }

    pub(super) fn todos(&self) -> Vec<Todo<'_>> {
        let items = self.action_items.as_array().map(Vec::as_slice).unwrap_or_default();
        let items = items.iter().map(|item| Todo {
            text: text_at(item, &["/description", "/text", ""]),
            is_done: item.get("completed").and_then(Value::as_bool).unwrap_or_default(),
            who: text_at(item, &["/assignee/name", "/assignee/email"]),
        });
        items.filter(|todo| !todo.text.is_empty()).collect()
    }

    /// Its address at the service it comes from.
    pub(super) fn source(&self) -> Option<&str> {
        self.url.as_deref().filter(|url| markdown::is_web(url))
    }
}

/// A file that was made of a meeting.
#[derive(Debug, Deserialize)]
pub(super) struct Artifact {
    pub(super) kind: String,
    pub(super) name: String,
    #[serde(default)]
    pub(super) size: Option<f64>,
    #[serde(default)]
    pub(super) location: Option<String>,
    #[serde(default)]
    pub(super) url: Option<String>,
}

impl Artifact {
    /// Where it can be had from: an address of this server, or of the web.
    pub(super) fn link(&self) -> Option<&str> {
        let is_local = |url: &str| url.starts_with("/api/v1/") && !url.contains("//");
        self.url.as_deref().filter(|url| is_local(url) || markdown::is_web(url))
    }

    pub(super) fn bytes(&self) -> String {
        size_of(self.size.unwrap_or_default())
    }
}

/// A number of bytes for people.
fn size_of(bytes: f64) -> String {
    match bytes {
        _ if bytes >= 1e9 => format!("{:.1} GB", bytes / 1e9),
        _ if bytes >= 1e6 => format!("{:.1} MB", bytes / 1e6),
        _ if bytes >= 1e3 => format!("{:.0} KB", bytes / 1e3),
        _ => format!("{bytes} B"),
    }
}

/// What an instance takes up.
#[derive(Debug, Deserialize)]
pub(super) struct Usage {
    #[serde(default)]
    disk_used: Option<f64>,
    #[serde(default)]
    disk_level: String,
    #[serde(default)]
    quota: Quota,
}

/// What it may take up.
#[derive(Debug, Default, Deserialize)]
struct Quota {
    #[serde(default)]
    disk_hard: Option<f64>,
}

impl Usage {
    pub(super) fn is_full(&self) -> bool {
        self.disk_level == "hard"
    }

    pub(super) fn warning(&self) -> Option<&'static str> {
        match &*self.disk_level {
            "hard" => Some("The disk is full: nothing more is stored until something is deleted."),
            "soft" => Some("The disk is nearly full."),
            _ => None,
        }
    }

    pub(super) fn disk(&self) -> String {
        let used =
            self.disk_used.map_or_else(|| "Not measured yet".to_owned(), |used| format!("{} used", size_of(used)));
        match self.limit() {
            Some(limit) => format!("{used} of {}", size_of(limit)),
            None => used,
        }
    }

    pub(super) fn percent(&self) -> Option<String> {
        Some(format!("{:.0}", (self.disk_used? / self.limit()? * 100.0).min(100.0)))
    }

    fn limit(&self) -> Option<f64> {
        self.quota.disk_hard.filter(|limit| *limit > 0.0)
    }
}

/// A backup of the own instance.
#[derive(Debug, Deserialize)]
pub(super) struct Backup {
    pub(super) id: String,
    #[serde(default)]
    pub(super) taken_at: When,
    #[serde(default)]
    bytes: f64,
}

impl Backup {
    pub(super) fn size(&self) -> String {
        size_of(self.bytes)
    }
}

/// A place that recordings go to.
#[derive(Debug, Deserialize)]
pub(super) struct Destination {
    pub(super) id: String,
    pub(super) name: String,
    pub(super) kind: String,
    #[serde(default)]
    pub(super) is_default: bool,
    #[serde(default)]
    pub(super) is_builtin: bool,
    #[serde(default)]
    pub(super) settings: Value,
}

impl Destination {
    /// Its settings in one line; there are no secrets in them.
    pub(super) fn about(&self) -> String {
        let settings = self.settings.as_object().into_iter().flatten();
        let shown = settings.filter_map(|(name, value)| match value {
            Value::String(text) if !text.is_empty() => Some(format!("{name}: {text}")),
            Value::Number(_) | Value::Bool(_) => Some(format!("{name}: {value}")),
            _ => None,
        });
        shown.collect::<Vec<_>>().join(" · ")
    }
}

/// Hours and minutes.
fn length(seconds: Option<f64>) -> String {
    let Some(seconds) = seconds.filter(|seconds| *seconds >= 1.0 && *seconds < 1e7) else { return String::new() };
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 1 and 10 million")]
    let minutes = (seconds / 60.0).round().max(1.0) as u64;
    match (minutes / 60, minutes % 60) {
        (0, minutes) => format!("{minutes} min"),
        (hours, 0) => format!("{hours} h"),
        (hours, minutes) => format!("{hours} h {minutes} min"),
    }
}

pub(super) fn or_untitled(title: &str) -> &str {
    if title.trim().is_empty() { "Untitled meeting" } else { title }
}

fn person(value: &Value) -> &str {
    text_at(value, &["/name", "/display_name", "/email", ""])
}

/// The first of these places that holds a text.
fn text_at<'a>(value: &'a Value, places: &[&str]) -> &'a str {
    let found = places.iter().filter_map(|place| value.pointer(place)?.as_str());
    found.into_iter().find(|text| !text.is_empty()).unwrap_or_default()
}

/// Without the marks of Markdown and of search results, on one line.
fn plain(text: &str) -> String {
    let text: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    ["<mark>", "</mark>", "**", "#### ", "### ", "## ", "# ", "`"]
        .iter()
        .fold(text, |text, mark| text.replace(mark, ""))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_meeting_is_read_from_what_the_api_says() {
        let whole: Whole = serde_json::from_value(json!({
            "recording_id": 17, "title": " ", "created_at": "2026-05-04 10:00:00.000Z", "started_at": null,
            "duration_seconds": 5400, "recorded_by": {"name": "Ada", "email": "a@b.c"}, "invitees": [{}, {}],
            "summary": {"markdown_formatted": "# Hi"}, "url": "javascript:alert(1)",
            "transcript": [{"speaker": {"display_name": "Ada"}, "timestamp": "00:00:05", "text": "Hello"}],
            "action_items": [{"description": "Write", "completed": true, "assignee": {"name": null, "email": "a@b.c"}}],
            "surprise": 1,
        }))
        .unwrap();
        let meeting = &whole.meeting;
        assert_eq!((meeting.name(), meeting.recorder(), meeting.guests()), ("Untitled meeting", "Ada", 2));
        assert_eq!(
            (meeting.length(), meeting.when().text()),
            ("1 h 30 min".to_owned(), "4 May 2026, 10:00 UTC".to_owned())
        );
        assert_eq!(meeting.when().iso(), "2026-05-04T10:00:00Z");
        assert_eq!(whole.lines(), [Line { speaker: "Ada", at: "00:00:05", text: "Hello" }]);
        assert_eq!(whole.todos(), [Todo { text: "Write", is_done: true, who: "a@b.c" }]);
        assert!(whole.has_summary() && whole.source().is_none());
        assert_eq!(meeting.recording_id, Id("17".to_owned()));
    }

    #[test]
    fn only_addresses_of_here_and_of_the_web_are_links() {
        let link = |url: &str| {
            Artifact {
                kind: String::new(),
                name: String::new(),
                size: Some(1.5e6),
                location: None,
                url: Some(url.to_owned()),
            }
            .link()
            .map(str::to_owned)
        };
        assert!(link("/api/v1/artifacts/x/download?token=y").is_some() && link("https://a.b/c").is_some());
        for bad in ["javascript:x", "//evil.example", "/api/v1//evil", "data:x", ""] {
            assert_eq!(link(bad), None, "{bad}");
        }
        assert_eq!(length(Some(59.0)), "1 min");
        assert_eq!((length(None), length(Some(f64::NAN))), (String::new(), String::new()));
        assert_eq!(plain("a <mark>b</mark> **c**\nd"), "a b c d");
    }
}
