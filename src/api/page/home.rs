//! The first page: the meetings to pick from, and the queue beside them.

use askama::Template;
use axum::extract::Query;
use axum::http::Method;
use axum::http::StatusCode;
use axum::response::Response;
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
use crate::api::page::queue::Panel;
use crate::api::page::queue::read_panel;
use crate::api::page::session::Visitor;
use crate::api::page::views::Meetings;
use crate::error::Code;
use crate::error::Problem;

/// Meetings on one page.
const PAGE: usize = 20;

/// The page.
#[derive(Template)]
#[template(path = "app/home.html")]
pub(super) struct HomePage {
    pub(super) frame: Frame,
    pub(super) list: List,
    pub(super) panel: Panel,
}

/// The meetings that are shown, and where others are.
pub(super) struct List {
    pub(super) meetings: Meetings,
    /// Why there are none, when they could not be had.
    pub(super) failed: Option<String>,
    pub(super) search: String,
    /// The address of this list.
    pub(super) here: String,
    /// The address of the next.
    pub(super) next: Option<String>,
    pub(super) is_first: bool,
}

impl List {
    async fn read(api: &Caller, search: &str, cursor: Option<&str>) -> Result<Self, Problem> {
        let query = |cursor: Option<&str>| {
            let cursor = cursor.map_or_else(String::new, |cursor| format!("&cursor={}", encoded(cursor)));
            format!("search={}{cursor}", encoded(search))
        };
        let read = api.read::<Meetings>(&format!("/api/v1/meetings?limit={PAGE}&{}", asked(search, cursor))).await;
        let (meetings, failed) = match read {
            Ok(meetings) => (meetings, None),
            Err(problem) if matches!(problem.code, Code::Unauthorized | Code::TenantDeleted) => return Err(problem),
            Err(problem) => (Meetings::default(), Some(sentence(&problem))),
        };
        let next = meetings.next_cursor.as_deref().map(|cursor| format!("/app?{}", query(Some(cursor))));
        let here =
            if search.is_empty() && cursor.is_none() { "/app".to_owned() } else { format!("/app?{}", query(cursor)) };
        Ok(Self { meetings, failed, search: search.to_owned(), here, next, is_first: cursor.is_none() })
    }

    fn has_no_key(&self) -> bool {
        self.meetings.sync.state == "no_key"
    }
}

/// What is asked of the API; an empty search is none.
fn asked(search: &str, cursor: Option<&str>) -> String {
    let search = (!search.is_empty()).then(|| format!("search={}", encoded(search)));
    let cursor = cursor.map(|cursor| format!("cursor={}", encoded(cursor)));
    search.into_iter().chain(cursor).collect::<Vec<_>>().join("&")
}

/// Shows it.
pub(super) async fn home(visitor: Visitor, Query(params): Params) -> Response {
    let search = params.get("search").map_or("", |text| text.trim());
    let cursor = params.get("cursor").map(String::as_str).filter(|cursor| !cursor.is_empty());
    let (list, panel) = tokio::join!(List::read(&visitor.api, search, cursor), read_panel(&visitor.api));
    let (list, panel) = match (list, panel) {
        (Ok(list), Ok(panel)) => (list, panel),
        (Err(problem), _) | (_, Err(problem)) => return layout::failure(&problem),
    };
    let notice = Notice::said(params.get("said").map(String::as_str));
    let frame = Frame::new("Meetings", &visitor.principal.email, notice);
    layout::page(StatusCode::OK, &HomePage { frame, list, panel })
}

/// Looks for new meetings.
pub(super) async fn sync(visitor: Visitor, fields: Fields) -> Response {
    match visitor.api.send::<Value>(Method::POST, "/api/v1/meetings/sync", json!({})).await {
        Ok(_) => layout::back(fields.page(), "syncing"),
        Err(problem) => layout::failure(&problem),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_searched_is_asked_for_and_nothing_else() {
        assert_eq!(asked("", None), "");
        assert_eq!(asked("a&b", Some("c=")), "search=a%26b&cursor=c%3D");
    }
}
