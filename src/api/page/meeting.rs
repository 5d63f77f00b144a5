//! One meeting: its summary, what is to be done, what was said, and the files that were made of it.

use askama::Template;
use axum::extract::Path;
use axum::extract::Query;
use axum::http::StatusCode;
use axum::response::Response;

use crate::api::page::Params;
use crate::api::page::api::encoded;
use crate::api::page::layout;
use crate::api::page::layout::Frame;
use crate::api::page::layout::Notice;
use crate::api::page::queue::Panel;
use crate::api::page::queue::read_panel;
use crate::api::page::session::Visitor;
use crate::api::page::views::Artifact;
use crate::api::page::views::Items;
use crate::api::page::views::Whole;

#[derive(Template)]
#[template(path = "app/meeting.html")]
pub(super) struct MeetingPage {
    pub(super) frame: Frame,
    pub(super) whole: Whole,
    pub(super) artifacts: Vec<Artifact>,
    /// What the queue does with it.
    pub(super) panel: Panel,
    pub(super) here: String,
}

/// Shows it.
pub(super) async fn meeting(visitor: Visitor, Path(recording): Path<String>, Query(params): Params) -> Response {
    let name = encoded(&recording);
    let api = &visitor.api;
    let (files, whole) = (format!("/api/v1/meetings/{name}/artifacts"), format!("/api/v1/meetings/{name}"));
    let (whole, artifacts, panel) =
        tokio::join!(api.read::<Whole>(&whole), api.read::<Items<Artifact>>(&files), read_panel(api),);
    let mut whole = match whole {
        Ok(whole) => whole,
        Err(problem) => return layout::failure(&problem),
    };
    let known = whole.artifacts.take().unwrap_or_default();
    let artifacts = artifacts.map_or(known, |found| found.items);
    let panel = panel.map(|panel| panel.of(&whole.meeting.recording_id)).unwrap_or_default();
    for delivery in whole.deliveries.iter_mut().flatten() {
        let known = panel.destinations.iter().find(|known| delivery.destination.as_ref() == Some(&known.id));
        if let Some(known) = known {
            delivery.destination = Some(known.name.clone());
        }
    }
    let notice = Notice::said(params.get("said").map(String::as_str));
    let frame = Frame::new("Meeting", &visitor.principal.email, notice);
    let here = format!("/app/meetings/{name}");
    layout::page(StatusCode::OK, &MeetingPage { frame, whole, artifacts, panel, here })
}
