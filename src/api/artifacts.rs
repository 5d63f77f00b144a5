//! The files of deliveries: which there are of a recording, and the bytes of those that are here.
//!
//! A download is let in by a signed link alone, so that a link works in a player or a download manager. It serves what is
//! staged for a hand-off, what lies in this server's folder, and what is small enough to be kept as a record. What lies
//! in a bucket that gives links is elsewhere: the download leads there by a link that is made at that moment.

use std::io::SeekFrom;
use std::path::PathBuf;
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::Path;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::http::HeaderName;
use axum::http::HeaderValue;
use axum::http::StatusCode;
use axum::http::header;
use axum::response::IntoResponse;
use axum::response::Response;
use bytes::Bytes;
use futures_util::Stream;
use futures_util::stream;
use percent_encoding::NON_ALPHANUMERIC;
use percent_encoding::utf8_percent_encode;
use serde::Deserialize;
use serde::Serialize;
use serde_json::Value;
use time::OffsetDateTime;
use tokio::fs::File;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncSeekExt;
use tokio::sync::Semaphore;
use tokio::sync::SemaphorePermit;
use tokio::sync::mpsc;
use utoipa::IntoParams;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::api::AppState;
use crate::api::Services;
use crate::api::destinations::own_tenant;
use crate::api::error::ApiError;
use crate::api::extractors::AuthUser;
use crate::api::json::Params;
use crate::error::Code;
use crate::error::Problem;
use crate::ids::TenantId;
use crate::jobs::deliver::Staging;
use crate::jobs::deliver::ledger;
use crate::jobs::deliver::links::Links;
use crate::jobs::destinations::registry::Destinations;
use crate::jobs::destinations::registry::Target;
use crate::queue::JobId;
use crate::records::Instance;
use crate::records::Records;
use crate::shutdown::Shutdown;
use crate::supervisor::Priority;

const CHUNK: usize = 128 * 1024;
const STAGED: &str = "staging:";
const BUCKET: &str = "s3://";
/// How many files that are kept as records are in memory at once (10 MiB each at most) until they are downloaded, how
/// long a reader may take for one, and when others may try again.
static PLACES: Semaphore = Semaphore::const_new(16);
const HELD: Duration = Duration::from_mins(2);
const HELD_AT_SHUTDOWN: Duration = Duration::from_secs(5);
const RETRY_AFTER: Duration = Duration::from_secs(5);

/// The routes, relative to where they are mounted.
pub fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(list_artifacts)).routes(routes!(download_artifact))
}

/// A file of a delivery.
#[derive(Serialize, ToSchema)]
struct Artifact {
    id: String,
    /// `video`, `transcript_json`, `transcript_txt`, `transcript_vtt`, `summary`, `action_items` or `metadata`.
    #[schema(example = "video")]
    kind: String,
    #[schema(example = "video.mp4")]
    name: String,
    content_type: String,
    /// Bytes.
    size: u64,
    sha256: String,
    /// The destination it was delivered to.
    destination: String,
    /// Where it is there, in the destination's own terms.
    location: Option<String>,
    /// A link to its bytes that needs no other credential, for what can be had here or in a bucket that gives links.
    url: Option<String>,
    /// When the link is over.
    #[schema(value_type = Option<String>, format = DateTime)]
    #[serde(with = "time::serde::rfc3339::option")]
    expires_at: Option<OffsetDateTime>,
}

/// The files of a recording.
#[derive(Serialize, ToSchema)]
struct ArtifactList {
    items: Vec<Artifact>,
}

/// What lets a download in.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct Ticket {
    /// As the list of artifacts has it in `url`.
    #[serde(default)]
    token: String,
}

fn text(record: &Value, field: &str) -> String {
    record.get(field).and_then(Value::as_str).unwrap_or_default().to_owned()
}

/// Lists the files of a recording's deliveries, with links to those that are here.
#[utoipa::path(get, path = "/meetings/{recording_id}/artifacts", tag = "deliveries", security(("bearer" = [])),
    params(("recording_id" = u64, Path, description = "A recording's id.")),
    responses((status = 200, description = "The files.", body = ArtifactList)))]
