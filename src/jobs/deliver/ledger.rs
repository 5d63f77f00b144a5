//! What is noted of deliveries in the user's own instance: one row for each recording and destination, and one for each
//! file that was made.
//!
//! Invariants: ids follow from what a row is about, so that noting twice is noting once; a finished delivery is never
//! overwritten by a job that did not deliver.

use bytes::Bytes;
use serde_json::Value;
use serde_json::json;
use sha2::Digest;
use sha2::Sha256;
use time::OffsetDateTime;
use time::UtcOffset;
use time::macros::format_description;

use super::checkpoint::Staged;
use super::checkpoint::Subject;
use crate::jobs::destinations::Delivered;
use crate::records::Error;
use crate::records::Instance;
use crate::records::Query;
use crate::records::Upload;
use crate::records::quoted;

const DELIVERIES: &str = "deliveries";
const ARTIFACTS: &str = "artifacts";
/// Files up to this length are kept as records too.
pub const KEPT_BYTES: u64 = 10 * 1024 * 1024;

/// What the row of a delivery says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// `delivering`, `awaiting_upload`, `delivered`, `failed` or `cancelled`.
    pub state: String,
    /// The job that wrote it last.
    pub job: String,
    /// The link, once delivered.
    pub url: String,
}

/// The id of a row that is about these words: 15 characters that `PocketBase` takes.
pub fn id(words: &[&str]) -> String {
    const DIGITS: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
    let mut hash = Sha256::new();
    for word in words {
        hash.update((word.len() as u64).to_be_bytes());
        hash.update(word.as_bytes());
    }
    hash.finalize().iter().take(15).map(|byte| char::from(DIGITS[usize::from(byte & 31)])).collect()
}

/// The row of a recording at a destination.
pub fn delivery_id(recording_id: u64, destination: &str) -> String {
    id(&["delivery", &recording_id.to_string(), destination])
}

/// The row of one of its files.
pub fn artifact_id(recording_id: u64, destination: &str, kind: &str) -> String {
    id(&["artifact", &recording_id.to_string(), destination, kind])
}

/// An instant as `PocketBase` writes it.
pub fn stored(at: OffsetDateTime) -> String {
    let format = format_description!("[year]-[month]-[day] [hour]:[minute]:[second].[subsecond digits:3]Z");
    at.to_offset(UtcOffset::UTC).format(&format).unwrap_or_default()
}

fn text(record: &Value, field: &str) -> String {
    record.get(field).and_then(Value::as_str).unwrap_or_default().to_owned()
}

/// The row of a delivery, if there is one.
pub async fn find(instance: &Instance, recording_id: u64, destination: &str) -> Result<Option<Row>, Error> {
    let found = instance.find(DELIVERIES, &delivery_id(recording_id, destination)).await?;
    Ok(found.map(|row| Row { state: text(&row, "state"), job: text(&row, "job"), url: text(&row, "url") }))
}

/// Notes that a job delivers now.
pub async fn begin(
    instance: &Instance,
    subject: &Subject,
    job: &str,
    attempts: u32,
    now: OffsetDateTime,
) -> Result<(), Error> {
    let row = json!({
        "id": delivery_id(subject.recording_id, &subject.destination),
        "recording_id": subject.recording_id.to_string(),
        "meeting": subject.meeting,
        "destination": subject.destination,
        "job": job,
        "state": "delivering",
        "url": "",
        "error": "",
        "attempts": attempts,
        "started_at": stored(now),
        "finished_at": "",
    });
    instance.upsert(DELIVERIES, &[row]).await
}

/// Notes where a delivery stands.
pub async fn note(instance: &Instance, subject: &Subject, change: &Value) -> Result<(), Error> {
    let id = delivery_id(subject.recording_id, &subject.destination);
    instance.update(DELIVERIES, &id, change).await.map(drop)
}

/// Notes how a delivery ended without success, unless another job or a success is noted.
pub async fn fail(
    instance: &Instance,
    subject: &Subject,
    job: &str,
    state: &str,
    error: &str,
    now: OffsetDateTime,
) -> Result<(), Error> {
    let row = find(instance, subject.recording_id, &subject.destination).await?;
    if row.is_none_or(|row| row.job != job || row.state == "delivered") {
        return Ok(());
    }
    let error: String = error.chars().take(1_000).collect();
    note(instance, subject, &json!({ "state": state, "error": error, "finished_at": stored(now) })).await
}

/// A file as it is noted.
#[derive(Debug, Clone)]
pub struct Artifact<'a> {
    /// The file.
    pub staged: &'a Staged,
    /// Where it is at the destination.
    pub placed: &'a Delivered,
    /// Until when it can be fetched here.
    pub expires_at: Option<OffsetDateTime>,
    /// Its content, if it is kept in the record.
    pub content: Option<Bytes>,
}

/// Notes a file.
pub async fn artifact(instance: &Instance, subject: &Subject, job: &str, file: Artifact<'_>) -> Result<(), Error> {
    let id = artifact_id(subject.recording_id, &subject.destination, &file.staged.kind);
    let fields = json!({
        "meeting": subject.meeting,
        "recording_id": subject.recording_id.to_string(),
        "job": job,
        "destination": subject.destination,
        "kind": file.staged.kind,
        "name": file.staged.name,
        "content_type": file.staged.content_type,
        "size": file.staged.size,
        "sha256": file.staged.sha256,
        "location": file.placed.location,
        "expires_at": file.expires_at.map(stored).unwrap_or_default(),
    });
    let Some(content) = file.content else {
        let mut row = fields;
        row["id"] = id.into();
        return instance.upsert(ARTIFACTS, &[row]).await;
    };
    if let Some(row) = instance.find(ARTIFACTS, &id).await? {
        let is_kept = row.get("file").and_then(Value::as_str).is_some_and(|name| !name.is_empty());
        if is_kept && row.get("sha256") == fields.get("sha256") {
            return instance.update(ARTIFACTS, &id, &fields).await.map(drop);
        }
        instance.delete(ARTIFACTS, &id).await?;
    }
    let mut row = fields;
    row["id"] = id.into();
    let upload =
        Upload { field: "file", name: &file.staged.file, content_type: &file.staged.content_type, bytes: &content };
    instance.create_with_file(ARTIFACTS, &row, &upload).await.map(drop)
}

/// The files of a recording.
pub async fn artifacts(instance: &Instance, recording_id: u64) -> Result<Vec<Value>, Error> {
    let filter = format!("recording_id = {}", quoted(&recording_id.to_string()));
    let query = Query { filter: &filter, sort: "destination,kind", limit: 200, ..Query::default() };
    instance.list(ARTIFACTS, &query).await
}

/// One file.
pub async fn one_artifact(instance: &Instance, id: &str) -> Result<Option<Value>, Error> {
    instance.find(ARTIFACTS, id).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_follow_from_their_subject_and_fit() {
        let one = delivery_id(7, "folder");
        assert_eq!(one, delivery_id(7, "folder"));
        assert_ne!(one, delivery_id(7, "loom"));
        assert_ne!(id(&["ab", "c"]), id(&["a", "bc"]));
        assert!(one.len() == 15 && one.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit()));
    }
}
