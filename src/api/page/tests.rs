//! The page on an API of the test's own: what strangers wrote stays text, and what must not be in a page is not.

use std::path::Path;

use askama::Template;
use serde_json::Value;
use serde_json::json;

use crate::api::page::home::HomePage;
use crate::api::page::home::List;
use crate::api::page::layout::Frame;
use crate::api::page::layout::Notice;
use crate::api::page::meeting::MeetingPage;
use crate::api::page::queue::Panel;
use crate::api::page::settings::SettingsPage;
use crate::api::page::views::Connection;

/// Breaks out of text, of an attribute in either quotes, and of a script.
const EVIL: &str = "\"'><script>alert(1)</script><img src=x onerror=alert(2)> javascript:alert(3)";

fn evil_meeting() -> Value {
    json!({
        "recording_id": EVIL, "title": EVIL, "summary_excerpt": EVIL, "snippet": EVIL, "recorded_by": {"name": EVIL},
        "delivery": {"state": EVIL, "destination": EVIL, "url": format!("https://{EVIL}"), "error": EVIL},
        "summary": format!("# {EVIL}\n- [{EVIL}](https://{EVIL})"), "url": format!("javascript:{EVIL}"),
        "transcript": [{"speaker": {"display_name": EVIL}, "timestamp": EVIL, "text": EVIL}],
        "action_items": [{"description": EVIL, "assignee": {"name": EVIL}}],
        "deliveries": [{"state": EVIL, "url": "javascript:alert(1)", "error": EVIL, "destination": EVIL}],
        "artifacts": [{"kind": "video", "name": EVIL, "url": EVIL, "location": EVIL}],
    })
}

fn evil_panel() -> Panel {
    let item = |state: &str| {
        json!({
            "id": EVIL, "state": state, "topic": EVIL, "recording_id": EVIL, "destination": EVIL, "error": EVIL,
            "position": 2, "progress": {"step": EVIL, "percent": 10}, "result": {"url": EVIL},
        })
    };
    let items = ["running", "parked", "queued", "dead", EVIL].map(item);
    serde_json::from_value(json!({"items": items, "waiting": 5, "paused": true})).unwrap()
}

fn frame() -> Frame {
    Frame::new("Meetings", EVIL, Some(Notice { is_error: true, text: EVIL.to_owned() }))
}

fn pages() -> Vec<String> {
    let meetings = json!({"items": [evil_meeting()], "next_cursor": EVIL, "sync": {"state": EVIL, "error": EVIL}});
    let one = json!({"id": EVIL, "name": EVIL, "kind": EVIL, "settings": {EVIL: EVIL}, "is_default": false});
    let destinations = || serde_json::from_value(json!([one])).unwrap();
    let panel = || Panel { destinations: destinations(), ..evil_panel() };
    let list = List {
        meetings: serde_json::from_value(meetings).unwrap(),
        failed: Some(EVIL.to_owned()),
        search: EVIL.to_owned(),
        here: EVIL.to_owned(),
        next: Some(EVIL.to_owned()),
        is_first: false,
    };
    let home = HomePage { frame: frame(), list, panel: panel() };
    let meeting = MeetingPage {
        frame: frame(),
        artifacts: serde_json::from_value(evil_meeting()["artifacts"].clone()).unwrap(),
        whole: serde_json::from_value(evil_meeting()).unwrap(),
        panel: panel(),
        here: EVIL.to_owned(),
    };
    let key = json!({"key_id": EVIL, "service": EVIL, "label": EVIL, "hint": EVIL, "state": EVIL});
    let settings = SettingsPage {
        frame: frame(),
        keys: serde_json::from_value(json!([key])).unwrap(),
        keys_failed: Some(EVIL.to_owned()),
        fathom: Connection { available: true, connected: true },
        go_on: Some(EVIL.to_owned()),
        destinations: destinations(),
        destinations_failed: None,
    };
    vec![home.render().unwrap(), meeting.render().unwrap(), settings.render().unwrap()]
}

/// The tags of a page, as a browser would read them: quoted values may hold anything but their quote.
fn tags(html: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut rest = html;
    while let Some(at) = rest.find('<') {
        let mut quote: Option<char> = None;
        let end = rest[at..].char_indices().find(|(_, c)| {
            if let Some(open) = quote {
                quote = (*c != open).then_some(open);
                return false;
            }
            quote = matches!(c, '"' | '\'').then_some(*c);
            *c == '>'
        });
        let end = at + end.unwrap_or_else(|| panic!("a tag without an end: {}", &rest[at..])).0;
        found.push(rest[at..=end].to_owned());
        rest = &rest[end + 1..];
    }
    found
}

/// Without what stands in quotes.
fn bare(tag: &str) -> String {
    tag.split('"').step_by(2).collect()
}

#[test]
fn what_strangers_wrote_stays_text() {
    for html in pages() {
        assert!(html.contains("&#60;script&#62;") || html.contains("&lt;script&gt;"), "the test shows nothing: {html}");
        let scripts: Vec<String> = tags(&html).into_iter().filter(|tag| tag.starts_with("<script")).collect();
        assert_eq!(scripts, ["<script type=\"module\" src=\"/app/assets/app.js\">"]);
        for tag in tags(&html) {
            let bare = bare(&tag);
            assert!(!bare.contains("onerror") && !bare.contains("alert"), "{tag}");
            assert!(!tag.starts_with("<img") || tag.contains("src=\"/app/assets/icon.svg\""), "{tag}");
            assert!(!tag.contains("href=\"javascript") && !tag.contains("href=\"data"), "{tag}");
        }
    }
}

#[test]
fn templates_carry_nothing_that_their_policy_would_stop() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("templates/app");
    let mut seen = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        for inline in [
            "<style",
            " style=",
            "<script>",
            " onclick",
            " onsubmit",
            "javascript:",
            "src=\"http",
            "href=\"http",
            "<base",
            "<iframe",
        ] {
            assert!(!text.contains(inline), "{inline} in {}", path.display());
        }
        // One text becomes markup, and it is made of escaped parts.
        let unescaped = text.matches("|safe").count();
        assert_eq!(unescaped, usize::from(path.ends_with("meeting.html")), "{}", path.display());
        seen += 1;
    }
    assert!(seen > 7, "{seen} templates");
}

#[test]
fn every_field_has_a_label() {
    for html in pages() {
        let tags = tags(&html);
        for tag in tags.iter().filter(|tag| tag.starts_with("<input") || tag.starts_with("<select")) {
            let id = tag.split(" id=\"").nth(1).and_then(|rest| rest.split('"').next());
            let is_labelled = tag.contains("type=\"hidden\"")
                || tag.contains("aria-label=")
                || tag.contains("name=\"default\"")
                || id.is_some_and(|id| html.contains(&format!("<label for=\"{id}\"")));
            assert!(is_labelled, "{tag}");
        }
    }
}