async fn list_artifacts(
    State(state): State<AppState>,
    user: AuthUser,
    Path(recording_id): Path<String>,
) -> Result<Json<ArtifactList>, ApiError> {
    let recording_id: u64 = recording_id.parse().map_err(|_| Problem::new(Code::NotFound))?;
    let tenant = own_tenant(&state.tenancy, &user).await?;
    let (items, targets) = {
        let instance = state.services.records.open(&tenant, Priority::Client).await.map_err(Problem::from)?;
        let items = ledger::artifacts(&instance, recording_id).await.map_err(Problem::from)?;
        (items, state.services.destinations.list(&instance).await?)
    };
    let now = OffsetDateTime::now_utc();
    let in_folder = |destination: &str| {
        targets.iter().any(|target| target.id == destination && target.settings.kind().as_str() == "folder")
    };
    let is_linked = |destination: &str, location: &str| {
        let is_it = |target: &Target| target.id == destination && target.settings.gives_links();
        location.starts_with(BUCKET) && targets.iter().any(is_it)
    };
    let items = items
        .iter()
        .map(|record| {
            let (id, location, destination) =
                (text(record, "id"), text(record, "location"), text(record, "destination"));
            let is_staged = location.strip_prefix(STAGED).is_some_and(|job| is_there(&state.services, &tenant, job));
            let is_here = is_staged || !text(record, "file").is_empty() || in_folder(&destination);
            let link =
                (is_here || is_linked(&destination, &location)).then(|| state.services.links.sign(&tenant, &id, now));
            Artifact {
                url: link.as_ref().map(|(token, _)| format!("/api/v1/artifacts/{id}/download?token={token}")),
                expires_at: link.map(|(_, end)| end.replace_nanosecond(0).unwrap_or(end)),
                kind: text(record, "kind"),
                name: text(record, "name"),
                content_type: text(record, "content_type"),
                size: record.get("size").and_then(Value::as_u64).unwrap_or_default(),
                sha256: text(record, "sha256"),
                location: Some(location).filter(|location| !location.is_empty() && !location.starts_with(STAGED)),
                destination,
                id,
            }
        })
        .collect();
    Ok(Json(ArtifactList { items }))
}

fn is_there(services: &Services, tenant: &TenantId, job: &str) -> bool {
    own_staged(services, tenant, job).is_some_and(|path| path.is_file())
}

/// The staged video of a job of this tenant. The name comes from a record, which the tenant's own instance keeps: it is
/// not what says whose the job is.
fn own_staged(services: &Services, tenant: &TenantId, job: &str) -> Option<PathBuf> {
    let id = JobId::parse(job).ok()?;
    services.queue.find(tenant, &id)?;
    staged(&services.staging, job)
}

/// The staged video of a job. The name comes from a record, so it is read like any name from outside.
fn staged(staging: &Staging, job: &str) -> Option<PathBuf> {
    let is_plain = !job.is_empty() && job.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    is_plain.then(|| staging.folder(job).join("video.mp4"))
}

/// Gives the bytes of a file that is here. Ranges are served.
#[utoipa::path(get, path = "/artifacts/{id}/download", tag = "deliveries",
    params(("id" = String, Path, description = "An artifact's id."), Ticket),
    responses((status = 200, description = "The bytes.", content_type = "application/octet-stream"),
        (status = 206, description = "The range that was asked for."),
        (status = 307, description = "The bytes are in a bucket: a link to them that was made now."),
        (status = 416, description = "There is no such range.")))]
async fn download_artifact(
    State(state): State<AppState>,
    Path(id): Path<String>,
    Params(ticket): Params<Ticket>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let links: &Links = &state.services.links;
    let absent = || Problem::new(Code::NotFound).message("this link is over or leads nowhere; ask for a new one");
    let tenant = links.verify(&id, &ticket.token, OffsetDateTime::now_utc()).ok_or_else(absent)?;
    let (record, content) = find(&state.services.records, &state.services, &tenant, &id).await?.ok_or_else(absent)?;
    match content {
        Content::Elsewhere(url) => Ok(elsewhere(&url)?),
        content => Ok(answer(&record, content, &headers, &state.shutdown).await?),
    }
}

