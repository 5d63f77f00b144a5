//! The queue: what waits, what runs, what waits for its owner, and what became of the rest.

use askama::Template;
use axum::extract::Path;
use axum::extract::Query;
use axum::http::Method;
use axum::http::StatusCode;
use axum::response::IntoResponse;
use axum::response::Redirect;
use axum::response::Response;
use serde::Deserialize;
use serde_json::Value;
use serde_json::json;

use crate::api::page::Params;
use crate::api::page::api::Caller;
use crate::api::page::api::encoded;
use crate::api::page::fields::Fields;
use crate::api::page::layout;
use crate::api::page::layout::Frame;
use crate::api::page::layout::Notice;
use crate::api::page::layout::sentence;
use crate::api::page::markdown;
use crate::api::page::session::Visitor;
use crate::api::page::views::Artifact;
use crate::api::page::views::Destination;
use crate::api::page::views::Id;
use crate::api::page::views::Items;
use crate::api::page::views::When;
use crate::api::page::views::or_untitled;
use crate::error::Code;
use crate::error::Problem;
use crate::jobs::deliver;

/// Jobs that are looked at for one page of history.
const HISTORY: usize = 50;

/// Longest line that the queue takes for people, in characters.
const LONGEST_TOPIC: usize = 200;

/// How far a job is.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Progress {
    #[serde(default)]
    step: Option<String>,
    #[serde(default)]
    percent: Option<f64>,
    #[serde(default)]
    eta_seconds: Option<f64>,
}

/// One job as the queue lists it.
#[derive(Debug, Deserialize)]
pub(super) struct Item {
    pub(super) id: String,
    pub(super) state: String,
    #[serde(default)]
    pub(super) position: Option<u64>,
    #[serde(default, alias = "title")]
    pub(super) topic: Option<String>,
    #[serde(default)]
    pub(super) recording_id: Option<Id>,
    /// What a job lists in place of the two around it.
    #[serde(default)]
    payload: Value,
    #[serde(default)]
    pub(super) destination: Option<String>,
    /// What it waits for, in words.
    #[serde(default)]
    pub(super) waits_for: Option<String>,
    #[serde(default)]
    pub(super) attempts: u32,
    #[serde(default)]
    pub(super) max_attempts: u32,
    #[serde(default)]
    pub(super) progress: Option<Progress>,
    #[serde(default)]
    pub(super) error: Option<String>,
    #[serde(default)]
    pub(super) result: Option<Value>,
    #[serde(default)]
    pub(super) run_at: When,
    #[serde(default)]
    pub(super) finished_at: When,
}

impl Item {
    pub(super) fn name(&self) -> &str {
        or_untitled(self.topic.as_deref().unwrap_or_default())
    }

    /// The recording it is about.
    fn recording(&self) -> Option<Id> {
        let payload = self.payload.get("recording_id").and_then(Value::as_u64);
        let id = self.recording_id.clone().or_else(|| payload.map(|number| Id(number.to_string())));
        id.filter(|id| !id.0.is_empty())
    }

    /// The page of its meeting.
    pub(super) fn meeting(&self) -> Option<String> {
        self.recording().map(|id| format!("/app/meetings/{}", encoded(&id.0)))
    }

    fn is_finished(&self) -> bool {
        matches!(self.state.as_str(), "done" | "dead" | "cancelled")
    }

    /// Shows destinations by the names that their owner gave them.
    fn name_destination(&mut self, known: &[Destination]) {
        let id = self.destination.take().or_else(|| self.payload.get("destination")?.as_str().map(str::to_owned));
        self.destination = id.map(|id| {
            let found = known.iter().find(|destination| destination.id == id);
            found.map_or(id, |destination| destination.name.clone())
        });
    }

    pub(super) fn label(&self) -> &str {
        match self.state.as_str() {
            "queued" => "waiting",
            "parked" => "waits for you",
            "dead" => "failed",
            "done" => "delivered",
            other => other,
        }
    }

    pub(super) fn is(&self, state: &str) -> bool {
        self.state == state
    }

    pub(super) fn step(&self) -> &str {
        let step = self.progress.as_ref().and_then(|progress| progress.step.as_deref()).unwrap_or_default();
        if step.is_empty() { "starting" } else { step }
    }

