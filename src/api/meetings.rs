//! The caller's meetings: listed, searched, shown, refreshed. They come from Fathom, with the caller's own key from the
//! vault, and are kept in the caller's own instance, where the SDK reads them too (collection `meetings`).

use axum::Json;
use axum::extract::Path;
use axum::extract::State;
use axum::http::HeaderName;
use axum::http::HeaderValue;
use axum::http::StatusCode;
use axum::response::IntoResponse;
use axum::response::Response;
use serde::Deserialize;
use serde::Serialize;
use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use utoipa::IntoParams;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::api::AppState;
use crate::api::error::ApiError;
use crate::api::extractors::AuthUser;
use crate::api::json::Params;
use crate::api::json::invalid_field;
use crate::error::Code;
use crate::error::Problem;
use crate::ids::TenantId;
use crate::meetings::Cursor;
use crate::meetings::DEFAULT_LIMIT;
use crate::meetings::DeliveryView;
use crate::meetings::Filter;
use crate::meetings::MAX_LIMIT;
use crate::meetings::MAX_SEARCH_CHARS;
use crate::meetings::MeetingView;
use crate::meetings::Meetings;
use crate::meetings::State as ListState;
use crate::meetings::SyncView;
use crate::meetings::Whole;
use crate::tenancy::Tenancy;

/// How the cache of meetings was used (RFC 9211).
const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");

/// The routes, relative to where they are mounted.
pub fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(list_meetings)).routes(routes!(sync_meetings)).routes(routes!(show_meeting))
}

/// Which meetings.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct Wanted {
    /// Words that stand in title, summary or transcript, all of them. `"…"` keeps words together, the last word may be
    /// the beginning of one; nothing else is special.
    search: Option<String>,
    /// Only meetings that appeared after this (RFC 3339).
    created_after: Option<String>,
    /// Only meetings that appeared before this (RFC 3339).
    created_before: Option<String>,
    /// Only meetings that this e-mail address recorded.
    recorded_by: Option<String>,
    /// Only meetings with, or without, a summary.
    has_summary: Option<bool>,
    /// Go on behind this: the `next_cursor` of the page before.
    cursor: Option<String>,
    /// Most items, 1 to 100; 25 unless given.
    limit: Option<usize>,
}

fn instant(field: &'static str, text: Option<&str>) -> Result<Option<OffsetDateTime>, Problem> {
    let Some(text) = text.filter(|text| !text.is_empty()) else { return Ok(None) };
    let parsed = OffsetDateTime::parse(text, &Rfc3339);
    parsed.map(Some).map_err(|_| invalid_field(field, "invalid_date", "must be a time such as 2026-03-01T12:00:00Z"))
}

impl Wanted {
    fn filter(self) -> Result<Filter, ApiError> {
        let limit = self.limit.unwrap_or(DEFAULT_LIMIT);
        if !(1..=MAX_LIMIT).contains(&limit) {
            return Err(invalid_field("limit", "out_of_range", "must be 1 to 100").into());
        }
        if self.search.as_ref().is_some_and(|search| search.chars().count() > MAX_SEARCH_CHARS) {
            return Err(invalid_field("search", "too_long", "must be 400 characters at most").into());
        }
        Ok(Filter {
            search: self.search,
            created_after: instant("created_after", self.created_after.as_deref())?,
            created_before: instant("created_before", self.created_before.as_deref())?,
            recorded_by: self.recorded_by.filter(|email| !email.trim().is_empty()),
            has_summary: self.has_summary,
            cursor: self.cursor.filter(|text| !text.is_empty()).map(|text| Cursor::decode(&text)).transpose()?,
            limit,
        })
    }
}

/// What became of a meeting.
#[derive(Serialize, ToSchema)]
struct MeetingDelivery {
    /// `delivering`, `awaiting_upload`, `delivered`, `failed` or `cancelled`.
    #[schema(example = "delivered")]
    state: String,
    /// Id of the destination.
    destination: String,
    /// Where it is now.
    url: Option<String>,
    /// The job.
    job: Option<String>,
}

fn text(value: String) -> Option<String> {
    Some(value).filter(|value| !value.is_empty())
}

impl MeetingDelivery {
    fn of(view: DeliveryView) -> Self {
        Self { state: view.state, destination: view.destination, url: text(view.url), job: text(view.job) }
    }
}