/// Leads to a link that lets in whoever has it: nobody on the way keeps it or tells it on.
fn elsewhere(url: &str) -> Result<Response, Problem> {
    let url = HeaderValue::from_str(url).map_err(|_| Problem::new(Code::Internal))?;
    let mut response = StatusCode::TEMPORARY_REDIRECT.into_response();
    response.headers_mut().extend([
        (header::LOCATION, url),
        (header::CACHE_CONTROL, HeaderValue::from_static("private, no-store")),
        (header::REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
    ]);
    Ok(response)
}

/// Room in memory for one file that is kept as a record.
#[derive(Debug)]
struct Place {
    _permit: SemaphorePermit<'static>,
}

impl Place {
    fn take() -> Result<Self, Problem> {
        let taken = PLACES.try_acquire();
        taken.map(|permit| Self { _permit: permit }).map_err(|_| {
            Problem::new(Code::Overloaded)
                .message("too many files are being downloaded; try again soon")
                .retry_after(RETRY_AFTER)
        })
    }
}

/// Where the bytes are.
enum Content {
    Whole(Bytes, Place),
    File(File, u64),
    /// Behind this link.
    Elsewhere(String),
}

async fn find(
    records: &Records,
    services: &Services,
    tenant: &TenantId,
    id: &str,
) -> Result<Option<(Value, Content)>, Problem> {
    let instance = records.open(tenant, Priority::Client).await?;
    let Some(record) = ledger::one_artifact(&instance, id).await? else { return Ok(None) };
    let (location, name) = (text(&record, "location"), text(&record, "file"));
    let content = if let Some(job) = location.strip_prefix(STAGED) {
        match own_staged(services, tenant, job) {
            Some(path) => of_file(File::open(path).await.ok()).await,
            None => None,
        }
    } else if name.is_empty() && location.starts_with(BUCKET) {
        let target = services.destinations.find(&instance, &text(&record, "destination")).await?;
        services.destinations.link(tenant, &target, &location).await?.map(Content::Elsewhere)
    } else if name.is_empty() {
        of_file(delivered(&services.destinations, &instance, tenant, &record).await.map(File::from_std)).await
    } else {
        let place = Place::take()?;
        let path = format!("/api/files/artifacts/{id}/{name}");
        // Protected files open to file tokens alone, also for a superuser.
        let token = instance.lease().superuser_file_token().ok_or_else(|| Problem::new(Code::BadGateway))?;
        Some(Content::Whole(instance.send(hyper::Method::GET, &path, &[("token", token)], None).await?, place))
    };
    Ok(content.map(|content| (record, content)))
}

async fn of_file(file: Option<File>) -> Option<Content> {
    let file = file?;
    let size = file.metadata().await.ok()?.len();
    Some(Content::File(file, size))
}

/// A file in this server's folder, found by its place there and not by a path.
async fn delivered(
    destinations: &Destinations,
    instance: &Instance,
    tenant: &TenantId,
    record: &Value,
) -> Option<std::fs::File> {
    let target = destinations.find(instance, &text(record, "destination")).await.ok()?;
    let folder = destinations.folder(tenant, &target).ok()?;
    let location = text(record, "location");
    let mut parts = location.rsplit('/').map(str::to_owned);
    let (name, bundle) = (parts.next()?, parts.next()?);
    tokio::task::spawn_blocking(move || folder.read(&bundle, &name).ok().flatten()).await.ok().flatten()
}

/// The part of a body that is asked for.
#[derive(Debug, PartialEq, Eq)]
enum Part {
    Whole,
    Range { first: u64, last: u64 },
    None,
}

/// Pure: reads `Range`. What is not one range of bytes is as if it were not there, as the standard has it.
fn part(range: Option<&str>, size: u64) -> Part {
    let Some((first, last)) = range.and_then(|range| range.trim().strip_prefix("bytes=")?.split_once('-')) else {
        return Part::Whole;
    };
    let (first, last) = match (first.trim(), last.trim()) {
        ("", suffix) => match suffix.parse::<u64>() {
            Ok(0) => return Part::None,
            Ok(length) => (size.saturating_sub(length), size.saturating_sub(1)),
            Err(_) => return Part::Whole,
        },
        (first, "") => match first.parse() {
            Ok(first) => (first, size.saturating_sub(1)),
            Err(_) => return Part::Whole,
        },
        (first, last) => match (first.parse(), last.parse::<u64>()) {
            (Ok(first), Ok(last)) if first <= last => (first, last.min(size.saturating_sub(1))),
            _ => return Part::Whole,
        },
    };
    if first >= size { Part::None } else { Part::Range { first, last } }
}

async fn answer(
    record: &Value,
    content: Content,
    headers: &HeaderMap,
    shutdown: &Shutdown,
) -> Result<Response, Problem> {
    let size = match &content {
        Content::Whole(bytes, _) => bytes.len() as u64,
        Content::File(_, size) => *size,
        Content::Elsewhere(_) => 0,
    };
    let etag = format!("\"{}\"", text(record, "sha256"));
    let asked = |name: HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    // A part of another version is of no use.
    let is_same = asked(header::IF_RANGE).is_none_or(|mark| mark == etag);
    let part = part(asked(header::RANGE).filter(|_| is_same), size);
    let (status, first, length) = match part {
        Part::Whole => (StatusCode::OK, 0, size),
        Part::Range { first, last } => (StatusCode::PARTIAL_CONTENT, first, last - first + 1),
        Part::None => {
            let mut response = ApiError(Problem::new(Code::RangeNotSatisfiable)).into_response();
            if let Ok(range) = HeaderValue::from_str(&format!("bytes */{size}")) {
                response.headers_mut().insert(header::CONTENT_RANGE, range);
            }
            return Ok(response);
        }
    };
    let body = match content {
        Content::Whole(bytes, place) => {
            let at = |position: u64| usize::try_from(position).unwrap_or(usize::MAX).min(bytes.len());
            Body::from_stream(pieces(bytes.slice(at(first)..at(first + length)), place, shutdown))
        }
        Content::File(mut file, _) => {
            file.seek(SeekFrom::Start(first)).await.map_err(|_| Problem::new(Code::Internal))?;
            Body::from_stream(chunks(file, length))
        }
        Content::Elsewhere(_) => Body::empty(),
    };
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let more = [
        (header::CONTENT_TYPE, content_type(&text(record, "content_type"))),
        (header::CONTENT_LENGTH, HeaderValue::from(length)),
        (header::ACCEPT_RANGES, HeaderValue::from_static("bytes")),
        (header::CACHE_CONTROL, HeaderValue::from_static("private, no-store")),
        (header::CONTENT_SECURITY_POLICY, HeaderValue::from_static("default-src 'none'; sandbox")),
        (header::CONTENT_DISPOSITION, disposition(&text(record, "name"))),
    ];
    response.headers_mut().extend(more);
    if let Ok(etag) = HeaderValue::from_str(&etag) {
        response.headers_mut().insert(header::ETAG, etag);
    }
    if status == StatusCode::PARTIAL_CONTENT
        && let Ok(range) = HeaderValue::from_str(&format!("bytes {first}-{}/{size}", first + length - 1))
    {
        response.headers_mut().insert(header::CONTENT_RANGE, range);
    }
    Ok(response)
}

/// Fathom names the type of the video, so it is a word from outside.
fn content_type(text: &str) -> HeaderValue {
    let is_known = ["video/", "audio/", "text/plain", "text/vtt", "text/markdown", "application/json"];
    let safe = if is_known.iter().any(|known| text.starts_with(known)) { text } else { "application/octet-stream" };
    HeaderValue::from_str(safe).unwrap_or(HeaderValue::from_static("application/octet-stream"))
}

/// As RFC 6266 has it: a plain name for old clients, the real one encoded.
fn disposition(name: &str) -> HeaderValue {
    let plain: String =
        name.chars().map(|c| if c.is_ascii_alphanumeric() || " ._-()".contains(c) { c } else { '_' }).collect();
    let encoded = utf8_percent_encode(name, NON_ALPHANUMERIC);
    HeaderValue::from_str(&format!("attachment; filename=\"{plain}\"; filename*=UTF-8''{encoded}"))
        .unwrap_or(HeaderValue::from_static("attachment"))
}

/// Hands out bytes that are in memory. A reader who stops reading keeps them no longer than the others: the body breaks
/// off then.
fn pieces(mut bytes: Bytes, place: Place, shutdown: &Shutdown) -> impl Stream<Item = std::io::Result<Bytes>> + use<> {
    let (give, take) = mpsc::channel(1);
    let stopping = shutdown.clone();
    shutdown.spawn(async move {
        let feed =
            async { while !bytes.is_empty() && give.send(Ok(bytes.split_to(CHUNK.min(bytes.len())))).await.is_ok() {} };
        let stopped = async {
            stopping.begun().await;
            tokio::time::sleep(HELD_AT_SHUTDOWN).await;
        };
        tokio::select! {
            () = feed => {}
            () = tokio::time::sleep(HELD) => {}
            () = stopped => {}
        }
        drop(place);
    });
    stream::unfold(take, async |mut take| take.recv().await.map(|piece| (piece, take)))
}

fn chunks(file: File, length: u64) -> impl Stream<Item = std::io::Result<Bytes>> + Send + 'static {
    stream::unfold((file, length), async move |(mut file, left)| {
        if left == 0 {
            return None;
        }
        let mut buffer = vec![0; CHUNK.min(usize::try_from(left).unwrap_or(CHUNK))];
        match file.read(&mut buffer).await {
            Ok(0) => Some((Err(std::io::ErrorKind::UnexpectedEof.into()), (file, 0))),
            Ok(read) => {
                buffer.truncate(read);
                Some((Ok(Bytes::from(buffer)), (file, left - read as u64)))
            }
            Err(error) => Some((Err(error), (file, 0))),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_range_is_served_and_nonsense_is_not_one() {
        let range = |first, last| Part::Range { first, last };
        for (text, expected) in [
            (None, Part::Whole),
            (Some("bytes=0-"), range(0, 9)),
            (Some("bytes=2-4"), range(2, 4)),
            (Some("bytes=2-400"), range(2, 9)),
            (Some("bytes=-3"), range(7, 9)),
            (Some("bytes=-300"), range(0, 9)),
            (Some("bytes=10-"), Part::None),
            (Some("bytes=-0"), Part::None),
            (Some("bytes=4-2"), Part::Whole),
            (Some("bytes=0-1,3-4"), Part::Whole),
            (Some("lines=0-1"), Part::Whole),
            (Some("bytes=a-b"), Part::Whole),
        ] {
            assert_eq!(part(text, 10), expected, "{text:?}");
        }
        assert_eq!(part(Some("bytes=0-"), 0), Part::None);
    }

    #[test]
    fn names_cannot_end_the_header() {
        let value = disposition("Q1 \"x\"\r\nSet-Cookie: a=b ü.mp4");
        let text = value.to_str().unwrap();
        assert!(text.starts_with("attachment; filename=\"Q1 _x___Set-Cookie_ a_b _.mp4\"; filename*=UTF-8''Q1%20%22"));
        assert_eq!(content_type("text/html").to_str().unwrap(), "application/octet-stream");
        assert_eq!(content_type("video/mp4\r\nx: y").to_str().unwrap(), "application/octet-stream");
    }

    #[tokio::test(start_paused = true)]
    async fn a_place_is_held_until_the_bytes_are_read() {
        use futures_util::StreamExt;
        let held: Vec<Place> = std::iter::from_fn(|| Place::take().ok()).collect();
        assert_eq!(held.len(), 16);
        let refused = Place::take().unwrap_err();
        assert_eq!((refused.code, refused.retry_after), (Code::Overloaded, Some(RETRY_AFTER)));
        let mut held = held.into_iter();
        let shutdown = Shutdown::new();
        let mut body = Box::pin(pieces(Bytes::from(vec![7; CHUNK * 3 + 1]), held.next().unwrap(), &shutdown));
        assert_eq!(body.next().await.unwrap().unwrap().len(), CHUNK);
        assert!(Place::take().is_err(), "there is more to read");
        assert_eq!(body.map(|piece| piece.unwrap().len()).collect::<Vec<_>>().await, [CHUNK, CHUNK, 1]);
        // Somebody who does not read at all.
        let mut body = Box::pin(pieces(Bytes::from(vec![7; CHUNK * 3]), held.next().unwrap(), &shutdown));
        tokio::time::sleep(HELD + Duration::from_secs(1)).await;
        assert!(Place::take().is_ok());
        assert!(body.next().await.is_some());
        assert!(body.next().await.is_none(), "it broke off");
    }

    #[test]
    fn staged_files_are_found_by_plain_names_only() {
        let staging = Staging::new("/data/delivery".into(), 0);
        assert!(staged(&staging, "01abc").is_some());
        for bad in ["", "..", "../x", "a/b", "A"] {
            assert!(staged(&staging, bad).is_none(), "{bad:?}");
        }
    }
}