    /// Whole percent, when it is known how much there is to do.
    pub(super) fn percent(&self) -> Option<String> {
        let percent = self.progress.as_ref()?.percent.filter(|percent| percent.is_finite())?;
        Some(format!("{:.0}", percent.clamp(0.0, 100.0)))
    }

    pub(super) fn remaining(&self) -> Option<String> {
        let seconds = self.progress.as_ref()?.eta_seconds.filter(|seconds| (1.0..360_000.0).contains(seconds))?;
        Some(if seconds < 90.0 { format!("{seconds:.0} s left") } else { format!("{:.0} min left", seconds / 60.0) })
    }

    pub(super) fn may_be_cancelled(&self) -> bool {
        matches!(self.state.as_str(), "queued" | "scheduled" | "running" | "parked")
    }

    pub(super) fn may_be_retried(&self) -> bool {
        matches!(self.state.as_str(), "dead" | "cancelled")
    }

    pub(super) fn may_be_moved(&self) -> bool {
        self.is("queued") && self.position.is_none_or(|position| position > 1)
    }

    /// Why the last link was not taken.
    pub(super) fn complaint(&self) -> Option<&str> {
        let what = self.waits_for.as_deref().filter(|what| *what != deliver::AWAITING)?;
        let (_, reason) = what.split_once("awaiting_upload: ")?;
        Some(reason)
    }

    /// Why the last attempt failed.
    pub(super) fn reason(&self) -> Option<&str> {
        self.error.as_deref().filter(|error| !error.is_empty() && !self.waits_for_link())
    }

    /// Whether it waits for a link to where its owner put the video.
    pub(super) fn waits_for_link(&self) -> bool {
        self.is("parked")
    }

    /// Where the result can be seen.
    pub(super) fn link(&self) -> Option<&str> {
        let result = self.result.as_ref()?;
        let url = ["share_url", "url"].iter().find_map(|field| result.get(field)?.as_str())?;
        markdown::is_web(url).then_some(url)
    }
}

/// What is in the queue now.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Panel {
    pub(super) items: Vec<Item>,
    /// Jobs of everybody that wait.
    #[serde(default)]
    pub(super) waiting: u64,
    #[serde(default)]
    pub(super) paused: bool,
    /// Why nothing is known, when it is not.
    #[serde(skip)]
    pub(super) failed: Option<String>,
    /// Where things can go.
    #[serde(skip)]
    pub(super) destinations: Vec<Destination>,
}

impl Panel {
    /// Only what concerns one meeting.
    pub(super) fn of(mut self, recording: &Id) -> Self {
        self.items.retain(|item| item.recording().as_ref() == Some(recording));
        self
    }

    pub(super) fn is_busy(&self) -> bool {
        self.items.iter().any(|item| item.is("running"))
    }
}

/// Reads the queue; only a session that ended is an error.
pub(super) async fn read_panel(api: &Caller) -> Result<Panel, Problem> {
    let (panel, destinations) =
        tokio::join!(api.read::<Panel>("/api/v1/queue"), api.read::<Items<Destination>>("/api/v1/destinations"),);
    let mut panel = match panel {
        Err(problem) if problem.code != Code::Unauthorized => {
            Panel { failed: Some(sentence(&problem)), ..Panel::default() }
        }
        read => read?,
    };
    panel.destinations = destinations.map(|found| found.items).unwrap_or_default();
    for item in &mut panel.items {
        item.name_destination(&panel.destinations);
    }
    Ok(panel)
}

#[derive(Template)]
#[template(path = "app/panel.html")]
struct PanelPart {
    panel: Panel,
    here: String,
}

#[derive(Template)]
#[template(path = "app/queue.html")]
struct QueuePage {
    frame: Frame,
    panel: Panel,
    history: Items<Item>,
    failed: Option<String>,
    next: Option<String>,
    here: String,
}