/// A meeting in a list.
#[derive(Serialize, ToSchema)]
struct MeetingItem {
    /// Fathom's number of the recording.
    recording_id: u64,
    title: String,
    /// When it appeared at Fathom.
    #[schema(format = DateTime)]
    created_at: Option<String>,
    #[schema(format = DateTime)]
    started_at: Option<String>,
    duration_seconds: u64,
    /// Its page at Fathom for its owner.
    url: Option<String>,
    /// Its page at Fathom for everybody who has the link.
    share_url: Option<String>,
    /// `{name, email, email_domain, team}`
    recorded_by: Value,
    /// `[{name, email, email_domain, is_external}]`
    invitees: Value,
    /// How the summary begins, in Markdown.
    summary_excerpt: Option<String>,
    /// Plain text around the words that were searched for, which stand between `**`.
    snippet: Option<String>,
    has_transcript: bool,
    /// What became of it last.
    delivery: Option<MeetingDelivery>,
}

impl MeetingItem {
    fn of(view: MeetingView) -> Self {
        Self {
            created_at: view.created_at(),
            started_at: view.started_at(),
            recording_id: view.recording_id.parse().unwrap_or_default(),
            title: view.title,
            duration_seconds: view.duration_seconds,
            url: text(view.url),
            share_url: text(view.share_url),
            recorded_by: view.recorded_by,
            invitees: view.invitees,
            summary_excerpt: text(view.summary_excerpt),
            snippet: view.snippet.and_then(text),
            has_transcript: view.has_transcript,
            delivery: view.delivery.map(MeetingDelivery::of),
        }
    }
}

/// How the list itself stands.
#[derive(Serialize, ToSchema)]
struct SyncStatus {
    /// `fresh`, `stale` (shown while it is refreshed), `syncing`, `never`, `failed` or `no_key`.
    #[schema(value_type = String, example = "fresh")]
    state: &'static str,
    /// When it was whole last.
    #[schema(format = DateTime)]
    synced_at: Option<String>,
    /// Why it is not fresh, and what to do.
    error: Option<String>,
}

impl SyncStatus {
    fn of(view: SyncView) -> Self {
        Self { state: view.state.as_str(), synced_at: view.synced_at, error: view.error }
    }
}

/// A page of meetings.
#[derive(Serialize, ToSchema)]
struct MeetingList {
    /// The newest first.
    items: Vec<MeetingItem>,
    /// Ask again with `cursor` = this for the next page; null on the last one.
    next_cursor: Option<String>,
    sync: SyncStatus,
}

/// A refresh that was asked for.
#[derive(Serialize, ToSchema)]
struct SyncStarted {
    sync: SyncStatus,
}

/// A meeting with all that is known of it.
#[derive(Serialize, ToSchema)]
struct WholeMeeting {
    /// Fathom's number of the recording.
    recording_id: u64,
    /// The record's id in the collection `meetings` of the caller's own instance.
    record_id: String,
    title: String,
    #[schema(format = DateTime)]
    created_at: Option<String>,
    #[schema(format = DateTime)]
    started_at: Option<String>,
    #[schema(format = DateTime)]
    ended_at: Option<String>,
    duration_seconds: u64,
    language: Option<String>,
    url: Option<String>,
    share_url: Option<String>,
    recorded_by: Value,
    invitees: Value,
    /// In Markdown.
    summary: Option<String>,
    /// `[{description, completed, user_generated, recording_timestamp, recording_playback_url, assignee}]`
    action_items: Value,
    has_transcript: bool,
    /// `[{speaker: {display_name}, text, timestamp}]`; null when there is none.
    transcript: Value,
    /// What became of it, for each destination.
    deliveries: Vec<Value>,
    /// What was made of it.
    artifacts: Vec<Value>,
}

/// Fields of records that a person has no use for.
const INTERNAL: [&str; 5] = ["collectionId", "collectionName", "meeting", "file", "expand"];

/// A record as our API shows it: without what is `PocketBase`'s own, and with times by RFC 3339.
fn tidy(mut record: Value) -> Value {
    if let Some(fields) = record.as_object_mut() {
        for name in INTERNAL {
            fields.remove(name);
        }
        for (name, value) in fields.iter_mut() {
            if let Some(at) = value.as_str().filter(|_| name.ends_with("_at") || name == "created" || name == "updated")
            {
                *value = if at.is_empty() { Value::Null } else { at.replacen(' ', "T", 1).into() };
            }
        }
    }
    record
}

impl WholeMeeting {
    fn of(whole: Whole) -> Self {
        let mut meeting = tidy(whole.meeting);
        let mut take = |name: &str| meeting.get_mut(name).map(Value::take).unwrap_or_default();
        let string = |value: Value| value.as_str().map(str::to_owned);
        let optional = |value: Value| string(value).and_then(text);
        Self {
            recording_id: string(take("recording_id")).and_then(|id| id.parse().ok()).unwrap_or_default(),
            record_id: string(take("id")).unwrap_or_default(),
            title: string(take("title")).unwrap_or_default(),
            created_at: optional(take("created_at")),
            started_at: optional(take("started_at")),
            ended_at: optional(take("ended_at")),
            duration_seconds: take("duration_seconds").as_u64().unwrap_or_default(),
            language: optional(take("language")),
            url: optional(take("url")),
            share_url: optional(take("share_url")),
            recorded_by: take("recorded_by"),
            invitees: take("invitees"),
            summary: optional(take("summary")),
            action_items: take("action_items"),
            has_transcript: take("has_transcript").as_bool().unwrap_or_default(),
            transcript: take("transcript"),
            deliveries: whole.deliveries.into_iter().map(tidy).collect(),
            artifacts: whole.artifacts.into_iter().map(tidy).collect(),
        }
    }
}

