//! The files beside the video, made from the meeting as the user's instance keeps it.

use std::fs;
use std::io;
use std::path::Path;

use serde_json::Value;
use serde_json::json;

use super::checkpoint::Staged;
use super::checkpoint::Subject;
use super::render;
use super::render::Line;
use super::staging::digest;

/// A file to be written.
struct Part {
    kind: &'static str,
    name: &'static str,
    content_type: &'static str,
    content: Vec<u8>,
}

/// The lines of a transcript as Fathom gives it: `[{speaker: {display_name}, text, timestamp}]`.
pub fn lines(transcript: &Value) -> Vec<Line> {
    let mut at = 0;
    let items = transcript.as_array().map(Vec::as_slice).unwrap_or_default();
    items
        .iter()
        .filter_map(|item| {
            let text = item.get("text").and_then(Value::as_str)?;
            // A line without a time goes with the one before.
            at = item.get("timestamp").and_then(Value::as_str).and_then(render::seconds).unwrap_or(at);
            let speaker = item.pointer("/speaker/display_name").and_then(Value::as_str).unwrap_or_default();
            Some(Line { speaker: speaker.to_owned(), text: text.to_owned(), at })
        })
        .collect()
}

/// Writes the files beside the video and says what there is now, video last: whoever sees it finds the rest.
pub fn write(folder: &Path, subject: &Subject, meeting: &Value, video: &Staged) -> io::Result<Vec<Staged>> {
    let transcript = meeting.get("transcript").cloned().unwrap_or_default();
    let lines = lines(&transcript);
    let mut parts = Vec::new();
    if !lines.is_empty() {
        let json = json!({ "transcript": transcript });
        parts.push(Part {
            kind: "transcript_json",
            name: "transcript.json",
            content_type: "application/json",
            content: pretty(&json),
        });
        parts.push(Part {
            kind: "transcript_txt",
            name: "transcript.txt",
            content_type: "text/plain; charset=utf-8",
            content: render::text(&lines).into_bytes(),
        });
        parts.push(Part {
            kind: "transcript_vtt",
            name: "transcript.vtt",
            content_type: "text/vtt; charset=utf-8",
            content: render::vtt(&lines).into_bytes(),
        });
    }
    if let Some(summary) = meeting.get("summary").and_then(Value::as_str).filter(|text| !text.trim().is_empty()) {
        parts.push(Part {
            kind: "summary",
            name: "summary.md",
            content_type: "text/markdown; charset=utf-8",
            content: summary.as_bytes().to_vec(),
        });
    }
    if let Some(items) = meeting.get("action_items").filter(|items| items.as_array().is_some_and(|all| !all.is_empty()))
    {
        parts.push(Part {
            kind: "action_items",
            name: "action_items.json",
            content_type: "application/json",
            content: pretty(&json!({ "action_items": items })),
        });
    }
    parts.push(Part {
        kind: "metadata",
        name: "metadata.json",
        content_type: "application/json",
        content: pretty(&metadata(subject, meeting, video)),
    });
    let mut staged: Vec<Staged> = parts.into_iter().map(|part| stage(folder, part)).collect::<io::Result<_>>()?;
    staged.push(video.clone());
    Ok(staged)
}

fn metadata(subject: &Subject, meeting: &Value, video: &Staged) -> Value {
    let field = |name: &str| meeting.get(name).cloned().unwrap_or_default();
    json!({
        "recording_id": subject.recording_id,
        "title": subject.title,
        "url": field("url"),
        "share_url": field("share_url"),
        "created_at": field("created_at"),
        "started_at": field("started_at"),
        "ended_at": field("ended_at"),
        "duration_seconds": field("duration_seconds"),
        "language": field("language"),
        "recorded_by": field("recorded_by"),
        "invitees": field("invitees"),
        "video": { "name": video.name, "content_type": video.content_type, "size": video.size, "sha256": video.sha256 },
    })
}

/// Whole or not at all, so that a kill leaves nothing half.
fn stage(folder: &Path, part: Part) -> io::Result<Staged> {
    let (path, fresh) = (folder.join(part.name), folder.join(format!("{}.new", part.name)));
    fs::write(&fresh, &part.content)?;
    fs::File::open(&fresh)?.sync_all()?;
    fs::rename(&fresh, &path)?;
    let (size, sha256) = digest(&path)?;
    let name = part.name.to_owned();
    let (kind, content_type) = (part.kind.to_owned(), part.content_type.to_owned());
    Ok(Staged { kind, file: name.clone(), name, content_type, size, sha256 })
}

fn pretty(value: &Value) -> Vec<u8> {
    let mut bytes = serde_json::to_vec_pretty(value).unwrap_or_default();
    bytes.push(b'\n');
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jobs::destinations::Kind;

    fn subject() -> Subject {
        Subject {
            recording_id: 7,
            meeting: "m00000000000007".to_owned(),
            title: "Review".to_owned(),
            folder: "2025-03-01_Review_7".to_owned(),
            destination: "folder".to_owned(),
            kind: Kind::Folder,
        }
    }

    fn video() -> Staged {
        Staged {
            kind: "video".to_owned(),
            file: "video.mp4".to_owned(),
            name: "video.mp4".to_owned(),
            content_type: "video/mp4".to_owned(),
            size: 3,
            sha256: "ab".to_owned(),
        }
    }

    #[test]
    fn everything_there_is_gets_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let meeting = json!({
            "summary": "## Summary\n", "action_items": [{"description": "Mail"}], "title": "Review",
            "transcript": [{"speaker": {"display_name": "Ada"}, "text": "Hello", "timestamp": "00:00:05"},
                {"speaker": null, "text": "Hm"}, {"timestamp": "00:00:09"}],
        });
        let files = write(dir.path(), &subject(), &meeting, &video()).unwrap();
        let kinds: Vec<&str> = files.iter().map(|file| file.kind.as_str()).collect();
        assert_eq!(
            kinds,
            ["transcript_json", "transcript_txt", "transcript_vtt", "summary", "action_items", "metadata", "video"]
        );
        let text = fs::read_to_string(dir.path().join("transcript.txt")).unwrap();
        assert_eq!(text, "[00:00:05] Ada: Hello\n[00:00:05] Hm\n");
        let metadata: Value = serde_json::from_slice(&fs::read(dir.path().join("metadata.json")).unwrap()).unwrap();
        assert_eq!((&metadata["recording_id"], &metadata["video"]["size"]), (&json!(7), &json!(3)));
        // The same again, after a kill.
        assert_eq!(write(dir.path(), &subject(), &meeting, &video()).unwrap(), files);
    }

    #[test]
    fn what_there_is_not_gets_none() {
        let dir = tempfile::tempdir().unwrap();
        let meeting = json!({"summary": "", "action_items": null, "transcript": null});
        let files = write(dir.path(), &subject(), &meeting, &video()).unwrap();
        let kinds: Vec<&str> = files.iter().map(|file| file.kind.as_str()).collect();
        assert_eq!(kinds, ["metadata", "video"]);
    }
}
