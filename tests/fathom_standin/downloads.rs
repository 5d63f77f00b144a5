//! Downloads that take their time, and the signed media behind them.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use axum::body::Body;
use axum::extract::Path;
use axum::extract::Query;
use axum::extract::State;
use axum::response::IntoResponse;
use axum::response::Response;
use bytes::Bytes;
use futures_util::stream;
use hyper::HeaderMap;
use hyper::Method;
use hyper::StatusCode;
use hyper::header;
use hyper::header::HeaderValue;
use serde_json::Value;
use serde_json::json;
use time::OffsetDateTime;

use crate::api::Answer;
use crate::api::Call;
use crate::api::Refusal;
use crate::content::rfc3339;
use crate::faults;
use crate::faults::Kind;
use crate::hooks;
use crate::media::Video;
use crate::world::World;

/// One download.
pub(crate) struct Download {
    key: String,
    recording_id: u64,
    asked_at: Instant,
    polls: u32,
    /// Set when it is completed.
    link: Option<Link>,
    is_failed: bool,
    is_expired: bool,
    size: u64,
}

struct Link {
    signature: String,
    until: OffsetDateTime,
}

/// `POST /recordings/{id}/download`.
pub(crate) fn request(world: &Arc<World>, call: &Call, id: &str, fault: Option<&Kind>) -> Answer {
    let recording_id = id.parse().map_err(|_| Refusal(StatusCode::BAD_REQUEST, "bad id"))?;
    let destination = if call.body.is_empty() {
        None
    } else {
        let body: Value =
            serde_json::from_slice(&call.body).map_err(|_| Refusal(StatusCode::BAD_REQUEST, "bad JSON"))?;
        let object = body.as_object().ok_or(Refusal(StatusCode::BAD_REQUEST, "an object is needed"))?;
        if object.keys().any(|field| field != "destination_url") {
            return Err(Refusal(StatusCode::BAD_REQUEST, "unknown property"));
        }
        object.get("destination_url").and_then(Value::as_str).map(str::to_owned)
    };
    let (download_id, value) = {
        let mut state = world.state();
        let meeting =
            state.meeting(&call.key, recording_id).ok_or(Refusal(StatusCode::NOT_FOUND, "no such recording"))?;
        if meeting.is_limited {
            return Err(Refusal(StatusCode::FORBIDDEN, "limited share"));
        }
        if !meeting.has_media {
            return Err(Refusal(StatusCode::UNPROCESSABLE_ENTITY, "no downloadable media"));
        }
        let serial = state.serial();
        let download_id = format!("dl_{serial:06}{recording_id}Standin");
        let download = Download {
            key: call.key.clone(),
            recording_id,
            asked_at: Instant::now(),
            polls: 0,
            link: None,
            is_failed: matches!(fault, Some(Kind::FailedDownload)),
            is_expired: false,
            size: Video::new(recording_id, state.settings.media_bytes).len(),
        };
        let value = body(&world.base, &download_id, &download);
        state.downloads.insert(download_id.clone(), download);
        (download_id, value)
    };
    if let Some(url) = destination {
        let ready = {
            let mut state = world.state();
            let seconds = state.settings.link_seconds;
            state.downloads.get_mut(&download_id).map(|download| {
                complete(download, seconds, &download_id);
                body(&world.base, &download_id, download)
            })
        };
        hooks::send(world, &call.key, &url, &ready.unwrap_or_default(), None);
    }
    Ok((StatusCode::ACCEPTED, value))
}

/// `GET /recordings/{id}/downloads/{download}`.
pub(crate) fn poll(world: &World, call: &Call, id: &str, download_id: &str, fault: Option<&Kind>) -> Answer {
    let mut state = world.state();
    let (polls, delay) = (state.settings.download_polls, Duration::from_millis(state.settings.download_ms));
    let seconds = state.settings.link_seconds;
    let download = state
        .downloads
        .get_mut(download_id)
        .filter(|download| download.key == call.key && download.recording_id.to_string() == id)
        .ok_or(Refusal(StatusCode::NOT_FOUND, "no such download"))?;
    download.polls += 1;
    match fault {
        Some(Kind::FailedDownload) => download.is_failed = true,
        Some(Kind::ExpiredDownload) => download.is_expired = true,
        _ => {}
    }
    if download.link.is_none() && download.polls >= polls && download.asked_at.elapsed() >= delay {
        complete(download, seconds, download_id);
    }
    if download.link.as_ref().is_some_and(|link| link.until <= OffsetDateTime::now_utc()) {
        download.is_expired = true;
    }
    Ok((StatusCode::OK, body(&world.base, download_id, download)))
}

fn complete(download: &mut Download, seconds: u64, download_id: &str) {
    let signature =
        format!("{:016x}", download_id.bytes().fold(7_u64, |sum, b| sum.wrapping_mul(131).wrapping_add(b.into())));
    download.link = Some(Link { signature, until: OffsetDateTime::now_utc() + Duration::from_secs(seconds) });
}

