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

mod account;
mod accounts;
mod api;
mod assets;
mod fields;
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
use axum::extract::DefaultBodyLimit;
use axum::extract::Query;
use axum::middleware::from_fn;
use axum::middleware::from_fn_with_state;
use axum::response::Redirect;
use axum::response::Response;
use axum::routing::get;
use axum::routing::post;

use crate::api::page::api::Api;
use crate::auth::Verifier;
use crate::error::Code;
use crate::error::Problem;

/// Largest form, in bytes.
const LONGEST_FORM: usize = 64 * 1024;

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
        .route("/app/fathom/connect", post(settings::connect_fathom))
        .route("/app/fathom/disconnect", post(settings::disconnect_fathom))
        .route("/app/keys/{id}/delete", post(settings::delete_key))
        .route("/app/destinations", post(settings::add_destination))
        .route("/app/destinations/{id}/default", post(settings::make_default))
        .route("/app/destinations/{id}/check", post(settings::check_destination))
        .route("/app/destinations/{id}/delete", post(settings::delete_destination))
        .route("/app/account", get(account::account))
        .route("/app/account/backups", post(account::back_up))
        .route("/app/account/backups/{id}/download", get(account::download))
        .route("/app/account/backups/{id}/restore", post(account::restore))
        .route("/app/account/delete", post(account::delete))
        .route("/app/account/undelete", post(account::undelete))
        .route("/app/assets/{name}", get(assets::asset))
        .route("/app/{*rest}", get(absent))
        .layer(from_fn_with_state(state.clone(), accounts::renewing))
        .layer(DefaultBodyLimit::max(LONGEST_FORM))
        .layer(from_fn(session::same_origin))
        .with_state(state)
}

async fn absent() -> Response {
    layout::failure(&Problem::new(Code::NotFound))
}

/// The parameters of an address.
type Params = Query<HashMap<String, String>>;
