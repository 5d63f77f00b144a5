//! The published calls: who may, within which budget, and what they answer.

use std::sync::Arc;
use std::time::Instant;

use axum::Json;
use axum::Router;
use axum::body::Body;
use axum::body::to_bytes;
use axum::extract::Path;
use axum::extract::Request;
use axum::extract::State;
use axum::response::IntoResponse;
use axum::response::Response;
use axum::routing::get;
use axum::routing::post;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hyper::HeaderMap;
use hyper::Method;
use hyper::StatusCode;
use hyper::header;
use serde_json::Value;
use serde_json::json;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::content;
use crate::control;
use crate::downloads;
use crate::faults;
use crate::faults::Kind;
use crate::hooks;
use crate::oauth;
use crate::world::Cost;
use crate::world::Left;
use crate::world::Meeting;
use crate::world::World;

/// Pages have this size; there is no parameter for it.
const PAGE: usize = 10;

/// Everything that it serves.
pub(crate) fn router(world: Arc<World>) -> Router {
    Router::new()
        .route("/external/v1/oauth2/authorize", get(oauth::authorize))
        .route("/external/v1/oauth2/token", post(oauth::token))
        .route("/external/v1/{*path}", axum::routing::any(call))
        .route("/media/{name}", get(downloads::media))
        .nest("/_control", control::router())
        .with_state(world)
}

/// An answer: a value, or a refusal.
pub(crate) type Answer = Result<(StatusCode, Value), Refusal>;

/// A status and a text, which nobody may rely on.
pub(crate) struct Refusal(pub(crate) StatusCode, pub(crate) &'static str);

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        (self.0, Json(json!({ "error": self.1 }))).into_response()
    }
}