fn body(base: &str, download_id: &str, download: &Download) -> Value {
    let mut value = json!({ "download_id": download_id, "recording_id": download.recording_id });
    match &download.link {
        _ if download.is_failed => {
            value["status"] = "failed".into();
            value["failure_reason"] = "generation_failed".into();
        }
        _ if download.is_expired => value["status"] = "expired".into(),
        None => value["status"] = "processing".into(),
        Some(link) => {
            value["status"] = "completed".into();
            value["video"] = json!({
                "url": format!("{base}/media/{download_id}.mp4?signature={}", link.signature),
                "content_type": "video/mp4", "file_size_bytes": download.size, "expires_at": rfc3339(link.until),
            });
        }
    }
    value
}

/// `GET|HEAD /media/{download}.mp4`.
pub(crate) async fn media(
    State(world): State<Arc<World>>,
    Path(name): Path<String>,
    Query(query): Query<HashMap<String, String>>,
    method: Method,
    headers: HeaderMap,
) -> Response {
    let (fault, video, rate) = {
        let mut state = world.state();
        *state.calls.entry(format!("{method} /media")).or_default() += 1;
        if headers.contains_key("x-api-key") || headers.contains_key(header::AUTHORIZATION) {
            *state.calls.entry("media with a key".to_owned()).or_default() += 1;
        }
        let fault = faults::due(&mut state.faults, method.as_str(), &format!("/media/{name}"));
        let found = name.strip_suffix(".mp4").and_then(|id| state.downloads.get(id));
        let link = found.and_then(|download| Some((download, download.link.as_ref()?)));
        let Some((download, _)) = link.filter(|(download, link)| {
            query.get("signature") == Some(&link.signature)
                && link.until > OffsetDateTime::now_utc()
                && !download.is_expired
        }) else {
            return StatusCode::FORBIDDEN.into_response();
        };
        let video = Video::new(download.recording_id, download.size).version(state.settings.media_version);
        (fault, video, state.settings.media_rate)
    };
    faults::wait(fault.as_ref()).await;
    if let Some(response) = fault.as_ref().and_then(|kind| faults::instead(kind, &world.base)) {
        return response;
    }
    let whole = video.len();
    let text = |name: header::HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    let is_same = text(header::IF_RANGE).is_none_or(|mark| mark == video.etag());
    let asked = text(header::RANGE).filter(|_| is_same);
    let range = asked.and_then(|text| range(text, whole)).unwrap_or(Range::Whole);
    let (status, first, last) = match range {
        Range::Beyond => {
            let mut response = StatusCode::RANGE_NOT_SATISFIABLE.into_response();
            insert(&mut response, header::CONTENT_RANGE, &format!("bytes */{whole}"));
            return response;
        }
        Range::Part(first, last) => (StatusCode::PARTIAL_CONTENT, first, last),
        Range::Whole => (StatusCode::OK, 0, whole.saturating_sub(1)),
    };
    let etag = video.etag();
    let stop = match fault {
        Some(Kind::ShortBody) => first + (last + 1 - first) / 2,
        _ => last + 1,
    };
    let mut response = Response::new(if method == Method::HEAD {
        Body::empty()
    } else {
        Body::from_stream(pieces(video, first, stop, last + 1, rate))
    });
    *response.status_mut() = status;
    if status == StatusCode::PARTIAL_CONTENT {
        insert(&mut response, header::CONTENT_RANGE, &format!("bytes {first}-{last}/{whole}"));
    }
    insert(&mut response, header::CONTENT_LENGTH, &(last + 1 - first).to_string());
    insert(&mut response, header::CONTENT_TYPE, "video/mp4");
    insert(&mut response, header::ACCEPT_RANGES, "bytes");
    insert(&mut response, header::ETAG, &etag);
    response
}

fn insert(response: &mut Response, name: header::HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        response.headers_mut().insert(name, value);
    }
}

/// What of the media is asked for: first and last byte.
enum Range {
    Whole,
    Part(u64, u64),
    Beyond,
}

/// None = not a range to be heeded.
fn range(text: &str, whole: u64) -> Option<Range> {
    let (first, last) = text.strip_prefix("bytes=")?.split_once('-')?;
    let end = whole.saturating_sub(1);
    if first.is_empty() {
        let count: u64 = last.parse().ok()?;
        return Some(if count > 0 { Range::Part(whole.saturating_sub(count), end) } else { Range::Beyond });
    }
    let first: u64 = first.parse().ok()?;
    let last = if last.is_empty() { end } else { last.parse::<u64>().ok()?.min(end) };
    Some(if first <= last && first < whole { Range::Part(first, last) } else { Range::Beyond })
}

/// The bytes up to `stop`, and a broken connection where that is before `end`.
fn pieces(
    video: Video,
    first: u64,
    stop: u64,
    end: u64,
    rate: u64,
) -> impl stream::Stream<Item = Result<Bytes, std::io::Error>> {
    let begun = tokio::time::Instant::now();
    stream::unfold((video, first), move |(video, at)| async move {
        if at >= stop {
            return (stop < end && at == stop).then(|| (Err(std::io::Error::other("cut")), (video, at + 1)));
        }
        if let Some(millis) = (at - first).saturating_mul(1000).checked_div(rate) {
            tokio::time::sleep_until(begun + Duration::from_millis(millis)).await;
        }
        let mut piece = video.piece(at);
        piece.truncate(usize::try_from(stop - at).unwrap_or(usize::MAX));
        // Lets what was sent so far leave before a cut.
        tokio::task::yield_now().await;
        let next = at + piece.len() as u64;
        Some((Ok(Bytes::from(piece)), (video, next)))
    })
}