/// The caller's own tenant, which is made if they have none yet.
pub(super) async fn own_tenant(tenancy: &Tenancy, user: &AuthUser) -> Result<TenantId, ApiError> {
    match tenancy.personal(&user.principal.user) {
        Some(tenant) => Ok(tenant),
        None => Ok(tenancy.ensure_personal(&user.principal.user).await?),
    }
}

/// Lists the caller's meetings, the newest first, from what is kept; `sync` says how fresh that is. When it is older than
/// the operator's limit (5 minutes unless changed), a refresh begins behind the answer. `Cache-Status` says the same in
/// the words of RFC 9211.
#[utoipa::path(get, path = "/meetings", tag = "meetings", security(("bearer" = [])), params(Wanted),
    responses((status = 200, description = "A page of meetings.", body = MeetingList,
        headers(("Cache-Status" = String, description = "`hit` with `ttl`, `fwd=miss` or `fwd=stale`.")))))]
async fn list_meetings(
    State(meetings): State<Meetings>,
    State(tenancy): State<Tenancy>,
    user: AuthUser,
    Params(wanted): Params<Wanted>,
) -> Result<Response, ApiError> {
    let filter = wanted.filter()?;
    let tenant = own_tenant(&tenancy, &user).await?;
    let listing = meetings.page(&tenant, &filter, OffsetDateTime::now_utc()).await?;
    let body = MeetingList {
        items: listing.items.into_iter().map(MeetingItem::of).collect(),
        next_cursor: listing.next.map(|next| next.encode()),
        sync: SyncStatus::of(listing.sync),
    };
    let mut response = Json(body).into_response();
    if let Ok(value) = HeaderValue::from_str(&listing.served.header()) {
        response.headers_mut().insert(CACHE_STATUS, value);
    }
    Ok(response)
}

/// Begins a refresh now, however fresh the list is: the whole list is read again. One at a time: while one is under way
/// it is that one, and what it left out is read after.
#[utoipa::path(post, path = "/meetings/sync", tag = "meetings", security(("bearer" = [])),
    responses((status = 202, description = "A refresh is under way.", body = SyncStarted),
        (status = 409, description = "There is no key of Fathom in the vault.", body = crate::api::error::ErrorBody)))]
async fn sync_meetings(
    State(meetings): State<Meetings>,
    State(tenancy): State<Tenancy>,
    user: AuthUser,
) -> Result<(StatusCode, Json<SyncStarted>), ApiError> {
    let tenant = own_tenant(&tenancy, &user).await?;
    let now = OffsetDateTime::now_utc();
    let mut sync = meetings.sync_state(&tenant, now).await?;
    if sync.state == ListState::NoKey {
        return Err(Problem::new(Code::FathomKeyMissing).into());
    }
    if !meetings.sync_all(&tenant) {
        return Err(Problem::new(Code::Overloaded).retry_after(std::time::Duration::from_secs(5)).into());
    }
    sync.state = ListState::Syncing;
    sync.error = None;
    Ok((StatusCode::ACCEPTED, Json(SyncStarted { sync: SyncStatus::of(sync) })))
}

/// Shows one meeting with its summary, transcript and action items, and what became of it. A summary or transcript that
/// is missing is asked for first, as long as Fathom is quick.
#[utoipa::path(get, path = "/meetings/{recording_id}", tag = "meetings", security(("bearer" = [])),
    params(("recording_id" = u64, Path, description = "Fathom's number of the recording.")),
    responses((status = 200, description = "The meeting.", body = WholeMeeting)))]
async fn show_meeting(
    State(meetings): State<Meetings>,
    State(tenancy): State<Tenancy>,
    user: AuthUser,
    Path(recording_id): Path<String>,
) -> Result<Json<WholeMeeting>, ApiError> {
    let recording_id: u64 = recording_id.parse().map_err(|_| Problem::new(Code::NotFound))?;
    let tenant = own_tenant(&tenancy, &user).await?;
    let whole = meetings.one(&tenant, recording_id, OffsetDateTime::now_utc()).await?;
    Ok(Json(WholeMeeting::of(whole)))
}
