//! `/app`: the page for people. Sign in, store the Fathom key, pick meetings, watch them being delivered.
//!
//! Server-rendered: every button is a form that works without scripts; scripts only spare the reload and listen to
//! `/queue_updates` for positions and progress. The page is a client of the API in this process (see [`api`]), holds
//! no state and has no rights of its own. Everything it shows of others is escaped by the templates; the one text
//! that becomes markup goes through [`markdown`].
//!
//! Deliberately absent: the token in any address or markup (it is in a cookie that scripts cannot read), anything
//! from other hosts, and anything inline, which the policy of [`layout`] refuses. The `OpenAPI` document leaves these
//! addresses out: they are for browsers, and programs use the API.

mod accounts;
mod api;
mod assets;
mod home;
mod layout;
mod markdown;
mod meeting;
mod queue;
mod session;
mod settings;
#[cfg(test)]
mod tests;
mod views;

use std::collections::HashMap;

use axum::Router;
use axum::extract::Query;
use axum::middleware::from_fn;
use axum::middleware::from_fn_with_state;
use axum::response::IntoResponse;
use axum::response::Redirect;
use axum::response::Response;
use axum::routing::get;
use axum::routing::post;

use crate::api::page::api::Api;
use crate::auth::Verifier;
use crate::error::Code;
use crate::error::Problem;

/// What the page needs.
#[derive(Clone)]
struct PageState {
    api: Api,
    verifier: Verifier,
}

/// The routes, on the API that they ask.
pub(super) fn router(api: Router, verifier: Verifier) -> Router {
    let state = PageState { api: Api::new(api), verifier };
    Router::new()
        .route("/app", get(home::home))
        .route("/app/", get(async || Redirect::permanent("/app")))
        .route("/app/sync", post(home::sync))
        .route("/app/sign-in", get(accounts::sign_in_page).post(accounts::sign_in))
        .route("/app/register", get(accounts::register_page).post(accounts::register))
        .route("/app/sign-out", post(accounts::sign_out))
        .route("/app/meetings/{recording}", get(meeting::meeting))
        .route("/app/queue", get(queue::queue).post(queue::add))
        .route("/app/queue/panel", get(queue::panel))
        .route("/app/queue/pause", post(queue::pause))
        .route("/app/queue/resume", post(queue::resume))
        .route("/app/queue/{id}/video", get(queue::video))
        .route("/app/queue/{id}/cancel", post(queue::cancel))
        .route("/app/queue/{id}/retry", post(queue::retry))
        .route("/app/queue/{id}/front", post(queue::to_front))
        .route("/app/queue/{id}/share-link", post(queue::share_link))
        .route("/app/settings", get(settings::settings))
        .route("/app/keys", post(settings::put_key))
        .route("/app/keys/{id}/delete", post(settings::delete_key))
        .route("/app/destinations", post(settings::add_destination))
        .route("/app/destinations/{id}/default", post(settings::make_default))
        .route("/app/destinations/{id}/check", post(settings::check_destination))
        .route("/app/destinations/{id}/delete", post(settings::delete_destination))
        .route("/app/assets/{name}", get(assets::asset))
        .route("/app/{*rest}", get(absent))
        .layer(from_fn_with_state(state.clone(), accounts::renewing))
        .layer(from_fn(session::same_origin))
        .with_state(state)
}

async fn absent() -> Response {
    layout::failure(&Problem::new(Code::NotFound))
}

/// The parameters of an address.
type Params = Query<HashMap<String, String>>;

/// What was filled in, in the order of the form; a name may come more than once.
#[derive(Debug)]
struct Fields(Vec<(String, String)>);

impl Fields {
    /// The first of a name, without the blanks around it; empty when absent.
    fn text(&self, name: &str) -> &str {
        self.0.iter().find(|(field, _)| field == name).map_or("", |(_, value)| value.trim())
    }

    /// The first of a name as it was typed: a password may begin with a blank.
    fn exact(&self, name: &str) -> &str {
        self.0.iter().find(|(field, _)| field == name).map_or("", |(_, value)| value)
    }

    /// All of a name.
    fn all<'a>(&'a self, name: &str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(field, _)| field == name).map(|(_, value)| value.trim())
    }

    /// Which page of ours the form stands on; the first page when it does not say so properly.
    fn page(&self) -> &str {
        let path = self.text("page");
        let is_ours = path == "/app" || path.starts_with("/app/") || path.starts_with("/app?");
        let is_plain = path.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"/-_?=&%.+".contains(&byte));
        if is_ours && is_plain && !path.contains("//") { path } else { "/app" }
    }
}

impl<S: Send + Sync> axum::extract::FromRequest<S> for Fields {
    type Rejection = Response;

    async fn from_request(request: axum::extract::Request, state: &S) -> Result<Self, Response> {
        match axum::Form::from_request(request, state).await {
            Ok(axum::Form(fields)) => Ok(Self(fields)),
            Err(_) => {
                let problem = Problem::new(Code::InvalidBody).message("this is not what the form of this page sends");
                Err(layout::failure(&problem).into_response())
            }
        }
    }
}

#[cfg(test)]
mod field_tests {
    use super::*;

    #[test]
    fn a_form_leads_back_to_pages_of_ours_only() {
        let back = |page: &str| Fields(vec![("page".to_owned(), page.to_owned())]).page().to_owned();
        for ours in ["/app", "/app/queue", "/app?search=a%20b&cursor=x", "/app/meetings/17"] {
            assert_eq!(back(ours), ours);
        }
        for other in
            ["", "https://evil.example", "//evil.example", "/app//evil.example", "/apple", "/app/\r\nx: y", "/api"]
        {
            assert_eq!(back(other), "/app", "{other}");
        }
    }

    #[test]
    fn fields_are_found_by_name() {
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let fields = Fields(vec![pair("a", " 1 "), pair("a", "2"), pair("b", "")]);
        assert_eq!((fields.text("a"), fields.exact("a"), fields.text("c")), ("1", " 1 ", ""));
        assert_eq!(fields.all("a").collect::<Vec<_>>(), ["1", "2"]);
    }
}