/// The queue and the history.
pub(super) async fn queue(visitor: Visitor, Query(params): Params) -> Response {
    let cursor = params.get("cursor").filter(|cursor| !cursor.is_empty());
    let cursor = cursor.map_or_else(String::new, |cursor| format!("&cursor={}", encoded(cursor)));
    let finished = format!("/api/v1/jobs?kind=deliver_meeting&limit={HISTORY}{cursor}");
    let (panel, history) = tokio::join!(read_panel(&visitor.api), visitor.api.read::<Items<Item>>(&finished));
    let panel = match panel {
        Ok(panel) => panel,
        Err(problem) => return layout::failure(&problem),
    };
    let (history, failed) = match history {
        Ok(mut history) => {
            history.items.retain(Item::is_finished);
            for item in &mut history.items {
                item.name_destination(&panel.destinations);
            }
            (history, None)
        }
        Err(problem) => (Items::default(), Some(sentence(&problem))),
    };
    let next = history.next_cursor.as_deref().map(|cursor| format!("/app/queue?cursor={}", encoded(cursor)));
    let notice = Notice::said(params.get("said").map(String::as_str));
    let frame = Frame::new("Queue", &visitor.principal.email, notice);
    layout::page(StatusCode::OK, &QueuePage { frame, panel, history, failed, next, here: "/app/queue".to_owned() })
}

/// The queue alone, for scripts.
pub(super) async fn panel(visitor: Visitor, Query(params): Params) -> Response {
    let page = params.get("page").cloned().unwrap_or_default();
    let here = Fields(vec![("page".to_owned(), page)]).page().to_owned();
    match read_panel(&visitor.api).await {
        Ok(panel) => layout::page(StatusCode::OK, &PanelPart { panel, here }),
        Err(problem) => layout::failure(&problem),
    }
}

/// Most meetings that one form may pick; their titles are looked for one by one.
const MOST_PICKED: usize = 200;

/// Adds the picked meetings.
pub(super) async fn add(visitor: Visitor, fields: Fields) -> Response {
    let picked: Vec<&str> = fields.all("recording").filter(|id| !id.is_empty()).take(MOST_PICKED + 1).collect();
    if picked.len() > MOST_PICKED {
        let problem = Problem::new(Code::InvalidRequest).message("pick fewer meetings at once: 200 at most");
        return layout::failure(&problem);
    }
    if picked.is_empty() {
        let problem = Problem::new(Code::InvalidRequest).message("pick at least one meeting first");
        return layout::failure(&problem);
    }
    let destination = fields.text("destination");
    let items: Vec<Value> = picked
        .into_iter()
        .map(|id| {
            // Services number their recordings.
            let mut item = json!({ "recording_id": id.parse::<u64>().map_or_else(|_| Value::from(id), Value::from) });
            let title = fields.text(&format!("title-{id}"));
            if !title.is_empty() {
                item["topic"] = Value::from(topic_of(title));
            }
            if !destination.is_empty() {
                item["destination"] = Value::from(destination);
            }
            item
        })
        .collect();
    match visitor.api.make("/api/v1/queue", json!({ "items": items })).await {
        Ok(is_new) => layout::back(fields.page(), if is_new { "queued" } else { "already-queued" }),
        Err(problem) => layout::failure(&problem),
    }
}

/// A title as the queue takes it.
fn topic_of(title: &str) -> String {
    title.chars().filter(|char| !char.is_control()).take(LONGEST_TOPIC).collect()
}

/// Makes one call about one job, and goes back to where the button was.
async fn change(visitor: &Visitor, fields: &Fields, method: Method, path: &str, body: Value, word: &str) -> Response {
    match visitor.api.send::<Value>(method, path, body).await {
        Ok(_) => layout::back(fields.page(), word),
        Err(problem) => layout::failure(&problem),
    }
}

/// Takes a job out, or stops it.
pub(super) async fn cancel(visitor: Visitor, Path(id): Path<String>, fields: Fields) -> Response {
    let path = format!("/api/v1/queue/{}", encoded(&id));
    change(&visitor, &fields, Method::DELETE, &path, Value::Null, "cancelled").await
}

/// Runs a job again.
pub(super) async fn retry(visitor: Visitor, Path(id): Path<String>, fields: Fields) -> Response {
    let path = format!("/api/v1/queue/{}/retry", encoded(&id));
    change(&visitor, &fields, Method::POST, &path, json!({}), "retried").await
}

/// Lets a job be the next of its owner's.
pub(super) async fn to_front(visitor: Visitor, Path(id): Path<String>, fields: Fields) -> Response {
    let path = format!("/api/v1/queue/{}/move", encoded(&id));
    change(&visitor, &fields, Method::POST, &path, json!({ "to": "front" }), "moved").await
}

