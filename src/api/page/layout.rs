//! What all pages share: the frame with the menu, the notice on top, the headers, and the page that says what failed.

use askama::Template;
use axum::http::HeaderValue;
use axum::http::StatusCode;
use axum::http::header;
use axum::response::Html;
use axum::response::IntoResponse;
use axum::response::Redirect;
use axum::response::Response;

use crate::api::error::status_of;
use crate::error::Code;
use crate::error::Problem;

/// Everything from here, nothing inline, no frames.
pub(super) const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
                                 img-src 'self' data:; form-action 'self'; frame-ancestors 'none'; base-uri 'none'";

/// What stands around a page.
#[derive(Debug, Clone, Default)]
pub(super) struct Frame {
    /// The name of the page.
    pub(super) title: &'static str,
    /// Who is signed in; empty for nobody, which also leaves the menu out.
    pub(super) who: String,
    /// What just happened.
    pub(super) notice: Option<Notice>,
}

impl Frame {
    pub(super) fn new(title: &'static str, who: &str, notice: Option<Notice>) -> Self {
        Self { title, who: who.to_owned(), notice }
    }

    /// For the menu: which of its entries this page is.
    pub(super) fn is(&self, title: &str) -> bool {
        self.title == title
    }
}

/// Words that say what was not done.
const FAILURES: [&str; 3] = ["fathom-declined", "fathom-stray", "fathom-failed"];

/// One sentence on top of a page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Notice {
    pub(super) is_error: bool,
    pub(super) text: String,
}

impl Notice {
    /// Why something was not done.
    pub(super) fn problem(problem: &Problem) -> Self {
        Self { is_error: true, text: sentence(problem) }
    }

    /// The sentence for a word in the address, where the redirect after a change puts it. Only words that are listed
    /// here mean something, so an address cannot make the page say what its author likes.
    pub(super) fn said(word: Option<&str>) -> Option<Self> {
        let text = match word? {
            "welcome" => "Welcome. Your account and your own database are ready.",
            "key-saved" => "The key is stored, encrypted.",
            "key-deleted" => "The key is deleted.",
            "syncing" => "Looking for new meetings.",
            "queued" => "Added to the queue.",
            "already-queued" => "Those are in the queue already.",
            "cancelled" => "Cancelled.",
            "retried" => "Queued again.",
            "moved" => "Moved to the front.",
            "paused" => "The queue is paused: what runs is finished, nothing new starts.",
            "resumed" => "The queue goes on.",
            "link-taken" => "Thank you. The link is being checked.",
            "destination-added" => "The destination is added.",
            "destination-default" => "That is the default destination now.",
            "destination-deleted" => "The destination is deleted.",
            "destination-works" => "The destination answered: it can be used.",
            "fathom-connected" => "Fathom is connected. Your meetings are being fetched.",
            "fathom-disconnected" => "Fathom is disconnected.",
            "fathom-declined" => "Fathom is not connected: it was not agreed to there.",
            "fathom-stray" => "This sign-in at Fathom is over, or was begun elsewhere. Connect again.",
            "fathom-failed" => "Fathom is not connected: it did not answer as it should. Connect again.",
            "backup-begun" => "The backup is being taken. It appears here when it is whole.",
            "restore-begun" => "The backup is being tried and then takes the place of your data.",
            "account-deleted" => "Your account is deleted. Sign in again to have it back, until it is erased.",
            "account-back" => "Your account is back as it was.",
            "signed-out" => "You are signed out.",
            _ => return None,
        };
        Some(Self { is_error: word.is_some_and(|word| FAILURES.contains(&word)), text: text.to_owned() })
    }
}

/// A problem as a sentence for a person, with what is wrong with which field.
pub(super) fn sentence(problem: &Problem) -> String {
    let mut text = match problem.code {
        Code::Unauthorized => "You are not signed in any more.".to_owned(),
        Code::NotFound => "That is not there (any more).".to_owned(),
        Code::ValidationFailed => "Please check what you entered.".to_owned(),
        _ => capitalised(&problem.message),
    };
    for (field, what) in problem.details.as_object().into_iter().flatten() {
        if let Some(message) = what.get("message").and_then(serde_json::Value::as_str) {
            text.extend([" ", &capitalised_word(field), ": ", &capitalised(message)]);
        }
    }
    if let Some(seconds) = problem.retry_after_seconds() {
        text.extend([" Try again in ", &seconds.to_string(), " s."]);
    }
    text
}

fn capitalised_word(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| first.to_uppercase().chain(chars).collect())
}

fn capitalised(text: &str) -> String {
    let text = capitalised_word(text);
    if text.ends_with(['.', '!', '?']) { text } else { format!("{text}.") }
}

/// A page as an answer. Pages are personal: nobody keeps a copy.
pub(super) fn page(status: StatusCode, template: &impl Template) -> Response {
    match template.render() {
        Ok(html) => {
            let headers = [
                (header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY)),
                (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
                // Without a referrer browsers would call the origin of our own forms `null`.
                (header::REFERRER_POLICY, HeaderValue::from_static("same-origin")),
            ];
            (status, headers, Html(html)).into_response()
        }
        Err(error) => {
            tracing::error!(%error, "a page cannot be rendered");
            (StatusCode::INTERNAL_SERVER_ERROR, Html("<!doctype html><title>Error</title>")).into_response()
        }
    }
}

/// The page for what has no page of its own to be shown on.
#[derive(Template)]
#[template(path = "app/failure.html")]
struct Failure {
    frame: Frame,
}

/// A problem as a page; who is not signed in goes to the sign-in.
pub(super) fn failure(problem: &Problem) -> Response {
    if problem.code == Code::Unauthorized {
        return Redirect::to("/app/sign-in").into_response();
    }
    // The one page that a deleted account has.
    if problem.code == Code::TenantDeleted {
        return Redirect::to("/app/account").into_response();
    }
    let frame = Frame::new("That did not work", "", Some(Notice::problem(problem)));
    page(status_of(problem.code), &Failure { frame })
}

/// After a change: back to a page, which says it.
pub(super) fn back(path: &str, word: &str) -> Response {
    let mark = if path.contains('?') { '&' } else { '?' };
    Redirect::to(&format!("{path}{mark}said={word}")).into_response()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn problems_are_told_in_whole_sentences() {
        let problem = Problem::new(Code::ValidationFailed)
            .details(json!({"password": {"code": "x", "message": "Must be at least 8 character(s)."}, "limit": 3}));
        assert_eq!(sentence(&problem), "Please check what you entered. Password: Must be at least 8 character(s).");
        let problem = Problem::new(Code::RateLimited).retry_after(std::time::Duration::from_secs(7));
        assert_eq!(sentence(&problem), "Too many attempts; wait as long as Retry-After says. Try again in 7 s.");
    }

    #[test]
    fn an_address_cannot_make_the_page_say_anything() {
        assert_eq!(Notice::said(Some("<script>")), None);
        assert!(Notice::said(Some("queued")).is_some_and(|notice| !notice.is_error));
    }

    #[test]
    fn a_failure_is_a_page_under_the_policy() {
        let answer = failure(&Problem::new(Code::Conflict).message("<b> is not possible"));
        assert_eq!(answer.status(), 409);
        assert_eq!(answer.headers()["cache-control"], "no-store");
        assert_eq!(answer.headers()["content-security-policy"], POLICY);
        assert!(!POLICY.contains("unsafe"));
        assert_eq!(failure(&Problem::new(Code::Unauthorized)).headers()["location"], "/app/sign-in");
    }
}