/// A call, taken apart.
pub(crate) struct Call {
    pub(crate) key: String,
    pub(crate) is_oauth: bool,
    pub(crate) method: Method,
    pub(crate) segments: Vec<String>,
    pub(crate) query: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Call {
    pub(crate) fn one(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }

    fn all(&self, name: &str) -> Vec<&str> {
        self.query.iter().filter(|(found, _)| found == name).map(|(_, value)| value.as_str()).collect()
    }

    fn has(&self, name: &str) -> bool {
        self.one(name) == Some("true")
    }

    fn cost(&self) -> Cost {
        let segments: Vec<&str> = self.segments.iter().map(String::as_str).collect();
        match segments.as_slice() {
            ["recordings", _, "summary" | "transcript"] => Cost::Heavy,
            ["recordings", _, "download"] => Cost::Download,
            ["meetings"] if self.has("include_summary") || self.has("include_transcript") => Cost::Heavy,
            _ => Cost::Plain,
        }
    }
}

async fn call(State(world): State<Arc<World>>, Path(path): Path<String>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let query = parts.uri.query().unwrap_or_default();
    let url = reqwest::Url::parse(&format!("http://standin/?{query}"));
    let query = url.map(|url| url.query_pairs().into_owned().collect()).unwrap_or_default();
    let Ok(body) = to_bytes(body, 1 << 20).await else { return StatusCode::PAYLOAD_TOO_LARGE.into_response() };
    let fault = {
        let mut state = world.state();
        *state.calls.entry(format!("{} /{}", parts.method, shape(&path))).or_default() += 1;
        faults::due(&mut state.faults, parts.method.as_str(), &format!("/{path}"))
    };
    faults::wait(fault.as_ref()).await;
    if let Some(response) = fault.as_ref().and_then(|kind| faults::instead(kind, &world.base)) {
        return response;
    }
    let Some((key, is_oauth)) = caller(&world, &parts.headers) else {
        return Refusal(StatusCode::UNAUTHORIZED, "no valid key").into_response();
    };
    let segments = path.split('/').map(str::to_owned).collect();
    let call = Call { key, is_oauth, method: parts.method, segments, query, body: body.to_vec() };
    let left = world.state().spend(&call.key, call.cost(), Instant::now());
    if left.is_over {
        let mut response = Refusal(StatusCode::TOO_MANY_REQUESTS, "slow down").into_response();
        response.headers_mut().insert(header::RETRY_AFTER, left.reset.into());
        say(&mut response, left);
        return response;
    }
    let mut response = match answer(&world, &call, fault.as_ref()) {
        Ok((status, mut value)) => {
            if let Some(fault) = &fault {
                faults::change(fault, &mut value);
            }
            finish(status, &value, fault.as_ref())
        }
        Err(refusal) => refusal.into_response(),
    };
    say(&mut response, left);
    response
}

fn finish(status: StatusCode, value: &Value, fault: Option<&Kind>) -> Response {
    if matches!(fault, Some(Kind::ShortBody)) {
        let text = value.to_string();
        let half = text.len() / 2;
        return faults::cut(text.as_bytes()[..half].to_vec().into(), text.len() - half);
    }
    match value {
        Value::Null => status.into_response(),
        value => (status, Json(value)).into_response(),
    }
}

fn say(response: &mut Response<Body>, left: Left) {
    let headers = response.headers_mut();
    headers.insert("RateLimit-Limit", left.limit.into());
    headers.insert("RateLimit-Remaining", left.remaining.into());
    headers.insert("RateLimit-Reset", left.reset.into());
}

/// The path with its ids taken out, for counting.
fn shape(path: &str) -> String {
    let segments: Vec<&str> = path.split('/').collect();
    match segments.as_slice() {
        ["recordings", _, "downloads", _] => "recordings/*/downloads/*".to_owned(),
        ["recordings", _, rest] => format!("recordings/*/{rest}"),
        ["webhooks", _] => "webhooks/*".to_owned(),
        _ => path.to_owned(),
    }
}

fn caller(world: &World, headers: &HeaderMap) -> Option<(String, bool)> {
    let state = world.state();
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    if let Some(key) = text("x-api-key") {
        return state.accounts.contains_key(key).then(|| (key.to_owned(), false));
    }
    let token = text("authorization")?.strip_prefix("Bearer ")?;
    state.grants.key(token, Instant::now()).map(|key| (key.to_owned(), true))
}

fn answer(world: &Arc<World>, call: &Call, fault: Option<&Kind>) -> Answer {
    let segments: Vec<&str> = call.segments.iter().map(String::as_str).collect();
    match (call.method.as_str(), segments.as_slice()) {
        ("GET", ["meetings"]) => meetings(world, call, fault),
        ("GET", ["recordings", id, what @ ("summary" | "transcript")]) => part(world, call, id, what),
        ("POST", ["recordings", id, "download"]) => downloads::request(world, call, id, fault),
        ("GET", ["recordings", id, "downloads", download]) => downloads::poll(world, call, id, download, fault),
        ("GET", [list @ ("teams" | "team_members" | "meeting_types" | "users")]) => {
            let mut items = content::organisation(list, call.one("team"));
            if let Some(status) = call.one("status") {
                items.retain(|item| item["status"] == status);
            }
            if let Some(level) = call.one("settings_access") {
                items.retain(|item| item["permissions"]["settings_access"]["level"] == level);
            }
            page(items, call.one("cursor"), fault)
        }
        ("POST", ["webhooks"]) => hooks::create(world, call),
        ("DELETE", ["webhooks", id]) => hooks::delete(world, call, id),
        _ => Err(Refusal(StatusCode::NOT_FOUND, "no such call")),
    }
}

fn page(items: Vec<Value>, cursor: Option<&str>, fault: Option<&Kind>) -> Answer {
    let number = match cursor {
        None => 1,
        Some(cursor) => number_of(cursor).ok_or(Refusal(StatusCode::BAD_REQUEST, "bad cursor"))?,
    };
    let first = (number - 1) * PAGE;
    let has_more = items.len() > first + PAGE;
    let next = if matches!(fault, Some(Kind::RepeatCursor)) { number.max(2) } else { number + 1 };
    let next_cursor = (has_more || matches!(fault, Some(Kind::RepeatCursor)))
        .then(|| STANDARD.encode(json!({ "page_num": next }).to_string()));
    let items: Vec<Value> = items.into_iter().skip(first).take(PAGE).collect();
    Ok((StatusCode::OK, json!({ "limit": PAGE, "next_cursor": next_cursor, "items": items })))
}

fn number_of(cursor: &str) -> Option<usize> {
    let value: Value = serde_json::from_slice(&STANDARD.decode(cursor).ok()?).ok()?;
    value["page_num"]
        .as_u64()
        .and_then(|number| usize::try_from(number).ok())
        .filter(|number| (1..10_000).contains(number))
}

fn meetings(world: &World, call: &Call, fault: Option<&Kind>) -> Answer {
    if call.is_oauth && call.cost() == Cost::Heavy {
        return Err(Refusal(StatusCode::BAD_REQUEST, "not with OAuth"));
    }
    let instant = |name: &str| match call.one(name) {
        None => Ok(None),
        Some(text) => {
            OffsetDateTime::parse(text, &Rfc3339).map(Some).map_err(|_| Refusal(StatusCode::BAD_REQUEST, "bad time"))
        }
    };
    let (after, before) = (instant("created_after")?, instant("created_before")?);
    let domains_type = call.one("calendar_invitees_domains_type").filter(|kind| *kind != "all");
    if domains_type.is_some_and(|kind| !matches!(kind, "only_internal" | "one_or_more_external")) {
        return Err(Refusal(StatusCode::BAD_REQUEST, "bad calendar_invitees_domains_type"));
    }
    let (owners, teams) = (call.all("recorded_by[]"), call.all("teams[]"));
    let domains = call.all("calendar_invitees_domains[]");
    let is_one_of = |wanted: &[&str], value: &Value| wanted.is_empty() || wanted.iter().any(|one| value == *one);
    let state = world.state();
    let account = state.accounts.get(&call.key).ok_or(Refusal(StatusCode::UNAUTHORIZED, "no such key"))?;
    let is_asked_for = |meeting: &&Meeting| {
        let (made, value) = (&meeting.made, &meeting.made.value);
        let invitees = value["calendar_invitees"].as_array();
        // Times go out in whole seconds, so that is what is compared.
        let at = made.created_at.replace_nanosecond(0).unwrap_or(made.created_at);
        after.is_none_or(|after| at > after)
            && before.is_none_or(|before| at < before)
            && is_one_of(&owners, &value["recorded_by"]["email"])
            && is_one_of(&teams, &value["recorded_by"]["team"])
            && call.one("meeting_type").is_none_or(|kind| value["meeting_type"] == kind)
            && domains_type.is_none_or(|kind| value["calendar_invitees_domains_type"] == kind)
            && (domains.is_empty()
                || invitees.is_some_and(|all| all.iter().any(|one| is_one_of(&domains, &one["email_domain"]))))
    };
    let items = account.meetings.iter().filter(is_asked_for).map(|meeting| included(meeting, call)).collect();
    page(items, call.one("cursor"), fault)
}

/// What is only there when asked for.
const OPTIONAL: [(&str, &str); 5] = [
    ("include_transcript", "transcript"),
    ("include_summary", "default_summary"),
    ("include_action_items", "action_items"),
    ("include_crm_matches", "crm_matches"),
    ("include_highlights", "highlights"),
];

fn included(meeting: &Meeting, call: &Call) -> Value {
    let mut value = meeting.made.value.clone();
    for (flag, field) in OPTIONAL {
        // The document has both: some fields are null unless asked for, the younger ones are missing.
        match (call.has(flag), field) {
            (true, _) => {}
            (false, "highlights") => drop(value.as_object_mut().and_then(|object| object.remove(field))),
            (false, _) => value[field] = Value::Null,
        }
    }
    value
}

fn part(world: &Arc<World>, call: &Call, id: &str, what: &str) -> Answer {
    let value = {
        let state = world.state();
        let id = id.parse().map_err(|_| Refusal(StatusCode::BAD_REQUEST, "bad id"))?;
        let meeting = state.meeting(&call.key, id).ok_or(Refusal(StatusCode::NOT_FOUND, "no such recording"))?;
        match what {
            "summary" => json!({ "summary": meeting.made.value["default_summary"] }),
            _ => json!({ "transcript": meeting.made.value["transcript"] }),
        }
    };
    match call.one("destination_url") {
        None => Ok((StatusCode::OK, value)),
        Some(url) => {
            hooks::send(world, &call.key, url, &value, None);
            Ok((StatusCode::OK, json!({ "destination_url": url })))
        }
    }
}