/// Takes the link to where the owner put the video.
pub(super) async fn share_link(visitor: Visitor, Path(id): Path<String>, fields: Fields) -> Response {
    let path = format!("/api/v1/queue/{}/share_url", encoded(&id));
    let body = json!({ "url": fields.text("url") });
    change(&visitor, &fields, Method::POST, &path, body, "link-taken").await
}

/// Starts nothing new.
pub(super) async fn pause(visitor: Visitor, fields: Fields) -> Response {
    change(&visitor, &fields, Method::POST, "/api/v1/queue/pause", json!({}), "paused").await
}

/// Goes on.
pub(super) async fn resume(visitor: Visitor, fields: Fields) -> Response {
    change(&visitor, &fields, Method::POST, "/api/v1/queue/resume", json!({}), "resumed").await
}

/// Leads to the video that was prepared for a person to upload.
pub(super) async fn video(visitor: Visitor, Path(id): Path<String>) -> Response {
    match video_of(&visitor.api, &id).await {
        Ok(address) => Redirect::to(&address).into_response(),
        Err(problem) => layout::failure(&problem),
    }
}

async fn video_of(api: &Caller, id: &str) -> Result<String, Problem> {
    let item: Item = api.read(&format!("/api/v1/queue/{}", encoded(id))).await?;
    let gone = || Problem::new(Code::NotFound);
    let recording = item.recording().ok_or_else(gone)?;
    let artifacts: Items<Artifact> = api.read(&format!("/api/v1/meetings/{}/artifacts", encoded(&recording.0))).await?;
    let video = artifacts.items.iter().find(|artifact| artifact.kind == "video").and_then(Artifact::link);
    video.map(str::to_owned).ok_or_else(gone)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(mut more: Value) -> Item {
        let fields = more.as_object_mut().unwrap();
        fields.insert("id".to_owned(), json!("j1"));
        fields.entry("state").or_insert(json!("running"));
        serde_json::from_value(more).unwrap()
    }

    #[test]
    fn a_job_says_how_far_it_is() {
        let running = item(json!({"progress": {"step": "download", "percent": 41.6, "eta_seconds": 12.3}}));
        assert_eq!((running.step(), running.percent().as_deref()), ("download", Some("42")));
        assert_eq!(running.remaining().as_deref(), Some("12 s left"));
        let fresh = item(json!({"progress": null, "topic": " ", "recording_id": 17}));
        assert_eq!((fresh.step(), fresh.percent(), fresh.name()), ("starting", None, "Untitled meeting"));
        assert_eq!(fresh.meeting().as_deref(), Some("/app/meetings/17"));
    }

    #[test]
    fn buttons_are_there_when_they_can_do_something() {
        let first = item(json!({"state": "queued", "position": 1}));
        let second = item(json!({"state": "queued", "position": 2}));
        assert!(!first.may_be_moved() && second.may_be_moved() && second.may_be_cancelled());
        let failed = item(json!({"state": "dead"}));
        assert!(failed.may_be_retried() && !failed.may_be_cancelled());
        assert_eq!(failed.label(), "failed");
    }

    #[test]
    fn any_title_is_one_that_the_queue_takes() {
        let topic = topic_of(&format!("A\u{7}\n{}", "ä".repeat(500)));
        assert_eq!(topic, format!("A{}", "ä".repeat(199)));
    }

    #[test]
    fn what_a_person_has_to_do_again_is_said() {
        let parked =
            item(json!({"state": "parked", "waits_for": "awaiting_upload: that is no link of Loom", "error": "x"}));
        assert_eq!((parked.complaint(), parked.reason()), (Some("that is no link of Loom"), None));
        assert_eq!(item(json!({"state": "parked", "waits_for": deliver::AWAITING})).complaint(), None);
        assert_eq!(item(json!({"state": "dead", "error": "x"})).reason(), Some("x"));
    }

    #[test]
    fn a_result_is_a_link_when_it_is_one() {
        assert_eq!(item(json!({"result": {"url": "https://a.b/c"}})).link(), Some("https://a.b/c"));
        assert_eq!(item(json!({"result": {"url": "javascript:alert(1)"}})).link(), None);
        assert_eq!(item(json!({"result": null})).link(), None);
    }
}
